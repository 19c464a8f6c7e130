"""Blocks of bytes, pools of blocks, and queues of blocks. A block is owned by exactly one queue,
connection or caller at a time.

Blocks of the common size come from a pool that one thread owns, so that a short message costs no
call of the allocator: input and replies of a message are two pops and two pushes. A thread without
a pool (NULL) allocates and frees.

A block of a broadcast has no bytes of its own: it refers to a `shared_t`, which goes with the last
block that does. Such blocks are only in output queues.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from hydrogen._c.atomic cimport atomic_add64, relaxed_add64, relaxed_store64
from hydrogen._c.kernel cimport iovec, kernel_assert

cdef enum:
    # A pooled block is 2 KiB with its header: it takes what one read of short messages gives
    # (measuring.md: W2 reads 128 bytes at a time).
    BLOCK_POOLED = 2048 - 40
    # A batch needs one for each of its events, 256 at most (poller.pxd). 512 KiB for a worker that
    # has met so large a batch.
    POOL_BLOCKS = 256
    # sendmsg(2) takes up to IOV_MAX = 1024 parts; 16 of the pooled size fill a socket buffer's
    # worth already.
    SEND_PARTS = 16

    # A block that shares its bytes takes some 64 of its own, and what comes behind it a block for
    # itself.
    SHARED_LEAST = 1025

# Bytes that many blocks have in common; they follow it.
ctypedef struct shared_t:
    uint64_t references  # atomic
    size_t length

ctypedef struct block_t:
    block_t *next
    shared_t *shared  # NULL: the bytes follow the block
    size_t capacity
    size_t start   # first byte not consumed
    size_t end     # behind the last byte

ctypedef struct pool_t:
    block_t *first
    uint32_t count
    uint64_t allocations  # a counter of the thread that owns the pool

ctypedef struct queue_t:
    block_t *first
    block_t *last


cdef inline char *block_bytes(block_t *block) noexcept nogil:
    return <char *>(block + 1)


cdef inline size_t block_length(block_t *block) noexcept nogil:
    return block.end - block.start


cdef inline block_t *block_exact(pool_t *pool, size_t capacity) noexcept nogil:
    """A new block that takes exactly `capacity` bytes; NULL without memory."""
    cdef block_t *block
    if capacity > <size_t>-1 - sizeof(block_t):
        return NULL
    block = <block_t *>malloc(sizeof(block_t) + capacity)
    if block != NULL:
        block.next = NULL
        block.shared = NULL
        block.capacity = capacity
        block.start = block.end = 0
        if pool != NULL:
            relaxed_add64(&pool.allocations, 1)
    return block


cdef inline block_t *block_new(pool_t *pool, size_t capacity) noexcept nogil:
    """A block that takes `capacity` bytes or more, from the pool where it can; NULL without
    memory.
    """
    cdef block_t *block
    if capacity <= BLOCK_POOLED:
        if pool != NULL and pool.first != NULL:
            block = pool.first
            pool.first = block.next
            pool.count -= 1
            block.next = NULL
            block.start = block.end = 0
            return block
        capacity = BLOCK_POOLED
    return block_exact(pool, capacity)


cdef inline shared_t *shared_new(const char *data, size_t n) noexcept nogil:
    """Bytes for many blocks, with one reference, the caller's; NULL without memory."""
    cdef shared_t *shared = <shared_t *>malloc(sizeof(shared_t) + n)
    if shared != NULL:
        relaxed_store64(&shared.references, 1)
        shared.length = n
        memcpy(<char *>(shared + 1), data, n)
    return shared


cdef inline void shared_drop(shared_t *shared) noexcept nogil:
    if atomic_add64(&shared.references, <uint64_t>-1) == 1:
        free(shared)


cdef inline block_t *block_of_shared(pool_t *pool, shared_t *shared) noexcept nogil:
    """A block that refers to all of `shared`, with no room behind it, or has a copy of it; NULL
    without memory.

    A short one is copied: behind others it takes no more room than it has bytes, and what is
    counted as pending is about what it costs.
    """
    cdef block_t *block
    if shared.length < SHARED_LEAST:
        block = block_new(pool, shared.length)
        if block != NULL:
            memcpy(block_bytes(block), shared + 1, shared.length)
            block.end = shared.length
        return block
    block = block_exact(NULL, 0)
    if block != NULL:
        atomic_add64(&shared.references, 1)
        block.shared = shared
        block.capacity = block.end = shared.length
    return block


cdef inline void block_free(pool_t *pool, block_t *block) noexcept nogil:
    if block.shared != NULL:
        shared_drop(block.shared)
        free(block)
    elif pool != NULL and block.capacity == BLOCK_POOLED and pool.count < POOL_BLOCKS:
        block.next = pool.first
        pool.first = block
        pool.count += 1
    else:
        free(block)


cdef inline void pool_destroy(pool_t *pool) noexcept nogil:
    cdef block_t *block
    while pool.first != NULL:
        block = pool.first
        pool.first = block.next
        free(block)
    pool.count = 0


cdef inline void queue_push(queue_t *queue, block_t *block) noexcept nogil:
    block.next = NULL
    if queue.last == NULL:
        queue.first = block
    else:
        queue.last.next = block
    queue.last = block


cdef inline queue_t queue_take(queue_t *queue) noexcept nogil:
    """All that is queued, and nothing is any more."""
    cdef queue_t taken = queue[0]
    queue.first = queue.last = NULL
    return taken


cdef inline void queue_put_back(queue_t *queue, queue_t *rest) noexcept nogil:
    """Put `rest` before what has come meanwhile."""
    if rest.last == NULL:
        return
    rest.last.next = queue.first
    queue.first = rest.first
    if queue.last == NULL:
        queue.last = rest.last


cdef inline void queue_clear(queue_t *queue, pool_t *pool) noexcept nogil:
    cdef block_t *block
    while queue.first != NULL:
        block = queue.first
        queue.first = block.next
        block_free(pool, block)
    queue.last = NULL


cdef inline int queue_parts(queue_t *queue, iovec *parts) noexcept nogil:
    """Describe the first blocks, at most SEND_PARTS, for sendmsg(2); how many."""
    cdef block_t *block = queue.first
    cdef int count = 0
    while block != NULL and count < SEND_PARTS:
        parts[count].iov_base = (
            block_bytes(block) if block.shared == NULL else <char *>(block.shared + 1)
        ) + block.start
        parts[count].iov_len = block_length(block)
        count += 1
        block = block.next
    return count


cdef inline void queue_consume(queue_t *queue, size_t n, pool_t *pool) noexcept nogil:
    """Drop the first `n` bytes, which must be there, and the blocks that this empties."""
    cdef block_t *block
    while queue.first != NULL and n >= block_length(queue.first):
        block = queue.first
        n -= block_length(block)
        queue.first = block.next
        block_free(pool, block)
    if queue.first == NULL:
        queue.last = NULL
    else:
        queue.first.start += n
    kernel_assert(queue.first != NULL or n == 0)
