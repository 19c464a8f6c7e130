"""Reports of the load generator as its users have them, read from JSON; made here, for nothing is
measured to test what reads them.
"""

import dataclasses
import json

from hydrogen.perf import report
from hydrogen.perf.conditions import PERCENTILES
from hydrogen.perf.generator import Result
from hydrogen.perf.histogram import BUCKETS, bucket_of
from hydrogen.perf.loops import Counters, Histograms
from hydrogen.perf.options import Options
from hydrogen.perf.series import Series

PERCENTS = [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.9, 99.99, 100.0]


def distribution(lowest_us, growth=1.5):
    """Named percentiles, each `growth` times the one before."""
    return {name: lowest_us * growth**i for i, name in enumerate(PERCENTILES)}


def curve(lowest_us, growth=1.5):
    return [[percent, lowest_us * growth**i] for i, percent in enumerate(PERCENTS)]


def made(options=None, result=None, **changes):
    """A report of a closed loop without faults, with these options, figures and fields instead of
    its own.
    """
    figures = {
        "seconds": 2.0,
        "messages": 100_000,
        "messages_per_second": 50_000.0,
        "payload_bytes_per_second": 3_200_000.0,
        "latency_us": distribution(100.0),
        "uncorrected_latency_us": None,
        "latency_curve": curve(20.0),
        "uncorrected_latency_curve": None,
        "connect_us": distribution(30.0),
        "handshake_us": None,
        "first_byte_us": distribution(200.0),
        "bursts": 0,
        "burst_us": None,
        "open_loop": None,
        "series": {
            "seconds": [0.5, 1.0, 1.5, 2.0],
            "messages_per_second": [48_000.0, 52_000.0, 51_000.0, 49_000.0],
        },
        "generator": {
            "threads": 1,
            "cpu_seconds": 0.4,
            "share": 0.2,
            "us_per_message": 4.0,
            "bottleneck": False,
        },
        "server": {"cpu_seconds": 1.0, "share": 0.5, "us_per_message": 10.0},
        "faults": dict.fromkeys(
            (
                "connect_failures",
                "wrong_replies",
                "closed_by_server",
                "connection_errors",
                "unanswered",
                "idle_lost",
            ),
            0,
        ),
    }
    document = {
        "schema": report.SCHEMA,
        "configuration": dataclasses.asdict(Options(("127.0.0.1", 9000)))
        | {"loop": "compiled"}
        | (options or {}),
        "tls": None,
        "machine": {
            "cpu": "A processor",
            "cores": 8,
            "usable_cores": 8,
            "kernel": "Linux 6.1",
            "python": "CPython 3.11.7",
        },
        "interrupted": False,
        "result": figures | (result or {}),
        "explanations": [],
    }
    return json.loads(json.dumps(document | changes))


def of_open_loop(options=None, result=None, **changes):
    """The same of an open loop."""
    figures = {
        "uncorrected_latency_us": distribution(90.0, 1.2),
        "uncorrected_latency_curve": curve(18.0, 1.2),
        "open_loop": {
            "target_per_second": 50_000.0,
            "late": 20,
            "late_after_us": 1000.0,
            "dropped": 5,
        },
    }
    return made(options, figures | (result or {}), **changes)


def result(latencies_us=(100,), seconds=2.0, generator_seconds=0.5, server_seconds=None, **changes):
    """A result of that many messages; the changes are of its counters or of its fields."""
    counts = [0] * BUCKETS
    for latency in latencies_us:
        counts[bucket_of(latency * 1000)] += 1
    counters = dict.fromkeys(Counters.__dataclass_fields__, 0) | {
        "messages": len(latencies_us),
        "received": 64 * len(latencies_us),
        "content": 64 * len(latencies_us),
        "longest_ns": max(latencies_us, default=0) * 1000,
        "elapsed_ns": int(seconds * 1e9),
        "cpu_ns": int(generator_seconds * 1e9),
        "busiest_ns": int(generator_seconds * 1e9),
        "live": 1,
    }
    for name in counters.keys() & changes.keys():
        counters[name] = changes.pop(name)
    values = {
        "options": Options(("127.0.0.1", 1)),
        "loop": "compiled",
        "counters": Counters(**counters),
        "histograms": Histograms(
            **{
                name: counts if name == "latencies" else [0] * BUCKETS
                for name in Histograms.__dataclass_fields__
            }
        ),
        "connects": [0] * BUCKETS,
        "handshakes": [0] * BUCKETS,
        "series": Series(),
        "idle_lost": 0,
        "connect_failures": 0,
        "connect_error": "",
        "tls": "",
        "server_cpu": server_seconds,
        "interrupted": False,
    }
    return Result(**(values | changes))
