// The smallest program of a C library.
// @variants gcc gcc-no-pie gcc-static gcc-static-pie musl musl-static
#include <stdio.h>
int main(void) { puts("hello, world"); return 0; }
