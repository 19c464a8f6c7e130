"""The beginning of a connection in its slot, and how it is framed.

How a connection is coded is constant from the moment it is ready: `framing`, and the Python objects
`session` (TLS: what is read off the GIL is ciphertext; a worker makes plaintext of it, in `input`)
and `decoder` (a user's frame builder: a worker feeds it with `input`).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_store32, relaxed_store32
from hydrogen._c.constants cimport (
    CAUSE_NONE, FLAG_POLLED, FLAG_STICKY, NOT_CORKED, NOT_LOOKED, STALL_NONE, STATE_OPEN,
)
from hydrogen._c.kernel cimport name_t
from hydrogen._c.lock cimport RANK_OUTPUT, lock_give, lock_init, lock_take
from hydrogen._c.mailbox cimport mailbox_token
from hydrogen._c.poller cimport poller_add
from hydrogen._c.structs cimport connection_t, context_t


cdef inline void connection_open(
    context_t *context, connection_t *connection, int fd, uint64_t id, name_t *peer,
    uint32_t listener, bint unix_domain,
) noexcept nogil:
    """Begin a use of a slot that was just acquired. The caller owns it."""
    if connection.id == 0:
        lock_init(&connection.lock, RANK_OUTPUT)
    connection.fd = connection.poll_fd = fd
    connection.unix_domain = unix_domain
    connection.listener = <uint16_t>listener
    connection.next = NULL
    connection.mail = connection.todo = 0
    connection.flags = FLAG_STICKY if unix_domain else 0
    connection.end_code = 0
    connection.framing = context.first_framing
    connection.scanned = connection.held = 0
    connection.local.family = 0
    relaxed_store32(&connection.idle_unacknowledged, NOT_LOOKED)
    relaxed_store32(&connection.active, 1)
    relaxed_store32(&connection.stalled, STALL_NONE)
    atomic_store32(&connection.ready, 0)
    lock_take(&connection.lock)
    connection.id = id
    connection.peer = peer[0]
    connection.cause = CAUSE_NONE
    connection.code = 0
    connection.flushing = connection.blocked = connection.edge = connection.asked_out = False
    connection.corked_by = NOT_CORKED
    connection.drainers = 0
    connection.pending = connection.writing = 0
    connection.leaving = 0
    atomic_store32(&connection.state, STATE_OPEN)
    lock_give(&connection.lock)


cdef inline int connection_register(context_t *context, connection_t *connection) noexcept nogil:
    """Have a connection polled, once; 0 or -errno. The owner only.

    When a user's stream will be blocked nobody knows before: its OUT edges are wanted from the
    start.
    """
    cdef bint without_out = connection.unix_domain and connection.adapter == NULL
    cdef int failed = poller_add(
        &context.poller, connection.poll_fd, mailbox_token(connection), without_out,
    )
    if not failed:
        connection.flags |= FLAG_POLLED
    return failed
