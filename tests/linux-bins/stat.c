// The stat family, statx, statfs, access, and what they say about every kind of file.
#include "test.h"
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#ifndef STATX_BASIC_STATS
#define STATX_BASIC_STATS 0x7ff
struct statx_timestamp { int64_t tv_sec; uint32_t tv_nsec; int32_t pad; };
struct statx { uint32_t stx_mask, stx_blksize; uint64_t stx_attributes; uint32_t stx_nlink, stx_uid, stx_gid; uint16_t stx_mode, pad1; uint64_t stx_ino, stx_size, stx_blocks, stx_attributes_mask; struct statx_timestamp stx_atime, stx_btime, stx_ctime, stx_mtime; uint32_t stx_rdev_major, stx_rdev_minor, stx_dev_major, stx_dev_minor; uint64_t spare[14]; };
#endif
static void show(const char *name, struct stat *st) {
    printf("%s: mode %o links %d uid %d gid %d size %lld blksize %ld rdev %x blocks %lld\n", name, st->st_mode, S_ISDIR(st->st_mode) ? 0 : (int)st->st_nlink,
        st->st_uid, st->st_gid, S_ISDIR(st->st_mode) ? 0 : (long long)st->st_size, (long)st->st_blksize, (unsigned)st->st_rdev, S_ISDIR(st->st_mode) ? 0 : (long long)st->st_blocks);
}
static void all(const char *path) {
    struct stat st, lst;
    printf("%s: stat %s, ", path, stat(path, &st) ? errno_name(errno) : "done");
    printf("lstat %s\n", lstat(path, &lst) ? errno_name(errno) : "done");
    if (!lstat(path, &lst)) show(path, &lst);
}
int main(void) {
    umask(022);
    struct stat st, st2;
    put_file("file", "0123456789"); chmod("file", 04751); mkdir("dir", 01777); symlink("file", "link"); symlink("none", "dangling"); mkfifo("fifo", 0600);
    char block[10000] = "x"; int fd = open("big", O_RDWR | O_CREAT, 0600); write(fd, block, 10000);
    const char *paths[] = {"file", "dir", "link", "dangling", "fifo", "big", "none", "file/x", "", "dir/.", "dir/..", "link/", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) all(paths[i]);
    stat("file", &st); stat("link", &st2); CHECK(st.st_ino == st2.st_ino && st.st_dev == st2.st_dev); lstat("link", &st2); CHECK(st.st_ino != st2.st_ino);
    CALL(fstat(99, &st)); CALL(syscall(SYS_stat, "file", 1)); CALL(stat((void *)1, &st)); CALL(fstat(fd, &st));
    CALL(fstatat(AT_FDCWD, "link", &st, AT_SYMLINK_NOFOLLOW)); SHOW(S_ISLNK(st.st_mode)); CALL(fstatat(fd, "", &st, AT_EMPTY_PATH)); SHOW(st.st_size); CALL(fstatat(fd, "", &st, 0)); CALL(fstatat(fd, "x", &st, 0)); CALL(fstatat(99, "/", &st, 0)); CALL(fstatat(AT_FDCWD, "file", &st, 0x4000)); CALL(fstatat(AT_FDCWD, "", &st, AT_EMPTY_PATH)); SHOW(S_ISDIR(st.st_mode));
    // statx.
    struct statx x;
    CALL(syscall(SYS_statx, AT_FDCWD, "file", 0, STATX_BASIC_STATS, &x)); printf("%x %o %d %llu %llu\n", x.stx_mask & 0x7ff, x.stx_mode, x.stx_nlink, (long long)x.stx_size, (long long)x.stx_blocks); stat("file", &st); CHECK(x.stx_ino == st.st_ino); CHECK(x.stx_mtime.tv_sec == st.st_mtim.tv_sec && x.stx_mtime.tv_nsec == st.st_mtim.tv_nsec); CHECK(makedev(x.stx_dev_major, x.stx_dev_minor) == st.st_dev);
    CALL(syscall(SYS_statx, AT_FDCWD, "/dev/null", 0, STATX_BASIC_STATS, &x)); printf("%u %u\n", x.stx_rdev_major, x.stx_rdev_minor);
    CALL(syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &x)); SHOW(x.stx_size); CALL(syscall(SYS_statx, fd, "", 0, 0x7ff, &x)); CALL(syscall(SYS_statx, AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, 0x7ff, &x)); printf("%o\n", x.stx_mode); CALL(syscall(SYS_statx, AT_FDCWD, "file", 0x8000000, 0x7ff, &x)); CALL(syscall(SYS_statx, AT_FDCWD, "file", 0, 0x80000000, &x)); CALL(syscall(SYS_statx, AT_FDCWD, "none", 0, 0x7ff, &x)); CALL(syscall(SYS_statx, AT_FDCWD, "file", 0x6000, 0x7ff, &x)); CALL(syscall(SYS_statx, AT_FDCWD, "file", 0x2000, 0, &x)); CALL(syscall(SYS_statx, AT_FDCWD, "file", 0, 0x7ff, 1));
    // File systems.
    struct statfs fs; struct statvfs vfs;
    CALL(statfs(".", &fs)); printf("type %lx bsize %ld namelen %ld frsize %ld\n", (long)fs.f_type, (long)fs.f_bsize, (long)fs.f_namelen, (long)fs.f_frsize); CHECK(fs.f_bavail > 0 && fs.f_blocks >= fs.f_bfree); CALL(fstatfs(fd, &fs)); CALL(statfs("none", &fs)); CALL(fstatfs(99, &fs)); CALL(statfs("/proc", &fs)); printf("type %lx\n", (long)fs.f_type); CALL(statvfs(".", &vfs)); SHOW(vfs.f_namemax);
    int p[2]; pipe(p); CALL(fstatfs(p[0], &fs)); printf("type %lx\n", (long)fs.f_type);
    // access, as root and as who one is.
    CALL(access("file", F_OK)); CALL(access("file", R_OK | W_OK | X_OK)); CALL(access("none", F_OK)); CALL(access("file", 8)); CALL(access("big", X_OK)); CALL(access("big", R_OK | W_OK)); CALL(access("dir", X_OK)); CALL(access("file/x", F_OK)); CALL(access("dangling", F_OK)); CALL(faccessat(AT_FDCWD, "dangling", F_OK, AT_SYMLINK_NOFOLLOW)); CALL(faccessat(AT_FDCWD, "file", R_OK, AT_EACCESS)); CALL(faccessat(99, "file", R_OK, 0)); CALL(syscall(439, AT_FDCWD, "file", R_OK, 0x40000)); CALL(syscall(439, fd, "", R_OK, AT_EMPTY_PATH)); CALL(euidaccess("file", R_OK));
    return 0;
}
