"""Tables of states and events: what a cell says of a family, and all of it as a page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from states.builders import State
from states.events import Event

Outcome = Callable[[Any], None]

Cell = tuple[Outcome, ...] | str
"""Outcomes in order; or, where there is no such cell, the reason."""

Cells = Mapping[str, Mapping[str, Cell | dict[str, Cell]]]
"""State -> event -> cell; a mapping where the families differ, "*" being the others."""


@dataclass(frozen=True)
class Table:
    """A table, which a test walks cell by cell and which is printed as a page.

    Attributes:
        path: of the page.
        head: with which it begins.
        families: their names on it.
    """

    path: str
    head: str
    families: Mapping[str, str]
    states: Mapping[str, State]
    events: Mapping[str, Event]
    rows: Cells

    def outcome(self, state: str, event: str, family: str) -> Cell:
        """What the cell says of one family."""
        for part in (self.states[state], self.events[event]):
            if not part.has(family):
                return part.why
        cell = self.rows[state][event]
        if isinstance(cell, dict):
            return cell[family] if family in cell else cell["*"]
        return cell

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """State, event and family of all that can be."""
        for state in self.states:
            for event in self.events:
                for family in self.families:
                    if not isinstance(self.outcome(state, event, family), str):
                        yield state, event, family

    def walk(self, scene: Any, state: str, event: str) -> None:
        """Build a scene into the state, have the event happen, and see what comes."""
        try:
            scene.state = state
            scene.release = functools.partial(self.states[state].release, scene)
            self.states[state].build(scene)
            scene.before = len(scene.messages())
            self.events[event].happen(scene)
            for step in self.outcome(state, event, scene.family):
                step(scene)
        finally:
            scene.finish()

    def options(self, state: str, event: str) -> dict[str, Any]:
        """Of the server, so that the event can happen in the state."""
        return {**self.states[state].options, **self.events[event].options}

    def missing(self, names: Mapping[str, State] | Mapping[str, Event]) -> Iterator[str]:
        """A line for each state or event that some families do not have."""
        for about in names.values():
            absent = [name for family, name in self.families.items() if not about.has(family)]
            if absent:
                yield f"- {about.text}: not with {', '.join(absent)} ({about.why}).\n"

    def section(self, name: str) -> str:
        """What there is to say of a state."""
        state = self.states[name]
        lines = [f"\n## {state.text}\n\n| event | outcome |\n|---|---|\n"]
        impossible: list[tuple[str, str]] = []
        for key, event in self.events.items():
            pairs = []
            for family, shown in self.families.items():
                if not (state.has(family) and event.has(family)):
                    continue
                cell = self.outcome(name, key, family)
                if isinstance(cell, str):
                    impossible.append((cell, event.text))
                else:
                    pairs.append((said(cell), shown))
            texts = grouped(pairs)
            if texts:
                said_of = [
                    text if len(texts) == 1 else f"{', '.join(of)}: {text}"
                    for text, of in texts.items()
                ]
                lines.append(f"| {event.text} | {'<br>'.join(said_of)} |\n")
        lines.append("\n" if impossible else "")
        for why, events in grouped(impossible).items():
            lines.append(f"- No such event ({why}): {'; '.join(dict.fromkeys(events))}.\n")
        return "".join(lines)

    def document(self) -> str:
        """The page."""
        absent = [*self.missing(self.states), *self.missing(self.events)]
        return "".join([self.head, "\n", *absent, *map(self.section, self.states)])


def said(cell: tuple[Outcome, ...]) -> str:
    """A cell, for people."""
    return "; ".join((outcome.__doc__ or "").strip() for outcome in cell).replace(",;", ",")


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Key -> the values that go with it, in order."""
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
