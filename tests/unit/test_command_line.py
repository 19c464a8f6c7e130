"""`python -m hydrogen`: what it prints, what it serves, and its exit status."""

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import client_context, write_files
from support import PATIENCE, Client, checksum32, child, finish, length_frame, simple, websocket
from websocket_peers import peer_of

import hydrogen
from hydrogen.watchdog import has_gil

HANDLERS = '''
"""Handlers for `python -m hydrogen run`."""

import threading

import hydrogen


class Shouts(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data.upper())


class Holds(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)
        threading.Event().wait()


class Refuses(Shouts):
    def on_server_created(self, sock):
        raise RuntimeError("no license")


instance = Shouts()


def function():
    return Shouts()


def nonsense():
    return 7


seven = 7
'''


def begin(engine, *arguments, before=""):
    """The command line in a process of its own, and the first line that it prints. `before`: what
    runs there first.
    """
    code = (
        "import sys; sys.argv[0] = 'hydrogen'; import runpy; runpy.run_module('hydrogen', "
        "run_name='__main__', alter_sys=True)"
    )
    process = child(before + code, *arguments, "--engine", engine, "--threads", "3")
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        _, err = finish(process, None)
        raise AssertionError(f"it printed {line!r} and {err}")
    return process, line


def address_in(line):
    """Of a line like `listening on 127.0.0.1:1337`."""
    found = re.fullmatch(r"listening on (127\.0\.0\.\d):(\d+)\n", line)
    assert found, line
    return found[1], int(found[2])


def command(engine, *arguments, folder=None):
    """The command line in a process of its own, listening on a port of the kernel's choice; and its
    address.
    """
    process, line = begin(
        engine,
        *arguments,
        before="" if folder is None else f"import os; os.chdir({str(folder)!r}); ",
    )
    return process, address_in(line)


def stop(process, status, number=signal.SIGINT):
    """Stop it by a signal."""
    process.send_signal(number)
    return finish(process, status)


@pytest.mark.clause("L1", "L3", "S2")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_echo_echoes_until_a_signal_and_exits_with_0(engine, number):
    process, address = command(engine, "echo", "--port", "0")
    with Client(address) as client:
        client.echo(b"hello")
    assert stop(process, 0, number) == ("", "")


@pytest.mark.clause("L1")
def test_echo_speaks_simple_frames(engine):
    process, address = command(engine, "echo", "--port", "0", "--framing", "simple")
    with Client(address) as client:
        client.echo(simple(b"hello") * 3)
        client.send(b"x")
        assert client.receive_until_end() == b""
    stop(process, 0)


@pytest.mark.clause("L1")
@pytest.mark.parametrize(
    ("framing", "frame"),
    [
        ("checksum32", checksum32(b"hello")),
        ("length", length_frame(b"hello")),
        ("line", b"hello\n"),
        ("websocket", websocket(b"hello")),
    ],
)
def test_echo_speaks_every_framing(engine, framing, frame):
    process, address = command(engine, "echo", "--port", "0", "--framing", framing)
    with Client(address) as client:
        client.echo(frame * 3)
    stop(process, 0)


@pytest.mark.clause("L1")
def test_echo_speaks_websocket(engine):
    process, address = command(engine, "echo", "--port", "0", "--websocket")
    with Client(address) as client:
        peer = peer_of(client).open()
        peer.echo("hello")
        assert peer.say_goodbye(1000).code == 1000
    stop(process, 0)


@pytest.mark.clause("L1")
def test_echo_speaks_tls(engine, tmp_path):
    pair, _ = write_files(tmp_path)
    process, address = command(engine, "echo", "--port", "0", "--cert", str(pair))
    with hydrogen.connect(address, ssl=client_context(), timeout=PATIENCE) as client:
        client.send(b"hello")
        assert client.recv() == b"hello"
    stop(process, 0)


@pytest.mark.parametrize("arguments", [["--key", "key.pem"], ["--cert", "missing.pem"]])
def test_a_certificate_that_is_not_there_is_a_clear_error(tmp_path, arguments):
    process = run_to_its_end("echo", "--port", "0", *arguments, folder=tmp_path)
    assert process.returncode == 2
    assert arguments[0] in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.clause("L2")
@pytest.mark.parametrize("name", ["instance", "Shouts", "function"])
def test_run_takes_an_instance_a_class_or_a_function(engine, tmp_path, name):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    process, address = command(engine, "run", f"handlers:{name}", "--port", "0", folder=tmp_path)
    with Client(address) as client:
        client.send(b"hello")
        assert client.receive(5) == b"HELLO"
    stop(process, 0)


