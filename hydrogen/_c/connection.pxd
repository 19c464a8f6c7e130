"""A connection: an actor whose mailbox is one word. What its owner does with it off the GIL, and its output, which anyone may use.

The mailbox is `slot.word`: generation in the high half, bits in the low half.

1. Post: a compare-and-swap that fails when the generation is another one. If OWNED was not set, the poster is now the owner, must process the
   connection or put it into a queue, and gets the bits in `mail`; otherwise the bits are set in the word and the present owner will see them.
2. Take: `fetch_and`, never a store. Let go: compare-and-swap from exactly (generation, OWNED) to (generation, 0); if that fails there are bits, and
   the connection goes to the back of a queue, still owned.
   So a posted bit is never lost: either the post comes before the letting go, which then fails, or after it, and the poster becomes the owner.
3. Only the owner touches the fields marked so, and runs callbacks. That alone gives order, one callback at a time, and a single place that closes.
4. The fields of the output side are written under `lock`, a leaf: no system call, no Python object, no allocation and no other lock inside. `state` is
   written under it and may be read without.
5. One flusher at a time (`flushing`): it takes the queue, sends without the lock, and puts back the rest; others append and leave. The end of a
   connection waits until there is no flusher, so that no fd is closed under a send(2).
6. `blocked` is written and tested under the lock; an OUT edge that comes while somebody is flushing sets `edge`, and the flusher tries again
   instead of blocking. So the edge between EAGAIN and `blocked` is not lost.

This room knows nothing of queues of connections and of threads: functions return what is to be posted (bits) or done next (a verdict).
"""

from libc.errno cimport EAGAIN, ECONNRESET, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from hydrogen._c.buffer cimport (
    BLOCK_POOLED, SEND_PARTS, block_bytes, block_exact, block_free, block_length, block_new, block_t, pool_t, queue_clear, queue_consume,
    queue_parts, queue_push, queue_put_back, queue_t,
)
from hydrogen._c.framing cimport FRAME_INCOMPLETE, frame_t, framing_encode, framing_next, framing_overhead, framing_t
from hydrogen._c.poller cimport poller_remove, poller_t, poller_want_out
from hydrogen._c.slab cimport SLOT_OWNED, slab_advance, slot_t
from hydrogen._c.sys cimport (
    RANK_OUTPUT, SHUT_RDWR, SHUT_WR, atomic_add32, atomic_add64, atomic_and32, atomic_and64, atomic_cas64, atomic_load32, atomic_load64,
    atomic_or32, atomic_store32, atomic_store64, cond_broadcast, cond_t, cond_wait_until, counter_bump, iovec, lock_give, lock_init, lock_t,
    lock_take, name_t, relaxed_load32, relaxed_load64, relaxed_store64, sys_close, sys_local_name, sys_now, sys_recv, sys_reset, sys_send,
    sys_shutdown, sys_socket_error,
)

# Mailbox bits. They are handled in the order ABORT, NEW, WRITABLE, READABLE, END, CLOSE.
cdef enum:
    OWNED = SLOT_OWNED
    READABLE = 1 << 1
    WRITABLE = 1 << 2   # output fell below the low watermark after it had been above the high one
    END = 1 << 3        # EPOLLRDHUP
    HANGUP = 1 << 4     # EPOLLHUP, EPOLLERR
    URGENT = 1 << 5     # EPOLLPRI
    CLOSE = 1 << 6      # closing, and all output is flushed
    ABORT = 1 << 7
    NEW = 1 << 8
    DEADLINE = 1 << 9   # a hint: the owner looks at the clock
    RESUME = 1 << 10
    FRAMES = 1 << 11    # input may be left: look again
    PORT_OUT = 1 << 12  # an OUT edge, for a user's stream
    WORD_BITS = 0xFFFFFFFE

cdef enum:
    POST_STALE
    POST_LEFT
    POST_OWNER

# Life of a slot; written under the connection's lock.
cdef enum:
    STATE_VACANT
    STATE_OPEN
    STATE_CLOSING   # flush, then the end; sends are refused
    STATE_ABORTING  # the end at once
    STATE_GONE      # off the poller; the last callbacks are due

# Why a connection ended: errors.Cause.
cdef enum:
    CAUSE_NONE
    CAUSE_PEER_CLOSED
    CAUSE_LOCAL_CLOSED
    CAUSE_SERVER_STOPPED
    CAUSE_SLOW_CONSUMER
    CAUSE_HANDLER_ERROR
    CAUSE_REJECT
    CAUSE_BAD_FRAME
    CAUSE_FRAME_TOO_LARGE
    CAUSE_INCOMPLETE_FRAME
    CAUSE_OS_ERROR
    CAUSES

