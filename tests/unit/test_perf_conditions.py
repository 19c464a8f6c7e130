"""Thresholds on a report: what is one, and when it holds."""

import hypothesis
import pytest
from hypothesis import strategies as st

from hydrogen.perf.conditions import (
    COMPARISONS,
    COUNTS,
    MICROSECONDS,
    PERCENTILES,
    TIMES,
    Condition,
    parse_all,
)

RESULT = {
    "messages_per_second": 123_456.7,
    "latency_us": {name: 100.0 * 2**i for i, name in enumerate(PERCENTILES)},
    "uncorrected_latency_us": {name: 1.0 + i for i, name in enumerate(PERCENTILES)},
    "connect_us": {name: 11.0 + i for i, name in enumerate(PERCENTILES)},
    "handshake_us": {name: 21.0 + i for i, name in enumerate(PERCENTILES)},
    "first_byte_us": {name: 31.0 + i for i, name in enumerate(PERCENTILES)},
    "burst_us": {name: 41.0 + i for i, name in enumerate(PERCENTILES)},
    "open_loop": {"target_per_second": 1e5, "late": 7, "late_after_us": 1000.0, "dropped": 3},
    "faults": {
        "connect_failures": 1,
        "wrong_replies": 2,
        "closed_by_server": 4,
        "connection_errors": 8,
        "unanswered": 16,
        "idle_lost": 32,
    },
}

NOTHING = {
    "latency_us": dict.fromkeys(PERCENTILES),
    "uncorrected_latency_us": None,
    "connect_us": None,
    "handshake_us": None,
    "first_byte_us": None,
    "burst_us": None,
    "open_loop": None,
}
"""What a run says in which these were not measured."""


