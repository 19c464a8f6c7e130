"""One start of a server and its stop, carried out by a thread of its own. Knows no engine by name.

The thread exists from the start on, so a stop needs no new one: none can be had once the main
thread has ended (CPython 3.12), or when the system is out of them. It is never the main thread, so
no signal handler runs in it and no KeyboardInterrupt reaches it: what it has begun it finishes.
Everybody else asks and waits, and may be interrupted while waiting; nobody has to take over.

A signal handler, `__del__` and weakref callbacks may call anything here at any moment, also while
their own thread is inside the same function. So nobody waits for a lock here: what is asked for
goes through a SimpleQueue, whose `put` is re-entrant, and what is waited for is a `Latch`.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from hydrogen import backend
from hydrogen.guard import outlive
from hydrogen.listener import Listeners
from hydrogen.log import RateLimitedLog
from hydrogen.report import Stats, StopReport
from hydrogen.watchdog import Watchdog

if TYPE_CHECKING:
    from hydrogen.server import Server

ABORT_GRACE = 0.5
"""Seconds that aborted connections have for their last callbacks; then the handlers that still
block count as abandoned."""

ABORT_LOOK = 0.05
"""Seconds between two looks of a stop whether an abort was asked for meanwhile."""

STOP_GRACE = 1.0
"""Seconds that a stop has when no connection is left, or the rest was reset: one deadline for all
that is waited for then. Each may be kept by code of the user's: a handler, a log handler in
whatever thread, a `__del__`."""

LOG_GRACE = 0.2
"""Seconds of these that are kept for the line which says that the server has stopped."""

SIGNAL_LOOK = 0.5
"""Seconds after which the main thread stops waiting for a moment. A signal that arrives in another
thread, or just before this one sleeps, does not wake it, and its handler runs only when it is
awake."""

FORKED = "the process forked while the server was starting: the server belongs to the parent"

NOTHING = StopReport(0, 0, 0, 0, 0, 0.0)
"""The report of a stop that found nothing to do, or was only asked for."""

UNCOUNTED = Stats()
"""What stands for the counters that an engine could not give."""

SHORT_OF_MEMORY = (MemoryError, RuntimeError, SystemError)
"""What comes where there is none: a lock that cannot be allocated is a RuntimeError, an exception
that CPython loses, for want of a frame object, a SystemError."""

TRIES = 50
"""How often a step is tried for which there is no memory."""

SHORTAGE = 0.02
"""Seconds until memory is asked for again."""


class Latch:
    """An event that is set once. Any thread and any signal handler may wait for it and set it.

    `threading.Event` holds a lock while `wait` and `set` work on it; a signal handler that calls
    either of them in the thread that holds it would wait for ever. Here each waiter has a lock of
    its own. A waiter puts it into the list and then looks at the flag; who sets stores the flag and
    then empties the list. One of the two sees the other. Who is interrupted sets it again.
    """

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: deque[_thread.LockType] = deque()

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Let everybody go on who waits."""
        self._is_set = True
        while self._waiting:  # nothing here takes memory
            try:
                waiting = self._waiting[0]
                if waiting.locked():
                    waiting.release()
                # last: after an interrupt before it, who sets again finds it here
                self._waiting.remove(waiting)
            except (IndexError, RuntimeError, ValueError):
                # somebody else sets it, too, or it has left
                continue

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most `timeout` seconds (None: no limit); whether it is.

        Where there is no memory to wait by, it looks again and again.
        """
        if self._is_set or timeout == 0:
            return self._is_set
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._wait(end)
            except SHORT_OF_MEMORY:
                time.sleep(SHORTAGE)

    def _wait(self, end: float) -> bool:
        is_main = threading.current_thread() is threading.main_thread()
        most = SIGNAL_LOOK if is_main else threading.TIMEOUT_MAX
        mine = _thread.allocate_lock()
        mine.acquire()
        self._waiting.append(mine)
        try:
            while not self._is_set and (left := end - time.monotonic()) > 0:
                mine.acquire(True, min(left, most))
            return self._is_set
        finally:
            with contextlib.suppress(ValueError):  # who set it has taken it out
                self._waiting.remove(mine)


class Steps:
    """What is to be done in turn, all of it, whatever comes out of one of them.

    A step that fails for want of memory is tried again, `TRIES` times at most, so it must bear
    that. What else comes out of one is logged, and the next one has its turn. The list is made
    beforehand, and running it takes no memory of its own.
    """

    def __init__(self, log: RateLimitedLog, *steps: Callable[[], object]) -> None:
        self._log = log
        self._steps = steps
        self._next = 0  # an index: to shorten a list takes memory
        self._tries = TRIES

    def run(self) -> None:
        """Do all. Raises nothing."""
        while self._next < len(self._steps):
            try:
                self._go_on()
            except BaseException:  # from within _go_on, whose next call goes on where this one was
                self._tries -= 1

    def _go_on(self) -> None:
        try:
            self._steps[self._next]()
        except BaseException as error:
            self._tries -= 1
            if issubclass(type(error), SHORT_OF_MEMORY) and self._tries > 0:
                time.sleep(SHORTAGE)
                return
            self._next += 1
            self._tries = TRIES
            self._log.say(
                logging.ERROR,
                "lifecycle",
                "a step of starting or stopping the server failed",
                error=error,
            )
        else:
            self._next += 1
            self._tries = TRIES


class Life:
    """One start of a server and its stop.

    Attributes:
        engine: from when its threads start; it remains after the stop, for its counters.
        addresses: of the listeners, once they exist.
        started: set when the start is over. Only callbacks may use the engine before.
        stopping: a stop was asked for.
        ended: set when the start has failed, or the stop is over and `report` stands.
        told: set when that is logged, too.
        deadline: when the stop is over at the latest, the line in the log included; known when what
            was left was reset.
        report: of the stop.
        error: why the start failed.
    """

    def __init__(self, server: Server) -> None:
        self.engine: backend.Engine | None = None
        self.addresses: list[Any] = []
        self.started = Latch()
        self.stopping = False
        self.ended = Latch()
        self.told = Latch()
        self.deadline = 0.0
        self.report = NOTHING
        self.error: BaseException | None = None
        self._server = server
        self._listeners: Listeners | None = None
        self._watchdog: Watchdog | None = None
        self._thread: threading.Thread | None = None
        self._starter = threading.get_ident()
        self._launcher: int | None = None
        self._unclaimed = [None]  # who takes it out decides whether there is a start at all
        self._terms: deque[tuple[float | None, float]] = deque()  # the first one counts
        self._asked: SimpleQueue[None] = SimpleQueue()  # something was put into `_terms`
        self._abort_asked = Latch()
        self._created: SimpleQueue[int | None] = SimpleQueue()
        self._called: SimpleQueue[BaseException | None] = SimpleQueue()
        self._serves = False
        self._cancelled = False
        self._is_undone_here = False
        self._forked = False
        self._timeout: float | None = None
        self._spread = self._began = 0.0
        self._before = UNCOUNTED
        self._there = self._unsent = 0
        self._reset = self._abandoned = self._reset_abandoned = 0
        self._is_drained = False
        log, told = server.log, (self.ended.set, self._tell, self.told.set)
        self._running = Steps(log, self._be_started, self._wait_for_stop)
        self._stop = Steps(
            log,
            self._count,
            self._stop_accepting,
            self._close_listeners,
            self._count_admitted,
            self._close,
            self._abort,
            self._tell_watchdog,
            self._release,
            self._end_watchdog,
            self._make_report,
            server._ended,
            *told,
        )
        self._undo = Steps(
            log,
            self._stop_accepting,
            self._abort,
            self._tell_watchdog,
            self._release,
            self._end_watchdog,
            self._undo_listeners,
            server._not_started,
            self._be_started,
            *told,
        )

    # ------------------------------------------------------------------ for anybody

    def begin(self) -> None:
        """Start; returns when the server runs, or the start has failed with `error`.

        `on_server_created` is called here, in the thread that starts the server. Whatever comes out
        of this, such as KeyboardInterrupt, or RuntimeError because there is no thread: `cancel`.
        """
        # Not by threading.Thread.start, which waits for the new thread by an Event: an interrupt in
        # there may leave the Event's lock taken, and the new thread waits for it for ever.
        _thread.start_new_thread(self._launch, ())
        while (fd := self._created.get()) is not None:
            self._called.put(self._call(fd))
        if self._forked:
            raise RuntimeError(FORKED)
        if self.error is None and self.engine is not None:
            self._server._tell_start()

    def cancel(self, error: BaseException) -> None:
        """Undo a start out of which `error` came, however far it has come, and wait for that. To be
        called again where it found no memory.
        """
        self._cancelled = True
        # true: the thread does not run, or will find that there is nothing to do
        self._is_undone_here = self._is_undone_here or self._claim()
        if self._is_undone_here:
            self._fail(error)
            return
        while not self.ended.is_set():
            try:
                self._called.put(error)  # should the thread wait for `on_server_created`
                self.abort()
                self.ended.wait()
            except SHORT_OF_MEMORY:
                time.sleep(SHORTAGE)

    def ask(self, timeout: float | None, spread: float = 0.0) -> None:
        """Ask for a stop, by the terms of who asks first. `timeout` None: reset everything at
        once.
        """
        self.stopping = True
        if not self.ended.is_set():
            self._terms.append((timeout, spread))
            self._asked.put(None)

    def abort(self) -> None:
        """Ask for a stop that resets everything at once; one that is under way does so then."""
        self._abort_asked.set()
        self.ask(None)

    def is_waited_for(self) -> bool:
        """Whether the stop may wait for the calling thread, which must not wait for the stop
        then.
        """
        engine, watchdog, me = self.engine, self._watchdog, threading.get_ident()
        return (
            (engine is not None and engine.in_worker())
            or (watchdog is not None and watchdog.is_mine())
            or self._launcher == me
            # Its number may be another thread's when it has ended.
            or (self._thread is not None and self._thread.ident == me and not self.told.is_set())
            or (not self.started.is_set() and self._starter == me)
        )

    def usable_engine(self) -> backend.Engine | None:
        """The engine for the caller: while it starts it is there for its own callbacks only."""
        engine = self.engine
        if engine is not None and not self.started.is_set() and not engine.in_worker():
            return None
        return engine

    @property
    def slow_callbacks(self) -> int:
        """See `Stats`."""
        return 0 if self._watchdog is None else self._watchdog.slow

    def forked(self) -> None:
        """In the child after fork(2), without the threads: give back the fds, and let everybody go
        on who waits. Takes no lock: a thread that exists in the parent only may hold it."""
        self._forked = self.stopping = True
        self._claim()  # should it go on to start the thread
        self.started.set()
        if self._listeners is not None:
            for sock in self._listeners.sockets:
                sock.close()
        if self.engine is not None:
            self.engine.forked()
        self.engine, self.report = None, NOTHING
        self._created.put(None)
        # The thread itself has forked, in a `__del__` say: it is to end.
        self._called.put(RuntimeError(FORKED))
        self._terms.append((None, 0.0))
        self._asked.put(None)
        self.ended.set()
        self.told.set()

    # ------------------------------------------------------------------ by who starts the server

    def _call(self, fd: int) -> BaseException | None:
        """Call `on_server_created`; what it raised."""
        try:
            self._server._handler.on_server_created(fd)
        except BaseException as error:
            return error
        return None

    # ------------------------------------------------------------------ by the thread

    def _claim(self) -> bool:
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def _launch(self) -> None:
        """Start the thread from one that no signal interrupts either.

        The collector may run in here, too, and a `__del__` that stops the server.
        """
        self._launcher = threading.get_ident()
        try:
            self._thread = threading.Thread(
                target=self._run, name="hydrogen-lifecycle", daemon=True
            )
            self._thread.start()
        except BaseException as error:
            if self._claim():  # the thread may run in spite of it
                self._fail(error)
        finally:
            self._launcher = None  # the number may be another thread's soon

    def _run(self) -> None:
        if not self._claim():
            return
        try:
            self._start()
        except BaseException as error:
            self._fail(error)
            return
        self._running.run()
        self._stop.run()

    def _fail(self, error: BaseException) -> None:
        """Back to where it was. An engine that did not start has released itself, as far as it had
        memory for that.
        """
        self.error = error
        self._undo.run()

    def _be_started(self) -> None:
        self.started.set()
        self._created.put(None)

    def _wait_for_stop(self) -> None:
        outlive(self._take_terms)

    def _take_terms(self, error: BaseException | None) -> None:
        while True:
            # Libraries that raise in other threads (PyThreadState_SetAsyncExc) do not end a server,
            # nor keep it from ending: what comes as `get` returns takes with it what that has
            # returned, and nothing else.
            try:
                if error is not None and issubclass(type(error), SHORT_OF_MEMORY):
                    time.sleep(SHORTAGE)
                while not self._terms:
                    self._asked.get()
                self._timeout, self._spread = self._terms[0]
                return
            except BaseException as raised:
                error = raised

    def _start(self) -> None:
        server, config = self._server, self._server.config
        server._handler.server = server
        self._listeners = Listeners(config)
        self._listeners.listen(self._have_called)
        self.addresses = self._listeners.addresses
        if self.stopping:  # asked for meanwhile: nothing is accepted at all
            return
        # Known before the first callback, which may ask for anything.
        engine = self.engine = server._make_engine(self._listeners.sockets)
        engine.start()
        self._serves = True
        if config.slow_callback is not None:
            watchdog = Watchdog(config.slow_callback, engine.running, server.log)
            self._watchdog = watchdog
            watchdog.start()

    def _have_called(self, fd: int) -> None:
        """Have `begin` call `on_server_created`. Raises what that raises."""
        self._created.put(fd)
        error = self._called.get()
        if error is not None:
            raise error

    # ------------------------------------------------------------------ steps of the stop

    # Each may be called again after it failed for want of memory.

    def _count(self) -> None:
        self._began = time.monotonic()
        if self.engine is not None:
            self._before = self.engine.stats()

    def _stop_accepting(self) -> None:
        if self.engine is not None:
            self.engine.stop_accepting()

    def _close_listeners(self) -> None:
        """A start that was interrupted leaves sockets that were given to it to their owner."""
        if self._cancelled:
            self._undo_listeners()
        elif self._listeners is not None:
            self._listeners.close()

    def _undo_listeners(self) -> None:
        if self._listeners is not None:
            self._listeners.undo()

    def _count_admitted(self) -> None:
        """How many were there when nothing more was accepted, or have ended since the stop
        began.
        """
        if self.engine is not None:
            admitted = _admitted(self.engine.stats()) - _admitted(self._before)
            self._there = self._before.connections + admitted

    def _close(self) -> None:
        """Gracefully, within the timeout."""
        engine, timeout = self.engine, self._timeout
        if engine is not None and timeout is not None:
            self._close_evenly(engine)
            engine.close_all()
            self._is_drained = self._drains(engine, self._began + timeout)

    def _abort(self) -> None:
        """What is left then. Should memory fail in the midst of it, one that was just reset may
        count as closed.
        """
        engine = self.engine if self._serves and not self._is_drained else None
        if engine is not None:
            self._unsent = self._unsent or engine.unsent()
            self._reset = engine.abort_all()
        self.deadline = time.monotonic() + STOP_GRACE
        if engine is not None:
            engine.wait_drained(ABORT_GRACE)

    def _left(self) -> float:
        """Seconds for the threads to end."""
        return max(0.0, self.deadline - LOG_GRACE - time.monotonic())

    def _tell_watchdog(self) -> None:
        """Before the engine is waited for: both may be kept, and the time is for both."""
        if self._watchdog is not None:
            self._watchdog.end(0.0)

    def _end_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.end(self._left())

    def _release(self) -> None:
        if self.engine is not None:
            if self._serves:
                self._abandoned, self._reset_abandoned = self.engine.abandoned()
            self.engine.release(self._left())
            self._server.timers.end()

    def _make_report(self) -> None:
        engine = self.engine
        if engine is not None:
            refused = engine.stats().messages_refused - self._before.messages_refused
            aborted = self._reset - self._reset_abandoned
            # Not below 0: the counters may have changed at every try to read them.
            closed = max(0, self._there - aborted - self._abandoned)
            seconds = time.monotonic() - self._began
            self.report = StopReport(
                closed, aborted, self._abandoned, self._unsent, refused, seconds
            )

    def _tell(self) -> None:
        self._server.log.flush()
        if not self._cancelled and self.error is None:
            self._server.log.stopped(self._before.accepted, self.report)

    def _close_evenly(self, engine: backend.Engine) -> None:
        """Close those there are now one after the other, the last one when `spread` is over, or
        sooner when an abort is asked for."""
        sockets = engine.connections() if self._spread else []
        for number, socket in enumerate(sockets, 1):
            if socket.is_open:  # it may have left by itself
                when = self._began + self._spread * number / len(sockets)
                self._abort_asked.wait(max(0.0, when - time.monotonic()))
                engine.end(socket)

    def _drains(self, engine: backend.Engine, deadline: float) -> bool:
        """Wait until no connection is left; False at the deadline, or when an abort is asked
        for.
        """
        while not engine.wait_drained(max(0.0, min(ABORT_LOOK, deadline - time.monotonic()))):
            if self._abort_asked.is_set() or time.monotonic() >= deadline:
                return False
        return True


def _admitted(stats: Stats) -> int:
    """Connections accepted, and not turned away."""
    return stats.accepted - stats.removed_overload
