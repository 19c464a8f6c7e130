"""A loop: one poller, one slab, one ready queue, and the threads that pass through the roles. All of it off the GIL; the callbacks are in _core.pyx.

Two queues hold owned connections: *service* those that need a step off the GIL (connection_step), *ready* those that need Python. A worker passes through
the event role (at most one at a time: poll, read, split frames) and the dispatch role in turn, so that a short handler runs on the thread that read
its message and nobody is woken for it.

Who sleeps, who wakes, why nothing is lost:
1. A worker parks, or sets `polling` and enters epoll_wait without a timeout, only under `lock` with both queues and `notices` seen empty; whoever puts work there does
   so under `lock` and looks there whether somebody sleeps. A poster that is no worker in its turn signals a parked worker, or else writes the eventfd if
   `polling`. If nobody sleeps, all workers are in a turn, and each looks at the queues, under `lock`, before it sleeps.
2. A worker in its turn that puts work into a queue wakes nobody: it looks again when its turn ends. If a callback keeps it from that, the monitor thread finds it
   stalled and wakes another. So the monitor thread must not sleep while anybody is in a callback: see 3.
3. The monitor thread's word goes IDLE -> ASLEEP by compare-and-swap, and every turn begins with a worker's saying in `state` that it wants the GIL, and then a
   swap to ACTIVE: the turn either makes that fail, or finds ASLEEP and signals. The monitor thread only tries after ticks in which it found the word IDLE and
   no worker in a callback.
4. The event role is given up only by a thread that will look at the queues again, or wakes a worker that does (the monitor thread).
"""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from hydrogen._c.addresses cimport addresses_t
from hydrogen._c.buffer cimport block_of_shared, block_t, pool_destroy, shared_t
from hydrogen._c.connection cimport (
    ABORT, CAUSE_SERVER_STOPPED, END, FLAGS_ENDED, FLAG_EOF_TOLD, FLAG_LINGERING, FLAG_POLLED, FLUSH_DRAINED, FLUSH_MORE, FRAMES, HANGUP, PORT_OUT,
    NOT_CORKED, POST_OWNER, READABLE, STATE_CLOSING, STATE_OPEN, STATE_VACANT, URGENT, VERDICT_AGAIN, VERDICT_DISPATCH, VERDICT_RELEASE, WATCH_CONFIGURED,
    WATCH_LINGERING, WORD_BITS, connection_end,
    connection_framing, connection_generation, connection_let_go, connection_post, connection_release, connection_set_input_count, connection_t,
    connection_token, connection_undelivered, connection_wake_drainers, context_t, io_count, io_t,
)
from hydrogen._c.input cimport connection_step, connection_watch_frame
from hydrogen._c.framing cimport FRAMING_PYTHON
from hydrogen._c.output cimport (
    EDGE_FLUSH, EDGE_PORT, SEND_NOTHING, SEND_NOW, SEND_REFUSED, connection_append, connection_flush, connection_unblock,
)
from hydrogen._c.poller cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, POLL_EVENTS, TOKEN_WAKE, epoll_event, poller_add, poller_close,
    poller_init, poller_wait, poller_wake,
)
from hydrogen._c.slab cimport slab_destroy, slab_init, slab_release, slab_slot, slab_t, slab_used
from hydrogen._c.sys cimport (
    HYDROGEN_GIL, RANK_DRAIN, RANK_FD, RANK_QUEUE, RANK_MONITOR, atomic_add32, atomic_add64, atomic_load32,
    atomic_or32, atomic_store32, atomic_store64, atomic_swap32, atomic_swap64, cond_destroy, cond_init, cond_signal, cond_t, cond_wait, counter_bump,
    lock_destroy, lock_give, lock_init, lock_t, lock_take, pollfd, pthread_t, relaxed_load32, relaxed_load64, relaxed_store32, sys_assert,
    sys_close, sys_event_set, sys_forks,
)

# What a worker does, published for the monitor thread.
cdef enum:
    WORKER_PARKED
    WORKER_POLL      # in the event role, or in a step
    WORKER_FLUSH
    WORKER_WANT_GIL
    WORKER_CALLBACK

