// Attributes of a terminal that are locked stay as they are.
#include "test.h"
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>

static void show(const char *what, const struct termios *t) {
    printf("%s: %x %x %x %x %d", what, t->c_iflag, t->c_oflag, t->c_cflag, t->c_lflag, t->c_line);
    for (int i = 0; i < 19; i++) printf(" %d", t->c_cc[i]);
    puts("");
}

int main(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    grantpt(master), unlockpt(master);
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    struct termios locked, attributes;
    memset(&locked, 0xff, sizeof locked);
    CALL(ioctl(slave, TIOCGLCKTRMIOS, &locked)); show("at first", &locked);
    CALL(ioctl(slave, TIOCGLCKTRMIOS, NULL)); CALL(ioctl(slave, TIOCGLCKTRMIOS, (void *)-4096L));
    CALL(ioctl(0, TIOCGLCKTRMIOS, &locked));
    locked.c_lflag = ECHO, locked.c_iflag = IXON, locked.c_cc[VINTR] = 1;
    if (getuid() == 0) {
        CALL(ioctl(slave, TIOCSLCKTRMIOS, NULL)); CALL(ioctl(slave, TIOCSLCKTRMIOS, &locked));
        tcgetattr(slave, &attributes);
        attributes.c_lflag &= ~(ECHO | ICANON), attributes.c_iflag &= ~(IXON | ICRNL);
        attributes.c_cc[VINTR] = 7, attributes.c_cc[VQUIT] = 8;
        CALL(tcsetattr(slave, TCSANOW, &attributes)); tcgetattr(master, &attributes); show("some stay", &attributes);
        // By the master it is the same terminal.
        memset(&locked, 0, sizeof locked); CALL(ioctl(master, TIOCGLCKTRMIOS, &locked)); show("locked", &locked);
        memset(&locked, 0, sizeof locked); CALL(ioctl(master, TIOCSLCKTRMIOS, &locked));
        attributes.c_lflag &= ~ECHO, attributes.c_cc[VINTR] = 7;
        CALL(tcsetattr(slave, TCSANOW, &attributes)); tcgetattr(slave, &attributes); show("free", &attributes);
    }
    if (fork() == 0) {
        if (getuid() == 0) setuid(1000);
        CALL(ioctl(slave, TIOCSLCKTRMIOS, &locked)); CALL(ioctl(slave, TIOCGLCKTRMIOS, &locked));
        _exit(0);
    }
    while (wait(NULL) > 0) {}
    return 0;
}
