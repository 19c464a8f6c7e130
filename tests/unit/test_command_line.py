"""`python -m hydrogen`: what it prints, what it serves, and its exit status."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import client_context, write_files
from support import PATIENCE, Client, checksum32, child, finish, length_frame, simple, websocket

import hydrogen

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


instance = Shouts()


def function():
    return Shouts()


def nonsense():
    return 7


seven = 7
'''


def command(engine, *arguments, folder=None):
    """The command line in a process of its own, listening on a port of the kernel's choice; and its address."""
    code = "import sys; sys.argv[0] = 'hydrogen'; import runpy; runpy.run_module('hydrogen', run_name='__main__', alter_sys=True)"
    if folder is not None:
        code = f"import os; os.chdir({str(folder)!r}); " + code
    process = child(code, *arguments, "--engine", engine, "--threads", "3")
    line = process.stdout.readline()
    found = re.fullmatch(r"listening on (127\.0\.0\.1):(\d+)\n", line)
    if found is None:
        _, err = finish(process, None)
        raise AssertionError(f"it printed {line!r} and {err}")
    return process, (found[1], int(found[2]))


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
    process, address = command(engine, "run", "handlers:Holds", "--port", "0", "--stop-timeout", "0.1", folder=tmp_path)
    with Client(address) as client:
        client.echo(b"hold")
        stop(process, 1)


@pytest.mark.clause("L3", "S3")
def test_the_exit_status_is_1_when_a_second_signal_aborted(engine, tmp_path):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    process, address = command(engine, "run", "handlers:Holds", "--port", "0", "--stop-timeout", "3600", folder=tmp_path)
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
    ],
)
def test_run_of_what_is_no_handler_is_a_clear_error(tmp_path, name, message):
    (tmp_path / "handlers.py").write_text(HANDLERS)
    process = run_to_its_end("run", name, "--port", "0", folder=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr


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


def run_to_its_end(*arguments, folder):
    """`python -m hydrogen` that is expected to end by itself."""
    env = {**os.environ, "PYTHONPATH": str(Path(hydrogen.__file__).parent.parent), "HYDROGEN_ENGINE": "python"}
    return subprocess.run(
        [sys.executable, "-m", "hydrogen", *arguments], capture_output=True, text=True, timeout=60, cwd=folder, env=env, check=False
    )
