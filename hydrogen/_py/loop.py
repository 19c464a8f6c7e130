"""The Python engine: `Engine` ties the threads to the slab. Start reading here.

    accept thread -------------new-----------> ready queue ----> workers: read, split, call back,
    write
                                                ^    ^              |
    monitor --------deadline, task-----------+    |              | EPOLL_CTL_ADD, EPOLL_CTL_DEL
                                                     |              v
    event thread: flush what blocked ----readable----+ <--------- epoll

There are `max_threads` threads and four, whatever the number of connections; the fourth is the log
thread, which writes what the accept thread and the monitor thread have to say: a logging handler is
code of the user's, and may block.

Nothing that a method of `Server` or of a socket reaches is guarded by a lock that anybody waits
for: see `role`. What is left is that of `Changes` and the lock of the addresses, which the accept
thread and workers take to count those who come and go, and no one else.

It is the reference, clear before fast: every message takes a hop from the event thread to a worker,
which the compiled engine does without.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from hydrogen._py import kernel, mailbox
from hydrogen._py.acceptor import Acceptor
from hydrogen._py.addresses import Limits, address_of
from hydrogen._py.admission import Admission
from hydrogen._py.broadcast import Broadcast
from hydrogen._py.buffer import Memory
from hydrogen._py.connection import Connection
from hydrogen._py.keepalive import Keepalive
from hydrogen._py.log import LogThread
from hydrogen._py.monitor import Monitor
from hydrogen._py.output import Output
from hydrogen._py.poller import HANGUP, READ, WRITE, Poller
from hydrogen._py.role import Total, Waiters
from hydrogen._py.slab import Slab
from hydrogen._py.socket import Socket
from hydrogen._py.stalls import StalledOutput, StalledWorkers
from hydrogen._py.statistics import Statistics
from hydrogen._py.threads import kept_running
from hydrogen._py.worker import Pool
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import Cause, class_name, cut_traceback, handler_error
from hydrogen.handler import Callbacks
from hydrogen.report import BroadcastReport, Codes, Stats, removals

if TYPE_CHECKING:
    from hydrogen.server import Server

log = logging.getLogger("hydrogen")

OVERLOOKED = 0.05
"""Seconds after which a connection that could not be queued, for want of memory, is tried again."""

SHED_AGAIN = 0.01
"""Seconds until the limit of memory is looked at again, when that could not be done or nobody was
to be removed.
"""


class Engine:
    """See `backend.Engine`. What it has beyond that contract is for its connections
    (`connection.Loop`, `socket.Directory`).
    """

    def __init__(
        self,
        server: Server,
        callbacks: Callbacks,
        config: Config,
        listeners: Sequence[socket.socket],
        max_connections: int,
    ) -> None:
        self.server = server
        self.log = server.log
        self._timers = server.timers  # of this start
        self.callbacks = callbacks
        self.config = config
        self.forked_away = False
        self.is_verbose = log.isEnabledFor(logging.DEBUG)
        self._slab: Slab[Connection] = Slab(config.pre_allocated)
        self.memory = Memory(config.max_buffered, self._resume, self._on_excess)
        self._statistics = Statistics(self._slab)
        self._drained = Waiters()
        self._reset: set[int] = set()  # by `abort_all`, tokens
        self._limits = Limits(max_connections, config.max_connections_per_ip, self._slab.__len__)
        self._refused = Total()
        self.pings_sent = Total()
        self.responses = Codes()
        self._closes = Codes()
        self._polls = 0
        self._unfinished: deque[Output] = deque()
        self._placeholders: deque[int] = deque()  # who takes it out closes it
        self._ended = False
        self._is_open = False  # there is something to release
        self._listeners = listeners
        self._pool = Pool(
            config.max_threads,
            self._is_empty,
            self._on_all_busy,
            self._on_lost,
            self._close_fds,
            lambda: self.forked_away,
        )
        self.ready = self._pool.ready
        self._log_thread = LogThread(self._on_line_lost)
        self._admission = Admission(self, self._limits, self._statistics, self._log_thread)
        self._monitor = Monitor(self._on_deadline)
        self._excess = self._monitor.alarm(self._shed)
        self._overlooked = self._monitor.alarm(self._claim_all)
        self._alarm = self._monitor.alarm(lambda: self.ready.put(self._run_timers))
        timeouts = (
            config.open_timeout,
            config.idle_timeout,
            config.frame_timeout,
            config.write_timeout,
        )
        self.look_every = (
            min((timeout for timeout in timeouts if timeout is not None), default=math.inf) / 4
        )
        self._stalled_output = StalledOutput(self._monitor, config.write_timeout, self.look_every)
        self._keepalive = Keepalive(self._monitor, config.websocket, self._slab.snapshot)
        self._stalled_workers = StalledWorkers(
            self._monitor, self._pool, self._slab.snapshot, self._on_all_blocked
        )
        self._event_thread = threading.Thread(
            target=kept_running(self._poll, self._recover), name="hydrogen-event", daemon=True
        )
        # beside workers
        self._threads = [self._event_thread, self._monitor.thread, self._log_thread.thread]

    def start(self) -> None:
        """Open what the threads need, and start them."""
        with contextlib.ExitStack() as undo:
            # before it is open, for this may fail, too
            undo.callback(kernel.close_once, self._placeholders)
            self._placeholders.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            self.placeholder = self._placeholders[0]
            self.poller = Poller()
            undo.callback(self.poller.close)
            self._acceptor = Acceptor(
                self._listeners,
                self._admission.must_wait,
                self._admission.welcome,
                self._admission.lost,
                self._admission.settle,
                self._limits.most,
                self.log,
                self._log_thread.say,
            )
            self._threads.append(self._acceptor.thread)
            undo.pop_all()
        self._is_open = True
        try:
            self._log_thread.start()
            self._pool.start()
            self._monitor.start()
            self._event_thread.start()
            self._acceptor.start()
        except BaseException:
            self.stop_accepting()
            self.release()
            raise

    def stop_accepting(self) -> None:
        """End the accept thread."""
        if self._is_open:
            self._acceptor.end()

    def suspend(self) -> None:
        """Accept nothing until `resume`."""
        self._acceptor.suspend()

    def resume(self) -> None:
        """Go on accepting."""
        self._acceptor.resume()

    def end(self, socket: HydrogenSocket) -> None:
        """Ask one connection to end gracefully."""
        connection = self.find(socket.token) if isinstance(socket, Socket) else None
        if connection is not None:
            connection.stop()

    def close_all(self) -> None:
        """Ask every connection to end gracefully."""
        for connection in self._slab.snapshot():
            connection.stop()

    def abort_all(self) -> int:
        """End every connection at once that does not end so already."""
        for connection in self._slab.snapshot():
            if connection.end(Cause.SERVER_STOPPED, at_once=True):
                self._reset.add(connection.token)
        return len(self._reset)

    def abandoned(self) -> tuple[int, int]:
        """See what the slab holds, and what of that `abort_all` has noted."""
        tokens = [connection.token for connection in self._slab.snapshot()]
        return len(tokens), len(self._reset.intersection(tokens))

    def wait_drained(self, timeout: float) -> bool:
        """Wait until the slab is empty."""
        return self._drained.wait_for(self._is_empty, timeout)

    def unsent(self) -> int:
        """Output pending now."""
        return sum(connection.pending for connection in self._slab.snapshot())

    def release(self, seconds: float = 1.0) -> int:
        """End the event thread, the monitor thread, the workers and the log thread.

        Those that are in no callback need microseconds, or, on a machine that swaps, longer. But a
        `__del__` that blocks may keep each of them, and a log handler the log thread.
        """
        if not self._is_open:
            return 0
        deadline = time.monotonic() + seconds

        def left() -> float:
            return max(0.0, deadline - time.monotonic())

        self._ended = True
        self.poller.wake()
        if self._event_thread.ident is not None:
            self._event_thread.join(left())
        self._monitor.end(left())
        abandoned = self._pool.end(left())
        for connection in self._slab.snapshot():
            if connection.at_once:
                # or its peer would meet a FIN at last, though output was dropped
                connection.transport.reset_at_last()
        self._log_thread.end(left())
        return abandoned

    def in_worker(self) -> bool:
        """Whether this is any thread of the engine: the collector may run in each, and a `__del__`
        of the user's in there.
        """
        me = threading.current_thread()
        return not self.forked_away and (self._pool.is_mine(me) or me in self._threads)

    def broadcast(self, data: bytes | str, exclude: Collection[HydrogenSocket]) -> BroadcastReport:
        """Send to all; see `Broadcast`."""
        message = Broadcast(self.config.websocket or self.config.builder, data, self.complain)
        if self.forked_away:
            return BroadcastReport(0, 0)
        return message.send(self._slab.snapshot(), exclude)

    def set_alarm(self, when: float) -> None:
        """Have a worker run the timers at `when`."""
        if not self.forked_away:
            self._alarm.set(when)

    def running(self) -> list[tuple[int, int]]:
        """Workers that are busy: between two callbacks they are so for microseconds only, and their
        progress shows it.
        """
        return [] if self.forked_away else self._pool.running()

    def connections(self) -> list[HydrogenSocket]:
        """Those that are introduced, and do not end yet."""
        if self.forked_away:
            return []
        return [
            connection.socket
            for connection in self._slab.snapshot()
            if connection.ready and connection.error is None
        ]

    def stats(self) -> Stats:
        """The counters of connections that are gone, and of those that are there."""
        if self.forked_away:
            return Stats()
        total = self._statistics.sum()
        return Stats(
            connections=total.connections,
            accepted=total.accepted,
            **removals(total.removed, total.timed_out),
            messages_received=total.tally.messages_received,
            messages_sent=total.tally.messages_sent,
            pings_sent=self.pings_sent.value,
            pings_received=total.tally.pings_received,
            pongs_received=total.tally.pongs_received,
            responses=self.responses.snapshot(),
            closes=self._closes.snapshot(),
            messages_refused=self._refused.value,
            bytes_received=total.tally.bytes_received,
            bytes_sent=total.tally.bytes_sent,
            queued_bytes=self.memory.total,
            all_blocked=self._stalled_workers.times,
            accept_pauses=self._acceptor.pauses,
            reading_pauses=total.tally.reading_pauses,
            reading_resumes=total.tally.reading_resumes,
            memory_pauses=self.memory.pauses,
            polls=self._polls,
            iterations=self._pool.steps(),
        )

    def reload_tls(self, context: ssl.SSLContext) -> None:
        """The accept thread looks at this for each connection."""
        self._admission.tls = context

    def forked(self) -> None:
        """In the child: find no connection any more, and close this process's copies of the fds.

        As long as a copy is open the kernel does not end a connection that the parent closes. No
        lock is taken: a thread that exists in the parent only may hold it.
        """
        self.forked_away = True
        for connection in self._slab.snapshot():
            connection.transport.forget()
        if self._is_open:  # or another thread was about to start it: it is known before
            self._acceptor.forget()
            self.poller.forget()
        kernel.close_once(self._placeholders)

    # For connections and their sockets.

    def find(self, token: int) -> Connection | None:
        """See `socket.Directory`."""
        return None if self.forked_away else self._slab.find(token)

    def refused(self) -> None:
        """See `socket.Directory`."""
        if not self.forked_away:
            self._refused.add(1)

    def overlooked(self) -> None:
        """See `mailbox.Queue`."""
        self._overlooked.set(time.monotonic() + OVERLOOKED)

    def tend_later(self, connection: Output) -> None:
        """See `output.OutputLoop`."""
        if connection.transport.is_stream:
            self.ready.put(connection.tend)
        else:
            self._unfinished.append(connection)
            self.poller.wake()

    def leave_if_forked(self) -> None:
        """See `output.OutputLoop`."""
        if self.forked_away and self._pool.is_mine(threading.current_thread()):
            raise SystemExit

    def watch_output(self, connection: Output) -> None:
        """See `output.OutputLoop`."""
        self._stalled_output.watch(connection)

    def remind(self, token: int, when: float) -> None:
        """See `connection.Loop`."""
        self._monitor.set(token, when)

    def complain(
        self, name: str, error: BaseException, connection: Connection | None = None
    ) -> None:
        """See `framing.Complain`. What a log handler raises, whatever it is, is none of the
        engine's.

        Raises: SystemExit: see `leave_if_forked`. KeyboardInterrupt: Ctrl-C, when the main thread
        sends.
        """
        self.leave_if_forked()
        try:
            cut_traceback(error)
            # the log's lock may be held by a thread that exists in the parent only
            if self.forked_away:
                log.error(
                    "%s raised %s",
                    name,
                    class_name(error),
                    exc_info=(type(error), error, error.__traceback__),
                )
            else:
                self.log.callback_error(
                    name, error, None if connection is None else connection.socket
                )
        except BaseException as raised:
            if not (issubclass(type(raised), Exception) or self.in_worker()):
                raise

    def watch_websockets(self) -> None:
        """See `connection.Loop`."""
        self._keepalive.watch()

    def admit(self, connection: Connection) -> bool:
        """See `connection.Loop`."""
        address = address_of(connection.peername)
        if address is None:
            return True
        if not self._limits.enter(connection.place, address):
            self.log.turned_away_from(connection.peername)
            return False
        return True

    def removing(self, connection: Connection) -> None:
        """See `connection.Loop`. Counted before the last callbacks, so that they find themselves in
        `stats`.
        """
        self._statistics.count_removal(connection)
        websocket = connection.websocket
        if websocket is not None and not websocket.is_counted:
            websocket.is_counted = True
            self._closes.add(websocket.code())

    def tell_removed(self, connection: Connection) -> None:
        """See `connection.Loop`."""
        if connection.cause == Cause.SLOW_CONSUMER:
            self.log.slow_consumer(connection.socket.id, connection.peername)
        if self.is_verbose and connection.error is not None:
            self.log.removed(connection.socket.id, connection.error)

    def gone(self, connection: Connection) -> None:
        """See `connection.Loop`. Called again when an exception kept it from returning."""
        self._monitor.cancel(connection.token)
        self._limits.leave(connection.place)
        self._statistics.take_out(connection)
        self._acceptor.released()
        if self._is_empty():
            self._drained.wake()
            self._pool.emptied()

    # The event thread.

    def _poll(self) -> bool:
        """One poll; False: the last."""
        # after a `__del__` that blocked, or a poll that failed: the poller may be closed
        if self._ended:
            return False
        ready = self.poller.wait(block=not self._unfinished)
        self._polls += bool(ready)
        for token, events in ready:
            connection = self._slab.find(token)
            if connection is not None:
                connection.on_events(events)
        self._finish()
        return not self._ended

    def _recover(self, error: BaseException) -> None:
        """A poll failed, for want of memory or by a fault of ours. The edges that it was to tell of
        are gone, and nobody knows whose: every connection looks at what there is.
        """
        for connection in self._slab.snapshot():
            connection.on_events(READ | WRITE | HANGUP)
        if not issubclass(type(error), MemoryError):
            self._log_thread.say(self.complain, "the event thread", error)

    def _finish(self) -> None:
        """Another portion for each flusher that has left its work to this thread."""
        for _ in range(len(self._unfinished)):
            self._unfinished[0].tend()
            self._unfinished.popleft()

    # The monitor thread.

    def _on_deadline(self, token: int) -> None:
        connection = self._slab.find(token)
        if connection is not None:
            connection.post(mailbox.DEADLINE)

    def _shed(self) -> None:
        """While too much is buffered, remove the connection with the most blocked output; where
        there is none, with the most input.

        At once again, until it is not over the limit without what is leaving; later, if somebody
        was changing it.
        """
        if not self.memory.is_over():
            return
        worst: list[Connection] = []
        self.memory.look(lambda: worst.extend(self._worst()))
        is_removed = [
            connection.end(Cause.SLOW_CONSUMER, at_once=True) for connection in worst
        ] == [True]
        if self.memory.is_over():
            self._excess.set(-math.inf if is_removed else time.monotonic() + SHED_AGAIN)

    def _worst(self) -> list[Connection]:
        """The one to remove, if there is one. What those have that end at once is leaving: no other
        goes for that.
        """
        most = (0, 0)
        worst: list[Connection] = []
        for connection in self._slab.snapshot():
            shares = (connection.blocked_output, connection.undelivered)
            held = (shares[0].size, shares[1].size)
            if connection.at_once:
                for share in shares:
                    self.memory.leave(share)
            elif held > most:
                worst, most = [connection], held
        return worst if self.memory.is_over() else []

    def _on_all_blocked(self) -> None:
        self._log_thread.say(self.log.all_blocked, self.config.max_threads)

    def _claim_all(self) -> None:
        """Queue what could not be queued for want of memory."""
        for connection in self._slab.snapshot():
            connection.claim()

    # The workers.

    def _on_all_busy(self) -> None:
        self._stalled_workers.begin()

    def _run_timers(self) -> None:
        self._timers.run_due(self.set_alarm)
        self.leave_if_forked()

    def _on_lost(self, connection: Connection, error: BaseException) -> None:
        """A step of `connection` was left by an exception: nobody knows how far it got."""
        if issubclass(type(error), MemoryError):
            connection.end(Cause.OS_ERROR, code=errno.ENOMEM, at_once=True)
        elif connection.end(Cause.HANDLER_ERROR, handler_error(error), at_once=True):
            self.complain("a step", error, connection)

    # Anybody's.

    def _on_excess(self) -> None:
        self._excess.set(-math.inf)

    def _resume(self, token: int) -> None:
        connection = self._slab.find(token)
        if connection is not None:
            connection.post(mailbox.RESUME)

    def _on_line_lost(self, error: BaseException) -> None:
        self._admission.line_lost()

    def _is_empty(self) -> bool:
        return not len(self._slab)

    def _close_fds(self) -> None:
        """By the last thread to leave."""
        self.poller.close()
        kernel.close_once(self._placeholders)
