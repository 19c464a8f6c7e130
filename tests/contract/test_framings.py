"""Framings through a server: the built-in ones, builders written by a user, another framing for
each connection, streams that were used by hand before; and row 29: builders that raise or return
nonsense.

(Every case of every built-in format, split at every position, is in tests/corpus.)
"""

import functools
import os
import socket as stdlib_socket
import ssl

import pytest
from support import (
    Echo,
    checksum32,
    echo,
    length_frame,
    line,
    recorder,
    running,
    simple,
    wait_event,
    wait_until,
    websocket,
)

import hydrogen


class Netstring(hydrogen.Frame):
    """A frame written by a user: `5:hello,`."""

    def __init__(self, payload):
        self.content = bytes(payload)

    def to_bytes(self):
        return b"%d:%b," % (len(self.content), self.content)

    def payload(self):
        return self.content


class Netstrings(hydrogen.FrameBuilder):
    """Their builder, which knows nothing of how the library's own are made."""

    def from_bytes(self, buf):
        assert type(buf) is bytearray
        colon = buf.find(b":", 0, 8)
        if colon < 0:
            if len(buf) >= 8 or (buf and not buf.isdigit()):
                raise hydrogen.ProtocolError("no length")
            return None
        end = colon + 1 + int(buf[:colon])
        if len(buf) <= end:
            return None
        if buf[end] != ord(","):
            raise hydrogen.ProtocolError("no comma")
        frame = Netstring(buf[colon + 1 : end])
        del buf[: end + 1]
        return frame

    def frame(self, payload):
        return Netstring(payload)


def netstring(payload):
    """`payload` on the wire."""
    return str(len(payload)).encode() + b":" + payload + b","


# name: (framing, a message as the client sends it, as the server does)
FRAMINGS = {
    "simple": (hydrogen.SimpleFrameBuilder, simple, simple),
    "checksum32": (hydrogen.Checksum32FrameBuilder, checksum32, checksum32),
    "length": (hydrogen.LengthFrameBuilder, length_frame, length_frame),
    "length-2": (
        hydrogen.LengthFrameBuilder(width=2),
        functools.partial(length_frame, width=2),
        functools.partial(length_frame, width=2),
    ),
    "length-8-little": (
        hydrogen.LengthFrameBuilder(width=8, byteorder="little"),
        functools.partial(length_frame, width=8, byteorder="little"),
        functools.partial(length_frame, width=8, byteorder="little"),
    ),
    "line": (hydrogen.LineFrameBuilder, line, line),
    "line-crlf": (hydrogen.LineFrameBuilder, functools.partial(line, delimiter=b"\r\n"), line),
    "line-delimiter": (
        hydrogen.LineFrameBuilder(delimiter=b"\r\n.\r\n"),
        functools.partial(line, delimiter=b"\r\n.\r\n"),
        functools.partial(line, delimiter=b"\r\n.\r\n"),
    ),
    "websocket": (
        hydrogen.WebSocketFrameBuilder,
        functools.partial(websocket, opcode=1, mask=b"\x01\x20\xff\x00"),
        websocket,
    ),
    "user": (Netstrings, netstring, netstring),
}

PAYLOADS = [
    b"",
    b"x",
    b"",
    b"a" * 125,
    b"b" * 126,
    bytes(range(11, 256)),
    b"c" * 65_535,
    b"\0\1\xff",
]


@pytest.fixture(params=FRAMINGS)
def framing(request):
    return FRAMINGS[request.param]


def test_nothing_is_allocated_for_a_frame_but_its_payload(start, connect, framing):
    """Blocks of input and output come from the pools of the workers; the Python engine counts
    none.
    """
    builder, sent, returned = framing
    server = start(Echo(), framing=builder, handoff="inline")
    client = connect(server)
    batch, replies = sent(b"abcd") * 16, returned(b"abcd") * 16

    def exchange(times):
        for _ in range(times):
            client.send(batch)
            assert client.receive(len(replies)) == replies

    exchange(20)
    before = server.stats()
    exchange(200)
    after = server.stats()
    assert after.messages_received - before.messages_received == 200 * 16
    # A batch may come in two pieces, and then the beginning of a frame waits in a block of its own.
    assert after.buffer_allocations - before.buffer_allocations <= 20


