"""The search for the highest rate at which a condition holds, over a server that is a formula; and
throughput over time.
"""

import dataclasses
import math
import time

import pytest
from perf_reports import result

from hydrogen.perf import search
from hydrogen.perf.conditions import parse_all
from hydrogen.perf.options import Options
from hydrogen.perf.series import POINTS_MOST, Series

CONDITIONS = tuple(parse_all("p99<10ms"))


class Server:
    """Answers in a millisecond up to its `capacity`, and above in a second; some tries fail for no
    reason of its own.
    """

    def __init__(self, capacity, peak, unlucky=()):
        self.capacity, self.peak, self.unlucky = capacity, peak, set(unlucky)
        self.rates = []

    def measure(self, options):
        self.rates.append(options.rate)
        rate = options.rate or self.peak
        slow = rate > self.capacity or len(self.rates) in self.unlucky
        made = result([1_000_000 if slow else 1000], seconds=1.0, options=options)
        return dataclasses.replace(
            made, counters=dataclasses.replace(made.counters, messages=math.ceil(rate))
        )


def found_by(server):
    said = []
    return search.search(Options(("127.0.0.1", 1)), CONDITIONS, server.measure, said.append), said


@pytest.mark.parametrize(
    ("capacity", "peak"), [(100_000, 80_000), (100_000, 10_000), (3_000, 100_000), (50, 100_000)]
)
def test_the_rate_found_is_within_five_percent_of_what_the_server_can_bear(capacity, peak):
    found, said = found_by(Server(capacity, peak))
    assert found.ok
    assert capacity / search.CLOSE <= found.best.rate <= capacity
    assert len(said) == len(found.tries) + 1


def test_a_try_that_fails_is_repeated_once():
    found, _ = found_by(Server(100_000, 80_000, unlucky=[2]))
    assert 100_000 / search.CLOSE <= found.best.rate <= 100_000
    assert [each.held for each in found.tries[:2]] == [False, True]


def test_a_condition_that_never_holds_ends_the_search_at_one_message_per_second():
    found, _ = found_by(Server(0.5, 1000))
    assert not found.ok
    assert found.best is None
    assert found.tries[-1].rate == 1
    assert "did not hold at any rate" in search.told(found)


@pytest.mark.parametrize(
    "fault", [{"interrupted": True}, {"wrong": 1}, {"connect_failures": 1}], ids=str
)
def test_what_no_rate_explains_ends_the_search(fault):
    def measure(options):
        return result([1000], seconds=1.0, options=options, **fault)

    found = search.search(Options(("127.0.0.1", 1)), CONDITIONS, measure, lambda _: None)
    assert not found.ok
    assert found.tries == ()
    assert "ended early" in search.told(found)
    assert search.as_json(found)["broken"]["schema"]["name"] == "hydrogen.perf"


def test_a_rate_that_is_not_reached_does_not_hold():
    reached = result([1000] * 50, seconds=1.0, options=Options(("127.0.0.1", 1), rate=100.0))
    assert not search.holds(reached, CONDITIONS)
    assert search.holds(
        dataclasses.replace(reached, options=Options(("127.0.0.1", 1), rate=50.0)), CONDITIONS
    )


def test_the_json_has_every_try():
    found, _ = found_by(Server(100_000, 80_000))
    document = search.as_json(found)
    assert document["found_per_second"] == found.best.rate
    assert [each["rate"] for each in document["tries"]] == [each.rate for each in found.tries]
    assert document["conditions"] == ["p99<10ms"]


# -- throughput over time --------------------------------------------------------------------------


def test_rates_are_those_between_the_samples(monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 14.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    series = Series()
    series.add(5)  # not begun
    series.begin()
    series.add(100)
    series.add(500)
    series.end(500)
    series.add(600)  # over
    assert series.rates() == ([1.0, 3.0, 4.0], [100.0, 200.0, 0.0])


def test_a_long_series_is_thinned_out(monkeypatch):
    clock = iter(range(1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    series = Series()
    series.begin()
    for count in range(10 * POINTS_MOST):
        series.add(count)
    series.end(10 * POINTS_MOST)
    moments, rates = series.rates()
    assert POINTS_MOST / 3 < len(moments) <= POINTS_MOST + 1
    assert moments == sorted(moments)
    assert sum(rates) > 0
