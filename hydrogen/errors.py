"""Every exception of hydrogen, and the causes of a removal.

Each derives from `HydrogenError` and from the builtin that fits, so that a handler may file them by
either. The two engines name why a connection ended by a `Cause`; `removal_error` turns that into
the exception the callbacks get, so that both give the same one.
"""

from __future__ import annotations

import enum
import errno
import os
import ssl
import threading
from types import TracebackType
from typing import TypeVar


class HydrogenError(Exception):
    """Base of all errors that hydrogen itself defines."""


class PeerClosed(HydrogenError, ConnectionError):
    """The peer ended the connection gracefully, between two messages."""


class WebSocketClosed(PeerClosed):
    """The client closed the WebSocket, or the connection ended without that.

    Attributes:
        code: what the client said; 1005: nothing; 1006: the connection ended without a CLOSE (RFC
            6455 section 7.1.5).
        reason: the client's; "" without one.
    """

    def __init__(self, code: int = 1006, reason: str = "") -> None:
        said = "without closing the WebSocket" if code == 1006 else f"with {code} {reason}"
        super().__init__(f"the client closed the connection {said}".rstrip())
        self.code = code
        self.reason = reason


class LocalClosed(HydrogenError, ConnectionError):
    """`HydrogenSocket.close()` or `abort()` ended the connection.

    Attributes:
        code, reason: of a WebSocket: what the client is told.
    """

    def __init__(self, message: str, code: int = 1000, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class ServerStopped(HydrogenError, ConnectionError):
    """The server stopped."""


class SlowConsumer(HydrogenError, ConnectionError):
    """The peer did not read: too much output was pending.

    That is, more than `max_write_buffer` on its connection, or `max_buffered` on the server.
    """


class HandlerError(HydrogenError, RuntimeError):
    """A callback, a stream or a frame builder of yours raised an exception; see `__cause__`."""


class Reject(HydrogenError, ConnectionError):
    """Raise it in `on_new_connection` to refuse a connection quietly."""


class ConnectionTimeout(HydrogenError, TimeoutError):
    """A deadline of the connection passed; the message names the timeout."""


class ProtocolError(HydrogenError, ValueError):
    """The peer sent bytes that can never become a frame."""


class FrameTooLarge(ProtocolError):
    """A frame exceeds `max_size` of its builder or, on sending, what its format can carry."""


class ChecksumMismatch(ProtocolError):
    """The checksum of a frame does not match its payload."""


class InvalidText(ProtocolError):
    """A WebSocket text message, or the reason of a CLOSE, is not UTF-8; or a message is not
    compressed as it says.
    """


class IncompleteFrame(ProtocolError):
    """The connection ended in the middle of a frame."""


class EngineUnavailable(HydrogenError, ImportError):
    """The compiled engine was requested but could not be imported."""


class Cause(enum.IntEnum):
    """Why a connection ended. The values are those of the compiled engine's `CAUSE_...`
    constants.
    """

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
    """Which deadline passed: the `code` of `Cause.TIMEOUT`. The one table of them: value, name, and
    what is said of it.

    `field` is the field of `Config`, or of `WebSocket`, that sets it, and what `Stats` counts it by
    (`removed_` before it).
    """

    message: str

    OPEN_TIMEOUT = 1, "the connection was not ready in time"
    FRAME_TIMEOUT = 2, "a frame was started but not finished in time"
    IDLE_TIMEOUT = 3, "nothing was sent or received for too long"
    WRITE_TIMEOUT = 4, "the peer accepted no output for too long"
    PING_TIMEOUT = 5, "nothing came after a ping"

    def __new__(cls, value: int, message: str = "") -> Timeout:
        """Args: value: the compiled engine's `TIMEOUT_...` constant. message: of the
        `ConnectionTimeout`.
        """
        timeout = int.__new__(cls, value)
        timeout._value_ = value
        timeout.message = message
        return timeout

    @property
    def field(self) -> str:
        """The name of the setting."""
        return self.name.lower()


_MESSAGES: dict[Cause, tuple[type[Exception], str]] = {
    Cause.PEER_CLOSED: (PeerClosed, "the peer closed the connection"),
    Cause.LOCAL_CLOSED: (LocalClosed, "this side closed the connection"),
    Cause.SERVER_STOPPED: (ServerStopped, "the server stopped"),
    Cause.SLOW_CONSUMER: (SlowConsumer, "the peer is not reading: too much output is pending"),
    Cause.HANDLER_ERROR: (HandlerError, "a callback raised"),
    Cause.REJECT: (Reject, "refused by on_new_connection"),
    Cause.BAD_FRAME: (ProtocolError, "bytes that can never become a frame"),
    Cause.FRAME_TOO_LARGE: (FrameTooLarge, "a frame is longer than max_size"),
    Cause.INCOMPLETE_FRAME: (IncompleteFrame, "the connection ended in the middle of a frame"),
    Cause.CHECKSUM_MISMATCH: (ChecksumMismatch, "the checksum does not match the payload"),
    Cause.TLS_ERROR: (ssl.SSLError, "TLS failed"),
    Cause.OVERLOAD: (Reject, "turned away: too many connections from that address"),
}


def removal_error(cause: int, code: int = 0) -> Exception:
    """The exception that tells a callback why its connection was removed.

    Args:
        cause: a `Cause`.
        code: for `Cause.OS_ERROR` the errno, from which `OSError` chooses its subclass
            (`ConnectionResetError`, ...); for `Cause.TIMEOUT` a `Timeout`.
    """
    if cause == Cause.TIMEOUT:
        timeout = Timeout(code)
        return ConnectionTimeout(f"{timeout.field}: {timeout.message}")
    if cause == Cause.TRUNCATED:
        return ssl.SSLEOFError(
            ssl.SSL_ERROR_EOF,
            "the connection ended without close_notify: the input may be truncated",
        )
    if cause == Cause.OS_ERROR:
        return OSError(code or errno.EIO, os.strerror(code or errno.EIO))
    kind, message = _MESSAGES[Cause(cause)]
    return kind(message)


def cause_of(error: BaseException) -> tuple[Cause, Exception]:
    """The cause and the removal error for an exception raised by code of the user's: a callback or
    a stream.

    `OSError` and hydrogen's own errors speak of the connection and stand for themselves, `EOFError`
    is how a stream says that the peer is gone; anything else is a fault of that code and comes as
    `HandlerError`. Of its traceback the last raise is left, see `cut_traceback`.
    """
    cut_traceback(error)
    # not isinstance(), which asks the exception for its class, and it may be the user's
    kind = type(error)
    if issubclass(kind, EOFError):
        return Cause.PEER_CLOSED, removal_error(Cause.PEER_CLOSED)
    if issubclass(kind, ProtocolError):
        return Cause.BAD_FRAME, error  # type: ignore[return-value]
    if issubclass(kind, ssl.SSLError):
        return Cause.TLS_ERROR, error  # type: ignore[return-value]
    if issubclass(kind, OSError):
        return Cause.OS_ERROR, error  # type: ignore[return-value]
    return Cause.HANDLER_ERROR, handler_error(error)


_OUT_OF_MEMORY = MemoryError()
"""Stands for every MemoryError of the interpreter's own. CPython keeps sixteen in reserve for when
nothing is left, and up to 3.11 it aborts when those are used up: connections that end gracefully
would hold one each.
"""

_CHAIN = 5
"""How far one exception is followed to those it came from. They may go round in a ring, and each
has two.
"""

# Of `error` itself: a class of the user's may have properties of these names.
_CAUSE, _CONTEXT = (BaseException.__dict__[name] for name in ("__cause__", "__context__"))


def is_ctrl_c(error: BaseException) -> bool:
    """Whether it interrupts the main thread, and only happened to come where it was caught."""
    return (
        issubclass(type(error), KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def handler_error(error: BaseException) -> HandlerError:
    """A `HandlerError` whose `__cause__` is `error`; or `error` itself, if it is one.

    (It says already what user code did wrong.) Whatever `__str__` of `error` does, this does not
    raise, but for Ctrl-C in the main thread. Of its traceback the last raise is left, see
    `cut_traceback`.
    """
    cut_traceback(error)
    if issubclass(type(error), HandlerError):
        return error  # type: ignore[return-value]
    name = class_name(error)
    try:
        message = f"a callback raised {name}: {error}"
    except BaseException as raised:
        if is_ctrl_c(raised):
            raise
        message = f"a callback raised {name}, whose __str__ raises"
    wrapped = HandlerError(message)
    wrapped.__cause__ = _OUT_OF_MEMORY if _is_spare(error) else error
    return wrapped


def _is_spare(error: BaseException | None) -> bool:
    """Whether it is a MemoryError of the interpreter's own."""
    return type(error) is MemoryError and error is not _OUT_OF_MEMORY and not error.args


def _spare_memory(error: BaseException, depth: int = _CHAIN) -> None:
    """Let go of the MemoryErrors that `error` was raised from, or while they were handled: see
    `_OUT_OF_MEMORY`.
    """
    for attribute in (_CAUSE, _CONTEXT):
        before = attribute.__get__(error)
        if _is_spare(before):
            attribute.__set__(error, _OUT_OF_MEMORY)
        elif before is not None and depth:
            _spare_memory(before, depth - 1)


def class_name(value: object) -> str:
    """The name of the class of `value`, whatever its metaclass answers."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


ErrorT = TypeVar("ErrorT", bound=BaseException)


def stripped(error: ErrorT) -> ErrorT:
    """The same, an error that one of our readers has raised, without its traceback, and without the
    one that it was raised from: nobody wants to know where in there that was, and whoever keeps it
    would keep all that those frames hold, up to a whole message.
    """
    error.__context__ = None
    return error.with_traceback(None)


def cut_traceback(error: BaseException) -> None:
    """Leave of the traceback of `error`, which one of our functions has just caught, the last
    raise.

    An exception object that is raised again goes on with the traceback it has, so that one that a
    handler keeps and raises for each message would grow for ever. What was raised before is told by
    the function that caught it, whose entry comes first: none of ours that catches what user code
    raises lets it pass, so an entry of the same function further down is of an earlier raise.
    Tracebacks that somebody else holds stay whole: they begin at, or behind, the cut.

    It is kept as long as its connection, so it holds no MemoryError of the interpreter's, either.
    """
    _spare_memory(error)
    last = _traceback_of(error)
    if last is None or not _is_ours(last):
        return
    code = last.tb_frame.f_code
    while (following := last.tb_next) is not None:
        found = following.tb_frame.f_code
        if found.co_name == code.co_name and found.co_filename == code.co_filename:
            last.tb_next = None
            return
        last = following


def _traceback_of(error: BaseException) -> TracebackType | None:
    """Of `error` itself: `__traceback__` may be a property of the user's."""
    traceback: TracebackType | None = BaseException.__dict__["__traceback__"].__get__(error)
    return traceback


def _is_ours(entry: TracebackType) -> bool:
    name = entry.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.startswith("hydrogen.")


def described(value: object, most: int = 200) -> str:
    """`repr(value)` for a message, at most so many characters of it.

    `value` is the user's, and so is its `__repr__`: when that raises, this names the class instead.
    """
    try:
        text = str.__str__(repr(value))
    except BaseException:
        return f"<{class_name(value)}, whose __repr__ raises>"
    return text if len(text) <= most else f"{text[: most - 3]}..."
