"""Pictures for docs/performance.md, as SVG: the same data gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from perf.rounds import Spread

COLOURS = {
    "hydrogen": "#d1242f",
    "uvloop": "#0969da",
    "asyncio": "#57a0d3",
    "gevent": "#1a7f37",
    "threads": "#9a6700",
    "socketserver": "#9a6700",
    "twisted": "#8250df",
    "picows": "#0f8f8f",
    "websockets": "#bf3989",
    "aiohttp": "#2c5bb4",
    "socketify": "#6e5494",
    "c": "#24292f",
}
"""Of a contender, or of its family; in the order in which they are drawn."""
OTHER = "#8c959f"

CALLED = {"c": "C limit"}

TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)

INCHES_CONTENDER, INCHES_GAP, INCHES_AROUND, WIDTH = 0.15, 0.16, 1.35, 9.6

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: a tenth of the lines, and it can be searched
    "svg.hashsalt": "hydrogen",  # else the names of clip paths are random
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9,
    "text.color": "#24292f",
    "axes.labelcolor": "#24292f",
}


@dataclass(frozen=True)
class Row:
    """One workload."""

    name: str
    figure: str
    reference: str
    ratios: dict[str, Spread]
    """contender -> how many times better than the reference; drawn in this order"""


def colour(contender: str) -> str:
    return COLOURS.get(contender) or COLOURS.get(contender.partition("-")[0], OTHER)


def order(contender: str) -> tuple[bool, int]:
    """A sort key: families as above, the C limit behind all."""
    families = list(COLOURS)
    family = contender.partition("-")[0]
    return contender == "c", families.index(family) if family in families else len(families)


def variant(contender: str) -> bool:
    """Whether it is its family's second contender: drawn hollow."""
    return contender not in COLOURS


def times(value: float) -> str:
    """A ratio, with as many digits as are worth reading."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def marks(axes: Axes, row: Row, top: float) -> None:
    """The row's contenders, from ``top`` downwards: median and range of each."""
    for place, (contender, found) in enumerate(row.ratios.items()):
        y, tint, ours = (
            top + (place + 0.5) * INCHES_CONTENDER,
            colour(contender),
            contender == "hydrogen",
        )
        axes.plot(
            [found.lowest, found.highest],
            [y, y],
            color=tint,
            linewidth=4 if ours else 2,
            alpha=0.4,
            solid_capstyle="butt",
            zorder=2,
        )
        axes.plot(
            [found.median],
            [y],
            marker="D" if contender == "c" else "o",
            markersize=8 if ours else 5.5,
            color=tint,
            markerfacecolor="white" if variant(contender) else tint,
            markeredgewidth=1.3,
            linestyle="none",
            zorder=4 if ours else 3,
        )


def legend(figure: Figure, contenders: Sequence[str], height: float) -> None:
    """Every contender that is drawn, above the rows."""
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="D" if contender == "c" else "o",
            markersize=8 if contender == "hydrogen" else 6,
            color=colour(contender),
            markerfacecolor="white" if variant(contender) else colour(contender),
            label=CALLED.get(contender, contender),
        )
        for contender in contenders
    ]
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.36 / height),
        ncols=min(len(handles), 7),
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.4,
    )


def ticks(lowest: float, highest: float) -> list[float]:
    return [tick for tick in TICKS if lowest <= tick <= highest]


def tops(rows: Sequence[Row]) -> Iterator[tuple[Row, float, float]]:
    """Each row with where it begins and ends, in inches from the first."""
    y = 0.0
    for row in rows:
        height = max(len(row.ratios), 2) * INCHES_CONTENDER + INCHES_GAP
        yield row, y, y + height
        y += height


def overview(rows: Sequence[Row], title: str, path: Path) -> None:
    """How many times better than its reference each contender is, a row a workload, on a
    logarithmic axis.
    """
    contenders = sorted({contender: None for row in rows for contender in row.ratios}, key=order)
    placed = list(tops(rows))
    inside = placed[-1][2]
    around = INCHES_AROUND + 0.2 * ((len(contenders) - 1) // 7)
    height = inside + around
    values = [
        value
        for row in rows
        for found in row.ratios.values()
        for value in (found.lowest, found.highest)
    ]
    lowest, highest = min(0.8, *values) / 1.15, max(1.25, *values) * 1.15
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        axes = figure.add_axes((0.235, 0.55 / height, 0.61, inside / height))
        axes.set_xscale("log")
        axes.set_xlim(lowest, highest)
        axes.set_ylim(inside, 0)
        for number, (row, top, bottom) in enumerate(placed):
            if number % 2 == 0:
                axes.axhspan(top, bottom, color="#f6f8fa", zorder=0)
            marks(axes, row, top + (bottom - top - len(row.ratios) * INCHES_CONTENDER) / 2)
            middle = (top + bottom) / 2
            beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(-0.02, middle - 0.07, row.name, ha="right", weight="bold", **beside)
            axes.text(
                -0.02, middle + 0.09, row.figure, ha="right", size=7.5, color="#57606a", **beside
            )
            ours = row.ratios["hydrogen"].median
            axes.text(
                1.02,
                middle,
                f"{times(ours)} x {row.reference}",
                ha="left",
                weight="bold",
                color=colour("hydrogen"),
                **beside,
            )
        axes.axvline(1, color="#57606a", linewidth=1, zorder=1)
        axes.xaxis.set_major_locator(FixedLocator(ticks(lowest, highest)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_locator(NullLocator())
        axes.grid(axis="x", color="#d0d7de", linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", length=0, colors="#57606a")
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel(
            "times the reference, which is 1 (logarithmic)        better  \N{RIGHTWARDS ARROW}"
        )
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", size=11, weight="bold")
        legend(figure, contenders, height)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
