// What fork does to memory: private pages of every kind are copied when either side writes, whatever
// their rights; a thread that goes on writing while another forks is not seen by the child.
// @link -pthread
// @cpus 1 2
#include "test.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
enum { PAGES = 1200 };
static char *area, *none, *file_written, *file_clean, *shared, *zeros;
static uint64_t hash_area(void) {
    uint64_t hash = HASH_START;
    for (long i = 0; i < PAGES; i++) hash = hash_bytes(hash, area + i * PAGE, 16);
    return hash_bytes(hash, file_written, 2 * PAGE);
}
static void show(const char *who) {
    mprotect(none, 4 * PAGE, PROT_READ);
    printf("%s: area %016llx none %s file %.8s clean %.8s shared %.8s zeros %d\n", who,
           (unsigned long long)hash_area(), none + PAGE, file_written, file_clean, shared, zeros[5 * PAGE]);
    mprotect(none, 4 * PAGE, PROT_NONE);
    fflush(stdout);
}
static void change(int by) {
    for (long i = 0; i < PAGES; i += 3) area[i * PAGE] += by;
    munmap(area + 30 * PAGE, PAGE);
    mmap(area + 30 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(none + PAGE, PAGE, PROT_READ | PROT_WRITE);
    none[PAGE] += by;
    file_written[0] += by; file_clean[PAGE] += by; zeros[6 * PAGE] += by;
}
static void wait_for(pid_t child) { int status; waitpid(child, &status, 0); SHOW(status); fflush(stdout); }
static void generations(int depth) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        show("child");
        change(depth);
        show("child changed");
        if (depth < 3) generations(depth + 1);
        _exit(depth);
    }
    wait_for(child);
    show("parent");
}
// The two words are always written in this order.
static volatile long *pair;
static atomic_int stop;
static void *writer(void *unused) {
    for (long n = 1; !stop; n++)
        for (int page = 0; page < 40; page++) { pair[page * 512] = n; pair[page * 512 + 1] = n; }
    return unused;
}
static void while_writing(void) {
    pair = mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t id; pthread_create(&id, NULL, writer, NULL);
    int bad = 0;
    for (int i = 0; i < 30; i++) {
        pid_t child = fork();
        if (child == 0) {
            long first[40], second[40], changed = 0;
            for (int page = 0; page < 40; page++) { first[page] = pair[page * 512]; second[page] = pair[page * 512 + 1]; }
            for (int round = 0; round < 200; round++) {
                if (round % 50 == 0) sched_yield();
                for (int page = 0; page < 40; page++)
                    changed += pair[page * 512] != first[page] || pair[page * 512 + 1] != second[page];
            }
            _exit(changed != 0);
        }
        int status; waitpid(child, &status, 0); bad += status != 0;
    }
    stop = 1; pthread_join(id, NULL);
    SHOW(bad);
}
int main(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
    area = mmap(NULL, PAGES * PAGE, both, flags, -1, 0);
    for (long i = 0; i < PAGES; i++) if (i % 7) area[i * PAGE] = i;
    none = mmap(NULL, 4 * PAGE, both, flags, -1, 0);
    strcpy(none + PAGE, "kept"); mprotect(none, 4 * PAGE, PROT_NONE);
    zeros = mmap(NULL, 8 * PAGE, both, flags, -1, 0);
    long sum = 0; for (int i = 0; i < 8; i++) sum += zeros[i * PAGE];
    shared = mmap(NULL, PAGE, both, MAP_SHARED | MAP_ANONYMOUS, -1, 0); strcpy(shared, "shared");
    put_file("file", "the file's first bytes");
    int fd = open("file", O_RDWR); ftruncate(fd, 2 * PAGE);
    file_written = mmap(NULL, 2 * PAGE, both, MAP_PRIVATE, fd, 0);
    file_clean = mmap(NULL, 2 * PAGE, both, MAP_PRIVATE, fd, 0);
    file_written[0] = 'T'; sum += file_clean[PAGE];
    SHOW(sum);
    generations(1);
    char first[9] = ""; pread(fd, first, 8, 0); printf("file: %s\n", first);
    while_writing();
    return 0;
}
