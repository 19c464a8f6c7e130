"""Every cell of the table of states and events (docs/states.md), on both engines."""

import pytest
from states.builders import STATES
from states.events import EVENTS
from states.scene import Scene
from states.table import TABLE, cells, document, outcome
from support import ROOT


@pytest.mark.parametrize(("state", "event", "family"), list(cells()))
def test_a_state_meets_an_event(start, connect, gate, tmp_path, state, event, family):
    options = {**STATES[state].options, **EVENTS[event].options}
    scene = Scene(family, start, connect, gate, str(tmp_path / "s"), **options)
    try:
        scene.state = state
        STATES[state].build(scene)
        scene.before = len(scene.messages())
        EVENTS[event].happen(scene)
        for step in outcome(state, event, family):
            step(scene)
    finally:
        scene.finish()


def test_the_table_has_a_cell_for_each_state_and_event():
    assert list(TABLE) == list(STATES)
    for state in TABLE:
        assert set(TABLE[state]) == set(EVENTS), state


def test_the_document_says_what_the_table_says():
    assert (ROOT / "docs" / "states.md").read_text() == document(), "run tests/states/write.py"
