"""One step of a connection by its owner: all that can be done for it without Python."""

from libc.errno cimport ECONNRESET
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport (
    atomic_load32, atomic_store32, atomic_store64, relaxed_load32, relaxed_store32,
)
from hydrogen._c.closing cimport (
    closing_finish, closing_flushed, closing_input_ended, closing_linger, closing_too_late,
)
from hydrogen._c.constants cimport (
    DEADLINE, FLAGS_ENDED, FLAG_EOF_TOLD, FLAG_HANDSHAKE, FLAG_HEADER, FLAG_HUNG, FLAG_LATE,
    FLAG_LINGERING, FLAG_STICKY, FLUSHED, HANGUP, LOW, NEW, NEXT_DISPATCH, NEXT_LET_GO,
    NEXT_STEP, PAUSE_USER, RDHUP, READABLE, RESUME, STATE_ABORTING, STATE_CLOSING, TIMEOUT_IDLE,
    TODO_DELIVER, TODO_LOW, TODO_OPEN, TODO_READ, TODO_WRITABLE, URGENT, WRITABLE,
)
from hydrogen._c.deadlines cimport deadlines_is_idle, deadlines_late
from hydrogen._c.input cimport input_broken, input_deliverable, input_drop, input_paused, input_read
from hydrogen._c.kernel cimport kernel_now, kernel_socket_error
from hydrogen._c.mailbox cimport mailbox_take
from hydrogen._c.structs cimport connection_t, context_t, io_t


cdef inline int step_run(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Do all that can be done without Python for a connection that the caller owns; what is left is in `todo` and `mail`, and in the verdict."""
    cdef uint32_t bits = mailbox_take(connection)
    cdef uint32_t state = atomic_load32(&connection.state)
    cdef int verdict
    cdef int late = 0
    connection.flags &= ~<uint32_t>FLAG_LATE
    if bits & (RDHUP | HANGUP | URGENT):
        connection.flags |= FLAG_STICKY
    if bits & HANGUP:
        connection.flags |= FLAG_HUNG
        if relaxed_load32(&connection.pause) & PAUSE_USER and not connection.flags & FLAG_EOF_TOLD:
            # Nothing may be delivered, also of what was read with the end behind it, and nobody could resume in time.
            input_drop(context, io, connection)
            input_broken(connection, connection.end_code or kernel_socket_error(connection.poll_fd) or ECONNRESET)
        atomic_store32(&connection.pause, 0)
    if state == STATE_ABORTING:
        return closing_finish(context, connection)
    if bits & NEW or connection.todo & TODO_OPEN:
        connection.todo |= TODO_OPEN
        connection.mail |= bits & ~<uint32_t>NEW
        return NEXT_DISPATCH
    if state == STATE_CLOSING:
        if connection.flags & FLAG_LINGERING:
            return closing_linger(context, io, connection, bits)
        if bits & FLUSHED:
            return closing_flushed(context, io, connection)
        if bits & DEADLINE and deadlines_is_idle(context, connection, kernel_now()):
            return closing_too_late(context, connection, TIMEOUT_IDLE)
        if not bits & WRITABLE:
            return NEXT_LET_GO
    elif bits & DEADLINE:
        late = deadlines_late(context, connection)
        if late:
            connection.flags |= FLAG_LATE
    if connection.flags & FLAG_HEADER:
        if bits & (READABLE | RDHUP | HANGUP | URGENT) or late:
            connection.todo |= TODO_OPEN
            return NEXT_DISPATCH
        return NEXT_STEP if connection.mail else NEXT_LET_GO
    if bits & WRITABLE:
        connection.todo |= TODO_WRITABLE
    if bits & LOW and context.has_on_writable:
        connection.todo |= TODO_LOW
    if bits & RESUME and not connection.flags & FLAG_HANDSHAKE:
        # The time of the pause does not count.
        atomic_store64(&connection.deadline, 0)
        relaxed_store32(&connection.active, 1)
    if not input_paused(context, connection):
        # When it is late, the edge of what came in time is perhaps on its way still.
        if (late or bits & (READABLE | RDHUP | HANGUP | URGENT | RESUME)) and not connection.flags & FLAGS_ENDED:
            if connection.adapter != NULL:
                connection.todo |= TODO_READ
            else:
                input_read(context, io, connection, bits & HANGUP != 0)
        elif bits & HANGUP and connection.flags & FLAG_EOF_TOLD and not connection.end_code:
            # The peer had ended its side already; now it is gone.
            input_broken(connection, kernel_socket_error(connection.poll_fd) or ECONNRESET)
            connection.flags &= ~<uint32_t>FLAG_EOF_TOLD
        if input_deliverable(connection):
            connection.todo |= TODO_DELIVER
        elif connection.flags & FLAGS_ENDED and not connection.flags & FLAG_EOF_TOLD:
            verdict = closing_input_ended(context, io, connection)
            if verdict != NEXT_LET_GO:
                return verdict
        elif late and not connection.mail and not connection.todo and deadlines_late(context, connection) == late:
            return closing_too_late(context, connection, late)
    elif late == TIMEOUT_IDLE and not connection.mail and not connection.todo:
        return closing_too_late(context, connection, late)
    if connection.todo:
        return NEXT_DISPATCH
    return NEXT_STEP if connection.mail else NEXT_LET_GO
