"""The `HydrogenSocket` that handlers hold: a token, and where to look it up. It keeps nothing of
the connection alive.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from hydrogen._py import mailbox
from hydrogen._py.connection import Connection
from hydrogen.codec import encode
from hydrogen.connection import (
    BytesLike,
    HydrogenSocket,
    check_timeout,
    extra_info,
    message_of,
    shown,
)
from hydrogen.errors import Cause
from hydrogen.websocket import check_ping, closing_of

if TYPE_CHECKING:
    from hydrogen._py.control import WebSocketState
    from hydrogen.config import Config
    from hydrogen.server import Server


class Directory(Protocol):
    """What a `Socket` needs of its engine."""

    server: Server
    config: Config

    def find(self, token: int) -> Connection | None:
        """The connection of `token`; None when it is gone, and in a forked child."""

    def refused(self) -> None:
        """See `output.OutputLoop`."""


class Socket(HydrogenSocket):
    """A `HydrogenSocket` of the Python engine, which has its docstrings, too.

    Each method looks the connection up, and says what that class promises when it is gone.
    """

    __slots__ = ("_engine", "_id", "token")

    def __init__(self, engine: Directory, token: int, number: int) -> None:
        self._engine = engine
        self.token = token
        self._id = number

    def _find(self) -> Connection | None:
        return self._engine.find(self.token)

    def send(self, data: BytesLike | str) -> bool:
        # checked whether or not there is a connection
        payload = message_of(data, self._engine.config.websocket)
        connection = self._find()
        if connection is None or connection.awaits_head:
            encode(None, payload)  # raises for what is no text
            self._engine.refused()
            return False
        return connection.send(connection.encode(payload))

    def drain(self, timeout: float | None = None) -> bool:
        seconds = check_timeout("timeout", timeout)
        connection = self._find()
        return connection is not None and connection.drain(seconds)

    def close(self, code: int | None = None, reason: str = "") -> None:
        error = None
        if code is not None or reason != "":
            error = closing_of(self._engine.config.websocket, code, reason)
        connection = self._find()
        if connection is not None:
            connection.end(Cause.LOCAL_CLOSED, error)

    def ping(self, data: BytesLike = b"") -> bool:
        payload = check_ping(self._engine.config.websocket, data)
        websocket = self._websocket()
        return websocket is not None and websocket.ping(payload)

    def abort(self) -> None:
        connection = self._find()
        if connection is not None:
            connection.end(Cause.LOCAL_CLOSED, at_once=True)

    def pause_reading(self) -> None:
        connection = self._find()
        if connection is not None:
            connection.is_paused = True  # the owner looks before every message

    def resume_reading(self) -> None:
        # Without memory to look the connection up there is none to do something about it either, so
        # this waits and does not fail, as on the compiled engine.
        while True:
            try:
                connection = self._find()
                break
            except MemoryError:
                time.sleep(mailbox.SHORTAGE)
        if connection is not None and connection.is_paused:
            connection.is_paused = False
            connection.post(mailbox.RESUME)  # the edge that told of waiting input is gone

    @property
    def pending(self) -> int:
        connection = self._find()
        return 0 if connection is None else connection.tell_pending()

    @property
    def is_open(self) -> bool:
        connection = self._find()
        return connection is not None and connection.error is None

    @property
    def id(self) -> int:
        return self._id  # from 1, in the order of accepting

    @property
    def user_data(self) -> Any:
        connection = self._find()
        return None if connection is None else connection.user_data

    @user_data.setter
    def user_data(self, value: Any) -> None:
        connection = self._find()
        if connection is not None:
            connection.user_data = value

    @property
    def path(self) -> str | None:
        websocket = self._websocket()
        return None if websocket is None else websocket.path

    @property
    def subprotocol(self) -> str | None:
        websocket = self._websocket()
        return None if websocket is None else websocket.subprotocol

    @property
    def latency(self) -> float | None:
        websocket = self._websocket()
        return None if websocket is None else websocket.latency

    def _websocket(self) -> WebSocketState | None:
        connection = self._find()
        return None if connection is None else connection.websocket

    @property
    def server(self) -> Server:
        return self._engine.server

    @property
    def peername(self) -> Any:
        # As accept(2) gave it, or the proxy's header.
        connection = self._find()
        return None if connection is None else connection.peername

    @property
    def sockname(self) -> Any:
        # As getsockname(2) gave it at the start.
        connection = self._find()
        return None if connection is None else connection.sockname

    def fileno(self) -> int:
        connection = self._find()
        return -1 if connection is None else connection.fd

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        connection = self._find()
        if connection is None:
            return default
        return extra_info(self, connection.session, connection.proxy, name, default)

    def __eq__(self, other: object) -> bool:
        """Whether both are of one connection."""
        if not isinstance(other, Socket):
            return NotImplemented
        return self._id == other._id and self._engine is other._engine

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return shown(self)
