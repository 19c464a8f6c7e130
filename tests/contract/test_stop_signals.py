"""Stops that are interrupted, asked for twice, and asked for by whom one does not expect; methods
that a signal handler calls while its thread is inside them. None hangs.
"""

import contextlib
import queue
import signal
import threading
from functools import partial

import pytest
from reentry import interrupted
from support import (
    PATIENCE,
    Client,
    Echo,
    child,
    echo,
    finish,
    recorder,
    running,
    threads,
    wait_event,
    wait_until,
)

import hydrogen
from hydrogen import lifecycle

LONG = 3600.0
"""Seconds that no test waits for."""


def raise_interrupt():
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------- real signals

WITH = """
import signal, sys, threading
import hydrogen
from support import Echo

engine, how = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
if how == "exit":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
try:
    with hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2, stop_timeout=3600) as server:
        print(server.address[1], flush=True)
        server.wait()
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(server.wait(30))
"""


def stubborn(process, signals):
    """A client of a server in a process that gets a signal, and others while its stop waits for
    that client.
    """
    address = ("127.0.0.1", int(process.stdout.readline()))
    with Client(address, receive_buffer=4096) as client:
        client.echo(b"x")
        for number in signals:
            process.send_signal(number)
            client.at_end()  # the stop is under way, or over
        return finish(process, None)


@pytest.mark.clause("S56")
def test_a_second_ctrl_c_while_with_stops_the_server_aborts_the_stop(engine):
    out, err = stubborn(child(WITH, engine, "int"), [signal.SIGINT, signal.SIGINT])
    assert (out, err) == ("interrupted\nTrue\n", "")


@pytest.mark.clause("S56")
def test_a_second_sigterm_whose_handler_exits_aborts_the_stop(engine):
    process = child(WITH, engine, "exit")
    out, err = stubborn(process, [signal.SIGTERM, signal.SIGTERM])
    assert (out, err, process.returncode) == ("", "", 3)


HANDLER = """
import signal, sys
import hydrogen
from support import Echo

engine, first, second = sys.argv[1:]
server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2, stop_timeout=30)
signal.signal(signal.SIGTERM, lambda *_: getattr(server, first)())
signal.signal(signal.SIGINT, lambda *_: getattr(server, second)())
print(server.address[1], flush=True)
print(server.wait())
"""


@pytest.mark.clause("S56", "S14")
@pytest.mark.parametrize(
    "handlers", [("stop", "stop"), ("stop", "abort"), ("abort", "stop")], ids="-".join
)
def test_signal_handlers_that_stop_may_interrupt_each_other(engine, handlers):
    process = child(HANDLER, engine, *handlers)
    out, err = stubborn(process, [signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGTERM])
    assert (out, err) == ("True\n", "")
    # one may come when the interpreter is gone
    assert process.returncode in (0, -signal.SIGINT, -signal.SIGTERM)


MAIN_ENDS = """
import sys, threading
import hydrogen
from support import Client, wait_event

engine, how = sys.argv[1:]
seen = threading.Event()

class Ends(hydrogen.Handler):
    def on_data_received(self, socket, data):
        threading.main_thread().join()
        print(getattr(self.server, how)(), flush=True)
        socket.send(b"asked")

server = hydrogen.serve(Ends(), port=0, engine=engine, max_threads=2)

def converse():
    with Client(server.address) as client:
        client.send(b"stop")
        client.at_end()
    print(server.wait(30), server.stop().abandoned, flush=True)

threading.Thread(target=converse).start()
"""


@pytest.mark.clause("S13", "P3")
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_a_callback_may_stop_the_server_when_the_main_thread_has_ended(engine, how):
    """CPython 3.12 starts no thread from then on."""
    out, err = finish(child(MAIN_ENDS, engine, how), 0)
    asked = {"stop": str(hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)), "abort": "None"}[how]
    assert (out, err) == (f"{asked}\nTrue 0\n", "")


EXITS = """
import os, signal, sys, threading
import hydrogen
from support import Client, recorder, wait_event

engine = sys.argv[1]
signal.signal(signal.SIGINT, signal.default_int_handler)
asked = threading.Event()
def never(socket, data):
    wait_event(threading.Event(), "never")

handlers = [recorder(data_received=never) for _ in range(2)]
options = {"port": 0, "engine": engine, "max_threads": 2, "stop_timeout": 3600}
servers = [hydrogen.serve(h, **options) for h in handlers]
clients = [Client(server.address) for server in servers]
for client, handler in zip(clients, handlers):
    client.send(b"x")
    handler.wait_for("data_received")

def interrupt():
    while any(server.ready for server in servers):
        threading.Event().wait(0.001)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
for client in clients:
    client.sock.detach()
"""


