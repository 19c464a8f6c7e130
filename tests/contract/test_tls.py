"""TLS through a server: everything that holds for a connection holds for one that is encrypted."""

import contextlib
import functools
import os
import socket as stdlib_socket
import ssl
import threading

import pytest
from certificates import (
    client_context,
    server_context,
)
from support import (
    PATIENCE,
    Echo,
    TlsClient,
    echo,
    recorder,
    running,
    simple,
    unframe,
    wait_event,
    wait_until,
)

import hydrogen
from hydrogen.tls import TlsSession

# --------------------------------------------------------------------------------- bytes to and fro


@pytest.mark.clause("C22")
def test_python_s_own_client_is_served(start, connect, trust, version):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context())
    with trust.wrap_socket(
        connect(server).sock, server_hostname="localhost", suppress_ragged_eofs=False
    ) as sock:
        assert sock.version() == version.name.replace("_", ".")
        for message in (b"hello", b"again"):
            sock.sendall(message)
            assert sock.recv(100) == message
        sock.unwrap()  # close_notify, and wait for the server's
        assert sock.recv(100) == b""
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    assert handler.names() == [
        "on_connected",
        "on_data_received",
        "on_data_received",
        "on_disconnected",
        "on_connection_removed",
    ]


@pytest.mark.clause("C22", "P1")
def test_the_smallest_handler_is_served(start, secure):
    """It overrides no callback that says when the handshake is done."""
    client = secure(start(Echo(), ssl=server_context()))
    client.echo(b"hello")
    client.close()


@pytest.mark.clause("C22")
def test_a_large_stream_goes_both_ways_at_once(start, secure):
    data = os.urandom(8_000_000)
    client = secure(start(recorder(data_received=echo), ssl=server_context()))
    with running(lambda: client.send(data)):
        assert client.receive(len(data)) == data
    client.close()


@pytest.mark.clause("C22", "C17")
def test_one_message_may_be_larger_than_max_write_buffer(start, secure):
    reply = os.urandom(5_000_000)
    handler = recorder(data_received=lambda socket, data: socket.send(reply))
    client = secure(
        start(handler, ssl=server_context(), max_write_buffer=100_000), receive_buffer=65_536
    )
    client.send(b"x")
    assert client.receive(len(reply)) == reply


@pytest.mark.clause("C22", "C8")
def test_frames_do_not_care_how_records_cut_them(start, secure):
    handler = recorder(data_received=echo)
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    frames = [b"", b"one", b"t" * 40_000, b"", b"four" * 1000]
    wire = b"".join(map(simple, frames))
    for size in (1 << 20, 16_384, 1000, 7):
        records = [client.encrypt(wire[at : at + size]) for at in range(0, len(wire), size)]
        with running(lambda records=records: client.client.send(b"".join(records))):
            assert client.receive(len(wire)) == wire
    assert handler.messages() == frames * 4


@pytest.mark.clause("C22")
def test_many_small_messages(start, secure):
    messages = [b"%d" % number for number in range(5000)]
    handler = recorder(data_received=echo)
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    with running(lambda: [client.send(simple(message)) for message in messages]):
        for message in messages:
            assert client.receive_frame() == message
    assert handler.messages() == messages


@pytest.mark.clause("C22")
def test_everything_may_come_byte_by_byte(start, connect, trust):
    """The handshake, messages, and the end."""

    def drip(wire):
        for at in range(len(wire)):
            client.client.send(wire[at : at + 1])

    handler = recorder(connected=None, data_received=echo)
    client = TlsClient(
        connect(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)), trust
    )
    while not client.is_ready:
        wire = client.step()
        drip(wire)
        if not client.is_ready:
            client.take()
    drip(client.encrypt(simple(b"one")) + client.encrypt(simple(b"two")))
    assert (client.receive_frame(), client.receive_frame()) == (b"one", b"two")
    drip(client.close_notify())
    assert client.receive_until_end() == b""
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed


