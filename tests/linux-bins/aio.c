// Linux's asynchronous I/O: contexts, requests, events, polls, eventfds.
// @variants gcc gcc-static
#include "test.h"
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static aio_context_t ctx;
static struct iocb cb[8], *list[8] = {cb, cb + 1, cb + 2, cb + 3, cb + 4, cb + 5, cb + 6, cb + 7};
static struct io_event ev[16];

static int io_setup(unsigned n, aio_context_t *c) { return syscall(SYS_io_setup, n, c); }
static int io_destroy(aio_context_t c) { return syscall(SYS_io_destroy, c); }
static int io_submit(aio_context_t c, long n, struct iocb **l) { return syscall(SYS_io_submit, c, n, l); }
static int io_cancel(aio_context_t c, struct iocb *b, struct io_event *e) { return syscall(SYS_io_cancel, c, b, e); }
static int io_getevents(aio_context_t c, long min, long n, struct io_event *e, struct timespec *t) { return syscall(SYS_io_getevents, c, min, n, e, t); }
struct mask { const sigset_t *set; size_t size; };
static int io_pgetevents(aio_context_t c, long min, long n, struct io_event *e, struct timespec *t, struct mask *m) { return syscall(SYS_io_pgetevents, c, min, n, e, t, m); }

static struct iocb *prep(int at, int op, int fd, const void *buf, size_t n, long offset) {
    cb[at] = (struct iocb){.aio_data = 100 + at, .aio_key = 99, .aio_lio_opcode = op, .aio_fildes = fd, .aio_buf = (unsigned long)buf, .aio_nbytes = n, .aio_offset = offset};
    return &cb[at];
}
static void show(int n) {
    for (int i = 0; i < n; i++) {
        // Linux tells of all that woke it, wanted or not.
        struct iocb *of = (struct iocb *)ev[i].obj; if (of->aio_lio_opcode == IOCB_CMD_POLL) ev[i].res &= of->aio_buf | POLLERR | POLLHUP;
        printf("event %lld of %ld: ", ev[i].data, (long)((struct iocb *)ev[i].obj - cb));
        if (ev[i].res < 0) printf("%s", errno_name(-ev[i].res)); else printf("%lld", ev[i].res);
        printf(" %lld\n", ev[i].res2);
    }
}
static void fetch(void) { struct timespec none = {0, 0}; show(CALL(io_getevents(ctx, 0, 16, ev, &none))); }
static void once(const char *what, int op, int fd, const void *buf, size_t n, long offset) {
    printf("%s: ", what); prep(0, op, fd, buf, n, offset); if (CALL(io_submit(ctx, 1, list)) == 1) { printf("key %d ", cb[0].aio_key); show(CALL(io_getevents(ctx, 1, 16, ev, NULL))); }
}
static void handler(int s) {}
static void *later(void *p) { usleep(30000); write(*(int *)p, "x", 1); return NULL; }
static void *destroy(void *p) { usleep(30000); io_destroy(ctx); return NULL; }

