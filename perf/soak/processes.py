"""The processes of a soak: started, asked, watched and ended."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PATIENCE = 30.0
"""Seconds after which a process that does not answer counts as hung."""

PROGRAM = (
    "import runpy, sys; sys.path[:] = {path!r}; runpy.run_module({module!r}, run_name='__main__', "
    "alter_sys=True)"
)
"""A child finds modules where this process finds them: an installed hydrogen must not give way to
one in the current folder.
"""


class Hung(Exception):
    """A process did not answer, or is gone."""


class Child:
    """A process that answers lines with lines of JSON.

    Attributes:
        errors: the file with its standard error.
    """

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process = process
        self.errors = errors

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """The next line, which is the only one that may come until something is asked."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            state = (
                "does not answer"
                if self.process.returncode is None
                else f"ended with status {self.process.returncode}"
            )
            # faulthandler tells where it hangs, on standard error
            if self.process.returncode is None:
                self.process.send_signal(signal.SIGABRT)
                self.process.wait()
            raise Hung(f"{state}: {self.complaints()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, line: str, patience: float = PATIENCE) -> dict[str, Any]:
        """Raises: Hung: there is no answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self.answer(patience)

    def end(self) -> int:
        """End its input and wait; the exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Hung("does not end") from None

    def complaints(self) -> str:
        """What it wrote to standard error: the last of it."""
        return self.errors.read_text(errors="replace")[-20_000:].strip()


@contextlib.contextmanager
def started(folder: Path, name: str, module: str, *words: str) -> Iterator[Child]:
    """A process of that module, which is killed with the block if it is still there."""
    errors = folder / f"{name}.stderr"
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        PROGRAM.format(path=sys.path, module=module),
        *words,
    ]
    with (
        errors.open("w") as file,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
        ) as process,
    ):
        try:
            yield Child(process, errors)
        finally:
            process.kill()


class Sample(NamedTuple):
    """What a process holds at one moment."""

    seconds: float
    """since the beginning"""
    rss: int
    fds: int
    threads: int
    cpu: float
    """seconds used so far"""
    connections: int


class Sampler:
    """Samples of the process of the servers."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._process = psutil.Process(child.process.pid)
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    def take(self) -> dict[str, Any]:
        """One more; what the servers say of themselves."""
        told = self._child.ask("stats")
        with self._process.oneshot():
            times = self._process.cpu_times()
            self.samples.append(
                Sample(
                    time.monotonic() - self._began,
                    self._process.memory_info().rss,
                    self._process.num_fds(),
                    self._process.num_threads(),
                    times.user + times.system,
                    sum(stats["connections"] for stats in told["stats"].values()),
                )
            )
        return told
