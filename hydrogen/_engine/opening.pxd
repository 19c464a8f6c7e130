"""Opening a connection: the PROXY header, on_new_connection, the poller, on_connected."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport Py_INCREF
from libc.errno cimport EAGAIN, EBADF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from hydrogen._c.addresses cimport addresses_take
from hydrogen._c.atomic cimport (
    atomic_load32, atomic_store64, relaxed_add64, relaxed_load64, relaxed_store32,
)
from hydrogen._c.buffer cimport block_bytes, block_length, block_t
from hydrogen._c.connection cimport connection_register
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_BAD_FRAME, CAUSE_OS_ERROR, CAUSE_OVERLOAD, CAUSE_REJECT, FLAG_COUNTED, FLAG_FIRST,
    FLAG_HANDSHAKE, FLAG_HEADER, FLAG_POLLED, FLAG_READABLE, HEADER_PART, STATE_ABORTING,
    STATE_CLOSING,
)
from hydrogen._c.framing cimport FRAMING_PYTHON
from hydrogen._c.input cimport input_broken, input_store
from hydrogen._c.kernel cimport kernel_duplicate, kernel_now, kernel_recv, name_t
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.poller cimport poller_remove
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._codec cimport Framing
from hydrogen._core cimport (
    AF_INET, AF_INET6, Engine, FrameDecoder, HeaderReader, HydrogenSocket, Plain, Secure,
    Stream, StreamAdapter, TlsSession, _Callbacks, begins_header, class_name, errors, inet_pton,
    may_send, no_proxy, not_a_stream, not_an_fd,
)
from hydrogen._engine.appending cimport appending_bytes
from hydrogen._engine.callbacks cimport (
    callbacks_caught, callbacks_connected, callbacks_failed, callbacks_leave, callbacks_run,
)
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.handshake cimport handshake_await
from hydrogen._engine.references cimport references_hold
from hydrogen._engine.tls cimport tls_begin


cdef inline int opening_set_name(name_t *name, address) except -1:
    """Undo `_name`: (host, port), or of IPv6 (host, port, flow, scope)."""
    cdef bytes packed
    name.family = AF_INET if len(address) == 2 else AF_INET6
    name.port, name.flow, name.scope = address[1], 0, 0
    packed = inet_pton(name.family, address[0])
    memcpy(name.bytes, PyBytes_AS_STRING(packed), len(packed))
    return 0


cdef inline int opening_open(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """The header of the PROXY protocol, on_new_connection, then the poller, then on_connected.

    It is polled before it is `ready`, and others see it: who sends may ask the poller for an edge.
    """
    cdef uint64_t began
    cdef bint is_answered = False
    if atomic_load32(&connection.state) >= STATE_ABORTING:
        return 0
    if (
        connection.flags & FLAG_HEADER and
        not opening_read_header(engine, worker, connection, socket)
    ):
        return opening_register(engine, connection, socket)
    relaxed_store32(&connection.active, 1)  # it may have waited for a worker
    if engine._debug:
        engine._log.accepted(connection.id, socket.peername)
    began = kernel_now()
    try:
        opening_settle_stream(engine, worker, connection, socket, &is_answered)
    except BaseException as error:
        if not is_answered and issubclass(type(error), errors.Reject):
            callbacks_caught(engine, worker)
            errors.cut_traceback(error)
            ending_with(engine, socket, True, CAUSE_REJECT, error)
        else:
            callbacks_failed(engine, worker, socket, "on_new_connection", error)
    callbacks_leave(engine, worker)
    # the header's, and now the handshake's: this time was not the peer's
    if relaxed_load64(&connection.deadline):
        atomic_store64(
            &connection.deadline, relaxed_load64(&connection.deadline) + kernel_now() - began
        )
    if atomic_load32(&connection.state) >= STATE_ABORTING:
        return 0
    opening_register(engine, connection, socket)
    if connection.flags & FLAG_HANDSHAKE:
        return 0
    if engine._websocket is not None:
        return handshake_await(connection)
    return callbacks_connected(engine, worker, connection, socket)


cdef inline int opening_settle_stream(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
    bint *is_answered,
) except -1:
    """Who reads and writes: what on_new_connection returns, or the server's own stream.
    `is_answered`: set when that has returned; it alone may refuse the connection.
    """
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    stream = None
    if callbacks.on_new is not None:
        stream = callbacks_run(engine, worker, callbacks.on_new, connection.fd)
    is_answered[0] = True
    if stream is not None:
        return opening_adopt(engine, worker, connection, socket, stream)
    context = engine._context()
    if context is not None:
        return tls_begin(engine, worker, connection, socket, TlsSession(context, server_side=True))
    return 0


cdef inline int opening_register(
    Engine engine, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Have the connection polled, if it is not."""
    cdef int failed = 0
    if not connection.flags & FLAG_POLLED and connection.poll_fd >= 0:
        failed = connection_register(&engine._loop.context, connection)
    if failed:
        ending_ask(engine, socket, True, CAUSE_OS_ERROR, -failed)
    return 0


