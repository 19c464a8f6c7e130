"""Log-linear histograms of nanoseconds, in the manner of HdrHistogram.

Values below 512 have a bucket each; above, every power of two is divided into 256 buckets, so a bucket is never wider
than 1/256 of its values and the middle of it is within 0.2 % of each of them. Values from 2**40 ns (18 minutes) up
share the last bucket. The hot loops record into plain arrays of ``BUCKETS`` counts; the compiled one repeats the
arithmetic of :func:`bucket_of` in C, and a test holds the two together.
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


def percentile(counts: Sequence[int], percent: float) -> float | None:
    """The value, in nanoseconds, that ``percent`` of the recorded values do not exceed; None without values."""
    total = sum(counts)
    if not total:
        return None
    wanted = max(1.0, total * percent / 100)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return middle_of(bucket)
    raise AssertionError("the counts cannot sum to less than their sum")
