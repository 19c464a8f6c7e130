"""The timekeeper: one thread for what is due later. Asleep when nothing is; it never runs code of the user's."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

from hydrogen._py import sys


class Timekeeper:
    """Reminders for connections, one for each, and the look for slow consumers, which walks over all and so is nobody else's to do.

    `_due` says which reminders stand; `_order` is a heap of them, and of some that do not stand any more, which are passed over when their
    time comes. These are at most one more than those that stand: many a connection is gone long before its deadline.
    """

    def __init__(self, remind: Callable[[int], None], shed: Callable[[], None]) -> None:
        """Args: remind: called with each token that is due. shed: called after `ask_to_shed`."""
        self._remind = remind
        self._shed = shed
        self._changed = threading.Condition()
        self._due: dict[int, float] = {}
        self._order: list[tuple[float, int]] = []
        self._asked_to_shed = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="hydrogen-timekeeper", daemon=True)

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

    def ask_to_shed(self) -> None:
        """Have `shed` called soon."""
        with self._changed:
            self._asked_to_shed = True
            self._changed.notify()

    def end(self) -> None:
        """End the thread, and wait for that."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        sys.block_signals()
        while True:
            with self._changed:
                while not (self._ended or self._asked_to_shed or self._seconds_left() == 0):
                    self._changed.wait(self._seconds_left())
                if self._ended:
                    return
                shed, self._asked_to_shed = self._asked_to_shed, False
                tokens = self._take_due()
            if shed:
                self._shed()
            for token in tokens:
                self._remind(token)

    def _seconds_left(self) -> float | None:
        """Until the first of `_order` is due; None: there is none."""
        return max(0.0, self._order[0][0] - time.monotonic()) if self._order else None

    def _take_due(self) -> list[int]:
        """The tokens whose time has come; their reminders stand no more."""
        tokens = []
        while self._seconds_left() == 0:
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
