"""Frames: how messages are told apart in a stream of bytes. Sans-I/O: bytes in, frames out; no fd
is ever seen here.

A *builder* takes frames off the front of a buffer; it keeps no state between calls (the state is
the buffer), so one instance serves all connections. Here is what a frame and a builder are, and
what the built-in ones (framings.py) share; codec.py uses them, whosever they are.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

from hydrogen.errors import FrameTooLarge, described

MAX_PAYLOAD = (1 << 63) - 1
"""What no length may exceed, in any format: the most that fits a signed 64-bit size (and what RFC
6455 allows).
"""

MIB = 1 << 20

Payload = bytes | bytearray | memoryview
ByteOrder = Literal["big", "little"]


class Frame(abc.ABC):
    """One message as it travels."""

    @abc.abstractmethod
    def to_bytes(self) -> bytes:
        """The frame as sent on the wire: header, payload, trailer."""

    @abc.abstractmethod
    def payload(self) -> bytes:
        """The message that the frame carries."""

    def len_as_vec(self) -> int:
        """Its size on the wire, `len(to_bytes())`; the name comes from simple-stream. Also
        `len(frame)`.
        """
        return len(self.to_bytes())

    def __len__(self) -> int:
        return self.len_as_vec()


class FrameBuilder(abc.ABC):
    """Makes frames from bytes and from payloads. Stateless, and so safe to use from any thread."""

    # a built-in builder has no __dict__; a subclass that says nothing has one
    __slots__ = ("__weakref__",)

    @abc.abstractmethod
    def from_bytes(self, buf: bytearray) -> Frame | None:
        """Take the first frame off `buf`, or return None if it is not yet complete.

        Raises:
            ProtocolError: `buf` can never become a frame, whatever follows.
        """

    @abc.abstractmethod
    def frame(self, payload: bytes) -> Frame:
        """The frame that carries `payload`.

        Raises:
            FrameTooLarge: the format or `max_size` does not allow a payload this long.
        """


# --------------------------------------------------------------------------- what the formats share


def copied(payload: Payload) -> bytes:
    """`payload` as bytes of its own. By way of a memoryview, since bytes(5) would be five zeros and
    not a TypeError.
    """
    return payload if isinstance(payload, bytes) else bytes(memoryview(payload))


def check_max_size(max_size: int, limit: int) -> int:
    if not isinstance(max_size, int) or isinstance(max_size, bool):
        raise TypeError(f"max_size: expected an int, not {described(max_size)}")
    if not 0 <= max_size <= limit:
        raise ValueError(f"max_size: must be 0 to {limit}, not {max_size}")
    return max_size


def check_length(length: int, limit: int, what: str) -> None:
    """On sending: what the format (`what`) can carry."""
    if length > limit:
        raise FrameTooLarge(f"a payload of {length} bytes: a {what} carries at most {limit}")


def fitting(payload: Payload, max_size: int) -> bytes:
    """On sending: a copy of the payload, which `max_size` must allow."""
    payload = copied(payload)
    if len(payload) > max_size:
        raise FrameTooLarge(f"a payload of {len(payload)} bytes is over max_size {max_size}")
    return payload


def declared_length(length: int, max_size: int) -> int:
    """On receipt: the length that a header declares, which `max_size` must allow whatever of the
    payload is there.
    """
    if length > max_size:
        raise FrameTooLarge(f"declared length {length} is over max_size {max_size}")
    return length


def take_payload(buf: bytearray, begin: int, end: int, size: int) -> bytes:
    """The payload at `begin` to `end` of a frame of `size` bytes, which is taken off the front of
    `buf`.
    """
    # one copy; the view is gone before the buffer shrinks
    payload = bytes(memoryview(buf)[begin:end])
    del buf[:size]
    return payload


class PayloadFrame(Frame):
    """A frame made of a payload."""

    __slots__ = ("_payload",)

    def __init__(self, payload: Payload) -> None:
        self._payload = copied(payload)

    def payload(self) -> bytes:
        """The message."""
        return self._payload

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._payload!r})"


class BuiltIn(FrameBuilder):
    """What the built-in builders share: their fields are what they were made of, and read-only.

    An engine copies the fields: what is changed later would be so in one engine and not in the
    other.
    """

    __slots__ = ()

    _fields: ClassVar[tuple[str, ...]]
    """The names of the fields, in the order of the arguments."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._fields and hasattr(self, name):
            self._refuse(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._fields:
            self._refuse(name)
        super().__delattr__(name)

    def _refuse(self, name: str) -> None:
        raise AttributeError(
            f"{type(self).__name__}.{name} is read-only: engines copy it; make another builder"
        )

    def __repr__(self) -> str:
        fields = ", ".join([f"{name}={getattr(self, name)!r}" for name in self._fields])
        return f"{type(self).__name__}({fields})"


class SizedBuilder(BuiltIn):
    """A builder with no field but `max_size`."""

    __slots__ = ("max_size",)

    _fields = ("max_size",)

    def __init__(self, max_size: int, limit: int) -> None:
        self.max_size = check_max_size(max_size, limit)


# --------------------------------------------------------------------------------------- no framing


class ChunkFrame(PayloadFrame):
    """Data exactly as it was read: the frame of a stream without framing. Its bytes are its
    payload.
    """

    __slots__ = ()

    def to_bytes(self) -> bytes:
        """The payload."""
        return self._payload

    def len_as_vec(self) -> int:
        """The size of the payload."""
        return len(self._payload)


class ChunkFrameBuilder(FrameBuilder):
    """Takes all that is there. Private to the package: who wants no framing says None."""

    __slots__ = ()

    def from_bytes(self, buf: bytearray) -> ChunkFrame | None:
        """All of `buf`; None when it is empty."""
        return ChunkFrame(take_payload(buf, 0, len(buf), len(buf))) if buf else None

    def frame(self, payload: Payload) -> ChunkFrame:
        """The payload as it is."""
        return ChunkFrame(payload)
