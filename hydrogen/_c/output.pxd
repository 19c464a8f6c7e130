"""The output of a connection, which any thread may use: send, flush, drain.

1. One flusher at a time (`flushing`): it takes the queue, sends without the lock, and puts back the
   rest; others append and leave. The end of a connection waits until nobody is flushing, so that no
   fd is closed under a send(2).
2. The lock of a connection is a leaf: no system call, no Python object, no allocation and no other
   lock inside. `state` is written under it and may be read without.
3. `blocked` is written and tested under the lock; an OUT edge that comes while somebody is flushing
   sets `edge`, and the flusher tries again instead of blocking. So the edge between EAGAIN and
   `blocked` is not lost.
4. `stalled` says whether output waits for the peer. The monitor thread, which counts write_timeout
   from there, looks at what the kernel holds besides: the peer takes something also when the kernel
   gets too little room for an edge.
5. With TLS the queue holds records, which are numbered: what was encrypted must be queued, in that
   order, even if the end was asked for meanwhile.
"""

from libc.errno cimport EAGAIN
from libc.stdint cimport int16_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from hydrogen._c.atomic cimport (
    atomic_add64, atomic_store32, relaxed_load32, relaxed_load64, relaxed_store32,
)
from hydrogen._c.buffer cimport (
    SEND_PARTS, block_bytes, block_free, block_length, block_new, block_t, pool_t, queue_clear,
    queue_consume, queue_parts, queue_push, queue_put_back, queue_t, queue_take,
)
from hydrogen._c.constants cimport (
    ABORT, CAUSE_OS_ERROR, CAUSE_SLOW_CONSUMER, DRAIN_DONE, DRAIN_EDGE, DRAIN_GONE, DRAIN_WAIT,
    EDGE_ADAPTER, EDGE_CAME, EDGE_FLUSH, EDGE_NOTHING, FLUSHED, FLUSH_BUDGET, FLUSH_DRAINED,
    FLUSH_OWNER, LOW, NOT_CORKED, PAUSE_WATERMARK, POST_OWNER, POST_STALE, SEND_CORKED, SEND_NOW,
    SEND_NO_MEMORY, SEND_QUEUED, SEND_REFUSED, SEND_UNFIT, STALL_NEW, STALL_NONE, STATE_ABORTING,
    STATE_CLOSING, STATE_OPEN,
)
from hydrogen._c.counters cimport counters_add_to
from hydrogen._c.expect cimport expect_seldom
from hydrogen._c.framing cimport FRAME_COMPLETE, framing_encode, framing_overhead, framing_t
from hydrogen._c.kernel cimport iovec, kernel_send
from hydrogen._c.lock cimport cond_broadcast, cond_wait_until, lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation, mailbox_pause, mailbox_resume, mailbox_token
from hydrogen._c.poller cimport poller_change
from hydrogen._c.structs cimport connection_t, context_t, io_t


cdef inline uint32_t output_drained_locked(connection_t *connection) noexcept nogil:
    return FLUSH_DRAINED if connection.drainers else 0


cdef inline void output_account_locked(context_t *context, connection_t *connection) noexcept nogil:
    """Only output that waits for the peer is counted, or for who is in a user's stream: the counter
    is shared, and nothing shared is touched for a message that goes straight out.
    """
    cdef bint waits = connection.blocked or (connection.adapter != NULL and connection.flushing)
    cdef size_t counted = (
        connection.pending - min(connection.writing, connection.pending) if waits else 0
    )
    if counted != connection.pending_counted:
        atomic_add64(&context.buffered, counted - connection.pending_counted)
        connection.pending_counted = counted


cdef inline void output_abort_locked(context_t *context, connection_t *connection) noexcept nogil:
    """The end at once, from now on. What is counted of the input goes when the owner comes."""
    connection.leaving = relaxed_load64(&connection.input_counted)
    if connection.leaving:
        atomic_add64(&context.leaving, connection.leaving)
    atomic_store32(&connection.state, STATE_ABORTING)


