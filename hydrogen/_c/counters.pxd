"""Counters: one writer each, or, where `shared` says so, any."""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from hydrogen._c.atomic cimport atomic_add64, atomic_load64, relaxed_add64, relaxed_load64
from hydrogen._c.constants cimport CAUSES, TIMEOUTS
from hydrogen._c.structs cimport counters_t, io_t


cdef inline void counters_add_to(io_t *io, uint64_t *counter, uint64_t n) noexcept nogil:
    """Add to one of `io.counters`."""
    if io.counters.shared:
        atomic_add64(counter, n)
    else:
        relaxed_add64(counter, n)


cdef inline void counters_count(io_t *io, uint64_t *counter) noexcept nogil:
    """Count one of `io.counters`."""
    counters_add_to(io, counter, 1)


cdef inline void counters_clear(counters_t *counters) noexcept nogil:
    memset(counters, 0, sizeof(counters_t))


cdef inline void counters_add(counters_t *sums, counters_t *counters) noexcept nogil:
    cdef int k
    sums.bytes_received += relaxed_load64(&counters.bytes_received)
    sums.bytes_sent += relaxed_load64(&counters.bytes_sent)
    sums.messages_received += relaxed_load64(&counters.messages_received)
    sums.messages_sent += relaxed_load64(&counters.messages_sent)
    sums.messages_refused += relaxed_load64(&counters.messages_refused)
    sums.pings_sent += relaxed_load64(&counters.pings_sent)
    sums.pings_received += relaxed_load64(&counters.pings_received)
    sums.pongs_received += relaxed_load64(&counters.pongs_received)
    sums.polls += relaxed_load64(&counters.polls)
    sums.iterations += relaxed_load64(&counters.iterations)
    sums.gil_acquisitions += relaxed_load64(&counters.gil_acquisitions)
    sums.gil_wait_ns += relaxed_load64(&counters.gil_wait_ns)
    sums.handoffs += relaxed_load64(&counters.handoffs)
    for k in range(CAUSES):  # in order with `released` of the loop: statistics_sum
        sums.removed[k] += atomic_load64(&counters.removed[k])
    for k in range(TIMEOUTS):
        sums.timeouts[k] += atomic_load64(&counters.timeouts[k])