@pytest.mark.clause("H10", "H23")
def test_the_last_flight_messages_close_notify_and_fin_in_one_segment(
    start, connect, version, trust
):
    handler = recorder(
        connected=None, eof=lambda socket: (socket.send(b"bye"), socket.close()), data_received=echo
    )
    client = TlsClient(
        connect(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)), trust
    )
    wire = client.open()
    wire += (
        client.encrypt(simple(b"one") + simple(b"two"))
        + client.encrypt(simple(b"three"))
        + client.close_notify()
    )
    client.client.send(wire)
    client.client.finish()
    assert unframe(client.receive_until_end()) == [b"one", b"two", b"three", b"bye"]
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert handler.names() == [
        "on_connected",
        *["on_data_received"] * 3,
        "on_eof",
        "on_disconnected",
        "on_connection_removed",
    ]


@pytest.mark.clause("H10")
def test_messages_close_notify_and_fin_that_come_while_the_handler_is_busy_are_acted_on_in_order(
    start, secure, gate
):
    go = gate()
    handler = recorder(eof=None, data_received=lambda socket, data: wait_event(go, "let go"))
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"first"))
    handler.wait_for("data_received")
    messages = [b"%d" % number + b"." * 100 for number in range(600)]
    client.client.send(
        b"".join(client.encrypt(simple(message)) for message in messages) + client.close_notify()
    )
    client.client.finish()
    go.set()
    handler.wait_for("eof")
    assert handler.messages() == [b"first", *messages]
    handler.socket().close()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("H10", "H19")
def test_a_reset_behind_close_notify_does_not_hide_it(start, secure, gate):
    """A client that closes with session tickets unread (RFC 8446, 4.6.1) resets."""
    go = gate()

    def received(socket, data):
        if data == b"first":
            wait_event(go, "let go")
        elif data == b"before":
            socket.send(data)

    handler = recorder(data_received=received, eof=lambda socket: socket.close())
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.echo(simple(b"before"))  # the tickets are written, and meet no reset
    client.send(simple(b"first"))
    handler.wait_for("data_received", 2)
    client.client.send(client.encrypt(simple(b"last")) + client.close_notify())
    client.client.reset()
    go.set()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert len(handler.of("eof")) == 1
    assert handler.messages() == [b"before", b"first", b"last"]


@pytest.mark.clause("C22", "H1")
def test_several_connections_at_once_do_not_mix(start, secure):
    server = start(
        recorder(data_received=echo), ssl=server_context(), framing=hydrogen.SimpleFrameBuilder
    )
    done = []

    def one(name):
        client = secure(server)
        for number in range(30):
            client.send(simple(b"%d:%d:" % (name, number) + b"." * (number * 997 % 20_000)))
        for number in range(30):
            assert client.receive_frame() == b"%d:%d:" % (name, number) + b"." * (
                number * 997 % 20_000
            )
        client.close()
        done.append(name)

    with running(*(functools.partial(one, name) for name in range(12))):
        pass
    assert sorted(done) == list(range(12))


@pytest.mark.clause("K19")
def test_an_empty_message_without_framing_is_nothing(start, secure):
    def received(socket, data):
        assert socket.send(b"")
        assert socket.send(data)

    client = secure(start(recorder(data_received=received), ssl=server_context()))
    client.echo(b"one")
    client.echo(b"two")


@pytest.mark.clause("K2")
@pytest.mark.parametrize(
    "kind",
    [bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("I")],
    ids=["bytearray", "view", "ints"],
)
def test_send_takes_any_bytes_like_object(start, secure, kind):
    data = os.urandom(100_000)
    client = secure(
        start(
            recorder(data_received=lambda socket, _: socket.send(kind(data))), ssl=server_context()
        )
    )
    client.send(b"x")
    assert client.receive(len(data)) == data


@pytest.mark.clause("F15")
def test_a_framing_written_by_a_user_goes_over_tls(start, secure):
    class Loud(hydrogen.LineFrameBuilder):
        def from_bytes(self, buf):
            frame = super().from_bytes(buf)
            return None if frame is None else hydrogen.LineFrame(frame.payload().upper())

    client = secure(start(recorder(data_received=echo), ssl=server_context(), framing=Loud))
    client.send(b"one\ntw")
    assert client.receive(4) == b"ONE\n"
    client.send(b"o\n")
    assert client.receive(4) == b"TWO\n"


