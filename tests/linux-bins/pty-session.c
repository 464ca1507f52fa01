// A session on a pseudo-terminal: its controlling terminal, /dev/tty, the foreground, signals typed,
// and who hears of its end.
#include "test.h"
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
static int m, v;
static char name[64];
static volatile sig_atomic_t got[65];
static void note(int signal) { got[signal]++; }
static void catch(int signal) { struct sigaction action = {.sa_handler = note}; sigaction(signal, &action, NULL); }
static void await(int signal) { for (int i = 0; i < 500 && !got[signal]; i++) usleep(10000); printf("signal %d: %s\n", signal, got[signal] ? "yes" : "no"); got[signal] = 0; }
static int setting(int fd) { fcntl(fd, F_SETFD, FD_CLOEXEC); return fd; }
// Runs in a child that leads a session of its own; a byte in the pipe lets the parent go on.
static int steps[2], answers[2];
static void go(void) { write(steps[1], "x", 1); }
static void wait_step(void) { char c; read(steps[0], &c, 1); }
static void wait_answer(void) { char c; read(answers[0], &c, 1); }
static void answer(void) { write(answers[1], "x", 1); }
static void leader(void) {
    close(m); CALL(open("/dev/tty", O_RDWR)); CALL(setsid() == getpid()); CALL(open("/dev/tty", O_RDWR));
    int quiet = open(name, O_RDWR | O_NOCTTY); CALL(ioctl(quiet, TIOCGSID, &v)); CALL(ioctl(quiet, TIOCNOTTY)); CALL(tcgetpgrp(quiet));
    CALL(ioctl(quiet, TIOCSCTTY, 0)); CALL(ioctl(quiet, TIOCSCTTY, 0)); CHECK(tcgetsid(quiet) == getpid()); CHECK(tcgetpgrp(quiet) == getpgrp());
    int tty = open("/dev/tty", O_RDWR); CHECK(tty >= 0); CALL(isatty(tty)); CHECK(!strcmp(ttyname(quiet), name)); char id[L_ctermid]; puts(ctermid(id));
    catch(SIGINT); catch(SIGWINCH); catch(SIGHUP); catch(SIGCONT); answer(); await(SIGINT); answer(); await(SIGWINCH);
    // A group in the background, stopped when it reads.
    pid_t child = fork();
    if (!child) { setpgid(0, 0); signal(SIGHUP, SIG_DFL); char c; read(quiet, &c, 1); _exit(9); }
    int status; setpgid(child, child); CALL(waitpid(child, &status, WUNTRACED) == child); CHECK(WIFSTOPPED(status)); if (WIFSTOPPED(status)) SHOW(WSTOPSIG(status));
    signal(SIGTTOU, SIG_IGN); CALL(tcsetpgrp(tty, child)); CHECK(tcgetpgrp(quiet) == child); CALL(tcsetpgrp(tty, 999999)); CALL(tcsetpgrp(tty, -1)); kill(-child, SIGCONT); answer();
    CALL(waitpid(child, &status, 0) == child); CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9); CALL(tcsetpgrp(tty, getpgrp()));
    // Given up and taken again.
    CALL(ioctl(tty, TIOCNOTTY)); await(SIGHUP); await(SIGCONT); CALL(open("/dev/tty", O_RDWR)); int again = open(name, O_RDWR); CHECK(tcgetsid(again) == getpid());
    // The master goes.
    answer(); await(SIGHUP); await(SIGCONT); CALL(open("/dev/tty", O_RDWR)); CALL(write(again, "x", 1)); char c; CALL(read(again, &c, 1));
    exit(5);
}
int main(void) {
    setsid();
    m = setting(posix_openpt(O_RDWR | O_NOCTTY)); grantpt(m); unlockpt(m); strcpy(name, ptsname(m)); pipe(answers);
    fflush(stdout);
    pid_t child = fork();
    if (!child) leader();
    char text[200];
    wait_answer(); write(m, "\x03", 1); wait_answer(); struct winsize w = {5, 6}; ioctl(m, TIOCSWINSZ, &w);
    wait_answer(); write(m, "line\n", 5); wait_answer(); close(m);
    int status; waitpid(child, &status, 0); SHOW(WEXITSTATUS(status));
    // The end of the leader is heard in the foreground.
    m = setting(posix_openpt(O_RDWR | O_NOCTTY)); unlockpt(m); strcpy(name, ptsname(m)); fflush(stdout);
    child = fork();
    if (!child) {
        setsid(); int s = open(name, O_RDWR);
        pid_t member = fork();
        if (!member) { catch(SIGHUP); catch(SIGCONT); pid_t parent = getppid(); answer(); await(SIGHUP);
            // The signal is sent before the terminal is given up, and that before the leader is gone.
            while (getppid() == parent) usleep(1000);
            SHOW(got[SIGCONT]); CALL(open("/dev/tty", O_RDWR)); CALL(tcgetpgrp(s)); fflush(stdout); answer(); _exit(0); }
        char c; read(answers[0], &c, 1); _exit(0);
    }
    waitpid(child, &status, 0); wait_answer(); memset(text, 0, sizeof text);
    // All have left the slave.
    usleep(50000); fcntl(m, F_SETFL, O_NONBLOCK); CALL(read(m, text, 100));
    return 0;
}
