"""What the load generator sends beside random messages of one size: several sizes, a file,
WebSocket as clients speak it.
"""

import itertools

import pytest
from echoes import changing, echo, faults, measure, read_exactly, read_messages
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, RejectConnection, Request
from wsproto.utilities import generate_accept_token

from hydrogen.perf.framing import FRAMINGS, SIZES_MOST, sizes_of
from hydrogen.perf.options import Options

# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("64", (64,)),
        ("0", (0,)),
        ("64,1k", (64, 1024)),
        ("1M, 2", (1 << 20, 2)),
        ("uniform:3-6", (3, 4, 5, 6)),
        ("uniform:7-7", (7,)),
        ("uniform:1k-1026", (1024, 1025, 1026)),
    ],
)
def test_sizes_are_read_as_people_write_them(text, sizes):
    assert sizes_of(text) == sizes


def test_of_a_long_range_sizes_at_even_distances_are_taken_both_ends_included():
    sizes = sizes_of("uniform:0-1M")
    assert len(sizes) == len(set(sizes)) == SIZES_MOST
    assert (sizes[0], sizes[-1]) == (0, 1 << 20)
    assert {after - before for before, after in itertools.pairwise(sizes)} == {256, 257}


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1.5", "64,", "1G", "k", "uniform:", "uniform:5", "uniform:9-3", "normal:1-2", "²"],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|number of bytes|range"):
        sizes_of(text)
    with pytest.raises(ValueError, match="size"):
        Options(("127.0.0.1", 1), size=text)


@pytest.mark.parametrize("in_flight", [1, 16])
@pytest.mark.parametrize(
    ("size", "allowed"),
    [("10,300", {10, 300}), ("uniform:1-12", set(range(1, 13))), ("5,100k", {5, 102_400})],
)
@pytest.mark.parametrize("framing", [framing for framing in FRAMINGS if framing != "raw"])
def test_each_size_comes_and_every_reply_is_verified(
    serve, loop, framing, size, allowed, in_flight
):
    if framing == "simple" and max(allowed) > 65_535:
        size, allowed = "5,60k", {5, 61_440}
    result = measure(
        serve(echo),
        loop,
        framing=framing,
        size=size,
        number=200,
        connections=1,
        in_flight=in_flight,
    )
    assert result.ok
    assert result.counters.messages == 200


@pytest.mark.parametrize("framing", [framing for framing in FRAMINGS if framing != "raw"])
def test_sizes_are_by_chance_and_the_content_is_counted(serve, loop, framing):
    received = bytearray()

    def collecting(data, seen):
        received.extend(data)
        return data

    result = measure(
        serve(changing(collecting)),
        loop,
        framing=framing,
        size="9,20,31",
        number=300,
        connections=1,
    )
    found = [len(payload) for payload in read_messages(framing, bytes(received))]
    assert set(found) == {9, 20, 31}
    assert all(found.count(size) > 50 for size in (9, 20, 31))
    assert result.counters.content == sum(found)
    assert result.counters.received == len(received)


def test_a_wrong_byte_is_located_among_messages_of_several_sizes(serve, loop):
    received = bytearray()

    def damage(data, seen):
        received.extend(data)
        at = 5000 - seen
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if 0 <= at < len(data) else data

    counters = measure(
        serve(changing(damage)), loop, framing="length", size="10,200", number=1000, connections=1
    ).counters
    ends = 0
    payloads = read_messages("length", bytes(received))
    for number, payload in enumerate(payloads):
        if ends + 4 + len(payload) > 5000:
            assert (counters.wrong, counters.wrong_message, counters.wrong_byte) == (
                1,
                number,
                5000 - ends,
            )
            return
        ends += 4 + len(payload)
    pytest.fail("no message had the damaged byte")


# -- a payload of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"GET / HTTP/1.1 and so on", b"x", bytes(range(256)) * 300],
    ids=["text", "byte", "large"],
)
@pytest.mark.parametrize(
    "framing", [framing for framing in FRAMINGS if framing not in ("raw", "simple")]
)
def test_every_message_carries_the_file(serve, loop, tmp_path, framing, content):
    path = tmp_path / "payload"
    if framing == "line":
        content = content.replace(b"\n", b" ")
    if framing == "websocket-text":
        content = content.decode("latin-1").encode()
    path.write_bytes(content)
    received = bytearray()

    def collecting(data, seen):
        received.extend(data)
        return data

    result = measure(
        serve(changing(collecting)),
        loop,
        payload=str(path),
        framing=framing,
        number=20,
        connections=1,
        in_flight=3,
    )
    assert result.ok
    assert read_messages(framing, bytes(received)) == [content] * 20
    assert result.counters.content == 20 * len(content)


def test_a_wrong_reply_to_a_file_is_found(serve, loop, tmp_path):
    path = tmp_path / "payload"
    path.write_bytes(b"0123456789" * 10)
    counters = measure(
        serve(changing(lambda data, seen: data.replace(b"7", b"8"))),
        loop,
        payload=str(path),
        connections=1,
    ).counters
    assert (counters.wrong, counters.wrong_message, counters.wrong_byte) == (1, 0, 7)


