"""W1 to W5, W9 to W11, and those of framing and TLS: who takes part, what is measured, and what is to be reached.

The numbers are those of the project's measuring plan; W6 to W8 want more than an echo in a closed loop and are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hydrogen.perf.framing import FRAMINGS
from perf import certificates, counting
from perf.noise import Noise
from perf.servers import TLS_JOB, Arm, generate, started
from perf.settings import Layout, Settings

Figures = dict[str, float]
Measure = Callable[[Arm, Layout, Settings], Figures]
"""From an arm to its figures, with a fresh process."""


@dataclass(frozen=True)
class Goal:
    """A bound on an arm's median, or on the median of its paired ratios to another arm."""

    figure: str
    against: str | None
    """the other arm; None: the figure itself is bounded"""
    relation: str
    """">=" or "<=" """
    bound: float
    layout: str | None = None
    """the layout it holds for; None: each"""
    arm: str = "hydrogen"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.relation == ">=" else value <= self.bound


@dataclass(frozen=True)
class Workload:
    """One line of the measuring plan."""

    title: str
    jobs: Mapping[str, str]
    """arm -> the job it does"""
    measure: Measure
    columns: Mapping[str, str]
    """the figures that the table shows -> their headings, with units"""
    goals: tuple[Goal, ...]
    compared: str
    """the figure whose paired ratios the table shows"""
    layouts: tuple[str, ...] = ("pinned", "shared")
    references: tuple[str, ...] = ("c", "uvloop")
    """the arms to which the table shows those ratios"""


LOAD_COLUMNS = {
    "messages_per_second": "messages/s",
    "p50_us": "p50 us",
    "p98_us": "p98 us",
    "p99.9_us": "p99.9 us",
    "server_us": "server CPU us/message",
    "server_share": "server CPU",
    "generator_share": "generator CPU",
    "others": "others' CPU",
}
NO_LATENCY = {figure: heading for figure, heading in LOAD_COLUMNS.items() if not figure.startswith("p")}
MEMORY_COLUMNS = {
    "bytes_per_connection": "bytes/connection",
    "kept_per_connection": "kept when they have left",
    "second_wave": "kept after a second wave, of after the first",
}
RATE = "messages_per_second"


def spoken_by(arm: Arm, settings: Settings) -> dict[str, Any]:
    """The load generator's options for what an arm's job speaks: framing, TLS."""
    if arm.job == TLS_JOB:
        return {"tls": True, "cacert": settings.folder / certificates.AUTHORITY}
    name = arm.job.partition("_")[0]
    return {"framing": name} if name in FRAMINGS else {}


def load(**options: Any) -> Measure:
    """Measure by the load generator with ``options``, and with those that the arm's job asks for."""

    def measure(arm: Arm, layout: Layout, settings: Settings) -> Figures:
        with started(arm.words, layout.server_cpu) as server:
            given = {**options, **spoken_by(arm, settings), "duration": settings.duration, "warm_up": settings.warm_up}
            noise = Noise(server.pid)
            report = generate(server.port, {**given, "pid": server.pid}, layout.generator_cpu)
            others = noise.cores()
        result = report["result"]
        return {
            RATE: result["messages_per_second"],
            **{f"{name}_us": value for name, value in result["latency_us"].items()},
            **{f"burst_{name}_us": value for name, value in (result["burst_us"] or {}).items()},
            "server_us": result["server"]["us_per_message"],
            "server_share": result["server"]["share"],
            "generator_us": result["generator"]["us_per_message"],
            "generator_share": result["generator"]["share"],
            "others": others,
        }

    return measure


FRAMED = ("checksum32", "length", "line", "websocket")
"""Beside SimpleFrame, with which they are compared."""

TLS = dict.fromkeys(("asyncio", "uvloop", "hydrogen", "hydrogen-python"), TLS_JOB)
RAW = {"c": "echo", "asyncio": "raw", "uvloop": "raw", "hydrogen": "raw", "hydrogen-python": "raw"}

