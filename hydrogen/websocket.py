"""What a user says of a WebSocket server: its settings, and how to end a connection.

The protocol is RFC 6455; the handshake is in handshake.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hydrogen.checks import check_seconds, check_whole, is_several
from hydrogen.errors import HydrogenError, described
from hydrogen.handshake import Origins, checked_subprotocol

MAX_MESSAGE = 1 << 40
REASON_MOST = 123
"""Bytes of the reason of a CLOSE: a control frame's 125 without those of the code (RFC 6455,
5.5).
"""

_ORIGIN = re.compile(r"null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")  # RFC 6454 section 6.2


def is_close_code(code: int) -> bool:
    """Whether a CLOSE may carry it: those that RFC 6455 section 7.4 and IANA's registry define,
    but for 1005, 1006 and 1015, which are never sent; 3000 to 4999 are for libraries and programs.
    """
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999


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
