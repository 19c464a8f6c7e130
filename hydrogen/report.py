"""What a server says of itself: `Stats` while it runs, `StopReport` when it has stopped."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hydrogen.errors import Cause, Timeout
from hydrogen.locks import under


@dataclass(frozen=True)
class StopReport:
    """What a stop did to the connections that were open when it began: each of them is `closed`,
    `aborted` or `abandoned`.

    Attributes:
        closed: connections that ended gracefully (output flushed, then closed), or by themselves.
        aborted: connections reset because the timeout passed or `abort()` was called.
        abandoned: connections whose handler still blocks, in whose user-written stream a thread
            still is, or that wait because all workers are blocked; each is removed once the handler
            or thread returns.
        unsent_bytes: output that was pending on the connections that were aborted or abandoned.
        refused: messages for which `send` returned False while the server was stopping, because
            their connection was already closing; none of them reached a peer.
        seconds: how long the stop took.
    """

    closed: int
    aborted: int
    abandoned: int
    unsent_bytes: int
    refused: int
    seconds: float


@dataclass(frozen=True)
class BroadcastReport:
    """What became of a `Server.broadcast`.

    Attributes:
        sent: connections that took the message.
        dropped: connections that did not: they were closing, or this removed them as slow
            consumers.
    """

    sent: int
    dropped: int


def _counter(metric: str, help: str, default: float = 0) -> Any:
    """A field of `Stats` that only grows.

    Args:
        metric: its name for Prometheus, without prefix and suffix.
        help: what it counts, as a sentence.
    """
    return field(default=default, metadata={"kind": "counter", "metric": metric, "help": help})


def _by_code(metric: str, label: str, help: str) -> Any:
    """A field of `Stats` that counts by a code: a mapping, whose counters only grow.

    Args:
        label: what the code is, for Prometheus.
    """
    metadata = {"kind": "codes", "metric": metric, "label": label, "help": help}
    return field(default_factory=dict, metadata=metadata)


def _gauge(metric: str, help: str) -> Any:
    """A field of `Stats` that may fall."""
    return field(default=0, metadata={"kind": "gauge", "metric": metric, "help": help})


def _removal(help: str) -> Any:
    """A field of `Stats` that counts removals of one kind."""
    return field(default=0, metadata={"kind": "removal", "help": help})


@dataclass(frozen=True)
class Stats:
    """Counters of a server since its start, summed at the moment of the call.

    All of them only grow, except `connections` and `queued_bytes`. `accepted` is the sum of
    `connections` and `removed`, except that a connection counts as both in its last callbacks.

    Attributes:
    """

    connections: int = _gauge("connections", "Connections open now.")
    accepted: int = _counter(
        "connections_accepted", "Connections accepted, including those turned away."
    )
    removed_peer_closed: int = _removal("Removed because the peer closed.")
    removed_local_closed: int = _removal("Removed by `close` or `abort`.")
    removed_server_stopped: int = _removal("Removed by the stop of the server.")
    removed_slow_consumer: int = _removal("Removed because too much output was pending.")
    removed_handler_error: int = _removal(
        "Removed because a callback, a stream or a builder raised."
    )
    removed_reject: int = _removal("Refused by `on_new_connection`, or answered by `on_request`.")
    removed_protocol_error: int = _removal("`ProtocolError` and its subclasses.")
    removed_open_timeout: int = _removal("`ConnectionTimeout` of `open_timeout`.")
    removed_idle_timeout: int = _removal("`ConnectionTimeout` of `idle_timeout`.")
    removed_frame_timeout: int = _removal("`ConnectionTimeout` of `frame_timeout`.")
    removed_ping_timeout: int = _removal("`ConnectionTimeout` of `WebSocket.ping_timeout`.")
    removed_write_timeout: int = _removal("`ConnectionTimeout` of `write_timeout`.")
    removed_tls_error: int = _removal(
        "`ssl.SSLError`: a failed handshake, a bad record, an end without close_notify."
    )
    removed_os_error: int = _removal("`ConnectionResetError` and every other `OSError`.")
    removed_overload: int = _removal(
        "Turned away, without callbacks, by `max_connections` (`overload='close'`) "
        "or `max_connections_per_ip`."
    )
    messages_received: int = _counter("messages_received", "Messages given to `on_data_received`.")
    messages_sent: int = _counter("messages_sent", "Messages that `send` took.")
    messages_refused: int = _counter(
        "messages_refused", "Messages for which `send` returned False."
    )
    pings_sent: int = _counter("websocket_pings_sent", "Pings sent to WebSocket clients.")
    pings_received: int = _counter("websocket_pings_received", "Pings of WebSocket clients.")
    pongs_received: int = _counter("websocket_pongs_received", "Pongs of WebSocket clients.")
    responses: Mapping[int, int] = _by_code(
        "http_responses",
        "status",
        "Requests that were answered by a response, and not by speaking WebSocket, by status.",
    )
    closes: Mapping[int, int] = _by_code(
        "websocket_closes",
        "code",
        "WebSocket connections that ended, by code: the client's, or, where this side ended first, "
        "the one it was told; 1006 without a CLOSE.",
    )
    bytes_received: int = _counter("received_bytes", "Bytes read from sockets.")
    bytes_sent: int = _counter("sent_bytes", "Bytes that the kernel, or a user's stream, took.")
    queued_bytes: int = _gauge(
        "queued_bytes", "Output queued for peers that do not read, and input not yet delivered."
    )
    handoffs: int = _counter(
        "handoffs", "Times that polling passed to another worker because a callback blocked."
    )
    stalls: int = _counter(
        "stalls", "Times that callbacks were found to last: one for a tick, or several in one."
    )
    all_blocked: int = _counter(
        "all_blocked",
        "Times that all workers were found blocked in callbacks while a connection waited for one.",
    )
    slow_callbacks: int = _counter(
        "slow_callbacks", "Callbacks that ran for `slow_callback` seconds or longer."
    )
    accept_pauses: int = _counter(
        "accept_pauses",
        "Times that accepting paused: out of fds or memory (ten a second while that lasts), or at "
        "`max_connections`.",
    )
    reading_pauses: int = _counter(
        "reading_pauses",
        "Times that reading from a connection paused because its output was above the high "
        "watermark.",
    )
    reading_resumes: int = _counter(
        "reading_resumes",
        "Times that reading resumed because that output fell below the low watermark.",
    )
    memory_pauses: int = _counter(
        "memory_pauses",
        "Times that all reading was paused because more than `max_buffered` was buffered.",
    )
    sweeps: int = _counter(
        "sweeps",
        "Sweeps over all connections to check deadlines (0 on the Python engine, which keeps a "
        "heap).",
    )
    polls: int = _counter("polls", "Calls of `epoll_wait` that returned events.")
    iterations: int = _counter("iterations", "Iterations in which a worker ran callbacks.")
    gil_acquisitions: int = _counter(
        "gil_acquisitions",
        "Times that a worker took the GIL (0 on the Python engine, which does not count them).",
    )
    gil_wait_seconds: float = _counter(
        "gil_wait_seconds", "Seconds spent waiting for the GIL.", 0.0
    )
    buffer_allocations: int = _counter(
        "buffer_allocations",
        "Blocks of memory requested from the C allocator on the message path (0 on the Python "
        "engine).",
    )

    @property
    def removed_timeout(self) -> int:
        """Connections removed with `ConnectionTimeout`, for any of the timeouts."""
        return sum([getattr(self, removed_by(Cause.TIMEOUT, timeout)) for timeout in Timeout])

    @property
    def removed(self) -> int:
        """Connections removed, for any cause."""
        return sum([getattr(self, name) for name in REMOVALS])


if Stats.__doc__ is not None:  # it is under -OO
    Stats.__doc__ = inspect.cleandoc(Stats.__doc__) + "".join(
        [f"\n    {item.name}: {item.metadata['help']}" for item in fields(Stats)]
    )

REMOVALS = tuple([item.name for item in fields(Stats) if item.metadata["kind"] == "removal"])
"""The fields of `Stats` that count removals: each removal is counted by one of them."""

_SUMMED = {
    Cause.BAD_FRAME: "removed_protocol_error",
    Cause.FRAME_TOO_LARGE: "removed_protocol_error",
    Cause.INCOMPLETE_FRAME: "removed_protocol_error",
    Cause.CHECKSUM_MISMATCH: "removed_protocol_error",
    Cause.TRUNCATED: "removed_tls_error",
}
"""The causes that have no field of their own."""


def removed_by(cause: Cause, code: int = 0) -> str:
    """The field of `Stats` that counts the removals of that cause.

    `code`: as for `errors.removal_error`; it matters for `Cause.TIMEOUT` only.
    """
    if cause == Cause.TIMEOUT:
        return f"removed_{Timeout(code).field}"
    return _SUMMED.get(cause, f"removed_{cause.name.lower()}")


Counts = Mapping[int, int] | Sequence[int]
"""Counters by a `Cause` or a `Timeout`: a mapping that answers for each (a `Counter`, say), or a
sequence (an array of C).
"""


def removals(removed: Counts, timed_out: Counts) -> dict[str, int]:
    """What an engine has counted, as fields of `Stats`: `Stats(**removals(...), ...)`.

    Args:
        removed: by `Cause`; of `Cause.TIMEOUT` it is not looked at.
        timed_out: by `Timeout`.
    """
    found = dict.fromkeys(REMOVALS, 0)
    for cause in Cause:
        if cause != Cause.TIMEOUT:
            found[removed_by(cause)] += removed[cause]
    for timeout in Timeout:
        found[removed_by(Cause.TIMEOUT, timeout)] += timed_out[timeout]
    return found


class Codes:
    """Counters by a code, for the fields of `Stats` of that kind. Any thread that may wait for a
    lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}

    def add(self, code: int) -> None:
        """Count one of them."""
        under(self._lock, lambda: self._add(code))

    def _add(self, code: int) -> None:
        self._counts[code] = self._counts.get(code, 0) + 1

    def snapshot(self) -> dict[int, int]:
        """All of them."""
        return self._counts.copy()


def summed(every: Sequence[Stats]) -> Stats:
    """The counters of several engines as one."""
    names = [item.name for item in fields(Stats)]
    return Stats(**{name: _sum([getattr(one, name) for one in every]) for name in names})


def _sum(values: Sequence[Any]) -> Any:
    if not isinstance(values[0], Mapping):
        return sum(values)
    total: Counter[int] = Counter()
    for counts in values:
        total.update(counts)
    return dict(total)