# Causes of a pause of reading and delivering.
cdef enum:
    PAUSE_USER = 1
    PAUSE_WATERMARK = 2
    PAUSE_MEMORY = 4

# What the owner knows.
cdef enum:
    FLAG_EOF = 1        # recv(2) said 0, or `end_code`
    FLAG_EOF_TOLD = 2   # the end of input was acted on
    FLAG_STICKY = 4     # END, HANGUP or URGENT was seen: a short read proves nothing, read to EAGAIN
    FLAG_HUNG = 8       # HANGUP was seen
    FLAG_LINGERING = 16
    FLAG_POLLED = 32    # registered with the poller

# What the dispatch role has to do.
cdef enum:
    TODO_OPEN = 1
    TODO_WRITABLE = 2
    TODO_READ = 4      # a user's stream
    TODO_DELIVER = 8
    TODO_EOF = 16
    TODO_FINISH = 32
    TODO_PORT_OUT = 64

# What is to be done with a connection after a step of its owner.
cdef enum:
    VERDICT_LET_GO
    VERDICT_LINGER    # let go, and see that the timekeeper is awake
    VERDICT_AGAIN     # to the back of the service queue
    VERDICT_DISPATCH  # to the ready queue
    VERDICT_RELEASE   # nothing is left of it but the slot

cdef enum:
    SEND_REFUSED
    SEND_NO_MEMORY
    SEND_QUEUED  # somebody else will flush it
    SEND_CORKED  # the caller has to put it on its list of corked connections, or to flush it
    SEND_NOW     # the caller has to flush it now

# What an OUT edge means.
cdef enum:
    EDGE_NOTHING
    EDGE_FLUSH  # output was blocked: flush
    EDGE_PORT   # the owner has to tell a user's stream

# What connection_flush wants done beyond posting mailbox bits.
cdef enum:
    FLUSH_MORE = 1 << 30     # the budget is used up and output is left: flush again later
    FLUSH_DRAINED = 1 << 29  # somebody waits in drain()

cdef enum:
    DRAIN_WAIT
    DRAIN_DONE
    DRAIN_GONE

cdef enum:
    # nginx's lingering_timeout is 5 s; 2 s cover a retransmission of the tail (RFC 6298: 1 s at first).
    LINGER_NS = 2000000000
    # Reads that are thrown away in one turn.
    LINGER_READS = 16
    # One flush sends at most so much while others append, so that its thread comes back.
    FLUSH_BUDGET = 1 << 20
    NOT_CORKED = 0xFFFFFFFF

# Counters with one writer, or, `shared`, with any.
ctypedef struct counters_t:
    bint shared
    uint64_t bytes_received, bytes_sent
    uint64_t messages_received, messages_sent, messages_refused
    uint64_t polls, turns, gil_acquisitions, gil_wait_ns, handoffs
    uint64_t removed[CAUSES]

# What a thread brings to do I/O with.
ctypedef struct io_t:
    pool_t pool
    counters_t counters
    char *scratch        # what recv(2) reads into; NULL for threads that only flush
    size_t scratch_size

# What all connections of a loop share.
ctypedef struct context_t:
    poller_t poller
    # constant
    framing_t framing
    size_t low, high, max_write_buffer, read_budget
    uint64_t max_buffered
    bint unix_domain
    bint has_on_eof, has_on_writable
    bint has_end_callbacks
    # atomic
    uint64_t buffered    # blocked output and input left over, of all connections
    uint32_t full        # `buffered` is over `max_buffered`: nothing is read
    uint32_t lingering   # connections in FLAG_LINGERING
    # held while an fd number is used outside ownership, and while one is closed
    lock_t fd_lock
    # drain(): a waiter looks at `pending` and counts itself in `drainers` under the connection's lock, holding this one until it sleeps
    lock_t drain_lock
    cond_t drain_cond

