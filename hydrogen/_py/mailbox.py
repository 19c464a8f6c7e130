"""The mailbox of a connection: what has happened to it, and who owns it.

Invariants, on which everything in `connection.py` rests:

1. A connection is *owned* by at most one thread. It is born owned; whoever posts to one that nobody owns makes it owned and puts it into
   the ready queue, and the worker that takes it out is the owner. So it is in the queue at most once.
2. The owner lets go only when no bit is left. Otherwise it keeps the connection and puts it at the back of the queue: no wake-up is lost,
   and a busy connection does not hold a worker.
3. A removed connection stays owned for ever: nobody can claim it again.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

NEW = 1
"""Accepted: `on_new_connection` and `on_connected` are to be called."""
READABLE = 2
"""An edge: there may be something to read."""
HANGUP = 4
"""An edge of HUP or ERR."""
WRITABLE = 8
"""An edge of OUT while a user's stream keeps unsent bytes."""
LOW = 16
"""Pending output fell below the low watermark after it had been above the high one."""
RESUME = 32
"""Go on with the input: a pause has ended."""
AGAIN = 64
"""Go on with the input: the budget of a step was used up."""
DEADLINE = 128
"""A deadline may have passed."""
CLOSING = 256
"""The end was asked for, or output that delayed it is gone."""


class Queue(Protocol):
    """What a mailbox needs of the loop it belongs to."""

    def enqueue(self, connection: Any) -> None:
        """Put a connection at the back of the ready queue."""


class Mailbox:
    """Bits and ownership."""

    __slots__ = ("_bits", "_mail_lock", "_owned", "_queue")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._mail_lock = threading.Lock()
        self._bits = 0
        self._owned = True

    def post(self, bits: int) -> None:
        """Set `bits`, from any thread. No lock is needed and any may be held: the lock here is a leaf."""
        with self._mail_lock:
            self._bits |= bits
            if self._owned:
                return
            self._owned = True
        self._queue.enqueue(self)

    def take(self) -> int:
        """The bits set since the last call. By the owner."""
        with self._mail_lock:
            bits, self._bits = self._bits, 0
            return bits

    def let_go(self) -> bool:
        """Give the ownership up; False when there are bits, then the owner still is. By the owner."""
        with self._mail_lock:
            if self._bits:
                return False
            self._owned = False
            return True
