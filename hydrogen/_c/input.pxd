"""The input of a connection, for its owner only: read, store, split.

What arrives is read into a scratch buffer and stored in `input`, or, with TLS, in `ciphertext`. A
worker gives what is complete to the handler; nothing here runs Python.
"""

from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from hydrogen._c.atomic cimport (
    atomic_add64, atomic_load32, relaxed_add64, relaxed_load32, relaxed_load64, relaxed_store32,
    relaxed_store64,
)
from hydrogen._c.buffer cimport (
    BLOCK_POOLED, block_bytes, block_exact, block_free, block_length, block_new, block_t,
)
from hydrogen._c.constants cimport (
    AGAIN, FLAG_COMPLETE, FLAG_EOF, FLAG_HANGUP, FLAG_LATE, FLAG_PARTIAL, FLAG_READABLE,
    FLAG_STICKY, FLAG_UNDECODED, PAUSE_MEMORY, STATE_OPEN,
)
from hydrogen._c.framing cimport FRAME_INCOMPLETE, frame_t, framing_find
from hydrogen._c.kernel cimport kernel_recv, kernel_reset_error
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation, mailbox_pause, mailbox_pauses, mailbox_resume
from hydrogen._c.messages cimport messages_forget, messages_held, messages_take
from hydrogen._c.structs cimport connection_t, context_t, io_t


cdef inline size_t input_undelivered(connection_t *connection) noexcept nogil:
    """Bytes read that no Python has seen yet."""
    return (block_length(connection.input) if connection.input != NULL else 0) + (
        block_length(connection.ciphertext) if connection.ciphertext != NULL else 0
    ) + (messages_held(connection.websocket) if connection.websocket != NULL else 0)


cdef inline bint input_is_held(connection_t *connection) noexcept nogil:
    """Whether something that was read is not delivered, be it a part of a message only."""
    return (
        connection.input != NULL or connection.ciphertext != NULL or connection.held != 0 or
        (connection.adapter != NULL or connection.websocket != NULL) and
        connection.flags & FLAG_UNDECODED
    )


cdef inline size_t input_uncounted(connection_t *connection) noexcept nogil:
    """The bytes of `input_undelivered` that are not in `buffered` already."""
    cdef size_t held = input_undelivered(connection)
    return held - min(held, <size_t>relaxed_load64(&connection.input_counted))


cdef inline void input_count(context_t *context, connection_t *connection) noexcept nogil:
    """Count what stays of the input when the owner lets go; nothing does, usually."""
    cdef size_t left = input_undelivered(connection) + connection.held
    cdef uint64_t counted = relaxed_load64(&connection.input_counted)
    if left != counted:
        atomic_add64(&context.buffered, left - counted)
        relaxed_store64(&connection.input_counted, left)


