// lseek with every whence, holes, and offsets beyond the end.
#include "test.h"
int main(void) {
    int fd = open("f", O_RDWR | O_CREAT, 0600);
    CALL(write(fd, "0123456789", 10));
    CALL(lseek(fd, 3, SEEK_SET)); CALL(lseek(fd, 2, SEEK_CUR)); CALL(lseek(fd, -1, SEEK_END));
    CALL(lseek(fd, -1, SEEK_SET)); CALL(lseek(fd, -100, SEEK_CUR)); CALL(lseek(fd, 0, SEEK_CUR));
    CALL(lseek(fd, 0, 9)); CALL(lseek(99, 0, SEEK_SET)); CALL(lseek(fd, LONG_MAX, SEEK_SET)); CALL(lseek(fd, 1, SEEK_CUR));
    CALL(lseek(fd, 100000, SEEK_SET));
    char c;
    CALL(read(fd, &c, 1));
    CALL(write(fd, "x", 1));
    CALL(lseek(fd, 0, SEEK_END));
    CALL(pread(fd, &c, 1, 50000)); SHOW(c);
    CALL(lseek(fd, 0, SEEK_DATA)); CALL(lseek(fd, 0, SEEK_HOLE)); CALL(lseek(fd, 50000, SEEK_DATA));
    CALL(lseek(fd, 98304, SEEK_HOLE)); CALL(lseek(fd, 5, SEEK_HOLE)); CALL(lseek(fd, 100001, SEEK_DATA));
    CALL(lseek(fd, 100001, SEEK_HOLE)); CALL(lseek(fd, 100000, SEEK_HOLE)); CALL(lseek(fd, -1, SEEK_DATA));
    CALL(lseek(fd, 200000, SEEK_HOLE));
    CALL(ftruncate(fd, 0));
    CALL(lseek(fd, 0, SEEK_DATA)); CALL(lseek(fd, 0, SEEK_HOLE));
    CALL(ftruncate(fd, 100000));
    CALL(lseek(fd, 0, SEEK_DATA)); CALL(lseek(fd, 0, SEEK_HOLE));
    struct stat st;
    fstat(fd, &st); SHOW(st.st_size); SHOW(st.st_blocks);
    int ends[2];
    pipe(ends);
    CALL(lseek(ends[0], 0, SEEK_CUR)); CALL(pread(ends[0], &c, 1, 0)); CALL(pwrite(ends[1], &c, 1, 0));
    int dir = open(".", O_RDONLY);
    CALL(lseek(dir, 0, SEEK_SET)); CALL(lseek(dir, 0, SEEK_DATA) == -1);
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR);
    CALL(lseek(null, 5, SEEK_SET)); CALL(lseek(zero, 5, SEEK_SET)); CALL(lseek(null, 0, SEEK_END));
    CALL(pread(fd, &c, 1, -1)); CALL(pwrite(fd, &c, 1, -1)); CALL(pwrite(fd, "z", 1, 200000));
    manifest("f");
    return 0;
}
