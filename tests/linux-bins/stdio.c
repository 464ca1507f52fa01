// The C library's files, formats, directories and environment, as programs use them.
#include "test.h"
#include <time.h>
#include <wchar.h>
#include <locale.h>
#include <ftw.h>
#include <glob.h>
static int entries; static int count_entry(const char *p, const struct stat *s, int t, struct FTW *f) { entries++; return 0; }
static int by_int(const void *a, const void *b) { return *(int *)a - *(int *)b; }
int main(void) {
    FILE *f = fopen("f", "w+"); for (int i = 0; i < 1000; i++) fprintf(f, "line %d %x %g\n", i, i * i, i / 7.0); CHECK(fseek(f, 0, SEEK_END) == 0); SHOW(ftell(f)); rewind(f); char line[100]; int lines = 0; while (fgets(line, 100, f)) lines++; SHOW(lines); CHECK(feof(f)); fseek(f, 100, SEEK_SET); int n; SHOW(fscanf(f, "%*s %d", &n)); SHOW(n); SHOW(ungetc('q', f)); SHOW(fgetc(f)); fclose(f); f = fopen("f", "a"); fputs("appended\n", f); fclose(f); f = fopen("f", "r"); char *text = NULL; size_t size = 0; while (getline(&text, &size, f) > 0); fputs(text, stdout); fclose(f); f = tmpfile(); CHECK(f != NULL); char name[] = "tmpXXXXXX"; CHECK(mkstemp(name) > 2); char dir[] = "dirXXXXXX"; CHECK(mkdtemp(dir) != NULL); CHECK(access(dir, W_OK) == 0); char *mem; size_t memsize; f = open_memstream(&mem, &memsize); fprintf(f, "%s %5.2f|%-8d|%+d|%o|%c|%p", "memory", 3.14159, 42, 7, 64, 'x', NULL); fclose(f); puts(mem);
    mkdir("tree", 0755); mkdir("tree/a", 0755); put_file("tree/a/x.txt", ""); put_file("tree/y.txt", ""); put_file("tree/z.c", ""); nftw("tree", count_entry, 10, FTW_PHYS); SHOW(entries); glob_t g; SHOW(glob("tree/*.txt", 0, NULL, &g)); SHOW(g.gl_pathc); puts(g.gl_pathv[0]); struct tm tm = {.tm_year = 124, .tm_mon = 1, .tm_mday = 29}; SHOW(timegm(&tm)); strftime(line, 100, "%A %Y-%m-%d %H:%M:%S %j", &tm); puts(line); time_t t = 1700000000; puts(asctime(localtime_r(&t, &tm))); setlocale(LC_ALL, "C.UTF-8"); wchar_t w[10]; SHOW(mbstowcs(w, "h\xc3\xa9llo", 10)); int a[1000]; for (int i = 0; i < 1000; i++) a[i] = i * 7919 % 1000; qsort(a, 1000, sizeof *a, by_int); int sorted = 1; for (int i = 0; i < 1000; i++) sorted &= a[i] == i; SHOW(sorted); SHOW(strtol("-0x7f", NULL, 16)); printf("%.17g %a\n", strtod("1e-300", NULL), 0.1); SHOW(sysconf(_SC_PAGESIZE)); SHOW(sysconf(_SC_CLK_TCK)); CHECK(sysconf(_SC_NPROCESSORS_ONLN) >= 1); CHECK(sysconf(_SC_PHYS_PAGES) > 0); remove("f"); SHOW(remove("tree")); puts(errno_name(errno)); perror("as expected"); return 0;
}
