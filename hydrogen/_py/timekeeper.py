"""The timekeeper: one thread for what is due later. Asleep when nothing is; it never runs code of the user's."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

from hydrogen._py import sys


class Timekeeper:
    """Reminders for connections, and the look for slow consumers, which walks over all connections and so is nobody else's to do."""

    def __init__(self, remind: Callable[[int], None], shed: Callable[[], None]) -> None:
        """Args: remind: called with each token that is due. shed: called after `ask_to_shed`."""
        self._remind = remind
        self._shed = shed
        self._changed = threading.Condition()
        self._due: list[tuple[float, int]] = []
        self._asked_to_shed = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="hydrogen-timekeeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, seconds: float, token: int) -> None:
        """Remind of `token` after `seconds`. It may be gone by then."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, token))
            self._changed.notify()

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
                tokens = []
                while self._seconds_left() == 0:
                    tokens.append(heapq.heappop(self._due)[1])
            if shed:
                self._shed()
            for token in tokens:
                self._remind(token)

    def _seconds_left(self) -> float | None:
        """Until the first reminder is due; None: there is none."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
