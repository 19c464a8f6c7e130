"""The hot loops of a run, each in a thread of its own, as if they were one.

What a hot loop is: two of them exist, and this is their contract.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Protocol

from hydrogen.perf import _generator_py
from hydrogen.perf.framing import Mix
from hydrogen.perf.tunnel import Tunnel

try:
    from hydrogen.perf import _generator
except ImportError as error:
    COMPILED: type[HotLoop] | None = None
    NOT_COMPILED = str(error)
else:
    COMPILED = _generator.Loop
    NOT_COMPILED = ""


class HotLoop(Protocol):
    """What the two hot loops have in common.

    They run over sockets that are connected and non-blocking and stay the caller's. ``run`` and
    ``drain`` belong to one thread; ``stop``, ``messages`` and ``counters`` may be called from
    others meanwhile.
    """

    def __init__(
        self,
        fds: Sequence[int],
        *,
        mix: Mix,
        depth: int,
        burst: bool,
        seed: int,
        stall: float,
        tunnels: Sequence[Tunnel] = (),
        churn: bool = False,
        interval: float = 0,
        phase: float = 0,
        backlog: int = 0,
        websocket: bool = False,
    ) -> None:
        """Keep ``depth`` messages of that ``mix`` in flight per socket; with ``tunnels``, one for
        each socket, over TLS.

        With ``burst`` a connection's ``depth`` messages go out together, and the next ones when all
        have been answered. With ``churn`` each reply ends its connection, by RST, and the next
        message goes over a new one to the same peer (TCP only). ``seed`` varies the content. After
        ``stall`` seconds in which nothing at all arrives, every connection that owes a reply is
        given up.

        With an ``interval``, in seconds, a message is due in each, beginning after ``phase`` of the
        first, over the sockets in turn, whatever has been answered. At most ``depth`` are in flight
        per socket, and at most ``backlog``, or ``depth`` if that is more, wait for being sent or
        answered: what is due beyond that is dropped.

        With ``websocket`` the server's control frames between replies are heeded: a ping is
        answered between two messages, a CLOSE ends the connection.
        """

    def run(self, seconds: float, number: int = 0) -> None:
        """Send and receive for ``seconds``, or, with a ``number``, until that many messages have
        been answered (or dropped).
        """

    def drain(self) -> None:
        """Send nothing new, in an open loop nothing that is not yet due, and wait until all that is
        in flight has been answered.
        """

    def stop(self) -> None:
        """Make ``run`` or ``drain`` return soon, now and in future."""

    def reset(self) -> None:
        """Forget what was counted, but not the faults, and nothing of opening: those of the warm-up
        matter as much.
        """

    @property
    def messages(self) -> int:
        """Replies verified since the last reset."""

    def counters(self) -> dict[str, int]:
        """The fields of :class:`Counters`, but ``busiest_ns``."""

    def histograms(self) -> dict[str, list[int]]:
        """The fields of :class:`Histograms`."""


@dataclass(frozen=True)
class Counters:
    """What a hot loop counts. Those up to ``dropped`` since the last reset, the rest since the
    beginning.
    """

    messages: int
    received: int
    """bytes, with framing"""
    content: int
    """bytes received, without framing"""
    longest_ns: int
    elapsed_ns: int
    cpu_ns: int
    """of the loop's thread; of several threads together"""
    busiest_ns: int
    """of the thread that used most"""
    late: int
    """in an open loop: messages sent more than a millisecond after they were due"""
    dropped: int
    """and those that were due and never sent"""
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
        """The sum of everything that must not happen, whatever the rate."""
        return self.wrong + self.closed + self.failed + self.unanswered


SINCE_RESET = (
    "messages",
    "received",
    "content",
    "longest_ns",
    "elapsed_ns",
    "cpu_ns",
    "busiest_ns",
    "late",
    "dropped",
)


