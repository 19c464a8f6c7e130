"""What tests of compressed WebSocket messages share."""

import base64
import random
import socket as stdlib_socket

import pytest
from websocket_peers import (
    CONTINUATION,
    FIN,
    OFFER,
    RSV1,
    deflate_peer_of,
    frame,
    options_of,
)

from hydrogen import Deflate, WebSocket

NEVER = 60.0
"""Seconds of `close_timeout`, which must not be waited for."""
SHORT, AMPLE = 0.1, 2.0
"""Seconds of the times of keepalive: that is to pass, and that a client has."""

MIN_SIZE = 1024
"""The default of `Deflate.min_size`."""

LOW, HIGH = 16_384, 32_768
SMALL = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 8192)]
TIGHT = {"socket_options": SMALL, "write_buffer_limits": (LOW, HIGH)}
"""Options of a server whose output is soon too much."""

LENGTHS = [0, 1, 125, 126, 127, MIN_SIZE - 1, MIN_SIZE, 65_535, 65_536, 65_537, 1 << 20]

GREETING = "Grüße \U0001f600 " * 100
"""Long enough to be compressed."""

families = pytest.mark.parametrize("family", ["tcp", "tls"])
each_side = pytest.mark.parametrize("sides", ["neither", "server", "client", "both"])
"""The sides that go on with their context."""
ours = pytest.mark.parametrize("sides", ["neither", "server"])


def taking_over(sides, **more):
    """A `Deflate` with which these sides go on with their context."""
    return Deflate(
        server_no_context_takeover=sides not in ("server", "both"),
        client_no_context_takeover=sides not in ("client", "both"),
        **more,
    )


def random_bytes(length, seed=0):
    """What cannot be compressed."""
    return random.Random(f"{length} {seed}").randbytes(length)


def random_text(length, seed=0):
    """The same of a text, a quarter of which can be."""
    return base64.b64encode(random_bytes(length, seed)).decode()[:length]


def repeated(length):
    """What is compressed to almost nothing."""
    return ("hello, " * (length // 7 + 1))[:length]


THREADS = 4


def numbered(thread, count):
    """Texts of a thread, by turns short and long, that say whose they are and how many were
    before.
    """
    return [f"{thread} {n} " + "x" * (0, 2000, 10, 5000)[n % 4] for n in range(count)]


def of_thread(received, thread):
    """Those of `received` that are the thread's."""
    return [data for data in received if data.startswith(f"{thread} ")]


def send_all(socket, messages):
    """Send them."""
    for data in messages:
        assert socket.send(data)


def one_by_one(data):
    """The bytes of `data`, to be sent each by itself."""
    return [data[at : at + 1] for at in range(len(data))]


def fragments(opcode, parts, between=b""):
    """A compressed message in frames of these payloads, with `between` in between; RSV1 is of the
    first one alone.
    """
    wire = b""
    for number, part in enumerate(parts):
        first = CONTINUATION if number else opcode | RSV1
        wire += (between if number else b"") + frame(
            first | (FIN if number == len(parts) - 1 else 0), part
        )
    return wire


def starter(start, connect, folder):
    """A server that compresses, and an open connection for which it does."""

    def begin(handler, sides="neither", family="tcp", *, offer=OFFER, settings=None, **options):
        small = options.pop("receive_buffer", None)
        deflate = options.pop("deflate", {})
        server = start(
            handler,
            websocket=WebSocket(
                deflate=taking_over(sides, **deflate), close_timeout=NEVER, **(settings or {})
            ),
            **{**options_of(family, folder / "s"), **options},
        )
        client = connect(server, receive_buffer=small)
        peer = deflate_peer_of(client, family, deflate.get("min_size", MIN_SIZE)).open(offer=offer)
        assert peer.server_takeover is (sides in ("server", "both"))
        assert peer.client_takeover is (sides in ("client", "both"))
        return server, peer

    return begin
