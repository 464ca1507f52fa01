// Timestamps: which calls change which, utimensat's special values, precision.
#include "test.h"
#include <sys/time.h>
#include <time.h>
#include <utime.h>
static struct stat before;
static void mark(const char *p) { struct timespec old[2] = {{1000, 5}, {2000, 6}}; utimensat(AT_FDCWD, p, old, AT_SYMLINK_NOFOLLOW); lstat(p, &before); usleep(12000); }
static void changed(const char *p, const char *what) {
    struct stat st; lstat(p, &st);
    #define DIFF(f) (st.f.tv_sec != before.f.tv_sec || st.f.tv_nsec != before.f.tv_nsec)
    printf("%s changes %s:%s%s%s\n", what, p, DIFF(st_atim) ? " atime" : "", DIFF(st_mtim) ? " mtime" : "", DIFF(st_ctim) ? " ctime" : "");
}
static void show(const char *p) { struct stat st; lstat(p, &st); printf("%s: atime %lld.%09ld mtime %lld.%09ld\n", p, (long long)st.st_atim.tv_sec, st.st_atim.tv_nsec, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec); }
#define TRY(path, call) do { mark(path); call; changed(path, #call); } while (0)
int main(void) {
    put_file("f", "0123456789"); mkdir("d", 0755); symlink("f", "l"); char c[10]; int fd = open("f", O_RDWR);
    TRY("f", write(fd, "x", 1)); TRY("f", pwrite(fd, "x", 0, 0)); TRY("f", ftruncate(fd, 10)); TRY("f", ftruncate(fd, 5)); TRY("f", truncate("f", 5)); TRY("f", chmod("f", 0600)); TRY("f", chown("f", -1, -1)); TRY("f", link("f", "g")); TRY("f", unlink("g")); TRY("f", rename("f", "h")); rename("h", "f"); TRY("f", close(open("f", O_RDONLY))); TRY("f", close(open("f", O_WRONLY | O_TRUNC)));
    TRY("d", put_file("d/x", "")); TRY("d", put_file("d/x", "y")); TRY("d", unlink("d/x")); TRY("d", mkdir("d/s", 0700)); TRY("d", rmdir("d/s")); TRY("d", chmod("d", 0700)); TRY("d", symlink("a", "d/l")); TRY("d", rename("d/l", "d/m")); TRY("d", unlink("d/m")); TRY("d", open("d/none", O_RDONLY)); TRY("l", readlink("l", c, 1)); TRY("f", fallocate(fd, 0, 0, 100));
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    struct timespec t[2] = {{123, 456}, {789, 12}};
    CALL(utimensat(AT_FDCWD, "f", t, 0)); show("f"); t[0].tv_nsec = UTIME_OMIT; t[1].tv_sec = 55; CALL(utimensat(AT_FDCWD, "f", t, 0)); show("f"); t[0].tv_nsec = t[1].tv_nsec = UTIME_OMIT; mark("f"); CALL(utimensat(AT_FDCWD, "f", t, 0)); changed("f", "omit"); CALL(utimensat(AT_FDCWD, "none", t, 0)); t[0].tv_nsec = UTIME_NOW; CALL(utimensat(AT_FDCWD, "f", t, 0)); changed("f", "now"); t[0].tv_nsec = 1000000000; CALL(utimensat(AT_FDCWD, "f", t, 0)); t[0].tv_nsec = -1; CALL(utimensat(AT_FDCWD, "f", t, 0));
    t[0] = (struct timespec){1, 1}; t[1] = (struct timespec){2, 2}; CALL(utimensat(AT_FDCWD, "l", t, AT_SYMLINK_NOFOLLOW)); show("l"); CALL(utimensat(AT_FDCWD, "l", t, 0)); show("f"); CALL(futimens(fd, t)); CALL(futimens(99, t)); CALL(utimensat(fd, "", t, AT_EMPTY_PATH)); CALL(utimensat(AT_FDCWD, "f", t, 0x8000)); CALL(syscall(SYS_utimensat, AT_FDCWD, NULL, t, 0)); CALL(syscall(SYS_utimensat, fd, NULL, t, 0)); CALL(syscall(SYS_utimensat, AT_FDCWD, "f", 1, 0));
    struct timeval tv[2] = {{10, 20}, {30, 40}}; CALL(utimes("f", tv)); show("f"); tv[0].tv_usec = 1000000; CALL(utimes("f", tv)); struct utimbuf ub = {7, 8}; CALL(utime("f", &ub)); show("f"); mark("f"); CALL(utime("f", NULL)); changed("f", "utime(NULL)"); tv[0].tv_usec = 1; CALL(futimesat(AT_FDCWD, "f", tv)); show("f"); t[0].tv_sec = -5; t[1].tv_sec = 1L << 33; CALL(utimensat(AT_FDCWD, "f", t, 0)); show("f");
    int ro = open("f", O_RDONLY), path = open("f", O_PATH); CALL(futimens(ro, NULL)); CALL(futimens(path, NULL));
    // A new file's times are the present.
    struct timespec now; clock_gettime(CLOCK_REALTIME_COARSE, &now); put_file("new", ""); struct stat st; stat("new", &st); CHECK(st.st_mtim.tv_sec - now.tv_sec <= 2 && st.st_mtim.tv_sec >= now.tv_sec - 1);
    CHECK(st.st_mtim.tv_nsec == st.st_ctim.tv_nsec);
    return 0;
}
