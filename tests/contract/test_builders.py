"""Built-in builders and their subclasses, through a server: both engines take the same ones for
built-in, and say the same of bad bytes.
"""

import contextlib
import socket as stdlib_socket
import threading

import pytest
from certificates import client_context, server_context
from support import Echo, echo, recorder, settled, wait_event, wait_until

import hydrogen
from hydrogen.framings import BUILT_IN

built_in = pytest.mark.parametrize("kind", BUILT_IN.values(), ids=BUILT_IN)


class Upper(hydrogen.Frame):
    """A frame of another class than the builder's own: what it carries is in capitals."""

    def __init__(self, kind, payload):
        self.inner = kind().frame(payload.upper())

    def to_bytes(self):
        return self.inner.to_bytes()

    def payload(self):
        return self.inner.payload()


def subclass(kind, *overridden):
    """A subclass of a built-in builder that overrides these methods."""

    def from_bytes(self, buf):
        frame = kind.from_bytes(self, buf)
        return None if frame is None else self.made(frame.payload() + b"?")

    def frame(self, payload):
        return self.made(bytes(payload) + b"!")

    def made(self, payload):
        return kind.frame(self, payload)

    def other_made(self, payload):
        return Upper(kind, payload)

    methods = {"from_bytes": from_bytes, "frame": frame, "class": other_made}
    names = {"class": "made"}
    return type(
        "Mine",
        (kind,),
        {"made": made, **{names.get(name, name): methods[name] for name in overridden}},
    )


@built_in
@pytest.mark.parametrize(
    ("overridden", "answer"),
    [
        ((), b"hello"),
        (("from_bytes",), b"hello?"),
        (("frame",), b"hello!"),
        (("from_bytes", "frame"), b"hello?!"),
        (("from_bytes", "class"), b"HELLO?"),
        (("frame", "class"), b"HELLO!"),
        (("from_bytes", "frame", "class"), b"HELLO?!"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["config", "returned", "tls", "broadcast"])
def test_what_a_subclass_of_a_built_in_builder_overrides_is_honoured(
    start, kind, overridden, answer, way
):
    framing = subclass(kind, *overridden)
    hooks = {
        "data_received": (lambda socket, data: socket.server.broadcast(data))
        if way == "broadcast"
        else echo
    }
    options = {}
    if way == "returned":
        hooks["new_connection"] = lambda fd: hydrogen.Plain(fd, framing)
    else:
        options["framing"] = framing
    context = None
    if way == "tls":
        options["ssl"], context = server_context(), client_context()
    server = start(recorder(**hooks), **options)
    with hydrogen.connect(
        server.address,
        framing=kind,
        ssl=context,
        server_hostname=context and "localhost",
        timeout=30,
    ) as client:
        client.send(b"hello")
        assert client.recv() == answer


def test_a_subclass_speaks_for_itself_of_what_it_refuses(start, connect):
    class Mine(hydrogen.LineFrameBuilder):
        def from_bytes(self, buf):
            if buf.startswith(b"bad"):
                raise hydrogen.ProtocolError("mine")
            return super().from_bytes(buf)

    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=Mine))
    client.send(b"good\nbad\n")
    assert client.receive_until_end() == b"good\n"
    client.close()
    (error,) = handler.wait_removed()
    assert (type(error), str(error)) == (hydrogen.ProtocolError, "mine")


@built_in
def test_a_builder_changed_by_force_starts_no_server(engine, kind):
    for name in kind._fields:
        builder = kind()
        object.__setattr__(builder, name, b"-" * 100_000)
        with pytest.raises((TypeError, ValueError), match=name):
            hydrogen.serve(Echo(), port=0, framing=builder, engine=engine)


@built_in
def test_a_builder_changed_by_force_fails_the_connection_that_gets_it(
    start, connect, error_log, kind
):
    builder = kind()
    object.__setattr__(builder, kind._fields[0], b"-" * 100_000)
    handler = recorder(new_connection=lambda fd: hydrogen.Plain(fd, builder))
    client = connect(start(handler))
    client.at_end()
    client.close()  # or the server lingers
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.HandlerError
    assert kind._fields[0] in str(error)
    assert len(error_log()) == 1


REFUSED = [
    (
        hydrogen.SimpleFrameBuilder(100),
        b"\x01\x00\xc8",
        hydrogen.FrameTooLarge,
        "declared length 200 is over max_size 100",
    ),
    (
        hydrogen.LineFrameBuilder(max_size=3),
        b"12345",
        hydrogen.FrameTooLarge,
        "a line is over max_size 3",
    ),
    (
        hydrogen.LineFrameBuilder(b"--", 3),
        b"1234--",
        hydrogen.FrameTooLarge,
        "a line is over max_size 3",
    ),
    (
        hydrogen.LengthFrameBuilder(2, "little", 5),
        b"\x06\0",
        hydrogen.FrameTooLarge,
        "declared length 6 is over max_size 5",
    ),
    (
        hydrogen.Checksum32FrameBuilder(5),
        b"\0\0\0\x06",
        hydrogen.FrameTooLarge,
        "declared length 6 is over max_size 5",
    ),
    (
        hydrogen.WebSocketFrameBuilder(5),
        b"\x82\x06",
        hydrogen.FrameTooLarge,
        "declared length 6 is over max_size 5",
    ),
    (
        hydrogen.SimpleFrameBuilder(),
        b"\x02",
        hydrogen.ProtocolError,
        "a SimpleFrame begins with 0x01, not 0x02",
    ),
    (
        hydrogen.SimpleFrameBuilder(),
        b"\x01\0\0\x18",
        hydrogen.ProtocolError,
        "a SimpleFrame ends with 0x17, not 0x18",
    ),
    (
        hydrogen.Checksum32FrameBuilder(),
        b"\0\0\0\x01\x07\0\0\0\x08",
        hydrogen.ChecksumMismatch,
        "the checksum of the payload is 7, not 8",
    ),
    (hydrogen.WebSocketFrameBuilder(), b"\x83", hydrogen.ProtocolError, "opcode 3 is reserved"),
]


