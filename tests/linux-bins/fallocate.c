// fallocate, posix_fallocate, truncate, ftruncate, posix_fadvise, sync calls.
#include "test.h"
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2
int main(void) {
    struct stat st;
    int fd = open("f", O_RDWR | O_CREAT, 0600);
    CALL(fallocate(fd, 0, 0, 10000)); fstat(fd, &st); SHOW(st.st_size); SHOW(st.st_blocks);
    CALL(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 50000)); fstat(fd, &st); SHOW(st.st_size);
    char block[4096 * 4];
    memset(block, 'f', sizeof block);
    pwrite(fd, block, sizeof block, 0);
    CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 200));
    CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 8000));
    CALL(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10));
    char c;
    pread(fd, &c, 1, 99); SHOW(c); pread(fd, &c, 1, 100); SHOW(c); pread(fd, &c, 1, 300); SHOW(c); pread(fd, &c, 1, 8192); SHOW(c);
    pread(fd, &c, 1, 13000); SHOW(c);
    manifest("f");
    CALL(fallocate(fd, 0, -1, 10)); CALL(fallocate(fd, 0, 0, 0)); CALL(fallocate(fd, 0, 0, -1)); CALL(fallocate(fd, 0, LONG_MAX, 10));
    CALL(fallocate(99, 0, 0, 10)); CALL(fallocate(fd, 0x1000, 0, 10));
    int ro = open("f", O_RDONLY), dir = open(".", O_RDONLY), p[2];
    pipe(p);
    CALL(fallocate(ro, 0, 0, 10)); CALL(fallocate(dir, 0, 0, 10)); CALL(fallocate(p[1], 0, 0, 10));
    CALL(posix_fallocate(fd, 20000, 1000)); CALL(posix_fallocate(fd, 0, 0)); CALL(posix_fallocate(ro, 0, 10));
    fstat(fd, &st); SHOW(st.st_size);
    // Truncating.
    CALL(ftruncate(fd, 50)); CALL(ftruncate(fd, 5000)); pread(fd, &c, 1, 49); SHOW(c); pread(fd, &c, 1, 50); SHOW(c);
    CALL(ftruncate(fd, -1)); CALL(ftruncate(ro, 0)); CALL(ftruncate(dir, 0)); CALL(ftruncate(p[1], 0)); CALL(ftruncate(99, 0));
    CALL(truncate("f", 10)); CALL(truncate("none", 0)); CALL(truncate(".", 0)); CALL(truncate("f", -1)); CALL(truncate("f/x", 0));
    CALL(truncate("", 0)); CALL(ftruncate(fd, 1L << 40)); fstat(fd, &st); SHOW(st.st_size); SHOW(st.st_blocks <= 8);
    CALL(ftruncate(fd, 10));
    // Advice and syncing.
    CALL(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL)); CALL(posix_fadvise(fd, 0, 0, 77)); CALL(posix_fadvise(p[0], 0, 0, 0)); CALL(posix_fadvise(99, 0, 0, 0));
    CALL(readahead(fd, 0, 100)); CALL(fsync(fd)); CALL(fdatasync(fd)); CALL(fsync(p[0])); CALL(fsync(99)); CALL(fsync(dir)); CALL(syncfs(fd)); CALL(syncfs(99));
    CALL(sync_file_range(fd, 0, 10, SYNC_FILE_RANGE_WRITE)); CALL(sync_file_range(fd, 0, 10, 64)); CALL(sync_file_range(p[0], 0, 10, 0));
    sync();
    manifest(".");
    return 0;
}
