"""TLS through a server: the handshake, what is told of it, and a new certificate."""

import contextlib
import socket
import ssl
import subprocess
import threading

import pytest
from certificates import (
    AUTHORITY,
    CLIENT,
    CLIENT_NAME,
    FOREIGN_CLIENT,
    MISNAMED,
    RENEWED,
    SERVER,
    client_context,
    server_context,
)
from programs import path_of
from support import (
    PATIENCE,
    Echo,
    TlsClient,
    echo,
    recorder,
    running,
    simple,
    wait_event,
    wait_until,
)

import hydrogen

OTHER_NAME = "elsewhere.example.org"
"""The name of `MISNAMED`."""


# ------------------------------------------------------------------------------------ the handshake


@pytest.mark.clause("H23", "S19")
def test_a_connection_counts_as_connected_when_the_handshake_is_done(
    start, connect, version, trust
):
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


@pytest.mark.clause("H12", "H23")
def test_on_writable_does_not_come_before_on_connected(start, connect, tmp_path):
    """The certificates of the handshake alone are above the high watermark."""
    chain = tmp_path / "chain.pem"
    begin = "-----BEGIN CERTIFICATE"
    other = AUTHORITY.read_text().partition(begin)[2]
    chain.write_text(SERVER.read_text() + f"{begin}{other}\n" * 60)
    handler = recorder(connected=None, data_received=None, writable=None)
    server = start(
        handler,
        ssl=server_context(chain),
        max_threads=1,
        write_buffer_limits=(1000, 2000),
        socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)],
    )
    trust = client_context(version=ssl.TLSVersion.TLSv1_3)
    client = TlsClient(connect(server, receive_buffer=2304), trust)
    client.client.send(client.step())
    wait_until(lambda: server.stats().reading_pauses, "the kernel takes no more of them")
    last = client.open()
    wait_until(lambda: server.stats().reading_resumes, "the peer has read all of them")
    TlsClient(connect(server), trust).handshake().send(b"x")
    handler.wait_for("data_received")  # the loop went round
    client.client.send(last)
    handler.wait_for("connected", 2)  # `check` sees that it was the first callback


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
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(go, "let go") if data == b"block" else socket.send(data)
        )
    )
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
    handler = recorder(
        connected=lambda socket: socket.send(
            socket.get_extra_info("ssl_object").selected_alpn_protocol().encode()
        )
    )
    client = TlsClient(connect(start(handler, ssl=context)), trust).handshake()
    assert client.receive(6) == b"echo/1"
    assert client.tls.selected_alpn_protocol() == "echo/1"


def serial(client):
    """The number of the certificate that the server has shown."""
    return client.tls.getpeercert()["serialNumber"]


def test_the_callback_for_the_server_s_name_chooses_another_certificate(start, connect, trust):
    context, other, asked = server_context(), server_context(MISNAMED), []

    def choose(tls, name, first):
        asked.append(
            (name, first is context, threading.current_thread().name.startswith("hydrogen-worker"))
        )
        if name == OTHER_NAME:
            tls.context = other

    context.sni_callback = choose
    server = start(recorder(data_received=echo), ssl=context)
    for name in ("localhost", OTHER_NAME):
        # which checks the certificate's name
        client = TlsClient(connect(server), trust, name=name).handshake()
        client.echo(b"hello")
        assert ("DNS", name) in client.tls.getpeercert()["subjectAltName"]
    assert asked == [("localhost", True, True), (OTHER_NAME, True, True)]


@pytest.mark.clause("H22")
def test_the_callback_for_the_server_s_name_may_block_and_delays_nobody_else(
    start, connect, secure, trust, gate
):
    go, entered, context = gate(), threading.Event(), server_context()

    def choose(tls, name, first):
        if name == OTHER_NAME:
            tls.context = server_context(MISNAMED)
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
    client = TlsClient(connect(server), client_context(CLIENT, version=version)).handshake()
    client.echo(b"hello")
    certificate = handler.socket().get_extra_info("peercert")
    assert certificate["subjectAltName"] == (("email", CLIENT_NAME),)


