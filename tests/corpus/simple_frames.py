"""Bytes, and what they are as SimpleFrames: the corpus on which both engines and the builder must agree.

Written by hand from the format (0x01, u16 big-endian length, payload, 0x17), not made by the code under test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import hydrogen


@dataclass(frozen=True)
class Case:
    """`wire` is these `frames`, then `error` (its class), or the beginning of a frame of which `rest` bytes are there."""

    name: str
    wire: bytes
    frames: list[bytes] = field(default_factory=list)
    error: type[Exception] | None = None
    rest: int = 0
    max_size: int = 65_535


CASES = [
    Case("nothing", b""),
    Case("an empty frame", b"\x01\x00\x00\x17", [b""]),
    Case("one byte", b"\x01\x00\x01a\x17", [b"a"]),
    Case("a payload of guard bytes", b"\x01\x00\x04\x01\x17\x17\x01\x17", [b"\x01\x17\x17\x01"]),
    Case("a frame within a frame", b"\x01\x00\x04\x01\x00\x00\x17\x17", [b"\x01\x00\x00\x17"]),
    Case("three frames", b"\x01\x00\x01a\x17\x01\x00\x00\x17\x01\x00\x02bc\x17", [b"a", b"", b"bc"]),
    Case("a hundred empty frames", b"\x01\x00\x00\x17" * 100, [b""] * 100),
    Case("a length with a low byte of 255", b"\x01\x00\xff" + b"q" * 255 + b"\x17", [b"q" * 255]),
    Case("a length with a low byte of 0", b"\x01\x01\x00" + b"r" * 256 + b"\x17", [b"r" * 256]),
    Case("a length with its highest bit set", b"\x01\x80\x00" + b"s" * 32_768 + b"\x17", [b"s" * 32_768]),
    Case("the longest frame", b"\x01\xff\xff" + b"t" * 65_535 + b"\x17", [b"t" * 65_535]),
    Case("a length that wraps with the overhead", b"\x01\xff\xfc" + b"u" * 65_532 + b"\x17", [b"u" * 65_532]),
    Case("the longest frame that max_size allows", b"\x01\x00\x05abcde\x17", [b"abcde"], max_size=5),
    Case("max_size 0 and an empty frame", b"\x01\x00\x00\x17", [b""], max_size=0),
    # ------------------------------------------------------------------ not complete
    Case("a start", b"\x01", rest=1),
    Case("half a length", b"\x01\x00", rest=2),
    Case("a header", b"\x01\x00\x02", rest=3),
    Case("half a payload", b"\x01\x00\x02a", rest=4),
    Case("a frame without its end", b"\x01\x00\x02ab", rest=5),
    Case("an empty frame without its end", b"\x01\x00\x00", rest=3),
    Case("a frame and a start", b"\x01\x00\x01a\x17\x01", [b"a"], rest=1),
    Case("a frame and most of another", b"\x01\x00\x01a\x17\x01\x00\x05bcdef", [b"a"], rest=8),
    Case("the beginning of the longest", b"\x01\xff\xff" + b"v" * 1000, rest=1003),
    # ------------------------------------------------------------------ wrong
    Case("a wrong start", b"\x02\x00\x01a\x17", error=hydrogen.ProtocolError),
    Case("a wrong start alone", b"\x00", error=hydrogen.ProtocolError),
    Case("an end for a start", b"\x17\x00\x01a\x01", error=hydrogen.ProtocolError),
    Case("a wrong end", b"\x01\x00\x01a\x18", error=hydrogen.ProtocolError),
    Case("a wrong end of an empty frame", b"\x01\x00\x00\x01", error=hydrogen.ProtocolError),
    Case("a payload longer than declared", b"\x01\x00\x01ab\x17", error=hydrogen.ProtocolError),
    Case("a good frame and a wrong start", b"\x01\x00\x01a\x17\x00", [b"a"], hydrogen.ProtocolError),
    Case("a good frame and a wrong end", b"\x01\x00\x01a\x17\x01\x00\x01b\x00", [b"a"], hydrogen.ProtocolError),
    Case("two good frames and text", b"\x01\x00\x01a\x17\x01\x00\x00\x17GET / HTTP/1.1", [b"a", b""], hydrogen.ProtocolError),
    Case("one over max_size", b"\x01\x00\x06", error=hydrogen.FrameTooLarge, max_size=5),
    Case("one over max_size with its payload", b"\x01\x00\x06abcdef\x17", error=hydrogen.FrameTooLarge, max_size=5),
    Case("over max_size 0", b"\x01\x00\x01a\x17", error=hydrogen.FrameTooLarge, max_size=0),
    Case("the highest bit over max_size", b"\x01\x80\x00", error=hydrogen.FrameTooLarge, max_size=32_767),
    Case("all bits over max_size", b"\x01\xff\xff", error=hydrogen.FrameTooLarge, max_size=65_534),
    Case("wrapping with the overhead, over max_size", b"\x01\xff\xfd", error=hydrogen.FrameTooLarge, max_size=1000),
    Case("a good frame and one over max_size", b"\x01\x00\x01a\x17\x01\x00\x06", [b"a"], hydrogen.FrameTooLarge, max_size=5),
]


def decode(wire: bytes, max_size: int = 65_535) -> tuple[list[bytes], type[Exception] | None, int]:
    """An independent reading of `wire`: the frames, the error that ends them, and the bytes of an unfinished one."""
    frames: list[bytes] = []
    at = 0
    while at < len(wire):
        if wire[at] != 0x01:
            return frames, hydrogen.ProtocolError, 0
        header = wire[at + 1 : at + 3]
        if len(header) < 2:
            break
        length = header[0] * 256 + header[1]
        if length > max_size:
            return frames, hydrogen.FrameTooLarge, 0
        payload, end = wire[at + 3 : at + 3 + length], wire[at + 3 + length : at + 4 + length]
        if not end:
            break
        if end != b"\x17":
            return frames, hydrogen.ProtocolError, 0
        frames.append(payload)
        at += 4 + length
    return frames, None, len(wire) - at


def mutated(seed: int, max_size: int) -> bytes:
    """Good frames with a few bytes changed, lost or put in; or nothing but noise. The same for the same seed."""
    dice = random.Random(seed)
    if dice.random() < 0.2:
        return dice.randbytes(dice.choice((1, 2, 3, 4, 10, 100, 3000)))
    parts = []
    for _ in range(dice.randrange(1, 8)):
        payload = dice.randbytes(dice.choice((0, 1, 2, max_size // 2, max_size)))
        parts.append(b"\x01" + len(payload).to_bytes(2, "big") + payload + b"\x17")
    wire = bytearray(b"".join(parts))
    for _ in range(dice.choice((0, 1, 1, 2))):
        at = dice.randrange(len(wire))
        what = dice.randrange(4)
        if what == 0:
            wire[at] = dice.randrange(256)
        elif what == 1:
            del wire[at]
        elif what == 2:
            wire.insert(at, dice.randrange(256))
        else:
            del wire[at + 1 :]
    return bytes(wire)
