"""What a WebSocket connection reads, by its owner: messages, which wait in `input` for a worker;
and control frames, which are acted on here.

_py/control.py does the same in Python. There a PING is answered in its turn; here before the
messages that came with it are delivered. What only a worker can act on is `events`, each in its
turn; FLAG_UNDECODED says that there is something for him.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from hydrogen._c.atomic cimport (
    atomic_store64, relaxed_add64, relaxed_load64, relaxed_store32, relaxed_store64,
)
from hydrogen._c.buffer cimport (
    block_bytes, block_exact, block_free, block_length, block_t,
)
from hydrogen._c.constants cimport (
    FLAGS_ENDED, FLAG_CLOSE_AWAITED, FLAG_CLOSE_SENT, FLAG_UNDECODED, FLUSH_DRAINED, MAIL_BITS,
    NOT_CORKED, SEND_NOW, STATE_OPEN, TODO_CLOSE, UNLIMITED,
)
from hydrogen._c.framing cimport WEBSOCKET_FIN
from hydrogen._c.kernel cimport kernel_now
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._c.output cimport output_append, output_flush, output_wake_drainers
from hydrogen._c.structs cimport connection_t, context_t, io_t, websocket_t
from hydrogen._c.websocket cimport (
    MESSAGES_CONTROL, MESSAGE_HEADER, OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, control_t, reader_t,
    websocket_advance, websocket_closing, websocket_write_header,
)

cdef enum:
    EVENT_HEADER = 8 + 2  # when it is due, opcode, length


cdef inline websocket_t *messages_new() noexcept nogil:
    """NULL without memory."""
    cdef websocket_t *websocket = <websocket_t *>calloc(1, sizeof(websocket_t))
    if websocket != NULL:
        websocket.taken = <uint64_t>1 << 62  # it may go back: messages_put_back
    return websocket


cdef inline void messages_free(websocket_t *websocket) noexcept nogil:
    if websocket != NULL:
        free(websocket.replies)
        free(websocket.events)
        free(websocket)


cdef inline size_t messages_held(const websocket_t *websocket) noexcept nogil:
    """Bytes of what waits for a worker beside the input."""
    return (block_length(websocket.events) if websocket.events != NULL else 0) + (
        block_length(websocket.replies) if websocket.replies != NULL else 0
    )


cdef inline uint64_t messages_hash(const uint8_t *data, size_t n) noexcept nogil:
    """FNV-1a of the payload of a ping, to know its pong by."""
    cdef uint64_t value = 0xCBF29CE484222325
    cdef size_t i
    for i in range(n):
        value = (value ^ data[i]) * <uint64_t>0x100000001B3
    return value


cdef inline void messages_pinged(
    websocket_t *websocket, const uint8_t *data, size_t n,
) noexcept nogil:
    """A ping is being sent. Any thread, under the lock."""
    relaxed_store64(&websocket.ping_hash, messages_hash(data, n))
    relaxed_store64(&websocket.pinged_at, kernel_now())


cdef inline bint messages_add(
    io_t *io, block_t **where, const void *prefix, size_t n, const control_t *control,
) noexcept nogil:
    """Add a prefix of `n` bytes, the length and the payload. False without memory."""
    cdef block_t *block = where[0]
    cdef block_t *larger
    cdef size_t size = n + 1 + control.length
    cdef uint8_t *to
    if block == NULL or block.capacity - block.end < size:
        larger = block_exact(&io.pool, size if block == NULL else 2 * block.end + size)
        if larger == NULL:
            return False
        if block != NULL:
            memcpy(block_bytes(larger), block_bytes(block), block.end)
            larger.start, larger.end = block.start, block.end
            free(block)
        block = where[0] = larger
    to = <uint8_t *>block_bytes(block) + block.end
    memcpy(to, prefix, n)
    to[n] = control.length
    memcpy(to + n + 1, control.payload, control.length)
    block.end += size
    return True


cdef inline bint messages_add_event(
    io_t *io, websocket_t *websocket, const control_t *control,
) noexcept nogil:
    """Behind the messages that came before it. False without memory."""
    cdef uint8_t prefix[EVENT_HEADER]
    cdef uint64_t due = websocket.taken + websocket.reader.ready
    memcpy(prefix, &due, sizeof(uint64_t))
    prefix[sizeof(uint64_t)] = control.opcode
    return messages_add(io, &websocket.events, prefix, EVENT_HEADER - 1, control)


cdef inline bint messages_event_is_due(const websocket_t *websocket) noexcept nogil:
    """Whether all messages were delivered that came before the first event."""
    cdef uint64_t due
    if websocket.events == NULL:
        return False
    memcpy(&due, block_bytes(websocket.events) + websocket.events.start, sizeof(uint64_t))
    return due <= websocket.taken


cdef inline bint messages_control(
    context_t *context, io_t *io, websocket_t *websocket, control_t *control,
) noexcept nogil:
    """A control frame came. False without memory."""
    cdef uint64_t pinged_at
    cdef uint32_t code
    cdef uint8_t first = WEBSOCKET_FIN | OPCODE_PONG
    if control.opcode == OPCODE_PING:
        relaxed_add64(&io.counters.pings_received, 1)
        return messages_add(io, &websocket.replies, &first, 1, control)
    if control.opcode == OPCODE_CLOSE:
        relaxed_store32(&websocket.said_goodbye, 1)
        websocket.fault = <uint8_t>websocket_closing(control, &code)
        return websocket.fault != 0 or messages_add_event(io, websocket, control)
    relaxed_add64(&io.counters.pongs_received, 1)
    pinged_at = relaxed_load64(&websocket.pinged_at)
    if pinged_at and relaxed_load64(&websocket.ping_hash) == messages_hash(
        control.payload, control.length
    ):
        relaxed_store64(&websocket.latency, max(<uint64_t>1, kernel_now() - pinged_at))
        relaxed_store64(&websocket.pinged_at, 0)  # its pong comes once
    return not context.has_on_pong or messages_add_event(io, websocket, control)


cdef inline void messages_drop_new(
    websocket_t *websocket, block_t *input, size_t ready, size_t events,
) noexcept nogil:
    """Drop what was found beyond so many bytes of messages and events."""
    cdef char *data = block_bytes(input) + input.start
    cdef reader_t *reader = &websocket.reader
    memmove(data + ready, data + reader.ready, block_length(input) - reader.ready)
    input.end -= reader.ready - ready
    reader.ready = ready
    if websocket.fault:
        websocket.fault = 0
        reader.closed = True
    free(websocket.replies)
    websocket.replies = NULL
    if events:
        websocket.events.end = events
    else:
        free(websocket.events)
        websocket.events = NULL


cdef inline bint messages_take(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Take apart what was added to `input`. False without memory."""
    cdef websocket_t *websocket = connection.websocket
    cdef block_t *input = connection.input
    cdef control_t control
    cdef size_t length
    cdef size_t ready = websocket.reader.ready
    cdef size_t events = websocket.events.end if websocket.events != NULL else 0
    cdef int verdict = MESSAGES_CONTROL
    if input == NULL or websocket.fault:
        return True
    while verdict == MESSAGES_CONTROL:
        verdict = websocket_advance(
            &websocket.reader, context.max_message, context.max_fragments,
            <uint8_t *>block_bytes(input) + input.start, block_length(input), &length, &control)
        input.end = input.start + length
        if verdict == MESSAGES_CONTROL:
            if not messages_control(context, io, websocket, &control):
                return False
            if not websocket.reader.message and not connection.flags & FLAG_CLOSE_AWAITED and (
                relaxed_load64(&connection.deadline)
            ):
                atomic_store64(&connection.deadline, 0)  # of this frame
            if websocket.fault:
                verdict = websocket.fault
    websocket.fault = <uint8_t>verdict
    if websocket.discards:
        messages_drop_new(websocket, input, ready, events)
    if (
        websocket.reader.ready or websocket.events != NULL or websocket.fault or
        # a step cannot encrypt
        websocket.replies != NULL and connection.session != NULL
    ):
        connection.flags |= FLAG_UNDECODED
    if input.end == input.start:
        connection.input = NULL
        block_free(&io.pool, input)
    return True


