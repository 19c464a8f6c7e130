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
from typing import Any

from perf import certificates, machine, report, rounds
from perf.servers import BEFORE, HERE, OURS, TLS_JOB, compile_c, is_built, link, missing
from perf.settings import Settings, layouts
from perf.workloads import WORKLOADS

FAST = {"rounds": 3, "duration": 0.7, "warm_up": 0.3}
"""The defaults of ``--fast``."""


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """An argument type: names from ``known`` with commas between."""

    def split(text: str) -> list[str]:
        found = text.split(",")
        unknown = [name for name in found if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(unknown)}; there are {', '.join(known)}"
            )
        return found

    return split


def built_tree(text: str) -> Path:
    """An argument type: a tree with hydrogen built in it."""
    tree = Path(text)
    if not is_built(tree):
        raise argparse.ArgumentTypeError(f"no hydrogen is built in {tree} for this Python")
    return tree


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m perf.compare", description="Compare hydrogen with its peers and with C."
    )
    contenders = dict.fromkeys(
        contender for workload in WORKLOADS.values() for contender in workload.jobs
    )
    p.add_argument(
        "--workload",
        type=names(WORKLOADS),
        default=list(WORKLOADS),
        metavar="W1,W2...",
        help="only these workloads",
    )
    p.add_argument(
        "--contenders",
        type=names(contenders),
        metavar="NAME,NAME...",
        help=f"only these of {', '.join(contenders)}",
    )
    p.add_argument(
        "--fast",
        action="store_true",
        help="few contenders, and unless given 3 rounds of 0.7 s after 0.3 s: some minutes in all",
    )
    p.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds (default %(default)s)"
    )
    p.add_argument("--layout", choices=("pinned", "shared", "both"), default="both")
    p.add_argument(
        "--duration",
        type=float,
        default=4.0,
        metavar="SECONDS",
        help="measured per run (default %(default)s)",
    )
    p.add_argument(
        "--warm-up",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="before it (default %(default)s)",
    )
    p.add_argument(
        "--against",
        type=built_tree,
        metavar="TREE",
        help=f"compare with another build of hydrogen as well: {BEFORE}, from a tree in which it "
        "is built in place",
    )
    p.add_argument(
        "--handoff",
        choices=("auto", "inline", "eager"),
        default="auto",
        help="of the hydrogen contenders",
    )
    p.add_argument(
        "--idle-connections",
        type=int,
        default=5000,
        metavar="N",
        help="of W9 (default %(default)s)",
    )
    p.add_argument(
        "--quiet",
        type=float,
        metavar="CORES",
        help="on a shared machine: wait until others keep fewer cores busy, repeat a run in which "
        "they did not",
    )
    p.add_argument(
        "--publish", action="store_true", help="write docs/performance.md from this result alone"
    )
    p.add_argument(
        "--results",
        type=Path,
        default=HERE / "results",
        metavar="FOLDER",
        help="where the JSON goes",
    )
    return p


