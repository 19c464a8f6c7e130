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
from websocket_peers import (
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    closing,
    frame,
    head,
    ping,
    pong,
    text,
)

HIGHEST = int(os.environ.get("HYDROGEN_NOMEMORY") or 40)
STAYING = 2
LARGE = 300_000  # as in `faults/nomemory.py`, which cannot be imported here

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
        self.is_secure = transport in ("tls", "wss") or opening == "secure"
        self.transport, self.opening = transport, opening
        self.peer_class = WebSocketPeer if transport in ("websocket", "wss") else Peer
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
        self.staying = [self.peer() for _ in range(STAYING)]
        self.check_on_others()

    def peer(self):
        """A client more."""
        return self.peer_class(self)

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
        with self.peer() as witness:
            witness.ask()
            witness.close()
        wait_until(self._is_settled, "all others removed, with what was kept of them", PATIENCE)

    def _is_settled(self):
        connections, queued, dead = self.order("connections")
        assert dead == [], dead
        return connections == len(self.staying) and queued == 0

    def stop(self):
        """Stop it, while those are connected who have stayed."""
        self._process.stdin.write("stop".ljust(16))
        self._process.stdin.flush()
        for peer in self.staying:
            with contextlib.suppress(EOFError, OSError):
                peer.read_until(())
        for peer in self.staying:
            peer.check_stopped()
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

    def check_stopped(self):
        """It has ended as it should when the server stops."""

    def close(self):
        self.sock.close()
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class WebSocketPeer(Peer):
    """The same by WebSocket: what it says is masked text, and each frame that comes is checked.

    It answers pings and a CLOSE. An answer to its request that is no 101 is an end, too.
    """

    closed = None
    """The code that it was told."""

    def __init__(self, server):
        super().__init__(server)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self):
        self.send(head("Cookie: a=b", line="GET /chat HTTP/1.1"))
        while b"\r\n\r\n" not in self.buffer:
            self._receive()
        answer, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status = int(answer.split(b" ", 2)[1])
        if status != 101:
            assert status in (403, 500, 503), answer
            with contextlib.suppress(EOFError):
                while True:
                    self._receive()
            raise ConnectionRefusedError(f"refused with {status}")

    def _receive(self, least=0):
        """What comes; at least so much must be there then."""
        while True:
            if least and len(self.buffer) >= least:
                return
            try:
                part = self.sock.recv(65_536)
            except OSError as error:
                self._judge(error)
                raise
            if not part:
                raise EOFError
            self.buffer += part
            if not least:
                return

    def _frame(self):
        self._receive(2)
        first, length = self.buffer[:2]
        begin = 2
        if length > 125:
            begin = 4 if length == 126 else 10
            self._receive(begin)
            length = int.from_bytes(self.buffer[2:begin], "big")
        assert first & ~0x0F == FIN, f"the first byte of a frame is {first:#x}"
        self._receive(begin + length)
        payload = self.buffer[begin : begin + length]
        self.buffer = self.buffer[begin + length :]
        return first & 0x0F, payload

    def read_until(self, lines):
        while True:
            opcode, payload = self._frame()
            if opcode == PING:
                assert payload == b"who is there"
                self.send(pong(payload))
            elif opcode == CLOSE:
                self._check_close(payload)
            elif opcode == PONG:
                assert payload == b"and you?"
            else:
                self._check_message(payload)
            if payload in lines:
                return payload

    def _check_close(self, payload):
        """Answer it; after it nothing may come but the end."""
        assert self.closed is None, "it was closed twice"
        self.closed = int.from_bytes(payload[:2], "big")
        with contextlib.suppress(OSError):  # it may have been the answer
            self.send(frame(FIN | CLOSE, payload))

    def _check_message(self, payload):
        """Not torn, and none that was not sent."""
        assert self.closed is None, f"behind the CLOSE there came {payload[:100]}"
        if len(payload) > 100:
            assert payload == bytes(LARGE - 1) + b"\n"
        elif not payload.startswith(b"ask "):
            assert payload in (b"hello", b"ok", b"no", b"to all\n", b"pong", b"writable"), payload

    def ask(self):
        line = b"ask %d" % next(self.numbers)
        self.send(text(line.decode()))
        self.read_until([line])

    def do(self):
        self.send(text("do"))
        return self.read_until([b"ok", b"no"])

    def end_with(self, data, *codes):
        """Send it; what it is told must be one of these codes."""
        self.send(data)
        try:
            self.read_until(())
        finally:
            assert self.closed in (None, 1011, *codes)

    def finish(self):
        """Close, and read until the end."""
        self.end_with(closing(1000), 1000)

    def break_off(self):
        """Break the protocol."""
        self.end_with(bytes([FIN | 3, 0x80]), 1002)

    def break_text(self):
        """Break it by text that is none."""
        self.end_with(frame(FIN | TEXT, b"\xff"), 1007)

    def interrupt(self):
        """Send a ping amid a message in parts, which is answered, and close."""
        line = b"ask in %d parts" % next(self.numbers)
        self.send(frame(TEXT, line[:2]) + ping(b"and you?") + frame(CONTINUATION, line[2:5]))
        self.read_until([b"and you?"])
        self.send(pong(b"of itself") + frame(FIN | CONTINUATION, line[5:]))
        self.read_until([line])
        self.finish()

    def check_stopped(self):
        assert self.closed == 1001


