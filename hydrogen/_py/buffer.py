"""Buffers: the send queue of one connection, and the account of what all of them hold."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

BATCH = 64
"""Messages given to one sendmsg(2); the kernel's own limit (UIO_MAXIOV) is 1024, and beyond some dozens nothing is gained."""


class SendQueue:
    """Messages not yet taken by the kernel, in order. Not locked: it belongs to the output side of a connection.

    Attributes:
        size: bytes in it.
    """

    __slots__ = ("_messages", "size")

    def __init__(self) -> None:
        self._messages: deque[bytes | memoryview] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        """Whether a message is in it, which may be an empty one."""
        return bool(self._messages)

    def append(self, data: bytes) -> None:
        """Put `data` at the end; empty only where messages are taken off one by one, by `take`."""
        self._messages.append(data)
        self.size += len(data)

    def front(self) -> list[bytes | memoryview]:
        """The first messages, still in the queue."""
        return [message for message, _ in zip(self._messages, range(BATCH), strict=False)]

    def take(self) -> bytes | memoryview:
        """Take the first message off."""
        message = self._messages.popleft()
        self.size -= len(message)
        return message

    def consume(self, count: int) -> None:
        """Take the first `count` bytes off."""
        self.size -= count
        while count:
            first = self._messages[0]
            if count < len(first):
                self._messages[0] = memoryview(first)[count:]
                return
            count -= len(first)
            self._messages.popleft()

    def clear(self) -> None:
        """Drop everything."""
        self._messages.clear()
        self.size = 0


class Memory:
    """Bytes buffered over all connections: blocked output and input not delivered. Safe from any thread; its lock is a leaf.

    Above the limit nobody reads. Who wanted to is remembered, and told when the total is back under the limit.

    Attributes:
        total: bytes now.
        pauses: times that the total went over the limit.
    """

    __slots__ = ("_limit", "_lock", "_on_excess", "_resume", "_waiting", "pauses", "total")

    def __init__(self, limit: int, resume: Callable[[int], None], on_excess: Callable[[], None]) -> None:
        """Args:
        limit: bytes.
        resume: called with the token of each connection that may read again.
        on_excess: called by `add` whenever the total is over the limit.
        """
        self._lock = threading.Lock()
        self._limit = limit
        self._resume = resume
        self._on_excess = on_excess
        self._waiting: set[int] = set()
        self.total = 0
        self.pauses = 0

    def add(self, count: int) -> None:
        """Count `count` bytes more, or fewer when it is negative."""
        if not count:
            return
        with self._lock:
            was_over = self.total > self._limit
            self.total += count
            over = self.total > self._limit
            self.pauses += over and not was_over
            waiting: set[int] = set()
            if not over and self._waiting:
                waiting, self._waiting = self._waiting, waiting
        if over:
            self._on_excess()
        for token in waiting:
            self._resume(token)

    def is_over(self) -> bool:
        """Whether the total is over the limit."""
        return self.total > self._limit

    def must_wait(self, token: int) -> bool:
        """Whether the connection of `token` may not read now; then it is resumed later."""
        if not self.is_over():
            return False
        with self._lock:
            if not self.is_over():
                return False
            self._waiting.add(token)
            return True
