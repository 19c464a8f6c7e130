"""`perf.compare --against`: another build of hydrogen takes part in the same rounds."""

import json
import subprocess

import pytest
from support import ROOT

RATE = "messages_per_second"

pytestmark = pytest.mark.usefixtures("perf_found")

OLDER = """
import dataclasses

_stats = Server.stats


def stats(self):
    told = dataclasses.asdict(_stats(self))
    told |= {"walks": told.pop("sweeps"), "turns": told.pop("iterations"), "of_the_other_tree": 1}
    return dataclasses.make_dataclass("Stats", told)(**told)


Server.stats = stats
"""
"""What makes a copy of this hydrogen one whose statistics have their former names."""


@pytest.fixture
def tree(tmp_path):
    """A tree with another hydrogen, which is this one but for its statistics."""
    package = tmp_path / "tree/hydrogen"
    package.mkdir(parents=True)
    for entry in (ROOT / "hydrogen").iterdir():
        if entry.name not in ("__init__.py", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    ours = (ROOT / "hydrogen/__init__.py").read_text()
    (package / "__init__.py").write_text(ours + OLDER)
    return package.parent


@pytest.fixture
def built(tree, monkeypatch):
    """The same, and it counts as built."""
    monkeypatch.setattr("perf.compare.is_built", lambda path: path == tree)
    return tree


@pytest.fixture
def settings(tmp_path):
    from perf.settings import Settings

    folder = tmp_path / "settings"
    folder.mkdir()
    return Settings(
        folder, rounds=1, duration=1.0, warm_up=0.0, handoff="auto", idle_connections=10, quiet=None
    )


def called(name, workload, settings):
    from perf.servers import contender_called
    from perf.workloads import WORKLOADS

    return contender_called(name, WORKLOADS[workload].job_of(name), settings)


def test_its_server_runs_the_other_trees_hydrogen_and_tells_statistics_by_their_names_of_today(
    tree, settings
):
    from perf.servers import link, started

    link(tree, settings.folder)
    told = {}
    for name in "hydrogen", "hydrogen-before":
        contender = called(name, "W1", settings)
        words = ["python" if word == "compiled" else word for word in contender.words]
        with started(contender._replace(words=words)) as server:
            told[name] = server.stats()
    assert "of_the_other_tree" not in told["hydrogen"]
    assert told["hydrogen-before"].pop("of_the_other_tree") == 1
    assert set(told["hydrogen-before"]) == set(told["hydrogen"]) >= {"sweeps", "iterations"}
    assert {type(count) for count in told["hydrogen"].values()} <= {int, float}


@pytest.mark.parametrize("workload", ["W1", "W2", "W3", "W4", "W5", "W7", "W9", "W10", "W11"])
def test_it_does_hydrogens_job(workload, settings):
    ours, before = (
        called("hydrogen", workload, settings),
        called("hydrogen-before", workload, settings),
    )
    assert (before.job, before.words) == (ours.job, ours.words)
    assert before.folder != ours.folder


@pytest.fixture
def taking_part(monkeypatch):
    """Runs the command, measuring nothing; returns the contenders of each workload, and the files
    that were written.
    """

    def run(*options, results):
        from perf import compare

        found = {}

        def measured(name, contenders, layout, settings):
            found[name] = list(contenders)
            return [{contender: {} for contender in contenders}]

        monkeypatch.setattr(compare, "compile_c", lambda folder: None)
        monkeypatch.setattr(compare, "missing", lambda contender: None)
        monkeypatch.setattr(compare.rounds, "run", measured)
        assert compare.main(["--layout", "shared", "--results", str(results), *options]) == 0
        return found, [json.loads(path.read_text()) for path in results.iterdir()]

    return run


def test_it_takes_its_turn_after_hydrogen_where_that_takes_part(taking_part, built, tmp_path):
    found, _ = taking_part(
        "--workload", "W4,client", "--against", str(built), results=tmp_path / "results"
    )
    assert found["W4"] == [
        "c",
        "asyncio",
        "uvloop",
        "hydrogen",
        "hydrogen-before",
        "hydrogen-python",
    ]
    assert found["client"] == ["c-client", "generator"]


def test_it_takes_part_beside_those_that_were_chosen(taking_part, built, tmp_path):
    chosen = ("--workload", "W4", "--contenders", "hydrogen", "--against", str(built))
    assert taking_part(*chosen, results=tmp_path / "results")[0] == {
        "W4": ["hydrogen", "hydrogen-before"]
    }


def test_without_the_option_it_takes_no_part(taking_part, tmp_path):
    found, _ = taking_part(
        "--workload", "W4", "--contenders", "c,hydrogen", results=tmp_path / "results"
    )
    assert found == {"W4": ["c", "hydrogen"]}


def test_the_result_names_the_trees_commit_and_not_where_it_was(taking_part, built, tmp_path):
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    for words in ("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "Begin"):
        subprocess.run(["git", *words], cwd=built, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=built, check=True, capture_output=True, text=True
    )
    options = ("--workload", "W4", "--against", str(built))
    _, [document] = taking_part(*options, results=tmp_path / "results")
    assert document["options"]["against"] == commit.stdout.strip()


def test_a_table_has_hydrogens_paired_ratio_to_it():
    from perf.report import markdown
    from perf.workloads import WORKLOADS

    rounds = [
        {"hydrogen": {RATE: ours}, "hydrogen-before": {RATE: 100.0}}
        for ours in (90.0, 110.0, 105.0)
    ]
    [head, _, *rows] = [
        line
        for line in markdown("W1", WORKLOADS["W1"], "shared", rounds).splitlines()
        if line.startswith("|")
    ]
    assert head.endswith("| messages/s, of hydrogen-before |")
    assert rows == [
        "| hydrogen | 105 | 1.050 (0.900-1.100) |",
        "| hydrogen-before | 100 | 1.000 (1.000-1.000) |",
    ]


def test_a_tree_in_which_nothing_is_built_is_refused(tmp_path, capsys):
    from perf.compare import main

    with pytest.raises(SystemExit) as exit_:
        main(["--against", str(tmp_path)])
    assert exit_.value.code == 2
    assert f"no hydrogen is built in {tmp_path} for this Python" in capsys.readouterr().err
