"""The slab: slots that never move, found by index, reused by generation.

Slots live in chunks; chunk 0 has `base` slots, each further chunk as many as all before it, so a
fixed directory reaches 2**24 slots and an index finds its chunk by its bit length. Memory is asked
for zeroed and touched when a slot is first used. Vacant slots are threaded through `next_vacant`;
acquire and release are O(1). Indices may be reused; what tells one use from the next is the
generation in the high half of `word`.

Invariants:
1. A slot in the vacant list has the word (generation, OWNED): nobody can claim it.
2. The generation of a slot only grows; a slot whose generation would wrap is retired, never reused.
3. `used` is published after the slot below it is initialised, so a sweep over [0, used) sees only
   initialised slots.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from hydrogen._c.atomic cimport (
    atomic_load32, atomic_store32, atomic_store64, atomic_swap64, relaxed_load64,
)
from hydrogen._c.kernel cimport HYDROGEN_DEBUG, kernel_bit_length
from hydrogen._c.lock cimport RANK_SLAB, lock_destroy, lock_give, lock_init, lock_t, lock_take

cdef enum:
    CHUNKS = 25
    SLOTS_MAX = 1 << 24
    SLOT_OWNED = 1
    NO_SLOT = 0xFFFFFFFF

# The first member of whatever lives in a slot.
ctypedef struct slot_t:
    # atomic; generation in the high half, mailbox bits in the low half (connection.pxd)
    uint64_t word
    uint32_t index        # constant once the slot was used
    uint32_t next_vacant  # under the slab's lock; only while vacant

ctypedef struct slab_t:
    lock_t lock
    size_t slot_size        # constant
    uint32_t base           # constant; slots of chunk 0, a power of two
    int base_bits           # constant; log2(base)
    # slots that were ever used; written under the lock, published by a store
    uint32_t used
    uint32_t vacant_head    # under the lock
    uint32_t vacant_tail    # under the lock
    char *chunks[CHUNKS]    # written under the lock, before `used` says that they are there


cdef inline uint32_t slab_generation_max() noexcept nogil:
    # Two bits in the debug build, so that a test sees a slot retire.
    return 3 if HYDROGEN_DEBUG else 0xFFFFFFFF


cdef inline int slab_init(slab_t *slab, size_t slot_size, uint32_t pre_allocated) noexcept nogil:
    """Allocate the first chunk, `pre_allocated` slots rounded up to a power of two. False without
    memory.
    """
    lock_init(&slab.lock, RANK_SLAB)
    slab.slot_size = slot_size
    slab.base_bits = kernel_bit_length((pre_allocated if pre_allocated > 64 else 64) - 1)
    slab.base = <uint32_t>1 << slab.base_bits
    slab.vacant_head = slab.vacant_tail = NO_SLOT
    slab.chunks[0] = <char *>calloc(slab.base, slot_size)
    return slab.chunks[0] != NULL


cdef inline void slab_destroy(slab_t *slab) noexcept nogil:
    cdef int k
    for k in range(CHUNKS):
        free(slab.chunks[k])
    lock_destroy(&slab.lock)


cdef inline slot_t *slab_slot(slab_t *slab, uint32_t index) noexcept nogil:
    """The slot at `index`, which must be below `used`."""
    cdef int k = kernel_bit_length(index >> slab.base_bits)
    if k:
        index -= slab.base << (k - 1)
    return <slot_t *>(slab.chunks[k] + index * slab.slot_size)


cdef inline uint32_t slab_used(slab_t *slab) noexcept nogil:
    return atomic_load32(&slab.used)


cdef inline slot_t *slab_grow_locked(slab_t *slab) noexcept nogil:
    cdef uint32_t index = slab.used
    cdef int k = kernel_bit_length(index >> slab.base_bits)
    cdef slot_t *slot
    if index >= SLOTS_MAX:
        return NULL
    if slab.chunks[k] == NULL:
        slab.chunks[k] = <char *>calloc(<size_t>slab.base << (k - 1), slab.slot_size)
        if slab.chunks[k] == NULL:
            return NULL
    slot = slab_slot(slab, index)
    slot.index = index
    atomic_store64(&slot.word, (<uint64_t>1 << 32) | SLOT_OWNED)
    atomic_store32(&slab.used, index + 1)
    return slot


cdef inline slot_t *slab_acquire(slab_t *slab) noexcept nogil:
    """A vacant slot, now the caller's, its word (generation, OWNED); NULL when 2**24 are in use or
    there is no memory.
    """
    cdef slot_t *slot
    lock_take(&slab.lock)
    if slab.vacant_head != NO_SLOT:
        slot = slab_slot(slab, slab.vacant_head)
        slab.vacant_head = slot.next_vacant
        if slab.vacant_head == NO_SLOT:
            slab.vacant_tail = NO_SLOT
    else:
        slot = slab_grow_locked(slab)
    lock_give(&slab.lock)
    return slot


cdef inline void slab_advance(slot_t *slot) noexcept nogil:
    """End the use of a slot: the next generation, owned by nobody who could act. Tokens of the old
    one are stale from here on.
    """
    cdef uint64_t generation = (relaxed_load64(&slot.word) >> 32) + 1
    atomic_swap64(&slot.word, generation << 32 | SLOT_OWNED)


cdef inline void slab_release(slab_t *slab, slot_t *slot) noexcept nogil:
    """Put a slot back whose generation has been advanced.

    Reuse is first in, first out, so that generations wear evenly and a stale token meets a stranger
    as late as can be; the debug build reuses the last one first, to meet it at once.
    """
    cdef uint64_t generation = relaxed_load64(&slot.word) >> 32
    if generation == 0 or generation > slab_generation_max():
        return
    lock_take(&slab.lock)
    if HYDROGEN_DEBUG:
        slot.next_vacant = slab.vacant_head
        slab.vacant_head = slot.index
        if slab.vacant_tail == NO_SLOT:
            slab.vacant_tail = slot.index
    else:
        slot.next_vacant = NO_SLOT
        if slab.vacant_tail == NO_SLOT:
            slab.vacant_head = slot.index
        else:
            slab_slot(slab, slab.vacant_tail).next_vacant = slot.index
        slab.vacant_tail = slot.index
    lock_give(&slab.lock)
