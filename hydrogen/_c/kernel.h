/* System calls, the clock, threads, and what a debug build asserts: see kernel.pxd. */
#ifndef HYDROGEN_KERNEL_H
#define HYDROGEN_KERNEL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef HYDROGEN_DEBUG
#define HYDROGEN_DEBUG 0
#endif
#ifndef HYDROGEN_PLANTED_RACE
#define HYDROGEN_PLANTED_RACE 0
#endif
#ifdef Py_GIL_DISABLED
#define HYDROGEN_GIL 0
#else
#define HYDROGEN_GIL 1
#endif

#if HYDROGEN_DEBUG
#define kernel_assert(condition)                                                          \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "hydrogen: %s does not hold (%s:%d)\n", #condition, __FILE__, \
                    __LINE__);                                                            \
            abort();                                                                      \
        }                                                                                 \
    } while (0)
#else
#define kernel_assert(condition) \
    do { (void)sizeof(condition); } while (0)
#endif

static inline int kernel_bit_length(uint32_t v) { return v ? 32 - __builtin_clz(v) : 0; }

static inline uint64_t kernel_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void kernel_sleep(uint64_t ns) {
    struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    (void)nanosleep(&time, NULL);
}

static inline int64_t kernel_recv(int fd, void *to, size_t n) {
    ssize_t got;
    do got = recv(fd, to, n, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -(int64_t)errno : (int64_t)got;
}
/* MSG_NOSIGNAL: a peer that is gone is an error of this connection, never a SIGPIPE of the process.
 */
static inline int64_t kernel_send(int fd, struct iovec *parts, int count) {
    ssize_t sent;
    if (count == 1) {
        do sent = send(fd, parts->iov_base, parts->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
    } else {
        struct msghdr message;
        memset(&message, 0, sizeof message);
        message.msg_iov = parts;
        message.msg_iovlen = (size_t)count;
        do sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (sent < 0 && errno == EINTR);
    }
    return sent < 0 ? -(int64_t)errno : (int64_t)sent;
}
/* An Internet address; family 0: none, or a Unix socket's, whose name is too long to be kept for
 * each connection. */
typedef struct {
    uint16_t family;
    uint16_t port;
    uint32_t flow;
    uint32_t scope;
    uint8_t bytes[16];
} name_t;

static inline void kernel_name_from(name_t *name, struct sockaddr_storage *from) {
    memset(name, 0, sizeof *name);
    if (from->ss_family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)from;
        name->family = AF_INET;
        name->port = ntohs(in->sin_port);
        memcpy(name->bytes, &in->sin_addr, 4);
    } else if (from->ss_family == AF_INET6) {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)from;
        name->family = AF_INET6;
        name->port = ntohs(in->sin6_port);
        name->flow = ntohl(in->sin6_flowinfo);
        name->scope = in->sin6_scope_id;
        memcpy(name->bytes, &in->sin6_addr, 16);
    }
}
static inline int kernel_accept(int fd, name_t *peer) {
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    int got;
    from.ss_family = AF_UNSPEC;
    got = accept4(fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (got < 0) return -errno;
    kernel_name_from(peer, &from);
    return got;
}
/* accept(2) knows no MSG_DONTWAIT, and whether the listener blocks is of the open file, which the
 * program, or another one that it was passed to, may share, and change. */
static inline void kernel_unblock(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && !(flags & O_NONBLOCK)) (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}
static inline void kernel_local_name(int fd, name_t *local) {
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    from.ss_family = AF_UNSPEC;
    if (getsockname(fd, (struct sockaddr *)&from, &size) == 0) kernel_name_from(local, &from);
    else memset(local, 0, sizeof *local);
}
/* The peer's name on a Unix socket, at most `most` bytes; the size, 0 for none. An abstract one
 * begins with a NUL (unix(7)). */
static inline int kernel_unix_peer(int fd, char *path, uint32_t most) {
    struct sockaddr_un name;
    socklen_t size = sizeof name;
    if (getpeername(fd, (struct sockaddr *)&name, &size) < 0 ||
        size <= offsetof(struct sockaddr_un, sun_path))
        return 0;
    size -= offsetof(struct sockaddr_un, sun_path);
    if (size > most) size = most;
    if (name.sun_path[0] != 0) size = (socklen_t)strnlen(name.sun_path, size);
    memcpy(path, name.sun_path, size);
    return (int)size;
}
static inline void kernel_shutdown(int fd, int how) { (void)shutdown(fd, how); }
static inline void kernel_close(int fd) { (void)close(fd); }
/* close(2) of a socket with SO_LINGER waits for the peer, also of a non-blocking one (socket(7)).
 * What there was to wait for has been waited for, so it must not; a time of 0, which makes it a
 * reset, stays. */
static inline void kernel_close_socket(int fd) {
    struct linger linger = {0, 0};
    socklen_t size = sizeof linger;
    if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0 && linger.l_onoff &&
        linger.l_linger) {
        linger.l_onoff = 0;
        (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    (void)close(fd);
}
/* Dissolve the association (connect(2), AF_UNSPEC): the peer is reset even while a forked child
 * holds the open file. Not for Unix sockets. */
static inline void kernel_reset(int fd) {
    struct sockaddr nobody;
    memset(&nobody, 0, sizeof nobody);
    nobody.sa_family = AF_UNSPEC;
    if (connect(fd, &nobody, sizeof nobody) < 0) (void)shutdown(fd, SHUT_RDWR);
}
static inline int kernel_socket_error(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0
               ? 0
               : error; /* a user's stream may be over a pipe */
}
/* After EPOLLHUP or EPOLLERR: the errno of a reset, or 0, for both come also without one: when both
 * sides have ended gracefully, on a Unix socket when the peer has, and for what lies in the error
 * queue (MSG_ERRQUEUE). An error is told once; then the state tells of it, unless the stream may
 * have ended its own side (`ended`): a graceful end comes to the same state then. */
static inline int kernel_reset_error(int fd, int ended) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    int error = kernel_socket_error(fd);
    if (error || ended) return error;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_state == TCP_CLOSE)
        return ECONNRESET;
    return 0;
}
static inline int kernel_setsockopt(int fd, int level, int name, const void *value, uint32_t size) {
    return setsockopt(fd, level, name, value, (socklen_t)size) < 0 ? -errno : 0;
}
static inline int kernel_eventfd(void) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}
static inline void kernel_event_set(int fd) {
    uint64_t one = 1;
    ssize_t r = write(fd, &one, sizeof one);
    (void)r;
}
static inline void kernel_event_clear(int fd) {
    uint64_t count;
    ssize_t r = read(fd, &count, sizeof count);
    (void)r;
}
static inline int kernel_duplicate(int fd) {
    int got = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    return got < 0 ? -errno : got;
}
/* Wait until one of `fds` is readable, all of them initialised by kernel_poll_init; `timeout` in
 * ms, -1 for ever. */
