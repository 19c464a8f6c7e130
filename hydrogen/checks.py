"""Checks of settings, which all complain in the same words: the name, what is allowed, the value.

Each raises TypeError or ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from hydrogen.errors import described

MAX_SECONDS = 1_000_000_000
"""Longest timeout: some thirty years."""


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """An int from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, not {described(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name}: must be {low} to {high}, not {described(value)}")


def check_flag(name: str, value: object) -> None:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, not {described(value)}")


def check_choice(name: str, value: object, *allowed: str) -> None:
    """One of certain words."""
    if value not in allowed:
        raise ValueError(
            f"{name}: must be {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}, not "
            f"{described(value)}"
        )


def check_seconds(name: str, value: object) -> None:
    """A number of seconds, more than 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number of seconds, not {described(value)}")
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(
            f"{name}: must be more than 0 and at most {MAX_SECONDS} seconds, not {described(value)}"
        )


def is_several(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether `value` is a sequence of things, and not one text, whose characters would be
    meant.
    """
    return isinstance(value, Sequence) and not isinstance(
        value, (str, bytes, bytearray, memoryview)
    )
