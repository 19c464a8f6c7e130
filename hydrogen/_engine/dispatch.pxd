"""The dispatch role: an iteration runs tasks, and the callbacks of the connections that are
ready.
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_load32, relaxed_add64
from hydrogen._c.buffer cimport block_bytes, block_length, block_t
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_BAD_FRAME, CAUSE_CHECKSUM_MISMATCH, CAUSE_FRAME_TOO_LARGE, CAUSE_HANDLER_ERROR,
    CAUSE_OS_ERROR, CAUSE_TLS_ERROR, CORK_CALLBACKS, CORK_NS, DELIVER_MOST, FLAG_COMPLETE,
    FLAG_EOF_TOLD, FLAG_FIRST, FLAG_STOP, FLAG_TLS_FAILED, STATE_OPEN, TASK_DRAINED, TASK_OUTPUT,
    TASK_RETRY_NS, TASK_TIMERS, TODO_CLOSE, TODO_CLOSE_NOTIFY, TODO_DELIVER, TODO_EOF, TODO_FINISH,
    TODO_LOW, TODO_OPEN, TODO_READ, TODO_RECEIVED,
)
from hydrogen._c.framing cimport (
    FRAME_CHECKSUM, FRAME_COMPLETE, FRAME_INCOMPLETE, FRAME_OVERSIZE, FRAMING_PYTHON, frame_t,
    framing_next,
)
from hydrogen._c.input cimport input_tidy
from hydrogen._c.kernel cimport kernel_now
from hydrogen._c.loop cimport loop_settle
from hydrogen._c.mailbox cimport mailbox_generation, mailbox_pauses
from hydrogen._c.monitor cimport monitor_set_alarm
from hydrogen._c.queues cimport (
    queues_begin_iteration, queues_end, queues_has_ready, queues_leave_output, queues_outputs,
    queues_pop_output, queues_pop_ready,
)
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._codec cimport payload_of, refusal
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks, errors, second_header
from hydrogen._engine.builders cimport builders_deliver
from hydrogen._engine.callbacks cimport (
    callbacks_begin, callbacks_call, callbacks_leave, callbacks_message,
)
from hydrogen._engine.compat cimport compat_forget_async_exception
from hydrogen._engine.control cimport control_close, control_deliver, control_ping_due
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.finishing cimport finishing_callbacks, finishing_release
from hydrogen._engine.opening cimport opening_has_second_header, opening_open
from hydrogen._engine.references cimport references_current, references_held, references_socket
from hydrogen._engine.sending cimport sending_ordered
from hydrogen._engine.sessions cimport sessions_work
from hydrogen._engine.streams cimport streams_read, streams_send, streams_told
from hydrogen._engine.tls cimport tls_close_notify, tls_decrypt, tls_told


cdef inline void dispatch_iteration(Engine engine, worker_t *worker) noexcept:
    """One drain of the ready queue, at most as long as it was at the start."""
    cdef connection_t *connection
    cdef uint32_t tasks = 0
    cdef uint32_t count = queues_begin_iteration(&engine._loop, &tasks)
    compat_forget_async_exception(worker.python_thread)  # it came while this worker waited
    relaxed_add64(&worker.io.counters.iterations, 1)
    if tasks:
        dispatch_tasks(engine, worker, tasks)
    while count and not engine._inert():
        connection = queues_pop_ready(&engine._loop)
        if connection == NULL:
            break
        count -= 1
        dispatch_serve(engine, worker, connection)


cdef inline void dispatch_tasks(Engine engine, worker_t *worker, uint32_t tasks) noexcept:
    """What is to be done in Python for the loop as a whole. Without memory, say, it is asked for
    again.
    """
    if not dispatch_tasks_done(engine, worker, tasks) and not engine._inert():
        monitor_set_alarm(&engine._loop, kernel_now() + TASK_RETRY_NS)


cdef inline bint dispatch_tasks_done(Engine engine, worker_t *worker, uint32_t tasks) noexcept:
    """The same; whether all of it was done."""
    cdef bint is_done = False
    try:
        if tasks & TASK_DRAINED:
            engine._drained.set()
        if tasks & TASK_TIMERS:
            callbacks_begin(engine, worker)
            engine._timers.run_due(engine.set_alarm)
            callbacks_leave(engine, worker)
        if tasks & (TASK_OUTPUT | TASK_TIMERS):
            dispatch_outputs(engine, worker)
        is_done = True
    except BaseException:
        pass
    return is_done


cdef inline int dispatch_outputs(Engine engine, worker_t *worker) except -1:
    """Go on with output that was left to a worker, of as many connections as there are now: the
    next turn may be long in coming.
    """
    cdef uint32_t count = queues_outputs(&engine._loop)
    while count:
        count -= 1
        dispatch_output(engine, worker)
    return 0


cdef inline int dispatch_output(Engine engine, worker_t *worker) except -1:
    """The same for one connection. The calling worker does not own it: that is not needed."""
    cdef connection_t *connection = queues_pop_output(&engine._loop)
    cdef HydrogenSocket socket
    cdef bint is_done = False
    if connection == NULL:
        return 0
    try:
        socket = references_current(engine, connection)
        session = references_held(engine, socket, &connection.session)
        ordered = sending_ordered(engine, socket)
        if ordered is not None:
            sessions_work(engine, worker, socket, ordered, False)
        if session is not None:
            control_ping_due(engine, socket)
            sessions_work(engine, worker, socket, session, False)
        elif ordered is None:
            streams_send(engine, socket, None, NULL, True)
        is_done = True
    finally:
        if not is_done and not engine._inert():
            queues_leave_output(&engine._loop, connection, False, False)
    callbacks_leave(engine, worker)
    return 0


cdef inline void dispatch_serve(Engine engine, worker_t *worker, connection_t *connection) noexcept:
    """All that a connection needs of Python now. The calling worker owns it.

    The outermost guard: whatever happens inside, the connection is settled or released here, unless
    this is a forked child, where it is the parent's.
    """
    cdef uint32_t todo = connection.todo
    connection.todo = 0
    if not dispatch_guarded(engine, worker, connection, todo) and not engine._inert():
        queues_end(
            &engine._loop, connection, mailbox_generation(connection), True, CAUSE_OS_ERROR, ENOMEM,
            NULL, False)
    if engine._inert():
        return
    if todo & TODO_FINISH:
        finishing_release(engine, worker, connection)
    else:
        loop_settle(&engine._loop, connection)
    dispatch_leave(engine, worker)


cdef inline bint dispatch_guarded(
    Engine engine, worker_t *worker, connection_t *connection, uint32_t todo,
) noexcept:
    """Whether it came to an end. Without memory even catching an exception may fail: then this is
    0.
    """
    try:
        if todo & TODO_FINISH:
            finishing_callbacks(engine, worker, connection)
        else:
            dispatch_do(engine, worker, connection, todo)
    except BaseException as error:
        dispatch_failed(engine, connection, error)
    return True


cdef inline void dispatch_leave(Engine engine, worker_t *worker) noexcept:
    """After what ran besides callbacks: `__del__` of what was dropped, a stream."""
    try:
        callbacks_leave(engine, worker)
    except BaseException:
        pass


cdef inline void dispatch_failed(Engine engine, connection_t *connection, error) noexcept:
    """Something was raised that nobody expects: want of memory, most likely. The connection is
    aborted.
    """
    cdef bint memory = issubclass(type(error), MemoryError)
    if engine._inert():
        return
    queues_end(
        &engine._loop, connection, mailbox_generation(connection), True,
        CAUSE_OS_ERROR if memory else CAUSE_HANDLER_ERROR, ENOMEM if memory else 0, NULL, False)
    try:
        engine._log.lost(connection.id, error)
    except BaseException:
        pass


cdef inline int dispatch_do(
    Engine engine, worker_t *worker, connection_t *connection, uint32_t todo,
) except -1:
    """What is in `todo`, in the order in which it happened."""
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    cdef HydrogenSocket socket = references_socket(engine, connection)
    if todo & TODO_OPEN:
        opening_open(engine, worker, connection, socket)
    if todo & TODO_RECEIVED and connection.adapter != NULL:
        streams_told(connection)
    elif todo & TODO_RECEIVED and connection.session != NULL:
        tls_told(engine, worker, connection, socket)
    elif todo & TODO_RECEIVED:
        connection.mail |= AGAIN  # another thread has sealed the messages that are in order
    if todo & TODO_LOW:
        callbacks_call(engine, worker, connection, socket, callbacks.on_writable, "on_writable")
    if todo & (TODO_READ | TODO_DELIVER):
        if connection.adapter != NULL:
            streams_read(engine, worker, connection, socket)
        else:
            dispatch_deliver(engine, worker, connection, socket)
    if todo & TODO_EOF and connection.flags & FLAG_TLS_FAILED:
        ending_with(engine, socket, False, CAUSE_TLS_ERROR, (<object>connection.session).failure)
    elif todo & TODO_EOF and mailbox_pauses(connection):  # since that step: told after the resume
        connection.flags &= ~<uint32_t>FLAG_EOF_TOLD
    elif todo & TODO_EOF:
        callbacks_call(engine, worker, connection, socket, callbacks.on_eof, "on_eof")
    if todo & TODO_CLOSE:
        control_close(engine, worker, connection, socket)
    if todo & TODO_CLOSE_NOTIFY:
        tls_close_notify(engine, worker, connection, socket)
    return 0


cdef inline int dispatch_deliver(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Give the complete messages of the input to the handler."""
    cdef int result = FRAME_COMPLETE
    if connection.flags & FLAG_FIRST and opening_has_second_header(connection):
        ending_with(engine, socket, False, CAUSE_BAD_FRAME, second_header())
        return 0
    if connection.ciphertext != NULL:
        tls_decrypt(engine, worker, connection, socket)
    connection.flags &= ~<uint32_t>FLAG_COMPLETE
    if connection.framing.kind == FRAMING_PYTHON:
        builders_deliver(engine, worker, connection, socket)
    elif connection.framing.kind > FRAMING_PYTHON:
        control_deliver(engine, worker, connection, socket)
    else:
        result = dispatch_frames(engine, worker, connection, socket)
        if connection.flags & FLAG_STOP and mailbox_pauses(connection):
            result = dispatch_held(connection)
    if result > FRAME_COMPLETE:
        dispatch_refuse(engine, connection, socket, result)
    if not input_tidy(&worker.io, connection):
        ending_ask(engine, socket, True, CAUSE_OS_ERROR, ENOMEM)
    return 0


