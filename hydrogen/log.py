"""The rate-limited log of one server: what it has to say to its operator, at a rate that fills no disk.

Lines are of *kinds*; of each kind at most `LINES` are written in one second, the rest are counted, and the count is written with the next
line, or a second later. So a handler that raises for each message costs a bounded number of lines, and nothing is left out silently. What
both engines have to say has its words, kind and level here. Knows nothing of engines.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger("hydrogen")

LINES = 10
"""Lines of one kind in one second."""


class _Kind:
    """One kind: when its second began, how many lines were written in it, and how many were left out."""

    __slots__ = ("began", "left_out", "level", "written")

    def __init__(self, level: int) -> None:
        self.level = level
        self.began = 0.0
        self.written = 0
        self.left_out = 0


class RateLimitedLog:
    """Writes to the logger `hydrogen`. Safe from any thread; nothing is logged while its lock is held."""

    def __init__(self, later: Callable[[float, Callable[[], None]], object], clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        later: calls a function after so many seconds; may raise RuntimeError when there is no later.
        clock: seconds.
        """
        self._later = later
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}

    def say(self, level: int, kind: str, message: str, *arguments: object, error: BaseException | None = None) -> None:
        """Write a line, or count it when too many of its kind have been written in this second.

        Args:
            level: of `logging`.
            kind: of the line; also its name when lines of it are left out.
            message, arguments: as `logging.log` takes them.
            error: to be written with its traceback.
        """
        if not log.isEnabledFor(level):
            return
        with self._lock:
            entry = self._kinds.setdefault(kind, _Kind(level))
            now = self._clock()
            left_out = 0
            if now - entry.began >= 1:
                entry.began, entry.written = now, 0
                left_out, entry.left_out = entry.left_out, 0
            silent = entry.written >= LINES
            first_left_out = silent and not entry.left_out
            entry.left_out += silent
            entry.written += not silent
        self._tell_left_out(level, kind, left_out)
        if not silent:
            _write(level, message, *arguments, error=error)
        elif first_left_out:
            with contextlib.suppress(RuntimeError):  # the server stops, and flushes at the end of that
                self._later(1.0, self.flush)

    def accepted(self, number: int, peername: object) -> None:
        """Connection `number` has begun."""
        self.say(logging.DEBUG, "connection", "connection %d from %s accepted", number, peername)

    def shaken(self, number: int, cipher: object) -> None:
        """The handshake of connection `number` is done."""
        self.say(logging.DEBUG, "handshake", "connection %d: handshake done: %s", number, cipher)

    def removed(self, number: int, error: Exception) -> None:
        """Connection `number` ends because of `error`."""
        self.say(logging.DEBUG, "removal", "connection %d removed: %r", number, error)

    def slow_consumer(self, number: int, peername: object) -> None:
        """Connection `number` ends because its peer does not read."""
        message = "connection %d to %s removed: the peer does not read what is sent to it"
        self.say(logging.WARNING, "slow consumer", message, number, peername)

    def all_blocked(self, workers: int) -> None:
        """No worker is left for those who wait."""
        message = "all %d workers are blocked in callbacks, and other connections wait; max_threads may be too small"
        self.say(logging.WARNING, "all workers blocked", message, workers)

    def accepting_paused(self, most: int | None) -> None:
        """Accepting has paused. `most`: that many connections are open; None: for want of something."""
        if most is None:
            self.say(logging.WARNING, "accepting paused", "accepting is paused: no file descriptors or memory left")
        else:
            self.say(logging.WARNING, "accepting paused", "accepting is paused: %d connections are open (max_connections)", most)

    def accepting(self) -> None:
        """Accepting goes on."""
        self.say(logging.INFO, "accepting", "accepting goes on")

    def turned_away(self, count: int) -> None:
        """So many connections in all were turned away as they were accepted."""
        message = "overload: %d connections in all were turned away (max_connections, max_connections_per_ip)"
        self.say(logging.WARNING, "overload", message, count)

    def turned_away_from(self, peername: object) -> None:
        """A connection was turned away when its PROXY header named a client that has too many."""
        self.say(logging.WARNING, "overload", "overload: a connection from %s was turned away (max_connections_per_ip)", peername)

    def callback_error(self, name: str, error: BaseException) -> None:
        """Write what the callback `name` raised, with its traceback."""
        self.say(logging.ERROR, name, "%s raised %s", name, type(error).__name__, error=error)

    def lost(self, number: int, error: BaseException) -> None:
        """Connection `number` is aborted because of what nobody expects: want of memory, or a fault of ours."""
        self.say(logging.ERROR, "lost", "connection %d is aborted", number, error=error)

    def flush(self) -> None:
        """Write how many lines of each kind were left out and not told of yet."""
        with self._lock:
            left_out = [(entry.level, kind, entry.left_out) for kind, entry in self._kinds.items()]
            for entry in self._kinds.values():
                entry.left_out = 0
        for item in left_out:
            self._tell_left_out(*item)

    def _tell_left_out(self, level: int, kind: str, count: int) -> None:
        if count:
            _write(level, "%s: %d more lines of this kind were left out", kind, count)


def _write(level: int, message: str, *arguments: object, error: BaseException | None = None) -> None:
    """Log, whatever becomes of it: a filter or a handler of the user's that raises must not cost a thread of the engine."""
    try:
        log.log(level, message, *arguments, exc_info=error)
    except Exception:
        traceback.print_exc()
