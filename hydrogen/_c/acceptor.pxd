"""The accept thread: takes connections from the listeners, gives each a slot, and has it polled. It never runs Python and never waits for the GIL.

One thread for all listeners, so that the limits have one writer: what it admits is never more than `max_connections`. Who releases a connection only
makes `live` smaller, and tells this thread if it waits for that (loop_release).
"""

from libc.errno cimport EAGAIN, EBADF, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.stdint cimport uint32_t

from hydrogen._c.addresses cimport addresses_take
from hydrogen._c.connection cimport (
    CAUSE_OS_ERROR, FLAG_FIRST, FLAG_HEADER, NEW, WATCH_CONFIGURED, connection_end, connection_generation, connection_let_go, connection_open, connection_t,
)
from hydrogen._c.loop cimport (
    ACCEPTING, ACCEPT_EXHAUSTED, ACCEPT_FULL, ACCEPT_MOST, ACCEPT_PAUSE_MS, NEWS_ACCEPTING, NEWS_TURNED_AWAY, listener_t, loop_register,
    loop_serve_later, loop_t, loop_tell, loop_watch_all,
)
from hydrogen._c.slab cimport slab_acquire, slab_release
from hydrogen._c.sys cimport (
    atomic_add64, atomic_load32, atomic_load64, atomic_store32, atomic_swap32, name_t, pthread_join, sys_accept, sys_close, sys_event_clear, sys_event_set,
    sys_poll, sys_poll_init, sys_reset, sys_setsockopt, sys_thread_start,
)


cdef inline void acceptor_take(loop_t *loop, connection_t *connection, int fd, name_t *peer, uint32_t listener, bint counted) noexcept nogil:
    """Begin the life of a connection. It starts owned, by this thread."""
    cdef int failed = 0
    cdef uint32_t k
    connection_open(
        &loop.context, connection, fd, atomic_add64(&loop.accepted, 1) + 1, peer, listener, loop.listeners[listener].unix_domain)
    connection.counted = counted
    atomic_add64(&loop.live, 1)
    if loop.context.idle_timeout:
        loop_watch_all(loop, WATCH_CONFIGURED)
    for k in range(loop.option_count):
        if not failed:
            failed = sys_setsockopt(fd, loop.options[k].level, loop.options[k].name, loop.options[k].value, loop.options[k].size)
    if not failed and loop.has_open_callbacks:
        if loop.has_proxy:
            connection.flags |= FLAG_HEADER | FLAG_FIRST
        connection.mail |= NEW
        loop_serve_later(loop, connection, True)
        return
    atomic_store32(&connection.ready, not loop.has_open_callbacks)
    if not failed:
        failed = loop_register(loop, connection)
    if failed:
        connection.mail |= connection_end(&loop.context, connection, connection_generation(connection), True, CAUSE_OS_ERROR, -failed)
    if not connection_let_go(connection):
        loop_serve_later(loop, connection, True)


cdef inline bint acceptor_admit(loop_t *loop, int fd, listener_t *listener, name_t *peer, bint *counted) noexcept nogil:
    """Whether a connection that was accepted may stay. If not it is reset at once, and only counted."""
    counted[0] = False
    if atomic_load64(&loop.live) < loop.max_connections:
        counted[0] = loop.context.addresses.most and not loop.has_proxy and not listener.unix_domain
        if not counted[0] or addresses_take(&loop.context.addresses, peer):
            return True
    if not listener.unix_domain:
        sys_reset(fd)
    sys_close(fd)
    acceptor_turned_away(loop)
    return False


cdef inline void acceptor_turned_away(loop_t *loop) noexcept nogil:
    """Count a connection that does not even get a slot. The herald is told once, until it has looked."""
    atomic_add64(&loop.accepted, 1)
    atomic_add64(&loop.turned_away, 1)
    if not atomic_swap32(&loop.turned_away_told, 1):
        loop_tell(loop, NEWS_TURNED_AWAY)


cdef inline void acceptor_state(loop_t *loop, uint32_t state) noexcept nogil:
    """Publish what this thread does. Each wait is counted, a change is told of."""
    if state != ACCEPTING:
        atomic_add64(&loop.accept_pauses, 1)
    if state != atomic_load32(&loop.accepting):
        atomic_store32(&loop.accepting, state)
        loop_tell(loop, NEWS_ACCEPTING)


