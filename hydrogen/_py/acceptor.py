"""The acceptor: one thread that accepts until EAGAIN. It never waits for anything else, and never runs code of the user's."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from hydrogen._py import sys

log = logging.getLogger("hydrogen")

PAUSE_MS = 100
"""How long accepting pauses when the kernel is out of something: short enough to go unnoticed, long enough not to be a load."""


class Acceptor:
    """Gives each accepted socket, with the peer's address, to `welcome`.

    Attributes:
        pauses: times that accepting was paused.
    """

    def __init__(self, listener: socket.socket, welcome: Callable[[socket.socket, Any], None]) -> None:
        self._listener = listener
        self._welcome = welcome
        self._wakeup = sys.Wakeup()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="hydrogen-accept", daemon=True)
        self.pauses = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """End the thread, and wait for that: the listener is not used any more. May be called again."""
        self._ended = True
        self._wakeup.signal()
        if self._thread.ident is not None:
            self._thread.join()
        self._wakeup.close()

    def forget(self) -> None:
        """In a forked child: close this process's copies of fds."""
        self._wakeup.close()

    def _run(self) -> None:
        sys.block_signals()
        asleep = select.poll()
        asleep.register(self._wakeup.fileno(), select.POLLIN)
        waiting = select.poll()
        waiting.register(self._wakeup.fileno(), select.POLLIN)
        waiting.register(self._listener.fileno(), select.POLLIN)
        while not self._ended:
            waiting.poll()
            if not self._accept_all():
                self.pauses += 1
                asleep.poll(PAUSE_MS)

    def _accept_all(self) -> bool:
        """Accept until EAGAIN; False when the kernel is out of something."""
        while not self._ended:
            try:
                sock, peername = self._listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in sys.TRANSIENT:
                    continue
                if error.errno not in sys.EXHAUSTED:
                    log.error("accept: %s", error)
                return False
            sock.setblocking(False)
            self._welcome(sock, peername)
        return True
