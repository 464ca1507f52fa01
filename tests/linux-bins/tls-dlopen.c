// A shared object opened at run time, with thread-local variables, that calls back.
// @variants gcc musl
// @library tls-dlopen-library.c
// @link -ldl -rdynamic
#include "test.h"
#include <dlfcn.h>
int program_function(int x) { return x * 2; }
int main(void) {
    CHECK(dlopen("./none.so", RTLD_NOW) == NULL); void *library = dlopen(getenv("TEST_LIBRARY"), RTLD_NOW); if (!library) { puts(dlerror()); return 1; }
    int (*function)(int) = dlsym(library, "library_function"); SHOW(function(1)); SHOW(function(2)); int *zero = dlsym(library, "library_zero"); SHOW(*zero); const char *(*text)(void) = dlsym(library, "library_text"); puts(text()); int (*back)(int) = dlsym(library, "library_calls_back"); SHOW(back(20)); CHECK(dlsym(library, "none") == NULL); Dl_info info; CHECK(dladdr(function, &info) && !strcmp(info.dli_sname, "library_function")); SHOW(dlclose(library)); CHECK(dlsym(RTLD_DEFAULT, "main") == main);
    return 0;
}
