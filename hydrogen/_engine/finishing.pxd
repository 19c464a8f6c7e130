"""The last of a connection in Python: callbacks, then references dropped and the slot released."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport CAUSE_OVERLOAD, CAUSE_SLOW_CONSUMER
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.loop cimport loop_release
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks, class_name, errors
from hydrogen._engine.callbacks cimport callbacks_quietly
from hydrogen._engine.references cimport references_socket


cdef inline int finishing_callbacks(Engine engine, worker_t *worker, connection_t *connection) except -1:
    """The last callbacks. What they raise is only logged."""
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    cdef HydrogenSocket socket = references_socket(engine, connection)
    cdef bint turned_away = connection.cause == CAUSE_OVERLOAD
    adapter = <object>connection.adapter if connection.adapter != NULL else None
    error = <object>connection.error if connection.error != NULL else errors.removal_error(connection.cause, connection.code)
    if adapter is not None:
        callbacks_quietly(engine, worker, socket, adapter.shutdown, f"{class_name(adapter.stream)}.shutdown", None, None)
    if connection.cause == CAUSE_SLOW_CONSUMER:
        engine._log.slow_consumer(connection.id, socket.peername)
    if engine._debug:
        engine._log.removed(connection.id, error)
    if atomic_load32(&connection.ready):
        callbacks_quietly(engine, worker, socket, callbacks.on_disconnected, "on_disconnected", socket, error)
    if not turned_away:
        callbacks_quietly(engine, worker, socket, callbacks.on_removed, "on_connection_removed", connection.fd, error)
    if adapter is not None:
        lock_take(&engine._loop.context.fd_lock)
        connection.fd = -1  # its number may be a stranger's from now on
        lock_give(&engine._loop.context.fd_lock)
        callbacks_quietly(engine, worker, socket, adapter.close, f"{class_name(adapter.stream)}.close", None, None)
    return 0


cdef inline void finishing_release(Engine engine, worker_t *worker, connection_t *connection) noexcept:
    """References dropped, which may run user code; fd closed, slot released. Nothing here needs memory."""
    cdef void *references[7]
    cdef int k
    lock_take(&connection.lock)
    references[0], references[1], references[2] = connection.user_data, connection.adapter, connection.error
    references[3], references[4], references[5] = connection.session, connection.decoder, connection.header
    references[6] = connection.builder
    connection.user_data = connection.adapter = connection.error = NULL
    connection.session = connection.decoder = connection.header = connection.builder = NULL
    lock_give(&connection.lock)
    for k in range(7):
        Py_XDECREF(<PyObject *>references[k])
    if not engine._inert():
        loop_release(&engine._loop, &worker.io, connection)
