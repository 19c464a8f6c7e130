"""Timers that are set and cancelled by signal handlers, by `__del__`, and by what the collector
finds, while their own thread sets and cancels some.
"""

import contextlib
import gc
import threading

import pytest
from support import PATIENCE, Echo, child, finish, recorder, running, wait_event, wait_until

import hydrogen

SIGNALS = """
import signal, sys, threading
import hydrogen
from support import Echo, wait_event

server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=2)
came = 0

def on_alarm(*_):
    global came
    came += 1
    server.call_later(3600, print).cancel()
    server.call_later(0, lambda: None)

signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while came < 500:
    server.call_later(3600, print).cancel()
signal.setitimer(signal.ITIMER_REAL, 0)
called = threading.Event()
server.call_later(0, called.set)
wait_event(called, "timers are called")
server.stop()
print(called.is_set())
"""


@pytest.mark.slow
@pytest.mark.clause("S57", "S42")
def test_a_signal_handler_may_set_and_cancel_timers_while_its_thread_does(engine):
    out, err = finish(child(SIGNALS, engine), 0)
    assert (out, err) == ("True\n", "")


class Cyclic:
    """An object in a cycle: the collector finds it, in whatever thread it runs, and it cancels its
    timer and sets another.
    """

    def __init__(self, server, gone):
        self.me = self
        self.server = server
        self.gone = gone
        self.timer = server.call_later(3600, print)

    def __del__(self):
        self.timer.cancel()
        with contextlib.suppress(RuntimeError):  # it is found when the server has stopped
            self.gone.append(self.server.call_later(0, self.gone.clear))


@pytest.fixture
def eager_collector():
    before = gc.get_threshold()
    gc.set_threshold(5)
    yield
    gc.set_threshold(*before)


@pytest.mark.slow
@pytest.mark.clause("S57", "S43")
def test_what_the_collector_finds_may_set_and_cancel_timers_in_any_thread(
    start, connect, eager_collector
):
    gone = []

    def received(socket, data):
        Cyclic(socket.server, gone)
        socket.send(data)

    server = start(recorder(data_received=received))
    clients = [connect(server) for _ in range(2)]

    def set_and_cancel():
        for _ in range(2000):
            server.call_later(3600, print).cancel()
            Cyclic(server, gone)

    def converse(client):
        for _ in range(200):
            client.echo(b"x")

    with running(
        set_and_cancel,
        set_and_cancel,
        *(lambda client=client: converse(client) for client in clients),
    ):
        pass
    called = threading.Event()
    server.call_later(0, called.set)
    wait_event(called, "timers are called")


@pytest.mark.clause("S57", "S45")
def test_a_callback_that_dies_with_its_cancelled_timer_may_use_timers(start):
    server, called = start(Echo()), threading.Event()

    class Callback:
        def __call__(self):
            raise AssertionError("it was cancelled")

        def __del__(self):
            server.call_later(0, called.set)

    assert server.call_later(3600, Callback()).cancel()
    gc.collect()
    wait_event(called, "what __del__ asked for is called")


@pytest.mark.clause("S43")
def test_timers_that_are_set_and_cancelled_for_each_message_do_not_pile_up(start, connect):
    def received(socket, data):
        for _ in range(100):
            socket.server.call_later(3600, print).cancel()
        socket.send(data)

    server = start(recorder(data_received=received))
    client = connect(server)
    for _ in range(50):
        client.echo(b"x")
    timers = server.timers
    wait_until(lambda: len(timers._heap) + len(timers._added) < 200, "they are dropped")


@pytest.mark.clause("S43", "S46")
def test_a_timer_may_be_cancelled_when_the_server_has_stopped(engine):
    server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=1)
    timer = server.call_later(3600, print)
    assert server.stop(PATIENCE).abandoned == 0
    assert timer.cancel()
    assert not timer.cancel()
