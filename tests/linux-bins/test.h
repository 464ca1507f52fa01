// What the programs of this folder share: every call is printed with its result, so that the native
// run and the one under Hermix can be compared. Nothing is printed that may differ between two
// Linux systems: addresses, process ids, times, inode numbers.
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define PAGE 4096L

#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-value"

static const char *errno_name(int number) {
#define NAME(e) if (number == e) return #e;
    NAME(EPERM) NAME(ENOENT) NAME(ESRCH) NAME(EINTR) NAME(EIO) NAME(ENXIO) NAME(E2BIG)
    NAME(ENOEXEC) NAME(EBADF) NAME(ECHILD) NAME(EAGAIN) NAME(ENOMEM) NAME(EACCES) NAME(EFAULT)
    NAME(ENOTBLK) NAME(EBUSY) NAME(EEXIST) NAME(EXDEV) NAME(ENODEV) NAME(ENOTDIR) NAME(EISDIR)
    NAME(EINVAL) NAME(ENFILE) NAME(EMFILE) NAME(ENOTTY) NAME(ETXTBSY) NAME(EFBIG) NAME(ENOSPC)
    NAME(ESPIPE) NAME(EROFS) NAME(EMLINK) NAME(EPIPE) NAME(EDOM) NAME(ERANGE) NAME(EDEADLK)
    NAME(ENAMETOOLONG) NAME(ENOLCK) NAME(ENOSYS) NAME(ENOTEMPTY) NAME(ELOOP) NAME(ENODATA)
    NAME(EOVERFLOW) NAME(EBADFD) NAME(EOPNOTSUPP) NAME(EPROTO) NAME(ENOTSOCK) NAME(ETIMEDOUT)
    NAME(EAFNOSUPPORT) NAME(ECONNREFUSED) NAME(EALREADY) NAME(ECANCELED) NAME(ENOTCONN)
    NAME(EADDRINUSE) NAME(EINPROGRESS) NAME(EDESTADDRREQ) NAME(EISCONN) NAME(EMSGSIZE)
    NAME(EPROTONOSUPPORT) NAME(ESTALE)
#undef NAME
    static char other[32];
    snprintf(other, sizeof other, "errno %d", number);
    return other;
}

// Prints the call and its result; gives the result.
#define CALL(call) ({ \
    errno = 0; \
    long result_ = (long)(call); \
    int errno_ = errno; \
    if (result_ == -1) printf("%s: -1 %s\n", #call, errno_name(errno_)); \
    else printf("%s: %ld\n", #call, result_); \
    errno = errno_; \
    result_; })

// The same for results that may differ between systems, such as addresses.
#define DONE(call) ({ \
    errno = 0; \
    __typeof__(call) result_ = (call); \
    int errno_ = errno; \
    if ((long)result_ == -1) printf("%s: -1 %s\n", #call, errno_name(errno_)); \
    else printf("%s: done\n", #call); \
    errno = errno_; \
    result_; })

// Prints whether the condition holds.
#define CHECK(condition) printf("%s: %s\n", #condition, (condition) ? "yes" : "no")

// Prints a number under a name of its own.
#define SHOW(value) printf("%s = %lld\n", #value, (long long)(value))

__attribute__((constructor)) static void lines_appear_at_once(void) {
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
}

static void put_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        printf("%s: %s\n", path, errno_name(errno));
    close(fd);
}

static void show_file(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (n < 0) {
        printf("%s: %s\n", path, errno_name(errno));
    } else {
        printf("%s: %zd bytes: ", path, n);
        for (ssize_t i = 0; i < n; i++) {
            if (text[i] >= ' ' && text[i] <= '~') putchar(text[i]);
            else printf("\\%o", (unsigned char)text[i]);
        }
        putchar('\n');
    }
    if (fd >= 0) close(fd);
}

// FNV-1a.
static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    return hash;
}
#define HASH_START 14695981039346656037u

// Prints type, mode, links, size and contents' hash of everything below `path`, by name.
static void manifest(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0) {
        printf("manifest %s: %s\n", path, errno_name(errno));
        return;
    }
    if (strcmp(path, ".") != 0)
        printf("manifest %s: mode %o links %ld", path, st.st_mode, S_ISDIR(st.st_mode) ? 0 : (long)st.st_nlink);
    if (S_ISLNK(st.st_mode)) {
        char target[PATH_MAX + 1] = "";
        readlink(path, target, PATH_MAX);
        printf(" -> %s\n", target);
    } else if (S_ISREG(st.st_mode)) {
        uint64_t hash = HASH_START;
        static char block[65536];
        int fd = open(path, O_RDONLY);
        for (ssize_t n; fd >= 0 && (n = read(fd, block, sizeof block)) > 0;) hash = hash_bytes(hash, block, n);
        if (fd >= 0) close(fd);
        printf(" size %lld hash %016llx\n", (long long)st.st_size, (unsigned long long)hash);
    } else if (S_ISDIR(st.st_mode)) {
        printf("\n");
        struct dirent **names;
        int count = scandir(path, &names, NULL, alphasort);
        for (int i = 0; i < count; i++) {
            char child[PATH_MAX];
            if (strcmp(names[i]->d_name, ".") && strcmp(names[i]->d_name, "..")
                && snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name) < PATH_MAX)
                manifest(child);
            free(names[i]);
        }
        if (count >= 0) free(names);
    } else {
        printf("\n");
    }
}

// Runs a statement and prints the signal, with si_code, that it raises, if any.
static sigjmp_buf fault_return;
static volatile int fault_signal, fault_code;
static void *volatile fault_address;

static void fault_handler(int signal, siginfo_t *info, void *context) {
    fault_signal = signal;
    fault_code = info->si_code;
    fault_address = info->si_addr;
    siglongjmp(fault_return, 1);
}

static void catch_faults(void) {
    struct sigaction action = {.sa_sigaction = fault_handler, .sa_flags = SA_SIGINFO};
    int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &action, NULL);
}

#define FAULT(statement) do { \
    fault_signal = 0; \
    if (sigsetjmp(fault_return, 1) == 0) { statement; } \
    if (fault_signal) printf("%s: signal %d code %d\n", #statement, fault_signal, fault_code); \
    else printf("%s: no signal\n", #statement); \
} while (0)
