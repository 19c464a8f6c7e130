"""``python -m perf.publish RESULT.json...``: writes docs/performance.md and its pictures from
results: no figure there is typed.

Goals are those of `workloads.py` as it is now, held against the rounds of the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import pictures, report
from perf.pictures import Row
from perf.reasons import REASONS
from perf.rounds import Round, Spread, bounded, ratio
from perf.servers import FRESH_MALLOC, OURS, ROOT
from perf.workloads import MORE_IS_BETTER, WORKLOADS, Goal, Workload

DOCS = ROOT / "docs"

LIMIT = "c"
USUAL_REFERENCE = "uvloop"

LAYOUTS = {"shared": "server and load share the cores", "pinned": "server and load on a core each"}
"""What the layouts are, in the order in which the overview chooses one."""

ABOUT = """\
<!-- Written by `python -m perf.publish`: a change by hand is lost with the next measurement. -->

# What hydrogen costs, and what it wins
"""

HOW_TO_READ = """\
Each row is a workload, each mark the median of a contender's paired ratios to the reference, which
is 1; the bar through it is the range over the rounds. Right is better: of latency and memory the
inverse is drawn. A bar that crosses 1 cannot be told apart from the reference. The *C limit* is a
single-threaded epoll loop that does that job and nothing else.
"""

ABOUT_RUNS = """\
Contenders take turns within a round, each with a fresh server and a fresh generator; a ratio is
that of two runs of one round. In the *pinned* layout server and generator have a core each, in the
*shared* layout neither is pinned; no figure mixes the two. Every reply was verified. *Others' CPU*
is what others on that machine kept busy meanwhile, in cores. The whole method, and what each
workload does: [perf/README.md](../perf/README.md). Results have numbers; the machine, the versions,
the commit and the command of each:
"""

REPRODUCE = """\
## How to reproduce this

```
make bench                # everything; writes a result into perf/results/, and this page from it
make bench ARGS=--fast    # few contenders, few and short rounds: some minutes
```

`make bench` is `python -m perf.compare --publish` in an environment that it makes. `python -m
perf.publish RESULT.json...` writes this page from results that are there; of two with the same
workload and layout the later one counts. Expect other figures, and similar ratios.
"""


@dataclass(frozen=True)
class Comparison:
    """One workload in one layout."""

    name: str
    layout: str
    rounds: list[Round]
    result: int
    """which of the results it is from"""

    @property
    def workload(self) -> Workload:
        return WORKLOADS[self.name]

    @property
    def contenders(self) -> list[str]:
        return list(self.rounds[0])

    @property
    def missed(self) -> list[tuple[Goal, Spread]]:
        found = [(goal, bounded(goal, self.rounds)) for goal in self.workload.goals_in(self.layout)]
        return [
            (goal, measured)
            for goal, measured in found
            if measured is not None and not goal.met(measured.median)
        ]

    def advantage(self, contender: str, other: str) -> Spread | None:
        """How many times better ``contender`` is, in the figure that is compared."""
        if self.workload.compared not in MORE_IS_BETTER:
            contender, other = other, contender
        return ratio(self.rounds, contender, other, self.workload.compared)


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The results among these files; raises ValueError when one of another schema, or a workload
    that is no more, is among them.
    """
    documents = []
    for path in paths:
        document = json.loads(path.read_text())
        if document["schema"]["name"] != report.SCHEMA["name"]:
            print(
                f"{path.name} is left out: it is of {document['schema']['name']}", file=sys.stderr
            )
            continue
        unknown = [
            each["workload"]
            for each in document["comparisons"]
            if each["workload"] not in WORKLOADS
        ]
        if document["schema"] != report.SCHEMA or unknown:
            raise ValueError(
                f"{path.name} has to be measured again: {', '.join(unknown) or 'its schema'} is no "
                "more"
            )
        documents.append({**document, "file": path.name})
    if not documents:
        raise ValueError("there is no result to publish")
    return documents


def chosen(documents: Sequence[dict[str, Any]]) -> list[Comparison]:
    """One for each workload and layout: the last, at the place of the first."""
    found = {}
    for number, document in enumerate(documents):
        for each in document["comparisons"]:
            found[each["workload"], each["layout"]] = Comparison(
                each["workload"], each["layout"], each["rounds"], number
            )
    return list(found.values())


# -- The picture -----------------------------------------------------------------------------------


def peers(comparison: Comparison) -> list[str]:
    """The contenders by others."""
    return [
        contender
        for contender in comparison.contenders
        if contender != LIMIT and contender.partition("-")[0] != OURS
    ]


def reference(comparison: Comparison) -> str | None:
    """The contender that is 1."""
    there = peers(comparison)
    wanted = [USUAL_REFERENCE, *comparison.workload.references, *there]
    return next((contender for contender in wanted if contender in there), None)


