"""What can be counted and does not depend on how fast the machine is: memory, system calls,
allocations, wake-ups.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydrogen.perf.generator import Session
from hydrogen.perf.options import Options
from perf import certificates
from perf.servers import Contender, Server, started
from perf.settings import Layout, Settings

KINDS = {
    "receive": ("recvfrom", "recvmsg", "read", "readv"),
    "send": ("sendto", "sendmsg", "write", "writev"),
    "poll": ("epoll_wait", "epoll_pwait", "epoll_pwait2"),
    "memory": ("mmap", "munmap", "brk"),
}
"""System calls that do the same job under different names."""

MESSAGES = 10_000
CONNECTIONS = 64
TLS_CONNECTIONS = 1500  # fewer than W9's: each costs the generator, and most contenders, some 50 KB
WEBSOCKET_CONNECTIONS = 5000
IDLE_SECONDS = 5.0
SWEPT_CONNECTIONS = 19_000  # 20,000 fds a process is a usual limit, here and in the server


def session(server: Server, connections: int, **options: Any) -> Session:
    """Connections to ``server``, opened, each having echoed one message."""
    opened = Session(Options(("127.0.0.1", server.port), connections=connections, **options))
    opened.connect()
    exchange(opened, connections)
    return opened


def exchange(opened: Session, messages: int) -> None:
    """Exactly ``messages`` echoes; raises when one was not right."""
    opened.loops.run(0, messages)
    opened.loops.drain()
    counters = opened.loops.counters()
    if opened.opener.failures or counters.faults:
        raise RuntimeError(f"faults: {opened.opener.failures} connects failed, {counters}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds, for a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


# -- W9 --------------------------------------------------------------------------------------------


def private_dirty(pid: int) -> int:
    """Bytes of memory that only this process has and that would have to be written to swap."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Private_Dirty: +(\d+) kB", rollup, re.MULTILINE)
    assert found is not None, rollup
    return int(found[1]) * 1024


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def idle_memory(contender: Contender, layout: Layout, settings: Settings) -> dict[str, float]:
    """W9."""
    return memory(contender, settings.idle_connections)


def idle_tls_memory(contender: Contender, layout: Layout, settings: Settings) -> dict[str, float]:
    """TLS-memory."""
    authority = str(settings.folder / certificates.AUTHORITY)
    return memory(contender, TLS_CONNECTIONS, tls=True, cacert=authority)


def idle_websocket_memory(
    contender: Contender, layout: Layout, settings: Settings
) -> dict[str, float]:
    """W12-memory."""
    return memory(contender, WEBSOCKET_CONNECTIONS, 1000, websocket="/", framing="websocket-text")


def memory(
    contender: Contender, number: int, small: int = CONNECTIONS, **options: Any
) -> dict[str, float]:
    """A small wave of connections, that all be allocated which does not depend on their number, and
    two large ones. Where each has a callback a small one is of many, for all threads to come into
    it.

    What is kept after the first large wave may be a slab or a pool, which the second uses again;
    what is kept beyond that after the second has leaked.
    """
    with started(contender) as server:
        quiet = open_files(server.pid)

        def wave(number: int) -> tuple[int, int]:
            with contextlib.closing(session(server, number, **options)):
                during = private_dirty(server.pid)
            wait_until(
                lambda: open_files(server.pid) <= quiet, "the server keeps closed connections"
            )
            return during, private_dirty(server.pid)

        _, before = wave(small)
        during, kept = wave(number)
        _, kept_again = wave(number)
    return {
        "bytes_per_connection": (during - before) / number,
        "kept_per_connection": (kept - before) / number,
        "second_wave": kept_again / kept,
    }


# -- W10 -------------------------------------------------------------------------------------------


def system_calls(contender: Contender) -> dict[str, float]:
    """Calls by name over the echoes, by strace attached to the server while its connections are
    quiet.
    """
    with (
        started(contender) as server,
        contextlib.closing(session(server, CONNECTIONS)) as opened,
        tempfile.NamedTemporaryFile("r") as table,
    ):
        threads = sum(1 for _ in server.threads())
        tracer = subprocess.Popen(
            ["strace", "-c", "-f", "-p", str(server.pid), "-o", table.name],
            stderr=subprocess.PIPE,
            text=True,
        )
        with tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            if "attached" not in said:
                raise RuntimeError(f"strace: {said}{tracer.stderr.read()}")
            wait_until(lambda: traced(server) >= threads, "strace does not attach to every thread")
            exchange(opened, MESSAGES)
            tracer.send_signal(signal.SIGINT)
            tracer.stderr.read()
        counts = {}
        for line in table:
            row = re.match(r" *[\d.]+ +[\d.]+ +\d+ +(\d+)(?: +\d+)? +(\w+)$", line)
            if row is not None and row[2] != "total":
                counts[row[2]] = float(row[1])
    return counts


def traced(server: Server) -> int:
    return sum(
        "TracerPid:\t0\n" not in (thread / "status").read_text() for thread in server.threads()
    )


