"""Every cell of the tables of states and events (docs/states.md, docs/states-websocket.md), on both
engines.
"""

import pytest
from states import table, websocket_table
from states.scene import Scene
from states.websocket_scene import WebSocketScene
from support import ROOT

TABLES = [(table.TABLE, Scene), (websocket_table.TABLE, WebSocketScene)]

tables = pytest.mark.parametrize("table", [table for table, _ in TABLES], ids=lambda it: it.path)


@pytest.mark.parametrize(
    ("table", "make_scene", "state", "event", "family"),
    [
        pytest.param(table, make_scene, *cell, id="-".join((table.path, *cell)))
        for table, make_scene in TABLES
        for cell in table.cells()
    ],
)
def test_a_state_meets_an_event(
    start, connect, gate, tmp_path, table, make_scene, state, event, family
):
    options = table.options(state, event)
    scene = make_scene(family, start, connect, gate, str(tmp_path / "s"), **options)
    table.walk(scene, state, event)


@tables
def test_the_table_has_a_cell_for_each_state_and_event(table):
    assert list(table.rows) == list(table.states)
    for state, row in table.rows.items():
        assert row.keys() == table.events.keys(), state


@tables
def test_the_document_says_what_the_table_says(table):
    assert (ROOT / table.path).read_text() == table.document(), "run tests/states/write.py"
