"""The counters of all threads, summed."""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_load64, relaxed_load64
from hydrogen._c.constants cimport CAUSE_OVERLOAD
from hydrogen._c.counters cimport counters_add, counters_clear
from hydrogen._c.structs cimport acceptor_t, counters_t, loop_t
from hydrogen._core cimport Engine, Stats, removals


cdef enum:
    # How often they are read, at most, because a connection was released meanwhile.
    READS_MOST = 100


cdef inline uint64_t statistics_sum(loop_t *loop, counters_t *sums) noexcept nogil:
    """The counters of all threads of a loop; returns how many of its connections were released.

    None was while they were read. A connection is counted as removed, then as released, so those
    that are only removed are in their last callbacks, one for each worker at most.
    """
    cdef uint64_t released = 0
    cdef uint32_t k
    cdef int _attempt
    for _attempt in range(READS_MOST):
        released = atomic_load64(&loop.released)
        counters_clear(sums)
        for k in range(loop.worker_count):
            counters_add(sums, &loop.workers[k].io.counters)
        counters_add(sums, &loop.monitor_io.counters)
        counters_add(sums, &loop.outside_io.counters)
        if atomic_load64(&loop.released) == released:
            break
    return released


cdef inline object statistics_of(Engine engine):
    """`Stats`. What is of the server as a whole is counted once, by the first engine.

    What is accepted meanwhile counts on both sides of `accepted` = `connections` + `removed`, or on
    neither: `taken` and `turned_away` are read once.
    """
    cdef counters_t sums
    cdef loop_t *loop = &engine._loop
    cdef acceptor_t *acceptor = &engine._own  # nobody uses it where it is not the first
    cdef uint64_t allocations = 0
    cdef uint64_t released = statistics_sum(loop, &sums)
    cdef uint64_t taken = atomic_load64(&loop.taken)
    cdef uint64_t turned_away = atomic_load64(&acceptor.turned_away)
    cdef uint32_t k
    for k in range(loop.worker_count):
        allocations += relaxed_load64(&loop.workers[k].io.pool.allocations)
    sums.removed[CAUSE_OVERLOAD] += turned_away
    removed = removals(sums.removed, sums.timeouts)
    return Stats(
        connections=taken - released,
        accepted=taken + turned_away,
        **removed,
        messages_received=sums.messages_received,
        messages_sent=sums.messages_sent,
        messages_refused=sums.messages_refused,
        pings_sent=sums.pings_sent,
        pings_received=sums.pings_received,
        pongs_received=sums.pongs_received,
        responses=engine._responses.snapshot(),
        closes=engine._closes.snapshot(),
        bytes_received=sums.bytes_received,
        bytes_sent=sums.bytes_sent,
        queued_bytes=atomic_load64(&loop.context.buffered) + relaxed_load64(&loop.undelivered),
        handoffs=sums.handoffs,
        stalls=relaxed_load64(&loop.stalls),
        all_blocked=relaxed_load64(&loop.all_blocked),
        reading_pauses=atomic_load64(&loop.context.reading_pauses),
        reading_resumes=atomic_load64(&loop.context.reading_resumes),
        memory_pauses=atomic_load64(&loop.context.memory_pauses),
        sweeps=relaxed_load64(&loop.sweeps),
        accept_pauses=atomic_load64(&acceptor.pauses),
        polls=sums.polls,
        iterations=sums.iterations,
        gil_acquisitions=sums.gil_acquisitions,
        gil_wait_seconds=sums.gil_wait_ns / 1e9,
        buffer_allocations=allocations,
    )
