"""The opening handshake of a WebSocket: requests that are accepted, however they come in, and what
`on_request` makes of them.
"""

import pytest
from proxy_headers import v1, v2
from support import timed_out, wait_event, wait_until
from websocket_peers import (
    FAMILIES,
    KEY,
    Closed,
    binary,
    closing,
    echo,
    expected_accept,
    head,
    options_of,
    peer_of,
    recorder,
    text,
)

import hydrogen
from hydrogen import Accept, Response, WebSocket

SHORT = 0.3
"""Seconds of the deadlines that are to pass."""

PLAIN = head(line="GET /healthz HTTP/1.1", without=["Upgrade", "Connection", "Sec-WebSocket-Key"])
"""No request to speak WebSocket."""

# ---------------------------------------------------------------------------------- how it comes in


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_is_opened_and_served(start, connect, tmp_path, family):
    handler = recorder(request=None, connected=None, message=echo)
    server = start(handler, **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family).open(line="GET /chat?room=1 HTTP/1.1")
    peer.echo("hello")
    peer.echo(b"\x00\xff")
    assert handler.socket().path == "/chat"
    assert peer.say_goodbye() == Closed(1000, "")
    handler.wait_removed()
    names = ["on_request", "on_connected", "on_message", "on_message", "on_disconnected"]
    assert handler.names() == [*names, "on_connection_removed"]


@pytest.mark.parametrize(
    "changes",
    [
        ["Connection: keep-alive, Upgrade"],
        ["Connection: keep-alive", "Connection: upgrade"],
        ["Connection: UPGRADE"],
        ["Connection: ,Upgrade ,, close"],
        ["Upgrade: WebSocket"],
        ["Upgrade: WEBSOCKET"],
        ["Upgrade: h2c, websocket"],
        ["Upgrade: h2c", "Upgrade: websocket"],
        ["Host: example.org:8080"],
        ["Host: [::1]:80"],
        ["Host:example.org"],
        ["Host: \t example.org \t"],
        ["sec-websocket-VERSION: 13"],
        ["User-Agent: \xfc \t?(:;)"],
        ["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"],
        ["Sec-WebSocket-Extensions: nonsense; a=b, more"],
    ],
    ids=repr,
)
def test_requests_of_every_kind_of_client_are_accepted(start, connect, changes):
    without = [change.partition(":")[0] for change in changes]
    peer_of(connect(start(recorder(message=echo)))).open(*changes, without=without).echo("hello")


@pytest.mark.parametrize("key", [KEY, "AAAAAAAAAAAAAAAAAAAAAA==", "/+/+/+/+/+/+/+/+/+/+/w=="])
def test_the_key_is_answered_as_rfc_6455_has_it(start, connect, key):
    peer = peer_of(connect(start(recorder())))
    peer.send(head(f"Sec-WebSocket-Key: {key}", without=["Sec-WebSocket-Key"]))
    assert peer.receive_answer().headers["sec-websocket-accept"] == expected_accept(key)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_behind_the_request_in_one_segment_are_served(start, connect, tmp_path, family):
    server = start(recorder(message=echo), **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family)
    peer.send(head() + text("hello") + binary(b"world") + closing(1000, "bye"))
    peer.receive_opening()
    assert [peer.receive_message(), peer.receive_message()] == ["hello", b"world"]
    assert peer.ended() == Closed(1000, "")


def test_a_request_that_is_split_anywhere_is_accepted(start, connect):
    """Each part is read by itself."""
    server = start(recorder(message=echo))
    wire = head() + text("hello")
    before = 0
    for at in range(1, len(wire)):
        with connect(server) as client:
            peer = peer_of(client)
            peer.send(wire[:at])
            wait_until(
                lambda before=before, at=at: server.stats().bytes_received == before + at,
                "the first part is read",
            )
            peer.send(wire[at:])
            peer.receive_opening()
            assert peer.receive_message() == "hello"
        before += len(wire)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_that_is_dripped_is_accepted(start, connect, tmp_path, family):
    server = start(recorder(message=echo), **options_of(family, tmp_path / "s"))
    peer = peer_of(connect(server), family)
    wire = head(line="GET /dripped HTTP/1.1") + text("hello")
    for at in range(len(wire)):
        peer.send(wire[at : at + 1])
    peer.receive_opening()
    assert peer.receive_message() == "hello"


