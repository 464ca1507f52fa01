// SIGKILL ends a process that is stopped, also one that would stop again at once: a reader in the
// background of its terminal.
// @cpus 1 2
#include "test.h"
#include <sys/ioctl.h>
#include <sys/wait.h>
int main(void) {
    // Who leads no group can have a session of its own.
    pid_t leader = fork();
    if (leader) {
        int status;
        waitpid(leader, &status, 0);
        return WEXITSTATUS(status);
    }
    int m = posix_openpt(O_RDWR | O_NOCTTY);
    grantpt(m);
    unlockpt(m);
    CHECK(setsid() == getpid());
    int s = open(ptsname(m), O_RDWR);
    ioctl(s, TIOCSCTTY, 0);
    int stopped = 0, killed = 0;
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (!child) {
            char c;
            setpgid(0, 0);
            read(s, &c, 1);
            _exit(9);
        }
        setpgid(child, child);
        int status;
        waitpid(child, &status, WUNTRACED);
        stopped += WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN;
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    }
    SHOW(stopped);
    SHOW(killed);
    return 0;
}
