"""One of Python's allocations fails, at each callback path, at its n-th allocation for each n.

The server is a process of its own (`faults/nomemory.py`) that lives through all n, each with a new
connection. Whatever fails: the connection ends or goes on, no connection stays owned for ever,
those who had nothing to do with it are served, as are those who come later; no thread dies; the
stop ends, and its report adds up. No deadline is set that could come to the rescue.

A CPython without `_testcapi` cannot make an allocation fail. Then these tests fail, and say so.

HYDROGEN_NOMEMORY: up to which n, 40 by default; 200 reaches the end of each path.
"""

import contextlib
import itertools
import json
import os
import signal
import threading

import certificates
import proxy_headers
import pytest
from support import PATIENCE, Client, child, finish, wait_until

HIGHEST = int(os.environ.get("HYDROGEN_NOMEMORY") or 40)
STAYING = 2

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # CPython's client (3.11) leaves its socket to the collector where the connection is reset
    # before the handshake.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
    ),
]


class Starving:
    """The server process, and those who stay connected to it from the first failure to the last."""

    def __init__(self, engine, folder, transport, opening, operation, catches):
        self.is_secure = transport == "tls" or opening == "secure"
        self.transport, self.opening = transport, opening
        self.accepted = 0
        arguments = engine, transport, opening, operation, "catches" if catches else "raises"
        arguments += str(certificates.SERVER), str(folder / "socket")
        self._process = child("from faults import nomemory; nomemory.main()", *arguments)
        self._errors = []
        # Read as it comes, or a server that says much would wait for the pipe.
        self._reader = threading.Thread(
            target=lambda: self._errors.extend(self._process.stderr), daemon=True
        )
        self._reader.start()
        address = self._answer()
        self.address = tuple(address) if isinstance(address, list) else address
        self.staying = [Peer(self) for _ in range(STAYING)]
        self.check_on_others()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._reader.join(PATIENCE)
            status = self._process.wait(PATIENCE)
            raise AssertionError(
                f"the server process ended with {status}: {''.join(self._errors)[-6000:]}"
            )
        return json.loads(line) if line != "\n" else None

    def order(self, text):
        """Have it done."""
        self._process.stdin.write(text.ljust(16))
        self._process.stdin.flush()
        return self._answer()

    def check_on_others(self):
        """Those who stay are served, as are those who come; nobody else is there."""
        for peer in self.staying:
            peer.ask()
        with Peer(self) as witness:
            witness.ask()
            witness.close()
        wait_until(self._is_settled, "all others removed", PATIENCE)

    def _is_settled(self):
        connections, dead = self.order("connections")
        assert dead == [], dead
        return connections == len(self.staying)

    def stop(self):
        """Stop it, while those are connected who have stayed."""
        self._process.stdin.write("stop".ljust(16))
        self._process.stdin.flush()
        with contextlib.suppress(EOFError, OSError):
            for peer in self.staying:
                peer.read_until(())
        for peer in self.staying:
            peer.close()
        closed, aborted, abandoned, connections = self._answer()
        accepted, removed, queued = self._answer()
        called, threads = self._answer()
        assert (closed, aborted, abandoned, connections) == (len(self.staying), 0, 0, 0)
        assert accepted == removed == self.accepted
        assert queued == 0
        if self.opening not in ("bare", "bare, in frames", "keeps"):
            # The one allocation that failed may have been that of the call itself.
            assert accepted - HIGHEST - 1 <= called <= accepted
        assert [name for name in threads if name.startswith("hydrogen")] == []
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0, "".join(self._errors)[-6000:]
        self._reader.join(PATIENCE)

    def stacks(self):
        """Where the threads of the process are; it ends with that."""
        self._process.send_signal(signal.SIGABRT)
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return "".join(self._errors)[-8000:]

    def kill(self):
        """Whatever happened, leave nothing behind."""
        for peer in self.staying:
            peer.close()
        self._process.kill()
        self._reader.join(PATIENCE)


