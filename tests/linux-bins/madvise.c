// madvise, msync, mincore and the mlock family.
#include "test.h"
#include <sys/resource.h>
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
int main(void) {
    catch_faults();
    char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    memset(p, 'm', 8 * PAGE);
    CALL(madvise(p + PAGE, 2 * PAGE, MADV_DONTNEED));
    SHOW(p[0]); SHOW(p[PAGE]); SHOW(p[2 * PAGE]); SHOW(p[3 * PAGE]);
    CALL(madvise(p, 8 * PAGE, MADV_NORMAL));
    CALL(madvise(p, 8 * PAGE, MADV_RANDOM));
    CALL(madvise(p, 8 * PAGE, MADV_SEQUENTIAL));
    CALL(madvise(p, 8 * PAGE, MADV_WILLNEED));
    CALL(madvise(p, 8 * PAGE, MADV_DONTFORK));
    CALL(madvise(p, 8 * PAGE, MADV_DOFORK));
    CALL(madvise(p, 8 * PAGE, MADV_DONTDUMP));
    CALL(madvise(p, 8 * PAGE, MADV_DODUMP));
    CALL(madvise(p, 0, MADV_DONTNEED));
    CALL(madvise(p + 1, PAGE, MADV_DONTNEED));
    CALL(madvise(p, PAGE, 12345));
    CALL(madvise(p, -1UL, MADV_DONTNEED));
    CALL(madvise(p, 1, MADV_DONTNEED));
    SHOW(p[PAGE - 1]);
    munmap(p + 4 * PAGE, PAGE);
    CALL(madvise(p, 8 * PAGE, MADV_DONTNEED));
    SHOW(p[7 * PAGE]);
    CALL(madvise(p, PAGE, MADV_FREE));
    FAULT(p[0] = 'f');
    SHOW(p[0]);
    // A file's pages come back from the file; a private change is lost.
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, 2 * PAGE);
    pwrite(fd, "file", 4, 0);
    char *m = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    m[0] = 'F';
    CALL(madvise(m, PAGE, MADV_DONTNEED));
    SHOW(m[0]);
    char *s = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    s[1] = 'I';
    CALL(madvise(s, PAGE, MADV_DONTNEED));
    SHOW(s[1]);
    CALL(madvise(s, PAGE, MADV_REMOVE));
    SHOW(s[1]);
    CALL(madvise(m, PAGE, MADV_FREE));
    // msync.
    CALL(msync(s, 2 * PAGE, MS_SYNC));
    CALL(msync(s, 2 * PAGE, MS_ASYNC));
    CALL(msync(s, 2 * PAGE, MS_INVALIDATE));
    CALL(msync(s, 2 * PAGE, MS_SYNC | MS_ASYNC));
    CALL(msync(s, 2 * PAGE, 64));
    CALL(msync(s + 1, PAGE, MS_SYNC));
    CALL(msync(p, 8 * PAGE, MS_SYNC));
    CALL(msync(p, 0, MS_SYNC));
    // mincore.
    unsigned char in[8] = {0};
    char *q = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    q[0] = q[2 * PAGE] = 1;
    CALL(mincore(q, 4 * PAGE, in));
    printf("%d %d %d %d\n", in[0] & 1, in[1] & 1, in[2] & 1, in[3] & 1);
    CALL(mincore(q + 1, PAGE, in));
    CALL(mincore(p, 8 * PAGE, in));
    CALL(mincore(q, PAGE, (void *)1));
    CALL(mincore(q, 0, in));
    // Locking.
    CALL(mlock(q, 4 * PAGE));
    CALL(mincore(q, 4 * PAGE, in));
    printf("%d %d %d %d\n", in[0] & 1, in[1] & 1, in[2] & 1, in[3] & 1);
    CALL(madvise(q, PAGE, MADV_DONTNEED));
    CALL(munlock(q, 4 * PAGE));
    CALL(mlock(q + 100, 10));
    CALL(mlock(p, 8 * PAGE));
    CALL(munlock(p, 8 * PAGE));
    CALL(syscall(SYS_mlock2, q, PAGE, 1));
    CALL(syscall(SYS_mlock2, q, PAGE, 2));
    CALL(mlockall(0));
    CALL(mlockall(MCL_CURRENT));
    CALL(mlockall(64));
    CALL(munlockall());
    return 0;
}
