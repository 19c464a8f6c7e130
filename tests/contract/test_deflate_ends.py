"""How a connection ends whose messages are compressed."""

import functools
import itertools
import select
import threading

import pytest
from deflate_peers import (
    AMPLE,
    GREETING,
    HIGH,
    SHORT,
    TIGHT,
    each_side,
    families,
    numbered,
    of_thread,
    ours,
    random_bytes,
    random_text,
    send_all,
    starter,
)
from support import running, settled, wait_event, wait_until
from websocket_peers import (
    BINARY,
    CLOSE,
    FIN,
    PING,
    PONG,
    RSV1,
    Closed,
    closing,
    deflate_peer_of,
    echo,
    frame,
    ping,
    pong,
    recorder,
    removed_with,
    text,
)

import hydrogen


@pytest.fixture
def begin(start, connect, tmp_path):
    """See `starter`."""
    return starter(start, connect, tmp_path)


# --------------------------------------------------------------------------------------- the end

LAST = numbered(0, 100)


@families
@each_side
@pytest.mark.parametrize("by", ["a callback", "a thread"])
def test_close_comes_behind_all_messages(begin, family, sides, by):
    def finish(socket):
        send_all(socket, LAST)
        socket.close(4001, "reason")
        assert not socket.send("refused")
        assert not socket.is_open

    handler = recorder(connected=None, message=lambda socket, data: finish(socket))
    server, peer = begin(handler, sides, family)
    if by == "a callback":
        peer.send(peer.deflated("go"))
    else:
        finish(handler.socket())
    assert [peer.receive_message() for _ in LAST] == LAST
    assert peer.answer_close() == Closed(4001, "reason")
    error = removed_with(server, handler, 4001)
    assert (type(error), error.code, error.reason) == (hydrogen.LocalClosed, 4001, "reason")
    stats = server.stats()
    assert (stats.messages_sent, stats.messages_refused) == (100, 1)


@families
@each_side
def test_close_comes_behind_all_messages_that_wait_for_the_peer(begin, family, sides):
    handler = recorder(connected=None)
    server, peer = begin(handler, sides, family, receive_buffer=8192, **TIGHT)
    socket = handler.socket()
    sent = [random_text(50_000, n) for n in range(20)]
    send_all(socket, sent)
    assert settled(lambda: socket.pending) > HIGH
    socket.close(1000, "reason")
    assert [peer.receive_message() for _ in sent] == sent
    assert peer.answer_close() == Closed(1000, "reason")
    removed_with(server, handler, 1000)


@families
@each_side
def test_close_amid_sends_of_others_comes_behind_what_was_taken(begin, family, sides):
    """Each message for which `send` returns True comes, in order, and none for which it does not;
    then the CLOSE.
    """
    handler = recorder(connected=None)
    server, peer = begin(handler, sides, family)
    socket = handler.socket()
    taken = [[] for _ in range(3)]

    def send(thread):
        for data in numbered(thread, 100_000):
            if not socket.send(data):
                return
            taken[thread].append(data)

    received = []
    with running(*[functools.partial(send, thread) for thread in range(3)]):
        for number in itertools.count():
            first, payload = peer.receive_frame()
            if first == FIN | CLOSE:
                break
            received.append((peer.inflate(payload) if first & RSV1 else payload).decode())
            if number == 100:
                socket.close(4000)
    peer.send(closing(4000))
    peer.meet_end()
    for thread, messages in enumerate(taken):
        assert of_thread(received, thread) == messages
    removed_with(server, handler, 4000)
    assert server.stats().messages_sent == len(received)
    assert server.stats().messages_refused == 3


@families
@each_side
def test_the_answer_to_a_close_of_the_client_comes_behind_all_messages(begin, family, sides):
    handler = recorder(message=lambda socket, data: send_all(socket, LAST))
    server, peer = begin(handler, sides, family)
    peer.send(peer.deflated("go") + closing(4321, "genug"))
    assert [peer.receive_message() for _ in LAST] == LAST
    assert peer.ended().code == 4321
    removed_with(server, handler, 4321)


@families
@each_side
def test_a_stop_of_the_server_is_told_behind_all_messages(begin, connect, family, sides):
    handler = recorder(connected=None)
    server, peer = begin(handler, sides, family)
    socket = handler.socket()  # before there is another one
    idle = deflate_peer_of(connect(server), family).open()
    send_all(socket, LAST)
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        assert [peer.receive_message() for _ in LAST] == LAST
        assert peer.answer_close() == Closed(1001, "")
        assert idle.answer_close() == Closed(1001, "")
    assert (reports[0].closed, reports[0].aborted, reports[0].unsent_bytes) == (2, 0, 0)


@families
@each_side
def test_what_is_being_answered_when_the_server_stops_is_answered_first(begin, gate, family, sides):
    go = gate()

    def received(socket, data):
        wait_event(go, "the stop has begun")
        send_all(socket, [data, *LAST])

    handler = recorder(message=received)
    server, peer = begin(handler, sides, family)
    peer.send(peer.deflated(GREETING) + peer.deflated(GREETING))
    handler.wait_for("message")
    with running(lambda: server.stop(20)):
        wait_until(lambda: not server.ready, "the stop begins")
        settled(lambda: len(server.connections))
        go.set()
        expected = [GREETING, *LAST] * 2
        assert [peer.receive_message() for _ in expected] == expected
        assert peer.answer_close() == Closed(1001, "")


