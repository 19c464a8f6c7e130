"""The modules of the compiled engine: cimports point one way only, names say where they are
defined, C knows no Python.

By grep: the rules are about the source.
"""

import builtins
import re

import pytest
from support import ROOT

C = ROOT / "hydrogen" / "_c"

ORDER = [
    "expect",
    "atomic",
    "kernel",
    "lock",
    "slab",
    "addresses",
    "buffer",
    "head",
    "framing",
    "websocket",
    "poller",
    "constants",
    "structs",
    "mailbox",
    "counters",
    "connection",
    "output",
    "waiting",
    "adapter",
    "messages",
    "input",
    "closing",
    "queues",
    "deadlines",
    "flush",
    "keepalive",
    "step",
    "broadcast",
    "listeners",
    "acceptor",
    "loop",
    "worker",
    "monitor",
]
"""Lowest first: a module names only those before it."""

ENGINE = ROOT / "hydrogen" / "_engine"

ENGINE_ORDER = [
    "compat",
    "references",
    "names",
    "statistics",
    "ending",
    "callbacks",
    "appending",
    "streams",
    "sessions",
    "sending",
    "handshake",
    "tls",
    "builders",
    "opening",
    "finishing",
    "control",
    "dispatch",
    "broadcast",
]
"""The same of the modules that run Python."""

PREFIXES = {
    "atomic": {"atomic", "relaxed"},
    "lock": {"lock", "cond"},
    "buffer": {"block", "pool", "queue", "shared"},
}
"""How functions begin, where that is not the name of their module."""

MODULES = {
    path.stem: path.read_text() for path in sorted(C.glob("*.pxd")) if path.stem != "__init__"
}


ENGINE_MODULES = {
    path.stem: path.read_text() for path in sorted(ENGINE.glob("*.pxd")) if path.stem != "__init__"
}


def cimports(text):
    """The modules that a .pxd or .pyx file names."""
    return set(re.findall(r"^\s*(?:from|cimport)\s+hydrogen\._c\.(\w+)", text, re.M)) | set(
        re.findall(r"^\s*from\s+hydrogen\._c\s+cimport\s+(\w+)", text, re.M)
    )


def functions(text):
    """The functions that a .pxd file defines, or declares of its header."""
    return set(re.findall(r"^cdef inline [^(]*?(\w+)\(", text, re.M)) | set(
        re.findall(r"^    (?:bint|int|u?int\d+_t|void)\s+\*?(\w+)\(", text, re.M)
    )


def test_every_module_has_its_place_in_the_order():
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_names_only_those_before_it(module):
    assert cimports(MODULES[module]) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("module", ORDER)
def test_the_prefix_of_a_function_is_the_name_of_its_module(module):
    foreign = {"epoll_create1", "epoll_ctl", "epoll_wait", "pthread_join"}
    prefixes = PREFIXES.get(module, {module})
    assert {
        name for name in functions(MODULES[module]) - foreign if name.split("_")[0] not in prefixes
    } == set()


@pytest.mark.parametrize("module", ORDER)
def test_a_module_fits_a_head(module):
    assert len(MODULES[module].splitlines()) <= 400


@pytest.mark.parametrize("module", ORDER)
def test_a_c_module_cannot_name_python(module):
    code = re.sub(r'""".*?"""', "", MODULES[module], flags=re.S)
    code = re.sub(r"#.*", "", code)
    assert not re.search(
        r"\b(cpython|PyObject|Python\.h|with gil|Py_\w+|PyGILState\w*|PyMem_\w+)\b", code
    )
    allowed = r"^\s*(import|from\s+(?!hydrogen\._c\b|libc\b|posix\b))\b"
    assert not re.search(allowed, code, re.M), "only libc, posix and the modules"
    for line in code.splitlines():
        if re.match(r"\s*cdef inline\b.*\)\s*\S*.*:$", line):
            assert "noexcept nogil" in line, line


def test_every_module_that_runs_python_has_its_place_in_the_order():
    assert sorted(ENGINE_ORDER) == sorted(ENGINE_MODULES)


