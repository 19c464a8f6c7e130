"""Filters and handlers of logging that raise whatever there is, hang, or call the server: what they
cost.
"""

import contextlib
import logging
import os
import re
import threading

import pytest
from certificates import client_context, server_context
from support import (
    Client,
    Echo,
    TlsClient,
    child,
    finish,
    recorder,
    running,
    wait_event,
    wait_until,
)

import hydrogen
from hydrogen import lifecycle
from hydrogen.watchdog import has_gil


class Mine(logging.Handler):
    """Calls `emit` for each record of hydrogen's that is of `level` or above."""

    def __init__(self, emit, level=logging.INFO):
        super().__init__(level)
        self.emit = emit


@contextlib.contextmanager
def handling(emit, level=logging.INFO):
    logger, handler = logging.getLogger("hydrogen"), Mine(emit, level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def raising(error):
    def emit(record):
        raise error

    return emit


FAULTS = [
    ValueError("mine"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    BaseException("mine"),
    MemoryError(),
]


def class_of(error):
    return type(error).__name__


@pytest.mark.clause("S59", "H16")
@pytest.mark.parametrize("fault", FAULTS, ids=class_of)
def test_a_log_handler_that_raises_costs_no_connection_and_no_worker(
    start, connect, capsys, error_log, fault
):
    def received(socket, data):
        if data == b"raise":
            raise LookupError("of the callback")
        socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=2)
    bystander = connect(server)
    with handling(raising(fault), logging.ERROR):
        for number in range(1, 6):  # more than there are workers
            client = connect(server)
            client.send(b"raise")
            assert client.at_end() == "end"
            client.close()
            (*_, error) = handler.wait_removed(number)
            assert isinstance(error.__cause__, LookupError)
            bystander.echo(b"served")
    assert class_of(fault) in capsys.readouterr().err


@pytest.mark.clause("S59", "S45")
@pytest.mark.parametrize("fault", FAULTS, ids=class_of)
def test_a_log_handler_that_raises_costs_no_timer(start, capsys, error_log, fault):
    server, called = start(Echo(), max_threads=1), threading.Event()
    with handling(raising(fault), logging.ERROR):
        for _ in range(3):
            server.call_later(0, lambda: 1 / 0)
        server.call_later(0.01, called.set)
        wait_event(called, "the next one is called")
        wait_until(lambda: class_of(fault) in capsys.readouterr().err, "it was called to log")


@pytest.mark.clause("S59", "S50")
@pytest.mark.parametrize(
    "fault", [fault for fault in FAULTS if not isinstance(fault, KeyboardInterrupt)], ids=class_of
)
@pytest.mark.parametrize("how", ["handler", "filter"])
def test_logging_that_raises_hinders_neither_start_nor_stop(engine, capsys, fault, how):
    logger = logging.getLogger("hydrogen")
    emit = raising(fault)
    if how == "filter":
        logger.addFilter(emit)
    try:
        with handling(emit) if how == "handler" else contextlib.nullcontext():
            server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2)
            with Client(server.address) as client:
                client.echo(b"x")
            assert server.stop().abandoned == 0
    finally:
        logger.removeFilter(emit)
    assert server.wait(0)
    assert class_of(fault) in capsys.readouterr().err


@pytest.mark.clause("S59", "S53")
def test_a_ctrl_c_inside_a_log_handler_of_the_start_comes_out_and_the_server_does_not_run(engine):
    servers = []
    handler = recorder(server_created=lambda fd: servers.append(handler.server))
    with handling(raising(KeyboardInterrupt())), pytest.raises(KeyboardInterrupt):
        hydrogen.serve(handler, port=0, engine=engine, max_threads=2)
    assert servers[0].wait(0)


@pytest.mark.clause("S59", "S56")
@pytest.mark.parametrize("line", ["serving on", "stopped after"])
@pytest.mark.parametrize("how", ["stop", "abort", "stats", "wait"])
def test_a_log_handler_may_call_the_server(engine, line, how):
    servers, called = [], []
    handler = recorder(server_created=lambda fd: servers.append(handler.server))

    def emit(record):
        if record.getMessage().startswith(line):
            server = servers[0]
            called.append(server.wait(0) if how == "wait" else getattr(server, how)())

    with handling(emit):
        server = hydrogen.serve(handler, port=0, engine=engine, max_threads=2)
        server.stop()
        wait_until(lambda: called, "it was called")
    assert server.wait(0)
    assert len(called) == 1


@pytest.mark.slow
@pytest.mark.clause("S59", "S12")
def test_a_log_handler_that_hangs_keeps_a_worker_and_nobody_else(start, connect, gate, error_log):
    """The connection whose error it is told of is abandoned by the stop, which ends."""
    go, inside = gate(), threading.Event()

    def emit(record):
        inside.set()
        wait_event(go, "let go")

    def received(socket, data):
        if data == b"raise":
            raise LookupError
        socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=2)
    clients = [connect(server) for _ in range(4)]
    with handling(emit, logging.ERROR):
        clients[0].send(b"raise")
        wait_event(inside, "it hangs")
        called = threading.Event()
        server.call_later(0.01, called.set)
        wait_event(called, "a timer is called")
        for client in clients[1:]:
            client.echo(b"served")
            client.close()
        handler.wait_removed(3)
        report = server.stop(0.1)
        go.set()
    assert (report.aborted, report.abandoned) == (0, 1)
    handler.wait_removed(4)


