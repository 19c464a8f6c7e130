"""Locks where an exception may come between any two bytecodes: of a signal handler, or set by
another thread; and what is read without one.
"""

from __future__ import annotations

import contextlib
import threading
from _thread import LockType
from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def under(
    lock: LockType | threading.RLock,
    work: Callable[[], T],
    wait: bool = True,
    seconds: float = -1.0,
) -> T | None:
    """What `work` returns, done under `lock`; None when that is not to be had: not at once, or not
    in so many seconds.

    An exception that comes when the lock was taken must not leave it so. What was taken is in a
    deque before the call of C code that takes it has returned.
    """
    taken: deque[bool] = deque()
    try:
        taken.extend(map(lock.acquire, (wait,), (seconds,)))
        return work() if taken[0] else None
    finally:
        if taken and taken[0]:
            lock.release()


def snapshot(items: deque[T]) -> deque[T]:
    """A copy of what other threads now and then add to and take from.

    With a GIL `copy` is one step. Without one it raises when an item comes or goes meanwhile
    (CPython 3.13).
    """
    while True:
        try:
            return items.copy()
        except RuntimeError:
            pass


def total(items: deque[bytes]) -> int:
    """The bytes of what the caller takes from; others may add to it without rest, so that a
    `snapshot` would never come to an end.
    """
    try:
        return sum(map(len, items.copy()))
    except RuntimeError:
        size = 0
        with contextlib.suppress(IndexError):  # somebody takes back what he has added
            for index in range(len(items)):
                size += len(items[index])
        return size
