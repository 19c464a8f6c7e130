"""Everything at once, from many threads; `make tsan` runs these under the thread sanitizer, `make
asan` under the address sanitizer.

HYDROGEN_STRESS_MESSAGES is the number of messages in all: 20,000 by default, 100,000 under the
thread sanitizer.
"""

import contextlib
import itertools
import os
import random
import socket as socket_module
import sys
import threading

import pytest
from stress.crowd import Crowd, beside
from support import PATIENCE, Client, assert_empty, recorder, running, simple, wait_until

import hydrogen

MESSAGES = int(
    os.environ.get("HYDROGEN_STRESS_MESSAGES")
    or (100_000 if "libtsan" in os.environ.get("LD_PRELOAD", "") else 20_000)
)
LIVES = 4
"""Servers that each test starts, and stops in the middle of the traffic."""

pytestmark = pytest.mark.timeout(900)


class Restless(hydrogen.Handler):
    """Echoes; sometimes blocks, closes, aborts, pauses, drains; remembers the sockets it saw, also
    of connections long gone.
    """

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.sockets = []
        self.never = threading.Event()
        self.removed = itertools.count()
        self.filed = {}
        self.faults = []

    def on_new_connection(self, fd):
        if self.filed.setdefault(fd, None) is not None:
            self.faults.append(f"{fd} is filed when it is new")

    def on_data_received(self, socket, data):
        name = data.split(b":")[0]
        if socket.user_data is None:
            socket.user_data = name
            self.filed[socket.fileno()] = socket.id
            self.sockets.append((socket, name))
        if socket.user_data != name or self.filed.get(socket.fileno(), 0) not in (socket.id, 0):
            self.faults.append(
                f"{socket.user_data!r} got a message of {name!r}; "
                f"{self.filed.get(socket.fileno())} is not {socket.id}"
            )
        chance = self.dice.random()
        if chance < 0.01:
            self.never.wait(self.dice.random() / 200)
        socket.send(data)
        if chance > 0.9995:
            socket.abort()
        elif chance > 0.999:
            socket.close()
        elif chance > 0.998:
            socket.pause_reading()
            socket.drain(0.001)
            socket.resume_reading()

    def on_disconnected(self, socket, err):
        socket.send(b"too late")
        if socket.user_data is not None and self.filed.get(socket.fileno()) != socket.id:
            self.faults.append(f"{socket.fileno()} was not filed at its end")

    def on_connection_removed(self, fd, err):
        next(self.removed)
        # which may come before on_new_connection
        if fd not in self.filed and not isinstance(err, hydrogen.ServerStopped):
            self.faults.append(f"{fd} was not filed when it was removed with {err!r}")
        self.filed.pop(fd, None)


def meddle(server, handler, done, seed):
    """A foreign thread: sends, and now and then more, to any connection there ever was."""
    dice = random.Random(seed)
    numbers = itertools.count()
    while not done.wait(0.0005):
        if not handler.sockets:
            continue
        socket, name = dice.choice(
            handler.sockets[-200:] if dice.random() < 0.8 else handler.sockets
        )
        chance = dice.random()
        if chance < 0.7:
            socket.send(b"foreign %b:%d:" % (name, next(numbers)))
        elif chance < 0.72:
            socket.close()
        elif chance < 0.74:
            socket.abort()
        elif chance < 0.8:
            socket.pause_reading()
            socket.resume_reading()
        elif chance < 0.85:
            assert socket.drain(0.001) in (True, False)
        elif chance < 0.9:
            assert socket.pending >= 0
            assert socket.is_open in (True, False)
            assert socket.fileno() >= -1
            _ = socket.peername
            _ = socket.user_data
        elif chance < 0.95:
            assert all(other.server is server for other in server.connections)
        else:
            assert server.stats().messages_received >= 0


