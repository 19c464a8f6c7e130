"""Log-linear histograms of nanoseconds, in the manner of HdrHistogram.

Values below 512 have a bucket each; above, every power of two is divided into 256 buckets, so a
bucket is never wider than 1/256 of its values and the middle of it is within 0.2 % of each of them.
Values from 2**40 ns (18 minutes) up share the last bucket. The hot loops record into plain arrays
of ``BUCKETS`` counts; the compiled one repeats the arithmetic of :func:`bucket_of` in C, and a test
holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence

SUB_BITS = 8
LARGEST = (1 << 40) - 1


def bucket_of(value: int) -> int:
    """The index of the bucket that counts ``value`` (nanoseconds, at least 0)."""
    value = min(value, LARGEST)
    shift = max(0, value.bit_length() - (SUB_BITS + 1))
    return (shift << SUB_BITS) + (value >> shift)


BUCKETS = bucket_of(LARGEST) + 1


def middle_of(bucket: int) -> float:
    """The middle, in nanoseconds, of the values that ``bucket`` counts."""
    shift = max(0, (bucket >> SUB_BITS) - 1)
    lowest = (bucket - (shift << SUB_BITS)) << shift
    return lowest + ((1 << shift) - 1) / 2


def percentiles(counts: Sequence[int], wanted: Sequence[float]) -> list[float] | None:
    """The values, in nanoseconds, that so many percent (ascending) of the recorded values do not
    exceed; None without values.
    """
    total = sum(counts)
    if not total:
        return None
    found: list[float] = []
    seen = 0
    ranks = [max(1.0, total * percent / 100) for percent in wanted]
    for bucket, count in enumerate(counts):
        seen += count
        while count and len(found) < len(ranks) and seen >= ranks[len(found)]:
            found.append(middle_of(bucket))
    return found


def percentile(counts: Sequence[int], percent: float) -> float | None:
    """The value, in nanoseconds, that ``percent`` of the recorded values do not exceed; None
    without values.
    """
    found = percentiles(counts, [percent])
    return None if found is None else found[0]


def curve(counts: Sequence[int]) -> list[tuple[float, float]]:
    """Percentiles and their values in nanoseconds: five between 0 and 50, five between that and 75,
    and so on, to the largest value.
    """
    total = sum(counts)
    steps: list[float] = []
    while total and (not steps or steps[-1] < 100 - 100 / total):
        steps.append(100 - 100 * 0.5 ** (len(steps) / 5))
    found = percentiles(counts, [*steps, 100.0]) or []
    return list(zip([*steps, 100.0], found, strict=False))
