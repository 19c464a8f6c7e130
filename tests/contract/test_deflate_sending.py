"""Compressed messages of several threads, and what waits of them."""

import functools
import itertools

import pytest
from deflate_peers import (
    GREETING,
    HIGH,
    THREADS,
    TIGHT,
    each_side,
    families,
    fragments,
    numbered,
    of_thread,
    one_by_one,
    ours,
    random_bytes,
    random_text,
    send_all,
    starter,
)
from support import running, settled, wait_until
from websocket_peers import (
    FIN,
    PING,
    RSV1,
    TEXT,
    Closed,
    deflate_peer_of,
    echo,
    ping,
    recorder,
    removed_with,
    text,
)

import hydrogen


@pytest.fixture
def begin(start, connect, tmp_path):
    """See `starter`."""
    return starter(start, connect, tmp_path)


# -------------------------------------------------------------------------------- sends of several


@families
@each_side
def test_the_messages_of_each_thread_stay_in_order(begin, family, sides):
    """Short ones, which are not compressed, do not overtake long ones; and all are inflated in one
    context.
    """
    handler = recorder(connected=None)
    server, peer = begin(handler, sides, family)
    socket = handler.socket()
    sent = [numbered(thread, 200) for thread in range(THREADS)]
    with running(*[functools.partial(send_all, socket, messages) for messages in sent]):
        received = [peer.receive_message() for _ in range(THREADS * 200)]
    for thread, messages in enumerate(sent):
        assert of_thread(received, thread) == messages
    wait_until(lambda: server.stats().messages_sent == THREADS * 200, "each is counted once")


@families
@each_side
def test_sends_of_callbacks_and_threads_and_broadcasts_mix(begin, family, sides):
    """Each source in order."""
    handler = recorder(connected=None, message=echo)
    server, peer = begin(handler, sides, family)
    socket = handler.socket()
    sent = [numbered(thread, 100) for thread in range(4)]

    def ask():
        for data in sent[0]:
            peer.send(peer.deflated(data))

    def broadcast():
        for data in sent[1]:
            assert server.broadcast(data) == hydrogen.BroadcastReport(1, 0)

    def send(thread):
        for number, data in enumerate(sent[thread]):
            assert socket.send(data)
            if number % 10 == 0:
                assert socket.ping(b"between")

    received, pings = [], 0
    with running(ask, broadcast, lambda: send(2), lambda: send(3)):
        while len(received) < 400:
            first, payload = peer.receive_frame()
            if first == FIN | PING:
                pings += 1
                continue
            received.append((peer.inflate(payload) if first & RSV1 else payload).decode())
    for thread, messages in enumerate(sent):
        assert of_thread(received, thread) == messages
    assert pings <= 20


@families
@each_side
def test_the_messages_of_each_thread_stay_in_order_while_the_peer_does_not_read(
    begin, family, sides
):
    """More of them than the buffers take, so that most of them wait."""
    handler = recorder(connected=None, message=echo, writable=None)
    server, peer = begin(handler, sides, family, receive_buffer=8192, **TIGHT)
    socket = handler.socket()
    sent = [
        [f"{thread} {n} {random_text(n * 997 % 9000, thread)}" for n in range(150)]
        for thread in range(3)
    ]
    with running(*[functools.partial(send_all, socket, messages) for messages in sent]):
        pass
    assert settled(lambda: socket.pending) > HIGH
    assert not socket.drain(0)
    wait_until(lambda: server.stats().queued_bytes > HIGH, "it is counted")
    peer.send(peer.deflated("3 behind"))
    received = [peer.receive_message() for _ in range(3 * 150 + 1)]
    for thread, messages in enumerate([*sent, ["3 behind"]]):
        assert of_thread(received, thread) == messages
    assert socket.drain()
    wait_until(lambda: socket.pending == 0, "all is taken")
    handler.wait_for("writable")


@ours
@families
def test_pending_counts_what_is_left_once_it_is_compressed(begin, family, sides):
    handler = recorder(connected=None)
    _, peer = begin(handler, sides, family, receive_buffer=8192, **TIGHT)
    socket = handler.socket()
    socket.send(random_bytes(4 << 20))
    before = settled(lambda: socket.pending)
    assert before > HIGH
    for _ in range(5):
        socket.send(bytes(1 << 20))
    wait_until(lambda: before <= socket.pending < before + 50_000, "it is compressed")
    assert peer.receive_message() == random_bytes(4 << 20)
    for _ in range(5):
        assert peer.receive_message() == bytes(1 << 20)
    wait_until(lambda: socket.pending == 0, "all is taken")


