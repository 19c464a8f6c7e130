"""`Config`: everything that can be set, checked when it is made, so that a server never starts with nonsense."""

from __future__ import annotations

import socket
from dataclasses import KW_ONLY, dataclass, field
from ssl import SSLContext
from typing import Any

from hydrogen.frame import FrameBuilder, builder_of
from hydrogen.tls import check_context

MAX_SLOTS = 1 << 24
"""Connections that one server can hold: a token has 24 bits for the index of a slot."""

MAX_SECONDS = 1_000_000_000
"""Longest timeout: some thirty years."""

Framing = FrameBuilder | type[FrameBuilder] | None


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: an int is expected, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: {low} to {high} is allowed, not {value}")


def _flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: True or False is expected, not {value!r}")


def _seconds(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: seconds are expected, not {value!r}")
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(f"{name}: more than 0 and at most {MAX_SECONDS} seconds are allowed, not {value!r}")


@dataclass(frozen=True)
class Config:
    """How a server listens, and its limits. Sizes are in bytes, times in seconds. Immutable, so safe from any thread.

    Attributes:
        addr: IPv4 or IPv6 address, or a host name, to listen on.
        port: TCP port; with 0 the kernel chooses one (`Server.address` tells it).
        max_threads: workers, that is handlers that may block at once.
        pre_allocated: connection slots that exist from the start; not a limit.
        framing: a frame builder, class or instance (a class is instantiated); None: raw chunks as read.
        ssl: a server-side context: connections speak TLS. `OP_NO_RENEGOTIATION` is set on it.
        path: listen on a Unix socket of that name instead.
        sock: listen on this bound stream socket instead; the server takes it over and closes it when it stops.
        backlog: queue of connections not yet accepted, see listen(2).
        reuse_port: set SO_REUSEPORT, so that several processes can share the port, see socket(7).
        nodelay: set TCP_NODELAY on each connection, see tcp(7).
        keepalive: (seconds idle, seconds between probes, probes) before a vanished peer is noticed, see tcp(7); None: off.
        socket_options: (level, name, value) for each connection, value an int or bytes, as `socket.setsockopt` takes them.
        write_buffer_limits: (low, high) watermarks of pending output: above high a connection is not read until it is below low.
        max_write_buffer: a send while so much is pending removes the connection as a slow consumer.
        max_buffered: above so much over all connections nothing is read and the one with the most pending output is removed.
        read_budget: read from one connection in one turn before the others come.
        open_timeout: for the TLS handshake, from when a worker has taken the connection up; None: no limit.
        frame_timeout: from the first byte of a frame to its last, however it drips; None: no limit.
        stop_timeout: default of `Server.stop`; container runtimes kill after 10 s.
        handoff: who is woken when: "auto", or "inline" or "eager" to pin one policy (for experts and tests).

    Raises:
        TypeError, ValueError: at construction; the message names the field, the value and what is allowed.
    """

    addr: str = "127.0.0.1"
    port: int = 1337
    max_threads: int = 32
    pre_allocated: int = 1024
    _: KW_ONLY
    framing: Framing = None
    ssl: SSLContext | None = None
    path: str | None = None
    sock: socket.socket | None = None
    backlog: int = 4096
    reuse_port: bool = False
    nodelay: bool = True
    keepalive: tuple[int, int, int] | None = (60, 10, 6)
    socket_options: tuple[tuple[int, int, int | bytes], ...] = ()
    write_buffer_limits: tuple[int, int] = (65_536, 262_144)
    max_write_buffer: int = 16 << 20
    max_buffered: int = 512 << 20
    read_budget: int = 256 << 10
    open_timeout: float | None = 10.0
    frame_timeout: float | None = 60.0
    stop_timeout: float = 8.0
    handoff: str = "auto"
    builder: FrameBuilder | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        self._check_listener()
        _whole("max_threads", self.max_threads, 1, 1024)
        _whole("pre_allocated", self.pre_allocated, 0, MAX_SLOTS)
        object.__setattr__(self, "builder", builder_of(self.framing))
        if self.ssl is not None:
            check_context("ssl", self.ssl, server_side=True)
        _flag("reuse_port", self.reuse_port)
        _flag("nodelay", self.nodelay)
        self._check_socket_options()
        self._check_buffers()
        for name in ("open_timeout", "frame_timeout"):
            if getattr(self, name) is not None:
                _seconds(name, getattr(self, name))
        if not isinstance(self.stop_timeout, (int, float)) or isinstance(self.stop_timeout, bool):
            raise TypeError(f"stop_timeout: seconds are expected, not {self.stop_timeout!r}")
        if not 0 <= self.stop_timeout < float("inf"):
            raise ValueError(f"stop_timeout: 0 or more seconds are allowed, not {self.stop_timeout!r}")
        if self.handoff not in ("auto", "inline", "eager"):
            raise ValueError(f"handoff: 'auto', 'inline' or 'eager' is allowed, not {self.handoff!r}")

    def _check_listener(self) -> None:
        if not isinstance(self.addr, str):
            raise TypeError(f"addr: a str is expected, not {self.addr!r}")
        if not self.addr or "\0" in self.addr:
            raise ValueError(f"addr: an address or a name is expected, not {self.addr!r}")
        _whole("port", self.port, 0, 65_535)
        _whole("backlog", self.backlog, 1, 1 << 30)
        if self.path is not None:
            if not isinstance(self.path, str):
                raise TypeError(f"path: a str is expected, not {self.path!r}")
            if not 1 <= len(self.path.encode()) <= 107 or "\0" in self.path:
                raise ValueError(f"path: 1 to 107 bytes without a NUL are allowed (unix(7)), not {self.path!r}")
        if self.sock is not None:
            if not isinstance(self.sock, socket.socket):
                raise TypeError(f"sock: a socket.socket is expected, not {self.sock!r}")
            if self.sock.type != socket.SOCK_STREAM:
                raise ValueError(f"sock: a stream socket is expected, not {self.sock!r}")
        own_address = (self.addr, self.port) != (type(self).addr, type(self).port)
        if sum((own_address, self.path is not None, self.sock is not None)) > 1:
            raise ValueError(
                f"addr/port, path, sock: one of them is allowed, not {(self.addr, self.port)!r}, {self.path!r} and {self.sock!r}"
            )

    def _check_socket_options(self) -> None:
        if self.keepalive is not None:
            _triple("keepalive", self.keepalive)
            for name, value in zip(("idle", "interval", "probes"), self.keepalive, strict=True):
                _whole(f"keepalive ({name})", value, 1, 32_767 if name != "probes" else 127)
        if not isinstance(self.socket_options, (tuple, list)):
            raise TypeError(f"socket_options: a sequence of (level, name, value) is expected, not {self.socket_options!r}")
        for option in self.socket_options:
            _triple("socket_options", option)
            _whole("socket_options (level)", option[0], 0, (1 << 31) - 1)
            _whole("socket_options (name)", option[1], 0, (1 << 31) - 1)
            if not isinstance(option[2], bytes):
                _whole("socket_options (value)", option[2], -(1 << 31), (1 << 31) - 1)
        object.__setattr__(self, "socket_options", tuple(tuple(option) for option in self.socket_options))

    def _check_buffers(self) -> None:
        _whole("max_write_buffer", self.max_write_buffer, 1, 1 << 40)
        _whole("max_buffered", self.max_buffered, 1, 1 << 50)
        _whole("read_budget", self.read_budget, 1, 1 << 30)
        limits = self.write_buffer_limits
        if not isinstance(limits, (tuple, list)) or len(limits) != 2:
            raise TypeError(f"write_buffer_limits: (low, high) is expected, not {limits!r}")
        _whole("write_buffer_limits (low)", limits[0], 1, 1 << 40)
        _whole("write_buffer_limits (high)", limits[1], 1, 1 << 40)
        if limits[0] > limits[1]:
            raise ValueError(f"write_buffer_limits: low must not be over high, not {limits!r}")
        object.__setattr__(self, "write_buffer_limits", tuple(limits))


def _triple(name: str, value: Any) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise TypeError(f"{name}: a tuple of three is expected, not {value!r}")
