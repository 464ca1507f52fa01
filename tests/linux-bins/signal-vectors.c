// What handlers do to the vector state that their return loads: changed registers are seen, no state at all
// is the initial one, and what the processor refuses is a fault of the program's.
#include "test.h"
#include <stddef.h>
#include <sys/wait.h>
#include <ucontext.h>
enum { MXCSR = 24, XMM0 = 160, XMM5 = XMM0 + 5 * 16, SOFTWARE = 464, HEADER = 512 };
static int what;
static unsigned char area[8192] __attribute__((aligned(64)));
static void handler(int number, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    unsigned char *state = (void *)uc->uc_mcontext.fpregs;
    uint32_t sw[2]; memcpy(sw, state + SOFTWARE, sizeof sw);
    switch (what) {
    case 0: break;
    case 1: memset(state + XMM5, 0x5a, 16); break;
    case 2: uc->uc_mcontext.fpregs = NULL; break;
    case 3: state[HEADER + 16] = 1; break;                        // reserved
    case 4: memset(state + HEADER, 0xff, 8); break;               // components that there are not
    case 5: state[MXCSR + 2] = 1; break;                          // reserved
    case 6: uc->uc_mcontext.fpregs = (void *)8; break;            // not mapped
    case 7: memset(state + SOFTWARE, 0, 48); memset(state + XMM5, 0x77, 16); break; // the legacy part only
    case 8: memcpy(area, state, sw[1]); memset(area + XMM5, 0x33, 16); uc->uc_mcontext.fpregs = (void *)area; break;
    case 9: *(volatile uint64_t *)(state + HEADER) &= ~2; break;  // SSE registers in their initial state
    }
    // The registers themselves do not count.
    __asm__ volatile("pcmpeqd %%xmm5, %%xmm5" ::: "xmm5");
}
static void once(int which) {
    uint64_t before[2] = {0x1122334455667788, 0x99aabbccddeeff00}, after[2];
    what = which;
    long pid = getpid(), call = SYS_kill;
    __asm__ volatile("movdqu %1, %%xmm5\n\tsyscall\n\tmovdqu %%xmm5, %2"
                     : "+a"(call) : "m"(before), "m"(after), "D"(pid), "S"((long)SIGUSR1) : "rcx", "r11", "xmm5", "memory");
    printf("%d: %ld %016llx %016llx\n", which, call, (unsigned long long)after[0], (unsigned long long)after[1]);
    fflush(stdout);
}
int main(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    for (int which = 0; which < 10; which++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) { once(which); _exit(which); }
        int status; waitpid(child, &status, 0);
        printf("%d ended: exit %d signal %d\n", which, WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
    return 0;
}
