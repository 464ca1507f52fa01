// openat2: its structure's versions, strict flags, and resolve flags.
#include "test.h"
struct open_how { uint64_t flags, mode, resolve; };
#define RESOLVE_NO_XDEV 1
#define RESOLVE_NO_MAGICLINKS 2
#define RESOLVE_NO_SYMLINKS 4
#define RESOLVE_BENEATH 8
#define RESOLVE_IN_ROOT 16
static int dir;
static long how(const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
    struct open_how how = {flags, mode, resolve};
    long fd = syscall(SYS_openat2, dir, path, &how, sizeof how);
    printf("%s %llo %llo %llx: %s\n", path, (long long)flags, (long long)mode, (long long)resolve,
        fd < 0 ? errno_name(errno) : "opened");
    if (fd >= 0) close(fd);
    return fd;
}
int main(void) {
    mkdir("d", 0755); mkdir("d/e", 0755);
    put_file("f", "f"); put_file("d/f", "df");
    symlink("f", "d/in"); symlink("../f", "d/out"); symlink("/etc", "d/absolute"); symlink("e", "d/se");
    dir = open("d", O_PATH | O_DIRECTORY);
    how("f", O_RDONLY, 0, 0);
    how("f", O_RDONLY, 0644, 0);
    how("new", O_RDONLY | O_CREAT, 0644, 0);
    how("new2", O_RDONLY | O_CREAT, 010644, 0);
    how("f", 1ULL << 40, 0, 0);
    how("f", O_RDONLY | 0x40000000, 0, 0);
    how("f", O_RDONLY, 0, 1 << 10);
    how("f", O_PATH | O_RDWR, 0, 0);
    how("f", O_PATH | O_CLOEXEC, 0, 0);
    how("../f", O_RDONLY, 0, 0);
    how("../f", O_RDONLY, 0, RESOLVE_BENEATH);
    how("e/../f", O_RDONLY, 0, RESOLVE_BENEATH);
    how("out", O_RDONLY, 0, RESOLVE_BENEATH);
    how("in", O_RDONLY, 0, RESOLVE_BENEATH);
    how("absolute", O_RDONLY, 0, RESOLVE_BENEATH);
    how("/f", O_RDONLY, 0, RESOLVE_BENEATH);
    how("in", O_RDONLY, 0, RESOLVE_NO_SYMLINKS);
    how("f", O_RDONLY, 0, RESOLVE_NO_SYMLINKS);
    how("se/x", O_RDONLY, 0, RESOLVE_NO_SYMLINKS);
    how("in", O_PATH | O_NOFOLLOW, 0, RESOLVE_NO_SYMLINKS);
    how("/f", O_RDONLY, 0, RESOLVE_IN_ROOT);
    how("../../f", O_RDONLY, 0, RESOLVE_IN_ROOT);
    how("out", O_RDONLY, 0, RESOLVE_IN_ROOT);
    how("absolute", O_RDONLY, 0, RESOLVE_IN_ROOT);
    how("f", O_RDONLY, 0, RESOLVE_IN_ROOT | RESOLVE_BENEATH);
    how("/proc/self/exe", O_RDONLY, 0, RESOLVE_NO_MAGICLINKS);
    how("/proc/self/exe", O_RDONLY, 0, 0);
    how("f", O_RDONLY, 0, RESOLVE_NO_XDEV);
    how("/proc/self", O_RDONLY, 0, RESOLVE_NO_XDEV);
    char large[64] = {0};
    CALL(syscall(SYS_openat2, dir, "f", large, 64));
    large[40] = 1;
    CALL(syscall(SYS_openat2, dir, "f", large, 64));
    CALL(syscall(SYS_openat2, dir, "f", large, 8));
    CALL(syscall(SYS_openat2, dir, "f", NULL, 24));
    CALL(syscall(SYS_openat2, dir, "f", large, 5000));
    return 0;
}
