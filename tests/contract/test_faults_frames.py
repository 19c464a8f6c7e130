"""docs/faults.md, rows 1 to 7: what peers send that is no frame, or too many of them. (The corpus,
and row 9, are in tests/corpus.)
"""

import functools

import pytest
from corpus import reference
from support import (
    checksum32,
    echo,
    length_frame,
    line,
    recorder,
    running,
    simple,
    wait_until,
    websocket,
)

import hydrogen
from hydrogen import (
    Checksum32FrameBuilder,
    LengthFrameBuilder,
    LineFrameBuilder,
    SimpleFrameBuilder,
    WebSocketFrameBuilder,
)

LARGEST = (1 << 63) - 1

# Each framing with a small max_size, and what makes its frames.
FRAMINGS = {
    "simple": (SimpleFrameBuilder(1000), simple),
    "checksum32": (Checksum32FrameBuilder(1000), checksum32),
    "length": (LengthFrameBuilder(max_size=1000), length_frame),
    "length 2, little": (
        LengthFrameBuilder(2, "little", 1000),
        functools.partial(length_frame, width=2, byteorder="little"),
    ),
    "length 8": (LengthFrameBuilder(8, max_size=1000), functools.partial(length_frame, width=8)),
    "line": (LineFrameBuilder(max_size=1000), line),
    "line, crlf": (LineFrameBuilder(b"\r\n", 1000), functools.partial(line, delimiter=b"\r\n")),
    "websocket": (WebSocketFrameBuilder(1000), websocket),
    "websocket, masked": (
        WebSocketFrameBuilder(1000),
        functools.partial(websocket, mask=b"\x01\x80\xff\x00"),
    ),
}
by_framing = pytest.mark.parametrize(("builder", "frame"), FRAMINGS.values(), ids=FRAMINGS)


def replied(builder, payloads):
    """What a server that echoes sends: as the frames that came, but never masked."""
    return b"".join(reference.encode(builder, payload) for payload in payloads)


# Headers that declare more than 1000 bytes, and no more than the header.
OVERSIZE = [
    *(
        pytest.param(SimpleFrameBuilder(1000), b"\x01" + n.to_bytes(2, "big"), id=f"simple {n:#x}")
        for n in (1001, 0x7FFF, 0x8000, 0xFFFF)
    ),
    *(
        pytest.param(Checksum32FrameBuilder(1000), n.to_bytes(4, "big"), id=f"checksum32 {n:#x}")
        for n in (1001, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    ),
    pytest.param(LengthFrameBuilder(1, max_size=100), b"\x65", id="length 1 0x65"),
    pytest.param(LengthFrameBuilder(1, max_size=100), b"\xff", id="length 1 0xff"),
    *(
        pytest.param(
            LengthFrameBuilder(width, byteorder, 1000),
            n.to_bytes(width, byteorder),
            id=f"length {width} {byteorder} {n:#x}",
        )
        for width in (2, 4, 8)
        for byteorder in ("big", "little")
        for n in (1001, (1 << 8 * width - 1) - 1, 1 << 8 * width - 1, (1 << 8 * width) - 1)
    ),
    pytest.param(
        LengthFrameBuilder(8, max_size=LARGEST),
        b"\x80" + bytes(7),
        id="length 8 2^63, over the largest max_size",
    ),
    *(
        pytest.param(
            WebSocketFrameBuilder(1000),
            b"\x82\x7e" + n.to_bytes(2, "big"),
            id=f"websocket 16 {n:#x}",
        )
        for n in (1001, 0x7FFF, 0x8000, 0xFFFF)
    ),
    *(
        pytest.param(
            WebSocketFrameBuilder(1000),
            b"\x82" + code + n.to_bytes(8, "big"),
            id=f"websocket 64 {code[0]:#x} {n:#x}",
        )
        for code in (b"\x7f", b"\xff")  # 0xff: masked, and the mask is not there
        for n in (0x10000, 0xFFFFFFFF, 0x100000000, LARGEST, LARGEST + 1, (1 << 64) - 1)
    ),
    pytest.param(
        WebSocketFrameBuilder(LARGEST),
        b"\x82\x7f\x80" + bytes(7),
        id="websocket 2^63, over the largest max_size",
    ),
]


@pytest.mark.clause("F6")
@pytest.mark.parametrize(("builder", "header"), OVERSIZE)
def test_f01_a_declared_length_over_max_size_is_refused_at_the_header(
    start, connect, builder, header
):
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder, max_threads=1)  # so there is one pool of blocks
    neighbour, client = connect(server), connect(server)
    neighbour.echo(replied(builder, [b"x"]))
    before = server.stats()
    client.send(header)  # and no more
    assert client.receive_until_end() == b""
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.FrameTooLarge
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")
    assert server.stats().buffer_allocations <= before.buffer_allocations + 1, (
        "nothing is allocated for the frame"
    )
    neighbour.echo(replied(builder, [b"y"]))


