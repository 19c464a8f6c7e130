"""The comparison as Markdown for a person, and as JSON for a program."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from perf.rounds import Round, Spread, absolute, ratio, verdicts
from perf.servers import BEFORE
from perf.workloads import Workload

SCHEMA = {"name": "hydrogen.perf.compare", "version": 1}

NOISY = 0.2
"""Cores kept busy by others from which on figures, and with few rounds ratios too, are not to be
relied on.
"""


def number(value: float) -> str:
    """As many digits as are worth reading."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def with_range(found: Spread | None) -> str:
    if found is None:
        return "-"
    median, lowest, highest = (
        number(value) if found.median >= 10 else f"{value:.3f}"
        for value in dataclasses.astuple(found)
    )
    return f"{median} ({lowest}-{highest})"


def others(rounds: Sequence[Round]) -> float:
    """How many cores others kept busy, in the median run."""
    return statistics.median(run.get("others", 0.0) for each in rounds for run in each.values())


def markdown(name: str, workload: Workload, layout: str, rounds: Sequence[Round]) -> str:
    """One workload in one layout: a row a contender, then the goals."""
    contenders = list(rounds[0])
    references = [
        contender for contender in (*workload.references, BEFORE) if contender in contenders
    ]
    figures = [
        figure
        for figure in workload.columns
        if any(absolute(rounds, contender, figure) for contender in contenders)
    ]
    heads = ["contender", *(workload.columns[figure] for figure in figures)]
    heads += [f"{workload.columns[workload.compared]}, of {contender}" for contender in references]
    lines = [
        f"### {name}, {layout}: {workload.title}",
        "",
        "One round."
        if len(rounds) == 1
        else f"Medians of {len(rounds)} rounds; paired ratios with their range.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    known = list(workload.jobs)
    for contender in sorted(
        contenders,
        key=lambda contender: known.index(contender) if contender in known else len(known),
    ):  # a result may have a contender that is no more
        medians = [absolute(rounds, contender, figure) for figure in figures]
        cells = ["-" if found is None else number(found.median) for found in medians]
        cells += [
            with_range(ratio(rounds, contender, other, workload.compared)) for other in references
        ]
        lines.append(f"| {contender} | {' | '.join(cells)} |")
    lines.append("")
    noise = others(rounds)
    if noise > NOISY:
        lines.append(f"Others kept {noise:.2f} cores busy meanwhile: **too noisy to rely on**.\n")
    for verdict in verdicts(workload, layout, rounds):
        lines.append(
            f"- {verdict.goal}: **{'met' if verdict.met else 'MISSED'}**, "
            f"{with_range(verdict.measured)}"
        )
    return "\n".join(lines) + "\n"


def as_json(workload: Workload, layout: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """The rounds as they were, and the verdicts."""
    return {
        "title": workload.title,
        "layout": layout,
        "rounds": list(rounds),
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts(workload, layout, rounds)],
    }
