// FUTEX_WAIT_REQUEUE_PI and FUTEX_CMP_REQUEUE_PI: a condition whose waiters own a lock when they go on.
// @link -pthread
// @cpus 1 2
#include "test.h"
// musl has no linux/ headers of its own.
#define FUTEX_WAKE 1
#define FUTEX_CMP_REQUEUE 4
#define FUTEX_LOCK_PI 6
#define FUTEX_UNLOCK_PI 7
#define FUTEX_WAIT_REQUEUE_PI 11
#define FUTEX_CMP_REQUEUE_PI 12
#define FUTEX_PRIVATE_FLAG 128
#define FUTEX_CLOCK_REALTIME 256
#define FUTEX_WAITERS 0x80000000u
#define FUTEX_TID_MASK 0x3fffffffu
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>

enum { THREADS = 4 };

static uint32_t condition, lock, other_lock;
static int owners;

static long futex(uint32_t *at, int operation, long value, void *time, uint32_t *at2, long value3) {
    return syscall(SYS_futex, at, operation | FUTEX_PRIVATE_FLAG, value, time, at2, value3);
}

static long requeue(long wake, long count, uint32_t *to, long expected) {
    return futex(&condition, FUTEX_CMP_REQUEUE_PI, wake, (void *)count, to, expected);
}

static void say(const char *what, long result) {
    if (result < 0) printf("%s: %s\n", what, errno_name(errno));
    else printf("%s: %ld\n", what, result);
}

static void own_and_release(void) {
    if ((lock & FUTEX_TID_MASK) == (uint32_t)syscall(SYS_gettid)) owners++;
    if (futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)) puts("unlock failed");
}

static void *wait_and_own(void *unused) {
    if (futex(&condition, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &lock, 0)) return "was not woken";
    own_and_release();
    return unused;
}

static void *wait_a_moment(void *unused) {
    (void)unused;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 30 * 1000 * 1000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    long result = futex(&condition, FUTEX_WAIT_REQUEUE_PI, 0, &until, &lock, 0);
    return result == -1 && errno == ETIMEDOUT ? "timed out" : "did not time out";
}

static void check_arguments(void) {
    struct timespec past = {.tv_nsec = 1};
    say("wait for a lock at the same place", futex(&condition, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &condition, 0));
    say("wait for another value", futex(&condition, FUTEX_WAIT_REQUEUE_PI, 1, NULL, &lock, 0));
    say("wait until the past", futex(&condition, FUTEX_WAIT_REQUEUE_PI, 0, &past, &lock, 0));
    say("wait until the real past",
        futex(&condition, FUTEX_WAIT_REQUEUE_PI | FUTEX_CLOCK_REALTIME, 0, &past, &lock, 0));
    say("wait for a lock between words",
        futex(&condition, FUTEX_WAIT_REQUEUE_PI, 0, NULL, (uint32_t *)((char *)&lock + 1), 0));
    say("wait for a bad condition", futex((uint32_t *)64, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &lock, 0));
    say("requeue none", requeue(1, INT_MAX, &lock, 0));
    say("requeue and wake none", requeue(0, 1, &lock, 0));
    say("requeue and wake two", requeue(2, 1, &lock, 0));
    say("requeue less than none", requeue(1, -1, &lock, 0));
    say("requeue to the same place", requeue(1, 1, &condition, 0));
    say("requeue at another value", requeue(1, 1, &lock, 5));
}

int main(void) {
    pthread_t threads[THREADS];
    void *answer;
    check_arguments();

    say("lock", futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, wait_and_own, NULL);
    long result;
    while ((result = futex(&condition, FUTEX_WAKE, 1, NULL, NULL, 0)) == 0) sched_yield();
    say("wake who waits for a lock", result);
    while ((result = futex(&condition, FUTEX_CMP_REQUEUE, 1, (void *)1, &other_lock, 0)) == 0) sched_yield();
    say("requeue who waits for a lock", result);
    say("requeue to another lock", requeue(1, 1, &other_lock, 0));
    long moved = 0;
    while (moved < THREADS) {
        result = requeue(1, INT_MAX, &lock, 0);
        if (result < 0) break;
        moved += result;
        sched_yield();
    }
    printf("%ld moved, %d owners\n", moved, owners);
    printf("the lock has waiters: %d\n", (lock & FUTEX_WAITERS) != 0);
    say("unlock", futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], &answer);
        if (answer) puts(answer);
    }
    printf("%d owners, lock %x\n", owners, lock);

    pthread_create(&threads[0], NULL, wait_and_own, NULL);
    while ((result = requeue(1, 0, &lock, 0)) == 0) sched_yield();
    say("requeue to a free lock", result);
    pthread_join(threads[0], &answer);
    printf("%d owners, lock %x\n", owners, lock);

    say("lock", futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    pthread_create(&threads[0], NULL, wait_a_moment, NULL);
    requeue(1, 1, &lock, 0);
    pthread_join(threads[0], &answer);
    puts(answer);
    say("unlock", futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    printf("lock %x\n", lock);
    return 0;
}
