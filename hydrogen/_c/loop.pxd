"""A loop: one poller, one slab, one ready queue, and the threads that pass through the roles. Its
life, the event role, and the end of each step.

A worker passes through the event role (at most one at a time: poll, read, split frames) and the
dispatch role in turn, so that a short handler runs on the thread that read its message and nobody
is woken for it.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from hydrogen._c.acceptor cimport acceptor_accept, acceptor_live_in
from hydrogen._c.atomic cimport (
    atomic_add32, atomic_add64, atomic_load32, atomic_store32, atomic_swap32, relaxed_add64,
)
from hydrogen._c.buffer cimport pool_destroy
from hydrogen._c.closing cimport closing_end, closing_release, closing_reset
from hydrogen._c.constants cimport (
    ABORT, AGAIN, CAUSE_SERVER_STOPPED, FLAGS_ENDED, FLAG_BUSY, FLAG_EOF_TOLD, FLAG_HANGUP,
    FLAG_LATE, FLAG_RECEIVING, FLAG_STOP, HANGUP, NEXT_DISPATCH, NEXT_RELEASE, POST_OWNER, RDHUP,
    READABLE, SCRATCH_MOST, STATE_VACANT, STOP, TASK_DRAINED, TODO_FINISH, URGENT,
)
from hydrogen._c.deadlines cimport deadlines_watch
from hydrogen._c.flush cimport flush_on_event
from hydrogen._c.kernel cimport (
    kernel_close_fork_gate, kernel_event_set, kernel_forks, kernel_open_fork_gate,
)
from hydrogen._c.lock cimport (
    RANK_DRAIN, RANK_FD, RANK_MONITOR, RANK_QUEUE, cond_destroy, cond_init, cond_signal,
    lock_destroy, lock_give, lock_init, lock_take,
)
from hydrogen._c.mailbox cimport (
    mailbox_at, mailbox_generation, mailbox_let_go, mailbox_of, mailbox_post,
)
from hydrogen._c.poller cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLPRI, EPOLLRDHUP, TOKEN_LISTENER, TOKEN_WAKE,
    poller_close, poller_init, poller_wait,
)
from hydrogen._c.queues cimport (
    queues_add_task, queues_post, queues_push, queues_serve_later, queues_wake_locked,
)
from hydrogen._c.slab cimport slab_destroy, slab_init, slab_release, slab_used
from hydrogen._c.step cimport step_run
from hydrogen._c.structs cimport acceptor_t, conn_queue_t, connection_t, io_t, loop_t, worker_t


cdef inline void loop_release(loop_t *loop, io_t *io, connection_t *connection) noexcept nogil:
    """The last of a connection: fd closed, slot back. With the fork gate closed."""
    closing_release(&loop.context, io, connection)
    slab_release(&loop.slab, &connection.slot)
    # `stopping` is set, after accepting has ended, before `live` is looked at; here it is the
    # other way round: one of the two sees the other. `live` is looked at anew, for this thread may
    # have been delayed while another connection was accepted. So it is with the acceptor's `waits`,
    # which whoever accepts, or wants to, sets before he looks at each `live` a last time.
    atomic_add64(&loop.released, 1)
    if atomic_load32(&loop.stopping) and acceptor_live_in(loop) == 0:
        queues_add_task(loop, TASK_DRAINED)
    if atomic_load32(&loop.acceptor.waits) and atomic_swap32(&loop.acceptor.waits, 0):
        kernel_event_set(loop.acceptor.event)


cdef inline bint loop_let_go(loop_t *loop, connection_t *connection) noexcept nogil:
    """The one exit of a step and of callbacks: deadlines and accounts hold for every way through.

    False when there is something left to do: the connection stays owned, and needs another step.
    """
    deadlines_watch(loop, connection)
    return mailbox_let_go(connection)


cdef inline void loop_step(
    loop_t *loop, worker_t *worker, connection_t *connection, conn_queue_t *ready,
    conn_queue_t *service, bint may_wait,
) noexcept nogil:
    """Do what can be done off the GIL for an owned connection; put it where it goes on.
    `may_wait`: see loop_poll.
    """
    cdef int then = step_run(&loop.context, &worker.io, connection)
    if then == NEXT_DISPATCH:
        queues_push(ready, connection)  # loop_settle is its exit
    elif then == NEXT_RELEASE and not may_wait:
        connection.todo = TODO_FINISH  # it can let go of the GIL to wait: finishing_release
        queues_push(ready, connection)
    elif then == NEXT_RELEASE:
        kernel_close_fork_gate()
        loop_release(loop, &worker.io, connection)
        kernel_open_fork_gate()
    elif not loop_let_go(loop, connection):
        queues_push(service, connection)


cdef inline void loop_settle(loop_t *loop, connection_t *connection) noexcept nogil:
    """After the callbacks: let go of the connection, or have it served if something is left to do
    for it.

    Where another thread has what it needs, nothing can be done before that one posts: a step that
    came sooner would spin, in eager mode with the GIL, for which that thread may be waiting.
    """
    if connection.flags & (FLAG_BUSY | FLAG_RECEIVING):
        connection.flags &= ~<uint32_t>FLAG_BUSY
        connection.mail = 0
    elif (
        connection.flags & (FLAG_LATE | FLAG_STOP | FLAG_HANGUP) or
        connection.flags & FLAGS_ENDED and not connection.flags & FLAG_EOF_TOLD
    ):
        # facts that were not acted on, because there was something to deliver
        connection.mail |= AGAIN
    if not loop_let_go(loop, connection):
        queues_serve_later(loop, connection, False)


cdef inline uint32_t loop_event_bits(uint32_t events) noexcept nogil:
    cdef uint32_t bits = 0
    if events & EPOLLIN:
        bits |= READABLE
    if events & EPOLLPRI:
        bits |= READABLE | URGENT
    if events & EPOLLRDHUP:
        bits |= RDHUP
    if events & (EPOLLHUP | EPOLLERR):
        bits |= HANGUP
    return bits


cdef inline void loop_poll(
    loop_t *loop, worker_t *worker, int timeout, conn_queue_t *ready, conn_queue_t *service,
    bint may_wait,
) noexcept nogil:
    """The event role: poll, and take each connection with news as far as it goes off the GIL.

    `may_wait`: for who forks, who may need the GIL until he opens the gate: not with the GIL.
    """
    cdef int count = poller_wait(&loop.context.poller, loop.events, timeout)
    cdef connection_t *connection
    cdef uint32_t generation, events, bits
    cdef uint64_t token
    cdef int k
    if count:
        relaxed_add64(&worker.io.counters.polls, 1)
    for k in range(count):
        token = loop.events[k].data.u64
        generation = <uint32_t>(token >> 32)
        if not generation:
            if token != TOKEN_WAKE:
                acceptor_accept(loop, <uint32_t>token - TOKEN_LISTENER, may_wait)
            continue
        events = loop.events[k].events
        connection = mailbox_of(loop, token)
        flush_on_event(loop, &worker.io, connection, generation, events, False)
        bits = loop_event_bits(events)
        if bits and mailbox_post(connection, generation, bits) == POST_OWNER:
            loop_step(loop, worker, connection, ready, service, may_wait)


cdef inline void loop_clear(loop_t *loop) noexcept nogil:
    """Make a zeroed loop one that loop_exit and loop_destroy may be called for."""
    loop.forks = kernel_forks
    loop.context.poller.epoll_fd = -1
    loop.outside_io.counters.shared = True
    lock_init(&loop.lock, RANK_QUEUE)
    lock_init(&loop.monitor_lock, RANK_MONITOR)
    lock_init(&loop.context.fd_lock, RANK_FD)
    lock_init(&loop.context.drain_lock, RANK_DRAIN)
    cond_init(&loop.monitor_cond)
    cond_init(&loop.log_cond)
    cond_init(&loop.context.drain_cond)


cdef inline int loop_init(
    loop_t *loop, acceptor_t *acceptor, uint32_t workers, uint32_t pre_allocated,
    size_t read_budget,
) noexcept nogil:
    """Allocate. 0 or -errno; after either, loop_destroy."""
    cdef worker_t *worker
    cdef int failed
    cdef uint32_t k
    loop.acceptor = acceptor
    loop.context.addresses = &acceptor.addresses
    loop.context.read_budget = read_budget
    if not slab_init(&loop.slab, sizeof(connection_t), pre_allocated):
        return -ENOMEM
    loop.workers = <worker_t *>calloc(workers, sizeof(worker_t))
    if loop.workers == NULL:
        return -ENOMEM
    loop.worker_count = workers
    atomic_store32(&loop.workers_left, workers)
    atomic_store32(&loop.awake, workers)
    for k in range(workers):
        worker = &loop.workers[k]
        worker.loop = loop
        worker.index = k
        cond_init(&worker.cond)
        worker.io.read_budget = read_budget
        worker.io.scratch_size = min(read_budget, <size_t>SCRATCH_MOST)
        worker.io.scratch = <char *>malloc(worker.io.scratch_size)
        if worker.io.scratch == NULL:
            return -ENOMEM
    failed = poller_init(&loop.context.poller)
    if failed:
        loop.context.poller.epoll_fd = -1
    else:
        acceptor.loops[acceptor.loop_count] = loop
        acceptor.loop_count += 1
        atomic_add32(&acceptor.loops_left, 1)
    return failed


cdef inline void loop_close_fds(loop_t *loop) noexcept nogil:
    if loop.context.poller.epoll_fd >= 0:
        poller_close(&loop.context.poller)
    loop.context.poller.epoll_fd = -1


cdef inline void loop_destroy(loop_t *loop) noexcept nogil:
    """Free all; no thread of the loop runs any more."""
    cdef uint32_t k
    loop_close_fds(loop)
    if loop.workers != NULL:
        for k in range(loop.worker_count):
            pool_destroy(&loop.workers[k].io.pool)
            free(loop.workers[k].io.scratch)
            cond_destroy(&loop.workers[k].cond)
    free(loop.workers)
    slab_destroy(&loop.slab)
    cond_destroy(&loop.monitor_cond)
    cond_destroy(&loop.log_cond)
    cond_destroy(&loop.context.drain_cond)
    lock_destroy(&loop.monitor_lock)
    lock_destroy(&loop.lock)
    lock_destroy(&loop.context.fd_lock)
    lock_destroy(&loop.context.drain_lock)


cdef inline void loop_stop_all(loop_t *loop) noexcept nogil:
    """Have every connection finish what it has received, and end. After accepting has ended."""
    cdef connection_t *connection
    cdef uint32_t index
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) != STATE_VACANT:
            queues_post(loop, connection, mailbox_generation(connection), STOP, True)


cdef inline uint64_t loop_abort_all(loop_t *loop) noexcept nogil:
    """Reset every connection that is not being reset already, nor in its last callbacks; returns
    how many, over all calls. After accepting has ended: a slot is nobody else's from then on.
    """
    cdef connection_t *connection
    cdef uint32_t generation, bits, index
    cdef uint64_t count = 0
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) != STATE_VACANT:
            generation = mailbox_generation(connection)
            bits = closing_end(
                &loop.context, connection, generation, True, CAUSE_SERVER_STOPPED, 0, NULL
            )
            if bits & ABORT:
                connection.reset_by_stop = True
            queues_post(loop, connection, generation, bits, True)
        count += connection.reset_by_stop
    return count


cdef inline uint64_t loop_abandoned(loop_t *loop, uint64_t *reset) noexcept nogil:
    """How many connections are still there; `reset`: how many of them `loop_abort_all` has
    reset.
    """
    cdef connection_t *connection
    cdef uint32_t index
    cdef uint64_t there = 0
    reset[0] = 0
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) != STATE_VACANT:
            there += 1
            reset[0] += connection.reset_by_stop
    return there


cdef inline void loop_reset_all(loop_t *loop) noexcept nogil:
    """Reset the peers of all who are left: who owns them is in a callback, or in the user's
    stream.
    """
    cdef connection_t *connection
    cdef uint32_t index
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) != STATE_VACANT:
            closing_reset(&loop.context, connection, mailbox_generation(connection))


cdef inline void loop_exit(loop_t *loop) noexcept nogil:
    """Have every worker end that is not in a callback, and the others when they come out.

    But one that there are connections for (worker_next). The monitor thread and the accept thread
    have ended.
    """
    lock_take(&loop.lock)
    loop.exiting = True
    cond_signal(&loop.log_cond)
    while loop.parked != NULL or loop.polling:
        queues_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline bint loop_keeps(loop_t *loop, worker_t *worker) noexcept nogil:
    """Whether that is the worker who stays; see loop_exit."""
    cdef bint found
    lock_take(&loop.lock)
    found = loop.kept and loop.parked == worker
    lock_give(&loop.lock)
    return found
