"""Streams written by a user: who owns the fd, what the engine calls and when, and row 29: streams
that raise or return nonsense.
"""

import collections
import contextlib
import errno
import fcntl
import itertools
import os
import select
import signal
import socket as stdlib_socket
import sys
import termios
import threading

import pytest
from families import PassThrough
from support import (
    PATIENCE,
    child,
    echo,
    finish,
    recorder,
    running,
    settled,
    wait_event,
    wait_until,
)

import hydrogen


class Lines(hydrogen.Stream):
    """Upper-case lines; notes each call, and that no two overlap."""

    def __init__(self, fd):
        self.fd = fd
        self.read = b""
        self.kept = b""
        self.notes = []
        self.overlaps = 0
        self.busy = threading.Lock()

    def note(self, what):
        if not self.busy.acquire(blocking=False):
            self.overlaps += 1
        else:
            self.busy.release()
        self.notes.append(what)

    def recv(self):
        with self.exclusively("recv"):
            part = os.read(self.fd, 4096)
            if not part:
                raise EOFError
            *lines, self.read = (self.read + part).split(b"\n")
            return lines or self.recv_more()

    def recv_more(self):
        return []

    def send(self, buf):
        with self.exclusively(("send", bytes(buf))):
            if buf:
                self.kept += buf.upper() + b"\n"
            while self.kept:
                self.kept = self.kept[os.write(self.fd, self.kept) :]

    def shutdown(self):
        self.note("shutdown")

    def close(self):
        self.note("close")
        os.close(self.fd)

    def fileno(self):
        return self.fd

    def exclusively(self, what):
        """A context that counts an overlap when another call is in it."""
        stream = self

        class Alone:
            def __enter__(self):
                self.first = stream.busy.acquire(blocking=False)
                stream.overlaps += not self.first
                stream.notes.append(what)

            def __exit__(self, *exc):
                if self.first:
                    stream.busy.release()

        return Alone()


def streaming(kind=Lines, **hooks):
    """A recorder whose connections are read and written by `kind`, and the streams it made."""
    streams = []

    def new(fd):
        streams.append(kind(fd))
        return streams[-1]

    handler = recorder(new_connection=new, **hooks)
    return handler, streams


@pytest.mark.clause("T1", "H6")
def test_a_stream_reads_and_writes_its_connection(start, connect):
    handler, streams = streaming(connected=None, data_received=echo)
    client = connect(start(handler))
    client.send(b"one\ntwo\nthr")
    assert client.receive(8) == b"ONE\nTWO\n"
    client.send(b"ee\n")
    assert client.receive(6) == b"THREE\n"
    assert handler.messages() == [b"one", b"two", b"three"]
    assert handler.names()[:2] == ["on_new_connection", "on_connected"]
    assert len(streams) == 1


@pytest.mark.clause("T11", "H20")
@pytest.mark.parametrize(
    ("family", "how"), [("tcp", "reads"), ("tcp", "writes"), ("unix", "reads")]
)
def test_a_reset_that_was_met_by_hand_is_what_the_connection_ends_with(
    start, connect, tmp_path, family, how
):
    """The kernel tells of it once, and then what looks like an orderly end."""
    greeted, reset = threading.Event(), threading.Event()

    def new(fd):
        stream = hydrogen.Plain(fd, hydrogen.LineFrameBuilder())
        stream.nb_send(
            hydrogen.LineFrame(b"who closes a Unix socket without reading this resets it")
        )
        greeted.set()
        wait_event(reset, "the peer to reset")
        if how == "reads":
            assert [frame.payload() for frame in stream.nb_recv()] == [b"one"]
        else:
            with pytest.raises(ConnectionResetError):
                stream.nb_send(hydrogen.LineFrame(b"two"))
        return stream

    handler = recorder(new_connection=new)
    client = connect(
        start(handler, **({"path": str(tmp_path / "path")} if family == "unix" else {}))
    )
    client.send(b"one\n")
    wait_event(greeted, "something to leave unread")
    client.reset()
    reset.set()
    (error,) = handler.wait_removed()
    assert type(error) is ConnectionResetError


@pytest.fixture
def aborted_in_new(start, connect, gate):
    """Abort a server while `on_new_connection` runs, then have it return `make(fd)`; returns the
    handler, and the fd.
    """

    def run(make):
        entered, go, fds = gate(), gate(), []

        def new(fd):
            fds.append(fd)
            entered.set()
            wait_event(go, "the abort")
            return make(fd)

        handler = recorder(new_connection=new, connected=None)
        server = start(handler)
        connect(server)
        wait_event(entered, "on_new_connection")
        server.abort()  # does not wait for it for long
        go.set()
        handler.wait_removed()
        assert handler.names() == ["on_new_connection", "on_connection_removed"]
        return fds[0]

    return run


@pytest.mark.clause("T6", "T7", "S15")
def test_a_stream_that_comes_after_an_abort_is_shut_down_and_closes_its_fd(aborted_in_new):
    streams = []

    def make(fd):
        streams.append(Lines(fd))
        return streams[-1]

    aborted_in_new(make)
    wait_until(lambda: "close" in streams[0].notes, "the stream is closed")
    assert streams[0].notes == ["shutdown", "close"]


