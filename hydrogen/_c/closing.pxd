"""The end of a connection: asked for by anybody, carried out by its owner."""

from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint32_t, uint8_t

from hydrogen._c.addresses cimport addresses_give
from hydrogen._c.atomic cimport (
    atomic_store32, atomic_store64, relaxed_add64, relaxed_load64, relaxed_store32,
)
from hydrogen._c.constants cimport (
    ABORT, AGAIN, CAUSE_INCOMPLETE_FRAME, CAUSE_OS_ERROR, CAUSE_PEER_CLOSED,
    CAUSE_SLOW_CONSUMER, CAUSE_TIMEOUT, CAUSE_TRUNCATED, DEADLINE, FLAG_CLOSE_NOTIFY, FLAG_EOF,
    FLAG_EOF_TOLD, FLAG_HUNG, FLAG_LINGERING, FLAG_PARTIAL, FLAG_POLLED, FLAG_TLS_END,
    FLAG_TLS_FAILED, FLUSHED, FLUSH_DRAINED, HANGUP, LINGER_NS, LINGER_READS, NEXT_DISPATCH,
    NEXT_LET_GO, NEXT_RELEASE, NEXT_STEP, READABLE, STALL_NONE, STATE_ABORTING, STATE_CLOSING,
    STATE_GONE, STATE_OPEN, STATE_VACANT, TODO_CLOSE_NOTIFY, TODO_EOF, TODO_FINISH,
)
from hydrogen._c.input cimport input_drop
from hydrogen._c.kernel cimport (
    SHUT_RDWR, SHUT_WR, kernel_close, kernel_local_name, kernel_now, kernel_recv, kernel_reset,
    kernel_shutdown,
)
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._c.output cimport output_drop_locked, output_wake_drainers
from hydrogen._c.poller cimport poller_remove
from hydrogen._c.slab cimport slab_advance
from hydrogen._c.structs cimport connection_t, context_t, io_t


cdef inline uint32_t closing_end(context_t *context, connection_t *connection, uint32_t generation, bint abort, int cause, int code) noexcept nogil:
    """Ask for the end, in order or at once; the first cause stands. Any thread. Returns the bits to post, and FLUSH_DRAINED."""
    cdef uint32_t last = STATE_CLOSING if abort else STATE_OPEN
    cdef uint32_t bits = 0
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and STATE_OPEN <= connection.state <= last:
        if connection.state == STATE_OPEN:
            connection.cause = <uint8_t>cause
            connection.code = code
        if abort:
            atomic_store32(&connection.state, STATE_ABORTING)
            bits = ABORT | output_drop_locked(context, connection)
        else:
            atomic_store32(&connection.state, STATE_CLOSING)
            if connection.output.first == NULL and not connection.flushing and not connection.blocked:
                bits = FLUSHED
    lock_give(&connection.lock)
    return bits


cdef inline int closing_finish(context_t *context, connection_t *connection) noexcept nogil:
    """Take the connection off the poller and end it both ways; the fd stays open, so that its number is nobody else's during the last callbacks."""
    cdef bint aborted, needs_python, drainers
    lock_take(&connection.lock)
    if connection.flushing:
        lock_give(&connection.lock)
        return NEXT_LET_GO  # output_flush posts ABORT when it is done
    aborted = connection.state == STATE_ABORTING
    atomic_store32(&connection.state, STATE_GONE)
    connection.blocked = False
    drainers = output_drop_locked(context, connection) != 0
    relaxed_store32(&connection.stalled, STALL_NONE)
    needs_python = (
        connection.user_data != NULL or connection.adapter != NULL or connection.error != NULL or connection.session != NULL or
        connection.decoder != NULL or connection.header != NULL or connection.cause == CAUSE_SLOW_CONSUMER
    )
    lock_give(&connection.lock)
    if drainers:
        output_wake_drainers(context)
    if connection.flags & FLAG_POLLED:
        poller_remove(&context.poller, connection.poll_fd)
    if context.has_end_callbacks and not connection.unix_domain:
        kernel_local_name(connection.poll_fd, &connection.local)
    if aborted and not connection.unix_domain:
        kernel_reset(connection.poll_fd)
    elif connection.adapter == NULL:  # how a user's stream ends is its own affair
        kernel_shutdown(connection.poll_fd, SHUT_RDWR)
    atomic_store64(&connection.deadline, 0)
    if needs_python or context.has_end_callbacks:
        connection.todo = TODO_FINISH
        return NEXT_DISPATCH
    return NEXT_RELEASE