cdef enum:
    HANDOFF_AUTO
    HANDOFF_INLINE
    HANDOFF_EAGER

# Things to be done in Python by a worker.
cdef enum:
    NOTICE_DRAINED = 1         # the last connection is gone, and the server is stopping
    NOTICE_ALARM = 2           # timers are due

# Things to be written into the log by the log thread, a thread of its own: also when no worker comes out of a callback any more.
cdef enum:
    NEWS_ALL_BLOCKED = 1
    NEWS_ACCEPTING = 2         # `accepting` has changed
    NEWS_TURNED_AWAY = 4

# What the accept thread does.
cdef enum:
    ACCEPTING
    ACCEPT_EXHAUSTED  # waits for fds or memory
    ACCEPT_FULL       # waits until one of `max_connections` goes

# The monitor thread's word.
cdef enum:
    MONITOR_IDLE
    MONITOR_ACTIVE
    MONITOR_ASLEEP

cdef enum:
    # Loops of one server (MAX_LOOPS in config.py).
    LOOPS_MOST = 64
    # Connections that one worker has corked; a 65th is flushed with the rest.
    CORKED_MOST = 64
    # Undelivered input above which nobody polls, so that a queue behind slow handlers does not grow with the network's speed.
    UNDELIVERED_MOST = 4 << 20
    TICK_NS = 1000000
    # Without a stall the tick slows down by a factor of two each 16 ticks, to 4 ms at most: a 1 kHz tick costs 3 % on a busy machine (design.md).
    TICK_QUIET = 16
    TICK_SLOWEST = 4
    # Ticks without any work after which the monitor thread sleeps.
    TICKS_IDLE = 64
    # A quarter of LINGER_NS.
    LINGER_SWEEP_NS = 500000000
    # Milliseconds that one proof of blocking keeps eager mode up.
    EAGER_MS = 100
    # A worker that got the GIL sooner than this while another was in a callback shows that that one does not compute: the
    # interpreter takes the GIL from a computing thread only after 5 ms (sys.getswitchinterval).
    BLOCKS_NS = 2000000
    # What accept(2) cannot do now it may in a while: fds or memory come back.
    ACCEPT_PAUSE_MS = 100
    # Connections accepted from one listener before the others come.
    ACCEPT_MOST = 64
    # Without a GIL: estimated work in the ready queue that is worth a wake-up of 5 to 50 us.
    WORK_NS = 100000

ctypedef struct worker_t:
    loop_t *loop
    uint32_t index
    io_t io
    # parking, under the loop's lock
    worker_t *next_parked
    bint woken
    cond_t cond
    # atomic, written by the worker, read by the monitor thread
    uint32_t state
    uint64_t progress                # callbacks begun
    uint64_t corked[CORKED_MOST]     # tokens; taken by swap with 0, by the worker or for it
    # the worker only
    void *callbacks                  # its _Callbacks (_core.pyx), which it holds as long as it runs
    uint32_t corked_count
    uint64_t turn_began              # or its last flush ended
    uint64_t turn_entered            # when it began, and `progress` then; without a GIL only
    uint64_t turn_progress
    # the monitor thread only
    uint64_t seen_progress
    bint seen_callback

# Queue of owned connections.
ctypedef struct line_t:
    connection_t *first
    connection_t *last
    uint32_t length

ctypedef struct option_t:
    int level
    int name
    uint32_t size
    char *value

ctypedef struct listener_t:
    int fd
    bint unix_domain

