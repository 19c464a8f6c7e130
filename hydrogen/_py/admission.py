"""What becomes of an accepted socket: a connection in a slot, or it is turned away. By the accept
thread.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import Any, Protocol

from hydrogen._py import kernel, mailbox, opening
from hydrogen._py.addresses import Limits, Place, address_of
from hydrogen._py.connection import Connection, Loop
from hydrogen._py.log import LogThread
from hydrogen._py.socket import Directory, Socket
from hydrogen._py.statistics import Statistics
from hydrogen.config import Config
from hydrogen.errors import Cause
from hydrogen.proxy import may_send


class Home(Loop, Directory, Protocol):
    """What holds connections and their sockets: the engine."""

    config: Config


class Admission:
    """Decides, and counts.

    Attributes:
        tls: the context of the connections to come; None: they have none.
    """

    def __init__(
        self,
        home: Home,
        limits: Limits,
        statistics: Statistics[Connection],
        log_thread: LogThread,
    ) -> None:
        self._home = home
        self._limits = limits
        self._statistics = statistics
        self._log_thread = log_thread
        self._newborn: mailbox.Hands = deque()  # of the accept thread
        self._tells_of_overload = False
        self.tls = home.config.ssl

    def must_wait(self) -> bool:
        """Whether accepting is to wait for a connection to be released; otherwise what is too much
        is turned away.
        """
        return self._home.config.overload == "pause" and self._limits.is_full()

    def lost(self) -> None:
        """One was accepted, and is closed for want of memory."""
        self._statistics.count_gone(Cause.OS_ERROR)

    def line_lost(self) -> None:
        """A line for the log thread may be lost."""
        self._tells_of_overload = False

    def welcome(self, sock: socket.socket, peername: Any) -> None:
        """A connection was accepted: it is born owned, and handed to a worker if it is to be made
        ready, or has failed.

        Whatever is raised, it is counted, and closed or in `_newborn`.
        """
        accepted = self._statistics.accepted
        try:
            connection = self._give_slot(sock, peername)
        except BaseException:
            sock.close()
            if self._statistics.accepted == accepted:
                self.lost()
            raise
        if connection is None:
            return
        self._newborn.append(connection)
        try:
            if self._home.is_verbose:
                self._log_thread.say(self._home.log.accepted, connection.socket.id, peername)
            for level, name, value in self._home.config.socket_options:
                sock.setsockopt(level, name, value)
            opening.begin(connection)
        except BaseException as error:
            code = (
                errno.ENOMEM
                if issubclass(type(error), MemoryError)
                else getattr(error, "errno", None)
            )
            connection.ready = False  # it never was open: no on_disconnected
            connection.fail(code or errno.EIO)
        connection.let_go(self._newborn)

    def settle(self) -> None:
        """What the accept thread is left with ends."""
        if self._newborn:
            connection = self._newborn[0]
            connection.fail(errno.ENOMEM)
            connection.let_go(self._newborn)

    def _give_slot(self, sock: socket.socket, peername: Any) -> Connection | None:
        """The connection; None: it was turned away."""
        sock.setblocking(False)
        if self._limits.is_full():
            self._turn_away(sock)
            return None
        config = self._home.config
        # Proxies are not counted at their own address: what they bring is, when its header is
        # there.
        is_proxy = config.proxy_protocol != "off" and may_send(config.proxy_allow_from, peername)
        address, place = None if is_proxy else address_of(peername), Place()
        if address is not None and not self._limits.enter(place, address):
            self._turn_away(sock)
            return None
        try:
            return self._take_in(sock, peername, place)
        except BaseException:
            self._limits.leave(place)
            raise

    def _take_in(self, sock: socket.socket, peername: Any, place: Place) -> Connection:
        """The connection, in its slot."""
        names = (peername, sock.getsockname())
        home, tls = self._home, self.tls

        def make(token: int, number: int) -> Connection:
            return Connection(home, sock, names, token, Socket(home, token, number), tls, place)

        return self._statistics.take_in(make)

    def _turn_away(self, sock: socket.socket) -> None:
        self._statistics.count_gone(Cause.OVERLOAD)
        kernel.turn_away(sock)
        # one line at a time: a flood must not fill the queue while the log takes none
        if not self._tells_of_overload:
            self._tells_of_overload = True
            is_taken = False
            try:
                is_taken = self._log_thread.say(self._tell_of_overload)
            finally:
                if not is_taken:  # else it may have been told of already
                    self._tells_of_overload = False

    def _tell_of_overload(self) -> None:
        self._tells_of_overload = False
        self._home.log.turned_away(self._statistics.removed[Cause.OVERLOAD])
