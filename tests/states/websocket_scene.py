"""A scene of a WebSocket server's: see `scene`. The peer speaks RFC 6455, and the accounts are kept
in messages and frames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable
from typing import Any

from deflate_peers import random_text
from states.scene import HIGH, Scene
from support import TlsClient, wait_event
from websocket_peers import (
    CLOSE,
    CONTINUATION,
    FIN,
    OFFER,
    PING,
    PONG,
    RSV1,
    TEXT,
    Closed,
    DeflatePeer,
    Frame,
    Peer,
    closing,
    frame,
    head,
    peer_of,
    recorder,
    text,
)

from hydrogen import Deflate, HydrogenSocket, LocalClosed, Server, WebSocket

FAMILIES = {"tcp": "TCP", "unix": "Unix", "tls": "TLS", "deflate": "deflate"}
"""Family -> its name for people."""

PATH = "/all-about"
"""That the connection asks for which a scene is all about."""

BIG = random_text(8 * HIGH)
"""A message that is longer than all buffers and watermarks together, however it is compressed."""

MOST = 4096
"""`max_message`."""

OURS = Closed(4001, "ours")
"""With which the user closes."""
NOW = Closed(4003, "now")
"""With which the user closes when it is the event."""
THEIRS = Closed(4002, "theirs")
"""With which the peer closes."""

ASKED = b"asked"
"""What a ping of the user's carries."""

NEVER = 60.0
"""Seconds of `close_timeout`, where it is not to pass."""

_SETTINGS = {field.name for field in dataclasses.fields(WebSocket)}


