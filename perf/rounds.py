"""Paired, interleaved rounds, and what follows from them.

A figure of one run means little on a shared machine; the ratio of two contenders that ran one after
the other means more, and the median of several such ratios can be relied on. Contenders take turns
A B B A: what drifts from start to end (clock speed, neighbours) then falls on both sides of every
pair alike.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from perf.loads import RATE, Figures, Measure
from perf.noise import wait_for_quiet
from perf.servers import Contender, contender_called
from perf.settings import Layout, Settings
from perf.workloads import WORKLOADS, Goal, Workload

REPEATS = 5
PEAK_RUNS = 3

Round = dict[str, Figures]


@dataclass(frozen=True)
class Spread:
    """A median with the range it comes from."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Verdict:
    """A goal and what was measured."""

    goal: str
    measured: Spread
    met: bool


def run(name: str, contenders: Sequence[str], layout: Layout, settings: Settings) -> list[Round]:
    """All rounds of a workload in one layout; every contender is a fresh process every time."""
    workload = WORKLOADS[name]
    called = {
        contender: contender_called(contender, workload.job_of(contender), settings)
        for contender in contenders
    }
    if workload.closed is not None:
        settings = replace(
            settings, peak=slowest_peak(name, workload.closed, called, layout, settings)
        )
    rounds = []
    for number in range(settings.rounds):
        figures: Round = {}
        mirrored = number % 2 == 1
        settings = replace(settings, mirrored=mirrored)
        for contender in reversed(contenders) if mirrored else contenders:
            print(
                f"{name}, {layout.name}, round {number + 1} of {settings.rounds}: {contender}",
                file=sys.stderr,
            )
            figures[contender] = measured(workload.measure, called[contender], layout, settings)
        rounds.append(figures)
    return rounds


def slowest_peak(
    name: str,
    closed: Measure,
    contenders: Mapping[str, Contender],
    layout: Layout,
    settings: Settings,
) -> float:
    """The messages/s of the slowest contender in a closed loop, each contender's the median of some
    runs.
    """
    rates: dict[str, list[float]] = {contender: [] for contender in contenders}
    for number in range(PEAK_RUNS):
        for contender, found in rates.items():
            print(
                f"{name}, {layout.name}, peak {number + 1} of {PEAK_RUNS}: {contender}",
                file=sys.stderr,
            )
            found.append(measured(closed, contenders[contender], layout, settings)[RATE])
    return min(statistics.median(found) for found in rates.values())


def measured(measure: Measure, contender: Contender, layout: Layout, settings: Settings) -> Figures:
    """One run; of a noisy machine the first quiet one, or the last of five."""
    for _ in range(REPEATS):
        if settings.quiet is not None:
            wait_for_quiet(settings.quiet)
        figures = measure(contender, layout, settings)
        if settings.quiet is None or figures.get("others", 0) <= settings.quiet:
            break
        print(f"  others kept {figures['others']:.2f} cores busy", file=sys.stderr)
    return figures


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def absolute(rounds: Sequence[Round], contender: str, figure: str) -> Spread | None:
    """A figure of one contender; None when that contender has no such figure."""
    values = [each[contender][figure] for each in rounds if figure in each.get(contender, {})]
    return spread(values) if values else None


def ratio(rounds: Sequence[Round], contender: str, other: str, figure: str) -> Spread | None:
    """The paired ratios of a figure; None when there is no pair or nothing to divide by."""
    values = [
        each[contender][figure] / each[other][figure]
        for each in rounds
        if figure in each.get(contender, {}) and each.get(other, {}).get(figure)
    ]
    return spread(values) if values else None


def bounded(goal: Goal, rounds: Sequence[Round], contender: str | None = None) -> Spread | None:
    """What a goal bounds, of its own contender or of ``contender``; None when that did not take
    part.
    """
    contender = contender or goal.contender
    return (
        absolute(rounds, contender, goal.figure)
        if goal.against is None
        else ratio(rounds, contender, goal.against, goal.figure)
    )


def verdicts(workload: Workload, layout: str, rounds: Sequence[Round]) -> list[Verdict]:
    """The goals that hold for this layout and whose contenders took part."""
    found = [(goal, bounded(goal, rounds)) for goal in workload.goals_in(layout)]
    return [
        Verdict(str(goal), measured, goal.met(measured.median))
        for goal, measured in found
        if measured is not None
    ]
