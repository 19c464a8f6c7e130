"""How a comparison is run: what every workload's measuring function is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """On which CPUs the server and the generator run; None leaves that to the scheduler."""

    name: str
    server_cpu: int | None = None
    generator_cpu: int | None = None


@dataclass(frozen=True)
class Settings:
    """The same for all contenders of a comparison."""

    folder: Path
    """what was made for this comparison: the compiled C programs, the certificates"""
    rounds: int
    duration: float
    warm_up: float
    handoff: str
    """of the hydrogen contenders"""
    idle_connections: int
    """of W9"""
    quiet: float | None
    """a run during which others kept more cores busy than this is repeated"""
    peak: float | None = None
    """of a workload in an open loop: messages/s that the slowest of its contenders reaches in a
    closed loop
    """
    mirrored: bool = False
    """every second round: what a contender does in two parts, as in W6, it does in the other
    order
    """


def layouts(choice: str) -> list[Layout]:
    """ "pinned", "shared" or "both" as layouts; the two are never mixed in one figure."""
    chosen = []
    if choice in ("pinned", "both"):
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise ValueError("the pinned layout needs two CPUs")
        chosen.append(Layout("pinned", cpus[0], cpus[1]))
    if choice in ("shared", "both"):
        chosen.append(Layout("shared"))
    return chosen