@pytest.mark.clause("C9", "C22")
def test_tls_goes_over_a_unix_socket(start, secure, tmp_path):
    data = os.urandom(3_000_000)
    client = secure(
        start(recorder(data_received=echo), ssl=server_context(), path=str(tmp_path / "socket"))
    )
    with running(lambda: client.send(data)):
        assert client.receive(len(data)) == data
    client.close()


@pytest.mark.clause("C16")
def test_a_client_that_does_not_read_holds_back_only_itself_and_nothing_is_lost(start, secure):
    messages = [b"%05d" % number + b"." * 1000 for number in range(3000)]
    handler = recorder(data_received=echo)
    server = start(
        handler,
        ssl=server_context(),
        framing=hydrogen.SimpleFrameBuilder,
        write_buffer_limits=(1000, 5000),
        socket_options=[(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 16_384)],
    )
    client, other = secure(server, receive_buffer=4096), secure(server)
    with running(lambda: [client.send(simple(message)) for message in messages]):
        wait_until(lambda: handler.socket().pending > 5000, "it is held back")
        other.send(simple(b"other"))
        assert other.receive_frame() == b"other"
        for message in messages:
            assert client.receive_frame() == message


# ------------------------------------------------------------------------------------------ sending


@pytest.mark.clause("K7", "K11")
@pytest.mark.parametrize("max_threads", [1, 4])
def test_drain_blocks_until_the_peer_has_read(start, secure, max_threads):
    drained = []

    def received(socket, data):
        for number in range(100):
            socket.send(b"%03d" % number * 30_000)
            drained.append(socket.drain(PATIENCE) and socket.pending < 65_536)

    client = secure(
        start(recorder(data_received=received), ssl=server_context(), max_threads=max_threads),
        receive_buffer=65_536,
    )
    client.send(b"x")
    for number in range(100):
        assert client.receive(90_000) == b"%03d" % number * 30_000
    wait_until(lambda: drained == [True] * 100, "the handler has drained")


@pytest.mark.clause("C17", "H20")
def test_a_slow_consumer_is_removed(start, secure):
    limit, sent = 500_000, []

    def flood(socket, data):
        while socket.send(b"f" * 10_000):
            sent.append(socket.pending)
            assert len(sent) < 10_000

    handler = recorder(data_received=flood)
    client = secure(
        start(handler, ssl=server_context(), max_write_buffer=limit), receive_buffer=4096
    )
    client.send(b"x")
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    assert max(sent) < limit + 11_000
    assert handler.socket().pending == 0
    client.client.close()


@pytest.mark.clause("H12")
def test_on_writable_comes_when_the_peer_has_read(start, secure):
    handler = recorder(
        connected=lambda socket: socket.send(bytes(6_000_000)),
        writable=lambda socket: socket.send(b"!"),
    )
    client = secure(start(handler, ssl=server_context()), receive_buffer=65_536)
    wait_until(
        lambda: handler.calls and 262_144 < handler.socket().pending < 6_000_000,
        "the kernel takes no more",
    )
    assert client.receive(6_000_001) == bytes(6_000_000) + b"!"


@pytest.mark.parametrize("handoff", ["auto", "eager"])
def test_f36_bytes_that_threads_send_while_others_are_received_stay_whole_and_in_order(
    start, secure, handoff
):
    """Three threads send, the client floods and is echoed: each message says whose it is and
    which.
    """
    size = 400
    handler = recorder(connected=None, data_received=echo)
    server = start(
        handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, handoff=handoff
    )
    client = secure(server)
    socket = handler.socket()

    def message(tag, number):
        return b"%s:%d:" % (tag, number) + tag * (number * 131 % 3000)

    def sender(tag):
        for number in range(size):
            assert socket.send(message(tag, number))

    got = {tag: [] for tag in (b"a", b"b", b"c", b"echo")}
    with running(
        *(functools.partial(sender, tag) for tag in (b"a", b"b", b"c")),
        lambda: [client.send(simple(message(b"echo", number))) for number in range(size)],
    ):
        for _ in range(4 * size):
            payload = client.receive_frame()
            got[payload.partition(b":")[0]].append(payload)
    for tag, payloads in got.items():
        assert payloads == [message(tag, number) for number in range(size)]
    assert handler.messages() == got[b"echo"]


