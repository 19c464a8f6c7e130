"""What a WebSocket connection does besides its messages: control frames, and how it is closed (RFC
6455 sections 5.5 and 7). By the owner of the connection, but for `WebSocketState.ping` and
`look_alive`.

Whoever ends first sends a CLOSE, behind all of its messages; the other answers with one. So a
connection that ends for a reason of ours goes on looking for the client's, in what is otherwise
dropped, and ends its side only then, or after `close_timeout`.
"""

from __future__ import annotations

import math
import time
from collections import deque

from hydrogen._py import callbacks, kernel
from hydrogen._py.connection import Connection
from hydrogen._py.output import Raw, Uncompressed
from hydrogen._py.websocket import BINARY, CLOSE, PING, PONG, TEXT, Event, MessageReader
from hydrogen.deflate import Encoder, Inflater
from hydrogen.errors import Cause, ProtocolError, Timeout, WebSocketClosed
from hydrogen.framings import WebSocketFrame
from hydrogen.handshake import Accepted
from hydrogen.websocket import (
    WebSocket,
    closed_by_us,
    closing_code,
    closing_payload,
    control_frame,
    lifetime,
)

BACKLOG = 16384
"""Bytes in the kernel, before a ping, that a client may need long for."""


class WebSocketState:
    """What is known of a WebSocket connection once it is open.

    Attributes:
        encoder: compresses our messages; None: they are not compressed.
        path: of the request.
        subprotocol: that both agreed on; None: none.
        latency: seconds between the last ping that was answered and its pong; None: none was.
        is_counted: with its `code`.
        has_failed: what the client sends after our CLOSE is no WebSocket any more.
    """

    __slots__ = (
        "_alive_at",
        "_close_sent",
        "_closing_until",
        "_connection",
        "_ends_at",
        "_is_late",
        "_pinged",
        "_probed_at",
        "_received",
        "_settings",
        "_unsent",
        "encoder",
        "has_failed",
        "is_counted",
        "latency",
        "path",
        "reader",
        "subprotocol",
    )

    def __init__(self, connection: Connection, settings: WebSocket, accepted: Accepted) -> None:
        self._connection = connection
        self._settings = settings
        self.path = accepted.path
        self.subprotocol = accepted.subprotocol
        self.encoder: Encoder | None = None
        inflater = None
        if accepted.agreement is not None:
            assert settings.deflate is not None
            self.encoder = Encoder(accepted.agreement, settings.deflate)
            inflater = Inflater(accepted.agreement.client_bits, accepted.agreement.client_takeover)
        self.reader = MessageReader(settings.max_message, settings.max_fragments, inflater)
        self.latency: float | None = None
        self.has_failed = False
        self.is_counted = False
        self._pinged: tuple[bytes, float] | None = None  # the last ping, and when it was sent
        self._close_sent = False
        self._closing_until = math.inf
        # for `look_alive`, which is the monitor thread's
        self._alive_at = time.monotonic()
        self._probed_at = -math.inf  # when it was pinged for that last
        self._is_late = False
        self._unsent = 0  # in the kernel, when it was pinged or looked at last
        self._received = 0  # bytes until then
        self._ends_at = self._alive_at + (lifetime(settings) or math.inf)

    def encode(self, data: bytes | str) -> bytes:
        """What `send` takes for a message. Any thread."""
        opcode, payload = (TEXT, data.encode()) if isinstance(data, str) else (BINARY, data)
        if self.encoder is None:
            return WebSocketFrame(payload, opcode).to_bytes()
        if self.encoder.is_ordered:
            return Uncompressed(bytes([opcode]) + payload)
        return self.encoder.encode(opcode, payload)

    def ping(self, data: bytes, limited: bool = True) -> bool:
        """Send a ping; False when the connection ends. Any thread. `limited`: as of `send`."""
        self._pinged = data, time.monotonic()
        is_sent = self._connection.send(Raw(control_frame(PING, data)), False, limited)
        if is_sent:
            self._connection.loop.pings_sent.add(1)
        return is_sent

    def pong(self, data: bytes) -> None:
        """The client has answered a ping that carried `data`, perhaps."""
        pinged = self._pinged
        if pinged is not None and pinged[0] == data:
            self.latency = time.monotonic() - pinged[1]
            self._pinged = None  # its pong comes once

    @property
    def seeks_close(self) -> bool:
        """Whether the client's CLOSE may come still."""
        return not (self.reader.is_closed or self.has_failed)

    def awaits_close(self) -> bool:
        """Whether our CLOSE was sent, and the client's is to come; that has a deadline."""
        connection = self._connection
        if (
            not self.seeks_close
            or connection.has_eof
            or connection.input_ended
            or connection.cause in (Cause.BAD_FRAME, Cause.FRAME_TOO_LARGE)
        ):
            return False
        now = time.monotonic()
        self._closing_until = min(self._closing_until, now + self._settings.close_timeout)
        connection.deadline = self._closing_until
        return now < self._closing_until

    def code(self) -> int:
        """With which the connection has ended, see `closing_code`."""
        error = self._connection.error
        assert error is not None
        return closing_code(error, self._settings.stop_code, self._close_sent)

    def keep_what_came(self) -> None:
        """What comes from now on is dropped, but for a CLOSE, which is noted."""
        if self._connection.decoder is self.reader:
            self._connection.decoder = Kept(self)

    def look_for_close(self) -> None:
        """Drop the messages that the client sends, until its CLOSE."""
        self.reader.inflates_later = True
        try:
            while self.reader.next() is not None:
                pass
        except ProtocolError:
            self.has_failed = True

    def closing_frame(self, error: Exception) -> bytes:
        """The CLOSE with which the connection ends because of `error`; b"" for none."""
        self._close_sent = True
        data = closing_payload(error, self._settings.stop_code)
        return b"" if data is None else Raw(control_frame(CLOSE, data))

    def look_alive(self, now: float) -> None:
        """Ping a client that has sent nothing for `ping_interval`, and end the connection if
        nothing comes after that for `ping_timeout`; or for its age. By the monitor thread.

        What was not looked at yet has come, too: the handler may block. A ping stands behind all
        other output: while that is blocked it is `write_timeout` that counts, and who takes some of
        it is there.
        """
        settings, connection = self._settings, self._connection
        if connection.error is not None:
            return
        if now >= self._ends_at:
            connection.end(Cause.LOCAL_CLOSED, closed_by_us(1001, "max_lifetime has passed"))
            return
        interval, timeout = settings.ping_interval, settings.ping_timeout
        if interval is None:
            return
        received = connection.tally.bytes_received
        if received != self._received:
            self._received, self._alive_at = received, now
        if now < self._alive_at + interval:
            return
        if connection.is_blocked or self._is_unread():
            self._alive_at = now
            self._is_late = False
        elif self._probed_at < self._alive_at + interval:
            self._is_late = False
            self._unsent = kernel.unsent(connection.transport.poll_fd)
            self.ping(int(now * 1e9).to_bytes(8, "big"), limited=False)
            self._probed_at = now
        elif timeout is not None and now >= self._probed_at + timeout:
            unsent, self._unsent = self._unsent, kernel.unsent(connection.transport.poll_fd)
            if self._unsent < unsent and unsent > BACKLOG:
                self._alive_at = now
            elif self._is_late:
                connection.end(Cause.TIMEOUT, code=Timeout.PING_TIMEOUT, at_once=True)
            # Not at once: somebody may have taken what came out of the kernel a moment ago.
            self._is_late = True

    def _is_unread(self) -> bool:
        """Whether something has come that was not looked at yet, be it the end, or a CLOSE, after
        which a client answers no pings.
        """
        connection = self._connection
        return (
            self.reader.holds_close()
            or connection.input_ended
            or kernel.is_readable(connection.transport.poll_fd)
        )


