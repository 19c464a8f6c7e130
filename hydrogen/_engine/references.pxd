"""Counted references of a connection's slot, and the sockets that name a connection.

They are swapped under the connection's lock, dropped after unlocking, and gone before the slot is
released, in finishing.pxd.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF

from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._c.structs cimport connection_t
from hydrogen._core cimport Engine, HydrogenSocket


cdef inline HydrogenSocket references_socket(Engine engine, connection_t *connection):
    """A socket that names this use of the slot. By the owner."""
    cdef HydrogenSocket socket = HydrogenSocket.__new__(HydrogenSocket)
    socket._engine = engine
    socket._connection = connection
    socket._generation = mailbox_generation(connection)
    socket._id = connection.id
    return socket


cdef inline HydrogenSocket references_current(Engine engine, connection_t *connection):
    """A socket that names the use of the slot that is there now, if there is one. Any thread."""
    cdef HydrogenSocket socket = HydrogenSocket.__new__(HydrogenSocket)
    socket._engine = engine
    socket._connection = connection
    lock_take(&connection.lock)
    socket._generation = mailbox_generation(connection)
    socket._id = connection.id
    lock_give(&connection.lock)
    return socket


cdef inline references_hold(connection_t *connection, void **field, value):
    """Store a reference, instead of the one that is there. By the owner."""
    cdef void *before
    Py_INCREF(value)
    lock_take(&connection.lock)
    before = field[0]
    field[0] = <void *>value
    lock_give(&connection.lock)
    Py_XDECREF(<PyObject *>before)


cdef inline object references_held(Engine engine, HydrogenSocket socket, void **field):
    """A reference of the socket's connection; None when there is none, or the connection is
    gone.
    """
    cdef object value = None
    if socket._valid():
        lock_take(&socket._connection.lock)
        if mailbox_generation(socket._connection) == socket._generation and field[0] != NULL:
            value = <object>field[0]
        lock_give(&socket._connection.lock)
    return value
