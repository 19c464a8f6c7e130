"""permessage-deflate (RFC 7692): what is agreed on, and whose context goes on."""

import pytest
from deflate_peers import (
    GREETING,
    MIN_SIZE,
    each_side,
    families,
    random_bytes,
    starter,
    taking_over,
)
from websocket_peers import (
    FIN,
    OFFER,
    RSV1,
    TEXT,
    binary,
    deflate_peer_of,
    echo,
    head,
    peer_of,
    ping,
    recorder,
    removed_with,
    text,
)

import hydrogen
from hydrogen import Deflate, WebSocket


@pytest.fixture
def begin(start, connect, tmp_path):
    """See `starter`."""
    return starter(start, connect, tmp_path)


# -------------------------------------------------------------------------------- what is agreed on

NEITHER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
DEFAULT = f"{NEITHER}; server_max_window_bits=12"
BOTH = {"server_no_context_takeover": False, "client_no_context_takeover": False}


@pytest.mark.parametrize(
    ("settings", "offer", "expected"),
    [
        ({}, "permessage-deflate", DEFAULT),
        (
            {},
            "PERMESSAGE-Deflate ; Client_Max_Window_Bits",
            f"{DEFAULT}; client_max_window_bits=12",
        ),
        ({}, OFFER, f"{DEFAULT}; client_max_window_bits=12"),
        ({}, f"{OFFER}=15", f"{DEFAULT}; client_max_window_bits=12"),
        ({}, f"{OFFER}=10", f"{DEFAULT}; client_max_window_bits=10"),
        (
            {},
            'permessage-deflate; server_max_window_bits="9"',
            f"{NEITHER}; server_max_window_bits=9",
        ),
        ({}, "permessage-deflate; server_max_window_bits=15", DEFAULT),
        ({}, f"{NEITHER}; server_max_window_bits=12", DEFAULT),
        ({"window_bits": 15}, "permessage-deflate", NEITHER),
        ({"window_bits": 15}, OFFER, f"{NEITHER}; client_max_window_bits=15"),
        (
            {"window_bits": 9},
            OFFER,
            f"{NEITHER}; server_max_window_bits=9; client_max_window_bits=9",
        ),
        ({**BOTH, "window_bits": 15}, "permessage-deflate", "permessage-deflate"),
        (BOTH, NEITHER, DEFAULT),
        (
            BOTH,
            "permessage-deflate; server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=12",
        ),
        (
            BOTH,
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover; server_max_window_bits=12",
        ),
        ({}, "x-other; a=b, permessage-deflate", DEFAULT),
        ({}, "permessage-deflate; unknown, permessage-deflate", DEFAULT),
        ({}, "permessage-deflate; server_max_window_bits=8, permessage-deflate", DEFAULT),
    ],
)
def test_an_offer_is_answered_and_holds(start, connect, settings, offer, expected):
    server = start(recorder(message=echo), websocket=WebSocket(deflate=Deflate(**settings)))
    peer = deflate_peer_of(connect(server), min_size=MIN_SIZE)
    peer.send(head(f"Sec-WebSocket-Extensions: {offer}"))
    answered = peer.receive_opening().headers["sec-websocket-extensions"]
    assert sorted(answered.split("; ")) == sorted(expected.split("; "))
    for data in (GREETING, random_bytes(3000), GREETING, "", b"", random_bytes(3000)):
        peer.echo(data)


def test_the_second_of_two_fields_may_be_taken(start, connect):
    server = start(recorder(message=echo), websocket=WebSocket(deflate=Deflate()))
    field = "Sec-WebSocket-Extensions: permessage-deflate"
    peer = deflate_peer_of(connect(server)).open(field, offer="permessage-deflate; unknown")
    assert "unknown" not in peer.agreed
    peer.echo(GREETING)


DECLINED = [
    "permessage-deflate; unknown",
    "permessage-deflate; unknown=1",
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
    "permessage-deflate; server_max_window_bits=8",
    "permessage-deflate; server_max_window_bits=16",
    "permessage-deflate; server_max_window_bits",
    "permessage-deflate; server_max_window_bits=09",
    "permessage-deflate; client_max_window_bits=7",
    "permessage-deflate; client_no_context_takeover=1",
    "x-webkit-deflate-frame",
]


@pytest.mark.parametrize("offer", DECLINED)
def test_an_offer_that_is_declined_leaves_the_connection_plain(start, connect, offer):
    server = start(recorder(message=echo), websocket=WebSocket(deflate=taking_over("both")))
    peer = peer_of(connect(server)).open(f"Sec-WebSocket-Extensions: {offer}")
    peer.echo("x" * 5000)
    peer.echo(bytes(5000))
    peer.send(bytes([FIN | RSV1 | TEXT]))
    assert peer.ended().code == 1002


