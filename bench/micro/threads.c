// Threads: creation, mutexes, futexes.
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t start;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int turn;
static pthread_mutex_t ring[] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER,
                                 PTHREAD_MUTEX_INITIALIZER};

static void nothing(long arg) { (void)arg; }

static void *at_once(void *arg) { return arg; }

static void create(pthread_t *thread, void *(*body)(void *), void *arg) {
    errno = pthread_create(thread, NULL, body, arg);
    FAIL_IF(errno, "pthread_create");
}

static void create_and_join(long times) {
    while (times--) {
        pthread_t thread;
        create(&thread, at_once, NULL);
        pthread_join(thread, NULL);
    }
}

static void lock_and_unlock(long times) {
    while (times--) {
        pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
    }
}

// Holds one of three mutexes, takes the next and lets go of the former. Two threads that do so follow each
// other: what one wants next the other has, whatever the scheduler does, until that one has the next itself.
// So mutexes are found taken, and who lets go of one wakes the other. Both have one before the first goes on.
static void rotate(int held, long times) {
    while (times--) {
        int next = (held + 1) % 3;
        pthread_mutex_lock(&ring[next]);
        pthread_mutex_unlock(&ring[held]);
        held = next;
    }
    pthread_mutex_unlock(&ring[held]);
}

static void *rotate_second(void *arg) {
    pthread_mutex_lock(&ring[0]);
    pthread_barrier_wait(&start);
    rotate(0, (long)arg);
    return NULL;
}

static void contended(long times) {
    pthread_t other;
    errno = pthread_barrier_init(&start, NULL, 2);
    FAIL_IF(errno, "pthread_barrier_init");
    pthread_mutex_lock(&ring[1]);
    create(&other, rotate_second, (void *)(times / 2));
    pthread_barrier_wait(&start);
    rotate(1, times - times / 2);
    pthread_join(other, NULL);
    pthread_barrier_destroy(&start);
}

static void futex(int operation, int value) {
    syscall(SYS_futex, &turn, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

// Waits until it is this one's turn, and gives the other his.
static void play(int mine, long times) {
    while (times--) {
        while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != mine) futex(FUTEX_WAIT, !mine);
        __atomic_store_n(&turn, !mine, __ATOMIC_RELEASE);
        futex(FUTEX_WAKE, 1);
    }
}

static void *play_second(void *arg) {
    play(1, (long)arg);
    return NULL;
}

static void ping_pong(long times) {
    pthread_t other;
    turn = 0;
    create(&other, play_second, (void *)times);
    play(0, times);
    pthread_join(other, NULL);
}

static void play_by_cond(int mine, long times) {
    pthread_mutex_lock(&mutex);
    while (times--) {
        while (turn != mine) pthread_cond_wait(&cond, &mutex);
        turn = !mine;
        pthread_cond_signal(&cond);
    }
    pthread_mutex_unlock(&mutex);
}

static void *cond_second(void *arg) {
    play_by_cond(1, (long)arg);
    return NULL;
}

static void cond_ping_pong(long times) {
    pthread_t other;
    turn = 0;
    create(&other, cond_second, (void *)times);
    play_by_cond(0, times);
    pthread_join(other, NULL);
}

const struct op thread_ops[] = {
    {"threads", "create and join", NANOSECONDS, nothing, create_and_join, NULL, .counted = 50},
    {"threads", "mutex alone", NANOSECONDS, nothing, lock_and_unlock, NULL, .counted = 1000},
    {"threads", "mutex contended", NANOSECONDS, nothing, contended, NULL, .counted = 1000},
    {"threads", "futex ping-pong", NANOSECONDS, nothing, ping_pong, NULL, .counted = 200},
    {"threads", "condition ping-pong", NANOSECONDS, nothing, cond_ping_pong, NULL, .counted = 200},
    {0},
};