class Undecodable(ssl.SSLObject):
    """A certificate of the peer's that OpenSSL accepts, of which CPython says nothing: a name in it
    that is no UTF-8, say.
    """

    def getpeercert(self, binary_form=False):
        return super().getpeercert(True) if binary_form else b"\xff".decode()


@pytest.mark.clause("K20")
def test_a_certificate_that_python_cannot_decode_is_not_told_and_its_client_is_served(
    start, connect, version
):
    handler = recorder(connected=None, data_received=echo)
    context = server_context(ask=True)
    context.sslobject_class = Undecodable
    server = start(handler, ssl=context)
    client = TlsClient(connect(server), client_context(CLIENT, version=version)).handshake()
    client.echo(b"hello")
    socket = handler.socket()
    assert socket.get_extra_info("peercert") is None
    assert socket.get_extra_info("ssl_object").getpeercert(True)


class Unparsable(ssl.SSLObject):
    """A certificate with an extension that CPython cannot parse: the error stays in OpenSSL's queue
    of the thread.
    """

    def getpeercert(self, binary_form=False):
        with contextlib.suppress(ValueError):
            ssl._ASN1Object.fromname("no name")  # leaves one, too
        return super().getpeercert(binary_form)


@pytest.mark.clause("K20")
def test_a_certificate_that_python_cannot_parse_in_full_costs_nobody_his_connection(
    start, connect, version
):
    handler = recorder(connected=None, data_received=echo)
    context = server_context(ask=True)
    context.sslobject_class = Unparsable
    server = start(handler, ssl=context, max_threads=1, framing=hydrogen.LineFrameBuilder)
    one, other = (
        TlsClient(connect(server), client_context(CLIENT, version=version)) for _ in range(2)
    )
    one.handshake().send(b"part ")
    other.handshake().echo(b"of the other\n")
    one.send(b"and rest\n")
    assert one.receive(14) == b"part and rest\n"


@pytest.mark.clause("H23", "H24")
@pytest.mark.parametrize("certificate", [None, FOREIGN_CLIENT], ids=["none", "a stranger's"])
def test_a_client_without_the_right_certificate_is_refused(start, connect, version, certificate):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context(ask=True))
    client = TlsClient(connect(server), client_context(certificate, version=version))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        # With TLS 1.3 the client is done before the server has seen its certificate, and learns of
        # it when it reads.
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
            connect(start(recorder(data_received=echo), ssl=context)),
            client_context(version=ssl.TLSVersion.TLSv1_3),
        ).handshake()
        client.echo(b"hello")
        assert client.tls.session.has_ticket == (tickets > 0)