@pytest.mark.clause("P3", "S56")
def test_ctrl_c_while_the_interpreter_exits_aborts_what_it_waits_for(engine):
    out, err = finish(child(EXITS, engine), 0)
    assert (out, err) == ("", "")


# ------------------------------------------------------------------------ interrupted at every line


@pytest.mark.slow
# a finalizer was met
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.clause("S56", "S14")
def test_a_stop_that_is_interrupted_between_any_two_lines_goes_on_and_may_be_waited_for(engine):
    tasks = threads()
    number, came = 0, True
    while came:
        server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=1, pre_allocated=1)
        with contextlib.suppress(KeyboardInterrupt):
            came = interrupted(server.stop, number, raise_interrupt)
        assert server.stop(PATIENCE).aborted == 0
        assert server.wait(PATIENCE)
        wait_until(
            lambda: len(threads()) <= len(tasks),
            f"no thread is left, interrupted before line {number}",
        )
        number += 1
    assert number > 10


def ends_soon(process):
    """What it wrote; it is killed when it hangs."""
    try:
        return process.communicate(timeout=20)
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.clause("S56", "S57")
@pytest.mark.parametrize("how", ["stop", "abort", "wait"])
@pytest.mark.parametrize("inside", ["stop", "abort", "suspend", "wait"])
def test_a_signal_handler_may_stop_a_server_between_any_two_lines_of_its_methods(
    engine, inside, how
):
    assert ends_soon(child(STOPS, engine, inside, how)) == ("True\n", "")


STOPS = """
import sys
import hydrogen
from reentry import interrupted
from support import Echo

engine, inside, how = sys.argv[1:]
number, came = 0, True
while came:
    server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=1, pre_allocated=1)
    calls = {
        "stop": server.stop,
        "abort": server.abort,
        "suspend": server.suspend,
        "wait": lambda: server.wait(0.001),
    }
    try:
        came = interrupted(calls[inside], number, calls[how])
    except RuntimeError as error:  # of suspend, by then
        assert "is not running" in str(error)
    server.stop()
    assert server.wait(0)
    number += 1
print(number > 3)
"""


REENTERS = """
import contextlib, signal, sys
import hydrogen
from reentry import interrupted
from support import Client, Echo

engine, inside = sys.argv[1:]
server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2)
client = Client(server.address)
client.echo(b"x")
calls = {
    "suspend": lambda: (server.suspend(), server.resume()),
    "call_later": lambda: server.call_later(3600, print).cancel(),
    "stats": server.stats,
    "connections": lambda: server.connections,
    "broadcast": lambda: server.broadcast(b""),
    "ready": lambda: server.ready,
    "log": lambda: server.log.say(10, "kind", "message"),
}

def every():
    for call in calls.values():
        call()

number = 0
while interrupted(calls[inside], number, every):
    number += 1
assert server.ready
client.echo(b"y")
client.close()
server.stop()
print(number > 0)
"""


@pytest.mark.slow
@pytest.mark.clause("S57")
@pytest.mark.parametrize(
    "inside", ["suspend", "call_later", "stats", "connections", "broadcast", "ready", "log"]
)
def test_a_signal_handler_may_call_anything_between_any_two_lines_of_a_method(engine, inside):
    assert ends_soon(child(REENTERS, engine, inside)) == ("True\n", "")


# --------------------------------------------------------------------------------- by the collector


@contextlib.contextmanager
def served_with(name, action):
    """A server of the Python engine in whose thread `name` something calls `action` once, as the
    collector does with a `__del__`.
    """
    armed = threading.Event()

    def trace(frame, event, argument):
        if armed.is_set() and threading.current_thread().name == name:
            armed.clear()
            action(server)
        return trace

    before = threading.gettrace()
    threading.settrace(trace)
    try:
        server = hydrogen.serve(Echo(), port=0, engine="python", max_threads=2, stop_timeout=LONG)
    finally:
        threading.settrace(before)
    armed.set()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, RuntimeError):  # it may have stopped the server by then
            server.call_later(0, lambda: None)
            stack.enter_context(Client(server.address)).send(b"x")
        yield server


PYTHON_THREADS = ["hydrogen-accept", "hydrogen-event", "hydrogen-monitor"]
"""Threads of the Python engine that run no code of the user's, but where the collector does; those
of the compiled one run no Python.
"""


@pytest.mark.clause("S57", "S14")
@pytest.mark.parametrize("how", ["stop", "abort"])
@pytest.mark.parametrize("name", PYTHON_THREADS)
def test_a_del_that_stops_the_server_in_a_thread_of_the_engine_waits_for_nothing(name, how):
    asked = []
    with served_with(name, lambda server: asked.append(getattr(server, how)())) as server:
        wait_until(lambda: asked, "it was called")
        server.abort()
        assert server.wait(0)
    assert asked == [hydrogen.StopReport(0, 0, 0, 0, 0, 0.0) if how == "stop" else None]


