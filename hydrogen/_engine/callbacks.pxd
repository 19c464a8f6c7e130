"""The one way into user code: callbacks, streams, frame builders.

Who calls it begins with `callbacks_begin` and looks at `callbacks_check` afterwards: it may have
forked, and this is the child. Who catches what it raised calls `callbacks_caught` first. Callbacks
of the handler, between which nothing may pass, end with `callbacks_leave`. What they raise is their
own fault, whatever the class (`callbacks_failed`), but where the caller knows better.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport (
    atomic_load32, atomic_store32, atomic_store64, relaxed_add64, relaxed_load64, relaxed_store32,
    relaxed_store64,
)
from hydrogen._c.constants cimport (
    CAUSE_HANDLER_ERROR, CAUSE_LOCAL_CLOSED, CORK_CALLBACKS, CORK_LOOK, CORK_NS, FLAG_LATE, READY,
    READY_DEFLATES, STATE_OPEN, WORKER_BRIEF, WORKER_CALLBACK, WORKER_FLUSH, WORKER_WANT_GIL,
)
from hydrogen._c.expect cimport expect_seldom
from hydrogen._c.flush cimport flush_corked, flush_is_last, flush_take_over
from hydrogen._c.kernel cimport kernel_now
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._c.worker cimport worker_is_eager
from hydrogen._core cimport (
    Close, Engine, HydrogenSocket, _Callbacks, class_name, closed_by, errors,
)
from hydrogen._engine.compat cimport (
    compat_call, compat_context_size, compat_forget_async_exception, compat_raise,
)
from hydrogen._engine.ending cimport ending_with


cdef inline int callbacks_check(Engine engine) except -1:
    """Raises SystemExit in a forked child: what is left to do is the parent's."""
    if expect_seldom(engine._inert()):
        raise SystemExit
    return 0


cdef inline int callbacks_begin(Engine engine, worker_t *worker, bint counts=True) except -1:
    """Count a callback, which shows the monitor thread that this worker gets on; not, `counts`,
    what one calls itself, which may go on for long.

    Flush what another worker has corked that blocks now. An exception that somebody has set in this
    thread is for a callback that has ended: it is dropped. The GIL is not let go: who calls this
    has seen that the connection is open and not paused, and would deliver after close() has
    returned.
    """
    cdef uint64_t progress = relaxed_load64(&worker.progress) + 1
    callbacks_check(engine)
    compat_forget_async_exception(worker.python_thread)
    if counts:
        relaxed_store64(&worker.progress, progress)
    if expect_seldom(not flush_is_last(worker)):
        flush_take_over(worker)
    return 0


cdef inline int callbacks_leave(Engine engine, worker_t *worker) except -1:
    """A callback of the handler's came back. Not after what one calls itself, as `send` does.

    Flush in time what this iteration has corked; calls of streams and frame builders count as well.
    Each callback runs in a context of its own (PEP 567), which is made anew only where the last one
    has set a variable.
    """
    cdef uint64_t progress
    callbacks_check(engine)
    compat_forget_async_exception(worker.python_thread)
    if expect_seldom(compat_context_size(<PyObject *>(<_Callbacks>worker.callbacks).context) != 0):
        (<_Callbacks>worker.callbacks).renew_context()
    if worker.corked_count:
        progress = relaxed_load64(&worker.progress)
        if expect_seldom(progress - worker.cork_seen >= CORK_LOOK):
            worker.cork_seen = progress
            if (
                worker.corked_count >= CORK_CALLBACKS or
                kernel_now() - worker.iteration_began > CORK_NS
            ):
                callbacks_flush_corked(engine, worker)
    return 0


cdef inline void callbacks_flush_corked(Engine engine, worker_t *worker) noexcept:
    """In eager mode with the GIL held: it went to one of those that wait for it, and this iteration
    would end in the middle.
    """
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


cdef inline int callbacks_caught(Engine engine, worker_t *worker) except -1:
    """User code has raised. As `callbacks_check`; and what somebody has set in this worker for that
    code is
    dropped: the next line of Python is ours, and would raise it. `worker`: NULL in a thread of the
    user's.
    """
    callbacks_check(engine)
    if worker != NULL:
        compat_forget_async_exception(worker.python_thread)
    return 0


cdef inline int callbacks_failed(
    Engine engine, worker_t *worker, HydrogenSocket socket, name, error,
) except -1:
    """User code raised: end the connection with a HandlerError, then log it. Raises SystemExit in a
    forked child.
    """
    callbacks_caught(engine, worker)
    if callbacks_asks_for_end(socket, error):
        shown = closed_by(error)
        callbacks_check(engine)  # its attributes may be the user's
        if shown is not None:
            ending_with(engine, socket, False, CAUSE_LOCAL_CLOSED, shown)
            return 0
    shown = callbacks_error(engine, worker, error)
    callbacks_check(engine)  # its __str__ is user code
    ending_with(engine, socket, False, CAUSE_HANDLER_ERROR, shown)
    callbacks_log(engine, socket, name, error)
    return 0


cdef inline bint callbacks_asks_for_end(HydrogenSocket socket, error):
    """Whether `error` is a way to close a WebSocket."""
    return issubclass(type(error), Close) and socket._connection.opening != NULL