@pytest.mark.clause("C8", "F4", "F5", "F7", "F9", "F10", "F11", "F13", "F15")
def test_messages_go_to_and_fro_in_every_framing(start, connect, framing):
    builder, sent, returned = framing
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=builder))
    client.send(b"".join(map(sent, PAYLOADS)))
    expected = b"".join(map(returned, PAYLOADS))
    assert client.receive(len(expected)) == expected
    assert handler.messages() == PAYLOADS
    assert all(type(message) is bytes for message in handler.messages())


def test_a_message_that_comes_byte_by_byte_is_one_in_every_framing(start, connect, framing):
    builder, sent, returned = framing
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=builder))
    wire = sent(b"one by one") + sent(b"") + sent(b"d" * 126)
    for at in range(len(wire)):
        client.send(wire[at : at + 1])
    expected = returned(b"one by one") + returned(b"") + returned(b"d" * 126)
    assert client.receive(len(expected)) == expected
    assert handler.messages() == [b"one by one", b"", b"d" * 126]


@pytest.mark.clause("H20")
def test_the_end_inside_a_frame_is_an_incomplete_frame_in_every_framing(start, connect, framing):
    builder, sent, _ = framing
    handler = recorder()
    client = connect(start(handler, framing=builder))
    client.send(sent(b"whole") + sent(b"not whole")[:-1])
    client.finish()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.IncompleteFrame
    assert handler.messages() == [b"whole"]


@pytest.mark.clause("F14", "K5")
@pytest.mark.parametrize(
    ("builder", "limit"),
    [
        (hydrogen.SimpleFrameBuilder, 65_535),
        (hydrogen.Checksum32FrameBuilder, 1 << 20),
        (hydrogen.LengthFrameBuilder, 1 << 20),
        (hydrogen.LengthFrameBuilder(width=1), 255),
        (hydrogen.LengthFrameBuilder(width=2), 65_535),
        (hydrogen.LineFrameBuilder, 65_536),
        (hydrogen.WebSocketFrameBuilder, 1 << 20),
        (hydrogen.LengthFrameBuilder(max_size=100), 100),
        (hydrogen.LineFrameBuilder(max_size=0), 0),
    ],
    ids=repr,
)
def test_a_message_over_max_size_is_not_sent_and_the_connection_stays(
    start, connect, builder, limit
):
    handler = recorder(connected=None)
    server = start(handler, framing=builder)
    connect(server)
    socket = handler.socket()
    with pytest.raises(hydrogen.FrameTooLarge):
        socket.send(bytes(limit + 1))
    assert server.stats().messages_sent == 0
    assert socket.is_open
    assert socket.send(bytes(limit))


@pytest.mark.clause("F12", "K21")
@pytest.mark.parametrize(
    ("delimiter", "payload"),
    [(b"\n", b"a\nb"), (b"\n", b"\n"), (b"--", b"a-"), (b"\r\n", b"\r\n")],
    ids=repr,
)
def test_a_line_that_contains_its_delimiter_is_not_sent_and_the_connection_stays(
    start, connect, delimiter, payload
):
    raised = []

    def received(socket, data):
        try:
            socket.send(payload)
        except ValueError as error:
            raised.append(error)
        socket.send(data)

    server = start(
        recorder(data_received=received), framing=hydrogen.LineFrameBuilder(delimiter=delimiter)
    )
    client = connect(server)
    client.echo(b"goes on" + delimiter)
    assert len(raised) == 1
    assert not isinstance(raised[0], hydrogen.HydrogenError)
    assert server.stats().messages_sent == 1


@pytest.mark.clause("F11")
def test_one_carriage_return_before_the_default_delimiter_is_dropped_and_no_other(start, connect):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=hydrogen.LineFrameBuilder))
    client.send(b"a\r\nb\r\r\n\r\nc\rd\n")
    assert client.receive(10) == b"a\nb\r\n\nc\rd\n"
    assert handler.messages() == [b"a", b"b\r", b"", b"c\rd"]


@pytest.mark.clause("F9")
def test_a_wrong_checksum_is_told_and_counted_as_a_protocol_error(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.Checksum32FrameBuilder)
    client = connect(server)
    client.send(checksum32(b"good") + checksum32(b"bad")[:-1] + b"\xff" + checksum32(b"never"))
    assert client.receive_until_end() == checksum32(b"good")
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.ChecksumMismatch
    assert handler.messages() == [b"good"]
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")


# --------------------------------------------------------------------------- builders of the user's


