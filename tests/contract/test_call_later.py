"""call_later: when, where and in which order its calls come, and when they never do.

Nothing here measures time: that a moment has passed is seen by another call, which was asked for
later.
"""

import random
import re
import socket as stdlib_socket
import threading
import time

import pytest
from support import PATIENCE, Client, Echo, echo, recorder, running, wait_event, wait_until

import hydrogen

SOON = 0.02
"""Seconds after which most calls here are due."""

NEVER = 3600.0


class Calls(list):
    """What was called, in order, and an event for each number of calls."""

    def __init__(self):
        self.changed = threading.Condition()

    def note(self, what):
        with self.changed:
            self.append(what)
            self.changed.notify_all()

    def noting(self, what):
        """A callback that notes `what`."""
        return lambda: self.note(what)

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, PATIENCE), (
                f"{count} calls; there were {list(self)}"
            )


# ----------------------------------------------------------------------------------- when and where


@pytest.mark.clause("S42")
def test_calls_come_in_the_order_in_which_they_are_due_also_when_they_are_asked_for_in_another(
    start,
):
    server = start(Echo(), max_threads=1)

    def asked():
        """Once more if it took so long that one may be due before another for that."""
        calls, began = Calls(), time.monotonic()
        for number in random.Random(4).sample(range(20), 20):
            server.call_later(SOON + number * SOON / 4, calls.noting(number))
        return [calls] if time.monotonic() - began < SOON / 4 else None

    (calls,) = wait_until(asked, "they are asked for at nearly the same time")
    calls.wait(20)
    assert calls == list(range(20))


@pytest.mark.clause("S42")
def test_an_earlier_call_does_not_wait_for_one_that_was_asked_for_before_it(start):
    server, calls = start(Echo()), Calls()
    server.call_later(NEVER, calls.noting("never"))
    server.call_later(SOON, calls.noting("soon"))
    calls.wait(1)
    server.call_later(SOON, calls.noting("again"))
    calls.wait(2)
    assert calls == ["soon", "again"]


@pytest.mark.clause("S42", "P1")
def test_a_call_is_made_by_a_worker_of_a_server_that_is_idle(start):
    server, calls = start(Echo()), Calls()
    server.call_later(SOON, lambda: calls.note(threading.current_thread()))
    calls.wait(1)
    assert re.fullmatch(r"hydrogen-worker-\d+", calls[0].name)
    assert calls[0].daemon


@pytest.mark.clause("S42")
def test_after_no_seconds_at_all_it_is_a_worker_too_that_calls(start):
    server, calls = start(Echo()), Calls()
    for _ in range(100):
        server.call_later(0, lambda: calls.note(threading.current_thread().name))
    calls.wait(100)
    assert {name.rpartition("-")[0] for name in calls} == {"hydrogen-worker"}


@pytest.mark.clause("S42", "H2")
def test_a_callback_may_ask_for_a_call_that_sends(start, connect):
    def received(socket, data):
        socket.server.call_later(SOON, lambda: socket.send(data))

    client = connect(start(recorder(data_received=received)))
    for number in range(5):
        client.echo(b"%d" % number)


@pytest.mark.clause("S42")
@pytest.mark.parametrize("max_threads", [1, 4])
def test_a_call_may_ask_for_the_next_one(start, max_threads):
    server, calls = start(Echo(), max_threads=max_threads), Calls()

    def tick():
        calls.note(len(calls))
        if len(calls) < 10:
            server.call_later(0.001, tick)

    tick()
    calls.wait(10)
    assert calls == list(range(10))


@pytest.mark.clause("S42", "S43")
def test_calls_from_many_threads_are_each_made_once_or_cancelled(start):
    server, calls, cancelled = start(Echo()), Calls(), Calls()

    def ask(seed):
        dice = random.Random(seed)
        for number in range(100):
            timer = server.call_later(dice.choice((0, 0.001, 0.01)), calls.noting((seed, number)))
            if dice.random() < 0.5 and timer.cancel():
                cancelled.note((seed, number))

    with running(*(lambda seed=seed: ask(seed) for seed in range(6))):
        pass
    calls.wait(600 - len(cancelled))
    assert sorted(calls + cancelled) == [
        (seed, number) for seed in range(6) for number in range(100)
    ]


