"""``python -m perf.compare``: run the comparison; README.md tells the method and how to read it."""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from perf import certificates, machine, report, rounds
from perf.servers import HERE, TLS_JOB, compile_c, missing
from perf.settings import Settings, layouts
from perf.workloads import WORKLOADS


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """An argument type: names from ``known`` with commas between."""

    def split(text: str) -> list[str]:
        found = text.split(",")
        unknown = [name for name in found if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
        return found

    return split


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m perf.compare", description="Compare hydrogen with its peers and with C.")
    arms = dict.fromkeys(arm for workload in WORKLOADS.values() for arm in workload.jobs)
    p.add_argument("--workload", type=names(WORKLOADS), default=list(WORKLOADS), metavar="W1,W2...", help="only these workloads")
    p.add_argument("--arms", type=names(arms), metavar="ARM,ARM...", help=f"only these of {', '.join(arms)}")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default %(default)s)")
    p.add_argument("--layout", choices=("pinned", "shared", "both"), default="both")
    p.add_argument("--duration", type=float, default=4.0, metavar="SECONDS", help="measured per run (default %(default)s)")
    p.add_argument("--warm-up", type=float, default=1.0, metavar="SECONDS", help="before it (default %(default)s)")
    p.add_argument("--handoff", choices=("auto", "inline", "eager"), default="auto", help="of the hydrogen arms")
    p.add_argument("--idle-connections", type=int, default=5000, metavar="N", help="of W9 (default %(default)s)")
    p.add_argument(
        "--quiet",
        type=float,
        metavar="CORES",
        help="on a shared machine: wait until others keep fewer cores busy, repeat a run in which they did not",
    )
    p.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER", help="where the JSON goes")
    return p


def chosen_arms(wanted: list[str] | None, jobs: Sequence[str]) -> list[str]:
    """The workload's arms that take part; says which cannot run here, and raises ValueError when one was asked for by name."""
    arms = []
    for arm in jobs if wanted is None else [arm for arm in jobs if arm in wanted]:
        lacking = missing(arm)
        if lacking is None:
            arms.append(arm)
        elif wanted is None:
            print(f"{arm} is left out: there is no {lacking} here", file=sys.stderr)
        else:
            raise ValueError(f"{arm} cannot run: there is no {lacking} here")
    return arms


def compare(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Run what was asked for; each table is printed when it is there, and its data yielded."""
    with tempfile.TemporaryDirectory(prefix="hydrogen-perf-") as folder:
        settings = Settings(
            folder=Path(folder),
            rounds=options.rounds,
            duration=options.duration,
            warm_up=options.warm_up,
            handoff=options.handoff,
            idle_connections=options.idle_connections,
            quiet=options.quiet,
        )
        compile_c(settings.folder)
        if TLS_JOB in (job for name in options.workload for job in WORKLOADS[name].jobs.values()):
            certificates.make(settings.folder)
        for name in options.workload:
            workload = WORKLOADS[name]
            arms = chosen_arms(options.arms, list(workload.jobs))
            for layout in layouts(options.layout):
                if layout.name in workload.layouts and arms:
                    measured = rounds.run(name, arms, layout, settings)
                    print(report.markdown(name, workload, layout.name, measured), flush=True)
                    yield {"workload": name, **report.as_json(workload, layout.name, measured)}


def write(found: list[dict[str, object]], options: argparse.Namespace, began: datetime.datetime) -> None:
    """Keep what was measured, with all that it depends on; where it is kept is nothing of that."""
    given = {name: value for name, value in vars(options).items() if name != "results"}
    document = {
        "schema": report.SCHEMA,
        "began": began.isoformat(timespec="seconds"),
        "options": {name: value if isinstance(value, list) else str(value) for name, value in given.items()},
        "machine": machine.describe(),
        "comparisons": found,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{began:%Y%m%dT%H%M%SZ}-{'-'.join(options.workload)}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, also when goals are missed (a comparison is no test), 2 for wrong usage."""
    p = parser()
    options = p.parse_args(arguments)
    # The memory workloads hold both ends of their connections open: here, and in the server, which inherits the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = datetime.datetime.now(datetime.timezone.utc)
    found: list[dict[str, object]] = []
    try:
        for each in compare(options):
            found.append(each)  # one by one, so that what is whole survives an error
    except ValueError as error:
        p.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        if found:
            write(found, options, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
