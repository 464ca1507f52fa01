// Wake-ups of a processor that is just about to idle, while barriers (membarrier, which processors take as
// non-maskable interrupts under Hermix) come at every moment: none is lost.
// @link -pthread
// @cpus 1 2
// @timeout 180
#include "test.h"
// musl has no linux/ headers of its own.
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define FUTEX_PRIVATE_FLAG 128
#define MEMBARRIER_CMD_PRIVATE_EXPEDITED 8
#define MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED 16
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
enum { ROUNDS = 8000 };
static atomic_int word, seen;
static void futex(int operation, int value) { syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0); }
static void *sleeper(void *unused) {
    for (int known = 0; known < ROUNDS;) {
        futex(FUTEX_WAIT, known);
        known = word;
        seen = known;
    }
    return unused;
}
static double seconds(void) { struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now); return now.tv_sec + now.tv_nsec / 1e9; }
static void barrier(void) { syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0); }
int main(void) {
    CALL(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0));
    pthread_t id; pthread_create(&id, NULL, sleeper, NULL);
    int lost = 0, cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int round = 1; round <= ROUNDS; round++) {
        for (volatile int delay = round % 97; delay > 0; delay--);
        word = round;
        futex(FUTEX_WAKE, 1);
        for (int n = round % 3; n >= 0; n--) barrier();
        double limit = seconds() + 10;
        for (int spins = 0; seen != round; spins++) {
            if (cpus == 1) sched_yield();
            if (spins % 4096 == 4095 && seconds() > limit) { lost++; break; }
        }
        if (lost) break;
    }
    SHOW(lost);
    if (lost) _exit(1);
    pthread_join(id, NULL);
    return 0;
}
