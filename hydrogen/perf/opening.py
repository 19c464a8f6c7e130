"""Opens connections, many at a time or at a given rate, and measures each step of it.

A connection is opened by a generator that yields what it waits for, ``selectors.EVENT_READ`` or
``EVENT_WRITE``: one thread carries hundreds on at once, and a server far away, or a slow handshake,
costs no more than the longest of them.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import ipaddress
import os
import select
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hydrogen.perf.histogram import BUCKETS, bucket_of
from hydrogen.perf.options import Options
from hydrogen.perf.tunnel import Tunnel, receive

Steps = Generator[int, None, None]

AT_ONCE = 256
"""Connections being opened at a time. A server's backlog is usually 128 or more, and one that
overflows costs a second each.
"""

WAKE = 0.05
"""Seconds after which `stopped` is looked at again."""

PER_SOURCE = 5000
"""Connections from one address of the loopback network, all of which is ours. Each has some 28,000
ports, and the search for a free one becomes slow when half of them are taken."""

BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT of ip(7), which `socket` does not name: the port is chosen by connect,
and may serve other destinations too.
"""

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
ANSWER_MOST = 1 << 14
RESET = struct.pack("ii", 1, 0)  # of SO_LINGER


@dataclass
class Connection:
    """An open connection; with TLS the handshake is done."""

    sock: socket.socket
    tunnel: Tunnel | None = None
    ended: bool = False
    """it is over, though the socket need not show it: by close_notify, by CLOSE, or because the
    server can no longer be answered
    """

    def close(self) -> None:
        """Close it, with TLS after a close_notify."""
        with contextlib.suppress(OSError), self.sock:
            if self.tunnel is not None:
                self.sock.send(self.tunnel.unsent + self.tunnel.close())

    def reset(self) -> None:
        """Close it by RST, so that its port is free at once."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def has_ended(self) -> bool:
        """Whether the server has ended it, whatever it sent before."""
        poller = select.poll()
        poller.register(self.sock, select.POLLRDHUP)  # POLLHUP and POLLERR need not be asked for
        return self.ended or bool(poller.poll(0))


class _Opening(NamedTuple):
    connection: Connection
    steps: Steps
    deadline: float


class Opener:
    """Opens connections to one server. For one thread, but that another may set ``stopped``.

    Attributes:
        stopped: no further one is begun, and none of those begun is awaited.
        connects, handshakes: histograms of the nanoseconds that each took.
        failures: connections that could not be opened, and ``error``, the reason of the first.
        opened: how many were, and ``tries``, how many have been begun.
    """

    def __init__(self, options: Options, context: ssl.SSLContext | None) -> None:
        self._options, self._context = options, context
        self.connects, self.handshakes = [0] * BUCKETS, [0] * BUCKETS
        self.failures = self.opened = self.tries = 0
        self.error = ""
        self.stopped = False
        self._candidates: list[tuple[int, object]] = []

    def open(self, number: int) -> list[Connection]:
        """That many, fewer those that fail. If the very first fails the others are not tried.

        A name's addresses are tried in turn by the first connection; the others go to the one that
        it reached.
        """
        opened: list[Connection] = []
        if not self._candidates:
            self._candidates = self._resolved()
            if not self._candidates:
                return opened
        while (len(self._candidates) > 1 or self.tries == 0) and number:
            last = len(self._candidates) == 1
            found = self._open_some(1, self._candidates[0], count_failures=last)
            if found:
                opened += found
                self._candidates = self._candidates[:1]
                break
            if last:
                return opened
            del self._candidates[0]
        try:
            return opened + self._open_some(number - len(opened), self._candidates[0])
        except BaseException:
            for connection in opened:
                connection.close()
            raise

    def _resolved(self) -> list[tuple[int, object]]:
        address = self._options.address
        if isinstance(address, str):
            return [(socket.AF_UNIX, address)]
        try:
            return [
                (family, found)
                for family, _, _, _, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
            ]
        except OSError as error:
            self._failed(f"{address[0]}: {error.strerror}")
        except UnicodeError as error:  # a name that the codec "idna" cannot encode
            self._failed(f"{address[0]}: {error}")
        return []

    def _failed(self, reason: str) -> None:
        self.failures += 1
        self.error = self.error or reason

    def _open_some(
        self, number: int, target: tuple[int, object], count_failures: bool = True
    ) -> list[Connection]:
        """Begin those that are due, carry on those that can go on, give up those that take too
        long.
        """
        opened: list[Connection] = []
        began, begun, rate = time.monotonic(), 0, self._options.connect_rate
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as undo:
            pending = selector.get_map()
            undo.callback(lambda: close_all(opened))
            undo.callback(lambda: close_all([key.data.connection for key in pending.values()]))

            def carry_on(opening: _Opening) -> None:
                try:
                    selector.register(opening.connection.sock, next(opening.steps), opening)
                except StopIteration:
                    self.opened += 1
                    opened.append(opening.connection)
                except (OSError, ValueError) as error:
                    give_up(opening, told(error))

            def give_up(opening: _Opening, reason: str) -> None:
                opening.connection.sock.close()
                if count_failures:
                    self._failed(reason)

            while (begun < number or pending) and not self.stopped:
                while (
                    begun < number
                    and len(pending) < AT_ONCE
                    and (not rate or time.monotonic() - began >= begun / rate)
                ):
                    begun += 1
                    self.tries += 1
                    try:
                        connection = Connection(socket.socket(target[0]))
                    except OSError as error:
                        self._failed(told(error))
                        continue
                    carry_on(
                        _Opening(
                            connection,
                            self._steps(connection, target),
                            time.monotonic() + self._options.timeout,
                        )
                    )
                moments = [key.data.deadline for key in pending.values()]
                if begun < number and len(pending) < AT_ONCE:
                    moments.append(began + begun / rate)
                for key, _ in selector.select(
                    min(WAKE, max(0.0, min(moments) - time.monotonic())) if moments else 0
                ):
                    selector.unregister(key.fileobj)
                    carry_on(key.data)
                for key in [
                    key for key in pending.values() if key.data.deadline <= time.monotonic()
                ]:
                    selector.unregister(key.fileobj)
                    give_up(key.data, f"not open within {self._options.timeout:g} s")
            close_all([key.data.connection for key in pending.values()])
            undo.pop_all()
        return opened

    def _steps(self, connection: Connection, target: tuple[int, object]) -> Steps:
        """Open the connection, and record how long each step takes."""
        sock, (family, address) = connection.sock, target
        began = time.monotonic_ns()
        if family == socket.AF_UNIX:
            # Never in progress: with a full backlog a connect that may not block fails.
            sock.settimeout(self._options.timeout)
            sock.connect(address)  # type: ignore[arg-type]
            sock.setblocking(False)
        else:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            source = self._source(family, address)
            if source is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
                sock.bind((source, 0))
            error = sock.connect_ex(address)  # type: ignore[arg-type]
            if error == errno.EINPROGRESS:
                yield selectors.EVENT_WRITE
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
        connected = time.monotonic_ns()
        self.connects[bucket_of(connected - began)] += 1
        if self._context is not None:
            host = (
                self._options.address[0]
                if isinstance(self._options.address, tuple)
                else "localhost"
            )
            connection.tunnel = Tunnel(self._context, host)
            yield from connection.tunnel.handshake(sock)
        if self._options.websocket is not None:
            yield from upgrade(connection, self._options.address, self._options.websocket)
        if self._context is not None or self._options.websocket is not None:
            self.handshakes[bucket_of(time.monotonic_ns() - connected)] += 1

    def _source(self, family: int, address: object) -> str | None:
        """The address that this connection comes from; None: the kernel's choice."""
        index = self.tries - 1
        if self._options.sources:
            return self._options.sources[index % len(self._options.sources)]
        if (
            family != socket.AF_INET
            or index < PER_SOURCE
            or not ipaddress.ip_address(address[0]).is_loopback  # type: ignore[index]
        ):
            return None
        return f"127.0.0.{1 + index // PER_SOURCE}"


