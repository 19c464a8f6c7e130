"""Accepting: takes connections from the listeners, gives each a slot of the loop that has the
fewest, and has it polled there.

It belongs to the event role of the first loop: the listeners are in its poller, and whoever polls
(a worker, or the monitor thread for workers that are stuck) accepts, and reads what the same
connections send next, without a thread that is woken for each of them. When nothing is to be
accepted (suspended, full, no fds or memory) the listeners are taken out, and the accept thread,
which sleeps otherwise, waits until that is over and puts them back. One at a time does either, for
all listeners and all loops, under `accept_lock`: so the limits have one writer, and what is
admitted is never more than `max_connections`. Who releases a connection only makes `live` of its
loop smaller (acceptor_live_in), and tells the accept thread if that waits for it (loop_release).
"""

from libc.errno cimport EAGAIN, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from hydrogen._c.addresses cimport addresses_destroy, addresses_init, addresses_take
from hydrogen._c.atomic cimport (
    atomic_add32, atomic_add64, atomic_load32, atomic_load64, atomic_store32, atomic_swap32,
)
from hydrogen._c.closing cimport closing_end
from hydrogen._c.connection cimport connection_open, connection_register
from hydrogen._c.constants cimport (
    ACCEPTING, ACCEPT_EXHAUSTED, ACCEPT_FULL, ACCEPT_MOST, ACCEPT_PAUSE_MS, CAUSE_OS_ERROR,
    FLAG_COUNTED, FLAG_FIRST, FLAG_HEADER, LISTENERS_MOST, LOG_ACCEPTING,
    LOG_TURNED_AWAY, NEW, WATCH_CONFIGURED,
)
from hydrogen._c.deadlines cimport deadlines_announce
from hydrogen._c.kernel cimport (
    kernel_accept, kernel_close, kernel_close_fork_gate, kernel_event_clear, kernel_event_set,
    kernel_eventfd, kernel_open_fork_gate, kernel_poll, kernel_poll_init, kernel_reset,
    kernel_setsockopt, kernel_thread_start, kernel_try_close_fork_gate, kernel_unblock, name_t,
    pollfd, pthread_join,
)
from hydrogen._c.listeners cimport (
    listeners_close, listeners_duplicate, listeners_enter, listeners_init, listeners_leave_locked,
    listeners_lose_locked,
)
from hydrogen._c.lock cimport (
    RANK_ACCEPT, RANK_ADDRESSES, RANK_FD, lock_destroy, lock_give, lock_init, lock_take, lock_try,
)
from hydrogen._c.mailbox cimport mailbox_generation, mailbox_let_go
from hydrogen._c.queues cimport queues_log, queues_serve_later
from hydrogen._c.slab cimport slab_acquire, slab_release
from hydrogen._c.structs cimport acceptor_t, connection_t, listener_t, loop_t, option_t, vacancy_t


cdef inline uint32_t acceptor_workers_before(acceptor_t *acceptor, loop_t *loop) noexcept nogil:
    """How many workers the loops before this one have."""
    cdef uint32_t count = 0
    cdef uint32_t k
    for k in range(acceptor.loop_count):
        if acceptor.loops[k] == loop:
            break
        count += acceptor.loops[k].worker_count
    return count


cdef inline void acceptor_close_fd(acceptor_t *acceptor) noexcept nogil:
    """Nobody may suspend or resume meanwhile: see acceptor_left."""
    if acceptor.event >= 0:
        kernel_close(acceptor.event)
    acceptor.event = -1


cdef inline void acceptor_left(acceptor_t *acceptor) noexcept nogil:
    """The last worker of a loop has left. The last one of all closes the fd, which others than the
    loops' threads may be about to set.
    """
    if atomic_add32(&acceptor.loops_left, <uint32_t>-1) == 1:
        lock_take(&acceptor.event_lock)
        acceptor_close_fd(acceptor)
        lock_give(&acceptor.event_lock)


cdef inline void acceptor_clear(acceptor_t *acceptor) noexcept nogil:
    """Make a zeroed acceptor one that acceptor_end and acceptor_destroy may be called for."""
    acceptor.event = -1
    lock_init(&acceptor.accept_lock, RANK_ACCEPT)
    lock_init(&acceptor.event_lock, RANK_FD)
    lock_init(&acceptor.addresses.lock, RANK_ADDRESSES)


