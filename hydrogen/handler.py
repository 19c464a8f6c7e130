"""`Handler`: the callbacks that a user writes, what each may rely on, and how they are checked
before a server starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hydrogen.errors import described

if TYPE_CHECKING:
    from hydrogen.connection import HydrogenSocket
    from hydrogen.handshake import Accept
    from hydrogen.http import Request, Response
    from hydrogen.server import Server
    from hydrogen.stream import Stream


class Handler:
    """Your side of a server: subclass it and override `on_data_received`; the rest is optional.

    One instance serves all connections, from several threads at once. Callbacks of one connection
    run one at a time and in order. Keep the state of a connection in `socket.user_data`, and
    objects bound to a thread, such as those of sqlite3, in `threading.local`.

    A callback may block: it delays only its own connection. It may raise: the exception is logged
    with its traceback, and that connection is removed with a `HandlerError` whose `__cause__` is
    the exception (exceptions from `on_disconnected` and `on_connection_removed` are only logged).

    Attributes:
        server: set before the first callback.
    """

    server: Server

    def on_server_created(self, fd: int) -> None:
        """The listening socket is bound, but does not listen yet.

        If this raises, the start fails with that exception.
        """

    def on_new_connection(self, fd: int) -> Stream | None:
        """A connection was accepted; nothing has been read yet.

        Return None to use the server's own stream, with `framing`; or a `Stream`, which takes over
        `fd`. Raise `hydrogen.Reject` to refuse the connection quietly.
        """
        return None

    def on_connected(self, socket: HydrogenSocket) -> None:
        """The connection is ready for use: send a greeting, set `user_data`."""

    def on_data_received(self, socket: HydrogenSocket, data: bytes) -> None:
        """One complete message or, without framing, one chunk as read. You must override this
        one.
        """

    def on_eof(self, socket: HydrogenSocket) -> None:
        """The peer will send no more.

        By default this closes the connection once its output is flushed. If you override it, you
        must close the connection yourself.
        """
        socket.close()

    def on_writable(self, socket: HydrogenSocket) -> None:
        """Pending output fell below the low watermark, after it was above the high one."""

    def on_disconnected(self, socket: HydrogenSocket, err: Exception) -> None:
        """The connection has ended; `user_data` and the addresses are still available.

        Called for each connection for which `on_connected` was called, or would have been.
        """

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        """The last callback, exactly once for each accepted connection.

        The number `fd` is not reused before this returns.
        """


class WebSocketHandler(Handler):
    """Your side of a WebSocket server: subclass it and override `on_message`; the rest is optional.

    What `Handler` promises holds here, too. `on_data_received` and `on_eof` are not called:
    messages come to `on_message`, and a connection ends with a CLOSE. `hydrogen.Close`, raised in
    any callback but `on_request`, closes the connection with a code of yours; nothing is logged.
    """

    def on_request(self, socket: HydrogenSocket, request: Request) -> Accept | Response | None:
        """The head of a request has come; nothing was answered yet.

        A request to speak WebSocket has been checked, and its origin; others come here, too, such
        as those of a health check. Nothing can be sent: `socket.send` returns False.

        Returns:
            None: accept it as `WebSocket` says; what is no request to speak WebSocket is answered
            with 426. An `Accept`: the same, with a subprotocol or header fields of your choice. A
            `Response`: that is the answer, and the connection is closed.
        Raises:
            Reject: it is answered with 403; nothing is logged. Anything else: with 500.
        """
        return None

    def on_message(self, socket: HydrogenSocket, data: str | bytes) -> None:
        """One message: a str when it was sent as text, bytes otherwise. You must override this
        one.
        """

    def on_pong(self, socket: HydrogenSocket, data: bytes) -> None:
        """The client has answered a ping that carried `data`, or has sent a pong by itself."""


@dataclass(frozen=True)
class Callbacks:
    """The bound methods of a handler, None for each that is not overridden, so that an engine can
    do without Python. `on_message` of a `WebSocketHandler` is `on_data_received` here.
    """

    on_data_received: Callable[[HydrogenSocket, Any], None]
    on_new_connection: Callable[[int], Stream | None] | None
    on_connected: Callable[[HydrogenSocket], None] | None
    on_eof: Callable[[HydrogenSocket], None] | None
    on_writable: Callable[[HydrogenSocket], None] | None
    on_disconnected: Callable[[HydrogenSocket, Exception], None] | None
    on_connection_removed: Callable[[int, Exception], None] | None
    on_request: Callable[[HydrogenSocket, Request], Accept | Response | None] | None
    on_pong: Callable[[HydrogenSocket, bytes], None] | None
    received: str = "on_data_received"
    """The name of the callback that gets messages."""


def _is_inherited(handler: Handler, name: str) -> bool:
    """Whether the method of that name is one of the classes here."""
    function = getattr(getattr(handler, name), "__func__", None)
    return function is not None and function is getattr(WebSocketHandler, name, None)


def callbacks_of(handler: Handler) -> Callbacks:
    """The callbacks that `handler` overrides.

    Raises:
        TypeError: a class instead of an instance, something that is no `Handler`, a missing
            `on_data_received` (of a `WebSocketHandler`: `on_message`), an `async def` callback, or
            an `on_...` name that does not exist.
    """
    if isinstance(handler, type):
        raise TypeError(f"handler: expected an instance, not the class {handler.__name__}")
    if not isinstance(handler, Handler):
        raise TypeError(f"handler: expected a hydrogen.Handler, not {described(handler)}")
    received, known = _names(handler)
    found: dict[str, Any] = {}
    for name in dir(handler):
        if not name.startswith("on_") or _is_inherited(handler, name):
            continue
        method = found[name] = getattr(handler, name)
        if name not in known:
            raise TypeError(
                f"handler: {type(handler).__name__}.{name} is not a callback; the callbacks are "
                f"{', '.join(sorted(known))}"
            )
        if not callable(method):
            raise TypeError(f"handler: {type(handler).__name__}.{name} is not callable")
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise TypeError(
                f"handler: {type(handler).__name__}.{name} is `async def`; callbacks are ordinary "
                "functions that may block"
            )
    if received not in found:
        raise TypeError(f"handler: {type(handler).__name__} has no {received}")
    found["on_data_received"] = found.pop(received)
    names = [field.name for field in fields(Callbacks) if field.name != "received"]
    methods: dict[str, Any] = {name: found.get(name) for name in names}
    return Callbacks(**methods, received=received)


def _names(handler: Handler) -> tuple[str, set[str]]:
    """Of the callback that gets messages, and of all."""
    every = {name for name in vars(Handler) if name.startswith("on_")}
    if not isinstance(handler, WebSocketHandler):
        return "on_data_received", every
    own = {name for name in vars(WebSocketHandler) if name.startswith("on_")}
    return "on_message", every - {"on_data_received", "on_eof"} | own
