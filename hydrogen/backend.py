"""Chooses the engine; the only module that knows there are two.

`HYDROGEN_ENGINE` (compiled, python or auto) sets the default, `engine=` of a server overrides it. A
forced engine that cannot be had raises with the reason; the automatic choice falls back and says so
once, so that a broken build is never silently slow.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import EngineUnavailable
from hydrogen.handler import Callbacks
from hydrogen.loops import Loops
from hydrogen.report import BroadcastReport, Stats

if TYPE_CHECKING:
    from hydrogen.server import Server

log = logging.getLogger("hydrogen")

CHOICES = ("compiled", "python", "auto")


class Engine(Protocol):
    """The contract of the two engines, as `Server` uses them. Used for one start and one stop.

    An engine logs by `server.log`, and runs what is due in `server.timers`. DEBUG lines of single
    connections are written if the logger `hydrogen` was enabled for DEBUG when the engine was made.

    Who calls what: `start`, `stop_accepting`, `end`, `close_all`, `wait_drained`, `abort_all`,
    `abandoned`, `unsent` and `release` are called by one thread, the one of `lifecycle.Life`, in
    which no signal handler runs and no KeyboardInterrupt comes. All others may be called by any
    thread at any moment between `start` and the end of the process, also by a signal handler or
    `__del__` that interrupts one of them in its own thread: they wait for no lock which the
    interrupted call may hold.
    """

    def __init__(
        self,
        server: Server,
        callbacks: Callbacks,
        config: Config,
        listeners: Sequence[socket.socket],
        max_connections: int,
    ) -> None:
        """Allocate; nothing runs yet. `server` is what `HydrogenSocket.server` answers."""

    def start(self) -> None:
        """Start the threads: from now on connections are accepted and served.

        When it raises it has released everything: no thread of it runs, no fd is open. For want of
        memory something may be left, for `stop_accepting` and `release` to do.
        """

    def stop_accepting(self) -> None:
        """Accept nothing more; when it returns nothing more is accepted. May be called again, and
        before `start`.
        """

    def suspend(self) -> None:
        """Accept nothing until `resume`; what connects waits in the kernel's backlog. One more may
        be accepted while this is called.
        """

    def resume(self) -> None:
        """Go on accepting."""

    def end(self, socket: HydrogenSocket) -> None:
        """Ask one connection of this engine to end gracefully, as `close_all` does."""

    def close_all(self) -> None:
        """Ask every connection to end gracefully, with `ServerStopped`. After `stop_accepting`.

        Nothing more is read from it. What is under way is finished first: the callback that runs,
        complete messages that were read, the opening callbacks. Then it is closed as by `close`.
        """

    def abort_all(self) -> int:
        """Reset every connection that is still there, with `ServerStopped`, but for those that are
        being reset already or are in their last callbacks; returns how many, over all calls.

        After `stop_accepting`.
        """

    def abandoned(self) -> tuple[int, int]:
        """How many connections are still there, and how many of them `abort_all` has reset. After
        `stop_accepting`.
        """

    def wait_drained(self, timeout: float) -> bool:
        """Wait until no connection is left, at most `timeout` seconds; False when some are. After
        `close_all` or `abort_all`.
        """

    def unsent(self) -> int:
        """Bytes of output pending over all connections, now."""

    def release(self, seconds: float = 1.0) -> int:
        """End the threads; returns how many workers are still in a callback and were left behind.
        Last; again, when it failed.

        Waits for all of them `seconds` at most: each may be kept by code of the user's, by a log
        handler say.
        """

    def in_worker(self) -> bool:
        """Whether the calling thread is one of this engine in which code of the user's may run: a
        worker, who writes the log, and each other one that runs Python, where the collector may
        call a `__del__`.

        May be called before `start`, too.
        """

    def broadcast(self, data: bytes | str, exclude: Collection[HydrogenSocket]) -> BroadcastReport:
        """Send `data` to every open connection but those of `exclude`: framed once for each
        framing, its bytes shared.
        """

    def set_alarm(self, when: float) -> None:
        """Have a worker call `server.timers.run_due` at the monotonic time `when`, in seconds.

        An earlier alarm that stands is kept. From any thread, also from within `run_due`. An alarm
        rings once.
        """

    def running(self) -> list[tuple[int, int]]:
        """For each worker that is in a callback now: its `threading.get_ident`, and a number that
        is another one in each callback.
        """

    def connections(self) -> list[HydrogenSocket]:
        """A snapshot of the connections that are open."""

    def stats(self) -> Stats:
        """Counters, summed now. Also after `release`."""

    def reload_tls(self, context: ssl.SSLContext) -> None:
        """Use `context` for connections accepted from now on. Only when `Config.ssl` was given."""

    def forked(self) -> None:
        """Called in the child after fork(2): this engine must not act any more, its threads exist
        in the parent only.

        Takes no lock, which such a thread may hold, and closes the child's copies of the engine's
        fds.
        """


def _import_compiled() -> Any:
    try:
        from hydrogen._core import Engine as CompiledEngine
    except ImportError as error:
        hint = ""
        if error.name == "hydrogen._core":
            hint = (
                "; it is built when hydrogen is installed, and in the source tree by `make build`"
            )
        raise EngineUnavailable(f"the compiled engine cannot be imported: {error}{hint}") from error
    return CompiledEngine


_default: str | None = None


def default_engine() -> str:
    """Name of the default engine: `"compiled"` or `"python"`.

    Raises:
        ValueError: `HYDROGEN_ENGINE` is none of the choices.
        EngineUnavailable: it is `compiled`, which cannot be imported.
    """
    global _default
    choice = os.environ.get("HYDROGEN_ENGINE") or "auto"  # an empty variable is one that is not set
    if choice not in CHOICES:
        raise ValueError(f"HYDROGEN_ENGINE: must be one of {', '.join(CHOICES)}, not {choice!r}")
    if choice == "compiled":
        _import_compiled()
    if choice != "auto":
        return choice
    if _default is None:
        try:
            _import_compiled()
            _default = "compiled"
        except EngineUnavailable as error:
            log.warning("using the Python engine, which is slower: %s", error)
            _default = "python"
    return _default


def engine_class(name: str | None) -> tuple[str, type[Engine]]:
    """The name and the class of the engine called `name`; None or `"auto"`: the default one.

    Raises:
        ValueError: no engine has that name.
        EngineUnavailable: the compiled one was named and cannot be imported.
    """
    if name is not None and name not in CHOICES:
        raise ValueError(f"engine: must be one of {', '.join(CHOICES)}, not {name!r}")
    if name is None or name == "auto":
        name = default_engine()
    if name == "compiled":
        return name, _import_compiled()
    from hydrogen._py.loop import Engine as PythonEngine

    return name, PythonEngine


def make_engine(
    chosen: type[Engine],
    server: Server,
    callbacks: Callbacks,
    config: Config,
    listeners: Sequence[socket.socket],
    max_connections: int,
) -> Engine:
    """An engine of the class `chosen`, or, for `Config.loops` of the compiled one, several of it as
    one.
    """
    if config.loops > 1 and server.engine == "compiled":
        return Loops(cast(Any, chosen), server, callbacks, config, listeners, max_connections)
    return chosen(server, callbacks, config, listeners, max_connections)