@families
@ours
@pytest.mark.parametrize("count", [1, THREADS], ids=["one thread", "several"])
def test_who_sends_more_than_a_client_reads_loses_it_as_a_slow_consumer(
    begin, connect, family, sides, count
):
    handler = recorder(connected=None, message=echo)
    server, peer = begin(
        handler, sides, family, receive_buffer=8192, max_write_buffer=1 << 20, **TIGHT
    )
    socket = handler.socket()
    data = random_bytes(10_000)

    def send():
        number = itertools.count()
        wait_until(lambda: not socket.send(data + b"%d" % next(number)), "it is refused")

    with running(*[send] * count):
        pass
    (error,) = handler.wait_disconnected()
    assert type(error) is hydrogen.SlowConsumer
    assert handler.wait_removed() == [error]
    assert server.stats().removed_slow_consumer == 1
    assert dict(server.stats().closes) == {1006: 1}
    assert not socket.send("late")
    peer.close()
    deflate_peer_of(connect(server), family).open().echo(GREETING)


@ours
@families
def test_messages_larger_than_max_write_buffer_are_taken_one_at_a_time(begin, family, sides):
    handler = recorder(connected=None)
    _, peer = begin(handler, sides, family, max_write_buffer=100_000)
    socket = handler.socket()
    for seed in range(3):
        data = random_bytes(1 << 20, seed)
        with running(lambda: socket.send(data) and socket.drain()):  # noqa: B023
            assert peer.receive_message() == data
        wait_until(lambda: socket.pending == 0, "all is taken")


# ---------------------------------------------------------------------------- drain and statistics


@families
@each_side
def test_drain_waits_until_all_is_sent(begin, family, sides):
    handler = recorder(connected=None)
    _, peer = begin(handler, sides, family, receive_buffer=8192, **TIGHT)
    socket = handler.socket()
    assert socket.drain(0)
    data = random_bytes(4 << 20)
    assert socket.send(data)
    assert socket.drain(0) is False
    assert socket.drain(0.01) is False
    drained = []
    with running(lambda: drained.append(socket.drain())):
        assert peer.receive_message() == data
    assert drained == [True]
    wait_until(lambda: socket.pending == 0, "all is taken")
    socket.send("short")
    assert socket.drain()
    assert peer.receive_message() == "short"


@families
@each_side
def test_drain_within_a_callback_waits_for_what_it_has_sent(begin, family, sides):
    most = []

    def received(socket, data):
        for seed in range(20):
            assert socket.send(random_bytes(100_000, seed))
            assert socket.drain()
            most.append(socket.pending)
        socket.close()

    handler = recorder(message=received)
    _, peer = begin(handler, sides, family, receive_buffer=8192, **TIGHT)
    peer.send(peer.deflated("go"))
    for seed in range(20):
        assert peer.receive_message() == random_bytes(100_000, seed)
    assert peer.answer_close() == Closed(1000, "")
    assert len(most) == 20
    assert max(most) <= HIGH


@ours
def test_drain_gives_up_when_the_connection_goes(begin, sides):
    handler = recorder(connected=None)
    _, peer = begin(handler, sides, receive_buffer=8192, **TIGHT)
    socket = handler.socket()
    socket.send(random_bytes(8 << 20))
    drained = []
    with running(*[lambda: drained.append(socket.drain())] * 2):
        peer.client.reset()
    assert drained == [False, False]


@families
@each_side
def test_messages_are_counted_and_not_frames(begin, family, sides):
    handler = recorder(message=echo)
    server, peer = begin(handler, sides, family)
    for data in (GREETING, "short", random_bytes(100_000)):
        peer.echo(data)
    payload = peer.compress(GREETING.encode())
    peer.send(fragments(TEXT, one_by_one(payload), ping()))
    for _ in payload[1:]:
        assert peer.receive_pong() == b""
    assert peer.receive_message() == GREETING
    peer.send(text("plain"))
    assert peer.receive_message() == "plain"
    wait_until(lambda: server.stats().messages_sent == 5, "they are counted")
    stats = server.stats()
    assert (stats.messages_received, stats.messages_refused) == (5, 0)
    assert stats.pings_received == len(payload) - 1
    assert peer.say_goodbye() == Closed(1000, "")
    removed_with(server, handler, 1000)
    assert (server.stats().messages_sent, server.stats().messages_received) == (5, 5)
