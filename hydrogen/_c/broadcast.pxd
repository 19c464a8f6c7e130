"""One message to all connections, its bytes shared."""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.buffer cimport block_of_shared, block_t, pool_t, shared_t
from hydrogen._c.constants cimport (
    NOT_CORKED, READY_DEFLATES, SEND_NOTHING, SEND_NOW, SEND_REFUSED, STATE_CLOSING, STATE_OPEN,
    STATE_VACANT,
)
from hydrogen._c.counters cimport counters_count
from hydrogen._c.flush cimport flush_one
from hydrogen._c.framing cimport FRAMING_PYTHON
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_at, mailbox_generation
from hydrogen._c.output cimport output_append
from hydrogen._c.queues cimport queues_check_memory, queues_post
from hydrogen._c.structs cimport connection_t, io_t, loop_t

# What became of a broadcast.
ctypedef struct broadcast_t:
    uint64_t sent, dropped
    uint32_t others  # connections that the caller has to send to


cdef inline void broadcast_send(
    loop_t *loop, io_t *io, bint wake, shared_t *shared, const uint32_t *skip, uint64_t *others,
    uint32_t used, broadcast_t *report,
) noexcept nogil:
    """Send `shared` to each open connection below index `used` that is framed as `context.framing`
    says, and flush it.

    But not to one whose generation `skip` names. The tokens of open connections that are framed
    otherwise go to `others`. An empty message has nothing to be sent without framing, and is taken.
    """
    cdef connection_t *connection
    cdef block_t *block
    cdef uint32_t generation, bits, index
    cdef int result
    cdef pool_t *pool = &io.pool if io.scratch != NULL else NULL
    cdef bint wanted, other
    report.sent = report.dropped = 0
    report.others = 0
    for index in range(used):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:
            continue
        lock_take(&connection.lock)
        generation = mailbox_generation(connection)
        wanted = (
            connection.state in (STATE_OPEN, STATE_CLOSING) and
            atomic_load32(&connection.ready) and skip[index] != generation
        )
        other = (
            connection.session != NULL or connection.adapter != NULL or
            connection.builder != NULL or atomic_load32(&connection.ready) == READY_DEFLATES
        )
        lock_give(&connection.lock)
        if not wanted:
            continue
        if other or loop.context.framing.kind == FRAMING_PYTHON:
            others[report.others] = <uint64_t>generation << 32 | index
            report.others += 1
            continue
        bits = 0
        result = SEND_REFUSED
        if shared.length == 0:
            result = (
                SEND_NOTHING if atomic_load32(&connection.state) == STATE_OPEN else SEND_REFUSED
            )
        else:
            block = block_of_shared(pool, shared)
            if block != NULL:
                result = output_append(
                    &loop.context, pool, connection, generation, block, 0, STATE_OPEN,
                    loop.context.max_write_buffer, NOT_CORKED, &bits)
        if result == SEND_NOW:
            flush_one(loop, io, connection, generation, wake)
        elif bits:
            queues_post(loop, connection, generation, bits, wake)
        queues_check_memory(loop)
        if result == SEND_REFUSED:
            report.dropped += 1
            counters_count(io, &io.counters.messages_refused)
        else:
            report.sent += 1
            counters_count(io, &io.counters.messages_sent)
