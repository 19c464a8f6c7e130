"""Any exception, from any call into user code: callbacks, streams, builders, timers, log handlers.

Whatever is raised, and however hostile the exception itself is, it costs the connection it belongs
to and nothing else: no worker, no neighbour, no server. Each site is asked more often than there
are workers, and a neighbour talks before, between and after.
"""

import contextlib
import logging
import os
import socket as socket_module
import ssl
import sys
import threading

import certificates
import pytest
from families import PassThrough
from hostile_errors import Switch, blame, errors, is_a, is_asked_by_pytest, raising
from support import PATIENCE, recorder, running, wait_until

import hydrogen

pytestmark = pytest.mark.exhaustive

WORKERS = 2
TIMES = WORKERS + 1


def only_bad(error):
    """A hook that raises `error` for those who say "bad", and echoes what others say."""

    def hook(socket, data):
        if data == b"bad":
            raise error
        socket.send(data)

    return hook


class Scene:
    """A server, and a neighbour that is served whatever becomes of others."""

    def __init__(self, start, connect, handler, **options):
        self.handler, self._connect = handler, connect
        self.server = start(handler, max_threads=WORKERS, **options)
        self.neighbour = connect(self.server)
        self.neighbour.echo(b"before")

    def provoke(self, act=lambda client: client.send(b"bad"), times=TIMES):
        """Let so many clients do it, one after the other; the errors they were removed with."""
        before = len(self.handler.of("connection_removed"))
        for number in range(times):
            client = self._connect(self.server, receive_buffer=8192)
            # It may be gone before it has done it.
            with contextlib.suppress(OSError):
                act(client)
            # With a window that is less than a segment, the kernel would take its time.
            client.sock.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 1 << 20)
            client.at_end()
            client.close()
            self.handler.wait_for("connection_removed", before + number + 1)
            self.neighbour.echo(b"between")
        return [call.value for call in self.handler.of("connection_removed")[before:]]

    def end(self):
        """Nobody is left but the neighbour, who is served, as are those who come; all was
        counted.
        """
        self.neighbour.echo(b"after")
        with self._connect(self.server) as client:
            client.echo(b"later")
        wait_until(lambda: self.server.stats().connections == 1, "all others are removed")


# ------------------------------------------------------------------------------------- callbacks


@errors
@pytest.mark.parametrize(
    "name", ["new_connection", "connected", "data_received", "eof", "writable"]
)
@pytest.mark.clause("H16")
def test_whatever_a_callback_raises_is_the_handler_s_and_costs_that_connection(
    start, connect, error_log, name, make
):
    error, switch = make(), Switch()

    def hook(socket, *arguments):
        if switch.on:
            raise error
        if name == "eof":
            socket.close()

    def received(socket, data):
        if name == "data_received" and data == b"bad":
            raise error
        socket.send(bytes(1 << 20) if data == b"bad" else data)

    handler = recorder(**({name: hook} | {"data_received": received}))
    small = (socket_module.SOL_SOCKET, socket_module.SO_SNDBUF, 4096)
    scene = Scene(
        start, connect, handler, write_buffer_limits=(1000, 4000), socket_options=(small,)
    )

    def act(client):
        if name in ("data_received", "writable"):
            client.send(b"bad")
        if name == "eof":
            client.finish()

    with switch:
        removals = scene.provoke(act)
    scene.end()
    stats = scene.server.stats()
    if is_a(error, hydrogen.Reject) and name == "new_connection":
        assert all(removal is error for removal in removals)
        assert (stats.removed_reject, error_log()) == (TIMES, [])
        return
    blame(removals, error)
    assert stats.removed_handler_error == TIMES
    assert stats.removed_protocol_error == 0
    wait_until(lambda: len(error_log()) == TIMES, "each is logged")
    assert all(record.exc_info[1] is error for record in error_log())


