"""The user's guide and the README: every block of Python in them runs, on both engines, and what the guide is to explain is in it.

A block is a program of its own. It runs in an empty folder (with the certificates that the guide says how to make), finishes by itself,
and logs no error; one whose fence says `logs` must log one. What serves for ever is begun and stopped here: `hydrogen.begin`, and in the
README a wait for sixty seconds, are replaced by a client that talks to the server.
"""

import dataclasses
import functools
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import PATIENCE, ROOT

import hydrogen
import hydrogen.__main__
import hydrogen.perf.__main__

GUIDE = ROOT / "docs" / "guide.md"
README = ROOT / "README.md"


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    info: str
    heading: str
    text: str

    def __str__(self):
        return f"{self.path.name}:{self.line} {self.heading}"


def blocks_of(path):
    """The fenced blocks of a document, in order."""
    found, heading, opened = [], "", None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if opened is None and (fence := re.fullmatch(r"```(.*)", line)):
            opened, lines = (number, fence[1]), []
        elif opened is not None and line == "```":
            found.append(Block(path, opened[0], opened[1], heading, "\n".join(lines)))
            opened = None
        elif opened is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert opened is None, f"{path}:{opened}"
    return found


def python_of(path):
    """The blocks of Python, as parameters of a test."""
    return pytest.mark.parametrize("block", [block for block in blocks_of(path) if block.info.split()[:1] == ["python"]], ids=str)


@functools.cache
def certificates():
    """The files that the guide's commands of openssl make, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks_of(GUIDE):
            if "openssl req" in block.text:
                subprocess.run(["sh", "-e", "-c", block.text], cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def run(block):
    """Run a block; its lines are those of the document, for who reads a traceback."""
    exec(compile("\n" * block.line + block.text, str(block.path), "exec"), {"__name__": "__main__"})


def talk_to(server):
    """A message, and an answer that has it in it."""
    with hydrogen.connect(server.address, framing=server.config.builder, timeout=PATIENCE) as client:
        client.send(b"hello")
        assert b"hello" in client.recv()


@pytest.fixture
def on_engine(engine, monkeypatch, tmp_path):
    """The engine is the default one, and the current folder is for the block alone."""
    monkeypatch.setenv("HYDROGEN_ENGINE", engine)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def begun(on_engine, monkeypatch):
    """`hydrogen.begin` finishes by itself; holds the handlers that it was called with."""
    handlers = []

    def begin(handler, config):
        handlers.append(handler)
        with hydrogen.serve(handler, dataclasses.replace(config, port=0)) as server:
            talk_to(server)
            return server.stop()

    monkeypatch.setattr(hydrogen, "begin", begin)
    return handlers


# ---------------------------------------------------------------------------------------------------- what runs


@python_of(GUIDE)
def test_guide_block(block, begun, error_log, tmp_path):
    for name, data in certificates().items() if ".pem" in block.text else ():
        (tmp_path / name).write_bytes(data)
    run(block)
    logged = [record.getMessage() for record in error_log()]
    assert bool(logged) == ("logs" in block.info.split()), logged
    assert bool(begun) == ("hydrogen.begin(" in block.text)


@python_of(README)
def test_readme_block(block, begun, monkeypatch):
    talks = []

    def wait(server, timeout):
        talks.append(timeout)
        talk_to(server)
        return False

    serve = hydrogen.serve
    monkeypatch.setattr(hydrogen, "serve", lambda handler, config=None, **options: serve(handler, config, **{**options, "port": 0}))
    monkeypatch.setattr(hydrogen.Server, "wait", wait)
    run(block)
    assert bool(talks) == ("server.wait(" in block.text)
    assert bool(begun) == ("hydrogen.begin(" in block.text)


def test_the_guides_commands_are_taken_by_the_command_line():
    seen = set()
    for block in blocks_of(GUIDE):
        for line in block.text.replace("\\\n", "").splitlines() if block.info == "sh" else ():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                assert words.pop(0).startswith("HYDROGEN_ENGINE=")
            if words[:2] != ["python", "-m"]:
                continue
            parser = {"hydrogen": hydrogen.__main__.parser, "hydrogen.perf": hydrogen.perf.__main__.parser}[words[2]]()
            parser.parse_args(words[3:])
            seen.update(words[2:4])
    assert seen >= {"hydrogen", "echo", "run", "hydrogen.perf"}


# ---------------------------------------------------------------------------------------------------- what is explained


def public(kind):
    """What a class offers its users."""
    return {name for name in vars(kind) if not name.startswith("_")}


NAMES = {
    "names": set(hydrogen.__all__),
    "callbacks": {name for name in public(hydrogen.Handler) if name.startswith("on_")},
    "Config": {field.name for field in dataclasses.fields(hydrogen.Config) if field.init},
    "HydrogenSocket": public(hydrogen.HydrogenSocket),
    "Server": public(hydrogen.Server),
    "Client": public(hydrogen.Client),
    "Stream": public(hydrogen.Stream),
    "Plain": {"nb_recv", "nb_send", "b_recv", "b_send", "handshake"},
    "Frame": public(hydrogen.Frame) | public(hydrogen.FrameBuilder),
    "StopReport": set(hydrogen.StopReport.__dataclass_fields__),
}


@pytest.mark.parametrize("of", NAMES)
def test_the_guide_speaks_of_every_public_name(of):
    text = GUIDE.read_text()
    missing = [name for name in sorted(NAMES[of]) if not re.search(rf"(?<!\w){name}(?!\w)", text)]
    assert missing == []


BUILDERS = [name for name in hydrogen.__all__ if name.endswith("FrameBuilder") and name != "FrameBuilder"]


def test_each_framing_has_a_row_and_a_block():
    text = GUIDE.read_text()
    for name in BUILDERS:
        assert re.search(rf"^\| `{name}", text, re.MULTILINE), f"no row of {name}"
        assert [block for block in blocks_of(GUIDE) if name in block.heading and block.info == "python"], f"no block of {name}"


def test_the_guide_names_examples_and_files_that_exist():
    text = GUIDE.read_text()
    named = set(re.findall(r"\.\./([\w./]+)", text))
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} <= named


def test_the_guides_links_to_its_own_chapters_lead_somewhere():
    text = GUIDE.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", text) if link not in anchors] == []
