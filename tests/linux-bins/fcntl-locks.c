// Record locks (POSIX, open file description) and flock, as far as one process can see them.
#include "test.h"
#include <sys/file.h>
static void lock(int fd, int command, short type, off_t start, off_t len) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    int result = fcntl(fd, command, &lock);
    printf("fd %d command %d type %d %lld+%lld: ", fd, command, type, (long long)start, (long long)len);
    if (result) printf("%s\n", errno_name(errno));
    else printf("type %d whence %d %lld+%lld pid %d\n", lock.l_type, lock.l_whence, (long long)lock.l_start, (long long)lock.l_len, lock.l_pid <= 0 ? lock.l_pid : 1);
}
#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#define F_OFD_SETLKW 38
#endif
int main(void) {
    int a = open("f", O_RDWR | O_CREAT, 0600), b = open("f", O_RDWR), ro = open("f", O_RDONLY), wo = open("f", O_WRONLY);
    ftruncate(a, 100);
    lock(a, F_SETLK, F_WRLCK, 0, 10); lock(b, F_SETLK, F_WRLCK, 5, 10); lock(b, F_GETLK, F_WRLCK, 0, 0); lock(a, F_SETLKW, F_RDLCK, 3, 2);
    lock(ro, F_SETLK, F_WRLCK, 20, 1); lock(ro, F_SETLK, F_RDLCK, 20, 1); lock(wo, F_SETLK, F_RDLCK, 20, 1); lock(wo, F_SETLK, F_WRLCK, 20, 1);
    lock(a, F_SETLK, F_UNLCK, 0, 0); lock(a, F_SETLK, 9, 0, 0); lock(a, F_SETLK, F_WRLCK, -1, 5); lock(a, F_SETLK, F_WRLCK, 50, -10); lock(99, F_SETLK, F_WRLCK, 0, 1);
    lock(a, F_GETLK, F_UNLCK, 0, 1);
    // Open file descriptions own these; two descriptions exclude one another.
    lock(a, F_OFD_SETLK, F_WRLCK, 0, 10); lock(b, F_OFD_SETLK, F_WRLCK, 5, 10); lock(b, F_OFD_SETLK, F_WRLCK, 10, 10); lock(b, F_OFD_GETLK, F_WRLCK, 0, 0);
    lock(b, F_OFD_GETLK, F_RDLCK, 0, 5); lock(a, F_OFD_SETLK, F_RDLCK, 2, 3); lock(b, F_OFD_SETLK, F_RDLCK, 3, 1); lock(b, F_OFD_SETLK, F_WRLCK, 3, 1);
    lock(b, F_OFD_GETLK, F_WRLCK, 2, 1); lock(b, F_SETLK, F_WRLCK, 0, 1);
    int copy = dup(a);
    close(a); lock(b, F_OFD_SETLK, F_WRLCK, 0, 1);
    close(copy); lock(b, F_OFD_SETLK, F_WRLCK, 0, 1);
    struct flock pid = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_pid = 5};
    CALL(fcntl(b, F_OFD_SETLK, &pid));
    // flock.
    a = open("f", O_RDWR);
    CALL(flock(a, LOCK_EX)); CALL(flock(b, LOCK_SH | LOCK_NB)); CALL(flock(a, LOCK_SH)); CALL(flock(b, LOCK_SH | LOCK_NB)); CALL(flock(a, LOCK_EX | LOCK_NB));
    CALL(flock(b, LOCK_UN)); CALL(flock(a, LOCK_EX | LOCK_NB)); CALL(flock(a, 64)); CALL(flock(99, LOCK_SH)); CALL(flock(b, LOCK_UN)); CALL(flock(ro, LOCK_EX | LOCK_NB));
    CALL(close(a)); CALL(flock(ro, LOCK_EX | LOCK_NB));
    int p[2]; pipe(p); CALL(flock(p[0], LOCK_SH)); int path = open("f", O_PATH); CALL(flock(path, LOCK_SH));
    CALL(lockf(b, F_TEST, 10)); lock(b, F_OFD_SETLK, F_UNLCK, 0, 0);
    // Closing a descriptor that is only a place gives no lock up; closing another one does.
    int watched = open("f", O_RDWR); lock(watched, F_SETLK, F_WRLCK, 70, 5);
    CALL(close(path)); lock(b, F_OFD_GETLK, F_WRLCK, 70, 1); close(open("f", O_RDONLY)); lock(b, F_OFD_GETLK, F_WRLCK, 70, 1);
    CALL(lockf(b, F_LOCK, 10)); CALL(lockf(b, F_TEST, 10)); CALL(lockf(b, F_ULOCK, 10)); CALL(lockf(b, F_TLOCK, 0));
    return 0;
}
