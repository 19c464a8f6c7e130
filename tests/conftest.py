"""One suite, two engines: each test that asks for `engine` runs on both, in one process.

What every test must leave behind is asserted here, after it: servers stopped, no connection left in
any slot, each accepted connection removed once, no error logged that the test did not ask for, fds
and threads as before.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import ssl
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from certificates import VERSIONS, client_context
from programs import NEEDS
from support import (
    PATIENCE,
    ROOT,
    Client,
    Recorder,
    TlsClient,
    assert_empty,
    end_children,
    open_fds,
    threads,
    wait_until,
)

import hydrogen
from hydrogen import backend
from hydrogen.watchdog import has_gil

_engines: list[str] = []
_remark = ""


def _choose(option: str) -> tuple[list[str], str]:
    """The engines to run, and why one of them is missing."""
    if option == "python":
        return ["python"], "as --engine asks"
    try:
        backend.engine_class("compiled")
    except hydrogen.EngineUnavailable as error:
        if option == "compiled" or os.environ.get("CI", "").lower() in ("1", "true"):
            raise pytest.UsageError(
                f"the compiled engine must be tested and is not there: {error}"
            ) from error
        return ["python"], f"THE COMPILED ENGINE IS NOT TESTED: {error}"
    return (
        (["compiled"], "as --engine asks") if option == "compiled" else (["compiled", "python"], "")
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=("both", "compiled", "python"),
        default="both",
        help="the engines to test",
    )


def pytest_configure(config: pytest.Config) -> None:
    global _remark
    config.addinivalue_line(
        "markers",
        "clause(*ids): the clauses of the interface (tests/clauses.py) that the test shows to hold",
    )
    _engines[:], _remark = _choose(config.getoption("--engine"))
    # a shell's background job: what tests start would, too
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"engines: {', '.join(_engines)}"
        + (f" ({_remark})" if _remark else "")
        + ("" if has_gil() else "; without a GIL")
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", _engines)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was left out for want of a program is said last, and loudly."""
    reasons = [
        report.longrepr[2]
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    ]
    wanted = [reason.partition(NEEDS)[2] for reason in reasons if NEEDS in reason]
    if wanted:
        names = ", ".join(sorted(set(wanted)))
        line = (
            f"*** {len(wanted)} tests were LEFT OUT, for want of: {names}. `make test-deps` "
            "installs programs. ***"
        )
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture
def error_log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    """What hydrogen logged as an error so far. A test that does not ask for this must cause no
    error.
    """
    return lambda: [record for record in caplog.get_records("call") if _is_error(record)]


def _is_error(record: logging.LogRecord) -> bool:
    return record.name.startswith("hydrogen") and record.levelno >= logging.ERROR


@pytest.fixture
def perf_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """`perf` is no part of what is installed: it is found in the tree, behind all that is."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])


@pytest.fixture(autouse=True)
def _leaves_the_gil_off() -> Iterator[None]:
    """Where there need be none: an import of compiled code that does not promise to do without
    turns the GIL on, for all there is.
    """
    yield
    assert has_gil() != bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture(autouse=True)
def _leaves_nothing(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """After each test: fds and threads as before, and no error logged behind its back."""
    caplog.set_level(logging.INFO, logger="hydrogen")
    fds, tasks = open_fds(), threads()
    yield
    end_children()
    wait_until(
        lambda: open_fds() == fds, f"the fds of before; there were {fds}, there are {open_fds()}"
    )
    wait_until(
        lambda: len(threads()) <= len(tasks),
        f"the threads of before; there are {threading.enumerate()} and {len(threads())} tasks, not "
        f"{len(tasks)}",
    )
    if sys.version_info[:2] == (3, 11):
        _take_late_exception()
    if "error_log" not in request.fixturenames:
        errors = [record.getMessage() for record in caplog.get_records("call") if _is_error(record)]
        assert errors == [], f"hydrogen logged {errors}"


class _Late(Exception):
    """Set in this thread by itself."""


def _take_late_exception() -> None:
    """When a thread ends before an exception that was set in it has come, CPython 3.11 goes on
    believing that one is to come, and a thread that is traced never gets into its next function.
    One that comes, anywhere, sets that right.
    """
    with contextlib.suppress(_Late):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(threading.get_ident()), ctypes.py_object(_Late)
        )
        while True:
            pass


@pytest.fixture
def without_switches() -> Iterator[None]:
    """A thread keeps the GIL until it waits, or lets go of it."""
    if not has_gil():
        pytest.skip("without a GIL a callback may have begun before the call, and look after it")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def compiled(engine: str) -> None:
    """The test is of the compiled engine: what it looks at is not there in the other one."""
    if engine == "python":
        pytest.skip("of the compiled engine")


@pytest.fixture
def start(engine: str) -> Iterator[Callable[..., hydrogen.Server]]:
    """Start a server on a port of the kernel's choice: `start(handler, framing=..., ...)`. At the
    end it is stopped and must be empty.
    """
    started: list[tuple[hydrogen.Server, hydrogen.Handler]] = []

    def start(handler: hydrogen.Handler, **options: Any) -> hydrogen.Server:
        if "path" not in options and "sock" not in options:
            options.setdefault("port", 0)
        options.setdefault("max_threads", 4)
        options.setdefault("pre_allocated", 16)
        server = hydrogen.serve(handler, engine=engine, **options)
        started.append((server, handler))
        return server

    yield start
    for server, _ in started:
        server.stop(PATIENCE)
    for server, handler in started:
        assert server.wait(0)
        assert_empty(server)
        if isinstance(handler, Recorder):
            handler.check()


@pytest.fixture
def connect(start: object) -> Iterator[Callable[..., Client]]:
    """Connect a client to a server (or an address); it is closed before the servers stop, so that
    none lingers for its FIN.
    """
    clients: list[Client] = []

    def connect(to: Any, **options: Any) -> Client:
        client = Client(to.address if isinstance(to, hydrogen.Server) else to, **options)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    """Each version of TLS."""
    return request.param


@pytest.fixture
def trust(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client's context, of each version of TLS."""
    return client_context(version=version)


@pytest.fixture
def secure(connect: Callable[..., Client], trust: ssl.SSLContext) -> Callable[..., TlsClient]:
    """Connect a client to a server and shake hands: `secure(server)`."""
    return lambda server, **options: TlsClient(connect(server, **options), trust).handshake()


@pytest.fixture
def gate(start: object) -> Iterator[Callable[[], threading.Event]]:
    """An Event for a handler to block on; set at the end of the test whatever happens, before the
    servers stop.
    """
    gates: list[threading.Event] = []

    def gate() -> threading.Event:
        gates.append(threading.Event())
        return gates[-1]

    yield gate
    for event in gates:
        event.set()
