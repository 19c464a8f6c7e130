"""TLS through a server: everything that holds for a connection holds for one that is encrypted, and what only those have."""

import contextlib
import functools
import os
import socket as stdlib_socket
import ssl
import subprocess
import threading

import pytest
from certificates import (
    CLIENT_NAME,
    NAMES,
    VERSIONS,
    authority,
    client_certificate,
    client_context,
    foreign_client_certificate,
    misnamed_certificate,
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

OTHER_NAME = "elsewhere.example.org"
"""The name of `misnamed_certificate`."""


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request):
    """Each version of TLS."""
    return request.param


@pytest.fixture
def trust(version):
    """A client's context, of each version of TLS."""
    return client_context(version=version)


@pytest.fixture
def secure(connect, version):
    """Connect a client to a server and shake hands: `secure(server)`."""

    def secure(server, **options):
        return TlsClient(connect(server, **options), client_context(version=version)).handshake()

    return secure


# ---------------------------------------------------------------------------------------------------- bytes to and fro


@pytest.mark.clause("C22")
def test_python_s_own_client_is_served(start, connect, trust, version):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context())
    with trust.wrap_socket(connect(server).sock, server_hostname="localhost", suppress_ragged_eofs=False) as sock:
        assert sock.version() == version.name.replace("_", ".")
        for message in (b"hello", b"again"):
            sock.sendall(message)
            assert sock.recv(100) == message
        sock.unwrap()  # close_notify, and wait for the server's
        assert sock.recv(100) == b""
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    assert handler.names() == ["on_connected", "on_data_received", "on_data_received", "on_disconnected", "on_connection_removed"]


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
    client = secure(start(handler, ssl=server_context(), max_write_buffer=100_000), receive_buffer=65_536)
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
    client = TlsClient(connect(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)), trust)
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
def test_the_last_flight_messages_close_notify_and_fin_in_one_segment(start, connect, version, trust):
    handler = recorder(connected=None, eof=lambda socket: (socket.send(b"bye"), socket.close()), data_received=echo)
    client = TlsClient(connect(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)), trust)
    wire = client.open()
    wire += client.encrypt(simple(b"one") + simple(b"two")) + client.encrypt(simple(b"three")) + client.close_notify()
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
def test_messages_close_notify_and_fin_that_come_while_the_handler_is_busy_are_acted_on_in_order(start, secure, gate):
    go = gate()
    handler = recorder(eof=None, data_received=lambda socket, data: wait_event(go, "let go"))
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"first"))
    handler.wait_for("data_received")
    messages = [b"%d" % number + b"." * 100 for number in range(600)]
    client.client.send(b"".join(client.encrypt(simple(message)) for message in messages) + client.close_notify())
    client.client.finish()
    go.set()
    handler.wait_for("eof")
    assert handler.messages() == [b"first", *messages]
    handler.socket().close()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("C22", "H1")
def test_several_connections_at_once_do_not_mix(start, secure):
    server = start(recorder(data_received=echo), ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
    done = []

    def one(name):
        client = secure(server)
        for number in range(30):
            client.send(simple(b"%d:%d:" % (name, number) + b"." * (number * 997 % 20_000)))
        for number in range(30):
            assert client.receive_frame() == b"%d:%d:" % (name, number) + b"." * (number * 997 % 20_000)
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
    "kind", [bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("I")], ids=["bytearray", "view", "ints"]
)
def test_send_takes_any_bytes_like_object(start, secure, kind):
    data = os.urandom(100_000)
    client = secure(start(recorder(data_received=lambda socket, _: socket.send(kind(data))), ssl=server_context()))
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
    client = secure(start(recorder(data_received=echo), ssl=server_context(), path=str(tmp_path / "socket")))
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


# ---------------------------------------------------------------------------------------------------- sending


