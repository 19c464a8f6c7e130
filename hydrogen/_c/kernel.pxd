"""What the kernel and the C library supply: system calls, the clock, threads. No policy here.

A system call that can fail returns -errno, so that no caller reads errno after another call has
overwritten it.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "kernel.h" nogil:
    bint HYDROGEN_DEBUG
    bint HYDROGEN_PLANTED_RACE
    bint HYDROGEN_GIL
    void kernel_assert(bint condition)

    int kernel_bit_length(uint32_t v)

    uint64_t kernel_now()
    void kernel_sleep(uint64_t ns)

    struct iovec:
        void *iov_base
        size_t iov_len
    int SHUT_WR
    int SHUT_RDWR
    int64_t kernel_recv(int fd, void *to, size_t n)
    int64_t kernel_send(int fd, iovec *parts, int count)
    ctypedef struct name_t:
        uint16_t family
        uint16_t port
        uint32_t flow
        uint32_t scope
        uint8_t bytes[16]
    int kernel_accept(int fd, name_t *peer)
    void kernel_unblock(int fd)
    void kernel_local_name(int fd, name_t *local)
    void kernel_shutdown(int fd, int how)
    void kernel_close(int fd)
    void kernel_close_socket(int fd)
    int kernel_unix_peer(int fd, char *path, uint32_t most)
    void kernel_reset(int fd)
    int kernel_socket_error(int fd)
    int kernel_reset_error(int fd, bint ended)
    int kernel_setsockopt(int fd, int level, int name, const void *value, uint32_t size)
    int kernel_eventfd()
    void kernel_event_set(int fd)
    void kernel_event_clear(int fd)
    int kernel_duplicate(int fd)
    struct pollfd:
        short revents
    void kernel_poll_init(pollfd *polled, int fd)
    void kernel_poll(pollfd *fds, uint32_t count, int timeout)
    int kernel_unacknowledged(int fd)
    int kernel_unread(int fd)
    bint kernel_is_readable(int fd)

    ctypedef unsigned long pthread_t
    int kernel_thread_start(pthread_t *thread, void *(*body)(void *) noexcept nogil, void *argument)
    int pthread_join(pthread_t thread, void **result)
    uint32_t kernel_forks
    void kernel_watch_forks()
    void kernel_close_fork_gate()
    bint kernel_try_close_fork_gate()
    void kernel_open_fork_gate()
    void *kernel_worker_get()
    void kernel_worker_set(void *worker)

# Bytes of a name on a Unix socket: unix(7).
cdef enum:
    UNIX_PATH_MOST = 108