@pytest.mark.clause("C22", "H1")
@pytest.mark.parametrize("handoff", ["auto", "eager"])
def test_no_worker_spins_while_another_thread_is_in_the_session(
    start, connect, secure, gate, monkeypatch, handoff
):
    """More has come than is read at once, and all of it has to wait until that thread is done."""
    handler = recorder(connected=None, data_received=echo)
    server = start(
        handler,
        ssl=server_context(),
        framing=hydrogen.SimpleFrameBuilder,
        handoff=handoff,
        read_budget=10_000,
    )
    client = secure(server)
    handler.wait_for("connected")
    socket, other = handler.socket(), secure(server)
    entered, done = threading.Event(), gate()
    encrypt = TlsSession.encrypt

    def slow(session, plaintext):
        if b"slow" in bytes(plaintext):
            entered.set()
            wait_event(done, "the worker had its chance to spin")
        return encrypt(session, plaintext)

    monkeypatch.setattr(TlsSession, "encrypt", slow)
    with running(lambda: socket.send(b"slow")):
        wait_event(entered, "a thread is in the session")
        client.send(simple(bytes(20_000)) * 5)
        for turn in range(40):
            other.send(simple(b"%d" % turn))
            assert other.receive_frame() == b"%d" % turn
            if turn == 19:
                before = server.stats().iterations
        assert server.stats().iterations - before <= 3 * 20
        done.set()
    for payload in [b"slow"] + [bytes(20_000)] * 5:
        assert client.receive_frame() == payload


@pytest.mark.clause("K3", "K18", "K22")
def test_f36_what_send_took_arrives_whole_and_before_the_end_though_others_close_meanwhile(
    start, secure
):
    for round in range(5):
        handler = recorder(connected=None)
        server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
        client = secure(server)
        socket = handler.socket()
        sent = dict.fromkeys(range(4), 0)
        some = threading.Event()

        def sender(tag, socket=socket, sent=sent, some=some):
            while socket.send(b"%d:%d" % (tag, sent[tag])):
                sent[tag] += 1
                if sent[tag] == 20 + 10 * tag:
                    some.set()

        def closer(socket=socket, some=some):
            wait_event(some, "some messages are sent")
            socket.close()

        with running(*(functools.partial(sender, tag) for tag in sent), closer):
            frames = unframe(client.receive_until_end())
        for tag in sent:
            assert [frame for frame in frames if frame.startswith(b"%d:" % tag)] == [
                b"%d:%d" % (tag, n) for n in range(sent[tag])
            ]
        client.client.close()
        assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed, round


# ------------------------------------------------------------------------------------------ pausing


@pytest.mark.clause("H19")
@pytest.mark.parametrize("records", [1, 3], ids=["one record", "a record each"])
def test_a_pause_holds_what_is_decrypted_already_and_resume_needs_no_further_byte(
    start, secure, records
):
    handler = recorder(
        data_received=lambda socket, data: socket.pause_reading() if data == b"pause" else None
    )
    server = start(
        handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, max_threads=1
    )
    client, other = secure(server), secure(server)
    wire = [simple(b"pause"), simple(b"second"), simple(b"third")]
    client.client.send(
        b"".join(map(client.encrypt, wire)) if records == 3 else client.encrypt(b"".join(wire))
    )
    handler.wait_for("data_received")
    other.send(simple(b"other"))  # the one worker has been elsewhere since
    handler.wait_for("data_received", 2)
    assert handler.messages() == [b"pause", b"other"]
    handler.of("data_received")[0].socket.resume_reading()
    handler.wait_for("data_received", 4)
    assert handler.messages() == [b"pause", b"other", b"second", b"third"]