@errors
@pytest.mark.parametrize("name", ["disconnected", "connection_removed"])
@pytest.mark.clause("H17")
def test_whatever_the_last_two_callbacks_raise_is_logged_and_changes_nothing(
    start, connect, error_log, name, make
):
    error = make()
    handler = recorder(data_received=only_bad(error), **{name: raising(error)})
    scene = Scene(start, connect, handler)
    removals = scene.provoke(lambda client: client.finish())
    scene.end()
    assert [type(removal) for removal in removals] == [hydrogen.PeerClosed] * TIMES
    wait_until(lambda: len(error_log()) >= TIMES, "each is logged")
    assert all(record.exc_info[1] is error for record in error_log())


@errors
@pytest.mark.clause("H16")
def test_whatever_each_callback_of_a_connection_raises_at_once_it_is_removed(
    start, connect, error_log, make
):
    """The first one counts; the last two are called all the same."""
    error = make()
    handler = recorder(
        data_received=only_bad(error),
        disconnected=raising(make()),
        connection_removed=raising(make()),
    )
    scene = Scene(start, connect, handler)
    blame(scene.provoke(), error)
    scene.end()


@errors
def test_whatever_on_server_created_raises_is_what_the_start_raises(engine, make):
    error = make()
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - which one is asked below
        hydrogen.serve(recorder(server_created=raising(error)), port=0, engine=engine)
    assert raised.value is error


@errors
@pytest.mark.clause("H16")
def test_whatever_callbacks_raise_over_tls_costs_that_connection(
    start, connect, error_log, make, tls
):
    error = make()
    handler = recorder(data_received=only_bad(error))
    server = start(handler, max_threads=WORKERS, ssl=tls.server)
    with tls.connect(server) as neighbour:
        tls.echo(neighbour, b"before")
        for number in range(1, TIMES + 1):
            with tls.connect(server) as client:
                client.sendall(b"bad")
                with contextlib.suppress(OSError):
                    assert client.recv(10) == b""
            handler.wait_removed(number)
            tls.echo(neighbour, b"between")
    blame(handler.wait_removed(TIMES)[:TIMES], error)


@pytest.fixture
def tls():
    """TLS with certificates of the tests."""

    class Tls:
        server = certificates.server_context()
        client = certificates.client_context()

        def connect(self, server):
            plain = socket_module.create_connection(server.address, PATIENCE)
            return self.client.wrap_socket(plain, server_hostname="localhost")

        @staticmethod
        def echo(client, data):
            client.sendall(data)
            assert client.recv(len(data)) == data

    return Tls()


# --------------------------------------------------------------------------------------- streams


def streams(switch, **methods):
    """A recorder that echoes; its connections have such streams, with these methods while `switch`
    is on.
    """
    odd = type("Odd", (PassThrough,), methods)
    hook = lambda fd: (odd if switch.on else PassThrough)(fd)  # noqa: E731
    return recorder(new_connection=hook, data_received=lambda socket, data: socket.send(data))


def judge_stream(removals, error, log):
    """OSError and ProtocolError speak of the connection, EOFError of its end; others of the
    stream.
    """
    for removal in removals:
        if is_a(error, EOFError):
            assert type(removal) is hydrogen.PeerClosed
        elif is_a(error, (OSError, hydrogen.ProtocolError)):
            assert removal is error
        else:
            blame([removal], error)
    if type(removals[0]) is hydrogen.HandlerError:
        wait_until(log, "it is logged")


@errors
@pytest.mark.parametrize("method", ["recv", "send"])
@pytest.mark.parametrize("form", ["method", "property"])
@pytest.mark.clause("T1")
def test_whatever_a_stream_raises_ends_its_connection_as_it_says(
    start, connect, error_log, method, form, make
):
    error, switch = make(), Switch()
    if is_a(error, BlockingIOError):
        # That is no error of these two, but "not now".
        error = BlockingIOError if form == "method" else OSError(5, "mine")
        if form == "method":
            return
    odd = raising(error) if form == "method" else property(raising(error))
    handler = streams(switch, **{method: odd})
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke()
    scene.end()
    judge_stream(removals, error, error_log)