cdef inline uint32_t output_drop_locked(
    context_t *context, connection_t *connection, queue_t *dropped,
) noexcept nogil:
    """What is queued goes to `dropped`, to be freed without the lock: there may be much of it."""
    dropped[0] = queue_take(&connection.output)
    connection.pending = 0
    output_account_locked(context, connection)
    return output_drained_locked(connection)


cdef inline void output_wake_drainers(context_t *context) noexcept nogil:
    lock_take(&context.drain_lock)
    cond_broadcast(&context.drain_cond)
    lock_give(&context.drain_lock)


cdef inline void output_pause_locked(context_t *context, connection_t *connection) noexcept nogil:
    """Above the high watermark: do not read."""
    if mailbox_pause(connection, mailbox_generation(connection), PAUSE_WATERMARK):
        atomic_add64(&context.reading_pauses, 1)


cdef inline int output_send(
    context_t *context, pool_t *pool, connection_t *connection, uint32_t generation,
    const framing_t *framing, const char *payload, size_t n,
    size_t counted, uint32_t last_state, size_t most, uint32_t worker, uint32_t *bits,
) noexcept nogil:
    """Frame a message and append it to the output. Any thread; `pool` is NULL and `worker`
    NOT_CORKED for one that is no worker in its turn.

    `last_state` is STATE_OPEN, or STATE_CLOSING for records of TLS, see 5.

    `most`: the message is refused, and the connection ended, where so much is pending; UNLIMITED
    where that was looked at before, or does not count.

    `counted`: bytes that are in `pending` already for what this is made of: `waiting_count`.

    A short message is joined to the block before it, when there is one. Past `corked_most` nothing
    stays corked: what is then still pending waits for the peer, not for us.
    """
    cdef size_t size = n + framing_overhead(framing, n)
    cdef block_t *block = block_new(pool, size)
    bits[0] = 0
    if expect_seldom(block == NULL):
        return SEND_NO_MEMORY
    if expect_seldom(framing_encode(framing, payload, n, block_bytes(block)) != FRAME_COMPLETE):
        block_free(pool, block)
        return SEND_UNFIT
    block.end = size
    return output_append(
        context, pool, connection, generation, block, counted, last_state, most, worker, bits
    )


cdef inline int output_append(
    context_t *context, pool_t *pool, connection_t *connection, uint32_t generation, block_t *block,
    size_t counted, uint32_t last_state, size_t most,
    uint32_t worker, uint32_t *bits,
) noexcept nogil:
    """Append a block to the output, which takes it over; see `output_send`."""
    cdef size_t size = block_length(block)
    cdef block_t *last
    cdef queue_t dropped
    cdef int result = SEND_REFUSED
    bits[0] = 0
    dropped.first = dropped.last = NULL
    lock_take(&connection.lock)
    if expect_seldom(
        mailbox_generation(connection) != generation or
        not STATE_OPEN <= connection.state <= last_state
    ):
        pass
    elif expect_seldom(connection.pending >= most):
        connection.cause = CAUSE_SLOW_CONSUMER
        output_abort_locked(context, connection)
        bits[0] = ABORT | output_drop_locked(context, connection, &dropped)
    else:
        connection.pending += size - counted
        last = connection.output.last
        if last != NULL and block.shared == NULL and last.capacity - last.end >= size:
            memcpy(block_bytes(last) + last.end, block_bytes(block), size)
            last.end += size
        else:
            queue_push(&connection.output, block)
            block = NULL
        result = SEND_QUEUED
        if (
            expect_seldom(connection.blocked or connection.flushing) and
            connection.pending > context.high
        ):
            # Also while another thread is sending: it may be kept from that, and more input would
            # mean more output.
            output_pause_locked(context, connection)
        if connection.blocked:
            output_account_locked(context, connection)
        elif not connection.flushing and (worker == NOT_CORKED or connection.corked_by != worker):
            connection.corked_by = <uint16_t>worker
            result = SEND_CORKED if worker != NOT_CORKED else SEND_NOW
        if (
            not connection.blocked and not connection.flushing and
            connection.pending > context.corked_most
        ):
            result = SEND_NOW
    lock_give(&connection.lock)
    if block != NULL:
        block_free(pool, block)
    if expect_seldom(dropped.first != NULL):
        queue_clear(&dropped, NULL)
    return result


