// Ending by a signal: by its number, how the status looks outside, and what was written before.
// @variants gcc gcc-static
// @case kill-1 kill 1
// @case kill-2 kill 2
// @case kill-3 kill 3
// @case kill-4 kill 4
// @case kill-5 kill 5
// @case kill-6 kill 6
// @case kill-7 kill 7
// @case kill-8 kill 8
// @case kill-9 kill 9
// @case kill-10 kill 10
// @case kill-11 kill 11
// @case kill-12 kill 12
// @case kill-13 kill 13
// @case kill-14 kill 14
// @case kill-15 kill 15
// @case kill-16 kill 16
// @case kill-17 kill 17
// @case kill-18 kill 18
// @case kill-23 kill 23
// @case kill-24 kill 24
// @case kill-25 kill 25
// @case kill-26 kill 26
// @case kill-27 kill 27
// @case kill-28 kill 28
// @case kill-29 kill 29
// @case kill-30 kill 30
// @case kill-31 kill 31
// @case kill-34 kill 34
// @case kill-64 kill 64
// @case raise-15 raise 15
// @case tgkill-10 tgkill 10
// @case abort abort 0
// @case ignored-15 ignore 15
// @case blocked-15 block 15
// @case unblocked-15 unblock 15
#include "test.h"
int main(int argc, char **argv) {
    int number = atoi(argv[2]);
    printf("before %d\n", number);
    fprintf(stderr, "to stderr\n");
    sigset_t set;
    sigemptyset(&set);
    if (number) sigaddset(&set, number);
    if (!strcmp(argv[1], "kill")) kill(getpid(), number);
    if (!strcmp(argv[1], "raise")) raise(number);
    if (!strcmp(argv[1], "tgkill")) syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number);
    if (!strcmp(argv[1], "abort")) { signal(SIGABRT, SIG_IGN); abort(); }
    if (!strcmp(argv[1], "ignore")) { signal(number, SIG_IGN); raise(number); }
    if (!strcmp(argv[1], "block")) { sigprocmask(SIG_BLOCK, &set, NULL); kill(getpid(), number); }
    if (!strcmp(argv[1], "unblock")) {
        sigprocmask(SIG_BLOCK, &set, NULL);
        kill(getpid(), number);
        puts("still here");
        sigprocmask(SIG_UNBLOCK, &set, NULL);
    }
    puts("survived");
    return 3;
}
