"""`serve` and `begin`: a server in the background, and one until it is stopped."""

from __future__ import annotations

import dataclasses
import difflib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from hydrogen.config import Config, Options
from hydrogen.errors import described
from hydrogen.handler import Handler
from hydrogen.report import StopReport
from hydrogen.server import Server
from hydrogen.signals import Signals

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in `typing` since 3.11


def serve(
    handler: Handler,
    config: Config | None = None,
    *,
    engine: str | None = None,
    **options: Unpack[Options],
) -> Server:
    """Start a server in the background and return it; `with` stops it.

    Args:
        handler: the callbacks.
        config: None: the defaults.
        engine: `"compiled"`, `"python"`, `"auto"`; None: the default, see `hydrogen.engine`.
        options: replace fields of `config`.
    Raises:
        TypeError, ValueError, OSError, RuntimeError: as `Config`, `Server` and `Server.start`.
    """
    server = Server(handler, _replaced(config, options), engine=engine)
    try:
        server.start()
        return server
    except BaseException:  # also between the start and the return: nobody else could stop it
        server.abort()
        raise


def begin(
    handler: Handler,
    config: Config | None = None,
    *,
    engine: str | None = None,
    on_started: Callable[[Server], object] | None = None,
    **options: Unpack[Options],
) -> StopReport:
    """Serve until stopped, and return the report of the stop.

    In the main thread, the first SIGINT or SIGTERM shuts down gracefully within `stop_timeout`; a
    second one aborts. Afterwards the previous signal handlers are restored, including those of C
    code, with their flags. A SIGINT that is ignored, as in a background job of a shell, stays
    ignored. In any other thread it returns when something calls `stop`.

    Args:
        handler, config, engine, options: as for `serve`.
        on_started: called once with the server, in this thread, once it accepts connections. If it
            raises, the server is aborted and the exception is raised here.
    Raises:
        TypeError, ValueError, OSError, RuntimeError: as `serve`.
        RuntimeError: this is a subinterpreter, which cannot handle signals.
    """
    if on_started is not None and not callable(on_started):
        raise TypeError(f"on_started: expected a callable, not {described(on_started)}")
    server = Server(handler, _replaced(config, options), engine=engine)
    if threading.current_thread() is not threading.main_thread():
        return _serve_until(server.wait, server, on_started)
    signals = Signals(server)
    try:
        try:
            signals.take()
            return _serve_until(signals.wait, server, on_started)
        finally:
            signals.give_back()
    finally:
        # an exception of a signal handler of the user's may have come before, or within, the first
        # time
        signals.give_back()


def _replaced(config: Config | None, options: Options) -> Config | None:
    if not options:
        return config
    known = [field.name for field in dataclasses.fields(Config) if field.init]
    for name in sorted(options.keys() - set(known)):
        close = difflib.get_close_matches(name, known, 1)
        raise TypeError(
            f"there is no option {name!r}{f'; did you mean {close[0]!r}?' if close else ''}"
        )
    return dataclasses.replace(config if config is not None else Config(), **options)


def _serve_until(
    wait: Callable[[], object], server: Server, on_started: Callable[[Server], object] | None
) -> StopReport:
    try:
        server.start()
        if on_started is not None:
            on_started(server)
        wait()
    except BaseException:
        server.abort()
        raise
    return server.stop()
