"""The heads of HTTP/1.1 requests, and responses, sans-I/O: bytes in, a `Request` or a `Refusal`
out; a `Response` in, bytes out.

As much as a WebSocket server needs (RFC 9110 and 9112): requests without a body, one for each
connection. It is strict where others are lenient, since what two programs in a row read differently
is how requests are smuggled: whatever is accepted here, h11 accepts too (tests/unit/test_http.py).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from hydrogen.errors import HydrogenError, ProtocolError, described

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 section 5.6.2
_TOKEN = re.compile(TOKEN.encode())
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")  # section 5.5, with the white space around it
_VALUE_TEXT = re.compile("[\t -~\x80-\xff]*")
_TARGET = re.compile(rb"/[!\"$-~]*")  # RFC 9112 section 3.2.1; no fragment
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_LENGTH = re.compile(r"[0-9]{1,20}")
# RFC 3986 section 3.2.2: a name or an address, that of IPv6 in brackets
_HOST = re.compile(r"(?:[0-9A-Za-z._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_END = b"\r\n\r\n"
_BAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n")
"""What no head has: control characters, CR without LF, LF without CR."""

_OURS = frozenset(
    {"connection", "content-length", "date", "transfer-encoding", "upgrade", "trailer", "te"}
)
"""Fields that a response gets from here, or never has."""
_WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED)

Fields = Iterable[tuple[str, str]] | Mapping[str, str]
"""Header fields to be sent: pairs of name and value."""


class Headers(Mapping[str, str]):
    """The header fields of a request. Their names are case-insensitive.

    The value of a field that came several times is all of them, joined by ", " ("; " for cookies),
    as RFC 9110 section 5.3 has it; see `get_all`. Read-only, and so safe to use from any thread.
    """

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in fields:
            self._fields.setdefault(name.lower(), []).append(value)

    def __getitem__(self, name: str) -> str:
        """Raises: KeyError: there is no such field."""
        return ("; " if name.lower() == "cookie" else ", ").join(self._fields[name.lower()])

    def __iter__(self) -> Iterator[str]:
        """The names, in lower case, each once, in the order in which they came."""
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._fields

    def get_all(self, name: str) -> list[str]:
        """Each value of a field by itself, in the order in which they came."""
        return list(self._fields.get(name.lower(), ()))

    def elements(self, name: str) -> list[str]:
        """The elements of a field that is a list (RFC 9110 section 5.6.1), without empty ones."""
        values = ",".join(self._fields.get(name.lower(), ())).split(",")
        return [element for value in values if (element := value.strip(" \t"))]

    def __repr__(self) -> str:
        return f"Headers({[(name, value) for name in self for value in self.get_all(name)]!r})"


class Request:
    """A request, for `on_request`. Read-only, and so safe to use from any thread.

    Attributes:
        method: "GET".
        path: of the target, as it was sent: percent-encoded, see `urllib.parse.unquote`.
        query: what follows the first "?", see `urllib.parse.parse_qs`; "" without one.
        headers: the header fields; bytes beyond ASCII as ISO 8859-1.
        host: the Host field, with the port if it has one.
        peername: the client's address, as `HydrogenSocket.peername`.
    """

    __slots__ = ("headers", "host", "method", "path", "peername", "query")

    def __init__(self, method: str, target: str, headers: Headers, peername: Any = None) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.host = headers.get("host", "")
        self.peername = peername

    @property
    def origin(self) -> str | None:
        """The site whose page connects, as the Origin field says (RFC 6454), or None."""
        return self.headers.get("origin")

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the client offers in Sec-WebSocket-Protocol, in its order of preference."""
        return tuple(self.headers.elements("sec-websocket-protocol"))

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name, without the quotes that a value may have (RFC 6265 section 4.2). Of
        several of a name the first counts: the one with the longest path, in browsers.
        """
        found: dict[str, str] = {}
        for pair in self.headers.get("cookie", "").split(";"):
            name, is_pair, value = pair.strip(" \t").partition("=")
            if is_pair:
                if len(value) > 1 and value[0] == value[-1] == '"':
                    value = value[1:-1]
                found.setdefault(name, value)
        return found

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """User and password of an Authorization field (RFC 7617, in UTF-8); None without one, or
        when it is malformed. Compare them by `hmac.compare_digest`.
        """
        scheme, _, credentials = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            pair = base64.b64decode(credentials.strip(" "), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
        user, is_pair, password = pair.partition(":")
        return (user, password) if is_pair else None

    def __repr__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"<Request {self.method} {self.path}{query} of {self.host}>"


class Response:
    """A response, after which the connection is closed.

    Attributes:
        status: 200 to 599.
        body: as bytes.
        headers: further fields, as pairs of name and value.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: str | bytes = b"", headers: Fields = ()) -> None:
        """Make a response.

        Args:
            status: 200 to 599.
            body: str is sent as UTF-8; none for 204, 205 and 304.
            headers: further fields. Without a Content-Type the body is "text/plain; charset=utf-8"
                as str and "application/octet-stream" as bytes.

        Raises:
            TypeError, ValueError: one of them cannot be sent. Content-Length, Connection, Date and
                the like are hydrogen's to say.
        """
        if not isinstance(status, int) or isinstance(status, bool):
            raise TypeError(f"status: expected an int, not {described(status)}")
        if not 200 <= status <= 599:
            raise ValueError(f"status: must be 200 to 599, not {status}")
        if not isinstance(body, (str, bytes)):
            raise TypeError(f"body: expected str or bytes, not {described(body)}")
        if body and status in _WITHOUT_BODY:
            raise ValueError(f"body: there is none with status {status}")
        self.status = int(status)
        self.headers = checked_fields(headers)
        names = {name.lower() for name, _ in self.headers}
        if body and "content-type" not in names:
            kind = "text/plain; charset=utf-8" if isinstance(body, str) else _BINARY
            self.headers += (("Content-Type", kind),)
        self.body = str.__str__(body).encode() if isinstance(body, str) else bytes(body)

    def to_bytes(self) -> bytes:
        """The response as sent on the wire, dated now."""
        fields = [*self.headers, ("Date", formatdate(usegmt=True))]
        if self.status not in _WITHOUT_BODY:
            fields.append(("Content-Length", str(len(self.body))))
        names = {name.lower() for name, _ in fields}
        # who sends Upgrade also says so there (RFC 9110 section 7.8)
        fields.append(("Connection", "Upgrade, close" if "upgrade" in names else "close"))
        return head_of(self.status, fields) + self.body

    def __repr__(self) -> str:
        return f"Response({self.status}, {self.body!r}, {list(self.headers)!r})"


