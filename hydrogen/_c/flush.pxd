"""Flushing: at once, corked until the end of an iteration, or for a worker that is stuck in a
callback.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport (
    atomic_store64, atomic_swap64, relaxed_load32, relaxed_load64, relaxed_store32,
)
from hydrogen._c.constants cimport (
    CORKED_MOST, EDGE_ADAPTER, EDGE_FLUSH, EDGE_NOTHING, WORKER_CALLBACK,
)
from hydrogen._c.deadlines cimport deadlines_watch_output
from hydrogen._c.kernel cimport HYDROGEN_GIL
from hydrogen._c.mailbox cimport mailbox_of
from hydrogen._c.output cimport output_flush, output_unblock, output_wake_drainers
from hydrogen._c.poller cimport EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from hydrogen._c.queues cimport queues_check_memory, queues_leave_output, queues_post
from hydrogen._c.structs cimport connection_t, io_t, loop_t, worker_t


cdef inline void flush_one(
    loop_t *loop, io_t *io, connection_t *connection, uint32_t generation, bint wake,
) noexcept nogil:
    """Flush one connection, as far as the kernel or the budget goes."""
    cdef uint32_t bits = output_flush(&loop.context, io, connection, generation)
    if bits:
        queues_post(loop, connection, generation, bits, wake)
    deadlines_watch_output(loop, connection)
    queues_check_memory(loop)


cdef inline void flush_corked(worker_t *worker) noexcept nogil:
    """Flush what this worker has corked."""
    cdef loop_t *loop = worker.loop
    cdef uint32_t count = worker.corked_count
    cdef uint32_t k
    cdef uint64_t token
    worker.corked_count = 0
    for k in range(count):
        token = atomic_swap64(&worker.corked[k], 0)
        if token:
            flush_one(loop, &worker.io, mailbox_of(loop, token), <uint32_t>(token >> 32), False)


cdef inline bint flush_cork(worker_t *worker, uint64_t token) noexcept nogil:
    """Remember to flush; False when the list is full: `flush_corked` comes first."""
    if worker.corked_count == CORKED_MOST:
        return False
    atomic_store64(&worker.corked[worker.corked_count], token)
    worker.corked_count += 1
    return True


cdef inline void flush_for(loop_t *loop, io_t *io, worker_t *worker, bint wake) noexcept nogil:
    """Flush what a worker has corked that is stuck in a callback."""
    cdef uint32_t k
    cdef uint64_t token
    for k in range(<uint32_t>CORKED_MOST):
        if relaxed_load64(&worker.corked[k]):
            token = atomic_swap64(&worker.corked[k], 0)
            if token:
                flush_one(loop, io, mailbox_of(loop, token), <uint32_t>(token >> 32), wake)


cdef inline bint flush_is_last(worker_t *worker) noexcept nogil:
    """Called with the GIL: whether no other worker has had it since this one was here last."""
    return not HYDROGEN_GIL or relaxed_load32(&worker.loop.dispatching) == worker.index + 1


cdef inline void flush_take_over(worker_t *worker) noexcept nogil:
    """Called with the GIL, which another worker may have had last: if that one is in a callback
    still it lost the GIL there, and blocks, as a rule.

    So what it has corked does not wait for the monitor thread, and eager mode can cork: a turn's
    replies are sent one after the other, at less CPU time than each after its callback. Whom this
    misses (it looks at one worker only) the monitor thread finds.
    """
    cdef loop_t *loop = worker.loop
    cdef uint32_t last
    if flush_is_last(worker):
        return
    last = relaxed_load32(&loop.dispatching)
    relaxed_store32(&loop.dispatching, worker.index + 1)
    if last and relaxed_load32(&loop.workers[last - 1].state) == WORKER_CALLBACK:
        flush_for(loop, &worker.io, &loop.workers[last - 1], False)


cdef inline void flush_on_event(
    loop_t *loop, io_t *io, connection_t *connection, uint32_t generation, uint32_t events,
    bint wake,
) noexcept nogil:
    """The output half of an event. It needs no owner, who may be in a callback."""
    cdef int meaning = EDGE_NOTHING
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        meaning = output_unblock(&loop.context, connection, generation, not events & EPOLLIN)
    if meaning == EDGE_FLUSH:
        flush_one(loop, io, connection, generation, wake)
    if meaning == EDGE_ADAPTER:
        output_wake_drainers(&loop.context)
        queues_leave_output(loop, connection, True, wake)