# A header and how many bytes a frame of its format adds: their sum is over 2^16, 2^32, 2^63 or
# 2^64.
WRAPPING = [
    *(
        pytest.param(SimpleFrameBuilder(1000), b"\x01" + n.to_bytes(2, "big"), id=f"simple {n:#x}")
        for n in range(0xFFFB, 0x10000)
    ),
    *(
        pytest.param(Checksum32FrameBuilder(1000), n.to_bytes(4, "big"), id=f"checksum32 {n:#x}")
        for n in (*range(0x7FFFFFF8, 0x80000001), *range(0xFFFFFFF8, 0x100000000))
    ),
    *(
        pytest.param(
            LengthFrameBuilder(width, byteorder, 100),
            (limit - n).to_bytes(width, byteorder),
            id=f"length {limit - n:#x} {byteorder}",
        )
        for width in (1, 2, 4, 8)
        for byteorder in ("big", "little")
        for limit in (1 << 8 * width - 1, 1 << 8 * width)
        for n in {1, width}
    ),
    *(
        pytest.param(
            WebSocketFrameBuilder(1000),
            b"\x82" + code + (limit - n).to_bytes(8, "big"),
            id=f"websocket {code[0]:#x} {limit - n:#x}",
        )
        for code in (b"\x7f", b"\xff")
        for limit in (1 << 32, 1 << 63, 1 << 64)
        for n in (1, 10, 14)
    ),
]


@pytest.mark.parametrize(("builder", "header"), WRAPPING)
def test_f02_a_length_that_wraps_around_with_the_overhead_is_no_small_one(
    start, connect, builder, header
):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=builder))
    client.send(header + b"\x17" * 20)
    assert client.receive_until_end() == b""
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.FrameTooLarge
    assert handler.messages() == []


@pytest.mark.parametrize("length", range(0xFFFB, 0x10000), ids=hex)
def test_f02_where_such_a_length_is_allowed_and_there_it_is_a_frame(start, connect, length):
    client = connect(start(recorder(data_received=echo), framing=SimpleFrameBuilder))
    payload = b"\x17" * length
    client.send(simple(payload) + simple(b"next"))
    assert client.receive_frame() == payload
    assert client.receive_frame() == b"next"


