"""The acceptor: one thread that accepts on all listeners. It never waits for anything but them, and
never runs code of the user's.

It is one for all of them, so that there is one who looks at `max_connections` and adds. It accepts
one connection of each listener that is ready, in turn: so none waits for another one's backlog, and
an accept(2) for which there is no memory has taken one. What it has to say the log thread writes: a
logging handler is code of the user's.

Accepting *pauses* in three cases, in which the listeners are not polled: they stay readable, and
would spin. While suspended, until `resume`. At `max_connections`, if the policy is to wait, until a
connection is released. When the kernel is out of something, for `PAUSE_MS`, or until a connection
is released, whichever comes first. A listener of which accept(2) fails otherwise, as of one that
somebody has shut down, is left out alone for `PAUSE_MS`.

No release is slept through: this thread sets `_hungry`, then looks whether there is room, then
sleeps; a worker releases the slot, then looks at `_hungry`. Either the thread sees the room, or the
worker sees that it is hungry, and wakes it.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hydrogen._py import kernel
from hydrogen._py.threads import kept_running
from hydrogen.locks import under

if TYPE_CHECKING:
    from hydrogen.log import RateLimitedLog

PAUSE_MS = 100
"""How long accepting pauses when the kernel is out of something: short enough to go unnoticed, long
enough not to be a load.
"""


END_PATIENCE = 0.5
"""Seconds that `end` waits for the thread. It needs microseconds, but for a `__del__` that blocks:
the collector may run in it.
"""


class Acceptor:
    """Gives each accepted socket, with the peer's address, to `welcome`.

    Attributes:
        thread: who accepts.
        pauses: times that accepting was paused for want of something, or at `max_connections`.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        must_wait: Callable[[], bool],
        welcome: Callable[[socket.socket, Any], None],
        lost: Callable[[], None],
        settle: Callable[[], None],
        most: int,
        log: RateLimitedLog,
        tell: Callable[..., object],
    ) -> None:
        """Args:
        must_wait: asked before each accept(2): whether no more may be accepted until a connection
        is released.
        lost: called for a connection that was accepted, and is closed for want of memory.
        settle: called after `welcome` has raised, until it does not raise.
        most: `max_connections`.
        tell: has the log thread call a function with arguments.
        """
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._must_wait = must_wait
        self._welcome = welcome
        self._lost = lost
        self._settle = settle
        self._most = most
        self._log = log
        self._tell = tell
        self._wakeup = kernel.Wakeup()
        self._suspended = False
        self._hungry = False  # see the module
        self._paused_for: str | None = None  # so that it is told once
        self._ended = False
        self._left_out: list[int] = []  # not polled, for the time being
        self._next_try = 0.0  # when they are polled again
        self._asleep, self._waiting = select.poll(), select.poll()
        self._asleep.register(self._wakeup.fileno(), select.POLLIN)
        for fd in (self._wakeup.fileno(), *self._listeners):
            self._waiting.register(fd, select.POLLIN)
        self._keep_running = kept_running(self._iterate, self._recover)
        self.thread = threading.Thread(target=self._run, name="hydrogen-accept", daemon=True)
        self.pauses = 0

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def suspend(self) -> None:
        """Accept nothing until `resume`; the thread may be about to accept one."""
        self._suspended = True
        self._wakeup.signal()

    def resume(self) -> None:
        """Go on."""
        self._suspended = False
        self._wakeup.signal()

    def released(self) -> None:
        """A connection was released. From any thread."""
        if self._hungry:
            self._wakeup.signal()

    def end(self) -> None:
        """End the thread, and wait for that, but not for a `__del__` that blocks it: nothing more
        is accepted. May be called again.
        """
        self._ended = True
        if self.thread.ident is None:
            self._wakeup.close()
        else:
            self._wakeup.signal()
            self.thread.join(END_PATIENCE)

    def forget(self) -> None:
        """In a forked child: close this process's copies of fds."""
        self._wakeup.forget()

    def _run(self) -> None:
        self._keep_running()
        self._wakeup.close()  # here: nobody else knows when it is polled no more

    def _iterate(self) -> bool:
        """Wait until there is something to accept, and accept; False: the thread is to end."""
        if not self._ended:
            self._wait()
        return not self._ended

    def _wait(self) -> None:
        asleep, waiting = self._asleep, self._waiting
        self._hungry = True
        if self._suspended:
            asleep.poll()
        elif self._must_wait():
            self._pause("limit", self._most)
            asleep.poll()
        else:
            self._hungry = False
            if self._paused_for == "limit":
                self._go_on()
            ready = waiting.poll(self._poll_left_out())
            if self._suspended or self._accept_from(
                [fd for fd, _ in ready if fd in self._listeners]
            ):
                return
            self._hungry = True
            asleep.poll(PAUSE_MS)
        self._wakeup.clear()

    def _poll_left_out(self) -> float | None:
        """Poll again what was left out, if it is time; ms until it is."""
        if self._left_out and (left := self._next_try - time.monotonic()) > 0:
            return left * 1000
        while self._left_out:
            self._waiting.register(self._left_out[-1], select.POLLIN)
            self._left_out.pop()
        return None

    def _leave_out(self, fd: int) -> None:
        if not self._left_out:
            self._next_try = time.monotonic() + PAUSE_MS / 1000
        self._left_out.append(fd)
        self._waiting.unregister(fd)

    def _recover(self, error: BaseException) -> None:
        """Want of memory, or an fd that somebody else has closed: it concerns one connection."""
        self._settle()
        if issubclass(type(error), MemoryError):
            self._pause("want", None)
        else:
            self._tell(self._log.say, logging.ERROR, "accept", "accept: %r", error)

    def _accept_from(self, ready: list[int]) -> bool:
        """One of each listener that is ready; False when the kernel is out of something."""
        self._wakeup.clear()
        return all(self._accept_one(fd, self._listeners[fd]) for fd in ready)

    def _accept_one(self, fd: int, listener: socket.socket) -> bool:
        """Accept one, which is there; False when the kernel is out of something."""
        if self._ended or self._suspended or self._must_wait():
            return True
        # Again: a `__del__` may have blocked here until nobody waited for this thread any more.
        return bool(
            under(
                kernel.fork_gate.lock, lambda: self._ended or self._accept_and_welcome(fd, listener)
            )
        )

    def _accept_and_welcome(self, polled: int, listener: socket.socket) -> bool:
        try:
            fd, peername = self._take(listener)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno in kernel.TRANSIENT:
                return True
            if error.errno not in kernel.EXHAUSTED:
                self._leave_out(polled)
                self._tell(self._log.say, logging.ERROR, "accept", "accept: %s", error)
                return True
            self._pause("want", None)
            return False
        try:
            sock = socket.socket(listener.family, listener.type, listener.proto, fileno=fd)
        except BaseException:
            os.close(fd)
            self._lost()
            raise
        self._welcome(sock, peername)
        self._go_on()
        return True

    def _take(self, listener: socket.socket) -> tuple[int, Any]:
        """One accept(2): the fd, and the peer's address."""
        free = os.dup(self._wakeup.fileno())
        os.close(free)
        # Whether it blocks is of the open file, which another process may share, and change:
        # somebody else may take the connection, and this thread would keep every listener and every
        # fork waiting.
        os.set_blocking(listener.fileno(), False)
        try:
            # accept() loses the fd where there is no memory for the object.
            return listener._accept()  # type: ignore[attr-defined,no-any-return]
        except MemoryError:  # it was accepted
            self._lost()
            kernel.close_orphan(free, listener)
            raise

    def _pause(self, reason: str, most: int | None) -> None:
        """Accepting pauses. It is told once, and counted once, but for want of something, when each
        try is: `resume` may wake this thread any number of times in a pause.
        """
        self.pauses += reason == "want" or self._paused_for != reason
        if self._paused_for != reason:
            self._paused_for = reason
            self._tell(self._log.accepting_paused, most)

    def _go_on(self) -> None:
        """Accepting goes on: there is room, or, after want of something, a connection was
        accepted.
        """
        if self._paused_for is not None:
            self._paused_for = None
            self._tell(self._log.accepting)