@pytest.mark.slow
@pytest.mark.clause("S59", "S56")
def test_a_log_handler_that_hangs_when_the_stop_is_logged_does_not_hold_it_up(engine, gate):
    go, inside = gate(), threading.Event()

    def emit(record):
        if record.getMessage().startswith("stopped after"):
            inside.set()
            wait_event(go, "let go")

    with handling(emit):
        server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2)
        report = server.stop()
        assert server.wait(0)
        assert report.abandoned == 0
        wait_event(inside, "it hangs")
        go.set()


@pytest.mark.clause("S59", "S12")
def test_a_stop_has_one_deadline_for_all_whom_a_log_handler_keeps(
    start, connect, gate, monkeypatch, error_log
):
    """A worker, the log thread and the watchdog: with no time left it waits for none of them."""
    go, hung, joined = gate(), set(), []
    known = threading.Thread.join

    def hang(record):
        hung.add(threading.current_thread().name.rstrip("0123456789"))
        wait_event(go, "let go")

    def received(socket, data):
        if data == b"raise":
            raise LookupError
        wait_event(go, "let go")  # which is slow

    def join(thread, timeout=None):
        if thread.name in ("hydrogen-log", "hydrogen-watchdog") or thread.name.startswith(
            "hydrogen-worker"
        ):
            joined.append(timeout)
        known(thread, timeout)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=3, max_connections=2, slow_callback=0.01)
    log_handler = Mine(hang, logging.WARNING)
    log_handler.handle = hang  # without the lock of logging's own, which would keep all but one
    logging.getLogger("hydrogen").addHandler(log_handler)
    try:
        for data in (b"raise", b"slow"):
            # the second one is the last that is accepted: that is for the log thread
            connect(server).send(data)
        everybody = {"hydrogen-worker-", "hydrogen-log", "hydrogen-watchdog"}
        wait_until(lambda: hung == everybody, "all hang")
        monkeypatch.setattr(lifecycle, "STOP_GRACE", 0.0)
        monkeypatch.setattr(lifecycle, "ABORT_GRACE", 0.0)
        monkeypatch.setattr(threading.Thread, "join", join)
        assert server.stop(0).abandoned == 2
        assert set(joined) == {0.0}
    finally:
        monkeypatch.undo()
        logging.getLogger("hydrogen").removeHandler(log_handler)
        go.set()
    handler.wait_removed(2)


FULL_PIPE = """
import logging, os, sys, threading
import hydrogen
from hydrogen.watchdog import has_gil
from support import Client, recorder, wait_event

engine = sys.argv[1]
out = os.dup(1)
reader, writer = os.pipe()
os.set_blocking(writer, False)
try:
    while True:
        os.write(writer, bytes(4096))
except BlockingIOError:
    os.set_blocking(writer, True)
os.dup2(writer, 2)  # whoever was to read stderr has hung
logging.basicConfig(level=logging.WARNING)
go = threading.Event()

def received(socket, data):
    if data == b"block":
        wait_event(go, "let go")
    socket.send(data)

handler = recorder(data_received=received)
server = hydrogen.serve(handler, port=0, engine=engine, max_threads=2, stop_timeout=0.2)
clients = [Client(server.address) for _ in range(3)]
for client in clients:
    client.send(b"block")
handler.wait_for("data_received", 2)  # and the third waits
while not server.stats().all_blocked:  # which is logged, and hangs
    go.wait(0.001)
go.set()
called = threading.Event()
server.call_later(0.01, called.set)
wait_event(called, "a timer is called")
report = server.stop()
os.write(out, f"{called.is_set()} {report.closed + report.aborted + report.abandoned}".encode())
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.clause("S59")
def test_a_stderr_that_nobody_reads_stops_neither_timers_nor_the_stop(engine):
    process = child(FULL_PIPE, engine)
    try:
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert out == "True 3"


@pytest.mark.slow
@pytest.mark.clause("S51", "S52")
def test_that_all_workers_are_blocked_is_logged_once_however_often_it_happens(
    start, connect, gate, caplog
):
    gates = []
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(gates[int(data)], "let go"),
            socket.send(data),
        )
    )
    server = start(handler, max_threads=1)
    clients = [connect(server) for _ in range(2)]
    for number in range(5):
        gates.append(gate())
        before = server.stats().all_blocked
        for client in clients:
            client.send(b"%d" % number)
        wait_until(lambda before=before: server.stats().all_blocked > before, "all are blocked")
        gates[number].set()
        for client in clients:
            assert client.receive(1) == b"%d" % number
    for client in clients:
        client.close()
    server.stop()
    times = server.stats().all_blocked
    lines = [record.getMessage() for record in caplog.get_records("call")]
    told = len([line for line in lines if line.startswith("all 1 workers are blocked")])
    left_out = re.findall("^all workers blocked: ([0-9]+) more lines", "\n".join(lines), re.M)
    assert 1 <= told < times
    assert told + sum(map(int, left_out)) == times


@pytest.mark.clause("S59", "S57")
def test_the_log_may_be_called_again_by_whoever_interrupts_it(engine):
    """As a signal handler does, in the thread that is inside; in a process of its own, should it
    hang.
    """
    out, err = finish(child(AGAIN, engine), 0)
    assert (out, err) == ("True\n", "")


AGAIN = """
import logging, sys
import hydrogen
from hydrogen.watchdog import has_gil
from reentry import interrupted
from support import Echo

