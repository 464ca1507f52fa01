// NETLINK_SOCK_DIAG: the program's own sockets among those that the kernel tells of (man 7 sock_diag).
// @variants gcc gcc-static
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

static int sockets[8], count;

static int keep(int fd) { return sockets[count++] = fd; }

static unsigned inode(int fd) {
    struct stat st;
    fstat(fd, &st);
    return st.st_ino;
}

static int port(int fd) {
    struct sockaddr_in6 name;
    socklen_t len = sizeof name;
    getsockname(fd, (struct sockaddr *)&name, &len);
    return name.sin6_port;
}

static int ask(int fd, int family, int protocol, unsigned states) {
    struct {
        struct nlmsghdr head;
        struct inet_diag_req_v2 question;
    } request = {
        {sizeof request, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 7, 0},
        {.sdiag_family = family, .sdiag_protocol = protocol, .idiag_states = states},
    };
    return send(fd, &request, sizeof request, 0) == sizeof request ? 0 : -1;
}

static void show(int family, int protocol, unsigned states) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    printf("family %d protocol %d states %x: ", family, protocol, states);
    if (fd < 0 || ask(fd, family, protocol, states)) {
        printf("%s\n", errno_name(errno));
        return;
    }
    static char buffer[1 << 16];
    // In the order of the program's sockets: that of the kernel is its own.
    char lines[8][200] = {""};
    for (;;) {
        int len = recv(fd, buffer, sizeof buffer, 0);
        for (struct nlmsghdr *head = (void *)buffer; NLMSG_OK(head, len); head = NLMSG_NEXT(head, len)) {
            if (head->nlmsg_type == NLMSG_ERROR) {
                printf("%s\n", errno_name(-((struct nlmsgerr *)NLMSG_DATA(head))->error));
                close(fd);
                return;
            }
            if (head->nlmsg_type == NLMSG_DONE) {
                int error = *(int *)NLMSG_DATA(head);
                printf("%s\n", error < 0 ? errno_name(-error) : "done");
                for (int i = 0; i < 8; i++)
                    printf("%s", lines[i]);
                close(fd);
                return;
            }
            struct inet_diag_msg *found = NLMSG_DATA(head);
            for (int i = 0; i < count; i++) {
                if (found->idiag_inode != inode(sockets[i]))
                    continue;
                char local[64], remote[64];
                inet_ntop(family, found->id.idiag_src, local, sizeof local);
                inet_ntop(family, found->id.idiag_dst, remote, sizeof remote);
                snprintf(lines[i], sizeof lines[i], "%d: family %d state %d %s %s own port %d, %d to read, %d to send\n", i,
                    found->idiag_family, found->idiag_state, local, remote,
                    found->id.idiag_sport == port(sockets[i]), found->idiag_rqueue, found->idiag_wqueue);
            }
        }
    }
}

int main(void) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof name;
    int listener = keep(socket(AF_INET, SOCK_STREAM, 0));
    bind(listener, (void *)&name, sizeof name);
    listen(listener, 7);
    getsockname(listener, (void *)&name, &len);
    int client = keep(socket(AF_INET, SOCK_STREAM, 0));
    connect(client, (void *)&name, sizeof name);
    int server = keep(accept(listener, 0, 0));
    send(client, "abc", 3, 0);
    char byte;
    recv(server, &byte, 1, MSG_PEEK);
    int second = socket(AF_INET, SOCK_STREAM, 0);
    connect(second, (void *)&name, sizeof name);
    struct sockaddr_in6 name6 = {.sin6_family = AF_INET6};
    int six = keep(socket(AF_INET6, SOCK_STREAM, 0));
    bind(six, (void *)&name6, sizeof name6);
    listen(six, 3);
    int datagrams = keep(socket(AF_INET, SOCK_DGRAM, 0));
    name.sin_port = 0;
    bind(datagrams, (void *)&name, sizeof name);
    int peer = keep(socket(AF_INET, SOCK_DGRAM, 0));
    getsockname(datagrams, (void *)&name, &len);
    connect(peer, (void *)&name, sizeof name);
    show(AF_INET, IPPROTO_TCP, -1);
    show(AF_INET, IPPROTO_TCP, 1 << 10);
    show(AF_INET, IPPROTO_TCP, 1 << 1);
    show(AF_INET6, IPPROTO_TCP, -1);
    show(AF_INET, IPPROTO_UDP, -1);
    show(AF_INET, 77, -1);
    show(4, IPPROTO_TCP, -1);
    show(99, IPPROTO_TCP, -1);
    close(second);
    return 0;
}
