"""From results of the comparison to docs/performance.md: what perf/publish.py writes, and which
goals make perf.compare fail.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import pytest
from support import ROOT

RATE = "messages_per_second"


@pytest.fixture(autouse=True, scope="module")
def _found():
    """`perf` is no part of what is installed: it is found in the tree, behind all that is. And
    matplotlib opens its fonts, once.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        from perf.pictures import Row, overview
        from perf.rounds import Spread

        overview(
            [Row("a", "b", "c", {"hydrogen": Spread(1, 1, 1)})],
            "title",
            Path(folder, "picture.svg"),
        )
        yield


def run(rate, **others):
    return {RATE: rate, "server_us": 7.0, "others": 0.03, **others}


def compared(workload, *rounds, layout="shared", verdicts=()):
    return {
        "workload": workload,
        "title": workload,
        "layout": layout,
        "rounds": list(rounds),
        "verdicts": list(verdicts),
    }


ECHO = compared(
    "W1",
    {"c": run(110), "uvloop": run(100), "hydrogen": run(105)},
    {"c": run(120), "uvloop": run(100), "hydrogen": run(95)},
)
"""hydrogen / uvloop is 1.00 in the median; the C limit's own is 1.15."""


@pytest.fixture
def published(tmp_path):
    """From comparisons, a list for each result, to the page."""

    def publish(*results):
        from perf import publish, report

        paths = []
        for number, comparisons in enumerate(results, 1):
            document = {
                "schema": report.SCHEMA,
                "began": f"2026-01-0{number}T10:20:30+00:00",
                "options": {
                    "workload": [each["workload"] for each in comparisons],
                    "contenders": "None",
                    "rounds": "2",
                    "layout": "both",
                    "duration": "0.7",
                    "warm_up": "0.3",
                    "quiet": "0.15",
                },
                "machine": {
                    "cpu": "Abacus",
                    "cores": 2,
                    "commit": "0123456789abcdef",
                    "uncommitted_changes": False,
                },
                "comparisons": comparisons,
            }
            paths.append(tmp_path / f"{number}.json")
            paths[-1].write_text(json.dumps(document))
        return publish.publish(paths, tmp_path / "docs").read_text()

    return publish


def table(page, head):
    """The rows of the table below a heading: lists of cells, the first that of the heads."""
    _, _, below = page.partition(f"### {head}")
    rows = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in rows[0].splitlines()
        if "---" not in line
    ]


def section(page, head):
    _, _, below = page.partition(f"\n## {head}")
    return below.partition("\n## ")[0]


def test_a_table_has_medians_and_paired_ratios_with_their_range(published):
    page = published([ECHO])
    rows = table(page, "W1, shared")
    assert rows[0][:3] == ["contender", "messages/s", "server CPU us/message"]
    assert [row[0] for row in rows[1:]] == ["c", "uvloop", "hydrogen"]
    assert rows[3][1] == "100"
    assert rows[3][-1] == "1.000 (0.950-1.050)"
    assert "hydrogen / uvloop: messages_per_second >= 1.15: **MISSED**, 1.000 (0.950-1.050)" in page


def test_what_was_run_stands_on_the_page(published):
    page = section(published([ECHO]), "What was run")
    assert "cpu: Abacus; cores: 2" in page
    assert "| 1, `1.json` | 2026-01-01 10:20 | 0123456789 | W1 | 2 | 0.03 | 0.03 |" in page
    assert (
        "python -m perf.compare --workload W1 --rounds 2 --duration 0.7 --warm-up 0.3 --layout "
        "both --quiet 0.15    # 1" in page
    )


def test_the_command_of_a_result_names_the_commit_that_it_was_compared_with():
    from perf.publish import command_of

    options = {
        "workload": ["W1"],
        "rounds": "9",
        "duration": "1.5",
        "warm_up": "0.5",
        "layout": "both",
    }
    options |= {"contenders": ["hydrogen"], "against": "0123456789abcdef"}
    told = command_of({"options": options})
    assert told.endswith(" --contenders hydrogen --against 0123456789abcdef")


