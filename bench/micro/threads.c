// Threads: creation, mutexes, futexes.
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int turn;
static volatile long counter;

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

// Gives the processor away inside the lock, so that the other finds it taken.
static void *contend(void *arg) {
    for (long times = (long)arg; times > 0; times--) {
        pthread_mutex_lock(&mutex);
        counter++;
        sched_yield();
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void contended(long times) {
    pthread_t other;
    create(&other, contend, (void *)(times / 2));
    contend((void *)(times - times / 2));
    pthread_join(other, NULL);
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
    {"threads", "mutex contended", NANOSECONDS, nothing, contended, NULL, .counted = 200},
    {"threads", "futex ping-pong", NANOSECONDS, nothing, ping_pong, NULL, .counted = 200},
    {"threads", "condition ping-pong", NANOSECONDS, nothing, cond_ping_pong, NULL, .counted = 200},
    {0},
};
