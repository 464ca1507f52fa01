// Segments aligned to 2 MiB.
// @link -Wl,-z,max-page-size=2097152 -Wl,-z,separate-code
// @variants gcc gcc-no-pie gcc-static gcc-static-pie musl
#include "test.h"
#include <link.h>
#include <sys/auxv.h>
static char bss[200000]; static char data[70000] = {1};
int main(void) { ElfW(Phdr) *ph = (void *)getauxval(AT_PHDR); uintptr_t base = 0, worst = 0; for (size_t i = 0; i < getauxval(AT_PHNUM); i++) { if (ph[i].p_type == PT_PHDR) base = (uintptr_t)ph - ph[i].p_vaddr; if (ph[i].p_type == PT_LOAD && ph[i].p_align > worst) worst = ph[i].p_align; } SHOW(worst); CHECK(base % worst == 0); long sum = 0; for (int i = 0; i < 200000; i++) sum += bss[i]; for (int i = 0; i < 70000; i++) sum += data[i]; SHOW(sum); return 0; }