@pytest.mark.clause("K7", "K11")
@pytest.mark.parametrize("max_threads", [1, 4])
def test_drain_blocks_until_the_peer_has_read(start, secure, max_threads):
    drained = []

    def received(socket, data):
        for number in range(100):
            socket.send(b"%03d" % number * 30_000)
            drained.append(socket.drain(PATIENCE) and socket.pending < 65_536)

    client = secure(start(recorder(data_received=received), ssl=server_context(), max_threads=max_threads), receive_buffer=65_536)
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
    client = secure(start(handler, ssl=server_context(), max_write_buffer=limit), receive_buffer=4096)
    client.send(b"x")
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    assert max(sent) < limit + 11_000
    assert handler.socket().pending == 0
    client.client.close()


@pytest.mark.clause("H12")
def test_on_writable_comes_when_the_peer_has_read(start, secure):
    handler = recorder(connected=lambda socket: socket.send(bytes(6_000_000)), writable=lambda socket: socket.send(b"!"))
    client = secure(start(handler, ssl=server_context()), receive_buffer=65_536)
    wait_until(lambda: handler.calls and 262_144 < handler.socket().pending < 6_000_000, "the kernel takes no more")
    assert client.receive(6_000_001) == bytes(6_000_000) + b"!"


@pytest.mark.parametrize("handoff", ["auto", "eager"])
def test_f36_bytes_that_threads_send_while_others_are_received_stay_whole_and_in_order(start, secure, handoff):
    """Three threads send, the client floods and is echoed: each message says whose it is and which."""
    size = 400
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, handoff=handoff)
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


@pytest.mark.clause("K3", "K18", "K22")
def test_f36_what_send_took_arrives_whole_and_before_the_end_though_others_close_meanwhile(start, secure):
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
            assert [frame for frame in frames if frame.startswith(b"%d:" % tag)] == [b"%d:%d" % (tag, n) for n in range(sent[tag])]
        client.client.close()
        assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed, round


# ---------------------------------------------------------------------------------------------------- pausing


@pytest.mark.clause("H19")
@pytest.mark.parametrize("records", [1, 3], ids=["one record", "a record each"])
def test_a_pause_holds_what_is_decrypted_already_and_resume_needs_no_further_byte(start, secure, records):
    handler = recorder(data_received=lambda socket, data: socket.pause_reading() if data == b"pause" else None)
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, max_threads=1)
    client, other = secure(server), secure(server)
    wire = [simple(b"pause"), simple(b"second"), simple(b"third")]
    client.client.send(b"".join(map(client.encrypt, wire)) if records == 3 else client.encrypt(b"".join(wire)))
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
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, max_threads=1)
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
def test_what_came_with_the_handshake_is_not_delivered_when_on_connected_closes(start, connect, trust, gate, how):
    go = gate()
    handler = recorder(connected=lambda socket: (wait_event(go, "the client has sent it"), getattr(socket, how)()))
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


# ---------------------------------------------------------------------------------------------------- the end


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
    client.client.send(client.encrypt(b"last") + client.close_notify() + b"\x17\x03\x03\x00\x40" + bytes(200))
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
def test_stop_ends_connections_in_order_and_those_that_still_shake_hands(start, connect, secure, trust):
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
    handler = recorder(connected=lambda socket: socket.send(reply))
    server = start(handler, ssl=server_context())
    client = secure(server, receive_buffer=65_536)
    wait_until(lambda: handler.calls and handler.socket().pending, "a reply is queued")
    with running(lambda: server.stop(PATIENCE)):
        assert client.receive_until_end() == reply
        client.client.close()


@pytest.mark.clause("S11", "S23")
def test_stop_aborts_at_its_timeout_what_does_not_read(start, secure):
    handler = recorder(data_received=lambda socket, data: socket.send(bytes(8_000_000)))
    server = start(handler, ssl=server_context())
    client = secure(server, receive_buffer=4096)
    client.send(b"x")
    wait_until(lambda: handler.calls and handler.socket().pending, "output is pending")
    report = server.stop(0.1)
    assert (report.closed, report.aborted, report.abandoned) == (0, 1, 0)
    assert report.unsent_bytes > 0
    assert type(handler.wait_removed()[0]) is hydrogen.ServerStopped
    assert client.at_end() == "reset"


