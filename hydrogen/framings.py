"""The built-in framings (`BUILT_IN`).

Of their builders the compiled engine copies the fields, which are read-only therefore, and does the
same work off the GIL (_c/framing.pxd), in the same order of checks: each as soon as its bytes are
there, so that what is refused does not depend on how the bytes came in. tests/corpus holds the
bytes on which the two must agree. A subclass of a built-in builder is a builder of the user's.
"""

from __future__ import annotations

from typing import TypeGuard

from hydrogen.errors import ChecksumMismatch, FrameTooLarge, ProtocolError, described
from hydrogen.frame import (
    MAX_PAYLOAD,
    MIB,
    BuiltIn,
    ByteOrder,
    Payload,
    PayloadFrame,
    SizedBuilder,
    check_length,
    check_max_size,
    declared_length,
    fitting,
    take_payload,
)

# ---------------------------------------------------------------------------- simple-stream's frame

SIMPLE_START = 0x01
SIMPLE_END = 0x17
SIMPLE_HEADER = 3
SIMPLE_OVERHEAD = 4
SIMPLE_MAX_PAYLOAD = 0xFFFF


class SimpleFrame(PayloadFrame):
    """simple-stream's frame: 0x01, u16 big-endian length, payload, 0x17."""

    __slots__ = ()

    def __init__(self, payload: Payload) -> None:
        """Make the frame that carries a payload.

        Args:
            payload: at most 65,535 bytes; `FrameTooLarge` beyond.
        """
        super().__init__(payload)
        check_length(len(self._payload), SIMPLE_MAX_PAYLOAD, "SimpleFrame")

    def to_bytes(self) -> bytes:
        """The frame as sent on the wire."""
        return b"\x01" + len(self._payload).to_bytes(2, "big") + self._payload + b"\x17"

    def len_as_vec(self) -> int:
        """The size of the payload plus four bytes."""
        return len(self._payload) + SIMPLE_OVERHEAD


class SimpleFrameBuilder(SizedBuilder):
    """Builder of `SimpleFrame`.

    Args:
        max_size: longest payload accepted and made, in bytes, 0 to 65,535 (the format's own limit,
            and the default).
    """

    __slots__ = ()

    def __init__(self, max_size: int = SIMPLE_MAX_PAYLOAD) -> None:
        super().__init__(max_size, SIMPLE_MAX_PAYLOAD)

    def from_bytes(self, buf: bytearray) -> SimpleFrame | None:
        """Take the first frame off `buf`; None while it is incomplete.

        Raises:
            ProtocolError: a guard byte is wrong.
            FrameTooLarge: the declared length exceeds `max_size`; raised at the header, before the
                payload is there.
        """
        if buf and buf[0] != SIMPLE_START:
            raise ProtocolError(f"a SimpleFrame begins with 0x01, not 0x{buf[0]:02x}")
        if len(buf) < SIMPLE_HEADER:
            return None
        end = SIMPLE_HEADER + declared_length(int.from_bytes(buf[1:3], "big"), self.max_size)
        if len(buf) <= end:
            return None
        if buf[end] != SIMPLE_END:
            raise ProtocolError(f"a SimpleFrame ends with 0x17, not 0x{buf[end]:02x}")
        return SimpleFrame(take_payload(buf, SIMPLE_HEADER, end, end + 1))

    def frame(self, payload: Payload) -> SimpleFrame:
        """The frame that carries `payload`; `FrameTooLarge` when it is longer than `max_size`."""
        return SimpleFrame(fitting(payload, self.max_size))


# ------------------------------------------------------------------------ length, payload, checksum

CHECKSUM32_HEADER = 4
CHECKSUM32_OVERHEAD = 8
CHECKSUM32_MAX_PAYLOAD = 0xFFFFFFFF // 0xFF
"""16,843,009: the sum of so many bytes cannot wrap around."""


