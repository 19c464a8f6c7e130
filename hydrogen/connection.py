"""`HydrogenSocket`: what a handler holds of a connection. Each engine has its own class; this one
is their contract.

A HydrogenSocket names a connection by a token that is never given to another one, so it may be kept
as long as one likes: after the connection is gone its methods say so instead of acting on a
stranger. All of it may be used from any thread.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from hydrogen.checks import MAX_SECONDS
from hydrogen.errors import described

if TYPE_CHECKING:
    from hydrogen.proxy import ProxyHeader
    from hydrogen.server import Server
    from hydrogen.tls import TlsSession
    from hydrogen.websocket import WebSocket

BytesLike = bytes | bytearray | memoryview

T = TypeVar("T")

NOT_CONTIGUOUS = "a contiguous bytes-like object is expected"
"""What is said of a buffer whose bytes do not lie one after the other, as those of
`memoryview(data)[::2]`.
"""


def contiguous(data: BytesLike) -> bytes:
    """The bytes of `data`, which every `send` takes: `data` itself when it is bytes, else a copy.

    Raises:
        TypeError: it is not bytes-like, or not contiguous.
        ValueError: it is a memoryview that was released.
    """
    if type(data) is bytes:
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {type(data).__name__!r}") from None
    if not view.c_contiguous:
        raise TypeError(NOT_CONTIGUOUS)
    return bytes(view)


def message_of(data: BytesLike | str, websocket: WebSocket | None) -> bytes | str:
    """What `send` is given: a str for a WebSocket, `contiguous` else.

    Raises:
        TypeError, ValueError: as `contiguous`; of a str without a WebSocket, too.
    """
    if websocket is not None and isinstance(data, str):
        return str.__str__(data)
    return contiguous(data)  # type: ignore[arg-type]


def check_timeout(name: str, value: object) -> float | None:
    """A timeout that a method was given, in seconds; None: no limit, which infinity means, too.

    So does what is over `MAX_SECONDS`: nobody sees the end of that, and clocks cannot count it.

    Args:
        name: of the argument, for the message.

    Raises:
        TypeError: it is neither None nor a number.
        ValueError: it is negative, or no number in spite of its type (nan).
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number of seconds or None, not {described(value)}")
    if not value >= 0:
        raise ValueError(f"{name}: must be 0 or more seconds, not {described(value)}")
    return None if value > MAX_SECONDS else float(value)


def same(socket: T) -> T:
    """`__copy__` of a socket, which names a connection: a copy would be the same."""
    return socket


def same_deeply(socket: T, memo: object) -> T:
    """`__deepcopy__` of a socket."""
    return socket


