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
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hydrogen._py import kernel, mailbox, opening
from hydrogen._py.acceptor import Acceptor
from hydrogen._py.addresses import Limits, Place, address_of
from hydrogen._py.buffer import Memory
from hydrogen._py.connection import Connection
from hydrogen._py.log import LogThread
from hydrogen._py.monitor import Monitor
from hydrogen._py.output import Output, Tally
from hydrogen._py.poller import HANGUP, READ, WRITE, Poller
from hydrogen._py.role import Total, Waiters
from hydrogen._py.slab import Slab
from hydrogen._py.socket import Socket
from hydrogen._py.stalls import StalledOutput, StalledWorkers
from hydrogen._py.threads import kept_running
from hydrogen._py.worker import Pool
from hydrogen.codec import encode
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import Cause, Timeout, class_name, cut_traceback, handler_error
from hydrogen.frame import FrameBuilder
from hydrogen.handler import Callbacks
from hydrogen.locks import under
from hydrogen.proxy import may_send
from hydrogen.report import BroadcastReport, Stats, removals

if TYPE_CHECKING:
    from hydrogen.server import Server

log = logging.getLogger("hydrogen")

T = TypeVar("T")

OVERLOOKED = 0.05
"""Seconds after which a connection that could not be queued, for want of memory, is tried again."""

READS = 100
"""Times that `stats` reads the counters again because they were changed meanwhile; in the end by a
call that this one has interrupted.
"""

SHED_AGAIN = 0.01
"""Seconds until the limit of memory is looked at again, when that could not be done or nobody was
to be removed.
"""