class Checksum32Frame(PayloadFrame):
    """simple-stream's frame with a checksum: u32 big-endian length, payload, u32 big-endian sum of
    the payload's bytes.
    """

    __slots__ = ()

    def __init__(self, payload: Payload) -> None:
        """Make the frame that carries a payload.

        Args:
            payload: at most 16,843,009 bytes; `FrameTooLarge` beyond.
        """
        super().__init__(payload)
        check_length(len(self._payload), CHECKSUM32_MAX_PAYLOAD, "Checksum32Frame")

    def to_bytes(self) -> bytes:
        """The frame as sent on the wire."""
        return (
            len(self._payload).to_bytes(4, "big")
            + self._payload
            + sum(self._payload).to_bytes(4, "big")
        )

    def len_as_vec(self) -> int:
        """The size of the payload plus eight bytes."""
        return len(self._payload) + CHECKSUM32_OVERHEAD


class Checksum32FrameBuilder(SizedBuilder):
    """Builder of `Checksum32Frame`.

    Args:
        max_size: longest payload accepted and made, in bytes, 0 to 16,843,009 (the format's own
            limit); 1 MiB by default.
    """

    __slots__ = ()

    def __init__(self, max_size: int = MIB) -> None:
        super().__init__(max_size, CHECKSUM32_MAX_PAYLOAD)

    def from_bytes(self, buf: bytearray) -> Checksum32Frame | None:
        """Take the first frame off `buf`; None while it is incomplete.

        Raises:
            FrameTooLarge: the declared length exceeds `max_size`; raised at the header, before the
                payload is there.
            ChecksumMismatch: the frame is complete, but its checksum does not match its payload.
        """
        if len(buf) < CHECKSUM32_HEADER:
            return None
        end = CHECKSUM32_HEADER + declared_length(int.from_bytes(buf[:4], "big"), self.max_size)
        if len(buf) < end + 4:
            return None
        computed, found = (
            sum(memoryview(buf)[CHECKSUM32_HEADER:end]),
            int.from_bytes(buf[end : end + 4], "big"),
        )
        if computed != found:
            raise ChecksumMismatch(f"the checksum of the payload is {computed}, not {found}")
        return Checksum32Frame(take_payload(buf, CHECKSUM32_HEADER, end, end + 4))

    def frame(self, payload: Payload) -> Checksum32Frame:
        """The frame that carries `payload`; `FrameTooLarge` when it is longer than `max_size`."""
        return Checksum32Frame(fitting(payload, self.max_size))


# ---------------------------------------------------------------------------------- length, payload

LENGTH_WIDTHS = (1, 2, 4, 8)


def _length_limit(width: int, byteorder: ByteOrder) -> int:
    """The longest payload that a length of `width` bytes can declare, and the check of both
    fields.
    """
    if not isinstance(width, int) or isinstance(width, bool):
        raise TypeError(f"width: expected an int, not {described(width)}")
    if width not in LENGTH_WIDTHS:
        raise ValueError(f"width: must be 1, 2, 4 or 8, not {width}")
    if byteorder not in ("big", "little"):
        raise ValueError(f"byteorder: must be 'big' or 'little', not {described(byteorder)}")
    return min((1 << 8 * width) - 1, MAX_PAYLOAD)


class LengthFrame(PayloadFrame):
    """An unsigned length of `width` bytes, then that many bytes of payload."""

    __slots__ = ("byteorder", "width")

    def __init__(self, payload: Payload, width: int = 4, byteorder: ByteOrder = "big") -> None:
        """Make the frame that carries a payload.

        Args:
            payload: at most as long as the width can declare; `FrameTooLarge` beyond.
            width: size of the length in bytes: 1, 2, 4 or 8.
            byteorder: byte order of the length: "big" or "little".
        """
        super().__init__(payload)
        check_length(
            len(self._payload), _length_limit(width, byteorder), f"LengthFrame of width {width}"
        )
        self.width = width
        self.byteorder = byteorder

    def to_bytes(self) -> bytes:
        """The frame as sent on the wire."""
        return len(self._payload).to_bytes(self.width, self.byteorder) + self._payload

    def len_as_vec(self) -> int:
        """The size of the payload plus that of the length."""
        return len(self._payload) + self.width

    def __repr__(self) -> str:
        return f"LengthFrame({self._payload!r}, width={self.width}, byteorder={self.byteorder!r})"


