"""`hydrogen.testing`, as its users run it: by pytest, in a process of its own."""

import re

from support import ROOT, child, finish

import hydrogen
from hydrogen import backend

HEAD = """
import os
import pathlib
import socket
import threading

import pytest

import hydrogen

pytest_plugins = ["hydrogen.testing"]


class Echo(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)
"""


def run(folder, text, **environment):
    """Run a module of tests; the lines of pytest's summary, one for each outcome, and all that it
    printed.
    """
    path = folder / "test_module.py"
    path.write_text(text)
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = [
        "-c",
        "/dev/null",
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
        "-rA",
        "-W",
        "error",
    ]
    out, err = finish(child(code, *options, str(path), PYTEST_ADDOPTS="", **environment), None)
    assert err == ""
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S+::test_(\S+)", out, re.MULTILINE)
    return sorted(f"{outcome} {name}" for outcome, name in found), out


SERVES = """
kept = []


def test_served(hydrogen_serve, hydrogen_connect, hydrogen_engine):
    server = hydrogen_serve(Echo(), framing=hydrogen.LineFrameBuilder)
    assert server.engine == hydrogen_engine
    assert server.address[1] not in (0, 1337)
    clients = [hydrogen_connect(server), hydrogen_connect(server)]
    for client in clients:
        client.send(b"one")
        client.send(b"two")
        assert [client.recv(), client.recv()] == [b"one", b"two"]
    raw = hydrogen_connect(server, framing=None, timeout=5)
    raw.send(b"whole\\n")
    assert raw.recv() == b"whole\\n"
    other = hydrogen_serve(Echo(), hydrogen.Config(port=1, max_threads=3), max_threads=2)
    assert other.address[1] > 1
    assert other.config.max_threads == 2
    kept.extend([server, other, *clients, raw])


def test_stopped_before_this_one():
    *servers, first, second, raw = kept[-5:]
    assert all(server.wait(0) for server in servers)
    assert [server.stop().aborted for server in servers] == [0, 0]
    assert [client.fileno() for client in (first, second, raw)] == [-1, -1, -1]


def test_elsewhere(hydrogen_serve, hydrogen_connect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a path may be too long for a socket
    config = hydrogen.Config(path="two")
    for server in (hydrogen_serve(Echo(), path="one"), hydrogen_serve(Echo(), config)):
        client = hydrogen_connect(server)
        client.send(b"hello")
        assert client.recv() == b"hello"
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    assert hydrogen_serve(Echo(), sock=listener).address[1] == port


def test_stopped_by_the_test(hydrogen_serve, hydrogen_connect):
    server = hydrogen_serve(Echo())
    client = hydrogen_connect(server)
    client.send(b"hello")
    assert client.recv() == b"hello"
    server.abort()
    assert server.stop().aborted == 1
"""


def test_servers_and_clients_are_there_for_the_test_and_gone_after_it(engine, tmp_path):
    outcomes, out = run(tmp_path, HEAD + SERVES, HYDROGEN_ENGINE=engine)
    assert outcomes == [
        f"PASSED elsewhere[{engine}]",
        f"PASSED served[{engine}]",
        "PASSED stopped_before_this_one",
        f"PASSED stopped_by_the_test[{engine}]",
    ], out


LEAVES = """
class Blocks(hydrogen.Handler):
    def on_data_received(self, socket, data):
        self.server.call_later(0, self.block)
        self.block()

    def block(self):
        entered.release()
        threading.Event().wait()


class Pauses(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.pause_reading()
        socket.send(data)


class Raises(hydrogen.Handler):
    def on_data_received(self, socket, data):
        raise LookupError("the user's own")


entered = threading.Semaphore(0)


def test_blocked(hydrogen_serve, hydrogen_connect):
    hydrogen_connect(hydrogen_serve(Blocks(), stop_timeout=0.1, max_threads=2)).send(b"hello")
    for _ in range(2):
        assert entered.acquire(timeout=30)


def test_after_a_blocked_one(hydrogen_serve):
    hydrogen_serve(Echo())


def test_paused(hydrogen_serve, hydrogen_connect):
    server = hydrogen_serve(Pauses(), framing=hydrogen.LineFrameBuilder, stop_timeout=0.1)
    client = hydrogen_connect(server, framing=None)
    client.send(b"one\\ntwo\\n")
    assert client.recv() == b"one\\n"


def test_raised(hydrogen_serve, hydrogen_connect):
    assert list(hydrogen_connect_and_say(hydrogen_serve, hydrogen_connect)) == []


def test_expected(hydrogen_serve, hydrogen_connect, hydrogen_errors):
    assert list(hydrogen_connect_and_say(hydrogen_serve, hydrogen_connect)) == []
    assert hydrogen_errors.get(timeout=10).exc_info[0] is LookupError


def hydrogen_connect_and_say(serve, connect):
    client = connect(serve(Raises()))
    client.send(b"hello")
    return client
"""