def row(comparison: Comparison) -> Row | None:
    """Its row of the picture: hydrogen, the peers, the C limit. None when it has no row.

    The engine without a compiler is left out, and the slower asyncio.
    """
    other = reference(comparison)
    if (
        not comparison.workload.pictured
        or other is None
        or comparison.advantage(OURS, other) is None
    ):
        return None
    others = [contender for contender in peers(comparison) if contender != FRESH_MALLOC]
    contenders = sorted([OURS, *others, LIMIT], key=pictures.order)
    found = {contender: comparison.advantage(contender, other) for contender in contenders}
    workload = comparison.workload
    inverse = "" if workload.compared in MORE_IS_BETTER else ", inverse"
    return Row(
        workload.pictured,
        f"{comparison.name}: {workload.columns[workload.compared]}{inverse}",
        other,
        {contender: spread for contender, spread in found.items() if spread is not None},
    )


def pictured(comparisons: Sequence[Comparison], layout: str) -> list[Comparison]:
    return [each for each in comparisons if each.layout == layout and row(each) is not None]


# -- The sentences ---------------------------------------------------------------------------------


def times(found: Spread, other: str, rounds: int) -> str:
    """A ratio in a sentence."""
    span = (
        "one round"
        if rounds == 1
        else f"{pictures.times(found.lowest)}-{pictures.times(found.highest)}"
    )
    return f"{pictures.times(found.median)} x {other} ({span})"


def standing(comparison: Comparison) -> tuple[str, str]:
    """Whether hydrogen is ahead of its best peer, behind, or neither, by the range over the rounds;
    and by how much.
    """
    found = {
        contender: spread
        for contender in peers(comparison)
        if (spread := comparison.advantage(OURS, contender)) is not None
    }
    best = min(found, key=lambda contender: found[contender].median)
    against = dict.fromkeys([best, reference(comparison) or best])
    told = " and ".join(
        times(found[contender], contender, len(comparison.rounds)) for contender in against
    )
    where = "ahead" if found[best].lowest > 1 else "behind" if found[best].highest < 1 else "level"
    return where, f"{comparison.workload.pictured}: {told}"


def sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """What the picture says."""
    found: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for each in comparisons:
        where, told = standing(each)
        found[where].append(told)
    heads = {
        "ahead": "**Where hydrogen is ahead** of every peer, in every round",
        "level": "**Where the best peer cannot be told apart from it**",
        "behind": "**Where hydrogen is behind** a peer, in every round",
    }
    lines = [f"- {head}: {'; '.join(found[where]) or 'nowhere'}." for where, head in heads.items()]
    limits = sorted(
        (spread.median, each.workload.pictured)
        for each in comparisons
        if (spread := each.advantage(OURS, LIMIT)) is not None
    )
    if limits:
        worst, best = (
            f"{pictures.times(median)} ({name})" for median, name in (limits[0], limits[-1])
        )
        lines.append(
            f"- **Beside the C limit**, which is 1, its medians are between {worst} and {best}."
        )
    return lines


def overview(comparisons: Sequence[Comparison], folder: Path) -> list[str]:
    """The pictures, one for each layout, with what they say; the first is always called
    overview.svg.
    """
    lines = []
    layouts = [layout for layout in LAYOUTS if pictured(comparisons, layout)]
    for layout in layouts:
        shown = pictured(comparisons, layout)
        name = "overview.svg" if layout == layouts[0] else f"overview-{layout}.svg"
        pictures.overview(
            [found for each in shown if (found := row(each))],
            f"hydrogen and its peers: {LAYOUTS[layout]}",
            folder / name,
        )
        if layout != layouts[0]:
            lines += [f"The same in the {layout} layout: {LAYOUTS[layout]}.", ""]
        lines += [f"![Ratios to the reference in the {layout} layout]({folder.name}/{name})", ""]
        if layout == layouts[0]:
            lines += [HOW_TO_READ]
        noisy = [
            each.workload.pictured for each in shown if report.others(each.rounds) > report.NOISY
        ]
        if noisy:
            lines += [
                "**Others kept the machine busy meanwhile, so these are not to be relied on**: "
                f"{'; '.join(noisy)}.",
                "",
            ]
        lines += [*sentences(shown), ""]
    return lines


# -- The runs --------------------------------------------------------------------------------------


def command_of(document: dict[str, Any]) -> str:
    """The command that made a result."""
    options = document["options"]
    words = ["python -m perf.compare"]
    if options["workload"] != list(WORKLOADS):
        words.append(f"--workload {','.join(options['workload'])}")
    words += [f"--rounds {options['rounds']}", f"--duration {options['duration']}"]
    words += [f"--warm-up {options['warm_up']}", f"--layout {options['layout']}"]
    if options.get("fast") == "True":
        words.append("--fast")
    if options["contenders"] not in (None, "None"):
        words.append(f"--contenders {','.join(options['contenders'])}")
    for name, usual in (
        ("handoff", "auto"),
        ("idle_connections", "5000"),
        ("quiet", "None"),
        ("against", "None"),
    ):
        if options.get(name, usual) != usual:
            words.append(f"--{name.replace('_', '-')} {options[name]}")
    return " ".join(words)


def machine_of(document: dict[str, Any]) -> str:
    """What it ran on and with, but for the commit."""
    told = {
        name: value
        for name, value in document["machine"].items()
        if name not in ("commit", "uncommitted_changes")
    }
    flat = {
        name: value
        for key, inner in told.items()
        for name, value in (inner.items() if isinstance(inner, dict) else [(key, inner)])
    }
    return "; ".join(
        f"{name.replace('_', ' ')}: {value}" for name, value in flat.items() if value is not None
    )


