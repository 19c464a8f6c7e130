"""Messages of a WebSocket, in both directions: their types, lengths and fragments; pings and pongs;
broadcasts.
"""

import random

import pytest
from support import recorder as plain_recorder
from support import running, wait_event, wait_until
from websocket_peers import (
    BINARY,
    CONTINUATION,
    FAMILIES,
    FIN,
    PONG,
    TEXT,
    Closed,
    Echo,
    closing,
    echo,
    frame,
    head,
    message,
    options_of,
    peer_of,
    ping,
    pong,
    recorder,
    text,
)

import hydrogen
from hydrogen import WebSocket

LENGTHS = [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20]

WORDS = "a ä € \U0001f600 \x00 \ufeff \U0010ffff\ud7ff"
"""Of one to four bytes each; and what is next to surrogates."""


def random_bytes(length):
    return random.Random(length).randbytes(length)


# ------------------------------------------------------------------------------------------- echoes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", LENGTHS)
def test_messages_of_every_length_come_and_go(start, connect, tmp_path, family, length):
    server = start(Echo(), **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    peer.echo("x" * length)
    peer.echo(random_bytes(length))


def test_text_is_str_and_anything_else_is_bytes(start, connect):
    handler = recorder(message=echo)
    peer = peer_of(connect(start(handler))).open()
    for data in ("", b"", WORDS, WORDS.encode(), "x", b"x"):
        peer.echo(data)
    assert handler.messages() == ["", b"", WORDS, WORDS.encode(), "x", b"x"]
    assert [type(data) for data in handler.messages()] == [str, bytes] * 3


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (type("Text", (str,), {"encode": lambda self: b"other"})("abc"), "abc"),
        (type("Data", (bytes,), {})(b"abc"), b"abc"),
    ],
    ids=["bytearray", "memoryview", "a str of the user's", "bytes of the user's"],
)
def test_send_takes_texts_and_all_that_is_like_bytes(start, connect, data, received):
    peer = peer_of(connect(start(recorder(connected=lambda socket: socket.send(data))))).open()
    assert peer.receive_message() == received


CANNOT_BE_SENT = pytest.mark.parametrize(
    ("data", "error"),
    [
        (1, TypeError),
        (None, TypeError),
        (["a"], TypeError),
        (memoryview(b"abcd")[::2], TypeError),
        ("\ud800", ValueError),
        ("a\udfff", ValueError),
    ],
    ids=["int", "None", "list", "not contiguous", "half a pair", "the other half"],
)


@CANNOT_BE_SENT
def test_what_cannot_be_sent_is_refused_and_nothing_is_sent(start, connect, data, error):
    def received(socket, name):
        with pytest.raises(error):
            socket.send(data)
        with pytest.raises(error):
            socket.server.broadcast(data)
        socket.send("done")

    peer = peer_of(connect(start(recorder(message=received)))).open()
    peer.send(text("go"))
    assert peer.receive_message() == "done"


@CANNOT_BE_SENT
def test_what_cannot_be_sent_is_refused_before_and_after_too(start, connect, data, error):
    raised = []

    def tries(socket, *_):
        with pytest.raises(error) as caught:
            socket.send(data)
        raised.append(type(caught.value))

    handler = recorder(request=tries, connected=tries)
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.close()
    handler.wait_removed()
    tries(handler.socket())
    assert len(raised) == 3
    assert server.stats().messages_refused == 0


def test_messages_in_one_segment_are_answered_in_order(start, connect):
    peer = peer_of(connect(start(Echo()))).open()
    data = [f"{n}" if n % 2 else b"%d" % n for n in range(1000)]
    peer.send(b"".join(map(message, data)))
    assert [peer.receive_message() for _ in data] == data


@pytest.mark.parametrize(
    "data",
    [WORDS, WORDS.encode(), "x" * 200, b"y" * 200],
    ids=["text", "binary", "a longer text", "longer, binary"],
)
def test_messages_that_are_dripped_are_whole(start, connect, data):
    handler = recorder(message=echo)
    peer = peer_of(connect(start(handler))).open()
    wire = message(data) * 2
    for at in range(len(wire)):
        peer.send(wire[at : at + 1])
    assert [peer.receive_message(), peer.receive_message()] == [data] * 2


