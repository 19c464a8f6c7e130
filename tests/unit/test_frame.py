"""Frames, their builders and what the engines use of them, without any socket; the bytes are in
tests/corpus.
"""

import copy
import functools
import pickle
import re
import weakref

import hypothesis
import pytest
from hypothesis import strategies as st
from support import checksum32, length_frame, line, simple, websocket

import hydrogen
from hydrogen import (
    Checksum32Frame,
    Checksum32FrameBuilder,
    ChunkFrame,
    LengthFrame,
    LengthFrameBuilder,
    LineFrame,
    LineFrameBuilder,
    SimpleFrame,
    SimpleFrameBuilder,
    WebSocketFrame,
    WebSocketFrameBuilder,
)
from hydrogen.codec import FrameDecoder, builder_of, encode
from hydrogen.frame import ChunkFrameBuilder
from hydrogen.framings import BUILT_IN, copy_of, is_built_in

payloads = st.binary(max_size=400)
lines = payloads.map(lambda payload: payload.replace(b"\n", b"").rstrip(b"\r"))

# how long an example takes is no matter of these tests
unhurried = hypothesis.settings(deadline=None)

MIB = 1 << 20
LARGEST = (1 << 63) - 1

# A builder, its frame's constructor, and its frames on the wire by an independent hand.
FORMATS = {
    "simple": (SimpleFrameBuilder(), SimpleFrame, simple),
    "checksum32": (Checksum32FrameBuilder(), Checksum32Frame, checksum32),
    "length": (LengthFrameBuilder(), LengthFrame, length_frame),
    "length 2, little": (
        LengthFrameBuilder(2, "little"),
        functools.partial(LengthFrame, width=2, byteorder="little"),
        functools.partial(length_frame, width=2, byteorder="little"),
    ),
    "line": (LineFrameBuilder(), LineFrame, line),
    "websocket": (WebSocketFrameBuilder(), functools.partial(WebSocketFrame, opcode=2), websocket),
    "chunk": (ChunkFrameBuilder(), ChunkFrame, bytes),
}
by_format = pytest.mark.parametrize(("builder", "make", "wire"), FORMATS.values(), ids=FORMATS)
by_framing = pytest.mark.parametrize(
    ("builder", "make", "wire"), list(FORMATS.values())[:-1], ids=list(FORMATS)[:-1]
)


# -------------------------------------------------------------------------------------- all formats


@by_format
@pytest.mark.clause("F1", "F5", "F9", "F10", "F11", "F13")
@unhurried
@hypothesis.given(payload=lines)
def test_a_frame_knows_its_payload_its_bytes_and_their_number(builder, make, wire, payload):
    for frame in (make(payload), builder.frame(payload)):
        assert frame.payload() == payload
        assert frame.to_bytes() == wire(payload)
        assert frame.len_as_vec() == len(frame) == len(wire(payload))


@by_framing
@pytest.mark.clause("F2", "F4")
@unhurried
@hypothesis.given(messages=st.lists(lines, max_size=8))
def test_what_the_builder_makes_it_takes_off_again_one_by_one(builder, make, wire, messages):
    buffer = bytearray(b"".join(builder.frame(message).to_bytes() for message in messages))
    assert buffer == b"".join(map(wire, messages))
    for message in messages:
        before = len(buffer)
        frame = builder.from_bytes(buffer)
        assert type(frame) is type(make(b""))
        assert frame.payload() == message
        assert before - len(buffer) == len(frame)
    assert builder.from_bytes(buffer) is None
    assert buffer == b""


@by_framing
@pytest.mark.clause("F2")
@unhurried
@hypothesis.given(payload=lines, data=st.data())
def test_a_frame_that_is_not_complete_is_left_as_it_is(builder, make, wire, payload, data):
    whole = wire(payload)
    cut = data.draw(st.integers(0, len(whole) - 1))
    buffer = bytearray(whole[:cut])
    assert builder.from_bytes(buffer) is None
    assert buffer == whole[:cut]


