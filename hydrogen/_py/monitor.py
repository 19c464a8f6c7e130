"""The monitor thread: one thread for what is due later. Asleep when nothing is; it never runs code of the user's.

It knows *reminders* of connections, one for each, and *alarms*: a few things that are to be done once in a while, by whoever sets them.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable

from hydrogen._py import kernel


class Alarm:
    """Something that the monitor thread does when it is due. Made by `Monitor.alarm`."""

    __slots__ = ("_monitor", "action", "when")

    def __init__(self, monitor: Monitor, action: Callable[[], None]) -> None:
        self._monitor = monitor
        self.action = action
        self.when = math.inf  # under the monitor thread's lock

    def set(self, when: float) -> None:
        """Do it at `when`, by the monotonic clock, or earlier: an earlier time that stands is kept. It is done once. From any thread."""
        self._monitor.set_alarm(self, when)


class Monitor:
    """The thread, the reminders and the alarms. Safe from any thread; its lock is a leaf.

    `_due` says which reminders stand; `_order` is a heap of them, and of some that do not stand any more, which are passed over when their
    time comes. These are at most one more than those that stand: many a connection is gone long before its deadline.
    """

    def __init__(self, remind: Callable[[int], None]) -> None:
        """Args: remind: called with each token that is due."""
        self._remind = remind
        self._changed = threading.Condition()
        self._due: dict[int, float] = {}
        self._order: list[tuple[float, int]] = []
        self._alarms: list[Alarm] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="hydrogen-monitor", daemon=True)

    def alarm(self, action: Callable[[], None]) -> Alarm:
        """A new one, for `action`, which this thread will call without a lock. Before `start`."""
        alarm = Alarm(self, action)
        self._alarms.append(alarm)
        return alarm

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def set(self, token: int, when: float) -> None:
        """Remind of `token` at `when`, by the monotonic clock, and not at the time said before."""
        with self._changed:
            self._due[token] = when
            heapq.heappush(self._order, (when, token))
            self._tidy()
            if self._order[0] == (when, token):
                self._changed.notify()

    def cancel(self, token: int) -> None:
        """Do not remind of `token`; it is gone."""
        with self._changed:
            if self._due.pop(token, None) is not None:
                self._tidy()

    def set_alarm(self, alarm: Alarm, when: float) -> None:
        """See `Alarm.set`."""
        with self._changed:
            if when < alarm.when:
                alarm.when = when
                self._changed.notify()

    def end(self) -> None:
        """End the thread, and wait for that."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def is_mine(self) -> bool:
        """Whether the calling thread is the monitor thread."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        kernel.block_signals()
        while True:
            with self._changed:
                while not self._ended and (left := self._next() - time.monotonic()) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                if self._ended:
                    return
                actions, tokens = self._take_alarms(), self._take_due()
            for action in actions:
                action()
            for token in tokens:
                self._remind(token)

    def _next(self) -> float:
        """When the next thing is due."""
        first = self._order[0][0] if self._order else math.inf
        return min([first, *(alarm.when for alarm in self._alarms)])

    def _take_alarms(self) -> list[Callable[[], None]]:
        """What is to be done now; these alarms stand no more."""
        now = time.monotonic()
        ringing = [alarm for alarm in self._alarms if alarm.when <= now]
        for alarm in ringing:
            alarm.when = math.inf
        return [alarm.action for alarm in ringing]

    def _take_due(self) -> list[int]:
        """The tokens whose time has come; their reminders stand no more."""
        now = time.monotonic()
        tokens = []
        while self._order and self._order[0][0] <= now:
            when, token = heapq.heappop(self._order)
            if self._due.get(token) == when:
                del self._due[token]
                tokens.append(token)
        return tokens

    def _tidy(self) -> None:
        """Drop what does not stand, when it is more than what does: so each call pays for few."""
        if len(self._order) > 2 * len(self._due) + 1:
            self._order = [(when, token) for token, when in self._due.items()]
            heapq.heapify(self._order)
