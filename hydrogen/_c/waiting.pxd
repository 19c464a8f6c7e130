"""Messages that wait to be encrypted, or for a user's stream: they are pending, and count as
that.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.buffer cimport queue_t
from hydrogen._c.constants cimport STATE_ABORTING, STATE_OPEN, YIELD_NS
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._c.output cimport output_account_locked, output_pause_locked, output_settle_locked
from hydrogen._c.structs cimport connection_t, context_t


cdef inline bint waiting_count(
    context_t *context, connection_t *connection, uint32_t generation, size_t n,
    uint32_t last_state,
) noexcept nogil:
    """Count as pending a message that waits to be encrypted, or for a user's stream; False when no
    more are taken, for the state is beyond `last_state`. Any thread.
    """
    cdef bint taken
    lock_take(&connection.lock)
    taken = (
        mailbox_generation(connection) == generation and
        STATE_OPEN <= connection.state <= last_state
    )
    if taken:
        connection.pending += n
        if (connection.blocked or connection.flushing) and connection.pending > context.high:
            output_pause_locked(context, connection)
        output_account_locked(context, connection)
    lock_give(&connection.lock)
    return taken


cdef inline uint32_t waiting_uncount(
    context_t *context, connection_t *connection, uint32_t generation, size_t n,
) noexcept nogil:
    """Undo `waiting_count`: the message is sent no more. Any thread. Returns bits to post,
    FLUSH_DRAINED, FLUSH_OWNER.
    """
    cdef uint32_t bits = 0
    cdef queue_t dropped  # nothing: it is not aborted
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and connection.state < STATE_ABORTING:
        connection.pending -= min(n, connection.pending)
        if not connection.flushing:  # else the flusher sees to it
            bits = output_settle_locked(context, connection, &dropped)
    lock_give(&connection.lock)
    return bits


cdef inline uint64_t waiting_rest(context_t *context, connection_t *connection) noexcept nogil:
    """Nanoseconds for which a thread that has left a message to who encrypts, or is in the user's
    stream, lets that one get on: the longer the more waits for him.

    He needs the GIL again and again. Those who send without rest would keep it, and the peer be
    taken for a slow one. Below a 64th of `max_write_buffer` nobody waits.
    """
    cdef uint64_t pending
    lock_take(&connection.lock)
    pending = min(connection.pending, context.max_write_buffer)
    lock_give(&connection.lock)
    if pending <= context.max_write_buffer // 64:
        return 0
    return <uint64_t>(YIELD_NS * (<double>pending / context.max_write_buffer))
