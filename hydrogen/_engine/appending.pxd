"""What is to be sent is appended to the output of a connection, then flushed or corked, as the
policy says.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport (
    NOT_CORKED, SEND_CORKED, SEND_HELD_MOST, SEND_NOTHING, SEND_NOW, SEND_NO_MEMORY, SEND_QUEUED,
    SEND_REFUSED, SEND_UNFIT, STATE_OPEN, UNLIMITED,
)
from hydrogen._c.expect cimport expect_seldom
from hydrogen._c.flush cimport flush_cork, flush_one, flush_take_over
from hydrogen._c.framing cimport FRAMING_RAW, framing_t
from hydrogen._c.kernel cimport HYDROGEN_GIL
from hydrogen._c.output cimport output_send
from hydrogen._c.queues cimport queues_check_memory, queues_post
from hydrogen._c.structs cimport connection_t, io_t, loop_t, worker_t
from hydrogen._c.worker cimport worker_is_eager
from hydrogen._codec cimport unfit
from hydrogen._core cimport Engine, HydrogenSocket
from hydrogen._engine.callbacks cimport callbacks_flush_corked


cdef inline int appending_framed(
    Engine engine, worker_t *worker, HydrogenSocket socket, const framing_t *framing,
    const char *data, size_t n,
    uint32_t last_state, size_t counted, size_t most,
) except -1:
    """Frame and queue; then flush, or cork, as the policy says. SEND_REFUSED, SEND_NOTHING, or
    another value: it was queued. `most`: see `output_send`.
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
        framing, data, n, counted, last_state, most,
        worker.index if cork else NOT_CORKED, &bits)
    if result != SEND_QUEUED:
        appending_go_on(engine, worker, socket, result, n, bits)
    queues_check_memory(loop)
    return result


cdef inline int appending_bytes(
    Engine engine, worker_t *worker, HydrogenSocket socket, const framing_t *framing, bytes data,
    uint32_t last_state, size_t counted=0, bint limited=True,
) except -1:
    """The same of bytes. `limited`: whether it ends the connection where too much is pending; what
    comes out of a session never does.
    """
    return appending_framed(
        engine, worker, socket, framing, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
        last_state, counted,
        engine._loop.context.max_write_buffer if limited and last_state == STATE_OPEN else
        <size_t>UNLIMITED)


cdef inline int appending_go_on(
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
