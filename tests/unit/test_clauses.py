"""The table of clauses, and of the rows of faults that the project claims, against the tests there
are.
"""

import re

from check_clauses import TESTS, claims, clauses_of, faults
from clauses import CLAUSES

CLAIMED_ROWS = {f"{number:02}" for number in range(1, 41)} | {"11b", "11c", "24b", "27b"}


def test_every_clause_has_a_test_and_every_test_names_a_clause_that_exists():
    assert faults(CLAUSES, claims()) == []


def test_a_clause_without_a_test_and_a_name_of_no_clause_are_found():
    found = clauses_of("@pytest.mark.clause('A1', 'Z9')\ndef test_something(): ...\n")
    assert found == {"A1": ["test_something"], "Z9": ["test_something"]}
    assert faults({"A1": "one", "A2": "two"}, found) == [
        "no test of A2: two",
        "no clause Z9, which is named by test_something",
    ]


def test_every_row_of_faults_that_is_claimed_has_a_test_named_after_it():
    rows = {
        row
        for path in TESTS.rglob("test_*.py")
        for row in re.findall(r"^def test_f(\d\d[bc]?)_", path.read_text(), re.M)
    }
    assert rows == CLAIMED_ROWS


def test_no_two_tests_of_a_module_have_the_same_name():
    for path in TESTS.rglob("test_*.py"):
        names = re.findall(r"^def (test_\w+)", path.read_text(), re.M)
        assert len(names) == len(set(names)), path
