"""What a worker does for a WebSocket connection: messages and events are delivered, and it is
closed. What needs no Python is done in _c/messages.pxd.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from hydrogen._c.atomic cimport atomic_load32, atomic_swap32, relaxed_load64
from hydrogen._c.buffer cimport block_bytes, block_length, block_t
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_BAD_FRAME, CAUSE_FRAME_TOO_LARGE, CAUSE_PEER_CLOSED, CORK_CALLBACKS, CORK_NS,
    DELIVER_MOST, FLAG_BUSY, FLAG_CLOSE_SENT, FLAG_COMPLETE, FLAG_HEAD, FLAG_STOP, FLAG_UNDECODED,
    FLUSHED, INFLATED_AS_ONE, SEND_QUEUED, SEND_REFUSED, STATE_CLOSING, STATE_OPEN,
)
from hydrogen._c.counters cimport counters_count
from hydrogen._c.framing cimport FRAME_COMPLETE, FRAME_INCOMPLETE, frame_t, framing_next
from hydrogen._c.keepalive cimport keepalive_not_pinged
from hydrogen._c.kernel cimport kernel_now
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation, mailbox_pauses
from hydrogen._c.messages cimport (
    EVENT_HEADER, messages_event_is_due, messages_pinged, messages_put_back, messages_skip,
)
from hydrogen._c.queues cimport queues_has_ready
from hydrogen._c.structs cimport connection_t, io_t, websocket_t, worker_t
from hydrogen._c.websocket cimport (
    MESSAGES_FRAGMENTS, MESSAGES_LARGE, MESSAGES_TEXT, MESSAGE_HEADER, OPCODE_CLOSE, OPCODE_PING,
    OPCODE_TEXT, WEBSOCKET_COMPRESSED,
)
from hydrogen._core cimport (
    Engine, Fault, HydrogenSocket, _Callbacks, closing_payload, control_frame, errors, head_refusal,
)
from hydrogen._engine.appending cimport appending_bytes
from hydrogen._engine.callbacks cimport (
    callbacks_begin, callbacks_check, callbacks_failed, callbacks_leave, callbacks_message,
)
from hydrogen._engine.ending cimport ending_with
from hydrogen._engine.finishing cimport finishing_error
from hydrogen._engine.handshake cimport handshake_refuse, handshake_serve, handshake_write
from hydrogen._engine.references cimport references_held
from hydrogen._engine.sending cimport sending_ordered
from hydrogen._engine.sessions cimport sessions_put, sessions_work


cdef inline int control_deliver(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Give to the handler what is complete: the head of the request, then messages and events."""
    cdef websocket_t *websocket
    cdef int budget = DELIVER_MOST
    cdef uint64_t until = worker.iteration_began + CORK_NS
    while atomic_load32(&connection.state) == STATE_OPEN and not mailbox_pauses(connection):
        websocket = connection.websocket
        if websocket == NULL:
            if not control_head(engine, worker, connection, socket):
                break
            continue
        control_reply(engine, worker, connection, socket)
        if not (websocket.reader.ready or websocket.events != NULL or websocket.fault):
            break
        if budget <= 0:
            if queues_has_ready(&engine._loop) or kernel_now() >= until:
                connection.mail |= AGAIN
                break
            budget = CORK_CALLBACKS
        budget -= 1
        if messages_event_is_due(websocket):
            control_event(engine, worker, connection, socket)
        elif websocket.reader.ready:
            control_message(engine, worker, connection, socket, &budget)
        else:
            control_refuse(engine, connection, socket)
    control_reply(engine, worker, connection, socket)
    if connection.flags & FLAG_STOP and mailbox_pauses(connection):
        control_stop(engine, worker, connection, socket)
    return control_note(worker, connection)