@pytest.mark.clause("S42")
def test_connections_are_served_while_many_calls_stand(start, connect):
    server, calls = start(Echo()), Calls()
    client = connect(server)
    for number in range(1000):
        server.call_later(SOON if number % 2 else NEVER, calls.noting(number))
        if number % 50 == 0:
            client.echo(b"x")
    calls.wait(500)
    client.echo(b"y")
    assert sorted(calls) == list(range(1, 1000, 2))


# ------------------------------------------------------------------------------------------- cancel


def hold(server, calls, go):
    """Keep the only worker busy until `go`, so that nothing is called before it can be
    cancelled.
    """
    server.call_later(0, lambda: (calls.note("held"), wait_event(go, "let go")))
    calls.wait(1)


@pytest.mark.clause("S43")
def test_a_call_that_is_cancelled_is_not_made(start, gate):
    server, calls, go = start(Echo(), max_threads=1), Calls(), gate()
    hold(server, calls, go)
    timer = server.call_later(SOON, calls.noting("cancelled"))
    assert isinstance(timer, hydrogen.Timer)
    assert timer.cancel() is True
    assert timer.cancel() is False
    server.call_later(SOON, calls.noting("later"))
    go.set()
    calls.wait(2)
    assert calls == ["held", "later"]


@pytest.mark.clause("S43")
def test_it_is_too_late_to_cancel_what_is_being_called_or_has_been(start, gate):
    server, calls, go = start(Echo()), Calls(), gate()
    timers, known = [], gate()

    def call():
        wait_event(known, "its timer is known")
        calls.note(timers[0].cancel())
        wait_event(go, "let go")
        calls.note("done")

    timers.append(server.call_later(SOON, call))
    known.set()
    calls.wait(1)
    assert timers[0].cancel() is False
    go.set()
    calls.wait(2)
    assert timers[0].cancel() is False
    assert calls == [False, "done"]


@pytest.mark.clause("S43")
def test_cancelling_the_first_of_them_leaves_the_others(start, gate):
    server, calls, go = start(Echo(), max_threads=1), Calls(), gate()
    hold(server, calls, go)
    timers = [
        server.call_later(SOON + number * SOON / 10, calls.noting(number)) for number in range(20)
    ]
    for timer in timers[:10] + timers[11::2]:
        assert timer.cancel()
    go.set()
    calls.wait(6)
    server.call_later(SOON, calls.noting("last"))
    calls.wait(7)
    assert calls == ["held", 10, 12, 14, 16, 18, "last"]


@pytest.mark.clause("S43")
def test_a_callback_may_cancel_the_call_that_another_has_asked_for(start, connect):
    """How a timeout of the user's own is made."""

    def received(socket, data):
        if socket.user_data is not None:
            assert socket.user_data.cancel()
        socket.user_data = socket.server.call_later(NEVER, socket.abort)
        socket.send(data)

    handler = recorder(data_received=received)
    client = connect(start(handler))
    for _ in range(20):
        client.echo(b"x")
    assert handler.of("connection_removed") == []


# ----------------------------------------------------------------------- calls that block, or raise


@pytest.mark.clause("S44", "H22")
def test_calls_that_block_delay_neither_other_calls_nor_connections(start, connect, gate):
    server, calls, go = start(recorder(data_received=echo), max_threads=3), Calls(), gate()
    for number in range(2):
        server.call_later(
            0,
            lambda number=number: (
                calls.note(f"{number} blocks"),
                wait_event(go, "let go"),
                calls.note("done"),
            ),
        )
    calls.wait(2)
    server.call_later(SOON, calls.noting("called"))
    calls.wait(3)
    client = connect(server)
    for _ in range(5):
        client.echo(b"x")
    assert sorted(calls) == ["0 blocks", "1 blocks", "called"]
    go.set()
    calls.wait(5)


@pytest.mark.clause("S44")
def test_handlers_that_block_do_not_delay_calls_while_a_worker_is_left(start, connect, gate):
    go, calls = gate(), Calls()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler, max_threads=3)
    for _ in range(2):
        connect(server).send(b"x")
    handler.wait_for("data_received", 2)
    for number in range(5):
        server.call_later(SOON, calls.noting(number))
    calls.wait(5)
    assert not go.is_set()


