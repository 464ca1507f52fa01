// UDP over loopback: names, connected and unconnected, lost targets, message flags, control data, many at once; IPv6
// with IPv4 through mapped addresses, for TCP too; interfaces.
#define _GNU_SOURCE
#include "test.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static struct sockaddr_in at(uint32_t addr, int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(addr)};
}
static int port_of(int fd) {
    struct sockaddr_in6 name;
    socklen_t len = sizeof name;
    getsockname(fd, (void *)&name, &len);
    return ntohs(name.sin6_port);
}
static int bound(uint32_t addr) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in name = at(addr, 0);
    bind(fd, (void *)&name, sizeof name);
    return fd;
}
static void show_name(const char *what, struct sockaddr_storage *name) {
    char text[64] = "";
    if (name->ss_family == AF_INET) inet_ntop(AF_INET, &((struct sockaddr_in *)name)->sin_addr, text, sizeof text);
    if (name->ss_family == AF_INET6) inet_ntop(AF_INET6, &((struct sockaddr_in6 *)name)->sin6_addr, text, sizeof text);
    printf("%s: family %d %s\n", what, name->ss_family, text);
}
static void show_names(int fd) {
    struct sockaddr_storage name = {0};
    socklen_t len = sizeof name;
    if (getsockname(fd, (void *)&name, &len) == 0) show_name("own", &name), SHOW(len);
    memset(&name, 0, sizeof name), len = sizeof name;
    if (CALL(getpeername(fd, (void *)&name, &len)) == 0) show_name("peer", &name);
}

