"""What a measurement must reach: thresholds such as ``p99<5ms`` or ``rate>=100k``, for whoever
decides by an exit status.

A condition is refused before anything is measured when its answer could not be an honest one: a
percentile that the report does not have would be guessed from its neighbours, and a time without a
unit would be read in the wrong one. What was not measured never holds, whichever way the comparison
goes: a run without a single reply is not one in which each was fast.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hydrogen.perf import report

PERCENTILES = tuple(report.PERCENTILES)
"""As a report names them."""

DISTRIBUTIONS = {
    "": "latency_us",
    "uncorrected.": "uncorrected_latency_us",
    "connect.": "connect_us",
    "handshake.": "handshake_us",
    "first_byte.": "first_byte_us",
    "burst.": "burst_us",
}
"""What may stand before a percentile -> the field of the result."""

TIMES = {
    f"{prefix}{percentile}": (field, percentile)
    for prefix, field in DISTRIBUTIONS.items()
    for percentile in PERCENTILES
}
"""Metric that is a time -> where the result has it."""

COUNTS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "rate": lambda result: result["messages_per_second"],
    "faults": lambda result: sum(result["faults"].values()),
    "dropped": lambda result: (result["open_loop"] or {}).get("dropped"),
    "late": lambda result: (result["open_loop"] or {}).get("late"),
}
"""Metric that is a count -> how the result says it."""

UNITS = {"rate": "messages/s", "faults": "faults"}
"""Of the counts that are not of messages."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

MICROSECONDS = {
    "ns": Fraction(1, 1000),
    "us": Fraction(1),
    "ms": Fraction(1000),
    "s": Fraction(1_000_000),
}

MULTIPLES = {"": Fraction(1), "k": Fraction(1000), "M": Fraction(1_000_000)}

KNOWN = (
    f"{', '.join(PERCENTILES)}, each also prefixed with {', '.join(filter(None, DISTRIBUTIONS))}, "
    f"and {', '.join(COUNTS)}"
)


@dataclass(frozen=True)
class Condition:
    """One threshold."""

    text: str
    """as the user wrote it"""
    metric: str
    comparison: str
    limit: float
    """microseconds, a count, or messages a second"""

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition that ``text`` is.

        Raises:
            ValueError: it is none; the message says what is wrong and what is allowed.
        """
        text = text.strip()
        parts = re.fullmatch(r"([^<>=!]*)([<>=!]+)([^<>=!]*)", text)
        if parts is None:
            raise ValueError(
                f"{text!r} is not a condition: expected METRIC OP VALUE, such as p99<5ms or "
                "rate>=100k"
            )
        metric, comparison, value = (part.strip() for part in parts.groups())
        if metric not in TIMES and metric not in COUNTS:
            raise ValueError(f"{text!r}: there is no metric {metric!r}; the metrics are {KNOWN}")
        if comparison not in COMPARISONS:
            raise ValueError(
                f"{text!r}: {comparison!r} is not a comparison; the comparisons are "
                f"{' '.join(COMPARISONS)}"
            )
        try:
            limit = time_limit(value) if metric in TIMES else count_limit(metric, value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{text!r}: {error}") from None
        return cls(text, metric, comparison, limit)

    def value(self, result: Mapping[str, Any]) -> float | None:
        """The figure in ``result``, of a report, in the unit of ``limit``; None when nothing was
        measured.
        """
        if self.metric in COUNTS:
            return COUNTS[self.metric](result)
        field, percentile = TIMES[self.metric]
        found: float | None = (result[field] or {}).get(percentile)
        return found

    def holds(self, result: Mapping[str, Any]) -> bool:
        """Whether the figure was measured and is as it must be."""
        value = self.value(result)
        return value is not None and COMPARISONS[self.comparison](value, self.limit)

    def describe(self, result: Mapping[str, Any]) -> str:
        """A line that says whether it held, and the figure."""
        value = self.value(result)
        shown = "nothing was measured" if value is None else self._shown(value)
        if value is not None and value != self.limit and shown == self._shown(self.limit):
            shown += f" ({value:,}{' us' if self.metric in TIMES else ''} exactly)"
        return f"{self.text}: {'held' if self.holds(result) else 'FAILED'}, {shown}"

    def _shown(self, value: float) -> str:
        if self.metric in TIMES:
            return report.scaled(value, ("us", "ms", "s"))
        return f"{value:,.0f} {UNITS.get(self.metric, 'messages')}"


def parse_all(text: str) -> list[Condition]:
    """The conditions in ``text``, between commas; ValueError as of :meth:`Condition.parse`."""
    return [Condition.parse(part) for part in text.split(",")]


def time_limit(value: str) -> float:
    """Microseconds."""
    number, unit = number_and_unit(value)
    if not unit:
        raise ValueError(f"a time needs a unit, one of {', '.join(MICROSECONDS)}")
    if unit not in MICROSECONDS:
        raise ValueError(f"{unit!r} is not a unit of time; the units are {', '.join(MICROSECONDS)}")
    return float(number * MICROSECONDS[unit])


def count_limit(metric: str, value: str) -> float:
    """Messages a second for the rate, else a number of them."""
    number, unit = number_and_unit(value.removesuffix("/s").rstrip() if metric == "rate" else value)
    if unit not in MULTIPLES:
        allowed = "k or M, then /s," if metric == "rate" else "k or M"
        raise ValueError(
            f"{unit!r} is not a unit of {metric}: expected a number, which {allowed} may follow"
        )
    return float(number * MULTIPLES[unit])


def number_and_unit(value: str) -> tuple[Fraction, str]:
    """Exactly what was written: 16.1 ms are not 16100 us in binary fractions."""
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(.*)", value)
    if parts is None:
        raise ValueError(
            f"{value!r} is not a number" if value else "there is no number to compare with"
        )
    return Fraction(parts[1]), parts[2]