@pytest.mark.parametrize(
    ("builder", "header"),
    [
        (LengthFrameBuilder(8, max_size=LARGEST), b"\x7f" + b"\xff" * 7),
        (LengthFrameBuilder(8, "little", LARGEST), b"\xf8" + b"\xff" * 6 + b"\x7f"),
        (WebSocketFrameBuilder(LARGEST), b"\x82\x7f\x7f" + b"\xff" * 7),
        (WebSocketFrameBuilder(LARGEST), b"\x82\xff\x7f" + b"\xff" * 6 + b"\xf2mask"),
        (LineFrameBuilder(max_size=LARGEST), b"\x7f" * 8),
        (LineFrameBuilder(b"-" * 64, LARGEST), b"\x7f" * 8),
    ],
    ids=repr,
)
def test_f02_the_longest_length_that_may_be_allowed_wraps_nowhere(start, connect, builder, header):
    """Nothing is allocated for it, the frame is waited for, and the neighbour is served
    meanwhile.
    """
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder, max_threads=1)
    neighbour, client = connect(server), connect(server)
    received = 0
    for part in (header, b"a" * 20, b"b"):
        client.send(part)
        received += len(part)
        wait_until(
            lambda received=received: server.stats().bytes_received >= received, "it is read"
        )
        neighbour.echo(replied(builder, [b"x"]))
        received += len(replied(builder, [b"x"]))
    client.finish()
    assert client.receive_until_end() == b""
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.IncompleteFrame
    assert handler.messages() == [b"x"] * 3


@pytest.mark.parametrize(("builder", "header"), OVERSIZE)
def test_f03_an_oversize_frame_that_is_dripped_is_refused_at_once(start, connect, builder, header):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=builder))
    for at in range(len(header)):
        client.send(header[at : at + 1])
    assert client.receive_until_end() == b""  # though nothing of its payload was sent
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.FrameTooLarge


@by_framing
def test_f04_one_frame_in_one_byte_segments_is_one_frame(start, connect, builder, frame):
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder)
    client, other = connect(server), connect(server)
    payload = (bytes(range(256)) * 4)[:1000].replace(b"\n", b"")
    wire = frame(payload)
    for at in range(len(wire)):
        client.send(wire[at : at + 1])
        if at % 100 == 0:  # others are served meanwhile
            other.echo(replied(builder, [b"%d" % at]))
    answer = replied(builder, [payload])
    assert client.receive(len(answer)) == answer


BAD = [
    pytest.param("simple", b"\x02\x00\x01b\x17", hydrogen.ProtocolError, id="simple, start"),
    pytest.param("simple", b"\x01\x00\x01b\x18", hydrogen.ProtocolError, id="simple, end"),
    pytest.param(
        "checksum32",
        b"\x00\x00\x00\x01b\x00\x00\x00\x63",
        hydrogen.ChecksumMismatch,
        id="checksum32, one too high",
    ),
    pytest.param(
        "checksum32",
        b"\x00\x00\x00\x01b\x00\x01\x00\x62",
        hydrogen.ChecksumMismatch,
        id="checksum32, a high byte",
    ),
    pytest.param(
        "checksum32",
        b"\x00\x00\x00\x01c\x00\x00\x00\x62",
        hydrogen.ChecksumMismatch,
        id="checksum32, the payload",
    ),
    pytest.param("websocket", b"\xc2\x01b", hydrogen.ProtocolError, id="websocket, a reserved bit"),
    pytest.param(
        "websocket", b"\x83\x01b", hydrogen.ProtocolError, id="websocket, a reserved opcode"
    ),
    pytest.param(
        "websocket", b"\x09\x01b", hydrogen.ProtocolError, id="websocket, a fragmented ping"
    ),
    pytest.param(
        "websocket",
        b"\x89\x7e\x00\x7e" + b"b" * 126,
        hydrogen.ProtocolError,
        id="websocket, a long ping",
    ),
    pytest.param(
        "websocket",
        b"\x82\x7e\x00\x01b",
        hydrogen.ProtocolError,
        id="websocket, a length that is longer written than need be",
    ),
]


@pytest.mark.clause("F3", "F9", "F13", "H20")
@pytest.mark.parametrize(("framing", "bad", "error"), BAD)
def test_f05_a_bad_frame_ends_the_connection_after_the_frames_before_it(
    start, connect, framing, bad, error
):
    builder, frame = FRAMINGS[framing]
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder)
    neighbour, client = connect(server), connect(server)
    good = [b"a", b"", b"c" * 1000]
    client.send(b"".join(map(frame, good)) + bad + frame(b"never"))
    assert client.receive_until_end() == replied(builder, good)
    client.close()
    assert type(handler.wait_removed()[0]) is error
    assert handler.messages() == good
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")
    neighbour.echo(replied(builder, [b"still here"]))


