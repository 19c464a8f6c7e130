"""How a WebSocket connection ends: by a CLOSE of either side, or of both."""

import select

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
    ping,
    pong,
    recorder,
    removed_with,
    text,
)

import hydrogen
from hydrogen import WebSocket

SHORT = 0.2
NEVER = 60.0
"""Seconds of `close_timeout`: that is to pass, and that must not be waited for."""

LONG = "x" * (16 << 20)
"""More than the kernel takes for a peer that does not read."""

GOOD = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
GOOD += [3000, 3999, 4000, 4999]

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def begin(start, connect, tmp_path):
    """A server and an open connection of a family, for which nothing waits too long."""

    def begin(handler, family="tcp", close_timeout=NEVER, **options):
        server = start(
            handler,
            websocket=WebSocket(close_timeout=close_timeout),
            **{**options_of(family, tmp_path / "s"), **options},
        )
        return server, peer_of(connect(server), family).open()

    return begin


# ------------------------------------------------------------------------------------ by the client


@families
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4321, "genug, schön")])
def test_a_close_of_the_client_is_answered_and_told(begin, family, code, reason):
    handler = recorder(message=echo)
    server, peer = begin(handler, family)
    peer.send(text("last words") + closing(code, reason))
    assert peer.receive_message() == "last words"
    assert peer.ended().code == code
    error = removed_with(server, handler, code)
    assert type(error) is hydrogen.WebSocketClosed
    assert isinstance(error, hydrogen.PeerClosed)
    assert (error.code, error.reason) == (code, reason)
    assert server.stats().removed_peer_closed == 1


@pytest.mark.parametrize("code", GOOD)
def test_every_code_that_may_be_sent_is_echoed(begin, code):
    handler = recorder()
    server, peer = begin(handler)
    assert peer.say_goodbye(code, "x" * 123).code == code
    error = removed_with(server, handler, code)
    assert (error.code, error.reason) == (code, "x" * 123)


def test_an_empty_close_is_answered_by_an_empty_one(begin):
    handler = recorder()
    server, peer = begin(handler)
    assert peer.say_goodbye(None) == Closed(None, "")
    error = removed_with(server, handler, 1005)
    assert (error.code, error.reason) == (1005, "")


@families
def test_what_comes_behind_a_close_is_dropped(begin, family):
    """Be it good or not; the answer is not lost."""
    handler = recorder(message=echo, pong=None)
    server, peer = begin(handler, family)
    behind = text("late") + ping(b"late") + closing(4000) + b"\xff" * (1 << 20)
    peer.send(closing(1000) + behind)
    assert peer.ended().code == 1000
    assert removed_with(server, handler, 1000).code == 1000
    assert handler.messages() == []
    assert server.stats().pings_received == 0


def test_a_close_amid_a_message_drops_that(begin):
    handler = recorder(message=echo)
    server, peer = begin(handler)
    peer.send(text("whole") + frame(TEXT, b"part") + closing(3999))
    assert peer.receive_message() == "whole"
    assert peer.ended() == Closed(3999, "")
    assert removed_with(server, handler, 3999).code == 3999
    assert handler.messages() == ["whole"]


def test_a_close_that_is_dripped_is_one(begin):
    handler = recorder()
    server, peer = begin(handler)
    for byte in closing(4000, "grüß dich"):
        peer.send(bytes([byte]))
    assert peer.ended().code == 4000
    assert removed_with(server, handler, 4000).reason == "grüß dich"


def test_once_the_client_has_closed_nothing_can_be_sent(begin, gate):
    go, seen = gate(), []

    def disconnected(socket, error):
        seen.append((socket.is_open, socket.send("late"), socket.ping(), socket.user_data))
        socket.close(4000)

    handler = recorder(
        connected=lambda socket: setattr(socket, "user_data", 1), disconnected=disconnected
    )
    server, peer = begin(handler)
    assert peer.say_goodbye().code == 1000
    removed_with(server, handler, 1000)
    assert seen == [(False, False, False, 1)]
    go.set()


def test_the_answer_comes_behind_all_that_was_sent(begin):
    handler = recorder(message=lambda socket, data: socket.send(LONG))
    _, peer = begin(handler)
    peer.send(text("ask") + closing(1000))
    assert peer.receive_message() == LONG
    assert peer.ended().code == 1000


# -------------------------------------------------------------------------------------------- by us


@families
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), Closed(1000, "")),
        ((1000,), Closed(1000, "")),
        ((None, "only why"), Closed(1000, "only why")),
        ((4001, "weg, schön"), Closed(4001, "weg, schön")),
        ((1012, "ä" * 61), Closed(1012, "ä" * 61)),
    ],
    ids=["plain", "code", "reason", "both", "longest"],
)
def test_close_sends_a_close_behind_all_messages(begin, family, arguments, said):
    def received(socket, data):
        socket.send("first")
        socket.close(*arguments)
        assert not socket.send("refused")
        assert not socket.is_open

    handler = recorder(message=received)
    server, peer = begin(handler, family)
    peer.send(text("ask"))
    assert peer.receive_message() == "first"
    assert peer.answer_close() == said
    error = removed_with(server, handler, said.code)
    assert type(error) is hydrogen.LocalClosed
    assert (error.code, error.reason) == said
    assert server.stats().removed_local_closed == 1
    assert server.stats().messages_refused == 1


