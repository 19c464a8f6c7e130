"""`Server`: the life of a server as its user sees it.

Knows no engine by name. Start and stop are carried out by `lifecycle.Life`; what `Server` says of
its state is read from there, and no lock is taken for it.
"""

from __future__ import annotations

import _thread
import atexit
import dataclasses
import os
import queue
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from socket import socket
from types import BuiltinFunctionType, TracebackType
from typing import Any

from hydrogen import backend
from hydrogen.checks import MAX_SECONDS
from hydrogen.config import Config, default_max_connections
from hydrogen.connection import BytesLike, HydrogenSocket, check_timeout, message_of
from hydrogen.errors import described
from hydrogen.handler import Handler, WebSocketHandler, callbacks_of
from hydrogen.lifecycle import ABORT_GRACE, NOTHING, SHORT_OF_MEMORY, Latch, Life
from hydrogen.log import RateLimitedLog
from hydrogen.report import BroadcastReport, Stats, StopReport
from hydrogen.signals import installed
from hydrogen.timers import Timer, Timers
from hydrogen.tls import check_context
from hydrogen.websocket import WebSocket

_running: set[Server] = set()
"""Servers that start, run or stop. A plain set: each of its operations is one step, also for a
signal handler and after a fork."""


class Server:
    """A server on one or more listening sockets. All methods may be called from any thread.

    They may also be called by signal handlers, `__del__` and weakref callbacks, at any moment.

    Attributes:
        config: as given; `websocket` as it is for a `WebSocketHandler`.
        engine: `"compiled"` or `"python"`.
    """

    def __init__(
        self, handler: Handler, config: Config | None = None, *, engine: str | None = None
    ) -> None:
        """Check the handler and choose the engine; nothing is opened yet.

        Raises:
            TypeError: the handler is not a `Handler`, or its callbacks are wrong; it is no
                `WebSocketHandler`, and the config has `websocket`.
            ValueError: it is one, and the config has a framing.
            EngineUnavailable: `engine="compiled"`, and it cannot be imported.
        """
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config: expected a hydrogen.Config, not {described(config)}")
        self._handler = handler
        self._callbacks = callbacks_of(handler)
        self.config = _fitting(handler, config if config is not None else Config())
        self.engine, self._engine_class = backend.engine_class(engine)
        self.log = RateLimitedLog(self.call_later)  # for the engine, as the timers are
        self.timers = Timers(self.log)
        self._startable = threading.Lock()  # nobody waits for it
        self._pid = 0  # of the process in which it was started
        self._life: Life | None = None
        self._stopped = Latch()
        self._on_stopped: Callable[[], object] | None = None
        self._suspended = False
        self._most = 0

    def start(self) -> None:
        """Listen and serve, and return.

        A `stop` or `abort` meanwhile is carried out as soon as the start is over, or before
        anything is accepted. KeyboardInterrupt, or any other interrupt, leaves nothing open.

        Raises:
            RuntimeError: it was started before; or gevent or eventlet has replaced threads.
            OSError: it cannot listen on the address. Nothing is left open.
        """
        _check_threads()
        life = Life(self)
        # An interrupt comes between any two bytecodes: what was taken is there before the call of C
        # code returns.
        taken: deque[bool] = deque()
        try:
            taken.extend(map(self._startable.acquire, (False,)))
            if not taken[0]:
                raise RuntimeError("a server can be started only once; create another one")
            self._pid = os.getpid()
            # What callbacks of a start that failed have asked for is none of this one's.
            self._suspended = False
            self.timers = Timers(self.log)
            self._life = life
            _running.add(self)
            life.begin()
        except BaseException as error:
            while taken and taken[0]:
                try:
                    life.cancel(error)
                    break
                except SHORT_OF_MEMORY:
                    continue
            raise
        if life.error is not None:
            raise life.error

    def _make_engine(self, listeners: Sequence[socket]) -> backend.Engine:
        """By `Life`: the engine, which does not run yet."""
        self._most = self.config.max_connections or default_max_connections()
        return backend.make_engine(
            self._engine_class, self, self._callbacks, self.config, listeners, self._most
        )

    def _tell_start(self) -> None:
        """By `Life`: the start is over."""
        self.log.flush()  # of a start that has failed
        where = ", ".join(map(str, self.addresses))
        self.log.serving(where, self.engine, self.config.max_threads, self._most)

    def _not_started(self) -> None:
        """By `Life`: nothing is left of the start; there may be another one."""
        self._life = None
        _running.discard(self)
        self._startable.release()

    def _ended(self) -> None:
        """By `Life`: the stop is over."""
        _running.discard(self)
        self._stopped.set()
        if self._on_stopped is not None:
            self._on_stopped()

    def stop(self, timeout: float | None = None, spread: float = 0.0) -> StopReport:
        """Shut down gracefully, and return when that is done.

        1. Nothing more is accepted, and nothing more is read.
        2. What has arrived is finished: running callbacks, complete messages that were read, and
           connections whose first callbacks are due or running. `send` works as before.
        3. A connection for which none of this is left is closed: from now on `send` refuses, queued
           output is flushed, and its callbacks get `ServerStopped`. An incomplete message and an
           unfinished handshake or PROXY header are dropped. Messages that are held back by
           `pause_reading` or by the watermarks wait until reading is resumed.
        4. At the timeout the rest is reset. A handler that still blocks is abandoned; its
           connection is removed when it returns.

        A further call waits for the stop that is under way and returns its report. Called from a
        callback, or during the start by the starting thread, it only asks for the stop and returns
        an empty report at once; use `wait()` or a later `stop()` to learn the outcome. It also
        returns an empty report at the timeout if the start is not over by then, because your code
        or the resolver delays it; the stop is carried out when they return.

        Args:
            timeout: seconds; None: `config.stop_timeout`.
            spread: seconds over which the connections are closed, evenly, so that their clients do
                not all reconnect at the same moment. Each is served until its turn comes. Part of
                `timeout`: what is left of that is for flushing the last ones.
        Raises:
            TypeError, ValueError: wrong seconds, or a `spread` longer than the timeout.
            KeyboardInterrupt, SystemExit: raised by a signal handler meanwhile; the stop becomes an
                `abort`, and goes on without the caller.
        """
        if timeout is None:
            timeout = self.config.stop_timeout
        _check_seconds("timeout", timeout)
        _check_seconds("spread", spread)
        if spread > timeout:
            raise ValueError(
                f"spread: must be at most the timeout of {described(timeout)} seconds, not "
                f"{described(spread)}"
            )
        life = self._life
        if life is None:
            return NOTHING
        life.ask(timeout, spread)
        return self._await_stop(life, time.monotonic() + timeout)

    def abort(self) -> None:
        """Stop at once: every connection is reset. Also cuts short a stop that is under way.

        Does nothing before the start; during the start, it waits as `stop(0)` does.
        """
        life = self._life
        if life is not None:
            life.abort()
            self._await_stop(life, time.monotonic())

    def _await_stop(self, life: Life, deadline: float) -> StopReport:
        """Wait for the stop that was asked for, which keeps its time by itself; for a start that is
        not over until `deadline`, and as long as for handlers that still block then."""
        if life.is_waited_for():
            return NOTHING
        try:
            if not life.started.wait(max(0.0, deadline + ABORT_GRACE - time.monotonic())):
                return NOTHING
            life.ended.wait()
            life.told.wait(max(0.0, life.deadline - time.monotonic()))
        except (KeyboardInterrupt, SystemExit):  # whoever interrupts a stop does not want to wait
            life.abort()
            raise
        return life.report

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server has stopped, for at most `timeout` seconds; False if it has not.

        Args:
            timeout: seconds, 0 or more; None or infinity: no limit.
        Raises:
            TypeError, ValueError: a wrong timeout.
        """
        return self._stopped.wait(check_timeout("timeout", timeout))

    @property
    def ready(self) -> bool:
        """Whether connections are accepted. False while suspended, and once stopping begins."""
        life = self._life
        if life is None or life.stopping or self._suspended:
            return False
        return life.usable_engine() is not None

    def suspend(self) -> None:
        """Accept no connections until `resume`: new ones wait in the kernel's backlog.

        Open connections are served as before. A server that is stopping accepts nothing anyway.

        Raises:
            RuntimeError: the server has not started, or has stopped.
        """
        self._suspend(True)

    def resume(self) -> None:
        """Undo `suspend`.

        Raises:
            RuntimeError: as `suspend`.
        """
        self._suspend(False)

    def _suspend(self, wanted: bool) -> None:
        """Store what is wanted, then tell the engine until that is what it was told last.

        Without a lock: whoever tells the engine last looks afterwards, and if somebody wants
        something else by then, that one tells it once more.
        """
        engine = self._running_engine()
        self._suspended = wanted
        while True:
            told = self._suspended
            if told:
                engine.suspend()
            else:
                engine.resume()
            if self._suspended is told:
                return

    def _running_engine(self) -> backend.Engine:
        """The engine from the start until the stop is over: callbacks that run during a graceful
        shutdown use the server as at any other time.
        """
        engine = None if self._stopped.is_set() else self._any_engine()
        if engine is None:
            raise RuntimeError("the server is not running")
        return engine

    def _any_engine(self) -> backend.Engine | None:
        """The engine also after the stop."""
        life = self._life
        return None if life is None else life.usable_engine()

    @property
    def address(self) -> Any:
        """The address of the first listener, as `getsockname` returns it; None before the start."""
        addresses = self.addresses
        return addresses[0] if addresses else None

    @property
    def addresses(self) -> list[Any]:
        """The addresses of all listeners."""
        life = self._life
        return [] if life is None else list(life.addresses)

    @property
    def connections(self) -> list[HydrogenSocket]:
        """A snapshot of the open connections."""
        engine = self._any_engine()
        return [] if engine is None else engine.connections()

    def reload_tls(self, context: ssl.SSLContext) -> None:
        """Use `context`, with a renewed certificate for instance, for new connections; open ones
        keep theirs.

        Raises:
            TypeError, ValueError: as `Config` for `ssl`.
            RuntimeError: the server does not use TLS, has not started, or has stopped.
        """
        check_context("context", context, server_side=True)
        if self.config.ssl is None:
            raise RuntimeError("this server does not use TLS: Config.ssl is None")
        self._running_engine().reload_tls(context)

    def broadcast(
        self, data: BytesLike | str, exclude: Iterable[HydrogenSocket] = ()
    ) -> BroadcastReport:
        """Send one message to every open connection, as `HydrogenSocket.send` would.

        A connection whose peer does not read is removed as a slow consumer. The message is framed
        once, and its bytes are shared; a connection with TLS or a framing of its own has its own
        copy. As with `send`, messages from one thread stay in order.

        Args:
            data: any contiguous bytes-like object; of a WebSocket server a str, too.
            exclude: connections that do not get it, such as the one it came from.
        Returns:
            How many connections took it, and how many did not; both are 0 when the server is not
            running.
        Raises:
            TypeError: `exclude` has something that is no `HydrogenSocket`.
            TypeError, FrameTooLarge, ValueError: as `send`, when the server's own framing cannot
                carry the message; then no connection has got it. Connections whose own framing
                cannot carry it count as `dropped`.
        """
        message = message_of(data, self.config.websocket)
        excluded = tuple(exclude)  # each of several loops looks at it
        for other in excluded:
            if not isinstance(other, HydrogenSocket):
                raise TypeError(f"exclude: expected a HydrogenSocket, not {described(other)}")
        engine = self._any_engine()
        if engine is None or self._stopped.is_set():
            return BroadcastReport(0, 0)
        return engine.broadcast(message, excluded)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Have a worker call `callback` after `seconds`.

        It may block like any callback; what it raises is logged.

        Returns:
            A `Timer`, which you can `cancel()`. What is not called before the stop is over never
            is.
        Raises:
            TypeError, ValueError: `seconds` is not a number from 0 to `MAX_SECONDS`, or `callback`
                is not callable.
            RuntimeError: as `suspend`.
        """
        _check_seconds("seconds", seconds)
        if not callable(callback):
            raise TypeError(f"callback: expected a callable, not {described(callback)}")
        engine = self._running_engine()
        return self.timers.add(time.monotonic() + float(seconds), callback, engine.set_alarm)

    def stats(self) -> Stats:
        """Counters since the start, summed at the moment of the call."""
        life = self._life
        engine = self._any_engine()
        if life is None or engine is None:
            return Stats()
        return dataclasses.replace(engine.stats(), slow_callbacks=life.slow_callbacks)

    def __enter__(self) -> Server:
        """Start, if it has not been started.

        Raises:
            RuntimeError: it was stopped, or is being stopped.
        """
        life = self._life
        if life is None:
            self.start()
        elif life.stopping:
            raise RuntimeError(
                "this server was stopped; a server can be started only once, create another one"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _forked(self) -> None:
        """In the child after fork(2): the threads are gone, and the sockets are the parent's to
        use; the port is not kept busy. Takes no lock."""
        life = self._life
        if life is not None:
            life.forked()
        self.log.forked()
        self._stopped.set()


def _fitting(handler: Handler, config: Config) -> Config:
    """`config`, with `websocket` where the handler needs it."""
    if not isinstance(handler, WebSocketHandler):
        if config.websocket is not None:
            raise TypeError(
                f"handler: expected a hydrogen.WebSocketHandler with websocket, not "
                f"{described(handler)}"
            )
        return config
    if config.websocket is not None:
        return config
    return dataclasses.replace(config, websocket=WebSocket())


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number of seconds, not {described(value)}")
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(
            f"{name}: must be 0 or more, and at most {MAX_SECONDS} seconds, not {described(value)}"
        )


def _check_threads() -> None:
    """Raise RuntimeError where threads, locks or epoll are not the interpreter's own."""
    if not (
        isinstance(_thread.start_new_thread, BuiltinFunctionType)
        and isinstance(_thread.allocate_lock, BuiltinFunctionType)
        and queue.SimpleQueue.__module__ == "_queue"
        and hasattr(select, "epoll")
    ):
        raise RuntimeError(
            "hydrogen needs real threads, but something, such as gevent.monkey.patch_all() or "
            "eventlet.monkey_patch(), has replaced threading, queue or select in this process"
        )


def _stop_at_exit() -> None:
    """At interpreter exit: a bounded stop of what still runs, before Python takes the workers'
    world away. All at the same time; who interrupts that does not want to wait."""
    servers = list(_running)
    try:
        lives = [
            (server, server._life, time.monotonic() + server.config.stop_timeout)
            for server in servers
        ]
        for server, life, _ in lives:
            if life is not None:
                life.ask(server.config.stop_timeout)
        for server, life, deadline in lives:
            if life is not None:
                server._await_stop(life, deadline)
    except (KeyboardInterrupt, SystemExit):
        for server in servers:
            server.abort()


def _after_fork_in_child() -> None:
    """Called twice: the interpreter ignores what a signal handler raises in a hook, and the rest of
    it would not be done.

    An earlier hook of somebody else's may have started a server already, which is the child's own.
    """
    for server in list(_running):
        if server._pid != os.getpid():
            server._forked()
            _running.discard(server)
    for signals in reversed(list(installed)):
        signals.give_back()


atexit.register(_stop_at_exit)
for _ in range(2):
    os.register_at_fork(after_in_child=_after_fork_in_child)
