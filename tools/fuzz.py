"""Fuzzes the compiled frame codec: `fuzz.py [--runs N] [--jobs N] [--seed N] [framing ...]`.

Coverage-guided, by clang's libFuzzer with its address and undefined-behaviour sanitizers, on
tests/fuzz/harness.pyx, which checks what must hold of any bytes. It begins with the corpus of
tests/corpus and with what earlier runs found (build/fuzz/<framing>/corpus). Then

- every input of the corpus found goes through a build of GCC's with --coverage: of the lines of
  hydrogen/_c/framing.pxd at least 95 % must have run (when all framings are fuzzed);
- what the compiled codec made of each is compared with what the builder in hydrogen/framings.py
  makes of it, and with the independent reader and writer of tests/corpus.

A finding is left in build/fuzz/<framing>/ and told with the command that shows it again; it belongs
into tests/corpus/cases.py.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "fuzz"
SUBJECT = "hydrogen/_c/framing.pxd"
LEAST_COVERAGE = 95.0
MAX_LEN = 512
SANITIZERS = "-fsanitize=fuzzer,address,undefined"
VERDICTS = {0: None, 2: "ProtocolError", 3: "FrameTooLarge", 4: "ChecksumMismatch"}

HEAD = "head"
"""The head of a request: what a WebSocket server reads first, and nobody sends."""

HEADS = (
    b"GET /chat?x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n\x81\x80",
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nCookie:\ta=b\xff\r\n \r\n\r\nGET / HTTP/1.1\n\n",
    b"GET /\r\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
)

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def run(*command: str | Path, **options: Any) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
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


def build() -> tuple[Path, Path]:
    """The fuzzer, and the program that replays inputs and measures coverage."""
    shutil.rmtree(OUT / "replay", ignore_errors=True)  # with the counts of earlier runs
    (OUT / "replay").mkdir(parents=True)
    source = OUT / "harness.c"
    run(
        sys.executable,
        "-m",
        "cython",
        "-3",
        "--line-directives",
        "-I",
        ".",
        "-o",
        source,
        "tests/fuzz/harness.pyx",
    )
    include = f"-I{sysconfig.get_path('include')}"
    fuzzer, replayer = OUT / "fuzz", OUT / "replay" / "replay"
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
    return fuzzer, replayer


# ------------------------------------------------------------------------------------------ fuzzing


def seeds(framing: str) -> Iterator[bytes]:
    """The corpus as the harness wants its inputs."""
    from corpus.cases import FRAMINGS

    for number, data in enumerate(HEADS if framing == HEAD else ()):
        for most in (64, 20, 8192):
            yield most.to_bytes(8, "little") + bytes([0, number]) + data
    for number, case in enumerate(FRAMINGS.get(framing, ())):
        builder: Any = case.builder
        shape, delimiter = 0, b""
        if framing == "length":
            shape = {1: 0, 2: 1, 4: 2, 8: 3}[builder.width] | (builder.byteorder == "little") << 2
        elif framing == "line":
            shape, delimiter = len(builder.delimiter) - 1, builder.delimiter
        seed = (
            builder.max_size.to_bytes(8, "little")
            + bytes([shape, number % 256])
            + delimiter
            + case.wire
        )
        if len(seed) <= MAX_LEN:
            yield seed


def fuzz(program: Path, framing: str, runs: int, seed: int) -> tuple[str, int, str]:
    """Run the fuzzer on one framing: its output, the number of executions, and what it found
    (empty: nothing).
    """
    home = OUT / framing
    for folder in ("corpus", "seeds"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(framing)):
        (home / "seeds" / f"{number:03}").write_bytes(data)
    command = [
        str(program),
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
        "HYDROGEN_FUZZ": framing,
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
        f"{what}\nagain: HYDROGEN_FUZZ={framing} {program} {home}/<the file named>",
    )


# ---------------------------------------------------------------------------------------- replaying


def told(line: str) -> tuple[Any, bytes, tuple[list[bytes], str | None, int], bytes | None, str]:
    """A line of the replayer's: the builder's fields, the wire, what was read in it, and what the
    wire was made into as a payload.
    """
    fields: dict[str, Any] = {}
    frames = []
    for name, _, value in (word.partition("=") for word in line.split()):
        if name == "frame":
            frames.append(bytes.fromhex(value))
        elif name in ("delimiter", "wire", "sent"):
            fields[name] = bytes.fromhex(value)
        else:
            fields[name] = int(value)
    left = fields["left"] if fields["verdict"] == 0 else 0
    return (
        fields,
        fields["wire"],
        (frames, VERDICTS[fields["verdict"]], left),
        fields.get("sent"),
        line,
    )


def builder_of(framing: str, fields: dict[str, Any]) -> Any:
    """The builder that the harness had."""
    import hydrogen

    most = fields["max_size"]
    if framing == "simple":
        return hydrogen.SimpleFrameBuilder(most)
    if framing == "checksum32":
        return hydrogen.Checksum32FrameBuilder(most)
    if framing == "length":
        return hydrogen.LengthFrameBuilder(
            fields["width"], "little" if fields["little"] else "big", most
        )
    if framing == "line":
        return hydrogen.LineFrameBuilder(fields["delimiter"], most)
    return hydrogen.WebSocketFrameBuilder(most)


def in_python(builder: Any, wire: bytes) -> tuple[list[bytes], str | None, int]:
    """What the builder reads in `wire`."""
    from hydrogen import ProtocolError
    from hydrogen.codec import FrameDecoder

    decoder = FrameDecoder(builder)
    decoder.feed(wire)
    frames: list[bytes] = []
    try:
        while (payload := decoder.next()) is not None:
            frames.append(payload)
    except ProtocolError as error:
        return frames, type(error).__name__, 0
    return frames, None, decoder.size


def head_in_python(most: int, wire: bytes) -> tuple[list[bytes], str | None]:
    """The first head in `wire`, or why there is none."""
    from hydrogen.http import HeadReader, Refusal

    reader = HeadReader(most)
    reader.feed(wire)
    try:
        head = reader.next()
    except Refusal as refusal:
        return [], {400: "ProtocolError", 431: "FrameTooLarge"}[refusal.response.status]
    return ([] if head is None else [head]), None


def made(builder: Any, payload: bytes) -> bytes | None:
    """The frame of `payload`, None when the builder refuses."""
    from hydrogen.codec import encode

    try:
        return encode(builder, payload)
    except ValueError:
        return None


def replay(program: Path, framing: str) -> tuple[int, list[str]]:
    """Run all inputs found through the replayer: how many, and where it and the Python side
    disagree.
    """
    from corpus import reference

    inputs = sorted(
        path for folder in ("corpus", "seeds") for path in (OUT / framing / folder).iterdir()
    )
    lines: list[str] = []
    for at in range(0, len(inputs), 500):  # within what a command line may be
        lines += run(
            program, *inputs[at : at + 500], env={**os.environ, "HYDROGEN_FUZZ": framing}
        ).splitlines()
    if len(lines) != len(inputs):
        sys.exit(f"fuzz: {len(inputs)} inputs were replayed and {len(lines)} told")
    faults = []
    for path, line in zip(inputs, lines, strict=True):
        if line == "skipped" or framing == "raw":
            continue
        fields, wire, compiled, sent, _ = told(line)
        if framing == HEAD:
            first = compiled[0][:1], (None if compiled[0] else compiled[1])
            if first != head_in_python(fields["max_size"], wire):
                faults.append(f"{path}: the first head of {wire!r}: {first}")
            continue
        builder = builder_of(framing, fields)
        frames, error, left = reference.decode(builder, wire)
        opinions = {
            "compiled": compiled,
            "python": in_python(builder, wire),
            "reference": (frames, error.__name__ if error else None, left),
        }
        if len({repr(opinion) for opinion in opinions.values()}) > 1:
            faults.append(f"{path}: {builder!r} reads {wire!r} as {opinions}")
        refused = reference.carries(builder, wire)
        sendings = {
            "compiled": sent,
            "python": made(builder, wire),
            "reference": None if refused else reference.encode(builder, wire),
        }
        if len(set(sendings.values())) > 1:
            faults.append(f"{path}: {builder!r} makes of {wire!r} {sendings}")
    return len(inputs), faults


def coverage(program: Path) -> tuple[float, list[int]]:
    """The share of the codec's lines that ran, in per cent, and the lines that did not."""
    told = run(
        "gcov", "--json-format", "--stdout", *program.parent.glob("*.gcda"), cwd=program.parent
    )
    counts: dict[int, int] = {}
    for file in (file for line in told.splitlines() for file in json.loads(line)["files"]):
        if file["file"] == SUBJECT:
            for line in file["lines"]:
                counts[line["line_number"]] = counts.get(line["line_number"], 0) + line["count"]
    if not counts:
        sys.exit(f"fuzz: gcov knows nothing of {SUBJECT}")
    missed = sorted(number for number, count in counts.items() if not count)
    return 100 * (1 - len(missed) / len(counts)), missed


