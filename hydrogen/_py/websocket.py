"""WebSocket messages from bytes, sans-I/O (RFC 6455 sections 5 to 8): what a client sends.

Each rule is checked as soon as its bytes are there, so that what is refused, and with which code,
does not depend on how they came in; and what came before is given out first.
"""

from __future__ import annotations

import codecs
from typing import NamedTuple

from hydrogen.deflate import COMPRESSED, Inflater, payload_most
from hydrogen.framings import (
    WEBSOCKET_CONTROL,
    WEBSOCKET_CONTROL_MOST,
    WEBSOCKET_OPCODES,
    masked,
)
from hydrogen.websocket import Fault, is_close_code

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

_FIN = _MASKED = 0x80
_RESERVED = 0x70

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Event(NamedTuple):
    """Something that came: a message, or a control frame.

    Attributes:
        opcode: TEXT, BINARY, CLOSE, PING or PONG.
        data: str of a text, else bytes; of a CLOSE its reason.
        code: of a CLOSE; 1005 when it has none (section 7.1.5).
    """

    opcode: int
    data: str | bytes
    code: int = 0


class MessageReader:
    """Makes events of what is fed to it. What comes behind a CLOSE is dropped (section 5.5.1).

    Attributes:
        is_closed: whether a CLOSE came.
        inflates_later: compressed messages are given out as they came, for `inflated`; a bit of
            their opcode says so.
    """

    __slots__ = (
        "_buffer",
        "_control",
        "_decoder",
        "_fragments",
        "_frame",
        "_inflater",
        "_is_compressed",
        "_left",
        "_mask",
        "_max_fragments",
        "_max_message",
        "_message",
        "_parts",
        "_size",
        "inflates_later",
        "is_closed",
    )

    def __init__(
        self, max_message: int, max_fragments: int, inflater: Inflater | None = None
    ) -> None:
        """Args:
        max_message: bytes of a message, at most, also of what it is inflated to.
        max_fragments: frames of one, at most.
        inflater: for messages that are compressed (RFC 7692); None: none may be.
        """
        self._inflater = inflater
        self._is_compressed = False  # the message in work
        self.inflates_later = False
        self._max_message = max_message
        self._max_fragments = max_fragments
        self._buffer = bytearray()
        self._frame: int | None = None  # first byte of the frame whose header was read
        self._left = 0  # bytes of its payload that did not come yet
        self._mask = b""  # beginning with the byte for the next of those
        self._control = bytearray()  # payload of a control frame, which may be amid a message
        self._message: int | None = None  # opcode of the message that was begun
        self._parts: list[bytes] | list[str] = []
        self._size = 0  # bytes of it, those to come in this frame included
        self._fragments = 0
        self._decoder = _new_decoder()
        self.is_closed = False

    @property
    def is_in_message(self) -> bool:
        """Whether a message was begun and not finished."""
        return self._message is not None

    @property
    def size(self) -> int:
        """Bytes fed and not given out."""
        coming = self._left if self._frame is not None else 0
        return len(self._buffer) + len(self._control) + max(0, self._size - coming)

    def is_partial(self) -> bool:
        """Whether a frame or a message was begun and not finished."""
        return bool(self._buffer) or self._frame is not None or self._message is not None

    def holds_close(self) -> bool:
        """Whether a CLOSE has come, even behind frames that were not given out yet. Any thread may
        ask; the answer may be wrong while the owner parses.
        """
        data, at, first = bytes(self._buffer), self._left, self._frame or 0
        while not self.is_closed and first & 0x0F != CLOSE and at + 1 < len(data):
            first = data[at]
            length, begin = data[at + 1] & ~_MASKED, 2
            if length > WEBSOCKET_CONTROL_MOST:
                begin = 4 if length == 126 else 10
                length = int.from_bytes(data[at + 2 : at + begin], "big")
            at += begin + 4 + length
        return self.is_closed or first & 0x0F == CLOSE

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        if not self.is_closed:
            self._buffer += data

    def next(self) -> Event | None:
        """The next event; None while it is incomplete.

        Raises:
            ProtocolError: the bytes break the protocol: 1002.
            InvalidText: text, or the reason of a CLOSE, is no UTF-8: 1007.
            FrameTooLarge: a message is too long, or has too many fragments: 1009.
        """
        while True:
            if self._frame is None and not self._read_header():
                return None
            self._read_payload()
            if self._left:
                return None
            event = self._end_frame()
            if event is not None:
                if event.opcode == CLOSE:
                    self.is_closed = True
                    self._buffer.clear()
                return event

    def _read_header(self) -> bool:
        """Whether it is complete (section 5.2)."""
        buffer = self._buffer
        if not buffer:
            return False
        first = buffer[0]
        opcode = first & 0x0F
        compressed = first & _RESERVED == COMPRESSED and self._inflater is not None
        if first & _RESERVED and not (compressed and opcode in (TEXT, BINARY)):
            raise Fault.RESERVED.error()
        self._check_opcode(opcode, bool(first & _FIN))
        if len(buffer) < 2:
            return False
        if not buffer[1] & _MASKED:
            raise Fault.UNMASKED.error()
        length = buffer[1] & ~_MASKED
        begin = 2
        if length > WEBSOCKET_CONTROL_MOST:
            if opcode & WEBSOCKET_CONTROL:
                raise Fault.LONG_CONTROL.error()
            begin, least = (4, 126) if length == 126 else (10, 0x10000)
            if len(buffer) < begin:
                return False
            length = int.from_bytes(buffer[2:begin], "big")
            if length < least:
                raise Fault.LENGTH.error()
        if not opcode & WEBSOCKET_CONTROL:
            if opcode == CONTINUATION:
                compressed = self._is_compressed
            self._begin_fragment(length, compressed)
        if len(buffer) < begin + 4:
            return False
        self._mask = bytes(buffer[begin : begin + 4])
        del buffer[: begin + 4]
        self._frame, self._left = first, length
        if not opcode & WEBSOCKET_CONTROL:
            self._size += length
            self._fragments += 1
            self._is_compressed = compressed
            self._message = self._message or opcode
        return True

    def _check_opcode(self, opcode: int, is_final: bool) -> None:
        if opcode not in WEBSOCKET_OPCODES:
            raise Fault.OPCODE.error()
        if opcode & WEBSOCKET_CONTROL:
            if not is_final:
                raise Fault.FRAGMENTED.error()
        elif (opcode == CONTINUATION) is not (self._message is not None):
            raise (Fault.CONTINUED if opcode == CONTINUATION else Fault.INSIDE).error()

    def _begin_fragment(self, length: int, compressed: bool) -> None:
        """Check the limits, before anything is kept of it."""
        most = payload_most(self._max_message) if compressed else self._max_message
        if length > most - self._size:
            raise Fault.LARGE.error()
        if self._fragments >= self._max_fragments:
            raise Fault.FRAGMENTS.error()

    def _read_payload(self) -> None:
        """Take what is there of it. Text is decoded at once, for it is refused at the first bad
        byte (section 8.1).
        """
        data = bytes(self._buffer[: self._left])
        if not data:
            return
        del self._buffer[: len(data)]
        self._left -= len(data)
        data = masked(data, self._mask)
        at = len(data) % 4
        self._mask = self._mask[at:] + self._mask[:at]
        assert self._frame is not None
        if self._frame & WEBSOCKET_CONTROL:
            self._control += data
        elif self._message == TEXT and not self._is_compressed:
            self._parts.append(self._decoded(data))  # type: ignore[arg-type]
        else:
            self._parts.append(data)  # type: ignore[arg-type]

    def _decoded(self, data: bytes, final: bool = False) -> str:
        try:
            text = self._decoder.decode(data, final)
            # which waits for the third byte of a surrogate, though no UTF-8 has one
            if b"\xed\xa0" <= self._decoder.getstate()[0] < b"\xee":
                raise UnicodeError
        except UnicodeError:
            raise Fault.TEXT.error() from None
        return text

    def _end_frame(self) -> Event | None:
        """Its payload is complete; what comes of it."""
        frame, self._frame = self._frame, None
        assert frame is not None
        if frame & WEBSOCKET_CONTROL:
            data = bytes(self._control)
            self._control.clear()
            return _closing(data) if frame & 0x0F == CLOSE else Event(frame & 0x0F, data)
        if not frame & _FIN:
            return None
        opcode, self._message = self._message, None
        assert opcode is not None
        if self._is_compressed:
            event = Event(opcode | COMPRESSED, b"".join(self._parts))  # type: ignore[arg-type]
            self._parts = []
            self._size = self._fragments = 0
            return event if self.inflates_later else self.inflated(event)
        if opcode == TEXT:
            self._parts.append(self._decoded(b"", final=True))  # type: ignore[arg-type]
        parts, self._parts = self._parts, []
        self._size = self._fragments = 0
        return Event(opcode, "".join(parts) if opcode == TEXT else b"".join(parts))  # type: ignore[arg-type]

    def inflated(self, event: Event) -> Event:
        """The same, if it was compressed: what it is.

        Raises:
            FrameTooLarge, InvalidText: it is longer than `max_message`, or nothing.
        """
        if not event.opcode & COMPRESSED:
            return event
        assert self._inflater is not None
        opcode = event.opcode & ~COMPRESSED
        data = self._inflater.inflate(event.data, self._max_message)  # type: ignore[arg-type]
        if opcode != TEXT:
            return Event(opcode, data)
        try:
            return Event(opcode, data.decode())
        except UnicodeDecodeError:
            raise Fault.TEXT.error() from None


def _closing(data: bytes) -> Event:
    """A CLOSE with this payload (section 5.5.1)."""
    if not data:
        return Event(CLOSE, "", 1005)
    code = int.from_bytes(data[:2], "big")
    if len(data) < 2 or not is_close_code(code):
        raise Fault.CLOSE.error()
    try:
        return Event(CLOSE, data[2:].decode(), code)
    except UnicodeDecodeError:
        raise Fault.REASON.error() from None