class LengthFrameBuilder(BuiltIn):
    """Builder of `LengthFrame`.

    Args:
        width: size of the length in bytes: 1, 2, 4 or 8.
        byteorder: byte order of the length: "big" or "little".
        max_size: longest payload accepted and made, in bytes, 0 to what the width can declare
            (2^63-1 with 8 bytes); None: that, but at most 1 MiB.
    """

    __slots__ = ("byteorder", "max_size", "width")

    _fields = ("width", "byteorder", "max_size")

    def __init__(
        self, width: int = 4, byteorder: ByteOrder = "big", max_size: int | None = None
    ) -> None:
        limit = _length_limit(width, byteorder)
        self.width = width
        self.byteorder = byteorder
        self.max_size = min(MIB, limit) if max_size is None else check_max_size(max_size, limit)

    def from_bytes(self, buf: bytearray) -> LengthFrame | None:
        """Take the first frame off `buf`; None while it is incomplete.

        Raises:
            FrameTooLarge: the declared length exceeds `max_size`; raised at the header, before the
                payload is there.
        """
        if len(buf) < self.width:
            return None
        end = self.width + declared_length(
            int.from_bytes(buf[: self.width], self.byteorder), self.max_size
        )
        if len(buf) < end:
            return None
        return LengthFrame(take_payload(buf, self.width, end, end), self.width, self.byteorder)

    def frame(self, payload: Payload) -> LengthFrame:
        """The frame that carries `payload`; `FrameTooLarge` when it is longer than `max_size`."""
        return LengthFrame(fitting(payload, self.max_size), self.width, self.byteorder)


# -------------------------------------------------------------------------------------------- lines

DELIMITER_MOST = 64
LINE_END = b"\n"
UNFIT = (
    "the payload contains the delimiter, which is added when it is sent, or ends with the "
    "beginning of one"
)
"""Why a line cannot carry a payload; both engines say so."""


def _check_delimiter(delimiter: bytes) -> bytes:
    if not isinstance(delimiter, bytes):
        raise TypeError(f"delimiter: expected bytes, not {described(delimiter)}")
    if not 1 <= len(delimiter) <= DELIMITER_MOST:
        raise ValueError(
            f"delimiter: must be 1 to {DELIMITER_MOST} bytes long, not {len(delimiter)}"
        )
    return delimiter


class LineFrame(PayloadFrame):
    """A line: payload, delimiter.

    A payload may end with `\\r`; a receiver that also accepts `\\r\\n` as the end of a line drops
    that byte.
    """

    __slots__ = ("delimiter",)

    def __init__(self, payload: Payload, delimiter: bytes = LINE_END) -> None:
        """Make the line that carries a payload.

        Args:
            payload: `ValueError` if it contains the delimiter, or if its last bytes would form one
                with the delimiter.
            delimiter: 1 to 64 bytes.
        """
        super().__init__(payload)
        self.delimiter = _check_delimiter(delimiter)
        if self.to_bytes().find(delimiter) != len(self._payload):
            raise ValueError(UNFIT)

    def to_bytes(self) -> bytes:
        """The frame as sent on the wire."""
        return self._payload + self.delimiter

    def payload(self) -> bytes:
        """The line without its delimiter."""
        return self._payload

    def len_as_vec(self) -> int:
        """The size of the payload plus that of the delimiter."""
        return len(self._payload) + len(self.delimiter)

    def __repr__(self) -> str:
        return f"LineFrame({self._payload!r}, delimiter={self.delimiter!r})"


