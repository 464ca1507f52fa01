#include <stdio.h>
_Thread_local int library_zero; _Thread_local int library_value = 17; static _Thread_local char big[10000] = "library";
__attribute__((constructor)) static void loaded(void) { puts("library loaded"); }
__attribute__((destructor)) static void unloaded(void) { puts("library unloaded"); }
int library_function(int x) { library_value += x; library_zero++; return library_value + big[0] - 'l'; }
const char *library_text(void) { return big; }
extern int program_function(int);
int library_calls_back(int x) { return program_function(x) + 1; }