_BINARY = "application/octet-stream"


class Refusal(HydrogenError):
    """A request that is answered here and not by the handler: `response`; the text says why."""

    def __init__(self, status: int, why: str, headers: Fields = ()) -> None:
        super().__init__(why)
        self.response = Response(status, f"{why}\n")
        # Upgrade, with 426, is what a handler must not send
        self.response.headers += tuple(dict(headers).items())

    def error(self) -> ProtocolError:
        """Why its connection ends."""
        return ProtocolError(f"answered with {self.response.status}: {self}")


def checked_fields(headers: Fields, *reserved: str) -> tuple[tuple[str, str], ...]:
    """The same as pairs of plain str: a subclass might be checked as one text and sent as another.

    Args:
        headers: pairs of name and value, or a mapping.
        reserved: beginnings of names, in lower case, that must not be there, besides those that are
            hydrogen's to send.

    Raises:
        TypeError: they are no pairs of str.
        ValueError: a name is no token, or reserved; a value has a control character, such as the
            end of a line, or one that ISO 8859-1 does not have.
    """
    pairs = []
    for pair in headers.items() if isinstance(headers, Mapping) else headers:
        if not (
            isinstance(pair, tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], str)
        ):
            raise TypeError(f"headers: expected pairs of str, not {described(pair)}")
        name, value = map(str.__str__, pair)
        if not _TOKEN.fullmatch(name.encode("ascii", "replace").replace(b"?", b" ")):
            raise ValueError(f"headers: {name!r} is no name of a field")
        if name.lower() in _OURS or any(name.lower().startswith(word) for word in reserved):
            raise ValueError(f"headers: {name} is not for you to send")
        if not _VALUE_TEXT.fullmatch(value) or value != value.strip(" \t"):
            raise ValueError(f"headers: {name} cannot have the value {value!r}")
        pairs.append((name, value))
    return tuple(pairs)


