"""Workers: that take connections from the ready queue and give each a turn. All code of the user's runs here.

What other threads have to do that may run such code, as timers do and logging may, they put into the same queue: a *worker task*.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from hydrogen._py.connection import Connection
from hydrogen._py.step import step

Task = Callable[[], None]

_JOIN_SLICE = 0.005


class Worker(threading.Thread):
    """One worker.

    Attributes:
        pool: whose.
        busy: whether it is in a step, or with a task.
        progress: grows with each of these, and with each callback.
        steps: steps so far.
    """

    def __init__(self, pool: Pool, number: int) -> None:
        super().__init__(name=f"hydrogen-worker-{number}", daemon=True)
        self.pool = pool
        self.busy = False
        self.progress = 0
        self.steps = 0

    def run(self) -> None:
        """take steps until the pool ends."""
        while True:
            item = self.pool.ready.get()
            if item is None:
                if self.pool.leave():
                    return
                continue
            self.busy = True
            self.progress += 1
            if self.pool.all_are_busy():
                self.pool.on_all_busy()
            if isinstance(item, Connection):
                self._step(item)
            else:
                item()
            self.busy = False

    def _step(self, connection: Connection) -> None:
        self.steps += 1
        try:
            if step(connection, self):
                self.pool.ready.put(connection)
        except Exception as error:
            # Want of memory, or a fault of ours. It must not cost a worker; to go on with that connection would be guessing.
            self.pool.on_lost(connection, error)


class Pool:
    """`size` workers and the ready queue.

    After `end` the last worker stays while connections are left: a handler that still blocks leaves a connection to remove.

    Attributes:
        ready: owned connections, each at most once, and tasks; None tells a worker to leave.
    """

    def __init__(
        self,
        size: int,
        is_empty: Callable[[], bool],
        on_all_busy: Callable[[], None],
        on_lost: Callable[[Connection, Exception], None],
        on_last: Callable[[], None],
    ) -> None:
        """Args:
        is_empty: whether no connection is left.
        on_all_busy: called by a worker that has something to do and finds that all others have.
        on_lost: called with a connection whose step raised, and what it raised.
        on_last: called when the last worker leaves after `end`.
        """
        self.ready: SimpleQueue[Connection | Task | None] = SimpleQueue()
        self.on_all_busy = on_all_busy
        self.on_lost = on_lost
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

    def steps(self) -> int:
        """Steps so far."""
        return sum(worker.steps for worker in self._workers)

    def running(self) -> list[tuple[int, int]]:
        """Of each worker that is busy: its ident, and its progress."""
        return [(worker.ident, worker.progress) for worker in self._workers if worker.busy and worker.ident is not None]

    def all_are_busy(self) -> bool:
        """Whether no worker is free. Seldom looks at more than a few of them."""
        for worker in self._workers:  # noqa: SIM110 - a generator would cost more than the loop, and this is for each turn
            if not worker.busy:
                return False
        return True

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
