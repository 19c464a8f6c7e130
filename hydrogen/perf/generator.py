"""Opens the connections, chooses a hot loop, and walks it through warm-up, measurement and draining."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from hydrogen.perf import _generator_py
from hydrogen.perf.framing import FRAMINGS, Shape
from hydrogen.perf.tunnel import Tunnel, client_context

try:
    from hydrogen.perf import _generator
except ImportError as error:
    COMPILED: type[HotLoop] | None = None
    NOT_COMPILED = str(error)
else:
    COMPILED = _generator.Loop
    NOT_COMPILED = ""

Address = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""


class HotLoop(Protocol):
    """What the two hot loops have in common.

    They run over sockets that are connected and non-blocking and stay the caller's. ``run`` and ``drain`` belong to one
    thread; ``stop``, ``messages`` and ``counters`` may be called from others meanwhile.
    """

    def __init__(
        self,
        fds: Sequence[int],
        *,
        shape: Shape,
        depth: int,
        burst: bool,
        seed: int,
        stall: float,
        tunnels: Sequence[Tunnel] = (),
        churn: bool = False,
    ) -> None:
        """Keep ``depth`` messages of that ``shape`` in flight per socket; with ``tunnels``, one for each socket, over TLS.

        With ``burst`` a connection's ``depth`` messages go out together, and the next ones when all have been answered.
        With ``churn`` each reply ends its connection, by RST, and the next message goes over a new one to the same peer (TCP only).
        ``seed`` varies the content. After ``stall`` seconds in which nothing at all arrives, every connection that owes
        a reply is given up.
        """

    def run(self, seconds: float, number: int = 0) -> None:
        """Send and receive for ``seconds``, or, with a ``number``, until that many messages have been answered."""

    def drain(self) -> None:
        """Send nothing new and wait until all that is in flight has been answered."""

    def stop(self) -> None:
        """Make ``run`` or ``drain`` return soon, now and in future."""

    def reset(self) -> None:
        """Forget what was counted, but not the faults: those of the warm-up matter as much."""

    @property
    def messages(self) -> int:
        """Replies verified since the last reset."""

    def counters(self) -> dict[str, int]:
        """The fields of :class:`Counters`."""

    def latencies(self) -> list[int]:
        """Counts of the buckets of :mod:`hydrogen.perf.histogram`: nanoseconds from send to verified reply."""

    def bursts(self) -> list[int]:
        """The same, from a burst's first send to its last reply."""


@dataclass(frozen=True)
class Counters:
    """What a hot loop counts. The first five since the last reset, the rest since the beginning."""

    messages: int
    received: int
    """bytes, with framing"""
    longest_ns: int
    elapsed_ns: int
    cpu_ns: int
    """of the loop's thread"""
    live: int
    """connections still in use"""
    wrong: int
    """replies that differ from what was sent; their connections were dropped"""
    closed: int
    """connections that the server ended"""
    failed: int
    """connections lost to an error"""
    unanswered: int
    """messages whose connection was lost or given up before the reply came"""
    wrong_connection: int
    wrong_message: int
    wrong_byte: int
    """where the first wrong reply was"""
    first_errno: int

    @property
    def faults(self) -> int:
        """The sum of everything that must not happen."""
        return self.wrong + self.closed + self.failed + self.unanswered


@dataclass(frozen=True)
class Options:
    """What to run against which server; the command line's options, checked."""

    address: Address
    connections: int = 64
    in_flight: int = 1
    burst: bool = False
    churn: bool = False
    size: int = 64
    framing: str = "raw"
    duration: float = 5.0
    warm_up: float = 1.0
    number: int = 0
    timeout: float = 10.0
    tls: bool = False
    cacert: str | None = None
    """a file of certificate authorities, for the system's"""
    insecure: bool = False
    """the server's certificate is not verified"""
    pid: int | None = None
    loop: str = "auto"

    def __post_init__(self) -> None:
        for name, good in {
            "connections": self.connections >= 1,
            "in_flight": 1 <= self.in_flight <= 1 << 24,
            "churn": not self.churn or not (isinstance(self.address, str) or self.tls or self.burst or self.in_flight > 1),
            "framing": self.framing in FRAMINGS,
            "size": self.framing in FRAMINGS and self.size in FRAMINGS[self.framing][1],
            "duration": self.duration > 0,
            "warm_up": self.warm_up >= 0,
            "number": self.number >= 0,
            "timeout": self.timeout > 0,
            "cacert": self.cacert is None or (self.tls and not self.insecure),
            "insecure": self.tls or not self.insecure,
            "loop": self.loop in ("auto", "compiled", "python"),
        }.items():
            if not good:
                raise ValueError(f"{name} may not be {getattr(self, name)!r}")

    @property
    def shape(self) -> Shape:
        """The messages on the wire."""
        return FRAMINGS[self.framing][0](self.size)


