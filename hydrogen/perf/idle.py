"""Answers the pings that idle WebSocket connections get: a server resets those that do not answer,
and what is measured from then on is a server without idle connections.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator, Sequence

from hydrogen.perf.framing import CLOSE, CONTROL_MOST, PING, pong
from hydrogen.perf.opening import Connection

READ = 64 * 1024

CONTROL, MASK = 0x08, 0x80
"""The bits of a frame's first byte and its second that make it a control frame and masked (RFC
6455, 5.2).
"""

EXTENDED = {126: 2, 127: 8}
"""By the length in the second byte: how many bytes of the real one follow."""


class Stream:
    """What the server sends over one idle connection."""

    __slots__ = ("_connection", "_cut", "_skip")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._cut = b""  # the beginning of a frame
        self._skip = 0  # bytes that are still to come of a message

    def answer(self) -> None:
        """Read what has come, and answer the newest ping in it.

        Raises:
            OSError: the server has ended the connection, or has read so few pongs that there is no
                room for one.
            ValueError: it does not speak WebSocket.
        """
        sock, tunnel = self._connection.sock, self._connection.tunnel
        try:
            data = sock.recv(READ)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the server has ended the connection")
        ping = self._newest_ping(data if tunnel is None else tunnel.decrypt(data))
        if ping is not None:
            answer = pong(ping) if tunnel is None else tunnel.encrypt(pong(ping))
            if sock.send(answer) < len(answer):
                raise BlockingIOError("there is no room for a pong")

    def give_up(self) -> None:
        """Count the connection as ended."""
        self._connection.ended = True

    def _newest_ping(self, data: bytes) -> bytes | None:
        """The payload of the last ping that ``data`` completes. Messages are skipped."""
        data, at, ping = self._cut + data, self._skip, None
        while at + 2 <= len(data):
            first, length = data[at : at + 2]
            is_control = first & CONTROL
            if length & MASK or (is_control and length > CONTROL_MOST):
                raise ValueError("no server may send that frame")
            begin = at + 2 + EXTENDED.get(length, 0)
            if begin > len(data):
                break
            if length in EXTENDED:
                length = int.from_bytes(data[at + 2 : begin], "big")
            end = begin + length
            if is_control and end > len(data):
                break
            if first == CLOSE:
                raise ConnectionResetError("the server has closed the connection")
            if first == PING:
                ping = data[begin:end]
            at = end
        self._cut, self._skip = data[at:], max(0, at - len(data))
        return ping


@contextlib.contextmanager
def answering(connections: Sequence[Connection]) -> Iterator[None]:
    """Meanwhile answer the server's pings over these connections, in a thread."""
    stopping, stop = socket.socketpair()
    with stopping, stop, selectors.DefaultSelector() as selector:
        selector.register(stopping, selectors.EVENT_READ)
        for connection in connections:
            selector.register(connection.sock, selectors.EVENT_READ, Stream(connection))
        thread = threading.Thread(
            target=answer_all, args=(selector,), name="hydrogen-perf-idle", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.close()
            thread.join()


def answer_all(selector: selectors.BaseSelector) -> None:
    """Answer over the selector's streams, until what has none can be read."""
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            try:
                key.data.answer()
            except (OSError, ValueError):
                selector.unregister(key.fileobj)
                key.data.give_up()
