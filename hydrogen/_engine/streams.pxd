"""Streams written by the user: the slow path."""

from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32, relaxed_add64, relaxed_store32
from hydrogen._c.constants cimport (
    CAUSE_HANDLER_ERROR, CAUSE_OS_ERROR, DELIVER_MOST, FLAG_EOF, READABLE, STATE_OPEN,
)
from hydrogen._c.deadlines cimport deadlines_watch_output
from hydrogen._c.output cimport output_adapter_sent
from hydrogen._c.queues cimport queues_post
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks, errors
from hydrogen._engine.callbacks cimport callbacks_begin, callbacks_failed
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.references cimport references_held


cdef inline void streams_read(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
    """Deliver what a user's stream has, until it has nothing, raises, or the budget is used up."""
    cdef int budget = DELIVER_MOST
    port = <object>connection.adapter
    on_data = (<_Callbacks>worker.callbacks).on_data
    while atomic_load32(&connection.state) == STATE_OPEN and not atomic_load32(&connection.pause):
        if not port.messages:
            if budget <= 0:
                connection.mail |= READABLE
                break
            try:
                if not port.receive():
                    break
            except BaseException as error:
                streams_failed(engine, connection, socket, port, "recv", error)
                break
        data = port.messages.popleft()
        budget -= 1
        relaxed_store32(&connection.active, 1)
        relaxed_add64(&worker.io.counters.messages_received, 1)
        relaxed_add64(&worker.io.counters.bytes_received, len(data))
        try:
            callbacks_begin(engine, worker)
            on_data(socket, data)
        except BaseException as error:
            callbacks_failed(engine, connection, socket, "on_data_received", error)


cdef inline void streams_failed(Engine engine, connection_t *connection, HydrogenSocket socket, port, name, error) noexcept:
    if isinstance(error, EOFError):
        if name == "recv":
            connection.flags |= FLAG_EOF
            return
    cause, shown = errors.cause_of(error)
    if cause == CAUSE_HANDLER_ERROR:
        engine._log.callback_error(f"{type(port.stream).__name__}.{name}", error)
    ending_with(engine, connection, socket, cause, shown)
    if cause == CAUSE_OS_ERROR or name == "send":
        ending_ask(engine, socket, True, cause, 0)


cdef inline object streams_send(Engine engine, HydrogenSocket socket, data):
    """Have a user's stream write; None: go on with what it has kept. False when it raised."""
    cdef connection_t *connection = socket._connection
    cdef uint32_t bits
    # Of any thread: the connection may be gone, and its stream with it.
    port = references_held(engine, socket, &connection.adapter)
    if port is None:
        return False
    try:
        if data is None:
            port.resume()
        else:
            port.send(data)
    except BaseException as error:
        streams_failed(engine, connection, socket, port, "send", error)
        return False
    bits = output_adapter_sent(&engine._loop.context, connection, socket._generation, port.blocked, port.pending)
    deadlines_watch_output(&engine._loop, connection)
    queues_post(&engine._loop, connection, socket._generation, bits, engine._worker() == NULL)
    return True