class LineFrameBuilder(BuiltIn):
    """Builder of `LineFrame`.

    Args:
        delimiter: what ends a line, 1 to 64 bytes. With the default, one `\\r` before it is dropped
            on receipt (so such a line is a byte shorter than what it took off the buffer); only
            `\\n` is sent.
        max_size: longest payload accepted and made, in bytes, 0 to 2^63-1.
    """

    __slots__ = ("delimiter", "max_size")

    _fields = ("delimiter", "max_size")

    def __init__(self, delimiter: bytes = LINE_END, max_size: int = 65_536) -> None:
        self.delimiter = _check_delimiter(delimiter)
        self.max_size = check_max_size(max_size, MAX_PAYLOAD)

    def from_bytes(self, buf: bytearray) -> LineFrame | None:
        """Take the first line off `buf`; None while its end has not arrived.

        Raises:
            FrameTooLarge: the line is longer than `max_size`, even if its end has not arrived.
        """
        return self.take_line(buf, 0)

    def take_line(self, buf: bytearray, scanned: int) -> LineFrame | None:
        """As `from_bytes`, of a `buf` in whose first `scanned` bytes no delimiter begins. For
        `FrameDecoder`.
        """
        # Where the delimiter of the longest line ends; one that comes later is not looked for.
        most = self.max_size + (self.delimiter == LINE_END) + len(self.delimiter)
        end = buf.find(self.delimiter, scanned, most)
        if end < 0:
            if len(buf) >= most:
                raise FrameTooLarge(f"a line is over max_size {self.max_size}")
            return None
        size = end + len(self.delimiter)
        if self.delimiter == LINE_END and buf.endswith(b"\r", 0, end):
            end -= 1
        if end > self.max_size:
            raise FrameTooLarge(f"a line is over max_size {self.max_size}")
        return LineFrame(take_payload(buf, 0, end, size), self.delimiter)

    def frame(self, payload: Payload) -> LineFrame:
        """The line that carries `payload`.

        Raises:
            FrameTooLarge: it is longer than `max_size`.
            ValueError: it contains the delimiter, or its last bytes would form one with the
                delimiter.
        """
        return LineFrame(fitting(payload, self.max_size), self.delimiter)


# ---------------------------------------------------------------------------------------- WebSocket

WEBSOCKET_OPCODES = (0x0, 0x1, 0x2, 0x8, 0x9, 0xA)
"""Continuation, text, binary; close, ping, pong. The others are reserved (RFC 6455 section 5.2)."""
WEBSOCKET_TEXT = 0x1
WEBSOCKET_BINARY = 0x2
WEBSOCKET_CONTROL = 0x8
"""The bit of an opcode that makes it a control frame's (section 5.5)."""
WEBSOCKET_CONTROL_MOST = 125


