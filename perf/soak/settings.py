"""What both sides of a soak know: limits so tight that each of them bites in any quarter of a
minute, and from where who comes.

Two rules keep the well-behaved clients out of the limits. *By address*: they come from addresses of
their own, fewer from each than `PER_ADDRESS`. *By size*: what is buffered for one of them is less
than what is buffered for the largest hostile one whenever `MAX_BUFFERED` is exceeded, for it is the
connection with the most that goes: a third of the `WELL_BEHAVED_SLOTS` is at one server, and each
lets not much more than `LARGEST_REPLY` wait; what is left of `MAX_BUFFERED` is more than that for
each of the 14 hostile ones that do not read.
"""

from __future__ import annotations

import enum

IDLE_TIMEOUT = 5.0
FRAME_TIMEOUT = 2.0
WRITE_TIMEOUT = 3.0
OPEN_TIMEOUT = 2.0
SLOW_CALLBACK = 0.25

THREADS = 6
"""of each server"""
MAX_SIZE = 32_768
"""of a message"""
PER_ADDRESS = 24
MAX_CONNECTIONS = {"plain": 160, "tls": 56, "proxy": 160}
WRITE_BUFFER_LIMITS = (8_192, 32_768)
MAX_WRITE_BUFFER = 262_144
MAX_BUFFERED = 2 << 20
READ_BUDGET = 65_536
SEND_BUFFER = 16_384
"""of the kernel, which else takes megabytes for a peer that does not read"""

PART = 16_000
"""of a large reply, which has up to `PARTS`"""
PARTS = 4
LARGEST_REPLY = PART * PARTS

WELL_BEHAVED_SLOTS = 36
"""slots in which one client comes after the other"""
WELL_BEHAVED = [f"127.0.0.{number}" for number in range(1, 9)]
REJECTED = "127.0.0.66"
"""whom `on_new_connection` of the plain server refuses"""
HOSTILE = "127.0.0.90"
FLOODING = [f"127.0.0.{number}" for number in range(100, 106)]
TRUSTED = "127.0.0.0/25"
"""whose PROXY headers are believed; all of the above are within"""
STRANGER = "127.0.0.200"
"""who is not"""


class Place(str, enum.Enum):
    """The three servers; the values are their names."""

    PLAIN = "plain"
    """SimpleFrame; accepting pauses at its limit"""
    TLS = "tls"
    """SimpleFrame over TLS; turns away those over its limit"""
    PROXY = "proxy"
    """lines behind PROXY headers"""
