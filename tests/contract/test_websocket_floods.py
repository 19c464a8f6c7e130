"""Clients that flood, and clients that do not read: what is kept for them is bounded, and others
are served.
"""

import socket as stdlib_socket
import threading

import pytest
from support import running, settled, wait_event, wait_until
from websocket_peers import (
    BINARY,
    FAMILIES,
    FIN,
    PING,
    TEXT,
    Closed,
    closing,
    echo,
    frame,
    options_of,
    peer_of,
    ping,
    pong,
    recorder,
    text,
)

import hydrogen
from hydrogen import WebSocket

LOW, HIGH = 16_384, 32_768
SMALL = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 8192)]
TIGHT = {"socket_options": SMALL, "write_buffer_limits": (LOW, HIGH)}
"""Options of a server whose output is soon too much."""

SHORT = 0.3
NEVER = 60.0
LONG = "x" * (4 << 20)


def tight(connect, server):
    """A peer that takes little."""
    return peer_of(connect(server, receive_buffer=8192)).open()


def test_a_flood_of_pings_that_are_not_read_pauses_reading(start, connect):
    """And no pong is lost, nor comes out of order."""
    count = 20_000
    handler = recorder(message=echo)
    server = start(handler, **TIGHT)
    neighbour, peer = peer_of(connect(server)).open(), tight(connect, server)
    most = [0]

    def flood():
        for number in range(0, count, 100):
            peer.send(b"".join(ping(b"%0125d" % n) for n in range(number, number + 100)))
        peer.send(text("at the end"))

    with running(flood):
        wait_until(lambda: server.stats().reading_pauses, "reading is paused")
        for number in range(20):
            neighbour.echo(f"{number}")
            most.append(server.stats().queued_bytes)
        settled(lambda: server.stats().bytes_received)
        most.append(server.stats().queued_bytes)
        for number in range(count):
            assert peer.receive_pong() == b"%0125d" % number
        assert peer.receive_message() == "at the end"
    assert max(most) < HIGH + (1 << 20)
    stats = server.stats()
    assert stats.pings_received == count
    assert stats.reading_resumes == stats.reading_pauses >= 1
    assert stats.removed == 0


def test_a_flood_of_pongs_is_counted_and_others_are_served(start, connect):
    count = 20_000
    handler = recorder(message=echo)
    server = start(handler, max_threads=1)
    neighbour, peer = peer_of(connect(server)).open(), peer_of(connect(server)).open()

    def ask():
        for number in range(100):
            neighbour.echo(f"{number}")

    with running(lambda: peer.send(pong(b"x" * 10) * count), ask):
        pass
    peer.echo("behind")
    assert server.stats().pongs_received == count
    assert handler.names().count("on_message") == 101


def test_a_flood_of_empty_messages_is_delivered_and_others_are_served(start, connect):
    count = 20_000
    got = []
    handler = recorder(message=lambda socket, data: socket.send(data) if data else got.append(1))
    server = start(handler, max_threads=1)
    neighbour, peer = peer_of(connect(server)).open(), peer_of(connect(server)).open()

    def ask():
        for number in range(100):
            neighbour.echo(f"{number}")

    with running(lambda: peer.send(text("") * count), ask):
        pass
    peer.echo("behind")
    assert len(got) == count


def test_a_burst_does_not_go_before_everybody_else(start, connect, gate):
    """One worker is held until a burst of pings and a single message wait."""
    go = gate()

    def received(socket, data):
        if data == "hold":
            wait_event(go, "the others have sent")

    handler = recorder(message=received, pong=None)
    server = start(handler, max_threads=1)
    holder, burst, single = (peer_of(connect(server)).open() for _ in range(3))
    holder.send(text("hold"))
    handler.wait_for("message")
    burst.send(pong() * 10_000)
    single.send(text("single"))
    go.set()
    handler.wait_for("pong", 10_000)
    assert "on_message" in handler.names()[4:10_000]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_that_sends_while_it_should_read_gets_all_of_it(start, connect, tmp_path, family):
    """The buffers of both sides are full before it reads."""
    data = "x" * 50_000
    count = 200
    server = start(recorder(message=echo), **TIGHT, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    with running(lambda: [peer.send(text(data)) for _ in range(count)]):
        wait_until(lambda: server.stats().reading_pauses, "the answers fill the buffers")
        settled(lambda: server.stats().bytes_received)
        for _ in range(count):
            assert peer.receive_message() == data
    assert peer.say_goodbye() == Closed(1000, "")


def test_messages_that_are_not_read_pause_reading_until_they_are(start, connect):
    handler = recorder(message=lambda socket, data: socket.send(LONG), writable=None)
    server = start(handler, **TIGHT)
    peer = tight(connect, server)
    peer.send(text("1") + text("2"))
    wait_until(lambda: server.stats().reading_pauses, "the first answer fills the buffers")
    settled(lambda: len(handler.messages()))
    assert handler.messages() == ["1"]
    assert handler.socket().pending > HIGH
    assert [peer.receive_message(), peer.receive_message()] == [LONG, LONG]
    assert handler.messages() == ["1", "2"]
    handler.wait_for("writable")


def test_a_ping_of_the_client_waits_behind_the_watermark_too(start, connect):
    handler = recorder(message=lambda socket, data: socket.send(LONG))
    server = start(handler, **TIGHT)
    peer = tight(connect, server)
    peer.send(text("1"))
    wait_until(lambda: server.stats().reading_pauses, "the answer fills the buffers")
    peer.send(ping(b"behind"))
    assert peer.receive_message() == LONG
    assert peer.receive_pong() == b"behind"


def test_who_sends_more_than_a_client_reads_loses_it_as_a_slow_consumer(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1 << 20, **TIGHT)
    peer = tight(connect, server)
    socket = handler.socket()
    wait_until(lambda: not socket.send("x" * 10_000), "it is refused")
    assert type(handler.wait_disconnected()[0]) is hydrogen.SlowConsumer
    assert handler.wait_removed()
    assert server.stats().removed_slow_consumer == 1
    assert dict(server.stats().closes) == {1006: 1}
    peer.close()


def test_a_broadcast_loses_only_those_that_do_not_read(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1 << 20, **TIGHT)
    slow = tight(connect, server)
    handler.wait_for("connected")
    good = peer_of(connect(server)).open()
    handler.wait_for("connected", 2)
    done = threading.Event()

    def read():
        while good.receive_message() != "done":
            pass
        done.set()

    with running(read):
        reports = []

        def refused():
            reports.append(server.broadcast("x" * 10_000))
            assert handler.of("connected")[1].socket.drain(30)
            return reports[-1].dropped

        wait_until(refused, "the slow one is dropped")
        assert server.broadcast("done") == hydrogen.BroadcastReport(1, 0)
        wait_event(done, "the good one has it")
    (error,) = handler.wait_disconnected()
    assert type(error) is hydrogen.SlowConsumer
    assert handler.of("disconnected")[0].id == handler.of("connected")[0].id
    slow.close()


def test_pings_of_ours_that_nobody_reads_are_bounded(start, connect):
    """`ping` is refused where `send` would be."""
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1 << 20, **TIGHT)
    peer = tight(connect, server)
    socket = handler.socket()
    wait_until(lambda: not all(socket.ping(bytes(125)) for _ in range(1000)), "it is refused")
    assert type(handler.wait_disconnected()[0]) is hydrogen.SlowConsumer
    peer.close()


