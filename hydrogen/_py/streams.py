"""Transports: how one connection is read, written and ended. One for sockets that the engine
adopts, one for streams written by a user.

Nothing here is locked. A socket is read by the owner of its connection, and written in the role of
the output; a stream of the user's is read there, too. The owner ends both when nobody is in there
any more (`Output.seal`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import time
from collections import deque
from types import MethodType
from typing import Protocol

from hydrogen._py import kernel
from hydrogen._py.framing import Complain
from hydrogen.errors import Cause, cause_of, class_name, removal_error
from hydrogen.locks import under
from hydrogen.stream import Stream, StreamAdapter, not_an_fd

CLOSE_TRIES, CLOSE_RETRY = 50, 0.02
"""How often a stream is asked how to close it while there is no memory, and seconds between."""

CHUNK = 1 << 16
"""Bytes asked of one recv(2)."""

_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


class Transport(Protocol):
    """What both transports do.

    Attributes:
        poll_fd: to be polled.
        is_stream: runs code of the user's, so that only workers and senders may use it, and the end
            is left to it.
        kept: bytes of output that the transport holds back.
        writing: bytes that a stream of the user's is being given.
        is_stalled: whether it holds something back, and must be written to, with nothing, when the
            kernel takes more.
    """

    poll_fd: int
    is_stream: bool

    @property
    def kept(self) -> int: ...

    @property
    def writing(self) -> int: ...

    @property
    def is_stalled(self) -> bool: ...

    def receive(self, most: int = CHUNK) -> list[bytes]:
        """What can be read now, of a socket at most so many bytes; `[]` when there is nothing.

        Raises:
            EOFError: the peer will send no more.
            Exception: to be given to `explain`.
        """

    def write(self, messages: list[bytes | memoryview]) -> tuple[int, bool]:
        """How many bytes were taken off the front of `messages`, and whether the kernel takes no
        more.

        Raises:
            Exception: to be given to `explain`.
        """

    def explain(self, error: BaseException, method: str) -> tuple[Cause, Exception]:
        """Cause and removal error for what `method` ("recv" or "send") raised; complains of what is
        a fault of the user's.
        """

    def pending_error(self) -> int:
        """The errno that waits in the socket; 0: none."""

    def end_output(self) -> bool:
        """All output is written: tell the peer. False: this transport has no way to end one
        direction only.
        """

    def shutdown(self) -> None:
        """End both ways, in order."""

    def reset(self, placeholder: int) -> None:
        """End at once."""

    def cut_off(self) -> None:
        """Have who is in a stream of the user's come out: what it does to the socket fails from now
        on.
        """

    def reset_at_last(self) -> None:
        """End at once though the owner is in a callback, perhaps for ever: at the latest when the
        process ends. By any thread.
        """

    def close(self) -> None:
        """Give the fds back. Last, once."""

    def forget(self) -> None:
        """In a forked child: close this process's copies of the engine's fds."""


class SocketTransport:
    """A socket that belongs to the engine. Whether it blocks does not matter: `on_new_connection`
    had its fd, and may have changed that.

    Attributes:
        abandon: the fd belongs to somebody else from now on; a call of C code, see `role`.
        reported: the errno that the kernel has reported to the stream that had the fd before; 0:
            none. See `plain.Handover`.
    """

    __slots__ = ("_sock", "abandon", "poll_fd", "reported")

    is_stream = False
    kept = 0
    writing = 0
    is_stalled = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.abandon = functools.partial(socket.SocketType.detach, sock)
        self.poll_fd = sock.fileno()
        self.reported = 0

    def receive(self, most: int = CHUNK) -> list[bytes]:
        """One recv(2)."""
        try:
            data = self._sock.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        if not data:
            raise removal_error(Cause.OS_ERROR, self.reported) if self.reported else EOFError
        return [data]

    def peek(self, most: int) -> bytes:
        """The first bytes that wait, which go on waiting; b"" also for an error, which the next
        `receive` meets.
        """
        try:
            return self._sock.recv(most, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except OSError:
            return b""

    def write(self, messages: list[bytes | memoryview]) -> tuple[int, bool]:
        """One send(2) or sendmsg(2). Only EAGAIN tells that the kernel takes no more: after it,
        and not after a short write, epoll owes an edge.
        """
        try:
            if len(messages) == 1:
                return self._sock.send(messages[0], _FLAGS), False
            return self._sock.sendmsg(messages, (), _FLAGS), False
        except BlockingIOError:
            return 0, True

    def explain(self, error: BaseException, method: str) -> tuple[Cause, Exception]:
        """Always an `OSError`; want of memory is ENOMEM, as it would be from the kernel."""
        kind = type(error)
        code = (
            errno.ENOMEM
            if issubclass(kind, MemoryError)
            else self.reported or getattr(error, "errno", None)
        )
        return Cause.OS_ERROR, removal_error(Cause.OS_ERROR, code or errno.EIO)

    def pending_error(self) -> int:
        """SO_ERROR."""
        return self.reported or self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def end_output(self) -> bool:
        """A FIN."""
        with contextlib.suppress(OSError):  # a peer that has reset the connection knows
            self._sock.shutdown(socket.SHUT_WR)
        return True

    def shutdown(self) -> None:
        """shutdown(2) both ways."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def reset(self, placeholder: int) -> None:
        """See `kernel.reset`."""
        kernel.reset(self._sock, placeholder)

    def cut_off(self) -> None:
        """Nobody is in there for long."""

    def reset_at_last(self) -> None:
        """By the last close, which is the kernel's when the process ends: the owner may use the
        socket, and close it.
        """
        kernel.reset_on_close(self._sock)

    def close(self) -> None:
        """The number may go to a new connection from now on."""
        with contextlib.suppress(OSError):
            under(kernel.fork_gate.lock, lambda: kernel.close_without_waiting(self._sock))

    def forget(self) -> None:
        """The parent has the socket still, so nothing goes to the peer."""
        with contextlib.suppress(OSError):
            self._sock.close()


