"""Tools that are pinned in two places are pinned to one version."""

import re

from support import ROOT


def test_the_hook_of_a_commit_runs_the_ruff_that_the_constraints_pin():
    (hook,) = re.findall(
        r"ruff-pre-commit\n +rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()
    )
    (pinned,) = re.findall(
        r"^ruff==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert hook == pinned
