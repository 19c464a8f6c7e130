"""WebSocket messages from bytes: the reader of the Python engine, which is the reference, and the
compiled one.
"""

import itertools
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol, ParseFailed
from wsproto.frame_protocol import Opcode as Op

from hydrogen import FrameTooLarge, ProtocolError
from hydrogen._py.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Event,
    MessageReader,
)
from hydrogen.deflate import COMPRESSED, Compressor, Inflater
from hydrogen.errors import InvalidText
from hydrogen.framings import masked
from hydrogen.websocket import Fault, is_close_code

try:
    from hydrogen import _codec
except ImportError:  # in CI that fails elsewhere
    _codec = None

MASK = b"\x81\x02\xf3\x04"


def frame(opcode, payload=b"", *, fin=True, reserved=0, mask=MASK, length=None, width=None):
    """A frame of a client's. `length`, `width`: what is declared, in so many bytes."""
    n = len(payload) if length is None else length
    width = width if width is not None else 0 if n < 126 else 2 if n < 1 << 16 else 8
    code = n if width == 0 else 126 if width == 2 else 127
    head = bytes([fin << 7 | reserved << 4 | opcode, (mask is not None) << 7 | code])
    if width:
        head += n.to_bytes(width, "big")
    return head + payload if mask is None else head + mask + masked(payload, mask)


def closing(code, reason=b""):
    return frame(CLOSE, struct.pack(">H", code) + reason)


def reader(max_message=1 << 20, max_fragments=1 << 16, inflates=False):
    return MessageReader(max_message, max_fragments, Inflater(15, True) if inflates else None)


def events(parts, **limits):
    """What comes of the parts, and the exception that ends it; the compiled reader agrees."""
    found, kind = by_python(parts, **limits)
    assert compiled(parts, **limits) == apart(found, kind)
    return found, kind


def by_python(parts, **limits):
    """What comes of the parts, and the exception that ends it."""
    found, reads = [], reader(**limits)
    try:
        for part in parts:
            reads.feed(part)
            while (event := reads.next()) is not None:
                found.append(tuple(event))
    except ProtocolError as error:
        return found, type(error)
    return found, None


KINDS = {0: None, **{int(fault): fault.kind for fault in Fault}}


def apart(found, kind):
    """Messages, control frames, and what ends them."""
    messages = [event for event in found if event[0] & ~COMPRESSED in (TEXT, BINARY)]
    return messages, [event for event in found if event not in messages], kind


def compiled(parts, max_message=1 << 20, max_fragments=1 << 16, inflates=False):
    """The same by the compiled reader, if it was built; control frames are met first there, and
    who delivers messages inflates them.
    """
    if _codec is None:
        limits = {"max_message": max_message, "max_fragments": max_fragments}
        return apart(*by_python(parts, **limits, inflates=inflates))
    found, code = _codec.messages(parts, max_message, max_fragments, inflates)
    messages, controls, kind = apart(found, KINDS[code])
    inflater = Inflater(15, True)
    for at, (opcode, data, _) in enumerate(messages):
        if opcode & COMPRESSED:
            try:
                data = inflater.inflate(data, max_message)
                data = data.decode() if opcode == TEXT | COMPRESSED else data
            except (ProtocolError, UnicodeDecodeError) as error:
                kind = type(error) if isinstance(error, ProtocolError) else InvalidText
                return messages[:at], controls, kind
            messages[at] = opcode & ~COMPRESSED, data, 0
    return messages, controls, kind


def each_way(data):
    """Whole, byte by byte, and in pieces of 7."""
    yield [data]
    for size in (1, 7):
        yield [data[at : at + size] for at in range(0, len(data), size)]


GOOD = {
    "text": (frame(TEXT, "caf\xe9".encode()), [(TEXT, "caf\xe9", 0)]),
    "empty": (frame(TEXT) + frame(BINARY), [(TEXT, "", 0), (BINARY, b"", 0)]),
    "binary": (frame(BINARY, b"\xff\x00" * 9), [(BINARY, b"\xff\x00" * 9, 0)]),
    "16 bits": (frame(BINARY, bytes(126)), [(BINARY, bytes(126), 0)]),
    "64 bits": (frame(BINARY, bytes(65_536)), [(BINARY, bytes(65_536), 0)]),
    "fragments": (
        frame(TEXT, b"a\xc3", fin=False) + frame(0, b"", fin=False) + frame(0, b"\xa9b"),
        [(TEXT, "a\xe9b", 0)],
    ),
    "control amid a message": (
        frame(BINARY, b"a", fin=False) + frame(PING, b"p") + frame(0, b"b") + frame(PONG),
        [(PING, b"p", 0), (BINARY, b"ab", 0), (PONG, b"", 0)],
    ),
    "close": (closing(1000, "\xe9".encode()), [(CLOSE, "\xe9", 1000)]),
    "close of a program": (closing(4999), [(CLOSE, "", 4999)]),
    "close with nothing": (frame(CLOSE), [(CLOSE, "", 1005)]),
    "longest control frame": (frame(PING, bytes(125)), [(PING, bytes(125), 0)]),
    "unicode of four bytes": (frame(TEXT, b"\xf4\x8f\xbf\xbf"), [(TEXT, "\U0010ffff", 0)]),
}