cdef inline object callbacks_error(Engine engine, worker_t *worker, error):
    """The HandlerError for `error`. What somebody sets in this worker meanwhile is dropped,
    once.
    """
    try:
        return errors.handler_error(error)
    except BaseException:
        callbacks_caught(engine, worker)
    return errors.handler_error(error)


cdef inline void callbacks_log(
    Engine engine, HydrogenSocket socket, name, error, stream=None,
) noexcept:
    """Write down what user code raised; whatever comes of it is of no consequence for the
    connection. `stream`: whose method `name` is. The two are joined here, for that takes memory.
    """
    try:
        if stream is not None:
            name = f"{class_name(stream)}.{name}"
        engine._log.callback_error(name, error, socket)
    except BaseException:
        pass


cdef inline int callbacks_message(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, data,
) except -1:
    """`on_data_received`. A message is complete: whatever of another one is there has a deadline of
    its own.
    """
    callbacks_begin(engine, worker)
    relaxed_add64(&worker.io.counters.messages_received, 1)
    if relaxed_load64(&connection.deadline):
        relaxed_store64(&connection.deadline, 0)
    connection.flags &= ~<uint32_t>FLAG_LATE  # what made it late has come
    on_data = <PyObject *>(<_Callbacks>worker.callbacks).on_data
    if expect_seldom(not compat_call(on_data, <PyObject *>socket, <PyObject *>data)):
        callbacks_raised(engine, worker, socket, (<_Callbacks>worker.callbacks).received)
    return callbacks_leave(engine, worker)


cdef inline int callbacks_raised(
    Engine engine, worker_t *worker, HydrogenSocket socket, name,
) except -1:
    """`callbacks_failed` with what was raised. By itself: to be ready to catch takes time even when
    nothing is raised.
    """
    try:
        compat_raise()
    except BaseException as error:
        callbacks_failed(engine, worker, socket, name, error)
    return 0


cdef inline int callbacks_invoke(
    Engine engine, worker_t *worker, HydrogenSocket socket, callback, name,
) except -1:
    """Run a callback that takes the socket alone."""
    callbacks_begin(engine, worker)
    try:
        callback(socket)
    except BaseException as error:
        callbacks_failed(engine, worker, socket, name, error)
    return callbacks_leave(engine, worker)


cdef inline int callbacks_call(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, callback,
    name,
) except -1:
    """The same, if it is overridden and the connection open."""
    if callback is None or atomic_load32(&connection.state) != STATE_OPEN:
        return 0
    return callbacks_invoke(engine, worker, socket, callback, name)


cdef inline int callbacks_connected(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Ready for use: messages may come and go. If it ends already nobody hears of it, now or in the
    end.

    The state is looked at once: from `ready` on `on_disconnected` is due, and others see the
    connection and may end it.
    """
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    # the header's, the handshake's: a frame that is begun has one of its own
    atomic_store64(&connection.deadline, 0)
    if atomic_load32(&connection.state) != STATE_OPEN:
        return 0
    atomic_store32(
        &connection.ready,
        READY_DEFLATES if connection.websocket != NULL and connection.websocket.reader.inflates
        else READY
    )
    if callbacks.on_connected is None:
        return 0
    return callbacks_invoke(engine, worker, socket, callbacks.on_connected, "on_connected")


cdef inline object callbacks_run(
    Engine engine, worker_t *worker, function, first=None, second=None, bint counts=True,
):
    """What `function` of the user's returns, or raises; who catches that calls `callbacks_caught`.

    Arguments are left out when they are None. In the child of a worker it raises SystemExit; that
    of a thread of the user's goes its own way, and who calls this there looks whether it is one.
    """
    if worker != NULL:
        callbacks_begin(engine, worker, counts)
    if second is not None:
        result = function(first, second)
    else:
        result = function() if first is None else function(first)
    if worker != NULL:
        callbacks_check(engine)
        compat_forget_async_exception(worker.python_thread)
    return result


cdef inline int callbacks_quietly(
    Engine engine, worker_t *worker, HydrogenSocket socket, callback, name, first, second,
    stream=None,
) except -1:
    """Run one of the last callbacks, if it is there: what it raises is only logged. `stream`: see
    `callbacks_log`.
    """
    if callback is None:
        return 0
    callbacks_begin(engine, worker)
    try:
        if second is None:
            callback(first)
        else:
            callback(first, second)
    except BaseException as error:
        callbacks_caught(engine, worker)
        errors.cut_traceback(error)
        if not callbacks_asks_for_end(socket, error):
            callbacks_log(engine, socket, name, error, stream)
    return callbacks_leave(engine, worker)


cdef inline void callbacks_computing(Engine engine, worker_t *worker, bint briefly) noexcept:
    """Around short records: OpenSSL lets go of the GIL for microseconds, and another worker may
    keep it for long.

    Who waits to have it back does not block in a handler; did it count as that, more and more
    workers would be woken, and wait for it. Unless it lasts (BRIEF_TICKS): user code may run in
    there, by the collector or in a class of the user's, and block. A handshake or a long message
    counts: OpenSSL takes a millisecond or more, in which others can work.
    """
    if worker != NULL:
        relaxed_store32(&worker.state, WORKER_BRIEF if briefly else WORKER_CALLBACK)