def test_of_two_results_the_later_one_counts_at_the_place_of_the_first(published):
    other = compared("W7", {"c": run(10), "uvloop": run(10), "hydrogen": run(9)})
    again = compared("W1", {"uvloop": run(100), "hydrogen": run(777)})
    page = published([ECHO, other], [again])
    assert [row[0] for row in table(page, "W1, shared")[1:]] == ["uvloop", "hydrogen"]
    assert table(page, "W1, shared")[2][1] == "777"
    assert re.findall(r"^### (\w+), shared", page, re.MULTILINE) == ["W1", "W7"]
    assert re.findall(r"^From result (\d)", page, re.MULTILINE) == ["2", "1"]


def test_a_result_of_which_nothing_is_shown_is_not_listed(published):
    page = published([ECHO], [ECHO])
    assert "`2.json`" in page
    assert "`1.json`" not in page


def test_layouts_are_not_mixed(published, tmp_path):
    pinned = compared("W1", {"uvloop": run(100), "hydrogen": run(300)}, layout="pinned")
    page = published([pinned, ECHO])
    first, _, second = page.partition("overview-pinned.svg")
    assert "echo: 1.00 x uvloop (0.95-1.05)" in first
    assert "echo: 3.00 x uvloop (one round)" not in first
    assert "echo: 3.00 x uvloop (one round)" in second
    assert {path.name for path in (tmp_path / "docs/performance").iterdir()} == {
        "overview.svg",
        "overview-pinned.svg",
    }


def test_the_only_layout_has_the_first_picture_and_old_pictures_go(published, tmp_path):
    pinned = compared("W1", {"uvloop": run(100), "hydrogen": run(300)}, layout="pinned")
    published([pinned, ECHO])
    assert "![Ratios to the reference in the pinned layout](performance/overview.svg)" in published(
        [pinned]
    )
    assert [path.name for path in (tmp_path / "docs/performance").iterdir()] == ["overview.svg"]


def test_without_a_peer_there_is_a_table_and_no_row_of_the_picture(published):
    alone = compared("W1", {"c": run(110), "hydrogen": run(105)})
    page = published([alone])
    assert "overview" not in page
    assert [row[0] for row in table(page, "W1, shared")[1:]] == ["c", "hydrogen"]


def test_without_hydrogen_there_is_a_table_and_nothing_is_missed(published):
    page = published([compared("W1", {"c": run(110), "uvloop": run(105)})])
    assert "overview" not in page
    assert "Every goal was met." in section(page, "Where hydrogen loses")


def test_a_contender_that_the_workload_has_no_more_is_shown_all_the_same(published):
    page = published(
        [compared("W1", {"abacus-two": run(50), "uvloop": run(100), "hydrogen": run(120)})]
    )
    assert [row[0] for row in table(page, "W1, shared")[1:]] == ["uvloop", "hydrogen", "abacus-two"]
    assert "echo: 1.20 x uvloop" in page


def test_the_reference_is_the_first_peer_where_uvloop_has_no_part(published):
    page = published([compared("W1", {"asyncio": run(50), "hydrogen": run(100)})])
    assert "echo: 2.00 x asyncio (one round)" in page


def test_less_is_better_for_latency_and_memory(published):
    ping = compared("W4", {"uvloop": run(1, p50_us=90.0), "hydrogen": run(1, p50_us=60.0)})
    memory = compared(
        "W9", {"uvloop": {"bytes_per_connection": 1200}, "hydrogen": {"bytes_per_connection": 300}}
    )
    ahead = re.search(r"Where hydrogen is ahead.*", published([ping, memory]))[0]
    assert "ping-pong latency: 1.50 x uvloop" in ahead
    assert "memory of a connection: 4.00 x uvloop" in ahead


def test_the_sentences_hold_hydrogen_against_its_best_peer(published):
    blocking = compared(
        "W5", {"uvloop": run(10), "uvloop-executor": run(160), "hydrogen": run(150)}
    )
    page = published([ECHO, blocking])
    assert (
        "behind** a peer, in every round: 1 % of handlers block: 0.94 x uvloop-executor (one "
        "round) and 15.0 x uvloop (one round)." in page
    )
    assert "cannot be told apart from it**: echo: 1.00 x uvloop (0.95-1.05)." in page
    assert "ahead** of every peer, in every round: nowhere." in page
    assert "its medians are between 0.87 (echo) and 0.87 (echo)" in page


