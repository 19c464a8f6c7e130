"""Request heads and responses."""

import base64

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrogen.http import Headers, HeadReader, Refusal, Request, Response, parse_request

HEAD = b"GET /chat?room=1 HTTP/1.1\r\nHost: example.org"


def parsed(head, max_headers=100):
    return parse_request(head, max_headers)


def refusal(head, max_headers=100):
    """The status that a head is refused with, and why."""
    with pytest.raises(Refusal) as caught:
        parse_request(head, max_headers)
    response = caught.value.response
    assert response.body.decode() == f"{caught.value}\n"
    return response.status, str(caught.value)


def test_a_request_has_method_path_query_and_headers():
    request = parse_request(HEAD + b"\r\nX-A:  one \t\r\nx-a: two\r\nY:", 100, ("127.0.0.1", 7))
    assert (request.method, request.path, request.query) == ("GET", "/chat", "room=1")
    assert request.host == "example.org"
    assert request.peername == ("127.0.0.1", 7)
    assert dict(request.headers) == {"host": "example.org", "x-a": "one, two", "y": ""}
    assert request.headers.get_all("X-A") == ["one", "two"]
    assert request.headers["X-a"] == "one, two"
    assert "X-A" in request.headers
    assert "x-b" not in request.headers
    assert 7 not in request.headers
    assert len(request.headers) == 3
    assert repr(request) == "<Request GET /chat?room=1 of example.org>"
    assert repr(request.headers).startswith("Headers([('host', 'example.org'), ('x-a', 'one')")


def test_bytes_beyond_ascii_in_a_value_are_latin_1():
    assert parsed(HEAD + b"\r\nX: caf\xe9").headers["x"] == "caf\xe9"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "a request line is"),
        (b"GET /", "a request line is"),
        (b"GET  / HTTP/1.1", "a request line is"),
        (b"GET / HTTP/1.1 ", "a request line is"),
        (b"GET / HTTP/1.1\t", "does not end with a version"),
        (b"G\x00T / HTTP/1.1", "the method is no token"),
        (b"GET /\x00 HTTP/1.1", "the target is no path"),
        (b"GET /\xc3\xa9 HTTP/1.1", "the target is no path"),
        (b"GET /#part HTTP/1.1", "the target is no path"),
        (b"GET * HTTP/1.1", "the target is no path"),
        (b"GET http://example.org/ HTTP/1.1", "the target is no path"),
        (b"GET / HTTP/1.1\rHost: x", "a request line is"),
        (b"GET / HTTP/1.1\nHost:x", "does not end with a version"),
        (b"GET / http/1.1", "does not end with a version"),
        (b"GET / HTTP/11", "does not end with a version"),
        (b"\x16\x03\x01\x02\x00\x01", "a request line is"),
    ],
)
def test_a_malformed_request_line_is_refused(line, why):
    status, said = refusal(line + b"\r\nHost: example.org")
    assert status == 400
    assert why in said


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (b"X", "no name, a colon and a value"),
        (b"X : y", "no name, a colon and a value"),
        (b"X\t: y", "no name, a colon and a value"),
        (b": y", "no name, a colon and a value"),
        (b"X\x00: y", "no name, a colon and a value"),
        (b"X\xe9: y", "no name, a colon and a value"),
        (b"X: y\r\n z", "continued on another line"),
        (b"X: y\r\n\tz: a", "continued on another line"),
        (b"X: y\x00", "control character"),
        (b"X: y\rz: a", "control character"),
        (b"X: y\nz: a", "control character"),
        (b"X: y\x7f", "control character"),
        (b"X: y\r\n", "no name, a colon and a value"),
        (b"Host: example.org", "one Host field, not 2"),
        (b"Content-Length: -1", "not one number"),
        (b"Content-Length: ", "not one number"),
        (b"Content-Length: 1_0", "not one number"),
        (b"Content-Length: " + b"0" * 21, "not one number"),
        (b"Content-Length: 0\r\nContent-Length: 0", "not one number"),
        (b"Content-Length: 0, 0", "not one number"),
    ],
)
def test_a_malformed_header_field_is_refused(lines, why):
    status, said = refusal(HEAD + b"\r\n" + lines)
    assert status == 400
    assert why in said


