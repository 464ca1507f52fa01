// Standard input that is /dev/null: what it is, and what can be done with it.
#include "test.h"
#include <poll.h>
#include <sys/sysmacros.h>
int main(void) {
    struct stat st, null; char c, link[64] = "";
    fstat(0, &st); stat("/dev/null", &null);
    printf("%o %d %d\n", st.st_mode & S_IFMT, major(st.st_rdev), minor(st.st_rdev)); CHECK(st.st_ino == null.st_ino && st.st_dev == null.st_dev);
    readlink("/proc/self/fd/0", link, 63); puts(link);
    struct pollfd p = {0, POLLIN | POLLOUT, 0}; CALL(poll(&p, 1, 0)); SHOW(p.revents & POLLIN);
    CALL(lseek(0, 5, SEEK_SET)); CALL(read(0, &c, 1)); CALL(pread(0, &c, 1, 7)); CALL(write(0, &c, 1)); CALL(isatty(0)); CALL(fcntl(0, F_GETFL) & O_ACCMODE);
    return 0;
}
