"""Reading, splitting and delivering, by the owner of a connection."""

from __future__ import annotations

import math
import time

from hydrogen._py import callbacks, mailbox, tls
from hydrogen._py.connection import Connection
from hydrogen._py.framing import ChunkDecoder, explain
from hydrogen._py.streams import CHUNK
from hydrogen.errors import Cause, ProtocolError
from hydrogen.proxy import V2_SIGNATURE, begins_header
from hydrogen.tls import TlsSession

MESSAGE_BUDGET = 256
"""Messages delivered in one step before the others come."""


def is_second_header(connection: Connection, data: bytes) -> bool:
    """Whether `data`, with the first bytes before it, begins another PROXY header, of a client who would be another: it ends."""
    if connection.first_bytes is None:
        return False
    first_bytes = connection.first_bytes + data[: len(V2_SIGNATURE)]
    connection.first_bytes = first_bytes if len(first_bytes) < len(V2_SIGNATURE) else None
    if begins_header(first_bytes):
        connection.end(Cause.BAD_FRAME, ProtocolError("a second PROXY header"))
        return True
    return False


def serve_input(connection: Connection) -> None:
    """Deliver what is complete, then read, in turn, until nothing is left, a pause, or the budget is used up."""
    messages, budget = MESSAGE_BUDGET, connection.loop.config.read_budget
    while connection.error is None and connection.header is None and not connection.is_paused and not connection.is_held_back:
        if not messages or budget <= 0:
            connection.post(mailbox.AGAIN)
            return
        message = next_message(connection)
        if message is not None:
            messages -= 1
            connection.deadline = math.inf
            connection.tally.messages_received += 1
            callbacks.call(connection, "on_data_received", connection.loop.callbacks.on_data_received, connection.socket, message)
        elif connection.input_ended and not connection.told_eof:
            end_of_input(connection)
        elif connection.readable and not connection.input_ended and not connection.loop.memory.must_wait(connection.token):
            budget -= read(connection)
        else:
            break
    if connection.hung_up and connection.error is None:
        check_hangup(connection)


def next_message(connection: Connection) -> bytes | None:
    """What the decoder has; None also when it raises, then the connection ends."""
    try:
        message = connection.decoder.next()
    except BaseException as error:
        message = None
        cause, reason = explain(connection.builder, error, connection.loop.complain)
        connection.end(cause, reason, at_once=cause == Cause.OS_ERROR)
    callbacks.leave_if_forked(connection)
    return message if connection.error is None else None


def read(connection: Connection) -> int:
    """Read once, into the decoder; returns how many bytes came."""
    chunks = receive(connection, CHUNK)
    try:
        for chunk in chunks:
            take_in(connection, chunk)
    except BaseException as error:
        reading_failed(connection, error)
    if connection.error is None and not connection.ready and not connection.shaking:
        callbacks.connected(connection)
    return sum(map(len, chunks))


def receive(connection: Connection, most: int) -> list[bytes]:
    """What came, of a socket at most so many bytes; `[]` also at the end, or when reading fails."""
    chunks: list[bytes] = []
    try:
        chunks = connection.transport.receive(most)
    except EOFError:
        # A flusher may have met a reset first: the kernel tells of it once, and to us it looks like an orderly end.
        connection.has_eof = not connection.waits_for_flusher(mailbox.READABLE)
        connection.input_ended |= connection.has_eof
    except BaseException as error:
        reading_failed(connection, error)
    connection.readable = bool(chunks)
    if chunks:
        connection.last_byte = time.monotonic()
        connection.tally.bytes_received += sum(map(len, chunks))  # before TLS answers: who gets an answer may look here
    callbacks.leave_if_forked(connection)
    return chunks


def reading_failed(connection: Connection, error: BaseException) -> None:
    cause, reason = connection.transport.explain(error, "recv")
    connection.end(cause, reason, at_once=cause == Cause.OS_ERROR)


def take_in(connection: Connection, data: bytes) -> None:
    """What was read, on its way to the decoder. When the connection ends nobody wants it."""
    if connection.error is not None or (
        connection.first_bytes is not None and not connection.transport.is_stream and is_second_header(connection, data)
    ):
        return
    if connection.session is not None:
        data = tls.decrypt(connection, connection.session, data)
    if data or connection.transport.is_stream:  # whose messages may be empty
        connection.decoder.feed(data)


def end_of_input(connection: Connection) -> None:
    """The peer will send no more, and everything it sent was delivered."""
    connection.told_eof = True
    if connection.session is not None and not ended_in_order(connection, connection.session):
        return
    if connection.decoder.is_partial():
        connection.end(Cause.INCOMPLETE_FRAME)
    elif connection.loop.callbacks.on_eof is not None:
        callbacks.call(connection, "on_eof", connection.loop.callbacks.on_eof, connection.socket)
    else:
        connection.end(Cause.PEER_CLOSED)


def ended_in_order(connection: Connection, session: TlsSession) -> bool:
    """Whether TLS says so. Otherwise, and in the middle of a handshake, the connection ends."""
    with session.lock:
        failure, in_order = session.failure, session.is_ended
    if failure is not None:
        connection.end(Cause.TLS_ERROR, failure)
    elif not in_order or connection.shaking:
        connection.end(Cause.TRUNCATED)
    return connection.error is None


def check_hangup(connection: Connection) -> None:
    """Ask for the error that reading meets, unless a pause or the end of input keeps it from reading. A reset ends any pause."""
    code = connection.transport.pending_error()
    if code:
        connection.fail(code)


def discard(connection: Connection) -> None:
    """Read and drop what the peer still sends. Its own writes must not get stuck, or it would not come to read ours."""
    connection.decoder = ChunkDecoder()
    if connection.transport.is_stream:
        return
    budget = connection.loop.config.read_budget
    while connection.readable and not connection.has_eof:
        if budget <= 0:
            connection.post(mailbox.AGAIN)
            return
        budget -= read(connection)
