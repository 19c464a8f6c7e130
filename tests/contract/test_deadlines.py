"""open_timeout and frame_timeout: what they count, from when, and whom they do not concern. Row 8:
frames that are never finished.

Nothing here measures time. That a deadline has passed is seen by another connection, which began
later and was removed by one as long.
"""

import functools
import os
import socket as stdlib_socket

import pytest
from certificates import client_context, server_context
from proxy_headers import v1
from support import (
    TlsClient,
    checksum32,
    drip,
    echo,
    length_frame,
    line,
    recorder,
    running,
    simple,
    timed_out,
    wait_event,
    wait_until,
    websocket,
)

import hydrogen

pytestmark = pytest.mark.slow

SHORT = 0.3
"""Seconds of the deadlines that are to pass."""

AMPLE = 1.0
"""Seconds of those within which something has to be done."""


class Semicolons(hydrogen.FrameBuilder):
    """A builder of the user's."""

    def from_bytes(self, buf):
        end = buf.find(b";")
        if end < 0:
            return None
        frame = hydrogen.LineFrame(bytes(buf[:end]), b";")
        del buf[: end + 1]
        return frame

    def frame(self, payload):
        return hydrogen.LineFrame(payload, b";")


semicolon = functools.partial(line, delimiter=b";")

FRAMINGS = {
    "simple": (hydrogen.SimpleFrameBuilder, simple),
    "checksum32": (hydrogen.Checksum32FrameBuilder, checksum32),
    "length": (hydrogen.LengthFrameBuilder, length_frame),
    "line": (hydrogen.LineFrameBuilder, line),
    "websocket": (hydrogen.WebSocketFrameBuilder, websocket),
    "user": (Semicolons, semicolon),
}


@pytest.fixture(params=FRAMINGS)
def framing(request):
    return FRAMINGS[request.param]


# ------------------------------------------------------------------------------------ frame_timeout


@pytest.mark.clause("C25", "H20", "H25")
def test_f08_a_frame_that_is_begun_and_never_finished_is_removed_at_frame_timeout(
    start, connect, framing
):
    builder, frame = framing
    handler = recorder(eof=None, data_received=echo)
    server = start(handler, framing=builder, frame_timeout=SHORT)
    neighbour, client = connect(server), connect(server)
    client.send(frame(b"whole") + frame(b"never finished")[:-1])
    timed_out(handler, "frame_timeout")
    assert handler.messages() == [b"whole"]
    assert handler.of("disconnected")[0].value is handler.of("connection_removed")[0].value
    assert client.at_end() == "reset"
    neighbour.echo(frame(b"still here"))
    wait_until(lambda: server.stats().removed_frame_timeout == 1, "it is counted")


@pytest.mark.clause("C25")
@pytest.mark.parametrize(
    "begun", [b"\x01", b"\x01\x00", b"\x01\x7f\xff"], ids=["first byte", "half a header", "header"]
)
def test_f08_a_frame_of_which_not_even_the_header_came_is_removed_at_frame_timeout(
    start, connect, begun
):
    handler = recorder()
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder, frame_timeout=SHORT))
    client.send(begun)
    timed_out(handler, "frame_timeout")
    assert client.at_end() == "reset"


@pytest.mark.clause("C25")
@pytest.mark.parametrize(
    ("builder", "beginning"),
    [
        (hydrogen.SimpleFrameBuilder, b"\x01\xff\xff"),
        (hydrogen.LengthFrameBuilder, b"\x00\x0f\xff\xff"),
        (hydrogen.LineFrameBuilder, b"a"),
        (Semicolons, b"a"),
    ],
    ids=["simple", "length", "line", "user"],
)
def test_f08_a_frame_that_is_dripped_is_removed_at_frame_timeout(
    start, connect, builder, beginning
):
    handler = recorder()
    client = connect(start(handler, framing=builder, frame_timeout=SHORT))
    client.send(beginning)
    drip(client, handler)
    timed_out(handler, "frame_timeout")
    assert handler.messages() == []


