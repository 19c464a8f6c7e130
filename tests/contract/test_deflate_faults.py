"""Clients that send what is not compressed as it says, or too much of it."""

import functools
import zlib

import pytest
from deflate_peers import (
    GREETING,
    MIN_SIZE,
    each_side,
    families,
    fragments,
    random_bytes,
    starter,
    taking_over,
)
from support import wait_until
from websocket_peers import (
    BINARY,
    FIN,
    RSV1,
    TEXT,
    closing,
    deflate_peer_of,
    echo,
    frame,
    header,
    recorder,
    removed_with,
    text,
)

import hydrogen
from hydrogen import WebSocket


@pytest.fixture
def begin(start, connect, tmp_path):
    """See `starter`."""
    return starter(start, connect, tmp_path)


# -------------------------------------------------------------------------------------- what is bad


@functools.cache
def bomb():
    """100 MiB, compressed."""
    deflater = zlib.compressobj(9, wbits=-12)
    made = b"".join([deflater.compress(bytes(1 << 20)) for _ in range(100)])
    return made + deflater.flush(zlib.Z_SYNC_FLUSH)[:-4]


def stored(data, is_final=False):
    """A message of one block that is not compressed (RFC 1951, 3.2.4)."""
    size = len(data)
    block = size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + data
    return bytes([is_final]) + block + (b"" if is_final else b"\0")


def finished(data):
    """A compressed stream that ends."""
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def referring_back():
    """A message that refers to 2,000 bytes before it."""
    deflater = zlib.compressobj(wbits=-15)
    for _ in range(2):
        made = deflater.compress(random_bytes(2000)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return made[:-4]


BAD = {
    "garbage": (BINARY, b"\xff" * 50, 1007),
    "a reserved type of block": (TEXT, b"\x06", 1007),
    "a stored block of another length": (BINARY, b"\x00\x05\x00\x00\x00hello\x00", 1007),
    "a distance beyond the beginning": (BINARY, referring_back(), 1007),
    "the end of the stream": (TEXT, finished(b"hello"), 1007),
    "the end of the stream, stored": (TEXT, stored(b"hello", True), 1007),
    "something behind the end": (TEXT, stored(b"hello", True) + stored(b"more"), 1007),
    "no UTF-8": (TEXT, stored(b"\xff"), 1007),
    "UTF-8 that is cut": (TEXT, stored("ä".encode()[:1]), 1007),
    "a surrogate": (TEXT, stored(b"\xed\xa0\x80"), 1007),
}


@pytest.fixture
def ends(begin, connect):
    """Send good messages, then something that must end the connection with this code; what comes
    behind is dropped, and a neighbour goes on.
    """

    def ends(data, code, sides="neither", family="tcp", **settings):
        handler = recorder(message=echo)
        server, neighbour = begin(handler, sides, family, settings=settings)
        peer = deflate_peer_of(connect(server), family, MIN_SIZE).open()
        neighbour.echo("before")
        peer.echo("good")
        for part in [data] if isinstance(data, bytes) else data:
            peer.send(part)
        peer.send(text("never"))
        assert peer.ended().code == code
        (error,) = handler.wait_disconnected()
        assert type(error) is (hydrogen.FrameTooLarge if code == 1009 else hydrogen.InvalidText)
        assert handler.wait_removed() == [error]
        assert handler.messages() == ["before", "good"]
        stats = server.stats()
        assert (stats.removed_protocol_error, dict(stats.closes)) == (1, {code: 1})
        assert stats.messages_received == 2
        neighbour.echo(GREETING)

    return ends


@pytest.mark.parametrize(("opcode", "payload", "code"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("sides", ["neither", "both"])
def test_what_is_not_compressed_as_it_says_is_refused(ends, sides, opcode, payload, code):
    ends(frame(FIN | RSV1 | opcode, payload), code, sides)


def test_a_message_that_is_cut_is_refused(ends):
    """In the middle of a block, so that what is missing at its end is taken for data."""
    ends(frame(FIN | RSV1 | BINARY, stored(bytes(500))[:300]), 1007)


@families
@pytest.mark.parametrize("split", ["whole", "in fragments"])
@pytest.mark.parametrize("sides", ["neither", "both"])
def test_a_bomb_is_not_inflated(ends, family, sides, split):
    """100 MiB in 100 KB."""
    data = bomb()
    assert len(data) < 120_000
    size = len(data) if split == "whole" else 1000
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    ends(fragments(BINARY, parts), 1009, sides, family, max_message=1 << 20)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@each_side
def test_a_message_of_max_message_passes_and_one_more_byte_does_not(begin, sides, opcode):
    handler = recorder(message=echo)
    server, peer = begin(handler, sides, settings={"max_message": 10_000})
    for _ in range(2):
        peer.echo("x" * 10_000 if opcode == TEXT else b"x" * 10_000)
    peer.send(peer.deflated("x" * 10_001 if opcode == TEXT else b"x" * 10_001))
    assert peer.ended().code == 1009
    error = removed_with(server, handler, 1009)
    assert type(error) is hydrogen.FrameTooLarge
    assert "10000" in str(error)
    assert len(handler.messages()) == 2


def test_a_message_of_max_message_that_cannot_be_compressed_passes_too(begin):
    """A client's zlib makes a little more of it than it was."""
    _, peer = begin(recorder(message=echo), settings={"max_message": 10_000})
    peer.echo(random_bytes(10_000))


def test_a_header_that_promises_more_than_max_message_is_refused_at_once(ends):
    ends(header(FIN | RSV1 | BINARY, 1 << 62), 1009)


def test_too_many_fragments_of_a_compressed_message_are_refused(ends):
    ends(fragments(BINARY, [b""] * 11), 1009, max_fragments=10)


def test_a_message_that_is_bad_is_not_told_before_those_ahead_are_answered(begin):
    handler = recorder(message=echo)
    server, peer = begin(handler, "both")
    good = b"".join([peer.deflated(f"{n}" * 500) for n in range(50)])
    peer.send(good + frame(FIN | RSV1 | TEXT, b"\x06") + text("never") + closing(1000))
    for n in range(50):
        assert peer.receive_message() == f"{n}" * 500
    assert peer.ended().code == 1007
    removed_with(server, handler, 1007)
    assert len(handler.messages()) == 50


def test_many_clients_that_send_what_is_bad_leave_nothing_behind(start, connect):
    """At any point of a connection's life."""
    handler = recorder(message=echo)
    server = start(handler, pre_allocated=4, websocket=WebSocket(deflate=taking_over("both")))
    ends = [
        lambda peer: peer.send(peer.deflated(GREETING)),
        lambda peer: peer.send(frame(TEXT | RSV1, b"part")),
        lambda peer: peer.send(b"\xc1\xfe"),
        lambda peer: peer.send(frame(FIN | RSV1 | TEXT, b"\xff")),
        lambda peer: peer.send(frame(FIN | RSV1 | BINARY, bomb())),
        lambda peer: peer.send(peer.deflated(GREETING) * 3 + closing(1000)),
    ]
    for number, end in enumerate(ends * 5):
        peer = deflate_peer_of(connect(server)).open()
        end(peer)
        peer.client.reset() if number % 2 else peer.close()
    handler.wait_removed(len(ends) * 5)
    deflate_peer_of(connect(server)).open().echo(GREETING)
    wait_until(lambda: sum(server.stats().closes.values()) == len(ends) * 5, "each is counted")
