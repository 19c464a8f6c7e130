"""SIGINT and SIGTERM of the process, while `begin` serves.

What was there before is restored, in a forked child by the hook of hydrogen.server.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from socket import socketpair
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydrogen.server import Server

installed: list[Signals] = []
"""Those whose signal handlers are installed, the latest one last."""


class Signals:
    """SIGINT and SIGTERM of the process, for as long as one server runs. For the main thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pid = os.getpid()
        self._count = 0
        self._restore: dict[int, Callable[[], object]] = {}
        self._earlier_fd: list[int] = []
        # objects, and no numbers: they may be closed again
        self._reading, self._writing = socketpair()

    def take(self) -> None:
        """Install the handlers. Whatever comes out of it: `give_back`."""
        installed.append(self)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._take(number)
        # A signal may be delivered to any thread, and then interrupts no wait of this one: but
        # Python's wakeup fd is written to wherever it arrives.
        self._writing.setblocking(False)
        self._reading.setblocking(True)  # whatever socket.setdefaulttimeout says
        set_wakeup_fd = partial(signal.set_wakeup_fd, warn_on_full_buffer=False)
        # What it returns is kept before the call of C code returns, and an exception may come.
        self._earlier_fd.extend(map(set_wakeup_fd, (self._writing.fileno(),)))
        self._server._on_stopped = self._wake

    def give_back(self) -> None:
        """Restore what was there before; in a forked child, too, where nobody would act on a
        signal.

        May be called again. SIGINT last: up to there no KeyboardInterrupt comes.
        """
        self._server._on_stopped = None
        if self._earlier_fd:
            try:
                signal.set_wakeup_fd(self._earlier_fd[0])
            except (OSError, ValueError):  # its owner has closed it meanwhile, or made it blocking
                signal.set_wakeup_fd(-1)
            self._earlier_fd.clear()
        self._reading.close()
        self._writing.close()
        for number, restore in reversed(list(self._restore.items())):
            restore()
            self._restore.pop(number, None)  # a signal in between may have done it
        with contextlib.suppress(ValueError):  # called again
            installed.remove(self)

    def _take(self, number: int) -> None:
        earlier = signal.getsignal(number)
        if number == signal.SIGINT and earlier is signal.SIG_IGN:
            return
        restore_action = _saved_action(number)

        def restore() -> None:
            try:
                signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
            finally:
                restore_action()

        self._restore[number] = restore
        try:
            signal.signal(number, self._on_signal)
        except ValueError as error:
            del self._restore[number]
            raise RuntimeError(
                "signals can only be handled in the main interpreter: use hydrogen.serve() here"
            ) from error

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # in a forked child, before it was given back there
            self.give_back()
            signal.raise_signal(number)
            return
        self._count += 1
        self._act()

    def _act(self) -> None:
        """Ask for what the signals so far mean; asking again changes nothing."""
        life = self._server._life
        if life is not None and self._count == 1:
            life.ask(self._server.config.stop_timeout)
        elif life is not None and self._count > 1:
            life.abort()

    def wait(self) -> None:
        """Wait until the server has stopped."""
        self._act()  # one may have come before the start
        while not self._server.wait(0):
            try:
                self._reading.recv(1)
            except OSError:
                # a signal handler has forked meanwhile, and this is the child, in which it is
                # closed
                if not self._server.wait(0):
                    raise

    def _wake(self) -> None:
        """By another thread, when `Server.wait` has become true.

        One that is full of signals wakes as well: who waits looks again after each byte. Nobody may
        empty it any more.
        """
        with contextlib.suppress(OSError):  # or it is closed, and nobody waits
            self._writing.send(b"\0")


def _saved_action(number: int) -> Callable[[], object]:
    """What restores the action that the kernel has for a signal now.

    Python does not know it: `signal.getsignal` answers from a table of its own, which C code that
    has called sigaction(2) since, or siginterrupt(3), is not in. Where sigaction(2) cannot be
    called it is not restored, only what that table says.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        action = ctypes.create_string_buffer(1024)  # a struct sigaction has some 150 bytes
        if libc.sigaction(number, None, action):
            return lambda: None
    except (ImportError, OSError, AttributeError, MemoryError):
        # MemoryError: where no memory may be executable
        return lambda: None
    return lambda: libc.sigaction(number, action, None)
