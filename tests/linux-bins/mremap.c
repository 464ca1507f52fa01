// Growing, shrinking and moving mappings.
#include "test.h"
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
int main(void) {
    catch_faults();
    char *area = mmap(NULL, 64 * PAGE, PROT_NONE, ANON, -1, 0);
    char *p = mmap(area, 4 * PAGE, PROT_READ | PROT_WRITE, ANON | MAP_FIXED, -1, 0);
    munmap(area + 4 * PAGE, 60 * PAGE);
    for (int i = 0; i < 4; i++) p[i * PAGE] = 'a' + i;
    CHECK(mremap(p, 4 * PAGE, 2 * PAGE, 0) == p);
    FAULT(*(volatile char *)(p + 2 * PAGE));
    CHECK(mremap(p, 2 * PAGE, 8 * PAGE, 0) == p);
    SHOW(p[PAGE]); SHOW(p[2 * PAGE]); SHOW(p[7 * PAGE]);
    // No room to grow.
    mmap(p + 8 * PAGE, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0);
    DONE(mremap(p, 8 * PAGE, 16 * PAGE, 0));
    char *q = DONE(mremap(p, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE));
    CHECK(q != p);
    SHOW(q[0]); SHOW(q[PAGE]); SHOW(q[15 * PAGE]);
    FAULT(*(volatile char *)p);
    // To a place that is said, replacing what is there.
    char *to = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    memset(to, 't', 8 * PAGE);
    CHECK(mremap(q, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + PAGE) == to + PAGE);
    SHOW(to[0]); SHOW(to[PAGE]); SHOW(to[2 * PAGE]); SHOW(to[3 * PAGE]); SHOW(to[5 * PAGE]);
    FAULT(*(volatile char *)q);
    FAULT(q[2 * PAGE] = 'm');
    // Part of a mapping.
    char *r = DONE(mremap(q + 4 * PAGE, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE));
    FAULT(*(volatile char *)(q + 4 * PAGE));
    FAULT(q[6 * PAGE] = 1);
    // Errors.
    DONE(mremap(q + 1, PAGE, PAGE, 0));
    DONE(mremap(q + 2 * PAGE, PAGE, 0, 0));
    DONE(mremap(q + 2 * PAGE, PAGE, PAGE, 0x80));
    DONE(mremap(q + 2 * PAGE, PAGE, PAGE, MREMAP_FIXED, to));
    DONE(mremap(q + 2 * PAGE, PAGE, PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, to + 1));
    DONE(mremap(to, 2 * PAGE, 2 * PAGE, MREMAP_FIXED | MREMAP_MAYMOVE, to + PAGE));
    DONE(mremap((void *)(16 * PAGE), PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    DONE(mremap(to, 0, PAGE, MREMAP_MAYMOVE));
    // A shared mapping of which a second view is asked for (old size 0).
    char *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *view = DONE(mremap(shared, 0, PAGE, MREMAP_MAYMOVE));
    shared[10] = 'v';
    SHOW(view[10]);
    // The pages move, the place stays.
    char *s = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    s[0] = 's';
    char *moved = DONE(mremap(s, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
    SHOW(moved[0]); SHOW(s[0]);
    // A file's mapping grows over the file.
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    char block[PAGE];
    for (int i = 0; i < 4; i++) { memset(block, '0' + i, PAGE); write(fd, block, PAGE); }
    char *f = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE);
    f = DONE(mremap(f, PAGE, 3 * PAGE, MREMAP_MAYMOVE));
    SHOW(f[0]); SHOW(f[2 * PAGE]);
    // Large, with contents.
    char *big = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, ANON, -1, 0);
    for (int i = 0; i < 4 << 20; i += PAGE) big[i] = i / PAGE;
    big = DONE(mremap(big, 4 << 20, 32 << 20, MREMAP_MAYMOVE));
    int wrong = 0;
    for (int i = 0; i < 4 << 20; i += PAGE) wrong += big[i] != (char)(i / PAGE);
    for (int i = 4 << 20; i < 32 << 20; i += PAGE * 64) wrong += big[i] != 0;
    SHOW(wrong);
    return 0;
}
