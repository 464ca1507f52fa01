// Walking paths: dots, slashes, lengths, links in the middle, the working directory, chroot.
#include "test.h"
static void at(const char *path) { struct stat st; printf("%s: %s\n", path, stat(path, &st) ? errno_name(errno) : S_ISDIR(st.st_mode) ? "directory" : "file"); }
static char start[PATH_MAX];
static void where(void) { char now[PATH_MAX]; if (!getcwd(now, sizeof now)) printf("getcwd: %s\n", errno_name(errno)); else if (!strncmp(now, start, strlen(start))) printf("at .%s\n", now + strlen(start)); else puts(now); }
int main(void) {
    getcwd(start, sizeof start); mkdir("a", 0755); mkdir("a/b", 0755); mkdir("a/b/c", 0755); put_file("a/b/f", "x"); symlink("a/b", "ab"); symlink("../..", "a/b/up"); symlink("b/f", "a/bf"); symlink("/", "root"); symlink("f/", "a/b/slash"); symlink(".", "self");
    const char *paths[] = {"a//b///f", "a/./b/./f", "a/b/../b/f", "a/b/c/../../b/f", "ab/f", "ab/../b/f", "ab/up/a/bf", "a/bf", "a/bf/", "a/bf/.", "a/b/slash", "root/dev/null", "root/../../dev", "self/self/self/a", "/..", "/../dev/null", "//dev//null", "/.", "a/b/f/..", "a/none/../b", "a/b/", "a/b/.", "a/b/..", "...", "./.", "/dev/null/", "a/b/f/", "/proc/self/cwd/a", "/proc/self/root/dev", "/dev/fd/0", "/dev/stdin"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) at(paths[i]);
    where(); CALL(chdir("a/b")); where(); at("f"); at("../b/f"); CALL(chdir("up")); where(); CALL(chdir("ab")); where(); CALL(chdir("f")); CALL(chdir("none")); CALL(chdir("")); CALL(chdir(start));
    int fd = open("a/b/c", O_RDONLY), path = open("a", O_PATH), file = open("a/b/f", O_RDONLY); CALL(fchdir(fd)); where(); CALL(fchdir(path)); where(); CALL(fchdir(file)); CALL(fchdir(99)); CALL(chdir("b/c")); CALL(rename(".", "x")); CALL(rename("../../b", "../../../moved")); where(); CALL(chdir("..")); where(); CALL(chdir(start));
    char small[2]; errno = 0; CHECK(getcwd(small, 2) == NULL && errno == ERANGE); CALL(syscall(SYS_getcwd, start + 0, 0)); CALL(syscall(SYS_getcwd, (void *)1, 4096)); CALL(syscall(SYS_getcwd, start, PATH_MAX) == (long)strlen(start) + 1);
    // realpath of odd paths.
    char real[PATH_MAX]; symlink("moved", "m"); CHECK(realpath("m/../m/c/..", real) != NULL); puts(real + strlen(start)); CHECK(realpath("none", real) == NULL);
    // Deep nesting.
    for (int i = 0; i < 60; i++) { mkdir("deep-directory-name-of-some-length-deep-directory-name-of-some-length", 0755); if (chdir("deep-directory-name-of-some-length-deep-directory-name-of-some-length")) break; }
    errno = 0; char *end = getcwd(real, sizeof real); printf("%s\n", end ? "deep cwd" : errno_name(errno)); put_file("bottom", "b"); show_file("bottom"); CALL(chdir(start));
    CALL(chroot("none")); CALL(chroot("a")); CALL(chdir("/")); getcwd(real, sizeof real); puts(real); at("/../.."); at("/dev"); at("bf");
    return 0;
}