def test_a_row_measured_beside_busy_neighbours_is_not_to_be_relied_on(published):
    loud = compared("W7", {"uvloop": run(10, others=1.2), "hydrogen": run(9, others=1.4)})
    page = published([ECHO, loud])
    assert "so these are not to be relied on**: connect, echo, close.\n" in page
    assert "relied on" not in published([ECHO])


def test_a_missed_goal_has_its_reason_and_what_the_c_limit_reaches(published):
    from perf.reasons import REASONS

    lost = section(published([ECHO]), "Where hydrogen loses")
    _, _, lost = lost.partition("### W1: hydrogen / uvloop, messages per second")
    assert (
        "- shared: 1.000 (0.950-1.050), the goal is >= 1.15; the C limit's own is 1.150 "
        "(1.100-1.200), which reaches it." in lost
    )
    assert REASONS["W1", RATE, "uvloop"] in lost


def test_a_goal_against_the_c_limit_has_no_ceiling(published):
    lost = section(published([ECHO]), "Where hydrogen loses")
    _, _, lost = lost.partition("### W1: hydrogen / c, messages per second")
    assert "the goal is >= 0.95.\n" in lost


def test_a_goal_that_is_met_is_not_explained(published):
    page = published([compared("W1", {"uvloop": run(100), "hydrogen": run(200)})])
    assert "Every goal was met." in section(page, "Where hydrogen loses")


def test_a_missed_goal_without_a_reason_is_not_yet_explained(published, monkeypatch):
    monkeypatch.setattr("perf.publish.REASONS", {})
    assert "Not yet explained." in section(published([ECHO]), "Where hydrogen loses")


def test_every_reason_is_that_of_a_goal():
    from perf.reasons import REASONS
    from perf.workloads import WORKLOADS

    goals = {
        (name, goal.figure, goal.against)
        for name, workload in WORKLOADS.items()
        for goal in workload.goals
    }
    assert set(REASONS) <= goals


def test_the_same_results_give_the_same_bytes(published, tmp_path):
    picture = tmp_path / "docs/performance/overview.svg"
    first, drawn = published([ECHO]), picture.read_bytes()
    assert drawn.startswith(b"<?xml")
    assert b"<dc:date>" not in drawn
    assert published([ECHO]) == first
    assert picture.read_bytes() == drawn


def test_a_result_of_the_soak_is_left_out_and_one_of_another_schema_refused(tmp_path, capsys):
    from perf import publish, report

    soak, old, strange = (tmp_path / name for name in ("soak.json", "old.json", "strange.json"))
    soak.write_text(json.dumps({"schema": {"name": "hydrogen.perf.soak", "version": 1}}))
    old.write_text(json.dumps({"schema": {**report.SCHEMA, "version": 0}, "comparisons": []}))
    strange.write_text(json.dumps({"schema": report.SCHEMA, "comparisons": [compared("W99", {})]}))
    with pytest.raises(ValueError, match="no result to publish"):
        publish.read([soak])
    assert "soak.json is left out" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match=r"old\.json has to be measured again: its schema is no more"
    ):
        publish.read([old])
    with pytest.raises(ValueError, match=r"strange\.json has to be measured again: W99 is no more"):
        publish.read([strange])


# -- perf.compare: the gate, --fast and --publish --------------------------------------------------


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """The command with what it has measured; its exit status."""

    def main(*found, options=()):
        from perf import compare

        monkeypatch.setattr(compare, "compare", lambda options: iter(found))
        return compare.main(["--results", str(tmp_path / "results"), *options])

    return main


