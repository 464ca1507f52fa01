// Files in memory, private and shared: what is seen, who sees it, and the errors.
#include "test.h"
int main(void) {
    catch_faults();
    int fd = open("file", O_RDWR | O_CREAT, 0644);
    char block[PAGE];
    for (int i = 0; i < 4; i++) { memset(block, 'a' + i, PAGE); write(fd, block, PAGE); }
    write(fd, "tail", 4);
    // Private: the file is seen until the page is written, and never changes.
    char *private = DONE(mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    SHOW(private[0]); SHOW(private[3 * PAGE]); SHOW(private[4 * PAGE + 3]); SHOW(private[4 * PAGE + 4]);
    private[0] = 'X';
    char c;
    pread(fd, &c, 1, 0); SHOW(c);
    pwrite(fd, "Q", 1, PAGE);
    SHOW(private[PAGE]);
    pwrite(fd, "Q", 1, 1); SHOW(private[1]);
    // Shared: both ways, and between mappings.
    char *shared = DONE(mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    char *again = DONE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 2 * PAGE));
    shared[2 * PAGE] = 'S';
    SHOW(again[0]);
    pread(fd, &c, 1, 2 * PAGE); SHOW(c);
    pwrite(fd, "W", 1, 2 * PAGE + 1); SHOW(again[1]);
    SHOW(private[2 * PAGE]);
    CALL(msync(shared, 5 * PAGE, MS_SYNC));
    // Beyond the end within the last page: zero, writable, not kept.
    shared[4 * PAGE + 100] = 'Z';
    struct stat st;
    fstat(fd, &st); SHOW(st.st_size);
    FAULT(shared[5 * PAGE - 1] = 1);
    // Growing and shrinking under the mapping.
    CALL(ftruncate(fd, 2 * PAGE + 10));
    FAULT(shared[2 * PAGE + 10] = 1);
    FAULT(shared[3 * PAGE] = 1);
    FAULT(*(volatile char *)(private + 3 * PAGE));
    SHOW(private[0]);
    // What is written beyond the end is not to be there when the file grows again. Linux's tmpfs had
    // not heard of that before 6.19.
    shared[2 * PAGE + 10] = 0;
    CALL(ftruncate(fd, 5 * PAGE));
    SHOW(shared[3 * PAGE]);
    SHOW(shared[2 * PAGE + 9] == 'c');
    // The descriptor is not needed any more, nor the name.
    CALL(close(fd));
    CALL(unlink("file"));
    shared[0] = 'N';
    SHOW(shared[0]);
    // Which access the descriptor must allow.
    put_file("other", "content");
    int ro = open("other", O_RDONLY), wo = open("other", O_WRONLY), ap = open("other", O_RDWR | O_APPEND);
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0));
    DONE(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0));
    char *rop = DONE(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, ro, 0));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, wo, 0));
    DONE(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, wo, 0));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, wo, 0));
    DONE(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, ap, 0));
    char *shared_ro = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
    CALL(mprotect(shared_ro, PAGE, PROT_READ | PROT_WRITE));
    CALL(mprotect(rop, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, ro, PAGE));
    DONE((void *)syscall(SYS_mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, ro, 100));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, ro, -PAGE));
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, dir, 0));
    int ends[2];
    pipe(ends);
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, ends[0], 0));
    int path = open("other", O_PATH);
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, path, 0));
    int zero = open("/dev/zero", O_RDWR);
    char *z = DONE(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
    FAULT(z[0] = 1);
    z = DONE(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0));
    FAULT(z[0] = 1);
    // A system call reads from and writes to mapped files.
    int copy = open("copy", O_RDWR | O_CREAT, 0644);
    CALL(write(copy, shared, 5 * PAGE));
    CALL(pread(copy, shared + PAGE, PAGE, 0));
    SHOW(shared[PAGE]);
    manifest("copy");
    return 0;
}
