"""A broadcast to connections that compress in different ways."""

import functools
import itertools

import pytest
from deflate_peers import (
    GREETING,
    MIN_SIZE,
    NEVER,
    each_side,
    families,
    numbered,
    of_thread,
    random_bytes,
    starter,
    taking_over,
)
from support import running, settled, wait_until
from websocket_peers import (
    BINARY,
    FIN,
    RSV1,
    Closed,
    closing,
    deflate_peer_of,
    echo,
    frame,
    options_of,
    peer_of,
    recorder,
)

import hydrogen
from hydrogen import WebSocket


@pytest.fixture
def begin(start, connect, tmp_path):
    """See `starter`."""
    return starter(start, connect, tmp_path)


# --------------------------------------------------------------------------------------- broadcasts

KINDS = {
    "plain": None,
    "no takeover": "permessage-deflate; server_no_context_takeover",
    "a smaller window": "permessage-deflate; server_no_context_takeover; server_max_window_bits=9",
    "takeover": "permessage-deflate",
    "takeover of ours alone": "permessage-deflate; client_no_context_takeover",
    "takeover, a smaller window": "permessage-deflate; server_max_window_bits=9",
}


@pytest.fixture
def mixed(start, connect, tmp_path):
    """A server and a connection of each kind, with its socket."""

    def mixed(family="tcp", **hooks):
        handler = recorder(connected=None, message=echo, **hooks)
        server = start(
            handler,
            websocket=WebSocket(deflate=taking_over("both"), close_timeout=NEVER),
            **options_of(family, tmp_path / "s"),
        )
        found = {}
        for number, (kind, offer) in enumerate(KINDS.items(), 1):
            if offer is None:
                peer = peer_of(connect(server), family).open()
            else:
                peer = deflate_peer_of(connect(server), family, MIN_SIZE).open(offer=offer)
                assert peer.server_takeover is kind.startswith("takeover")
            found[kind] = peer, handler.wait_for("connected", number)[-1].socket
        return server, found

    return mixed


@families
def test_a_broadcast_reaches_each_as_it_has_agreed(mixed, family):
    server, found = mixed(family)
    data = random_bytes(3000, "broadcast")
    for sent in (GREETING, data, "short", b"", GREETING, data, "x" * 70_000, data[:2000]):
        assert server.broadcast(sent) == hydrogen.BroadcastReport(len(KINDS), 0)
        for peer, socket in found.values():
            assert peer.receive_message() == sent
            assert socket.send(f"{sent!r:.9}" * 300)
            assert peer.receive_message() == f"{sent!r:.9}" * 300
            peer.echo("mine" * 1000)
    for _ in range(2):
        server.broadcast(data[:2000])
        for peer, _ in found.values():
            assert peer.receive_message() == data[:2000]
    repeated = [
        kind for kind, (peer, _) in found.items() if kind != "plain" and len(peer.carried) < 200
    ]
    assert repeated == ["takeover", "takeover of ours alone"]
    expected = len(KINDS) * (8 * 3 + 2)
    wait_until(lambda: server.stats().messages_sent == expected, "they are counted")


@pytest.mark.parametrize("left_out", KINDS)
def test_a_broadcast_is_not_sent_to_those_excluded(mixed, left_out):
    server, found = mixed()
    for data in (GREETING, random_bytes(3000)):
        report = server.broadcast(data, exclude=[found[left_out][1]])
        assert report == hydrogen.BroadcastReport(len(KINDS) - 1, 0)
    for kind, (peer, _) in found.items():
        if kind != left_out:
            assert peer.receive_message() == GREETING
            assert peer.receive_message() == random_bytes(3000)
        peer.echo("nothing else came" * 100)


@families
def test_broadcasts_of_several_threads_reach_all_in_the_order_of_each(mixed, family):
    server, found = mixed(family)
    sent = [numbered(thread, 50) for thread in range(3)]

    def broadcast(messages):
        for data in messages:
            assert server.broadcast(data) == hydrogen.BroadcastReport(len(KINDS), 0)

    def read(peer):
        received = [peer.receive_message() for _ in range(150)]
        for thread, messages in enumerate(sent):
            assert of_thread(received, thread) == messages

    with running(
        *[functools.partial(broadcast, messages) for messages in sent],
        *[functools.partial(read, peer) for peer, _ in found.values()],
    ):
        pass


def test_a_broadcast_of_those_that_close_is_dropped(mixed):
    server, found = mixed()
    for peer, socket in found.values():
        socket.close()
        assert peer.receive_close() == Closed(1000, "")
    assert server.broadcast(GREETING) == hydrogen.BroadcastReport(0, len(KINDS))
    for peer, _ in found.values():
        peer.send(closing(1000))
        peer.meet_end()


