"""broadcast: one message to every open connection, framed as each of them would have it, with a
report that adds up.
"""

import itertools
import os
import random
import resource

import pytest
from certificates import client_context, server_context
from families import PassThrough
from support import (
    PATIENCE,
    Echo,
    TlsClient,
    checksum32,
    echo,
    length_frame,
    line,
    recorder,
    running,
    simple,
    wait_event,
    wait_until,
    websocket,
)

import hydrogen
from hydrogen.tls import TlsSession

BIG = bytes(8 << 20)
"""More than the kernel takes for a peer that does not read."""


def connected(handler, connect, server, count, **options):
    """So many clients, and their sockets in the same order."""
    clients = [connect(server, **options) for _ in range(count)]
    names = {call.socket.peername: call.socket for call in handler.wait_for("connected", count)}
    return clients, [names[client.name] for client in clients]


# -------------------------------------------------------------------------------------- who gets it


@pytest.mark.clause("S36")
@pytest.mark.parametrize("how", ["close", "reset"])
def test_who_has_left_is_neither_sent_to_nor_counted(start, connect, how):
    reports = []

    def disconnected(socket, error):
        reports.append(server.broadcast(b"somebody has left"))

    handler = recorder(connected=None, disconnected=disconnected)
    server = start(handler)
    clients, _ = connected(handler, connect, server, 3)
    getattr(clients[0], how)()
    assert [client.receive(17) for client in clients[1:]] == [b"somebody has left"] * 2
    wait_until(lambda: reports, "the broadcast is over")
    assert reports == [hydrogen.BroadcastReport(2, 0)]
    assert server.stats().messages_refused == 0
    for client in clients[1:]:
        client.close()


@pytest.mark.clause("S36")
@pytest.mark.parametrize("tls", [False, True], ids=["", "TLS"])
def test_a_builder_of_the_user_s_is_asked_once(start, connect, tls):
    class Counting(hydrogen.LineFrameBuilder):
        framed = 0

        def frame(self, payload):
            self.framed += 1
            return super().frame(payload + b"%d" % self.framed)

    framing = Counting()
    handler = recorder(connected=None)
    server = start(handler, framing=framing, ssl=server_context() if tls else None)
    clients = [connect(server) for _ in range(5)]
    talkers = [
        TlsClient(client, client_context()).handshake() if tls else client for client in clients
    ]
    handler.wait_for("connected", 5)
    assert server.broadcast(b"hello") == hydrogen.BroadcastReport(5, 0)
    assert [talker.receive(7) for talker in talkers] == [b"hello1\n"] * 5
    assert framing.framed == 1


@pytest.mark.clause("S36")
def test_every_open_connection_gets_the_message(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    clients, _ = connected(handler, connect, server, 20)
    assert server.broadcast(b"hello") == hydrogen.BroadcastReport(20, 0)
    assert [client.receive(5) for client in clients] == [b"hello"] * 20
    wait_until(lambda: server.stats().messages_sent == 20, "each is counted")
    assert server.stats().bytes_sent == 100


@pytest.mark.clause("S36")
@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_those_of_exclude_do_not_get_it(start, connect, kind):
    handler = recorder(connected=None)
    server = start(handler)
    clients, sockets = connected(handler, connect, server, 6)
    excluded = {client.name for client in clients[:2]}
    assert server.broadcast(b"not to all", kind(sockets[:2])) == hydrogen.BroadcastReport(4, 0)
    # which need not be the same objects
    same = kind(socket for socket in server.connections if socket.peername in excluded)
    assert server.broadcast(b"nor this", exclude=same) == hydrogen.BroadcastReport(4, 0)
    assert server.broadcast(b"end") == hydrogen.BroadcastReport(6, 0)
    for client in clients:
        expected = b"end" if client.name in excluded else b"not to allnor thisend"
        assert client.receive(len(expected)) == expected
    assert server.broadcast(b"to nobody", kind(sockets)) == hydrogen.BroadcastReport(0, 0)


@pytest.mark.clause("S36")
def test_connections_that_are_gone_do_no_harm_in_exclude(start, connect):
    handler = recorder(connected=None)
    server, other = start(handler), start(Echo())
    clients, sockets = connected(handler, connect, server, 3)
    connect(other).echo(b"x")
    clients[0].close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 2, "it is gone")
    assert server.broadcast(
        b"x", [sockets[0], sockets[1], *other.connections]
    ) == hydrogen.BroadcastReport(1, 0)
    assert clients[2].receive(1) == b"x"