cdef inline bint messages_put_back(
    io_t *io, connection_t *connection, uint8_t opcode, const char *data, size_t n,
) noexcept nogil:
    """Put a message, which was compressed and is not now, before all that is ready: it is not to be
    delivered yet. False without memory.
    """
    cdef websocket_t *websocket = connection.websocket
    cdef block_t *input = connection.input
    cdef size_t rest = block_length(input) if input != NULL else 0
    cdef size_t size = MESSAGE_HEADER + n
    cdef block_t *larger = block_exact(&io.pool, size + rest)
    cdef char *to
    if larger == NULL:
        return False
    to = block_bytes(larger)
    websocket_write_header(<uint8_t *>to, opcode, n)
    memcpy(to + MESSAGE_HEADER, data, n)
    if input != NULL:
        memcpy(to + size, block_bytes(input) + input.start, rest)
        block_free(&io.pool, input)
    larger.end = size + rest
    connection.input = larger
    websocket.reader.ready += size
    websocket.taken -= size
    return True


cdef inline void messages_reply(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """Send the PONGs that are due, without TLS. In a step: what follows from that is in `mail`."""
    cdef websocket_t *websocket = connection.websocket
    cdef block_t *replies = websocket.replies
    cdef uint32_t bits = 0
    websocket.replies = NULL
    # whatever is pending, see `output_send`: the client has asked for them
    if output_append(
        context, &io.pool, connection, mailbox_generation(connection), replies, 0, STATE_OPEN,
        <size_t>UNLIMITED, NOT_CORKED, &bits,
    ) == SEND_NOW:
        bits = output_flush(context, io, connection, mailbox_generation(connection))
    if bits & FLUSH_DRAINED:
        output_wake_drainers(context)
    connection.mail |= bits & MAIL_BITS


cdef inline void messages_drop_control(websocket_t *websocket) noexcept nogil:
    """Drop the control frames that wait for a worker."""
    free(websocket.replies)
    free(websocket.events)
    websocket.replies = websocket.events = NULL


cdef inline void messages_skip(io_t *io, connection_t *connection) noexcept nogil:
    """Drop what nobody wants any more, since the connection ends; a CLOSE in it is known."""
    cdef websocket_t *websocket = connection.websocket
    cdef block_t *input = connection.input
    messages_drop_control(websocket)
    connection.flags &= ~<uint32_t>FLAG_UNDECODED
    if input == NULL:
        return
    input.start += websocket.reader.ready
    websocket.reader.ready = 0
    if input.start == input.end:
        connection.input = NULL
        block_free(&io.pool, input)


cdef inline bint messages_await_close(connection_t *connection) noexcept nogil:
    """Whether the client's CLOSE may come still."""
    return connection.websocket != NULL and not (
        connection.websocket.reader.closed or connection.websocket.fault
    )


cdef inline bint messages_is_closed(
    context_t *context, connection_t *connection,
) noexcept nogil:
    """Whether both sides of a WebSocket have closed it, or the client will not: then our side can
    end. All output is flushed.
    """
    if not connection.flags & FLAG_CLOSE_SENT:
        connection.todo |= TODO_CLOSE
        return False
    if connection.flags & FLAGS_ENDED or not messages_await_close(connection):
        return True
    if not connection.flags & FLAG_CLOSE_AWAITED:
        connection.flags |= FLAG_CLOSE_AWAITED
        atomic_store64(&connection.deadline, kernel_now() + context.close_timeout)
        return False
    return kernel_now() >= relaxed_load64(&connection.deadline)


cdef inline void messages_forget(connection_t *connection) noexcept nogil:
    """`input` is dropped: nothing is looked for any more."""
    cdef websocket_t *websocket = connection.websocket
    messages_drop_control(websocket)
    websocket.reader.ready = websocket.reader.size = 0
    websocket.reader.message = websocket.reader.in_frame = 0
    websocket.reader.closed = True
