"""What the engine asks of the kernel beyond plain calls of the socket module, and which errors of
accept(2) mean what.

No connection is known here, only fds and sockets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import operator
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hydrogen.locks import snapshot, under

if TYPE_CHECKING:
    from _thread import RLock

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
"""Errors of accept(2) that speak of one connection only: Linux passes pending errors of the new
socket on, see accept(2).
"""

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of accept(2) that stay until somebody gives something back: asking again at once would
spin.
"""

FORK_PATIENCE = 0.5
"""Seconds that a fork waits for all who accept or close, who need microseconds, and that they wait
for the rest of it. For ever would be
wrong: each may hold, further out, or do, what the other one waits for."""

_release = operator.methodcaller("release")

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_AT_ONCE = struct.pack("ii", 0, 0)


def reset_on_close(sock: socket.SocketType) -> None:
    """Make the last close of `sock` a reset (SO_LINGER with no time, see socket(7)). Sockets
    without resets do not mind.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        return


def close_without_waiting(sock: socket.socket) -> None:
    """Close `sock`, whatever SO_LINGER says: the socket option is the user's, the thread that would
    wait is ours.

    Raises: OSError: ECONNRESET, of close(2) in some families. It is closed.
    """
    with contextlib.suppress(OSError):  # /dev/null: it was reset
        is_on, seconds = struct.unpack(
            "ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        )
        if is_on and seconds:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_AT_ONCE)
    sock.close()


def _libc_connect() -> Callable[[int, bytes, int], object] | None:
    """connect(2); None where Python was built without ctypes, or may not use it."""
    try:
        import ctypes

        function: Callable[[int, bytes, int], object] = ctypes.CDLL(None).connect
    except (ImportError, OSError, AttributeError, MemoryError):
        return None
    return function


_connect = _libc_connect()
"""Looked up here and not when it is needed: an import that there is no memory for can leave the
lock of its module taken, and whoever imports it next waits for ever.
"""


def disconnect(fd: int) -> None:
    """Reset the connection of `fd` now, whoever else holds it open: connect(2) to AF_UNSPEC, which
    the socket module cannot say.

    Unix sockets do not mind. Without ctypes the last close resets.
    """
    if _connect is not None:
        _connect(fd, bytes(16), 16)
        return
    with contextlib.suppress(OSError), borrowed(fd) as sock:
        reset_on_close(sock)


def end_at_once(sock: socket.SocketType) -> None:
    """Reset the connection of `sock`, see `disconnect`; of a Unix socket, which has no reset, end
    both directions.
    """
    disconnect(sock.fileno())
    if sock.family == socket.AF_UNIX:
        with contextlib.suppress(OSError):  # the peer may be gone
            sock.shutdown(socket.SHUT_RDWR)


def reset(sock: socket.socket, placeholder: int) -> None:
    """Reset the connection of `sock` now, and keep its fd number taken until `sock` is closed.

    A duplicate of `placeholder` is put in its place: dup3(2) closes it, and in the same step
    occupies the number that the handler still files by. Where the close is the last it resets as
    well: see `disconnect`.
    """
    reset_on_close(sock)
    end_at_once(sock)
    os.dup2(placeholder, sock.fileno(), inheritable=False)


def turn_away(sock: socket.socket) -> None:
    """Reset and close a connection that was just accepted."""
    reset_on_close(sock)
    with contextlib.suppress(OSError):
        sock.close()


def unsent(fd: int) -> int:
    """Bytes in the send queue of a socket, not acknowledged by the peer's kernel (SIOCOUTQ, see
    tcp(7)); 0 when there is no telling.
    """
    return _queued(fd, termios.TIOCOUTQ)


def unread(fd: int) -> int:
    """Bytes in the receive queue of a socket (SIOCINQ, see tcp(7)); 0 when there is no telling."""
    return _queued(fd, termios.FIONREAD)


def is_readable(fd: int) -> bool:
    """Whether something waits to be read, be it the end."""
    poll = select.poll()
    try:
        poll.register(fd, select.POLLIN)
    except ValueError:  # of a negative fd
        return False
    return any(not events & select.POLLNVAL for _, events in poll.poll(0))


def _queued(fd: int, request: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(fd, request, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # ValueError: of a negative fd
        return 0


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.SocketType]:
    """A socket object for `fd`, which stays open: nothing comes between what is made and the
    `finally` that sees to it (see `role`).

    Raises: OSError: `fd` is no socket.
    """
    held: deque[socket.SocketType] = deque()
    try:
        held.extend(map(socket.SocketType, (-1,), (-1,), (-1,), (fd,)))
        yield held[0]
    finally:
        for sock in held:
            sock.detach()


def close_once(fds: deque[int]) -> None:
    """Close the fd that is in `fds`, if it is there still. It is taken out and closed inside one
    call of C code (see `role`): who is interrupted may call again, and closes nobody else's."""
    with contextlib.suppress(IndexError):
        deque(map(os.close, map(deque.pop, (fds,))), 0)


def close_orphan(fd: int, listener: socket.socket) -> None:
    """Close the connection that an accept(2) on `listener` has left behind.

    Where there is no memory for the name of the peer, CPython forgets the fd. It got the lowest
    number that was free, `fd`; it is believed to be that only when it is a connection of the same
    address.
    """
    try:
        with borrowed(fd) as sock:
            name, own = sock.getsockname(), listener.getsockname()
            is_same = name[1] == own[1] if isinstance(own, tuple) else name == own
            is_connection = not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:  # nobody has it
        return
    if is_same and is_connection:
        os.close(fd)