@pytest.mark.parametrize(
    ("deflate", "fields"),
    [(None, [f"Sec-WebSocket-Extensions: {OFFER}"]), (Deflate(), [])],
    ids=["not configured", "not offered"],
)
def test_nothing_is_compressed_unless_both_sides_want_it(start, connect, deflate, fields):
    handler = recorder(message=echo)
    server = start(handler, websocket=WebSocket(deflate=deflate))
    peer = peer_of(connect(server)).open(*fields)
    peer.echo("x" * 5000)
    peer.send(bytes([FIN | RSV1 | TEXT]))
    assert peer.ended().code == 1002
    assert type(removed_with(server, handler, 1002)) is hydrogen.ProtocolError


@pytest.mark.parametrize(
    "field", ["permessage-deflate;", "permessage-deflate; =1", ",", "a b", 'a; b="c', "(a)"]
)
def test_extensions_that_are_malformed_are_refused_with_400(start, connect, field):
    handler = recorder(message=echo)
    server = start(handler, websocket=WebSocket(deflate=Deflate()))
    peer = peer_of(connect(server))
    peer.send(head(f"Sec-WebSocket-Extensions: {field}"))
    assert peer.refused().status == 400
    deflate_peer_of(connect(server)).open().echo(GREETING)


@pytest.mark.parametrize("bits", [9, 12, 15])
@each_side
def test_no_side_looks_back_beyond_its_window(begin, sides, bits):
    """The peer keeps no more of what the server has sent, and refers back as far as it may."""
    _, peer = begin(recorder(message=echo), sides, deflate={"window_bits": bits})
    assert (peer.server_bits, peer.client_bits) == (bits, bits)
    for distance in (1 << bits, (1 << bits) - 300, 300):
        block = random_bytes(distance, "distance")
        peer.echo(block + block[:200] + bytes(MIN_SIZE))
        peer.echo(block[-200:] + block)


def test_a_client_that_was_not_asked_for_a_window_has_the_largest(begin):
    _, peer = begin(recorder(message=echo), "client", offer="permessage-deflate")
    assert peer.client_bits == 15
    data = random_bytes(30_000)
    peer.echo(data)
    again = peer.deflated(data)
    assert len(again) < 1000
    peer.send(again)
    assert peer.receive_message() == data


def test_a_client_may_want_the_smallest_window(begin):
    """Of 256 bytes, so that this peer, whose zlib has none, repeats nothing further back."""
    _, peer = begin(recorder(message=echo), "client", offer=f"{OFFER}=8")
    assert peer.client_bits == 8
    peer.client_bits = 9
    for data in ("abc" * 80, random_bytes(200), random_bytes(5000)):
        peer.echo(data)


# -------------------------------------------------------------------------------------- the context


@each_side
@families
def test_the_context_of_the_client_goes_on_over_messages_if_agreed(begin, family, sides):
    """Also when others come between that are not compressed."""
    _, peer = begin(recorder(message=echo), sides, family)
    data = random_bytes(2000)
    sizes = []
    for between in (b"", text("plain"), ping(), binary(random_bytes(5000))):
        wire = peer.deflated(data)
        sizes.append(len(wire))
        peer.send(between + wire)
        if between:
            peer.receive_pong() if between == ping() else peer.receive_message()
        assert peer.receive_message() == data
    is_repeated = [size < 200 for size in sizes]
    assert is_repeated == [False] + [peer.client_takeover] * 3


@pytest.mark.parametrize("sides", ["neither", "server"])
def test_without_takeover_of_the_client_nothing_is_known_of_earlier_messages(begin, sides):
    """A client that breaks its word, and refers back, is told with 1007."""
    handler = recorder(message=echo)
    server, peer = begin(handler, sides)
    peer.client_takeover = True
    data = random_bytes(2000)
    peer.echo(data)
    peer.send(peer.deflated(data))
    assert peer.ended().code == 1007
    assert type(removed_with(server, handler, 1007)) is hydrogen.InvalidText


@each_side
@families
def test_the_context_of_the_server_goes_on_over_messages_if_agreed(begin, family, sides):
    """Also when others come between that are too short to be compressed, and control frames."""
    handler = recorder(connected=None)
    server, peer = begin(handler, sides, family)
    socket = handler.socket()
    data = random_bytes(2000)
    payloads = []
    for between in (None, "short", b"ping"):
        if isinstance(between, str):
            socket.send(between)
            assert peer.receive_message() == between
        elif between is not None:
            socket.ping(between)
            assert peer.receive_ping() == between
        socket.send(data)
        assert peer.receive_message() == data
        payloads.append(peer.carried)
    server.broadcast(data)
    assert peer.receive_message() == data
    payloads.append(peer.carried)
    if peer.server_takeover:
        assert [len(payload) < 200 for payload in payloads] == [False, True, True, True]
    else:
        assert len(set(payloads)) == 1


def test_contexts_of_connections_are_their_own(start, connect):
    handler = recorder(message=echo)
    server = start(handler, websocket=WebSocket(deflate=taking_over("both")))
    peers = [deflate_peer_of(connect(server), min_size=MIN_SIZE).open() for _ in range(4)]
    for turn in range(5):
        for number, peer in enumerate(peers):
            data = random_bytes(2000, number)
            for _ in range(1 + number * turn % 3):
                peer.echo(data)
                peer.echo(f"{number}" * 1500)
