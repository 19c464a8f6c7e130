"""The end of a connection: asked for by anyone, carried out by its owner.

Gracefully: output is flushed, with TLS a close_notify behind it, then our FIN; what still arrives
is read and thrown away all the while, until the peer's FIN or for LINGER_NS. At once: a reset.
Then, off the poller, the last callbacks, and the slot is released.
"""

from libc.errno cimport EAGAIN, ECONNRESET, ENOMEM
from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t, uint64_t

from hydrogen._c.addresses cimport addresses_give
from hydrogen._c.atomic cimport (
    atomic_add64, atomic_load32, atomic_store32, atomic_store64, relaxed_add64, relaxed_load64,
    relaxed_store32,
)
from hydrogen._c.buffer cimport queue_clear, queue_t
from hydrogen._c.constants cimport (
    ABORT, AGAIN, CAUSE_INCOMPLETE_FRAME, CAUSE_OS_ERROR, CAUSE_PEER_CLOSED,
    CAUSE_SLOW_CONSUMER, CAUSE_TIMEOUT, CAUSE_TRUNCATED, DISCARD_READS, FLAG_CLOSE_NOTIFY,
    FLAG_COUNTED, FLAG_CUT, FLAG_EOF, FLAG_EOF_TOLD, FLAG_HANGUP, FLAG_LINGERING, FLAG_PARTIAL,
    FLAG_POLLED, FLAG_READABLE, FLAG_RECEIVING, FLAG_REMOVED, FLAG_TLS_END, FLAG_TLS_FAILED,
    FLUSHED, FLUSH_DRAINED, LINGER_NS, NEXT_DISPATCH, NEXT_LET_GO, NEXT_RELEASE, NEXT_STEP,
    STALL_NONE, STATE_ABORTING, STATE_CLOSING, STATE_GONE, STATE_OPEN, STATE_RELEASED, STATE_VACANT,
    TODO_CLOSE_NOTIFY, TODO_EOF, TODO_FINISH, TODO_READ,
)
from hydrogen._c.input cimport input_drop, input_store_read
from hydrogen._c.kernel cimport (
    SHUT_RDWR, SHUT_WR, kernel_close, kernel_close_socket, kernel_local_name, kernel_now,
    kernel_recv, kernel_reset, kernel_reset_error, kernel_shutdown, name_t,
)
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._c.messages cimport messages_await_close, messages_is_closed
from hydrogen._c.output cimport output_abort_locked, output_drop_locked, output_wake_drainers
from hydrogen._c.poller cimport poller_remove
from hydrogen._c.slab cimport slab_advance
from hydrogen._c.structs cimport connection_t, context_t, io_t


cdef inline uint32_t closing_end(
    context_t *context, connection_t *connection, uint32_t generation, bint abort, int cause,
    int code,
    void **error,
) noexcept nogil:
    """Ask for the end, gracefully or at once; the first cause stands. Any thread.

    `error`, unless it is NULL: a counted reference to the exception of that cause; it is NULL
    afterwards when it was taken over. Generation, cause and error are compared and stored under one
    lock, so that nothing of one connection lands on another. Returns the bits to post, and
    FLUSH_DRAINED.
    """
    cdef uint32_t last = STATE_CLOSING if abort else STATE_OPEN
    cdef uint32_t bits = 0
    cdef bint pending
    cdef queue_t dropped
    dropped.first = dropped.last = NULL
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and STATE_OPEN <= connection.state <= last:
        if connection.state == STATE_OPEN:
            connection.cause = <uint8_t>cause
            connection.code = <int16_t>code
            if error != NULL:
                connection.error = error[0]
                error[0] = NULL
        if abort:
            output_abort_locked(context, connection)
            bits = ABORT | output_drop_locked(context, connection, &dropped)
        else:
            atomic_store32(&connection.state, STATE_CLOSING)
            # With output pending, too, a step is due: what a pause held back is to be thrown away,
            # or a peer that sends before it reads waits for us as we for it, and no edge comes.
            pending = connection.output.first != NULL or connection.flushing or connection.blocked
            bits = AGAIN if pending else FLUSHED
    lock_give(&connection.lock)
    queue_clear(&dropped, NULL)
    return bits