@pytest.mark.parametrize("mask", [bytes(4), b"\xff" * 4, b"\0\0\0\1"])
def test_any_mask_will_do(start, connect, mask):
    peer = peer_of(connect(start(Echo()))).open()
    for length in (0, 1, 3, 4, 5, 200):
        data = random_bytes(length)
        peer.send(frame(FIN | BINARY, data, mask))
        assert peer.receive_message() == data


def test_messages_of_one_thread_stay_in_order(start, connect):
    handler = recorder(connected=None)
    peer = peer_of(connect(start(handler))).open()
    socket = handler.socket()
    with running(
        lambda: [socket.send(f"{n}") for n in range(2000)],
        lambda: [socket.send(b"%d" % n) for n in range(2000)],
    ):
        received = [peer.receive_message() for _ in range(4000)]
    assert [data for data in received if isinstance(data, str)] == [f"{n}" for n in range(2000)]
    assert [data for data in received if isinstance(data, bytes)] == [
        b"%d" % n for n in range(2000)
    ]


def test_a_pause_holds_messages_back_and_a_resume_delivers_them(start, connect):
    def received(socket, data):
        if data == "pause":
            socket.pause_reading()
        socket.send(data)

    handler = recorder(message=received)
    server = start(handler)
    peer, other = peer_of(connect(server)).open(), peer_of(connect(server)).open()
    peer.send(text("pause") + text("held"))
    assert peer.receive_message() == "pause"
    peer.send(text("and this"))
    other.echo("meanwhile")
    assert handler.messages() == ["pause", "meanwhile"]
    handler.socket().resume_reading()
    assert [peer.receive_message(), peer.receive_message()] == ["held", "and this"]


def test_a_handler_that_blocks_delays_no_other(start, connect, gate):
    go = gate()

    def received(socket, data):
        if data == "block":
            wait_event(go, "the other one was served")
        socket.send(data)

    handler = recorder(message=received)
    server = start(handler)
    peer, other = peer_of(connect(server)).open(), peer_of(connect(server)).open()
    peer.send(text("block") + text("next"))
    handler.wait_for("message")
    for number in range(10):
        other.echo(f"{number}")
    go.set()
    assert [peer.receive_message(), peer.receive_message()] == ["block", "next"]


# ---------------------------------------------------------------------------------------- fragments


def fragments(opcode, parts, between=b""):
    """A message in frames of these payloads, with `between` in between."""
    wire = b""
    for number, part in enumerate(parts):
        first = CONTINUATION if number else opcode
        wire += (between if number else b"") + frame(
            first | (FIN if number == len(parts) - 1 else 0), part
        )
    return wire


@pytest.mark.parametrize("split", ["one segment", "dripped"])
def test_a_text_may_be_split_anywhere(start, connect, split):
    peer = peer_of(connect(start(Echo()))).open()
    data = WORDS.encode()
    for at in range(len(data) + 1):
        wire = fragments(TEXT, [data[:at], data[at:]])
        for part in [wire] if split == "one segment" else [bytes([byte]) for byte in wire]:
            peer.send(part)
        assert peer.receive_message() == WORDS


@pytest.mark.parametrize(
    ("opcode", "data"), [(TEXT, WORDS), (BINARY, WORDS.encode())], ids=["text", "binary"]
)
@pytest.mark.parametrize("size", [1, 3])
def test_fragments_of_any_number_make_one_message(start, connect, opcode, data, size):
    wire = WORDS.encode()
    parts = [b"", *[wire[at : at + size] for at in range(0, len(wire), size)], b"", b""]
    peer = peer_of(connect(start(Echo()))).open()
    peer.send(fragments(opcode, parts))
    assert peer.receive_message() == data


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_fragments_that_are_all_empty_make_an_empty_message(start, connect, opcode):
    peer = peer_of(connect(start(Echo()))).open()
    peer.send(fragments(opcode, [b"", b"", b""]))
    assert peer.receive_message() == ("" if opcode == TEXT else b"")


def test_pings_between_fragments_are_answered_before_the_message(start, connect):
    peer = peer_of(connect(start(Echo()))).open()
    data = WORDS.encode()
    parts = [data[at : at + 1] for at in range(len(data))]
    peer.send(fragments(TEXT, parts, ping(b"now") + pong(b"unasked")))
    for _ in parts[1:]:
        assert peer.receive_pong() == b"now"
    assert peer.receive_message() == WORDS


