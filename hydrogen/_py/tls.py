"""TLS of one connection, by its owner, in the role of its output: a session is used by one thread at a time."""

from __future__ import annotations

from hydrogen._py import mailbox
from hydrogen._py.connection import Connection
from hydrogen.tls import TlsSession


def secure(connection: Connection, session: TlsSession) -> None:
    """Speak TLS from now on. A stream may have done the handshake, or part of it."""
    connection.session = session
    connection.shaking = not session.is_ready
    connection.input_ended |= session.is_ended or session.failure is not None
    connection.ciphertext.append(b"")  # a handshake is begun, and what a stream has left to send goes out
    decrypt(connection)


def decrypt(connection: Connection) -> bool:
    """Take what was read through the session into the decoder; False when somebody is at the output, then AGAIN will be posted."""
    try:
        return connection.in_role(lambda: _decrypt(connection), mailbox.AGAIN)
    except Exception as error:  # a callback of the user's context, or want of memory
        cause, reason = connection.transport.explain(error, "recv")
        connection.end(cause, reason, at_once=True)
        return False


def _decrypt(connection: Connection) -> None:
    session = connection.session
    assert session is not None
    while connection.ciphertext:
        data = connection.ciphertext.popleft()
        if session.failure is None and not session.is_ended:
            plaintext = session.receive(data)
            if plaintext:
                connection.decoder.feed(plaintext)
        connection.append(session.take())
    connection.shaking = not session.is_ready
    connection.input_ended |= session.is_ended or session.failure is not None
