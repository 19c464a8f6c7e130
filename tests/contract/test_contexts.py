"""Each callback runs in a context of its own (contextvars): what it sets lasts as long as it does,
and no longer.

Its own sends may run Python: TLS, a frame builder or a stream of the user's. That is one callback
still.
"""

import asyncio
import contextlib
import contextvars
import decimal
import gc
import threading

import pytest
from certificates import server_context
from families import FAMILIES, connect_to, options_of, stream_of
from support import PATIENCE, recorder, wait_event, wait_until

import hydrogen

mine = contextvars.ContextVar("mine", default="nothing")


class Line(hydrogen.Frame):
    def __init__(self, data):
        self.data = data

    def to_bytes(self):
        return self.data + b"\n"

    def payload(self):
        return self.data


class Lines(hydrogen.FrameBuilder):
    """A frame builder of the user's."""

    def from_bytes(self, buffer):
        end = buffer.find(b"\n")
        if end < 0:
            return None
        line = Line(bytes(buffer[:end]))
        del buffer[: end + 1]
        return line

    def frame(self, payload):
        return Line(payload)


KINDS = (*FAMILIES, "builder", "tls and builder", "adopted")
kinds = pytest.mark.parametrize("kind", KINDS)


def serving(start, path, kind, max_threads=1, **hooks):
    """A server that speaks lines, each kind by code of another's, and its handler."""
    family = kind if kind in FAMILIES else "tls" if "tls" in kind else "tcp"
    options = options_of(family, str(path / "s"))
    if "builder" in kind:
        options["framing"] = Lines()
    stream = stream_of
    if kind == "adopted":
        del options["framing"]

        def stream(family, fd):
            return hydrogen.Plain(fd, hydrogen.LineFrameBuilder())

    handler = recorder(new_connection=lambda fd: stream(family, fd), **hooks)
    server = start(handler, **options, max_threads=max_threads)
    return handler, lambda: connect_to(server, family)


@pytest.mark.clause("H16")
@kinds
def test_what_a_callback_sets_in_its_context_outlives_its_own_sends_and_not_itself(
    start, tmp_path, kind
):
    seen = []
    done = threading.Semaphore(0)

    def received(socket, data):
        seen.append((mine.get(), decimal.getcontext().prec))
        token = mine.set("set")
        decimal.getcontext().prec = 5
        for _ in range(3):
            assert socket.send(data)
            seen.append((mine.get(), decimal.getcontext().prec))
        mine.reset(token)  # raises ValueError in another context
        mine.set("left")
        done.release()

    _, connect = serving(start, tmp_path, kind, data_received=received)
    peer = connect()
    for _ in range(3):
        peer.send(b"x\n")
        assert peer.receive(6) == b"x\nx\nx\n"
        assert done.acquire(timeout=PATIENCE)
    usual = ("nothing", decimal.DefaultContext.prec)
    assert seen == [usual, *[("set", 5)] * 3] * 3
    peer.close()


@pytest.mark.clause("H16")
@kinds
def test_of_two_messages_that_come_at_once_the_second_does_not_see_what_the_first_has_set(
    start, tmp_path, kind
):
    seen = []

    def received(socket, data):
        seen.append(mine.get())
        mine.set(data)
        if data == b"last":
            socket.send(data)

    _, connect = serving(start, tmp_path, kind, data_received=received)
    peer = connect()
    peer.send(b"first\nsecond\nthird\nlast\n")
    assert peer.receive(5) == b"last\n"
    assert seen == ["nothing"] * 4
    peer.close()


@pytest.mark.clause("H16")
@kinds
@pytest.mark.parametrize("how", ["Context.run", "copy_context", "asyncio.run"])
def test_a_callback_may_send_from_within_a_context_that_it_has_entered(start, tmp_path, kind, how):
    seen = []

    def received(socket, data):
        mine.set("outer")

        def send():
            mine.set("inner")
            assert socket.send(data)
            seen.append(mine.get())

        async def main():
            await asyncio.sleep(0)
            send()

        if how == "asyncio.run":
            asyncio.run(main())
        else:
            made = contextvars.copy_context() if how == "copy_context" else contextvars.Context()
            made.run(send)
        assert socket.send(data)
        seen.append(mine.get())

    _, connect = serving(start, tmp_path, kind, data_received=received)
    peer = connect()
    for number in range(1, 4):
        peer.send(b"x\n")
        assert peer.receive(4) == b"x\nx\n"
        wait_until(lambda number=number: seen == ["inner", "outer"] * number, "it has sent twice")
    peer.close()


