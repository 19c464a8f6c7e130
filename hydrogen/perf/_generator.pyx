# cython: language_level=3, cdivision=True, auto_pickle=False, autotestdict=False
"""The hot loop of the load generator, compiled: one thread, one epoll instance, no Python while it runs.

Why it is cheap
---------------
It must outrun a server that does nothing but echo, and per message such a server makes the same two system calls. So
there is nothing else here: sockets are registered once and edge-triggered; one ``recv`` takes whatever has come, and the
messages it completed are replaced by one ``send``; the clock is read once per ``recv``. (TLS is Python's, for which the GIL
is taken: twice per ``recv`` that completes something.)

What is verified
----------------
Message ``seq`` of a connection is a function of (connection, seq) alone: an 8-byte key, mixed so that all of it changes
from one message to the next, then a stretch of a random pattern that begins where the key says. Expected bytes are thus
never stored; a partly written message is simply written again from its next byte, and a reply is compared in place
however it was cut. Crossed, reordered, repeated, lost and damaged bytes all show; so do bytes nobody asked for.
A connection with a wrong reply is dropped: after the first wrong byte the others mean nothing. What stands around the
content, and which bytes it may consist of, is told by a ``Shape`` of ``framing``.

What churn is
-------------
Each reply ends its connection, and the next message has a new one. connect(2) to AF_UNSPEC dissolves a connection of TCP and
leaves the socket to be connected again: two calls for a close, a socket, its options and its registration. It dissolves
by RST. Ended in order, each would keep its port in TIME_WAIT for a minute, and what is measured would be the search for one.

What it is not: it does not open or close sockets (``generator`` owns them) and it does not compute percentiles.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, EPROTO, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, clockid_t, timespec
from posix.unistd cimport close

import os
import ssl

from hydrogen.perf.framing import WINDOWS as PLACES
from hydrogen.perf.histogram import BUCKETS

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_storage:
        pass
    int connect(int fd, const sockaddr *address, socklen_t size)
    int getpeername(int fd, sockaddr *address, socklen_t *size)
    enum: AF_UNSPEC, MSG_NOSIGNAL

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int most, int milliseconds)
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET

cdef extern from "<endian.h>" nogil:
    uint32_t le32toh(uint32_t word)
    uint64_t htole64(uint64_t word)

cdef extern from *:
    """
    #define bit_length(value) ((value) ? 64 - __builtin_clzll(value) : 0)
    """
    int bit_length(uint64_t value) nogil
    uint32_t __builtin_bswap32(uint32_t word) nogil

cdef enum:
    EVENTS = 256            # taken from one epoll_wait: a round over all connections in the usual runs
    SCRATCH = 64 * 1024     # bytes of one recv or send; fits the second-level cache
    WINDOWS = 256           # of framing.py
    KEY = 8                 # bytes of a message's content that its key fills, when there is room
    HEAD = 16               # room for the prefix and the key
    TAIL = 4                # room for the suffix
    RECORD = 16 * 1024      # plaintext that TLS may hold back for want of a record's end
    ENDED = -1              # of tunnel_decrypt: the server has sent its close_notify
    BROKEN = -2             # and: TLS has failed
    WAKE_MS = 50            # the longest sleep, so that stop() and the stall limit are noticed
    SUB_BITS = 8            # of histogram.py

cdef uint64_t LARGEST = (<uint64_t> 1 << 40) - 1    # of histogram.py


cdef struct connection_t:
    int fd                  # -1 once dropped
    void *tunnel            # its hydrogen.perf.tunnel.Tunnel, which the Loop keeps alive; NULL without TLS
    size_t unsent           # bytes of ciphertext that wait in the tunnel
    uint64_t salt           # its part of every key
    uint64_t due            # messages below this number may be sent
    uint64_t out_seq        # the message being sent, and how many of its bytes the kernel has taken
    size_t out_at
    uint64_t in_seq         # the message being received, and how many of its bytes have been verified
    size_t in_at
    uint64_t burst_began    # when its present burst was granted
    uint64_t *sent_at       # a ring over the window: when message seq was first handed to the kernel


# Small messages are little but head: it is made, copied and compared as two words, the tail as one. (As bytes it cost twice as
# much: calls of memcpy and memcmp, and loads of words that had just been stored as bytes.)
cdef struct message_t:
    uint64_t head[2]
    const unsigned char *body
    uint64_t tail


cdef struct loop_t:
    int epoll
    connection_t *connections
    uint32_t count
    uint32_t live
    # The shape of a message on the wire: head (prefix and key), body (pattern), tail (suffix).
    size_t head_size
    size_t body_size
    size_t tail_size
    size_t wire
    uint64_t head_mask[2]   # ones where the head has its bytes
    uint64_t prefix[2]      # what precedes the key, as the first bits of little-endian words, and how many they are
    int prefix_bits
    uint64_t key_mask       # the key is ``base + (mixed & mask)``
    uint64_t key_base
    unsigned char *pattern
    uint64_t suffix         # as the first bits of a little-endian word; with checksum: this instead
    bint checksum
    uint64_t key_used       # ones where the key's bytes are content
    uint32_t *sums          # of the bytes of each body, by where it begins
    # The closed loop.
    uint64_t depth
    uint64_t ring_mask
    bint burst
    bint churn
    sockaddr_storage peer   # with churn: where the first connection goes, and so all
    socklen_t peer_size
    bint sending            # False while draining: replies are awaited, nothing new is granted
    bint limited            # grants are taken from the budget
    uint64_t budget
    uint64_t outstanding    # granted and not yet answered, over all live connections
    uint64_t stall_ns
    bint stop               # set from other threads
    # Counters since reset().
    uint64_t messages
    uint64_t received
    uint64_t longest
    uint64_t elapsed_ns
    uint64_t cpu_ns
    # Faults are never reset: they would matter in the warm-up too.
    uint64_t wrong
    uint64_t closed
    uint64_t failed
    uint64_t unanswered
    # The first wrong reply, for the report.
    uint32_t wrong_connection
    uint64_t wrong_seq
    size_t wrong_at
    int first_errno
    uint64_t *latencies
    uint64_t *bursts
    unsigned char *scratch


cdef inline uint64_t clock_ns(clockid_t clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <uint64_t> t.tv_sec * 1000000000 + <uint64_t> t.tv_nsec


cdef inline size_t smaller(size_t a, size_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint64_t mixed(uint64_t value) noexcept nogil:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``value``."""
    value = (value ^ (value >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * <uint64_t> 0x94D049BB133111EB
    return value ^ (value >> 31)


cdef inline uint64_t bucket_of(uint64_t value) noexcept nogil:
    cdef int shift
    if value > LARGEST:
        value = LARGEST
    shift = bit_length(value) - (SUB_BITS + 1)
    if shift < 0:
        shift = 0
    return (<uint64_t> shift << SUB_BITS) + (value >> shift)


# -- messages ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t byte_sum(uint64_t word) noexcept nogil:
    word = (word & <uint64_t> 0x00FF00FF00FF00FF) + (word >> 8 & <uint64_t> 0x00FF00FF00FF00FF)
    return <uint32_t> (word * <uint64_t> 0x0001000100010001 >> 48)


cdef inline void message_make(loop_t *loop, connection_t *c, uint64_t seq, message_t *message) noexcept nogil:
    cdef uint64_t key = (mixed(c.salt + seq) & loop.key_mask) + loop.key_base
    cdef uint64_t low = key << (loop.prefix_bits & 63)
    if loop.prefix_bits < 64:
        message.head[0] = htole64(loop.prefix[0] | low)
        message.head[1] = htole64(loop.prefix[1] | key >> (63 - loop.prefix_bits) >> 1)     # in two steps: a shift by 64 is undefined
    else:
        message.head[0] = htole64(loop.prefix[0])
        message.head[1] = htole64(loop.prefix[1] | low)
    message.body = loop.pattern + (key & 0xFF)
    if loop.checksum:
        message.tail = htole64(__builtin_bswap32(byte_sum(key & loop.key_used) + loop.sums[key & 0xFF]))
    else:
        message.tail = htole64(loop.suffix)


cdef size_t message_copy(loop_t *loop, message_t *message, size_t at, unsigned char *out, size_t room) noexcept nogil:
    """Write the message's bytes from ``at`` on, to its end or for as long as there is room; returns how many.

    Bytes past those may be written too, HEAD at most; they are written over later, or not sent.
    """
    cdef size_t end = smaller(loop.wire, at + room)
    cdef size_t begin = at
    cdef size_t tail_at = loop.wire - loop.tail_size
    cdef size_t n
    if at == 0 and end >= loop.head_size:
        memcpy(out, &message.head[0], 8)
        memcpy(out + 8, &message.head[1], 8)
        at = loop.head_size
    elif at < loop.head_size:
        n = smaller(end, loop.head_size) - at
        memcpy(out, <unsigned char *> message.head + at, n)
        at += n
    if at < end and at < tail_at:
        n = smaller(end, tail_at) - at
        memcpy(out + (at - begin), message.body + (at - loop.head_size), n)
        at += n
    if at < end:
        memcpy(out + (at - begin), <unsigned char *> &message.tail + (at - tail_at), TAIL)
    return end - begin


cdef inline bint head_matches(loop_t *loop, message_t *message, unsigned char *data) noexcept nogil:
    cdef uint64_t got[2]
    memcpy(got, data, HEAD)
    return ((message.head[0] ^ got[0]) & loop.head_mask[0] | (message.head[1] ^ got[1]) & loop.head_mask[1]) == 0


cdef inline bint tail_matches(message_t *message, size_t at, unsigned char *data, size_t n) noexcept nogil:
    cdef uint32_t wanted, got
    memcpy(&wanted, <unsigned char *> &message.tail + at, TAIL)
    memcpy(&got, data, TAIL)
    return le32toh(wanted ^ got) << 8 * (TAIL - n) == 0


cdef bint message_matches(loop_t *loop, message_t *message, size_t at, unsigned char *data, size_t n) noexcept nogil:
    """Whether ``n`` bytes (at least 1, none past the message's end) are the message's bytes from ``at`` on.

    Bytes past those may be read too, HEAD at most.
    """
    cdef size_t end = at + n
    cdef size_t begin = at
    cdef size_t tail_at = loop.wire - loop.tail_size
    if at == 0 and end >= loop.head_size:
        if not head_matches(loop, message, data):
            return False
        at = loop.head_size
    elif at < loop.head_size:
        n = smaller(end, loop.head_size) - at
        if memcmp(data, <unsigned char *> message.head + at, n) != 0:
            return False
        at += n
    if at < end and at < tail_at:
        n = smaller(end, tail_at) - at
        if memcmp(data + (at - begin), message.body + (at - loop.head_size), n) != 0:
            return False
        at += n
    return at == end or tail_matches(message, at - tail_at, data + (at - begin), end - at)


# -- connections ------------------------------------------------------------------------------------------------------

cdef void connection_drop(loop_t *loop, connection_t *c) noexcept nogil:
    """Forget a connection that failed; its unanswered messages are counted."""
    cdef epoll_event unused
    epoll_ctl(loop.epoll, EPOLL_CTL_DEL, c.fd, &unused)
    c.fd = -1
    loop.live -= 1
    loop.outstanding -= c.due - c.in_seq
    loop.unanswered += c.due - c.in_seq


cdef void connection_fail(loop_t *loop, connection_t *c, int error) noexcept nogil:
    if loop.failed == 0:
        loop.first_errno = error
    loop.failed += 1
    connection_drop(loop, c)


cdef void connection_mistrust(loop_t *loop, connection_t *c) noexcept nogil:
    """Count the reply being received as wrong; the stream cannot be followed any further."""
    if loop.wrong == 0:
        loop.wrong_connection = <uint32_t> (c - loop.connections)
        loop.wrong_seq = c.in_seq
        loop.wrong_at = c.in_at
    loop.wrong += 1
    connection_drop(loop, c)


cdef void connection_end(loop_t *loop, connection_t *c) noexcept nogil:
    loop.closed += 1
    connection_drop(loop, c)


cdef void connection_renew(loop_t *loop, connection_t *c) noexcept nogil:
    """Reset the connection and begin the next one on the same socket, which epoll goes on watching.

    Until that is established the kernel takes nothing, as if it were full, and says so by EPOLLOUT when it is.
    """
    cdef sockaddr nowhere
    memset(&nowhere, 0, sizeof(sockaddr))
    nowhere.sa_family = AF_UNSPEC
    if connect(c.fd, &nowhere, sizeof(sockaddr)) < 0:
        connection_fail(loop, c, errno)
    elif connect(c.fd, <sockaddr *> &loop.peer, loop.peer_size) < 0 and errno != EINPROGRESS:
        connection_fail(loop, c, errno)


cdef ssize_t tunnel_decrypt(connection_t *c, unsigned char *data, size_t size) noexcept with gil:
    """Decrypt what was received, in place; returns the size of the plaintext that is complete now, ENDED or BROKEN.

    It may be longer than the ciphertext, by what TLS held back, a record at most.
    """
    cdef bytes plaintext
    try:
        plaintext = (<object> c.tunnel).decrypt(PyBytes_FromStringAndSize(<char *> data, <Py_ssize_t> size))
    except ssl.SSLZeroReturnError:
        return ENDED
    except ssl.SSLError:
        return BROKEN
    memcpy(data, PyBytes_AS_STRING(plaintext), PyBytes_GET_SIZE(plaintext))
    return PyBytes_GET_SIZE(plaintext)


cdef ssize_t tunnel_send(connection_t *c, const unsigned char *data, size_t size) noexcept with gil:
    """As send(2), through TLS: takes all of ``data``, or none while ciphertext waits; returns an error as its negated number."""
    cdef bytes ciphertext
    cdef ssize_t sent
    tunnel = <object> c.tunnel
    if c.unsent > 0:
        ciphertext = tunnel.unsent
        size = 0
    else:
        try:
            ciphertext = tunnel.encrypt(PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> size))
        except ssl.SSLError:
            return -EPROTO
    sent = send(c.fd, PyBytes_AS_STRING(ciphertext), PyBytes_GET_SIZE(ciphertext), MSG_NOSIGNAL)
    if sent < 0:
        if size == 0 or errno != EAGAIN and errno != EINTR:
            return -errno
        sent = 0
    if c.unsent > 0 or sent < PyBytes_GET_SIZE(ciphertext):
        tunnel.unsent = ciphertext[sent:]
        c.unsent = PyBytes_GET_SIZE(ciphertext) - sent
    return <ssize_t> size


cdef inline void connection_grant(loop_t *loop, connection_t *c, uint64_t wanted) noexcept nogil:
    """Allow ``wanted`` more messages, or as many as the budget has left."""
    if not loop.sending:
        return
    if loop.limited:
        if wanted > loop.budget:
            wanted = loop.budget
        loop.budget -= wanted
    c.due += wanted
    loop.outstanding += wanted


cdef void connection_send(loop_t *loop, connection_t *c, uint64_t now) noexcept nogil:
    """Send what is due, as many messages in one call as the scratch buffer holds, until all is sent or EAGAIN."""
    cdef message_t message
    cdef uint64_t seq
    cdef size_t at, used, n
    cdef ssize_t sent
    cdef int error
    while c.out_seq < c.due or c.unsent > 0:
        seq = c.out_seq
        at = c.out_at
        used = 0
        while seq < c.due and used < SCRATCH:
            if at == 0:
                c.sent_at[seq & loop.ring_mask] = now
            message_make(loop, c, seq, &message)
            n = message_copy(loop, &message, at, loop.scratch + used, SCRATCH - used)
            used += n
            at += n
            if at == loop.wire:
                at = 0
                seq += 1
        if c.tunnel == NULL:
            sent = send(c.fd, loop.scratch, used, MSG_NOSIGNAL)
            error = errno
        else:
            sent = tunnel_send(c, loop.scratch, used)
            error = <int> -sent
        if sent < 0:
            if error == EINTR:
                continue
            if error != EAGAIN:
                connection_fail(loop, c, error)
            return
        # What the kernel did not take is made again: it costs less than keeping it.
        c.out_at += <size_t> sent
        c.out_seq += c.out_at // loop.wire
        c.out_at %= loop.wire


cdef bint connection_verify(loop_t *loop, connection_t *c, unsigned char *data, size_t size, uint64_t now) noexcept nogil:
    """Compare received bytes with what was sent and record the replies they complete; False at the first wrong byte."""
    cdef message_t message
    cdef size_t n
    cdef uint64_t latency
    cdef unsigned char *end = data + size
    loop.received += size
    while data < end:
        n = smaller(loop.wire - c.in_at, <size_t> (end - data))
        # Not yet sent, or not as much of it: nobody can know these bytes.
        if c.in_seq > c.out_seq or (c.in_seq == c.out_seq and c.in_at + n > c.out_at):
            return False
        message_make(loop, c, c.in_seq, &message)
        if not message_matches(loop, &message, c.in_at, data, n):
            while message_matches(loop, &message, c.in_at, data, 1):    # for the report: which byte
                c.in_at += 1
                data += 1
            return False
        data += n
        c.in_at += n
        if c.in_at == loop.wire:
            latency = now - c.sent_at[c.in_seq & loop.ring_mask]
            loop.latencies[bucket_of(latency)] += 1
            if latency > loop.longest:
                loop.longest = latency
            c.in_at = 0
            c.in_seq += 1
            loop.messages += 1
            loop.outstanding -= 1
    return True


cdef inline void connection_refill(loop_t *loop, connection_t *c, uint64_t answered, uint64_t now) noexcept nogil:
    """Replace the answered messages: at once, or in burst mode when the whole burst has been answered."""
    if not loop.burst:
        connection_grant(loop, c, answered)
    elif c.in_seq == c.due:
        if answered:
            loop.bursts[bucket_of(now - c.burst_began)] += 1
        c.burst_began = now
        connection_grant(loop, c, loop.depth)
    connection_send(loop, c, now)


cdef void connection_read(loop_t *loop, connection_t *c, bint to_the_end) noexcept nogil:
    """Receive, verify and send anew, until the socket is drained.

    A read shorter than the buffer means drained: what comes later is a new edge. Only when the peer's FIN has been
    reported, which gives no further edge, is it read to the end.
    """
    cdef ssize_t got, size
    cdef uint64_t before, now
    while c.fd >= 0:
        got = recv(c.fd, loop.scratch, SCRATCH, 0)
        if got > 0:
            now = clock_ns(CLOCK_MONOTONIC)
            before = c.in_seq
            size = got if c.tunnel == NULL else tunnel_decrypt(c, loop.scratch, <size_t> got)
            if size == ENDED:
                connection_end(loop, c)
            elif size == BROKEN:
                connection_fail(loop, c, EPROTO)
            elif not connection_verify(loop, c, loop.scratch, <size_t> size, now):
                connection_mistrust(loop, c)
            elif loop.churn and c.in_seq > before:
                connection_renew(loop, c)
                if c.fd >= 0:
                    connection_refill(loop, c, c.in_seq - before, now)
                return      # what comes on the new connection is a new edge
            else:
                connection_refill(loop, c, c.in_seq - before, now)
                if got < SCRATCH and not to_the_end:
                    return
        elif got == 0:
            connection_end(loop, c)
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            connection_fail(loop, c, errno)


# -- the loop ---------------------------------------------------------------------------------------------------------

cdef void loop_open_windows(loop_t *loop) noexcept nogil:
    """Grant every connection its window, less what is still in flight from the run before."""
    cdef uint64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef connection_t *c
    cdef uint32_t i
    for i in range(loop.count):
        c = loop.connections + i
        if c.fd < 0:
            continue
        if not loop.burst:
            connection_grant(loop, c, loop.depth - (c.due - c.in_seq))
        elif c.in_seq == c.due:
            c.burst_began = now
            connection_grant(loop, c, loop.depth)
        connection_send(loop, c, clock_ns(CLOCK_MONOTONIC))


cdef void loop_take_back(loop_t *loop) noexcept nogil:
    """Withdraw what was granted and not begun to be sent."""
    cdef connection_t *c
    cdef uint64_t due
    cdef uint32_t i
    for i in range(loop.count):
        c = loop.connections + i
        due = c.out_seq + (c.out_at > 0)
        if c.fd >= 0 and due < c.due:
            loop.outstanding -= c.due - due
            c.due = due


cdef void loop_drop_silent(loop_t *loop) noexcept nogil:
    """Give up every connection that owes a reply."""
    cdef connection_t *c
    cdef uint32_t i
    for i in range(loop.count):
        c = loop.connections + i
        if c.fd >= 0 and c.in_seq < c.due:
            connection_drop(loop, c)


cdef void loop_run(loop_t *loop, uint64_t duration_ns) noexcept nogil:
    """Run for ``duration_ns`` (0: until all that was granted is answered), or until stopped or no connection is left."""
    cdef epoll_event events[EVENTS]
    cdef connection_t *c
    cdef uint32_t happened
    cdef int ready, i
    cdef uint64_t cpu_began = clock_ns(CLOCK_THREAD_CPUTIME_ID)
    cdef uint64_t began = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t now = began
    cdef uint64_t moved = began
    if loop.sending:
        loop_open_windows(loop)
    while loop.live > 0 and not loop.stop:
        if duration_ns == 0 and loop.outstanding == 0 or duration_ns > 0 and now - began >= duration_ns:
            break
        ready = epoll_wait(loop.epoll, events, EVENTS, WAKE_MS)
        now = clock_ns(CLOCK_MONOTONIC)
        if ready > 0:
            moved = now
        elif now - moved > loop.stall_ns:
            loop_drop_silent(loop)
        for i in range(ready):
            c = loop.connections + events[i].data.u32
            happened = events[i].events
            if happened & EPOLLOUT:
                connection_send(loop, c, now)
            if happened & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                connection_read(loop, c, happened & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) != 0)
    loop.elapsed_ns += clock_ns(CLOCK_MONOTONIC) - began
    loop.cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_began