@pytest.mark.clause("S36", "S40", "K3")
def test_the_report_adds_up_with_connections_that_are_closing_and_with_slow_ones(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1 << 20)
    clients, sockets = connected(handler, connect, server, 5)
    stuck, stuck_sockets = [], []
    for number in range(6, 10):
        stuck.append(connect(server, receive_buffer=4096))
        stuck_sockets.append(handler.wait_for("connected", number)[-1].socket)
        assert stuck_sockets[-1].send(BIG)
    for socket in stuck_sockets[:2]:
        socket.close()
    sent = server.stats().messages_sent
    report = server.broadcast(b"hello")
    assert report == hydrogen.BroadcastReport(5, 4)
    assert [client.receive(5) for client in clients] == [b"hello"] * 5
    removed = [
        call.value
        for call in handler.wait_for("disconnected", 2)
        if call.socket in stuck_sockets[2:]
    ]
    assert [type(error) for error in removed] == [hydrogen.SlowConsumer] * 2
    assert [client.at_end() for client in stuck[2:]] == ["reset"] * 2
    wait_until(lambda: server.stats().removed_slow_consumer == 2, "they are counted")
    assert server.stats().messages_sent == sent + 5
    for socket in stuck_sockets[:2]:
        socket.abort()
    assert all(socket.is_open for socket in sockets)


@pytest.mark.clause("S40", "H20")
def test_f13_a_peer_that_never_reads_goes_and_all_others_get_every_message(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1 << 20)
    slow = connect(server, receive_buffer=4096)
    handler.wait_for("connected")
    clients = [connect(server) for _ in range(4)]
    handler.wait_for("connected", 5)
    message = os.urandom(100_000)
    reports = []

    def read(client):
        for _ in range(100):
            assert client.receive(len(message)) == message

    def broadcast():
        for number in range(100):
            reports.append(server.broadcast(message))
            for socket in server.connections:
                if socket.peername != slow.name:
                    assert socket.drain(PATIENCE), number

    with running(broadcast, *(lambda client=client: read(client) for client in clients)):
        pass
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    totals = [report.sent + report.dropped for report in reports]
    assert totals == sorted(totals, reverse=True)
    assert set(totals) <= {4, 5}
    assert {report.sent for report in reports} == {4, 5}
    assert {report.dropped for report in reports} == {0, 1}
    assert slow.at_end() == "reset"
    wait_until(lambda: server.stats().connections == 4, "it is gone")
    assert server.broadcast(b"x") == hydrogen.BroadcastReport(4, 0)


@pytest.mark.clause("S36", "H23")
def test_a_connection_whose_handshake_is_not_done_is_not_open_yet(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context())
    done = TlsClient(connect(server), client_context()).handshake()
    handler.wait_for("connected")
    begun = TlsClient(connect(server), client_context())
    wait_until(lambda: server.stats().connections == 2, "it is accepted")
    assert server.broadcast(b"early") == hydrogen.BroadcastReport(1, 0)
    assert done.receive(5) == b"early"
    begun.handshake().echo(b"late")


@pytest.mark.clause("S41")
def test_there_is_nobody_without_connections_nor_before_the_start_nor_after_the_stop(start, engine):
    nobody = hydrogen.BroadcastReport(0, 0)
    assert hydrogen.Server(Echo(), hydrogen.Config(port=0), engine=engine).broadcast(b"x") == nobody
    server = start(Echo())
    assert server.broadcast(b"x") == nobody
    server.stop()
    assert server.broadcast(b"x") == nobody


# ----------------------------------------------------------------------------------------- framings

FRAMINGS = {
    "none": (None, bytes),
    "simple": (hydrogen.SimpleFrameBuilder, simple),
    "checksum32": (hydrogen.Checksum32FrameBuilder, checksum32),
    "length": (
        hydrogen.LengthFrameBuilder(width=2, byteorder="little"),
        lambda payload: length_frame(payload, 2, "little"),
    ),
    "line": (hydrogen.LineFrameBuilder, line),
    "websocket": (hydrogen.WebSocketFrameBuilder, websocket),
}