@by_format
def test_a_frame_copies_what_it_is_made_of(builder, make, wire):
    source = bytearray(b"abc")
    for frame in (make(source), builder.frame(source)):
        source[:] = b"xyz"
        assert frame.payload() == b"abc"
        assert type(frame.payload()) is bytes
        source[:] = b"abc"
    numbers = memoryview(b"abcdefgh").cast("I")  # two items of four bytes: it is bytes that count
    assert make(numbers).to_bytes() == builder.frame(numbers).to_bytes() == wire(b"abcdefgh")


@by_format
@pytest.mark.parametrize("wrong", [5, "abc", None, [1, 2]], ids=repr)
def test_a_payload_that_is_not_bytes_is_refused(builder, make, wire, wrong):
    for function in (make, builder.frame):
        with pytest.raises(TypeError):
            function(wrong)


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (SimpleFrameBuilder, 65_535),
        (Checksum32FrameBuilder, 16_843_009),
        (functools.partial(LengthFrameBuilder, 1), 255),
        (functools.partial(LengthFrameBuilder, 2), 65_535),
        (functools.partial(LengthFrameBuilder, 4), 0xFFFFFFFF),
        (functools.partial(LengthFrameBuilder, 8), LARGEST),
        (LineFrameBuilder, LARGEST),
        (WebSocketFrameBuilder, LARGEST),
    ],
)
def test_max_size_may_be_what_the_format_can_carry_and_no_more(make, limit):
    assert make(max_size=0).max_size == 0
    assert make(max_size=limit).max_size == limit
    for wrong, error in [
        (-1, ValueError),
        (limit + 1, ValueError),
        ("1", TypeError),
        (True, TypeError),
        (1.0, TypeError),
    ]:
        with pytest.raises(error, match="max_size"):
            make(max_size=wrong)


@pytest.mark.clause("F14")
def test_max_size_has_a_default():
    builders = [
        SimpleFrameBuilder(),
        Checksum32FrameBuilder(),
        LengthFrameBuilder(),
        LineFrameBuilder(),
        WebSocketFrameBuilder(),
    ]
    assert [builder.max_size for builder in builders] == [65_535, MIB, MIB, 65_536, MIB]
    assert [LengthFrameBuilder(width).max_size for width in (1, 2, 4, 8)] == [255, 65_535, MIB, MIB]


@pytest.mark.parametrize("max_size", [0, 1, 100, 65_535])
@pytest.mark.parametrize(
    "make",
    [
        SimpleFrameBuilder,
        Checksum32FrameBuilder,
        LengthFrameBuilder,
        functools.partial(LengthFrameBuilder, 8, "little"),
        LineFrameBuilder,
        WebSocketFrameBuilder,
    ],
)
@pytest.mark.clause("F6", "F4")
def test_max_size_limits_what_is_made(make, max_size):
    builder = make(max_size=max_size)
    assert builder.frame(bytes(max_size)).payload() == bytes(max_size)
    with pytest.raises(
        hydrogen.FrameTooLarge, match=f"{max_size + 1} bytes is over max_size {max_size}"
    ):
        builder.frame(bytes(max_size + 1))


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (SimpleFrame, 65_535),
        (Checksum32Frame, 16_843_009),
        (functools.partial(LengthFrame, width=1), 255),
        (functools.partial(LengthFrame, width=2, byteorder="little"), 65_535),
    ],
)
@pytest.mark.clause("F6")
def test_a_frame_cannot_carry_more_than_its_format_allows(make, limit):
    assert len(make(bytes(limit)).payload()) == limit
    with pytest.raises(hydrogen.FrameTooLarge, match=str(limit + 1)):
        make(bytes(limit + 1))


