"""The way into the handler's callbacks, by the owner of a connection."""

from __future__ import annotations

import math
from collections.abc import Callable

from hydrogen._py.connection import Connection
from hydrogen.errors import Cause, handler_error
from hydrogen.tls import TlsSession


def connected(connection: Connection) -> None:
    """Ready for use: messages may come and go."""
    connection.ready = True
    connection.deadline = math.inf
    if connection.loop.is_verbose and connection.session is not None:
        tell_of_handshake(connection, connection.session)
    if connection.loop.callbacks.on_connected is not None and connection.error is None:
        call(connection, "on_connected", connection.loop.callbacks.on_connected, connection.socket)


def call(connection: Connection, name: str, callback: Callable[..., None], *arguments: object) -> None:
    """Run a callback; what it raises ends the connection, if it has not ended."""
    count_progress(connection)
    try:
        callback(*arguments)
    except BaseException as error:
        connection.loop.complain(name, error)
        connection.end(Cause.HANDLER_ERROR, handler_error(error))
    leave_if_forked(connection)


def count_progress(connection: Connection) -> None:
    """The worker is about to run another callback."""
    assert connection.runner is not None
    connection.runner.progress += 1


def tell_of_handshake(connection: Connection, session: TlsSession) -> None:
    with session.lock:
        cipher = session.info("cipher")
    connection.loop.log.shaken(connection.socket.id, cipher)


def leave_if_forked(connection: Connection) -> None:
    """If code of the user's has forked and this is the child: the connection is the parent's, and this thread no worker any more."""
    if connection.loop.forked_away:
        raise SystemExit