@pytest.mark.clause("S11", "S15")
def test_abort_of_the_server_resets_connections_and_those_that_still_shake_hands(start, connect, secure):
    handler = recorder(connected=None)
    server = start(handler, ssl=server_context())
    client, silent = secure(server), connect(server)
    handler.wait_for("connected")
    wait_until(lambda: server.stats().connections == 2, "both are accepted")
    server.abort()
    assert client.at_end() == "reset"
    assert silent.at_end() == "reset"
    assert {type(error) for error in handler.wait_removed(2)} == {hydrogen.ServerStopped}


# ---------------------------------------------------------------------------------------------------- the handshake


@pytest.mark.clause("H23", "S19")
def test_a_connection_counts_as_connected_when_the_handshake_is_done(start, connect, version, trust):
    handler = recorder(connected=None)
    server = start(handler, ssl=server_context())
    client = TlsClient(connect(server), trust)
    client.client.send(client.step())
    client.take()
    wait_until(lambda: server.stats().connections == 1, "it is accepted")
    assert server.connections == []
    assert handler.calls == []
    client.handshake()
    handler.wait_for("connected")
    assert server.connections == [handler.socket()]
    client.close()
    handler.wait_removed()
    assert handler.names() == ["on_connected", "on_disconnected", "on_connection_removed"]


@pytest.mark.clause("H23")
def test_a_connection_that_never_was_ready_has_no_callbacks_but_its_removal(start, connect):
    handler = recorder(new_connection=None, connected=None, eof=None)
    client = connect(start(handler, ssl=server_context()))
    fd = handler.wait_for("new_connection")[0].fd
    client.close()
    handler.wait_removed()
    assert handler.names() == ["on_new_connection", "on_connection_removed"]
    assert handler.of("connection_removed")[0].fd == fd


@pytest.mark.clause("H22")
def test_a_handler_that_blocks_delays_no_handshake(start, secure, gate):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go") if data == b"block" else socket.send(data))
    server = start(handler, ssl=server_context(), max_threads=2)
    secure(server).send(b"block")
    handler.wait_for("data_received")
    for _ in range(3):
        secure(server).echo(b"served")
    go.set()


def test_handshakes_that_have_stalled_delay_no_other(start, connect, secure, trust):
    server = start(recorder(data_received=echo), ssl=server_context(), max_threads=1)
    stalled = [TlsClient(connect(server), trust) for _ in range(10)]
    for number, client in enumerate(stalled):
        client.client.send(client.step()[: number * 40])
    for _ in range(3):
        secure(server).echo(b"served")
    for client in stalled:
        client.client.close()


@pytest.mark.clause("H20")
def test_a_storm_of_handshakes_that_are_reset_removes_each_once(start, connect, secure, trust):
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    server = start(handler, ssl=server_context())
    neighbour = secure(server)
    for round in range(1, 6):
        clients = [connect(server) for _ in range(30)]
        for number, client in enumerate(clients):
            client.send(TlsClient(client, trust).step()[: number * 20])
        for client in clients:
            client.reset()
        handler.wait_removed(round * 30)
        neighbour.echo(b"served")
    wait_until(lambda: server.stats().connections == 1, "only the neighbour is left")
    assert server.stats().removed_os_error == 150
    assert len(handler.of("connected")) == 1


def test_many_handshakes_at_once(start, secure):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context())

    def some():
        for _ in range(5):
            client = secure(server)
            client.echo(b"hello")
            client.close()

    with running(*[some] * 8):
        pass
    assert {type(error) for error in handler.wait_removed(40)} == {hydrogen.PeerClosed}
    assert len(handler.of("connected")) == 40