@errors
@pytest.mark.clause("T1")
def test_whatever_a_stream_raises_when_it_is_asked_for_its_fd_ends_its_connection(
    start, connect, error_log, make
):
    error, switch = make(), Switch()

    class NoNumber(PassThrough):
        def fileno(self):
            raise error

        def close(self):
            os.close(self.fd)

    handler = recorder(
        new_connection=lambda fd: (NoNumber if switch.on else PassThrough)(fd),
        data_received=lambda socket, data: socket.send(data),
    )
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke(lambda client: None)
    scene.end()
    blame([removal for removal in removals if removal is not error], error)


@errors
@pytest.mark.parametrize("method", ["shutdown", "close"])
def test_whatever_a_stream_raises_at_its_end_is_only_logged(
    start, connect, error_log, method, make
):
    error, switch = make(), Switch()

    def at_the_end(stream):
        if method == "close":
            os.close(stream.fd)
        raise error

    handler = streams(switch, **{method: at_the_end})
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke(lambda client: (client.echo(b"x"), client.finish()))
    scene.end()
    assert [type(removal) for removal in removals] == [hydrogen.PeerClosed] * TIMES
    if method == "shutdown" and is_a(error, ConnectionError):  # the peer is gone, it says
        assert error_log() == []
        return
    wait_until(error_log, "it is logged")


# -------------------------------------------------------------------------------------- builders


class Whole(hydrogen.Frame):
    """All bytes that there are, as they are."""

    def __init__(self, data):
        self.data = bytes(data)

    def to_bytes(self):
        return self.data

    def payload(self):
        return self.data


def builder_that_raises(where, error):
    """Chunks in Python; "bad" provokes `error` at `where`."""
    made = type("Bad", (Whole,), {where: raising(error)}) if where != "payload property" else None
    if made is None:
        made = type("Bad", (Whole,), {"payload": property(raising(error))})

    class Raises(hydrogen.FrameBuilder):
        def from_bytes(self, buf):
            if buf == b"bad" and where == "from_bytes":
                raise error
            frame = (made if buf == b"bad" and where.startswith("payload") else Whole)(buf)
            buf.clear()
            return frame

        def frame(self, payload):
            if payload == b"bad" and where == "frame":
                raise error
            return (made if payload == b"bad" and where == "to_bytes" else Whole)(payload)

    return Raises


@errors
@pytest.mark.parametrize("where", ["from_bytes", "payload", "payload property"])
def test_whatever_a_builder_raises_on_receipt_ends_its_connection(
    start, connect, error_log, where, make
):
    error = make()
    handler = recorder(data_received=lambda socket, data: socket.send(data))
    scene = Scene(start, connect, handler, framing=builder_that_raises(where, error))
    removals = scene.provoke()
    scene.end()
    if is_a(error, hydrogen.ProtocolError):
        assert all(removal is error for removal in removals)
    else:
        blame(removals, error)
        wait_until(error_log, "it is logged")
    assert handler.messages().count(b"bad") == 0


@errors
@pytest.mark.parametrize("where", ["frame", "to_bytes"])
def test_whatever_a_builder_raises_on_sending_is_the_callback_s_that_sent(
    start, connect, error_log, where, make
):
    error = make()
    handler = recorder(data_received=lambda socket, data: socket.send(data))
    scene = Scene(start, connect, handler, framing=builder_that_raises(where, error))
    removals = scene.provoke()
    scene.end()
    blame(removals, error)
    assert scene.server.stats().removed_protocol_error == 0


@errors
@pytest.mark.parametrize("where", ["frame", "to_bytes"])
@pytest.mark.parametrize("how", ["send", "broadcast"])
def test_whatever_a_builder_raises_on_sending_goes_to_the_caller_and_the_connection_stays(
    start, connect, where, how, make
):
    error = make()
    handler = recorder(data_received=lambda socket, data: socket.send(data))
    scene = Scene(start, connect, handler, framing=builder_that_raises(where, error))
    send = handler.socket().send if how == "send" else scene.server.broadcast
    for _ in range(TIMES):
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - which one is asked below
            send(b"bad")
        assert raised.value is error
        scene.neighbour.echo(b"between")
    scene.end()


