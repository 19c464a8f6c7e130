"""Streams written by the user: the slow path.

Messages that the stream gave out and that were not delivered are in the adapter; FLAG_UNDECODED says
off the GIL that there are some.
"""

from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32, atomic_load64, relaxed_add64, relaxed_store32
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_HANDLER_ERROR, CAUSE_OS_ERROR, DELIVER_MOST, FLAG_EOF, FLAG_READABLE,
    FLAG_STOP, FLAG_UNDECODED, STATE_CLOSING, STATE_OPEN, STOP,
)
from hydrogen._c.deadlines cimport deadlines_watch_output
from hydrogen._c.mailbox cimport mailbox_pauses
from hydrogen._c.output cimport output_adapter_sent
from hydrogen._c.queues cimport queues_check_memory, queues_post
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket, class_name, errors
from hydrogen._engine.callbacks cimport callbacks_log, callbacks_message, callbacks_run
from hydrogen._engine.ending cimport ending_with
from hydrogen._engine.references cimport references_held


cdef inline int streams_read(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) except -1:
    """Deliver what a user's stream has, until it has nothing, raises, or the budget is used up.

    While the connection closes, what it has is thrown away; while the server stops, nothing more is
    asked of it.
    """
    cdef int budget = DELIVER_MOST
    cdef bint closing
    adapter = <object>connection.adapter
    while True:
        closing = atomic_load32(&connection.state) == STATE_CLOSING
        if not closing and (atomic_load32(&connection.state) != STATE_OPEN or mailbox_pauses(connection)):
            break
        if budget <= 0:
            connection.mail |= AGAIN
            break
        budget -= 1
        if closing:
            adapter.messages.clear()
        if not adapter.messages:
            if not connection.flags & FLAG_READABLE or (streams_stops(connection) and not closing):
                break
            if not streams_receive(engine, worker, connection, socket, adapter):
                break
            continue
        data = adapter.messages.popleft()
        relaxed_add64(&worker.io.counters.bytes_received, len(data))
        callbacks_message(engine, worker, connection, socket, data)
    connection.flags &= ~<uint32_t>FLAG_UNDECODED
    connection.held = 0
    if adapter.messages:
        connection.flags |= FLAG_UNDECODED
        connection.held = sum([len(message) for message in adapter.messages])
    return 0


cdef inline bint streams_stops(connection_t *connection) noexcept:
    """Whether the server stops, be STOP taken or not: the callback of now may have lasted."""
    return connection.flags & FLAG_STOP or atomic_load64(&connection.slot.word) & STOP


cdef inline bint streams_receive(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, adapter,
) except -1:
    """One `Stream.recv`; False when there is nothing more, or it raised."""
    try:
        if callbacks_run(engine, worker, adapter.receive):
            relaxed_store32(&connection.active, 1)
            return True
    except EOFError:
        connection.flags |= FLAG_EOF
    except BaseException as error:
        streams_failed(engine, socket, adapter, "recv", error)
    connection.flags &= ~<uint32_t>FLAG_READABLE
    return False


cdef inline int streams_failed(Engine engine, HydrogenSocket socket, adapter, name, error) except -1:
    """`Stream.recv` or `send` raised."""
    if engine._inert():
        return 0
    cause, shown = errors.cause_of(error)
    ending_with(engine, socket, cause == CAUSE_OS_ERROR or name == "send", cause, shown)
    if cause == CAUSE_HANDLER_ERROR:
        callbacks_log(engine, socket, f"{class_name(adapter.stream)}.{name}", error)
    return 0


cdef inline bint streams_send(Engine engine, HydrogenSocket socket, data) except -1:
    """Have a user's stream write; None: go on with what it has kept. False when it raised. Any thread.

    What the stream says of its output is published under the adapter's lock (`streams_publish`), so
    that an older word never follows a newer one.
    """
    cdef worker_t *worker = engine._worker()
    adapter = references_held(engine, socket, &socket._connection.adapter)  # None: the connection is gone
    if adapter is None:
        return False
    try:
        if data is None:
            callbacks_run(engine, worker, adapter.resume, socket._publish)
        else:
            callbacks_run(engine, worker, adapter.send, data, socket._publish)
    except BaseException as error:
        streams_failed(engine, socket, adapter, "send", error)
        return False
    return True


cdef inline void streams_publish(Engine engine, HydrogenSocket socket, bint blocked, size_t pending) noexcept:
    """What a stream says of its output, under its adapter's lock."""
    cdef connection_t *connection = socket._connection
    cdef uint32_t bits
    if not socket._valid():
        return
    bits = output_adapter_sent(&engine._loop.context, connection, socket._generation, blocked, pending)
    deadlines_watch_output(&engine._loop, connection)
    queues_check_memory(&engine._loop)
    queues_post(&engine._loop, connection, socket._generation, bits, engine._worker() == NULL)
