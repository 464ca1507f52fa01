// lat_fs: creating and deleting files of several sizes; bw_file_rd.
#define _GNU_SOURCE
#include "micro.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { AT_ONCE = 64, CHUNK = 64 << 10, FILE_LEN = 4 << 20 };

static char directory[4096], buffer[CHUNK];
static long size;
static int file = -1;

static void make_folder(long bytes) {
    size = bytes;
    snprintf(directory, sizeof directory, "%s", path_of("files"));
    FAIL_IF(mkdir(directory, 0700), directory);
    FAIL_IF(chdir(directory), "chdir");
}

static void remove_folder(void) {
    if (chdir("/")) return;
    rmdir(directory);
}

static const char *name_of(long i) {
    static char name[8] = "f000";
    name[1] = 'a' + i / 16 % 16, name[2] = 'a' + i % 16;
    return name;
}

static void create(long files) {
    for (long i = 0; i < files; i++) {
        int made = open(name_of(i), O_WRONLY | O_CREAT | O_EXCL, 0600);
        FAIL_IF(made < 0, "open");
        FAIL_IF(size && write(made, buffer, size) != size, "write");
        close(made);
    }
}

static void delete(long files) {
    for (long i = 0; i < files; i++) FAIL_IF(unlink(name_of(i)), "unlink");
}

// A few at a time, so that the folder stays small.
static void create_and_delete(long times) {
    for (; times > 0; times -= AT_ONCE) {
        long files = times < AT_ONCE ? times : AT_ONCE;
        create(files);
        delete(files);
    }
}

static void make_file(long bytes) {
    const char *path = path_of("read");
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    FAIL_IF(file < 0, path);
    unlink(path);
    for (long at = 0; at < bytes; at += CHUNK) FAIL_IF(write(file, buffer, CHUNK) != CHUNK, "write");
}

static void read_file(long times) {
    while (times--) {
        ssize_t got;
        FAIL_IF(lseek(file, 0, SEEK_SET), "lseek");
        while ((got = read(file, buffer, CHUNK)) > 0) use(buffer);
        FAIL_IF(got < 0, "read");
    }
}

static void close_file(void) {
    if (file >= 0) close(file);
    file = -1;
}

#define CREATE(name, bytes)                                                                          \
    {"files", name, NANOSECONDS, make_folder, create_and_delete, remove_folder, .arg = bytes,        \
     .counted = 64}

const struct op file_ops[] = {
    CREATE("lat_fs 0K", 0),
    CREATE("lat_fs 1K", 1 << 10),
    CREATE("lat_fs 4K", 4 << 10),
    CREATE("lat_fs 10K", 10 << 10),
    {"files", "bw_file_rd", MEGABYTES, make_file, read_file, close_file, .arg = FILE_LEN, .bytes = FILE_LEN},
    {0},
};