logging.getLogger("hydrogen").addHandler(logging.NullHandler())
server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=2)
say = lambda: server.log.say(logging.WARNING, "kind", "line")
number = 0
while interrupted(lambda: (say(), server.log.flush()), number, say):
    number += 1
server.stop()
print(number > 10)
"""


def test_a_path_that_is_no_text_is_logged_on_a_strict_file(start, tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/\xff\xfe")
    target = tmp_path / "log"
    handler = logging.FileHandler(target, encoding="utf-8", errors="strict")
    logger = logging.getLogger("hydrogen")
    level = logger.level
    logger.addHandler(handler)
    logger.propagate = False  # pytest cannot pass on such a line
    logger.setLevel(logging.DEBUG)
    try:
        server = start(recorder(data_received=lambda socket, data: 1 / 0), path=path)
        with Client(path) as client:
            client.send(b"x")
            client.at_end()
        server.stop()
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(level)
        handler.close()
    text = target.read_text()
    assert "serving on " in text
    assert "\\udcff\\udcfe" in text
    assert "on_data_received raised ZeroDivisionError on connection" in text


def test_a_callback_error_is_logged_where_the_peer_cannot_be_named(start, engine, error_log):
    class Nameless:
        id = 5

        @property
        def peername(self):
            raise MemoryError

    server = start(recorder())
    server.log.callback_error("on_data_received", ValueError(), Nameless())
    (record,) = error_log()
    assert record.getMessage() == (
        "on_data_received raised ValueError on a connection that cannot be identified"
    )


def test_a_module_whose_loader_raises_costs_no_watchdog(start, connect, gate, caplog):
    class Loader:
        def get_source(self, name):
            raise RuntimeError("no source")

    gates = [gate(), gate()]
    module = {"__name__": "m", "__loader__": Loader(), "wait_event": wait_event, "gates": gates}
    code = "def slow(socket, data):\n    wait_event(gates[int(data)], 'let go')\n"
    exec(compile(code, "not_there.py", "exec"), module)
    server = start(recorder(data_received=module["slow"]), slow_callback=0.01)
    client = connect(server)
    for number, go in enumerate(gates, 1):
        client.send(b"%d" % (number - 1))
        wait_until(lambda number=number: server.stats().slow_callbacks == number, "it was found")
        go.set()
    client.close()
    server.stop()
    lines = [record.getMessage() for record in caplog.get_records("call")]
    if has_gil():
        assert any(re.search('not_there.py(:|", line )2,? in slow', line) for line in lines)


@pytest.mark.clause("S59", "H13", "H23")
def test_a_connection_that_a_log_handler_aborts_as_it_becomes_ready_has_no_on_disconnected(
    start, connect, caplog
):
    """It has no on_connected either. That the abort has come is seen by a connection behind it."""
    caplog.set_level(logging.DEBUG, logger="hydrogen")
    streams = [hydrogen.Plain, lambda fd: None]
    handler = recorder(new_connection=lambda fd: streams.pop()(fd), connected=None)
    server = start(handler, ssl=server_context())
    client = connect(server)
    wait_until(lambda: len(streams) == 1, "it has the one that is none")
    connect(server)
    handler.wait_for("connected")

    def emit(record):
        if "handshake done" in record.getMessage():
            # else that one's removal would be logged, and wait for this line
            caplog.set_level(logging.INFO, logger="hydrogen")
            with running(server.abort):
                handler.wait_for("disconnected")

    with handling(emit, logging.DEBUG):
        with contextlib.suppress(ConnectionResetError):
            TlsClient(client, client_context()).handshake()
        handler.wait_removed(2)
    assert [call.id for call in handler.of("disconnected")] == [
        call.id for call in handler.of("connected")
    ]


@pytest.mark.clause("S59", "C14")
def test_overload_is_told_though_the_log_took_no_more_lines_when_it_began(
    start, connect, caplog, monkeypatch
):
    def overloads():
        return [
            record for record in caplog.get_records("call") if "overload" in record.getMessage()
        ]

    handler = recorder(connected=None)
    server = start(handler, max_connections=1, overload="close")
    connect(server)
    handler.wait_for("connected")
    with monkeypatch.context() as patch:
        # of the Python engine; the other one keeps one line at most
        patch.setattr("hydrogen._py.log.MANY", 0)
        for _ in range(2):  # when the second is turned away the line of the first is left out
            assert connect(server).at_end() == "reset"
        wait_until(lambda: server.stats().removed_overload == 2, "they are counted")
    assert connect(server).at_end() == "reset"
    wait_until(overloads, "it is told")
