"""The end in good time: a stop that is spread out, accepting that is suspended, and what ready says
meanwhile.
"""

import logging
import threading

import pytest
from support import (
    PATIENCE,
    Client,
    Echo,
    child,
    echo,
    finish,
    recorder,
    running,
    wait_event,
    wait_until,
)

import hydrogen

LONG = 3600.0
"""Seconds that no test waits for."""


def crowd(handler, connect, server, count):
    """So many clients, each connected and served."""
    clients = [connect(server) for _ in range(count)]
    for client in clients:
        client.echo(b"x")
    handler.wait_for("connected", count)
    return clients


def leave(clients):
    """Each reads its end, a graceful one, and then closes; what each saw."""
    ends = []
    for client in clients:
        ends.append(client.at_end())
        client.close()
    return ends


# ------------------------------------------------------------------------------------------- spread


@pytest.mark.slow
@pytest.mark.clause("S31", "S10", "S23", "H20")
@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_a_stop_that_is_spread_closes_all_in_order(start, connect, spread):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    clients = crowd(handler, connect, server, 12)
    reports, ends = [], []
    with running(
        lambda: reports.append(server.stop(PATIENCE, spread)),
        *(lambda c=client: ends.extend(leave([c])) for client in clients),
    ):
        pass
    assert ends == ["end"] * 12
    assert {type(error) for error in handler.wait_removed(12)} == {hydrogen.ServerStopped}
    (report,) = reports
    assert (report.closed, report.aborted, report.abandoned, report.unsent_bytes) == (12, 0, 0, 0)
    assert server.stats().removed_server_stopped == 12


@pytest.mark.slow
@pytest.mark.clause("S31", "S33", "S35", "S9")
def test_between_two_closings_some_are_closed_and_the_others_are_served(start, connect):
    """So many are spread over so long that, when the first few are gone, the rest is there for
    minutes; abort() cuts that short.
    """
    counts = []
    handler = recorder(
        connected=None,
        data_received=echo,
        disconnected=lambda socket, err: counts.append(len(socket.server.connections)),
    )
    # whose ports are no other test's, once this server is gone
    server = start(handler, addr="127.0.0.84")
    clients = crowd(handler, connect, server, 40)
    reports = []
    with running(lambda: reports.append(server.stop(LONG, 20.0))):
        wait_until(lambda: len(counts) >= 3, "the first few are closed")
        assert not server.ready
        first, open_now = list(counts[:3]), {socket.peername for socket in server.connections}
        assert 0 < len(open_now) < 40
        served = [client for client in clients if client.name in open_now]
        served[-1].echo(b"served to the end")
        assert all(0 < count < 40 for count in first)
        assert first == sorted(first, reverse=True)
        with pytest.raises(ConnectionRefusedError):
            Client(server.address)
        server.abort()
    report = reports[0]
    assert report.closed + report.aborted == 40
    assert report.aborted > 0
    assert report.abandoned == 0
    assert report == server.stop()


@pytest.mark.clause("S31", "S13")
def test_a_callback_may_ask_for_a_stop_that_is_spread(start, connect):
    reports = []

    def received(socket, data):
        socket.send(data)
        if data == b"stop":
            reports.append(socket.server.stop(PATIENCE, 0.1))

    handler = recorder(connected=None, data_received=received)
    server = start(handler)
    clients = crowd(handler, connect, server, 6)
    clients[3].echo(b"stop")
    assert leave(clients) == ["end"] * 6
    assert server.wait(PATIENCE)
    assert reports == [hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)]
    assert server.stop().closed == 6


