"""The mailbox of a connection is one word, `slot.word`: generation in the high half, bits in the
low half.

1. Post: a compare-and-swap that fails when the generation is another one. If OWNED was not set, the
   poster is now the owner, must process the connection or put it into a queue, and gets the bits in
   `mail`; otherwise the bits are set in the word and the present owner will see them.
2. Take: `fetch_and`, never a store. Let go: a compare-and-swap that fails when there is mail, and
   then the connection goes to the back of a queue, still owned. So a posted bit is never lost:
   either the post comes before the letting go, which then fails, or after it, and the poster
   becomes the owner.
3. A pause is a set of causes in the same word. Who ends the last one posts RESUME in the same
   compare-and-swap, be it the owner itself: so no pause outlasts its causes, nothing lies unread
   when there are none, and nobody pauses or resumes another connection than he means.
4. Only the owner touches the fields marked so, and runs callbacks. That alone gives order, one
   callback at a time, and a single place that closes.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_and64, atomic_cas64, atomic_load64, relaxed_load64
from hydrogen._c.constants cimport (
    MAIL_BITS, OWNED, PAUSE_BITS, POST_LEFT, POST_OWNER, POST_STALE, RESUME,
)
from hydrogen._c.kernel cimport kernel_assert
from hydrogen._c.slab cimport slab_slot, slab_used
from hydrogen._c.structs cimport connection_t, loop_t


cdef inline uint32_t mailbox_generation(connection_t *connection) noexcept nogil:
    return <uint32_t>(relaxed_load64(&connection.slot.word) >> 32)


cdef inline uint64_t mailbox_token(connection_t *connection) noexcept nogil:
    """Generation, loop (8 bits, 0 while there is one loop) and index (24 bits)."""
    return <uint64_t>mailbox_generation(connection) << 32 | connection.slot.index


cdef inline int mailbox_post(
    connection_t *connection, uint32_t generation, uint32_t bits,
) noexcept nogil:
    """Post `bits`. POST_OWNER: the caller owns the connection now and finds them in `mail`."""
    cdef uint64_t word = atomic_load64(&connection.slot.word)
    while True:
        if <uint32_t>(word >> 32) != generation:
            return POST_STALE
        if word & OWNED:
            if atomic_cas64(&connection.slot.word, &word, word | bits):
                return POST_LEFT
        elif atomic_cas64(&connection.slot.word, &word, word | OWNED):
            connection.mail |= bits
            return POST_OWNER


cdef inline uint32_t mailbox_take(connection_t *connection) noexcept nogil:
    """The bits that came since the ownership was taken, now the owner's."""
    cdef uint32_t bits = connection.mail
    connection.mail = 0
    if atomic_load64(&connection.slot.word) & MAIL_BITS:
        bits |= <uint32_t>atomic_and64(&connection.slot.word, ~<uint64_t>MAIL_BITS) & MAIL_BITS
    return bits


cdef inline bint mailbox_let_go(connection_t *connection) noexcept nogil:
    """End the ownership; False when there is mail, and it goes on."""
    cdef uint64_t word
    if connection.mail:
        return False
    word = atomic_load64(&connection.slot.word)
    while not word & MAIL_BITS:
        if atomic_cas64(&connection.slot.word, &word, word & ~<uint64_t>OWNED):
            return True
    return False


cdef inline uint32_t mailbox_pauses(connection_t *connection) noexcept nogil:
    """The causes for which it is paused now."""
    return <uint32_t>atomic_load64(&connection.slot.word) & PAUSE_BITS


cdef inline bint mailbox_pause(
    connection_t *connection, uint32_t generation, uint32_t cause,
) noexcept nogil:
    """Pause for `cause`; False when it was paused for that already, or is another connection by
    now.
    """
    cdef uint64_t word = atomic_load64(&connection.slot.word)
    while <uint32_t>(word >> 32) == generation and not word & cause:
        if atomic_cas64(&connection.slot.word, &word, word | cause):
            return True
    return False


cdef inline int mailbox_resume(
    connection_t *connection, uint32_t generation, uint32_t cause,
) noexcept nogil:
    """End the pause for `cause`; after the last one RESUME is posted. POST_STALE: nothing has
    changed.

    POST_OWNER: the caller owns the connection now and finds RESUME in `mail`.
    """
    cdef uint64_t word = atomic_load64(&connection.slot.word)
    while <uint32_t>(word >> 32) == generation and word & cause:
        if (word & PAUSE_BITS) != cause:
            if atomic_cas64(&connection.slot.word, &word, word & ~<uint64_t>cause):
                return POST_LEFT
        elif word & OWNED:
            if atomic_cas64(&connection.slot.word, &word, (word & ~<uint64_t>cause) | RESUME):
                return POST_LEFT
        elif atomic_cas64(&connection.slot.word, &word, (word & ~<uint64_t>cause) | OWNED):
            connection.mail |= RESUME
            return POST_OWNER
    return POST_STALE


cdef inline void mailbox_end_pauses(connection_t *connection) noexcept nogil:
    """End every pause. By the owner, who goes on at once."""
    if atomic_load64(&connection.slot.word) & PAUSE_BITS:
        atomic_and64(&connection.slot.word, ~<uint64_t>PAUSE_BITS)


cdef inline connection_t *mailbox_of(loop_t *loop, uint64_t token) noexcept nogil:
    """The slot that a token speaks of; whether it is still the token's is for the caller to find
    out.
    """
    kernel_assert(<uint32_t>(token & 0xFFFFFF) < slab_used(&loop.slab))
    return <connection_t *>slab_slot(&loop.slab, <uint32_t>(token & 0xFFFFFF))


cdef inline connection_t *mailbox_at(loop_t *loop, uint32_t index) noexcept nogil:
    return <connection_t *>slab_slot(&loop.slab, index)
