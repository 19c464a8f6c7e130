"""Bytes, and what they are as frames: the corpus on which the builders, the compiled decoder and
both engines must agree.

Written by hand from the formats (docs/reference/framing.md, RFC 6455 section 5.2), not made by the
code under test. Where a format has lengths, each power of two at which an integer type ends is met
with its neighbours, with a payload when that is short enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import hydrogen
from hydrogen import (
    Checksum32FrameBuilder,
    ChecksumMismatch,
    FrameBuilder,
    FrameTooLarge,
    LengthFrameBuilder,
    LineFrameBuilder,
    ProtocolError,
    SimpleFrameBuilder,
    WebSocketFrameBuilder,
)

LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class Case:
    """`wire` is these `frames`, then `error` (its class), or the beginning of a frame of which
    `rest` bytes are there.
    """

    name: str
    builder: FrameBuilder
    wire: bytes
    frames: list[bytes] = field(default_factory=list)
    error: type[Exception] | None = None
    rest: int = 0

    @property
    def outcome(self) -> tuple[list[bytes], type[Exception] | None, int]:
        """As decoders return it."""
        return self.frames, self.error, self.rest


# -------------------------------------------------------------- 0x01, u16 big-endian, payload, 0x17

_simple, _simple_5, _simple_0 = SimpleFrameBuilder(), SimpleFrameBuilder(5), SimpleFrameBuilder(0)

SIMPLE = [
    Case("nothing", _simple, b""),
    Case("an empty frame", _simple, b"\x01\x00\x00\x17", [b""]),
    Case("one byte", _simple, b"\x01\x00\x01a\x17", [b"a"]),
    Case(
        "a payload of guard bytes",
        _simple,
        b"\x01\x00\x04\x01\x17\x17\x01\x17",
        [b"\x01\x17\x17\x01"],
    ),
    Case(
        "a frame within a frame",
        _simple,
        b"\x01\x00\x04\x01\x00\x00\x17\x17",
        [b"\x01\x00\x00\x17"],
    ),
    Case(
        "three frames",
        _simple,
        b"\x01\x00\x01a\x17\x01\x00\x00\x17\x01\x00\x02bc\x17",
        [b"a", b"", b"bc"],
    ),
    Case("a hundred empty frames", _simple, b"\x01\x00\x00\x17" * 100, [b""] * 100),
    Case("a length of 2^7 - 1", _simple, b"\x01\x00\x7f" + b"o" * 127 + b"\x17", [b"o" * 127]),
    Case("a length of 2^7", _simple, b"\x01\x00\x80" + b"p" * 128 + b"\x17", [b"p" * 128]),
    Case(
        "a length with a low byte of 255",
        _simple,
        b"\x01\x00\xff" + b"q" * 255 + b"\x17",
        [b"q" * 255],
    ),
    Case(
        "a length with a low byte of 0",
        _simple,
        b"\x01\x01\x00" + b"r" * 256 + b"\x17",
        [b"r" * 256],
    ),
    Case(
        "a length with its highest bit set",
        _simple,
        b"\x01\x80\x00" + b"s" * 32_768 + b"\x17",
        [b"s" * 32_768],
    ),
    Case(
        "a length that wraps with the overhead",
        _simple,
        b"\x01\xff\xfc" + b"u" * 65_532 + b"\x17",
        [b"u" * 65_532],
    ),
    Case("the longest frame", _simple, b"\x01\xff\xff" + b"t" * 65_535 + b"\x17", [b"t" * 65_535]),
    Case("the longest frame that max_size allows", _simple_5, b"\x01\x00\x05abcde\x17", [b"abcde"]),
    Case("max_size 0 and an empty frame", _simple_0, b"\x01\x00\x00\x17", [b""]),
    # ------------------------------------------------------------------ not complete
    Case("a start", _simple, b"\x01", rest=1),
    Case("half a length", _simple, b"\x01\x00", rest=2),
    Case("a header", _simple, b"\x01\x00\x02", rest=3),
    Case("half a payload", _simple, b"\x01\x00\x02a", rest=4),
    Case("a frame without its end", _simple, b"\x01\x00\x02ab", rest=5),
    Case("an empty frame without its end", _simple, b"\x01\x00\x00", rest=3),
    Case("a frame and a start", _simple, b"\x01\x00\x01a\x17\x01", [b"a"], rest=1),
    Case(
        "a frame and most of another",
        _simple,
        b"\x01\x00\x01a\x17\x01\x00\x05bcdef",
        [b"a"],
        rest=8,
    ),
    Case("the beginning of the longest", _simple, b"\x01\xff\xff" + b"v" * 1000, rest=1003),
    # ------------------------------------------------------------------ wrong
    Case("a wrong start", _simple, b"\x02\x00\x01a\x17", error=ProtocolError),
    Case("a wrong start alone", _simple, b"\x00", error=ProtocolError),
    Case("an end for a start", _simple, b"\x17\x00\x01a\x01", error=ProtocolError),
    Case("a wrong end", _simple, b"\x01\x00\x01a\x18", error=ProtocolError),
    Case("a wrong end of an empty frame", _simple, b"\x01\x00\x00\x01", error=ProtocolError),
    Case("a payload longer than declared", _simple, b"\x01\x00\x01ab\x17", error=ProtocolError),
    Case(
        "a good frame and a wrong start", _simple, b"\x01\x00\x01a\x17\x00", [b"a"], ProtocolError
    ),
    Case(
        "a good frame and a wrong end",
        _simple,
        b"\x01\x00\x01a\x17\x01\x00\x01b\x00",
        [b"a"],
        ProtocolError,
    ),
    Case(
        "two good frames and text",
        _simple,
        b"\x01\x00\x01a\x17\x01\x00\x00\x17GET / HTTP/1.1",
        [b"a", b""],
        ProtocolError,
    ),
    Case("one over max_size", _simple_5, b"\x01\x00\x06", error=FrameTooLarge),
    Case(
        "one over max_size with its payload",
        _simple_5,
        b"\x01\x00\x06abcdef\x17",
        error=FrameTooLarge,
    ),
    Case(
        "one over max_size with a wrong end",
        _simple_5,
        b"\x01\x00\x06abcdef\x18",
        error=FrameTooLarge,
    ),
    Case("over max_size with a wrong start", _simple_5, b"\x02\x00\x06", error=ProtocolError),
    Case("over max_size 0", _simple_0, b"\x01\x00\x01a\x17", error=FrameTooLarge),
    Case("2^7 over max_size", SimpleFrameBuilder(127), b"\x01\x00\x80", error=FrameTooLarge),
    Case(
        "the highest bit over max_size",
        SimpleFrameBuilder(32_767),
        b"\x01\x80\x00",
        error=FrameTooLarge,
    ),
    Case(
        "all bits over max_size", SimpleFrameBuilder(65_534), b"\x01\xff\xff", error=FrameTooLarge
    ),
    Case(
        "wrapping with the overhead, over max_size",
        SimpleFrameBuilder(1000),
        b"\x01\xff\xfd",
        error=FrameTooLarge,
    ),
    Case(
        "a good frame and one over max_size",
        _simple_5,
        b"\x01\x00\x01a\x17\x01\x00\x06",
        [b"a"],
        FrameTooLarge,
    ),
]

# ------------------------------------------------------------ u32, payload, u32 sum, all big-endian

_checksum, _checksum_3, _checksum_0 = (
    Checksum32FrameBuilder(),
    Checksum32FrameBuilder(3),
    Checksum32FrameBuilder(0),
)
_checksum_most = Checksum32FrameBuilder(16_843_009)

CHECKSUM32 = [
    Case("nothing", _checksum, b""),
    Case("an empty frame", _checksum, bytes(8), [b""]),
    Case("one byte", _checksum, b"\x00\x00\x00\x01a\x00\x00\x00\x61", [b"a"]),
    Case(
        "a sum of more than a byte",
        _checksum,
        b"\x00\x00\x00\x03\xff\xff\x02\x00\x00\x02\x00",
        [b"\xff\xff\x02"],
    ),
    Case("a payload of zeros", _checksum, b"\x00\x00\x00\x05" + bytes(9), [bytes(5)]),
    Case(
        "a frame within a frame",
        _checksum,
        b"\x00\x00\x00\x09\x00\x00\x00\x01a\x00\x00\x00\x61\x00\x00\x00\xc3",
        [b"\x00\x00\x00\x01a\x00\x00\x00\x61"],
    ),
    Case(
        "three frames",
        _checksum,
        b"\x00\x00\x00\x01a\x00\x00\x00\x61" + bytes(8) + b"\x00\x00\x00\x01\x01\x00\x00\x00\x01",
        [b"a", b"", b"\x01"],
    ),
    Case("a hundred empty frames", _checksum, bytes(800), [b""] * 100),
    Case(
        "a length of 2^7 - 1",
        _checksum,
        b"\x00\x00\x00\x7f" + b"\xff" * 127 + b"\x00\x00\x7e\x81",
        [b"\xff" * 127],
    ),
    Case(
        "a length of 2^7",
        _checksum,
        b"\x00\x00\x00\x80" + b"\xff" * 128 + b"\x00\x00\x7f\x80",
        [b"\xff" * 128],
    ),
    Case(
        "a length of 2^7 + 1",
        _checksum,
        b"\x00\x00\x00\x81" + b"\xff" * 129 + b"\x00\x00\x80\x7f",
        [b"\xff" * 129],
    ),
    Case(
        "a length of 2^16 - 1",
        _checksum,
        b"\x00\x00\xff\xff" + b"\x01" * 65_535 + b"\x00\x00\xff\xff",
        [b"\x01" * 65_535],
    ),
    Case(
        "a length of 2^16",
        _checksum,
        b"\x00\x01\x00\x00" + b"\x01" * 65_536 + b"\x00\x01\x00\x00",
        [b"\x01" * 65_536],
    ),
    Case(
        "a length of 2^16 + 1",
        _checksum,
        b"\x00\x01\x00\x01" + b"\xff" * 65_537 + b"\x00\xff\x00\xff",
        [b"\xff" * 65_537],
    ),
    Case(
        "the longest frame that max_size allows",
        _checksum_3,
        b"\x00\x00\x00\x03\x01\x02\x03\x00\x00\x00\x06",
        [b"\x01\x02\x03"],
    ),
    Case("max_size 0 and an empty frame", _checksum_0, bytes(8), [b""]),
    # ------------------------------------------------------------------ not complete
    Case("half a length", _checksum, b"\x00\x00", rest=2),
    Case("a length", _checksum, b"\x00\x00\x00\x01", rest=4),
    Case("an empty frame without its checksum", _checksum, bytes(4), rest=4),
    Case("an empty frame with most of its checksum", _checksum, bytes(7), rest=7),
    Case("a payload", _checksum, b"\x00\x00\x00\x01a", rest=5),
    Case(
        "a frame without the last byte of a checksum that would be wrong",
        _checksum,
        b"\x00\x00\x00\x01a\xff\xff\xff",
        rest=8,
    ),
    Case("a frame and half a length", _checksum, bytes(8) + bytes(2), [b""], rest=2),
    Case("the longest that the format allows", _checksum_most, b"\x01\x01\x01\x01abc", rest=7),
    # ------------------------------------------------------------------ wrong
    Case(
        "a checksum one too high",
        _checksum,
        b"\x00\x00\x00\x01a\x00\x00\x00\x62",
        error=ChecksumMismatch,
    ),
    Case(
        "a checksum one too low",
        _checksum,
        b"\x00\x00\x00\x01a\x00\x00\x00\x60",
        error=ChecksumMismatch,
    ),
    Case(
        "a checksum in the other byte order",
        _checksum,
        b"\x00\x00\x00\x01a\x61\x00\x00\x00",
        error=ChecksumMismatch,
    ),
    Case(
        "a checksum that is right in its low byte",
        _checksum,
        b"\x00\x00\x00\x01a\x01\x00\x00\x61",
        error=ChecksumMismatch,
    ),
    Case(
        "a sum of signed bytes",
        _checksum,
        b"\x00\x00\x00\x01\xff\xff\xff\xff\xff",
        error=ChecksumMismatch,
    ),
    Case(
        "a sum that misses the last byte",
        _checksum,
        b"\x00\x00\x00\x02\x01\x02\x00\x00\x00\x01",
        error=ChecksumMismatch,
    ),
    Case(
        "a sum that has the length in it",
        _checksum,
        b"\x00\x00\x00\x02\x01\x02\x00\x00\x00\x05",
        error=ChecksumMismatch,
    ),
    Case("an empty frame with a checksum", _checksum, bytes(7) + b"\x01", error=ChecksumMismatch),
    Case(
        "a good frame and a wrong checksum",
        _checksum,
        bytes(8) + b"\x00\x00\x00\x01a\x00\x00\x00\x00",
        [b""],
        ChecksumMismatch,
    ),
    Case("one over max_size", _checksum_3, b"\x00\x00\x00\x04", error=FrameTooLarge),
    Case(
        "one over max_size, whole, its checksum wrong",
        _checksum_3,
        b"\x00\x00\x00\x04abcd\x00\x00\x00\x00",
        error=FrameTooLarge,
    ),
    Case("over max_size 0", _checksum_0, b"\x00\x00\x00\x01", error=FrameTooLarge),
    Case(
        "one over the format's own limit", _checksum_most, b"\x01\x01\x01\x02", error=FrameTooLarge
    ),
    Case("a length of 2^31 - 1", _checksum_most, b"\x7f\xff\xff\xff", error=FrameTooLarge),
    Case("a length of 2^31", _checksum_most, b"\x80\x00\x00\x00", error=FrameTooLarge),
    Case(
        "a length that wraps around with the overhead",
        _checksum_most,
        b"\xff\xff\xff\xf8" + bytes(8),
        error=FrameTooLarge,
    ),
    Case(
        "a length of 2^32 - 1", _checksum_most, b"\xff\xff\xff\xff" + bytes(8), error=FrameTooLarge
    ),
    Case(
        "a good frame and one over max_size",
        _checksum_3,
        bytes(8) + b"\x00\x00\x00\x04",
        [b""],
        FrameTooLarge,
    ),
]

# ---------------------------------------------------------------------------------- length, payload

# The lengths at which a type ends and their neighbours, as each width that can express them writes
# them, highest byte first.
LENGTHS = {
    1: {127: "7f", 128: "80", 129: "81", 255: "ff"},
    2: {
        127: "007f",
        128: "0080",
        255: "00ff",
        256: "0100",
        32_767: "7fff",
        32_768: "8000",
        65_535: "ffff",
    },
    4: {
        127: "0000007f",
        128: "00000080",
        65_535: "0000ffff",
        65_536: "00010000",
        65_537: "00010001",
        2_147_483_647: "7fffffff",
        2_147_483_648: "80000000",
        2_147_483_649: "80000001",
        4_294_967_291: "fffffffb",
        4_294_967_292: "fffffffc",
        4_294_967_295: "ffffffff",
    },
    8: {
        127: "000000000000007f",
        128: "0000000000000080",
        65_535: "000000000000ffff",
        65_536: "0000000000010000",
        65_537: "0000000000010001",
        2_147_483_647: "000000007fffffff",
        2_147_483_648: "0000000080000000",
        2_147_483_649: "0000000080000001",
        4_294_967_295: "00000000ffffffff",
        4_294_967_296: "0000000100000000",
        4_294_967_297: "0000000100000001",
        9_223_372_036_854_775_800: "7ffffffffffffff8",
        9_223_372_036_854_775_807: "7fffffffffffffff",
        9_223_372_036_854_775_808: "8000000000000000",
        9_223_372_036_854_775_809: "8000000000000001",
        18_446_744_073_709_551_607: "fffffffffffffff7",
        18_446_744_073_709_551_608: "fffffffffffffff8",
        18_446_744_073_709_551_615: "ffffffffffffffff",
    },
}


def _boundaries(width: int, byteorder: str) -> list[Case]:
    """Each of those lengths where `max_size` just allows it, and where it just does not."""
    cases = []
    for length, written in LENGTHS[width].items():
        header = bytes.fromhex(written)[:: 1 if byteorder == "big" else -1]
        name = f"width {width}, {byteorder}, a length of {length:#x}"
        if length <= LARGEST:
            exact = LengthFrameBuilder(width, byteorder, max_size=length)
            if length < 70_000:
                cases.append(
                    Case(name, exact, header + b"w" * length + header, [b"w" * length], rest=width)
                )
            else:
                cases.append(Case(name, exact, header + b"w" * 100, rest=width + 100))
        below = LengthFrameBuilder(width, byteorder, max_size=min(length - 1, LARGEST))
        cases.append(Case(f"{name}, over max_size", below, header, error=FrameTooLarge))
    return cases


_length = {width: LengthFrameBuilder(width) for width in (1, 2, 4, 8)}
_little = {width: LengthFrameBuilder(width, "little") for width in (1, 2, 4, 8)}

LENGTH = [
    Case("nothing", _length[4], b""),
    Case("an empty frame of width 1", _length[1], b"\x00", [b""]),
    Case("an empty frame of width 2", _length[2], bytes(2), [b""]),
    Case("an empty frame of width 4", _length[4], bytes(4), [b""]),
    Case("an empty frame of width 8", _length[8], bytes(8), [b""]),
    Case("frames of width 1", _length[1], b"\x01a\x00\x02bc", [b"a", b"", b"bc"]),
    Case("frames of width 2", _length[2], b"\x00\x01a\x00\x00\x00\x02bc", [b"a", b"", b"bc"]),
    Case(
        "frames of width 4",
        _length[4],
        b"\x00\x00\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x02bc",
        [b"a", b"", b"bc"],
    ),
    Case(
        "frames of width 8",
        _length[8],
        bytes(7) + b"\x01a" + bytes(8) + bytes(7) + b"\x02bc",
        [b"a", b"", b"bc"],
    ),
    Case("little-endian frames of width 1", _little[1], b"\x01a\x00\x02bc", [b"a", b"", b"bc"]),
    Case(
        "little-endian frames of width 2",
        _little[2],
        b"\x01\x00a\x00\x00\x02\x00bc",
        [b"a", b"", b"bc"],
    ),
    Case(
        "little-endian frames of width 4",
        _little[4],
        b"\x01\x00\x00\x00a\x00\x00\x00\x00\x02\x00\x00\x00bc",
        [b"a", b"", b"bc"],
    ),
    Case(
        "little-endian frames of width 8",
        _little[8],
        b"\x01" + bytes(7) + b"a" + bytes(8) + b"\x02" + bytes(7) + b"bc",
        [b"a", b"", b"bc"],
    ),
    Case("a little-endian length of two bytes", _little[2], b"\x01\x01" + b"x" * 257, [b"x" * 257]),
    Case("a hundred empty frames", _length[2], bytes(200), [b""] * 100),
    Case("max_size 0 and an empty frame", LengthFrameBuilder(2, max_size=0), bytes(2), [b""]),
    Case("the default max_size", _length[4], b"\x00\x10\x00\x00z", rest=5),
    Case("the default max_size of width 2", _length[2], b"\xff\xffz", rest=3),
    # ------------------------------------------------------------------ not complete
    Case("half a length", _length[2], b"\x00", rest=1),
    Case("most of a length of all ones", _length[8], b"\xff" * 7, rest=7),
    Case("a length", _length[1], b"\x01", rest=1),
    Case("half a payload", _length[1], b"\x02a", rest=2),
    Case("a frame and half a length", _length[2], b"\x00\x01a\x00", [b"a"], rest=1),
    # ------------------------------------------------------------------ wrong
    Case("one over the default max_size", _length[4], b"\x00\x10\x00\x01", error=FrameTooLarge),
    Case("a little-endian length over it", _little[4], b"\x01\x00\x10\x00", error=FrameTooLarge),
    Case("over max_size 0", LengthFrameBuilder(1, max_size=0), b"\x01a", error=FrameTooLarge),
    Case(
        "a good frame and one over max_size",
        LengthFrameBuilder(1, max_size=3),
        b"\x03abc\x04",
        [b"abc"],
        FrameTooLarge,
    ),
    *(
        case
        for width in LENGTHS
        for byteorder in ("big", "little")
        for case in _boundaries(width, byteorder)
    ),
]

# ------------------------------------------------------------------------------- payload, delimiter

_line, _line_5, _line_0, _line_any = (
    LineFrameBuilder(max_size=most) for most in (65_536, 5, 0, LARGEST)
)
_crlf, _crlf_5 = LineFrameBuilder(b"\r\n"), LineFrameBuilder(b"\r\n", 5)
_aab = LineFrameBuilder(b"aab", 5)
_64 = LineFrameBuilder(b"-" * 63 + b"+", 70)

LINE = [
    Case("nothing", _line, b""),
    Case("an empty line", _line, b"\n", [b""]),
    Case("an empty line with a carriage return", _line, b"\r\n", [b""]),
    Case("one byte", _line, b"a\n", [b"a"]),
    Case("three lines", _line, b"a\n\nbc\n", [b"a", b"", b"bc"]),
    Case("a hundred empty lines", _line, b"\n" * 100, [b""] * 100),
    Case("lines that end either way", _line, b"a\r\nb\n\r\nc\r\n", [b"a", b"b", b"", b"c"]),
    Case("two carriage returns at the end", _line, b"a\r\r\n", [b"a\r"]),
    Case("a carriage return within", _line, b"a\rb\n", [b"a\rb"]),
    Case("a carriage return at the beginning", _line, b"\ra\n", [b"\ra"]),
    Case("a carriage return after the line", _line, b"a\n\rb\n", [b"a", b"\rb"]),
    Case("zeros and high bytes", _line, b"\x00\xff\x80\n", [b"\x00\xff\x80"]),
    Case("2^7 - 1 bytes", LineFrameBuilder(max_size=127), b"l" * 127 + b"\n", [b"l" * 127]),
    Case("2^7 bytes", LineFrameBuilder(max_size=128), b"l" * 128 + b"\n", [b"l" * 128]),
    Case(
        "2^16 - 1 bytes", LineFrameBuilder(max_size=65_535), b"l" * 65_535 + b"\n", [b"l" * 65_535]
    ),
    Case("2^16 bytes, the default max_size", _line, b"l" * 65_536 + b"\n", [b"l" * 65_536]),
    Case("2^16 bytes and a carriage return", _line, b"l" * 65_536 + b"\r\n", [b"l" * 65_536]),
    Case(
        "2^16 + 1 bytes", LineFrameBuilder(max_size=65_537), b"l" * 65_537 + b"\n", [b"l" * 65_537]
    ),
    Case("the longest line that max_size allows", _line_5, b"abcde\n", [b"abcde"]),
    Case("the longest line, with a carriage return", _line_5, b"abcde\r\n", [b"abcde"]),
    Case("max_size 0 and empty lines", _line_0, b"\n\r\n\n", [b"", b"", b""]),
    Case("max_size 2^63 - 1", _line_any, b"abc\nd", [b"abc"], rest=1),
    # ------------------------------------------------------------------ other delimiters
    Case(
        "a delimiter that is a carriage return and a line feed",
        _crlf,
        b"a\r\n\r\nb\nc\r\n",
        [b"a", b"", b"b\nc"],
    ),
    Case("a carriage return before that one", _crlf, b"a\r\r\n", [b"a\r"]),
    Case(
        "a delimiter of one other byte",
        LineFrameBuilder(b"\x00"),
        b"a\r\x00\x00b\n\x00",
        [b"a\r", b"", b"b\n"],
    ),
    Case("a delimiter that begins as the payload ends", _aab, b"aaab", [b"a"]),
    Case("beginnings of a delimiter", _aab, b"aabaaaabaaa", [b"", b"aa"], rest=3),
    Case(
        "beginnings of a delimiter within", LineFrameBuilder(b"aab"), b"aacaaabaab", [b"aaca", b""]
    ),
    Case("a delimiter of equal bytes", LineFrameBuilder(b"aa"), b"aaaba", [b""], rest=3),
    Case(
        "a delimiter of equal bytes, found as soon as it can be",
        LineFrameBuilder(b"aa"),
        b"baaaa",
        [b"b", b""],
    ),
    Case("the longest delimiter", _64, b"x" + b"-" * 70 + b"+", [b"x" + b"-" * 7]),
    Case("the longest delimiter without its end", _64, b"x" + b"-" * 70, rest=71),
    Case("max_size and a long delimiter", _aab, b"12345aab", [b"12345"]),
    # ------------------------------------------------------------------ not complete
    Case("half a line", _line, b"a", rest=1),
    Case("a line without its feed", _line, b"abc\r", rest=4),
    Case("half a delimiter", _crlf, b"abc\r", rest=4),
    Case("a line and half of another", _line, b"a\nbc", [b"a"], rest=2),
    Case("max_size and no end", _line_5, b"abcde", rest=5),
    Case("max_size, a carriage return and no end", _line_5, b"abcde\r", rest=6),
    Case("one more than max_size, which might be a carriage return", _line_5, b"abcdef", rest=6),
    Case("max_size and half a delimiter", _crlf_5, b"abcde\r", rest=6),
    Case("max_size and most of a long delimiter", _aab, b"12345aa", rest=7),
    # ------------------------------------------------------------------ wrong
    Case("one over max_size", _line_5, b"abcdef\n", error=FrameTooLarge),
    Case("one over max_size and a carriage return", _line_5, b"abcdef\r\n", error=FrameTooLarge),
    Case("max_size and two carriage returns", _line_5, b"abcde\r\r\n", error=FrameTooLarge),
    Case("two over max_size and no end", _line_5, b"abcdefg", error=FrameTooLarge),
    Case("far over max_size, with an end", _line_5, b"abcdefghijklm\n", error=FrameTooLarge),
    Case("max_size and a wrong delimiter", _crlf_5, b"abcde\rx", error=FrameTooLarge),
    Case("one over max_size and a long delimiter", _aab, b"123456aab", error=FrameTooLarge),
    Case("max_size and a wrong long delimiter", _aab, b"12345aaa", error=FrameTooLarge),
    Case("over max_size 0", _line_0, b"a\n", error=FrameTooLarge),
    Case("over the default max_size", _line, b"l" * 65_538, error=FrameTooLarge),
    Case("a good line and one over max_size", _line_5, b"a\nabcdefg", [b"a"], FrameTooLarge),
]

# ----------------------------------------------------------------------------- RFC 6455 section 5.2

_ws, _ws_5, _ws_0 = (WebSocketFrameBuilder(most) for most in (1 << 20, 5, 0))

# The wire as the header's fields make it; a length of more than 125 with the code of its form.
_WS_LENGTHS = {
    126: "7e007e",
    127: "7e007f",
    128: "7e0080",
    129: "7e0081",
    65_535: "7effff",  # simple-stream's length for exactly that many bytes is wrong
    65_536: "7f0000000000010000",
    65_537: "7f0000000000010001",
    2_147_483_647: "7f000000007fffffff",
    2_147_483_648: "7f0000000080000000",
    2_147_483_649: "7f0000000080000001",
    4_294_967_295: "7f00000000ffffffff",
    4_294_967_296: "7f0000000100000000",
    4_294_967_297: "7f0000000100000001",
    9_223_372_036_854_775_797: "7f7ffffffffffffff5",
    9_223_372_036_854_775_807: "7f7fffffffffffffff",
    9_223_372_036_854_775_808: "7f8000000000000000",
    9_223_372_036_854_775_809: "7f8000000000000001",
    18_446_744_073_709_551_605: "7ffffffffffffffff5",
    18_446_744_073_709_551_615: "7fffffffffffffffff",
}


def _websocket_boundaries() -> list[Case]:
    cases = []
    for length, written in _WS_LENGTHS.items():
        header = b"\x82" + bytes.fromhex(written)
        name = f"a length of {length:#x}"
        if length < 70_000:
            cases.append(
                Case(name, WebSocketFrameBuilder(length), header + b"w" * length, [b"w" * length])
            )
        elif length <= LARGEST:
            cases.append(
                Case(
                    name, WebSocketFrameBuilder(length), header + b"w" * 100, rest=len(header) + 100
                )
            )
        below = WebSocketFrameBuilder(min(length - 1, LARGEST))
        cases.append(Case(f"{name}, over max_size", below, header, error=FrameTooLarge))
        masked = b"\x82" + bytes([header[1] | 0x80]) + header[2:]
        cases.append(
            Case(
                f"{name}, masked, over max_size before the mask is there",
                below,
                masked,
                error=FrameTooLarge,
            )
        )
    return cases


WEBSOCKET = [
    Case("nothing", _ws, b""),
    # ------------------------------------------------------------------ the examples of section 5.7
    Case("an unmasked text frame", _ws, b"\x81\x05Hello", [b"Hello"]),
    Case("a masked text frame", _ws, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", [b"Hello"]),
    Case("a text of two fragments", _ws, b"\x01\x03Hel\x80\x02lo", [b"Hel", b"lo"]),
    Case("an unmasked ping", _ws, b"\x89\x05Hello", [b"Hello"]),
    Case("a masked pong", _ws, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", [b"Hello"]),
    Case("256 bytes", _ws, b"\x82\x7e\x01\x00" + bytes(range(256)), [bytes(range(256))]),
    Case(
        "64 KiB", _ws, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + b"k" * 65_536, [b"k" * 65_536]
    ),
    # ------------------------------------------------------------------ more that is good
    Case("an empty frame", _ws, b"\x82\x00", [b""]),
    Case("an empty masked frame", _ws, b"\x82\x80\x01\x02\x03\x04", [b""]),
    Case("a mask of zeros", _ws, b"\x82\x82\x00\x00\x00\x00ab", [b"ab"]),
    Case(
        "a mask over all its phases",
        _ws,
        b"\x82\x93\x01\x02\x04\x80" + bytes(19),
        [b"\x01\x02\x04\x80" * 4 + b"\x01\x02\x04"],
    ),
    Case("a close frame with its code", _ws, b"\x88\x02\x03\xe8", [b"\x03\xe8"]),
    Case("an empty close frame", _ws, b"\x88\x00", [b""]),
    Case(
        "all opcodes",
        _ws,
        b"\x80\x01a\x81\x01b\x82\x01c\x88\x01d\x89\x01e\x8a\x01f",
        [b"a", b"b", b"c", b"d", b"e", b"f"],
    ),
    Case("fragments of all data opcodes", _ws, b"\x00\x01a\x01\x01b\x02\x01c", [b"a", b"b", b"c"]),
    Case("a hundred empty frames", _ws, b"\x82\x00" * 100, [b""] * 100),
    Case("125 bytes", _ws, b"\x82\x7d" + b"m" * 125, [b"m" * 125]),
    Case("the longest control frame", _ws, b"\x89\x7d" + b"n" * 125, [b"n" * 125]),
    Case(
        "the longest control frame, masked",
        _ws,
        b"\x89\xfd\x00\x00\x00\x00" + b"n" * 125,
        [b"n" * 125],
    ),
    Case(
        "300 bytes, masked",
        _ws,
        b"\x82\xfe\x01\x2c\xff\x00\xff\x00" + bytes(300),
        [b"\xff\x00" * 150],
    ),
    Case("the longest frame that max_size allows", _ws_5, b"\x82\x05abcde", [b"abcde"]),
    Case("max_size 0 and an empty frame", _ws_0, b"\x82\x00", [b""]),
    Case("the default max_size", _ws, b"\x82\x7f\x00\x00\x00\x00\x00\x10\x00\x00z", rest=11),
    # ------------------------------------------------------------------ not complete
    Case("one byte", _ws, b"\x82", rest=1),
    Case("a header", _ws, b"\x82\x01", rest=2),
    Case("half a 16-bit length", _ws, b"\x82\x7e\x00", rest=3),
    Case("most of a 64-bit length of all ones", _ws, b"\x82\x7f" + b"\xff" * 7, rest=9),
    Case("half a mask", _ws, b"\x82\x81\x01\x02", rest=4),
    Case("a mask", _ws, b"\x82\x81\x01\x02\x03\x04", rest=6),
    Case("an empty masked frame without all of its mask", _ws, b"\x82\x80\x01\x02\x03", rest=5),
    Case("half a payload", _ws, b"\x82\x02a", rest=3),
    Case("half a masked payload", _ws, b"\x82\x82\x01\x02\x03\x04a", rest=7),
    Case("a frame and a header", _ws, b"\x82\x01a\x82\x05", [b"a"], rest=2),
    # ------------------------------------------------------------------ wrong
    Case("the first reserved bit", _ws, b"\xc2", error=ProtocolError),
    Case("the second reserved bit", _ws, b"\xa2\x00", error=ProtocolError),
    Case("the third reserved bit", _ws, b"\x92\x00", error=ProtocolError),
    *(
        Case(f"reserved opcode {opcode}", _ws, bytes([0x80 | opcode]), error=ProtocolError)
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    ),
    *(
        Case(f"a fragment of control opcode {opcode}", _ws, bytes([opcode]), error=ProtocolError)
        for opcode in (8, 9, 10)
    ),
    *(
        Case(
            f"a long control frame of opcode {opcode}",
            _ws,
            bytes([0x80 | opcode, 126]),
            error=ProtocolError,
        )
        for opcode in (8, 9, 10)
    ),
    Case("a control frame with a 64-bit length", _ws, b"\x89\x7f", error=ProtocolError),
    Case("a masked control frame that is long", _ws, b"\x89\xfe", error=ProtocolError),
    Case("0 in 16 bits", _ws, b"\x82\x7e\x00\x00", error=ProtocolError),
    Case("125 in 16 bits", _ws, b"\x82\x7e\x00\x7d", error=ProtocolError),
    Case("125 in 16 bits, masked", _ws, b"\x82\xfe\x00\x7d", error=ProtocolError),
    Case("0 in 64 bits", _ws, b"\x82\x7f" + bytes(8), error=ProtocolError),
    Case("125 in 64 bits", _ws, b"\x82\x7f" + bytes(7) + b"\x7d", error=ProtocolError),
    Case(
        "65,535 in 64 bits", _ws, b"\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", error=ProtocolError
    ),
    Case("125 in 16 bits, over max_size", _ws_5, b"\x82\x7e\x00\x7d", error=ProtocolError),
    Case("a good frame and a reserved bit", _ws, b"\x82\x01a\xf2", [b"a"], ProtocolError),
    Case("a good frame and text", _ws, b"\x82\x01aGET / HTTP/1.1", [b"a"], ProtocolError),
    Case("one over max_size", _ws_5, b"\x82\x06", error=FrameTooLarge),
    Case("a control frame over max_size", _ws_5, b"\x89\x06", error=FrameTooLarge),
    Case("over max_size 0", _ws_0, b"\x82\x01", error=FrameTooLarge),
    Case(
        "one over the default max_size",
        _ws,
        b"\x82\x7f\x00\x00\x00\x00\x00\x10\x00\x01",
        error=FrameTooLarge,
    ),
    Case("a good frame and one over max_size", _ws_5, b"\x82\x01a\x82\x06", [b"a"], FrameTooLarge),
    *_websocket_boundaries(),
]

FRAMINGS = {
    "simple": SIMPLE,
    "checksum32": CHECKSUM32,
    "length": LENGTH,
    "line": LINE,
    "websocket": WEBSOCKET,
}
CASES = [case for cases in FRAMINGS.values() for case in cases]

# What the mutated streams of the tests are read with: small limits, so that they are met.
BUILDERS: dict[str, list[hydrogen.FrameBuilder]] = {
    "simple": [SimpleFrameBuilder(most) for most in (0, 5, 300)],
    "checksum32": [Checksum32FrameBuilder(most) for most in (0, 5, 300)],
    "length": [
        LengthFrameBuilder(1, max_size=5),
        LengthFrameBuilder(2, max_size=300),
        LengthFrameBuilder(2, "little", max_size=300),
        LengthFrameBuilder(4, max_size=300),
        LengthFrameBuilder(4, "little", max_size=0),
        LengthFrameBuilder(8, max_size=LARGEST),
        LengthFrameBuilder(8, "little", max_size=300),
    ],
    "line": [
        LineFrameBuilder(max_size=0),
        LineFrameBuilder(max_size=5),
        LineFrameBuilder(max_size=300),
        LineFrameBuilder(b"\r\n", 20),
        LineFrameBuilder(b"aab", 20),
        LineFrameBuilder(b"\x00\x00\x00", 300),
    ],
    "websocket": [WebSocketFrameBuilder(most) for most in (0, 5, 300, 70_000)],
}
