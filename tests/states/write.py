"""Write the pages of the tables anew: `python tests/states/write.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from states import table, websocket_table

    for each in (table.TABLE, websocket_table.TABLE):
        (ROOT / each.path).write_text(each.document())