WORKLOADS = {
    "W1": Workload(
        title="echo of 64 bytes, 64 connections, closed loop",
        jobs=RAW,
        measure=load(connections=64, size=64),
        columns=LOAD_COLUMNS,
        compared=RATE,
        goals=(
            Goal(RATE, "c", ">=", 0.95, "shared"),
            Goal(RATE, "c", ">=", 0.92, "pinned"),
            Goal(RATE, "uvloop", ">=", 1.15),
            Goal("server_us", "c", "<=", 1.15),
        ),
    ),
    "W2": Workload(
        title="SimpleFrame echo of 4 bytes, 64 connections x 16 in flight",
        jobs={
            "c": "simple_echo",
            "asyncio": "simple_tuned",
            "uvloop": "simple_tuned",
            "uvloop-usual": "simple",
            "hydrogen": "simple",
            "hydrogen-python": "simple",
        },
        measure=load(connections=64, in_flight=16, size=4),
        columns=LOAD_COLUMNS,
        compared=RATE,
        goals=(Goal(RATE, "c", ">=", 0.70), Goal(RATE, "uvloop", ">=", 2.5)),
    ),
    "W2F": Workload(
        title="W2 with each framing, hydrogen alone",
        jobs={"hydrogen": "simple", **{f"hydrogen-{framing}": framing for framing in FRAMED}},
        measure=load(connections=64, in_flight=16, size=4),
        columns=LOAD_COLUMNS,
        compared=RATE,
        references=("hydrogen",),
        goals=tuple(Goal(RATE, "hydrogen", ">=", 0.6, arm=f"hydrogen-{framing}") for framing in FRAMED),
    ),
    "W3": Workload(
        title="one connection, bursts of 100,000 SimpleFrame pings of 4 bytes sent in one go",
        jobs={"c": "simple_echo", "uvloop": "simple_tuned", "hydrogen": "simple", "hydrogen-python": "simple"},
        measure=load(connections=1, burst=100_000, size=4),
        columns={"burst_p50_us": "whole burst p50 us", "burst_p98_us": "p98 us", **NO_LATENCY},
        compared=RATE,
        # 44,000 messages/s is what the seed, in Rust, does in its own benchmark of that shape.
        goals=(Goal(RATE, "c", ">=", 0.5), Goal(RATE, None, ">=", 50 * 44_000)),
    ),
    "W4": Workload(
        title="ping-pong of 64 bytes, one connection",
        jobs=RAW,
        measure=load(connections=1, size=64),
        columns=LOAD_COLUMNS,
        compared="p50_us",
        goals=(Goal("p50_us", "c", "<=", 1.1),),
    ),
    "W5": Workload(
        title="W1 with exactly every 100th handler blocking for 10 ms",
        jobs={
            "c": "echo",
            "uvloop": "sleeping",
            "uvloop-executor": "executor",
            "asyncio-executor": "executor",
            "hydrogen": "sleeping",
            "hydrogen-python": "sleeping",
        },
        measure=load(connections=64, size=64),
        columns=LOAD_COLUMNS,
        compared=RATE,
        goals=(
            Goal(RATE, "uvloop", ">=", 15),
            Goal(RATE, "uvloop-executor", ">=", 1.0, "shared"),
            Goal(RATE, "uvloop-executor", ">=", 1.2, "pinned"),
            Goal("p98_us", None, "<=", 1000),
        ),
    ),
    "W9": Workload(
        title="memory of idle connections, private dirty, after one echo each",
        jobs=RAW,
        measure=counting.idle_memory,
        columns=MEMORY_COLUMNS,
        compared="bytes_per_connection",
        layouts=("shared",),
        goals=(Goal("bytes_per_connection", None, "<=", 600), Goal("second_wave", None, "<=", 1.05)),
    ),
    "W10": Workload(
        title="W1 counted over 10,000 echoes on 64 connections, per message",
        jobs=RAW,
        measure=counting.per_message,
        columns={
            "syscalls": "system calls",
            "receive": "recv or read",
            "send": "send or write",
            "poll": "epoll_wait",
            "epoll_ctl": "epoll_ctl",
            "futex": "futex",
            "mallocs": "malloc calls",
            "objects": "malloc calls, Python objects included",
            "switches": "context switches",
            "gil_acquisitions": "GIL acquisitions",
            "turns": "turns",
        },
        compared="syscalls",
        layouts=("shared",),
        goals=(
            Goal("syscalls", None, "<=", 2.2),
            Goal("epoll_ctl", None, "<=", 0),
            Goal("gil_per_turn", None, "<=", 1.02),  # 1, but for the turns that the counting cut in two
            Goal("mallocs", None, "<=", 0.05),  # some per turn, none per message
        ),
    ),
    "W11": Workload(
        title="idle server: context switches of all its threads, per second",
        jobs=RAW,
        measure=counting.idle_wakeups,
        columns={"without": "without connections", "with_100": "with 100 idle connections"},
        compared="with_100",
        layouts=("shared",),
        goals=(Goal("without", None, "<=", 0), Goal("with_100", None, "<=", 0)),
    ),
    "TLS": Workload(
        title="W1 over TLS",
        jobs=TLS,
        measure=load(connections=64, size=64),
        columns=LOAD_COLUMNS,
        compared=RATE,
        goals=(Goal(RATE, "uvloop", ">=", 1.0),),
    ),
    "TLS-memory": Workload(
        title="W9 over TLS",
        jobs=TLS,
        measure=counting.idle_tls_memory,
        columns=MEMORY_COLUMNS,
        compared="bytes_per_connection",
        layouts=("shared",),
        goals=(Goal("bytes_per_connection", None, "<=", 30 * 1024),),
    ),
}
