// Locks with priority inheritance whose owner ends without a word: who waits inherits them.
#include "test.h"
#include <pthread.h>

enum { FUTEX_LOCK_PI = 6, FUTEX_UNLOCK_PI = 7, FUTEX_TRYLOCK_PI = 8, FUTEX_WAIT_REQUEUE_PI = 11, FUTEX_CMP_REQUEUE_PI = 12, FUTEX_PRIVATE_FLAG = 128 };
#define FUTEX_TID_MASK 0x3fffffffu
#define FUTEX_OWNER_DIED 0x40000000u
#define FUTEX_WAITERS 0x80000000u

static uint32_t word, condition;
static int tids[3];
static long results[3];
static uint32_t seen[3];

static long futex(uint32_t *at, int op, long val, void *timeout, uint32_t *second, uint32_t third) {
    return syscall(SYS_futex, at, op | FUTEX_PRIVATE_FLAG, val, timeout, second, third);
}

// Until the thread sleeps in the kernel.
static void until_asleep(int tid) {
    char path[64], text[512], state = 0;
    sprintf(path, "/proc/self/task/%d/stat", tid);
    while (state != 'S') {
        FILE *file = fopen(path, "r"); size_t len = fread(text, 1, sizeof text - 1, file); fclose(file); text[len] = 0;
        state = strrchr(text, ')')[2];
        sched_yield();
    }
}
static void until(int *at) { while (!__atomic_load_n(at, __ATOMIC_ACQUIRE)) sched_yield(); }

static void *waits(void *number) {
    long me = (long)number;
    __atomic_store_n(&tids[me], (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    results[me] = futex(&word, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
    seen[me] = __atomic_load_n(&word, __ATOMIC_ACQUIRE);
    if (results[me] == 0 && futex(&word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)) puts("not unlocked");
    return NULL;
}
static void *waits_for_condition(void *number) {
    long me = (long)number;
    __atomic_store_n(&tids[me], (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    results[me] = futex(&condition, FUTEX_WAIT_REQUEUE_PI, 0, NULL, &word, 0);
    seen[me] = __atomic_load_n(&word, __ATOMIC_ACQUIRE);
    if (results[me] == 0 && futex(&word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)) puts("not unlocked");
    return NULL;
}

// The owner: with `leaves`, it ends with this in the word.
static uint32_t leaves;
static void *(*waiter)(void *);
static void *owns(void *unused) {
    pthread_t heirs[2];
    word = syscall(SYS_gettid);
    for (long i = 0; i < 2; i++) {
        tids[i] = 0; pthread_create(&heirs[i], NULL, waiter, (void *)i); pthread_detach(heirs[i]);
        until(&tids[i]); until_asleep(tids[i]);
    }
    if (waiter == waits_for_condition) printf("requeued %ld\n", futex(&condition, FUTEX_CMP_REQUEUE_PI, 1, (void *)1L, &word, 0));
    printf("waiters noted %d\n", !!(word & FUTEX_WAITERS));
    if (leaves) __atomic_store_n(&word, leaves, __ATOMIC_RELEASE);
    return NULL;
}

static void *nothing(void *tid) { *(int *)tid = syscall(SYS_gettid); return NULL; }

int main(void) {
    uint32_t left[] = {0, FUTEX_OWNER_DIED};
    for (int i = 0; i < 4; i++) {
        leaves = left[i % 2]; waiter = i < 2 ? waits : waits_for_condition;
        results[0] = results[1] = -1; seen[0] = seen[1] = 0; condition = 0;
        pthread_t owner; pthread_create(&owner, NULL, owns, NULL); pthread_join(owner, NULL);
        // Both have had it and released it when the word is free.
        while (!__atomic_load_n(&seen[1], __ATOMIC_ACQUIRE) || __atomic_load_n(&word, __ATOMIC_ACQUIRE) & FUTEX_TID_MASK) sched_yield();
        for (int heir = 0; heir < 2; heir++) printf("%d: %ld own %d owner died %d\n", heir, results[heir], (seen[heir] & FUTEX_TID_MASK) == tids[heir], !!(seen[heir] & FUTEX_OWNER_DIED));
    }
    // Who comes too late is told.
    int dead; pthread_t thread; pthread_create(&thread, NULL, nothing, &dead); pthread_join(thread, NULL);
    word = dead; CALL(futex(&word, FUTEX_LOCK_PI, 0, NULL, NULL, 0)); CALL(futex(&word, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
    word = FUTEX_OWNER_DIED; CALL(futex(&word, FUTEX_LOCK_PI, 0, NULL, NULL, 0)); SHOW(!!(word & FUTEX_OWNER_DIED)); CALL(futex(&word, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    return 0;
}
