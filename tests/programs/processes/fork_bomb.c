// A fork bomb: every process forks until it cannot, or is killed for want of memory. Then process 1 kills all
// others, and goes on.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc > 1) return 7;
    pid_t first = getpid();
    while (fork() >= 0) continue;
    int error = errno;
    while (getpid() != first) pause();
    if (error != EAGAIN && error != ENOMEM) return 1;
    if (kill(-1, SIGKILL)) return 2;
    int status, killed = 0;
    for (; waitpid(-1, &status, 0) > 0; killed++) {
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) return 3;
    }
    pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", argv[0], "child", NULL);
        _exit(1);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) return 4;
    printf("more than 50 killed: %d; a child ends with %d\n", killed > 50, WEXITSTATUS(status));
    return 0;
}
