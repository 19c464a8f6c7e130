"""What threads share without waiting for each other.

A signal handler runs between any two bytecodes of the main thread, `__del__` and weakref callbacks
in any thread, and all of them may call any method of ours, or wait for a lock of the user's that
is held by a thread which calls us. So nothing that such a call can reach is guarded by a lock that
anybody waits for. Work is left where somebody finds it, in a deque, and then done by whoever gets
the *role*; who does not get it leaves, for the holder looks again after giving it back.

An asynchronous exception (`KeyboardInterrupt` of the main thread, or what a timeout library sets)
comes between any two bytecodes, too. So what changes hands does so inside one call of C code, into
a deque that the caller's `finally` looks at.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

_NOT_BLOCKING = (False,)


class Role:
    """A lock that nobody waits for.

    It knows who has it from the call of C code on in which that one got it: a signal handler must
    not wait for what its own thread holds.
    """

    __slots__ = ("_is_taken", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_taken = False

    def run(self, work: Callable[[], object]) -> bool:
        """Do `work` in the role; False when somebody else is in it, or this thread further out."""
        taken: deque[bool] = deque()
        try:
            if self._lock._is_owned():  # type: ignore[attr-defined]
                return False
            taken.extend(map(self._lock.acquire, _NOT_BLOCKING))
            if not taken[0]:
                return False
            self._is_taken = True
            work()
            return True
        finally:
            if taken and taken[0]:
                self._is_taken = False
                self._lock.release()

    def is_taken(self) -> bool:
        """Whether somebody is in the role. A hint."""
        return self._is_taken

    def is_mine(self) -> bool:
        """Whether the calling thread is in the role, further out."""
        # As threading.Condition asks.
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]


class Total:
    """A number that any thread adds to."""

    __slots__ = ("_changes", "_role", "value")

    def __init__(self) -> None:
        self._changes: deque[int] = deque()
        self._role = Role()
        self.value = 0

    def add(self, count: int) -> None:
        """Add `count`, which may be negative."""
        self._changes.append(count)
        while self._changes and self._role.run(self._sum):
            pass

    def _sum(self) -> None:
        while self._changes:
            value = self.value + self._changes[0]
            self._changes.popleft()
            self.value = value


class Waiters:
    """Threads that wait until something is true. Waking takes no lock that anybody waits for."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[threading.Lock] = deque()

    def wait_for(self, condition: Callable[[], object], timeout: float | None) -> bool:
        """Wait until `condition()`, asked again after each `wake`; False after `timeout` seconds.

        Who makes the condition true calls `wake` afterwards. A waiter is in the deque before it
        asks: either it sees the condition, or the other one sees the waiter.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            asleep = threading.Lock()
            asleep.acquire()
            self._waiting.append(asleep)
            try:
                if condition():
                    return True
                left = threading.TIMEOUT_MAX if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                asleep.acquire(timeout=min(left, threading.TIMEOUT_MAX))
            finally:
                if asleep in self._waiting:
                    self._forget(asleep)

    def wake(self) -> None:
        """Have all who wait look again."""
        try:
            while self._waiting:
                self._waiting.popleft().release()
        except IndexError:  # another thread wakes them, too
            return

    def _forget(self, asleep: threading.Lock) -> None:
        try:
            self._waiting.remove(asleep)
        except ValueError:  # it is being woken
            return
