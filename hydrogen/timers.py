"""Timers: what `Server.call_later` was asked for, in the order in which it is due. The engine says
when; a worker of its runs them.

An engine keeps one *alarm*: the time at which a worker is to call `run_due`. Invariant: while a
timer stands, the alarm is set to its time or an earlier one. `add` sets it; who takes a timer out
sets it for the next one, before the callback, so that a callback that blocks delays itself only.

`add` and `cancel` may be called at any moment, also by a signal handler or `__del__` that
interrupts one of the functions here in its own thread. So they do nothing but single operations of
a dict and a deque, each of which is one step. The heap is for workers only, one at a time: it is in
`_sorting`.
"""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from collections import deque
from collections.abc import Callable

from hydrogen.locks import under
from hydrogen.log import RateLimitedLog

SLACK = 64
"""Timers that were cancelled and are not dropped yet, beside as many as stand."""

RETRY = 0.1
"""Seconds until the timers are looked at again after a look that failed, for want of memory."""


class Timer:
    """A call that is due later; see `Server.call_later`."""

    __slots__ = ("_timers",)

    def __init__(self, timers: Timers) -> None:
        self._timers = timers

    def cancel(self) -> bool:
        """Cancel the call. Safe in any thread, and in any signal handler or `__del__`.

        Returns:
            False if it was already called or cancelled, or is being called now.
        """
        return self._timers.cancel(self)


class Timers:
    """The timers of one server. Safe from any thread."""

    def __init__(self, log: RateLimitedLog) -> None:
        self._log = log
        self._standing: dict[Timer, Callable[[], object]] = {}  # who takes one out may call it
        self._added: deque[tuple[float, Timer]] = deque()  # not in the heap yet
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0  # of those in the heap: of two that are due at once the first comes first
        self._sorting = threading.Lock()  # nobody waits for it: see run_due
        self._missed = False  # somebody found it taken
        self._is_over = False
        # when the alarm is to ring next, as who sorted last has found
        self._following: float | None = None
        self._set_alarm: Callable[[float], None] = _no_alarm

    def add(
        self, when: float, callback: Callable[[], object], set_alarm: Callable[[float], None]
    ) -> Timer:
        """Have `callback` called at the monotonic time `when`, in seconds.

        Args:
            set_alarm: of the engine, see `backend.Engine`.
        """
        timer = Timer(self)
        self._set_alarm = set_alarm
        self._standing[timer] = callback
        try:
            self._added.append((when, timer))
            set_alarm(when)
        except BaseException:
            self._standing.pop(timer, None)
            raise
        return timer

    def end(self) -> None:
        """The server has stopped: what was not called never is."""
        self._is_over = True

    def cancel(self, timer: Timer) -> bool:
        """See `Timer.cancel`."""
        if self._standing.pop(timer, None) is None:
            return False
        # A timeout that is set and cancelled for each message must not pile up. A worker drops
        # them: this may be the main thread, where an interrupt could leave the work half done.
        if len(self._heap) + len(self._added) > 2 * len(self._standing) + SLACK:
            self._set_alarm(time.monotonic())
        return True

    def run_due(self, set_alarm: Callable[[float], None]) -> None:
        """Run the first timer that is due, if one is, and see that the next one is not forgotten.

        By a worker. What a timer raises is logged. One that was taken out is called, whatever comes
        out of setting the alarm for the next one.

        While another worker does this, nothing: that one looks at `_missed` when it is done, and
        has the alarm rung once more. Either it sees `_missed`, or it was done before it was set,
        and then the lock was free.

        Another thread may have an exception raised in here (PyThreadState_SetAsyncExc). It comes
        when a call of C code has returned, or a function of Python begins. It may leave this
        function: then it is to be called again.
        """
        taken: list[Callable[[], object]] = []
        try:
            self._missed = True
            if not under(self._sorting, lambda: self._take_due(taken), wait=False):
                return
            if self._missed:
                set_alarm(time.monotonic())
            elif self._following is not None:
                set_alarm(self._following)
        except BaseException as error:
            set_alarm(time.monotonic() + RETRY)
            self._log.callback_error("call_later", error)
        finally:
            if taken:
                try:
                    # in no function of its own, as it begins an exception could come
                    callback = taken[0]
                    callback()
                except BaseException as error:
                    self._log.callback_error("call_later", error)

    def _take_due(self, taken: list[Callable[[], object]]) -> bool:
        """Take out the first that is due; `_following` is the time of the next one then. With the
        lock. True.

        It is in `taken` before the call of C code that takes it out has returned. It leaves the
        heap
        last: one that does not stand any more is dropped by the next look.
        """
        self._missed = False
        self._sort()
        now = time.monotonic()
        while self._heap and not taken and not self._is_over and self._heap[0][0] <= now:
            with contextlib.suppress(KeyError):  # it was cancelled
                taken.extend(map(self._standing.pop, (self._heap[0][2],)))
            heapq.heappop(self._heap)
        self._following = self._heap[0][0] if self._heap else None
        return True

    def _sort(self) -> None:
        """Move what was added into the heap, without those that were cancelled."""
        while self._added:
            when, timer = self._added[0]
            if timer in self._standing:
                self._number += 1
                heapq.heappush(self._heap, (when, self._number, timer))
            self._added.popleft()
        if len(self._heap) > 2 * len(self._standing) + SLACK:
            heap = [entry for entry in self._heap if entry[2] in self._standing]
            heapq.heapify(heap)
            self._heap = heap


def _no_alarm(when: float) -> None:
    """Before the first timer there is no alarm."""
