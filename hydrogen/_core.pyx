# cython: freethreading_compatible=True, auto_pickle=False
"""The compiled engine: where Python and the rooms under _c/ meet.

Workers are Python threads that spend their life in `Engine._work`: off the GIL in `worker_next`, then one turn in the dispatch role with it. Leaving
the `nogil` block there is the one place where a worker takes the GIL for native streams; a turn gives it away only to flush what it has corked. The
accept thread and the monitor thread are C threads and never take it.

What a connection holds of Python (`user_data`, a user's stream, TLS, a user's frame builder, the error it ends with) are counted references in its slot:
swapped under its lock, dropped after unlocking, and gone before the slot is released, in `Engine._finish`.

The slow path, which takes the GIL where it must, has functions of its own: `_read_port` and `_port_send` for streams written by the user, `_decrypt`, `_send_coded` and
`_goodbye` for TLS, `_deliver_decoded` for frame builders written by the user. TLS locks its session, a Python lock, before anything of the connection.
"""

import logging
import threading
import time
from socket import AF_INET, AF_INET6, AF_UNIX, inet_ntop, inet_pton
from types import MethodType

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.errno cimport EAGAIN, EBADF, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from hydrogen import errors
from hydrogen.connection import HydrogenSocket as _HydrogenSocketContract
from hydrogen.connection import extra_info
from hydrogen.frame import FrameDecoder, encode
from hydrogen.proxy import HeaderReader, ProxyHeader, begins_header, may_send
from hydrogen.report import BroadcastReport, Stats
from hydrogen.stream import Plain, Secure, Stream, StreamAdapter
from hydrogen.tls import TlsSession

cimport cython

from hydrogen._c.acceptor cimport *
from hydrogen._c.addresses cimport addresses_take
from hydrogen._c.atomic cimport *
from hydrogen._c.broadcast cimport *
from hydrogen._c.buffer cimport (
    block_bytes, block_free, block_length, block_t, shared_drop, shared_new, shared_t,
)
from hydrogen._c.closing cimport *
from hydrogen._c.connection cimport *
from hydrogen._c.constants cimport *
from hydrogen._c.counters cimport *
from hydrogen._c.deadlines cimport *
from hydrogen._c.flush cimport *
from hydrogen._c.framing cimport *
from hydrogen._c.input cimport *
from hydrogen._c.kernel cimport *
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.loop cimport *
from hydrogen._c.mailbox cimport *
from hydrogen._c.monitor cimport monitor_end, monitor_set_alarm, monitor_start
from hydrogen._c.output cimport *
from hydrogen._c.poller cimport poller_remove
from hydrogen._c.queues cimport *
from hydrogen._c.slab cimport slab_used
from hydrogen._c.structs cimport *
from hydrogen._c.worker cimport *
from hydrogen._codec cimport Framing, framed, payload_of, too_large, unfit

DEBUG = HYDROGEN_DEBUG

_log = logging.getLogger("hydrogen")

cdef enum:
    # Messages of one connection in one turn; then the others come. When there are none it goes on until the turn is CORK_NS old.
    DELIVER_MOST = 256
    # A turn flushes what it has corked after so many callbacks, ...
    CORK_CALLBACKS = 64
    # ... or, looking at the clock after each eighth, after so many nanoseconds.
    CORK_NS = 200000
    # Replies up to this size are sent with the GIL held in eager mode: send(2) takes 2 to 3 us, giving the GIL away and waiting to get it back more.
    SEND_HELD_MOST = 16 << 10
    # What OpenSSL encrypts or decrypts in some 100 us.
    TLS_SHORT_MOST = 256 << 10
    # A thread that waits in drain() looks for signals so often.
    DRAIN_SLICE_NS = 50000000
    # What one recv(2) asks for.
    SCRATCH_MOST = 256 << 10
    # What one recv(2) asks of a header of the PROXY protocol.
    HEADER_PART = 4096

# How long a stop waits for workers to come out of their callbacks when the connections are gone.
JOIN_SECONDS = 0.1

# How long it waits for the log thread, whom a log handler may keep.
LOG_THREAD_SECONDS = 1.0

cdef dict _HANDOFFS = {"auto": HANDOFF_AUTO, "inline": HANDOFF_INLINE, "eager": HANDOFF_EAGER}

cdef Framing _raw = Framing(None)

kernel_watch_forks()


cdef dict _BAD_FRAMES = {
    FRAME_BAD: CAUSE_BAD_FRAME,
    FRAME_OVERSIZE: CAUSE_FRAME_TOO_LARGE,
    FRAME_CHECKSUM: CAUSE_CHECKSUM_MISMATCH,
}
cdef tuple _PROTOCOL_ERRORS = (CAUSE_BAD_FRAME, CAUSE_FRAME_TOO_LARGE, CAUSE_INCOMPLETE_FRAME, CAUSE_CHECKSUM_MISMATCH)


cdef uint64_t _nanoseconds(seconds) except? 0:
    """A timeout of Config; 0: none."""
    return 0 if seconds is None else max(1, int(seconds * 1e9))


cdef object _name(name_t *name):
    """An address as the socket module gives it; None when there is none."""
    if name.family == 0:
        return None
    if name.family == AF_INET:
        return inet_ntop(name.family, name.bytes[:4]), name.port
    return inet_ntop(name.family, name.bytes[:16]), name.port, name.flow, name.scope


cdef _set_name(name_t *name, address):
    """Undo `_name`: (host, port), or of IPv6 (host, port, flow, scope)."""
    cdef bytes packed
    name.family = AF_INET if len(address) == 2 else AF_INET6
    name.port, name.flow, name.scope = address[1], 0, 0
    packed = inet_pton(name.family, address[0])
    memcpy(name.bytes, PyBytes_AS_STRING(packed), len(packed))


