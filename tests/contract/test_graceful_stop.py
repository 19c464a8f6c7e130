"""A graceful stop lets what was begun be finished: what was read is delivered, and what is sent
arrives.

In each family of sockets. Which state meets a stop how is in docs/states.md, and tested there.
"""

import socket as stdlib_socket
import threading

import pytest
from families import FAMILIES, connect_to, options_of, stream_of
from support import (
    checksum32,
    length_frame,
    recorder,
    running,
    settled,
    simple,
    wait_event,
    wait_until,
)

import hydrogen

families = pytest.mark.parametrize("family", FAMILIES)


class Lines(hydrogen.LineFrameBuilder):
    """A builder of the user's."""


framings = pytest.mark.parametrize(
    "framing", [hydrogen.LineFrameBuilder(), Lines()], ids=["built-in", "a user's"]
)

MESSAGES = 5
LONG = b"x" * (8 << 20)


@pytest.fixture
def begin(start, tmp_path):
    """A server and a peer of a family; the peer is closed at the end."""
    peers = []

    def begin(family, handler_hooks, **options):
        hooks = {"new_connection": lambda fd: stream_of(family, fd), **handler_hooks}
        handler = recorder(**hooks)
        where = {**options_of(family, str(tmp_path / "s")), **options}
        server = start(handler, **where)
        peers.append(connect_to(server, family))
        return server, handler, peers[-1]

    yield begin
    for peer in peers:
        peer.close()


def is_stopping(server):
    """Until the stop has come as far as to ask the connections."""
    wait_until(lambda: not server.ready, "the stop begins")


@pytest.mark.clause("S9", "S10")
@families
def test_what_a_running_callback_sends_during_a_stop_arrives(begin, gate, family):
    go, running_now = gate(), gate()
    seen = []

    def received(socket, data):
        running_now.set()
        wait_event(go, "the stop has begun")
        seen.append((socket.is_open, socket.send(b"answer"), socket.is_open))

    server, handler, peer = begin(family, {"data_received": received})
    peer.send(b"ask\n")
    wait_event(running_now, "the callback runs")
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        is_stopping(server)
        settled(lambda: len(server.connections))
        go.set()
        assert peer.receive_until_end() == b"answer\n"
    assert seen == [(True, True, True)]
    (report,) = reports
    assert (report.closed, report.aborted, report.unsent_bytes) == (1, 0, 0)
    assert report.refused == 0
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.ServerStopped]


@pytest.mark.clause("S9", "S10")
@families
def test_messages_that_were_read_whole_are_delivered_and_answered(begin, gate, family):
    go, running_now = gate(), gate()

    def received(socket, data):
        running_now.set()
        wait_event(go, "the stop has begun")
        socket.send(b"<" + data + b">")

    server, handler, peer = begin(family, {"data_received": received})
    peer.send(b"".join(b"%d\n" % number for number in range(MESSAGES)) + b"unfinished")
    wait_event(running_now, "the callback runs")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        go.set()
        answers = b"".join(b"<%d>\n" % number for number in range(MESSAGES))
        assert peer.receive_until_end() == answers
    assert handler.messages() == [b"%d" % number for number in range(MESSAGES)]
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.ServerStopped]


@pytest.mark.clause("S9", "S10")
@families
@pytest.mark.parametrize("name", ["connected", "writable", "eof"])
def test_what_any_callback_sends_during_a_stop_arrives(begin, gate, family, name):
    go, running_now = gate(), gate()

    def callback(socket):
        running_now.set()
        wait_event(go, "the stop has begun")
        assert socket.send(b"answer")

    def received(socket, data):
        if name == "writable":
            socket.send(LONG)

    server, _, peer = begin(family, {"data_received": received, name: callback})
    expected = b"answer\n"
    if name == "writable":
        peer.send(b"ask\n")
        expected = LONG + b"\n" + expected
        wait_until(lambda: server.stats().reading_pauses, "the answer fills the buffers")
        assert peer.receive(len(LONG)) == LONG
        expected = expected[len(LONG) :]
    elif name == "eof":
        peer.finish()
    wait_event(running_now, "the callback runs")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        go.set()
        assert peer.receive_until_end() == expected