@pytest.mark.clause("C25", "C22")
def test_f08_a_frame_that_is_dripped_over_tls_is_removed_at_frame_timeout(start, connect):
    handler = recorder()
    client = connect(
        start(handler, framing=hydrogen.LineFrameBuilder, ssl=server_context(), frame_timeout=SHORT)
    )
    tls = TlsClient(client, client_context()).handshake()
    tls.send(b"whole\nand not")

    class Encrypting:
        send = tls.send

    drip(Encrypting, handler, b".")
    timed_out(handler, "frame_timeout")
    assert handler.messages() == [b"whole"]


@pytest.mark.clause("C25")
def test_a_finished_frame_restarts_the_clock(start, connect, framing):
    """A frame is unfinished at every moment, but none for long; meanwhile two others, one after the
    other, are removed.
    """
    builder, frame = framing
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder, frame_timeout=AMPLE)
    client = connect(server)
    wire, count = frame(b"x"), 0
    client.send(wire[:-1])
    for removals in (1, 2):
        connect(server).send(wire[:-1])
        while len(handler.of("connection_removed")) < removals:
            client.send(wire[-1:] + wire[:-1])
            assert client.receive(len(wire)) == wire
            count += 1
    timed_out(handler, "frame_timeout", 2)
    client.send(wire[-1:])
    assert client.receive(len(wire)) == wire
    assert handler.messages() == [b"x"] * (count + 1)


@pytest.mark.clause("C25")
def test_the_time_between_two_frames_does_not_count(start, connect, framing):
    builder, frame = framing
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder, frame_timeout=SHORT)
    client = connect(server)
    client.echo(frame(b"x"))
    connect(server).send(frame(b"x")[:-1])
    timed_out(handler, "frame_timeout")
    client.echo(frame(b"y"))


@pytest.mark.clause("C25", "H19")
def test_the_time_for_which_the_handler_pauses_reading_does_not_count(start, connect, framing):
    builder, frame = framing
    handler = recorder(
        data_received=lambda socket, data: socket.pause_reading() if data == b"pause" else None
    )
    server = start(handler, framing=builder, frame_timeout=SHORT)
    client = connect(server)
    client.send(frame(b"pause") + frame(b"later")[:-1])
    handler.wait_for("data_received")
    connect(server).send(frame(b"never finished")[:-1])
    timed_out(handler, "frame_timeout")
    client.send(frame(b"later")[-1:])
    handler.socket().resume_reading()
    handler.wait_for("data_received", 2)
    assert handler.messages() == [b"pause", b"later"]


@pytest.mark.clause("C25", "H19")
def test_after_a_pause_the_clock_runs_again(start, connect):
    paused = []
    handler = recorder(data_received=lambda socket, data: paused.append(socket.pause_reading()))
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, frame_timeout=SHORT)
    client = connect(server)
    client.send(simple(b"pause") + simple(b"never finished")[:-1])
    wait_until(lambda: paused, "reading is paused")
    handler.socket().resume_reading()
    timed_out(handler, "frame_timeout")
    assert client.at_end() == "reset"


@pytest.mark.clause("C25", "C16")
def test_the_time_for_which_the_peer_does_not_read_its_replies_does_not_count(start, connect):
    reply = os.urandom(6_000_000)
    handler = recorder(
        data_received=lambda socket, data: socket.send(reply if data == b"large" else data)
    )
    builder = hydrogen.LengthFrameBuilder(max_size=8 << 20)
    buffer = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 16_384)]
    server = start(
        handler,
        framing=builder,
        frame_timeout=SHORT,
        write_buffer_limits=(1000, 5000),
        socket_options=buffer,
    )
    client = connect(server, receive_buffer=4096)
    client.send(length_frame(b"large") + length_frame(b"later")[:-1])
    wait_until(lambda: handler.calls and handler.socket().pending > 5000, "reading is paused")
    connect(server).send(length_frame(b"never finished")[:-1])
    timed_out(handler, "frame_timeout")
    client.send(length_frame(b"later")[-1:])
    assert client.receive(len(reply) + 4) == length_frame(reply)
    assert client.receive(9) == length_frame(b"later")


