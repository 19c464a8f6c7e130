"""The servers that are compared, each a program that prints its port and serves until it is ended.

Each is written as a good user of its library would write it, and all of them do the same jobs:

``raw``       send back every chunk as it was read
``simple``    send back every SimpleFrame (0x01, u16 big-endian length, payload, 0x17)
``sleeping``  raw, but exactly every 100th message of the server takes its handler 10 ms of blocking
``querying``  raw, but every message takes its handler 1 ms of blocking
``broadcast`` raw, but what begins with `B` goes to all connections. the Python servers answer a
line on their standard
              input with a line of JSON: how many broadcasts there were, and for how long those kept
              their thread
``tls``       raw, over TLS; a second argument names the file of the server's key and certificate.
the event loops
              read into a buffer of their own (`BufferedProtocol`), which is twice as fast on uvloop
``websocket_upgraded``  an HTTP/1.1 request to upgrade, its answer, and then every WebSocket message
sent back

and of the event loops, which must not be blocked, also

``simple_tuned``  simple, with a parser that its author has optimised
``executor``      sleeping, with exactly the handlers that block sent to a pool of 32 threads
``executor_querying``  querying, with each handler sent to that pool

and of hydrogen alone ``checksum32``, ``length``, ``line`` and ``websocket``: send back every
message of that framing;
``simple_computing``: simple after some 20 us of Python in each handler; and raw with other
settings: ``limited`` has every deadline and limit, ``unlimited`` none, ``timed`` an `idle_timeout`
beside the defaults, and ``swept`` looks at all its connections every hundredth of a second.
"""

from __future__ import annotations

import ssl

BLOCKING_EVERY = 100
BLOCKING_SECONDS = 0.01
QUERY_SECONDS = 0.001
COMPUTING_ADDITIONS = 600
THREADS = 32
CHUNK = 1 << 16
"""Bytes asked of a read, where the library leaves that to its user."""

BROADCAST = b"B"


def tls_context(certificate: str) -> ssl.SSLContext:
    """What every server speaks TLS by: Python's defaults, so TLS 1.3 and the cipher that OpenSSL
    prefers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
