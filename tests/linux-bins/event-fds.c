// eventfd, timerfd, signalfd, memfd_create with seals, inotify.
#include "test.h"
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <poll.h>
#include <time.h>
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 16
#endif
int main(void) {
    uint64_t value = 5, max = -2ULL, many = -1ULL;
    char small[4];
    int fd = CALL(eventfd(3, EFD_NONBLOCK)); CALL(read(fd, &value, 8)); SHOW(value); CALL(read(fd, &value, 8)); CALL(write(fd, &max, 8)); CALL(write(fd, &value, 8)); CALL(write(fd, &many, 8)); CALL(read(fd, small, 4)); CALL(write(fd, small, 4));
    CALL(read(fd, &value, 8)); CHECK(value == max); CALL(lseek(fd, 0, SEEK_SET));
    fd = CALL(eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK)); CALL(read(fd, &value, 8)); SHOW(value); CALL(read(fd, &value, 8)); CALL(read(fd, &value, 8)); CALL(eventfd(0, 77));
    // Timers.
    struct itimerspec its = {{0, 0}, {0, 2000000}}, old;
    int t = CALL(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)); CALL(timerfd_create(99, 0)); CALL(timerfd_create(CLOCK_MONOTONIC, 99));
    CALL(timerfd_settime(t, 0, &its, &old)); SHOW(old.it_value.tv_sec); CALL(read(t, &value, 8)); SHOW(value); its.it_interval.tv_nsec = 1000000; CALL(timerfd_settime(t, 0, &its, NULL)); usleep(20000); CALL(read(t, &value, 8)); CHECK(value > 5);
    CALL(timerfd_gettime(t, &old)); SHOW(old.it_interval.tv_nsec); CHECK(old.it_value.tv_nsec <= 1000000); its.it_value.tv_nsec = 0; CALL(timerfd_settime(t, 0, &its, NULL)); CALL(fcntl(t, F_SETFL, O_NONBLOCK)); CALL(read(t, &value, 8)); its.it_value.tv_nsec = 1000000000; CALL(timerfd_settime(t, 0, &its, NULL));
    struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now); its.it_value = now; its.it_interval.tv_nsec = 0; CALL(timerfd_settime(t, TFD_TIMER_ABSTIME, &its, NULL)); CALL(read(t, &value, 8)); SHOW(value); CALL(read(t, small, 4)); CALL(timerfd_settime(fd, 0, &its, NULL)); CALL(timerfd_settime(t, 99, &its, NULL));
    // Signals.
    sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR1); sigaddset(&set, SIGRTMIN + 1); sigprocmask(SIG_BLOCK, &set, NULL);
    int s = CALL(signalfd(-1, &set, SFD_NONBLOCK)); struct signalfd_siginfo info[4]; CALL(read(s, info, sizeof info)); raise(SIGUSR1); raise(SIGUSR1); sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 42}); sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 43});
    struct pollfd pf = {s, POLLIN, 0}; CALL(poll(&pf, 1, 0)); CALL(read(s, info, sizeof info)); printf("%d %d %d, %d %d %d, %d\n", info[0].ssi_signo, info[0].ssi_code, info[0].ssi_pid == getpid(), info[1].ssi_signo - SIGRTMIN, info[1].ssi_code, info[1].ssi_int, info[2].ssi_int);
    CALL(read(s, info, 10)); sigdelset(&set, SIGUSR1); CALL(signalfd(s, &set, 0)); raise(SIGUSR1); CALL(read(s, info, sizeof info)); CALL(signalfd(99, &set, 0)); CALL(signalfd(fd, &set, 0)); CALL(signalfd(-1, &set, 99));
    // Anonymous files and seals.
    int m = CALL(memfd_create("name", MFD_CLOEXEC | MFD_ALLOW_SEALING)); CALL(write(m, "memory", 6)); CALL(fcntl(m, F_GET_SEALS)); CALL(ftruncate(m, 8192));
    char link[64] = "", path[64]; sprintf(path, "/proc/self/fd/%d", m); readlink(path, link, 63); puts(link);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m, 0); puts(map); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_WRITE)); munmap(map, 4096); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_SHRINK)); CALL(ftruncate(m, 10)); CALL(ftruncate(m, 10000)); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_GROW)); CALL(ftruncate(m, 20000)); CALL(pwrite(m, "x", 1, 10000)); CALL(pwrite(m, "x", 1, 0)); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_WRITE)); CALL(pwrite(m, "x", 1, 0)); DONE(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, m, 0)); DONE(mmap(NULL, 4096, PROT_READ, MAP_SHARED, m, 0)); DONE(mmap(NULL, 4096, PROT_WRITE, MAP_PRIVATE, m, 0)); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_SEAL)); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_SHRINK)); CALL(fcntl(m, F_GET_SEALS));
    m = CALL(memfd_create("plain", 0)); CALL(fcntl(m, F_GET_SEALS)); CALL(fcntl(m, F_ADD_SEALS, F_SEAL_WRITE)); CALL(memfd_create("x", 0x8000)); CALL(memfd_create((void *)1, 0));
    struct stat st; fstat(m, &st); printf("%o %d\n", st.st_mode, (int)st.st_nlink);
    char longname[300]; memset(longname, 'n', 300); longname[249] = 0; CALL(memfd_create(longname, 0) >= 0); longname[249] = 'n'; longname[250] = 0; CALL(memfd_create(longname, 0));
    // Watching files.
    mkdir("w", 0755); int in = CALL(inotify_init1(IN_NONBLOCK)); char events[4096]; CALL(inotify_add_watch(in, "w", IN_ALL_EVENTS)); CALL(inotify_add_watch(in, "none", IN_ALL_EVENTS)); CALL(inotify_add_watch(in, "w", 0)); CALL(read(in, events, 4096));
    put_file("w/f", "x"); rename("w/f", "w/g"); chmod("w/g", 0600); close(open("w/g", O_RDONLY)); unlink("w/g"); rmdir("w");
    long n = read(in, events, 4096);
    for (long i = 0; i < n;) { struct inotify_event *e = (void *)(events + i); printf("event %x %s%s\n", e->mask, e->len ? e->name : "-", e->cookie ? " cookie" : ""); i += sizeof *e + e->len; }
    CALL(inotify_rm_watch(in, 1)); CALL(inotify_rm_watch(in, 99)); CALL(inotify_init1(1));
    return 0;
}
