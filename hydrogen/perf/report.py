"""What a measurement says: the figures, the table a person reads, and the JSON a program reads."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from hydrogen.perf import machine
from hydrogen.perf.generator import Options, Result
from hydrogen.perf.histogram import percentile

SCHEMA = {"name": "hydrogen.perf", "version": 1}
"""The version changes whenever a field of the JSON is renamed, removed or changes its meaning or unit."""

PERCENTILES = (50.0, 90.0, 98.0, 99.0, 99.9)

BUSY = 0.95
"""The share of a core from which on a single-threaded program counts as saturated."""


def figures(result: Result) -> dict[str, Any]:
    """Everything measured, in seconds, bytes, microseconds and shares of one core."""
    counters = result.counters
    seconds = counters.elapsed_ns / 1e9
    messages = counters.messages
    per_second = messages / seconds if seconds else 0.0
    generator_share = counters.cpu_ns / counters.elapsed_ns if messages else 0.0
    server_share = None if result.server_cpu is None or not seconds else result.server_cpu / seconds
    return {
        "seconds": seconds,
        "messages": messages,
        "messages_per_second": per_second,
        "payload_bytes_per_second": per_second * result.options.size,
        "latency_us": latency(result.latencies, counters.longest_ns),
        "bursts": sum(result.bursts),
        "burst_us": latency(result.bursts, None) if result.options.burst else None,
        "generator": {
            "cpu_seconds": counters.cpu_ns / 1e9,
            "share": generator_share,
            "us_per_message": counters.cpu_ns / messages / 1e3 if messages else None,
            "bottleneck": generator_share >= BUSY and (server_share is None or server_share < generator_share),
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
        },
    }


def latency(counts: Any, longest_ns: int | None) -> dict[str, float | None]:
    """Percentiles, in microseconds, of histogram ``counts``."""
    found = {f"p{percent:g}": percentile(counts, percent) for percent in PERCENTILES}
    if longest_ns is not None:
        found["max"] = longest_ns if sum(counts) else None
    return {name: None if value is None else value / 1e3 for name, value in found.items()}


def explanations(result: Result) -> list[str]:
    """A sentence for the first fault of each kind."""
    counters = result.counters
    told = []
    if result.connect_failures:
        told.append(f"first connect failure: {result.connect_error}")
    if counters.wrong:
        told.append(
            f"first wrong reply: connection {counters.wrong_connection}, message {counters.wrong_message}, "
            f"byte {counters.wrong_byte} of the message on the wire"
        )
    if counters.first_errno:
        told.append(f"first connection error: {os.strerror(counters.first_errno)}")
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


def scaled(value: float | None, units: tuple[str, ...], step: float = 1000.0) -> str:
    """``value`` with three significant digits or more and the largest of ``units`` that keeps it above 1."""
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
    flight = f"bursts of {options.in_flight:,}" if options.burst else f"{options.in_flight:,} in flight"
    if options.churn:
        flight = "a new one for each message"
    rows = [
        ("messages", f"{found['messages']:,} in {found['seconds']:.2f} s"),
        ("throughput", f"{found['messages_per_second']:,.0f} messages/s"),
        ("", f"{scaled(found['payload_bytes_per_second'], ('B', 'kB', 'MB', 'GB'))}/s payload each way"),
    ]
    rows += latency_rows("latency", found["latency_us"])
    if options.burst:
        rows.append(("bursts", f"{found['bursts']:,}"))
        rows += latency_rows("whole burst", found["burst_us"])
    rows.append(("generator CPU", cpu(found["generator"])))
    if found["server"]:
        rows.append(("server CPU", cpu(found["server"])))
    faults = [f"{count:,} {name.replace('_', ' ')}" for name, count in found["faults"].items() if count]
    rows.append(("faults", ", ".join(faults) or ("none; every reply was verified" if found["messages"] else "none")))
    lines = [
        f"{shown_address(options)}  {options.framing} echo of {options.size:,} bytes{f' over {result.tls}' if result.tls else ''}, "
        f"{options.connections:,} connections, {flight}" + (" (interrupted)" if result.interrupted else ""),
        *(f"  {name:<14} {value}" for name, value in rows),
        *(f"  {told}" for told in explanations(result)),
    ]
    if found["generator"]["bottleneck"]:
        lines.append("warning: the generator used its core fully: it may have been the bottleneck, not the server")
    if result.loop == "python":
        lines.append("warning: this was the generator's slow loop in Python; the compiled one was not used")
    return "\n".join(lines)


def latency_rows(name: str, values: dict[str, float | None]) -> list[tuple[str, str]]:
    return [
        (name if index == 0 else "", f"{label:<6}{scaled(value, ('us', 'ms', 's')):>10}")
        for index, (label, value) in enumerate(values.items())
    ]


def cpu(usage: dict[str, Any]) -> str:
    return f"{usage['share']:.1%} of one core, {scaled(usage['us_per_message'], ('us', 'ms', 's'))} per message"
