"""The `HydrogenSocket` that handlers hold: a token, and where to look it up. It keeps nothing of the connection alive."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from hydrogen._py import mailbox
from hydrogen._py.connection import Connection
from hydrogen.config import Config
from hydrogen.connection import BytesLike, HydrogenSocket, check_timeout, contiguous, extra_info
from hydrogen.errors import Cause
from hydrogen.frame import encode

if TYPE_CHECKING:
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
    """See `HydrogenSocket`; each method looks the connection up, and says what that class promises when it is gone."""

    __slots__ = ("_engine", "_id", "token")

    def __init__(self, engine: Directory, token: int, number: int) -> None:
        self._engine = engine
        self.token = token
        self._id = number

    def _find(self) -> Connection | None:
        return self._engine.find(self.token)

    def send(self, data: BytesLike) -> bool:
        """Frame and send; the arguments are checked whether or not there is a connection."""
        connection = self._find()
        encoded = encode(self._engine.config.builder if connection is None else connection.builder, contiguous(data))
        if connection is None:
            self._engine.refused()
            return False
        return connection.send(encoded)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until little output is pending."""
        seconds = check_timeout("timeout", timeout)
        connection = self._find()
        return connection is not None and connection.drain(seconds)

    def close(self) -> None:
        """End in order."""
        connection = self._find()
        if connection is not None:
            connection.end(Cause.LOCAL_CLOSED)

    def abort(self) -> None:
        """End at once."""
        connection = self._find()
        if connection is not None:
            connection.end(Cause.LOCAL_CLOSED, at_once=True)

    def pause_reading(self) -> None:
        """The owner looks before every message."""
        connection = self._find()
        if connection is not None:
            connection.is_paused = True

    def resume_reading(self) -> None:
        """A turn is needed: the edge that told of waiting input is gone.

        As on the compiled engine this does not fail: who has no memory to look the connection up has
        none to do something about it either.
        """
        while True:
            try:
                connection = self._find()
                break
            except MemoryError:
                time.sleep(mailbox.SHORTAGE)
        if connection is not None and connection.is_paused:
            connection.is_paused = False
            connection.post(mailbox.RESUME)

    @property
    def pending(self) -> int:
        """Bytes queued."""
        connection = self._find()
        return 0 if connection is None else connection.tell_pending()

    @property
    def is_open(self) -> bool:
        """Whether `send` would queue."""
        connection = self._find()
        return connection is not None and connection.error is None

    @property
    def id(self) -> int:
        """From 1, in the order of accepting."""
        return self._id

    @property
    def user_data(self) -> Any:
        """The handler's."""
        connection = self._find()
        return None if connection is None else connection.user_data

    @user_data.setter
    def user_data(self, value: Any) -> None:
        connection = self._find()
        if connection is not None:
            connection.user_data = value

    @property
    def server(self) -> Server:
        """The server."""
        return self._engine.server

    @property
    def peername(self) -> Any:
        """As accept(2) gave it, or the proxy's header."""
        connection = self._find()
        return None if connection is None else connection.peername

    @property
    def sockname(self) -> Any:
        """As getsockname(2) gave it at the start."""
        connection = self._find()
        return None if connection is None else connection.sockname

    def fileno(self) -> int:
        """The number accept(2) gave."""
        connection = self._find()
        return -1 if connection is None else connection.fd

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Names of both ends, what the proxy said, and what TLS knows."""
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
        state = "open" if self.is_open else "closed"
        return f"<HydrogenSocket {self._id} {state} peername={self.peername!r}>"
