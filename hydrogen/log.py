"""The rate-limited log of one server: what it has to say to its operator, at a rate that fills no
disk.

Lines are of *kinds*; of each kind at most `LINES` are written in one second (of those in `SELDOM`
one in so many seconds), the rest are counted, and the count is written with the next line, or when
the second is over. So a handler that raises for each message costs a bounded number of lines, and
nothing is left out silently. What both engines have to say has its words, kind and level here.
Knows nothing of engines.

Filters, formatters and handlers of logging are code of the user's: they may raise anything, hang,
or call anything of ours, also this log again. No lock of the log is held meanwhile, and nothing
that they raise comes out of here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hydrogen.errors import class_name, is_ctrl_c
from hydrogen.locks import under

if TYPE_CHECKING:
    from hydrogen.connection import HydrogenSocket

log = logging.getLogger("hydrogen")

LINES = 10
"""Lines of one kind in one second."""

ALL_BLOCKED = "all workers blocked"

SELDOM = {ALL_BLOCKED: 10.0}
"""Kind -> seconds in which one line of it is written. That all workers are blocked comes and goes
many times a second, and says the same each time."""


class _Kind:
    """One kind: when its period began, how many lines were written in it, and how many left out."""

    __slots__ = ("began", "left_out", "level", "most", "name", "period", "written")

    def __init__(self, name: str, level: int) -> None:
        self.name = name
        self.level = level
        self.most = 1 if name in SELDOM else LINES
        self.period = SELDOM.get(name, 1.0)
        self.began = float("-inf")
        self.written = 0
        self.left_out = 0


class RateLimitedLog:
    """Writes to the logger `hydrogen`. Safe from any thread, signal handler and `__del__`."""

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        later: calls a function after so many seconds; may raise RuntimeError when there is no
        later.
        clock: seconds.
        """
        self._later = later
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        # Re-entrant, for signal handlers, which may run while it is held (`locks.under` calls a
        # function of Python): others that log wait until they return.
        self._lock = threading.RLock()

    def forked(self) -> None:
        """In the child after fork(2): a thread that exists in the parent only may hold the lock."""
        self._lock = threading.RLock()

    def say(
        self,
        level: int,
        kind: str,
        message: str,
        *arguments: object,
        error: BaseException | None = None,
    ) -> None:
        """Write a line, or count it when too many of its kind have been written in this period.

        Args:
            level: of `logging`.
            kind: of the line; also its name when lines of it are left out.
            message, arguments: as `logging.log` takes them.
            error: to be written with its traceback.
        """
        try:
            if log.isEnabledFor(level):
                self._say(level, kind, message, arguments, error)
        except BaseException as raised:
            _survive(raised)

    def _say(
        self,
        level: int,
        name: str,
        message: str,
        arguments: tuple[object, ...],
        error: BaseException | None,
    ) -> None:
        kind = self._kinds.get(name) or self._kinds.setdefault(name, _Kind(name, level))
        now = self._clock()
        left_out = 0
        first_left_out = False

        def count() -> bool:
            nonlocal left_out, first_left_out
            if now - kind.began >= kind.period:
                kind.began, kind.written = now, 0
                left_out, kind.left_out = kind.left_out, 0
            if kind.written < kind.most:
                kind.written += 1
                return False
            first_left_out = not kind.left_out
            kind.left_out += 1
            return True

        silent = under(self._lock, count)
        self._tell_left_out(kind, left_out)
        if not silent:
            _write(level, message, *arguments, error=error)
        elif first_left_out:
            # the server has stopped, and flushes then
            with contextlib.suppress(RuntimeError):
                self._later(kind.period, self._tell_overdue)

    def serving(self, where: str, engine: str, workers: int, most: int) -> None:
        """The server has started. `where`: the addresses."""
        message = "serving on %s with the %s engine, %d workers, at most %d connections"
        _write(logging.INFO, message, where, engine, workers, most)

    def stopped(self, accepted: int, report: object) -> None:
        """The server has stopped."""
        _write(logging.INFO, "stopped after %d connections: %s", accepted, report)

    def accepted(self, number: int, peername: object) -> None:
        """Connection `number` has begun."""
        self.say(logging.DEBUG, "connection", "connection %d from %r accepted", number, peername)

    def shaken(self, number: int, cipher: object) -> None:
        """The handshake of connection `number` is done."""
        self.say(logging.DEBUG, "handshake", "connection %d: handshake done: %s", number, cipher)

    def removed(self, number: int, error: Exception) -> None:
        """Connection `number` ends because of `error`."""
        self.say(logging.DEBUG, "removal", "connection %d removed: %r", number, error)

    def slow_consumer(self, number: int, peername: object) -> None:
        """Connection `number` ends because its peer does not read."""
        message = "connection %d to %r removed: the peer is not reading what it is sent"
        self.say(logging.WARNING, "slow consumer", message, number, peername)

    def all_blocked(self, workers: int) -> None:
        """No worker is left for those who wait."""
        message = (
            "all %d workers are blocked in callbacks while other connections wait; max_threads may "
            "be too small"
        )
        self.say(logging.WARNING, ALL_BLOCKED, message, workers)

    def accepting_paused(self, most: int | None) -> None:
        """Accepting has paused. `most`: that many connections are open; None: out of fds or
        memory.
        """
        if most is None:
            self.say(
                logging.WARNING,
                "accepting paused",
                "accepting is paused: out of file descriptors or memory",
            )
        else:
            self.say(
                logging.WARNING,
                "accepting paused",
                "accepting is paused: %d connections are open (max_connections)",
                most,
            )

    def accepting(self) -> None:
        """Accepting has resumed."""
        self.say(logging.INFO, "accepting", "accepting has resumed")

    def turned_away(self, count: int) -> None:
        """So many connections in all were turned away as they were accepted."""
        message = (
            "overload: %d connections turned away so far (max_connections, max_connections_per_ip)"
        )
        self.say(logging.WARNING, "overload", message, count)

    def turned_away_from(self, peername: object) -> None:
        """A connection was turned away when its PROXY header named a client that has too many."""
        self.say(
            logging.WARNING,
            "overload",
            "overload: a connection from %r was turned away (max_connections_per_ip)",
            peername,
        )

    def callback_error(
        self, name: str, error: BaseException, socket: HydrogenSocket | None = None
    ) -> None:
        """Write what the callback `name` raised, with its traceback.

        Args:
            socket: the connection that it was called for; the line names it and its peer.
        """
        try:
            kind = class_name(error)
            if socket is None:
                self.say(logging.ERROR, name, "%s raised %s", name, kind, error=error)
            else:
                self.say(
                    logging.ERROR,
                    name,
                    "%s raised %s on %s",
                    name,
                    kind,
                    _named(socket),
                    error=error,
                )
        except BaseException as raised:
            _survive(raised)

    def lost(self, number: int, error: BaseException) -> None:
        """Connection `number` is aborted because of what nobody expects: want of memory, or a fault
        of ours.
        """
        self.say(
            logging.ERROR,
            "lost",
            "connection %d aborted after an unexpected error",
            number,
            error=error,
        )

    def flush(self) -> None:
        """Write how many lines of each kind were left out and not told of yet."""
        self._tell_all(None)

    def _tell_overdue(self) -> None:
        """The same, of the kinds whose period is over."""
        self._tell_all(self._clock())

    def _tell_all(self, now: float | None) -> None:
        for kind in list(self._kinds.values()):
            self._tell_left_out(kind, under(self._lock, partial(_taken, kind, now)) or 0)

    def _tell_left_out(self, kind: _Kind, count: int) -> None:
        if count:
            message = "%s: %d more lines of this kind were suppressed"
            _write(kind.level, message, kind.name, count)


