"""The language of a soak: what is asked, what must be answered, and how both are framed.

A request is ``KIND WHO NUMBER REST`` with single spaces; who and number are in the answer, and in
every byte that fills it, so that an answer that is another's, or that is late, or has a hole,
differs from the one that is awaited. The frames are written from their formats and not from
hydrogen: two opinions are compared, not one with itself.
"""

from __future__ import annotations

import struct

from perf.soak.settings import PART, Place

HELLO = b"H"
"""I am well-behaved: remember who. Answered as ECHO."""
ECHO = b"E"
BLOCK = b"B"
"""Answered as ECHO, after so many milliseconds in which the handler blocks."""
LARGE = b"L"
"""So many parts in answer."""
FOREIGN = b"F"
"""So many messages from a thread that is none of the server's."""
TIMER = b"T"
"""A message in so many milliseconds."""
WHERE = b"P"
"""From where I come, in the server's view."""
LEAVING = b"Q"
"""Without an answer: I shall not leave gracefully."""
CLOSE = b"C"
"""Say so, then close."""
ABORT = b"A"
RAISE = b"X"
HOARD = b"Z"
"""Send me rubbish until so many bytes wait."""

GREETING = b"welcome"
BROADCAST = b"all"


def request(kind: bytes, who: int, number: int, rest: bytes | int = b"") -> bytes:
    """A message from a client."""
    return b"%s %d %d %s" % (kind, who, number, b"%d" % rest if isinstance(rest, int) else rest)


def filler(who: int, number: int, size: int) -> bytes:
    """So many bytes that only this request has."""
    unit = b"%d.%d," % (who, number)
    return (unit * (size // len(unit) + 1))[:size]


def part(who: int, number: int, index: int) -> bytes:
    """One message of a large answer."""
    return request(LARGE, who, number, b"%d " % index + filler(who, number + index, PART))


def several(kind: bytes, who: int, number: int, count: int) -> list[bytes]:
    """An answer of several small messages."""
    return [request(kind, who, number, index) for index in range(count)]


def frame(place: Place, payload: bytes) -> bytes:
    """A message as it travels to that server and back."""
    if place is Place.PROXY:
        return payload + b"\n"
    return struct.pack(">BH", 0x01, len(payload)) + payload + b"\x17"


class Unframer:
    """Bytes as they come in, messages as they are whole."""

    def __init__(self, place: Place) -> None:
        self._is_line = place is Place.PROXY
        self._buffer = bytearray()

    @property
    def is_partial(self) -> bool:
        """Whether a message has begun."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Raises: ValueError: that is no frame."""
        self._buffer += data
        found = []
        at = 0
        while (size := self._size(at)) is not None:
            whole = bytes(self._buffer[at : at + size])
            found.append(whole[:-1] if self._is_line else whole[3:-1])
            at += size
        del self._buffer[:at]
        return found

    def _size(self, at: int) -> int | None:
        """Of the frame that begins there; None: it is not whole."""
        if self._is_line:
            end = self._buffer.find(b"\n", at)
            return None if end < 0 else end + 1 - at
        if len(self._buffer) < at + 4:
            return None
        start, length = struct.unpack_from(">BH", self._buffer, at)
        if start != 0x01:
            raise ValueError(f"a frame begins with {start:#x}")
        if len(self._buffer) < at + length + 4:
            return None
        if self._buffer[at + length + 3] != 0x17:
            raise ValueError(f"a frame ends with {self._buffer[at + length + 3]:#x}")
        return int(length) + 4
