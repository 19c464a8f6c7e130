"""The monitor thread: one thread for what is due later. Asleep when nothing is; it never runs code
of the user's.

It knows *reminders* of connections, one for each, and *alarms*: a few things that are to be done
once in a while, by whoever sets them.
"""

from __future__ import annotations

import heapq
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hydrogen._py.threads import kept_running

MANY = 1000
"""Requests that may wait for a thread which is asleep: many a connection comes and goes long before
a deadline.
"""

LONGEST_WAIT = 3600.0
"""Seconds; it looks more often than it must, so that no wait is too long for the kernel."""


class Alarm:
    """Something that the monitor thread does when it is due. Made by `Monitor.alarm`."""

    __slots__ = ("_monitor", "action", "when")

    def __init__(self, monitor: Monitor, action: Callable[[], None]) -> None:
        self._monitor = monitor
        self.action = action
        self.when = math.inf  # the monitor thread's

    def set(self, when: float) -> None:
        """Do it at `when`, by the monotonic clock, or earlier: an earlier time that stands is kept.
        It is done once. From any thread.
        """
        self._monitor.ask(self, when)


class Monitor:
    """The thread, the reminders and the alarms. Safe from any thread, at any moment.

    Attributes:
        thread: asleep until something is due.

    What is asked for lies in `_asked`. Who asks for something earlier than the thread will wake up
    rings `_bell`; the thread says when it will (`_until`), and then looks at `_asked` once more:
    one of the two sees the other.

    `_due` says which reminders stand; `_order` is a heap of them, and of some that do not stand any
    more, which are passed over when their time comes. These are at most one more than those that
    stand: many a connection is gone long before its deadline.
    """

    def __init__(self, remind: Callable[[int], None]) -> None:
        """Args: remind: called with each token that is due."""
        self._remind = remind
        self._asked: deque[tuple[Any, float | None]] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._until = -math.inf
        self._due: dict[int, float] = {}
        self._order: list[tuple[float, int]] = []
        self._alarms: list[Alarm] = []
        self._ended = False
        run = kept_running(self._iterate, lambda _: None)
        self.thread = threading.Thread(target=run, name="hydrogen-monitor", daemon=True)

    def alarm(self, action: Callable[[], None]) -> Alarm:
        """A new one, for `action`, which this thread will call. Before `start`."""
        alarm = Alarm(self, action)
        self._alarms.append(alarm)
        return alarm

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def set(self, token: int, when: float) -> None:
        """Remind of `token` at `when`, by the monotonic clock, and not at the time said before."""
        self.ask(token, when)

    def cancel(self, token: int) -> None:
        """Do not remind of `token`; it is gone."""
        self.ask(token, None)

    def ask(self, what: int | Alarm, when: float | None) -> None:
        """Of a token, or of an alarm; None: it is cancelled."""
        self._asked.append((what, when))
        if (when is not None and when < self._until) or len(self._asked) > MANY:
            self._bell.put(None)

    def end(self, patience: float) -> None:
        """End the thread, and wait for that, at most `patience` seconds."""
        self._ended = True
        self._bell.put(None)
        if self.thread.ident is not None:
            self.thread.join(patience)

    def _iterate(self) -> bool:
        """Do what is due, and wait for the next thing; False: the monitor has ended. Whatever is
        raised, what is due stays so.
        """
        self._take_over()
        self._do_what_is_due()
        self._until = self._next()
        if not self._asked and not self._ended:
            left = min(self._until - time.monotonic(), LONGEST_WAIT)
            try:
                if left > 0:
                    self._bell.get(timeout=left)
            except queue.Empty:
                pass
        self._until = -math.inf
        while not self._bell.empty():
            self._bell.get_nowait()
        return not self._ended

    def _take_over(self) -> None:
        """What was asked for."""
        while self._asked:
            what, when = self._asked[0]
            if isinstance(what, Alarm):
                what.when = min(what.when, math.inf if when is None else when)
            elif when is None:
                self._due.pop(what, None)
            else:
                heapq.heappush(self._order, (when, what))
                self._due[what] = when
            self._asked.popleft()
            self._tidy()

    def _next(self) -> float:
        """When the next thing is due."""
        first = self._order[0][0] if self._order else math.inf
        return min([first, *(alarm.when for alarm in self._alarms)])

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        for alarm in self._alarms:
            if alarm.when <= now:
                alarm.action()
                alarm.when = math.inf  # not before: what the action sets lies in `_asked`
        while self._order and self._order[0][0] <= now:
            when, token = self._order[0]
            if self._due.get(token) == when:
                self._remind(token)
                del self._due[token]
            heapq.heappop(self._order)

    def _tidy(self) -> None:
        """Drop what does not stand, when it is more than what does: so each call pays for few."""
        if len(self._order) > 2 * len(self._due) + 1:
            self._order = [(when, token) for token, when in self._due.items()]
            heapq.heapify(self._order)
