// The program that `hx-bench syscall` runs, under Hermix and in a Linux guest: what a few system calls
// cost beside a function call, in ticks of the time stamp counter. It is built with gcc -O2 -static.
//
// usage: program ROUNDS
// Each line: NAME, the least and the quartiles of ticks for CALLS calls in a row, over ROUNDS rounds.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

enum { CALLS = 1000, MOST_ROUNDS = 1000 };

// The number is in an instruction of its own, as in a C library: Hermix rewrites it.
#define KNOWN(number, a, b, c)                                                                      \
    ({                                                                                              \
        long result;                                                                                \
        __asm__ volatile("mov %1, %%eax\n\tsyscall"                                                 \
                         : "=&a"(result)                                                            \
                         : "i"(number), "D"(a), "S"(b), "d"(c)                                      \
                         : "rcx", "r11", "memory");                                                 \
        result;                                                                                     \
    })

// The bytes of `syscall; ret` in memory that the program makes executable itself: there is no plan for
// them, so that they enter by LSTAR.
static long (*trap)(long a, long b, long c, long number);

__attribute__((noinline)) static long function(void) {
    __asm__ volatile("");
    return 1;
}

static int by_value(const void *a, const void *b) {
    unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;
    return (x > y) - (x < y);
}

static unsigned long times[MOST_ROUNDS];

#define MEASURE(name, call)                                                                         \
    do {                                                                                            \
        for (int round = 0; round < rounds; round++) {                                              \
            unsigned long start = __rdtsc();                                                        \
            for (int i = 0; i < CALLS; i++) {                                                       \
                call;                                                                               \
                __asm__ volatile("");                                                               \
            }                                                                                       \
            times[round] = __rdtsc() - start;                                                       \
        }                                                                                           \
        qsort(times, rounds, sizeof times[0], by_value);                                            \
        printf("%s %lu %lu %lu %lu\n", name, times[0], times[rounds / 4], times[rounds / 2],        \
               times[rounds * 3 / 4]);                                                              \
    } while (0)

#include <sys/mman.h>
#include <string.h>

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 100;
    if (rounds < 1 || rounds > MOST_ROUNDS) return 2;
    // mov %rcx, %rax; syscall; ret
    static const unsigned char code[] = {0x48, 0x89, 0xc8, 0x0f, 0x05, 0xc3};
    void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return 3;
    memcpy(page, code, sizeof code);
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC)) return 4;
    trap = (long (*)(long, long, long, long))page;
    int zero = open("/dev/zero", O_RDONLY);
    char byte;
    MEASURE("loop", );
    MEASURE("function", function());
    MEASURE("getppid", KNOWN(SYS_getppid, 0, 0, 0));
    MEASURE("getppid-trap", trap(0, 0, 0, SYS_getppid));
    MEASURE("getpgrp", KNOWN(SYS_getpgrp, 0, 0, 0));
    MEASURE("getpgrp-trap", trap(0, 0, 0, SYS_getpgrp));
    MEASURE("read0", KNOWN(SYS_read, zero, &byte, 0));
    MEASURE("read0-trap", trap(zero, (long)&byte, 0, SYS_read));
    return 0;
}