@pytest.mark.clause("H19", "H23")
def test_a_pause_in_on_connected_holds_what_came_with_the_handshake(start, connect, trust, secure):
    handler = recorder(connected=lambda socket: socket.pause_reading())
    server = start(
        handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, max_threads=1
    )
    client = TlsClient(connect(server), trust)
    client.client.send(client.open() + client.encrypt(simple(b"early")))
    handler.wait_for("connected")
    secure(server)
    handler.wait_for("connected", 2)  # the one worker has been elsewhere since
    assert handler.messages() == []
    handler.socket().resume_reading()
    handler.wait_for("data_received")
    assert handler.messages() == [b"early"]


@pytest.mark.clause("H19", "H24")
@pytest.mark.parametrize("clean", [True, False], ids=["close_notify", "truncated"])
def test_an_end_that_comes_in_a_pause_is_told_after_the_messages_before_it(start, secure, clean):
    paused = threading.Event()

    def received(socket, data):
        if data == b"pause":
            socket.pause_reading()
            paused.set()

    handler = recorder(eof=lambda socket: socket.close(), data_received=received)
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"pause"))
    wait_event(paused, "it is paused")
    client.client.send(client.encrypt(simple(b"later")) + (client.close_notify() if clean else b""))
    client.client.finish()
    handler.socket().resume_reading()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is (hydrogen.LocalClosed if clean else ssl.SSLEOFError)
    assert handler.messages() == [b"pause", b"later"]
    assert len(handler.of("eof")) == clean


@pytest.mark.clause("H18", "H8")
@pytest.mark.parametrize("how", ["close", "abort"])
def test_what_came_with_the_handshake_is_not_delivered_when_on_connected_closes(
    start, connect, trust, gate, how
):
    go = gate()
    handler = recorder(
        connected=lambda socket: (wait_event(go, "the client has sent it"), getattr(socket, how)())
    )
    client = TlsClient(connect(start(handler, ssl=server_context())), trust)
    client.client.send(client.open() + client.encrypt(b"early"))
    go.set()
    assert client.at_end() == ("end" if how == "close" else "reset")
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert handler.messages() == []


@pytest.mark.clause("H18")
def test_after_close_no_further_message_of_the_same_record_is_delivered(start, secure):
    handler = recorder(data_received=lambda socket, data: (socket.send(data), socket.close()))
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"first") + simple(b"second"))
    assert client.receive_until_end() == simple(b"first")
    client.close()
    handler.wait_removed()
    assert handler.messages() == [b"first"]


# ------------------------------------------------------------------------------------------ the end


@pytest.mark.clause("K22", "K8")
def test_close_flushes_then_comes_close_notify_then_the_end(start, secure):
    reply = os.urandom(3_000_000)
    handler = recorder(data_received=lambda socket, data: (socket.send(reply), socket.close()))
    client = secure(start(handler, ssl=server_context()), receive_buffer=65_536)
    client.send(b"x")
    assert client.receive_until_end() == reply
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K22", "H8")
def test_a_greeting_and_close_in_on_connected_arrive(start, secure):
    handler = recorder(connected=lambda socket: (socket.send(b"go away"), socket.close()))
    client = secure(start(handler, ssl=server_context()))
    assert client.receive_until_end() == b"go away"
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K22")
def test_close_does_not_reset_a_peer_that_is_still_sending(start, secure):
    reply = os.urandom(3_000_000)
    handler = recorder(data_received=lambda socket, data: (socket.send(reply), socket.close()))
    client = secure(start(handler, ssl=server_context()), receive_buffer=65_536)
    records = [client.encrypt(b"more and more" * 100) for _ in range(2000)]

    def keep_sending():
        with contextlib.suppress(OSError):
            for record in records:
                client.client.send(record)

    with running(keep_sending):
        assert client.receive_until_end() == reply
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K10")
def test_abort_resets(start, secure):
    handler = recorder(connected=None)
    client = secure(start(handler, ssl=server_context()))
    handler.socket().abort()
    assert client.at_end() == "reset"
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("H10")
def test_close_notify_of_the_peer_ends_the_connection_once_output_is_flushed(start, secure):
    reply = os.urandom(2_000_000)
    handler = recorder(connected=None, data_received=lambda socket, data: socket.send(reply))
    client = secure(start(handler, ssl=server_context()), receive_buffer=65_536)
    client.send(b"x")
    client.client.send(client.close_notify())  # and no FIN
    assert client.receive_until_end() == reply
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed


