// The auxiliary vector as the C library hands it out.
// @variants gcc gcc-no-pie gcc-static gcc-static-pie musl musl-static
#include "test.h"
#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
extern char **environ;
int main(int argc, char **argv) {
    SHOW(getauxval(AT_PAGESZ)); SHOW(getauxval(AT_CLKTCK)); SHOW(getauxval(AT_PHENT)); SHOW(getauxval(AT_PHNUM) > 3); SHOW(getauxval(AT_UID)); SHOW(getauxval(AT_EUID)); SHOW(getauxval(AT_GID)); SHOW(getauxval(AT_EGID)); SHOW(getauxval(AT_SECURE)); SHOW(getauxval(AT_FLAGS)); SHOW(getauxval(AT_HWCAP) != 0); SHOW(getauxval(AT_MINSIGSTKSZ) >= 1000); SHOW(getauxval(51) >= 1000);
    puts((char *)getauxval(AT_PLATFORM)); CHECK(!strcmp((char *)getauxval(AT_EXECFN), argv[0])); CHECK(getauxval(AT_RANDOM) != 0); CHECK(getauxval(AT_SYSINFO_EHDR) % PAGE == 0 && getauxval(AT_SYSINFO_EHDR)); CHECK(memcmp((void *)getauxval(AT_SYSINFO_EHDR), "\177ELF", 4) == 0);
    ElfW(Phdr) *ph = (void *)getauxval(AT_PHDR); int load = 0, interp = 0; for (unsigned long i = 0; i < getauxval(AT_PHNUM); i++) { load += ph[i].p_type == PT_LOAD; interp += ph[i].p_type == PT_INTERP; } CHECK(load > 0); CHECK((getauxval(AT_BASE) != 0) == interp); if (interp) CHECK(memcmp((void *)getauxval(AT_BASE), "\177ELF", 4) == 0); extern char _start[]; CHECK(getauxval(AT_ENTRY) == (unsigned long)_start);
    char *random = (char *)getauxval(AT_RANDOM); int nonzero = 0; for (int i = 0; i < 16; i++) nonzero += random[i] != 0; CHECK(nonzero > 8);
    // Strings lie above the vectors, in order.
    CHECK((char **)environ == argv + argc + 1); CHECK(argv[0] > (char *)environ); char *last = argv[argc - 1]; CHECK(environ[0] == last + strlen(last) + 1); CHECK((uintptr_t)argv % 8 == 0);
    errno = 0; SHOW(getauxval(12345)); printf("%s\n", errno_name(errno)); CHECK((uintptr_t)&argc > 0x7f0000000000 || (uintptr_t)&argc > 0x100000);
    // Constructed order: AT_EXECFN, environment, arguments in memory.
    char *envp = environ[0]; CHECK((char *)getauxval(AT_EXECFN) > envp);
    return 0;
}
