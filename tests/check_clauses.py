"""Does every clause of the interface have a test? `python tests/check_clauses.py` says which has
none, and exits with 1 then.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))

from clauses import CLAUSES  # noqa: E402


def clauses_of(source: str) -> dict[str, list[str]]:
    """Clause -> the test functions of a module that name it by `@pytest.mark.clause`."""
    found = defaultdict(list)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if (
                isinstance(decorator, ast.Call)
                and ast.unparse(decorator.func) == "pytest.mark.clause"
            ):
                assert node.name.startswith("test_"), f"{node.name} names clauses and is no test"
                for argument in decorator.args:
                    found[ast.literal_eval(argument)].append(node.name)
    return found


def claims() -> dict[str, list[str]]:
    """Clause -> tests, over the whole suite."""
    found = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for clause, names in clauses_of(path.read_text()).items():
            found[clause] += [f"{path.relative_to(TESTS)}::{name}" for name in names]
    return found


def faults(clauses: dict[str, str], found: dict[str, list[str]]) -> list[str]:
    """What is wrong, a line each: clauses without a test, names of no clause."""
    without = [
        f"no test of {clause}: {sentence}"
        for clause, sentence in clauses.items()
        if not found.get(clause)
    ]
    unknown = [
        f"no clause {clause}, which is named by {', '.join(found[clause])}"
        for clause in found
        if clause not in clauses
    ]
    return without + unknown


def main() -> int:
    """Print the faults; the exit status."""
    found = claims()
    wrong = faults(CLAUSES, found)
    print(
        "\n".join(wrong)
        if wrong
        else f"{len(CLAUSES)} clauses, each in {sum(map(len, found.values()))} claims"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
