"""The classes of the compiled engine, as the modules of _engine/ know them: see _core.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.framing cimport framing_t
from hydrogen._c.structs cimport acceptor_t, connection_t, loop_t, worker_t
from hydrogen._codec cimport Framing


cdef class HydrogenSocket:
    cdef Engine _engine
    cdef connection_t *_connection
    cdef uint32_t _generation
    cdef uint64_t _id
    cdef object __weakref__

    cdef bint _valid(self) noexcept
    cdef bint _send_buffer(self, data) except -1


cdef class Message:
    cdef bytes data


cdef class _Callbacks:
    cdef object on_data, on_new, on_connected, on_eof, on_writable, on_disconnected, on_removed
    cdef object on_request, on_pong
    cdef object received  # the name of `on_data`
    cdef object context

    cdef int renew_context(self) except -1
    cdef int exit_context(self) except -1


cdef class Engine:
    cdef loop_t _loop
    cdef acceptor_t _own
    cdef acceptor_t *_acceptor  # its own, or that of `_first`
    cdef Engine _first
    cdef object _server, _log, _timers, _addresses, _threads, _log_thread, _drained
    cdef object _listeners, _builder, _tls
    cdef object _proxy_versions, _proxy_allow
    cdef bint _debug  # each connection is told of in the log
    cdef Framing _framing
    cdef bint _is_made
    cdef double _told_to_exit  # when; 0: not yet
    cdef object _no_memory
    cdef HydrogenSocket _spare_socket
    cdef object _callbacks
    cdef framing_t _raw  # of bytes that are framed already
    cdef object _websocket  # the settings; None: another framing
    cdef object _responses, _closes
    cdef dict _openings  # one object for all connections of the same path and subprotocol
    cdef framing_t _text, _ping, _head

    cdef object _opened(self, accepted, below)

    cdef object _context(self)
    cdef bint _inert(self) noexcept
    cdef worker_t *_worker(self) noexcept
    cdef object _prepare_websocket(self, settings)
    cdef _make(self, server, callbacks, config, listeners, max_connections, Engine first)
    cdef _prepare_acceptor(self, config, max_connections)
    cdef int _start(self) except -1
    cdef int _await_workers(self) except -1
    cdef void _tell_to_exit(self) noexcept
    cdef void _tell_events(self, uint32_t events) noexcept
    cdef void _tell_event(self, uint32_t event) noexcept


# What the modules of _engine/ use of Python, which a .pxd file cannot import: set in _core.pyx.
cdef object AF_INET, AF_INET6, inet_ntop, inet_pton, fsdecode
cdef object BroadcastReport, FrameDecoder, HeaderReader, Plain, ProxyHeader, Secure
cdef object Stats, Stream, StreamAdapter
cdef object Accepted, Answered, Close, Fault, Refusal, Response
cdef object closed_by, closed_by_us, closing_code, closing_payload, control_frame, head_refusal
cdef object lifetime_of, take_request
cdef object SSLError, TlsSession, begins_header, check_timeout, class_name, close_stream, encode
cdef object errors, may_send, no_proxy, not_a_stream, not_an_fd, removals, second_header