@pytest.mark.slow
@pytest.mark.clause("S31", "S10")
def test_who_leaves_by_himself_while_a_stop_is_spread_is_closed_once(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    clients = crowd(handler, connect, server, 10)
    reports = []
    with running(lambda: reports.append(server.stop(PATIENCE, 1.0))):
        wait_until(lambda: len(server.connections) < 10, "the first is closed, so all were counted")
        for client in clients[5:]:
            client.close()
        assert leave(clients[:5]) == ["end"] * 5
    assert (reports[0].closed, reports[0].aborted) == (10, 0)
    assert len(handler.wait_removed(10)) == 10
    assert {type(error) for error in handler.wait_removed(10)} <= {
        hydrogen.ServerStopped,
        hydrogen.PeerClosed,
    }


@pytest.mark.clause("S31", "S11")
def test_at_the_timeout_the_rest_of_a_stop_that_is_spread_is_aborted(start, connect):
    """The peers read nothing, so that their output cannot be flushed."""
    handler = recorder(connected=None)
    server = start(handler)
    clients = [connect(server, receive_buffer=4096) for _ in range(4)]
    for call in handler.wait_for("connected", 4):
        assert call.socket.send(bytes(8 << 20))
    report = server.stop(0.2, 0.1)
    assert (report.closed, report.aborted, report.abandoned) == (0, 4, 0)
    assert 0 < report.unsent_bytes <= 4 * (8 << 20)
    assert [client.at_end() for client in clients] == ["reset"] * 4


@pytest.mark.clause("S31")
def test_a_spread_over_nobody_is_no_wait(start):
    report = start(Echo()).stop(LONG, LONG)
    assert (report.closed, report.aborted, report.abandoned) == (0, 0, 0)


@pytest.mark.clause("S31", "S12")
def test_a_handler_that_blocks_does_not_hold_up_the_closing_of_the_others(start, connect, gate):
    go = gate()

    def received(socket, data):
        socket.send(data)
        if data == b"hold":
            wait_event(go, "let go")

    handler = recorder(connected=None, data_received=received)
    server = start(handler)
    clients = crowd(handler, connect, server, 6)
    clients[0].echo(b"hold")
    reports = []
    with running(lambda: reports.append(server.stop(PATIENCE, 0.05))):
        assert leave(clients[1:]) == ["end"] * 5
        handler.wait_removed(5)
        assert not server.wait(0)
        go.set()
        assert leave(clients[:1]) == ["end"]
    assert (reports[0].closed, reports[0].aborted, reports[0].abandoned) == (6, 0, 0)


@pytest.mark.clause("S32", "S28")
def test_a_wrong_spread_is_refused_and_the_server_serves_on(start, connect):
    server = start(Echo(), stop_timeout=2.0)
    client = connect(server)
    for spread in ("1", None, True, [1]):
        with pytest.raises(TypeError, match="spread"):
            server.stop(spread=spread)
    for spread in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="spread"):
            server.stop(spread=spread)
    for timeout, spread in ((None, 2.1), (1.0, 1.1), (0, 0.001)):
        with pytest.raises(ValueError, match="spread: must be at most"):
            server.stop(timeout, spread)
    assert server.ready
    client.echo(b"still served")


# ------------------------------------------------------------------------------- suspend and resume


@pytest.mark.clause("S34", "S35")
def test_while_suspended_nothing_is_accepted_and_what_is_open_is_served(start, connect):
    """But for one at most, which the accept thread may be about to accept when it is told."""
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    client = connect(server)
    client.echo(b"x")
    for number in range(3):
        server.suspend()
        assert not server.ready
        waiting = [connect(server) for _ in range(4)]
        for one in waiting:
            one.send(b"patient")
        for _ in range(20):
            client.echo(b"served")
        assert server.stats().accepted <= 1 + 4 * number + 1
        server.resume()
        assert server.ready
        for one in waiting:
            assert one.receive(7) == b"patient"
    stats = server.stats()
    assert (stats.accepted, stats.connections, stats.removed) == (13, 13, 0)


@pytest.mark.clause("S34")
def test_suspending_twice_is_as_once_and_resuming_what_is_not_suspended_is_nothing(start, connect):
    server = start(Echo())
    server.resume()
    connect(server).echo(b"x")
    server.suspend()
    server.suspend()
    server.resume()
    assert server.ready
    connect(server).echo(b"y")


@pytest.mark.clause("S34")
def test_all_that_waited_is_accepted_when_accepting_goes_on(start, connect):
    server = start(Echo(), addr=("127.0.0.1", "::1"))
    server.suspend()
    clients = [connect(address) for address in server.addresses for _ in range(50)]
    server.resume()
    for client in clients:
        client.echo(b"x")
    assert server.stats().accepted == 100


