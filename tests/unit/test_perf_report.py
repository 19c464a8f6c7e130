"""What the load generator reports, on its command line and to programs."""

import contextlib
import dataclasses
import io
import json
import os
import socket
import sys
import threading
import time

import pytest
from perf_reports import result
from support import PATIENCE

from hydrogen.perf import __main__ as command
from hydrogen.perf import loops, report
from hydrogen.perf.framing import FRAMINGS
from hydrogen.perf.generator import Session
from hydrogen.perf.options import Options
from hydrogen.perf.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def echo():
    """The address of a server that echoes on one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                connection.sendall(data)

    thread = threading.Thread(target=run)
    thread.start()
    yield listener.getsockname()
    thread.join(PATIENCE)
    listener.close()


@pytest.fixture
def nobody():
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()


def run(*arguments, capsys):
    """The exit status of the command, and what it wrote to both streams."""
    status = command.main(arguments)
    return status, *capsys.readouterr()


# -- figures ---------------------------------------------------------------------------------------


def test_throughput_latency_and_cpu_are_in_the_units_they_say():
    found = report.figures(
        result(range(1, 1001), seconds=2, generator_seconds=0.5, server_seconds=1.0)
    )
    assert found["messages_per_second"] == 500
    assert found["payload_bytes_per_second"] == 500 * 64
    wanted = {
        "p50": 500,
        "p75": 750,
        "p90": 900,
        "p95": 950,
        "p98": 980,
        "p99": 990,
        "p99.9": 999,
        "p99.99": 1000,
        "max": 1000,
    }
    assert found["latency_us"] == pytest.approx(wanted, rel=0.003)
    assert found["generator"]["share"] == 0.25
    assert found["generator"]["us_per_message"] == 500
    assert found["server"]["share"] == 0.5
    assert found["server"]["us_per_message"] == 1000


def test_a_run_without_messages_has_no_latencies():
    found = report.figures(result([], seconds=0))
    assert set(found["latency_us"].values()) == {None}
    assert found["messages_per_second"] == 0
    assert "p50" in report.table(result([], seconds=0))


@pytest.mark.parametrize(
    ("generator_seconds", "server_seconds", "bottleneck"),
    [
        (0.5, None, False),
        (1.98, None, True),
        (1.98, 1.5, True),
        (1.98, 1.99, False),
        (1.5, 1.99, False),
    ],
)
def test_the_generator_says_when_it_was_the_bottleneck(
    generator_seconds, server_seconds, bottleneck
):
    measured = result(generator_seconds=generator_seconds, server_seconds=server_seconds)
    assert report.figures(measured)["generator"]["bottleneck"] is bottleneck
    assert ("bottleneck" in report.table(measured)) is bottleneck


def test_faults_are_named_and_explained():
    faulty = result(
        wrong=2,
        wrong_connection=5,
        wrong_message=7,
        wrong_byte=9,
        failed=1,
        first_errno=104,
        connect_failures=3,
        connect_error="refused",
    )
    assert not faulty.ok
    table = report.table(faulty)
    assert "3 connect failures, 2 wrong replies, 1 connection errors" in table
    assert "first wrong reply: connection 5, message 7, byte 9" in table
    assert "first connect failure: refused" in table
    assert f"first connection error: {os.strerror(104)}" in table


@pytest.mark.parametrize(
    "fault", ["wrong", "closed", "failed", "unanswered", "connect_failures", "dropped", "idle_lost"]
)
def test_any_fault_makes_a_run_a_failure(fault):
    assert result().ok
    assert not result(**{fault: 1}).ok


def test_the_table_says_whether_it_is_partial_and_which_loop_ran():
    assert "(interrupted)" in report.table(result(interrupted=True))
    assert "slow Python loop" in report.table(result(loop="python"))
    assert "whole burst" in report.table(result(options=Options("/path", burst=True, in_flight=2)))
    assert "64 connections, a new one for each message" in report.table(
        result(options=Options(("127.0.0.1", 1), churn=True))
    )


def test_the_table_and_the_json_say_what_tls_it_was():
    secured = result(tls="TLSv1.3 TLS_AES_256_GCM_SHA384")
    assert (
        "raw echo of 64 bytes over TLSv1.3 TLS_AES_256_GCM_SHA384, 64 connections"
        in report.table(secured)
    )
    assert report.as_json(secured)["tls"] == "TLSv1.3 TLS_AES_256_GCM_SHA384"
    assert "over" not in report.table(result())
    assert report.as_json(result())["tls"] is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.5, "0.50 us"),
        (99.94, "99.9 us"),
        (999, "999 us"),
        (1500, "1.50 ms"),
        (2e6, "2.00 s"),
    ],
)
def test_values_are_shown_in_the_unit_that_fits(value, shown):
    assert report.scaled(value, ("us", "ms", "s")) == shown


# -- the command -----------------------------------------------------------------------------------


def test_a_right_server_gives_status_0_and_a_table(echo, capsys):
    status, out, err = run(
        f"127.0.0.1:{echo[1]}", "--connections=1", "--number=10", "--warm-up=0", capsys=capsys
    )
    assert status == 0
    assert "10 in" in out
    assert "none; every reply was verified" in out
    assert "\r" not in err  # no progress where there is no terminal


def test_the_json_has_schema_configuration_machine_and_figures(echo, capsys, tmp_path):
    path = tmp_path / "report.json"
    arguments = [
        f"127.0.0.1:{echo[1]}",
        "--connections=1",
        "--number=10",
        "--warm-up=0",
        f"--pid={os.getpid()}",
    ]
    status, out, _ = run(*arguments, f"--json={path}", capsys=capsys)
    document = json.loads(path.read_text())
    assert status == 0
    assert "10 in" in out
    assert document["schema"] == {"name": "hydrogen.perf", "version": 2}
    assert set(document["configuration"]) >= {field.name for field in dataclasses.fields(Options)}
    assert set(document["machine"]) == {"cpu", "cores", "usable_cores", "kernel", "python"}
    assert document["result"]["messages"] == 10
    assert document["result"]["server"]["cpu_seconds"] >= 0
    assert set(document["result"]["faults"].values()) == {0}


def test_the_json_on_standard_output_stands_alone(nobody, capsys):
    status, out, _ = run(f"127.0.0.1:{nobody[1]}", "--connections=1", "--json=-", capsys=capsys)
    assert status == 1
    assert json.loads(out)["result"]["faults"]["connect_failures"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["localhost"],
        ["localhost:port"],
        ["localhost:0"],
        ["localhost:65536"],
        ["localhost:1", "--unix=/path"],
        ["localhost:1", "--size=0"],
        ["localhost:1", "--in-flight=2", "--burst=2"],
        ["localhost:1", "--churn", "--burst=2"],
        ["localhost:1", "--churn", "--tls"],
        ["--unix=/path", "--churn"],
        ["localhost:1", "--framing=other"],
        ["localhost:1", "--framing=simple", "--size=65536"],
        ["localhost:1", "--cacert=/ca.pem"],
        ["localhost:1", "--insecure"],
        ["localhost:1", "--assert=p99"],
        ["localhost:1", "--find-rate=p99<5"],
        ["localhost:1", "--find-rate=p99<5ms", "--rate=5"],
        ["localhost:1", "--rate=-1"],
        ["localhost:1", "--duration=inf"],
        ["localhost:1", "--pid=-1"],
        ["--unix="],
        ["localhost:1", "--threads=65"],
        ["--websocket", "localhost:1"],
        ["localhost:1", "--websocket", "--framing=line"],
        ["localhost:1", "--plot=plot.gif"],
        ["localhost:1", "--payload=/nothing/there"],
        ["localhost:1", "--source=here"],
        ["localhost:1", "--connect-rate=-1"],
        ["localhost:1", "--idle=-1"],
        ["localhost:1", "--tls", "--cacert=/ca.pem", "--insecure"],
    ],
    ids=str,
)
def test_wrong_usage_gives_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as exited:
        command.main(arguments)
    assert exited.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:80", ("localhost", 80)),
        (":80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
        ("1.2.3.4:5", ("1.2.3.4", 5)),
    ],
)
def test_addresses_are_read_as_people_write_them(text, address):
    assert command.parse_address(text) == address


def test_the_slow_loop_announces_itself_with_the_reason(nobody, capsys, monkeypatch):
    monkeypatch.setattr(loops, "COMPILED", None)
    monkeypatch.setattr(command, "NOT_COMPILED", "it was not built")
    _, _, err = run(f"127.0.0.1:{nobody[1]}", "--connections=1", capsys=capsys)
    assert "it was not built" in err
    assert run(f"127.0.0.1:{nobody[1]}", "--loop=compiled", capsys=capsys)[0] == 2


def test_a_process_that_is_not_there_is_wrong_usage(nobody, capsys):
    status, _, err = run(f"127.0.0.1:{nobody[1]}", f"--pid={1 << 22}", capsys=capsys)
    assert status == 2
    assert "there is no process" in err


def test_authorities_that_are_not_there_are_wrong_usage(nobody, capsys, tmp_path):
    status, _, err = run(
        f"127.0.0.1:{nobody[1]}", "--tls", f"--cacert={tmp_path / 'ca.pem'}", capsys=capsys
    )
    assert status == 2
    assert str(tmp_path / "ca.pem") in err


def test_a_server_without_tls_is_a_connect_failure_with_its_reason(echo, capsys):
    status, out, _ = run(
        f"127.0.0.1:{echo[1]}", "--connections=1", "--tls", "--insecure", capsys=capsys
    )
    assert status == 1
    assert "1 connect failures" in out
    assert "first connect failure: [SSL" in out


@pytest.mark.parametrize(
    ("condition", "status", "said"), [("max<10s,faults<=0", 0, "held"), ("p99<1ns", 3, "FAILED")]
)
def test_a_condition_sets_the_exit_status(echo, capsys, condition, status, said):
    arguments = ["--connections=1", "--number=10", "--warm-up=0", f"--assert={condition}"]
    found, out, _ = run(f"127.0.0.1:{echo[1]}", *arguments, capsys=capsys)
    assert found == status
    assert said in out


def test_faults_weigh_more_than_conditions(nobody, capsys):
    status, out, _ = run(f"127.0.0.1:{nobody[1]}", "--assert=p99<1s", capsys=capsys)
    assert status == 1
    assert "nothing was measured" in out


def test_an_open_loop_is_an_option(echo, capsys):
    status, out, _ = run(
        f"127.0.0.1:{echo[1]}",
        "--connections=1",
        "--number=10",
        "--warm-up=0",
        "--rate=1000",
        capsys=capsys,
    )
    assert status == 0
    assert "1,000 messages/s requested" in out
    assert "uncorrected" in out


@pytest.mark.usefixtures("font_is_open")
def test_a_plot_and_a_report_that_can_be_compared_are_options(echo, capsys, tmp_path):
    drawn, report = tmp_path / "plot.svg", tmp_path / "report.json"
    arguments = [
        "--connections=1",
        "--number=10",
        "--warm-up=0",
        f"--plot={drawn}",
        f"--json={report}",
    ]
    assert run(f"127.0.0.1:{echo[1]}", *arguments, capsys=capsys)[0] == 0
    assert drawn.read_text().startswith("<?xml")
    assert command.main(["compare", str(report), str(report)]) == 0


def test_a_search_that_meets_faults_ends_with_status_1(nobody, capsys):
    status, out, _ = run(f"127.0.0.1:{nobody[1]}", "--find-rate=p99<1s", capsys=capsys)
    assert status == 1
    assert "ended early" in out


@pytest.mark.parametrize("framing", FRAMINGS)
def test_each_framing_is_an_option(echo, capsys, framing):
    arguments = ["--connections=1", "--number=10", "--warm-up=0", f"--framing={framing}"]
    status, out, _ = run(f"127.0.0.1:{echo[1]}", *arguments, capsys=capsys)
    assert status == 0
    assert f"{framing} echo" in out


def test_churn_is_an_option(capsys):
    def run_server():
        for _ in range(11):  # one for each message, and the one that was opened for the next
            with listener.accept()[0] as connection, contextlib.suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=run_server)
        server.start()
        port = listener.getsockname()[1]
        status, out, _ = run(
            f"127.0.0.1:{port}",
            "--connections=1",
            "--number=10",
            "--warm-up=0",
            "--churn",
            capsys=capsys,
        )
        server.join(PATIENCE)
    assert status == 0
    assert "a new one for each message" in out


def test_ctrl_c_gives_a_partial_report(echo, capsys, monkeypatch):
    def interrupt(self):
        if self._session.phase == "measuring":
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "draw", interrupt)
    status, out, _ = run(
        f"127.0.0.1:{echo[1]}", "--connections=1", "--duration=1000", "--warm-up=0", capsys=capsys
    )
    assert status == 0
    assert "(interrupted)" in out


# -- progress --------------------------------------------------------------------------------------


@pytest.fixture
def session(echo):
    with Session(Options(echo, connections=1, number=10)) as session:
        session.connect()
        session.loops.run(0, 10)
        session.phase = "measuring"
        yield session


def test_nothing_is_drawn_where_there_is_no_terminal(session):
    stream = io.StringIO()
    with Progress(session, stream) as live:
        live.draw()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_a_terminal_is_shown_the_count_and_left_clean(session, monkeypatch, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.live", None)
    stream = Terminal()
    with Progress(session, stream) as live:
        live.draw()
    assert "10 messages" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[K") or rich


def test_the_rate_is_that_since_the_drawing_before(session, monkeypatch):
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = Terminal()
    monkeypatch.setitem(sys.modules, "rich.live", None)
    Progress(session, stream).draw()
    assert "5/s" in stream.getvalue()