def refuse_to_pickle(socket: object) -> NoReturn:
    """`__reduce__` of a socket, which means nothing to another process, or later.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        f"a {type(socket).__name__} cannot be pickled: it names a connection of this process"
    )


class HydrogenSocket(abc.ABC):
    """A connection, as its handler sees it.

    Two sockets of one connection are equal and hash alike, but need not be the same object. It
    supports weak references. `copy.copy` and `copy.deepcopy` return the socket itself; pickle
    raises TypeError.
    """

    __slots__ = ("__weakref__",)

    __copy__ = same
    __deepcopy__ = same_deeply
    __reduce__ = refuse_to_pickle

    @abc.abstractmethod
    def send(self, data: BytesLike | str) -> bool:
        """Queue one message, framed as the connection's framing says; the engine writes it. On a
        WebSocket a str is sent as text, and anything else as binary.

        Messages from one thread stay in order, and messages never interleave. A message may be
        larger than `max_write_buffer`; a send while that much is already pending removes the
        connection with `SlowConsumer`.

        While the server stops, a connection is still open as long as one of its callbacks runs or
        complete messages that were read are left: what they send is accepted, and flushed before
        the connection is closed.

        May be called at any moment, even by a signal handler or a `__del__` that runs while this
        very thread is in a method of the same connection; a message that cannot be queued at once
        is then queued by a worker, in order.

        Args:
            data: any contiguous bytes-like object; it is copied before `send` returns. On a
                WebSocket a str, too.
        Returns:
            False when the connection is closed or closing; then nothing was queued.
        Raises:
            TypeError: `data` is not bytes-like, or not contiguous.
            FrameTooLarge: the framing cannot carry a message this long.
            ValueError: the framing cannot carry this message, such as a line that contains the
                delimiter, or a text with half of a surrogate pair.
        """

    @abc.abstractmethod
    def drain(self, timeout: float | None = None) -> bool:
        """Block (with the GIL released) until pending output is below the low watermark.

        Args:
            timeout: seconds, 0 or more; None or infinity: no limit.
        Returns:
            False if the timeout passed or the connection is gone.
        Raises:
            TypeError, ValueError: `timeout` is not a number of seconds, is negative, or is nan;
                even when the connection is gone.
        """

    @abc.abstractmethod
    def close(self, code: int | None = None, reason: str = "") -> None:
        """Flush, end the sending side, discard what still arrives for up to 2 s, and close.

        After this call nothing more is delivered, even if it was already buffered. While output is
        pending, what the peer sends is read and discarded, so that a peer that sends before it
        reads still gets all of it; `write_timeout` limits how long. The 2 s begin when the sending
        side has ended, and are cut short when the peer ends its side too, or by a reset.

        A WebSocket is closed by a CLOSE behind all messages; the sending side ends when the
        client's has come, or after `WebSocket.close_timeout`.

        Args:
            code: of a WebSocket: 1000 (None) to 4999, see `is_close_code`.
            reason: of a WebSocket: at most 123 bytes as UTF-8.

        Raises:
            TypeError, ValueError: these cannot be sent, or this is no WebSocket.
        """

    def shutdown(self) -> None:
        """The same as `close`, under its name in the Rust crate hydrogen."""
        self.close()

    @abc.abstractmethod
    def ping(self, data: BytesLike = b"") -> bool:
        """Send a ping on a WebSocket; the client answers with a pong, see `on_pong` and `latency`.

        Clients that have sent nothing for a while are pinged without this:
        `WebSocket.ping_interval`.

        Args:
            data: at most 125 bytes, which come back.
        Returns:
            False when the connection is closed or closing.
        Raises:
            TypeError, ValueError: `data` cannot be sent, or this is no WebSocket.
        """

    @property
    @abc.abstractmethod
    def path(self) -> str | None:
        """The path that the client of a WebSocket has asked for, as it was sent; None when the
        connection is gone, or not open yet.
        """

    @property
    @abc.abstractmethod
    def subprotocol(self) -> str | None:
        """What both sides of a WebSocket agreed on, or None."""

    @property
    @abc.abstractmethod
    def latency(self) -> float | None:
        """Seconds from the last ping of a WebSocket that was answered to its pong, or None."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Reset the connection at once; pending output is lost, and nothing more is delivered."""

    @abc.abstractmethod
    def pause_reading(self) -> None:
        """Deliver no further messages until `resume_reading`.

        Once buffers are full, TCP's window holds the peer back. It acts on this connection only,
        even if this one goes and another takes its place. On TCP a reset still ends the connection,
        and what was not delivered is dropped. On a Unix socket the peer's close is a graceful end,
        which is delivered after the resume, behind everything that the peer sent. When the server
        stops, a paused connection is closed at once if no complete message was read from it;
        otherwise it may be resumed within `stop_timeout`, after which it is aborted.
        """

    @abc.abstractmethod
    def resume_reading(self) -> None:
        """Undo `pause_reading`; one call is enough, however often that was called.

        It acts on this connection only.
        """

    @property
    @abc.abstractmethod
    def pending(self) -> int:
        """Bytes queued and not yet taken by the kernel; 0 when the connection is gone."""

    @property
    @abc.abstractmethod
    def is_open(self) -> bool:
        """Whether the connection is neither closing nor gone, so that `send` queues.

        With TLS, `send` refuses a little earlier: once the peer has sent what cannot be decrypted.
        See `send` for what changes while the server stops.
        """

    @property
    @abc.abstractmethod
    def id(self) -> int:
        """A number, unique for the lifetime of the server."""

    @property
    @abc.abstractmethod
    def user_data(self) -> Any:
        """The handler's state for the connection; None at first, and again once it is gone."""

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
        """The peer's address as `socket.getpeername` gives it; None when the connection is gone.

        With `proxy_protocol` it is the client's address.
        """

    @property
    @abc.abstractmethod
    def sockname(self) -> Any:
        """This end's address as `socket.getsockname` gives it; None when the connection is gone."""

    @abc.abstractmethod
    def fileno(self) -> int:
        """The number that the handler's callbacks get as `fd`; -1 when the connection is gone.

        Only for lookups: do not read, write or close it.
        """

    @abc.abstractmethod
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What `asyncio.BaseTransport.get_extra_info` returns for the same name.

        The names are `peername` and `sockname`; with TLS also `ssl_object`, `sslcontext`,
        `peercert`, `cipher` and `compression`; and `proxy`, the `ProxyHeader` with which the
        connection began. Returns `default` for what is not available, and when the connection is
        gone.
        """


def shown(socket: HydrogenSocket) -> str:
    """`repr(socket)` of both engines."""
    state = "open" if socket.is_open else "closed"
    return f"<HydrogenSocket {socket.id} {state} peername={socket.peername!r}>"


def extra_info(
    socket: HydrogenSocket,
    session: TlsSession | None,
    header: ProxyHeader | None,
    name: str,
    default: Any,
) -> Any:
    """`HydrogenSocket.get_extra_info` of both engines. `session`: None: no TLS. `header`: None: no
    PROXY protocol.
    """
    value: Any = None
    if name in ("peername", "sockname"):
        value = getattr(socket, name)
    elif name == "proxy":
        value = header
    elif session is not None:
        value = session.info(name)
    return default if value is None else value
