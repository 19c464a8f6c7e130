"""The picture of reports. Letters in an SVG file are outlines, but each text stands before its own
in a comment.
"""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from perf_reports import curve, made, of_open_loop
from support import ROOT

from hydrogen.perf import plot

WHITE = "#ffffff"


pytestmark = pytest.mark.usefixtures("font_is_open")


def texts(path):
    """All that is written in an SVG file."""
    ElementTree.parse(path)
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def latency_panel(*reports):
    """The left panel, and its lines."""
    axes = Figure().subplots()
    curves = [
        c
        for index, report in enumerate(reports)
        for c in plot.curves_of(report, f"report {index}", plot.style(index))
    ]
    return axes, plot.draw_latency(axes, curves)


# -- before a measurement --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plot.svg", "plot.png", "plot.of.mine.PNG"])
def test_a_plot_may_be_svg_or_png(name, tmp_path):
    plot.check(tmp_path / name)


@pytest.mark.parametrize("name", ["plot", "plot.pdf", "svg", ".svg"])
def test_another_ending_is_refused_with_those_there_are(name, tmp_path):
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / name}: a plot's name must end in .svg or .png")
    ):
        plot.check(tmp_path / name)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no directory"):
        plot.check(tmp_path / "missing" / "plot.svg")


def test_without_matplotlib_the_refusal_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'hydrogen-server[plot]'")):
        plot.check(tmp_path / "plot.svg")


@pytest.mark.slow
def test_matplotlib_is_imported_for_a_plot_only_and_pyplot_never(tmp_path):
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path; from hydrogen.perf import plot; from perf_reports import made\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot.draw([made()], ['a'], Path(sys.argv[2]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            program,
            str(ROOT / "tests"),
            str(tmp_path / "plot.png"),
        ],
        check=True,
    )


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_reports_make_the_same_svg_whatever_the_user_has_set(tmp_path):
    before = dict(matplotlib.rcParams)
    plot.draw([made(), of_open_loop()], ["a", "b"], tmp_path / "first.svg")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context(
        {"svg.hashsalt": "mine", "figure.facecolor": "black", "lines.linewidth": 9, "font.size": 30}
    ):
        plot.draw([made(), of_open_loop()], ["a", "b"], tmp_path / "second.svg")
    first = (tmp_path / "first.svg").read_bytes()
    assert first == (tmp_path / "second.svg").read_bytes()
    assert b"date" not in first


@pytest.mark.slow
def test_the_background_is_white_for_pages_that_are_dark(tmp_path):
    plot.draw([made()], ["a"], tmp_path / "plot.svg")
    svg = "{http://www.w3.org/2000/svg}"
    background = ElementTree.parse(tmp_path / "plot.svg").find(
        f".//{svg}g[@id='patch_1']/{svg}path"
    )
    assert f"fill: {WHITE}" in background.get("style")


@pytest.mark.slow
def test_the_ending_chooses_the_format(tmp_path):
    for name in ("plot.png", "plot.PNG"):
        plot.draw([made()], ["a"], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n")
    plot.draw([made()], ["a"], tmp_path / "plot.SVG")
    assert "throughput over time" in texts(tmp_path / "plot.SVG")
    assert "date" not in (tmp_path / "plot.SVG").read_text()


@pytest.mark.slow
def test_title_axes_and_legend_say_what_was_measured_in_which_units(tmp_path):
    plot.draw([made(), of_open_loop()], ["first", "second"], tmp_path / "plot.svg")
    written = texts(tmp_path / "plot.svg")
    assert "echo of 64 bytes, raw framing, 64 connections, 127.0.0.1:9000" in written
    assert {
        "latency (ms)",
        "percentile of the messages",
        "throughput (messages/s)",
        "time (s)",
    } <= set(written)
    assert {"0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"} <= set(written)
    assert written[-3:] == ["first", "second", "second, uncorrected"]


@pytest.mark.slow
def test_any_name_is_shown_as_it_is(tmp_path):
    names = ["_hidden", "$x^{$", "a" * 100 + ".json"]
    plot.draw([made(options={"address": "/run/$a_{$.sock"})] * 3, names, tmp_path / "plot.svg")
    written = texts(tmp_path / "plot.svg")
    assert written[-3:] == ["_hidden", "$x^{$", "..." + "a" * 52 + ".json"]
    assert any("/run/$a_{$.sock" in text for text in written)


@pytest.mark.slow
@pytest.mark.parametrize("messages", [0, 1])
def test_reports_of_hardly_anything_are_drawn_too(messages, tmp_path):
    series = {"seconds": [2.0][:messages], "messages_per_second": [0.5][:messages]}
    result = {"messages": messages, "latency_curve": [[100.0, 50.0]][:messages], "series": series}
    plot.draw([made(result=result)], ["a"], tmp_path / "plot.svg")
    assert texts(tmp_path / "plot.svg").count("nothing was measured") == (0 if messages else 2)


def test_a_folder_that_has_gone_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="gone"):
        plot.draw([made()], ["a"], tmp_path / "gone" / "plot.png")


# -- latency by percentile -------------------------------------------------------------------------


