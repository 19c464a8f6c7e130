"""What the load generator makes of a WebSocket server's control frames, on busy connections and on
idle ones.
"""

import contextlib
import select
import socket
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from echoes import faults, measure, read_exactly
from support import PATIENCE, wait_until
from websocket_peers import BINARY, CLOSE, FIN, PING, PONG, TEXT, expected_accept, frame, masked

from hydrogen.perf.framing import Mix, websocket
from hydrogen.perf.framing import masked as masked_shape
from hydrogen.perf.generator import Session
from hydrogen.perf.idle import answering
from hydrogen.perf.loops import choose_loop
from hydrogen.perf.opening import Connection
from hydrogen.perf.options import Options
from hydrogen.perf.tunnel import Tunnel, client_context

WEBSOCKET = {"websocket": "/", "framing": "websocket"}

LIKE_FRAMES = b"\x82\x40\x89\x00\x8a\x00\x88\x00"
"""A payload that is the beginnings of frames."""


def sent_by_server(opcode, payload=b""):
    """A frame without mask."""
    return frame(FIN | opcode, payload, mask=None)


class Peer:
    """The server's end of a WebSocket connection."""

    def __init__(self, connection):
        self.connection = connection
        self._messages = deque()  # that were read while a pong was awaited

    def shake_hands(self):
        head = bytearray()
        while b"\r\n\r\n" not in head:
            head += self.connection.recv(65536)
        (key,) = (
            line.partition(": ")[2]
            for line in head.decode().split("\r\n")
            if line.startswith("Sec-WebSocket-Key")
        )
        self.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
            + expected_accept(key).encode()
            + b"\r\n\r\n"
        )

    def frame(self):
        """The opcode and the payload of the next frame; None at the end."""
        head = read_exactly(self.connection, 2)
        if not head:
            return None
        assert head[0] & FIN
        assert head[1] & 0x80
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(read_exactly(self.connection, 2 if size == 126 else 8), "big")
        mask = read_exactly(self.connection, 4)
        return head[0] & 0x0F, masked(read_exactly(self.connection, size), mask)

    def message(self):
        """The payload of the next message; None at the end."""
        if self._messages:
            return self._messages.popleft()
        found = self.frame()
        assert found is None or found[0] == BINARY
        return found and found[1]

    def pong(self):
        """The payload of the next pong."""
        while (found := self.frame()) is not None:
            if found[0] == PONG:
                return found[1]
            self._messages.append(found[1])
        raise AssertionError("the connection has ended")

    def send(self, opcode, payload=b""):
        self.connection.sendall(sent_by_server(opcode, payload))

    def echo(self):
        """Until the end."""
        while (message := self.message()) is not None:
            self.send(BINARY, message)


def speaking(*scripts):
    """A server function: the handshake, then a script that is given the peer; each connection has
    one of its own.
    """
    turns = iter(scripts)

    def function(connection):
        script = next(turns)  # a client may open the next connection once this one is open
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(connection)
        peer.shake_hands()
        script(peer)

    return function


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def measure_scripts(request, serve, tls, cacert):
    """Measure servers that follow scripts, one for each connection in turn: `measure_scripts(loop,
    *scripts, **options)`.
    """

    def measure_scripts(loop, *scripts, **options):
        function = speaking(*scripts)
        options = {"connections": len(scripts)} | WEBSOCKET | options
        if not request.param:
            return measure(serve(function), loop, **options)
        return measure(serve(function, tls=tls), loop, tls=True, cacert=cacert, **options)

    return measure_scripts


# -- hot loops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 8, 125])
@pytest.mark.parametrize(
    "options",
    [{}, {"in_flight": 8}, {"in_flight": 8, "burst": True}, {"rate": 2000}, {"size": 70_000}],
    ids=str,
)
def test_a_ping_is_answered_amid_a_run(measure_scripts, loop, options, size):
    pongs = []

    def script(peer):
        while (message := peer.message()) is not None:
            ping = bytes([len(pongs)]) * size
            peer.send(PING, ping)
            pongs.append((ping, peer.pong()))
            peer.send(BINARY, message)

    result = measure_scripts(loop, script, **options)
    assert result.ok
    assert result.counters.messages == len(pongs) == 50
    assert all(ping == pong for ping, pong in pongs)


def test_of_several_pings_the_newest_is_answered(measure_scripts, loop):
    answered = []

    def script(peer):
        pings = [b"first", b"", b"x" * 125, b"newest"]
        message = peer.message()
        peer.connection.sendall(b"".join(sent_by_server(PING, ping) for ping in pings))
        while (pong := peer.pong()) != pings[-1]:
            assert pong in pings
        answered.append(pong)
        peer.send(BINARY, message)
        peer.echo()

    assert measure_scripts(loop, script).ok
    assert answered == [b"newest"]