def test_what_a_test_leaves_behind_fails_it_and_is_named(engine, tmp_path):
    outcomes, out = run(tmp_path, HEAD + LEAVES, HYDROGEN_ENGINE=engine)
    assert outcomes == [
        f"ERROR blocked[{engine}]",
        f"ERROR paused[{engine}]",
        f"ERROR raised[{engine}]",
        *(
            f"PASSED {name}[{engine}]"
            for name in ("after_a_blocked_one", "blocked", "expected", "paused", "raised")
        ),
    ], out
    out = out.partition("short test summary info")[0]  # where CI is set, that has all of it again
    address = r"server on \('127.0.0.1', \d+\)"
    assert (
        len(
            re.findall(rf"^{address}: connections whose callbacks have not returned: 1$", out, re.M)
        )
        == 1
    )
    assert len(re.findall(r"^hydrogen-worker-\d is still in a callback:$", out, re.M)) == 2
    assert out.count("in block\n    threading.Event().wait()") == 2
    assert len(re.findall(rf"^{address}: connections reset after stop_timeout: 1$", out, re.M)) == 1
    (logged,) = re.findall(r"^hydrogen logged errors:\n(.+\nTraceback (?s:.+?)\n\w.+)$", out, re.M)
    assert logged.startswith("on_data_received raised LookupError on connection")
    assert logged.endswith("\nLookupError: the user's own")


def test_without_a_choice_each_engine_there_is_has_its_run(tmp_path):
    try:
        backend.engine_class("compiled")
        engines = ["compiled", "python"]
    except hydrogen.EngineUnavailable:
        engines = ["python"]
    text = (
        HEAD
        + "\ndef test_any(hydrogen_engine, hydrogen_serve):\n"
        + "    assert hydrogen_serve(Echo()).engine == hydrogen_engine\n"
    )
    for choice in ("", "auto"):
        outcomes, out = run(tmp_path, text, HYDROGEN_ENGINE=choice)
        assert outcomes == [f"PASSED any[{name}]" for name in engines], out


def test_who_does_not_name_the_plugin_has_nothing_of_it(tmp_path):
    finish(
        child(
            "import sys, hydrogen, hydrogen.__main__; assert not {'pytest', 'hydrogen.testing'} & "
            "set(sys.modules)"
        ),
        0,
    )
    text = (
        "import sys\n\ndef test_absent(request):\n    assert not [name for name in sys.modules if "
        "name.startswith('hydrogen')]\n"
    )
    outcomes, out = run(tmp_path, text)
    assert outcomes == ["PASSED absent"], out


GUIDES = [
    block
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for block in re.findall(
        r"^```python[^\n]*\n(.+?)^```", path.read_text(), re.MULTILINE | re.DOTALL
    )
    if "hydrogen.testing" in block
]


def test_the_guide_speaks_of_every_fixture_and_its_tests_pass(engine, tmp_path):
    assert GUIDES
    for block in GUIDES:
        names = re.findall(r"^def test_(\w+)", block, re.MULTILINE)
        outcomes, out = run(tmp_path, block, HYDROGEN_ENGINE=engine)
        assert outcomes == sorted(f"PASSED {name}[{engine}]" for name in names), out
    fixtures = set(
        re.findall(
            r"^def (hydrogen_\w+)", (ROOT / "hydrogen" / "testing.py").read_text(), re.MULTILINE
        )
    )
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    assert [name for name in fixtures if f"`{name}" not in text] == []