@pytest.mark.clause("S9", "S10")
@families
def test_a_paused_connection_with_whole_messages_waits_for_its_resume(begin, gate, family):
    def received(socket, data):
        if data == b"pause":
            socket.pause_reading()
        assert socket.send(b"<" + data + b">")

    server, handler, peer = begin(family, {"data_received": received})
    peer.send(b"pause\nheld\n")
    assert peer.receive(8) == b"<pause>\n"
    with running(lambda: server.stop(20)):
        is_stopping(server)
        settled(lambda: len(handler.messages()))
        assert handler.messages() == [b"pause"]
        handler.socket().resume_reading()
        assert peer.receive_until_end() == b"<held>\n"
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.ServerStopped]


@pytest.mark.clause("S9", "S10")
@families
@framings
def test_a_paused_connection_with_whole_messages_is_aborted_at_the_timeout(begin, family, framing):
    if family == "stream":
        framing = None

    def received(socket, data):
        socket.pause_reading()
        socket.send(b"paused")

    server, handler, peer = begin(family, {"data_received": received}, framing=framing)
    peer.send(b"pause\nheld\n")
    assert peer.receive(7) == b"paused\n"
    report = server.stop(0.2)
    assert (report.closed, report.aborted) == (0, 1)
    assert handler.messages() == [b"pause"]


@pytest.mark.clause("S9", "S10")
@families
@framings
@pytest.mark.parametrize("part", [b"", b"unfinished"], ids=["nothing", "a part of a message"])
def test_a_paused_connection_without_a_whole_message_ends_at_once(begin, family, framing, part):
    if family == "stream":
        framing = None

    def received(socket, data):
        socket.pause_reading()
        socket.send(b"paused")

    server, handler, peer = begin(family, {"data_received": received}, framing=framing)
    peer.send(b"pause\n" + part)
    assert peer.receive(7) == b"paused\n"
    with running(lambda: server.stop(20)):
        assert peer.receive_until_end() == b""
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.ServerStopped]


@pytest.mark.clause("S9", "S10")
@families
@framings
def test_one_that_pauses_while_the_server_stops_ends_at_once_too(begin, gate, family, framing):
    if family == "stream":
        framing = None
    go, running_now = gate(), gate()

    def received(socket, data):
        running_now.set()
        wait_event(go, "the stop has begun")
        socket.pause_reading()

    server, handler, peer = begin(family, {"data_received": received}, framing=framing)
    peer.send(b"pause\nunfinished")
    wait_event(running_now, "the callback runs")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        go.set()
        assert peer.receive_until_end() == b""
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.ServerStopped]


NEVER_FRAMES = {
    "no frame": (
        hydrogen.SimpleFrameBuilder(), simple(b"pause"), b"garbage", hydrogen.ProtocolError
    ),
    "too large": (
        hydrogen.LengthFrameBuilder(max_size=9),
        length_frame(b"pause"),
        length_frame(b"1234567890"),
        hydrogen.FrameTooLarge,
    ),
    "wrong checksum": (
        hydrogen.Checksum32FrameBuilder(),
        checksum32(b"pause"),
        checksum32(b"x")[:-1] + b"y",
        hydrogen.ChecksumMismatch,
    ),
}  # fmt: skip


