"""`begin`: the Rust crate's call, its signals, and what it returns. In processes of their own, for
a signal is the process's.
"""

import signal
import threading

import pytest
from support import Client, Echo, child, finish, recorder, running, wait_until

import hydrogen

SERVES = """
import os, signal, socket, sys, threading
import hydrogen

class Serves(hydrogen.Handler):
    def on_server_created(self, fd):
        with socket.socket(fileno=os.dup(fd)) as listener:
            print(listener.getsockname()[1], flush=True)

    def on_data_received(self, socket, data):
        socket.send(data)
        if data == b"hold":
            threading.Event().wait()
        if data == b"stop":
            self.server.stop()

def mine(number, frame):
    pass

signal.signal(signal.SIGINT, mine)
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
config = hydrogen.Config("127.0.0.1", 0, 3, 8, stop_timeout=float(sys.argv[1]))
report = hydrogen.begin(Serves(), config)
assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
print(type(report).__name__, report.closed, report.aborted, report.abandoned)
"""


def begin(engine, stop_timeout):
    """A process in `begin`, and its address, to which one can `dial`."""
    process = child(SERVES, str(stop_timeout), HYDROGEN_ENGINE=engine)
    return process, ("127.0.0.1", int(process.stdout.readline()))


def dial(address):
    """Connect to a server that may be between bind(2) and listen(2)."""

    def answered():
        try:
            return Client(address)
        except ConnectionRefusedError:
            return None

    return wait_until(answered, "it listens")


@pytest.mark.clause("S1", "S2", "S4")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_earlier_handlers_are_restored(engine, number):
    process, address = begin(engine, 30)
    with dial(address) as client:
        client.echo(b"hello")
        process.send_signal(number)
        assert client.receive_until_end() == b""
    out, err = finish(process, 0)
    assert (out, err) == ("StopReport 1 0 0\n", "")


@pytest.mark.clause("S3", "S4", "S15")
@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)]
)
def test_a_second_signal_aborts_and_begin_returns_normally(engine, numbers):
    process, address = begin(engine, 3600)
    with dial(address) as client, Client(address) as held:
        client.echo(b"hello")
        held.echo(b"hold")
        process.send_signal(numbers[0])
        assert client.receive_until_end() == b""  # the stop is under way
        process.send_signal(numbers[1])
        out, err = finish(process, 0)
    assert err == ""
    closed, aborted, abandoned = map(int, out.split()[1:])
    assert closed + aborted + abandoned == 2
    assert abandoned >= 1


@pytest.mark.clause("S2", "S11")
def test_a_stop_by_signal_takes_no_longer_than_stop_timeout(engine):
    process, address = begin(engine, 0.1)
    with dial(address) as held:
        held.echo(b"hold")
        process.send_signal(signal.SIGTERM)
        out, _ = finish(process, 0)
    assert out == "StopReport 0 0 1\n"


@pytest.mark.clause("S2")
def test_many_signals_at_once_end_it_once(engine):
    process, address = begin(engine, 30)
    with dial(address) as client:
        client.echo(b"hello")
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        client.at_end()
    _, err = finish(process, None)
    # the last ones may come after begin has returned
    assert process.returncode in (0, -signal.SIGTERM, -signal.SIGINT)
    assert "Traceback" not in err or "KeyboardInterrupt" in err


@pytest.mark.clause("S1", "S13")
def test_a_stop_from_a_callback_ends_begin(engine):
    process, address = begin(engine, 30)
    with dial(address) as client:
        client.echo(b"stop")
        assert client.receive_until_end() == b""
    out, err = finish(process, 0)
    assert (out, err) == ("StopReport 1 0 0\n", "")


@pytest.mark.clause("S27", "S4")
def test_in_another_thread_begin_touches_no_signal_and_returns_when_somebody_stops_it(
    engine, monkeypatch
):
    monkeypatch.setenv("HYDROGEN_ENGINE", engine)
    created = threading.Event()
    handler = recorder(server_created=lambda fd: created.set(), connected=None)
    reports = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with running(
        lambda: reports.append(hydrogen.begin(handler, hydrogen.Config(port=0, max_threads=2)))
    ):
        assert created.wait(30)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        while not handler.server.ready:
            handler.server.wait(0.001)
        with Client(handler.server.address) as client:
            handler.wait_for("connected")
            with running(handler.server.stop):
                assert client.receive_until_end() == b""
                client.close()
    assert reports[0].closed == 1
    assert reports == [handler.server.stop()]


@pytest.mark.clause("S1")
def test_begin_raises_what_the_start_raises(engine, monkeypatch):
    monkeypatch.setenv("HYDROGEN_ENGINE", engine)
    with hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2) as server:
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(OSError, match="in use"):
            hydrogen.begin(Echo(), hydrogen.Config(port=server.address[1]))
        assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(TypeError, match="instance"):
        hydrogen.begin(Echo)


@pytest.mark.clause("S62")
def test_begin_takes_the_options_of_serve_and_tells_when_it_serves(engine):
    told = []

    def started(server):
        told.append((server, threading.current_thread()))
        assert server.ready
        assert server.engine == engine
        assert (server.config.max_threads, server.config.port) == (2, 0)
        with Client(server.address) as client:
            client.echo(b"hello")
        server.stop()

    config = hydrogen.Config(port=1, max_threads=2)
    report = hydrogen.begin(Echo(), config, port=0, engine=engine, on_started=started)
    ((server, thread),) = told
    assert report == server.stop()
    assert thread is threading.current_thread()


@pytest.mark.clause("S63")
def test_what_on_started_raises_aborts_the_server_and_comes_out_of_begin(engine):
    servers, clients = [], []

    def started(server):
        servers.append(server)
        clients.append(Client(server.address))
        clients[0].echo(b"hello")
        raise LookupError("the user's own")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(LookupError, match="the user's own"):
        hydrogen.begin(Echo(), port=0, engine=engine, on_started=started)
    with clients[0]:
        assert clients[0].at_end() == "reset"
    assert servers[0].wait(0)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.clause("S62")
def test_begin_opens_nothing_when_on_started_cannot_be_called(engine):
    created = []
    handler = recorder(server_created=created.append)
    with pytest.raises(TypeError, match="on_started: expected a callable, not 7"):
        hydrogen.begin(handler, port=0, engine=engine, on_started=7)
    assert created == []
