// Changing rights of whole mappings, parts and neighbours.
#include "test.h"
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
int main(void) {
    catch_faults();
    char *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, ANON, -1, 0);
    memset(p, 'p', 8 * PAGE);
    CALL(mprotect(p + 2 * PAGE, 2 * PAGE, PROT_READ));
    FAULT(p[PAGE] = 1);
    FAULT(p[2 * PAGE] = 1);
    SHOW(p[2 * PAGE]);
    FAULT(p[4 * PAGE] = 1);
    CALL(mprotect(p + 2 * PAGE, 2 * PAGE, PROT_NONE));
    FAULT(*(volatile char *)(p + 2 * PAGE));
    CALL(mprotect(p, 8 * PAGE, PROT_READ | PROT_WRITE));
    SHOW(p[2 * PAGE]);
    FAULT(p[2 * PAGE] = 2);
    // Errors.
    CALL(mprotect(p + 1, PAGE, PROT_READ));
    CALL(mprotect(p, 0, PROT_READ));
    CALL(mprotect(p, PAGE, 0x100));
    CALL(mprotect(p, PAGE, PROT_GROWSDOWN | PROT_GROWSUP));
    CALL(mprotect(p, PAGE, PROT_GROWSDOWN | PROT_READ));
    CALL(mprotect((void *)0x800000000000, PAGE, PROT_READ));
    CALL(mprotect(p, -1UL, PROT_READ));
    CALL(mprotect(p, 1, PROT_READ));
    FAULT(p[PAGE - 1] = 1);
    // A hole: what comes before it is changed.
    CALL(mprotect(p, 8 * PAGE, PROT_READ | PROT_WRITE));
    munmap(p + 4 * PAGE, PAGE);
    CALL(mprotect(p, 8 * PAGE, PROT_READ));
    FAULT(p[3 * PAGE] = 1);
    FAULT(p[5 * PAGE] = 1);
    // Code.
    memcpy(p + 5 * PAGE, "\xb8\x2a\0\0\0\xc3", 6);
    FAULT(((int (*)(void))(p + 5 * PAGE))());
    CALL(mprotect(p + 5 * PAGE, PAGE, PROT_READ | PROT_EXEC));
    SHOW(((int (*)(void))(p + 5 * PAGE))());
    FAULT(p[5 * PAGE] = 1);
    // Never touched before the change.
    char *q = mmap(NULL, 2 * PAGE, PROT_NONE, ANON, -1, 0);
    CALL(mprotect(q, PAGE, PROT_READ | PROT_WRITE));
    SHOW(q[100]);
    FAULT(q[0] = 1);
    FAULT(q[PAGE] = 1);
    // Own code and constants.
    static const int constant[2048] = {1};
    uintptr_t page = ((uintptr_t)constant + PAGE) & -PAGE;
    FAULT(*(volatile int *)page = 1);
    CALL(mprotect((void *)page, 1, PROT_READ | PROT_WRITE));
    FAULT(*(volatile int *)page = 1);
    CALL(syscall(SYS_pkey_mprotect, (void *)page, 1, PROT_READ, -1));
    FAULT(*(volatile int *)page = 1);
    return 0;
}
