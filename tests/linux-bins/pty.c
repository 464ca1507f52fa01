// Pseudo-terminals: opening, locking, data both ways, packet mode, attributes, hanging up.
#include "test.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>
static char text[200];
// Linux carries bytes on in the background, and late under load.
static void settle(void) { usleep(20000); }
static void come(int fd) { struct pollfd p = {fd, POLLIN | POLLPRI, 0}; poll(&p, 1, 400); settle(); }
static void ready(const char *who, int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLPRI, 0};
    come(fd); poll(&p, 1, 0); printf("%s:%s%s%s%s%s\n", who, p.revents & POLLIN ? " in" : "", p.revents & POLLOUT ? " out" : "", p.revents & POLLPRI ? " pri" : "", p.revents & POLLERR ? " err" : "", p.revents & POLLHUP ? " hup" : "");
}
static void take(const char *who, int fd, size_t size) {
    memset(text, 0, sizeof text); come(fd); errno = 0; ssize_t n = read(fd, text, size);
    if (n < 0) { printf("%s: %s\n", who, errno_name(errno)); return; }
    printf("%s: %zd:", who, n);
    for (ssize_t i = 0; i < n; i++) printf(text[i] > ' ' ? " %c" : " %d", text[i]);
    puts("");
}
int main(void) {
    int m = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK), v;
    struct stat st, pts; struct termios t; struct winsize w = {30, 90};
    char name[64]; strcpy(name, ptsname(m)); CHECK(!strncmp(name, "/dev/pts/", 9));
    stat("/dev/ptmx", &st); printf("%o %d %d\n", st.st_mode & S_IFMT, major(st.st_rdev), minor(st.st_rdev));
    stat(name, &st); printf("%o %d\n", st.st_mode & S_IFMT, major(st.st_rdev)); CHECK(minor(st.st_rdev) == atoi(name + 9)); CHECK(st.st_uid == getuid());
    ready("master", m); take("master", m, 10); CALL(open(name, O_RDWR | O_NOCTTY)); v = -1; CALL(ioctl(m, TIOCGPTLCK, &v)); SHOW(v);
    CALL(grantpt(m)); CALL(unlockpt(m)); CALL(ioctl(m, TIOCGPTLCK, &v)); SHOW(v);
    int s = CALL(open(name, O_RDWR | O_NOCTTY | O_NONBLOCK) >= 0) ? 4 : -1;
    CHECK(!strcmp(ttyname(s), name)); CALL(isatty(m)); CALL(isatty(s)); fstat(s, &pts); CHECK(pts.st_rdev == st.st_rdev && pts.st_ino == st.st_ino);
    ready("master", m); ready("slave", s);
    CALL(write(m, "typed\n", 6)); take("slave", s, 100); take("echo", m, 100); CALL(write(s, "shown\n", 6)); take("master", m, 3); take("master", m, 100);
    CALL(tcgetattr(m, &t)); printf("%x %x %x %x\n", t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag);
    CALL(ioctl(s, TIOCGPTN, &v)); CALL(ioctl(s, TIOCPKT, &v)); CALL(ioctl(m, 0x5499, &v)); CALL(ioctl(s, 0x5499, &v));
    CALL(write(s, "12345", 5)); come(m); CALL(ioctl(m, FIONREAD, &v)); SHOW(v); CALL(ioctl(m, TIOCOUTQ, &v)); SHOW(v); take("master", m, 100);
    CALL(ioctl(m, TIOCSWINSZ, &w)); memset(&w, 0, sizeof w); CALL(ioctl(s, TIOCGWINSZ, &w)); printf("%d %d\n", w.ws_row, w.ws_col);
    CALL(ioctl(m, TIOCGPGRP, &v)); SHOW(v); CALL(ioctl(s, TIOCGPGRP, &v)); CALL(ioctl(m, TIOCGSID, &v)); CALL(ioctl(m, TIOCSPGRP, &v)); CALL(ioctl(m, TIOCNOTTY)); CALL(lseek(s, 0, SEEK_SET)); CALL(lseek(m, 0, SEEK_SET));
    // Packet mode.
    v = 1; CALL(ioctl(m, TIOCPKT, &v)); CALL(ioctl(m, TIOCGPKT, &v)); SHOW(v); CALL(write(s, "data", 4)); ready("packet", m); take("packet", m, 3); take("packet", m, 100); take("packet", m, 100);
    CALL(tcflush(s, TCIFLUSH)); ready("flush", m); take("flush", m, 100); CALL(tcflush(s, TCOFLUSH)); take("flush", m, 100);
    CALL(tcflow(s, TCOOFF)); CALL(write(s, "zz", 2)); take("stop", m, 100); CALL(tcflow(s, TCOON)); take("start", m, 100); take("start", m, 100);
    t.c_iflag &= ~IXON; CALL(tcsetattr(s, TCSANOW, &t)); take("no stop", m, 100); t.c_iflag |= IXON; t.c_lflag &= ~ECHO; CALL(tcsetattr(s, TCSANOW, &t)); take("do stop", m, 100); take("nothing", m, 100);
    CALL(write(m, "\x13", 1)); take("stopped", m, 100); CALL(write(m, "\x11", 1)); take("started", m, 100); CALL(write(m, "\x03", 1)); take("interrupt", m, 100);
    v = 0; CALL(ioctl(m, TIOCPKT, &v)); CALL(ioctl(m, TIOCSIG, 77)); CALL(ioctl(m, TIOCSIG, SIGINT));
    // The slave leaves and comes back.
    CALL(write(s, "last", 4)); CALL(write(m, "kept\n", 5)); come(m); come(s); CALL(close(s)); ready("left", m); take("left", m, 2); take("left", m, 100); take("left", m, 100); CALL(write(m, "x", 1)); ready("left", m);
    s = open(name, O_RDWR | O_NOCTTY | O_NONBLOCK); SHOW(s); ready("back", m); take("back", m, 100); take("back", s, 100);
    int peer = CALL(ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK)); CHECK(!strcmp(ttyname(peer), name)); CALL(close(s)); CALL(write(peer, "peer", 4)); take("peer", m, 100); s = peer;
    // Raw: as many as are asked for.
    cfmakeraw(&t); CALL(tcsetattr(s, TCSAFLUSH, &t)); CALL(write(m, "raw\n\x03", 5)); take("raw", s, 2); take("raw", s, 100);
    CALL(chmod(name, 0600)); stat(name, &st); printf("%o\n", st.st_mode & 0777); CALL(unlink(name)); CALL(mkdir("/dev/pts/x", 0755)); CALL(open("/dev/pts/x", O_CREAT | O_RDWR, 0644)); CALL(open("/dev/pts/99999", O_RDWR)); CALL(open("/dev/pts/00", O_RDWR)); CALL(access("/dev/pts/ptmx", F_OK));
    // The master leaves.
    int other = posix_openpt(O_RDWR | O_NOCTTY); CHECK(strcmp(ptsname(other), name) != 0);
    CALL(close(m)); ready("hung up", s); take("hung up", s, 100); CALL(write(s, "x", 1)); CALL(tcgetattr(s, &t)); CALL(ioctl(s, TIOCGPGRP, &v)); CALL(ioctl(s, TIOCSPGRP, &v)); CALL(ioctl(s, FIONREAD, &v)); CALL(open(name, O_RDWR)); CALL(isatty(s));
    CALL(close(s)); CALL(close(other));
    return 0;
}
