"""The opening handshake of a WebSocket, by the owner of the connection: a request head is answered,
as `on_request` says.
"""

from __future__ import annotations

from hydrogen._py import callbacks
from hydrogen._py.connection import Connection
from hydrogen._py.control import WebSocketState
from hydrogen._py.output import Raw
from hydrogen.errors import Cause, Reject
from hydrogen.handshake import Accepted, Answered, take_request
from hydrogen.http import HeadReader, Refusal
from hydrogen.websocket import WebSocket


def serve_head(connection: Connection, settings: WebSocket, head: bytes) -> None:
    """Answer a request; `on_connected` comes next, or the end."""
    handshake = take_request(head, settings, connection.peername)
    if isinstance(handshake, Refusal):
        refuse(connection, handshake)
        return
    on_request = connection.loop.callbacks.on_request
    result = callbacks.call(
        connection, "on_request", on_request, connection.socket, handshake.request
    )
    if connection.error is not None:
        return
    answer = handshake.answer(result)
    if isinstance(answer, Accepted):
        accept(connection, settings, answer)
    elif isinstance(answer, Answered):
        connection.respond(answer.status, answer.wire)
        connection.end(Cause.REJECT, Reject(f"on_request has answered with {answer.status}"))
    elif isinstance(answer, Refusal):
        refuse(connection, answer)
    else:
        callbacks.failed(connection, "on_request", answer)


def accept(connection: Connection, settings: WebSocket, accepted: Accepted) -> None:
    """Speak WebSocket from now on, unless another thread has closed the connection."""
    reader = connection.decoder
    assert isinstance(reader, HeadReader)
    if not connection.send(Raw(accepted.answer), rests=False):
        return
    websocket = WebSocketState(connection, settings, accepted)
    websocket.reader.feed(reader.rest())
    connection.decoder = websocket.reader
    connection.websocket = websocket
    connection.awaits_head = False
    connection.loop.watch_websockets()
    callbacks.connected(connection)


def refuse(connection: Connection, refusal: Refusal) -> None:
    """Answer a request that cannot be accepted."""
    connection.respond(refusal.response.status, refusal.response.to_bytes())
    connection.end(Cause.BAD_FRAME, refusal.error())
