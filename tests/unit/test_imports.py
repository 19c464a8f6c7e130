"""Names point one way only (the order of the rooms), and nothing in the C rooms knows Python. By grep: the rule is about the source."""

import ast
import re

import pytest
from support import ROOT

HYDROGEN = ROOT / "hydrogen"

ROOMS = ["sys", "slab", "buffer", "framing", "poller", "connection", "loop", "acceptor", "timekeeper"]
"""The rooms that both engines have, lowest first."""

ABOVE = ["_core", "backend", "server", "perf"]
"""What is above the rooms: nothing below `backend` may name it or anything over it."""

FACADE = {"config", "errors", "handler", "stream", "frame", "connection", "report", "listener"}


def imports(path):
    """The modules of hydrogen that a Python file imports, but for those it imports for its types only."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("hydrogen")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "hydrogen":
                found |= {f"hydrogen.{alias.name}" for alias in node.names}
            elif node.module and node.module.startswith("hydrogen"):
                packages = ("hydrogen._py", "hydrogen.perf", "hydrogen._c")
                found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module in packages else {node.module}
    return found


def cimports(path):
    """The rooms that a .pxd or .pyx file names."""
    return set(re.findall(r"^\s*(?:from|cimport)\s+hydrogen\._c\.(\w+)", path.read_text(), re.M)) | set(
        re.findall(r"^\s*from\s+hydrogen\._c\s+cimport\s+(\w+)", path.read_text(), re.M)
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_c_room_names_only_the_rooms_before_it(room):
    path = HYDROGEN / "_c" / f"{room}.pxd"
    assert path.exists()
    assert cimports(path) <= set(ROOMS[: ROOMS.index(room)])


@pytest.mark.parametrize("room", ROOMS)
def test_a_c_room_cannot_name_python(room):
    code = re.sub(r"#.*|\"\"\".*?\"\"\"", "", (HYDROGEN / "_c" / f"{room}.pxd").read_text(), flags=re.S if False else 0)
    code = re.sub(r'""".*?"""', "", code, flags=re.S)
    assert not re.search(r"\b(cpython|PyObject|Python\.h|with gil|Py_\w+|PyGILState\w*|PyMem_\w+)\b", code)
    assert not re.search(r"^\s*(import|from\s+(?!hydrogen\._c\b|libc\b|posix\b))\b", code, re.M), "only libc, posix and the rooms"
    assert not re.search(r"^\s*cdef\s+(?!extern|struct|enum|union|packed|inline|const|volatile|unsigned)\w+.*\bobject\b", code, re.M)
    for line in code.splitlines():
        if re.match(r"\s*cdef inline\b.*\)\s*\S*.*:$", line):
            assert "noexcept nogil" in line, line


def test_there_are_no_other_c_rooms():
    assert {path.stem for path in (HYDROGEN / "_c").glob("*.p*")} - {"__init__"} == set(ROOMS)


def test_no_folder_is_called_like_the_compiled_module():
    assert not (HYDROGEN / "_core").exists()


PYTHON_ROOMS = sorted(path.stem for path in (HYDROGEN / "_py").glob("*.py") if path.stem != "__init__")


def test_the_python_engine_has_the_same_rooms():
    assert set(ROOMS) <= set(PYTHON_ROOMS)


@pytest.mark.parametrize("room", PYTHON_ROOMS)
def test_a_python_room_names_only_rooms_before_it_and_the_facade_s_own(room):
    named = imports(HYDROGEN / "_py" / f"{room}.py")
    rooms = {name.rpartition(".")[2] for name in named if name.startswith("hydrogen._py.")}
    # In the Python engine `loop` starts the threads of the last two rooms, in the compiled one `_core` does: there `loop` is the last.
    order = [name for name in ROOMS if name not in ("loop", "acceptor", "timekeeper")] + ["acceptor", "timekeeper", "loop"]
    if room in order:
        assert not rooms & set(order[order.index(room) :])
    others = {name.split(".")[1] for name in named if not name.startswith("hydrogen._py.")}
    assert others <= FACADE


def test_the_python_rooms_form_no_circle():
    graph = {
        room: {name.rpartition(".")[2] for name in imports(HYDROGEN / "_py" / f"{room}.py") if name.startswith("hydrogen._py.")}
        for room in PYTHON_ROOMS
    }
    done = []
    while len(done) < len(graph):
        ready = [room for room in graph if room not in done and graph[room] <= set(done)]
        assert ready, f"a circle among {set(graph) - set(done)}"
        done += ready


@pytest.mark.parametrize("module", sorted(FACADE))
def test_the_facade_below_the_engines_names_no_engine(module):
    named = {name.split(".")[1] for name in imports(HYDROGEN / f"{module}.py")}
    assert not named & {"_core", "_py", "_c", "backend", "server", "perf"}


def test_only_backend_knows_that_there_are_two_engines():
    for path in HYDROGEN.rglob("*.py"):
        if path.parent.name == "_py" or path.name == "backend.py":
            continue
        assert not {name for name in imports(path) if name.startswith(("hydrogen._core", "hydrogen._py"))}, path


def test_backend_does_not_name_what_is_above_it():
    named = {name.split(".")[1] for name in imports(HYDROGEN / "backend.py")}
    assert not named & {"server", "perf"}


def test_framing_never_sees_an_fd():
    for path in (HYDROGEN / "frame.py", HYDROGEN / "_py" / "framing.py"):
        tree = ast.parse(path.read_text())
        named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not named & {"os", "socket", "select"}, path
    assert not cimports(HYDROGEN / "_c" / "framing.pxd") & {"sys", "poller"}


def test_imports_is_no_blind_eye(tmp_path):
    """The tool of the tests above, on a file that breaks the rules."""
    path = tmp_path / "bad.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hydrogen.server import Server\n"
        "import hydrogen.backend\nfrom hydrogen import server\nfrom hydrogen._py import loop\nfrom hydrogen.config import Config\n"
    )
    assert imports(path) == {"hydrogen.backend", "hydrogen.server", "hydrogen._py.loop", "hydrogen.config"}
    bad = tmp_path / "bad.pxd"
    bad.write_text("from hydrogen._c.loop cimport loop_t\nfrom hydrogen._c cimport slab\n")
    assert cimports(bad) == {"loop", "slab"}