@pytest.mark.clause("K20")
def test_alpn_is_negotiated(start, connect, trust):
    context = server_context()
    context.set_alpn_protocols(["h2", "echo/1"])
    trust.set_alpn_protocols(["echo/1"])
    handler = recorder(connected=lambda socket: socket.send(socket.get_extra_info("ssl_object").selected_alpn_protocol().encode()))
    client = TlsClient(connect(start(handler, ssl=context)), trust).handshake()
    assert client.receive(6) == b"echo/1"
    assert client.tls.selected_alpn_protocol() == "echo/1"


def serial(client):
    """The number of the certificate that the server has shown."""
    return client.tls.getpeercert()["serialNumber"]


def test_the_callback_for_the_server_s_name_chooses_another_certificate(start, connect, trust):
    context, other, asked = server_context(), server_context(misnamed_certificate()), []

    def choose(tls, name, first):
        asked.append((name, first is context, threading.current_thread().name.startswith("hydrogen-worker")))
        if name == OTHER_NAME:
            tls.context = other

    context.sni_callback = choose
    server = start(recorder(data_received=echo), ssl=context)
    for name in ("localhost", OTHER_NAME):
        client = TlsClient(connect(server), trust, name=name).handshake()  # which checks the certificate's name
        client.echo(b"hello")
        assert ("DNS", name) in client.tls.getpeercert()["subjectAltName"]
    assert asked == [("localhost", True, True), (OTHER_NAME, True, True)]


@pytest.mark.clause("H22")
def test_the_callback_for_the_server_s_name_may_block_and_delays_nobody_else(start, connect, secure, trust, gate):
    go, entered, context = gate(), threading.Event(), server_context()

    def choose(tls, name, first):
        if name == OTHER_NAME:
            tls.context = server_context(misnamed_certificate())
            entered.set()
            wait_event(go, "let go")

    context.sni_callback = choose
    server = start(recorder(data_received=echo), ssl=context, max_threads=2)
    blocked = TlsClient(connect(server), trust, name=OTHER_NAME)
    with running(lambda: blocked.handshake().echo(b"at last")):
        wait_event(entered, "the callback was called")
        for _ in range(3):
            secure(server).echo(b"served")
        assert server.stats().connections == 4
        go.set()


def test_the_callback_for_the_server_s_name_may_refuse(start, connect, trust):
    context = server_context()
    context.sni_callback = lambda tls, name, first: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    handler = recorder(connected=None)
    client = connect(start(handler, ssl=context))
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        TlsClient(client, trust).handshake()
    client.close()
    assert isinstance(handler.wait_removed()[0], ssl.SSLError)
    assert handler.names() == ["on_connection_removed"]


@pytest.mark.clause("K20")
def test_a_client_s_certificate_is_asked_for_and_told(start, connect, version):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context(ask=True))
    client = TlsClient(connect(server), client_context(client_certificate(), version=version)).handshake()
    client.echo(b"hello")
    certificate = handler.socket().get_extra_info("peercert")
    assert certificate["subjectAltName"] == (("email", CLIENT_NAME),)


@pytest.mark.clause("H23", "H24")
@pytest.mark.parametrize("certificate", [lambda: None, foreign_client_certificate], ids=["none", "a stranger's"])
def test_a_client_without_the_right_certificate_is_refused(start, connect, version, certificate):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context(ask=True))
    client = TlsClient(connect(server), client_context(certificate(), version=version))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        # With TLS 1.3 the client is done before the server has seen its certificate, and learns of it when it reads.
        client.handshake().echo(b"let me in")
    client.client.close()
    assert isinstance(handler.wait_removed()[0], ssl.SSLError)
    assert handler.names() == ["on_connection_removed"]
    wait_until(lambda: server.stats().removed_tls_error == 1, "it is counted")