@pytest.mark.clause("T11", "S15")
def test_a_socket_whose_stream_comes_after_an_abort_is_detached(aborted_in_new):
    """Else it would close a number that is a stranger's by then."""
    socks = []

    def make(fd):
        socks.append(stdlib_socket.socket(fileno=fd))
        return hydrogen.Plain(socks[-1])

    fd = aborted_in_new(make)
    assert socks[0].fileno() == -1
    wait_until(lambda: not is_open(fd), "the engine closes the fd")


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.clause("T6", "T7", "H14")
def test_at_the_end_come_shutdown_then_the_last_callbacks_then_close_once_each(start, connect):
    handler, streams = streaming(data_received=echo)
    handler.hooks["on_disconnected"] = lambda socket, err: streams[0].note("on_disconnected")
    handler.hooks["on_connection_removed"] = lambda fd, err: (
        os.fstat(fd),
        streams[0].note("on_connection_removed"),
    )
    server = start(handler)
    client = connect(server)
    client.send(b"x\n")
    assert client.receive(2) == b"X\n"
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert streams[0].notes[-4:] == [
        "shutdown",
        "on_disconnected",
        "on_connection_removed",
        "close",
    ]
    assert streams[0].notes.count("shutdown") == streams[0].notes.count("close") == 1


@pytest.mark.clause("T7")
def test_a_stream_that_cannot_be_asked_for_want_of_memory_how_to_close_it_is_asked_again(
    start, connect
):
    asked, closed = [], threading.Event()

    class Short(PassThrough):
        @property
        def close(self):
            asked.append("close")
            if len(asked) == 1:
                raise MemoryError
            return super().close

        def fileno(self):
            if asked:
                asked.append("fileno")
                if len(asked) == 3:
                    raise MemoryError
                closed.set()
            return self.fd

    connect(start(recorder(new_connection=Short))).close()
    wait_event(closed, "its fd is closed")
    assert asked == ["close", "close", "fileno", "close", "fileno"]


@pytest.mark.clause("T7")
def test_the_close_of_one_stream_alone_is_called(start, connect):
    """An attribute of the instance: another object owns the fd, and closing the number behind its
    back would close it twice.
    """
    closed = threading.Event()

    class Owns(Lines):
        def __init__(self, fd):
            super().__init__(fd)
            self.sock = stdlib_socket.socket(fileno=fd)
            self.close = self.end

        def end(self):
            self.sock.close()
            closed.set()

    connect(start(recorder(new_connection=Owns))).close()
    wait_event(closed, "the stream is closed by its own close")


@pytest.mark.clause("T7")
@pytest.mark.parametrize("how", ["a callable", "another stream's"])
def test_a_close_that_is_no_method_of_the_stream_is_called(start, connect, how):
    closed = threading.Event()

    class Calls:
        def __init__(self, fd):
            self.fd = fd

        def __call__(self):
            os.close(self.fd)
            closed.set()

        def __getattr__(self, name):
            raise KeyError(name)

    class Inner(hydrogen.Stream):
        def __init__(self, fd):
            self.fd = os.dup(fd)

        def fileno(self):
            os.close(fds.pop())
            closed.set()
            return self.fd

        recv = send = shutdown = None

    class Odd(Lines):
        def __init__(self, fd):
            super().__init__(fd)
            fds.append(fd)
            self.close = Calls(fd) if how == "a callable" else Inner(fd).close

    fds = []
    connect(start(recorder(new_connection=Odd))).close()
    wait_event(closed, "it is called")


@pytest.mark.clause("H6", "T1")
def test_a_stream_of_a_callback_that_has_attributes_of_a_cache_is_used(start, connect):
    class Streams(hydrogen.Handler):
        def on_new_connection(self, fd):
            return Lines(fd)

        on_new_connection.cache_info = lambda: None

        def on_data_received(self, socket, data):
            socket.send(data)

    client = connect(start(Streams()))
    client.send(b"x\n")
    assert client.receive(2) == b"X\n"


@pytest.mark.clause("T4")
def test_a_stream_that_does_not_close_its_fd_keeps_it(start, connect):
    class Keeps(Lines):
        def close(self):
            self.note("close")

    handler, streams = streaming(Keeps)
    server = start(handler)
    client = connect(server)
    client.close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    os.fstat(streams[0].fd)
    os.close(streams[0].fd)


@pytest.mark.clause("T7")
def test_a_stream_that_closes_its_fd_early_disturbs_nobody(start, connect):
    class Early(Lines):
        def recv(self):
            # as if the number had been closed and given to a stranger
            os.dup2(self.devnull, self.fd)
            return super().recv()

        def __init__(self, fd):
            super().__init__(fd)
            self.devnull = os.open(os.devnull, os.O_RDONLY)

        def close(self):
            os.close(self.devnull)
            super().close()

    handler, _ = streaming(Early)
    client = connect(start(handler))
    client.send(b"x\n")
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed


