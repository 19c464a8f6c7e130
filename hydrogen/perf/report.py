"""What a measurement says: the figures, the table a person reads, and the JSON a program reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from hydrogen.perf import machine
from hydrogen.perf._generator_py import LATE_NS
from hydrogen.perf.generator import Result
from hydrogen.perf.histogram import curve, percentiles
from hydrogen.perf.options import Options

SCHEMA = {"name": "hydrogen.perf", "version": 2}
"""The version changes whenever a field of the JSON is renamed, removed or changes its meaning or
unit.
"""

PERCENTILES = {
    "p50": 50.0,
    "p75": 75.0,
    "p90": 90.0,
    "p95": 95.0,
    "p98": 98.0,
    "p99": 99.0,
    "p99.9": 99.9,
    "p99.99": 99.99,
    "max": 100.0,
}

BUSY = 0.95
"""The share of a core from which on a single-threaded program counts as saturated."""

LATE_US = LATE_NS / 1e3
"""After so long a send counts as late."""


def figures(result: Result) -> dict[str, Any]:
    """Everything measured, in seconds, bytes, microseconds and shares of one core."""
    counters, options = result.counters, result.options
    seconds = counters.elapsed_ns / 1e9
    messages = counters.messages
    generator_share = counters.busiest_ns / counters.elapsed_ns if messages else 0.0
    server_share = None if result.server_cpu is None or not seconds else result.server_cpu / seconds
    moments, rates = result.series.rates()
    connects = result.histograms.connects if options.churn else result.connects
    return {
        "seconds": seconds,
        "messages": messages,
        "messages_per_second": messages / seconds if seconds else 0.0,
        "payload_bytes_per_second": counters.content / seconds if seconds else 0.0,
        "latency_us": latency(result.histograms.latencies, counters.longest_ns),
        "uncorrected_latency_us": latency(result.histograms.uncorrected) if options.rate else None,
        "latency_curve": curve_us(result.histograms.latencies),
        "uncorrected_latency_curve": curve_us(result.histograms.uncorrected)
        if options.rate
        else None,
        "connect_us": latency(connects) if any(connects) else None,
        "handshake_us": latency(result.handshakes) if any(result.handshakes) else None,
        "first_byte_us": latency(result.histograms.first_bytes)
        if any(result.histograms.first_bytes)
        else None,
        "bursts": sum(result.histograms.bursts),
        "burst_us": latency(result.histograms.bursts) if options.burst else None,
        "open_loop": {
            "target_per_second": options.rate,
            "late": counters.late,
            "late_after_us": LATE_US,
            "dropped": counters.dropped,
        }
        if options.rate
        else None,
        "series": {"seconds": moments, "messages_per_second": rates},
        "generator": {
            "threads": options.threads,
            "cpu_seconds": counters.cpu_ns / 1e9,
            "share": generator_share,
            "us_per_message": counters.cpu_ns / messages / 1e3 if messages else None,
            "bottleneck": generator_share >= BUSY
            and (server_share is None or server_share < generator_share),
        },
        "server": None
        if result.server_cpu is None
        else {
            "cpu_seconds": result.server_cpu,
            "share": server_share,
            "us_per_message": result.server_cpu / messages * 1e6 if messages else None,
        },
        "faults": {
            "connect_failures": result.connect_failures,
            "wrong_replies": counters.wrong,
            "closed_by_server": counters.closed,
            "connection_errors": counters.failed,
            "unanswered": counters.unanswered,
            "idle_lost": result.idle_lost,
        },
    }


def latency(counts: Sequence[int], longest_ns: int | None = None) -> dict[str, float | None]:
    """Percentiles and maximum, in microseconds, of histogram ``counts``; its own maximum is right
    to 0.2 %.
    """
    found = percentiles(counts, list(PERCENTILES.values()))
    if found is None:
        return dict.fromkeys(PERCENTILES)
    if longest_ns is not None:
        found[-1] = longest_ns
    return {name: value / 1e3 for name, value in zip(PERCENTILES, found, strict=True)}


def curve_us(counts: Sequence[int]) -> list[list[float]]:
    """Pairs of a percentile and its value in microseconds."""
    return [[round(percent, 6), value / 1e3] for percent, value in curve(counts)]


def explanations(result: Result) -> list[str]:
    """A sentence for the first fault of each kind."""
    counters = result.counters
    told = []
    if result.connect_failures:
        told.append(
            f"first connect failure: {result.connect_error}"
            + ("" if counters.live else "; no connection was opened")
        )
    if counters.wrong:
        told.append(
            f"first wrong reply: connection {counters.wrong_connection}, message "
            f"{counters.wrong_message}, "
            f"byte {counters.wrong_byte} of the message on the wire"
        )
    if counters.first_errno:
        told.append(f"first connection error: {os.strerror(counters.first_errno)}")
    if counters.dropped:
        told.append(
            "the rate is too high: a send is dropped when a second's worth still waits on its "
            "connection, or the generator is a second late"
        )
    return told


def as_json(result: Result) -> dict[str, Any]:
    """The whole report: schema, configuration, machine and figures."""
    return {
        "schema": SCHEMA,
        "configuration": dataclasses.asdict(result.options) | {"loop": result.loop},
        "tls": result.tls or None,
        "machine": machine.describe(),
        "interrupted": result.interrupted,
        "result": figures(result),
        "explanations": explanations(result),
    }


def shown_address(options: Options) -> str:
    address = options.address
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


TIMES = ("us", "ms", "s")


def scaled(value: float | None, units: tuple[str, ...], step: float = 1000.0) -> str:
    """``value`` with three significant digits or more and the largest of ``units`` that keeps it
    above 1.
    """
    if value is None:
        return "-"
    for unit in units[:-1]:
        if value < step:
            return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
        value /= step
    return f"{value:,.2f} {units[-1]}"


def table(result: Result) -> str:
    """The report for a person."""
    options, found = result.options, figures(result)
    rows = [
        ("messages", f"{found['messages']:,} in {found['seconds']:.2f} s"),
        ("throughput", f"{found['messages_per_second']:,.0f} messages/s"),
        (
            "",
            f"{scaled(found['payload_bytes_per_second'], ('B', 'kB', 'MB', 'GB'))}/s payload each "
            "way",
        ),
    ]
    if found["open_loop"]:
        sends = found["open_loop"]
        rows.append(("open loop", f"{sends['target_per_second']:,.0f} messages/s requested"))
        rows.append(
            (
                "",
                f"{sends['late']:,} sent more than {scaled(LATE_US, TIMES)} late, "
                f"{sends['dropped']:,} dropped",
            )
        )
    rows += latency_rows("latency", found["latency_us"])
    if options.rate:
        rows += latency_rows("uncorrected", found["uncorrected_latency_us"])
    if options.burst:
        rows.append(("bursts", f"{found['bursts']:,}"))
        rows += latency_rows("whole burst", found["burst_us"])
    for name in ("connect", "handshake", "first_byte"):
        if found[f"{name}_us"]:
            rows.append((name.replace("_", " "), in_short(found[f"{name}_us"])))
    rows.append(("generator CPU", cpu(found["generator"])))
    if found["server"]:
        rows.append(("server CPU", cpu(found["server"])))
    faults = [
        f"{count:,} {name.replace('_', ' ')}" for name, count in found["faults"].items() if count
    ]
    rows.append(
        (
            "faults",
            ", ".join(faults)
            or ("none; every reply was verified" if found["messages"] else "none"),
        )
    )
    lines = [
        headline(result),
        *(f"  {name:<14} {value}" for name, value in rows),
        *(f"  {told}" for told in explanations(result)),
    ]
    if found["generator"]["bottleneck"]:
        lines.append(
            "warning: the generator saturated its core: it, not the server, may have been the "
            "bottleneck"
        )
    if result.loop == "python":
        lines.append(
            "warning: this run used the generator's slow Python loop, not the compiled one"
        )
    return "\n".join(lines)


def headline(result: Result) -> str:
    """What was run, in a line."""
    options = result.options
    size = f"{options.payload}" if options.payload is not None else f"{options.size} bytes"
    flight = f"{options.in_flight or 1:,} in flight"
    if options.burst:
        flight = f"bursts of {options.in_flight:,}"
    elif options.churn:
        flight = "a new one for each message"
    elif options.rate and options.in_flight is None:
        flight = "sent when due"
    return (
        f"{shown_address(options)}  {options.framing} echo of "
        f"{size}{f' over {result.tls}' if result.tls else ''}, "
        f"{options.connections:,} "
        f"connections{f' beside {options.idle:,} idle ones' if options.idle else ''}, {flight}"
        + (f", {options.threads} threads" if options.threads > 1 else "")
        + (" (interrupted)" if result.interrupted else "")
    )


def latency_rows(name: str, values: dict[str, float | None]) -> list[tuple[str, str]]:
    return [
        (name if index == 0 else "", f"{label:<6}{scaled(value, TIMES):>10}")
        for index, (label, value) in enumerate(values.items())
    ]


def in_short(values: dict[str, float | None]) -> str:
    """Some percentiles in a line."""
    return ", ".join(f"{name} {scaled(values[name], TIMES)}" for name in ("p50", "p99", "max"))


def cpu(usage: dict[str, Any]) -> str:
    threads = usage.get("threads", 1)
    busiest = f" of one core{' in its busiest thread' if threads > 1 else ''}"
    return f"{usage['share']:.1%}{busiest}, {scaled(usage['us_per_message'], TIMES)} per message"