def bucket(uint64_t value):
    """The bucket that a latency is counted in; a test compares it with :func:`hydrogen.perf.histogram.bucket_of`."""
    return bucket_of(value)


cdef class Loop:
    """The compiled hot loop over connected, non-blocking sockets, which stay the caller's; see ``_generator.pyi``."""

    cdef loop_t loop
    cdef tuple tunnels

    def __cinit__(self, fds, *, shape, uint64_t depth, bint burst, uint64_t seed, double stall, tunnels=(), bint churn=False):
        cdef loop_t *loop = &self.loop
        cdef uint64_t ring = 1
        cdef uint32_t index
        loop.epoll = epoll_create1(EPOLL_CLOEXEC)
        if loop.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        while ring < depth:
            ring *= 2
        loop.count = len(fds)
        self.shape(shape, shape.pattern(seed))
        loop.depth = depth
        loop.ring_mask = ring - 1
        loop.burst = burst
        loop.churn = churn
        loop.peer_size = sizeof(sockaddr_storage)
        if churn and loop.count > 0 and getpeername(fds[0], <sockaddr *> &loop.peer, &loop.peer_size) < 0:
            raise OSError(errno, os.strerror(errno))
        loop.stall_ns = <uint64_t> (stall * 1e9)
        loop.connections = <connection_t *> self.memory(loop.count, sizeof(connection_t))
        loop.latencies = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.bursts = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.scratch = <unsigned char *> self.memory(SCRATCH + RECORD + HEAD, 1)
        self.tunnels = tuple(tunnels)
        for index in range(loop.count):
            self.add(index, fds[index], mixed(seed + index))

    def __dealloc__(self):
        cdef uint32_t i
        if self.loop.connections != NULL:
            for i in range(self.loop.count):
                free(self.loop.connections[i].sent_at)
        free(self.loop.connections)
        free(self.loop.latencies)
        free(self.loop.bursts)
        free(self.loop.scratch)
        free(self.loop.pattern)
        free(self.loop.sums)
        if self.loop.epoll > 0:
            close(self.loop.epoll)

    cdef void *memory(self, size_t count, size_t size) except NULL:
        cdef void *block = calloc(count if count > 0 else 1, size)
        if block == NULL:
            raise MemoryError
        return block

    cdef int shape(self, shape, bytes pattern) except -1:
        cdef loop_t *loop = &self.loop
        cdef size_t prefix = len(shape.prefix)
        cdef size_t size = shape.size
        cdef size_t key_size = smaller(smaller(size, KEY), HEAD - prefix)
        cdef uint32_t total = 0
        cdef size_t i
        cdef int begin
        assert PLACES == WINDOWS and prefix <= HEAD and len(shape.suffix) <= TAIL
        loop.head_size = prefix + key_size
        loop.body_size = size - key_size
        loop.tail_size = len(shape.suffix)
        loop.wire = shape.wire
        memset(loop.head_mask, 0xFF, loop.head_size)
        loop.prefix[0] = int.from_bytes(shape.prefix[:8], "little")
        loop.prefix[1] = int.from_bytes(shape.prefix[8:], "little")
        loop.prefix_bits = 8 * <int> prefix
        memset(&loop.key_mask, shape.mask, sizeof(uint64_t))
        memset(&loop.key_base, shape.base, sizeof(uint64_t))
        memset(&loop.key_used, 0xFF, key_size)
        loop.key_used = htole64(loop.key_used)
        loop.suffix = int.from_bytes(shape.suffix, "little")
        loop.checksum = shape.checksum
        loop.pattern = <unsigned char *> self.memory(len(pattern), 1)
        memcpy(loop.pattern, <const unsigned char *> pattern, len(pattern))
        loop.sums = <uint32_t *> self.memory(WINDOWS, sizeof(uint32_t))
        for i in range(loop.body_size):
            total += loop.pattern[i]
        for begin in range(WINDOWS):
            loop.sums[begin] = total
            total += loop.pattern[begin + loop.body_size] - loop.pattern[begin]
        return 0

    cdef int add(self, uint32_t index, int fd, uint64_t salt) except -1:
        cdef connection_t *c = self.loop.connections + index
        cdef epoll_event event
        c.fd = fd
        c.salt = salt
        if self.tunnels:
            c.tunnel = <void *> self.tunnels[index]
        c.sent_at = <uint64_t *> self.memory(self.loop.ring_mask + 1, sizeof(uint64_t))
        event.events = <uint32_t> EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.u32 = index
        if epoll_ctl(self.loop.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        self.loop.live += 1
        return 0

    def run(self, double seconds, uint64_t number=0):
        self.loop.sending = True
        self.loop.limited = number > 0
        self.loop.budget = number
        with nogil:
            loop_run(&self.loop, 0 if number else <uint64_t> (seconds * 1e9))

    def drain(self):
        self.loop.sending = False
        loop_take_back(&self.loop)
        with nogil:
            loop_run(&self.loop, 0)

    def stop(self):
        self.loop.stop = True

    def reset(self):
        cdef loop_t *loop = &self.loop
        loop.messages = loop.received = loop.longest = loop.elapsed_ns = loop.cpu_ns = 0
        memset(loop.latencies, 0, BUCKETS * sizeof(uint64_t))
        memset(loop.bursts, 0, BUCKETS * sizeof(uint64_t))

    @property
    def messages(self):
        return self.loop.messages

    def counters(self):
        cdef loop_t *loop = &self.loop
        return {
            "messages": loop.messages,
            "received": loop.received,
            "longest_ns": loop.longest,
            "elapsed_ns": loop.elapsed_ns,
            "cpu_ns": loop.cpu_ns,
            "live": loop.live,
            "wrong": loop.wrong,
            "closed": loop.closed,
            "failed": loop.failed,
            "unanswered": loop.unanswered,
            "wrong_connection": loop.wrong_connection,
            "wrong_message": loop.wrong_seq,
            "wrong_byte": loop.wrong_at,
            "first_errno": loop.first_errno,
        }

    def latencies(self):
        return [self.loop.latencies[i] for i in range(BUCKETS)]

    def bursts(self):
        return [self.loop.bursts[i] for i in range(BUCKETS)]
