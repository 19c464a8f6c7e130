"""A message for all connections, and the sockets of all."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.broadcast cimport broadcast_send, broadcast_t
from hydrogen._c.buffer cimport shared_drop, shared_new, shared_t
from hydrogen._c.constants cimport READY_DEFLATES, SEND_REFUSED, STATE_OPEN, STATE_VACANT
from hydrogen._c.framing cimport FRAMING_PYTHON, framing_t
from hydrogen._c.kernel cimport kernel_sleep
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_at, mailbox_generation, mailbox_of
from hydrogen._c.slab cimport slab_used
from hydrogen._c.structs cimport connection_t, loop_t, worker_t
from hydrogen._c.websocket cimport OPCODE_BINARY, OPCODE_TEXT
from hydrogen._codec cimport framed
from hydrogen._core cimport BroadcastReport, Engine, HydrogenSocket, class_name, encode
from hydrogen._engine.references cimport references_held, references_socket
from hydrogen._engine.sending cimport (
    sending_count, sending_message, sending_send, sending_send_coded,
)


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


cdef inline bint broadcast_send_other(
    Engine engine, worker_t *worker, HydrogenSocket socket, data, bytes wire, dict compressed,
    uint64_t *rest,
) except -1:
    """`send` of a broadcast, of `wire` where that is what the builder would make; what a
    connection's own framing cannot carry is not sent to it.
    """
    cdef bint sent = False
    name = "broadcast"
    try:
        if atomic_load32(&socket._connection.ready) == READY_DEFLATES:
            return broadcast_send_compressed(engine, worker, socket, data, compressed, rest)
        if broadcast_is_framed_alike(engine, socket):
            return broadcast_send_framed(engine, worker, socket, wire, rest)
        decoder = references_held(engine, socket, &socket._connection.decoder)
        if decoder is not None:
            name = f"{class_name(decoder.builder)}.frame"
            wire = encode(decoder.builder, data)
            name = "broadcast"
            sent = broadcast_send_framed(engine, worker, socket, wire, rest)
        else:
            sent = sending_send(
                engine, socket, engine._loop.context.framing, PyBytes_AS_STRING(data),
                PyBytes_GET_SIZE(data), rest
            )
    except ValueError:
        pass
    except Exception as error:
        engine._log.callback_error(name, error)
    return sent


cdef inline bint broadcast_is_framed_alike(Engine engine, HydrogenSocket socket) except -1:
    """Whether its framing is the server's."""
    decoder = references_held(engine, socket, &socket._connection.decoder)
    return (
        socket._connection.builder == NULL and
        (decoder is None or decoder.builder is engine._builder) and
        references_held(engine, socket, &socket._connection.adapter) is None
    )


cdef inline bint broadcast_send_framed(
    Engine engine, worker_t *worker, HydrogenSocket socket, bytes wire, uint64_t *rest,
) except -1:
    """`send` of what is framed already, encrypted where there is TLS."""
    cdef uint64_t mine = 0
    cdef int result = sending_send_coded(engine, worker, socket, wire, &mine, wire)
    rest[0] = max(rest[0], mine)
    return sending_count(engine, worker, result)


cdef inline bint broadcast_send_compressed(
    Engine engine, worker_t *worker, HydrogenSocket socket, data, dict compressed, uint64_t *rest,
) except -1:
    """The same of a WebSocket whose messages are compressed: once for all that have it alike, which
    are in `compressed`, by the window.
    """
    cdef uint64_t mine = 0
    cdef uint8_t opcode = OPCODE_TEXT if isinstance(data, str) else OPCODE_BINARY
    opening = references_held(engine, socket, &socket._connection.opening)
    if opening is None:
        return sending_count(engine, worker, SEND_REFUSED)
    payload = data.encode() if isinstance(data, str) else data
    if opening.output is None:
        if opening.encoder.bits not in compressed:
            compressed[opening.encoder.bits] = opening.encoder.encode(opcode, payload)
        return broadcast_send_framed(
            engine, worker, socket, compressed[opening.encoder.bits], rest
        )
    result = sending_message(engine, worker, socket, opcode, payload, &mine)
    rest[0] = max(rest[0], mine)
    return sending_count(engine, worker, result)


cdef inline bytes broadcast_framed(Engine engine, data):
    """`data` as the server's framing has it on the wire."""
    cdef const framing_t *framing = engine._loop.context.framing
    if isinstance(data, str):
        return framed(&engine._text, data.encode())
    if framing.kind == FRAMING_PYTHON:
        return encode(engine._builder, data)
    return framed(framing, data)


cdef inline object broadcast_to_all(Engine engine, data, exclude, bytes wire):
    """`wire`: what `broadcast_framed` has made of `data`; None: not yet.

    First, without the GIL, the connections that are framed as `Config` says, in compiled code;
    then the others one by one.

    Those who encrypt, or write into a stream, get on in one rest for all, not in one for each: see
    `sending_send`.
    """
    cdef loop_t *loop = &engine._loop
    cdef worker_t *worker = engine._worker()
    cdef uint32_t used = slab_used(&loop.slab)
    cdef uint32_t *skip = NULL
    cdef uint64_t *others = NULL
    cdef shared_t *shared = NULL
    cdef broadcast_t report
    cdef HydrogenSocket socket
    cdef uint64_t rest = 0
    cdef uint32_t k
    cdef dict compressed = {}
    if wire is None:
        wire = broadcast_framed(engine, data)
    if engine._inert():
        return BroadcastReport(0, 0)
    try:
        skip = <uint32_t *>calloc(used or 1, sizeof(uint32_t))
        others = <uint64_t *>calloc(used or 1, sizeof(uint64_t))
        shared = shared_new(PyBytes_AS_STRING(wire), len(wire))
        if skip == NULL or others == NULL or shared == NULL:
            raise MemoryError(f"no memory to send {len(data)} bytes to all")
        broadcast_exclude(engine, exclude, skip, used)
        with nogil:
            broadcast_send(
                loop, &worker.io if worker != NULL else &loop.outside_io, worker == NULL, shared,
                skip, others, used, &report
            )
        for k in range(report.others):
            socket = references_socket(engine, mailbox_of(loop, others[k]))
            socket._generation = <uint32_t>(others[k] >> 32)
            if broadcast_send_other(engine, worker, socket, data, wire, compressed, &rest):
                report.sent += 1
            else:
                report.dropped += 1
        if rest:
            with nogil:
                kernel_sleep(rest)
    finally:
        free(skip)
        free(others)
        if shared != NULL:
            shared_drop(shared)
    return BroadcastReport(report.sent, report.dropped)


cdef inline int broadcast_exclude(Engine engine, exclude, uint32_t *skip, uint32_t used) except -1:
    """The generations that are not sent to, by slot. One that is gone must not take the place of
    the next in its slot.
    """
    cdef HydrogenSocket socket
    for other in exclude:
        if isinstance(other, HydrogenSocket):
            socket = other
            if (
                socket._engine is engine and socket._connection.slot.index < used and
                socket._valid()
            ):
                skip[socket._connection.slot.index] = socket._generation
    return 0
