"""Opens the connections, chooses a hot loop, and walks it through warm-up, measurement and
draining.
"""

from __future__ import annotations

import contextlib
import random
import resource
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from hydrogen.perf.idle import answering
from hydrogen.perf.loops import SINCE_RESET, Counters, Histograms, Loops, choose_loop, shares
from hydrogen.perf.opening import Connection, Opener
from hydrogen.perf.options import Options
from hydrogen.perf.series import Series
from hydrogen.perf.tunnel import client_context

SPARE_FDS = 64
"""File descriptors beside those of the connections: epoll instances, standard streams, modules
being loaded.
"""


@dataclass(frozen=True)
class Result:
    """A finished or interrupted measurement."""

    options: Options
    loop: str
    """"compiled" or "python" """
    counters: Counters
    """as they stood at the end of the measurement, with the faults of the whole run"""
    histograms: Histograms
    connects: Sequence[int]
    """a histogram of nanoseconds, as the next: of the connections that were opened before the
    warm-up
    """
    handshakes: Sequence[int]
    """of TLS and WebSocket"""
    series: Series
    connect_failures: int
    connect_error: str
    """the first failure's reason"""
    idle_lost: int
    """idle connections that the server ended"""
    tls: str
    """protocol version and cipher of the first connection; empty without TLS"""
    server_cpu: float | None
    """seconds, user and system, that the server's process used meanwhile"""
    interrupted: bool

    @property
    def ok(self) -> bool:
        """Nothing was wrong, and in an open loop everything was sent."""
        return not (
            self.connect_failures or self.counters.faults or self.idle_lost or self.counters.dropped
        )


def cpu_seconds(pid: int) -> float | None:
    """User and system time that process ``pid`` has used so far; None when there is no such
    process.
    """
    try:
        import psutil
    except ImportError as error:
        raise RuntimeError(f"measuring a process's CPU time needs psutil: {error}") from error
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def need_fds(number: int) -> None:
    """Raise this process's limit of open files to that many and some. RuntimeError where it cannot
    be.
    """
    wanted = number + SPARE_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise RuntimeError(
                f"{number:,} connections need {wanted:,} file descriptors, but this process may "
                f"have only {hard:,}: "
                "use fewer, or raise the hard limit (ulimit -Hn)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Session:
    """The connections to one server and the hot loops over them; a context manager that closes
    them.

    ``run`` is the whole of a measurement. Whoever needs its steps one by one (to attach a tracer
    between warm-up and measurement, or to look at a server whose connections are idle) uses
    ``loops`` between ``connect`` and ``close``.

    ``stop``, ``sample``, ``phase`` and ``loops`` are for other threads too, as long as ``run`` goes
    on.
    """

    def __init__(self, options: Options) -> None:
        """RuntimeError for what this machine does not have: a compiled loop, the process, the
        certificates, enough fds.
        """
        self.options = options
        self.phase = "connecting"
        self.stopped = False
        self.loop_name, self._loop_class = choose_loop(options.loop)
        if options.pid is not None and self._server_cpu() is None:
            raise RuntimeError(f"there is no process {options.pid}")
        need_fds(options.connections + options.idle)
        context: ssl.SSLContext | None = None
        if options.tls:
            try:
                context = client_context(options.cacert, options.insecure)
            except OSError as error:
                raise RuntimeError(f"{options.cacert}: {error}") from error
        self.opener = Opener(options, context)
        self._connections: list[Connection] = []
        self._idle: list[Connection] = []
        self._answering = contextlib.ExitStack()
        self._loops: Loops | None = None
        self._series = Series()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def loops(self) -> Loops:
        """The hot loops; there are some from the end of ``connect`` until ``close``."""
        assert self._loops is not None, "not connected"
        return self._loops

    def connect(self) -> None:
        """Open the connections, the idle ones first, counting those that fail."""
        options = self.options
        self._idle = self.opener.open(options.idle)
        if self._idle and options.websocket is not None:
            self._answering.enter_context(answering(self._idle))
        if not self.opener.failures:
            self._connections = self.opener.open(options.connections)
        counts = shares(len(self._connections), options.threads)
        seed = random.getrandbits(32)
        loops, begin = [], 0
        for index, count in enumerate(counts):
            mine = self._connections[begin : begin + count]
            loops.append(
                self._loop_class(
                    [connection.sock.fileno() for connection in mine],
                    mix=options.mix,
                    depth=options.depth,
                    burst=options.burst,
                    seed=seed + begin,
                    stall=options.timeout,
                    tunnels=[
                        connection.tunnel for connection in mine if connection.tunnel is not None
                    ],
                    churn=options.churn,
                    interval=len(self._connections) / count / options.rate
                    if options.rate and count
                    else 0,
                    phase=index / options.threads,
                    backlog=options.backlog,
                    websocket=options.websocket is not None,
                )
            )
            begin += count
        self._loops = Loops(loops, counts)
        if self.stopped:
            self._loops.stop()

    def run(self) -> Result:
        """Warm up, measure, and see that nothing remains unanswered."""
        options, loops = self.options, self.loops
        self.phase = "warm-up"
        if options.warm_up:
            loops.run(options.warm_up)
        if options.number or options.rate:
            loops.drain()  # both count from an empty window
        loops.reset()
        self._series.begin()
        self.phase = "measuring"
        cpu_before = self._server_cpu()
        loops.run(options.duration, options.number)
        if options.rate and not self.stopped:
            # the last replies are the slowest: to leave them out would flatter the server
            loops.drain()
        cpu_after = self._server_cpu()
        measured, histograms = loops.counters(), loops.histograms()
        self._series.end(measured.messages)
        self.phase = "draining"
        if not self.stopped:
            loops.drain()
        return Result(
            options=options,
            loop=self.loop_name,
            counters=replace(
                loops.counters(), **{name: getattr(measured, name) for name in SINCE_RESET}
            ),
            histograms=histograms,
            connects=self.opener.connects,
            handshakes=self.opener.handshakes,
            series=self._series,
            connect_failures=self.opener.failures,
            connect_error=self.opener.error,
            idle_lost=sum(connection.has_ended() for connection in self._idle),
            tls=next(
                (
                    connection.tunnel.describe()
                    for connection in self._connections
                    if connection.tunnel is not None
                ),
                "",
            ),
            server_cpu=None if cpu_before is None or cpu_after is None else cpu_after - cpu_before,
            interrupted=self.stopped,
        )

    def sample(self) -> None:
        """Note how far the measurement has come; called now and then, for throughput over time."""
        if self.phase == "measuring":
            self._series.add(self.loops.messages)

    def _server_cpu(self) -> float | None:
        return None if self.options.pid is None else cpu_seconds(self.options.pid)

    def stop(self) -> None:
        """End ``connect`` and ``run`` early, from another thread; what there is is then a partial
        result.
        """
        self.stopped = self.opener.stopped = True
        if self._loops is not None:
            self._loops.stop()

    def close(self) -> None:
        """Close all connections, and the hot loops' epoll instances with the loops."""
        self._loops = None
        self._answering.close()
        for connection in self._connections:
            connection.close()
        for connection in self._idle:
            connection.reset()
        self._connections.clear()
        self._idle.clear()