@pytest.mark.clause("T2")
def test_recv_is_called_again_until_it_has_nothing(start, connect):
    """One readiness, several batches: all are delivered though no further byte comes."""

    class Batches(Lines):
        def __init__(self, fd):
            super().__init__(fd)
            self.batches = collections.deque()

        def recv(self):
            with contextlib.suppress(BlockingIOError):
                self.batches.extend([line] for line in super().recv())
            return self.batches.popleft() if self.batches else []

    handler, _ = streaming(Batches, data_received=echo)
    client = connect(start(handler))
    client.send(b"1\n2\n3\n4\n5\n")
    assert client.receive(10) == b"1\n2\n3\n4\n5\n"
    assert handler.messages() == [b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.clause("T2")
def test_what_a_stream_has_read_in_on_new_connection_is_delivered_though_nothing_more_comes(
    start, connect
):
    class Ahead(Lines):
        def __init__(self, fd):
            super().__init__(fd)
            select.select([fd], [], [], PATIENCE)
            self.ahead = Lines.recv(self)

        def recv(self):
            ahead, self.ahead = self.ahead, []
            return ahead or super().recv()

    handler, _ = streaming(Ahead, data_received=echo)
    client = connect(start(handler))
    client.send(b"one\ntwo\n")
    assert client.receive(8) == b"ONE\nTWO\n"


@pytest.mark.clause("T2", "T4")
def test_a_last_batch_before_the_end_is_delivered(start, connect):
    class Last(Lines):
        def recv(self):
            if self.read == b"end":
                raise EOFError
            return super().recv()

    handler, _ = streaming(Last)
    client = connect(start(handler))
    client.send(b"a\nb\nend")
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    assert handler.messages() == [b"a", b"b"]


@pytest.mark.clause("T3")
@pytest.mark.parametrize("nothing", ["list", "BlockingIOError"])
def test_nothing_is_said_by_an_empty_list_or_blocking_io_error(start, connect, nothing):
    class Nothing(Lines):
        def recv(self):
            try:
                return super().recv()
            except BlockingIOError:
                if nothing == "list":
                    return []
                raise

    handler, _ = streaming(Nothing, data_received=echo)
    client = connect(start(handler))
    for number in range(5):
        client.send(b"%d\n" % number)
        assert client.receive(2) == b"%d\n" % number


@pytest.mark.clause("T4", "H20")
@pytest.mark.parametrize("method", ["recv", "send"])
def test_an_os_error_of_a_stream_is_the_removal_error_itself(start, connect, method):
    mine = OSError(errno.EPROTO, "mine")

    class Broken(Lines):
        pass

    def broken(self, *args):
        raise mine

    setattr(Broken, method, broken)
    handler, _ = streaming(Broken, data_received=echo)
    server = start(handler)
    client = connect(server)
    with contextlib.suppress(OSError):  # it may have ended
        client.send(b"x\n")
    assert handler.wait_removed() == [mine]
    assert handler.of("disconnected")[0].value is mine
    wait_until(lambda: server.stats().removed_os_error == 1, "it is counted")


@pytest.mark.clause("T4", "H10", "H11")
def test_eof_error_is_the_end_of_input_only(start, connect):
    handler, _ = streaming(eof=lambda socket: (socket.send(b"bye"), socket.close()))
    client = connect(start(handler))
    client.finish()
    assert client.receive_until_end() == b"BYE\n"
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("T5", "K11")
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_after_blocking_io_error_send_goes_on_with_what_was_kept(start, connect, tmp_path, family):
    where = {"path": str(tmp_path / "s")} if family == "unix" else {}
    message = os.urandom(8_000_000).replace(b"\n", b"-").lower()
    sent = threading.Event()
    handler, streams = streaming(
        data_received=lambda socket, data: (socket.send(message), sent.set())
    )
    client = connect(start(handler, **where), receive_buffer=65_536)
    client.send(b"x\n")
    wait_event(sent, "the stream has written what it could")
    assert handler.socket().pending == len(message)
    assert client.receive(len(message) + 1) == message.upper() + b"\n"
    wait_until(lambda: handler.socket().pending == 0, "nothing is pending")
    assert ("send", b"") in streams[0].notes
    client.send(b"again\n")
    assert client.receive(len(message) + 1) == message.upper() + b"\n"


@pytest.mark.clause("T8", "K6", "K18")
def test_the_calls_of_one_stream_never_overlap(start, connect):
    handler, streams = streaming(connected=None, data_received=echo)
    client = connect(start(handler))
    socket = handler.socket()

    def sender():
        for _ in range(100):
            assert socket.send(b"foreign")

    with running(sender, sender, lambda: client.send(b"mine\n" * 200)):
        lines = client.receive(200 * 8 + 200 * 5).split(b"\n")
    assert collections.Counter(lines) == {b"FOREIGN": 200, b"MINE": 200, b"": 1}
    assert streams[0].overlaps == 0


@pytest.mark.clause("K8", "S10", "T6")
@pytest.mark.parametrize("how", ["stop", "paused-stop", "paused-close"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_stream_that_ends_with_input_unread_loses_no_reply(
    start, connect, gate, tmp_path, family, how
):
    """Closing with it unread would reset the peer."""
    go_on = gate()

    def respond(socket, data):
        if "paused" in how:
            socket.pause_reading()
        else:
            wait_event(go_on, "the server stops")
        socket.send(b"answer")

    where = {"path": str(tmp_path / "s")} if family == "unix" else {}
    handler, _ = streaming(data_received=respond)
    server = start(handler, max_threads=2, **where)
    client = connect(server)
    client.send(b"request\n")
    socket = handler.wait_for("data_received")[0].socket
    other = connect(server)
    handler.wait_for("new_connection", 2)
    before = server.stats().polls
    client.send(b"next request\n")
    wait_until(lambda: server.stats().polls > before, "the server knows of it")
    with running(*[lambda: server.stop(PATIENCE)] * ("stop" in how)):
        if "stop" in how:
            assert other.at_end() == "end"  # it came later, and is told later
        else:
            socket.close()
        go_on.set()
        assert client.receive(7) == b"ANSWER\n"
        assert client.at_end() == "end"
        client.close()
        other.close()
    assert handler.messages() == [b"request"]


@pytest.mark.clause("K8", "K10", "T6")
@pytest.mark.parametrize("how", ["close", "abort"])
def test_a_connection_with_a_stream_can_be_closed_and_aborted(start, connect, how):
    handler, streams = streaming(
        data_received=lambda socket, data: (socket.send(data), getattr(socket, how)())
    )
    server = start(handler)
    client = connect(server)
    client.send(b"x\ny\n")
    end = client.at_end()
    assert how == "abort" or end == "end"
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert handler.messages() == [b"x"]
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert streams[0].notes.count("close") == 1


@pytest.mark.clause("S10", "T6")
def test_stop_ends_connections_with_streams(start, connect):
    handler, streams = streaming(connected=None)
    server = start(handler)
    clients = [connect(server) for _ in range(3)]
    handler.wait_for("connected", 3)
    with running(lambda: server.stop()):
        assert [client.at_end() for client in clients] == ["end"] * 3
        for client in clients:
            client.close()
    assert {type(error) for error in handler.wait_removed(3)} == {hydrogen.ServerStopped}
    assert all(stream.notes[-1] == "close" for stream in streams)


# ------------------------------------------------------------------------------------------- row 29


def raising(error):
    """A method that raises `error`."""

    def method(self, *args):
        raise error

    return method


def returning(value):
    """A method that returns `value`."""
    return lambda self, *args: value


@pytest.mark.parametrize("method", ["recv", "send"])
def test_f29_a_stream_that_raises_is_removed_with_that_error_and_logged(
    start, connect, error_log, method
):
    error = ZeroDivisionError("nonsense")
    handler, _ = streaming(type("Raises", (Lines,), {method: raising(error)}), data_received=echo)
    server = start(handler)
    bad = connect(server)
    with contextlib.suppress(OSError):  # it may have ended
        bad.send(b"x\n")
    assert bad.at_end() in ("end", "reset")
    bad.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert removal.__cause__ is error
    wait_until(error_log, "it is logged")
    assert "ZeroDivisionError" in error_log()[0].getMessage()
    assert error_log()[0].exc_info[1] is error or error_log()[0].exc_info[1].__cause__ is error


@pytest.mark.parametrize(
    "nonsense", [None, b"bytes", ["text"], [b"x", 7], (b"tuple",), 42], ids=repr
)
def test_f29_a_stream_whose_recv_returns_nonsense_is_removed(start, connect, error_log, nonsense):
    handler, _ = streaming(type("Nonsense", (Lines,), {"recv": returning(nonsense)}))
    client = connect(start(handler))
    with contextlib.suppress(OSError):  # it may have ended
        client.send(b"x\n")
    assert client.at_end() in ("end", "reset")
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.HandlerError
    assert handler.messages() == []
    wait_until(error_log, "it is logged")


class Unshown:
    """Cannot be shown to anybody."""

    def __repr__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("nonsense", "shown"),
    [(7, "7"), ("stream", "'stream'"), (Unshown(), "<Unshown, whose __repr__ raises>")],
    ids=["int", "str", "object"],
)
def test_f29_on_new_connection_that_returns_no_stream_removes_the_connection(
    start, connect, error_log, nonsense, shown
):
    handler = recorder(new_connection=lambda fd: nonsense)
    server = start(handler)
    client = connect(server)
    assert client.at_end() in ("end", "reset")
    client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert type(removal.__cause__) is TypeError
    assert str(removal.__cause__) == (
        f"on_new_connection must return a hydrogen.Stream or None, not {shown}"
    )
    wait_until(error_log, "it is logged")


@pytest.mark.parametrize(
    "fileno",
    [
        raising(ValueError("no fd")),
        raising(hydrogen.Reject("by fileno")),
        returning(-1),
        returning(None),
        returning("seven"),
        returning(10**6),
        returning(10**12),
    ],
)
def test_f29_a_stream_without_a_usable_fd_is_removed(start, connect, error_log, fileno):
    class Unusable(Lines):
        def close(self):
            os.close(self.fd)

    Unusable.fileno = fileno
    handler, _ = streaming(Unusable)
    server = start(handler)
    client = connect(server)
    assert client.at_end() in ("end", "reset")
    client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    wait_until(error_log, "it is logged")
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")


@pytest.mark.parametrize("kind", [float, bool, type("Number", (int,), {})])
def test_f29_what_only_converts_to_an_int_is_no_fd_it_would_be_that_of_a_stranger(
    start, connect, error_log, kind
):
    """A bool, say: the program's stdin or stdout."""

    class Strange(Lines):
        def fileno(self):
            return kind(1)

    handler, _ = streaming(Strange)
    client = connect(start(handler))
    assert client.at_end() in ("end", "reset")
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert "Strange.fileno() must return an int, not" in str(removal)
    wait_until(error_log, "it is logged")


@pytest.mark.parametrize("kind", [float, type("Number", (int,), {})])
def test_f29_what_only_converts_to_an_int_is_not_closed_either(start, connect, error_log, kind):
    class Changing(Lines):
        number = None

        def fileno(self):
            return self.fd if self.number is None else self.number

        close = hydrogen.Stream.close

    handler, streams = streaming(Changing, connected=None)
    client = connect(start(handler))
    handler.wait_for("connected")
    stranger = os.open(os.devnull, os.O_RDONLY)
    streams[0].number = kind(stranger)
    try:
        client.close()
        handler.wait_removed()
        wait_until(error_log, "it is logged")
        os.fstat(stranger)
    finally:
        os.close(stranger)
        os.close(streams[0].fd)


@pytest.mark.parametrize("method", ["shutdown", "close"])
def test_f29_a_stream_that_raises_at_its_end_is_only_logged(start, connect, error_log, method):
    error = ZeroDivisionError("at the end")

    class AtTheEnd(Lines):
        def shutdown(self):
            if method == "shutdown":
                raise error

        def close(self):
            os.close(self.fd)
            if method == "close":
                raise error

    handler, _ = streaming(AtTheEnd, data_received=echo)
    server = start(handler)
    client = connect(server)
    client.send(b"x\n")
    assert client.receive(2) == b"X\n"
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    wait_until(error_log, "it is logged")
    (record,) = error_log()
    assert record.getMessage().startswith(f"AtTheEnd.{method} raised ZeroDivisionError on ")
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    other = connect(server)
    other.send(b"y\n")
    assert other.receive(2) == b"Y\n"


@pytest.mark.clause("T6", "S51")
@pytest.mark.parametrize("resets", [True, False], ids=["the peer resets", "the server closes"])
def test_a_stream_that_cannot_be_shut_down_because_the_peer_is_gone_is_no_fault_of_the_handler_s(
    start, connect, error_log, resets
):
    closed = threading.Event()

    class Gone(Lines):
        def shutdown(self):
            raise OSError(errno.ENOTCONN, "not connected")

        def close(self):
            super().close()
            closed.set()

    handler, _ = streaming(Gone, data_received=lambda socket, data: resets or socket.close())
    client = connect(start(handler))
    client.send(b"x\n")
    handler.wait_for("data_received")
    if resets:
        client.reset()
    wait_event(closed, "the stream is closed")
    assert error_log() == []


def test_f29_a_protocol_error_of_a_stream_is_the_removal_error_itself(start, connect):
    mine = hydrogen.ProtocolError("not a line")
    handler, _ = streaming(type("Strict", (Lines,), {"recv": raising(mine)}))
    server = start(handler)
    client = connect(server)
    with contextlib.suppress(OSError):  # it may have ended
        client.send(b"x\n")
    assert client.at_end() in ("end", "reset")
    client.close()
    assert handler.wait_removed() == [mine]
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")


def test_f29_a_stream_that_blocks_delays_nobody_else(start, connect, gate):
    go = gate()

    class Blocks(Lines):
        def recv(self):
            lines = super().recv()
            if b"block" in lines:
                wait_event(go, "let go")
            return lines

    handler, _ = streaming(Blocks, data_received=echo)
    server = start(handler)
    blocked, free = connect(server), connect(server)
    blocked.send(b"block\n")
    for _ in range(5):
        free.send(b"free\n")
        assert free.receive(5) == b"FREE\n"
    go.set()
    assert blocked.receive(6) == b"BLOCK\n"


# --------------------------------------------------------------------------------------------------
# Nobody waits for who is in a stream.


class Calls(Lines):
    """Lines; `on_recv` and `on_send` are called within `recv`, with its lines, and `send`."""

    def __init__(self, fd, on_recv=lambda lines: lines, on_send=lambda data: None):
        super().__init__(fd)
        self.on_recv, self.on_send = on_recv, on_send

    def recv(self):
        return self.on_recv(super().recv())

    def send(self, buf):
        self.on_send(bytes(buf))
        super().send(buf)


@pytest.fixture
def one(start, connect):
    """`one(**hooks)`: server, client and socket of a connection with a stream `Calls`."""

    def one(stream=None, **options):
        stream = stream or {}
        senders = []
        first = {**stream, "on_send": lambda data: senders.append(threading.get_ident())}
        handler, streams = streaming(lambda fd: Calls(fd, **first), connected=None)
        server = start(handler, **options)
        client = connect(server)
        handler.wait_for("connected")
        wait_until(lambda: streams[0].notes, "it was asked for what it has read already")
        # Until who asked has come out: then this thread is in the stream when it sends.
        while threading.get_ident() not in senders:
            before = len(senders)
            handler.socket().send(b"!")
            wait_until(lambda: len(senders) > before, "it was sent")  # noqa: B023
            assert client.receive(2) == b"!\n"
        streams[0].on_send = stream.get("on_send", lambda data: None)
        return server, client, handler.socket(), handler

    return one


@pytest.mark.clause("T8", "K18")
def test_streams_that_send_on_each_other_within_recv_go_on(start, connect):
    both, sockets = threading.Barrier(2), []

    def forward(lines):
        for line in lines:
            both.wait(PATIENCE)
            sockets[int(line)].send(b"to " + line)
        return []

    handler, _ = streaming(
        lambda fd: Calls(fd, forward), connected=lambda socket: sockets.append(socket)
    )
    server = start(handler)
    clients = []
    for count in (1, 2):
        clients.append(connect(server))
        wait_until(lambda count=count: len(sockets) == count, "it is connected")
    clients[0].send(b"1\n")
    clients[1].send(b"0\n")
    assert clients[0].receive(5) == b"TO 0\n"
    assert clients[1].receive(5) == b"TO 1\n"


@pytest.mark.clause("T8", "K18")
def test_a_message_to_a_stream_in_which_somebody_is_follows_and_a_close_waits_for_it(one, gate):
    opened, inside = gate(), threading.Event()

    def wait(data):
        if data == b"first":
            inside.set()
            wait_event(opened, "the gate opens")

    _, client, socket, handler = one({"on_send": wait})
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "the first message is being written")
        assert socket.send(b"second")
        assert socket.pending >= 6
        socket.close()
        assert not socket.send(b"third")
        opened.set()
        assert client.receive_until_end() == b"FIRST\nSECOND\n"
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("S10", "T6", "T7")
def test_a_connection_in_whose_stream_a_thread_is_at_the_stop_is_removed_when_it_comes_out(
    one, gate
):
    opened, inside = gate(), threading.Event()

    def wait(data):
        inside.set()
        wait_event(opened, "the gate opens")

    server, _, socket, handler = one({"on_send": wait})
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "the thread is in the stream")
        assert server.stop(0).abandoned == 1
        assert handler.of("disconnected") == []
        opened.set()
    assert type(handler.wait_removed()[0]) is hydrogen.ServerStopped


