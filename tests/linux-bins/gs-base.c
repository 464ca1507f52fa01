// The base of GS: arch_prctl(ARCH_SET_GS), kept over system calls and for each thread.
#include "test.h"
#include <pthread.h>
enum { ARCH_SET_GS = 0x1001, ARCH_GET_GS = 0x1004 };
static long area[4] = {11, 22}, other[4] = {33, 44};
static long at_gs(void) { long value; __asm__ volatile("mov %%gs:8, %0" : "=r"(value)); return value; }
static void *thread(void *unused) {
    unsigned long gs = 1;
    CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); SHOW(gs);
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, other)); SHOW(at_gs());
    return NULL;
}
int main(void) {
    unsigned long gs = 1;
    CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); SHOW(gs);
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, area)); SHOW(at_gs());
    getppid(); usleep(1000); SHOW(at_gs());
    CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); CHECK(gs == (unsigned long)area);
    pthread_t id; pthread_create(&id, NULL, thread, NULL); pthread_join(id, NULL);
    SHOW(at_gs());
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, 1UL << 63)); CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, 1));
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, 0)); CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); SHOW(gs);
    return 0;
}
