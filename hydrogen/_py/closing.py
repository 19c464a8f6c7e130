"""The end of a connection, by its owner, from the moment that `Output.end` has set `error`."""

from __future__ import annotations

import math
import time

from hydrogen._py import callbacks, input, tls
from hydrogen._py.connection import Connection
from hydrogen._py.framing import ChunkDecoder
from hydrogen.errors import Cause

LINGER = 2.0
"""Seconds that input is discarded after our FIN: closing with unread input resets the peer, and the tail of the reply is lost."""


def wind_up(connection: Connection) -> bool:
    """One step further towards the end; True when the connection is gone."""
    if not connection.ended_output:
        connection.deadline = math.inf
    if not connection.at_once:
        input.discard(connection)
    if connection.at_once:
        return remove(connection)
    if not connection.is_flushed():
        return False
    if connection.session is not None and not connection.said_close_notify:
        tls.send_close_notify(connection, connection.session)
        if not connection.is_flushed():
            return False
    if not connection.ended_output:
        connection.ended_output = True
        if connection.transport.end_output() and not connection.has_eof:
            connection.deadline = time.monotonic() + LINGER
            return False
        return remove(connection)
    return (connection.has_eof or time.monotonic() >= connection.deadline) and remove(connection)


def remove(connection: Connection) -> bool:
    """The end itself; False when it must wait for a flusher."""
    if not connection.seal():
        return False
    assert connection.error is not None
    handler = connection.loop.callbacks
    connection.loop.poller.remove(connection.transport.poll_fd)
    if connection.at_once:
        connection.transport.reset(connection.loop.placeholder)
    else:
        connection.transport.shutdown()
    connection.decoder = ChunkDecoder()
    connection.account_input()
    connection.loop.removing(connection)
    if handler.on_disconnected is not None and connection.ready:
        callbacks.call(connection, "on_disconnected", handler.on_disconnected, connection.socket, connection.error)
    if handler.on_connection_removed is not None and connection.cause != Cause.OVERLOAD:
        callbacks.call(connection, "on_connection_removed", handler.on_connection_removed, connection.fd, connection.error)
    connection.user_data = None
    connection.transport.close()
    connection.loop.gone(connection)
    return True