@pytest.mark.clause("C25")
def test_what_has_arrived_in_time_is_looked_at_before_the_clock(start, connect, gate, framing):
    """The handler is busy with one frame for longer than the timeout; meanwhile the rest of the
    next one has come.
    """
    builder, frame = framing
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: wait_event(go, "let go") if data == b"block" else None
    )
    server = start(handler, framing=builder, frame_timeout=SHORT)
    client = connect(server)
    client.send(frame(b"block") + frame(b"later")[:-1])
    handler.wait_for("data_received")
    client.send(frame(b"later")[-1:])
    connect(server).send(frame(b"never finished")[:-1])
    timed_out(handler, "frame_timeout")
    go.set()
    handler.wait_for("data_received", 2)
    assert handler.messages() == [b"block", b"later"]


@pytest.mark.clause("C25")
def test_what_has_arrived_in_time_is_looked_at_before_the_clock_also_when_all_workers_were_busy(
    start, connect, gate, framing
):
    """The deadline passes while there is nobody to read; it is known to have passed from a server
    that has nothing else to do.
    """
    builder, frame = framing
    first, go = gate(), gate()
    busy = {b"first": first, b"block": go}
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(busy[data], "let go") if data in busy else None
        )
    )
    server = start(handler, framing=builder, frame_timeout=SHORT, max_threads=1)
    client, blocker = connect(server), connect(server)
    client.send(frame(b"first") + frame(b"later")[:-1])
    handler.wait_for("data_received")
    blocker.send(frame(b"block"))
    wait_until(lambda: blocker.unacknowledged() == 0, "the server's kernel has it")
    first.set()
    handler.wait_for("data_received", 2)
    client.send(frame(b"later")[-1:])
    watch = recorder()
    connect(start(watch, framing=builder, frame_timeout=SHORT)).send(frame(b"never finished")[:-1])
    timed_out(watch, "frame_timeout")
    go.set()
    handler.wait_for("data_received", 3)
    assert handler.messages() == [b"first", b"block", b"later"]


@pytest.mark.clause("C25", "C19")
def test_what_has_arrived_in_time_is_looked_at_before_the_clock_however_many_turns_it_takes(
    start, connect, gate, tmp_path
):
    """The rest of a frame of 100,000 bytes, more than one turn may read, waits in the kernel when
    the handler is done.
    """
    first, go = gate(), gate()
    busy = {b"first": first, b"block": go}
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(busy[data], "let go") if data in busy else None
        )
    )
    path = str(tmp_path / "socket")  # where the kernel holds what was sent, whatever the window
    server = start(
        handler,
        framing=hydrogen.LengthFrameBuilder,
        frame_timeout=SHORT,
        max_threads=1,
        read_budget=1000,
        path=path,
    )
    client, blocker = connect(server), connect(server)
    later = length_frame(b"l" * 100_000)
    client.send(length_frame(b"first") + later[:10])
    handler.wait_for("data_received")
    blocker.send(length_frame(b"block"))
    first.set()
    handler.wait_for("data_received", 2)
    client.send(later[10:])
    watch = recorder()
    connect(start(watch, framing=hydrogen.LengthFrameBuilder, frame_timeout=SHORT)).send(b"\0")
    timed_out(watch, "frame_timeout")
    go.set()
    handler.wait_for("data_received", 3)
    assert handler.messages() == [b"first", b"block", later[4:]]


@pytest.mark.clause("C25", "K8")
def test_a_connection_that_is_closing_has_no_frame_timeout(start, connect):
    """It is flushed still when the deadline passes, which the frame that had begun would have
    had.
    """
    reply = os.urandom(6_000_000)
    handler = recorder(data_received=lambda socket, data: (socket.send(reply), socket.close()))
    builder = hydrogen.LengthFrameBuilder(max_size=8 << 20)
    server = start(handler, framing=builder, frame_timeout=SHORT)
    client = connect(server, receive_buffer=4096)
    client.send(length_frame(b"x") + length_frame(b"never finished")[:-1])
    handler.wait_for("data_received")
    connect(server).send(length_frame(b"never finished")[:-1])
    timed_out(handler, "frame_timeout")
    assert client.receive_until_end() == length_frame(reply)
    client.close()
    assert type(handler.wait_removed(2)[1]) is hydrogen.LocalClosed