def starve(server, phase, end, codes=()):
    """All n: what fails is something from `phase` on, which is "opening", "doing" or "ending"."""
    outcomes = []
    for at in range(HIGHEST + 1):
        outcome, peer = "goes on", None
        try:
            try:
                if phase == "opening":
                    server.order(f"arm {at}")
                peer = server.peer()
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
            if isinstance(peer, WebSocketPeer):
                assert peer.closed in (None, 1011, *codes)
            server.order("disarm")
            server.check_on_others()
        except BaseException as error:
            error.args = (
                f"allocation {at} failed, the connection {outcome}: {error}\n{server.stacks()}",
            )
            raise
        outcomes.append(outcome)
    return outcomes


def refuse_all(server):
    """All n, where connections are refused."""
    for at in range(HIGHEST + 1):
        server.order("refuse 1")
        server.order(f"arm {at}")
        with contextlib.suppress(EOFError, OSError), server.peer() as peer:
            peer.ask()
            raise AssertionError("it was to be refused")
        server.order("disarm")
        server.order("refuse 0")
        server.check_on_others()


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
    refuse_all(server)
    server.stop()


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
def test_an_allocation_that_fails_where_a_socket_has_to_be_made_loses_no_message(
    starving, transport
):
    server = starving(transport, "keeps", "send", False)
    starve(server, "doing", Peer.finish)
    server.stop()


# --------------------------------------------------------------------------------------- WebSocket


@pytest.mark.parametrize(
    ("transport", "operation", "codes"),
    [
        ("websocket", "send much", [1000]),
        ("websocket", "broadcast", [1000]),
        ("websocket", "broadcast text", [1000]),
        ("websocket", "ping", [1000]),
        ("websocket", "close with a code", [4000]),
        ("websocket", "raise Close", [4001]),
        ("websocket", "abort", []),
        ("websocket", "raise", []),
        ("wss", "send much", [1000]),
        ("wss", "ping", [1000]),
        ("wss", "raise Close", [4001]),
    ],
)
def test_an_allocation_that_fails_around_a_callback_of_a_websocket_costs_no_other_one(
    starving, transport, operation, codes
):
    """Nothing is torn, and no other code is told than its own and 1011."""
    server = starving(transport, "attended", operation, False)
    starve(server, "doing", WebSocketPeer.finish, codes)
    server.stop()


@pytest.mark.parametrize("operation", ["send much", "broadcast text"])
def test_an_allocation_that_fails_in_a_callback_that_catches_it_tears_no_frame(starving, operation):
    server = starving("websocket", "bare", operation, True)
    starve(server, "doing", WebSocketPeer.finish, [1000])
    server.stop()


@pytest.mark.parametrize(
    ("transport", "opening"),
    [
        ("websocket", "bare"),
        ("websocket", "attended"),
        ("wss", "attended"),
    ],
)
def test_an_allocation_that_fails_while_a_websocket_opens_ends_it_or_lets_it_go_on(
    starving, transport, opening
):
    server = starving(transport, opening, "send", False)
    starve(server, "opening", WebSocketPeer.finish, [1000])
    server.stop()


WEBSOCKET_ENDS = {
    "close": (WebSocketPeer.finish, [1000]),
    "break": (WebSocketPeer.break_off, [1002]),
    "break text": (WebSocketPeer.break_text, [1007]),
    "interrupt": (WebSocketPeer.interrupt, [1000]),
    "leave": (Peer.close, []),
}


@pytest.mark.parametrize(
    ("transport", "opening", "end"),
    [
        *(("websocket", "attended", end) for end in WEBSOCKET_ENDS),
        ("websocket", "raises at the end", "close"),
        ("wss", "attended", "interrupt"),
    ],
)
def test_an_allocation_that_fails_while_a_websocket_ends_leaves_nothing_of_it(
    starving, transport, opening, end
):
    server = starving(transport, opening, "send", False)
    starve(server, "ending", *WEBSOCKET_ENDS[end])
    server.stop()


@pytest.mark.parametrize("opening", ["refused", "responds"])
def test_an_allocation_that_fails_while_a_request_is_refused_leaves_nothing_of_it(
    starving, opening
):
    server = starving("websocket", opening, "send", False)
    refuse_all(server)
    server.stop()


# ------------------------------------------------------------------------------- starts and stops


@pytest.mark.parametrize("what", ["start", "stop"])
def test_an_allocation_that_fails_in_a_start_or_a_stop_leaves_nothing_behind(engine, what):
    code = f"from faults import nomemory; nomemory.cycles({engine!r}, {what!r}, {HIGHEST})"
    process = child(code)
    out, _ = finish(process)
    assert out == "done\n"