@pytest.mark.parametrize(
    "host", [b"", b"a b", b"a/b", b"a,b@c", b"[::1", b"a:", b"a:123456", b"a:b", b"\xe9"]
)
def test_a_host_that_is_none_is_refused(host):
    assert refusal(b"GET / HTTP/1.1\r\nHost: " + host)[0] == 400


@pytest.mark.parametrize("host", [b"a", b"a.b-c:80", b"127.0.0.1:1", b"[::1]:65535", b"xn--a"])
def test_a_host_is_a_name_or_an_address(host):
    assert parsed(b"GET / HTTP/1.1\r\nHost: " + host).host == host.decode()


def test_no_host_is_refused():
    assert refusal(b"GET / HTTP/1.1") == (400, "a request has one Host field, not 0")


def test_too_many_header_fields_are_refused():
    head = HEAD + b"\r\nX: y" * 9
    assert len(parsed(head, 10).headers.get_all("x")) == 9
    assert refusal(head, 9) == (431, "a request has at most 9 header fields")


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2"])
def test_another_version_is_refused(version):
    assert refusal(b"GET / " + version)[0] == 505


@pytest.mark.parametrize("line", [b"OPTIONS *", b"CONNECT example.org:80"])
def test_another_method_is_told_so_whatever_its_target_is(line):
    assert refusal(line + b" HTTP/1.1\r\nHost: example.org")[0] == 405


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"get", b"CONNECT"])
def test_another_method_is_refused_with_what_is_allowed(method):
    with pytest.raises(Refusal) as caught:
        parsed(HEAD.replace(b"GET", method, 1) + b"\r\nContent-Length: 3")
    assert caught.value.response.status == 405
    assert b"\r\nAllow: GET\r\n" in caught.value.response.to_bytes()


@pytest.mark.parametrize("line", [b"Content-Length: 1", b"Transfer-Encoding: chunked"])
def test_a_body_is_refused(line):
    assert refusal(HEAD + b"\r\n" + line)[0] == 413


def test_a_body_of_no_bytes_is_none():
    assert parsed(HEAD + b"\r\nContent-Length: 00").headers["content-length"] == "00"


def of(*fields):
    return Request("GET", "/", Headers(fields))


def test_cookies_are_by_name_and_the_first_of_a_name_counts():
    request = of(("Cookie", 'sid=31d4; theme="dark"; sid=old; odd; =empty'), ("cookie", "b=a=c"))
    assert request.cookies == {"sid": "31d4", "theme": "dark", "": "empty", "b": "a=c"}
    assert request.headers["cookie"].endswith("; b=a=c")
    assert of().cookies == {}
    assert of(("Cookie", 'a="')).cookies == {"a": '"'}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Basic " + base64.b64encode("us\xe9r:p:w".encode()).decode(), ("us\xe9r", "p:w")),
        ("basic Og==", ("", "")),
        ("Basic", None),
        ("Basic !", None),
        ("Basic " + base64.b64encode(b"nobody").decode(), None),
        ("Basic " + base64.b64encode(b"\xff:").decode(), None),
        ("Basic \xe9", None),
        ("Bearer Og==", None),
    ],
)
def test_basic_authentication_is_decoded(value, found):
    assert of(("Authorization", value)).basic_auth == found
    assert of().basic_auth is None


def test_origin_and_subprotocols():
    request = of(
        ("Origin", "https://a"),
        ("Sec-WebSocket-Protocol", "v2, v1"),
        ("sec-websocket-protocol", "v0"),
    )
    assert request.origin == "https://a"
    assert request.subprotocols == ("v2", "v1", "v0")
    assert (of().origin, of().subprotocols) == (None, ())


