"""What goes over the wire in a `life.Life`, in each framing: replies that say what they must look
like, and what is no frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from corpus import reference

import hydrogen

PATTERN = b"".join(b"%d," % n for n in range(20_000))
"""Filling in which no two places are alike, so that blocks in the wrong order are seen; fit for
lines.
"""

HEADER = re.compile(rb"([hfb]\d+):(\d+):(\d+):")
OVERHEAD = 64
"""Bytes that the header and the frame of a reply take, at most."""


class OwnBuilder(hydrogen.LengthFrameBuilder):
    """As one of the user's: the engines do not know it."""


@dataclass(frozen=True)
class Wire:
    """A framing, and bytes that can never become a frame of it, with the error that they are."""

    framing: type[hydrogen.FrameBuilder] | None
    spoilt: tuple[tuple[bytes, type[Exception]], ...] = ()

    def frame(self, payload: bytes) -> bytes:
        return payload if self.framing is None else reference.encode(self.framing(), payload)


WIRES = {
    "raw": Wire(None),
    "simple": Wire(
        hydrogen.SimpleFrameBuilder,
        ((b"\x02", hydrogen.ProtocolError), (b"\x01\0\x01a\x18", hydrogen.ProtocolError)),
    ),
    "checksum32": Wire(
        hydrogen.Checksum32FrameBuilder, ((b"\0\0\0\x01a\0\0\0\0", hydrogen.ChecksumMismatch),)
    ),
    "length": Wire(hydrogen.LengthFrameBuilder, ((b"\xff\xff\xff\xff", hydrogen.FrameTooLarge),)),
    "line": Wire(hydrogen.LineFrameBuilder, ((bytes(70_000), hydrogen.FrameTooLarge),)),
    "websocket": Wire(hydrogen.WebSocketFrameBuilder, ((b"\xff\xff", hydrogen.ProtocolError),)),
    "own": Wire(OwnBuilder, ((b"\xff\xff\xff\xff", hydrogen.FrameTooLarge),)),
}


def reply(source: bytes, number: int, size: int) -> bytes:
    """A message of the server's that says what it must look like."""
    return b"%b:%d:%d:" % (source, number, size) + PATTERN[number % 1000 :][:size]