@pytest.mark.clause("F2", "F3", "F15", "H20")
@pytest.mark.parametrize(
    "kind",
    [hydrogen.ProtocolError, hydrogen.FrameTooLarge, type("Mine", (hydrogen.ProtocolError,), {})],
)
def test_a_protocol_error_of_a_builder_is_the_removal_error_itself(start, connect, kind):
    mine = kind("not what was agreed")

    class Strict(Netstrings):
        def from_bytes(self, buf):
            if buf.startswith(b"!"):
                raise mine
            return super().from_bytes(buf)

    handler = recorder(data_received=echo)
    server = start(handler, framing=Strict)
    client = connect(server)
    client.send(netstring(b"good") + b"!" + netstring(b"never"))
    assert client.receive_until_end() == netstring(b"good")
    client.close()
    assert handler.wait_removed() == [mine]
    assert handler.of("disconnected")[0].value is mine
    assert handler.messages() == [b"good"]
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")


@pytest.mark.clause("F8")
def test_one_builder_serves_all_connections(start, connect):
    handler = recorder(data_received=echo)
    builder = Netstrings()
    server = start(handler, framing=builder)
    clients = [connect(server) for _ in range(5)]
    wires = [netstring(b"message of %d" % number) for number in range(5)]
    for at in range(len(wires[0])):
        for client, wire in zip(clients, wires, strict=True):
            client.send(wire[at : at + 1])
    for client, wire in zip(clients, wires, strict=True):
        assert client.receive(len(wire)) == wire


@pytest.mark.clause("F16", "T10")
def test_who_needs_state_returns_a_stream_with_a_builder_of_its_own(start, connect):
    class Numbered(Netstrings):
        def __init__(self):
            self.number = 0

        def from_bytes(self, buf):
            frame = super().from_bytes(buf)
            if frame is not None:
                self.number += 1
                frame.content = b"%d:%b" % (self.number, frame.content)
            return frame

    server = start(
        recorder(new_connection=lambda fd: hydrogen.Plain(fd, Numbered()), data_received=echo)
    )
    for client in (connect(server), connect(server)):
        client.send(netstring(b"x") * 3)
        assert client.receive(18) == netstring(b"1:x") + netstring(b"2:x") + netstring(b"3:x")


def test_a_class_derived_from_a_built_in_builder_is_a_builder_of_the_user_s(start, connect):
    class Loud(hydrogen.LineFrameBuilder):
        def from_bytes(self, buf):
            frame = super().from_bytes(buf)
            return None if frame is None else hydrogen.LineFrame(frame.payload().upper())

        def frame(self, payload):
            return super().frame(payload + b"!")

    client = connect(start(recorder(data_received=echo), framing=Loud))
    client.send(b"one\ntwo\n")
    assert client.receive(10) == b"ONE!\nTWO!\n"


def test_a_builder_may_drop_bytes_that_are_no_frame(start, connect):
    """None, and bytes are gone: that is no frame yet, and it may be the next look that finds
    one.
    """

    class Commented(Netstrings):
        def from_bytes(self, buf):
            while buf.startswith(b"#"):
                end = buf.find(b"\n")
                if end < 0:
                    return None
                del buf[: end + 1]
            return super().from_bytes(buf) if buf else None

    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=Commented))
    client.send(b"# a comment\n")
    client.send(b"# another\n3:one,# and\n#\n3:two,# the last\n")
    assert client.receive(12) == b"3:one,3:two,"
    client.finish()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed


def test_a_large_message_of_a_builder_of_the_user_s(start, connect):
    payload = os.urandom(3_000_000)
    client = connect(start(recorder(data_received=echo), framing=Netstrings))
    with running(lambda: client.send(netstring(payload))):
        assert client.receive(len(netstring(payload))) == netstring(payload)


def test_many_messages_of_a_builder_of_the_user_s_in_one_burst(start, connect):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=Netstrings, read_budget=1000))
    messages = [b"%d" % number for number in range(3000)]
    wire = b"".join(map(netstring, messages))
    with running(lambda: client.send(wire)):
        assert client.receive(len(wire)) == wire
    assert handler.messages() == messages


@pytest.mark.clause("H18")
def test_after_close_no_further_frame_of_a_builder_of_the_user_s_is_delivered(start, connect):
    handler = recorder(data_received=lambda socket, data: (socket.send(data), socket.close()))
    client = connect(start(handler, framing=Netstrings))
    client.send(netstring(b"first") + netstring(b"second"))
    assert client.receive_until_end() == netstring(b"first")
    client.close()
    handler.wait_removed()
    assert handler.messages() == [b"first"]


