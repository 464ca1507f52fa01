// Where threads run: sched_setaffinity of oneself and of a running thread, getcpu by call, vDSO and
// restartable sequence; what is independent of how many processors there are.
// @link -pthread
// @cpus 1 2
#include "test.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>

static atomic_int stop, tid;
static atomic_int where;

static void *run(void *argument) {
    tid = syscall(SYS_gettid);
    while (!stop) where = sched_getcpu();
    return NULL;
}

static int is_at(int cpu) {
    unsigned by_call = -1, by_vdso = sched_getcpu();
    syscall(SYS_getcpu, &by_call, NULL, NULL);
    return by_call == (unsigned)cpu && by_vdso == (unsigned)cpu;
}

int main(void) {
    cpu_set_t all, one, found;
    CPU_ZERO(&all);
    printf("got: %s\n", sched_getaffinity(0, sizeof all, &all) == 0 ? "yes" : "no");
    int here = 1, told = 1, moved = 1;
    pthread_t thread;
    pthread_create(&thread, NULL, run, NULL);
    while (!tid) sched_yield();
    for (int round = 0; round < 10; round++) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &all)) continue;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            here &= sched_setaffinity(0, sizeof one, &one) == 0 && is_at(cpu);
            CPU_ZERO(&found);
            told &= sched_getaffinity(0, sizeof found, &found) == 0 && CPU_EQUAL(&found, &one);
            // The other one comes as well, although it never calls the kernel of its own will.
            moved &= sched_setaffinity(tid, sizeof one, &one) == 0;
            for (int i = 0; where != cpu && i < 10000; i++) usleep(100);
            moved &= where == cpu;
        }
    }
    stop = 1;
    pthread_join(thread, NULL);
    printf("here %d told %d moved %d\n", here, told, moved);
    CPU_ZERO(&one);
    printf("none: %s\n", sched_setaffinity(0, sizeof one, &one) ? strerror(errno) : "?");
    printf("all again: %d\n", sched_setaffinity(0, sizeof all, &all));
    printf("beyond: %s\n", sched_setaffinity(1 << 30, sizeof all, &all) ? strerror(errno) : "?");
    return 0;
}
