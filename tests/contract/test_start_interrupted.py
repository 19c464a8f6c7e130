"""A start that is interrupted or stopped at any moment: nothing stays behind, and nobody waits for
ever.
"""

import contextlib
import dataclasses
import gc
import socket
import threading
import time

import pytest
from reentry import interrupted, signalled
from support import (
    PATIENCE,
    Client,
    Echo,
    child,
    finish,
    open_fds,
    recorder,
    running,
    threads,
    wait_event,
    wait_until,
)

import hydrogen
from hydrogen.handler import callbacks_of

NOTHING = hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)


def make(engine, handler=None, **options):
    options.setdefault("port", 0)
    config = hydrogen.Config(max_threads=2, pre_allocated=4, **options)
    return hydrogen.Server(handler or Echo(), config, engine=engine)


def raise_interrupt():
    raise KeyboardInterrupt


def every_line(engine, call):
    """`call(number)` for each number, until it says that there are no more lines."""
    make(engine)  # which imports the engine: the lines of that are not meant
    number, came = 0, True
    gc.collect()
    gc.freeze()  # or each of the collections would take as long as that one
    while came:
        # The collector would run the `__del__` of an earlier engine here, where what an interrupt
        # raises comes out of nothing.
        gc.collect()
        gc.disable()
        try:
            came = call(number)
        finally:
            gc.enable()
        number += 1
    gc.unfreeze()
    assert number > 20, "it was interrupted nowhere"


# ------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.clause("S53")
def test_ctrl_c_between_any_two_lines_of_serve_leaves_no_thread_and_no_fd(engine):
    gc.collect()  # what an earlier test has left in a cycle would go meanwhile
    fds, tasks = open_fds(), threads()

    def start(number):
        servers = []
        config = hydrogen.Config(port=0, max_threads=2, pre_allocated=4, slow_callback=5.0)

        def serve():
            servers.append(hydrogen.serve(Echo(), config, engine=engine))

        try:
            came = interrupted(serve, number, raise_interrupt)
        except KeyboardInterrupt:
            assert servers == []
            came = True
        for server in servers:
            server.stop()
        wait_until(
            lambda: len(threads()) <= len(tasks),
            f"no thread is left, interrupted before line {number}",
        )
        assert open_fds() == fds, f"interrupted before line {number}"
        return came

    every_line(engine, start)


@pytest.mark.slow
@pytest.mark.clause("S53")
def test_an_interrupted_start_leaves_no_file_of_a_unix_socket(engine, tmp_path):
    path = str(tmp_path / "socket")

    def start(number):
        server = hydrogen.Server(Echo(), hydrogen.Config(path=path, max_threads=2), engine=engine)
        try:
            came = interrupted(server.start, number, raise_interrupt)
        except KeyboardInterrupt:
            came = True
        server.stop()
        assert not (tmp_path / "socket").exists(), f"interrupted before line {number}"
        return came

    every_line(engine, start)


@pytest.mark.slow
@pytest.mark.clause("S53", "S22")
def test_a_start_that_was_interrupted_at_any_moment_was_one_or_may_be_tried_again(engine):
    def start(number):
        server = make(engine)
        try:
            came = signalled(server.start, number, raise_interrupt)
        except KeyboardInterrupt:
            came = True
            if not server.wait(0):
                server.start()
        server.stop()
        return came

    every_line(engine, start)