def main() -> int:
    framings = ["simple", "checksum32", "length", "line", "websocket", HEAD, "raw"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "framings", nargs="*", metavar="framing", help=f"of {', '.join(framings)}; all by default"
    )
    parser.add_argument(
        "--runs", type=int, default=1_000_000, help="executions for each framing (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="framings at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's; 0: another one each time")
    arguments = parser.parse_args()
    if unknown := set(arguments.framings) - set(framings):
        parser.error(f"no framing: {', '.join(sorted(unknown))}")
    chosen = arguments.framings or framings

    check_tools()
    fuzzer, replayer = build()
    found = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(
            lambda framing: fuzz(fuzzer, framing, arguments.runs, arguments.seed), chosen
        )
        for framing, (log, executed, finding) in zip(chosen, results, strict=True):
            reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)[-1:]
            edges, features, inputs = reached[0] if reached else ("?", "?", "?")
            print(
                f"{framing:11} {executed:>9,} executions, {inputs} inputs that reach {edges} edges "
                f"and {features} features",
                flush=True,
            )
            if finding or executed < arguments.runs:
                found += 1
                print(finding or f"fuzz: it ended before {arguments.runs:,} executions", flush=True)
    if found:
        return 1

    for framing in chosen:
        count, faults = replay(replayer, framing)
        print(
            f"{framing:11} {count:>9,} inputs replayed and compared, {len(faults)} disagreements",
            *faults[:5],
            sep="\n  ",
            flush=True,
        )
        found += len(faults)
    share, missed = coverage(replayer)
    print(f"{SUBJECT}: {share:.1f} % of the lines ran; not these: {missed or 'none'}")
    if set(chosen) == set(framings) and share < LEAST_COVERAGE:
        print(f"fuzz: that is under {LEAST_COVERAGE} %")
        found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
