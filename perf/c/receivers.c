/* The receivers of a broadcast: `receivers PORT CONNECTIONS`.
 *
 * It connects, writes a line when the server has all connections, and then reads a number of
 * seconds from each line of its input. For so long it has the server broadcast, again and again:
 * the first connection sends a message, and the next one when every connection has received it,
 * whole and unchanged. The answer is a line of JSON.
 *
 * It must cost less than the server, or that waits for it: a delivery is one recv, which shows by
 * being short that nothing else has come, and a share of one epoll_wait. Nor must it cost the
 * server: whoever sleeps in epoll_wait is woken by the sender, for nearly every message, and where
 * receivers are elsewhere no server pays for that. So it looks, and then sleeps by the clock, for
 * far less than a broadcast takes. Connections come from several addresses 127.0.0.x, each with
 * ports of its own, and end by RST, so that none keeps its port for a minute. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SIZE = 64,
    EVENTS = 512,
    BATCH = 500,
    PER_SOURCE = 5000,
    MOST = 1 << 16,
    PAUSE_NS = 100000,
    PATIENCE_S = 10
};

typedef struct {
    int fd;
    int at; /* bytes of the message that have come */
} receiver_t;

static receiver_t *receivers;
static int count;
static int epoll;
static uint64_t took_ns[MOST]; /* of each broadcast */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static int connected(int port, int index) {
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr =
                                     htonl(INADDR_LOOPBACK + 1 + (unsigned)(index / PER_SOURCE))};
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) < 0 ||
        bind(fd, (struct sockaddr *)&source, sizeof source) < 0 ||
        connect(fd, (struct sockaddr *)&server, sizeof server) < 0)
        die("connect");
    return fd;
}

/* In batches, so that the kernel's queue of connections is never full; each echoes a byte, so that
 * the server has it. */
static void connect_all(int port) {
    for (int begin = 0; begin < count; begin += BATCH) {
        int end = begin + BATCH < count ? begin + BATCH : count;
        for (int i = begin; i < end; i++) {
            receivers[i].fd = connected(port, i);
            if (send(receivers[i].fd, ".", 1, MSG_NOSIGNAL) != 1) die("send");
        }
        for (int i = begin; i < end; i++) {
            struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = &receivers[i]};
            char byte;
            if (recv(receivers[i].fd, &byte, 1, 0) != 1 ||
                epoll_ctl(epoll, EPOLL_CTL_ADD, receivers[i].fd, &event) < 0)
                die("the server does not echo");
        }
    }
}

/* Whether the receiver has the whole message now. */
static int receive(receiver_t *receiver, const unsigned char *message) {
    unsigned char data[SIZE + 1]; /* one more: a message that comes twice is seen */
    ssize_t got = recv(receiver->fd, data, sizeof data - (size_t)receiver->at, MSG_DONTWAIT);
    if (got <= 0 || receiver->at + got > SIZE ||
        memcmp(data, message + receiver->at, (size_t)got) != 0) {
        fprintf(stderr, "receiver %d: %zd bytes after %d are not the message\n",
                (int)(receiver - receivers), got, receiver->at);
        exit(1);
    }
    receiver->at = (receiver->at + (int)got) % SIZE;
    return receiver->at == 0;
}

static void broadcast(const unsigned char *message) {
    struct epoll_event events[EVENTS];
    if (send(receivers[0].fd, message, SIZE, MSG_NOSIGNAL) != SIZE) die("send");
    uint64_t moved = now_ns();
    for (int missing = count; missing > 0;) {
        int ready = epoll_wait(epoll, events, EVENTS, 0);
        if (ready < 0) die("epoll_wait");
        for (int i = 0; i < ready; i++) missing -= receive(events[i].data.ptr, message);
        if (ready > 0) moved = now_ns();
        else if (now_ns() - moved > PATIENCE_S * (uint64_t)1000000000) {
            fprintf(stderr, "%d receivers wait for a message that does not come\n", missing);
            exit(1);
        }
        if (ready < EVENTS && missing > 0) nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
    }
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void broadcast_for(double seconds) {
    static uint64_t number;
    unsigned char message[SIZE] = "B a message to everybody, which differs from the one before: ";
    double cpu = cpu_seconds();
    uint64_t began = now_ns(), then = began, now = began;
    int done = 0;
    while (done == 0 || (done < MOST && (double)(now - began) < seconds * 1e9)) {
        number++;
        memcpy(message + 1, &number, sizeof number);
        broadcast(message);
        now = now_ns();
        took_ns[done++] = now - then;
        then = now;
    }
    cpu = cpu_seconds() - cpu;
    qsort(took_ns, (size_t)done, sizeof *took_ns, compare);
    printf("{\"broadcasts\": %d, \"seconds\": %.9f, \"cpu_seconds\": %.6f, \"p50_us\": %.3f, "
           "\"max_us\": %.3f}\n",
           done, (double)(now - began) / 1e9, cpu, (double)took_ns[done / 2] / 1e3,
           (double)took_ns[done - 1] / 1e3);
    fflush(stdout);
}

int main(int argc, char **argv) {
    double seconds;
    if (argc != 3 || (count = atoi(argv[2])) < 1) {
        fprintf(stderr, "usage: receivers PORT CONNECTIONS\n");
        return 2;
    }
    receivers = calloc((size_t)count, sizeof *receivers);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (receivers == NULL || epoll < 0 || prctl(PR_SET_TIMERSLACK, 1UL) < 0) die("receivers");
    connect_all(atoi(argv[1]));
    puts("connected");
    fflush(stdout);
    while (scanf("%lf", &seconds) == 1) broadcast_for(seconds);
    return 0;
}
