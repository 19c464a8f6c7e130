"""Servers that the load generator's tests run it against: functions that serve one connection; and
how it is run.
"""

import socket
import struct

from support import PATIENCE

from hydrogen.perf.generator import Session
from hydrogen.perf.options import Options


def unix_server(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def changing(change):
    """A server function: echo, with `change(data, bytes seen before)` applied to each chunk."""

    def function(connection):
        seen = 0
        while data := connection.recv(65536):
            connection.sendall(change(data, seen))
            seen += len(data)

    return function


echo = changing(lambda data, seen: data)


def read_exactly(connection, size):
    data = bytearray()
    while len(data) < size and (more := connection.recv(min(size - len(data), 65536))):
        data += more
    return bytes(data)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def measure(address, loop, **options):
    defaults = {"connections": 2, "number": 50, "warm_up": 0, "timeout": PATIENCE}
    with Session(Options(address, loop=loop, **(defaults | options))) as session:
        session.connect()
        return session.run()


def faults(result):
    counters = result.counters
    return {
        name: count
        for name in ("wrong", "closed", "failed", "unanswered")
        if (count := getattr(counters, name))
    }


def read_messages(framing, data):
    """What the messages in `data` carry, by a reader that shares nothing with the generator."""
    found = []
    while data:
        if framing == "line":
            payload, end, data = data.partition(b"\n")
            assert end
        else:
            head = {"simple": ">xH", "checksum32": ">I", "length": ">I"}.get(framing)
            if head is None:
                assert data[0] == (0x81 if framing == "websocket-text" else 0x82)
                head = {126: ">xxH", 127: ">xxQ"}.get(data[1], ">xB")
            (size,) = struct.unpack_from(head, data)
            at = struct.calcsize(head)
            payload = data[at : at + size]
            tail = {"simple": b"\x17", "checksum32": struct.pack(">I", sum(payload))}.get(
                framing, b""
            )
            assert framing != "simple" or data[0] == 0x01
            assert data[at + size : at + size + len(tail)] == tail
            data = data[at + size + len(tail) :]
        found.append(payload)
    return found
