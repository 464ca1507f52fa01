// Mappings that grow down, and the stack, which is one: it grows on demand up to its limit, far
// beyond what was there at the start.
#include "test.h"
#include <sys/resource.h>
static int deep(int n) {
    volatile char frame[16384];
    frame[0] = n;
    return n == 0 ? 0 : deep(n - 1) + (frame[0] == (char)n);
}
int main(void) {
    catch_faults();
    stack_t alternate = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&alternate, NULL);
    struct sigaction action = {.sa_sigaction = fault_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &action, NULL);
    SHOW(deep(400));
    struct rlimit limit;
    CALL(getrlimit(RLIMIT_STACK, &limit));
    SHOW(limit.rlim_cur);
    char *area = mmap(NULL, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(area, 64 * PAGE);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED;
    char *p = mmap(area + 60 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(p == area + 60 * PAGE);
    p[0] = 1;
    FAULT(p[-1] = 1);
    FAULT(p[-PAGE - 1] = 1);
    SHOW(p[-1]);
    limit.rlim_cur = 64 * 1024;
    CALL(setrlimit(RLIMIT_STACK, &limit));
    FAULT(deep(1000));
    // Once more: the alternate stack is free again.
    FAULT(deep(1000));
    puts("end");
    return 0;
}
