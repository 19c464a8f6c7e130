"""The handlers of the guide and of the examples that look at a new connection's fd, against peers
that have reset it by then.

Users copy them. What must hold: nothing is logged as an error, nobody's fd is closed twice, and
those who behave are served.
"""

import ast
import os
import re

import certificates
import pytest
from support import PATIENCE, ROOT, wait_until

import hydrogen

RESETS = 20

GUIDE = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
BLOCKS = [
    block
    for block in re.findall(r"```python[^\n]*\n(.*?)```", GUIDE, re.DOTALL)
    if "def on_new_connection(" in block
]
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr, ast.ClassDef, ast.FunctionDef)


def defined_by(source, name):
    """What a program defines, and its handler; it is not run."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, DEFINITIONS)]
    scope = {"__name__": name}
    exec(compile(tree, name, "exec"), scope)
    kinds = [
        kind
        for kind in scope.values()
        if isinstance(kind, type) and issubclass(kind, hydrogen.Handler)
    ]
    (handler,) = [kind for kind in kinds if "on_new_connection" in vars(kind)]
    return scope, handler


def name_of(block):
    return re.search(r"class (\w+)\(hydrogen\.Handler\)", block)[1]


PROGRAMS = {
    **{name_of(block): block for block in BLOCKS},
    **{
        path.name: path.read_text()
        for path in (ROOT / "examples").glob("*.py")
        if "def on_new_connection(" in path.read_text()
    },
}


def test_there_are_such_programs():
    assert {"Picky", "Guarded", "custom_stream.py", "upstream.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_handler_that_looks_at_the_fd_survives_peers_that_reset_at_once(
    start, connect, monkeypatch, tmp_path, name
):
    certificate, _ = certificates.write_files(tmp_path)  # with its key
    for file in ("localhost.pem", "localhost.key"):
        os.symlink(certificate, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    scope, kind = defined_by(PROGRAMS[name], name)
    removed = []

    class Watched(kind):
        def on_connection_removed(self, fd, err):
            removed.append(err)
            super().on_connection_removed(fd, err)

    server = start(Watched())
    server.suspend()
    for _ in range(RESETS):
        connect(server).reset()  # while it waits in the kernel's queue: it is accepted all the same
    server.resume()
    wait_until(lambda: len(removed) >= RESETS, "all are accepted, and removed")
    # Had an fd been closed twice, it would be that of somebody who came since.
    clients = [connect(server) for _ in range(RESETS)]
    for client in clients:
        client.close()
    wait_until(lambda: len(removed) == 2 * RESETS, "the others are removed too")
    assert not [error for error in removed if isinstance(error, hydrogen.HandlerError)]
    if "kept" in scope:  # a stream that gives its socket away, once it is removed
        for _ in removed:
            scope["kept"].get(timeout=PATIENCE).close()
