"""Reports of the load generator side by side."""

import json
import re

import pytest
from perf_reports import made, of_open_loop

from hydrogen.perf import __main__ as command
from hydrogen.perf.comparison import load, table


@pytest.fixture
def written(tmp_path):
    """Write documents to files: `written(*documents) -> paths`."""

    def write(*documents):
        paths = [tmp_path / f"{index}.json" for index in range(len(documents))]
        for path, document in zip(paths, documents, strict=True):
            path.write_text(json.dumps(document))
        return [str(path) for path in paths]

    return write


def line_of(text, name):
    return next(re.sub(r"\s+", " ", line) for line in text.splitlines() if line.startswith(name))


def test_figures_stand_side_by_side_with_units_and_ratios():
    text = table(
        ["a", "b"],
        [
            made(result={"messages_per_second": 1000.0}),
            made(result={"messages_per_second": 2500.0}),
        ],
    )
    assert line_of(text, "throughput") == "throughput 1,000 messages/s 2,500 messages/s x2.500"
    assert (
        line_of(text, "latency p99 ").count("us") + line_of(text, "latency p99 ").count("ms") == 2
    )
    assert "configuration" not in text
    assert "machine" not in text


def test_what_only_one_has_has_no_ratio():
    text = table(["closed", "open"], [made(), of_open_loop()])
    assert line_of(text, "uncorrected p50").split()[2] == "-"
    assert "x" not in line_of(text, "uncorrected p50")
    assert line_of(text, "dropped").split()[1] == "-"


def test_every_difference_of_configuration_and_machine_is_named():
    one, other = made(options={"connections": 64}), made(options={"connections": 10})
    other["machine"] = {**other["machine"], "cpu": "another"}
    text = table(["a", "b"], [one, other])
    assert "configuration: connections is 64 / 10" in text
    assert "machine: cpu is " in text


def test_doubtful_reports_are_named():
    faulty = made()
    faulty["interrupted"] = True
    faulty["result"]["faults"]["unanswered"] = 3
    faulty["result"]["generator"]["bottleneck"] = True
    text = table(["good", "bad"], [made(), faulty])
    assert [line for line in text.splitlines() if line.startswith("warning")] == [
        "warning: bad was interrupted",
        "warning: bad had faults",
        "warning: in bad the generator may have been the bottleneck",
    ]


@pytest.mark.usefixtures("font_is_open")
def test_the_command_prints_the_table_and_draws(written, tmp_path, capsys):
    path = tmp_path / "plot.svg"
    assert command.main(["compare", *written(made(), made()), "--plot", str(path)]) == 0
    assert "x1.000" in capsys.readouterr().out
    assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a report"),
        ('{"schema": {"name": "other", "version": 2}}', "is not a report"),
        ('{"schema": {"name": "hydrogen.perf", "version": 1}}', "has schema version 1"),
    ],
)
def test_what_is_no_report_is_refused_by_name(tmp_path, capsys, written, text, reason):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        load(path)
    assert command.main(["compare", *written(made()), str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_wrong_usage(written, tmp_path, capsys):
    assert command.main(["compare", *written(made()), str(tmp_path / "nothing")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert (
        command.main(["compare", *written(made(), made()), "--plot", str(tmp_path / "plot.gif")])
        == 2
    )
    with pytest.raises(SystemExit) as exited:
        command.main(["compare", *written(made())])
    assert exited.value.code == 2