@pytest.mark.parametrize("header", [v1, v2])
@pytest.mark.parametrize("split", ["one segment", "two", "dripped"])
def test_a_proxy_header_says_who_asks(start, connect, header, split):
    seen = []
    handler = recorder(
        request=lambda socket, request: seen.append((request.peername, socket.peername)),
        message=echo,
    )
    server = start(handler, proxy_protocol="auto", proxy_allow_from=["127.0.0.1"])
    peer = peer_of(connect(server))
    front, rest = header("192.0.2.1", "198.51.100.2"), head() + text("hello")
    parts = {"one segment": [front + rest], "two": [front, rest]}.get(split)
    for part in parts or [bytes([byte]) for byte in front + rest]:
        peer.send(part)
    peer.receive_opening()
    assert peer.receive_message() == "hello"
    assert seen == [(("192.0.2.1", 56_324),) * 2]
    assert handler.socket().get_extra_info("proxy").source == ("192.0.2.1", 56_324)


def test_a_client_that_ends_its_side_behind_the_request_is_answered(start, connect):
    handler = recorder(message=echo)
    peer = peer_of(connect(start(handler)))
    peer.send(head() + text("hello"))
    peer.finish()
    peer.receive_opening()
    assert peer.receive_message() == "hello"
    peer.meet_end()
    (error,) = handler.wait_disconnected()
    assert error.code == 1006


# -------------------------------------------------------------------------------------- the request


def test_a_request_has_its_parts(start, connect):
    seen = []
    server = start(recorder(request=lambda socket, request: seen.append(request)))
    client = connect(server)
    peer_of(client).open(
        "Origin: http://example.org",
        'Cookie: sid=abc; quoted="a b"',
        "Cookie: sid=later",
        "X-Twice: one",
        "x-twice: two",
        "Authorization: Basic dXNlcjpww6Q6c3M=",
        "Sec-WebSocket-Protocol: v2, v1",
        line="GET /a%20b/?q=1&r=%3F? HTTP/1.1",
    )
    (request,) = seen
    assert (request.method, request.path, request.query) == ("GET", "/a%20b/", "q=1&r=%3F?")
    assert request.host == "example.org"
    assert request.origin == "http://example.org"
    assert request.cookies == {"sid": "abc", "quoted": "a b"}
    assert request.headers["X-TWICE"] == "one, two"
    assert request.headers.get_all("x-Twice") == ["one", "two"]
    assert "upgrade" in request.headers
    assert request.basic_auth == ("user", "pä:ss")
    assert request.subprotocols == ("v2", "v1")
    assert request.peername == client.name


def test_a_bare_request_lacks_the_rest(start, connect):
    seen = []
    server = start(recorder(request=lambda socket, request: seen.append(request)))
    peer_of(connect(server)).open()
    (request,) = seen
    assert (request.path, request.query, request.origin) == ("/", "", None)
    assert (request.cookies, request.subprotocols, request.basic_auth) == ({}, (), None)


def test_before_it_is_open_nothing_can_be_sent(start, connect):
    seen = []

    def request(socket, request):
        sent = socket.send("early"), socket.send(b"early"), socket.ping(b"early")
        seen.append((*sent, socket.path, socket.subprotocol, socket.latency))
        seen.append(socket.server.connections)
        seen.append(socket.server.broadcast("early"))

    handler = recorder(request=request, connected=lambda socket: socket.send("welcome"))
    server = start(handler)
    peer = peer_of(connect(server)).open()
    assert peer.receive_message() == "welcome"
    assert seen == [
        (False, False, False, None, None, None), [], hydrogen.BroadcastReport(0, 0)
    ]  # fmt: skip
    assert server.stats().messages_refused == 2
    assert server.stats().pings_sent == 0
    assert server.connections == [handler.socket()]


def test_user_data_that_is_set_there_stays(start, connect):
    def request(socket, request):
        socket.user_data = request.cookies["sid"]

    seen = []
    handler = recorder(
        request=request,
        connected=lambda socket: seen.append(socket.user_data),
        message=lambda socket, data: socket.send(socket.user_data + data),
        disconnected=lambda socket, error: seen.append(socket.user_data),
    )
    peer = peer_of(connect(start(handler))).open("Cookie: sid=me")
    peer.send(text("!"))
    assert peer.receive_message() == "me!"
    peer.say_goodbye()
    handler.wait_removed()
    assert seen == ["me", "me"]


