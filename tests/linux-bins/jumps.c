// setjmp, longjmp, makecontext, swapcontext; out of signal handlers and from an alternate stack.
// @variants gcc gcc-static
#include "test.h"
#include <ucontext.h>
static jmp_buf here; static sigjmp_buf there; static ucontext_t main_context, other; static int steps;
static void deep(int n) { if (n == 0) longjmp(here, 7); deep(n - 1); }
static void handler(int s) { siglongjmp(there, s); }
static void coroutine(int a, int b) { printf("coroutine %d %d\n", a, b); for (int i = 0; i < 3; i++) { steps++; swapcontext(&other, &main_context); } }
int main(void) { volatile int k = 1; int r = setjmp(here); if (r == 0) { k = 2; deep(100); } SHOW(r); SHOW(k); signal(SIGUSR1, handler); for (volatile int i = 0; i < 3; i++) { if (sigsetjmp(there, 1) == 0) raise(SIGUSR1); sigset_t m; sigprocmask(SIG_BLOCK, NULL, &m); printf("%d blocked %d\n", i, sigismember(&m, SIGUSR1)); } if (sigsetjmp(there, 0) == 0) raise(SIGUSR1); sigset_t m; sigprocmask(SIG_BLOCK, NULL, &m); SHOW(sigismember(&m, SIGUSR1)); getcontext(&other); other.uc_stack.ss_sp = malloc(65536); other.uc_stack.ss_size = 65536; other.uc_link = &main_context; makecontext(&other, (void (*)(void))coroutine, 2, 3, 4); for (int i = 0; i < 3; i++) { swapcontext(&main_context, &other); SHOW(steps); } return 0; }