# ------------------------------------------------------------------------------------ responses


def received(response):
    """What h11 makes of a response."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(response.to_bytes())
    client.receive_data(b"")
    head, body = client.next_event(), b""
    while type(event := client.next_event()) is h11.Data:
        body += bytes(event.data)
    assert type(event) is h11.EndOfMessage
    return head.status_code, body, [(name.decode(), value.decode()) for name, value in head.headers]


def test_a_response_is_what_a_client_makes_of_it():
    status, body, fields = received(Response(200, "ok\xe9\n", {"X-A": "b"}))
    assert (status, body.decode()) == (200, "ok\xe9\n")
    assert [name for name, _ in fields] == [
        "x-a",
        "content-type",
        "date",
        "content-length",
        "connection",
    ]
    assert dict(fields)["content-type"] == "text/plain; charset=utf-8"
    assert dict(fields)["connection"] == "close"


def test_the_type_of_a_body_can_be_said():
    assert ("content-type", "a/b") in received(Response(404, b"x", [("Content-Type", "a/b")]))[2]
    assert ("content-type", "application/octet-stream") in received(Response(404, b"x"))[2]


@pytest.mark.parametrize("status", [204, 304])
def test_some_responses_have_no_body(status):
    assert received(Response(status))[1] == b""
    with pytest.raises(ValueError, match="there is none"):
        Response(status, b"x")


def test_an_unknown_status_has_no_phrase():
    assert Response(599).to_bytes().startswith(b"HTTP/1.1 599 \r\n")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("200",), TypeError),
        ((True,), TypeError),
        ((101,), ValueError),
        ((600,), ValueError),
        ((200, None), TypeError),
        ((200, "", [("a", 1)]), TypeError),
        ((200, "", ["ab"]), TypeError),
        ((200, "", {"a b": ""}), ValueError),
        ((200, "", {"": ""}), ValueError),
        ((200, "", {"\xe9": ""}), ValueError),
        ((200, "", {"a": "b\r\nc: d"}), ValueError),
        ((200, "", {"a": "b\nc"}), ValueError),
        ((200, "", {"a": "b\rc"}), ValueError),
        ((200, "", {"a": "b\0"}), ValueError),
        ((200, "", {"a\r\n": "b"}), ValueError),
        ((200, "", {"a": " b"}), ValueError),
        ((200, "", {"a": "\u20ac"}), ValueError),
        ((200, "", {"Content-Length": "7"}), ValueError),
        ((200, "", {"connection": "keep-alive"}), ValueError),
    ],
)
def test_what_cannot_be_sent_is_refused(arguments, kind):
    with pytest.raises(kind, match=r"status|body|headers"):
        Response(*arguments)


class Odd(str):
    """Another text each time somebody looks."""

    def __str__(self):
        return "odd\r\nX: y"

    def __format__(self, spec):
        return "odd\r\nX: y"

    def encode(self, *arguments):
        return b"odd"


def test_what_is_sent_is_what_was_checked():
    response = Response(200, Odd("body"), [(Odd("A"), Odd("b"))])
    assert received(response)[1] == b"body"
    assert ("a", "b") in received(response)[2]
    assert {type(text) for pair in response.headers for text in pair} == {str}


# -------------------------------------------------------------------------------- where it ends

try:
    from hydrogen import _codec
except ImportError:  # in CI that fails elsewhere
    _codec = None


def head_of(parts, max_header=8192):
    """The head, and the status that it is refused with; the compiled reader agrees."""
    reader, head, status = HeadReader(max_header), None, 0
    for part in parts:
        reader.feed(part)
        try:
            head = reader.next()
        except Refusal as refused:
            status = refused.response.status
        if head is not None or status:
            break
    if _codec is not None:
        assert _codec.head(parts, max_header) == (head, status)
    return head, status


def pieces(data, size=1):
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_head_ends_with_an_empty_line_however_it_comes_in():
    for parts in (
        [HEAD + b"\r\n\r\nrest"],
        pieces(HEAD + b"\r\n\r\n"),
        pieces(HEAD + b"\r\n\r\n", 3),
    ):
        assert head_of(parts) == (HEAD, 0)
        for count in range(1, len(parts)):
            assert head_of(parts[:count]) == (None, 0)
    assert head_of([b"\r\n\r\n"]) == (b"", 0)


def test_what_comes_behind_a_head_is_kept():
    reader = HeadReader(100)
    reader.feed(HEAD + b"\r\n\r\nrest")
    assert reader.size == len(HEAD) + 8
    assert reader.next() == HEAD
    assert reader.size == 4
    assert reader.rest() == b"rest"
    assert reader.size == 0


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b"\x16\x03\x01", 1),
        (b"GET / HTTP/1.1\nHost", 15),
        (b"GET / HTTP/1.1\rHost", 16),
        (b"GET / HTTP/1.1\r\r\n", 16),
        (b"GET / HTTP/1.1\r\nA: \0\r\n", 20),
        (b"GET / HTTP/1.1\r\nA: \x7f\r\n", 20),
        (b"GET / HTTP/1.1\r\n\n", 17),
        (b"\n", 1),
    ],
)
def test_a_byte_that_no_head_has_is_refused_at_once(data, at):
    assert head_of(pieces(data)[: at - 1]) == (None, 0)
    assert head_of(pieces(data)[:at]) == (None, 400)
    for size in (1, 2, 5, len(data)):
        assert head_of(pieces(data + b"\r\n\r\n", size)) == (None, 400)


def test_a_head_is_too_long_as_soon_as_its_end_would_be():
    data = HEAD + b"\r\n\r\n"
    for size in (1, 7, len(data) + 1):
        assert head_of(pieces(data + b"x", size), len(data)) == (HEAD, 0)
        assert head_of(pieces(data + b"x", size), len(data) - 1) == (None, 431)
    assert head_of([b"a" * 100], 100) == (None, 0)
    assert head_of([b"a" * 101], 100) == (None, 431)
    assert head_of([b"a" * 99 + b"\rx"], 100) == (None, 431)
    assert head_of([b"a" * 99 + b"\0x"], 100) == (None, 400)


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"\0", b" :", b"\xff"]), max_size=14),
    st.integers(1, 9),
    st.integers(1, 16),
)
def test_what_comes_of_a_head_does_not_depend_on_how_it_comes_in(words, size, most):
    data = b"".join(words)
    assert head_of(pieces(data, size), most) == head_of([data], most)


# ---------------------------------------------------------------------- against other programs

PIECES = [
    b"GET",
    b"POST",
    b" ",
    b"/",
    b"/a?b",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"\r\n",
    b"\n",
    b"\r",
    b"\t",
    b"\0",
    b":",
    b"Host: a",
    b"host:b:80",
    b"X: y",
    b"Content-Length: 0",
    b"Content-Length: 7",
    b"Transfer-Encoding: chunked",
    b"Connection: Upgrade",
    b"\xff",
    b"\x7f",
    b'"',
]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.booleans())
def test_what_is_accepted_is_accepted_by_h11(pieces, is_begun):
    head = b"".join([HEAD, *(b"\r\n" + piece for piece in pieces)] if is_begun else pieces)
    if b"\r\n\r\n" in head:
        return
    try:
        request = parsed(head)
    except Refusal:
        return
    server = h11.Connection(h11.SERVER)
    server.receive_data(head + b"\r\n\r\n")
    event = server.next_event()
    assert type(event) is h11.Request
    assert event.target.decode().partition("?")[0] == request.path
    assert sorted((name.decode(), value.decode("latin-1")) for name, value in event.headers) == (
        sorted((name, value) for name in request.headers for value in request.headers.get_all(name))
    )
    assert type(server.next_event()) is h11.EndOfMessage