@pytest.mark.clause("H16", "K18")
@kinds
def test_what_lies_in_the_context_of_a_callback_may_send_as_it_is_dropped(start, tmp_path, kind):
    class Farewell:
        def __init__(self, socket):
            self.socket = socket

        def __del__(self):
            self.socket.send(b"bye")

    _, connect = serving(
        start, tmp_path, kind, data_received=lambda socket, data: mine.set(Farewell(socket))
    )
    peer = connect()
    for _ in range(5):
        peer.send(b"x\n")
        assert peer.receive(4) == b"bye\n"
    peer.close()


@pytest.mark.clause("H13", "H16")
@kinds
def test_what_user_data_sets_as_it_is_dropped_no_callback_sees(start, tmp_path, kind):
    seen = []
    dropped = threading.Event()

    class Data:
        def __del__(self):
            mine.set("of a stranger")
            decimal.getcontext().prec = 5
            dropped.set()

    def connected(socket):
        socket.user_data = Data()

    def received(socket, data):
        seen.append((mine.get(), decimal.getcontext().prec))
        socket.send(data)

    handler, connect = serving(start, tmp_path, kind, connected=connected, data_received=received)
    stays = connect()
    for number in range(1, 4):
        dropped.clear()
        goes = connect()
        goes.send(b"x\n")
        assert goes.receive(2) == b"x\n"
        goes.close()
        handler.wait_removed(number)
        gc.collect()
        wait_event(dropped, "user_data is dropped")
        stays.send(b"y\n")
        assert stays.receive(2) == b"y\n"
    assert seen == [("nothing", decimal.DefaultContext.prec)] * 6
    stays.close()


class NamelessType(type):
    @property
    def __name__(cls):
        if threading.current_thread() is threading.main_thread():  # pytest's own report
            return "Nameless"
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=NamelessType):
    """Cannot even be named in the log."""


@pytest.mark.clause("H16", "H17")
@kinds
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, Nameless, hydrogen.Reject])
@pytest.mark.parametrize("name", ["connected", "data_received", "disconnected"])
def test_what_a_callback_sets_before_it_raises_no_other_one_sees(
    start, tmp_path, kind, error, name, error_log
):
    seen = []

    def callback(socket, *arguments):
        seen.append(mine.get())
        mine.set("of a stranger")
        if victims:
            raise error

    def received(socket, data):
        if name == "data_received" and data == b"raise":
            callback(socket)
        seen.append(mine.get())
        socket.send(data)

    hooks = {"data_received": received}
    if name != "data_received":
        hooks[name] = callback
    victims = []
    handler, connect = serving(start, tmp_path, kind, **hooks)
    stays = connect()
    stays.send(b"x\n")
    assert stays.receive(2) == b"x\n"
    for number in range(1, 4):
        victims.append(number)
        victim = connect()
        if name == "data_received":
            victim.send(b"raise\n")
        with contextlib.suppress(OSError):  # it may be closed already
            victim.finish()  # or the server would linger
        handler.wait_removed(number)
        victim.client.close()
        victims.clear()
        stays.send(b"y\n")
        assert stays.receive(2) == b"y\n"
    assert set(seen) == {"nothing"}
    assert len(seen) >= 7
    stays.close()


@pytest.mark.clause("H16")
def test_what_the_server_name_callback_of_tls_sets_no_other_callback_sees(start, tmp_path):
    seen = []

    def named(tls, name, context):
        mine.set("of a stranger")

    context = server_context()
    context.sni_callback = named

    def received(socket, data):
        seen.append(mine.get())
        socket.send(data)

    handler = recorder(connected=lambda socket: seen.append(mine.get()), data_received=received)
    options = {**options_of("tls", ""), "ssl": context}
    server = start(handler, **options, max_threads=1)
    stays = connect_to(server, "tls")
    for _ in range(3):
        other = connect_to(server, "tls")
        for peer in (other, stays):
            peer.send(b"x\n")
            assert peer.receive(2) == b"x\n"
        other.close()
    assert set(seen) == {"nothing"}
    stays.close()


@pytest.mark.clause("H16")
@pytest.mark.parametrize("sets", [False, True], ids=["sets nothing", "sets a variable"])
def test_a_worker_leaves_the_context_that_its_thread_runs_in_as_it_was(
    start, connect, monkeypatch, sets
):
    """From Python 3.14 on each thread runs in a context, whose end is an error in any other one."""
    run = threading.Thread.run
    monkeypatch.setattr(
        threading.Thread, "run", lambda thread: contextvars.Context().run(run, thread)
    )
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def received(socket, data):
        if sets:
            mine.set(data)
        socket.send(data)

    server = start(recorder(data_received=received))
    with connect(server) as client:
        client.echo(b"x")
    server.stop()
    assert raised == []
