"""The server's half of the WebSocket opening handshake (RFC 6455 section 4.2), sans-I/O.

A `Request` becomes an `Opening`, or a `Refusal` that says why not; an `Opening` and what the
handler accepts become the bytes of the answer.

A browser lets any page connect to any server, with the cookies that its user has there; it only
says in Origin which page it is. That server must refuse the pages of strangers (section 10.2).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hydrogen.deflate import (
    Agreement,
    Deflate,
    Encoder,
    Inflater,
    OrderedOutput,
    negotiate,
    offers_of,
)
from hydrogen.errors import described
from hydrogen.http import (
    TOKEN,
    Fields,
    Refusal,
    Request,
    Response,
    checked_fields,
    head_of,
    parse_request,
)

if TYPE_CHECKING:
    from hydrogen.tls import TlsSession
    from hydrogen.websocket import WebSocket

VERSION = "13"

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_KEY = re.compile(r"[0-9A-Za-z+/]{21}[AQgw]==")  # of 16 bytes (section 4.1)
_NAME = re.compile(TOKEN)  # of a subprotocol
_DEFAULT_PORTS = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443"}

Origins = Literal["same"] | Sequence[str] | None
"""Which pages may connect: those of the same host; those of certain origins; all."""


@dataclass(frozen=True)
class Opening:
    """A valid request to speak WebSocket.

    Attributes:
        key: of Sec-WebSocket-Key.
        subprotocols: what the client offers.
    """

    key: str
    subprotocols: tuple[str, ...]


class Accept:
    """What `on_request` returns to accept a connection otherwise than `Config` says.

    Attributes:
        subprotocol: that one, which the client must have offered; None: none.
        headers: further header fields of the answer, as pairs of name and value.
    """

    __slots__ = ("headers", "subprotocol")

    def __init__(self, subprotocol: str | None = None, headers: Fields = ()) -> None:
        """Accept.

        Raises:
            TypeError, ValueError: the subprotocol is no token, or a field cannot be sent.
        """
        self.subprotocol = None if subprotocol is None else checked_subprotocol(subprotocol)
        self.headers = checked_fields(headers, "sec-websocket-")

    def __repr__(self) -> str:
        return f"Accept({self.subprotocol!r}, {list(self.headers)!r})"


def checked_subprotocol(name: object) -> str:
    """The same, as a plain str. Raises: TypeError, ValueError: it is no name of a subprotocol."""
    if not isinstance(name, str):
        raise TypeError(f"subprotocol: expected a str, not {described(name)}")
    name = str.__str__(name)
    if not _NAME.fullmatch(name):
        raise ValueError(f"subprotocol: {name!r} is no token (RFC 6455 section 4.1)")
    return name


def is_upgrade(request: Request) -> bool:
    """Whether the client wants to speak WebSocket, and says so as it has to."""
    return _has(request, "upgrade", "websocket") and _has(request, "connection", "upgrade")


def _has(request: Request, name: str, word: str) -> bool:
    return any(element.lower() == word for element in request.headers.elements(name))


def opening_of(request: Request) -> Opening:
    """Check a request (section 4.2.1), but for its origin.

    Raises:
        Refusal: 426 where it is no request to speak WebSocket, or another version of it; 400 where
            what it says of that is malformed.
    """
    if not is_upgrade(request):
        raise Refusal(426, "WebSocket is spoken here", {"Upgrade": "websocket"})
    versions = request.headers.get_all("sec-websocket-version")
    if len(versions) != 1:
        raise Refusal(400, f"there is one Sec-WebSocket-Version, not {len(versions)}")
    if versions[0] != VERSION:
        raise Refusal(
            426,
            f"version {VERSION} of WebSocket is spoken here",
            {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION},
        )
    keys = request.headers.get_all("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise Refusal(400, "Sec-WebSocket-Key is not the base64 of 16 bytes")
    offered = request.subprotocols
    if not all(map(_NAME.fullmatch, offered)) or len(set(offered)) < len(offered):
        raise Refusal(400, "Sec-WebSocket-Protocol is no list of different tokens")
    return Opening(keys[0], offered)


def check_origin(request: Request, origins: Origins) -> None:
    """Check what page connects. Programs that are no browsers send no origin, and are accepted.

    Args:
        origins: "same": scheme apart, the page's host and port must be those of the Host field;
            several, or one: the page's origin must be one of them, "https://example.org" say, or
            "null" for pages that have none; None: any may connect.

    Raises:
        Refusal: 403, which names both; 400 for several origins.
    """
    found = request.headers.get_all("origin")
    if not found or origins is None:
        return
    if len(found) > 1:
        raise Refusal(400, "there are several Origin fields")
    origin = found[0].lower()
    if origins == "same":
        scheme, is_origin, host = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme, "")
        if is_origin and host.removesuffix(port) == request.host.lower().removesuffix(port):
            return
        raise Refusal(403, f"a page of {found[0]} may not connect to {request.host}")
    certain = (origins,) if isinstance(origins, str) else origins
    if origin not in [listed.lower() for listed in certain]:
        raise Refusal(403, f"a page of {found[0]} may not connect to {request.host}")


def choose_subprotocol(wanted: Sequence[str], offered: Collection[str]) -> str | None:
    """The first that both have, in the server's order; None: none (section 4.2.2)."""
    return next((name for name in wanted if name in offered), None)