@pytest.mark.clause("H19")
def test_after_pause_reading_no_further_frame_is_delivered_and_resume_needs_no_further_byte(
    start, connect, framing
):
    builder, sent, _ = framing
    handler = recorder(
        data_received=lambda socket, data: socket.pause_reading() if data == b"pause" else None
    )
    server = start(handler, framing=builder, max_threads=1)
    client, other = connect(server), connect(server)
    client.send(sent(b"pause") + sent(b"second") + sent(b"third"))
    handler.wait_for("data_received")
    other.send(sent(b"other"))  # the one worker has been elsewhere since
    handler.wait_for("data_received", 2)
    assert handler.messages() == [b"pause", b"other"]
    handler.of("data_received")[0].socket.resume_reading()
    handler.wait_for("data_received", 4)
    assert handler.messages() == [b"pause", b"other", b"second", b"third"]


@pytest.mark.clause("K6", "K18")
def test_messages_of_several_threads_do_not_interleave_with_a_builder_of_the_user_s(start, connect):
    handler = recorder(connected=None)
    client = connect(start(handler, framing=Netstrings))
    socket = handler.socket()

    def sender(name):
        for number in range(100):
            assert socket.send(b"%d %03d" % (name, number))

    with running(*(functools.partial(sender, name) for name in range(4))):
        wire = client.receive(400 * 8)
    got = [wire[at : at + 8] for at in range(0, len(wire), 8)]
    for name in range(4):
        assert [frame for frame in got if frame.startswith(b"5:%d" % name)] == [
            netstring(b"%d %03d" % (name, n)) for n in range(100)
        ]


# --------------------------------------------------------------------------------- row 29: builders


def misbehaving(receive):
    """A builder class that does `receive(buf)` where the buffer begins with "!", and works
    otherwise.
    """

    class Misbehaving(Netstrings):
        def from_bytes(self, buf):
            return receive(buf) if buf.startswith(b"!") else super().from_bytes(buf)

    return Misbehaving


def raising(error):
    """A function that raises `error`."""

    def function(*args):
        raise error

    return function


def removed_by_its_builder(start, connect, builder):
    """Send a good frame and then what `builder` fails at; its removal error, when a neighbour has
    been seen to be served still.
    """
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder)
    neighbour, client = connect(server), connect(server)
    neighbour.echo(netstring(b"before"))
    client.send(netstring(b"good") + b"!" + netstring(b"never"))
    assert client.receive_until_end() == netstring(b"good")
    client.close()
    (removal,) = handler.wait_removed()
    assert handler.of("disconnected")[0].value is removal
    assert handler.messages() == [b"before", b"good"]
    neighbour.echo(netstring(b"after"))
    wait_until(
        lambda: server.stats().removed == server.stats().removed_handler_error == 1, "it is counted"
    )
    return removal


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("mine"),
        OSError(5, "mine"),
        ConnectionResetError("mine"),
        ssl.SSLError(1, "mine"),
        EOFError("mine"),
        BlockingIOError("mine"),
        StopIteration("mine"),
        MemoryError("mine"),
        ValueError("mine"),
        SystemExit("mine"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["from_bytes", "payload"])
def test_f29_a_builder_that_raises_on_receipt_is_logged_and_its_connection_removed_with_that_error(
    start, connect, error_log, where, error
):
    receive = raising(error)
    if where == "payload":
        frame = type("Raises", (Netstring,), {"payload": raising(error)})(b"")
        receive = lambda buf: buf.clear() or frame  # noqa: E731
    removal = removed_by_its_builder(start, connect, misbehaving(receive))
    assert type(removal) is hydrogen.HandlerError
    assert removal.__cause__ is error
    (record,) = wait_until(error_log, "it is logged")
    assert type(error).__name__ in record.getMessage()
    assert "Misbehaving" in record.getMessage()
    assert record.exc_info[1] is error