INTERRUPTED = """
import os, signal, sys, threading
import hydrogen
from support import Echo

hurry = threading.Event()

def interrupt():
    hurry.wait()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()

class Hurries(Echo):
    def on_server_created(self, fd):
        hurry.set()
        while sys.argv[2] == "inside":
            threading.Event().wait(0.001)

try:
    while True:
        with hydrogen.serve(Hurries(), port=0, engine=sys.argv[1], max_threads=3):
            pass
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.clause("S53")
@pytest.mark.parametrize("where", ["inside", "around"])
def test_a_process_that_gets_ctrl_c_while_it_starts_a_server_ends(engine, where):
    out, err = finish(child(INTERRUPTED, engine, where), 0)
    assert (out, err) == ("interrupted\n", "")


# -------------------------------------------------------------------------------- stop during start


@pytest.mark.slow
@pytest.mark.clause("S54")
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_a_signal_handler_may_stop_a_server_between_any_two_lines_of_its_start(engine, how):
    def start(number):
        server = make(engine)
        came = interrupted(server.start, number, getattr(server, how))
        server.stop()
        assert server.wait(0) or not came
        return came

    every_line(engine, start)


@pytest.mark.clause("S54")
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_on_server_created_may_stop_the_server(engine, how):
    reports = []
    handler = recorder(server_created=lambda fd: reports.append(getattr(handler.server, how)()))
    server = make(engine, handler)
    server.start()
    assert reports == [hydrogen.StopReport(0, 0, 0, 0, 0, 0.0) if how == "stop" else None]
    assert server.wait(PATIENCE)
    assert not server.ready
    assert server.stop() == hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)
    with pytest.raises(ConnectionRefusedError):
        Client(server.address)


@pytest.mark.clause("S54")
@pytest.mark.parametrize("what", ["suspend", "resume", "call_later", "with"])
def test_on_server_created_is_told_that_the_server_does_not_run(engine, what):
    raised = []

    def created(fd):
        server = handler.server
        call = {"call_later": lambda: server.call_later(0, print), "with": server.__enter__}.get(
            what
        ) or getattr(server, what)
        try:
            call()
        except RuntimeError as error:
            raised.append(error)
        assert not server.ready
        assert server.connections == []
        assert server.stats() == hydrogen.Stats()
        assert not server.wait(0)

    handler = recorder(server_created=created)
    server = make(engine, handler)
    server.start()
    assert len(raised) == (what != "with")
    with Client(server.address) as client:
        client.send(b"x")
        handler.wait_for("data_received")
    server.stop()


@pytest.mark.clause("S54")
def test_another_thread_that_stops_the_server_during_its_start_gets_the_report(engine):
    inside, go, reports = threading.Event(), threading.Event(), []
    handler = recorder(server_created=lambda fd: (inside.set(), wait_event(go, "let go")))
    server = make(engine, handler)

    def stop():
        wait_event(inside, "it starts")
        reports.append(server.stop())

    with running(stop, stop, server.abort, server.start):
        wait_event(inside, "it starts")
        go.set()
    assert server.wait(0)
    # Whether they were asked for before the start had ended or after it: then it takes a moment.
    assert [dataclasses.replace(report, seconds=0.0) for report in reports] == [
        hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)
    ] * 2


@pytest.mark.clause("S54")
@pytest.mark.parametrize("where", ["on_server_created", "the resolver"])
@pytest.mark.parametrize("how", ["stop", "abort"])
def test_who_stops_a_server_whose_start_blocks_waits_for_its_timeout_only(
    engine, monkeypatch, how, where
):
    inside, go, known = threading.Event(), threading.Event(), socket.getaddrinfo

    def block(*args, **options):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            wait_event(go, "let go")
        return known(*args, **options)

    if where == "the resolver":
        monkeypatch.setattr(socket, "getaddrinfo", block)
    handler = recorder(server_created=lambda fd: where == "the resolver" or block("localhost", 0))
    server = make(engine, handler, addr="localhost")
    with running(server.start):
        wait_event(inside, "it starts")
        assert {"stop": lambda: server.stop(0), "abort": server.abort}[how]() == (
            NOTHING if how == "stop" else None
        )
        assert not server.wait(0), "the start is over"
        go.set()
        assert server.wait(PATIENCE)
    assert dataclasses.replace(server.stop(), seconds=0.0) == NOTHING


EXITS = """
import sys, threading
import hydrogen
from support import Echo

inside = threading.Event()

class Blocks(Echo):
    def on_server_created(self, fd):
        inside.set()
        threading.Event().wait()

