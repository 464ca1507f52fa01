// Every way to end with a status.
// @case zero return 0
// @case one return 1
// @case seven exit 7
// @case most exit 255
// @case wrapped exit 256
// @case negative exit -1
// @case quick _exit 9
// @case group group 10
// @case thread thread 11
// @case atexit atexit 12
#include "test.h"
static void first(void) { puts("first handler"); }
static void second(void) { puts("second handler"); }
__attribute__((destructor)) static void destructor(void) { puts("destructor"); }
int main(int argc, char **argv) {
    int status = atoi(argv[2]);
    printf("about to end");
    if (!strcmp(argv[1], "exit")) exit(status);
    if (!strcmp(argv[1], "_exit")) _exit(status);
    if (!strcmp(argv[1], "group")) syscall(SYS_exit_group, status);
    if (!strcmp(argv[1], "thread")) syscall(SYS_exit, status);
    if (!strcmp(argv[1], "atexit")) { atexit(first); atexit(second); }
    return status;
}