def answer_of(opening: Opening, accept: Accept, extensions: str | None = None) -> bytes:
    """The answer that opens the connection (section 4.2.2).

    Args:
        opening: the request's.
        accept: what the handler accepts.
        extensions: of Sec-WebSocket-Extensions; None: none.

    Raises:
        ValueError: the client has not offered the subprotocol.
    """
    if accept.subprotocol is not None and accept.subprotocol not in opening.subprotocols:
        offered = ", ".join(opening.subprotocols) or "nothing"
        raise ValueError(
            f"subprotocol: the client offers {offered}, and not {accept.subprotocol!r}"
        )
    fields = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accepted(opening.key)),
    ]
    if accept.subprotocol is not None:
        fields.append(("Sec-WebSocket-Protocol", accept.subprotocol))
    if extensions is not None:
        fields.append(("Sec-WebSocket-Extensions", extensions))
    return head_of(101, [*fields, *accept.headers])


def accepted(key: str) -> str:
    """What a key is answered with: proof that WebSocket is understood here."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


class Handshake:
    """A request, and how it is answered.

    Attributes:
        request: it.
    """

    def __init__(self, request: Request, settings: WebSocket) -> None:
        """Check what asks to speak WebSocket.

        Raises:
            Refusal: it cannot be accepted, whatever the handler says.
        """
        self._settings = settings
        self.request = request
        self._opening: Opening | None = None
        if is_upgrade(request):
            self._opening = opening_of(request)
            check_origin(request, settings.origins)

    def answer(self, result: object) -> Accepted | Answered | BaseException:
        """What to answer, for what `on_request` has returned. A `Refusal`: nobody answers what is
        no request to speak WebSocket; another exception: this cannot be answered, which is the
        handler's fault.
        """
        try:
            return self._answer(result)
        except BaseException as error:  # attributes of the user's may raise anything
            return error

    def _answer(self, result: object) -> Accepted | Answered:
        if isinstance(result, Response):
            status, wire = result.status, result.to_bytes()
            if not isinstance(status, int) or type(wire) is not bytes:
                raise TypeError(f"on_request: {described(result)} is no response that can be sent")
            return Answered(status, wire)
        if result is not None and not isinstance(result, Accept):
            raise TypeError(
                f"on_request: expected an Accept, a Response or None, not {described(result)}"
            )
        opening = self._opening or opening_of(self.request)
        if result is None:
            offered = opening.subprotocols
            result = Accept(choose_subprotocol(self._settings.subprotocols, offered))
        extensions, agreement = self._negotiate()
        answer = answer_of(opening, result, extensions)
        return Accepted(answer, self.request.path, result.subprotocol, agreement)

    def _negotiate(self) -> tuple[str | None, Agreement | None]:
        """The answer to the extensions that are offered, and what it means."""
        if self._settings.deflate is None:
            return None, None
        offers = offers_of(self.request.headers.get_all("sec-websocket-extensions"))
        return negotiate(offers, self._settings.deflate) or (None, None)


def take_request(head: bytes, settings: WebSocket, peername: Any) -> Handshake | Refusal:
    """The request of which this is the head, without the empty line that ends it, or why it is
    refused, whatever the handler says.
    """
    try:
        return Handshake(parse_request(head, settings.max_headers, peername), settings)
    except Refusal as refusal:
        return refusal


class Answered(NamedTuple):
    """A request that was answered otherwise than by speaking WebSocket.

    Attributes:
        status: of the response.
        wire: the response.
    """

    status: int
    wire: bytes


class Accepted(NamedTuple):
    """A connection that speaks WebSocket from now on.

    Attributes:
        answer: the bytes that say so.
        path: of the request.
        subprotocol: None: none.
        agreement: how messages are compressed; None: not.
    """

    answer: bytes
    path: str
    subprotocol: str | None
    agreement: Agreement | None


class Opened:
    """What the compiled engine keeps of an opening handshake: one object for all connections for
    which it is the same.

    Attributes:
        path, subprotocol: as of `Accepted`.
        encoder, inflater: of messages that are compressed; None: none are.
        output: where `encoder` encodes in the order of sending; None: it need not.
    """

    __slots__ = ("encoder", "inflater", "output", "path", "subprotocol")

    def __init__(
        self, accepted: Accepted, deflate: Deflate | None, below: TlsSession | None
    ) -> None:
        self.path = accepted.path
        self.subprotocol = accepted.subprotocol
        self.encoder: Encoder | None = None
        self.inflater: Inflater | None = None
        self.output: OrderedOutput | None = None
        if accepted.agreement is not None:
            assert deflate is not None
            self.encoder = Encoder(accepted.agreement, deflate)
            self.inflater = Inflater(
                accepted.agreement.client_bits, accepted.agreement.client_takeover
            )
            if self.encoder.is_ordered:
                self.output = OrderedOutput(self.encoder, below)
