"""``python -m perf.readme RESULT.json...``: writes the verdicts of results into the project's README: no figure there is typed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from perf.report import number
from perf.servers import HERE

README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def table(documents: list[dict[str, Any]], commands: list[str]) -> str:
    """A row for each goal of each comparison, as the last result that has it says; the machine and the commands above."""
    machine = documents[0]["machine"]
    lines = [
        f"Measured on {machine['cores']} cores of {machine['cpu']}, {machine['kernel']}, {machine['python']}; "
        "medians, with the range over the rounds. *Pinned*: server and load on a core each; *shared*: neither.",
        "",
        *(f"    {command}" for command in commands),
        "",
        "| workload | layout | goal | measured | |",
        "|---|---|---|---|---|",
    ]
    rows = {}
    for document in documents:
        for comparison in document["comparisons"]:
            for verdict in comparison["verdicts"]:
                measured = verdict["measured"]
                spread = (
                    "-" if measured is None else "{} ({}-{})".format(*(number(measured[key]) for key in ("median", "lowest", "highest")))
                )
                name = f"{comparison['workload']}: {comparison['title']}"
                met = "met" if verdict["met"] else "**missed**"
                layout, goal = comparison["layout"], verdict["goal"].replace("_", " ")
                rows[name, layout, goal] = f"| {name} | {layout} | {goal} | {spread} | {met} |"
    return "\n".join([*lines, *rows.values()])


def command_of(path: Path, document: dict[str, Any]) -> str:
    """The command that made a result, the result, and the commit that was measured."""
    options = document["options"]
    words = [f"--workload {','.join(options['workload'])}", f"--rounds {options['rounds']}", f"--duration {options['duration']}"]
    words += [f"--warm-up {options['warm_up']}", f"--layout {options['layout']}"]
    if options["arms"] not in (None, "None"):
        words.append(f"--arms {','.join(options['arms'])}")
    if options["quiet"] != "None":
        words.append(f"--quiet {options['quiet']}")
    return f"python -m perf.compare {' '.join(words)}    # {path.name}, commit {document['machine']['commit'][:10]}"


def main() -> None:
    """Replace what is between the two marks."""
    p = argparse.ArgumentParser(prog="python -m perf.readme", description=__doc__)
    p.add_argument("results", nargs="+", type=Path, metavar="RESULT.json")
    paths = p.parse_args().results
    documents = [json.loads(path.read_text()) for path in paths]
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    commands = [command_of(path, document) for path, document in zip(paths, documents, strict=True)]
    README.write_text(f"{before}{BEGIN}\n{table(documents, commands)}\n{END}{after}")


if __name__ == "__main__":
    main()
