"""TLS by Python's ssl: the slow path. A session's lock comes before anything of the connection, and
nobody waits for it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport relaxed_store32
from hydrogen._c.buffer cimport block_bytes, block_free, block_length, block_t
from hydrogen._c.constants cimport (
    AGAIN, FLAG_BUSY, FLAG_CLOSE_NOTIFY, FLAG_HANDSHAKE, FLAG_RECEIVING, FLAG_TLS_END,
    FLAG_TLS_FAILED, FLUSHED, STATE_CLOSING,
)
from hydrogen._c.input cimport input_store
from hydrogen._c.messages cimport messages_take
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, HydrogenSocket
from hydrogen._engine.appending cimport appending_bytes
from hydrogen._engine.callbacks cimport callbacks_begin, callbacks_check, callbacks_connected
from hydrogen._engine.handshake cimport handshake_await
from hydrogen._engine.references cimport references_hold
from hydrogen._engine.sessions cimport sessions_work


cdef inline int tls_begin(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, session,
) except -1:
    """From now on the connection speaks TLS; it is ready when the handshake is done. Nobody else
    knows it yet.
    """
    references_hold(connection, &connection.session, session)
    if not session.is_ready:
        connection.flags |= FLAG_HANDSHAKE
        session.start()
    appending_bytes(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    tls_note_end(connection, session)
    return 0


cdef inline void tls_note_end(connection_t *connection, session):
    """No more input will come when the session says so. A reset that was met behind that does not
    count: it is what closing without reading makes of a graceful end, or of an alert.
    """
    if connection.flags & FLAG_TLS_END or not (session.is_ended or session.failure is not None):
        return
    connection.flags |= FLAG_TLS_END
    if connection.websocket != NULL:
        relaxed_store32(&connection.websocket.said_goodbye, 1)
    if session.failure is not None:
        connection.flags |= FLAG_TLS_FAILED
    connection.end_code = 0


cdef inline int tls_decrypt(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Have TLS make input of what was read; if another thread has the session, then by that one."""
    cdef block_t *block = connection.ciphertext
    session = <object>connection.session
    callbacks_begin(engine, worker)
    session.received.append(
        PyBytes_FromStringAndSize(block_bytes(block) + block.start, block_length(block))
    )
    connection.ciphertext = NULL
    block_free(&worker.io.pool, block)
    connection.flags |= FLAG_RECEIVING
    sessions_work(engine, worker, socket, session, True)
    callbacks_check(engine)
    return tls_collect(engine, worker, connection, socket)


cdef inline int tls_collect(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """What became of what was read, if that is done; with it the connection may become ready.

    Else another thread has the session. He finds what was read when he gives the lock back, at the
    latest, and whoever has made plaintext of it posts RECEIVED. Nothing more is read before.
    """
    cdef bytes plaintext
    session = <object>connection.session
    if not session.plaintexts:
        return 0
    connection.flags &= ~<uint32_t>FLAG_RECEIVING
    plaintext = session.plaintexts.popleft()
    if plaintext and not input_store(
        &worker.io, &connection.input, PyBytes_AS_STRING(plaintext), len(plaintext), False
    ):
        raise MemoryError
    if connection.websocket != NULL and not messages_take(
        &engine._loop.context, &worker.io, connection
    ):
        raise MemoryError
    tls_note_end(connection, session)
    if not connection.flags & FLAG_HANDSHAKE or not session.is_ready:
        return 0
    connection.flags &= ~<uint32_t>FLAG_HANDSHAKE
    if engine._debug:
        engine._log.shaken(connection.id, session.info("cipher"))
    if engine._websocket is not None:
        return handshake_await(connection)
    return callbacks_connected(engine, worker, connection, socket)


cdef inline int tls_told(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Another thread has done something for the owner: a step sees what follows from it."""
    if connection.flags & FLAG_RECEIVING:
        tls_collect(engine, worker, connection, socket)
    connection.mail |= AGAIN
    return 0


cdef inline int tls_close_notify(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """All output is flushed: what waits is encrypted, and close_notify is the last. When that is
    flushed, FLUSHED is posted again.

    What is received no more counts. If another thread has the session he closes, and posts
    RECEIVED.
    """
    session = <object>connection.session
    callbacks_begin(engine, worker)
    connection.flags &= ~<uint32_t>FLAG_RECEIVING
    session.is_closing = True
    sessions_work(engine, worker, socket, session, True)
    if session.is_sealed:
        connection.flags |= FLAG_CLOSE_NOTIFY
        connection.mail |= FLUSHED  # it may have been flushed already, or there was nothing to say
    else:
        connection.flags |= FLAG_BUSY
    return 0
