// sendfile, splice, tee, vmsplice and copy_file_range.
#include "test.h"
#include <sys/sendfile.h>
#include <sys/uio.h>
int main(void) {
    signal(SIGPIPE, SIG_IGN);
    char *data = malloc(200000);
    for (int i = 0; i < 200000; i++) data[i] = 'a' + i % 26;
    int src = open("src", O_RDWR | O_CREAT, 0600), dst = open("dst", O_RDWR | O_CREAT, 0600);
    write(src, data, 200000);
    lseek(src, 0, SEEK_SET);
    CALL(sendfile(dst, src, NULL, 100)); CALL(lseek(src, 0, SEEK_CUR)); CALL(lseek(dst, 0, SEEK_CUR));
    off_t at = 1000;
    CALL(sendfile(dst, src, &at, 50)); SHOW(at); CALL(lseek(src, 0, SEEK_CUR));
    at = 199990; CALL(sendfile(dst, src, &at, 100)); SHOW(at); CALL(sendfile(dst, src, &at, 100)); at = -1; CALL(sendfile(dst, src, &at, 100));
    CALL(sendfile(dst, src, NULL, 0)); CALL(sendfile(99, src, NULL, 1)); CALL(sendfile(dst, 99, NULL, 1));
    CALL(sendfile(dst, src, (void *)1, 1));
    int ap = open("dst", O_WRONLY | O_APPEND), ro = open("dst", O_RDONLY);
    CALL(sendfile(ap, src, NULL, 10)); CALL(sendfile(ro, src, NULL, 10)); CALL(sendfile(src, ap, NULL, 10));
    int p[2], q[2];
    pipe(p); pipe(q);
    CALL(sendfile(p[1], src, NULL, 5000)); CALL(sendfile(dst, p[0], NULL, 10)); CALL(read(p[0], data, 200000));
    // splice.
    loff_t off = 10;
    CALL(splice(src, &off, p[1], NULL, 1000, 0)); SHOW(off); CALL(splice(p[0], NULL, dst, NULL, 400, 0));
    CALL(splice(p[0], NULL, q[1], NULL, 100, SPLICE_F_MOVE)); CALL(tee(q[0], p[1], 50, 0));
    CALL(splice(p[0], NULL, dst, NULL, 100000, SPLICE_F_NONBLOCK)); CALL(splice(p[0], NULL, dst, NULL, 1, SPLICE_F_NONBLOCK));
    CALL(splice(src, NULL, dst, NULL, 10, 0)); CALL(splice(p[0], &off, dst, NULL, 10, 0)); CALL(splice(src, &off, p[1], &off, 10, 0));
    CALL(splice(src, NULL, p[1], NULL, 10, 0x100)); CALL(splice(src, NULL, p[1], NULL, 0, 0)); CALL(splice(99, NULL, p[1], NULL, 1, 0));
    CALL(splice(src, NULL, p[0], NULL, 10, 0)); CALL(splice(p[0], NULL, ap, NULL, 10, SPLICE_F_NONBLOCK)); CALL(splice(p[0], NULL, p[1], NULL, 10, 0));
    off = 1 << 20; CALL(splice(src, &off, p[1], NULL, 10, 0));
    CALL(tee(src, p[1], 10, 0)); CALL(tee(p[0], p[1], 10, 0)); CALL(tee(p[0], q[1], 10, SPLICE_F_NONBLOCK));
    struct iovec v[] = {{data, 10}, {data + 20, 10}};
    CALL(vmsplice(p[1], v, 2, 0)); CALL(vmsplice(src, v, 2, 0));
    CALL(read(p[0], data, 1000));
    CALL(close(q[1])); CALL(close(q[0])); CALL(close(p[0])); CALL(splice(src, NULL, p[1], NULL, 10, 0));
    // copy_file_range.
    int one = open("one", O_RDWR | O_CREAT, 0600);
    loff_t i = 100, o = 5;
    CALL(copy_file_range(src, &i, one, &o, 1000, 0)); SHOW(i); SHOW(o); CALL(lseek(one, 0, SEEK_CUR));
    lseek(src, 199000, SEEK_SET); CALL(copy_file_range(src, NULL, one, NULL, 5000, 0)); CALL(lseek(one, 0, SEEK_CUR));
    CALL(copy_file_range(src, NULL, one, NULL, 5000, 0)); CALL(copy_file_range(src, NULL, one, NULL, 10, 1));
    i = 0; o = 50; CALL(copy_file_range(src, &i, src, &o, 100, 0)); i = 0; o = 500; CALL(copy_file_range(src, &i, src, &o, 100, 0));
    i = 0; CALL(copy_file_range(src, &i, ap, NULL, 10, 0)); i = 0; CALL(copy_file_range(src, &i, ro, NULL, 10, 0));
    int dir = open(".", O_RDONLY), null = open("/dev/null", O_RDWR);
    i = 0; CALL(copy_file_range(dir, NULL, one, NULL, 10, 0)); CALL(copy_file_range(src, &i, null, NULL, 10, 0)); CALL(copy_file_range(99, &i, one, NULL, 10, 0));
    manifest(".");
    return 0;
}
