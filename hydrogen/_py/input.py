"""Reading, splitting and delivering, by the owner of a connection."""

from __future__ import annotations

import math
import time
from typing import Any

from hydrogen._py import callbacks, control, handshake, kernel, mailbox, tls
from hydrogen._py.connection import Connection
from hydrogen._py.framing import ChunkDecoder, explain, size_of
from hydrogen._py.streams import CHUNK
from hydrogen.errors import Cause, WebSocketClosed
from hydrogen.http import Refusal
from hydrogen.locks import total
from hydrogen.proxy import V2_SIGNATURE, begins_header, second_header
from hydrogen.tls import TlsSession

MESSAGE_BUDGET = 256
"""Messages delivered in one step before the others come."""

INFLATED_AS_ONE = 4096
"""Bytes that a message was inflated to which count as one more of these."""


def is_second_header(connection: Connection, data: bytes) -> bool:
    """Whether `data`, with the first bytes before it, begins another PROXY header, of a client who
    would be another: it ends.
    """
    if connection.first_bytes is None:
        return False
    first_bytes = connection.first_bytes + data[: len(V2_SIGNATURE)]
    connection.first_bytes = first_bytes if len(first_bytes) < len(V2_SIGNATURE) else None
    if begins_header(first_bytes):
        connection.end(Cause.BAD_FRAME, second_header())
        return True
    return False


def serve_input(connection: Connection) -> None:
    """Deliver what is complete, then read, in turn, until nothing is left, a pause, or the budget
    is used up.

    All that was read is decrypted: see `deadlines.has_grace`.
    """
    messages, budget = MESSAGE_BUDGET, connection.loop.config.read_budget
    while (
        connection.error is None
        and connection.header is None
        and not connection.is_paused
        and not connection.is_held_back
    ):
        if not tls.decrypt(connection):
            return
        if messages <= 0 or budget <= 0:
            connection.post(mailbox.AGAIN)
            return
        if connection.is_due:
            callbacks.connected(connection)
            continue
        message = take_message(connection)
        if message is not None and connection.is_paused:  # while the builder's code ran
            connection.next_message = message
        elif message is not None:
            messages -= 1
            if connection.websocket is not None:  # a few bytes may have made it large
                messages -= size_of(message) // INFLATED_AS_ONE
            deliver(connection, message)
        elif connection.input_ended and not connection.told_eof:
            end_of_input(connection)
        elif may_read(connection) and not connection.loop.memory.must_wait(connection.token):
            budget -= read(connection)
        else:
            break
    if connection.hung_up and connection.error is None and not is_being_read(connection):
        check_hangup(connection)


def deliver(connection: Connection, message: Any) -> None:
    """Do what a message, or what stands for one, asks for."""
    settings = connection.loop.config.websocket
    if settings is None:
        connection.deadline = math.inf
        connection.tally.messages_received += 1
        on_data_received = connection.loop.callbacks.on_data_received
        callbacks.call(connection, "on_data_received", on_data_received, connection.socket, message)
    elif connection.websocket is None:
        handshake.serve_head(connection, settings, message)
    else:
        control.deliver(connection, connection.websocket, message)


def may_read(connection: Connection) -> bool:
    """Whether there may be something to read, and it is wanted: once a graceful stop has asked for
    the end, only what was due before.
    """
    if connection.input_ended:
        return False
    return was_received(connection) or (
        connection.readable and not (connection.read_is_due or connection.stopping)
    )


def was_received(connection: Connection) -> bool:
    """Whether a stream of the user's has given something out that was not taken in, be it the
    end.
    """
    return connection.transport.is_stream and (bool(connection.received) or connection.has_eof)


def is_being_read(connection: Connection) -> bool:
    """Whether a stream of the user's has, or is about to have, what comes before anything that the
    kernel tells; no pause keeps it back.
    """
    return (connection.read_is_due or bool(connection.received)) and not (
        connection.is_paused or connection.is_held_back
    )


def end_gracefully(connection: Connection) -> None:
    """A graceful stop has asked for the end: it comes when all that was read is delivered. What a
    pause holds back waits for its end.
    """
    if connection.error is not None or (connection.read_is_due and not connection.is_paused):
        return
    settle(connection)
    if connection.takes_messages and (
        connection.received
        or connection.ciphertext
        or connection.plaintext
        or has_message(connection)
    ):
        return
    if connection.error is None:
        connection.end(Cause.SERVER_STOPPED)