class StreamTransport:
    """A stream written by a user. It owns its fd; `poll_fd` is a duplicate of the engine's own."""

    __slots__ = ("_complain", "_fds", "_is_closed", "_name", "_port", "poll_fd")

    is_stream = True

    def __init__(self, stream: Stream, complain: Complain) -> None:
        self._complain = complain
        self._name = class_name(stream)
        self._port = StreamAdapter(stream)
        self._fds: deque[int] = deque()  # the duplicate: who takes it out closes it
        self._is_closed = False
        self.poll_fd = -1

    def open(self, fd: int) -> None:
        """Make the duplicate of `fd`. Raises: OSError, TypeError, ValueError: it is no fd; OSError
        also when none is left.
        """
        self._fds.extend(map(fcntl.fcntl, (fd,), (fcntl.F_DUPFD_CLOEXEC,), (0,)))
        self.poll_fd = self._fds[0]

    @property
    def kept(self) -> int:
        """What the stream said it kept."""
        return self._port.pending

    @property
    def writing(self) -> int:
        """Of the `send` of now."""
        return self._port.writing

    @property
    def is_stalled(self) -> bool:
        """Whether its last `send` raised `BlockingIOError`."""
        return self._port.blocked

    def receive(self, most: int = CHUNK) -> list[bytes]:
        """One `Stream.recv`, which knows no limit."""
        self._port.receive()
        messages = list(self._port.messages)
        self._port.messages.clear()
        return messages

    def write(self, messages: list[bytes | memoryview]) -> tuple[int, bool]:
        """One `Stream.send`: of the first message, or of nothing. A stream takes all, and keeps
        what it could not write.
        """
        if not messages:
            self._port.resume()
            return 0, self._port.blocked
        self._port.send(bytes(messages[0]))
        return len(messages[0]), self._port.blocked

    def explain(self, error: BaseException, method: str) -> tuple[Cause, Exception]:
        """See `errors.cause_of`."""
        cause, reason = cause_of(error)
        if cause == Cause.HANDLER_ERROR:
            self._complain(f"{self._name}.{method}", error)
        return cause, reason

    def pending_error(self) -> int:
        """SO_ERROR of what is polled."""
        with contextlib.suppress(OSError), kernel.borrowed(self.poll_fd) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return 0

    def end_output(self) -> bool:
        """How a stream ends is its own affair."""
        return False

    def shutdown(self) -> None:
        """`Stream.shutdown`; what it raises is complained of."""
        try:
            self._port.shutdown()
        except BaseException as error:
            self._complain(f"{self._name}.shutdown", error)

    def reset(self, placeholder: int) -> None:
        """Reset by the duplicate, before `Stream.shutdown` ends gracefully. The stream's fd is not
        touched: it may be another's by now.
        """
        self.cut_off()
        self.shutdown()

    def cut_off(self) -> None:
        """By the duplicate: a reset, or on a Unix socket, which has none, the end of both
        directions.
        """
        if self.poll_fd >= 0:
            with contextlib.suppress(OSError), kernel.borrowed(self.poll_fd) as sock:
                kernel.end_at_once(sock)

    def reset_at_last(self) -> None:
        """By the duplicate, now. It is taken out meanwhile, so that the owner does not close it,
        nor its number becomes a stranger's.
        """
        with contextlib.suppress(IndexError):  # the owner has closed it
            under(kernel.fork_gate.lock, self._reset_now)

    def _reset_now(self) -> None:
        fd = self._fds.pop()
        try:
            with contextlib.suppress(OSError), kernel.borrowed(fd) as sock:
                kernel.end_at_once(sock)
        finally:
            self._fds.append(fd)
            if self.poll_fd < 0:  # the owner would have closed it
                kernel.close_once(self._fds)

    def close(self) -> None:
        """`Stream.close`, and the duplicate. Called again when an exception kept it from returning:
        the stream is closed once at most.
        """
        under(kernel.fork_gate.lock, self.forget)
        if self._is_closed:
            return
        self._is_closed = True
        try:
            # Not by the adapter: an exception set from outside would come as that begins, and leave
            # the stream open.
            stream, tries = self._port.stream, CLOSE_TRIES
            while True:
                try:
                    close = stream.close
                    is_usual = (
                        type(close) is MethodType
                        and close.__func__ is Stream.close
                        and close.__self__ is stream
                    )
                    fd = stream.fileno() if is_usual else -1
                    break
                except MemoryError:  # else its fd would stay open
                    tries -= 1
                    if not tries:
                        raise
                    time.sleep(CLOSE_RETRY)
            if not is_usual:
                close()
            elif type(fd) is int:
                os.close(fd)
            else:
                raise not_an_fd(stream, fd)
        except BaseException as error:
            self._complain(f"{self._name}.close", error)

    def forget(self) -> None:
        """The duplicate only: the stream is the user's."""
        self.poll_fd = -1
        kernel.close_once(self._fds)
