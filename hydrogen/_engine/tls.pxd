"""TLS by Python's ssl: the slow path. A session's lock comes before anything of the connection, and nobody waits for it."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32, atomic_store32, atomic_store64
from hydrogen._c.buffer cimport block_bytes, block_free, block_length, block_t
from hydrogen._c.constants cimport (
    ENCRYPT_MOST, FLAG_BUSY, FLAG_CLOSE_NOTIFY, FLAG_HANDSHAKE, FLAG_TLS_END, FLAG_TLS_FAILED,
    FLUSHED, SEND_NOTHING, STATE_CLOSING, STATE_OPEN, TLS_SHORT_MOST,
)
from hydrogen._c.input cimport input_store
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks
from hydrogen._engine.callbacks cimport (
    callbacks_begin, callbacks_call, callbacks_check, callbacks_computing,
)
from hydrogen._engine.references cimport references_hold
from hydrogen._engine.sending cimport (
    sending_append, sending_encrypt, sending_encrypt_held, sending_give_back,
    sending_take_session,
)


cdef inline int tls_begin(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, session) except -1:
    """From now on the connection speaks TLS; it is ready when the handshake is done. Nobody else knows it yet."""
    references_hold(connection, &connection.session, session)
    if not session.is_ready:
        connection.flags |= FLAG_HANDSHAKE
        session.start()
    sending_append(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    tls_note_end(connection, session)
    return 0


cdef inline void tls_note_end(connection_t *connection, session):
    """No more input will come when the session says so."""
    if session.failure is not None:
        connection.flags |= FLAG_TLS_END | FLAG_TLS_FAILED
    elif session.is_ended:
        connection.flags |= FLAG_TLS_END


cdef inline int tls_decrypt(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) except -1:
    """Have TLS make input of what was read, and go on with the handshake; when that is done the connection is ready."""
    cdef bytes plaintext
    session = <object>connection.session
    callbacks_begin(engine, worker)
    if not sending_take_session(session):
        connection.flags |= FLAG_BUSY
        return 0
    try:
        plaintext = tls_receive(engine, worker, connection, socket, session)
    finally:
        sending_give_back(engine, socket, session)
    callbacks_check(engine)
    sending_encrypt(engine, worker, socket, session)
    if plaintext and not input_store(&worker.io, &connection.input, PyBytes_AS_STRING(plaintext), len(plaintext), False):
        raise MemoryError
    tls_note_end(connection, session)
    if not connection.flags & FLAG_HANDSHAKE or not session.is_ready:
        return 0
    connection.flags &= ~<uint32_t>FLAG_HANDSHAKE
    if engine._debug:
        engine._log.shaken(connection.id, session.info("cipher"))
    atomic_store64(&connection.deadline, 0)
    if atomic_load32(&connection.state) == STATE_OPEN:
        atomic_store32(&connection.ready, 1)
    return callbacks_call(engine, worker, connection, socket, (<_Callbacks>worker.callbacks).on_connected, "on_connected")


cdef inline bytes tls_receive(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, session):
    """The plaintext of `ciphertext`, with the session's lock. May run user code: `sni_callback`, say."""
    cdef block_t *block = connection.ciphertext
    cdef bytes ciphertext, plaintext
    ciphertext = PyBytes_FromStringAndSize(block_bytes(block) + block.start, block_length(block))
    connection.ciphertext = NULL
    block_free(&worker.io.pool, block)
    callbacks_computing(engine, worker, not connection.flags & FLAG_HANDSHAKE and len(ciphertext) <= TLS_SHORT_MOST)
    try:
        plaintext = session.receive(ciphertext)
    finally:
        callbacks_computing(engine, worker, False)
    sending_append(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    return plaintext


cdef inline int tls_close_notify(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) except -1:
    """All output is flushed: close_notify is the last of it. When that is flushed, FLUSHED is posted again."""
    session = <object>connection.session
    callbacks_begin(engine, worker)
    if not sending_take_session(session):
        connection.flags |= FLAG_BUSY
        return 0
    try:
        session.is_closing = True
        while session.waiting and session.is_writable:
            sending_encrypt_held(engine, worker, socket, session, ENCRYPT_MOST)
        connection.flags |= FLAG_CLOSE_NOTIFY
        if sending_append(engine, worker, socket, &engine._raw, session.close(), STATE_CLOSING) == SEND_NOTHING:
            connection.mail |= FLUSHED
    finally:
        sending_give_back(engine, socket, session)
    return 0
