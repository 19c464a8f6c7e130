"""Whatever is raised around a connection, and whenever, costs at most that connection: no worker,
and nobody else.

Exceptions of callbacks, streams, builders and log handlers: test_exceptions_everywhere.py; failed
allocations: test_nomemory.py. Here: asynchronous exceptions, which libraries for timeouts set from
outside (PyThreadState_SetAsyncExc) and which may come a moment late, and contexts.
"""

import contextvars
import ctypes
import decimal
import logging
import socket as stdlib_socket
import struct
import threading

import pytest
from families import FAMILIES, PassThrough, connect_to, options_of, stream_of
from support import PATIENCE, Echo, recorder, wait_event, wait_until

import hydrogen

# What is interrupted where nothing can be raised, in a finalizer or in linecache, is no news.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

families = pytest.mark.parametrize("family", FAMILIES)

WORKERS = 2

ROUNDS = 5 * WORKERS


class Late(BaseException):
    """What a library for timeouts sets."""


def set_in(ident):
    """Have `Late` raised in a thread, at its next line of Python."""
    assert (
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Late))
        == 1
    )


@pytest.mark.clause("H16")
@families
def test_an_exception_set_in_a_worker_that_waits_costs_neither_it_nor_anybody(
    start, tmp_path, family, error_log
):
    """The callback that it was meant for has ended. At most the connection that comes next may
    go.
    """
    idents = set()

    def received(socket, data):
        idents.add(threading.get_ident())
        socket.send(data)

    handler = recorder(
        new_connection=lambda fd: stream_of(family, fd), connected=None, data_received=received
    )
    server = start(handler, **options_of(family, str(tmp_path / "s")), max_threads=WORKERS)
    stays = connect_to(server, family)
    handler.wait_for("connected")
    gone = 0
    for _ in range(ROUNDS):
        victim = connect_to(server, family)
        victim.send(b"x\n")
        assert victim.receive(2) == b"x\n"
        wait_until(lambda: len(idents) >= 1, "a worker is known")
        for ident in tuple(idents):
            set_in(ident)
        for _ in range(WORKERS):
            try:
                victim.send(b"y\n")
                assert victim.receive(2) == b"y\n"
            except (OSError, AssertionError):  # it was that one's turn
                gone += 1
                break
        victim.close()
        # Before the next one: else it may hit the stream in its own close(), which then leaves the
        # fd open.
        wait_until(
            lambda: server.stats().connections == handler.socket(0).is_open,
            "the victim is gone, and its stream closed",
        )
    handler.wait_removed(ROUNDS)
    if not handler.socket(0).is_open:
        stays.close()
        stays = connect_to(server, family)
    for number in range(2 * WORKERS):
        stays.send(b"%d\n" % number)
        assert stays.receive(2) == b"%d\n" % number
    stays.close()
    names = [thread.name for thread in threading.enumerate()]
    assert len([name for name in names if name.startswith("hydrogen-worker")]) == WORKERS


@pytest.mark.clause("H16")
@families
def test_an_exception_set_in_a_worker_during_its_callback_ends_that_connection(
    start, tmp_path, family, error_log
):
    inside = threading.Event()
    idents = []

    def received(socket, data):
        if data == b"late":
            idents.append(threading.get_ident())
            inside.set()
            while True:
                threading.Event().wait(0.001)
        socket.send(data)

    handler = recorder(new_connection=lambda fd: stream_of(family, fd), data_received=received)
    server = start(handler, **options_of(family, str(tmp_path / "s")), max_threads=WORKERS)
    stays = connect_to(server, family)
    for number in range(ROUNDS):
        inside.clear()
        victim = connect_to(server, family)
        victim.send(b"late\n")
        wait_event(inside, "the callback runs")
        set_in(idents[-1])
        victim.close()  # or the connection lingers for it
        error = handler.wait_removed(number + 1)[number]
        assert type(error) is hydrogen.HandlerError
        assert type(error.__cause__) is Late
        stays.send(b"%d\n" % number)
        assert stays.receive(2) == b"%d\n" % number
    stays.close()
    wait_until(lambda: server.stats().removed_handler_error == ROUNDS, "the last one is counted")


