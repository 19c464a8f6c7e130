"""The dispatch role: an iteration runs tasks and the callbacks of the connections that are ready."""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t, uint8_t

from hydrogen._c.atomic cimport atomic_load32, relaxed_add64
from hydrogen._c.buffer cimport block_bytes, block_length, block_t
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_BAD_FRAME, CAUSE_CHECKSUM_MISMATCH, CAUSE_FRAME_TOO_LARGE, CAUSE_OS_ERROR,
    CAUSE_TIMEOUT, CAUSE_TLS_ERROR, CORK_CALLBACKS, CORK_NS, DELIVER_MOST, FLAGS_ENDED,
    FLAG_FIRST, FLAG_LATE, FLAG_TLS_FAILED, READABLE, STATE_OPEN, TASK_DRAINED, TASK_TIMERS,
    TODO_CLOSE_NOTIFY, TODO_DELIVER, TODO_EOF, TODO_FINISH, TODO_LOW, TODO_OPEN, TODO_READ,
    TODO_WRITABLE,
)
from hydrogen._c.deadlines cimport deadlines_late
from hydrogen._c.framing cimport (
    FRAME_CHECKSUM, FRAME_COMPLETE, FRAME_OVERSIZE, FRAMING_PYTHON, frame_t, framing_next,
)
from hydrogen._c.input cimport input_tidy
from hydrogen._c.kernel cimport kernel_now, kernel_unread
from hydrogen._c.loop cimport loop_settle
from hydrogen._c.queues cimport queues_begin_iteration, queues_has_ready, queues_pop_ready
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._codec cimport payload_of
from hydrogen._core cimport Engine, HydrogenSocket, _Callbacks, errors
from hydrogen._engine.builders cimport builders_deliver
from hydrogen._engine.callbacks cimport (
    callbacks_begin, callbacks_begin_message, callbacks_call, callbacks_failed,
)
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.finishing cimport finishing_finish
from hydrogen._engine.opening cimport opening_look_at_first, opening_open
from hydrogen._engine.references cimport references_socket
from hydrogen._engine.streams cimport streams_read, streams_send
from hydrogen._engine.tls cimport tls_close_notify, tls_decrypt


cdef inline int dispatch_cause(int result) noexcept:
    """Why a connection ends whose input can never become a frame."""
    if result == FRAME_OVERSIZE:
        return CAUSE_FRAME_TOO_LARGE
    return CAUSE_CHECKSUM_MISMATCH if result == FRAME_CHECKSUM else CAUSE_BAD_FRAME


cdef inline void dispatch_iteration(Engine engine, worker_t *worker) noexcept:
    """One drain of the ready queue, at most as long as it was at the start."""
    cdef connection_t *connection
    cdef uint32_t notices = 0
    cdef uint32_t count = queues_begin_iteration(&engine._loop, &notices)
    relaxed_add64(&worker.io.counters.iterations, 1)
    if notices:
        dispatch_tasks(engine, worker, notices)
    while count and not engine._inert():
        connection = queues_pop_ready(&engine._loop)
        if connection == NULL:
            break
        count -= 1
        dispatch_serve(engine, worker, connection)


cdef inline void dispatch_tasks(Engine engine, worker_t *worker, uint32_t notices) noexcept:
    if notices & TASK_DRAINED:
        engine._drained.set()
    if notices & TASK_TIMERS:
        callbacks_begin(engine, worker)
        engine._timers.run_due(engine.set_alarm)


