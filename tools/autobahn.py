"""Holds a WebSocket echo server to the fuzzing client of the Autobahn Testsuite: `autobahn.py
[--deflate] [--engine ENGINE] [--tls | --plain]`.

By default 301 cases on each engine, over ws and wss, about a minute each; with `--deflate` also
those of permessage-deflate, 517. Each case must be OK, or informational, and so must each end.

The suite runs on Python 2.7 alone. One that has pip is looked for on PATH and among pyenv's. The
suite is installed once, below build/, from pinned versions. The exit status is 3 where it could not
be run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "autobahn" / "site"
NOT_RUN, TIMEOUT = 3, 1800
DEFLATE = ["12.*", "13.*"]
PINS = ROOT / "tools" / "autobahn.txt"
# site.addsitedir: some of these packages have .pth files.
CLIENT = """
import site, sys
site.addsitedir(sys.argv.pop(1))
from autobahntestsuite.wstest import run
run()
"""

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def python2() -> str | None:
    """A Python 2.7 with pip."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    named = [shutil.which(name) for name in ("python2.7", "python2")]
    check = "import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))"
    for candidate in [*named, *map(str, sorted(pyenv.glob("versions/2.7*/bin/python")))]:
        if (
            candidate
            and not subprocess.run([candidate, "-c", check], capture_output=True).returncode
        ):
            return candidate
    return None


def install(python: str) -> None:
    """The suite into `SITE`, if it is not there."""
    if SITE.exists():
        return
    fresh = SITE.with_name("fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    words = ["-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    command = [python, "-m", "pip", "install", *words, "--target", str(fresh), "-r", str(PINS)]
    subprocess.run(command, check=True)
    fresh.rename(SITE)


def reports(python: str, url: str, deflate: bool) -> dict[str, dict[str, str]]:
    """Run the cases; what is said of each."""
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "outdir": folder,
            "servers": [{"agent": "hydrogen", "url": url}],
            "cases": ["*"],
            "exclude-cases": [] if deflate else DEFLATE,
            "exclude-agent-cases": {},
        }
        file = Path(folder) / "spec.json"
        file.write_text(json.dumps(spec))
        done = subprocess.run(
            [python, "-u", "-c", CLIENT, str(SITE), "-m", "fuzzingclient", "-s", str(file)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={name: value for name, value in os.environ.items() if "PYTHON" not in name},
        )
        index = Path(folder) / "index.json"
        if not index.exists():
            sys.exit(f"autobahn: it has written no report\n{done.stdout[-2000:]}{done.stderr}")
        found: dict[str, dict[str, str]] = json.loads(index.read_text())["hydrogen"]
        return found


def hold(python: str, engine: str, tls: bool, deflate: bool) -> bool:
    """Whether all is well on this engine."""
    import certificates

    import hydrogen

    class Echo(hydrogen.WebSocketHandler):
        def on_message(self, socket: hydrogen.HydrogenSocket, data: str | bytes) -> None:
            socket.send(data)

    settings = hydrogen.WebSocket(
        max_message=16 << 20,
        max_fragments=1 << 20,  # 9.3.1 and 9.4.1 send 4 MiB in frames of 64 bytes
        deflate=hydrogen.Deflate(min_size=0) if deflate else None,
    )
    context = certificates.server_context() if tls else None
    with hydrogen.serve(
        Echo(), engine=engine, port=0, ssl=context, websocket=settings, max_write_buffer=64 << 20
    ) as server:
        url = "{}://127.0.0.1:{}/".format("wss" if tls else "ws", server.address[1])
        found = reports(python, url, deflate)
    good = {"OK", "INFORMATIONAL"}
    bad = {
        case: (report["behavior"], report["behaviorClose"])
        for case, report in found.items()
        if not {report["behavior"], report["behaviorClose"]} <= good
    }
    counts = Counter(report["behavior"] for report in found.values())
    print(f"{engine} {url.partition(':')[0]}: {len(found)} cases, {dict(counts)}", flush=True)
    for case, said in sorted(bad.items()):
        print(f"  {case}: {said[0]}, and its end {said[1]}", flush=True)
    return len(found) == (517 if deflate else 301) and not bad


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deflate", action="store_true", help="and permessage-deflate")
    parser.add_argument("--engine", choices=("compiled", "python"), help="this one alone")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tls", action="store_true", help="over wss alone")
    only.add_argument("--plain", action="store_true", help="over ws alone")
    given = parser.parse_args()
    python = python2()
    if python is None:
        print("autobahn: NOT RUN, for there is no Python 2.7 with pip (pyenv install 2.7.18)")
        return NOT_RUN
    try:
        install(python)
    except subprocess.CalledProcessError:
        print("autobahn: NOT RUN, for pip could not install the suite")
        return NOT_RUN
    engines = [given.engine] if given.engine else ["compiled", "python"]
    held = [
        hold(python, engine, tls, given.deflate)
        for engine in engines
        for tls in (False, True)
        if not (given.plain if tls else given.tls)
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
