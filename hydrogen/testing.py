"""Fixtures for testing handlers with pytest. A plugin that is used by who names it, in the
`conftest.py` at the top or in a test:

    pytest_plugins = ["hydrogen.testing"]

    def test_echo(hydrogen_serve, hydrogen_connect):
        server = hydrogen_serve(Echo(), framing=hydrogen.LineFrameBuilder)
        client = hydrogen_connect(server)
        client.send(b"hello")
        assert client.recv() == b"hello"

Such a test runs once on each engine there is, or on the one that `HYDROGEN_ENGINE` names.
Afterwards everything is stopped, and the test fails when it has left behind a connection, a
callback that still runs, or an error in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from hydrogen import backend
from hydrogen.client import Client, connect
from hydrogen.config import Config, Options
from hydrogen.handler import Handler
from hydrogen.server import Server
from hydrogen.serving import serve

if TYPE_CHECKING:
    from typing_extensions import Unpack

PATIENCE = 10.0
"""Seconds after which a client of `hydrogen_connect` gives up, unless it is told otherwise."""

JOIN_PATIENCE = 1.0
"""Seconds for a worker to end after the stop, in which it has left its last callback."""


def _engines() -> list[str]:
    default = backend.default_engine()
    is_chosen = os.environ.get("HYDROGEN_ENGINE", "") not in ("", "auto")
    return [default] if is_chosen or default == "python" else [default, "python"]


@pytest.fixture(params=_engines())
def hydrogen_engine(request: pytest.FixtureRequest) -> str:
    """The engine of this run of the test: "compiled" or "python"."""
    name: str = request.param
    return name


class _Errors(logging.Handler):
    """Keeps the records of errors. Safe from any thread."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put(record)


@pytest.fixture
def hydrogen_errors() -> Iterator[queue.SimpleQueue[logging.LogRecord]]:
    """What hydrogen logs as an error, such as an exception in a callback, with its `exc_info`.

    A test that expects one takes it out: `hydrogen_errors.get(timeout=10)`. What is left at the end
    fails the test.
    """
    handler = _Errors()
    log = logging.getLogger("hydrogen")
    log.addHandler(handler)
    yield handler.records
    log.removeHandler(handler)
    left = [handler.records.get() for _ in range(handler.records.qsize())]
    if left:
        lines = [logging.Formatter("%(message)s").format(record) for record in left]
        pytest.fail("hydrogen logged errors:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def hydrogen_serve(
    hydrogen_engine: str, hydrogen_errors: object
) -> Iterator[Callable[..., Server]]:
    """Start a server: `hydrogen_serve(handler, config=None, **options)`, as `hydrogen.serve`, on a
    port that the kernel chooses.

    May be called several times. At the end of the test each server is stopped, as by
    `Server.stop()`; the test fails when a connection had to be reset, or a callback does not
    return.
    """
    servers: list[Server] = []
    before = set(threading.enumerate())

    def start(handler: Handler, config: Config | None = None, **options: Unpack[Options]) -> Server:
        has_port = config is None or (config.path is None and config.sock is None)
        if has_port and not {"path", "sock"} & options.keys():
            options.setdefault("port", 0)
        servers.append(serve(handler, config, engine=hydrogen_engine, **options))
        return servers[-1]

    yield start
    faults = [fault for server in servers for fault in _stopped(server)]
    for thread in threading.enumerate():
        if thread.name.startswith("hydrogen-worker-") and thread not in before:
            faults += _ended(thread)
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


def _stopped(server: Server) -> Iterator[str]:
    """Stop a server, and say what it leaves behind. A stop of the test's own may have reset what it
    likes.
    """
    was_stopped = server.wait(0)
    report = server.stop()
    if report.aborted and not was_stopped:
        yield f"server on {server.address}: connections reset after stop_timeout: {report.aborted}"
    left = server.stats().connections
    if left:
        yield f"server on {server.address}: connections whose callbacks have not returned: {left}"


def _ended(worker: threading.Thread) -> Iterator[str]:
    """Wait for a worker to end, or say where it is."""
    worker.join(JOIN_PATIENCE)
    frame = sys._current_frames().get(worker.ident or 0)
    if worker.is_alive() and frame is not None:
        yield f"{worker.name} is still in a callback:\n" + "".join(traceback.format_stack(frame))


@pytest.fixture
def hydrogen_connect(hydrogen_serve: object) -> Iterator[Callable[..., Client]]:
    """Connect a client to a server: `hydrogen_connect(server, **options)`, with the options of
    `hydrogen.connect`.

    Without others it has the server's framing, and waits `PATIENCE` seconds. It is closed before
    the servers are stopped, which otherwise would wait for it.
    """
    with contextlib.ExitStack() as stack:

        def client(server: Server, **options: Any) -> Client:
            options = {"framing": server.config.framing, "timeout": PATIENCE, **options}
            return stack.enter_context(connect(server.address, **options))

        yield client
