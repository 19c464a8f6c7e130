"""The pages of docs/ and the README: every block of Python in them runs, on both engines, and what
they are to explain is in them.

A block is a program of its own. It runs in an empty folder (with the certificates that the page
about TLS says how to make), finishes by itself, and logs no error; one whose fence says `logs` must
log one. What serves for ever is begun and stopped here: `hydrogen.begin`, and in the README a wait
for sixty seconds, are replaced by a client that talks to the server.
"""

import contextlib
import dataclasses
import functools
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import websockets.exceptions
import websockets.sync.client
from programs import path_of
from support import PATIENCE, ROOT, child, finish, wait_until

import hydrogen
import hydrogen.__main__
import hydrogen.perf.__main__

DOCS = ROOT / "docs"
GENERATED = tuple(DOCS / f"{name}.md" for name in ("performance", "states", "states-websocket"))
"""Written by programs, which have tests of their own."""

PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path not in GENERATED]
GUIDE = [path for path in PAGES if path.name != "ARCHITECTURE.md"]
"""What is written for users."""

FRAMING, TLS, COOKBOOK = (
    DOCS / "reference" / "framing.md",
    DOCS / "how-to" / "tls.md",
    DOCS / "cookbook.md",
)
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


def python_of(*paths):
    """The blocks of Python, as parameters of a test."""
    blocks = [
        block for path in paths for block in blocks_of(path) if block.info.split()[:1] == ["python"]
    ]
    return pytest.mark.parametrize("block", blocks, ids=str)


@functools.cache
def certificates():
    """The files that the guide's commands of openssl make, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks_of(TLS):
            if "openssl req" in block.text:
                path_of("openssl")
                subprocess.run(
                    ["sh", "-e", "-c", block.text],
                    cwd=folder,
                    check=True,
                    capture_output=True,
                    timeout=PATIENCE,
                )
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def run(block):
    """Run a block; its lines are those of the document, for who reads a traceback."""
    exec(compile("\n" * block.line + block.text, str(block.path), "exec"), {"__name__": "__main__"})


def talk_to(server):
    """A message, and an answer that has it in it."""
    with hydrogen.connect(
        server.address, framing=server.config.builder, timeout=PATIENCE
    ) as client:
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


# ---------------------------------------------------------------------------------------- what runs


@python_of(*GUIDE)
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
    monkeypatch.setattr(
        hydrogen,
        "serve",
        lambda handler, config=None, **options: serve(handler, config, **{**options, "port": 0}),
    )
    monkeypatch.setattr(hydrogen.Server, "wait", wait)
    run(block)
    assert bool(talks) == ("server.wait(" in block.text)
    assert bool(begun) == ("hydrogen.begin(" in block.text)


def test_the_guides_commands_are_taken_by_the_command_line():
    seen = set()
    for block in [block for path in GUIDE for block in blocks_of(path)]:
        for line in block.text.replace("\\\n", "").splitlines() if block.info == "sh" else ():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                assert words.pop(0).startswith("HYDROGEN_ENGINE=")
            if words[:2] != ["python", "-m"]:
                continue
            parser = {
                "hydrogen": hydrogen.__main__.parser,
                "hydrogen.perf": hydrogen.perf.__main__.parser,
            }[words[2]]()
            parser.parse_args(words[3:])
            seen.update(words[2:4])
    assert seen >= {"hydrogen", "echo", "run", "hydrogen.perf"}


# -------------------------------------------------------------------------------- what is explained


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
    "BroadcastReport": set(hydrogen.BroadcastReport.__dataclass_fields__),
    "ProxyHeader": set(hydrogen.ProxyHeader.__dataclass_fields__),
    "Stats": set(hydrogen.Stats.__dataclass_fields__) | public(hydrogen.Stats) | {"removed"},
    "Timer": public(hydrogen.Timer),
}


@pytest.mark.parametrize("of", NAMES)
def test_the_guides_speak_of_every_public_name(of):
    text = "".join(path.read_text() for path in GUIDE if path.stem != "api")
    missing = [name for name in sorted(NAMES[of]) if not re.search(rf"(?<!\w){name}(?!\w)", text)]
    assert missing == []


BUILDERS = [
    name for name in hydrogen.__all__ if name.endswith("FrameBuilder") and name != "FrameBuilder"
]


def test_each_framing_has_a_row_and_a_block():
    text = FRAMING.read_text()
    for name in BUILDERS:
        assert re.search(rf"^\| `{name}", text, re.MULTILINE), f"no row of {name}"
        assert [
            block
            for block in blocks_of(FRAMING)
            if name in block.heading and block.info == "python"
        ], f"no block of {name}"


def test_the_cookbook_shows_every_example():
    shown = re.findall(
        r"^```{literalinclude} \.\./examples/(.+)$", COOKBOOK.read_text(), re.MULTILINE
    )
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


LINKING = [
    *PAGES,
    *GENERATED,
    *ROOT.glob("*.md"),
    ROOT / "perf" / "README.md",
    ROOT / "proof" / "README.md",
]


@pytest.mark.parametrize("path", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(path):
    prose = re.sub(
        r"^```.*?^```$|`[^`\n]*`(?!\])", "", path.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    for file, _, link in (
        target.partition("#") for target in re.findall(r"\]\(([^)\s]+)\)", prose)
    ):
        if re.match("https?:", file):
            continue
        there = path.parent / file if file else path
        assert there.exists(), file
        if link:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert link in {
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            }, f"{file}#{link}"


@pytest.mark.parametrize(
    "path", [*GUIDE, README, ROOT / "CONTRIBUTING.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_lines_are_at_most_100_columns_wide(path):
    """But those of tables, and of files of other programs, which may have no place to break
    them.
    """
    other = {
        line
        for block in blocks_of(path)
        if block.info.split()[:1] not in (["python"], ["sh"])
        for line in block.text.splitlines()
    }
    wide = [
        line
        for line in path.read_text().splitlines()
        if len(line) > 100 and not line.startswith("|") and line not in other
    ]
    assert wide == []


# ------------------------------------------------------------------------- what other programs read


def block_of(info):
    """The text of the one block of all pages whose fence says that."""
    [text] = [block.text for path in GUIDE for block in blocks_of(path) if block.info == info]
    return text


HOST = "127.0.0.86"
BROWSER = "127.0.0.9"
"""Where only these programs listen: HAProxy goes on asking at a port whose server has ended, which
might be another's by then.
"""


def free_ports(count):
    """Ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [str(sock.getsockname()[1]) for sock in socks]


