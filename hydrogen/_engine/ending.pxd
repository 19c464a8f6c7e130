"""Asking for the end of a connection, with the GIL: by its cause, or with an exception that exists
already.
"""

from cpython.ref cimport Py_INCREF, Py_DECREF

from hydrogen._c.queues cimport queues_end
from hydrogen._core cimport Engine, HydrogenSocket


cdef inline void ending_ask(
    Engine engine, HydrogenSocket socket, bint abort, int cause, int code,
) noexcept:
    """End the connection, gracefully or at once. The first cause stands."""
    if not engine._inert():
        queues_end(
            &engine._loop, socket._connection, socket._generation, abort, cause, code, NULL,
            engine._worker() == NULL)


cdef inline void ending_with(
    Engine engine, HydrogenSocket socket, bint abort, int cause, error,
) noexcept:
    """The same, with the exception that the last callbacks get."""
    cdef void *reference = <void *>error
    if engine._inert():
        return
    Py_INCREF(error)
    queues_end(
        &engine._loop, socket._connection, socket._generation, abort, cause, 0, &reference,
        engine._worker() == NULL)
    if reference != NULL:
        Py_DECREF(error)