def test_errors_of_the_builders_name_what_they_saw():
    for builder, wire, what in [
        (SimpleFrameBuilder(), b"\x02", "0x02"),
        (SimpleFrameBuilder(), b"\x01\x00\x00\x18", "0x18"),
        (SimpleFrameBuilder(100), b"\x01\x00\xc8", "200 is over max_size 100"),
        (Checksum32FrameBuilder(100), b"\x00\x00\x00\xc8", "200 is over max_size 100"),
        (Checksum32FrameBuilder(), b"\x00\x00\x00\x01a\x00\x00\x00\x62", "97, not 98"),
        (LengthFrameBuilder(1, max_size=100), b"\xc8", "200 is over max_size 100"),
        (LineFrameBuilder(max_size=5), b"1234567", "max_size 5"),
        (LineFrameBuilder(max_size=5), b"123456\n", "max_size 5"),
        (WebSocketFrameBuilder(100), b"\x82\x7e\x00\xc8", "200 is over max_size 100"),
        (WebSocketFrameBuilder(), b"\xc1", "0xc1"),
        (WebSocketFrameBuilder(), b"\x8b", "opcode 11"),
        (WebSocketFrameBuilder(), b"\x09", "opcode 9"),
        (WebSocketFrameBuilder(), b"\x88\x7e", "125"),
        (WebSocketFrameBuilder(), b"\x82\x7e\x00\x05", "length 5 in 2 bytes"),
    ]:
        with pytest.raises(hydrogen.ProtocolError, match=what):
            builder.from_bytes(bytearray(wire))


def test_their_repr_says_what_they_are():
    for made in [
        SimpleFrame(b"a"),
        SimpleFrameBuilder(7),
        Checksum32Frame(b"a"),
        Checksum32FrameBuilder(7),
        LengthFrame(b"a", 2, "little"),
        LengthFrameBuilder(2, "little", 7),
        LineFrame(b"a", b"\r\n"),
        LineFrameBuilder(b"\r\n", 7),
        WebSocketFrame(b"a", 1, fin=False, mask=b"abcd"),
        WebSocketFrameBuilder(7),
        ChunkFrame(b"a"),
    ]:
        again = eval(repr(made))
        assert type(again) is type(made)
        assert repr(again) == repr(made)
        if isinstance(made, hydrogen.Frame):
            assert again.to_bytes() == made.to_bytes()


# ------------------------------------------------------------------------------------- each of them


def test_a_checksum_of_the_longest_payload_just_does_not_wrap_around():
    frame = Checksum32Frame(b"\xff" * 16_843_009)
    assert frame.to_bytes()[-4:] == b"\xff" * 4
    assert (
        Checksum32FrameBuilder(16_843_009).from_bytes(bytearray(frame.to_bytes())).payload()
        == frame.payload()
    )


@pytest.mark.parametrize("make", [LengthFrameBuilder, functools.partial(LengthFrame, b"")])
@pytest.mark.parametrize(
    ("wrong", "error", "field"),
    [
        ({"width": 3}, ValueError, "width"),
        ({"width": 0}, ValueError, "width"),
        ({"width": 16}, ValueError, "width"),
        ({"width": True}, TypeError, "width"),
        ({"width": "4"}, TypeError, "width"),
        ({"byteorder": "native"}, ValueError, "byteorder"),
        ({"byteorder": None}, ValueError, "byteorder"),
    ],
    ids=repr,
)
def test_a_wrong_width_or_byteorder_is_refused(make, wrong, error, field):
    with pytest.raises(error, match=f"^{field}: "):
        make(**wrong)


@pytest.mark.parametrize("make", [LineFrameBuilder, functools.partial(LineFrame, b"")])
@pytest.mark.parametrize(
    ("wrong", "error"),
    [(b"", ValueError), (bytes(65), ValueError), ("\n", TypeError), (bytearray(b"\n"), TypeError)],
)
def test_a_wrong_delimiter_is_refused(make, wrong, error):
    with pytest.raises(error, match=r"^delimiter: "):
        make(delimiter=wrong)