cdef inline int opening_adopt(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, stream,
) except -1:
    """Take a stream of the user's: it owns the fd, the engine polls a duplicate. If its fd is none,
    ours stays ours.
    """
    cdef int duplicate
    if type(stream) in (Plain, Secure):
        return opening_take_over(engine, worker, connection, socket, stream)
    if not isinstance(stream, Stream):
        raise not_a_stream(stream)
    if engine._websocket is not None:
        raise TypeError("on_new_connection: a stream of yours cannot speak WebSocket")
    adapter = StreamAdapter(stream)
    fd = callbacks_run(engine, worker, stream.fileno)
    if type(fd) is not int:
        raise not_an_fd(stream, fd)
    duplicate = kernel_duplicate(fd)
    if duplicate == -EBADF:
        raise errors.removal_error(CAUSE_OS_ERROR, EBADF)
    if connection.flags & FLAG_POLLED:
        # While its header was awaited.
        poller_remove(&engine._loop.context.poller, connection.fd)
        connection.flags &= ~<uint32_t>FLAG_POLLED
    Py_INCREF(adapter)
    lock_take(&engine._loop.context.fd_lock)  # the monitor thread may be asking about the number
    lock_take(&connection.lock)
    connection.adapter = <void *>adapter
    connection.poll_fd = max(duplicate, -1)
    lock_give(&connection.lock)
    lock_give(&engine._loop.context.fd_lock)
    if duplicate < 0:  # for want of fds, say: no fault of the handler's
        ending_ask(engine, socket, True, CAUSE_OS_ERROR, -duplicate)
    # It may have read already, and then no edge tells of that.
    connection.flags |= FLAG_READABLE
    connection.mail |= AGAIN
    return 0


cdef inline int opening_take_over(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, stream,
) except -1:
    """Use what a `Plain` or a `Secure` was made of; the fd stays, or becomes, the engine's."""
    cdef bytes received, unsent
    cdef Framing framing
    if stream.fileno() != connection.fd:
        raise ValueError(
            f"on_new_connection({connection.fd}) returned a {class_name(stream)} "
            f"of another fd: {stream.fileno()}")
    handover = stream.hand_over()
    opening_register(engine, connection, socket)
    if engine._websocket is not None:
        if handover.builder is not None:
            raise ValueError("on_new_connection: a stream with a framing cannot speak WebSocket")
    else:
        framing = Framing(handover.builder)
        references_hold(connection, &connection.builder, framing)
        connection.framing = &framing.value
    if handover.code:
        input_broken(connection, handover.code)
        connection.mail |= AGAIN
    received, unsent = handover.received, handover.unsent
    if connection.framing.kind == FRAMING_PYTHON:
        references_hold(connection, &connection.decoder, FrameDecoder(handover.builder))
    if unsent:
        appending_bytes(engine, worker, socket, &engine._raw, unsent, STATE_CLOSING)
    if received:
        if not input_store(
            &worker.io, &connection.input, PyBytes_AS_STRING(received), len(received), False
        ):
            raise MemoryError
        connection.mail |= AGAIN
    if handover.session is not None:
        return tls_begin(engine, worker, connection, socket, handover.session)
    return 0


cdef inline bint opening_read_header(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Read the header, not a byte more; False while it is not whole, and when the connection ends
    instead.
    """
    cdef name_t name
    header = None
    try:
        header = opening_header(engine, worker, connection, socket)
    except ValueError as error:
        if not issubclass(type(error), errors.ProtocolError):
            raise
        ending_with(engine, socket, False, CAUSE_BAD_FRAME, errors.stripped(error))
    if header is None:
        return False
    if isinstance(header.source, tuple):
        opening_set_name(&name, header.source)
        lock_take(&connection.lock)
        connection.peer = name
        lock_give(&connection.lock)
        if engine._loop.context.addresses.most:
            if not addresses_take(engine._loop.context.addresses, &connection.peer):
                ending_ask(engine, socket, True, CAUSE_OVERLOAD, 0)
                engine._log.turned_away_from(header.source)
                return False
            connection.flags |= FLAG_COUNTED
    connection.flags &= ~<uint32_t>FLAG_HEADER
    # The edge that told of what is behind the header has come already.
    connection.flags |= FLAG_READABLE
    connection.mail |= AGAIN
    return True


cdef inline object opening_header(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
):
    """The header, now stored; None while it is not whole, and when the peer ends instead. Raises:
    ProtocolError.
    """
    cdef char part[HEADER_PART]
    cdef int64_t got
    if connection.header == NULL:
        peer = socket.peername
        if not may_send(engine._proxy_allow, peer):
            raise no_proxy(peer)
        references_hold(connection, &connection.header, HeaderReader(engine._proxy_versions))
    reader = <object>connection.header
    while True:
        got = kernel_recv(connection.poll_fd, part, min(<size_t>reader.wanted, <size_t>HEADER_PART))
        if got == -EAGAIN:
            connection.flags &= ~<uint32_t>FLAG_READABLE
            return None
        if got < 0:
            ending_ask(engine, socket, True, CAUSE_OS_ERROR, <int>-got)
            return None
        if got == 0:
            cause, error = reader.ended()
            ending_with(engine, socket, False, cause, error)
            return None
        relaxed_add64(&worker.io.counters.bytes_received, <uint64_t>got)
        relaxed_store32(&connection.active, 1)
        header = reader.feed(PyBytes_FromStringAndSize(part, got))
        if header is not None:
            references_hold(connection, &connection.header, header)
            return header


cdef inline bint opening_has_second_header(connection_t *connection) except -1:
    """Whether what comes behind the header begins with another one."""
    cdef block_t *first = (
        connection.ciphertext if connection.ciphertext != NULL else connection.input
    )
    connection.flags &= ~<uint32_t>FLAG_FIRST
    return first != NULL and begins_header(
        PyBytes_FromStringAndSize(
            block_bytes(first) + first.start, min(block_length(first), <size_t>16)))
