// POSIX threads: creating and joining, mutexes, conditions, barriers, keys, cancellation, signals.
// @link -pthread
#include "test.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>

enum { MANY = 64, ROUNDS = 200 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long counter;
static __thread long own = 5;

static void *count_up(void *argument) {
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        counter++;
        pthread_mutex_unlock(&lock);
        own++;
    }
    return (void *)((long)argument + own);
}

static void *ping(void *argument) {
    long parity = (long)argument;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        while (counter % 2 != parity) pthread_cond_wait(&changed, &lock);
        counter++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static pthread_barrier_t barrier;
static void *meet(void *argument) {
    long serial = 0;
    for (int i = 0; i < 10; i++)
        serial += pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD;
    return (void *)serial;
}

static pthread_key_t key;
static int destroyed;
static void destroy(void *value) { __sync_fetch_and_add(&destroyed, (int)(long)value); }
static void *with_key(void *argument) { pthread_setspecific(key, argument); return NULL; }

static sem_t semaphore;
static int cleaned;
static void clean(void *argument) { cleaned++; }
static void *wait_for_ever(void *argument) {
    pthread_cleanup_push(clean, NULL);
    sem_post(&semaphore);
    if (argument) pause();
    else for (;;) pthread_testcancel();
    pthread_cleanup_pop(0);
    return NULL;
}

static volatile sig_atomic_t handled_by_other;
static pthread_t target;
static void handler(int signal) { handled_by_other = pthread_equal(pthread_self(), target) != 0; sem_post(&semaphore); }
static void *wait_signal(void *argument) {
    sem_post(&semaphore);
    while (!handled_by_other) usleep(1000);
    return NULL;
}

static void *lock_twice(void *argument) { return (void *)(long)pthread_mutex_lock(argument); }
static void *die_holding(void *argument) { pthread_mutex_lock(argument); return NULL; }
static void *end_process(void *argument) { exit((int)(long)argument); }

int main(void) {
    pthread_t threads[MANY];
    void *result;
    // Creation, thread-local storage, results.
    for (long i = 0; i < MANY; i++) pthread_create(&threads[i], NULL, count_up, (void *)i);
    long sum = 0;
    for (int i = 0; i < MANY; i++) { pthread_join(threads[i], &result); sum += (long)result; }
    SHOW(counter); SHOW(sum); SHOW(own);
    // One after the other, more than there could be at once.
    for (int i = 0; i < 500; i++) { pthread_create(threads, NULL, count_up, NULL); pthread_join(threads[0], NULL); }
    SHOW(counter);
    // Conditions.
    counter = 0;
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], NULL, ping, (void *)i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    SHOW(counter);
    struct timespec past = {0, 0};
    pthread_mutex_lock(&lock);
    SHOW(pthread_cond_timedwait(&changed, &lock, &past) == ETIMEDOUT);
    pthread_mutex_unlock(&lock);
    // Barriers.
    pthread_barrier_init(&barrier, NULL, 5);
    for (int i = 0; i < 5; i++) pthread_create(&threads[i], NULL, meet, NULL);
    sum = 0;
    for (int i = 0; i < 5; i++) { pthread_join(threads[i], &result); sum += (long)result; }
    SHOW(sum);
    // Keys.
    pthread_key_create(&key, destroy);
    for (long i = 1; i <= 4; i++) { pthread_create(threads, NULL, with_key, (void *)i); pthread_join(threads[0], NULL); }
    SHOW(destroyed);
    // Cancellation, in a call that blocks and in a loop.
    sem_init(&semaphore, 0, 0);
    for (long blocks = 0; blocks < 2; blocks++) {
        pthread_create(threads, NULL, wait_for_ever, (void *)blocks);
        sem_wait(&semaphore);
        if (blocks) usleep(20000);
        pthread_cancel(threads[0]);
        pthread_join(threads[0], &result);
        SHOW(result == PTHREAD_CANCELED); SHOW(cleaned);
    }
    // A signal for one thread only.
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGUSR1, &action, NULL);
    pthread_create(&target, NULL, wait_signal, NULL);
    sem_wait(&semaphore);
    pthread_kill(target, SIGUSR1);
    sem_wait(&semaphore);
    pthread_join(target, NULL);
    SHOW(handled_by_other);
    // Kinds of mutexes.
    pthread_mutexattr_t kind;
    pthread_mutex_t special;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&special, &kind);
    pthread_mutex_lock(&special);
    SHOW(pthread_mutex_lock(&special) == EDEADLK);
    SHOW(pthread_mutex_trylock(&special) == EBUSY);
    pthread_mutex_unlock(&special);
    SHOW(pthread_mutex_unlock(&special) == EPERM);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&special, &kind);
    pthread_create(threads, NULL, die_holding, &special);
    pthread_join(threads[0], NULL);
    SHOW(pthread_mutex_lock(&special) == EOWNERDEAD);
    SHOW(pthread_mutex_consistent(&special)); SHOW(pthread_mutex_unlock(&special));
    SHOW(pthread_mutex_lock(&special)); SHOW(pthread_mutex_unlock(&special));
    pthread_mutexattr_init(&kind);
    if (pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT) == 0) {
        pthread_mutex_init(&special, &kind);
        pthread_mutex_lock(&special);
        pthread_create(threads, NULL, lock_twice, &special);
        usleep(10000);
        pthread_mutex_unlock(&special);
        pthread_join(threads[0], &result);
        SHOW((long)result);
    }
    // Errors of clone.
    CALL(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0));
    CALL(syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0));
    CALL(syscall(SYS_clone3, NULL, 64));
    CALL(syscall(SYS_clone3, NULL, 8));
    CALL(syscall(SYS_set_robust_list, NULL, 7));
    // The end of the process while threads run.
    pthread_create(threads, NULL, wait_for_ever, (void *)1);
    pthread_create(threads, NULL, end_process, (void *)42);
    pause();
}