def test_one_that_blocks_delays_no_other_and_its_time_does_not_count(start, connect, gate):
    """`open_timeout` is the client's: another connection, whose head does not come, tells that it
    is over.
    """
    go = gate()

    def request(socket, request):
        if request.path == "/slow":
            wait_event(go, "the others were served")

    handler = recorder(request=request, message=echo)
    server = start(handler, open_timeout=SHORT)
    slow = peer_of(connect(server))
    slow.send(head(line="GET /slow HTTP/1.1") + text("hello"))
    handler.wait_for("request")
    late = connect(server)
    peer_of(connect(server)).open().echo("others")
    timed_out(handler, "open_timeout")
    late.close()
    go.set()
    slow.receive_opening()
    assert slow.receive_message() == "hello"


# --------------------------------------------------------------------------------- what is answered


def answering(result):
    """A hook that returns `result`."""
    return lambda socket, request: result


@pytest.mark.parametrize(
    ("speaks", "offers", "chosen"),
    [
        (("v2", "v1"), ["v1, v2"], "v2"),
        (("v2", "v1"), ["v1", "v3"], "v1"),
        (("v2", "v1"), ["V2"], None),
        (("v2", "v1"), [], None),
        ((), ["v1"], None),
    ],
)
def test_the_servers_order_chooses_the_subprotocol(start, connect, speaks, offers, chosen):
    handler = recorder(connected=None)
    server = start(handler, websocket=WebSocket(subprotocols=speaks))
    peer = peer_of(connect(server))
    peer.send(head(*[f"Sec-WebSocket-Protocol: {offer}" for offer in offers]))
    assert peer.receive_opening().headers.get("sec-websocket-protocol") == chosen
    assert handler.socket().subprotocol == chosen


@pytest.mark.parametrize("subprotocol", ["v1", None])
def test_an_accept_says_how(start, connect, subprotocol):
    result = Accept(subprotocol, headers=[("Set-Cookie", "sid=1"), ("X-Y", "a b")])
    handler = recorder(request=answering(result), connected=None)
    server = start(handler, websocket=WebSocket(subprotocols=["v2"]))
    peer = peer_of(connect(server))
    peer.send(head("Sec-WebSocket-Protocol: v2, v1"))
    answer = peer.receive_opening()
    assert answer.headers.get("sec-websocket-protocol") == subprotocol
    assert (answer.headers["set-cookie"], answer.headers["x-y"]) == ("sid=1", "a b")
    handler.wait_for("connected")
    assert handler.socket().subprotocol == subprotocol


@pytest.mark.parametrize("data", [PLAIN, head()], ids=["plain", "WebSocket"])
@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (Response(200, "ok\n"), 200, b"ok\n"),
        (Response(401, headers={"WWW-Authenticate": "Basic"}), 401, b""),
        (Response(500, b"\0"), 500, b"\0"),
        (Response(204), 204, b""),
        (Response(302, headers=[("Location", "/elsewhere")]), 302, b""),
        (Response(200, "x" * (1 << 20)), 200, b"x" * (1 << 20)),
    ],
    ids=repr,
)
def test_a_response_is_the_answer(start, connect, data, response, status, body):
    handler = recorder(request=answering(response), connected=None)
    server = start(handler)
    peer = peer_of(connect(server))
    peer.send(data)
    answer = peer.refused()
    assert (answer.status, answer.body) == (status, body)
    assert "date" in answer.headers
    for name, value in response.headers:
        assert answer.headers[name.lower()] == value
    peer.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.Reject
    assert handler.names() == ["on_request", "on_connection_removed"]
    wait_until(lambda: server.stats().removed_reject == 1, "it is counted")
    assert dict(server.stats().responses) == {status: 1}
    assert dict(server.stats().closes) == {}
    assert server.stats().messages_sent == 0


def test_a_plain_request_that_nobody_answers_is_answered_with_426(start, connect):
    seen = []
    handler = recorder(request=lambda socket, request: seen.append(request.path))
    peer = peer_of(connect(start(handler)))
    peer.send(PLAIN)
    assert peer.refused().status == 426
    assert seen == ["/healthz"]


