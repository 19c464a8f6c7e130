"""What a user says of a WebSocket server: its settings, and how to end a connection.

The protocol is RFC 6455; the handshake is in handshake.py.
"""

from __future__ import annotations

import enum
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydrogen.checks import check_seconds, check_whole, is_several
from hydrogen.connection import BytesLike, contiguous
from hydrogen.deflate import Deflate
from hydrogen.errors import (
    FrameTooLarge,
    HandlerError,
    HydrogenError,
    InvalidText,
    LocalClosed,
    ProtocolError,
    ServerStopped,
    WebSocketClosed,
    described,
)
from hydrogen.framings import WebSocketFrame
from hydrogen.handshake import Origins, checked_subprotocol

MAX_MESSAGE = 1 << 39  # what is compressed may be a quarter longer, and 5 bytes hold it
CONTROL_MOST = 125
"""Bytes that a control frame carries (RFC 6455, 5.5)."""
REASON_MOST = CONTROL_MOST - 2
"""Bytes of the reason of a CLOSE: without those of the code."""

_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")  # RFC 6454 section 6.2


class Fault(enum.IntEnum):
    """What may be wrong with what a client sends. The values are the compiled engine's
    `MESSAGES_...` constants.
    """

    kind: type[ProtocolError]
    message: str

    RESERVED = 2, ProtocolError, "a reserved bit is set, with no extension for it"
    OPCODE = 3, ProtocolError, "an opcode is reserved"
    FRAGMENTED = 4, ProtocolError, "a control frame must not be fragmented"
    CONTINUED = 5, ProtocolError, "a continuation of nothing"
    INSIDE = 6, ProtocolError, "a message inside one"
    UNMASKED = 7, ProtocolError, "a client must mask what it sends"
    LONG_CONTROL = 8, ProtocolError, "a control frame carries at most 125 bytes"
    LENGTH = 9, ProtocolError, "a length is not in its shortest form"
    LARGE = 10, FrameTooLarge, "a message is over max_message"
    FRAGMENTS = 11, FrameTooLarge, "a message has more than max_fragments frames"
    TEXT = 12, InvalidText, "a text message is not UTF-8"
    CLOSE = 13, ProtocolError, "a CLOSE has a code that is none"
    REASON = 14, InvalidText, "the reason of a CLOSE is not UTF-8"

    def __new__(cls, value: int, kind: type[ProtocolError], message: str) -> Fault:
        """Args: kind: of the error, with its message."""
        fault = int.__new__(cls, value)
        fault._value_ = value
        fault.kind = kind
        fault.message = message
        return fault

    def error(self) -> ProtocolError:
        """What is raised for it."""
        return self.kind(self.message)


LIFETIME_JITTER = 0.1
"""The part of `max_lifetime` by which connections end earlier, at random: not all at once."""


def lifetime(settings: WebSocket) -> float | None:
    """Seconds that a connection has, which begins now; None: no limit."""
    if settings.max_lifetime is None:
        return None
    return settings.max_lifetime * (1 - LIFETIME_JITTER * random.random())


def look_every(settings: WebSocket) -> float:
    """Seconds that it may take to notice that a time has passed: a quarter of those of pings; of
    `max_lifetime` a tenth of the jitter. Infinity: there is none.
    """
    pings = [settings.ping_interval, settings.ping_timeout]
    parts = [seconds / 4 for seconds in pings if seconds is not None]
    if settings.max_lifetime is not None:
        parts.append(settings.max_lifetime * LIFETIME_JITTER / 10)
    return min(parts, default=math.inf)


def control_frame(opcode: int, payload: bytes) -> bytes:
    """A control frame on the wire, of a payload of at most 125 bytes."""
    return WebSocketFrame(payload, opcode).to_bytes()


def is_close_code(code: int) -> bool:
    """Whether a CLOSE may carry it: those that RFC 6455 section 7.4 and IANA's registry define,
    but for 1005, 1006 and 1015, which are never sent; 3000 to 4999 are for libraries and programs.
    """
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999


def closed_by_us(code: int, reason: str) -> LocalClosed:
    """Why a connection ends that `close`, or a `Close`, has ended."""
    said = f"this side closed the connection with {code} {reason}".rstrip()
    return LocalClosed(said, code, str.__str__(reason))


def closing_of(settings: WebSocket | None, code: int | None, reason: str) -> LocalClosed:
    """Why a connection ends that `HydrogenSocket.close` is to close so.

    Raises:
        TypeError, ValueError: these cannot be sent, or the server speaks no WebSocket.
    """
    if settings is None:
        raise ValueError("code: only a WebSocket is closed with a code and a reason")
    code = 1000 if code is None else code
    check_close(code, reason)
    return closed_by_us(code, reason)


def check_ping(settings: WebSocket | None, data: BytesLike) -> bytes:
    """What `HydrogenSocket.ping` is given.

    Raises:
        TypeError, ValueError: it cannot be sent, or the server speaks no WebSocket.
    """
    if settings is None:
        raise ValueError("ping: only a WebSocket can be pinged")
    payload = contiguous(data)
    if len(payload) > CONTROL_MOST:
        raise ValueError(f"ping: must be at most {CONTROL_MOST} bytes, not {len(payload)}")
    return payload


def closing_payload(error: Exception, stop_code: int) -> bytes | None:
    """What the CLOSE carries with which a connection ends because of `error`; None: there is none,
    for the client has ended the connection so, or it can take none.

    Args:
        stop_code: `WebSocket.stop_code`.
    """
    reason = ""
    if isinstance(error, (WebSocketClosed, LocalClosed)):
        code = error.code
        if isinstance(error, LocalClosed):
            reason = error.reason
        elif code == 1006:
            return None
        elif code == 1005:
            return b""
    elif isinstance(error, ServerStopped):
        code = stop_code
    elif isinstance(error, ProtocolError):
        code, reason = _CODES.get(type(error), 1002), str(error)
    elif isinstance(error, HandlerError):
        code = 1011
    else:
        return None
    return code.to_bytes(2, "big") + reason.encode()[:REASON_MOST].decode(errors="ignore").encode()


