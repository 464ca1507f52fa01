// lat_pipe, lat_unix, lat_tcp, lat_udp, lat_connect, lat_ctx; bw_pipe, bw_unix, bw_tcp.
#define _GNU_SOURCE
#include "micro.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { CHUNK = 64 << 10, MOST_IN_RING = 16, MOST_IDLE = 10000 };

// What this process, and what its child, reads from and writes to.
static int our_in = -1, our_out = -1, their_in = -1, their_out = -1;
static int listener = -1;
static struct sockaddr_in address;

static void close_all(void) {
    int *all[] = {&our_in, &our_out, &their_in, &their_out, &listener};
    for (int i = 0; i < 5; i++) {
        if (*all[i] >= 0) close(*all[i]);
        *all[i] = -1;
    }
}

static void echo(void) {
    char byte;
    while (read(their_in, &byte, 1) == 1) {
        if (write(their_out, &byte, 1) != 1) return;
    }
}

static void round_trip(long times) {
    char byte = 'x';
    while (times--) {
        FAIL_IF(write(our_out, &byte, 1) != 1, "write");
        FAIL_IF(read(our_in, &byte, 1) != 1, "read");
    }
}

static void pipes(long arg) {
    (void)arg;
    int there[2], back[2];
    FAIL_IF(pipe(there) || pipe(back), "pipe");
    our_out = there[1], their_in = there[0], our_in = back[0], their_out = back[1];
    start_child(echo);
}

static void compute(void) {
    for (;;) __asm__ volatile("");
}

// Beside a process that never sleeps: what matters is that nobody waits for the end of its slice.
static void pipes_and_company(long arg) {
    pipes(arg);
    start_child(compute);
}