def test_a_large_message_in_large_fragments(start, connect):
    peer = peer_of(connect(start(Echo()))).open()
    data = random_bytes(1 << 20)
    peer.send(fragments(BINARY, [data[:100_000], data[100_000:200_000], data[200_000:]]))
    assert peer.receive_message() == data


# ---------------------------------------------------------------------------------- pings and pongs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [0, 1, 4, 125])
def test_a_ping_is_answered_with_what_it_carries(start, connect, tmp_path, family, length):
    server = start(recorder(), **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    peer.send(ping(random_bytes(length)) + ping(b"\xff" * length))
    assert peer.receive_pong() == random_bytes(length)
    assert peer.receive_pong() == b"\xff" * length
    assert server.stats().pings_received == 2
    assert server.stats().messages_sent == 0


def test_a_ping_among_messages_is_answered_perhaps_before_them(start, connect):
    peer = peer_of(connect(start(Echo()))).open()
    peer.send(text("first") + ping(b"then") + text("last"))
    frames = [peer.receive_frame() for _ in range(3)]
    assert [frame.payload for frame in frames if frame.first == FIN | TEXT] == [b"first", b"last"]
    assert [frame.payload for frame in frames if frame.first == FIN | PONG] == [b"then"]


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", bytes(125), bytearray(b"x"), memoryview(b"y")],
    ids=["empty", "bytes", "the longest", "bytearray", "memoryview"],
)
def test_a_ping_of_ours_comes_back(start, connect, data):
    handler = recorder(connected=None, pong=lambda socket, data: socket.send("seen"))
    server = start(handler)
    peer = peer_of(connect(server)).open()
    socket = handler.socket()
    assert socket.latency is None
    assert socket.ping(data)
    assert peer.receive_ping() == bytes(data)
    peer.send(pong(bytes(data)))
    assert peer.receive_message() == "seen"
    assert [call.value for call in handler.of("pong")] == [bytes(data)]
    assert 0 <= socket.latency < 3600
    assert (server.stats().pings_sent, server.stats().pongs_received) == (1, 1)
    assert server.stats().messages_sent == 1
    assert server.stats().messages_received == 0


def test_a_pong_that_nobody_asked_for_is_told_and_says_nothing_of_latency(start, connect):
    handler = recorder(pong=lambda socket, data: socket.send(data))
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.send(pong(b"unasked"))
    assert peer.receive_message() == b"unasked"
    assert handler.socket().latency is None
    assert server.stats().pongs_received == 1


def test_a_pong_is_counted_where_there_is_no_on_pong(start, connect):
    handler = recorder(message=echo)
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.send(pong(b"unasked"))
    peer.echo("hello")
    assert server.stats().pongs_received == 1


@pytest.mark.parametrize(
    ("data", "error"),
    [(bytes(126), ValueError), ("text", TypeError), (1, TypeError), (None, TypeError)],
    ids=["126 bytes", "str", "int", "None"],
)
def test_what_no_ping_carries_is_refused(start, connect, data, error):
    handler = recorder(connected=None, message=echo)
    peer = peer_of(connect(start(handler))).open()
    with pytest.raises(error):
        handler.socket().ping(data)
    peer.echo("hello")


def test_what_on_pong_raises_is_told_with_1011(start, connect, error_log):
    def on_pong(socket, data):
        raise KeyError("secret")

    handler = recorder(pong=on_pong)
    peer = peer_of(connect(start(handler))).open()
    peer.send(pong())
    assert peer.answer_close().code == 1011
    (error,) = handler.wait_disconnected()
    assert type(error) is hydrogen.HandlerError
    assert len(error_log()) == 1


# --------------------------------------------------------------------------------------- broadcasts


