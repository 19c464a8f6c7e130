"""TLS of one connection, by its owner, in the role of its output: a session is used by one thread
at a time.
"""

from __future__ import annotations

from hydrogen._py import mailbox
from hydrogen._py.connection import Connection
from hydrogen.tls import TlsSession


def secure(connection: Connection, session: TlsSession) -> None:
    """Speak TLS from now on. A stream may have done the handshake, or part of it."""
    connection.session = session
    connection.shaking = not session.is_ready
    connection.input_ended |= session.is_ended or session.failure is not None
    # a handshake is begun, and what a stream has left to send goes out
    connection.ciphertext.append(b"")
    decrypt(connection)


def decrypt(connection: Connection) -> bool:
    """Take what was read through the session into the decoder.

    False when somebody is at the output: he decrypts it, and AGAIN will be posted. But not during
    the handshake, when OpenSSL may call code of the user's: then it is tried again.
    """
    session = connection.session
    if session is None:
        return True
    if connection.ciphertext and not connection.in_role(
        lambda: _decrypt(connection, session), mailbox.AGAIN, by_anybody=session.is_ready
    ):
        return False
    # before the last plaintext is taken
    has_ended = session.is_ended or session.failure is not None
    connection.shaking = not session.is_ready
    while connection.plaintext:
        connection.decoder.feed(connection.plaintext.popleft())
    connection.input_ended |= has_ended
    return connection.error is None


def _decrypt(connection: Connection, session: TlsSession) -> None:
    """In the role: by the owner, or in his stead. What is in work is in `ciphertext` until it is in
    `plaintext`.

    An alert waits until the end: written now it might meet a reset, which ends the connection at
    once, before the messages that came ahead of the failure are delivered.
    """
    try:
        while connection.ciphertext and not connection.at_once:
            data = connection.ciphertext[0]
            if session.failure is None and not session.is_ended:
                plaintext = session.receive(data)
                if plaintext:
                    connection.plaintext.append(plaintext)
            if session.failure is None:  # else an alert, which `TlsSession.close` gives out last
                connection.append(session.take())
            connection.ciphertext.popleft()
    except IndexError:  # the owner has dropped it: the connection ends
        return
    except BaseException as error:  # a callback of the user's context, want of memory, or Ctrl-C
        cause, reason = connection.transport.explain(error, "recv")
        connection.end(cause, reason, at_once=True)
        if not (issubclass(type(error), Exception) or connection.loop.in_worker()):
            raise