cdef inline int acceptor_init(
    acceptor_t *acceptor, uint32_t listeners, uint32_t options, uint32_t max_connections_per_ip,
) noexcept nogil:
    """Allocate. 0 or -errno; after either, acceptor_destroy."""
    if listeners > LISTENERS_MOST:
        return -EMFILE
    if not addresses_init(&acceptor.addresses, max_connections_per_ip):
        return -ENOMEM
    acceptor.options = <option_t *>calloc(options or 1, sizeof(option_t))
    if acceptor.options == NULL or not listeners_init(acceptor, listeners):
        return -ENOMEM
    acceptor.option_count = options
    acceptor.event = kernel_eventfd()
    return min(acceptor.event, 0)


cdef inline void acceptor_destroy(acceptor_t *acceptor) noexcept nogil:
    """Free all; no thread of its loops runs any more."""
    cdef uint32_t k
    acceptor_close_fd(acceptor)
    for k in range(acceptor.option_count):
        free(acceptor.options[k].value)
    free(acceptor.options)
    free(acceptor.listeners)
    lock_destroy(&acceptor.accept_lock)
    lock_destroy(&acceptor.event_lock)
    addresses_destroy(&acceptor.addresses)


cdef inline uint64_t acceptor_live_in(loop_t *loop) noexcept nogil:
    """At least as many connections as a loop has: others than who accepts only make them fewer."""
    cdef uint64_t released = atomic_load64(&loop.released)  # first: never more than `taken`
    return atomic_load64(&loop.taken) - released


cdef inline loop_t *acceptor_choose(acceptor_t *acceptor) noexcept nogil:
    """The loop that has the fewest connections."""
    cdef loop_t *best = acceptor.loops[0]
    cdef uint64_t live, fewest = acceptor_live_in(best)
    cdef uint32_t k
    for k in range(1, acceptor.loop_count):
        live = acceptor_live_in(acceptor.loops[k])
        if live < fewest:
            fewest = live
            best = acceptor.loops[k]
    return best


cdef inline uint64_t acceptor_live(acceptor_t *acceptor) noexcept nogil:
    """The same of all loops. With `accept_lock`."""
    cdef uint64_t live = 0
    cdef uint32_t k
    for k in range(acceptor.loop_count):
        live += acceptor_live_in(acceptor.loops[k])
    return live


cdef inline uint64_t acceptor_accepted(acceptor_t *acceptor) noexcept nogil:
    """Connections accepted so far, for all loops. With `accept_lock`."""
    cdef uint64_t accepted = atomic_load64(&acceptor.turned_away)
    cdef uint32_t k
    for k in range(acceptor.loop_count):
        accepted += atomic_load64(&acceptor.loops[k].taken)
    return accepted


cdef inline void acceptor_take(
    loop_t *loop, connection_t *connection, int fd, name_t *peer, uint32_t listener, bint counted,
    bint wake,
) noexcept nogil:
    """Begin a connection, owned by this thread. `wake` unless it looks at the queues next."""
    cdef acceptor_t *acceptor = loop.acceptor
    cdef int failed = 0
    cdef uint32_t k
    connection_open(
        &loop.context, connection, fd, acceptor_accepted(acceptor) + 1, peer, listener,
        acceptor.listeners[listener].unix_domain)
    if counted:
        connection.flags |= FLAG_COUNTED
    atomic_add64(&loop.taken, 1)
    if loop.context.idle_timeout:
        deadlines_announce(loop, WATCH_CONFIGURED)
    for k in range(acceptor.option_count):
        if not failed:
            failed = kernel_setsockopt(
                fd, acceptor.options[k].level, acceptor.options[k].name, acceptor.options[k].value,
                acceptor.options[k].size
            )
    if not failed and loop.has_open_callbacks:
        if acceptor.has_proxy:
            connection.flags |= FLAG_HEADER | FLAG_FIRST
        connection.mail |= NEW
        queues_serve_later(loop, connection, wake)
        return
    if not failed:
        failed = connection_register(&loop.context, connection)
    # Now, not before: who sees it may send, and ask the poller for an edge.
    atomic_store32(&connection.ready, not failed and not loop.has_open_callbacks)
    if failed:
        connection.mail |= closing_end(
            &loop.context, connection, mailbox_generation(connection), True, CAUSE_OS_ERROR,
            -failed, NULL
        )
    if not mailbox_let_go(connection):
        queues_serve_later(loop, connection, wake)


