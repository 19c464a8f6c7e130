"""What to run against which server: the command line's options, checked."""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from hydrogen.perf.framing import FRAMINGS, Mix, masked, sizes_of

Address = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""

IN_FLIGHT_MOST = 1 << 24

PATH = re.compile(r"/[!-~]*")
"""Of a request: its target, in origin form (RFC 9112, 3.2.1)."""

MAX_SECONDS = 1_000_000_000
"""Nanoseconds of so much fit 64 bits; so do those from one message to the next, of which there is
one in a thousandth of it at least.
"""


@dataclass(frozen=True)
class Options:
    """One measurement. Raises ValueError for what makes no sense, and OSError for a payload that
    cannot be read.
    """

    address: Address
    connections: int = 64
    threads: int = 1
    in_flight: int | None = None
    """messages on their way per connection, at most; None: 1 in a closed loop, and in an open one
    as many as are due
    """
    burst: bool = False
    churn: bool = False
    size: int | str = 64
    """of a message's payload, as :func:`hydrogen.perf.framing.sizes_of` reads it"""
    payload: str | None = None
    """a file: the payload of every message, instead of random ones"""
    framing: str = "raw"
    websocket: str | None = None
    """the path of a WebSocket server: the opening handshake, and frames as clients send them"""
    duration: float = 5.0
    warm_up: float = 1.0
    number: int = 0
    rate: float = 0.0
    """messages per second, over all connections: an open loop; 0: a closed one"""
    connect_rate: float = 0.0
    """connections opened per second; 0: as fast as they come"""
    idle: int = 0
    """further connections, which are silent"""
    sources: tuple[str, ...] = ()
    """addresses to connect from, in turn"""
    timeout: float = 10.0
    tls: bool = False
    cacert: str | None = None
    """a file of certificate authorities, for the system's"""
    insecure: bool = False
    """the server's certificate is not verified"""
    pid: int | None = None
    loop: str = "auto"

    def __post_init__(self) -> None:
        on_tcp = not isinstance(self.address, str)
        for name, good in {
            "address": self.address != "",
            "connections": self.connections >= 1,
            "threads": 1 <= self.threads <= self.connections,
            "in_flight": self.in_flight is None or 1 <= self.in_flight <= IN_FLIGHT_MOST,
            "burst": not self.burst or self.in_flight is not None,
            "churn": not self.churn
            or (
                on_tcp
                and not self.tls
                and not self.burst
                and self.websocket is None
                and self.in_flight in (None, 1)
            ),
            "framing": self.framing in FRAMINGS,
            "websocket": self.websocket is None
            or (PATH.fullmatch(self.websocket) and self.framing.startswith("websocket")),
            "duration": 0 < self.duration <= MAX_SECONDS,
            "warm_up": 0 <= self.warm_up <= MAX_SECONDS,
            "number": self.number == 0 or self.threads <= self.number < 1 << 63,
            "rate": not self.rate or (1000 / MAX_SECONDS <= self.rate <= 1e9 and not self.burst),
            "connect_rate": self.connect_rate >= 0,
            "idle": self.idle >= 0,
            "sources": not self.sources or (on_tcp and all(map(is_address, self.sources))),
            "timeout": 0 < self.timeout <= MAX_SECONDS,
            "cacert": self.cacert is None or (self.tls and not self.insecure),
            "insecure": self.tls or not self.insecure,
            "pid": self.pid is None or self.pid > 0,
            "loop": self.loop in ("auto", "compiled", "python"),
        }.items():
            if not good:
                raise ValueError(f"{name} must not be {getattr(self, name)!r} with these options")
        try:
            sizes = self.sizes
        except ValueError as error:
            raise ValueError(f"size: {error}") from error
        allowed = FRAMINGS[self.framing][1]
        wrong = [size for size in sizes if size not in allowed]
        if wrong:
            raise ValueError(
                f"size {wrong[0]:,}: {self.framing} messages have {allowed[0]:,} to "
                f"{allowed[-1]:,} bytes"
            )
        if self.framing == "line" and b"\n" in (self.content or b""):
            raise ValueError(
                f"{self.payload} has several lines: to send it as one message, use another framing"
            )

        if self.framing == "websocket-text" and not is_text(self.content or b""):
            raise ValueError(f"{self.payload} is not UTF-8: to send it, use --framing websocket")

    @functools.cached_property
    def content(self) -> bytes | None:
        """The payload of every message; None: random ones."""
        return None if self.payload is None else Path(self.payload).read_bytes()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the payloads, in bytes."""
        return sizes_of(str(self.size)) if self.content is None else (len(self.content),)

    @functools.cached_property
    def mix(self) -> Mix:
        """The messages on the wire."""
        shapes = (FRAMINGS[self.framing][0](size) for size in self.sizes)
        return Mix(
            tuple(shape if self.websocket is None else masked(shape) for shape in shapes),
            self.content,
        )

    @property
    def backlog(self) -> int:
        """In an open loop: messages of a connection that may wait to be sent or answered, a
        second's worth; what comes then is dropped.
        """
        return max(16, int(self.rate / self.connections) + 1) if self.rate else 0

    @property
    def depth(self) -> int:
        """Messages on their way per connection, at most."""
        if self.in_flight is not None:
            return self.in_flight
        return 1 if self.churn else max(1, self.backlog)


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_address(text: str) -> bool:
    """Whether it is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
