"""Deadlines: the owner's checks, and the sweep by which the monitor thread finds those that may
have passed.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport (
    atomic_cas32, atomic_load32, atomic_load64, atomic_or32, atomic_store32, atomic_store64,
    relaxed_load32, relaxed_load64, relaxed_store32, relaxed_store64,
)
from hydrogen._c.constants cimport (
    CAUSE_TIMEOUT, DEADLINE, EDGE_CAME, FLAGS_OPENING, FLAG_LATE, FLAGS_CLOSING, FLAG_PARTIAL,
    FLAG_READABLE, LINGER_SWEEP_NS, NOT_LOOKED, STALL_NEW, STALL_SEEN, STATE_CLOSING, STATE_OPEN,
    STATE_VACANT, TIMEOUT_FRAME, TIMEOUT_IDLE, TIMEOUT_OPEN, TIMEOUT_WRITE, WATCH_CONFIGURED,
    WATCH_LINGERING,
)
from hydrogen._c.framing cimport FRAMING_RAW
from hydrogen._c.input cimport input_count, input_is_held
from hydrogen._c.kernel cimport kernel_now, kernel_unacknowledged, kernel_unread
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_at, mailbox_generation, mailbox_pauses
from hydrogen._c.queues cimport queues_check_memory, queues_end, queues_post, queues_touch_monitor
from hydrogen._c.slab cimport slab_used
from hydrogen._c.structs cimport connection_t, context_t, loop_t


cdef inline int deadlines_late(context_t *context, connection_t *connection) noexcept nogil:
    """Which deadline of the owner's has passed, TIMEOUT_...; 0: none. For a connection that does
    not linger. (TIMEOUT_WRITE is the monitor thread's.)
    """
    cdef uint64_t now = kernel_now()
    cdef uint64_t deadline = relaxed_load64(&connection.deadline)
    if deadline and now >= deadline:
        return TIMEOUT_OPEN if connection.flags & FLAGS_OPENING else TIMEOUT_FRAME
    return TIMEOUT_IDLE if deadlines_is_idle(context, connection, now) else 0


cdef inline int deadlines_passed(context_t *context, connection_t *connection) noexcept nogil:
    """`deadlines_late`, with FLAG_LATE and `grace` kept: what came in time counts, however late we
    are.

    What is in the kernel when it is found late may have come in time; not more than that, so that a
    peer who never pauses gains nothing.
    """
    cdef int late = deadlines_late(context, connection)
    if not late:
        connection.flags &= ~<uint32_t>FLAG_LATE
    elif not connection.flags & FLAG_LATE:
        connection.flags |= FLAG_LATE | FLAG_READABLE  # its edge is perhaps on its way still
        connection.grace = kernel_unread(connection.poll_fd)
    return late


cdef inline bint deadlines_is_idle(
    context_t *context, connection_t *connection, uint64_t now,
) noexcept nogil:
    """Whether no byte came or went for idle_timeout. By the owner.

    What the peer's kernel acknowledged since the last sweep went, and the next one sees it; what
    may not be read, or delivered, came: in a pause, or while another thread is in the user's
    stream.
    """
    cdef bint moves, unreadable
    if (
        not context.idle_timeout or atomic_load32(&connection.active) or
        now < relaxed_load64(&connection.quiet_since) + context.idle_timeout
    ):
        return False
    lock_take(&connection.lock)
    unreadable = connection.flushing and connection.adapter != NULL
    moves = (
        connection.flushing and not unreadable or
        # corked, say, by another worker
        connection.output.first != NULL and not connection.blocked or
        # left to a worker
        connection.adapter != NULL and connection.edge and not connection.flushing or
        connection.adapter == NULL and relaxed_load32(&connection.in_outputs)  # the same
    )
    lock_give(&connection.lock)
    if moves or (unreadable or mailbox_pauses(connection)) and (
        atomic_load32(&connection.state) == STATE_OPEN and input_is_held(connection) or
        kernel_unread(connection.poll_fd) > 0
    ):
        relaxed_store32(&connection.active, 1)
        return False
    return <uint32_t>kernel_unacknowledged(connection.poll_fd) == relaxed_load32(
        &connection.idle_unacknowledged
    )


cdef inline void deadlines_watch_frame(context_t *context, connection_t *connection) noexcept nogil:
    """Before letting go: a header, a handshake or an unfinished frame has a deadline, which stands
    until it is finished (`_decrypt` clears it, `_deliver` with each message) or reading is paused.
    Header and handshake have one together."""
    cdef uint64_t timeout = (
        context.open_timeout if connection.flags & FLAGS_OPENING else context.frame_timeout
    )
    cdef bint partial = (
        connection.flags & (FLAG_PARTIAL | FLAGS_OPENING) or
        (connection.input != NULL and connection.framing.kind != FRAMING_RAW)
    )
    cdef uint64_t deadline = relaxed_load64(&connection.deadline)
    if not partial and not deadline or connection.flags & FLAGS_CLOSING:
        return
    if not partial or relaxed_load32(&connection.state) != STATE_OPEN or mailbox_pauses(connection):
        atomic_store64(&connection.deadline, 0)
    elif not deadline and timeout:
        atomic_store64(&connection.deadline, kernel_now() + timeout)


cdef inline void deadlines_watch_output(loop_t *loop, connection_t *connection) noexcept nogil:
    """After a flush: output that waits for the peer has a deadline, and whoever notices it sees
    that it is kept. See deadlines_watch.
    """
    if loop.context.write_timeout and atomic_load32(&connection.stalled):
        deadlines_announce(loop, WATCH_CONFIGURED)


cdef inline void deadlines_watch(loop_t *loop, connection_t *connection) noexcept nogil:
    """After each step and after the callbacks: count what stays of the input, and see that its
    deadline, if it has one, is kept.

    The monitor thread clears `watched` before it sweeps, and sets it again when a deadline is left.
    So either it was cleared before this thread looks, which then sets it and wakes the monitor
    thread, or the sweep comes after this deadline was stored, and sees it.
    """
    input_count(&loop.context, connection)
    deadlines_watch_frame(&loop.context, connection)
    if connection.websocket != NULL:  # a PONG may wait
        deadlines_watch_output(loop, connection)
    if relaxed_load64(&connection.input_counted):
        queues_check_memory(loop)
    if relaxed_load64(&connection.deadline):
        deadlines_announce(
            loop, WATCH_LINGERING if connection.flags & FLAGS_CLOSING else WATCH_CONFIGURED
        )


cdef inline void deadlines_announce(loop_t *loop, uint32_t kind) noexcept nogil:
    """Some connection has a deadline of that kind: have the monitor thread sweep. See
    deadlines_watch.
    """
    if not atomic_load32(&loop.context.watched) & kind:
        atomic_or32(&loop.context.watched, kind)
        queues_touch_monitor(loop)


cdef inline int deadlines_unacknowledged(
    context_t *context, connection_t *connection, uint32_t generation,
) noexcept nogil:
    """What the kernel holds of the output, and the peer's has not acknowledged. Any thread."""
    cdef int unacknowledged = 0
    lock_take(&context.fd_lock)
    if mailbox_generation(connection) == generation:
        unacknowledged = kernel_unacknowledged(connection.poll_fd)
    lock_give(&context.fd_lock)
    return unacknowledged


cdef inline bint deadlines_is_stalled(connection_t *connection, uint32_t generation) noexcept nogil:
    """Whether output waits for the peer, and did so at the last sweep. After an edge that of a
    user's stream waits for a worker, or for who is in there.
    """
    cdef bint stalled
    lock_take(&connection.lock)
    stalled = (
        mailbox_generation(connection) == generation and connection.blocked and
        relaxed_load32(&connection.stalled) == STALL_SEEN and
        not (connection.adapter != NULL and connection.edge & EDGE_CAME)
    )
    lock_give(&connection.lock)
    return stalled


cdef inline bint deadlines_was_taken(
    context_t *context, connection_t *connection, uint32_t generation,
) noexcept nogil:
    """Whether the peer may have taken something of what the kernel holds since the last sweep; then
    it is quiet since now.

    Whatever is sent makes the connection active. So where the kernel held nothing, nobody looks
    again.
    """
    cdef uint32_t before = relaxed_load32(&connection.idle_unacknowledged)
    cdef uint32_t unacknowledged
    if before == 0:
        return False
    unacknowledged = <uint32_t>deadlines_unacknowledged(context, connection, generation)
    if unacknowledged == before:
        return False
    relaxed_store32(&connection.idle_unacknowledged, unacknowledged)
    atomic_store64(&connection.quiet_since, kernel_now())
    return True


cdef inline bint deadlines_examine(
    loop_t *loop, connection_t *connection, uint64_t now, uint32_t *left,
) noexcept nogil:
    """Whether one of a connection's deadlines seems to have passed. `left`: the kinds that it has
    are added. Keeps the times since when it is idle, and write-stalled; ends it if it is so for too
    long.

    A sweep that finds that bytes moved since the last one says that they moved now: a little late,
    never early. So nobody reads a clock for a message.
    """
    cdef context_t *context = &loop.context
    cdef uint32_t generation = <uint32_t>(atomic_load64(&connection.slot.word) >> 32)
    cdef uint64_t deadline = atomic_load64(&connection.deadline)
    cdef uint32_t stalled = atomic_load32(&connection.stalled)
    cdef int unacknowledged
    cdef bint late = deadline != 0 and now >= deadline
    if deadline:
        left[0] |= (
            WATCH_LINGERING if relaxed_load32(&connection.state) == STATE_CLOSING
            else WATCH_CONFIGURED
        )
    if context.write_timeout and stalled:
        left[0] |= WATCH_CONFIGURED
        unacknowledged = deadlines_unacknowledged(context, connection, generation)
        if stalled == STALL_NEW or unacknowledged < connection.unacknowledged:
            connection.unacknowledged = unacknowledged
            connection.stalled_since = now
            atomic_cas32(&connection.stalled, STALL_NEW, STALL_SEEN)
        elif (
            now >= connection.stalled_since + context.write_timeout and
            deadlines_is_stalled(connection, generation)
        ):
            # Not left to the owner: he may be in a handler that waits in drain() for this very
            # output.
            queues_end(loop, connection, generation, True, CAUSE_TIMEOUT, TIMEOUT_WRITE, NULL, True)
    if context.idle_timeout:
        left[0] |= WATCH_CONFIGURED
        if relaxed_load32(&connection.active):
            # Before, so that nobody sees it quiet since long ago; after, so that no byte is dated
            # before it came.
            atomic_store64(&connection.quiet_since, kernel_now())
            relaxed_store32(&connection.idle_unacknowledged, NOT_LOOKED)
            atomic_store32(&connection.active, 0)
            atomic_store64(&connection.quiet_since, kernel_now())
        elif not deadlines_was_taken(context, connection, generation):
            late |= now >= relaxed_load64(&connection.quiet_since) + context.idle_timeout
    return late


cdef inline void deadlines_sweep(loop_t *loop) noexcept nogil:
    """Post DEADLINE to connections of which a deadline has passed. A hint: the owner looks again.
    `watched`: see deadlines_watch.
    """
    cdef uint64_t now = kernel_now()
    cdef connection_t *connection
    cdef uint32_t index
    cdef uint32_t left = 0
    relaxed_store64(&loop.sweeps, relaxed_load64(&loop.sweeps) + 1)
    atomic_store32(&loop.context.watched, 0)
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if (
            relaxed_load32(&connection.state) != STATE_VACANT and
            deadlines_examine(loop, connection, now, &left)
        ):
            queues_post(
                loop, connection, <uint32_t>(atomic_load64(&connection.slot.word) >> 32), DEADLINE,
                True
            )
    if left:
        atomic_or32(&loop.context.watched, left)


cdef inline uint64_t deadlines_next_sweep(loop_t *loop, uint64_t swept) noexcept nogil:
    """When to sweep, after a sweep that ended at `swept`; 0: not at all."""
    cdef uint32_t watched = atomic_load32(&loop.context.watched)
    if not watched:
        return 0
    if watched & WATCH_LINGERING:
        return swept + min(loop.sweep_ns, <uint64_t>LINGER_SWEEP_NS)
    return swept + loop.sweep_ns
