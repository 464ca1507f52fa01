// lat_syscall and lat_select.
#define _GNU_SOURCE
#include "micro.h"

#include <fcntl.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int file = -1, ends[2] = {-1, -1}, highest;
static fd_set wanted;
static char name[4096];

static void nothing(long arg) { (void)arg; }

static void null(long times) {
    while (times--) syscall(SYS_getppid);
}

static void open_device(long write_it) {
    file = open(write_it ? "/dev/null" : "/dev/zero", write_it ? O_WRONLY : O_RDONLY);
    FAIL_IF(file < 0, "/dev/zero or /dev/null");
}

static void read_byte(long times) {
    char byte;
    while (times--) FAIL_IF(read(file, &byte, 1) != 1, "read");
}

static void write_byte(long times) {
    char byte = 0;
    while (times--) FAIL_IF(write(file, &byte, 1) != 1, "write");
}

static void make_file(long arg) {
    (void)arg;
    const char *path = path_of("file");
    for (int i = 0; i < 4096 && (name[i] = path[i]); i++) {}
    file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    FAIL_IF(file < 0, name);
}

static void stat_it(long times) {
    struct stat found;
    while (times--) FAIL_IF(stat(name, &found), "stat");
}

static void fstat_it(long times) {
    struct stat found;
    while (times--) FAIL_IF(fstat(file, &found), "fstat");
}

static void open_close(long times) {
    while (times--) {
        int opened = open(name, O_RDONLY);
        FAIL_IF(opened < 0, "open");
        close(opened);
    }
}

static void remove_file(void) {
    if (file >= 0) close(file);
    file = -1;
    unlink(name);
}

static void close_it(void) {
    if (file >= 0) close(file);
    file = -1;
}

// Descriptors of a pipe that nobody writes to.
static void make_set(long count) {
    FAIL_IF(pipe(ends), "pipe");
    FD_ZERO(&wanted);
    for (long i = 0; i < count; i++) {
        highest = dup(ends[0]);
        FAIL_IF(highest < 0 || highest >= FD_SETSIZE, "dup");
        FD_SET(highest, &wanted);
    }
}

static void select_them(long times) {
    while (times--) {
        fd_set set = wanted;
        struct timeval at_once = {0, 0};
        FAIL_IF(select(highest + 1, &set, NULL, NULL, &at_once) != 0, "select");
    }
}

static void close_set(void) {
    for (int fd = 3; fd <= highest; fd++) {
        if (FD_ISSET(fd, &wanted)) close(fd);
    }
    close(ends[0]);
    close(ends[1]);
}

const struct op call_ops[] = {
    {"calls", "lat_syscall null", NANOSECONDS, nothing, null, NULL, .counted = 1000},
    {"calls", "lat_syscall read", NANOSECONDS, open_device, read_byte, close_it, .counted = 1000},
    {"calls", "lat_syscall write", NANOSECONDS, open_device, write_byte, close_it, .arg = 1, .counted = 1000},
    {"calls", "lat_syscall stat", NANOSECONDS, make_file, stat_it, remove_file, .counted = 1000},
    {"calls", "lat_syscall fstat", NANOSECONDS, make_file, fstat_it, remove_file, .counted = 1000},
    {"calls", "lat_syscall open", NANOSECONDS, make_file, open_close, remove_file, .counted = 1000},
    {"calls", "lat_select 10", NANOSECONDS, make_set, select_them, close_set, .arg = 10, .counted = 200},
    {"calls", "lat_select 100", NANOSECONDS, make_set, select_them, close_set, .arg = 100, .counted = 100},
    {0},
};