# What accepts for all loops of a server, with what is said of the server as a whole.
ctypedef struct acceptor_t:
    # constant after the start
    loop_t *loops[LOOPS_MOST]
    uint32_t loop_count
    listener_t *listeners
    uint32_t listener_count
    uint64_t max_connections
    bint turns_away        # at max_connections, instead of pausing
    bint has_proxy         # connections begin with a header of the PROXY protocol, by which they are counted
    option_t *options
    uint32_t option_count
    # atomic
    uint64_t accepted      # also those turned away
    uint64_t turned_away
    uint32_t turned_away_told
    uint64_t pauses
    uint32_t accepting     # ACCEPT...; written by the accept thread
    uint32_t waits         # the accept thread wants to be told when a connection is released: see loop_release
    uint32_t suspended
    uint32_t stop
    uint32_t loops_left
    # under its own lock
    addresses_t addresses  # connections from each
    # the accept thread, and whoever starts and ends it
    pthread_t thread
    bint started
    int event
    pollfd *polled         # the event, then the listeners

ctypedef struct loop_t:
    context_t context
    slab_t slab
    # the queues and who waits for them, under `lock`
    lock_t lock
    line_t ready
    line_t service
    size_t undelivered   # bytes of input in `ready`
    uint32_t notices
    uint32_t news
    cond_t news_cond     # the log thread waits here for `news`, or `exiting`
    bint role_taken      # somebody is in the event role
    bint polling         # and may sleep there
    bint exiting
    worker_t *parked     # the one that parked last, whose caches are warm, comes first
    # whoever is in the event role
    epoll_event events[POLL_EVENTS]
    # constant after the start
    worker_t *workers
    uint32_t worker_count
    int handoff
    bint has_open_callbacks
    acceptor_t *acceptor
    uint64_t sweep_ns     # between two looks at the deadlines: a quarter of the shortest of Config's; LINGER_SWEEP_NS while anybody lingers, if that is less
    uint32_t forks       # sys_forks at the start
    # atomic
    uint64_t live          # connections; only the accept thread makes it larger
    uint64_t stalls
    uint64_t all_blocked
    uint64_t sweeps
    uint32_t stopping
    uint32_t awake       # workers that are neither parked nor in callbacks
    uint32_t eager       # milliseconds left in eager mode
    uint32_t stalled     # a worker found in a callback that lasts, its index + 1, and its progress then
    uint64_t stalled_progress
    uint32_t dispatching # index + 1 of the worker that was seen to run callbacks last; written with the GIL held, 0 without one
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


# --- queues --------------------------------------------------------------------------------------------------------------------------------

cdef inline void line_push(line_t *line, connection_t *connection) noexcept nogil:
    connection.next = NULL
    if line.last == NULL:
        line.first = connection
    else:
        line.last.next = connection
    line.last = connection
    line.length += 1


cdef inline connection_t *line_pop(line_t *line) noexcept nogil:
    cdef connection_t *connection = line.first
    if connection != NULL:
        line.first = connection.next
        if line.first == NULL:
            line.last = NULL
        line.length -= 1
    return connection


cdef inline void line_append(line_t *line, line_t *more) noexcept nogil:
    if more.first == NULL:
        return
    if line.last == NULL:
        line.first = more.first
    else:
        line.last.next = more.first
    line.last = more.last
    line.length += more.length
    more.first = more.last = NULL
    more.length = 0


cdef inline bint loop_wake_locked(loop_t *loop) noexcept nogil:
    """Wake somebody who sleeps, for work that is in a queue already."""
    cdef worker_t *worker = loop.parked
    if worker != NULL:
        loop.parked = worker.next_parked
        worker.woken = True
        atomic_add32(&loop.awake, 1)
        cond_signal(&worker.cond)
        return True
    if loop.polling:
        loop.polling = False
        poller_wake(&loop.context.poller)
        return True
    return False


cdef inline void loop_touch(loop_t *loop) noexcept nogil:
    """Tell the monitor thread that something goes on, and see that it is awake."""
    if atomic_swap32(&loop.monitor_word, MONITOR_ACTIVE) == MONITOR_ASLEEP:
        lock_take(&loop.monitor_lock)
        cond_signal(&loop.monitor_cond)
        lock_give(&loop.monitor_lock)


cdef inline void loop_notice(loop_t *loop, uint32_t notice) noexcept nogil:
    """Have something said in Python."""
    lock_take(&loop.lock)
    loop.notices |= notice
    loop_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline void loop_tell(loop_t *loop, uint32_t news) noexcept nogil:
    """Have something written into the log."""
    lock_take(&loop.lock)
    loop.news |= news
    cond_signal(&loop.news_cond)
    lock_give(&loop.lock)


