"""Runs the suite on a special build: `instrumented.py debug | thread | address | undefined [pytest
arguments]`.

The build goes below build/ and is put in front of the installed one by PYTHONPATH, so that no kind
of build can be mistaken for another. `debug` runs everything that concerns the compiled engine. The
others run the contract and the stress tests under that sanitizer of GCC, `undefined` on a debug
build. Its run-time library must be loaded before the interpreter, which is not instrumented: hence
LD_PRELOAD, for the interpreter only.

ThreadSanitizer sees our code, and what CPython does through libc. A report that names one of our
modules is ours and fails the run; the others are counted. That it sees our races at all is shown by
a second run, of a build with a race planted.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDS = {
    "debug": {"HYDROGEN_DEBUG": "1"},
    "thread": {"HYDROGEN_SANITIZE": "thread"},
    "race": {"HYDROGEN_SANITIZE": "thread", "HYDROGEN_RACE": "1"},
    "address": {"HYDROGEN_SANITIZE": "address"},
    "undefined": {"HYDROGEN_SANITIZE": "undefined", "HYDROGEN_DEBUG": "1"},
}
OPTIONS = ["-n", "4", "--engine=compiled", "--timeout=900"]
# ThreadSanitizer starts a thread of its own beside the first of the program: let it be there before
# a test counts threads.
PYTEST = (
    "import sys, threading, pytest; t = threading.Thread(target=int); t.start(); t.join(); "
    "sys.exit(pytest.main())"
)
# An allocation that cannot be had returns NULL, as in production: the tests that withhold memory
# need that.
COMMON = "allocator_may_return_null=1"
CONTRACT, STRESS = str(ROOT / "tests" / "contract"), str(ROOT / "tests" / "stress")
# Any traffic makes a planted race show.
RACY = str(ROOT / "tests" / "stress" / "test_threads.py")
# What cannot hold under a sanitizer. Memory is not flat: the address sanitizer keeps what was
# freed, and the thread sanitizer's shadow grows. The latter also makes a turn longer than the time
# after which the GIL is asked for, starves a peer in the same process for as long as a server waits
# for one, and crashes in a process that was forked off one with threads, and in shells.
#
# Nor what limits the address space, which the shadow is a part of. And (but on the debug build)
# every cell of the tables of states, each of which the plain build runs, would take longer than all
# the rest.
LIMITED = "test_memory_limit"
STATES = "test_states"
NOT_UNDER_UBSAN = f"not ({LIMITED})"
NOT_UNDER_ASAN = f"not (f16 or short_soak or {STATES} or {LIMITED})"
FORKS = "test_children or test_forks or forked_in_begin or background_job"
NOT_UNDER_TSAN = (
    f"not (f16 or short_soak or w10_the_gil or f28 or {STATES} or reads_steadily or {FORKS} or "
    f"{LIMITED})"
)
OURS = re.compile(r"\b(_codec|_core|_generator)\.")


def environment(**extra: str) -> dict[str, str]:
    """This process's, less what would change the kind of the build or the choice of the engine."""
    ours = ("NO_EXTENSIONS", "REQUIRE_EXTENSIONS", "DEBUG", "SANITIZE", "RACE", "ENGINE")
    return {
        name: value
        for name, value in os.environ.items()
        if name.removeprefix("HYDROGEN_") not in ours
    } | extra


def build(kind: str) -> Path:
    lib = Path("build", kind, "lib")
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(lib)]
    subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        env=environment(HYDROGEN_REQUIRE_EXTENSIONS="1", **BUILDS[kind]),
    )
    return ROOT / lib


def runtime(name: str) -> str:
    """The sanitizer's library, from the compiler that built the extension."""
    path = subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()
    if not os.path.isabs(path):
        sys.exit(f"{name} is not installed (GCC's sanitizers)")
    return os.path.realpath(path)


def pytest(kind: str, arguments: list[str], **extra: str) -> int:
    """Run pytest on that build. Address randomisation off: older sanitizers cannot map their shadow
    below all of it.
    """
    lib = build(kind)
    fixed = (
        ["setarch", "--addr-no-randomize"] if kind != "debug" and shutil.which("setarch") else []
    )
    if fixed and subprocess.run([*fixed, "true"], stderr=subprocess.DEVNULL).returncode != 0:
        fixed = []  # a container may forbid it
    # env puts LD_PRELOAD in front of the interpreter alone.
    command = [
        *fixed,
        "env",
        *(f"{name}={value}" for name, value in extra.items()),
        sys.executable,
        "-c",
        PYTEST,
    ]
    # From the build's folder, where the interpreter finds the same package and not the source
    # tree's.
    command += [f"--config-file={ROOT / 'pyproject.toml'}", f"--rootdir={ROOT}", *arguments]
    print(f"\n== {kind}: {' '.join(arguments)}", flush=True)
    return subprocess.run(command, cwd=lib, env=environment(PYTHONPATH=str(lib))).returncode


