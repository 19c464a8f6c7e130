"""What the engine asks of the kernel beyond plain calls of the socket module, and which errors of accept(2) mean what.

No connection is known here, only fds and sockets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
import threading
from collections.abc import Iterator

TRANSIENT = frozenset(
    {
        errno.EINTR,
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)
"""Errors of accept(2) that speak of one connection only: Linux passes pending errors of the new socket on, see accept(2)."""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that stay until somebody gives something back: asking again at once would spin."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset_on_close(sock: socket.socket) -> None:
    """Make the last close of `sock` a reset (SO_LINGER with no time, see socket(7)). Sockets without resets do not mind."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        return


def reset(sock: socket.socket, placeholder: int) -> None:
    """Reset the connection of `sock` now, and keep its fd number taken until `sock` is closed.

    connect(2) to AF_UNSPEC would do it in one call, but the socket module cannot say AF_UNSPEC. So the socket is made to reset on its
    last close, and a duplicate of `placeholder` is put in its place: dup3(2) closes it, and in the same step occupies the number that the
    handler still files by. A forked child closes its copies (`Engine.forked`), so this close is the last one.
    """
    reset_on_close(sock)
    os.dup2(placeholder, sock.fileno(), inheritable=False)


def turn_away(sock: socket.socket) -> None:
    """Reset and close a connection that was just accepted."""
    reset_on_close(sock)
    with contextlib.suppress(OSError):
        sock.close()


def unsent(fd: int) -> int:
    """Bytes in the send queue of a socket, not acknowledged by the peer's kernel (SIOCOUTQ, see tcp(7)); 0 when there is no telling."""
    return _queued(fd, termios.TIOCOUTQ)


def unread(fd: int) -> int:
    """Bytes in the receive queue of a socket (SIOCINQ, see tcp(7)); 0 when there is no telling."""
    return _queued(fd, termios.FIONREAD)


def _queued(fd: int, request: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # ValueError: of a negative fd
        return 0


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket object for `fd`, which stays open. Raises: OSError: `fd` is no socket."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def block_signals() -> None:
    """Let no signal be delivered to the calling thread: it belongs to the engine and has nothing to do with them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Wakeup:
    """An eventfd that ends somebody's poll. May be signalled from any thread, also after it was closed: then nobody is to be woken."""

    __slots__ = ("_fd", "_lock")

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """The fd to poll."""
        return self._fd

    def signal(self) -> None:
        """Wake whoever polls it, or will."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget the signals so far. By the poller, before it looks at what was asked."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the fd back."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
