// The micro suites of hx-bench: one static program, the same bytes natively, in Docker, in a Linux guest
// and under Hermix. Built with gcc -O2 -static -pthread *.c -lm.
//
// usage: micro [-t MILLISECONDS] [-d FOLDER] [-c] SUITE|NAME...
//        micro hello            the program that lat_proc starts
//
// Each line that begins with @ is a record, written as soon as it is known:
//   @ suite SUITE                     before the first operation of a suite
//   @ NAME: ns|MB/s BEST MEDIAN BATCHES
//   @ NAME: bytes SIZE
//   @ NAME: instructions COUNT         with -c: ticks of the time stamp counter for one operation,
//                                     which are instructions under QEMU's -icount shift=0
//   @ NAME: error WHAT
//   @ end
// A batch is as many operations as fill a fiftieth of the time for one name. The best one counts: what
// else the machine does can only make it slower.
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { MOST_BATCHES = 100, MOST_CHILDREN = 64, BATCHES_FOR_BUDGET = 50 };

const char *folder = "/tmp";
const char *self;
long budget_ms = 200;

static int counting;
static const struct op *current;
static jmp_buf failed;
static char failure[256];
static pid_t children[MOST_CHILDREN];
static int child_count;

_Noreturn void fail(const char *what) {
    snprintf(failure, sizeof failure, "%s: %s", what, strerror(errno));
    longjmp(failed, 1);
}

const char *path_of(const char *name) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/micro-%d-%s", folder, getpid(), name);
    return path;
}

void start_child(void (*body)(void)) {
    if (child_count == MOST_CHILDREN) {
        errno = EAGAIN;
        fail("too many children");
    }
    pid_t pid = fork();
    FAIL_IF(pid < 0, "fork");
    if (pid == 0) {
        body();
        _exit(0);
    }
    children[child_count++] = pid;
}

void stop_children(void) {
    for (int i = 0; i < child_count; i++) kill(children[i], SIGKILL);
    for (int i = 0; i < child_count; i++) waitpid(children[i], NULL, 0);
    child_count = 0;
}

static double now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

static double timed(void (*run)(long), long times) {
    double start = now_ns();
    run(times);
    return now_ns() - start;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct figures {
    double median, least;
    int batches;
};

// Nanoseconds for one operation, from batches that fill the time.
static struct figures batches_of(void (*run)(long)) {
    double budget = budget_ms * 1e6, wanted = budget / BATCHES_FOR_BUDGET;
    double each[MOST_BATCHES];
    run(1);
    long times = 1;
    double start = now_ns(), took = timed(run, times);
    while (took < wanted && now_ns() - start < budget) {
        double factor = took > 0 ? wanted / took * 1.1 : 8;
        times = factor > 8 ? times * 8 : factor < 2 ? times * 2 : (long)(times * factor);
        took = timed(run, times);
    }
    struct figures figures = {.batches = 0};
    start = now_ns();
    do {
        each[figures.batches++] = timed(run, times) / times;
    } while (figures.batches < MOST_BATCHES && now_ns() - start < budget);
    qsort(each, figures.batches, sizeof each[0], by_value);
    figures.least = each[0];
    figures.median = (each[figures.batches / 2] + each[(figures.batches - 1) / 2]) / 2;
    return figures;
}

static void measure_time(void) {
    struct figures figures = batches_of(current->run);
    if (current->overhead) {
        struct figures overhead = batches_of(current->overhead);
        figures.median -= overhead.median;
        figures.least -= overhead.least;
        errno = ERANGE;
        FAIL_IF(figures.least <= 0, "less than its overhead");
    }
    if (current->unit == MEGABYTES) {
        double scale = current->bytes * 1e3;
        printf("@ %s: MB/s %.2f %.2f %d\n", current->name, scale / figures.least,
               scale / figures.median, figures.batches);
    } else {
        printf("@ %s: ns %.2f %.2f %d\n", current->name, figures.least, figures.median,
               figures.batches);
    }
}

// The least of three, after one that warms up: ticks for one operation.
static double ticks_of(void (*run)(long), long times) {
    unsigned long least = -1UL;
    run(times);
    for (int i = 0; i < 3; i++) {
        unsigned long start = __rdtsc();
        run(times);
        unsigned long took = __rdtsc() - start;
        if (took < least) least = took;
    }
    return (double)least / times;
}

static void count_instructions(void) {
    double ticks = ticks_of(current->run, current->counted);
    if (current->overhead) ticks -= ticks_of(current->overhead, current->counted);
    printf("@ %s: instructions %.1f\n", current->name, ticks);
}

static void measure(const struct op *op) {
    if (!current || strcmp(current->suite, op->suite)) printf("@ suite %s\n", op->suite);
    current = op;
    if (setjmp(failed) == 0) {
        op->setup(op->arg);
        if (op->unit == BYTES) {
            printf("@ %s: bytes %.1f\n", op->name, op->size());
        } else if (counting) {
            count_instructions();
        } else {
            measure_time();
        }
    } else {
        printf("@ %s: error %s\n", current->name, failure);
    }
    if (current->finish) current->finish();
    stop_children();
    fflush(stdout);
}

int main(int argc, char **argv) {
    static const struct op *const suites[] = {call_ops, signal_ops, ipc_ops,    process_ops, memory_ops,
                                              file_ops, thread_ops, compute_ops};
    if (argc == 2 && !strcmp(argv[1], "hello")) return write(1, "", 0) != 0;
    self = argv[0];
    int option;
    while ((option = getopt(argc, argv, "+t:d:c")) != -1) {
        if (option == 't') {
            budget_ms = atol(optarg);
        } else if (option == 'd') {
            folder = optarg;
        } else if (option == 'c') {
            counting = 1;
        } else {
            return 2;
        }
    }
    signal(SIGPIPE, SIG_IGN);
    for (int i = optind; i < argc; i++) {
        int known = 0;
        for (size_t suite = 0; suite < sizeof suites / sizeof suites[0]; suite++) {
            for (const struct op *op = suites[suite]; op->suite; op++) {
                if (strcmp(op->suite, argv[i]) && strcmp(op->name, argv[i])) continue;
                known = 1;
                if (!counting || op->counted) measure(op);
            }
        }
        if (!known) {
            fprintf(stderr, "micro: nothing is called %s\n", argv[i]);
            return 2;
        }
    }
    puts("@ end");
    return 0;
}