@pytest.mark.clause("L3", "S3", "S12")
def test_the_exit_status_is_1_when_a_handler_was_abandoned(engine, tmp_path):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    process, address = command(
        engine, "run", "handlers:Holds", "--port", "0", "--stop-timeout", "0.1", folder=tmp_path
    )
    with Client(address) as client:
        client.echo(b"hold")
        stop(process, 1)


@pytest.mark.clause("L3", "S3")
def test_the_exit_status_is_1_when_a_second_signal_aborted(engine, tmp_path):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    process, address = command(
        engine, "run", "handlers:Holds", "--port", "0", "--stop-timeout", "3600", folder=tmp_path
    )
    with Client(address) as client:
        client.echo(b"hold")
        process.send_signal(signal.SIGTERM)
        refused(address)  # the first was seen
        stop(process, 1)


def refused(address):
    """Connect until it is refused."""
    while True:
        try:
            Client(address).close()
        except ConnectionRefusedError:
            return


@pytest.mark.clause("L2")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("handlers", "module:name"),
        ("no_such_module:name", "no_such_module"),
        ("handlers:missing", "missing"),
        ("handlers:seven", "handlers:seven"),
        ("handlers:nonsense", "handlers:nonsense"),
        ("handlers:Refuses", "no license"),
    ],
)
def test_run_of_what_is_no_handler_is_a_clear_error(tmp_path, name, message):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    process = run_to_its_end("run", name, "--port", "0", folder=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.clause("L2")
@pytest.mark.parametrize("line", ["import no_such", "os.environ['no_such']", "no such"])
def test_a_module_that_fails_is_told_of_with_its_traceback_and_the_status_is_2(tmp_path, line):
    (tmp_path / "handlers.py").write_text(f"import os\n{line}\n")
    process = run_to_its_end("run", "handlers:name", "--port", "0", folder=tmp_path)
    assert process.returncode == 2
    assert "no_such" in process.stderr or "SyntaxError" in process.stderr


def test_f30_a_bad_port_or_a_busy_one_is_a_clear_error(engine, tmp_path):
    process, address = command(engine, "echo", "--port", "0")
    for port in ("99999", str(address[1])):
        second = run_to_its_end("echo", "--port", port, folder=tmp_path)
        assert second.returncode == 2
        assert port in second.stderr
        assert "Traceback" not in second.stderr
    stop(process, 0)


def test_without_a_command_the_usage_is_shown(tmp_path):
    process = run_to_its_end(folder=tmp_path)
    assert process.returncode == 2
    assert "usage: python -m hydrogen" in process.stderr


# --------------------------------------------------------------------------------- where it listens


def test_addr_may_be_repeated_and_each_address_has_a_line(engine):
    process, first = begin(
        engine, "echo", "--addr", "127.0.0.1", "--addr", "127.0.0.2", "--port", "0"
    )
    addresses = [address_in(first), address_in(process.stdout.readline())]
    assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
    assert addresses[0][1] == addresses[1][1]
    for address in addresses:
        with Client(address) as client:
            client.echo(b"hello")
    stop(process, 0)


def test_path_mode_is_octal(engine, tmp_path):
    path = tmp_path / "socket"
    process, line = begin(engine, "echo", "--path", str(path), "--path-mode", "640")
    assert line == f"listening on {path}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with Client(str(path)) as client:
        client.echo(b"hello")
    stop(process, 0)
    assert not path.exists()


PASSED = """
import os, socket
ours = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
ours[1].bind("\\0hydrogen-%d" % os.getpid())
for fd, sock in enumerate(ours, 3):
    os.dup2(sock.detach(), 20 + fd)
for fd in (3, 4):
    os.dup2(20 + fd, fd)
    os.close(20 + fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
"""
"""Does what systemd does before it starts a service: two sockets, from fd 3 on."""


def test_systemd_passes_the_sockets(engine):
    process, first = begin(engine, "echo", "--systemd", before=PASSED)
    assert process.stdout.readline() == f"listening on @hydrogen-{process.pid}\n"
    for address in (address_in(first), f"\0hydrogen-{process.pid}"):
        with Client(address) as client:
            client.echo(b"hello")
    stop(process, 0)


# ------------------------------------------------------------------------------------------- limits


def test_limits_are_handed_on(engine):
    process, address = command(
        engine,
        "echo",
        "--port",
        "0",
        "--max-connections",
        "2",
        "--overload",
        "close",
        "--max-connections-per-ip",
        "2",
        "--idle-timeout",
        "2",
    )
    with Client(address) as one, Client(address) as two:
        one.echo(b"hello")
        two.echo(b"hello")
        with Client(address) as third:
            assert third.at_end() == "reset"
        assert one.at_end() == "reset"  # by the idle timeout
    _, err = stop(process, 0)
    assert "overload" in err


def test_a_proxy_header_is_read_from_whom_it_is_allowed(engine):
    options = ["--proxy-protocol", "auto", "--proxy-allow-from", "10.0.0.0/8", "--proxy-allow-from"]
    process, address = command(engine, "echo", "--port", "0", *options, "127.0.0.0/8")
    with Client(address) as client:
        client.send(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        client.echo(b"hello")
    stop(process, 0)
    process, address = command(engine, "echo", "--port", "0", *options, "unix")
    with Client(address) as client:
        assert client.at_end() in ("end", "reset")
    stop(process, 0)


SLOW = """
import os

import hydrogen


class Slow(hydrogen.Handler):
    def on_data_received(self, socket, data):
        os.read(0, 1)
        socket.send(data)
"""


def test_slow_callback_logs_the_stack(engine, tmp_path):
    (tmp_path / "handlers.py").write_text(SLOW)
    process, address = command(
        engine, "run", "handlers:Slow", "--port", "0", "--slow-callback", "0.05", folder=tmp_path
    )
    with Client(address) as client:
        client.send(b"hello")
        logged = ""
        while ("os.read(0, 1)" if has_gil() else "no stack: without a GIL") not in logged:
            line = process.stderr.readline()
            assert line, logged
            logged += line
        assert "a callback has been running for" in logged
        process.stdin.write("x")
        process.stdin.flush()
        assert client.receive(5) == b"hello"
    stop(process, 0)


@pytest.mark.parametrize(
    ("options", "logged"),
    [
        ([], []),
        (["--verbose"], ["serving on"]),
        (["--log-level", "info"], ["serving on"]),
        (["--log-level", "debug"], ["serving on", "accepted", "removed: PeerClosed"]),
    ],
)
def test_the_level_says_what_is_logged(engine, options, logged):
    process, address = command(engine, "echo", "--port", "0", *options)
    with Client(address) as client:
        client.echo(b"hello")
        client.finish()
        client.at_end()
    _, err = stop(process, 0)
    for text in ("serving on", "accepted", "removed: PeerClosed"):
        assert (text in err) == (text in logged), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--path-mode", "980"],
            "argument --path-mode: expected an octal number from 0 to 777, not '980'",
        ),
        (["--path-mode", "660"], "path_mode: only allowed with path"),
        (
            ["--path", "socket", "--path-mode", "1777"],
            "argument --path-mode: expected an octal number from 0 to 777, not '1777'",
        ),
        (
            ["--path", "socket", "--port", "7"],
            "addr/port, path, sock: only one of them can be given",
        ),
        (["--systemd"], "--systemd: no socket was passed"),
        (
            ["--systemd", "--port", "7", "--path-mode", "600"],
            "so --port, --path-mode cannot be combined with it",
        ),
        (["--max-connections", "0"], "max_connections: must be 1 to"),
        (["--max-connections-per-ip", "-1"], "max_connections_per_ip: must be 1 to"),
        (["--overload", "panic"], "argument --overload: invalid choice: 'panic'"),
        (["--idle-timeout", "0"], "idle_timeout: must be more than 0"),
        (["--slow-callback", "soon"], "argument --slow-callback: invalid float value: 'soon'"),
        (["--proxy-protocol", "v1"], "proxy_allow_from: expected networks with proxy_protocol"),
        (
            ["--proxy-allow-from", "10.0.0.0/8"],
            "proxy_allow_from: expected networks with proxy_protocol",
        ),
        (
            ["--proxy-protocol", "v2", "--proxy-allow-from", "10.0.0.1/8"],
            "proxy_allow_from: must be a network such as '10.0.0.0/8'",
        ),
        (["--log-level", "trace"], "argument --log-level: invalid choice: 'trace'"),
    ],
)
def test_a_wrong_option_is_a_clear_error(tmp_path, arguments, message):
    process = run_to_its_end("echo", *arguments, folder=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr


def run_to_its_end(*arguments, folder):
    """`python -m hydrogen` that is expected to end by itself."""
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(hydrogen.__file__).parent.parent),
        "HYDROGEN_ENGINE": "python",
    }
    return subprocess.run(
        [sys.executable, "-m", "hydrogen", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=env,
        check=False,
    )
