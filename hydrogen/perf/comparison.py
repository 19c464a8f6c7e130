"""``python -m hydrogen.perf compare A.json B.json``: reports side by side, with their ratios to the
first.

Figures of different machines or different settings do not compare; so every difference of those
stands below the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrogen.perf import plot, report
from hydrogen.perf.report import TIMES, scaled

Report = Mapping[str, Any]
Row = tuple[str, Callable[[float], str], list[float | None]]
"""A name, how a value is shown, and the values."""

DISTRIBUTIONS = {
    "latency_us": "latency",
    "uncorrected_latency_us": "uncorrected",
    "burst_us": "whole burst",
    "connect_us": "connect",
    "handshake_us": "handshake",
    "first_byte_us": "first byte",
}


def load(path: Path) -> dict[str, Any]:
    """The report in that file. Raises ValueError for what is none, or of another version."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, dict) or schema.get("name") != report.SCHEMA["name"]:
        raise ValueError(f"{path} is not a report of python -m hydrogen.perf")
    if schema.get("version") != report.SCHEMA["version"]:
        raise ValueError(
            f"{path} has schema version {schema.get('version')}; this program reads version "
            f"{report.SCHEMA['version']}"
        )
    return dict(document)


def rows(reports: Sequence[Report]) -> list[Row]:
    """A row for each figure that any of the reports has."""
    results = [each["result"] for each in reports]
    found: list[Row] = [
        (
            "throughput",
            lambda value: f"{value:,.0f} messages/s",
            [result["messages_per_second"] for result in results],
        ),
        (
            "payload each way",
            lambda value: f"{scaled(value, ('B', 'kB', 'MB', 'GB'))}/s",
            [result["payload_bytes_per_second"] for result in results],
        ),
    ]
    for field, name in DISTRIBUTIONS.items():
        for percentile in next((result[field] for result in results if result[field]), {}):
            values = [(result[field] or {}).get(percentile) for result in results]
            found.append((f"{name} {percentile}", lambda value: scaled(value, TIMES), values))
    if any(result["open_loop"] for result in results):
        for name in ("late", "dropped"):
            found.append(
                (
                    name,
                    lambda value: f"{value:,.0f}",
                    [(result["open_loop"] or {}).get(name) for result in results],
                )
            )
    found.append(
        (
            "faults",
            lambda value: f"{value:,.0f}",
            [sum(result["faults"].values()) for result in results],
        )
    )
    for side in ("generator", "server"):
        usage = [(result[side] or {}).get("us_per_message") for result in results]
        found.append((f"{side} CPU", lambda value: f"{scaled(value, TIMES)}/message", usage))
    return [row for row in found if any(value is not None for value in row[2])]


def differences(reports: Sequence[Report]) -> list[str]:
    """What keeps the reports from being compared, a line each: every option and every fact of the
    machine that is not the same.
    """
    found = []
    for part in ("configuration", "machine"):
        for name in dict.fromkeys(name for each in reports for name in each[part]):
            values = [each[part].get(name) for each in reports]
            if any(value != values[0] for value in values):
                found.append(f"{part}: {name} is {' / '.join(map(str, values))}")
    return found


def doubts(names: Sequence[str], reports: Sequence[Report]) -> list[str]:
    """What makes the figures of single reports doubtful."""
    found = []
    for name, each in zip(names, reports, strict=True):
        if each["interrupted"]:
            found.append(f"warning: {name} was interrupted")
        if any(each["result"]["faults"].values()):
            found.append(f"warning: {name} had faults")
        if each["result"]["generator"]["bottleneck"]:
            found.append(f"warning: in {name} the generator may have been the bottleneck")
    return found


def table(names: Sequence[str], reports: Sequence[Report]) -> str:
    """The whole comparison as text."""
    lines = [["", *names]]
    for name, show, values in rows(reports):
        cells = [name]
        for index, value in enumerate(values):
            cell = "-" if value is None else show(value)
            if index and value is not None and values[0]:
                cell += f"  x{value / values[0]:.3f}"
            cells.append(cell)
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    text = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
            ]
        )
        for line in lines
    ]
    return "\n".join([*text, *differences(reports), *doubts(names, reports)])


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m hydrogen.perf compare",
        description="Compare reports written by --json, side by side, with ratios to the first.",
    )
    p.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT.json", help="two or more reports"
    )
    p.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot latency and throughput, as .svg or .png (needs matplotlib)",
    )
    given = p.parse_args(arguments)
    if len(given.reports) < 2:
        p.error("give two or more reports")
    names = [str(path) for path in given.reports]
    try:
        if given.plot is not None:
            plot.check(given.plot)
        reports = [load(path) for path in given.reports]
        print(table(names, reports))
        if given.plot is not None:
            plot.draw(reports, names, given.plot)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
