// A property test of processes: what a family of them does, in an order that follows from a seed, comes
// out as on Linux. One process, the director, tells the others one by one what to do (fork, spawn, exec,
// map, protect, write, signal, stop, wait, end) and prints what they answer; what one of them wrote,
// mapped or blocked must be seen by those who share it and by nobody else, whatever happened between.
// Now and then all of them work at the same time on memory of their own.
//
// @variants gcc musl-static
// @cpus 1 2
// @case 1 1
// @case 2 2
// @case 3 3
// @case 4 4
// @case 5 5
// @case 6 6
// @timeout 120
#include "test.h"
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { WORKERS = 10, MAPS = 6, PAGES = 8, STEPS = 220, TABLE = 60, FILE_FD = 61, REGION = 1 << 20 };
#define ORDERS(w) (100 + 2 * (w))
#define ANSWERS(w) (200 + 2 * (w))
#define PLACE(m) ((char *)(0x100000000000L + (long)(m) * REGION))

enum op { NOP, FORK, SPAWN, EXEC, MAP, UNMAP, PROTECT, ADVISE, WRITE, LOOK, KILL, MASK, COUNT, WAIT, STOPPED, ALL, FILE_WRITE, TRUNCATE, END };
static const char *names[] = {"nop", "fork", "spawn", "exec", "map", "unmap", "protect", "advise", "write", "look", "kill", "mask", "count", "wait", "stopped", "all", "file", "truncate", "end"};
struct order { int op; long a, b, c; };
struct answer { long result, more; uint64_t hash; };

static struct table { pid_t pid[WORKERS + 1]; } *table;
static int me;
static volatile int counts[4];
static sigjmp_buf after_fault;
static volatile int fault_is_expected;

static const int signals[] = {SIGUSR1, SIGUSR2};
static void counted(int s) { counts[s == SIGUSR1 ? 0 : s == SIGUSR2 ? 1 : 2]++; }
static void faulted(int s, siginfo_t *i, void *c) { if (!fault_is_expected) _exit(99); siglongjmp(after_fault, s * 10 + i->si_code); }

static void handlers(void) {
    struct sigaction count = {.sa_handler = counted, .sa_flags = SA_RESTART}, fault = {.sa_sigaction = faulted, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGUSR1, &count, NULL), sigaction(SIGUSR2, &count, NULL), sigaction(SIGRTMIN, &count, NULL);
    sigaction(SIGSEGV, &fault, NULL), sigaction(SIGBUS, &fault, NULL);
}

static uint64_t look(int m, int page, int pages) {
    uint64_t hash = HASH_START;
    for (int i = page; i < page + pages; i++) {
        int why = sigsetjmp(after_fault, 1);
        fault_is_expected = 1;
        if (why == 0) { unsigned char block[64]; memcpy(block, PLACE(m) + i * PAGE, 64); hash = hash_bytes(hash, block, 64); }
        else hash = hash_bytes(hash, &why, sizeof why);
        fault_is_expected = 0;
    }
    return hash;
}

static long put(int m, int page, int value) {
    int why = sigsetjmp(after_fault, 1);
    fault_is_expected = 1;
    if (why == 0) for (int i = 0; i < 64; i++) (PLACE(m) + page * PAGE)[i] = value + i * me;
    fault_is_expected = 0;
    return why;
}

static pid_t spawn(int slot) {
    char text[10]; snprintf(text, sizeof text, "%d", slot); char *arguments[] = {"worker", "as", text, NULL}; pid_t pid = -1;
    int error = posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environ);
    return error ? -error : pid;
}

// How a child has ended, or been stopped, without its id.
static long status_of(int s) { return WIFEXITED(s) ? WEXITSTATUS(s) : WIFSIGNALED(s) ? 1000 + WTERMSIG(s) : WIFSTOPPED(s) ? 2000 + WSTOPSIG(s) : WIFCONTINUED(s) ? 3000 : 4000; }
static int slot_of(pid_t pid) { for (int i = 0; i <= WORKERS; i++) if (pid > 0 && table->pid[i] == pid) return i; return -1; }

