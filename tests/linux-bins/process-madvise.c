// Advice on the memory of a process that a pidfd stands for.
#include "test.h"
#include <sys/uio.h>
#include <sys/wait.h>

static long advise(int pidfd, const struct iovec *ranges, long count, int advice, unsigned flags) {
    return syscall(SYS_process_madvise, pidfd, ranges, count, advice, flags);
}

int main(void) {
    char *memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 7, 4 * PAGE);
    struct iovec ranges[2] = {{memory, PAGE}, {memory + 2 * PAGE, PAGE}};
    int own = syscall(SYS_pidfd_open, getpid(), 0);
    CALL(advise(own, ranges, 2, MADV_COLD, 0)); CALL(advise(own, ranges, 2, MADV_PAGEOUT, 0)); CALL(advise(own, ranges, 2, MADV_WILLNEED, 0));
    SHOW(memory[0]); SHOW(memory[2 * PAGE]);
    CALL(advise(own, ranges, 2, 12345, 0)); CALL(advise(own, ranges, 2, MADV_COLD, 1)); CALL(advise(-1, ranges, 2, MADV_COLD, 0)); CALL(advise(1, ranges, 2, MADV_COLD, 0));
    CALL(advise(own, NULL, 2, MADV_COLD, 0)); CALL(advise(own, ranges, 0, MADV_COLD, 0)); CALL(advise(own, ranges, 1025, MADV_COLD, 0));
    struct iovec kernel = {(void *)-PAGE, PAGE}; CALL(advise(own, &kernel, 1, MADV_COLD, 0));
    munmap(memory + 2 * PAGE, PAGE); CALL(advise(own, ranges, 2, MADV_COLD, 0)); CALL(advise(own, ranges + 1, 1, MADV_COLD, 0));
    struct iovec odd[] = {{memory + 1, PAGE}, {memory, 5}, {memory, 0}};
    for (int i = 0; i < 3; i++) CALL(advise(own, odd + i, 1, MADV_COLD, 0));
    // Another process: only what does not change its memory.
    int hold[2]; pipe(hold); pid_t child = fork();
    if (child == 0) { close(hold[1]); char byte; read(hold[0], &byte, 1); _exit(memory[0]); }
    int other = syscall(SYS_pidfd_open, child, 0);
    CALL(advise(other, ranges, 1, MADV_DONTNEED, 0)); CALL(advise(other, ranges, 1, MADV_COLD, 0)); CALL(advise(other, ranges + 1, 1, MADV_WILLNEED, 0));
    close(hold[1]); int status; waitpid(child, &status, 0); SHOW(WEXITSTATUS(status));
    CALL(advise(other, ranges, 1, MADV_COLD, 0));
    return 0;
}