@pytest.mark.clause("S34", "S38")
@pytest.mark.parametrize(
    "where", ["new_connection", "connected", "data_received", "disconnected", "connection_removed"]
)
def test_callbacks_may_suspend_and_resume(start, connect, where):
    """As a server does that takes no more while it has enough to do."""
    ready = []

    def hook(*args):
        handler.server.suspend()
        ready.append(handler.server.ready)
        handler.server.resume()
        ready.append(handler.server.ready)

    handler = recorder(**{"data_received": echo, where: hook})
    server = start(handler)
    for number in range(1, 6):
        client = connect(server)
        client.send(b"x")
        client.close()
        handler.wait_removed(number)
        wait_until(lambda number=number: len(ready) == 2 * number, "the callback has returned")
    assert ready == [False, True] * 5
    assert server.ready


@pytest.mark.clause("S34", "S42")
def test_calls_that_are_due_come_while_suspended(start):
    server, called = start(Echo()), threading.Event()
    server.suspend()
    server.call_later(0.01, lambda: (server.resume(), called.set()))
    wait_event(called, "it is called")
    assert server.ready


@pytest.mark.clause("S34", "S48")
def test_whoever_suspends_and_resumes_meanwhile_nobody_is_lost(start):
    server = start(Echo(), max_connections=4)
    done = threading.Event()

    def toggle():
        while not done.is_set():
            server.suspend()
            server.resume()

    def converse():
        for _ in range(40):
            with Client(server.address) as client:
                client.echo(b"x")

    with running(toggle, toggle):
        try:
            with running(*[converse] * 5):
                pass
        finally:
            done.set()
    assert server.ready
    wait_until(lambda: server.stats().connections == 0, "they are gone")
    assert server.stats().accepted == 200


@pytest.mark.clause("S34", "C32")
def test_resume_does_not_accept_more_than_max_connections(start, connect):
    server = start(Echo(), max_connections=2)
    clients = [connect(server) for _ in range(2)]
    for client in clients:
        client.echo(b"x")
    waiting = connect(server)
    waiting.send(b"patient")
    server.suspend()
    server.resume()
    for _ in range(20):
        clients[0].echo(b"x")
    assert server.stats().accepted == 2
    server.suspend()
    clients[0].close()
    wait_until(lambda: server.stats().connections == 1, "one is gone")
    for _ in range(20):
        clients[1].echo(b"x")
    assert server.stats().accepted == 2
    server.resume()
    assert waiting.receive(7) == b"patient"


@pytest.mark.clause("S34", "S10", "S8")
@pytest.mark.parametrize("how", ["stop", "abort", "spread"])
def test_a_server_that_is_suspended_stops_as_any_other(start, connect, how):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    clients = crowd(handler, connect, server, 3)
    server.suspend()
    waiting = connect(server)
    waiting.send(b"in vain")
    stop = {
        "stop": lambda: server.stop(PATIENCE),
        "abort": server.abort,
        "spread": lambda: server.stop(PATIENCE, 0.05),
    }[how]
    with running(stop):
        assert set(leave(clients)) == {"reset" if how == "abort" else "end"}
        assert waiting.at_end() in ("reset", "end")  # "end" if it was that one
        waiting.close()
    assert not server.ready
    assert server.stats().accepted <= 4


@pytest.mark.clause("S35")
def test_only_a_server_that_runs_can_be_suspended_and_resumed(start, engine):
    server = hydrogen.Server(Echo(), hydrogen.Config(port=0), engine=engine)
    stopped = start(Echo())
    stopped.stop()
    for one in (server, stopped):
        for call in (one.suspend, one.resume):
            with pytest.raises(RuntimeError, match="is not running"):
                call()
        assert not one.ready


