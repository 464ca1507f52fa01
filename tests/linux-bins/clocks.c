// Clocks and timers: order, resolution, sleeping, errors; through the vDSO and without it.
#include "test.h"
#include <sys/auxv.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
static long long ns(clockid_t c) { struct timespec t; return clock_gettime(c, &t) ? -1 : t.tv_sec * 1000000000LL + t.tv_nsec; }
static long long raw(clockid_t c) { struct timespec t; return syscall(SYS_clock_gettime, c, &t) ? -1 : t.tv_sec * 1000000000LL + t.tv_nsec; }
static volatile int fired, overruns;
static timer_t timer; static volatile int timer_value;
static void on_timer(int s, siginfo_t *i, void *c) { fired++; timer_value = i->si_value.sival_int; overruns += timer_getoverrun(timer); }
int main(void) {
    clockid_t ids[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_TAI};
    for (int i = 0; i < 9; i++) { long long a = ns(ids[i]), b = raw(ids[i]), c = ns(ids[i]); printf("clock %d: works %d, in order %d, close %d\n", ids[i], a >= 0, a <= b && b <= c, c - a < 2000000000); struct timespec r; printf("resolution %d\n", clock_getres(ids[i], &r) == 0 && r.tv_sec == 0 && r.tv_nsec > 0); }
    int wrong = 0; long long last = 0; for (int i = 0; i < 20000; i++) { long long now = ns(CLOCK_MONOTONIC); wrong += now < last; last = now; } SHOW(wrong);
    CALL(clock_gettime(99, NULL)); struct timespec t; CALL(clock_gettime(99, &t)); CALL(clock_gettime(-1, &t)); CALL(clock_getres(99, &t)); CALL(clock_getres(CLOCK_REALTIME, NULL)); CALL(syscall(SYS_clock_gettime, CLOCK_REALTIME, 1)); CALL(syscall(SYS_clock_getres, CLOCK_MONOTONIC_COARSE, &t));
    struct timeval tv; CALL(gettimeofday(&tv, NULL)); CHECK(tv.tv_sec > 1600000000 && tv.tv_usec < 1000000); time_t now = time(NULL); CHECK(llabs(now - tv.tv_sec) <= 1); CHECK(llabs(ns(CLOCK_REALTIME) / 1000000000 - now) <= 1); CHECK(time(&now) == now); CHECK(syscall(SYS_time, NULL) - now <= 1); CALL(syscall(SYS_time, 1)); CHECK(getauxval(AT_SYSINFO_EHDR) != 0);
    CHECK(ns(CLOCK_BOOTTIME) >= ns(CLOCK_MONOTONIC) - 1000000000); CHECK(ns(CLOCK_MONOTONIC) > 0);
    // CPU time passes when the CPU is used, not when it sleeps.
    long long cpu = ns(CLOCK_PROCESS_CPUTIME_ID); usleep(100000); CHECK(ns(CLOCK_PROCESS_CPUTIME_ID) - cpu < 60000000); volatile long n = 0; while (ns(CLOCK_PROCESS_CPUTIME_ID) - cpu < 80000000) n++; CHECK(clock() > 0); clockid_t id; CALL(clock_getcpuclockid(0, &id)); CHECK(ns(id) > 0);
    // Sleeping.
    struct timespec s = {0, 30000000}, rem = {7, 7}; long long from = ns(CLOCK_MONOTONIC); CALL(nanosleep(&s, &rem)); CHECK(ns(CLOCK_MONOTONIC) - from >= 30000000); SHOW(rem.tv_sec); s.tv_nsec = 1000000000; CALL(nanosleep(&s, NULL)); s.tv_nsec = -1; CALL(nanosleep(&s, NULL)); s = (struct timespec){-1, 0}; CALL(nanosleep(&s, NULL)); CALL(syscall(SYS_nanosleep, 1, NULL)); s = (struct timespec){0, 0}; CALL(nanosleep(&s, NULL)); CALL(clock_nanosleep(99, 0, &s, NULL)); CALL(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &s, NULL)); CALL(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &s, NULL)); clock_gettime(CLOCK_MONOTONIC, &s); s.tv_nsec += 20000000; if (s.tv_nsec >= 1000000000) { s.tv_nsec -= 1000000000; s.tv_sec++; } CALL(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &s, NULL)); CHECK(ns(CLOCK_MONOTONIC) >= s.tv_sec * 1000000000LL + s.tv_nsec);
    // Interval timers.
    struct itimerval it = {{0, 5000}, {0, 5000}}, old; struct sigaction a = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART}; sigaction(SIGALRM, &a, NULL); sigaction(SIGVTALRM, &a, NULL); sigaction(SIGPROF, &a, NULL); sigaction(SIGUSR1, &a, NULL); CALL(setitimer(ITIMER_REAL, &it, NULL)); while (fired < 4) pause(); CALL(getitimer(ITIMER_REAL, &old)); SHOW(old.it_interval.tv_usec); CHECK(old.it_value.tv_usec <= 5000); it = (struct itimerval){{0, 0}, {0, 0}}; CALL(setitimer(ITIMER_REAL, &it, &old)); SHOW(old.it_interval.tv_usec); fired = 0; usleep(20000); SHOW(fired); it.it_value.tv_usec = 10000; CALL(setitimer(ITIMER_VIRTUAL, &it, NULL)); while (!fired) n++; fired = 0; CALL(setitimer(ITIMER_PROF, &it, NULL)); while (!fired) n++; CALL(setitimer(9, &it, NULL)); it.it_value.tv_usec = 1000000; CALL(setitimer(ITIMER_REAL, &it, NULL)); CALL(syscall(SYS_setitimer, 0, 1, NULL)); CALL(getitimer(9, &old)); CALL(alarm(100)); CALL(alarm(0)); CALL(alarm(0));
    // POSIX timers.
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 55}; CALL(timer_create(CLOCK_MONOTONIC, &ev, &timer)); struct itimerspec its = {{0, 0}, {0, 10000000}}, got; fired = 0; CALL(timer_settime(timer, 0, &its, NULL)); while (!fired) pause(); SHOW(timer_value); CALL(timer_gettime(timer, &got)); SHOW(got.it_value.tv_nsec); its.it_interval.tv_nsec = 1000000; its.it_value.tv_nsec = 1; sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR1); sigprocmask(SIG_BLOCK, &set, NULL); CALL(timer_settime(timer, 0, &its, NULL)); usleep(30000); fired = overruns = 0; sigprocmask(SIG_UNBLOCK, &set, NULL); CHECK(fired >= 1 && overruns > 3); CALL(timer_delete(timer)); CALL(timer_delete(timer)); ev.sigev_signo = 99; CALL(timer_create(CLOCK_MONOTONIC, &ev, &timer)); CALL(timer_create(99, NULL, &timer)); ev.sigev_notify = SIGEV_NONE; CALL(timer_create(CLOCK_REALTIME, &ev, &timer)); its.it_value.tv_nsec = -1; CALL(timer_settime(timer, 0, &its, NULL));
    struct timex tx = {0}; CHECK(adjtimex(&tx) >= 0);
    return 0;
}