class Changes:
    """A lock for those who change the counters, one after the other. Who reads them takes no lock,
    and looks at the version before and after.

    Attributes:
        version: odd while somebody changes them.
    """

    __slots__ = ("_lock", "version")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.version = 0

    def make(self, change: Callable[[], T]) -> T:
        """What `change` returns, which changes counters. Whatever is raised, the lock is free and
        the version even then: see `locks`.
        """
        return cast(T, under(self._lock, lambda: self._make(change)))

    def _make(self, change: Callable[[], T]) -> T:
        version = self.version + 1
        following = version + 1  # leaving allocates nothing
        try:
            self.version = version
            return change()
        finally:
            self.version = following


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
        self.callbacks = callbacks
        self.config = config
        self.forked_away = False
        self.is_verbose = log.isEnabledFor(logging.DEBUG)
        self._slab: Slab[Connection] = Slab(config.pre_allocated)
        self.memory = Memory(config.max_buffered, self._resume, self._on_excess)
        self._changes = Changes()  # of the counters
        self._newborn: mailbox.Hands = deque()  # of the accept thread
        self._drained = Waiters()
        self._accepted = 0
        self._removed: Counter[int] = Counter(dict.fromkeys(Cause, 0))
        self._timed_out: Counter[int] = Counter(dict.fromkeys(Timeout, 0))
        self._tells_of_overload = False
        self._counted: dict[int, object] = {}  # by `abort_all`, tokens
        self._limits = Limits(max_connections, config.max_connections_per_ip, self._slab.__len__)
        self._total = Tally()
        self._refused = Total()
        self._polls = 0
        self._unfinished: deque[Output] = deque()
        self._placeholders: deque[int] = deque()  # who takes it out closes it
        self._ended = False
        self._is_open = False  # there is something to release
        self._tls = config.ssl
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
        self._monitor = Monitor(self._on_deadline)
        self._excess = self._monitor.alarm(self._shed)
        self._overlooked = self._monitor.alarm(self._claim_all)
        self._timers = self._monitor.alarm(lambda: self.ready.put(self._run_timers))
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
        self._stalled_workers = StalledWorkers(self._monitor, self._pool, self._on_all_blocked)
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
                self._must_wait,
                self._welcome,
                self._lost,
                self._settle,
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
        """End every connection at once. Each that is there is counted, once: also those that end
        already, their handlers may block.
        """
        connections = self._slab.snapshot()
        mine = object()
        fresh = [
            connection
            for connection in connections
            if self._counted.setdefault(connection.token, mine) is mine
        ]
        for connection in connections:
            connection.end(Cause.SERVER_STOPPED, at_once=True)
        return len(fresh)

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

    def broadcast(self, data: bytes, exclude: Collection[HydrogenSocket]) -> BroadcastReport:
        """Send to all that are introduced, and are not being reset. What the server's framing
        cannot carry is raised, before anything is sent; what another framing cannot is dropped
        there.
        """
        # By the id of the builder, which need not be hashable.
        frames: dict[int, bytes | None] = {
            id(self.config.builder): encode(self.config.builder, data)
        }
        if self.forked_away:
            return BroadcastReport(0, 0)
        excluded = set(exclude)
        for other in excluded:
            if not isinstance(other, HydrogenSocket):
                raise TypeError(f"exclude: sockets are expected, not {other!r}")
        sent = dropped = 0
        rest = 0.0
        for connection in self._slab.snapshot():
            gone = connection.at_once or connection.is_sealed
            if not connection.ready or gone or connection.socket in excluded:
                continue
            builder = connection.builder
            if id(builder) not in frames:
                frames[id(builder)] = self._frame(builder, data)
            taken = self._send(connection, frames[id(builder)])
            sent += taken
            dropped += not taken
            rest = max(rest, connection.rest())
        if rest:
            time.sleep(rest)
        return BroadcastReport(sent, dropped)

    def _frame(self, builder: FrameBuilder | None, data: bytes) -> bytes | None:
        """`data` as `builder` frames it; None: it cannot."""
        try:
            return encode(builder, data)
        except ValueError:
            return None
        except Exception as error:
            self.complain(f"{class_name(builder)}.frame", error)
            return None

    def _send(self, connection: Connection, frame: bytes | None) -> bool:
        """Send to one of many: whatever is wrong with it, the others are not to miss theirs."""
        try:
            return frame is not None and connection.send(frame, rests=False)
        except Exception as error:
            self.complain("broadcast", error)
            return False

    def set_alarm(self, when: float) -> None:
        """Have a worker run the timers at `when`."""
        if not self.forked_away:
            self._timers.set(when)

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
        for _ in range(READS):
            version = self._changes.version
            total = Tally()
            connections = self._slab.snapshot()
            total.add(self._total)
            for connection in connections:
                total.add(connection.tally)
            removed = self._removed.copy()
            timed_out = self._timed_out.copy()
            accepted = self._accepted
            if version == self._changes.version and not version % 2:
                break
            time.sleep(0)
        return Stats(
            connections=len(connections),
            accepted=accepted,
            **removals(removed, timed_out),
            messages_received=total.messages_received,
            messages_sent=total.messages_sent,
            messages_refused=self._refused.value,
            bytes_received=total.bytes_received,
            bytes_sent=total.bytes_sent,
            queued_bytes=self.memory.total,
            all_blocked=self._stalled_workers.times,
            accept_pauses=self._acceptor.pauses,
            reading_pauses=total.reading_pauses,
            reading_resumes=total.reading_resumes,
            memory_pauses=self.memory.pauses,
            polls=self._polls,
            iterations=self._pool.steps(),
        )

    def reload_tls(self, context: ssl.SSLContext) -> None:
        """The accept thread looks at this for each connection."""
        self._tls = context

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
        if connection.cause != Cause.OVERLOAD and not connection.is_counted:
            self._changes.make(lambda: self._count_removal(connection))

    def _count_removal(self, connection: Connection) -> None:
        cause = connection.cause
        counts, key = (
            (self._timed_out, connection.code) if cause == Cause.TIMEOUT else (self._removed, cause)
        )
        count = counts[key] + 1
        # Nothing is allocated or called from here on, nor is there a jump, see `addresses`: it is
        # counted once.
        counts[key] = count
        connection.is_counted = True

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
        self._counted.pop(connection.token, None)
        if self._slab.find(connection.token) is connection:
            self._changes.make(lambda: self._take_out(connection))
        self._acceptor.released()
        if self._is_empty():
            self._drained.wake()
            self._pool.emptied()

    def _take_out(self, connection: Connection) -> None:
        total, nothing = Tally(), Tally()
        total.add(self._total)
        total.add(connection.tally)
        # which has no callbacks
        is_new = connection.cause == Cause.OVERLOAD and not connection.is_counted
        removed = self._removed[Cause.OVERLOAD] + is_new
        # Nothing is allocated or called until the slot is given back: if that is left, to be done
        # again, this counts nothing then.
        self._total, connection.tally = total, nothing
        self._removed[Cause.OVERLOAD], connection.is_counted = removed, True
        self._slab.release(connection.token)

    # The accept thread.

    def _must_wait(self) -> bool:
        """Whether accepting is to wait for a connection to be released; otherwise what is too much
        is turned away.
        """
        return self.config.overload == "pause" and self._limits.is_full()

    def _turn_away(self, sock: socket.socket) -> None:
        self._count_gone(Cause.OVERLOAD)
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
        self.log.turned_away(self._removed[Cause.OVERLOAD])

    def _on_line_lost(self, error: BaseException) -> None:
        self._tells_of_overload = False

    def _lost(self) -> None:
        self._count_gone(Cause.OS_ERROR)

    def _count_gone(self, cause: Cause) -> None:
        """One was accepted, and is gone before it had a slot."""

        def count() -> None:
            accepted, removed = self._accepted + 1, self._removed[cause] + 1
            self._accepted, self._removed[cause] = accepted, removed

        self._changes.make(count)

    def _welcome(self, sock: socket.socket, peername: Any) -> None:
        """A connection was accepted: it is born owned, and handed to a worker if it is to be made
        ready, or has failed.

        Whatever is raised, it is counted, and closed or in `_newborn`.
        """
        accepted = self._accepted
        try:
            connection = self._give_slot(sock, peername)
        except BaseException:
            sock.close()
            if self._accepted == accepted:
                self._lost()
            raise
        if connection is None:
            return
        self._newborn.append(connection)
        try:
            if self.is_verbose:
                self._log_thread.say(self.log.accepted, connection.socket.id, peername)
            for level, name, value in self.config.socket_options:
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

    def _settle(self) -> None:
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
        # Proxies are not counted at their own address: what they bring is, when its header is
        # there.
        is_proxy = self.config.proxy_protocol != "off" and may_send(
            self.config.proxy_allow_from, peername
        )
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
        """The connection, in its slot. `stats` never sees an accepted connection that is neither
        there nor removed.
        """
        names = (peername, sock.getsockname())
        tls, number = self._tls, self._accepted + 1

        def make(token: int) -> Connection:
            return Connection(self, sock, names, token, Socket(self, token, number), tls, place)

        def take() -> Connection:
            connection = self._slab.acquire(make)
            self._accepted = number
            return connection

        return self._changes.make(take)

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
        self.server.timers.run_due(self.set_alarm)
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

    def _is_empty(self) -> bool:
        return not len(self._slab)

    def _close_fds(self) -> None:
        """By the last thread to leave."""
        self.poller.close()
        kernel.close_once(self._placeholders)
