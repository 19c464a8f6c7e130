"""The soak of perf/soak, for some seconds: that well-behaved clients are served while hostile ones
are at work, and that it can tell.
"""

import json

import pytest


@pytest.fixture
def soak(perf_found):
    """The command."""
    from perf.soak.__main__ import main

    return main


@pytest.mark.slow
def test_well_behaved_clients_are_served_and_every_limit_bites_in_a_short_soak(
    engine, soak, tmp_path, capsys
):
    status = soak(["--minutes", "0.2", "--engine", engine, "--results", str(tmp_path)])
    table = capsys.readouterr().out
    assert status == 0, table
    [path] = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert report["schema"]["name"] == "hydrogen.perf.soak"
    assert report["options"]["engine"] == engine
    assert report["held"]
    assert report["well_behaved"]["answers"] > 0
    assert min(report["removed"].values()) > 0
    assert f"Soak of the {engine} engine" in table