def test_a_ping_that_is_refused_is_no_message(begin):
    """`messages_refused` counts what `send` has refused."""

    def received(socket, data):
        socket.close()
        assert not socket.ping()
        assert not socket.ping(b"x")
        assert not socket.send("refused")

    handler = recorder(message=received)
    server, peer = begin(handler)
    peer.send(text("ask"))
    assert peer.answer_close() == Closed(1000, "")
    removed_with(server, handler, 1000)
    stats = server.stats()
    assert (stats.messages_refused, stats.pings_sent, stats.messages_sent) == (1, 0, 0)


@pytest.mark.parametrize("code", [*GOOD[1:], None])
def test_close_sends_every_code_that_may_be_sent(begin, code):
    handler = recorder(connected=None)
    server, peer = begin(handler)
    handler.socket().close(code)
    assert peer.answer_close() == Closed(code or 1000, "")
    assert removed_with(server, handler, code or 1000).code == code or 1000


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        *(((code,), ValueError) for code in (0, 999, 1004, 1005, 1006, 1015, 2000, 2999, 5000)),
        ((-1,), ValueError),
        (("1000",), TypeError),
        ((1000.0,), TypeError),
        ((True,), TypeError),
        ((1000, b"why"), TypeError),
        ((1000, None), TypeError),
        ((1000, "x" * 124), ValueError),
        ((1000, "ä" * 62), ValueError),
        ((1000, "\ud800"), ValueError),
        ((None, "x" * 124), ValueError),
    ],
    ids=ascii,
)
def test_what_no_close_carries_is_refused_and_changes_nothing(begin, arguments, error):
    handler = recorder(connected=None, message=echo)
    _, peer = begin(handler)
    with pytest.raises(error):
        handler.socket().close(*arguments)
    if arguments[0] is not None:
        with pytest.raises(error):
            hydrogen.Close(*arguments)
    peer.echo("still open")


@pytest.mark.parametrize("name", ["connected", "message", "pong", "writable"])
def test_close_that_is_raised_in_a_callback_closes_and_is_not_logged(begin, name):
    def callback(socket, *arguments):
        raise hydrogen.Close(4001, "expired")

    hooks = {"message": lambda socket, data: socket.send(LONG), name: callback}
    handler = recorder(**hooks)
    server, peer = begin(handler)
    if name == "pong":
        peer.send(frame(FIN | 0xA))
    elif name != "connected":
        peer.send(text("go"))
    if name == "writable":
        wait_until(lambda: server.stats().reading_pauses, "the answer fills the buffers")
        assert peer.receive_message() == LONG
    assert peer.answer_close() == Closed(4001, "expired")
    error = removed_with(server, handler, 4001)
    assert type(error) is hydrogen.LocalClosed
    assert (error.code, error.reason) == (4001, "expired")
    assert server.stats().removed_local_closed == 1


@pytest.mark.parametrize("name", ["disconnected", "connection_removed"])
def test_close_that_is_raised_at_the_end_changes_nothing(begin, name):
    def callback(*arguments):
        raise hydrogen.Close(4001, "too late")

    handler = recorder(**{name: callback})
    server, peer = begin(handler)
    assert peer.say_goodbye(1000).code == 1000
    assert removed_with(server, handler, 1000).code == 1000


def test_of_two_closes_the_first_counts(begin):
    def connected(socket):
        socket.close(4001, "first")
        socket.close(4002, "second")
        raise hydrogen.Close(4003, "third")

    handler = recorder(connected=connected)
    server, peer = begin(handler)
    assert peer.answer_close() == Closed(4001, "first")
    assert removed_with(server, handler, 4001).code == 4001


@pytest.mark.parametrize("kind", [KeyError, hydrogen.Reject, hydrogen.ProtocolError, OSError])
def test_what_a_callback_raises_is_told_with_1011_and_no_more(begin, error_log, kind):
    def received(socket, data):
        socket.send("before")
        raise kind("secret")

    handler = recorder(message=received)
    server, peer = begin(handler)
    peer.send(text("go") + text("never"))
    assert peer.receive_message() == "before"
    closed = peer.answer_close()
    assert closed.code == 1011
    assert "secret" not in closed.reason
    error = removed_with(server, handler, 1011)
    assert type(error) is hydrogen.HandlerError
    assert type(error.__cause__) is kind
    assert handler.messages() == ["go"]
    (record,) = error_log()
    assert "on_message" in record.getMessage()


