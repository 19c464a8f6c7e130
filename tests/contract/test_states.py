"""Every cell of the table of states and events (docs/states.md), on both engines."""

import pytest
from states.scene import Scene
from states.table import TABLE
from support import ROOT


@pytest.mark.parametrize(("state", "event", "family"), list(TABLE.cells()))
def test_a_state_meets_an_event(start, connect, gate, tmp_path, state, event, family):
    options = TABLE.options(state, event)
    scene = Scene(family, start, connect, gate, str(tmp_path / "s"), **options)
    TABLE.walk(scene, state, event)


def test_the_table_has_a_cell_for_each_state_and_event():
    assert list(TABLE.rows) == list(TABLE.states)
    for state, row in TABLE.rows.items():
        assert row.keys() == TABLE.events.keys(), state


def test_the_document_says_what_the_table_says():
    assert (ROOT / TABLE.path).read_text() == TABLE.document(), "run tests/states/write.py"
