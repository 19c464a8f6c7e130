"""Requests that cannot be accepted: each is answered as HTTP has it, and none reaches the
handler.
"""

import contextlib
import functools
import logging
import ssl

import pytest
from certificates import client_context
from support import drip, running, timed_out, wait_until
from support import recorder as plain_recorder
from websocket_peers import (
    FAMILIES,
    KEY,
    binary,
    echo,
    head,
    options_of,
    peer_of,
    recorder,
    text,
)

import hydrogen
from hydrogen import WebSocket

SHORT = 0.3
AMPLE = 2.0
"""Seconds of the deadlines that are to pass."""


def turned_away(server, handler, peer, status):
    """The answer to a request that the handler has not heard of, and that is counted."""
    answer = peer.refused()
    assert answer.status == status, answer
    peer.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.ProtocolError
    assert str(status) in str(error)
    assert handler.names() == ["on_connection_removed"]
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")
    stats = server.stats()
    assert dict(stats.responses) == {status: 1}
    assert dict(stats.closes) == {}
    assert (stats.messages_received, stats.messages_sent) == (0, 0)
    return answer


@pytest.fixture
def refuse(start, connect):
    """Send a head; the answer, which must have this status."""

    def refuse(data, status, **settings):
        handler = recorder(request=None, connected=None, message=echo)
        server = start(handler, websocket=WebSocket(**settings))
        peer = peer_of(connect(server))
        peer.send(data)
        return turned_away(server, handler, peer, status)

    return refuse


# -------------------------------------------------------------------------------- the size of heads


def padded(size):
    """A head of exactly `size` bytes."""
    return head("X: " + "a" * (size - len(head("X: "))))


@pytest.mark.parametrize("size", [401, 402, 4000, 100_000])
def test_a_head_over_max_header_is_answered_with_431(refuse, size):
    refuse(padded(size), 431, max_header=400)


def test_a_head_of_max_header_is_accepted(start, connect):
    server = start(recorder(message=echo), websocket=WebSocket(max_header=400))
    peer = peer_of(connect(server))
    peer.send(padded(400))
    peer.receive_opening()
    peer.echo("hello")


def test_a_head_without_an_end_is_refused_at_max_header_and_not_earlier(start, connect):
    handler = recorder(request=None)
    server = start(handler, websocket=WebSocket(max_header=400))
    peer = peer_of(connect(server))
    wire = padded(1000)
    peer.send(wire[:400])
    wait_until(lambda: server.stats().bytes_received == 400, "it is read")
    assert not handler.of("connection_removed")
    peer.send(wire[400:401])
    turned_away(server, handler, peer, 431)


def test_a_request_line_without_an_end_is_refused_at_max_header(refuse):
    refuse(b"GET /" + b"a" * 396, 431, max_header=400)


def test_what_comes_behind_the_head_does_not_count_as_head(start, connect):
    server = start(recorder(message=echo), websocket=WebSocket(max_header=400))
    peer = peer_of(connect(server))
    peer.send(padded(400) + binary(b"x" * 5000))
    peer.receive_opening()
    assert peer.receive_message() == b"x" * 5000


def test_more_than_max_headers_fields_are_answered_with_431(refuse):
    refuse(head(*[f"X-{n}: y" for n in range(16)]), 431, max_headers=20)


def test_one_field_sent_too_often_is_too_many_fields(refuse):
    refuse(head(*["X: y"] * 16), 431, max_headers=20)


def test_as_many_as_max_headers_are_accepted(start, connect):
    server = start(recorder(message=echo), websocket=WebSocket(max_headers=20))
    peer_of(connect(server)).open(*[f"X-{n}: y" for n in range(15)]).echo(b"hello")


# ---------------------------------------------------------------------------------- malformed heads

BAD_BYTES = {
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\0",
    "NUL in the target": b"GET /\0",
    "NUL at once": b"\0",
    "ESC": b"GET / HTTP/1.1\r\nHost: \x1b",
    "DEL": b"GET / HTTP/1.1\r\nHost: \x7f",
    "bare CR in a value": b"GET / HTTP/1.1\r\nHost: a\rX",
    "bare CR in the request line": b"GET / HTTP/1.1\rH",
    "CR CR LF": b"GET / HTTP/1.1\r\r",
    "bare LF behind the request line": b"GET / HTTP/1.1\n",
    "bare LF behind a field": b"GET / HTTP/1.1\r\nHost: a\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare LF at once": b"\n",
}


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES)
def test_a_byte_that_no_head_has_is_answered_with_400_at_once(refuse, data):
    """Nothing follows: the end of the head is not waited for."""
    refuse(data, 400)


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES)
def test_such_a_byte_that_is_dripped_is_refused_too(start, connect, data):
    handler = recorder(request=None)
    server = start(handler)
    peer = peer_of(connect(server))
    for at in range(len(data)):
        peer.send(data[at : at + 1])
    turned_away(server, handler, peer, 400)