def head_of(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """A status line and header fields, with the empty line behind them."""
    lines = [
        f"HTTP/1.1 {status} {_phrase(status)}",
        *(f"{name}: {value}" for name, value in fields),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


class HeadReader:
    """Takes the head of a request off the bytes that come in, which it checks on their way: what
    cannot be part of a head is refused at that byte, be it a line that ends otherwise than by CRLF
    (RFC 9112 section 2.2), or TLS.
    """

    __slots__ = ("_buffer", "_max_header", "_seen")

    def __init__(self, max_header: int) -> None:
        """Args: max_header: bytes of a head, at most, with the empty line that ends it."""
        self._buffer = bytearray()
        self._max_header = max_header
        self._seen = 0  # bytes that were checked

    @property
    def size(self) -> int:
        """Bytes fed and not taken off."""
        return len(self._buffer)

    def is_partial(self) -> bool:
        """Whether a head was begun and not finished."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The head, without the empty line that ends it; None while it is incomplete.

        Raises:
            Refusal: 400 for a byte that no head has; 431 when it is too long.
        """
        most = min(len(self._buffer), self._max_header)
        begin = max(0, self._seen - len(_END) + 1)
        found = self._buffer.find(_END, begin, most)
        end = found + len(_END) if found >= 0 else most
        bad = _BAD.search(self._buffer, begin, end)
        if bad is not None:
            raise Refusal(400, f"a request has no byte 0x{self._buffer[bad.start()]:02x} there")
        self._seen = end
        if found >= 0:
            head = bytes(self._buffer[:found])
            del self._buffer[:end]
            return head
        if len(self._buffer) > self._max_header:
            raise Refusal(431, f"a request head has at most {self._max_header} bytes")
        return None

    def rest(self) -> bytes:
        """What came behind the head; it is taken off."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


def head_refusal(data: bytes, max_header: int) -> Refusal:
    """Why `data` is not the beginning of a head, which is known."""
    reader = HeadReader(max_header)
    reader.feed(data)
    try:
        reader.next()
    except Refusal as refusal:
        return refusal
    raise AssertionError("it is one")


def parse_request(head: bytes, max_headers: int, peername: Any = None) -> Request:
    """The request of which this is the head, without the empty line that ends it.

    Args:
        head: request line and header fields.
        max_headers: how many fields there may be.
        peername: the client's address.

    Raises:
        Refusal: 400 for what is malformed, 431 for too many fields, 505 for another version than
            HTTP/1.1, 405 for another method than GET, 413 for a body.
    """
    line, *lines = head.split(b"\r\n")
    method, target, version = _request_line(line)
    if len(lines) > max_headers:
        raise Refusal(431, f"a request has at most {max_headers} header fields")
    headers = Headers([_field(line) for line in lines])
    if version != b"HTTP/1.1":
        raise Refusal(505, f"HTTP/1.1 is spoken here, not {version.decode()}")
    hosts = headers.get_all("host")
    if len(hosts) != 1:
        raise Refusal(400, f"a request has one Host field, not {len(hosts)}")
    if not _HOST.fullmatch(hosts[0]):
        raise Refusal(400, "the Host field is no name or address of a host")
    lengths = headers.get_all("content-length")
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise Refusal(400, "Content-Length is not one number")
    if method != b"GET":
        refusal = Refusal(405, f"GET is allowed here, not {method.decode()}", {"Allow": "GET"})
        if method == b"HEAD":
            refusal.response.body = b""  # RFC 9110 section 9.3.2
        raise refusal
    if "transfer-encoding" in headers or (lengths and lengths[0].strip("0")):
        raise Refusal(413, "a request has no body here")
    return Request(method.decode(), target.decode(), headers, peername)


def _request_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version (RFC 9112 section 3), with one space between them."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise Refusal(400, "a request line is a method, a target and a version")
    method, target, version = parts
    if not _TOKEN.fullmatch(method):
        raise Refusal(400, "the method is no token")
    if not _VERSION.fullmatch(version):
        raise Refusal(400, "the request line does not end with a version of HTTP")
    if method == b"GET" and not _TARGET.fullmatch(target):
        raise Refusal(400, "the target is no path")
    return method, target, version


def _field(line: bytes) -> tuple[str, str]:
    """Name and value of a header field (RFC 9112 section 5). None is continued on another line, and
    there is no white space before the colon: both are how requests are smuggled.
    """
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        raise Refusal(400, "a header field is continued on another line")
    if not colon or not _TOKEN.fullmatch(name):
        raise Refusal(400, "a header field is no name, a colon and a value")
    if not _VALUE.fullmatch(value):
        raise Refusal(400, f"{name.decode()} has a control character in its value")
    return name.decode(), value.strip(b" \t").decode("latin-1")