def test_a_pause_holds_a_close_of_the_client_back(begin):
    handler = recorder(connected=lambda socket: socket.pause_reading())
    server, peer = begin(handler)
    handler.wait_for("connected")
    peer.send(closing(4000))
    settled(lambda: len(handler.names()))
    assert handler.socket().is_open
    handler.socket().resume_reading()
    assert peer.ended().code == 4000
    assert removed_with(server, handler, 4000).code == 4000


def test_a_pause_does_not_hold_the_answer_to_our_close_back(begin):
    def connected(socket):
        socket.pause_reading()
        socket.close(4000)

    handler = recorder(connected=connected)
    server, peer = begin(handler)
    peer.send(text("dropped"))
    assert peer.answer_close() == Closed(4000, "")
    removed_with(server, handler, 4000)
    assert handler.messages() == []


@families
def test_what_the_client_still_sends_before_its_close_is_dropped(begin, family):
    """Much of it, so that it would get stuck if nobody read it."""
    handler = recorder(connected=lambda socket: socket.close(4000), message=echo, pong=None)
    server, peer = begin(handler, family)
    assert peer.receive_close() == Closed(4000, "")
    peer.send((text("late") + ping(b"late") + frame(TEXT, b"x" * 100_000) + frame(FIN)) * 100)
    peer.send(frame(TEXT, b"part") + closing(4000))
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000
    assert handler.messages() == []


@pytest.mark.parametrize("answer", [closing(), closing(1000), closing(3333, "other")])
def test_any_close_of_the_client_is_an_answer(begin, answer):
    handler = recorder(connected=lambda socket: socket.close(4000))
    server, peer = begin(handler)
    assert peer.receive_close() == Closed(4000, "")
    peer.send(answer)
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000


@pytest.mark.parametrize("answer", [b"\x83", frame(FIN | TEXT, b"\xff"), closing(1005)])
def test_what_is_no_websocket_behind_our_close_ends_the_wait(begin, answer):
    """Nothing more is told: a CLOSE is the last frame."""
    handler = recorder(connected=lambda socket: socket.close(4000))
    server, peer = begin(handler)
    assert peer.receive_close() == Closed(4000, "")
    peer.send(answer)
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000


@families
def test_a_client_that_ends_without_an_answer_is_not_waited_for(begin, family):
    handler = recorder(connected=lambda socket: socket.close(4000))
    server, peer = begin(handler, family)
    assert peer.receive_close() == Closed(4000, "")
    peer.finish()
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000


@families
@pytest.mark.parametrize("sends", [b"", text("late")], ids=["silent", "that sends"])
def test_a_client_that_does_not_answer_is_closed_at_close_timeout(begin, family, sends):
    handler = recorder(connected=lambda socket: socket.close(4000))
    server, peer = begin(handler, family, close_timeout=SHORT)
    assert peer.receive_close() == Closed(4000, "")
    peer.send(sends)
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000


@pytest.mark.parametrize("control", [ping(), pong()], ids=["ping", "pong"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_control_frame_in_place_of_an_answer_leaves_it_its_time(begin, family, control):
    handler = recorder(connected=lambda socket: socket.close(4000))
    server, peer = begin(handler, family)
    assert peer.receive_close() == Closed(4000, "")
    received = server.stats().bytes_received
    for _ in range(20):
        peer.send(control)
        received += len(control)
        wait_until(lambda: server.stats().bytes_received == received, "it is read")  # noqa: B023
        assert select.select([peer.client.sock], [], [], 0)[0] == []
    peer.finish()
    peer.meet_end()
    assert removed_with(server, handler, 4000).code == 4000


def test_a_client_that_drips_instead_of_an_answer_gets_no_more_time(begin):
    """It sends its messages until it meets the end of the server's."""
    handler = recorder(connected=lambda socket: socket.close(4000))
    _, peer = begin(handler, close_timeout=SHORT)
    assert peer.receive_close() == Closed(4000, "")
    done = []

    def go_on():
        while not done:
            peer.send(text("x"))

    with running(go_on):
        assert peer.wire.receive_until_end() == b""
        done.append(True)


# ---------------------------------------------------------------------------------- by both at once


@families
def test_both_may_close_at_once(begin, gate, family):
    """The client's CLOSE has come already, unread, when we close: each side has sent one."""
    go = gate()

    def received(socket, data):
        wait_event(go, "the client has closed, too")
        socket.close(4000, "ours")

    handler = recorder(message=received)
    server, peer = begin(handler, family)
    peer.send(text("go"))
    handler.wait_for("message")
    peer.send(closing(4001, "theirs"))
    go.set()
    assert peer.ended() == Closed(4000, "ours")
    error = removed_with(server, handler, 4000)
    assert (type(error), error.code) == (hydrogen.LocalClosed, 4000)


def test_a_close_that_was_read_with_the_message_is_an_answer_too(begin):
    handler = recorder(message=lambda socket, data: socket.close(4000))
    server, peer = begin(handler)
    peer.send(text("go") + text("never") + closing(4001))
    assert peer.ended() == Closed(4000, "")
    assert removed_with(server, handler, 4000).code == 4000
    assert handler.messages() == ["go"]