@pytest.mark.clause("F12")
@pytest.mark.parametrize(
    ("delimiter", "payload"),
    [
        (b"\n", b"a\nb"),
        (b"\n", b"a\n"),
        (b"\r\n", b"\r\n"),
        (b"aa", b"a"),  # with the delimiter aaa, of which the first two are the line's end
        (b"aba", b"xab"),
        (b"-" * 64, b"-"),
    ],
)
def test_a_line_that_would_end_before_its_end_is_refused(delimiter, payload):
    with pytest.raises(ValueError, match="delimiter"):
        LineFrame(payload, delimiter)
    with pytest.raises(ValueError, match="delimiter"):
        LineFrameBuilder(delimiter).frame(payload)


@pytest.mark.clause("F11")
def test_a_line_may_end_with_half_a_delimiter_or_with_a_carriage_return():
    assert LineFrame(b"a\r", b"\r\n").to_bytes() == b"a\r\r\n"
    assert LineFrameBuilder(b"\r\n").from_bytes(bytearray(b"a\r\r\n")).payload() == b"a\r"
    assert LineFrame(b"a\r").to_bytes() == b"a\r\n"
    # which a receiver takes for a part of the end
    assert LineFrameBuilder().from_bytes(bytearray(b"a\r\n")).payload() == b"a"


@pytest.mark.clause("F13")
@pytest.mark.parametrize("opcode", [0, 1, 2, 8, 9, 10])
@pytest.mark.parametrize(
    "mask", [None, b"\x00\x00\x00\x00", b"\x01\x02\x04\x80"], ids=["unmasked", "zeros", "masked"]
)
def test_a_websocket_frame_keeps_its_opcode_fin_and_mask(opcode, mask):
    for fin in (True, False) if opcode < 8 else (True,):
        frame = WebSocketFrame(b"payload", opcode, fin, mask)
        assert (frame.opcode, frame.fin, frame.mask) == (opcode, fin, mask)
        assert frame.to_bytes() == websocket(b"payload", opcode, fin, mask)
        again = WebSocketFrameBuilder().from_bytes(bytearray(frame.to_bytes()))
        assert (again.opcode, again.fin, again.mask, again.payload()) == (
            opcode,
            fin,
            mask,
            b"payload",
        )
        assert len(again) == len(frame.to_bytes())


@pytest.mark.clause("F13")
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("mask", [None, b"\x01\x02\x04\x80"], ids=["unmasked", "masked"])
def test_a_websocket_length_has_the_shortest_form(length, mask):
    frame = WebSocketFrame(b"w" * length, 2, mask=mask)
    wire = websocket(b"w" * length, mask=mask)
    assert frame.to_bytes() == wire
    assert len(frame) == len(wire)
    assert WebSocketFrameBuilder().from_bytes(bytearray(wire)).payload() == b"w" * length


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"opcode": 3}, "opcode"),
        ({"opcode": 11}, "opcode"),
        ({"opcode": -1}, "opcode"),
        ({"opcode": "text"}, "opcode"),
        ({"opcode": 9, "fin": False}, "control"),
        ({"opcode": 8, "payload": bytes(126)}, "control"),
        ({"opcode": 2, "mask": b"abc"}, "mask"),
        ({"opcode": 2, "mask": b""}, "mask"),
        ({"opcode": 2, "mask": "abcd"}, "mask"),
    ],
    ids=repr,
)
def test_a_websocket_frame_that_the_rfc_does_not_know_is_refused(wrong, what):
    with pytest.raises(ValueError, match=what):
        WebSocketFrame(**{"payload": b"", **wrong})


# --------------------------------------------------------------------------------- what users write


class Byte(hydrogen.Frame):
    def __init__(self, payload):
        self.content = payload

    def to_bytes(self):
        return self.content

    def payload(self):
        return self.content


class Builder(hydrogen.FrameBuilder):
    """A user's: each byte is a frame; or whatever `take` and `make` return."""

    def __init__(self, take=lambda buf: Byte(bytes([buf.pop(0)])), make=Byte):
        self.take, self.make = take, make

    def from_bytes(self, buf):
        return self.take(buf)

    def frame(self, payload):
        return self.make(payload)


