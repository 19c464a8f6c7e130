"""Messages that come and go compressed."""

import pytest
from deflate_peers import (
    GREETING,
    LENGTHS,
    MIN_SIZE,
    each_side,
    families,
    fragments,
    one_by_one,
    ours,
    random_bytes,
    random_text,
    repeated,
    starter,
    taking_over,
)
from support import running, wait_event, wait_until
from websocket_peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    OFFER,
    PING,
    PONG,
    RSV1,
    TEXT,
    Closed,
    closing,
    deflate_peer_of,
    echo,
    frame,
    head,
    header,
    message,
    peer_of,
    ping,
    pong,
    recorder,
    removed_with,
    text,
)

import hydrogen
from hydrogen import WebSocket

RSV2, RSV3 = 0x20, 0x10


@pytest.fixture
def begin(start, connect, tmp_path):
    """See `starter`."""
    return starter(start, connect, tmp_path)


# ------------------------------------------------------------------------------------------- echoes


@families
@each_side
def test_messages_of_every_length_come_and_go_compressed(begin, family, sides):
    """Those of the server only from `min_size` bytes on, which the peer checks."""
    _, peer = begin(recorder(message=echo), sides, family, settings={"max_message": 2 << 20})
    for length in LENGTHS:
        for make in (repeated, random_text, bytes, random_bytes):
            peer.echo(make(length))


def test_messages_of_every_length_come_and_go_over_a_unix_socket(begin):
    _, peer = begin(recorder(message=echo), "both", "unix", settings={"max_message": 2 << 20})
    for length in LENGTHS:
        peer.echo(repeated(length))
        peer.echo(random_bytes(length))


@each_side
@pytest.mark.parametrize("min_size", [0, 1, 100])
def test_messages_are_compressed_from_min_size_on(begin, sides, min_size):
    _, peer = begin(recorder(message=echo), sides, deflate={"min_size": min_size})
    for length in (99, 100, 0, 0, 1, 0, 2, 101, 0):
        peer.echo("x" * length)
        peer.echo(random_bytes(length))


def test_min_size_counts_bytes_and_not_characters(begin):
    _, peer = begin(recorder(message=echo))
    peer.echo("ä" * (MIN_SIZE // 2 - 1) + "a")
    assert not peer.is_compressed
    peer.echo("ä" * (MIN_SIZE // 2))
    assert peer.is_compressed


def test_what_is_compressed_is_shorter(begin):
    _, peer = begin(recorder(message=echo))
    peer.echo("x" * 100_000)
    assert len(peer.carried) < 1000


@each_side
def test_text_is_str_and_anything_else_is_bytes(begin, sides):
    handler = recorder(message=echo)
    _, peer = begin(handler, sides)
    sent = [GREETING, GREETING.encode(), "", b"", "x", b"x"]
    for data in sent:
        peer.echo(data)
    assert handler.messages() == sent
    assert [type(data) for data in handler.messages()] == [str, bytes] * 3


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"abc" * 1000),
        memoryview(b"abc" * 1000),
        type("Text", (str,), {"encode": lambda self: b"other"})("abc" * 1000),
        type("Data", (bytes,), {})(b"abc" * 1000),
    ],
    ids=["bytearray", "memoryview", "a str of the user's", "bytes of the user's"],
)
@ours
def test_send_takes_texts_and_all_that_is_like_bytes(begin, sides, data):
    handler = recorder(connected=None)
    server, peer = begin(handler, sides)
    assert handler.socket().send(data)
    server.broadcast(data)
    expected = "abc" * 1000 if isinstance(data, str) else b"abc" * 1000
    assert [peer.receive_message(), peer.receive_message()] == [expected] * 2


@ours
def test_what_was_sent_may_be_changed_afterwards(begin, sides):
    handler = recorder(connected=None)
    _, peer = begin(handler, sides)
    data = bytearray(random_bytes(2000))
    handler.socket().send(data)
    data[:] = bytes(2000)
    assert peer.receive_message() == random_bytes(2000)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (1, TypeError),
        (None, TypeError),
        (memoryview(bytes(4000))[::2], TypeError),
        ("\ud800" * 1000, ValueError),
        ("x\udfff", ValueError),
    ],
    ids=["int", "None", "not contiguous", "halves of pairs", "half a pair"],
)
@ours
def test_what_cannot_be_sent_is_refused_and_nothing_is_sent(begin, sides, data, error):
    def received(socket, _):
        with pytest.raises(error):
            socket.send(data)
        with pytest.raises(error):
            socket.server.broadcast(data)
        socket.send(GREETING)

    server, peer = begin(recorder(message=received), sides)
    for _ in range(2):
        peer.send(text("go"))
        assert peer.receive_message() == GREETING
    wait_until(lambda: server.stats().messages_sent == 2, "they are counted")


