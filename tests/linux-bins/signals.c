// Signal handlers: flags of sigaction, masks, nesting, queues, waiting.
#include "test.h"
#include <time.h>
#include <sys/time.h>
#include <ucontext.h>
static volatile int depth, deepest, order[16], count;
static void nested(int s) { if (++depth > deepest) deepest = depth; if (count < 16) order[count++] = s; if (s == SIGUSR1) raise(SIGUSR2); depth--; }
static void self(int s) { if (++depth > deepest) deepest = depth; if (++count < 3) raise(s); depth--; }
static volatile siginfo_t seen; static volatile int has_context;
static void info(int s, siginfo_t *i, void *c) { seen = *i; has_context = c && ((ucontext_t *)c)->uc_mcontext.gregs[REG_RSP] != 0; }
static void mask_in(int s) { sigset_t m; sigprocmask(SIG_BLOCK, NULL, &m); printf("in handler: blocked usr1 %d usr2 %d term %d\n", sigismember(&m, SIGUSR1), sigismember(&m, SIGUSR2), sigismember(&m, SIGTERM)); }
static void act(int s, void (*h)(int), int flags, int also) { struct sigaction a = {.sa_handler = h, .sa_flags = flags}; sigemptyset(&a.sa_mask); if (also) sigaddset(&a.sa_mask, also); sigaction(s, &a, NULL); }
static char alternate[65536];
static volatile int on_alternate;
static void where(int s) { char c; on_alternate = &c >= alternate && &c < alternate + sizeof alternate; stack_t st; sigaltstack(NULL, &st); printf("ss_flags in handler %d\n", st.ss_flags); }
static void edit(int s, siginfo_t *i, void *c) { ucontext_t *u = c; u->uc_mcontext.gregs[REG_RBX] = 99; u->uc_mcontext.gregs[REG_RIP] += 2; }
int main(void) {
    struct sigaction old; sigset_t set, empty, pending; sigemptyset(&empty);
    // Installing.
    CALL(sigaction(0, NULL, &old)); CALL(sigaction(65, NULL, &old)); CALL(sigaction(SIGKILL, NULL, &old)); struct sigaction a = {.sa_handler = SIG_IGN}; CALL(sigaction(SIGKILL, &a, NULL)); CALL(sigaction(SIGSTOP, &a, NULL)); CALL(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4)); CALL(syscall(SYS_rt_sigaction, SIGUSR1, 1, NULL, 8)); CALL(sigaction(SIGUSR1, NULL, &old)); CHECK(old.sa_handler == SIG_DFL);
    act(SIGUSR1, nested, SA_RESTART, SIGTERM); CALL(sigaction(SIGUSR1, NULL, &old)); CHECK(old.sa_handler == nested && (old.sa_flags & SA_RESTART) && sigismember(&old.sa_mask, SIGTERM) && !sigismember(&old.sa_mask, SIGUSR1)); CHECK(signal(SIGHUP, SIG_IGN) == SIG_DFL); CHECK(signal(SIGHUP, SIG_DFL) == SIG_IGN);
    // Nesting.
    act(SIGUSR2, nested, 0, 0); raise(SIGUSR1); printf("%d deep, %d %d\n", deepest, order[0], order[1]); count = deepest = 0; act(SIGUSR1, nested, 0, SIGUSR2); raise(SIGUSR1); printf("%d deep, %d %d\n", deepest, order[0], order[1]); deepest = count = 0; act(SIGUSR1, self, 0, 0); raise(SIGUSR1); SHOW(deepest); SHOW(count); deepest = count = 0; act(SIGUSR1, self, SA_NODEFER, 0); raise(SIGUSR1); SHOW(deepest); SHOW(count);
    act(SIGUSR1, mask_in, 0, SIGTERM); raise(SIGUSR1); act(SIGUSR1, mask_in, SA_NODEFER, SIGUSR2); raise(SIGUSR1); act(SIGUSR1, mask_in, SA_RESETHAND, 0); raise(SIGUSR1); sigaction(SIGUSR1, NULL, &old); CHECK(old.sa_handler == SIG_DFL);
    // Information.
    struct sigaction si = {.sa_sigaction = info, .sa_flags = SA_SIGINFO}; for (int s = 1; s < 65; s++) if (s != SIGKILL && s != SIGSTOP && s != 32 && s != 33) sigaction(s, &si, NULL);
    kill(getpid(), SIGUSR1); printf("%d code %d pid %d uid %d context %d\n", seen.si_signo, seen.si_code, seen.si_pid == getpid(), seen.si_uid, has_context); raise(SIGUSR2); printf("%d code %d\n", seen.si_signo, seen.si_code); union sigval v = {.sival_int = 1234}; CALL(sigqueue(getpid(), SIGRTMIN, v)); printf("%d code %d value %d\n", seen.si_signo - SIGRTMIN, seen.si_code, seen.si_value.sival_int); alarm(0); struct itimerval it = {{0, 0}, {0, 200000}}; setitimer(ITIMER_REAL, &it, NULL); pause(); printf("%d code %d\n", seen.si_signo, seen.si_code);
    // Blocking, pending, order of delivery, queues.
    sigfillset(&set); CALL(sigprocmask(SIG_BLOCK, &set, NULL)); raise(SIGUSR2); raise(SIGUSR2); raise(SIGUSR1); for (int i = 0; i < 3; i++) sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = i}); sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 9}); sigpending(&pending); printf("pending usr1 %d usr2 %d rt %d term %d\n", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGUSR2), sigismember(&pending, SIGRTMIN + 2), sigismember(&pending, SIGTERM));
    struct timespec zero = {0, 0}, bad = {0, -1}; siginfo_t got; for (int i = 0; i < 7; i++) { int s = sigtimedwait(&set, &got, &zero); printf("sigtimedwait: %s %d %d\n", s < 0 ? errno_name(errno) : s >= SIGRTMIN ? "rt" : "plain", s < 0 ? 0 : s >= SIGRTMIN ? s - SIGRTMIN : s, s >= SIGRTMIN ? got.si_value.sival_int : 0); } CALL(sigtimedwait(&set, &got, &bad)); struct timespec soon = {0, 2000000}; CALL(sigtimedwait(&set, &got, &soon)); raise(SIGTERM); int which; CALL(sigwait(&set, &which)); SHOW(which); CALL(syscall(SYS_rt_sigtimedwait, &set, NULL, &zero, 4));
    sigprocmask(SIG_SETMASK, NULL, &pending); SHOW(sigismember(&pending, SIGKILL)); SHOW(sigismember(&pending, SIGTERM)); CALL(sigprocmask(9, &set, NULL)); CALL(syscall(SYS_rt_sigprocmask, 0, &set, NULL, 4)); CALL(syscall(SYS_rt_sigprocmask, 0, 1, NULL, 8));
    act(SIGUSR1, nested, 0, 0); count = 0; raise(SIGUSR1); CALL(sigsuspend(&empty)); SHOW(count); sigprocmask(SIG_BLOCK, NULL, &pending); SHOW(sigismember(&pending, SIGUSR1)); sigprocmask(SIG_SETMASK, &empty, NULL);
    // Ignored signals are not kept; a handler set while one is pending.
    signal(SIGUSR2, SIG_IGN); sigfillset(&set); sigprocmask(SIG_BLOCK, &set, NULL); raise(SIGUSR2); sigpending(&pending); SHOW(sigismember(&pending, SIGUSR2)); act(SIGUSR2, nested, 0, 0); raise(SIGUSR2); signal(SIGUSR2, SIG_IGN); sigpending(&pending); SHOW(sigismember(&pending, SIGUSR2)); sigprocmask(SIG_SETMASK, &empty, NULL);
    // Errors of sending.
    CALL(kill(getpid(), 0)); CALL(kill(getpid(), 65)); CALL(kill(getpid(), -1)); CALL(kill(999999, 0)); CALL(syscall(SYS_tgkill, getpid(), 999999, 0)); CALL(syscall(SYS_tgkill, 999999, syscall(SYS_gettid), 0)); CALL(syscall(SYS_tgkill, -1, 1, 0)); CALL(syscall(SYS_tkill, 0, 0)); CALL(sigqueue(999999, 0, v)); siginfo_t forged = {.si_code = SI_USER}; CALL(syscall(SYS_rt_sigqueueinfo, 999999, SIGUSR1, &forged)); CALL(raise(0));
    // The alternate stack.
    stack_t st = {.ss_sp = alternate, .ss_size = sizeof alternate}, small = {.ss_sp = alternate, .ss_size = 100}, got_stack; CALL(sigaltstack(NULL, &got_stack)); SHOW(got_stack.ss_flags); CALL(sigaltstack(&small, NULL)); CALL(sigaltstack(&st, NULL)); act(SIGUSR1, where, SA_ONSTACK, 0); raise(SIGUSR1); SHOW(on_alternate); act(SIGUSR1, where, 0, 0); raise(SIGUSR1); SHOW(on_alternate); CALL(sigaltstack(NULL, &got_stack)); SHOW(got_stack.ss_flags); CHECK(got_stack.ss_sp == alternate); st.ss_flags = 77; CALL(sigaltstack(&st, NULL)); st.ss_flags = SS_DISABLE; CALL(sigaltstack(&st, NULL)); act(SIGUSR1, where, SA_ONSTACK, 0); raise(SIGUSR1); SHOW(on_alternate);
    // A handler that changes the interrupted context.
    struct sigaction ed = {.sa_sigaction = edit, .sa_flags = SA_SIGINFO}; sigaction(SIGILL, &ed, NULL); long rbx; __asm__ volatile("mov $1, %%rbx\nud2\nmov %%rbx, %0" : "=r"(rbx)::"rbx", "memory"); SHOW(rbx);
    return 0;
}
