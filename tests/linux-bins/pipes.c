// Pipes and named pipes: capacity, atomicity, non-blocking, packets, end of file, signals.
#include "test.h"
#include <poll.h>
#include <sys/ioctl.h>
static volatile int pipes;
static void on_pipe(int s) { pipes++; }
int main(void) {
    signal(SIGPIPE, on_pipe);
    int p[2], n;
    char *block = malloc(200000);
    memset(block, 'p', 200000);
    CALL(pipe2(p, O_NONBLOCK | O_CLOEXEC)); CALL(fcntl(p[0], F_GETFD)); CALL(pipe2(p, 0x1)); CALL(pipe2((int *)1, 0));
    CALL(read(p[0], block, 1)); CALL(write(p[1], block, 200000)); CALL(write(p[1], block, 1)); CALL(ioctl(p[0], FIONREAD, &n)); SHOW(n);
    CALL(read(p[0], block, 100)); CALL(write(p[1], block, 100)); CALL(read(p[0], block, 4096)); CALL(write(p[1], block, 4096)); CALL(write(p[1], block, 4097));
    CALL(read(p[0], block, 200000)); CALL(read(p[0], block, 200000)); CALL(write(p[1], block, 0)); CALL(read(p[0], block, 1));
    struct stat st;
    fstat(p[0], &st); printf("%o %d\n", st.st_mode, (int)st.st_size);
    CALL(close(p[0])); CALL(write(p[1], block, 1)); SHOW(pipes); CALL(close(p[1]));
    CALL(pipe2(p, O_DIRECT | O_NONBLOCK)); CALL(write(p[1], "one", 3)); CALL(write(p[1], "second", 6)); CALL(read(p[0], block, 100)); CALL(read(p[0], block, 2)); CALL(read(p[0], block, 100));
    CALL(close(p[1])); CALL(read(p[0], block, 10)); CALL(close(p[0]));
    // Resizing.
    CALL(pipe2(p, O_NONBLOCK)); CALL(fcntl(p[1], F_SETPIPE_SZ, 1 << 20)); CALL(write(p[1], block, 200000)); CALL(fcntl(p[1], F_SETPIPE_SZ, 4096)); CALL(fcntl(p[0], F_GETPIPE_SZ));
    CALL(fcntl(p[1], F_SETPIPE_SZ, 0));
    // Named.
    CALL(mkfifo("fifo", 0640)); CALL(mkfifo("fifo", 0600)); CALL(open("fifo", O_WRONLY | O_NONBLOCK));
    int r = CALL(open("fifo", O_RDONLY | O_NONBLOCK)); CALL(read(r, block, 1)); int w = CALL(open("fifo", O_WRONLY | O_NONBLOCK)); CALL(read(r, block, 1)); CALL(write(w, "named", 5)); CALL(read(r, block, 10));
    CALL(lseek(r, 0, SEEK_SET)); CALL(close(w)); CALL(read(r, block, 1));
    struct pollfd poll_fd = {r, POLLIN, 0};
    CALL(poll(&poll_fd, 1, 0)); SHOW(poll_fd.revents);
    CALL(close(r)); int rw = CALL(open("fifo", O_RDWR)); CALL(write(rw, "self", 4)); CALL(read(rw, block, 10)); CALL(close(rw));
    CALL(unlink("fifo"));
    // A pipe reopened through /proc.
    char path[64];
    pipe(p); sprintf(path, "/proc/self/fd/%d", p[0]);
    w = CALL(open(path, O_WRONLY | O_NONBLOCK) >= 0); CALL(write(p[1], "x", 1)); CALL(read(p[0], block, 1));
    return 0;
}
