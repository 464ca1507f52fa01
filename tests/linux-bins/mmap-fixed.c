// MAP_FIXED replaces what is there, MAP_FIXED_NOREPLACE does not, hints are only hints.
#include "test.h"
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
int main(void) {
    catch_faults();
    char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    memset(p, 'a', 8 * PAGE);
    CHECK(mmap(p + 2 * PAGE, 2 * PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0) == p + 2 * PAGE);
    SHOW(p[2 * PAGE]);
    SHOW(p[4 * PAGE]);
    FAULT(p[2 * PAGE] = 1);
    FAULT(p[4 * PAGE] = 1);
    DONE(mmap(p, PAGE, PROT_READ, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    DONE(mmap(p + 7 * PAGE, 2 * PAGE, PROT_READ, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    munmap(p + 4 * PAGE, PAGE);
    CHECK(mmap(p + 4 * PAGE, PAGE, PROT_READ, ANON | MAP_FIXED_NOREPLACE, -1, 0) == p + 4 * PAGE);
    DONE(mmap(p + 1, PAGE, PROT_READ, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    // A free hint is taken, rounded down; an occupied one is not.
    munmap(p + 5 * PAGE, PAGE);
    CHECK(mmap(p + 5 * PAGE, PAGE, PROT_READ, ANON, -1, 0) == p + 5 * PAGE);
    CHECK(mmap(p, PAGE, PROT_READ, ANON, -1, 0) != p);
    munmap(p + 5 * PAGE, PAGE);
    CHECK(mmap(p + 5 * PAGE + 100, PAGE, PROT_READ, ANON, -1, 0) == p + 5 * PAGE);
    // Low addresses that are fixed.
    CHECK(mmap((void *)0x10000000, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0) == (void *)0x10000000);
    CHECK((uintptr_t)mmap(NULL, PAGE, PROT_READ, ANON | MAP_32BIT, -1, 0) < 1UL << 32);
    // Top down: a second mapping lies below the first where there is room.
    char *first = mmap(NULL, PAGE * 3000, PROT_READ, ANON, -1, 0);
    char *second = mmap(NULL, PAGE * 3000, PROT_READ, ANON, -1, 0);
    CHECK(second < first);
    // Over a file mapping's middle.
    put_file("file", "0123456789");
    int fd = open("file", O_RDWR);
    ftruncate(fd, 3 * PAGE);
    pwrite(fd, "third", 5, 2 * PAGE);
    char *map = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    mmap(map + PAGE, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0);
    printf("%.10s %.5s\n", map, map + 2 * PAGE);
    memcpy(map + 2 * PAGE, "THIRD", 5);
    munmap(map, 3 * PAGE);
    char text[6] = "";
    pread(fd, text, 5, 2 * PAGE);
    puts(text);
    return 0;
}
