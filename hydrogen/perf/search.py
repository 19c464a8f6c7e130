"""The highest rate at which a condition holds, such as ``p99<10ms``: what a server can be asked to
bear.

The first guess is half of what a closed loop reaches. It is doubled or halved until the condition
does not hold, or does; between two such rates the search goes on by their geometric mean, until
they are within 5 %. Each try is an open loop over fresh connections.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hydrogen.perf import report
from hydrogen.perf.conditions import Condition
from hydrogen.perf.generator import Result
from hydrogen.perf.options import Options

SCHEMA = {"name": "hydrogen.perf.find-rate", "version": 1}

CLOSE = 1.05
TRIES_MOST = 30
REACHED = 0.99
"""A try whose throughput stays below this share of its rate does not hold."""


@dataclass(frozen=True)
class Try:
    """One open loop of a search."""

    rate: float
    held: bool
    result: Result


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    conditions: tuple[Condition, ...]
    tries: tuple[Try, ...]
    best: Try | None
    """that of the highest rate that held"""
    broken: Result | None
    """what ended the search early: a result that was interrupted, or with faults that no rate
    explains
    """

    @property
    def ok(self) -> bool:
        return self.best is not None and self.broken is None


def is_broken(result: Result) -> bool:
    """Whether to go on makes no sense."""
    return bool(
        result.interrupted or result.connect_failures or result.counters.faults or result.idle_lost
    )


def holds(result: Result, conditions: tuple[Condition, ...]) -> bool:
    """Whether the rate was reached, nothing dropped, and each condition holds."""
    found = report.figures(result)
    return (
        result.ok
        and found["messages_per_second"] >= REACHED * result.options.rate
        and all(condition.holds(found) for condition in conditions)
    )


def search(
    options: Options,
    conditions: tuple[Condition, ...],
    measure: Callable[[Options], Result],
    say: Callable[[str], None],
) -> Found:
    """Run the search; ``say`` is told of each try. A try that does not hold is repeated once: it
    may have been the machine's fault.
    """
    tries: list[Try] = []
    best: Try | None = None
    peak = measure(dataclasses.replace(options, rate=0.0))
    if is_broken(peak):
        return Found(conditions, (), None, peak)
    low, high = 0.0, math.inf
    rate = max(1.0, report.figures(peak)["messages_per_second"] / 2)
    say(f"closed loop: {rate * 2:,.0f} messages/s")
    while len(tries) < TRIES_MOST:
        for _ in range(2):
            result = measure(dataclasses.replace(options, rate=rate))
            if is_broken(result):
                return Found(conditions, tuple(tries), best, result)
            this = Try(rate, holds(result, conditions), result)
            tries.append(this)
            found = report.figures(result)
            judged = ", ".join(condition.describe(found) for condition in conditions)
            say(
                f"{rate:,.0f}/s: {found['messages_per_second']:,.0f} messages/s, "
                f"{result.counters.dropped:,} dropped; {judged}"
            )
            if this.held:
                break
        if this.held:
            low, best = rate, this
        else:
            high = rate
        if low and high < math.inf:
            if high / low <= CLOSE:
                break
            rate = math.sqrt(low * high)
        elif this.held:
            rate *= 2
        elif rate <= 1:
            break
        else:
            rate = max(1.0, rate / 2)
    return Found(conditions, tuple(tries), best, None)


def as_json(found: Found) -> dict[str, Any]:
    """All tries with their reports."""
    return {
        "schema": SCHEMA,
        "conditions": [str(condition) for condition in found.conditions],
        "found_per_second": None if found.best is None else found.best.rate,
        "tries": [
            {"rate": each.rate, "held": each.held, "report": report.as_json(each.result)}
            for each in found.tries
        ],
        "broken": None if found.broken is None else report.as_json(found.broken),
    }


def told(found: Found) -> str:
    """The outcome for a person: the rate, and the report of the try or of what ended the search."""
    conditions = ", ".join(map(str, found.conditions))
    if found.broken is not None:
        return f"{report.table(found.broken)}\nthe search ended early" + (
            f"; {found.best.rate:,.0f} messages/s held" if found.best else ""
        )
    if found.best is None:
        return f"{report.table(found.tries[-1].result)}\n{conditions} did not hold at any rate"
    return (
        f"{report.table(found.best.result)}\n{conditions}: held up to {found.best.rate:,.0f} "
        "messages/s"
    )
