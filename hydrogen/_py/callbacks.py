"""The one way into code of the user's that handles a connection, by its owner.

It runs in a context of its own (`contextvars`), so that what one callback sets no other one sees.
What it raises, of whatever class, is a fault of that code: logged, and the connection ends with it
as the `__cause__` of a `HandlerError`.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable
from typing import Any

from hydrogen._py.connection import Connection
from hydrogen.errors import Cause, Reject, cut_traceback, handler_error
from hydrogen.http import Response
from hydrogen.websocket import Close, closed_by


def call(
    connection: Connection, name: str, callback: Callable[..., Any] | None, *arguments: object
) -> Any:
    """Run the callback `name`, None if the handler has none, and return what it returns; None also
    when it raised.
    """
    if callback is None:
        return None
    runner = connection.runner
    assert runner is not None
    result = None
    try:
        with runner.calling:
            result = contextvars.Context().run(callback, *arguments)
    except BaseException as error:
        connection.loop.leave_if_forked()  # before anything that takes a lock
        if not _asks_for_end(connection, name, error):
            failed(connection, name, error)
    connection.loop.leave_if_forked()
    return result


def _asks_for_end(connection: Connection, name: str, error: BaseException) -> bool:
    """Whether `error` is a way to say that the connection is to end, and how; then it does."""
    kind = type(error)
    if issubclass(kind, Reject) and name in ("on_new_connection", "on_request"):
        cut_traceback(error)
        if name == "on_request":
            _respond(connection, 403)
        connection.end(Cause.REJECT, error, at_once=name == "on_new_connection")  # type: ignore[arg-type]
        return True
    if issubclass(kind, Close) and connection.websocket is not None:
        closed = closed_by(error)  # type: ignore[arg-type]
        if closed is not None:
            connection.end(Cause.LOCAL_CLOSED, closed)
            return True
    return False


def _respond(connection: Connection, status: int) -> None:
    connection.respond(status, Response(status).to_bytes())


def failed(connection: Connection, name: str, error: BaseException) -> None:
    """The connection ends because of what the callback `name` raised, or asked for."""
    connection.loop.complain(name, error, connection)
    if name == "on_request":
        _respond(connection, 500)
    connection.end(Cause.HANDLER_ERROR, handler_error(error))


def connected(connection: Connection) -> None:
    """Ready for use: messages may come and go. If it ends already nobody hears of it, now or in the
    end.
    """
    connection.deadline = math.inf
    if connection.loop.is_verbose and connection.session is not None:
        connection.loop.log.shaken(connection.socket.id, connection.session.info("cipher"))
    if connection.error is None:
        connection.ready = True
        call(connection, "on_connected", connection.loop.callbacks.on_connected, connection.socket)
