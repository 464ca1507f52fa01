// Thread-local variables, constructors, destructors, indirect functions and relocations.
// @variants gcc gcc-no-pie gcc-static gcc-static-pie musl musl-static
#include "test.h"
static _Thread_local int zero; static _Thread_local int value = 42; static _Thread_local char text[] = "thread-local"; static _Thread_local long aligned __attribute__((aligned(64))) = 7; _Thread_local int exported = 5; static _Thread_local char large[100000] = {1};
static char order[16]; static int at;
__attribute__((constructor(101))) static void first(void) { order[at++] = '1'; }
__attribute__((constructor(102))) static void second(void) { order[at++] = '2'; }
__attribute__((constructor)) static void third(void) { order[at++] = '3'; }
__attribute__((destructor)) static void end(void) { printf("destroyed %s\n", order); }
static char bss[300000]; static char data[5000] = {1, 2, 3}; const char *const pointers[] = {"one", "two", "three"}; static int (*const functions[])(const char *) = {puts, puts};
#ifdef __GLIBC__
static int fast(int x) { return x * 3; } static int (*choose(void))(int) { return fast; } int indirect(int x) __attribute__((ifunc("choose")));
#else
static int indirect(int x) { return x * 3; }
#endif
int main(void) {
    SHOW(zero); SHOW(value); puts(text); SHOW(aligned); CHECK((uintptr_t)&aligned % 64 == 0); SHOW(exported); SHOW(large[0] + large[99999]); value = 43; text[0] = 'T'; SHOW(value); puts(text); puts(order); SHOW(indirect(14)); puts(pointers[1]); functions[1]("through a pointer");
    long sum = 0; for (size_t i = 0; i < sizeof bss; i++) sum += bss[i]; SHOW(sum); SHOW(data[0] + data[1] + data[2] + data[3] + data[4999]); memset(bss, 1, sizeof bss);
    unsigned long self; __asm__("mov %%fs:0, %0" : "=r"(self)); CHECK(*(unsigned long *)self == self);
    return 0;
}
