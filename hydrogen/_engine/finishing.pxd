"""The last of a connection in Python: callbacks, then references dropped and the slot released.

Each step stands for itself: what goes wrong in one, for want of memory say, keeps no other from
being done.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

from hydrogen._c.atomic cimport atomic_load32, atomic_store32
from hydrogen._c.closing cimport closing_count
from hydrogen._c.constants cimport (
    CAUSE_LOCAL_CLOSED, CAUSE_OVERLOAD, CAUSE_PEER_CLOSED, CAUSE_SLOW_CONSUMER, FLAG_CLOSE_SENT,
    STATE_RELEASED,
)
from hydrogen._c.kernel cimport (
    kernel_close_fork_gate, kernel_open_fork_gate, kernel_try_close_fork_gate,
)
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.loop cimport loop_release
from hydrogen._c.messages cimport messages_free
from hydrogen._c.structs cimport connection_t, websocket_t, worker_t
from hydrogen._core cimport (
    Engine, HydrogenSocket, Stream, StreamAdapter, _Callbacks, close_stream, closed_by_us,
    closing_code, errors,
)
from hydrogen._engine.callbacks cimport callbacks_quietly
from hydrogen._engine.references cimport references_hold, references_socket


cdef inline int finishing_callbacks(
    Engine engine, worker_t *worker, connection_t *connection,
) except -1:
    """The last callbacks. What they raise is only logged; in a forked child the rest is left
    out.
    """
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    cdef HydrogenSocket socket = finishing_socket(engine, connection)
    closing_count(&worker.io, connection)
    error = finishing_error(engine, connection)
    if connection.websocket != NULL:
        finishing_count_close(engine, connection, error)
    adapter = <object>connection.adapter if connection.adapter != NULL else None
    if adapter is not None:
        finishing_step(
            engine, worker, socket, StreamAdapter.shutdown, "shutdown", adapter, None,
            adapter.stream)
    finishing_log(engine, connection, socket, error)
    if atomic_load32(&connection.ready):
        finishing_step(
            engine, worker, socket, callbacks.on_disconnected, "on_disconnected", socket, error
        )
    if connection.cause != CAUSE_OVERLOAD:
        finishing_removed(engine, worker, connection, socket, error)
    if adapter is not None and not engine._inert():  # in a child the lock may be held for ever
        lock_take(&engine._loop.context.fd_lock)
        connection.fd = -1  # its number may be a stranger's from now on
        lock_give(&engine._loop.context.fd_lock)
        finishing_step(
            engine, worker, socket, close_stream, "close", adapter.stream, None, adapter.stream)
    return 0


cdef inline HydrogenSocket finishing_socket(Engine engine, connection_t *connection):
    """The socket for the last callbacks; for want of memory one whose methods say that it is
    gone.
    """
    socket = engine._spare_socket
    try:
        socket = references_socket(engine, connection)
    except MemoryError:
        pass
    return socket


cdef inline object finishing_error(Engine engine, connection_t *connection):
    """Why the connection ends; it is in the slot afterwards, but for want of memory."""
    try:
        if connection.error == NULL:
            error = errors.removal_error(connection.cause, connection.code)
            if connection.websocket != NULL and connection.cause == CAUSE_PEER_CLOSED:
                error = errors.WebSocketClosed()
            elif connection.cause == CAUSE_LOCAL_CLOSED and connection.code:
                error = closed_by_us(connection.code, "max_lifetime has passed")
            references_hold(connection, &connection.error, error)
    except BaseException:
        pass
    return <object>connection.error if connection.error != NULL else engine._no_memory


cdef inline void finishing_count_close(
    Engine engine, connection_t *connection, error,
) noexcept:
    """Count a WebSocket connection by the code with which it ends."""
    cdef bint told = connection.flags & FLAG_CLOSE_SENT != 0
    try:
        engine._closes.add(closing_code(error, engine._websocket.stop_code, told))
    except BaseException:
        pass


cdef inline void finishing_log(
    Engine engine, connection_t *connection, HydrogenSocket socket, error,
) noexcept:
    """What the log is told of an end. Not in a forked child, where the log's lock may be held for
    ever.
    """
    if engine._inert():
        return
    try:
        if connection.cause == CAUSE_SLOW_CONSUMER:
            engine._log.slow_consumer(connection.id, socket.peername)
        if engine._debug:
            engine._log.removed(connection.id, error)
    except BaseException:
        pass


cdef inline void finishing_step(
    Engine engine, worker_t *worker, HydrogenSocket socket, callback, name, first, second,
    stream=None,
) noexcept:
    """One of the last callbacks. `stream`: see `callbacks_log`."""
    try:
        callbacks_quietly(engine, worker, socket, callback, name, first, second, stream)
    except BaseException:
        pass


cdef inline void finishing_removed(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, error,
) noexcept:
    """The same of `on_connection_removed`: the number of the fd may take memory, too."""
    try:
        callbacks_quietly(
            engine, worker, socket, (<_Callbacks>worker.callbacks).on_removed,
            "on_connection_removed", connection.fd, error)
    except BaseException:
        pass


cdef inline void finishing_release(
    Engine engine, worker_t *worker, connection_t *connection,
) noexcept:
    """References dropped, which may run user code; fd closed, slot released. Nothing here needs
    memory.
    """
    cdef void *references[8]
    cdef websocket_t *websocket
    cdef int k
    lock_take(&connection.lock)
    atomic_store32(&connection.state, STATE_RELEASED)
    references[
        0
    ], references[1], references[2] = connection.user_data, connection.adapter, connection.error
    references[
        3
    ], references[4], references[5] = connection.session, connection.decoder, connection.header
    references[6], references[7] = connection.builder, connection.opening
    websocket = connection.websocket
    connection.opening, connection.websocket = NULL, NULL
    connection.user_data = connection.adapter = connection.error = NULL
    connection.session = connection.decoder = connection.header = connection.builder = NULL
    lock_give(&connection.lock)
    messages_free(websocket)
    for k in range(8):
        Py_XDECREF(<PyObject *>references[k])
    if not engine._inert():
        # Who forks may need the GIL until it opens the gate: whoever waits for that must not hold
        # it.
        while not kernel_try_close_fork_gate():
            with nogil:
                kernel_close_fork_gate()
                kernel_open_fork_gate()
        loop_release(&engine._loop, &worker.io, connection)
        kernel_open_fork_gate()
