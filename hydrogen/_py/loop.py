"""The Python engine: `Engine` ties the threads to the slab. Start reading here.

    accept thread -------------new-----------> ready queue ----> workers: read, split, call back, write
                                                ^    ^              |
    timekeeper ------------deadline-------------+    |              | EPOLL_CTL_ADD, EPOLL_CTL_DEL
                                                     |              v
    event thread: flush what blocked ----readable----+ <--------- epoll

There are `max_threads` threads and three, whatever the number of connections. Locks, in the order in which they may be taken:
`Engine._lock`, or, of one connection, the lock of its TLS session and then its output lock; then the leaves: mailbox, memory, slab,
timekeeper.

It is the reference, clear before fast: every message takes a hop from the event thread to a worker, which the compiled engine does without.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from hydrogen._py import mailbox, sys
from hydrogen._py.acceptor import Acceptor
from hydrogen._py.buffer import Memory
from hydrogen._py.connection import Connection
from hydrogen._py.handle import Socket
from hydrogen._py.output import Output, Tally
from hydrogen._py.poller import Poller
from hydrogen._py.pool import Pool
from hydrogen._py.slab import Slab
from hydrogen._py.timekeeper import Timekeeper
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import Cause
from hydrogen.handler import Callbacks
from hydrogen.report import Stats

if TYPE_CHECKING:
    from hydrogen.server import Server

_PROTOCOL_ERRORS = (Cause.BAD_FRAME, Cause.FRAME_TOO_LARGE, Cause.CHECKSUM_MISMATCH, Cause.INCOMPLETE_FRAME)

RELEASE_PATIENCE = 1.0
"""Seconds that `release` waits for workers that are in no callback. They need microseconds, or, on a machine that swaps, longer."""


class Engine:
    """See `backend.Engine`. What it has beyond that contract is for its connections (`connection.Loop`, `handle.Directory`)."""

    def __init__(self, server: Server, callbacks: Callbacks, config: Config, listener: socket.socket) -> None:
        self.server = server
        self.callbacks = callbacks
        self.config = config
        self.forked_away = False
        self._slab: Slab[Connection] = Slab(config.pre_allocated)
        self.memory = Memory(config.max_buffered, self._resume, self._on_excess)
        self._lock = threading.Lock()
        self._drained = threading.Condition(self._lock)
        self._accepted = 0
        self._removed: Counter[Cause] = Counter()
        self._total = Tally()
        self._polls = 0
        self._unfinished: deque[Output] = deque()
        self._ended = False
        self._tls = config.ssl
        self._listener = listener
        self._timekeeper = Timekeeper(self._on_deadline, self._shed)
        self._pool = Pool(config.max_threads, self._is_empty, self._close_fds)
        self._event_thread = threading.Thread(target=self._watch, name="hydrogen-event", daemon=True)

    def start(self) -> None:
        """Open what the threads need, and start them."""
        with contextlib.ExitStack() as undo:
            self.placeholder = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self.placeholder)
            self.poller = Poller()
            undo.callback(self.poller.close)
            self._acceptor = Acceptor(self._listener, self._welcome)
            undo.pop_all()
        try:
            self._pool.start()
            self._timekeeper.start()
            self._event_thread.start()
            self._acceptor.start()
        except BaseException:
            self.stop_accepting()
            self.release()
            raise

    def stop_accepting(self) -> None:
        """End the accept thread."""
        self._acceptor.end()

    def close_all(self) -> None:
        """Ask every connection to end in order."""
        for connection in self._slab.snapshot():
            connection.end(Cause.SERVER_STOPPED)

    def abort_all(self) -> int:
        """End every connection at once. Each that is there is counted, once: also those that end already, their handlers may block."""
        connections = self._slab.snapshot()
        with self._lock:
            fresh = [connection for connection in connections if not connection.counted]
            for connection in fresh:
                connection.counted = True
        for connection in connections:
            connection.end(Cause.SERVER_STOPPED, at_once=True)
        return len(fresh)

    def wait_drained(self, timeout: float) -> bool:
        """Wait until the slab is empty."""
        with self._drained:
            return self._drained.wait_for(self._is_empty, timeout)

    def unsent(self) -> int:
        """Output pending now."""
        return sum(connection.pending for connection in self._slab.snapshot())

    def release(self) -> int:
        """End the event thread, the timekeeper and the workers."""
        self._ended = True
        self.poller.wake()
        if self._event_thread.ident is not None:
            self._event_thread.join()
        self._timekeeper.end()
        return self._pool.end(RELEASE_PATIENCE)

    def in_worker(self) -> bool:
        """Whether this is a worker."""
        return not self.forked_away and self._pool.is_mine(threading.current_thread())

    def connections(self) -> list[HydrogenSocket]:
        """Those that are introduced, and do not end yet."""
        if self.forked_away:
            return []
        return [connection.socket for connection in self._slab.snapshot() if connection.is_introduced and connection.error is None]

    def stats(self) -> Stats:
        """The counters of connections that are gone, and of those that are there."""
        if self.forked_away:
            return Stats()
        total = Tally()
        with self._lock:
            connections = self._slab.snapshot()
            total.add(self._total)
            for connection in connections:
                total.add(connection.tally)
            removed = self._removed.copy()
            accepted = self._accepted
        return Stats(
            connections=len(connections),
            accepted=accepted,
            removed_peer_closed=removed[Cause.PEER_CLOSED],
            removed_local_closed=removed[Cause.LOCAL_CLOSED],
            removed_server_stopped=removed[Cause.SERVER_STOPPED],
            removed_slow_consumer=removed[Cause.SLOW_CONSUMER],
            removed_handler_error=removed[Cause.HANDLER_ERROR],
            removed_reject=removed[Cause.REJECT],
            removed_protocol_error=sum(removed[cause] for cause in _PROTOCOL_ERRORS),
            removed_timeout=removed[Cause.TIMEOUT],
            removed_tls_error=removed[Cause.TLS_ERROR] + removed[Cause.TRUNCATED],
            removed_os_error=removed[Cause.OS_ERROR],
            messages_received=total.messages_received,
            messages_sent=total.messages_sent,
            messages_refused=total.messages_refused,
            bytes_received=total.bytes_received,
            bytes_sent=total.bytes_sent,
            queued_bytes=self.memory.total,
            accept_pauses=self._acceptor.pauses,
            polls=self._polls,
            turns=self._pool.turns(),
        )

    def reload_tls(self, context: ssl.SSLContext) -> None:
        """The accept thread looks at this for each connection."""
        self._tls = context

    def forked(self) -> None:
        """In the child: find no connection any more, and close this process's copies of the fds.

        As long as a copy is open the kernel does not end a connection that the parent closes. No lock is taken: a thread that exists in
        the parent only may hold it.
        """
        self.forked_away = True
        for connection in self._slab.tenants_unlocked():
            connection.transport.forget()
        self._acceptor.forget()
        self._close_fds()

    # For connections and their sockets.

    def find(self, token: int) -> Connection | None:
        """See `handle.Directory`."""
        return None if self.forked_away else self._slab.find(token)

    def refused(self) -> None:
        """See `handle.Directory`."""
        if not self.forked_away:
            with self._lock:
                self._total.messages_refused += 1

    def enqueue(self, connection: Connection) -> None:
        """See `mailbox.Queue`."""
        self._pool.ready.put(connection)

    def flush_later(self, connection: Output) -> None:
        """See `output.OutputLoop`."""
        self._unfinished.append(connection)
        self.poller.wake()

    def remind(self, token: int, when: float) -> None:
        """See `connection.Loop`."""
        self._timekeeper.set(token, when)

    def removing(self, cause: Cause) -> None:
        """See `connection.Loop`. Counted before the last callbacks, so that they find themselves in `stats`."""
        with self._lock:
            self._removed[cause] += 1

    def gone(self, connection: Connection) -> None:
        """See `connection.Loop`."""
        self._timekeeper.cancel(connection.token)
        with self._lock:
            self._total.add(connection.tally)
            self._slab.release(connection.token)
            if not self._is_empty():
                return
            self._drained.notify_all()
        self._pool.emptied()

    # The accept thread.

    def _welcome(self, sock: socket.socket, peername: Any) -> None:
        """A connection was accepted: it is born owned, and handed to a worker if it is to be introduced, or has failed."""
        names = (peername, sock.getsockname())
        tls = self._tls

        def make(token: int) -> Connection:
            return Connection(self, sock, names, token, Socket(self, token, self._accepted), tls)

        with self._lock:  # `stats` never sees an accepted connection that is neither there nor removed
            self._accepted += 1
            connection = self._slab.acquire(make)
        try:
            for level, name, value in self.config.socket_options:
                sock.setsockopt(level, name, value)
        except OSError as error:
            connection.fail(error.errno or 0)
        if not connection.is_introduced:
            connection.post(mailbox.NEW)
        elif connection.error is None:
            connection.register()
        if not connection.let_go():
            self.enqueue(connection)

    # The event thread.

    def _watch(self) -> None:
        sys.block_signals()
        while not self._ended:
            ready = self.poller.wait(block=not self._unfinished)
            self._polls += bool(ready)
            for token, events in ready:
                connection = self._slab.find(token)
                if connection is not None:
                    connection.on_events(events)
            self._finish()
        self._finish()

    def _finish(self) -> None:
        """Another portion for each flusher that has left its work to this thread."""
        for _ in range(len(self._unfinished)):
            self._unfinished.popleft().go_on_flushing()

    # The timekeeper's thread.

    def _on_deadline(self, token: int) -> None:
        connection = self._slab.find(token)
        if connection is not None:
            connection.post(mailbox.DEADLINE)

    def _shed(self) -> None:
        """While too much is buffered, remove the connection with the most blocked output; where there is none, with the most input.

        The input goes when the owner removes it, so at most one a call is removed for it.
        """
        while self.memory.is_over():
            victim = max(self._slab.snapshot(), key=lambda connection: (connection.blocked_output, connection.undelivered), default=None)
            if victim is None or not (victim.blocked_output or victim.undelivered):
                return
            by_output = victim.blocked_output > 0
            victim.end(Cause.SLOW_CONSUMER, at_once=True)
            if not by_output:
                return

    # Anybody's.

    def _on_excess(self) -> None:
        self._timekeeper.ask_to_shed()

    def _resume(self, token: int) -> None:
        connection = self._slab.find(token)
        if connection is not None:
            connection.post(mailbox.RESUME)

    def _is_empty(self) -> bool:
        return not len(self._slab)

    def _close_fds(self) -> None:
        """By the last thread to leave."""
        self.poller.close()
        os.close(self.placeholder)