static long all_at_once(uint64_t *hash) {
    char *own = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long sum = 0;
    for (int round = 0; round < 6; round++) {
        for (int i = round % 2; i < 16; i += 2) memset(own + i * PAGE, me * 16 + round, 100);
        pid_t child = fork();
        if (child == 0) {
            for (int i = 0; i < 16; i += 3) own[i * PAGE + round] = 1;
            _exit(hash_bytes(HASH_START, own, 16 * PAGE) & 127);
        }
        int status = 0; while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
        sum = sum * 3 + status_of(status);
    }
    *hash = hash_bytes(HASH_START, own, 16 * PAGE); munmap(own, 16 * PAGE);
    return sum;
}

static void work(void) {
    struct order o;
    handlers();
    while (read(ORDERS(me), &o, sizeof o) == sizeof o) {
        struct answer answer = {0}; sigset_t set; int status = 0; pid_t pid;
        errno = 0;
        switch (o.op) {
        case FORK:
            pid = fork();
            if (pid == 0) { me = o.a; counts[3]++; table->pid[me] = getpid(); continue; }
            table->pid[o.a] = pid; break;
        case SPAWN: pid = spawn(o.a); if (pid > 0) table->pid[o.a] = pid; else answer.result = pid; break;
        case EXEC: { char text[10]; snprintf(text, sizeof text, "%d", me); execl("/proc/self/exe", "worker", "again", text, NULL); answer.result = -errno; break; }
        case MAP: {
            int flags = MAP_FIXED | (o.b & 1 ? MAP_SHARED : MAP_PRIVATE) | (o.b & 2 ? 0 : MAP_ANONYMOUS), protection = o.b & 4 ? PROT_READ : PROT_READ | PROT_WRITE;
            answer.result = mmap(PLACE(o.a), PAGES * PAGE, protection, flags, o.b & 2 ? FILE_FD : -1, o.b & 2 ? o.c * PAGE : 0) == PLACE(o.a) ? 0 : -errno; break;
        }
        case UNMAP: answer.result = munmap(PLACE(o.a) + o.b * PAGE, o.c * PAGE) ? -errno : 0; break;
        case PROTECT: answer.result = mprotect(PLACE(o.a) + o.b % PAGES * PAGE, 2 * PAGE, o.c % 3 == 0 ? PROT_NONE : o.c % 3 == 1 ? PROT_READ : PROT_READ | PROT_WRITE) ? -errno : 0; break;
        case ADVISE: answer.result = madvise(PLACE(o.a) + o.b * PAGE, 2 * PAGE, o.c & 1 ? MADV_DONTNEED : o.c & 2 ? MADV_DONTFORK : MADV_DOFORK) ? -errno : 0; break;
        case WRITE: answer.result = put(o.a, o.b, o.c); break;
        case LOOK: answer.hash = look(o.a, 0, PAGES); break;
        case KILL: answer.result = (o.b == SIGRTMIN ? sigqueue(table->pid[o.a], o.b, (union sigval){.sival_int = 3}) : kill(table->pid[o.a], o.b)) ? -errno : 0; break;
        case MASK:
            sigemptyset(&set); for (int i = 0; i < 2; i++) sigaddset(&set, signals[i]); sigaddset(&set, SIGRTMIN);
            answer.result = sigprocmask(o.a ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL); break;
        case COUNT:
            answer.result = counts[0] * 1000000 + counts[1] * 10000 + counts[2] * 100 + counts[3]; sigpending(&set);
            answer.more = sigismember(&set, SIGUSR1) + 2 * sigismember(&set, SIGUSR2) + 4 * sigismember(&set, SIGRTMIN) + 10 * (slot_of(getppid()) + 1); break;
        case WAIT: {
            siginfo_t info; if (o.b) waitid(P_PID, table->pid[o.a], &info, WEXITED | WNOWAIT);
            pid = waitpid(o.a < 0 ? -1 : table->pid[o.a], &status, o.b ? 0 : WNOHANG); answer.result = pid > 0 ? status_of(status) : pid ? -errno : 0; answer.more = slot_of(pid); break;
        }
        case STOPPED: pid = waitpid(table->pid[o.a], &status, o.b ? WCONTINUED : WUNTRACED); answer.result = pid > 0 ? status_of(status) : -errno; break;
        case ALL: answer.result = all_at_once(&answer.hash); break;
        case FILE_WRITE: { char text[32]; int n = snprintf(text, sizeof text, "[%d:%ld]", me, o.b); lseek(FILE_FD, o.a, SEEK_SET); answer.result = write(FILE_FD, text, n); answer.more = lseek(FILE_FD, 0, SEEK_CUR); break; }
        case TRUNCATE: answer.result = ftruncate(FILE_FD, o.a * PAGE) ? -errno : 0; break;
        case END: if (o.a < 0) { signal(SIGSEGV, SIG_DFL); *(volatile char *)PLACE(MAPS + 1) = 1; } _exit(o.a);
        }
        write(ANSWERS(me) + 1, &answer, sizeof answer);
    }
    _exit(98);
}

