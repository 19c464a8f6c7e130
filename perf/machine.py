"""Machine and commit: what has to stand beside every figure."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from hydrogen.perf import machine
from perf.servers import ROOT, compiler_words

PEERS = ("uvloop", "gevent", "twisted", "picows", "websockets", "aiohttp", "socketify")
"""Distributions that hydrogen is compared with; asyncio and socketserver are the interpreter's."""


def git(*words: str, folder: Path = ROOT) -> str | None:
    """What git says about the checkout in ``folder``, or None outside of one."""
    return output(["git", *words], folder)


def output(words: list[str], folder: Path = ROOT) -> str | None:
    """What a program prints, or None when it fails, or is not there: a soak needs neither git nor a
    compiler.
    """
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version(distribution: str) -> str | None:
    """The version installed, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """The machine, the interpreter, the versions compared and the commit."""
    compiler = output([*compiler_words(), "--version"])
    return {
        **machine.describe(),
        "compiler": compiler and compiler.partition("\n")[0],
        **{peer: version(peer) for peer in PEERS},
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
    }
