"""The accept thread: takes connections from the listener, gives each a slot, and has it polled. It never runs Python and never waits for the GIL."""

from libc.errno cimport EAGAIN, EBADF, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.stdint cimport uint32_t

from hydrogen._c.connection cimport (
    CAUSE_OS_ERROR, NEW, connection_end, connection_generation, connection_let_go, connection_open, connection_t,
)
from hydrogen._c.loop cimport ACCEPT_PAUSE_MS, NOTICE_ACCEPT_PAUSED, loop_notice, loop_register, loop_serve_later, loop_t
from hydrogen._c.slab cimport slab_acquire, slab_release, slab_t
from hydrogen._c.sys cimport (
    atomic_add64, atomic_load32, atomic_store32, name_t, pthread_join, sys_accept, sys_event_set, sys_setsockopt, sys_thread_start,
    sys_wait_two,
)


cdef inline void acceptor_take(loop_t *loop, connection_t *connection, int fd, name_t *peer) noexcept nogil:
    """Begin the life of a connection. It starts owned, by this thread."""
    cdef int failed = 0
    cdef uint32_t k
    connection_open(&loop.context, connection, fd, atomic_add64(&loop.accepted, 1) + 1, peer)
    atomic_add64(&loop.live, 1)
    for k in range(loop.option_count):
        if not failed:
            failed = sys_setsockopt(fd, loop.options[k].level, loop.options[k].name, loop.options[k].value, loop.options[k].size)
    if not failed and loop.has_open_callbacks:
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


cdef inline void *acceptor_main(void *argument) noexcept nogil:
    """Accept until told to stop. Errors of the connection that was to be accepted (accept(2)) are skipped; want of fds or memory is waited out."""
    cdef loop_t *loop = <loop_t *>argument
    cdef slab_t *slab = &loop.slab
    cdef connection_t *connection = NULL
    cdef name_t peer
    cdef int fd
    while not atomic_load32(&loop.accept_stop):
        if connection == NULL:
            connection = <connection_t *>slab_acquire(slab)
        fd = sys_accept(loop.listen_fd, &peer) if connection != NULL else -ENOMEM
        if fd >= 0:
            acceptor_take(loop, connection, fd, &peer)
            connection = NULL
        elif fd == -EAGAIN:
            sys_wait_two(loop.listen_fd, loop.accept_event, -1)
        elif fd == -EMFILE or fd == -ENFILE or fd == -ENOBUFS or fd == -ENOMEM or fd == -EBADF or fd == -EINVAL:
            if atomic_add64(&loop.accept_pauses, 1) == 0:
                loop_notice(loop, NOTICE_ACCEPT_PAUSED)
            sys_wait_two(-1, loop.accept_event, ACCEPT_PAUSE_MS)
    if connection != NULL:
        slab_release(slab, &connection.slot)
    return NULL


cdef inline int acceptor_start(loop_t *loop) noexcept nogil:
    """0 or -errno."""
    cdef int failed = sys_thread_start(&loop.accept_thread, acceptor_main, loop)
    loop.accept_started = not failed
    return failed


cdef inline void acceptor_end(loop_t *loop) noexcept nogil:
    """End the thread, if it runs, and wait for it, which takes no longer than one accept(2)."""
    if loop.accept_started:
        loop.accept_started = False
        atomic_store32(&loop.accept_stop, 1)
        sys_event_set(loop.accept_event)
        pthread_join(loop.accept_thread, NULL)