def test_a_broadcast_within_a_callback_comes_between_its_messages(start, connect):
    def received(socket, data):
        socket.send("before" * 300)
        socket.server.broadcast(data)
        socket.send("behind" * 300)

    server = start(recorder(message=received), websocket=WebSocket(deflate=taking_over("both")))
    peer = deflate_peer_of(connect(server), min_size=MIN_SIZE).open()
    for _ in range(3):
        peer.send(peer.deflated(GREETING))
        expected = ["before" * 300, GREETING, "behind" * 300]
        assert [peer.receive_message() for _ in range(3)] == expected


def test_several_loops_serve_and_broadcast(start, connect, compiled):
    handler = recorder(connected=None, message=echo)
    server = start(handler, loops=2, websocket=WebSocket(deflate=taking_over("both")))
    offers = list(KINDS.values())[1:] * 2
    peers = [deflate_peer_of(connect(server), min_size=MIN_SIZE).open(offer=o) for o in offers]
    handler.wait_for("connected", len(peers))
    for _ in range(3):
        for number, peer in enumerate(peers):
            peer.echo(f"{number}" * 1500)
        assert server.broadcast(GREETING) == hydrogen.BroadcastReport(len(peers), 0)
        assert [peer.receive_message() for peer in peers] == [GREETING] * len(peers)


# ------------------------------------------------------------------------------- of each connection


@families
@each_side
def test_path_and_subprotocol_are_of_each_connection(start, connect, family, sides):
    handler = recorder(connected=None, message=echo)
    settings = WebSocket(deflate=taking_over(sides), subprotocols=["v1", "v2"])
    server = start(handler, websocket=settings, **options_of(family, None))
    expected = [("/one", "v1"), ("/two", "v2"), ("/one", "v2"), ("/two", None), ("/one", "v1")]
    peers = []
    for number, (path, subprotocol) in enumerate(expected, 1):
        fields = [] if subprotocol is None else [f"Sec-WebSocket-Protocol: {subprotocol}"]
        peer = deflate_peer_of(connect(server), family, MIN_SIZE)
        peers.append(peer.open(*fields, line=f"GET {path} HTTP/1.1"))
        handler.wait_for("connected", number)
    sockets = [call.socket for call in handler.of("connected")]
    for number, peer in enumerate(peers * 2):
        peer.echo(f"{number}" * 2000)
    assert [(socket.path, socket.subprotocol) for socket in sockets] == expected
    peers[0].say_goodbye()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 4, "it is gone")
    assert (sockets[0].path, sockets[0].subprotocol) == (None, None)
    assert (sockets[4].path, sockets[4].subprotocol) == ("/one", "v1")


@families
@each_side
def test_a_pause_holds_compressed_messages_back_and_a_resume_delivers_them(begin, family, sides):
    def received(socket, data):
        if data == "pause":
            socket.pause_reading()
        socket.send(data)  # then the pause has begun

    handler = recorder(message=received)
    _, peer = begin(handler, sides, family)
    peer.send(peer.deflated("pause") + peer.deflated(GREETING) + peer.deflated(b"x" * 5000))
    assert peer.receive_message() == "pause"
    settled(lambda: len(handler.messages()))
    assert handler.messages() == ["pause"]
    handler.socket().resume_reading()
    assert [peer.receive_message(), peer.receive_message()] == [GREETING, b"x" * 5000]


@each_side
def test_messages_that_are_not_whole_count_as_held_and_are_let_go(begin, sides):
    handler = recorder(message=echo)
    server, peer = begin(handler, sides)
    data = random_bytes(500_000)
    payload = peer.compress(data)
    peer.send(frame(BINARY | RSV1, payload[:300_000]))
    wait_until(lambda: server.stats().queued_bytes >= 300_000, "it is held")
    peer.send(frame(FIN, payload[300_000:]))
    assert peer.receive_message() == data
    wait_until(lambda: server.stats().queued_bytes == 0, "it is let go")


def test_a_storm_of_clients_in_turn_is_served(start, connect):
    handler = recorder(message=echo)
    server = start(handler, websocket=WebSocket(deflate=taking_over("both")))
    for number, offer in zip(range(100), itertools.cycle(list(KINDS.values())[1:]), strict=False):
        with connect(server) as client:
            peer = deflate_peer_of(client, min_size=MIN_SIZE).open(offer=offer)
            peer.echo(f"{number}" * 1000)
            assert peer.say_goodbye() == Closed(1000, "")
    handler.wait_removed(100)
    assert dict(server.stats().closes) == {1000: 100}
