"""The mailbox of a connection: what has happened to it, and who owns it.

Invariants, on which everything else rests:

1. A connection is in exactly one place: idle, in the ready queue, or in the *hands* of one thread,
   its owner. It is born in the hands of the accept thread. Who posts to an idle one moves it into
   the ready queue, and the worker that takes it out of there is the owner.
2. It changes places inside one call of C code (see `role`): no exception loses it on the way.
3. No posted bit is forgotten: who posts adds the bits, then looks whether the connection is idle;
   who lets go makes it idle, then looks whether there are bits. One of the two sees the other.
   So one that has more to do goes to the back of the queue: it does not hold a worker.
4. A removed connection stays owned for ever: nobody can claim it again.
"""

from __future__ import annotations

import time
from collections import deque
from queue import SimpleQueue
from typing import Any, Protocol

NEW = 1
"""Accepted: `on_new_connection` and `on_connected` are to be called."""
READABLE = 2
"""An edge: there may be something to read."""
HANGUP = 4
"""An edge of HUP or ERR."""
LOW = 16
"""Pending output fell below the low watermark after it had been above the high one."""
RESUME = 32
"""Go on with the input: a pause has ended."""
AGAIN = 64
"""Look again: the budget of a step was used up, or somebody was at the output."""
DEADLINE = 128
"""A deadline may have passed."""
STOP = 256
"""A graceful stop asks for the end."""
CLOSING = 512
"""The end was asked for, or output that delayed it is gone."""

SHORTAGE = 0.01
"""Seconds until a bit for which there is no memory is posted again."""

Hands = deque[Any]
"""What one thread holds: at most one thing."""

_take_one = deque.pop


class Queue(Protocol):
    """What a mailbox needs of the loop it belongs to.

    Attributes:
        ready: the ready queue.
    """

    ready: SimpleQueue[Any]

    def overlooked(self) -> None:
        """Have `claim` called soon, of every connection: for want of memory one was not queued."""


class Mailbox:
    """Bits and ownership."""

    __slots__ = ("__weakref__", "_idle", "_mail", "_queue")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._mail: deque[int] = deque()
        self._idle: Hands = deque()

    @property
    def is_owned(self) -> bool:
        """Whether the connection is in the ready queue, or in somebody's hands."""
        return not self._idle

    def post(self, bits: int) -> None:
        """Set `bits`. From any thread, at any moment."""
        try:
            self._put(bits)
        finally:
            if self._idle:
                self.claim()

    def _put(self, bits: int) -> None:
        while True:
            try:
                self._mail.append(bits)
                return
            except MemoryError:  # nobody would post it again
                time.sleep(SHORTAGE)

    def claim(self) -> None:
        """Put the connection into the ready queue, if it is idle and has mail."""
        try:
            if self._mail:
                self._move()
        except MemoryError:
            self._queue.overlooked()

    def _move(self) -> None:
        hands: Hands = deque()
        try:
            hands.extend(map(_take_one, (self._idle,)))
        except IndexError:  # somebody else was faster
            return
        finally:
            try:
                if hands:
                    self._queue.ready.put(hands[0])
            except MemoryError:
                self._idle.extend(hands)
                raise

    def take(self) -> int:
        """The bits set since the last call. By the owner."""
        bits = 0
        while self._mail:
            bits |= self._mail.popleft()
        return bits

    def let_go(self, hands: Hands) -> None:
        """Make the connection idle, which is in `hands`, or, if it has mail, put it at the back of
        the queue. By the owner.
        """
        try:
            self._idle.extend(map(_take_one, (hands,)))
        finally:
            self.claim()


def receive(queue: SimpleQueue[Any], hands: Hands) -> None:
    """Wait for something in `queue`, and take it into `hands`."""
    hands.extend(map(queue.get, (True,)))
