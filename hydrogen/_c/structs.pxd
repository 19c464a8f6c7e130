"""The structs of a loop and its connections. Each field says who writes it, under which lock."""

from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t

from hydrogen._c.addresses cimport addresses_t
from hydrogen._c.buffer cimport block_t, pool_t, queue_t
from hydrogen._c.constants cimport CAUSES, CORKED_MOST, LOOPS_MOST, TIMEOUTS
from hydrogen._c.framing cimport framing_t
from hydrogen._c.kernel cimport name_t, pthread_t
from hydrogen._c.websocket cimport reader_t
from hydrogen._c.lock cimport cond_t, lock_t
from hydrogen._c.poller cimport POLL_EVENTS, epoll_event, poller_t
from hydrogen._c.slab cimport slab_t, slot_t

# Counters with one writer, or, `shared`, with any.
ctypedef struct counters_t:
    bint shared
    uint64_t bytes_received, bytes_sent
    uint64_t messages_received, messages_sent, messages_refused
    uint64_t pings_sent, pings_received, pongs_received
    uint64_t polls, iterations, gil_acquisitions, gil_wait_ns, handoffs
    uint64_t removed[CAUSES]
    uint64_t timeouts[TIMEOUTS]  # removed[CAUSE_TIMEOUT], by the code

# What a thread brings to do I/O with.
ctypedef struct io_t:
    pool_t pool
    counters_t counters
    char *scratch        # what recv(2) reads into; NULL for threads that only flush
    size_t scratch_size
    size_t read_budget   # of one connection in one step: Config's, or REFILL_BUDGET

# What all connections of a loop share.
ctypedef struct context_t:
    poller_t poller
    # constant
    const framing_t *framing      # of connections that bring none of their own
    size_t low, high, max_write_buffer, read_budget
    size_t corked_most            # output that may wait for the end of a turn
    uint64_t max_buffered
    # the same of what comes in first: the head of a request, or `framing`
    const framing_t *first_framing
    size_t max_message            # WebSocket
    uint32_t max_fragments
    bint has_on_pong
    uint64_t close_timeout, ping_interval, ping_timeout  # ns; 0: none
    const framing_t *pings        # NULL: none are sent, and no connection grows too old
    bint has_on_eof, has_on_writable
    bint has_end_callbacks
    uint64_t open_timeout, idle_timeout, frame_timeout, write_timeout  # ns; 0: none
    addresses_t *addresses        # the acceptor's
    # atomic
    uint64_t reading_pauses, reading_resumes, memory_pauses
    uint64_t buffered    # blocked output and input left over, of all connections
    # of it, input of connections that are aborted, which goes when their owners come: see
    # queues_is_full
    uint64_t leaving
    # so much input waits for workers that no more is read; under the loop's lock, read without
    uint32_t crowded
    uint32_t full        # `buffered` was over `max_buffered`: nothing is read
    # WATCH_...: which kinds of deadlines some connection may have: deadlines_watch
    uint32_t watched
    # held while an fd number is used outside ownership, and while one is closed
    lock_t fd_lock
    # drain(): a waiter looks at `pending` and counts itself in `drainers` under the connection's
    # lock, holding this one until it sleeps
    lock_t drain_lock
    cond_t drain_cond

# What a WebSocket connection has besides.
ctypedef struct websocket_t:
    # owner only
    reader_t reader
    uint8_t fault             # MESSAGES_...: what is wrong behind all that is ready
    uint8_t discards          # what comes from now on is dropped, but for a CLOSE, which is known
    block_t *replies          # PONGs that are to be sent
    # PONG and CLOSE that came: of each the value of `taken` at which it is due, opcode, length,
    # payload
    block_t *events
    uint64_t taken            # bytes of messages that were delivered
    # relaxed; of the last ping, by who sends it
    uint64_t pinged_at        # monotonic ns
    uint64_t ping_hash
    uint64_t latency          # ns from there to its pong, 0: none came; by the owner
    # by the owner, cleared by the monitor thread: something came since it looked last
    uint32_t heard
    # by the owner: the client's CLOSE, or close_notify, came: it answers no more pings
    uint32_t said_goodbye
    # with TLS a worker is to ping; atomic, set by the monitor thread, cleared by the worker
    uint32_t ping_due
    # under the lock
    uint64_t probed_at        # when it was pinged last, for it was silent
    # monitor thread only
    uint64_t heard_at
    uint64_t ends_at          # 0: never
    int unacknowledged        # bytes in the kernel when it was looked at last, or pinged