class Kept:
    """The decoder of a connection for which nothing new is wanted: it gives out what had come."""

    def __init__(self, websocket: WebSocketState) -> None:
        self._websocket = websocket
        self._events: deque[Event] = deque()
        self._fault: ProtocolError | None = None
        websocket.reader.inflates_later = True
        try:
            while (event := websocket.reader.next()) is not None:
                self._events.append(event)
        except ProtocolError as error:
            self._fault = error

    @property
    def size(self) -> int:
        """Bytes, or characters, not given out."""
        return self._websocket.reader.size + sum([len(event.data) for event in self._events])

    def feed(self, data: bytes) -> None:
        """Drop what was read."""
        if self._websocket.seeks_close:
            self._websocket.reader.feed(data)
            self._websocket.look_for_close()

    def next(self) -> Event | None:
        """The next of what had come. Raises: ProtocolError: what follows is no WebSocket, or cannot
        be inflated.
        """
        if self._events:
            return self._websocket.reader.inflated(self._events.popleft())
        if self._fault is not None:
            raise self._fault
        return None

    def is_partial(self) -> bool:
        """Whether something was begun that is wanted: never."""
        return False


def waits(connection: Connection, event: Event) -> bool:
    """Whether an event is for the handler, who may have paused reading."""
    return event.opcode in (TEXT, BINARY) or (
        event.opcode == PONG and connection.loop.callbacks.on_pong is not None
    )


def deliver(connection: Connection, websocket: WebSocketState, event: Event) -> None:
    """Do what an event asks for."""
    handler, data = connection.loop.callbacks, event.data
    if event.opcode in (TEXT, BINARY):
        connection.deadline = math.inf
        connection.tally.messages_received += 1
        callbacks.call(
            connection, handler.received, handler.on_data_received, connection.socket, data
        )
        return
    if not websocket.reader.is_in_message:
        connection.deadline = math.inf  # of this frame
    if event.opcode == CLOSE:
        assert isinstance(data, str)
        connection.end(Cause.PEER_CLOSED, WebSocketClosed(event.code, data))
    elif event.opcode == PING:
        assert isinstance(data, bytes)
        connection.tally.pings_received += 1
        # whatever is pending: the client has asked for it
        connection.send(Raw(control_frame(PONG, data)), rests=False, limited=False)
    else:
        assert isinstance(data, bytes)
        connection.tally.pongs_received += 1
        websocket.pong(data)
        callbacks.call(connection, "on_pong", handler.on_pong, connection.socket, data)
