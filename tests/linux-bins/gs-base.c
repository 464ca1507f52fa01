// The base of GS: arch_prctl(ARCH_SET_GS) and wrgsbase, kept over system calls, faults, signals and
// switches and for each thread, inherited by fork, not by execve.
// @cpus 1 2
#include "test.h"
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <sys/wait.h>
enum { ARCH_SET_GS = 0x1001, ARCH_GET_GS = 0x1004 };
static long area[4] = {11, 22}, other[4] = {33, 44};
static long at_gs(void) { long value; __asm__ volatile("mov %%gs:8, %0" : "=r"(value)); return value; }
static void *thread(void *unused) {
    unsigned long gs = 1;
    CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); CHECK(gs == (unsigned long)area);
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, other)); SHOW(at_gs());
    return NULL;
}
// The instructions where Linux allows them.
static int has_fsgsbase(void) { return getauxval(AT_HWCAP2) >> 1 & 1; }
static void set_gs(unsigned long base) {
    if (has_fsgsbase()) __asm__ volatile("wrgsbase %0" ::"r"(base));
    else syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}
static unsigned long get_gs(void) {
    unsigned long base = 1;
    if (has_fsgsbase()) __asm__ volatile("rdgsbase %0" : "=r"(base));
    else syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
    return base;
}
static volatile int handled, wrong;
static void handler(int signal) {
    unsigned long gs = 0;
    syscall(SYS_arch_prctl, ARCH_GET_GS, &gs);
    wrong += gs != get_gs();
    handled++;
}
// Bases that nothing is mapped at, as well as one that is.
static void *busy(void *number) {
    static const unsigned long bases[] = {0, 1, 0x1234567, 0x7fffffffe000, 0x555500000000};
    unsigned long own = (long)number < 5 ? bases[(long)number] : (unsigned long)area + (long)number;
    long differs = 0;
    set_gs(own);
    for (int i = 0; i < 300; i++) {
        getppid(); differs += get_gs() != own;
        getpgrp(); differs += get_gs() != own;
        sched_yield(); differs += get_gs() != own;
        char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *page = 1; differs += get_gs() != own;
        munmap(page, PAGE); differs += get_gs() != own;
        if (i % 10 == 0) { usleep(10); differs += get_gs() != own; }
        if (i % 50 == 0) { raise(SIGUSR1); differs += get_gs() != own; }
    }
    return (void *)differs;
}
static void many(void) {
    signal(SIGUSR1, handler); signal(SIGALRM, handler);
    struct itimerval every = {{0, 2000}, {0, 2000}}, never = {0};
    setitimer(ITIMER_REAL, &every, NULL);
    pthread_t ids[8]; long differs = 0;
    for (long i = 0; i < 8; i++) pthread_create(&ids[i], NULL, busy, (void *)i);
    for (long i = 0; i < 8; i++) { void *result; pthread_join(ids[i], &result); differs += (long)result; }
    setitimer(ITIMER_REAL, &never, NULL);
    SHOW(differs); SHOW(wrong); CHECK(handled >= 8 * 6);
}
static void processes(char *self) {
    set_gs(0x4567);
    fflush(stdout);
    int status; pid_t child = fork();
    if (child == 0) {
        CHECK(get_gs() == 0x4567);
        set_gs(0x89ab); getppid(); CHECK(get_gs() == 0x89ab);
        fflush(stdout);
        execl(self, self, "executed", NULL);
        _exit(1);
    }
    waitpid(child, &status, 0); SHOW(status); CHECK(get_gs() == 0x4567);
}
int main(int argc, char **argv) {
    unsigned long gs = 1;
    if (argc > 1) { CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); SHOW(gs); return 0; }
    CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); SHOW(gs);
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, area)); SHOW(at_gs());
    getppid(); usleep(1000); SHOW(at_gs());
    CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); CHECK(gs == (unsigned long)area);
    pthread_t id; pthread_create(&id, NULL, thread, NULL); pthread_join(id, NULL);
    SHOW(at_gs());
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, 1UL << 63)); CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, 1));
    CALL(syscall(SYS_arch_prctl, ARCH_SET_GS, 0)); CALL(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs)); SHOW(gs);
    many();
    processes(argv[0]);
    return 0;
}