ctypedef struct connection_t:
    slot_t slot
    # what the monitor thread sweeps by: together, for it visits every slot
    # monotonic ns, 0: none; of lingering, the handshake, or an unfinished frame; atomic, written by
    # the owner
    uint64_t deadline
    uint32_t state           # written under the lock
    # bytes came or went since the last sweep; atomic, set by whoever moves them, cleared by the
    # monitor thread
    uint32_t active
    # STALL_...; atomic, set under the lock, STALL_SEEN by the monitor thread
    uint32_t stalled
    # bytes in the kernel when stuck output last moved; the monitor thread only
    int unacknowledged
    # monotonic ns of the sweep that found it active last; atomic, written by the monitor thread
    uint64_t quiet_since
    # the same, of the sweep that found it stuck first, or that it had moved; the monitor thread
    # only
    uint64_t stalled_since
    # bytes in the kernel at the last sweep, NOT_LOOKED when it was active; atomic, written by the
    # monitor thread
    uint32_t idle_unacknowledged
    # constant from acquire to release
    int fd          # the number that callbacks get
    int poll_fd     # what is polled, read and written: `fd`, or the duplicate of a user's stream's
    uint16_t listener  # its index
    # reset by a stop, see loop_abort_all; only the thread that stops the server
    uint16_t reset_by_stop
    uint64_t id
    # owner only
    const framing_t *framing  # constant from when it is ready: the server's, or that of `builder`
    connection_t *next       # in the ready or the service queue
    uint32_t mail            # bits handed over with the ownership
    uint32_t todo
    uint32_t flags
    int grace                # with FLAG_LATE: bytes that were in the kernel when it was found late
    block_t *ciphertext      # ciphertext read and not decrypted
    block_t *input           # bytes (plaintext) read and not delivered
    size_t scanned           # of them, known to hold no delimiter: framing_find
    # from when it is ready; written under the lock, by the owner; the monitor thread reads it
    websocket_t *websocket
    size_t held              # bytes that `decoder` holds
    # of all three, counted in context.buffered; atomic, the monitor thread reads it
    uint64_t input_counted
    # under the loop's lock; of the slot, whosever it is
    connection_t *next_output  # in the list of those whose output a worker is to go on with
    uint32_t in_outputs      # atomic: the owner looks at it without the lock
    # atomic
    # READY...: on_new_connection has not refused it: others may see it, and on_disconnected is due;
    # written by the owner
    uint32_t ready
    # output side, under the lock
    lock_t lock
    uint8_t cause
    uint8_t flushing         # somebody sends, or is in the user's stream
    uint8_t blocked          # EAGAIN was seen and no OUT edge since
    # EDGE_CAME: an OUT edge, while flushing; of a user's stream also while blocked. EDGE_ASKED
    uint8_t edge
    uint8_t asked_out        # a Unix socket that is polled for OUT; changed only by the flusher
    uint8_t unix_domain      # constant from acquire to release; here, where a byte has room
    int16_t code             # errno of CAUSE_OS_ERROR; while open: with which reading ended
    # of the client, whom the PROXY protocol may name; constant from when it is ready; empty for
    # Unix sockets
    name_t peer
    name_t local             # written at the end, when the kernel is about to forget it
    uint32_t drainers
    uint16_t corked_by       # worker on whose list of corked connections it is
    # errno with which reading ended; owner only, as `unix_domain` is here for its size
    int16_t end_code
    queue_t output
    # bytes in `output`, with the flusher, and of messages that wait for TLS or a user's stream
    size_t pending
    # of them, given to a user's stream that has not yet returned; by who is in it
    size_t writing
    size_t pending_counted   # of `pending`, counted in context.buffered
    uint64_t leaving         # what of the input is counted in context.leaving
    # Python references, swapped under the lock, dropped without it
    void *user_data
    # stream.StreamAdapter of a user's stream; constant once set, as are the next two
    void *adapter
    void *session            # tls.TlsSession
    void *decoder            # codec.FrameDecoder of a user's frame builder
    void *builder            # _codec.Framing of its own: `framing` points into it
    void *header             # proxy.ProxyHeader, or, before it is whole, proxy.HeaderReader
    void *opening            # handshake.Opened, of a WebSocket
    void *error              # the exception of CAUSE_HANDLER_ERROR and its like

ctypedef struct worker_t:
    loop_t *loop
    uint32_t index
    io_t io
    # parking, under the loop's lock
    worker_t *next_parked
    bint woken
    cond_t cond
    # atomic
    uint32_t claimed  # by its thread, or by who says its last words for it: worker_claim
    uint32_t begun    # written by the worker: nothing is missing that it needs
    # atomic, written by the worker, read by the monitor thread
    uint32_t state
    uint64_t progress                # callbacks begun
    uint64_t corked[CORKED_MOST]     # tokens; taken by swap with 0, by the worker or for it
    # the worker only
    void *callbacks                  # its _Callbacks (_core.pyx), which it holds as long as it runs
    void *python_thread              # its PyThreadState
    uint32_t corked_count
    uint64_t cork_seen               # `progress` when it looked last whether to flush that
    uint64_t iteration_began              # or its last flush ended
    uint64_t iteration_entered            # when it began, and `progress` then; without a GIL only
    uint64_t iteration_progress
    # the monitor thread only
    uint64_t seen_progress
    bint seen_callback
    uint32_t brief  # looks in a row that found it in one short record of TLS

