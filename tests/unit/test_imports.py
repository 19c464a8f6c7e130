"""Imports point one way only. By grep: the rule is about the source. For the compiled engine:
test_compiled_modules.py.
"""

import ast

import pytest
from support import ROOT

HYDROGEN = ROOT / "hydrogen"

MODULES = ["kernel", "slab", "buffer", "framing", "poller", "connection", "loop"]
"""Lowest first. There may be more; they count as part of those that name them."""

FACADE = {
    "config",
    "errors",
    "handler",
    "stream",
    "plain",
    "secure",
    "frame",
    "codec",
    "framings",
    "connection",
    "report",
    "listener",
    "tls",
    "client",
    "locks",
    "proxy",
    "guard",
    "checks",
    "http",
    "handshake",
    "websocket",
    "deflate",
}


def imports(path):
    """The modules of hydrogen that a Python file imports, but for those it imports for its types
    only.
    """
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
                found |= (
                    {f"{node.module}.{alias.name}" for alias in node.names}
                    if node.module in packages
                    else {node.module}
                )
    return found


PYTHON_MODULES = {
    path.stem: {
        name.rpartition(".")[2] for name in imports(path) if name.startswith("hydrogen._py.")
    }
    for path in sorted((HYDROGEN / "_py").glob("*.py"))
    if path.stem != "__init__"
}
"""Module -> the modules that it names, of the Python engine."""


def reached(graph, module):
    """All modules that `module` names, itself or through others."""
    found, todo = set(), set(graph[module])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo |= graph[name]
    return found


def test_the_python_engine_has_the_modules_of_the_design():
    assert set(MODULES) <= set(PYTHON_MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_names_only_those_before_it(module):
    assert not reached(PYTHON_MODULES, module) & set(MODULES[MODULES.index(module) :])


def test_the_modules_form_no_circle():
    assert [module for module in PYTHON_MODULES if module in reached(PYTHON_MODULES, module)] == []


def test_no_folder_is_called_like_the_compiled_module():
    assert not (HYDROGEN / "_core").exists()


@pytest.mark.parametrize("module", PYTHON_MODULES)
def test_a_python_module_names_nothing_of_the_facade_that_is_above_the_engines(module):
    named = imports(HYDROGEN / "_py" / f"{module}.py")
    assert {name.split(".")[1] for name in named if not name.startswith("hydrogen._py.")} <= FACADE


@pytest.mark.parametrize("module", sorted(FACADE))
def test_the_facade_below_the_engines_names_no_engine(module):
    named = {name.split(".")[1] for name in imports(HYDROGEN / f"{module}.py")}
    assert not named & {"_core", "_codec", "_py", "_c", "backend", "server", "perf"}


def test_only_backend_knows_that_there_are_two_engines():
    for path in HYDROGEN.rglob("*.py"):
        if path.parent.name == "_py" or path.name == "backend.py":
            continue
        assert not {
            name
            for name in imports(path)
            if name.startswith(("hydrogen._core", "hydrogen._codec", "hydrogen._py"))
        }, path


def test_backend_does_not_name_what_is_above_it():
    named = {name.split(".")[1] for name in imports(HYDROGEN / "backend.py")}
    assert not named & {"server", "perf"}


def test_nothing_names_contrib_or_testing_and_contrib_names_what_its_users_could():
    for path in HYDROGEN.rglob("*.py"):
        named = {name.split(".")[1] for name in imports(path)}
        if path.parent.name == "contrib":
            assert named <= FACADE | {"server"}, path
        else:
            assert not named & {"contrib", "testing"}, path
            assert "prometheus_client" not in path.read_text(), path


def test_framing_never_sees_an_fd():
    for path in (
        HYDROGEN / "frame.py",
        HYDROGEN / "framings.py",
        HYDROGEN / "codec.py",
        HYDROGEN / "tls.py",
        HYDROGEN / "proxy.py",
        HYDROGEN / "_py" / "framing.py",
    ):
        tree = ast.parse(path.read_text())
        named = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not named & {"os", "socket", "select"}, path


def test_imports_is_no_blind_eye(tmp_path):
    """The tool of the tests above, on a file that breaks the rules."""
    path = tmp_path / "bad.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hydrogen.server import "
        "Server\n"
        "import hydrogen.backend\nfrom hydrogen import server\nfrom hydrogen._py import loop\nfrom "
        "hydrogen.config import Config\n"
    )
    assert imports(path) == {
        "hydrogen.backend",
        "hydrogen.server",
        "hydrogen._py.loop",
        "hydrogen.config",
    }