cdef inline void input_drop(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    if connection.input != NULL:
        block_free(&io.pool, connection.input)
        connection.input = NULL
    if connection.ciphertext != NULL:
        block_free(&io.pool, connection.ciphertext)
        connection.ciphertext = NULL
    connection.scanned = connection.held = 0
    if connection.websocket != NULL:
        messages_forget(connection)
    connection.flags &= ~<uint32_t>(FLAG_UNDECODED | FLAG_PARTIAL | FLAG_COMPLETE)
    input_count(context, connection)


cdef inline bint input_deliverable(connection_t *connection) noexcept nogil:
    """Whether there is something for a worker: a complete frame, what can never become one, or what
    only Python can look into.
    """
    cdef frame_t frame
    cdef block_t *input = connection.input
    if connection.ciphertext != NULL or connection.flags & FLAG_UNDECODED:
        return True
    return input != NULL and FRAME_INCOMPLETE != framing_find(
        connection.framing, <const uint8_t *>block_bytes(input) + input.start, block_length(input),
        &connection.scanned, &frame)


cdef inline bint input_store(
    io_t *io, block_t **where, const char *data, size_t n, bint lasting,
) noexcept nogil:
    """Add bytes to `ciphertext` or `input`; False without memory.

    What will be delivered in this turn lies in a pooled block; what has to wait for the rest of a
    frame, `lasting`, in one of about its own size, which grows by half, so that a frame that comes
    in drops costs neither much memory nor quadratic time.
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


cdef inline bint input_tidy(io_t *io, connection_t *connection) noexcept nogil:
    """When all is delivered that can be: free what is consumed, and do not keep a pooled block for
    the beginning of a frame. False without memory.

    What is copied is less than what that frees, so the beginning of a long frame is not copied with
    each record of TLS that adds to it.
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


cdef inline bint input_store_read(
    context_t *context, io_t *io, connection_t *connection, size_t n,
) noexcept nogil:
    """Add what was read into the scratch buffer; False without memory."""
    cdef frame_t frame
    cdef bint lasting
    if connection.websocket != NULL:
        relaxed_store32(&connection.websocket.heard, 1)
    if connection.session != NULL:
        return input_store(io, &connection.ciphertext, io.scratch, n, False)
    if connection.websocket != NULL:
        return (
            input_store(io, &connection.input, io.scratch, n, False) and
            messages_take(context, io, connection) and
            (connection.flags & FLAG_UNDECODED != 0 or input_tidy(io, connection))
        )
    lasting = connection.input == NULL and FRAME_INCOMPLETE == framing_find(
        connection.framing, <const uint8_t *>io.scratch, n, &connection.scanned, &frame)
    return input_store(io, &connection.input, io.scratch, n, lasting)


cdef inline void input_broken(connection_t *connection, int code) noexcept nogil:
    """Reading ended with the errno `code`, or with 0 for a graceful end."""
    connection.end_code = <int16_t>code
    connection.flags = (connection.flags | FLAG_EOF) & ~<uint32_t>FLAG_READABLE
    lock_take(&connection.lock)
    if connection.state == STATE_OPEN:
        connection.code = <int16_t>code
    lock_give(&connection.lock)


cdef inline void input_read(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Read until the socket is drained, and FLAG_READABLE is cleared, or until the budget is used
    up.

    Sets FLAG_EOF and `end_code` at the end. A read shorter than asked for has drained a TCP socket,
    and what comes later is a new edge; not so when RDHUP, HANGUP or URGENT was seen: those come
    with no further edge, and a read stops at an urgent mark (tcp(7)). On a Unix socket it stops
    behind a descriptor that was passed (SCM_RIGHTS, unix(7)), or where the sender's credentials
    change.
    """
    cdef size_t budget = io.read_budget
    cdef size_t want
    cdef int64_t got
    cdef int code
    while budget:
        want = min(budget, io.scratch_size)
        got = kernel_recv(connection.poll_fd, io.scratch, want)
        if got > 0:
            relaxed_add64(&io.counters.bytes_received, <uint64_t>got)
            relaxed_store32(&connection.active, 1)
            if not input_store_read(context, io, connection, <size_t>got):
                input_broken(connection, ENOMEM)
                return
            budget -= <size_t>got
            if connection.flags & FLAG_LATE:
                connection.grace -= min(connection.grace, <int>got)
            if <size_t>got < want and not connection.flags & FLAG_STICKY:
                connection.flags &= ~<uint32_t>FLAG_READABLE
                return
        elif got == 0:
            connection.flags = (connection.flags | FLAG_EOF) & ~<uint32_t>FLAG_READABLE
            return
        elif got != -EAGAIN:
            input_broken(connection, <int>-got)
            return
        else:
            code = (
                kernel_reset_error(connection.poll_fd, False) if connection.flags & FLAG_HANGUP
                else 0
            )
            connection.flags &= ~<uint32_t>(FLAG_READABLE | FLAG_HANGUP)
            if code:
                input_broken(connection, code)
            return
    connection.mail |= AGAIN


cdef inline bint input_paused(context_t *context, connection_t *connection) noexcept nogil:
    """Whether nothing may be read or delivered. By the owner.

    The pause for memory is set here. The monitor thread clears `full` first and then ends the
    pauses; so either it sees this one, or this thread sees `full` cleared.
    """
    if relaxed_load32(&context.full):
        mailbox_pause(connection, mailbox_generation(connection), PAUSE_MEMORY)
        if not atomic_load32(&context.full):
            mailbox_resume(connection, mailbox_generation(connection), PAUSE_MEMORY)
    return mailbox_pauses(connection) != 0
