"""`Secure` by hand: other implementations, the handshake, certificates, the end; what it shares
with `Plain` is in test_streams.py.

The other end is Python's own `ssl`, or `openssl`, or a raw socket, so that a test compares two
opinions.
"""

import contextlib
import functools
import os
import select
import socket
import ssl
import subprocess
import threading

import certificates
import pytest
from by_hand import NAME, Memory, connected, name_of, payloads, readable, secure, wrapped
from certificates import VERSIONS
from programs import path_of
from support import PATIENCE, running, simple, wait_until

import hydrogen
from hydrogen.secure import SILENT_MOST


@pytest.fixture
def after():
    """What is to be closed after the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(after):
    """See `connected`."""
    return functools.partial(connected, after)


@pytest.fixture(params=VERSIONS, ids=name_of)
def version(request):
    """Of TLS."""
    return request.param


# ---------------------------------------------------------------------------- other implementations


@pytest.mark.clause("T15")
@pytest.mark.parametrize("ask", [False, True], ids=["", "client certificate"])
def test_python_s_ssl_as_client(pair, version, ask):
    ours, peer = pair(socket.AF_INET)
    server = hydrogen.Secure(
        ours, hydrogen.SimpleFrameBuilder, certificates.server_context(version=version, ask=ask)
    )
    context = certificates.client_context(certificates.CLIENT if ask else None, version=version)

    def client():
        with wrapped(peer, context, server_hostname=NAME) as sock:
            assert sock.version() == version.name.replace("_", ".")
            sock.sendall(simple(b"one") + simple(b"x" * 60_000))
            assert sock.recv(100) == simple(b"answer")
            sock.unwrap()  # sends close_notify and waits for the server's

    with running(client):
        assert payloads([server.b_recv(), server.b_recv()]) == [b"one", b"x" * 60_000]
        server.b_send(hydrogen.SimpleFrame(b"answer"))
        with pytest.raises(EOFError):
            server.b_recv()
        server.shutdown()


@pytest.mark.clause("T15")
def test_python_s_ssl_as_server(pair, version):
    ours, peer = pair(socket.AF_INET)
    client = secure(ours, hydrogen.SimpleFrameBuilder, version=version, server_side=False)

    def server():
        with wrapped(peer, certificates.server_context(version=version), server_side=True) as sock:
            assert sock.recv(100) == simple(b"one")
            sock.sendall(simple(b"answer") + simple(b"x" * 60_000))
            assert sock.recv(100) == b""
            sock.unwrap()

    with running(server):
        client.b_send(hydrogen.SimpleFrame(b"one"))
        assert payloads([client.b_recv(), client.b_recv()]) == [b"answer", b"x" * 60_000]
        client.shutdown()
        with pytest.raises(EOFError):
            client.b_recv()


def option(version):
    """As `openssl` calls it: -tls1_2."""
    return "-" + version.name.lower().replace("v", "")


def test_openssl_as_client(after, tmp_path, version):
    _, trusted = certificates.write_files(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [
            path_of("openssl"),
            "s_client",
            "-quiet",
            option(version),
            "-connect",
            address,
            "-CAfile",
            str(trusted),
        ]
        command += ["-servername", NAME, "-verify_hostname", NAME, "-verify_return_error"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            after.callback(process.kill)
            server = hydrogen.Secure(
                listener.accept()[0],
                hydrogen.LineFrameBuilder,
                certificates.server_context(version=version),
            )
            after.callback(server.close)
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            assert server.b_recv(PATIENCE).payload() == b"hello"
            server.b_send(hydrogen.LineFrame(b"from hydrogen"))
            assert process.stdout.readline() == b"from hydrogen\n"
            server.shutdown()
            out, err = process.communicate(timeout=PATIENCE)
            assert (out, process.returncode) == (b"", 0), err


def test_openssl_as_server(after, tmp_path, version):
    pair, _ = certificates.write_files(tmp_path)
    command = [
        path_of("openssl"),
        "s_server",
        "-rev",
        option(version),
        "-accept",
        "127.0.0.1:0",
        "-naccept",
        "1",
    ]
    with subprocess.Popen(
        [*command, "-cert", str(pair), "-key", str(pair)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        after.callback(process.kill)
        *_, port = next(line for line in process.stdout if line.startswith(b"ACCEPT")).split(b":")
        client = secure(
            socket.create_connection(("127.0.0.1", int(port))),
            hydrogen.LineFrameBuilder,
            version=version,
            server_side=False,
        )
        after.callback(client.close)
        client.b_send(hydrogen.LineFrame(b"abc"))
        assert client.b_recv(PATIENCE).payload() == b"cba"
        client.shutdown()
        client.close()
        process.communicate(timeout=PATIENCE)


# ------------------------------------------------------------------------------------ the handshake


@pytest.mark.parametrize("how", ["b_send", "nb_send"])
@pytest.mark.parametrize("where", ["recv", "poll"])
def test_a_signal_handler_may_send_while_its_thread_is_in_the_handshake(
    pair, after, monkeypatch, version, where, how
):
    """With TLS 1.2 nothing comes behind the handshake: if the handler has finished it, no edge is
    left for its thread.
    """
    ours, peer = pair()
    server = secure(peer, hydrogen.SimpleFrameBuilder, version=version)
    real, handled, entered = select.poll, [], threading.Event()

    def handle(place):
        """The signal handler, once."""
        if place == where and not handled and threading.get_ident() in mine:
            handled.append(place)
            entered.set()
            with contextlib.suppress(BlockingIOError):
                getattr(client, how)(hydrogen.SimpleFrame(b"signal"))

    class Interrupted(socket.socket):
        def recv(self, *args):
            handle("recv")
            return super().recv(*args)

    class Poll:
        def __init__(self):
            poll_object = real()
            self.register, self.wait = poll_object.register, poll_object.poll

        def poll(self, milliseconds):
            handle("poll")
            return self.wait(milliseconds)

    sock = Interrupted(fileno=ours.detach())
    after.callback(sock.close)
    client = hydrogen.Secure(
        sock, hydrogen.SimpleFrameBuilder, certificates.client_context(version=version), False, NAME
    )
    monkeypatch.setattr(select, "poll", Poll)
    mine = []

    def shake_hands():
        mine.append(threading.get_ident())
        client.handshake(PATIENCE)

    with running(shake_hands):
        # until then the server says nothing, so that there is something to wait for
        assert entered.wait(PATIENCE)
        assert server.b_recv(PATIENCE).payload() == b"signal"
    assert handled == [where]


@pytest.mark.clause("T15")
@pytest.mark.parametrize("first", ["b_send", "b_recv", "handshake", "nb_recv", "nb_send"])
@pytest.mark.parametrize("other", ["b_send", "b_recv", "handshake", "nb_recv", "nb_send"])
def test_the_handshake_goes_on_within_whatever_is_called(pair, version, first, other):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = secure(peer, hydrogen.SimpleFrameBuilder, version=version, server_side=False)
    ends = {server: first, client: other}

    found = {server: [], client: []}

    def use(stream):
        """Until the handshake is done at this end."""
        how = ends[stream]
        if "send" in how:
            with contextlib.suppress(BlockingIOError):
                getattr(stream, how)(hydrogen.SimpleFrame(b"hello"))
        while not stream._session.is_ready:
            with contextlib.suppress(BlockingIOError, TimeoutError):
                if how == "nb_send":
                    stream.send(b"")
                elif how == "nb_recv":
                    found[stream] += stream.nb_recv()
                elif how == "b_recv":
                    found[stream].append(stream.b_recv(0.001))
                else:
                    stream.handshake()

    with running(lambda: use(server)):
        use(client)
    for stream, peer_did in ((server, other), (client, first)):
        if "send" in peer_did:
            assert payloads(found[stream] or [stream.b_recv()]) == [b"hello"]


def test_what_was_sent_before_the_handshake_goes_out_after_it_in_order(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = secure(peer, hydrogen.SimpleFrameBuilder, version=version, server_side=False)
    found = {server: [], client: []}
    for message in (b"one", b"", b"three"):
        with pytest.raises(BlockingIOError):
            server.nb_send(hydrogen.SimpleFrame(message))
    for message in (b"one", b"", b"three"):
        with pytest.raises(BlockingIOError):
            client.nb_send(hydrogen.SimpleFrame(message))
    for _ in range(4):
        for stream, messages in found.items():
            messages += payloads(stream.nb_recv())
    assert list(found.values()) == [[b"one", b"", b"three"]] * 2
    server.send(b"")
    client.send(b"")


@pytest.mark.clause("T15")
@pytest.mark.parametrize("how", ["nb_send", "go on", "b_send", "handshake"])
def test_f37_a_call_that_sends_takes_no_message_off_the_socket(pair, version, how):
    """Or the fd would not be readable any more, and who waits for messages would not hear of it.

    The peer ends the handshake and sends a message in one go: in TLS 1.2 that can only be a server,
    in TLS 1.3 a client.
    """
    ours, sock = pair()
    server_side = version == ssl.TLSVersion.TLSv1_3
    stream = secure(ours, hydrogen.SimpleFrameBuilder, version=version, server_side=server_side)
    peer = Memory(version, server_side=not server_side)
    peer.shake_hands(stream, sock)
    sock.sendall(peer.encrypt(simple(b"hello")))
    if how == "nb_send":
        stream.nb_send(hydrogen.SimpleFrame(b"x"))
    elif how == "go on":
        stream.send(b"")
    elif how == "b_send":
        stream.b_send(hydrogen.SimpleFrame(b"x"))
    else:
        stream.handshake(0)
    assert stream._session.is_ready
    assert readable(stream)
    assert payloads(stream.nb_recv()) == [b"hello"]


def test_a_record_of_the_handshake_takes_two_reads(pair, version):
    class Counting(socket.socket):
        reads = 0

        def recv(self, size, flags=0):
            self.reads += 1
            return super().recv(size, flags)

    ours, peer = pair()
    with Counting(fileno=ours.detach()) as counting:
        server = secure(counting, version=version)
        client = Memory(version)
        client.step(b"")
        peer.sendall(client.outgoing.read())
        assert server.nb_recv() == []
        assert counting.reads == 3  # header, body, nothing more


@pytest.mark.clause("T15")
def test_a_handshake_that_comes_byte_by_byte(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = Memory(version)
    peer.setblocking(False)
    data = b""
    while not client.step(data):
        for byte in client.outgoing.read():
            peer.sendall(bytes([byte]))
            assert server.nb_recv() == []
            assert not readable(server)
        data = peer.recv(100_000)
    found = []
    for byte in client.encrypt(simple(b"hello") + simple(b"") + simple(b"again")):
        peer.sendall(bytes([byte]))
        found += payloads(server.nb_recv())
    assert found == [b"hello", b"", b"again"]


def test_f37_what_one_record_holds_is_given_out_at_once(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = Memory(version)
    client.shake_hands(server, peer)
    peer.sendall(client.encrypt(simple(b"x") * 1000))
    assert payloads(server.nb_recv()) == [b"x"] * 1000


BAD = {
    "expired": (certificates.EXPIRED, "expired"),
    "by a stranger": (certificates.FOREIGN, "unable to get local issuer"),
    "of another name": (certificates.MISNAMED, "Hostname mismatch"),
}


@pytest.mark.clause("T15")
@pytest.mark.parametrize(("certificate", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("how", ["handshake", "b_recv", "b_send", "nb_recv", "nb_send"])
def test_a_bad_certificate_of_the_server_fails_the_handshake_on_both_sides(
    pair, version, certificate, reason, how
):
    ours, peer = pair()
    server = secure(ours, context=certificates.server_context(certificate, version=version))
    client = secure(peer, version=version, server_side=False)
    frame = hydrogen.ChunkFrame(b"secret")

    def fail():
        if how.startswith("nb"):
            for _ in range(1000):
                if how == "nb_recv":
                    client.nb_recv()
                else:
                    with contextlib.suppress(BlockingIOError):
                        client.nb_send(frame)
                server.nb_recv()
        getattr(client, how)(*([frame] if "send" in how else []))

    with contextlib.ExitStack() as stack:
        if not how.startswith("nb"):

            def serve():
                with pytest.raises(ssl.SSLError):
                    server.b_recv()

            stack.enter_context(running(serve))
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            fail()
    # It fails again, and the server was told why.
    with pytest.raises(ssl.SSLCertVerificationError):
        client.b_recv()
    with pytest.raises(ssl.SSLCertVerificationError):
        client.nb_send(frame)
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        server.nb_recv()


@pytest.mark.parametrize(
    "certificate", [None, certificates.FOREIGN_CLIENT], ids=["none", "by a stranger"]
)
def test_a_client_without_the_certificate_that_is_asked_for_is_refused(pair, version, certificate):
    ours, peer = pair()
    server = secure(ours, context=certificates.server_context(version=version, ask=True))
    context = certificates.client_context(certificate, version=version)
    client = secure(peer, server_side=False, context=context)

    def serve():
        with pytest.raises(ssl.SSLError):
            server.b_recv()

    with running(serve), pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.b_recv()


def test_a_client_with_the_certificate_that_is_asked_for_is_known(pair, version):
    ours, peer = pair()
    server = secure(ours, context=certificates.server_context(version=version, ask=True))
    client = secure(
        peer,
        server_side=False,
        context=certificates.client_context(certificates.CLIENT, version=version),
    )
    with running(lambda: client.b_send(hydrogen.ChunkFrame(b"it is me"))):
        assert server.b_recv().payload() == b"it is me"
    assert ("email", certificates.CLIENT_NAME) in server._session.info("peercert")["subjectAltName"]


def test_sides_without_a_version_in_common_fail(pair):
    ours, peer = pair()
    server = secure(ours, version=ssl.TLSVersion.TLSv1_2)
    client = secure(peer, version=ssl.TLSVersion.TLSv1_3, server_side=False)

    def serve():
        with pytest.raises(ssl.SSLError):
            server.handshake()

    with running(serve), pytest.raises(ssl.SSLError):
        client.handshake()


def test_f33_plain_text_to_tls_is_an_ssl_error_and_nothing_is_given_out(pair):
    ours, peer = pair()
    server = secure(ours, hydrogen.LineFrameBuilder)
    peer.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
    peer.shutdown(socket.SHUT_WR)
    for recv in (server.nb_recv, server.b_recv, server.handshake, server.recv):
        with pytest.raises(ssl.SSLError) as raised:
            recv()
        assert not isinstance(raised.value, ssl.SSLEOFError)


HELLO_REQUEST = b"\x16\x03\x03\x00\x04" + bytes(4)
"""A record that OpenSSL ignores in a handshake (RFC 5246, 7.4.1.1)."""


@pytest.mark.clause("T15")
@pytest.mark.parametrize("call", ["nb_recv", "b_recv", "handshake", "recv"])
def test_a_flood_of_records_without_a_message_is_an_error(pair, call):
    ours, peer = pair()
    client = secure(ours, version=ssl.TLSVersion.TLSv1_2, server_side=False)
    with pytest.raises(BlockingIOError):
        client.nb_send(hydrogen.ChunkFrame(b"hello"))
    flood = HELLO_REQUEST * (SILENT_MOST // len(HELLO_REQUEST) + 1)
    receive = getattr(client, call)
    with running(lambda: peer.sendall(flood)), pytest.raises(ssl.SSLError, match="carry no mess"):
        wait_until(lambda: receive() != [], "more than is allowed has come")


def answering(sock, data, answer):
    """A `Secure` of lines whose session makes `data` of all that it is fed, and so many bytes in
    answer.
    """

    class Session:
        is_ready = is_writable = True
        is_ended, failure, version = False, None, "TLSv1.3"

        def receive(self, ciphertext):
            return data

        def take(self):
            return bytes(answer)

    stream = secure(sock, hydrogen.LineFrameBuilder(max_size=1 << 20), server_side=False)
    stream._session = Session()
    stream._is_ready, stream._wanted = True, 1 << 16
    return stream


@pytest.mark.clause("T15")
@pytest.mark.parametrize(
    ("data", "answer", "takes", "ends"),
    [
        (b"x", 0, True, True),
        (b"x\n", 0, True, False),
        (b"x\n", 100_000, True, False),
        (b"x\n", 100_000, False, True),
        (b"x" * 1024, 0, True, False),
        (b"x" * 1024, 5000, True, True),
    ],
    ids=[
        "little of a line",
        "lines",
        "lines, and what has to be answered",
        "lines, and answers that nobody takes",
        "a line",
        "a line, and what has to be answered",
    ],
)
def test_bytes_of_an_unfinished_frame_pay_for_little(pair, data, answer, takes, ends):
    ours, peer = pair()
    client = answering(ours, data, answer)
    received = 0
    with contextlib.suppress(ssl.SSLError):
        while received < 4 * SILENT_MOST:
            peer.sendall(bytes(1 << 15))
            received += 1 << 15
            client.nb_recv()
            while takes and readable(peer):
                peer.recv(1 << 20)
    assert (received < 2 * SILENT_MOST) is ends


@pytest.mark.clause("T15")
def test_a_peer_that_reads_its_answers_late_has_read_them(pair):
    ours, peer = pair()
    client = answering(ours, b"x\n", 100_000)

    def say():
        peer.sendall(b"a record")
        return payloads(client.nb_recv())

    while len(client._unsent) <= SILENT_MOST:
        assert say() == [b"x"]
    while client._unsent:
        peer.recv(1 << 20)
        assert client.nb_recv() == []
    assert say() == [b"x"]


@pytest.mark.clause("T15")
def test_who_is_asked_for_a_certificate_later_does_not_take_that_for_a_flood(pair, monkeypatch):
    ours, peer = pair()
    mine = certificates.client_context(certificates.CLIENT, version=ssl.TLSVersion.TLSv1_3)
    theirs = certificates.server_context(version=ssl.TLSVersion.TLSv1_3, ask=True)
    mine.post_handshake_auth = theirs.post_handshake_auth = True
    client = secure(ours, hydrogen.LineFrameBuilder, server_side=False, context=mine)
    server = Memory(ssl.TLSVersion.TLSv1_3, server_side=True)
    server.object = theirs.wrap_bio(server.incoming, server.outgoing, True)
    peer.setblocking(False)
    while not server.step(peer.recv(100_000) if readable(peer) else b""):
        peer.sendall(server.outgoing.read())
        assert client.nb_recv() == []
    monkeypatch.setattr("hydrogen.secure.SILENT_MOST", 8192)
    server.object.verify_client_post_handshake()
    peer.sendall(server.encrypt(b"who are you?\n"))
    assert payloads(client.nb_recv()) == [b"who are you?"]
    assert client.nb_recv() == []
    server.incoming.write(peer.recv(100_000))
    with pytest.raises(ssl.SSLWantReadError):
        server.object.read(1)
    assert server.object.getpeercert()


@pytest.mark.clause("T15")
@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"])
def test_a_peer_that_writes_byte_by_byte_is_no_flood(pair, monkeypatch, cipher):
    monkeypatch.setattr("hydrogen.secure.SILENT_MOST", 4096)
    ours, peer = pair()
    server = secure(ours, hydrogen.LineFrameBuilder, version=ssl.TLSVersion.TLSv1_2)
    client = Memory(ssl.TLSVersion.TLSv1_2)
    client.object.context.set_ciphers(cipher)
    client.object = client.object.context.wrap_bio(client.incoming, client.outgoing, False, NAME)
    client.shake_hands(server, peer)
    assert client.object.cipher()[0] == cipher
    line = b"x" * 500 + b"\n"
    peer.sendall(b"".join([client.encrypt(bytes([byte])) for byte in line]))
    assert payloads(server.nb_recv()) == [line[:-1]]
    assert server.nb_recv() == []  # nor is it an end that comes behind the frame


@pytest.mark.clause("T15")
def test_a_peer_that_never_pauses_lets_the_handshake_time_out(pair, monkeypatch):
    class Flood(socket.socket):
        left = 10_000_000

        def recv(self, size, flags=0):
            self.left -= size
            assert self.left > 0, "nobody looks at the time"
            return HELLO_REQUEST[:5] if size == 5 else HELLO_REQUEST[5:]

    monkeypatch.setattr("hydrogen.secure.SILENT_MOST", 1 << 40)
    ours, _ = pair()
    with Flood(fileno=ours.detach()) as flood:
        client = secure(flood, version=ssl.TLSVersion.TLSv1_2, server_side=False)
        with pytest.raises(TimeoutError):
            client.handshake(0.01)


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_f32_a_silent_peer_lets_the_handshake_time_out_and_can_go_on(pair, version, timeout):
    ours, peer = pair()
    server = secure(ours, version=version)
    with pytest.raises(TimeoutError):
        server.handshake(timeout)
    with pytest.raises(TimeoutError):
        server.b_recv(timeout)
    client = secure(peer, version=version, server_side=False)
    with running(lambda: client.b_send(hydrogen.ChunkFrame(b"late"))):
        assert server.b_recv().payload() == b"late"


def test_a_second_thread_waits_for_the_handshake_within_its_own_time(pair, version):
    ours, peer = pair()
    server = secure(ours, version=version)
    client = secure(peer, version=version, server_side=False)
    with running(lambda: server.b_recv()):
        wait_until(
            lambda: not server._hands.acquire(blocking=False) or server._hands.release(),
            "the other thread waits for the client",
        )
        with pytest.raises(TimeoutError):
            server.handshake(0.001)
        with pytest.raises(BlockingIOError):
            server.nb_send(hydrogen.ChunkFrame(b"kept"))
        client.b_send(hydrogen.ChunkFrame(b"hello"))
    assert client.b_recv().payload() == b"kept"


def test_a_context_of_the_other_side_or_none_is_refused(pair):
    ours, _ = pair()
    with pytest.raises(ValueError, match="context: "):
        hydrogen.Secure(ours, None, certificates.client_context())
    with pytest.raises(ValueError, match="context: "):
        hydrogen.Secure(ours, None, certificates.server_context(), server_side=False)
    with pytest.raises(TypeError, match="context: "):
        hydrogen.Secure(ours, None, None)


@pytest.mark.parametrize("name", [None, ""])
def test_a_client_whose_context_checks_names_needs_one(pair, name):
    """Without, Python's SSLObject would check none."""
    ours, _ = pair()
    with pytest.raises(ValueError, match="server_hostname: "):
        hydrogen.Secure(ours, None, certificates.client_context(), False, name)