def test_a_quiet_connection_answers_while_another_is_awaited(measure_scripts, loop):
    answered = threading.Event()

    def quiet(peer):
        peer.send(BINARY, peer.message())
        peer.send(PING, b"still there?")
        assert peer.pong() == b"still there?"
        answered.set()
        peer.message()

    def slow(peer):
        message = peer.message()
        assert answered.wait(PATIENCE)
        peer.send(BINARY, message)
        peer.message()

    assert measure_scripts(loop, quiet, slow, number=2).ok


def test_a_pong_that_nobody_asked_for_is_skipped(measure_scripts, loop):
    def script(peer):
        while (message := peer.message()) is not None:
            peer.send(PONG, message)
            peer.send(BINARY, message)
            peer.send(PONG)

    result = measure_scripts(loop, script)
    assert result.ok
    assert result.counters.messages == 50


def test_a_ping_is_not_the_first_byte_of_an_answer(measure_scripts, loop):
    def script(peer):
        peer.message()
        peer.send(PING)
        peer.pong()

    result = measure_scripts(loop, script)
    assert faults(result) == {"closed": 1, "unanswered": 1}
    assert sum(result.histograms.first_bytes) == 0


@pytest.mark.parametrize("payload", [b"", b"\x03\xe9bye", b"x" * 125], ids=len)
def test_a_close_ends_the_connection_though_it_stays_open(measure_scripts, loop, payload):
    def script(peer):
        first, _ = peer.message(), peer.message()
        peer.connection.sendall(
            sent_by_server(BINARY, first) + sent_by_server(CLOSE, payload) + b"\x82"
        )
        peer.connection.recv(1)

    result = measure_scripts(loop, script, in_flight=2)
    assert faults(result) == {"closed": 1, "unanswered": 1}
    assert result.counters.messages == 1


@pytest.mark.parametrize(
    "wrong",
    [
        frame(PING, b"12345678", mask=None),
        frame(FIN | PING, b"12345678"),
        frame(FIN | PING, bytes(126), mask=None),
        frame(FIN | CLOSE, bytes(70_000), mask=None),
        frame(FIN | 0xB, mask=None),
        frame(FIN | 0x40 | PONG, mask=None),
    ],
    ids=["no FIN", "masked", "126 bytes", "70,000 bytes", "reserved", "RSV1"],
)
def test_a_malformed_control_frame_is_a_wrong_reply(measure_scripts, loop, wrong):
    def script(peer):
        peer.send(BINARY, peer.message())
        peer.message()
        peer.connection.sendall(wrong)
        peer.message()

    result = measure_scripts(loop, script)
    assert faults(result) == {"wrong": 1, "unanswered": 1}
    assert (result.counters.wrong_message, result.counters.wrong_byte) == (1, 0)


def test_a_control_frame_within_a_reply_is_a_wrong_byte(measure_scripts, loop):
    def script(peer):
        reply = sent_by_server(BINARY, peer.message())
        peer.connection.sendall(reply[:2] + sent_by_server(PING) + reply[2:])
        peer.message()

    result = measure_scripts(loop, script)
    assert faults(result) == {"wrong": 1, "unanswered": 1}
    # chance may have made the payload's first byte the same
    assert result.counters.wrong_byte >= 2


def test_frames_of_websocket_without_its_handshake_have_no_control_frames(serve, loop):
    def function(connection):
        read_exactly(connection, 66)
        connection.sendall(sent_by_server(PING))
        connection.recv(1)

    result = measure(serve(function), loop, framing="websocket", connections=1)
    assert faults(result) == {"wrong": 1, "unanswered": 1}


def run_over(loop, here, script, *, size=64, depth=1, number=1, tunnel=None):
    """Run a hot loop over one socket, and meanwhile in a thread the script of the other end, which
    is given the loop; returns the loop.
    """
    here.setblocking(False)
    hot = choose_loop(loop)[1](
        [here.fileno()],
        mix=Mix((masked_shape(websocket(size)),)),
        depth=depth,
        burst=False,
        seed=1,
        stall=PATIENCE,
        tunnels=[tunnel] if tunnel else [],
        websocket=True,
    )
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(script, hot)
        hot.run(0, number)
        here.shutdown(socket.SHUT_WR)
        done.result(PATIENCE)
    return hot


def wait_until_received(hot, size):
    wait_until(lambda: hot.counters()["received"] == size, "what was sent to the loop")


def secured(here, there, tls, cacert):
    """TLS between two sockets: the client's tunnel, and the server's socket."""
    with ThreadPoolExecutor(1) as pool:
        shaken = pool.submit(tls.wrap_socket, there, server_side=True)
        tunnel = Tunnel(client_context(cacert, insecure=False), "localhost")
        here.setblocking(False)
        for _ in tunnel.handshake(here):
            select.select([here], [], [], PATIENCE)
        return tunnel, shaken.result(PATIENCE)