cdef inline bint acceptor_admit(
    acceptor_t *acceptor, int fd, listener_t *listener, name_t *peer, bint *counted,
) noexcept nogil:
    """Whether a connection that was accepted may stay. If not it is reset at once, and only
    counted.
    """
    counted[0] = False
    if acceptor_live(acceptor) < acceptor.max_connections:
        counted[0] = acceptor.addresses.most and not acceptor.has_proxy and not listener.unix_domain
        if not counted[0] or addresses_take(&acceptor.addresses, peer):
            return True
    acceptor_turned_away(acceptor)  # first: who meets the reset finds it in `stats`
    if not listener.unix_domain:
        kernel_reset(fd)
    kernel_close(fd)
    return False


cdef inline void acceptor_turned_away(acceptor_t *acceptor) noexcept nogil:
    """Count a connection that does not even get a slot. The log thread is told once, until it has
    looked.
    """
    atomic_add64(&acceptor.turned_away, 1)
    if not atomic_swap32(&acceptor.turned_away_told, 1):
        queues_log(acceptor.loops[0], LOG_TURNED_AWAY)


cdef inline void acceptor_state(acceptor_t *acceptor, uint32_t state) noexcept nogil:
    """Publish whether connections are accepted; a change is told of. A pause is counted once,
    however often `resume` wakes the accept thread, but for want of something, when each try is.
    """
    cdef bint changes = state != atomic_load32(&acceptor.accepting)
    if state == ACCEPT_EXHAUSTED or (state == ACCEPT_FULL and changes):
        atomic_add64(&acceptor.pauses, 1)
    if changes:
        atomic_store32(&acceptor.accepting, state)
        queues_log(acceptor.loops[0], LOG_ACCEPTING)


cdef inline bint acceptor_has_room(acceptor_t *acceptor) noexcept nogil:
    """Whether another connection is admitted. If not, whoever releases one will set the event:
    `waits` is set before each `live` is looked at again.
    """
    if acceptor.turns_away or acceptor_live(acceptor) < acceptor.max_connections:
        return True
    atomic_store32(&acceptor.waits, 1)
    return acceptor_live(acceptor) < acceptor.max_connections


cdef inline int acceptor_accept_one(
    acceptor_t *acceptor, uint32_t listener, loop_t *polled, bint may_wait,
) noexcept nogil:
    """Accept into the slot `next`, unless the connection is turned away. Returns the fd, or -errno.
    No fork comes between; -EAGAIN while one is waited for.
    """
    cdef vacancy_t *next = &acceptor.next
    cdef name_t peer
    cdef bint counted
    cdef int fd
    if may_wait:
        kernel_close_fork_gate()
    elif not kernel_try_close_fork_gate():
        return -EAGAIN
    fd = kernel_accept(acceptor.listeners[listener].fd, &peer)
    if fd >= 0 and acceptor_admit(acceptor, fd, &acceptor.listeners[listener], &peer, &counted):
        acceptor_take(next.loop, next.connection, fd, &peer, listener, counted, next.loop != polled)
        next.connection = NULL
    kernel_open_fork_gate()
    if fd >= 0 and atomic_load32(&acceptor.accepting) == ACCEPT_EXHAUSTED:
        # now, not at the end of the pause: it may have been in vain
        acceptor_state(acceptor, ACCEPTING)
    return fd


cdef inline void acceptor_accept_locked(
    acceptor_t *acceptor, uint32_t listener, loop_t *polled, bint may_wait,
) noexcept nogil:
    """Errors of the connection that was to be accepted (accept(2)) are skipped."""
    cdef vacancy_t *next = &acceptor.next
    cdef int fd
    cdef int left = ACCEPT_MOST
    kernel_unblock(acceptor.listeners[listener].fd)
    while (
        not atomic_load32(&acceptor.stop) and not atomic_load32(&acceptor.suspended) and
        acceptor_has_room(acceptor)
    ):
        if left == 0:
            return
        left -= 1
        if next.connection == NULL:
            next.loop = acceptor_choose(acceptor)
            next.connection = <connection_t *>slab_acquire(&next.loop.slab)
        fd = -ENOMEM
        if next.connection != NULL:
            fd = acceptor_accept_one(acceptor, listener, polled, may_wait)
        if fd == -EAGAIN:
            return
        if fd == -EINVAL:
            listeners_lose_locked(acceptor, listener)
            return
        if fd == -EMFILE or fd == -ENFILE or fd == -ENOBUFS or fd == -ENOMEM:
            listeners_leave_locked(acceptor, True)
            return
    listeners_leave_locked(acceptor, False)


