"""Workers: they take connections from the ready queue, and a step of each. All code of the user's
runs here.

What other threads have to do that may run such code, as timers do, they put into the same queue: a
*worker task*.

A worker is not lost, whatever is raised in it. An exception that leaves a step ends that connection
at once; so its state does not matter any more. An asynchronous one that comes between two steps
costs nobody anything: what the worker has in its hands it has still.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from hydrogen._py import mailbox
from hydrogen._py.connection import Connection
from hydrogen._py.step import step
from hydrogen.guard import outlive
from hydrogen.locks import snapshot, under

Task = Callable[[], None]

_JOIN_SLICE = 0.005

MEMORY_PAUSE = 0.01
"""Seconds that a worker waits for memory to come back."""


class Calling:
    """Entered by a worker around each call of code of the user's."""

    __slots__ = ("now", "progress")

    def __init__(self) -> None:
        self.now = False
        self.progress = 0

    def __enter__(self) -> None:
        self.progress += 1
        self.now = True

    # not *exc, which would be a tuple
    def __exit__(self, kind: object, error: object, entries: object) -> None:
        self.now = False
        self.progress += 1


class Worker(threading.Thread):
    """One worker.

    Attributes:
        pool: whose.
        hands: the item it is at.
        calling: whether it is in code of the user's; `progress` grows with each such call.
        busy: whether it is at an item.
        steps: steps so far.
    """

    def __init__(self, pool: Pool, number: int) -> None:
        super().__init__(
            target=partial(outlive, self._take_steps), name=f"hydrogen-worker-{number}", daemon=True
        )
        self.pool = pool
        self.hands: mailbox.Hands = deque()
        self.calling = Calling()
        self.busy = False
        self.steps = 0
        self._stepping: Connection | None = None

    def _take_steps(self, error: BaseException | None) -> None:
        """Until the pool ends; first see to what `error` has interrupted. The guard of the module.

        What calls anything is inside of the guard: an asynchronous exception may come while one is
        caught.
        """
        while True:
            try:
                if error is not None:
                    if self.pool.is_forked_away():
                        return
                    self._recover(error)
                    error = None
                while self._iterate():
                    pass
                return
            except BaseException as raised:
                error = raised

    def _iterate(self) -> bool:
        """The next item; False: leave."""
        self.busy = False
        if not self.hands:
            mailbox.receive(self.pool.ready, self.hands)
        item = self.hands[0]
        if item is None:
            if self.pool.leave(self):  # it stays in the hands: who is kept from leaving comes again
                return False
            self.hands.clear()
            return True
        self.busy = True
        self.calling.progress += 1
        if self.pool.all_are_busy():
            self.pool.on_all_busy()
        if isinstance(item, Connection):
            self.steps += 1
            self._stepping = item
            contextvars.Context().run(step, item, self)
            self._stepping = None
        else:
            context = contextvars.Context()
            with self.calling:
                context.run(item)
            self.hands.clear()  # not before: what an exception has left is begun again
        return True

    def _recover(self, error: BaseException) -> None:
        """See that what this worker is at goes on, or ends."""
        self.calling.now = False
        # not isinstance(), which asks the exception for its class
        if issubclass(type(error), MemoryError):
            time.sleep(MEMORY_PAUSE)
        connection = self._stepping
        if connection is not None:
            if self.hands:
                self.pool.on_lost(connection, error)
                connection.post(mailbox.CLOSING)
                connection.let_go(self.hands)
            else:
                connection.claim()  # it was let go, perhaps with mail
            self._stepping = None


class Pool:
    """`size` workers and the ready queue.

    After `end` the last worker stays while connections are left: a handler that still blocks leaves
    a connection to remove.

    Attributes:
        ready: owned connections, each at most once, and tasks; None tells a worker to leave.
    """

    def __init__(
        self,
        size: int,
        is_empty: Callable[[], bool],
        on_all_busy: Callable[[], None],
        on_lost: Callable[[Connection, BaseException], None],
        on_last: Callable[[], None],
        is_forked_away: Callable[[], bool],
    ) -> None:
        """Args:
        is_empty: whether no connection is left.
        on_all_busy: called by a worker that has something to do and finds that all others have.
        on_lost: called with a connection whose step raised, and what it raised, until it does not
        raise.
        on_last: called when the last worker leaves after `end`.
        is_forked_away: whether this is a child, and its threads are none of ours.
        """
        self.ready: SimpleQueue[Connection | Task | None] = SimpleQueue()
        self.on_all_busy = on_all_busy
        self.on_lost = on_lost
        self.is_forked_away = is_forked_away
        self._lock = threading.Lock()
        self._is_empty = is_empty
        self._on_last = on_last
        self._workers = [Worker(self, number) for number in range(size)]
        self._started = 0
        self._left: set[Worker] = set()
        self._ended = False

    def start(self) -> None:
        """Start the threads. Raises: RuntimeError: there are too many."""
        for worker in self._workers:
            worker.start()
            self._started += 1

    def steps(self) -> int:
        """Steps so far."""
        return sum(worker.steps for worker in self._workers)

    def running(self) -> list[tuple[int, int]]:
        """Of each worker that is busy: its ident, and its progress."""
        return [
            (worker.ident, worker.calling.progress)
            for worker in self._workers
            if worker.busy and worker.ident is not None
        ]

    def blocked(self) -> list[int] | None:
        """The progress of all workers, if all are in code of the user's; else None."""
        if all(worker.calling.now for worker in self._workers):
            return [worker.calling.progress for worker in self._workers]
        return None

    def held(self) -> set[object]:
        """What the workers have in their hands."""
        return {item for worker in self._workers for item in snapshot(worker.hands)}

    def all_are_busy(self) -> bool:
        """Whether no worker is free. Seldom looks at more than a few of them."""
        # A generator would cost more than the loop, and this is for each turn.
        for worker in self._workers:  # noqa: SIM110
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

    def leave(self, worker: Worker) -> bool:
        """Whether `worker`, who was told to, may leave. By itself; again, when an exception kept
        this from returning.
        """
        left = under(self._lock, lambda: self._note_leaving(worker)) or 0
        if left == self._started:
            self._on_last()
        return left > 0

    def _note_leaving(self, worker: Worker) -> int:
        """How many have left, `worker` included; 0: it must stay."""
        if (
            worker not in self._left
            and len(self._left) == self._started - 1
            and not self._is_empty()
        ):
            return 0
        self._left.add(worker)
        return len(self._left)

    def end(self, patience: float) -> int:
        """Tell all workers to leave and wait for those that are in no callback; how many are left.
        At most `patience` seconds.
        """
        self._ended = True
        if not self._started:
            self._on_last()
        for _ in self._workers:
            self.ready.put(None)
        deadline = time.monotonic() + patience
        for worker in self._workers:
            while (
                worker.is_alive()
                and (self._is_empty() or not worker.busy)
                and time.monotonic() < deadline
            ):
                worker.join(_JOIN_SLICE)
        return sum(worker.is_alive() for worker in self._workers)