@pytest.mark.clause("C26")
def test_frame_timeout_none_is_no_limit(start, connect, framing):
    builder, frame = framing
    handler, watch = recorder(data_received=echo), recorder()
    client = connect(start(handler, framing=builder, frame_timeout=None))
    client.send(frame(b"whole") + frame(b"later")[:-1])
    handler.wait_for("data_received")
    connect(start(watch, framing=builder, frame_timeout=SHORT)).send(frame(b"never finished")[:-1])
    timed_out(watch, "frame_timeout")
    client.send(frame(b"later")[-1:])
    assert client.receive(len(frame(b"whole") + frame(b"later"))) == frame(b"whole") + frame(
        b"later"
    )


class Lines(hydrogen.Stream):
    """A stream of the user's: what is unfinished is its own affair."""

    def __init__(self, fd):
        self.fd = fd
        self.read = b""

    def recv(self):
        part = os.read(self.fd, 1000)
        if not part:
            raise EOFError
        *lines, self.read = (self.read + part).split(b"\n")
        return lines

    def send(self, buf):
        os.write(self.fd, buf + b"\n")

    def shutdown(self):
        pass

    def fileno(self):
        return self.fd


@pytest.mark.clause("C25", "C8")
@pytest.mark.parametrize("who", [hydrogen.Plain, Lines], ids=["without framing", "a user's stream"])
def test_there_is_no_frame_timeout_without_frames_of_ours(start, connect, who):
    """Of two connections of one server, the one that has frames, and was begun later, is
    removed.
    """
    makers = iter([who, lambda fd: hydrogen.Plain(fd, hydrogen.LineFrameBuilder())])
    handler = recorder(
        new_connection=lambda fd: next(makers)(fd), connected=None, data_received=echo
    )
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, frame_timeout=SHORT)
    client = connect(server)
    handler.wait_for("connected")
    client.send(b"first\nand not")
    assert client.receive(6) == b"first\n"
    other = connect(server)
    handler.wait_for("connected", 2)
    other.send(b"never finished")
    timed_out(handler, "frame_timeout")
    client.send(b" the last\n")
    expected = b"and not the last\n"
    assert client.receive(len(expected)) == expected


@pytest.mark.clause("C25", "T10")
def test_an_adopted_stream_with_a_framing_has_the_frame_timeout(start, connect):
    handler = recorder(new_connection=lambda fd: hydrogen.Plain(fd, hydrogen.LineFrameBuilder()))
    client = connect(start(handler, frame_timeout=SHORT))
    client.send(b"never finished")
    timed_out(handler, "frame_timeout")


@pytest.mark.clause("C25", "T11")
def test_a_frame_whose_beginning_was_read_by_hand_has_the_frame_timeout(start, connect):
    def login(fd):
        stream = hydrogen.Plain(fd, hydrogen.LineFrameBuilder())
        stream.b_recv(timeout=30)
        return stream

    handler = recorder(new_connection=login)
    client = connect(start(handler, frame_timeout=SHORT))
    client.send(b"user\nnever finished")
    timed_out(handler, "frame_timeout")


@pytest.mark.clause("C24", "C25", "T11")
@pytest.mark.parametrize("kind", ["plain", "secure"])
def test_a_frame_that_was_begun_by_hand_behind_a_proxy_header_does_not_have_the_header_s_deadline(
    start, connect, kind
):
    header, context = v1("192.0.2.1", "198.51.100.2"), server_context()

    def login(fd):
        if kind == "secure":
            stream = hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context)
        else:
            stream = hydrogen.Plain(fd, hydrogen.LineFrameBuilder())
        assert stream.b_recv(timeout=30).payload() == b"user"
        return stream

    handler = recorder(new_connection=login, connected=None, data_received=echo)
    options = {"proxy_protocol": "v1", "proxy_allow_from": ["127.0.0.0/8"]}
    server = start(handler, open_timeout=AMPLE, frame_timeout=None, **options)
    client = connect(server)
    client.send(header[:10])
    wait_until(
        lambda: server.stats().bytes_received == 10,
        "a part of the header is read, and has its deadline",
    )
    client.send(header[10:])
    talker = TlsClient(client, client_context()).handshake() if kind == "secure" else client
    talker.send(b"user\nbegun")
    handler.wait_for("connected")
    connect(server)
    timed_out(handler, "open_timeout")
    talker.send(b" and finished\n")
    assert talker.receive(19) == b"begun and finished\n"


