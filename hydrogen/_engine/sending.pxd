"""What sockets send: framed, queued, then flushed or corked as the policy says."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EIO, ENOMEM
from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport (
    CAUSE_OS_ERROR, CAUSE_SLOW_CONSUMER, CAUSE_TLS_ERROR, DRAIN_DONE, DRAIN_EDGE, DRAIN_SLICE_NS,
    DRAIN_WAIT,
    ENCRYPT_MOST, NOT_CORKED, RECEIVED, SEND_CORKED, SEND_HELD_MOST, SEND_NOTHING,
    SEND_NOW, SEND_NO_MEMORY, SEND_QUEUED, SEND_REFUSED, SEND_UNFIT, STATE_ABORTING, STATE_CLOSING,
    STATE_OPEN, TLS_JOINED, TLS_SHORT_MOST,
)
from hydrogen._c.counters cimport counters_count
from hydrogen._c.expect cimport expect_seldom
from hydrogen._c.flush cimport flush_cork, flush_one, flush_take_over
from hydrogen._c.framing cimport FRAMING_MESSAGES, FRAMING_PYTHON, FRAMING_RAW, framing_t
from hydrogen._c.kernel cimport HYDROGEN_GIL, kernel_now, kernel_sleep
from hydrogen._c.output cimport output_send, output_wait_drained
from hydrogen._c.queues cimport queues_check_memory, queues_leave_output, queues_post
from hydrogen._c.structs cimport connection_t, io_t, loop_t, worker_t
from hydrogen._c.waiting cimport waiting_count, waiting_rest, waiting_uncount
from hydrogen._c.worker cimport worker_is_eager
from hydrogen._codec cimport Framing, framed, too_large, unfit
from hydrogen._core cimport Engine, HydrogenSocket, Message, SSLError, check_timeout, encode
from hydrogen._engine.callbacks cimport callbacks_check, callbacks_computing, callbacks_flush_corked
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.references cimport references_held
from hydrogen._engine.streams cimport streams_is_mine, streams_send, streams_take_back


cdef inline int sending_send_coded(
    Engine engine, worker_t *worker, HydrogenSocket socket, bytes data, uint64_t *rest,
    bytes wire=None,
) except -1:
    """Send by a frame builder of the user's or of the connection's own, by TLS, or by both. `rest`:
    as of `streams_send`. `wire`: `data`, framed already.
    """
    cdef connection_t *connection = socket._connection
    cdef Framing own = references_held(engine, socket, &connection.builder)
    session = references_held(engine, socket, &connection.session)
    decoder = references_held(engine, socket, &connection.decoder)
    if not socket._valid():
        return SEND_REFUSED
    if wire is not None:
        data = wire
    elif decoder is not None:
        data = encode(decoder.builder, data)
    elif own is not None:
        data = framed(&own.value, data)
    elif engine._loop.context.framing.kind == FRAMING_PYTHON:
        data = encode(engine._builder, data)
    else:
        data = framed(engine._loop.context.framing, data)
    if worker != NULL:
        callbacks_check(engine)
    if engine._inert():  # the child of a thread of the user's
        return SEND_REFUSED
    if session is None:
        return sending_append(engine, worker, socket, &engine._raw, data, STATE_OPEN)
    if not socket.is_open or not session.is_writable:
        return SEND_REFUSED
    if socket.pending >= engine._loop.context.max_write_buffer:  # what waits included
        ending_ask(engine, socket, True, CAUSE_SLOW_CONSUMER, 0)
        return SEND_REFUSED
    if not data:
        return SEND_NOTHING
    if not sending_put(engine, socket, session, data):
        return SEND_REFUSED
    sending_work(engine, worker, socket, session, False)
    user = session.user
    if user is not None and user != PyThread_get_thread_ident():
        rest[0] = waiting_rest(&engine._loop.context, connection)
    return SEND_QUEUED


cdef inline bint sending_put(
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
            sending_uncount(engine, socket, len(data))
    if not session.is_closing and session.failure is None:
        return True
    if not streams_take_back(session, message):  # it was encrypted
        return True
    sending_uncount(engine, socket, len(data))
    return False


cdef inline void sending_uncount(Engine engine, HydrogenSocket socket, size_t size) noexcept:
    """A message that waited is not pending any more, nor sent."""
    cdef uint32_t bits = waiting_uncount(
        &engine._loop.context, socket._connection, socket._generation, size,
    )
    queues_post(
        &engine._loop, socket._connection, socket._generation, bits, engine._worker() == NULL
    )


cdef inline bint sending_can_encrypt(session) except -1:
    """Whether a message waits that can be encrypted."""
    return (
        session.waiting and session.is_ready and session.failure is None and not session.is_sealed
    )


cdef inline bint sending_has_work(session) except -1:
    """Whether there is something to do for who gets the lock.

    No Python function: no signal handler raises between giving the lock back and looking again.
    """
    return (
        session.received or sending_can_encrypt(session) or
        session.is_closing and not session.is_sealed
    )


cdef inline int sending_work(
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
    while not engine._inert() and sending_has_work(session) and session.lock.acquire(False):
        try:
            session.user = PyThread_get_thread_ident()
            left = sending_work_held(engine, worker, socket, session, owner, left)
        finally:
            session.user = None
            session.lock.release()
        if left == 0:
            if (
                not engine._inert() and sending_has_work(session) and
                atomic_load32(&socket._connection.state) < STATE_ABORTING
            ):
                queues_leave_output(&engine._loop, socket._connection, True, True)
            break
    return 0


cdef inline int sending_work_held(
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
        while most and not engine._inert() and sending_has_work(session):
            most -= 1
            if session.received:
                sending_receive(engine, worker, socket, session)
            elif sending_can_encrypt(session):
                sending_encrypt(engine, worker, socket, session)
                continue
            else:
                sending_append(engine, worker, socket, &engine._raw, session.close(), STATE_CLOSING)
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


cdef inline int sending_receive(
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
        sending_drop(engine, socket, session)
    else:
        sending_append(engine, worker, socket, &engine._raw, session.take(), STATE_CLOSING)
    session.plaintexts.append(plaintext)
    return 0


cdef inline int sending_drop(Engine engine, HydrogenSocket socket, session) except -1:
    """OpenSSL has failed: what waits cannot be encrypted any more. Or reading would be paused, and
    drain() wait, for it.
    """
    cdef Message message
    try:
        while session.waiting:
            message = session.waiting.popleft()
            session.is_cut = True
            sending_uncount(engine, socket, len(message.data))
    except IndexError:  # taken back
        pass
    return 0


cdef inline int sending_encrypt(
    Engine engine, worker_t *worker, HydrogenSocket socket, session,
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
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    callbacks_computing(engine, worker, size <= TLS_SHORT_MOST)
    try:
        data = session.encrypt(data)
    except OSError as error:
        if not issubclass(type(error), SSLError):
            raise
        # Not raised: the message may be another thread's, and the callback another connection's.
        session.failure = error.with_traceback(None)
        ending_with(engine, socket, True, CAUSE_TLS_ERROR, error)
        sending_drop(engine, socket, session)
    finally:
        callbacks_computing(engine, worker, False)
    if session.failure is None:
        sending_append(engine, worker, socket, &engine._raw, data, STATE_CLOSING, size)
    return 0


cdef inline bint sending_send(
    Engine engine, HydrogenSocket socket, const char *data, size_t n, uint64_t *rest=NULL,
    const framing_t *framing=NULL,
) except -1:
    """`HydrogenSocket.send`. `framing`: not the server's: of a text.

    Where the message is left to another thread it lets that one get on. Who sends to many does so
    once, for the longest of these times: it is stored in `rest`, if that is not NULL, instead.
    """
    cdef connection_t *connection = socket._connection
    cdef worker_t *worker = engine._worker()
    cdef int result = SEND_REFUSED
    if framing == NULL:
        framing = engine._loop.context.framing
    if expect_seldom(not socket._valid()):
        pass
    elif expect_seldom(
        connection.adapter != NULL or connection.session != NULL or connection.builder != NULL or
        framing.kind >= FRAMING_PYTHON or (framing.kind != FRAMING_RAW and n > framing.max_size)
    ):
        if framing.kind == FRAMING_MESSAGES and not atomic_load32(&connection.ready):
            pass  # the request was not answered yet
        elif framing.kind == FRAMING_MESSAGES and connection.session == NULL:
            result = sending_append_framed(
                engine, worker, socket, framing, data, n, STATE_OPEN, 0
            )
        else:
            result = sending_send_otherwise(engine, worker, socket, framing, data, n, rest)
    else:
        result = sending_append_framed(engine, worker, socket, framing, data, n, STATE_OPEN, 0)
    return sending_count(engine, worker, result)


cdef inline int sending_send_otherwise(
    Engine engine, worker_t *worker, HydrogenSocket socket, const framing_t *framing,
    const char *data, size_t n, uint64_t *rest,
) except -1:
    """The same of all but a message that is framed and queued as it is, which would pay for what
    this needs.
    """
    cdef connection_t *connection = socket._connection
    cdef uint64_t mine = 0
    cdef int result = SEND_REFUSED
    if connection.adapter != NULL:
        if (
            atomic_load32(&connection.state) == STATE_OPEN and
            socket.pending < engine._loop.context.max_write_buffer
        ):
            result = (
                SEND_QUEUED
                if streams_send(engine, socket, PyBytes_FromStringAndSize(data, n), &mine)
                else SEND_REFUSED
            )
        elif atomic_load32(&connection.state) == STATE_OPEN:
            ending_ask(engine, socket, True, CAUSE_SLOW_CONSUMER, 0)
    elif framing.kind == FRAMING_MESSAGES:
        wire = framed(framing, PyBytes_FromStringAndSize(data, n))
        result = sending_send_coded(engine, worker, socket, wire, &mine, wire)
    elif (
        connection.session != NULL or connection.builder != NULL or framing.kind == FRAMING_PYTHON
    ):
        result = sending_send_coded(
            engine, worker, socket, PyBytes_FromStringAndSize(data, n), &mine
        )
    else:
        raise too_large(framing, n)
    if rest != NULL:
        rest[0] = max(rest[0], mine)
    elif mine:
        with nogil:
            kernel_sleep(mine)
    return result


cdef inline bint sending_count(Engine engine, worker_t *worker, int result) noexcept:
    """Whether a message was taken, which is counted."""
    cdef io_t *io = &worker.io if worker != NULL else &engine._loop.outside_io
    counters_count(
        io, &io.counters.messages_refused if result == SEND_REFUSED else &io.counters.messages_sent
    )
    return result != SEND_REFUSED


cdef inline int sending_append(
    Engine engine, worker_t *worker, HydrogenSocket socket, const framing_t *framing, bytes data,
    uint32_t last_state,
    size_t counted=0,
) except -1:
    return sending_append_framed(
        engine, worker, socket, framing, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
        last_state, counted)


cdef inline int sending_append_framed(
    Engine engine, worker_t *worker, HydrogenSocket socket, const framing_t *framing,
    const char *data, size_t n,
    uint32_t last_state, size_t counted,
) except -1:
    """Frame and queue; then flush, or cork, as the policy says. SEND_REFUSED, SEND_NOTHING, or
    another value: it was queued.
    """
    cdef loop_t *loop = &engine._loop
    cdef connection_t *connection = socket._connection
    # Without a GIL nobody can tell a handler that blocks from one that runs, so that nothing lies
    # corked in eager mode.
    cdef bint cork = (
        worker != NULL and (not worker_is_eager(loop) or HYDROGEN_GIL and n <= SEND_HELD_MOST)
    )
    cdef uint32_t bits = 0
    cdef int result
    if expect_seldom(n == 0 and framing.kind == FRAMING_RAW):
        return (
            SEND_NOTHING if atomic_load32(&connection.state) == STATE_OPEN or
            last_state != STATE_OPEN else SEND_REFUSED
        )
    result = output_send(
        &loop.context, &worker.io.pool if worker != NULL else NULL, connection, socket._generation,
        framing, data, n, counted, last_state,
        worker.index if cork else NOT_CORKED, &bits)
    if result != SEND_QUEUED:
        sending_go_on(engine, worker, socket, result, n, bits)
    queues_check_memory(loop)
    return result


cdef inline int sending_go_on(
    Engine engine, worker_t *worker, HydrogenSocket socket, int result, size_t n, uint32_t bits,
) except -1:
    """After output_send, unless the message was left to who flushes, or will."""
    cdef loop_t *loop = &engine._loop
    cdef connection_t *connection = socket._connection
    cdef io_t *io = &worker.io if worker != NULL else &loop.outside_io
    if result == SEND_NOW:
        with nogil:
            flush_one(loop, io, connection, socket._generation, worker == NULL)
    elif result == SEND_CORKED:
        flush_take_over(worker)
        if not flush_cork(worker, <uint64_t>socket._generation << 32 | connection.slot.index):
            callbacks_flush_corked(engine, worker)
            flush_cork(worker, <uint64_t>socket._generation << 32 | connection.slot.index)
    elif result == SEND_NO_MEMORY:
        raise MemoryError(f"no memory for a message of {n} bytes")
    elif result == SEND_UNFIT:
        raise unfit()
    elif bits:
        queues_post(loop, connection, socket._generation, bits, worker == NULL)
    return 0


cdef inline object sending_drain(Engine engine, HydrogenSocket socket, timeout):
    cdef worker_t *worker = engine._worker()
    cdef uint64_t until, deadline = <uint64_t>-1
    cdef int state
    timeout = check_timeout("timeout", timeout)
    if timeout is not None:
        deadline = kernel_now() + <uint64_t>(min(timeout, 1e9) * 1e9)
    if engine._inert():
        return False
    if worker != NULL and worker.corked_count:
        callbacks_flush_corked(engine, worker)
    session = references_held(engine, socket, &socket._connection.session)
    if (
        streams_is_mine(engine, socket) or
        (session is not None and session.user == PyThread_get_thread_ident())
    ):
        deadline = 0  # it would wait for itself
    while True:
        if session is not None:
            sending_work(engine, worker, socket, session, False)
        until = min(deadline, kernel_now() + DRAIN_SLICE_NS)
        with nogil:
            state = output_wait_drained(
                &engine._loop.context, socket._connection, socket._generation, until
            )
        if state == DRAIN_EDGE:
            streams_send(engine, socket, None, NULL)
        elif state != DRAIN_WAIT:
            return state == DRAIN_DONE and (session is None or not session.is_cut)
        PyErr_CheckSignals()
        if kernel_now() >= deadline:
            return False