static inline void kernel_poll_init(struct pollfd *polled, int fd) {
    polled->fd = fd;
    polled->events = POLLIN;
    polled->revents = 0;
}
static inline void kernel_poll(struct pollfd *fds, uint32_t count, int timeout) {
    (void)poll(fds, count, timeout);
}
/* Bytes sent and not acknowledged by the peer's kernel (tcp(7), SIOCOUTQ), or, on a Unix socket,
 * not read (unix(7)). */
static inline int kernel_unacknowledged(int fd) {
    int count = 0;
    return ioctl(fd, SIOCOUTQ, &count) < 0 ? 0 : count;
}

/* Bytes that wait to be read: tcp(7), SIOCINQ. */
static inline int kernel_unread(int fd) {
    int count = 0;
    return ioctl(fd, SIOCINQ, &count) < 0 ? 0 : count;
}

/* Whether something waits to be read, be it the end. */
static inline int kernel_is_readable(int fd) {
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    return poll(&polled, 1, 0) > 0 && !(polled.revents & POLLNVAL);
}

/* Threads of ours never run Python, so no signal may be delivered to them. Returns -errno. */
static inline int kernel_thread_start(pthread_t *thread, void *(*body)(void *), void *argument) {
    sigset_t all, before;
    int failed;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(thread, NULL, body, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -failed;
}

/* Counts forks: an engine of another count than its own belongs to the parent process. */
static uint32_t kernel_forks;

/* Held shared by who accepts, from accept(2) until the connection is in its slot, and by who
 * releases one, from when the slot forgets the fd until close(2) is done; alone by who forks: a
 * child that had the fd without knowing of it would keep the connection open. A fork waits half a
 * second at most: what the others wait for may be held by another library's handler of this very
 * fork. While it waits nobody else comes in, or it would wait for long. Nobody waits for the gate
 * with the GIL: such a handler, grpc's say, may take that while the gate is held. */
#ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
#define KERNEL_FORK_GATE PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
#else
#define KERNEL_FORK_GATE PTHREAD_RWLOCK_INITIALIZER
#endif
static pthread_rwlock_t kernel_fork_gate = KERNEL_FORK_GATE;
static __thread int kernel_fork_failed;

static void kernel_fork_begins(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 500000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    kernel_fork_failed = pthread_rwlock_timedwrlock(&kernel_fork_gate, &until);
}
static void kernel_fork_in_parent(void) {
    if (!kernel_fork_failed) pthread_rwlock_unlock(&kernel_fork_gate);
}
static void kernel_fork_in_child(void) {
    kernel_forks++;
    kernel_fork_gate = (pthread_rwlock_t)KERNEL_FORK_GATE;
}
static inline void kernel_watch_forks(void) {
    pthread_atfork(kernel_fork_begins, kernel_fork_in_parent, kernel_fork_in_child);
}
static inline void kernel_close_fork_gate(void) { pthread_rwlock_rdlock(&kernel_fork_gate); }
static inline int kernel_try_close_fork_gate(void) {
    return pthread_rwlock_tryrdlock(&kernel_fork_gate) == 0;
}
static inline void kernel_open_fork_gate(void) { pthread_rwlock_unlock(&kernel_fork_gate); }

/* The worker that this thread is, NULL in any other thread. */
static __thread void *kernel_worker;
static inline void *kernel_worker_get(void) { return kernel_worker; }
static inline void kernel_worker_set(void *worker) { kernel_worker = worker; }

#endif
