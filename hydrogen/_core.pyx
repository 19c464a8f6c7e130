# cython: freethreading_compatible=True, auto_pickle=False
"""The compiled engine: `Engine` and `HydrogenSocket`, where Python meets what is under _engine/ and
_c/.

Workers are Python threads that spend their life in `Engine._work`: off the GIL in `worker_next`,
then one iteration in the dispatch role with it. Leaving the `nogil` block there is the one place
where a worker takes the GIL for native streams; an iteration gives it away only to flush what it
has corked. The accept thread and the monitor thread are C threads and never take it.

What a connection holds of Python (`user_data`, a user's stream, TLS, a user's frame builder, the
error it ends with) are counted references in its slot: see _engine/references.pxd.
"""

# What has "no-cython-lint" behind it is for the modules of _engine/: see _core.pxd.
import logging
import threading
import time
from math import isinf
from os import close as close_fd
from os import fsdecode  # no-cython-lint
from socket import AF_INET, AF_INET6, AF_UNIX, inet_ntop, inet_pton  # no-cython-lint
from ssl import SSLError  # no-cython-lint
from types import MethodType

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_Enter, PyContext_Exit, PyContext_New
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

from hydrogen import errors
from hydrogen.errors import class_name  # no-cython-lint
from hydrogen.connection import HydrogenSocket as SocketContract
from hydrogen.connection import check_timeout  # no-cython-lint
from hydrogen.connection import refuse_to_pickle, same, same_deeply
from hydrogen.connection import extra_info, shown
from hydrogen.codec import FrameDecoder, encode  # no-cython-lint
from hydrogen.handshake import Accepted, Answered, Opened, take_request  # no-cython-lint
from hydrogen.http import Refusal, Response, head_refusal  # no-cython-lint
from hydrogen.proxy import HeaderReader, ProxyHeader, begins_header  # no-cython-lint
from hydrogen.proxy import may_send, no_proxy, second_header  # no-cython-lint
from hydrogen.report import Codes
from hydrogen.report import BroadcastReport, Stats, removals  # no-cython-lint
from hydrogen.plain import Plain  # no-cython-lint
from hydrogen.secure import Secure  # no-cython-lint
from hydrogen.stream import Stream, StreamAdapter, not_a_stream, not_an_fd  # no-cython-lint
from hydrogen.tls import TlsSession  # no-cython-lint
from hydrogen.websocket import Close, Fault, closed_by, closed_by_us  # no-cython-lint
from hydrogen.websocket import closing_code, closing_payload  # no-cython-lint
from hydrogen.websocket import control_frame  # no-cython-lint
from hydrogen.websocket import closing_of, check_ping, lifetime, look_every

cimport cython

from hydrogen._c.acceptor cimport (
    acceptor_clear, acceptor_close_fd, acceptor_destroy, acceptor_end, acceptor_init,
    acceptor_live_in, acceptor_start, acceptor_suspend, acceptor_workers_before,
)
from hydrogen._c.atomic cimport (
    atomic_load32, atomic_load64, atomic_store32, relaxed_load32, relaxed_load64,
)
from hydrogen._c.constants cimport (
    ACCEPTING, ACCEPT_FULL, CAUSE_LOCAL_CLOSED, CAUSE_OS_ERROR, CLOSE_RETRY_NS, CLOSE_TRIES,
    HANDOFF_AUTO, HANDOFF_EAGER, HANDOFF_INLINE, LINGER_SWEEP_NS, LOG_ACCEPTING, LOG_ALL_BLOCKED,
    LOG_LISTENER, LOG_TURNED_AWAY, PAUSE_USER, STATE_CLOSING, STATE_OPEN, STATE_RELEASED,
    STATE_VACANT, STOP, TICK_NS, WORKER_BRIEF,
)
from hydrogen._c.framing cimport FRAMING_HEAD, FRAMING_MESSAGES
from hydrogen._c.kernel cimport (
    HYDROGEN_DEBUG, kernel_close, kernel_forks, kernel_now, kernel_sleep, kernel_watch_forks,
    kernel_worker_get, kernel_worker_set,
)
from hydrogen._c.listeners cimport listeners_close
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.loop cimport (
    loop_abandoned, loop_abort_all, loop_clear, loop_close_fds, loop_destroy, loop_exit, loop_init,
    loop_keeps, loop_reset_all, loop_stop_all,
)
from hydrogen._c.mailbox cimport mailbox_at, mailbox_generation, mailbox_pause
from hydrogen._c.monitor cimport monitor_end, monitor_set_alarm, monitor_start
from hydrogen._c.output cimport output_pause_locked
from hydrogen._c.queues cimport queues_await_log, queues_post, queues_resume
from hydrogen._c.structs cimport acceptor_t, connection_t, context_t, option_t, worker_t
from hydrogen._c.websocket cimport OPCODE_PING, OPCODE_TEXT
from hydrogen._c.worker cimport (
    worker_claim, worker_enter, worker_leave, worker_left, worker_next, worker_refill,
)
from hydrogen._codec cimport Framing
from hydrogen._engine.broadcast cimport broadcast_framed, broadcast_sockets, broadcast_to_all
from hydrogen._engine.compat cimport compat_forget_async_exception, compat_this_thread
from hydrogen._engine.control cimport control_latency, control_opening, control_ping
from hydrogen._engine.dispatch cimport dispatch_iteration
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.names cimport names_local, names_peer
from hydrogen._engine.references cimport references_held
from hydrogen._engine.sending cimport sending_drain, sending_send
from hydrogen._engine.statistics cimport statistics_of