ctypedef struct connection_t:
    slot_t slot
    # constant from acquire to release
    int fd          # the number that callbacks get
    int poll_fd     # what is polled, read and written: `fd`, or the duplicate of a user's stream's
    uint64_t id
    # owner only
    connection_t *next       # in the ready or the service queue
    uint32_t mail            # bits handed over with the ownership
    uint32_t todo
    uint32_t flags
    int end_code             # errno with which reading ended
    block_t *input           # bytes read and not delivered
    uint64_t input_counted   # of them, counted in context.buffered; atomic, the timekeeper reads it
    # atomic
    uint32_t ready           # on_new_connection has not refused it: others may see it, and on_disconnected is due; written by the owner
    uint32_t pause           # set of PAUSE_...; whoever clears the last one posts RESUME
    uint64_t linger_until    # 0: not lingering; written by the owner, read by the timekeeper
    # output side, under the lock
    lock_t lock
    uint32_t state
    uint8_t cause
    bint flushing
    bint blocked             # EAGAIN was seen and no OUT edge since
    bint edge                # an OUT edge came while flushing
    bint asked_out           # a Unix socket that is polled for OUT; changed only by the flusher
    int code                 # errno of CAUSE_OS_ERROR; while open: with which reading ended
    name_t peer              # constant from acquire to release; empty for Unix sockets
    name_t local             # written by the owner at the end, when the kernel is about to forget it
    uint32_t corked_by       # worker on whose list of corked connections it is
    uint32_t drainers
    queue_t output
    size_t pending           # bytes in `output` and with the flusher
    size_t pending_counted   # of them, counted in context.buffered
    # Python references, swapped under the lock, dropped without it
    void *user_data
    void *port               # stream.StreamPort of a user's stream; constant once set
    void *error              # the exception of CAUSE_HANDLER_ERROR and its like


# --- counters ------------------------------------------------------------------------------------------------------------------------------

cdef inline void io_count(io_t *io, uint64_t *counter) noexcept nogil:
    """Count one of `io.counters`."""
    if io.counters.shared:
        atomic_add64(counter, 1)
    else:
        counter_bump(counter, 1)


cdef inline void counters_clear(counters_t *counters) noexcept nogil:
    memset(counters, 0, sizeof(counters_t))


cdef inline void counters_add(counters_t *sums, counters_t *counters) noexcept nogil:
    cdef int k
    sums.bytes_received += relaxed_load64(&counters.bytes_received)
    sums.bytes_sent += relaxed_load64(&counters.bytes_sent)
    sums.messages_received += relaxed_load64(&counters.messages_received)
    sums.messages_sent += relaxed_load64(&counters.messages_sent)
    sums.messages_refused += relaxed_load64(&counters.messages_refused)
    sums.polls += relaxed_load64(&counters.polls)
    sums.turns += relaxed_load64(&counters.turns)
    sums.gil_acquisitions += relaxed_load64(&counters.gil_acquisitions)
    sums.gil_wait_ns += relaxed_load64(&counters.gil_wait_ns)
    sums.handoffs += relaxed_load64(&counters.handoffs)
    for k in range(CAUSES):
        sums.removed[k] += relaxed_load64(&counters.removed[k])


# --- the mailbox ---------------------------------------------------------------------------------------------------------------------------

cdef inline uint32_t connection_generation(connection_t *connection) noexcept nogil:
    return <uint32_t>(relaxed_load64(&connection.slot.word) >> 32)


cdef inline uint64_t connection_token(connection_t *connection) noexcept nogil:
    """Generation, loop (8 bits, 0 while there is one loop) and index (24 bits)."""
    return <uint64_t>connection_generation(connection) << 32 | connection.slot.index


cdef inline int connection_post(connection_t *connection, uint32_t generation, uint32_t bits) noexcept nogil:
    """Post `bits`. POST_OWNER: the caller owns the connection now and finds them in `mail`."""
    cdef uint64_t word = atomic_load64(&connection.slot.word)
    while True:
        if <uint32_t>(word >> 32) != generation:
            return POST_STALE
        if word & OWNED:
            if atomic_cas64(&connection.slot.word, &word, word | bits):
                return POST_LEFT
        elif atomic_cas64(&connection.slot.word, &word, word | OWNED):
            connection.mail |= bits
            return POST_OWNER


cdef inline uint32_t connection_take(connection_t *connection) noexcept nogil:
    """The bits that came since the ownership was taken, now the owner's."""
    cdef uint32_t bits = connection.mail
    connection.mail = 0
    if atomic_load64(&connection.slot.word) & WORD_BITS:
        bits |= <uint32_t>atomic_and64(&connection.slot.word, ~<uint64_t>WORD_BITS) & WORD_BITS
    return bits


cdef inline bint connection_let_go(connection_t *connection) noexcept nogil:
    """End the ownership; False when there are bits, and it goes on."""
    cdef uint64_t word = <uint64_t>connection_generation(connection) << 32 | OWNED
    return connection.mail == 0 and atomic_cas64(&connection.slot.word, &word, word & ~<uint64_t>OWNED)


# --- begin and end -------------------------------------------------------------------------------------------------------------------------