cdef inline uint32_t loop_await_news(loop_t *loop) noexcept nogil:
    """By the log thread: what there is to be written; 0: nothing more, the loop ends."""
    cdef uint32_t news
    lock_take(&loop.lock)
    while not loop.news and not loop.exiting:
        cond_wait(&loop.news_cond, &loop.lock)
    news = loop.news
    loop.news = 0
    lock_give(&loop.lock)
    return news


cdef inline void loop_set_alarm(loop_t *loop, uint64_t when) noexcept nogil:
    """Have NOTICE_ALARM said at the monotonic time `when`, or earlier. The monitor thread computes how long it sleeps under this lock: it does not oversleep."""
    lock_take(&loop.monitor_lock)
    if not loop.alarm or when < loop.alarm:
        atomic_store64(&loop.alarm, when)
        cond_signal(&loop.monitor_cond)
    lock_give(&loop.monitor_lock)


cdef inline void loop_serve_later(loop_t *loop, connection_t *connection, bint wake) noexcept nogil:
    """Put an owned connection into the service queue. `wake` unless the caller is a worker in its turn."""
    lock_take(&loop.lock)
    line_push(&loop.service, connection)
    if wake:
        loop_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline void loop_post(loop_t *loop, connection_t *connection, uint32_t generation, uint32_t bits, bint wake) noexcept nogil:
    """Post mailbox bits, and do what connection_flush and connection_end want done besides."""
    if bits & FLUSH_DRAINED:
        connection_wake_drainers(&loop.context)
    bits &= WORD_BITS & ~<uint32_t>(FLUSH_MORE | FLUSH_DRAINED)
    if bits and connection_post(connection, generation, bits) == POST_OWNER:
        loop_serve_later(loop, connection, wake)


cdef inline void loop_end(loop_t *loop, connection_t *connection, uint32_t generation, bint abort, int cause, int code, bint wake) noexcept nogil:
    """Ask for the end of a connection. Any thread."""
    loop_post(loop, connection, generation, connection_end(&loop.context, connection, generation, abort, cause, code), wake)


cdef inline connection_t *loop_connection(loop_t *loop, uint64_t token) noexcept nogil:
    """The slot that a token speaks of; whether it is still the token's is for the caller to find out."""
    sys_assert(<uint32_t>(token & 0xFFFFFF) < slab_used(&loop.slab))
    return <connection_t *>slab_slot(&loop.slab, <uint32_t>(token & 0xFFFFFF))


cdef inline connection_t *loop_at(loop_t *loop, uint32_t index) noexcept nogil:
    return <connection_t *>slab_slot(&loop.slab, index)


# --- output --------------------------------------------------------------------------------------------------------------------------------

cdef inline void loop_check_memory(loop_t *loop) noexcept nogil:
    """Stop all reading when too much is buffered; the monitor thread sees to the rest."""
    if relaxed_load64(&loop.context.buffered) > loop.context.max_buffered and not relaxed_load32(&loop.context.full):
        if not atomic_swap32(&loop.context.full, 1):
            atomic_add64(&loop.context.memory_pauses, 1)
        loop_touch(loop)


cdef inline bint loop_flush(loop_t *loop, io_t *io, connection_t *connection, uint32_t generation, bint wake) noexcept nogil:
    """Flush one connection; True when there is more to flush."""
    cdef uint32_t bits = connection_flush(&loop.context, io, connection, generation)
    if bits:
        loop_post(loop, connection, generation, bits, wake)
    loop_watch_output(loop, connection)
    loop_check_memory(loop)
    return bits & FLUSH_MORE != 0


cdef inline void loop_watch_output(loop_t *loop, connection_t *connection) noexcept nogil:
    """After a flush: output that is stuck has a deadline, and whoever notices it sees that it is kept. See loop_watch."""
    if relaxed_load32(&connection.stuck) and loop.context.write_timeout:
        loop_watch_all(loop, WATCH_CONFIGURED)