def throw_away(connection: Connection) -> None:
    """While the server stops what was read is finished, and what arrives is thrown away: else a
    peer that sends before it reads would not come to take the last replies. How a stream of the
    user's reads is its own affair.
    """
    if connection.transport.is_stream or connection.header is not None:
        return
    if connection.websocket is not None:
        if not tls.decrypt(connection):
            return
        connection.websocket.keep_what_came()
    budget, had_ended = connection.loop.config.read_budget, connection.input_ended
    while connection.readable and connection.error is None:
        if budget <= 0:
            connection.post(mailbox.AGAIN)
            return
        chunks = receive(connection, CHUNK)
        budget -= sum(map(len, chunks))
        if connection.websocket is not None:
            for chunk in chunks:
                take_in(connection, chunk)
            tls.decrypt(connection)
    if connection.input_ended and not had_ended:
        connection.told_eof = True


def settle(connection: Connection) -> None:
    """What of a WebSocket is no message for the handler is held back by no pause while the server
    stops.
    """
    websocket = connection.websocket
    if websocket is None or connection.ciphertext or connection.plaintext:
        return
    while has_message(connection) and not control.waits(connection, connection.next_message):
        event, connection.next_message = connection.next_message, None
        control.deliver(connection, websocket, event)


def has_message(connection: Connection) -> bool:
    """Whether a message is complete."""
    if connection.next_message is None:
        connection.next_message = decode(connection)
    return connection.next_message is not None


def take_message(connection: Connection) -> Any:
    """The next message; None also when there can be none, then the connection ends."""
    message = connection.next_message
    if message is None:
        return decode(connection)
    connection.next_message = None
    return message


def decode(connection: Connection) -> Any:
    """What the decoder has; None also when it raises, then the connection ends."""
    try:
        message = connection.decoder.next()
    except Refusal as refusal:
        message = None
        handshake.refuse(connection, refusal)
    except BaseException as error:
        message = None
        if connection.websocket is not None:
            connection.websocket.has_failed = True
        cause, reason = explain(connection.builder, error, connection.complain)
        connection.end(cause, reason, at_once=cause == Cause.OS_ERROR)
    connection.loop.leave_if_forked()
    return message if connection.error is None else None


def read(connection: Connection) -> int:
    """Read once; returns how much that counts of a budget."""
    chunks = receive(connection, CHUNK)
    try:
        for chunk in chunks:
            take_in(connection, chunk)
    except BaseException as error:
        reading_failed(connection, error)
    return sum(map(len, chunks)) + len(chunks)  # messages of a stream may be empty


def receive(connection: Connection, most: int) -> list[bytes]:
    """What came, of a socket at most so many bytes; `[]` also at the end, or when reading fails."""
    if connection.transport.is_stream:
        return receive_of_stream(connection)
    chunks: list[bytes] = []
    try:
        chunks = connection.transport.receive(most)
    except EOFError:
        # Who writes may have met a reset first: the kernel tells of it once, and to us it looks
        # like an orderly end.
        if not connection.has_eof:
            connection.in_role(lambda: _has_ended(connection), mailbox.READABLE, by_anybody=True)
        connection.input_ended |= connection.has_eof
    except BaseException as error:
        reading_failed(connection, error)
    connection.readable = bool(chunks)
    if chunks:
        connection.last_byte = time.monotonic()
        # before TLS answers: who gets an answer may look here
        connection.tally.bytes_received += sum(map(len, chunks))
    connection.loop.leave_if_forked()
    return chunks


def receive_of_stream(connection: Connection) -> list[bytes]:
    """What a stream of the user's has given out. If there is nothing, it is asked; by who is in it,
    then AGAIN will be posted.
    """
    if not was_received(connection):
        connection.readable = False  # an edge that comes now is another one
        connection.read_is_due = True
        try:
            connection.in_role(lambda: _receive(connection), mailbox.AGAIN, by_anybody=True)
        except BaseException as error:
            reading_failed(connection, error)
        connection.loop.leave_if_forked()
    has_ended = connection.has_eof  # before the last of it is taken
    chunks = []
    while connection.received:
        chunks.append(connection.received.popleft())
    connection.readable |= bool(chunks)
    connection.input_ended |= has_ended
    connection.tally.bytes_received += sum(map(len, chunks))
    return chunks