@pytest.mark.parametrize(
    "data",
    ["hällo", b"\xff\x00", "", b"", "x" * 70_000],
    ids=["text", "binary", "empty text", "empty", "long"],
)
def test_a_broadcast_reaches_all_that_are_open_but_those_excluded(start, connect, data):
    handler = recorder(connected=None, message=echo)
    server = start(handler)
    peers = []
    for count in range(1, 5):
        peers.append(peer_of(connect(server)).open())
        handler.wait_for("connected", count)
    half_open = peer_of(connect(server))
    half_open.send(head()[:-1])
    wait_until(lambda: server.stats().accepted == 5, "it is accepted")
    sockets = [call.socket for call in handler.of("connected")]
    assert server.connections == sockets
    report = server.broadcast(data, exclude=[sockets[1]])
    assert report == hydrogen.BroadcastReport(3, 0)
    for number in (0, 2, 3):
        assert peers[number].receive_message() == data
    peers[1].echo("nothing else came")
    half_open.send(head()[-1:])
    half_open.receive_opening()
    half_open.echo("here neither")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broadcast_comes_between_messages(start, connect, tmp_path, family):
    handler = recorder(connected=None)
    server = start(handler, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    socket = handler.socket()
    socket.send("before")
    server.broadcast(b"all")
    socket.send("behind")
    assert [peer.receive_message() for _ in range(3)] == ["before", b"all", "behind"]


def test_a_broadcast_of_one_that_closes_is_dropped(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    peer = peer_of(connect(server)).open()
    handler.socket().close()
    assert peer.receive_close() == Closed(1000, "")
    assert server.broadcast("late") == hydrogen.BroadcastReport(0, 1)
    peer.send(closing(1000))
    peer.meet_end()


# ------------------------------------------------------------------------------------- all together


def test_everything_is_counted(start, connect):
    handler = recorder(request=None, message=echo)
    server = start(handler)
    peer = peer_of(connect(server)).open()
    for number in range(3):
        peer.echo(f"{number}")
    peer.send(ping() + ping() + pong())
    assert [peer.receive_pong(), peer.receive_pong()] == [b"", b""]
    handler.socket().ping(b"x")
    peer.receive_ping()
    peer.send(pong(b"x"))
    peer.echo(b"behind")
    stats = server.stats()
    assert (stats.connections, stats.accepted) == (1, 1)
    assert (stats.messages_received, stats.messages_sent, stats.messages_refused) == (4, 4, 0)
    assert (stats.pings_received, stats.pings_sent, stats.pongs_received) == (2, 1, 2)
    assert (dict(stats.responses), dict(stats.closes)) == ({}, {})
    peer.say_goodbye(4000, "done")
    handler.wait_removed()
    wait_until(lambda: server.stats().removed_peer_closed == 1, "it is counted")
    assert dict(server.stats().closes) == {4000: 1}


def test_of_one_that_is_gone_nothing_is_known(start, connect):
    handler = recorder(connected=None)
    server = start(handler, websocket=WebSocket(subprotocols=["v1"]))
    peer = peer_of(connect(server)).open("Sec-WebSocket-Protocol: v1", line="GET /here HTTP/1.1")
    socket = handler.socket()
    assert (socket.path, socket.subprotocol) == ("/here", "v1")
    peer.say_goodbye()
    wait_until(lambda: server.stats().connections == 0, "it is gone")
    assert (socket.path, socket.subprotocol, socket.latency) == (None, None, None)
    assert not socket.is_open
    assert (socket.send("late"), socket.send(b"late"), socket.ping()) == (False,) * 3
    socket.close(1000)
    with pytest.raises(ValueError, match=r"^code: "):
        socket.close(999)
    with pytest.raises(ValueError, match=r"^ping: "):
        socket.ping(bytes(126))


def test_several_loops_serve_and_broadcast(start, connect, compiled):
    handler = recorder(connected=None, message=echo)
    server = start(handler, loops=2)
    peers = [peer_of(connect(server)).open() for _ in range(8)]
    handler.wait_for("connected", 8)
    for number, peer in enumerate(peers):
        peer.echo(f"{number}")
    assert server.broadcast("all") == hydrogen.BroadcastReport(8, 0)
    assert [peer.receive_message() for peer in peers] == ["all"] * 8
    assert sorted(socket.id for socket in server.connections) == list(range(1, 9))
    for peer in peers:
        peer.say_goodbye()
    handler.wait_removed(8)


def test_what_is_of_a_websocket_is_refused_elsewhere(start, connect):
    handler = plain_recorder(connected=None)
    server = start(handler)
    client = connect(server)
    socket = handler.socket()
    assert (socket.path, socket.subprotocol, socket.latency) == (None, None, None)
    with pytest.raises(TypeError):
        socket.send("text")
    with pytest.raises(TypeError):
        server.broadcast("text")
    with pytest.raises(ValueError, match=r"^ping: "):
        socket.ping()
    with pytest.raises(ValueError, match=r"^code: "):
        socket.close(1000)
    with pytest.raises(ValueError, match=r"^code: "):
        socket.close(reason="why")
    socket.send(b"still open")
    assert client.receive(10) == b"still open"
