// Processes: fork, vfork, execve, waiting, signals between them, groups and sessions, pipes.
#include "test.h"
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

static char *self;

static void show_status(const char *what, int status) {
    if (WIFEXITED(status)) printf("%s: exited %d\n", what, WEXITSTATUS(status));
    else if (WIFSIGNALED(status)) printf("%s: signal %d\n", what, WTERMSIG(status));
    else if (WIFSTOPPED(status)) printf("%s: stopped %d\n", what, WSTOPSIG(status));
    else if (WIFCONTINUED(status)) printf("%s: continued\n", what);
}

static volatile sig_atomic_t children, child_code, child_status;
static void on_child(int signal, siginfo_t *info, void *context) { children++; child_code = info->si_code; child_status = info->si_status; }

#define CHILD(body) ({ fflush(stdout); pid_t pid_ = fork(); if (pid_ == 0) { body; _exit(0); } pid_; })

int main(int argc, char **argv) {
    self = argv[0];
    int status;
    if (argc > 1) {
        // As the program that was executed.
        printf("executed %s", argv[1]);
        for (char **variable = environ; *variable; variable++) if (!strncmp(*variable, "X=", 2)) printf(" %s", *variable);
        struct sigaction usr1, usr2; sigaction(SIGUSR1, NULL, &usr1); sigaction(SIGUSR2, NULL, &usr2);
        printf(" ignored %d caught %d fd %d\n", usr1.sa_handler == SIG_IGN, usr2.sa_handler != SIG_DFL, fcntl(9, F_GETFD) >= 0);
        return 11;
    }
    CALL(wait(&status));
    // Memory is the child's own.
    int value = 1; int *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = CHILD(value = 2; *shared = 3; _exit(getppid() == getpgrp() ? 1 : 4));
    SHOW(waitpid(pid, &status, 0) == pid); CHECK(WIFEXITED(status)); SHOW(value); SHOW(*shared);
    // How children end.
    pid = CHILD(abort()); waitpid(pid, &status, 0); show_status("abort", status);
    pid = CHILD(raise(SIGKILL)); waitpid(pid, &status, 0); show_status("kill", status);
    pid = CHILD(*(volatile int *)NULL = 1); waitpid(pid, &status, 0); show_status("null", status);
    pid = CHILD(exit(300)); waitpid(pid, &status, 0); show_status("exit 300", status);
    // Options of wait.
    int hold[2]; pipe(hold); char byte;
    pid = CHILD(close(hold[1]); read(hold[0], &byte, 1)); close(hold[0]);
    SHOW(waitpid(pid, &status, WNOHANG)); CALL(waitpid(pid, &status, 0x7000)); CALL(waitpid(999999, &status, 0)); CALL(waitpid(-999999, &status, WNOHANG));
    kill(pid, SIGSTOP); waitpid(pid, &status, WUNTRACED); show_status("stop", status);
    kill(pid, SIGCONT); waitpid(pid, &status, WCONTINUED); show_status("continue", status);
    close(hold[1]);
    siginfo_t info; CALL(waitid(P_PID, pid, &info, WEXITED | WNOWAIT)); SHOW(info.si_pid == pid); SHOW(info.si_code); SHOW(info.si_status);
    CALL(waitid(P_PID, pid, &info, 0)); CALL(waitid(9, pid, &info, WEXITED)); CALL(waitid(P_ALL, 0, &info, WEXITED)); CALL(waitid(P_ALL, 0, &info, WEXITED));
    struct rusage usage; pid = CHILD(for (volatile int i = 0; i < 1000000; i++)); SHOW(wait4(pid, &status, 0, &usage) == pid);
    // SIGCHLD.
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART}; sigaction(SIGCHLD, &action, NULL);
    pid = CHILD(_exit(5)); while (!children) usleep(1000); SHOW(child_code == CLD_EXITED); SHOW(child_status); waitpid(pid, &status, 0);
    signal(SIGCHLD, SIG_IGN); pid = CHILD(_exit(5)); CALL(waitpid(pid, &status, 0) > 0); signal(SIGCHLD, SIG_DFL);
    // Exec.
    signal(SIGUSR1, SIG_IGN); signal(SIGUSR2, abs); dup2(1, 9); fcntl(9, F_SETFD, FD_CLOEXEC);
    char *arguments[] = {self, "first", NULL}, *environment[] = {"X=1", NULL};
    pid = CHILD(execve(self, arguments, environment); _exit(99)); waitpid(pid, &status, 0); show_status("execve", status);
    fflush(stdout); pid = vfork(); if (pid == 0) { execve(self, arguments, environment); _exit(99); } waitpid(pid, &status, 0); show_status("vfork", status);
    // The result is shown after the child's own line: the two run at the same time.
    fflush(stdout); pid_t spawned; int error = posix_spawn(&spawned, self, NULL, NULL, arguments, environment); waitpid(spawned, &status, 0); SHOW(error); show_status("posix_spawn", status);
    SHOW(posix_spawn(&spawned, "/nonexistent", NULL, NULL, arguments, environment) == ENOENT);
    pid = CHILD(execve("/nonexistent", arguments, environment); _exit(errno == ENOENT ? 1 : 2)); waitpid(pid, &status, 0); show_status("no such program", status);
    // Pipelines.
    int ends[2]; pipe(ends); pid = CHILD(close(ends[0]); for (int i = 0; i < 100000; i++) write(ends[1], "0123456789", 10)); close(ends[1]);
    long total = 0; char buffer[4096]; for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) total += n; SHOW(total); close(ends[0]); waitpid(pid, &status, 0); show_status("writer", status);
    pipe(ends); pid = CHILD(signal(SIGPIPE, SIG_DFL); close(ends[0]); for (;;) write(ends[1], "x", 1)); close(ends[1]); close(ends[0]); waitpid(pid, &status, 0); show_status("broken pipe", status);
    // Groups and sessions.
    pid = CHILD(pause()); CALL(setpgid(pid, pid)); SHOW(getpgid(pid) == pid); SHOW(getpgid(0) == getpgrp()); CALL(setpgid(pid, 999999)); CALL(setpgid(999999, 0)); CALL(setpgid(0, -1)); CALL(killpg(pid, SIGTERM)); waitpid(-pid, &status, 0); show_status("group", status);
    pid = CHILD(setsid(); _exit(getsid(0) == getpid() && getpgrp() == getpid() && setsid() == -1 && errno == EPERM)); waitpid(pid, &status, 0); show_status("session", status);
    // Orphans go to the subreaper.
    CALL(prctl(PR_SET_CHILD_SUBREAPER, 1)); pipe(ends); pid = CHILD(if (fork() == 0) { while (getppid() != *shared) usleep(1000); _exit(21); }); *shared = getpid(); waitpid(pid, &status, 0); show_status("parent", status); CHECK(wait(&status) > 0); show_status("orphan", status);
    // The death of a parent.
    pid = CHILD(pid_t child = fork(); if (child == 0) { prctl(PR_SET_PDEATHSIG, SIGTERM); write(ends[1], "x", 1); pause(); } read(ends[0], &byte, 1)); waitpid(pid, &status, 0); CHECK(wait(&status) > 0); show_status("orphan", status);
    // Many at once.
    for (int i = 0; i < 50; i++) CHILD(_exit(i)); int sum = 0; for (int i = 0; i < 50; i++) { wait(&status); sum += WEXITSTATUS(status); } SHOW(sum); CALL(wait(&status));
    return 3;
}
