"""A worker's passage through the roles: what it does off the GIL until there is something for
Python, how an iteration begins and ends, eager mode.

Why no wake-up is lost stands in queues.pxd.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.acceptor cimport acceptor_left, acceptor_live_in
from hydrogen._c.atomic cimport (
    atomic_add32, atomic_swap32, relaxed_add64, relaxed_load32, relaxed_load64,
    relaxed_store32,
)
from hydrogen._c.constants cimport (
    BLOCKS_NS, EAGER_MS, HANDOFF_AUTO, HANDOFF_EAGER, REFILL_BUDGET, WORKER_CALLBACK, WORKER_FLUSH,
    WORKER_PARKED, WORKER_POLL, WORKER_WANT_GIL, WORK_NS,
)
from hydrogen._c.flush cimport flush_corked
from hydrogen._c.kernel cimport HYDROGEN_GIL, kernel_now
from hydrogen._c.lock cimport cond_wait, lock_give, lock_take
from hydrogen._c.loop cimport loop_close_fds, loop_poll, loop_step
from hydrogen._c.queues cimport (
    queues_append, queues_hand_over_locked, queues_pop, queues_touch_monitor,
    queues_wake_locked,
)
from hydrogen._c.structs cimport conn_queue_t, connection_t, loop_t, worker_t


cdef inline bint worker_is_eager(loop_t *loop) noexcept nogil:
    return (
        loop.handoff == HANDOFF_EAGER or
        (loop.handoff == HANDOFF_AUTO and relaxed_load32(&loop.eager) != 0)
    )


cdef inline void worker_park_locked(worker_t *worker) noexcept nogil:
    cdef loop_t *loop = worker.loop
    relaxed_store32(&worker.state, WORKER_PARKED)
    worker.woken = False
    worker.next_parked = loop.parked
    loop.parked = worker
    atomic_add32(&loop.awake, <uint32_t>-1)
    while not worker.woken:
        cond_wait(&worker.cond, &loop.lock)
    relaxed_store32(&worker.state, WORKER_POLL)


cdef inline bint worker_next(worker_t *worker) noexcept nogil:
    """All that a worker does off the GIL, until there is something for Python; False when the
    worker is to end.

    It holds nothing when it comes and when it returns. After a drain the sockets come first: a
    ready queue that never empties must not hide them.

    One stays as long as there are connections, for those in whose streams threads of the user's are
    still. Under the loop's lock it sees that there are some, and sleeps; who releases the last one
    adds a task afterwards, under that lock.
    """
    cdef loop_t *loop = worker.loop
    cdef conn_queue_t ready
    cdef conn_queue_t service
    cdef bint sleep, stays
    cdef bint polled = False
    ready.first = ready.last = service.first = service.last = NULL
    ready.length = service.length = 0
    while True:
        if worker.corked_count:
            flush_corked(worker)
        relaxed_store32(&worker.state, WORKER_POLL)
        lock_take(&loop.lock)
        if loop.service.first != NULL:
            # One turn of the service queue as it is now; what is put back comes after the next
            # poll.
            queues_append(&service, &loop.service)
            lock_give(&loop.lock)
            worker_serve(worker, &ready, &service, True)
            lock_take(&loop.lock)
            queues_hand_over_locked(loop, &ready, &service)
        if not loop.role_taken and not (polled and loop.ready.first != NULL) and not loop.exiting:
            sleep = (
                loop.ready.first == NULL and loop.service.first == NULL and
                worker.corked_count == 0 and not loop.tasks
            )
            loop.role_taken = True
            loop.polling = sleep
            lock_give(&loop.lock)
            loop_poll(loop, worker, -1 if sleep else 0, &ready, &service, True)
            polled = True
            lock_take(&loop.lock)
            queues_hand_over_locked(loop, &ready, &service)
            loop.role_taken = False
            loop.polling = False
            if (
                <uint64_t>loop.ready.length * relaxed_load32(&loop.handler_ns) > WORK_NS and
                loop.parked != NULL
            ):
                relaxed_add64(&worker.io.counters.handoffs, 1)
                queues_wake_locked(loop)
        if loop.ready.first != NULL or loop.tasks:
            # Tasks, too, come after a poll: a timer that is always due must not hide the sockets.
            lock_give(&loop.lock)
            if worker.corked_count:
                flush_corked(worker)
            break
        if (
            loop.service.first == NULL and worker.corked_count == 0 and
            (loop.role_taken or loop.exiting)
        ):
            if loop.exiting and (loop.kept or acceptor_live_in(loop) == 0):
                lock_give(&loop.lock)
                return False
            stays = loop.exiting
            if stays:
                loop.kept = True
            worker_park_locked(worker)
            if stays:
                loop.kept = False
            polled = False
        lock_give(&loop.lock)
    # In this order: a tick that finds the word touched looks at the states again, and one that
    # comes later sees this one.
    relaxed_store32(&worker.state, WORKER_WANT_GIL)
    queues_touch_monitor(loop)
    return True


cdef inline void worker_begin_iteration(worker_t *worker) noexcept nogil:
    worker.iteration_began = kernel_now()
    if not HYDROGEN_GIL:
        worker.iteration_entered = worker.iteration_began
        worker.iteration_progress = relaxed_load64(&worker.progress)


cdef inline bint worker_refill(worker_t *worker) noexcept nogil:
    """In eager mode, after a turn: flush, and look at the sockets once, without waiting and with
    the GIL held. True when there is something for another turn.

    While handlers block there are always others who wait for the GIL: letting go of it only to send
    and to poll would hand it to one of them, a switch for each batch. So it is let go when a
    handler blocks, when there is nothing to do, when there is much to read, or when the interpreter
    asks for it, which it does in Python only.
    """
    cdef loop_t *loop = worker.loop
    cdef conn_queue_t ready
    cdef conn_queue_t service
    cdef bint more
    if not worker_is_eager(loop):
        return False
    flush_corked(worker)
    if worker.corked_count:
        return False
    ready.first = ready.last = service.first = service.last = NULL
    ready.length = service.length = 0
    lock_take(&loop.lock)
    more = loop.ready.first != NULL
    if not loop.role_taken and not loop.exiting:
        loop.role_taken = True
        queues_append(&service, &loop.service)
        lock_give(&loop.lock)
        worker.io.read_budget = min(loop.context.read_budget, <size_t>REFILL_BUDGET)
        worker_serve(worker, &ready, &service, False)
        loop_poll(loop, worker, 0, &ready, &service, False)
        worker.io.read_budget = loop.context.read_budget
        lock_take(&loop.lock)
        queues_hand_over_locked(loop, &ready, &service)
        loop.role_taken = False
        more = loop.ready.first != NULL and loop.service.first == NULL
    lock_give(&loop.lock)
    if more:
        worker_begin_iteration(worker)
    return more


cdef inline void worker_serve(
    worker_t *worker, conn_queue_t *ready, conn_queue_t *service, bint may_wait,
) noexcept nogil:
    """A step for each connection of `service`; those that need another one are in it afterwards.
    `may_wait`: see loop_poll.
    """
    cdef conn_queue_t again
    cdef connection_t *connection
    again.first = again.last = NULL
    again.length = 0
    while True:
        connection = queues_pop(service)
        if connection == NULL:
            break
        loop_step(worker.loop, worker, connection, ready, &again, may_wait)
    queues_append(service, &again)


cdef inline void worker_enter(worker_t *worker, uint64_t asked) noexcept nogil:
    """Begin to run callbacks, with the GIL, which was asked for at that time.

    Eager mode begins on the proof that a handler blocks: this worker got the GIL soon while a
    stalled one is in a callback. In eager mode there is always another worker awake
    while one runs callbacks: it polls, and waits for the GIL with what it has read, so that it goes
    on at the moment when a handler blocks and lets go of the GIL. Two workers alternate so, and
    nobody has to be woken until one blocks.
    """
    cdef loop_t *loop = worker.loop
    cdef uint32_t stalled = relaxed_load32(&loop.stalled)
    cdef worker_t *other
    cdef uint64_t waited
    worker_begin_iteration(worker)
    waited = worker.iteration_began - asked
    relaxed_add64(&worker.io.counters.gil_acquisitions, 1)
    relaxed_add64(&worker.io.counters.gil_wait_ns, waited)
    relaxed_store32(&worker.state, WORKER_CALLBACK)
    if stalled and stalled != worker.index + 1 and waited < BLOCKS_NS:
        other = &loop.workers[stalled - 1]
        if relaxed_load32(&other.state) == WORKER_CALLBACK:
            relaxed_store32(&loop.eager, EAGER_MS)
    if atomic_add32(&loop.awake, <uint32_t>-1) == 1 and worker_is_eager(loop):
        lock_take(&loop.lock)
        if loop.parked != NULL:
            relaxed_add64(&worker.io.counters.handoffs, 1)
            queues_wake_locked(loop)
        lock_give(&loop.lock)


cdef inline void worker_leave(worker_t *worker) noexcept nogil:
    """The callbacks of this turn are done; the GIL is let go next.

    Without a GIL their mean time goes into the average by which worker_next tells whether there is
    work for two (an eighth of the new value, as TCP smooths its round trips, RFC 6298). With one, a
    second worker in callbacks would only wait.
    """
    cdef uint64_t callbacks, mean
    if not HYDROGEN_GIL:
        callbacks = relaxed_load64(&worker.progress) - worker.iteration_progress
        if callbacks:
            mean = min((kernel_now() - worker.iteration_entered) // callbacks, <uint64_t>1000000000)
            relaxed_store32(
                &worker.loop.handler_ns,
                <uint32_t>((7 * <uint64_t>relaxed_load32(&worker.loop.handler_ns) + mean) // 8)
            )
    relaxed_store32(&worker.state, WORKER_FLUSH)
    atomic_add32(&worker.loop.awake, 1)


cdef inline bint worker_claim(worker_t *worker) noexcept nogil:
    """Whether the caller is to say the last words of a worker: its thread as it begins, unless a
    start that failed came before.
    """
    return not atomic_swap32(&worker.claimed, 1)


cdef inline void worker_left(worker_t *worker) noexcept nogil:
    """The last words of a worker. The last one closes the fds; nobody else uses them, since only
    loop_exit ends workers.
    """
    if atomic_add32(&worker.loop.workers_left, <uint32_t>-1) == 1:
        loop_close_fds(worker.loop)
        acceptor_left(worker.loop.acceptor)
