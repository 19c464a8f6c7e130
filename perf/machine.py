"""Machine and commit: what has to stand beside every figure."""

from __future__ import annotations

import importlib.metadata
import subprocess
from typing import Any

from hydrogen.perf import machine
from perf.servers import ROOT, compiler_words


def git(*words: str) -> str | None:
    """What git says about this checkout, or None outside of one."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def version(distribution: str) -> str | None:
    """The version installed, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """The machine, the interpreter, the versions compared and the commit."""
    compiler = subprocess.run([*compiler_words(), "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return {
        **machine.describe(),
        "compiler": compiler,
        "uvloop": version("uvloop"),
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain")),
    }