@pytest.mark.clause("S37", "F4")
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_message_is_framed_as_config_says(start, connect, framing, tls):
    builder, frame = FRAMINGS[framing]
    handler = recorder(connected=None)
    server = start(handler, framing=builder, ssl=server_context() if tls else None)
    clients = [connect(server) for _ in range(3)]
    if tls:
        clients = [TlsClient(client, client_context()).handshake() for client in clients]
    handler.wait_for("connected", 3)
    messages = [b"one", b"", b"x" * 60_000, b"four"]
    for message in messages:
        assert server.broadcast(message) == hydrogen.BroadcastReport(3, 0)
    expected = b"".join(map(frame, messages))
    assert [client.receive(len(expected)) == expected for client in clients] == [True] * 3


class Semicolons(hydrogen.FrameBuilder):
    """A builder of the user's."""

    def from_bytes(self, buf):
        end = buf.find(b";")
        if end < 0:
            return None
        frame = hydrogen.LineFrame(bytes(buf[:end]), b";")
        del buf[: end + 1]
        return frame

    def frame(self, payload):
        return hydrogen.LineFrame(payload, b";")


class Shouting(PassThrough):
    """A stream of the user's."""

    def send(self, buf):
        super().send(buf.upper() + b"!" if buf else b"")


def shout(payload):
    return payload.upper() + b"!"


def kinds(context):
    """Name -> what on_new_connection returns, and what then is on the wire."""
    return {
        "server's own": (lambda fd: None, simple),
        "none": (lambda fd: hydrogen.Plain(fd), bytes),
        "line": (lambda fd: hydrogen.Plain(fd, hydrogen.LineFrameBuilder()), line),
        "length": (lambda fd: hydrogen.Plain(fd, hydrogen.LengthFrameBuilder()), length_frame),
        "longer length": (
            lambda fd: hydrogen.Plain(fd, hydrogen.LengthFrameBuilder(width=8)),
            lambda payload: length_frame(payload, 8),
        ),
        "user's builder": (
            lambda fd: hydrogen.Plain(fd, Semicolons()),
            lambda payload: line(payload, b";"),
        ),
        "user's stream": (Shouting, shout),
        "tls": (lambda fd: hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context), line),
        "tls, none": (lambda fd: hydrogen.Secure(fd, None, context), bytes),
    }


@pytest.mark.clause("S37", "T9", "T10", "T5")
def test_each_connection_has_it_in_its_own_framing(start, connect):
    """Two connections of each kind, one after the other, so that whatever is kept from one to the
    next must be the right one.
    """
    each = kinds(server_context())
    makers = iter([maker for _ in range(2) for maker, _ in each.values()])
    handler = recorder(new_connection=lambda fd: next(makers)(fd), connected=None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    clients = []
    for _ in range(2):
        for name, (_, frame) in each.items():
            client = connect(server)
            if name.startswith("tls"):
                client = TlsClient(client, client_context()).handshake()
            handler.wait_for("connected", len(clients) + 1)
            clients.append((name, client, frame))
    messages = [b"hello", b"x" * 5000, b"bye"]
    for message in messages:
        assert server.broadcast(message) == hydrogen.BroadcastReport(len(clients), 0)
    for name, client, frame in clients:
        expected = b"".join(map(frame, messages))
        assert client.receive(len(expected)) == expected, name


@pytest.mark.clause("S39", "K5", "F6")
def test_a_message_that_the_framing_cannot_carry_raises_and_nobody_gets_it(start, connect):
    handler = recorder(connected=None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder(max_size=100))
    clients, _ = connected(handler, connect, server, 3)
    for size in (101, 65_536, 1 << 20):
        with pytest.raises(hydrogen.FrameTooLarge):
            server.broadcast(bytes(size))
    assert server.broadcast(bytes(100)) == hydrogen.BroadcastReport(3, 0)
    assert [client.receive_frame() for client in clients] == [bytes(100)] * 3
    assert handler.of("connection_removed") == []


@pytest.mark.clause("S39", "K21", "F12")
def test_what_the_server_s_framing_cannot_carry_raises_and_what_another_one_cannot_is_dropped_there(
    start, connect
):
    makers = iter([lambda fd: hydrogen.Plain(fd, hydrogen.LineFrameBuilder()), lambda fd: None] * 2)
    handler = recorder(new_connection=lambda fd: next(makers)(fd), connected=None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    clients = []
    for number in range(1, 5):
        clients.append(connect(server))
        handler.wait_for("connected", number)
    assert server.broadcast(b"two\nlines") == hydrogen.BroadcastReport(2, 2)
    with pytest.raises(hydrogen.FrameTooLarge):  # although a line may be as long
        server.broadcast(bytes(65_536))
    assert server.broadcast(b"end") == hydrogen.BroadcastReport(4, 0)
    for lines, frames in (clients[:2], clients[2:]):
        assert lines.receive(4) == b"end\n"
        assert [frames.receive_frame(), frames.receive_frame()] == [b"two\nlines", b"end"]
    assert handler.of("connection_removed") == []


class Picky(Semicolons):
    """A builder of the user's that cannot frame everything."""

    def frame(self, payload):
        if b";" in payload:
            raise ValueError("a semicolon")
        return super().frame(payload)


@pytest.mark.clause("S39", "F15")
def test_what_a_builder_of_the_user_s_cannot_frame_raises_if_it_is_the_server_s(start, connect):
    handler = recorder(connected=None)
    server = start(handler, framing=Picky)
    clients, _ = connected(handler, connect, server, 2)
    with pytest.raises(ValueError, match="a semicolon"):
        server.broadcast(b"one; two")
    assert server.broadcast(b"three") == hydrogen.BroadcastReport(2, 0)
    assert [client.receive(6) for client in clients] == [b"three;"] * 2
    assert handler.of("connection_removed") == []


# --------------------------------------------------------------------------------------------- data


@pytest.mark.clause("S36", "K2")
@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("H")]
)
def test_any_bytes_like_object_may_be_broadcast(start, connect, kind):
    handler = recorder(connected=None)
    server = start(handler)
    clients, _ = connected(handler, connect, server, 2)
    assert server.broadcast(kind(b"0123456789abcdef")).sent == 2
    assert [client.receive(16) for client in clients] == [b"0123456789abcdef"] * 2


