// process_vm_readv and process_vm_writev: another process' memory, and who may not.
#include "test.h"
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>

static pid_t pid;
static char *shared, *read_only, *hidden, *gone;
static char mine[3 * 4096];

static ssize_t rd(struct iovec *l, unsigned long ln, struct iovec *r, unsigned long rn) { return process_vm_readv(pid, l, ln, r, rn, 0); }
static ssize_t wr(struct iovec *l, unsigned long ln, struct iovec *r, unsigned long rn) { return process_vm_writev(pid, l, ln, r, rn, 0); }
static struct iovec v(void *base, size_t len) { return (struct iovec){base, len}; }

int main(void) {
    int up[2], down[2]; char c;
    pipe(up), pipe(down);
    char *base = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    read_only = base + 2 * PAGE, hidden = base + 4 * PAGE, gone = base + 6 * PAGE;
    strcpy(base, "before the fork"); strcpy(read_only, "read only");
    memset(base + PAGE - 8, 'p', 16);
    mprotect(read_only, PAGE, PROT_READ), mprotect(hidden, PAGE, PROT_NONE), munmap(gone, PAGE);
    pid = fork();
    if (pid == 0) {
        strcpy(base, "written by the child");
        write(up[1], "r", 1); read(down[0], &c, 1);
        printf("the child has: %.30s | %.8s | %.9s | %d\n", base, base + PAGE - 4, read_only, base[7 * PAGE]); fflush(stdout);
        write(up[1], "r", 1); read(down[0], &c, 1);
        _exit(3);
    }
    read(up[0], &c, 1);
    struct iovec l[4] = {v(mine, 10), v(mine + 20, 0), v(mine + 100, 20)}, r[4] = {v(base, 4), v(base + 4, 30)};
    CALL(rd(l, 3, r, 2)); printf("%.10s|%.20s\n", mine, mine + 100); printf("here: %s\n", base);
    l[0] = v(mine, 16), r[0] = v(base + PAGE - 8, 16); CALL(rd(l, 1, r, 1)); printf("%.16s\n", mine);
    // Less than is wanted, on either side.
    l[0] = v(mine, 4), r[0] = v(base, 100); CALL(rd(l, 1, r, 1)); l[0] = v(mine, 100), r[0] = v(base, 4); CALL(rd(l, 1, r, 1));
    // What cannot be read stops it.
    l[0] = v(mine, 2 * PAGE), r[0] = v(hidden - 10, 100); CALL(rd(l, 1, r, 1)); r[0] = v(hidden, 100); CALL(rd(l, 1, r, 1));
    r[0] = v(gone - 10, 100); CALL(rd(l, 1, r, 1)); r[0] = v(gone, 100); CALL(rd(l, 1, r, 1)); r[0] = v(read_only, 9); CALL(rd(l, 1, r, 1));
    r[0] = v((void *)-4096L, 100); CALL(rd(l, 1, r, 1)); r[0] = v((void *)0x7ffffffff000, 100); CALL(rd(l, 1, r, 1)); r[0] = v(NULL, 100); CALL(rd(l, 1, r, 1));
    r[0] = v(base, 5), r[1] = v(hidden, 5), r[2] = v(base, 5); CALL(rd(l, 1, r, 3));
    // The caller's own memory.
    r[0] = v(base, 100); l[0] = v(NULL, 100); CALL(rd(l, 1, r, 1)); l[0] = v((void *)-4096L, 100); CALL(rd(l, 1, r, 1)); l[0] = v(read_only, 100); CALL(rd(l, 1, r, 1));
    l[0] = v(read_only - 50, 100); CALL(rd(l, 1, r, 1)); l[0] = v(mine, 100);
    // Writing.
    strcpy(mine, "written by the parent"); l[0] = v(mine, 22), r[0] = v(base, 22); CALL(wr(l, 1, r, 1));
    memcpy(mine, "12345678", 8); l[0] = v(mine, 8), r[0] = v(base + PAGE - 4, 8); CALL(wr(l, 1, r, 1));
    l[0] = v(mine, 8), r[0] = v(read_only, 8); CALL(wr(l, 1, r, 1)); r[0] = v(read_only - 4, 8); CALL(wr(l, 1, r, 1));
    mine[0] = 77; l[0] = v(mine, 1), r[0] = v(base + 7 * PAGE, 1); CALL(wr(l, 1, r, 1)); printf("here: %s %d\n", base, base[7 * PAGE]);
    l[0] = v(hidden, 8), r[0] = v(base, 8); CALL(wr(l, 1, r, 1));
    write(down[1], "g", 1); read(up[0], &c, 1);
    // Counts, lengths, flags, ids: what is looked at first.
    l[0] = v(mine, 8), r[0] = v(base, 8);
    CALL(process_vm_readv(pid, l, 1, r, 1, 1)); CALL(process_vm_readv(0, l, 1, r, 1, 0)); CALL(process_vm_readv(-1, l, 1, r, 1, 0)); CALL(process_vm_readv(4194304, l, 1, r, 1, 0));
    CALL(rd(l, 0, r, 1)); CALL(rd(l, 1, r, 0)); CALL(rd(NULL, 0, NULL, 0)); CALL(rd(NULL, 1, r, 1)); CALL(rd(l, 1, NULL, 1)); CALL(rd(l, 1025, r, 1)); CALL(rd(l, 1, r, 1025));
    l[0] = v(mine, -1); CALL(rd(l, 1, r, 1)); l[0] = v(mine, 8), r[0] = v(base, -1); CALL(rd(l, 1, r, 1)); r[0] = v(base, 0); CALL(rd(l, 1, r, 1)); CALL(process_vm_readv(-1, l, 1, r, 1, 0));
    // Oneself.
    l[0] = v(mine, 15), r[0] = v(base, 15); CALL(process_vm_readv(getpid(), l, 1, r, 1, 0)); printf("%.15s\n", mine); r[0] = v(read_only, 4); CALL(process_vm_writev(getpid(), l, 1, r, 1, 0));
    // Another user, and one who may not be looked into.
    r[0] = v(base, 8);
    for (int who = 0; who < 4; who++) {
        fflush(stdout);
        pid_t user = fork();
        if (user == 0) {
            int go[2]; pipe(go);
            if (getuid() == 0) { setgid(1000); setuid(who == 0 ? 1001 : 1000); }
            prctl(PR_SET_DUMPABLE, 1);
            if (who > 0) {
                pid = fork();
                if (pid == 0) { if (who == 2) prctl(PR_SET_DUMPABLE, 0); write(go[1], "r", 1); pause(); }
                read(go[0], &c, 1);
            }
            printf("user %d: ", who); CALL(rd(l, 1, r, 1)); CALL(process_vm_readv(getppid(), l, 1, r, 1, 0));
            if (who > 0) kill(pid, SIGKILL);
            _exit(0);
        }
        waitpid(user, NULL, 0);
    }
    // One that has ended.
    write(down[1], "g", 1); siginfo_t info; waitid(P_PID, pid, &info, WEXITED | WNOWAIT); CALL(rd(l, 1, r, 1)); waitpid(pid, NULL, 0); CALL(rd(l, 1, r, 1));
    return 0;
}
