// The heap's end: growing, shrinking, refusing; pages are zero and come back zero.
#include "test.h"
#include <sys/resource.h>
static char *raw_brk(void *to) { return (char *)syscall(SYS_brk, to); }
int main(void) {
    // The output's buffer must not come from the heap that is moved about here.
    static char buffer[65536];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    catch_faults();
    char *start = raw_brk(NULL);
    CHECK(raw_brk(NULL) == start);
    CHECK(raw_brk((void *)1) == start);
    CHECK(raw_brk(start + 3 * PAGE) == start + 3 * PAGE);
    int zeros = 1;
    for (int i = 0; i < 3 * PAGE; i++) zeros &= start[i] == 0;
    SHOW(zeros);
    memset(start, 1, 3 * PAGE);
    // Ends within a page: the rest of the page stays usable.
    CHECK(raw_brk(start + PAGE + 100) == start + PAGE + 100);
    FAULT(start[PAGE + 200] = 1);
    CHECK(raw_brk(start + 3 * PAGE) == start + 3 * PAGE);
    SHOW(start[PAGE + 99]);
    SHOW(start[2 * PAGE + 100]);
    CHECK(raw_brk(start) == start);
    CHECK(raw_brk(start + 64 * 1024 * 1024) == start + 64 * 1024 * 1024);
    FAULT(start[64 * 1024 * 1024 - 1] = 1);
    CHECK(raw_brk(start) == start);
    // A mapping in the way.
    char *page = (char *)(((uintptr_t)start + 16 * PAGE) & -PAGE);
    CHECK(mmap(page, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
    CHECK(raw_brk(page + 4 * PAGE) == start);
    CHECK(raw_brk(page - PAGE) == page - PAGE);
    // The data limit.
    struct rlimit limit = {0, RLIM_INFINITY};
    CALL(setrlimit(RLIMIT_DATA, &limit));
    CHECK(raw_brk(page - PAGE + 100) == page - PAGE);
    limit.rlim_cur = RLIM_INFINITY;
    CALL(setrlimit(RLIMIT_DATA, &limit));
    // Through the C library: musl has no sbrk.
    CHECK(raw_brk((void *)-1) == page - PAGE);
    return 0;
}
