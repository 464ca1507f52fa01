// open, openat and creat: flags, modes and errors.
#include "test.h"
int main(void) {
    umask(022);
    CALL(open("none", O_RDONLY));
    CALL(open("", O_RDONLY | O_CREAT, 0600));
    CALL(open("a", O_RDWR | O_CREAT | O_EXCL, 0666));
    CALL(open("a", O_RDWR | O_CREAT | O_EXCL, 0666));
    CALL(open("a", O_RDWR | O_CREAT, 0600));
    CALL(close(3)); CALL(close(4)); CALL(close(4));
    CALL(open("b", O_WRONLY | O_CREAT, 0751));
    CALL(write(3, "0123456789", 10));
    char c;
    CALL(read(3, &c, 1));
    CALL(close(3));
    CALL(open("b", O_RDONLY));
    CALL(write(3, "x", 1));
    CALL(read(3, &c, 1)); SHOW(c);
    CALL(close(3));
    CALL(open("b", O_RDWR | O_TRUNC));
    CALL(read(3, &c, 1));
    CALL(close(3));
    // Appending: every write goes to the end.
    CALL(open("b", O_RDWR | O_APPEND));
    CALL(write(3, "one", 3)); CALL(lseek(3, 0, SEEK_SET)); CALL(write(3, "two", 3));
    CALL(lseek(3, 0, SEEK_CUR)); CALL(pwrite(3, "three", 5, 0));
    CALL(fcntl(3, F_SETFL, 0)); CALL(pwrite(3, "X", 1, 0));
    CALL(close(3));
    show_file("b");
    // Directories.
    CALL(mkdir("dir", 0777));
    CALL(open("dir", O_RDONLY)); CALL(read(3, &c, 1)); CALL(write(3, "x", 1)); CALL(close(3));
    CALL(open("dir", O_WRONLY)); CALL(open("dir", O_RDWR)); CALL(open("dir", O_RDONLY | O_CREAT, 0600));
    CALL(open("dir", O_RDONLY | O_TRUNC));
    CALL(open("dir", O_RDONLY | O_DIRECTORY)); CALL(close(3));
    CALL(open("a", O_RDONLY | O_DIRECTORY)); CALL(open("a/", O_RDONLY)); CALL(open("dir/", O_RDONLY));
    CALL(close(3));
    CALL(open("new/", O_RDONLY | O_CREAT, 0600));
    CALL(open("a/x", O_RDONLY)); CALL(open("a/x", O_RDONLY | O_CREAT, 0600)); CALL(open("none/x", O_RDONLY | O_CREAT, 0600));
    CALL(open("new", O_RDONLY | O_CREAT | O_DIRECTORY, 0600));
    // Symbolic links.
    CALL(symlink("a", "link")); CALL(symlink("target", "dangling")); CALL(symlink("loop", "loop"));
    CALL(open("link", O_RDONLY)); CALL(close(3));
    CALL(open("link", O_RDONLY | O_NOFOLLOW)); CALL(open("link", O_WRONLY | O_CREAT | O_EXCL, 0600));
    CALL(open("dangling", O_RDONLY)); CALL(open("dangling", O_RDWR | O_CREAT | O_EXCL, 0600));
    CALL(open("dangling", O_RDWR | O_CREAT, 0600)); CALL(close(3));
    CALL(open("loop", O_RDONLY)); CALL(open("link/", O_RDONLY));
    CALL(open("link", O_PATH | O_NOFOLLOW)); CALL(close(3));
    // Paths only.
    CALL(open("b", O_PATH)); CALL(read(3, &c, 1)); CALL(write(3, &c, 1)); CALL(fchmod(3, 0600));
    CALL(lseek(3, 0, SEEK_SET)); CALL(ftruncate(3, 0)); CALL(fsync(3));
    struct stat st;
    CALL(fstat(3, &st)); SHOW(st.st_size);
    CALL(fcntl(3, F_GETFL) == O_PATH); CALL(dup(3)); CALL(close(4)); CALL(close(3));
    // A directory file descriptor as base.
    CALL(open("dir", O_RDONLY | O_DIRECTORY));
    CALL(openat(3, "inside", O_WRONLY | O_CREAT, 0640)); CALL(close(4));
    CALL(openat(3, "../a", O_RDONLY)); CALL(close(4));
    CALL(openat(99, "a", O_RDONLY)); CALL(openat(99, "/", O_RDONLY)); CALL(close(4));
    CALL(openat(3, "", O_RDONLY)); CALL(openat(AT_FDCWD, "a", O_RDONLY)); CALL(close(4));
    int file = open("a", O_RDONLY);
    CALL(openat(file, "x", O_RDONLY)); CALL(close(file)); CALL(close(3));
    // Through links to open files, which may be no directories: /dev/stderr is one.
    int pipe_ends[2];
    CALL(pipe(pipe_ends)); CALL(dup2(pipe_ends[1], 9));
    CALL(open("/proc/self/fd/9", O_WRONLY | O_CREAT | O_TRUNC, 0600) >= 0);
    CALL(open("/dev/fd/9", O_WRONLY | O_CREAT | O_APPEND, 0600) >= 0);
    CALL(open("/dev/fd/9", O_WRONLY | O_CREAT | O_EXCL, 0600));
    CALL(open("/dev/fd/9/", O_WRONLY | O_CREAT, 0600)); CALL(open("/dev/fd/9/x", O_WRONLY | O_CREAT, 0600));
    CALL(open("/proc/self/cwd", O_RDONLY | O_CREAT, 0600)); CALL(open("/dev/fd/99", O_WRONLY | O_CREAT, 0600));
    for (int fd = 3; fd < 12; fd++)
        close(fd);
    // Files without a name.
    CALL(open(".", O_TMPFILE | O_RDWR, 0600)); CALL(write(3, "t", 1));
    CALL(fstat(3, &st)); SHOW(st.st_nlink);
    CALL(linkat(AT_FDCWD, "/proc/self/fd/3", AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    CALL(close(3));
    CALL(open(".", O_TMPFILE | O_RDONLY, 0600)); CALL(open("a", O_TMPFILE | O_RDWR, 0600));
    // Flags as fcntl tells them; nonsense is ignored.
    int flags = open("a", O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOATIME | O_SYNC);
    printf("%o %o\n", fcntl(flags, F_GETFL), fcntl(flags, F_GETFD));
    close(flags);
    flags = open("a", O_RDONLY | O_DSYNC | O_NOCTTY | O_APPEND);
    printf("%o %o\n", fcntl(flags, F_GETFL), fcntl(flags, F_GETFD));
    close(flags);
    CALL(open("a", 3)); CALL(read(3, &c, 1)); CALL(write(3, &c, 1)); CALL(close(3));
    CALL(open("a", O_RDONLY | 0x40000000)); CALL(close(3));
    CALL(open((char *)1, O_RDONLY)); CALL(open("nul\n", O_RDONLY | O_CREAT, 0600)); CALL(close(3));
    CALL(creat("c", 0444)); CALL(write(3, "x", 1)); CALL(close(3));
    CALL(open("c", O_RDONLY)); CALL(close(3));
    umask(0);
    CALL(open("all", O_RDONLY | O_CREAT, 07777)); CALL(close(3));
    CALL(open("running", O_RDONLY | O_CREAT, 0777)); CALL(close(3));
    manifest(".");
    return 0;
}
