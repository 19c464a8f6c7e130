"""The poller: an epoll(7) instance and an eventfd that interrupts it. Knows fds and tokens, nothing
of connections.

Connections are registered once, edge-triggered, for all they will ever need; interest is never
modified per message. Unix sockets raise an OUT edge at every read of the peer, so there OUT is
asked for only while output is blocked. An event carries a token, never an fd or a pointer: whoever
gets it must check that the token is still good.
"""

from libc.errno cimport EEXIST, errno
from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.kernel cimport kernel_assert, kernel_close, kernel_event_set, kernel_eventfd

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    uint32_t EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, EPOLLERR, EPOLLHUP, EPOLLET
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int most, int timeout)

cdef enum:
    # Of generation 0, which no connection has.
    TOKEN_WAKE = 0
    TOKEN_LISTENER = 1  # of the first listener; the others follow
    POLL_EVENTS = 256

ctypedef struct poller_t:
    int epoll_fd
    int wake_fd


cdef inline int poller_init(poller_t *poller) noexcept nogil:
    """Open both fds; -errno and nothing open when that fails."""
    cdef epoll_event event
    poller.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    if poller.epoll_fd < 0:
        return -errno
    poller.wake_fd = kernel_eventfd()
    if poller.wake_fd < 0:
        kernel_close(poller.epoll_fd)
        return poller.wake_fd
    # Edge-triggered: each write is an edge of its own, so nobody has to read the counter back.
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = TOKEN_WAKE
    if epoll_ctl(poller.epoll_fd, EPOLL_CTL_ADD, poller.wake_fd, &event) < 0:
        poller_close(poller)
        return -errno
    return 0


cdef inline void poller_close(poller_t *poller) noexcept nogil:
    kernel_close(poller.epoll_fd)
    kernel_close(poller.wake_fd)


cdef inline int poller_add(
    poller_t *poller, int fd, uint64_t token, bint unix_domain,
) noexcept nogil:
    """Register `fd` for good; 0 or -errno."""
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET | (0 if unix_domain else EPOLLOUT)
    event.data.u64 = token
    return -errno if epoll_ctl(poller.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 else 0


cdef inline int poller_listen(poller_t *poller, int fd, uint32_t listener) noexcept nogil:
    """Register a listener, unless it is; 0 or -errno. Level-triggered: there may be more
    connections than are accepted in one turn.
    """
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = TOKEN_LISTENER + listener
    return (
        -errno if epoll_ctl(poller.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 and
        errno != EEXIST else 0
    )


cdef inline void poller_change(poller_t *poller, int fd, uint64_t token, bint out) noexcept nogil:
    """Ask for OUT or not. epoll_ctl(2) looks at the socket anew: what is there now comes as an
    edge.

    For a Unix socket OUT is asked for while output is blocked; for any, to have an edge at once.
    """
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET | (EPOLLOUT if out else 0)
    event.data.u64 = token
    epoll_ctl(poller.epoll_fd, EPOLL_CTL_MOD, fd, &event)


cdef inline void poller_remove(poller_t *poller, int fd) noexcept nogil:
    """Needed although close(2) follows: a forked child may hold the open file, and its events would
    go on.
    """
    cdef epoll_event event
    epoll_ctl(poller.epoll_fd, EPOLL_CTL_DEL, fd, &event)


cdef inline int poller_wait(poller_t *poller, epoll_event *events, int timeout) noexcept nogil:
    """Events, at most POLL_EVENTS; 0 after `timeout` ms or an interruption by a signal. -1: no
    timeout.
    """
    cdef int count = epoll_wait(poller.epoll_fd, events, POLL_EVENTS, timeout)
    kernel_assert(count >= 0 or errno == 4)
    return count if count > 0 else 0


cdef inline void poller_wake(poller_t *poller) noexcept nogil:
    kernel_event_set(poller.wake_fd)
