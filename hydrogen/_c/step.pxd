"""One step of a connection by its owner: all that can be done for it without Python.

First what was posted becomes facts that the owner keeps (`flags`, `todo`), whatever the state: no
state can drop a bit. Then the state says what is done about them. A fact stays until it is acted
on.

| bit | the fact |
|---|---|
| READABLE | FLAG_READABLE: an edge came, and the socket was not read to EAGAIN since |
| RDHUP, URGENT | the same, and FLAG_STICKY: a short read proves nothing |
| HANGUP | both, and FLAG_HANGUP |
| STOP | FLAG_STOP |
| NEW | TODO_OPEN |
| RECEIVED | TODO_RECEIVED: another thread has received, or compressed the last, for the owner |
| LOW | TODO_LOW, if there is an `on_writable`, and on_connected came before |
| DEADLINE | the clock is looked at; FLAG_LATE when it is late |
| RESUME | the pause does not count for deadlines; what waits is FLAG_READABLE, or in `input` |
| AGAIN, FLUSHED, ABORT | none: they ask for a step; the output queue and `state` say what is due |

| state | what is done |
|---|---|
| aborting | the end, as soon as nobody is flushing. All facts go: abort() delivers nothing |
| new | on_new_connection first (dispatch); the facts wait |
| closing | `step_closing`. Input is discarded; LOW is dropped: no on_writable after close() |
| header | a worker reads it (dispatch) when it is readable, or late. STOP ends it: nothing came |
| open | `step_open` |
| paused | `step_paused`: neither read nor delivered. A reset ends every pause |
| gone | no step comes: the callbacks run, and the slot's generation makes what is posted stale |
"""

from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport (
    atomic_add64, atomic_load32, atomic_store64, relaxed_load32, relaxed_store32,
)
from hydrogen._c.closing cimport (
    closing_discard, closing_end, closing_finish, closing_flushed, closing_go_on,
    closing_input_ended, closing_linger, closing_too_late,
)
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_OS_ERROR, CAUSE_SERVER_STOPPED, DEADLINE, FLAGS_ENDED, FLAG_COMPLETE, FLAG_EOF,
    FLAG_EOF_TOLD, FLAGS_CLOSING, FLAG_HANDSHAKE, FLAG_HANGUP, FLAG_HEADER, FLAG_LATE,
    FLAG_LINGERING, FLAG_READABLE, FLAG_RECEIVING, FLAG_STICKY, FLAG_STOP, HANGUP, LOW, NEW,
    NEXT_DISPATCH, NEXT_LET_GO, NEXT_STEP, PAUSE_USER, PAUSE_WATERMARK, RDHUP, READABLE, RECEIVED,
    RESUME, STATE_ABORTING, STATE_CLOSING, STOP, TIMEOUT_IDLE, TODO_DELIVER, TODO_LOW, TODO_OPEN,
    TODO_READ, TODO_RECEIVED, URGENT,
)
from hydrogen._c.deadlines cimport deadlines_is_idle, deadlines_passed
from hydrogen._c.input cimport input_broken, input_deliverable, input_drop, input_paused, input_read
from hydrogen._c.kernel cimport kernel_now, kernel_reset_error
from hydrogen._c.mailbox cimport (
    mailbox_end_pauses, mailbox_generation, mailbox_pauses, mailbox_take,
)
from hydrogen._c.messages cimport messages_reply
from hydrogen._c.structs cimport connection_t, context_t, io_t


cdef inline void step_absorb(
    context_t *context, connection_t *connection, uint32_t bits,
) noexcept nogil:
    """Make facts of what was posted: the first table above."""
    if bits & (READABLE | RDHUP | HANGUP | URGENT):
        connection.flags |= FLAG_READABLE
    if bits & (RDHUP | HANGUP | URGENT):
        connection.flags |= FLAG_STICKY
    if bits & HANGUP:
        connection.flags |= FLAG_HANGUP
    if bits & STOP:
        connection.flags |= FLAG_STOP
    if bits & NEW:
        connection.todo |= TODO_OPEN
    if bits & RECEIVED:
        connection.todo |= TODO_RECEIVED
    if bits & LOW and context.has_on_writable and relaxed_load32(&connection.ready):
        connection.todo |= TODO_LOW
    if bits & RESUME and not connection.flags & (FLAG_HANDSHAKE | FLAGS_CLOSING):
        atomic_store64(&connection.deadline, 0)
        relaxed_store32(&connection.active, 1)


