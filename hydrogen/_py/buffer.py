"""Buffers: the send queue of one connection, and the account of what all of them hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hydrogen._py.role import Role

BATCH = 64
"""Messages given to one sendmsg(2); the kernel's own limit (UIO_MAXIOV) is 1024, and beyond some
dozens nothing is gained.
"""


class SendQueue:
    """Messages not yet taken by the kernel, in order. Not locked: it belongs to the output side of
    a connection.

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
        """Put `data` at the end; empty only where messages are taken off one by one, by `take`.

        Raises: MemoryError: it is not there.
        """
        size = self.size + len(data)
        self._messages.append(data)
        self.size = size

    def front(self, most: int) -> list[bytes | memoryview]:
        """The first messages, at most so many, still in the queue."""
        return [message for message, _ in zip(self._messages, range(most), strict=False)]

    def take(self) -> None:
        """Take the first message off."""
        self.size -= len(self._messages.popleft())

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


class Share:
    """What one has of the total of a `Memory`, as far as that is added up.

    Attributes:
        size: bytes.
        is_leaving: whether they are as good as gone: see `Memory.leave`.
    """

    __slots__ = ("is_leaving", "size")

    def __init__(self) -> None:
        self.size = 0
        self.is_leaving = False


class Memory:
    """Bytes buffered over all connections: blocked output and input not delivered.

    Safe from any thread, at any moment. Above the limit nobody reads. Who wanted to is remembered,
    and told when the total is back under the limit: who waits adds itself, then looks at the total;
    who lowers the total looks for those who wait afterwards.

    What is about to go does not count towards the limit: a connection that ends at once keeps what
    it has for as long as its callback blocks, and nobody else is to wait for that.

    Attributes:
        total: bytes now: the sum of all shares.
        pauses: times that the total went over the limit.
    """

    __slots__ = (
        "_changes",
        "_leaving",
        "_limit",
        "_on_excess",
        "_resume",
        "_role",
        "_waiting",
        "pauses",
        "total",
    )

    def __init__(
        self, limit: int, resume: Callable[[int], None], on_excess: Callable[[], None]
    ) -> None:
        """Args:
        limit: bytes.
        resume: called with the token of each connection that may read again.
        on_excess: called by `account` whenever the total is over the limit.
        """
        self._role = Role()
        self._changes: deque[tuple[Share, int]] = deque()
        self._limit = limit
        self._resume = resume
        self._on_excess = on_excess
        self._waiting: set[int] = set()
        self.total = 0
        self._leaving = 0  # the sum of the shares that leave
        self.pauses = 0

    def account(self, share: Share, size: int) -> None:
        """Let `share` be `size` bytes. Its holder calls this, one thread at a time; again, when an
        exception kept it from returning.
        """
        self._changes.append((share, size))
        self._catch_up()
        if self.is_over():
            self._on_excess()
        else:
            self._resume_all()

    def _resume_all(self) -> None:
        while self._waiting:
            try:
                token = self._waiting.pop()
            except KeyError:  # another thread resumes them, too
                return
            try:
                self._resume(token)
            except BaseException:
                self._waiting.add(token)
                raise

    def look(self, work: Callable[[], object]) -> bool:
        """Have `work` see the total and all shares as they belong together; False when they are
        being changed.
        """

        def sum_and_look() -> None:
            self._sum()
            work()

        try:
            return self._role.run(sum_and_look)
        finally:
            self._catch_up()
            if not self.is_over():
                self._resume_all()

    def leave(self, share: Share) -> None:
        """Do not count `share` towards the limit any more, whatever it will be. Within `look`."""
        if not share.is_leaving:
            leaving = self._leaving + share.size
            share.is_leaving, self._leaving = True, leaving  # no exception comes between the two

    def _catch_up(self) -> None:
        while self._changes and self._role.run(self._sum):
            pass

    def _sum(self) -> None:
        while self._changes:
            share, size = self._changes[0]
            total, was_over = self.total - share.size + size, self.is_over()
            leaving = self._leaving + (size - share.size if share.is_leaving else 0)
            # no exception comes between them
            share.size, self.total, self._leaving = size, total, leaving
            self._changes.popleft()
            self.pauses += self.is_over() and not was_over

    def is_over(self) -> bool:
        """Whether the total, without what is leaving, is over the limit."""
        return self.total - self._leaving > self._limit

    def must_wait(self, token: int) -> bool:
        """Whether the connection of `token` may not read now; then it is resumed later."""
        if not self.is_over():
            return False
        self._waiting.add(token)
        if self.is_over():
            return True
        self._waiting.discard(token)
        return False