def command(line, engine):
    """A line of the guides that starts a server, started."""
    words = shlex.split(line, comments=True)
    assert words[:3] == ["python", "-m", "hydrogen"]
    code = "import runpy; runpy.run_module('hydrogen', run_name='__main__', alter_sys=True)"
    process = child(code, *words[3:], HYDROGEN_ENGINE=engine)
    assert process.stdout.readline().startswith("listening on ")
    return process


def ends(process):
    process.send_signal(signal.SIGTERM)
    finish(process, 0)


def says(address, line):
    """What is answered to a line; None when nothing is."""
    with (
        contextlib.suppress(OSError),
        hydrogen.connect(address, framing=hydrogen.LineFrameBuilder, timeout=PATIENCE) as client,
    ):
        client.send(line)
        return next(iter(client), None)


def test_haproxy_serves_by_the_configuration_of_the_guide_and_survives_a_stop(engine, tmp_path):
    [commands] = [
        block.text
        for path in GUIDE
        for block in blocks_of(path)
        if block.info == "sh" and "--framing line" in block.text and "--proxy" in block.text
    ]
    text = "\n".join([block_of("text haproxy"), commands.replace("\\\n", ""), ""])
    for given, free in zip(("13370", "13381", "13382"), free_ports(3), strict=True):
        assert given in text
        text = text.replace(f"127.0.0.1:{given}", f"{HOST}:{free}").replace(
            f"--port {given}", f"--addr {HOST} --port {free}"
        )
    config, lines = (
        text.split("\npython", 1)[0] + "\n",
        [f"python{line}" for line in text.split("\npython")[1:]],
    )
    (tmp_path / "haproxy.cfg").write_text(config)
    haproxy = path_of("haproxy")
    checked = subprocess.run(
        [haproxy, "-c", "-f", "haproxy.cfg"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    [port] = re.findall(rf"bind {HOST}:(\d+)", config)
    one, two = (command(line, engine) for line in lines)
    proxy = subprocess.Popen(
        [haproxy, "-db", "-f", "haproxy.cfg"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = (HOST, int(port))
        wait_until(lambda: says(address, b"hello") == b"hello", "it serves")
        ends(one)
        # redispatched, whether or not the check has seen it
        assert [says(address, b"hello") for _ in range(6)] == [b"hello"] * 6
        wait_until(
            lambda: "servers/one is DOWN" in proxy.stderr.readline(), "the check has seen it"
        )
        ends(two)
    finally:
        proxy.kill()
        proxy.communicate()


def test_the_chat_of_the_tutorial_is_served_by_haproxy_over_tls(engine, tmp_path, monkeypatch):
    blocks = blocks_of(DOCS / "tutorial-chat.md")
    program = next(block.text for block in blocks if block.info == "python")
    (tmp_path / "chat.py").write_text(program)
    path_of("openssl")
    [certificate] = [block.text for block in blocks if "openssl req" in block.text]
    subprocess.run(
        ["sh", "-e", "-c", certificate],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    config = block_of("text chat-haproxy")
    lines = [line for block in blocks for line in block.text.splitlines()]
    [line] = [line for line in lines if line.startswith("python") and "--proxy-protocol" in line]
    ports = dict(zip(("8000", "8080", "8443"), free_ports(3), strict=True))
    for given, free in ports.items():
        assert f"127.0.0.1:{given}" in config
        config = config.replace(f"127.0.0.1:{given}", f"{HOST}:{free}")
    (tmp_path / "haproxy.cfg").write_text(config + "\n")
    line = line.replace("--port 8000", f"--addr {HOST} --port {ports['8000']}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # behind that of `child`
    server = command(line, engine)
    proxy = subprocess.Popen(
        [path_of("haproxy"), "-db", "-f", "haproxy.cfg"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    trusting = ssl.create_default_context(cafile=tmp_path / "chat.pem")
    place = f"localhost:{ports['8443']}"

    def reached(port):
        return socket.create_connection((HOST, int(ports[port])), PATIENCE, (BROWSER, 0))

    def joined(origin=f"https://{place}"):
        """A client. The threads of this one share an SSL object, and 1 of 300 stand still before
        the request is sent: then another one is tried.
        """
        for _ in range(4):
            with contextlib.suppress(TimeoutError):
                return websockets.sync.client.connect(
                    f"wss://{place}/chat", sock=reached("8443"), ssl=trusting, origin=origin
                )
        raise AssertionError("no client has got through")

    def got(sock):
        with sock, contextlib.suppress(OSError):
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        return ""

    def page():
        with contextlib.suppress(OSError):
            return got(trusting.wrap_socket(reached("8443"), server_hostname="localhost"))
        return ""

    try:
        wait_until(lambda: "new WebSocket" in page(), "it serves")
        assert f"location: https://{place}/" in got(reached("8080"))
        with joined() as one:
            assert one.recv(PATIENCE) == f"{BROWSER} has come"
            with joined() as two:
                assert [each.recv(PATIENCE) for each in (one, two)] == [f"{BROWSER} has come"] * 2
                two.send("hello")
                assert [each.recv(PATIENCE) for each in (one, two)] == [f"{BROWSER}: hello"] * 2
            assert one.recv(PATIENCE).endswith(" has left")
            with pytest.raises(websockets.exceptions.InvalidStatus, match="403"):
                joined("https://elsewhere.example")
    finally:
        proxy.kill()
        proxy.communicate()
    ends(server)


def test_systemd_understands_the_units_of_the_guide(tmp_path):
    for kind in ("socket", "service"):
        text = block_of(f"ini {kind}").replace("/srv/echo/.venv/bin/python", sys.executable)
        (tmp_path / f"echo.{kind}").write_text(text)
    files = [str(tmp_path / "echo.service"), str(tmp_path / "echo.socket")]
    checked = subprocess.run(
        [path_of("systemd-analyze"), "verify", *files],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_command_line_of_the_unit_is_taken():
    [line] = re.findall(r"^ExecStart=\S+ -m hydrogen (.+)$", block_of("ini service"), re.MULTILINE)
    assert hydrogen.__main__.parser().parse_args(shlex.split(line)).systemd


def test_systemd_socket_activate_starts_a_server_with_the_first_connection(engine):
    text = "\n".join(path.read_text() for path in GUIDE)
    [line] = re.findall(r"^systemd-socket-activate (.+)$", text, re.MULTILINE)
    [port] = free_ports(1)
    words = shlex.split(
        line.replace("127.0.0.1:1337", f"{HOST}:{port}").replace(" python ", f" {sys.executable} ")
    )
    env = {
        **os.environ,
        "HYDROGEN_ENGINE": engine,
        "PYTHONPATH": str(Path(hydrogen.__file__).parent.parent),
    }
    activator = [
        path_of("systemd-socket-activate"),
        "--setenv=PYTHONPATH",
        "--setenv=HYDROGEN_ENGINE",
        *words,
    ]
    process = subprocess.Popen(
        activator, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert "Listening on" in process.stderr.readline()
        assert says((HOST, int(port)), b"hello") == b"hello"
        process.send_signal(signal.SIGTERM)  # it has become the server
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_the_command_of_the_container_is_taken():
    [words] = re.findall(r"^CMD (.+)$", block_of("dockerfile"), re.MULTILINE)
    assert hydrogen.__main__.parser().parse_args(json.loads(words)[3:]).addr == ["0.0.0.0"]
