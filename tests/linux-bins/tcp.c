// TCP over loopback: names, connections refused and made, transfers, halves, resets, options, echoes, epoll.
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return name;
}

static int port_of(int fd) {
    struct sockaddr_in name;
    socklen_t len = sizeof name;
    getsockname(fd, (struct sockaddr *)&name, &len);
    return ntohs(name.sin_port);
}

static int listener(int backlog) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = loopback(0);
    bind(fd, (struct sockaddr *)&name, sizeof name);
    listen(fd, backlog);
    return fd;
}

static int connect_to(int fd, int port) {
    struct sockaddr_in name = loopback(port);
    return connect(fd, (struct sockaddr *)&name, sizeof name);
}

static void pair(int ends[2]) {
    int at = listener(1);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    connect_to(ends[0], port_of(at));
    ends[1] = accept(at, 0, 0);
    close(at);
}

static const char *outcome(long result) { return result < 0 ? errno_name(errno) : "ok"; }

static short polled(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP | POLLPRI};
    poll(&p, 1, 0);
    return p.revents;
}

// Waits for events that take a moment on a real machine.
static short waited(int fd, short events) {
    struct pollfd p = {.fd = fd, .events = events};
    poll(&p, 1, 5000);
    return p.revents;
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    if (getsockopt(fd, level, name, &value, &len) < 0) return -errno;
    return value;
}

static void names(void) {
    int a = socket(AF_INET, SOCK_STREAM, 0), b = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = loopback(0);
    printf("fresh: poll %#x\n", polled(a));
    printf("bind: %s\n", outcome(bind(a, (struct sockaddr *)&name, sizeof name)));
    printf("port given: %d\n", port_of(a) != 0);
    printf("bind again: %s\n", outcome(bind(a, (struct sockaddr *)&name, sizeof name)));
    name.sin_port = htons(port_of(a));
    printf("bind the same: %s\n", outcome(bind(b, (struct sockaddr *)&name, sizeof name)));
    name.sin_addr.s_addr = htonl(INADDR_ANY);
    printf("bind any: %s\n", outcome(bind(b, (struct sockaddr *)&name, sizeof name)));
    name.sin_addr.s_addr = htonl(0x7f000002);
    printf("bind another: %s\n", outcome(bind(b, (struct sockaddr *)&name, sizeof name)));
    name.sin_addr.s_addr = htonl(0x08080808);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    printf("bind a stranger's: %s\n", outcome(bind(c, (struct sockaddr *)&name, sizeof name)));
    printf("short: %s\n", outcome(bind(c, (struct sockaddr *)&name, 8)));
    name.sin_family = AF_INET6;
    printf("family: %s\n", outcome(bind(c, (struct sockaddr *)&name, sizeof name)));
    printf("peer: %s\n", outcome(getpeername(c, (struct sockaddr *)&name, &(socklen_t){sizeof name})));
    printf("accept: %s\n", outcome(accept(c, 0, 0)));
    printf("send: %s\n", outcome(send(c, "x", 1, MSG_NOSIGNAL)));
    printf("receive: %s\n", outcome(recv(c, &name, 1, 0)));
    printf("shutdown: %s\n", outcome(shutdown(c, SHUT_WR)));
    printf("listen unbound: %s\n", outcome(listen(c, 1)));
    printf("bound by it: %d\n", port_of(c) != 0);
    printf("listening: poll %#x, %d\n", polled(c), option(c, SOL_SOCKET, SO_ACCEPTCONN));
    printf("listener's connect: %s\n", outcome(connect_to(c, 1)));
    close(a), close(b), close(c);
    printf("kinds: %s", outcome(socket(AF_INET, SOCK_STREAM, IPPROTO_UDP)));
    printf(" %s", outcome(socket(AF_INET, SOCK_SEQPACKET, 0)));
    printf(" %s", outcome(socket(AF_INET, 77, 0)));
    int two[2];
    printf(" %s\n", outcome(socketpair(AF_INET, SOCK_STREAM, 0, two)));
}