int main(void) {
    char text[100] = ""; struct timespec none = {0, 0}, tick = {0, 10000000};
    // Contexts.
    CALL(io_setup(0, &ctx)); CALL(io_setup(8, NULL)); ctx = 5; CALL(io_setup(8, &ctx)); ctx = 0; CALL(io_setup(-1, &ctx)); CALL(io_setup(70000, &ctx));
    CALL(io_setup(8, &ctx)); CHECK(ctx != 0); CALL(io_destroy(0)); CALL(io_destroy(ctx + 4096)); CALL(io_submit(0, 0, list)); CALL(io_submit(ctx, 0, list)); CALL(io_submit(ctx, -1, list)); CALL(io_submit(ctx, 1, NULL));
    list[0] = NULL; CALL(io_submit(ctx, 1, list)); list[0] = cb;
    // Files.
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0644), ro = open("file", O_RDONLY), wo = open("file", O_WRONLY), ap = open("file", O_WRONLY | O_APPEND), dir = open(".", O_RDONLY);
    once("write", IOCB_CMD_PWRITE, fd, "hello world", 11, 3); once("read", IOCB_CMD_PREAD, fd, text, 5, 3); printf("%s\n", text);
    once("short", IOCB_CMD_PREAD, fd, text, 50, 9); printf("%.5s\n", text); once("end", IOCB_CMD_PREAD, fd, text, 50, 99); SHOW(lseek(fd, 0, SEEK_CUR));
    once("append", IOCB_CMD_PWRITE, ap, "!!", 2, 0); show_file("file");
    struct iovec v[2] = {{text, 4}, {text + 10, 40}}; once("preadv", IOCB_CMD_PREADV, fd, v, 2, 3); printf("%.4s|%s\n", text, text + 10);
    v[1].iov_len = 3; once("pwritev", IOCB_CMD_PWRITEV, fd, v, 2, 20); show_file("file");
    once("not readable", IOCB_CMD_PREAD, wo, text, 5, 0); once("not writable", IOCB_CMD_PWRITE, ro, text, 5, 0); once("not open", IOCB_CMD_PREAD, 77, text, 5, 0);
    once("bad buffer", IOCB_CMD_PREAD, fd, (void *)-4096L, 5, 0); once("no buffer", IOCB_CMD_PREAD, fd, (void *)16, 5, 0); once("negative", IOCB_CMD_PREAD, fd, text, 5, -3); once("huge", IOCB_CMD_PREAD, fd, text, -1, 0); once("too far", IOCB_CMD_PREAD, fd, text, 5, 0x7fffffffffffffff);
    once("empty", IOCB_CMD_PREAD, fd, text, 0, 0); once("unknown", 17, fd, text, 5, 0); once("noop", IOCB_CMD_NOOP, fd, text, 5, 0);
    once("fsync", IOCB_CMD_FSYNC, fd, 0, 0, 0); once("fdsync", IOCB_CMD_FDSYNC, fd, 0, 0, 0); once("fsync with", IOCB_CMD_FSYNC, fd, text, 0, 0);
    prep(0, IOCB_CMD_PREAD, fd, text, 5, 0)->aio_reserved2 = 1; CALL(io_submit(ctx, 1, list)); prep(0, IOCB_CMD_PREAD, fd, text, 5, 0)->aio_rw_flags = 0x4000; CALL(io_submit(ctx, 1, list));
    prep(0, IOCB_CMD_PWRITE, fd, "A", 1, 0)->aio_rw_flags = RWF_APPEND; CALL(io_submit(ctx, 1, list)); fetch(); show_file("file");
    prep(0, IOCB_CMD_PREAD, fd, text, 5, 0); cb[0].aio_flags = IOCB_FLAG_IOPRIO, cb[0].aio_reqprio = 7 << 13; CALL(io_submit(ctx, 1, list)); cb[0].aio_reqprio = 2 << 13 | 3; CALL(io_submit(ctx, 1, list)); fetch();
    // Several, of which the third is wrong; their order; fewer than wanted.
    prep(0, IOCB_CMD_PREAD, fd, text, 1, 0), prep(1, IOCB_CMD_PREAD, fd, text, 2, 0), prep(2, IOCB_CMD_PREAD, 77, text, 3, 0), prep(3, IOCB_CMD_PREAD, fd, text, 4, 0);
    CALL(io_submit(ctx, 4, list)); CALL(io_submit(ctx, 1, list + 3)); show(CALL(io_getevents(ctx, 1, 2, ev, NULL))); show(CALL(io_getevents(ctx, 0, 5, ev, NULL))); CALL(io_getevents(ctx, 1, 5, ev, &tick));
    CALL(io_getevents(ctx, 3, 2, ev, &none)); CALL(io_getevents(ctx, -1, 2, ev, &none)); CALL(io_getevents(ctx, 0, 0, ev, NULL)); CALL(io_getevents(0, 0, 1, ev, &none)); CALL(io_getevents(ctx, 0, 1, ev, (void *)16));
    CALL(io_submit(ctx, 1, list)); CALL(io_getevents(ctx, 1, 1, (void *)16, NULL)); fetch();
    // Pipes and an eventfd.
    int p[2], e = eventfd(0, EFD_NONBLOCK); uint64_t count = 0; pipe(p); write(p[1], "in the pipe", 11);
    once("pipe", IOCB_CMD_PREAD, p[0], text, 6, 0); once("pipe again", IOCB_CMD_PREAD, p[0], text, 50, 1000); once("into", IOCB_CMD_PWRITE, p[1], "z", 1, 0); once("fsync", IOCB_CMD_FSYNC, p[0], 0, 0, 0); read(p[0], text, 1);
    prep(0, IOCB_CMD_PREAD, fd, text, 5, 0), prep(1, IOCB_CMD_PREAD, fd, text, 5, 0); for (int i = 0; i < 2; i++) cb[i].aio_flags = IOCB_FLAG_RESFD, cb[i].aio_resfd = e;
    CALL(io_submit(ctx, 2, list)); CALL(read(e, &count, 8)); SHOW(count); fetch(); cb[0].aio_resfd = fd; CALL(io_submit(ctx, 1, list)); cb[0].aio_resfd = 77; CALL(io_submit(ctx, 1, list));
    // Polls: at once, later, by the eventfd, cancelled, several of one file.
    once("ready", IOCB_CMD_POLL, p[1], (void *)(long)POLLOUT, 0, 0); once("file", IOCB_CMD_POLL, fd, (void *)(long)POLLIN, 0, 0); once("file without", IOCB_CMD_POLL, fd, (void *)(long)POLLPRI, 0, 0); once("events", IOCB_CMD_POLL, p[0], (void *)0x10001L, 0, 0); once("more", IOCB_CMD_POLL, p[0], (void *)1L, 1, 0);
    prep(0, IOCB_CMD_POLL, p[0], (void *)(long)POLLIN, 0, 0), prep(1, IOCB_CMD_POLL, p[0], (void *)(long)(POLLIN | POLLPRI), 0, 0); CALL(io_submit(ctx, 2, list)); fetch(); CALL(write(p[1], "x", 1)); int n = CALL(io_getevents(ctx, 2, 2, ev, NULL)); CHECK(ev[0].res & POLLIN && ev[1].res & POLLIN && ev[0].data != ev[1].data); read(p[0], text, 1);
    cb[0].aio_flags = IOCB_FLAG_RESFD, cb[0].aio_resfd = e; CALL(io_submit(ctx, 1, list)); pthread_t t; pthread_create(&t, NULL, later, &p[1]); struct pollfd pf = {e, POLLIN, 0}; CALL(poll(&pf, 1, 5000)); CALL(read(e, &count, 8)); SHOW(count); fetch(); pthread_join(t, NULL); read(p[0], text, 1);
    CALL(io_submit(ctx, 1, list)); CALL(io_cancel(ctx, cb + 1, ev)); CALL(io_cancel(ctx, cb, ev)); show(CALL(io_getevents(ctx, 1, 2, ev, NULL))); CALL(io_cancel(ctx, cb, ev)); CALL(io_cancel(0, cb, ev)); CALL(io_cancel(ctx, NULL, ev)); cb[0].aio_key = 4; CALL(io_cancel(ctx, cb, ev)); CALL(read(e, &count, 8));
    // An eventfd that tells of itself.
    prep(0, IOCB_CMD_POLL, e, (void *)(long)POLLIN, 0, 0); cb[0].aio_flags = IOCB_FLAG_RESFD, cb[0].aio_resfd = e; CALL(io_submit(ctx, 1, list)); CALL(write(e, &(uint64_t){5}, 8)); show(CALL(io_getevents(ctx, 1, 1, ev, NULL))); CALL(read(e, &count, 8)); SHOW(count);
    prep(0, IOCB_CMD_POLL, p[0], (void *)(long)POLLIN, 0, 0); CALL(io_submit(ctx, 1, list)); CALL(close(p[1])); show(CALL(io_getevents(ctx, 1, 1, ev, NULL)));
    // Signals.
    struct sigaction sa = {.sa_handler = handler}; sigaction(SIGALRM, &sa, NULL); ualarm(20000, 0); CALL(io_getevents(ctx, 1, 1, ev, NULL));
    sigset_t set; sigemptyset(&set); sigaddset(&set, SIGALRM); struct mask m = {&set, 8}, bad = {&set, 4}; struct timespec span = {0, 60000000}; ualarm(20000, 0); CALL(io_pgetevents(ctx, 1, 1, ev, &span, &m)); CALL(io_pgetevents(ctx, 1, 1, ev, &span, &bad)); ualarm(20000, 0); CALL(io_pgetevents(ctx, 1, 1, ev, NULL, NULL));
    // The limit of requests, a full context; a child has none; the end.
    show_file("/proc/sys/fs/aio-max-nr"); aio_context_t small = 0; CALL(io_setup(1, &small)); prep(0, IOCB_CMD_PREAD, fd, text, 1, 0); int full = 0; while (io_submit(small, 1, list) == 1) full++; printf("full: %s\n", errno_name(errno)); CHECK(full >= 1); CALL(io_getevents(small, 1, 1, ev, NULL)); CALL(io_submit(small, 1, list)); CALL(io_destroy(small)); CALL(io_submit(small, 1, list));
    fflush(stdout); if (fork() == 0) { CALL(io_submit(ctx, 1, list)); CALL(io_destroy(ctx)); _exit(0); } while (wait(NULL) > 0) {}
    pthread_create(&t, NULL, destroy, NULL); CALL(io_getevents(ctx, 1, 1, ev, NULL)); pthread_join(t, NULL); CALL(io_destroy(ctx)); CALL(io_getevents(ctx, 0, 1, ev, &none));
    return 0;
}