class Blocking(hydrogen.Stream):
    """Its `send` waits for the peer, in the kernel."""

    def __init__(self, fd):
        self.sock = stdlib_socket.socket(fileno=fd)
        self.sock.setblocking(True)

    def recv(self):
        part = self.sock.recv(4096, stdlib_socket.MSG_DONTWAIT)
        if not part:
            raise EOFError
        return [part]

    def send(self, buf):
        self.sock.sendall(buf)

    def shutdown(self):
        pass

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.sock.close()


def unread(client):
    """Bytes that the client could read."""
    return int.from_bytes(fcntl.ioctl(client.sock, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.clause("K10")
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_abort_ends_a_send_of_a_stream_that_waits_for_the_peer(start, connect, tmp_path, family):
    where = {"path": str(tmp_path / "s")} if family == "unix" else {}
    handler, _ = streaming(Blocking, connected=None)
    client = connect(start(handler, **where))
    handler.wait_for("connected")
    with running(lambda: handler.socket().send(bytes(50_000_000))):
        wait_until(lambda: unread(client), "the thread is in the stream")
        settled(lambda: unread(client))
        handler.socket().abort()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K10", "T8")
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_nobody_spins_while_a_thread_is_in_the_stream_of_a_connection_that_was_aborted(
    one, gate, tmp_path, family
):
    opened, inside = gate(), threading.Event()

    def wait(data):
        inside.set()
        wait_event(opened, "the gate opens")

    where = {"path": str(tmp_path / "s")} if family == "unix" else {}
    server, _, socket, handler = one({"on_send": wait}, **where)
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "the thread is in the stream")
        socket.abort()
        settled(lambda: (server.stats().polls, server.stats().iterations))
        assert handler.of("connection_removed") == []
        opened.set()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K18")
def test_what_waits_for_who_is_in_a_stream_counts_for_the_limit(one, gate):
    opened, inside = gate(), threading.Event()

    def wait(data):
        inside.set()
        wait_event(opened, "the gate opens")

    _, _, socket, handler = one(
        {"on_send": wait}, max_write_buffer=4000, write_buffer_limits=(1000, 2000)
    )
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "the first message is being written")
        sent = 0
        while socket.send(bytes(100)):
            sent += 1
            assert sent <= 41
        opened.set()
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer


