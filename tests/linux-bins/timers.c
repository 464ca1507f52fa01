// Timers: setitimer, alarm, timer_create with each way of telling, clock_nanosleep.
// @link -pthread -lrt
#include "test.h"
#include <pthread.h>
#include <sys/time.h>
#include <time.h>

static volatile sig_atomic_t count, last_code, last_value, last_overrun;
static void handler(int signal, siginfo_t *info, void *context) { count++; last_code = info->si_code; last_value = info->si_value.sival_int; if (info->si_overrun > last_overrun) last_overrun = info->si_overrun; }
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t rung = PTHREAD_COND_INITIALIZER;
static int by_thread;
static void notify(union sigval value) { pthread_mutex_lock(&lock); by_thread = value.sival_int; pthread_cond_signal(&rung); pthread_mutex_unlock(&lock); }

static long long now(clockid_t clock) { struct timespec time; clock_gettime(clock, &time); return time.tv_sec * 1000000000LL + time.tv_nsec; }
static void spin(long long ns) { for (long long end = now(CLOCK_THREAD_CPUTIME_ID) + ns; now(CLOCK_THREAD_CPUTIME_ID) < end;); }

int main(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    for (int signal = 1; signal < 32; signal++) if (signal != SIGKILL && signal != SIGSTOP && signal != SIGCHLD) sigaction(signal, &action, NULL);
    sigaction(SIGRTMIN, &action, NULL);
    struct itimerval value = {{0, 5000}, {0, 5000}}, old;
    // Interval timers.
    CALL(setitimer(ITIMER_REAL, &value, &old)); SHOW(old.it_value.tv_sec); while (count < 3) pause(); SHOW(last_code == SI_KERNEL); CALL(getitimer(ITIMER_REAL, &old)); SHOW(old.it_interval.tv_usec); CHECK(old.it_value.tv_sec == 0 && old.it_value.tv_usec <= 5000);
    value = (struct itimerval){0}; CALL(setitimer(ITIMER_REAL, &value, NULL)); CALL(setitimer(9, &value, NULL)); value.it_value.tv_usec = 1000000; CALL(setitimer(ITIMER_REAL, &value, NULL)); value.it_value = (struct timeval){-1, 0}; CALL(setitimer(ITIMER_REAL, &value, NULL)); CALL(getitimer(9, &old));
    SHOW(alarm(100)); SHOW(alarm(0)); SHOW(alarm(0));
    count = 0; value = (struct itimerval){{0, 0}, {0, 20000}}; setitimer(ITIMER_VIRTUAL, &value, NULL); while (!count); SHOW(count); count = 0; setitimer(ITIMER_PROF, &value, NULL); while (!count); SHOW(count);
    // POSIX timers.
    timer_t timer, second; struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 77}; struct itimerspec spec = {{0, 0}, {0, 3000000}}, left;
    CALL(timer_create(CLOCK_MONOTONIC, &event, &timer)); count = 0; CALL(timer_settime(timer, 0, &spec, NULL)); while (!count) usleep(1000); SHOW(last_code == SI_TIMER); SHOW(last_value); CALL(timer_gettime(timer, &left)); SHOW(left.it_value.tv_nsec); SHOW(timer_getoverrun(timer));
    // Expirations that nobody takes are counted.
    sigset_t block, former; sigemptyset(&block); sigaddset(&block, SIGRTMIN); sigprocmask(SIG_BLOCK, &block, &former); spec = (struct itimerspec){{0, 2000000}, {0, 2000000}}; timer_settime(timer, 0, &spec, NULL); struct timespec pause_ = {0, 50000000}; nanosleep(&pause_, NULL); count = 0; sigprocmask(SIG_SETMASK, &former, NULL); CHECK(count >= 1 && last_overrun >= 10); spec = (struct itimerspec){0}; CALL(timer_settime(timer, 0, &spec, &left)); SHOW(left.it_interval.tv_nsec);
    spec.it_value.tv_nsec = 1000000000; CALL(timer_settime(timer, 0, &spec, NULL)); CALL(timer_settime(timer, 0, NULL, NULL)); CALL(timer_delete(timer)); CALL(syscall(SYS_timer_delete, 77)); CALL(syscall(SYS_timer_gettime, 77, &left));
    // An absolute time that has passed; none told; a thread told.
    event = (struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1}; timer_create(CLOCK_REALTIME, &event, &timer); count = 0; spec = (struct itimerspec){{0, 0}, {1, 0}}; CALL(timer_settime(timer, TIMER_ABSTIME, &spec, NULL)); while (!count) usleep(1000); SHOW(count);
    event.sigev_notify = SIGEV_NONE; CALL(timer_create(CLOCK_MONOTONIC, &event, &second)); spec.it_value = (struct timespec){1000, 0}; timer_settime(second, 0, &spec, NULL); timer_gettime(second, &left); CHECK(left.it_value.tv_sec == 999);
    event = (struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = notify, .sigev_value.sival_int = 5}; CALL(timer_create(CLOCK_MONOTONIC, &event, &timer)); spec.it_value = (struct timespec){0, 1000000}; timer_settime(timer, 0, &spec, NULL); pthread_mutex_lock(&lock); while (!by_thread) pthread_cond_wait(&rung, &lock); pthread_mutex_unlock(&lock); SHOW(by_thread);
    event = (struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 99}; CALL(timer_create(CLOCK_MONOTONIC, &event, &second)); event.sigev_signo = SIGUSR1; CALL(timer_create(77, &event, &second)); event.sigev_notify = 9; CALL(timer_create(CLOCK_MONOTONIC, &event, &second));
    event = (struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2}; CALL(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &second)); spec.it_value = (struct timespec){0, 20000000}; count = 0; timer_settime(second, 0, &spec, NULL); while (!count) spin(1000000); SHOW(count);
    // Sleeping.
    struct timespec request = {0, 5000000}, rest, bad = {0, 1000000000}, negative = {-1, 0}; long long start = now(CLOCK_MONOTONIC); CALL(nanosleep(&request, NULL)); CHECK(now(CLOCK_MONOTONIC) - start >= 5000000); CALL(nanosleep(&bad, NULL)); CALL(nanosleep(&negative, NULL)); CALL(syscall(SYS_nanosleep, 8, NULL));
    SHOW(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &request, NULL) == EINVAL); SHOW(clock_nanosleep(77, 0, &request, NULL) == EINVAL); SHOW(clock_nanosleep(CLOCK_MONOTONIC_COARSE, 0, &request, NULL) == EOPNOTSUPP); struct timespec passed = {1, 0}; SHOW(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &passed, NULL));
    value = (struct itimerval){{0, 0}, {0, 10000}}; setitimer(ITIMER_REAL, &value, NULL); request = (struct timespec){5, 0}; CALL(nanosleep(&request, &rest)); CHECK(rest.tv_sec == 4 && rest.tv_nsec > 0);
    return 0;
}