cdef inline void connection_open(connection_t *connection, int fd, uint64_t id, name_t *peer) noexcept nogil:
    """Begin a use of a slot that was just acquired. The caller owns it."""
    if connection.id == 0:
        lock_init(&connection.lock, RANK_OUTPUT)
    connection.fd = connection.poll_fd = fd
    connection.next = NULL
    connection.mail = connection.todo = connection.flags = 0
    connection.end_code = 0
    connection.peer = peer[0]
    connection.local.family = 0
    atomic_store32(&connection.pause, 0)
    atomic_store32(&connection.ready, 0)
    lock_take(&connection.lock)
    connection.id = id
    connection.cause = CAUSE_NONE
    connection.code = 0
    connection.flushing = connection.blocked = connection.edge = connection.asked_out = False
    connection.corked_by = NOT_CORKED
    connection.drainers = 0
    connection.pending = 0
    atomic_store32(&connection.state, STATE_OPEN)
    lock_give(&connection.lock)


cdef inline uint32_t connection_drained_locked(connection_t *connection) noexcept nogil:
    return FLUSH_DRAINED if connection.drainers else 0


cdef inline void connection_account_locked(context_t *context, connection_t *connection) noexcept nogil:
    """Only output that waits for the peer is counted: the counter is shared, and nothing shared is touched for a message that goes straight out."""
    cdef size_t counted = connection.pending if connection.blocked else 0
    if counted != connection.pending_counted:
        atomic_add64(&context.buffered, counted - connection.pending_counted)
        connection.pending_counted = counted


cdef inline uint32_t connection_drop_output_locked(context_t *context, connection_t *connection) noexcept nogil:
    queue_clear(&connection.output, NULL)
    connection.pending = 0
    connection_account_locked(context, connection)
    return connection_drained_locked(connection)


cdef inline uint32_t connection_end(context_t *context, connection_t *connection, uint32_t generation, bint abort, int cause, int code) noexcept nogil:
    """Ask for the end, in order or at once; the first cause stands. Any thread. Returns the bits to post, and FLUSH_DRAINED."""
    cdef uint32_t last = STATE_CLOSING if abort else STATE_OPEN
    cdef uint32_t bits = 0
    lock_take(&connection.lock)
    if connection_generation(connection) == generation and STATE_OPEN <= connection.state <= last:
        if connection.state == STATE_OPEN:
            connection.cause = <uint8_t>cause
            connection.code = code
        if abort:
            atomic_store32(&connection.state, STATE_ABORTING)
            bits = ABORT | connection_drop_output_locked(context, connection)
        else:
            atomic_store32(&connection.state, STATE_CLOSING)
            if connection.output.first == NULL and not connection.flushing and not connection.blocked:
                bits = CLOSE
    lock_give(&connection.lock)
    return bits


cdef inline void connection_wake_drainers(context_t *context) noexcept nogil:
    lock_take(&context.drain_lock)
    cond_broadcast(&context.drain_cond)
    lock_give(&context.drain_lock)


cdef inline int connection_finish(context_t *context, connection_t *connection) noexcept nogil:
    """Take the connection off the poller and end it both ways; the fd stays open, so that its number is nobody else's during the last callbacks."""
    cdef bint aborted, has_references, drainers
    lock_take(&connection.lock)
    if connection.flushing:
        lock_give(&connection.lock)
        return VERDICT_LET_GO  # connection_flush posts ABORT when it is done
    aborted = connection.state == STATE_ABORTING
    atomic_store32(&connection.state, STATE_GONE)
    connection.blocked = False
    drainers = connection_drop_output_locked(context, connection) != 0
    has_references = connection.user_data != NULL or connection.port != NULL or connection.error != NULL
    lock_give(&connection.lock)
    if drainers:
        connection_wake_drainers(context)
    if connection.flags & FLAG_POLLED:
        poller_remove(&context.poller, connection.poll_fd)
    if context.has_end_callbacks and not context.unix_domain:
        sys_local_name(connection.poll_fd, &connection.local)
    if aborted and not context.unix_domain:
        sys_reset(connection.poll_fd)
    else:
        sys_shutdown(connection.poll_fd, SHUT_RDWR)
    if relaxed_load64(&connection.linger_until):
        atomic_store64(&connection.linger_until, 0)
        atomic_add32(&context.lingering, <uint32_t>-1)
    if has_references or context.has_end_callbacks:
        connection.todo = TODO_FINISH
        return VERDICT_DISPATCH
    return VERDICT_RELEASE


