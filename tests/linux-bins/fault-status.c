// Faults that nobody catches, by the status that they leave.
// @variants gcc gcc-static musl-static
// @case null-read null-read
// @case null-write null-write
// @case null-call null-call
// @case read-only read-only
// @case rodata rodata
// @case text text
// @case no-execute no-execute
// @case unmapped unmapped
// @case none none
// @case non-canonical non-canonical
// @case divide divide
// @case divide-overflow divide-overflow
// @case undefined undefined
// @case breakpoint breakpoint
// @case int3 int3
// @case stack-overflow stack-overflow
// @case past-end past-end
// @case unaligned unaligned
// @case ignored ignored
#include "test.h"
#pragma GCC diagnostic ignored "-Winfinite-recursion"
static int recurse(volatile char *above) {
    volatile char frame[4096];
    frame[0] = *above;
    return recurse(frame) + frame[0];
}
static const char constant[] = "constant";
int main(int argc, char **argv) {
    const char *how = argv[1];
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("%s\n", how);
    volatile long zero = argc - 2;
    char *page = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *data = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data[0] = (char)0xc3;
    if (!strcmp(how, "null-read")) return *(volatile int *)zero;
    if (!strcmp(how, "null-write")) *(volatile int *)(zero + 8) = 1;
    if (!strcmp(how, "null-call")) ((void (*)(void))zero)();
    if (!strcmp(how, "read-only")) *(volatile char *)page = 1;
    if (!strcmp(how, "rodata")) *(volatile char *)constant = 1;
    if (!strcmp(how, "text")) *(volatile char *)main = 1;
    if (!strcmp(how, "no-execute")) ((void (*)(void))data)();
    if (!strcmp(how, "unmapped")) { munmap(page, PAGE); return *(volatile char *)page; }
    if (!strcmp(how, "none")) { mprotect(data, PAGE, PROT_NONE); return *(volatile char *)data; }
    if (!strcmp(how, "non-canonical")) return *(volatile char *)(zero + 0x8000000000000000);
    if (!strcmp(how, "divide")) printf("%ld\n", 5 / zero);
    if (!strcmp(how, "divide-overflow")) printf("%ld\n", LONG_MIN / (zero - 1));
    if (!strcmp(how, "undefined")) __builtin_trap();
    if (!strcmp(how, "breakpoint")) __asm__ volatile("int $3");
    if (!strcmp(how, "int3")) __asm__ volatile("int3");
    if (!strcmp(how, "stack-overflow")) return recurse(data);
    if (!strcmp(how, "past-end")) {
        int fd = open("empty", O_RDWR | O_CREAT, 0600);
        ftruncate(fd, 10);
        char *map = mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
        printf("%d %d\n", map[9], map[PAGE - 1]);
        return ((volatile char *)map)[PAGE];
    }
    if (!strcmp(how, "unaligned")) {
        __asm__ volatile("movaps 1(%0), %%xmm0" ::"r"(data) : "xmm0");
    }
    if (!strcmp(how, "ignored")) {
        signal(SIGSEGV, SIG_IGN);
        return *(volatile int *)zero;
    }
    puts("no fault");
    return 0;
}
