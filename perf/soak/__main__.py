"""``python -m perf.soak``: run a soak, print its table, keep its report, and say by the exit status
whether all held.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import random
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf import certificates, machine
from perf.servers import HERE
from perf.soak import checks, report
from perf.soak.link import Target
from perf.soak.processes import Child, Hung, Sampler, started
from perf.soak.settings import IDLE_TIMEOUT, Place
from perf.soak.well_behaved import Wrong, last_guests

SCHEMA = {"name": "hydrogen.perf.soak", "version": 1}

EMPTYING = IDLE_TIMEOUT + 10
"""Seconds after the last client within which the servers must be empty."""

LEAVING = 90.0
"""Seconds that clients may take to be done when the time is over."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m perf.soak", description="Well-behaved and hostile clients, for minutes."
    )
    p.add_argument(
        "--minutes", type=float, default=10.0, metavar="N", help="how long (default %(default)s)"
    )
    p.add_argument("--engine", choices=("compiled", "python"), default="compiled")
    p.add_argument("--seed", type=int, metavar="N", help="of the clients' dice (default: any)")
    p.add_argument(
        "--results",
        type=Path,
        default=HERE / "results",
        metavar="FOLDER",
        help="where the JSON goes",
    )
    return p


def soak(engine: str, seconds: float, seed: int) -> checks.Evidence:
    """Run it; what was seen."""
    evidence = checks.Evidence(engine, seconds)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hydrogen-soak-")))
        certificates.make(folder)
        authority = str(folder / certificates.AUTHORITY)
        server = stack.enter_context(
            started(
                folder,
                "server",
                "perf.soak.server",
                str(folder / certificates.SERVER),
                "--engine",
                engine,
            )
        )
        children = {"server": server}
        try:
            ports = {Place(name): port for name, port in server.answer().items()}
            words = [f"{place.value}={port}" for place, port in ports.items()]
            words += [f"--seconds={seconds}", f"--seed={seed}", f"--authority={authority}"]
            sampler = Sampler(server)
            evidence.samples = sampler.samples
            sampler.take()
            for side in ("well_behaved", "hostile"):
                children[side] = stack.enter_context(
                    started(folder, side, "perf.soak.clients", side, *words)
                )
            while there := [
                side
                for side, child in children.items()
                if side != "server" and child.process.poll() is None
            ]:
                time.sleep(1)
                sampler.take()
                if sampler.samples[-1].seconds > seconds + LEAVING:
                    raise Hung(f"these do not end: {', '.join(there)}")
            evidence.well_behaved, evidence.hostile = (
                children["well_behaved"].answer(),
                children["hostile"].answer(),
            )
            evidence.emptied = emptied(sampler)
            goodbye(Target(ports, ssl.create_default_context(cafile=authority)), server, evidence)
            for name, child in children.items():
                evidence.statuses[name] = child.end()
        except Hung as error:
            evidence.hung = str(error)
        for name, child in children.items():
            evidence.complaints[name] = child.complaints()
    return evidence


def emptied(sampler: Sampler) -> dict[str, Any]:
    """What the servers say when nobody is left, or when it is too late for that."""
    deadline = time.monotonic() + EMPTYING
    while True:
        told = sampler.take()
        if not sampler.samples[-1].connections or time.monotonic() > deadline:
            return told
        time.sleep(0.2)


def goodbye(target: Target, server: Child, evidence: checks.Evidence) -> None:
    """Stop the servers while some clients are there."""

    async def stop() -> None:
        evidence.stopped = await asyncio.to_thread(server.ask, "stop")

    try:
        evidence.last_guests = asyncio.run(last_guests(target, stop))
    except (Wrong, OSError, asyncio.TimeoutError) as error:
        evidence.goodbye = repr(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when all checks held, 1 when one did not, 2 for wrong usage."""
    p = parser()
    options = p.parse_args(arguments)
    if options.minutes <= 0:
        p.error(f"--minutes: must be more than 0, not {options.minutes}")
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    began = datetime.datetime.now(datetime.timezone.utc)
    evidence = soak(options.engine, options.minutes * 60, seed)
    found = checks.judged(evidence)
    document = {
        "schema": SCHEMA,
        "began": began.isoformat(timespec="seconds"),
        "options": {"minutes": options.minutes, "engine": options.engine, "seed": seed},
        "machine": machine.describe(),
        **report.as_json(evidence, found),
    }
    print(report.markdown(options.minutes, seed, evidence, found))
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{began:%Y%m%dT%H%M%SZ}-soak-{options.engine}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}", file=sys.stderr)
    return 0 if all(check.held for check in found) else 1


if __name__ == "__main__":
    sys.exit(main())