cdef inline int step_next(connection_t *connection) noexcept nogil:
    """Nothing is left that a step could do."""
    if connection.todo:
        return NEXT_DISPATCH
    return NEXT_STEP if connection.mail else NEXT_LET_GO


cdef inline int step_stop(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """A graceful stop, and all that was received is answered: the end."""
    return closing_go_on(context, io, connection, closing_end(
        context, connection, mailbox_generation(connection), False, CAUSE_SERVER_STOPPED, 0, NULL))


cdef inline int step_broken(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Reading has failed, and nothing is delivered any more: the end at once."""
    return closing_go_on(context, io, connection, closing_end(
        context, connection, mailbox_generation(connection), True, CAUSE_OS_ERROR,
        connection.end_code, NULL))


cdef inline bint step_discards(
    context_t *context, io_t *io, connection_t *connection,
) noexcept nogil:
    """While the server stops what was read is finished, and what arrives is thrown away. True when
    reading fails.

    Else a peer that sends before it reads would not come to take the last replies.
    """
    cdef bint ended
    if (
        not connection.flags & FLAG_READABLE or connection.flags & FLAG_EOF or
        connection.adapter != NULL
    ):
        return False
    if connection.websocket != NULL and (
        connection.ciphertext != NULL or connection.flags & FLAG_RECEIVING
    ):
        return False  # what was read comes first
    ended = closing_discard(context, io, connection)
    if connection.ciphertext != NULL:  # which is looked through for a CLOSE
        connection.todo |= TODO_DELIVER
    if ended:
        connection.flags |= FLAG_EOF_TOLD
    return ended and connection.end_code != 0


cdef inline int step_closing(
    context_t *context, io_t *io, connection_t *connection, uint32_t bits,
) noexcept nogil:
    """The end was asked for, gracefully. What arrives is thrown away, be there output pending or
    not.
    """
    cdef int then
    connection.todo &= ~<uint32_t>TODO_LOW
    if connection.flags & FLAG_LINGERING:
        return closing_linger(context, io, connection)
    if connection.adapter != NULL:
        then = closing_flushed(context, io, connection)
        if then != NEXT_LET_GO:
            return then
    if connection.flags & FLAG_READABLE and not connection.flags & FLAG_EOF:
        if connection.adapter != NULL:
            connection.todo |= TODO_READ
        elif closing_discard(context, io, connection) and connection.end_code:
            return step_broken(context, io, connection)
    if (
        connection.websocket != NULL and connection.ciphertext != NULL and
        not connection.flags & FLAG_RECEIVING
    ):
        connection.todo |= TODO_DELIVER  # there may be a CLOSE in it
    if connection.todo:
        connection.mail |= AGAIN  # afterwards the rest of this
        return NEXT_DISPATCH
    then = closing_flushed(context, io, connection)
    if then != NEXT_LET_GO:
        return then
    if (
        bits & DEADLINE and not connection.flags & FLAG_LINGERING and
        deadlines_is_idle(context, connection, kernel_now())
    ):
        return closing_too_late(context, io, connection, TIMEOUT_IDLE)
    return step_next(connection)


cdef inline bint step_reset(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """A reset, or HANGUP and no read will tell: because of a pause, or since the end of input was
    met already.

    HANGUP comes also without a reset: then it is forgotten. After one no pause holds any more; what
    a pause of the user's held back is dropped, for nobody could resume in time. True: act on the
    end of input.
    """
    cdef int code = connection.end_code or kernel_reset_error(
        connection.poll_fd, connection.adapter != NULL,
    )
    cdef uint32_t pauses = mailbox_pauses(connection)
    if not code:
        connection.flags &= ~<uint32_t>FLAG_HANGUP
        return False
    if pauses & PAUSE_USER:
        input_drop(context, io, connection)
    if pauses & PAUSE_WATERMARK:
        atomic_add64(&context.reading_resumes, 1)
    input_broken(connection, code)
    connection.flags &= ~<uint32_t>FLAG_EOF_TOLD
    mailbox_end_pauses(connection)
    return True


cdef inline int step_paused(
    context_t *context, io_t *io, connection_t *connection, int late,
) noexcept nogil:
    """Open, and neither read nor delivered to. Complete messages wait for the resume, also while
    the server stops: then a worker looks whether there is one (FLAG_COMPLETE).
    """
    if connection.todo:
        return NEXT_DISPATCH
    if connection.flags & FLAG_STOP and not connection.flags & (FLAG_RECEIVING | FLAG_COMPLETE):
        if not input_deliverable(connection):
            return step_stop(context, io, connection)
        if connection.adapter == NULL:
            connection.todo |= TODO_DELIVER
            return NEXT_DISPATCH
    if late == TIMEOUT_IDLE:
        return closing_too_late(context, io, connection, late)
    return step_next(connection)


cdef inline int step_receiving(
    context_t *context, io_t *io, connection_t *connection, int late,
) noexcept nogil:
    """Open, and another thread receives for the owner: what it has read comes first, with
    RECEIVED.
    """
    if connection.todo:
        return NEXT_DISPATCH
    if late and connection.adapter != NULL and deadlines_passed(context, connection) == late:
        # who is in a user's stream may stay there
        return closing_too_late(context, io, connection, late)
    return step_next(connection)


cdef inline int step_open(
    context_t *context, io_t *io, connection_t *connection, int late,
) noexcept nogil:
    """Read, see whether there is something for a worker, act on the end of input, on STOP, on
    deadlines.
    """
    cdef bint stops = connection.flags & FLAG_STOP != 0
    cdef bint too_late = late and connection.grace == 0
    cdef int then
    if stops and connection.flags & FLAG_HANDSHAKE:
        return step_stop(context, io, connection)
    if connection.flags & FLAG_RECEIVING:
        return step_receiving(context, io, connection, late)
    if (
        connection.flags & FLAG_READABLE and not connection.flags & FLAGS_ENDED and not stops and
        not too_late
    ):
        if relaxed_load32(&context.crowded) or input_deliverable(connection):
            # who sends faster than it is delivered waits, in the kernel's buffers
            connection.mail |= AGAIN
        elif connection.adapter != NULL:
            connection.todo |= TODO_READ
        else:
            input_read(context, io, connection)
            if (
                connection.websocket != NULL and connection.websocket.replies != NULL and
                connection.session == NULL
            ):
                messages_reply(context, io, connection)
    elif connection.flags & FLAG_HANGUP and connection.flags & FLAG_EOF_TOLD:
        step_reset(context, io, connection)
    if input_deliverable(connection):
        connection.todo |= TODO_DELIVER
    elif connection.flags & FLAGS_ENDED and not connection.flags & FLAG_EOF_TOLD:
        then = closing_input_ended(context, io, connection)
        if then != NEXT_LET_GO:
            return then
    if connection.todo:
        return NEXT_DISPATCH
    if stops:
        return step_stop(context, io, connection)
    if (
        late and
        (too_late or not connection.flags & FLAG_READABLE or connection.flags & FLAGS_ENDED)
    ):
        if deadlines_passed(context, connection) == late:
            return closing_too_late(context, io, connection, late)
    return step_next(connection)


cdef inline int step_header(
    context_t *context, io_t *io, connection_t *connection, int late,
) noexcept nogil:
    """The header of the PROXY protocol is awaited: a worker reads it, and not a byte more."""
    if connection.flags & FLAG_STOP:
        return step_stop(context, io, connection)
    if connection.flags & FLAG_READABLE:
        connection.todo |= TODO_OPEN
    elif late:
        return closing_too_late(context, io, connection, late)
    return step_next(connection)


cdef inline int step_run(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """One step. What is left is in `todo` and `mail`; what is done next with the connection is
    returned.
    """
    cdef uint32_t bits = mailbox_take(connection)
    cdef uint32_t state = atomic_load32(&connection.state)
    cdef int late = 0
    step_absorb(context, connection, bits)
    if state == STATE_ABORTING:
        return closing_finish(context, io, connection)
    if connection.todo & TODO_OPEN:
        return NEXT_DISPATCH
    if state == STATE_CLOSING:
        return step_closing(context, io, connection, bits)
    if bits & DEADLINE or connection.flags & FLAG_LATE:
        late = deadlines_passed(context, connection)
    if connection.flags & FLAG_HEADER:
        return step_header(context, io, connection, late)
    if connection.flags & FLAG_STOP and step_discards(context, io, connection):
        return step_broken(context, io, connection)
    if input_paused(context, connection):
        if (
            not (connection.flags & FLAG_HANGUP or connection.end_code) or
            not step_reset(context, io, connection)
        ):
            return step_paused(context, io, connection, late)
    return step_open(context, io, connection, late)
