// Signals from a timer while a program does nothing but make system calls: none is lost or put off, and
// what a call must preserve is preserved.
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

enum { SIGNALS = 150, DIRECTION_FLAG = 0x400 };

static volatile int count;

static void on_alarm(int signal) {
    (void)signal;
    count++;
}

int main(void) {
    signal(SIGALRM, on_alarm);
    struct itimerval period = {{0, 2000}, {0, 2000}};
    setitimer(ITIMER_REAL, &period, 0);
    long self = getpid(), group = getpgrp(), wrong = 0;
    // Calls that a kernel can answer without entering it in earnest, and nothing else.
    while (count < SIGNALS) {
        long result;
        __asm__ volatile("mov %1, %%eax\n\tsyscall"
                         : "=&a"(result)
                         : "i"(SYS_getpid)
                         : "rcx", "r11", "memory");
        wrong += result != self;
    }
    printf("getpid: %ld wrong\n", wrong);
    while (count < 2 * SIGNALS) {
        long result;
        unsigned long flags;
        __asm__ volatile("std\n\tmov %2, %%eax\n\tsyscall\n\tpushfq\n\tpop %1\n\tcld"
                         : "=&a"(result), "=&r"(flags)
                         : "i"(SYS_getpgrp)
                         : "rcx", "r11", "memory");
        wrong += result != group || !(flags & DIRECTION_FLAG);
    }
    printf("getpgrp: %ld wrong\n", wrong);
    return 0;
}
