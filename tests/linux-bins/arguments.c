// Arguments and environment, byte for byte.
// @case none
// @case words one two three
// @case empty '' x '' ''
// @case odd -- -x --help a=b * $HOME "q" 'single \n é
// @env TEST_VARIABLE=some value
// @env EMPTY=
// @env EQUALS=a=b=c
#include "test.h"
int main(int argc, char **argv) { for (int i = 1; i < argc; i++) printf("%d: <%s>\n", i, argv[i]); CHECK(argv[argc] == NULL); puts(getenv("TEST_VARIABLE")); printf("<%s> <%s>\n", getenv("EMPTY"), getenv("EQUALS")); CHECK(getenv("NOT_THERE") == NULL); puts(getenv("HOME")); puts(getenv("PATH")); CHECK(strrchr(argv[0], '/') != NULL); setenv("NEW", "v", 1); puts(getenv("NEW")); return 0; }
