"""The timekeeper: a thread that never runs Python. It finds stalled callbacks, flushes and polls for workers that are stuck, keeps deadlines, and sees to
the limit of memory. It sleeps when nothing is due; why it does not oversleep is argued in loop.pxd, 3.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.connection cimport (
    CAUSE_SLOW_CONSUMER, DEADLINE, FLUSH_MORE, PAUSE_MEMORY, RESUME, STATE_ABORTING, STATE_VACANT, connection_t, connection_token,
)
from hydrogen._c.loop cimport (
    NOTICE_ALL_BLOCKED, TICKS_IDLE, TICK_NS, TICK_QUIET, TICK_SLOWEST, TIMEKEEPER_ACTIVE, TIMEKEEPER_ASLEEP, TIMEKEEPER_IDLE,
    WORKER_CALLBACK, WORKER_FLUSH, WORKER_WANT_GIL, event_bits, loop_at, loop_connection, loop_end, loop_event_output, loop_flush_for,
    loop_flush_whole, loop_post, loop_t, loop_wake_locked, worker_t,
)
from hydrogen._c.poller cimport TOKEN_WAKE, poller_wait
from hydrogen._c.slab cimport slab_used
from hydrogen._c.sys cimport (
    HYDROGEN_PLANTED_RACE, atomic_and32, atomic_cas32, atomic_load32, atomic_load64, atomic_store32, atomic_swap32, cond_signal, cond_wait,
    cond_wait_until, lock_give, lock_take, pthread_join, relaxed_load32, relaxed_load64, relaxed_store32, relaxed_store64, sys_now,
    sys_thread_start,
)


cdef inline void timekeeper_poll(loop_t *loop) noexcept nogil:
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
        bits = loop_event_output(loop, &loop.timekeeper_io, connection, generation, loop.events[k].events, False)
        if bits & FLUSH_MORE:
            bits = 0
            loop_flush_whole(loop, &loop.timekeeper_io, connection, generation, False)
        loop_post(loop, connection, generation, bits | event_bits(loop.events[k].events), False)


cdef inline void timekeeper_stand_in(loop_t *loop) noexcept nogil:
    """All workers are in callbacks: poll for them, if the role is vacant. Wake whoever parked meanwhile because the role was taken."""
    lock_take(&loop.lock)
    if loop.role_taken or loop.parked != NULL:
        lock_give(&loop.lock)
        return
    loop.role_taken = True
    lock_give(&loop.lock)
    timekeeper_poll(loop)
    lock_take(&loop.lock)
    loop.role_taken = False
    loop_wake_locked(loop)
    lock_give(&loop.lock)


cdef inline bint timekeeper_look(loop_t *loop, bint *busy, bint *all_blocked) noexcept nogil:
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
                loop_flush_for(loop, worker)
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


cdef inline void timekeeper_walk(loop_t *loop) noexcept nogil:
    """Post DEADLINE to connections whose deadline has passed. A hint: the owner looks again. `watched`: see loop_watch."""
    cdef uint64_t now = sys_now()
    cdef uint64_t deadline
    cdef connection_t *connection
    cdef uint32_t index
    cdef bint left = False
    atomic_store32(&loop.context.watched, 0)
    for index in range(slab_used(&loop.slab)):
        connection = loop_at(loop, index)
        deadline = atomic_load64(&connection.deadline)
        if deadline:
            left = True
            if now >= deadline:
                loop_post(loop, connection, <uint32_t>(atomic_load64(&connection.slot.word) >> 32), DEADLINE, True)
    if left:
        atomic_store32(&loop.context.watched, 1)


cdef inline uint64_t timekeeper_worst(loop_t *loop, bint output) noexcept nogil:
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


cdef inline void timekeeper_memory(loop_t *loop) noexcept nogil:
    """Too much is buffered: the connection with the most output goes; where there is none, the one with the most input. Else reading goes on."""
    cdef connection_t *connection
    cdef uint64_t token
    cdef uint32_t generation, index
    if atomic_load64(&loop.context.buffered) > loop.context.max_buffered:
        token = timekeeper_worst(loop, True) or timekeeper_worst(loop, False)
        if token:
            loop_end(loop, loop_connection(loop, token), <uint32_t>(token >> 32), True, CAUSE_SLOW_CONSUMER, 0, True)
        return
    atomic_store32(&loop.context.full, 0)
    for index in range(slab_used(&loop.slab)):
        connection = loop_at(loop, index)
        generation = <uint32_t>(atomic_load64(&connection.slot.word) >> 32)
        if atomic_load32(&connection.pause) & PAUSE_MEMORY and atomic_and32(&connection.pause, ~<uint32_t>PAUSE_MEMORY) == PAUSE_MEMORY:
            loop_post(loop, connection, generation, RESUME, True)


cdef inline void *timekeeper_main(void *argument) noexcept nogil:
    """Deadlines and stalls. Asleep when nothing is due."""
    cdef loop_t *loop = <loop_t *>argument
    cdef uint64_t walk_at = 0
    cdef uint32_t tick = 1
    cdef uint32_t quiet = 0
    cdef uint32_t idle = 0
    cdef uint32_t blocked_ticks = 0
    cdef bint said = False
    cdef uint32_t eager
    cdef bint active, busy, all_blocked
    while not atomic_load32(&loop.timekeeper_stop):
        active = atomic_swap32(&loop.timekeeper_word, TIMEKEEPER_IDLE) == TIMEKEEPER_ACTIVE
        if timekeeper_look(loop, &busy, &all_blocked):
            tick = 1
            quiet = 0
        else:
            quiet += 1
            if quiet % TICK_QUIET == 0 and tick < TICK_SLOWEST:
                tick *= 2
        blocked_ticks = blocked_ticks + 1 if all_blocked else 0
        if blocked_ticks >= 2:
            timekeeper_stand_in(loop)
            if not said:
                said = True
                lock_take(&loop.lock)
                loop.notices |= NOTICE_ALL_BLOCKED
                lock_give(&loop.lock)
        eager = relaxed_load32(&loop.eager)
        if eager:
            relaxed_store32(&loop.eager, eager - tick if eager > tick else 0)
        if relaxed_load32(&loop.context.full):
            timekeeper_memory(loop)
            active = True
        if relaxed_load32(&loop.context.watched) and sys_now() >= walk_at:
            timekeeper_walk(loop)
            walk_at = sys_now() + loop.walk_ns
        idle = 0 if active or busy else idle + 1
        lock_take(&loop.timekeeper_lock)
        if atomic_load32(&loop.timekeeper_stop):
            pass
        elif idle < TICKS_IDLE:
            cond_wait_until(&loop.timekeeper_cond, &loop.timekeeper_lock, sys_now() + tick * <uint64_t>TICK_NS)
        elif atomic_cas32(&loop.timekeeper_word, TIMEKEEPER_IDLE, TIMEKEEPER_ASLEEP):
            # A toucher that finds ASLEEP signals under timekeeper_lock: not before this thread waits.
            if atomic_load32(&loop.context.watched):
                cond_wait_until(&loop.timekeeper_cond, &loop.timekeeper_lock, walk_at)
            else:
                while atomic_load32(&loop.timekeeper_word) == TIMEKEEPER_ASLEEP and not atomic_load32(&loop.timekeeper_stop):
                    cond_wait(&loop.timekeeper_cond, &loop.timekeeper_lock)
            tick = 1
            quiet = 0
        lock_give(&loop.timekeeper_lock)
    return NULL


cdef inline int timekeeper_start(loop_t *loop) noexcept nogil:
    """0 or -errno."""
    cdef int failed = sys_thread_start(&loop.timekeeper_thread, timekeeper_main, loop)
    loop.timekeeper_started = not failed
    return failed


cdef inline void timekeeper_end(loop_t *loop) noexcept nogil:
    """End the thread, if it runs, and wait for it."""
    if loop.timekeeper_started:
        loop.timekeeper_started = False
        lock_take(&loop.timekeeper_lock)
        atomic_store32(&loop.timekeeper_stop, 1)
        cond_signal(&loop.timekeeper_cond)
        lock_give(&loop.timekeeper_lock)
        pthread_join(loop.timekeeper_thread, NULL)