MALFORMED = {
    "obs-fold": head("X: a\r\n b"),
    "obs-fold with a tab": head("X: a\r\n\tb"),
    "obs-fold of the first field": head(line="GET / HTTP/1.1\r\n X: y"),
    "space before the colon": head("X : y"),
    "tab before the colon": head("X\t: y"),
    "no colon": head("X"),
    "no name": head(": y"),
    "a name that is no token": head("X(: y"),
    "a name beyond ASCII": head("\xfc: y"),
    "no target": head(line="GET HTTP/1.1"),
    "no version": head(line="GET /"),
    "two spaces": head(line="GET  / HTTP/1.1"),
    "a space in the target": head(line="GET /a b HTTP/1.1"),
    "a space behind the version": head(line="GET / HTTP/1.1 "),
    "a tab": head(line="GET\t/\tHTTP/1.1"),
    "a method that is no token": head(line="G@T / HTTP/1.1"),
    "a version that is none": head(line="GET / HTTP/11"),
    "a version in lower case": head(line="GET / http/1.1"),
    "another protocol": head(line="GET / SIP/2.0"),
    "the target of CONNECT": head(line="GET example.org:80 HTTP/1.1"),
    "a fragment": head(line="GET /#top HTTP/1.1"),
    "a target beyond ASCII": head(line="GET /\xfc HTTP/1.1"),
    "no Host": head(without=["Host"]),
    "two Hosts": head("Host: example.org"),
    "an empty Host": head("Host: ", without=["Host"]),
    "a Host that is none": head("Host: a/b", without=["Host"]),
    "a list of Hosts": head("Host: a, b", without=["Host"]),
    "two lengths": head("Content-Length: 0", "Content-Length: 0"),
    "a length that is no number": head("Content-Length: +0"),
    "a negative length": head("Content-Length: -1"),
    "no key": head(without=["Sec-WebSocket-Key"]),
    "two keys": head(f"Sec-WebSocket-Key: {KEY}"),
    "an empty key": head("Sec-WebSocket-Key: ", without=["Sec-WebSocket-Key"]),
    "a key of 15 bytes": head(
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA", without=["Sec-WebSocket-Key"]
    ),
    "a key of 17 bytes": head(
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=", without=["Sec-WebSocket-Key"]
    ),
    "a key that is not base64": head(
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!==", without=["Sec-WebSocket-Key"]
    ),
    "a key without padding": head(
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ", without=["Sec-WebSocket-Key"]
    ),
    "no version of WebSocket": head(without=["Sec-WebSocket-Version"]),
    "two versions of WebSocket": head("Sec-WebSocket-Version: 13"),
    "two different versions of WebSocket": head("Sec-WebSocket-Version: 8"),
    "a subprotocol that is no token": head("Sec-WebSocket-Protocol: a b"),
    "a subprotocol twice": head("Sec-WebSocket-Protocol: a, b, a"),
    "two origins": head("Origin: http://example.org", "Origin: http://example.org"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_answered_with_400(refuse, data):
    refuse(data, 400)


NO_UPGRADE = {
    "a plain GET": head(without=["Upgrade", "Connection", "Sec-WebSocket-Key"]),
    "no Upgrade": head(without=["Upgrade"]),
    "another Upgrade": head("Upgrade: h2c", without=["Upgrade"]),
    "an Upgrade that contains the word": head("Upgrade: websockets", without=["Upgrade"]),
    "no Connection": head(without=["Connection"]),
    "another Connection": head("Connection: keep-alive", without=["Connection"]),
}


@pytest.mark.parametrize("data", NO_UPGRADE.values(), ids=NO_UPGRADE)
def test_what_is_no_request_to_speak_websocket_is_answered_with_426(start, connect, data):
    server = start(recorder(message=echo))  # it has no on_request
    peer = peer_of(connect(server))
    peer.send(data)
    answer = peer.refused()
    assert answer.status == 426
    assert answer.headers["upgrade"].lower() == "websocket"
    assert "upgrade" in answer.headers["connection"].lower()


@pytest.mark.parametrize("version", ["8", "0", "12", "14", "013", "13.0", "13, 8"])
def test_another_version_is_answered_with_426_and_the_version(refuse, version):
    data = head(f"Sec-WebSocket-Version: {version}", without=["Sec-WebSocket-Version"])
    answer = refuse(data, 426)
    assert answer.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize("version", ["1.0", "0.9", "2.0", "1.2"])
def test_another_version_of_http_is_answered_with_505(refuse, version):
    refuse(head(line=f"GET / HTTP/{version}"), 505)


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS", "get", "FOO"])
def test_another_method_is_answered_with_405_and_those_allowed(refuse, method):
    assert refuse(head(line=f"{method} / HTTP/1.1"), 405).headers["allow"] == "GET"


@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("without", [[], ["Upgrade"]], ids=["WebSocket", "plain"])
def test_a_body_is_answered_with_413(refuse, field, without):
    """The body itself is dropped: the answer must not be lost in a reset."""
    refuse(head(field, without=without) + b"5\r\nhello\r\n0\r\n\r\n", 413)


def test_an_empty_body_is_none(start, connect):
    peer_of(connect(start(recorder(message=echo)))).open("Content-Length: 0").echo("hello")


def test_what_follows_a_refused_head_does_not_take_its_answer_away(refuse):
    refuse(head(without=["Host"]) + b"".join(map(text, "abc")) + bytes(1 << 20), 400)


def test_nothing_is_served_behind_a_refused_head(refuse):
    refuse(head(without=["Host"]) + head() + text("hello"), 400)


# ------------------------------------------------------------------------------------------ origins


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:443",
        "http://example.org.evil.example",
        "http://evil-example.org",
        "http://example.org:8080",
        "null",
        "",
        "example.org",
    ],
)
def test_a_page_of_another_host_is_answered_with_403_that_names_both(
    start, connect, caplog, origin
):
    caplog.set_level(logging.DEBUG, logger="hydrogen")
    handler = recorder(request=None, connected=None)
    server = start(handler)
    peer = peer_of(connect(server))
    peer.send(head(f"Origin: {origin}"))
    answer = turned_away(server, handler, peer, 403)
    assert origin in answer.body.decode()
    assert "example.org" in answer.body.decode()
    said = f"a page of {origin} may not connect to example.org"
    wait_until(lambda: any(said in message for message in caplog.messages), "it is logged")


