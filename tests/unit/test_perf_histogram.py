"""Bucket arithmetic and percentiles of the load generator."""

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from hydrogen.perf.histogram import BUCKETS, LARGEST, bucket_of, middle_of, percentile

EDGES = sorted({max(0, (1 << power) + offset) for power in range(40) for offset in (-1, 0, 1)})


def counted(values):
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return counts


@pytest.mark.parametrize("value", EDGES)
def test_the_middle_of_a_bucket_is_within_a_fifth_of_a_percent_of_its_values(value):
    assert math.isclose(middle_of(bucket_of(value)), value, rel_tol=0.002)


def test_buckets_follow_each_other_without_gap_or_overlap():
    buckets = [bucket_of(value) for value in range(1 << 14)]
    assert sorted(set(buckets)) == list(range(buckets[-1] + 1))
    assert buckets == sorted(buckets)


def test_values_past_the_largest_share_the_last_bucket():
    assert bucket_of(LARGEST) == bucket_of(LARGEST + 1) == bucket_of(1 << 63) == BUCKETS - 1


def test_nothing_recorded_has_no_percentile():
    assert percentile([0] * BUCKETS, 50) is None


@hypothesis.given(
    st.lists(st.integers(0, LARGEST), min_size=1, max_size=200),
    st.sampled_from([0, 50, 90, 99, 99.9, 100]),
)
def test_a_percentile_is_the_value_of_that_rank(values, percent):
    rank = max(1, math.ceil(len(values) * percent / 100))
    assert math.isclose(
        percentile(counted(values), percent), sorted(values)[rank - 1], rel_tol=0.002
    )
