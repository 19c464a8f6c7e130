"""Atomics: sequentially consistent unless the name says `relaxed`, which is for a value that one
thread writes and others may read at any moment, ordering nothing else. They are the compiler's
builtins; the thread sanitizer understands them.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "atomic.h" nogil:
    uint64_t atomic_load64(uint64_t *p)
    void atomic_store64(uint64_t *p, uint64_t v)
    uint64_t atomic_or64(uint64_t *p, uint64_t v)
    uint64_t atomic_and64(uint64_t *p, uint64_t v)
    uint64_t atomic_add64(uint64_t *p, uint64_t v)
    uint64_t atomic_swap64(uint64_t *p, uint64_t v)
    bint atomic_cas64(uint64_t *p, uint64_t *expected, uint64_t v)
    uint32_t atomic_load32(uint32_t *p)
    void atomic_store32(uint32_t *p, uint32_t v)
    uint32_t atomic_or32(uint32_t *p, uint32_t v)
    uint32_t atomic_and32(uint32_t *p, uint32_t v)
    uint32_t atomic_add32(uint32_t *p, uint32_t v)
    uint32_t atomic_swap32(uint32_t *p, uint32_t v)
    bint atomic_cas32(uint32_t *p, uint32_t expected, uint32_t v)
    uint32_t relaxed_load32(uint32_t *p)
    void relaxed_store32(uint32_t *p, uint32_t v)
    uint64_t relaxed_load64(uint64_t *p)
    void relaxed_store64(uint64_t *p, uint64_t v)
    void relaxed_add64(uint64_t *p, uint64_t n)