DEBUG = HYDROGEN_DEBUG

_log = logging.getLogger("hydrogen")

# How long a stop waits for workers to come out of their callbacks when the connections are gone.
# For those that are elsewhere it has all the time there is: they need microseconds, or, on a
# machine that swaps, longer.
JOIN_SECONDS = 0.1

# Paths and subprotocols that are kept, for connections to have in common.
cdef enum:
    OPENINGS_MOST = 1024

# How long it waits for one of them until it looks at it again.
JOIN_SLICE = 0.01

# The same of a start that waits for them to begin.
BEGIN_SLICE = 0.001

cdef dict _HANDOFFS = {"auto": HANDOFF_AUTO, "inline": HANDOFF_INLINE, "eager": HANDOFF_EAGER}

kernel_watch_forks()


cdef Engine _nobody


cdef uint64_t _nanoseconds(seconds) except? 0:
    """A timeout of Config; 0: none."""
    return 0 if seconds is None else max(1, int(seconds * 1e9))


def _lifetime(settings, now):
    """When a connection that begins `now` ends for its age, in ns; 0: never."""
    seconds = lifetime(settings)
    return 0 if seconds is None else now + int(seconds * 1e9)


lifetime_of = _lifetime  # for _engine/handshake.pxd


@cython.final
@cython.freelist(64)
cdef class HydrogenSocket:
    """A connection, as its handler sees it.

    Two of one connection are equal and hash alike; they need not be the same object. It can be
    referred to weakly. `copy.copy` and `copy.deepcopy` return the socket itself; pickle raises
    TypeError.
    """

    # `hydrogen.connection.HydrogenSocket` is the contract, and has the same docstrings: those of a
    # cdef class cannot be inherited. Slot and generation together are the identity.

    def __cinit__(self):
        # of a socket that no server has made every method says that the connection is gone
        self._engine = _nobody

    def __init__(self):
        raise TypeError("sockets are made by a server")

    def send(self, data):
        """Queue one message, framed as the connection's framing says; the engine writes it. On a
        WebSocket a str is sent as text, and anything else as binary.

        Messages from one thread stay in order, and messages never interleave. A message may be
        larger than `max_write_buffer`; a send while that much is already pending removes the
        connection with `SlowConsumer`.

        While the server stops, a connection is still open as long as one of its callbacks runs or
        complete messages that were read are left: what they send is accepted, and flushed before
        the connection is closed.

        May be called at any moment, even by a signal handler or a `__del__` that runs while this
        very thread is in a method of the same connection; a message that cannot be queued at once
        is then queued by a worker, in order.

        Args:
            data: any contiguous bytes-like object; it is copied before `send` returns. On a
                WebSocket a str, too.
        Returns:
            False when the connection is closed or closing; then nothing was queued.
        Raises:
            TypeError: `data` is not bytes-like, or not contiguous.
            FrameTooLarge: the framing cannot carry a message this long.
            ValueError: the framing cannot carry this message, such as a line that contains the
                delimiter, or a text with half of a surrogate pair.
        """
        if PyBytes_CheckExact(data):
            return sending_send(
                self._engine, self, self._engine._loop.context.framing, PyBytes_AS_STRING(data),
                PyBytes_GET_SIZE(data), NULL
            )
        return self._send_buffer(data)

    cdef bint _send_buffer(self, data) except -1:
        """`send` of anything but bytes."""
        cdef const framing_t *framing = self._engine._loop.context.framing
        cdef Py_buffer view
        cdef const char *text
        memset(&view, 0, sizeof(Py_buffer))  # PyBuffer_Release then does nothing
        if isinstance(data, str) and self._engine._websocket is not None:
            framing = &self._engine._text
            text = PyUnicode_AsUTF8AndSize(data, &view.len)
        else:
            try:
                PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            except BufferError as error:
                raise TypeError(
                    f"a contiguous bytes-like object is expected: {error}"
                ) from None
            text = <const char *>view.buf
        try:
            return sending_send(self._engine, self, framing, text, view.len, NULL)
        finally:
            PyBuffer_Release(&view)

    def drain(self, timeout=None):
        """Block (with the GIL released) until pending output is below the low watermark.

        Args:
            timeout: seconds, 0 or more; None or infinity: no limit.
        Returns:
            False if the timeout passed or the connection is gone.
        Raises:
            TypeError, ValueError: `timeout` is not a number of seconds, is negative, or is nan;
                even when the connection is gone.
        """
        return sending_drain(self._engine, self, timeout)

    def close(self, code=None, reason=""):
        """Flush, end the sending side, discard what still arrives for up to 2 s, and close.

        After this call nothing more is delivered, even if it was already buffered. While output is
        pending, what the peer sends is read and discarded, so that a peer that sends before it
        reads still gets all of it; `write_timeout` limits how long. The 2 s begin when the sending
        side has ended, and are cut short when the peer ends its side too, or by a reset.

        A WebSocket is closed by a CLOSE behind all messages; the sending side ends when the
        client's has come, or after `WebSocket.close_timeout`.

        Args:
            code: of a WebSocket: 1000 (None) to 4999, see `is_close_code`.
            reason: of a WebSocket: at most 123 bytes as UTF-8.

        Raises:
            TypeError, ValueError: these cannot be sent, or this is no WebSocket.
        """
        if code is None and reason == "":
            ending_ask(self._engine, self, False, CAUSE_LOCAL_CLOSED, 0)
        else:
            error = closing_of(self._engine._websocket, code, reason)
            ending_with(self._engine, self, False, CAUSE_LOCAL_CLOSED, error)

    def ping(self, data=b""):
        """Send a ping on a WebSocket; the client answers with a pong, see `on_pong` and `latency`.

        Clients that have sent nothing for a while are pinged without this:
        `WebSocket.ping_interval`.

        Args:
            data: at most 125 bytes, which come back.
        Returns:
            False when the connection is closed or closing.
        Raises:
            TypeError, ValueError: `data` cannot be sent, or this is no WebSocket.
        """
        return control_ping(self._engine, self, check_ping(self._engine._websocket, data))

    @property
    def path(self):
        """The path that the client of a WebSocket has asked for, as it was sent; None when the
        connection is gone, or not open yet.
        """
        opening = control_opening(self._engine, self)
        return None if opening is None else opening.path

    @property
    def subprotocol(self):
        """What both sides of a WebSocket agreed on, or None."""
        opening = control_opening(self._engine, self)
        return None if opening is None else opening.subprotocol

    @property
    def latency(self):
        """Seconds from the last ping of a WebSocket that was answered to its pong, or None."""
        return control_latency(self) if self._valid() else None

    def shutdown(self):
        """The same as `close`, under its name in the Rust crate hydrogen."""
        ending_ask(self._engine, self, False, CAUSE_LOCAL_CLOSED, 0)

    def abort(self):
        """Reset the connection at once; pending output is lost, and nothing more is delivered."""
        ending_ask(self._engine, self, True, CAUSE_LOCAL_CLOSED, 0)

    def pause_reading(self):
        """Deliver no further messages until `resume_reading`.

        Once buffers are full, TCP's window holds the peer back. It acts on this connection only,
        even if this one goes and another takes its place. On TCP a reset still ends the connection,
        and what was not delivered is dropped. On a Unix socket the peer's close is a graceful end,
        which is delivered after the resume, behind everything that the peer sent. When the server
        stops, a paused connection is closed at once if no complete message was read from it;
        otherwise it may be resumed within `stop_timeout`, after which it is aborted.
        """
        if self._valid():
            mailbox_pause(self._connection, self._generation, PAUSE_USER)

    def resume_reading(self):
        """Undo `pause_reading`; one call is enough, however often that was called.

        It acts on this connection only.
        """
        if self._valid():
            queues_resume(
                &self._engine._loop, self._connection, self._generation, PAUSE_USER,
                self._engine._worker() == NULL)

    cdef bint _valid(self) noexcept:
        return (
            not self._engine._inert() and mailbox_generation(self._connection) == self._generation
        )

    @property
    def pending(self):
        """Bytes queued and not yet taken by the kernel; 0 when the connection is gone."""
        cdef size_t pending = 0
        if not self._valid():
            return 0
        lock_take(&self._connection.lock)
        if mailbox_generation(self._connection) == self._generation:
            pending = self._connection.pending
            if (
                pending > self._engine._loop.context.high and
                self._connection.state == STATE_OPEN
            ):
                # who is told so waits for on_writable, though the kernel may take all of it next
                output_pause_locked(&self._engine._loop.context, self._connection)
        lock_give(&self._connection.lock)
        return pending

    @property
    def is_open(self):
        """Whether the connection is neither closing nor gone, so that `send` queues.

        With TLS, `send` refuses a little earlier: once the peer has sent what cannot be decrypted.
        See `send` for what changes while the server stops.
        """
        # Once more afterwards: the state may be the next connection's in the slot.
        return (
            self._valid() and atomic_load32(&self._connection.state) == STATE_OPEN and
            self._valid()
        )

    @property
    def id(self):
        """A number, unique for the lifetime of the server."""
        return self._id

    @property
    def user_data(self):
        """The handler's state for the connection; None at first, and again once it is gone."""
        value = None
        if self._valid():
            lock_take(&self._connection.lock)
            if (
                mailbox_generation(self._connection) == self._generation and
                self._connection.user_data != NULL
            ):
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
        if (
            mailbox_generation(self._connection) == self._generation and
            self._connection.state < STATE_RELEASED
        ):
            old = self._connection.user_data
            self._connection.user_data = new
        lock_give(&self._connection.lock)
        Py_XDECREF(<PyObject *>old)

    @property
    def server(self):
        """The server that accepted this connection."""
        return self._engine._server

    @property
    def peername(self):
        """The peer's address as `socket.getpeername` gives it; None when the connection is gone.

        With `proxy_protocol` it is the client's address.
        """
        return names_peer(self)

    @property
    def sockname(self):
        """This end's address as `socket.getsockname` gives it; None when the connection is gone."""
        return names_local(self)

    def fileno(self):
        """The number that the handler's callbacks get as `fd`; -1 when the connection is gone.

        Only for lookups: do not read, write or close it.
        """
        cdef int fd = -1
        if self._valid():
            lock_take(&self._engine._loop.context.fd_lock)
            if mailbox_generation(self._connection) == self._generation:
                fd = self._connection.fd
            lock_give(&self._engine._loop.context.fd_lock)
        return fd

    def get_extra_info(self, name, default=None):
        """What `asyncio.BaseTransport.get_extra_info` returns for the same name.

        The names are `peername` and `sockname`; with TLS also `ssl_object`, `sslcontext`,
        `peercert`, `cipher` and `compression`; and `proxy`, the `ProxyHeader` with which the
        connection began. Returns `default` for what is not available, and when the connection is
        gone.
        """
        header = references_held(self._engine, self, &self._connection.header)
        return extra_info(
            self, references_held(self._engine, self, &self._connection.session), header, name,
            default
        )

    def __eq__(self, other):
        cdef HydrogenSocket socket
        if not isinstance(other, HydrogenSocket):
            return NotImplemented
        socket = other
        return socket._engine is self._engine and socket._id == self._id

    def __hash__(self):
        return hash((id(self._engine), self._id))

    def __copy__(self):
        return same(self)

    def __deepcopy__(self, memo):
        return same_deeply(self, memo)

    def __reduce__(self):
        return refuse_to_pickle(self)

    def __repr__(self):
        return shown(self)