@pytest.mark.parametrize(
    ("builder", "wire", "kind", "sentence"),
    REFUSED,
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("returned", [False, True], ids=["config", "returned"])
def test_a_refused_frame_is_refused_with_one_sentence_on_both_engines(
    start, connect, builder, wire, kind, sentence, returned
):
    handler = recorder(new_connection=lambda fd: hydrogen.Plain(fd, builder) if returned else None)
    client = connect(start(handler, framing=None if returned else builder))
    client.send(wire)
    client.at_end()
    client.close()
    (error,) = handler.wait_removed()
    assert (type(error), str(error)) == (kind, sentence)


RAISED = [
    *[
        (name, KeyError)
        for name in vars(hydrogen.Handler)
        if name.startswith("on_") and name not in ("on_server_created", "on_writable")
    ],
    *[
        ("on_data_received", kind)
        for kind in (OSError, hydrogen.HandlerError, hydrogen.ProtocolError)
    ],
    ("on_new_connection", hydrogen.Reject),
    ("from_bytes", KeyError),
    ("from_bytes", hydrogen.ProtocolError),
]


@pytest.mark.parametrize(("name", "kind"), RAISED)
def test_an_exception_that_is_raised_for_each_connection_keeps_a_short_traceback(
    start, connect, error_log, name, kind
):
    error = kind("kept")

    def fail(*_):
        raise error

    def length():
        entries, entry = 0, error.__traceback__
        while entry is not None:
            entries, entry = entries + 1, entry.tb_next
        return entries

    handler, options = (
        recorder(**{name.removeprefix("on_"): None} if name != "from_bytes" else {}),
        {},
    )
    if name == "from_bytes":
        options["framing"] = type("Mine", (hydrogen.LineFrameBuilder,), {"from_bytes": fail})
    else:
        handler.hooks[name] = fail
    server = start(handler, **options)
    lengths = []
    for count in range(1, 8):
        client = connect(server)
        with contextlib.suppress(OSError):  # it may be refused by now
            client.send(b"x\n")
            client.sock.shutdown(stdlib_socket.SHUT_WR)
        client.at_end()
        client.close()
        handler.wait_removed(count)
        wait_until(
            lambda: server.stats().connections == 0, "the slot is vacant: the last callback is over"
        )
        lengths.append(length())
    assert max(lengths[2:]) <= lengths[1], lengths


class MyBytes(bytes):
    """A subclass, which what is compiled does not take for bytes."""


class Padded(hydrogen.FrameBuilder):
    """A line; `to_bytes` of its frames returns a subclass of bytes."""

    def from_bytes(self, buf):
        line = hydrogen.LineFrameBuilder().from_bytes(buf)
        return None if line is None else self.frame(line.payload())

    def frame(self, payload):
        class Line(hydrogen.LineFrame):
            def to_bytes(self):
                return MyBytes(super().to_bytes())

        return Line(payload)


@pytest.mark.clause("F15")
def test_a_frame_may_become_a_subclass_of_bytes(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, framing=Padded())
    client = connect(server)
    client.send(b"one\n")
    assert client.receive(4) == b"one\n"
    assert server.broadcast(b"all").sent == 1
    assert client.receive(4) == b"all\n"


class Held(hydrogen.FrameBuilder):
    """A frame is whatever is there. `from_bytes` sets `inside`, and goes on when `release` is
    set.
    """

    def __init__(self, release):
        self.inside, self.release = threading.Event(), release

    def from_bytes(self, buf):
        if not buf:
            return None
        self.inside.set()
        wait_event(self.release, "it may go on")
        payload = bytes(buf)
        buf.clear()
        return hydrogen.SimpleFrame(payload)

    def frame(self, payload):
        return hydrogen.SimpleFrame(payload)


@pytest.mark.clause("H18", "H19")
@pytest.mark.parametrize("how", ["close", "abort", "pause_reading"])
def test_a_message_that_a_builder_finds_is_not_delivered_once_its_connection_was_closed_or_paused(
    start, connect, gate, how
):
    builder, handler = Held(gate()), recorder(connected=None)
    client = connect(start(handler, framing=builder, max_threads=2))
    handler.wait_for("connected")
    client.send(b"message")
    wait_event(builder.inside, "the builder looks for a frame")
    getattr(handler.socket(), how)()
    builder.release.set()
    if how == "pause_reading":
        settled(lambda: len(handler.of("data_received")))
        assert handler.messages() == []
        handler.socket().resume_reading()
        assert handler.wait_bytes(7) == b"message"
        assert handler.messages() == [b"message"]
    else:
        handler.wait_removed()
        assert handler.messages() == []
