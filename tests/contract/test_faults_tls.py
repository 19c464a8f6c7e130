"""docs/faults.md, rows 32 to 37: what peers do to TLS, and that the handler never hears of those
that did not shake hands.
"""

import contextlib
import errno
import os
import socket as stdlib_socket
import ssl
import subprocess
import threading
import xml.etree.ElementTree

import pytest
from certificates import VERSIONS, client_context, server_context
from programs import path_of
from support import PATIENCE, TlsClient, drip, echo, recorder, simple, wait_event, wait_until

import hydrogen

ALLOW_CLIENT_RENEGOTIATION = 0x100
"""OpenSSL 3's option of that name: without it OpenSSL 3 itself refuses, and a test of ours would
show nothing.
"""


def watched():
    """A handler that echoes, and records all that could be called before a connection is ready."""
    return recorder(new_connection=None, connected=None, eof=None, data_received=echo)


def only_removed(handler, count=1):
    """The errors of `count` removals, of connections of which the handler heard nothing else."""
    errors = handler.wait_removed(count)
    gone = {call.fd for call in handler.of("connection_removed")}
    assert handler.of("disconnected") == []
    assert [call for call in handler.calls if call.socket is not None and call.fd in gone] == []
    return errors


# ------------------------------------------------------------------------------------------- row 32


@pytest.mark.slow
@pytest.mark.clause("C24", "H25")
def test_f32_a_handshake_that_never_comes_is_removed_at_open_timeout_and_others_are_served(
    start, connect, secure
):
    handler = watched()
    server = start(handler, ssl=server_context(), open_timeout=0.3)
    before = secure(server)
    before.echo(b"before")
    silent = connect(server)
    (error,) = only_removed(handler)
    assert type(error) is hydrogen.ConnectionTimeout
    assert "open_timeout" in str(error)
    assert silent.at_end() == "reset"
    before.echo(b"after")
    wait_until(lambda: server.stats().removed_open_timeout == 1, "it is counted")


@pytest.mark.slow
@pytest.mark.clause("C24")
@pytest.mark.parametrize("begun", ["hello", "half a hello"])
def test_f32_a_handshake_that_is_begun_and_goes_on_no_more_is_removed_at_open_timeout(
    start, connect, trust, begun
):
    handler = watched()
    client = connect(start(handler, ssl=server_context(), open_timeout=0.3))
    hello = TlsClient(client, trust).step()
    client.send(hello if begun == "hello" else hello[:100])
    assert type(only_removed(handler)[0]) is hydrogen.ConnectionTimeout
    assert client.at_end() == "reset"


@pytest.mark.slow
@pytest.mark.clause("C24")
def test_f32_a_handshake_that_is_dripped_is_removed_at_open_timeout_and_others_are_served(
    start, connect, secure
):
    """The header of a record and of a hello that are long enough to be dripped for ever."""
    handler = watched()
    server = start(handler, ssl=server_context(), open_timeout=0.3)
    other, client = secure(server), connect(server)
    client.send(b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xfc\x03\x03")
    drip(client, handler)
    assert type(only_removed(handler)[0]) is hydrogen.ConnectionTimeout
    other.echo(b"served still")


# ------------------------------------------------------------------------------------------- row 33


PLAIN_TEXT = {
    "nothing": b"",
    "a byte": b"x",
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a frame": simple(b"let me in"),
    "zeros": bytes(5000),
    "SSLv2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37),
    "data before the handshake": b"\x17\x03\x03\x00\x05hello",
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "noise": bytes(range(256)) * 4,
    "a record too long": b"\x16\x03\x01\xff\xff" + bytes(1000),
    "no hello": b"\x16\x03\x01\x00\x04\x0e\x00\x00\x00",
}


@pytest.mark.clause("H23", "H24")
@pytest.mark.parametrize("closes", [True, False], ids=["followed by close", "open"])
@pytest.mark.parametrize("text", PLAIN_TEXT.values(), ids=PLAIN_TEXT)
def test_f33_plain_text_to_a_tls_port_is_an_ssl_error_and_nothing_reaches_the_handler(
    start, connect, secure, text, closes
):
    handler = watched()
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
    neighbour = secure(server)
    neighbour.echo(simple(b"before"))
    client = connect(server)
    # the FIN rides on the data
    client.sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_CORK, 1)
    client.send(text)
    if closes or len(text) < 5:  # less than the header of a record may become one
        client.finish()
    else:
        client.sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_CORK, 0)
    assert client.at_end() == "end"
    client.close()
    (error,) = handler.wait_removed()
    assert isinstance(error, ssl.SSLError)
    neighbour.echo(simple(b"after"))
    assert handler.messages() == [b"before", b"after"]
    assert len(handler.of("connected")) == 1
    assert handler.of("eof") == handler.of("disconnected") == []
    wait_until(lambda: server.stats().removed_tls_error == 1, "it is counted")


