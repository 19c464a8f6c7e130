"""Frames and their builder, without any socket; the bytes are in tests/corpus."""

import hypothesis
import pytest
from hypothesis import strategies as st
from support import simple, unframe

import hydrogen
from hydrogen import SimpleFrame, SimpleFrameBuilder

payloads = st.binary(max_size=400)


@pytest.mark.clause("F1", "F5")
@hypothesis.given(payloads)
def test_a_frame_knows_its_payload_its_bytes_and_their_number(payload):
    frame = SimpleFrame(payload)
    assert frame.payload() == payload
    assert frame.to_bytes() == simple(payload)
    assert frame.len_as_vec() == len(frame) == len(simple(payload))


@pytest.mark.clause("F2", "F4")
@hypothesis.given(st.lists(payloads, max_size=8), st.binary(max_size=3))
def test_what_the_builder_makes_it_takes_off_again_one_by_one(messages, tail):
    builder = SimpleFrameBuilder()
    buffer = bytearray(b"".join(builder.frame(message).to_bytes() for message in messages))
    wire = bytes(buffer)
    assert unframe(wire) == messages
    for message in messages:
        before = len(buffer)
        frame = builder.from_bytes(buffer)
        assert frame.payload() == message
        assert before - len(buffer) == len(frame)
    assert builder.from_bytes(buffer) is None
    assert buffer == b""


@pytest.mark.clause("F2")
@hypothesis.given(payloads, st.data())
def test_a_frame_that_is_not_complete_is_left_as_it_is(payload, data):
    wire = simple(payload)
    cut = data.draw(st.integers(0, len(wire) - 1))
    buffer = bytearray(wire[:cut])
    assert SimpleFrameBuilder().from_bytes(buffer) is None
    assert buffer == wire[:cut]


@pytest.mark.clause("F3")
@hypothesis.given(st.binary(max_size=60), st.integers(0, 20))
def test_f09_any_bytes_at_all_are_a_frame_or_an_error_or_not_enough(noise, max_size):
    buffer = bytearray(noise)
    builder = SimpleFrameBuilder(max_size)
    try:
        frame = builder.from_bytes(buffer)
    except hydrogen.ProtocolError:
        assert noise[0] != 1 or len(noise) >= 3
        return
    if frame is None:
        assert buffer == noise
    else:
        assert simple(frame.payload()) + buffer == noise
        assert len(frame.payload()) <= max_size


@pytest.mark.clause("F6", "F4")
@pytest.mark.parametrize("max_size", [0, 1, 100, 65_535])
def test_max_size_limits_what_is_made(max_size):
    builder = SimpleFrameBuilder(max_size)
    assert len(builder.frame(bytes(max_size))) == max_size + 4
    with pytest.raises(hydrogen.FrameTooLarge, match=str(max_size + 1)):
        builder.frame(bytes(max_size + 1))


@pytest.mark.clause("F6")
def test_a_frame_cannot_carry_more_than_its_format_allows():
    assert len(SimpleFrame(bytes(65_535))) == 65_539
    with pytest.raises(hydrogen.FrameTooLarge, match="65536"):
        SimpleFrame(bytes(65_536))


@pytest.mark.parametrize(
    ("wrong", "error"), [(-1, ValueError), (65_536, ValueError), ("1", TypeError), (True, TypeError), (1.0, TypeError)]
)
def test_a_wrong_max_size_is_refused(wrong, error):
    with pytest.raises(error, match="max_size"):
        SimpleFrameBuilder(wrong)


def test_a_frame_copies_what_it_is_made_of():
    source = bytearray(b"abc")
    frame = SimpleFrame(source)
    source[:] = b"xyz"
    assert frame.payload() == b"abc"
    assert type(frame.payload()) is bytes
    assert SimpleFrame(memoryview(b"abc")).to_bytes() == frame.to_bytes()


def test_errors_of_the_builder_name_what_they_saw():
    with pytest.raises(hydrogen.ProtocolError, match="0x02"):
        SimpleFrameBuilder().from_bytes(bytearray(b"\x02"))
    with pytest.raises(hydrogen.ProtocolError, match="0x18"):
        SimpleFrameBuilder().from_bytes(bytearray(b"\x01\x00\x00\x18"))
    with pytest.raises(hydrogen.FrameTooLarge, match="200 is over max_size 100"):
        SimpleFrameBuilder(100).from_bytes(bytearray(b"\x01\x00\xc8"))


@pytest.mark.clause("F1")
def test_users_may_write_frames_and_builders():
    class Byte(hydrogen.Frame):
        def __init__(self, payload):
            self._payload = bytes(payload)

        def to_bytes(self):
            return self._payload

        def payload(self):
            return self._payload

    class Bytes(hydrogen.FrameBuilder):
        def from_bytes(self, buf):
            return Byte([buf.pop(0)]) if buf else None

        def frame(self, payload):
            return Byte(payload)

    buffer = bytearray(b"ab")
    assert Bytes().from_bytes(buffer).payload() == b"a"
    assert len(Bytes().frame(b"abc")) == Bytes().frame(b"abc").len_as_vec() == 3
    for abstract in (hydrogen.Frame, hydrogen.FrameBuilder, hydrogen.Stream, hydrogen.HydrogenSocket):
        with pytest.raises(TypeError, match="abstract"):
            abstract()


def test_their_repr_says_what_they_are():
    assert repr(SimpleFrame(b"a")) == "SimpleFrame(b'a')"
    assert repr(SimpleFrameBuilder(7)) == "SimpleFrameBuilder(max_size=7)"