@by_framing
def test_f05_the_end_inside_a_frame_is_an_incomplete_frame(start, connect, builder, frame):
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder)
    wire = frame(b"cut off")
    for number in range(1, len(wire)):
        with connect(server) as client:
            client.send(frame(b"whole") + wire[:number])
            client.finish()
            assert client.receive_until_end() == replied(builder, [b"whole"])
        assert type(handler.wait_removed(number)[-1]) is hydrogen.IncompleteFrame
    assert handler.messages() == [b"whole"] * (len(wire) - 1)


@pytest.mark.parametrize(
    ("builder", "most"),
    [
        (LineFrameBuilder(max_size=100), 101),  # the last may be a carriage return
        (LineFrameBuilder(max_size=0), 1),
        (LineFrameBuilder(b"\r\n", 100), 101),  # the last may begin the delimiter
        (LineFrameBuilder(b"\x00", 100), 100),
        (LineFrameBuilder(b"-" * 63 + b"+", 100), 163),
    ],
    ids=repr,
)
def test_f06_a_line_without_an_end_is_refused_at_max_size(start, connect, builder, most):
    """And not a byte earlier: as long as it may still become a line it is waited for."""
    handler = recorder(data_received=echo)
    server = start(handler, framing=builder, max_threads=1)
    client, other = connect(server), connect(server)
    for received in range(1, most + 1):
        client.send(b"-")
        wait_until(
            lambda received=received: server.stats().bytes_received == received, "it is read"
        )
    assert not handler.of("connection_removed")
    client.send(b"-")
    assert client.receive_until_end() == b""
    client.close()
    other.send(b"-" * (most + 1))  # and in one piece
    assert other.receive_until_end() == b""
    other.close()
    assert [type(error) for error in handler.wait_removed(2)] == [hydrogen.FrameTooLarge] * 2
    assert handler.messages() == []


@by_framing
@pytest.mark.clause("F7")
def test_f07_a_flood_of_zero_length_frames_is_delivered_and_neighbours_are_served(
    start, connect, builder, frame
):
    count = 20_000
    served = []
    handler = recorder(data_received=lambda socket, data: socket.send(data) if data else None)
    server = start(handler, framing=builder)
    flood, neighbour = connect(server), connect(server)

    def ping():
        for number in range(100):
            neighbour.echo(replied(builder, [b"%d" % number]))
            served.append(number)

    with running(lambda: flood.send(frame(b"") * count), ping):
        pass
    assert served == list(range(100))
    # `wait_for` would wake this thread for each of them.
    wait_until(lambda: len(handler.calls) == count + 100, "all are delivered")
    assert handler.messages().count(b"") == count
    answer = replied(builder, [b"at its end"])
    flood.send(frame(b"at its end"))
    assert flood.receive(len(answer)) == answer


@by_framing
def test_f07_one_burst_of_many_frames_does_not_go_before_everybody_else(
    start, connect, gate, builder, frame
):
    """One worker is held until a burst and a single message wait: the single one is delivered
    within the burst.
    """
    go = gate()
    handler = recorder(data_received=lambda socket, data: go.wait(60) if data == b"hold" else None)
    server = start(handler, framing=builder, max_threads=1)
    holder, burst, single = (connect(server) for _ in range(3))
    holder.send(frame(b"hold"))
    handler.wait_for("data_received")
    burst.send(frame(b"") * 10_000)
    single.send(frame(b"single"))
    go.set()
    handler.wait_for("data_received", 10_002)
    assert handler.messages().index(b"single") < 10_000