@pytest.mark.parametrize("name", [3, b"localhost"])
def test_a_name_that_is_no_str_is_a_type_error(pair, name):
    ours, _ = pair()
    with pytest.raises(TypeError, match="server_hostname: "):
        hydrogen.Secure(ours, None, certificates.client_context(), False, name)


def test_f35_renegotiation_is_refused(pair):
    ours, _ = pair()
    context = certificates.server_context()
    context.options &= ~ssl.OP_NO_RENEGOTIATION
    hydrogen.Secure(ours, None, context)
    assert context.options & ssl.OP_NO_RENEGOTIATION


# ------------------------------------------------------------------------------------------ the end


def test_shutdown_sends_close_notify(pair, version):
    ours, peer = pair(socket.AF_INET)
    server = secure(ours, version=version)

    def client():
        with wrapped(
            peer, certificates.client_context(version=version), server_hostname=NAME
        ) as sock:
            assert sock.recv(100) == b"bye"
            assert sock.recv(100) == b""  # it raises SSLEOFError at an end without one

    with running(client):
        server.b_send(hydrogen.ChunkFrame(b"bye"))
        server.shutdown()


def test_f34_an_end_without_close_notify_is_told_from_an_end_in_order(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = Memory(version)
    client.shake_hands(server, peer)
    peer.sendall(client.encrypt(simple(b"one")))
    peer.shutdown(socket.SHUT_WR)
    assert payloads(server.nb_recv()) == [b"one"]
    for recv in (server.nb_recv, server.b_recv):
        with pytest.raises(ssl.SSLEOFError):
            recv()


def test_f34_also_inside_a_frame_and_inside_a_record(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = Memory(version)
    client.shake_hands(server, peer)
    peer.sendall(client.encrypt(simple(b"one")[:4]) + client.encrypt(simple(b"one")[4:])[:-1])
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(ssl.SSLEOFError):
        server.nb_recv()


@pytest.mark.parametrize(
    "sent",
    [b"", b"\x16", b"\x16\x03\x01\x01\x00half a client hello"],
    ids=["nothing", "a byte", "half of it"],
)
@pytest.mark.parametrize("how", ["nb_recv", "b_recv", "handshake", "b_send", "nb_send"])
def test_f34_also_in_the_handshake(pair, sent, how):
    ours, peer = pair()
    server = secure(ours)
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(ssl.SSLEOFError):
        getattr(server, how)(*([hydrogen.ChunkFrame(b"x")] if "send" in how else []))


def test_what_comes_after_close_notify_is_not_looked_at(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = Memory(version)
    client.shake_hands(server, peer)
    last = client.encrypt(simple(b"last"))
    with contextlib.suppress(ssl.SSLError):
        client.object.unwrap()
    peer.sendall(last + client.outgoing.read() + b"garbage")
    assert payloads(server.nb_recv()) == [b"last"]
    with pytest.raises(EOFError):
        server.nb_recv()


def test_a_bad_record_comes_after_what_was_good(pair, version):
    ours, peer = pair()
    server = secure(ours, hydrogen.SimpleFrameBuilder, version=version)
    client = Memory(version)
    client.shake_hands(server, peer)
    good, bad = client.encrypt(simple(b"good")), bytearray(client.encrypt(simple(b"bad")))
    bad[-1] ^= 1
    peer.sendall(good + bad)
    assert payloads(server.nb_recv()) == [b"good"]
    errors = set()
    for recv in (server.nb_recv, server.b_recv):
        # the latter since OpenSSL 3.2
        with pytest.raises(
            ssl.SSLError, match=r"(?i)bad record mac|record layer failure"
        ) as raised:
            recv()
        errors.add(raised.value)
    assert len(errors) == 1
    client.incoming.write(peer.recv(100_000))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert bad record mac"):
        client.object.read(100)


def test_the_alert_of_a_refusal_is_read_though_sending_has_failed(pair):
    """The server refuses the client's certificate and closes; the client meanwhile writes."""
    ours, peer = pair(socket.AF_INET)
    version = ssl.TLSVersion.TLSv1_3
    server = secure(ours, context=certificates.server_context(version=version, ask=True))
    client = secure(peer, version=version, server_side=False)

    def serve():
        with pytest.raises(ssl.SSLError):
            server.handshake()
        server.shutdown()
        server.close()

    with running(serve):
        client.handshake()
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            client.b_send(hydrogen.ChunkFrame(bytes(10_000)))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.b_recv()


# ------------------------------------------------------------------------------------- handing over


def test_hand_over_of_a_handshake_under_way(pair, version):
    ours, peer = pair()
    server = secure(ours, version=version)
    client = secure(peer, version=version, server_side=False)
    assert client.nb_recv() == server.nb_recv() == []
    given = server.hand_over()
    assert not given.session.is_ready
    with socket.socket(fileno=given.fd) as sock:
        assert client.nb_recv() == []
        given.session.receive(sock.recv(10_000))
        sock.sendall(given.session.take())
        assert given.session.is_ready
        client.nb_send(hydrogen.ChunkFrame(b"hello"))
        assert given.session.receive(sock.recv(10_000)) == b"hello"


def test_hand_over_refuses_a_message_that_is_not_encrypted_yet(pair):
    ours, _ = pair()
    stream = secure(ours)
    with pytest.raises(BlockingIOError):
        stream.nb_send(hydrogen.ChunkFrame(b"too early"))
    fd = ours.fileno()
    with pytest.raises(ValueError, match="handshake"):
        stream.hand_over()
    # whoever wanted it has it: the garbage collector must not close it under him
    assert ours.fileno() == -1
    os.close(fd)