@pytest.mark.parametrize(
    "nonsense",
    [b"bytes", "text", 7, True, [], Netstring, object(), memoryview(b"view")],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("consumes", [True, False], ids=["consumes", "leaves"])
def test_f29_a_builder_that_returns_no_frame_has_its_connection_removed(
    start, connect, error_log, nonsense, consumes
):
    removal = removed_by_its_builder(
        start, connect, misbehaving(lambda buf: (consumes and buf.clear()) or nonsense)
    )
    assert type(removal) is hydrogen.HandlerError
    assert "Misbehaving.from_bytes() returned" in str(removal)
    wait_until(error_log, "it is logged")


def with_view(buf):
    """Keep a view of the buffer, so that its size is pinned."""
    views.append(memoryview(buf))


views = []

NONSENSE = {
    "a frame, and nothing is taken": lambda buf: Netstring(b"again and again"),
    "the buffer grows": lambda buf: buf.extend(b"more"),
    "the buffer grows, and a frame": lambda buf: buf.extend(b"more") or Netstring(b"x"),
    "bytes are taken through a view": lambda buf: (with_view(buf), buf.clear(), Netstring(b"x"))[2],
}


@pytest.mark.parametrize("receive", NONSENSE.values(), ids=NONSENSE)
def test_f29_a_builder_that_does_to_its_buffer_what_it_must_not_has_its_connection_removed(
    start, connect, error_log, receive
):
    try:
        removal = removed_by_its_builder(start, connect, misbehaving(receive))
    finally:
        while views:
            views.pop().release()
    assert type(removal) is hydrogen.HandlerError
    wait_until(error_log, "it is logged")


def test_f29_a_builder_that_keeps_a_view_of_its_buffer_does_not_keep_the_rest_from_coming(
    start, connect, error_log
):
    handler = recorder()
    client = connect(start(handler, framing=misbehaving(with_view)))
    try:
        for _ in range(5):
            client.send(b"!")
        client.finish()
        assert client.receive_until_end() == b""
        assert isinstance(
            handler.wait_removed()[0], (hydrogen.IncompleteFrame, hydrogen.HandlerError)
        )
    finally:
        while views:
            views.pop().release()


@pytest.mark.parametrize(
    "payload",
    [None, "text", 7, [b"x"], bytearray(b"x"), memoryview(b"x")],
    ids=lambda value: type(value).__name__,
)
def test_f29_a_frame_whose_payload_is_not_bytes_has_its_connection_removed(
    start, connect, error_log, payload
):
    frame = type("Strange", (Netstring,), {"payload": lambda self: payload})(b"")
    removal = removed_by_its_builder(start, connect, misbehaving(lambda buf: buf.clear() or frame))
    assert type(removal) is hydrogen.HandlerError
    wait_until(error_log, "it is logged")


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("mine"), OSError(5, "mine"), BlockingIOError("mine")],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("where", ["frame", "to_bytes"])
def test_f29_what_a_builder_raises_on_sending_goes_to_the_caller_and_the_connection_stays(
    start, connect, where, error
):
    class Raises(Netstrings):
        def frame(self, payload):
            if payload != b"bad":
                return super().frame(payload)
            return (
                raising(error)()
                if where == "frame"
                else type("Frame", (Netstring,), {"to_bytes": raising(error)})(payload)
            )

    handler = recorder(connected=None)
    server = start(handler, framing=Raises)
    client = connect(server)
    socket = handler.socket()
    with pytest.raises(type(error)) as raised:
        socket.send(b"bad")
    assert raised.value is error
    assert socket.pending == 0
    assert server.stats().messages_sent == 0
    assert socket.send(b"good")
    assert client.receive(7) == netstring(b"good")


def test_f29_what_a_builder_raises_on_sending_in_a_callback_is_the_callback_s(
    start, connect, error_log
):
    error = ZeroDivisionError("mine")
    handler = recorder(data_received=echo)
    client = connect(
        start(handler, framing=type("Raises", (Netstrings,), {"frame": raising(error)}))
    )
    client.send(netstring(b"x"))
    assert client.receive_until_end() == b""
    client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert removal.__cause__ is error
    (record,) = wait_until(error_log, "it is logged")
    assert "on_data_received" in record.getMessage()


