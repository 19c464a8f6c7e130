"""Pings and pongs where they meet something else: the request, messages, TLS, timeouts."""

import threading

import pytest
from certificates import server_context
from support import PATIENCE, running, wait_event, wait_until
from websocket_peers import (
    FIN,
    PING,
    PONG,
    TEXT,
    Closed,
    Echo,
    closing,
    frame,
    head,
    peer_of,
    ping,
    pong,
    recorder,
    text,
)

from hydrogen import WebSocket, WebSocketClosed

FAMILIES = pytest.mark.parametrize("family", ["tcp", "tls"])


def options(family):
    """Of a server."""
    return {"ssl": server_context()} if family == "tls" else {}


def answering(peer):
    """Answer pings until there is a message, which says "done"."""
    while (came := peer.receive_frame()).first == FIN | PING:
        peer.send(pong(came.payload))
    assert came.payload == b"done"


@FAMILIES
def test_a_ping_behind_the_request_is_answered_at_once(start, connect, family):
    peer = peer_of(connect(start(Echo(), **options(family))), family)
    peer.send(head() + ping(b"early"))
    peer.receive_opening()
    assert peer.receive_pong() == b"early"
    peer.echo("hello")


@FAMILIES
def test_pongs_come_in_their_turn(start, connect, family):
    handler = recorder(pong=None)
    server = start(handler, **options(family))
    peer = peer_of(connect(server), family).open()
    first, last = frame(TEXT, b"b"), frame(FIN, b"c")
    peer.send(pong(b"1") + text("a") + pong(b"2") + first + pong(b"3") + last + pong(b"4"))
    handler.wait_for("pong", 4)
    names = [call.value for call in handler.calls if call.name in ("on_pong", "on_message")]
    assert names == [b"1", "a", b"2", b"3", "bc", b"4"]


def test_latency_is_that_of_the_first_pong_to_a_ping(start, connect):
    handler = recorder(connected=None, pong=None)
    peer = peer_of(connect(start(handler))).open()
    socket = handler.socket()
    assert socket.ping(b"x")
    assert peer.receive_ping() == b"x"
    peer.send(pong(b"x"))
    latency = wait_until(lambda: socket.latency, "it is known")
    peer.send(pong(b"x") + pong(b"other"))
    handler.wait_for("pong", 3)
    assert socket.latency == latency


@pytest.mark.slow
@pytest.mark.parametrize("opcode", [PING, PONG])
def test_control_frames_that_never_end_with_a_segment_are_finished_in_time(
    start, connect, gate, opcode
):
    """Until another connection, which begins then, was late."""
    server = start(Echo(), frame_timeout=0.5)
    peer = peer_of(connect(server)).open()
    slow = peer_of(connect(server)).open()
    whole = frame(FIN | opcode, b"x" * 20)
    peer.send(whole[:10])
    slow.send(whole[:10])
    late = threading.Event()

    def is_late():
        peer.send(whole[10:] + whole[:10])
        if server.stats().removed_frame_timeout:
            late.set()
        return late.is_set()

    wait_until(is_late, "the other one is late")
    for _ in range(3):
        peer.send(whole[10:] + whole[:10])
    assert server.stats().removed_frame_timeout == 1
    assert slow.at_end() == "reset"


@pytest.mark.slow
@FAMILIES
def test_who_is_silent_while_all_workers_block_is_not_late_for_a_ping_that_was_not_sent(
    start, connect, gate, family
):
    """As long as it takes to ping, and to find late, a client of another server."""
    settings = WebSocket(ping_interval=0.3, ping_timeout=0.3)
    leave = gate()

    def received(socket, data):
        wait_event(leave, "it may go on")
        socket.send("done")

    handler = recorder(message=received)
    server = start(handler, websocket=settings, max_threads=1, **options(family))
    peer = peer_of(connect(server), family).open()
    peer.send(text("block"))
    handler.wait_for("message")

    other = start(recorder(connected=None), websocket=settings)
    with running(lambda: answering(peer)):
        for count in (1, 2):
            peer_of(connect(other)).open()
            wait_until(lambda: other.stats().removed_ping_timeout == count, "it is late")  # noqa: B023
        assert server.stats().removed_ping_timeout == 0
        leave.set()
    peer.close()


@pytest.mark.slow
@FAMILIES
def test_a_pong_that_was_read_counts_although_all_workers_block(start, connect, gate, family):
    """With TLS it cannot be decrypted before one of them is free."""
    gates = {"first": gate(), "second": gate()}

    def received(socket, data):
        if data in gates:
            wait_event(gates[data], "it may go on")
        if data != "first":
            socket.send("done")

    handler = recorder(message=received)
    settings = WebSocket(ping_interval=0.3, ping_timeout=1.5)
    server = start(handler, websocket=settings, max_threads=1, **options(family))
    peer, other = (peer_of(connect(server), family).open() for _ in range(2))
    pinged = peer.receive_ping()
    other.send(text("first"))
    handler.wait_for("message")
    # read in one go, when the worker is back
    other.send(text("second"))
    peer.send(pong(pinged) + text("hello"))
    gates["first"].set()
    handler.wait_for("message", 2)
    clock = start(recorder(connected=None), websocket=settings)
    with running(lambda: answering(peer)), running(lambda: answering(other)):
        for count in (1, 2):
            peer_of(connect(clock)).open()
            wait_until(lambda: clock.stats().removed_ping_timeout == count, "it is late")  # noqa: B023
        gates["second"].set()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["block", "pause"])
