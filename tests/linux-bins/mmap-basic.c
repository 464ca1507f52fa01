// Anonymous mappings and the errors of mmap and munmap.
#include "test.h"
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
int main(void) {
    catch_faults();
    char *p = DONE(mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0));
    CHECK((uintptr_t)p % PAGE == 0);
    int zeros = 1;
    for (int i = 0; i < 4 * PAGE; i++) zeros &= p[i] == 0;
    SHOW(zeros);
    p[4 * PAGE - 1] = 7;
    CALL(munmap(p + PAGE, PAGE));
    FAULT(p[PAGE] = 1);
    FAULT(p[2 * PAGE] = 1);
    CALL(munmap(p, 4 * PAGE));
    CALL(munmap(p, 4 * PAGE));
    FAULT(p[0] = 1);
    DONE(mmap(NULL, 0, PROT_READ, ANON, -1, 0));
    DONE(mmap(NULL, 1, PROT_READ, ANON, -1, 0));
    DONE(mmap(NULL, 1L << 60, PROT_READ, ANON, -1, 0));
    DONE(mmap(NULL, -1UL, PROT_READ, ANON, -1, 0));
    DONE((void *)syscall(SYS_mmap, NULL, PAGE, PROT_READ, ANON, -1, 1));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_ANONYMOUS, -1, 0));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 99, 0));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    DONE(mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0));
    DONE(mmap((void *)1, PAGE, PROT_READ, ANON, -1, 0));
    DONE(mmap((void *)1, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0));
    DONE(mmap((void *)0x7ffffffff000, 2 * PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0));
    DONE(mmap((void *)0x800000000000, PAGE, PROT_READ, ANON | MAP_FIXED, -1, 0));
    DONE(mmap((void *)0x800000000000, PAGE, PROT_READ, ANON, -1, 0));
    CALL(munmap((void *)1, PAGE));
    CALL(munmap(NULL, 0));
    CALL(munmap((void *)0x800000000000, PAGE));
    CALL(munmap((void *)(64 * PAGE), 1));
    // Rights.
    char *none = mmap(NULL, PAGE, PROT_NONE, ANON, -1, 0);
    FAULT(*(volatile char *)none);
    char *write_only = mmap(NULL, PAGE, PROT_WRITE, ANON, -1, 0);
    FAULT(*(volatile char *)write_only = 1);
    FAULT(*(volatile char *)write_only);
    char *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, ANON, -1, 0);
    memcpy(code, "\xb8\x2a\0\0\0\xc3", 6);
    SHOW(((int (*)(void))code)());
    code[1] = 43;
    SHOW(((int (*)(void))code)());
    // Populated, locked, without reserve, as a stack, with huge pages asked for politely.
    char *q = DONE(mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, ANON | MAP_POPULATE, -1, 0));
    SHOW(q[63 * PAGE]);
    q = DONE(mmap(NULL, 1L << 40, PROT_NONE, ANON | MAP_NORESERVE, -1, 0));
    CALL(mprotect(q + (1L << 39), PAGE, PROT_READ | PROT_WRITE));
    FAULT(q[(1L << 39) + 5] = 1);
    CALL(munmap(q, 1L << 40));
    q = DONE(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, ANON | MAP_STACK, -1, 0));
    FAULT(q[0] = 1);
    // A large one, touched sparsely.
    q = DONE(mmap(NULL, 256L << 20, PROT_READ | PROT_WRITE, ANON | MAP_NORESERVE, -1, 0));
    long sum = 0;
    for (long i = 0; i < 256; i += 16) q[i << 20] = i;
    for (long i = 0; i < 256; i += 16) sum += (unsigned char)q[i << 20];
    SHOW(sum);
    CALL(munmap(q, 256L << 20));
    // Many small ones: every second page gone.
    q = mmap(NULL, 512 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    int failures = 0;
    for (int i = 0; i < 512; i += 2) failures += munmap(q + i * PAGE, PAGE) != 0;
    SHOW(failures);
    FAULT(q[PAGE] = 1);
    FAULT(q[2 * PAGE] = 1);
    return 0;
}
