// lat_sig: installing a handler, catching a signal, a fault on a read-only page.
#define _GNU_SOURCE
#include "micro.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile long caught, wanted;
static sigjmp_buf out;
static volatile char *page = MAP_FAILED;

static void count(int signal) {
    (void)signal;
    caught++;
}

static void until_enough(int signal) {
    (void)signal;
    if (++caught >= wanted) siglongjmp(out, 1);
}

static void nothing(long arg) { (void)arg; }

static void install(long times) {
    struct sigaction action = {.sa_handler = count};
    while (times--) FAIL_IF(sigaction(SIGUSR1, &action, NULL), "sigaction");
}

static void install_one(long arg) {
    (void)arg;
    install(1);
}

static void send_to_self(long times) {
    pid_t pid = getpid();
    long before = caught;
    for (long i = 0; i < times; i++) kill(pid, SIGUSR1);
    FAIL_IF(caught - before != times, "signals were lost");
}

static void map_page(long arg) {
    (void)arg;
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAIL_IF(page == MAP_FAILED, "mmap");
    struct sigaction action = {.sa_handler = until_enough};
    FAIL_IF(sigaction(SIGSEGV, &action, NULL), "sigaction");
}

// Each return from the handler executes the store again.
static void fault(long times) {
    caught = 0;
    wanted = times;
    if (sigsetjmp(out, 1) == 0) *page = 1;
}

static void unmap(void) {
    signal(SIGSEGV, SIG_DFL);
    if (page != MAP_FAILED) munmap((void *)page, 4096);
}

const struct op signal_ops[] = {
    {"signals", "lat_sig install", NANOSECONDS, nothing, install, NULL, .counted = 1000},
    {"signals", "lat_sig catch", NANOSECONDS, install_one, send_to_self, NULL, .counted = 1000},
    {"signals", "lat_sig prot", NANOSECONDS, map_page, fault, unmap, .counted = 500},
    {0},
};