cdef inline bint acceptor_has_room(loop_t *loop) noexcept nogil:
    """Whether another connection is admitted. If not, whoever releases one will set the event: `accept_waits` is set before `live` is looked at again."""
    if loop.turns_away or atomic_load64(&loop.live) < loop.max_connections:
        return True
    atomic_store32(&loop.accept_waits, 1)
    return atomic_load64(&loop.live) < loop.max_connections


cdef inline bint acceptor_accept(loop_t *loop, uint32_t listener, connection_t **connection) noexcept nogil:
    """Accept from one listener, until EAGAIN or the others' turn; False for want of fds or memory.

    Errors of the connection that was to be accepted (accept(2)) are skipped. `connection` is the slot for the next one.
    """
    cdef name_t peer
    cdef bint counted
    cdef int fd
    cdef int left = ACCEPT_MOST
    while left and not atomic_load32(&loop.accept_stop) and not atomic_load32(&loop.suspended) and acceptor_has_room(loop):
        left -= 1
        if connection[0] == NULL:
            connection[0] = <connection_t *>slab_acquire(&loop.slab)
        fd = sys_accept(loop.listeners[listener].fd, &peer) if connection[0] != NULL else -ENOMEM
        if fd == -EAGAIN:
            return True
        if fd == -EMFILE or fd == -ENFILE or fd == -ENOBUFS or fd == -ENOMEM or fd == -EBADF or fd == -EINVAL:
            return False
        if fd >= 0 and acceptor_admit(loop, fd, &loop.listeners[listener], &peer, &counted):
            acceptor_take(loop, connection[0], fd, &peer, listener, counted)
            connection[0] = NULL
    return True


cdef inline void *acceptor_main(void *argument) noexcept nogil:
    """Accept until told to stop; suspended, full or exhausted wait for the event alone, and the last of these not for long."""
    cdef loop_t *loop = <loop_t *>argument
    cdef connection_t *connection = NULL
    cdef bint exhausted = False
    cdef uint32_t k
    sys_poll_init(&loop.accept_polled[0], loop.accept_event)
    for k in range(loop.listener_count):
        sys_poll_init(&loop.accept_polled[k + 1], loop.listeners[k].fd)
    while not atomic_load32(&loop.accept_stop):
        if atomic_load32(&loop.suspended):
            sys_poll(loop.accept_polled, 1, -1)
        elif not acceptor_has_room(loop):
            acceptor_state(loop, ACCEPT_FULL)
            sys_poll(loop.accept_polled, 1, -1)
        elif exhausted:
            # A connection that is released gives an fd back: it need not wait for the end of the pause.
            acceptor_state(loop, ACCEPT_EXHAUSTED)
            atomic_store32(&loop.accept_waits, 1)
            sys_poll(loop.accept_polled, 1, ACCEPT_PAUSE_MS)
        else:
            acceptor_state(loop, ACCEPTING)
            sys_poll(loop.accept_polled, loop.listener_count + 1, -1)
        # Cleared before what it tells of is looked at: suspended, stop, room.
        sys_event_clear(loop.accept_event)
        exhausted = False
        for k in range(loop.listener_count):
            if not acceptor_accept(loop, k, &connection):
                exhausted = True
    if connection != NULL:
        slab_release(&loop.slab, &connection.slot)
    return NULL


cdef inline int acceptor_start(loop_t *loop) noexcept nogil:
    """0 or -errno."""
    cdef int failed = sys_thread_start(&loop.accept_thread, acceptor_main, loop)
    loop.accept_started = not failed
    return failed


cdef inline void acceptor_suspend(loop_t *loop, bint suspend) noexcept nogil:
    """Suspend accepting, or resume it."""
    atomic_store32(&loop.suspended, suspend)
    sys_event_set(loop.accept_event)


cdef inline void acceptor_end(loop_t *loop) noexcept nogil:
    """End the thread, if it runs, and wait for it, which takes no longer than one accept(2)."""
    if loop.accept_started:
        loop.accept_started = False
        atomic_store32(&loop.accept_stop, 1)
        sys_event_set(loop.accept_event)
        pthread_join(loop.accept_thread, NULL)
