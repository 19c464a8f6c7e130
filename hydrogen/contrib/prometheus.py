"""The counters of a server for Prometheus: a collector for `prometheus-client` (`pip install
hydrogen-server[metrics]`).

    prometheus_client.REGISTRY.register(Collector(server))
    prometheus_client.start_http_server(9000)

Every field of `Stats` is there, with the name and the help of its metadata, by Prometheus'
conventions: base units, and `_total` for what only grows; removals are one counter with the label
`cause`, and what is counted by a code has that as a label. It is asked when somebody scrapes, and
costs nothing in between. A scrape calls `Server.stats` once for each server, which needs no worker:
it is answered also when all of them are blocked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector as _Collector

from hydrogen.report import REMOVALS, Stats
from hydrogen.server import Server

Family = CounterMetricFamily | GaugeMetricFamily


def _families(kind: str, suffix: str = "") -> dict[str, tuple[str, str]]:
    return {
        field.name: (
            f"hydrogen_{field.metadata['metric']}{suffix}",
            field.metadata["help"].replace("`", ""),
        )
        for field in dataclasses.fields(Stats)
        if field.metadata["kind"] == kind
    }


GAUGES = _families("gauge")
"""Field of `Stats` that may fall -> name and help of its gauge."""

COUNTERS = _families("counter", "_total")
"""Field of `Stats` that only grows -> name and help of its counter; but for the removals."""

CODES = {
    field.name: field.metadata["label"]
    for field in dataclasses.fields(Stats)
    if field.metadata["kind"] == "codes"
}
"""Field of `Stats` that counts by a code -> the label that has it; see `CODE_COUNTERS`."""

CODE_COUNTERS = _families("codes", "_total")
"""The same fields -> name and help of the counter. A code that has not occurred is not there."""

REMOVED = ("hydrogen_connections_removed_total", "Connections removed, by cause.")

CAUSES = {name: name.removeprefix("removed_") for name in REMOVALS}
"""Field of `Stats` -> value of the label `cause`. A cause that has not occurred is there with 0."""


class Collector(_Collector):
    """A collector for `prometheus-client`. It may be registered before the server starts, and
    outlives its stop.
    """

    def __init__(self, servers: Server | Mapping[str, Server]) -> None:
        """Nothing is collected yet.

        Args:
            servers: one server; or several by name, where the name becomes the label `server`. (Two
                collectors in one registry would have metrics of the same names, which a registry
                refuses.)
        """
        self._servers = {"": servers} if isinstance(servers, Server) else dict(servers)
        self._labels = [] if isinstance(servers, Server) else ["server"]

    def collect(self) -> Iterator[Family]:
        """One family for each counter, with one sample for each server, all from one call of its
        `stats()`.
        """
        asked = [
            ([name] if self._labels else [], server.stats())
            for name, server in self._servers.items()
        ]
        kinds: list[tuple[type[Family], dict[str, tuple[str, str]]]] = [
            (GaugeMetricFamily, GAUGES),
            (CounterMetricFamily, COUNTERS),
        ]
        for kind, table in kinds:
            for field, (name, text) in table.items():
                family = kind(name, text, labels=self._labels)
                for labels, stats in asked:
                    family.add_metric(labels, getattr(stats, field))
                yield family
        for field, (name, text) in CODE_COUNTERS.items():
            family = CounterMetricFamily(name, text, labels=[*self._labels, CODES[field]])
            for labels, stats in asked:
                for code, count in sorted(getattr(stats, field).items()):
                    family.add_metric([*labels, str(code)], count)
            yield family
        removed = CounterMetricFamily(*REMOVED, labels=[*self._labels, "cause"])
        for labels, stats in asked:
            for field, cause in CAUSES.items():
                removed.add_metric([*labels, cause], getattr(stats, field))
        yield removed
