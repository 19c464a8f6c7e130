"""What holds for any payload and any bytes: round trips, and the decoders and encoders compared
with each other and with those of others.

The oracles for WebSocket frames are wsproto and websockets, which know nothing of hydrogen.
"""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import websockets.frames
import websockets.streams
import wsproto.frame_protocol
from corpus import reference
from corpus.test_decoders import decode_compiled, decode_in_python
from hypothesis import strategies as st

import hydrogen
from hydrogen import (
    Checksum32FrameBuilder,
    LengthFrameBuilder,
    LineFrameBuilder,
    SimpleFrameBuilder,
    WebSocketFrame,
    WebSocketFrameBuilder,
)
from hydrogen.codec import encode

LARGEST = (1 << 63) - 1
# How long an example takes is no matter of these tests.
unhurried = hypothesis.settings(
    deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
thorough = hypothesis.settings(unhurried, max_examples=400)

DECODERS = {"python": decode_in_python, "compiled": decode_compiled}


def encoder(engine: str) -> Any:
    """The encoder of the engine under test: (builder, payload) -> bytes."""
    if engine == "python":
        return encode
    from hydrogen import _codec  # not there in a pure build, where this engine is not under test

    return _codec.encode


sizes = st.one_of(st.integers(0, 20), st.integers(120, 300), st.just(65_535))
delimiters = st.one_of(
    st.sampled_from([b"\n", b"\r\n", b"\x00", b"aab", b"aaaa"]),
    st.binary(min_size=1, max_size=64),
    st.text("ab", min_size=1).map(str.encode),
).map(lambda delimiter: delimiter[:64])
builders = st.one_of(
    st.builds(SimpleFrameBuilder, sizes),
    st.builds(Checksum32FrameBuilder, sizes),
    st.builds(LengthFrameBuilder, st.just(1), max_size=st.integers(0, 255)),
    st.builds(
        LengthFrameBuilder, st.sampled_from([2, 4, 8]), st.sampled_from(["big", "little"]), sizes
    ),
    st.builds(LineFrameBuilder, delimiters, sizes),
    st.builds(WebSocketFrameBuilder, st.one_of(sizes, st.just(70_000), st.just(LARGEST))),
)
# Payloads that look like parts of frames, some of them long.
payloads = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from([0, 1, 0x17, 0x7D, 0x7E, 0x7F, 0x80, 0xFF, *b"\r\nab"]), max_size=300
    ).map(bytes),
    st.builds(
        lambda part, times: part * times,
        st.binary(min_size=1, max_size=4),
        st.sampled_from([32, 63, 126, 16_384, 17_500]),
    ),
)
masks = st.none() | st.binary(min_size=4, max_size=4)
opcodes = st.sampled_from([0, 1, 2, 8, 9, 10])


