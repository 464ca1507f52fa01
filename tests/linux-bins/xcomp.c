// Permission for state components (arch_prctl), on a processor without AMX; /proc/self/coredump_filter.
#define _GNU_SOURCE
#include "test.h"

#include <sys/wait.h>

enum { GET_SUPP = 0x1021, GET_PERM, REQ_PERM, GET_GUEST_PERM, REQ_GUEST_PERM };

static void ask(int code, unsigned long arg) {
    long result = syscall(SYS_arch_prctl, code, arg);
    printf("%#x %#lx: %s\n", code, arg, result ? errno_name(errno) : "ok");
}

static void show_filter(void) {
    char text[32] = "";
    int fd = open("/proc/self/coredump_filter", O_RDONLY);
    ssize_t len = read(fd, text, sizeof text - 1);
    close(fd);
    printf("%zd %s", len, text);
}

static void set_filter(const char *text, size_t len) {
    int fd = open("/proc/self/coredump_filter", O_WRONLY);
    ssize_t result = write(fd, text, len);
    printf("write %.12s: %zd %s\n", text, result, result < 0 ? errno_name(errno) : "");
    close(fd);
    show_filter();
}

int main(int argc, char **argv) {
    if (argc > 1) {
        show_filter();
        return 0;
    }
    unsigned long supported = 0, permitted = 0, guest = 0;
    CHECK(syscall(SYS_arch_prctl, GET_SUPP, &supported) == 0);
    CHECK(syscall(SYS_arch_prctl, GET_PERM, &permitted) == 0);
    CHECK(syscall(SYS_arch_prctl, GET_GUEST_PERM, &guest) == 0);
    CHECK((supported & 3) == 3);
    CHECK((permitted & ~supported) == 0 && (permitted & 3) == 3);
    CHECK((guest & ~supported) == 0 && (guest & 3) == 3);
    for (int code = GET_SUPP; code <= GET_GUEST_PERM; code++) {
        if (code != REQ_PERM) ask(code, 0);
    }
    for (int guest_too = 0; guest_too < 2; guest_too++) {
        int code = guest_too ? REQ_GUEST_PERM : REQ_PERM;
        ask(code, 0);
        ask(code, 1);
        ask(code, 2);
        ask(code, 9);
        ask(code, 17);
        ask(code, 64);
        ask(code, ~0ul);
    }
    ask(0x1026, 0);

    show_filter();
    static const char *const texts[] = {
        "0x00",   "0x1f\n", "0x1F",   "0",    "017",     "0x7f\n",       "51",         "+3",        "511",         "0xffffffff",
        "0x33",   "-1",     "",       "\n",   "0x",      "0xg",          "08",         " 5",        "5 ",          "5\n\n",
        "++5",    "abc",    "1.5",    "0X2",  "0b11",    "4294967296",   "4294967295", "0x100000000", "99999999999999999999999",
        "9999999999999999999999x", "33\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) set_filter(texts[i], strlen(texts[i]));
    set_filter("7\0008", 3);
    // Children and what they execute have it from their parent.
    set_filter("0x15", 4);
    fflush(stdout);
    if (fork() == 0) {
        show_filter();
        fflush(stdout);
        execl("/proc/self/exe", argv[0], "again", NULL);
        _exit(1);
    }
    int status;
    wait(&status);
    SHOW(status);
    return 0;
}
