"""How many connections there are from each address, for `max_connections_per_ip`. Knows addresses,
nothing of connections.

A hash table with open addressing: linear probing, and deletion by moving back what follows, so that
there are no tombstones and an address without connections takes no room. It doubles when it is
three quarters full. IPv4 addresses are kept as IPv6 ones mapped from them (RFC 4291, 2.5.5.2), so
that a client of a socket of both families is one client. The hash is seeded: clients choose their
addresses.

Any thread: who accepts takes, or a worker when the PROXY protocol names the client; whoever
releases the connection gives.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from hydrogen._c.kernel cimport kernel_assert, kernel_now, name_t
from hydrogen._c.lock cimport lock_destroy, lock_give, lock_t, lock_take

cdef enum:
    ADDRESSES_FEWEST = 64
    FAMILY_INET = 2  # AF_INET

ctypedef struct address_t:
    uint64_t high
    uint64_t low
    uint32_t count  # 0: vacant

ctypedef struct addresses_t:
    uint32_t most      # constant; 0: no limit, nothing is counted
    uint64_t seed      # constant
    lock_t lock
    address_t *table   # under the lock, as the next two
    uint32_t capacity  # a power of two
    uint32_t used


cdef inline bint addresses_init(addresses_t *addresses, uint32_t most) noexcept nogil:
    """False without memory."""
    addresses.most = most
    if most:
        addresses.seed = kernel_now() ^ <uint64_t>addresses
        addresses.capacity = ADDRESSES_FEWEST
        addresses.table = <address_t *>calloc(addresses.capacity, sizeof(address_t))
    return not most or addresses.table != NULL


cdef inline void addresses_of(const name_t *name, address_t *address) noexcept nogil:
    cdef uint8_t whole[16]
    if name.family == FAMILY_INET:
        memset(whole, 0, 10)
        memset(whole + 10, 0xFF, 2)
        memcpy(whole + 12, name.bytes, 4)
    else:
        memcpy(whole, name.bytes, 16)
    memcpy(&address.high, whole, 8)
    memcpy(&address.low, whole + 8, 8)
    address.count = 0


cdef inline uint32_t addresses_home(addresses_t *addresses, address_t *address) noexcept nogil:
    """Where an address lies if nobody is in its way. The mixing is that of MurmurHash3's
    finaliser.
    """
    cdef uint64_t hash = address.low ^ addresses.seed
    hash = (hash ^ (hash >> 33)) * <uint64_t>0xff51afd7ed558ccd
    hash ^= address.high
    hash = (hash ^ (hash >> 33)) * <uint64_t>0xc4ceb9fe1a85ec53
    return <uint32_t>(hash ^ (hash >> 33)) & (addresses.capacity - 1)


cdef inline address_t *addresses_find_locked(
    addresses_t *addresses, address_t *address,
) noexcept nogil:
    """The entry of an address, or the vacant one where it would go."""
    cdef uint32_t at = addresses_home(addresses, address)
    while (
        addresses.table[at].count and
        (addresses.table[at].high != address.high or addresses.table[at].low != address.low)
    ):
        at = (at + 1) & (addresses.capacity - 1)
    return &addresses.table[at]


cdef inline bint addresses_grow_locked(addresses_t *addresses) noexcept nogil:
    cdef address_t *before = addresses.table
    cdef uint32_t count = addresses.capacity
    cdef uint32_t k
    cdef address_t *table = <address_t *>calloc(2 * <size_t>count, sizeof(address_t))
    if table == NULL:
        return False
    addresses.table = table
    addresses.capacity = 2 * count
    for k in range(count):
        if before[k].count:
            addresses_find_locked(addresses, &before[k])[0] = before[k]
    free(before)
    return True


cdef inline bint addresses_take(addresses_t *addresses, const name_t *name) noexcept nogil:
    """Count one more connection from an address; False, and nothing counted, when it has as many as
    it may, or without memory.
    """
    cdef address_t address
    cdef address_t *entry
    cdef bint taken = False
    addresses_of(name, &address)
    lock_take(&addresses.lock)
    entry = addresses_find_locked(addresses, &address)
    if entry.count == 0 and addresses.used >= addresses.capacity - addresses.capacity // 4:
        entry = (
            addresses_find_locked(addresses, &address) if addresses_grow_locked(addresses)
            else NULL
        )
    if entry != NULL and entry.count < addresses.most:
        if entry.count == 0:
            entry[0] = address
            addresses.used += 1
        entry.count += 1
        taken = True
    lock_give(&addresses.lock)
    return taken


cdef inline void addresses_give(addresses_t *addresses, const name_t *name) noexcept nogil:
    """Undo an `addresses_take` that counted."""
    cdef address_t address
    cdef address_t *entry
    cdef uint32_t mask, hole, at, home
    addresses_of(name, &address)
    lock_take(&addresses.lock)
    entry = addresses_find_locked(addresses, &address)
    kernel_assert(entry.count > 0)
    entry.count -= 1
    if entry.count == 0:
        addresses.used -= 1
        mask = addresses.capacity - 1
        hole = <uint32_t>(entry - addresses.table)
        at = (hole + 1) & mask
        while addresses.table[at].count:
            # What lies further from its home than from the hole moves into it; else a search for it
            # would end at the hole.
            home = addresses_home(addresses, &addresses.table[at])
            if ((at - home) & mask) >= ((at - hole) & mask):
                addresses.table[hole] = addresses.table[at]
                addresses.table[at].count = 0
                hole = at
            at = (at + 1) & mask
    lock_give(&addresses.lock)


cdef inline void addresses_destroy(addresses_t *addresses) noexcept nogil:
    free(addresses.table)
    lock_destroy(&addresses.lock)
