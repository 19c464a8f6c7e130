"""Independent readers and writers of all formats: what the bytes of a test mean when no table says
it.

Written from the formats, and on purpose not in the way of the code under test: `struct` for
numbers, `partition` for lines, a loop for masks and sums.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable
from typing import Any

import hydrogen
from hydrogen import ChecksumMismatch, FrameBuilder, FrameTooLarge, ProtocolError

First = tuple[bytes, int]
"""The payload of the first frame, and how many bytes it takes."""


def _simple(builder: Any, wire: bytes) -> First | None:
    if wire[:1] not in (b"", b"\x01"):
        raise ProtocolError
    if len(wire) < 3:
        return None
    _, length = struct.unpack_from(">BH", wire)
    if length > builder.max_size:
        raise FrameTooLarge
    payload, end = wire[3 : 3 + length], wire[3 + length : 4 + length]
    if not end:
        return None
    if end != b"\x17":
        raise ProtocolError
    return payload, 4 + length


def _length(builder: Any, wire: bytes) -> First | None:
    format = {"big": ">", "little": "<"}[builder.byteorder] + {1: "B", 2: "H", 4: "I", 8: "Q"}[
        builder.width
    ]
    if len(wire) < builder.width:
        return None
    (length,) = struct.unpack_from(format, wire)
    if length > builder.max_size:
        raise FrameTooLarge
    payload = wire[builder.width :][:length]
    return (payload, builder.width + length) if len(payload) == length else None


def _checksum32(builder: Any, wire: bytes) -> First | None:
    if len(wire) < 4:
        return None
    (length,) = struct.unpack_from(">I", wire)
    if length > builder.max_size:
        raise FrameTooLarge
    payload, checksum = wire[4 : 4 + length], wire[4 + length : 8 + length]
    if len(checksum) < 4:
        return None
    total = 0
    for byte in payload:
        total = (total + byte) % (1 << 32)
    if checksum != struct.pack(">I", total):
        raise ChecksumMismatch
    return payload, 8 + length


def _line(builder: Any, wire: bytes) -> First | None:
    default = builder.delimiter == b"\n"
    line, found, _ = wire.partition(builder.delimiter)
    if not found:
        if len(wire) > builder.max_size + default + len(builder.delimiter) - 1:
            raise FrameTooLarge
        return None
    payload = line.removesuffix(b"\r") if default else line
    if len(payload) > builder.max_size:
        raise FrameTooLarge
    return payload, len(line) + len(found)


def _websocket(builder: Any, wire: bytes) -> First | None:
    if not wire:
        return None
    bits = f"{wire[0]:08b}"
    fin, reserved, opcode = bits[0] == "1", bits[1:4], int(bits[4:], 2)
    control = opcode in (8, 9, 10)
    if reserved != "000" or (opcode not in (0, 1, 2) and not control) or (control and not fin):
        raise ProtocolError
    if len(wire) < 2:
        return None
    has_mask, code = divmod(wire[1], 128)
    if control and code > 125:
        raise ProtocolError
    at, least, length = 2, 0, code
    if code > 125:
        format, least = (">H", 126) if code == 126 else (">Q", 65_536)
        at += struct.calcsize(format)
        if len(wire) < at:
            return None
        (length,) = struct.unpack_from(format, wire, 2)
    if length < least:
        raise ProtocolError
    if length > builder.max_size:
        raise FrameTooLarge
    mask = wire[at : at + 4] if has_mask else b"\x00\x00\x00\x00"
    at += 4 if has_mask else 0
    payload = wire[at:][:length]
    if len(wire) < at or len(payload) < length:
        return None
    return bytes(
        byte ^ key for byte, key in zip(payload, itertools.cycle(mask), strict=False)
    ), at + length


_FIRST: dict[type, Callable[[Any, bytes], First | None]] = {
    hydrogen.SimpleFrameBuilder: _simple,
    hydrogen.Checksum32FrameBuilder: _checksum32,
    hydrogen.LengthFrameBuilder: _length,
    hydrogen.LineFrameBuilder: _line,
    hydrogen.WebSocketFrameBuilder: _websocket,
}


def decode(builder: FrameBuilder, wire: bytes) -> tuple[list[bytes], type[Exception] | None, int]:
    """The frames of `wire`, the error that ends them, and the bytes of an unfinished one."""
    frames = []
    try:
        while (first := _FIRST[type(builder)](builder, wire)) is not None:
            frames.append(first[0])
            wire = wire[first[1] :]
    except ProtocolError as error:
        return frames, type(error), 0
    return frames, None, len(wire)


def encode(
    builder: Any, payload: bytes, opcode: int = 2, fin: bool = True, mask: bytes | None = None
) -> bytes:
    """A frame that carries `payload`, whether or not `max_size` and the delimiter allow it."""
    if isinstance(builder, hydrogen.SimpleFrameBuilder):
        return b"\x01" + struct.pack(">H", len(payload)) + payload + b"\x17"
    if isinstance(builder, hydrogen.Checksum32FrameBuilder):
        return struct.pack(">I", len(payload)) + payload + struct.pack(">I", sum(payload))
    if isinstance(builder, hydrogen.LengthFrameBuilder):
        return (
            struct.pack(
                (">" if builder.byteorder == "big" else "<") + " BH I   Q"[builder.width],
                len(payload),
            )
            + payload
        )
    if isinstance(builder, hydrogen.LineFrameBuilder):
        return payload + builder.delimiter
    first, masked = opcode | (128 if fin else 0), 0 if mask is None else 128
    if len(payload) < 126:
        header = bytes([first, masked | len(payload)])
    elif len(payload) < 65_536:
        header = struct.pack(">BBH", first, masked | 126, len(payload))
    else:
        header = struct.pack(">BBQ", first, masked | 127, len(payload))
    if mask is None:
        return header + payload
    return (
        header
        + mask
        + bytes(byte ^ key for byte, key in zip(payload, itertools.cycle(mask), strict=False))
    )


def carries(builder: Any, payload: bytes) -> type[Exception] | None:
    """The error with which `frame(payload)` refuses, or None."""
    if len(payload) > builder.max_size:
        return FrameTooLarge
    if (
        isinstance(builder, hydrogen.LineFrameBuilder)
        and (payload + builder.delimiter).partition(builder.delimiter)[0] != payload
    ):
        return ValueError
    return None


def received(builder: Any, payload: bytes) -> bytes:
    """`payload` as it comes out at the other end."""
    return payload.removesuffix(b"\r") if getattr(builder, "delimiter", b"") == b"\n" else payload


def mutated(seed: int, builder: Any) -> bytes:
    """Good frames with a few bytes changed, lost or put in; or nothing but noise. The same for the
    same seed and builder.
    """
    dice = random.Random(f"{seed} {builder!r}")
    if dice.random() < 0.15:
        return dice.randbytes(dice.choice((1, 2, 3, 4, 10, 100, 3000)))
    # over 65,535 is another form of a WebSocket length
    longest = min(builder.max_size, 70_000 if dice.random() < 0.02 else 1000)
    telling = (
        b"\x00\x01\x7d\x7e\x7f\x80\x81\x82\xff" + b"\r" + getattr(builder, "delimiter", b"\x17")
    )
    wire = bytearray()
    for _ in range(dice.randrange(1, 8)):
        length = dice.choice((0, 1, 2, min(longest, 130), longest // 2, longest))
        payload = dice.choice((dice.randbytes(length), bytes(dice.choices(telling, k=length))))
        opcode = dice.choice((0, 1, 2, 8, 9, 10))
        mask = dice.choice((None, dice.randbytes(4)))
        wire += encode(builder, payload, opcode, opcode > 7 or dice.random() < 0.5, mask)
    for _ in range(dice.choice((0, 1, 1, 2))):
        at = dice.choice((dice.randrange(len(wire)), dice.randrange(min(len(wire), 12))))
        what = dice.randrange(4)
        if what == 0:
            wire[at] = dice.choice((dice.randrange(256), dice.choice(telling)))
        elif what == 1:
            del wire[at]
        elif what == 2:
            wire.insert(at, dice.choice(telling))
        else:
            del wire[at + 1 :]
        wire = wire or bytearray(b"\x00")
    return bytes(wire)


def split(dice: random.Random, wire: bytes, cuts: int) -> list[bytes]:
    """`wire` in at most `cuts` + 1 parts, none of them empty."""
    at = sorted(dice.randrange(len(wire) + 1) for _ in range(dice.randrange(cuts + 1)))
    parts = [wire[begin:end] for begin, end in zip([0, *at], [*at, len(wire)], strict=True)]
    return [part for part in parts if part]
