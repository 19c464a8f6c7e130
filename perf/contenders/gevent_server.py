"""``python -m perf.contenders.gevent_server JOB``"""

# ruff: noqa: E402

from gevent import monkey

monkey.patch_all()  # before all other imports: with it `time.sleep` blocks its greenlet only

import contextlib
import functools
import itertools
import socket
import sys
import time

from gevent.server import StreamServer

from perf.contenders import BLOCKING_EVERY, BLOCKING_SECONDS, CHUNK, QUERY_SECONDS

_messages = itertools.count(1)


def raw(sock: socket.socket, address: tuple[str, int]) -> None:
    """Echo; a greenlet for each connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(CHUNK):
            sock.sendall(data)


def blocking(every: int, seconds: float, sock: socket.socket, address: tuple[str, int]) -> None:
    """Echo that blocks at every n-th message, with nothing done about it but the patching."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(CHUNK):
            if next(_messages) % every == 0:
                time.sleep(seconds)
            sock.sendall(data)


JOBS = {
    "raw": raw,
    "sleeping": functools.partial(blocking, BLOCKING_EVERY, BLOCKING_SECONDS),
    "querying": functools.partial(blocking, 1, QUERY_SECONDS),
}

server = StreamServer(("127.0.0.1", 0), JOBS[sys.argv[1]], backlog=4096)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
