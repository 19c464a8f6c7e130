"""Calls of the handler's callbacks."""

from libc.stdint cimport uint64_t

from hydrogen._c.atomic cimport (
    atomic_load32, relaxed_add64, relaxed_load64, relaxed_store32, relaxed_store64,
)
from hydrogen._c.constants cimport (
    CAUSE_HANDLER_ERROR, CORK_CALLBACKS, CORK_NS, STATE_OPEN, WORKER_CALLBACK, WORKER_FLUSH,
    WORKER_WANT_GIL,
)
from hydrogen._c.flush cimport flush_corked, flush_take_over
from hydrogen._c.kernel cimport kernel_now
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._c.worker cimport worker_is_eager
from hydrogen._core cimport Engine, HydrogenSocket, errors
from hydrogen._engine.ending cimport ending_with


cdef inline void callbacks_begin(Engine engine, worker_t *worker) noexcept:
    """Count a callback, or a step of TLS, which shows the monitor thread that this worker gets on; flush in time what the turn has corked, and what
    another one had that blocks now."""
    cdef uint64_t progress = relaxed_load64(&worker.progress) + 1
    relaxed_store64(&worker.progress, progress)
    flush_take_over(worker)
    if worker.corked_count and progress & 7 == 0 and (
        worker.corked_count >= CORK_CALLBACKS or kernel_now() - worker.iteration_began > CORK_NS
    ):
        callbacks_flush_corked(engine, worker)


cdef inline void callbacks_flush_corked(Engine engine, worker_t *worker) noexcept:
    """In eager mode with the GIL held: it went to one of those that wait for it, and this turn would end in the middle."""
    if worker_is_eager(&engine._loop):
        flush_corked(worker)
    else:
        with nogil:
            relaxed_store32(&worker.state, WORKER_FLUSH)
            flush_corked(worker)
            relaxed_store32(&worker.state, WORKER_WANT_GIL)
        relaxed_add64(&worker.io.counters.gil_acquisitions, 1)
        relaxed_store32(&worker.state, WORKER_CALLBACK)
    worker.iteration_began = kernel_now()


cdef inline void callbacks_begin_message(Engine engine, worker_t *worker, connection_t *connection) noexcept:
    """A message is complete: whatever of another one is there has a deadline of its own."""
    callbacks_begin(engine, worker)
    relaxed_add64(&worker.io.counters.messages_received, 1)
    if relaxed_load64(&connection.deadline):
        relaxed_store64(&connection.deadline, 0)


cdef inline void callbacks_call(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, callback, name) noexcept:
    """Run a callback that takes the socket alone."""
    if atomic_load32(&connection.state) != STATE_OPEN:
        return
    try:
        callbacks_begin(engine, worker)
        callback(socket)
    except BaseException as error:
        callbacks_failed(engine, connection, socket, name, error)


cdef inline void callbacks_failed(Engine engine, connection_t *connection, HydrogenSocket socket, name, error) noexcept:
    """A callback raised: log it, and end the connection with a HandlerError. Not in a forked child, where the lock of the rate-limited log may be held."""
    if engine._inert():
        return
    engine._log.callback_error(name, error)
    ending_with(engine, connection, socket, CAUSE_HANDLER_ERROR, errors.handler_error(error))


cdef inline void callbacks_quietly(Engine engine, worker_t *worker, callback, first=None, second=None) noexcept:
    """Run one of the last callbacks: what it raises is only logged."""
    try:
        callbacks_begin(engine, worker)
        if second is None:
            callback()
        else:
            callback(first, second)
    except BaseException as error:
        if engine._inert():
            return
        engine._log.callback_error(getattr(callback, "__name__", "callback"), error)


cdef inline void callbacks_computing(Engine engine, worker_t *worker, bint briefly) noexcept:
    """Around short records: OpenSSL lets go of the GIL for microseconds, and another worker may keep it for long. Who waits to have it back does not block
    in a handler; did it count as that, more and more workers would be woken, and wait for it. A handshake or a long message counts: OpenSSL
    takes a millisecond or more, in which others can work."""
    if worker != NULL:
        relaxed_store32(&worker.state, WORKER_WANT_GIL if briefly else WORKER_CALLBACK)