// The director.
static uint64_t state;
static int pick(int below) { state = state * 6364136223846793005u + 1442695040888963407u; return (state >> 33) % below; }
static int alive[WORKERS], parent[WORKERS], step;

static void tell(int w, struct order o) { write(ORDERS(w) + 1, &o, sizeof o); }
static struct answer heard(int w) { struct answer a = {-1, -1, 0}; if (read(ANSWERS(w), &a, sizeof a) != sizeof a) puts("no answer"); return a; }
static struct answer ask(int w, int op, long a, long b, long c) {
    tell(w, (struct order){op, a, b, c});
    struct answer answer = heard(w);
    if (op != NOP) printf("%d: %d %s %ld %ld %ld: %ld %ld %016llx\n", step, w, names[op], a, b, c, answer.result, answer.more, (unsigned long long)answer.hash);
    return answer;
}

// The end of worker w has been brought about: its parent, or the director in its place, waits for it.
static void bury(int w) {
    if (parent[w] == WORKERS) {
        int status; pid_t pid = waitpid(table->pid[w], &status, 0);
        printf("%d: director waits for %d: %ld\n", step, w, pid > 0 ? status_of(status) : -errno);
    } else {
        ask(parent[w], WAIT, w, 1, 0);
    }
    // Its children are the director's now.
    for (int i = 0; i < WORKERS; i++) if (alive[i] && parent[i] == w) parent[i] = WORKERS;
    alive[w] = 0, table->pid[w] = 0;
}

static int somebody(void) { int w; do w = pick(WORKERS); while (!alive[w]); return w; }

