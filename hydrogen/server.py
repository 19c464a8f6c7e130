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
from collections.abc import Callable, Collection
from types import FrameType, TracebackType
from typing import Any

from hydrogen import backend
from hydrogen.config import MAX_SECONDS, Config, default_max_connections
from hydrogen.connection import BytesLike, HydrogenSocket
from hydrogen.handler import Handler, callbacks_of
from hydrogen.listener import Listeners
from hydrogen.log import RateLimitedLog
from hydrogen.report import BroadcastReport, Stats, StopReport
from hydrogen.timers import Timer, Timers
from hydrogen.tls import check_context
from hydrogen.watchdog import Watchdog

log = logging.getLogger("hydrogen")

NEW, RUNNING, STOPPING, STOPPED = range(4)

ABORT_GRACE = 0.5
"""Seconds that aborted connections have for their last callbacks; then the handlers that still block count as abandoned."""

ABORT_LOOK = 0.05
"""Seconds between two looks of a stop whether `abort` was called meanwhile."""

_running: weakref.WeakSet[Server] = weakref.WeakSet()


class Server:
    """A server on one listening socket or several. All methods may be called from any thread.

    Attributes:
        config: as given.
        engine: `"compiled"` or `"python"`.
        log: what its engine logs by.
        timers: what its engine runs when it is due.
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
        self._listeners: Listeners | None = None
        self._addresses: list[Any] = []
        self.log = RateLimitedLog(self.call_later)
        self.timers = Timers(self.log)
        self._watchdog: Watchdog | None = None
        self._suspended = False
        self._reset_locks()
        self._state = NEW
        self._report: StopReport | None = None
        self._aborted = 0
        self._unsent = 0

    def _reset_locks(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._abort_asked = threading.Event()

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
            self._listeners = Listeners(self.config, self._handler.on_server_created)
            self._addresses = self._listeners.addresses
            most = self.config.max_connections or default_max_connections()
            try:
                self._engine = backend.make_engine(self._engine_class, self, self._callbacks, self.config, self._listeners.sockets, most)
                self._state = RUNNING  # before the first callback, which may ask for anything
                self._engine.start()
                if self.config.slow_callback is not None:
                    self._watchdog = Watchdog(self.config.slow_callback, self._engine.running, self.log)
                    self._watchdog.start()
            except BaseException:
                self._undo_start()
                raise
            _running.add(self)
        where = ", ".join(map(str, self._addresses))
        log.info("serving on %s with the %s engine, %d workers, at most %d connections", where, self.engine, self.config.max_threads, most)

    def _undo_start(self) -> None:
        """Back to where it was before `start`."""
        if self._engine is not None and self._watchdog is not None:
            self._engine.stop_accepting()
            self._engine.abort_all()
            self._engine.release()
        assert self._listeners is not None
        self._listeners.undo()
        self._state, self._engine, self._watchdog, self._addresses = NEW, None, None, []

    def stop(self, timeout: float | None = None, spread: float = 0.0) -> StopReport:
        """Stop: no new connections, running callbacks finish, queued output is flushed, connections are closed.

        At the timeout the rest is reset; a handler that still blocks then is abandoned, its connection is removed when it returns.
        Called again it waits for the stop that is under way and returns its report. Called from a callback it only asks for the stop
        and returns an empty report at once; `wait()` and a later `stop()` tell the rest.

        Args:
            timeout: seconds; None: `config.stop_timeout`.
            spread: seconds over which the connections are closed, evenly, so that their clients do not all come back in one moment. Part of
                `timeout`: what is left of that is for the last ones to be flushed.
        """
        if timeout is None:
            timeout = self.config.stop_timeout
        _check_seconds("timeout", timeout)
        _check_seconds("spread", spread)
        if spread > timeout:
            raise ValueError(f"spread: at most the timeout, {timeout!r} seconds, is allowed, not {spread!r}")
        return self._begin_stop(timeout, spread)

    def _begin_stop(self, timeout: float | None, spread: float = 0.0) -> StopReport:
        """Carry the stop out, or wait for the one under way. `timeout` None: reset every connection at once."""
        with self._lock:
            engine = self._engine
            if engine is None:
                return StopReport(0, 0, 0, 0, 0.0)
            first = self._state == RUNNING
            if first:
                self._state = STOPPING
        if engine.in_worker() or (self._watchdog is not None and self._watchdog.is_mine()):
            if first:
                threading.Thread(target=self._stop, args=(engine, timeout, spread), name="hydrogen-stop", daemon=True).start()
            return StopReport(0, 0, 0, 0, 0.0)
        if first:
            return self._stop(engine, timeout, spread)
        self._stopped.wait()
        assert self._report is not None
        return self._report

    def _stop(self, engine: backend.Engine, timeout: float | None, spread: float) -> StopReport:
        began = time.monotonic()
        before = engine.stats()
        engine.stop_accepting()
        assert self._listeners is not None
        self._listeners.close()
        there = before.connections + _admitted(engine.stats()) - _admitted(before)
        if timeout is not None:
            self._close_evenly(engine, began, spread)
            engine.close_all()
        if timeout is None or not self._drained(engine, began + timeout):
            self._abort_rest(engine)
            engine.wait_drained(ABORT_GRACE)
        abandoned = engine.stats().connections
        if self._watchdog is not None:
            self._watchdog.end()
        engine.release()
        self.log.flush()
        with self._lock:
            aborted = max(0, self._aborted - abandoned)
            seconds = time.monotonic() - began
            # A connection that was accepted while the counters were read may be in none of them.
            self._report = StopReport(max(0, there - aborted - abandoned), aborted, abandoned, self._unsent, seconds)
            self._state = STOPPED
        _running.discard(self)
        self._stopped.set()
        log.info("stopped after %d connections: %s", before.accepted, self._report)
        return self._report

    def _close_evenly(self, engine: backend.Engine, began: float, spread: float) -> None:
        """Close those there are now one after the other, the last one at `began` + `spread`, or sooner when `abort` asks for it."""
        sockets = engine.connections() if spread else []
        for number, socket in enumerate(sockets, 1):
            if socket.is_open:  # it may have left by itself
                self._abort_asked.wait(max(0.0, began + spread * number / len(sockets) - time.monotonic()))
                engine.end(socket)

    def _drained(self, engine: backend.Engine, deadline: float) -> bool:
        """Wait until no connection is left; False at the deadline, and as soon as `abort` asks for it."""
        while not engine.wait_drained(max(0.0, min(ABORT_LOOK, deadline - time.monotonic()))):
            if self._abort_asked.is_set() or time.monotonic() >= deadline:
                return False
        return True

    def _abort_rest(self, engine: backend.Engine) -> None:
        with self._lock:
            self._unsent += engine.unsent()
            self._aborted += engine.abort_all()

    def abort(self) -> None:
        """Stop at once: every connection is reset. Also cuts short a stop that is under way."""
        self._abort_asked.set()
        self._begin_stop(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped, at most `timeout` seconds; False if it has not."""
        return self._stopped.wait(timeout)

    @property
    def ready(self) -> bool:
        """True while connections are accepted: False while suspended, and as soon as stopping begins."""
        return self._state == RUNNING and not self._suspended

    def suspend(self) -> None:
        """Accept no connection until `resume`: those that come wait in the kernel's backlog. Open ones are served as before.

        Raises:
            RuntimeError: the server does not run.
        """
        with self._lock:
            self._running_engine().suspend()
            self._suspended = True

    def resume(self) -> None:
        """Undo `suspend`. Raises: RuntimeError: the server does not run."""
        with self._lock:
            self._suspended = False
            self._running_engine().resume()

    def _running_engine(self) -> backend.Engine:
        if self._engine is None or self._state != RUNNING:
            raise RuntimeError("the server does not run")
        return self._engine

    @property
    def address(self) -> Any:
        """What `getsockname` gives for the first listener: a tuple, or the path; None before the start."""
        return self._addresses[0] if self._addresses else None

    @property
    def addresses(self) -> list[Any]:
        """The addresses of all listeners."""
        return list(self._addresses)

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
        self._running_engine().reload_tls(context)

    def broadcast(self, data: BytesLike, exclude: Collection[HydrogenSocket] = ()) -> BroadcastReport:
        """Send one message to every open connection, as `HydrogenSocket.send` would: one whose peer does not read is removed as slow.

        The message is framed once, and its bytes are shared; with TLS, and where a connection has a framing of its own, each has its own
        bytes. Like `send` it keeps the order of one thread's messages.

        Args:
            data: any contiguous bytes-like object.
            exclude: connections that do not get it, such as the one it came from.
        Returns:
            How many connections took it, and how many did not. Nobody takes anything when the server does not run.
        Raises:
            TypeError, FrameTooLarge, ValueError: as `send`, when the server's own framing cannot carry the message; nobody has got it then.
                Connections whose own framing cannot are `dropped`.
        """
        message = data if type(data) is bytes else bytes(memoryview(data))
        if self._engine is None or self._state == STOPPED:
            return BroadcastReport(0, 0)
        return self._engine.broadcast(message, exclude)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Have a worker call `callback` when so many seconds have passed. It may block, as any callback; what it raises is logged.

        Returns:
            A `Timer`, to `cancel()`. What is not called when the server stops never is.
        Raises:
            TypeError, ValueError: `seconds` is no number from 0 to `MAX_SECONDS`, or `callback` cannot be called.
            RuntimeError: the server does not run.
        """
        _check_seconds("seconds", seconds)
        if not callable(callback):
            raise TypeError(f"callback: something to call is expected, not {callback!r}")
        return self.timers.add(time.monotonic() + seconds, callback, self._running_engine().set_alarm)

    def stats(self) -> Stats:
        """Counters since the start, summed now."""
        if self._engine is None:
            return Stats()
        return dataclasses.replace(self._engine.stats(), slow_callbacks=0 if self._watchdog is None else self._watchdog.slow)

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
        if self._listeners is not None:
            for sock in self._listeners.sockets:
                sock.close()
        if self._engine is not None:
            self._engine.forked()
        self._engine = None
        self._state = STOPPED
        self._stopped.set()


def _admitted(stats: Stats) -> int:
    """Connections accepted, and not turned away."""
    return stats.accepted - stats.removed_overload


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: seconds are expected, not {value!r}")
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{name}: 0 or more seconds, at most {MAX_SECONDS}, are allowed, not {value!r}")


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
