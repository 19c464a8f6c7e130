"""TLS under everything at once: as test_threads.py, over records, which are numbered, and with
handshakes, which break off.

HYDROGEN_STRESS_MESSAGES: see test_threads.py.
"""

import contextlib
import itertools
import random
import ssl
import threading

import certificates
import pytest
from stress.crowd import Crowd, Member, beside
from stress.test_threads import MESSAGES, Restless, meddle
from support import (
    PATIENCE,
    Client,
    TlsClient,
    assert_empty,
    running,
    simple,
    wait_event,
    wait_until,
)

import hydrogen

LIVES = 2
"""Servers that the first test starts; the second one is stopped in the middle of the traffic."""

pytestmark = pytest.mark.timeout(900)


class Veiled:
    """A non-blocking socket whose `recv` gives plaintext. An end without close_notify fails, once
    the server has said anything.

    (In TLS 1.3 the client's handshake is done before the server's is, and then the server has
    nothing to end gracefully.)
    """

    may_be_cut = False

    def __init__(self, sock, context):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.is_ready = self.is_heard = self.is_ended = False

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def step(self):
        """Go on with the handshake."""
        if not self.is_ready:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.is_ready = True

    def read(self):
        """What OpenSSL has now."""
        self.step()
        parts = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while self.is_ready and not self.is_ended:
                try:
                    part = self.tls.read(1 << 16)
                except ssl.SSLZeroReturnError:
                    part = b""
                parts.append(part)
                self.is_ended = not part
                self.is_heard |= bool(part)
        return b"".join(parts)

    def recv(self, count):
        if self.is_ended:
            return b""
        part = self.sock.recv(count)
        assert part or not self.is_heard or self.may_be_cut, "the end came without close_notify"
        self.incoming.write(part)
        plaintext = self.read()
        if part and not plaintext and not self.is_ended:
            raise BlockingIOError
        return plaintext


class TlsMember(Member):
    """What it sends is plaintext in `plain`, and records in `out`."""

    def __init__(self, address, depth, dice):
        super().__init__(address, depth, dice)
        self.plain = bytearray()
        self.is_notified = False  # close_notify is in `out`, or was
        self.sock = Veiled(self.sock, certificates.client_context())
        self.sock.step()

    def fill(self):
        records, self.out = self.out, bytearray()
        super().fill()
        self.plain += self.out
        self.out = records

    def write(self):
        if self.sock.is_ready:
            while self.plain:
                del self.plain[: self.sock.tls.write(self.plain)]
            if self.is_finishing and not self.is_notified:
                self.is_notified = True
                with contextlib.suppress(ssl.SSLError):  # the peer's own has not come yet
                    self.sock.tls.unwrap()
        self.out += self.sock.outgoing.read()
        super().write()

    @property
    def is_ready(self):
        return self.sock.is_ready

    @property
    def is_sealed(self):
        return self.is_notified

    @property
    def has_output(self):
        return super().has_output or bool(self.is_ready and self.plain)


class TlsCrowd(Crowd):
    """Members that speak TLS."""

    def member(self, address):
        return TlsMember(address, self.depth, self.dice)


class Introduced(Restless):
    """Also checks that nothing of a connection comes before its handshake is done, and nothing
    after its end.
    """

    def __init__(self, seed):
        super().__init__(seed)
        self.known = set()
        self.over = set()

    def on_connected(self, socket):
        if socket.id in self.known or socket.get_extra_info("cipher") is None:
            self.faults.append(f"{socket.id} is connected twice, or too early")
        self.known.add(socket.id)

    def on_data_received(self, socket, data):
        if socket.id not in self.known or socket.id in self.over:
            self.faults.append(f"{socket.id} got a message too early or too late")
        super().on_data_received(socket, data)

    def on_disconnected(self, socket, err):
        if socket.id in self.over:
            self.faults.append(f"{socket.id} ended twice")
        self.over.add(socket.id)
        super().on_disconnected(socket, err)


def break_off(address, done, seed):
    """Handshakes that end in their middle: cut off, garbled, closed, reset, or never begun."""
    dice = random.Random(seed)
    while not done.wait(0.003):
        with contextlib.suppress(OSError, ssl.SSLError), Client(address) as client:
            tls = TlsClient(
                client, certificates.client_context(version=dice.choice(certificates.VERSIONS))
            )
            hello = tls.step()
            chance = dice.random()
            if chance < 0.2:
                client.send(hello[: dice.randrange(len(hello))])
            elif chance < 0.4:
                at = dice.randrange(len(hello))
                client.send(hello[:at] + bytes([hello[at] ^ 0x55]) + hello[at + 1 :])
                client.finish()
                client.at_end()
            elif chance < 0.6:
                client.send(hello)
                tls.take()
            elif chance < 0.8:
                client.send(hello + b"\x15\x03\x03\x00\x02\x01\x00")  # close_notify
                client.at_end()
            if dice.random() < 0.5:
                client.reset()