cdef inline void loop_flush_whole(loop_t *loop, io_t *io, connection_t *connection, uint32_t generation, bint wake) noexcept nogil:
    """Flush one connection, whatever the budget."""
    while loop_flush(loop, io, connection, generation, wake):
        pass


cdef inline void worker_cork(worker_t *worker, uint64_t token) noexcept nogil:
    """Remember to flush; there must be room."""
    sys_assert(worker.corked_count < CORKED_MOST)
    atomic_store64(&worker.corked[worker.corked_count], token)
    worker.corked_count += 1


cdef inline void worker_flush(worker_t *worker) noexcept nogil:
    """Flush what this worker has corked. What is not done within its budget is corked again."""
    cdef loop_t *loop = worker.loop
    cdef uint32_t count = worker.corked_count
    cdef uint32_t k
    cdef uint64_t token
    worker.corked_count = 0
    for k in range(count):
        token = atomic_swap64(&worker.corked[k], 0)
        if token and loop_flush(loop, &worker.io, loop_connection(loop, token), <uint32_t>(token >> 32), False):
            worker_cork(worker, token)


cdef inline void loop_flush_for(loop_t *loop, io_t *io, worker_t *worker, bint wake) noexcept nogil:
    """Flush what a worker has corked that is stuck in a callback."""
    cdef uint32_t k
    cdef uint64_t token
    for k in range(<uint32_t>CORKED_MOST):
        if relaxed_load64(&worker.corked[k]):
            token = atomic_swap64(&worker.corked[k], 0)
            if token:
                loop_flush_whole(loop, io, loop_connection(loop, token), <uint32_t>(token >> 32), wake)


cdef inline void worker_takes_over(worker_t *worker) noexcept nogil:
    """Called with the GIL, which another worker may have had last: if that one is in a callback still it lost the GIL there, and blocks, as a rule.

    So what it has corked does not wait for the monitor thread, and eager mode can cork: a turn's replies are sent one after the other, at less
    CPU time than each after its callback. Whom this misses (it looks at one worker only) the monitor thread finds.
    """
    cdef loop_t *loop = worker.loop
    cdef uint32_t last = relaxed_load32(&loop.dispatching)
    if HYDROGEN_GIL and last != worker.index + 1:
        relaxed_store32(&loop.dispatching, worker.index + 1)
        if last and relaxed_load32(&loop.workers[last - 1].state) == WORKER_CALLBACK:
            loop_flush_for(loop, &worker.io, &loop.workers[last - 1], False)


# What became of a broadcast.
ctypedef struct broadcast_t:
    uint64_t sent, dropped
    uint32_t others  # connections that the caller has to send to