def test_a_key_update_is_answered_and_the_connection_goes_on(start):
    """RFC 8446, 4.6.3; Python cannot ask for one, the openssl program can: with K it asks for the
    server's too.
    """
    handler = recorder(data_received=echo)
    server = start(handler, ssl=server_context(), framing=hydrogen.LineFrameBuilder)
    command = [
        path_of("openssl"),
        "s_client",
        "-tls1_3",
        "-connect",
        "{}:{}".format(*server.address),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:

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


# ------------------------------------------------------------------------------- what is told of it

INFOS = [
    "peername",
    "sockname",
    "ssl_object",
    "sslcontext",
    "peercert",
    "cipher",
    "compression",
    "nonsense",
]


def infos(socket):
    """All that there is to be told, and "none" for the rest."""
    return {name: socket.get_extra_info(name, "none") for name in INFOS}


@pytest.mark.clause("K16", "K20", "H13")
def test_get_extra_info_tells_of_tls_by_asyncio_s_names_until_the_connection_is_gone(
    start, connect, trust, version
):
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
    assert told == [
        {**dict.fromkeys(INFOS, "none"), "peername": client.name, "sockname": server.address}
    ]


@pytest.mark.clause("K20")
def test_a_certificate_that_is_asked_for_later_is_told_of_with_the_message_behind_it(
    start, connect
):
    """Post-handshake authentication (RFC 8446, 4.6.2), with both in one segment."""

    def received(socket, data):
        if data == b"login":
            socket.get_extra_info("ssl_object").verify_client_post_handshake()
            socket.send(b"who are you?")
        else:
            told.append(socket.get_extra_info("peercert"))

    told = []
    ours = server_context(version=ssl.TLSVersion.TLSv1_3, ask=True)
    theirs = client_context(CLIENT)
    ours.post_handshake_auth = theirs.post_handshake_auth = True
    server = start(recorder(data_received=received), ssl=ours, framing=hydrogen.LineFrameBuilder)
    client = TlsClient(connect(server), theirs).handshake()
    client.send(b"login\n")
    assert client.receive(13) == b"who are you?\n"
    client.send(b"it is me\n")  # behind the certificate
    (certificate,) = wait_until(lambda: told, "it is told")
    assert ("email", CLIENT_NAME) in certificate["subjectAltName"]


@pytest.mark.clause("K20", "H20")
@pytest.mark.parametrize("what", ["a bad record", "no certificate"])
def test_what_goes_wrong_where_a_certificate_may_be_asked_for_later_is_told_by_its_name(
    start, connect, what
):
    def received(socket, data):
        if data == b"login":
            socket.get_extra_info("ssl_object").verify_client_post_handshake()
            socket.send(b"who are you?")

    ours, theirs = server_context(version=ssl.TLSVersion.TLSv1_3, ask=True), client_context()
    ours.post_handshake_auth = theirs.post_handshake_auth = True
    handler = recorder(data_received=received)
    server = start(handler, ssl=ours, framing=hydrogen.LineFrameBuilder)
    client = TlsClient(connect(server), theirs).handshake()
    if what == "no certificate":
        client.send(b"login\n")
        assert client.receive(13) == b"who are you?\n"
        client.send(b"nobody\n")
    else:
        client.client.send(client.encrypt(b"hello\n") + b"\x17\x03\x03\x00\x20" + bytes(32))
    (error,) = handler.wait_removed()
    assert isinstance(error, ssl.SSLError)
    assert handler.messages() == ([b"hello"] if what == "a bad record" else [b"login"])


@pytest.mark.clause("S24")
def test_stats_count_messages_as_such_and_bytes_as_they_travel(start, secure):
    server = start(
        recorder(data_received=echo), ssl=server_context(), framing=hydrogen.SimpleFrameBuilder
    )
    client = secure(server)
    client.echo(simple(b"x"))
    before = server.stats()
    assert before.bytes_received > 200  # the handshake
    client.send(simple(b"x" * 10_000))
    assert client.receive_frame() == b"x" * 10_000
    wait_until(
        lambda: (
            (s := server.stats()).bytes_sent > before.bytes_sent + 10_000 and s.messages_sent == 2
        ),
        "it is counted",
    )
    after = server.stats()
    assert after.messages_received == 2
    assert 10_004 < after.bytes_received - before.bytes_received < 10_500
    client.close()
    wait_until(lambda: server.stats().removed_peer_closed == 1, "the end is counted")
    assert server.stats().removed_tls_error == 0


# -------------------------------------------------------------------------------- a new certificate


@pytest.mark.clause("S29", "K20")
def test_reload_tls_is_for_new_connections_and_those_that_are_open_keep_theirs(
    start, connect, trust
):
    old, new = server_context(), server_context(RENEWED)
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=old)
    open_before, accepted_before = (
        TlsClient(connect(server), trust).handshake(),
        TlsClient(connect(server), trust),
    )
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
    contexts = [
        call.socket.get_extra_info("sslcontext") for call in handler.wait_for("connected", 3)
    ]
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


@pytest.mark.clause("S30")
def test_callbacks_may_reload_the_certificate_while_it_stops(start, secure):
    def received(socket, data):
        wait_until(lambda: not socket.server.ready, "the stop has begun")
        socket.server.reload_tls(server_context())
        socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, ssl=server_context())
    client = secure(server)
    client.send(b"a question")
    handler.wait_for("data_received")
    with running(lambda: server.stop(PATIENCE)):
        assert client.receive(10) == b"a question"
        assert client.at_end() == "end"
        client.close()