def allocations(contender: Contender, settings: Settings, allocator: str) -> dict[str, float]:
    """Calls of malloc, calloc and realloc over the echoes, and with them what else can be read
    without a tracer.
    """
    with tempfile.NamedTemporaryFile("rb") as counts:

        def calls() -> int:
            counts.seek(0)
            return sum(struct.unpack("3Q", counts.read(24)))

        environment = {
            "LD_PRELOAD": str(settings.folder / "malloc_count"),
            "MALLOC_COUNT_FILE": counts.name,
            "PYTHONMALLOC": allocator,
        }
        with (
            started(contender, environment=environment) as server,
            contextlib.closing(session(server, CONNECTIONS)) as opened,
        ):
            exchange(opened, MESSAGES)  # pools and free lists reach their size
            before, switched, called = server.stats(), switches(server), calls()
            exchange(opened, MESSAGES)
            called, switched, after = calls() - called, switches(server) - switched, server.stats()
    return {
        "calls": called,
        "switches": switched,
        **{name: after[name] - before[name] for name in after},
    }


def per_message(contender: Contender, layout: Layout, settings: Settings) -> dict[str, float]:
    """W10, all divided by the number of messages."""
    syscalls = system_calls(contender)
    plain = allocations(contender, settings, "default")
    counted = {
        "syscalls": sum(syscalls.values()),
        **{kind: sum(syscalls.get(name, 0) for name in names) for kind, names in KINDS.items()},
        "epoll_ctl": 0.0,
        "futex": 0.0,
        **syscalls,
        "mallocs": plain.pop("calls"),
        "objects": allocations(contender, settings, "malloc")["calls"],
        **plain,
    }
    figures = {name: count / MESSAGES for name, count in counted.items()}
    if plain.get("iterations"):
        figures["gil_per_iteration"] = plain["gil_acquisitions"] / plain["iterations"]
    return figures


# -- W11 -------------------------------------------------------------------------------------------


def switches(server: Server) -> int:
    """Context switches of all threads so far: an idle thread has one each time it was woken."""
    return sum(
        int(count)
        for thread in server.threads()
        for count in re.findall(r"ctxt_switches:\t(\d+)", (thread / "status").read_text())
    )


def sweeps_per_quarter(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> float:
    """At most 1 when between any two sweeps there is a quarter of the smallest timeout: n sweeps
    have n - 1 times between them.
    """
    return (
        max(0.0, after["sweeps"] - before["sweeps"] - 1) * after["smallest_timeout"] / 4 / seconds
    )


def idle_wakeups(contender: Contender, layout: Layout, settings: Settings) -> dict[str, float]:
    """W11, per second."""
    resting = min(IDLE_SECONDS, 2 * settings.duration)

    def rest(server: Server) -> dict[str, float]:
        time.sleep(1)  # what the last message or connection set going comes to rest
        stats, began = server.stats(), time.monotonic()
        time.sleep(0.1)  # and what that question set going
        switched = switches(server)
        time.sleep(resting)
        figures = {"switches": (switches(server) - switched) / resting}
        if stats:
            figures["sweeps"] = sweeps_per_quarter(stats, server.stats(), time.monotonic() - began)
        return figures

    with started(contender) as server:
        without = rest(server)
        with contextlib.closing(session(server, 100)):
            found = rest(server)
    figures = {"without": without["switches"], "with_100": found["switches"]}
    if "sweeps" in found:
        figures["sweeps_per_quarter"] = found["sweeps"]
    return figures


# -- sweep -----------------------------------------------------------------------------------------


def cpu_ns(server: Server) -> dict[str, int]:
    """CPU time of each thread so far; /proc/PID/stat counts it in hundredths of a second."""
    return {
        thread.name: int((thread / "schedstat").read_text().split()[0])
        for thread in server.threads()
    }


def sweep(contender: Contender, layout: Layout, settings: Settings) -> dict[str, float]:
    """What one sweep over all connections takes: CPU time of the thread that sweeps, of a server
    that does nothing else.
    """
    with (
        started(contender, layout.server_cpu) as server,
        contextlib.closing(session(server, SWEPT_CONNECTIONS)),
    ):
        time.sleep(1)
        used, before, began = cpu_ns(server), server.stats(), time.monotonic()
        time.sleep(settings.duration)
        used_after, after, seconds = cpu_ns(server), server.stats(), time.monotonic() - began
    if after["connections"] != SWEPT_CONNECTIONS:
        raise RuntimeError(f"{after['connections']} of {SWEPT_CONNECTIONS} connections are left")
    sweeps = after["sweeps"] - before["sweeps"]
    sweep_us = max(used_after[thread] - used[thread] for thread in used) / sweeps / 1e3
    return {
        "sweep_us": sweep_us,
        "connection_ns": sweep_us / SWEPT_CONNECTIONS * 1e3,
        "sweeps_per_second": sweeps / seconds,
        "sweeps_per_quarter": sweeps_per_quarter(before, after, seconds),
    }