@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_no_client_sees_another_s_bytes_over_tls_whatever_all_threads_do_at_once(start, handoff):
    seeds = itertools.count(1)
    for life in range(1, LIVES + 1):
        handler = Introduced(next(seeds))
        server = start(
            handler,
            framing=hydrogen.SimpleFrameBuilder,
            handoff=handoff,
            max_threads=4,
            pre_allocated=2,
            write_buffer_limits=(2000, 8000),
            read_budget=4096,
            ssl=certificates.server_context(),
        )
        crowd = TlsCrowd(12, next(seeds))
        done = threading.Event()
        wanted = max(500, MESSAGES // 30)

        def visit(crowd=crowd, server=server, wanted=wanted, life=life, done=done):
            try:
                crowd.run(server.address, wanted if life % 2 else wanted * 1000)
            finally:
                done.set()

        def stop_in_the_middle(crowd=crowd, server=server, wanted=wanted, life=life, done=done):
            if life % 2 == 0:
                wait_until(lambda: crowd.answered >= wanted or done.is_set(), "enough traffic", 600)
                server.abort() if handoff == "auto" else server.stop(PATIENCE)
                crowd.done.set()

        def reload(server=server, done=done):
            for version in itertools.cycle((*certificates.VERSIONS, None)):
                if done.wait(0.01):
                    return
                with contextlib.suppress(RuntimeError):  # it stops
                    server.reload_tls(certificates.server_context(version=version))

        with running(
            visit,
            lambda server=server, handler=handler, done=done: meddle(
                server, handler, done, next(seeds)
            ),
            lambda server=server, done=done: break_off(server.address, done, next(seeds)),
            reload,
            stop_in_the_middle,
            patience=800,
        ):
            pass
        server.stop(PATIENCE)
        assert_empty(server)
        assert handler.faults == []
        assert next(handler.removed) == server.stats().accepted
        assert handler.filed == {}
        assert crowd.answered >= wanted


@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_all_that_was_taken_comes_and_then_close_notify_whoever_sends_when_the_connection_is_closed(
    start, handoff
):
    class Busy(hydrogen.Handler):
        """Hands out its sockets by name; a message of "block" blocks for a moment."""

        def __init__(self):
            self.sockets = {}
            self.never = threading.Event()
            self.faults = []

        def on_connection_removed(self, fd, err):
            if type(err) is not hydrogen.LocalClosed:
                self.faults.append(err)

        def on_data_received(self, socket, data):
            if data == b"block":
                self.never.wait(0.002)
                socket.send(data)
            else:
                self.sockets[data] = socket

    handler = Busy()
    server = start(
        handler,
        framing=hydrogen.SimpleFrameBuilder,
        handoff=handoff,
        max_threads=3,
        ssl=certificates.server_context(),
    )
    done = threading.Event()
    rounds = max(10, MESSAGES // 1000)

    def keep_busy():
        with Client(server.address) as client:
            tls = TlsClient(client, certificates.client_context()).handshake()
            while not done.is_set():
                tls.send(simple(b"block"))
                assert tls.receive_frame() == b"block"
            tls.send(simple(b"busy"))
            wait_until(lambda: handler.sockets.get(b"busy"), "the socket").close()
            tls.receive_until_end()

    def converse(seed):
        dice = random.Random(seed)
        for number in range(rounds):
            name = b"%d/%d" % (seed, number)
            size = dice.choice((10, 1000, 60_000))
            with Client(server.address, receive_buffer=dice.choice((4096, None))) as client:
                tls = TlsClient(
                    client, certificates.client_context(version=dice.choice(certificates.VERSIONS))
                ).handshake()
                tls.send(simple(name))
                socket = wait_until(lambda name=name: handler.sockets.pop(name, None), "the socket")
                taken = itertools.count()
                begun = threading.Event()

                def send(socket=socket, taken=taken, begun=begun, size=size, name=name):
                    while socket.send(name.ljust(size, b".")):
                        begun.set()
                        if next(taken) > 50:
                            break
                    begun.set()

                def close(socket=socket, begun=begun):
                    wait_event(begun, "a first message")
                    socket.close()

                with running(send, send, close):
                    data = tls.receive_until_end()
                assert data == simple(name.ljust(size, b".")) * next(taken)

    beside(done, keep_busy, *(lambda seed=seed: converse(seed) for seed in range(2)))
    wait_until(lambda: server.stats().connections == 0, "all are removed")
    assert handler.faults == []


def test_the_deadline_of_a_handshake_races_with_its_end_and_each_connection_is_removed_once(start):
    class Greets(hydrogen.Handler):
        """Greets whoever is done in time."""

        def __init__(self):
            self.greeted = itertools.count()
            self.timeouts = itertools.count()
            self.removed = itertools.count()

        def on_connected(self, socket):
            next(self.greeted)
            socket.send(b"hello")

        def on_data_received(self, socket, data):
            raise AssertionError(data)

        def on_connection_removed(self, fd, err):
            next(self.removed)
            if isinstance(err, hydrogen.ConnectionTimeout):
                next(self.timeouts)

    handler = Greets()
    server = start(
        handler,
        framing=hydrogen.SimpleFrameBuilder,
        max_threads=3,
        pre_allocated=2,
        open_timeout=0.01,
        ssl=certificates.server_context(),
    )
    outcomes = []

    def visit(seed):
        dice = random.Random(seed)
        never = threading.Event()
        for _ in range(max(20, MESSAGES // 400)):
            with Client(server.address) as client:
                tls = TlsClient(client, certificates.client_context())
                try:
                    last = tls.open()
                    never.wait(dice.random() / 50)
                    client.send(last)
                    assert tls.receive_frame() == b"hello"
                    outcomes.append("served")
                except OSError:  # reset
                    outcomes.append("late")

    with running(*(lambda seed=seed: visit(seed) for seed in range(3)), patience=800):
        pass
    wait_until(lambda: server.stats().connections == 0, "all are removed")
    stats = server.stats()
    assert next(handler.removed) == stats.accepted == len(outcomes)
    assert next(handler.timeouts) == stats.removed_timeout == outcomes.count("late")
    assert next(handler.greeted) >= outcomes.count("served")
    assert stats.queued_bytes == 0