def masked(payload: bytes, mask: bytes) -> bytes:
    """Each byte XORed with the mask's in turn (section 5.3); as two long numbers, since a loop in
    Python takes 50 times as long.
    """
    n = len(payload)
    key = (mask * (n // 4 + 1))[:n]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(n, "little")


class WebSocketFrame(PayloadFrame):
    """A frame of RFC 6455, section 5.2, without extensions.

    `payload()` is unmasked; `mask` is None, or what `to_bytes` masks with."""

    __slots__ = ("fin", "mask", "opcode")

    def __init__(
        self, payload: Payload, opcode: int, fin: bool = True, mask: bytes | None = None
    ) -> None:
        """Make the frame that carries a payload.

        Args:
            payload: at most 125 bytes in a control frame (an opcode from 8 up).
            opcode: 0 continuation, 1 text, 2 binary, 8 close, 9 ping, 10 pong.
            fin: whether it is the last frame of its message; always True for a control frame.
            mask: 4 bytes, which a client must choose at random for each frame; None: unmasked, as
                required of a server.

        Raises:
            ValueError: what the RFC does not allow.
        """
        super().__init__(payload)
        if opcode not in WEBSOCKET_OPCODES:
            raise ValueError(f"opcode: must be one of {WEBSOCKET_OPCODES}, not {described(opcode)}")
        if opcode & WEBSOCKET_CONTROL and not (
            fin and len(self._payload) <= WEBSOCKET_CONTROL_MOST
        ):
            raise ValueError(
                "a control frame must not be fragmented, and carries at most "
                f"{WEBSOCKET_CONTROL_MOST} bytes"
            )
        if mask is not None and not (isinstance(mask, bytes) and len(mask) == 4):
            raise ValueError(f"mask: must be 4 bytes or None, not {described(mask)}")
        self.opcode = opcode
        self.fin = fin
        self.mask = mask

    def to_bytes(self) -> bytes:
        """The frame as sent on the wire."""
        n = len(self._payload)
        code, extended = (
            (n, b"")
            if n < 126
            else (126, n.to_bytes(2, "big"))
            if n <= 0xFFFF
            else (127, n.to_bytes(8, "big"))
        )
        header = (
            bytes(
                [self.opcode | (0x80 if self.fin else 0), code | (0 if self.mask is None else 0x80)]
            )
            + extended
        )
        if self.mask is None:
            return header + self._payload
        return header + self.mask + masked(self._payload, self.mask)

    def payload(self) -> bytes:
        """The payload, unmasked."""
        return self._payload

    def len_as_vec(self) -> int:
        """The size of the payload plus 2, 4 or 10 bytes of header, and 4 for a mask."""
        n = len(self._payload)
        return n + (2 if n < 126 else 4 if n <= 0xFFFF else 10) + (0 if self.mask is None else 4)

    def __repr__(self) -> str:
        return (
            f"WebSocketFrame({self._payload!r}, {self.opcode}, fin={self.fin}, mask={self.mask!r})"
        )


class WebSocketFrameBuilder(SizedBuilder):
    """Builder of `WebSocketFrame`: only frames, without opening handshake or reassembly of
    fragmented messages.

    Both masked and unmasked frames are accepted, on either side.

    Args:
        max_size: longest payload of one frame accepted and made, in bytes, 0 to 2^63-1 (the
            format's own limit); 1 MiB by default.
    """

    __slots__ = ()

    def __init__(self, max_size: int = MIB) -> None:
        super().__init__(max_size, MAX_PAYLOAD)

    def from_bytes(self, buf: bytearray) -> WebSocketFrame | None:
        """Take the first frame off `buf`; None while it is incomplete.

        Raises:
            ProtocolError: a reserved bit or opcode, a control frame that is too long or fragmented,
                a length not in its shortest form.
            FrameTooLarge: the declared length exceeds `max_size`; raised at the length, before the
                rest is there.
        """
        if not buf:
            return None
        opcode, fin = buf[0] & 0x0F, bool(buf[0] & 0x80)
        if buf[0] & 0x70:
            raise ProtocolError(
                f"a reserved bit is set, but no extension was negotiated: 0x{buf[0]:02x}"
            )
        if opcode not in WEBSOCKET_OPCODES:
            raise ProtocolError(f"opcode {opcode} is reserved")
        if opcode & WEBSOCKET_CONTROL and not fin:
            raise ProtocolError(f"a control frame (opcode {opcode}) must not be fragmented")
        if len(buf) < 2:
            return None
        length, mask_size = buf[1] & 0x7F, 4 if buf[1] & 0x80 else 0
        at = 2
        if opcode & WEBSOCKET_CONTROL and length > WEBSOCKET_CONTROL_MOST:
            raise ProtocolError(
                f"a control frame (opcode {opcode}) carries at most {WEBSOCKET_CONTROL_MOST} bytes"
            )
        if length > 125:
            at, least = (4, 126) if length == 126 else (10, 0x10000)
            if len(buf) < at:
                return None
            length = int.from_bytes(buf[2:at], "big")
            if length < least:
                raise ProtocolError(
                    f"length {length} in {at - 2} bytes: the shortest form must be used"
                )
        begin = at + mask_size
        end = begin + declared_length(length, self.max_size)
        if len(buf) < end:
            return None
        mask = bytes(buf[at:begin]) or None
        payload = take_payload(buf, begin, end, end)
        return WebSocketFrame(payload if mask is None else masked(payload, mask), opcode, fin, mask)

    def frame(self, payload: Payload) -> WebSocketFrame:
        """An unmasked binary frame that carries all of `payload`; `FrameTooLarge` if it is longer
        than `max_size`.
        """
        return WebSocketFrame(fitting(payload, self.max_size), WEBSOCKET_BINARY)


# -------------------------------------------------------------------------------------- all of them

BUILT_IN: dict[str, type[BuiltIn]] = {
    "simple": SimpleFrameBuilder,
    "checksum32": Checksum32FrameBuilder,
    "length": LengthFrameBuilder,
    "line": LineFrameBuilder,
    "websocket": WebSocketFrameBuilder,
}
"""The built-in framings by the names of the command line: the one table of them."""


def is_built_in(framing: object) -> TypeGuard[BuiltIn]:
    """Whether it is a builder that the engines know, and no subclass of one."""
    return type(framing) in BUILT_IN.values()


def copy_of(builder: BuiltIn) -> BuiltIn:
    """Another builder of the same fields, which are checked so, and which nobody else can change.

    Raises:
        AttributeError: a field is not there, for `__init__` was never called.
        TypeError, ValueError: as `__init__`: a field was changed in spite of all.
    """
    return type(builder)(*[getattr(builder, name) for name in builder._fields])