def _receive(connection: Connection) -> None:
    """One `recv` of a stream, in the role: by the owner, or in his stead."""
    if not connection.read_is_due or connection.has_eof:
        return
    # What is there has come, be it a whole message or not.
    if connection.loop.config.idle_timeout is not None and kernel.unread(
        connection.transport.poll_fd
    ):
        connection.last_byte = time.monotonic()
    try:
        chunks = connection.transport.receive()
        connection.received.extend(chunks)
        if chunks:
            connection.last_byte = time.monotonic()
    except EOFError:
        connection.has_eof = True
    except BaseException as error:
        if connection.loop.forked_away:
            raise
        reading_failed(connection, error)
        if not (issubclass(type(error), Exception) or connection.loop.in_worker()):
            raise
    finally:
        connection.read_is_due = False


def _has_ended(connection: Connection) -> None:
    connection.has_eof = True


def reading_failed(connection: Connection, error: BaseException) -> None:
    """Nothing more can be read: the connection ends. If it ends already it goes on writing, unless
    it is reset.
    """
    cause, reason = connection.transport.explain(error, "recv")
    connection.has_eof = True
    connection.end(cause, reason, at_once=cause == Cause.OS_ERROR)


def take_in(connection: Connection, data: bytes) -> None:
    """What was read, on its way to the decoder. When the connection ends nobody wants it."""
    is_stream = connection.transport.is_stream
    if connection.error is not None and not connection.seeks_close:
        return
    if connection.first_bytes is not None and not is_stream and is_second_header(connection, data):
        return
    if connection.session is not None:
        connection.ciphertext.append(data)
    else:
        connection.decoder.feed(data)


def end_of_input(connection: Connection) -> None:
    """The peer will send no more, and everything it sent was delivered."""
    connection.told_eof = True
    if connection.session is not None and not ended_in_order(connection, connection.session):
        return
    if connection.websocket is not None:
        connection.end(Cause.PEER_CLOSED, WebSocketClosed())
    elif connection.decoder.is_partial():
        connection.end(Cause.INCOMPLETE_FRAME)
    elif connection.loop.callbacks.on_eof is not None:
        callbacks.call(connection, "on_eof", connection.loop.callbacks.on_eof, connection.socket)
    else:
        connection.end(Cause.PEER_CLOSED)


def ended_in_order(connection: Connection, session: TlsSession) -> bool:
    """Whether TLS says so. Otherwise, and in the middle of a handshake, the connection ends."""
    if session.failure is not None:
        connection.end(Cause.TLS_ERROR, session.failure)
    elif not session.is_ended or connection.shaking:
        connection.end(Cause.TRUNCATED)
    return connection.error is None


def check_hangup(connection: Connection) -> None:
    """Ask for the error that reading meets, unless a pause or the end of input keeps it from
    reading. A reset ends any pause.

    The peer of a Unix socket hangs up in an orderly end, and there is no error then: what it sent
    is read first.
    """
    code = connection.transport.pending_error()
    if code:
        connection.fail(code)


def discard(connection: Connection) -> None:
    """Read and drop what the peer still sends. Its own writes must not get stuck, or it would not
    come to read ours.
    """
    sift(connection)
    budget = connection.loop.config.read_budget
    while connection.readable and not (
        connection.has_eof or connection.read_is_due or connection.at_once
    ):
        if budget <= 0:
            connection.post(mailbox.AGAIN)
            return
        budget -= read(connection)
        sift(connection)


def sift(connection: Connection) -> None:
    """Drop what came in and was not delivered; of a WebSocket, note a CLOSE in there."""
    if connection.websocket is None or not connection.seeks_close:
        drop(connection)
        return
    connection.next_message = None
    tls.decrypt(connection)
    connection.websocket.look_for_close()


def drop(connection: Connection) -> None:
    """Drop what came in and was not delivered."""
    connection.next_message = None
    connection.decoder = ChunkDecoder()
    connection.tally.bytes_received += total(connection.received)
    connection.received.clear()
    connection.ciphertext.clear()
    connection.plaintext.clear()
