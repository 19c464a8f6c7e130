"""WebSocket for tests: a client made of plain sockets, and a handler that records its callbacks.

The client is written from RFC 6455, RFC 7692 and RFC 9112 alone, not from `hydrogen` nor from a
library, and sends whatever a test wants, be it allowed or not.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from certificates import client_context, server_context
from support import Client, Recorder, TlsClient

import hydrogen

FAMILIES = ("tcp", "unix", "tls")

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN = 0x80
RSV1 = 0x40

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPTED = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The example of RFC 6455 section 1.3."""

MASK = b"\x01\x80\xff\x37"

# -------------------------------------------------------------------------- what goes over the wire

FIELDS = (
    "Host: example.org",
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
)


def head(
    *more: str, line: str = "GET / HTTP/1.1", without: Sequence[str] = (), end: str = "\r\n\r\n"
) -> bytes:
    """The head of a request to speak WebSocket.

    Args:
        more: further fields, as lines.
        line: the first one.
        without: names of fields that are left out.
    """
    names = [name.lower() for name in without]
    fields = [field for field in FIELDS if field.partition(":")[0].lower() not in names]
    return ("\r\n".join([line, *fields, *more]) + end).encode("latin-1")


def expected_accept(key: str) -> str:
    """What Sec-WebSocket-Accept is to be (RFC 6455, 4.2.2)."""
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest).decode()


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    """RFC 6455, 5.3; as one long number."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def header(first: int, length: int, *, is_masked: bool = True) -> bytes:
    """Of a frame, up to the mask (RFC 6455, 5.2); the length as short as can be."""
    bit = 0x80 if is_masked else 0
    if length < 126:
        return struct.pack(">BB", first, bit | length)
    if length < 1 << 16:
        return struct.pack(">BBH", first, bit | 126, length)
    return struct.pack(">BBQ", first, bit | 127, length)


def frame(first: int, payload: bytes = b"", mask: bytes | None = MASK) -> bytes:
    """A frame with any first byte; `mask`: None: unmasked."""
    begin = header(first, len(payload), is_masked=mask is not None)
    return begin + payload if mask is None else begin + mask + masked(payload, mask)


def text(data: str) -> bytes:
    """A text message in one frame."""
    return frame(FIN | TEXT, data.encode())


def binary(data: bytes) -> bytes:
    """A binary message in one frame."""
    return frame(FIN | BINARY, data)


def message(data: str | bytes) -> bytes:
    """A message of the type that fits `data`, in one frame."""
    return text(data) if isinstance(data, str) else binary(data)


def ping(data: bytes = b"") -> bytes:
    """A ping."""
    return frame(FIN | PING, data)


def pong(data: bytes = b"") -> bytes:
    """A pong."""
    return frame(FIN | PONG, data)


def closing(code: int | None = None, reason: str = "") -> bytes:
    """A CLOSE; `code`: None: an empty one."""
    return frame(FIN | CLOSE, b"" if code is None else struct.pack(">H", code) + reason.encode())


class Frame(NamedTuple):
    """A frame as it was received: its first byte and its payload."""

    first: int
    payload: bytes


class Answer(NamedTuple):
    """A response of HTTP. `headers`: by name in lower case; no name may come twice."""

    status: int
    headers: dict[str, str]
    body: bytes


class Closed(NamedTuple):
    """What a CLOSE said; `code`: None: nothing."""

    code: int | None
    reason: str


# --------------------------------------------------------------------------------------- the client


class Peer:
    """A WebSocket client over a `Client` or a `TlsClient`. What it receives must be as RFC 6455 has
    it.

    Attributes:
        reserved: the reserved bits that a message may have.
    """

    reserved = 0

    def __init__(self, wire: Client | TlsClient) -> None:
        self.wire = wire
        self.send = wire.send
        self.receive = wire.receive

    @property
    def client(self) -> Client:
        """What carries it."""
        return self.wire.client if isinstance(self.wire, TlsClient) else self.wire

    # ------------------------------------------------------------------ the handshake

    def receive_answer(self) -> Answer:
        """A response, with its body."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += self.receive(1)
        line, *fields = data[:-4].decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [field.split(": ", 1) for field in fields]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), fields
        return Answer(int(status), headers, self.receive(int(headers.get("content-length", 0))))

    def receive_opening(self) -> Answer:
        """The answer that opens the connection, without extensions."""
        answer = self.receive_acceptance()
        assert "sec-websocket-extensions" not in answer.headers
        return answer

    def receive_acceptance(self) -> Answer:
        """The same, with any extensions."""
        answer = self.receive_answer()
        assert answer.status == 101, answer
        assert answer.headers["upgrade"].lower() == "websocket"
        assert answer.headers["connection"].lower() == "upgrade"
        assert answer.headers["sec-websocket-accept"] == ACCEPTED
        assert "content-length" not in answer.headers
        return answer

    def open(self, *more: str, **changes: Any) -> Peer:
        """Shake hands; see `head`."""
        self.send(head(*more, **changes))
        self.receive_opening()
        return self

    def refused(self) -> Answer:
        """An answer after which the connection ends."""
        answer = self.receive_answer()
        assert "close" in answer.headers["connection"]
        self.meet_end()
        return answer

    # ------------------------------------------------------------------ receiving

    def receive_frame(self) -> Frame:
        """The next one: not masked, no bit that is reserved, its length as short as can be."""
        first, second = self.receive(2)
        reserved = self.reserved if first & 0x0F in (TEXT, BINARY) else 0
        assert not first & 0x70 & ~reserved, f"the first byte is {first:#x}"
        assert not second & 0x80, "a server must not mask"
        length = second
        if length > 125:
            width, least = (2, 126) if length == 126 else (8, 1 << 16)
            length = int.from_bytes(self.receive(width), "big")
            assert length >= least
            assert not first & 0x08, "a control frame is too long"
        if first & 0x08:
            assert first & FIN, "a control frame is fragmented"
        return Frame(first, self.receive(length))

    def receive_message(self) -> str | bytes:
        """The next frame, which must be a whole message."""
        first, payload = self.receive_frame()
        assert first in (FIN | TEXT, FIN | BINARY), (hex(first), payload)
        return payload.decode() if first == FIN | TEXT else payload

    def receive_pong(self) -> bytes:
        """The next frame, which must be a pong."""
        first, payload = self.receive_frame()
        assert first == FIN | PONG, (hex(first), payload)
        return payload

    def receive_ping(self) -> bytes:
        """The next frame, which must be a ping."""
        first, payload = self.receive_frame()
        assert first == FIN | PING, (hex(first), payload)
        return payload

    def receive_close(self) -> Closed:
        """The next frame, which must be a CLOSE."""
        first, payload = self.receive_frame()
        assert first == FIN | CLOSE, (hex(first), payload)
        if not payload:
            return Closed(None, "")
        assert len(payload) >= 2
        return Closed(int.from_bytes(payload[:2], "big"), payload[2:].decode())

    def ended(self) -> Closed:
        """A CLOSE, which is not answered, and the end."""
        closed = self.receive_close()
        self.meet_end()
        return closed

    # ------------------------------------------------------------------ both

    def echo(self, data: str | bytes) -> None:
        """Send a message, and expect the same back."""
        self.send(message(data))
        assert self.receive_message() == data

    def answer_close(self) -> Closed:
        """A CLOSE, which is answered by the same, and the end."""
        closed = self.receive_close()
        self.send(closing(*closed))
        self.meet_end()
        return closed

    def say_goodbye(self, code: int | None = 1000, reason: str = "") -> Closed:
        """Close; the answer, behind which nothing comes."""
        self.send(closing(code, reason))
        return self.ended()

    def meet_end(self) -> None:
        """Nothing more comes but a graceful end; then this side is closed, too, so that the server
        does not linger.
        """
        assert self.wire.receive_until_end() == b""
        self.close()

    def at_end(self) -> str:
        """See `Client`; then this side is closed, too."""
        how = self.wire.at_end()
        self.close()
        return how

    def finish(self) -> None:
        """End the sending side, without a CLOSE."""
        self.wire.finish()

    def close(self) -> None:
        """Close the socket, without a CLOSE."""
        self.client.close()


