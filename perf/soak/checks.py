"""What must hold when a soak is over. Each check says what it found, also when it holds.

Memory is compared between a while after the beginning, when buffers, arenas and caches have grown
to what this load needs, and the end. Threads and fds need no such grace.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from perf.soak.processes import Sample
from perf.soak.settings import Place
from perf.soak.well_behaved import LAST, LATE

WARM_UP = 60.0
"""Seconds after which memory must not grow any more; in short soaks a third of them."""

MEBIBYTE = 1 << 20

MOST_GROWTH = 0.05
GROWTH_ALLOWED = 8 * MEBIBYTE
"""of memory, in all: so much of it, and so many bytes, which are some times `MAX_BUFFERED`"""

BOUNDS = (
    "accept_pauses",
    "reading_pauses",
    "reading_resumes",
    "memory_pauses",
    "all_blocked",
    "slow_callbacks",
)
"""Counters of `Stats` that are 0 only when the hostile clients were too tame."""

COMPILED_BOUNDS = ("stalls", "handoffs")
"""The same, of what the Python engine does not have."""


@dataclass
class Evidence:
    """What was seen of a soak; what was not reached is empty."""

    engine: str
    seconds: float
    samples: list[Sample] = field(default_factory=list)
    well_behaved: dict[str, Any] = field(default_factory=dict)
    hostile: dict[str, Any] = field(default_factory=dict)
    emptied: dict[str, Any] = field(default_factory=dict)
    """what the servers said when nobody was left"""
    stopped: dict[str, Any] = field(default_factory=dict)
    """and after the stop"""
    last_guests: int = 0
    goodbye: str = ""
    """what went wrong with those who were there when the servers stopped"""
    statuses: dict[str, int] = field(default_factory=dict)
    complaints: dict[str, str] = field(default_factory=dict)
    """each process' standard error"""
    hung: str = ""

    @property
    def told(self) -> dict[str, Any]:
        """The last word of the servers."""
        return self.stopped or self.emptied

    def total(self, name: str) -> int:
        """A counter of `Stats`, over all servers."""
        return sum(stats[name] for stats in self.told["stats"].values())

    def causes(self) -> dict[str, int]:
        """Removals by cause, over all servers."""
        if not self.told:
            return {}
        [first, *_] = self.told["stats"].values()
        names = [name for name in first if name.startswith("removed_")]
        return {name: self.total(name) for name in names if name != WEBSOCKETS_ONLY}


WEBSOCKETS_ONLY = "removed_ping_timeout"
"""A cause that only a WebSocket server has; none of those here is one."""


@dataclass(frozen=True)
class Check:
    """Something that must hold."""

    name: str
    held: bool
    found: str


def judged(evidence: Evidence) -> list[Check]:
    """All checks; when the soak could not be carried through, that one."""
    if evidence.hung:
        return [Check("every process answers and ends", False, evidence.hung)]
    return [*_well_behaved(evidence), *_servers(evidence), *_process(evidence)]


def unexcused(evidence: Evidence) -> list[dict[str, Any]]:
    """What went wrong with well-behaved clients, in their own view and in the servers'.

    Those whose own process was late for a deadline are left out.
    """
    faults = evidence.well_behaved["faults"]
    late = {fault["who"] for fault in faults if fault["late_seconds"] > LATE}
    in_time = {
        item["who"] for item in evidence.told["unannounced"] if item["error"] == "ConnectionTimeout"
    }
    excused = late & in_time
    return [item for item in (*faults, *evidence.told["unannounced"]) if item["who"] not in excused]


def growth(evidence: Evidence) -> tuple[float, float, float]:
    """RSS after warming up and at the end, both medians over a while, and the slope between, in
    bytes a minute.
    """
    warm = min(WARM_UP, evidence.seconds / 3)
    window = min(60.0, evidence.seconds / 6)
    samples = [sample for sample in evidence.samples if warm <= sample.seconds <= evidence.seconds]
    first = [sample.rss for sample in samples if sample.seconds <= warm + window] or [
        evidence.samples[0].rss
    ]
    last = [
        sample.rss for sample in samples if sample.seconds >= evidence.seconds - window
    ] or first
    slope = 0.0
    if len(samples) > 1:
        slope = statistics.linear_regression(
            [s.seconds / 60 for s in samples], [s.rss for s in samples]
        ).slope
    return statistics.median(first), statistics.median(last), slope


