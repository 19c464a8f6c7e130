"""What operations added, under fire: broadcast, limits, timers, suspend and deadlines against
churn, cancels, traffic and the stop.

`make tsan` and `make asan` run these too.
"""

import contextlib
import itertools
import os
import random
import socket as stdlib_socket
import struct
import threading

import pytest
from stress.crowd import Crowd, beside
from stress.test_threads import MESSAGES
from support import Client, Echo, running, simple, unframe, wait_until

import hydrogen

pytestmark = pytest.mark.timeout(900)

SMALL = MESSAGES // 20


class Fickle(hydrogen.Handler):
    """Echoes, and now and then ends a connection of the crowd."""

    def __init__(self):
        self.dice = random.Random(7)

    def on_connected(self, socket):
        socket.user_data = []

    def on_data_received(self, socket, data):
        socket.send(data)
        if self.dice.random() < 0.001 and not data.startswith(b"steady"):
            socket.abort()


@pytest.mark.parametrize("handoff", ["auto", "eager"])
def test_broadcasts_of_two_threads_reach_everybody_in_order_while_connections_come_and_go(
    start, handoff
):
    """Some connections stay from the first to the last: they get everything, once, and nothing that
    they are excluded from.
    """
    server = start(Fickle(), framing=hydrogen.SimpleFrameBuilder, handoff=handoff)
    clients = [Client(server.address) for _ in range(5)]
    for client in clients:
        client.echo(simple(b"steady"))
        client.sock.settimeout(800)
    steady, done, counts, got = (
        set(server.connections),
        threading.Event(),
        [0, 0],
        [[] for _ in clients],
    )

    def broadcast(who):
        for number in itertools.count():
            report = server.broadcast(b"all %d:%d:" % (who, number))
            assert report.sent >= 5
            counts[who] = number + 1
            server.broadcast(b"all others %d:%d:" % (who, number), exclude=steady)
            if done.wait(0.0005):
                return

    def read(index):
        got[index] = unframe(clients[index].receive_until_end())

    with running(*[lambda index=index: read(index) for index in range(5)], patience=800):
        crowd = Crowd(20, 11)
        with running(lambda: broadcast(0), patience=800):
            beside(done, lambda: broadcast(1), lambda: crowd.run(server.address, SMALL))
        for client in clients:
            client.finish()
    assert min(counts) > 0
    for messages in got:
        for who in (0, 1):
            assert [
                int(message.split(b":")[1])
                for message in messages
                if message.startswith(b"all %d:" % who)
            ] == list(range(counts[who]))
        assert not [message for message in messages if message.startswith(b"all others")]
    for client in clients:
        client.close()


