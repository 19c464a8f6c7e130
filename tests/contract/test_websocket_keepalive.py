"""Pings of ours, what counts as life, and the age at which a connection ends.

That time has passed is told by a connection that is ended by it: no test waits for a time.
"""

import contextlib
import dataclasses
import itertools

import pytest
from deflate_peers import NEVER
from support import running, timed_out, wait_event, wait_until
from websocket_peers import (
    FAMILIES,
    FIN,
    PING,
    TEXT,
    Closed,
    closing,
    echo,
    frame,
    head,
    options_of,
    peer_of,
    pong,
    recorder,
    text,
)

import hydrogen
from hydrogen import WebSocket
from hydrogen.websocket import lifetime

SHORT = 0.1
MIDDLE = 0.3
"""Seconds of the times that are to pass."""
AMPLE = 2.0
"""Seconds in which a client that is alive does something, however busy the machine is."""

families = pytest.mark.parametrize("family", FAMILIES)
QUICK = WebSocket(ping_interval=SHORT, ping_timeout=SHORT)
STEADY = WebSocket(ping_interval=MIDDLE, ping_timeout=MIDDLE)
"""For a client that must be there still, though it is not for the test to say when."""
PATIENT = WebSocket(ping_interval=SHORT, ping_timeout=AMPLE)


def opened_in_turn(handler, server, connect, count):
    """So many peers, and the socket of each."""
    found = []
    for number in range(1, count + 1):
        peer = peer_of(connect(server)).open()
        found.append((peer, handler.wait_for("connected", number)[-1].socket))
    return found


def end_of(handler, socket):
    """The error with which that connection ended, once it has."""
    return handler.wait(
        lambda: [call.value for call in handler.of("disconnected") if call.id == socket.id],
        f"the end of {socket.id}",
    )[0]


def is_timed_out(error):
    """By `ping_timeout`."""
    return type(error) is hydrogen.ConnectionTimeout and str(error).startswith("ping_timeout:")


# ----------------------------------------------------------------------------------- silent clients


