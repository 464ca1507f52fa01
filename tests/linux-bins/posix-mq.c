// POSIX message queues.
#include "test.h"
#include <mqueue.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

static char name[32];
static volatile int notified, notified_value, notified_code;
static void on_message(int signal, siginfo_t *info, void *context) {
    notified = signal; notified_value = info->si_value.sival_int; notified_code = info->si_code;
}
static void on_alarm(int signal) {}
// The alarm goes off again and again: the first may come before the call has begun to wait.
#define INTERRUPTED(call) do { ualarm(5000, 5000); CALL(call); ualarm(0, 0); } while (0)
static sem_t told;
static void on_thread(union sigval value) { notified_value = value.sival_int; sem_post(&told); }
static void shows_cookie(int netlink) {
    char cookie[64] = ""; long got = recv(netlink, cookie, sizeof cookie, MSG_DONTWAIT); SHOW(got); printf("%s %d\n", cookie, cookie[31]);
}
static struct timespec after(long ms) {
    struct timespec at; clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += ms * 1000000; at.tv_sec += at.tv_nsec / 1000000000; at.tv_nsec %= 1000000000;
    return at;
}
static void receives(mqd_t q) {
    char text[64]; unsigned priority;
    CALL(mq_receive(q, text, sizeof text, &priority)); printf("%u %s\n", priority, text);
    struct timespec at = after(5000); CALL(mq_timedreceive(q, text, sizeof text, &priority, &at)); printf("%u %s\n", priority, text);
}