config = hydrogen.Config(port=0, max_threads=2, stop_timeout=0)
server = hydrogen.Server(Blocks(), config, engine=sys.argv[1])
threading.Thread(target=server.start, daemon=True).start()
inside.wait()
"""


@pytest.mark.clause("S54", "P3")
def test_the_interpreter_exits_while_a_start_blocks(engine):
    assert finish(child(EXITS, engine), 0) == ("", "")


@pytest.mark.clause("S54", "S57")
@pytest.mark.parametrize("how", ["starts", "fails"])
def test_a_del_that_stops_the_server_where_its_thread_is_started_waits_for_nothing(
    engine, monkeypatch, how
):
    """The collector may run at any allocation: here it does as the thread that carries out the
    start and the stop is made.
    """
    reports, known = [], threading.Thread.__init__
    server = make(engine)

    def init(thread, *args, **options):
        if options.get("name") == "hydrogen-lifecycle":
            reports.append(server.stop(3600))
            if how == "fails":
                raise RuntimeError("can't start new thread")
        known(thread, *args, **options)

    def start():
        with (
            pytest.raises(RuntimeError, match="new thread")
            if how == "fails"
            else contextlib.nullcontext()
        ):
            server.start()

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "__init__", init)
        with running(start):
            pass
    assert reports == [NOTHING]
    server.stop()
    assert server.wait(0) == (how == "starts")


@pytest.mark.clause("S14")
def test_a_thread_that_has_the_number_of_the_one_that_carried_out_the_stop_gets_the_report(
    engine, monkeypatch
):
    server = make(engine)
    server.start()
    report = server.stop()
    assert report.seconds > 0
    monkeypatch.setattr(server._life._thread, "_ident", threading.get_ident())
    assert server.stop() == report


@pytest.mark.clause("S22", "S54")
def test_what_callbacks_ask_for_in_a_start_that_fails_is_not_there_in_the_next_one(
    engine, monkeypatch
):
    """The watchdog comes last: connections were served by then."""
    asked, called = threading.Event(), []

    def connected(socket):
        if not asked.is_set():
            socket.server.call_later(0.01, lambda: called.append("the first"))
            socket.server.suspend()
            asked.set()

    def fail(watchdog):
        with Client(server._life.addresses[0]):
            wait_event(asked, "a callback has asked")
        raise RuntimeError("can't start new thread")

    server = make(engine, recorder(connected=connected), slow_callback=60.0)
    with monkeypatch.context() as patch:
        patch.setattr("hydrogen.watchdog.Watchdog.start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            server.start()
    called.clear()  # it may have been due in time
    with server:
        assert server.ready
        server.call_later(0, lambda: called.append("mine"))
        wait_until(lambda: "mine" in called, "it is called")
        assert called == ["mine"]


@pytest.mark.clause("S22", "S59")
def test_lines_that_were_left_out_in_a_start_that_fails_are_told_of(
    engine, monkeypatch, caplog, error_log
):
    handler = recorder(connected=lambda socket: 1 / 0)

    def fail(watchdog):
        for number in range(15):
            with Client(server._life.addresses[0]) as client:
                client.at_end()
            handler.wait_removed(number + 1)
        raise RuntimeError("can't start new thread")

    server = make(engine, handler, slow_callback=60.0)
    with monkeypatch.context() as patch:
        patch.setattr("hydrogen.watchdog.Watchdog.start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            server.start()
    lines = [record.getMessage() for record in caplog.records]
    written = len([line for line in lines if line.startswith("on_connected raised ")])
    assert written < 15
    told = f"on_connected: {15 - written} more lines of this kind were suppressed"
    wait_until(lambda: told in [record.getMessage() for record in caplog.records], "it is told of")


@pytest.mark.clause("S54", "S22")
def test_who_stops_a_server_whose_start_fails_gets_an_empty_report_and_it_may_be_started_again(
    engine,
):
    inside, go, asked, reports = threading.Event(), threading.Event(), threading.Event(), []

    def created(fd):
        if not asked.is_set():
            inside.set()
            wait_event(go, "let go")
            raise LookupError("mine")

    handler = recorder(server_created=created)
    server = make(engine, handler)

    def stop():
        wait_event(inside, "it starts")
        asked.set()
        reports.append(server.stop())

    def start():
        with pytest.raises(LookupError, match="mine"):
            server.start()

    with running(stop, start):
        wait_event(asked, "a stop is asked for")
        go.set()
    assert reports == [hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)]
    assert not server.wait(0)
    with server:
        assert server.ready


@pytest.mark.clause("S55")
def test_an_abort_before_the_start_does_not_taint_the_stop(engine):
    server = make(engine)
    server.abort()
    assert not server.wait(0)
    server.start()
    with Client(server.address, receive_buffer=65_536) as client:
        client.echo(b"x")
        (socket,) = server.connections
        assert socket.send(bytes(4 << 20))
        reports = []
        with running(lambda: reports.append(server.stop(PATIENCE))):
            assert client.receive_until_end() == bytes(4 << 20)
            client.close()
    assert (reports[0].closed, reports[0].aborted) == (1, 0)


@pytest.mark.clause("S6")
def test_with_on_a_server_that_was_stopped_says_so(engine):
    server = make(engine)
    with server:
        pass
    with pytest.raises(RuntimeError, match="was stopped"), server:
        raise AssertionError("it does not serve")


def allowed_all(start):
    """Whether it starts."""
    try:
        start()
    except RuntimeError:
        return False
    return True


@pytest.mark.clause("S53", "S22")
def test_when_a_thread_cannot_be_started_the_start_fails_and_leaves_nothing(engine, monkeypatch):
    """Each of them in turn; the last round starts all."""
    fds, tasks = open_fds(), threads()
    original = threading.Thread.start
    allowed = failed = 0
    while True:
        left = allowed

        def start(thread):
            nonlocal left
            if left == 0:
                raise RuntimeError("can't start new thread")
            left -= 1
            original(thread)

        server = make(engine, slow_callback=5.0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            if not allowed_all(server.start):
                failed += 1
            else:
                break
        wait_until(
            lambda: len(threads()) <= len(tasks),
            f"no thread is left, with {allowed} of them started",
        )
        assert open_fds() == fds
        allowed += 1
    server.stop()
    assert failed >= 4


REPLACED = """
import sys, _thread
import hydrogen
from support import Echo, open_fds