@pytest.mark.clause("S44")
def test_what_is_due_while_all_workers_are_blocked_is_called_afterwards(start, connect, gate):
    go, calls = gate(), Calls()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server, other = start(handler, max_threads=2), start(Echo())
    for _ in range(2):
        connect(server).send(b"x")
    handler.wait_for("data_received", 2)
    for number in range(5):
        server.call_later(SOON, calls.noting(number))
    passed = threading.Event()
    other.call_later(2 * SOON, passed.set)
    wait_event(passed, "they are all due")
    assert calls == []
    go.set()
    calls.wait(5)
    assert sorted(calls) == list(range(5))


@pytest.mark.clause("S45")
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("mine"), SystemExit(3), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_what_a_call_raises_is_logged_and_nothing_else_comes_of_it(
    start, connect, error_log, error
):
    server, calls = start(Echo(), max_threads=2), Calls()
    client = connect(server)
    client.echo(b"before")

    def fail():
        raise error

    for _ in range(5):  # more often than there are workers
        server.call_later(SOON, fail)
    wait_until(lambda: len(error_log()) == 5, "each is logged")
    assert {record.exc_info[1] for record in error_log()} == {error}
    assert all("call_later" in record.getMessage() for record in error_log())
    server.call_later(SOON, calls.noting("still called"))
    calls.wait(1)
    client.echo(b"after")
    assert server.stats().removed == 0


# ------------------------------------------------------------------------------------------ the end


@pytest.mark.slow
@pytest.mark.clause("S46")
def test_what_has_not_been_called_when_the_server_stops_never_is(start):
    server, other, calls = start(Echo()), start(Echo()), Calls()
    timers = [server.call_later(seconds, calls.noting(seconds)) for seconds in (0.2, 0.25, NEVER)]
    server.stop()
    called = list(calls)
    passed = threading.Event()
    other.call_later(0.3, passed.set)
    wait_event(passed, "two of them would be due")
    assert calls == called
    assert timers[2].cancel() in (True, False)


@pytest.mark.clause("S46", "S15")
def test_a_call_that_is_due_while_a_stop_abandons_the_workers_is_not_made_by_one_that_is_late(
    start, connect, gate
):
    go, calls = gate(), Calls()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server, other = start(handler, max_threads=1), start(Echo())
    connect(server).send(b"x")
    handler.wait_for("data_received")
    for _ in range(3):
        server.call_later(0, calls.noting("late"))
    passed = threading.Event()
    other.call_later(SOON, passed.set)
    wait_event(passed, "they are due")
    assert server.stop(0).abandoned == 1
    go.set()
    wait_until(lambda: server.stats().connections == 0, "the worker has come out")
    assert calls == []


@pytest.mark.clause("S46", "S13")
def test_a_call_may_stop_its_server(start, connect):
    handler = recorder(connected=None)
    server, reports = start(handler), []
    client = connect(server)
    handler.wait_for("connected")
    server.call_later(SOON, lambda: reports.append(server.stop(PATIENCE)))
    assert client.at_end() == "end"
    client.close()
    assert server.wait(PATIENCE)
    wait_until(lambda: reports, "the call has its answer")
    assert reports == [hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)]
    assert server.stop().closed == 1


@pytest.mark.slow
@pytest.mark.clause("S46", "S12")
def test_a_call_that_blocks_does_not_keep_the_stop(start, connect, gate):
    server, calls, go = start(Echo()), Calls(), gate()
    server.call_later(
        0, lambda: (calls.note("blocks"), wait_event(go, "let go"), calls.note("done"))
    )
    calls.wait(1)
    report = server.stop(0.05)
    assert (report.closed, report.aborted, report.abandoned) == (0, 0, 0)
    assert calls == ["blocks"]
    go.set()
    calls.wait(2)


@pytest.mark.clause("S46")
def test_servers_that_stop_while_calls_come_due_lose_and_hang_nothing(engine):
    """At whatever moment of a call the stop comes."""
    for number in range(40):
        calls = Calls()
        server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2, pre_allocated=4)
        for step in range(20):
            server.call_later(
                step * number * 0.00002,
                lambda server=server, calls=calls: calls.note(server.wait(0)),
            )
        with Client(server.address) as client:
            client.echo(b"x")
        server.stop(PATIENCE)
        assert True not in calls


