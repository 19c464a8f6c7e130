"""The monitor thread: a thread that never runs Python. It finds stalled callbacks, flushes and polls for workers that are stuck, keeps deadlines, and sees to
the limit of memory. It sleeps when nothing is due; why it does not oversleep is argued in loop.pxd, 3.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.connection cimport (
    CAUSE_SLOW_CONSUMER, CAUSE_TIMEOUT, DEADLINE, FLUSH_MORE, PAUSE_MEMORY, RESUME, STATE_ABORTING, STATE_CLOSING, STATE_VACANT, STUCK_NEWLY, STUCK_SEEN, TIMEOUT_WRITE, connection_t,
    connection_token, context_t, WATCH_CONFIGURED, WATCH_LINGERING,
)
from hydrogen._c.loop cimport (
    LINGER_SWEEP_NS, NEWS_ALL_BLOCKED, NOTICE_ALARM, TICKS_IDLE, TICK_NS, TICK_QUIET, TICK_SLOWEST, MONITOR_ACTIVE, MONITOR_ASLEEP, MONITOR_IDLE,
    WORKER_CALLBACK, WORKER_FLUSH, WORKER_WANT_GIL, event_bits, loop_at, loop_connection, loop_end, loop_event_output, loop_flush_for,
    loop_flush_whole, loop_notice, loop_post, loop_t, loop_tell, loop_wake_locked, worker_t,
)
from hydrogen._c.output cimport connection_is_stuck, connection_unacknowledged
from hydrogen._c.poller cimport TOKEN_WAKE, poller_wait
from hydrogen._c.slab cimport slab_used
from hydrogen._c.sys cimport (
    HYDROGEN_PLANTED_RACE, atomic_and32, atomic_cas32, atomic_load32, atomic_load64, atomic_or32, atomic_store32, atomic_store64, atomic_swap32, cond_signal, cond_wait,
    cond_wait_until, lock_give, lock_take, pthread_join, relaxed_load32, relaxed_load64, relaxed_store32, relaxed_store64, sys_now,
    sys_thread_start,
)


cdef inline void monitor_poll(loop_t *loop) noexcept nogil:
    """Do the output half of the event role while all workers are in callbacks; the input half is posted, unread."""
    cdef int count = poller_wait(&loop.context.poller, loop.events, 0)
    cdef connection_t *connection
    cdef uint32_t generation, bits
    cdef uint64_t token
    cdef int k
    for k in range(count):
        token = loop.events[k].data.u64
        if token == TOKEN_WAKE:
            continue
        connection = loop_connection(loop, token)
        generation = <uint32_t>(token >> 32)
        bits = loop_event_output(loop, &loop.monitor_io, connection, generation, loop.events[k].events, False)
        if bits & FLUSH_MORE:
            bits = 0
            loop_flush_whole(loop, &loop.monitor_io, connection, generation, False)
        loop_post(loop, connection, generation, bits | event_bits(loop.events[k].events), False)


cdef inline bint monitor_stand_in(loop_t *loop) noexcept nogil:
    """All workers are in callbacks: poll for them, if the role is vacant. Wake whoever parked meanwhile because the role was taken.

    True when some connection waits for a worker.
    """
    cdef bint waits
    lock_take(&loop.lock)
    if loop.role_taken or loop.parked != NULL:
        lock_give(&loop.lock)
        return False
    loop.role_taken = True
    lock_give(&loop.lock)
    monitor_poll(loop)
    lock_take(&loop.lock)
    loop.role_taken = False
    loop_wake_locked(loop)
    waits = loop.ready.first != NULL or loop.service.first != NULL
    lock_give(&loop.lock)
    return waits


cdef inline bint monitor_look(loop_t *loop, bint *busy, bint *all_blocked) noexcept nogil:
    """Look at each worker; help those that stall. True when one does."""
    cdef worker_t *worker
    cdef uint64_t progress
    cdef uint32_t state
    cdef uint32_t k
    cdef uint32_t blocked = 0
    cdef bint waiting = False
    cdef bint stalled = False
    busy[0] = False
    if HYDROGEN_PLANTED_RACE:
        loop.planted_race += 1
    for k in range(loop.worker_count):
        worker = &loop.workers[k]
        state = relaxed_load32(&worker.state)
        if state == WORKER_CALLBACK:
            busy[0] = True
            progress = relaxed_load64(&worker.progress)
            if worker.seen_callback and worker.seen_progress == progress:
                stalled = True
                blocked += 1
                loop_flush_for(loop, &loop.monitor_io, worker, True)
                relaxed_store64(&loop.stalled_progress, progress)
                relaxed_store32(&loop.stalled, k + 1)
            worker.seen_callback = True
            worker.seen_progress = progress
        else:
            worker.seen_callback = False
            if state >= WORKER_FLUSH:
                busy[0] = True
            if state == WORKER_WANT_GIL:
                waiting = True
    all_blocked[0] = blocked == loop.worker_count
    if not stalled:
        relaxed_store32(&loop.stalled, 0)
        return False
    relaxed_store64(&loop.stalls, relaxed_load64(&loop.stalls) + 1)
    if not waiting:
        lock_take(&loop.lock)
        if loop.ready.first != NULL or loop.service.first != NULL or loop.notices or not loop.role_taken:
            loop_wake_locked(loop)
        lock_give(&loop.lock)
    return True


cdef inline bint monitor_look_at(loop_t *loop, connection_t *connection, uint64_t now, uint32_t *left) noexcept nogil:
    """Whether one of a connection's deadlines seems to have passed. `left`: the kinds that it has are added. Keeps the times since when it is idle, and
    stuck; ends it if it is stuck for too long.

    A sweep that finds that bytes moved since the last one says that they moved now: a little late, never early. So nobody reads a clock for a message.
    """
    cdef context_t *context = &loop.context
    cdef uint32_t generation = <uint32_t>(atomic_load64(&connection.slot.word) >> 32)
    cdef uint64_t deadline = atomic_load64(&connection.deadline)
    cdef uint32_t stuck = relaxed_load32(&connection.stuck)
    cdef int unacknowledged
    cdef bint late = deadline != 0 and now >= deadline
    if deadline:
        left[0] |= WATCH_LINGERING if relaxed_load32(&connection.state) == STATE_CLOSING else WATCH_CONFIGURED
    if context.write_timeout and stuck:
        left[0] |= WATCH_CONFIGURED
        unacknowledged = connection_unacknowledged(context, connection, generation)
        if stuck == STUCK_NEWLY or unacknowledged < connection.unacknowledged:
            connection.unacknowledged = unacknowledged
            connection.stuck_since = now
            atomic_cas32(&connection.stuck, STUCK_NEWLY, STUCK_SEEN)
        elif now >= connection.stuck_since + context.write_timeout and connection_is_stuck(connection, generation):
            # Not left to the owner: he may be in a handler that waits in drain() for this very output.
            loop_end(loop, connection, generation, True, CAUSE_TIMEOUT, TIMEOUT_WRITE, True)
    if context.idle_timeout:
        left[0] |= WATCH_CONFIGURED
        if relaxed_load32(&connection.active):
            # The clock is read after that, so that no byte is dated before it came.
            atomic_store32(&connection.active, 0)
            relaxed_store64(&connection.quiet_since, sys_now())
        else:
            late |= now >= relaxed_load64(&connection.quiet_since) + context.idle_timeout
    return late


cdef inline void monitor_sweep(loop_t *loop) noexcept nogil:
    """Post DEADLINE to connections of which a deadline has passed. A hint: the owner looks again. `watched`: see loop_watch."""
    cdef uint64_t now = sys_now()
    cdef connection_t *connection
    cdef uint32_t index
    cdef uint32_t left = 0
    relaxed_store64(&loop.sweeps, relaxed_load64(&loop.sweeps) + 1)
    atomic_store32(&loop.context.watched, 0)
    for index in range(slab_used(&loop.slab)):
        connection = loop_at(loop, index)
        if relaxed_load32(&connection.state) != STATE_VACANT and monitor_look_at(loop, connection, now, &left):
            loop_post(loop, connection, <uint32_t>(atomic_load64(&connection.slot.word) >> 32), DEADLINE, True)
    if left:
        atomic_or32(&loop.context.watched, left)


cdef inline uint64_t monitor_next_sweep(loop_t *loop, uint64_t swept) noexcept nogil:
    """When to sweep, after a sweep that ended at `swept`; 0: not at all."""
    cdef uint32_t watched = atomic_load32(&loop.context.watched)
    if not watched:
        return 0
    return swept + (min(loop.sweep_ns, <uint64_t>LINGER_SWEEP_NS) if watched & WATCH_LINGERING else loop.sweep_ns)


cdef inline uint64_t monitor_worst(loop_t *loop, bint output) noexcept nogil:
    """Token of the connection with the most pending output, or with the most input left; 0: none has any."""
    cdef connection_t *connection
    cdef uint64_t weight, token = 0, most = 0
    cdef uint32_t index
    for index in range(slab_used(&loop.slab)):
        connection = loop_at(loop, index)
        if atomic_load32(&connection.state) == STATE_VACANT:
            continue
        lock_take(&connection.lock)
        weight = connection.pending_counted if output else relaxed_load64(&connection.input_counted)
        if weight > most and connection.state < STATE_ABORTING:
            most = weight
            token = connection_token(connection)
        lock_give(&connection.lock)
    return token


cdef inline void monitor_memory(loop_t *loop) noexcept nogil:
    """Too much is buffered: the connection with the most output goes; where there is none, the one with the most input. Else reading goes on."""
    cdef connection_t *connection
    cdef uint64_t token
    cdef uint32_t generation, index
    if atomic_load64(&loop.context.buffered) > loop.context.max_buffered:
        token = monitor_worst(loop, True) or monitor_worst(loop, False)
        if token:
            loop_end(loop, loop_connection(loop, token), <uint32_t>(token >> 32), True, CAUSE_SLOW_CONSUMER, 0, True)
        return
    atomic_store32(&loop.context.full, 0)
    for index in range(slab_used(&loop.slab)):
        connection = loop_at(loop, index)
        generation = <uint32_t>(atomic_load64(&connection.slot.word) >> 32)
        if atomic_load32(&connection.pause) & PAUSE_MEMORY and atomic_and32(&connection.pause, ~<uint32_t>PAUSE_MEMORY) == PAUSE_MEMORY:
            loop_post(loop, connection, generation, RESUME, True)


cdef inline void monitor_alarm(loop_t *loop) noexcept nogil:
    """Ring, once, if it is time."""
    cdef bint rings = False
    if not atomic_load64(&loop.alarm):
        return
    lock_take(&loop.monitor_lock)
    if loop.alarm and sys_now() >= loop.alarm:
        atomic_store64(&loop.alarm, 0)
        rings = True
    lock_give(&loop.monitor_lock)
    if rings:
        loop_notice(loop, NOTICE_ALARM)


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
    cdef uint32_t blocked_ticks = 0
    cdef bint said = False
    cdef uint32_t eager
    cdef bint active, busy, all_blocked
    while not atomic_load32(&loop.monitor_stop):
        active = atomic_swap32(&loop.monitor_word, MONITOR_IDLE) == MONITOR_ACTIVE
        if monitor_look(loop, &busy, &all_blocked):
            tick = 1
            quiet = 0
        else:
            quiet += 1
            if quiet % TICK_QUIET == 0 and tick < TICK_SLOWEST:
                tick *= 2
        blocked_ticks = blocked_ticks + 1 if all_blocked else 0
        if not all_blocked:
            said = False
        if blocked_ticks >= 2:
            if monitor_stand_in(loop) and not said:
                said = True
                relaxed_store64(&loop.all_blocked, relaxed_load64(&loop.all_blocked) + 1)
                loop_tell(loop, NEWS_ALL_BLOCKED)
        monitor_alarm(loop)
        eager = relaxed_load32(&loop.eager)
        if eager:
            relaxed_store32(&loop.eager, eager - tick if eager > tick else 0)
        if relaxed_load32(&loop.context.full):
            monitor_memory(loop)
            active = True
        sweep_at = monitor_next_sweep(loop, swept)
        if sweep_at and sys_now() >= sweep_at:
            monitor_sweep(loop)
            swept = sys_now()
        idle = 0 if active or busy else idle + 1
        lock_take(&loop.monitor_lock)
        if atomic_load32(&loop.monitor_stop):
            pass
        elif idle < TICKS_IDLE:
            monitor_wait_locked(loop, sys_now() + tick * <uint64_t>TICK_NS)
        elif atomic_cas32(&loop.monitor_word, MONITOR_IDLE, MONITOR_ASLEEP):
            # A toucher that finds ASLEEP signals under monitor_lock: not before this thread waits. Woken for nothing it comes here again at once.
            monitor_wait_locked(loop, monitor_next_sweep(loop, swept))
            tick = 1
            quiet = 0
        lock_give(&loop.monitor_lock)
    return NULL


cdef inline int monitor_start(loop_t *loop) noexcept nogil:
    """0 or -errno."""
    cdef int failed = sys_thread_start(&loop.monitor_thread, monitor_main, loop)
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