@pytest.mark.clause("S24", "T4")
def test_bytes_that_a_stream_gave_out_are_received_though_a_close_discards_them(start, connect):
    handler, _ = streaming(data_received=lambda socket, data: socket.close())
    server = start(handler)
    connect(server).send(b"one\ntwo\nthree\n")
    handler.wait_removed()
    assert handler.messages() == [b"one"]
    wait_until(lambda: server.stats().bytes_received == 11, "all are counted")


@pytest.mark.clause("C30", "T8")
def test_what_a_worker_writes_for_others_is_not_one_callback(one, gate):
    """Calls of the stream that are short each are not called slow, nor the worker blocked, though
    there are many of them.
    """
    inside, release, never = threading.Event(), gate(), threading.Event()

    def on_send(data):
        if data == b"first":
            inside.set()
            wait_event(release, "there is enough for a worker")
        never.wait(0.004)

    server, client, socket, _ = one({"on_send": on_send}, slow_callback=0.5, max_threads=1)
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "a thread is in the stream")
        for _ in range(550):
            socket.send(b"x")
        release.set()
        assert client.receive(6 + 550 * 2) == b"FIRST\n" + b"X\n" * 550
    stats = server.stats()
    assert (stats.slow_callbacks, stats.all_blocked) == (0, 0)


