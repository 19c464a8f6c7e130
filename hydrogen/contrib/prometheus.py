"""The counters of a server for Prometheus: a collector for `prometheus-client` (`pip install hydrogen-server[metrics]`).

    prometheus_client.REGISTRY.register(Collector(server))
    prometheus_client.start_http_server(9000)

Every field of `Stats` is there, by Prometheus' conventions: base units, and `_total` for what only grows; removals are one counter with
the label `cause`. It is asked when somebody scrapes, and costs nothing in between. A scrape calls `Server.stats` once for each server,
which needs no worker: it is answered also when all of them are blocked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector as _Collector

from hydrogen.report import Stats
from hydrogen.server import Server

Family = CounterMetricFamily | GaugeMetricFamily

GAUGES = {
    "connections": ("hydrogen_connections", "Connections open now."),
    "queued_bytes": ("hydrogen_queued_bytes", "Output queued for peers that do not read, and input not delivered yet."),
}
"""Field of `Stats` that may fall -> name and help of its gauge."""

COUNTERS = {
    "accepted": ("hydrogen_connections_accepted_total", "Connections accepted, those turned away included."),
    "messages_received": ("hydrogen_messages_received_total", "Messages given to on_data_received."),
    "messages_sent": ("hydrogen_messages_sent_total", "Messages that send took."),
    "messages_refused": ("hydrogen_messages_refused_total", "Messages for which send returned False."),
    "bytes_received": ("hydrogen_received_bytes_total", "Bytes read from sockets."),
    "bytes_sent": ("hydrogen_sent_bytes_total", "Bytes that the kernel took."),
    "handoffs": ("hydrogen_handoffs_total", "Times that polling was passed on because a callback blocked."),
    "stalls": ("hydrogen_stalls_total", "Times that a callback was still running a tick later."),
    "all_blocked": ("hydrogen_all_blocked_total", "Times that all workers were found blocked in callbacks."),
    "slow_callbacks": ("hydrogen_slow_callbacks_total", "Callbacks that ran for slow_callback seconds or longer."),
    "accept_pauses": ("hydrogen_accept_pauses_total", "Times that accepting was paused."),
    "reading_pauses": ("hydrogen_reading_pauses_total", "Times that a connection was above its high watermark."),
    "reading_resumes": ("hydrogen_reading_resumes_total", "Times that it was below its low watermark again."),
    "memory_pauses": ("hydrogen_memory_pauses_total", "Times that all reading was paused for max_buffered."),
    "sweeps": ("hydrogen_sweeps_total", "Sweeps over all connections to look for deadlines."),
    "polls": ("hydrogen_polls_total", "Calls of epoll_wait that returned events."),
    "iterations": ("hydrogen_iterations_total", "Iterations of workers in which callbacks ran."),
    "gil_acquisitions": ("hydrogen_gil_acquisitions_total", "Times that a worker took the GIL."),
    "gil_wait_seconds": ("hydrogen_gil_wait_seconds_total", "Seconds spent waiting for the GIL."),
    "buffer_allocations": ("hydrogen_buffer_allocations_total", "Blocks of memory asked of the C allocator for messages."),
}
"""Field of `Stats` that only grows -> name and help of its counter; but for the removals."""

REMOVED = ("hydrogen_connections_removed_total", "Connections removed, by cause.")

CAUSES = {field.name: field.name.removeprefix("removed_") for field in dataclasses.fields(Stats) if field.name.startswith("removed_")}
"""Field of `Stats` -> value of the label `cause`. A cause that has not occurred is there with 0."""


class Collector(_Collector):
    """What a registry of `prometheus-client` asks. May be registered before the server is started, and outlives its stop."""

    def __init__(self, servers: Server | Mapping[str, Server]) -> None:
        """Args:
        servers: one server; or several by their names, which become the label `server`. (Two collectors in one registry would have the same
            names, and a registry refuses that.)
        """
        self._servers = {"": servers} if isinstance(servers, Server) else dict(servers)
        self._labels = [] if isinstance(servers, Server) else ["server"]

    def collect(self) -> Iterator[Family]:
        """One family for each counter, with one sample for each server, all from one call of its `stats()`."""
        asked = [([name] if self._labels else [], server.stats()) for name, server in self._servers.items()]
        kinds: list[tuple[type[Family], dict[str, tuple[str, str]]]] = [(GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)]
        for kind, table in kinds:
            for field, (name, text) in table.items():
                family = kind(name, text, labels=self._labels)
                for labels, stats in asked:
                    family.add_metric(labels, getattr(stats, field))
                yield family
        removed = CounterMetricFamily(*REMOVED, labels=[*self._labels, "cause"])
        for labels, stats in asked:
            for field, cause in CAUSES.items():
                removed.add_metric([*labels, cause], getattr(stats, field))
        yield removed