@cython.final
@cython.freelist(64)
cdef class HydrogenSocket:
    """A connection of the compiled engine; hydrogen.connection.HydrogenSocket is the contract. Slot and generation together are its identity."""

    cdef Engine _engine
    cdef connection_t *_connection
    cdef uint32_t _generation
    cdef uint64_t _id

    def __init__(self):
        raise TypeError("sockets are made by a server")

    def send(self, data):
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            return self._engine._send(self, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._engine._send(self, <const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def drain(self, timeout=None):
        return self._engine._drain(self, timeout)

    def close(self):
        self._engine._end(self, False, CAUSE_LOCAL_CLOSED, 0)

    def shutdown(self):
        self._engine._end(self, False, CAUSE_LOCAL_CLOSED, 0)

    def abort(self):
        self._engine._end(self, True, CAUSE_LOCAL_CLOSED, 0)

    def pause_reading(self):
        if self._valid():
            atomic_or32(&self._connection.pause, PAUSE_USER)

    def resume_reading(self):
        if self._valid() and atomic_and32(&self._connection.pause, ~<uint32_t>PAUSE_USER) == PAUSE_USER:
            self._engine._post(self, RESUME)

    cdef bint _valid(self) noexcept:
        return not self._engine._inert() and mailbox_generation(self._connection) == self._generation

    @property
    def pending(self):
        cdef size_t pending = 0
        if not self._valid():
            return 0
        lock_take(&self._connection.lock)
        if mailbox_generation(self._connection) == self._generation:
            pending = self._connection.pending
        lock_give(&self._connection.lock)
        return pending

    @property
    def is_open(self):
        return self._valid() and atomic_load32(&self._connection.state) == STATE_OPEN

    @property
    def id(self):
        return self._id

    @property
    def user_data(self):
        value = None
        if self._valid():
            lock_take(&self._connection.lock)
            if mailbox_generation(self._connection) == self._generation and self._connection.user_data != NULL:
                value = <object>self._connection.user_data
            lock_give(&self._connection.lock)
        return value

    @user_data.setter
    def user_data(self, value):
        cdef void *old = NULL
        cdef void *new = NULL
        if not self._valid():
            return
        if value is not None:
            Py_INCREF(value)
            new = <void *>value
        lock_take(&self._connection.lock)
        old = new
        # Once it is gone a reference may only replace another one: that there is one decided that its end goes through Python.
        if mailbox_generation(self._connection) == self._generation and (
            self._connection.state < STATE_GONE or self._connection.user_data != NULL
        ):
            old = self._connection.user_data
            self._connection.user_data = new
        lock_give(&self._connection.lock)
        Py_XDECREF(<PyObject *>old)

    @property
    def server(self):
        return self._engine._server

    @property
    def peername(self):
        cdef name_t name
        cdef bint valid
        header = self._engine._held(self, &self._connection.header)
        if isinstance(header, ProxyHeader) and header.source is not None:
            return header.source
        if not self._valid():
            return None
        lock_take(&self._connection.lock)
        valid = mailbox_generation(self._connection) == self._generation
        name = self._connection.peer
        lock_give(&self._connection.lock)
        return None if not valid else _name(&name) or ""

    @property
    def sockname(self):
        cdef name_t name
        if not self._valid():
            return None
        if self._connection.unix_domain:
            return self._engine._addresses[self._connection.listener]
        name.family = 0
        lock_take(&self._engine._loop.context.fd_lock)
        if mailbox_generation(self._connection) == self._generation:
            if atomic_load32(&self._connection.state) >= STATE_GONE:
                name = self._connection.local
            else:
                kernel_local_name(self._connection.poll_fd, &name)
        lock_give(&self._engine._loop.context.fd_lock)
        return _name(&name)

    def fileno(self):
        cdef int fd = -1
        if self._valid():
            lock_take(&self._engine._loop.context.fd_lock)
            if mailbox_generation(self._connection) == self._generation:
                fd = self._connection.fd
            lock_give(&self._engine._loop.context.fd_lock)
        return fd

    def get_extra_info(self, name, default=None):
        header = self._engine._held(self, &self._connection.header)
        return extra_info(self, self._engine._held(self, &self._connection.session), header, name, default)

    def __eq__(self, other):
        cdef HydrogenSocket socket
        if not isinstance(other, HydrogenSocket):
            return NotImplemented
        socket = other
        return socket._engine is self._engine and socket._id == self._id

    def __hash__(self):
        return hash((id(self._engine), self._id))

    def __repr__(self):
        return f"<HydrogenSocket {self._id} {'open' if self.is_open else 'closed'}>"


_HydrogenSocketContract.register(HydrogenSocket)


cdef object _rebound(callback):
    """A bound method anew; anything else as it is."""
    return MethodType(callback.__func__, callback.__self__) if isinstance(callback, MethodType) else callback


@cython.final
cdef class _Callbacks:
    """The handler's callbacks as one worker holds them: bound methods of its own, which it makes itself.

    Without a GIL references are cheap to count for the thread that made the object. All workers would count at the same ones for each message.
    """

    cdef object on_data, on_new, on_connected, on_eof, on_writable, on_disconnected, on_removed

    def __cinit__(self, callbacks):
        self.on_data = _rebound(callbacks.on_data_received)
        self.on_new = _rebound(callbacks.on_new_connection)
        self.on_connected = _rebound(callbacks.on_connected)
        self.on_eof = _rebound(callbacks.on_eof)
        self.on_writable = _rebound(callbacks.on_writable)
        self.on_disconnected = _rebound(callbacks.on_disconnected)
        self.on_removed = _rebound(callbacks.on_connection_removed)


@cython.final
cdef class Engine:
    """The compiled engine, with one loop: backend.Engine is the contract. Several are one server's when the first one accepts for all (loops.py)."""

    cdef loop_t _loop
    cdef acceptor_t _own
    cdef acceptor_t *_acceptor  # its own, or that of `_first`
    cdef Engine _first
    cdef object _server, _log, _timers, _addresses, _threads, _log_thread, _drained
    cdef object _listeners, _builder, _tls
    cdef object _proxy_versions, _proxy_allow
    cdef bint _debug  # each connection is told of in the log
    cdef dict _framings  # every different framing there was, by its key: slots point into them
    cdef object _callbacks

    def __cinit__(self, server, callbacks, config, listeners, max_connections, Engine first=None):
        cdef int failed
        cdef context_t *context = &self._loop.context
        loop_clear(&self._loop)
        acceptor_clear(&self._own)
        self._first = first
        self._acceptor = &self._own if first is None else &first._own
        self._server = server
        self._log = server.log
        self._timers = server.timers
        self._debug = _log.isEnabledFor(logging.DEBUG)
        self._listeners = listeners
        self._addresses = [listener.getsockname() for listener in listeners]
        self._threads = []
        self._log_thread = threading.Thread(target=self._tell, name="hydrogen-log", daemon=True)
        self._drained = threading.Event()
        self._callbacks = callbacks
        if first is None:
            self._prepare_acceptor(config, max_connections)
        failed = loop_init(&self._loop, self._acceptor, config.max_threads, config.pre_allocated, min(config.read_budget, SCRATCH_MOST))
        if failed:
            raise errors.removal_error(CAUSE_OS_ERROR, -failed)
        self._proxy_versions, self._proxy_allow = config.proxy_protocol, config.proxy_allow_from
        self._loop.handoff = _HANDOFFS[config.handoff]
        self._loop.has_open_callbacks = (
            callbacks.on_new_connection is not None or callbacks.on_connected is not None or config.ssl is not None or
            self._acceptor.has_proxy or self._debug
        )
        context.low, context.high = config.write_buffer_limits
        context.max_write_buffer = config.max_write_buffer
        context.max_buffered = config.max_buffered
        context.read_budget = config.read_budget
        context.has_on_eof = callbacks.on_eof is not None
        context.has_on_writable = callbacks.on_writable is not None
        context.has_end_callbacks = callbacks.on_disconnected is not None or callbacks.on_connection_removed is not None or self._debug
        context.open_timeout = _nanoseconds(config.open_timeout)
        context.idle_timeout = _nanoseconds(config.idle_timeout)
        context.frame_timeout = _nanoseconds(config.frame_timeout)
        context.write_timeout = _nanoseconds(config.write_timeout)
        timeouts = (context.open_timeout, context.idle_timeout, context.frame_timeout, context.write_timeout)
        self._loop.sweep_ns = max(TICK_NS, min([timeout for timeout in timeouts if timeout], default=4 * LINGER_SWEEP_NS) // 4)
        self._builder = config.builder
        self._tls = config.ssl
        self._framings = {}
        context.framing = self._framing(config.builder)

    def __dealloc__(self):
        # In a forked child the threads to join are not there, and a lock may be held for ever: what is left goes with the process.
        if not self._inert():
            acceptor_end(&self._own)
            monitor_end(&self._loop)
            loop_destroy(&self._loop)
            acceptor_destroy(&self._own)

    cdef _prepare_acceptor(self, config, max_connections):
        cdef acceptor_t *acceptor = &self._own
        cdef option_t *option
        cdef int index, failed
        failed = acceptor_init(acceptor, len(self._listeners), len(config.socket_options), config.max_connections_per_ip or 0)
        if failed:
            raise errors.removal_error(CAUSE_OS_ERROR, -failed)
        for index, listener in enumerate(self._listeners):
            acceptor.listeners[index].fd = listener.fileno()
            acceptor.listeners[index].unix_domain = listener.family == AF_UNIX
        for index, (level, name, value) in enumerate(config.socket_options):
            if isinstance(value, int):
                value = value.to_bytes(4, "little", signed=True)
            option = &acceptor.options[index]
            option.level, option.name, option.size = level, name, len(value)
            option.value = <char *>malloc(len(value) or 1)
            if option.value == NULL:
                raise MemoryError
            memcpy(option.value, PyBytes_AS_STRING(value), len(value))
        acceptor.max_connections = max_connections
        acceptor.turns_away = config.overload == "close"
        acceptor.has_proxy = config.proxy_protocol != "off"

    # --- life ------------------------------------------------------------------------------------------------------------------------------

    def start(self):
        cdef int failed
        before = acceptor_workers_before(self._acceptor, &self._loop)
        for index in range(self._loop.worker_count):
            thread = threading.Thread(target=self._work, args=(index,), name=f"hydrogen-worker-{before + index}", daemon=True)
            try:
                thread.start()
            except BaseException:
                self.release()
                raise
            self._threads.append(thread)
        try:
            self._log_thread.start()
        except BaseException:
            self.release()
            raise
        failed = monitor_start(&self._loop)
        if not failed and self._first is None:
            failed = acceptor_start(self._acceptor)
        if failed:
            self.release()
            raise errors.removal_error(CAUSE_OS_ERROR, -failed)

    def stop_accepting(self):
        with nogil:
            acceptor_end(self._acceptor)

    def suspend(self):
        acceptor_suspend(self._acceptor, True)

    def resume(self):
        acceptor_suspend(self._acceptor, False)

    def set_alarm(self, when):
        if not self._inert():
            monitor_set_alarm(&self._loop, max(<uint64_t>1, <uint64_t>(when * 1e9)))

    def running(self):
        cdef uint32_t k
        return [
            (thread.ident, relaxed_load64(&self._loop.workers[k].progress))
            for k, thread in enumerate(self._threads) if relaxed_load32(&self._loop.workers[k].state) == WORKER_CALLBACK
        ]

    def end(self, HydrogenSocket socket not None):
        socket._engine._end(socket, False, CAUSE_SERVER_STOPPED, 0)

    def close_all(self):
        cdef uint64_t unsent = 0, count = 0
        if self._inert():
            return
        atomic_store32(&self._loop.stopping, 1)
        with nogil:
            loop_end_all(&self._loop, False, &unsent, &count)

    def abort_all(self):
        cdef uint64_t unsent = 0, count = 0
        if self._inert():
            return 0
        atomic_store32(&self._loop.stopping, 1)
        with nogil:
            loop_end_all(&self._loop, True, &unsent, &count)
        return count

    def wait_drained(self, timeout):
        # `stopping` was set before `live` is looked at; see loop_release.
        return atomic_load64(&self._loop.live) == 0 or self._drained.wait(timeout)

    def unsent(self):
        return sum([socket.pending for socket in self._sockets(STATE_CLOSING)])

    def release(self):
        abandoned = 0
        with nogil:
            acceptor_end(self._acceptor)
            monitor_end(&self._loop)
            loop_exit(&self._loop)
        for index in range(len(self._threads), self._loop.worker_count):  # a start that failed
            worker_left(&self._loop.workers[index])
        if self._log_thread.ident is not None:
            self._log_thread.join(LOG_THREAD_SECONDS)
        deadline = time.monotonic() + JOIN_SECONDS
        for index, thread in enumerate(self._threads):
            # A worker that is not in a callback ends by itself; one that is may be about to come out of it.
            while thread.is_alive():
                thread.join(JOIN_SECONDS / 10)
                if thread.is_alive() and relaxed_load32(&self._loop.workers[index].state) == WORKER_CALLBACK and time.monotonic() >= deadline:
                    abandoned += 1
                    break
        return abandoned

    def in_worker(self):
        return self._worker() != NULL or threading.current_thread() is self._log_thread

    def reload_tls(self, context):
        with cython.critical_section(self):
            self._tls = context

    cdef object _context(self):
        """`_tls`, which `reload_tls` may let go of at any moment; the lock is nothing where there is a GIL."""
        with cython.critical_section(self):
            return self._tls

    def forked(self):
        """Nothing to do: `_inert` compares the count of forks."""

    cdef bint _inert(self) noexcept:
        return self._loop.forks != kernel_forks

    cdef worker_t *_worker(self) noexcept:
        """The worker of this loop that the calling thread is; NULL: none."""
        cdef worker_t *worker = <worker_t *>kernel_worker_get()
        return worker if worker != NULL and worker.loop == &self._loop else NULL

    def _tell(self):
        """The life of the log thread: what the accept thread and the monitor thread want in the log."""
        cdef uint32_t news, state
        while not self._inert():
            with nogil:
                news = queues_await_log(&self._loop)
            if not news:
                break
            if news & LOG_ALL_BLOCKED:
                self._log.all_blocked(self._loop.worker_count)
            if news & LOG_ACCEPTING:
                state = atomic_load32(&self._acceptor.accepting)
                if state == ACCEPTING:
                    self._log.accepting()
                else:
                    self._log.accepting_paused(self._acceptor.max_connections if state == ACCEPT_FULL else None)
            if news & LOG_TURNED_AWAY:
                atomic_store32(&self._acceptor.turned_away_told, 0)
                self._log.turned_away(atomic_load64(&self._acceptor.turned_away))

    # --- the dispatch role -----------------------------------------------------------------------------------------------------------------

    def _work(self, uint32_t index):
        """The life of a worker."""
        cdef worker_t *worker = &self._loop.workers[index]
        cdef _Callbacks callbacks = _Callbacks(self._callbacks)
        cdef uint64_t asked
        cdef bint go_on
        worker.callbacks = <void *>callbacks
        kernel_worker_set(worker)
        while not self._inert():
            with nogil:
                go_on = worker_next(worker)
                asked = kernel_now()
            if not go_on:
                break
            worker_enter(worker, asked)
            self._turn(worker)
            while not self._inert() and worker_refill(worker):
                self._turn(worker)
            worker_leave(worker)
        kernel_worker_set(NULL)
        if not self._inert():
            with nogil:
                worker_left(worker)

    cdef void _turn(self, worker_t *worker) noexcept:
        """One drain of the ready queue, at most as long as it was at the start."""
        cdef connection_t *connection
        cdef uint32_t notices = 0
        cdef uint32_t count = queues_begin_iteration(&self._loop, &notices)
        relaxed_add64(&worker.io.counters.iterations, 1)
        if notices:
            self._heed_notices(worker, notices)
        while count and not self._inert():
            connection = queues_pop_ready(&self._loop)
            if connection == NULL:
                break
            count -= 1
            self._serve(worker, connection)

    cdef void _heed_notices(self, worker_t *worker, uint32_t notices) noexcept:
        if notices & TASK_DRAINED:
            self._drained.set()
        if notices & TASK_TIMERS:
            self._before_callback(worker)
            self._timers.run_due(self.set_alarm)

    cdef void _serve(self, worker_t *worker, connection_t *connection) noexcept:
        """All that a connection needs of Python now. The calling worker owns it."""
        cdef uint32_t todo = connection.todo
        cdef HydrogenSocket socket
        connection.todo = 0
        socket = self._socket(connection)
        if todo & TODO_FINISH:
            self._finish(worker, connection, socket)
            return
        if todo & TODO_OPEN:
            self._open(worker, connection, socket)
        if todo & TODO_WRITABLE:
            self._port_send(socket, None)
        if todo & TODO_LOW:
            self._call(worker, connection, socket, (<_Callbacks>worker.callbacks).on_writable, "on_writable")
        if todo & TODO_READ:
            self._read_port(worker, connection, socket)
        if todo & TODO_DELIVER:
            self._deliver(worker, connection, socket)
        if todo & TODO_EOF and connection.flags & FLAG_TLS_FAILED:
            self._end_with(connection, socket, CAUSE_TLS_ERROR, (<object>connection.session).failure)
        elif todo & TODO_EOF:
            self._call(worker, connection, socket, (<_Callbacks>worker.callbacks).on_eof, "on_eof")
        if todo & TODO_CLOSE_NOTIFY:
            self._goodbye(worker, connection, socket)
        if connection.flags & FLAG_LATE:
            self._judge(connection, socket)
        if not self._inert():
            loop_settle(&self._loop, connection)

    cdef void _judge(self, connection_t *connection, HydrogenSocket socket) noexcept:
        """A deadline had passed when this connection came here. Has it still, with all that was there? What came since, perhaps in a long callback, counts."""
        cdef int late
        connection.flags &= ~<uint32_t>FLAG_LATE
        if (
            atomic_load32(&connection.state) != STATE_OPEN or connection.mail & (READABLE | AGAIN) or connection.flags & FLAGS_ENDED or
            atomic_load32(&connection.pause) or kernel_unread(connection.poll_fd)
        ):
            return
        late = deadlines_late(&self._loop.context, connection)
        if late:
            self._end(socket, True, CAUSE_TIMEOUT, late)

    cdef HydrogenSocket _socket(self, connection_t *connection):
        cdef HydrogenSocket socket = HydrogenSocket.__new__(HydrogenSocket)
        socket._engine = self
        socket._connection = connection
        socket._generation = mailbox_generation(connection)
        socket._id = connection.id
        return socket

    cdef inline void _before_callback(self, worker_t *worker) noexcept:
        """Count a callback, or a step of TLS, which shows the monitor thread that this worker gets on; flush in time what the turn has corked, and what
        another one had that blocks now."""
        cdef uint64_t progress = relaxed_load64(&worker.progress) + 1
        relaxed_store64(&worker.progress, progress)
        flush_take_over(worker)
        if worker.corked_count and progress & 7 == 0 and (
            worker.corked_count >= CORK_CALLBACKS or kernel_now() - worker.iteration_began > CORK_NS
        ):
            self._flush_corked(worker)

    cdef void _flush_corked(self, worker_t *worker) noexcept:
        """In eager mode with the GIL held: it went to one of those that wait for it, and this turn would end in the middle."""
        if worker_is_eager(&self._loop):
            flush_corked(worker)
        else:
            with nogil:
                relaxed_store32(&worker.state, WORKER_FLUSH)
                flush_corked(worker)
                relaxed_store32(&worker.state, WORKER_WANT_GIL)
            relaxed_add64(&worker.io.counters.gil_acquisitions, 1)
            relaxed_store32(&worker.state, WORKER_CALLBACK)
        worker.iteration_began = kernel_now()

    cdef void _deliver(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
        """Give the complete messages of the input to the handler."""
        cdef int verdict = FRAME_COMPLETE
        try:
            if connection.flags & FLAG_FIRST:
                self._look_at_first(connection)
            if connection.ciphertext != NULL:
                self._decrypt(worker, connection, socket)
            if connection.framing.kind == FRAMING_PYTHON:
                self._deliver_decoded(worker, connection, socket)
            else:
                verdict = self._deliver_frames(worker, connection, socket)
        except errors.ProtocolError as error:
            self._end_with(connection, socket, CAUSE_BAD_FRAME, error)
        except BaseException as error:
            self._failed(connection, socket, "on_data_received", error)
        if verdict > FRAME_COMPLETE:
            self._end(socket, False, _BAD_FRAMES[verdict], 0)
        if not input_tidy(&worker.io, connection):
            self._end(socket, True, CAUSE_OS_ERROR, ENOMEM)

    cdef int _deliver_frames(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) except -1:
        """The built-in framings. Returns the verdict of the last look at the input."""
        cdef block_t *input
        cdef frame_t frame
        cdef int budget = DELIVER_MOST
        cdef int verdict = FRAME_COMPLETE
        cdef uint64_t until = worker.iteration_began + CORK_NS
        cdef const uint8_t *at
        on_data = (<_Callbacks>worker.callbacks).on_data
        while atomic_load32(&connection.state) == STATE_OPEN and not atomic_load32(&connection.pause):
            input = connection.input
            if input == NULL:
                break
            at = <const uint8_t *>block_bytes(input) + input.start
            verdict = framing_next(connection.framing, at, block_length(input), &connection.scanned, &frame)
            if verdict != FRAME_COMPLETE:
                break
            if budget == 0:
                if queues_has_ready(&self._loop) or kernel_now() >= until:
                    connection.mail |= AGAIN
                    break
                budget = CORK_CALLBACKS
            budget -= 1
            data = payload_of(&frame, at)
            input.start += frame.size
            self._before_message(worker, connection)
            on_data(socket, data)
        return verdict

    cdef inline void _before_message(self, worker_t *worker, connection_t *connection) noexcept:
        """A message is complete: whatever of another one is there has a deadline of its own."""
        self._before_callback(worker)
        relaxed_add64(&worker.io.counters.messages_received, 1)
        if relaxed_load64(&connection.deadline):
            relaxed_store64(&connection.deadline, 0)

    cdef void _call(self, worker_t *worker, connection_t *connection, HydrogenSocket socket, callback, name) noexcept:
        """Run a callback that takes the socket alone."""
        if atomic_load32(&connection.state) != STATE_OPEN:
            return
        try:
            self._before_callback(worker)
            callback(socket)
        except BaseException as error:
            self._failed(connection, socket, name, error)

    cdef void _failed(self, connection_t *connection, HydrogenSocket socket, name, error) noexcept:
        """A callback raised: log it, and end the connection with a HandlerError. Not in a forked child, where the lock of the rate-limited log may be held."""
        if self._inert():
            return
        self._log.callback_error(name, error)
        self._end_with(connection, socket, CAUSE_HANDLER_ERROR, errors.handler_error(error))

    cdef void _end_with(self, connection_t *connection, HydrogenSocket socket, int cause, error) noexcept:
        """End the connection in order, with an exception that exists already."""
        cdef bint first = False
        lock_take(&connection.lock)
        if connection.error == NULL and connection.state == STATE_OPEN:
            Py_INCREF(error)
            connection.error = <void *>error
            first = True
        lock_give(&connection.lock)
        if first:
            self._end(socket, False, cause, 0)

    cdef void _open(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
        """The header of the PROXY protocol, on_new_connection, then the poller, then on_connected."""
        cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
        stream = None
        if atomic_load32(&connection.state) >= STATE_ABORTING:
            return
        if connection.flags & FLAG_HEADER and not self._read_header(worker, connection, socket):
            self._register(connection, socket)
            return
        if self._debug:
            self._log.accepted(connection.id, socket.peername)
        try:
            if callbacks.on_new is not None:
                self._before_callback(worker)
                stream = callbacks.on_new(connection.fd)
            context = self._context() if stream is None else None
            if stream is not None:
                self._adopt(worker, connection, socket, stream)
            elif context is not None:
                self._secure(worker, connection, socket, TlsSession(context, server_side=True))
            atomic_store32(&connection.ready, not connection.flags & FLAG_HANDSHAKE)
        except errors.Reject as error:
            self._end_with(connection, socket, CAUSE_REJECT, error)
            self._end(socket, True, CAUSE_REJECT, 0)
            return
        except BaseException as error:
            self._failed(connection, socket, "on_new_connection", error)
        self._register(connection, socket)
        if callbacks.on_connected is not None and atomic_load32(&connection.ready):
            self._call(worker, connection, socket, callbacks.on_connected, "on_connected")

    cdef void _register(self, connection_t *connection, HydrogenSocket socket) noexcept:
        """Have the connection polled, if it is not: before anything is sent, or nobody would ask for the OUT edge of a Unix socket."""
        cdef int failed = 0 if connection.flags & FLAG_POLLED else loop_register(&self._loop, connection)
        if failed:
            self._end(socket, True, CAUSE_OS_ERROR, -failed)

    cdef _adopt(self, worker_t *worker, connection_t *connection, HydrogenSocket socket, stream):
        """Take a stream of the user's: it owns the fd, the engine polls a duplicate. If its fd is none, ours stays ours."""
        cdef int duplicate
        if type(stream) in (Plain, Secure):
            self._take_over(worker, connection, socket, stream)
            return
        if not isinstance(stream, Stream):
            raise TypeError(f"on_new_connection must return a hydrogen.Stream or None, not {stream!r}")
        port = StreamAdapter(stream)
        duplicate = kernel_duplicate(stream.fileno())
        if duplicate == -EBADF:
            raise errors.removal_error(CAUSE_OS_ERROR, EBADF)
        Py_INCREF(port)
        if connection.flags & FLAG_POLLED:
            # While its header was awaited.
            poller_remove(&self._loop.context.poller, connection.fd)
            connection.flags &= ~<uint32_t>FLAG_POLLED
        lock_take(&connection.lock)
        connection.adapter = <void *>port
        connection.poll_fd = max(duplicate, -1)
        lock_give(&connection.lock)
        if duplicate < 0:
            raise errors.removal_error(CAUSE_OS_ERROR, -duplicate)

    cdef void _finish(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
        """The last callbacks, references dropped, fd closed, slot released."""
        cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
        cdef void *references[6]
        cdef bint told = connection.cause != CAUSE_OVERLOAD
        port = <object>connection.adapter if connection.adapter != NULL else None
        error = <object>connection.error if connection.error != NULL else errors.removal_error(connection.cause, connection.code)
        if port is not None:
            self._quietly(worker, port.shutdown)
        if connection.cause == CAUSE_SLOW_CONSUMER:
            self._log.slow_consumer(connection.id, socket.peername)
        if self._debug:
            self._log.removed(connection.id, error)
        if callbacks.on_disconnected is not None and atomic_load32(&connection.ready):
            self._quietly(worker, callbacks.on_disconnected, socket, error)
        if callbacks.on_removed is not None and told:
            self._quietly(worker, callbacks.on_removed, connection.fd, error)
        if port is not None:
            self._quietly(worker, port.close)
        if self._inert():
            return
        lock_take(&connection.lock)
        references[0], references[1], references[2] = connection.user_data, connection.adapter, connection.error
        references[3], references[4], references[5] = connection.session, connection.decoder, connection.header
        connection.user_data = connection.adapter = connection.error = connection.session = connection.decoder = connection.header = NULL
        lock_give(&connection.lock)
        for reference in references:
            Py_XDECREF(<PyObject *>reference)
        loop_release(&self._loop, &worker.io, connection)

    cdef void _quietly(self, worker_t *worker, callback, first=None, second=None) noexcept:
        """Run one of the last callbacks: what it raises is only logged."""
        try:
            self._before_callback(worker)
            if second is None:
                callback()
            else:
                callback(first, second)
        except BaseException as error:
            if self._inert():
                return
            self._log.callback_error(getattr(callback, "__name__", "callback"), error)

    # --- the library's own streams, TLS, and frame builders written by the user: the slow path -----------------------------------------------

    cdef const framing_t *_framing(self, builder) except NULL:
        cdef Framing framing = Framing(builder)
        framing = self._framings.setdefault(framing.key(), framing)
        return &framing.value

    cdef _hold(self, connection_t *connection, void **field, value):
        """Store a reference, instead of the one that is there. By the owner."""
        cdef void *before
        Py_INCREF(value)
        lock_take(&connection.lock)
        before = field[0]
        field[0] = <void *>value
        lock_give(&connection.lock)
        Py_XDECREF(<PyObject *>before)

    cdef object _held(self, HydrogenSocket socket, void **field):
        """A reference of the socket's connection; None when there is none, or the connection is gone."""
        cdef object value = None
        if socket._valid():
            lock_take(&socket._connection.lock)
            if mailbox_generation(socket._connection) == socket._generation and field[0] != NULL:
                value = <object>field[0]
            lock_give(&socket._connection.lock)
        return value

    cdef _take_over(self, worker_t *worker, connection_t *connection, HydrogenSocket socket, stream):
        """Use what a `Plain` or a `Secure` was made of; the fd stays, or becomes, the engine's."""
        cdef bytes received, unsent
        if stream.fileno() != connection.fd:
            raise ValueError(f"on_new_connection({connection.fd}) returned a {type(stream).__name__} of another fd: {stream.fileno()}")
        handover = stream.hand_over()
        self._register(connection, socket)
        connection_set_framing(connection, self._framing(handover.builder))
        received, unsent = handover.received, handover.unsent
        if connection.framing.kind == FRAMING_PYTHON:
            self._hold(connection, &connection.decoder, FrameDecoder(handover.builder))
        if unsent:
            self._append(worker, socket, &_raw.value, unsent, STATE_CLOSING)
        if received:
            if not input_store(&worker.io, &connection.input, PyBytes_AS_STRING(received), len(received), False):
                raise MemoryError
            connection.mail |= AGAIN
        if handover.session is not None:
            self._secure(worker, connection, socket, handover.session)

    cdef _secure(self, worker_t *worker, connection_t *connection, HydrogenSocket socket, session):
        """From now on the connection speaks TLS; it is ready when the handshake is done."""
        self._hold(connection, &connection.session, session)
        with session.lock:
            if not session.is_ready:
                connection.flags |= FLAG_HANDSHAKE
                session.start()
            self._append(worker, socket, &_raw.value, session.take(), STATE_CLOSING)
        self._heed(connection, session)

    cdef _heed(self, connection_t *connection, session):
        """No more input will come when the session says so."""
        if session.failure is not None:
            connection.flags |= FLAG_TLS_END | FLAG_TLS_FAILED
        elif session.is_ended:
            connection.flags |= FLAG_TLS_END

    cdef _decrypt(self, worker_t *worker, connection_t *connection, HydrogenSocket socket):
        """Have TLS make input of what was read, and go on with the handshake; when that is done the connection is ready."""
        cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
        cdef block_t *wire = connection.ciphertext
        cdef bytes plaintext
        session = <object>connection.session
        self._before_callback(worker)
        ciphertext = PyBytes_FromStringAndSize(block_bytes(wire) + wire.start, block_length(wire))
        connection.ciphertext = NULL
        block_free(&worker.io.pool, wire)
        with session.lock:
            self._computes(worker, not connection.flags & FLAG_HANDSHAKE and len(ciphertext) <= TLS_SHORT_MOST)
            try:
                plaintext = session.receive(ciphertext)
            finally:
                self._computes(worker, False)
            self._append(worker, socket, &_raw.value, session.take(), STATE_CLOSING)
        if plaintext and not input_store(&worker.io, &connection.input, PyBytes_AS_STRING(plaintext), len(plaintext), False):
            raise MemoryError
        self._heed(connection, session)
        if connection.flags & FLAG_HANDSHAKE and session.is_ready:
            connection.flags &= ~<uint32_t>FLAG_HANDSHAKE
            if self._debug:
                self._log.shaken(connection.id, session.info("cipher"))
            atomic_store64(&connection.deadline, 0)
            if atomic_load32(&connection.state) != STATE_OPEN:
                return
            atomic_store32(&connection.ready, 1)
            if callbacks.on_connected is not None:
                self._call(worker, connection, socket, callbacks.on_connected, "on_connected")

    cdef inline void _computes(self, worker_t *worker, bint briefly) noexcept:
        """Around short records: OpenSSL lets go of the GIL for microseconds, and another worker may keep it for long. Who waits to have it back does not block
        in a handler; did it count as that, more and more workers would be woken, and wait for it. A handshake or a long message counts: OpenSSL
        takes a millisecond or more, in which others can work."""
        if worker != NULL:
            relaxed_store32(&worker.state, WORKER_WANT_GIL if briefly else WORKER_CALLBACK)

    cdef void _goodbye(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
        """All output is flushed: close_notify is the last of it. When that is flushed, FLUSHED is posted again."""
        session = <object>connection.session
        self._before_callback(worker)
        connection.flags |= FLAG_CLOSE_NOTIFY
        try:
            with session.lock:
                if self._append(worker, socket, &_raw.value, session.close(), STATE_CLOSING) == SEND_NOTHING:
                    connection.mail |= FLUSHED
        except BaseException:  # no memory: the peer will see that the end is none in order
            self._end(socket, True, CAUSE_OS_ERROR, ENOMEM)

    cdef object _decoder(self, connection_t *connection):
        """The decoder of a user's frame builder."""
        if connection.decoder == NULL:
            self._hold(connection, &connection.decoder, FrameDecoder(self._builder))
        return <object>connection.decoder

    cdef _deliver_decoded(self, worker_t *worker, connection_t *connection, HydrogenSocket socket):
        """Give to the handler what a user's frame builder makes of the input, until it has nothing, raises, or the budget is used up."""
        cdef block_t *input = connection.input
        cdef int budget = DELIVER_MOST
        decoder = self._decoder(connection)
        on_data = (<_Callbacks>worker.callbacks).on_data
        if input != NULL:
            data = PyBytes_FromStringAndSize(block_bytes(input) + input.start, block_length(input))
            connection.input = NULL
            block_free(&worker.io.pool, input)
            decoder.feed(data)
            connection.held = decoder.size
        connection.flags |= FLAG_UNDECODED
        while atomic_load32(&connection.state) == STATE_OPEN and not atomic_load32(&connection.pause):
            if budget == 0:
                connection.mail |= AGAIN
                break
            budget -= 1
            try:
                data = decoder.next()
            except errors.ProtocolError as error:
                self._end_with(connection, socket, CAUSE_BAD_FRAME, error)
                break
            except BaseException as error:
                self._failed(connection, socket, f"{type(decoder.builder).__name__}.from_bytes", error)
                break
            connection.held = decoder.size
            if data is None:
                connection.flags &= ~<uint32_t>(FLAG_UNDECODED | FLAG_PARTIAL)
                if decoder.is_partial():
                    connection.flags |= FLAG_PARTIAL
                break
            self._before_message(worker, connection)
            on_data(socket, data)

    cdef int _send_coded(self, worker_t *worker, HydrogenSocket socket, bytes data) except -1:
        """Send by a user's frame builder, by TLS, or by both."""
        cdef connection_t *connection = socket._connection
        cdef const framing_t *framing = connection_framing(connection)
        session = self._held(socket, &connection.session)
        if framing.kind == FRAMING_PYTHON:
            decoder = self._held(socket, &connection.decoder)
            data = encode(self._builder if decoder is None else decoder.builder, data)
        else:
            data = framed(framing, data)
        if session is None:
            return self._append(worker, socket, &_raw.value, data, STATE_OPEN)
        with session.lock:
            if not socket.is_open or not session.is_writable:
                return SEND_REFUSED
            if socket.pending >= self._loop.context.max_write_buffer:
                self._end(socket, True, CAUSE_SLOW_CONSUMER, 0)
                return SEND_REFUSED
            if not data:
                return SEND_NOTHING
            try:
                self._computes(worker, len(data) <= TLS_SHORT_MOST)
                try:
                    data = session.encrypt(data)
                finally:
                    self._computes(worker, False)
                return self._append(worker, socket, &_raw.value, data, STATE_CLOSING)
            except BaseException:  # a record may be missing: what came after it would be nonsense to the peer
                self._end(socket, True, CAUSE_OS_ERROR, ENOMEM)
                raise

    # --- the PROXY protocol ------------------------------------------------------------------------------------------------------------------

    cdef bint _read_header(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
        """Read the header, not a byte more; False while it is not whole, and when the connection ends instead."""
        cdef name_t name
        try:
            header = self._header(worker, connection, socket)
            if header is None:
                return False
            if isinstance(header.source, tuple):
                _set_name(&name, header.source)
                lock_take(&connection.lock)
                connection.peer = name
                lock_give(&connection.lock)
                connection.counted = self._loop.context.addresses.most and addresses_take(self._loop.context.addresses, &connection.peer)
                if self._loop.context.addresses.most and not connection.counted:
                    self._log.turned_away_from(header.source)
                    self._end(socket, True, CAUSE_OVERLOAD, 0)
                    return False
        except errors.ProtocolError as error:
            self._end_with(connection, socket, CAUSE_BAD_FRAME, error)
            return False
        except BaseException as error:
            self._failed(connection, socket, "the PROXY header", error)
            return False
        connection.flags &= ~<uint32_t>FLAG_HEADER
        # The edge that told of what is behind the header has come already.
        connection.mail |= READABLE
        return True

    cdef object _header(self, worker_t *worker, connection_t *connection, HydrogenSocket socket):
        """The header, now stored; None while it is not whole, and when the peer ends instead. Raises: ProtocolError."""
        cdef char part[HEADER_PART]
        cdef int64_t got
        if connection.header == NULL:
            peer = socket.peername
            if not may_send(self._proxy_allow, peer):
                raise errors.ProtocolError(f"a PROXY header is not accepted from {peer!r} (proxy_allow_from)")
            self._hold(connection, &connection.header, HeaderReader(self._proxy_versions))
        reader = <object>connection.header
        while True:
            got = kernel_recv(connection.poll_fd, part, min(<size_t>reader.wanted, <size_t>HEADER_PART))
            if got == -EAGAIN:
                return None
            if got <= 0:
                self._end(socket, got < 0, CAUSE_OS_ERROR if got < 0 else CAUSE_INCOMPLETE_FRAME if reader.is_begun else CAUSE_PEER_CLOSED, <int>-got)
                return None
            relaxed_add64(&worker.io.counters.bytes_received, <uint64_t>got)
            relaxed_store32(&connection.active, 1)
            header = reader.feed(PyBytes_FromStringAndSize(part, got))
            if header is not None:
                self._hold(connection, &connection.header, header)
                return header

    cdef _look_at_first(self, connection_t *connection):
        """Raises: ProtocolError: what comes behind the header begins with another one."""
        cdef block_t *first = connection.ciphertext if connection.ciphertext != NULL else connection.input
        connection.flags &= ~<uint32_t>FLAG_FIRST
        if first != NULL and begins_header(PyBytes_FromStringAndSize(block_bytes(first) + first.start, min(block_length(first), <size_t>16))):
            raise errors.ProtocolError("a second PROXY header behind the first one")

    # --- streams written by the user: the slow path ------------------------------------------------------------------------------------------

    cdef void _read_port(self, worker_t *worker, connection_t *connection, HydrogenSocket socket) noexcept:
        """Deliver what a user's stream has, until it has nothing, raises, or the budget is used up."""
        cdef int budget = DELIVER_MOST
        port = <object>connection.adapter
        on_data = (<_Callbacks>worker.callbacks).on_data
        while atomic_load32(&connection.state) == STATE_OPEN and not atomic_load32(&connection.pause):
            if not port.messages:
                if budget <= 0:
                    connection.mail |= READABLE
                    break
                try:
                    if not port.receive():
                        break
                except BaseException as error:
                    self._port_failed(connection, socket, port, "recv", error)
                    break
            data = port.messages.popleft()
            budget -= 1
            relaxed_store32(&connection.active, 1)
            relaxed_add64(&worker.io.counters.messages_received, 1)
            relaxed_add64(&worker.io.counters.bytes_received, len(data))
            try:
                self._before_callback(worker)
                on_data(socket, data)
            except BaseException as error:
                self._failed(connection, socket, "on_data_received", error)

    cdef void _port_failed(self, connection_t *connection, HydrogenSocket socket, port, name, error) noexcept:
        if isinstance(error, EOFError):
            if name == "recv":
                connection.flags |= FLAG_EOF
                return
        cause, shown = errors.cause_of(error)
        if cause == CAUSE_HANDLER_ERROR:
            self._log.callback_error(f"{type(port.stream).__name__}.{name}", error)
        self._end_with(connection, socket, cause, shown)
        if cause == CAUSE_OS_ERROR or name == "send":
            self._end(socket, True, cause, 0)

    cdef object _port_send(self, HydrogenSocket socket, data):
        """Have a user's stream write; None: go on with what it has kept. False when it raised."""
        cdef connection_t *connection = socket._connection
        cdef uint32_t bits
        # Of any thread: the connection may be gone, and its stream with it.
        port = self._held(socket, &connection.adapter)
        if port is None:
            return False
        try:
            if data is None:
                port.resume()
            else:
                port.send(data)
        except BaseException as error:
            self._port_failed(connection, socket, port, "send", error)
            return False
        bits = output_adapter_sent(&self._loop.context, connection, socket._generation, port.blocked, port.pending)
        deadlines_watch_output(&self._loop, connection)
        queues_post(&self._loop, connection, socket._generation, bits, self._worker() == NULL)
        return True

    # --- what sockets ask for ----------------------------------------------------------------------------------------------------------------

    cdef object _send(self, HydrogenSocket socket, const char *data, size_t n):
        cdef connection_t *connection = socket._connection
        cdef worker_t *worker = self._worker()
        cdef const framing_t *framing = connection_framing(connection)
        cdef int result = SEND_REFUSED
        if not socket._valid():
            pass
        elif connection.adapter != NULL:
            if atomic_load32(&connection.state) == STATE_OPEN and socket.pending < self._loop.context.max_write_buffer:
                result = SEND_QUEUED if self._port_send(socket, PyBytes_FromStringAndSize(data, n)) else SEND_REFUSED
            elif atomic_load32(&connection.state) == STATE_OPEN:
                self._end(socket, True, CAUSE_SLOW_CONSUMER, 0)
        elif connection.session != NULL or framing.kind == FRAMING_PYTHON:
            result = self._send_coded(worker, socket, PyBytes_FromStringAndSize(data, n))
        elif framing.kind != FRAMING_RAW and n > framing.max_size:
            raise too_large(framing, n)
        else:
            result = self._append_framed(worker, socket, framing, data, n, STATE_OPEN)
        return self._counted(worker, result)

    cdef bint _counted(self, worker_t *worker, int result) noexcept:
        """Whether a message was taken, which is counted."""
        cdef io_t *io = &worker.io if worker != NULL else &self._loop.outside_io
        counters_count(io, &io.counters.messages_refused if result == SEND_REFUSED else &io.counters.messages_sent)
        return result != SEND_REFUSED

    cdef int _append(self, worker_t *worker, HydrogenSocket socket, const framing_t *framing, bytes data, uint32_t last_state) except -1:
        return self._append_framed(worker, socket, framing, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), last_state)

    cdef int _append_framed(
        self, worker_t *worker, HydrogenSocket socket, const framing_t *framing, const char *data, size_t n, uint32_t last_state,
    ) except -1:
        """Frame and queue; then flush, or cork, as the policy says. SEND_REFUSED, SEND_NOTHING, or another value: it was queued."""
        cdef loop_t *loop = &self._loop
        cdef connection_t *connection = socket._connection
        cdef io_t *io = &worker.io if worker != NULL else &loop.outside_io
        # Without a GIL nobody can tell a handler that blocks from one that runs, so that nothing lies corked in eager mode.
        cdef bint cork = worker != NULL and (not worker_is_eager(loop) or HYDROGEN_GIL and n <= SEND_HELD_MOST)
        cdef uint32_t bits = 0
        cdef int result
        if n == 0 and framing.kind == FRAMING_RAW:
            return SEND_NOTHING if atomic_load32(&connection.state) == STATE_OPEN or last_state != STATE_OPEN else SEND_REFUSED
        result = output_send(
            &loop.context, &worker.io.pool if worker != NULL else NULL, connection, socket._generation, framing, data, n, last_state,
            worker.index if cork else NOT_CORKED, &bits)
        if result == SEND_NOW:
            with nogil:
                flush_whole(loop, io, connection, socket._generation, worker == NULL)
        elif result == SEND_CORKED:
            if worker.corked_count == CORKED_MOST:
                self._flush_corked(worker)
            flush_take_over(worker)
            flush_cork(worker, <uint64_t>socket._generation << 32 | connection.slot.index)
        elif result == SEND_NO_MEMORY:
            raise MemoryError(f"no memory for a message of {n} bytes")
        elif result == SEND_UNFIT:
            raise unfit()
        elif bits:
            queues_post(loop, connection, socket._generation, bits, worker == NULL)
        queues_check_memory(loop)
        return result

    cdef void _end(self, HydrogenSocket socket, bint abort, int cause, int code) noexcept:
        if not self._inert():
            queues_end(&self._loop, socket._connection, socket._generation, abort, cause, code, self._worker() == NULL)

    cdef void _post(self, HydrogenSocket socket, uint32_t bits) noexcept:
        queues_post(&self._loop, socket._connection, socket._generation, bits, self._worker() == NULL)

    cdef object _drain(self, HydrogenSocket socket, timeout):
        cdef worker_t *worker = self._worker()
        cdef uint64_t until, deadline = <uint64_t>-1
        cdef int state
        if timeout is not None:
            deadline = kernel_now() + <uint64_t>(max(0.0, min(float(timeout), 1e9)) * 1e9)
        if self._inert():
            return False
        if worker != NULL and worker.corked_count:
            self._flush_corked(worker)
        while True:
            until = min(deadline, kernel_now() + DRAIN_SLICE_NS)
            with nogil:
                state = output_wait_drained(&self._loop.context, socket._connection, socket._generation, until)
            if state != DRAIN_WAIT:
                return state == DRAIN_DONE
            PyErr_CheckSignals()
            if kernel_now() >= deadline:
                return False

    # --- what the server asks for --------------------------------------------------------------------------------------------------------------

    cdef list _sockets(self, uint32_t last_state):
        cdef list found = []
        cdef connection_t *connection
        cdef HydrogenSocket socket
        cdef uint32_t index
        cdef bint wanted
        for index in range(slab_used(&self._loop.slab)):
            connection = mailbox_at(&self._loop, index)
            if atomic_load32(&connection.state) == STATE_VACANT:  # perhaps without a lock yet
                continue
            socket = HydrogenSocket.__new__(HydrogenSocket)
            socket._engine = self
            socket._connection = connection
            lock_take(&connection.lock)
            socket._generation = mailbox_generation(connection)
            socket._id = connection.id
            wanted = STATE_OPEN <= connection.state <= last_state and atomic_load32(&connection.ready)
            lock_give(&connection.lock)
            if wanted:
                found.append(socket)
        return found

    def connections(self):
        return [] if self._inert() else self._sockets(STATE_OPEN)

    def broadcast(self, bytes data, exclude):
        """First, without the GIL, the connections that are framed as `Config` says, in compiled code; then the others one by one."""
        cdef loop_t *loop = &self._loop
        cdef worker_t *worker = self._worker()
        cdef const framing_t *framing = loop.context.framing
        cdef bytes wire = encode(self._builder, data) if framing.kind == FRAMING_PYTHON else framed(framing, data)
        cdef uint32_t used = slab_used(&loop.slab)
        cdef uint32_t *skip = NULL
        cdef uint64_t *others = NULL
        cdef shared_t *shared = NULL
        cdef broadcast_t report
        cdef HydrogenSocket socket
        cdef uint32_t k
        if self._inert():
            return BroadcastReport(0, 0)
        try:
            skip = <uint32_t *>calloc(used or 1, sizeof(uint32_t))
            others = <uint64_t *>calloc(used or 1, sizeof(uint64_t))
            shared = shared_new(PyBytes_AS_STRING(wire), len(wire))
            if skip == NULL or others == NULL or shared == NULL:
                raise MemoryError(f"no memory to send {len(data)} bytes to all")
            for other in exclude:
                if not isinstance(other, _HydrogenSocketContract):
                    raise TypeError(f"exclude: sockets are expected, not {other!r}")
                if isinstance(other, HydrogenSocket):
                    socket = other
                    # A connection that is gone must not take the place of the next one in its slot.
                    if socket._engine is self and socket._connection.slot.index < used and socket._valid():
                        skip[socket._connection.slot.index] = socket._generation
            with nogil:
                broadcast_send(loop, &worker.io if worker != NULL else &loop.outside_io, worker == NULL, shared, skip, others, used, &report)
            for k in range(report.others):
                socket = self._socket(mailbox_of(loop, others[k]))
                socket._generation = <uint32_t>(others[k] >> 32)
                if self._send_other(worker, socket, data, wire):
                    report.sent += 1
                else:
                    report.dropped += 1
        finally:
            free(skip)
            free(others)
            if shared != NULL:
                shared_drop(shared)
        return BroadcastReport(report.sent, report.dropped)

    cdef bint _send_other(self, worker_t *worker, HydrogenSocket socket, bytes data, bytes wire) except -1:
        """`send` of a broadcast, of `wire` where that is what the builder would make; what a connection's own framing cannot carry is not sent to it."""
        cdef connection_t *connection = socket._connection
        decoder = self._held(socket, &connection.decoder)
        if (
            connection_framing(connection).kind == FRAMING_PYTHON and (decoder is None or decoder.builder is self._builder) and
            self._held(socket, &connection.session) is None and self._held(socket, &connection.adapter) is None
        ):
            return self._counted(worker, self._append(worker, socket, &_raw.value, wire, STATE_OPEN))
        try:
            return self._send(socket, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        except ValueError:
            return False
        except Exception as error:
            self._log.callback_error("broadcast", error)
            return False

    def stats(self):
        """What is of the server as a whole is counted once, by the first engine."""
        cdef counters_t sums
        cdef acceptor_t *acceptor = &self._own  # nobody uses it where it is not the first
        cdef uint64_t allocations = 0
        cdef uint32_t k
        counters_clear(&sums)
        for k in range(self._loop.worker_count):
            counters_add(&sums, &self._loop.workers[k].io.counters)
            allocations += relaxed_load64(&self._loop.workers[k].io.pool.allocations)
        counters_add(&sums, &self._loop.monitor_io.counters)
        counters_add(&sums, &self._loop.outside_io.counters)
        return Stats(
            connections=atomic_load64(&self._loop.live),
            accepted=atomic_load64(&acceptor.accepted),
            removed_peer_closed=sums.removed[CAUSE_PEER_CLOSED],
            removed_local_closed=sums.removed[CAUSE_LOCAL_CLOSED],
            removed_server_stopped=sums.removed[CAUSE_SERVER_STOPPED],
            removed_slow_consumer=sums.removed[CAUSE_SLOW_CONSUMER],
            removed_handler_error=sums.removed[CAUSE_HANDLER_ERROR],
            removed_reject=sums.removed[CAUSE_REJECT],
            removed_protocol_error=sum(sums.removed[cause] for cause in _PROTOCOL_ERRORS),
            removed_open_timeout=sums.timeouts[TIMEOUT_OPEN],
            removed_idle_timeout=sums.timeouts[TIMEOUT_IDLE],
            removed_frame_timeout=sums.timeouts[TIMEOUT_FRAME],
            removed_write_timeout=sums.timeouts[TIMEOUT_WRITE],
            removed_tls_error=sums.removed[CAUSE_TLS_ERROR] + sums.removed[CAUSE_TRUNCATED],
            removed_os_error=sums.removed[CAUSE_OS_ERROR],
            removed_overload=sums.removed[CAUSE_OVERLOAD] + atomic_load64(&acceptor.turned_away),
            messages_received=sums.messages_received,
            messages_sent=sums.messages_sent,
            messages_refused=sums.messages_refused,
            bytes_received=sums.bytes_received,
            bytes_sent=sums.bytes_sent,
            queued_bytes=atomic_load64(&self._loop.context.buffered) + queues_undelivered(&self._loop),
            handoffs=sums.handoffs,
            stalls=relaxed_load64(&self._loop.stalls),
            all_blocked=relaxed_load64(&self._loop.all_blocked),
            reading_pauses=atomic_load64(&self._loop.context.reading_pauses),
            reading_resumes=atomic_load64(&self._loop.context.reading_resumes),
            memory_pauses=atomic_load64(&self._loop.context.memory_pauses),
            sweeps=relaxed_load64(&self._loop.sweeps),
            accept_pauses=atomic_load64(&acceptor.pauses),
            polls=sums.polls,
            iterations=sums.iterations,
            gil_acquisitions=sums.gil_acquisitions,
            gil_wait_seconds=sums.gil_wait_ns / 1e9,
            buffer_allocations=allocations,
        )