class NoLength(Whole):
    """Nobody needs its length."""

    def __len__(self):
        raise RuntimeError("no length")

    len_as_vec = __bool__ = __len__


def test_a_frame_is_not_asked_for_its_length_or_truth(start, connect):
    class Builder(hydrogen.FrameBuilder):
        def from_bytes(self, buf):
            frame = NoLength(buf)
            buf.clear()
            return frame

        def frame(self, payload):
            return NoLength(payload)

    handler = recorder(data_received=lambda socket, data: socket.send(data))
    scene = Scene(start, connect, handler, framing=Builder)
    scene.server.broadcast(b"all")
    assert scene.neighbour.receive(3) == b"all"
    scene.end()


# -------------------------------------------------------------------------------------- nonsense


def nonsense(error):
    """An object that raises `error` whatever it is asked for."""
    answer = raising(error)
    names = ("__repr__", "__str__", "__eq__", "__bool__", "__len__", "__iter__", "__format__")
    return type("Nonsense", (), dict.fromkeys(names, answer) | {"__hash__": answer})()


@errors
def test_nonsense_from_on_new_connection_that_cannot_be_described_costs_that_connection(
    start, connect, error_log, make
):
    error, switch = make(), Switch()
    handler = recorder(
        new_connection=lambda fd: nonsense(error) if switch.on else None,
        data_received=lambda socket, data: socket.send(data),
    )
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke(lambda client: None)
    scene.end()
    assert [type(removal) for removal in removals] == [hydrogen.HandlerError] * TIMES


@errors
@pytest.mark.parametrize(
    "wrap", [lambda value: value, lambda value: [value]], ids=["itself", "list"]
)
def test_nonsense_from_a_stream_that_cannot_be_described_costs_that_connection(
    start, connect, error_log, make, wrap
):
    error, switch = make(), Switch()
    handler = streams(switch, recv=lambda stream: wrap(nonsense(error)))
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke()
    scene.end()
    assert [type(removal) for removal in removals] == [hydrogen.HandlerError] * TIMES


@errors
@pytest.mark.parametrize("where", ["from_bytes", "payload"])
def test_nonsense_from_a_builder_that_cannot_be_described_costs_that_connection(
    start, connect, error_log, make, where
):
    error = make()
    strange = type("Strange", (Whole,), {"payload": lambda self: nonsense(error)})

    class Builder(hydrogen.FrameBuilder):
        def from_bytes(self, buf):
            is_bad = buf == b"bad"
            frame = (
                (nonsense(error) if where == "from_bytes" else strange(buf))
                if is_bad
                else Whole(buf)
            )
            buf.clear()
            return frame

        def frame(self, payload):
            return Whole(payload)

    handler = recorder(data_received=lambda socket, data: socket.send(data))
    scene = Scene(start, connect, handler, framing=Builder)
    removals = scene.provoke()
    scene.end()
    assert [type(removal) for removal in removals] == [hydrogen.HandlerError] * TIMES


# ---------------------------------------------------------------------------- timers and finalizers


@errors
def test_whatever_a_timer_raises_is_logged_and_the_next_one_is_called(
    start, connect, error_log, make
):
    error = make()
    scene = Scene(start, connect, recorder(data_received=lambda socket, data: socket.send(data)))
    for _ in range(TIMES):
        scene.server.call_later(0, raising(error))
        done = threading.Event()
        scene.server.call_later(0, done.set)
        assert done.wait(PATIENCE)
        scene.neighbour.echo(b"between")
    scene.end()
    wait_until(lambda: len(error_log()) == TIMES, "each is logged")
    assert all(record.exc_info[1] is error for record in error_log())