@pytest.mark.parametrize("payload", [b"", LIKE_FRAMES, b"x" * 125], ids=len)
def test_control_frames_may_be_cut_anywhere(loop, payload):
    control = sent_by_server(PONG, payload) + sent_by_server(PING, payload)
    cuts = range(1, len(control) + 2)
    here, there = socket.socketpair()
    pongs = []

    def script(hot):
        peer, sent = Peer(there), 0
        for cut in cuts:
            stream = control + sent_by_server(BINARY, peer.message())
            there.sendall(stream[:cut])
            wait_until_received(hot, sent + cut)
            there.sendall(stream[cut:])
            sent += len(stream)
            pongs.append(peer.pong())

    with here, there:
        assert run_over(loop, here, script, number=len(cuts)).messages == len(cuts)
    assert pongs == [payload] * len(cuts)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_pong_waits_for_the_end_of_the_message_that_is_being_sent(loop, secure, tls, cacert):
    frames = []
    here, there = socket.socketpair()
    # a message is many times that
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    tunnel = None
    if secure:
        tunnel, there = secured(here, there, tls, cacert)

    def script(hot):
        peer = Peer(there)
        peer.send(PING)
        wait_until_received(hot, 2)
        peer.send(PING, b"newest")
        wait_until_received(hot, 2 + 8)
        frames.extend(peer.frame() for _ in range(3))
        for _, message in frames[::2]:
            peer.send(BINARY, message)

    with here, there:
        hot = run_over(loop, here, script, size=200_000, depth=2, number=2, tunnel=tunnel)
    assert hot.messages == 2
    assert [opcode for opcode, _ in frames] == [BINARY, PONG, BINARY]
    assert frames[1][1] == b"newest"


# -- idle connections ------------------------------------------------------------------------------


def test_idle_connections_answer_pings_and_skip_messages(measure_scripts):
    connected, answered = threading.Event(), [threading.Event(), threading.Event()]

    def idle(number):
        def script(peer):
            assert connected.wait(PATIENCE)
            for message in (b"", b"x" * 125, b"x" * 126, b"x" * 200_000):
                peer.send(TEXT, message)
                peer.send(PING, message[:125])
                assert peer.pong() == message[:125]
            peer.send(PONG)
            answered[number].set()
            peer.message()

        return script

    def busy(peer):
        message = peer.message()
        connected.set()
        assert all(each.wait(PATIENCE) for each in answered)
        peer.send(BINARY, message)
        peer.echo()

    result = measure_scripts("auto", idle(0), idle(1), busy, idle=2, connections=1)
    assert result.ok


def ending_idle(end, serve, **options):
    """How many idle connections are lost when the server does that to the only one."""
    connected, done = threading.Event(), threading.Event()

    def idle(peer):
        assert connected.wait(PATIENCE)
        end(peer)
        done.wait(PATIENCE)

    address = serve(speaking(idle, Peer.echo), tls=options.pop("context", None))
    options = {"idle": 1, "connections": 1, "number": 10, "warm_up": 0} | WEBSOCKET | options
    with Session(Options(address, **options)) as session:
        session.connect()
        connected.set()
        wait_until(lambda: session._idle[0].has_ended(), "the end of the idle connection")
        result = session.run()
        done.set()
    assert not result.ok
    assert not result.counters.faults
    return result.idle_lost


@pytest.mark.parametrize(
    "end",
    [
        lambda peer: peer.send(CLOSE),
        lambda peer: peer.send(PING, bytes(126)),
        lambda peer: peer.connection.sendall(frame(FIN | TEXT)),
        lambda peer: (peer.send(PING), peer.connection.shutdown(socket.SHUT_WR)),
    ],
    ids=["CLOSE", "malformed ping", "masked", "FIN"],
)
def test_an_idle_connection_whose_end_websocket_tells_is_lost(serve, end):
    assert ending_idle(end, serve) == 1


def test_an_idle_connection_that_tls_ends_is_lost(serve, tls, cacert):
    def end(peer):
        with contextlib.suppress(OSError):
            peer.connection.setblocking(False)
            peer.connection.unwrap()

    assert ending_idle(end, serve, context=tls, tls=True, cacert=cacert) == 1


def test_an_idle_connection_is_given_up_when_no_pong_is_read(serve):
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        there.setblocking(False)
        connection = Connection(here)

        def has_ended_after_pings():
            with contextlib.suppress(BlockingIOError):
                while True:
                    there.send(sent_by_server(PING, bytes(125)))
            return connection.has_ended()

        with answering([connection]):
            wait_until(has_ended_after_pings, "no room for pongs")


def test_the_thread_that_answers_ends_with_the_session(serve):
    address = serve(speaking(Peer.echo, Peer.echo))
    with Session(Options(address, idle=1, connections=1, **WEBSOCKET)) as session:
        session.connect()
        assert is_answering()
    assert not is_answering()


@pytest.mark.parametrize("options", [{"idle": 1}, WEBSOCKET], ids=str)
def test_nothing_answers_without_idle_connections_of_websocket(serve, options):
    address = serve(speaking(Peer.echo) if options is WEBSOCKET else lambda peer: peer.recv(1))
    with Session(Options(address, connections=1, **options)) as session:
        session.connect()
        assert not is_answering()


def is_answering():
    return any(thread.name == "hydrogen-perf-idle" for thread in threading.enumerate())
