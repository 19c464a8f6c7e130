"""What is counted of connections: how many came, how each went, and what they did."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

from hydrogen._py.slab import Slab
from hydrogen.errors import Cause, Timeout
from hydrogen.locks import under

R = TypeVar("R")

READS = 100
"""Times that `sum` reads the counters again because they were changed meanwhile; in the end by a
call that this one has interrupted.
"""


class Tally:
    """Counters of one connection, added up when it is gone. Each is written by its owner or in the
    role of its output.
    """

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "messages_received",
        "messages_sent",
        "pings_received",
        "pongs_received",
        "reading_pauses",
        "reading_resumes",
    )

    def __init__(self) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.messages_sent = 0
        self.pings_received = 0
        self.pongs_received = 0
        self.reading_pauses = 0
        self.reading_resumes = 0

    def add(self, other: Tally) -> None:
        """Add the counters of `other`."""
        for name in Tally.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Counted(Protocol):
    """What is counted of a connection."""

    token: int
    tally: Tally
    is_counted: bool

    @property
    def cause(self) -> Cause: ...

    @property
    def code(self) -> int: ...


C = TypeVar("C", bound=Counted)


class Changes:
    """A lock for those who change the counters, one after the other. Who reads them takes no lock,
    and looks at the version before and after.

    Attributes:
        version: odd while somebody changes them.
    """

    __slots__ = ("_lock", "version")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.version = 0

    def make(self, change: Callable[[], R]) -> R:
        """What `change` returns, which changes counters. Whatever is raised, the lock is free and
        the version even then: see `locks`.
        """
        return cast(R, under(self._lock, lambda: self._make(change)))

    def _make(self, change: Callable[[], R]) -> R:
        version = self.version + 1
        following = version + 1  # leaving allocates nothing
        try:
            self.version = version
            return change()
        finally:
            self.version = following


class Sum(NamedTuple):
    """All counters, as they were at one moment.

    Attributes:
        connections: how many there are.
        accepted: how many there were.
        removed: how many of those are gone, by cause.
        timed_out: those of `Cause.TIMEOUT`, by kind.
        tally: of all, with those that are gone.
    """

    connections: int
    accepted: int
    removed: Counter[int]
    timed_out: Counter[int]
    tally: Tally


class Statistics(Generic[C]):
    """The counters. A connection that was accepted is always in its slot or counted as removed.

    Attributes:
        accepted, removed: as in `Sum`, now.
    """

    def __init__(self, slab: Slab[C]) -> None:
        self._slab = slab
        self._changes = Changes()
        self._timed_out: Counter[int] = Counter(dict.fromkeys(Timeout, 0))
        self._total = Tally()  # of those that are gone
        self.accepted = 0
        self.removed: Counter[int] = Counter(dict.fromkeys(Cause, 0))

    def sum(self) -> Sum:
        """All of them."""
        for _ in range(READS):
            version = self._changes.version
            tally = Tally()
            connections = self._slab.snapshot()
            tally.add(self._total)
            for connection in connections:
                tally.add(connection.tally)
            removed = self.removed.copy()
            timed_out = self._timed_out.copy()
            accepted = self.accepted
            if version == self._changes.version and not version % 2:
                break
            time.sleep(0)
        return Sum(len(connections), accepted, removed, timed_out, tally)

    def take_in(self, make: Callable[[int, int], C]) -> C:
        """Count one more, and give it a slot: what `make(token, number)` returns."""
        number = self.accepted + 1

        def take() -> C:
            connection = self._slab.acquire(lambda token: make(token, number))
            self.accepted = number
            return connection

        return self._changes.make(take)

    def count_gone(self, cause: Cause) -> None:
        """One was accepted, and is gone before it had a slot."""

        def count() -> None:
            accepted, removed = self.accepted + 1, self.removed[cause] + 1
            self.accepted, self.removed[cause] = accepted, removed

        self._changes.make(count)

    def count_removal(self, connection: C) -> None:
        """One is about to be removed. It has its slot until `take_out`."""
        if connection.cause != Cause.OVERLOAD and not connection.is_counted:
            self._changes.make(lambda: self._count_removal(connection))

    def _count_removal(self, connection: C) -> None:
        cause = connection.cause
        counts, key = (
            (self._timed_out, connection.code) if cause == Cause.TIMEOUT else (self.removed, cause)
        )
        count = counts[key] + 1
        # Nothing is allocated or called from here on, nor is there a jump, see `addresses`: it is
        # counted once.
        counts[key] = count
        connection.is_counted = True

    def take_out(self, connection: C) -> None:
        """One is removed: its slot is given back. May be called again."""
        if self._slab.find(connection.token) is connection:
            self._changes.make(lambda: self._take_out(connection))

    def _take_out(self, connection: C) -> None:
        total, nothing = Tally(), Tally()
        total.add(self._total)
        total.add(connection.tally)
        # which has no callbacks
        is_new = connection.cause == Cause.OVERLOAD and not connection.is_counted
        removed = self.removed[Cause.OVERLOAD] + is_new
        # Nothing is allocated or called until the slot is given back: if that is left, to be done
        # again, this counts nothing then.
        self._total, connection.tally = total, nothing
        self.removed[Cause.OVERLOAD], connection.is_counted = removed, True
        self._slab.release(connection.token)