cdef inline uint32_t output_settle_locked(
    context_t *context, connection_t *connection, queue_t *dropped,
) noexcept nogil:
    """What follows from the output as it is now, with nobody flushing; see `output_drop_locked`.

    Returns bits to post, with FLUSH_DRAINED and FLUSH_OWNER.
    """
    cdef uint32_t bits = 0
    cdef int resumed
    if connection.state == STATE_ABORTING:
        return ABORT | output_drop_locked(context, connection, dropped)
    output_account_locked(context, connection)
    if not connection.blocked and relaxed_load32(&connection.stalled):
        atomic_store32(&connection.stalled, STALL_NONE)
    if (
        connection.state == STATE_CLOSING and connection.output.first == NULL and
        not connection.blocked
    ):
        bits = FLUSHED
    if connection.pending < context.low:
        bits |= output_drained_locked(connection)
        # Under the lock: who appends meanwhile would else find the pause standing, and add none.
        resumed = mailbox_resume(connection, mailbox_generation(connection), PAUSE_WATERMARK)
        if resumed != POST_STALE:
            atomic_add64(&context.reading_resumes, 1)
            bits |= LOW | (FLUSH_OWNER if resumed == POST_OWNER else 0)
    elif connection.pending > context.high:
        # although the kernel was just given as much as it, or the budget, takes
        output_pause_locked(context, connection)
    return bits


cdef inline bint output_block_locked(connection_t *connection, bint moved) noexcept nogil:
    """The kernel takes no more: wait for an edge. False when one came meanwhile: try again. By the
    flusher.
    """
    connection.asked_out = connection.unix_domain
    if connection.edge:
        return False
    connection.blocked = True
    if moved or not relaxed_load32(&connection.stalled):
        atomic_store32(&connection.stalled, STALL_NEW)
    return True


