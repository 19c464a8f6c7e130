"""`Stream`: the seed's trait, for a user who wants to read and write a connection himself; and the port through which engines use it.

A stream of the user's owns the fd it was given; the engine polls a duplicate of its own, so that a stream that closes early cannot
make the engine poll a stranger.
"""

from __future__ import annotations

import abc
import os
import threading
from collections import deque

from hydrogen.errors import HandlerError


class Stream(abc.ABC):
    """How one connection is read and written. The server never calls two methods of one stream at once.

    The fd must be non-blocking where `recv` and `send` should not block others' reading of this stream; the server hands it over so.
    """

    @abc.abstractmethod
    def recv(self) -> list[bytes]:
        """The messages complete now; `[]` (or `BlockingIOError`) when there is nothing.

        It is called again until it has nothing or raises, so that a last batch is never lost.

        Raises:
            EOFError: the peer will send no more.
            OSError: the connection is broken.
        """

    @abc.abstractmethod
    def send(self, buf: bytes) -> None:
        """Write one message; `send(b"")` goes on with what was kept.

        Raises:
            BlockingIOError: not all could be written; the rest is kept by the stream.
        """

    @abc.abstractmethod
    def shutdown(self) -> None:
        """End both ways."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """The fd that this stream owns."""

    def close(self) -> None:
        """Close the fd; called last, once."""
        os.close(self.fileno())


class StreamPort:
    """A user's stream as an engine uses it: one call at a time, answers checked, output counted.

    The lock is a Python lock and is held over calls into the user's code; no engine lock may be held by who calls here. `pending`,
    `blocked` and `ended` are written under it; `messages` belongs to the owner of the connection.
    """

    __slots__ = ("_lock", "blocked", "ended", "messages", "pending", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.messages: deque[bytes] = deque()
        self.blocked = False
        self.ended = False
        self.pending = 0
        self._lock = threading.RLock()

    def receive(self) -> bool:
        """One `Stream.recv`, checked; its messages are added to `messages`. False when there were none.

        Raises:
            HandlerError: what came is not a list of bytes.
            Exception: whatever the stream raises, but `BlockingIOError`, which is "none".
        """
        with self._lock:
            try:
                messages = self.stream.recv()
            except BlockingIOError:
                return False
        if type(messages) is not list or not all(type(message) is bytes for message in messages):
            raise HandlerError(f"{type(self.stream).__name__}.recv() must return a list of bytes, not {messages!r:.80}")
        self.messages.extend(messages)
        return bool(messages)

    def send(self, data: bytes) -> None:
        """Write `data`; sets `blocked` and `pending`. Nothing when the stream has ended.

        Raises:
            Exception: whatever the stream raises, but `BlockingIOError`.
        """
        with self._lock:
            if self.ended:
                return
            try:
                self.stream.send(data)
            except BlockingIOError:
                self.blocked = True
                self.pending += len(data)
            else:
                self.blocked = False
                self.pending = 0

    def resume(self) -> None:
        """The fd is writable: go on with what the stream has kept, if it has. Raises as `send`."""
        with self._lock:
            if self.blocked:
                self.send(b"")

    def shutdown(self) -> None:
        """End the stream both ways; from now on `send` does nothing."""
        with self._lock:
            self.ended = True
            self.stream.shutdown()

    def close(self) -> None:
        """Have the stream close its fd; the last call."""
        with self._lock:
            self.stream.close()
