"""What the threads of an engine have to say is written by a thread that may hang, or by workers.

Hooks of logging that raise or hang around callbacks: test_log_handlers.py.
"""

import contextlib
import ctypes
import logging
import sys
import threading

import pytest
from support import Client, Echo, recorder, wait_event, wait_until

from hydrogen._py.log import LogThread


@contextlib.contextmanager
def handling(emit):
    """Call `emit` for each record of hydrogen's from WARNING on."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = emit
    logger = logging.getLogger("hydrogen")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


SAID = {
    "overload": {"max_connections": 2, "overload": "close"},
    "accepting is paused": {"max_connections": 2},
    "all 2 workers are blocked": {"max_threads": 2},
}
said = pytest.mark.parametrize("what", SAID)


def provoke(server, what, connect):
    """Have that line said; returns who waits until it is over."""
    clients = [connect(server) for _ in range(2)]
    for client in clients:
        client.send(b"block" if "blocked" in what else b"x")
    wait_until(lambda: server.stats().messages_received == 2, "both are served")
    third = connect(server)
    if "blocked" in what:
        third.send(b"wait")
    return clients, third


@pytest.mark.clause("S59")
@said
def test_a_log_handler_that_hangs_keeps_no_thread_of_the_engine(start, connect, gate, what):
    go, release, hangs = gate(), gate(), threading.Event()

    def emit(record):
        if what in record.getMessage():
            hangs.set()
            wait_event(release, "the end of the test")

    def received(socket, data):
        if data == b"block":
            wait_event(go, "the line is said")
        socket.send(data)

    handler = recorder(data_received=received)
    with handling(emit):
        server = start(handler, **{"max_threads": 3, **SAID[what]})
        clients, third = provoke(server, what, connect)
        wait_event(hangs, f"{what!r} is said")
        go.set()
        called = threading.Event()
        server.call_later(0, called.set)
        wait_event(called, "a timer is called")
        for client in clients:
            if "blocked" in what:
                assert client.receive(5) == b"block"
            client.close()
        wait_until(lambda: server.stats().connections <= 1, "both have left room for others")
        if what != "overload":
            third.send(b"y")
            third.receive(1)
        with Client(server.address) as fourth:
            fourth.echo(b"served")
        third.close()
        assert server.stop(5).abandoned == 0
        release.set()


@pytest.mark.clause("S59")
@said
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError, MemoryError])
def test_whatever_a_log_handler_raises_the_next_line_is_written(
    start, connect, gate, capsys, what, error
):
    go, lines = gate(), []

    def emit(record):
        lines.append(record.getMessage())
        raise error

    def received(socket, data):
        if data == b"block":
            wait_event(go, "the line is said")
        socket.send(data)

    handler = recorder(data_received=received)
    with handling(emit):
        server = start(handler, **{"max_threads": 3, **SAID[what]})
        clients, third = provoke(server, what, connect)
        wait_until(lambda: [line for line in lines if what in line], f"{what!r} is said")
        go.set()
        for client in clients:
            client.close()
        third.close()
        wait_until(lambda: server.stats().connections == 0, "all have gone")
        with Client(server.address) as fourth:
            fourth.echo(b"served")
        server.stop(5)


class Late(BaseException):
    """What a library for timeouts sets."""


@pytest.mark.clause("S59")
def test_an_exception_set_in_the_log_thread_while_it_waits_takes_no_line(start, connect):
    """The log handler that it was meant for has ended."""
    lines = []

    def emit(record):
        lines.append((threading.get_ident(), record.getMessage()))

    def waits(ident):  # its innermost frame: of the compiled engine that which called it
        return sys._current_frames()[ident].f_code.co_name in {"run", "receive"}

    handler = recorder(connected=None)
    with handling(emit):
        server = start(handler, max_connections=1, overload="close")
        connect(server)
        handler.wait_for("connected")
        for number in range(1, 4):
            assert connect(server).at_end() == "reset"
            wait_until(lambda number=number: len(lines) == number, "it is told")
            ident, line = lines[-1]
            assert line.startswith(f"overload: {number} ")
            wait_until(lambda ident=ident: waits(ident), "the thread waits")
            assert (
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(ident), ctypes.py_object(Late)
                )
                == 1
            )


@pytest.mark.clause("S59")
@pytest.mark.parametrize("first", ["not", "at once"])
def test_an_overload_is_told_of_whether_the_one_before_was_not_for_want_of_memory_or_at_once(
    start, connect, monkeypatch, first
):
    say, calls, lines = LogThread.say, [], []

    def emit(record):
        if record.getMessage().startswith("overload"):
            lines.append(record)

    def other(self, write, *arguments):
        calls.append(write)
        if len(calls) > 1:
            return say(self, write, *arguments)
        if first == "not":
            raise MemoryError
        write(*arguments)
        lines.clear()
        return True

    monkeypatch.setattr(LogThread, "say", other)  # of the Python engine
    handler = recorder(connected=None)
    with handling(emit):
        server = start(handler, max_connections=1, overload="close")
        connect(server)
        handler.wait_for("connected")
        for _ in range(3):
            connect(server).at_end()
        wait_until(lambda: lines, "it is told")


@pytest.mark.clause("S59")
def test_workers_that_are_all_busy_but_get_on_are_not_called_blocked(start, connect):
    """Each callback is short, and there is always one more than there are workers."""
    server = start(Echo(), max_threads=1)
    clients = [connect(server) for _ in range(4)]
    for _ in range(500):
        for client in clients:
            client.send(b"x" * 100)
        for client in clients:
            client.receive(100)
    assert server.stats().all_blocked == 0
