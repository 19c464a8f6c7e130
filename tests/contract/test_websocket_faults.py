"""What clients send that is no WebSocket: each is told with its code, as soon as it is there."""

import pytest
from support import drip, timed_out, wait_until
from websocket_peers import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FAMILIES,
    FIN,
    MASK,
    PING,
    PONG,
    TEXT,
    Closed,
    binary,
    closing,
    echo,
    frame,
    header,
    masked,
    options_of,
    peer_of,
    ping,
    recorder,
    text,
)

import hydrogen
from hydrogen import WebSocket

SHORT = 0.3
"""Seconds of the deadlines that are to pass."""

KINDS = {
    1002: hydrogen.ProtocolError,
    1007: hydrogen.InvalidText,
    1009: hydrogen.FrameTooLarge,
}

RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
PART = frame(TEXT, b"part")
"""The beginning of a message."""


@pytest.fixture
def ends(start, connect):
    """Send something; it must end the connection with this code, without another byte or an
    answer to the CLOSE, and a neighbour must not notice.
    """

    def ends(data, code, *, family="tcp", path="", messages=(), **settings):
        handler = recorder(message=echo)
        where = options_of(family, path)
        server = start(handler, websocket=WebSocket(close_timeout=60.0, **settings), **where)
        neighbour = peer_of(connect(server), family).open()
        peer = peer_of(connect(server), family).open()
        for part in [data] if isinstance(data, bytes) else data:
            peer.send(part)
        for expected in messages:
            assert peer.receive_message() == expected
        closed = peer.ended()
        assert closed.code == code
        (error,) = handler.wait_disconnected()
        assert type(error) is KINDS[code]
        # who keeps it would else keep what was read
        assert (error.__traceback__, error.__context__) == (None, None)
        assert handler.messages() == list(messages)
        assert handler.wait_removed() == [error]
        assert server.stats().removed_protocol_error == 1
        assert dict(server.stats().closes) == {code: 1}
        neighbour.echo("")
        return closed

    return ends


def one_by_one(data):
    """The bytes of `data`, to be sent each by itself."""
    return [data[at : at + 1] for at in range(len(data))]


# ------------------------------------------------------------------------------------ broken frames