int main(void) {
    sprintf(name, "/hermix-%d", getpid());
    struct mq_attr attr = {.mq_maxmsg = 3, .mq_msgsize = 64}, got, bad = {.mq_maxmsg = 0, .mq_msgsize = 64};
    char text[64]; unsigned priority;
    CALL(mq_open(name, O_RDWR)); CALL(mq_open(name, O_RDWR | O_CREAT, 0600, &bad)); CALL(mq_open("/a/b", O_RDWR | O_CREAT, 0600, &attr)); CALL(mq_open("/", O_RDWR | O_CREAT, 0600, &attr));
    mqd_t q = DONE(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr)); CALL(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr));
    CALL(mq_getattr(q, &got)); SHOW(got.mq_maxmsg); SHOW(got.mq_msgsize); SHOW(got.mq_curmsgs); SHOW(got.mq_flags); CALL(fcntl(q, F_GETFD));
    CALL(mq_send(q, "low", 4, 1)); CALL(mq_send(q, "high", 5, 9)); CALL(mq_send(q, "low too", 8, 1)); mq_getattr(q, &got); SHOW(got.mq_curmsgs);
    struct timespec at = after(5), wrong = {0, -1}; CALL(mq_timedsend(q, "full", 5, 0, &at)); CALL(mq_timedsend(q, "full", 5, 0, &wrong)); CALL(mq_send(q, "x", 1, 32768)); CALL(mq_send(q, text, 65, 0));
    struct pollfd pf = {q, POLLIN | POLLOUT, 0}; CALL(poll(&pf, 1, 0)); SHOW(pf.revents);
    got.mq_flags = O_NONBLOCK; CALL(mq_setattr(q, &got, &attr)); SHOW(attr.mq_flags); CALL(mq_send(q, "full", 5, 0));
    for (int i = 0; i < 3; i++) { CALL(mq_receive(q, text, sizeof text, &priority)); printf("%u %s\n", priority, text); }
    CALL(mq_receive(q, text, sizeof text, NULL)); CALL(mq_receive(q, text, 63, NULL)); CALL(poll(&pf, 1, 0)); SHOW(pf.revents);
    got.mq_flags = 0; CALL(mq_setattr(q, &got, NULL)); at = after(5); CALL(mq_timedreceive(q, text, sizeof text, NULL, &at));
    struct sigaction action = {.sa_handler = on_alarm}; sigaction(SIGALRM, &action, NULL); INTERRUPTED(mq_receive(q, text, sizeof text, NULL));
    // Between processes.
    if (fork() == 0) { receives(q); fflush(stdout); _exit(0); }
    mq_send(q, "to the child", 13, 5); usleep(3000); mq_send(q, "again", 6, 2); int status; wait(&status); SHOW(status);
    // Notification.
    struct sigaction info = {.sa_sigaction = on_message, .sa_flags = SA_SIGINFO}; sigaction(SIGUSR1, &info, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77};
    CALL(mq_notify(q, &event)); if (fork() == 0) { CALL(mq_notify(q, &event)); CALL(mq_notify(q, NULL)); fflush(stdout); _exit(0); } wait(&status);
    CALL(mq_send(q, "news", 5, 0)); printf("%d %d %d\n", notified, notified_value, notified_code); notified = 0; CALL(mq_send(q, "no news", 8, 0)); SHOW(notified);
    CALL(mq_notify(q, &event)); CALL(mq_send(q, "not empty", 10, 0)); SHOW(notified); CALL(mq_notify(q, NULL)); event.sigev_notify = 99; CALL(mq_notify(q, &event)); event.sigev_notify = SIGEV_NONE; CALL(mq_notify(q, &event)); CALL(mq_notify(0, &event));
    CALL(mq_notify(q, NULL));
    // By a thread of the C library's, which reads from a netlink socket.
    while (!mq_getattr(q, &got) && got.mq_curmsgs) mq_receive(q, text, sizeof text, NULL);
    sem_init(&told, 0, 0); struct sigevent thread = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_thread, .sigev_value.sival_int = 88};
    CALL(mq_notify(q, &thread)); CALL(mq_notify(q, &thread)); CALL(mq_send(q, "news", 5, 0)); sem_wait(&told); SHOW(notified_value);
    CALL(mq_notify(q, &event)); CALL(mq_notify(q, NULL)); mq_receive(q, text, sizeof text, NULL);
    // The same without the library.
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0), udp = socket(AF_INET, SOCK_DGRAM, 0), pipes[2]; pipe(pipes);
    char cookie[32] = "a cookie of thirty-two bytes"; struct sigevent raw = {.sigev_notify = SIGEV_THREAD, .sigev_signo = netlink, .sigev_value.sival_ptr = cookie};
    CALL(syscall(SYS_mq_notify, q, &raw)); mq_send(q, "x", 1, 0); shows_cookie(netlink); mq_receive(q, text, sizeof text, NULL);
    CALL(syscall(SYS_mq_notify, q, &raw)); CALL(syscall(SYS_mq_notify, q, NULL)); shows_cookie(netlink);
    mqd_t again = DONE(mq_open(name, O_RDWR)); CALL(syscall(SYS_mq_notify, q, &raw)); CALL(mq_close(again)); shows_cookie(netlink); CALL(mq_notify(q, &event)); CALL(mq_notify(q, NULL));
    raw.sigev_signo = udp; CALL(syscall(SYS_mq_notify, q, &raw)); raw.sigev_signo = pipes[0]; CALL(syscall(SYS_mq_notify, q, &raw)); raw.sigev_signo = 99; CALL(syscall(SYS_mq_notify, q, &raw));
    raw.sigev_value.sival_ptr = (void *)8; CALL(syscall(SYS_mq_notify, q, &raw)); struct sigevent zero = {.sigev_notify = SIGEV_SIGNAL}; CALL(mq_notify(q, &zero)); CALL(mq_send(q, "x", 1, 0)); zero.sigev_signo = 65; CALL(mq_notify(q, &zero));
    mq_send(q, "no news", 8, 0); mq_send(q, "not empty", 10, 0);
    // Access and names.
    mqd_t r = DONE(mq_open(name, O_RDONLY)), w = DONE(mq_open(name, O_WRONLY)); CALL(mq_send(r, "x", 1, 0)); CALL(mq_receive(w, text, sizeof text, NULL)); CALL(mq_receive(r, text, sizeof text, NULL));
    CALL(mq_unlink(name)); CALL(mq_unlink(name)); CALL(mq_open(name, O_RDWR)); CALL(mq_receive(q, text, sizeof text, NULL)); puts(text); CALL(mq_close(q)); CALL(mq_close(q)); CALL(mq_receive(0, text, sizeof text, NULL));
    return 0;
}
