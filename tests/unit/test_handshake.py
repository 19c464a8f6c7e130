"""The opening handshake of WebSocket, from heads to the bytes of the answer."""

import enum

import pytest
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.http11 import Response
from websockets.uri import parse_uri
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request

from hydrogen.handshake import (
    Accept,
    accepted,
    answer_of,
    check_origin,
    choose_subprotocol,
    is_upgrade,
    opening_of,
)
from hydrogen.http import Refusal, parse_request

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
FIELDS = {
    "Host": "example.org",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(*more, **fields):
    """A good request, but for `fields`; None leaves one out. `more`: further pairs."""
    fields = {name.replace("_", "-"): value for name, value in fields.items()}
    assert not fields.keys() - {*FIELDS, "Origin", "Sec-WebSocket-Protocol"}
    pairs = [*{**FIELDS, **fields}.items(), *more]
    lines = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in pairs if value is not None)]
    return parse_request("\r\n".join(lines).encode(), 100)


def refused(check, *arguments):
    """The response that `check` refuses with."""
    with pytest.raises(Refusal) as caught:
        check(*arguments)
    return caught.value.response


def test_the_example_of_the_rfc_is_answered_as_there():
    assert accepted(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    answer = answer_of(opening_of(request()), Accept())
    assert answer == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"Connection": "keep-alive, Upgrade"},
        {"Connection": "upgrade"},
        {"Upgrade": "WebSocket"},
        {"Upgrade": "h2c, websocket"},
    ],
)
def test_fields_are_lists_of_words_in_any_case(fields):
    assert is_upgrade(request(**fields))
    assert opening_of(request(**fields)).key == KEY


@pytest.mark.parametrize(
    "fields",
    [
        {"Upgrade": None},
        {"Upgrade": "websockets"},
        {"Connection": None},
        {"Connection": "keep-alive"},
        {"Upgrade": None, "Connection": None},
    ],
)
def test_what_is_no_upgrade_is_told_what_is_spoken_here(fields):
    assert not is_upgrade(request(**fields))
    response = refused(opening_of, request(**fields))
    assert response.status == 426
    head = response.to_bytes().partition(b"\r\n\r\n")[0] + b"\r\n"
    assert b"\r\nUpgrade: websocket\r\n" in head
    assert b"\r\nConnection: Upgrade, close\r\n" in head


@pytest.mark.parametrize("version", ["8", "14", "013", "13, 8", "x"])
def test_another_version_is_told_which_one_is_spoken(version):
    response = refused(opening_of, request(Sec_WebSocket_Version=version))
    assert response.status == 426
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in response.to_bytes()


def test_there_is_one_version():
    assert refused(opening_of, request(Sec_WebSocket_Version=None)).status == 400
    assert refused(opening_of, request(("sec-websocket-version", "13"))).status == 400


@pytest.mark.parametrize(
    "key", [None, "", "x", KEY[:-1], KEY + "=", KEY[:-4], f"{KEY[:21]}h==", f"{KEY}, {KEY}"]
)
def test_the_key_is_that_of_16_bytes(key):
    assert refused(opening_of, request(Sec_WebSocket_Key=key)).status == 400


def test_there_is_one_key():
    assert refused(opening_of, request(("sec-websocket-key", KEY))).status == 400


# ------------------------------------------------------------------------------------ origins


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "example.org"),
        ("https://example.org", "example.org"),
        ("http://example.org", "example.org"),
        ("https://EXAMPLE.org", "example.ORG"),
        ("https://example.org:8443", "example.org:8443"),
        ("https://example.org", "example.org:443"),
        ("https://example.org:443", "example.org"),
        ("http://example.org", "example.org:80"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_pages_of_the_same_host_may_connect(origin, host):
    check_origin(request(Origin=origin, Host=host), "same")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "example.org"),
        ("https://example.org.evil.example", "example.org"),
        ("https://example.org", "www.example.org"),
        ("https://example.org:80", "example.org:443"),
        ("http://example.org", "example.org:443"),
        ("https://example.org:444", "example.org"),
        ("https://example.org:8443", "example.org"),
        ("null", "null"),
        ("example.org", "example.org"),
        ("", "example.org"),
        ("https://a, https://example.org", "example.org"),
        ("file://", "example.org"),
    ],
)
def test_pages_of_other_hosts_may_not(origin, host):
    response = refused(check_origin, request(Origin=origin, Host=host), "same")
    assert response.status == 403
    assert f"a page of {origin} may not connect to {host}\n" == response.body.decode()


