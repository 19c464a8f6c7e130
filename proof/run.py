"""``python proof/run.py [MODEL...]``: checks each model with SPIN, exhaustively, and that each of its mutations is noticed.

Two searches at a time. Needs spin and a C compiler. The exit status is 1 when a model has an error, or a mutation has none.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent

MUTATION = re.compile(r"^#if(?:n?def) ([A-Z_]+)$", re.MULTILINE)
"""What a model is compiled without, unless it is to be wrong."""

DEPTH = 1_000_000
MEMORY = 8_000  # MiB


def mutations(model: Path) -> list[str]:
    return list(dict.fromkeys(MUTATION.findall(model.read_text())))


def check(model: Path, mutation: str | None) -> tuple[int, str]:
    """Errors found, and how large the search was.

    Raises:
        CalledProcessError: something does not compile.
        RuntimeError: the search was cut short.
    """
    with tempfile.TemporaryDirectory(prefix="hydrogen-proof-") as folder:
        defined = [] if mutation is None else [f"-D{mutation}"]
        subprocess.run(["spin", *defined, "-a", str(model)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        compiler = shlex.split(os.environ.get("CC", "cc"))
        subprocess.run([*compiler, "-O2", "-w", "-DSAFETY", f"-DMEMLIM={MEMORY}", "-o", "pan", "pan.c"], cwd=folder, check=True)
        # -E: a state in which nothing can happen any more is right or wrong by what the model's judge says of it.
        done = subprocess.run(["./pan", "-E", f"-m{DEPTH}"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    found = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"^\s*([\d.e+]+) states, stored", done.stdout, re.MULTILINE)
    if found is None or states is None:
        raise RuntimeError(f"{model.name}: {done.stdout}")
    errors = int(found[1])
    if not errors and ("Search not completed" in done.stdout or "max search depth too small" in done.stdout):
        raise RuntimeError(f"{model.name}: the search was cut short\n{done.stdout}")
    return errors, f"{float(states[1]):,.0f} states"


def is_right(case: tuple[Path, str | None]) -> bool:
    """Check one model, or one of its mutations, and say what was found."""
    model, mutation = case
    began = time.monotonic()
    errors, size = check(model, mutation)
    told = ("holds" if not errors else "ERROR") if mutation is None else ("noticed" if errors else "NOT NOTICED")
    print(f"{model.stem:10} {mutation or '':18} {told:12} {size}, {time.monotonic() - began:.1f} s", flush=True)
    return errors > 0 if mutation else errors == 0


def main(names: list[str]) -> int:
    models = [model for model in sorted(HERE.glob("*.pml")) if not names or model.stem in names]
    # The largest first: it takes as long as all others together.
    models.sort(key=lambda model: model.stem != "mailbox")
    cases = [(model, mutation) for model in models for mutation in [None, *mutations(model)]]
    with ThreadPoolExecutor(2) as pool:
        return 0 if all([*pool.map(is_right, cases)]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
