"""The last of a connection in Python: callbacks, references dropped; then the slot is released."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport CAUSE_OVERLOAD, CAUSE_SLOW_CONSUMER
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.loop cimport loop_release
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks, errors
from hydrogen._engine.callbacks cimport callbacks_quietly


cdef inline void finishing_finish(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
    """The last callbacks, references dropped, fd closed, slot released."""
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    cdef void *references[6]
    cdef bint told = connection.cause != CAUSE_OVERLOAD
    port = <object>connection.adapter if connection.adapter != NULL else None
    error = <object>connection.error if connection.error != NULL else errors.removal_error(connection.cause, connection.code)
    if port is not None:
        callbacks_quietly(engine, worker, port.shutdown)
    if connection.cause == CAUSE_SLOW_CONSUMER:
        engine._log.slow_consumer(connection.id, socket.peername)
    if engine._debug:
        engine._log.removed(connection.id, error)
    if callbacks.on_disconnected is not None and atomic_load32(&connection.ready):
        callbacks_quietly(engine, worker, callbacks.on_disconnected, socket, error)
    if callbacks.on_removed is not None and told:
        callbacks_quietly(engine, worker, callbacks.on_removed, connection.fd, error)
    if port is not None:
        callbacks_quietly(engine, worker, port.close)
    if engine._inert():
        return
    lock_take(&connection.lock)
    references[0], references[1], references[2] = connection.user_data, connection.adapter, connection.error
    references[3], references[4], references[5] = connection.session, connection.decoder, connection.header
    connection.user_data = connection.adapter = connection.error = connection.session = connection.decoder = connection.header = NULL
    lock_give(&connection.lock)
    for reference in references:
        Py_XDECREF(<PyObject *>reference)
    loop_release(&engine._loop, &worker.io, connection)