@st.composite
def streams(draw: Any, builder: hydrogen.FrameBuilder) -> bytes:
    """Frames, some of them too long for `builder`, then a few edits."""
    wire = bytearray()
    for payload in draw(st.lists(payloads, max_size=5)):
        # what a header can say
        if len(payload) <= (255 if getattr(builder, "width", 2) == 1 else 65_535):
            opcode = draw(opcodes)
            wire += reference.encode(builder, payload, opcode, draw(st.booleans()), draw(masks))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(wire)))
        wire[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(wire)


def outcome(function: Any, *args: Any) -> Any:
    """What it returns, or the class of what it raises."""
    try:
        return function(*args)
    except ValueError as error:
        return type(error)


@pytest.mark.clause("F2", "F4")
@unhurried
@hypothesis.given(builder=builders, payload=payloads)
def test_a_payload_comes_back_from_its_frame(engine, builder, payload):
    hypothesis.assume(reference.carries(builder, payload) is None)
    wire = encoder(engine)(builder, payload)
    assert DECODERS[engine](builder, [wire]) == ([reference.received(builder, payload)], None, 0)


@pytest.mark.clause("F2", "F4")
@unhurried
@hypothesis.given(builder=builders, payload=payloads)
def test_a_frame_read_makes_the_bytes_that_it_was_read_from(builder, payload):
    hypothesis.assume(reference.carries(builder, payload) is None)
    hypothesis.assume(reference.received(builder, payload) == payload)
    wire = reference.encode(builder, payload)
    frame = builder.from_bytes(bytearray(wire))
    assert frame.to_bytes() == wire
    assert len(frame) == len(wire)
    assert builder.from_bytes(bytearray(frame.to_bytes())).payload() == payload


@pytest.mark.clause("F4", "F6", "F12")
@thorough
@hypothesis.given(builder=builders, payload=payloads)
def test_the_encoders_make_the_same_of_any_payload(engine, builder, payload):
    expected = reference.carries(builder, payload) or reference.encode(builder, payload)
    assert outcome(encoder(engine), builder, payload) == expected
    assert outcome(encode, builder, payload) == expected


@pytest.mark.clause("F2", "F3")
@thorough
@hypothesis.given(builder=builders, data=st.data())
def test_f09_the_decoders_read_the_same_in_any_bytes_however_they_are_split(engine, builder, data):
    wire = data.draw(streams(builder))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    parts = [wire[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    got = DECODERS[engine](builder, parts)
    assert got == reference.decode(builder, wire)
    assert got == decode_in_python(builder, [wire])


@thorough
@hypothesis.given(builder=builders, noise=st.binary(max_size=60))
def test_f09_any_bytes_at_all_are_frames_or_an_error_or_not_enough(engine, builder, noise):
    frames, error, left = DECODERS[engine](builder, [noise])
    assert (frames, error, left) == reference.decode(builder, noise)
    assert all(len(frame) <= builder.max_size for frame in frames)
    assert error is None or (left == 0 and issubclass(error, hydrogen.ProtocolError))


# --------------------------------------------------------------------------- wsproto and websockets


@st.composite
def websocket_frames(draw: Any) -> WebSocketFrame:
    """Any that the RFC knows."""
    opcode = draw(opcodes)
    payload = draw(payloads)
    return WebSocketFrame(
        payload[:125] if opcode > 7 else payload,
        opcode,
        opcode > 7 or draw(st.booleans()),
        draw(masks),
    )


def parse_with_websockets(wire: bytes, mask: bool) -> websockets.frames.Frame:
    reader = websockets.streams.StreamReader()
    reader.feed_data(wire)
    parsing = websockets.frames.Frame.parse(reader.read_exact, mask=mask)
    try:
        next(parsing)
    except StopIteration as end:
        return end.value
    raise AssertionError("it wants more than the frame")


def parse_with_wsproto(wire: bytes) -> wsproto.frame_protocol.Frame | type[Exception] | None:
    """The first frame, None when it is not complete, or the class of the error."""
    # a client gets unmasked frames
    decoder = wsproto.frame_protocol.FrameDecoder(client=len(wire) < 2 or wire[1] < 128)
    decoder.receive_bytes(wire)
    try:
        return decoder.process_buffer()
    except wsproto.frame_protocol.ParseFailed as error:
        return type(error)


@pytest.mark.clause("F13")
@unhurried
@hypothesis.given(frame=websocket_frames())
def test_others_read_our_websocket_frames(frame):
    theirs = parse_with_websockets(frame.to_bytes(), frame.mask is not None)
    assert (theirs.opcode, theirs.fin, bytes(theirs.data)) == (
        frame.opcode,
        frame.fin,
        frame.payload(),
    )
    other = parse_with_wsproto(frame.to_bytes())
    assert (other.opcode, other.message_finished, other.frame_finished, other.payload) == (
        frame.opcode,
        frame.fin,
        True,
        frame.payload(),
    )


@pytest.mark.clause("F13")
@unhurried
@hypothesis.given(payload=payloads)
def test_others_read_what_the_engine_sends(engine, payload):
    wire = encoder(engine)(WebSocketFrameBuilder(), payload)
    theirs = parse_with_websockets(wire, mask=False)
    assert (theirs.opcode, theirs.fin, bytes(theirs.data)) == (2, True, payload)


@pytest.mark.clause("F13")
@unhurried
@hypothesis.given(frame=websocket_frames(), mask=st.booleans())
def test_we_read_the_frames_of_others(engine, frame, mask):
    theirs = websockets.frames.Frame(
        websockets.frames.Opcode(frame.opcode), frame.payload(), frame.fin
    ).serialize(mask=mask)
    read = WebSocketFrameBuilder().from_bytes(bytearray(theirs))
    assert (read.opcode, read.fin, read.mask is not None, read.payload()) == (
        frame.opcode,
        frame.fin,
        mask,
        frame.payload(),
    )
    others = wsproto.frame_protocol.FrameProtocol(client=mask, extensions=[])
    wires = [
        theirs,
        bytes(others.send_data(frame.payload(), fin=True)),
        bytes(others.ping(frame.payload()[:125])),
    ]
    expected = [frame.payload(), frame.payload(), frame.payload()[:125]]
    assert DECODERS[engine](WebSocketFrameBuilder(), [b"".join(wires)]) == (expected, None, 0)


@pytest.mark.clause("F3", "F13")
@thorough
@hypothesis.given(
    start=st.binary(min_size=2, max_size=2),
    length=st.integers(0, 300) | st.integers(0, (1 << 64) - 1),
    data=st.data(),
)
def test_f09_wsproto_accepts_and_refuses_the_same_headers(engine, start, length, data):
    """Any first two bytes, with the length in the form that they say; the rest whole or not, as it
    happens.
    """
    width = {126: 2, 127: 8}.get(start[1] & 0x7F, 0)
    extended = (length % (1 << 8 * width)).to_bytes(width, "big")
    wire = start + extended + data.draw(st.binary(min_size=4, max_size=400))
    frames, error, _ = DECODERS[engine](WebSocketFrameBuilder(LARGEST), [wire])
    theirs = parse_with_wsproto(wire)
    if isinstance(theirs, type):
        assert (frames, error is not None) == ([], True)
    elif theirs is not None and theirs.frame_finished:
        assert frames[0] == theirs.payload
    else:
        assert (frames, error) == ([], None)