@pytest.mark.parametrize("overload", ["pause", "close"])
def test_limits_hold_at_every_moment_of_a_churn_and_everybody_who_waits_is_served(start, overload):
    """Eight threads connect and leave by FIN and RST; at most five are there at once, four from one
    address.
    """
    most, lock, state = 5, threading.Lock(), {"now": 0, "highest": 0}

    class Counting(Echo):
        def on_connected(self, socket):
            with lock:
                state["now"] += 1
                state["highest"] = max(state["highest"], state["now"])

        def on_disconnected(self, socket, err):
            with lock:
                state["now"] -= 1

    server = start(Counting(), max_connections=most, max_connections_per_ip=4, overload=overload)
    served = itertools.count()

    def churn(who):
        dice = random.Random(who)
        for _ in range(SMALL // 40):
            with stdlib_socket.socket() as sock:
                sock.settimeout(30)
                sock.bind((f"127.0.0.{dice.choice((2, 3, 4))}", 0))
                with contextlib.suppress(ConnectionError):  # turned away
                    sock.connect(server.address)
                    sock.sendall(b"x")
                    if sock.recv(1):
                        next(served)
                if dice.random() < 0.5:
                    sock.setsockopt(
                        stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )

    with running(*[lambda who=who: churn(who) for who in range(8)], patience=800):
        pass
    wait_until(lambda: server.stats().connections == 0, "all have left")
    stats = server.stats()
    assert state["highest"] <= most
    assert next(served) > 0
    assert stats.accepted == stats.removed
    # Every address may have as many again as it ever could: nothing was counted and not given back.
    for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
        clients = []
        for _ in range(4):
            sock = stdlib_socket.socket()
            sock.settimeout(30)
            sock.bind((host, 0))
            sock.connect(server.address)
            sock.sendall(b"y")
            assert sock.recv(1) == b"y"
            clients.append(sock)
        for sock in clients:
            sock.close()
        wait_until(lambda: server.stats().connections == 0, "they have left")


def test_a_timer_is_called_once_or_cancelled_whoever_is_first(start):
    server = start(Echo(), max_threads=3)
    called, lock = {}, threading.Lock()
    cancelled = set()

    def call(name):
        with lock:
            called[name] = called.get(name, 0) + 1

    def set_and_cancel(who):
        dice = random.Random(who)
        standing = []
        for number in range(SMALL):
            name = (who, number)
            standing.append(
                (name, server.call_later(dice.random() / 100, lambda name=name: call(name)))
            )
            if dice.random() < 0.5:
                other, timer = standing.pop(dice.randrange(len(standing)))
                if timer.cancel():
                    with lock:
                        cancelled.add(other)

    with running(*[lambda who=who: set_and_cancel(who) for who in range(4)], patience=800):
        pass
    wait_until(
        lambda: len(called) + len(cancelled) == 4 * SMALL,
        "each was called or cancelled",
        timeout=300,
    )
    assert set(called.values()) == {1}
    assert not called.keys() & cancelled


def test_suspending_and_resuming_loses_nobody_who_connects(start):
    server = start(Echo())
    done = threading.Event()

    def flap():
        while not done.wait(0.001):
            server.suspend()
            server.resume()

    def converse(who):
        for number in range(SMALL // 20):
            with Client(server.address) as client:
                client.echo(b"%d:%d" % (who, number))

    beside(done, flap, *[lambda who=who: converse(who) for who in range(4)])


def test_deadlines_remove_the_silent_and_the_stuck_and_nobody_else(start):
    """Somebody talks all the time beside those who say nothing, and those who do not read; these
    are removed, and nobody else is.
    """
    large = os.urandom(3_000_000)

    class Replies(hydrogen.Handler):
        def on_data_received(self, socket, data):
            socket.send(large if data == b"large" else data)

        def on_disconnected(self, socket, err):
            removed.append(err)

    removed = []
    builder = hydrogen.LengthFrameBuilder(max_size=4 << 20)
    # smaller than what is sent, whatever the kernel would like
    buffer = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 16_384)]
    server = start(
        Replies(),
        framing=builder,
        idle_timeout=2.0,
        write_timeout=1.0,
        frame_timeout=1.0,
        open_timeout=1.0,
        socket_options=buffer,
    )
    frame = lambda payload: struct.pack(">I", len(payload)) + payload  # noqa: E731
    done = threading.Event()

    def talk():
        with Client(server.address) as client:
            while not done.wait(0.001):
                client.echo(frame(b"x"))

    def neglect():
        for _ in range(3):
            clients = [Client(server.address, receive_buffer=4096) for _ in range(30)]
            before = len(removed)
            for number, client in enumerate(clients):
                client.send((b"", frame(b"large"), frame(b"x")[:-1])[number % 3])
            wait_until(
                lambda before=before: len(removed) >= before + 30, "all of them were removed"
            )
            for client in clients:
                client.close()

    beside(done, lambda: [talk()], neglect)
    names = [str(error).partition(":")[0] for error in removed[:90]]
    assert {name: names.count(name) for name in set(names)} == {
        "idle_timeout": 30,
        "write_timeout": 30,
        "frame_timeout": 30,
    }
    assert len(removed) <= 91


def test_stops_in_the_middle_of_everything_end(start):
    """Timers that set timers, broadcasts, suspends and connects go on from all sides while the
    server stops, at once or spread.
    """
    for spread in (0.0, 0.2, 0.0, 0.1):
        # An address of its own: the port may be another test's as soon as the listener is closed.
        server = start(
            Echo(),
            addr="127.0.0.83",
            framing=hydrogen.SimpleFrameBuilder,
            max_connections=20,
            idle_timeout=0.5,
        )

        def again(server=server):
            with contextlib.suppress(RuntimeError):
                server.call_later(0.001, again)

        def shout(server=server):
            while not server.wait(0.001):
                server.broadcast(b"all 0:0:")
                with contextlib.suppress(RuntimeError):
                    server.suspend()
                    server.resume()

        def come(server=server):
            while not server.wait(0):
                with contextlib.suppress(OSError), Client(server.address) as client:
                    client.sock.settimeout(5)
                    client.send(simple(b"x"))
                    client.sock.recv(4)

        for _ in range(5):
            again()
        with running(shout, come, come, patience=300):
            wait_until(lambda server=server: server.stats().messages_received > 50, "traffic")
            report = server.stop(20, spread=spread)
        assert report.aborted == report.abandoned == 0
