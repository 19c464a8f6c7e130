"""The pool: workers that take connections from the ready queue and give each a turn. All code of the user's runs here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from hydrogen._py.connection import Connection

log = logging.getLogger("hydrogen")

_JOIN_SLICE = 0.005


class Worker(threading.Thread):
    """One worker.

    Attributes:
        pool: whose.
        busy: whether it is in a turn.
        turns: turns so far.
    """

    def __init__(self, pool: Pool, number: int) -> None:
        super().__init__(name=f"hydrogen-worker-{number}", daemon=True)
        self.pool = pool
        self.busy = False
        self.turns = 0

    def run(self) -> None:
        """Give turns until the pool ends."""
        while True:
            connection = self.pool.ready.get()
            if connection is not None:
                self._turn(connection)
            elif self.pool.leave():
                return

    def _turn(self, connection: Connection) -> None:
        self.busy = True
        self.turns += 1
        try:
            if connection.turn():
                self.pool.ready.put(connection)
        except Exception:
            # Want of memory, or a fault of ours. It must not cost a worker; to go on with that connection would be guessing.
            log.exception("connection %d is lost", connection.socket.id)
        self.busy = False


class Pool:
    """`size` workers and the ready queue.

    After `end` the last worker stays while connections are left: a handler that still blocks leaves a connection to remove.

    Attributes:
        ready: owned connections, each at most once; None tells a worker to leave.
    """

    def __init__(self, size: int, is_empty: Callable[[], bool], on_last: Callable[[], None]) -> None:
        """Args: is_empty: whether no connection is left. on_last: called when the last worker leaves after `end`."""
        self.ready: SimpleQueue[Connection | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_empty = is_empty
        self._on_last = on_last
        self._workers = [Worker(self, number) for number in range(size)]
        self._started = 0
        self._present = 0
        self._ended = False

    def start(self) -> None:
        """Start the threads. Raises: RuntimeError: there are too many."""
        for worker in self._workers:
            worker.start()
            self._started += 1
            self._present += 1

    def turns(self) -> int:
        """Turns so far."""
        return sum(worker.turns for worker in self._workers)

    def is_mine(self, thread: threading.Thread) -> bool:
        """Whether `thread` is a worker of this pool."""
        return isinstance(thread, Worker) and thread.pool is self

    def emptied(self) -> None:
        """The last connection has gone; the worker who stayed for it may leave."""
        if self._ended:
            self.ready.put(None)

    def leave(self) -> bool:
        """Whether the calling worker, who was told to, may leave."""
        with self._lock:
            if self._present == 1 and not self._is_empty():
                return False
            self._present -= 1
            last = not self._present
        if last:
            self._on_last()
        return True

    def end(self, patience: float) -> int:
        """Tell all workers to leave and wait for those that are in no callback; how many are left. At most `patience` seconds."""
        self._ended = True
        if not self._started:
            self._on_last()
        for _ in self._workers:
            self.ready.put(None)
        deadline = time.monotonic() + patience
        for worker in self._workers:
            while worker.is_alive() and (self._is_empty() or not worker.busy) and time.monotonic() < deadline:
                worker.join(_JOIN_SLICE)
        return sum(worker.is_alive() for worker in self._workers)
