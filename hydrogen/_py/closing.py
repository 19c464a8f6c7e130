"""The end of a connection, by its owner, from the moment that `Output.end` was called."""

from __future__ import annotations

import math
import time

from hydrogen._py import callbacks, input
from hydrogen._py.connection import Connection
from hydrogen.errors import Cause

LINGER = 2.0
"""Seconds that input is discarded after our FIN: closing with unread input resets the peer, and the
tail of the reply is lost.
"""


def wind_up(connection: Connection) -> bool:
    """One step further towards the end; True when the connection is gone."""
    if not connection.ended_output:
        connection.deadline = math.inf
    if not connection.at_once:
        input.discard(connection)
    if connection.at_once:
        return remove(connection)
    if not connection.ended_output:
        if not connection.end_messages():
            return False
        if connection.websocket is not None and connection.websocket.awaits_close():
            return False
        if not connection.end_session():
            return False
        connection.ended_output = True
        connection.lingers = connection.transport.end_output()
        connection.deadline = time.monotonic() + LINGER
    # What cannot end one direction only is closed when nothing is left to read: that would reset
    # the peer, too.
    is_over = connection.has_eof or not (
        connection.lingers or connection.readable or connection.read_is_due
    )
    return (is_over or time.monotonic() >= connection.deadline) and remove(connection)


def remove(connection: Connection) -> bool:
    """The end itself; False when it must wait for who is at the output.

    It may be left at any point by an exception (want of memory, or an asynchronous one) and is
    entered again then: a part that raised is done again, but for those that call the handler.
    """
    if not connection.seal():
        if connection.at_once and connection.transport.is_stream and not connection.is_cut_off:
            # once: each time brings about an edge, and so another step
            connection.is_cut_off = True
            connection.transport.cut_off()
        return False
    while connection.removed < len(_PARTS):
        at = connection.removed
        _PARTS[at](connection)
        connection.loop.leave_if_forked()
        connection.removed = at + 1  # an index: to shorten a list takes memory
    return True


def _cut(connection: Connection) -> None:
    connection.loop.poller.remove(connection.transport.poll_fd)
    if connection.at_once:
        connection.transport.reset(connection.loop.placeholder)
    else:
        connection.transport.shutdown()


def _drop(connection: Connection) -> None:
    input.drop(connection)
    connection.account_input()


def _count(connection: Connection) -> None:
    connection.loop.removing(connection)


def _log(connection: Connection) -> None:
    connection.loop.tell_removed(connection)


def _tell_disconnected(connection: Connection) -> None:
    _done(connection)
    if connection.ready:
        handler = connection.loop.callbacks
        callbacks.call(
            connection,
            "on_disconnected",
            handler.on_disconnected,
            connection.socket,
            connection.error,
        )


def _done(connection: Connection) -> None:
    """The part of the removal that is about to run does not run again."""
    connection.removed += 1


def _tell_removed(connection: Connection) -> None:
    _done(connection)
    if connection.cause != Cause.OVERLOAD:
        handler = connection.loop.callbacks
        callbacks.call(
            connection,
            "on_connection_removed",
            handler.on_connection_removed,
            connection.fd,
            connection.error,
        )


def _close(connection: Connection) -> None:
    connection.user_data = connection.websocket = None
    connection.transport.close()


def _gone(connection: Connection) -> None:
    connection.loop.gone(connection)


_PARTS = (_cut, _drop, _count, _log, _tell_disconnected, _tell_removed, _close, _gone)
"""Of a removal, in their order."""
