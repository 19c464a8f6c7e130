"""Throughput over time: how far a measurement had come at some moments of it.

The samples come from a thread that looks at the hot loops' counter now and then, which costs them
nothing. Those of a long measurement are thinned out.
"""

from __future__ import annotations

import threading
import time

POINTS_MOST = 1200


class Series:
    """Moments and counts. One thread begins and ends it, another may add meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._every = self._skipped = 1
        self._points: list[tuple[float, int]] = []

    def begin(self) -> None:
        """The measurement begins now, from 0."""
        with self._lock:
            self._open = True
            self._points = [(time.monotonic(), 0)]

    def add(self, count: int) -> None:
        """Note the count of this moment, while the measurement goes on."""
        with self._lock:
            self._skipped += 1
            if not self._open or self._skipped < self._every:
                return
            self._skipped = 0
            self._points.append((time.monotonic(), count))
            if len(self._points) > POINTS_MOST:
                self._points = self._points[::2]
                self._every *= 2

    def end(self, count: int) -> None:
        """The measurement is over, and has come to ``count``."""
        with self._lock:
            self._open = False
            self._points.append((time.monotonic(), count))

    def rates(self) -> tuple[list[float], list[float]]:
        """The seconds since the beginning at which each stretch ended, and what was counted per
        second in it.
        """
        stretches = [
            (after - self._points[0][0], (count - before_count) / (after - before))
            for (before, before_count), (after, count) in zip(
                self._points, self._points[1:], strict=False
            )
            if after > before
        ]
        return [seconds for seconds, _ in stretches], [rate for _, rate in stretches]