real = _thread.start_new_thread
_thread.start_new_thread = lambda *args: real(*args)  # as gevent does, among other things
before = open_fds()
server = hydrogen.Server(Echo(), hydrogen.Config(port=0), engine=sys.argv[1])
try:
    server.start()
except RuntimeError as error:
    print(error)
assert open_fds() == before
_thread.start_new_thread = real
with server:
    print(server.ready)
"""


@pytest.mark.clause("S60")
def test_where_threads_are_not_real_the_start_says_so_at_once(engine):
    out, err = finish(child(REPLACED, engine), 0)
    assert err == ""
    assert "needs real threads" in out
    assert "gevent" in out
    assert out.endswith("\nTrue\n")


# ----------------------------------------------------------------------------------- want of memory

NO_MEMORY = """
import _testcapi, sys
import hydrogen
from support import Echo, open_fds, threads, wait_until

class Refuses(Echo):
    def on_server_created(self, fd):
        if not tries:
            tries.append(fd)
            _testcapi.set_nomemory(0, int(sys.argv[2]))
            raise error

tries, error = [], OSError("mine")
server = hydrogen.Server(Refuses(), hydrogen.Config(port=0), engine=sys.argv[1])
fds, tasks = open_fds(), threads()
try:
    try:
        server.start()
    finally:
        _testcapi.remove_mem_hooks()
except (OSError, MemoryError) as raised:
    print("raised")
assert open_fds() == fds
wait_until(lambda: threads() == tasks, "no thread is left")
with server:
    print("served")
"""


@pytest.mark.clause("S22", "S53")
@pytest.mark.parametrize("most", [1, 2, 4, 8, 16, 100, 1000])
def test_a_start_that_fails_while_there_is_no_memory_is_undone_and_may_be_tried_again(engine, most):
    pytest.importorskip("_testcapi")
    assert finish(child(NO_MEMORY, engine, str(most)), 0)[0] == "raised\nserved\n"


@pytest.mark.clause("S22", "S53")
@pytest.mark.parametrize("which", [0, 1])
def test_a_thread_that_runs_although_its_start_has_raised_does_not_outlive_the_start(
    engine, monkeypatch, which
):
    """threading.Thread.start waits for the thread that it has started, and there may be no memory
    for the lock by which it waits.
    """
    fds, tasks, known, workers = open_fds(), threads(), threading.Thread.start, []

    def start(thread):
        known(thread)
        if thread.name.startswith("hydrogen-worker"):
            workers.append(thread)
            if len(workers) == which + 1:
                raise MemoryError("mine")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(MemoryError, match="mine"):
        make(engine).start()
    wait_until(lambda: len(threads()) <= len(tasks), "no thread is left")
    assert open_fds() == fds


@pytest.mark.clause("S22", "S53")
def test_a_start_that_has_no_memory_to_undo_itself_leaves_no_thread_either(engine, monkeypatch):
    fds, tasks, known, failures = open_fds(), threads(), threading.Thread.start, []
    clock = time.monotonic

    def start(thread):
        known(thread)
        if thread.name == "hydrogen-worker-1":
            failures.append(MemoryError("the clock"))
            raise MemoryError("mine")

    def monotonic():
        if failures and threading.current_thread().name == "hydrogen-lifecycle":
            raise failures.pop()
        return clock()

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(time, "monotonic", monotonic)
    with pytest.raises(MemoryError):
        make(engine).start()
    assert failures == []
    wait_until(lambda: len(threads()) <= len(tasks), "no thread is left")
    assert open_fds() == fds


@pytest.mark.clause("S22", "S53")
def test_a_server_whose_worker_has_no_memory_to_begin_does_not_start(engine, monkeypatch):
    """Else it would accept connections, and nobody be there to serve them."""
    fds, tasks, ended = open_fds(), threads(), []

    class Callbacks:
        def __getattr__(self, name):
            if threading.current_thread().name == "hydrogen-worker-1":
                raise MemoryError("mine")
            return getattr(callbacks_of(Echo()), name)

    monkeypatch.setattr("hydrogen.server.callbacks_of", lambda handler: Callbacks())
    monkeypatch.setattr(threading, "excepthook", lambda args: ended.append(args.thread.name))
    server = make(engine)
    if engine == "python":  # whose workers look at them when they serve
        server.start()
        server.stop()
    else:
        with pytest.raises(MemoryError, match="hydrogen-worker-1"):
            server.start()
        assert ended == ["hydrogen-worker-1"]
    wait_until(lambda: len(threads()) <= len(tasks), "no thread is left")
    assert open_fds() == fds
