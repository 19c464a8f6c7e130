"""Sessions: what anybody wants of one, be it to encrypt a message or to decrypt what was read, is
done by whoever gets its lock. They are TLS's; and the messages of a WebSocket that are compressed
in the order of sending, `deflate.OrderedOutput`, which encrypts in its way.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport (
    CAUSE_OS_ERROR, CAUSE_TLS_ERROR, ENCRYPT_MOST, RECEIVED, STATE_ABORTING, STATE_CLOSING,
    STATE_OPEN, TLS_JOINED, TLS_SHORT_MOST,
)
from hydrogen._c.queues cimport queues_leave_output, queues_post
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._c.waiting cimport waiting_count, waiting_uncount
from hydrogen._core cimport Engine, HydrogenSocket, Message, SSLError
from hydrogen._engine.appending cimport appending_bytes
from hydrogen._engine.callbacks cimport callbacks_check, callbacks_computing
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.streams cimport streams_take_back


cdef inline bint sessions_put(
    Engine engine, HydrogenSocket socket, session, bytes data, uint32_t last_state=STATE_OPEN,
) except -1:
    """Have a message encrypted by whoever gets the session's lock; False when it is too late, be it
    that the state is beyond `last_state`.

    Who closes sets `is_closing` before he encrypts for the last time, and a failure is there before
    what waits is dropped. So either this looks before, and the message is found then, or it takes
    the message back, if it is still there.
    """
    cdef connection_t *connection = socket._connection
    cdef bint waits = False
    cdef Message message = Message.__new__(Message)
    message.data = data
    if not waiting_count(
        &engine._loop.context, connection, socket._generation, len(data), last_state
    ):
        return False
    try:
        session.waiting.append(message)
        waits = True
    finally:
        if not waits:
            sessions_uncount(engine, socket, len(data))
    if not session.is_closing and session.failure is None:
        return True
    if not streams_take_back(session, message):  # it was encrypted
        return True
    sessions_uncount(engine, socket, len(data))
    return False


cdef inline void sessions_uncount(Engine engine, HydrogenSocket socket, size_t size) noexcept:
    """A message that waited is not pending any more, nor sent."""
    cdef uint32_t bits = waiting_uncount(
        &engine._loop.context, socket._connection, socket._generation, size,
    )
    queues_post(
        &engine._loop, socket._connection, socket._generation, bits, engine._worker() == NULL
    )


cdef inline bint sessions_can_encrypt(session) except -1:
    """Whether a message waits that can be encrypted."""
    return (
        session.waiting and session.is_ready and session.failure is None and not session.is_sealed
    )


cdef inline bint sessions_has_work(session) except -1:
    """Whether there is something to do for who gets the lock.

    No Python function: no signal handler raises between giving the lock back and looking again.
    """
    return (
        session.received or sessions_can_encrypt(session) or
        session.is_closing and not session.is_sealed
    )


cdef inline int sessions_work(
    Engine engine, worker_t *worker, HydrogenSocket socket, session, bint owner,
) except -1:
    """Do what anybody wants of a session, as far as the lock can be had. Any thread.

    Nobody waits for the lock: a thread may hold it further out, for the collector may run inside
    ssl, and run code that sends; or it may hold another session's, whose holder wants this one. Nor
    does anybody need it: who comes leaves what is to be done, be it a message or, the owner, what
    he has read. Who does not get the lock goes; who had it looks again after giving it back. So
    nothing is overlooked, nobody is kept from it by others who come again and again, and nobody
    stays for ever: after ENCRYPT_MOST pieces the rest is left to a worker.
    """
    cdef int left = ENCRYPT_MOST
    while not engine._inert() and sessions_has_work(session) and session.lock.acquire(False):
        try:
            session.user = PyThread_get_thread_ident()
            left = sessions_work_held(engine, worker, socket, session, owner, left)
        finally:
            session.user = None
            session.lock.release()
        if left == 0:
            if (
                not engine._inert() and sessions_has_work(session) and
                atomic_load32(&socket._connection.state) < STATE_ABORTING
            ):
                queues_leave_output(&engine._loop, socket._connection, True, True)
            break
    return 0


cdef inline int sessions_work_held(
    Engine engine, worker_t *worker, HydrogenSocket socket, session, bint owner, int most,
) except -1:
    """The same, with the lock, `most` pieces; how many more there might have been.

    Records are numbered: what was encrypted is queued before the lock is given back. What was read
    comes first: it was asked for once, and the owner waits for it.

    After an exception a record may be missing, and what came after it would be nonsense to the
    peer: the connection is aborted. It is raised to the owner, and to a thread of the user's what
    that is to be
    told: anybody else may be in a callback of another connection, which is not to end for this one.
    Without memory even catching may fail.
    """
    cdef int code = ENOMEM
    cdef bint is_whole = False
    try:
        while most and not engine._inert() and sessions_has_work(session):
            most -= 1
            if session.received:
                sessions_receive(engine, worker, socket, session)
            elif sessions_can_encrypt(session):
                sessions_encrypt(engine, worker, socket, session, owner)
                continue
            else:
                sessions_give(engine, worker, socket, session, session.close(), 0, owner)
                session.is_sealed = True
            if not owner and not engine._inert():
                queues_post(
                    &engine._loop, socket._connection, socket._generation, RECEIVED, worker == NULL
                )
        is_whole = True
    except BaseException as error:
        if not issubclass(type(error), MemoryError):
            code = EIO
        if owner or engine._inert() or (worker == NULL and not issubclass(type(error), Exception)):
            raise
    finally:
        if not is_whole:
            ending_ask(engine, socket, True, CAUSE_OS_ERROR, code)
    return most if is_whole else 0


cdef inline int sessions_receive(
    Engine engine, worker_t *worker, HydrogenSocket socket, session,
) except -1:
    """Make plaintext of what was read. May run user code: `sni_callback`, say.

    An alert waits until the end, when `TlsSession.close` gives it out: written now it might meet a
    reset, which ends the connection before what came ahead of the failure is delivered.
    """
    cdef bytes ciphertext = session.received.popleft()
    callbacks_computing(engine, worker, session.is_ready and len(ciphertext) <= TLS_SHORT_MOST)
    try:
        plaintext = session.receive(ciphertext)
    finally:
        callbacks_computing(engine, worker, False)
    if worker != NULL:
        callbacks_check(engine)
    if engine._inert():  # the child of a thread of the user's
        return 0
    if session.failure is not None:
        sessions_drop(engine, socket, session)
    else:
        appending_bytes(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    session.plaintexts.append(plaintext)
    return 0


cdef inline int sessions_drop(Engine engine, HydrogenSocket socket, session) except -1:
    """OpenSSL has failed: what waits cannot be encrypted any more. Or reading would be paused, and
    drain() wait, for it.
    """
    cdef Message message
    try:
        while session.waiting:
            message = session.waiting.popleft()
            session.is_cut = True
            sessions_uncount(engine, socket, len(message.data))
    except IndexError:  # taken back
        pass
    return 0


cdef inline int sessions_encrypt(
    Engine engine, worker_t *worker, HydrogenSocket socket, session, bint owner,
) except -1:
    """Make records of what waits, and queue them.

    Of short messages as many as fit: ssl lets go of the GIL in each call, and to have it back from
    threads that send without rest takes far longer than to encrypt.
    """
    cdef bytes data
    cdef Message message
    cdef list parts = []
    cdef size_t size = 0
    try:
        while session.waiting and size < TLS_JOINED:
            message = session.waiting.popleft()
            parts.append(message.data)
            size += len(message.data)
    except IndexError:  # taken back
        pass
    if not parts:
        return 0
    callbacks_computing(engine, worker, size <= TLS_SHORT_MOST)
    try:
        data = session.encrypt(*parts)
    except OSError as error:
        if not issubclass(type(error), SSLError):
            raise
        # Not raised: the message may be another thread's, and the callback another connection's.
        session.failure = error.with_traceback(None)
        ending_with(engine, socket, True, CAUSE_TLS_ERROR, error)
        sessions_drop(engine, socket, session)
    finally:
        callbacks_computing(engine, worker, False)
    if session.failure is None:
        sessions_give(engine, worker, socket, session, data, size, owner)
    return 0


cdef inline int sessions_give(
    Engine engine, worker_t *worker, HydrogenSocket socket, session, bytes data, size_t counted,
    bint owner,
) except -1:
    """Give what comes out of a session to the output, or to the session below. `counted`: see
    `output_send`.
    """
    below = session.below
    if below is None:
        appending_bytes(engine, worker, socket, &engine._raw, data, STATE_CLOSING, counted)
        return 0
    if data and sessions_put(engine, socket, below, data, STATE_CLOSING):
        sessions_work(engine, worker, socket, below, owner)
    sessions_uncount(engine, socket, counted)
    return 0
