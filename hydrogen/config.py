"""`Config`: all settings, checked on construction, so that a server never starts with invalid
ones.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from ssl import SSLContext
from typing import Any, Literal, TypedDict, cast, get_args

from hydrogen.checks import (
    MAX_SECONDS,
    check_choice,
    check_flag,
    check_seconds,
    check_whole,
    is_several,
)
from hydrogen.codec import builder_of
from hydrogen.errors import Timeout, described
from hydrogen.frame import FrameBuilder
from hydrogen.proxy import Allowed, allowed_networks
from hydrogen.tls import check_context
from hydrogen.websocket import WebSocket

MAX_SLOTS = 1 << 24
"""Connections that one server can hold: a token has 24 bits for the index of a slot."""

FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
"""Of sockets that are served: what a peer's name is, and who may send a PROXY header, is known of
these.
"""

MAX_LOOPS = 64
"""Loops of one server: so many fit into what accepts for them (`LOOPS_MOST` in _c/loop.pxd)."""

Framing = FrameBuilder | type[FrameBuilder] | None

Overload = Literal["pause", "close"]
ProxyProtocol = Literal["off", "v1", "v2", "auto"]
Handoff = Literal["auto", "inline", "eager"]


@dataclass(frozen=True)
class Config:
    """How a server listens, and its limits. Sizes are in bytes, times in seconds.

    Immutable, and so safe to use from any thread. Sequences are stored as tuples, so that it can be
    hashed (unless your framing or SSL context cannot be).

    Attributes:
        addr: IPv4 or IPv6 address to listen on, or a host name (all its addresses); or several of
            them.
        port: TCP port for all of them; 0: the kernel chooses one (`Server.address` says which).
        max_threads: number of workers, that is, of callbacks that may block at the same time.
        loops: event loops of the compiled engine; workers and connections are divided among them,
            and each connection goes to the loop that has the fewest. More than one only pays off
            without a GIL and with idle processors; the Python engine always has one.
        pre_allocated: connection slots that exist from the start; not a limit.
        framing: a frame builder, as a class (which is instantiated) or an instance; None: raw
            chunks as read.
        websocket: how a `WebSocketHandler` speaks WebSocket; None: as `WebSocket()`. Excludes
            `framing`.
        ssl: a server-side context: connections use TLS. `OP_NO_RENEGOTIATION` is set on it.
        path: listen on a Unix socket at this path instead; for names that are not UTF-8, what
            `os.fsdecode` returns. Stored as a str.
        path_mode: permissions of that socket, such as 0o660; None: set by the umask.
        sock: listen on this bound stream socket, or on several, instead; the server takes them
            over and closes them when it stops.
        backlog: length of the queue of connections not yet accepted, see listen(2).
        reuse_port: set SO_REUSEPORT, so that several processes can share the port, see socket(7).
        nodelay: set TCP_NODELAY on each connection, see tcp(7).
        keepalive: (seconds idle, seconds between probes, probes) before a vanished peer is noticed,
            see tcp(7); None: off.
        socket_options: (level, name, value) for each connection, value an int or bytes, as
            `socket.setsockopt` takes them.
        max_connections: how many may be open at once; None: what RLIMIT_NOFILE allows at the start,
            see `default_max_connections`.
        max_connections_per_ip: how many may be open at once from one address (not on Unix sockets,
            which have none); further ones are reset at once, whatever `overload` says. None: no
            limit.
        overload: what to do at `max_connections`. "pause": accept no more until one has gone; new
            ones wait in the kernel's backlog. "close": accept and reset, without callbacks.
        write_buffer_limits: (low, high) watermarks of pending output: above high, a connection is
            not read until its output is below low.
        max_write_buffer: a send while this much is pending removes the connection as a slow
            consumer.
        max_buffered: limit across all connections: above it nothing is read, and the connection
            with the most pending output is removed. With several loops, each has its share.
        read_budget: how much is read from one connection before the others are read.
        open_timeout: for the PROXY header and the TLS handshake, from when a worker takes up the
            connection; None: no limit.
        idle_timeout: time without a byte in either direction; None: no limit. Fires late by up to
            half the shortest timeout, as does `write_timeout`. While reading is paused, a
            connection with undelivered input is not idle, however long it waits.
        frame_timeout: from the first byte of a frame to its last; further bytes do not extend it.
            None: no limit.
        write_timeout: time in which the peer takes nothing of the queued output, also while the
            connection closes; None: no limit. On a Unix socket the kernel reports progress only in
            steps of 36 KiB (Linux, unix_stream_sendmsg).
        proxy_protocol: "v1", "v2" or "auto" (either): each connection begins with a header of the
            PROXY protocol, which names the client.
        proxy_allow_from: networks, or "unix", from which such a header is accepted; connections
            from elsewhere are refused.
        stop_timeout: default of `Server.stop`; container runtimes kill after 10 s.
        slow_callback: a callback that runs for this long is logged, with its stack if there is a
            GIL; None: off.
        handoff: when another thread is woken: "auto", or "inline" or "eager" to pin one policy (for
            experts and tests).

    Raises:
        TypeError, ValueError: on construction; the message names the field, the value and what is
            allowed.
    """

    addr: str | Sequence[str] = "127.0.0.1"
    port: int = 1337
    max_threads: int = 32
    pre_allocated: int = 1024
    _: KW_ONLY
    loops: int = 1
    framing: Framing = None
    websocket: WebSocket | None = None
    ssl: SSLContext | None = None
    path: str | os.PathLike[str] | None = None
    path_mode: int | None = None
    sock: socket.socket | Sequence[socket.socket] | None = None
    backlog: int = 4096
    reuse_port: bool = False
    nodelay: bool = True
    keepalive: tuple[int, int, int] | None = (60, 10, 6)
    socket_options: Sequence[tuple[int, int, int | bytes]] = ()
    max_connections: int | None = None
    max_connections_per_ip: int | None = None
    overload: Overload = "pause"
    write_buffer_limits: tuple[int, int] = (65_536, 262_144)
    max_write_buffer: int = 16 << 20
    max_buffered: int = 512 << 20
    read_budget: int = 256 << 10
    open_timeout: float | None = 10.0
    idle_timeout: float | None = None
    frame_timeout: float | None = 60.0
    write_timeout: float | None = 60.0
    proxy_protocol: ProxyProtocol = "off"
    proxy_allow_from: Sequence[Allowed | str] = ()
    stop_timeout: float = 8.0
    slow_callback: float | None = None
    handoff: Handoff = "auto"
    builder: FrameBuilder | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        self._check_listener()
        check_whole("max_threads", self.max_threads, 1, 1024)
        check_whole("loops", self.loops, 1, min(MAX_LOOPS, self.max_threads))
        check_whole("pre_allocated", self.pre_allocated, 0, MAX_SLOTS)
        object.__setattr__(self, "builder", builder_of(self.framing))
        self._check_websocket()
        if self.ssl is not None:
            check_context("ssl", self.ssl, server_side=True)
        check_flag("reuse_port", self.reuse_port)
        check_flag("nodelay", self.nodelay)
        self._check_socket_options()
        self._check_buffers()
        self._check_limits()
        for name in (*[timeout.field for timeout in Timeout], "slow_callback"):
            if getattr(self, name, None) is not None:  # one is `WebSocket`'s
                check_seconds(name, getattr(self, name))
        if not isinstance(self.stop_timeout, (int, float)) or isinstance(self.stop_timeout, bool):
            raise TypeError(
                f"stop_timeout: expected a number of seconds, not {described(self.stop_timeout)}"
            )
        if not 0 <= self.stop_timeout <= MAX_SECONDS:
            raise ValueError(
                f"stop_timeout: must be 0 or more, and at most {MAX_SECONDS} seconds, not "
                f"{described(self.stop_timeout)}"
            )
        check_choice("handoff", self.handoff, *get_args(Handoff))

    def _check_listener(self) -> None:
        if is_several(self.addr):
            object.__setattr__(self, "addr", tuple(self.addr))
        for addr in self.addresses:
            if not isinstance(addr, str):
                raise TypeError(
                    f"addr: expected a str, or a sequence of them, not {described(self.addr)}"
                )
            if not addr or "\0" in addr:
                raise ValueError(f"addr: expected an address or a host name, not {described(addr)}")
        if not self.addresses or len(set(self.addresses)) < len(self.addresses):
            raise ValueError(
                f"addr: expected one address or several different ones, not {described(self.addr)}"
            )
        check_whole("port", self.port, 0, 65_535)
        check_whole("backlog", self.backlog, 1, 1 << 30)
        if self.path is not None:
            path = os.fspath(self.path) if isinstance(self.path, os.PathLike) else self.path
            if not isinstance(path, str):
                raise TypeError(
                    f"path: expected a str or a path-like object of str, not {described(self.path)}"
                )
            object.__setattr__(self, "path", path)
            if not 1 <= len(os.fsencode(path)) <= 107 or "\0" in path:
                raise ValueError(
                    "path: must be 1 to 107 bytes without a NUL (unix(7)), not "
                    f"{described(self.path)}"
                )
        if self.path_mode is not None:
            check_whole("path_mode", self.path_mode, 0, 0o777)
            if self.path is None:
                raise ValueError(
                    f"path_mode: only allowed with path, not {self.path_mode:#o} without it"
                )
        if is_several(self.sock):
            object.__setattr__(self, "sock", tuple(self.sock))
            if not self.sock:
                raise ValueError("sock: expected one socket or several, not none")
        for sock in self.socks:
            if not isinstance(sock, socket.socket):
                raise TypeError(
                    "sock: expected a socket.socket, or a sequence of them, not "
                    f"{described(self.sock)}"
                )
            if sock.type != socket.SOCK_STREAM or sock.family not in FAMILIES:
                raise ValueError(
                    f"sock: expected a TCP or Unix stream socket, not {described(sock)}"
                )
        own_address = (self.addr, self.port) != (type(self).addr, type(self).port)
        if sum((own_address, self.path is not None, self.sock is not None)) > 1:
            raise ValueError(
                "addr/port, path, sock: only one of them can be given, not "
                f"{described((self.addr, self.port))}, {described(self.path)} and "
                f"{described(self.sock)}"
            )

    @property
    def addresses(self) -> tuple[str, ...]:
        """`addr`, as a tuple in any case."""
        return self.addr if isinstance(self.addr, tuple) else (cast(str, self.addr),)

    @property
    def socks(self) -> tuple[socket.socket, ...]:
        """`sock`, as a tuple in any case; empty when there is none."""
        return (
            ()
            if self.sock is None
            else self.sock
            if isinstance(self.sock, tuple)
            else (cast(socket.socket, self.sock),)
        )

    def _check_websocket(self) -> None:
        if self.websocket is None:
            return
        if not isinstance(self.websocket, WebSocket):
            raise TypeError(
                f"websocket: expected a hydrogen.WebSocket, not {described(self.websocket)}"
            )
        if self.builder is not None:
            raise ValueError(f"websocket: only allowed without framing, not {self.framing!r}")

    def _check_limits(self) -> None:
        if self.max_connections is not None:
            check_whole("max_connections", self.max_connections, 1, MAX_SLOTS)
        if self.max_connections_per_ip is not None:
            check_whole("max_connections_per_ip", self.max_connections_per_ip, 1, MAX_SLOTS)
        check_choice("overload", self.overload, *get_args(Overload))
        check_choice("proxy_protocol", self.proxy_protocol, *get_args(ProxyProtocol))
        object.__setattr__(self, "proxy_allow_from", allowed_networks(self.proxy_allow_from))
        if (self.proxy_protocol == "off") is not (self.proxy_allow_from == ()):
            raise ValueError(
                "proxy_allow_from: expected networks with proxy_protocol, and none without it, "
                f"not {described(self.proxy_allow_from)} with {described(self.proxy_protocol)}"
            )

    def _check_socket_options(self) -> None:
        if self.keepalive is not None:
            _triple("keepalive", self.keepalive)
            for name, value in zip(("idle", "interval", "probes"), self.keepalive, strict=True):
                check_whole(f"keepalive ({name})", value, 1, 32_767 if name != "probes" else 127)
            object.__setattr__(self, "keepalive", tuple(self.keepalive))
        if not is_several(self.socket_options):
            raise TypeError(
                "socket_options: expected a sequence of (level, name, value), not "
                f"{described(self.socket_options)}"
            )
        for option in self.socket_options:
            _triple("socket_options", option)
            check_whole("socket_options (level)", option[0], 0, (1 << 31) - 1)
            check_whole("socket_options (name)", option[1], 0, (1 << 31) - 1)
            if not isinstance(option[2], bytes):
                check_whole("socket_options (value)", option[2], -(1 << 31), (1 << 31) - 1)
        object.__setattr__(
            self, "socket_options", tuple(tuple(option) for option in self.socket_options)
        )

    def _check_buffers(self) -> None:
        check_whole("max_write_buffer", self.max_write_buffer, 1, 1 << 40)
        check_whole("max_buffered", self.max_buffered, 1, 1 << 50)
        check_whole("read_budget", self.read_budget, 1, 1 << 30)
        limits = self.write_buffer_limits
        if not isinstance(limits, (tuple, list)) or len(limits) != 2:
            raise TypeError(f"write_buffer_limits: expected (low, high), not {described(limits)}")
        check_whole("write_buffer_limits (low)", limits[0], 1, 1 << 40)
        check_whole("write_buffer_limits (high)", limits[1], 1, 1 << 40)
        if limits[0] > limits[1]:
            raise ValueError(
                f"write_buffer_limits: low must not exceed high, not {described(limits)}"
            )
        object.__setattr__(self, "write_buffer_limits", tuple(limits))


class Options(TypedDict, total=False):
    """The fields of `Config`, as keyword options of `serve` and `begin`. For type checkers."""

    addr: str | Sequence[str]
    port: int
    max_threads: int
    pre_allocated: int
    loops: int
    framing: Framing
    websocket: WebSocket | None
    ssl: SSLContext | None
    path: str | os.PathLike[str] | None
    path_mode: int | None
    sock: socket.socket | Sequence[socket.socket] | None
    backlog: int
    reuse_port: bool
    nodelay: bool
    keepalive: tuple[int, int, int] | None
    socket_options: Sequence[tuple[int, int, int | bytes]]
    max_connections: int | None
    max_connections_per_ip: int | None
    overload: Overload
    write_buffer_limits: tuple[int, int]
    max_write_buffer: int
    max_buffered: int
    read_budget: int
    open_timeout: float | None
    idle_timeout: float | None
    frame_timeout: float | None
    write_timeout: float | None
    proxy_protocol: ProxyProtocol
    proxy_allow_from: Sequence[Allowed | str]
    stop_timeout: float
    slow_callback: float | None
    handoff: Handoff


def default_max_connections() -> int:
    """What RLIMIT_NOFILE (getrlimit(2)) allows now: the soft limit less a reserve for files of the
    program's own.

    The reserve is a sixteenth of the limit, at least 64 and at most 1024, but never more than half.
    A stream of the user's takes two fds.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_SLOTS
    return max(1, min(limit - min(max(64, limit // 16), 1024, limit // 2), MAX_SLOTS))


def _triple(name: str, value: Any) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise TypeError(f"{name}: expected a tuple of three values, not {described(value)}")
