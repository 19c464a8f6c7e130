/* A second load client, to hold hydrogen's generator against: `client PORT CONNECTIONS SIZE WARM_UP
 * SECONDS`.
 *
 * The generator is part of the project that it measures, so something that has nothing in common
 * with it has to come to the same figures. This is the plain way to do it: one thread, an
 * edge-triggered epoll, one message in flight for each connection; a reply is compared with what
 * was sent, and the next message goes out. Content differs from connection to connection and from
 * each message to the next. Latency is from right before send to right after the recv that
 * completes the reply. A warm-up comes first, of which only the faults count, and any fault ends it
 * all. The answer is a line of JSON. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A latency is counted in its tenth of a microsecond, from a second on in the last one. The sockets
 * block: a message that fits into the kernel's buffers leaves in one send, however slow the server
 * is. */
enum {
    EVENTS = 256,
    BUCKETS = 10000000,
    BUCKET_NS = 100,
    SIZE_MOST = 64 * 1024,
    PATIENCE_MS = 10000
};

typedef struct {
    int fd;
    size_t received; /* of the reply that is awaited */
    uint64_t sent_ns;
    unsigned char *message; /* the one in flight */
} client_t;

static client_t *clients;
static int count;
static size_t size;
static int epoll;
static int is_measuring;
static uint32_t latencies[BUCKETS];
static uint64_t messages;
static unsigned char reply[SIZE_MOST];

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

static void client_open(client_t *client, int port) {
    struct sockaddr_in server = {.sin_family = AF_INET,
                                 .sin_port = htons((uint16_t)port),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = client};
    int yes = 1;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    client->message = malloc(size);
    if (client->fd < 0 || client->message == NULL ||
        connect(client->fd, (struct sockaddr *)&server, sizeof server) < 0 ||
        setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0 ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) < 0)
        die("connect");
    for (size_t i = 0; i < size; i++) client->message[i] = (unsigned char)rand();
}

static void client_send(client_t *client) {
    client->message[0]++; /* another message than the last one */
    client->received = 0;
    client->sent_ns = now_ns();
    if (send(client->fd, client->message, size, MSG_NOSIGNAL) != (ssize_t)size) die("send");
}

/* Whether the reply is complete now. */
static int client_receive(client_t *client) {
    ssize_t got = recv(client->fd, reply, size - client->received, 0);
    uint64_t took = now_ns() - client->sent_ns;
    if (got < 0) die("recv");
    if (got == 0 || memcmp(reply, client->message + client->received, (size_t)got) != 0) {
        fprintf(stderr, "connection %d: %s\n", (int)(client - clients),
                got == 0 ? "the server has ended it" : "a wrong reply");
        exit(1);
    }
    client->received += (size_t)got;
    if (client->received < size) return 0;
    took /= BUCKET_NS;
    if (is_measuring) {
        latencies[took < BUCKETS ? took : BUCKETS - 1]++;
        messages++;
    }
    return 1;
}

static int wait_for_replies(struct epoll_event *events) {
    int ready = epoll_wait(epoll, events, EVENTS, PATIENCE_MS);
    if (ready < 0 && errno != EINTR) die("epoll_wait");
    if (ready == 0) {
        fprintf(stderr, "the server does not reply\n");
        exit(1);
    }
    return ready;
}

/* Each reply is followed by the next message; returns after so many seconds, with a message in
 * flight on each connection. */
static double run(double seconds) {
    struct epoll_event events[EVENTS];
    uint64_t began = now_ns(), now = began;
    while ((double)(now - began) < seconds * 1e9) {
        int ready = wait_for_replies(events);
        for (int i = 0; i < ready; i++)
            if (client_receive(events[i].data.ptr)) client_send(events[i].data.ptr);
        now = now_ns();
    }
    return (double)(now - began) / 1e9;
}

/* Await what is in flight. */
static void drain(void) {
    struct epoll_event events[EVENTS];
    for (int missing = count; missing > 0;) {
        int ready = wait_for_replies(events);
        for (int i = 0; i < ready; i++) missing -= client_receive(events[i].data.ptr);
    }
}

/* What that share of the latencies does not exceed, in microseconds: the middle of its bucket. */
static double percentile_us(double share) {
    uint64_t seen = 0;
    size_t bucket = 0;
    while (bucket < BUCKETS && (double)(seen += latencies[bucket]) < share * (double)messages)
        bucket++;
    return ((double)bucket + 0.5) * BUCKET_NS / 1e3;
}

int main(int argc, char **argv) {
    if (argc != 6 || (count = atoi(argv[2])) < 1 || (size = strtoul(argv[3], NULL, 10)) < 1 ||
        size > SIZE_MOST) {
        fprintf(stderr, "usage: client PORT CONNECTIONS SIZE WARM_UP SECONDS\n");
        return 2;
    }
    clients = calloc((size_t)count, sizeof *clients);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (clients == NULL || epoll < 0) die("client");
    for (int i = 0; i < count; i++) client_open(&clients[i], atoi(argv[1]));
    for (int i = 0; i < count; i++) client_send(&clients[i]);
    run(atof(argv[4]));
    is_measuring = 1;
    double cpu = cpu_seconds(), seconds = run(atof(argv[5]));
    cpu = cpu_seconds() - cpu;
    is_measuring = 0;
    drain();
    printf("{\"messages\": %llu, \"seconds\": %.9f, \"messages_per_second\": %.3f, ",
           (unsigned long long)messages, seconds, (double)messages / seconds);
    printf("\"p50_us\": %.3f, \"p99_us\": %.3f, \"cpu_seconds\": %.6f}\n", percentile_us(0.50),
           percentile_us(0.99), cpu);
    return 0;
}