@pytest.mark.parametrize("how", ["open", "closing", "closed by the client"])
def test_a_client_that_freezes_is_reset_at_write_timeout(start, connect, how):
    """It neither reads nor sends, in whatever state; a ping would stand behind all the rest."""
    handler = recorder(connected=None)
    settings = WebSocket(close_timeout=NEVER)
    server = start(handler, websocket=settings, write_timeout=SHORT, **TIGHT)
    peer = tight(connect, server)
    socket = handler.socket()
    socket.send(LONG)
    if how == "closing":
        socket.close(4000)
    elif how == "closed by the client":
        peer.send(closing(1000))
    assert handler.wait_removed()
    assert peer.at_end() == "reset"
    stats = server.stats()
    assert dict(stats.closes) == {1006: 1}  # no CLOSE was sent, nor was one read
    if how == "open":
        assert type(handler.wait_disconnected()[0]) is hydrogen.ConnectionTimeout
        assert stats.removed_write_timeout == 1


def test_a_client_that_takes_its_time_is_not_taken_for_dead(start, connect):
    """It reads slower than it is pinged, but it reads: `ping_timeout` does not end it. A silent
    one, which is ended, tells that time has passed.
    """
    handler = recorder(connected=None)
    settings = WebSocket(ping_interval=SHORT, ping_timeout=SHORT)
    server = start(handler, websocket=settings, **TIGHT)
    peer = tight(connect, server)
    socket = handler.socket()
    socket.send(LONG)
    clock = peer_of(connect(server)).open()
    assert clock.at_end() == "reset"
    assert socket.is_open
    received = peer.receive_frame()
    while received.first == FIN | PING:
        received = peer.receive_frame()
    assert received == (FIN | TEXT, LONG.encode())


def test_messages_that_are_not_whole_count_as_held_and_are_let_go(start, connect):
    handler = recorder(message=echo)
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.send(frame(BINARY, bytes(500_000)))
    wait_until(lambda: server.stats().queued_bytes >= 500_000, "it is held")
    peer.send(frame(FIN, bytes(500_000)))
    assert peer.receive_message() == bytes(1_000_000)
    wait_until(lambda: server.stats().queued_bytes == 0, "it is let go")
    peer.send(frame(BINARY, bytes(500_000)))
    peer.client.reset()
    handler.wait_removed()
    wait_until(lambda: server.stats().queued_bytes == 0, "it is let go")


def test_clients_that_vanish_leave_nothing_behind(start, connect):
    """At any point of a connection's life."""
    handler = recorder(message=echo)
    server = start(handler, pre_allocated=4)
    ends = [
        lambda peer: None,
        lambda peer: peer.send(text("unread")),
        lambda peer: peer.send(frame(TEXT, b"part")),
        lambda peer: peer.send(b"\x81\xfe"),
        lambda peer: peer.send(ping() + closing(1000)),
        lambda peer: peer.send(b"\x83"),
    ]
    for number, end in enumerate(ends * 5):
        peer = peer_of(connect(server)).open()
        end(peer)
        peer.client.reset() if number % 2 else peer.close()
    handler.wait_removed(len(ends) * 5)
    peer_of(connect(server)).open().echo("hello")
    wait_until(lambda: sum(server.stats().closes.values()) == len(ends) * 5, "each is counted")


def test_a_storm_of_clients_in_turn_is_served(start, connect):
    handler = recorder(message=echo)
    server = start(handler)
    for number in range(200):
        with connect(server) as client:
            peer = peer_of(client).open()
            peer.echo(f"{number}")
            assert peer.say_goodbye() == Closed(1000, "")
    handler.wait_removed(200)
    assert dict(server.stats().closes) == {1000: 200}