@pytest.mark.parametrize(
    "origin", ["http://example.org", "https://EXAMPLE.org", "http://example.org:80", None]
)
def test_a_page_of_the_same_host_and_what_is_no_page_may_connect(start, connect, origin):
    more = [] if origin is None else [f"Origin: {origin}"]
    peer_of(connect(start(recorder(message=echo)))).open(*more).echo("hello")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://one.example", 101),
        ("https://two.example", 101),
        ("null", 101),
        ("http://one.example", 403),
        ("https://one.example:8443", 403),
        ("http://example.org", 403),
        (None, 101),
    ],
)
def test_the_origins_of_a_list_may_connect(start, connect, origin, status):
    origins = ["https://one.example", "https://two.example", "null"]
    peer = peer_of(connect(start(recorder(message=echo), websocket=WebSocket(origins=origins))))
    peer.send(head(*([] if origin is None else [f"Origin: {origin}"])))
    assert peer.receive_answer().status == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "nonsense"])
def test_any_page_may_connect_where_origins_is_none(start, connect, origin):
    server = start(recorder(message=echo), websocket=WebSocket(origins=None))
    peer_of(connect(server)).open(f"Origin: {origin}").echo("hello")


# ----------------------------------------------------------------------------------- no HTTP at all


def client_hello():
    """With which TLS begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_tls_on_a_plain_port_is_answered_with_400(refuse):
    refuse(client_hello(), 400)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_that_ends_amid_its_head_is_removed(start, connect, tmp_path, family):
    handler = recorder(request=None, connected=None)
    server = start(handler, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family)
    peer.send(head()[:40])
    peer.finish()
    peer.meet_end()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.IncompleteFrame
    assert handler.names() == ["on_connection_removed"]


def test_a_client_that_ends_before_its_head_has_closed(start, connect):
    handler = recorder(request=None, connected=None)
    client = connect(start(handler))
    client.finish()
    assert client.receive_until_end() == b""
    client.close()
    assert isinstance(handler.wait_removed()[0], hydrogen.PeerClosed)
    assert handler.names() == ["on_connection_removed"]


def test_a_client_that_vanishes_amid_its_head_is_removed(start, connect):
    handler = recorder(request=None, connected=None)
    server = start(handler)
    client = connect(server)
    client.send(head()[:40])
    wait_until(lambda: server.stats().bytes_received == 40, "it is read")
    client.reset()
    assert isinstance(handler.wait_removed()[0], ConnectionResetError)
    assert handler.names() == ["on_connection_removed"]


# ---------------------------------------------------------------------------------- heads that drip


@pytest.mark.parametrize(
    "begun", [b"", head()[:40], head()[:-1]], ids=["", "a part", "all but one"]
)
def test_a_head_that_does_not_come_in_time_is_reset(start, connect, begun):
    handler = recorder(request=None, connected=None)
    client = connect(start(handler, open_timeout=SHORT))
    client.send(begun)
    assert client.at_end() == "reset"
    timed_out(handler, "open_timeout")
    assert handler.names() == ["on_connection_removed"]


def test_a_head_that_is_dripped_does_not_get_more_time(start, connect):
    handler = recorder(request=None)
    client = connect(start(handler, open_timeout=SHORT))
    client.send(b"GET /")
    drip(client, handler, b"a")
    timed_out(handler, "open_timeout")


def test_open_timeout_is_over_once_the_connection_is_open(start, connect):
    """Another one, which is not, tells the time."""
    handler = recorder(message=echo)
    server = start(handler, open_timeout=SHORT)
    peer = peer_of(connect(server)).open()
    late = connect(server)
    late.send(b"GET")
    timed_out(handler, "open_timeout")
    peer.echo("hello")


def test_clients_that_drip_their_heads_hold_no_worker(start, connect):
    """One worker serves a neighbour while 1,000 others drip; they are reset in time."""
    count = 1000
    handler = recorder(message=echo)
    server = start(handler, max_threads=1, open_timeout=AMPLE, pre_allocated=count + 1)
    neighbour = peer_of(connect(server)).open()
    wire = head()
    slow = []
    for number in range(count):
        slow.append(connect(server))
        slow[-1].send(wire[:1])
        if number % 100 == 0:
            neighbour.echo(f"{number}")

    def go_on():
        for at in range(1, 5):
            for client in slow:
                with contextlib.suppress(OSError):  # it may be gone already
                    client.send(wire[at : at + 1])

    def ask():
        for number in range(100):
            neighbour.echo(f"{number}")

    with running(go_on, ask):
        pass
    wait_until(lambda: server.stats().removed_open_timeout == count, "they are removed")
    assert {client.at_end() for client in slow} == {"reset"}
    neighbour.echo("hello")


# ------------------------------------------------------------------------ what a handler may not be


def test_a_websocket_handler_without_settings_gets_the_defaults(start):
    assert start(recorder()).config.websocket == WebSocket()


@pytest.mark.parametrize(
    ("make", "options", "error"),
    [
        (plain_recorder, {"websocket": WebSocket()}, TypeError),
        (recorder, {"websocket": 1}, TypeError),
        (recorder, {"websocket": WebSocket}, TypeError),
        (recorder, {"framing": hydrogen.LineFrameBuilder()}, ValueError),
        (
            recorder,
            {"framing": hydrogen.WebSocketFrameBuilder(), "websocket": WebSocket()},
            ValueError,
        ),
    ],
)
def test_a_handler_and_settings_that_do_not_fit_are_refused(engine, make, options, error):
    with pytest.raises(error, match=r"^(websocket|handler): "):
        hydrogen.serve(make(), engine=engine, port=0, **options)


def handler_class(**methods):
    return type("Mine", (hydrogen.WebSocketHandler,), methods)


async def on_request(self, socket, request): ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (handler_class(), "has no on_message"),
        (handler_class(on_message=functools.partial(print), on_eof=print), "on_eof is not a"),
        (handler_class(on_message=print, on_data_received=print), "on_data_received is not a"),
        (handler_class(on_message=print, on_messages=print), "on_messages is not a"),
        (handler_class(on_message=print, on_request=on_request), "`async def`"),
        (handler_class(on_message=print, on_pong=1), "not callable"),
    ],
)
def test_a_handler_with_wrong_callbacks_is_refused(engine, handler, message):
    with pytest.raises(TypeError, match=message):
        hydrogen.serve(handler(), engine=engine, port=0)
