"""A soak as Markdown for a person, and as JSON for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from perf.soak.checks import MEBIBYTE, Check, Evidence, growth
from perf.soak.processes import Sample

EVERY = 10.0
"""Seconds between two samples of a series; less in short soaks."""


def series(evidence: Evidence) -> list[dict[str, float]]:
    """Some of the samples, with the CPU used in between, in cores."""
    every = min(EVERY, evidence.seconds / 10)
    chosen: list[Sample] = []
    for sample in evidence.samples:
        if not chosen or sample.seconds >= chosen[-1].seconds + every * 0.95:
            chosen.append(sample)
    return [
        {
            "seconds": round(sample.seconds, 1),
            "rss": sample.rss,
            "fds": sample.fds,
            "threads": sample.threads,
            "connections": sample.connections,
            "cores": round((sample.cpu - before.cpu) / (sample.seconds - before.seconds), 3)
            if sample is not before
            else 0.0,
        }
        for before, sample in zip(chosen[:1] + chosen, chosen, strict=False)
    ]


def by_kind(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    """ "kind, what": count as kind: {what: count}."""
    found: dict[str, dict[str, int]] = {}
    for name, count in sorted(counts.items()):
        kind, _, what = name.rpartition(", ")
        found.setdefault(kind, {})[what] = count
    return found


def as_json(evidence: Evidence, checks: Sequence[Check]) -> dict[str, Any]:
    """All that was seen."""
    return {
        "held": all(check.held for check in checks),
        "checks": [asdict(check) for check in checks],
        "well_behaved": {
            **evidence.well_behaved,
            "conversations": by_kind(evidence.well_behaved.get("conversations", {})),
        },
        "hostile": {**evidence.hostile, "attacks": by_kind(evidence.hostile.get("attacks", {}))},
        "removed": evidence.causes(),
        "servers": evidence.told,
        "series": series(evidence),
    }


def markdown(minutes: float, seed: int, evidence: Evidence, checks: Sequence[Check]) -> str:
    """The checks, then what happened."""
    lines = [
        f"### Soak of the {evidence.engine} engine: {minutes:g} minutes, seed {seed}",
        "",
        "| must hold | | found |",
        "|---|---|---|",
    ]
    for check in checks:
        found = check.found if len(check.found) < 400 else f"{check.found[:400]} ..."
        lines.append(
            f"| {check.name} | {'yes' if check.held else '**NO**'} | "
            f"{found.replace(chr(10), '<br>').replace('|', '/')} |"
        )
    if evidence.well_behaved and evidence.hostile and evidence.told:
        lines += ["", *_happened(evidence)]
    return "\n".join(lines) + "\n"


def _happened(evidence: Evidence) -> list[str]:
    well_behaved = by_kind(evidence.well_behaved["conversations"])
    hostile = by_kind(evidence.hostile["attacks"])
    attacks = {kind.replace("_", " "): sum(ends.values()) for kind, ends in hostile.items()}
    removed = {
        name.removeprefix("removed_").replace("_", " "): count
        for name, count in evidence.causes().items()
    }
    latency = evidence.well_behaved["ping_pong_us"]
    waits = {
        name.replace("_", " "): f"{seconds['median']:.1f} s"
        for name, seconds in evidence.hostile["waited_seconds"].items()
    }
    warm, end, slope = growth(evidence)
    used = evidence.samples[-1].cpu - evidence.samples[0].cpu
    per_server: Counter[str] = Counter(
        {name: stats["accepted"] for name, stats in evidence.told["stats"].items()}
    )
    return [
        "| what | how many |",
        "|---|---|",
        f"| connections accepted | {_listed(per_server)} |",
        "| well-behaved clients | "
        f"{_listed({kind: sum(places.values()) for kind, places in well_behaved.items()})} |",
        f"| answers verified | {evidence.well_behaved['answers']:,} |",
        f"| hostile clients | {_listed(attacks)} |",
        "| until a deadline ended them | "
        f"{', '.join(f'{name} {seconds}' for name, seconds in waits.items())} |",
        f"| removed | {_listed(removed)} |",
        f"| RSS | {warm / MEBIBYTE:.1f} MiB after warming up, {end / MEBIBYTE:.1f} MiB at the end, "
        f"{slope / 1024:+.0f} KiB a minute |",
        f"| server's CPU | {used:.1f} s in {evidence.samples[-1].seconds:.0f} s |",
        f"| ping-pong | p50 {latency['p50'] / 1000:.2f} ms, p99 {latency['p99'] / 1000:.2f} ms, "
        f"max {latency['max'] / 1000:.0f} ms |",
    ]


def _listed(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
