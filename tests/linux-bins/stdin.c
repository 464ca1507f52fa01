// Standard input: a pipe with one line, read in small pieces to its end, then the end again.
// @stdin the quick brown fox jumps over the lazy dog
#include "test.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
int main(void) { char c[7]; ssize_t n; struct stat st; CALL(fstat(0, &st)); printf("%o\n", st.st_mode & S_IFMT); CALL(isatty(0)); CALL(isatty(1)); struct termios t; CALL(tcgetattr(0, &t)); struct winsize w; CALL(ioctl(1, TIOCGWINSZ, &w)); CALL(lseek(0, 0, SEEK_CUR)); while ((n = read(0, c, sizeof c)) > 0) printf("%zd: %.*s\n", n, (int)n, c); SHOW(n); CALL(read(0, c, 1)); struct pollfd p = {0, POLLIN, 0}; CALL(poll(&p, 1, 0)); printf("%x\n", p.revents); fputs("to stderr\n", stderr); printf("%o %o\n", fcntl(0, F_GETFL) & O_ACCMODE, fcntl(1, F_GETFL) & O_ACCMODE); CALL(write(0, "x", 1)); CALL(read(1, c, 1)); return 0; }