@pytest.mark.clause("S9", "S10")
@pytest.mark.parametrize("family", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("case", NEVER_FRAMES)
def test_what_can_never_become_a_message_is_not_waited_for(begin, family, case):
    framing, whole, never, error = NEVER_FRAMES[case]
    hooks = {"data_received": lambda socket, data: socket.pause_reading()}
    server, handler, peer = begin(family, hooks, framing=framing)
    peer.send(whole + never)
    handler.wait_for("data_received")
    with running(lambda: server.stop(20)):
        assert peer.receive_until_end() == b""
    assert [type(reason) for reason in handler.wait_removed()] == [error]


@pytest.mark.clause("S9", "S10")
@families
def test_messages_held_back_by_output_that_is_not_read_come_when_it_is(begin, gate, family):
    def received(socket, data):
        socket.send(LONG if data == b"much" else data)

    server, handler, peer = begin(family, {"data_received": received})
    peer.send(b"much\nnext\n")
    wait_until(lambda: server.stats().reading_pauses, "the first answer fills the buffers")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        assert peer.receive_until_end() == LONG + b"\nnext\n"
    assert handler.messages() == [b"much", b"next"]


@pytest.mark.clause("S10")
@families
@pytest.mark.parametrize("how", ["close", "stop"])
def test_output_that_is_pending_arrives_also_while_the_peer_still_sends(begin, family, how):
    """Both sides' buffers are full: who does not discard what comes in waits for ever."""
    answered = threading.Event()

    def received(socket, data):
        if not answered.is_set():
            socket.send(LONG)
            if how == "close":
                socket.close()
            answered.set()

    options = {} if family == "stream" else {"framing": None}
    server, _, peer = begin(family, {"data_received": received}, **options)
    peer.send(b"ask\n")
    wait_event(answered, "the answer is queued")
    with running(*([lambda: server.stop(20)] if how == "stop" else [])):
        if how == "stop":
            is_stopping(server)
        for _ in range(24):
            peer.send(b"y" * (1 << 20) + b"\n")
        assert peer.receive(len(LONG)) == LONG
        if family == "stream":
            assert peer.receive(1) == b"\n"
            peer.end()
        else:
            assert peer.receive_until_end() == b""


@pytest.mark.clause("S9", "S10")
@pytest.mark.parametrize("family", ["tcp", "unix", "tls"])
def test_messages_held_back_by_output_come_also_while_the_peer_still_sends(begin, family):
    """What it sends is thrown away: it would not come to read the answers."""

    def received(socket, data):
        socket.send(LONG if data == b"much" else data)

    server, handler, peer = begin(family, {"data_received": received})
    peer.send(b"much\nnext\n")
    wait_until(lambda: server.stats().reading_pauses, "the first answer fills the buffers")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        for _ in range(24):
            peer.send(b"y" * (1 << 20) + b"\n")
        assert peer.receive_until_end() == LONG + b"\nnext\n"
    assert handler.messages()[:2] == [b"much", b"next"]


@pytest.mark.clause("S9", "S10")
def test_a_handshake_that_is_not_done_ends_at_once(start, connect, tmp_path):
    server = start(recorder(), **options_of("tls", ""))
    client = connect(server)
    wait_until(lambda: server.stats().accepted, "it is accepted")
    with running(lambda: server.stop(20)):
        assert client.at_end() == "end"


@pytest.mark.clause("S9", "S10")
def test_a_proxy_header_that_is_not_there_ends_at_once(start, connect):
    server = start(recorder(), proxy_protocol="v1", proxy_allow_from=["127.0.0.1"])
    client = connect(server)
    client.send(b"PROXY TCP4 ")
    wait_until(lambda: server.stats().accepted, "it is accepted")
    with running(lambda: server.stop(20)):
        assert client.at_end() == "end"


@pytest.mark.clause("S9", "S10")
def test_a_connection_that_is_being_opened_is_opened_first(start, connect, gate):
    go, opening = gate(), gate()

    def new_connection(fd):
        opening.set()
        wait_event(go, "the stop has begun")

    handler = recorder(new_connection=new_connection, connected=lambda s: s.send(b"welcome"))
    server = start(handler)
    client = connect(server)
    wait_event(opening, "on_new_connection runs")
    with running(lambda: server.stop(20)):
        is_stopping(server)
        go.set()
        assert client.receive_until_end() == b"welcome"
    assert "on_connected" in handler.names()


@pytest.mark.clause("S9", "S10")
def test_from_the_end_on_messages_are_refused_and_counted(start, connect, gate):
    """The peer does not read, so that the end takes as long as the test wants."""
    sent = gate()

    def received(socket, data):
        socket.send(LONG)
        sent.set()

    handler = recorder(data_received=received)
    server = start(handler)
    client = connect(server)
    client.send(b"ask")
    wait_event(sent, "the answer is queued")
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        wait_until(lambda: not handler.socket().is_open, "the end has begun")
        for _ in range(3):
            assert not handler.socket().send(b"late")
        client.sock.shutdown(stdlib_socket.SHUT_WR)
        assert client.receive_until_end() == LONG
    assert reports[0].refused == 3