@pytest.mark.clause("H24")
def test_f33_tls_to_a_plain_port_is_bytes_like_any_other(start, connect, trust):
    handler = watched()
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    client.send(TlsClient(client, trust).step())
    assert client.at_end() == "end"
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.ProtocolError


# ------------------------------------------------------------------------------------------- row 34


def say(client, stage):
    """Bring the connection to `stage`, and send what belongs to it."""
    tls = client.client
    if stage == "nothing":
        return
    hello = client.step()
    if stage in ("half a hello", "hello"):
        tls.send(hello[:100] if stage == "half a hello" else hello)
        return
    tls.send(hello)
    client.take()
    client.handshake()
    if stage != "ready":
        wire = client.encrypt(simple(b"whole"))
        if stage == "half a frame":
            wire += client.encrypt(simple(b"half")[:4])
        elif stage == "half a record":
            wire += client.encrypt(simple(b"half"))[:-3]
        tls.send(wire)


STAGES = ["nothing", "half a hello", "hello", "ready", "data", "half a frame", "half a record"]


@pytest.mark.clause("H24")
@pytest.mark.parametrize("stage", STAGES)
def test_f34_an_end_without_close_notify_is_a_truncation(start, connect, trust, stage):
    handler = watched()
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
    client = TlsClient(connect(server), trust)
    say(client, stage)
    client.client.finish()
    if stage in STAGES[:3]:
        assert client.client.at_end() == "end"
    else:  # from our side it ends as it should
        assert client.receive_until_end() == (b"" if stage == "ready" else simple(b"whole"))
    client.client.close()
    (error,) = handler.wait_removed()
    assert type(error) is ssl.SSLEOFError
    assert handler.of("eof") == []
    assert handler.messages() == ([] if stage in STAGES[:4] else [b"whole"])
    ready = stage not in STAGES[:3]
    assert len(handler.of("connected")) == len(handler.of("disconnected")) == ready
    if ready:
        assert handler.of("disconnected")[0].value is error
    wait_until(lambda: server.stats().removed_tls_error == 1, "it is counted")


@pytest.mark.clause("H24")
def test_f34_without_framing_too(start, secure):
    handler = watched()
    client = secure(start(handler, ssl=server_context()))
    client.send(b"pay 100")
    client.client.finish()
    assert client.receive_until_end() == b"pay 100"
    assert type(handler.wait_removed()[0]) is ssl.SSLEOFError
    assert handler.of("eof") == []


@pytest.mark.clause("H20")
@pytest.mark.parametrize("stage", STAGES)
def test_f34_a_reset_is_a_reset_with_tls_too(start, connect, trust, stage):
    handler = watched()
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
    client = TlsClient(connect(server), trust)
    say(client, stage)
    handler.wait_for("new_connection")
    client.client.reset()
    assert isinstance(handler.wait_removed()[0], (ConnectionResetError, BrokenPipeError))
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")


# ------------------------------------------------------------------------------------------- row 35


def renegotiating_context():
    """A context that would let clients renegotiate, were it not for us."""
    context = server_context()
    if ssl.OPENSSL_VERSION_INFO >= (3,):
        context.options |= ALLOW_CLIENT_RENEGOTIATION
    return context


@pytest.mark.slow
@pytest.mark.clause("C23")
def test_f35_renegotiation_is_refused(start, secure):
    """Again and again, by the openssl program, which says so when it is told so (and then gives
    up).
    """
    handler = watched()
    context = renegotiating_context()
    server = start(handler, ssl=context)
    neighbour = secure(server)
    command = [
        path_of("openssl"),
        "s_client",
        "-tls1_2",
        "-connect",
        "{}:{}".format(*server.address),
    ]
    storm = 5
    for _ in range(storm):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            for said in iter(process.stdout.readline, b"hello\n"):
                assert said, "it has ended without an echo"
            process.stdin.write(b"R\n")
            process.stdin.flush()
            said = process.stdout.read()
        assert b"RENEGOTIATING" in said
        assert b"no renegotiation" in said
        neighbour.echo(b"served")
    handler.wait_removed(storm)
    stats = context.session_stats()
    assert stats["accept_good"] == storm + 1, "handshakes that were finished"


