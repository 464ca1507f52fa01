// rename, renameat, renameat2: every pair of kinds, flags and errors.
#include "test.h"
#include <ftw.h>
static int discard(const char *path, const struct stat *st, int type, struct FTW *at) {
    return at->level > 0 ? remove(path) : 0;
}
static void fresh(void) {
    nftw(".", discard, 16, FTW_DEPTH | FTW_PHYS);
    put_file("file", "file"); put_file("file2", "file2");
    mkdir("empty", 0755); mkdir("full", 0755); mkdir("full/sub", 0755); put_file("full/f", "x");
    symlink("file", "link"); symlink("nowhere", "dangling");
}
static void try(const char *from, const char *to, unsigned flags) {
    long result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
    printf("rename %s -> %s (%u): %s\n", from, to, flags, result ? errno_name(errno) : "done");
}
int main(void) {
    const char *kinds[] = {"file", "empty", "full", "link", "dangling", "none"};
    for (unsigned flags = 0; flags < 3; flags++)
        for (int from = 0; from < 6; from++)
            for (int to = 0; to < 6; to++) {
                fresh();
                try(kinds[from], kinds[to], flags);
            }
    fresh();
    manifest(".");
    try("file", "full/moved", 0);
    try("full", "full/sub/inside", 0);
    try("full", "full", 0);
    try("full/.", "x", 0);
    try("full/..", "x", 0);
    try(".", "x", 0);
    try("file2", "x/", 0);
    try("file2", "none/x", 0);
    try("file2", "file2/x", 0);
    try("empty/", "renamed/", 0);
    try("file2", "", 0);
    try("", "x", 0);
    try("file2", "x", 8);
    try("file2", "x", 3);
    // Two names of one file: nothing happens.
    CALL(link("file2", "hard"));
    try("file2", "hard", 0);
    show_file("file2"); show_file("hard");
    // An open file keeps its contents when another takes its name.
    put_file("old", "old"); put_file("new", "new");
    int fd = open("old", O_RDONLY);
    CALL(rename("new", "old"));
    char text[4] = "";
    CALL(read(fd, text, 3)); puts(text);
    struct stat st;
    fstat(fd, &st); SHOW(st.st_nlink);
    show_file("old");
    char name[300];
    memset(name, 'n', sizeof name); name[299] = 0;
    CALL(rename("old", name));
    CALL(renameat(99, "old", AT_FDCWD, "y"));
    CALL(renameat(fd, "old", AT_FDCWD, "y"));
    // Directories: the parent's link count, and "..".
    mkdir("p", 0755); mkdir("q", 0755); mkdir("p/c", 0755);
    CALL(rename("p/c", "q/c"));
    stat("p", &st);
    nlink_t p = st.st_nlink;
    stat("q", &st); CHECK(st.st_nlink == p + 1);
    struct stat up;
    stat("q/c/..", &up); CHECK(up.st_ino == st.st_ino);
    manifest(".");
    return 0;
}
