"""Messages of the compiled hot loop: made, copied and compared, without Python and without memory
of their own.

Message ``seq`` of a connection is a function of (salt, seq) alone, so it need not be kept: an
8-byte key, mixed so that all of it changes from one message to the next, then a stretch of a random
pattern that begins where the key says. The same number chooses among the shapes of a run. Small
messages are little but head: it is made, copied and compared as two words, the tail as one. (As
bytes it cost twice as much: calls of memcpy and memcmp, and loads of words that had just been
stored as bytes.)
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "<endian.h>" nogil:
    uint32_t le32toh(uint32_t word)
    uint64_t htole64(uint64_t word)

cdef extern from *:
    uint32_t __builtin_bswap32(uint32_t word) nogil

cdef enum:
    WINDOWS = 256           # of framing.py
    KEY = 8                 # bytes of a message's content that its key fills, when there is room
    HEAD = 16               # room for the prefix and the key
    TAIL = 4                # room for the suffix


# A Shape of framing.py: messages of one size. Head (prefix and key), body (pattern), tail (suffix).
cdef struct shape_t:
    size_t head_size
    size_t body_size
    size_t tail_size
    size_t message_size
    size_t content
    uint64_t head_mask[2]   # ones where the head has its bytes
    # what precedes the key, as the first bits of little-endian words, and how many they are
    uint64_t prefix[2]
    int prefix_bits
    uint64_t key_used       # ones where the key's bytes are content
    uint64_t suffix         # as the first bits of a little-endian word
    # of the bytes of each body, by where it begins; NULL: no checksum, which replaces the suffix
    uint32_t *sums


# A Mix of framing.py: all messages of a run.
cdef struct mix_t:
    shape_t *requests
    shape_t *replies        # the same where they do not differ
    uint32_t count          # of shapes
    uint64_t key_mask       # the key is ``base + (mixed & mask)``
    uint64_t key_base
    uint64_t place_mask     # a body begins at ``key & mask``: 0 where every message is the same
    unsigned char *pattern


cdef struct message_t:
    uint64_t head[2]
    const unsigned char *body
    uint64_t tail


cdef inline size_t smaller(size_t a, size_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint64_t mixed(uint64_t value) noexcept nogil:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``value``."""
    value = (value ^ (value >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t> 0x94D049BB133111EB
    return value ^ (value >> 31)


cdef inline uint32_t byte_sum(uint64_t word) noexcept nogil:
    word = (word & <uint64_t> 0x00FF00FF00FF00FF) + (word >> 8 & <uint64_t> 0x00FF00FF00FF00FF)
    return <uint32_t> (word * <uint64_t> 0x0001000100010001 >> 48)


cdef inline uint32_t shape_chosen(mix_t *mix, uint64_t chance) noexcept nogil:
    return <uint32_t> ((chance >> 32) * mix.count >> 32)


cdef inline void message_make(
    mix_t *mix, shape_t *shape, uint64_t chance, message_t *message,
) noexcept nogil:
    """The message of that ``shape`` and that ``chance``, which is ``mixed(salt + seq)``."""
    cdef uint64_t key = (chance & mix.key_mask) + mix.key_base
    cdef uint64_t low = key << (shape.prefix_bits & 63)
    cdef uint64_t place = key & mix.place_mask
    if shape.prefix_bits < 64:
        message.head[0] = htole64(shape.prefix[0] | low)
        # in two steps: a shift by 64 is undefined
        message.head[1] = htole64(shape.prefix[1] | key >> (63 - shape.prefix_bits) >> 1)
    else:
        message.head[0] = htole64(shape.prefix[0])
        message.head[1] = htole64(shape.prefix[1] | low)
    message.body = mix.pattern + place
    if shape.sums != NULL:
        message.tail = htole64(
            __builtin_bswap32(byte_sum(key & shape.key_used) + shape.sums[place])
        )
    else:
        message.tail = htole64(shape.suffix)


cdef inline size_t message_copy(
    shape_t *shape, message_t *message, size_t at, unsigned char *out, size_t room,
) noexcept nogil:
    """Write the message's bytes from ``at`` on, to its end or for as long as there is room; returns
    how many.

    Bytes past those may be written too, HEAD at most; they are written over later, or not sent.
    """
    cdef size_t end = smaller(shape.message_size, at + room)
    cdef size_t begin = at
    cdef size_t tail_at = shape.message_size - shape.tail_size
    cdef size_t n
    if at == 0 and end >= shape.head_size:
        memcpy(out, &message.head[0], 8)
        memcpy(out + 8, &message.head[1], 8)
        at = shape.head_size
    elif at < shape.head_size:
        n = smaller(end, shape.head_size) - at
        memcpy(out, <unsigned char *> message.head + at, n)
        at += n
    if at < end and at < tail_at:
        n = smaller(end, tail_at) - at
        memcpy(out + (at - begin), message.body + (at - shape.head_size), n)
        at += n
    if at < end:
        memcpy(out + (at - begin), <unsigned char *> &message.tail + (at - tail_at), TAIL)
    return end - begin


cdef inline bint head_matches(
    shape_t *shape, message_t *message, unsigned char *data,
) noexcept nogil:
    cdef uint64_t got[2]
    memcpy(got, data, HEAD)
    return (
        (message.head[0] ^ got[0]) & shape.head_mask[0] |
        (message.head[1] ^ got[1]) & shape.head_mask[1]
    ) == 0


cdef inline bint tail_matches(
    message_t *message, size_t at, unsigned char *data, size_t n,
) noexcept nogil:
    cdef uint32_t wanted, got
    memcpy(&wanted, <unsigned char *> &message.tail + at, TAIL)
    memcpy(&got, data, TAIL)
    return le32toh(wanted ^ got) << 8 * (TAIL - n) == 0


cdef inline bint message_matches(
    shape_t *shape, message_t *message, size_t at, unsigned char *data, size_t n,
) noexcept nogil:
    """Whether ``n`` bytes (at least 1, none past the message's end) are the message's bytes from
    ``at`` on.

    Bytes past those may be read too, HEAD at most.
    """
    cdef size_t end = at + n
    cdef size_t begin = at
    cdef size_t tail_at = shape.message_size - shape.tail_size
    if at == 0 and end >= shape.head_size:
        if not head_matches(shape, message, data):
            return False
        at = shape.head_size
    elif at < shape.head_size:
        n = smaller(end, shape.head_size) - at
        if memcmp(data, <unsigned char *> message.head + at, n) != 0:
            return False
        at += n
    if at < end and at < tail_at:
        n = smaller(end, tail_at) - at
        if memcmp(data + (at - begin), message.body + (at - shape.head_size), n) != 0:
            return False
        at += n
    return at == end or tail_matches(message, at - tail_at, data + (at - begin), end - at)
