// Blocking calls that a signal interrupts: with SA_RESTART and without.
#include "test.h"
#include <poll.h>
#include <time.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/epoll.h>
#include <sys/file.h>
static volatile int alarms, feed = -1;
static void on_alarm(int s) { if (!alarms++ && feed >= 0) write(feed, "fed", 3); }
// On a busy machine the first may come before the call blocks: others follow.
static void alarm_in(int us) { struct itimerval it = {{0, us * 10}, {0, us}}; setitimer(ITIMER_REAL, &it, NULL); }
#define TRY(call) do { alarms = 0; alarm_in(20000); CALL(call); alarm_in(0); CHECK(alarms > 0); } while (0)
int main(void) {
    char c[8]; int p[2]; pipe(p); struct pollfd pf = {p[0], POLLIN, 0}; struct timespec ts = {5, 0}, rest; struct iovec v = {c, 8};
    for (int restart = 0; restart < 2; restart++) {
        printf("restart %d\n", restart); struct sigaction a = {.sa_handler = on_alarm, .sa_flags = restart ? SA_RESTART : 0}; sigaction(SIGALRM, &a, NULL);
        feed = restart ? p[1] : -1; TRY(read(p[0], c, 8)); TRY(readv(p[0], &v, 1)); TRY(syscall(SYS_preadv2, p[0], &v, 1, -1L, -1L, 0)); feed = -1;
        TRY(nanosleep(&ts, &rest)); CHECK(rest.tv_sec < 5 && (rest.tv_sec > 0 || rest.tv_nsec > 0)); TRY(clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &rest)); TRY(poll(&pf, 1, 5000)); TRY(pause()); TRY(usleep(5000000));
        int ep = epoll_create1(0); struct epoll_event e; TRY(epoll_wait(ep, &e, 1, 5000)); struct timeval tv = {5, 0}; TRY(select(0, NULL, NULL, NULL, &tv)); sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR1); struct timespec t2 = {5, 0}; TRY(syscall(SYS_rt_sigtimedwait, &s, NULL, &t2, 8));
        struct timespec now; clock_gettime(CLOCK_REALTIME, &now); now.tv_sec += 5; TRY(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &now, NULL));
    }
    // A write that is partly done.
    int q[2]; pipe(q); struct sigaction a = {.sa_handler = on_alarm}; sigaction(SIGALRM, &a, NULL); char *big = calloc(1, 200000); TRY(write(q[1], big, 200000)); TRY(write(q[1], big, 10)); TRY(tcdrain(q[1]));
    return 0;
}