def test_certain_origins_may_connect():
    origins = ("https://a.example", "null")
    for origin in (None, "https://a.example", "https://A.example", "null"):
        check_origin(request(Origin=origin), origins)
    for origin in ("https://b.example", "http://a.example", "https://example.org", ""):
        assert refused(check_origin, request(Origin=origin), origins).status == 403


def test_one_origin_is_no_collection_of_characters():
    check_origin(request(Origin="https://a.example"), "https://A.example")
    for origin in ("https://a.exampl", "h", ""):
        assert refused(check_origin, request(Origin=origin), "https://a.example").status == 403


def test_all_may_connect():
    check_origin(request(Origin="https://evil.example"), None)


def test_there_is_one_origin():
    doubled = request(("Origin", "https://example.org"), Origin="https://example.org")
    assert refused(check_origin, doubled, "same").status == 400


# ------------------------------------------------------------------------------- subprotocols


def test_the_server_chooses_among_the_subprotocols():
    opening = opening_of(request(Sec_WebSocket_Protocol="v1, v2"))
    assert opening.subprotocols == ("v1", "v2")
    assert choose_subprotocol(("v3", "v2", "v1"), opening.subprotocols) == "v2"
    assert choose_subprotocol(("v3",), opening.subprotocols) is None
    assert choose_subprotocol((), opening.subprotocols) is None


@pytest.mark.parametrize("offered", ["a, a", "a b", "a/b", 'a, "b"'])
def test_subprotocols_are_different_tokens(offered):
    assert refused(opening_of, request(Sec_WebSocket_Protocol=offered)).status == 400


def test_only_a_subprotocol_that_was_offered_can_be_accepted():
    opening = opening_of(request(Sec_WebSocket_Protocol="v1"))
    assert b"\r\nSec-WebSocket-Protocol: v1\r\n" in answer_of(opening, Accept("v1"))
    with pytest.raises(ValueError, match="the client offers v1, and not 'v2'"):
        answer_of(opening, Accept("v2"))
    with pytest.raises(ValueError, match="the client offers nothing"):
        answer_of(opening_of(request()), Accept("v2"))


def test_a_subprotocol_that_is_an_enum_is_sent_as_its_text():
    kind = enum.Enum("Kind", {"A": "v1"}, type=str)
    answer = answer_of(opening_of(request(Sec_WebSocket_Protocol="v1")), Accept(kind.A))
    assert b"\r\nSec-WebSocket-Protocol: v1\r\n" in answer


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((b"v1",), TypeError),
        (("a b",), ValueError),
        (("",), ValueError),
        ((None, {"Sec-WebSocket-Protocol": "v1"}), ValueError),
        ((None, {"Upgrade": "x"}), ValueError),
        ((None, {"Set-Cookie": "a=b\r\nX: y"}), ValueError),
    ],
)
def test_what_cannot_be_accepted_is_refused_at_once(arguments, kind):
    with pytest.raises(kind, match=r"subprotocol|headers"):
        Accept(*arguments)


# --------------------------------------------------------------------------- with real clients


def test_websockets_takes_the_answer():
    client = ClientProtocol(parse_uri("ws://example.org/chat"), subprotocols=["v2", "v1"])
    client.send_request(client.connect())
    (head,) = client.data_to_send()
    opening = opening_of(parse_request(head.removesuffix(b"\r\n\r\n"), 100))
    accept = Accept(choose_subprotocol(("v1",), opening.subprotocols), {"Set-Cookie": "a=b"})
    client.receive_data(answer_of(opening, accept))
    (event,) = client.events_received()
    assert type(event) is Response
    assert isinstance(event.headers, Headers)
    assert event.headers["Set-Cookie"] == "a=b"
    assert client.subprotocol == "v1"
    assert client.state.name == "OPEN"


def test_wsproto_takes_the_answer():
    client = WSConnection(ConnectionType.CLIENT)
    head = client.send(Request(host="example.org", target="/", subprotocols=["v1"]))
    opening = opening_of(parse_request(head.removesuffix(b"\r\n\r\n"), 100))
    client.receive_data(answer_of(opening, Accept("v1")))
    (event,) = client.events()
    assert type(event) is AcceptConnection
    assert event.subprotocol == "v1"