def _well_behaved(evidence: Evidence) -> Iterator[Check]:
    wrong = unexcused(evidence)
    found = f"{len(wrong)}: {wrong}" if wrong else "none"
    name = "no well-behaved client saw a wrong byte or an end that was not announced"
    yield Check(name, not wrong, found)
    turned_away, overload = (
        evidence.well_behaved["turned_away"].get("tls", 0),
        evidence.told["stats"]["tls"]["removed_overload"],
    )
    yield Check(
        "no well-behaved client was turned away but for want of a place",
        turned_away <= overload,
        f"{turned_away} of {overload}",
    )
    faults = evidence.hostile["faults"]
    yield Check("every attack could be carried out", not faults, str(faults or "yes"))
    found = evidence.goodbye or f"{evidence.last_guests} were there"
    yield Check(
        "clients at the stop were ended gracefully",
        not evidence.goodbye and evidence.last_guests == LAST * len(Place),
        found,
    )


def _servers(evidence: Evidence) -> Iterator[Check]:
    before = evidence.emptied["stats"]
    there = {name: stats["connections"] for name, stats in before.items()}
    yield Check("no connection is left when all clients are", not any(there.values()), str(there))
    sums = {
        name: (stats["accepted"], _removed(stats)) for name, stats in evidence.told["stats"].items()
    }
    yield Check(
        "accepted == removed",
        all(accepted == removed for accepted, removed in sums.values()),
        str(sums),
    )
    queued = {
        name: stats["queued_bytes"]
        for name, stats in (*before.items(), *evidence.told["stats"].items())
    }
    yield Check("queued_bytes is 0", not any(queued.values()), str(queued))
    missing = [name for name, count in evidence.causes().items() if not count]
    yield Check("every cause of removal occurred", not missing, str(missing or "all"))
    bounds = BOUNDS + COMPILED_BOUNDS * (evidence.engine == "compiled")
    tame = [name for name in bounds if not evidence.total(name)]
    yield Check("every bound was reached", not tame, str(tame or "all"))
    faults = evidence.told["faults"]
    yield Check(
        "no error was logged but the handler's own",
        not faults,
        "\n".join(faults) or f"{evidence.told['planned']} of its own",
    )
    reports = evidence.stopped.get("reports", {})
    stops = {
        name: (report["closed"], report["aborted"], report["abandoned"])
        for name, report in reports.items()
    }
    held = bool(stops) and all(stop == (LAST, 0, 0) for stop in stops.values())
    yield Check("the stop closed all and neither aborted nor abandoned any", held, str(stops))


def _process(evidence: Evidence) -> Iterator[Check]:
    first, last = evidence.samples[0], evidence.samples[-1]
    yield Check("fds at the end as at the start", first.fds == last.fds, f"{first.fds}, {last.fds}")
    yield Check(
        "threads at the end as at the start",
        first.threads == last.threads,
        f"{first.threads}, {last.threads}",
    )
    warm, end, slope = growth(evidence)
    allowed = warm * MOST_GROWTH + GROWTH_ALLOWED
    found = (
        f"{warm / MEBIBYTE:.1f} MiB, {end / MEBIBYTE:.1f} MiB, slope {slope / 1024:.0f} KiB a "
        "minute"
    )
    yield Check("memory is flat after warming up", end - warm <= allowed, found)
    told = {name: text for name, text in evidence.complaints.items() if text}
    yield Check("nothing on any standard error", not told, "\n".join(told.values()) or "nothing")
    yield Check(
        "every process ended with status 0",
        not any(evidence.statuses.values()),
        str(evidence.statuses),
    )


def _removed(stats: dict[str, int]) -> int:
    return sum(count for name, count in stats.items() if name.startswith("removed_"))