def test_each_nine_has_the_same_room_and_the_longest_is_at_the_number_of_messages():
    points = plot.points_of(
        [[0, 1.0], [50, 2.0], [90, 3.0], [99, 4.0], [99.9, 5.0], [99.995, 6.0], [100, 7.0]], 30_000
    )
    assert [us for _, us in points] == [1, 2, 3, 4, 5, 6, 7]
    assert [place for place, _ in points] == pytest.approx([1, 2, 10, 100, 1000, 20_000, 30_000])
    assert plot.points_of([[99.99, 6.0]], 2000) == [(2000, 6.0)]


def test_the_percentiles_are_labelled_by_their_nines():
    assert [plot.percent(nines) for nines in range(6)] == [
        "0 %",
        "90 %",
        "99 %",
        "99.9 %",
        "99.99 %",
        "99.999 %",
    ]
    axes, _ = latency_panel(made(result={"messages": 1234}))
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == [1, 10, 100, 1000]
    assert axes.get_xlim()[0] == 1
    assert axes.get_xlim()[1] >= 1234


def test_latencies_are_in_microseconds_until_one_is_a_millisecond():
    axes, [line] = latency_panel(made(result={"latency_curve": [[0, 100.0], [100, 999.0]]}))
    assert axes.get_ylabel() == "latency (us)"
    assert list(line.get_ydata()) == [100.0, 999.0]
    axes, [line] = latency_panel(made(result={"latency_curve": [[0, 100.0], [100, 1000.0]]}))
    assert axes.get_ylabel() == "latency (ms)"
    assert list(line.get_ydata()) == [0.1, 1.0]


@pytest.mark.parametrize(
    ("longest", "scale"), [(150.0, "linear"), (999.0, "linear"), (1000.0, "log"), (1e6, "log")]
)
def test_latencies_are_on_a_logarithmic_axis_when_their_range_asks_for_it(longest, scale):
    axes, _ = latency_panel(made(result={"latency_curve": [[0, 100.0], [100, longest]]}))
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[0] == 0 or scale == "log"
    shown = [tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    assert len(shown) >= 3


def test_a_latency_of_nothing_can_be_on_a_logarithmic_axis():
    axes, [line] = latency_panel(made(result={"latency_curve": [[0, 0.0], [100, 100.0]]}))
    assert axes.get_yscale() == "log"
    assert all(map(math.isfinite, line.get_ydata()))
    assert min(line.get_ydata()) > 0


def test_numbers_at_an_axis_are_never_powers_of_ten():
    assert [plot.number(value) for value in (0.001, 0.3, 20.0, 1_250_000.0)] == [
        "0.001",
        "0.3",
        "20",
        "1,250,000",
    ]


def test_uncorrected_latencies_are_dashed_and_of_the_colour_of_the_corrected():
    _, [closed, corrected, uncorrected] = latency_panel(made(), of_open_loop())
    assert [line.get_linestyle() for line in (closed, corrected, uncorrected)] == ["-", "-", "--"]
    assert corrected.get_color() == uncorrected.get_color() != closed.get_color()
    assert list(uncorrected.get_ydata()) == [us / 1e3 for _, us in curve(18.0, 1.2)]


def test_every_report_has_lines_of_its_own():
    looks = [plot.style(index) for index in range(40)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 40
    assert WHITE not in {to_hex(look["color"]) for look in looks}


# -- throughput over time --------------------------------------------------------------------------


def test_throughput_is_that_of_the_series_from_zero():
    axes = Figure().subplots()
    plot.draw_throughput(
        axes,
        [made(), made(result={"series": {"seconds": [1.0], "messages_per_second": [60_000.0]}})],
    )
    many, one = axes.get_lines()
    assert list(many.get_xdata()) == [0.5, 1.0, 1.5, 2.0]
    assert list(many.get_ydata()) == [48_000, 52_000, 51_000, 49_000]
    assert (axes.get_xlim()[0], axes.get_ylim()[0]) == (0, 0)
    assert axes.get_ylim()[1] > 60_000
    # a line through one point is invisible
    assert (many.get_marker(), one.get_marker()) == ("", "o")
    assert many.get_color() == plot.COLOURS[0]


# -- the title -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (
            made({"in_flight": 16, "size": 1024}),
            "echo of 1,024 bytes, raw framing, 64 connections, 16 in flight, 127.0.0.1:9000",
        ),
        (
            made({"in_flight": 16, "burst": True}),
            "echo of 64 bytes, raw framing, 64 connections, bursts of 16, 127.0.0.1:9000",
        ),
        (
            made({"churn": True}),
            "echo of 64 bytes, raw framing, 64 connections, a new one for each message, "
            "127.0.0.1:9000",
        ),
        (
            made({"address": "/run/echo"}, tls="TLSv1.3"),
            "echo of 64 bytes, raw framing, TLSv1.3, 64 connections, 1 in flight, /run/echo",
        ),
        (
            of_open_loop(),
            "echo of 64 bytes, raw framing, 64 connections, 50,000 messages/s due, 127.0.0.1:9000",
        ),
    ],
)
def test_the_title_names_what_was_measured(report, told):
    assert plot.title([report]) == told


def test_the_title_of_several_has_what_they_have_in_common():
    assert (
        plot.title([made(), made({"size": 128})])
        == "raw framing, 64 connections, 1 in flight, 127.0.0.1:9000"
    )
    other = made(
        {"size": 128, "framing": "line", "connections": 1, "in_flight": 2, "address": "/run/echo"}
    )
    assert plot.title([made(), other]) == "different measurements"
