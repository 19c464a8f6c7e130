"""The listeners in the poller of the first loop: put there by the accept thread, taken out by
whoever accepts.

What is polled are duplicates. Were a number closed that the program knows, while another process
holds the open file, epoll(7) would report it for ever and let nobody take it out. A listener that
somebody has shut down is taken out alone, and tried again after a pause.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc

from hydrogen._c.atomic cimport atomic_store32
from hydrogen._c.constants cimport LOG_LISTENER
from hydrogen._c.kernel cimport (
    kernel_close, kernel_close_fork_gate, kernel_duplicate, kernel_event_set, kernel_open_fork_gate,
)
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.poller cimport poller_listen, poller_remove
from hydrogen._c.queues cimport queues_log
from hydrogen._c.structs cimport acceptor_t, listener_t


cdef inline bint listeners_init(acceptor_t *acceptor, uint32_t count) noexcept nogil:
    """Allocate. False without memory."""
    cdef uint32_t k
    acceptor.listeners = <listener_t *>calloc(count, sizeof(listener_t))
    if acceptor.listeners == NULL:
        return False
    for k in range(count):
        acceptor.listeners[k].fd = -1
    acceptor.listener_count = count
    return True


cdef inline int listeners_duplicate(acceptor_t *acceptor) noexcept nogil:
    """Have fds of our own for the listeners. 0 or -errno. No fork comes between."""
    cdef int failed = 0
    cdef uint32_t k
    kernel_close_fork_gate()
    for k in range(acceptor.listener_count):
        acceptor.listeners[k].fd = kernel_duplicate(acceptor.listeners[k].given)
        failed = failed or min(acceptor.listeners[k].fd, 0)
    kernel_open_fork_gate()
    return failed


cdef inline void listeners_close(acceptor_t *acceptor) noexcept nogil:
    """Nobody accepts any more, or this is a forked child. The program's own fds stay open."""
    cdef uint32_t k
    for k in range(acceptor.listener_count):
        if acceptor.listeners[k].fd >= 0:
            kernel_close(acceptor.listeners[k].fd)
        acceptor.listeners[k].fd = -1


cdef inline void listeners_leave_locked(acceptor_t *acceptor, bint exhausted) noexcept nogil:
    """Accept no more, and leave it to the accept thread when to begin again."""
    cdef uint32_t k
    for k in range(acceptor.listener_count):
        poller_remove(&acceptor.loops[0].context.poller, acceptor.listeners[k].fd)
    acceptor.exhausted = exhausted
    atomic_store32(&acceptor.listening, 0)
    kernel_event_set(acceptor.event)


cdef inline void listeners_lose_locked(acceptor_t *acceptor, uint32_t listener) noexcept nogil:
    """Accept no more from one listener, which is shut down, and have the accept thread try it
    again.
    """
    poller_remove(&acceptor.loops[0].context.poller, acceptor.listeners[listener].fd)
    atomic_store32(&acceptor.lost, 1)
    queues_log(acceptor.loops[0], LOG_LISTENER)
    kernel_event_set(acceptor.event)


cdef inline void listeners_enter(acceptor_t *acceptor) noexcept nogil:
    """Have whoever polls the first loop accept; not if there is no memory for that."""
    cdef int failed = 0
    cdef uint32_t k
    lock_take(&acceptor.accept_lock)
    atomic_store32(&acceptor.lost, 0)
    atomic_store32(&acceptor.listening, 1)
    for k in range(acceptor.listener_count):
        failed = failed or poller_listen(
            &acceptor.loops[0].context.poller, acceptor.listeners[k].fd, k
        )
    if failed:
        listeners_leave_locked(acceptor, True)
    lock_give(&acceptor.accept_lock)
