// fcntl on descriptors and open files; the dup family; close_range; limits on descriptors.
#include "test.h"
#include <sys/resource.h>
int main(void) {
    int fd = open("f", O_RDWR | O_CREAT, 0600);
    CALL(fcntl(fd, F_GETFD)); CALL(fcntl(fd, F_SETFD, FD_CLOEXEC)); CALL(fcntl(fd, F_GETFD)); CALL(fcntl(fd, F_SETFD, 0xff)); CALL(fcntl(fd, F_GETFD));
    CALL(fcntl(fd, F_DUPFD, 10)); CALL(fcntl(10, F_GETFD)); CALL(fcntl(fd, F_DUPFD_CLOEXEC, 10)); CALL(fcntl(11, F_GETFD));
    CALL(fcntl(fd, F_DUPFD, -1)); CALL(fcntl(fd, F_DUPFD, 1 << 30)); CALL(fcntl(99, F_DUPFD, 0)); CALL(fcntl(fd, 9999)); CALL(fcntl(99, F_GETFL));
    printf("%o\n", fcntl(fd, F_GETFL)); CALL(fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK)); printf("%o %o\n", fcntl(fd, F_GETFL), fcntl(10, F_GETFL));
    CALL(fcntl(fd, F_SETFL, O_WRONLY | O_CREAT | O_TRUNC)); printf("%o\n", fcntl(fd, F_GETFL));
    // One offset for all duplicates.
    CALL(write(fd, "hello", 5)); CALL(lseek(10, 0, SEEK_CUR)); CALL(lseek(10, 1, SEEK_SET)); CALL(lseek(fd, 0, SEEK_CUR));
    CALL(dup(fd)); CALL(dup(99)); CALL(dup2(fd, 20)); CALL(dup2(fd, fd)); CALL(dup2(99, 20)); CALL(dup2(99, 99)); CALL(dup2(fd, -1)); CALL(dup2(fd, 1 << 30));
    CALL(fcntl(20, F_GETFD)); CALL(dup3(fd, 21, O_CLOEXEC)); CALL(fcntl(21, F_GETFD)); CALL(dup3(fd, fd, 0)); CALL(dup3(fd, 22, 1)); CALL(dup3(99, 22, 0));
    CALL(close(20)); CALL(close(20)); CALL(close(-1)); CALL(lseek(fd, 0, SEEK_CUR));
    // Ranges.
    for (int i = 30; i < 40; i++) dup2(fd, i);
    CALL(syscall(SYS_close_range, 30, 34, 0)); CALL(fcntl(34, F_GETFD)); CALL(fcntl(35, F_GETFD));
    CALL(syscall(SYS_close_range, 35, -1U, 4 /* CLOEXEC */)); CALL(fcntl(39, F_GETFD)); CALL(syscall(SYS_close_range, 35, 30, 0)); CALL(syscall(SYS_close_range, 30, -1U, 99));
    CALL(syscall(SYS_close_range, 30, -1U, 0)); CALL(fcntl(39, F_GETFD));
    // The lowest free number; the limit.
    CALL(close(0)); CALL(open("f", O_RDONLY)); CALL(close(5));
    struct rlimit limit = {14, 4096};
    CALL(setrlimit(RLIMIT_NOFILE, &limit));
    for (int i = 0; i < 9; i++) CALL(dup(fd));
    CALL(open("f", O_RDONLY)); int p[2]; CALL(pipe(p)); CALL(fcntl(fd, F_DUPFD, 14)); CALL(dup2(fd, 14)); CALL(dup2(fd, 13)); CALL(fcntl(21, F_GETFD));
    // Pipe sizes, owners, leases, seals.
    limit.rlim_cur = 1024; setrlimit(RLIMIT_NOFILE, &limit);
    CALL(pipe(p)); CALL(fcntl(p[0], F_GETPIPE_SZ)); CALL(fcntl(p[0], F_SETPIPE_SZ, 4096)); CALL(fcntl(p[1], F_GETPIPE_SZ)); CALL(fcntl(p[0], F_SETPIPE_SZ, 5000));
    CALL(fcntl(fd, F_GETPIPE_SZ)); CALL(fcntl(p[0], F_GETOWN)); CALL(fcntl(p[0], F_SETOWN, getpid())); CHECK(fcntl(p[0], F_GETOWN) == getpid());
    CALL(fcntl(p[0], F_SETSIG, SIGUSR1)); CALL(fcntl(p[0], F_GETSIG)); CALL(fcntl(fd, F_GET_SEALS)); CALL(fcntl(fd, F_GETLEASE));
    printf("%o\n", fcntl(p[0], F_GETFL));
    int path = open("f", O_PATH);
    CALL(fcntl(path, F_GETFD)); CALL(fcntl(path, F_SETFL, O_APPEND)); CALL(fcntl(path, F_SETFD, 1)); printf("%o\n", fcntl(path, F_GETFL));
    return 0;
}
