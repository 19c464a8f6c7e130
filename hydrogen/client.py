"""`connect` and `Client`: the other end of a connection, blocking, for scripts and tests."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ssl import SSLContext
from types import EllipsisType, TracebackType
from typing import Any, TypeVar, cast

from hydrogen.codec import builder_of
from hydrogen.config import Framing
from hydrogen.connection import BytesLike, check_timeout, contiguous
from hydrogen.errors import described
from hydrogen.frame import ChunkFrameBuilder, FrameBuilder
from hydrogen.locks import under
from hydrogen.plain import Plain, deadline_of, seconds_left
from hydrogen.secure import Secure
from hydrogen.tls import check_context, check_server_hostname

CLOSE_PATIENCE = 2.0
"""Seconds that `Client.close` waits for the server; as long as that lingers for a peer."""

Address = tuple[Any, ...] | str | os.PathLike[str]
T = TypeVar("T")


def connect(
    address: Address,
    *,
    framing: Framing = None,
    ssl: SSLContext | None = None,
    server_hostname: str | None = None,
    timeout: float | None = None,
) -> Client:
    """Open an outbound connection, including the TLS handshake if there is one.

    Safe to call from any thread. If it fails, nothing stays open.

    Args:
        address: (host, port), where all addresses of the host name are tried in turn; the value of
            `Server.address`; or the path of a Unix socket.
        framing: a frame builder, class or instance; None: chunks as read.
        ssl: a client-side context: use TLS. `OP_NO_RENEGOTIATION` is set on it.
        server_hostname: the name that the server's certificate must have; None: the host, without
            the zone of an IPv6 address.
        timeout: seconds for all of this together (though it cannot cut short the resolver), and the
            default of each `Client.recv`. None: no limit.

    Raises:
        TypeError, ValueError: an argument is wrong.
        TimeoutError: it took too long.
        ssl.SSLError, OSError: it failed; `socket.gaierror`: the host name cannot be resolved.
    """
    _check_address(address)
    builder = builder_of(framing)
    if ssl is not None:
        check_context("ssl", ssl, server_side=False)
        if server_hostname is None and isinstance(address, tuple):
            # The zone of an IPv6 address is this host's own affair (RFC 4007, 6): no certificate
            # names it.
            server_hostname = address[0].partition("%")[0]
        check_server_hostname(server_hostname)
    elif server_hostname is not None:
        raise ValueError(
            f"server_hostname: only allowed with ssl, not {described(server_hostname)} without it"
        )
    timeout = check_timeout("timeout", timeout)
    deadline = deadline_of(timeout)
    sock = _connected(address, deadline)
    try:
        if ssl is None:
            return Client(Plain(sock, builder), builder or ChunkFrameBuilder(), timeout)
        stream = Secure(sock, builder, ssl, server_side=False, server_hostname=server_hostname)
        stream.handshake(None if deadline is None else seconds_left(deadline))
        return Client(stream, builder or ChunkFrameBuilder(), timeout)
    except BaseException:
        sock.close()
        raise


def _check_address(address: object) -> None:
    """Raise TypeError or ValueError unless it may be one; the kernel wraps numbers, or raises what
    it likes.
    """
    if not isinstance(address, tuple):
        os.fspath(cast(str, address))
        return
    if len(address) not in (2, 4):
        raise ValueError(f"address: expected (host, port) or a path, not {described(address)}")
    host, *numbers = address
    if not isinstance(host, str):
        raise TypeError(f"address: expected a str as the host, not {described(host)}")
    for name, number, most in zip(
        ("port", "flow label", "scope"),
        numbers,
        (65_535, (1 << 20) - 1, (1 << 32) - 1),
        strict=False,
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"address: expected an int as the {name}, not {described(number)}")
        if not 0 <= number <= most:
            raise ValueError(f"address: the {name} must be 0 to {most}, not {described(number)}")


def _connected(address: Address, deadline: float | None) -> socket.socket:
    """A socket connected to the first address that answers; raises what the last one said."""
    if not isinstance(address, tuple):
        return _connected_to(socket.AF_UNIX, os.fspath(address), deadline)
    if len(address) == 4:  # of IPv6, as the kernel gives it
        return _connected_to(socket.AF_INET6, address, deadline)
    host, port = address
    *others, last = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, _, _, _, found in others:
        with contextlib.suppress(OSError):
            return _connected_to(family, found, deadline)
    return _connected_to(last[0], last[4], deadline)


def _connected_to(family: int, address: Any, deadline: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX:
            while not _is_connected_to_path(sock, address, deadline):
                pass
        else:
            sock.settimeout(None if deadline is None else seconds_left(deadline))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    except BaseException:
        sock.close()
        raise


def _is_connected_to_path(sock: socket.socket, path: Any, deadline: float | None) -> bool:
    """Connect to a Unix socket; False when a signal came meanwhile: try again.

    A non-blocking connect to one whose backlog is full fails at once; a blocking one waits, for
    SO_SNDTIMEO (socket(7)). A signal ends that wait; CPython takes it for one that goes on in the
    kernel, as that of TCP does, and reports a connection.
    """
    sock.settimeout(None)
    if deadline is not None:
        microseconds = max(1, int(seconds_left(deadline) * 1_000_000))
        timeval = struct.pack("@ll", *divmod(microseconds, 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    try:
        sock.connect(path)
        sock.getpeername()
    except BlockingIOError:
        raise TimeoutError("timed out") from None
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


class _Here(threading.local):
    """Of one client in one thread: whether it is in a call, and is to close the fd when it leaves
    that.
    """

    is_inside = False
    is_closing = False


class Client:
    """A blocking connection, made by `connect`: a context manager, and iterable.

    `for message in client` yields the messages until the end. One thread may send while another
    receives; any thread may close. In a forked child, `close` only closes the fd: the connection
    belongs to the parent.
    """

    def __init__(
        self, stream: Plain | Secure, builder: FrameBuilder, timeout: float | None
    ) -> None:
        """For `connect`."""
        self._stream = stream
        self._builder = builder
        self._timeout = timeout
        self._pid = os.getpid()
        # Held during each call, so that the fd is not closed, and its number given to a stranger,
        # under who waits for it. Reentrant, for a signal handler that sends while its thread waits.
        self._sending = threading.RLock()
        self._receiving = threading.RLock()
        self._here = _Here()

    def send(self, data: BytesLike) -> None:
        """Send one message; returns when the kernel has taken all of it.

        Args:
            data: any contiguous bytes-like object.

        Raises:
            TypeError: it is not bytes-like, or not contiguous.
            FrameTooLarge, ValueError: the framing cannot carry it; nothing was sent.
            ssl.SSLError, OSError: the connection is broken, or closed.
        """
        frame = self._builder.frame(contiguous(data))
        # the call further out sends it, and keeps the fd open; nobody is waited for
        if self._stream.is_interrupted():
            self._stream.b_send(frame)
        else:
            self._use(self._sending, lambda: self._stream.b_send(frame))

    def recv(self, timeout: float | EllipsisType | None = ...) -> bytes:
        """Wait for the next message; without framing, for a chunk.

        Args:
            timeout: seconds; None: no limit; omitted: that of `connect`.

        Raises:
            TimeoutError: no message was complete in time. What has arrived of it is not lost: call
                again.
            EOFError: the server will send no more, or `close` was called.
            IncompleteFrame: the same, inside a message.
            ProtocolError: what arrived can never become a message.
            RuntimeError: a signal handler (or a `__del__`, or a frame builder) calls it within a
                `recv` in the same thread, or while any call in that thread reads or writes.
            ssl.SSLError, OSError: the connection is broken; `ssl.SSLEOFError`: it ended without
                close_notify, so input may be missing.
        """
        seconds = self._timeout if isinstance(timeout, EllipsisType) else timeout
        # it raises; who has the lock may wait for what this thread has
        if self._stream.is_interrupted():
            return self._stream.b_recv(seconds).payload()
        return self._use(self._receiving, lambda: self._stream.b_recv(seconds)).payload()

    def _use(self, lock: threading.RLock, call: Callable[[], T]) -> T:
        """Make a call of the stream's. A signal handler that closes meanwhile leaves the fd to it,
        which may wait for it.
        """
        here = self._here
        further_out = here.is_inside
        try:
            here.is_inside = True
            # Not `with lock`: an interrupt may come between that and what it protects (CPython
            # 3.14).
            return cast("T", under(lock, call))
        finally:
            here.is_inside = further_out
            if here.is_closing:
                self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the messages until the end; waits and raises as `recv()` does."""
        while True:
            try:
                message = self.recv()
            except EOFError:
                return
            yield message

    def close(self) -> None:
        """Close; what was sent still arrives, with TLS followed by close_notify.

        May be called again. It ends the output, and discards input until the server ends the
        connection too, for 2 s at most; a server that keeps sending after that is reset. Then calls
        in other threads return. In a signal handler (or a `__del__`) that interrupts a call of this
        client while it reads or writes, it does not wait: that call does all this when it ends,
        within the same 2 s.
        """
        if self._stream.fileno() < 0:
            return
        # without a lock: a thread may hold it that only the parent has
        if os.getpid() != self._pid:
            self._stream.close()
            return
        if self._here.is_inside:
            self._here.is_closing = True
        self._stream.finish(CLOSE_PATIENCE)
        if self._stream.is_interrupted():  # the call further out closes, or is a `close` itself
            return
        self._stream.shutdown()
        if self._here.is_inside:
            return
        # Who is in a call may be interrupted, and make another one: neither lock is held while
        # waiting for the other.
        first, second = self._sending, self._receiving
        while not under(first, lambda: under(second, self._close_fd, wait=False)):  # noqa: B023
            first, second = second, first

    def _close_fd(self) -> bool:
        """Under both locks."""
        self._stream.discard_and_close()  # what came since then would do for a reset, too
        return True

    def fileno(self) -> int:
        """The fd; -1 when closed."""
        return self._stream.fileno()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
