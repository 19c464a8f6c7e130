"""TLS by Python's ssl: the slow path. A session's lock, a Python lock, comes before anything of the connection."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32, atomic_store32, atomic_store64
from hydrogen._c.buffer cimport block_bytes, block_free, block_length, block_t
from hydrogen._c.constants cimport (
    CAUSE_OS_ERROR, FLAG_CLOSE_NOTIFY, FLAG_HANDSHAKE, FLAG_TLS_END, FLAG_TLS_FAILED, FLUSHED,
    SEND_NOTHING, STATE_CLOSING, STATE_OPEN, TLS_SHORT_MOST,
)
from hydrogen._c.input cimport input_store
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks
from hydrogen._engine.callbacks cimport callbacks_begin, callbacks_call, callbacks_computing
from hydrogen._engine.ending cimport ending_ask
from hydrogen._engine.references cimport references_hold
from hydrogen._engine.sending cimport sending_append


cdef inline tls_begin(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, session):
    """From now on the connection speaks TLS; it is ready when the handshake is done."""
    references_hold(engine, connection, &connection.session, session)
    with session.lock:
        if not session.is_ready:
            connection.flags |= FLAG_HANDSHAKE
            session.start()
        sending_append(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    tls_note_end(engine, connection, session)


cdef inline tls_note_end(Engine engine, connection_t *connection, session):
    """No more input will come when the session says so."""
    if session.failure is not None:
        connection.flags |= FLAG_TLS_END | FLAG_TLS_FAILED
    elif session.is_ended:
        connection.flags |= FLAG_TLS_END


cdef inline tls_decrypt(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket):
    """Have TLS make input of what was read, and go on with the handshake; when that is done the connection is ready."""
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    cdef block_t *wire = connection.ciphertext
    cdef bytes plaintext
    session = <object>connection.session
    callbacks_begin(engine, worker)
    ciphertext = PyBytes_FromStringAndSize(block_bytes(wire) + wire.start, block_length(wire))
    connection.ciphertext = NULL
    block_free(&worker.io.pool, wire)
    with session.lock:
        callbacks_computing(engine, worker, not connection.flags & FLAG_HANDSHAKE and len(ciphertext) <= TLS_SHORT_MOST)
        try:
            plaintext = session.receive(ciphertext)
        finally:
            callbacks_computing(engine, worker, False)
        sending_append(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    if plaintext and not input_store(&worker.io, &connection.input, PyBytes_AS_STRING(plaintext), len(plaintext), False):
        raise MemoryError
    tls_note_end(engine, connection, session)
    if connection.flags & FLAG_HANDSHAKE and session.is_ready:
        connection.flags &= ~<uint32_t>FLAG_HANDSHAKE
        if engine._debug:
            engine._log.shaken(connection.id, session.info("cipher"))
        atomic_store64(&connection.deadline, 0)
        if atomic_load32(&connection.state) != STATE_OPEN:
            return
        atomic_store32(&connection.ready, 1)
        if callbacks.on_connected is not None:
            callbacks_call(engine, worker, connection, socket, callbacks.on_connected, "on_connected")


cdef inline void tls_close_notify(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
    """All output is flushed: close_notify is the last of it. When that is flushed, FLUSHED is posted again."""
    session = <object>connection.session
    callbacks_begin(engine, worker)
    connection.flags |= FLAG_CLOSE_NOTIFY
    try:
        with session.lock:
            if sending_append(engine, worker, socket, &engine._raw, session.close(), STATE_CLOSING) == SEND_NOTHING:
                connection.mail |= FLUSHED
    except BaseException:  # no memory: the peer will see that the end is none in order
        ending_ask(engine, socket, True, CAUSE_OS_ERROR, ENOMEM)