cdef inline void connection_set_input_count(context_t *context, connection_t *connection) noexcept nogil:
    """Count what stays of the input when the owner lets go; nothing does, usually."""
    cdef size_t left = block_length(connection.input) if connection.input != NULL else 0
    cdef uint64_t counted = relaxed_load64(&connection.input_counted)
    if left != counted:
        atomic_add64(&context.buffered, left - counted)
        relaxed_store64(&connection.input_counted, left)


cdef inline void connection_drop_input(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    if connection.input != NULL:
        block_free(&io.pool, connection.input)
        connection.input = NULL
    connection_set_input_count(context, connection)


cdef inline void connection_release(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Close the fd and end the use of the slot; the slab gets it back from the caller. Python references are gone already."""
    connection_drop_input(context, io, connection)
    counter_bump(&io.counters.removed[connection.cause], 1)
    lock_take(&context.fd_lock)
    sys_close(connection.poll_fd)
    connection.fd = connection.poll_fd = -1
    lock_give(&context.fd_lock)
    lock_take(&connection.lock)
    atomic_store32(&connection.state, STATE_VACANT)
    slab_advance(&connection.slot)
    lock_give(&connection.lock)


# --- output --------------------------------------------------------------------------------------------------------------------------------

cdef inline int connection_send(
    context_t *context, pool_t *pool, connection_t *connection, uint32_t generation, const char *payload, size_t n, uint32_t worker, uint32_t *bits,
) noexcept nogil:
    """Frame a message and append it to the output. Any thread; `pool` is NULL and `worker` NOT_CORKED for one that is no worker in its turn.

    A short message is joined to the block before it, when there is one. Past the high watermark nothing stays corked: what is then still pending waits
    for the peer, not for us.
    """
    cdef size_t size = n + framing_overhead(&context.framing)
    cdef block_t *block = block_new(pool, size)
    cdef block_t *last
    cdef int result = SEND_REFUSED
    bits[0] = 0
    if block == NULL:
        return SEND_NO_MEMORY
    framing_encode(&context.framing, payload, n, block_bytes(block))
    block.end = size
    lock_take(&connection.lock)
    if connection_generation(connection) != generation or connection.state != STATE_OPEN:
        pass
    elif connection.pending >= context.max_write_buffer:
        connection.cause = CAUSE_SLOW_CONSUMER
        atomic_store32(&connection.state, STATE_ABORTING)
        bits[0] = ABORT | connection_drop_output_locked(context, connection)
    else:
        connection.pending += size
        last = connection.output.last
        if last != NULL and last.capacity - last.end >= size:
            memcpy(block_bytes(last) + last.end, block_bytes(block), size)
            last.end += size
        else:
            queue_push(&connection.output, block)
            block = NULL
        result = SEND_QUEUED
        if (connection.blocked or connection.flushing) and connection.pending > context.high:
            # Also while another thread is sending: it may be kept from that, and more input would mean more output.
            atomic_or32(&connection.pause, PAUSE_WATERMARK)
        if connection.blocked:
            connection_account_locked(context, connection)
        elif not connection.flushing and (worker == NOT_CORKED or connection.corked_by != worker):
            connection.corked_by = worker
            result = SEND_CORKED if worker != NOT_CORKED else SEND_NOW
        if not connection.blocked and not connection.flushing and connection.pending > context.high:
            result = SEND_NOW
    lock_give(&connection.lock)
    if block != NULL:
        block_free(pool, block)
    return result


cdef inline uint32_t connection_flushed_locked(context_t *context, connection_t *connection) noexcept nogil:
    """What follows from the output as it is now, with nobody flushing."""
    cdef uint32_t bits = 0
    if connection.state == STATE_ABORTING:
        return ABORT | connection_drop_output_locked(context, connection)
    connection_account_locked(context, connection)
    if connection.state == STATE_CLOSING and connection.output.first == NULL and not connection.blocked:
        bits = CLOSE
    if connection.pending < context.low:
        bits |= connection_drained_locked(connection)
        if relaxed_load32(&connection.pause) & PAUSE_WATERMARK:
            bits |= WRITABLE
            if atomic_and32(&connection.pause, ~<uint32_t>PAUSE_WATERMARK) == PAUSE_WATERMARK:
                bits |= RESUME
    elif connection.blocked and connection.pending > context.high:
        atomic_or32(&connection.pause, PAUSE_WATERMARK)
    return bits


cdef inline uint32_t connection_flush(context_t *context, io_t *io, connection_t *connection, uint32_t generation) noexcept nogil:
    """Send what is queued until there is nothing, or the kernel takes no more. Any thread. Returns bits to post, FLUSH_MORE, FLUSH_DRAINED."""
    cdef iovec parts[SEND_PARTS]
    cdef queue_t taken
    cdef int64_t sent
    cdef size_t budget = FLUSH_BUDGET
    cdef uint32_t bits = 0
    lock_take(&connection.lock)
    if connection_generation(connection) != generation:
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
        poller_want_out(&context.poller, connection.poll_fd, <uint64_t>generation << 32 | connection.slot.index, False)
        lock_take(&connection.lock)
    while connection.output.first != NULL:
        if budget == 0:
            bits = FLUSH_MORE
            break
        taken = connection.output
        connection.output.first = connection.output.last = NULL
        connection.edge = False
        lock_give(&connection.lock)
        sent = sys_send(connection.poll_fd, parts, queue_parts(&taken, parts))
        if sent > 0:
            queue_consume(&taken, <size_t>sent, &io.pool if io.scratch != NULL else NULL)
            budget -= min(budget, <size_t>sent)
            if io.counters.shared:
                atomic_add64(&io.counters.bytes_sent, <uint64_t>sent)
            else:
                counter_bump(&io.counters.bytes_sent, <uint64_t>sent)
        elif sent == -EAGAIN and context.unix_domain:
            poller_want_out(&context.poller, connection.poll_fd, <uint64_t>generation << 32 | connection.slot.index, True)
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
                connection.code = connection.code or <int>-sent
            atomic_store32(&connection.state, STATE_ABORTING)
            break
        else:
            connection.asked_out = context.unix_domain
            if not connection.edge:
                connection.blocked = True
                break
    connection.flushing = False
    bits |= connection_flushed_locked(context, connection)
    lock_give(&connection.lock)
    return bits


cdef inline int connection_unblock(context_t *context, connection_t *connection, uint32_t generation) noexcept nogil:
    """An OUT edge came: what it means for this connection."""
    cdef int meaning = EDGE_NOTHING
    lock_take(&connection.lock)
    if connection_generation(connection) != generation:
        pass
    elif connection.port != NULL:
        meaning = EDGE_PORT
    elif connection.blocked:
        connection.blocked = False
        connection_account_locked(context, connection)
        meaning = EDGE_FLUSH
    elif connection.flushing:
        connection.edge = True
    lock_give(&connection.lock)
    return meaning


cdef inline uint32_t connection_port_sent(
    context_t *context, connection_t *connection, uint32_t generation, bint blocked, size_t pending,
) noexcept nogil:
    """A user's stream has written: take over what it says of its output. Returns bits to post, FLUSH_DRAINED."""
    cdef uint32_t bits = 0
    lock_take(&connection.lock)
    if connection_generation(connection) == generation and connection.state < STATE_GONE:
        connection.blocked = blocked
        connection.pending = pending
        bits = connection_flushed_locked(context, connection)
    lock_give(&connection.lock)
    return bits


cdef inline int connection_wait_drained(context_t *context, connection_t *connection, uint32_t generation, uint64_t until) noexcept nogil:
    """One wait of drain(), at most until the monotonic time `until`."""
    cdef int state = DRAIN_WAIT
    lock_take(&context.drain_lock)
    lock_take(&connection.lock)
    if connection_generation(connection) != generation or connection.state >= STATE_ABORTING:
        state = DRAIN_GONE
    elif connection.pending < context.low:
        state = DRAIN_DONE
    else:
        connection.drainers += 1
    lock_give(&connection.lock)
    if state == DRAIN_WAIT:
        cond_wait_until(&context.drain_cond, &context.drain_lock, until)
        lock_take(&connection.lock)
        if connection_generation(connection) == generation:
            connection.drainers -= 1
        lock_give(&connection.lock)
    lock_give(&context.drain_lock)
    return state


# --- input: the owner only -----------------------------------------------------------------------------------------------------------------

cdef inline bint connection_deliverable(context_t *context, connection_t *connection) noexcept nogil:
    """Whether the input begins with a complete frame, or with what can never become one."""
    cdef frame_t frame
    cdef block_t *input = connection.input
    return input != NULL and FRAME_INCOMPLETE != framing_next(
        &context.framing, <const uint8_t *>block_bytes(input) + input.start, block_length(input), &frame)


cdef inline bint connection_store(context_t *context, io_t *io, connection_t *connection, const char *data, size_t n) noexcept nogil:
    """Add what was read to the input; False without memory.

    What will be delivered in this turn lies in a pooled block; what has to wait for the rest of a frame, in one of about its own size, which grows by
    half, so that a frame that comes in drops costs neither much memory nor quadratic time.
    """
    cdef block_t *input = connection.input
    cdef block_t *larger
    cdef frame_t frame
    cdef size_t length
    if input == NULL:
        if framing_next(&context.framing, <const uint8_t *>data, n, &frame) == FRAME_INCOMPLETE:
            input = block_exact(&io.pool, n)
        else:
            input = block_new(&io.pool, n)
        if input == NULL:
            return False
        connection.input = input
    elif input.capacity - input.end < n:
        length = block_length(input)
        larger = block_exact(&io.pool, length + n + length // 2)
        if larger == NULL:
            return False
        memcpy(block_bytes(larger), block_bytes(input) + input.start, length)
        larger.end = length
        block_free(&io.pool, input)
        input = connection.input = larger
    memcpy(block_bytes(input) + input.end, data, n)
    input.end += n
    return True


cdef inline bint connection_tidy_input(io_t *io, connection_t *connection) noexcept nogil:
    """After delivering: free what is consumed, and do not keep a pooled block for the beginning of a frame. False without memory."""
    cdef block_t *input = connection.input
    cdef block_t *exact
    cdef size_t length
    if input == NULL:
        return True
    length = block_length(input)
    if length:
        if input.capacity - length < BLOCK_POOLED // 2:
            return True
        exact = block_exact(&io.pool, length)
        if exact == NULL:
            return False
        memcpy(block_bytes(exact), block_bytes(input) + input.start, length)
        exact.end = length
        connection.input = exact
    else:
        connection.input = NULL
    block_free(&io.pool, input)
    return True


cdef inline void connection_broken(connection_t *connection, int code) noexcept nogil:
    """Reading ended with the errno `code`, or with 0 for an end in order."""
    connection.end_code = code
    connection.flags |= FLAG_EOF
    lock_take(&connection.lock)
    if connection.state == STATE_OPEN:
        connection.code = code
    lock_give(&connection.lock)


cdef inline void connection_read(context_t *context, io_t *io, connection_t *connection, bint hangup) noexcept nogil:
    """Read until the socket is drained or the budget is used up; then READABLE is in `mail` again. Sets FLAG_EOF and `end_code` at the end.

    A read shorter than asked for has drained the socket, and what comes later is a new edge; not so when END, HANGUP or URGENT was seen: those
    come with no further edge, and a read stops at an urgent mark (tcp(7)).
    """
    cdef size_t budget = context.read_budget
    cdef size_t want
    cdef int64_t got
    while budget:
        want = min(budget, io.scratch_size)
        got = sys_recv(connection.poll_fd, io.scratch, want)
        if got > 0:
            counter_bump(&io.counters.bytes_received, <uint64_t>got)
            if not connection_store(context, io, connection, io.scratch, <size_t>got):
                connection.end_code = ENOMEM
                break
            budget -= <size_t>got
            if <size_t>got < want and not connection.flags & FLAG_STICKY:
                return
        elif got == 0:
            connection.flags |= FLAG_EOF
            return
        elif got == -EAGAIN:
            if not hangup:
                return
            connection_broken(connection, sys_socket_error(connection.poll_fd))
            return
        else:
            connection.end_code = <int>-got
            break
    if connection.end_code:
        connection_broken(connection, connection.end_code)
    else:
        connection.mail |= READABLE | (HANGUP if hangup else 0)


cdef inline int connection_linger(context_t *context, io_t *io, connection_t *connection, uint32_t bits) noexcept nogil:
    """Throw away what still arrives: closing with unread input would make the kernel reset the peer, and the tail of the reply be lost."""
    cdef int64_t got
    cdef int k
    if bits & HANGUP or (bits & DEADLINE and sys_now() >= relaxed_load64(&connection.linger_until)):
        return connection_finish(context, connection)
    for k in range(LINGER_READS):
        got = sys_recv(connection.poll_fd, io.scratch, io.scratch_size)
        if got == -EAGAIN:
            return VERDICT_LINGER
        if got <= 0:
            return connection_finish(context, connection)
    connection.mail |= READABLE
    return VERDICT_AGAIN


cdef inline int connection_close(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """All output is flushed: end the sending side, and linger unless the peer has ended its own."""
    connection_drop_input(context, io, connection)
    if connection.flags & (FLAG_EOF | FLAG_HUNG):
        return connection_finish(context, connection)
    sys_shutdown(connection.poll_fd, SHUT_WR)
    connection.flags |= FLAG_LINGERING
    atomic_add32(&context.lingering, 1)
    atomic_store64(&connection.linger_until, sys_now() + LINGER_NS)
    return connection_linger(context, io, connection, 0)


cdef inline int connection_input_ended(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """All input was delivered and there will be no more: act on it, once."""
    cdef uint32_t generation = connection_generation(connection)
    cdef uint32_t bits
    cdef bint flushing
    if not connection.end_code:
        # A reset is reported once: to recv(2), or to the send(2) of a flusher. What looks like an end in order is one only if nobody is flushing.
        lock_take(&connection.lock)
        flushing = connection.flushing
        lock_give(&connection.lock)
        if flushing:
            connection.mail |= FRAMES
            return VERDICT_AGAIN
    connection.flags |= FLAG_EOF_TOLD
    if connection.end_code:
        bits = connection_end(context, connection, generation, True, CAUSE_OS_ERROR, connection.end_code)
    elif connection.input != NULL:
        bits = connection_end(context, connection, generation, False, CAUSE_INCOMPLETE_FRAME, 0)
    elif context.has_on_eof:
        connection.todo |= TODO_EOF
        return VERDICT_DISPATCH
    else:
        bits = connection_end(context, connection, generation, False, CAUSE_PEER_CLOSED, 0)
    if bits & FLUSH_DRAINED:
        connection_wake_drainers(context)
    if bits & ABORT:
        return connection_finish(context, connection)
    if bits & CLOSE:
        return connection_close(context, io, connection)
    return VERDICT_LET_GO


cdef inline bint connection_paused(context_t *context, connection_t *connection) noexcept nogil:
    """Whether nothing may be read or delivered.

    The memory pause is set here: the timekeeper clears `full` first and then looks for the pauses to end; so either it sees this one, or this thread sees
    `full` cleared.
    """
    if relaxed_load32(&context.full):
        atomic_or32(&connection.pause, PAUSE_MEMORY)
        if not atomic_load32(&context.full):
            atomic_and32(&connection.pause, ~<uint32_t>PAUSE_MEMORY)
    return atomic_load32(&connection.pause) != 0


cdef inline int connection_step(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Do all that can be done without Python for a connection that the caller owns; what is left is in `todo` and `mail`, and in the verdict."""
    cdef uint32_t bits = connection_take(connection)
    cdef uint32_t state = atomic_load32(&connection.state)
    cdef int verdict
    if bits & (END | HANGUP | URGENT):
        connection.flags |= FLAG_STICKY
    if bits & HANGUP:
        connection.flags |= FLAG_HUNG
        if relaxed_load32(&connection.pause) & PAUSE_USER and not connection.flags & FLAG_EOF:
            # Nothing may be delivered, and nobody could resume in time.
            connection_drop_input(context, io, connection)
            connection_broken(connection, sys_socket_error(connection.poll_fd) or ECONNRESET)
        atomic_store32(&connection.pause, 0)
    if state == STATE_ABORTING:
        return connection_finish(context, connection)
    if bits & NEW or connection.todo & TODO_OPEN:
        connection.todo |= TODO_OPEN
        connection.mail |= bits & ~<uint32_t>NEW
        return VERDICT_DISPATCH
    if state == STATE_CLOSING:
        if connection.flags & FLAG_LINGERING:
            return connection_linger(context, io, connection, bits)
        if bits & CLOSE:
            return connection_close(context, io, connection)
        if not bits & PORT_OUT:
            return VERDICT_LET_GO
    if bits & PORT_OUT:
        connection.todo |= TODO_PORT_OUT
    if bits & WRITABLE and context.has_on_writable:
        connection.todo |= TODO_WRITABLE
    if not connection_paused(context, connection):
        if bits & (READABLE | END | HANGUP | URGENT | RESUME) and not connection.flags & FLAG_EOF:
            if connection.port != NULL:
                connection.todo |= TODO_READ
            else:
                connection_read(context, io, connection, bits & HANGUP != 0)
        elif bits & HANGUP and connection.flags & FLAG_EOF_TOLD and not connection.end_code:
            # The peer had ended its side already; now it is gone.
            connection_broken(connection, sys_socket_error(connection.poll_fd) or ECONNRESET)
            connection.flags &= ~<uint32_t>FLAG_EOF_TOLD
        if connection_deliverable(context, connection):
            connection.todo |= TODO_DELIVER
        elif connection.flags & (FLAG_EOF | FLAG_EOF_TOLD) == FLAG_EOF:
            verdict = connection_input_ended(context, io, connection)
            if verdict != VERDICT_LET_GO:
                return verdict
    if connection.todo:
        return VERDICT_DISPATCH
    return VERDICT_AGAIN if connection.mail else VERDICT_LET_GO