def _taken(kind: _Kind, now: float | None) -> int:
    """How many lines of this kind were left out, which count no more; 0 while its period lasts."""
    left_out = 0
    if now is None or now - kind.began >= kind.period:
        left_out, kind.left_out = kind.left_out, 0
    return left_out


def _write(
    level: int, message: str, *arguments: object, error: BaseException | None = None
) -> None:
    # A triple: logging would ask an exception whether it is true, and for its class.
    shown = None if error is None else (type(error), error, error.__traceback__)
    try:
        log.log(level, message, *[_printable(argument) for argument in arguments], exc_info=shown)
    except BaseException as raised:
        _survive(raised)


def _printable(argument: object) -> object:
    """A path that is no UTF-8 has surrogates, by which a file or a terminal would refuse the
    line.
    """
    if isinstance(argument, str) and not argument.isascii():
        return argument.encode(errors="backslashreplace").decode()
    return argument


def _named(socket: HydrogenSocket) -> str:
    """The connection and its peer, as far as there is memory to ask for them."""
    try:
        return f"connection {socket.id} from {socket.peername!r}"
    except BaseException:
        return "a connection that cannot be identified"


def _survive(error: BaseException) -> None:
    """Write on stderr what came out of logging. An interrupt of the main thread goes on: it is the
    user's Ctrl-C, which only happened to come here."""
    if is_ctrl_c(error):
        raise error
    with contextlib.suppress(BaseException):
        traceback.print_exception(type(error), error, error.__traceback__)