@pytest.mark.clause("C23")
def test_f35_a_renewed_context_refuses_renegotiation_too(start):
    handler = watched()
    server = start(handler, ssl=server_context())
    server.reload_tls(renegotiating_context())
    command = [
        path_of("openssl"),
        "s_client",
        "-tls1_2",
        "-connect",
        "{}:{}".format(*server.address),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        process.stdin.write(b"R\n")
        process.stdin.flush()
        assert b"no renegotiation" in process.stdout.read()
    handler.wait_removed()


@pytest.mark.slow
@pytest.mark.clause("C23")
@pytest.mark.parametrize("highest", VERSIONS, ids=lambda version: version.name)
def test_f35_a_scanner_finds_no_old_protocol_and_no_renegotiation(start, highest):
    context = renegotiating_context()
    context.maximum_version = highest
    handler = recorder(connected=None)
    server = start(handler, ssl=context)
    scan = subprocess.run(
        [path_of("sslscan"), "--xml=-", "--no-colour", "{}:{}".format(*server.address)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    test = xml.etree.ElementTree.fromstring(scan.stdout).find("ssltest")
    found = {
        protocol.get("type") + protocol.get("version"): protocol.get("enabled")
        for protocol in test.iter("protocol")
    }
    assert found == {
        "ssl2": "0",
        "ssl3": "0",
        "tls1.0": "0",
        "tls1.1": "0",
        "tls1.2": "1",
        "tls1.3": str(int(highest == ssl.TLSVersion.TLSv1_3)),
    }
    assert test.find("renegotiation").attrib == {"supported": "0", "secure": "0"}
    assert {beat.get("vulnerable") for beat in test.iter("heartbleed")} == {"0"}
    stats = server.stats()
    wait_until(lambda: server.stats().connections == 0, "it has gone")
    assert stats.accepted > 20
    assert handler.messages() == []


# ------------------------------------------------------------------------------------------- row 37
# (row 36, sending and receiving from two threads at once, is in test_tls.py)


@pytest.mark.clause("C19")
@pytest.mark.parametrize("read_budget", [1, 1000, 256 << 10])
def test_f37_many_records_in_one_segment_are_all_delivered_without_a_further_byte(
    start, secure, read_budget
):
    messages = [b"%d" % number for number in range(1500)]
    handler = recorder(data_received=echo)
    client = secure(
        start(
            handler,
            ssl=server_context(),
            framing=hydrogen.SimpleFrameBuilder,
            read_budget=read_budget,
        )
    )
    wire = b"".join(client.encrypt(simple(message)) for message in messages)
    client.client.send(wire)
    handler.wait_for("data_received", len(messages))
    assert handler.messages() == messages
    for message in messages:
        assert client.receive_frame() == message


@pytest.mark.parametrize("read_budget", [1, 256 << 10])
def test_f37_many_frames_in_one_record_are_all_delivered_without_a_further_byte(
    start, secure, read_budget
):
    messages = [b"%d" % (number % 10) for number in range(3000)]
    handler = recorder()
    client = secure(
        start(
            handler,
            ssl=server_context(),
            framing=hydrogen.SimpleFrameBuilder,
            read_budget=read_budget,
        )
    )
    wire = client.encrypt(b"".join(map(simple, messages)))
    client.client.send(wire)
    handler.wait_for("data_received", len(messages))
    assert handler.messages() == messages


def test_f37_without_framing_a_large_record_is_delivered_whole_without_a_further_byte(
    start, secure
):
    data = os.urandom(16_384)
    handler = recorder()
    client = secure(start(handler, ssl=server_context(), read_budget=10))
    client.client.send(client.encrypt(data))
    assert handler.wait_bytes(len(data)) == data


def test_f37_records_that_a_pause_has_held_are_delivered_on_resume_without_a_further_byte(
    start, secure
):
    messages = [b"%d" % number for number in range(1000)]
    paused = threading.Semaphore(0)

    def pause(socket, data):
        if data.endswith(b"00"):
            socket.pause_reading()
            paused.release()

    handler = recorder(data_received=pause)
    client = secure(
        start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder, read_budget=1000)
    )
    client.client.send(b"".join(client.encrypt(simple(message)) for message in messages))
    for count in range(101, 1000, 100):
        assert paused.acquire(timeout=PATIENCE)
        assert handler.messages() == messages[:count]
        handler.socket().resume_reading()
    handler.wait_for("data_received", 1000)
    assert handler.messages() == messages


# ----------------------------------------------------------------------------------- broken records


def broken(wire):
    """`wire` with one bit of its last byte turned."""
    return wire[:-1] + bytes([wire[-1] ^ 1])


BROKEN = {
    "a bad record": lambda client: broken(client.encrypt(simple(b"bad"))),
    "a record too long": lambda client: b"\x17\x03\x03\xff\xff" + bytes(100),
    "no record": lambda client: b"GET / HTTP/1.1\r\n\r\n",
    "a record of another version": lambda client: b"\x17\x05\x05\x00\x20" + bytes(32),
    "a record twice": lambda client: (lambda wire: wire + wire)(client.encrypt(simple(b"good"))),
}


@pytest.mark.clause("H24")
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("at_once", [True, False], ids=["in one segment", "later"])
def test_what_came_before_a_broken_record_is_delivered_and_the_connection_removed(
    start, secure, broken, at_once
):
    handler = watched()
    server = start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)
    neighbour, client = secure(server), secure(server)
    neighbour.echo(simple(b"before"))
    good = client.encrypt(simple(b"good"))
    if at_once:
        client.client.send(good + broken(client))
    else:
        client.client.send(good)
        assert client.receive_frame() == b"good"
        client.client.send(broken(client))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):  # and it is told why
        client.receive_until_end()
    client.client.close()
    (error,) = handler.wait_removed()
    assert isinstance(error, ssl.SSLError)
    assert not isinstance(error, ssl.SSLEOFError)
    assert handler.of("disconnected")[0].value is error
    assert handler.of("eof") == []
    assert set(handler.messages()) == {b"before", b"good"}
    neighbour.echo(simple(b"after"))
    wait_until(lambda: server.stats().removed_tls_error == 1, "it is counted")


