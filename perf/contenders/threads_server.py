"""``python -m perf.contenders.threads_server JOB``: the standard library's `socketserver`, a thread
for each connection.
"""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import sys
import time

from perf.contenders import BLOCKING_EVERY, BLOCKING_SECONDS, CHUNK, QUERY_SECONDS

_messages = itertools.count(1)


class Raw(socketserver.StreamRequestHandler):
    """Echo."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.connection.recv(CHUNK):
                self.connection.sendall(data)


class Sleeping(Raw):
    """Echo that now and then blocks, which is its own thread's affair."""

    every = BLOCKING_EVERY
    seconds = BLOCKING_SECONDS

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.connection.recv(CHUNK):
                if next(_messages) % self.every == 0:
                    time.sleep(self.seconds)
                self.connection.sendall(data)


class Querying(Sleeping):
    """Echo that blocks for a moment each time."""

    every = 1
    seconds = QUERY_SECONDS


class Server(socketserver.ThreadingTCPServer):
    """Takes as many connections at once as the other contenders do."""

    daemon_threads = True
    request_queue_size = 4096


JOBS = {"raw": Raw, "sleeping": Sleeping, "querying": Querying}

with Server(("127.0.0.1", 0), JOBS[sys.argv[1]]) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
