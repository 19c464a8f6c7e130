"""``python -m perf.arms.hydrogen_server JOB [CERTIFICATE] [--engine compiled|python] [--handoff auto|inline|eager]``

A line on its standard input is answered with the server's statistics as a line of JSON.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time

import hydrogen
from perf.arms import BLOCKING_EVERY, BLOCKING_SECONDS, THREADS, tls_context


class Echo(hydrogen.Handler):
    """Send back what came: a chunk without framing, a payload with it."""

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        socket.send(data)


class Sleeping(hydrogen.Handler):
    """Echo that now and then blocks, with nothing done about it."""

    def __init__(self) -> None:
        self._messages = itertools.count(1)

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        if next(self._messages) % BLOCKING_EVERY == 0:
            time.sleep(BLOCKING_SECONDS)
        socket.send(data)


JOBS: dict[str, tuple[type[hydrogen.Handler], type[hydrogen.FrameBuilder] | None]] = {
    "raw": (Echo, None),
    "simple": (Echo, hydrogen.SimpleFrameBuilder),
    "checksum32": (Echo, hydrogen.Checksum32FrameBuilder),
    "length": (Echo, hydrogen.LengthFrameBuilder),
    "line": (Echo, hydrogen.LineFrameBuilder),
    "websocket": (Echo, hydrogen.WebSocketFrameBuilder),
    "sleeping": (Sleeping, None),
    "tls": (Echo, None),
}


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("certificate", nargs="?")
    parser.add_argument("--engine", choices=("compiled", "python"), default="compiled")
    parser.add_argument("--handoff", choices=("auto", "inline", "eager"), default="auto")
    options = parser.parse_args()
    handler, framing = JOBS[options.job]
    context = None if options.certificate is None else tls_context(options.certificate)
    config = hydrogen.Config(port=0, max_threads=THREADS, framing=framing, ssl=context, handoff=options.handoff)
    with hydrogen.serve(handler(), config, engine=options.engine) as server:
        print(server.address[1], flush=True)
        for _ in sys.stdin:
            print(json.dumps(dataclasses.asdict(server.stats())), flush=True)


main()
