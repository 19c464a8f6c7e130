"""Reports as a picture: latency by percentile, and throughput over time.

Needs matplotlib, which is imported when a plot is asked for and not before. Its ``pyplot`` is not
used: that keeps every figure for a user who looks at it, and chooses how by what the machine has.
Nor are the user's own settings: the same reports make the same file.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

SUFFIXES = (".svg", ".png")

SETTINGS = {
    "svg.hashsalt": "hydrogen.perf",  # without one, the identifiers in an SVG file are random
    "text.parse_math": False,  # names are no markup
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "figure.constrained_layout.w_pad": 0.12,  # inches
    "figure.constrained_layout.h_pad": 0.06,
}

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito, whom also those can follow who do not see all colours."""

MARKERS = ("", "o", "s", "^", "D", "v", "X")
"""For the reports after those that the colours suffice for."""

LOGARITHMIC = 10.0
"""The ratio of the greatest latency to the least from which on a linear axis would press most of
the curve onto its foot.
"""

LEAST_US = 1e-3
"""A nanosecond, for what took less: a logarithmic axis has no 0."""

LONGEST_NAME = 60
"""Characters that the legend has room for; of a longer name it has the end, where paths differ."""


def check(path: Path) -> None:
    """Refuse before a measurement what could not be drawn after it.

    Raises:
        ValueError: the name does not end as that of a picture should, its folder is not there, or
            matplotlib is not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a plot's name must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no directory {path.parent}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"a plot needs matplotlib: pip install 'hydrogen-server[plot]' ({error})"
        ) from error


def draw(reports: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """Draw ``reports`` under these names into the file ``path``, in the format that it ends in;
    OSError when it cannot be written.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [
        curve
        for index, named in enumerate(zip(reports, names, strict=True))
        for curve in curves_of(*named, style(index))
    ]
    columns = min(len(curves), max(1, 150 // (max(len(curve.name) for curve in curves) + 8)))
    # inches: the legend takes none from the panels
    height = 5.0 + 0.25 * math.ceil(len(curves) / columns)
    format = path.suffix.lower().removeprefix(".")
    with matplotlib.style.context(["default", SETTINGS]):
        figure = Figure(figsize=(12, height), dpi=120, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        latency, throughput = figure.subplots(1, 2)
        lines = draw_latency(latency, curves)
        draw_throughput(throughput, reports)
        figure.suptitle("\n".join(textwrap.wrap(title(reports), 110)))
        # A name that begins with "_" would be left out: the legend learns them when it is made.
        legend = figure.legend(
            lines, ["?"] * len(lines), loc="outside lower center", ncols=columns, frameon=False
        )
        for text, curve in zip(legend.get_texts(), curves, strict=True):
            text.set_text(curve.name)
        figure.savefig(path, format=format, metadata={"Date": None} if format == "svg" else None)


def style(index: int) -> dict[str, Any]:
    """How the lines of a report look, but for their dashes."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index // len(COLOURS) % len(MARKERS)],
        "markersize": 4,
    }


def seen(style: Mapping[str, Any], points: int) -> dict[str, Any]:
    """The same for so many points, of which a single one would make an invisible line."""
    return {**style, "marker": style["marker"] or "o"} if points == 1 else {**style}


def say_nothing(axes: Axes) -> None:
    """For a panel without a line."""
    axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", va="center")


# -- what was measured -----------------------------------------------------------------------------


def title(reports: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, as far as that is the same in all ``reports``."""
    first, *others = map(subject, reports)
    return (
        ", ".join(part for part in first if all(part in other for other in others))
        or "different measurements"
    )


def subject(report: Mapping[str, Any]) -> list[str]:
    """What one report measured, in parts."""
    options, open_loop = report["configuration"], report["result"]["open_loop"]
    if options["churn"]:
        flight = "a new one for each message"
    elif options["burst"]:
        flight = f"bursts of {options['in_flight']:,}"
    else:
        flight = f"{options['in_flight'] or 1:,} in flight"
    size = f"{options['size']:,}" if isinstance(options["size"], int) else options["size"]
    parts = [
        f"echo of {options['payload'] or f'{size} bytes'}",
        f"{options['framing']} framing",
        report["tls"],
        f"{options['connections']:,} connections",
        f"{open_loop['target_per_second']:,.0f} messages/s due" if open_loop else flight,
        options["address"]
        if isinstance(options["address"], str)
        else "{}:{}".format(*options["address"]),
    ]
    return [part for part in parts if part]


# -- latency by percentile -------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A line of the left panel."""

    name: str
    style: Mapping[str, Any]
    points: Sequence[tuple[float, float]]
    """where a percentile is drawn, and its microseconds"""


def curves_of(report: Mapping[str, Any], name: str, style: Mapping[str, Any]) -> list[Curve]:
    """The latencies of ``report``; dashed those that an open loop has as well, without
    correction.
    """
    result = report["result"]
    if len(name) > LONGEST_NAME:
        name = f"...{name[3 - LONGEST_NAME :]}"
    curves = [Curve(name, style, points_of(result["latency_curve"], result["messages"]))]
    if result["uncorrected_latency_curve"] is not None:
        points = points_of(result["uncorrected_latency_curve"], result["messages"])
        curves.append(Curve(f"{name}, uncorrected", {**style, "linestyle": "--"}, points))
    return curves


def points_of(curve: Sequence[Sequence[float]], messages: int) -> list[tuple[float, float]]:
    """A quantile q goes to 1/(1-q), which gives each further nine the same room.

    The longest of n latencies stands at n, as the quantile 1-1/n: there is none between them, and 1
    would be infinitely far.
    """
    places = (100 / (100 - percent) if percent < 100 else float("inf") for percent, _ in curve)
    return [
        (min(place, messages), max(us, LEAST_US))
        for place, (_, us) in zip(places, curve, strict=True)
    ]


def draw_latency(axes: Axes, curves: Sequence[Curve]) -> list[Line2D]:
    """The left panel; a line for each curve."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    latencies = [us for curve in curves for _, us in curve.points]
    furthest = max([10.0, *(place for curve in curves for place, _ in curve.points)])
    unit, divisor = ("ms", 1e3) if max(latencies, default=0.0) >= 1e3 else ("us", 1.0)
    lines = []
    for curve in curves:
        places, values = (
            [place for place, _ in curve.points],
            [us / divisor for _, us in curve.points],
        )
        lines += axes.plot(places, values, **seen(curve.style, len(places)))
    nines = range(len(f"{furthest:.0f}"))
    axes.set_title("latency by percentile")
    axes.set_xlabel("percentile of the messages")
    axes.set_xscale("log")
    axes.set_xlim(1, furthest * 1.2)
    axes.set_xticks([10**count for count in nines], [percent(count) for count in nines])
    if len(nines) > 7:  # their labels would run into each other
        axes.tick_params(axis="x", labelrotation=20)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(f"latency ({unit})")
    if latencies and max(latencies) >= LOGARITHMIC * min(latencies):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(
            LogLocator(
                subs=(1, 2, 5) if max(latencies) < 1e3 * min(latencies) else (1,), numticks=20
            )
        )
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, max(latencies, default=divisor) / divisor * 1.1)
    axes.yaxis.set_major_formatter(FuncFormatter(number))
    if not latencies:
        say_nothing(axes)
    return lines


def percent(nines: int) -> str:
    """The percentile of so many nines: 0 %, 90 %, 99 %, 99.9 %."""
    return f"{100 - 100 / 10**nines:.{max(0, nines - 2)}f} %"


def number(value: float, _: object = None) -> str:
    """A number at an axis: never as a power of ten."""
    return f"{value:,.10g}"


# -- throughput over time --------------------------------------------------------------------------


def draw_throughput(axes: Axes, reports: Sequence[Mapping[str, Any]]) -> None:
    """The right panel."""
    from matplotlib.ticker import FuncFormatter

    for index, report in enumerate(reports):
        series = report["result"]["series"]
        axes.plot(
            series["seconds"],
            series["messages_per_second"],
            **seen(style(index), len(series["seconds"])),
        )
    rates = [
        rate for report in reports for rate in report["result"]["series"]["messages_per_second"]
    ]
    axes.set_title("throughput over time")
    axes.set_xlabel("time (s)")
    axes.set_xlim(left=0)
    axes.set_ylabel("throughput (messages/s)")
    axes.set_ylim(0, max(rates, default=0.0) * 1.1 or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(number))
    if not rates:
        say_nothing(axes)