def sanitized(
    kind: str, library: str, variable: str, options: str, arguments: list[str], **extra: str
) -> tuple[int, list[str]]:
    """Run the tests on that build: pytest's status, and what the sanitizer reported (to files:
    pytest captures stderr).
    """
    logs = ROOT / "build" / kind / "reports"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    extra |= {"LD_PRELOAD": runtime(library), variable: f"{options}:log_path={logs / 'report'}"}
    status = pytest(kind, [*OPTIONS, *arguments], **extra)
    texts = [log.read_text(errors="replace") for log in sorted(logs.iterdir())]
    return status, [
        report
        for text in texts
        for report in text.split("=" * 18)
        if "Sanitizer: " in report or "runtime error: " in report
    ]


def thread(arguments: list[str]) -> int:
    suppressions = ROOT / "tools" / "tsan.supp"
    options = f"suppressions={suppressions}:halt_on_error=0:exitcode=0:history_size=4:{COMMON}"
    status, reports = sanitized(
        "thread",
        "libtsan.so",
        "TSAN_OPTIONS",
        options,
        arguments or [CONTRACT, STRESS, "-k", NOT_UNDER_TSAN],
    )
    ours = [report for report in reports if OURS.search(report)]
    print(*ours[:5], sep="\n")
    others = len(reports) - len(ours)
    print(
        f"== thread sanitizer: {len(ours)} reports that are ours, {others} of others; pytest's "
        f"status {status}"
    )
    if status or ours:
        return 1
    _, planted = sanitized(
        "race",
        "libtsan.so",
        "TSAN_OPTIONS",
        options,
        [RACY, "--maxfail=1"],
        HYDROGEN_STRESS_MESSAGES="20000",
    )
    seen = any(OURS.search(report) for report in planted)
    print(f"== thread sanitizer: the planted race was {'reported' if seen else 'NOT REPORTED'}")
    return 0 if seen else 1


def address(arguments: list[str]) -> int:
    """For the stress tests Python's own allocator is off, so that each object is a block of its
    own; so the contract would take ten minutes. Leaks at exit are not our subject: CPython frees
    little then."""
    options = f"detect_leaks=0:abort_on_error=0:{COMMON}"
    failed = False
    every = (
        [(arguments, "malloc")]
        if arguments
        else [
            ([CONTRACT, "-k", NOT_UNDER_ASAN], "default"),
            ([STRESS, "-k", NOT_UNDER_ASAN], "malloc"),
        ]
    )
    for tests, allocator in every:
        status, reports = sanitized(
            "address", "libasan.so", "ASAN_OPTIONS", options, tests, PYTHONMALLOC=allocator
        )
        print(*reports[:5], sep="\n")
        print(f"== address sanitizer: {len(reports)} reports; pytest's status {status}")
        failed = failed or bool(status or reports)
    return 1 if failed else 0


def undefined(arguments: list[str]) -> int:
    """Everything that C leaves undefined and GCC can look for at run time: all of it is in our
    code, for nothing else is instrumented.
    """
    status, reports = sanitized(
        "undefined",
        "libubsan.so",
        "UBSAN_OPTIONS",
        "print_stacktrace=1:halt_on_error=0",
        arguments or [CONTRACT, STRESS, "-k", NOT_UNDER_UBSAN],
    )
    print(*reports[:5], sep="\n")
    print(f"== undefined behaviour sanitizer: {len(reports)} reports; pytest's status {status}")
    return 1 if status or reports else 0


def main() -> int:
    kind, *arguments = sys.argv[1:] or [""]
    # pytest runs in another folder than the one that the caller named paths from.
    arguments = [
        str(Path(a).absolute()) if os.path.exists(a.partition("::")[0]) else a for a in arguments
    ]
    if kind == "debug":
        return pytest(
            "debug",
            ["-n", "4", "--engine=compiled", *(arguments or [str(ROOT / "tests")])],
            CI="true",
        )
    if kind == "thread":
        return thread(arguments)
    if kind == "address":
        return address(arguments)
    if kind == "undefined":
        return undefined(arguments)
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
