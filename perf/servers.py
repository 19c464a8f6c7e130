"""The contenders: which programs they are, and starting one as a fresh process."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

from hydrogen.watchdog import has_gil
from perf import certificates
from perf.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parent

NEEDS = {
    "asyncio": ("asyncio",),
    "uvloop": ("uvloop",),
    "gevent": ("gevent",),
    "threads": ("socketserver",),
    "twisted": ("twisted",),
    "picows": ("picows", "uvloop"),
    "websockets": ("websockets", "uvloop"),
    "aiohttp": ("aiohttp", "uvloop"),
    "socketify": ("socketify",),
    **dict.fromkeys(("hydrogen", "workers", "loops"), ("hydrogen._core",)),
}
"""The modules without which a contender of that family cannot run."""

WORKERS, LOOPS = "workers", "loops"
"""The families of contenders without a GIL: hydrogen with so many workers, and with so many loops
of one worker each.
"""

TLS_JOB = "tls"
UPGRADED_JOB = "websocket_upgraded"
BROADCAST_JOB = "broadcast"

STATS_PROGRAM = "perf.contenders.hydrogen_server"

OURS = "hydrogen"
BEFORE = "hydrogen-before"
"""The contender of ``--against``: another build of hydrogen, which does the job of `OURS`."""

FRESH_MALLOC = "asyncio-default"
"""asyncio as a new process has it: see `KEPT_BUFFERS`."""

KEPT_BUFFERS = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}
"""The environment of asyncio's other contenders (mallopt(3)). asyncio reads into a new buffer of
256 KiB each time, which glibc, until it has learned better, maps and unmaps for each message: three
quarters of the time of an echo."""

LIMIT = ("c", "generator")
"""The families of contenders whose server is the C limit: also those that are clients, `generator`
and `c-client`.
"""


def missing(contender: str) -> str | None:
    """What ``contender`` lacks here, the first module for one, or None."""
    if contender.partition("-")[0] in (WORKERS, LOOPS) and has_gil():
        return "Python without a GIL"
    if contender == "hydrogen-python":
        return None
    needed = NEEDS.get(contender.partition("-")[0], ())
    return next((module for module in needed if importlib.util.find_spec(module) is None), None)


def compiler_words() -> list[str]:
    """The C compiler's command, which may have options of its own."""
    return shlex.split(os.environ.get("CC", "cc"))


def compile_c(folder: Path) -> None:
    """Compile the C programs, and the allocation counter, into ``folder``."""
    for source in sorted((HERE / "c").glob("*.c")):
        shared = ["-shared", "-fPIC"] if source.stem == "malloc_count" else []
        command = [
            *compiler_words(),
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            *shared,
            "-o",
            str(folder / source.stem),
            str(source),
        ]
        subprocess.run(command, check=True)


def is_built(tree: Path) -> bool:
    """Whether ``tree`` has a hydrogen whose compiled engine this interpreter can import."""
    return any((tree / "hydrogen" / f"_core{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def link(tree: Path, folder: Path) -> None:
    """Make the folder below ``folder`` in which `BEFORE` runs: hydrogen is ``tree``'s, the program
    is ours.

    ``python -m`` finds modules in its current folder first.
    """
    here = folder / BEFORE
    here.mkdir()
    (here / "hydrogen").symlink_to((tree / "hydrogen").resolve())
    (here / "perf").symlink_to(HERE.resolve())


class Contender(NamedTuple):
    """A server to be measured, or one that a client is measured on."""

    name: str
    """in the tables"""
    job: str
    words: list[str]
    """its command line"""
    folder: Path = ROOT
    """where that runs"""
    environment: Mapping[str, str] = {}
    """what its environment has besides"""


def contender_called(name: str, job: str, settings: Settings) -> Contender:
    """The contender of that name, doing ``job``."""
    family, _, variant = name.partition("-")
    if family in LIMIT:
        return Contender(name, job, [str(settings.folder / job)])
    words = [
        sys.executable,
        "-m",
        STATS_PROGRAM if family in (WORKERS, LOOPS) else f"perf.contenders.{family}_server",
        job,
    ]
    if job == TLS_JOB:
        words.append(str(settings.folder / certificates.SERVER))
    if family in (WORKERS, LOOPS):
        words += [
            "--threads",
            variant,
            "--loops",
            variant if family == LOOPS else "1",
            "--handoff",
            settings.handoff,
        ]
    if family == "hydrogen":
        words += [
            "--engine",
            "python" if variant == "python" else "compiled",
            "--handoff",
            settings.handoff,
        ]
    environment = KEPT_BUFFERS if family == "asyncio" and name != FRESH_MALLOC else {}
    return Contender(
        name, job, words, settings.folder / BEFORE if name == BEFORE else ROOT, environment
    )


class Server:
    """A running contender.

    Attributes:
        pid: its process.
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        line = self._answer()
        if not line.strip().isdecimal():
            command = shlex.join(map(str, process.args))  # type: ignore[arg-type]
            raise RuntimeError(f"{command}: did not start")
        self.port = int(line)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def stats(self) -> dict[str, float]:
        """A hydrogen server's own statistics, without those by code, and in the job of broadcasting
        any Python server's; else there are none.
        """
        words: list[str] = self._process.args  # type: ignore[assignment]
        if STATS_PROGRAM not in words and BROADCAST_JOB not in words:
            return {}
        assert self._process.stdin is not None
        self._process.stdin.write("stats\n")
        self._process.stdin.flush()
        found = json.loads(self._answer())
        return {name: count for name, count in found.items() if not isinstance(count, dict)}

    def threads(self) -> Iterator[Path]:
        """The folders in /proc of its threads."""
        return Path(f"/proc/{self.pid}/task").iterdir()


def on_cpu(cpu: int | None) -> Callable[[], None] | None:
    """What a new process does first to be pinned; None: nothing."""
    return None if cpu is None else lambda: os.sched_setaffinity(0, {cpu})


@contextlib.contextmanager
def started(
    contender: Contender, cpu: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A fresh process of a contender, on one CPU if told so, ended with the block."""
    process = subprocess.Popen(
        contender.words,
        cwd=contender.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **contender.environment, **(environment or {})},
        preexec_fn=on_cpu(cpu),
    )
    with process:
        try:
            yield Server(process)
        finally:
            process.send_signal(signal.SIGKILL)


def generate(port: int, options: Mapping[str, Any], cpu: int | None = None) -> dict[str, Any]:
    """Run the load generator as a process of its own; returns its JSON report, or raises when a
    reply was wrong.
    """
    words = [
        sys.executable,
        "-m",
        "hydrogen.perf",
        f"127.0.0.1:{port}",
        "--json",
        "-",
        "--loop",
        "compiled",
    ]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        words.append(option if value is True else f"{option}={value}")
    done = subprocess.run(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=on_cpu(cpu),
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: status {done.returncode}\n{done.stdout}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
