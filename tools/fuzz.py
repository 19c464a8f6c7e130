"""Fuzzes the compiled decoders: `fuzz.py [--runs N] [--jobs N] [--seed N] [target ...]`.

Coverage-guided, by clang's libFuzzer with its address and undefined-behaviour sanitizers, on the
harnesses in tests/fuzz, which check what must hold of any bytes: harness.pyx of frames, a target
for each framing; messages.pyx of WebSocket messages. It begins with the corpus of tests/corpus, or
the frames of tests/unit/test_websocket_messages.py, and with what earlier runs found
(build/fuzz/<target>/corpus). Then

- every input of the corpus found goes through a build of GCC's with --coverage: of the lines of
  the decoder at least 95 % must have run (when all its targets are fuzzed);
- what the compiled decoder made of each is compared with what others make of it: of frames, the
  builder in hydrogen/framings.py and the independent reader and writer of tests/corpus; of
  messages, the reader of the Python engine and wsproto.

A finding is left in build/fuzz/<target>/ and told with the command that shows it again; it belongs
into tests/corpus/cases.py or tests/unit/test_websocket_messages.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fuzz_frames  # noqa: E402
import fuzz_messages  # noqa: E402

OUT = ROOT / "build" / "fuzz"
LEAST_COVERAGE = 95.0
MAX_LEN = 512
SANITIZERS = "-fsanitize=fuzzer,address,undefined"


@dataclass(frozen=True)
class Harness:
    """A program that is fuzzed.

    Attributes:
        source: its file in tests/fuzz.
        subject: what it tests.
        targets: what it can be told to fuzz.
        seeds: the inputs that a target begins with.
        disagreements: of a target, and a line of the replayer's, where others disagree.
    """

    source: str
    subject: str
    targets: list[str]
    seeds: Callable[[str], Iterator[bytes]]
    disagreements: Callable[[str, str], Iterator[str]]

    @property
    def fuzzer(self) -> Path:
        return OUT / "programs" / Path(self.source).stem / "fuzz"

    @property
    def replayer(self) -> Path:
        return self.fuzzer.parent / "replay" / "replay"


HARNESSES = [
    Harness(source, f"hydrogen/_c/{subject}", part.TARGETS, part.seeds, part.disagreements)
    for source, subject, part in (
        ("harness.pyx", "framing.pxd", fuzz_frames),
        ("messages.pyx", "websocket.pxd", fuzz_messages),
    )
]
TARGETS = {target: harness for harness in HARNESSES for target in harness.targets}


def run(*command: str | Path, **options: Any) -> str:
    """The output of a command that must succeed."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=options.pop("cwd", ROOT),
        **options,
    )
    if done.returncode:
        sys.exit(
            f"fuzz: this failed with status {done.returncode}: "
            f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


# ----------------------------------------------------------------------------------- the two builds


def check_tools() -> None:
    """Say clearly what is missing."""
    missing = [name for name in ("clang", "gcc", "gcov", "nm") if not shutil.which(name)]
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        missing.append("Python.h")
    if "clang" not in missing:
        OUT.mkdir(parents=True, exist_ok=True)
        probe = OUT / "probe.c"
        probe.write_text(
            "int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long size) { return 0; "
            "}\n"
        )
        made = subprocess.run(
            ["clang", SANITIZERS, str(probe), "-o", str(OUT / "probe")],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            print(made.stderr, file=sys.stderr)
            missing.append("clang's run-time libraries (libFuzzer, the sanitizers)")
    if missing:
        sys.exit(
            f"fuzz: missing: {', '.join(missing)}. On Debian: apt-get install clang "
            "libclang-rt-dev gcc binutils python3-dev "
            "(libclang-rt-14-dev with clang 14, and so on)."
        )


def build(harness: Harness) -> None:
    """Make the fuzzer, and the program that replays inputs and measures coverage."""
    fuzzer, replayer = harness.fuzzer, harness.replayer
    shutil.rmtree(replayer.parent, ignore_errors=True)  # with the counts of earlier runs
    replayer.parent.mkdir(parents=True)
    source = fuzzer.with_name("harness.c")
    run(
        sys.executable,
        "-m",
        "cython",
        "-3",
        "--line-directives",
        "-I",
        ".",
        "-I",
        "tests/fuzz",
        "-o",
        source,
        f"tests/fuzz/{harness.source}",
    )
    include = f"-I{sysconfig.get_path('include')}"
    compile_fuzzer = ["clang", "-O1", "-g", "-w", SANITIZERS, "-fno-sanitize-recover=undefined"]
    # -w: what it would warn of is Cython's. -O0 and no inlining: a line is then counted where it is
    # written.
    compile_replayer = ["gcc", "-O0", "-g", "-w", "--coverage", "-Dreplay=main"]
    for compiler, program in ((compile_fuzzer, fuzzer), (compile_replayer, replayer)):
        objects = program.with_suffix(".o")
        run(*compiler, include, "-c", source, "-o", objects, cwd=program.parent)
        # The module's initialisation names functions of the interpreter. It never runs: any
        # function will do for them.
        names = sorted(set(re.findall(r" U (_?Py\w+)", run("nm", "-u", objects))))
        stubs = program.with_suffix(".stubs.c")
        stubs.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names))
        run(*compiler, objects, stubs, "-o", program, cwd=program.parent)