@pytest.mark.clause("H24")
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_what_came_before_a_broken_record_is_delivered_also_when_the_peer_has_reset_the_connection(
    start, secure, gate, broken
):
    has_reset = gate()

    def wait(socket, data):
        if data == b"first":
            wait_event(has_reset, "the peer has reset the connection")
        elif data == b"before":
            socket.send(data)

    handler = recorder(data_received=wait)
    client = secure(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    client.echo(simple(b"before"))
    client.send(simple(b"first"))
    handler.wait_for("data_received", 2)
    messages = [b"%d" % number for number in range(600)]
    client.client.send(client.encrypt(b"".join(map(simple, messages))) + broken(client))
    client.client.reset()
    has_reset.set()
    handler.wait_removed()
    assert set(handler.messages()) - {b"good"} == {b"before", b"first", *messages}


@pytest.mark.clause("H23", "H24")
@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_broken_handshake_is_an_ssl_error_and_nothing_reaches_the_handler(
    start, connect, trust, stage
):
    handler = watched()
    server = start(handler, ssl=server_context())
    client = TlsClient(connect(server), trust)
    hello = client.step()
    if stage == "first":
        client.client.send(hello[:9] + bytes(len(hello) - 9))
    else:
        client.client.send(hello)
        while not (wire := client.step()):
            client.take()
        client.client.send(broken(wire))
    assert client.client.at_end() == "end"
    client.client.close()
    assert isinstance(only_removed(handler)[0], ssl.SSLError)
    wait_until(lambda: server.stats().removed_tls_error == 1, "it is counted")


@pytest.mark.clause("H23", "H24")
def test_a_client_that_does_not_trust_the_certificate_is_removed_with_what_it_said(
    start, connect, trust
):
    handler = watched()
    server = start(handler, ssl=server_context())
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.minimum_version, stranger.maximum_version = (
        trust.minimum_version,
        trust.maximum_version,
    )
    client = connect(server)
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsClient(client, stranger).handshake()
    assert client.at_end() == "end"
    client.close()
    (error,) = only_removed(handler)
    assert isinstance(error, ssl.SSLError)
    assert "UNKNOWN_CA" in str(error)
    wait_until(lambda: server.stats().removed_tls_error == 1, "it is counted")


@pytest.mark.clause("H24")
def test_a_client_without_a_cipher_in_common_is_told_so(start, connect):
    context = server_context(version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE+AESGCM")
    handler = watched()
    client = connect(start(handler, ssl=context))
    picky = client_context(version=ssl.TLSVersion.TLSv1_2)
    picky.set_ciphers("ECDHE+CHACHA20")
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        TlsClient(client, picky).handshake()
    client.close()
    assert "NO_SHARED_CIPHER" in str(only_removed(handler)[0])


# ----------------------------------------------------------------------------- OpenSSL, and signals


class Failing(ssl.SSLObject):
    """Raises `error`, where there is one, instead of encrypting, or of decrypting."""

    error: BaseException | None = None
    fails = ""

    def write(self, data):
        if self.fails == "write" and type(self).error is not None:
            raise type(self).error
        return super().write(data)

    def read(self, *arguments):
        if self.fails == "read" and type(self).error is not None:
            raise type(self).error
        return super().read(*arguments)


@pytest.fixture
def failing(monkeypatch):
    """A context for the server, and `fail(what, error)`."""
    context = server_context()
    context.sslobject_class = Failing

    def fail(what, error):
        monkeypatch.setattr(Failing, "fails", what)
        monkeypatch.setattr(Failing, "error", error)

    return context, fail


ERRORS = {
    "SSLError": (ssl.SSLError(ssl.SSL_ERROR_SSL, "something is wrong"), ssl.SSLError, None),
    "Ctrl-C": (KeyboardInterrupt(), OSError, errno.EIO),
    "MemoryError": (MemoryError(), OSError, errno.ENOMEM),
    "ValueError": (ValueError("of the user's class"), OSError, errno.EIO),
}


@pytest.mark.clause("H20", "H25")
@pytest.mark.parametrize(("error", "kind", "code"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("what", ["read", "write"])
def test_a_session_that_cannot_go_on_ends_its_connection_with_what_happened(
    start, secure, failing, error_log, what, error, kind, code
):
    context, fail = failing
    handler = recorder(connected=None)
    client = secure(start(handler, ssl=context))
    handler.wait_for("connected")
    fail(what, error)
    if what == "read":
        client.send(b"x")
    else:
        with contextlib.suppress(type(error)):
            handler.socket().send(b"x")
    (removed,) = handler.wait_removed()
    assert isinstance(removed, kind)
    if code is not None:
        assert removed.errno == code


@pytest.mark.clause("H16", "H20")
@pytest.mark.parametrize("error", ERRORS)
def test_what_openssl_finds_wrong_with_one_connection_costs_none_that_sends_to_it(
    start, secure, failing, error
):
    context, fail = failing

    def tell_the_other(socket, data):
        for other in server.connections:
            if other != socket:
                other.send(data)

    handler = recorder(connected=None, data_received=tell_the_other)
    server = start(handler, ssl=context)
    clients = []
    for number in range(2):
        clients.append(secure(server))
        handler.wait_for("connected", number + 1)
    fail("write", ERRORS[error][0])
    clients[0].send(b"x")
    (removed,) = handler.wait_removed()
    assert isinstance(removed, ERRORS[error][1])
    assert handler.socket(0).is_open
    assert not handler.socket(1).is_open


@pytest.mark.clause("H16", "H20")
@pytest.mark.parametrize("error", ERRORS)
def test_what_one_connection_cannot_decrypt_costs_none_that_decrypts_it_in_its_stead(
    start, secure, failing, gate, error
):
    context, fail = failing
    entered, go_on = gate(), gate()
    sent = []

    class Held(Failing):
        """Who encrypts for the first connection waits, and finds there then what that has
        received.
        """

        def write(self, data):
            if data == b"held":
                entered.set()
                wait_event(go_on, "the other messages to be read")
                fail("read", ERRORS[error][0])
            return super().write(data)

    context.sslobject_class = Held

    def answer(socket, data):
        if data == b"tell the first":
            sent.append(handler.socket(0).send(b"held"))
        else:
            socket.send(data)

    handler = recorder(connected=None, data_received=answer)
    server = start(handler, ssl=context, max_threads=2)
    clients = []
    for number in range(3):
        clients.append(secure(server))
        handler.wait_for("connected", number + 1)
    clients[1].send(b"tell the first")
    wait_event(entered, "somebody to encrypt")
    received = server.stats().bytes_received
    clients[0].send(b"x")
    wait_until(lambda: server.stats().bytes_received > received, "the first message to be read")
    # by the one worker that is left, which has come past the first connection then
    clients[2].send(b"y")
    clients[2].receive(1)
    go_on.set()
    (removed,) = handler.wait_removed()
    assert isinstance(removed, ERRORS[error][1])
    assert sent == [True]
    assert [handler.socket(number).is_open for number in range(3)] == [False, True, True]
