"""idle_timeout after a callback, after an end of input, and of those who wait for a worker.

As in test_deadlines_idle.py nothing measures time: that it has passed is seen by another server's
connection, which began later and was removed.
"""

import os
import threading

import pytest
from certificates import client_context, server_context
from families import PassThrough
from support import TlsClient, recorder, timed_out, wait_event

pytestmark = pytest.mark.slow

SHORT = 0.3
AMPLE = 1.0


@pytest.fixture
def outlast(start, connect):
    """Wait until an idle_timeout as long, which begins now, has passed."""
    handlers = {}

    def outlast(seconds):
        if seconds not in handlers:
            handler = recorder()
            handlers[seconds] = handler, start(handler, idle_timeout=seconds, max_threads=1)
        handler, server = handlers[seconds]
        count = len(handler.of("connection_removed"))
        connect(server)
        timed_out(handler, "idle_timeout", count + 1)

    return outlast


@pytest.mark.clause("C27", "H22")
@pytest.mark.parametrize("times", [2, 3])
def test_a_connection_that_is_late_again_and_again_is_read_before_the_clock_each_time(
    start, connect, gate, outlast, times
):
    gates = {b"block": gate(), **{b"%d" % number: gate() for number in range(times)}}

    def received(socket, data):
        if data in gates:
            wait_event(gates[data], "let go")
        else:
            socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, idle_timeout=AMPLE, max_threads=1)
    client, blocker = connect(server), connect(server)
    blocker.send(b"block")
    handler.wait_for("data_received")
    outlast(AMPLE)
    before = gates[b"block"]
    for number in range(times):
        client.send(b"%d" % number)
        before.set()
        handler.wait_for("data_received", number + 2)
        outlast(AMPLE)
        before = gates[b"%d" % number]
    client.send(b"alive")
    before.set()
    assert client.receive(5) == b"alive"
    assert (
        handler.of("disconnected") == [] or handler.of("disconnected")[0].id != handler.socket(1).id
    )


@pytest.mark.clause("C27", "H11")
@pytest.mark.parametrize("more", [b"", b"x", b"x" * 10_000], ids=len)
def test_after_close_notify_a_peer_that_stays_is_idle_whatever_it_has_sent_behind_it(
    start, connect, more
):
    handler = recorder(connected=None, data_received=None, eof=None)
    server = start(handler, ssl=server_context(), idle_timeout=SHORT, max_threads=2)
    client = connect(server)
    talker = TlsClient(client, client_context()).handshake()
    talker.send(b"hello")
    handler.wait_bytes(5)
    client.send(talker.close_notify() + more)
    handler.wait_for("eof")
    timed_out(handler, "idle_timeout")


@pytest.mark.clause("C27", "H11")
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "after on_eof"])
def test_after_a_close_notify_what_follows_later_does_not_keep_the_connection_for_ever(
    start, connect, apart
):
    handler = recorder(connected=None, eof=None)
    server = start(handler, ssl=server_context(), idle_timeout=SHORT, max_threads=2)
    client = connect(server)
    talker = TlsClient(client, client_context()).handshake()
    client.send(talker.close_notify())
    if apart:
        handler.wait_for("eof")
    client.send(b"x")
    timed_out(handler, "idle_timeout")


class Nul(PassThrough):
    """A stream whose protocol has an end of its own: a NUL."""

    def recv(self):
        part = os.read(self.fd, 1)
        if part in (b"", b"\0"):
            raise EOFError
        return [part]


@pytest.mark.clause("C27", "H11", "T4")
@pytest.mark.parametrize("more", [b"", b"c", b"c" * 1000], ids=len)
def test_after_the_end_that_a_stream_says_a_peer_that_stays_is_idle(start, connect, more):
    handler = recorder(new_connection=Nul, eof=None)
    client = connect(start(handler, idle_timeout=SHORT, max_threads=2))
    client.send(b"ab\0" + more)
    handler.wait_for("eof")
    assert handler.data() == b"ab"
    timed_out(handler, "idle_timeout")


@pytest.mark.clause("C27", "H22", "H8")
@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_who_has_waited_for_a_worker_longer_than_idle_timeout_has_it_all_before_him(
    start, connect, gate, outlast, kind
):
    go, opened = gate(), threading.Event()

    def received(socket, data):
        if data == b"block":
            wait_event(go, "let go")
        else:
            socket.send(data)

    def arrived(fd):
        if handler.of("data_received"):
            opened.set()

    handler = recorder(new_connection=arrived, connected=None, data_received=received)
    options = {"ssl": server_context()} if kind == "tls" else {}
    server = start(handler, idle_timeout=AMPLE, max_threads=1, **options)

    def talk(client):
        return TlsClient(client, client_context()).handshake() if kind == "tls" else client

    blocker = talk(connect(server))
    blocker.send(b"block")
    handler.wait_for("data_received")
    client = connect(server)
    outlast(AMPLE)
    go.set()
    wait_event(opened, "it is taken up")
    outlast(SHORT)
    talk(client).echo(b"alive")
