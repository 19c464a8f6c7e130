"""`Server`, `serve` and `begin`: the life of a server, from the listening socket to the report of its stop. Knows no engine by name.

States go one way: NEW, RUNNING, STOPPING, STOPPED. `_lock` guards the state; it is never held while waiting. Whoever moves the state to
STOPPING carries the stop out; all others wait for `_stopped`.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import signal
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from hydrogen import backend
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.handler import Handler, callbacks_of
from hydrogen.listener import Listener
from hydrogen.report import Stats, StopReport
from hydrogen.tls import check_context

log = logging.getLogger("hydrogen")

NEW, RUNNING, STOPPING, STOPPED = range(4)

ABORT_GRACE = 0.5
"""Seconds that aborted connections have for their last callbacks; then the handlers that still block count as abandoned."""

ABORT_LOOK = 0.05
"""Seconds between two looks of a stop whether `abort` was called meanwhile."""

_running: weakref.WeakSet[Server] = weakref.WeakSet()


class Server:
    """A server on one listening socket. All methods may be called from any thread.

    Attributes:
        config: as given.
        engine: `"compiled"` or `"python"`.
    """

    def __init__(self, handler: Handler, config: Config | None = None, *, engine: str | None = None) -> None:
        """Check the handler and choose the engine; nothing is opened yet.

        Raises:
            TypeError: the handler is none, or its callbacks are wrong; see `Handler`.
            EngineUnavailable: `engine="compiled"` and it cannot be imported.
        """
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config: a hydrogen.Config is expected, not {config!r}")
        self.config = config if config is not None else Config()
        self._handler = handler
        self._callbacks = callbacks_of(handler)
        self.engine, self._engine_class = backend.engine_class(engine)
        self._engine: backend.Engine | None = None
        self._listener: Listener | None = None
        self._address: Any = None
        self._reset_locks()
        self._state = NEW
        self._report: StopReport | None = None
        self._abort_asked = False
        self._aborted = 0
        self._unsent = 0

    def _reset_locks(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Listen and serve, and return.

        Raises:
            RuntimeError: it was started before.
            OSError: the address cannot be listened on. Nothing is left open.
        """
        with self._lock:
            if self._state != NEW:
                raise RuntimeError("a server is started once; make another one")
            self._handler.server = self
            self._listener = Listener(self.config, self._handler.on_server_created)
            try:
                self._engine = self._engine_class(self, self._callbacks, self.config, self._listener.sock)
                self._engine.start()
            except BaseException:
                self._listener.close()
                raise
            self._address = self._listener.address
            self._state = RUNNING
            _running.add(self)
        log.info("serving on %s with the %s engine, %d workers", self._address, self.engine, self.config.max_threads)

    def stop(self, timeout: float | None = None) -> StopReport:
        """Stop: no new connections, running callbacks finish, queued output is flushed, connections are closed.

        At the timeout the rest is reset; a handler that still blocks then is abandoned, its connection is removed when it returns.
        Called again it waits for the stop that is under way and returns its report. Called from a callback it only asks for the stop
        and returns an empty report at once; `wait()` and a later `stop()` tell the rest.

        Args:
            timeout: seconds; None: `config.stop_timeout`.
        """
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float))):
            raise TypeError(f"timeout: seconds are expected, not {timeout!r}")
        if timeout is None:
            timeout = self.config.stop_timeout
        if not 0 <= timeout < float("inf"):
            raise ValueError(f"timeout: 0 or more seconds are allowed, not {timeout!r}")
        return self._begin_stop(timeout)

    def _begin_stop(self, timeout: float | None) -> StopReport:
        """Carry the stop out, or wait for the one under way. `timeout` None: reset every connection at once."""
        with self._lock:
            engine = self._engine
            if engine is None:
                return StopReport(0, 0, 0, 0, 0.0)
            first = self._state == RUNNING
            if first:
                self._state = STOPPING
        if engine.in_worker():
            if first:
                threading.Thread(target=self._stop, args=(engine, timeout), name="hydrogen-stop", daemon=True).start()
            return StopReport(0, 0, 0, 0, 0.0)
        if first:
            return self._stop(engine, timeout)
        self._stopped.wait()
        assert self._report is not None
        return self._report

    def _stop(self, engine: backend.Engine, timeout: float | None) -> StopReport:
        began = time.monotonic()
        before = engine.stats()
        engine.stop_accepting()
        assert self._listener is not None
        self._listener.close()
        there = engine.stats().accepted - before.accepted + before.connections
        if timeout is not None:
            engine.close_all()
        if timeout is None or not self._drained(engine, began + timeout):
            self._abort_rest(engine)
            engine.wait_drained(ABORT_GRACE)
        abandoned = engine.stats().connections
        engine.release()
        with self._lock:
            aborted = max(0, self._aborted - abandoned)
            seconds = time.monotonic() - began
            self._report = StopReport(there - aborted - abandoned, aborted, abandoned, self._unsent, seconds)
            self._state = STOPPED
        _running.discard(self)
        self._stopped.set()
        log.info("stopped after %d connections: %s", before.accepted, self._report)
        return self._report

    def _drained(self, engine: backend.Engine, deadline: float) -> bool:
        """Wait until no connection is left; False at the deadline, and as soon as `abort` asks for it."""
        while not engine.wait_drained(max(0.0, min(ABORT_LOOK, deadline - time.monotonic()))):
            if self._abort_asked or time.monotonic() >= deadline:
                return False
        return True

    def _abort_rest(self, engine: backend.Engine) -> None:
        with self._lock:
            self._unsent += engine.unsent()
            self._aborted += engine.abort_all()

    def abort(self) -> None:
        """Stop at once: every connection is reset. Also cuts short a stop that is under way."""
        self._abort_asked = True
        self._begin_stop(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped, at most `timeout` seconds; False if it has not."""
        return self._stopped.wait(timeout)

    @property
    def ready(self) -> bool:
        """True while connections are accepted; False as soon as stopping begins."""
        return self._state == RUNNING

    @property
    def address(self) -> Any:
        """What `getsockname` gives for the listener: a tuple, or the path; None before the start."""
        return self._address

    @property
    def addresses(self) -> list[Any]:
        """The addresses of all listeners."""
        return [] if self._address is None else [self._address]

    @property
    def connections(self) -> list[HydrogenSocket]:
        """A snapshot of the open connections."""
        return [] if self._engine is None else self._engine.connections()

    def reload_tls(self, context: ssl.SSLContext) -> None:
        """Use `context`, with a renewed certificate say, for new connections; those that are open keep theirs.

        Raises:
            TypeError, ValueError: as `Config` for `ssl`.
            RuntimeError: the server speaks no TLS, or does not run.
        """
        check_context("context", context, server_side=True)
        if self.config.ssl is None:
            raise RuntimeError("this server speaks no TLS: Config.ssl is None")
        if self._engine is None or self._state != RUNNING:
            raise RuntimeError("the server does not run")
        self._engine.reload_tls(context)

    def stats(self) -> Stats:
        """Counters since the start, summed now."""
        return Stats() if self._engine is None else self._engine.stats()

    def __enter__(self) -> Server:
        """Start, if it has not been started."""
        if self._state == NEW:
            self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def _forked(self) -> None:
        """In the child after fork(2): the threads are gone, and the sockets are the parent's to use; the port is not kept busy."""
        self._reset_locks()
        if self._listener is not None:
            self._listener.sock.close()
        if self._engine is not None:
            self._engine.forked()
        self._engine = None
        self._state = STOPPED
        self._stopped.set()


def _stop_at_exit() -> None:
    """At interpreter exit: a bounded stop of what still runs, before Python takes the workers' world away."""
    for server in list(_running):
        server.stop()


def _after_fork_in_child() -> None:
    for server in list(_running):
        server._forked()
    _running.clear()


atexit.register(_stop_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)


def serve(handler: Handler, config: Config | None = None, *, engine: str | None = None, **options: Any) -> Server:
    """A started server; `with` stops it.

    Args:
        handler: the callbacks.
        config: None: all defaults.
        engine: `"compiled"`, `"python"`, `"auto"`; None: the default, see `hydrogen.engine`.
        options: replace fields of `config`.
    Raises:
        TypeError, ValueError, OSError: as `Config`, `Server` and `Server.start`.
    """
    if options:
        config = dataclasses.replace(config if config is not None else Config(), **options)
    server = Server(handler, config, engine=engine)
    server.start()
    return server


def begin(handler: Handler, config: Config | None = None) -> StopReport:
    """The seed's call: serve until stopped, and return the report of the stop.

    In the main thread the first SIGINT or SIGTERM stops within `stop_timeout`, a second one aborts; the signal handlers there were
    before are restored. In another thread it returns when somebody calls `stop`.
    """
    return run(Server(handler, config))


def run(server: Server, started: Callable[[], None] = lambda: None) -> StopReport:
    """Start `server`, call `started`, and wait until a signal (see `begin`) or anybody else has stopped it."""
    # A signal may be delivered to any thread, and then interrupts no wait of this one: Python's wakeup fd is written to wherever it
    # arrives. The handlers run in this thread, between two bytecodes, and only count.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signals = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1

    def follow() -> None:
        server.wait()
        os.write(writer, b"\0")

    main = threading.current_thread() is threading.main_thread()
    earlier = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    earlier_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False) if main else -1
    follower = threading.Thread(target=follow, name="hydrogen-follow", daemon=True)
    try:
        server.start()
        follower.start()
        started()
        actions: list[Callable[[], object]] = [server.abort, server.stop]
        while not server.wait(0):
            os.read(reader, 1)
            while actions and signals > 2 - len(actions):
                threading.Thread(target=actions.pop(), name="hydrogen-stop", daemon=True).start()
    finally:
        if follower.is_alive():
            server.abort()
            follower.join()
        for number, previous in earlier.items():
            signal.signal(number, previous)
        if main:
            signal.set_wakeup_fd(earlier_fd)
        os.close(reader)
        os.close(writer)
    return server.stop()