int main(void) {
    char b[256];
    int one = 1;
    // Unconnected.
    int a = bound(INADDR_LOOPBACK), c = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = at(INADDR_LOOPBACK, port_of(a)), none = at(INADDR_LOOPBACK, 1), from;
    socklen_t len = sizeof from;
    CALL(send(c, "x", 1, 0));
    CALL(sendto(c, "hello", 5, 0, (void *)&to, sizeof to));
    CHECK(port_of(c) != 0);
    show_names(c);
    CALL(recvfrom(a, b, 3, MSG_PEEK, (void *)&from, &len));
    CHECK(ntohs(from.sin_port) == port_of(c) && from.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    CALL(recv(a, b, 3, MSG_TRUNC));
    CALL(recv(a, b, 3, MSG_DONTWAIT));
    CALL(sendto(c, "", 0, 0, (void *)&to, sizeof to));
    CALL(recv(a, b, sizeof b, 0));
    static char large[65508];
    CALL(sendto(c, large, 65507, 0, (void *)&to, sizeof to));
    CALL(recv(a, large, sizeof large, 0));
    CALL(sendto(c, large, 65508, 0, (void *)&to, sizeof to));
    to.sin_port = 0;
    CALL(sendto(c, "x", 1, 0, (void *)&to, sizeof to));
    to.sin_port = htons(port_of(a));
    CALL(sendto(c, "x", 1, 0, (void *)&to, 8));
    struct sockaddr_in all = at(INADDR_BROADCAST, 9);
    CALL(sendto(c, "x", 1, MSG_OOB, (void *)&to, sizeof to));
    CALL(listen(c, 1));
    CALL(accept(c, NULL, NULL));
    CALL(shutdown(c, SHUT_RD));
    // Nobody there: told to a connected socket only.
    CALL(sendto(c, "x", 1, 0, (void *)&none, sizeof none));
    CALL(recv(c, b, 1, MSG_DONTWAIT));
    CALL(connect(c, (void *)&none, sizeof none));
    show_names(c);
    CALL(send(c, "x", 1, 0));
    struct pollfd p = {.fd = c, .events = POLLIN};
    CALL(poll(&p, 1, 1000)), printf("%#x\n", p.revents);
    CALL(recv(c, b, 1, MSG_DONTWAIT));
    CALL(recv(c, b, 1, MSG_DONTWAIT));
    // Connected: only the peer's datagrams come in.
    CALL(connect(c, (void *)&to, sizeof to));
    int other = bound(INADDR_LOOPBACK);
    struct sockaddr_in me = at(INADDR_LOOPBACK, port_of(c));
    sendto(other, "stranger", 8, 0, (void *)&me, sizeof me);
    sendto(a, "friend", 6, 0, (void *)&me, sizeof me);
    CALL(recv(c, b, sizeof b, 0));
    CALL(recv(c, b, sizeof b, MSG_DONTWAIT));
    CALL(write(c, "w", 1)), CALL(read(a, b, 1));
    CALL(connect(c, (void *)&(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));
    CALL(send(c, "x", 1, 0));
    // Ports.
    int d = socket(AF_INET, SOCK_DGRAM, 0);
    CALL(bind(d, (void *)&to, sizeof to));
    setsockopt(d, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    CALL(bind(d, (void *)&to, sizeof to));
    setsockopt(a, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    CALL(bind(d, (void *)&to, sizeof to));
    close(d);
    // Control data.
    CALL(setsockopt(a, IPPROTO_IP, IP_PKTINFO, &one, sizeof one));
    CALL(setsockopt(a, IPPROTO_IP, IP_RECVTTL, &one, sizeof one));
    sendto(c, "info", 4, 0, (void *)&to, sizeof to);
    char control[256];
    struct iovec iov = {b, 2};
    struct msghdr msg = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CALL(recvmsg(a, &msg, 0)), printf("flags %#x name %d\n", msg.msg_flags, msg.msg_namelen);
    for (struct cmsghdr *m = CMSG_FIRSTHDR(&msg); m; m = CMSG_NXTHDR(&msg, m)) {
        printf("level %d type %d length %zu\n", m->cmsg_level, m->cmsg_type, m->cmsg_len);
        if (m->cmsg_type == IP_TTL) SHOW(*(int *)CMSG_DATA(m));
        if (m->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo *info = (void *)CMSG_DATA(m);
            printf("to %s\n", inet_ntoa(info->ipi_addr)), SHOW(info->ipi_ifindex);
        }
    }
    msg.msg_controllen = 8, iov.iov_len = 10;
    sendto(c, "cut", 3, 0, (void *)&to, sizeof to);
    CALL(recvmsg(a, &msg, 0)), printf("flags %#x\n", msg.msg_flags);
    // Several at once.
    CALL(connect(c, (void *)&to, sizeof to));
    struct iovec parts[3] = {{"one", 3}, {"three", 5}, {"", 0}};
    struct mmsghdr many[3] = {{{.msg_iov = &parts[0], .msg_iovlen = 1}}, {{.msg_iov = &parts[1], .msg_iovlen = 1}}, {{.msg_iov = &parts[2], .msg_iovlen = 1}}};
    CALL(sendmmsg(c, many, 3, 0)), printf("%d %d %d\n", many[0].msg_len, many[1].msg_len, many[2].msg_len);
    char in[3][8];
    for (int i = 0; i < 3; i++) parts[i] = (struct iovec){in[i], 8};
    CALL(recvmmsg(a, many, 3, MSG_WAITFORONE, NULL)), printf("%d %d %d\n", many[0].msg_len, many[1].msg_len, many[2].msg_len);
    // Errors as messages.
    CALL(setsockopt(c, IPPROTO_IP, IP_RECVERR, &one, sizeof one));
    CALL(connect(c, (void *)&none, sizeof none));
    CALL(send(c, "lost", 4, 0));
    p = (struct pollfd){.fd = c, .events = 0};
    CALL(poll(&p, 1, 1000)), printf("%#x\n", p.revents);
    msg.msg_controllen = sizeof control;
    CALL(recvmsg(c, &msg, MSG_ERRQUEUE) >= 0), printf("flags %#x\n", msg.msg_flags);
    struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
    if (m) printf("level %d type %d errno %s origin %d type %d code %d\n", m->cmsg_level, m->cmsg_type, errno_name(*(int *)CMSG_DATA(m)), CMSG_DATA(m)[4], CMSG_DATA(m)[5], CMSG_DATA(m)[6]);
    CALL(recvmsg(c, &msg, MSG_ERRQUEUE));
    close(a), close(c), close(other);
    // IPv6, alone and for both.
    int s = socket(AF_INET6, SOCK_STREAM, 0), value = -1;
    len = sizeof value;
    getsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &value, &len), SHOW(value);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    CALL(bind(s, (void *)&any, 27)), CALL(bind(s, (void *)&any, 23));
    CALL(setsockopt(s, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
    CALL(listen(s, 5));
    int v4 = socket(AF_INET, SOCK_STREAM, 0);
    to = at(INADDR_LOOPBACK, port_of(s));
    CALL(connect(v4, (void *)&to, sizeof to));
    show_names(v4);
    struct sockaddr_storage peer;
    len = sizeof peer;
    int accepted = accept(s, (void *)&peer, &len);
    show_name("accepted", &peer), show_names(accepted);
    int v6 = socket(AF_INET6, SOCK_STREAM, 0);
    any.sin6_addr = in6addr_loopback, any.sin6_port = htons(port_of(s));
    CALL(connect(v6, (void *)&any, sizeof any));
    show_names(v6);
    close(accepted);
    accepted = accept(s, NULL, NULL);
    CALL(send(v6, "six", 3, 0)), CALL(recv(accepted, b, sizeof b, 0));
    int m6 = socket(AF_INET6, SOCK_STREAM, 0);
    inet_pton(AF_INET6, "::ffff:127.0.0.1", &any.sin6_addr);
    CALL(connect(m6, (void *)&any, sizeof any));
    show_names(m6);
    int only = socket(AF_INET6, SOCK_STREAM, 0);
    CALL(setsockopt(only, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one));
    CALL(connect(only, (void *)&any, sizeof any));
    any.sin6_addr = in6addr_any;
    CALL(bind(only, (void *)&any, sizeof any));
    int u6 = socket(AF_INET6, SOCK_DGRAM, 0), u4 = socket(AF_INET, SOCK_DGRAM, 0);
    any.sin6_port = 0;
    CALL(bind(u6, (void *)&any, sizeof any));
    CALL(setsockopt(u6, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one));
    to.sin_port = htons(port_of(u6));
    CALL(sendto(u4, "four", 4, 0, (void *)&to, sizeof to));
    len = sizeof peer;
    CALL(recvfrom(u6, b, sizeof b, 0, (void *)&peer, &len)), show_name("from", &peer);
    // Interfaces.
    struct ifaddrs *list, *i;
    CALL(getifaddrs(&list));
    for (i = list; i; i = i->ifa_next)
        if (!strcmp(i->ifa_name, "lo") && i->ifa_addr && i->ifa_addr->sa_family == AF_INET)
            printf("%s %s flags %#x\n", i->ifa_name, inet_ntoa(((struct sockaddr_in *)i->ifa_addr)->sin_addr), i->ifa_flags & (IFF_UP | IFF_LOOPBACK));
    CALL(if_nametoindex("lo")), CALL(if_nametoindex("none"));
    struct ifreq req = {.ifr_name = "lo"};
    CALL(ioctl(u4, SIOCGIFADDR, &req)), puts(inet_ntoa(((struct sockaddr_in *)&req.ifr_addr)->sin_addr));
    CALL(ioctl(u4, SIOCGIFNETMASK, &req)), puts(inet_ntoa(((struct sockaddr_in *)&req.ifr_addr)->sin_addr));
    CALL(ioctl(u4, SIOCGIFFLAGS, &req)), CHECK(req.ifr_flags & IFF_LOOPBACK);
    strcpy(req.ifr_name, "none"), CALL(ioctl(u4, SIOCGIFADDR, &req));
    return 0;
}
