"""Locks and condition variables. A lock has a rank: a thread may only take a lock of a higher rank
than all it holds. The debug build checks that; docs/ARCHITECTURE.md has the order.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "lock.h" nogil:
    ctypedef struct lock_t:
        pass
    ctypedef struct cond_t:
        pass
    void lock_init(lock_t *l, uint32_t rank)
    void lock_destroy(lock_t *l)
    void lock_take(lock_t *l)
    bint lock_try(lock_t *l)
    void lock_give(lock_t *l)
    void cond_init(cond_t *c)
    void cond_destroy(cond_t *c)
    void cond_signal(cond_t *c)
    void cond_broadcast(cond_t *c)
    void cond_wait(cond_t *c, lock_t *l)
    void cond_wait_until(cond_t *c, lock_t *l, uint64_t until)

# Ranks of the locks, lowest taken first.
cdef enum:
    RANK_ACCEPT = 1
    RANK_DRAIN = 1
    RANK_QUEUE = 2
    RANK_SLAB = 3
    RANK_FD = 4
    RANK_OUTPUT = 5
    RANK_MONITOR = 6
    RANK_ADDRESSES = 7
