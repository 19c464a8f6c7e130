"""``python -m perf.contenders.hydrogen_server JOB [CERTIFICATE] [--engine compiled|python]
[--handoff POLICY] [--threads N] [--loops N]``

A line on its standard input is answered with the server's statistics, and what its handler counts,
as a line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import hydrogen
from perf.contenders import (
    BLOCKING_EVERY,
    BLOCKING_SECONDS,
    BROADCAST,
    COMPUTING_ADDITIONS,
    QUERY_SECONDS,
    THREADS,
    tls_context,
)


class Echo(hydrogen.Handler):
    """Send back what came: a chunk without framing, a payload with it."""

    def counted(self) -> dict[str, float]:
        """What the handler itself counts."""
        return {}

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        socket.send(data)


class Sleeping(Echo):
    """Echo that now and then blocks, with nothing done about it."""

    every = BLOCKING_EVERY
    seconds = BLOCKING_SECONDS

    def __init__(self) -> None:
        self._messages = itertools.count(1)

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        if next(self._messages) % self.every == 0:
            time.sleep(self.seconds)
        socket.send(data)


class Querying(Sleeping):
    """Echo that blocks for a moment each time."""

    every = 1
    seconds = QUERY_SECONDS


class Computing(Echo):
    """Echo after some 20 us of Python."""

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        total = 0
        for number in range(COMPUTING_ADDITIONS):
            total += number
        socket.send(data)


class Broadcasting(Echo):
    """Echo that sends some messages to everybody, and counts for how long that occupies its
    thread.
    """

    def __init__(self) -> None:
        self._broadcasts = 0
        self._seconds = 0.0

    def counted(self) -> dict[str, float]:
        return {"broadcasts": self._broadcasts, "broadcast_seconds": self._seconds}

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        if not data.startswith(BROADCAST):
            socket.send(data)
            return
        began = time.perf_counter()
        socket.server.broadcast(data)
        self._seconds += time.perf_counter() - began
        self._broadcasts += 1


class Upgraded(hydrogen.WebSocketHandler):
    """Echo of a WebSocket server's messages."""

    def counted(self) -> dict[str, float]:
        """As `Echo` does."""
        return {}

    def on_message(self, socket: hydrogen.HydrogenSocket, data: str | bytes) -> None:
        socket.send(data)


class Job(NamedTuple):
    """What a server does, and the settings that make it a job of its own."""

    handler: type[Echo | Upgraded]
    framing: type[hydrogen.FrameBuilder] | None = None
    settings: Mapping[str, Any] = {}


LIMITED = {
    "open_timeout": 10.0,
    "idle_timeout": 60.0,
    "frame_timeout": 60.0,
    "write_timeout": 60.0,
    "keepalive": (60, 10, 6),
    "max_connections": 10_000,
    "max_connections_per_ip": 10_000,
    "slow_callback": 1.0,
}
"""Every deadline and limit of a connection, none of which the load reaches."""

JOBS = {
    "raw": Job(Echo),
    "limited": Job(Echo, None, LIMITED),
    "unlimited": Job(Echo, None, dict.fromkeys(LIMITED)),
    "timed": Job(Echo, None, {"idle_timeout": 60.0}),
    # The shortest timeout says how often there is a sweep, `idle_timeout` that each looks at every
    # connection.
    "swept": Job(
        Echo, None, {"open_timeout": 0.04, "idle_timeout": 3600.0, "max_connections": 19_900}
    ),
    "simple": Job(Echo, hydrogen.SimpleFrameBuilder),
    "checksum32": Job(Echo, hydrogen.Checksum32FrameBuilder),
    "length": Job(Echo, hydrogen.LengthFrameBuilder),
    "line": Job(Echo, hydrogen.LineFrameBuilder),
    "websocket": Job(Echo, hydrogen.WebSocketFrameBuilder),
    "websocket_upgraded": Job(Upgraded),
    "sleeping": Job(Sleeping),
    "querying": Job(Querying),
    "simple_computing": Job(Computing, hydrogen.SimpleFrameBuilder),
    "broadcast": Job(Broadcasting),
    "tls": Job(Echo),
}


FORMER_NAMES = {"walks": "sweeps", "turns": "iterations"}
"""What statistics were called in older commits, which ``perf.compare --against`` runs -> their
names now.
"""


def statistics(server: hydrogen.Server) -> dict[str, float]:
    """The server's own, by the names that they have now."""
    return {
        FORMER_NAMES.get(name, name): value
        for name, value in dataclasses.asdict(server.stats()).items()
    }


def smallest_timeout(config: hydrogen.Config) -> float:
    """0: there is none."""
    timeouts = (
        config.open_timeout,
        config.idle_timeout,
        config.frame_timeout,
        config.write_timeout,
    )
    return min((timeout for timeout in timeouts if timeout is not None), default=0.0)


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("certificate", nargs="?")
    parser.add_argument("--engine", choices=("compiled", "python"), default="compiled")
    parser.add_argument("--handoff", choices=("auto", "inline", "eager"), default="auto")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--loops", type=int, default=1)
    options = parser.parse_args()
    job = JOBS[options.job]
    handler = job.handler()
    context = None if options.certificate is None else tls_context(options.certificate)
    workers = {"max_threads": options.threads, "loops": options.loops, "handoff": options.handoff}
    config = hydrogen.Config(port=0, framing=job.framing, ssl=context, **workers, **job.settings)
    with hydrogen.serve(handler, config, engine=options.engine) as server:
        print(server.address[1], flush=True)
        for _ in sys.stdin:
            told = {
                **statistics(server),
                **handler.counted(),
                "smallest_timeout": smallest_timeout(config),
            }
            print(json.dumps(told), flush=True)


main()