@pytest.mark.parametrize("module", ENGINE_ORDER)
def test_a_module_that_runs_python_names_only_those_before_it(module):
    named = re.findall(r"^from hydrogen\._engine\.(\w+) cimport", ENGINE_MODULES[module], re.M)
    assert set(named) <= set(ENGINE_ORDER[: ENGINE_ORDER.index(module)])


@pytest.mark.parametrize("module", ENGINE_ORDER)
def test_its_functions_begin_with_its_name(module):
    assert {
        name for name in functions(ENGINE_MODULES[module]) if name.split("_")[0] != module
    } == set()


def test_the_python_names_that_these_modules_share_are_set_in_the_core():
    """They are None where it is forgotten: a .pxd file cannot import."""
    declared = re.findall(
        r"^cdef object (.*)$", (ROOT / "hydrogen" / "_core.pxd").read_text(), re.M
    )
    shared = ", ".join(declared).split(", ")
    core = (ROOT / "hydrogen" / "_core.pyx").read_text()
    imported = set(
        re.findall(r"\w+", " ".join(re.findall(r"^(?:from \S+ )?import (.*)$", core, re.M)))
    )
    assert set(shared) <= imported | set(re.findall(r"^(\w+) = ", core, re.M))
    assert all(
        any(re.search(rf"\b{name}\b", text) for text in ENGINE_MODULES.values()) for name in shared
    )


def returns_while_catching(text):
    """The numbers of the lines that return from within an except clause."""
    found, clause = [], None
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if clause is not None and line.strip() and indent <= clause:
            clause = None
        if clause is None and re.match(r"\s*except\b.*:", line):
            clause = indent
        if clause is not None and re.search(r"(^|:)\s*return\b", line):
            found.append(number)
    return found


@pytest.mark.parametrize(
    "path",
    [*sorted(ENGINE.glob("*.pxd")), *sorted(ENGINE.parent.glob("_*.pyx"))],
    ids=lambda path: path.name,
)
def test_nothing_returns_from_an_except_clause(path):
    """Cython (3.3) drops the traceback there without asking whether there is one; without memory
    there is none, and the process crashes.
    """
    assert returns_while_catching(path.read_text()) == []


def exceptions_named(text):
    """What the except clauses of a .pxd or .pyx file name."""
    clauses = re.findall(r"^\s*except\b(?! \??-?\d)(.*?)(?: as \w+)?:", text, re.M)
    return {name for names in clauses for name in re.split(r"[(),\s]+", names)} - {""}


@pytest.mark.parametrize(
    "path",
    [*sorted(ENGINE.glob("*.pxd")), *sorted(ENGINE.parent.glob("_*.pyx"))],
    ids=lambda path: path.name,
)
def test_except_clauses_name_exceptions_of_python_only(path):
    """CPython (3.11) loses an exception when there is no memory for the frame it came through. That
    none is raised is no match for a name that Cython knows; comparing it with what it has to look
    up crashes the process."""
    assert {
        name
        for name in exceptions_named(path.read_text())
        if not issubclass(getattr(builtins, name, object), BaseException)
    } == set()


def test_architecture_prints_the_tables_of_a_step():
    document = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    printed = re.search(r"<!-- step.pxd -->\n(.*)\n<!-- /step.pxd -->", document, re.S)[1]
    docstring = MODULES["step"].split('"""')[1]
    assert printed == docstring[docstring.index("| bit |") :].strip()


def test_framing_never_sees_an_fd():
    assert not cimports(MODULES["framing"]) & {"kernel", "poller"}


def test_the_tools_here_see_what_they_look_for():
    bad = (
        "from hydrogen._c.loop cimport loop_t\nfrom hydrogen._c cimport slab\ncdef inline int "
        "slab_one(int a) noexcept nogil:\n"
    )
    assert cimports(bad) == {"loop", "slab"}
    assert functions(bad) == {"slab_one"}
    caught = (
        "try:\n    pass\nexcept Exception as error:\n    if error:\n        return 1\nreturn 2\n"
    )
    assert returns_while_catching(caught) == [5]
    assert exceptions_named(caught + "    except (a.B, ValueError):\n") == {
        "Exception",
        "a.B",
        "ValueError",
    }
