"""Every exception of hydrogen, and the causes of a removal.

Each derives from `HydrogenError` and from the builtin that fits, so that a handler may file them by either. The two
engines name why a connection ended by a `Cause`; `removal_error` turns that into the exception the callbacks get, so
that both give the same one.
"""

from __future__ import annotations

import enum
import errno
import os
import ssl


class HydrogenError(Exception):
    """Base of all errors that hydrogen itself defines."""


class PeerClosed(HydrogenError, ConnectionError):
    """The peer ended the connection gracefully, between two messages."""


class LocalClosed(HydrogenError, ConnectionError):
    """`HydrogenSocket.close()` or `abort()` ended the connection."""


class ServerStopped(HydrogenError, ConnectionError):
    """The server stopped."""


class SlowConsumer(HydrogenError, ConnectionError):
    """The peer did not read: pending output reached `max_write_buffer`, or the server's `max_buffered` was exceeded."""


class HandlerError(HydrogenError, RuntimeError):
    """A callback (or a stream written by the user) raised; `__cause__` is what it raised."""


class Reject(HydrogenError, ConnectionError):
    """Raised by `on_new_connection` to refuse a connection quietly."""


class ConnectionTimeout(HydrogenError, TimeoutError):
    """A deadline of the connection passed; the message names the timeout."""


class ProtocolError(HydrogenError, ValueError):
    """The peer sent bytes that can never become a frame."""


class FrameTooLarge(ProtocolError):
    """A frame is longer than `max_size` of its builder (on receipt), or than its format can carry (on sending)."""


class ChecksumMismatch(ProtocolError):
    """The checksum of a frame is not that of its payload."""


class IncompleteFrame(ProtocolError):
    """The end of the connection came inside a frame."""


class EngineUnavailable(HydrogenError, ImportError):
    """The compiled engine was asked for and could not be imported."""


class Cause(enum.IntEnum):
    """Why a connection ended. The values are those of the compiled engine's `CAUSE_...` constants."""

    PEER_CLOSED = 1
    LOCAL_CLOSED = 2
    SERVER_STOPPED = 3
    SLOW_CONSUMER = 4
    HANDLER_ERROR = 5
    REJECT = 6
    BAD_FRAME = 7
    FRAME_TOO_LARGE = 8
    INCOMPLETE_FRAME = 9
    OS_ERROR = 10
    CHECKSUM_MISMATCH = 11
    TIMEOUT = 12
    TRUNCATED = 13
    TLS_ERROR = 14
    OVERLOAD = 15


class Timeout(enum.IntEnum):
    """Which deadline passed: the `code` of `Cause.TIMEOUT`. The names are those of the fields of `Config`."""

    OPEN_TIMEOUT = 1
    FRAME_TIMEOUT = 2
    IDLE_TIMEOUT = 3
    WRITE_TIMEOUT = 4


_TIMEOUTS = {
    Timeout.OPEN_TIMEOUT: "the connection was not ready for use in time",
    Timeout.FRAME_TIMEOUT: "a frame was begun and not finished in time",
    Timeout.IDLE_TIMEOUT: "no byte came or went for too long",
    Timeout.WRITE_TIMEOUT: "the peer took nothing of the output for too long",
}

_MESSAGES: dict[Cause, tuple[type[Exception], str]] = {
    Cause.PEER_CLOSED: (PeerClosed, "the peer closed the connection"),
    Cause.LOCAL_CLOSED: (LocalClosed, "closed by this side"),
    Cause.SERVER_STOPPED: (ServerStopped, "the server stopped"),
    Cause.SLOW_CONSUMER: (SlowConsumer, "the peer does not read: too much output is pending"),
    Cause.HANDLER_ERROR: (HandlerError, "a callback raised"),
    Cause.REJECT: (Reject, "refused by on_new_connection"),
    Cause.BAD_FRAME: (ProtocolError, "bytes that can never become a frame"),
    Cause.FRAME_TOO_LARGE: (FrameTooLarge, "the declared length is over max_size"),
    Cause.INCOMPLETE_FRAME: (IncompleteFrame, "the end came inside a frame"),
    Cause.CHECKSUM_MISMATCH: (ChecksumMismatch, "the checksum is not that of the payload"),
    Cause.TLS_ERROR: (ssl.SSLError, "TLS failed"),
    Cause.OVERLOAD: (Reject, "turned away: too many connections from that address"),
}


def removal_error(cause: int, code: int = 0) -> Exception:
    """The exception that tells a callback why its connection was removed.

    Args:
        cause: a `Cause`.
        code: for `Cause.OS_ERROR` the errno, from which `OSError` chooses its subclass (`ConnectionResetError`, ...); for `Cause.TIMEOUT`
            a `Timeout`.
    """
    if cause == Cause.TIMEOUT:
        return ConnectionTimeout(f"{Timeout(code).name.lower()}: {_TIMEOUTS[Timeout(code)]}")
    if cause == Cause.TRUNCATED:
        return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection ended without close_notify: what came may be cut off")
    if cause == Cause.OS_ERROR:
        return OSError(code or errno.EIO, os.strerror(code or errno.EIO))
    kind, message = _MESSAGES[Cause(cause)]
    return kind(message)


def cause_of(error: BaseException) -> tuple[Cause, Exception]:
    """The cause and the removal error for an exception raised by code of the user's: a callback or a stream.

    `OSError` and hydrogen's own errors speak of the connection and stand for themselves, `EOFError` is how a stream says that the
    peer is gone; anything else is a fault of that code and comes as `HandlerError`.
    """
    if isinstance(error, EOFError):
        return Cause.PEER_CLOSED, removal_error(Cause.PEER_CLOSED)
    if isinstance(error, ProtocolError):
        return Cause.BAD_FRAME, error
    if isinstance(error, ssl.SSLError):
        return Cause.TLS_ERROR, error
    if isinstance(error, OSError):
        return Cause.OS_ERROR, error
    return Cause.HANDLER_ERROR, handler_error(error)


def handler_error(error: BaseException) -> HandlerError:
    """A `HandlerError` whose `__cause__` is `error`; or `error` itself, if it is one: it says already what user code did wrong."""
    if isinstance(error, HandlerError):
        return error
    wrapped = HandlerError(f"a callback raised {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
