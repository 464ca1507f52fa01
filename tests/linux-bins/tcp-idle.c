// Connections that are idle for a while between transfers: nothing of what is under way is lost, nothing is
// mixed up.
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

enum { PAIRS = 40, MOST = 3000 };

static int ends[PAIRS][2];
static char bytes[MOST], seen[MOST];

// What pair `index` sends in a round: as many bytes, and others each time.
static int fill(int index, int round) {
    int count = 1 + (index * 797 + round * 131) % MOST;
    for (int i = 0; i < count; i++) bytes[i] = (char)(index * 31 + round * 7 + i);
    return count;
}

static int read_all(int fd, int count) {
    int done = 0;
    while (done < count) {
        ssize_t got = read(fd, seen + done, count - done);
        if (got <= 0) break;
        done += got;
    }
    return done == count && memcmp(bytes, seen, count) == 0;
}

static void idle(void) {
    struct timespec while_ = {1, 300000000};
    nanosleep(&while_, NULL);
}

int main(void) {
    struct sockaddr_in name = {.sin_family = AF_INET};
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof name;
    int at = socket(AF_INET, SOCK_STREAM, 0);
    bind(at, (struct sockaddr *)&name, sizeof name);
    getsockname(at, (struct sockaddr *)&name, &len);
    listen(at, PAIRS);
    for (int i = 0; i < PAIRS; i++) {
        ends[i][0] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(ends[i][0], (struct sockaddr *)&name, sizeof name)) return 1;
        ends[i][1] = accept(at, NULL, NULL);
    }
    int good = 0;
    for (int round = 0; round < 3; round++) {
        // Every third pair's bytes are not read before the pause.
        for (int i = 0; i < PAIRS; i++) {
            int count = fill(i, round), from = round & 1;
            if (write(ends[i][from], bytes, count) != count) return 2;
            if (i % 3 != 0) good += read_all(ends[i][!from], count);
        }
        idle();
        for (int i = 0; i < PAIRS; i += 3) {
            int count = fill(i, round), to = !(round & 1), queued = 0;
            for (int tries = 0; queued < count && tries < 1000000; tries++) ioctl(ends[i][to], FIONREAD, &queued);
            good += queued == count && read_all(ends[i][to], count);
        }
        idle();
    }
    printf("%d of %d\n", good, 3 * PAIRS);

    // One that fills both directions after the pauses.
    static char large[200000];
    for (size_t i = 0; i < sizeof large; i++) large[i] = (char)(i / 3);
    unsigned long sums[2] = {0, 0};
    for (int from = 0; from < 2; from++) {
        size_t sent = 0, received = 0;
        while (received < sizeof large) {
            size_t left = sizeof large - sent;
            if (left > 0) {
                ssize_t count = send(ends[1][from], large + sent, left, MSG_DONTWAIT);
                if (count > 0) sent += count;
            }
            ssize_t count = recv(ends[1][!from], seen, sizeof seen, MSG_DONTWAIT);
            for (ssize_t i = 0; i < count; i++) sums[from] = sums[from] * 31 + (unsigned char)seen[i];
            if (count > 0) received += count;
        }
    }
    printf("%d\n", sums[0] == sums[1] && sums[0] != 0);

    // Ends: what is left is read first.
    for (int i = 0; i < PAIRS; i++) {
        int count = fill(i, 9);
        if (write(ends[i][0], bytes, count) != count) return 3;
        close(ends[i][0]);
    }
    idle();
    good = 0;
    for (int i = 0; i < PAIRS; i++) {
        int count = fill(i, 9);
        good += read_all(ends[i][1], count) && read(ends[i][1], seen, 1) == 0;
        close(ends[i][1]);
    }
    printf("%d of %d\n", good, PAIRS);
    return 0;
}
