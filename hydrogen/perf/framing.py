"""What messages look like on the wire, for each framing that the generator speaks.

A message is a prefix, its content and a suffix. The content, of one size throughout a run, changes from message to message;
prefix and suffix do not, but for a checksum. Nothing here knows the server library: these are the formats once more, in the
fewest words, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

WINDOWS = 256
"""Places in the pattern at which a message's content may begin."""


@dataclass(frozen=True)
class Shape:
    """The messages of one run: all that a hot loop has to know of their framing."""

    size: int
    """bytes of content"""
    prefix: bytes = b""
    suffix: bytes = b""
    checksum: bool = False
    """the suffix is no constant, but the sum of the content's bytes as a u32, big-endian"""
    mask: int = 0xFF
    base: int = 0
    """a byte of content is ``base + (random byte & mask)``: how a framing keeps its delimiter out of it"""

    @property
    def wire(self) -> int:
        """Bytes of a message."""
        return len(self.prefix) + self.size + len(self.suffix)

    def pattern(self, seed: int) -> bytes:
        """Random content, so long that a message's may begin at any of ``WINDOWS`` places."""
        allowed = bytes(self.base + (byte & self.mask) for byte in range(256))
        return random.Random(seed).randbytes(self.size + WINDOWS).translate(allowed)


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
    """Content, newline. The content is of the characters from "0" to "o": no end of line, nothing that servers strip or cannot decode."""
    return Shape(size, suffix=b"\n", mask=0x3F, base=ord("0"))


def websocket(size: int) -> Shape:
    """A final binary frame of RFC 6455 section 5.2, without mask: what servers send, so that the echo is the same bytes."""
    if size < 126:
        return Shape(size, bytes([0x82, size]))
    if size < 1 << 16:
        return Shape(size, b"\x82\x7e" + size.to_bytes(2, "big"))
    return Shape(size, b"\x82\x7f" + size.to_bytes(8, "big"))


MOST = 1 << 30

FRAMINGS: dict[str, tuple[Callable[[int], Shape], range]] = {
    "raw": (raw, range(1, MOST + 1)),
    "simple": (simple, range(0xFFFF + 1)),
    "checksum32": (checksum32, range(0xFFFFFFFF // 0xFF + 1)),
    "length": (length, range(MOST + 1)),
    "line": (line, range(MOST + 1)),
    "websocket": (websocket, range(MOST + 1)),
}
"""By the names of the command line, the shape for a size and the sizes allowed: those that the length field, or the sum, can hold."""