cdef inline void closing_release(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Close the fd and end the use of the slot; the slab gets it back from the caller. Python references are gone already."""
    input_drop(context, io, connection)
    relaxed_add64(&io.counters.removed[connection.cause], 1)
    if connection.cause == CAUSE_TIMEOUT:
        relaxed_add64(&io.counters.timeouts[connection.code], 1)
    if connection.counted:
        addresses_give(context.addresses, &connection.peer)
    lock_take(&context.fd_lock)
    kernel_close(connection.poll_fd)
    connection.fd = connection.poll_fd = -1
    lock_give(&context.fd_lock)
    lock_take(&connection.lock)
    atomic_store32(&connection.state, STATE_VACANT)
    slab_advance(&connection.slot)
    lock_give(&connection.lock)


cdef inline bint closing_lingered(connection_t *connection) noexcept nogil:
    return kernel_now() >= relaxed_load64(&connection.deadline)


cdef inline int closing_linger(context_t *context, io_t *io, connection_t *connection, uint32_t bits) noexcept nogil:
    """Throw away what still arrives: closing with unread input would make the kernel reset the peer, and the tail of the reply be lost.

    HANGUP is no reason to stop: now that our side has ended it comes with the peer's FIN too, and there may be input before that. recv(2) tells.
    """
    cdef int64_t got
    cdef int k
    if bits & DEADLINE and closing_lingered(connection):
        return closing_finish(context, connection)
    for k in range(LINGER_READS):
        got = kernel_recv(connection.poll_fd, io.scratch, io.scratch_size)
        if got == -EAGAIN:
            return NEXT_LET_GO
        if got <= 0:
            return closing_finish(context, connection)
    connection.mail |= READABLE
    return NEXT_STEP


cdef inline int closing_flushed(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Closing, and all output is flushed. With TLS a worker says goodbye first. Then end the sending side, and linger unless the peer has ended its own.

    FLUSHED may be of earlier: records of TLS are queued also after it was posted. Who flushes those posts it again.
    """
    cdef bint flushed
    lock_take(&connection.lock)
    flushed = connection.output.first == NULL and not connection.flushing and not connection.blocked
    lock_give(&connection.lock)
    if not flushed:
        return NEXT_LET_GO
    if connection.session != NULL and not connection.flags & FLAG_CLOSE_NOTIFY:
        connection.todo |= TODO_CLOSE_NOTIFY
        return NEXT_DISPATCH
    input_drop(context, io, connection)
    if connection.flags & (FLAG_EOF | FLAG_HUNG) or connection.adapter != NULL:
        return closing_finish(context, connection)
    kernel_shutdown(connection.poll_fd, SHUT_WR)
    connection.flags |= FLAG_LINGERING
    atomic_store64(&connection.deadline, kernel_now() + LINGER_NS)
    return closing_linger(context, io, connection, 0)


cdef inline int closing_input_ended(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """All input was delivered and there will be no more: act on it, once."""
    cdef uint32_t generation = mailbox_generation(connection)
    cdef uint32_t bits
    cdef bint flushing
    if not connection.end_code:
        # A reset is reported once: to recv(2), or to the send(2) of a flusher. What looks like an end in order is one only if nobody is flushing.
        lock_take(&connection.lock)
        flushing = connection.flushing
        lock_give(&connection.lock)
        if flushing:
            connection.mail |= AGAIN
            return NEXT_STEP
    connection.flags |= FLAG_EOF_TOLD
    if connection.end_code:
        bits = closing_end(context, connection, generation, True, CAUSE_OS_ERROR, connection.end_code)
    elif connection.flags & FLAG_TLS_FAILED:
        connection.todo |= TODO_EOF
        return NEXT_DISPATCH
    elif connection.session != NULL and not connection.flags & FLAG_TLS_END:
        bits = closing_end(context, connection, generation, False, CAUSE_TRUNCATED, 0)
    elif connection.input != NULL or connection.flags & FLAG_PARTIAL:
        bits = closing_end(context, connection, generation, False, CAUSE_INCOMPLETE_FRAME, 0)
    elif context.has_on_eof:
        connection.todo |= TODO_EOF
        if connection.flags & FLAG_HUNG and not connection.unix_domain:
            # A reset came with the end, or after it, and recv(2) told of the end only: it is due after on_eof, and no edge will say so. (A Unix socket
            # hangs up also when the peer has closed in order.)
            connection.mail |= HANGUP
        return NEXT_DISPATCH
    else:
        bits = closing_end(context, connection, generation, False, CAUSE_PEER_CLOSED, 0)
    if bits & FLUSH_DRAINED:
        output_wake_drainers(context)
    if bits & ABORT:
        return closing_finish(context, connection)
    if bits & FLUSHED:
        return closing_flushed(context, io, connection)
    return NEXT_LET_GO


cdef inline int closing_too_late(context_t *context, connection_t *connection, int code) noexcept nogil:
    """A deadline has passed, and all was read that is there (else READABLE is in `mail`, and the next sweep tells again)."""
    if closing_end(context, connection, mailbox_generation(connection), True, CAUSE_TIMEOUT, code) & FLUSH_DRAINED:
        output_wake_drainers(context)
    return closing_finish(context, connection)
