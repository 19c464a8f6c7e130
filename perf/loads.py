"""What is measured with a clock: the load generator against a contender or a second client, and a
broadcast to many receivers.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

from hydrogen.perf.framing import FRAMINGS
from hydrogen.perf.generator import cpu_seconds
from perf import certificates
from perf.noise import Noise
from perf.servers import TLS_JOB, UPGRADED_JOB, Contender, generate, on_cpu, started
from perf.settings import Layout, Settings

Figures = dict[str, float]
Measure = Callable[[Contender, Layout, Settings], Figures]
"""From a contender to its figures, with a fresh process."""

RATE = "messages_per_second"

RECEIVERS = 5000

SECOND_CLIENT = "c-client"
"""The contender that is measured by the client in C (``c/client.c``) instead of the load
generator.
"""


def spoken_by(contender: Contender, settings: Settings) -> dict[str, Any]:
    """The load generator's options for what a contender's job speaks: framing, TLS, the handshake
    of a WebSocket.
    """
    if contender.job == TLS_JOB:
        return {"tls": True, "cacert": settings.folder / certificates.AUTHORITY}
    if contender.job == UPGRADED_JOB:
        return {"framing": "websocket-text", "websocket": "/"}
    name = contender.job.partition("_")[0]
    return {"framing": name} if name in FRAMINGS else {}


def load(**options: Any) -> Measure:
    """Measure by the load generator with ``options``, and with those that the contender's job asks
    for.
    """

    def measure(contender: Contender, layout: Layout, settings: Settings) -> Figures:
        with started(contender, layout.server_cpu) as server:
            given = {
                **options,
                **spoken_by(contender, settings),
                "duration": settings.duration,
                "warm_up": settings.warm_up,
            }
            noise = Noise(server.pid)
            report = generate(server.port, {**given, "pid": server.pid}, layout.generator_cpu)
            others = noise.cores()
        result = report["result"]
        # A figure is None when nothing was whole in the time, such as a burst.
        latencies = {f"{name}_us": value for name, value in result["latency_us"].items()}
        latencies |= {
            f"burst_{name}_us": value for name, value in (result["burst_us"] or {}).items()
        }
        return {
            RATE: result["messages_per_second"],
            **{name: value for name, value in latencies.items() if value is not None},
            "server_us": result["server"]["us_per_message"],
            "server_share": result["server"]["share"],
            "generator_us": result["generator"]["us_per_message"],
            "generator_share": result["generator"]["share"],
            "others": others,
        }

    return measure


# -- W1o -------------------------------------------------------------------------------------------

SHARES = (50, 70, 85)
"""The rates of an open loop, in percent of the slowest contender's peak: the same messages/s for
all contenders.
"""


def at_rates(**options: Any) -> Measure:
    """Measure by the load generator in open loops, each on a fresh process; latencies count from
    when a message was to be sent.
    """

    def measure(contender: Contender, layout: Layout, settings: Settings) -> Figures:
        assert settings.peak is not None
        figures: Figures = {"peak": settings.peak, "others": 0.0}
        for share in reversed(SHARES) if settings.mirrored else SHARES:
            found = load(**options, rate=round(settings.peak * share / 100))(
                contender, layout, settings
            )
            for name in "p50_us", "p99_us", "p99.9_us", "max_us", "server_share", "generator_share":
                figures[f"{name}_at_{share}"] = found[name]
            figures["others"] = max(figures["others"], found["others"])
        return figures

    return measure


# -- client ----------------------------------------------------------------------------------------


def of_client(connections: int, size: int) -> Measure:
    """Measure the client that a contender is called after, against the contender's server: the load
    generator, or the one in C.
    """
    generator = load(connections=connections, size=size)

    def measure(contender: Contender, layout: Layout, settings: Settings) -> Figures:
        return (second_client if contender.name == SECOND_CLIENT else generator)(
            contender, layout, settings
        )

    def second_client(contender: Contender, layout: Layout, settings: Settings) -> Figures:
        with started(contender, layout.server_cpu) as server:
            given = map(str, (server.port, connections, size, settings.warm_up, settings.duration))
            noise = Noise(server.pid)
            began, used = time.monotonic(), cpu_seconds(server.pid) or 0.0
            done = subprocess.run(
                [str(settings.folder / "client"), *given],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                preexec_fn=on_cpu(layout.generator_cpu),
            )
            # the warm-up's too: a share changes little
            used, elapsed = (cpu_seconds(server.pid) or 0.0) - used, time.monotonic() - began
            others = noise.cores()
        found: dict[str, float] = json.loads(done.stdout)
        return {
            RATE: found["messages_per_second"],
            "p50_us": found["p50_us"],
            "p99_us": found["p99_us"],
            "server_share": used / elapsed,
            "generator_us": found["cpu_seconds"] / found["messages"] * 1e6,
            "generator_share": found["cpu_seconds"] / found["seconds"],
            "others": others,
        }

    return measure


# -- W6 --------------------------------------------------------------------------------------------


def of_plain(measure: Measure, plain: Measure) -> Measure:
    """Both, each on a fresh process, and what of the plain one's throughput was kept.

    Which one is first changes from round to round, as the contenders' order does.
    """

    def both(contender: Contender, layout: Layout, settings: Settings) -> Figures:
        if settings.mirrored:
            found = measure(contender, layout, settings)
            before = plain(contender, layout, settings)
        else:
            before = plain(contender, layout, settings)
            found = measure(contender, layout, settings)
        return {
            **found,
            "plain": before[RATE],
            "kept": found[RATE] / before[RATE],
            "plain_server_us": before["server_us"],
            "server_us_grown": found["server_us"] / before["server_us"],
            "others": max(found["others"], before["others"]),
        }

    return both


# -- W8 --------------------------------------------------------------------------------------------


class Receivers:
    """The connections that a broadcast goes to, in a process of their own (``c/receivers.c``)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()  # all are connected, and the server has them

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the receivers ended with status {self._process.wait()}")
        return line

    def receive(self, seconds: float) -> dict[str, float]:
        """One broadcast after the other for ``seconds``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._answer())
        return found


def broadcast(contender: Contender, layout: Layout, settings: Settings) -> Figures:
    """W8. A broadcast begins when the one before is complete at the last receiver."""
    with started(contender, layout.server_cpu) as server:
        noise = Noise(server.pid)
        words = [str(settings.folder / "receivers"), str(server.port), str(RECEIVERS)]
        with subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=on_cpu(layout.generator_cpu),
        ) as process:
            receivers = Receivers(process)
            if settings.warm_up:
                receivers.receive(settings.warm_up)
            before, used = server.stats(), cpu_seconds(server.pid) or 0.0
            found = receivers.receive(settings.duration)
            used, after = (cpu_seconds(server.pid) or 0.0) - used, server.stats()
            process.communicate("")  # the end of its input ends it
        others = noise.cores()
    deliveries = found["broadcasts"] * RECEIVERS
    figures = {
        "deliveries_per_second": deliveries / found["seconds"],
        "last_p50_us": found["p50_us"],
        "last_max_us": found["max_us"],
        "server_us": used / deliveries * 1e6,
        "server_share": used / found["seconds"],
        "receivers_us": found["cpu_seconds"] / deliveries * 1e6,
        "receivers_share": found["cpu_seconds"] / found["seconds"],
        "others": others,
    }
    if after:
        occupied = after["broadcast_seconds"] - before["broadcast_seconds"]
        figures["occupied_us"] = occupied / (after["broadcasts"] - before["broadcasts"]) * 1e6
    return figures