@pytest.mark.clause("F1", "F15")
def test_users_may_write_frames_and_builders():
    buffer = bytearray(b"ab")
    assert Builder().from_bytes(buffer).payload() == b"a"
    assert len(Builder().frame(b"abc")) == Builder().frame(b"abc").len_as_vec() == 3
    for abstract in (
        hydrogen.Frame,
        hydrogen.FrameBuilder,
        hydrogen.Stream,
        hydrogen.HydrogenSocket,
    ):
        with pytest.raises(TypeError, match="abstract"):
            abstract()


def test_a_framing_is_none_a_builder_or_a_builders_class():
    builder = LineFrameBuilder()
    assert builder_of(None) is None
    assert builder_of(builder) is builder
    assert type(builder_of(Builder)) is Builder
    for wrong in (
        5,
        "line",
        LineFrame,
        LineFrame(b""),
        int,
        hydrogen.FrameBuilder,
        functools.partial(LineFrameBuilder),
    ):
        with pytest.raises(TypeError, match=r"^framing: "):
            builder_of(wrong)


def test_a_builder_whose_class_wants_arguments_is_refused_with_the_reason():
    class Wants(Builder):
        def __init__(self, what):
            raise AssertionError(what)

    with pytest.raises(TypeError, match=r"^framing: Wants.*'what'"):
        builder_of(Wants)


def test_encode_is_what_goes_on_the_wire():
    assert encode(None, b"abc") == b"abc"
    assert encode(SimpleFrameBuilder(), b"abc") == simple(b"abc")
    assert encode(Builder(), b"abc") == b"abc"
    with pytest.raises(hydrogen.FrameTooLarge):
        encode(SimpleFrameBuilder(2), b"abc")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda payload: None, r"Builder\.frame\(\) returned None, not a Frame"),
        (lambda payload: payload, r"Builder\.frame\(\) returned b'abc', not a Frame"),
        (
            lambda payload: Byte(bytearray(payload)),
            r"Byte\.to_bytes\(\) returned bytearray\(b'abc'\), not bytes",
        ),
        (lambda payload: Byte("x" * 1000), r"Byte\.to_bytes\(\) returned 'x{56}\.\.\., not bytes"),
    ],
)
def test_encode_refuses_what_a_users_builder_must_not_make(make, what):
    with pytest.raises(TypeError, match=what):
        encode(Builder(make=make), b"abc")


# ------------------------------------------------------------------------------------- FrameDecoder


def test_a_decoder_gives_frames_out_as_they_are_asked_for():
    decoder = FrameDecoder(SimpleFrameBuilder())
    assert decoder.next() is None
    assert not decoder.is_partial()
    decoder.feed(simple(b"one") + simple(b"two")[:3])
    assert decoder.size == 10
    assert decoder.next_frame().to_bytes() == simple(b"one")
    assert decoder.size == 3
    assert decoder.next() is None
    assert decoder.is_partial()
    decoder.feed(simple(b"two")[3:])
    assert decoder.next() == b"two"
    assert decoder.next_frame() is None
    assert decoder.size == 0
    assert not decoder.is_partial()


def test_a_decoder_gives_out_what_is_good_before_it_raises_and_raises_again():
    decoder = FrameDecoder(SimpleFrameBuilder())
    decoder.feed(simple(b"good") + b"\x02")
    assert decoder.next() == b"good"
    for _ in range(2):
        with pytest.raises(hydrogen.ProtocolError):
            decoder.next()


def test_a_decoder_of_chunks_gives_out_all_that_is_there():
    decoder = FrameDecoder(ChunkFrameBuilder())
    assert decoder.next_frame() is None
    decoder.feed(b"ab")
    decoder.feed(b"cd")
    assert decoder.next_frame().payload() == b"abcd"
    assert decoder.next_frame() is None


