"""What sockets send: framed, and handed to who queues, encrypts or streams it."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint32_t, uint64_t, uint8_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport (
    CAUSE_SLOW_CONSUMER, DRAIN_DONE, DRAIN_EDGE, DRAIN_SLICE_NS, DRAIN_WAIT, READY, READY_DEFLATES,
    READY_NOT, SEND_NOTHING, SEND_QUEUED, SEND_REFUSED, STATE_OPEN,
)
from hydrogen._c.counters cimport counters_count
from hydrogen._c.expect cimport expect_seldom
from hydrogen._c.framing cimport FRAMING_MESSAGES, FRAMING_PYTHON, FRAMING_RAW, framing_t
from hydrogen._c.kernel cimport kernel_now, kernel_sleep
from hydrogen._c.output cimport output_wait_drained
from hydrogen._c.structs cimport connection_t, io_t, worker_t
from hydrogen._c.waiting cimport waiting_rest
from hydrogen._codec cimport Framing, framed, too_large
from hydrogen._core cimport Engine, HydrogenSocket, check_timeout, encode
from hydrogen._engine.appending cimport appending_bytes, appending_framed
from hydrogen._engine.callbacks cimport callbacks_check, callbacks_flush_corked
from hydrogen._engine.ending cimport ending_ask
from hydrogen._engine.references cimport references_held
from hydrogen._engine.sessions cimport sessions_put, sessions_work
from hydrogen._engine.streams cimport streams_is_mine, streams_send


cdef inline int sending_send_coded(
    Engine engine, worker_t *worker, HydrogenSocket socket, bytes data, uint64_t *rest,
    bytes wire=None,
) except -1:
    """Send by a frame builder of the user's or of the connection's own, by TLS, or by both. `rest`:
    as of `streams_send`. `wire`: `data`, framed already.
    """
    cdef connection_t *connection = socket._connection
    cdef Framing own = references_held(engine, socket, &connection.builder)
    session = references_held(engine, socket, &connection.session)
    decoder = references_held(engine, socket, &connection.decoder)
    if not socket._valid():
        return SEND_REFUSED
    if wire is not None:
        data = wire
    elif decoder is not None:
        data = encode(decoder.builder, data)
    elif own is not None:
        data = framed(&own.value, data)
    elif engine._loop.context.framing.kind == FRAMING_PYTHON:
        data = encode(engine._builder, data)
    else:
        data = framed(engine._loop.context.framing, data)
    if worker != NULL:
        callbacks_check(engine)
    if engine._inert():  # the child of a thread of the user's
        return SEND_REFUSED
    if session is None:
        return appending_bytes(engine, worker, socket, &engine._raw, data, STATE_OPEN)
    return sending_by_session(engine, worker, socket, session, data, rest)


cdef inline int sending_by_session(
    Engine engine, worker_t *worker, HydrogenSocket socket, session, bytes data, uint64_t *rest,
) except -1:
    """Leave a message to whoever has the session, or will."""
    if not socket.is_open or not session.is_writable:
        return SEND_REFUSED
    if socket.pending >= engine._loop.context.max_write_buffer:  # what waits included
        ending_ask(engine, socket, True, CAUSE_SLOW_CONSUMER, 0)
        return SEND_REFUSED
    if not data:
        return SEND_NOTHING
    if not sessions_put(engine, socket, session, data):
        return SEND_REFUSED
    sessions_work(engine, worker, socket, session, False)
    user = session.user
    if user is not None and user != PyThread_get_thread_ident():
        rest[0] = waiting_rest(&engine._loop.context, socket._connection)
    return SEND_QUEUED


cdef inline int sending_message(
    Engine engine, worker_t *worker, HydrogenSocket socket, uint8_t opcode, bytes data,
    uint64_t *rest,
) except -1:
    """Send a message of a WebSocket that is compressed."""
    opening = references_held(engine, socket, &socket._connection.opening)
    if opening is None:
        return SEND_REFUSED
    if opening.output is None:
        wire = opening.encoder.encode(opcode, data)
        return sending_send_coded(engine, worker, socket, wire, rest, wire)
    return sending_by_session(
        engine, worker, socket, opening.output, bytes((opcode,)) + data, rest
    )


cdef inline object sending_ordered(Engine engine, HydrogenSocket socket):
    """Where its messages are compressed in the order of sending; None: they are not."""
    if atomic_load32(&socket._connection.ready) != READY_DEFLATES:
        return None
    opening = references_held(engine, socket, &socket._connection.opening)
    return None if opening is None else opening.output


cdef inline bint sending_send(
    Engine engine, HydrogenSocket socket, const framing_t *framing, const char *data, size_t n,
    uint64_t *rest,
) except -1:
    """`HydrogenSocket.send`. `framing`: the server's, or that of a text.

    Where the message is left to another thread it lets that one get on. Who sends to many does so
    once, for the longest of these times: it is stored in `rest`, if that is not NULL, instead.
    """
    cdef worker_t *worker = engine._worker()
    cdef int result
    if expect_seldom(not sending_is_plain(socket, framing, n)):
        result = sending_send_otherwise(engine, worker, socket, framing, data, n, rest)
    else:
        result = appending_framed(
            engine, worker, socket, framing, data, n, STATE_OPEN, 0,
            engine._loop.context.max_write_buffer)
    return sending_count(engine, worker, result)


cdef inline bint sending_is_plain(
    HydrogenSocket socket, const framing_t *framing, size_t n,
) noexcept:
    """Whether a message is to be framed and queued as it is, which `framing` knows how to do."""
    cdef connection_t *connection = socket._connection
    return (
        socket._valid() and connection.adapter == NULL and connection.session == NULL and
        connection.builder == NULL and framing.kind < FRAMING_PYTHON and
        (framing.kind == FRAMING_RAW or n <= framing.max_size)
    )


cdef inline int sending_send_otherwise(
    Engine engine, worker_t *worker, HydrogenSocket socket, const framing_t *framing,
    const char *data, size_t n, uint64_t *rest,
) except -1:
    """The same of all other messages. Apart, so that `sending_send` is small enough to be inlined:
    a plain message would pay for what this needs.
    """
    cdef connection_t *connection = socket._connection
    cdef uint64_t mine = 0
    cdef uint32_t ready
    cdef int result = SEND_REFUSED
    if not socket._valid():
        return SEND_REFUSED
    if framing.kind == FRAMING_MESSAGES:
        ready = atomic_load32(&connection.ready)
        if ready == READY_NOT:
            return SEND_REFUSED  # the request was not answered yet
        if ready == READY and connection.session == NULL:
            return appending_framed(
                engine, worker, socket, framing, data, n, STATE_OPEN, 0,
                engine._loop.context.max_write_buffer)
    if connection.adapter != NULL:
        if (
            atomic_load32(&connection.state) == STATE_OPEN and
            socket.pending < engine._loop.context.max_write_buffer
        ):
            result = (
                SEND_QUEUED
                if streams_send(engine, socket, PyBytes_FromStringAndSize(data, n), &mine)
                else SEND_REFUSED
            )
        elif atomic_load32(&connection.state) == STATE_OPEN:
            ending_ask(engine, socket, True, CAUSE_SLOW_CONSUMER, 0)
    elif (
        framing.kind == FRAMING_MESSAGES and
        atomic_load32(&connection.ready) == READY_DEFLATES
    ):
        result = sending_message(
            engine, worker, socket, framing.opcode, PyBytes_FromStringAndSize(data, n), &mine
        )
    elif framing.kind == FRAMING_MESSAGES:
        wire = framed(framing, PyBytes_FromStringAndSize(data, n))
        result = sending_send_coded(engine, worker, socket, wire, &mine, wire)
    elif (
        connection.session != NULL or connection.builder != NULL or framing.kind == FRAMING_PYTHON
    ):
        result = sending_send_coded(
            engine, worker, socket, PyBytes_FromStringAndSize(data, n), &mine
        )
    else:
        raise too_large(framing, n)
    if rest != NULL:
        rest[0] = max(rest[0], mine)
    elif mine:
        with nogil:
            kernel_sleep(mine)
    return result


cdef inline bint sending_count(Engine engine, worker_t *worker, int result) noexcept:
    """Whether a message was taken, which is counted."""
    cdef io_t *io = &worker.io if worker != NULL else &engine._loop.outside_io
    counters_count(
        io, &io.counters.messages_refused if result == SEND_REFUSED else &io.counters.messages_sent
    )
    return result != SEND_REFUSED


cdef inline object sending_drain(Engine engine, HydrogenSocket socket, timeout):
    cdef worker_t *worker = engine._worker()
    cdef uint64_t until, deadline = <uint64_t>-1
    cdef int state
    timeout = check_timeout("timeout", timeout)
    if timeout is not None:
        deadline = kernel_now() + <uint64_t>(min(timeout, 1e9) * 1e9)
    if engine._inert():
        return False
    if worker != NULL and worker.corked_count:
        callbacks_flush_corked(engine, worker)
    session = references_held(engine, socket, &socket._connection.session)
    ordered = sending_ordered(engine, socket)
    if (
        streams_is_mine(engine, socket) or
        (session is not None and session.user == PyThread_get_thread_ident()) or
        (ordered is not None and ordered.user == PyThread_get_thread_ident())
    ):
        deadline = 0  # it would wait for itself
    while True:
        if ordered is not None:
            sessions_work(engine, worker, socket, ordered, False)
        if session is not None:
            sessions_work(engine, worker, socket, session, False)
        until = min(deadline, kernel_now() + DRAIN_SLICE_NS)
        with nogil:
            state = output_wait_drained(
                &engine._loop.context, socket._connection, socket._generation, until
            )
        if state == DRAIN_EDGE:
            streams_send(engine, socket, None, NULL)
        elif state != DRAIN_WAIT:
            return state == DRAIN_DONE and (session is None or not session.is_cut)
        PyErr_CheckSignals()
        if kernel_now() >= deadline:
            return False
