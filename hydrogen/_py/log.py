"""The log thread: it writes into the log what the accept thread and the monitor thread have to say.

A logging handler is code of the user's: it may block for ever, as a full pipe does, and raise
anything. It keeps this thread then, and nobody else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from hydrogen._py import mailbox
from hydrogen._py.threads import kept_running

MANY = 1000
"""Lines that may wait; what comes while the log takes none is left out."""


class LogThread:
    """The thread, and the lines that wait for it.

    Attributes:
        thread: who writes them.
    """

    def __init__(self, on_interrupted: Callable[[BaseException], None]) -> None:
        """Args: on_interrupted: called, until it does not raise, when an exception set from outside
        may have taken a line.
        """
        self._lines: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._hands: mailbox.Hands = deque()  # of the thread: what it has taken, and not begun
        self.thread = threading.Thread(
            target=kept_running(self._iterate, on_interrupted), name="hydrogen-log", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def say(self, write: Callable[..., None], *arguments: object) -> bool:
        """Have `write` called with `arguments`; False when too many lines wait. From any thread, at
        any moment.
        """
        if self._lines.qsize() >= MANY:
            return False
        self._lines.put(partial(write, *arguments))
        return True

    def end(self, patience: float) -> None:
        """End the thread when it has written what waits, and wait for that, at most `patience`
        seconds: a log handler may keep it.
        """
        self._lines.put(None)
        if self.thread.ident is not None:
            self.thread.join(patience)

    def _iterate(self) -> bool:
        if not self._hands:
            # an exception set in a thread that waits comes behind this
            mailbox.receive(self._lines, self._hands)
        write = self._hands[0]
        if write is None:  # it stays there: who is kept from leaving comes again
            return False
        self._hands.clear()  # before: what raises is not written twice
        write()
        return True
