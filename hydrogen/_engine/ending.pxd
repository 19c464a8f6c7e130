"""Asking for the end of a connection, with the GIL: by its cause, or with an exception that exists already."""

from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t

from hydrogen._c.constants cimport STATE_OPEN
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.queues cimport queues_end, queues_post
from hydrogen._c.structs cimport connection_t
from hydrogen._core cimport Engine, HydrogenSocket


cdef inline void ending_with(Engine engine, connection_t *connection, HydrogenSocket socket, int cause, error) noexcept:
    """End the connection in order, with an exception that exists already."""
    cdef bint first = False
    lock_take(&connection.lock)
    if connection.error == NULL and connection.state == STATE_OPEN:
        Py_INCREF(error)
        connection.error = <void *>error
        first = True
    lock_give(&connection.lock)
    if first:
        ending_ask(engine, socket, False, cause, 0)


cdef inline void ending_ask(Engine engine, HydrogenSocket socket, bint abort, int cause, int code) noexcept:
    if not engine._inert():
        queues_end(&engine._loop, socket._connection, socket._generation, abort, cause, code, engine._worker() == NULL)


cdef inline void ending_post(Engine engine, HydrogenSocket socket, uint32_t bits) noexcept:
    queues_post(&engine._loop, socket._connection, socket._generation, bits, engine._worker() == NULL)