@pytest.mark.clause("H16")
@pytest.mark.parametrize("name", ["on_data_received", "on_disconnected", "recv"])
def test_an_error_of_a_callback_is_told_though_an_exception_was_set_in_it_just_before(
    start, connect, error_log, name
):
    """While it waits in C, which then raises by itself: no line of Python comes in between."""
    near, idents, removed = [], [], []

    def wait(*arguments):
        idents.append(threading.get_ident())
        near[-1].recv(1)

    class Reads(PassThrough):
        recv = wait

    class Waits(hydrogen.Handler):
        def on_new_connection(self, fd):
            return Reads(fd) if name == "recv" else None

        def on_data_received(self, socket, data):
            socket.abort()

        def on_connection_removed(self, fd, err):
            removed.append(err)

    setattr(Waits, name, wait)
    server = start(Waits(), max_threads=1)
    for number in range(ROUNDS):
        with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
            far = stdlib_socket.create_connection(listener.getsockname())
            near.append(listener.accept()[0])
        client = connect(server)
        client.send(b"x")
        wait_until(lambda number=number: len(idents) > number, "the callback is about to wait")
        far.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0))
        set_in(idents[-1])
        far.close()  # a reset: recv(2) raises
        client.close()
        wait_until(lambda number=number: len(removed) > number, "it is removed")
        near[-1].close()
        if name == "on_data_received":
            assert type(removed[number]) is hydrogen.HandlerError
        if name != "on_disconnected":
            assert {type(removed[number]), type(removed[number].__cause__)} & {
                ConnectionResetError,
                Late,
            }
    lines = [record.getMessage() for record in error_log()]
    if name != "recv":  # of which an OSError is the connection's
        assert len([line for line in lines if line.startswith(f"{name} raised ")]) >= ROUNDS, lines


mine = contextvars.ContextVar("mine", default="nothing")


@pytest.mark.clause("H16")
@pytest.mark.parametrize("name", ["connected", "data_received", "eof", "disconnected"])
def test_what_a_callback_sets_in_its_context_no_other_one_sees(start, connect, name):
    seen = []

    def callback(socket, *arguments):
        seen.append((mine.get(), decimal.getcontext().prec))
        mine.set("set")
        decimal.getcontext().prec = 5
        if name == "eof":
            socket.close()

    handler = recorder(**{"data_received": None, name: callback})
    server = start(handler, max_threads=1)
    usual = ("nothing", decimal.DefaultContext.prec)
    for number in range(3):
        with connect(server) as client:
            client.send(b"x")
            handler.wait(lambda number=number: handler.data() == b"x" * (number + 1), "a message")
            client.finish()
            client.at_end()
        handler.wait_removed(number + 1)
    assert seen == [usual] * 3


@pytest.mark.clause("H16")
def test_what_a_timer_sets_in_its_context_no_other_one_sees(start):
    server = start(Echo(), max_threads=1)
    seen, called = [], threading.Semaphore(0)

    def callback():
        seen.append(mine.get())
        mine.set("set")
        called.release()

    for _ in range(3):
        server.call_later(0, callback)
        assert called.acquire(timeout=PATIENCE)
    assert seen == ["nothing"] * 3


@pytest.mark.clause("S43", "H16")
def test_timers_are_run_though_an_exception_from_outside_has_cut_a_ring_short(start, monkeypatch):
    server, called = start(Echo(), max_threads=1), threading.Event()
    run_due, cuts = server.timers.run_due, [Late, Late]

    def cut_short(set_alarm):
        if cuts:
            raise cuts.pop()
        run_due(set_alarm)

    monkeypatch.setattr(server.timers, "run_due", cut_short)
    server.call_later(0, called.set)
    wait_event(called, "the timer")
    assert not cuts


class Faceless(Exception):
    """Does not even say what it is."""

    @property
    def __class__(self):
        raise KeyError


@pytest.mark.clause("H16")
def test_what_a_callback_raised_is_told_though_its_words_raise_what_does_not_say_its_class(
    start, connect, error_log
):
    class Wordless(Exception):
        def __str__(self):
            raise Faceless

    def received(socket, data):
        socket.send(b"answer")
        raise Wordless

    handler = recorder(data_received=received)
    client = connect(start(handler))
    client.send(b"x")
    assert client.receive(6) == b"answer"
    assert client.at_end() == "end"
    error = handler.wait_removed()[0]
    assert type(error) is hydrogen.HandlerError
    assert type(error.__cause__) is Wordless


@pytest.mark.clause("S59")
def test_a_server_stops_though_the_log_raises_what_does_not_say_its_class(start, connect, capsys):
    class Refuses(logging.Handler):
        def emit(self, record):
            if threading.current_thread() is not threading.main_thread():
                raise Faceless

    refuses, log = Refuses(), logging.getLogger("hydrogen")
    log.addHandler(refuses)
    try:
        server = start(Echo())
        connect(server).echo(b"x")
        server.stop(PATIENCE)
        assert server.wait(PATIENCE)
    finally:
        log.removeHandler(refuses)