@pytest.mark.clause("T4", "C19")
def test_a_million_messages_that_a_stream_gives_out_at_once_are_delivered(start, connect):
    """What is left of them is not gone through at each turn."""
    count, done = itertools.count(1), threading.Event()

    class Many(Lines):
        def recv(self):
            return super().recv() * 1_000_000

    class Counting(hydrogen.Handler):
        def on_new_connection(self, fd):
            return Many(fd)

        def on_data_received(self, socket, data):
            if next(count) == 1_000_000:
                done.set()

    connect(start(Counting())).send(b"message\n")
    wait_event(done, "all are delivered")


@pytest.mark.clause("T8")
def test_what_a_stream_sends_on_its_own_connection_follows_what_it_does(one):
    more = {b"a": [b"b", b"c"], b"b": [b"d"]}

    def on_send(data):
        for message in more.get(data, []):
            assert socket.send(message)

    def on_recv(lines):
        for line in lines:
            assert socket.send(b"pong to " + line)
        return []

    _, client, socket, _ = one({"on_send": on_send, "on_recv": on_recv})
    assert socket.send(b"a")
    assert client.receive(8) == b"A\nB\nC\nD\n"
    client.send(b"ping\n")
    assert client.receive(13) == b"PONG TO PING\n"


@pytest.mark.clause("T8")
def test_a_signal_handler_that_sends_within_a_call_of_a_stream_changes_no_order(one):
    def on_send(data):
        if data != b"signal":
            signal.raise_signal(signal.SIGUSR1)

    _, client, socket, _ = one({"on_send": on_send})
    earlier = signal.signal(signal.SIGUSR1, lambda *_: socket.send(b"signal"))
    try:
        socket.send(b"a")
        socket.send(b"b")
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert client.receive(18) == b"A\nSIGNAL\nB\nSIGNAL\n"


@pytest.mark.clause("K11")
def test_drain_within_a_call_of_the_stream_does_not_wait_for_itself(one):
    drained = []

    def on_send(data):
        if data == b"first":
            socket.send(bytes(100))
            drained.append(socket.drain())

    _, client, socket, _ = one({"on_send": on_send}, write_buffer_limits=(10, 20))
    socket.send(b"first")
    # in this thread, or in one that was in the stream
    wait_until(lambda: drained == [False], "drain() has returned")
    assert client.receive(6) == b"FIRST\n"


