// chmod, chown, umask, and permissions as an ordinary user has them.
#include "test.h"
static void mode(const char *path) { struct stat st; if (!lstat(path, &st)) printf("%s %o %d:%d\n", path, st.st_mode, st.st_uid, st.st_gid); }
int main(void) {
    CALL(umask(077)); CALL(umask(0777)); CALL(umask(-1)); CALL(umask(022));
    put_file("f", "x"); mode("f"); mkdir("d", 0777); mode("d"); umask(0); mkdir("d2", 0777); mode("d2"); umask(0777); put_file("f2", ""); mode("f2"); umask(022);
    CALL(chmod("f", 0)); mode("f"); CALL(chmod("f", 07777)); mode("f"); CALL(chmod("f", 0100644)); mode("f"); CALL(chmod("f", 0177777)); mode("f"); CALL(chmod("none", 0)); CALL(chmod("", 0)); CALL(chmod("f/x", 0));
    symlink("f", "l"); CALL(chmod("l", 0640)); mode("l"); mode("f"); CALL(fchmodat(AT_FDCWD, "f", 0600, 0)); CALL(fchmodat(99, "f", 0600, 0)); CALL(syscall(SYS_fchmodat, AT_FDCWD, "f", 0611)); mode("f");
    int fd = open("f", O_RDONLY); CALL(fchmod(fd, 0600)); CALL(fchmod(99, 0)); mode("f"); int p[2]; pipe(p); CALL(fchmod(p[0], 0644)); CALL(chmod("d", 01755)); mode("d"); CALL(chmod("d", 02755)); mode("d");
    mkdir("d/sub", 0755); mode("d/sub"); put_file("d/file", ""); mode("d/file");
    // Owners.
    CALL(chown("f", 5, 6)); mode("f"); CALL(chown("f", -1, 7)); mode("f"); CALL(chown("f", 8, -1)); mode("f"); CALL(chown("f", -1, -1)); CALL(lchown("l", 9, 9)); mode("l"); CALL(chown("l", 1, 1)); mode("l"); mode("f"); CALL(fchown(fd, 2, 2)); CALL(fchownat(fd, "", 3, 3, AT_EMPTY_PATH)); CALL(fchownat(AT_FDCWD, "l", 4, 4, AT_SYMLINK_NOFOLLOW)); CALL(fchownat(AT_FDCWD, "l", 4, 4, 0x8000)); CALL(chown("none", 1, 1)); CALL(fchown(99, 1, 1)); mode("l"); mode("f");
    chmod("f", 06755); CALL(chown("f", 1, 1)); mode("f"); chmod("f", 06745); CALL(chown("f", 1, 1)); mode("f"); chmod("f", 06755); write(open("f", O_WRONLY), "y", 1); mode("f");
    // An ordinary user.
    put_file("secret", "x"); chmod("secret", 0600); put_file("group", "x"); chmod("group", 0040); chown("group", 0, 1000); put_file("mine", "x"); chown("mine", 1000, 1000); chmod("mine", 0200); mkdir("closed", 0700); put_file("closed/f", ""); mkdir("open", 0777); chmod("open", 0777); mkdir("sticky", 0777); chmod("sticky", 01777); put_file("sticky/f", ""); put_file("open/f", ""); put_file("exe", ""); chmod("exe", 0644); chmod(".", 0777);
    CALL(setgroups(0, NULL)); CALL(setresgid(1000, 1000, 1000)); CALL(setresuid(1000, 1000, 1000)); printf("%d %d\n", getuid(), getegid());
    CALL(open("secret", O_RDONLY)); CALL(open("group", O_RDONLY) >= 0); CALL(open("group", O_WRONLY)); CALL(open("mine", O_RDONLY)); CALL(open("mine", O_WRONLY) >= 0); CALL(open("closed/f", O_RDONLY)); CALL(chdir("closed")); CALL(open("closed", O_RDONLY)); CALL(mkdir("closed/x", 0700)); CALL(unlink("closed/f")); CALL(open("open/new", O_CREAT | O_WRONLY, 0600) >= 0); CALL(unlink("open/f")); CALL(unlink("sticky/f")); CALL(rename("sticky/f", "sticky/g")); CALL(link("secret", "open/hard")); CALL(access("secret", R_OK)); CALL(access("secret", F_OK)); CALL(access("exe", X_OK)); CALL(access("mine", W_OK)); CALL(access("closed/f", F_OK));
    CALL(chmod("mine", 0400)); CALL(chmod("secret", 0777)); CALL(chown("mine", 0, 0)); CALL(chown("mine", 1000, 1000)); CALL(chown("mine", -1, 5)); CALL(chmod("mine", 02644)); mode("mine"); CALL(mknod("node", S_IFCHR | 0666, 0x103)); CALL(mkfifo("fifo", 0600)); CALL(setuid(0)); CALL(setgid(0)); CALL(setgroups(0, NULL)); CALL(truncate("secret", 0)); CALL(utimensat(AT_FDCWD, "secret", NULL, 0)); CALL(open("mine", O_RDONLY | O_NOATIME) >= 0); CALL(open("exe", O_RDONLY | O_NOATIME)); CALL(symlink("x", "closed/l")); CALL(stat("closed/f", &(struct stat){})); CALL(chroot("open"));
    return 0;
}