def commit_of(document: dict[str, Any]) -> str:
    machine = document["machine"]
    changes = ", with uncommitted changes" if machine["uncommitted_changes"] else ""
    return f"{(machine['commit'] or 'none')[:10]}{changes}"


def runs(documents: Sequence[dict[str, Any]], comparisons: Sequence[Comparison]) -> list[str]:
    """The results from which something is shown, with all that their figures depend on."""
    used = {
        number: [each for each in comparisons if each.result == number]
        for number in range(len(documents))
    }
    used = {number: shown for number, shown in used.items() if shown}
    lines = ["## What was run, on what", "", ABOUT_RUNS]
    machines: dict[str, list[str]] = {}
    for number in used:
        machines.setdefault(machine_of(documents[number]), []).append(str(number + 1))
    lines += [f"- Of {', '.join(numbers)}: {machine}" for machine, numbers in machines.items()]
    lines += [
        "",
        "| result | began, UTC | commit | shown of it | rounds | others' CPU, median | highest |",
        "|---" * 7 + "|",
    ]
    for number, shown in used.items():
        document = documents[number]
        others = [
            run["others"]
            for each in shown
            for figures in each.rounds
            for run in figures.values()
            if "others" in run
        ]
        noise = [f"{statistics.median(others):.2f}", f"{max(others):.2f}"] if others else ["-", "-"]
        names = ", ".join(dict.fromkeys(each.name for each in shown))
        began = document["began"][:16].replace("T", " ")
        cells = [
            f"{number + 1}, `{document['file']}`",
            began,
            commit_of(document),
            names,
            document["options"]["rounds"],
            *noise,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "```",
        *(f"{command_of(documents[number])}    # {number + 1}" for number in used),
        "```",
        "",
    ]


# -- The tables, and what is missed ----------------------------------------------------------------


def tables(comparisons: Sequence[Comparison]) -> list[str]:
    """Every workload in every layout, as the comparison prints it."""
    lines = [
        "## Every workload",
        "",
        "Below each table are the project's goals, held against medians.",
        "",
    ]
    for each in comparisons:
        lines += [
            report.markdown(each.name, each.workload, each.layout, each.rounds),
            f"From result {each.result + 1}.",
            "",
        ]
    return lines


def ceiling(goal: Goal, rounds: Sequence[Round]) -> str:
    """What the C limit reaches where hydrogen is to reach a goal; empty where that says nothing."""
    found = None if goal.against == LIMIT else bounded(goal, rounds, LIMIT)
    if found is None:
        return ""
    reaches = "reaches" if goal.met(found.median) else "does not reach"
    return f"; the C limit's own is {report.with_range(found)}, which {reaches} it"


def missed(comparisons: Sequence[Comparison]) -> list[str]:
    """Every goal that was missed, with its reason."""
    found: dict[tuple[str, str, str, str | None], list[str]] = {}
    for each in comparisons:
        for goal, measured in each.missed:
            line = (
                f"- {each.layout}: {report.with_range(measured)}, the goal is {goal.relation} "
                f"{goal.bound:g}{ceiling(goal, each.rounds)}."
            )
            found.setdefault((each.name, goal.contender, goal.figure, goal.against), []).append(
                line
            )
    lines = ["## Where hydrogen loses, and why", ""]
    if not found:
        return [*lines, "Every goal was met.", ""]
    lines += [
        "Each goal that was missed; what the C limit reaches of it is the most that there is to "
        "reach.",
        "",
    ]
    for (name, contender, figure, against), said in found.items():
        beside = contender if against is None else f"{contender} / {against}"
        lines += [
            f"### {name}: {beside}, {figure.replace('_', ' ')}",
            "",
            f"{WORKLOADS[name].title}.",
            "",
            *said,
            "",
        ]
        lines += [REASONS.get((name, figure, against), "Not yet explained."), ""]
    return lines


# -- All of it -------------------------------------------------------------------------------------


def publish(paths: Sequence[Path], docs: Path = DOCS) -> Path:
    """Write the page and its pictures below ``docs``, and remove pictures that it has no more;
    returns the page's path.
    """
    documents = read(paths)
    comparisons = chosen(documents)
    folder = docs / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        ABOUT,
        *overview(comparisons, folder),
        *runs(documents, comparisons),
        *tables(comparisons),
        *missed(comparisons),
        REPRODUCE,
    ]
    page, text = docs / "performance.md", "\n".join(lines)
    page.write_text(text)
    for picture in folder.glob("*.svg"):
        if f"{folder.name}/{picture.name}" not in text:
            picture.unlink()
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="python -m perf.publish",
        description="Write docs/performance.md and its pictures from results.",
    )
    p.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    try:
        page = publish(p.parse_args(arguments).results)
    except (OSError, ValueError) as error:
        p.error(str(error))
    print(f"written to {page}", file=sys.stderr)


if __name__ == "__main__":
    main()