cdef inline int control_stop(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Reading is paused while the server stops: what is no message is not waited for."""
    cdef websocket_t *websocket = connection.websocket
    if websocket == NULL or websocket.reader.ready:
        return 0
    while websocket.events != NULL and control_next(websocket) == OPCODE_CLOSE:
        control_event(engine, worker, connection, socket)
    if websocket.events == NULL and websocket.fault:
        control_refuse(engine, connection, socket)
    return 0


cdef inline uint8_t control_next(websocket_t *websocket) noexcept:
    """The opcode of the next event."""
    return <uint8_t>block_bytes(websocket.events)[websocket.events.start + EVENT_HEADER - 2]


cdef inline int control_note(worker_t *worker, connection_t *connection) noexcept:
    """Note for steps off the GIL what is left for a worker."""
    cdef websocket_t *websocket = connection.websocket
    if websocket == NULL:
        return 0
    if atomic_load32(&connection.state) != STATE_OPEN:
        messages_skip(&worker.io, connection)
    elif not (websocket.reader.ready or websocket.events != NULL or websocket.fault):
        connection.flags &= ~<uint32_t>FLAG_UNDECODED
    elif connection.flags & FLAG_STOP and mailbox_pauses(connection):
        connection.flags |= FLAG_COMPLETE
    return 0


cdef inline bint control_head(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Answer the head; False when it is not whole."""
    cdef block_t *input = connection.input
    cdef const uint8_t *at
    cdef frame_t frame
    cdef int result
    if input == NULL or not connection.flags & FLAG_HEAD:
        return False
    at = <const uint8_t *>block_bytes(input) + input.start
    result = framing_next(connection.framing, at, block_length(input), &connection.scanned, &frame)
    if result == FRAME_INCOMPLETE:
        return False
    if result == FRAME_COMPLETE:
        head = PyBytes_FromStringAndSize(<const char *>at, frame.length)
        input.start += frame.size
        handshake_serve(engine, worker, connection, socket, head)
    else:
        head = PyBytes_FromStringAndSize(<const char *>at, block_length(input))
        handshake_refuse(engine, worker, socket, head_refusal(head, engine._websocket.max_header))
    return True


cdef inline int control_message(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, int *budget,
) except -1:
    """The first message that is ready. `budget`: messages left in this turn."""
    cdef websocket_t *websocket = connection.websocket
    cdef block_t *input = connection.input
    cdef const uint8_t *at = <const uint8_t *>block_bytes(input) + input.start
    cdef size_t length = 0
    cdef size_t k
    for k in range(1, <size_t>MESSAGE_HEADER):
        length = length << 8 | at[k]
    cdef uint8_t opcode = at[0]
    if opcode == OPCODE_TEXT:
        data = PyUnicode_DecodeUTF8(<char *>at + MESSAGE_HEADER, length, NULL)
    else:
        data = PyBytes_FromStringAndSize(<const char *>at + MESSAGE_HEADER, length)
    input.start += MESSAGE_HEADER + length
    websocket.reader.ready -= MESSAGE_HEADER + length
    websocket.taken += MESSAGE_HEADER + length
    if opcode & WEBSOCKET_COMPRESSED:
        return control_inflate(
            engine, worker, connection, socket, opcode & ~WEBSOCKET_COMPRESSED, data, budget
        )
    return callbacks_message(engine, worker, connection, socket, data)


cdef inline int control_inflate(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
    uint8_t opcode, bytes data, int *budget,
) except -1:
    """Deliver a message that was compressed, if it still may be: zlib lets go of the GIL, and
    others close and pause meanwhile. A small message may inflate to a large one, which takes long.
    """
    fault = None
    callbacks_begin(engine, worker)
    try:
        data = (<object>connection.opening).inflater.inflate(
            data, engine._loop.context.max_message
        )
        budget[0] -= <int>(len(data) // INFLATED_AS_ONE)
        message = data
        if opcode == OPCODE_TEXT:
            message = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(data), len(data), NULL)
    except ValueError as error:
        fault = (
            errors.stripped(error) if issubclass(type(error), errors.ProtocolError)
            else Fault(MESSAGES_TEXT).error()  # a UnicodeDecodeError
        )
    callbacks_check(engine)
    if atomic_load32(&connection.state) != STATE_OPEN:
        return 0
    if fault is None and not mailbox_pauses(connection):
        return callbacks_message(engine, worker, connection, socket, message)
    if fault is None:
        if not messages_put_back(
            &worker.io, connection, opcode, PyBytes_AS_STRING(data), len(data)
        ):
            raise MemoryError
        return 0
    large = isinstance(fault, errors.FrameTooLarge)
    connection.websocket.fault = MESSAGES_LARGE if large else MESSAGES_TEXT  # it is not listened to
    ending_with(
        engine, socket, False, CAUSE_FRAME_TOO_LARGE if large else CAUSE_BAD_FRAME, fault
    )
    return 0


cdef inline int control_event(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """The first PONG or CLOSE that came."""
    cdef websocket_t *websocket = connection.websocket
    cdef block_t *events = websocket.events
    cdef const uint8_t *at = <const uint8_t *>block_bytes(events) + events.start
    cdef uint8_t opcode = control_next(websocket)
    cdef uint8_t length = at[EVENT_HEADER - 1]
    cdef bytes data = PyBytes_FromStringAndSize(<const char *>at + EVENT_HEADER, length)
    events.start += EVENT_HEADER + length
    if events.start == events.end:
        websocket.events = NULL
        free(events)
    if opcode == OPCODE_CLOSE:
        code = int.from_bytes(data[:2], "big") if data else 1005
        error = errors.WebSocketClosed(code, data[2:].decode())
        ending_with(engine, socket, False, CAUSE_PEER_CLOSED, error)
        return 0
    callbacks_begin(engine, worker)
    try:
        (<_Callbacks>worker.callbacks).on_pong(socket, data)
    except BaseException as error:
        callbacks_failed(engine, worker, socket, "on_pong", error)
    return callbacks_leave(engine, worker)


cdef inline int control_refuse(
    Engine engine, connection_t *connection, HydrogenSocket socket,
) except -1:
    """What the client sends is no WebSocket."""
    cdef uint8_t fault = connection.websocket.fault
    cdef bint large = fault in (MESSAGES_LARGE, MESSAGES_FRAGMENTS)
    ending_with(
        engine, socket, False, CAUSE_FRAME_TOO_LARGE if large else CAUSE_BAD_FRAME,
        Fault(fault).error())
    return 0


cdef inline int control_reply(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Send the PONGs that are due where no step has: with TLS, and behind the head."""
    cdef block_t *replies
    if connection.websocket == NULL or connection.websocket.replies == NULL:
        return 0
    replies = connection.websocket.replies
    connection.websocket.replies = NULL
    try:
        data = PyBytes_FromStringAndSize(block_bytes(replies), block_length(replies))
    finally:
        free(replies)
    if atomic_load32(&connection.state) == STATE_OPEN:
        control_write(engine, worker, socket, data)
    return 0


cdef inline int control_write(
    Engine engine, worker_t *worker, HydrogenSocket socket, bytes wire,
) except -1:
    """Send a control frame of ours, whatever is pending: the client has asked for it, or it is one
    now and then. SEND_...
    """
    session = references_held(engine, socket, &socket._connection.session)
    if not socket._valid() or engine._inert():
        return SEND_REFUSED
    if session is None:
        return appending_bytes(engine, worker, socket, &engine._raw, wire, STATE_OPEN, 0, False)
    if not sessions_put(engine, socket, session, wire):
        return SEND_REFUSED
    sessions_work(engine, worker, socket, session, False)
    return SEND_QUEUED


cdef inline int control_close(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """All output is flushed: our CLOSE is the last, unless there is to be none."""
    cdef bytes frame
    connection.flags |= FLAG_CLOSE_SENT
    connection.mail |= FLUSHED
    error = finishing_error(engine, connection)
    payload = closing_payload(error, engine._websocket.stop_code)
    frame = b"" if payload is None else control_frame(OPCODE_CLOSE, payload)
    ordered = sending_ordered(engine, socket)
    if ordered is not None:
        return control_seal(engine, worker, connection, socket, ordered, frame)
    if not frame:
        return 0
    if connection.session == NULL:
        appending_bytes(engine, worker, socket, &engine._raw, frame, STATE_CLOSING)
    elif sessions_put(engine, socket, <object>connection.session, frame, STATE_CLOSING):
        sessions_work(engine, worker, socket, <object>connection.session, True)
    return 0


cdef inline int control_seal(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, ordered,
    bytes frame,
) except -1:
    """The same, behind the messages that are compressed in order."""
    callbacks_begin(engine, worker)
    ordered.last = frame
    ordered.is_closing = True
    sessions_work(engine, worker, socket, ordered, True)
    if not ordered.is_sealed:  # another thread has it, and posts RECEIVED
        connection.flags &= ~<uint32_t>FLAG_CLOSE_SENT
        connection.flags |= FLAG_BUSY
    return 0


cdef inline bint control_ping(Engine engine, HydrogenSocket socket, bytes data) except -1:
    """`HydrogenSocket.ping`; False when the connection ends. Any thread."""
    cdef worker_t *worker = engine._worker()
    if not socket.is_open or not control_note_ping(socket, data):
        return False
    return control_count_ping(engine, worker, handshake_write(
        engine, worker, socket, control_frame(OPCODE_PING, data)
    ))


cdef inline bint control_count_ping(Engine engine, worker_t *worker, int result) noexcept:
    """Whether a ping was taken, which is counted."""
    cdef io_t *io = &worker.io if worker != NULL else &engine._loop.outside_io
    if result == SEND_REFUSED:
        return False
    counters_count(io, &io.counters.pings_sent)
    return True


cdef inline bint control_note_ping(HydrogenSocket socket, bytes data) noexcept:
    """Know its pong by it. False when this is no open WebSocket."""
    cdef connection_t *connection = socket._connection
    cdef bint found
    lock_take(&connection.lock)
    found = mailbox_generation(connection) == socket._generation and connection.websocket != NULL
    if found:
        messages_pinged(
            connection.websocket, <const uint8_t *>PyBytes_AS_STRING(data), len(data)
        )
    lock_give(&connection.lock)
    return found


cdef inline int control_ping_due(Engine engine, HydrogenSocket socket) except -1:
    """Send a ping of the monitor thread's, which cannot encrypt."""
    cdef connection_t *connection = socket._connection
    cdef worker_t *worker = engine._worker()
    cdef bint due, is_done = False
    lock_take(&connection.lock)
    due = (
        mailbox_generation(connection) == socket._generation and connection.websocket != NULL and
        atomic_swap32(&connection.websocket.ping_due, 0)
    )
    if due:
        connection.websocket.probed_at = kernel_now()
    lock_give(&connection.lock)
    if due:
        try:
            data = kernel_now().to_bytes(8, "big")
            if socket.is_open and control_note_ping(socket, data):
                control_count_ping(engine, worker, control_write(
                    engine, worker, socket, control_frame(OPCODE_PING, data)
                ))
            is_done = True
        finally:
            if not is_done:
                keepalive_not_pinged(connection, socket._generation, True)
    return 0


cdef inline object control_latency(HydrogenSocket socket):
    """`HydrogenSocket.latency`."""
    cdef connection_t *connection = socket._connection
    cdef uint64_t latency = 0
    lock_take(&connection.lock)
    if mailbox_generation(connection) == socket._generation and connection.websocket != NULL:
        latency = relaxed_load64(&connection.websocket.latency)
    lock_give(&connection.lock)
    return latency / 1e9 if latency else None


cdef inline object control_opening(Engine engine, HydrogenSocket socket):
    """Path and subprotocol; None when the connection is gone, or not open yet."""
    return references_held(engine, socket, &socket._connection.opening)