cdef inline bint closing_was_reset(connection_t *connection) noexcept nogil:
    """Whether the peer reset it: then it has ended both ways already (RFC 9293, 3.10.7.4), and no
    event will come.
    """
    return (
        connection.end_code == ECONNRESET and connection.adapter == NULL and
        not connection.unix_domain
    )


cdef inline int closing_finish(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Take the connection off the poller and end it both ways; its input goes.

    The fd stays open, so that its number is nobody else's during the last callbacks.
    """
    cdef bint aborted, needs_python, drainers
    cdef uint64_t leaving
    cdef queue_t dropped
    cdef name_t local
    local.family = 0
    input_drop(context, io, connection)
    if context.has_end_callbacks and not connection.unix_domain:
        kernel_local_name(connection.poll_fd, &local)  # a reset makes the kernel forget it
    lock_take(&connection.lock)
    if connection.local.family == 0:
        connection.local = local  # the first time: see FLAG_CUT, and closing_reset
    aborted = connection.state == STATE_ABORTING
    leaving = connection.leaving
    connection.leaving = 0
    if leaving:
        atomic_add64(&context.leaving, -leaving)
    if connection.flushing:
        lock_give(&connection.lock)
        if aborted and connection.adapter != NULL and not connection.flags & FLAG_CUT:
            # Who is in a user's stream may wait for the peer. Once, for it raises an edge.
            connection.flags |= FLAG_CUT
            if connection.unix_domain:
                kernel_shutdown(connection.poll_fd, SHUT_RDWR)
            else:
                kernel_reset(connection.poll_fd)
        return NEXT_LET_GO  # who flushes posts ABORT when he is done
    connection.blocked = False
    drainers = output_drop_locked(context, connection, &dropped) != 0
    relaxed_store32(&connection.stalled, STALL_NONE)
    needs_python = (
        connection.websocket != NULL or connection.opening != NULL or
        connection.user_data != NULL or connection.adapter != NULL or connection.error != NULL or
        connection.session != NULL or connection.decoder != NULL or connection.header != NULL or
        connection.builder != NULL or connection.cause == CAUSE_SLOW_CONSUMER or
        context.has_end_callbacks
    )
    atomic_store32(&connection.state, STATE_GONE if needs_python else STATE_RELEASED)
    lock_give(&connection.lock)
    queue_clear(&dropped, &io.pool)
    if drainers:
        output_wake_drainers(context)
    if not closing_was_reset(connection):
        if connection.flags & FLAG_POLLED:
            # Needed although close(2) follows: a forked child may hold the open file.
            poller_remove(&context.poller, connection.poll_fd)
        if aborted and not connection.unix_domain:
            kernel_reset(connection.poll_fd)
        elif connection.adapter == NULL:  # how a user's stream ends is its own affair
            kernel_shutdown(connection.poll_fd, SHUT_RDWR)
    atomic_store64(&connection.deadline, 0)
    if needs_python:
        connection.todo = TODO_FINISH
        return NEXT_DISPATCH
    return NEXT_RELEASE


cdef inline void closing_reset(
    context_t *context, connection_t *connection, uint32_t generation,
) noexcept nogil:
    """Reset the peer of a connection that is aborted while its owner is in a callback, perhaps for
    ever. Any thread.

    Else the peer would learn of it when the process ends, and then by a FIN, though output was
    dropped.
    """
    cdef name_t local
    lock_take(&context.fd_lock)
    if mailbox_generation(connection) == generation and connection.poll_fd >= 0 and (
        atomic_load32(&connection.state) == STATE_ABORTING
    ):
        if connection.unix_domain:
            kernel_shutdown(connection.poll_fd, SHUT_RDWR)
        else:
            kernel_local_name(connection.poll_fd, &local)
            lock_take(&connection.lock)
            if connection.local.family == 0:
                connection.local = local
            lock_give(&connection.lock)
            kernel_reset(connection.poll_fd)
    lock_give(&context.fd_lock)


cdef inline void closing_count(io_t *io, connection_t *connection) noexcept nogil:
    """Count a connection among the removed, if it is not yet: before its last callbacks, which find
    it in the statistics.
    """
    if connection.flags & FLAG_REMOVED:
        return
    connection.flags |= FLAG_REMOVED
    relaxed_add64(&io.counters.removed[connection.cause], 1)
    if connection.cause == CAUSE_TIMEOUT:
        relaxed_add64(&io.counters.timeouts[connection.code], 1)


cdef inline void closing_release(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Close the fd and end the use of the slot; the slab gets it back from the caller.

    Python references are gone already. Nobody else uses the fd's number once it is -1 (fd_lock), so
    close(2) needs no lock, however long it takes; but no fork comes between, or the child would not
    find its copy: the caller has closed the fork gate.
    """
    cdef int fd
    closing_count(io, connection)
    if connection.flags & FLAG_COUNTED:
        addresses_give(context.addresses, &connection.peer)
    lock_take(&context.fd_lock)
    fd = connection.poll_fd
    connection.fd = connection.poll_fd = -1
    lock_give(&context.fd_lock)
    if closing_was_reset(connection):
        kernel_close(fd)
    else:
        kernel_close_socket(fd)
    lock_take(&connection.lock)
    atomic_store32(&connection.state, STATE_VACANT)
    slab_advance(&connection.slot)
    lock_give(&connection.lock)


cdef inline bint closing_discard(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Read and throw away what still arrives; True at its end, or when reading fails (`end_code`).
    In what a WebSocket client sends its CLOSE is looked for; with TLS a worker does that.

    While output is pending a peer that sends before it reads would else wait for us, as we for it;
    and closing with unread input makes the kernel reset the peer, so that the tail of our output is
    lost.
    """
    cdef int64_t got
    cdef int _k
    for _k in range(DISCARD_READS):
        got = kernel_recv(connection.poll_fd, io.scratch, io.scratch_size)
        if got <= 0:
            connection.flags &= ~<uint32_t>FLAG_READABLE
            if got == -EAGAIN:
                return False
            connection.flags |= FLAG_EOF
            connection.end_code = <int16_t>-got
            return True
        relaxed_add64(&io.counters.bytes_received, <uint64_t>got)
        relaxed_store32(&connection.active, 1)
        if messages_await_close(connection):
            connection.websocket.discards = True
            if not input_store_read(context, io, connection, <size_t>got):
                connection.flags |= FLAG_EOF
                connection.end_code = ENOMEM
                return True
    connection.mail |= AGAIN
    return False


cdef inline int closing_stream(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """A user's stream has sent everything. How it ends is its own affair, but what has come is read
    before, for LINGER_NS at most: to close with it unread would reset the peer, which loses what
    was sent.
    """
    if connection.todo:  # who was in the stream has received
        connection.mail |= AGAIN
        return NEXT_DISPATCH
    if (
        connection.flags & FLAG_EOF or
        not connection.flags & (FLAG_READABLE | FLAG_RECEIVING) or
        kernel_now() >= relaxed_load64(&connection.deadline)
    ):
        return closing_finish(context, io, connection)
    if connection.flags & FLAG_RECEIVING:
        return NEXT_STEP if connection.mail else NEXT_LET_GO
    connection.mail |= AGAIN
    connection.todo |= TODO_READ
    return NEXT_DISPATCH


cdef inline int closing_linger(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Our FIN is sent: wait for the peer's, for LINGER_NS at most.

    HANGUP is no reason to stop: now that our side has ended it comes with the peer's FIN too, and
    there may be input before that. recv(2) tells. What came in time is thrown away however late we
    are: closing with it unread would be a reset.
    """
    cdef bint late
    if connection.adapter != NULL:
        return closing_stream(context, io, connection)
    late = kernel_now() >= relaxed_load64(&connection.deadline)
    if connection.flags & FLAG_READABLE or late:
        late |= closing_discard(context, io, connection)
    if late:
        return closing_finish(context, io, connection)
    return NEXT_STEP if connection.mail else NEXT_LET_GO


cdef inline int closing_flushed(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Closing: if all output is flushed, our FIN is next, with TLS after a close_notify.

    FLUSHED may be of earlier: records of TLS are queued also after it was posted. So the queue is
    looked at; who flushes what is in it posts FLUSHED again. So is the state: an abort that came
    meanwhile has dropped what was in it, and a FIN would say that all was sent.

    For a WebSocket over TLS `pending` must be 0, too: without a GIL another thread may have counted
    a message that it has not left to the session yet, and our CLOSE must not overtake it. Whoever
    brings `pending` to 0 posts FLUSHED. (A close_notify needs no such check: it comes behind all
    that waits, and a sender that finds it requested takes its message back.)
    """
    cdef bint flushed
    lock_take(&connection.lock)
    flushed = (
        connection.state == STATE_CLOSING and connection.output.first == NULL and
        not connection.flushing and not connection.blocked and (
            connection.pending == 0 or connection.websocket == NULL or connection.session == NULL
        )
    )
    lock_give(&connection.lock)
    if not flushed:
        return NEXT_LET_GO
    if connection.websocket != NULL and not messages_is_closed(context, connection):
        return NEXT_DISPATCH if connection.todo else NEXT_LET_GO
    if connection.session != NULL and not connection.flags & FLAG_CLOSE_NOTIFY:
        connection.todo |= TODO_CLOSE_NOTIFY
        return NEXT_DISPATCH
    input_drop(context, io, connection)
    if connection.adapter != NULL:
        connection.flags |= FLAG_LINGERING
        atomic_store64(&connection.deadline, kernel_now() + LINGER_NS)
        return closing_stream(context, io, connection)
    if connection.flags & FLAG_EOF or (
        connection.flags & FLAG_HANGUP and kernel_reset_error(connection.poll_fd, False)
    ):
        return closing_finish(context, io, connection)
    kernel_shutdown(connection.poll_fd, SHUT_WR)
    connection.flags |= FLAG_LINGERING | FLAG_READABLE
    atomic_store64(&connection.deadline, kernel_now() + LINGER_NS)
    return closing_linger(context, io, connection)


cdef inline int closing_go_on(
    context_t *context, io_t *io, connection_t *connection, uint32_t bits,
) noexcept nogil:
    """After `closing_end` by the owner: what is next, with the bits that it returned."""
    if bits & FLUSH_DRAINED:
        output_wake_drainers(context)
    if bits & ABORT:
        return closing_finish(context, io, connection)
    if bits & FLUSHED:
        return closing_flushed(context, io, connection)
    connection.mail |= bits & AGAIN
    return NEXT_STEP if connection.mail else NEXT_LET_GO


cdef inline int closing_input_ended(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """All input was delivered and there will be no more: act on it, once."""
    cdef uint32_t generation = mailbox_generation(connection)
    cdef bint abort = False
    cdef bint flushing
    cdef int cause = CAUSE_PEER_CLOSED
    if not connection.end_code and connection.adapter == NULL:
        # A reset is reported once: to recv(2), or to the send(2) of a flusher. What looks like a
        # graceful end is one only if nobody is flushing.
        lock_take(&connection.lock)
        flushing = connection.flushing
        lock_give(&connection.lock)
        if flushing:
            connection.mail |= AGAIN
            return NEXT_STEP
    connection.flags |= FLAG_EOF_TOLD
    if connection.end_code:
        abort, cause = True, CAUSE_OS_ERROR
    elif connection.flags & FLAG_TLS_FAILED:
        connection.todo |= TODO_EOF
        return NEXT_DISPATCH
    elif connection.session != NULL and not connection.flags & FLAG_TLS_END:
        cause = CAUSE_TRUNCATED
    elif connection.websocket != NULL:
        pass
    elif connection.input != NULL or connection.flags & FLAG_PARTIAL:
        cause = CAUSE_INCOMPLETE_FRAME
    elif context.has_on_eof:
        connection.todo |= TODO_EOF
        return NEXT_DISPATCH
    return closing_go_on(context, io, connection, closing_end(
        context, connection, generation, abort, cause, connection.end_code, NULL))


cdef inline int closing_too_late(
    context_t *context, io_t *io, connection_t *connection, int code,
) noexcept nogil:
    """A deadline has passed, and all was read that came in time."""
    if closing_end(
        context, connection, mailbox_generation(connection), True, CAUSE_TIMEOUT, code, NULL,
    ) & FLUSH_DRAINED:
        output_wake_drainers(context)
    return closing_finish(context, io, connection)