@pytest.mark.parametrize(("data", "expected"), GOOD.values(), ids=GOOD)
def test_messages_and_control_frames_come_out_however_the_bytes_came_in(data, expected):
    for parts in each_way(data):
        assert events(parts) == (expected, None)
    assert not reader().is_partial()


BAD = {
    "reserved bit 1": (frame(TEXT, reserved=4), 1, ProtocolError),
    "reserved bit 3": (frame(TEXT, reserved=1), 1, ProtocolError),
    "reserved opcode": (frame(3), 1, ProtocolError),
    "reserved control opcode": (frame(11), 1, ProtocolError),
    "fragmented control frame": (frame(PING, fin=False), 1, ProtocolError),
    "continuation of nothing": (frame(0), 1, ProtocolError),
    "unmasked": (frame(TEXT, b"a", mask=None), 2, ProtocolError),
    "long control frame": (frame(PING, bytes(126)), 2, ProtocolError),
    "length in 2 bytes too many": (frame(TEXT, bytes(125), width=2), 4, ProtocolError),
    "length in 8 bytes too many": (frame(TEXT, bytes(65_535), width=8), 10, ProtocolError),
    "too long": (frame(BINARY, length=(1 << 20) + 1), 10, FrameTooLarge),
    "negative length": (frame(BINARY, length=1 << 63), 10, FrameTooLarge),
    "bad text": (frame(TEXT, b"ab\xffcd"), 9, InvalidText),
    "overlong": (frame(TEXT, b"\xc0\xaf"), 7, InvalidText),
    "surrogate": (frame(TEXT, b"\xed\xa0\x80"), 8, InvalidText),
    "beyond unicode": (frame(TEXT, b"\xf4\x90\x80\x80"), 8, InvalidText),
    "text that ends too early": (frame(TEXT, b"a\xe2\x82"), 9, InvalidText),
    "close of one byte": (frame(CLOSE, b"\x03"), 7, ProtocolError),
    "bad reason": (closing(1000, b"\xff"), 9, InvalidText),
    **{
        f"close {code}": (closing(code), 8, ProtocolError)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65_535)
    },
}


@pytest.mark.parametrize(("data", "at", "kind"), BAD.values(), ids=BAD)
def test_what_breaks_the_protocol_is_refused_at_that_byte(data, at, kind):
    good, expected = GOOD["control amid a message"]
    for parts in each_way(good + data):
        assert events(parts) == (expected, kind)
    bytes_of = [bytes([byte]) for byte in data]
    assert compiled(bytes_of[: at - 1]) == ([], [], None)
    assert compiled(bytes_of[:at]) == ([], [], kind)
    reads = reader()
    for byte in data[: at - 1]:
        reads.feed(bytes([byte]))
        assert reads.next() is None
        assert reads.is_partial()
    reads.feed(data[at - 1 : at])
    with pytest.raises(kind):
        reads.next()


def test_a_message_inside_one_is_refused():
    begun = frame(TEXT, b"a", fin=False)
    assert events([begun + frame(TEXT, b"b")]) == ([], ProtocolError)


def test_bad_text_is_refused_in_its_first_fragment():
    assert events([frame(TEXT, b"a\xff", fin=False)]) == ([], InvalidText)


def test_a_sequence_is_refused_that_no_fragment_can_finish():
    assert events([frame(TEXT, b"\xe2\x82", fin=False), frame(0, b"\x41")]) == ([], InvalidText)


def test_the_longest_message_counts_all_fragments():
    parts = [frame(BINARY, bytes(60), fin=False), frame(0, bytes(40))]
    assert events(parts, max_message=100) == ([(BINARY, bytes(100), 0)], None)
    reads = reader(max_message=99)
    reads.feed(parts[0])
    assert reads.next() is None
    reads.feed(parts[1][:2])  # the header says so
    with pytest.raises(FrameTooLarge, match="over max_message"):
        reads.next()


