"""The input of a connection, for its owner only: read, split frames, keep deadlines, and the end. `connection_step` is the heart.

What arrives is read into a scratch buffer and stored in `input`, or, with TLS, in `wire`. A worker gives what is complete to the handler; a step never runs Python.
"""

from libc.errno cimport EAGAIN, ECONNRESET, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from hydrogen._c.buffer cimport BLOCK_POOLED, block_bytes, block_exact, block_free, block_length, block_new, block_t
from hydrogen._c.connection cimport (
    ABORT, CAUSE_INCOMPLETE_FRAME, CAUSE_OS_ERROR, CAUSE_PEER_CLOSED, CAUSE_TIMEOUT, CAUSE_TRUNCATED, CLOSE, DEADLINE, END, FLAGS_ENDED, FLAGS_OPENING,
    FLAG_EOF, FLAG_EOF_TOLD, FLAG_GOODBYE, FLAG_HANDSHAKE, FLAG_HEADER, FLAG_HUNG, FLAG_LATE, FLAG_LINGERING, FLAG_PARTIAL, FLAG_STICKY, FLAG_TLS_END,
    FLAG_TLS_FAILED, FLAG_UNDECODED, FLUSH_DRAINED, FRAMES, HANGUP, NEW, PAUSE_MEMORY, PAUSE_USER, PORT_OUT, READABLE, RESUME,
    STATE_ABORTING, STATE_CLOSING, STATE_OPEN, TIMEOUT_FRAME, TIMEOUT_IDLE, TIMEOUT_OPEN, TODO_DELIVER, TODO_EOF, TODO_GOODBYE, TODO_OPEN, TODO_PORT_OUT,
    TODO_READ, TODO_WRITABLE, URGENT, VERDICT_AGAIN, VERDICT_DISPATCH, VERDICT_LET_GO, WRITABLE, connection_drop_input, connection_end,
    connection_finish, connection_generation, connection_t, connection_take, connection_wake_drainers, context_t, io_t,
)
from hydrogen._c.framing cimport FRAME_INCOMPLETE, FRAMING_RAW, frame_t, framing_find
from hydrogen._c.sys cimport (
    SHUT_WR, atomic_and32, atomic_load32, atomic_or32, atomic_store32, atomic_store64, counter_bump, lock_give, lock_take, relaxed_load32,
    relaxed_load64, relaxed_store32, sys_now, sys_recv, sys_shutdown, sys_socket_error, sys_unacknowledged,
    sys_unread,
)

cdef enum:
    # nginx's lingering_timeout is 5 s; 2 s cover a retransmission of the tail (RFC 6298: 1 s at first).
    LINGER_NS = 2000000000
    # Reads that are thrown away in one turn.
    LINGER_READS = 16


cdef inline bint connection_deliverable(connection_t *connection) noexcept nogil:
    """Whether there is something for a worker: a complete frame, what can never become one, or what only Python can look into."""
    cdef frame_t frame
    cdef block_t *input = connection.input
    if connection.wire != NULL or connection.flags & FLAG_UNDECODED:
        return True
    return input != NULL and FRAME_INCOMPLETE != framing_find(
        connection.framing, <const uint8_t *>block_bytes(input) + input.start, block_length(input), &connection.scanned, &frame)