OFFER = "permessage-deflate; client_max_window_bits"
"""What browsers offer."""

TAIL = b"\0\0\xff\xff"
"""What a compressed message is sent without (RFC 7692, 7.2.1)."""

_PARAMETERS = {
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
}
_WINDOW_CHECKED = 1 << 14
"""Bytes up to which a payload is inflated piece by piece, so that nothing but the window is left of
what came before.
"""


class DeflatePeer(Peer):
    """A peer that compresses its messages (RFC 7692) with a zlib of its own.

    Attributes:
        min_size: shorter messages must come as they are, and all others compressed; None: either
            will do.
        agreed: the parameters that were answered.
        is_compressed: whether the last message received was compressed.
        carried: the payload of the last message received, as it was on the wire.
    """

    reserved = RSV1

    def __init__(self, wire: Client | TlsClient, min_size: int | None = None) -> None:
        super().__init__(wire)
        self.min_size = min_size
        self.agreed: dict[str, str] = {}
        self.server_takeover = self.client_takeover = True
        self.server_bits = self.client_bits = 15
        self.is_compressed = False
        self.carried = b""
        self._deflater: Any = None
        self._inflater: Any = None

    # ------------------------------------------------------------------ the handshake

    def open(self, *more: str, offer: str = OFFER, **changes: Any) -> DeflatePeer:
        """Shake hands, and agree on compression."""
        self.send(head(f"Sec-WebSocket-Extensions: {offer}", *more, **changes))
        self.receive_opening()
        return self

    def receive_opening(self) -> Answer:
        """The answer that opens the connection, and says how messages are compressed (RFC 7692,
        7.1).
        """
        answer = self.receive_acceptance()
        name, *parameters = answer.headers["sec-websocket-extensions"].split("; ")
        assert name == "permessage-deflate"
        self.agreed = dict(parameter.partition("=")[::2] for parameter in parameters)
        assert len(self.agreed) == len(parameters), parameters
        assert self.agreed.keys() <= _PARAMETERS, parameters
        self.server_takeover = "server_no_context_takeover" not in self.agreed
        self.client_takeover = "client_no_context_takeover" not in self.agreed
        self.server_bits = int(self.agreed.get("server_max_window_bits", 15))
        self.client_bits = int(self.agreed.get("client_max_window_bits", 15))
        return answer

    # ------------------------------------------------------------------ messages

    def compress(self, data: bytes) -> bytes:
        """The payload of a message."""
        if self._deflater is None or not self.client_takeover:
            self._deflater = zlib.compressobj(wbits=-self.client_bits)
        made = self._deflater.compress(data) + self._deflater.flush(zlib.Z_SYNC_FLUSH)
        assert made.endswith(TAIL)
        return bytes(made[:-4])

    def inflate(self, data: bytes) -> bytes:
        """The message with this payload."""
        if self._inflater is None or not self.server_takeover:
            self._inflater = zlib.decompressobj(wbits=-self.server_bits)
        inflater, parts, left = self._inflater, [], data + TAIL
        while left:
            parts.append(inflater.decompress(left, 256 if len(data) <= _WINDOW_CHECKED else 0))
            left = inflater.unconsumed_tail
        parts.append(inflater.decompress(b""))
        assert not inflater.eof, "a message ends the stream"
        return b"".join(parts)

    def deflated(self, data: str | bytes) -> bytes:
        """A message of the type that fits `data`, compressed, in one frame."""
        if isinstance(data, str):
            return frame(FIN | RSV1 | TEXT, self.compress(data.encode()))
        return frame(FIN | RSV1 | BINARY, self.compress(data))

    def receive_message(self) -> str | bytes:
        """The next frame, which must be a whole message."""
        first, payload = self.receive_frame()
        assert first & ~RSV1 in (FIN | TEXT, FIN | BINARY), (hex(first), payload)
        self.carried = payload
        self.is_compressed = bool(first & RSV1)
        if self.is_compressed:
            payload = self.inflate(payload)
        if self.min_size is not None:
            assert self.is_compressed is (len(payload) >= self.min_size), (first, len(payload))
        return payload.decode() if first & 0x0F == TEXT else payload

    def echo(self, data: str | bytes) -> None:
        """Send a message, compressed, and expect the same back."""
        self.send(self.deflated(data))
        assert self.receive_message() == data


