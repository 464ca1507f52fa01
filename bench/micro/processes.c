// lat_proc: fork and exit, fork and exec of a static program, a shell that runs it.
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static char command[PATH_MAX + 16];
static char *resident = MAP_FAILED;
static long resident_len;

static void nothing(long arg) { (void)arg; }

static void wait_for(pid_t pid) {
    int status;
    FAIL_IF(waitpid(pid, &status, 0) != pid, "waitpid");
    errno = ECHILD;
    FAIL_IF(status != 0, "the child failed");
}

static void fork_and_exit(long times) {
    while (times--) {
        pid_t pid = fork();
        FAIL_IF(pid < 0, "fork");
        if (pid == 0) _exit(0);
        wait_for(pid);
    }
}

static void fork_and_exec(long times) {
    while (times--) {
        pid_t pid = fork();
        FAIL_IF(pid < 0, "fork");
        if (pid == 0) {
            execl(self, self, "hello", NULL);
            _exit(127);
        }
        wait_for(pid);
    }
}

static void make_command(long arg) {
    (void)arg;
    snprintf(command, sizeof command, "%s hello", self);
    FAIL_IF(access("/bin/busybox", X_OK), "/bin/busybox");
}

static void shell(long times) {
    while (times--) {
        pid_t pid = fork();
        FAIL_IF(pid < 0, "fork");
        if (pid == 0) {
            execl("/bin/busybox", "sh", "-c", command, NULL);
            _exit(127);
        }
        wait_for(pid);
    }
}

static void reside(long mib) {
    resident_len = mib << 20;
    resident = mmap(NULL, resident_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(resident == MAP_FAILED, "mmap");
    memset(resident, 1, resident_len);
}

static void leave(void) {
    if (resident != MAP_FAILED) munmap(resident, resident_len);
    resident = MAP_FAILED;
}

const struct op process_ops[] = {
    {"processes", "lat_proc fork", NANOSECONDS, nothing, fork_and_exit, NULL, .counted = 20},
    {"processes", "lat_proc exec", NANOSECONDS, nothing, fork_and_exec, NULL, .counted = 10},
    {"processes", "lat_proc sh", NANOSECONDS, make_command, shell, NULL, .counted = 5},
    {"processes", "lat_proc fork 128M", NANOSECONDS, reside, fork_and_exit, leave, .arg = 128, .counted = 2},
    // Needs more memory than the others, so only by its name: hx-bench gate --memory 2G resident
    {"resident", "lat_proc fork 1G", NANOSECONDS, reside, fork_and_exit, leave, .arg = 1024, .counted = 1},
    {0},
};