@pytest.mark.clause("S35", "S34")
def test_callbacks_suspend_and_resume_while_it_stops_as_before(start, connect):
    """An overloaded handler suspends and resumes, also during a graceful shutdown."""

    def pause(socket):
        socket.server.suspend()
        socket.server.resume()

    def answer(socket, data):
        wait_until(lambda: not socket.server.ready, "the stop has begun")
        pause(socket)
        socket.send(data)

    handler = recorder(data_received=answer, disconnected=lambda socket, err: pause(socket))
    server = start(handler)
    client = connect(server)
    client.send(b"a question")
    handler.wait_for("data_received")
    with running(lambda: server.stop(PATIENCE)):
        assert client.receive(10) == b"a question"
        assert leave([client]) == ["end"]


# ------------------------------------------------------------------------------------ exit and fork

EXITS = """
import sys
import hydrogen
from support import Client, Echo

engine, how = sys.argv[1:]
server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=3, stop_timeout=0.5)
client = Client(server.address)
client.echo(b"hello")
if how in ("suspended", "both"):
    server.suspend()
    waiting = Client(server.address)
    waiting.sock.detach()
if how in ("call_later", "both"):
    server.call_later(3600, print)
    for number in range(100):
        server.call_later(number / 1000, lambda: None)
if how == "slow_callback":
    options = {"max_threads": 2, "stop_timeout": 0.5, "slow_callback": 0.01}
    watched = hydrogen.serve(Echo(), port=0, engine=engine, **options)
client.sock.detach()  # open until the process ends, and no ResourceWarning
print("end of main", flush=True)
"""


@pytest.mark.slow
@pytest.mark.clause("P3", "S34", "S46")
@pytest.mark.parametrize("how", ["suspended", "call_later", "both", "slow_callback"])
def test_f27_interpreter_exit_while_suspended_or_with_calls_that_stand(engine, how):
    out, err = finish(child(EXITS, engine, how), 0)
    assert out == "end of main\n"
    assert err == ""


FORKS = """
import os, sys, threading, warnings
import hydrogen
from support import Client, recorder, echo, wait_event

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

engine = sys.argv[1]
handler = recorder(connected=None, data_received=echo)
options = {"addr": ("127.0.0.1", "::1"), "max_threads": 3, "idle_timeout": 20, "slow_callback": 5}
server = hydrogen.serve(handler, port=0, engine=engine, **options)
clients = [Client(address) for address in server.addresses for _ in range(3)]
for client in clients:
    client.echo(b"before")
called = threading.Event()
server.call_later(0.05, called.set)
server.suspend()
child = os.fork()
if child == 0:
    assert not server.ready
    assert server.broadcast(b"from the child") == hydrogen.BroadcastReport(0, 0)
    for call in (server.suspend, server.resume, lambda: server.call_later(0, print)):
        try:
            call()
        except RuntimeError:
            continue
        os._exit(3)
    for socket in server.connections:
        os._exit(4)
    server.stats()
    server.stop(1, 1)
    server.abort()
    own = hydrogen.serve(recorder(data_received=echo), port=0, engine=engine, max_threads=2)
    with own, Client(own.address) as client:
        again = threading.Event()
        own.call_later(0, again.set)
        wait_event(again, "a call in the child's own server")
        client.echo(b"of the child")
        assert own.broadcast(b"x").sent == 1
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
wait_event(called, "the call that stood")
for client in clients:
    client.echo(b"after")
server.resume()
client = Client(server.addresses[1])
client.echo(b"new")
assert server.broadcast(b"all").sent == 7
for client in [client, *clients]:
    assert client.receive(3) == b"all"
    client.close()
handler.wait_removed(7)
report = server.stop(20, 1)
assert (report.aborted, report.abandoned) == (0, 0), report
print("fine")
"""


@pytest.mark.clause("P4", "S34", "S41", "S35", "S47")
def test_f28_in_a_forked_child_nothing_of_this_touches_the_parent(engine):
    out, _ = finish(child(FORKS, engine), 0)
    assert out == "fine\n"