def deflate_peer_of(
    client: Client, family: str = "tcp", min_size: int | None = None
) -> DeflatePeer:
    """As `peer_of`."""
    return DeflatePeer(peer_of(client, family).wire, min_size)


def peer_of(client: Client, family: str = "tcp") -> Peer:
    """A peer over `client`; of the family "tls" its handshake is done."""
    if family == "tls":
        return Peer(TlsClient(client, client_context()).handshake())
    return Peer(client)


def options_of(family: str, path: Any) -> dict[str, Any]:
    """What `serve` is to be given. `path`: of a Unix socket."""
    if family == "unix":
        return {"path": str(path)}
    return {"port": 0, "ssl": server_context()} if family == "tls" else {"port": 0}


# ------------------------------------------------------------------------------------- the handlers


class Echo(hydrogen.WebSocketHandler):
    """The smallest handler."""

    def on_message(self, socket: hydrogen.HydrogenSocket, data: str | bytes) -> None:
        socket.send(data)


_ALWAYS = ("on_message", "on_disconnected", "on_connection_removed")


class WebSocketRecorder(Recorder, hydrogen.WebSocketHandler):
    """As `support.Recorder`; made by `recorder`."""

    def messages(self, id: int | None = None) -> list[Any]:
        """The messages received, of one connection or of all."""
        return [call.value for call in self.of("message") if id is None or call.id == id]

    def wait_messages(self, count: int) -> list[Any]:
        """At least `count` messages."""
        return [call.value for call in self.wait_for("message", count)]

    def wait_disconnected(self, count: int = 1) -> list[Any]:
        """The errors of at least `count` `on_disconnected`."""
        return [call.value for call in self.wait_for("disconnected", count)]

    def check(self) -> None:
        """As there; and a request is the first that is heard of a connection, and needs no
        `on_disconnected`.
        """
        seen: set[int | None] = set()
        for call in self.calls:
            assert call.name != "on_request" or call.id not in seen, "a late on_request"
            if call.id is not None:
                seen.add(call.id)
        self.calls = [call for call in self.calls if call.name != "on_request"]
        super().check()