@families
def test_a_client_that_is_silent_is_pinged_and_then_reset(start, connect, tmp_path, family):
    handler = recorder(message=echo)
    server = start(handler, websocket=QUICK, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    assert len(peer.receive_ping()) <= 125
    # a Unix socket with nothing unread knows no reset
    assert peer.at_end() == ("end" if family == "unix" else "reset")
    timed_out(handler, "ping_timeout")
    assert is_timed_out(handler.wait_disconnected()[0])
    stats = server.stats()
    assert (stats.removed_ping_timeout, stats.removed_timeout, stats.removed) == (1, 1, 1)
    assert stats.pings_sent == 1
    assert stats.messages_sent == 0
    assert dict(stats.closes) == {1006: 1}


@families
def test_a_client_that_answers_pings_stays(start, connect, tmp_path, family):
    handler = recorder(message=echo, pong=None)
    server = start(handler, websocket=PATIENT, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    sent = []
    for _ in range(5):
        sent.append(peer.receive_ping())
        peer.send(pong(sent[-1]))
    assert [call.value for call in handler.wait_for("pong", 5)] == sent
    assert 0 <= handler.socket().latency < AMPLE + 3600
    assert server.stats().pongs_received == 5
    wait_until(lambda: server.stats().pings_sent >= 5, "they are counted")
    assert not handler.of("disconnected")


@pytest.mark.parametrize(
    "life",
    [text("hello"), pong(b"another"), pong(), frame(FIN | PING), frame(FIN | PING, b"x" * 125)],
    ids=["a message", "another pong", "an empty pong", "a ping", "a long ping"],
)
def test_whatever_a_client_sends_is_life(start, connect, life):
    handler = recorder()
    server = start(handler, websocket=PATIENT)
    peer = peer_of(connect(server)).open()
    for _ in range(3):
        while peer.receive_frame().first != FIN | PING:
            pass
        peer.send(life)
    assert not handler.of("disconnected")


def test_each_byte_of_a_message_that_is_dripped_is_life(start, connect):
    """One byte for each ping."""
    handler = recorder(message=echo)
    peer = peer_of(connect(start(handler, websocket=PATIENT))).open()
    wire = text("ab")
    for at in range(len(wire)):
        peer.receive_ping()
        peer.send(wire[at : at + 1])
    handler.wait_for("message")
    assert handler.messages() == ["ab"]


def test_only_an_answer_says_something_of_latency(start, connect):
    handler = recorder(pong=None)
    peer = peer_of(connect(start(handler, websocket=PATIENT))).open()
    asked = peer.receive_ping()
    peer.send(pong(b"not " + asked))
    handler.wait_for("pong")
    assert handler.socket().latency is None
    peer.send(pong(peer.receive_ping()))
    handler.wait_for("pong", 2)
    assert handler.socket().latency >= 0


def test_a_client_that_only_listens_is_found_out_too(start, connect):
    """What we send is no life of the client's."""
    handler = recorder(connected=None)
    server = start(handler, websocket=QUICK)
    peer = peer_of(connect(server)).open()
    socket = handler.socket()

    with contextlib.suppress(ConnectionResetError):
        while socket.send("x"):
            while peer.receive_frame().first != FIN | TEXT:
                pass
    assert is_timed_out(end_of(handler, socket))
    assert server.stats().pings_sent == 1


def test_pings_of_the_handlers_do_not_keep_a_silent_client_alive(start, connect):
    """However often it pings."""
    handler = recorder(connected=None)
    peer = peer_of(connect(start(handler, websocket=QUICK))).open()
    socket = handler.socket()
    with running(peer.at_end):
        wait_until(lambda: not socket.ping(b"are you there?"), "it is found out")
    assert is_timed_out(end_of(handler, socket))


def test_while_our_close_is_to_be_answered_it_is_close_timeout_that_counts(start, connect):
    """The client takes longer than the times of keepalive, which another one tells."""
    handler = recorder(connected=None)
    server = start(handler, websocket=dataclasses.replace(STEADY, close_timeout=60.0))
    peer = peer_of(connect(server)).open()
    handler.socket().close(4000)
    assert peer.receive_close() == Closed(4000, "")
    for number in range(2, 4):
        clock = peer_of(connect(server)).open()
        assert is_timed_out(end_of(handler, handler.wait_for("connected", number)[-1].socket))
        clock.close()
    peer.send(closing(4000))
    peer.meet_end()
    handler.wait_removed(3)
    assert dict(server.stats().closes) == {4000: 1, 1006: 2}
    assert server.stats().messages_refused == 0


def test_without_ping_timeout_a_silent_client_stays(start, connect):
    """Until `max_lifetime`, which says that time has passed."""
    handler = recorder()
    settings = WebSocket(ping_interval=SHORT, ping_timeout=None, max_lifetime=5 * SHORT)
    server = start(handler, websocket=settings)
    peer = peer_of(connect(server)).open()
    peer.receive_ping()
    while (received := peer.receive_frame()).first == FIN | PING:
        pass
    assert received.payload[:2] == (1001).to_bytes(2, "big")
    peer.send(closing(1001))
    peer.meet_end()


def test_without_ping_interval_nobody_is_pinged(start, connect):
    settings = WebSocket(ping_interval=None, ping_timeout=SHORT, max_lifetime=5 * SHORT)
    server = start(recorder(), websocket=settings)
    peer = peer_of(connect(server)).open()
    assert peer.answer_close().code == 1001
    assert server.stats().pings_sent == 0


def test_a_connection_that_is_not_open_yet_is_not_pinged(start, connect, gate):
    """Its time is `open_timeout`; and that `on_request` blocks is not its fault."""
    go = gate()
    handler = recorder(
        request=lambda socket, request: wait_event(go, "") if request.path == "/slow" else None,
        connected=None,
        message=echo,
    )
    server = start(handler, websocket=STEADY)
    slow = peer_of(connect(server))
    slow.send(head(line="GET /slow HTTP/1.1"))
    handler.wait_for("request")
    for number in range(1, 3):
        clock = peer_of(connect(server)).open()
        assert is_timed_out(end_of(handler, handler.wait_for("connected", number)[-1].socket))
        clock.close()
    go.set()
    slow.receive_opening()
    slow.send(text("hello"))
    assert slow.receive_message() == "hello"


# ------------------------------------------------------------------------------ handlers that block


def test_a_handler_that_blocks_does_not_cost_a_client_that_sends_its_connection(
    start, connect, gate
):
    """What lies unread in the kernel is life, for as long as it takes: two others, one after the
    other, are silent and are reset.
    """
    go = gate()

    def received(socket, data):
        if data == "block":
            wait_event(go, "time has passed")
        socket.send(data)

    handler = recorder(connected=None, message=received)
    server = start(handler, websocket=STEADY)
    peer = peer_of(connect(server)).open()
    socket = handler.socket()
    peer.send(text("block"))
    handler.wait_for("message")
    peer.send(text("unread"))
    for number in range(2, 4):
        clock = peer_of(connect(server)).open()
        assert is_timed_out(end_of(handler, handler.wait_for("connected", number)[-1].socket))
        clock.close()
    assert socket.is_open
    go.set()
    assert peer.receive_message() == "block"
    while (received_frame := peer.receive_frame()).first == FIN | PING:
        pass
    assert received_frame.payload == b"unread"


def test_a_client_is_pinged_while_its_handler_blocks_and_its_pong_counts(start, connect, gate):
    go = gate()

    def received(socket, data):
        wait_event(go, "time has passed")
        socket.send("done")

    handler = recorder(connected=None, message=received)
    server = start(handler, websocket=PATIENT)
    peer = peer_of(connect(server)).open()
    socket = handler.socket()
    peer.send(text("block"))
    handler.wait_for("message")
    peer.send(pong(peer.receive_ping()))  # and nothing more
    clock = peer_of(connect(server)).open()
    assert is_timed_out(end_of(handler, handler.wait_for("connected", 2)[-1].socket))
    clock.close()
    assert socket.is_open
    go.set()
    while (received_frame := peer.receive_frame()).first == FIN | PING:
        pass
    assert received_frame.payload == b"done"


@pytest.mark.parametrize(
    "behind", [b"", text("more"), text("half")[:-1]], ids=["nothing", "message", "half"]
)
@pytest.mark.parametrize("how", ["blocks", "pauses"])
@pytest.mark.parametrize("family", ["tcp", "tls"])
def test_a_client_that_vanishes_is_found_out_whatever_is_not_delivered(
    start, connect, gate, tmp_path, family, how, behind
):
    """It says nothing more, and nothing of it is unread."""
    go = gate()

    def received(socket, data):
        if how == "pauses":
            socket.pause_reading()
        else:
            wait_event(go, "it is closed")

    handler = recorder(connected=None, message=received)
    server = start(handler, websocket=QUICK, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    socket = handler.socket()
    peer.send(text("the first") + behind)
    handler.wait_for("message")
    wait_until(lambda: not socket.is_open, "it is found out")
    go.set()
    assert is_timed_out(end_of(handler, socket))
    assert server.stats().pings_sent == 1


def test_a_pause_does_not_cost_a_client_that_sends_its_connection(start, connect):
    def received(socket, data):
        socket.send(data)
        socket.pause_reading()

    handler = recorder(connected=None, message=received)
    server = start(handler, websocket=STEADY)
    peer = peer_of(connect(server)).open()
    socket = handler.socket()
    peer.send(text("pause"))
    assert peer.receive_message() == "pause"
    peer.send(text("unread"))
    clock = peer_of(connect(server)).open()
    assert is_timed_out(end_of(handler, handler.wait_for("connected", 2)[-1].socket))
    clock.close()
    assert socket.is_open
    socket.resume_reading()
    while (received_frame := peer.receive_frame()).first == FIN | PING:
        pass
    assert received_frame.payload == b"unread"


@pytest.mark.parametrize("held", ["pong", "close"])
@pytest.mark.parametrize("family", ["tcp", "tls"])
def test_what_a_pause_holds_back_keeps_idle_timeout_off(start, connect, tmp_path, family, held):
    def received(socket, data):
        socket.pause_reading()

    handler = recorder(connected=None, pong=None, message=received)
    server = start(handler, idle_timeout=SHORT, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    socket = handler.socket()
    peer.send(text("pause") + (pong(b"late") if held == "pong" else closing(1000)))
    handler.wait_for("message")
    for count in (1, 2):
        peer_of(connect(server), family).open()
        wait_until(lambda: server.stats().removed_idle_timeout == count, "it is late")  # noqa: B023
    assert socket.is_open
    socket.resume_reading()
    if held == "pong":
        assert handler.wait_for("pong")[0].value == b"late"
        return
    assert peer.receive_close() == Closed(1000, "")
    error = end_of(handler, socket)
    assert (type(error), error.code) == (hydrogen.WebSocketClosed, 1000)


# ---------------------------------------------------------------------------------------- lifetimes


@families
def test_a_connection_is_closed_with_1001_at_max_lifetime(start, connect, tmp_path, family):
    """However busy it is."""
    handler = recorder(message=echo)
    settings = WebSocket(max_lifetime=3 * SHORT)
    server = start(handler, websocket=settings, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open()
    peer.send(text("x"))
    while (received := peer.receive_frame()).first == FIN | TEXT:
        peer.send(text("x"))
    assert received.payload[:2] == (1001).to_bytes(2, "big")
    peer.send(closing(1001))
    peer.meet_end()
    (error,) = handler.wait_disconnected()
    assert (type(error), error.code) == (hydrogen.LocalClosed, 1001)
    assert dict(server.stats().closes) == {1001: 1}
    assert server.stats().removed_local_closed == 1


def test_a_message_that_is_being_answered_at_max_lifetime(start, connect, gate):
    """The handler blocks beyond it; what it sends then is refused, as after any `close`."""
    go, sent = gate(), []

    def received(socket, data):
        wait_event(go, "its time is over")
        sent.append(socket.send("late"))

    handler = recorder(message=received)
    server = start(handler, websocket=WebSocket(max_lifetime=SHORT))
    peer = peer_of(connect(server)).open()
    peer.send(text("go"))
    handler.wait_for("message")
    wait_until(lambda: not handler.socket().is_open, "its time is over")
    go.set()
    assert peer.answer_close().code == 1001
    assert sent == [False]


@pytest.mark.parametrize("ping_interval", [None, SHORT], ids=["without pings", "with pings"])
def test_each_connection_has_a_lifetime_of_its_own(start, connect, monkeypatch, ping_interval):
    """A random part of it is taken away: here all or nothing, for every other connection."""
    handler = recorder(connected=None)
    settings = WebSocket(ping_interval=ping_interval, ping_timeout=None, max_lifetime=NEVER)
    server = start(handler, websocket=settings)
    monkeypatch.setattr("hydrogen.websocket.LIFETIME_JITTER", 1.0)
    parts = itertools.cycle([0.0, 0.999999])
    monkeypatch.setattr("random.random", lambda: next(parts))
    peers = []
    for number in range(1, 7):
        peers.append(peer_of(connect(server)).open())
        handler.wait_for("connected", number)
    for peer in peers[1::2]:
        while (received_frame := peer.receive_frame()).first == FIN | PING:
            pass
        assert received_frame.payload == (1001).to_bytes(2, "big") + b"max_lifetime has passed"
        peer.send(closing(1001))
        peer.meet_end()
    handler.wait_removed(3)
    assert [call.socket.is_open for call in handler.of("connected")] == [True, False] * 3


def test_lifetimes_differ_by_a_tenth_at_most():
    seconds = [lifetime(WebSocket(max_lifetime=100.0)) for _ in range(1000)]
    assert 90 <= min(seconds) < 92
    assert 98 < max(seconds) <= 100
    assert lifetime(WebSocket()) is None
