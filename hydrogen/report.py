"""What a server says of itself: `Stats` while it runs, `StopReport` when it has stopped."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StopReport:
    """What a stop did to the connections that were there when it began.

    Attributes:
        closed: connections that ended gracefully: output flushed, then closed.
        aborted: connections reset because the timeout passed or `abort()` was called.
        abandoned: connections whose handler still blocks, or that wait because all workers do; each is removed when a handler returns.
        unsent_bytes: output that was pending on the connections that were aborted or abandoned.
        seconds: how long the stop took.
    """

    closed: int
    aborted: int
    abandoned: int
    unsent_bytes: int
    seconds: float


@dataclass(frozen=True)
class BroadcastReport:
    """What became of a `Server.broadcast`.

    Attributes:
        sent: connections that took the message.
        dropped: connections that did not: closing, or gone as slow consumers by this.
    """

    sent: int
    dropped: int


@dataclass(frozen=True)
class Stats:
    """Counters of a server since its start, summed at the moment of the call. All only grow, but `connections` and `queued_bytes`.

    `accepted` is `connections` and `removed` together.

    Attributes:
        connections: open now.
        accepted: connections accepted.
        removed_peer_closed: removed because the peer closed; and so on for each cause.
        removed_protocol_error: `ProtocolError` and its subclasses.
        removed_open_timeout: `ConnectionTimeout` of `open_timeout`; and so on for each timeout. `removed_timeout` is their sum.
        removed_overload: turned away, without callbacks, by `max_connections` ("close") or `max_connections_per_ip`.
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
        all_blocked: times that all workers were found blocked in callbacks.
        slow_callbacks: callbacks that ran for `slow_callback` seconds or longer.
        accept_pauses: waits of accepting: for want of fds or memory (ten a second while that lasts), or at `max_connections`.
        reading_pauses: times that a connection was above its high watermark, so that reading from it paused.
        reading_resumes: times that its output fell below the low one, so that reading went on.
        memory_pauses: times that all reading was paused because more than `max_buffered` was buffered.
        sweeps: sweeps over all connections to look for deadlines (0 on the Python engine, which keeps a heap).
        polls: calls of `epoll_wait` that returned events.
        iterations: iterations in which a worker ran callbacks.
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
    removed_open_timeout: int = 0
    removed_idle_timeout: int = 0
    removed_frame_timeout: int = 0
    removed_write_timeout: int = 0
    removed_tls_error: int = 0
    removed_os_error: int = 0
    removed_overload: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    messages_refused: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    queued_bytes: int = 0
    handoffs: int = 0
    stalls: int = 0
    all_blocked: int = 0
    slow_callbacks: int = 0
    accept_pauses: int = 0
    reading_pauses: int = 0
    reading_resumes: int = 0
    memory_pauses: int = 0
    sweeps: int = 0
    polls: int = 0
    iterations: int = 0
    gil_acquisitions: int = 0
    gil_wait_seconds: float = 0.0
    buffer_allocations: int = 0

    @property
    def removed_timeout(self) -> int:
        """Connections removed with `ConnectionTimeout`, whichever it was."""
        return self.removed_open_timeout + self.removed_idle_timeout + self.removed_frame_timeout + self.removed_write_timeout

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
            + self.removed_overload
        )
