"""The process of the servers: ``python -m perf.soak.server --engine ENGINE CERTIFICATE``.

A line on its standard input is answered with a line of JSON: ``stats`` with what there is to know
now, ``stop`` with the reports of the stops. When the input ends, so does it. Anything on its
standard error is a fault.
"""

from __future__ import annotations

import argparse
import ctypes  # noqa: F401 - before fds are counted: libffi 3.5 opens its own file, and keeps it
import dataclasses
import faulthandler
import json
import logging
import socket
import ssl
import sys
from collections import Counter
from typing import Any

import hydrogen
from perf.soak.handler import Foreign, Host, Planned
from perf.soak.settings import (
    FRAME_TIMEOUT,
    IDLE_TIMEOUT,
    MAX_BUFFERED,
    MAX_CONNECTIONS,
    MAX_SIZE,
    MAX_WRITE_BUFFER,
    OPEN_TIMEOUT,
    PER_ADDRESS,
    READ_BUDGET,
    SEND_BUFFER,
    SLOW_CALLBACK,
    THREADS,
    TRUSTED,
    WRITE_BUFFER_LIMITS,
    WRITE_TIMEOUT,
    Place,
)

KEPT = 20
"""Errors of which the text is kept."""


class Log(logging.Handler):
    """Takes all that hydrogen logs, in place of standard error.

    Attributes:
        planned: errors that the handler raised because it was asked to.
        faults: all other errors, in full.
        kinds: how many lines of each level there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.planned = 0
        self.faults: list[str] = []
        self.kinds: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the lock of this handler held."""
        self.kinds[record.levelname] += 1
        if record.levelno < logging.ERROR:
            return
        if record.exc_info is not None and isinstance(record.exc_info[1], Planned):
            self.planned += 1
        elif len(self.faults) < KEPT:
            self.faults.append(self.format(record))


def configs(certificate: str) -> dict[Place, hydrogen.Config]:
    """Each server with every limit and deadline."""
    common: dict[str, Any] = {
        "port": 0,
        "max_threads": THREADS,
        "pre_allocated": 64,
        "max_connections_per_ip": PER_ADDRESS,
        "socket_options": [(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)],
        "write_buffer_limits": WRITE_BUFFER_LIMITS,
        "max_write_buffer": MAX_WRITE_BUFFER,
        "max_buffered": MAX_BUFFERED,
        "read_budget": READ_BUDGET,
        "open_timeout": OPEN_TIMEOUT,
        "idle_timeout": IDLE_TIMEOUT,
        "frame_timeout": FRAME_TIMEOUT,
        "write_timeout": WRITE_TIMEOUT,
        "slow_callback": SLOW_CALLBACK,
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    simple = hydrogen.SimpleFrameBuilder(max_size=MAX_SIZE)
    own: dict[Place, dict[str, Any]] = {
        Place.PLAIN: {"framing": simple},
        Place.TLS: {"framing": simple, "ssl": context, "overload": "close"},
        Place.PROXY: {
            "framing": hydrogen.LineFrameBuilder(max_size=MAX_SIZE),
            "proxy_protocol": "auto",
            "proxy_allow_from": [TRUSTED],
        },
    }
    return {
        place: hydrogen.Config(max_connections=MAX_CONNECTIONS[place], **common, **settings)
        for place, settings in own.items()
    }


def told(
    servers: dict[Place, hydrogen.Server], hosts: dict[Place, Host], log: Log
) -> dict[str, Any]:
    """What there is to know now."""
    return {
        "stats": {
            place.value: dataclasses.asdict(server.stats()) for place, server in servers.items()
        },
        "ended": {place.value: dict(host.ended) for place, host in hosts.items()},
        "unannounced": [
            {"place": place.value, **item}
            for place, host in hosts.items()
            for item in host.unannounced
        ],
        "planned": log.planned,
        "faults": log.faults,
        "lines": dict(log.kinds),
    }


def main() -> None:
    """Serve until standard input ends."""
    faulthandler.enable()
    parser = argparse.ArgumentParser()
    parser.add_argument("certificate")
    parser.add_argument("--engine", choices=("compiled", "python"), default="compiled")
    options = parser.parse_args()
    log = Log()
    logging.getLogger("hydrogen").addHandler(log)
    logging.getLogger("hydrogen").setLevel(logging.INFO)
    foreign = Foreign()
    hosts = {
        place: Host(foreign, rejects=place is Place.PLAIN, quiet_seconds=IDLE_TIMEOUT + 3)
        for place in Place
    }
    servers = {
        place: hydrogen.serve(hosts[place], config, engine=options.engine)
        for place, config in configs(options.certificate).items()
    }
    for host in hosts.values():
        host.begin_broadcasts()
    print(
        json.dumps({place.value: server.address[1] for place, server in servers.items()}),
        flush=True,
    )
    for line in sys.stdin:
        if line == "stop\n":
            reports = {
                place.value: dataclasses.asdict(server.stop()) for place, server in servers.items()
            }
            print(json.dumps({"reports": reports, **told(servers, hosts, log)}), flush=True)
        else:
            print(json.dumps(told(servers, hosts, log)), flush=True)
    foreign.end()


main()
