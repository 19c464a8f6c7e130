"""Who may call a user's stream, and what it says of its output.

One thread at a time is in a stream: `flushing` of the connection says so, and the end of the
connection waits until nobody is. Nobody else waits: who comes leaves what is to be done in the
stream's adapter, and EDGE_ASKED; who is in the stream looks again before he leaves. An OUT edge
sets EDGE_CAME, for who waits in drain(). To enter does not clear it: who enters may do
something else, and not write.
"""

from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_store32, relaxed_load32, relaxed_store32
from hydrogen._c.buffer cimport queue_t
from hydrogen._c.constants cimport (
    ADAPTER_BUSY, ADAPTER_ENTERED, ADAPTER_GONE, EDGE_ASKED, EDGE_CAME, STALL_NEW, STATE_ABORTING,
)
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._c.output cimport output_account_locked, output_drained_locked, output_settle_locked
from hydrogen._c.structs cimport connection_t, context_t


cdef inline int adapter_enter(
    context_t *context, connection_t *connection, uint32_t generation,
) noexcept nogil:
    """Be the one who calls the user's stream, as `flushing` says. Nobody waits for that.

    ADAPTER_BUSY: somebody is in it, and looks again before he leaves; ADAPTER_GONE: too late. Any
    thread.
    """
    cdef int result = ADAPTER_GONE
    lock_take(&connection.lock)
    if mailbox_generation(connection) == generation and connection.state < STATE_ABORTING:
        if connection.flushing:
            connection.edge |= EDGE_ASKED
            output_account_locked(context, connection)
            result = ADAPTER_BUSY
        else:
            connection.flushing = True
            result = ADAPTER_ENTERED
    lock_give(&connection.lock)
    return result


cdef inline void adapter_writes(
    context_t *context, connection_t *connection, size_t n,
) noexcept nogil:
    """So many bytes are on their way into the stream: they wait for nobody. By who is in it."""
    lock_take(&connection.lock)
    connection.writing = n
    output_account_locked(context, connection)
    lock_give(&connection.lock)


cdef inline bint adapter_leave(
    context_t *context, connection_t *connection, bint hands_over, uint32_t *bits,
) noexcept nogil:
    """Come out of the user's stream; False when there is something to do there still: an edge came,
    or a message.

    `hands_over`: leave that to a worker, as if the kernel took no more. `bits` are to be posted,
    with FLUSH_DRAINED and FLUSH_OWNER.
    """
    cdef bint leaves
    cdef queue_t dropped  # nothing: what waits for a stream is in its adapter
    bits[0] = 0
    lock_take(&connection.lock)
    connection.writing = 0
    leaves = hands_over or not connection.edge or connection.state >= STATE_ABORTING
    connection.edge = False
    if leaves:
        connection.flushing = False
        if hands_over and connection.state < STATE_ABORTING:
            connection.blocked, connection.edge = True, EDGE_CAME
            bits[0] = output_drained_locked(connection)
        else:
            bits[0] = output_settle_locked(context, connection, &dropped)
    lock_give(&connection.lock)
    return leaves


cdef inline uint32_t adapter_sent(
    context_t *context, connection_t *connection, bint blocked, bint moved, size_t freed,
) noexcept nogil:
    """A user's stream has written: `freed` bytes are pending no more. By who is in it.

    `moved`: the kernel took something of what was blocked; then the time of the peer begins anew.

    Returns bits to post, FLUSH_DRAINED, FLUSH_OWNER.
    """
    cdef uint32_t bits
    cdef queue_t dropped  # nothing
    relaxed_store32(&connection.active, 1)
    lock_take(&connection.lock)
    connection.writing = 0
    connection.blocked = blocked
    if blocked and (moved or not relaxed_load32(&connection.stalled)):
        atomic_store32(&connection.stalled, STALL_NEW)
    connection.pending -= min(freed, connection.pending)
    bits = output_settle_locked(context, connection, &dropped)
    lock_give(&connection.lock)
    return bits
