"""``python tools/mutations.py``: mistakes that three of the models in proof/ notice, made in the
code: each must fail a stress test.

For each a copy of the package is changed, built below build/ and put in front of the installed one;
all at a time, for those that fail do so by waiting in vain. The exit status is 1 when the tests
pass on one of them, or fail on a copy that is not changed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from instrumented import ROOT, environment

MUTATIONS = {
    "BLIND_LET_GO": (
        "hydrogen/_c/mailbox.pxd",
        "    while not word & MAIL_BITS:\n",
        "    while True:\n",
    ),
    "SILENT_RESUME": (
        "hydrogen/_c/mailbox.pxd",
        "            connection.mail |= RESUME\n            return POST_OWNER\n",
        "            return POST_OWNER\n",
    ),
    "NO_EVENTFD": (
        "hydrogen/_c/queues.pxd",
        "        poller_wake(&loop.context.poller)\n",
        "        pass\n",
    ),
}
"""By the name that the model gives it: the file, the text, and what is to stand there instead."""

SUITE = ROOT / "tests"
TESTS = [SUITE / "stress" / "test_threads.py", SUITE / "contract" / "test_state_machine.py"]
OPTIONS = [
    "-q",
    "-p",
    "no:xdist",
    "--engine=compiled",
    "--timeout=60",
    "--maxfail=1",
    f"--config-file={ROOT / 'pyproject.toml'}",
]

PATIENCE = 100
"""Seconds after which the tests hang: a worker that is never woken cannot be joined either, and no
timeout of one test ends that.
"""


def copy(name: str) -> Path:
    """The tree with that mutation ("unchanged": none), built; the folder to run in."""
    tree = ROOT / "build" / "mutations" / name
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(
        ROOT / "hydrogen", tree / "hydrogen", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    if name in MUTATIONS:
        path, text, instead = MUTATIONS[name]
        source = (tree / path).read_text()
        if source.count(text) != 1:
            sys.exit(
                f"{path}: {name} has to change a text that is there {source.count(text)} times"
            )
        (tree / path).write_text(source.replace(text, instead))
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(
        command,
        cwd=tree,
        check=True,
        env=environment(HYDROGEN_REQUIRE_EXTENSIONS="1", CFLAGS="-O1"),
    )
    return tree


def run(tree: Path) -> tuple[bool, str]:
    """Whether the tests failed there, and what they said last."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, f"--rootdir={ROOT}", *map(str, TESTS)]
    variables = environment(PYTHONPATH=str(tree), HYDROGEN_MACHINE="30")
    try:
        done = subprocess.run(
            command, cwd=tree, env=variables, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return True, "it hangs"
    if done.returncode > 1:
        sys.exit(f"the tests could not be run\n{done.stdout}\n{done.stderr}")
    # 0, 1: a test failed, or negative: a crash.
    return done.returncode != 0, (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]


def is_right(name: str) -> bool:
    """Whether the tests find of that mutation what they should; says what they found."""
    tree = copy(name)
    began = time.monotonic()
    failed, last = run(tree)
    print(
        f"{name:14} {'fails' if failed else 'passes'} in {time.monotonic() - began:.0f} s: {last}",
        flush=True,
    )
    return failed == (name in MUTATIONS)


def main(names: list[str]) -> int:
    with ThreadPoolExecutor() as pool:
        return 0 if all([*pool.map(is_right, ["unchanged", *(names or MUTATIONS)])]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