def test_a_session_is_resumed(start, connect, trust):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context())
    first = TlsClient(connect(server), trust).handshake()
    first.echo(b"first")  # the ticket of TLS 1.3 comes before it
    first.close()
    second = TlsClient(connect(server), trust, session=first.tls.session).handshake()
    second.echo(b"second")
    assert (first.tls.session_reused, second.tls.session_reused) == (False, True)
    handler.wait_for("connected", 2)
    assert handler.of("connected")[1].socket.get_extra_info("ssl_object").session_reused


def test_there_are_as_many_tickets_as_the_context_says(start, connect):
    for tickets in (0, 3):
        context = server_context()
        context.num_tickets = tickets
        client = TlsClient(
            connect(start(recorder(data_received=echo), ssl=context)), client_context(version=ssl.TLSVersion.TLSv1_3)
        ).handshake()
        client.echo(b"hello")
        assert client.tls.session.has_ticket == (tickets > 0)


def test_a_key_update_is_answered_and_the_connection_goes_on(start):
    """RFC 8446, 4.6.3; Python cannot ask for one, the openssl program can: with K it asks for the server's too."""
    handler = recorder(data_received=echo)
    server = start(handler, ssl=server_context(), framing=hydrogen.LineFrameBuilder)
    command = ["openssl", "s_client", "-tls1_3", "-connect", "{}:{}".format(*server.address)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:

        def say(words, until):
            process.stdin.write(words)
            process.stdin.flush()
            for answer in iter(process.stdout.readline, until):
                assert answer, f"it has ended, and has not said {until!r}"

        say(b"hello\n", b"hello\n")
        for number in range(5):
            say(b"k\n", b"KEYUPDATE\n")
            say(b"line %d\n" % number, b"line %d\n" % number)
            say(b"K\n", b"KEYUPDATE\n")
            say(b"more %d\n" % number, b"more %d\n" % number)
        process.stdin.close()
        process.stdout.read()
    assert process.returncode == 0
    assert len(handler.messages()) == 11


# ---------------------------------------------------------------------------------------------------- what is told of it

INFOS = ["peername", "sockname", "ssl_object", "sslcontext", "peercert", "cipher", "compression", "nonsense"]


def infos(socket):
    """All that there is to be told, and "none" for the rest."""
    return {name: socket.get_extra_info(name, "none") for name in INFOS}


@pytest.mark.clause("K16", "K20", "H13")
def test_get_extra_info_tells_of_tls_by_asyncio_s_names_until_the_connection_is_gone(start, connect, trust, version):
    told = []
    handler = recorder(
        connected=lambda socket: told.append(infos(socket)),
        data_received=echo,
        disconnected=lambda socket, err: told.append(infos(socket)),
    )
    context = server_context()
    server = start(handler, ssl=context)
    client = TlsClient(connect(server), trust).handshake()
    client.echo(b"hello")
    told.append(infos(handler.socket()))
    name = client.client.name
    client.close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert infos(handler.socket()) == dict.fromkeys(INFOS, "none")
    assert len(told) == 3
    assert told[0] == told[1] == told[2]
    (info, *_) = told
    assert isinstance(info["ssl_object"], ssl.SSLObject)
    assert info == {
        "peername": name,
        "sockname": server.address,
        "ssl_object": info["ssl_object"],
        "sslcontext": context,
        "peercert": "none",  # none was asked for
        "cipher": client.tls.cipher(),
        "compression": "none",  # which nobody does any more (CVE-2012-4929)
        "nonsense": "none",
    }
    assert info["ssl_object"].version() == client.tls.version()
    assert handler.socket().get_extra_info("cipher") is None


@pytest.mark.clause("K16")
def test_get_extra_info_has_nothing_to_tell_of_tls_without_it(start, connect):
    told = []
    handler = recorder(connected=lambda socket: told.append(infos(socket)))
    server = start(handler)
    client = connect(server)
    handler.wait_for("connected")
    wait_until(lambda: told, "it is told")
    assert told == [{**dict.fromkeys(INFOS, "none"), "peername": client.name, "sockname": server.address}]


@pytest.mark.clause("S24")
def test_stats_count_messages_as_such_and_bytes_as_they_travel(start, secure):
    server = start(recorder(data_received=echo), ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
    client = secure(server)
    client.echo(simple(b"x"))
    before = server.stats()
    assert before.bytes_received > 200  # the handshake
    client.send(simple(b"x" * 10_000))
    assert client.receive_frame() == b"x" * 10_000
    wait_until(lambda: (s := server.stats()).bytes_sent > before.bytes_sent + 10_000 and s.messages_sent == 2, "it is counted")
    after = server.stats()
    assert after.messages_received == 2
    assert 10_004 < after.bytes_received - before.bytes_received < 10_500
    client.close()
    wait_until(lambda: server.stats().removed_peer_closed == 1, "the end is counted")
    assert server.stats().removed_tls_error == 0


# ---------------------------------------------------------------------------------------------------- a new certificate


@pytest.mark.clause("S29", "K20")
def test_reload_tls_is_for_new_connections_and_those_that_are_open_keep_theirs(start, connect, trust):
    old, new = server_context(), server_context(authority().issue_cert(*NAMES))
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=old)
    open_before, accepted_before = TlsClient(connect(server), trust).handshake(), TlsClient(connect(server), trust)
    open_before.echo(b"before")
    hello, received = accepted_before.step(), server.stats().bytes_received
    accepted_before.client.send(hello[:1])
    wait_until(lambda: server.stats().bytes_received > received, "its handshake has begun")
    server.reload_tls(new)
    after = TlsClient(connect(server), trust).handshake()
    after.echo(b"after")
    accepted_before.client.send(hello[1:])
    accepted_before.handshake()
    for client in (open_before, accepted_before, after):
        client.echo(b"after")
    assert serial(open_before) == serial(accepted_before) != serial(after)
    contexts = [call.socket.get_extra_info("sslcontext") for call in handler.wait_for("connected", 3)]
    assert contexts == [old, new, old]
    server.reload_tls(old)
    again = TlsClient(connect(server), trust).handshake()
    assert serial(again) == serial(open_before)


@pytest.mark.clause("S29", "C23")
def test_reload_tls_makes_the_context_refuse_renegotiation(start):
    new = server_context()
    start(Echo(), ssl=server_context()).reload_tls(new)
    assert new.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.clause("S30")
@pytest.mark.parametrize("wrong", [None, 7, "cert.pem", ssl.SSLContext], ids=repr)
def test_reload_tls_of_what_is_no_context_raises_and_changes_nothing(start, secure, wrong):
    server = start(Echo(), ssl=server_context())
    with pytest.raises(TypeError, match=r"ssl\.SSLContext"):
        server.reload_tls(wrong)
    secure(server).echo(b"hello")


@pytest.mark.clause("S30")
def test_reload_tls_of_a_client_s_context_raises_and_changes_nothing(start, secure):
    server = start(Echo(), ssl=server_context())
    with pytest.raises(ValueError, match="server side"):
        server.reload_tls(client_context())
    secure(server).echo(b"hello")


@pytest.mark.clause("S30")
def test_reload_tls_raises_without_ssl_and_when_the_server_does_not_run(start, engine):
    with pytest.raises(RuntimeError, match=r"Config\.ssl"):
        start(Echo()).reload_tls(server_context())
    server = hydrogen.Server(Echo(), hydrogen.Config(port=0, ssl=server_context()), engine=engine)
    with pytest.raises(RuntimeError, match="run"):
        server.reload_tls(server_context())
    with server:
        server.reload_tls(server_context())
    with pytest.raises(RuntimeError, match="run"):
        server.reload_tls(server_context())