static void unix_pair(void (*child)(void)) {
    int pair[2];
    FAIL_IF(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    our_in = pair[0], our_out = dup(pair[0]), their_in = pair[1], their_out = dup(pair[1]);
    start_child(child);
}

static void unix_echo(long arg) {
    (void)arg;
    unix_pair(echo);
}

static int internet_socket(int type) {
    int made = socket(AF_INET, type, 0);
    FAIL_IF(made < 0, "socket");
    return made;
}

// Binds to a free port of the loopback interface; `address` is where.
static void bind_to_loopback(int to_bind) {
    socklen_t len = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    FAIL_IF(bind(to_bind, (struct sockaddr *)&address, len), "bind");
    FAIL_IF(getsockname(to_bind, (struct sockaddr *)&address, &len), "getsockname");
}

static void tcp_pair(void (*child)(void)) {
    int on = 1;
    listener = internet_socket(SOCK_STREAM);
    bind_to_loopback(listener);
    // So long that nobody who connects many times has to try again after a second.
    FAIL_IF(listen(listener, 4096), "listen");
    our_out = internet_socket(SOCK_STREAM);
    FAIL_IF(connect(our_out, (struct sockaddr *)&address, sizeof address), "connect");
    their_in = accept(listener, NULL, NULL);
    FAIL_IF(their_in < 0, "accept");
    our_in = dup(our_out), their_out = dup(their_in);
    setsockopt(our_out, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(their_in, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    start_child(child);
}

static void tcp_echo(long arg) {
    (void)arg;
    tcp_pair(echo);
}

// Both ends of the connections that nobody uses.
static int idle[MOST_IDLE][2], idle_count;

// Beside `connections` that are idle.
static void tcp_echo_beside(long connections) {
    struct rlimit files = {2 * MOST_IDLE + 100, 2 * MOST_IDLE + 100};
    FAIL_IF(setrlimit(RLIMIT_NOFILE, &files), "RLIMIT_NOFILE");
    tcp_echo(0);
    for (idle_count = 0; idle_count < connections; idle_count++) {
        int *pair = idle[idle_count];
        pair[0] = internet_socket(SOCK_STREAM);
        pair[1] = -1;
        FAIL_IF(connect(pair[0], (struct sockaddr *)&address, sizeof address), "connect");
        pair[1] = accept(listener, NULL, NULL);
        FAIL_IF(pair[1] < 0, "accept");
    }
}

static void close_idle(void) {
    while (idle_count > 0) {
        idle_count--;
        close(idle[idle_count][0]);
        close(idle[idle_count][1]);
    }
    close_all();
}

static double free_before;

static double free_memory(void) {
    struct sysinfo info;
    FAIL_IF(sysinfo(&info), "sysinfo");
    return (double)info.freeram * info.mem_unit;
}

// The child has the other ends: two processes need half as many descriptors each.
static long wanted;

static void accept_wanted(void) {
    for (long i = 0; i < wanted; i++) {
        if (accept(listener, NULL, NULL) < 0) return;
    }
    if (write(their_out, "x", 1) == 1) pause();
}

static void note_memory_and_connect(long connections) {
    struct rlimit files;
    FAIL_IF(getrlimit(RLIMIT_NOFILE, &files), "RLIMIT_NOFILE");
    if (files.rlim_max < MOST_IDLE + 100) files.rlim_max = MOST_IDLE + 100;
    files.rlim_cur = files.rlim_max;
    FAIL_IF(setrlimit(RLIMIT_NOFILE, &files), "RLIMIT_NOFILE");
    free_before = free_memory();
    wanted = connections;
    tcp_pair(accept_wanted);
    for (idle_count = 0; idle_count < connections; idle_count++) {
        int *pair = idle[idle_count];
        pair[0] = internet_socket(SOCK_STREAM);
        pair[1] = -1;
        FAIL_IF(connect(pair[0], (struct sockaddr *)&address, sizeof address), "connect");
    }
    char byte;
    FAIL_IF(read(our_in, &byte, 1) != 1, "accept");
}

// What both ends of a connection take together.
static double memory_of_connection(void) { return (free_before - free_memory()) / idle_count; }

static void udp_echo(long arg) {
    (void)arg;
    our_out = internet_socket(SOCK_DGRAM);
    bind_to_loopback(our_out);
    struct sockaddr_in ours = address;
    their_in = internet_socket(SOCK_DGRAM);
    bind_to_loopback(their_in);
    FAIL_IF(connect(their_in, (struct sockaddr *)&ours, sizeof ours), "connect");
    FAIL_IF(connect(our_out, (struct sockaddr *)&address, sizeof address), "connect");
    our_in = dup(our_out), their_out = dup(their_in);
    start_child(echo);
}

// Accepts and closes; the client waits for that, so that the queue is never full.
static void accept_all(void) {
    for (;;) {
        int made = accept(listener, NULL, NULL);
        if (made >= 0) close(made);
    }
}

static void listen_and_accept(long arg) {
    (void)arg;
    listener = internet_socket(SOCK_STREAM);
    bind_to_loopback(listener);
    FAIL_IF(listen(listener, 8), "listen");
    start_child(accept_all);
}

// The end by a reset leaves no state behind, so that ports do not run out.
static void connect_and_close(long times) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    while (times--) {
        char byte;
        int made = internet_socket(SOCK_STREAM);
        if (connect(made, (struct sockaddr *)&address, sizeof address)) {
            close(made);
            fail("connect");
        }
        if (read(made, &byte, 1) != 0) fail("end of the connection");
        setsockopt(made, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(made);
    }
}

static char buffer[CHUNK];

// Sends as many bytes as it is asked for: numbers come in on one descriptor, data goes out on another.
static void send_on_demand(void) {
    long chunks;
    while (read(their_in, &chunks, sizeof chunks) == sizeof chunks) {
        for (long left = chunks * CHUNK; left > 0;) {
            ssize_t sent = write(their_out, buffer, left < CHUNK ? left : CHUNK);
            if (sent <= 0) return;
            left -= sent;
        }
    }
}

static void receive(long chunks) {
    FAIL_IF(write(our_out, &chunks, sizeof chunks) != sizeof chunks, "write");
    for (long left = chunks * CHUNK; left > 0;) {
        ssize_t got = read(our_in, buffer, sizeof buffer);
        FAIL_IF(got <= 0, "read");
        left -= got;
    }
}

static void pipe_sender(long arg) {
    (void)arg;
    int there[2], back[2];
    FAIL_IF(pipe(there) || pipe(back), "pipe");
    our_out = there[1], their_in = there[0], our_in = back[0], their_out = back[1];
    start_child(send_on_demand);
}

static void unix_sender(long arg) {
    (void)arg;
    unix_pair(send_on_demand);
}

static void tcp_sender(long arg) {
    (void)arg;
    tcp_pair(send_on_demand);
}

// lat_ctx: processes in a ring pass a token through pipes; each reads through so much memory when it
// has the token. What the pipes and the reading cost is measured in one process, and taken off.
static int ring[MOST_IN_RING][2], ring_size, ring_index;
static long touched;
static char *memory;

static void touch(void) {
    long sum = 0;
    for (long i = 0; i < touched; i += sizeof sum) sum += *(volatile long *)(memory + i);
    use(&sum);
}

static void pass_on(void) {
    char byte;
    int from = ring[ring_index][0], to = ring[(ring_index + 1) % ring_size][1];
    // A copy of its own of the memory.
    for (long i = 0; i < touched; i += 4096) memory[i] = 1;
    while (read(from, &byte, 1) == 1) {
        touch();
        if (write(to, &byte, 1) != 1) return;
    }
}

// `arg` is processes * 1000 + KiB.
static void make_ring(long arg) {
    ring_size = arg / 1000;
    touched = arg % 1000 << 10;
    memory = calloc(1, touched + 1);
    FAIL_IF(!memory, "memory");
    for (long i = 0; i < touched; i += 4096) memory[i] = 1;
    for (int i = 0; i < ring_size; i++) FAIL_IF(pipe(ring[i]), "pipe");
    for (ring_index = 1; ring_index < ring_size; ring_index++) start_child(pass_on);
}

// One time is one switch; a lap has as many as there are processes.
static void switch_around(long times) {
    char byte = 'x';
    for (long laps = (times + ring_size - 1) / ring_size; laps > 0; laps--) {
        FAIL_IF(write(ring[1 % ring_size][1], &byte, 1) != 1, "write");
        FAIL_IF(read(ring[0][0], &byte, 1) != 1, "read");
        touch();
    }
}

// The same reads, writes and touches without a switch. Nobody else reads a pipe of its own.
static void without_switches(long times) {
    static int own[2] = {-1, -1};
    char byte = 'x';
    if (own[0] < 0) FAIL_IF(pipe(own), "pipe");
    for (long laps = (times + ring_size - 1) / ring_size * ring_size; laps > 0; laps--) {
        FAIL_IF(write(own[1], &byte, 1) != 1, "write");
        FAIL_IF(read(own[0], &byte, 1) != 1, "read");
        touch();
    }
}

static void break_ring(void) {
    stop_children();
    for (int i = 0; i < ring_size; i++) {
        close(ring[i][0]);
        close(ring[i][1]);
    }
    free(memory);
    memory = NULL;
}

#define RING(name, processes, kib)                                                                   \
    {"switches", name, NANOSECONDS, make_ring, switch_around, break_ring, without_switches,          \
     .arg = processes * 1000 + kib, .counted = 480}

const struct op ipc_ops[] = {
    {"ipc", "lat_pipe", NANOSECONDS, pipes, round_trip, close_all, .counted = 300},
    {"ipc", "lat_pipe busy", NANOSECONDS, pipes_and_company, round_trip, close_all, .counted = 300},
    {"ipc", "lat_unix", NANOSECONDS, unix_echo, round_trip, close_all, .counted = 300},
    {"ipc", "bw_pipe", MEGABYTES, pipe_sender, receive, close_all, .bytes = CHUNK, .counted = 32},
    {"ipc", "bw_unix", MEGABYTES, unix_sender, receive, close_all, .bytes = CHUNK, .counted = 32},
    {"loopback", "lat_tcp", NANOSECONDS, tcp_echo, round_trip, close_all, .counted = 200},
    // By their names only, for they take long: hx-bench gate connections
    {"connections", "lat_tcp beside 10", NANOSECONDS, tcp_echo_beside, round_trip, close_idle, .arg = 10, .counted = 200},
    {"connections", "lat_tcp beside 10000", NANOSECONDS, tcp_echo_beside, round_trip, close_idle, .arg = 10000, .counted = 200},
    {"connections", "memory of an idle connection, of 10000", BYTES, note_memory_and_connect, NULL, close_idle, .arg = 10000, .size = memory_of_connection},
    {"loopback", "lat_udp", NANOSECONDS, udp_echo, round_trip, close_all, .counted = 200},
    {"loopback", "lat_connect", NANOSECONDS, listen_and_accept, connect_and_close, close_all, .counted = 50},
    {"loopback", "bw_tcp", MEGABYTES, tcp_sender, receive, close_all, .bytes = CHUNK, .counted = 32},
    RING("lat_ctx 2/0K", 2, 0),
    RING("lat_ctx 2/16K", 2, 16),
    RING("lat_ctx 8/0K", 8, 0),
    RING("lat_ctx 8/16K", 8, 16),
    RING("lat_ctx 16/16K", 16, 16),
    {0},
};
