"""What messages look like on the wire, for each framing that the generator speaks.

A message is a prefix, its content and a suffix. The content changes from message to message; prefix
and suffix depend on its size alone, but for a checksum. Nothing here knows the server library:
these are the formats once more, in the fewest words, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

WINDOWS = 256
"""Places in the pattern at which a message's content may begin."""


@dataclass(frozen=True)
class Shape:
    """Messages of one size: all that a hot loop has to know of their framing."""

    size: int
    """bytes of content"""
    prefix: bytes = b""
    suffix: bytes = b""
    checksum: bool = False
    """the suffix is no constant, but the sum of the content's bytes as a u32, big-endian"""
    mask: int = 0xFF
    base: int = 0
    """a byte of content is ``base + (random byte & mask)``: how a framing keeps its delimiter out
    of it
    """
    reply_prefix: bytes | None = None
    """of the reply, where it differs; a reply then comes only when its whole request was sent"""

    @property
    def message_size(self) -> int:
        """Bytes of a message."""
        return len(self.prefix) + self.size + len(self.suffix)

    @property
    def reply(self) -> Shape:
        """What the server sends back."""
        return (
            self
            if self.reply_prefix is None
            else replace(self, prefix=self.reply_prefix, reply_prefix=None)
        )


@dataclass(frozen=True)
class Mix:
    """The messages of one run: each has one of these shapes, by chance and with equal shares, and
    content of the pattern.
    """

    shapes: tuple[Shape, ...]
    payload: bytes | None = None
    """the content of every message, which is else random and never the same twice"""

    def pattern(self, seed: int) -> bytes:
        """The given content, or a random one, so long that a message's may begin at any of
        ``WINDOWS`` places.
        """
        if self.payload is not None:
            return self.payload
        shape = self.shapes[0]
        allowed = bytes(shape.base + (byte & shape.mask) for byte in range(256))
        return (
            random.Random(seed)
            .randbytes(max(shape.size for shape in self.shapes) + WINDOWS)
            .translate(allowed)
        )


def raw(size: int) -> Shape:
    """Content alone."""
    return Shape(size)


def simple(size: int) -> Shape:
    """0x01, u16 big-endian length, content, 0x17."""
    return Shape(size, b"\x01" + size.to_bytes(2, "big"), b"\x17")


def checksum32(size: int) -> Shape:
    """u32 big-endian length, content, checksum."""
    return Shape(size, size.to_bytes(4, "big"), bytes(4), checksum=True)


def length(size: int) -> Shape:
    """u32 big-endian length, content."""
    return Shape(size, size.to_bytes(4, "big"))


def line(size: int) -> Shape:
    """Content, newline. The content is of the characters from "0" to "o": no end of line, nothing
    that servers strip or cannot decode.
    """
    return Shape(size, suffix=b"\n", mask=0x3F, base=ord("0"))


def websocket(size: int) -> Shape:
    """A final binary frame of RFC 6455 section 5.2, without mask: what servers send, so that the
    echo is the same bytes.
    """
    if size < 126:
        return Shape(size, bytes([0x82, size]))
    if size < 1 << 16:
        return Shape(size, b"\x82\x7e" + size.to_bytes(2, "big"))
    return Shape(size, b"\x82\x7f" + size.to_bytes(8, "big"))


def websocket_text(size: int) -> Shape:
    """The same of text; the content is that of lines."""
    shape = websocket(size)
    return replace(shape, prefix=b"\x81" + shape.prefix[1:], mask=0x3F, base=ord("0"))


def masked(plain: Shape) -> Shape:
    """That WebSocket frame as clients must send it (section 5.3). The mask is of zeros: a server
    has the same work, and we none.
    """
    opcode, length = plain.prefix[0], plain.prefix[1]
    return replace(
        plain,
        prefix=bytes([opcode, length | 0x80]) + plain.prefix[2:] + bytes(4),
        reply_prefix=plain.prefix,
    )


CLOSE, PING, PONG = 0x88, 0x89, 0x8A
"""The first bytes of control frames (section 5.5), which are never fragmented."""

CONTROL_MOST = 125
"""Bytes that a control frame carries at most."""


def pong(payload: bytes) -> bytes:
    """The answer to a ping, as clients must send it; the mask as above."""
    return bytes([PONG, len(payload) | 0x80]) + bytes(4) + payload


MOST = 1 << 30

FRAMINGS: dict[str, tuple[Callable[[int], Shape], range]] = {
    "raw": (raw, range(1, MOST + 1)),
    "simple": (simple, range(0xFFFF + 1)),
    "checksum32": (checksum32, range(0xFFFFFFFF // 0xFF + 1)),
    "length": (length, range(MOST + 1)),
    "line": (line, range(MOST + 1)),
    "websocket": (websocket, range(MOST + 1)),
    "websocket-text": (websocket_text, range(MOST + 1)),
}
"""By the names of the command line, the shape for a size and the sizes allowed: those that the
length field, or the sum, can hold.
"""


SIZES_MOST = 4096
"""Sizes in one run: of a longer range so many are taken, at even distances."""


def sizes_of(text: str) -> tuple[int, ...]:
    """The sizes that ``64``, ``64,1k`` or ``uniform:64-1k`` means, in bytes; k is 1,024 and M
    1,048,576. Raises ValueError.
    """
    kind, colon, bounds = text.partition(":")
    if not colon:
        sizes = tuple(bytes_of(part) for part in text.split(","))
        if len(sizes) > SIZES_MOST:
            raise ValueError(f"more than {SIZES_MOST:,} sizes")
        return sizes
    low, dash, high = bounds.partition("-")
    if kind != "uniform" or not dash:
        raise ValueError(
            f"{text!r} is not a size, a list of sizes separated by commas, or uniform:LOW-HIGH"
        )
    lowest, highest = bytes_of(low), bytes_of(high)
    if lowest > highest:
        raise ValueError(f"{text!r} is a range from high to low")
    steps = min(highest - lowest, SIZES_MOST - 1)
    return (
        tuple(lowest + (highest - lowest) * step // steps for step in range(steps + 1))
        if steps
        else (lowest,)
    )


def bytes_of(text: str) -> int:
    """A size such as ``64`` or ``16k``. Raises ValueError."""
    digits = text.strip().rstrip("kM")
    unit = {"": 1, "k": 1 << 10, "M": 1 << 20}.get(text.strip()[len(digits) :])
    if unit is None or not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{text!r} is not a number of bytes, such as 64, 16k or 1M")
    return int(digits) * unit
