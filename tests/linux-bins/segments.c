// How the program's segments are mapped: rights, alignment, RELRO, the tail of bss. A static PIE
// has no PT_PHDR to find its base by, so it is not among the variants.
// @variants gcc gcc-no-pie gcc-static musl musl-static
#include "test.h"
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
static const int constant[1024] = {1}; static int data = 1; static char bss[3 * 4096 + 5];
static void *relocated = &data; int (*const relro)(const char *) = puts; extern char end[], edata[], etext[];
int main(void) {
    catch_faults(); FAULT(*(volatile int *)constant = 2); FAULT(*(volatile char *)main = 2); FAULT(data = 2); FAULT(((void (*)(void))&data)()); FAULT(*(int (*volatile *)(const char *))&relro = NULL);
    ElfW(Phdr) *ph = (void *)getauxval(AT_PHDR); size_t n = getauxval(AT_PHNUM); uintptr_t base = 0; for (size_t i = 0; i < n; i++) if (ph[i].p_type == PT_PHDR) base = (uintptr_t)ph - ph[i].p_vaddr; int wx = 0, dirty = 0; for (size_t i = 0; i < n; i++) if (ph[i].p_type == PT_LOAD) { wx += (ph[i].p_flags & 3) == 3; if (ph[i].p_memsz > ph[i].p_filesz) for (uintptr_t a = base + ph[i].p_vaddr + ph[i].p_memsz; a % PAGE; a++) dirty += *(volatile char *)a != 0; } SHOW(wx);
#ifdef __GLIBC__ // musl gives the rest of the page to malloc
    SHOW(dirty);
#endif

    long sum = 0; for (size_t i = 0; i < sizeof bss; i++) sum += bss[i]; SHOW(sum); CHECK((char *)&data < end && (char *)main < etext); CHECK(relocated == &data);
    return 0;
}