def counted(**figures):
    """W10, with the goals as they are, held against these figures."""
    from perf import report
    from perf.workloads import WORKLOADS

    rounds = [
        {
            "hydrogen": {
                "syscalls": 2.02,
                "epoll_ctl": 0.0,
                "gil_per_iteration": 1.0,
                "mallocs": 0.0,
                **figures,
            }
        }
    ]
    return {"workload": "W10", **report.as_json(WORKLOADS["W10"], "shared", rounds)}


def test_only_counts_are_gated():
    from perf.workloads import WORKLOADS

    assert [name for name, workload in WORKLOADS.items() if workload.gated] == ["W10"]


def test_the_status_is_0_when_a_timed_goal_is_missed(compare):
    missed = {
        "goal": "hydrogen / uvloop: messages_per_second >= 1.15",
        "measured": None,
        "met": False,
    }
    assert compare(counted(), {**ECHO, "verdicts": [missed]}) == 0


def test_the_status_is_1_when_a_count_is_missed(compare, capsys):
    assert compare(counted(syscalls=2.3)) == 1
    assert "failed: W10, shared: hydrogen: syscalls <= 2.2" in capsys.readouterr().err


def test_a_count_that_was_not_taken_is_missed_unless_its_contender_was_not_wanted(compare):
    nothing = compared("W10", {"uvloop": {"syscalls": 2.0}})
    assert compare(nothing) == 1
    assert compare(nothing, options=["--contenders", "uvloop"]) == 0


def test_what_is_given_counts_for_more_than_fast():
    from perf.compare import parsed, parser

    fast = parsed(parser(), ["--rounds", "9", "--fast"])
    assert (fast.rounds, fast.duration, fast.warm_up) == (9, 0.7, 0.3)
    assert (parsed(parser(), []).rounds, parsed(parser(), []).duration) == (5, 4.0)


def test_a_fast_comparison_has_the_contenders_that_its_goals_need():
    from perf.workloads import WORKLOADS

    assert WORKLOADS["W5"].fast_contenders() == ["c", "uvloop", "uvloop-executor", "hydrogen"]
    for workload in WORKLOADS.values():
        contenders = workload.fast_contenders()
        assert {*contenders} >= ({"hydrogen"} & {*workload.jobs}) | {
            goal.contender for goal in workload.goals
        }
        assert {goal.against for goal in workload.goals} - {None} <= {*contenders}


def test_publish_is_called_with_the_result_that_was_written(compare, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("perf.publish.publish", lambda paths: asked.extend(paths))
    assert compare(counted(), options=["--publish"]) == 0
    assert asked == list((tmp_path / "results").iterdir())


def test_nothing_is_measured_when_matplotlib_is_missing_for_publish(
    compare, monkeypatch, capsys, tmp_path
):
    monkeypatch.setitem(sys.modules, "perf.publish", None)
    with pytest.raises(SystemExit) as exit_:
        compare(counted(), options=["--publish"])
    assert exit_.value.code == 2
    assert "--publish needs matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_result_is_kept_with_a_line_for_each_round_and_four_digits_of_each_figure():
    from perf.compare import text_of

    verdict = {
        "goal": "hydrogen / c",
        "met": True,
        "measured": {"median": 0.123456, "lowest": 0.1, "highest": 1},
    }
    document = {
        "schema": {"name": "x"},
        "options": {"workload": ["W1"], "contenders": []},
        "comparisons": [
            compared(
                "W1",
                {"c": run(123456.7), "hydrogen": run(0.000123456)},
                {"c": run(2.0), "hydrogen": run(3)},
                verdicts=[verdict],
            ),
            compared("W2", {"c": run(1.5)}),
        ],
    }
    text = text_of(document)
    kept = json.loads(text)
    first, second = kept["comparisons"]
    assert (kept["schema"], kept["options"]) == (document["schema"], document["options"])
    assert first["rounds"] == [
        {"c": run(123500.0), "hydrogen": run(0.0001235)},
        {"c": run(2.0), "hydrogen": run(3)},
    ]
    assert first["verdicts"] == [
        {**verdict, "measured": {"median": 0.1235, "lowest": 0.1, "highest": 1}}
    ]
    assert second == document["comparisons"][1]
    assert len([line for line in text.splitlines() if "server_us" in line]) == 3