cdef inline void loop_broadcast(
    loop_t *loop, io_t *io, bint wake, shared_t *shared, const uint32_t *skip, uint64_t *others, uint32_t used, broadcast_t *report,
) noexcept nogil:
    """Send `shared` to each open connection below index `used` that is framed as `context.framing` says, and flush it.

    But not to one whose generation `skip` names. The tokens of open connections that are framed otherwise go to `others`. An empty message has
    nothing to be sent without framing, and is taken.
    """
    cdef connection_t *connection
    cdef block_t *block
    cdef uint32_t generation, bits, index
    cdef int result
    cdef bint wanted, other
    report.sent = report.dropped = 0
    report.others = 0
    for index in range(used):
        connection = loop_at(loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:
            continue
        lock_take(&connection.lock)
        generation = connection_generation(connection)
        wanted = connection.state in (STATE_OPEN, STATE_CLOSING) and atomic_load32(&connection.ready) and skip[index] != generation
        other = connection.session != NULL or connection.port != NULL or connection_framing(connection) != loop.context.framing
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
            result = SEND_NOTHING if atomic_load32(&connection.state) == STATE_OPEN else SEND_REFUSED
        else:
            block = block_of_shared(shared)
            if block != NULL:
                result = connection_append(&loop.context, NULL, connection, generation, block, STATE_OPEN, NOT_CORKED, &bits)
        if result == SEND_NOW:
            loop_flush_whole(loop, io, connection, generation, wake)
        elif bits:
            loop_post(loop, connection, generation, bits, wake)
        loop_check_memory(loop)
        if result == SEND_REFUSED:
            report.dropped += 1
            io_count(io, &io.counters.messages_refused)
        else:
            report.sent += 1
            io_count(io, &io.counters.messages_sent)


# --- steps of owned connections --------------------------------------------------------------------------------------------------------------

cdef inline void loop_release(loop_t *loop, io_t *io, connection_t *connection) noexcept nogil:
    """The last of a connection: fd closed, slot back."""
    connection_release(&loop.context, io, connection)
    slab_release(&loop.slab, &connection.slot)
    # `stopping` is set before `live` is looked at, in loop_close_all; here it is the other way round: one of the two sees the other. So it is with
    # the acceptor's `waits`, which the accept thread sets before it looks at each `live` a last time.
    if atomic_add64(&loop.live, <uint64_t>-1) == 1 and atomic_load32(&loop.stopping):
        loop_notice(loop, NOTICE_DRAINED)
    if atomic_load32(&loop.acceptor.waits) and atomic_swap32(&loop.acceptor.waits, 0):
        sys_event_set(loop.acceptor.event)


cdef inline void loop_watch(loop_t *loop, connection_t *connection) noexcept nogil:
    """Before letting go: count what stays of the input, and see that its deadline, if it has one, is kept.

    The monitor thread clears `watched` before it sweeps, and sets it again when a deadline is left. So either it was cleared before this thread looks, which
    then sets it and wakes the monitor thread, or the sweep comes after this deadline was stored, and sees it.
    """
    connection_set_input_count(&loop.context, connection)
    connection_watch_frame(&loop.context, connection)
    if relaxed_load64(&connection.input_counted):
        loop_check_memory(loop)
    if relaxed_load64(&connection.deadline):
        loop_watch_all(loop, WATCH_LINGERING if connection.flags & FLAG_LINGERING else WATCH_CONFIGURED)


cdef inline void loop_watch_all(loop_t *loop, uint32_t kind) noexcept nogil:
    """Some connection has a deadline of that kind: have the monitor thread sweep. See loop_watch."""
    if not atomic_load32(&loop.context.watched) & kind:
        atomic_or32(&loop.context.watched, kind)
        loop_touch(loop)


cdef inline void loop_step(loop_t *loop, worker_t *worker, connection_t *connection, line_t *ready, line_t *service) noexcept nogil:
    """Do what can be done off the GIL for an owned connection; put it where it goes on."""
    cdef int verdict = connection_step(&loop.context, &worker.io, connection)
    if verdict == VERDICT_DISPATCH:
        line_push(ready, connection)
    elif verdict == VERDICT_RELEASE:
        loop_release(loop, &worker.io, connection)
    elif verdict == VERDICT_AGAIN:
        line_push(service, connection)
    else:
        loop_watch(loop, connection)
        if not connection_let_go(connection):
            line_push(service, connection)


cdef inline void loop_settle(loop_t *loop, connection_t *connection) noexcept nogil:
    """After the callbacks: let go of the connection, or have it served if something is left to do for it."""
    if connection.flags & FLAGS_ENDED and not connection.flags & FLAG_EOF_TOLD:
        connection.mail |= FRAMES
    loop_watch(loop, connection)
    if not connection_let_go(connection):
        loop_serve_later(loop, connection, False)


cdef inline void loop_hand_over_locked(loop_t *loop, line_t *ready, line_t *service) noexcept nogil:
    cdef connection_t *connection = ready.first
    while connection != NULL:
        loop.undelivered += connection_undelivered(connection)
        connection = connection.next
    line_append(&loop.ready, ready)
    line_append(&loop.service, service)


cdef inline connection_t *loop_pop_ready(loop_t *loop) noexcept nogil:
    """The next connection that needs Python; NULL when there is none."""
    cdef connection_t *connection
    lock_take(&loop.lock)
    connection = line_pop(&loop.ready)
    if connection != NULL:
        loop.undelivered -= connection_undelivered(connection)
    lock_give(&loop.lock)
    return connection


cdef inline bint loop_has_ready(loop_t *loop) noexcept nogil:
    cdef bint found
    lock_take(&loop.lock)
    found = loop.ready.first != NULL
    lock_give(&loop.lock)
    return found


cdef inline size_t loop_undelivered(loop_t *loop) noexcept nogil:
    cdef size_t undelivered
    lock_take(&loop.lock)
    undelivered = loop.undelivered
    lock_give(&loop.lock)
    return undelivered


cdef inline uint32_t event_bits(uint32_t events) noexcept nogil:
    cdef uint32_t bits = 0
    if events & EPOLLIN:
        bits |= READABLE
    if events & EPOLLPRI:
        bits |= READABLE | URGENT
    if events & EPOLLRDHUP:
        bits |= END
    if events & (EPOLLHUP | EPOLLERR):
        bits |= HANGUP
    return bits


cdef inline uint32_t loop_event_output(loop_t *loop, io_t *io, connection_t *connection, uint32_t generation, uint32_t events, bint wake) noexcept nogil:
    """The output half of an event. Returns the bits that it means for the owner. FLUSH_MORE: the caller has to come again."""
    cdef int meaning
    if not events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        return 0
    meaning = connection_unblock(&loop.context, connection, generation)
    if meaning == EDGE_PORT:
        return PORT_OUT
    return FLUSH_MORE if meaning == EDGE_FLUSH and loop_flush(loop, io, connection, generation, wake) else 0


cdef inline void loop_poll(loop_t *loop, worker_t *worker, int timeout, line_t *ready, line_t *service) noexcept nogil:
    """The event role: poll, and take each connection with news as far as it goes off the GIL."""
    cdef int count = poller_wait(&loop.context.poller, loop.events, timeout)
    cdef connection_t *connection
    cdef uint32_t generation, events, bits
    cdef uint64_t token
    cdef int k
    if count:
        counter_bump(&worker.io.counters.polls, 1)
    for k in range(count):
        token = loop.events[k].data.u64
        if token == TOKEN_WAKE:
            continue
        events = loop.events[k].events
        connection = loop_connection(loop, token)
        generation = <uint32_t>(token >> 32)
        bits = loop_event_output(loop, &worker.io, connection, generation, events, False)
        if bits & FLUSH_MORE:
            bits = 0
            if worker.corked_count < CORKED_MOST:
                worker_cork(worker, token)
            else:
                loop_flush_whole(loop, &worker.io, connection, generation, False)
        bits |= event_bits(events)
        if bits and connection_post(connection, generation, bits) == POST_OWNER:
            loop_step(loop, worker, connection, ready, service)


# --- life ------------------------------------------------------------------------------------------------------------------------------------

cdef inline void loop_clear(loop_t *loop) noexcept nogil:
    """Make a zeroed loop one that loop_exit and loop_destroy may be called for."""
    loop.forks = sys_forks
    loop.context.poller.epoll_fd = -1
    loop.outside_io.counters.shared = True
    lock_init(&loop.lock, RANK_QUEUE)
    lock_init(&loop.monitor_lock, RANK_MONITOR)
    lock_init(&loop.context.fd_lock, RANK_FD)
    lock_init(&loop.context.drain_lock, RANK_DRAIN)
    cond_init(&loop.monitor_cond)
    cond_init(&loop.news_cond)
    cond_init(&loop.context.drain_cond)


cdef inline int loop_init(loop_t *loop, acceptor_t *acceptor, uint32_t workers, uint32_t pre_allocated, size_t scratch) noexcept nogil:
    """Allocate. 0 or -errno; after either, loop_destroy."""
    cdef worker_t *worker
    cdef int failed
    cdef uint32_t k
    loop.acceptor = acceptor
    loop.context.addresses = &acceptor.addresses
    if not slab_init(&loop.slab, sizeof(connection_t), pre_allocated):
        return -ENOMEM
    loop.workers = <worker_t *>calloc(workers, sizeof(worker_t))
    if loop.workers == NULL:
        return -ENOMEM
    loop.worker_count = workers
    atomic_store32(&loop.workers_left, workers)
    atomic_store32(&loop.awake, workers)
    for k in range(workers):
        worker = &loop.workers[k]
        worker.loop = loop
        worker.index = k
        cond_init(&worker.cond)
        worker.io.scratch_size = scratch
        worker.io.scratch = <char *>malloc(scratch)
        if worker.io.scratch == NULL:
            return -ENOMEM
    failed = poller_init(&loop.context.poller)
    if failed:
        loop.context.poller.epoll_fd = -1
    else:
        acceptor.loops[acceptor.loop_count] = loop
        acceptor.loop_count += 1
        atomic_add32(&acceptor.loops_left, 1)
    return failed


cdef inline void loop_close_fds(loop_t *loop) noexcept nogil:
    if loop.context.poller.epoll_fd >= 0:
        poller_close(&loop.context.poller)
    loop.context.poller.epoll_fd = -1


cdef inline uint32_t acceptor_workers_before(acceptor_t *acceptor, loop_t *loop) noexcept nogil:
    """How many workers the loops before this one have."""
    cdef uint32_t count = 0
    cdef uint32_t k
    for k in range(acceptor.loop_count):
        if acceptor.loops[k] == loop:
            break
        count += acceptor.loops[k].worker_count
    return count


cdef inline void acceptor_close_fd(acceptor_t *acceptor) noexcept nogil:
    if acceptor.event >= 0:
        sys_close(acceptor.event)
    acceptor.event = -1


cdef inline void loop_destroy(loop_t *loop) noexcept nogil:
    """Free all; no thread of the loop runs any more."""
    cdef uint32_t k
    loop_close_fds(loop)
    if loop.workers != NULL:
        for k in range(loop.worker_count):
            pool_destroy(&loop.workers[k].io.pool)
            free(loop.workers[k].io.scratch)
            cond_destroy(&loop.workers[k].cond)
    free(loop.workers)
    slab_destroy(&loop.slab)
    cond_destroy(&loop.monitor_cond)
    cond_destroy(&loop.news_cond)
    cond_destroy(&loop.context.drain_cond)
    lock_destroy(&loop.monitor_lock)
    lock_destroy(&loop.lock)
    lock_destroy(&loop.context.fd_lock)
    lock_destroy(&loop.context.drain_lock)


cdef inline int loop_register(loop_t *loop, connection_t *connection) noexcept nogil:
    """Have a connection polled, once; 0 or -errno. The owner only."""
    cdef int failed = poller_add(&loop.context.poller, connection.poll_fd, connection_token(connection), connection.unix_domain)
    if not failed:
        connection.flags |= FLAG_POLLED
    return failed


cdef inline void loop_end_all(loop_t *loop, bint abort, uint64_t *unsent, uint64_t *count) noexcept nogil:
    """End every connection, in order or at once. `unsent`: pending output of those that this reset; `count`: how many they are."""
    cdef connection_t *connection
    cdef uint32_t generation, bits, index
    cdef size_t pending
    for index in range(slab_used(&loop.slab)):
        connection = loop_at(loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:
            continue
        lock_take(&connection.lock)
        generation = connection_generation(connection)
        pending = connection.pending
        lock_give(&connection.lock)
        bits = connection_end(&loop.context, connection, generation, abort, CAUSE_SERVER_STOPPED, 0)
        if bits & ABORT:
            unsent[0] += pending
            count[0] += 1
        loop_post(loop, connection, generation, bits, True)


cdef inline void loop_exit(loop_t *loop) noexcept nogil:
    """Have every worker end that is not in a callback, and the others when they come out. The monitor thread and the accept thread have ended."""
    lock_take(&loop.lock)
    loop.exiting = True
    cond_signal(&loop.news_cond)
    while loop.parked != NULL or loop.polling:
        loop_wake_locked(loop)
    lock_give(&loop.lock)