@pytest.mark.parametrize(
    ("take", "what"),
    [
        (
            lambda buf: b"payload",
            r"Builder\.from_bytes\(\) returned b'payload', neither a Frame nor None",
        ),
        (lambda buf: False, "returned False, neither"),
        (lambda buf: Byte(b"x"), "took nothing off"),
        (lambda buf: buf.append(1), "added bytes to"),
        (lambda buf: (buf.extend(b"ab"), Byte(b"x"))[1], "added bytes to"),
        (lambda buf: Byte(buf.pop()), r"Byte\.payload\(\) returned 97, not bytes"),
        (lambda buf: Byte(bytearray([buf.pop()])), r"returned bytearray\(b'a'\), not bytes"),
    ],
)
def test_f29_a_builder_that_does_what_none_may_do_is_a_handler_error(take, what):
    decoder = FrameDecoder(Builder(take))
    decoder.feed(b"a")
    with pytest.raises(hydrogen.HandlerError, match=what):
        decoder.next()


@pytest.mark.parametrize("error", [ValueError("as it is"), hydrogen.ProtocolError("as it is")])
def test_f29_what_a_builder_raises_passes_through(error):
    def take(buf):
        raise error

    decoder = FrameDecoder(Builder(take))
    decoder.feed(b"a")
    with pytest.raises(type(error), match=re.escape(str(error))) as raised:
        decoder.next()
    assert raised.value is error


def test_a_builder_may_drop_bytes_that_are_no_frame():
    decoder = FrameDecoder(Builder(lambda buf: Byte(b"x") if buf.lstrip(b" ") else buf.clear()))
    decoder.feed(b"  ")
    assert decoder.next() is None
    assert decoder.size == 0


def test_a_builder_that_keeps_a_view_of_the_buffer_does_not_stop_it_from_growing():
    views = []
    decoder = FrameDecoder(Builder(lambda buf: views.append(memoryview(buf))))
    decoder.feed(b"a")
    assert decoder.next() is None
    decoder.feed(b"b")
    assert decoder.next() is None
    assert decoder.size == 2
    assert [bytes(view) for view in views] == [b"a", b"ab"]


# -------------------------------------------------------------------------------- what engines copy

CHANGES = {"delimiter": b"-" * 100_000, "width": 3, "byteorder": "middle", "max_size": 1 << 80}
built_in = pytest.mark.parametrize("kind", BUILT_IN.values(), ids=BUILT_IN)


@built_in
def test_the_fields_of_a_built_in_builder_are_read_only(kind):
    builder = kind()
    before = repr(builder)
    for name in kind._fields:
        with pytest.raises(
            AttributeError, match=f"{kind.__name__}.{name} is read-only.*make another builder"
        ):
            setattr(builder, name, getattr(builder, name))
        with pytest.raises(AttributeError, match=f"{kind.__name__}.{name} is read-only"):
            delattr(builder, name)
    with pytest.raises(AttributeError, match="read-only"):
        builder.__init__()
    # which one engine would look at, and the other not
    for name in ("from_bytes", "frame", "anything"):
        with pytest.raises(AttributeError):
            setattr(builder, name, None)
    assert repr(builder) == before


@built_in
def test_a_built_in_builder_is_copied_pickled_and_referred_to_weakly(kind):
    builder = kind()
    for other in (
        copy.copy(builder),
        copy.deepcopy(builder),
        pickle.loads(pickle.dumps(builder)),
        copy_of(builder),
    ):
        assert type(other) is kind
        assert repr(other) == repr(builder)
    assert weakref.ref(builder)() is builder


@built_in
def test_a_builder_whose_fields_were_changed_by_force_is_refused(kind):
    for name in kind._fields:
        builder = kind()
        object.__setattr__(builder, name, CHANGES[name])
        with pytest.raises(ValueError, match=name):
            hydrogen.Config(framing=builder)
        object.__setattr__(builder, name, object())
        with pytest.raises((TypeError, ValueError), match=name):
            hydrogen.Config(framing=builder)
    with pytest.raises(AttributeError):
        hydrogen.Config(framing=kind.__new__(kind))


