"""Which engine is taken, and what is said when it cannot be had. Each in a process of its own: the
choice is made once.
"""

import pytest
from support import child, finish

import hydrogen
from hydrogen import backend

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "hydrogen._core":
            raise ImportError("libmissing.so: cannot open shared object file")

sys.meta_path.insert(0, Blocker())
"""

REPORT = """
import logging
import hydrogen
from support import Echo

class List(logging.Handler):
    def emit(self, record):
        print(record.levelname, record.name, record.getMessage())

logging.getLogger("hydrogen").addHandler(List())

def try_(what):
    try:
        print(what())
    except Exception as error:
        print(type(error).__name__, isinstance(error, (ImportError, ValueError)), error)
"""


def lines(code, **environment):
    """What `code` prints in a process of its own."""
    out, _ = finish(child(REPORT + code, **environment), 0)
    return out.splitlines()


@pytest.mark.clause("E1", "E5")
def test_the_environment_names_the_default_engine(engine):
    code = "print(hydrogen.engine); print(hydrogen.Server(Echo()).engine)"
    assert lines(code, HYDROGEN_ENGINE=engine) == [engine, engine]


@pytest.mark.clause("E2")
def test_the_argument_overrides_the_environment(engine):
    code = f"print(hydrogen.Server(Echo(), engine={engine!r}).engine)"
    assert lines(code, HYDROGEN_ENGINE="python") == [engine]


@pytest.mark.clause("E1")
def test_another_name_in_the_environment_is_refused():
    code = "try_(lambda: hydrogen.engine); try_(lambda: hydrogen.Server(Echo()).engine)"
    refusal = "ValueError True HYDROGEN_ENGINE: must be one of compiled, python, auto, not 'rust'"
    assert lines(code, HYDROGEN_ENGINE="rust") == [refusal, refusal]


@pytest.mark.clause("E2")
def test_another_name_as_argument_is_refused():
    with pytest.raises(
        ValueError, match="engine: must be one of compiled, python, auto, not 'rust'"
    ):
        backend.engine_class("rust")


@pytest.mark.clause("E3")
def test_the_compiled_engine_that_cannot_be_imported_raises_with_the_reason():
    code = """
try_(lambda: hydrogen.Server(Echo(), engine="compiled"))
try_(lambda: hydrogen.serve(Echo(), port=0, engine="compiled"))
"""
    reason = "the compiled engine cannot be imported: libmissing.so: cannot open shared object file"
    assert lines(BLOCKED + code, HYDROGEN_ENGINE="auto") == [f"EngineUnavailable True {reason}"] * 2


@pytest.mark.clause("E3", "E1")
def test_the_compiled_engine_asked_for_by_the_environment_raises_with_the_reason():
    code = "try_(lambda: hydrogen.engine); try_(lambda: hydrogen.Server(Echo()))"
    reason = "the compiled engine cannot be imported: libmissing.so: cannot open shared object file"
    assert (
        lines(BLOCKED + code, HYDROGEN_ENGINE="compiled")
        == [f"EngineUnavailable True {reason}"] * 2
    )


@pytest.mark.clause("E4", "E5")
@pytest.mark.parametrize("environment", [{"HYDROGEN_ENGINE": "auto"}, {}], ids=["auto", "unset"])
def test_the_automatic_choice_falls_back_and_says_so_once_with_the_reason(environment, monkeypatch):
    monkeypatch.delenv("HYDROGEN_ENGINE", raising=False)
    code = """
print(hydrogen.engine)
print(hydrogen.Server(Echo()).engine)
print(hydrogen.Server(Echo(), engine="auto").engine)
with hydrogen.serve(Echo(), port=0, max_threads=2) as server:
    print(server.engine)
"""
    warning, *engines = lines(BLOCKED + code, **environment)
    assert warning.startswith("WARNING hydrogen ")
    assert "libmissing.so: cannot open shared object file" in warning
    assert engines == ["python"] * 4


def test_the_python_engine_asked_for_is_taken_without_a_word():
    code = "print(hydrogen.engine)"
    assert lines(BLOCKED + code, HYDROGEN_ENGINE="python") == ["python"]


def test_neither_engine_is_loaded_by_importing_hydrogen():
    code = (
        "import sys; print([name for name in sys.modules if name.startswith(('hydrogen._c', "
        "'hydrogen._py'))])"
    )
    assert lines(code) == ["[]"]


def test_what_the_module_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hydrogen.nonsense


def test_the_public_names_are_there_and_documented():
    for name in hydrogen.__all__:
        value = getattr(hydrogen, name)
        assert name == "engine" or value.__doc__, name


def test_both_engines_fulfil_the_protocol(engine):
    name, made = backend.engine_class(engine)
    assert name == engine
    for method in vars(backend.Engine):
        if not method.startswith("_"):
            assert callable(getattr(made, method)), method