def _recorded(name: str) -> Callable[..., Any]:
    def callback(self: WebSocketRecorder, who: Any, *values: Any) -> Any:
        return self._callback(name, who, *values)

    callback.__name__ = name
    return callback


def recorder(**hooks: Callable[..., Any] | None) -> WebSocketRecorder:
    """A `WebSocketRecorder` that overrides `on_message`, `on_disconnected`, `on_connection_removed`
    and the callbacks named, and no other. See `support.recorder`.
    """
    names = dict.fromkeys([*_ALWAYS, *(f"on_{name}" for name in hooks)])
    unknown = [name for name in names if not hasattr(hydrogen.WebSocketHandler, name)]
    assert not unknown, unknown
    methods = {name: _recorded(name) for name in names}
    made: WebSocketRecorder = type("WebSocketRecorder", (WebSocketRecorder,), methods)()
    made.hooks = {f"on_{name}": hook for name, hook in hooks.items()}
    return made


def echo(socket: hydrogen.HydrogenSocket, data: str | bytes) -> None:
    """A hook for `recorder`."""
    socket.send(data)


def removed_with(server: hydrogen.Server, handler: WebSocketRecorder, code: int) -> Any:
    """The error of the only connection that there was, once it is removed; it must have been
    counted with `code`.
    """
    (error,) = handler.wait_disconnected()
    assert handler.wait_removed() == [error]
    assert dict(server.stats().closes) == {code: 1}
    return error