cdef inline int dispatch_held(connection_t *connection) noexcept:
    """What a pause holds back while the server stops; returns the result of the look at it."""
    cdef block_t *input = connection.input
    cdef frame_t frame
    cdef int result = FRAME_INCOMPLETE
    if input != NULL:
        result = framing_next(
            connection.framing, <const uint8_t *>block_bytes(input) + input.start,
            block_length(input), &connection.scanned, &frame)
    if result == FRAME_COMPLETE:
        connection.flags |= FLAG_COMPLETE
    return result


cdef inline int dispatch_refuse(
    Engine engine, connection_t *connection, HydrogenSocket socket, int result,
) except -1:
    """The input can never become a frame."""
    cdef block_t *input = connection.input
    cdef int cause = CAUSE_BAD_FRAME
    if result == FRAME_OVERSIZE:
        cause = CAUSE_FRAME_TOO_LARGE
    elif result == FRAME_CHECKSUM:
        cause = CAUSE_CHECKSUM_MISMATCH
    ending_with(
        engine, socket, False, cause,
        refusal(
            connection.framing, <const uint8_t *>block_bytes(input) + input.start,
            block_length(input)))
    return 0


cdef inline int dispatch_frames(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """The built-in framings. Returns the result of the last look at the input."""
    cdef block_t *input
    cdef frame_t frame
    cdef int budget = DELIVER_MOST
    cdef int result = FRAME_COMPLETE
    cdef uint64_t until = worker.iteration_began + CORK_NS
    cdef const uint8_t *at
    while atomic_load32(&connection.state) == STATE_OPEN and not mailbox_pauses(connection):
        input = connection.input
        if input == NULL:
            break
        at = <const uint8_t *>block_bytes(input) + input.start
        result = framing_next(
            connection.framing, at, block_length(input), &connection.scanned, &frame
        )
        if result != FRAME_COMPLETE:
            break
        if budget == 0:
            if queues_has_ready(&engine._loop) or kernel_now() >= until:
                connection.mail |= AGAIN
                break
            budget = CORK_CALLBACKS
        budget -= 1
        data = payload_of(&frame, at)
        input.start += frame.size
        callbacks_message(engine, worker, connection, socket, data)
    return result