def refusal(text):
    """The message with which `text` is refused."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - each test looks into the message
        Condition.parse(text)
    return str(refused.value)


# -- parsing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "metric", "comparison", "limit"),
    [
        ("p99<5ms", "p99", "<", 5000),
        (" p99.99  <=  250 us ", "p99.99", "<=", 250),
        ("p50>800ns", "p50", ">", 0.8),
        ("max<1s", "max", "<", 1e6),
        ("p75<16.1ms", "p75", "<", 16100),
        ("uncorrected.p99.9<2ms", "uncorrected.p99.9", "<", 2000),
        ("first_byte.max<2ms", "first_byte.max", "<", 2000),
        ("rate>=100k", "rate", ">=", 100_000),
        ("rate >= 1.5 M/s", "rate", ">=", 1_500_000),
        ("rate>=250 /s", "rate", ">=", 250),
        ("faults<=0", "faults", "<=", 0),
        ("dropped<1k", "dropped", "<", 1000),
        ("late<=10", "late", "<=", 10),
    ],
)
def test_a_condition_is_a_metric_a_comparison_and_a_value_in_any_of_its_units(
    text, metric, comparison, limit
):
    condition = Condition.parse(text)
    assert (condition.metric, condition.comparison, condition.limit) == (metric, comparison, limit)
    assert str(condition) == text.strip()


@hypothesis.given(
    st.sampled_from(sorted(TIMES)),
    st.sampled_from(sorted(COMPARISONS)),
    st.decimals(0, 10**6, places=3),
    st.sampled_from(sorted(MICROSECONDS)),
)
def test_every_metric_comparison_and_unit_combine(metric, comparison, number, unit):
    condition = Condition.parse(f"{metric}{comparison}{number}{unit}")
    assert (condition.metric, condition.comparison) == (metric, comparison)
    assert condition.limit == pytest.approx(
        float(number) * {"ns": 1e-3, "us": 1, "ms": 1e3, "s": 1e6}[unit], rel=1e-12
    )


@pytest.mark.parametrize(
    "metric",
    [
        "p97",
        "p99.95",
        "p100",
        "P99",
        "mean",
        "latency.p99",
        "connect.rate",
        "connect",
        "uncorrected.",
        "",
    ],
)
def test_a_metric_that_no_report_has_is_refused_with_a_list_of_those_there_are(metric):
    told = refusal(f"{metric}<5ms")
    assert f"there is no metric {metric!r}" in told
    for known in (
        "p50, p75, p90, p95, p98, p99, p99.9, p99.99, max",
        *COUNTS,
        "uncorrected.",
        "connect.",
        "handshake.",
        "first_byte.",
        "burst.",
    ):
        assert known in told


def test_a_time_without_a_unit_is_refused():
    assert refusal("p99<5") == "'p99<5': a time needs a unit, one of ns, us, ms, s"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p97<5ms", "there is no metric 'p97'"),
        ("p99<5m", "'m' is not a unit of time; the units are ns, us, ms, s"),
        ("p99<5k", "'k' is not a unit of time"),
        ("p99<5ms/s", "'ms/s' is not a unit of time"),
        ("faults<5ms", "'ms' is not a unit of faults: expected a number, which k or M may follow"),
        ("late<5/s", "'/s' is not a unit of late"),
        (
            "rate>5K",
            "'K' is not a unit of rate: expected a number, which k or M, then /s, may follow",
        ),
        ("rate>/s", "there is no number"),
        ("p99<", "there is no number"),
        ("p99<-5ms", "'-5ms' is not a number"),
        ("p99<fast", "'fast' is not a number"),
        ("p99<1e3us", "'e3us' is not a unit of time"),
        ("p99<\N{ARABIC-INDIC DIGIT FIVE}ms", "is not a number"),
        (f"p99<1{400 * '0'}s", "too large"),
        ("p99=5ms", "'=' is not a comparison; the comparisons are < <= > >="),
        ("p99==5ms", "'==' is not a comparison"),
        ("p99=<5ms", "'=<' is not a comparison"),
        ("p99!=5ms", "'!=' is not a comparison"),
        ("p99", "expected METRIC OP VALUE"),
        ("", "expected METRIC OP VALUE"),
        ("1ms<p99<5ms", "expected METRIC OP VALUE"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_is_allowed(text, told):
    assert told in refusal(text)
    assert refusal(text).startswith(repr(text))


def test_several_stand_between_commas():
    assert [str(condition) for condition in parse_all("p99<5ms, rate>=100k,faults<=0")] == [
        "p99<5ms",
        "rate>=100k",
        "faults<=0",
    ]
    for text in ("", "p99<5ms,", "p99<5ms,,max<1s", "rate>=100,000"):
        with pytest.raises(ValueError, match="METRIC OP VALUE"):
            parse_all(text)


# -- results ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("p50", 100),
        ("p99.99", 12_800),
        ("max", 25_600),
        ("uncorrected.p75", 2),
        ("connect.p90", 13),
        ("handshake.p95", 24),
        ("first_byte.p98", 35),
        ("burst.p99.9", 47),
        ("burst.max", 49),
    ],
)
def test_a_time_is_that_of_its_field_in_the_result(metric, value):
    assert Condition.parse(f"{metric}<1s").value(RESULT) == value


@pytest.mark.parametrize(
    ("metric", "value"), [("rate", 123_456.7), ("faults", 63), ("dropped", 3), ("late", 7)]
)
def test_a_count_is_that_of_the_result_and_faults_are_of_all_kinds(metric, value):
    assert Condition.parse(f"{metric}<1").value(RESULT) == value


@pytest.mark.parametrize(
    ("comparison", "below", "equal", "above"),
    [("<", 1, 0, 0), ("<=", 1, 1, 0), (">", 0, 0, 1), (">=", 0, 1, 1)],
)
def test_a_comparison_means_what_it_says_at_its_limit_too(comparison, below, equal, above):
    condition = Condition.parse(f"connect.p50{comparison}0.25ms")
    assert [
        condition.holds({"connect_us": {"p50": value}}) for value in (249.999, 250.0, 250.001)
    ] == [below, equal, above]


@pytest.mark.parametrize("metric", [*TIMES, "dropped", "late"])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_what_was_not_measured_never_holds(metric, comparison):
    condition = Condition.parse(f"{metric}{comparison}{'1us' if metric in TIMES else '1'}")
    assert condition.value(NOTHING) is None
    assert not condition.holds(NOTHING)
    assert condition.describe(NOTHING) == f"{condition}: FAILED, nothing was measured"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("p99<5ms", "p99<5ms: held, 3.20 ms"),
        ("p99 < 3ms", "p99 < 3ms: FAILED, 3.20 ms"),
        ("connect.p50<1ms", "connect.p50<1ms: held, 11.0 us"),
        ("rate>=100k", "rate>=100k: held, 123,457 messages/s"),
        ("rate>=1M/s", "rate>=1M/s: FAILED, 123,457 messages/s"),
        ("faults<=0", "faults<=0: FAILED, 63 faults"),
        ("dropped<1", "dropped<1: FAILED, 3 messages"),
        ("late<=10", "late<=10: held, 7 messages"),
    ],
)
def test_a_description_says_whether_it_held_and_the_figure_with_its_unit(text, line):
    assert Condition.parse(text).describe(RESULT) == line


@pytest.mark.parametrize(
    ("text", "result", "line"),
    [
        (
            "p99<=5ms",
            {"latency_us": {"p99": 5000.5}},
            "p99<=5ms: FAILED, 5.00 ms (5,000.5 us exactly)",
        ),
        ("p99<5ms", {"latency_us": {"p99": 5000.0}}, "p99<5ms: FAILED, 5.00 ms"),
        (
            "rate>=100k",
            {"messages_per_second": 99_999.75},
            "rate>=100k: FAILED, 100,000 messages/s (99,999.75 exactly)",
        ),
    ],
)
def test_a_figure_that_rounds_to_the_limit_is_told_exactly(text, result, line):
    assert Condition.parse(text).describe(result) == line
