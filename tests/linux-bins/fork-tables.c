// Memory of several page tables (2 MiB each) after fork: whatever parent, child and grandchild do to a
// page, a part or all of a table, in whatever order they do it and end, each has its own copy; what the
// kernel writes for a process and what /proc tells of it included; and a thread that writes all the time
// is neither seen by a child nor loses a write.
// @link -pthread
// @cpus 1 2
#define _GNU_SOURCE
#include "test.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/uio.h>
#include <sys/wait.h>
enum { TABLE = 512, TABLES = 4, PAGES = TABLE * TABLES };
static int both = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
static char *area;

// Memory that starts where a table does.
static char *whole_tables(long pages) {
    char *at = mmap(NULL, (pages + TABLE) * PAGE, both, flags, -1, 0);
    uintptr_t aligned = ((uintptr_t)at + TABLE * PAGE - 1) & ~(uintptr_t)(TABLE * PAGE - 1);
    munmap(at, aligned - (uintptr_t)at);
    munmap((char *)aligned + pages * PAGE, (uintptr_t)at + TABLE * PAGE - aligned);
    return (char *)aligned;
}
static void fill(void) { for (long i = 0; i < PAGES; i++) *(long *)(area + i * PAGE) = i + 1; }
static void show_range(const char *who, const char *at, long pages) {
    uint64_t hash = HASH_START;
    for (long i = 0; i < pages; i++) hash = hash_bytes(hash, at + i * PAGE, 16);
    printf("%s: %016llx\n", who, (unsigned long long)hash);
}
static void show(const char *who) { show_range(who, area, PAGES); fflush(stdout); }
static void wait_for(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    printf("status %x\n", status);
    fflush(stdout);
}
static void tell(int fd) { char byte = 1; if (write(fd, &byte, 1) != 1) printf("tell: %s\n", errno_name(errno)); }
static void hear(int fd) { char byte; if (read(fd, &byte, 1) != 1) printf("hear: nothing\n"); }
#define IN_CHILD(...) do { \
    fflush(stdout); \
    pid_t child_ = fork(); \
    if (child_ == 0) { __VA_ARGS__; fflush(stdout); _exit(0); } \
    wait_for(child_); \
} while (0)

// A field of the area's entry in smaps, in pages.
static long smaps(const char *field) {
    FILE *file = fopen("/proc/self/smaps", "r");
    char line[512];
    int found = 0;
    long result = -1;
    while (file && fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) found = start <= (unsigned long)area && (unsigned long)area < end;
        else if (found && !strncmp(line, field, strlen(field)) && line[strlen(field)] == ':') result = atol(line + strlen(field) + 1) / 4;
    }
    if (file) fclose(file);
    return result;
}
static void show_use(const char *who) {
    printf("%s: rss %ld pss %ld shared %ld private %ld anonymous %ld\n", who, smaps("Rss"), smaps("Pss"),
           smaps("Shared_Dirty"), smaps("Private_Dirty"), smaps("Anonymous"));
    fflush(stdout);
}

