"""Frames: how messages are told apart in a stream of bytes. Sans-I/O: bytes in, frames out; no fd is ever seen here.

A *builder* takes frames off the front of a buffer; it keeps no state between calls (the state is the buffer), so one
instance serves all connections. The compiled engine knows the built-in builders by their `kind` and does the same work
off the GIL; tests/corpus holds the bytes on which the two must agree.
"""

from __future__ import annotations

import abc

from hydrogen.errors import FrameTooLarge, ProtocolError


class Frame(abc.ABC):
    """One message as it travels."""

    @abc.abstractmethod
    def to_bytes(self) -> bytes:
        """The frame as on the wire: header, payload, trailer."""

    @abc.abstractmethod
    def payload(self) -> bytes:
        """The message that the frame carries."""

    def len_as_vec(self) -> int:
        """Bytes on the wire, `len(to_bytes())`; the name is simple-stream's. Also `len(frame)`."""
        return len(self.to_bytes())

    def __len__(self) -> int:
        return self.len_as_vec()


class FrameBuilder(abc.ABC):
    """Makes frames of bytes and of payloads. Stateless, so safe from any thread."""

    @abc.abstractmethod
    def from_bytes(self, buf: bytearray) -> Frame | None:
        """Take the first frame off `buf`, or return None when it is not complete yet.

        Raises:
            ProtocolError: `buf` can never become a frame, whatever follows.
        """

    @abc.abstractmethod
    def frame(self, payload: bytes) -> Frame:
        """The frame that carries `payload`.

        Raises:
            FrameTooLarge: the format or `max_size` does not allow so long a payload.
        """


SIMPLE_START = 0x01
SIMPLE_END = 0x17
SIMPLE_HEADER = 3
SIMPLE_OVERHEAD = 4
SIMPLE_MAX_PAYLOAD = 0xFFFF


class SimpleFrame(Frame):
    """simple-stream's frame: 0x01, u16 big-endian length, payload, 0x17."""

    __slots__ = ("_payload",)

    def __init__(self, payload: bytes | bytearray | memoryview) -> None:
        """Args: payload: at most 65,535 bytes; `FrameTooLarge` beyond."""
        payload = bytes(payload)
        if len(payload) > SIMPLE_MAX_PAYLOAD:
            raise FrameTooLarge(f"a payload of {len(payload)} bytes; a SimpleFrame carries at most {SIMPLE_MAX_PAYLOAD}")
        self._payload = payload

    def to_bytes(self) -> bytes:
        """The frame as on the wire."""
        return b"\x01" + len(self._payload).to_bytes(2, "big") + self._payload + b"\x17"

    def payload(self) -> bytes:
        """The message."""
        return self._payload

    def len_as_vec(self) -> int:
        """Payload and four bytes."""
        return len(self._payload) + SIMPLE_OVERHEAD

    def __repr__(self) -> str:
        return f"SimpleFrame({self._payload!r})"


class SimpleFrameBuilder(FrameBuilder):
    """Builder of `SimpleFrame`.

    Args:
        max_size: longest payload accepted and made, in bytes, 0 to 65,535 (the format's own limit, and the default).
    """

    __slots__ = ("max_size",)

    kind = "simple"

    def __init__(self, max_size: int = SIMPLE_MAX_PAYLOAD) -> None:
        if not isinstance(max_size, int) or isinstance(max_size, bool):
            raise TypeError(f"max_size: an int is expected, not {max_size!r}")
        if not 0 <= max_size <= SIMPLE_MAX_PAYLOAD:
            raise ValueError(f"max_size: 0 to {SIMPLE_MAX_PAYLOAD} is allowed, not {max_size}")
        self.max_size = max_size

    def from_bytes(self, buf: bytearray) -> SimpleFrame | None:
        """Take the first frame off `buf`; None while it is incomplete.

        Raises:
            ProtocolError: a guard byte is wrong.
            FrameTooLarge: the declared length is over `max_size`; raised at the header, whatever of the payload is there.
        """
        if buf and buf[0] != SIMPLE_START:
            raise ProtocolError(f"a SimpleFrame begins with 0x01, not 0x{buf[0]:02x}")
        if len(buf) < SIMPLE_HEADER:
            return None
        length = int.from_bytes(buf[1:3], "big")
        if length > self.max_size:
            raise FrameTooLarge(f"declared length {length} is over max_size {self.max_size}")
        end = SIMPLE_HEADER + length
        if len(buf) <= end:
            return None
        if buf[end] != SIMPLE_END:
            raise ProtocolError(f"a SimpleFrame ends with 0x17, not 0x{buf[end]:02x}")
        frame = SimpleFrame(buf[SIMPLE_HEADER:end])
        del buf[: end + 1]
        return frame

    def frame(self, payload: bytes | bytearray | memoryview) -> SimpleFrame:
        """The frame that carries `payload`; `FrameTooLarge` when it is longer than `max_size`."""
        if len(payload) > self.max_size:
            raise FrameTooLarge(f"a payload of {len(payload)} bytes is over max_size {self.max_size}")
        return SimpleFrame(payload)

    def __repr__(self) -> str:
        return f"SimpleFrameBuilder(max_size={self.max_size})"