@pytest.mark.parametrize("last", ["close", "end"])
@FAMILIES
def test_who_has_said_the_last_word_is_not_late(start, connect, gate, family, last, by):
    """Be it read or not. After that a client answers no ping, but waits for what is due to it. With
    TLS the end is a close_notify, in one segment with the message, and no FIN.
    """
    go = gate()

    def received(socket, data):
        if by == "pause":
            socket.pause_reading()
        else:
            wait_event(go, "it may go on")
            socket.send("done")

    handler = recorder(message=received)
    settings = WebSocket(ping_interval=0.3, ping_timeout=0.3)
    server = start(handler, websocket=settings, **options(family))
    peer = peer_of(connect(server), family).open()
    if last == "close":
        peer.send(text("go") + closing(1000))
    elif family == "tls":
        peer.client.send(peer.wire.encrypt(text("go")) + peer.wire.close_notify())
    else:
        peer.send(text("go"))
        peer.finish()
    handler.wait_for("message")
    socket = handler.calls[-1].socket
    clock = start(recorder(connected=None), websocket=settings)
    for count in (1, 2, 3):
        peer_of(connect(clock)).open()
        wait_until(lambda: clock.stats().removed_ping_timeout == count, "it is late")  # noqa: B023
    assert socket.is_open
    if by == "pause":
        assert socket.send("done")
        socket.resume_reading()
    go.set()
    assert peer.receive_frame().payload == b"done"
    if last == "close":
        assert peer.receive_close() == Closed(1000, "")
    (error,) = handler.wait_disconnected()
    assert (type(error), error.code) == (WebSocketClosed, 1000 if last == "close" else 1006)


@pytest.mark.slow
@FAMILIES
def test_who_reads_what_stands_before_the_ping_is_not_late(start, connect, family):
    """All of it lies in the kernel, and takes him longer than a ping may."""
    handler = recorder(connected=None)
    settings = WebSocket(ping_interval=0.3, ping_timeout=0.3)
    server = start(handler, websocket=settings, **options(family))
    peer = peer_of(connect(server, receive_buffer=16384), family).open()
    assert handler.socket().send(bytes(1 << 20))
    left = 1 << 20
    pause = threading.Event()  # that nobody sets: a link of 400 KB a second
    while left > 0:
        left -= len(peer.client.sock.recv(4096))
        pause.wait(0.01)
    assert server.stats().removed == 0
    peer.client.close()


@pytest.mark.slow
@FAMILIES
def test_a_stop_makes_nobody_late_whose_close_waits_behind_a_message(start, connect, family):
    def received(socket, data):
        if data == "pause":
            socket.pause_reading()
        else:
            socket.send("done")

    handler = recorder(message=received)
    settings = WebSocket(ping_interval=0.3, ping_timeout=0.3)
    server = start(handler, websocket=settings, stop_timeout=30, **options(family))
    peer = peer_of(connect(server), family).open()
    peer.send(text("pause") + text("go") + closing(1000))
    handler.wait_for("message")
    socket = handler.calls[-1].socket
    clock = start(recorder(connected=None), websocket=settings)
    with running(server.stop):
        for count in (1, 2, 3):
            peer_of(connect(clock)).open()
            wait_until(lambda: clock.stats().removed_ping_timeout == count, "it is late")  # noqa: B023
        socket.resume_reading()
        assert peer.receive_message() == "done"
        peer.receive_close()
        peer.close()
    assert server.stats().removed_ping_timeout == 0


@FAMILIES
def test_who_pings_while_a_large_message_goes_out_is_no_slow_consumer(start, connect, family):
    """One message may be larger than `max_write_buffer`; the answers to pings come behind it."""
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1 << 20, **options(family))
    peer = peer_of(connect(server), family).open()
    socket = handler.socket()
    data = bytes(2 << 20)
    done = threading.Event()

    def go_on():
        while not done.is_set():
            peer.send(ping(b"still there?"))

    def send():
        for _ in range(30):
            assert socket.send(data)
            assert socket.drain(PATIENCE)

    with running(go_on), running(send):
        for _ in range(30):
            while (came := peer.receive_frame()).first == FIN | PONG:
                pass
            assert came.payload == data
        done.set()
    peer.close()


def test_pongs_that_wait_are_counted(start, connect):
    handler = recorder(connected=None, pong=None, message=lambda socket, _: socket.pause_reading())
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.send(text("pause") + pong(b"x" * 100) * 50)
    handler.wait_for("message")
    wait_until(lambda: server.stats().queued_bytes >= 5000, "they are counted")
    handler.socket().resume_reading()
    handler.wait_for("pong", 50)
    wait_until(lambda: server.stats().queued_bytes == 0, "they are delivered")


def test_a_close_is_counted_by_its_code_although_its_echo_cannot_be_sent(start, connect):
    leave = threading.Event()
    handler = recorder(message=lambda socket, data: wait_event(leave, "the client has left"))
    server = start(handler)
    peer = peer_of(connect(server)).open()
    peer.send(text("wait"))
    handler.wait_for("message")
    peer.send(frame(FIN | 8, b"\x0f\xa0"))
    peer.client.close()
    leave.set()
    (error,) = handler.wait_disconnected()
    if getattr(error, "code", None) == 4000:  # else the reset was met first
        wait_until(lambda: dict(server.stats().closes) == {4000: 1}, "it is counted")
