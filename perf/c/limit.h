/* The C limit: the least a single-threaded epoll server can do per message.
 *
 * A program defines `reply` and includes this file; the compiler sees it whole. Sockets are
 * registered once and edge-triggered; a read shorter than the buffer means drained, so a message
 * costs one recv, one send and a share of one epoll_wait. Output that the kernel does not take is
 * kept, and its connection is not read until it has gone. There are no limits, no timeouts and no
 * threads: what a framework adds is measured against this.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, READ_SIZE = 64 * 1024, FRAME_MOST = 65535 + 4 };

typedef struct peer {
    int fd;
    struct peer *before, *after; /* in the list of all, which a broadcast walks */
    unsigned char *carry;        /* an incomplete message, or NULL */
    size_t carried;
    unsigned char *output; /* what the kernel did not take, or NULL */
    size_t output_at, output_size;
} peer_t;

static peer_t *everyone; /* the last one accepted */

/* Turn `size` bytes (with what was carried before them) into the bytes to send, and keep an
 * incomplete message with peer_carry. Returns their number and sets `*answer`, or returns -1 for
 * input that is no message. */
static ssize_t reply(peer_t *peer, unsigned char *data, size_t size, unsigned char **answer);

static unsigned char input[FRAME_MOST + READ_SIZE];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void peer_carry(peer_t *peer, const unsigned char *data, size_t size) {
    peer->carried = size;
    if (size == 0) return;
    if (peer->carry == NULL && (peer->carry = malloc(FRAME_MOST)) == NULL) die("malloc");
    memcpy(peer->carry, data, size);
}

static void peer_close(peer_t *peer) {
    *(peer->before == NULL ? &everyone : &peer->before->after) = peer->after;
    if (peer->after != NULL) peer->after->before = peer->before;
    close(peer->fd);
    free(peer->carry);
    free(peer->output);
    free(peer);
}

/* Whether all of it was sent; the rest is kept for the next EPOLLOUT. -1: the connection is dead.
 */
static int peer_send(peer_t *peer, const unsigned char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(peer->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent < 0) {
            if ((peer->output = malloc(size)) == NULL) die("malloc");
            memcpy(peer->output, data, size);
            peer->output_at = 0;
            peer->output_size = size;
            return 0;
        }
        data += sent;
        size -= (size_t)sent;
    }
    return 1;
}

static int peer_flush(peer_t *peer) {
    unsigned char *kept = peer->output;
    peer->output = NULL;
    int done = peer_send(peer, kept + peer->output_at, peer->output_size - peer->output_at);
    free(kept);
    return done;
}

/* Read, reply and send until the socket is drained or output stands in the way; -1 when the
 * connection is over. */
static int peer_read(peer_t *peer) {
    for (;;) {
        unsigned char *answer;
        size_t carried = peer->carried;
        if (carried > 0) memcpy(input, peer->carry, carried);
        ssize_t got = recv(peer->fd, input + carried, READ_SIZE, 0);
        if (got < 0) return errno == EAGAIN ? 0 : -1;
        if (got == 0) return -1;
        ssize_t size = reply(peer, input, carried + (size_t)got, &answer);
        if (size < 0) return -1;
        int sent = peer_send(peer, answer, (size_t)size);
        if (sent < 1) return sent;
        if (got < READ_SIZE) return 0;
    }
}

static int peer_serve(peer_t *peer, unsigned int events) {
    if (peer->output != NULL) {
        int sent = peer_flush(peer);
        return sent < 1 ? sent : peer_read(peer);
    }
    if (events &
        (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) { /* no further edge will come: read to the end */
        while (peer->output == NULL)
            if (peer_read(peer) < 0) return -1;
        return 0;
    }
    return events & EPOLLIN ? peer_read(peer) : 0;
}

static void accept_all(int epoll, int listener) {
    int fd, yes = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        peer_t *peer = calloc(1, sizeof *peer);
        if (peer == NULL) die("calloc");
        peer->fd = fd;
        peer->after = everyone;
        if (everyone != NULL) everyone->before = peer;
        everyone = peer;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                    .data.ptr = peer};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
    }
}

static int listen_anywhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 4096) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        die("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

int main(void) {
    struct epoll_event events[EVENTS];
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_anywhere();
    struct epoll_event accepting = {.events = EPOLLIN | EPOLLET, .data.ptr = NULL};
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &accepting) < 0) die("epoll");
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            peer_t *peer = events[i].data.ptr;
            if (peer == NULL) accept_all(epoll, listener);
            else if (peer_serve(peer, events[i].events) < 0) peer_close(peer);
        }
    }
}
