"""Pings of WebSocket clients that have sent nothing for a while, by the monitor thread.

What lies unread in the kernel has come, too, be it the end: the handler may block. Who has sent a
CLOSE has said his last word, and waits for ours. A ping stands behind all other output: while that
is blocked it is write_timeout that counts, and who takes some of it is there.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hydrogen._c.atomic cimport (
    atomic_load32, atomic_or32, atomic_swap32, relaxed_add64, relaxed_load32, relaxed_store32,
)
from hydrogen._c.constants cimport (
    CAUSE_LOCAL_CLOSED, CAUSE_TIMEOUT, NOT_CORKED, SEND_NOW, SEND_NO_MEMORY, STATE_OPEN,
    STATE_VACANT, TIMEOUT_PING, UNLIMITED, WATCH_CONFIGURED,
)
from hydrogen._c.flush cimport flush_one
from hydrogen._c.kernel cimport kernel_is_readable, kernel_now, kernel_unacknowledged
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_at, mailbox_generation
from hydrogen._c.messages cimport messages_pinged
from hydrogen._c.output cimport output_send
from hydrogen._c.queues cimport queues_end, queues_leave_output, queues_post
from hydrogen._c.slab cimport slab_used
from hydrogen._c.structs cimport connection_t, context_t, loop_t, websocket_t

cdef enum:
    PING_SIZE = 8
    # bytes in the kernel, before the ping, that a client may need long for
    BACKLOG = 16384
    GOING_AWAY = 1001  # RFC 6455 section 7.4.1

# What is due.
cdef enum:
    ALIVE
    PING_DUE
    PING_LATE
    TOO_OLD


cdef inline int keepalive_look_locked(
    context_t *context, connection_t *connection, uint64_t now,
) noexcept nogil:
    """What is due, if nothing lies in the kernel."""
    cdef websocket_t *websocket = connection.websocket
    cdef uint64_t due
    if websocket.ends_at and now >= websocket.ends_at:
        return TOO_OLD
    if (
        atomic_swap32(&websocket.heard, 0) or relaxed_load32(&websocket.said_goodbye) or
        connection.blocked
    ):
        websocket.heard_at = now
    due = websocket.heard_at + context.ping_interval
    if not context.ping_interval or now < due or relaxed_load32(&websocket.ping_due):
        return ALIVE
    if websocket.probed_at < due:
        return PING_DUE
    if context.ping_timeout and now >= websocket.probed_at + context.ping_timeout:
        return PING_LATE
    return ALIVE


cdef inline bint keepalive_is_moving(
    context_t *context, connection_t *connection, uint32_t generation, uint64_t now, bint late,
) noexcept nogil:
    """Whether something lies in the kernel, or was taken out of there meanwhile; then it came now.

    The same where the client has taken something of much since it was pinged: the ping stands
    behind what the kernel holds.
    """
    cdef bint moving = False
    cdef int unacknowledged = 0
    lock_take(&context.fd_lock)
    if mailbox_generation(connection) == generation:
        moving = kernel_is_readable(connection.poll_fd)
        unacknowledged = kernel_unacknowledged(connection.poll_fd)
    lock_give(&context.fd_lock)
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and connection.websocket != NULL:
        moving |= relaxed_load32(&connection.websocket.heard) != 0
        moving |= late and unacknowledged < connection.websocket.unacknowledged and (
            connection.websocket.unacknowledged > BACKLOG
        )
        connection.websocket.unacknowledged = unacknowledged
        if moving:
            connection.websocket.heard_at = now
    lock_give(&connection.lock)
    return moving


cdef inline void keepalive_not_pinged(
    connection_t *connection, uint32_t generation, bint by_worker,
) noexcept nogil:
    """The ping could not be sent, for want of memory: it is due again. Any thread."""
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and connection.websocket != NULL:
        connection.websocket.probed_at = 0
        relaxed_store32(&connection.websocket.ping_due, by_worker)
    lock_give(&connection.lock)


cdef inline void keepalive_ping(
    loop_t *loop, connection_t *connection, uint32_t generation, bint tls,
) noexcept nogil:
    """Ping. With TLS a worker does: that takes Python."""
    cdef uint64_t now = kernel_now()
    cdef uint32_t bits = 0
    cdef int result
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and connection.websocket != NULL:
        if tls:
            relaxed_store32(&connection.websocket.ping_due, 1)
        else:
            connection.websocket.probed_at = now
            messages_pinged(connection.websocket, <uint8_t *>&now, PING_SIZE)
    lock_give(&connection.lock)
    if tls:
        queues_leave_output(loop, connection, True, True)
        return
    result = output_send(
        &loop.context, NULL, connection, generation, loop.context.pings, <char *>&now, PING_SIZE, 0,
        STATE_OPEN, <size_t>UNLIMITED, NOT_CORKED, &bits)
    if result == SEND_NOW:
        flush_one(loop, &loop.monitor_io, connection, generation, True)
    elif bits:
        queues_post(loop, connection, generation, bits, True)
    if result > SEND_NO_MEMORY:
        relaxed_add64(&loop.monitor_io.counters.pings_sent, 1)
    elif result == SEND_NO_MEMORY:
        keepalive_not_pinged(connection, generation, False)


cdef inline void keepalive_sweep(loop_t *loop) noexcept nogil:
    """Look at all of them. Where there are some, see to it that the next sweep comes."""
    cdef context_t *context = &loop.context
    cdef connection_t *connection
    cdef uint64_t now = kernel_now()
    cdef uint32_t generation = 0
    cdef uint32_t index
    cdef bint tls = False
    cdef bint found = False
    cdef int due
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:
            continue
        due = ALIVE
        lock_take(&connection.lock)
        if connection.state == STATE_OPEN and connection.websocket != NULL:
            generation = mailbox_generation(connection)
            tls = connection.session != NULL
            found = True
            due = keepalive_look_locked(context, connection, now)
        lock_give(&connection.lock)
        if due == TOO_OLD:
            queues_end(
                loop, connection, generation, False, CAUSE_LOCAL_CLOSED, GOING_AWAY, NULL, True
            )
        elif due == ALIVE or keepalive_is_moving(
            context, connection, generation, now, due == PING_LATE
        ):
            pass
        elif due == PING_DUE:
            keepalive_ping(loop, connection, generation, tls)
        else:
            queues_end(
                loop, connection, generation, True, CAUSE_TIMEOUT, TIMEOUT_PING, NULL, True
            )
    if found:
        atomic_or32(&context.watched, WATCH_CONFIGURED)