@each_side
@families
def test_messages_in_one_segment_are_answered_in_order(begin, family, sides):
    _, peer = begin(recorder(message=echo), sides, family)
    data = [f"{n}" * (n * 7 % 800) if n % 3 else random_bytes(n * 7 % 2000, n) for n in range(300)]
    peer.send(
        b"".join([peer.deflated(part) if n % 4 else message(part) for n, part in enumerate(data)])
    )
    assert [peer.receive_message() for _ in data] == data


@pytest.mark.parametrize("split", ["one segment", "dripped"])
def test_messages_behind_the_request_are_served(start, connect, split):
    """As to be compressed as what was offered has it, without waiting for the answer."""
    server = start(recorder(message=echo), websocket=WebSocket(deflate=taking_over("both")))
    peer = deflate_peer_of(connect(server), min_size=MIN_SIZE)
    peer.client_bits = 12
    wire = head(f"Sec-WebSocket-Extensions: {OFFER}")
    wire += peer.deflated(GREETING) + peer.deflated(GREETING) + text("plain")
    for part in [wire] if split == "one segment" else one_by_one(wire):
        peer.send(part)
    peer.receive_opening()
    assert [peer.receive_message() for _ in range(3)] == [GREETING, GREETING, "plain"]


@each_side
def test_messages_that_are_dripped_are_whole(begin, sides):
    _, peer = begin(recorder(message=echo), sides)
    for part in one_by_one(peer.deflated(GREETING) + peer.deflated(b"abc" * 500)):
        peer.send(part)
    assert [peer.receive_message(), peer.receive_message()] == [GREETING, b"abc" * 500]


def test_the_examples_of_the_rfc_are_understood(begin):
    """Section 7.2.3, without a zlib of anybody's."""
    handler = recorder(message=echo)
    _, peer = begin(handler, "client")
    examples = [
        "f2 48 cd c9 c9 07 00",  # one block
        "f2 00 11 00 00",  # that refers to the message before
        "00 05 00 fa ff 48 65 6c 6c 6f 00",  # not compressed
        "f2 48 05 00 00 00 ff ff ca c9 c9 07 00",  # two blocks
    ]
    for example in examples:
        peer.send(frame(FIN | RSV1 | TEXT, bytes.fromhex(example)))
        assert peer.receive_message() == "Hello"
    first = frame(TEXT | RSV1, bytes.fromhex("f2 48 cd"))
    peer.send(first + frame(FIN | CONTINUATION, bytes.fromhex("c9 c9 07 00")))
    assert peer.receive_message() == "Hello"
    peer.send(frame(FIN | RSV1 | BINARY, b"\0"))
    assert peer.receive_message() == b""


# ---------------------------------------------------------------------------------------- fragments


@pytest.mark.parametrize("split", ["one segment", "dripped"])
@pytest.mark.parametrize("sides", ["neither", "client"])
def test_a_compressed_message_may_be_split_anywhere(begin, sides, split):
    """In the middle of a character, and before the first byte, too."""
    _, peer = begin(recorder(message=echo), sides)
    data = "Grüße € \U0001f600"
    for at in range(40):
        payload = peer.compress(data.encode())
        wire = fragments(TEXT, [payload[:at], payload[at:]])
        for part in [wire] if split == "one segment" else one_by_one(wire):
            peer.send(part)
        assert peer.receive_message() == data


@each_side
def test_fragments_of_any_number_make_one_message(begin, sides):
    _, peer = begin(recorder(message=echo), sides)
    for data in (random_bytes(3000), b"x" * 3000):
        for _ in range(2):
            payload = peer.compress(data)
            peer.send(fragments(BINARY, [b"", *one_by_one(payload), b"", b""]))
            assert peer.receive_message() == data


@families
@each_side
def test_pings_between_fragments_are_answered_before_the_message(begin, family, sides):
    _, peer = begin(recorder(message=echo), sides, family)
    for _ in range(3):
        parts = one_by_one(peer.compress(GREETING.encode()))
        peer.send(fragments(TEXT, parts, ping(b"now") + pong(b"unasked")))
        for _ in parts[1:]:
            assert peer.receive_pong() == b"now"
        assert peer.receive_message() == GREETING
        assert peer.is_compressed