def test_the_compiled_codec_checks_what_it_copies(engine):
    if engine != "compiled":
        return
    from hydrogen import _codec

    for kind in BUILT_IN.values():
        for name in kind._fields:
            builder = kind()
            object.__setattr__(builder, name, CHANGES[name])
            with pytest.raises(ValueError, match=name):
                _codec.Framing(builder)
        with pytest.raises(AttributeError):
            _codec.Framing(kind.__new__(kind))


@built_in
def test_a_subclass_of_a_built_in_builder_is_the_users_and_may_have_state(kind):
    class Mine(kind):
        def __init__(self):
            super().__init__()
            self.count = 0

    builder = Mine()
    builder.count += 1
    assert is_built_in(kind())
    assert not is_built_in(builder)
    assert builder_of(Mine).count == 0
    with pytest.raises(AttributeError, match=r"Mine\.max_size is read-only"):
        builder.max_size = 7
    assert copy.copy(builder).count == 1


# ------------------------------------------------------------------------ lines that come in pieces


class Counted(LineFrameBuilder):
    """Notes how many bytes each search looks at."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.searched = []

    def take_line(self, buf, scanned):
        self.searched.append(len(buf) - scanned)
        return super().take_line(buf, scanned)


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aab"])
def test_of_a_line_that_comes_in_pieces_each_byte_is_searched_about_once(delimiter):
    builder = Counted(delimiter, 1 << 30)
    decoder = FrameDecoder(builder)
    piece = bytes(1000)
    for _ in range(200):
        decoder.feed(piece)
        assert decoder.next() is None
    for at in range(len(delimiter)):
        decoder.feed(delimiter[at : at + 1])
        assert (decoder.next() is None) == (at < len(delimiter) - 1)
    assert sum(builder.searched) <= 200 * (1000 + len(delimiter)) + 3 * 3
    decoder.feed(b"a" + delimiter + b"b")  # from the start again
    assert decoder.next() == b"a"
    assert decoder.next() is None
    assert decoder.size == 1


def test_a_line_over_max_size_is_refused_again_and_again():
    decoder = FrameDecoder(LineFrameBuilder(max_size=10))
    for piece in (b"12345", b"67890", b"1"):
        decoder.feed(piece)
        assert decoder.next() is None
    decoder.feed(b"2")
    for _ in range(3):
        with pytest.raises(hydrogen.FrameTooLarge, match="a line is over max_size 10"):
            decoder.next()
        decoder.feed(b"\n")


@unhurried
@hypothesis.given(
    st.lists(st.text("ab\r\n", max_size=5).map(str.encode)),
    st.sampled_from([b"\n", b"\r\n", b"aab", b"aa"]),
)
def test_lines_are_the_same_however_they_come(pieces, delimiter):
    def outcome(parts):
        decoder = FrameDecoder(LineFrameBuilder(delimiter, 6))
        found = []
        try:
            for part in parts:
                decoder.feed(part)
                while (payload := decoder.next()) is not None:
                    found.append(payload)
        except hydrogen.FrameTooLarge:
            return found, "too large"
        return found, decoder.size

    assert outcome(pieces) == outcome([b"".join(pieces)])


def test_a_user_whose_objects_cannot_be_described_gets_the_error_all_the_same():
    class Strange:
        def __repr__(self):
            raise SystemExit

    class Nonsense(hydrogen.FrameBuilder):
        def from_bytes(self, buf):
            return Strange()

        def frame(self, payload):
            return Strange()

    with pytest.raises(TypeError, match="whose __repr__ raises"):
        encode(Nonsense(), b"x")
    decoder = FrameDecoder(Nonsense())
    decoder.feed(b"x")
    with pytest.raises(hydrogen.HandlerError, match="whose __repr__ raises"):
        decoder.next()
    for kind in BUILT_IN.values():
        with pytest.raises(TypeError, match="whose __repr__ raises"):
            kind(max_size=Strange())
    with pytest.raises(TypeError, match="whose __repr__ raises"):
        builder_of(Strange())
