"""Write docs/states.md anew: `python tests/states/write.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from states.table import document

    (ROOT / "docs" / "states.md").write_text(document())
