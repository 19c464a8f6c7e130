"""A connection: an actor whose mailbox is one word. Its life from accepting to release; input.pxd and output.pxd are about its bytes.

The mailbox is `slot.word`: generation in the high half, bits in the low half.

1. Post: a compare-and-swap that fails when the generation is another one. If OWNED was not set, the poster is now the owner, must process the
   connection or put it into a queue, and gets the bits in `mail`; otherwise the bits are set in the word and the present owner will see them.
2. Take: `fetch_and`, never a store. Let go: compare-and-swap from exactly (generation, OWNED) to (generation, 0); if that fails there are bits, and
   the connection goes to the back of a queue, still owned.
   So a posted bit is never lost: either the post comes before the letting go, which then fails, or after it, and the poster becomes the owner.
3. Only the owner touches the fields marked so, and runs callbacks. That alone gives order, one callback at a time, and a single place that closes.
4. The fields of the output side are written under `lock`, a leaf: no system call, no Python object, no allocation and no other lock inside. `state` is
   written under it and may be read without.
5. The end of a connection waits until nobody is flushing, so that no fd is closed under a send(2).

These three rooms know nothing of queues of connections and of threads: functions return what is to be posted (bits) or done next (a verdict).

How a connection is coded is constant from the moment it is ready: `framing`, and the Python objects `session` (TLS: what is read off the GIL is ciphertext, in
`wire`; a worker makes plaintext of it, in `input`) and `decoder` (a user's frame builder: a worker feeds it with `input`).
"""

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from hydrogen._c.addresses cimport addresses_give, addresses_t
from hydrogen._c.buffer cimport block_free, block_length, block_t, pool_t, queue_clear, queue_t
from hydrogen._c.framing cimport framing_t
from hydrogen._c.poller cimport poller_remove, poller_t
from hydrogen._c.slab cimport SLOT_OWNED, slab_advance, slot_t
from hydrogen._c.sys cimport (
    RANK_OUTPUT, SHUT_RDWR, relaxed_store32, atomic_add64, atomic_and64, atomic_cas64, atomic_load64, atomic_store32, atomic_store64, cond_broadcast, cond_t,
    counter_bump, lock_give, lock_init, lock_t, lock_take, name_t, relaxed_load64, relaxed_store64, sys_close, sys_local_name, sys_reset,
    sys_shutdown,
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
    CAUSE_CHECKSUM_MISMATCH
    CAUSE_TIMEOUT
    CAUSE_TRUNCATED
    CAUSE_TLS_ERROR
    CAUSE_OVERLOAD
    CAUSES

# The code of CAUSE_TIMEOUT: errors.Timeout.
cdef enum:
    TIMEOUT_OPEN = 1
    TIMEOUT_FRAME = 2
    TIMEOUT_IDLE = 3
    TIMEOUT_WRITE = 4
    TIMEOUTS

# `stuck` of a connection.
cdef enum:
    STUCK_NOT
    STUCK_NEWLY  # output waits for the peer, who has taken some since the last sweep, or it waits only since then
    STUCK_SEEN   # `stuck_since` says since when

# Kinds of deadlines, by how often the monitor thread has to look.
cdef enum:
    WATCH_CONFIGURED = 1  # those of Config
    WATCH_LINGERING = 2

# Causes of a pause of reading and delivering.
cdef enum:
    PAUSE_USER = 1
    PAUSE_WATERMARK = 2
    PAUSE_MEMORY = 4

# What the owner knows.
cdef enum:
    FLAG_EOF = 1 << 0         # recv(2) said 0, or `end_code`
    FLAG_EOF_TOLD = 1 << 1    # the end of input was acted on
    FLAG_STICKY = 1 << 2      # END, HANGUP or URGENT was seen: a short read proves nothing, read to EAGAIN
    FLAG_HUNG = 1 << 3        # HANGUP was seen
    FLAG_LINGERING = 1 << 4
    FLAG_POLLED = 1 << 5      # registered with the poller
    FLAG_HANDSHAKE = 1 << 6   # TLS, and its handshake is not done
    FLAG_TLS_END = 1 << 7     # TLS, and nothing more of its input counts: close_notify came, or
    FLAG_TLS_FAILED = 1 << 8  # what came is no TLS
    FLAG_GOODBYE = 1 << 9     # our own close_notify is in the output
    FLAG_UNDECODED = 1 << 10  # `decoder` may have more messages
    FLAG_PARTIAL = 1 << 11    # `decoder` has the beginning of one
    FLAG_HEADER = 1 << 12     # the header of the PROXY protocol is not whole: nothing else happens before
    FLAG_FIRST = 1 << 13      # nothing was delivered yet of what came behind that header
    FLAG_LATE = 1 << 14       # a deadline had passed when this went to the dispatch role: look again afterwards
    # No more input will come, for either reason.
    FLAGS_ENDED = (1 << 0) | (1 << 7)
    # It is not ready: what open_timeout is for.
    FLAGS_OPENING = (1 << 6) | (1 << 12)

# What the dispatch role has to do.
cdef enum:
    TODO_OPEN = 1
    TODO_WRITABLE = 2
    TODO_READ = 4      # a user's stream
    TODO_DELIVER = 8
    TODO_EOF = 16
    TODO_FINISH = 32
    TODO_PORT_OUT = 64
    TODO_GOODBYE = 128  # close_notify is due

# What is to be done with a connection after a step of its owner.
cdef enum:
    VERDICT_LET_GO
    VERDICT_AGAIN     # to the back of the service queue
    VERDICT_DISPATCH  # to the ready queue
    VERDICT_RELEASE   # nothing is left of it but the slot

# What functions of a connection want done beyond posting mailbox bits.
cdef enum:
    FLUSH_MORE = 1 << 30     # the budget is used up and output is left: flush again later
    FLUSH_DRAINED = 1 << 29  # somebody waits in drain()

cdef enum:
    NOT_CORKED = 0xFFFFFFFF

# Counters with one writer, or, `shared`, with any.
ctypedef struct counters_t:
    bint shared
    uint64_t bytes_received, bytes_sent
    uint64_t messages_received, messages_sent, messages_refused
    uint64_t polls, iterations, gil_acquisitions, gil_wait_ns, handoffs
    uint64_t removed[CAUSES]
    uint64_t timeouts[TIMEOUTS]  # removed[CAUSE_TIMEOUT], by the code

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
    const framing_t *framing      # of connections that bring none of their own
    size_t low, high, max_write_buffer, read_budget
    uint64_t max_buffered
    bint has_on_eof, has_on_writable
    bint has_end_callbacks
    uint64_t open_timeout, idle_timeout, frame_timeout, write_timeout  # ns; 0: none
    addresses_t *addresses        # the acceptor's
    # atomic
    uint64_t reading_pauses, reading_resumes, memory_pauses
    uint64_t buffered    # blocked output and input left over, of all connections
    uint32_t full        # `buffered` is over `max_buffered`: nothing is read
    uint32_t watched     # WATCH_...: which kinds of deadlines some connection may have: loop_watch
    # held while an fd number is used outside ownership, and while one is closed
    lock_t fd_lock
    # drain(): a waiter looks at `pending` and counts itself in `drainers` under the connection's lock, holding this one until it sleeps
    lock_t drain_lock
    cond_t drain_cond

ctypedef struct connection_t:
    slot_t slot
    # what the monitor thread sweeps by: together, for it visits every slot
    uint64_t deadline        # monotonic ns, 0: none; of lingering, the handshake, or an unfinished frame; atomic, written by the owner
    uint32_t state           # written under the lock
    uint32_t active          # bytes came or went since the last sweep; atomic, set by whoever moves them, cleared by the monitor thread
    uint32_t stuck           # STUCK_...; atomic, set under the lock, STUCK_SEEN by the monitor thread
    int unacknowledged       # bytes in the kernel when stuck output last moved; the monitor thread only
    uint64_t quiet_since     # monotonic ns of the sweep that found it active last; atomic, written by the monitor thread
    uint64_t stuck_since     # the same, of the sweep that found it stuck first, or that it had moved; the monitor thread only
    # constant from acquire to release
    int fd          # the number that callbacks get
    int poll_fd     # what is polled, read and written: `fd`, or the duplicate of a user's stream's
    uint64_t id
    bint unix_domain
    uint32_t listener  # its index
    # constant from when it is ready to release: how it is coded. Points to what lives as long as the engine, so that whoever still sends to an earlier
    # connection of the slot may follow it; others than the owner by connection_framing
    const framing_t *framing
    # owner only
    connection_t *next       # in the ready or the service queue
    uint32_t mail            # bits handed over with the ownership
    uint32_t todo
    uint32_t flags
    int end_code             # errno with which reading ended
    block_t *wire            # ciphertext read and not decrypted
    block_t *input           # bytes (plaintext) read and not delivered
    size_t scanned           # of them, known to hold no delimiter: framing_find
    size_t held              # bytes that `decoder` holds
    int idle_unacknowledged  # bytes in the kernel when it was last nearly idle
    bint counted             # in context.addresses, under the address `peer`
    uint64_t input_counted   # of all three, counted in context.buffered; atomic, the monitor thread reads it
    # atomic
    uint32_t ready           # on_new_connection has not refused it: others may see it, and on_disconnected is due; written by the owner
    uint32_t pause           # set of PAUSE_...; whoever clears the last one posts RESUME
    # output side, under the lock
    lock_t lock
    uint8_t cause
    bint flushing
    bint blocked             # EAGAIN was seen and no OUT edge since
    bint edge                # an OUT edge came while flushing
    bint asked_out           # a Unix socket that is polled for OUT; changed only by the flusher
    int code                 # errno of CAUSE_OS_ERROR; while open: with which reading ended
    name_t peer              # of the client, whom the PROXY protocol may name; constant from when it is ready; empty for Unix sockets
    name_t local             # written by the owner at the end, when the kernel is about to forget it
    uint32_t corked_by       # worker on whose list of corked connections it is
    uint32_t drainers
    queue_t output
    size_t pending           # bytes in `output` and with the flusher
    size_t pending_counted   # of them, counted in context.buffered
    # Python references, swapped under the lock, dropped without it
    void *user_data
    void *port               # stream.StreamAdapter of a user's stream; constant once set, as are the next two
    void *session            # tls.TlsSession
    void *decoder            # frame.FrameDecoder of a user's frame builder
    void *header             # proxy.ProxyHeader, or, before it is whole, proxy.HeaderReader
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
    sums.iterations += relaxed_load64(&counters.iterations)
    sums.gil_acquisitions += relaxed_load64(&counters.gil_acquisitions)
    sums.gil_wait_ns += relaxed_load64(&counters.gil_wait_ns)
    sums.handoffs += relaxed_load64(&counters.handoffs)
    for k in range(CAUSES):
        sums.removed[k] += relaxed_load64(&counters.removed[k])
    for k in range(TIMEOUTS):
        sums.timeouts[k] += relaxed_load64(&counters.timeouts[k])


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


cdef inline const framing_t *connection_framing(connection_t *connection) noexcept nogil:
    return <const framing_t *>relaxed_load64(<uint64_t *>&connection.framing)


cdef inline void connection_set_framing(connection_t *connection, const framing_t *framing) noexcept nogil:
    relaxed_store64(<uint64_t *>&connection.framing, <uint64_t>framing)


# --- begin and end -------------------------------------------------------------------------------------------------------------------------

cdef inline void connection_open(
    context_t *context, connection_t *connection, int fd, uint64_t id, name_t *peer, uint32_t listener, bint unix_domain,
) noexcept nogil:
    """Begin a use of a slot that was just acquired. The caller owns it."""
    if connection.id == 0:
        lock_init(&connection.lock, RANK_OUTPUT)
    connection.fd = connection.poll_fd = fd
    connection.unix_domain = unix_domain
    connection.listener = listener
    connection.next = NULL
    connection.mail = connection.todo = connection.flags = 0
    connection.end_code = 0
    connection_set_framing(connection, context.framing)
    connection.scanned = connection.held = 0
    connection.local.family = 0
    connection.counted = False
    connection.idle_unacknowledged = 0
    relaxed_store32(&connection.active, 1)
    relaxed_store32(&connection.stuck, STUCK_NOT)
    atomic_store32(&connection.pause, 0)
    atomic_store32(&connection.ready, 0)
    lock_take(&connection.lock)
    connection.id = id
    connection.peer = peer[0]
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
    cdef bint aborted, needs_python, drainers
    lock_take(&connection.lock)
    if connection.flushing:
        lock_give(&connection.lock)
        return VERDICT_LET_GO  # connection_flush posts ABORT when it is done
    aborted = connection.state == STATE_ABORTING
    atomic_store32(&connection.state, STATE_GONE)
    connection.blocked = False
    drainers = connection_drop_output_locked(context, connection) != 0
    relaxed_store32(&connection.stuck, STUCK_NOT)
    needs_python = (
        connection.user_data != NULL or connection.port != NULL or connection.error != NULL or connection.session != NULL or
        connection.decoder != NULL or connection.header != NULL or connection.cause == CAUSE_SLOW_CONSUMER
    )
    lock_give(&connection.lock)
    if drainers:
        connection_wake_drainers(context)
    if connection.flags & FLAG_POLLED:
        poller_remove(&context.poller, connection.poll_fd)
    if context.has_end_callbacks and not connection.unix_domain:
        sys_local_name(connection.poll_fd, &connection.local)
    if aborted and not connection.unix_domain:
        sys_reset(connection.poll_fd)
    elif connection.port == NULL:  # how a user's stream ends is its own affair
        sys_shutdown(connection.poll_fd, SHUT_RDWR)
    atomic_store64(&connection.deadline, 0)
    if needs_python or context.has_end_callbacks:
        connection.todo = TODO_FINISH
        return VERDICT_DISPATCH
    return VERDICT_RELEASE


cdef inline size_t connection_undelivered(connection_t *connection) noexcept nogil:
    """Bytes read that no Python has seen yet."""
    return (block_length(connection.input) if connection.input != NULL else 0) + (block_length(connection.wire) if connection.wire != NULL else 0)


cdef inline void connection_set_input_count(context_t *context, connection_t *connection) noexcept nogil:
    """Count what stays of the input when the owner lets go; nothing does, usually."""
    cdef size_t left = connection_undelivered(connection) + connection.held
    cdef uint64_t counted = relaxed_load64(&connection.input_counted)
    if left != counted:
        atomic_add64(&context.buffered, left - counted)
        relaxed_store64(&connection.input_counted, left)


cdef inline void connection_drop_input(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    if connection.input != NULL:
        block_free(&io.pool, connection.input)
        connection.input = NULL
    if connection.wire != NULL:
        block_free(&io.pool, connection.wire)
        connection.wire = NULL
    connection.scanned = connection.held = 0
    connection.flags &= ~<uint32_t>(FLAG_UNDECODED | FLAG_PARTIAL)
    connection_set_input_count(context, connection)


cdef inline void connection_release(context_t *context, io_t *io, connection_t *connection) noexcept nogil:
    """Close the fd and end the use of the slot; the slab gets it back from the caller. Python references are gone already."""
    connection_drop_input(context, io, connection)
    counter_bump(&io.counters.removed[connection.cause], 1)
    if connection.cause == CAUSE_TIMEOUT:
        counter_bump(&io.counters.timeouts[connection.code], 1)
    if connection.counted:
        addresses_give(context.addresses, &connection.peer)
    lock_take(&context.fd_lock)
    sys_close(connection.poll_fd)
    connection.fd = connection.poll_fd = -1
    lock_give(&context.fd_lock)
    lock_take(&connection.lock)
    atomic_store32(&connection.state, STATE_VACANT)
    slab_advance(&connection.slot)
    lock_give(&connection.lock)
