"""The monitor thread never runs Python. It finds stalled callbacks, flushes for workers that are
stuck, polls where no worker comes to it, keeps deadlines, and sees to the limit of memory.

It sleeps when nothing is due; why it does not oversleep is argued in queues.pxd, 3.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.acceptor cimport acceptor_accept
from hydrogen._c.atomic cimport (
    atomic_cas32, atomic_load32, atomic_load64, atomic_store32, atomic_store64, atomic_swap32,
    relaxed_load32, relaxed_load64, relaxed_store32, relaxed_store64,
)
from hydrogen._c.constants cimport (
    BRIEF_TICKS, CAUSE_SLOW_CONSUMER, LOG_ALL_BLOCKED, MONITOR_ACTIVE, MONITOR_ASLEEP, MONITOR_IDLE,
    PAUSE_MEMORY, SLOW_CALLBACKS, STATE_ABORTING, STATE_VACANT, TASK_TIMERS, TICKS_IDLE, TICK_NS,
    TICK_QUIET, TICK_SLOWEST, UNPOLLED_TICKS, WORKER_BRIEF, WORKER_CALLBACK, WORKER_FLUSH,
    WORKER_WANT_GIL,
)
from hydrogen._c.deadlines cimport deadlines_next_sweep, deadlines_sweep
from hydrogen._c.flush cimport flush_for, flush_on_event
from hydrogen._c.keepalive cimport keepalive_sweep
from hydrogen._c.kernel cimport (
    HYDROGEN_GIL, HYDROGEN_PLANTED_RACE, kernel_now, kernel_thread_start, pthread_join,
)
from hydrogen._c.lock cimport cond_signal, cond_wait, cond_wait_until, lock_give, lock_take
from hydrogen._c.loop cimport loop_event_bits
from hydrogen._c.mailbox cimport mailbox_at, mailbox_of, mailbox_pauses, mailbox_token
from hydrogen._c.poller cimport TOKEN_LISTENER, TOKEN_WAKE, poller_wait
from hydrogen._c.queues cimport (
    queues_add_task, queues_end, queues_is_full, queues_log, queues_post, queues_resume,
    queues_wake_locked,
)
from hydrogen._c.slab cimport slab_used
from hydrogen._c.structs cimport connection_t, loop_t, worker_t


cdef inline void monitor_set_alarm(loop_t *loop, uint64_t when) noexcept nogil:
    """Have TASK_TIMERS said at the monotonic time `when`, or earlier. The monitor thread computes
    how long it sleeps under this lock: it does not oversleep.
    """
    lock_take(&loop.monitor_lock)
    if not loop.alarm or when < loop.alarm:
        atomic_store64(&loop.alarm, when)
        cond_signal(&loop.monitor_cond)
    lock_give(&loop.monitor_lock)


cdef inline void monitor_poll(loop_t *loop) noexcept nogil:
    """Do the output half of the event role while no worker comes to it; the input half is posted,
    unread.
    """
    cdef int count = poller_wait(&loop.context.poller, loop.events, 0)
    cdef connection_t *connection
    cdef uint32_t generation
    cdef uint64_t token
    cdef int k
    for k in range(count):
        token = loop.events[k].data.u64
        generation = <uint32_t>(token >> 32)
        if not generation:
            if token != TOKEN_WAKE:
                acceptor_accept(loop, <uint32_t>token - TOKEN_LISTENER, True)
            continue
        connection = mailbox_of(loop, token)
        flush_on_event(loop, &loop.monitor_io, connection, generation, loop.events[k].events, False)
        queues_post(loop, connection, generation, loop_event_bits(loop.events[k].events), False)


cdef inline bint monitor_stand_in(loop_t *loop, bint may_wake) noexcept nogil:
    """Nobody has polled for a while: workers are in callbacks, short or long ones, or wait for the
    GIL. Poll for them, if the role is vacant. True when some connection waits for a worker.

    `may_wake`: whoever parked meanwhile because the role was taken. Not where somebody waits for
    the GIL, or, with one, goes from one short callback to the next: another one would only wait
    beside him. But he may have come out, and have parked, since that was seen: where all are parked
    one has to be woken, or nobody polls.
    """
    cdef bint waits
    cdef uint32_t parked = 0
    cdef worker_t *worker
    lock_take(&loop.lock)
    if loop.role_taken:
        lock_give(&loop.lock)
        return False
    loop.role_taken = True
    lock_give(&loop.lock)
    monitor_poll(loop)
    lock_take(&loop.lock)
    loop.role_taken = False
    worker = loop.parked
    while worker != NULL:
        parked += 1
        worker = worker.next_parked
    if may_wake or parked == loop.worker_count:
        queues_wake_locked(loop)
    waits = loop.ready.first != NULL or loop.service.first != NULL
    lock_give(&loop.lock)
    return waits


# What a look at the workers has found.
ctypedef struct look_t:
    bint busy         # somebody is in a callback, flushes, or waits for the GIL
    bint stalled      # a callback lasts since the look before, or each takes long
    bint waiting      # somebody waits for the GIL
    bint all_blocked  # all stall
    uint64_t polls    # of all workers, so far


cdef inline void monitor_look(loop_t *loop, uint32_t ticks, look_t *seen) noexcept nogil:
    """Look at each worker, after so many ticks; help those that stall."""
    cdef worker_t *worker
    cdef uint64_t progress, callbacks
    cdef uint32_t state, k
    cdef uint32_t blocked = 0, stalled = 0
    seen.busy = seen.waiting = False
    seen.polls = 0
    if HYDROGEN_PLANTED_RACE:
        loop.planted_race += 1
    for k in range(loop.worker_count):
        worker = &loop.workers[k]
        state = relaxed_load32(&worker.state)
        progress = relaxed_load64(&worker.progress)
        callbacks = progress - worker.seen_progress
        worker.brief = worker.brief + 1 if state == WORKER_BRIEF and not callbacks else 0
        if state == WORKER_BRIEF:
            state = WORKER_CALLBACK if worker.brief > BRIEF_TICKS else WORKER_WANT_GIL
        if (
            state == WORKER_CALLBACK and worker.seen_callback and
            callbacks <= <uint64_t>SLOW_CALLBACKS * ticks
        ):
            blocked += callbacks == 0
            stalled += 1
            flush_for(loop, &loop.monitor_io, worker, True)
            relaxed_store32(&loop.stalled, k + 1)
        worker.seen_callback = state == WORKER_CALLBACK
        worker.seen_progress = progress
        seen.polls += relaxed_load64(&worker.io.counters.polls)
        seen.busy |= state >= WORKER_FLUSH
        seen.waiting |= state == WORKER_WANT_GIL
    seen.stalled = stalled != 0
    seen.all_blocked = blocked == loop.worker_count
    if not stalled:
        relaxed_store32(&loop.stalled, 0)
        return
    relaxed_store64(&loop.stalls, relaxed_load64(&loop.stalls) + 1)
    if not seen.waiting:
        lock_take(&loop.lock)
        if (
            loop.ready.first != NULL or loop.service.first != NULL or loop.tasks or
            not loop.role_taken
        ):
            queues_wake_locked(loop)
        lock_give(&loop.lock)


cdef inline uint64_t monitor_worst(loop_t *loop, bint output) noexcept nogil:
    """Token of the connection with the most pending output, or with the most input left; 0: none
    has any.
    """
    cdef connection_t *connection
    cdef uint64_t weight, token = 0, most = 0
    cdef uint32_t index
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:
            continue
        lock_take(&connection.lock)
        weight = connection.pending_counted if output else relaxed_load64(&connection.input_counted)
        if weight > most and connection.state < STATE_ABORTING:
            most = weight
            token = mailbox_token(connection)
        lock_give(&connection.lock)
    return token


cdef inline void monitor_memory(loop_t *loop) noexcept nogil:
    """Too much is buffered: the connection with the most output goes; where there is none, the one
    with the most input. Else reading goes on.
    """
    cdef connection_t *connection
    cdef uint64_t token
    cdef uint32_t generation, index
    if queues_is_full(loop):
        token = monitor_worst(loop, True) or monitor_worst(loop, False)
        if token:
            queues_end(
                loop, mailbox_of(loop, token), <uint32_t>(token >> 32), True, CAUSE_SLOW_CONSUMER,
                0,
                NULL, True)
        return
    atomic_store32(&loop.context.full, 0)
    for index in range(slab_used(&loop.slab)):
        connection = mailbox_at(loop, index)
        generation = <uint32_t>(atomic_load64(&connection.slot.word) >> 32)
        if mailbox_pauses(connection) & PAUSE_MEMORY:
            queues_resume(loop, connection, generation, PAUSE_MEMORY, True)


cdef inline void monitor_alarm(loop_t *loop) noexcept nogil:
    """Ring, once, if it is time."""
    cdef bint rings = False
    if not atomic_load64(&loop.alarm):
        return
    lock_take(&loop.monitor_lock)
    if loop.alarm and kernel_now() >= loop.alarm:
        atomic_store64(&loop.alarm, 0)
        rings = True
    lock_give(&loop.monitor_lock)
    if rings:
        queues_add_task(loop, TASK_TIMERS)


cdef inline void monitor_wait_locked(loop_t *loop, uint64_t until) noexcept nogil:
    """Wait until the time `until`, 0: for ever, or the alarm, or a signal."""
    if loop.alarm and (not until or loop.alarm < until):
        until = loop.alarm
    if until:
        cond_wait_until(&loop.monitor_cond, &loop.monitor_lock, until)
    else:
        cond_wait(&loop.monitor_cond, &loop.monitor_lock)


cdef inline void *monitor_main(void *argument) noexcept nogil:
    """Deadlines and stalls. Asleep when nothing is due."""
    cdef loop_t *loop = <loop_t *>argument
    cdef uint64_t swept = 0
    cdef uint64_t sweep_at
    cdef uint32_t tick = 1
    cdef uint32_t quiet = 0
    cdef uint32_t idle = 0
    cdef bint said = False
    cdef uint32_t eager
    cdef uint32_t unpolled = 0
    cdef uint64_t polls = 0
    cdef uint64_t look_at = 0
    cdef bint waits, looks
    cdef bint active = False
    cdef look_t seen
    seen.busy = False
    while not atomic_load32(&loop.monitor_stop):
        looks = kernel_now() >= look_at  # else an alarm was set, or rings
        if looks:
            active = atomic_swap32(&loop.monitor_word, MONITOR_IDLE) == MONITOR_ACTIVE
            monitor_look(loop, tick, &seen)
            if seen.stalled:
                tick = 1
                quiet = 0
            else:
                quiet += 1
                if quiet % TICK_QUIET == 0 and tick < TICK_SLOWEST:
                    tick *= 2
            unpolled = unpolled + 1 if seen.busy and seen.polls == polls else 0
            polls = seen.polls
            if not seen.all_blocked:
                said = False
            if unpolled >= UNPOLLED_TICKS:
                waits = monitor_stand_in(
                    loop, not seen.waiting and (seen.stalled or not HYDROGEN_GIL)
                )
                if waits and seen.all_blocked and not said:
                    said = True
                    relaxed_store64(&loop.all_blocked, relaxed_load64(&loop.all_blocked) + 1)
                    queues_log(loop, LOG_ALL_BLOCKED)
            eager = relaxed_load32(&loop.eager)
            if eager:
                relaxed_store32(&loop.eager, eager - tick if eager > tick else 0)
            look_at = kernel_now() + tick * <uint64_t>TICK_NS
        monitor_alarm(loop)
        if relaxed_load32(&loop.context.full):
            monitor_memory(loop)
            active = True
        sweep_at = deadlines_next_sweep(loop, swept)
        if sweep_at and kernel_now() >= sweep_at:
            deadlines_sweep(loop)
            if loop.context.pings != NULL:
                keepalive_sweep(loop)
            swept = kernel_now()
        idle = 0 if active or seen.busy else idle + looks
        lock_take(&loop.monitor_lock)
        if atomic_load32(&loop.monitor_stop):
            pass
        elif idle < TICKS_IDLE or not looks:
            monitor_wait_locked(loop, look_at)
        elif atomic_cas32(&loop.monitor_word, MONITOR_IDLE, MONITOR_ASLEEP):
            # A toucher that finds ASLEEP signals under monitor_lock: not before this thread waits.
            # Woken for nothing it comes here again at once.
            monitor_wait_locked(loop, deadlines_next_sweep(loop, swept))
            tick = 1
            quiet = 0
        lock_give(&loop.monitor_lock)
    return NULL


cdef inline int monitor_start(loop_t *loop) noexcept nogil:
    """0 or -errno."""
    cdef int failed = kernel_thread_start(&loop.monitor_thread, monitor_main, loop)
    loop.monitor_started = not failed
    return failed


cdef inline void monitor_end(loop_t *loop) noexcept nogil:
    """End the thread, if it runs, and wait for it."""
    if loop.monitor_started:
        loop.monitor_started = False
        lock_take(&loop.monitor_lock)
        atomic_store32(&loop.monitor_stop, 1)
        cond_signal(&loop.monitor_cond)
        lock_give(&loop.monitor_lock)
        pthread_join(loop.monitor_thread, NULL)