@dataclass(frozen=True)
class Histograms:
    """Counts of the buckets of :mod:`hydrogen.perf.histogram`, of nanoseconds."""

    latencies: Sequence[int]
    """from when a message was sent, in an open loop from when it was due, to its verified reply"""
    uncorrected: Sequence[int]
    """in an open loop: from when it was sent"""
    bursts: Sequence[int]
    """from a burst's first send to its last reply"""
    connects: Sequence[int]
    """with churn: from connect to the first byte that the kernel took"""
    first_bytes: Sequence[int]
    """of each connection: from its first send to the first byte of an answer"""


def choose_loop(wanted: str) -> tuple[str, type[HotLoop]]:
    """The name and class of the hot loop; ``wanted`` is "auto", "compiled" or "python"."""
    if wanted == "python" or (wanted == "auto" and COMPILED is None):
        return "python", _generator_py.Loop
    if COMPILED is None:
        raise RuntimeError(f"the compiled loop is not available: {NOT_COMPILED}")
    return "compiled", COMPILED


def shares(number: int, among: int) -> list[int]:
    """``number`` as so many whole parts that differ by 1 at most."""
    return [number * (index + 1) // among - number * index // among for index in range(among)]


class Loops:
    """Several hot loops, each with connections of its own, that run and stop together. As safe as
    one of them.
    """

    def __init__(self, loops: Sequence[HotLoop], connections: Sequence[int]) -> None:
        """``connections``: how many each of them has."""
        self._loops = loops
        self._firsts = [sum(connections[:index]) for index in range(len(loops))]

    def run(self, seconds: float, number: int = 0) -> None:
        """As of a hot loop; a ``number`` is dealt out."""
        numbers = shares(number, len(self._loops))
        self._together(
            [
                lambda loop=loop, share=share: loop.run(seconds, share)  # type: ignore[misc]
                for loop, share in zip(self._loops, numbers, strict=True)
            ]
        )

    def drain(self) -> None:
        """As of a hot loop."""
        self._together([loop.drain for loop in self._loops])

    def _together(self, calls: Sequence[Callable[[], None]]) -> None:
        if len(calls) == 1:
            calls[0]()
            return
        with ThreadPoolExecutor(len(calls), "hydrogen-perf-loop") as pool:
            for done in [pool.submit(call) for call in calls]:
                done.result()

    def stop(self) -> None:
        """As of a hot loop."""
        for loop in self._loops:
            loop.stop()

    def reset(self) -> None:
        """As of a hot loop."""
        for loop in self._loops:
            loop.reset()

    @property
    def messages(self) -> int:
        """As of a hot loop."""
        return sum(loop.messages for loop in self._loops)

    def counters(self) -> Counters:
        """Those of all; times are those of the longest, CPU time and counts the sum. The first
        wrong reply is some loop's first.
        """
        all_of_them = [loop.counters() for loop in self._loops]
        merged = {name: sum(each[name] for each in all_of_them) for name in all_of_them[0]}
        for name in ("longest_ns", "elapsed_ns"):
            merged[name] = max(each[name] for each in all_of_them)
        merged["busiest_ns"] = max(each["cpu_ns"] for each in all_of_them)
        merged["first_errno"] = next(
            (each["first_errno"] for each in all_of_them if each["first_errno"]), 0
        )
        for first, each in zip(self._firsts, all_of_them, strict=True):
            if each["wrong"]:
                merged["wrong_connection"] = first + each["wrong_connection"]
                merged["wrong_message"], merged["wrong_byte"] = (
                    each["wrong_message"],
                    each["wrong_byte"],
                )
                break
        return Counters(**merged)

    def histograms(self) -> Histograms:
        """Those of all, added."""
        all_of_them = [loop.histograms() for loop in self._loops]
        return Histograms(
            **{
                field.name: list(
                    map(sum, zip(*(each[field.name] for each in all_of_them), strict=True))
                )
                for field in fields(Histograms)
            }
        )
