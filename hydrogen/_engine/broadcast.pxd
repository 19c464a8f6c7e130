"""A message for all connections, and the sockets of all."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport STATE_OPEN, STATE_VACANT
from hydrogen._c.framing cimport FRAMING_PYTHON
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_at, mailbox_generation
from hydrogen._c.slab cimport slab_used
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket
from hydrogen._engine.references cimport references_held
from hydrogen._engine.sending cimport sending_append, sending_count, sending_send


cdef inline list broadcast_sockets(Engine engine, uint32_t last_state):
    cdef list found = []
    cdef connection_t *connection
    cdef HydrogenSocket socket
    cdef uint32_t index
    cdef bint wanted
    for index in range(slab_used(&engine._loop.slab)):
        connection = mailbox_at(&engine._loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:  # perhaps without a lock yet
            continue
        socket = HydrogenSocket.__new__(HydrogenSocket)
        socket._engine = engine
        socket._connection = connection
        lock_take(&connection.lock)
        socket._generation = mailbox_generation(connection)
        socket._id = connection.id
        wanted = STATE_OPEN <= connection.state <= last_state and atomic_load32(&connection.ready)
        lock_give(&connection.lock)
        if wanted:
            found.append(socket)
    return found


cdef inline bint broadcast_send_other(Engine engine, worker_t *worker, HydrogenSocket socket, bytes data, bytes wire) except -1:
    """`send` of a broadcast, of `wire` where that is what the builder would make; what a connection's own framing cannot carry is not sent to it."""
    cdef connection_t *connection = socket._connection
    decoder = references_held(engine, socket, &connection.decoder)
    if (
        engine._loop.context.framing.kind == FRAMING_PYTHON and connection.builder == NULL and
        (decoder is None or decoder.builder is engine._builder) and
        references_held(engine, socket, &connection.session) is None and
        references_held(engine, socket, &connection.adapter) is None
    ):
        return sending_count(engine, worker, sending_append(engine, worker, socket, &engine._raw, wire, STATE_OPEN))
    try:
        return sending_send(engine, socket, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    except ValueError:
        return False
    except Exception as error:
        engine._log.callback_error("broadcast", error)
        return False