@pytest.mark.clause("H2", "K6", "K18")
@pytest.mark.parametrize(
    ("handoff", "loops", "transport"),
    [("auto", 1, "tcp"), ("inline", 1, "unix"), ("eager", 1, "tcp"), ("auto", 3, "unix")],
)
def test_no_client_sees_another_s_bytes_whatever_all_threads_do_at_once(
    start, handoff, loops, transport, tmp_path
):
    seeds = itertools.count(1)
    answered = life = 0
    while answered < MESSAGES // 3:
        life += 1
        handler = Restless(next(seeds))
        # The limits and the kernel's buffers are low, so that pauses and partial sends happen; the
        # slab is small, so that slots are used again.
        where = {"path": str(tmp_path / f"socket{life}")} if transport == "unix" else {}
        small = (socket_module.SOL_SOCKET, socket_module.SO_SNDBUF, 4096)
        server = start(
            handler,
            framing=hydrogen.SimpleFrameBuilder,
            handoff=handoff,
            max_threads=4,
            loops=loops,
            pre_allocated=2,
            write_buffer_limits=(2000, 8000),
            read_budget=4096,
            socket_options=(small,) if life % 2 else (),
            **where,
        )
        crowds = [Crowd(12, next(seeds)) for _ in range(2)]
        done = threading.Event()
        wanted = max(1000, MESSAGES // 3 // LIVES // 2)

        def visit(crowd, server=server, wanted=wanted, done=done, life=life):
            crowd.run(server.address, wanted if life % 2 else wanted * 1000)
            done.set()

        def stop_in_the_middle(server=server, crowds=crowds, wanted=wanted, life=life, done=done):
            if life % 2 == 0:
                wait_until(
                    lambda: sum(crowd.answered for crowd in crowds) >= 2 * wanted or done.is_set(),
                    "enough traffic",
                    600,
                )
                server.abort() if life % 4 == 0 else server.stop(PATIENCE)
                for crowd in crowds:
                    crowd.done.set()

        with running(
            *(lambda crowd=crowd: visit(crowd) for crowd in crowds),
            # One thread only meddles, or the order of what it sends could not be checked.
            lambda server=server, handler=handler, done=done: meddle(
                server, handler, done, next(seeds)
            ),
            stop_in_the_middle,
            patience=800,
        ):
            pass
        server.stop(PATIENCE)
        assert_empty(server)
        assert handler.faults == []
        assert next(handler.removed) == server.stats().accepted
        assert handler.filed == {}
        answered += sum(crowd.answered for crowd in crowds)


@pytest.fixture
def hasty_switches():
    """Threads take the GIL from one another also in the middle of a turn."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.clause("K6")
def test_what_several_threads_send_to_one_connection_leaves_whole_and_in_the_order_of_each(
    start, hasty_switches
):
    """Replies are corked until their turn ends, foreign threads flush at once, the kernel takes
    parts: still one flusher at a time.
    """
    sockets = []

    def on_data(socket, data):
        if not sockets:
            sockets.append(socket)
        socket.send(data)

    count = MESSAGES // 5
    small = ((socket_module.SOL_SOCKET, socket_module.SO_SNDBUF, 65_536),)
    server = start(
        recorder(data_received=on_data),
        framing=hydrogen.SimpleFrameBuilder,
        max_threads=2,
        socket_options=small,
    )
    sizes = random.Random(1).choices((0, 10, 1000, 30_000), k=97)

    def message(sender, number):
        return b"%d:%d:" % (sender, number) + b"." * sizes[(sender + number) % len(sizes)]

    with Client(server.address) as client:
        client.send(simple(message(0, 0)))
        wait_until(lambda: sockets, "the server's end")

        def asks():
            for number in range(1, count):
                client.send(simple(message(0, number)))

        def pushes(sender):
            for number in range(count):
                assert sockets[0].send(message(sender, number))
                if number % 16 == 0:
                    assert sockets[0].drain(PATIENCE)

        with running(asks, lambda: pushes(1), lambda: pushes(2), patience=800):
            got = [0, 0, 0]
            for _ in range(3 * count):
                data = client.receive_frame()
                sender = int(data.split(b":")[0])
                assert data == message(sender, got[sender])
                got[sender] += 1
    assert got == [count] * 3


@pytest.mark.clause("K18", "K3", "H15")
def test_sockets_of_connections_long_gone_reach_nobody_however_soon_slots_and_fds_are_used_again(
    start,
):
    """A debug build uses slots again at once (LIFO) and has four generations of each: what is stale
    must be told from what is new.
    """

    class Keeps(hydrogen.Handler):
        """Keeps every socket there ever was; the connections that are over by now are `stale`."""

        def __init__(self):
            self.stale = []

        def on_data_received(self, socket, data):
            socket.user_data = data
            socket.send(data)

        def on_disconnected(self, socket, err):
            self.stale.append(socket)

    handler = Keeps()
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, max_threads=2, pre_allocated=2)
    done = threading.Event()
    reached = []

    def haunt(seed):
        dice = random.Random(seed)
        while not done.wait(0.0002):
            if not handler.stale:
                continue
            socket = dice.choice(handler.stale[:-8] or handler.stale[:1])
            if socket.send(b"from the dead") and socket not in handler.stale[-8:]:
                reached.append(socket)
            dice.choice([socket.abort, socket.close, socket.pause_reading, socket.resume_reading])()
            socket.user_data = "stolen"

    def live(name):
        for number in range(max(50, MESSAGES // 100)):
            tag = b"%d/%d" % (name, number)
            with Client(server.address) as client:
                for _ in range(2):
                    client.send(simple(tag))
                    assert client.receive_frame() == tag
                if number % 2:
                    client.reset()

    def all_live():
        try:
            with running(*(lambda name=name: live(name) for name in range(3)), patience=800):
                pass
        finally:
            done.set()

    with running(all_live, lambda: haunt(1), lambda: haunt(2), patience=800):
        pass
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    assert reached == []
    assert {socket.id for socket in handler.stale} == set(range(1, server.stats().accepted + 1))
    assert all(
        socket.send(b"x") is False and socket.fileno() == -1 and socket.user_data is None
        for socket in handler.stale
    )
    removed = server.stats()
    assert removed.removed_local_closed == 0, "a stale close or abort ended somebody"


@pytest.mark.clause("T8", "H2")
def test_streams_of_users_under_foreign_sends_and_closes(start):
    """The slow path: Python is called under locks of Python's, never of C's."""

    class Bytes(hydrogen.Stream):
        """Chunks as they are; keeps what the kernel does not take."""

        def __init__(self, fd):
            self.fd = fd
            self.kept = bytearray()
            self.inside = threading.Lock()

        def recv(self):
            with self.alone():
                part = os.read(self.fd, 4096)
            if not part:
                raise EOFError
            return [part]

        def send(self, buf):
            with self.alone():
                self.kept += buf
                while self.kept:
                    del self.kept[: os.write(self.fd, self.kept)]

        def alone(self):
            assert not self.inside.locked(), "two calls of one stream at once"
            return self.inside

        def shutdown(self):
            pass

        def fileno(self):
            return self.fd

    class Streams(hydrogen.Handler):
        """Echoes, through a stream of its own."""

        def __init__(self):
            self.doomed = []

        def on_new_connection(self, fd):
            return Bytes(fd)

        def on_data_received(self, socket, data):
            if data.endswith(b"!"):
                self.doomed.append(socket)
            socket.send(data)

    handler = Streams()
    server = start(handler, max_threads=4)
    done = threading.Event()

    def meddle_with_streams():
        dice = random.Random(3)
        while not done.wait(0.001):
            # whose clients expect nothing any more, and are about to leave
            for socket in handler.doomed[-8:]:
                dice.choice(
                    [
                        lambda s=socket: s.send(b"late"),
                        socket.close,
                        socket.abort,
                        lambda s=socket: s.drain(0),
                    ]
                )()
            _ = server.stats(), [other.pending for other in server.connections]

    def converse(name):
        for number in range(max(10, MESSAGES // 1000)):
            with Client(server.address) as client:
                for size in (10, 5000, 60_000):
                    client.echo(bytes([name]) * size)
                client.send(b"!")
                if number % 3 == 0:
                    with contextlib.suppress(OSError):
                        client.finish()
                    client.at_end()
                elif number % 3 == 1:
                    client.reset()

    beside(done, meddle_with_streams, *(lambda name=name: converse(name) for name in range(4)))


def test_servers_that_start_and_stop_in_several_threads_at_once(engine):
    def cycle(seed):
        dice = random.Random(seed)
        for _ in range(max(5, MESSAGES // 2000)):
            handler = Restless(seed)
            server = hydrogen.serve(
                handler,
                port=0,
                engine=engine,
                max_threads=dice.choice((1, 2, 4)),
                framing=hydrogen.SimpleFrameBuilder,
                pre_allocated=0,
            )
            crowd = Crowd(4, seed)
            with running(
                lambda crowd=crowd, server=server: crowd.run(server.address, 10**9), patience=100
            ):
                wait_until(lambda crowd=crowd: crowd.answered > 20, "some traffic")
                dice.choice([server.stop, server.abort, lambda server=server: server.stop(0)])()
                crowd.done.set()
            assert_empty(server)
            assert handler.faults == []

    with running(*(lambda seed=seed: cycle(seed) for seed in range(3)), patience=800):
        pass
