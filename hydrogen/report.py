"""What a server says of itself: `Stats` while it runs, `StopReport` when it has stopped."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StopReport:
    """What a stop did to the connections that were there when it began.

    Attributes:
        closed: connections that ended in order: output flushed, then closed.
        aborted: connections reset because the timeout passed or `abort()` was called.
        abandoned: connections whose handler still blocks; each is removed when its handler returns.
        unsent_bytes: output that was pending on the connections that were aborted or abandoned.
        seconds: how long the stop took.
    """

    closed: int
    aborted: int
    abandoned: int
    unsent_bytes: int
    seconds: float


@dataclass(frozen=True)
class Stats:
    """Counters of a server since its start, summed at the moment of the call. Counts but `connections`, `queued_bytes`, `gil_wait_seconds`.

    Attributes:
        connections: open now.
        accepted: connections accepted.
        removed_peer_closed: removed because the peer closed; and so on for each cause.
        removed_protocol_error: `ProtocolError` and its subclasses.
        removed_timeout: `ConnectionTimeout`.
        removed_tls_error: `ssl.SSLError`: a failed handshake, a bad record, an end without close_notify.
        removed_os_error: `ConnectionResetError` and every other `OSError`.
        messages_received: messages given to `on_data_received`.
        messages_sent: messages that `send` took.
        messages_refused: messages for which `send` returned False.
        bytes_received: bytes read from sockets.
        bytes_sent: bytes that the kernel took.
        queued_bytes: output queued now on connections whose peer does not read, with input not delivered yet.
        handoffs: times that the event role was passed on to another worker because a handler blocked.
        stalls: times that a callback was found still running a tick later.
        accept_pauses: times that accepting was paused for want of fds or memory.
        polls: calls of `epoll_wait` that returned events.
        turns: turns in the dispatch role.
        gil_acquisitions: times that a worker took the GIL (0 on the Python engine, where nobody counts them).
        gil_wait_seconds: seconds spent waiting for it.
        buffer_allocations: blocks of memory asked of the C allocator on the message path (0 on the Python engine).
    """

    connections: int = 0
    accepted: int = 0
    removed_peer_closed: int = 0
    removed_local_closed: int = 0
    removed_server_stopped: int = 0
    removed_slow_consumer: int = 0
    removed_handler_error: int = 0
    removed_reject: int = 0
    removed_protocol_error: int = 0
    removed_timeout: int = 0
    removed_tls_error: int = 0
    removed_os_error: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    messages_refused: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    queued_bytes: int = 0
    handoffs: int = 0
    stalls: int = 0
    accept_pauses: int = 0
    polls: int = 0
    turns: int = 0
    gil_acquisitions: int = 0
    gil_wait_seconds: float = 0.0
    buffer_allocations: int = 0

    @property
    def removed(self) -> int:
        """Connections removed, whatever the cause."""
        return (
            self.removed_peer_closed
            + self.removed_local_closed
            + self.removed_server_stopped
            + self.removed_slow_consumer
            + self.removed_handler_error
            + self.removed_reject
            + self.removed_protocol_error
            + self.removed_timeout
            + self.removed_tls_error
            + self.removed_os_error
        )