def test_a_file_of_several_lines_is_no_line(tmp_path):
    path = tmp_path / "payload"
    path.write_bytes(b"one\ntwo")
    with pytest.raises(ValueError, match="several lines"):
        Options(("127.0.0.1", 1), payload=str(path), framing="line")
    with pytest.raises(OSError, match="nothing"):
        Options(("127.0.0.1", 1), payload=str(tmp_path / "nothing"))


def test_a_file_that_is_no_text_is_no_text_message(tmp_path):
    path = tmp_path / "payload"
    path.write_bytes(b"\xff")
    Options(("127.0.0.1", 1), payload=str(path), framing="websocket")
    with pytest.raises(ValueError, match="UTF-8"):
        Options(("127.0.0.1", 1), payload=str(path), framing="websocket-text")


# -- WebSocket -------------------------------------------------------------------------------------


PATH = "/chat?room=1"


def websocket_echo(connection):
    """A server function by another library, which takes masked frames only."""
    session = WSConnection(ConnectionType.SERVER)
    parts = []
    while data := connection.recv(65536):
        session.receive_data(data)
        for event in session.events():
            if isinstance(event, Request):
                reply = (
                    AcceptConnection()
                    if event.target == PATH
                    else RejectConnection(status_code=404)
                )
                connection.sendall(session.send(reply))
            elif isinstance(event, Message):
                parts.append(event.data)
                if event.message_finished:
                    message = event.data[:0].join(parts)
                    connection.sendall(session.send(type(event)(message)))
                    parts.clear()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": "0,1,125,126"},
        {"size": "65535,65536", "number": 20},
        {"in_flight": 16, "size": 4},
        {"rate": 2000},
    ],
    ids=str,
)
@pytest.mark.parametrize("framing", ["websocket", "websocket-text"])
def test_a_websocket_server_takes_what_is_sent_and_its_replies_are_verified(
    serve, loop, framing, options
):
    result = measure(serve(websocket_echo), loop, framing=framing, websocket=PATH, **options)
    assert result.ok
    assert result.counters.messages == options.get("number", 50)
    assert sum(result.handshakes) == 2


def test_a_path_that_is_not_served_is_a_connect_failure(serve, loop):
    result = measure(serve(websocket_echo), loop, framing="websocket", websocket="/")
    assert "404" in result.connect_error


def test_websocket_over_tls(serve, loop, tls, cacert):
    result = measure(
        serve(websocket_echo, tls=tls),
        loop,
        framing="websocket",
        websocket=PATH,
        tls=True,
        cacert=cacert,
    )
    assert result.ok
    assert result.counters.messages == 50


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not speak WebSocket: 'HTTP/1.1 200 OK'"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: other\r\n\r\n",
            "does not speak WebSocket",
        ),
        (b"nonsense\r\n\r\n", "does not speak WebSocket"),
        (b"x" * 20_000, "longer than"),
        (b"", "during the WebSocket handshake"),
    ],
    ids=["200", "key", "nonsense", "endless", "end"],
)
def test_another_answer_to_the_handshake_is_a_connect_failure(serve, loop, answer, reason):
    def function(connection):
        while b"\r\n\r\n" not in connection.recv(65536):
            pass
        connection.sendall(answer)

    result = measure(serve(function), loop, framing="websocket", websocket="/", connections=1)
    assert result.connect_failures == 1
    assert reason in result.connect_error


@pytest.mark.parametrize("path", ["", "chat", "/a b", "/\r\nHost: x", "/caf\xe9"])
def test_a_websocket_has_a_path(path):
    with pytest.raises(ValueError, match="websocket"):
        Options(("127.0.0.1", 1), framing="websocket", websocket=path)


def test_a_handshake_is_of_websocket_alone():
    with pytest.raises(ValueError, match="websocket"):
        Options(("127.0.0.1", 1), websocket="/")


def test_bytes_before_the_whole_request_was_sent_are_wrong_where_replies_differ(serve, loop):
    def function(connection):
        head = bytearray()
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        key = next(
            line.split(b": ")[1]
            for line in bytes(head).split(b"\r\n")
            if line.startswith(b"Sec-WebSocket-Key")
        )
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
            + generate_accept_token(key)
            + b"\r\n\r\n"
        )
        frame = read_exactly(connection, 2 + 4 + 64)
        connection.sendall(frame)  # masked, as no server may send
        connection.recv(1)

    assert faults(
        measure(serve(function), loop, framing="websocket", websocket="/", connections=1)
    ) == {"wrong": 1, "unanswered": 1}


def test_raw_messages_of_several_sizes(serve, loop):
    assert (
        measure(serve(echo), loop, size="1,70000,9", number=100, in_flight=5).counters.messages
        == 100
    )