# ------------------------------------------------------------------------------------- open_timeout
# (handshakes that are silent or dripped are row 32, in test_faults_tls.py)


@pytest.mark.clause("C24")
def test_open_timeout_is_over_when_the_handshake_is_done(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context(), open_timeout=AMPLE)
    client = TlsClient(connect(server), client_context()).handshake()
    handler.wait_for("connected")
    connect(server)
    timed_out(handler, "open_timeout")
    client.echo(b"still here")


@pytest.mark.clause("C24", "H22")
def test_on_connected_may_take_longer_than_open_timeout(start, connect, gate):
    go = gate()
    handler = recorder(connected=lambda socket: wait_event(go, "let go"), data_received=echo)
    server = start(handler, ssl=server_context(), open_timeout=AMPLE)
    client = TlsClient(connect(server), client_context()).handshake()
    handler.wait_for("connected")
    connect(server)
    timed_out(handler, "open_timeout")
    go.set()
    client.echo(b"still here")


@pytest.mark.clause("C24", "T10")
def test_open_timeout_is_for_connections_with_tls_and_for_no_other(start, connect):
    """Of two connections of one server, the one with TLS, though it came later, is removed; neither
    has said anything.
    """
    makers = iter([lambda fd: None, lambda fd: hydrogen.Secure(fd, None, server_context())])
    handler = recorder(
        new_connection=lambda fd: next(makers)(fd), connected=None, data_received=echo
    )
    server = start(handler, open_timeout=SHORT)
    client = connect(server)
    handler.wait_for("connected")
    silent = connect(server)
    timed_out(handler, "open_timeout")
    assert silent.at_end() == "reset"
    client.echo(b"still here")


@pytest.mark.clause("C24", "T11")
def test_a_handshake_that_was_begun_by_hand_and_goes_on_no_more_is_removed_at_open_timeout(
    start, connect
):
    context, begun = server_context(), []

    def begin(fd):
        stream = hydrogen.Secure(fd, None, context)
        with pytest.raises(TimeoutError):
            stream.b_recv(timeout=0.01)
        begun.append(fd)
        return stream

    handler = recorder(new_connection=begin, connected=None)
    client = connect(start(handler, open_timeout=SHORT))
    client.send(TlsClient(client, client_context()).step())
    timed_out(handler, "open_timeout")
    assert len(begun) == 1
    assert handler.of("connected") == []


@pytest.mark.clause("C24", "H6")
def test_open_timeout_counts_from_the_end_of_on_new_connection(start, connect, gate):
    """The first connection is held there until the second, which came later, is removed; and then
    has all the time.
    """
    go, held, first = gate(), gate(), iter([True])

    def new(fd):
        if next(first, False):
            held.set()
            wait_event(go, "let go")

    handler = recorder(new_connection=new, connected=None, data_received=echo)
    server = start(handler, ssl=server_context(), open_timeout=AMPLE)
    client = TlsClient(connect(server), client_context())
    wait_event(held, "the first one is held")
    connect(server)
    timed_out(handler, "open_timeout")
    with running(client.handshake):
        go.set()
    client.echo(b"in time")


@pytest.mark.clause("C26")
def test_open_timeout_none_is_no_limit(start, connect):
    handler, watch = recorder(data_received=echo), recorder()
    server = start(handler, ssl=server_context(), open_timeout=None)
    client = TlsClient(connect(server), client_context())
    wait_until(lambda: server.stats().connections == 1, "it is accepted")
    connect(start(watch, ssl=server_context(), open_timeout=SHORT))
    timed_out(watch, "open_timeout")
    client.handshake().echo(b"no hurry")