cdef inline void dispatch_serve(Engine engine, worker_t *worker, connection_t *connection) noexcept:
    """All that a connection needs of Python now. The calling worker owns it."""
    cdef uint32_t todo = connection.todo
    cdef HydrogenSocket socket
    connection.todo = 0
    socket = references_socket(engine, connection)
    if todo & TODO_FINISH:
        finishing_finish(engine, worker, connection, socket)
        return
    if todo & TODO_OPEN:
        opening_open(engine, worker, connection, socket)
    if todo & TODO_WRITABLE:
        streams_send(engine, socket, None)
    if todo & TODO_LOW:
        callbacks_call(engine, worker, connection, socket, (<_Callbacks>worker.callbacks).on_writable, "on_writable")
    if todo & TODO_READ:
        streams_read(engine, worker, connection, socket)
    if todo & TODO_DELIVER:
        dispatch_deliver(engine, worker, connection, socket)
    if todo & TODO_EOF and connection.flags & FLAG_TLS_FAILED:
        ending_with(engine, connection, socket, CAUSE_TLS_ERROR, (<object>connection.session).failure)
    elif todo & TODO_EOF:
        callbacks_call(engine, worker, connection, socket, (<_Callbacks>worker.callbacks).on_eof, "on_eof")
    if todo & TODO_CLOSE_NOTIFY:
        tls_close_notify(engine, worker, connection, socket)
    if connection.flags & FLAG_LATE:
        dispatch_judge_deadline(engine, connection, socket)
    if not engine._inert():
        loop_settle(&engine._loop, connection)


cdef inline void dispatch_judge_deadline(Engine engine, connection_t *connection, HydrogenSocket socket) noexcept:
    """A deadline had passed when this connection came here. Has it still, with all that was there? What came since, perhaps in a long callback, counts."""
    cdef int late
    connection.flags &= ~<uint32_t>FLAG_LATE
    if (
        atomic_load32(&connection.state) != STATE_OPEN or connection.mail & (READABLE | AGAIN) or connection.flags & FLAGS_ENDED or
        atomic_load32(&connection.pause) or kernel_unread(connection.poll_fd)
    ):
        return
    late = deadlines_late(&engine._loop.context, connection)
    if late:
        ending_ask(engine, socket, True, CAUSE_TIMEOUT, late)


cdef inline void dispatch_deliver(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
    """Give the complete messages of the input to the handler."""
    cdef int verdict = FRAME_COMPLETE
    try:
        if connection.flags & FLAG_FIRST:
            opening_look_at_first(engine, connection)
        if connection.ciphertext != NULL:
            tls_decrypt(engine, worker, connection, socket)
        if connection.framing.kind == FRAMING_PYTHON:
            builders_deliver(engine, worker, connection, socket)
        else:
            verdict = dispatch_frames(engine, worker, connection, socket)
    except errors.ProtocolError as error:
        ending_with(engine, connection, socket, CAUSE_BAD_FRAME, error)
    except BaseException as error:
        callbacks_failed(engine, connection, socket, "on_data_received", error)
    if verdict > FRAME_COMPLETE:
        ending_ask(engine, socket, False, dispatch_cause(verdict), 0)
    if not input_tidy(&worker.io, connection):
        ending_ask(engine, socket, True, CAUSE_OS_ERROR, ENOMEM)


cdef inline int dispatch_frames(Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket) except -1:
    """The built-in framings. Returns the verdict of the last look at the input."""
    cdef block_t *input
    cdef frame_t frame
    cdef int budget = DELIVER_MOST
    cdef int verdict = FRAME_COMPLETE
    cdef uint64_t until = worker.iteration_began + CORK_NS
    cdef const uint8_t *at
    on_data = (<_Callbacks>worker.callbacks).on_data
    while atomic_load32(&connection.state) == STATE_OPEN and not atomic_load32(&connection.pause):
        input = connection.input
        if input == NULL:
            break
        at = <const uint8_t *>block_bytes(input) + input.start
        verdict = framing_next(connection.framing, at, block_length(input), &connection.scanned, &frame)
        if verdict != FRAME_COMPLETE:
            break
        if budget == 0:
            if queues_has_ready(&engine._loop) or kernel_now() >= until:
                connection.mail |= AGAIN
                break
            budget = CORK_CALLBACKS
        budget -= 1
        data = payload_of(&frame, at)
        input.start += frame.size
        callbacks_begin_message(engine, worker, connection)
        on_data(socket, data)
    return verdict
