"""``python -m perf.contenders.threads_server JOB``: the standard library's `socketserver`, a thread
for each connection.
"""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import sys
import time

from perf.contenders import BLOCKING_EVERY, BLOCKING_SECONDS, CHUNK

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

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.connection.recv(CHUNK):
                if next(_messages) % BLOCKING_EVERY == 0:
                    time.sleep(BLOCKING_SECONDS)
                self.connection.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    """Takes as many connections at once as the other contenders do."""

    daemon_threads = True
    request_queue_size = 4096


JOBS = {"raw": Raw, "sleeping": Sleeping}

with Server(("127.0.0.1", 0), JOBS[sys.argv[1]]) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
