"""`Handler`: the callbacks that a user writes, what each may rely on, and how they are checked before a server starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from hydrogen.errors import described

if TYPE_CHECKING:
    from hydrogen.connection import HydrogenSocket
    from hydrogen.server import Server
    from hydrogen.stream import Stream


class Handler:
    """The user's side of a server: subclass it and write `on_data_received`; all other callbacks are optional.

    One instance serves all connections, from several threads at once; per connection callbacks run one at a time and in order. State of a
    connection belongs in `socket.user_data`; objects bound to a thread, such as sqlite3's, in `threading.local`. A callback may block: it
    delays its own connection. It may raise: the exception is logged with its traceback, and that connection is removed with a
    `HandlerError` whose `__cause__` it is (from `on_disconnected` and `on_connection_removed` it is only logged).

    Attributes:
        server: set before the first callback.
    """

    server: Server

    def on_server_created(self, fd: int) -> None:
        """The listening socket exists and is bound; before `listen(2)`. If it raises, the start fails with that."""

    def on_new_connection(self, fd: int) -> Stream | None:
        """A connection was accepted. None: the server's own stream for `framing`. A `Stream` of the user's takes over `fd`.

        Raise `hydrogen.Reject` to refuse it quietly.
        """
        return None

    def on_connected(self, socket: HydrogenSocket) -> None:
        """Ready for use: greet, set `user_data`."""

    def on_data_received(self, socket: HydrogenSocket, data: bytes) -> None:
        """One complete message, or, without framing, one chunk as read. To be written by the user."""

    def on_eof(self, socket: HydrogenSocket) -> None:
        """The peer will send no more. By default the connection closes once output is flushed; who overrides this closes himself."""
        socket.close()

    def on_writable(self, socket: HydrogenSocket) -> None:
        """Pending output fell below the low watermark after it had been above the high one."""

    def on_disconnected(self, socket: HydrogenSocket, err: Exception) -> None:
        """For each connection that `on_connected` saw or would have seen; `user_data` and names are still there."""

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        """Last; exactly once for each accepted connection. The number `fd` is not used again before this returns."""


@dataclass(frozen=True)
class Callbacks:
    """The bound methods of a handler, None for each that is not overridden, so that an engine can do without Python."""

    on_data_received: Callable[[HydrogenSocket, bytes], None]
    on_new_connection: Callable[[int], Stream | None] | None
    on_connected: Callable[[HydrogenSocket], None] | None
    on_eof: Callable[[HydrogenSocket], None] | None
    on_writable: Callable[[HydrogenSocket], None] | None
    on_disconnected: Callable[[HydrogenSocket, Exception], None] | None
    on_connection_removed: Callable[[int, Exception], None] | None


def _overridden(handler: Handler, name: str) -> Any:
    method = getattr(handler, name)
    return None if getattr(method, "__func__", None) is getattr(Handler, name) else method


def callbacks_of(handler: Handler) -> Callbacks:
    """The callbacks that `handler` overrides.

    Raises:
        TypeError: a class instead of an instance, something that is no `Handler`, a missing `on_data_received`, an `async def` callback, or
            an `on_...` name that does not exist.
    """
    if isinstance(handler, type):
        raise TypeError(f"handler: an instance is expected, not the class {handler.__name__}")
    if not isinstance(handler, Handler):
        raise TypeError(f"handler: a hydrogen.Handler is expected, not {described(handler)}")
    known = {name for name in vars(Handler) if name.startswith("on_")}
    for name in dir(handler):
        if not name.startswith("on_"):
            continue
        method = getattr(handler, name)
        if name not in known:
            raise TypeError(f"handler: {type(handler).__name__}.{name} is not a callback; there are {', '.join(sorted(known))}")
        if not callable(method):
            raise TypeError(f"handler: {type(handler).__name__}.{name} is not callable")
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise TypeError(f"handler: {type(handler).__name__}.{name} is `async def`; callbacks are ordinary functions that may block")
    if _overridden(handler, "on_data_received") is None:
        raise TypeError(f"handler: {type(handler).__name__} has no on_data_received")
    return Callbacks(**{field.name: _overridden(handler, field.name) for field in fields(Callbacks)})