def test_the_limits_hold_for_each_message_by_itself():
    parts = [frame(BINARY, bytes(50), fin=False), frame(0, bytes(50))] * 3
    assert events(parts, max_message=100, max_fragments=2) == ([(BINARY, bytes(100), 0)] * 3, None)


@pytest.mark.parametrize("payload", [b"", b"a"])
def test_there_are_at_most_so_many_fragments(payload):
    parts = [frame(TEXT, payload, fin=False), *[frame(0, payload, fin=False)] * 8, frame(0)]
    assert events(parts, max_fragments=10)[1] is None
    assert events(parts, max_fragments=9) == ([], FrameTooLarge)


def test_control_frames_are_no_fragments():
    parts = [frame(TEXT, fin=False), *[frame(PONG)] * 5, frame(0)]
    assert events(parts, max_fragments=2) == ([(PONG, b"", 0)] * 5 + [(TEXT, "", 0)], None)


def test_nothing_is_partial_between_messages():
    reads = reader()
    reads.feed(frame(TEXT, b"a", fin=False))
    assert reads.next() is None
    assert reads.is_partial()
    reads.feed(frame(0, b"b"))
    assert reads.next() == (TEXT, "ab", 0)
    assert not reads.is_partial()


def test_close_codes():
    sent = {code for code in range(6000) if is_close_code(code)}
    assert sent == {
        *range(1000, 1004),
        *range(1007, 1015),
        *range(3000, 5000),
    }


def test_what_comes_behind_a_close_is_dropped():
    reads = reader()
    for data in (frame(TEXT, b"a") + closing(1000) + frame(TEXT, b"b"), frame(3), b"\xff"):
        reads.feed(data)
    assert [reads.next() for _ in range(3)] == [(TEXT, "a", 0), (CLOSE, "", 1000), None]
    assert reads.is_closed
    assert not reads.is_partial()


@pytest.mark.parametrize("last", [closing(1000), frame(PING, b"\x88\x80\x88\x80")])
def test_a_close_is_seen_behind_what_was_not_given_out_wherever_that_was_left(last):
    data = b"".join(
        (
            frame(BINARY, bytes(range(256)) * 2),
            frame(PING, b"\x88"),
            frame(TEXT, b"of two ", fin=False),
            frame(CONTINUATION, b"fragments"),
            last,
        )
    )
    begins = len(data) - len(last)
    for given_out in range(begins + 3):
        for fed in (given_out, given_out + 2, begins, begins + 2, len(data)):
            messages = reader()
            messages.feed(data[:given_out])
            while messages.next() is not None:
                pass
            messages.feed(data[given_out : max(fed, given_out)])
            expected = last[0] == 0x88 and max(fed, given_out) > begins + 1
            assert messages.holds_close() is expected, (given_out, fed)


# ------------------------------------------------------------------------------ against wsproto

texts = st.text(max_size=40).map(str.encode)
payloads = st.one_of(texts, st.binary(max_size=40), st.just(bytes(130)))
frames = st.builds(
    frame,
    st.sampled_from([0, TEXT, BINARY, CLOSE, PING, PONG, 3]),
    payloads,
    fin=st.booleans(),
    mask=st.one_of(st.just(MASK), st.binary(min_size=4, max_size=4)),
)
closings = st.builds(closing, st.sampled_from([1000, 1003, 3000, 4999, 999, 2000]), texts)


def by_wsproto(data):
    """The same by wsproto, which has no limits."""
    protocol = FrameProtocol(client=False, extensions=[])
    protocol.receive_bytes(data)
    found, parts, opcode = [], [], None
    try:
        for part in protocol.received_frames():
            if part.opcode is Op.CLOSE:
                code, reason = part.payload
                found.append((CLOSE, reason or "", int(code)))
                break
            if part.opcode in (Op.PING, Op.PONG):
                found.append((int(part.opcode), bytes(part.payload), 0))
            else:
                opcode = opcode or int(part.opcode)
                parts.append(part.payload)
                if part.message_finished:
                    whole = "".join(parts) if opcode == TEXT else b"".join(parts)
                    found.append((opcode, whole, 0))
                    parts, opcode = [], None
    except ParseFailed as failed:
        kind = InvalidText if failed.code == CloseReason.INVALID_FRAME_PAYLOAD_DATA else None
        return found, kind or ProtocolError
    return found, None