static void direct(void) {
    int w = somebody(), other = somebody(), map = pick(MAPS), count = 0, free_slot = -1;
    for (int i = 0; i < WORKERS; i++) if (alive[i]) count++; else free_slot = i;
    switch (pick(24)) {
    case 0: case 1: case 2: if (free_slot >= 0) { ask(w, FORK, free_slot, 0, 0); alive[free_slot] = 1, parent[free_slot] = w; ask(free_slot, COUNT, 0, 0, 0); } break;
    case 3: if (free_slot >= 0 && ask(w, SPAWN, free_slot, 0, 0).result == 0) { alive[free_slot] = 1, parent[free_slot] = w; ask(free_slot, COUNT, 0, 0, 0); } break;
    case 4: ask(w, EXEC, 0, 0, 0); ask(w, COUNT, 0, 0, 0); break;
    case 5: case 6: case 7: ask(w, MAP, map, pick(8), pick(3)); break;
    case 8: ask(w, UNMAP, map, pick(6), 1 + pick(2)); break;
    case 9: ask(w, PROTECT, map, pick(6), pick(3)); break;
    case 10: ask(w, ADVISE, map, pick(6), pick(4)); break;
    case 11: case 12: case 13: case 14: ask(w, WRITE, map, pick(PAGES), pick(100)); for (int i = 0; i < WORKERS; i++) if (alive[i] && pick(2)) ask(i, LOOK, map, 0, 0); break;
    case 15: case 16: { int signal = (int[]){SIGUSR1, SIGUSR2, SIGRTMIN, 0}[pick(4)]; ask(w, KILL, other, signal, 0); ask(other, NOP, 0, 0, 0); ask(other, COUNT, 0, 0, 0); break; }
    case 17: ask(w, MASK, pick(2), 0, 0); ask(w, COUNT, 0, 0, 0); break;
    case 18: if (w != other && parent[other] != WORKERS && parent[other] != other) { ask(w, KILL, other, SIGSTOP, 0); ask(parent[other], STOPPED, other, 0, 0); ask(w, KILL, other, SIGCONT, 0); ask(parent[other], STOPPED, other, 1, 0); ask(other, NOP, 0, 0, 0); } break;
    case 19: if (count > 3) { tell(w, (struct order){END, pick(6) == 0 ? -1 : pick(100), 0, 0}); bury(w); } break;
    case 20: if (count > 3 && w != other) { ask(w, KILL, other, pick(2) ? SIGKILL : SIGTERM, 0); bury(other); } break;
    case 21: ask(w, WAIT, pick(2) ? -1 : other, 0, 0); break;
    case 22: if (pick(3) == 0) { ask(w, TRUNCATE, pick(12), 0, 0); break; } ask(w, FILE_WRITE, pick(10 * PAGE), step, 0); break;
    case 23:
        for (int i = 0; i < WORKERS; i++) if (alive[i]) tell(i, (struct order){ALL});
        for (int i = 0; i < WORKERS; i++) if (alive[i]) { struct answer a = heard(i); printf("%d: %d all: %ld %016llx\n", step, i, a.result, (unsigned long long)a.hash); }
        break;
    }
}

int main(int argc, char **argv) {
    if (argc == 3) {
        // A worker after exec: nothing is left but descriptors, ids and the mask.
        me = atoi(argv[2]); table = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, TABLE, 0);
        handlers();
        if (!strcmp(argv[1], "again")) { struct answer a = {5, 0, look(0, 0, PAGES)}; write(ANSWERS(me) + 1, &a, sizeof a); }
        else table->pid[me] = getpid();
        work();
    }
    state = argc > 1 ? atoi(argv[1]) : 1; for (int i = 0; i < 9; i++) pick(2);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    int fd = memfd_create("table", 0); ftruncate(fd, PAGE); dup2(fd, TABLE); table = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, TABLE, 0);
    fd = open("data", O_RDWR | O_CREAT | O_TRUNC, 0644); ftruncate(fd, 10 * PAGE); dup2(fd, FILE_FD);
    for (int w = 0; w < WORKERS; w++) {
        int p[2];
        pipe(p), dup2(p[0], ORDERS(w)), dup2(p[1], ORDERS(w) + 1), close(p[0]), close(p[1]);
        pipe(p), dup2(p[0], ANSWERS(w)), dup2(p[1], ANSWERS(w) + 1), close(p[0]), close(p[1]);
    }
    table->pid[WORKERS] = getpid();
    for (int w = 0; w < 2; w++) {
        pid_t pid = fork();
        if (pid == 0) { me = w; work(); }
        table->pid[w] = pid, alive[w] = 1, parent[w] = WORKERS;
        ask(w, NOP, 0, 0, 0);
    }
    for (step = 0; step < STEPS; step++) direct();
    for (int w = 0; w < WORKERS; w++) if (alive[w]) { ask(w, COUNT, 0, 0, 0); for (int m = 0; m < MAPS; m++) ask(w, LOOK, m, 0, 0); }
    // Children first, so that everybody is waited for by whom he belongs to.
    for (int again = 1; again;) {
        again = 0;
        for (int w = 0; w < WORKERS; w++) {
            int has_child = 0; for (int i = 0; i < WORKERS; i++) if (alive[i] && parent[i] == w) has_child = 1;
            if (alive[w] && !has_child) { tell(w, (struct order){END, w, 0, 0}); bury(w); again = 1; }
        }
    }
    CALL(waitpid(-1, NULL, 0)); manifest("data");
    return 0;
}