// What a child does to its copy; the parent's must stay.
static void changes(void) {
    IN_CHILD(show("child reads"));
    show("parent");
    IN_CHILD(area[5 * PAGE]++; area[511 * PAGE]++; area[512 * PAGE]++; show("one page in each of two tables"));
    show("parent");
    IN_CHILD(for (long i = 0; i < PAGES; i++) area[i * PAGE]++; show("all pages"));
    show("parent");
    IN_CHILD(munmap(area + 7 * PAGE, PAGE); FAULT(area[7 * PAGE] = 1);
             mmap(area + 7 * PAGE, PAGE, both, flags | MAP_FIXED, -1, 0); show("a page is unmapped"));
    show("parent");
    IN_CHILD(munmap(area + TABLE * PAGE, TABLE * PAGE); FAULT(area[TABLE * PAGE] = 1);
             FAULT(area[(TABLE - 1) * PAGE]++); show_range("a table is unmapped", area, TABLE));
    show("parent");
    IN_CHILD(munmap(area, PAGES * PAGE); FAULT(area[0] = 1));
    show("parent");
    IN_CHILD(mprotect(area + 9 * PAGE, 3 * PAGE, PROT_READ); FAULT(area[10 * PAGE] = 1); FAULT(area[12 * PAGE]++);
             mprotect(area + 9 * PAGE, 3 * PAGE, both); FAULT(area[10 * PAGE]++); show("rights of pages"));
    IN_CHILD(mprotect(area, PAGES * PAGE, PROT_NONE); FAULT((void)*(volatile char *)area);
             mprotect(area, PAGES * PAGE, both); area[0]++; show("rights of all"));
    show("parent");
    IN_CHILD(madvise(area + 20 * PAGE, 5 * PAGE, MADV_DONTNEED); show("pages are dropped"));
    IN_CHILD(madvise(area, 2 * TABLE * PAGE, MADV_DONTNEED); area[0]++; show("tables are dropped"));
    show("parent");
    IN_CHILD(char *to = whole_tables(TABLES * TABLE); munmap(to, PAGES * PAGE);
             char *moved = mremap(area + 100 * PAGE, 600 * PAGE, 600 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
             CHECK(moved == to); show_range("moved", to, 600); to[0]++; show_range("moved", to, 600);
             FAULT(area[100 * PAGE] = 1); show_range("the rest", area, 100));
    show("parent");
    IN_CHILD(char *to = whole_tables(TABLE); memset(to, 1, TABLE * PAGE);
             mremap(area + TABLE * PAGE, TABLE * PAGE, TABLE * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
             IN_CHILD(to[0]++; show_range("grandchild has what was moved", to, TABLE)); show_range("moved", to, TABLE));
    IN_CHILD(mmap(area + 3 * PAGE, PAGE, both, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
             IN_CHILD(area[3 * PAGE] = 77; area[4 * PAGE] = 77); show("a page is shared"));
    show("parent");
    IN_CHILD(CHECK(mlock(area, 300 * PAGE) == 0 || errno == ENOMEM); area[1]++; show("locked"));
    show("parent");
}

// What parent and children do in turn.
static void together(void) {
    int up[2], down[2];
    if (pipe(up) || pipe(down)) return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        hear(down[0]); show("child, the parent has written");
        area[2 * PAGE]++; tell(up[1]);
        hear(down[0]); show("child, both have");
        _exit(0);
    }
    area[0]++; area[600 * PAGE]++; tell(down[1]);
    hear(up[0]); show("parent, both have written");
    area[2 * PAGE]++; tell(down[1]);
    wait_for(child);
    // The elder of two children ends first.
    pid_t first = fork();
    if (first == 0) { hear(down[0]); show("first"); _exit(0); }
    area[3 * PAGE]++;
    pid_t second = fork();
    if (second == 0) { hear(up[0]); area[4 * PAGE]++; show("second"); _exit(0); }
    area[5 * PAGE]++;
    tell(down[1]); wait_for(first);
    area[700 * PAGE]++;
    tell(up[1]); wait_for(second);
    area[6 * PAGE]++; area[3 * PAGE]++;
    show("parent");
    // A grandchild outlives the one who forked it.
    fflush(stdout);
    child = fork();
    if (child == 0) {
        area[7 * PAGE]++;
        if (fork() == 0) { hear(down[0]); area[8 * PAGE]++; show("grandchild"); tell(up[1]); _exit(0); }
        area[9 * PAGE]++; show("child"); _exit(0);
    }
    wait_for(child);
    area[10 * PAGE]++;
    tell(down[1]); hear(up[0]);
    show("parent");
    // The parent unmaps what the child has still.
    child = fork();
    if (child == 0) { hear(down[0]); area[0]++; show("child after munmap"); _exit(0); }
    munmap(area + TABLE * PAGE, 2 * TABLE * PAGE);
    mmap(area + TABLE * PAGE, 2 * TABLE * PAGE, both, flags | MAP_FIXED, -1, 0);
    madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE);
    show("parent has new tables");
    tell(down[1]); wait_for(child);
    close(up[0]); close(up[1]); close(down[0]); close(down[1]);
}

// The kernel writes, and reads, for a process.
static void kernel_writes(void) {
    fill();
    int fds[2];
    if (pipe(fds)) return;
    IN_CHILD(CALL(write(fds[1], "from child", 10)); CALL(read(fds[0], area + 30 * PAGE, 10)); show("child has read"));
    show("parent");
    fflush(stdout);
    int up[2], down[2];
    if (pipe(up) || pipe(down)) return;
    pid_t child = fork();
    if (child == 0) { hear(down[0]); show("child, written by the parent"); _exit(0); }
    char text[16] = "to child", back[16] = "";
    struct iovec local = {text, 9}, remote = {area + 1000 * PAGE + 1, 9};
    CALL(process_vm_writev(child, &local, 1, &remote, 1, 0));
    local.iov_base = back;
    CALL(process_vm_readv(child, &local, 1, &remote, 1, 0));
    printf("%s\n", back);
    show("parent");
    tell(down[1]); wait_for(child);
    area[1000 * PAGE]++; show("parent");
    close(fds[0]); close(fds[1]); close(up[0]); close(up[1]); close(down[0]); close(down[1]);
}

static void accounts(void) {
    fill();
    show_use("alone");
    int up[2], down[2];
    if (pipe(up) || pipe(down)) return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        show_use("child");
        area[0]++; area[800 * PAGE]++;
        show_use("child has written");
        munmap(area + 1536 * PAGE, TABLE * PAGE);
        show_use("child has unmapped");
        tell(up[1]); hear(down[0]);
        _exit(0);
    }
    hear(up[0]); show_use("parent of one");
    tell(down[1]); wait_for(child);
    show_use("alone");
    area[1]++;
    show_use("alone");
}

