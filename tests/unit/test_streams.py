"""What `Plain` and `Secure` have in common, by hand: non-blocking, blocking, from two threads, and
what an engine takes over; no server.

The other end is a raw socket, so that a test compares two opinions; where both ends are hydrogen's,
the wire was compared in another test.
"""

import contextlib
import functools
import gc
import os
import select
import signal
import socket
import struct
import threading

import certificates
import pytest
from by_hand import (
    connected,
    is_broken,
    name_of,
    payloads,
    read_all,
    readable,
    reset,
    secure,
    send_rest,
    shake_hands,
    waiting_bytes,
)
from certificates import VERSIONS
from support import PATIENCE, child, finish, running, simple, wait_event, wait_until

import hydrogen
from hydrogen.client import Client
from hydrogen.frame import ChunkFrameBuilder
from hydrogen.plain import READS
from hydrogen.stream import StreamAdapter


@pytest.fixture
def after():
    """What is to be closed after the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(after):
    """See `connected`."""

    return functools.partial(connected, after)


@pytest.fixture(params=[None, *VERSIONS], ids=["plain", *map(name_of, VERSIONS)])
def streams(request, pair, after):
    """`streams(framing)`: both ends of a connection, the server's side first; `version` of TLS,
    None: none.
    """

    def streams(framing=None, **options):
        ends = pair(**options)
        if request.param is None:
            made = [hydrogen.Plain(end, framing) for end in ends]
        else:
            made = [
                secure(end, framing, version=request.param, server_side=end is ends[0])
                for end in ends
            ]
        for stream in made:
            after.callback(stream.close)
        return made

    streams.version = request.param
    return streams


# ------------------------------------------------------------------------- every framing, both ways


def websocket(payload):
    """An unmasked binary frame of RFC 6455, 5.2."""
    n = len(payload)
    return b"\x82" + (struct.pack(">B", n) if n < 126 else struct.pack(">BH", 126, n)) + payload


FRAMINGS = {
    "none": (None, hydrogen.ChunkFrame, lambda payload: payload),
    "simple": (hydrogen.SimpleFrameBuilder, hydrogen.SimpleFrame, simple),
    "checksum32": (
        hydrogen.Checksum32FrameBuilder,
        hydrogen.Checksum32Frame,
        lambda payload: struct.pack(">I", len(payload)) + payload + struct.pack(">I", sum(payload)),
    ),
    "length": (
        hydrogen.LengthFrameBuilder,
        hydrogen.LengthFrame,
        lambda payload: struct.pack(">I", len(payload)) + payload,
    ),
    "length-2-little": (
        hydrogen.LengthFrameBuilder(width=2, byteorder="little"),
        lambda payload: hydrogen.LengthFrame(payload, 2, "little"),
        lambda payload: struct.pack("<H", len(payload)) + payload,
    ),
    "line": (hydrogen.LineFrameBuilder, hydrogen.LineFrame, lambda payload: payload + b"\n"),
    "line-nul": (
        hydrogen.LineFrameBuilder(delimiter=b"\0\0"),
        lambda payload: hydrogen.LineFrame(payload, b"\0\0"),
        lambda payload: payload + b"\0\0",
    ),
    "websocket": (
        hydrogen.WebSocketFrameBuilder,
        lambda payload: hydrogen.WebSocketFrame(payload, 2),
        websocket,
    ),
}

MESSAGES = [b"one", b"", b"x" * 125, b"y" * 126, b"three", b"z" * 40_000, b"last"]

framings = pytest.mark.parametrize(("framing", "frame", "wire"), FRAMINGS.values(), ids=FRAMINGS)
framed = pytest.mark.parametrize(
    ("framing", "frame", "wire"), list(FRAMINGS.values())[1:], ids=list(FRAMINGS)[1:]
)


@pytest.mark.clause("T13", "F4")
@framings
@pytest.mark.parametrize("how", ["nb_send", "b_send", "send"])
def test_what_is_sent_is_the_frame_on_the_wire(pair, framing, frame, wire, how):
    ours, peer = pair()
    stream = hydrogen.Plain(ours, framing)
    for message in MESSAGES:
        if how == "send" and not message:
            continue  # that goes on with what is kept
        getattr(stream, how)(message if how == "send" else frame(message))
        if expected := wire(message):
            assert peer.recv(len(expected), socket.MSG_WAITALL) == expected
    assert not readable(peer)


@pytest.mark.clause("T13", "F7")
@framed
@pytest.mark.parametrize("step", [1, 7, 1 << 20], ids=["byte by byte", "7 bytes", "all at once"])
def test_nb_recv_gives_each_frame_once_it_is_complete(pair, framing, frame, wire, step):
    ours, peer = pair()
    stream = hydrogen.Plain(ours, framing)
    messages = [message for message in MESSAGES if len(message) < 1000]
    data = b"".join(map(wire, messages))
    found = []
    for start in range(0, len(data), step):
        peer.sendall(data[start : start + step])
        found += stream.nb_recv()
        complete = len(b"".join(frame.to_bytes() for frame in found))
        assert (
            len(found) == len(messages) or complete + len(wire(messages[len(found)])) > start + step
        )
    assert payloads(found) == messages
    assert [type(one) for one in found] == [type(frame(b""))] * len(messages)


@pytest.mark.clause("T13", "T14")
@framed
def test_every_framing_makes_the_round_trip(streams, framing, frame, wire):
    server, client = streams(framing)
    messages = [message for message in MESSAGES if len(message) < 1000]
    with running(lambda: [server.b_send(frame(message)) for message in messages]):
        assert [client.b_recv().payload() for _ in messages] == messages
    for message in messages:
        client.nb_send(frame(message))
    assert payloads(server.nb_recv()) == messages


@pytest.mark.clause("F15", "F16")
def test_a_builder_of_the_users_may_keep_state(pair):
    class Numbered(hydrogen.FrameBuilder):
        """Each byte is a frame, and is given its number."""

        def __init__(self):
            self.count = 0

        def from_bytes(self, buf):
            self.count += 1
            return hydrogen.ChunkFrame(b"%d:%c" % (self.count, buf.pop(0))) if buf else None

        def frame(self, payload):
            return hydrogen.ChunkFrame(payload)

    ours, peer = pair()
    stream = hydrogen.Plain(ours, Numbered())
    peer.sendall(b"abc")
    assert payloads(stream.nb_recv()) == [b"1:a", b"2:b", b"3:c"]


# ------------------------------------------------------------------------------- non-blocking input


@pytest.mark.clause("T13")
def test_nb_recv_gives_nothing_when_there_is_nothing(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    assert server.nb_recv() == []
    assert client.recv() == []


def test_after_nothing_there_is_nothing_left_to_read(pair):
    """Who polls for edges gets no other: so the beginning of a long frame must be read to its last
    byte.
    """
    ours, peer = pair()
    stream = hydrogen.Plain(ours, hydrogen.LengthFrameBuilder)
    peer.setblocking(False)
    sent = peer.send(struct.pack(">I", 1_000_000) + bytes(999_000))
    assert sent > 100_000
    assert stream.nb_recv() == []
    assert waiting_bytes(ours) == 0


class Endless(socket.socket):
    """A peer that never pauses, or not before so many reads."""

    data = simple(b"x") * 16
    reads = 0
    most = None

    def recv(self, size, flags=0):
        if self.reads == self.most:
            raise BlockingIOError
        self.reads += 1
        return self.data


def test_it_does_not_wait_on_an_fd_that_was_closed_meanwhile(after):
    class Closed(socket.socket):
        def recv(self, size, flags=0):
            if self.fileno() >= 0:
                self.close()
                raise BlockingIOError
            return super().recv(size, flags)

    with pytest.raises(EOFError):
        hydrogen.Plain(Closed()).b_recv()


def test_however_many_reads_that_takes(after):
    sock = Endless()
    after.callback(sock.close)
    sock.data, sock.most = b"\1" * 16, 10 * READS
    assert hydrogen.Plain(sock, hydrogen.LengthFrameBuilder(8, max_size=1 << 62)).nb_recv() == []
    assert sock.reads == sock.most


def test_a_peer_that_never_pauses_does_not_keep_nb_recv(after):
    sock = Endless()
    after.callback(sock.close)
    stream = hydrogen.Plain(sock, hydrogen.SimpleFrameBuilder)
    assert len(stream.nb_recv()) == 16 * READS
    assert sock.reads == READS


@pytest.mark.clause("T13")
def test_the_end_comes_after_all_frames_before_it_and_again(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    client.nb_send(hydrogen.SimpleFrame(b"one"))
    client.nb_send(hydrogen.SimpleFrame(b"two"))
    client.shutdown()
    assert payloads(server.nb_recv()) == [b"one", b"two"]
    for recv in (server.nb_recv, server.recv, server.b_recv):
        with pytest.raises(EOFError):
            recv()


@pytest.mark.clause("T13")
def test_an_end_inside_a_frame_is_an_incomplete_frame(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    client.nb_send(hydrogen.SimpleFrame(b"one"))
    client.nb_send(hydrogen.ChunkFrame(b"\x01\x00"))
    client.shutdown()
    assert payloads(server.nb_recv()) == [b"one"]
    for recv in (server.nb_recv, server.recv, server.b_recv):
        with pytest.raises(hydrogen.IncompleteFrame):
            recv()


@pytest.mark.clause("T13")
@pytest.mark.parametrize("how", ["nb_recv", "recv"])
def test_a_bad_frame_comes_after_the_good_ones_and_again(streams, how):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    client.nb_send(hydrogen.ChunkFrame(simple(b"one") + simple(b"two") + b"bad" + simple(b"never")))
    found = getattr(server, how)()
    assert (found if how == "recv" else payloads(found)) == [b"one", b"two"]
    errors = set()
    for recv in (server.nb_recv, server.recv, server.b_recv):
        with pytest.raises(hydrogen.ProtocolError) as raised:
            recv()
        errors.add(raised.value)
    assert len(errors) == 1


def test_what_a_builder_of_the_users_raises_ends_the_input_for_good(pair):
    class Once(hydrogen.SimpleFrameBuilder):
        def from_bytes(self, buf):
            if buf[:1] == b"!":
                buf.clear()
                raise ZeroDivisionError("mine")
            return super().from_bytes(buf)

    ours, peer = pair()
    stream = hydrogen.Plain(ours, Once)
    peer.sendall(simple(b"one") + b"!" + simple(b"two"))
    assert payloads(stream.nb_recv()) == [b"one"]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="mine"):
            stream.nb_recv()
        peer.sendall(simple(b"three"))


def test_nonsense_of_a_builder_is_a_handler_error(pair):
    class Nonsense(hydrogen.SimpleFrameBuilder):
        def from_bytes(self, buf):
            return "frame"

    ours, peer = pair()
    peer.sendall(b"x")
    with pytest.raises(hydrogen.HandlerError, match="frame"):
        hydrogen.Plain(ours, Nonsense).nb_recv()


def test_recv_loses_no_payload_when_a_later_one_fails(pair):
    class Frame(hydrogen.SimpleFrame):
        def payload(self):
            if super().payload() == b"bad":
                raise ZeroDivisionError("mine")
            return super().payload()

    class Builder(hydrogen.SimpleFrameBuilder):
        def from_bytes(self, buf):
            frame = super().from_bytes(buf)
            return frame and Frame(frame.payload())

    ours, peer = pair()
    stream = hydrogen.Plain(ours, Builder)
    peer.sendall(simple(b"one") + simple(b"bad"))
    assert stream.recv() == [b"one"]
    with pytest.raises(ZeroDivisionError):
        stream.recv()


def test_a_reset_comes_after_what_was_received_before_it(pair):
    ours, peer = pair(socket.AF_INET)
    stream = hydrogen.Plain(ours, hydrogen.SimpleFrameBuilder)
    peer.sendall(simple(b"one") + simple(b"two"))
    wait_until(lambda: waiting_bytes(ours) == 14, "the frames are there")
    reset(peer)
    wait_until(lambda: is_broken(ours), "the reset is there")
    assert payloads(stream.nb_recv()) == [b"one", b"two"]
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            stream.nb_recv()


def test_a_reset_that_a_send_was_told_of_is_no_end_in_order(streams):
    """The kernel reports it once, and then says "end of file"."""
    server, client = streams(hydrogen.SimpleFrameBuilder, family=socket.AF_INET)
    with running(lambda: server.b_send(hydrogen.SimpleFrame(b"hello"))):
        assert client.b_recv().payload() == b"hello"
    client.b_send(hydrogen.SimpleFrame(b"one"))
    wait_until(lambda: readable(server), "it is there")
    sock = socket.socket(fileno=client.hand_over().fd)
    reset(sock)
    wait_until(lambda: is_broken(server), "the reset is there")
    with pytest.raises(ConnectionResetError):
        server.nb_send(hydrogen.SimpleFrame(b"lost"))
    assert payloads(server.nb_recv()) == [b"one"]
    with pytest.raises(ConnectionResetError):
        server.nb_recv()


# ------------------------------------------------------------------------------ non-blocking output


@pytest.mark.clause("T13", "T5")
def test_nb_send_keeps_the_rest_and_goes_on_in_order(streams):
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    shake_hands(server, client)
    messages = [os.urandom(100_000), b"", b"short", os.urandom(50_000), b"last"]
    for message in messages:
        with pytest.raises(BlockingIOError):
            server.nb_send(hydrogen.LengthFrame(message))
    found = []
    send_rest(server, client, found)
    assert found == messages
    server.send(b"")
    server.nb_send(hydrogen.LengthFrame(b"more"))
    assert payloads(client.nb_recv()) == [b"more"]


@pytest.mark.clause("T5")
def test_send_makes_a_frame_and_send_of_nothing_only_goes_on(streams):
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    shake_hands(server, client)
    server.send(b"")
    with pytest.raises(BlockingIOError):
        server.send(b"x" * 100_000)
    with pytest.raises(BlockingIOError):
        server.send(b"")
    found = []
    send_rest(server, client, found)
    assert found == [b"x" * 100_000]


def test_nb_recv_writes_what_is_kept_as_well(streams):
    """So that a loop that only waits for input does not wait for an answer to what it has not
    sent.
    """
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    shake_hands(server, client)
    server.b_send(hydrogen.LengthFrame(b"first"))
    with pytest.raises(BlockingIOError):
        server.nb_send(hydrogen.LengthFrame(b"x" * 100_000))
    found = []
    for _ in range(1000):
        read_all(client, found)
        assert server.nb_recv() == []
    assert found == [b"first", b"x" * 100_000]


def test_while_a_blocking_call_writes_no_other_thread_does(pair):
    """If that wrote the last of it, the first one would wait for room that it needs no more."""

    class Full(socket.socket):
        """Takes nothing while `full`, then everything; notes who sends."""

        full = True

        def send(self, data, flags=0):
            senders.append(threading.get_ident())
            if self.full:
                raise BlockingIOError
            return len(data)

    senders = []
    ours, peer = pair()
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1000))
    stream = hydrogen.Plain(Full(fileno=os.dup(ours.fileno())), hydrogen.SimpleFrameBuilder)
    with running(lambda: stream.b_send(hydrogen.SimpleFrame(b"x"))):
        wait_until(lambda: senders, "it was tried")
        stream._sock.full = False
        assert stream.nb_recv() == []
        with pytest.raises(TimeoutError):
            stream.b_recv(0.001)
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.recv(100_000)
    stream.close()
    assert len(senders) == 2
    assert threading.get_ident() not in senders


def test_once_sending_has_failed_it_fails_again(pair):
    ours, peer = pair()
    stream = hydrogen.Plain(ours)
    peer.close()
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            stream.nb_send(hydrogen.ChunkFrame(b"x"))
    with pytest.raises(BrokenPipeError):
        stream.b_send(hydrogen.ChunkFrame(b"x"))
    with pytest.raises(EOFError):
        stream.nb_recv()


def test_only_frames_can_be_sent(streams):
    server, _ = streams()
    for send in (server.nb_send, server.b_send):
        with pytest.raises(TypeError, match="frame: "):
            send(b"bytes")


def test_send_raises_what_the_framing_cannot_carry_and_sends_nothing(pair):
    ours, peer = pair()
    with pytest.raises(hydrogen.FrameTooLarge):
        hydrogen.Plain(ours, hydrogen.SimpleFrameBuilder(4)).send(b"12345")
    with pytest.raises(ValueError, match="delimiter"):
        hydrogen.Plain(ours, hydrogen.LineFrameBuilder).send(b"a\nb")
    assert not readable(peer)


def test_f17_a_peer_that_has_gone_is_no_sigpipe(after):
    process = child(
        "import signal, socket, hydrogen\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "a, b = socket.socketpair()\n"
        "b.close()\n"
        "try:\n    hydrogen.Plain(a).nb_send(hydrogen.ChunkFrame(b'x'))\n"
        "except BrokenPipeError:\n    print('told')\n"
        "a.close()\n"
    )
    assert finish(process)[0] == "told\n"


# --------------------------------------------------------------------------------------- O_NONBLOCK


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("number", [True, False], ids=["fd", "socket"])
def test_it_does_not_matter_whether_the_fd_is_blocking_and_it_stays_so(
    streams, pair, blocking, number
):
    server, client = streams(hydrogen.SimpleFrameBuilder, buffer=8192)
    os.set_blocking(server.fileno(), blocking)
    if number and isinstance(server, hydrogen.Plain):
        server = hydrogen.Plain(server.fileno(), hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    assert server.nb_recv() == []
    with contextlib.suppress(BlockingIOError):
        for _ in range(100):
            server.nb_send(hydrogen.SimpleFrame(b"x" * 50_000))
        pytest.fail("so much must block")
    with pytest.raises(TimeoutError):
        server.b_recv(0.001)
    assert os.get_blocking(server.fileno()) is blocking


def test_a_timeout_of_the_socket_is_not_waited_for(pair):
    ours, _ = pair()
    ours.settimeout(10 * PATIENCE)
    assert hydrogen.Plain(ours).nb_recv() == []


def test_the_default_timeout_is_not_waited_for(pair):
    ours, _ = pair()
    socket.setdefaulttimeout(10 * PATIENCE)
    try:
        assert hydrogen.Plain(ours.fileno()).nb_recv() == []
    finally:
        socket.setdefaulttimeout(None)


# ----------------------------------------------------------------------------------------- blocking


@pytest.mark.clause("T14")
def test_b_recv_gives_one_frame_after_the_other(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    messages = [b"one", b"", b"x" * 60_000, b"last"]
    with running(lambda: [client.b_send(hydrogen.SimpleFrame(message)) for message in messages]):
        frames = [server.b_recv() for _ in messages]
    assert payloads(frames) == messages
    assert {type(frame) for frame in frames} == {hydrogen.SimpleFrame}


@pytest.mark.clause("T14")
def test_b_send_returns_when_all_is_written_however_small_the_buffers(streams):
    server, client = streams(hydrogen.LengthFrameBuilder(max_size=1 << 24), buffer=4096)
    message = os.urandom(3_000_000)
    with running(lambda: [server.b_send(hydrogen.LengthFrame(message)) for _ in range(2)]):
        assert [client.b_recv().payload() for _ in range(2)] == [message] * 2


@pytest.mark.clause("T14")
def test_b_send_sends_what_is_kept_first(streams):
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    shake_hands(server, client)
    with pytest.raises(BlockingIOError):
        server.nb_send(hydrogen.LengthFrame(b"x" * 500_000))
    with running(lambda: server.b_send(hydrogen.LengthFrame(b"second"))):
        assert [client.b_recv().payload() for _ in range(2)] == [b"x" * 500_000, b"second"]


def test_b_recv_writes_what_is_kept_while_it_waits(streams):
    """The answer comes only when the whole request was sent."""
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    shake_hands(server, client)
    with pytest.raises(BlockingIOError):
        client.nb_send(hydrogen.LengthFrame(b"x" * 500_000))
    with running(
        lambda: server.b_send(hydrogen.LengthFrame(b"%d" % len(server.b_recv().payload())))
    ):
        assert client.b_recv().payload() == b"500000"


@pytest.mark.clause("T14")
def test_b_recv_times_out_and_loses_nothing(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            server.b_recv(timeout)
    wire = simple(b"one")
    client.nb_send(hydrogen.ChunkFrame(wire[:4]))
    with pytest.raises(TimeoutError):
        server.b_recv(0.001)
    client.nb_send(hydrogen.ChunkFrame(wire[4:] + simple(b"two")))
    assert [server.b_recv(0).payload() for _ in range(2)] == [b"one", b"two"]


def test_b_recv_with_no_time_still_takes_a_frame_of_several_reads(pair):
    ours, peer = pair()
    stream = hydrogen.Plain(ours, hydrogen.LengthFrameBuilder)
    peer.setblocking(False)
    wire = struct.pack(">I", 150_000) + bytes(150_000)
    assert peer.send(wire) == len(wire)
    assert stream.b_recv(0).payload() == bytes(150_000)


def test_b_recv_times_out_also_when_the_peer_never_pauses(after):
    sock = Endless()
    sock.data = b"\x01" * 16
    after.callback(sock.close)
    stream = hydrogen.Plain(sock, hydrogen.LengthFrameBuilder(8, max_size=1 << 62))
    with pytest.raises(TimeoutError):
        stream.b_recv(0.01)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
    ids=repr,
)
def test_a_wrong_timeout_is_an_error(streams, timeout, error):
    server, _ = streams()
    with pytest.raises(error, match="timeout: "):
        server.b_recv(timeout)


@pytest.mark.clause("T14")
def test_an_infinite_timeout_is_none(pair):
    ours, peer = pair()
    with running(lambda: peer.sendall(b"x")):
        assert hydrogen.Plain(ours).b_recv(float("inf")).payload() == b"x"


def test_a_signal_in_between_is_survived(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    main = threading.main_thread().ident
    # What b_recv waits for is sent by the signal handler, which only runs when the system call was
    # interrupted.
    before = signal.signal(
        signal.SIGUSR1, lambda *args: client.nb_send(hydrogen.SimpleFrame(b"from the handler"))
    )
    try:
        with running(lambda: signal.pthread_kill(main, signal.SIGUSR1)):
            assert server.b_recv().payload() == b"from the handler"
    finally:
        signal.signal(signal.SIGUSR1, before)


# -------------------------------------------------------------------------------------- two threads


def test_f36_one_thread_sends_while_another_receives_at_both_ends(streams):
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    messages = [os.urandom(1 << (number % 17)) for number in range(300)]

    def send(stream):
        for message in messages:
            stream.b_send(hydrogen.LengthFrame(message))

    def receive(stream):
        for message in messages:
            assert stream.b_recv(PATIENCE).payload() == message

    with running(
        lambda: send(server), lambda: send(client), lambda: receive(server), lambda: receive(client)
    ):
        pass


def test_non_blocking_calls_from_two_threads_lose_nothing(streams):
    server, client = streams(hydrogen.LengthFrameBuilder, buffer=8192)
    shake_hands(server, client)
    messages = [os.urandom(1 << (number % 15)) for number in range(200)]

    def send(stream):
        for message in messages:
            with contextlib.suppress(BlockingIOError):
                stream.nb_send(hydrogen.LengthFrame(message))
        wait_until(lambda: is_sent(stream), "all is written")

    def is_sent(stream):
        try:
            stream.send(b"")
        except BlockingIOError:
            return False
        return True

    def receive(stream):
        found = []
        while len(found) < len(messages):
            if not (frames := stream.nb_recv()):
                assert select.select([stream], [], [], PATIENCE)[0]
            found += payloads(frames)
        assert found == messages

    with running(
        lambda: send(server), lambda: send(client), lambda: receive(server), lambda: receive(client)
    ):
        pass


def test_shutdown_ends_the_calls_of_other_threads(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder, buffer=8192)
    shake_hands(server, client)
    sending = threading.Event()

    def receive():
        with pytest.raises(EOFError):
            server.b_recv()

    def send_for_ever():
        while True:
            sending.set()
            server.b_send(hydrogen.SimpleFrame(b"x" * 60_000))

    def send():
        with pytest.raises(BrokenPipeError):
            send_for_ever()

    with running(receive, send):
        wait_event(sending, "one is sending")
        server.shutdown()


def test_after_shutdown_nothing_can_be_sent(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    server.shutdown()
    for send in (server.nb_send, server.b_send):
        with pytest.raises(BrokenPipeError):
            send(hydrogen.SimpleFrame(b"x"))
    with pytest.raises(EOFError):
        server.nb_recv()
    server.shutdown()


def test_after_shutdown_input_has_ended_in_order_also_when_the_peer_goes_on_sending(pair):
    """The kernel answers what it sends by a reset (tcp(7)): nobody is to take that for the
    peer's.
    """
    ours, peer = pair(socket.AF_INET)
    stream = hydrogen.Plain(ours, hydrogen.SimpleFrameBuilder)
    stream.shutdown()
    peer.sendall(b"more")
    wait_until(lambda: is_broken(ours), "the reset is there")
    for _ in range(2):
        with pytest.raises(EOFError):
            stream.nb_recv()


def test_shutdown_of_what_the_peer_has_reset_is_quiet(pair):
    ours, peer = pair(socket.AF_INET)
    stream = hydrogen.Plain(ours)
    reset(peer)
    wait_until(lambda: is_broken(ours), "the reset is there")
    stream.shutdown()


# ---------------------------------------------------------------------------------- whose the fd is


def made_of_a_number(kind, fd):
    return hydrogen.Plain(fd) if kind == "Plain" else secure(fd)


@pytest.mark.parametrize("kind", ["Plain", "Secure"])
def test_the_garbage_collector_never_closes_a_number(pair, kind):
    ours, _ = pair()
    stream = made_of_a_number(kind, ours.fileno())
    assert stream.fileno() == ours.fileno()
    del stream
    gc.collect()
    os.fstat(ours.fileno())


@pytest.mark.parametrize("wrong", ["framing", "context", "type"])
def test_the_garbage_collector_does_not_close_it_either_when_the_stream_could_not_be_made(
    pair, after, wrong
):
    ours, _ = pair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    after.callback(udp.close)
    make = {
        "framing": lambda: hydrogen.Plain(ours.fileno(), "nonsense"),
        "context": lambda: hydrogen.Secure(ours.fileno(), None, certificates.client_context()),
        "type": lambda: hydrogen.Plain(udp.fileno()),
    }
    with pytest.raises((TypeError, ValueError)):
        make[wrong]()
    gc.collect()
    os.fstat(ours.fileno())
    os.fstat(udp.fileno())


@pytest.mark.parametrize("kind", ["Plain", "Secure"])
def test_close_closes_a_number_once(pair, kind):
    ours, _ = pair()
    fd = ours.detach()
    stream = made_of_a_number(kind, fd)
    stream.close()
    assert stream.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    stream.close()


def test_a_socket_is_kept_and_closed_by_close(streams):
    server, _ = streams()
    sock = socket.socket(fileno=server.hand_over().fd)
    stream = hydrogen.Plain(sock)
    assert stream.fileno() == sock.fileno()
    stream.close()
    assert sock.fileno() == stream.fileno() == -1
    stream.close()


def test_after_close_input_has_ended_and_nothing_can_be_sent(streams):
    server, client = streams(hydrogen.SimpleFrameBuilder)
    shake_hands(server, client)
    server.close()
    for recv in (server.nb_recv, server.b_recv):
        with pytest.raises(EOFError):
            recv()
    for send in (server.nb_send, server.b_send):
        with pytest.raises(OSError, match="Bad file descriptor"):
            send(hydrogen.SimpleFrame(b"x"))
    server.shutdown()


@pytest.mark.parametrize("kind", ["Plain", "Secure"])
@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (True, TypeError),
        (1.5, TypeError),
        (-1, ValueError),
        ("file", OSError),
        ("udp", ValueError),
    ],
)
def test_what_is_no_stream_socket_is_refused(after, kind, what, error):
    sock_or_fd = what
    if what == "file":
        sock_or_fd = os.open(os.devnull, os.O_RDWR)
        after.callback(os.close, sock_or_fd)
    elif what == "udp":
        sock_or_fd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        after.callback(sock_or_fd.close)
    with pytest.raises(error):
        made_of_a_number(kind, sock_or_fd)


@pytest.mark.clause("T11")
def test_hand_over_gives_what_was_read_and_what_was_not_written(streams):
    builder = hydrogen.LengthFrameBuilder()
    server, client = streams(builder, buffer=8192)
    shake_hands(server, client)
    client.nb_send(
        hydrogen.ChunkFrame(
            b"".join(hydrogen.LengthFrame(message).to_bytes() for message in (b"one", b"two"))
            + b"\0\0"
        )
    )
    assert server.b_recv().payload() == b"one"
    with pytest.raises(BlockingIOError):
        server.nb_send(hydrogen.LengthFrame(b"x" * 100_000))
    fd = server.fileno()
    given = server.hand_over()
    assert given.fd == fd
    assert given.builder is builder
    assert given.received == hydrogen.LengthFrame(b"two").to_bytes() + b"\0\0"
    assert (given.session is None) is (streams.version is None)
    assert server.fileno() == -1
    with socket.socket(fileno=given.fd) as sock:
        # What an engine does with it: first `unsent`, then what it encrypts itself.
        more = hydrogen.LengthFrame(b"more").to_bytes()
        sock.setblocking(True)
        with running(
            lambda: sock.sendall(
                given.unsent + (given.session.encrypt(more) if given.session else more)
            )
        ):
            assert [client.b_recv().payload() for _ in range(2)] == [b"x" * 100_000, b"more"]
        client.b_send(hydrogen.ChunkFrame(b"\0\4rest"))
        data = sock.recv(1000)
        assert (given.session.receive(data) if given.session else data) == b"\0\4rest"


@pytest.mark.parametrize("number", [True, False], ids=["fd", "socket"])
def test_hand_over_leaves_the_fd_open_whatever_becomes_of_the_stream(pair, number):
    ours, _ = pair()
    stream = hydrogen.Plain(ours.fileno() if number else ours)
    given = stream.hand_over()
    assert given == type(given)(given.fd, None, None, b"", b"")
    assert (ours.fileno() == -1) is not number
    stream.close()
    del stream
    gc.collect()
    os.fstat(given.fd)
    if not number:
        os.close(given.fd)


class Interrupted(socket.socket):
    """A socket within whose calls a signal comes, once."""

    signals = True

    def come(self):
        if self.signals:
            self.signals = False
            signal.raise_signal(signal.SIGUSR1)

    def send(self, *args):
        self.come()
        return super().send(*args)

    def recv(self, *args):
        data = super().recv(*args)
        self.come()
        return data


@pytest.fixture
def handling():
    """`handling(call)`: what the signal handler does."""
    earlier = signal.getsignal(signal.SIGUSR1)
    yield lambda call: signal.signal(signal.SIGUSR1, lambda *_: call())
    signal.signal(signal.SIGUSR1, earlier)


@pytest.fixture
def interrupted(pair, after, handling):
    """A client in whose next call a signal comes, which does `call`; and its peer."""

    def interrupted(call):
        ours, peer = pair()
        sock = Interrupted(fileno=ours.detach())
        after.callback(sock.close)
        client = Client(hydrogen.Plain(sock), ChunkFrameBuilder(), PATIENCE)
        handling(lambda: call(client))
        return client, peer

    return interrupted


@pytest.mark.parametrize("first", ["send", "recv"])
def test_a_signal_handler_may_send_by_the_client_whose_call_it_has_interrupted(interrupted, first):
    client, peer = interrupted(lambda client: client.send(b"signal"))
    peer.sendall(b"hello")
    if first == "recv":
        assert client.recv() == b"hello"
        assert peer.recv(6, socket.MSG_WAITALL) == b"signal"
    else:
        client.send(b"first")
        assert peer.recv(11, socket.MSG_WAITALL) == b"firstsignal"
    peer.close()
    client.close()


@pytest.mark.parametrize("first", ["send", "recv"])
def test_what_a_signal_handler_sends_within_another_call_is_sent_to_the_end_by_that_one(
    interrupted, first
):
    """Also when it is more than the kernel takes."""
    message = bytes(1 << 22)
    client, peer = interrupted(lambda client: client.send(message))
    peer.sendall(b"hello")
    received = []

    def receive():
        for expected in ([b"first"] if first == "send" else []) + [message]:
            assert peer.recv(len(expected), socket.MSG_WAITALL) == expected
            received.append(expected)

    with running(receive):
        assert client.recv() == b"hello" if first == "recv" else client.send(b"first") is None
    assert received[-1] is message
    peer.close()
    client.close()


@pytest.mark.parametrize("first", ["send", "recv"])
def test_a_signal_handler_may_close_the_client_whose_call_it_has_interrupted(interrupted, first):
    client, peer = interrupted(lambda client: client.close())
    peer.sendall(b"hello")
    with contextlib.suppress(OSError, EOFError):
        client.recv() if first == "recv" else client.send(b"first")
    assert client.fileno() == -1
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(100):
            pass


def test_a_signal_handler_cannot_receive_by_the_client_whose_call_it_has_interrupted(interrupted):
    client, peer = interrupted(lambda client: client.recv())
    with pytest.raises(RuntimeError, match="signal handler"):
        client.send(b"first")
    peer.close()
    client.close()


def test_nobody_waits_for_a_client_in_whose_call_a_signal_handler_waits(interrupted):
    def close(client):
        with running(client._stream.shutdown):
            pass

    client, peer = interrupted(close)
    client.send(b"first")
    assert peer.recv(100) == b"first"
    assert peer.recv(100) == b""
    client.close()


def test_what_another_thread_has_left_is_seen_to_also_by_who_is_interrupted(interrupted):
    def close(client):
        with running(client._stream.shutdown):
            pass
        raise LookupError

    client, peer = interrupted(close)
    peer.settimeout(PATIENCE)
    with pytest.raises(LookupError):
        client.send(b"first")
    assert peer.recv(100) == b"first"  # as far as it goes without waiting
    assert peer.recv(100) == b""
    client.close()


# ---------------------------------------------------------------------- a user's stream made of one


class KeepingFrame(hydrogen.SimpleFrame):
    """A frame that keeps the very object it was made of."""

    def __init__(self, payload):
        super().__init__(payload)
        self.kept = bytes(payload)

    def payload(self):
        return self.kept


class Upstreams(hydrogen.Stream):
    """The Rust crate's example."""

    def __init__(self, fd):
        self.inner = hydrogen.Plain(fd, hydrogen.SimpleFrameBuilder)

    def recv(self):
        return [frame.payload() for frame in self.inner.nb_recv()]

    def send(self, buf):
        frame = KeepingFrame(buf)
        self.inner.nb_send(frame)

    def shutdown(self):
        self.inner.shutdown()

    def fileno(self):
        return self.inner.fileno()


