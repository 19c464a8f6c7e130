"""A graceful stop of a WebSocket server: each client is told with `stop_code`, once it has got what
it was owed.
"""

import pytest
from support import running, settled, wait_event, wait_until
from websocket_peers import (
    FAMILIES,
    FIN,
    TEXT,
    Closed,
    closing,
    echo,
    frame,
    options_of,
    peer_of,
    recorder,
    text,
)

import hydrogen
from hydrogen import WebSocket

SHORT = 0.2
NEVER = 60.0

families = pytest.mark.parametrize("family", FAMILIES)


def is_stopping(server):
    """Until the stop has begun, and has asked the connections."""
    wait_until(lambda: not server.ready, "the stop begins")
    settled(lambda: len(server.connections))


@families
@pytest.mark.parametrize("code", [1001, 1012])
def test_idle_connections_are_told_with_stop_code(start, connect, tmp_path, family, code):
    handler = recorder(connected=None, message=echo)
    settings = WebSocket(stop_code=code, close_timeout=NEVER)
    server = start(handler, websocket=settings, **options_of(family, tmp_path / "s"))
    peers = [peer_of(connect(server), family).open() for _ in range(3)]
    for peer in peers:
        peer.echo("hello")
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        assert [peer.answer_close() for peer in peers] == [Closed(code, "")] * 3
    assert (reports[0].closed, reports[0].aborted, reports[0].unsent_bytes) == (3, 0, 0)
    assert [type(error) for error in handler.wait_disconnected(3)] == [hydrogen.ServerStopped] * 3
    assert dict(server.stats().closes) == {code: 3}
    assert server.stats().removed_server_stopped == 3


@families
def test_what_is_being_answered_is_answered_first(start, connect, gate, tmp_path, family):
    """And all that was read whole, but not a message that was begun."""
    go = gate()

    def received(socket, data):
        wait_event(go, "the stop has begun")
        assert socket.is_open
        assert socket.send(f"<{data}>")

    handler = recorder(message=received)
    server = start(
        handler, websocket=WebSocket(close_timeout=NEVER), **options_of(family, tmp_path / "s")
    )
    peer = peer_of(connect(server), family).open()
    peer.send(text("one") + text("two") + frame(TEXT, b"th") + frame(FIN, b"ree") + frame(TEXT))
    handler.wait_for("message")
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        is_stopping(server)
        go.set()
        assert [peer.receive_message() for _ in range(3)] == ["<one>", "<two>", "<three>"]
        assert peer.answer_close() == Closed(1001, "")
    assert (reports[0].closed, reports[0].refused) == (1, 0)
    assert handler.messages() == ["one", "two", "three"]


def test_what_is_sent_after_the_stops_close_is_dropped(start, connect):
    handler = recorder(message=echo)
    server = start(handler, websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    peer.echo("hello")
    with running(lambda: server.stop(20)):
        assert peer.receive_close() == Closed(1001, "")
        assert not handler.socket().send("late")
        peer.send(text("late") + closing(1001))
        peer.meet_end()
    assert handler.messages() == ["hello"]


def test_a_client_that_does_not_answer_delays_a_stop_by_close_timeout(start, connect):
    server = start(recorder(), websocket=WebSocket(close_timeout=SHORT))
    peer = peer_of(connect(server)).open()
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        assert peer.ended() == Closed(1001, "")
    assert (reports[0].closed, reports[0].aborted) == (1, 0)


def test_a_client_that_does_not_answer_is_reset_when_the_stop_has_no_more_time(start, connect):
    server = start(recorder(), websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    report = server.stop(SHORT)
    assert (report.closed, report.aborted) == (0, 1)
    assert peer.receive_close() == Closed(1001, "")
    assert peer.at_end() == "reset"


def test_an_abort_of_the_server_tells_nobody(start, connect):
    handler = recorder(message=echo)
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.echo("hello")
    server.abort()
    assert peer.at_end() == "reset"
    assert [type(error) for error in handler.wait_disconnected()] == [hydrogen.ServerStopped]
    assert dict(server.stats().closes) == {1006: 1}


def test_a_client_that_has_closed_already_is_answered_with_its_own_code(start, connect, gate):
    go = gate()
    handler = recorder(message=lambda socket, data: wait_event(go, "the stop has begun"))
    server = start(handler, websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    peer.send(text("hold") + closing(4000, "bye"))
    handler.wait_for("message")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        go.set()
        assert peer.ended().code == 4000
    (error,) = handler.wait_disconnected()
    assert (error.code, error.reason) == (4000, "bye")


def test_a_connection_that_is_paused_waits_for_its_resume(start, connect):
    def received(socket, data):
        socket.send(data)
        if data == "pause":
            socket.pause_reading()

    handler = recorder(message=received)
    server = start(handler, websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    peer.send(text("pause") + text("held"))
    assert peer.receive_message() == "pause"
    with running(lambda: server.stop(20)):
        is_stopping(server)
        assert handler.messages() == ["pause"]
        handler.socket().resume_reading()
        assert peer.receive_message() == "held"
        assert peer.answer_close() == Closed(1001, "")


@pytest.mark.parametrize("part", [b"", frame(TEXT, b"part"), b"\x81"])
def test_a_connection_that_is_paused_without_a_whole_message_ends_at_once(start, connect, part):
    def received(socket, data):
        socket.pause_reading()
        socket.send("paused")

    server = start(recorder(message=received), websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    peer.send(text("pause") + part)
    assert peer.receive_message() == "paused"
    with running(lambda: server.stop(20)):
        assert peer.answer_close() == Closed(1001, "")


def test_a_broken_frame_behind_a_pause_is_not_waited_for(start, connect):
    def received(socket, data):
        socket.pause_reading()
        socket.send("paused")

    server = start(recorder(message=received), websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    peer.send(text("pause") + b"\x83")
    assert peer.receive_message() == "paused"
    with running(lambda: server.stop(20)):
        assert peer.ended().code == 1002


def test_a_spread_stop_serves_each_until_its_turn(start, connect):
    handler = recorder(message=echo)
    server = start(handler, websocket=WebSocket(close_timeout=NEVER))
    peers = [peer_of(connect(server)).open() for _ in range(3)]
    for peer in peers:
        peer.echo("hello")
    with running(lambda: server.stop(20, spread=0.3)):
        for peer in peers:
            assert peer.answer_close() == Closed(1001, "")
    assert handler.wait_removed(3)


def test_stop_that_a_handler_asks_for_is_told_to_its_client_too(start, connect):
    def received(socket, data):
        socket.server.stop()
        socket.send("stopping")

    server = start(recorder(message=received), websocket=WebSocket(close_timeout=NEVER))
    peer = peer_of(connect(server)).open()
    peer.send(text("stop"))
    assert peer.receive_message() == "stopping"
    assert peer.answer_close() == Closed(1001, "")
    assert server.wait(30)