SocketContract.register(HydrogenSocket)


@cython.final
@cython.freelist(64)
cdef class Message:
    """What somebody sends, left to who encrypts or is in a user's stream. Equal to no other one:
    its sender may take it back.
    """


cdef object _rebound(callback):
    """A bound method anew; anything else as it is."""
    # Not isinstance(), which would take a wrapper that says it is one for it, and leave the wrapper
    # out.
    return (
        MethodType(callback.__func__, callback.__self__) if type(callback) is MethodType
        else callback
    )


@cython.final
cdef class _Callbacks:
    """The handler's callbacks as one worker holds them: bound methods of its own, which it makes
    itself.

    Without a GIL references are cheap to count for the thread that made the object. All workers
    would count at the same ones for each message. `context` is the one that its thread is in, from
    here to `exit_context`: see callbacks_leave.
    """

    def __cinit__(self, callbacks):
        self.on_data = _rebound(callbacks.on_data_received)
        self.on_new = _rebound(callbacks.on_new_connection)
        self.on_connected = _rebound(callbacks.on_connected)
        self.on_eof = _rebound(callbacks.on_eof)
        self.on_writable = _rebound(callbacks.on_writable)
        self.on_disconnected = _rebound(callbacks.on_disconnected)
        self.on_removed = _rebound(callbacks.on_connection_removed)
        self.on_request = _rebound(callbacks.on_request)
        self.on_pong = _rebound(callbacks.on_pong)
        self.received = callbacks.received
        self.context = PyContext_New()
        PyContext_Enter(self.context)  # last: what fails above leaves none to exit

    cdef int renew_context(self) except -1:
        """Leave a context in which a variable was set for one that is empty."""
        fresh = PyContext_New()
        PyContext_Exit(self.context)
        self.context = fresh
        PyContext_Enter(fresh)
        return 0

    cdef int exit_context(self) except -1:
        """From Python 3.14 on a thread has a context of its own, which it can exit only from the
        inside.
        """
        PyContext_Exit(self.context)
        return 0