static void kinds(void) {
    // Parts that are not forked, or forked empty.
    fill();
    madvise(area + TABLE * PAGE, TABLE * PAGE, MADV_DONTFORK);
    madvise(area + 3 * TABLE * PAGE, 10 * PAGE, MADV_WIPEONFORK);
    IN_CHILD(FAULT(area[TABLE * PAGE] = 1); show_range("child, before", area, TABLE);
             show_range("child, after", area + 2 * TABLE * PAGE, 2 * TABLE); area[3 * TABLE * PAGE]++);
    madvise(area + TABLE * PAGE, TABLE * PAGE, MADV_DOFORK);
    madvise(area + 3 * TABLE * PAGE, 10 * PAGE, MADV_KEEPONFORK);
    show("parent");
    // A file's pages, some of them written, and the file cut.
    int fd = memfd_create("file", 0);
    CALL(ftruncate(fd, 2 * TABLE * PAGE));
    char *hole = whole_tables(2 * TABLE);
    char *file = mmap(hole, 2 * TABLE * PAGE, both, MAP_PRIVATE | MAP_FIXED, fd, 0);
    for (long i = 0; i < 2 * TABLE; i++) if (i % 3) file[i * PAGE] = i; else (void)*(volatile char *)(file + i * PAGE);
    int up[2], down[2];
    if (pipe(up) || pipe(down)) return;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        show_range("child of the file", file, 2 * TABLE);
        tell(up[1]); hear(down[0]);
        show_range("child of the cut file", file, 700);
        FAULT(file[700 * PAGE] = 1); FAULT((void)*(volatile char *)(file + 1000 * PAGE)); FAULT(file[699 * PAGE]++);
        _exit(0);
    }
    hear(up[0]);
    CALL(ftruncate(fd, 700 * PAGE));
    CALL(pwrite(fd, "new", 3, 3 * PAGE));
    FAULT(file[700 * PAGE] = 1); show_range("parent of the cut file", file, 700);
    tell(down[1]); wait_for(child);
    file[0]++; show_range("parent of the cut file", file, 700);
    close(fd); close(up[0]); close(up[1]); close(down[0]); close(down[1]);
}

// Each page's word counts how often it has been written.
static atomic_int stop;
static long rounds;
static void *writer(void *unused) {
    // At least some rounds, however the processors are given out.
    for (; !stop || rounds < 3; rounds++)
        for (long i = 0; i < PAGES; i++) ++*(volatile long *)(area + i * PAGE);
    return unused;
}
static void while_writing(void) {
    for (long i = 0; i < PAGES; i++) *(long *)(area + i * PAGE) = 0;
    pthread_t id;
    pthread_create(&id, NULL, writer, NULL);
    int changed = 0, torn = 0;
    for (int i = 0; i < 12; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            static long seen[PAGES];
            int bad = 0;
            for (long page = 0; page < PAGES; page++) seen[page] = *(volatile long *)(area + page * PAGE);
            for (int round = 0; round < 4; round++) {
                sched_yield();
                for (long page = round; page < PAGES; page += 3) bad |= *(volatile long *)(area + page * PAGE) != seen[page];
            }
            // Pages are written one after the other, so neighbours are at most one apart.
            for (long page = 1; page < PAGES; page++) if (labs(seen[page] - seen[page - 1]) > 1) bad |= 2;
            if (i % 3 == 0) for (long page = 0; page < PAGES; page += 5) *(long *)(area + page * PAGE) = -1;
            _exit(bad);
        }
        int status = -1;
        waitpid(child, &status, 0);
        changed += (WEXITSTATUS(status) & 1) || !WIFEXITED(status);
        torn += (WEXITSTATUS(status) & 2) != 0;
    }
    stop = 1;
    pthread_join(id, NULL);
    int lost = 0;
    for (long i = 0; i < PAGES; i++) lost += *(long *)(area + i * PAGE) != rounds;
    SHOW(changed); SHOW(torn); SHOW(lost);
}

int main(int argc, char **argv) {
    catch_faults();
    area = whole_tables(PAGES);
    madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE);
    fill();
    changes();
    together();
    kernel_writes();
    accounts();
    kinds();
    while_writing();
    return 0;
}