@pytest.mark.clause("H11")
def test_after_close_notify_of_the_peer_a_later_reply_reaches_it(start, secure):
    handler = recorder(eof=None)
    client = secure(start(handler, ssl=server_context()))
    client.send(b"request")
    client.client.send(client.close_notify())
    handler.wait_for("eof")
    assert handler.socket().is_open
    reply = os.urandom(1_000_000)
    got = []
    with running(lambda: got.append(client.receive_until_end())):
        assert handler.socket().send(reply)
        handler.socket().close()
    assert got == [reply]
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("H10")
def test_what_comes_after_close_notify_is_ignored(start, secure):
    """RFC 8446, 6.1."""
    handler = recorder(eof=None, data_received=echo)
    client = secure(start(handler, ssl=server_context()))
    client.client.send(
        client.encrypt(b"last") + client.close_notify() + b"\x17\x03\x03\x00\x40" + bytes(200)
    )
    assert client.receive(4) == b"last"
    handler.wait_for("eof")
    handler.socket().close()
    assert client.receive_until_end() == b""
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert handler.data() == b"last"


@pytest.mark.clause("H20")
def test_close_notify_inside_a_frame_is_an_incomplete_frame(start, secure):
    handler = recorder(eof=None)
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"whole") + simple(b"not whole")[:-1])
    client.finish()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.IncompleteFrame
    assert handler.messages() == [b"whole"]
    assert handler.of("eof") == []


@pytest.mark.clause("H16")
@pytest.mark.parametrize("callback", ["connected", "data_received"])
def test_a_callback_that_raises_ends_the_connection_in_order(start, secure, error_log, callback):
    error = ZeroDivisionError("mine")

    def fail(*args):
        raise error

    handler = recorder(**{"connected": None, callback: fail})
    server = start(handler, ssl=server_context())
    client = secure(server)
    client.send(b"x")
    assert client.at_end() == "end"
    client.client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert removal.__cause__ is error


@pytest.mark.clause("H20")
def test_a_bad_frame_ends_the_connection_in_order(start, secure):
    handler = recorder(data_received=echo)
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"good") + b"\xff" + simple(b"never"))
    assert client.receive_until_end() == simple(b"good")
    client.client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.ProtocolError


@pytest.mark.clause("S10", "S23", "K22")
def test_stop_ends_connections_in_order_and_those_that_still_shake_hands(
    start, connect, secure, trust
):
    handler = recorder(connected=None)
    server = start(handler, ssl=server_context())
    ready = [secure(server) for _ in range(3)]
    handler.wait_for("connected", 3)
    silent, half, answered = (connect(server) for _ in range(3))
    half.send(TlsClient(half, trust).step()[:50])
    answered.send(TlsClient(answered, trust).step())
    assert answered.receive(1) == b"\x16"  # the server's part of the handshake
    wait_until(lambda: server.stats().connections == 6, "all are accepted")
    reports = []
    with running(lambda: reports.append(server.stop(PATIENCE))):
        for client in ready:
            assert client.at_end() == "end"
            client.client.close()
        for client in (silent, half, answered):
            assert client.at_end() == "end"
            client.close()
    assert (reports[0].closed, reports[0].aborted, reports[0].abandoned) == (6, 0, 0)
    assert {type(error) for error in handler.wait_removed(6)} == {hydrogen.ServerStopped}
    assert len(handler.of("connected")) == len(handler.of("disconnected")) == 3