def closing_code(error: Exception, stop_code: int, is_told: bool) -> int:
    """The code with which a connection has ended because of `error`: what the client has said, or
    was told (`is_told`: our CLOSE was sent); 1006 without a CLOSE.
    """
    if isinstance(error, WebSocketClosed):
        return error.code
    data = closing_payload(error, stop_code) if is_told else None
    return 1006 if data is None else int.from_bytes(data[:2], "big")


_CODES = {InvalidText: 1007, FrameTooLarge: 1009}


class Close(HydrogenError):
    """Raise it in any callback to close the connection with this code and reason; nothing is
    logged.

    Attributes:
        code: see `is_close_code`.
        reason: at most 123 bytes as UTF-8.
    """

    def __init__(self, code: int = 1000, reason: str = "") -> None:
        """Raises: TypeError, ValueError: they cannot be sent."""
        check_close(code, reason)
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason


def closed_by(error: Close) -> LocalClosed | None:
    """Why a connection ends for which `error` was raised; None: it cannot be sent, for it is of a
    class, or was changed, so that its attributes are not those of a `Close`.
    """
    try:
        code, reason = error.code, error.reason
        check_close(code, reason)
        return closed_by_us(code, reason)
    except BaseException:
        return None


def check_close(code: object, reason: object) -> None:
    """Raises: TypeError, ValueError: this code, or this reason, cannot be sent."""
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"code: expected an int, not {described(code)}")
    if not is_close_code(code):
        raise ValueError(
            f"code: must be 1000 to 1014 but for 1004 to 1006, or 3000 to 4999, not {code}"
        )
    if not isinstance(reason, str):
        raise TypeError(f"reason: expected a str, not {described(reason)}")
    if len(reason.encode()) > REASON_MOST:
        raise ValueError(f"reason: must be at most {REASON_MOST} bytes as UTF-8")


@dataclass(frozen=True)
class WebSocket:
    """The settings of a WebSocket server. Sizes are in bytes, times in seconds. Immutable.

    Attributes:
        max_message: longest message that is accepted; longer ones end the connection with 1009, as
            soon as the header of a frame says so.
        max_fragments: frames that one message may come in.
        max_header: longest request head; longer ones are answered with 431.
        max_headers: header fields that a request may have.
        origins: whose pages may connect, for a browser lets any page try: "same", those of the host
            that the request names; a list of origins, such as "https://example.org"; None: all.
            Programs that are no browsers send no origin, and may.
        subprotocols: those that the server speaks; the first that the client offers is accepted.
        ping_interval: time after which a client that has sent nothing is sent a ping; None: never.
        ping_timeout: time in which such a client must send something; None: no limit.
        close_timeout: time in which a client must answer our CLOSE.
        max_lifetime: time after which a connection is closed with 1001, up to a tenth earlier, so
            that not all go at once; None: no limit.
        deflate: how messages are compressed (permessage-deflate, RFC 7692), where the client can;
            None: not.
        stop_code: with which a graceful stop closes the connections: 1001 says that the server goes
            away, 1012 that it restarts.

    Raises:
        TypeError, ValueError: on construction; the message names the field, the value and what is
            allowed.
    """

    max_message: int = 1 << 20
    max_fragments: int = 65_536
    max_header: int = 8192
    max_headers: int = 100
    origins: Origins = "same"
    subprotocols: Sequence[str] = ()
    deflate: Deflate | None = None
    ping_interval: float | None = 20.0
    ping_timeout: float | None = 20.0
    close_timeout: float = 5.0
    max_lifetime: float | None = None
    stop_code: int = 1001

    def __post_init__(self) -> None:
        check_whole("max_message", self.max_message, 0, MAX_MESSAGE)
        check_whole("max_fragments", self.max_fragments, 1, 1 << 31)
        check_whole("max_header", self.max_header, 64, 1 << 20)
        check_whole("max_headers", self.max_headers, 1, 1 << 20)
        self._check_origins()
        if not is_several(self.subprotocols):
            raise TypeError(
                f"subprotocols: expected a sequence of str, not {described(self.subprotocols)}"
            )
        names = tuple(checked_subprotocol(name) for name in self.subprotocols)
        object.__setattr__(self, "subprotocols", names)
        if self.deflate is not None and not isinstance(self.deflate, Deflate):
            raise TypeError(f"deflate: expected a hydrogen.Deflate, not {described(self.deflate)}")
        for name in ("ping_interval", "ping_timeout", "max_lifetime"):
            if getattr(self, name) is not None:
                check_seconds(name, getattr(self, name))
        check_seconds("close_timeout", self.close_timeout)
        check_close(self.stop_code, "")

    def _check_origins(self) -> None:
        if self.origins is None or self.origins == "same":
            return
        if not is_several(self.origins):
            raise TypeError(
                "origins: expected 'same', a sequence of str or None, not "
                f"{described(self.origins)}"
            )
        for origin in self.origins:
            if not isinstance(origin, str):
                raise TypeError(f"origins: expected str, not {described(origin)}")
            if not _ORIGIN.fullmatch(origin.lower()):
                raise ValueError(
                    f"origins: expected 'https://example.org', say, or 'null', not {origin!r}"
                )
        object.__setattr__(self, "origins", tuple(origin.lower() for origin in self.origins))
