"""``python proof/run.py [MODEL...]``: checks each model with SPIN, exhaustively, and its mutations.

Two searches at a time. Needs spin and a C compiler. The exit status is 1 when a model has an error,
or a mutation has none.
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

LARGEST = {"layers", "mailbox", "pause", "session", "stream"}


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
        spin = ["spin", *defined, "-a", str(model)]
        subprocess.run(spin, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        compiler = shlex.split(os.environ.get("CC", "cc"))
        # An error is found soon: the compiler's time counts for more.
        options = ["-O0" if mutation else "-O2", "-w", "-DSAFETY", f"-DMEMLIM={MEMORY}"]
        subprocess.run([*compiler, *options, "-o", "pan", "pan.c"], cwd=folder, check=True)
        # -E: a state in which nothing can happen any more is right or wrong by what the model's
        # judge says of it.
        search = ["./pan", "-E", f"-m{DEPTH}"]
        done = subprocess.run(search, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    found = re.search(r"errors: (\d+)", done.stdout)
    states = re.search(r"^\s*([\d.e+]+) states, stored", done.stdout, re.MULTILINE)
    if found is None or states is None:
        raise RuntimeError(f"{model.name}: {done.stdout}")
    errors = int(found[1])
    cut_short = ("Search not completed", "max search depth too small")
    if not errors and any(sign in done.stdout for sign in cut_short):
        raise RuntimeError(f"{model.name}: the search was cut short\n{done.stdout}")
    return errors, f"{float(states[1]):,.0f} states"


def is_right(case: tuple[Path, str | None]) -> bool:
    """Check one model, or one of its mutations, and say what was found."""
    model, mutation = case
    began = time.monotonic()
    errors, size = check(model, mutation)
    none, some = ("holds", "ERROR") if mutation is None else ("NOT NOTICED", "noticed")
    told = some if errors else none
    seconds = time.monotonic() - began
    print(f"{model.stem:10} {mutation or '':18} {told:12} {size}, {seconds:.1f} s", flush=True)
    return errors > 0 if mutation else errors == 0


def main(names: list[str]) -> int:
    models = [model for model in sorted(HERE.glob("*.pml")) if not names or model.stem in names]
    # The models themselves first: the largest of them take as long as all the rest.
    models.sort(key=lambda model: model.stem not in LARGEST)
    cases: list[tuple[Path, str | None]] = [(model, None) for model in models]
    cases += [(model, mutation) for model in models for mutation in mutations(model)]
    with ThreadPoolExecutor(2) as pool:
        return 0 if all([*pool.map(is_right, cases)]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
