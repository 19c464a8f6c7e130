"""Every cell of the table of states and events of a WebSocket (docs/states-websocket.md), on both
engines.
"""

import pytest
from states.websocket_scene import WebSocketScene
from states.websocket_table import TABLE
from support import ROOT


@pytest.mark.parametrize(("state", "event", "family"), list(TABLE.cells()))
def test_a_state_meets_an_event(start, connect, gate, tmp_path, state, event, family):
    options = TABLE.options(state, event)
    scene = WebSocketScene(family, start, connect, gate, str(tmp_path / "s"), **options)
    TABLE.walk(scene, state, event)


def test_the_table_has_a_cell_for_each_state_and_event():
    assert list(TABLE.rows) == list(TABLE.states)
    for state, row in TABLE.rows.items():
        assert row.keys() == TABLE.events.keys(), state


def test_the_document_says_what_the_table_says():
    assert (ROOT / TABLE.path).read_text() == TABLE.document(), "run tests/states/write.py"
