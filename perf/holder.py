"""Connections that are held open and do nothing: what a server has many of while a few are busy."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

PER_SOURCE = 5000
"""Connections from one of the addresses 127.0.0.x. Each has ephemeral ports of its own, 28,000 by default, and the search for
a free one becomes slow when half of them are taken."""

BATCH = 500
"""Connections in the kernel's queue at once; a full one, of some 4,000, would drop them for a second."""

RESET = struct.pack("ii", 1, 0)


def _connect(port: int, source: str) -> socket.socket:
    sock = socket.socket()
    try:
        # Closed by RST: in order, each would keep its port for a minute, and after a few rounds none would be left.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.settimeout(60)
        sock.bind((source, 0))
        sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def held(port: int, number: int) -> Iterator[None]:
    """Hold ``number`` connections to a server that echoes; each has echoed a byte, so that the server has it too."""
    with contextlib.ExitStack() as stack:
        for begin in range(0, number, BATCH):
            batch = [
                stack.enter_context(_connect(port, f"127.0.0.{2 + index // PER_SOURCE}"))
                for index in range(begin, min(begin + BATCH, number))
            ]
            for sock in batch:
                sock.sendall(b".")
            for sock in batch:
                if sock.recv(1) != b".":
                    raise RuntimeError("the server does not echo")
        yield
