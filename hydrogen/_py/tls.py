"""TLS of one connection, by its owner: ciphertext that came in, the handshake, and close_notify."""

from __future__ import annotations

from hydrogen._py.connection import Connection
from hydrogen._py.output import Work
from hydrogen.tls import TlsSession


def secure(connection: Connection, session: TlsSession) -> None:
    """Speak TLS from now on. A stream may have done the handshake, or part of it."""
    connection.session = session
    with session.lock:
        if not session.is_ready:
            session.start()
        work = look_at_session_locked(connection, session)
    connection.carry_out(work)


def decrypt(connection: Connection, session: TlsSession, data: bytes) -> bytes:
    with session.lock:
        plaintext = session.receive(data)
        work = look_at_session_locked(connection, session)
    connection.carry_out(work)
    return plaintext


def look_at_session_locked(connection: Connection, session: TlsSession) -> Work:
    """After each use by the owner, who holds its lock: where it stands, and what it has to send."""
    connection.shaking = not session.is_ready
    connection.input_ended |= session.is_ended or session.failure is not None
    return connection.append(session.take())


def send_close_notify(connection: Connection, session: TlsSession) -> None:
    """Queue close_notify: no message follows, for `error` is set."""
    connection.said_close_notify = True
    with session.lock:
        work = connection.append(session.close())
    connection.carry_out(work)
