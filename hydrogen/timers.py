"""Timers: what `Server.call_later` was asked for, in the order in which it is due. The engine says when; a worker of its runs them.

An engine keeps one *alarm*: the time at which a worker is to call `run_due`. Invariant: while a timer stands, the alarm is set to its time
or an earlier one. `add` sets it; who takes a timer out of the heap sets it for the next one, before the callback, so that a callback that
blocks delays itself only.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from hydrogen.log import RateLimitedLog


class Timer:
    """A call that is due later; see `Server.call_later`."""

    __slots__ = ("_callback", "_lock", "_on_cancel")

    def __init__(self, callback: Callable[[], object], on_cancel: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._callback: Callable[[], object] | None = callback
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """Do not call. Safe from any thread; False when it has been called, or is being called now, or was cancelled before."""
        cancelled = self._take() is not None
        if cancelled:
            self._on_cancel()
        return cancelled

    def _take(self) -> Callable[[], object] | None:
        """The callback, for whoever asks first."""
        with self._lock:
            callback, self._callback = self._callback, None
            return callback


class Timers:
    """The timers of one server. Safe from any thread; its lock is a leaf."""

    def __init__(self, log: RateLimitedLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0  # in the heap, at most

    def add(self, when: float, callback: Callable[[], object], set_alarm: Callable[[float], None]) -> Timer:
        """Have `callback` called at the monotonic time `when`, in seconds. `set_alarm`: of the engine, see `backend.Engine`."""
        timer = Timer(callback, self._on_cancel)
        with self._lock:
            heapq.heappush(self._heap, (when, next(self._numbers), timer))
        set_alarm(when)
        return timer

    def _on_cancel(self) -> None:
        """Drop what was cancelled when it is more than half: a timeout that is set and cancelled for each message must not pile up."""
        with self._lock:
            self._cancelled += 1
            if 2 * self._cancelled > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2]._callback is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def run_due(self, set_alarm: Callable[[float], None]) -> None:
        """Run the first timer that is due, if one is, and see that the next one is not forgotten. By a worker; what it raises is logged."""
        now = time.monotonic()
        callback = None
        with self._lock:
            while self._heap and self._heap[0][0] <= now and callback is None:
                callback = heapq.heappop(self._heap)[2]._take()
            following = self._heap[0][0] if self._heap else None
        if following is not None:
            set_alarm(following)
        if callback is not None:
            try:
                callback()
            except BaseException as error:
                self._log.callback_error("call_later", error)