@errors
@pytest.mark.parametrize("calls", ["nothing", "send", "close", "abort", "server"])
def test_whatever_the_finalizer_of_user_data_does_and_raises_costs_nobody(
    start, connect, monkeypatch, make, calls
):
    error, dropped, is_over = make(), [], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

    class Finalized:
        def __init__(self, socket):
            self.socket = socket

        def __del__(self):
            if is_over:  # the collector came late
                return
            if calls == "server":
                server = self.socket.server
                server.broadcast(b"")
                _ = server.stats(), server.connections
                server.call_later(0, lambda: None)
            elif calls != "nothing":
                getattr(self.socket, calls)(*[b"late"] * (calls == "send"))
            dropped.append(self)
            raise error

    def received(socket, data):
        if data == b"bad":
            socket.user_data = Finalized(socket)  # the second one drops the first
        socket.send(data)

    handler = recorder(data_received=received)
    scene = Scene(start, connect, handler)

    def act(client):
        client.send(b"bad")
        client.receive(3)
        client.send(b"bad")  # its first one may close it
        client.finish()

    scene.provoke(act)
    wait_until(lambda: dropped, "they are dropped")
    dropped.clear()
    scene.end()
    is_over.append(True)


# ------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log_raises():
    """Have every line of hydrogen's log raise: `log_raises(error, how)`."""
    logger = logging.getLogger("hydrogen")
    level, undo = logger.level, []

    def log_raises(error, how):
        def refuse(record):
            # In the main thread that is the user's Ctrl-C, and goes on.
            if is_a(error, KeyboardInterrupt) and is_asked_by_pytest():
                return True
            raise error

        logger.setLevel(logging.DEBUG)
        if how == "handler":
            odd = logging.Handler()
            odd.emit = refuse
            logger.addHandler(odd)
            undo.append(lambda: logger.removeHandler(odd))
        else:
            logger.addFilter(refuse)
            undo.append(lambda: logger.removeFilter(refuse))

    yield log_raises
    for call in undo:
        call()
    logger.setLevel(level)


@errors
@pytest.mark.parametrize("how", ["handler", "filter"])
def test_whatever_the_log_raises_the_server_starts_serves_and_stops(
    start, connect, error_log, log_raises, how, make
):
    """A line is logged for each thing there is: accepts, removals, exceptions, timers, the stop."""
    error = make()
    log_raises(make(), how)
    handler = recorder(data_received=only_bad(error), connected=None)
    scene = Scene(
        start, connect, handler, write_buffer_limits=(1000, 4000), max_write_buffer=10_000
    )
    blame(scene.provoke(), error)
    scene.server.call_later(0, raising(error))

    def neglect(client):
        client.send(b"x")

        def said():
            return [call for call in handler.of("data_received") if call.value == b"x"]

        socket = handler.wait(said, "the message")[0].socket
        while socket.send(bytes(5000)):
            pass

    assert type(scene.provoke(neglect, 1)[0]) is hydrogen.SlowConsumer
    scene.end()
    with running(scene.server.stop):
        scene.neighbour.receive_until_end()
    scene.neighbour.close()
    assert type(handler.wait_for("connection_removed")[-1].value) is hydrogen.ServerStopped


@errors
@pytest.mark.parametrize("how", ["handler", "filter"])
def test_whatever_the_log_raises_over_tls_handshakes_succeed_and_fail_as_ever(
    start, connect, error_log, log_raises, how, make, tls
):
    log_raises(make(), how)
    handler = recorder(data_received=lambda socket, data: socket.send(data))
    server = start(handler, max_threads=WORKERS, ssl=tls.server)
    for number in range(1, TIMES + 1):
        bad = connect(server)
        bad.send(b"this is no handshake")
        bad.at_end()
        bad.close()
        assert isinstance(handler.wait_removed(number)[-1], ssl.SSLError)
    with tls.connect(server) as client:
        tls.echo(client, b"served")
