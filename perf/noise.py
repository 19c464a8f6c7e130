"""How much of the machine others used while something was measured: what makes a round worth
believing or not.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from hydrogen.perf.generator import cpu_seconds

TICK = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU time used so far by everybody on this machine, and by other guests of its host where that
    is told.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        Path("/proc/stat").read_text().split()[1:9]
    )
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / TICK


class Noise:
    """Counts from its construction on; the server's process and the children that have been waited
    for are not others.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._began = time.monotonic()
        self._others = self._used_by_others()

    def _used_by_others(self) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (
            busy_seconds()
            - children.ru_utime
            - children.ru_stime
            - (cpu_seconds(self._server) or 0.0)
        )

    def cores(self) -> float:
        """How many cores others kept busy, on average."""
        return max(0.0, (self._used_by_others() - self._others) / (time.monotonic() - self._began))


def wait_for_quiet(cores: float, patience: float = 300.0) -> None:
    """Wait until everybody together keeps fewer than ``cores`` cores busy for a second, or patience
    ends.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = busy_seconds()
        time.sleep(1)
        if busy_seconds() - before < cores:
            return
