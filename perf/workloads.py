"""W1 to W12, those of an open loop, framing, TLS, WebSocket and the generator: who takes part, what
is measured, what is to be reached.

The numbers are those of the project's measuring plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perf import counting, loads
from perf.loads import RATE, SECOND_CLIENT, Measure, load
from perf.servers import BEFORE, BROADCAST_JOB, FRESH_MALLOC, OURS, TLS_JOB, UPGRADED_JOB


@dataclass(frozen=True)
class Goal:
    """A bound on a contender's median, or on the median of its paired ratios to another
    contender.
    """

    figure: str
    against: str | None
    """the other contender; None: the figure itself is bounded"""
    relation: str
    """">=" or "<=" """
    bound: float
    layout: str | None = None
    """the layout it holds for; None: each"""
    contender: str = "hydrogen"

    def __str__(self) -> str:
        beside = self.contender if self.against is None else f"{self.contender} / {self.against}"
        return f"{beside}: {self.figure} {self.relation} {self.bound:g}"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.relation == ">=" else value <= self.bound


@dataclass(frozen=True)
class Workload:
    """One line of the measuring plan."""

    title: str
    jobs: Mapping[str, str]
    """contender -> the job it does"""
    measure: Measure
    columns: Mapping[str, str]
    """the figures that the table shows -> their headings, with units"""
    goals: tuple[Goal, ...]
    compared: str
    """the figure whose paired ratios the table shows"""
    layouts: tuple[str, ...] = ("pinned", "shared")
    references: tuple[str, ...] = ("c", "uvloop")
    """the contenders to which the table shows those ratios"""
    pictured: str = ""
    """what its row in the picture of docs/performance.md is called; empty: it has none"""
    closed: Measure | None = None
    """of an open loop: the closed one that finds the contenders' peaks, by which its rates are
    chosen
    """
    gated: bool = False
    """the comparison fails when one of its goals is missed: for counts only, which are the same on
    every machine
    """

    def goals_in(self, layout: str) -> list[Goal]:
        """Those that hold for this layout."""
        return [goal for goal in self.goals if goal.layout in (None, layout)]

    def job_of(self, contender: str) -> str:
        """The job that a contender does here."""
        return self.jobs[OURS if contender == BEFORE else contender]

    def fast_contenders(self) -> list[str]:
        """Who takes part in a fast comparison: a few, and those that the goals and the table's
        ratios need.
        """
        needed = {
            *FAST_CONTENDERS,
            *self.references,
            *(goal.contender for goal in self.goals),
            *(goal.against for goal in self.goals),
        }
        return [contender for contender in self.jobs if contender in needed]


FAST_CONTENDERS = ("c", "uvloop", "hydrogen")

MORE_IS_BETTER = (RATE, "deliveries_per_second", "kept")
"""Of the compared figures; of the others less is."""

WEBSOCKET = dict.fromkeys(
    ("c", "picows", "websockets", "aiohttp", "socketify", "hydrogen", "hydrogen-python"),
    UPGRADED_JOB,
)
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
NO_LATENCY = {
    figure: heading for figure, heading in LOAD_COLUMNS.items() if not figure.startswith("p")
}
MEMORY_COLUMNS = {
    "bytes_per_connection": "bytes/connection",
    "kept_per_connection": "kept when they have left",
    "second_wave": "kept after a second wave, of after the first",
}
KEPT_COLUMNS = {
    "plain": "messages/s in W1",
    RATE: "messages/s",
    "kept": "kept",
    "plain_server_us": "server CPU us/message in W1",
    "server_us": "server CPU us/message",
    "p50_us": "p50 us",
    "p99.9_us": "p99.9 us",
    "server_share": "server CPU",
    "generator_share": "generator CPU",
    "others": "others' CPU",
}

RATES_COLUMNS = {
    "peak": "100 %, messages/s",
    **{
        f"{figure}_us_at_{share}": f"{figure} us at {share} %"
        for share in loads.SHARES
        for figure in ("p50", "p99", "p99.9", "max")
    },
    f"server_share_at_{loads.SHARES[-1]}": f"server CPU at {loads.SHARES[-1]} %",
    f"generator_share_at_{loads.SHARES[-1]}": f"generator CPU at {loads.SHARES[-1]} %",
    "others": "others' CPU",
}

FRAMED = ("checksum32", "length", "line", "websocket")
"""Beside SimpleFrame, with which they are compared."""

PARALLEL = ("workers-1", "workers-2", "loops-2")
TLS = dict.fromkeys(("asyncio", "uvloop", "hydrogen", "hydrogen-python"), TLS_JOB)
SOME_RAW = {"c": "echo", "uvloop": "raw", "hydrogen": "raw"}
RAW = {"c": "echo", "asyncio": "raw", "uvloop": "raw", "hydrogen": "raw", "hydrogen-python": "raw"}
MORE_RAW = {
    "c": "echo",
    **dict.fromkeys(
        (
            "asyncio",
            FRESH_MALLOC,
            "uvloop",
            "gevent",
            "threads",
            "twisted",
            "hydrogen",
            "hydrogen-python",
        ),
        "raw",
    ),
}

PLAIN = load(connections=64, size=64)

WORKLOADS = {
    "W1": Workload(
        title="echo of 64 bytes, 64 connections, closed loop",
        jobs=MORE_RAW,
        measure=PLAIN,
        columns=LOAD_COLUMNS,
        compared=RATE,
        goals=(
            Goal(RATE, "c", ">=", 0.95, "shared"),
            Goal(RATE, "c", ">=", 0.92, "pinned"),
            Goal(RATE, "uvloop", ">=", 1.15),
            Goal("server_us", "c", "<=", 1.15),
        ),
        pictured="echo",
    ),
    "W1o": Workload(
        title="W1 in an open loop, at 50, 70 and 85 % of what the slowest contender reaches in a "
        "closed one",
        jobs={"c": "echo", **dict.fromkeys(("asyncio", "uvloop", "hydrogen"), "raw")},
        measure=loads.at_rates(connections=64, size=64),
        closed=PLAIN,
        columns=RATES_COLUMNS,
        compared="p99_us_at_70",
        goals=(),
        pictured="p99 at 70 % load",
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
        pictured="frames, many in flight",
    ),
    "W2F": Workload(
        title="W2 with each framing, hydrogen alone",
        jobs={"hydrogen": "simple", **{f"hydrogen-{framing}": framing for framing in FRAMED}},
        measure=load(connections=64, in_flight=16, size=4),
        columns=LOAD_COLUMNS,
        compared=RATE,
        references=("hydrogen",),
        goals=tuple(
            Goal(RATE, "hydrogen", ">=", 0.6, contender=f"hydrogen-{framing}") for framing in FRAMED
        ),
    ),
    "W3": Workload(
        title="one connection, bursts of 100,000 SimpleFrame pings of 4 bytes sent in one go",
        jobs={
            "c": "simple_echo",
            "uvloop": "simple_tuned",
            "hydrogen": "simple",
            "hydrogen-python": "simple",
        },
        measure=load(connections=1, burst=100_000, size=4),
        columns={"burst_p50_us": "whole burst p50 us", "burst_p98_us": "p98 us", **NO_LATENCY},
        compared=RATE,
        # 44,000 messages/s is what the Rust crate hydrogen does in its own benchmark of that shape.
        goals=(Goal(RATE, "c", ">=", 0.5), Goal(RATE, None, ">=", 50 * 44_000)),
    ),
    "W4": Workload(
        title="ping-pong of 64 bytes, one connection",
        jobs=RAW,
        measure=load(connections=1, size=64),
        columns=LOAD_COLUMNS,
        compared="p50_us",
        goals=(Goal("p50_us", "c", "<=", 1.1),),
        pictured="ping-pong latency",
    ),
    "W5": Workload(
        title="W1 with exactly every 100th handler blocking for 10 ms",
        jobs={
            "c": "echo",
            "uvloop": "sleeping",
            "uvloop-executor": "executor",
            "asyncio-executor": "executor",
            "gevent": "sleeping",
            "threads": "sleeping",
            "twisted": "executor",
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
        pictured="1 % of handlers block",
    ),
    "W5a": Workload(
        title="echo of 64 bytes, 32 connections, each handler blocking for 1 ms",
        jobs={
            "uvloop-executor": "executor_querying",
            "asyncio-executor": "executor_querying",
            "gevent": "querying",
            "threads": "querying",
            "twisted": "executor_querying",
            "hydrogen": "querying",
            "hydrogen-python": "querying",
        },
        measure=load(connections=32, size=64),
        columns=LOAD_COLUMNS,
        compared=RATE,
        references=("uvloop-executor",),
        goals=(Goal(RATE, "uvloop-executor", ">=", 1.0),),
        pictured="each handler blocks",
    ),
    "W6i": Workload(
        title="W1 beside 10,000 idle connections, and without them",
        jobs=SOME_RAW,
        measure=loads.of_plain(load(idle=10_000, connections=64, size=64), PLAIN),
        columns=KEPT_COLUMNS,
        compared="kept",
        references=("c",),
        goals=(Goal("kept", None, ">=", 0.95), Goal("kept", "c", ">=", 1.0)),
    ),
    "W6a": Workload(
        title="W1 on 4,000 active connections, and on 64",
        jobs=SOME_RAW,
        measure=loads.of_plain(load(connections=4000, size=64), PLAIN),
        columns=KEPT_COLUMNS,
        compared="kept",
        references=("c",),
        goals=(Goal("kept", None, ">=", 0.95), Goal("kept", "c", ">=", 1.0)),
    ),
    "W7": Workload(
        title="connect, one echo of 64 bytes, close; 64 connections at once",
        jobs=RAW,
        measure=load(connections=64, size=64, churn=True),
        columns={**LOAD_COLUMNS, RATE: "connections/s", "server_us": "server CPU us/connection"},
        compared=RATE,
        goals=(Goal(RATE, "c", ">=", 0.8),),
        pictured="connect, echo, close",
    ),
    "W8": Workload(
        title=f"broadcast of 64 bytes to {loads.RECEIVERS:,} connections, one after the other",
        jobs=dict.fromkeys(
            ("c", "asyncio", "uvloop", "hydrogen", "hydrogen-python"), BROADCAST_JOB
        ),
        measure=loads.broadcast,
        columns={
            "deliveries_per_second": "deliveries/s",
            "last_p50_us": "until the last has it, p50 us",
            "last_max_us": "max us",
            "occupied_us": "broadcasting thread occupied us",
            "server_us": "server CPU us/delivery",
            "server_share": "server CPU",
            "receivers_share": "receivers' CPU",
            "others": "others' CPU",
        },
        compared="deliveries_per_second",
        goals=(Goal("deliveries_per_second", "uvloop", ">=", 4),),
        pictured="broadcast",
    ),
    "W1L": Workload(
        title="W1 with every deadline and limit set, against none",
        jobs={"hydrogen": "limited", "hydrogen-unlimited": "unlimited"},
        measure=PLAIN,
        columns=LOAD_COLUMNS,
        compared=RATE,
        references=("hydrogen-unlimited",),
        goals=(Goal(RATE, "hydrogen-unlimited", ">=", 0.98),),
    ),
    "W9": Workload(
        title="memory of idle connections, private dirty, after one echo each",
        jobs=RAW,
        measure=counting.idle_memory,
        columns=MEMORY_COLUMNS,
        compared="bytes_per_connection",
        layouts=("shared",),
        goals=(
            Goal("bytes_per_connection", None, "<=", 600),
            Goal("second_wave", None, "<=", 1.05),
        ),
        pictured="memory of a connection",
    ),
    "W10": Workload(
        title="W1 counted over 10,000 echoes on 64 connections, per message",
        jobs=MORE_RAW,
        measure=counting.per_message,
        columns={
            "syscalls": "system calls",
            "receive": "recv or read",
            "send": "send or write",
            "poll": "epoll_wait",
            "epoll_ctl": "epoll_ctl",
            "futex": "futex",
            "memory": "mmap, munmap and brk",
            "mallocs": "malloc calls",
            "objects": "malloc calls, Python objects included",
            "switches": "context switches",
            "gil_acquisitions": "GIL acquisitions",
            "iterations": "iterations",
        },
        compared="syscalls",
        layouts=("shared",),
        goals=(
            Goal("syscalls", None, "<=", 2.2),
            Goal("epoll_ctl", None, "<=", 0),
            # 1, but for the iterations that the counting cut in two
            Goal("gil_per_iteration", None, "<=", 1.02),
            Goal("mallocs", None, "<=", 0.05),  # some per turn, none per message
        ),
        gated=True,
    ),
    "W11": Workload(
        title="idle server: context switches of all its threads, per second",
        jobs={**RAW, "hydrogen-timed": "timed"},
        measure=counting.idle_wakeups,
        columns={
            "without": "without connections",
            "with_100": "with 100 idle connections",
            "sweeps_per_quarter": "sweeps per quarter of the smallest timeout",
        },
        compared="with_100",
        layouts=("shared",),
        goals=(
            Goal("without", None, "<=", 0),
            Goal("with_100", None, "<=", 0),
            Goal("without", None, "<=", 0, contender="hydrogen-timed"),
            Goal("sweeps_per_quarter", None, "<=", 1, contender="hydrogen-timed"),
        ),
    ),
    "sweep": Workload(
        title=f"one sweep over {counting.SWEPT_CONNECTIONS:,} idle connections in search of "
        "deadlines",
        jobs={"hydrogen": "swept"},
        measure=counting.sweep,
        columns={
            "sweep_us": "CPU us/sweep",
            "connection_ns": "CPU ns/connection",
            "sweeps_per_second": "sweeps/s",
            "sweeps_per_quarter": "sweeps per quarter of the smallest timeout",
        },
        compared="sweep_us",
        layouts=("shared",),
        goals=(Goal("sweep_us", None, "<=", 1000), Goal("sweeps_per_quarter", None, "<=", 1)),
    ),
    "TLS": Workload(
        title="W1 over TLS",
        jobs=TLS,
        measure=load(connections=64, size=64),
        columns=LOAD_COLUMNS,
        compared=RATE,
        goals=(Goal(RATE, "uvloop", ">=", 1.0),),
        pictured="echo over TLS",
    ),
    "TLS-memory": Workload(
        title="W9 over TLS",
        jobs=TLS,
        measure=counting.idle_tls_memory,
        columns=MEMORY_COLUMNS,
        compared="bytes_per_connection",
        layouts=("shared",),
        goals=(Goal("bytes_per_connection", None, "<=", 30 * 1024),),
        pictured="memory of a TLS connection",
    ),
    "parallel": Workload(
        title="W2 with handlers of some 20 us of Python, on a Python without a GIL, hydrogen alone",
        jobs=dict.fromkeys(PARALLEL, "simple_computing"),
        measure=load(connections=64, in_flight=16, size=4),
        columns=LOAD_COLUMNS,
        compared=RATE,
        layouts=("shared",),
        references=("workers-1",),
        goals=(Goal(RATE, "workers-1", ">=", 1.6, contender="workers-2"),),
    ),
    "parallel-W1": Workload(
        title="W1 on a Python without a GIL, hydrogen alone",
        jobs=dict.fromkeys(PARALLEL, "raw"),
        measure=PLAIN,
        columns=LOAD_COLUMNS,
        compared=RATE,
        layouts=("shared",),
        references=("workers-1",),
        goals=(Goal(RATE, "workers-1", ">=", 1.0, contender="workers-2"),),
    ),
    "W12": Workload(
        title="WebSocket echo of 64 bytes of text, 64 connections, closed loop",
        jobs=WEBSOCKET,
        measure=PLAIN,
        columns=LOAD_COLUMNS,
        compared=RATE,
        references=("c", "picows", "websockets"),
        pictured="WebSocket echo",
        goals=(
            Goal(RATE, "c", ">=", 0.90),
            Goal(RATE, "picows", ">=", 1.0),
            Goal(RATE, "websockets", ">=", 3.0),
        ),
    ),
    "W12-flight": Workload(
        title="W12, 16 in flight",
        jobs=WEBSOCKET,
        measure=load(connections=64, in_flight=16, size=64),
        columns=LOAD_COLUMNS,
        compared=RATE,
        references=("c", "picows"),
        pictured="WebSocket echo, many in flight",
        goals=(Goal(RATE, "picows", ">=", 2.0),),
    ),
    "W12-memory": Workload(
        title="W9 of WebSocket connections",
        jobs={name: UPGRADED_JOB for name in WEBSOCKET if name != "c"},
        measure=counting.idle_websocket_memory,
        columns=MEMORY_COLUMNS,
        compared="bytes_per_connection",
        layouts=("shared",),
        references=("picows",),
        goals=(Goal("bytes_per_connection", None, "<=", 600),),
        pictured="memory of a WebSocket connection",
    ),
    "client": Workload(
        title="the load generator against a second client, in C, on the C limit's server",
        jobs={SECOND_CLIENT: "echo", "generator": "echo"},
        measure=loads.of_client(connections=64, size=64),
        columns={
            RATE: "messages/s",
            "p50_us": "p50 us",
            "p99_us": "p99 us",
            "server_share": "server CPU",
            "generator_share": "client CPU",
            "others": "others' CPU",
        },
        compared=RATE,
        references=(SECOND_CLIENT,),
        goals=(
            Goal(RATE, SECOND_CLIENT, ">=", 0.95, contender="generator"),
            *(
                Goal(figure, SECOND_CLIENT, relation, bound, contender="generator")
                for figure in ("p50_us", "p99_us")
                for relation, bound in ((">=", 0.95), ("<=", 1.05))
            ),
        ),
    ),
}
