"""What does not move: output of which the peer takes nothing, and workers that are all in
callbacks. The monitor thread looks at both.

Neither looks at what moves: output is watched only while it is blocked, and workers only since all
of them were busy.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from hydrogen._py.connection import Connection
from hydrogen._py.monitor import Alarm, Monitor
from hydrogen._py.output import Output
from hydrogen._py.worker import Pool

TICKS = 5
"""Looks at which all workers are in the same callbacks, until that is told."""

TICK = 0.01
"""Seconds between two looks at workers that are all busy: two switch intervals of the interpreter,
so that who computes gets on.
"""


class StalledOutput:
    """Connections whose output is blocked, for `write_timeout`. Invariant: while there are some,
    the alarm is set.
    """

    def __init__(self, monitor: Monitor, timeout: float | None, look_every: float) -> None:
        """Args: look_every: seconds that progress may be seen late."""
        self._timeout = math.inf if timeout is None else timeout
        self._look_every = look_every
        self._new: deque[Output] = deque()
        self._watched: list[Output] = []  # the monitor thread's
        self._alarm: Alarm = monitor.alarm(self._look)

    def watch(self, connection: Output) -> None:
        """Look at `connection` until it says that there is nothing to see. It asks once. From any
        thread.
        """
        self._new.append(connection)
        self._alarm.set(time.monotonic() + self._look_every)

    def _look(self) -> None:
        while self._new:
            self._watched.append(self._new[0])
            self._new.popleft()
        now = time.monotonic()
        still = []
        soonest = now + self._look_every
        for connection in self._watched:
            until = connection.look_at_progress(now, self._timeout)
            if until is not None:
                still.append(connection)
                soonest = min(soonest, until)
        self._watched = still
        if still:
            self._alarm.set(soonest)


class StalledWorkers:
    """Notices that all workers are in the same callbacks for `TICKS` looks, and a connection waits.

    It looks from when a worker finds that all are busy (`begin`) until one is not. No such moment
    is missed: a worker is busy before it looks at `_looking`, which is cleared here before the
    workers are looked at. One look is not enough: a worker that only waits for the GIL, or a
    process that was stopped for a while, has not got on either.

    Attributes:
        times: how often; a time lasts until one of them got on.
    """

    def __init__(
        self,
        monitor: Monitor,
        pool: Pool,
        connections: Callable[[], list[Connection]],
        tell: Callable[[], None],
    ) -> None:
        """Args:
        connections: all that there are.
        tell: called once each time.
        """
        self._pool = pool
        self._connections = connections
        self._tell = tell
        self._alarm: Alarm = monitor.alarm(self._look)
        self._looking = False
        self._seen: list[int] | None = None
        self._ticks = 0
        self._is_told = False
        self.times = 0

    def begin(self) -> None:
        """All workers are busy. By one of them."""
        if not self._looking:
            self._looking = True
            self._alarm.set(time.monotonic() + TICK)

    def _look(self) -> None:
        self._looking = False
        seen, self._seen = self._seen, self._pool.blocked()
        if self._seen is None or self._seen != seen:
            self._ticks = 0
            self._is_told = False
        else:
            self._ticks += 1
            if self._ticks >= TICKS and not self._is_told and self._is_awaited():
                self._is_told = True
                self.times += 1
                self._tell()
        if self._pool.all_are_busy():
            self._looking = True
            self._alarm.set(time.monotonic() + TICK)

    def _is_awaited(self) -> bool:
        """Whether a connection is in the ready queue, where there may be tasks only: one that is
        owned, and by none of the workers, who are all in callbacks.
        """
        if self._pool.ready.empty():
            return False
        held = self._pool.held()
        return any(
            connection.is_owned and connection not in held for connection in self._connections()
        )