def test_a_plain_request_cannot_be_accepted(start, connect):
    handler = recorder(request=answering(Accept()), connected=None)
    peer = peer_of(connect(start(handler)))
    peer.send(PLAIN)
    assert peer.refused().status == 426
    handler.wait_removed()
    assert handler.names() == ["on_request", "on_connection_removed"]


def raising(error):
    """A hook that raises it."""

    def hook(*arguments):
        raise error

    return hook


def test_reject_is_answered_with_403(start, connect):
    error = hydrogen.Reject("not you")
    handler = recorder(request=raising(error), connected=None)
    server = start(handler)
    peer = peer_of(connect(server))
    peer.send(head())
    answer = peer.refused()
    assert answer.status == 403
    assert b"not you" not in answer.body
    assert handler.wait_removed() == [error]
    assert handler.names() == ["on_request", "on_connection_removed"]
    wait_until(lambda: server.stats().removed_reject == 1, "it is counted")
    assert dict(server.stats().responses) == {403: 1}


@pytest.mark.parametrize(
    "error", [KeyError("secret"), ValueError("secret"), SystemExit("secret")], ids=repr
)
def test_another_exception_is_answered_with_500_and_logged(start, connect, error_log, error):
    handler = recorder(request=raising(error), connected=None)
    server = start(handler)
    peer = peer_of(connect(server))
    peer.send(head())
    answer = peer.refused()
    assert answer.status == 500
    assert b"secret" not in answer.body
    (removed,) = handler.wait_removed()
    assert type(removed) is hydrogen.HandlerError
    assert removed.__cause__ is error
    assert handler.names() == ["on_request", "on_connection_removed"]
    assert [record.exc_info[1] for record in error_log()] == [error]
    wait_until(lambda: server.stats().removed_handler_error == 1, "it is counted")
    assert dict(server.stats().responses) == {500: 1}


def test_close_is_answered_with_500_for_there_is_nothing_to_close(start, connect, error_log):
    handler = recorder(request=raising(hydrogen.Close(4001, "early")), connected=None)
    peer = peer_of(connect(start(handler)))
    peer.send(head())
    assert peer.refused().status == 500
    handler.wait_removed()
    assert handler.names() == ["on_request", "on_connection_removed"]


@pytest.mark.parametrize("result", [True, False, 101, "v1", b"", (), {}, Accept], ids=repr)
def test_something_else_is_answered_with_500_and_logged(start, connect, error_log, result):
    handler = recorder(request=answering(result), connected=None)
    peer = peer_of(connect(start(handler)))
    peer.send(head())
    assert peer.refused().status == 500
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.HandlerError
    assert type(error.__cause__) is TypeError
    assert len(error_log()) == 1


@pytest.mark.parametrize("make", [lambda: Accept("v3"), lambda: Accept("v1, v2")])
def test_a_subprotocol_that_was_not_offered_cannot_be_accepted(start, connect, error_log, make):
    handler = recorder(request=lambda socket, request: make(), connected=None)
    peer = peer_of(connect(start(handler)))
    peer.send(head("Sec-WebSocket-Protocol: v1, v2"))
    assert peer.refused().status == 500
    (error,) = handler.wait_removed()
    assert type(error.__cause__) is ValueError
    assert len(error_log()) == 1


@pytest.mark.parametrize("kind", [Accept, lambda headers: Response(200, headers=headers)])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\rb"),
        ("X", "a\nb"),
        ("X", "a\0"),
        ("X\r\nY", "a"),
        ("X: a\nY", "a"),
        ("", "a"),
        ("Content-Length", "5"),
        ("Connection", "keep-alive"),
        ("Upgrade", "h2c"),
    ],
)
def test_a_header_that_would_forge_the_answer_is_refused(
    start, connect, error_log, kind, name, value
):
    handler = recorder(request=lambda socket, request: kind(headers=[(name, value)]))
    peer = peer_of(connect(start(handler)))
    peer.send(head())
    assert peer.refused().status == 500
    (error,) = handler.wait_removed()
    assert type(error.__cause__) is ValueError
    assert str(error.__cause__).startswith("headers: ")
    assert len(error_log()) == 1
