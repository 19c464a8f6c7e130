"""Several loops as one engine: for `Config.loops` of the compiled engine.

Each loop is an engine of its own, with its poller, slab, queues, workers and monitor; nothing of a
message is shared between two. Who polls for the first one accepts for all: each connection goes to
the loop that has the fewest, and the limits are those of the server as a whole. A connection is
found by its `HydrogenSocket`, which knows its loop; here is what the server asks of all.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.handler import Callbacks
from hydrogen.report import BroadcastReport, Stats, summed

if TYPE_CHECKING:
    from hydrogen import backend
    from hydrogen.server import Server

    class Engine(backend.Engine, Protocol):
        """A loop: the compiled engine."""

        def exit(self) -> None:
            """Tell the threads to end, and wait for none of them. `release` does so, too, unless it
            was called.
            """

        def framed(self, data: bytes | str) -> bytes:
            """`data` as the server's framing has it on the wire. Raises what that raises."""

        def broadcast(
            self,
            data: bytes | str,
            exclude: Collection[HydrogenSocket],
            wire: bytes | None = None,
        ) -> BroadcastReport:
            """`wire`: what `framed` has made of `data`; None: not yet."""


class Loops:
    """`backend.Engine`, by several compiled ones."""

    def __init__(
        self,
        make: Callable[..., Engine],
        server: Server,
        callbacks: Callbacks,
        config: Config,
        listeners: Sequence[socket.socket],
        max_connections: int,
    ) -> None:
        """Args: make: the class of the engines, which takes the first of them as one more argument.
        The others: see `backend.Engine`.
        """
        self._loops: list[Engine] = []
        try:
            for share in shares(config):
                self._loops.append(
                    make(server, callbacks, share, listeners, max_connections, *self._loops[:1])
                )
        except BaseException:
            self.release()
            raise

    def start(self) -> None:
        """The first one last: it has connections for all. One that does not start has released
        itself; then all are.
        """
        for loop in reversed(self._loops):
            try:
                loop.start()
            except BaseException:
                for other in self._loops:
                    if other is not loop:
                        other.release()
                raise

    def stop_accepting(self) -> None:
        self._loops[0].stop_accepting()

    def suspend(self) -> None:
        self._loops[0].suspend()

    def resume(self) -> None:
        self._loops[0].resume()

    def end(self, socket: HydrogenSocket) -> None:
        self._loops[0].end(socket)

    def close_all(self) -> None:
        for loop in self._loops:
            loop.close_all()

    def abort_all(self) -> int:
        return sum([loop.abort_all() for loop in self._loops])

    def abandoned(self) -> tuple[int, int]:
        every = [loop.abandoned() for loop in self._loops]
        return sum([there for there, _ in every]), sum([reset for _, reset in every])

    def wait_drained(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        return all(loop.wait_drained(max(0.0, deadline - time.monotonic())) for loop in self._loops)

    def unsent(self) -> int:
        return sum([loop.unsent() for loop in self._loops])

    def release(self, seconds: float = 1.0) -> int:
        """All are told before the first one is waited for: none has its time after another one."""
        deadline = time.monotonic() + seconds
        for loop in self._loops:
            loop.exit()
        return sum([loop.release(max(0.0, deadline - time.monotonic())) for loop in self._loops])

    def in_worker(self) -> bool:
        return any(loop.in_worker() for loop in self._loops)

    def broadcast(self, data: bytes | str, exclude: Collection[HydrogenSocket]) -> BroadcastReport:
        wire = self._loops[0].framed(data)
        reports = [loop.broadcast(data, exclude, wire) for loop in self._loops]
        return BroadcastReport(
            sum([report.sent for report in reports]), sum([report.dropped for report in reports])
        )

    def set_alarm(self, when: float) -> None:
        """Timers are the first one's."""
        self._loops[0].set_alarm(when)

    def running(self) -> list[tuple[int, int]]:
        return [found for loop in self._loops for found in loop.running()]

    def connections(self) -> list[HydrogenSocket]:
        return [found for loop in self._loops for found in loop.connections()]

    def stats(self) -> Stats:
        """Each counts the connections that it was given: what holds for the counters of one holds
        for the sum.
        """
        return summed([loop.stats() for loop in self._loops])

    def reload_tls(self, context: ssl.SSLContext) -> None:
        for loop in self._loops:
            loop.reload_tls(context)

    def forked(self) -> None:
        for loop in self._loops:
            loop.forked()


def shares(config: Config) -> list[Config]:
    """What each loop gets of what is the server's: workers, slots and memory.

    The limits that are kept where connections are accepted are not divided.
    """
    workers, more = divmod(config.max_threads, config.loops)
    return [
        dataclasses.replace(
            config,
            loops=1,
            framing=config.builder,
            max_threads=workers + (number < more),
            pre_allocated=config.pre_allocated // config.loops,
            max_buffered=max(1, config.max_buffered // config.loops),
        )
        for number in range(config.loops)
    ]
