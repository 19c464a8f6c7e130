"""Decoders: bytes as they come in, messages as they are delivered. Sans-I/O, and owned by whoever
owns the connection.

A decoder is asked for one message after the other, so that a bad frame is met only after the good
ones before it were delivered.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from hydrogen._py.websocket import Event
from hydrogen.codec import FrameDecoder
from hydrogen.errors import (
    Cause,
    ChecksumMismatch,
    FrameTooLarge,
    ProtocolError,
    class_name,
    cut_traceback,
    handler_error,
    removal_error,
    stripped,
)
from hydrogen.frame import FrameBuilder
from hydrogen.framings import is_built_in
from hydrogen.http import HeadReader
from hydrogen.websocket import WebSocket

Complain = Callable[[str, BaseException], None]
"""Writes down what code of the user's, called by that name, raised:
`RateLimitedLog.callback_error`.
"""

_CAUSES = {FrameTooLarge: Cause.FRAME_TOO_LARGE, ChecksumMismatch: Cause.CHECKSUM_MISMATCH}
"""Those of `ProtocolError` from a built-in builder that are not simply BAD_FRAME."""


class Decoder(Protocol):
    """What all decoders do."""

    @property
    def size(self) -> int:
        """Bytes fed and not yet given out."""

    def feed(self, data: bytes) -> None:
        """Take in what was read."""

    def next(self) -> Any:
        """The next message, None when none is complete: bytes, or of a WebSocket an `Event`.

        Raises:
            Exception: to be given to `explain`.
        """

    def is_partial(self) -> bool:
        """Whether an unfinished message is held, once `next` has returned None."""


class ChunkDecoder:
    """Without framing: every chunk fed is a message."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of chunks not yet given out."""
        return self._size

    def feed(self, data: bytes) -> None:
        """Keep the chunk."""
        self._chunks.append(data)
        self._size += len(data)

    def next(self) -> bytes | None:
        """The oldest chunk."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._size -= len(chunk)
        return chunk

    def is_partial(self) -> bool:
        """Never: a chunk is whole."""
        return False


def size_of(message: bytes | Event | None) -> int:
    """Bytes, or characters, in what a decoder has given out."""
    return len(message.data if isinstance(message, Event) else message or b"")


def decoder_for(builder: FrameBuilder | WebSocket | None) -> Decoder:
    """A new decoder for the frames of `builder`; None: chunks; of a WebSocket for the head of the
    request that comes first.
    """
    if isinstance(builder, WebSocket):
        return HeadReader(builder.max_header)
    return ChunkDecoder() if builder is None else FrameDecoder(builder)


def explain(
    builder: FrameBuilder | WebSocket | None, error: BaseException, complain: Complain
) -> tuple[Cause, Exception]:
    """Cause and removal error for what the `next` of a decoder raised; complains of what is a fault
    of the user's.

    The `ProtocolError` of a builder speaks for itself.
    """
    # not isinstance(), which asks the exception for its class, and it may be the user's
    kind = type(error)
    if is_built_in(builder) or isinstance(builder, WebSocket):
        if issubclass(kind, ProtocolError):
            cause = _CAUSES.get(kind, Cause.BAD_FRAME)
            return cause, stripped(error)  # type: ignore[return-value]
        return Cause.OS_ERROR, removal_error(Cause.OS_ERROR, errno.ENOMEM)
    if issubclass(kind, ProtocolError):
        cut_traceback(error)
        return Cause.BAD_FRAME, error  # type: ignore[return-value]
    complain(f"{class_name(builder)}.from_bytes", error)
    return Cause.HANDLER_ERROR, handler_error(error)
