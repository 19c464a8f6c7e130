"""The poller: readiness of all connections, from one epoll instance.

Every fd is registered once, edge-triggered, and its interest is never changed. An edge that is
reported is a *hint*: `select.epoll` carries the fd and no token, so an event that was fetched
before its fd was closed may be looked up after the number went to a new connection. Hence nothing
is believed here: the owner reads, and what recv(2) says is true. A hint too many costs one EAGAIN.
"""

from __future__ import annotations

import contextlib
import select

from hydrogen._py.kernel import Wakeup

READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLHUP | select.EPOLLERR
"""Events after which reading tells something new. PRI: a read had stopped at an urgent mark."""

WRITE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
"""Events after which writing gets further, or fails."""

HANGUP = select.EPOLLHUP | select.EPOLLERR
"""Events that speak of the end of both directions."""

_INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET


class Poller:
    """`add`, `remove` and `wake` from any thread; `wait` from the event thread."""

    __slots__ = ("_epoll", "_tokens", "_wakeup")

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}
        with contextlib.ExitStack() as undo:
            # Now: the exception may keep these objects until the next collection.
            self._epoll = undo.enter_context(select.epoll())
            self._wakeup = Wakeup()
            undo.callback(self._wakeup.close)
            self._epoll.register(self._wakeup.fileno(), select.EPOLLIN)
            undo.pop_all()

    def add(self, fd: int, token: int) -> None:
        """Report events of `fd` with `token` from now on.

        Raises:
            OSError: epoll_ctl(2) failed; nothing is registered.
        """
        self._tokens[fd] = token
        try:
            self._epoll.register(fd, _INTEREST)
        except OSError:
            del self._tokens[fd]
            raise

    def remove(self, fd: int) -> None:
        """Report nothing more of `fd`. Before it is closed: a child may hold the open file, and
        epoll would keep it.
        """
        if self._tokens.pop(fd, None) is None or self._epoll.closed:
            return
        try:
            self._epoll.unregister(fd)
        except OSError:  # a handler closed a number that is not his
            return

    def wait(self, block: bool) -> list[tuple[int, int]]:
        """Pairs (token, events); waits for some, or for `wake`, if `block` is set."""
        ready = []
        for fd, events in self._epoll.poll(None if block else 0):
            token = self._tokens.get(fd)
            if token is not None:
                ready.append((token, events))
            elif fd == self._wakeup.fileno():
                self._wakeup.clear()
        return ready

    def wake(self) -> None:
        """End the `wait` of now, or the next one."""
        self._wakeup.signal()

    def close(self) -> None:
        """Give the fds back."""
        self._epoll.close()
        self._wakeup.close()

    def forget(self) -> None:
        """As `close`, in a forked child."""
        self._epoll.close()
        self._wakeup.forget()
