// Reading directories: contents, types, small buffers, seeking, changes while reading.
#include "test.h"
struct entry { uint64_t ino; int64_t off; uint16_t len; uint8_t type; char name[]; };
static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
static void list(int fd, size_t size) {
    char *buffer = malloc(size), *names[2000];
    int count = 0;
    long n;
    while ((n = syscall(SYS_getdents64, fd, buffer, size)) > 0)
        for (long i = 0; i < n;) {
            struct entry *e = (struct entry *)(buffer + i);
            if (e->len % 8 || e->len < 19 + strlen(e->name) + 1) puts("bad length");
            if (count < 2000) asprintf(&names[count++], "%s %d", e->name, e->type);
            i += e->len;
        }
    if (n < 0) printf("getdents64: %s\n", errno_name(errno));
    qsort(names, count, sizeof *names, by_name);
    printf("%d entries:", count);
    for (int i = 0; i < count; i++) { if (count < 30) printf(" %s,", names[i]); free(names[i]); }
    puts("");
    free(buffer);
}
int main(void) {
    char name[32];
    mkdir("d", 0755); mkdir("d/sub", 0755); put_file("d/file", "x"); symlink("x", "d/link"); mkfifo("d/fifo", 0600);
    int fd = open("d", O_RDONLY);
    list(fd, 4096); list(fd, 4096);
    CALL(lseek(fd, 0, SEEK_SET)); list(fd, 64);
    CALL(lseek(fd, 0, SEEK_SET)); list(fd, 1);
    CALL(syscall(SYS_getdents64, fd, NULL, 4096));
    CALL(syscall(SYS_getdents64, fd, (void *)1, 4096));
    int file = open("d/file", O_RDONLY);
    CALL(syscall(SYS_getdents64, file, name, 32)); CALL(syscall(SYS_getdents64, 99, name, 32));
    int path = open("d", O_PATH);
    CALL(syscall(SYS_getdents64, path, name, 32));
    // Many, through the C library, with positions.
    mkdir("many", 0755);
    for (int i = 0; i < 500; i++) { sprintf(name, "many/f%03d", i); put_file(name, ""); }
    int many = open("many", O_RDONLY);
    list(many, 1000);
    DIR *dir = opendir("many");
    struct dirent *e;
    int seen = 0;
    for (int i = 0; i < 100; i++) readdir(dir);
    long at = telldir(dir);
    char next[256];
    strcpy(next, readdir(dir)->d_name);
    for (int i = 0; i < 50; i++) readdir(dir);
    seekdir(dir, at);
    CHECK(strcmp(readdir(dir)->d_name, next) == 0);
    rewinddir(dir);
    while (readdir(dir)) seen++;
    SHOW(seen);
    // Removing everything while reading visits everything.
    rewinddir(dir);
    int removed = 0;
    while ((e = readdir(dir))) {
        if (e->d_name[0] == '.') continue;
        sprintf(name, "many/%.20s", e->d_name);
        removed += unlink(name) == 0;
    }
    SHOW(removed);
    closedir(dir);
    CALL(rmdir("many"));
    CALL(lseek(many, 0, SEEK_SET));
    list(many, 1000);
    // "." and ".." and inode numbers agree with stat.
    struct stat st, up;
    stat("d", &st); stat(".", &up);
    dir = opendir("d");
    while ((e = readdir(dir))) {
        struct stat child;
        fstatat(dirfd(dir), e->d_name, &child, AT_SYMLINK_NOFOLLOW);
        if (child.st_ino != e->d_ino) printf("%s: other inode number\n", e->d_name);
        if (!strcmp(e->d_name, ".")) CHECK(e->d_ino == st.st_ino);
        if (!strcmp(e->d_name, "..")) CHECK(e->d_ino == up.st_ino);
    }
    closedir(dir);
    return 0;
}