@pytest.mark.clause("S10")
def test_stop_flushes_what_is_queued(start, secure):
    reply = os.urandom(6_000_000)
    queued = threading.Event()
    server = start(
        recorder(connected=lambda socket: socket.send(reply) and queued.set()), ssl=server_context()
    )
    client = secure(server, receive_buffer=65_536)
    wait_event(queued, "a reply is queued")
    with running(lambda: server.stop(PATIENCE)):
        assert client.receive_until_end() == reply
        client.client.close()


@pytest.mark.clause("S11", "S23")
def test_stop_aborts_at_its_timeout_what_does_not_read(start, secure):
    sent = threading.Event()
    handler = recorder(
        data_received=lambda socket, data: (socket.send(bytes(8_000_000)), sent.set())
    )
    server = start(handler, ssl=server_context())
    client = secure(server, receive_buffer=4096)
    client.send(b"x")
    wait_event(sent, "it is pending, and the callback returns")
    assert handler.socket().pending > 1_000_000
    report = server.stop(0.1)
    assert (report.closed, report.aborted, report.abandoned) == (0, 1, 0)
    assert report.unsent_bytes > 0
    assert type(handler.wait_removed()[0]) is hydrogen.ServerStopped
    assert client.at_end() == "reset"


@pytest.mark.clause("S11", "S15")
def test_abort_of_the_server_resets_connections_and_those_that_still_shake_hands(
    start, connect, secure
):
    handler = recorder(connected=None)
    server = start(handler, ssl=server_context())
    client, silent = secure(server), connect(server)
    handler.wait_for("connected")
    wait_until(lambda: server.stats().connections == 2, "both are accepted")
    server.abort()
    assert client.at_end() == "reset"
    assert silent.at_end() == "reset"
    assert {type(error) for error in handler.wait_removed(2)} == {hydrogen.ServerStopped}


@pytest.mark.clause("H22", "C22")
@pytest.mark.parametrize("method", ["read", "write"])
def test_user_code_that_blocks_in_a_short_record_delays_its_own_connection_only(
    start, connect, gate, method
):
    """A class of the user's does what the collector may do there, too."""
    go, inside, socket = gate(), threading.Event(), []

    def block():
        if socket and not inside.is_set():
            inside.set()
            wait_event(go, "let go")

    class Blocks(ssl.SSLObject):
        def read(self, *arguments):
            if method == "read":
                block()
            return super().read(*arguments)

        def write(self, data):
            if method == "write":
                block()
            return super().write(data)

    def received(sender, data):
        if data == b"last":
            socket.append(sender)
        sender.send(data)

    context = server_context()
    context.sslobject_class = Blocks
    server = start(recorder(data_received=received), ssl=context, max_threads=4)
    first, other = (TlsClient(connect(server), client_context()).handshake() for _ in range(2))
    other.echo(b"served")
    first.echo(b"served")
    first.send(b"last")
    if method == "read":
        assert first.receive(4) == b"last"
        first.send(b"more")
    wait_event(inside, "it blocks")
    for _ in range(3):
        other.echo(b"served")
    go.set()
    assert first.receive(4) in (b"last", b"more")


@pytest.mark.clause("K7", "K8")
@pytest.mark.parametrize("moment", ["before close_notify", "behind close_notify"])
def test_an_abort_while_a_close_is_under_way_resets(start, connect, moment):
    """A FIN would say that all was sent, and that to who cannot tell the one from the other without
    close_notify.
    """
    sockets = []

    class Aborts(ssl.SSLObject):
        def unwrap(self):
            if moment == "before close_notify":
                sockets[0].abort()
            try:
                super().unwrap()
            finally:
                if moment == "behind close_notify":
                    sockets[0].abort()

    def close(socket, data):
        sockets.append(socket)
        socket.close()

    context = server_context()
    context.sslobject_class = Aborts
    handler = recorder(data_received=close)
    client = connect(start(handler, ssl=context))
    TlsClient(client, client_context()).handshake().send(b"close")
    assert client.at_end() == "reset"
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