def test_a_close_amid_a_compressed_message_drops_that(begin):
    handler = recorder(message=echo)
    server, peer = begin(handler, "both")
    whole, payload = peer.deflated(GREETING), peer.compress(GREETING.encode())
    peer.send(whole + frame(TEXT | RSV1, payload[:5]) + closing(3999))
    assert peer.receive_message() == GREETING
    assert peer.ended() == Closed(3999, "")
    removed_with(server, handler, 3999)
    assert handler.messages() == [GREETING]


PART = frame(TEXT | RSV1, b"\xf2\x48")
PLAIN_PART = frame(TEXT, b"He")

RESERVED = {
    "RSV1 of a continuation": PART + bytes([RSV1 | CONTINUATION]),
    "RSV1 of the last continuation": PART + bytes([FIN | RSV1 | CONTINUATION]),
    "RSV1 of a continuation of a plain one": PLAIN_PART + bytes([FIN | RSV1 | CONTINUATION]),
    "RSV1 of a continuation of nothing": bytes([FIN | RSV1 | CONTINUATION]),
    "RSV1 of a ping": bytes([FIN | RSV1 | PING]),
    "RSV1 of a pong": bytes([FIN | RSV1 | PONG]),
    "RSV1 of a CLOSE": bytes([FIN | RSV1 | CLOSE]),
    "RSV1 of a ping amid a message": PART + bytes([FIN | RSV1 | PING]),
    "RSV1 of opcode 3": bytes([FIN | RSV1 | 3]),
    "RSV2": bytes([FIN | RSV2 | TEXT]),
    "RSV3": bytes([FIN | RSV3 | BINARY]),
    "RSV1 and RSV2": bytes([FIN | RSV1 | RSV2 | TEXT]),
    "RSV1 and RSV3": bytes([FIN | RSV1 | RSV3 | TEXT]),
    "RSV2 of a continuation": PART + bytes([FIN | RSV2]),
    "a text in a message": PART + bytes([FIN | RSV1 | TEXT]),
    "unmasked": header(FIN | RSV1 | TEXT, 5, is_masked=False),
}


@pytest.mark.parametrize("data", RESERVED.values(), ids=RESERVED)
@pytest.mark.parametrize("sides", ["neither", "both"])
def test_a_bit_where_it_must_not_be_is_told_with_1002_at_once(begin, sides, data):
    handler = recorder(message=echo)
    server, peer = begin(handler, sides)
    peer.send(peer.deflated(GREETING) + data)
    assert peer.receive_message() == GREETING
    assert peer.ended().code == 1002
    assert type(removed_with(server, handler, 1002)) is hydrogen.ProtocolError
    assert handler.messages() == [GREETING]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["pause", "close"])
def test_nothing_is_delivered_once_a_pause_or_a_close_has_returned(
    begin, connect, without_switches, end
):
    """A message is being inflated at that moment, in most of these rounds: zlib lets go of the GIL,
    which nobody gets between the look at the pause and the callback, that is counted.
    """
    data = "".join(f"{n} and so on, " for n in range(40_000))

    def received(socket, data):
        if data == "hello":
            socket.send(data)

    handler = recorder(connected=None, message=received)
    server, other = begin(handler)
    handler.wait_for("connected")
    for count in range(2, 18):
        peer = deflate_peer_of(connect(server)).open(offer=OFFER)
        socket = handler.wait_for("connected", count)[-1].socket
        wire = frame(FIN | RSV1 | TEXT, peer.compress(data.encode()))
        before = server.stats().messages_received
        with running(lambda: peer.client.sock.sendall(wire * 20)):  # noqa: B023
            wait_until(lambda: server.stats().messages_received > before + 2, "they come")  # noqa: B023
            if end == "pause":
                socket.pause_reading()
            else:
                socket.close()
            begun = server.stats().messages_received
        for _ in range(3):
            other.echo("hello")
        assert server.stats().messages_received == begun + 3
        socket.abort()  # or a graceful stop waits for the end of its pause
        peer.close()


@pytest.mark.parametrize("sides", ["neither", "both"])
def test_a_few_bytes_that_are_much_are_one_turn(begin, connect, gate, sides):
    """On the one worker another client's message comes after one or two of them."""
    go, behind = gate(), []

    def received(socket, data):
        if data == GREETING:
            socket.send(f"behind {len(behind)}")
        elif len(behind) == 0:
            wait_event(go, "let go")
        behind.append(socket.id)

    handler = recorder(connected=None, message=received)
    server, peer = begin(handler, sides, max_threads=1)
    other = peer_of(connect(server)).open()
    handler.wait_for("connected", 2)
    peer.send(b"".join(peer.deflated(bytes(1 << 20)) for _ in range(100)))
    handler.wait_for("message")
    other.send(text(GREETING))
    go.set()
    assert int(other.receive_message().removeprefix("behind ")) < 5