@pytest.mark.clause("K11")
def test_drain_in_a_callback_goes_on_with_the_stream(start, connect):
    message, drained = bytes(8_000_000), []

    def respond(socket, data):
        socket.send(message)
        drained.append(socket.drain())

    handler, _ = streaming(data_received=respond)
    client = connect(start(handler, max_threads=2), receive_buffer=65_536)
    client.send(b"x\n")
    wait_until(
        lambda: handler.of("data_received") and handler.socket().pending > 0, "it is blocked"
    )
    assert client.receive(len(message) + 1) == message + b"\n"
    wait_until(lambda: drained == [True], "drain() has returned")


@pytest.fixture
def held(one, gate):
    """`held(on_recv, **options)`: as `one`; a thread is in the stream until `release` is set. It
    goes on with what `then` does.
    """

    def held(then=lambda socket: None, on_recv=lambda lines: lines, **options):
        inside, release = threading.Event(), gate()

        def wait(data):
            if data == b"first":
                inside.set()
                wait_event(release, "it may go on")

        server, client, socket, handler = one(
            {"on_send": wait, "on_recv": on_recv}, max_write_buffer=1 << 30, **options
        )

        def first():
            socket.send(b"first")
            then(socket)

        return server, client, socket, handler, first, inside, release

    return held


def reads_while_held(server, client, inside, data):
    """Have a worker meet the thread that is in the stream."""
    wait_event(inside, "a thread is in the stream")
    before = server.stats().iterations
    client.send(data)
    wait_until(lambda: server.stats().iterations > before, "a worker came to read")


@pytest.mark.clause("T8", "K6")
@pytest.mark.parametrize("ends", [False, True], ids=["", "stop"])
def test_a_thread_that_sends_without_rest_keeps_nobody_from_reading_a_stream(held, engine, ends):
    """It is in the stream whenever a worker gets to run. What the peer sent is delivered all the
    same, during a stop too.
    """
    sent, is_begun = [], threading.Event()

    def then(socket):
        while len(sent) < 3000 and not handler.of("data_received") and socket.send(bytes(20_000)):
            sent.append(20_000)

    server, client, _, handler, first, inside, release = held(
        then, write_buffer_limits=(1 << 29, 1 << 29)
    )
    interval = sys.getswitchinterval()
    if engine == "compiled":  # the other one can do nothing without the GIL
        sys.setswitchinterval(1000)
    try:
        with running(
            first, lambda: ends and is_begun.wait(PATIENCE) and server.stop(PATIENCE)
        ) as threads:
            reads_while_held(server, client, inside, b"request\n")
            is_begun.set()
            if ends:
                wait_until(lambda: not server.ready, "the stop begins")
            release.set()
            threads[0].join(PATIENCE)
            assert len(sent) < 3000
            assert handler.wait_bytes(7) == b"request"
            client.close()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.clause("K8", "T8")
@pytest.mark.parametrize("pauses", [False, True], ids=["", "paused"])
def test_a_close_while_a_thread_is_in_the_stream_leaves_no_input_unread(held, pauses):
    """Who is in the stream reads what has come, and it is counted; closing would reset the peer."""
    server, client, socket, handler, first, inside, release = held()
    before = server.stats().bytes_received
    with running(first):
        reads_while_held(server, client, inside, b"request\n")
        if pauses:
            socket.pause_reading()
        socket.close()
        release.set()
        assert client.receive(6) == b"FIRST\n"
        assert client.at_end() == "end"
    handler.wait_removed()
    wait_until(lambda: server.stats().bytes_received == before + 7, "it is counted")


@pytest.mark.clause("T7")
def test_a_stream_whose_recv_has_raised_is_not_asked_again(one, error_log):
    asked = []

    def on_recv(lines):
        if not (lines or asked):
            return lines
        asked.append(lines)
        raise ValueError

    server, client, socket, handler = one(
        {"on_recv": on_recv}, write_buffer_limits=(1 << 28, 1 << 29)
    )
    socket.send(bytes(8_000_000))  # more than the kernel takes: it is long in closing
    client.send(b"one\n")
    wait_until(lambda: not socket.is_open, "it is closing")
    before = server.stats().polls
    client.send(b"two\n")
    wait_until(lambda: server.stats().polls > before, "the server knows of it")
    client.close()
    handler.wait_removed()
    assert len(asked) == 1
    assert len(error_log()) == 1


@pytest.mark.clause("T4", "T8")
def test_what_a_stream_has_for_the_owner_arrives_in_order_with_its_end_though_others_are_in_it(
    held,
):
    # Senders that outrun the stream would have reading pause, and end it behind their output.
    server, client, socket, handler, first, inside, release = held(
        write_buffer_limits=(10_000, 1 << 29)
    )
    lines = [b"%d" % number for number in range(300)]

    def send():
        while not handler.of("disconnected"):
            if not (socket.send(b"x") and socket.drain()):
                break

    with running(first, send, send, client.receive_until_end):
        reads_while_held(server, client, inside, b"0\n")
        release.set()
        for number in range(1, 300):
            client.send(b"%d\n" % number)
        client.finish()
        assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    assert handler.messages() == lines


@pytest.mark.clause("T7", "T8")
@pytest.mark.parametrize(
    "kind",
    [OSError(errno.EIO, "broken"), KeyboardInterrupt()],
    ids=["OSError", "KeyboardInterrupt"],
)
def test_what_recv_raises_ends_the_connection_though_another_thread_is_in_the_stream(
    held, error_log, kind
):
    came = []

    def on_recv(lines):
        if lines:
            raise kind
        return lines

    def send(first):
        try:
            first()
        except KeyboardInterrupt as error:
            came.append(error)

    server, client, _, handler, first, inside, release = held(on_recv=on_recv)
    with running(lambda: send(first)):
        reads_while_held(server, client, inside, b"request\n")
        release.set()
        error = handler.wait_removed()[0]
    assert error is kind or error.__cause__ is kind
    assert client.at_end()
    assert error is kind or error_log()