@dataclass(frozen=True)
class Result:
    """A finished or interrupted measurement."""

    options: Options
    loop: str
    """"compiled" or "python"""
    counters: Counters
    """as they stood at the end of the measurement, with the faults of the whole run"""
    latencies: Sequence[int]
    bursts: Sequence[int]
    connect_failures: int
    connect_error: str
    """the first failure's reason"""
    tls: str
    """protocol version and cipher of the first connection; empty without TLS"""
    server_cpu: float | None
    """seconds, user and system, that the server's process used meanwhile"""
    interrupted: bool

    @property
    def ok(self) -> bool:
        return not (self.connect_failures or self.counters.faults)


def choose_loop(wanted: str) -> tuple[str, type[HotLoop]]:
    """The name and class of the hot loop; ``wanted`` is "auto", "compiled" or "python"."""
    if wanted == "python" or (wanted == "auto" and COMPILED is None):
        return "python", _generator_py.Loop
    if COMPILED is None:
        raise RuntimeError(f"the compiled loop is not there: {NOT_COMPILED}")
    return "compiled", COMPILED


def cpu_seconds(pid: int) -> float | None:
    """User and system time that process ``pid`` has used so far; None when there is no such process."""
    try:
        import psutil
    except ImportError as error:
        raise RuntimeError(f"a process's CPU time needs psutil: {error}") from error
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def connect(address: Address, timeout: float) -> socket.socket:
    """A connected socket with that timeout."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
    else:
        sock = socket.create_connection(address, timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Session:
    """The connections to one server and the hot loop over them; a context manager that closes them.

    ``run`` is the whole of a measurement. Whoever needs its steps one by one (to attach a tracer between warm-up and
    measurement, or to look at a server whose connections are idle) uses ``loop`` between ``connect`` and ``close``.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.phase = "connecting"
        self.stopped = False
        self.connect_failures = 0
        self.connect_error = ""
        self.loop_name, self._loop_class = choose_loop(options.loop)
        if options.pid is not None and self._server_cpu() is None:
            raise RuntimeError(f"there is no process {options.pid}")
        self._context: ssl.SSLContext | None = None
        if options.tls:
            try:
                self._context = client_context(options.cacert, options.insecure)
            except OSError as error:
                raise RuntimeError(f"{options.cacert}: {error}") from error
        self._sockets: list[socket.socket] = []
        self._tunnels: list[Tunnel] = []
        self._loop: HotLoop | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def loop(self) -> HotLoop:
        """The hot loop; there is one from the end of ``connect``."""
        assert self._loop is not None, "not connected"
        return self._loop

    def connect(self) -> None:
        """Open the connections, counting those that fail."""
        options = self.options
        for _ in range(options.connections):
            try:
                self._open()
            except OSError as error:
                self.connect_failures += 1
                self.connect_error = self.connect_error or str(error)
        self._loop = self._loop_class(
            [sock.fileno() for sock in self._sockets],
            shape=options.shape,
            depth=options.in_flight,
            burst=options.burst,
            seed=random.getrandbits(32),
            stall=options.timeout,
            tunnels=self._tunnels,
            churn=options.churn,
        )

    def _open(self) -> None:
        address, timeout = self.options.address, self.options.timeout
        sock = connect(address, timeout)
        try:
            if self._context is not None:
                tunnel = Tunnel(self._context, "localhost" if isinstance(address, str) else address[0])
                tunnel.handshake(sock, timeout)
                self._tunnels.append(tunnel)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        self._sockets.append(sock)

    def run(self) -> Result:
        """Warm up, measure, and see that nothing remains unanswered."""
        options, loop = self.options, self.loop
        self.phase = "warm-up"
        if options.warm_up:
            loop.run(options.warm_up)
        if options.number:
            loop.drain()  # an exact number is counted from an empty window to an empty window
        loop.reset()
        self.phase = "measuring"
        cpu_before = self._server_cpu()
        loop.run(options.duration, options.number)
        cpu_after = self._server_cpu()
        measured, latencies, bursts = loop.counters(), loop.latencies(), loop.bursts()
        self.phase = "draining"
        if not self.stopped:
            loop.drain()
        faults = loop.counters()
        since_reset = ("messages", "received", "longest_ns", "elapsed_ns", "cpu_ns")
        return Result(
            options=options,
            loop=self.loop_name,
            counters=Counters(**{**faults, **{name: measured[name] for name in since_reset}}),
            latencies=latencies,
            bursts=bursts,
            connect_failures=self.connect_failures,
            connect_error=self.connect_error,
            tls=self._tunnels[0].describe() if self._tunnels else "",
            server_cpu=None if cpu_before is None or cpu_after is None else cpu_after - cpu_before,
            interrupted=self.stopped,
        )

    def _server_cpu(self) -> float | None:
        return None if self.options.pid is None else cpu_seconds(self.options.pid)

    def stop(self) -> None:
        """End ``run`` early, from another thread; what it has is then a partial result."""
        self.stopped = True
        self.loop.stop()

    def close(self) -> None:
        """Close all connections, and the hot loop's epoll instance with the loop."""
        self._loop = None
        for sock, tunnel in zip(self._sockets, self._tunnels, strict=False):
            with contextlib.suppress(OSError):
                sock.send(tunnel.unsent + tunnel.close())
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.close()
        self._sockets.clear()
        self._tunnels.clear()
