// What the suites of this program share. `micro.c` measures; each other file holds operations.
#ifndef MICRO_H
#define MICRO_H

#include <stddef.h>

// How a figure is printed.
enum unit {
    NANOSECONDS, // for one operation
    MEGABYTES,   // of a million bytes, in a second
    BYTES,       // what `size` gives
};

// Something that is measured. Units and names are LMbench's where it has the operation.
struct op {
    const char *suite;
    const char *name;
    enum unit unit;
    // Prepares, with `arg`. Calls fail() where that is impossible.
    void (*setup)(long arg);
    // Does the operation so many times.
    void (*run)(long times);
    // Undoes what setup did. It is called after a failure as well.
    void (*finish)(void);
    // Part of `run` that is not the operation's: taken off. May be null.
    void (*overhead)(long times);
    long arg;
    // Bytes that one operation moves, for MEGABYTES.
    double bytes;
    // How often the operation is done where instructions are counted; 0: it is left out there.
    long counted;
    // For BYTES, in place of `run`.
    double (*size)(void);
};

extern const struct op call_ops[], signal_ops[], ipc_ops[], process_ops[], memory_ops[], file_ops[],
    thread_ops[], compute_ops[];

// Ends the measurement of the present operation with a message and errno's.
_Noreturn void fail(const char *what);

// The folder for files, and a name in it.
extern const char *folder;
const char *path_of(const char *name);

// This program's own file.
extern const char *self;

// Longest time for one operation's measurement, in milliseconds.
extern long budget_ms;

// A child that runs `body` and never returns; stop_children ends all of them.
void start_child(void (*body)(void));
void stop_children(void);

// Keeps a value from being optimised away.
static inline void use(const void *value) { __asm__ volatile("" : : "r"(value) : "memory"); }

#define FAIL_IF(condition, what)                                                                     \
    do {                                                                                             \
        if (condition) fail(what);                                                                   \
    } while (0)

#endif