@cython.final
cdef class Engine:
    """The compiled engine, with one loop: backend.Engine is the contract. Several are one server's
    when the first one accepts for all (loops.py).
    """

    def __cinit__(self):
        # What __dealloc__ needs, also where __init__ is never called or fails.
        loop_clear(&self._loop)
        acceptor_clear(&self._own)
        self._acceptor = &self._own

    def __init__(self, server, callbacks, config, listeners, max_connections, Engine first=None):
        if self._server is not None:
            raise RuntimeError("an engine is made once")
        try:
            self._make(server, callbacks, config, listeners, max_connections, first)
        except BaseException:
            # Now: the exception may keep this object until the next collection.
            loop_close_fds(&self._loop)
            acceptor_close_fd(&self._own)
            raise

    cdef _make(self, server, callbacks, config, listeners, max_connections, Engine first):
        cdef int failed
        cdef context_t *context = &self._loop.context
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
        failed = loop_init(
            &self._loop, self._acceptor, config.max_threads, config.pre_allocated,
            config.read_budget
        )
        if failed:
            raise errors.removal_error(CAUSE_OS_ERROR, -failed)
        self._proxy_versions, self._proxy_allow = config.proxy_protocol, config.proxy_allow_from
        self._loop.handoff = _HANDOFFS[config.handoff]
        self._loop.has_open_callbacks = (
            callbacks.on_new_connection is not None or callbacks.on_connected is not None or
            config.ssl is not None or
            self._acceptor.has_proxy or self._debug or config.websocket is not None
        )
        context.low, context.high = config.write_buffer_limits
        context.max_write_buffer = config.max_write_buffer
        # No message is refused for what the kernel was not offered yet.
        context.corked_most = min(context.high, context.max_write_buffer - 1)
        context.max_buffered = config.max_buffered
        context.has_on_eof = callbacks.on_eof is not None
        context.has_on_writable = callbacks.on_writable is not None
        context.has_end_callbacks = (
            callbacks.on_disconnected is not None or callbacks.on_connection_removed is not None or
            self._debug
        )
        context.open_timeout = _nanoseconds(config.open_timeout)
        context.idle_timeout = _nanoseconds(config.idle_timeout)
        context.frame_timeout = _nanoseconds(config.frame_timeout)
        context.write_timeout = _nanoseconds(config.write_timeout)
        timeouts = (
            context.open_timeout, context.idle_timeout, context.frame_timeout,
            context.write_timeout, self._prepare_websocket(config.websocket)
        )
        self._loop.sweep_ns = max(
            TICK_NS,
            min([timeout for timeout in timeouts if timeout], default=4 * LINGER_SWEEP_NS) // 4
        )
        self._builder = config.builder
        self._tls = config.ssl
        self._framing = Framing(config.websocket or config.builder)
        context.framing = &self._framing.value
        context.first_framing = (
            context.framing if config.websocket is None else &self._head
        )
        # What the end of a connection needs where there is no memory.
        self._no_memory = errors.removal_error(CAUSE_OS_ERROR, ENOMEM)
        self._spare_socket = HydrogenSocket.__new__(HydrogenSocket)
        self._is_made = True

    cdef object _prepare_websocket(self, settings):
        """Four times the nanoseconds between two looks at its times; 0: there are none."""
        cdef context_t *context = &self._loop.context
        self._websocket = settings
        self._responses, self._closes = Codes(), Codes()
        self._openings = {}
        if settings is None:
            return 0
        self._text.kind = self._ping.kind = FRAMING_MESSAGES
        self._text.max_size = self._ping.max_size = <size_t>-1 >> 1
        self._text.opcode, self._ping.opcode = OPCODE_TEXT, OPCODE_PING
        self._head.kind, self._head.max_size = FRAMING_HEAD, settings.max_header
        context.max_message = settings.max_message
        context.max_fragments = settings.max_fragments
        context.has_on_pong = self._callbacks.on_pong is not None
        context.close_timeout = _nanoseconds(settings.close_timeout)
        context.ping_interval = _nanoseconds(settings.ping_interval)
        context.ping_timeout = _nanoseconds(settings.ping_timeout)
        if isinf(look_every(settings)):
            return 0
        context.pings = &self._ping
        return _nanoseconds(4 * look_every(settings))

    cdef object _opened(self, accepted, below):
        """What is kept of the opening of a connection. Most have it like others, and share it."""
        key = accepted._replace(answer=b"")
        agreement = accepted.agreement
        if agreement is not None and (agreement.server_takeover or agreement.client_takeover):
            return Opened(accepted, self._websocket.deflate, below)
        if len(self._openings) >= OPENINGS_MOST:
            self._openings.clear()
        opened = self._openings.get(key)
        if opened is None:  # another worker may make one, too
            opened = self._openings[key] = Opened(accepted, self._websocket.deflate, None)
        return opened

    def __dealloc__(self):
        # In a forked child the threads to join are not there, and a lock may be held for ever: what
        # is left goes with the process.
        if self._loop.forks == kernel_forks:
            with nogil:
                acceptor_end(&self._own)
                monitor_end(&self._loop)
                loop_destroy(&self._loop)
                acceptor_destroy(&self._own)

    cdef _prepare_acceptor(self, config, max_connections):
        cdef acceptor_t *acceptor = &self._own
        cdef option_t *option
        cdef int index, failed
        failed = acceptor_init(
            acceptor, len(self._listeners), len(config.socket_options),
            config.max_connections_per_ip or 0
        )
        if failed:
            raise errors.removal_error(CAUSE_OS_ERROR, -failed)
        for index, listener in enumerate(self._listeners):
            acceptor.listeners[index].given = listener.fileno()
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

    # --- life -------------------------------------------------------------------------------------

    def start(self):
        cdef bint is_started = False
        try:
            self._start()
            is_started = True
        finally:
            if not is_started:
                self._tell_to_exit()  # which takes no memory
                self.release()

    cdef int _start(self) except -1:
        cdef int failed
        before = acceptor_workers_before(self._acceptor, &self._loop)
        for index in range(self._loop.worker_count):
            thread = threading.Thread(
                target=self._work, args=(index,), name=f"hydrogen-worker-{before + index}",
                daemon=True
            )
            self._threads.append(thread)  # before: it may run although start() raises
            thread.start()
        self._log_thread.start()
        self._await_workers()
        failed = monitor_start(&self._loop)
        if not failed and self._first is None:
            with nogil:  # it waits for who forks
                failed = acceptor_start(self._acceptor)
        if failed:
            raise errors.removal_error(CAUSE_OS_ERROR, -failed)
        return 0

    cdef int _await_workers(self) except -1:
        """Until all have begun. One that has no memory to begin would be missing for good, and
        perhaps no other one is there.
        """
        cdef uint32_t k
        for k, thread in enumerate(self._threads):
            while not atomic_load32(&self._loop.workers[k].begun):
                if not thread.is_alive():
                    raise MemoryError(f"no memory for {thread.name} to begin")
                time.sleep(BEGIN_SLICE)
        return 0

    def stop_accepting(self):
        with nogil:
            acceptor_end(self._acceptor)

    def suspend(self):
        if not self._inert():
            acceptor_suspend(self._acceptor, True)

    def resume(self):
        if not self._inert():
            acceptor_suspend(self._acceptor, False)

    def set_alarm(self, when):
        if not self._inert():
            monitor_set_alarm(&self._loop, max(<uint64_t>1, <uint64_t>(when * 1e9)))

    def running(self):
        cdef uint32_t k
        return [
            (thread.ident, relaxed_load64(&self._loop.workers[k].progress))
            for k, thread in enumerate(self._threads)
            if relaxed_load32(&self._loop.workers[k].state) >= WORKER_BRIEF
        ]

    def end(self, HydrogenSocket socket not None):
        if socket._valid():
            queues_post(&socket._engine._loop, socket._connection, socket._generation, STOP, True)

    def close_all(self):
        if self._inert():
            return
        atomic_store32(&self._loop.stopping, 1)
        with nogil:
            loop_stop_all(&self._loop)

    def abort_all(self):
        cdef uint64_t count
        if self._inert():
            return 0
        atomic_store32(&self._loop.stopping, 1)
        with nogil:
            count = loop_abort_all(&self._loop)
        return count

    def abandoned(self):
        cdef uint64_t there, reset
        if self._inert():
            return 0, 0
        there = loop_abandoned(&self._loop, &reset)
        return there, reset

    def wait_drained(self, timeout):
        # `stopping` was set before `live` is looked at; see loop_release.
        return acceptor_live_in(&self._loop) == 0 or self._drained.wait(timeout)

    def unsent(self):
        return sum([socket.pending for socket in broadcast_sockets(self, STATE_CLOSING)])

    def exit(self):
        """Tell the threads to end; for several loops of one server, before the first one is
        released.
        """
        self._tell_to_exit()

    cdef void _tell_to_exit(self) noexcept:
        """The same, without memory. For workers that have not come to run, in a start that failed,
        the last words are said here.
        """
        cdef uint32_t k
        if self._told_to_exit:
            return
        with nogil:
            acceptor_end(self._acceptor)
            monitor_end(&self._loop)
            loop_exit(&self._loop)
            for k in range(self._loop.worker_count):
                if worker_claim(&self._loop.workers[k]):
                    worker_left(&self._loop.workers[k])
        self._told_to_exit = kernel_now() / 1e9

    def release(self, seconds=1.0):
        abandoned = 0
        deadline = time.monotonic() + seconds
        self.exit()
        for index, thread in enumerate(self._threads):
            # A worker that is not in a callback ends by itself, but for code of the user's that
            # runs elsewhere: in a collection, or as the thread ends. One that is in a callback may
            # be about to come out of it.
            while thread.is_alive() and not loop_keeps(&self._loop, &self._loop.workers[index]):
                in_callback = relaxed_load32(&self._loop.workers[index].state) >= WORKER_BRIEF
                left = (
                    min(deadline, self._told_to_exit + JOIN_SECONDS) if in_callback else deadline
                ) - time.monotonic()
                if left <= 0:
                    abandoned += 1
                    break
                thread.join(min(left, JOIN_SLICE))
        with nogil:
            loop_reset_all(&self._loop)
        if self._log_thread.ident is not None:
            self._log_thread.join(max(0.0, deadline - time.monotonic()))
        return abandoned

    def in_worker(self):
        return self._worker() != NULL or threading.current_thread() is self._log_thread

    def reload_tls(self, context):
        with cython.critical_section(self):
            self._tls = context

    cdef object _context(self):
        """`_tls`, which `reload_tls` may let go of at any moment; the lock is nothing where there
        is a GIL.
        """
        with cython.critical_section(self):
            return self._tls

    def forked(self):
        """In the child: its copies of fds go, or a peer would not see the parent close. No lock: a
        thread of the parent's may hold it.

        Called again when an exception kept the caller from noting it.
        """
        cdef connection_t *connection
        cdef uint32_t index
        for index in range(self._loop.slab.used):
            connection = mailbox_at(&self._loop, index)
            if connection.state != STATE_VACANT and connection.poll_fd >= 0:
                kernel_close(connection.poll_fd)
                connection.poll_fd = -1
        loop_close_fds(&self._loop)
        if self._first is None:
            acceptor_close_fd(&self._own)
            listeners_close(&self._own)

    cdef bint _inert(self) noexcept:
        """Whether this engine must not act: it was not made to the end, or it is a forked child's
        copy.
        """
        return not self._is_made or self._loop.forks != kernel_forks

    cdef worker_t *_worker(self) noexcept:
        """The worker of this loop that the calling thread is; NULL: none."""
        cdef worker_t *worker = <worker_t *>kernel_worker_get()
        return worker if worker != NULL and worker.loop == &self._loop else NULL

    def _tell(self):
        """The life of the log thread: what the accept thread and the monitor thread want in the
        log.
        """
        cdef uint32_t events
        while not self._inert():
            with nogil:
                events = queues_await_log(&self._loop)
            if not events:
                break
            self._tell_events(events)
        compat_forget_async_exception(compat_this_thread())  # as in `_work`

    cdef void _tell_events(self, uint32_t events) noexcept:
        # Not in a loop: over constants that would be a tuple, for which there may be no memory.
        if events & LOG_ALL_BLOCKED:
            self._tell_event(LOG_ALL_BLOCKED)
        if events & LOG_ACCEPTING:
            self._tell_event(LOG_ACCEPTING)
        if events & LOG_TURNED_AWAY:
            self._tell_event(LOG_TURNED_AWAY)
        if events & LOG_LISTENER:
            self._tell_event(LOG_LISTENER)

    cdef void _tell_event(self, uint32_t event) noexcept:
        """One line. What goes wrong, for want of memory, takes no other one: the thread is needed
        again.
        """
        cdef uint32_t state
        # What was set in this thread for a log handler that has ended meanwhile would take this
        # line.
        compat_forget_async_exception(compat_this_thread())
        try:
            if event == LOG_ALL_BLOCKED:
                self._log.all_blocked(self._loop.worker_count)
            elif event == LOG_ACCEPTING:
                state = atomic_load32(&self._acceptor.accepting)
                if state == ACCEPTING:
                    self._log.accepting()
                else:
                    self._log.accepting_paused(
                        self._acceptor.max_connections if state == ACCEPT_FULL else None
                    )
            elif event == LOG_TURNED_AWAY:
                atomic_store32(&self._acceptor.turned_away_told, 0)
                self._log.turned_away(atomic_load64(&self._acceptor.turned_away))
            else:
                self._log.say(
                    logging.ERROR, "accept", "accept: %s",
                    errors.removal_error(CAUSE_OS_ERROR, EINVAL)
                )
        except BaseException:
            pass

    # --- the dispatch role ------------------------------------------------------------------------

    def _work(self, uint32_t index):
        """The life of a worker."""
        cdef worker_t *worker = &self._loop.workers[index]
        cdef _Callbacks callbacks = None
        cdef uint64_t asked
        cdef bint go_on
        if not worker_claim(worker):
            return  # the start has failed
        try:
            callbacks = _Callbacks(self._callbacks)
            worker.callbacks = <void *>callbacks
            worker.python_thread = compat_this_thread()
            kernel_worker_set(worker)
            atomic_store32(&worker.begun, 1)
            while not self._inert():
                with nogil:
                    go_on = worker_next(worker)
                    asked = kernel_now()
                if not go_on:
                    break
                worker_enter(worker, asked)
                dispatch_iteration(self, worker)
                while not self._inert() and worker_refill(worker):
                    dispatch_iteration(self, worker)
                worker_leave(worker)
        finally:
            kernel_worker_set(NULL)
            if not self._inert():
                with nogil:
                    worker_left(worker)
            if callbacks is not None:
                callbacks.exit_context()
            # or it would be raised where this returns to
            compat_forget_async_exception(compat_this_thread())

    # --- what the server asks for -----------------------------------------------------------------

    def connections(self):
        return [] if self._inert() else broadcast_sockets(self, STATE_OPEN)

    def framed(self, data):
        return broadcast_framed(self, data)

    def broadcast(self, data, exclude, bytes wire=None):
        return broadcast_to_all(self, data, exclude, wire)

    def stats(self):
        return statistics_of(self)


def _close_stream(stream):
    """Have a stream close its fd; the last call. Compiled, also what `Stream` itself does: what
    somebody sets in this worker would be raised where a function of ours in Python begins, and the
    fd stay open. Where there is no memory to ask it, it is asked again: else it would stay open,
    too.
    """
    cdef int tries = CLOSE_TRIES
    fd = -1
    while True:
        try:
            close = stream.close
            is_usual = type(close) is MethodType and close.__func__ is Stream.close
            if is_usual and close.__self__ is stream:
                fd = stream.fileno()
            break
        except MemoryError:
            tries -= 1
            if not tries:
                raise
            with nogil:
                kernel_sleep(CLOSE_RETRY_NS)
    if type(fd) is not int:
        raise not_an_fd(stream, fd)
    if fd >= 0:
        close_fd(fd)
    else:
        close()


close_stream = _close_stream  # for _engine/finishing.pxd

# The engine of no server: inert for ever.
_nobody = Engine.__new__(Engine)