def close_all(connections: Sequence[Connection]) -> None:
    """Close their sockets, as they are."""
    for connection in connections:
        connection.sock.close()


def told(error: Exception) -> str:
    """Why a connection could not be opened, and where it helps, what to do."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        return f"{error}: no free port, or no such source address; --source accepts several"
    if number == errno.EMFILE:
        return f"{error}: this process is out of file descriptors (ulimit -n)"
    return str(error)


def upgrade(connection: Connection, address: tuple[str, int] | str, path: str) -> Steps:
    """The client's part of WebSocket's opening handshake (RFC 6455, 4.1). Raises ValueError for an
    answer that is none.
    """
    sock, tunnel = connection.sock, connection.tunnel
    key = base64.b64encode(os.urandom(16))
    host = (
        "localhost"
        if isinstance(address, str)
        else f"{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}"
    )
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    # A new connection's buffer takes that much.
    sock.sendall(request if tunnel is None else tunnel.encrypt(request))
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = yield from receive(sock, "WebSocket")
        answer += data if tunnel is None else tunnel.decrypt(data)
        if len(answer) > ANSWER_MOST:
            raise ValueError(
                f"the answer to the WebSocket handshake is longer than {ANSWER_MOST} bytes"
            )
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in lines)
    }
    wanted = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())
    if status.split(b" ")[1:2] != [b"101"] or fields.get(b"sec-websocket-accept") != wanted:
        raise ValueError(f"the server does not speak WebSocket: {status.decode('latin-1')!r}")
    if rest:
        raise ValueError("the server sent unrequested data right after the WebSocket handshake")