@given(st.lists(st.one_of(frames, closings), max_size=6), st.lists(st.integers(0, 400)))
@example([frame(TEXT, b"\xc3\xa9\xe2", fin=False), frame(0, b"\x82\xac")], [3])
def test_wsproto_makes_the_same_of_it_at_any_splits(several, splits):
    data = b"".join(several)
    cuts = sorted({0, len(data), *(split for split in splits if split < len(data))})
    parts = [data[begin:end] for begin, end in itertools.pairwise(cuts)]
    assert events(parts) == by_wsproto(data)


@pytest.mark.timeout(60)
def test_control_frames_cost_the_same_however_many_come_at_once():
    """In quadratic time it would take minutes."""
    found, kind = events([frame(PING) * 1_000_000])
    assert (found, kind) == ([(PING, b"", 0)] * 1_000_000, None)


def deflated(messages):
    """Frames of messages, compressed one after the other: (opcode, data, cuts)."""
    compressor = Compressor(15, 5, True)
    wire = b""
    for opcode, data, cuts in messages:
        payload = compressor.compress(data.encode() if opcode == TEXT else data)
        cuts = sorted({0, len(payload), *(cut for cut in cuts if cut < len(payload))})
        for begin, end in itertools.pairwise(cuts):
            wire += frame(
                0 if begin else opcode,
                payload[begin:end],
                fin=end == len(payload),
                reserved=0 if begin else 4,
            )
            wire += frame(PING) if end < len(payload) else b""
    return wire


@pytest.mark.parametrize("way", range(3))
def test_compressed_messages_are_inflated_in_their_order(way):
    messages = [(TEXT, "caf\xe9 " * 99, [3]), (BINARY, b"", []), (BINARY, b"caf" * 999, [1, 2, 9])]
    data = deflated(messages[:2]) + frame(TEXT, b"as it is")
    parts = list(each_way(data))[way]
    found, kind = events(parts, inflates=True)
    assert [event for event in found if event[0] != PING] == [
        (TEXT, "caf\xe9 " * 99, 0),
        (BINARY, b"", 0),
        (TEXT, "as it is", 0),
    ]
    assert kind is None
    assert events([deflated(messages)], inflates=True)[0][-1] == (BINARY, b"caf" * 999, 0)


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, fin=False) + frame(0, reserved=4),
        frame(PING, reserved=4),
        frame(TEXT, reserved=2),
        frame(TEXT, reserved=1),
        frame(TEXT, reserved=5),
    ],
)
def test_a_reserved_bit_that_does_not_say_compressed_is_refused(data):
    assert events([data], inflates=True) == ([], ProtocolError)


def test_what_is_inflated_must_be_text_and_not_too_long():
    payload = Compressor(15, 5, False).compress(b"caf\xe9")
    good = (frame(BINARY, payload, reserved=4), [(BINARY, b"caf\xe9", 0)])
    assert events([good[0]], inflates=True) == (good[1], None)
    assert events([frame(TEXT, payload, reserved=4)], inflates=True) == ([], InvalidText)
    assert events([frame(TEXT, b"nonsense", reserved=4)], inflates=True) == ([], InvalidText)
    payload = Compressor(15, 5, False).compress(bytes(1001))
    assert events([frame(BINARY, payload, reserved=4)], inflates=True, max_message=1000) == (
        [],
        FrameTooLarge,
    )


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(TEXT), st.text(), st.lists(st.integers(1, 30))),
            st.tuples(st.just(BINARY), st.binary(), st.lists(st.integers(1, 30))),
        ),
        max_size=5,
    ),
    st.lists(st.integers(0, 300)),
)
def test_compressed_messages_come_out_at_any_splits(messages, splits):
    data = deflated(messages)
    cuts = sorted({0, len(data), *(split for split in splits if split < len(data))})
    found, kind = events(
        [data[begin:end] for begin, end in itertools.pairwise(cuts)], inflates=True
    )
    assert [event[:2] for event in found if event[0] != PING] == [m[:2] for m in messages]
    assert kind is None


def test_messages_may_be_inflated_later():
    messages = [(TEXT, "caf\xe9 " * 99, []), (BINARY, b"caf" * 999, [])]
    reads = reader(inflates=True)
    reads.inflates_later = True
    reads.feed(deflated(messages))
    found = [reads.next(), reads.next()]
    assert [event.opcode for event in found] == [TEXT | COMPRESSED, BINARY | COMPRESSED]
    assert all(len(event.data) < 100 for event in found)
    assert [tuple(reads.inflated(event))[:2] for event in found] == [it[:2] for it in messages]
    assert reads.inflated(Event(PING, b"")) == Event(PING, b"")