def parsed(p: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; what is given counts for more than ``--fast``."""
    options = p.parse_args(arguments)
    if options.fast:
        p.set_defaults(**FAST)
        options = p.parse_args(arguments)
    return options


def chosen_contenders(wanted: list[str] | None, jobs: Sequence[str]) -> list[str]:
    """The workload's contenders that take part; says which cannot run here, and raises ValueError
    when one was asked for by name.
    """
    contenders = []
    for contender in (
        jobs if wanted is None else [contender for contender in jobs if contender in wanted]
    ):
        lacking = missing(contender)
        if lacking is None:
            contenders.append(contender)
        elif wanted is None:
            print(f"{contender} is left out: there is no {lacking} here", file=sys.stderr)
        else:
            raise ValueError(f"{contender} cannot run: there is no {lacking} here")
    return contenders


def compare(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
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
        if options.against is not None:
            link(options.against, settings.folder)
        for name in options.workload:
            workload = WORKLOADS[name]
            contenders = chosen_contenders(
                options.contenders,
                workload.fast_contenders()
                if options.fast and options.contenders is None
                else list(workload.jobs),
            )
            if options.against is not None and OURS in contenders:
                contenders.insert(contenders.index(OURS) + 1, BEFORE)
            for layout in layouts(options.layout):
                if layout.name in workload.layouts and contenders:
                    measured = rounds.run(name, contenders, layout, settings)
                    print(report.markdown(name, workload, layout.name, measured), flush=True)
                    yield {"workload": name, **report.as_json(workload, layout.name, measured)}


def text_of(document: dict[str, Any]) -> str:
    """A result as it is kept: four digits of each figure, which is more than a round is worth, and
    a line for each round.
    """
    comparisons = []
    for each in document["comparisons"]:
        rounds = ",\n".join([f"   {json.dumps(rounded(one))}" for one in each["rounds"]])
        rest = json.dumps(
            {name: rounded(value) for name, value in each.items() if name != "rounds"}
        )
        comparisons.append(f'  {rest[:-1]}, "rounds": [\n{rounds}\n  ]}}')
    head = json.dumps(
        {name: value for name, value in document.items() if name != "comparisons"}, indent=1
    )
    return head[:-2] + ',\n "comparisons": [\n' + ",\n".join(comparisons) + "\n ]\n}\n"


def rounded(value: Any) -> Any:
    """All floats in there with four significant digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def write(
    found: Sequence[dict[str, Any]], options: argparse.Namespace, began: datetime.datetime
) -> Path:
    """Keep what was measured, with all that it depends on; where it is kept and published is
    nothing of that. Returns the file.
    """
    given = {
        name: value for name, value in vars(options).items() if name not in ("results", "publish")
    }
    if options.against is not None:  # what matters of a tree, and is the same elsewhere
        given["against"] = machine.git("rev-parse", "HEAD", folder=options.against) or "no commit"
    document = {
        "schema": report.SCHEMA,
        "began": began.isoformat(timespec="seconds"),
        "options": {
            name: value if isinstance(value, list) else str(value) for name, value in given.items()
        },
        "machine": machine.describe(),
        "comparisons": list(found),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    measured = "all" if options.workload == list(WORKLOADS) else "-".join(options.workload)
    path: Path = options.results / f"{began:%Y%m%dT%H%M%SZ}-{measured}.json"
    path.write_text(text_of(document))
    print(f"written to {path}", file=sys.stderr)
    return path


def failures(found: Sequence[dict[str, Any]], wanted: list[str] | None) -> list[str]:
    """The goals of gated workloads that were missed, or that nothing was measured for although
    their contender was wanted.
    """
    failed = []
    for each in found:
        workload = WORKLOADS[each["workload"]]
        met = {verdict["goal"]: verdict["met"] for verdict in each["verdicts"]}
        if workload.gated:
            for goal in workload.goals_in(each["layout"]):
                if not met.get(str(goal), wanted is not None and goal.contender not in wanted):
                    failed.append(f"{each['workload']}, {each['layout']}: {goal}")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when a goal of a gated workload is missed, 2 for wrong usage, else
    0: no timed goal is a test.
    """
    p = parser()
    options = parsed(p, arguments)
    if options.publish:
        try:  # now, and not in an hour
            from perf.publish import publish
        except ImportError as error:
            p.error(f"--publish needs matplotlib: {error}")
    # The memory workloads hold both ends of their connections open: here, and in the server, which
    # inherits the limit.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = datetime.datetime.now(datetime.timezone.utc)
    found: list[dict[str, Any]] = []
    whole = False
    try:
        for each in compare(options):
            found.append(each)  # one by one, so that what is whole survives an error
        whole = True
    except ValueError as error:
        p.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        if found:
            path = write(found, options, began)
    if options.publish and whole and found:
        print(f"written to {publish([path])}", file=sys.stderr)
    failed = failures(found, options.contenders)
    for goal in failed:
        print(f"failed: {goal}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
