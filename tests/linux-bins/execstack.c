// A program that asks for an executable stack (PT_GNU_STACK with PF_X): nested functions use it.
// @link -Wl,-z,execstack
// @variants gcc gcc-static musl
#include "test.h"
static int apply(int (*f)(int), int x) { return f(x); }
int main(int argc, char **argv) { int k = argc + 41; int add(int x) { return x + k; } SHOW(apply(add, 1)); char code[] = "\xb8\x07\0\0\0\xc3"; __asm__ volatile("" ::"r"(code) : "memory"); SHOW(((int (*)(void))code)()); return 0; }
