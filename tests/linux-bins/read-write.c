// The read and write families: vectors, offsets, flags, limits, errors.
#include "test.h"
#include <sys/uio.h>
int main(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    char a[8] = "", b[8] = "", big[8192];
    memset(big, 'b', sizeof big);
    int fd = open("f", O_RDWR | O_CREAT, 0600);
    struct iovec out[] = {{"one", 3}, {"", 0}, {"four", 4}}, in[] = {{a, 2}, {b, 8}};
    CALL(writev(fd, out, 3)); CALL(lseek(fd, 0, SEEK_SET)); CALL(readv(fd, in, 2)); printf("%s %s\n", a, b);
    CALL(readv(fd, in, 2)); CALL(writev(fd, out, 0)); CALL(writev(fd, out, -1)); CALL(writev(fd, out, 1025));
    CALL(writev(fd, NULL, 1)); CALL(writev(fd, (void *)1, 1));
    struct iovec bad[] = {{"ok", 2}, {(void *)1, 4}}, negative[] = {{a, 2}, {a, -1}};
    CALL(writev(fd, bad, 2)); CALL(writev(fd, negative, 2)); CALL(lseek(fd, 0, SEEK_CUR));
    struct iovec rbad[] = {{a, 2}, {(void *)1, 4}};
    CALL(lseek(fd, 0, SEEK_SET)); CALL(readv(fd, rbad, 2)); CALL(lseek(fd, 0, SEEK_CUR));
    CALL(preadv(fd, in, 2, 1)); CALL(pwritev(fd, out, 3, 20)); CALL(preadv(fd, in, 2, -1)); CALL(preadv(fd, in, 2, 1000));
    CALL(syscall(SYS_preadv2, fd, in, 2, 0, 0, 0)); CALL(syscall(SYS_preadv2, fd, in, 2, -1, -1, 0));
    CALL(syscall(SYS_preadv2, fd, in, 2, 0, 0, 1 << 20));
    CALL(syscall(SYS_pwritev2, fd, out, 3, 0, 0, 16 /* RWF_APPEND */)); CALL(syscall(SYS_pwritev2, fd, out, 3, 2, 0, 2 /* DSYNC */));
    CALL(syscall(SYS_pwritev2, fd, out, 3, 2, 0, 1 << 20)); CALL(syscall(SYS_pwritev2, fd, out, 3, -1, -1, 0));
    CALL(lseek(fd, 0, SEEK_CUR));
    show_file("f");
    CALL(read(fd, a, 0)); CALL(read(99, a, 0)); CALL(read(fd, NULL, 0)); CALL(read(fd, NULL, 1)); CALL(write(fd, NULL, 0));
    CALL(write(fd, (void *)1, 1)); CALL(read(fd, a, -1)); CALL(write(-1, a, 1)); CALL(pread(fd, a, 1, LONG_MAX));
    CALL(pwrite(fd, a, 1, LONG_MAX));
    int ro = open("f", O_RDONLY), wo = open("f", O_WRONLY);
    CALL(write(ro, a, 1)); CALL(read(wo, a, 1)); CALL(writev(ro, out, 1)); CALL(pread(wo, a, 1, 0)); CALL(pwrite(ro, a, 1, 0));
    CALL(write(ro, a, 0)); CALL(read(wo, a, 0));
    // A limit on the size of files.
    #include <sys/resource.h>
    struct rlimit limit = {4096, RLIM_INFINITY};
    CALL(setrlimit(RLIMIT_FSIZE, &limit));
    CALL(pwrite(fd, big, 8192, 0)); CALL(pwrite(fd, big, 10, 4096)); CALL(ftruncate(fd, 5000));
    CALL(pwrite(fd, big, 10, 4090));
    limit.rlim_cur = RLIM_INFINITY; setrlimit(RLIMIT_FSIZE, &limit);
    // Special files.
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR), full = open("/dev/full", O_RDWR);
    CALL(read(null, a, 8)); CALL(write(null, big, 8192)); CALL(read(zero, big, 8192)); SHOW(big[8191]); CALL(write(zero, a, 8));
    CALL(write(full, a, 8)); CALL(read(full, a, 8)); CALL(write(null, (void *)1, 10));
    // Pipes: whole, closed, empty.
    int ends[2];
    CALL(pipe(ends));
    CALL(writev(ends[1], out, 3)); CALL(readv(ends[0], in, 2)); CALL(read(ends[1], a, 1)); CALL(write(ends[0], a, 1));
    CALL(close(ends[1])); CALL(read(ends[0], a, 1)); CALL(pipe(ends)); CALL(close(ends[0])); CALL(write(ends[1], a, 1));
    // Overlapping and large.
    int large = open("large", O_RDWR | O_CREAT, 0600);
    char *block = malloc(1 << 20);
    for (int i = 0; i < 1 << 20; i++) block[i] = i * 7 + (i >> 8);
    CALL(write(large, block, 1 << 20)); CALL(pwrite(large, block, 1 << 20, 12345));
    CALL(pread(large, block + 1, (1 << 20) - 1, 777));
    printf("%016llx\n", (long long)hash_bytes(HASH_START, block, 1 << 20));
    CALL(pread(large, block, 1 << 20, 1 << 20));
    manifest(".");
    return 0;
}