static void reuse(void) {
    int one = 1;
    int a = listener(5), b = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in name = loopback(port_of(a));
    setsockopt(b, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    printf("beside a listener: %s\n", outcome(bind(b, (struct sockaddr *)&name, sizeof name)));
    int ends[2] = {socket(AF_INET, SOCK_STREAM, 0)};
    connect_to(ends[0], port_of(a));
    ends[1] = accept(a, 0, 0);
    close(a);
    close(ends[1]);
    char c;
    recv(ends[0], &c, 1, 0);
    close(ends[0]);
    int d = socket(AF_INET, SOCK_STREAM, 0);
    printf("in TIME-WAIT: %s\n", outcome(bind(d, (struct sockaddr *)&name, sizeof name)));
    setsockopt(d, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    printf("reused: %s\n", outcome(bind(d, (struct sockaddr *)&name, sizeof name)));
    close(b), close(d);
    // A server that starts anew while what it has accepted lives on.
    for (int i = 0; i < 2; i++) {
        name = loopback(i ? ntohs(name.sin_port) : 0);
        int l = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        printf("restarted: %s", outcome(bind(l, (struct sockaddr *)&name, sizeof name)));
        printf(" %s\n", outcome(listen(l, 5)));
        name.sin_port = htons(port_of(l));
        ends[0] = socket(AF_INET, SOCK_STREAM, 0);
        connect_to(ends[0], port_of(l));
        ends[1] = accept(l, 0, 0);
        close(l);
        if (i) close(ends[1]), close(ends[0]);
    }
    int r[2];
    name = loopback(0);
    for (int i = 0; i < 2; i++) {
        r[i] = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(r[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
        printf("shared: %s\n", outcome(bind(r[i], (struct sockaddr *)&name, sizeof name)));
        name.sin_port = htons(port_of(r[i]));
        listen(r[i], 64);
    }
    int met[2] = {0};
    for (int i = 0; i < 64; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        connect_to(fd, port_of(r[0]));
        struct pollfd p[2] = {{.fd = r[0], .events = POLLIN}, {.fd = r[1], .events = POLLIN}};
        poll(p, 2, 5000);
        int which = p[0].revents ? 0 : 1;
        met[which]++;
        close(accept(r[which], 0, 0));
        close(fd);
    }
    printf("both met: %d\n", met[0] > 8 && met[1] > 8);
    close(r[0]), close(r[1]);
}

static void connecting(void) {
    int at = listener(5), port = port_of(at);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    printf("non-blocking: %s\n", outcome(connect_to(fd, port)));
    printf("ready: %#x, error %d\n", waited(fd, POLLOUT), option(fd, SOL_SOCKET, SO_ERROR));
    printf("told: %s\n", outcome(connect_to(fd, port)));
    printf("again: %s\n", outcome(connect_to(fd, port)));
    close(fd);
    close(accept(at, 0, 0));
    close(at);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    printf("refused: %s\n", outcome(connect_to(fd, port)));
    printf("error after: %d\n", option(fd, SOL_SOCKET, SO_ERROR));
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    printf("refused later: %s\n", outcome(connect_to(fd, port)));
    printf("poll %#x", waited(fd, POLLOUT));
    int error = option(fd, SOL_SOCKET, SO_ERROR);
    printf(" error %s\n", errno_name(error));
    printf("cleared: %d\n", option(fd, SOL_SOCKET, SO_ERROR));
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET};
    at = listener(1);
    any.sin_port = htons(port_of(at));
    printf("to no address: %s\n", outcome(connect(fd, (struct sockaddr *)&any, sizeof any)));
    struct sockaddr unspec = {.sa_family = AF_UNSPEC};
    printf("dissolved: %s\n", outcome(connect(fd, &unspec, sizeof unspec)));
    close(fd), close(at);
    at = listener(1);
    fcntl(at, F_SETFL, O_NONBLOCK);
    printf("nobody yet: %s\n", outcome(accept(at, 0, 0)));
    close(at);
}

static void transfers(void) {
    int e[2];
    char buffer[64];
    pair(e);
    printf("polls %#x %#x\n", polled(e[0]), polled(e[1]));
    printf("send %zd\n", send(e[0], "hello world", 11, 0));
    waited(e[1], POLLIN);
    int count;
    ioctl(e[1], FIONREAD, &count);
    printf("waiting %d\n", count);
    printf("peek %zd %.5s\n", recv(e[1], buffer, 5, MSG_PEEK), buffer);
    printf("read %zd %.6s\n", read(e[1], buffer, 6), buffer);
    printf("dropped %zd\n", recv(e[1], 0, 2, MSG_TRUNC));
    printf("rest %zd %.3s\n", recv(e[1], buffer, sizeof buffer, 0), buffer);
    printf("empty %s\n", outcome(recv(e[1], buffer, 1, MSG_DONTWAIT)));
    printf("nothing %zd", send(e[0], "", 0, 0));
    printf(" %zd %s\n", read(e[1], buffer, 0), outcome(recv(e[1], buffer, 0, MSG_DONTWAIT)));
    struct iovec parts[2] = {{"ab", 2}, {"cde", 3}};
    printf("gathered %zd\n", writev(e[1], parts, 2));
    printf("all %zd %.5s\n", recv(e[0], buffer, 5, MSG_WAITALL), buffer);
    printf("unknown queue: %s\n", outcome(recv(e[0], buffer, 1, MSG_ERRQUEUE)));
    int z = open("/proc/self/exe", O_RDONLY);
    char elf[4];
    printf("sendfile %zd", sendfile(e[0], z, 0, 4));
    printf(" %zd", recv(e[1], elf, 4, MSG_WAITALL));
    printf(" %d\n", memcmp(elf, "\177ELF", 4));
    close(z);
    struct timeval time = {.tv_usec = 20000};
    setsockopt(e[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    printf("timed out: %s\n", outcome(recv(e[0], buffer, 1, 0)));
    int one = 1, zero = 0;
    setsockopt(e[0], IPPROTO_TCP, TCP_CORK, &one, sizeof one);
    send(e[0], "corked", 6, 0);
    setsockopt(e[0], IPPROTO_TCP, TCP_CORK, &zero, sizeof zero);
    printf("uncorked %zd\n", recv(e[1], buffer, 6, MSG_WAITALL));
    send(e[0], "mo", 2, MSG_MORE);
    send(e[0], "re", 2, 0);
    printf("more %zd\n", recv(e[1], buffer, 4, MSG_WAITALL));
    // A full buffer, then room again.
    fcntl(e[0], F_SETFL, O_NONBLOCK);
    static char block[65536];
    long total = 0;
    ssize_t n;
    while ((n = send(e[0], block, sizeof block, 0)) > 0) total += n;
    printf("full: %s, poll %#x\n", errno_name(errno), polled(e[0]) & POLLOUT);
    shutdown(e[0], SHUT_WR);
    long got = 0;
    while ((n = recv(e[1], block, sizeof block, 0)) > 0) got += n;
    printf("all arrived: %d\n", got == total);
    close(e[0]), close(e[1]);
}

// Asleep until all of it comes at once: what was waited for is given whole.
static void *receive_later(void *at) {
    char buffer[64];
    *(ssize_t *)at = read(*(int *)at, buffer, sizeof buffer);
    return 0;
}

static void sleeping_read(void) {
    int fds[2];
    pthread_t reader;
    union {
        int fd;
        ssize_t count;
    } it;
    pair(fds);
    it.fd = fds[1];
    pthread_create(&reader, 0, receive_later, &it);
    usleep(100000);
    write(fds[0], "twelve bytes", 12);
    pthread_join(reader, 0);
    printf("a sleeping read: %zd\n", it.count);
    close(fds[0]);
    close(fds[1]);
}

static void ends(void) {
    int e[2];
    char c;
    pair(e);
    printf("shut writing: %s\n", outcome(shutdown(e[0], SHUT_WR)));
    printf("peer %#x", waited(e[1], POLLIN | POLLRDHUP));
    printf(" end %zd\n", recv(e[1], &c, 1, 0));
    printf("other way %zd", send(e[1], "x", 1, 0));
    printf(" %zd\n", recv(e[0], &c, 1, 0));
    printf("send: %s\n", outcome(send(e[0], "x", 1, MSG_NOSIGNAL)));
    printf("shut peer: %s\n", outcome(shutdown(e[1], SHUT_RDWR)));
    printf("both %#x\n", polled(e[1]));
    waited(e[0], POLLIN);
    printf("end %zd\n", recv(e[0], &c, 1, 0));
    close(e[0]), close(e[1]);

    pair(e);
    printf("shut reading: %s", outcome(shutdown(e[0], SHUT_RD)));
    printf(" %zd, poll %#x\n", recv(e[0], &c, 1, 0), polled(e[0]));
    close(e[0]), close(e[1]);

    pair(e);
    close(e[1]);
    waited(e[0], POLLIN);
    printf("peer closed: %#x, %zd\n", polled(e[0]), recv(e[0], &c, 1, 0));
    printf("first write %zd\n", send(e[0], "x", 1, MSG_NOSIGNAL));
    printf("reset %#x\n", waited(e[0], 0) & (POLLHUP | POLLERR));
    printf("then: %s\n", outcome(send(e[0], "x", 1, MSG_NOSIGNAL)));
    printf("then: %s\n", outcome(send(e[0], "x", 1, MSG_NOSIGNAL)));
    close(e[0]);

    pair(e);
    send(e[0], "unread", 6, 0);
    waited(e[1], POLLIN);
    close(e[1]);
    printf("unread: %#x", waited(e[0], POLLIN));
    printf(" %s", outcome(recv(e[0], &c, 1, 0)));
    printf(" %zd\n", recv(e[0], &c, 1, 0));
    close(e[0]);

    pair(e);
    struct linger now = {1, 0};
    setsockopt(e[1], SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(e[1]);
    printf("lingered: %#x", waited(e[0], POLLIN));
    printf(" %s\n", errno_name(option(e[0], SOL_SOCKET, SO_ERROR)));
    printf("SIGPIPE: ");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        send(e[0], "x", 1, 0);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("%d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
    close(e[0]);
}

static void options(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), value = 7;
    printf("type %d domain %d protocol %d\n", option(fd, SOL_SOCKET, SO_TYPE),
           option(fd, SOL_SOCKET, SO_DOMAIN), option(fd, SOL_SOCKET, SO_PROTOCOL));
    int tcp[] = {TCP_NODELAY, TCP_CORK, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT};
    for (size_t i = 0; i < sizeof tcp / sizeof *tcp; i++) {
        int before = option(fd, IPPROTO_TCP, tcp[i]);
        int result = setsockopt(fd, IPPROTO_TCP, tcp[i], &value, sizeof value);
        printf("tcp %d: %d %s %d\n", tcp[i], before, outcome(result), option(fd, IPPROTO_TCP, tcp[i]));
    }
    int sol[] = {SO_REUSEADDR, SO_KEEPALIVE, SO_BROADCAST, SO_OOBINLINE, SO_REUSEPORT, SO_RCVLOWAT};
    for (size_t i = 0; i < sizeof sol / sizeof *sol; i++) {
        int before = option(fd, SOL_SOCKET, sol[i]);
        int result = setsockopt(fd, SOL_SOCKET, sol[i], &value, sizeof value);
        printf("socket %d: %d %s %d\n", sol[i], before, outcome(result), option(fd, SOL_SOCKET, sol[i]));
    }
    int ip[] = {IP_TOS, IP_TTL, IP_RECVERR, IP_MTU_DISCOVER};
    for (size_t i = 0; i < sizeof ip / sizeof *ip; i++) {
        value = i == 3 ? 2 : 8;
        int before = option(fd, IPPROTO_IP, ip[i]);
        int result = setsockopt(fd, IPPROTO_IP, ip[i], &value, sizeof value);
        printf("ip %d: %d %s %d\n", ip[i], before, outcome(result), option(fd, IPPROTO_IP, ip[i]));
    }
    value = 0;
    printf("keepidle 0: %s\n", outcome(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &value, 4)));
    printf("short: %s\n", outcome(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, 2)));
    printf("unknown: %s\n", outcome(setsockopt(fd, IPPROTO_TCP, 999, &value, 4)));
    value = 30000;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &value, sizeof value);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &value, sizeof value);
    printf("buffers %d %d\n", option(fd, SOL_SOCKET, SO_RCVBUF), option(fd, SOL_SOCKET, SO_SNDBUF));
    struct tcp_info info;
    socklen_t len = sizeof info;
    printf("info: %s", outcome(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len)));
    printf(" state %d\n", info.tcpi_state);
    close(fd);
    int e[2];
    pair(e);
    len = sizeof info;
    getsockopt(e[0], IPPROTO_TCP, TCP_INFO, &info, &len);
    printf("connected: state %d\n", info.tcpi_state);
    close(e[0]), close(e[1]);
}

static void *echo(void *at) {
    int fd = accept(*(int *)at, 0, 0);
    char buffer[4096];
    ssize_t n;
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        for (ssize_t done = 0; done < n;) done += write(fd, buffer + done, n - done);
    close(fd);
    return 0;
}

static void echoes(void) {
    enum { COUNT = 4 };
    int at = listener(COUNT);
    pthread_t threads[COUNT];
    int fds[COUNT];
    for (int i = 0; i < COUNT; i++) pthread_create(&threads[i], 0, echo, &at);
    for (int i = 0; i < COUNT; i++) connect_to(fds[i] = socket(AF_INET, SOCK_STREAM, 0), port_of(at));
    unsigned long sum = 0;
    for (int round = 0; round < 50; round++)
        for (int i = 0; i < COUNT; i++) {
            char out[3000], in[3000];
            memset(out, round + i, sizeof out);
            if (send(fds[i], out, sizeof out, 0) != sizeof out) puts("short send");
            if (recv(fds[i], in, sizeof in, MSG_WAITALL) != sizeof in) puts("short receive");
            if (memcmp(in, out, sizeof in)) puts("differs");
            sum += sizeof in;
        }
    for (int i = 0; i < COUNT; i++) close(fds[i]);
    for (int i = 0; i < COUNT; i++) pthread_join(threads[i], 0);
    printf("echoed %lu\n", sum);
    pid_t child = fork();
    if (child == 0) {
        echo(&at);
        _exit(0);
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    connect_to(fd, port_of(at));
    static char big[1 << 18], back[1 << 18];
    for (size_t i = 0; i < sizeof big; i++) big[i] = i * 7 >> 3;
    for (size_t sent = 0, got = 0; got < sizeof back;) {
        struct pollfd p = {.fd = fd, .events = POLLIN | (sent < sizeof big ? POLLOUT : 0)};
        poll(&p, 1, 5000);
        if (p.revents & POLLOUT) sent += send(fd, big + sent, sizeof big - sent, MSG_DONTWAIT);
        if (p.revents & POLLIN) got += recv(fd, back + got, sizeof back - got, MSG_DONTWAIT);
    }
    printf("process: %d\n", memcmp(big, back, sizeof big));
    close(fd);
    waitpid(child, 0, 0);
    close(at);
}

static void edges(void) {
    int e[2], ep = epoll_create1(0);
    char c;
    pair(e);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET}, got;
    epoll_ctl(ep, EPOLL_CTL_ADD, e[0], &event);
    printf("first %d", epoll_wait(ep, &got, 1, 1000));
    printf(" %#x\n", got.events);
    printf("quiet %d\n", epoll_wait(ep, &got, 1, 0));
    send(e[1], "ab", 2, 0);
    printf("data %d", epoll_wait(ep, &got, 1, 1000));
    printf(" %#x\n", got.events);
    read(e[0], &c, 1);
    printf("still some %d\n", epoll_wait(ep, &got, 1, 0));
    send(e[1], "c", 1, 0);
    printf("more %d", epoll_wait(ep, &got, 1, 1000));
    printf(" %#x\n", got.events);
    close(e[1]);
    printf("closed %d", epoll_wait(ep, &got, 1, 1000));
    printf(" %#x\n", got.events);
    close(e[0]), close(ep);
}

// Bytes that have come in over the loopback interface.
static long received(void) {
    static char text[4096];
    FILE *file = fopen("/proc/net/dev", "r");
    long bytes = -1;
    while (fgets(text, sizeof text, file) && sscanf(text, " lo: %ld", &bytes) != 1)
        ;
    fclose(file);
    return bytes;
}

static void counts(void) {
    static char bytes[20000];
    int ends[2];
    pair(ends);
    long before = received();
    write(ends[0], bytes, sizeof bytes);
    recv(ends[1], bytes, sizeof bytes, MSG_WAITALL);
    CHECK(received() - before >= (long)sizeof bytes);
    close(ends[0]);
    close(ends[1]);
}

// The interfaces that there are everywhere, and no more bytes written than there is room for.
static void interfaces(void) {
    struct ifreq list[8];
    memset(list, 0x55, sizeof list);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct ifconf all = {.ifc_len = sizeof list[0], .ifc_req = list};
    CALL(ioctl(fd, SIOCGIFCONF, &all));
    printf("%d %s %d\n", all.ifc_len, list[0].ifr_name, list[0].ifr_addr.sa_family);
    CHECK(((char *)&list[1])[0] == 0x55);
    memset(list, 0x55, sizeof list);
    strcpy(list[0].ifr_name, "lo");
    CALL(ioctl(fd, SIOCGIFFLAGS, list)); SHOW(list[0].ifr_flags & (IFF_UP | IFF_LOOPBACK));
    CALL(ioctl(fd, SIOCGIFMTU, list)); SHOW(list[0].ifr_mtu);
    CHECK(((char *)&list[1])[0] == 0x55);
    strcpy(list[0].ifr_name, "none"); CALL(ioctl(fd, SIOCGIFFLAGS, list));
    // Bound to one.
    char name[IFNAMSIZ] = "";
    socklen_t len = sizeof name;
    CALL(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &len)); SHOW(len);
    CALL(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "none", 5));
    CALL(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2));
    len = sizeof name;
    CALL(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &len)); printf("%s %d\n", name, (int)len);
    int mtu = 0, other = socket(AF_INET, SOCK_DGRAM, 0);
    len = sizeof mtu;
    CALL(getsockopt(other, IPPROTO_IP, IP_MTU, &mtu, &len));
    CALL(connect_to(other, 9)); CALL(getsockopt(other, IPPROTO_IP, IP_MTU, &mtu, &len)); SHOW(mtu);
    close(fd);
    close(other);
}

int main(void) {
    setvbuf(stdout, 0, _IOLBF, 0);
    names();
    reuse();
    connecting();
    transfers();
    sleeping_read();
    ends();
    options();
    echoes();
    edges();
    interfaces();
    counts();
    return 0;
}
