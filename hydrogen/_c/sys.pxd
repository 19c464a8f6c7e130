"""What the kernel, the C library and the compiler supply: atomics, locks, clocks, system calls. No policy here.

Atomics are the compiler's builtins, sequentially consistent unless the name says otherwise; ThreadSanitizer understands them. A system call that can
fail returns -errno, so that no caller reads errno after another call has overwritten it.

Locks have a rank: a thread may only take a lock of a higher rank than all it holds. The debug build checks that; the order is in docs/ARCHITECTURE.md.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #ifndef HYDROGEN_SYS_H
    #define HYDROGEN_SYS_H
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <arpa/inet.h>
    #include <netinet/in.h>
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>
    #include <linux/sockios.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
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
    #define sys_assert(condition) do { if (!(condition)) { \\
        fprintf(stderr, "hydrogen: %s does not hold (%s:%d)\\n", #condition, __FILE__, __LINE__); abort(); } } while (0)
    #else
    #define sys_assert(condition) do { (void)sizeof(condition); } while (0)
    #endif

    static inline uint64_t atomic_load64(uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_or64(uint64_t *p, uint64_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_and64(uint64_t *p, uint64_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_add64(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline uint64_t atomic_swap64(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline void atomic_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline int atomic_cas64(uint64_t *p, uint64_t *expected, uint64_t v) {
        return __atomic_compare_exchange_n(p, expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline uint32_t atomic_load32(uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_or32(uint32_t *p, uint32_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_and32(uint32_t *p, uint32_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
    static inline uint32_t atomic_add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
    static inline void atomic_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
    static inline int atomic_cas32(uint32_t *p, uint32_t expected, uint32_t v) {
        return __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    /* Relaxed: a value that one thread writes and others may read at any moment, ordering nothing else. */
    static inline uint32_t relaxed_load32(uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void relaxed_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline uint64_t relaxed_load64(uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void relaxed_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    /* A counter with a single writer: no locked instruction. */
    static inline void counter_bump(uint64_t *p, uint64_t n) {
        __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
    }

    static inline int sys_bit_length(uint32_t v) { return v ? 32 - __builtin_clz(v) : 0; }

    typedef struct { pthread_mutex_t mutex; uint32_t rank; } lock_t;
    typedef struct { pthread_cond_t cond; } cond_t;

    #if HYDROGEN_DEBUG
    static __thread uint32_t lock_ranks_held;
    #define LOCK_ENTER(l) do { sys_assert((lock_ranks_held >> (l)->rank) == 0); lock_ranks_held |= 1u << (l)->rank; } while (0)
    #define LOCK_LEAVE(l) do { sys_assert(lock_ranks_held & (1u << (l)->rank)); lock_ranks_held &= ~(1u << (l)->rank); } while (0)
    #else
    #define LOCK_ENTER(l) do { } while (0)
    #define LOCK_LEAVE(l) do { } while (0)
    #endif

    static inline void lock_init(lock_t *l, uint32_t rank) { pthread_mutex_init(&l->mutex, NULL); l->rank = rank; }
    static inline void lock_destroy(lock_t *l) { pthread_mutex_destroy(&l->mutex); }
    static inline void lock_take(lock_t *l) { LOCK_ENTER(l); pthread_mutex_lock(&l->mutex); }
    static inline void lock_give(lock_t *l) { LOCK_LEAVE(l); pthread_mutex_unlock(&l->mutex); }

    static inline void cond_init(cond_t *c) {
        pthread_condattr_t attributes;
        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(&c->cond, &attributes);
        pthread_condattr_destroy(&attributes);
    }
    static inline void cond_destroy(cond_t *c) { pthread_cond_destroy(&c->cond); }
    static inline void cond_signal(cond_t *c) { pthread_cond_signal(&c->cond); }
    static inline void cond_broadcast(cond_t *c) { pthread_cond_broadcast(&c->cond); }
    static inline void cond_wait(cond_t *c, lock_t *l) { LOCK_LEAVE(l); pthread_cond_wait(&c->cond, &l->mutex); LOCK_ENTER(l); }
    /* Wait until the monotonic time `until`, in nanoseconds. */
    static inline void cond_wait_until(cond_t *c, lock_t *l, uint64_t until) {
        struct timespec when;
        when.tv_sec = (time_t)(until / 1000000000u);
        when.tv_nsec = (long)(until % 1000000000u);
        LOCK_LEAVE(l);
        pthread_cond_timedwait(&c->cond, &l->mutex, &when);
        LOCK_ENTER(l);
    }

    static inline uint64_t sys_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }

    static inline int64_t sys_recv(int fd, void *to, size_t n) {
        ssize_t got;
        do got = recv(fd, to, n, MSG_DONTWAIT); while (got < 0 && errno == EINTR);
        return got < 0 ? -(int64_t)errno : (int64_t)got;
    }
    /* MSG_NOSIGNAL: a peer that is gone is an error of this connection, never a SIGPIPE of the process. */
    static inline int64_t sys_send(int fd, struct iovec *parts, int count) {
        ssize_t sent;
        if (count == 1) {
            do sent = send(fd, parts->iov_base, parts->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL); while (sent < 0 && errno == EINTR);
        } else {
            struct msghdr message;
            memset(&message, 0, sizeof message);
            message.msg_iov = parts;
            message.msg_iovlen = (size_t)count;
            do sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL); while (sent < 0 && errno == EINTR);
        }
        return sent < 0 ? -(int64_t)errno : (int64_t)sent;
    }
    /* An Internet address; family 0: none, or a Unix socket's, whose name is too long to be kept for each connection. */
    typedef struct { uint16_t family; uint16_t port; uint32_t flow; uint32_t scope; uint8_t bytes[16]; } name_t;

    static inline void sys_name_from(name_t *name, struct sockaddr_storage *from) {
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
    static inline int sys_accept(int fd, name_t *peer) {
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        int got;
        from.ss_family = AF_UNSPEC;
        got = accept4(fd, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (got < 0) return -errno;
        sys_name_from(peer, &from);
        return got;
    }
    static inline void sys_local_name(int fd, name_t *local) {
        struct sockaddr_storage from;
        socklen_t size = sizeof from;
        from.ss_family = AF_UNSPEC;
        if (getsockname(fd, (struct sockaddr *)&from, &size) == 0) sys_name_from(local, &from);
        else memset(local, 0, sizeof *local);
    }
    static inline void sys_shutdown(int fd, int how) { (void)shutdown(fd, how); }
    static inline void sys_close(int fd) { (void)close(fd); }
    /* Dissolve the association (connect(2), AF_UNSPEC): the peer is reset even while a forked child holds the open file. Not for Unix sockets. */
    static inline void sys_reset(int fd) {
        struct sockaddr nobody;
        memset(&nobody, 0, sizeof nobody);
        nobody.sa_family = AF_UNSPEC;
        if (connect(fd, &nobody, sizeof nobody) < 0) (void)shutdown(fd, SHUT_RDWR);
    }
    static inline int sys_socket_error(int fd) {
        int error = 0;
        socklen_t size = sizeof error;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
    }
    static inline int sys_setsockopt(int fd, int level, int name, const void *value, uint32_t size) {
        return setsockopt(fd, level, name, value, (socklen_t)size) < 0 ? -errno : 0;
    }
    static inline int sys_eventfd(void) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        return fd < 0 ? -errno : fd;
    }
    static inline void sys_event_set(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, sizeof one); (void)r; }
    static inline void sys_event_clear(int fd) { uint64_t count; ssize_t r = read(fd, &count, sizeof count); (void)r; }
    static inline int sys_duplicate(int fd) {
        int got = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        return got < 0 ? -errno : got;
    }
    /* Wait until one of `fds` is readable, all of them initialised by sys_poll_init; `timeout` in ms, -1 for ever. */
    static inline void sys_poll_init(struct pollfd *polled, int fd) { polled->fd = fd; polled->events = POLLIN; polled->revents = 0; }
    static inline void sys_poll(struct pollfd *fds, uint32_t count, int timeout) { (void)poll(fds, count, timeout); }
    /* Bytes sent and not acknowledged by the peer's kernel (tcp(7), SIOCOUTQ), or, on a Unix socket, not read (unix(7)). */
    static inline int sys_unacknowledged(int fd) { int count = 0; return ioctl(fd, SIOCOUTQ, &count) < 0 ? 0 : count; }

    /* Bytes that wait to be read: tcp(7), SIOCINQ. */
    static inline int sys_unread(int fd) { int count = 0; return ioctl(fd, SIOCINQ, &count) < 0 ? 0 : count; }

    /* Threads of ours never run Python, so no signal may be delivered to them. Returns -errno. */
    static inline int sys_thread_start(pthread_t *thread, void *(*body)(void *), void *argument) {
        sigset_t all, before;
        int failed;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        failed = pthread_create(thread, NULL, body, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return -failed;
    }

    /* Counts forks: an engine of another count than its own belongs to the parent process. */
    static uint32_t sys_forks;
    static void sys_fork_in_child(void) { sys_forks++; }
    static inline void sys_watch_forks(void) { pthread_atfork(NULL, NULL, sys_fork_in_child); }

    /* The worker that this thread is, NULL in any other thread. */
    static __thread void *sys_worker;
    static inline void *sys_worker_get(void) { return sys_worker; }
    static inline void sys_worker_set(void *worker) { sys_worker = worker; }
    #endif
    """
    bint HYDROGEN_DEBUG
    bint HYDROGEN_PLANTED_RACE
    bint HYDROGEN_GIL
    void sys_assert(bint condition)

    uint64_t atomic_load64(uint64_t *p)
    void atomic_store64(uint64_t *p, uint64_t v)
    uint64_t atomic_or64(uint64_t *p, uint64_t v)
    uint64_t atomic_and64(uint64_t *p, uint64_t v)
    uint64_t atomic_add64(uint64_t *p, uint64_t v)
    uint64_t atomic_swap64(uint64_t *p, uint64_t v)
    bint atomic_cas64(uint64_t *p, uint64_t *expected, uint64_t v)
    uint32_t atomic_load32(uint32_t *p)
    void atomic_store32(uint32_t *p, uint32_t v)
    uint32_t atomic_or32(uint32_t *p, uint32_t v)
    uint32_t atomic_and32(uint32_t *p, uint32_t v)
    uint32_t atomic_add32(uint32_t *p, uint32_t v)
    uint32_t atomic_swap32(uint32_t *p, uint32_t v)
    bint atomic_cas32(uint32_t *p, uint32_t expected, uint32_t v)
    uint32_t relaxed_load32(uint32_t *p)
    void relaxed_store32(uint32_t *p, uint32_t v)
    uint64_t relaxed_load64(uint64_t *p)
    void relaxed_store64(uint64_t *p, uint64_t v)
    void counter_bump(uint64_t *p, uint64_t n)
    int sys_bit_length(uint32_t v)

    ctypedef struct lock_t:
        pass
    ctypedef struct cond_t:
        pass
    void lock_init(lock_t *l, uint32_t rank)
    void lock_destroy(lock_t *l)
    void lock_take(lock_t *l)
    void lock_give(lock_t *l)
    void cond_init(cond_t *c)
    void cond_destroy(cond_t *c)
    void cond_signal(cond_t *c)
    void cond_broadcast(cond_t *c)
    void cond_wait(cond_t *c, lock_t *l)
    void cond_wait_until(cond_t *c, lock_t *l, uint64_t until)

    uint64_t sys_now()

    struct iovec:
        void *iov_base
        size_t iov_len
    int SHUT_WR
    int SHUT_RDWR
    int64_t sys_recv(int fd, void *to, size_t n)
    int64_t sys_send(int fd, iovec *parts, int count)
    ctypedef struct name_t:
        uint16_t family
        uint16_t port
        uint32_t flow
        uint32_t scope
        uint8_t bytes[16]
    int sys_accept(int fd, name_t *peer)
    void sys_local_name(int fd, name_t *local)
    void sys_shutdown(int fd, int how)
    void sys_close(int fd)
    void sys_reset(int fd)
    int sys_socket_error(int fd)
    int sys_setsockopt(int fd, int level, int name, const void *value, uint32_t size)
    int sys_eventfd()
    void sys_event_set(int fd)
    void sys_event_clear(int fd)
    int sys_duplicate(int fd)
    struct pollfd:
        pass
    void sys_poll_init(pollfd *polled, int fd)
    void sys_poll(pollfd *fds, uint32_t count, int timeout)
    int sys_unacknowledged(int fd)
    int sys_unread(int fd)

    ctypedef unsigned long pthread_t
    int sys_thread_start(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    uint32_t sys_forks
    void sys_watch_forks()
    void *sys_worker_get()
    void sys_worker_set(void *worker)

# Ranks of the locks, lowest taken first.
cdef enum:
    RANK_DRAIN = 1
    RANK_QUEUE = 2
    RANK_SLAB = 3
    RANK_FD = 4
    RANK_OUTPUT = 5
    RANK_MONITOR = 6
    RANK_ADDRESSES = 7
