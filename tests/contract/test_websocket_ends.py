"""How a WebSocket connection ends without a CLOSE: by an end or a reset of the client's, or by
`abort`.
"""

import ssl

import pytest
from websocket_peers import (
    FAMILIES,
    TEXT,
    Closed,
    echo,
    frame,
    options_of,
    peer_of,
    recorder,
    removed_with,
    text,
)

import hydrogen

NEVER = 60.0
"""Seconds of `close_timeout`: a CLOSE that cannot come must not be waited for."""


@pytest.fixture
def begin(start, connect, tmp_path):
    """A server and an open connection of a family."""

    def begin(handler, family="tcp"):
        settings = hydrogen.WebSocket(close_timeout=NEVER)
        server = start(handler, websocket=settings, **options_of(family, tmp_path / "s"))
        return server, peer_of(connect(server), family).open()

    return begin


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "begun", [b"", frame(TEXT, b"part"), b"\x81\xfe"], ids=["", "amid a message", "amid a frame"]
)
def test_an_end_without_a_close_is_1006(begin, family, begun):
    """All that came before is answered; a CLOSE is not."""
    handler = recorder(message=echo)
    server, peer = begin(handler, family)
    peer.send(text("one") + text("two") + begun)
    peer.finish()
    assert [peer.receive_message(), peer.receive_message()] == ["one", "two"]
    peer.meet_end()
    error = removed_with(server, handler, 1006)
    assert type(error) is hydrogen.WebSocketClosed
    assert (error.code, error.reason) == (1006, "")
    assert server.stats().removed_peer_closed == 1


def test_an_end_of_tls_without_a_close_is_1006(begin):
    """By close_notify alone: the connection below is still open in both directions."""
    handler = recorder(message=echo)
    server, peer = begin(handler, "tls")
    peer.echo("hello")
    peer.client.send(peer.wire.close_notify())
    peer.meet_end()
    assert removed_with(server, handler, 1006).code == 1006


def test_an_end_without_close_notify_is_1006_and_an_error_of_tls(begin):
    handler = recorder(message=echo)
    server, peer = begin(handler, "tls")
    peer.echo("hello")
    peer.client.finish()
    peer.meet_end()
    error = removed_with(server, handler, 1006)
    assert isinstance(error, ssl.SSLEOFError)
    assert server.stats().removed_tls_error == 1


def test_a_bad_record_of_tls_is_1006(begin):
    """An alert is the answer: there can be no CLOSE."""
    handler = recorder(message=echo)
    server, peer = begin(handler, "tls")
    peer.echo("hello")
    peer.client.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        peer.receive_frame()
    peer.close()
    error = removed_with(server, handler, 1006)
    assert isinstance(error, ssl.SSLError)
    assert server.stats().removed_tls_error == 1


def test_a_reset_is_1006(begin):
    handler = recorder(message=echo)
    server, peer = begin(handler)
    peer.echo("hello")
    peer.client.reset()
    error = removed_with(server, handler, 1006)
    assert isinstance(error, ConnectionResetError)
    assert server.stats().removed_os_error == 1


def test_a_reset_ends_a_pause(begin):
    handler = recorder(connected=lambda socket: socket.pause_reading())
    server, peer = begin(handler)
    handler.wait_for("connected")
    peer.client.reset()
    assert isinstance(removed_with(server, handler, 1006), ConnectionResetError)


@pytest.mark.parametrize("when", ["open", "closing"])
def test_abort_resets_the_connection(begin, when):
    handler = recorder(message=lambda socket, data: socket.abort())
    server, peer = begin(handler)
    if when == "closing":
        handler.hooks["on_message"] = lambda socket, data: socket.close(4000)
    peer.send(text("go"))
    if when == "closing":
        assert peer.receive_close() == Closed(4000, "")
        handler.socket().abort()
    assert peer.at_end() == "reset"
    error = removed_with(server, handler, 4000 if when == "closing" else 1006)
    assert type(error) is hydrogen.LocalClosed


@pytest.mark.parametrize("when", ["after our CLOSE", "before it"])
def test_a_client_that_is_reset_while_we_close_is_removed(begin, when):
    handler = recorder(connected=None)
    _, peer = begin(handler)
    socket = handler.socket()
    socket.close(4000, "never read")
    if when == "after our CLOSE":
        assert peer.receive_close() == Closed(4000, "never read")
    peer.client.reset()
    (error,) = handler.wait_disconnected()
    assert isinstance(error, (hydrogen.LocalClosed, ConnectionResetError))
    handler.wait_removed()
