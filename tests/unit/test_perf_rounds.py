"""How the comparison takes turns, and finds the rates of an open loop."""

import dataclasses

import pytest

from hydrogen.watchdog import has_gil

RATE = "messages_per_second"

pytestmark = pytest.mark.usefixtures("perf_found")


@pytest.fixture
def settings(tmp_path):
    from perf.settings import Settings

    return Settings(
        folder=tmp_path,
        rounds=3,
        duration=1.0,
        warm_up=0.0,
        handoff="auto",
        idle_connections=10,
        quiet=None,
    )


@pytest.fixture
def run(monkeypatch, settings):
    """Runs a workload with these measuring functions; returns the rounds, and who was measured in
    which order.
    """

    def run(measure, closed=None):
        from perf import rounds
        from perf.settings import Layout
        from perf.workloads import WORKLOADS

        order = []

        def noted(contender, layout, settings):
            order.append(contender.name)
            return measure(contender, settings)

        changed = dataclasses.replace(WORKLOADS["W1"], measure=noted, closed=closed)
        monkeypatch.setitem(WORKLOADS, "W1", changed)
        return rounds.run("W1", ["c", "uvloop", "hydrogen"], Layout("shared"), settings), order

    return run


def test_contenders_take_turns_and_every_second_round_is_mirrored(run):
    rounds, order = run(lambda contender, settings: {"mirrored": settings.mirrored})
    assert order == [
        "c",
        "uvloop",
        "hydrogen",
        "hydrogen",
        "uvloop",
        "c",
        "c",
        "uvloop",
        "hydrogen",
    ]
    assert [{figures["mirrored"] for figures in each.values()} for each in rounds] == [
        {False},
        {True},
        {False},
    ]


def test_the_peak_is_the_slowest_contenders_median_in_a_closed_loop(run):
    """A single slow run of another contender decides nothing."""
    rates = {
        "c": iter([200, 10, 190]),
        "uvloop": iter([100, 130, 110]),
        "hydrogen": iter([150, 150, 150]),
    }
    rounds, order = run(
        lambda contender, settings: {"peak": settings.peak},
        closed=lambda contender, layout, settings: {RATE: next(rates[contender.name])},
    )
    assert len(order) == 9
    assert {figures["peak"] for each in rounds for figures in each.values()} == {110}


def test_a_closed_loop_has_no_peak(run):
    rounds, _ = run(lambda contender, settings: {"peak": settings.peak})
    assert rounds[0]["c"]["peak"] is None


@pytest.mark.parametrize(("mirrored", "rates"), [(False, [500, 700, 850]), (True, [850, 700, 500])])
def test_rates_are_shares_of_the_peak(monkeypatch, settings, mirrored, rates):
    from perf import loads
    from perf.settings import Layout

    asked = []

    def load(**options):
        asked.append(options)
        told = ("p50_us", "p99_us", "p99.9_us", "max_us", "server_share", "generator_share")
        return lambda contender, layout, settings: {
            **dict.fromkeys(told, options["rate"]),
            "others": options["rate"] / 1000,
        }

    monkeypatch.setattr(loads, "load", load)
    figures = loads.at_rates(size=64)(
        None, Layout("shared"), dataclasses.replace(settings, peak=1000.0, mirrored=mirrored)
    )
    assert [options["rate"] for options in asked] == rates
    assert all(options["size"] == 64 for options in asked)
    assert [figures[f"p99_us_at_{share}"] for share in (50, 70, 85)] == [500, 700, 850]
    # of the noisiest, for that decides whether the run is believed
    assert figures["others"] == 0.85


def test_a_burst_that_did_not_come_to_its_end_has_no_figure(monkeypatch, settings):
    import contextlib
    import os
    import types

    from perf import loads
    from perf.servers import Contender
    from perf.settings import Layout

    @contextlib.contextmanager
    def started(contender, cpu):
        yield types.SimpleNamespace(pid=os.getpid(), port=1)

    usage = {"us_per_message": 1.0, "share": 0.5}
    result = {
        RATE: 5.0,
        "latency_us": {"p50": 7.0, "p98": None},
        "burst_us": {"p50": None},
        "server": usage,
        "generator": usage,
    }
    monkeypatch.setattr(loads, "started", started)
    monkeypatch.setattr(loads, "generate", lambda port, options, cpu: {"result": result})
    figures = loads.load(burst=100)(Contender("hydrogen", "simple", []), Layout("shared"), settings)
    assert figures["p50_us"] == 7.0
    assert not {"p98_us", "burst_p50_us"} & figures.keys()


def test_every_open_loop_shows_what_it_is_compared_in():
    from perf.workloads import WORKLOADS

    assert [name for name, workload in WORKLOADS.items() if workload.closed is not None] == ["W1o"]
    assert all(workload.compared in workload.columns for workload in WORKLOADS.values())


def test_contenders_that_need_a_python_without_a_gil_are_left_out_where_there_is_one(settings):
    from perf.servers import contender_called, missing

    for contender, workers, loops in (
        ("workers-1", "1", "1"),
        ("workers-2", "2", "1"),
        ("loops-2", "2", "2"),
    ):
        assert missing(contender) == ("Python without a GIL" if has_gil() else None)
        words = contender_called(contender, "raw", settings).words
        assert (words[words.index("--threads") + 1], words[words.index("--loops") + 1]) == (
            workers,
            loops,
        )