@pytest.mark.clause("S34", "P4")
def test_f28_a_child_does_not_keep_the_listeners_open(engine):
    """Nothing of the server's is inherited by a program that a handler starts, nor does a forked
    child keep the port busy.
    """
    code = """
import os, sys, warnings
import hydrogen
from support import Client, Echo

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
ours, theirs = os.pipe()
there, here = os.pipe()
options = {"addr": ("127.0.0.78", "127.0.0.79"), "engine": sys.argv[1], "max_threads": 2}
server = hydrogen.serve(Echo(), port=0, **options)
child = os.fork()
if child == 0:
    os.close(theirs)
    os.write(here, b"x")  # it has come out of fork(2), with what is to be done there
    os.read(ours, 1)
    os._exit(0)
os.read(there, 1)
server.stop()
for address in server.addresses:
    try:
        Client(address)
    except ConnectionRefusedError:
        continue
    sys.exit("somebody listens still")
with hydrogen.serve(Echo(), port=server.address[1], **options) as again:
    with Client(again.addresses[1]) as client:
        client.echo(b"x")
os.write(theirs, b"x")
os.waitpid(child, 0)
print("fine")
"""
    out, _ = finish(child(code, engine), 0)
    assert out == "fine\n"


@pytest.mark.clause("S28", "S31")
@pytest.mark.parametrize(
    "seconds", [{"timeout": 1e11}, {"timeout": 1e11, "spread": 1e11}, {"timeout": float("inf")}]
)
def test_a_time_that_nobody_can_wait_for_is_refused_and_the_server_goes_on(start, connect, seconds):
    server = start(Echo())
    with pytest.raises(ValueError, match="timeout"):
        server.stop(**seconds)
    connect(server).echo(b"x")


@pytest.mark.clause("S13")
@pytest.mark.parametrize("moment", ["all workers are blocked", "a callback is slow"])
def test_a_log_handler_may_stop_the_server(start, connect, gate, moment):
    """The thread that writes the line is none that the stop could wait for."""
    go, stopped = gate(), threading.Event()
    options = {"max_threads": 1} if moment == "all workers are blocked" else {"slow_callback": 0.05}
    server = start(recorder(data_received=lambda socket, data: wait_event(go, "let go")), **options)

    class Stops(logging.Handler):
        def emit(self, record):
            if record.levelno == logging.WARNING and not stopped.is_set():
                stopped.set()
                server.stop(0.1)

    handler = Stops()
    logging.getLogger("hydrogen").addHandler(handler)
    try:
        for client in (connect(server), connect(server)):
            client.send(b"x")
        assert server.wait(PATIENCE)
    finally:
        logging.getLogger("hydrogen").removeHandler(handler)
    assert stopped.is_set()


@pytest.mark.clause("S33")
def test_what_waits_in_a_long_backlog_is_not_accepted_while_suspended(start, connect):
    """One may be on its way when `suspend` is called, no more."""
    server = start(Echo())
    clients = []

    def come():
        clients.extend(Client(server.address) for _ in range(300))

    try:
        with running(come):
            wait_until(lambda: server.stats().accepted >= 20, "some have come")
            server.suspend()
            accepted = server.stats().accepted
        assert server.stats().accepted <= accepted + 1
        server.resume()
        wait_until(lambda: server.stats().accepted == 300, "all are accepted")
    finally:
        for client in clients:
            client.close()


@pytest.mark.clause("P1")
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_a_stop_does_not_wait_for_code_of_the_user_s_that_runs_as_a_worker_ends(
    start, connect, gate, how
):
    """What a worker has put into a `threading.local` is dropped when its thread ends; that may take
    its time.
    """
    go, held = gate(), threading.Event()
    local = threading.local()

    class Database:
        def __del__(self):
            held.set()
            wait_event(go, "let go")

    def received(socket, data):
        local.database = Database()
        socket.send(data)

    server = start(recorder(data_received=received), max_threads=2)
    client = connect(server)
    client.echo(b"x")
    client.close()
    returned = threading.Event()

    def stop():
        server.stop(1) if how == "stop" else server.abort()
        returned.set()

    with running(stop):
        try:
            wait_event(returned, "it returns though the worker has not ended")
            wait_event(held, "the worker is about to end")
            assert server.wait(PATIENCE)
            assert server.stats().connections == 0
        finally:
            go.set()