@pytest.mark.clause("T5", "T19")
def test_a_stream_that_makes_a_frame_of_what_it_is_given_sends_no_message_that_nobody_sent(pair):
    """Asked to go on with what was kept, with `b""`, it writes no empty frame; an empty message it
    does write.
    """
    ours, peer = pair(buffer=8192)
    port = StreamAdapter(Upstreams(ours.fileno()))
    other = hydrogen.Plain(peer, hydrogen.SimpleFrameBuilder)
    port.send(b"x" * 60_000)
    assert port.blocked
    found = []
    while port.blocked:
        read_all(other, found)
        port.resume()
    read_all(other, found)
    port.send(b"")
    port.send(b"end")
    read_all(other, found)
    assert found == [b"x" * 60_000, b"", b"end"]


# ------------------------------------------------------------ a user's stream, as an engine uses it


class Scripted(hydrogen.Stream):
    """A stream without an fd: `received` and `sending` are called by `recv` and `send`; `written`
    is what was sent.
    """

    def __init__(self, received=list, sending=lambda data: None):
        self.received, self.sending = received, sending
        self.written = []
        self.inside = 0

    def recv(self):
        with self.called():
            return self.received()

    def send(self, buf):
        with self.called():
            self.written.append(bytes(buf))
            self.sending(buf)

    @contextlib.contextmanager
    def called(self):
        assert not self.inside, "two of its methods are called at once"
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def shutdown(self):
        pass

    def fileno(self):
        return -1


