// Hard and symbolic links, unlink, mkdir, rmdir, mknod and their errors.
#include "test.h"
#include <sys/sysmacros.h>
int main(void) {
    umask(022);
    struct stat st;
    put_file("a", "text");
    CALL(link("a", "b")); CALL(link("a", "b")); CALL(link("none", "c"));
    stat("a", &st); SHOW(st.st_nlink);
    ino_t ino = st.st_ino;
    stat("b", &st); CHECK(st.st_ino == ino);
    CALL(mkdir("d", 0777)); CALL(mkdir("d", 0777)); CALL(mkdir("a", 0777)); CALL(mkdir("a/x", 0777));
    CALL(mkdir("none/x", 0777)); CALL(mkdir("", 0777)); CALL(mkdir("/", 0777)); CALL(mkdir(".", 0777));
    CALL(mkdir("..", 0777)); CALL(mkdir("d/x/", 0700)); CALL(mkdir("sticky", 07777));
    CALL(link("d", "e")); CALL(link("a", "d/")); CALL(link("a", "none/x")); CALL(link("a/", "z"));
    CALL(unlink("d")); CALL(unlink("none")); CALL(unlink("")); CALL(unlink("a/")); CALL(unlink("."));
    CALL(rmdir("d")); CALL(rmdir("a")); CALL(rmdir("none")); CALL(rmdir(".")); CALL(rmdir("d/."));
    CALL(rmdir("d/..")); CALL(rmdir("/")); CALL(rmdir("d/x")); CALL(rmdir("d/")); CALL(rmdir("d"));
    // Symbolic links.
    char target[32];
    CALL(symlink("a", "s")); CALL(symlink("a", "s")); CALL(symlink("", "t")); CALL(symlink("x", ""));
    CALL(readlink("s", target, sizeof target)); CALL(readlink("s", target, 0)); CALL(readlink("a", target, 32));
    CALL(readlink("none", target, 32)); CALL(symlink("0123456789", "long")); CALL(readlink("long", target, 5));
    printf("%.5s\n", target);
    lstat("s", &st); SHOW(st.st_size); SHOW(st.st_mode);
    CALL(link("s", "s2")); lstat("s2", &st); SHOW(S_ISLNK(st.st_mode));
    CALL(linkat(AT_FDCWD, "s", AT_FDCWD, "s3", AT_SYMLINK_FOLLOW)); lstat("s3", &st); SHOW(S_ISREG(st.st_mode));
    CALL(linkat(AT_FDCWD, "s", AT_FDCWD, "s4", 0x8000));
    CALL(linkat(AT_FDCWD, "", AT_FDCWD, "s4", 0));
    int fd = open("a", O_RDONLY);
    CALL(linkat(fd, "", AT_FDCWD, "s4", AT_EMPTY_PATH));
    CALL(linkat(fd, "x", AT_FDCWD, "s5", 0));
    CALL(unlink("s2")); CALL(unlink("s3")); CALL(unlink("s4"));
    // Chains and loops.
    CALL(symlink("s", "c1"));
    char from[8], to[8];
    for (int i = 1; i < 45; i++) {
        sprintf(from, "c%d", i); sprintf(to, "c%d", i + 1);
        symlink(from, to);
    }
    CALL(stat("c38", &st)); CALL(stat("c39", &st)); CALL(stat("c40", &st)); CALL(stat("c41", &st));
    CALL(symlink("l2", "l1")); CALL(symlink("l1", "l2")); CALL(stat("l1", &st)); CALL(lstat("l1", &st));
    CALL(unlink("l1")); CALL(stat("l2", &st));
    // Removed files that are open.
    CALL(unlink("a")); CALL(unlink("b"));
    fstat(fd, &st); SHOW(st.st_nlink); SHOW(st.st_size);
    CALL(read(fd, target, 4)); printf("%.4s\n", target);
    CALL(linkat(fd, "", AT_FDCWD, "back", AT_EMPTY_PATH));
    CALL(close(fd));
    // A removed working directory.
    CALL(mkdir("w", 0700)); CALL(chdir("w")); CALL(rmdir("../w"));
    CALL(open("x", O_CREAT | O_WRONLY, 0600)); CALL(mkdir("x", 0700)); CALL(stat(".", &st));
    SHOW(st.st_nlink);
    CHECK(getcwd(target, sizeof target) == NULL);
    printf("%s\n", errno_name(errno));
    CALL(stat("..", &st)); CALL(chdir(".."));
    // unlinkat.
    CALL(mkdir("u", 0700)); CALL(unlinkat(AT_FDCWD, "u", 0)); CALL(unlinkat(AT_FDCWD, "u", AT_REMOVEDIR));
    CALL(unlinkat(AT_FDCWD, "u", 77)); CALL(unlinkat(99, "u", 0));
    put_file("v", ""); CALL(unlinkat(AT_FDCWD, "v", AT_REMOVEDIR)); CALL(unlinkat(AT_FDCWD, "v", 0));
    // Nodes.
    CALL(mknod("fifo", S_IFIFO | 0666, 0)); CALL(mknod("regular", S_IFREG | 0644, 0)); CALL(mknod("plain", 0600, 0));
    CALL(mknod("null", S_IFCHR | 0666, makedev(1, 3))); CALL(mknod("dir", S_IFDIR | 0755, 0)); CALL(mknod("fifo", S_IFIFO, 0));
    CALL(mknod("link", S_IFLNK | 0755, 0)); CALL(mknod("sock", S_IFSOCK | 0755, 0));
    stat("null", &st); CHECK(st.st_rdev == makedev(1, 3));
    // Names.
    char name[4200];
    memset(name, 'n', sizeof name);
    name[255] = 0; CALL(open(name, O_CREAT | O_WRONLY, 0600) >= 0);
    name[255] = 'n'; name[256] = 0; CALL(open(name, O_CREAT | O_WRONLY, 0600));
    for (int i = 0; i < 4200; i += 2) memcpy(name + i, "./", 2);
    name[4095] = 0; CALL(stat(name, &st)); name[4095] = '/'; name[4096] = 0; CALL(stat(name, &st));
    CALL(symlink(name, "toolong"));
    manifest(".");
    return 0;
}
