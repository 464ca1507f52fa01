// lseek, pread and pwrite on what is no regular file: event descriptors, sockets, devices, directories.
#include "test.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
static void at(const char *name, int fd) {
    char bytes[8] = {1};
    puts(name);
    CALL(lseek(fd, 0, SEEK_SET)); CALL(lseek(fd, 5, SEEK_SET)); CALL(lseek(fd, 0, SEEK_CUR)); CALL(lseek(fd, -5, SEEK_SET));
    CALL(lseek(fd, 0, SEEK_END)); CALL(lseek(fd, 0, SEEK_DATA)); CALL(lseek(fd, 0, SEEK_HOLE)); CALL(lseek(fd, 0, 9));
    CALL(pread(fd, bytes, 8, 0)); CALL(pwrite(fd, bytes, 8, 0));
}
int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    int ends[2];
    at("eventfd", eventfd(1, EFD_NONBLOCK)); at("timerfd", timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    at("signalfd", signalfd(-1, &set, SFD_NONBLOCK)); at("epoll", epoll_create1(0)); at("inotify", inotify_init1(IN_NONBLOCK));
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends); at("socket", ends[0]);
    pipe(ends); at("pipe", ends[0]);
    at("/dev/null", open("/dev/null", O_RDWR)); at("/dev/zero", open("/dev/zero", O_RDWR));
    at("/dev/urandom", open("/dev/urandom", O_RDWR)); at("/dev/full", open("/dev/full", O_RDWR));
    at("directory", open(".", O_RDONLY)); at("/proc/self", open("/proc/self", O_RDONLY)); at("/sys", open("/sys", O_RDONLY));
    return 0;
}