def full(data):
    """As `sending`: the kernel takes no more."""
    raise BlockingIOError


def test_an_adapter_counts_what_a_stream_keeps_and_goes_on_only_with_that():
    adapter = StreamAdapter(Scripted(sending=full))
    adapter.send(b"123")
    adapter.send(b"45")
    assert (adapter.blocked, adapter.pending) == (True, 5)
    adapter.stream.sending = lambda data: None
    adapter.resume()
    adapter.resume()
    assert (adapter.blocked, adapter.pending) == (False, 0)
    assert adapter.stream.written == [b"123", b"45", b""]


def test_nonsense_that_cannot_be_described_is_a_handler_error():
    class Strange:
        def __repr__(self):
            raise SystemExit

    with pytest.raises(hydrogen.HandlerError, match="whose __repr__ raises"):
        StreamAdapter(Scripted(lambda: [Strange()])).receive()


# ---------------------------------------------------------------- errors that come again, arguments


def entries(error):
    """How many entries its traceback has."""
    count, entry = 0, error.__traceback__
    while entry is not None:
        count, entry = count + 1, entry.tb_next
    return count


def caught(call):
    """What it raises, and the number of entries."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    return raised.value, entries(raised.value)


@pytest.mark.parametrize("how", ["nb_recv", "recv", "b_recv"])
@pytest.mark.parametrize("what", ["bad frame", "own builder", "reset"])
def test_an_error_that_comes_again_does_not_grow(pair, how, what):
    class Fails(hydrogen.SimpleFrameBuilder):
        def from_bytes(self, buf):
            raise KeyError("mine")

    ours, theirs = pair(family=socket.AF_INET)
    stream = hydrogen.Plain(ours, Fails if what == "own builder" else hydrogen.SimpleFrameBuilder)
    if what == "reset":
        reset(theirs)
    else:
        theirs.sendall(b"nonsense")
    wait_until(lambda: readable(ours), "there is something to read")
    found = [caught(getattr(stream, how)) for _ in range(5)]
    assert len({id(error) for error, _ in found}) == 1
    assert max(count for _, count in found[1:]) == found[1][1] <= found[0][1] + 1
    if what == "own builder":  # where it came from is told each time
        last = found[-1][0].__traceback__
        while last.tb_next is not None:
            last = last.tb_next
        assert last.tb_frame.f_code is Fails.from_bytes.__code__


def test_an_error_of_sending_that_comes_again_does_not_grow(pair):
    ours, theirs = pair(family=socket.AF_INET)
    stream = hydrogen.Plain(ours)
    reset(theirs)
    wait_until(lambda: readable(ours), "the reset is there")
    found = []
    while len(found) < 6:
        with contextlib.suppress(BlockingIOError):
            try:
                stream.send(b"x")
            except OSError as error:
                found.append(entries(error))
    assert max(found[2:]) <= found[1]


@pytest.mark.parametrize(
    ("framing", "wire"), [(None, b"abc"), (hydrogen.SimpleFrameBuilder, simple(b"abc"))]
)
def test_a_buffer_that_is_not_contiguous_is_a_type_error_and_nothing_is_sent(pair, framing, wire):
    ours, theirs = pair()
    stream = hydrogen.Plain(ours, framing)
    for wrong in (memoryview(b"abcdef")[::2], "text", 5, None, 0):
        with pytest.raises(TypeError):
            stream.send(wrong)
    stream.send(memoryview(b"abc"))
    stream.send(b"")  # goes on, with nothing
    assert theirs.recv(100) == wire
