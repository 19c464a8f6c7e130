"""Looks at WebSocket connections now and then: which are to be pinged, or have been there for too
long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from hydrogen._py.connection import Connection
from hydrogen._py.monitor import Monitor
from hydrogen.websocket import WebSocket, look_every


class Keepalive:
    """Looks at all of them, in the monitor thread, as long as there are some."""

    def __init__(
        self,
        monitor: Monitor,
        settings: WebSocket | None,
        connections: Callable[[], list[Connection]],
    ) -> None:
        """Args: connections: all that there are."""
        self._connections = connections
        self._look_every = math.inf if settings is None else look_every(settings)
        self._alarm = monitor.alarm(self._look)

    def watch(self) -> None:
        """There is a connection. From any thread."""
        if self._look_every < math.inf:
            self._alarm.set(time.monotonic() + self._look_every)

    def _look(self) -> None:
        now = time.monotonic()
        websockets = [connection.websocket for connection in self._connections()]
        for websocket in websockets:
            if websocket is not None:
                websocket.look_alive(now)
        if any(websockets):
            self.watch()