# Queue of owned connections.
ctypedef struct conn_queue_t:
    connection_t *first
    connection_t *last
    uint32_t length

ctypedef struct option_t:
    int level
    int name
    uint32_t size
    char *value

ctypedef struct listener_t:
    int given  # the program's fd; looked at when accepting starts
    int fd     # a duplicate; -1 before the start, and when nobody accepts any more
    bint unix_domain

# The slot that the next connection gets.
ctypedef struct vacancy_t:
    loop_t *loop
    connection_t *connection

# What accepts for all loops of a server, with what is said of the server as a whole.
ctypedef struct acceptor_t:
    # constant after the start
    loop_t *loops[LOOPS_MOST]
    uint32_t loop_count
    listener_t *listeners
    uint32_t listener_count
    uint64_t max_connections
    bint turns_away        # at max_connections, instead of pausing
    # connections begin with a header of the PROXY protocol, by which they are counted
    bint has_proxy
    option_t *options
    uint32_t option_count
    # atomic
    uint64_t turned_away   # those that were accepted and got no slot; written with `accept_lock`
    uint32_t turned_away_told
    uint64_t pauses
    # ACCEPT...; written with `accept_lock`, or by the accept thread while not `listening`
    uint32_t accepting
    # the listeners are in the poller of the first loop; written with `accept_lock`
    uint32_t listening
    # some of them are not, because they are shut down; written with `accept_lock`
    uint32_t lost
    # somebody wants the accept thread to be told when a connection is released: see loop_release
    uint32_t waits
    uint32_t suspended
    uint32_t stop
    uint32_t loops_left
    # with `accept_lock`, which whoever accepts holds
    lock_t accept_lock
    vacancy_t next
    # there were no fds, or no memory; the accept thread's while not `listening`
    bint exhausted
    # under its own lock
    addresses_t addresses  # connections from each
    # the accept thread, and whoever starts and ends it
    pthread_t thread
    bint started
    # closed under `event_lock`, and set there by others than threads of the loops
    int event
    lock_t event_lock

ctypedef struct loop_t:
    context_t context
    slab_t slab
    # the queues and who waits for them, under `lock`
    lock_t lock
    conn_queue_t ready
    conn_queue_t service
    uint64_t undelivered  # bytes of input in `ready`; atomic, also read without the lock
    uint32_t tasks
    connection_t *output_first  # whose output a worker is to go on with: queues_leave_output
    connection_t *output_last
    uint32_t outputs
    uint32_t log_events
    cond_t log_cond     # the log thread waits here for `news`, or `exiting`
    bint role_taken      # somebody is in the event role
    bint polling         # and may sleep there
    bint exiting
    bint kept            # exiting: a worker is parked until the last connection is released
    worker_t *parked     # the one that parked last, whose caches are warm, comes first
    # whoever is in the event role
    epoll_event events[POLL_EVENTS]
    # constant after the start
    worker_t *workers
    uint32_t worker_count
    int handoff
    bint has_open_callbacks
    acceptor_t *acceptor
    # between two looks at the deadlines: a quarter of the shortest of Config's; LINGER_SWEEP_NS
    # while anybody lingers, if that is less
    uint64_t sweep_ns
    uint32_t forks       # kernel_forks at the start
    # atomic
    # connections that got a slot, written with the acceptor's `accept_lock`, and those of them that
    # are gone; the difference is `live`: acceptor_live_in
    uint64_t taken
    uint64_t released
    uint64_t stalls
    uint64_t all_blocked
    uint64_t sweeps
    uint32_t stopping
    uint32_t awake       # workers that are neither parked nor in callbacks
    uint32_t eager       # milliseconds left in eager mode
    uint32_t stalled     # a worker found in callbacks that last, its index + 1
    # index + 1 of the worker that was seen to run callbacks last; written with the GIL held, 0
    # without one
    uint32_t dispatching
    uint32_t handler_ns  # moving average of a handler's time; without a GIL only
    uint32_t workers_left
    # monitor
    pthread_t monitor_thread
    bint monitor_started
    uint32_t monitor_stop  # atomic
    uint32_t monitor_word  # atomic
    lock_t monitor_lock
    cond_t monitor_cond
    uint64_t alarm            # monotonic ns, 0: none; written under monitor_lock, atomic
    io_t monitor_io
    # threads that are no workers
    io_t outside_io
    uint64_t planted_race
