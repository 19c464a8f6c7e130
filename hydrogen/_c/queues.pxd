"""The queues of a loop, and who is woken for what is put there.

Two queues hold owned connections: *service* those that need a step off the GIL (step_run), *ready*
those that need Python. Tasks are things to be done in Python by a worker; log events are written by
the log thread.

Who sleeps, who wakes, why nothing is lost:
1. A worker parks, or sets `polling` and enters epoll_wait without a timeout, only under `lock` with
   both queues and `tasks` seen empty; whoever puts work there does so under `lock` and looks there
   whether somebody sleeps. A poster that is no worker in its iteration signals a parked worker, or
   else writes the eventfd if `polling`. If nobody sleeps, all workers are in an iteration, and each
   looks at the queues, under `lock`, before it sleeps.
2. A worker in its iteration that puts work into a queue wakes nobody: it looks again when its
   iteration ends. If a callback keeps it from that, the monitor thread finds it stalled and wakes
   another. So the monitor thread must not sleep while anybody is in a callback: see 3.
3. The monitor thread's word goes IDLE -> ASLEEP by compare-and-swap, and every iteration begins
   with a worker's saying in `state` that it wants the GIL, and then a swap to ACTIVE: the iteration
   either makes that fail, or finds ASLEEP and signals. The monitor thread only tries after ticks in
   which it found the word IDLE and no worker in a callback.
4. The event role is given up only by a thread that will look at the queues again, or, the monitor
   thread, while a worker is in an iteration; if all are parked it wakes one.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport (
    atomic_add32, atomic_add64, atomic_load64, atomic_swap32, relaxed_load32, relaxed_load64,
    relaxed_store32, relaxed_store64,
)
from hydrogen._c.closing cimport closing_end
from hydrogen._c.constants cimport (
    FLUSH_DRAINED, FLUSH_OWNER, MAIL_BITS, MONITOR_ACTIVE, MONITOR_ASLEEP, POST_OWNER,
    TASK_OUTPUT, TASK_TIMERS, UNDELIVERED_MOST,
)
from hydrogen._c.input cimport input_uncounted
from hydrogen._c.kernel cimport HYDROGEN_PLANTED_RACE
from hydrogen._c.lock cimport cond_signal, cond_wait, lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_post, mailbox_resume
from hydrogen._c.output cimport output_wake_drainers
from hydrogen._c.poller cimport poller_wake
from hydrogen._c.structs cimport conn_queue_t, connection_t, loop_t, worker_t


cdef inline void queues_push(conn_queue_t *line, connection_t *connection) noexcept nogil:
    connection.next = NULL
    if line.last == NULL:
        line.first = connection
    else:
        line.last.next = connection
    line.last = connection
    line.length += 1


cdef inline connection_t *queues_pop(conn_queue_t *line) noexcept nogil:
    cdef connection_t *connection = line.first
    if connection != NULL:
        line.first = connection.next
        if line.first == NULL:
            line.last = NULL
        line.length -= 1
    return connection


cdef inline void queues_append(conn_queue_t *line, conn_queue_t *more) noexcept nogil:
    if more.first == NULL:
        return
    if line.last == NULL:
        line.first = more.first
    else:
        line.last.next = more.first
    line.last = more.last
    line.length += more.length
    more.first = more.last = NULL
    more.length = 0


cdef inline bint queues_wake_locked(loop_t *loop) noexcept nogil:
    """Wake somebody who sleeps, for work that is in a queue already."""
    cdef worker_t *worker = loop.parked
    if worker != NULL:
        loop.parked = worker.next_parked
        worker.woken = True
        atomic_add32(&loop.awake, 1)
        cond_signal(&worker.cond)
        return True
    if loop.polling:
        loop.polling = False
        poller_wake(&loop.context.poller)
        return True
    return False


cdef inline void queues_touch_monitor(loop_t *loop) noexcept nogil:
    """Tell the monitor thread that something goes on, and see that it is awake."""
    if atomic_swap32(&loop.monitor_word, MONITOR_ACTIVE) == MONITOR_ASLEEP:
        lock_take(&loop.monitor_lock)
        cond_signal(&loop.monitor_cond)
        lock_give(&loop.monitor_lock)


cdef inline void queues_add_task(loop_t *loop, uint32_t notice) noexcept nogil:
    """Have something said in Python."""
    lock_take(&loop.lock)
    loop.tasks |= notice
    queues_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline void queues_leave_output(
    loop_t *loop, connection_t *connection, bint now, bint wake,
) noexcept nogil:
    """Have a worker go on with what a connection sends by TLS or a user's stream. Any thread.

    Not the owner, who may be in a callback for long: any worker that is free. When it comes the
    slot may be another connection's, or nobody's: then it finds nothing to do. Not `now`: with the
    timers. `wake` unless the caller looks at the tasks next, or wakes a worker for them.
    """
    lock_take(&loop.lock)
    if not relaxed_load32(&connection.in_outputs):
        relaxed_store32(&connection.in_outputs, True)
        connection.next_output = NULL
        if loop.output_first == NULL:
            loop.output_first = connection
        else:
            loop.output_last.next_output = connection
        loop.output_last = connection
        loop.outputs += 1
    if now:
        loop.tasks |= TASK_OUTPUT
    else:
        loop.tasks &= ~<uint32_t>TASK_OUTPUT
    if wake:
        queues_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline connection_t *queues_pop_output(loop_t *loop) noexcept nogil:
    """The next connection of `queues_leave_output`; NULL when there is none. The others are a task
    for whoever is free: this one may block.
    """
    cdef connection_t *connection
    lock_take(&loop.lock)
    connection = loop.output_first
    if connection != NULL:
        loop.output_first = connection.next_output
        if connection.adapter == NULL:
            relaxed_store32(&connection.active, 1)  # it is about to send, see deadlines_is_idle
        relaxed_store32(&connection.in_outputs, False)
        loop.outputs -= 1
        if loop.output_first != NULL:
            loop.tasks |= TASK_OUTPUT
    lock_give(&loop.lock)
    return connection


cdef inline uint32_t queues_outputs(loop_t *loop) noexcept nogil:
    cdef uint32_t count
    lock_take(&loop.lock)
    count = loop.outputs
    lock_give(&loop.lock)
    return count


cdef inline void queues_log(loop_t *loop, uint32_t news) noexcept nogil:
    """Have something written into the log."""
    lock_take(&loop.lock)
    loop.log_events |= news
    cond_signal(&loop.log_cond)
    lock_give(&loop.lock)


cdef inline uint32_t queues_await_log(loop_t *loop) noexcept nogil:
    """By the log thread: what there is to be written; 0: nothing more, the loop ends."""
    cdef uint32_t news
    lock_take(&loop.lock)
    while not loop.log_events and not loop.exiting:
        cond_wait(&loop.log_cond, &loop.lock)
    news = loop.log_events
    loop.log_events = 0
    lock_give(&loop.lock)
    return news


cdef inline void queues_serve_later(
    loop_t *loop, connection_t *connection, bint wake,
) noexcept nogil:
    """Put an owned connection into the service queue. `wake` unless the caller is a worker in its
    turn.
    """
    lock_take(&loop.lock)
    queues_push(&loop.service, connection)
    if wake:
        queues_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline void queues_post(
    loop_t *loop, connection_t *connection, uint32_t generation, uint32_t bits, bint wake,
) noexcept nogil:
    """Post mailbox bits, and do what output_flush and closing_end want done besides."""
    cdef bint owner = bits & FLUSH_OWNER != 0
    if bits & FLUSH_DRAINED:
        output_wake_drainers(&loop.context)
    if bits & MAIL_BITS and mailbox_post(connection, generation, bits & MAIL_BITS) == POST_OWNER:
        owner = True
    if owner:
        queues_serve_later(loop, connection, wake)


cdef inline void queues_resume(
    loop_t *loop, connection_t *connection, uint32_t generation, uint32_t cause, bint wake,
) noexcept nogil:
    """End a pause for `cause`."""
    if mailbox_resume(connection, generation, cause) == POST_OWNER:
        queues_serve_later(loop, connection, wake)


cdef inline void queues_end(
    loop_t *loop, connection_t *connection, uint32_t generation, bint abort, int cause, int code,
    void **error,
    bint wake,
) noexcept nogil:
    """Ask for the end of a connection: `closing_end`. Any thread."""
    queues_post(
        loop, connection, generation,
        closing_end(&loop.context, connection, generation, abort, cause, code, error), wake)


cdef inline bint queues_is_full(loop_t *loop) noexcept nogil:
    """Whether more than `max_buffered` is buffered, apart from what goes as soon as its owner
    comes.

    He may be in a callback that blocks: for that nobody else goes, and reading does not stop.
    """
    cdef uint64_t leaving
    if relaxed_load64(&loop.context.buffered) <= loop.context.max_buffered:
        return False
    # In this order, the opposite of closing_finish's: what goes meanwhile makes nothing seem full.
    leaving = atomic_load64(&loop.context.leaving)
    return atomic_load64(&loop.context.buffered) > loop.context.max_buffered + leaving


cdef inline void queues_check_memory(loop_t *loop) noexcept nogil:
    """Stop all reading when too much is buffered; the monitor thread sees to the rest."""
    if queues_is_full(loop) and not relaxed_load32(&loop.context.full):
        if not atomic_swap32(&loop.context.full, 1):
            atomic_add64(&loop.context.memory_pauses, 1)
        queues_touch_monitor(loop)


cdef inline void queues_note_undelivered_locked(
    loop_t *loop, uint64_t undelivered,
) noexcept nogil:
    relaxed_store64(&loop.undelivered, undelivered)
    relaxed_store32(&loop.context.crowded, undelivered > UNDELIVERED_MOST)


cdef inline void queues_hand_over_locked(
    loop_t *loop, conn_queue_t *ready, conn_queue_t *service,
) noexcept nogil:
    cdef connection_t *connection = ready.first
    cdef uint64_t undelivered = loop.undelivered
    while connection != NULL:
        undelivered += input_uncounted(connection)
        connection = connection.next
    queues_note_undelivered_locked(loop, undelivered)
    queues_append(&loop.ready, ready)
    queues_append(&loop.service, service)


cdef inline connection_t *queues_pop_ready(loop_t *loop) noexcept nogil:
    """The next connection that needs Python; NULL when there is none."""
    cdef connection_t *connection
    lock_take(&loop.lock)
    connection = queues_pop(&loop.ready)
    if connection != NULL:
        queues_note_undelivered_locked(loop, loop.undelivered - input_uncounted(connection))
    lock_give(&loop.lock)
    return connection


cdef inline bint queues_has_ready(loop_t *loop) noexcept nogil:
    cdef bint found
    lock_take(&loop.lock)
    found = loop.ready.first != NULL
    lock_give(&loop.lock)
    return found


cdef inline uint32_t queues_begin_iteration(loop_t *loop, uint32_t *notices) noexcept nogil:
    """Begin a turn in the dispatch role: how many connections to serve, and what is to be said.

    Output that was left is a task for others as long as timers run: one of them may block.
    """
    cdef uint32_t count
    lock_take(&loop.lock)
    count = loop.ready.length
    notices[0] = loop.tasks
    loop.tasks = TASK_OUTPUT if notices[0] & TASK_TIMERS and loop.output_first != NULL else 0
    lock_give(&loop.lock)
    if HYDROGEN_PLANTED_RACE:
        loop.planted_race += 1
    return count