BROKEN = {
    # no more than is needed to see it
    **{f"RSV{n}": bytes([FIN | TEXT | bit]) for n, bit in ((1, RSV1), (2, RSV2), (3, RSV3))},
    "RSV of a continuation": PART + bytes([FIN | RSV1]),
    "RSV of a ping": bytes([FIN | PING | RSV1]),
    "RSV of a CLOSE": bytes([FIN | CLOSE | RSV3]),
    **{f"opcode {n}": bytes([FIN | n]) for n in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "opcode 3 in a message": PART + bytes([FIN | 3]),
    "a fragmented ping": bytes([PING]),
    "a fragmented pong": bytes([PONG]),
    "a fragmented CLOSE": bytes([CLOSE]),
    "a continuation of nothing": bytes([FIN | CONTINUATION]),
    "a first fragment of nothing": bytes([CONTINUATION]),
    "a text in a message": PART + bytes([FIN | TEXT]),
    "a binary message in a text": PART + bytes([BINARY]),
    "a text behind an empty fragment": frame(TEXT) + bytes([TEXT]),
    "unmasked": header(FIN | TEXT, 5, is_masked=False),
    "unmasked and empty": header(FIN | BINARY, 0, is_masked=False),
    "an unmasked ping": header(FIN | PING, 0, is_masked=False),
    "an unmasked CLOSE": header(FIN | CLOSE, 2, is_masked=False),
    "unmasked, the length to come": b"\x82\x7e",
    "a ping of 126 bytes": b"\x89\xfe",
    "a pong of 64 bits of length": b"\x8a\xff",
    "a CLOSE of 126 bytes": b"\x88\xfe",
    "5 in 16 bits": b"\x82\xfe\x00\x05",
    "125 in 16 bits": b"\x82\xfe\x00\x7d",
    "5 in 64 bits": b"\x82\xff" + bytes(7) + b"\x05",
    "65,535 in 64 bits": b"\x82\xff" + bytes(6) + b"\xff\xff",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_frame_is_told_with_1002_at_once(ends, data):
    """Nothing follows: no payload is waited for."""
    ends(data, 1002)


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_frame_that_is_dripped_is_refused_too(ends, data):
    ends(one_by_one(data), 1002)


@pytest.mark.parametrize("family", FAMILIES)
def test_good_messages_before_a_broken_frame_in_one_segment_are_answered(ends, family, tmp_path):
    data = text("good") + binary(b"too") + b"\x83" + text("never")
    ends(data, 1002, family=family, path=tmp_path / "s", messages=["good", b"too"])


def test_a_continuation_behind_the_last_one_is_told_with_1002(ends):
    ends(PART + frame(FIN) + bytes([FIN]), 1002, messages=["part"])


def test_a_ping_before_a_broken_frame_is_answered(start, connect):
    peer = peer_of(connect(start(recorder()))).open()
    peer.send(ping(b"still") + b"\x83")
    assert peer.receive_pong() == b"still"
    assert peer.ended().code == 1002


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_client_goes_on_to_send_does_not_take_the_code_away(ends, family, tmp_path):
    """To end with unread input would be a reset."""
    ends(b"\x83" + bytes(1 << 20), 1002, family=family, path=tmp_path / "s")


# -------------------------------------------------------------------------------------- broken text

NO_TEXT = {
    "a lone continuation byte": b"\x80",
    "0xff": b"\xff",
    "overlong /": b"\xc0\xaf",
    "overlong, three bytes": b"\xe0\x80",
    "overlong, four bytes": b"\xf0\x80",
    "half of a surrogate pair": b"\xed\xa0",
    "the other half": b"\xed\xbf",
    "over U+10FFFF": b"\xf4\x90",
    "five bytes": b"\xf8",
    "a character that is broken off": b"\xe2\x82a",
    "a new one in the middle of one": b"\xe2\xe2",
}
"""As much as is needed to see it."""
no_text = pytest.mark.parametrize("bad", NO_TEXT.values(), ids=NO_TEXT)
FRONT = "\u00e4 good beginning ".encode()


@no_text
def test_a_text_that_is_not_utf_8_is_told_with_1007(ends, bad):
    ends(frame(FIN | TEXT, FRONT + bad + b" end"), 1007)


@no_text
def test_it_is_at_the_bad_byte_in_half_a_frame(ends, bad):
    """The frame declares more than comes."""
    data = FRONT + bad
    ends(header(FIN | TEXT, len(data) + 1000) + MASK + masked(data), 1007)


@no_text
def test_it_is_in_the_first_fragment(ends, bad):
    ends(frame(TEXT, FRONT + bad), 1007)


@no_text
def test_it_is_in_a_later_fragment(ends, bad):
    ends(frame(TEXT, FRONT + bad[:1]) + frame(CONTINUATION, bad[1:] or b"\x80"), 1007)


@no_text
def test_it_is_where_it_is_dripped(ends, bad):
    data = FRONT + bad
    ends(one_by_one(header(FIN | TEXT, len(data) + 1000) + MASK + masked(data)), 1007)


@pytest.mark.parametrize("cut", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98"])
@pytest.mark.parametrize("last", [b"", None], ids=["an empty fragment at the end", "one frame"])
def test_a_text_that_ends_amid_a_character_is_no_text(ends, cut, last):
    whole = frame(FIN | TEXT, FRONT + cut)
    ends(whole if last is None else frame(TEXT, FRONT + cut) + frame(FIN, last), 1007)


def test_what_is_no_text_may_be_a_binary_message(start, connect):
    peer = peer_of(connect(start(recorder(message=echo)))).open()
    for bad in NO_TEXT.values():
        peer.echo(bad)


def test_good_messages_before_it_are_answered(ends):
    ends(text("good") + frame(FIN | TEXT, b"\xff"), 1007, messages=["good"])


# ------------------------------------------------------------------------------------ broken CLOSEs


@pytest.mark.parametrize(
    "code",
    [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535],
)
def test_a_close_with_a_code_that_is_none_is_told_with_1002(ends, code):
    ends(closing(code, "why"), 1002)


def test_a_close_of_one_byte_is_told_with_1002(ends):
    ends(frame(FIN | CLOSE, b"\x03"), 1002)


@no_text
def test_a_close_whose_reason_is_not_utf_8_is_told_with_1007(ends, bad):
    ends(frame(FIN | CLOSE, b"\x03\xe8" + bad), 1007)


def test_a_close_whose_reason_is_broken_off_is_told_with_1007(ends):
    ends(frame(FIN | CLOSE, b"\x03\xe8good\xe2\x82"), 1007)


# ------------------------------------------------------------------------------------ long messages

LONG = {
    **{f"{n:#x} in 16 bits": b"\x82\xfe" + n.to_bytes(2, "big") for n in (1001, 0x8000, 0xFFFF)},
    **{
        f"{n:#x} in 64 bits": b"\x82\xff" + n.to_bytes(8, "big")
        for n in (1 << 16, 1 << 30, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    },
    "text": b"\x81\xfe\x03\xe9",
    "a fragment": b"\x02\xfe\x03\xe9",
    "with another one": frame(BINARY, bytes(600)) + b"\x00\xfe\x01\x91",
    "2^64 with another one": frame(BINARY, bytes(600)) + b"\x80\xff" + b"\xff" * 8,
    "one byte too many": frame(TEXT, b"x" * 1000) + b"\x80\x81",
}


@pytest.mark.parametrize("data", LONG.values(), ids=LONG)
@pytest.mark.parametrize("split", [lambda data: data, one_by_one], ids=["at once", "dripped"])
def test_a_message_over_max_message_is_told_with_1009_at_the_header(ends, data, split):
    """There is no mask, and nothing of its payload."""
    ends(split(data), 1009, max_message=1000)


def test_nothing_is_allocated_for_such_a_message(start, connect):
    server = start(recorder(message=echo), max_threads=1)  # so there is one pool of blocks
    neighbour, peer = peer_of(connect(server)).open(), peer_of(connect(server)).open()
    neighbour.echo("x")
    before = server.stats()
    peer.send(header(FIN | BINARY, 1 << 40))
    assert peer.ended().code == 1009
    stats = server.stats()
    assert stats.buffer_allocations <= before.buffer_allocations + 1
    assert stats.queued_bytes <= before.queued_bytes + 14


@pytest.mark.parametrize("most", [1, 1000, 65_536])
def test_a_message_of_max_message_is_taken(start, connect, most):
    server = start(recorder(message=echo), websocket=WebSocket(max_message=most))
    peer = peer_of(connect(server)).open()
    peer.echo(b"x" * most)
    peer.send(frame(TEXT, b"x" * (most - 1)) + ping() + frame(CONTINUATION, b"x") + frame(FIN))
    assert peer.receive_pong() == b""
    assert peer.receive_message() == "x" * most
    peer.echo("")


def test_a_max_message_of_0_takes_empty_ones(start, connect):
    server = start(recorder(message=echo), websocket=WebSocket(max_message=0))
    peer = peer_of(connect(server)).open()
    peer.echo("")
    peer.echo(b"")
    peer.send(ping(b"x" * 125))  # is no message
    assert peer.receive_pong() == b"x" * 125
    peer.send(b"\x81\x81")
    assert peer.ended().code == 1009


def test_what_is_sent_may_be_longer(start, connect):
    handler = recorder(connected=lambda socket: socket.send("x" * 5000))
    server = start(handler, websocket=WebSocket(max_message=1))
    assert peer_of(connect(server)).open().receive_message() == "x" * 5000


def test_a_long_message_is_waited_for_in_its_time(start, connect):
    """A declared length that is allowed costs nothing before the bytes are there."""
    handler = recorder(message=echo)
    settings = WebSocket(max_message=1 << 39)
    server = start(handler, websocket=settings, frame_timeout=SHORT)
    neighbour, peer = peer_of(connect(server)).open(), peer_of(connect(server)).open()
    peer.send(header(FIN | BINARY, 1 << 39) + MASK + b"x" * 100)
    neighbour.echo("meanwhile")
    assert server.stats().queued_bytes < 1 << 20
    assert peer.at_end() == "reset"
    timed_out(handler, "frame_timeout")


# ----------------------------------------------------------------------------------- many fragments


def test_more_than_max_fragments_are_told_with_1009(ends):
    data = frame(TEXT, b"x") + frame(CONTINUATION, b"x") * 3 + frame(FIN)[:2]
    ends(data, 1009, max_fragments=4)


def test_as_many_as_max_fragments_are_taken(start, connect):
    server = start(recorder(message=echo), websocket=WebSocket(max_fragments=4))
    peer = peer_of(connect(server)).open()
    for _ in range(2):
        peer.send(frame(TEXT, b"x") + ping() + frame(CONTINUATION, b"y") * 2 + frame(FIN, b"z"))
        assert peer.receive_pong() == b""
        assert peer.receive_message() == "xyyz"
    peer.echo("in one")


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_flood_of_fragments_is_told_with_1009_and_costs_no_memory(
    start, connect, opcode, payload
):
    handler = recorder(message=echo)
    server = start(handler)
    neighbour, peer = peer_of(connect(server)).open(), peer_of(connect(server)).open()
    peer.send(frame(opcode, payload) + frame(CONTINUATION, payload) * 60_000)
    wait_until(lambda: server.stats().bytes_received > 360_000, "they are read")
    neighbour.echo("meanwhile")
    assert server.stats().queued_bytes < 1 << 20
    peer.send(frame(CONTINUATION, payload) * 6000)
    assert peer.ended().code == 1009
    assert type(handler.wait_disconnected()[0]) is hydrogen.FrameTooLarge


@pytest.mark.parametrize(
    "more",
    [frame(CONTINUATION), frame(CONTINUATION, b"x"), ping() + frame(CONTINUATION), ping()],
    ids=["empty", "one byte", "with pings", "pings only"],
)
def test_a_message_that_is_never_finished_has_frame_timeout(start, connect, more):
    """Whatever comes meanwhile does not extend it."""
    handler = recorder()
    server = start(handler, frame_timeout=SHORT)
    peer = peer_of(connect(server)).open()
    peer.send(frame(TEXT, b"begun"))
    drip(peer.client, handler, more)
    timed_out(handler, "frame_timeout")
    assert type(handler.wait_disconnected()[0]) is hydrogen.ConnectionTimeout


@pytest.mark.parametrize("begun", [b"\x81", b"\x81\xfe\x01", b"\x81\x85" + MASK + b"x"])
def test_a_frame_that_is_never_finished_has_frame_timeout(start, connect, begun):
    handler = recorder(message=echo)
    server = start(handler, frame_timeout=SHORT)
    peer = peer_of(connect(server)).open()
    peer.echo("hello")
    peer.send(begun)
    assert peer.at_end() == "reset"
    timed_out(handler, "frame_timeout")
    assert dict(server.stats().closes) == {1006: 1}


def test_frame_timeout_begins_anew_with_each_message(start, connect):
    """Also where each begins in the segment in which the one before it ends. Another connection,
    which begins a message later and does not end it, tells that the time is over.
    """
    handler = recorder(message=echo)
    server = start(handler, frame_timeout=SHORT)
    peer, other = peer_of(connect(server)).open(), peer_of(connect(server)).open()
    peer.send(frame(TEXT, b"0"))
    other.send(frame(TEXT, b"begun"))
    while not handler.of("connection_removed"):
        peer.send(frame(FIN) + frame(TEXT, b"0"))
        assert peer.receive_message() == "0"
    timed_out(handler, "frame_timeout")
    assert peer.say_goodbye() == Closed(1000, "")
