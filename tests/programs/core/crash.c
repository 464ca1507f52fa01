// Crashes in crash_here(7) with two more threads, one waiting and one busy. With an argument, children
// crash instead, and what wait says of them is printed.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

char marker[8192] = "before";
char *on_heap;
volatile long spins;
static volatile int ready;
static int ends[2];

__attribute__((noinline)) void crash_here(int depth) {
    register double in_xmm __asm__("xmm7") = 1.5;
    __asm__ volatile("" ::"x"(in_xmm));
    *(volatile int *)0x1230 = depth;
    __asm__ volatile("" ::"x"(in_xmm));
}
__attribute__((noinline)) void middle(int depth) { crash_here(depth + 1); __asm__ volatile(""); }
__attribute__((noinline)) void *waiting_thread(void *unused) {
    char byte;
    __sync_fetch_and_add(&ready, 1);
    read(ends[0], &byte, 1);
    return unused;
}
__attribute__((noinline)) void *busy_thread(void *unused) {
    __sync_fetch_and_add(&ready, 1);
    for (;;) spins++;
    return unused;
}
static void child(const char *what, void (*prepare)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        prepare();
        abort();
    }
    siginfo_t info;
    waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
    int status;
    waitpid(pid, &status, 0);
    printf("%s: signal %d core %d dumped %d\n", what, WTERMSIG(status), !!WCOREDUMP(status), info.si_code == CLD_DUMPED);
}
static void nothing(void) {}
static void no_limit(void) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
}
static void not_dumpable(void) { prctl(PR_SET_DUMPABLE, 0); }
static void small_limit(void) {
    struct rlimit small = {8192, 8192};
    setrlimit(RLIMIT_CORE, &small);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        child("plain", nothing);
        child("no limit", no_limit);
        child("not dumpable", not_dumpable);
        child("small", small_limit);
        return 0;
    }
    pipe(ends);
    strcpy(marker, "written");
    on_heap = strdup("text on the heap");
    char *hidden = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(hidden, "HIDDEN-TEXT");
    madvise(hidden, 65536, MADV_DONTDUMP);
    pthread_t id;
    pthread_create(&id, NULL, waiting_thread, NULL);
    pthread_create(&id, NULL, busy_thread, NULL);
    while (ready < 2 || spins == 0) sched_yield();
    middle(6);
    return 0;
}