@pytest.mark.clause("T8", "K6")
@pytest.mark.parametrize("what", ["messages", "kept"])
def test_what_is_left_over_of_a_streams_output_is_written_though_a_callback_blocks(
    start, connect, gate, what
):
    """By who has written enough for others; or by the stream, for the kernel took no more."""
    inside, release, blocked = threading.Event(), gate(), gate()
    messages = (
        [b"%d" % number for number in range(1000)] if what == "messages" else [bytes(8_000_000)]
    )

    def wait(data):
        if data == b"FIRST":
            inside.set()
            wait_event(release, "it may go on")

    def respond(socket, data):
        if what == "messages":
            wait_event(inside, "a thread is in the stream")
        for message in messages:
            assert socket.send(message)
        release.set()
        wait_event(blocked, "the peer has received all")

    def first():
        wait_until(lambda: handler.of("data_received"), "the callback runs")
        handler.socket().send(b"FIRST")

    handler, _ = streaming(lambda fd: Calls(fd, on_send=wait), data_received=respond)
    client = connect(start(handler, max_threads=2, max_write_buffer=1 << 30), receive_buffer=65_536)
    expected = b"".join(
        message + b"\n" for message in ([b"FIRST", *messages] if what == "messages" else messages)
    )
    client.send(b"request\n")
    with running(*([first] if what == "messages" else [])):
        wait_event(release, "all is given to the stream")
        assert client.receive(len(expected)) == expected
    blocked.set()


@pytest.mark.clause("T7")
@pytest.mark.parametrize("how", ["send", "broadcast"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_interrupts_a_thread_of_the_users_in_a_stream_ends_it_and_comes_out(
    one, error_log, how, kind
):
    def interrupted(data):
        raise kind

    server, client, socket, handler = one({"on_send": interrupted})
    with pytest.raises(kind):
        socket.send(b"x") if how == "send" else server.broadcast(b"x")
    assert isinstance(handler.wait_removed()[0].__cause__, kind)
    assert client.at_end()
    assert error_log()


FORKS = """
import os, sys, threading, warnings
import hydrogen
from support import Client

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
parent = os.getpid()
reading, writing = os.pipe()

class Forks(hydrogen.Stream):
    fd = -1
    kept = False
    def __init__(self, fd):
        self.fd = fd
    def recv(self):
        part = os.read(self.fd, 100)
        if part == b"go" and sys.argv[2] == "recv" and os.fork() == 0:
            os.write(writing, b"[forked]")
        if not part:
            raise EOFError
        return [part]
    def send(self, buf):
        if buf and sys.argv[2] == "send":
            self.kept = True
            if os.fork() == 0:
                os.write(writing, b"[forked]")
                return
        os.write(self.fd, buf)
    def shutdown(self):
        os.write(writing, b"" if os.getpid() == parent else b"[child: shutdown]")
    def fileno(self):
        return self.fd

class Handler(hydrogen.Handler):
    def on_new_connection(self, fd):
        return Forks(fd)
    def on_data_received(self, socket, data):
        if os.getpid() != parent:
            os.write(writing, b"[child: a callback]")
        socket.send(data)
        if os.getpid() != parent:
            os.write(writing, b"[child: went on]")

with hydrogen.serve(Handler(), engine=sys.argv[1], port=0, max_threads=1) as server:
    with Client(server.address) as client:
        client.send(b"go")
        assert client.receive(2) == b"go"
        os.wait()
        os.close(writing)
        print(os.read(reading, 1000).decode())
"""


@pytest.mark.clause("T8")
@pytest.mark.parametrize("where", ["recv", "send"])
def test_a_child_forked_within_a_stream_touches_nothing_more(engine, where):
    out, _ = finish(child(FORKS, engine, where))
    assert out == "[forked]\n"


FORKS_IN_A_THREAD = """
import os, sys, warnings
import hydrogen
from support import Client, wait_until

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
parent = os.getpid()
reading, writing = os.pipe()
connected = []

class Forks(hydrogen.Stream):
    def __init__(self, fd):
        self.fd = fd
    def recv(self):
        return []
    def send(self, buf):
        if os.getpid() != parent:
            os.write(writing, b"[child: Stream.send]")
        if buf == b"first":
            socket.send(b"second")
            if os.fork() == 0:
                if sys.argv[2] == "raises":
                    raise KeyboardInterrupt
                return
        os.write(self.fd, buf)
    def shutdown(self):
        pass
    def close(self):
        os.close(self.fd)
    def fileno(self):
        return self.fd

class Handler(hydrogen.Handler):
    def on_new_connection(self, fd):
        return Forks(fd)
    def on_connected(self, socket):
        connected.append(socket)
    def on_data_received(self, socket, data):
        pass

with hydrogen.serve(Handler(), engine=sys.argv[1], port=0, max_threads=1) as server:
    with Client(server.address) as client:
        (socket,) = wait_until(lambda: connected, "it is connected")
        try:
            sent = socket.send(b"first")
        except KeyboardInterrupt:
            sent = "interrupted"
        if os.getpid() != parent:
            third = socket.drain(), socket.send(b"third")
            os.write(writing, f"[child: {sent}, {third[0]}, {third[1]}]".encode())
            os._exit(0)
        os.wait()
        assert sent is True
        assert client.receive(11) == b"firstsecond"
        os.close(writing)
        print(os.read(reading, 1000).decode())
"""


@pytest.mark.clause("T8")
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_child_of_a_thread_of_the_users_forked_within_a_stream_goes_its_own_way(engine, how):
    out, _ = finish(child(FORKS_IN_A_THREAD, engine, how))
    assert out == f"[child: {'False' if how == 'returns' else 'interrupted'}, False, False]\n"