class Peer:
    """A client that says lines and reads lines; over TLS where the server speaks it.

    An end is an EOFError or an OSError; silence is an AssertionError.
    """

    numbers = itertools.count()

    def __init__(self, server):
        self.client = Client(server.address, receive_buffer=8192)
        self.sock = self.client.sock
        self.buffer = b""
        server.accepted += 1
        try:
            if server.transport == "proxy":
                self.send(proxy_headers.v1("127.0.0.9", "127.0.0.1"))
            if server.is_secure:
                self.sock = certificates.client_context().wrap_socket(
                    self.sock, server_hostname="localhost"
                )
        except BaseException as error:
            self.close()
            self._judge(error)
            raise

    @staticmethod
    def _judge(error):
        if isinstance(error, TimeoutError):
            raise AssertionError("neither served nor ended") from error

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as error:
            self._judge(error)
            raise

    def read_until(self, lines):
        """Read lines up to one of these, and return it."""
        while True:
            line, end, rest = self.buffer.partition(b"\n")
            if end:
                self.buffer = rest
                if line in lines:
                    return line
                continue
            try:
                part = self.sock.recv(65_536)
            except OSError as error:
                self._judge(error)
                raise
            if not part:
                raise EOFError
            self.buffer += part

    def ask(self):
        """Say a line that nobody else says, and hear it."""
        line = b"ask %d" % next(self.numbers)
        self.send(line + b"\n")
        self.read_until([line])

    def do(self):
        """Have the operation done."""
        self.send(b"do\n")
        return self.read_until([b"ok", b"no"])

    def finish(self):
        """End the sending side, and read until the end."""
        if self.sock is not self.client.sock:
            with contextlib.suppress(OSError):
                self.sock.unwrap()
            return
        self.client.finish()
        with contextlib.suppress(EOFError):
            self.read_until(())

    def close(self):
        self.sock.close()
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def starve(server, phase, end):
    """All n: what fails is something from `phase` on, which is "opening", "doing" or "ending"."""
    outcomes = []
    for at in range(HIGHEST + 1):
        outcome, peer = "goes on", None
        try:
            try:
                if phase == "opening":
                    server.order(f"arm {at}")
                peer = Peer(server)
                if phase == "doing":
                    peer.ask()
                    server.order(f"arm {at}")
                if phase == "ending":
                    peer.do()
                    server.order(f"arm {at}")
                else:
                    peer.do()
                    peer.ask()
                end(peer)
            except (EOFError, OSError) as error:
                outcome = f"ends: {type(error).__name__}"
            finally:
                if peer is not None:
                    peer.close()
            server.order("disarm")
            server.check_on_others()
        except BaseException as error:
            error.args = (
                f"allocation {at} failed, the connection {outcome}: {error}\n{server.stacks()}",
            )
            raise
        outcomes.append(outcome)
    return outcomes


ENDS = {
    "finish": Peer.finish,
    "reset": lambda peer: peer.client.reset() if peer.sock is peer.client.sock else peer.close(),
    "leave": Peer.close,
}


@pytest.fixture
def starving(engine, tmp_path):
    """Start a server process; it is ended whatever happens."""
    servers = []

    def starving(*arguments):
        servers.append(Starving(engine, tmp_path, *arguments))
        return servers[-1]

    yield starving
    for server in servers:
        server.kill()


@pytest.mark.parametrize("catches", [False, True], ids=["raises", "catches"])
@pytest.mark.parametrize(
    "operation",
    [
        "send", "send much", "send twenty", "drain", "pause", "pause for a timer", "user_data",
        "names", "broadcast", "connections",
        "stats", "call_later", "cancel",
    ],
)  # fmt: skip
def test_an_allocation_that_fails_around_a_callback_that_does_something_costs_no_other_connection(
    starving, operation, catches
):
    server = starving("tcp", "bare", operation, catches)
    starve(server, "doing", Peer.finish)
    server.stop()


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("operation", ["close", "abort", "raise"])
def test_an_allocation_that_fails_while_a_callback_ends_its_connection_leaves_it_ended(
    starving, operation, transport
):
    server = starving(transport, "attended", operation, False)
    starve(server, "doing", Peer.finish)
    server.stop()


@pytest.mark.parametrize(
    "opening", ["bare", "attended", "raises at the end", "plain", "secure", "stream"]
)
def test_an_allocation_that_fails_while_a_connection_opens_ends_it_or_lets_it_go_on(
    starving, opening
):
    server = starving("tcp", opening, "send", False)
    starve(server, "opening", Peer.finish)
    server.stop()


@pytest.mark.parametrize("opening", ["attended", "raises at the end", "stream"])
@pytest.mark.parametrize("end", ENDS)
def test_an_allocation_that_fails_while_a_connection_ends_leaves_nothing_of_it(
    starving, opening, end
):
    server = starving("tcp", opening, "send", False)
    starve(server, "ending", ENDS[end])
    server.stop()


@pytest.mark.parametrize("phase", ["opening", "doing", "ending"])
@pytest.mark.parametrize("transport", ["unix", "tls", "proxy", "builder"])
def test_an_allocation_that_fails_on_any_transport_ends_its_connection_or_lets_it_go_on(
    starving, transport, phase
):
    server = starving(transport, "attended", "send much", False)
    starve(server, phase, Peer.finish)
    server.stop()


@pytest.mark.parametrize("phase", ["opening", "doing"])
def test_an_allocation_that_fails_between_frames_of_a_built_in_builder_loses_none_in_silence(
    starving, phase
):
    server = starving("lines", "bare, in frames", "send much", True)
    starve(server, phase, Peer.finish)
    server.stop()


def test_an_allocation_that_fails_while_a_connection_is_refused_leaves_nothing_of_it(starving):
    server = starving("tcp", "refused", "send", False)
    for at in range(HIGHEST + 1):
        server.order("refuse 1")
        server.order(f"arm {at}")
        with contextlib.suppress(EOFError, OSError), Peer(server) as peer:
            peer.ask()
            raise AssertionError("it was to be refused")
        server.order("disarm")
        server.order("refuse 0")
        server.check_on_others()
    server.stop()


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
def test_an_allocation_that_fails_where_a_socket_has_to_be_made_loses_no_message(
    starving, transport
):
    server = starving(transport, "keeps", "send", False)
    starve(server, "doing", Peer.finish)
    server.stop()


@pytest.mark.parametrize("what", ["start", "stop"])
def test_an_allocation_that_fails_in_a_start_or_a_stop_leaves_nothing_behind(engine, what):
    code = f"from faults import nomemory; nomemory.cycles({engine!r}, {what!r}, {HIGHEST})"
    process = child(code)
    out, _ = finish(process)
    assert out == "done\n"