class WebSocketScene(Scene):
    """See the module.

    Attributes:
        sent: messages that the peer has sent whole, in order.
        owing: the messages and pings that the server has taken for the peer, and that it has not
            read, as frames, in order.
        pongs: the payloads of those that the peer is to get.
        begun: messages that are whole once `unsent` has come.
        unsent: what is left of the request head, or of a frame: it goes before all else.
        last: the last fragment of the message that the peer has begun.
        is_answered: the peer has read the answer to its request.
        told: the CLOSE that it has read.
    """

    told = Closed(None, "")
    peer: Peer
    unsent: bytes
    new_handler = staticmethod(recorder)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.owing: list[Frame] = []
        self.pongs: list[bytes] = []
        self.begun: list[str] = []
        self.last = b""
        self.is_answered = False
        super().__init__(*arguments, **options)
        self.unsent = b""

    # ------------------------------------------------------------------ the server's side

    def callbacks(self) -> dict[str, Any]:
        return {
            "request": self._asked,
            "connected": None,
            "message": self._received,
            "pong": None,
        }

    def speak(self, options: dict[str, Any]) -> None:
        settings = {name: options.pop(name) for name in _SETTINGS & options.keys()}
        options["websocket"] = WebSocket(
            deflate=Deflate(min_size=0) if self.family == "deflate" else None,
            **{
                "max_message": MOST,
                "ping_interval": None,
                "ping_timeout": None,
                "close_timeout": NEVER,
                **settings,
            },
        )

    def _asked(self, socket: HydrogenSocket, request: Any) -> None:
        if request.path == PATH and self.state == "request":
            wait_event(self.go, "let go")

    def _received(self, socket: HydrogenSocket, data: Any) -> None:
        if data == "hold":
            wait_event(self.go, "let go")
        elif data == "pause":
            socket.pause_reading()
        elif data in ("big", "last"):
            self.push(socket, BIG)
        if not (self.quiet and self.is_ours(socket)):
            self.push(socket, f"re {data}")
        if data in ("last", "bye"):
            socket.close(*OURS)
        if self.is_ours(socket):
            self.answered += 1

    def push(self, socket: HydrogenSocket, data: Any) -> bool:
        if not self.is_ours(socket):
            return socket.send(data)
        return self.owe(Frame(FIN | TEXT, data.encode()), lambda: socket.send(data))

    def owe(self, expected: Frame, send: Callable[[], bool]) -> bool:
        """`send`, with the account of what the peer is to get."""
        with self._owing:
            self.owing.append(expected)
        taken = send()
        if not taken:
            with self._owing:
                self.owing.remove(expected)
        return taken

    def _find(self) -> HydrogenSocket | None:
        calls = self.handler.of("request")
        return next((call.socket for call in calls if call.value.path == PATH), None)

    def error(self) -> Exception | None:
        """As there; who was not connected is known by its fd, if it got so far."""
        calls = self.handler.of("request")
        ours = next((call for call in calls if call.value.path == PATH), None)
        if ours is None or self.was_connected:
            return super().error()
        removed = self.handler.of("connection_removed")
        return next((call.value for call in removed if call.fd == ours.fd), None)

    @property
    def was_connected(self) -> bool:
        """Whether the handler was told of the connection that it is all about."""
        socket = self._find()
        return any(call.socket == socket for call in self.handler.of("connected"))

    # ------------------------------------------------------------------ the peer's side

    def new_peer(self, server: Server | None = None) -> Any:
        """A connection with small buffers, and with TLS, but for which nothing was sent."""
        client = super().new_peer(server).client
        if self.family != "deflate":
            return peer_of(client, self.family)
        peer = DeflatePeer(client)
        peer.client_takeover = False  # as the server will ask for
        return peer

    def opened(self, peer: Any = None) -> Any:
        peer = peer or self.new_peer()
        peer.open()
        self.greet(peer, "open")
        return peer

    def greet(self, peer: Peer, data: str) -> None:
        """A neighbour is served."""
        peer.send(text(data))
        assert self.inflated(peer, self.awaited(peer)).payload.decode() == f"re {data}"

    def awaited(self, peer: Peer) -> Frame:
        """The next frame that the peer reads, but for pings of keepalive."""
        while (came := peer.receive_frame()).first == FIN | PING and came.payload != ASKED:
            assert self.timeout == "ping_timeout"
        return came

    def open(self) -> None:
        self.ask()
        self.say("hello")
        self.hear()

    def ask(self) -> None:
        """Send the request, of which the answer is not read."""
        self.peer = self.new_peer()
        self.transmit(self.request())

    def request(self) -> bytes:
        """The request head."""
        offer = [f"Sec-WebSocket-Extensions: {OFFER}"] if self.family == "deflate" else []
        return head(*offer, line=f"GET {PATH} HTTP/1.1")

    def transmit(self, data: bytes, *messages: str) -> None:
        """The peer sends `data`, with which these messages are whole, in one write."""
        self.sent += [*self.begun, *messages]
        data, self.unsent, self.begun = self.unsent + data, b"", []
        self.peer.send(data)

    def payload(self, data: str) -> tuple[int, bytes]:
        """What a text message begins with, and its payload."""
        if isinstance(self.peer, DeflatePeer):
            return RSV1 | TEXT, self.peer.compress(data.encode())
        return TEXT, data.encode()

    def encoded(self, data: str) -> bytes:
        """A text message in one frame."""
        first, payload = self.payload(data)
        return frame(FIN | first, payload)

    def fragments(self, data: str) -> tuple[bytes, bytes]:
        """A text message in two."""
        first, payload = self.payload(data)
        half = len(payload) // 2
        return frame(first, payload[:half]), frame(FIN | CONTINUATION, payload[half:])

    def say(self, *messages: Any) -> None:
        self.transmit(b"".join(map(self.encoded, messages)), *messages)

    def inflated(self, peer: Peer, came: Frame) -> Frame:
        """A frame as it was before it was compressed."""
        if came.first & ~RSV1 != FIN | TEXT:
            return came
        assert bool(came.first & RSV1) == isinstance(peer, DeflatePeer)
        if isinstance(peer, DeflatePeer):
            return Frame(came.first & ~RSV1, peer.inflate(came.payload))
        return came

    def next_frame(self) -> Frame:
        """The next frame, once the request was answered."""
        if not self.is_answered:
            self.peer.receive_opening()
            self.is_answered = True
        return self.inflated(self.peer, self.awaited(self.peer))

    def take(self, came: Frame) -> None:
        """It must be the next pong, or the next of all else."""
        with self._owing:
            if came.first == FIN | PONG:
                assert came.payload == self.pongs.pop(0)
            else:
                assert self.owing, f"{came} came of itself"
                assert came == self.owing.pop(0)

    def read(self, most: int | None = None) -> None:
        while self.owing or self.pongs:
            self.take(self.next_frame())

    def read_close(self) -> Closed:
        """All that the peer is owed, and then a CLOSE, which becomes `told`."""
        while (came := self.next_frame()).first != FIN | CLOSE:
            self.take(came)
        assert not self.owing
        assert not self.pongs
        if not came.payload:
            self.told = Closed(None, "")
        else:
            code, reason = came.payload[:2], came.payload[2:]
            self.told = Closed(int.from_bytes(code, "big"), reason.decode())
        return self.told

    def read_end(self) -> None:
        """All that the peer is owed, and then the end; then this side ends, too."""
        left = self.peer.wire.receive_until_end()
        rest = io.BytesIO(left)
        self.peer.receive = rest.read
        while rest.tell() < len(left):
            self.take(self.next_frame())
        assert not self.owing
        assert not self.pongs
        self.peer.close()

    def drain(self) -> None:
        """The peer takes what TLS has sent of its own, so that a close is no reset."""
        if isinstance(self.peer.wire, TlsClient):
            self.peer.wire.take()

    def leave(self) -> None:
        """The peer closes its socket; with TLS, after close_notify."""
        if isinstance(self.peer.wire, TlsClient):
            with contextlib.suppress(OSError):
                self.peer.client.send(self.peer.wire.close_notify())
        self.peer.client.close()

    # ------------------------------------------------------------------ around it

    def barrier(self) -> None:
        if not self.server.ready:
            return
        if self._neighbour is None or self.timeout:  # it may have met that
            self._neighbour = self.opened()
        for _ in range(2):
            self.greet(self._neighbour, "neighbour")

    def is_late(self, error: Exception) -> bool:
        if self.timeout == "close_timeout":
            return isinstance(error, LocalClosed)
        return super().is_late(error)

    def tempt(self, peer: Any) -> None:
        if self.timeout == "frame_timeout":
            peer.send(frame(TEXT, b"part"))
        elif self.timeout == "write_timeout":
            peer.send(text("big"))
        elif self.timeout == "close_timeout":
            peer.send(text("bye"))
            peer.wire.receive_until_end()
            peer.close()

    def dismiss(self, guard: Any) -> None:
        assert self.awaited(guard) == Frame(FIN | CLOSE, (1001).to_bytes(2, "big"))
        guard.send(closing(1001))
        guard.meet_end()