cdef inline bint connection_store(io_t *io, block_t **where, const char *data, size_t n, bint lasting) noexcept nogil:
    """Add bytes to `wire` or `input`; False without memory.

    What will be delivered in this turn lies in a pooled block; what has to wait for the rest of a frame, `lasting`, in one of about its own size, which
    grows by half, so that a frame that comes in drops costs neither much memory nor quadratic time.
    """
    cdef block_t *block = where[0]
    cdef block_t *larger
    cdef size_t length
    if block == NULL:
        block = block_exact(&io.pool, n) if lasting else block_new(&io.pool, n)
        if block == NULL:
            return False
        where[0] = block
    elif block.capacity - block.end < n:
        length = block_length(block)
        larger = block_exact(&io.pool, length + n + length // 2)
        if larger == NULL:
            return False
        memcpy(block_bytes(larger), block_bytes(block) + block.start, length)
        larger.end = length
        block_free(&io.pool, block)
        block = where[0] = larger
    memcpy(block_bytes(block) + block.end, data, n)
    block.end += n
    return True


cdef inline bint connection_store_read(io_t *io, connection_t *connection, size_t n) noexcept nogil:
    """Add what was read into the scratch buffer; False without memory."""
    cdef frame_t frame
    cdef bint lasting
    if connection.session != NULL:
        return connection_store(io, &connection.wire, io.scratch, n, False)
    lasting = connection.input == NULL and FRAME_INCOMPLETE == framing_find(
        connection.framing, <const uint8_t *>io.scratch, n, &connection.scanned, &frame)
    return connection_store(io, &connection.input, io.scratch, n, lasting)


cdef inline bint connection_tidy_input(io_t *io, connection_t *connection) noexcept nogil:
    """After delivering: free what is consumed, and do not keep a pooled block for the beginning of a frame. False without memory.

    What is copied is less than what that frees, so the beginning of a long frame is not copied with each record of TLS that adds to it.
    """
    cdef block_t *input = connection.input
    cdef block_t *exact
    cdef size_t length
    if input == NULL:
        return True
    length = block_length(input)
    if length:
        if input.capacity - length < max(length, <size_t>BLOCK_POOLED // 2):
            return True
        exact = block_exact(&io.pool, length)
        if exact == NULL:
            return False
        memcpy(block_bytes(exact), block_bytes(input) + input.start, length)
        exact.end = length
        connection.input = exact
    else:
        connection.input = NULL
    block_free(&io.pool, input)
    return True


cdef inline void connection_broken(connection_t *connection, int code) noexcept nogil:
    """Reading ended with the errno `code`, or with 0 for an end in order."""
    connection.end_code = code
    connection.flags |= FLAG_EOF
    lock_take(&connection.lock)
    if connection.state == STATE_OPEN:
        connection.code = code
    lock_give(&connection.lock)


cdef inline void connection_read(context_t *context, io_t *io, connection_t *connection, bint hangup) noexcept nogil:
    """Read until the socket is drained or the budget is used up; then READABLE is in `mail` again. Sets FLAG_EOF and `end_code` at the end.

    A read shorter than asked for has drained the socket, and what comes later is a new edge; not so when END, HANGUP or URGENT was seen: those
    come with no further edge, and a read stops at an urgent mark (tcp(7)).
    """
    cdef size_t budget = context.read_budget
    cdef size_t want
    cdef int64_t got
    while budget:
        want = min(budget, io.scratch_size)
        got = sys_recv(connection.poll_fd, io.scratch, want)
        if got > 0:
            counter_bump(&io.counters.bytes_received, <uint64_t>got)
            relaxed_store32(&connection.active, 1)
            if not connection_store_read(io, connection, <size_t>got):
                connection.end_code = ENOMEM
                break
            budget -= <size_t>got
            if <size_t>got < want and not connection.flags & FLAG_STICKY:
                return
        elif got == 0:
            connection.flags |= FLAG_EOF
            return
        elif got == -EAGAIN:
            if not hangup:
                return
            connection_broken(connection, sys_socket_error(connection.poll_fd))
            return
        else:
            connection.end_code = <int>-got
            break
    if connection.end_code:
        connection_broken(connection, connection.end_code)
    else:
        connection.mail |= READABLE | (HANGUP if hangup else 0)


cdef inline bint connection_lingered(connection_t *connection) noexcept nogil:
    return sys_now() >= relaxed_load64(&connection.deadline)


cdef inline int connection_late(context_t *context, connection_t *connection) noexcept nogil:
    """Which deadline of the owner's has passed, TIMEOUT_...; 0: none. For a connection that does not linger. (TIMEOUT_WRITE is the monitor thread's.)"""
    cdef uint64_t now = sys_now()
    cdef uint64_t deadline = relaxed_load64(&connection.deadline)
    if deadline and now >= deadline:
        return TIMEOUT_OPEN if connection.flags & FLAGS_OPENING else TIMEOUT_FRAME
    return TIMEOUT_IDLE if connection_is_idle(context, connection, now) else 0


cdef inline bint connection_is_idle(context_t *context, connection_t *connection, uint64_t now) noexcept nogil:
    """Whether no byte came or went for idle_timeout. What the peer's kernel acknowledged meanwhile went; what may not be read, for a pause, came."""
    cdef int unacknowledged
    cdef bint moves
    if (
        not context.idle_timeout or atomic_load32(&connection.active) or
        now < relaxed_load64(&connection.quiet_since) + context.idle_timeout
    ):
        return False
    lock_take(&connection.lock)
    moves = connection.flushing or (connection.output.first != NULL and not connection.blocked)  # corked, say, by another worker
    lock_give(&connection.lock)
    unacknowledged = sys_unacknowledged(connection.poll_fd)
    moves = moves or unacknowledged != connection.idle_unacknowledged or (relaxed_load32(&connection.pause) and sys_unread(connection.poll_fd) > 0)
    if not moves:
        return True
    connection.idle_unacknowledged = unacknowledged
    relaxed_store32(&connection.active, 1)
    return False


cdef inline void connection_watch_frame(context_t *context, connection_t *connection) noexcept nogil:
    """Before letting go: a header, a handshake or an unfinished frame has a deadline, which stands until it is finished (`_decrypt` clears it, `_deliver`
    with each message) or reading is paused. Header and handshake have one together."""
    cdef uint64_t timeout = context.open_timeout if connection.flags & FLAGS_OPENING else context.frame_timeout
    cdef bint partial = connection.flags & (FLAG_PARTIAL | FLAGS_OPENING) or (connection.input != NULL and connection.framing.kind != FRAMING_RAW)
    cdef uint64_t deadline = relaxed_load64(&connection.deadline)
    if not partial and not deadline or connection.flags & FLAG_LINGERING:
        return
    if not partial or relaxed_load32(&connection.state) != STATE_OPEN or relaxed_load32(&connection.pause):
        atomic_store64(&connection.deadline, 0)
    elif not deadline and timeout:
        atomic_store64(&connection.deadline, sys_now() + timeout)


cdef inline int connection_linger(context_t *context, io_t *io, connection_t *connection, uint32_t bits) noexcept nogil:
    """Throw away what still arrives: closing with unread input would make the kernel reset the peer, and the tail of the reply be lost.

    HANGUP is no reason to stop: now that our side has ended it comes with the peer's FIN too, and there may be input before that. recv(2) tells.
    """
    cdef int64_t got
    cdef int k
    if bits & DEADLINE and connection_lingered(connection):
        return connection_finish(context, connection)
    for k in range(LINGER_READS):
        got = sys_recv(connection.poll_fd, io.scratch, io.scratch_size)
        if got == -EAGAIN:
            return VERDICT_LET_GO
        if got <= 0:
            return connection_finish(context, connection)
    connection.mail |= READABLE
    return VERDICT_AGAIN


cdef inline int connection_flushed(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Closing, and all output is flushed. With TLS a worker says goodbye first. Then end the sending side, and linger unless the peer has ended its own.

    CLOSE may be of earlier: records of TLS are queued also after it was posted. Who flushes those posts it again.
    """
    cdef bint flushed
    lock_take(&connection.lock)
    flushed = connection.output.first == NULL and not connection.flushing and not connection.blocked
    lock_give(&connection.lock)
    if not flushed:
        return VERDICT_LET_GO
    if connection.session != NULL and not connection.flags & FLAG_GOODBYE:
        connection.todo |= TODO_GOODBYE
        return VERDICT_DISPATCH
    connection_drop_input(context, io, connection)
    if connection.flags & (FLAG_EOF | FLAG_HUNG) or connection.port != NULL:
        return connection_finish(context, connection)
    sys_shutdown(connection.poll_fd, SHUT_WR)
    connection.flags |= FLAG_LINGERING
    atomic_store64(&connection.deadline, sys_now() + LINGER_NS)
    return connection_linger(context, io, connection, 0)


cdef inline int connection_input_ended(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """All input was delivered and there will be no more: act on it, once."""
    cdef uint32_t generation = connection_generation(connection)
    cdef uint32_t bits
    cdef bint flushing
    if not connection.end_code:
        # A reset is reported once: to recv(2), or to the send(2) of a flusher. What looks like an end in order is one only if nobody is flushing.
        lock_take(&connection.lock)
        flushing = connection.flushing
        lock_give(&connection.lock)
        if flushing:
            connection.mail |= FRAMES
            return VERDICT_AGAIN
    connection.flags |= FLAG_EOF_TOLD
    if connection.end_code:
        bits = connection_end(context, connection, generation, True, CAUSE_OS_ERROR, connection.end_code)
    elif connection.flags & FLAG_TLS_FAILED:
        connection.todo |= TODO_EOF
        return VERDICT_DISPATCH
    elif connection.session != NULL and not connection.flags & FLAG_TLS_END:
        bits = connection_end(context, connection, generation, False, CAUSE_TRUNCATED, 0)
    elif connection.input != NULL or connection.flags & FLAG_PARTIAL:
        bits = connection_end(context, connection, generation, False, CAUSE_INCOMPLETE_FRAME, 0)
    elif context.has_on_eof:
        connection.todo |= TODO_EOF
        if connection.flags & FLAG_HUNG and not connection.unix_domain:
            # A reset came with the end, or after it, and recv(2) told of the end only: it is due after on_eof, and no edge will say so. (A Unix socket
            # hangs up also when the peer has closed in order.)
            connection.mail |= HANGUP
        return VERDICT_DISPATCH
    else:
        bits = connection_end(context, connection, generation, False, CAUSE_PEER_CLOSED, 0)
    if bits & FLUSH_DRAINED:
        connection_wake_drainers(context)
    if bits & ABORT:
        return connection_finish(context, connection)
    if bits & CLOSE:
        return connection_flushed(context, io, connection)
    return VERDICT_LET_GO


cdef inline int connection_too_late(context_t *context, connection_t *connection, int code) noexcept nogil:
    """A deadline has passed, and all was read that is there (else READABLE is in `mail`, and the next sweep tells again)."""
    if connection_end(context, connection, connection_generation(connection), True, CAUSE_TIMEOUT, code) & FLUSH_DRAINED:
        connection_wake_drainers(context)
    return connection_finish(context, connection)


cdef inline bint connection_paused(context_t *context, connection_t *connection) noexcept nogil:
    """Whether nothing may be read or delivered.

    The memory pause is set here: the monitor thread clears `full` first and then looks for the pauses to end; so either it sees this one, or this thread sees
    `full` cleared.
    """
    if relaxed_load32(&context.full):
        atomic_or32(&connection.pause, PAUSE_MEMORY)
        if not atomic_load32(&context.full):
            atomic_and32(&connection.pause, ~<uint32_t>PAUSE_MEMORY)
    return atomic_load32(&connection.pause) != 0


cdef inline int connection_step(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Do all that can be done without Python for a connection that the caller owns; what is left is in `todo` and `mail`, and in the verdict."""
    cdef uint32_t bits = connection_take(connection)
    cdef uint32_t state = atomic_load32(&connection.state)
    cdef int verdict
    cdef int late = 0
    connection.flags &= ~<uint32_t>FLAG_LATE
    if bits & (END | HANGUP | URGENT):
        connection.flags |= FLAG_STICKY
    if bits & HANGUP:
        connection.flags |= FLAG_HUNG
        if relaxed_load32(&connection.pause) & PAUSE_USER and not connection.flags & FLAG_EOF_TOLD:
            # Nothing may be delivered, also of what was read with the end behind it, and nobody could resume in time.
            connection_drop_input(context, io, connection)
            connection_broken(connection, connection.end_code or sys_socket_error(connection.poll_fd) or ECONNRESET)
        atomic_store32(&connection.pause, 0)
    if state == STATE_ABORTING:
        return connection_finish(context, connection)
    if bits & NEW or connection.todo & TODO_OPEN:
        connection.todo |= TODO_OPEN
        connection.mail |= bits & ~<uint32_t>NEW
        return VERDICT_DISPATCH
    if state == STATE_CLOSING:
        if connection.flags & FLAG_LINGERING:
            return connection_linger(context, io, connection, bits)
        if bits & CLOSE:
            return connection_flushed(context, io, connection)
        if bits & DEADLINE and connection_is_idle(context, connection, sys_now()):
            return connection_too_late(context, connection, TIMEOUT_IDLE)
        if not bits & PORT_OUT:
            return VERDICT_LET_GO
    elif bits & DEADLINE:
        late = connection_late(context, connection)
        if late:
            connection.flags |= FLAG_LATE
    if connection.flags & FLAG_HEADER:
        if bits & (READABLE | END | HANGUP | URGENT) or late:
            connection.todo |= TODO_OPEN
            return VERDICT_DISPATCH
        return VERDICT_AGAIN if connection.mail else VERDICT_LET_GO
    if bits & PORT_OUT:
        connection.todo |= TODO_PORT_OUT
    if bits & WRITABLE and context.has_on_writable:
        connection.todo |= TODO_WRITABLE
    if bits & RESUME and not connection.flags & FLAG_HANDSHAKE:
        # The time of the pause does not count.
        atomic_store64(&connection.deadline, 0)
        relaxed_store32(&connection.active, 1)
    if not connection_paused(context, connection):
        # When it is late, the edge of what came in time is perhaps on its way still.
        if (late or bits & (READABLE | END | HANGUP | URGENT | RESUME)) and not connection.flags & FLAGS_ENDED:
            if connection.port != NULL:
                connection.todo |= TODO_READ
            else:
                connection_read(context, io, connection, bits & HANGUP != 0)
        elif bits & HANGUP and connection.flags & FLAG_EOF_TOLD and not connection.end_code:
            # The peer had ended its side already; now it is gone.
            connection_broken(connection, sys_socket_error(connection.poll_fd) or ECONNRESET)
            connection.flags &= ~<uint32_t>FLAG_EOF_TOLD
        if connection_deliverable(connection):
            connection.todo |= TODO_DELIVER
        elif connection.flags & FLAGS_ENDED and not connection.flags & FLAG_EOF_TOLD:
            verdict = connection_input_ended(context, io, connection)
            if verdict != VERDICT_LET_GO:
                return verdict
        elif late and not connection.mail and not connection.todo and connection_late(context, connection) == late:
            return connection_too_late(context, connection, late)
    elif late == TIMEOUT_IDLE and not connection.mail and not connection.todo:
        return connection_too_late(context, connection, late)
    if connection.todo:
        return VERDICT_DISPATCH
    return VERDICT_AGAIN if connection.mail else VERDICT_LET_GO