@pytest.mark.clause("S57", "S14")
@pytest.mark.parametrize("name", PYTHON_THREADS)
def test_a_del_that_blocks_in_a_thread_of_the_engine_holds_no_stop_up_for_ever(name):
    """When it goes on the thread ends, too, and uses nothing that is closed."""
    inside, go = threading.Event(), threading.Event()
    before = threads()

    def block(server):
        inside.set()
        wait_event(go, "let go")

    try:
        with served_with(name, block) as server:
            wait_event(inside, "it was called")
            with running(partial(server.stop, 0)):
                pass
            assert server.wait(0)
    finally:
        go.set()
    wait_until(lambda: len(threads()) <= len(before), "the thread has ended")


# ---------------------------------------------------------------------------------- without threads


@pytest.mark.clause("S13", "S14")
@pytest.mark.parametrize("where", ["connected", "data_received", "disconnected", "call_later"])
def test_a_callback_may_stop_the_server_where_no_thread_can_be_started(
    start, connect, monkeypatch, where
):
    hooks = {} if where == "call_later" else {where: lambda socket, *_: socket.server.stop()}
    handler = recorder(**{"data_received": echo, **hooks})
    server = start(handler)

    def refuse(*args):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        if where == "call_later":
            server.call_later(0, server.stop)
        else:
            client = connect(server)
            client.send(b"x")
            client.finish()
            client.at_end()
            client.close()
        assert server.wait(PATIENCE)
        assert server.stop().abandoned == 0


# ------------------------------------------------------------------------------------------ waiting


class Late(Exception):
    """What a library raises in a thread that is not its own (PyThreadState_SetAsyncExc)."""


class Torn(queue.SimpleQueue):
    """Its first `get` takes something and is left by an exception: one that was set while it waited
    comes as it returns.
    """

    came = False

    def get(self):
        item = super().get()
        if not self.came:
            self.came = True
            raise Late
        return item


@pytest.mark.clause("S56", "S14")
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_an_exception_from_outside_in_the_thread_that_waits_for_a_stop_loses_no_request(
    start, connect, monkeypatch, how
):
    def life(server):
        made = lifecycle.Life(server)
        made._asked = Torn()
        return made

    monkeypatch.setattr("hydrogen.server.Life", life)
    server = start(Echo(), stop_timeout=LONG)
    client = connect(server)
    client.echo(b"x")
    client.close()
    with running(getattr(server, how)):
        assert server.wait(PATIENCE)
    assert server._life._asked.came


@pytest.mark.clause("S16")
def test_wait_takes_infinity_and_refuses_what_is_no_time(start):
    server = start(Echo())
    for wrong in ("1", True, [1]):
        with pytest.raises(TypeError, match="timeout"):
            server.wait(wrong)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            server.wait(wrong)
    ended = []
    with running(*[lambda t=t: ended.append(server.wait(t)) for t in (float("inf"), 1e300, None)]):
        assert server.wait(0.001) is False
        server.stop()
    assert ended == [True] * 3


@pytest.mark.clause("S14", "S13")
def test_a_stop_that_is_waited_for_while_a_callback_asks_for_another_ends(start, connect, gate):
    go, reports = gate(), []

    def received(socket, data):
        wait_event(go, "let go")
        reports.append(socket.server.stop())

    handler = recorder(data_received=received)
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    handler.wait_for("data_received")
    with running(lambda: reports.append(server.stop(PATIENCE))):
        wait_until(lambda: not server.ready, "the stop has begun")
        go.set()
        handler.wait_for("disconnected")
        client.close()
    assert reports[0] == hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)
    assert (reports[1].closed, reports[1].aborted, reports[1].abandoned) == (1, 0, 0)


@pytest.mark.clause("S23")
def test_the_report_counts_the_messages_that_were_refused_during_the_stop(start, connect):
    """One that is sent when the connection ends, and none of those refused before."""

    def disconnected(socket, err):
        assert socket.send(b"too late") is False

    handler = recorder(data_received=echo, disconnected=disconnected)
    server = start(handler)
    early = connect(server)
    early.echo(b"x")
    early.close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "it does not count any more")
    assert server.stats().messages_refused == 1
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        client.echo(b"x")
    reports = []
    with running(lambda: reports.append(server.stop(PATIENCE))):
        for client in clients:
            assert client.at_end() == "end"
            client.close()
    (report,) = reports
    assert (report.closed, report.aborted, report.abandoned, report.refused) == (3, 0, 0, 3)
    assert server.stats().messages_refused == 4