cdef inline void acceptor_accept(loop_t *polled, uint32_t listener, bint may_wait) noexcept nogil:
    """The poller of that loop says that connections wait at a listener: accept until EAGAIN, or the
    others' turn. `may_wait`: see loop_poll; what is left the next poll tells of again.
    """
    cdef acceptor_t *acceptor = polled.acceptor
    if may_wait:
        lock_take(&acceptor.accept_lock)
    elif not lock_try(&acceptor.accept_lock):  # who has it may wait for who forks
        return
    if atomic_load32(&acceptor.listening):  # else it says what was so before
        acceptor_accept_locked(acceptor, listener, polled, may_wait)
    lock_give(&acceptor.accept_lock)


cdef inline bint acceptor_is_listening(acceptor_t *acceptor) noexcept nogil:
    """Clear the event, then look. Who takes listeners out sets it under this lock: it does not end
    the pause that he asks for.
    """
    cdef bint listening
    lock_take(&acceptor.accept_lock)
    kernel_event_clear(acceptor.event)
    listening = atomic_load32(&acceptor.listening)
    lock_give(&acceptor.accept_lock)
    return listening


cdef inline void *acceptor_main(void *argument) noexcept nogil:
    """While nobody accepts: wait until that is over, for want of fds or memory not for long. Then,
    and until the end, sleep.
    """
    cdef acceptor_t *acceptor = <acceptor_t *>argument
    cdef pollfd polled
    cdef int timeout
    cdef bint listening
    kernel_poll_init(&polled, acceptor.event)
    while True:
        # Cleared before what the event tells of is looked at: listening, suspended, stop, room.
        listening = acceptor_is_listening(acceptor)
        timeout = -1
        if atomic_load32(&acceptor.stop):
            return NULL
        elif listening:
            if atomic_load32(&acceptor.lost):
                timeout = ACCEPT_PAUSE_MS
        elif atomic_load32(&acceptor.suspended):
            pass
        elif not acceptor_has_room(acceptor):
            acceptor_state(acceptor, ACCEPT_FULL)
        elif acceptor.exhausted:
            # A connection that is released gives an fd back: it need not wait for the end of the
            # pause.
            acceptor_state(acceptor, ACCEPT_EXHAUSTED)
            atomic_store32(&acceptor.waits, 1)
            acceptor.exhausted = False
            timeout = ACCEPT_PAUSE_MS
        else:
            if atomic_load32(&acceptor.accepting) == ACCEPT_FULL:
                acceptor_state(acceptor, ACCEPTING)
            listeners_enter(acceptor)
            continue
        kernel_poll(&polled, 1, timeout)
        if listening and not polled.revents:
            listeners_enter(acceptor)  # those that were lost


cdef inline int acceptor_start(acceptor_t *acceptor) noexcept nogil:
    """0 or -errno; after either, acceptor_end."""
    cdef int failed = (
        listeners_duplicate(acceptor) or
        kernel_thread_start(&acceptor.thread, acceptor_main, acceptor)
    )
    acceptor.started = not failed
    return failed


cdef inline void acceptor_suspend(acceptor_t *acceptor, bint suspend) noexcept nogil:
    """Suspend accepting, or resume it. Any thread, also after the end."""
    atomic_store32(&acceptor.suspended, suspend)
    lock_take(&acceptor.event_lock)
    kernel_event_set(acceptor.event)
    lock_give(&acceptor.event_lock)


cdef inline void acceptor_end(acceptor_t *acceptor) noexcept nogil:
    """Accept no more, for good, and end the thread, if it runs; it takes no longer than accepting
    ACCEPT_MOST connections.
    """
    if acceptor.started:
        acceptor.started = False
        atomic_store32(&acceptor.stop, 1)
        kernel_event_set(acceptor.event)
        pthread_join(acceptor.thread, NULL)
        lock_take(&acceptor.accept_lock)
        if atomic_load32(&acceptor.listening):
            listeners_leave_locked(acceptor, False)
        lock_give(&acceptor.accept_lock)
        if acceptor.next.connection != NULL:
            slab_release(&acceptor.next.loop.slab, &acceptor.next.connection.slot)
            acceptor.next.connection = NULL
    kernel_close_fork_gate()
    listeners_close(acceptor)
    kernel_open_fork_gate()
