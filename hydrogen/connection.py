"""`HydrogenSocket`: what a handler holds of a connection. Each engine has its own class; this one is their contract.

A HydrogenSocket names a connection by a token that is never given to another one, so it may be kept as long as one likes: after the
connection is gone its methods say so instead of acting on a stranger. All of it may be used from any thread.
"""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrogen.proxy import ProxyHeader
    from hydrogen.server import Server
    from hydrogen.tls import TlsSession

BytesLike = bytes | bytearray | memoryview


class HydrogenSocket(abc.ABC):
    """A connection, as its handler sees it. Two of one connection are equal and hash alike; they need not be the same object."""

    __slots__ = ()

    @abc.abstractmethod
    def send(self, data: BytesLike) -> bool:
        """Send one message, framed as the server's `framing` says. It is queued; compiled code writes it.

        Messages of one thread stay in order; messages never interleave. One message may be larger than `max_write_buffer`; a send
        while that much is pending already removes the connection with `SlowConsumer`.

        Args:
            data: any contiguous bytes-like object; it is copied before `send` returns.
        Returns:
            False when the connection is closed or closing: nothing was queued.
        Raises:
            TypeError: `data` is not bytes-like.
            FrameTooLarge: the framing cannot carry so long a message.
            ValueError: the framing cannot carry this message, as a line that contains the delimiter.
        """

    @abc.abstractmethod
    def drain(self, timeout: float | None = None) -> bool:
        """Block (with the GIL released) until pending output is below the low watermark.

        Args:
            timeout: seconds; None: no limit.
        Returns:
            False when the timeout passed or the connection is gone.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Flush, end the sending side, discard what still arrives for up to 2 s, close. No further message is delivered."""

    def shutdown(self) -> None:
        """The seed's name of `close`."""
        self.close()

    @abc.abstractmethod
    def abort(self) -> None:
        """Reset the connection at once; pending output is lost. No further message is delivered."""

    @abc.abstractmethod
    def pause_reading(self) -> None:
        """Deliver no further message until `resume_reading`; the peer is held back by TCP's window once buffers are full."""

    @abc.abstractmethod
    def resume_reading(self) -> None:
        """Undo `pause_reading`. However often that was called, once suffices."""

    @property
    @abc.abstractmethod
    def pending(self) -> int:
        """Bytes queued and not yet taken by the kernel; 0 when the connection is gone."""

    @property
    @abc.abstractmethod
    def is_open(self) -> bool:
        """True until the connection is closing or gone: whether `send` would queue."""

    @property
    @abc.abstractmethod
    def id(self) -> int:
        """An int, unique for the server's life."""

    @property
    @abc.abstractmethod
    def user_data(self) -> Any:
        """The state of the connection, for its handler; None at first, and again when the connection is gone."""

    @user_data.setter
    @abc.abstractmethod
    def user_data(self, value: Any) -> None: ...

    @property
    @abc.abstractmethod
    def server(self) -> Server:
        """The server that accepted this connection."""

    @property
    @abc.abstractmethod
    def peername(self) -> Any:
        """The peer's address as `socket.getpeername` gives it, with `proxy_protocol` the client's; None when the connection is gone."""

    @property
    @abc.abstractmethod
    def sockname(self) -> Any:
        """This end's address as `socket.getsockname` gives it; None when the connection is gone."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """The number that `on_new_connection` and `on_connection_removed` get; -1 when the connection is gone."""

    @abc.abstractmethod
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What `asyncio.BaseTransport.get_extra_info` gives by the same name: `peername`, `sockname`; with TLS `ssl_object`, `sslcontext`,
        `peercert`, `cipher`, `compression`. `proxy`: the `ProxyHeader` with which the connection began. `default` for what there is none
        of, and when the connection is gone.
        """


def check_timeout(name: str, value: object) -> float | None:
    """`value` as seconds to wait, None for no limit, which infinity means too.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, or not a number (nan).
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: seconds or None are expected, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name}: 0 or more seconds are allowed, not {value!r}")
    return None if value == math.inf else float(value)


def extra_info(socket: HydrogenSocket, session: TlsSession | None, header: ProxyHeader | None, name: str, default: Any) -> Any:
    """`HydrogenSocket.get_extra_info` of both engines. `session`: None: no TLS. `header`: None: no PROXY protocol."""
    value: Any = None
    if name in ("peername", "sockname"):
        value = getattr(socket, name)
    elif name == "proxy":
        value = header
    elif session is not None:
        with session.lock:
            value = session.info(name)
    return default if value is None else value