@pytest.mark.clause("K2", "S36")
def test_the_data_is_the_caller_s_again_when_broadcast_returns(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    clients, _ = connected(handler, connect, server, 3, receive_buffer=4096)
    buffer = bytearray(os.urandom(4 << 20))
    expected = bytes(buffer)
    assert server.broadcast(buffer).sent == 3
    buffer[:] = bytes(len(buffer))
    buffer.extend(b"still resizable")
    for client in clients:
        assert client.receive(len(expected)) == expected


@pytest.mark.clause("S39", "K4")
@pytest.mark.parametrize("wrong", ["text", None, 7, [b"x"], object()])
def test_what_is_not_bytes_like_is_a_type_error(start, connect, wrong):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    (client,), _ = connected(handler, connect, server, 1)
    with pytest.raises(TypeError):
        server.broadcast(wrong)
    client.echo(b"goes on")


@pytest.mark.clause("S36", "C18")
def test_large_messages_arrive_whole_at_peers_of_any_speed(start, connect):
    """Their bytes are shared: no connection's progress may be another's."""
    handler = recorder(connected=None)
    server = start(handler)
    messages = [os.urandom(1_500_000) for _ in range(3)]
    expected = b"".join(messages)
    clients = [
        connect(server, receive_buffer=size) for size in (4096, 20_000, 65_536, 262_144, 262_144)
    ]
    handler.wait_for("connected", 5)
    for message in messages:
        assert server.broadcast(message).sent == 5
    clients.pop().reset()
    with running(*(lambda client=client: whole(client, expected) for client in clients)):
        pass
    handler.wait_removed()
    wait_until(lambda: server.stats().queued_bytes == 0, "nothing is queued")


def whole(client, expected):
    assert client.receive(len(expected)) == expected


# ---------------------------------------------------------------------------- threads and callbacks


@pytest.mark.clause("S38", "K6")
def test_broadcasts_and_sends_of_one_thread_stay_in_order(start, connect):
    """Also when the peer does not read at first, so that most of it is queued."""
    handler = recorder(connected=None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    clients, sockets = connected(handler, connect, server, 3, receive_buffer=4096)
    dice = random.Random(7)
    for number in range(300):
        message = b"%d:" % number + b"." * dice.choice((1, 100, 1000, 2000, 20_000))
        if number % 3:
            assert server.broadcast(message).sent == 3
        else:
            for socket in sockets:
                assert socket.send(message)
    for client in clients:
        assert [int(client.receive_frame().split(b":")[0]) for _ in range(300)] == list(range(300))


@pytest.mark.clause("S38", "K6", "K18")
def test_broadcasts_and_sends_of_several_threads_keep_each_thread_s_order_and_never_interleave(
    start, connect
):
    handler = recorder(connected=None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    clients, sockets = connected(handler, connect, server, 3)

    def sender(name):
        for number in range(100):
            message = b"%d:%d:" % (name, number) + b"." * (number * 7 % 1500)
            if (name + number) % 2:
                assert server.broadcast(message) == hydrogen.BroadcastReport(3, 0)
            else:
                for socket in sockets:
                    assert socket.send(message)

    def reader(client):
        received = {name: [] for name in range(4)}
        for _ in range(400):
            name, number, dots = client.receive_frame().split(b":")
            assert dots == b"." * (int(number) * 7 % 1500)
            received[int(name)].append(int(number))
        assert all(numbers == list(range(100)) for numbers in received.values())

    with running(
        *(lambda name=name: sender(name) for name in range(4)),
        *(lambda client=client: reader(client) for client in clients),
    ):
        pass


@pytest.mark.clause("S38", "S36")
def test_a_chat_broadcasts_from_its_callbacks(start, connect):
    """Everybody hears of who comes, what each says, and who goes, but not himself."""

    def tell(socket, message):
        socket.server.broadcast(b"%s\n" % message, exclude=(socket,))

    come = []
    handler = recorder(
        connected=lambda socket: come.append(tell(socket, b"comes")),
        data_received=tell,
        disconnected=lambda socket, err: tell(socket, b"goes"),
    )
    server = start(handler)
    clients = []
    for number in range(1, 5):
        clients.append(connect(server))
        wait_until(lambda number=number: len(come) == number, "all who are there have been told")
        for client in clients[:-1]:
            assert client.receive(6) == b"comes\n"
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
        for other in clients:
            if other is not client:
                assert other.receive(2) == b"%d\n" % number
    while len(clients) > 1:
        clients.pop().close()
        for client in clients:
            assert client.receive(5) == b"goes\n"


@pytest.mark.clause("S38")
@pytest.mark.parametrize("max_threads", [1, 4])
def test_broadcasts_from_all_workers_at_once_reach_everybody(start, connect, max_threads):
    handler = recorder(
        connected=None, data_received=lambda socket, data: socket.server.broadcast(data)
    )
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, max_threads=max_threads)
    clients, _ = connected(handler, connect, server, 6)

    def converse(number, client):
        for step in range(30):
            client.send(simple(b"%d:%d" % (number, step)))
        got = [client.receive_frame() for _ in range(180)]
        for name in range(6):
            assert [
                int(message.split(b":")[1]) for message in got if message.startswith(b"%d:" % name)
            ] == list(range(30))

    with running(
        *(
            lambda number=number, client=client: converse(number, client)
            for number, client in enumerate(clients)
        )
    ):
        pass


@pytest.mark.clause("S38", "K18", "S48")
def test_broadcasts_while_connections_come_and_go_add_up(start, connect):
    """Whoever is there from the beginning to the end gets all of it."""
    handler = recorder(connected=None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    clients, _ = connected(handler, connect, server, 2)

    def churn():
        for number in range(60):
            client = connect(server)
            client.reset() if number % 2 else client.close()

    def broadcast():
        for number in range(200):
            report = server.broadcast(b"%d" % number)
            assert 2 <= report.sent <= report.sent + report.dropped <= 122

    def read(client):
        assert [int(client.receive_frame()) for _ in range(200)] == list(range(200))

    with running(
        churn, churn, broadcast, *(lambda client=client: read(client) for client in clients)
    ):
        pass
    handler.wait_removed(120)


@pytest.mark.clause("S38", "S10")
def test_a_broadcast_while_the_server_stops_returns_whatever_it_finds(start, connect, gate):
    handler = recorder(connected=None)
    server = start(handler)
    clients, _ = connected(handler, connect, server, 10)
    begun = gate()
    reports = []

    def broadcast():
        while server.ready or not reports:
            reports.append(server.broadcast(b"x"))
            begun.set()
        reports.extend(server.broadcast(b"x") for _ in range(100))

    with running(broadcast):
        wait_event(begun, "it broadcasts")
        with running(lambda: server.stop(PATIENCE)):
            for client in clients:
                assert client.at_end() == "end"
                client.close()
    assert all(report.sent + report.dropped <= 10 for report in reports)
    assert server.broadcast(b"x") == hydrogen.BroadcastReport(0, 0)


@pytest.mark.clause("S36")
def test_a_connection_that_is_gone_does_not_shield_another_one_in_exclude(start, connect):
    """Whoever has its slot now is excluded for itself, in whatever order they are named."""
    handler = recorder(connected=None)
    server = start(handler, pre_allocated=0)
    gone = connect(server)
    handler.wait_for("connected")
    stale = [handler.socket()]
    gone.close()
    handler.wait_removed()
    for number in range(2, 130):
        client = connect(server)
        handler.wait_for("connected", number)
        here = handler.of("connected")[-1].socket
        for excluded in ([here, *stale], [*stale, here]):
            assert server.broadcast(b"x", exclude=excluded) == hydrogen.BroadcastReport(0, 0)
        stale.append(here)
        client.close()
        handler.wait_removed(number)


@pytest.mark.clause("S36")
@pytest.mark.parametrize("wrong", [None, 7, "socket", [], {}], ids=repr)
def test_what_is_no_socket_in_exclude_is_a_type_error(start, connect, wrong):
    handler = recorder(connected=None)
    server = start(handler)
    connected(handler, connect, server, 1)
    with pytest.raises(TypeError) as raised:
        server.broadcast(b"x", exclude=[wrong])
    assert str(raised.value) == f"exclude: expected a HydrogenSocket, not {wrong!r}"


class Broken(hydrogen.FrameBuilder):
    """Cannot even frame."""

    def from_bytes(self, buf):
        return None

    def frame(self, payload):
        raise KeyError("no such frame")


@pytest.mark.clause("S39", "F15")
def test_a_builder_of_one_connection_that_fails_keeps_no_other_from_getting_the_message(
    start, connect, error_log
):
    arrived = itertools.count()
    handler = recorder(
        new_connection=lambda fd: None if next(arrived) else hydrogen.Plain(fd, Broken()),
        connected=None,
    )
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    connect(server)
    handler.wait_for("connected")
    others = [connect(server) for _ in range(2)]
    handler.wait_for("connected", 3)
    assert server.broadcast(b"x") == hydrogen.BroadcastReport(2, 1)
    for client in others:
        assert client.receive(5) == simple(b"x")
    (record,) = error_log()
    assert record.getMessage() == "Broken.frame raised KeyError"


@pytest.mark.slow
@pytest.mark.clause("S38", "C18")
def test_broadcasts_count_towards_max_buffered(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_buffered=4 << 20, max_write_buffer=1 << 30, write_timeout=None)
    connected(handler, connect, server, 3, receive_buffer=4096)

    def step():
        server.broadcast(bytes(1 << 20))
        return server.stats().removed_slow_consumer

    wait_until(step, "those who do not read go for it")
    assert server.stats().memory_pauses >= 1


@pytest.mark.clause("S36", "P2")
@pytest.mark.parametrize("kind", ["tls", "stream"])
def test_a_broadcast_lets_those_who_write_for_others_get_on_once_for_all_of_them(
    start, connect, gate, monkeypatch, engine, kind
):
    """On each connection a thread is kept that encrypts, or is in the stream, and much waits for
    that one.
    """
    count, release, inside = 40, gate(), []
    encrypt = TlsSession.encrypt

    def hold(data):
        if bytes(data) == b"first":
            inside.append(data)
            wait_event(release, "it may go on")

    def held(session, *messages):
        hold(b"".join(messages))
        return encrypt(session, *messages)

    class Held(PassThrough):
        def send(self, buf):
            hold(buf)
            super().send(buf)

    handler = recorder(connected=None, **({"new_connection": Held} if kind == "stream" else {}))
    limits = {"max_write_buffer": 1000, "write_buffer_limits": (1000, 1000)}
    server = start(
        handler, ssl=server_context() if kind == "tls" else None, max_threads=2, **limits
    )
    clients = [connect(server) for _ in range(count)]
    peers = [
        TlsClient(client, client_context()).handshake() if kind == "tls" else client
        for client in clients
    ]
    sockets = [call.socket for call in handler.wait_for("connected", count)]
    monkeypatch.setattr(TlsSession, "encrypt", held)
    with running(*(lambda socket=socket: socket.send(b"first") for socket in sockets)):
        wait_until(lambda: len(inside) == count, "all threads are kept")
        for socket in sockets:
            assert socket.send(bytes(900))
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        assert server.broadcast(b"to all") == hydrogen.BroadcastReport(count, 0)
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        release.set()
    for peer in peers:
        assert peer.receive(911) == b"first" + bytes(900) + b"to all"
    # the GIL, once for each message
    given_away = count if (engine, kind) == ("python", "stream") else 0
    assert waits < given_away + count // 2