@pytest.mark.clause("S47")
def test_there_is_no_later_before_the_start_nor_after_the_stop(start, connect, engine):
    server = hydrogen.Server(Echo(), hydrogen.Config(port=0), engine=engine)
    with pytest.raises(RuntimeError, match="is not running"):
        server.call_later(0, print)
    server = start(Echo())
    server.stop()
    with pytest.raises(RuntimeError, match="is not running"):
        server.call_later(0, print)


@pytest.mark.clause("S42", "S47")
def test_callbacks_have_calls_made_while_it_stops_as_before(start, connect):
    """A callback may need a timeout, also during a graceful shutdown."""
    calls = Calls()

    def answer(socket, data):
        wait_until(lambda: not socket.server.ready, "the stop has begun")
        socket.server.call_later(0, lambda: socket.send(data))
        calls.wait(1)

    handler = recorder(
        data_received=answer,
        disconnected=lambda socket, err: socket.server.call_later(NEVER, print),
    )
    server = start(handler)
    client = connect(server)
    client.send(b"a question")
    handler.wait_for("data_received")
    with running(lambda: server.stop(PATIENCE)):
        assert client.receive(10) == b"a question"
        calls.note("answered")
        assert client.at_end() == "end"
        client.close()


@pytest.mark.clause("S42", "S46", "S47")
def test_what_asks_for_its_next_call_may_do_so_until_the_stop_is_over(start, connect, gate):
    """At whatever moment of it the stop comes."""
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler)
    while_it_stopped = []

    def tick():
        server.call_later(0, tick)
        if not server.ready:
            while_it_stopped.append(None)
            go.set()

    client = connect(server)
    client.send(b"x")
    handler.wait_for("data_received")
    tick()
    with running(lambda: server.stop(PATIENCE)):
        assert client.at_end() == "end"
        client.close()
    assert while_it_stopped


@pytest.mark.clause("S47")
def test_wrong_arguments_of_call_later_are_refused(start):
    server = start(Echo())
    for seconds in ("1", None, True, [1]):
        with pytest.raises(TypeError, match="seconds"):
            server.call_later(seconds, print)
    for seconds in (-1, -0.001, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            server.call_later(seconds, print)
    for callback in (None, 7, "print"):
        with pytest.raises(TypeError, match="callback"):
            server.call_later(1, callback)


@pytest.mark.clause("S42")
def test_a_callback_may_ask_for_calls_from_the_first_moment_on(engine):
    """A client waits in the backlog already when the server starts."""
    calls = Calls()

    class Asks(Echo):
        def on_connected(self, socket):
            self.server.call_later(0.0, calls.noting("called"))

    for number in range(1, 11):
        listening = stdlib_socket.create_server(("127.0.0.1", 0))
        client = Client(listening.getsockname())
        with hydrogen.serve(Asks(), sock=listening, engine=engine, slow_callback=60.0), client:
            calls.wait(number)


@pytest.mark.clause("S42")
def test_a_call_is_not_missed_in_the_moment_in_which_a_worker_looks_at_much_input(start, connect):
    """It is due while the only worker, with nothing else to do, searches a long beginning of a line
    that a pause had held back.
    """
    paused = []
    handler = recorder(connected=lambda socket: paused.append(socket.pause_reading()))
    options = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, 8 << 20)]
    builder = hydrogen.LineFrameBuilder(max_size=1 << 30)
    server = start(
        handler,
        max_threads=1,
        framing=builder,
        read_budget=1 << 26,
        frame_timeout=None,
        socket_options=options,
    )
    for number in range(1, 11):
        client = connect(server)
        wait_until(lambda number=number: len(paused) == number, "reading is paused")
        client.sock.setblocking(False)
        # as much of it as the kernel takes: net.core.rmem_max may be small
        client.sock.send(b"a" * (5 << 20))
        called = threading.Event()
        server.call_later(0.002, called.set)
        handler.of("connected")[-1].socket.resume_reading()
        wait_event(called, f"call {number}")
        client.close()
        handler.wait_removed(number)


@pytest.mark.clause("S42")
def test_what_is_too_far_away_is_refused_and_harms_no_other_call(start):
    server, calls = start(Echo(), max_threads=1), Calls()
    for seconds in (1e10, 1e300, float("inf"), 2**70):
        with pytest.raises(ValueError, match="seconds"):
            server.call_later(seconds, calls.noting("never"))
    for number in range(3):
        server.call_later(SOON * number, calls.noting(number))
    calls.wait(3)
    assert calls == [0, 1, 2]