# ------------------------------------------------------------------------------------------ fuzzing


def fuzz(target: str, runs: int, seed: int) -> tuple[str, int, str]:
    """Run the fuzzer on one target: its output, the number of executions, and what it found
    (empty: nothing).
    """
    harness, home = TARGETS[target], OUT / target
    for folder in ("corpus", "seeds"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(harness.seeds(target)):
        if len(data) <= MAX_LEN:
            (home / "seeds" / f"{number:03}").write_bytes(data)
    command = [
        str(harness.fuzzer),
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={MAX_LEN}",
        "-timeout=20",
        "-rss_limit_mb=1024",
    ]
    command += [
        "-print_final_stats=1",
        f"-artifact_prefix={home}/",
        str(home / "corpus"),
        str(home / "seeds"),
    ]
    # What is freed is kept from reuse only so long: the default, 256 MB, takes a third of the time.
    environment = {
        **os.environ,
        "HYDROGEN_FUZZ": target,
        "ASAN_OPTIONS": "quarantine_size_mb=8:malloc_context_size=5",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment
    )
    (home / "log").write_text(done.stderr)
    executed = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
    if done.returncode == 0 and executed:
        return done.stderr, int(executed[1]), ""
    what = "\n".join(
        line
        for line in done.stderr.splitlines()
        if re.search(r"does not hold|ERROR|runtime error|written to|    #[0-4] ", line)
    )
    return (
        done.stderr,
        int(executed[1]) if executed else 0,
        f"{what}\nagain: HYDROGEN_FUZZ={target} {harness.fuzzer} {home}/<the file named>",
    )


# ---------------------------------------------------------------------------------------- replaying


def replay(target: str) -> tuple[int, list[str]]:
    """Run all inputs found through the replayer: how many, and where others disagree with it."""
    harness = TARGETS[target]
    inputs = sorted(
        path for folder in ("corpus", "seeds") for path in (OUT / target / folder).iterdir()
    )
    lines: list[str] = []
    for at in range(0, len(inputs), 500):  # within what a command line may be
        lines += run(
            harness.replayer,
            *inputs[at : at + 500],
            env={**os.environ, "HYDROGEN_FUZZ": target},
        ).splitlines()
    if len(lines) != len(inputs):
        sys.exit(f"fuzz: {len(inputs)} inputs were replayed and {len(lines)} told")
    faults = [
        f"{path}: {fault}"
        for path, line in zip(inputs, lines, strict=True)
        if line != "skipped"
        for fault in harness.disagreements(target, line)
    ]
    return len(inputs), faults


def coverage(harness: Harness) -> tuple[float, list[int]]:
    """The share of the decoder's lines that ran, in per cent, and the lines that did not."""
    home, subject = harness.replayer.parent, harness.subject
    told = run("gcov", "--json-format", "--stdout", *home.glob("*.gcda"), cwd=home)
    counts: dict[int, int] = {}
    for file in (file for line in told.splitlines() for file in json.loads(line)["files"]):
        if file["file"] == subject:
            for line in file["lines"]:
                counts[line["line_number"]] = counts.get(line["line_number"], 0) + line["count"]
    if not counts:
        sys.exit(f"fuzz: gcov knows nothing of {subject}")
    missed = sorted(number for number, count in counts.items() if not count)
    return 100 * (1 - len(missed) / len(counts)), missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="executions for each target (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's; 0: another one each time")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no target: {', '.join(sorted(unknown))}")
    chosen = arguments.targets or list(TARGETS)
    harnesses = [harness for harness in HARNESSES if set(harness.targets) & set(chosen)]

    check_tools()
    for harness in harnesses:
        build(harness)
    found = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda target: fuzz(target, arguments.runs, arguments.seed), chosen)
        for target, (log, executed, finding) in zip(chosen, results, strict=True):
            reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)[-1:]
            edges, features, inputs = reached[0] if reached else ("?", "?", "?")
            print(
                f"{target:11} {executed:>9,} executions, {inputs} inputs that reach {edges} edges "
                f"and {features} features",
                flush=True,
            )
            if finding or executed < arguments.runs:
                found += 1
                print(finding or f"fuzz: it ended before {arguments.runs:,} executions", flush=True)
    if found:
        return 1

    for target in chosen:
        count, faults = replay(target)
        print(
            f"{target:11} {count:>9,} inputs replayed and compared, {len(faults)} disagreements",
            *faults[:5],
            sep="\n  ",
            flush=True,
        )
        found += len(faults)
    for harness in harnesses:
        share, missed = coverage(harness)
        print(f"{harness.subject}: {share:.1f} % of the lines ran; not these: {missed or 'none'}")
        if set(harness.targets) <= set(chosen) and share < LEAST_COVERAGE:
            print(f"fuzz: that is under {LEAST_COVERAGE} %")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