def block_signals() -> None:
    """Let no signal be delivered to the calling thread: it belongs to the engine and has nothing to
    do with them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Wakeup:
    """An eventfd that ends somebody's poll.

    May be signalled from any thread, at any moment, also after it was closed: then nobody is to be
    woken. A signal is written by who gives it, who may be waited for by who polls. Closing is left
    to the last one who is `_inside`, so nobody writes to a number that is a stranger's by then: who
    comes in is counted, then looks at `_is_closed`; who closes sets that, then looks who is inside.
    """

    __slots__ = ("_fd", "_inside", "_is_closed", "_open")

    def __init__(self) -> None:
        self._open: deque[int] = deque()  # who takes the fd out closes it
        self._inside: deque[None] = deque()
        self._is_closed = False
        # in one call of C code, see `role`
        self._open.extend(map(os.eventfd, (0,), (os.EFD_NONBLOCK | os.EFD_CLOEXEC,)))
        self._fd = self._open[0]

    def __del__(self) -> None:
        # Whose start failed, for want of memory, closes nothing.
        with contextlib.suppress(AttributeError):
            close_once(self._open)

    def fileno(self) -> int:
        """The fd to poll."""
        return self._fd

    def signal(self) -> None:
        """Wake whoever polls it, or will."""
        self._inside.append(None)
        try:
            if not self._is_closed:
                os.eventfd_write(self._fd, 1)
        finally:
            self._inside.pop()
            if self._is_closed:
                self.close()

    def clear(self) -> None:
        """Forget the signals so far. By the poller, before it looks at what was asked."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """Give the fd back."""
        self._is_closed = True
        if not self._inside:
            self.forget()

    def forget(self) -> None:
        """As `close`, in a forked child, where a thread that does not exist may be inside."""
        self._is_closed = True
        close_once(self._open)


class Fork:
    """One fork of a thread.

    Attributes:
        thread: whose.
        held: the locks that it has taken.
        is_over: it gives them back.
    """

    __slots__ = ("_until", "held", "is_over", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.held: deque[RLock] = deque()
        self.is_over = False
        self._until = time.monotonic() + FORK_PATIENCE

    def take(self, lock: RLock) -> bool:
        """Whether `lock` could be had in time."""
        acquire = operator.methodcaller("acquire", timeout=self._left())
        self.held.extend(filter(acquire, (lock,)))
        return lock in self.held

    def rest(self) -> float:
        """Seconds that others still wait for it, all of them together: a hook of the program's may
        wait for many connections.
        """
        return self._left(FORK_PATIENCE)

    def _left(self, more: float = 0.0) -> float:
        return max(0.0, self._until + more - time.monotonic())

    def end(self) -> None:
        """Give everything back. May be called again."""
        self.is_over = True
        while self.held:
            deque(map(_release, map(deque.pop, (self.held,))), 0)


class ForkGate:
    """Keeps a fork from coming between what the kernel knows of an fd and what `Engine.forked`
    finds.

    A connection finds its fd a little later than the kernel makes it, and forgets it a little
    earlier than it is closed. A child that had the fd without knowing of it would keep the
    connection open when the parent closes it.

    Each thread has a lock of its own for that, and who forks takes all of them: threads must not
    wait for one in which the collector runs code of the user's, which may block.

    A signal handler of a thread that forks may raise at any point of the hooks, or as one begins:
    the interpreter ignores that, and forks. So each lock is taken and noted in one call of C code,
    as it is given back, and there is a second hook that gives back what the first one was kept
    from. In the child, too, what the first one was kept from the second one does.
    """

    def __init__(self) -> None:
        self._forks: deque[Fork] = deque()  # one may come in another one's hooks
        self._open_anew()
        os.register_at_fork(
            before=self._before, after_in_parent=self._give_back, after_in_child=self._open_anew
        )
        os.register_at_fork(after_in_parent=self._after, after_in_child=self._open_anew)

    def _open_anew(self) -> None:
        """In a child: threads that exist in the parent only give nothing back.

        But this one does: an earlier hook may have started a server, whose threads wait for that.
        """
        for fork in self._mine():
            fork.end()
        self._locks: weakref.WeakSet[RLock] = weakref.WeakSet()
        self._turn = threading.RLock()  # of `_locks`; held by who forks
        self._own = threading.local()  # after `_locks`: whoever has a lock anew is in there
        self._forks = deque()

    @property
    def lock(self) -> RLock:
        """The calling thread's, to be held meanwhile. It may be taken again, and the thread may
        fork: see the class.

        Who asks for it while somebody forks waits here: locks are not fair, and a fork would find
        that of a thread that never rests taken. Not for ever: a hook of the program's may wait for
        a connection that is to be accepted, or closed.
        """
        own: RLock | None = getattr(self._own, "lock", None)
        rests = [fork.rest() for fork in snapshot(self._forks) if fork.held]
        if own is not None and not rests:
            return own

        def enter() -> RLock:
            self._own.lock = lock = own or threading.RLock()
            self._locks.add(lock)
            return lock

        return (
            under(self._turn, enter, seconds=max(rests, default=FORK_PATIENCE)) or threading.RLock()
        )

    def _before(self) -> None:
        fork = Fork()
        self._forks.append(fork)
        if fork.take(self._turn):
            for lock in list(self._locks):
                fork.take(lock)

    def _give_back(self) -> None:
        for fork in [fork for fork in self._mine() if not fork.is_over][-1:]:
            fork.end()

    def _after(self) -> None:
        for fork in self._mine()[-1:]:  # if it is not over
            fork.end()
        for fork in self._mine():
            if fork.is_over:  # be it of earlier
                self._forks.remove(fork)

    def _mine(self) -> list[Fork]:
        me = threading.get_ident()
        return [fork for fork in snapshot(self._forks) if fork.thread == me]


fork_gate = ForkGate()