@families
@each_side
@pytest.mark.parametrize("how", ["abort", "abort of the server", "reset of the peer"])
def test_an_end_at_once_while_messages_wait_leaves_nothing_behind(
    begin, connect, family, sides, how
):
    """Some threads are sending, and one waits in `drain`."""
    handler = recorder(connected=None)
    server, peer = begin(handler, sides, family, receive_buffer=8192, **TIGHT)
    socket = handler.socket()
    data = random_bytes(20_000)
    begun = threading.Event()

    def send():
        while socket.send(data):
            if socket.pending > 1 << 20:
                begun.set()
                assert socket.drain() is False

    with running(send, send):
        wait_event(begun, "messages wait")
        if how == "abort":
            socket.abort()
        elif how == "abort of the server":
            server.abort()
        else:
            peer.client.reset()
    handler.wait_removed()
    assert server.stats().queued_bytes == 0
    assert dict(server.stats().closes) == {1006: 1}
    assert not socket.is_open
    assert not socket.send(data)
    peer.close()


@families
@each_side
def test_close_that_is_raised_comes_behind_all_messages(begin, family, sides):
    def received(socket, data):
        send_all(socket, LAST)
        raise hydrogen.Close(4001, "expired")

    handler = recorder(message=received)
    server, peer = begin(handler, sides, family)
    peer.send(peer.deflated("go"))
    assert [peer.receive_message() for _ in LAST] == LAST
    assert peer.answer_close() == Closed(4001, "expired")
    assert type(removed_with(server, handler, 4001)) is hydrogen.LocalClosed


@families
@each_side
def test_what_a_callback_raises_is_told_with_1011_behind_all_messages(
    begin, error_log, family, sides
):
    def received(socket, data):
        send_all(socket, LAST)
        raise KeyError("secret")

    handler = recorder(message=received)
    server, peer = begin(handler, sides, family)
    peer.send(peer.deflated("go") + text("never"))
    assert [peer.receive_message() for _ in LAST] == LAST
    assert peer.answer_close().code == 1011
    assert type(removed_with(server, handler, 1011)) is hydrogen.HandlerError
    assert handler.messages() == ["go"]
    (record,) = error_log()
    assert "on_message" in record.getMessage()


@each_side
def test_messages_of_on_connected_come_first_and_its_close_behind(begin, sides):
    def connected(socket):
        send_all(socket, LAST)
        socket.close(4000)

    handler = recorder(connected=connected)
    server, peer = begin(handler, sides)
    assert [peer.receive_message() for _ in LAST] == LAST
    assert peer.answer_close() == Closed(4000, "")
    removed_with(server, handler, 4000)


# ---------------------------------------------------------------------------------- pings and pongs


@families
@each_side
def test_pings_and_pongs_go_uncompressed_between_compressed_messages(begin, family, sides):
    handler = recorder(connected=None, message=echo, pong=None)
    server, peer = begin(handler, sides, family)
    socket = handler.socket()
    data = random_bytes(2000)
    for number in range(5):
        peer.send(ping(b"x" * 125) + peer.deflated(data) + ping(b"y" * 125))
        frames = [peer.receive_frame() for _ in range(3)]
        pongs = [payload for first, payload in frames if first == FIN | PONG]
        assert pongs == [b"x" * 125, b"y" * 125]
        ((first, payload),) = [frame for frame in frames if frame.first != FIN | PONG]
        assert (first, peer.inflate(payload)) == (FIN | RSV1 | BINARY, data)
        assert socket.send(data)
        assert peer.receive_message() == data
        assert socket.ping(b"%d" % number * 100)
        assert peer.receive_ping() == b"%d" % number * 100
        peer.send(pong(b"%d" % number * 100))
        handler.wait_for("pong", number + 1)
    wait_until(lambda: socket.latency is not None, "it is known")
    assert (server.stats().pings_received, server.stats().pings_sent) == (10, 5)


@families
@each_side
def test_keepalive_goes_on_between_compressed_messages(begin, family, sides):
    """A ping for each pong that is answered, and messages meanwhile."""
    handler = recorder(message=echo)
    times = {"ping_interval": SHORT, "ping_timeout": AMPLE}
    server, peer = begin(handler, sides, family, settings=times)
    data = random_bytes(2000)
    messages = 0
    for _ in range(3):
        first, payload = peer.receive_frame()
        while first != FIN | PING:
            assert peer.inflate(payload) == data
            messages += 1
            first, payload = peer.receive_frame()
        peer.send(pong(payload) + peer.deflated(data))
    while messages < 3:
        first, payload = peer.receive_frame()
        if first == FIN | PING:
            peer.send(pong(payload))
        else:
            assert peer.inflate(payload) == data
            messages += 1
    assert server.stats().removed == 0


@families
@ours
def test_a_client_that_is_silent_is_found_out(begin, family, sides):
    handler = recorder()
    times = {"ping_interval": SHORT, "ping_timeout": SHORT}
    server, peer = begin(handler, sides, family, settings=times)
    peer.receive_ping()
    assert peer.at_end() == "reset"
    (error,) = handler.wait_disconnected()
    assert str(error).startswith("ping_timeout:")
    wait_until(lambda: server.stats().removed_ping_timeout == 1, "it is counted")


@families
def test_what_cannot_be_inflated_is_dropped_once_we_have_closed(begin, family):
    """As any message is that comes in place of the client's CLOSE."""
    handler = recorder(connected=lambda socket: socket.close(4000))
    server, peer = begin(handler, "both", family)
    assert peer.receive_close() == Closed(4000, "")
    received = server.stats().bytes_received
    peer.send(frame(FIN | RSV1 | BINARY, b"nonsense"))
    wait_until(lambda: server.stats().bytes_received > received, "it is read")
    assert select.select([peer.client.sock], [], [], 0)[0] == []
    peer.send(closing(4000))
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000
