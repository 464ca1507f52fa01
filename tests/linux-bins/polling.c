// poll, ppoll, select, pselect6 and epoll on pipes, files and event counters.
#include "test.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/resource.h>
#include <time.h>
static void on_alarm(int s) {}
static void one(int fd, short events, int timeout) {
    struct pollfd p = {fd, events, 0x55};
    int n = poll(&p, 1, timeout);
    printf("poll fd %d for %x: %d, %x\n", fd, events, n, p.revents);
}
int main(void) {
    int p[2], q[2];
    char buffer[70000];
    pipe2(p, O_NONBLOCK);
    int file = open("f", O_RDWR | O_CREAT, 0600), null = open("/dev/null", O_RDWR), dir = open(".", O_RDONLY);
    short all = POLLIN | POLLOUT | POLLPRI | POLLRDNORM | POLLRDBAND | POLLWRNORM | POLLWRBAND;
    one(p[0], all, 0); one(p[1], all, 0); write(p[1], buffer, 1); one(p[0], all, 0); one(p[0], 0, 0); write(p[1], buffer, 70000); one(p[1], all, 0);
    read(p[0], buffer, 5000); one(p[1], POLLOUT, 0); one(file, all, 0); one(null, all, 0); one(dir, all, 0); one(99, all, 0); one(-1, all, 0); one(-5, all, 0);
    close(p[1]); one(p[0], all, 0); while (read(p[0], buffer, 70000) > 0); one(p[0], all, 0); one(p[0], 0, 0); pipe2(q, 0); close(q[0]); one(q[1], all, 0); one(q[1], 0, 0);
    pipe(q); one(q[0], POLLIN, 20);
    CALL(poll(NULL, 0, 10)); CALL(poll((void *)1, 1, 0)); CALL(poll((void *)1, 0, 0));
    struct timespec soon = {0, 1000000}, bad = {0, 1000000000}, negative = {-1, 0};
    struct pollfd pf = {q[0], POLLIN, 0};
    CALL(ppoll(&pf, 1, &soon, NULL)); CALL(ppoll(&pf, 1, &bad, NULL)); CALL(ppoll(&pf, 1, &negative, NULL));
    struct rlimit limit; getrlimit(RLIMIT_NOFILE, &limit);
    CALL(poll(&pf, limit.rlim_cur + 1, 0));
    // Signals interrupt; ppoll and pselect swap the mask.
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    ualarm(20000, 0); CALL(poll(&pf, 1, 5000));
    sigset_t set, none; sigemptyset(&none); sigemptyset(&set); sigaddset(&set, SIGUSR1);
    signal(SIGUSR1, on_alarm); sigprocmask(SIG_BLOCK, &set, NULL); raise(SIGUSR1);
    CALL(poll(&pf, 1, 10)); CALL(ppoll(&pf, 1, NULL, &none)); raise(SIGUSR1); CALL(pselect(0, NULL, NULL, NULL, NULL, &none));
    // select.
    fd_set r, w, e;
    struct timeval tv = {0, 10000};
    pipe(p); write(p[1], "x", 1);
    FD_ZERO(&r); FD_ZERO(&w); FD_ZERO(&e); FD_SET(p[0], &r); FD_SET(q[0], &r); FD_SET(p[1], &w); FD_SET(file, &w); FD_SET(file, &e);
    int n = p[1] + 1;
    SHOW(select(n, &r, &w, &e, &tv)); printf("%d %d %d %d %d\n", FD_ISSET(p[0], &r), FD_ISSET(q[0], &r), FD_ISSET(p[1], &w), FD_ISSET(file, &w), FD_ISSET(file, &e));
    FD_ZERO(&r); FD_SET(q[0], &r); tv.tv_sec = 0; tv.tv_usec = 5000; SHOW(select(n, &r, NULL, NULL, &tv)); printf("%d %ld %ld\n", FD_ISSET(q[0], &r), (long)tv.tv_sec, (long)tv.tv_usec);
    FD_SET(60, &r); CALL(select(61, &r, NULL, NULL, &tv)); CALL(select(-1, NULL, NULL, NULL, &tv)); tv.tv_sec = -1; CALL(select(0, NULL, NULL, NULL, &tv)); CALL(select(5, (void *)1, NULL, NULL, NULL));
    // epoll.
    CALL(epoll_create(0)); CALL(epoll_create1(1)); int ep = CALL(epoll_create1(EPOLL_CLOEXEC)), ep2 = CALL(epoll_create(1));
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 7}, got[8];
    CALL(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_MOD, q[0], &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_DEL, q[0], &ev));
    CALL(epoll_ctl(ep, EPOLL_CTL_ADD, file, &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_ADD, ep, &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_ADD, 99, &ev)); CALL(epoll_ctl(99, EPOLL_CTL_ADD, p[0], &ev)); CALL(epoll_ctl(file, EPOLL_CTL_ADD, p[0], &ev)); CALL(epoll_ctl(ep, 9, q[0], &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_ADD, q[0], NULL));
    CALL(epoll_wait(ep, got, 8, 0)); printf("%x %llu\n", got[0].events, (long long)got[0].data.u64); CALL(epoll_wait(ep, got, 8, 0)); CALL(epoll_wait(ep, got, 0, 0)); CALL(epoll_wait(ep, got, -1, 0)); CALL(epoll_wait(ep, (void *)1, 8, 0)); CALL(epoll_wait(file, got, 8, 0));
    ev.events = EPOLLIN | EPOLLET; CALL(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], &ev)); CALL(epoll_wait(ep, got, 8, 0)); CALL(epoll_wait(ep, got, 8, 0)); write(p[1], "y", 1); CALL(epoll_wait(ep, got, 8, 0)); CALL(epoll_wait(ep, got, 8, 5));
    ev.events = EPOLLIN | EPOLLONESHOT; CALL(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], &ev)); CALL(epoll_wait(ep, got, 8, 0)); CALL(epoll_wait(ep, got, 8, 0)); CALL(epoll_ctl(ep, EPOLL_CTL_MOD, p[0], &ev)); CALL(epoll_wait(ep, got, 8, 0));
    ev.events = EPOLLIN; CALL(epoll_ctl(ep2, EPOLL_CTL_ADD, ep, &ev)); CALL(epoll_ctl(ep, EPOLL_CTL_ADD, ep2, &ev)); ev.data.u64 = 8; CALL(epoll_ctl(ep, EPOLL_CTL_ADD, q[0], &ev)); write(q[1], "z", 1); CALL(epoll_wait(ep2, got, 8, 0)); CALL(epoll_wait(ep, got, 8, 0)); printf("%x %llu\n", got[0].events, (long long)got[0].data.u64);
    one(ep, POLLIN, 0); CALL(epoll_ctl(ep, EPOLL_CTL_DEL, q[0], NULL)); CALL(epoll_wait(ep, got, 8, 0));
    close(q[1]); ev.events = 0; CALL(epoll_ctl(ep, EPOLL_CTL_ADD, q[0], &ev)); CALL(epoll_wait(ep, got, 8, 0)); printf("%x\n", got[0].events); close(q[0]); CALL(epoll_wait(ep, got, 8, 0));
    // Several at once, and signals.
    int events = eventfd(3, EFD_NONBLOCK); ev.events = EPOLLIN | EPOLLOUT; ev.data.u64 = 9; CALL(epoll_ctl(ep, EPOLL_CTL_ADD, events, &ev)); CALL(epoll_wait(ep, got, 8, 0)); printf("%x\n", got[0].events);
    raise(SIGUSR1); CALL(epoll_ctl(ep, EPOLL_CTL_DEL, events, NULL)); CALL(epoll_pwait(ep, got, 8, 1000, &none)); CALL(epoll_wait(ep, got, 8, 10));
    return 0;
}