cdef inline uint32_t output_flush(
    context_t *context, io_t *io, connection_t *connection, uint32_t generation,
) noexcept nogil:
    """Send what is queued until there is nothing, the kernel takes no more, or the budget is used
    up.

    In the last case it is as if the kernel took no more, and epoll_ctl(2) is asked to look at the
    socket anew: if there is room an edge comes at once, and whoever polls goes on. So the kernel
    queues the connections that have more to flush. Any thread. Returns bits to post, FLUSH_DRAINED,
    FLUSH_OWNER.
    """
    cdef iovec parts[SEND_PARTS]
    cdef queue_t taken, dropped
    cdef int64_t sent
    cdef size_t budget = FLUSH_BUDGET
    cdef uint32_t bits = 0
    cdef bint moved = False
    lock_take(&connection.lock)
    if mailbox_generation(connection) != generation:
        lock_give(&connection.lock)
        return 0
    connection.corked_by = NOT_CORKED
    if connection.flushing or connection.blocked or connection.output.first == NULL:
        lock_give(&connection.lock)
        return 0
    connection.flushing = True
    if connection.asked_out:
        connection.asked_out = False
        lock_give(&connection.lock)
        poller_change(&context.poller, connection.poll_fd, mailbox_token(connection), False)
        lock_take(&connection.lock)
    while connection.output.first != NULL:
        if budget == 0:
            connection.edge = False
            lock_give(&connection.lock)
            poller_change(&context.poller, connection.poll_fd, mailbox_token(connection), True)
            lock_take(&connection.lock)
            if connection.state == STATE_ABORTING:
                break
            budget = FLUSH_BUDGET
            sent = -EAGAIN
            if output_block_locked(connection, True):
                break
            continue
        taken = queue_take(&connection.output)
        connection.edge = False
        lock_give(&connection.lock)
        sent = kernel_send(connection.poll_fd, parts, queue_parts(&taken, parts))
        if sent > 0:
            queue_consume(&taken, <size_t>sent, &io.pool if io.scratch != NULL else NULL)
            budget -= min(budget, <size_t>sent)
            moved = True
            relaxed_store32(&connection.active, 1)
            counters_add_to(io, &io.counters.bytes_sent, <uint64_t>sent)
        elif sent == -EAGAIN and connection.unix_domain:
            poller_change(&context.poller, connection.poll_fd, mailbox_token(connection), True)
        lock_take(&connection.lock)
        queue_put_back(&connection.output, &taken)
        if connection.state == STATE_ABORTING:
            break
        if sent > 0:
            connection.pending -= <size_t>sent
        elif sent != -EAGAIN:
            if connection.state == STATE_OPEN:
                connection.cause = CAUSE_OS_ERROR
                # A reset is reported once; when the reader has had it, send(2) only says EPIPE.
                connection.code = connection.code or <int16_t>-sent
            output_abort_locked(context, connection)
            break
        elif output_block_locked(connection, moved):
            break
    connection.flushing = False
    dropped.first = dropped.last = NULL
    bits = output_settle_locked(context, connection, &dropped)
    lock_give(&connection.lock)
    queue_clear(&dropped, NULL)
    return bits


cdef inline int output_unblock(
    context_t *context, connection_t *connection, uint32_t generation, bint alone,
) noexcept nogil:
    """An OUT edge came: what it means for this connection.

    `alone`: without IN. Else it may be no edge: epoll reports whatever is so when something is new,
    see epoll(7).
    """
    cdef int meaning = EDGE_NOTHING
    lock_take(&connection.lock)
    if mailbox_generation(connection) != generation:
        pass
    elif connection.adapter != NULL and (connection.flushing or connection.blocked):
        connection.edge |= EDGE_CAME
        if alone:
            # The peer has taken something. Output waits for us from now on, however long it takes
            # until somebody is in the stream again.
            relaxed_store32(&connection.active, 1)
            atomic_store32(&connection.stalled, STALL_NONE)
        if not connection.flushing:
            meaning = EDGE_ADAPTER
    elif connection.flushing:
        connection.edge |= EDGE_CAME
    elif connection.blocked:
        connection.blocked = False
        output_account_locked(context, connection)
        meaning = EDGE_FLUSH
    lock_give(&connection.lock)
    return meaning


cdef inline int output_wait_drained(
    context_t *context, connection_t *connection, uint32_t generation, uint64_t until,
) noexcept nogil:
    """One wait of drain(), at most until the monotonic time `until`.

    DRAIN_EDGE: a user's stream has to go on. The owner is told of it too, but he may be the one who
    waits.
    """
    cdef int state = DRAIN_WAIT
    lock_take(&context.drain_lock)
    lock_take(&connection.lock)
    if mailbox_generation(connection) != generation or connection.state >= STATE_ABORTING:
        state = DRAIN_GONE
    elif connection.pending < context.low:
        state = DRAIN_DONE
    elif connection.adapter != NULL and connection.edge and not connection.flushing:
        state = DRAIN_EDGE
    else:
        connection.drainers += 1
    lock_give(&connection.lock)
    if state == DRAIN_WAIT:
        cond_wait_until(&context.drain_cond, &context.drain_lock, until)
        lock_take(&connection.lock)
        if mailbox_generation(connection) == generation:
            connection.drainers -= 1
        lock_give(&connection.lock)
    lock_give(&context.drain_lock)
    return state
