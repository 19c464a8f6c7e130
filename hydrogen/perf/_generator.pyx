# cython: language_level=3, cdivision=True, auto_pickle=False, autotestdict=False
# cython: freethreading_compatible=True
"""The hot loop of the load generator, compiled: one thread, one epoll instance, no Python while it
runs.

Why it is cheap
---------------
It must outrun a server that does nothing but echo, and per message such a server makes the same two
system calls. So there is nothing else here: sockets are registered once and edge-triggered; one
``recv`` takes whatever has come, and the messages it completed are replaced by one ``send``; the
clock is read once per ``recv``. (TLS is Python's, for which the GIL is taken: twice per ``recv``
that completes something.)

What is verified
----------------
Expected bytes are never stored: what a message is follows from its connection and its number
(``_message.pxd``). A partly written message is simply written again from its next byte, and a reply
is compared in place however it was cut. Crossed, reordered, repeated, lost and damaged bytes all
show; so do bytes nobody asked for. A connection with a wrong reply is
dropped: after the first wrong byte the others mean nothing.

A WebSocket server's control frames are looked for only where a reply is not what it should be:
their first byte is none of a reply's. All that the others pay is a look, per ``recv``, whether one
was cut.

What paces it
-------------
A closed loop grants a connection its next message when one was answered. An open loop, with an
``interval``, has a schedule: message k is due at ``begin + k * interval`` and goes to the next
connection in turn, answered or not. Its latency counts from when it was due, so a server that
stalls pays for all that it kept from being sent; from when it was sent is counted apart. What
cannot be sent at once, because the connection's window or the kernel is full, waits in the
connection's ring; when that is full the message is dropped, and counted.

What churn is
-------------
Each reply ends its connection, and the next message has a new one. connect(2) to AF_UNSPEC
dissolves a connection of TCP and leaves the socket to be connected again: two calls for a close, a
socket, its options and its registration. It dissolves by RST. Ended gracefully, each would keep its
port in TIME_WAIT for a minute, and what is measured would be the search for one.

What it is not: it does not open or close sockets (``generator`` owns them) and it does not compute
percentiles.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, ENOMEM, EPROTO, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, clockid_t, timespec
from posix.unistd cimport close

from hydrogen.perf._message cimport *

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
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    enum: EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int ppoll(pollfd *fds, unsigned long count, const timespec *longest, const void *mask)
    enum: POLLIN

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    enum: PR_GET_TIMERSLACK, PR_SET_TIMERSLACK

cdef extern from *:
    """
    #define bit_length(value) ((value) ? 64 - __builtin_clzll(value) : 0)
    """
    int bit_length(uint64_t value) nogil

cdef enum:
    # taken from one epoll_wait: a round over all connections in the usual runs
    EVENTS = 256
    SCRATCH = 64 * 1024     # bytes of one recv or send; fits the second-level cache
    RECORD = 16 * 1024      # plaintext that TLS may hold back for want of a record's end
    # why a connection is lost, beside negated error numbers
    ENDED = -4096           # the server has ended it: by FIN, close_notify or CLOSE
    WRONG = -4097           # a reply is wrong
    WAKE_MS = 50            # the longest sleep, so that stop() and the stall limit are noticed
    LATE_NS = 1000 * 1000   # a message sent so much after it was due is late; of _generator_py.py
    GRACE_NS = 1000 * 1000 * 1000   # an open loop that is behind at its end may go on for so long
    # by how much the kernel may lengthen a sleep; its default is 50 us, the time between messages
    # at 20,000/s
    SLACK_NS = 1000
    SUB_BITS = 8            # of histogram.py
    # of framing.py: the first bytes of control frames, and the most that one carries
    CLOSE = 0x88
    PING = 0x89
    PONG = 0x8A
    CONTROL_MOST = 125
    MASK = 0x80             # of a frame's second byte; the mask that follows is of zeros

cdef uint64_t LARGEST = (<uint64_t> 1 << 40) - 1    # of histogram.py


# What a WebSocket connection needs once the server has sent a control frame.
cdef struct control_t:
    unsigned char frame[2 + CONTROL_MOST]       # the one being received
    size_t size             # and how many of its bytes have come; 0: none has begun
    # the newest ping, which alone need be answered (RFC 6455, 5.5.3), as a frame; its pong is made
    # when the one before is sent
    unsigned char ping[2 + CONTROL_MOST]
    bint asked              # it has not been answered
    unsigned char pong[2 + 4 + CONTROL_MOST]    # the one being sent
    size_t pong_size
    size_t pong_at          # how many of its bytes the kernel, or TLS, has taken


cdef struct connection_t:
    int fd                  # -1 once dropped
    bint held               # ciphertext or a pong waits, and no message goes before it
    # its hydrogen.perf.tunnel.Tunnel, which the Loop keeps alive; NULL without TLS
    void *tunnel
    control_t *control      # NULL until a control frame comes
    uint64_t salt           # its part of every key
    uint64_t due            # messages below this number may be sent
    uint64_t out_seq        # the message being sent, and how many of its bytes the kernel has taken
    size_t out_at
    # the message being received, and how many of its bytes have been verified
    uint64_t in_seq
    size_t in_at
    uint64_t burst_began    # when its present burst was granted
    uint64_t connecting     # with churn: since when; 0 once it is known to be there
    bint fresh              # nothing has been received on it
    uint64_t *sent_at       # a ring: when message seq was first handed to the kernel
    uint64_t *due_at        # a ring: when it should have been; NULL in a closed loop


cdef struct loop_t:
    int epoll
    connection_t *connections
    uint32_t count
    uint32_t live
    mix_t mix
    # The closed loop.
    uint64_t depth          # messages on their way, per connection, at most
    uint64_t ring_mask
    bint burst
    bint churn
    bint websocket
    sockaddr_storage peer   # with churn: where the first connection goes, and so all
    socklen_t peer_size
    bint sending            # False while draining: replies are awaited, nothing new is granted
    bint limited            # grants are taken from the budget
    uint64_t budget
    uint64_t outstanding    # granted and not yet answered, over all live connections
    uint64_t stall_ns
    bint stop               # set from other threads
    # The open loop.
    double interval_ns      # 0: a closed loop
    double phase            # of an interval: several loops do not all send at once
    uint64_t begin          # of this run, and where its schedule ends that no budget limits
    uint64_t end
    uint64_t scheduled      # how many messages have been due since
    uint32_t turn           # the connection that has the next one
    # Counters since reset().
    uint64_t messages
    uint64_t received
    uint64_t content        # bytes, without framing
    uint64_t longest
    uint64_t elapsed_ns
    uint64_t cpu_ns
    uint64_t late
    uint64_t dropped
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
    uint64_t *latencies     # in an open loop from when a message was due
    uint64_t *uncorrected   # and there, from when it was sent
    uint64_t *bursts
    uint64_t *connects      # with churn
    uint64_t *first_bytes   # of each connection, from its first send
    unsigned char *scratch


cdef inline uint64_t clock_ns(clockid_t clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <uint64_t> t.tv_sec * 1000000000 + <uint64_t> t.tv_nsec


cdef inline uint64_t bucket_of(uint64_t value) noexcept nogil:
    cdef int shift
    if value > LARGEST:
        value = LARGEST
    shift = bit_length(value) - (SUB_BITS + 1)
    if shift < 0:
        shift = 0
    return (<uint64_t> shift << SUB_BITS) + (value >> shift)


# -- connections -----------------------------------------------------------------------------------

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


cdef void connection_lose(loop_t *loop, connection_t *c, ssize_t why) noexcept nogil:
    """Count a connection as lost: ``why`` is ENDED, WRONG or a negated error number."""
    if why == WRONG:
        connection_mistrust(loop, c)
    elif why == ENDED:
        loop.closed += 1
        connection_drop(loop, c)
    else:
        connection_fail(loop, c, <int> -why)


cdef void connection_renew(loop_t *loop, connection_t *c) noexcept nogil:
    """Reset the connection and begin the next one on the same socket, which epoll goes on watching.

    Until that is established the kernel takes nothing, as if it were full, and says so by EPOLLOUT
    when it is.
    """
    cdef sockaddr nowhere
    memset(&nowhere, 0, sizeof(sockaddr))
    nowhere.sa_family = AF_UNSPEC
    if connect(c.fd, &nowhere, sizeof(sockaddr)) < 0:
        connection_fail(loop, c, errno)
        return
    c.connecting = clock_ns(CLOCK_MONOTONIC)
    c.fresh = True
    if connect(c.fd, <sockaddr *> &loop.peer, loop.peer_size) < 0 and errno != EINPROGRESS:
        connection_fail(loop, c, errno)


cdef ssize_t tunnel_decrypt(connection_t *c, unsigned char *data, size_t size) noexcept with gil:
    """Decrypt what was received, in place; returns the size of the plaintext that is complete now,
    or why the connection is lost.

    It may be longer than the ciphertext, by what TLS held back, a record at most.
    """
    cdef bytes plaintext
    try:
        plaintext = (<object> c.tunnel).decrypt(
            PyBytes_FromStringAndSize(<char *> data, <Py_ssize_t> size)
        )
    except ssl.SSLZeroReturnError:
        return ENDED
    except ssl.SSLError:
        return -EPROTO
    memcpy(data, PyBytes_AS_STRING(plaintext), PyBytes_GET_SIZE(plaintext))
    return PyBytes_GET_SIZE(plaintext)


cdef int tunnel_put(connection_t *c, bytes ciphertext) noexcept:
    """Send ciphertext until the kernel is full, and hold the connection while some waits; returns
    0, EAGAIN then, or another error.
    """
    cdef Py_ssize_t at = 0, size = PyBytes_GET_SIZE(ciphertext)
    cdef ssize_t sent
    while at < size:
        sent = send(c.fd, PyBytes_AS_STRING(ciphertext) + at, size - at, MSG_NOSIGNAL)
        if sent >= 0:
            at += sent
        elif errno == EAGAIN:
            c.held = True
            (<object> c.tunnel).unsent = ciphertext[at:]
            return EAGAIN
        elif errno != EINTR:
            return errno
    return 0


cdef int tunnel_flush(connection_t *c) noexcept with gil:
    """Send the ciphertext that waits; returns as ``tunnel_put``."""
    cdef bytes ciphertext = (<object> c.tunnel).unsent
    (<object> c.tunnel).unsent = b""
    return tunnel_put(c, ciphertext)


cdef ssize_t tunnel_send(connection_t *c, const unsigned char *data, size_t size) noexcept with gil:
    """As send(2), through TLS: takes all of ``data``, or none while ciphertext waits; returns an
    error as its negated number.
    """
    cdef bytes ciphertext
    cdef int error
    if c.held:
        return -EAGAIN
    try:
        ciphertext = (<object> c.tunnel).encrypt(
            PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> size)
        )
    except ssl.SSLError:
        return -EPROTO
    error = tunnel_put(c, ciphertext)
    return <ssize_t> size if error == 0 or error == EAGAIN else -error


cdef inline ssize_t connection_write(
    connection_t *c, const unsigned char *data, size_t size,
) noexcept nogil:
    """As send(2), with TLS through the tunnel; returns an error as its negated number."""
    cdef ssize_t sent
    if c.tunnel != NULL:
        return tunnel_send(c, data, size)
    sent = send(c.fd, data, size, MSG_NOSIGNAL)
    return sent if sent >= 0 else -errno


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


cdef inline void connection_count_connect(loop_t *loop, connection_t *c) noexcept nogil:
    """Note, the first time, that the connection can be written to."""
    if c.connecting > 0:
        loop.connects[bucket_of(clock_ns(CLOCK_MONOTONIC) - c.connecting)] += 1
        c.connecting = 0


cdef void connection_sent(loop_t *loop, connection_t *c, size_t sent) noexcept nogil:
    """Go on by ``sent`` bytes. What the kernel did not take of them is made again later: it costs
    less than keeping it.
    """
    cdef size_t rest
    while True:
        rest = loop.mix.requests[
            shape_chosen(&loop.mix, mixed(c.salt + c.out_seq))
        ].message_size - c.out_at
        if sent < rest:
            c.out_at += sent
            return
        sent -= rest
        c.out_at = 0
        c.out_seq += 1
        if sent == 0:
            return


cdef void connection_count_late(
    loop_t *loop, connection_t *c, uint64_t begun, uint64_t now,
) noexcept nogil:
    """Of the messages from ``begun`` on, count those that the kernel has begun to take and should
    have long ago.
    """
    cdef uint64_t seq
    for seq in range(begun, c.out_seq + (c.out_at > 0)):
        loop.late += now > c.due_at[seq & loop.ring_mask] + LATE_NS


cdef void connection_send_until(
    loop_t *loop, connection_t *c, uint64_t end, uint64_t now,
) noexcept nogil:
    """Send the messages below number ``end``, as many in one call as the scratch buffer holds,
    until all are sent or EAGAIN.
    """
    cdef message_t message
    cdef shape_t *shape
    cdef uint64_t seq, chance, begun
    cdef size_t at, used, n
    cdef ssize_t sent
    while c.out_seq < end:
        seq = c.out_seq
        at = c.out_at
        used = 0
        while seq < end and used < SCRATCH:
            if at == 0:
                c.sent_at[seq & loop.ring_mask] = now
            chance = mixed(c.salt + seq)
            shape = loop.mix.requests + shape_chosen(&loop.mix, chance)
            message_make(&loop.mix, shape, chance, &message)
            n = message_copy(shape, &message, at, loop.scratch + used, SCRATCH - used)
            used += n
            at += n
            if at == shape.message_size:
                at = 0
                seq += 1
        sent = connection_write(c, loop.scratch, used)
        if sent < 0:
            if sent == -EINTR:
                continue
            if sent != -EAGAIN:
                connection_fail(loop, c, <int> -sent)
            return
        connection_count_connect(loop, c)
        begun = c.out_seq + (c.out_at > 0)
        if <size_t> sent == used:
            c.out_seq = seq
            c.out_at = at
        else:
            connection_sent(loop, c, <size_t> sent)
        if loop.interval_ns > 0:
            connection_count_late(loop, c, begun, now)


cdef inline bint control_waits(control_t *control) noexcept nogil:
    """Whether a pong has not been sent whole."""
    return control.asked or control.pong_at < control.pong_size


cdef void control_make_pong(control_t *control) noexcept nogil:
    """Turn the ping into the pong to be sent."""
    cdef size_t size = control.ping[1]
    memset(control.pong, 0, 2 + 4)
    control.pong[0] = PONG
    control.pong[1] = MASK | control.ping[1]
    memcpy(control.pong + 2 + 4, control.ping + 2, size)
    control.pong_size = 2 + 4 + size
    control.pong_at = 0
    control.asked = False


cdef int connection_pong(connection_t *c) noexcept nogil:
    """Send the rest of the pong that was begun, and that of the newest ping; returns 0 or an
    error.
    """
    cdef control_t *control = c.control
    cdef ssize_t sent
    while control_waits(control):
        if control.pong_at == control.pong_size:
            control_make_pong(control)
        sent = connection_write(
            c, control.pong + control.pong_at, control.pong_size - control.pong_at
        )
        if sent >= 0:
            control.pong_at += <size_t> sent
        elif sent != -EINTR:
            return <int> -sent
    return 0


cdef bint connection_flush(loop_t *loop, connection_t *c, uint64_t now) noexcept nogil:
    """Send what the next message waits for: ciphertext, and the pong, before which a message that
    was begun is finished. False while some of it waits, or when the connection has failed.
    """
    cdef int error = 0
    c.held = False
    if c.tunnel != NULL:
        error = tunnel_flush(c)
    if error == 0 and c.control != NULL and control_waits(c.control):
        if c.out_at > 0:
            connection_send_until(loop, c, c.out_seq + 1, now)
            if c.fd < 0:
                return False
        error = EAGAIN if c.held or c.out_at > 0 else connection_pong(c)
    if error != 0 and error != EAGAIN:
        connection_fail(loop, c, error)
        return False
    c.held |= error == EAGAIN
    return not c.held


cdef inline void connection_send(loop_t *loop, connection_t *c, uint64_t now) noexcept nogil:
    """Send what is due and within the window."""
    if c.held and not connection_flush(loop, c, now):
        return
    connection_send_until(loop, c, smaller(c.in_seq + loop.depth, c.due), now)


cdef inline void connection_answered(loop_t *loop, connection_t *c, uint64_t now) noexcept nogil:
    """Count the message that has just been received whole."""
    cdef uint64_t latency = now - c.sent_at[c.in_seq & loop.ring_mask]
    if loop.interval_ns > 0:
        loop.uncorrected[bucket_of(latency)] += 1
        latency = now - c.due_at[c.in_seq & loop.ring_mask]
    loop.latencies[bucket_of(latency)] += 1
    if latency > loop.longest:
        loop.longest = latency
    c.in_at = 0
    c.in_seq += 1
    loop.messages += 1
    loop.outstanding -= 1


cdef inline unsigned char *connection_compare(
    loop_t *loop, connection_t *c, unsigned char *data, unsigned char *end, uint64_t now,
) noexcept nogil:
    """Compare received bytes with what was sent and record the replies they complete; returns the
    first wrong byte, or ``end``.
    """
    cdef message_t message
    cdef shape_t *shape
    cdef uint64_t chance
    cdef size_t n
    if (
        c.fresh and data < end and (c.in_seq < c.out_seq or c.out_at > 0) and
        not (loop.websocket and CLOSE <= data[0] <= PONG)
    ):
        c.fresh = False
        loop.first_bytes[bucket_of(now - c.sent_at[c.in_seq & loop.ring_mask])] += 1
    while data != end:      # not `<`: a compiler then knows what the caller asks again
        # Not yet sent, or not as much of it: nobody can know these bytes.
        if c.in_seq > c.out_seq:
            return data
        chance = mixed(c.salt + c.in_seq)
        shape = loop.mix.replies + shape_chosen(&loop.mix, chance)
        n = smaller(shape.message_size - c.in_at, <size_t> (end - data))
        if (
            c.in_seq == c.out_seq and
            (loop.mix.replies != loop.mix.requests or c.in_at + n > c.out_at)
        ):
            return data
        message_make(&loop.mix, shape, chance, &message)
        if not message_matches(shape, &message, c.in_at, data, n):
            while message_matches(shape, &message, c.in_at, data, 1):   # for the report: which byte
                c.in_at += 1
                data += 1
            return data
        data += n
        c.in_at += n
        if c.in_at == shape.message_size:
            loop.content += shape.content
            connection_answered(loop, c, now)
    return data


cdef ssize_t connection_heed(
    connection_t *c, const unsigned char *data, size_t size,
) noexcept nogil:
    """Take what has come of a control frame, and heed it when it is whole; returns how many bytes
    of ``data`` are its, or why the connection is lost.
    """
    cdef control_t *control = c.control
    cdef size_t taken
    if control == NULL:
        control = c.control = <control_t *> calloc(1, sizeof(control_t))
        if control == NULL:
            return -ENOMEM
    for taken in range(size):
        control.frame[control.size] = data[taken]
        control.size += 1
        if not CLOSE <= control.frame[0] <= PONG:
            return WRONG
        if control.size > 1 and control.frame[1] > CONTROL_MOST:    # or masked
            return WRONG
        if control.size > 1 and control.size == <size_t> 2 + control.frame[1]:
            if control.frame[0] == CLOSE:
                return ENDED
            if control.frame[0] == PING:
                memcpy(control.ping, control.frame, control.size)
                control.asked = c.held = True
            control.size = 0
            return <ssize_t> taken + 1
    return <ssize_t> size


cdef ssize_t connection_verify(
    loop_t *loop, connection_t *c, unsigned char *data, size_t size, uint64_t now,
) noexcept nogil:
    """Verify the replies in received bytes, and heed control frames between them; returns 0, or why
    the connection is lost.
    """
    cdef unsigned char *end = data + size
    cdef ssize_t taken
    loop.received += size
    while True:
        if c.control == NULL or c.control.size == 0:
            data = connection_compare(loop, c, data, end, now)
        if data == end:
            return 0
        if not loop.websocket or c.in_at > 0:
            return WRONG
        taken = connection_heed(c, data, <size_t> (end - data))
        if taken < 0:
            return taken
        data += taken


cdef inline void connection_refill(
    loop_t *loop, connection_t *c, uint64_t answered, uint64_t now,
) noexcept nogil:
    """Replace the answered messages: at once, in burst mode when the whole burst has been answered,
    in an open loop not at all.
    """
    if loop.interval_ns > 0:
        pass
    elif not loop.burst:
        connection_grant(loop, c, answered)
    elif c.in_seq == c.due:
        if answered:
            loop.bursts[bucket_of(now - c.burst_began)] += 1
        c.burst_began = now
        connection_grant(loop, c, loop.depth)
    connection_send(loop, c, now)


cdef void connection_read(loop_t *loop, connection_t *c, bint to_the_end) noexcept nogil:
    """Receive, verify and send anew, until the socket is drained.

    A read shorter than the buffer means drained: what comes later is a new edge. Only when the
    peer's FIN has been reported, which gives no further edge, is it read to the end.
    """
    cdef ssize_t got, size, lost
    cdef uint64_t before, now
    while c.fd >= 0:
        got = recv(c.fd, loop.scratch, SCRATCH, 0)
        if got > 0:
            now = clock_ns(CLOCK_MONOTONIC)
            before = c.in_seq
            size = got if c.tunnel == NULL else tunnel_decrypt(c, loop.scratch, <size_t> got)
            lost = size if size < 0 else connection_verify(
                loop, c, loop.scratch, <size_t> size, now
            )
            if lost < 0:
                connection_lose(loop, c, lost)
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
            connection_lose(loop, c, ENDED)
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            connection_fail(loop, c, errno)


# -- the loop --------------------------------------------------------------------------------------

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


cdef inline uint64_t loop_next_due(loop_t *loop) noexcept nogil:
    return loop.begin + <uint64_t> ((<double> loop.scheduled + loop.phase) * loop.interval_ns)


cdef inline bint loop_scheduled(loop_t *loop, uint64_t due) noexcept nogil:
    """Whether there is nothing more to come, with ``due`` being when it would."""
    return not loop.sending or (loop.budget == 0 if loop.limited else due >= loop.end)


cdef void loop_keep_schedule(loop_t *loop) noexcept nogil:
    """Send what has become due, a round of EVENTS at most: after so many, replies are read
    first.
    """
    cdef uint64_t due, now
    cdef connection_t *c
    cdef int _round
    for _round in range(EVENTS):
        due = loop_next_due(loop)
        now = clock_ns(CLOCK_MONOTONIC)
        if due > now or loop_scheduled(loop, due) or loop.live == 0:
            return
        loop.scheduled += 1
        loop.budget -= loop.limited
        while loop.connections[loop.turn].fd < 0:
            loop.turn = (loop.turn + 1) % loop.count
        c = loop.connections + loop.turn
        loop.turn = (loop.turn + 1) % loop.count
        if c.due - c.in_seq > loop.ring_mask:
            loop.dropped += 1
            continue
        c.due_at[c.due & loop.ring_mask] = due
        c.due += 1
        loop.outstanding += 1
        connection_send(loop, c, now)


cdef int loop_wait(loop_t *loop, epoll_event *events, uint64_t duration_ns) noexcept nogil:
    """Wait for events, until the run ends or a message is due at the latest; epoll_wait alone
    counts in milliseconds.
    """
    cdef pollfd waiting
    cdef timespec longest
    cdef uint64_t now, until, due
    if loop.interval_ns == 0:
        return epoll_wait(loop.epoll, events, EVENTS, WAKE_MS)
    now = clock_ns(CLOCK_MONOTONIC)
    until = now + <uint64_t> WAKE_MS * 1000 * 1000
    due = loop_next_due(loop)
    if not loop_scheduled(loop, due):
        until = smaller(until, due)
    if duration_ns > 0 and now < loop.end:
        until = smaller(until, loop.end)
    if until > now:
        longest.tv_sec = 0
        longest.tv_nsec = <long> (until - now)
        waiting.fd = loop.epoll
        waiting.events = POLLIN
        ppoll(&waiting, 1, &longest, NULL)
    return epoll_wait(loop.epoll, events, EVENTS, 0)


cdef void loop_give_up(loop_t *loop) noexcept nogil:
    """Count as dropped what the schedule still had."""
    while not loop_scheduled(loop, loop_next_due(loop)):
        loop.scheduled += 1
        loop.dropped += 1


cdef bint loop_done(loop_t *loop, uint64_t now, uint64_t duration_ns) noexcept nogil:
    if loop.live == 0 or loop.stop:
        return True
    if duration_ns > 0 and now - loop.begin < duration_ns:
        return False
    if loop.interval_ns > 0 and loop.sending and not loop_scheduled(loop, loop_next_due(loop)):
        return duration_ns > 0 and now - loop.begin >= duration_ns + GRACE_NS
    return duration_ns > 0 or loop.outstanding == 0


cdef void loop_run(loop_t *loop, uint64_t duration_ns) noexcept nogil:
    """Run for ``duration_ns`` (0: until all that was granted is answered), or until stopped or no
    connection is left.
    """
    cdef epoll_event events[EVENTS]
    cdef connection_t *c
    cdef uint32_t happened
    cdef int ready, i
    cdef int slack = prctl(PR_GET_TIMERSLACK, 0)
    cdef uint64_t cpu_began = clock_ns(CLOCK_THREAD_CPUTIME_ID)
    cdef uint64_t now = clock_ns(CLOCK_MONOTONIC)
    cdef uint64_t moved = now
    loop.begin = now
    loop.end = now + duration_ns
    loop.scheduled = 0
    if loop.interval_ns > 0:
        prctl(PR_SET_TIMERSLACK, SLACK_NS)
    elif loop.sending:
        loop_open_windows(loop)
    while not loop_done(loop, now, duration_ns):
        if loop.interval_ns > 0:
            loop_keep_schedule(loop)
        ready = loop_wait(loop, events, duration_ns)
        now = clock_ns(CLOCK_MONOTONIC)
        if ready > 0 or loop.outstanding == 0:
            moved = now
        elif now - moved > loop.stall_ns:
            loop_drop_silent(loop)
        for i in range(ready):
            c = loop.connections + events[i].data.u32
            happened = events[i].events
            if happened & EPOLLOUT:
                connection_count_connect(loop, c)
                connection_send(loop, c, now)
            if happened & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
                connection_read(loop, c, happened & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) != 0)
    if loop.interval_ns > 0:
        prctl(PR_SET_TIMERSLACK, slack)
        if duration_ns > 0 and not loop.stop:
            loop_give_up(loop)
    loop.elapsed_ns += clock_ns(CLOCK_MONOTONIC) - loop.begin
    loop.cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_began


def bucket(uint64_t value):
    """The bucket that a latency is counted in; a test compares it with
    :func:`hydrogen.perf.histogram.bucket_of`.
    """
    return bucket_of(value)


cdef class Loop:
    """The compiled hot loop over connected, non-blocking sockets, which stay the caller's; see
    ``_generator.pyi``.
    """

    cdef loop_t loop
    cdef tuple tunnels

    def __cinit__(
        self, fds, *, mix, uint64_t depth, bint burst, uint64_t seed, double stall, tunnels=(),
        bint churn=False, double interval=0,
        double phase=0, uint64_t backlog=0, bint websocket=False,
    ):
        cdef loop_t *loop = &self.loop
        cdef uint64_t ring = 1
        cdef uint32_t index
        loop.epoll = epoll_create1(EPOLL_CLOEXEC)
        if loop.epoll < 0:
            raise OSError(errno, os.strerror(errno))
        while ring < depth or ring < backlog:
            ring *= 2
        loop.count = len(fds)
        self.mix(mix, mix.pattern(seed))
        loop.depth = depth
        loop.ring_mask = ring - 1
        loop.burst = burst
        loop.churn = churn
        loop.websocket = websocket
        loop.interval_ns = interval * 1e9
        loop.phase = phase
        loop.peer_size = sizeof(sockaddr_storage)
        if (
            churn and loop.count > 0 and
            getpeername(fds[0], <sockaddr *> &loop.peer, &loop.peer_size) < 0
        ):
            raise OSError(errno, os.strerror(errno))
        loop.stall_ns = <uint64_t> (stall * 1e9)
        loop.connections = <connection_t *> self.memory(loop.count, sizeof(connection_t))
        loop.latencies = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.uncorrected = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.bursts = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.connects = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.first_bytes = <uint64_t *> self.memory(BUCKETS, sizeof(uint64_t))
        loop.scratch = <unsigned char *> self.memory(SCRATCH + RECORD + HEAD, 1)
        self.tunnels = tuple(tunnels)
        for index in range(loop.count):
            self.add(index, fds[index], mixed(seed + index))

    def __dealloc__(self):
        cdef uint32_t i
        if self.loop.connections != NULL:
            for i in range(self.loop.count):
                free(self.loop.connections[i].sent_at)
                free(self.loop.connections[i].due_at)
                free(self.loop.connections[i].control)
        free(self.loop.connections)
        free(self.loop.latencies)
        free(self.loop.uncorrected)
        free(self.loop.bursts)
        free(self.loop.connects)
        free(self.loop.first_bytes)
        free(self.loop.scratch)
        free(self.loop.mix.pattern)
        if self.loop.mix.replies != self.loop.mix.requests:
            self.free_shapes(self.loop.mix.replies)
        self.free_shapes(self.loop.mix.requests)
        if self.loop.epoll > 0:
            close(self.loop.epoll)

    cdef void free_shapes(self, shape_t *shapes) noexcept:
        cdef uint32_t i
        if shapes != NULL:
            for i in range(self.loop.mix.count):
                free(shapes[i].sums)
        free(shapes)

    cdef void *memory(self, size_t count, size_t size) except NULL:
        cdef void *block = calloc(count if count > 0 else 1, size)
        if block == NULL:
            raise MemoryError
        return block

    cdef int mix(self, mix, bytes pattern) except -1:
        cdef mix_t *found = &self.loop.mix
        cdef size_t key_most = KEY
        cdef bint alike = True
        cdef uint32_t i
        assert PLACES == WINDOWS
        for shape in mix.shapes:
            key_most = smaller(key_most, HEAD - max(len(shape.prefix), len(shape.reply.prefix)))
            alike = alike and shape.reply_prefix is None
        if mix.payload is None:
            memset(&found.key_mask, mix.shapes[0].mask, sizeof(uint64_t))
            memset(&found.key_base, mix.shapes[0].base, sizeof(uint64_t))
            found.place_mask = WINDOWS - 1
        else:
            key_most = 0
        found.pattern = <unsigned char *> self.memory(len(pattern) + 1, 1)
        memcpy(found.pattern, <const unsigned char *> pattern, len(pattern))
        found.count = len(mix.shapes)
        found.requests = <shape_t *> self.memory(found.count, sizeof(shape_t))
        found.replies = found.requests if alike else <shape_t *> self.memory(
            found.count, sizeof(shape_t)
        )
        for i in range(found.count):
            self.shape(found.requests + i, mix.shapes[i], key_most)
            if not alike:
                self.shape(found.replies + i, mix.shapes[i].reply, key_most)
        return 0

    cdef int shape(self, shape_t *found, shape, size_t key_most) except -1:
        cdef unsigned char *pattern = self.loop.mix.pattern
        cdef size_t prefix = len(shape.prefix)
        cdef size_t size = shape.size
        cdef size_t key_size = smaller(size, key_most)
        cdef uint32_t total = 0
        cdef size_t i, place
        assert prefix <= HEAD and len(shape.suffix) <= TAIL
        found.head_size = prefix + key_size
        found.body_size = size - key_size
        found.tail_size = len(shape.suffix)
        found.message_size = shape.message_size
        found.content = size
        memset(found.head_mask, 0xFF, found.head_size)
        found.prefix[0] = int.from_bytes(shape.prefix[:8], "little")
        found.prefix[1] = int.from_bytes(shape.prefix[8:], "little")
        found.prefix_bits = 8 * <int> prefix
        memset(&found.key_used, 0xFF, key_size)
        found.key_used = htole64(found.key_used)
        found.suffix = int.from_bytes(shape.suffix, "little")
        if not shape.checksum:
            return 0
        found.sums = <uint32_t *> self.memory(WINDOWS, sizeof(uint32_t))
        for i in range(found.body_size):
            total += pattern[i]
        for place in range(self.loop.mix.place_mask + 1):
            found.sums[place] = total
            if place < self.loop.mix.place_mask:
                total += pattern[place + found.body_size] - pattern[place]
        return 0

    cdef int add(self, uint32_t index, int fd, uint64_t salt) except -1:
        cdef connection_t *c = self.loop.connections + index
        cdef epoll_event event
        c.fd = fd
        c.salt = salt
        c.fresh = True
        if self.tunnels:
            c.tunnel = <void *> self.tunnels[index]
        c.sent_at = <uint64_t *> self.memory(self.loop.ring_mask + 1, sizeof(uint64_t))
        if self.loop.interval_ns > 0:
            c.due_at = <uint64_t *> self.memory(self.loop.ring_mask + 1, sizeof(uint64_t))
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
        if self.loop.interval_ns == 0:
            loop_take_back(&self.loop)
        with nogil:
            loop_run(&self.loop, 0)

    def stop(self):
        self.loop.stop = True

    def reset(self):
        cdef loop_t *loop = &self.loop
        loop.messages = loop.received = loop.content = loop.longest = loop.late = loop.dropped = 0
        loop.elapsed_ns = loop.cpu_ns = 0
        memset(loop.latencies, 0, BUCKETS * sizeof(uint64_t))
        memset(loop.uncorrected, 0, BUCKETS * sizeof(uint64_t))
        memset(loop.bursts, 0, BUCKETS * sizeof(uint64_t))

    @property
    def messages(self):
        return self.loop.messages

    def counters(self):
        cdef loop_t *loop = &self.loop
        return {
            "messages": loop.messages,
            "received": loop.received,
            "content": loop.content,
            "longest_ns": loop.longest,
            "elapsed_ns": loop.elapsed_ns,
            "cpu_ns": loop.cpu_ns,
            "late": loop.late,
            "dropped": loop.dropped,
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

    def histograms(self):
        return {
            "latencies": self.histogram(self.loop.latencies),
            "uncorrected": self.histogram(self.loop.uncorrected),
            "bursts": self.histogram(self.loop.bursts),
            "connects": self.histogram(self.loop.connects),
            "first_bytes": self.histogram(self.loop.first_bytes),
        }

    cdef list histogram(self, uint64_t *counts):
        return [counts[i] for i in range(BUCKETS)]