@pytest.mark.parametrize(
    "nonsense", [None, b"bytes", "text", 7, Netstring], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("where", ["frame", "to_bytes"])
def test_f29_a_builder_that_makes_nonsense_on_sending_raises_type_error_and_the_connection_stays(
    start, connect, where, nonsense
):
    if where == "to_bytes" and nonsense == b"bytes":
        nonsense = bytearray(nonsense)

    class Makes(Netstrings):
        def frame(self, payload):
            if payload != b"bad":
                return super().frame(payload)
            return (
                nonsense
                if where == "frame"
                else type("Frame", (Netstring,), {"to_bytes": lambda self: nonsense})(payload)
            )

    handler = recorder(connected=None)
    server = start(handler, framing=Makes)
    client = connect(server)
    with pytest.raises(TypeError, match=where):
        handler.socket().send(b"bad")
    assert server.stats().messages_sent == 0
    assert handler.socket().send(b"good")
    assert client.receive(7) == netstring(b"good")


def test_f29_a_builder_that_blocks_delays_nobody_else(start, connect, gate):
    go = gate()
    handler = recorder(data_received=echo)
    server = start(
        handler, framing=misbehaving(lambda buf: wait_event(go, "let go") or (buf.pop(0) and None))
    )
    blocked, free = connect(server), connect(server)
    blocked.send(b"!" + netstring(b"blocked"))
    for number in range(5):
        free.echo(netstring(b"%d" % number))
    go.set()
    blocked.send(netstring(b"more"))
    assert blocked.receive(10 + 7) == netstring(b"blocked") + netstring(b"more")


# ------------------------------------------------------------------- another framing per connection


def adopting(*makers, **hooks):
    """A recorder whose connections, in the order of accepting, are read as `makers` say: each gets
    the fd, and gives a stream or None.
    """
    left = iter(makers)
    return recorder(new_connection=lambda fd: next(left)(fd), **hooks)


@pytest.mark.clause("T9", "T10", "H6")
def test_each_connection_may_have_a_framing_of_its_own(start, connect):
    handler = adopting(
        lambda fd: hydrogen.Plain(fd, hydrogen.LineFrameBuilder()),
        lambda fd: hydrogen.Plain(fd, hydrogen.LengthFrameBuilder),
        lambda fd: hydrogen.Plain(fd, Netstrings()),
        lambda fd: hydrogen.Plain(fd),
        lambda fd: None,
        connected=None,
        data_received=echo,
    )
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    clients = []
    for wire in (
        line(b"text"),
        length_frame(b"text"),
        netstring(b"text"),
        b"text",
        simple(b"text"),
    ):
        clients.append((connect(server), wire))
        handler.wait_for("connected", len(clients))
    for client, wire in clients:
        client.send(wire + wire)
        assert client.receive(2 * len(wire)) == wire + wire
    *framed, raw, simple_framed = (handler.messages(call.id) for call in handler.of("connected"))
    assert framed == [[b"text", b"text"]] * 3
    assert b"".join(raw) == b"texttext"
    assert simple_framed == [b"text", b"text"]


@pytest.mark.clause("T9", "H14", "K17")
@pytest.mark.parametrize("of", ["fd", "socket"])
def test_an_adopted_connection_lives_and_ends_as_any_other(start, connect, of):
    def adopt(fd):
        return hydrogen.Plain(
            fd if of == "fd" else stdlib_socket.socket(fileno=fd), hydrogen.LineFrameBuilder()
        )

    handler = recorder(
        new_connection=adopt,
        connected=None,
        data_received=echo,
        disconnected=lambda socket, err: os.fstat(socket.fileno()),
    )
    server = start(handler)
    client = connect(server)
    client.echo(b"line\n")
    assert server.connections == [handler.socket()]
    fd = handler.of("new_connection")[0].fd
    assert handler.socket().fileno() == fd
    assert handler.socket().peername == client.name
    client.finish()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    assert handler.names() == [
        "on_new_connection",
        "on_connected",
        "on_data_received",
        "on_disconnected",
        "on_connection_removed",
    ]
    assert handler.of("connection_removed")[0].fd == fd


@pytest.mark.clause("T9", "K7", "K8")
def test_an_adopted_connection_is_flushed_and_closed_by_the_server(start, connect):
    reply = os.urandom(3_000_000)
    handler = recorder(
        new_connection=lambda fd: hydrogen.Plain(fd, hydrogen.LengthFrameBuilder(max_size=4 << 20)),
        data_received=lambda socket, data: (socket.send(reply), socket.close()),
    )
    client = connect(start(handler), receive_buffer=65_536)
    client.send(length_frame(b"x"))
    assert client.receive_until_end() == length_frame(reply)
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("T1", "T6")
def test_a_class_derived_from_plain_is_a_stream_of_the_user_s(start, connect):
    ended = []

    class Loud(hydrogen.Plain):
        def recv(self):
            return [message.upper() for message in super().recv()]

        def close(self):
            ended.append("close")
            super().close()

    handler = recorder(
        new_connection=lambda fd: Loud(
            stdlib_socket.socket(fileno=fd), hydrogen.LineFrameBuilder(max_size=8 << 20)
        ),
        connected=None,
        data_received=echo,
    )
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    client = connect(server)
    client.send(b"one\ntwo\n")
    assert client.receive(8) == b"ONE\nTWO\n"
    message = b"l" * 5_000_000
    with running(lambda: handler.socket().send(message)):
        assert client.receive(len(message) + 1) == message + b"\n"
    client.finish()
    assert client.receive_until_end() == b""
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert ended == ["close"]


@pytest.mark.clause("T12", "H16")
def test_a_stream_made_of_another_fd_is_refused_and_that_fd_left_alone(start, connect, error_log):
    left, right = stdlib_socket.socketpair()
    with left, right:
        handler = recorder(
            new_connection=lambda fd: hydrogen.Plain(left.fileno(), hydrogen.LineFrameBuilder())
        )
        client = connect(start(handler))
        assert client.at_end() in ("end", "reset")
        client.close()
        (removal,) = handler.wait_removed()
        assert type(removal) is hydrogen.HandlerError
        assert type(removal.__cause__) is ValueError
        wait_until(error_log, "it is logged")
        right.sendall(b"still mine")
        assert left.recv(100) == b"still mine"


@pytest.mark.clause("T12")
def test_a_stream_that_is_returned_for_a_second_connection_is_refused(start, connect, error_log):
    streams = []

    def adopt(fd):
        streams.append(streams[0] if streams else hydrogen.Plain(fd, hydrogen.LineFrameBuilder()))
        return streams[0]

    handler = recorder(new_connection=adopt, data_received=echo)
    server = start(handler)
    first = connect(server)
    first.echo(b"mine\n")
    second = connect(server)
    assert second.at_end() in ("end", "reset")
    second.close()
    assert type(handler.wait_removed()[0]) is hydrogen.HandlerError
    first.echo(b"mine still\n")
    wait_until(error_log, "it is logged")


@pytest.mark.clause("H6")
def test_a_plain_that_is_made_and_dropped_leaves_the_connection_to_the_server(start, connect):
    def look(fd):
        hydrogen.Plain(fd, hydrogen.LineFrameBuilder())

    client = connect(
        start(
            recorder(new_connection=look, data_received=echo), framing=hydrogen.SimpleFrameBuilder
        )
    )
    client.echo(simple(b"mine"))


# ----------------------------------------------------------------------- used by hand, then adopted


def login(fd, **options):
    """Read a line by hand, answer it, and give the connection to the server."""
    stream = hydrogen.Plain(fd, hydrogen.LineFrameBuilder(**options))
    user = stream.b_recv(timeout=30).payload()
    stream.b_send(hydrogen.LineFrame(b"welcome " + user))
    return stream


@pytest.mark.clause("T11", "T14")
def test_what_was_read_by_hand_and_not_asked_for_is_delivered_first_and_without_a_further_byte(
    start, connect
):
    handler = recorder(new_connection=login, data_received=echo)
    client = connect(start(handler))
    client.send(b"user\none\ntwo\nthr")
    assert client.receive(13 + 8) == b"welcome user\none\ntwo\n"
    client.send(b"ee\n")
    assert client.receive(6) == b"three\n"
    assert handler.messages() == [b"one", b"two", b"three"]


@pytest.mark.clause("T11", "C19")
@pytest.mark.parametrize(
    "builder",
    [hydrogen.LineFrameBuilder(), type("Lines", (hydrogen.LineFrameBuilder,), {})()],
    ids=["built-in", "user"],
)
def test_however_much_was_read_by_hand_it_is_delivered_without_a_further_byte(
    start, connect, gate, builder
):
    go, messages = gate(), [b"%d" % number for number in range(5000)]

    def slowly(fd):
        wait_event(go, "the client has sent all")
        stream = hydrogen.Plain(fd, builder)
        assert stream.b_recv(timeout=30).payload() == b"user"
        return stream

    handler = recorder(new_connection=slowly, data_received=echo)
    client = connect(start(handler, read_budget=100))
    client.send(b"".join(map(line, [b"user", *messages])))
    go.set()
    for message in messages:
        assert client.receive(len(message) + 1) == line(message)
    assert handler.messages() == messages


@pytest.mark.clause("T11")
def test_what_was_read_by_hand_is_delivered_without_framing_too(start, connect):
    def read_some(fd):
        stream = hydrogen.Plain(fd)
        stream.b_send(hydrogen.ChunkFrame(stream.b_recv(timeout=30).payload()))
        return stream

    handler = recorder(new_connection=read_some, data_received=echo)
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    client.echo(b"by hand")
    client.echo(b"by the server")
    assert handler.data() == b"by the server"


@pytest.mark.clause("T11")
def test_what_was_read_by_hand_waits_for_on_connected_and_heeds_a_pause(start, connect):
    handler = recorder(
        new_connection=login, connected=lambda socket: socket.pause_reading(), data_received=echo
    )
    server = start(handler, max_threads=1)
    client = connect(server)
    client.send(b"user\none\n")
    assert client.receive(13) == b"welcome user\n"
    handler.wait_for("connected")
    other = connect(server)
    other.send(b"other\n")
    assert other.receive(14) == b"welcome other\n"  # the one worker has been elsewhere since
    assert handler.messages() == []
    handler.socket().resume_reading()
    assert client.receive(4) == b"one\n"
    assert handler.names()[:2] == ["on_new_connection", "on_connected"]


@pytest.mark.clause("T11", "H10")
@pytest.mark.parametrize(
    ("rest", "error"),
    [(b"one\n", hydrogen.PeerClosed), (b"one\ntw", hydrogen.IncompleteFrame)],
    ids=["whole", "partial"],
)
def test_what_was_read_by_hand_is_delivered_before_an_end_that_has_come_already(
    start, connect, gate, rest, error
):
    go = gate()

    def slowly(fd):
        wait_event(go, "the client has sent all and closed")
        return login(fd)

    handler = recorder(new_connection=slowly)
    client = connect(start(handler))
    client.send(b"user\n" + rest)
    client.finish()
    go.set()
    assert client.receive_until_end() == b"welcome user\n"
    assert type(handler.wait_removed()[0]) is error
    assert handler.messages() == [b"one"]


@pytest.mark.clause("T11", "H20")
def test_a_bad_frame_that_was_read_by_hand_ends_the_connection_after_what_came_before_it(
    start, connect
):
    handler = recorder(new_connection=lambda fd: login(fd, max_size=10), data_received=echo)
    client = connect(start(handler))
    client.send(b"user\none\n" + b"x" * 20 + b"\nnever\n")
    assert client.receive_until_end() == b"welcome user\none\n"
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.FrameTooLarge
    assert handler.messages() == [b"one"]


@pytest.mark.clause("T11", "T13")
def test_what_was_not_written_by_hand_is_written_first(start, connect):
    first, streams = os.urandom(8_000_000), []

    def greet(fd):
        streams.append(hydrogen.Plain(fd, hydrogen.LengthFrameBuilder(max_size=16 << 20)))
        with pytest.raises(BlockingIOError):
            streams[0].nb_send(hydrogen.LengthFrame(first))
        return streams[0]

    handler = recorder(
        new_connection=greet, connected=lambda socket: socket.send(b"second"), data_received=echo
    )
    client = connect(start(handler), receive_buffer=65_536)
    handler.wait_for("connected")
    client.send(length_frame(b"third"))  # which is not read before the first has left
    expected = length_frame(first) + length_frame(b"second") + length_frame(b"third")
    assert client.receive(len(expected)) == expected


@pytest.mark.parametrize("handoff", ["inline", "eager"])
def test_what_was_not_written_by_hand_leaves_also_where_the_kernel_raises_no_edge_unasked(
    start, connect, tmp_path, handoff
):
    """A Unix socket must be asked for the edge of OUT, so it has to be polled before anything is
    sent.
    """
    first = os.urandom(600_000)

    def greet(fd):
        stream = hydrogen.Plain(fd)
        with pytest.raises(BlockingIOError):
            stream.nb_send(hydrogen.ChunkFrame(first))
        return stream

    handler = recorder(new_connection=greet, connected=None)
    client = connect(start(handler, path=str(tmp_path / "socket"), handoff=handoff))
    handler.wait_for("connected")
    assert client.receive(len(first)) == first


@pytest.mark.clause("H7")
def test_a_connection_may_be_refused_after_it_was_read_by_hand(start, connect):
    def refuse(fd):
        login(fd)
        raise hydrogen.Reject

    handler = recorder(new_connection=refuse, connected=None)
    client = connect(start(handler))
    client.send(b"user\none\n")
    assert client.at_end() in ("end", "reset")
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.Reject
    assert handler.names() == ["on_new_connection", "on_connection_removed"]


@pytest.mark.clause("H16", "T14")
def test_an_end_that_is_met_by_hand_and_not_caught_is_the_callback_s_error(
    start, connect, error_log
):
    handler = recorder(new_connection=login)
    client = connect(start(handler))
    client.finish()
    assert client.at_end() in ("end", "reset")
    client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert type(removal.__cause__) is EOFError
    wait_until(error_log, "it is logged")
