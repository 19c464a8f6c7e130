"""The examples: each is started as its users start it, talked to, and stopped by a signal."""

import base64
import contextlib
import json
import random
import re
import runpy
import shlex
import signal
import smtplib
import socket
import sqlite3
import ssl
import subprocess
import urllib.error
import urllib.request
import zlib
from types import SimpleNamespace

import certificates
import pytest
from programs import path_of
from support import (
    PATIENCE,
    ROOT,
    Client,
    TlsClient,
    child,
    finish,
    running,
    simple,
    unframe,
    wait_until,
)
from websocket_peers import head, peer_of, text

import hydrogen

EXAMPLES = ROOT / "examples"

SCRIPT = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"


def begin(engine, name, *arguments):
    """An example in a process of its own, listening on a port of the kernel's choice; and its
    address.
    """
    process = child(SCRIPT, str(EXAMPLES / name), "--port", "0", *arguments, HYDROGEN_ENGINE=engine)
    line = process.stdout.readline()
    found = re.fullmatch(r"listening on (127\.0\.0\.1):(\d+)\n", line)
    if found is None:
        _, err = finish(process, None)
        raise AssertionError(f"it printed {line!r} and {err}")
    return process, (found[1], int(found[2]))


def end(process, errors=""):
    """Stop it by a signal; its exit status must be 0, and `errors` all that it complained of.
    Returns what it printed.
    """
    process.send_signal(signal.SIGTERM)
    out, err = finish(process, 0)
    assert err == errors
    return out


def dial(address):
    """Connect to a server that says where it listens before it does, as one must whose `begin`
    tells nobody of the start.
    """

    def answered():
        try:
            return Client(address)
        except ConnectionRefusedError:
            return None

    return wait_until(answered, "it listens")


def hears(client, *lines):
    """The client receives just these lines."""
    for line in lines:
        expected = line + b"\n"
        assert client.receive(len(expected)) == expected


def of(name):
    """The names that an example defines."""
    return runpy.run_path(str(EXAMPLES / name))


def test_each_example_is_tested_here_and_says_how_it_is_started():
    for path in EXAMPLES.iterdir():
        if path.name == "__pycache__":
            continue
        assert path.suffix == ".py"
        assert f"examples/{path.name}" in of(path.name)["__doc__"]
        assert [name for name in globals() if name.startswith(f"test_{path.stem}")], (
            f"no test of {path.name}"
        )


# --------------------------------------------------------------------------------------- upstream's


@pytest.mark.clause("T19")
def test_upstream_sends_back_each_frame(engine):
    process, address = begin(engine, "upstream.py", "--addr", "127.0.0.1")
    with dial(address) as client:
        for piece in (simple(b"one")[:2], simple(b"one")[2:] + simple(b"two") + simple(b"three")):
            client.send(piece)
        assert [client.receive_frame() for _ in range(3)] == [b"one", b"two", b"three"]
        client.finish()
        assert client.receive_until_end() == b""
    with dial(address) as client:
        client.send(b"this is no frame")
        assert client.receive_until_end() == b""
    printed = end(process)
    assert "PeerClosed(" in printed
    assert "ProtocolError(" in printed


@pytest.mark.clause("T19", "T5")
def test_upstream_goes_on_where_the_kernel_stopped_and_sends_no_frame_that_nobody_sent(
    start, connect
):
    server = start(of("upstream.py")["Server"]())
    client = connect(server, receive_buffer=4096)
    messages = [bytes([number]) * 60_000 for number in range(200)]
    with running(lambda: client.send(b"".join(map(simple, messages)))):
        wait_until(
            lambda: any(socket.pending for socket in server.connections), "something is kept"
        )
        received = client.receive(sum(map(len, messages)) + 4 * len(messages))
    client.finish()
    assert unframe(received + client.receive_until_end()) == messages


@pytest.mark.clause("T19", "F7")
def test_upstream_sends_back_an_empty_message(start, connect):
    client = connect(start(of("upstream.py")["Server"]()))
    client.send(simple(b"") + simple(b"x"))
    assert [client.receive_frame() for _ in range(2)] == [b"", b"x"]
    client.finish()
    assert client.receive_until_end() == b""


# -------------------------------------------------------------------------------------------- lines


def test_chat_tells_each_line_to_all_others(engine):
    process, address = begin(engine, "chat.py")
    with Client(address) as anna, Client(address) as otto:
        hears(anna, b"* your name?")
        anna.send(b"anna\r\n")
        hears(anna, b"* welcome, anna")
        hears(otto, b"* your name?")
        otto.send(b" \nanna\n")
        hears(otto, b"* another name, please", b"* another name, please")
        otto.send(b"otto\n")
        hears(otto, b"* welcome, otto", b"* anna is here")
        hears(anna, b"* otto has come")
        with Client(address) as mute:
            hears(mute, b"* your name?")
            anna.send(b"hello\n" + b"x" * 1001 + b"\nagain\n")
            hears(anna, b"* that was too long")
            hears(otto, b"anna: hello", b"anna: again")
            otto.send(b"and you?\n")
            hears(anna, b"otto: and you?")
            mute.finish()
            assert mute.receive_until_end() == b""
        anna.finish()
        assert anna.receive_until_end() == b""
        hears(otto, b"* anna has left")
        otto.finish()
        assert otto.receive_until_end() == b""
    end(process)


def test_browser_chat_serves_its_page_and_tells_what_is_said_in_a_room(engine):
    process, address = begin(engine, "browser_chat.py")
    authority = "{}:{}".format(*address)
    where = f"http://{authority}"
    with urllib.request.urlopen(where + "/", timeout=PATIENCE) as page:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "new WebSocket(url)" in page.read().decode()
    with urllib.request.urlopen(where + "/healthz", timeout=PATIENCE) as page:
        assert page.read() == b"ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        urllib.request.urlopen(where + "/nowhere", timeout=PATIENCE)
    missing.value.close()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(address)) for _ in range(4)]
        guests = [
            peer_of(client).open(
                f"Host: {authority}",
                f"Origin: {where}",
                line=f"GET /rooms/{room} HTTP/1.1",
                without=["Host"],
            )
            for client, room in zip(clients, ["lobby", "lobby", "bar", "bar"], strict=True)
        ]
        for name, guest in (("Ann", guests[0]), ("Bea", guests[1])):
            guest.send(text(json.dumps({"name": name, "text": "hello"})))
            for listener in guests[:2]:
                said = json.loads(listener.receive_message())
                assert said == {"name": name, "text": "hello"}
        for guest, said in zip(guests[2:], ["no JSON", "[" * 50_000], strict=True):
            guest.send(text(said))
            assert guest.answer_close().code == 1003
    end(process)


def test_dashboard_tells_what_the_server_does(engine):
    process, address = begin(engine, "dashboard.py")
    where = "http://{}:{}".format(*address)
    with urllib.request.urlopen(where + "/", timeout=PATIENCE) as page:
        assert "polyline" in page.read().decode()
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        urllib.request.urlopen(where + "/nowhere", timeout=PATIENCE)
    missing.value.close()
    with Client(address) as watching, Client(address) as talking:
        watcher = peer_of(watching).open(line="GET /stats HTTP/1.1")
        talker = peer_of(talking).open(line="GET /echo HTTP/1.1")
        for _ in range(5):
            talker.echo("hello")
        while (figures := json.loads(watcher.receive_message()))["messages"] < 5:
            pass
        assert figures["connections"] == 2
        assert json.loads(watcher.receive_message())["messages per second"] == 0
    end(process)


def test_accounts_lets_in_who_has_logged_in(engine, tmp_path):
    database = "--database", str(tmp_path / "accounts")
    for name, password in (("ann", "secret"), ("bea", "other")):
        add = child(SCRIPT, str(EXAMPLES / "accounts.py"), *database, "--add", name, password)
        assert finish(add) == ("", "")
    process, address = begin(engine, "accounts.py", *database)
    where = "http://{}:{}/".format(*address)

    def log_in(**headers):
        with urllib.request.urlopen(
            urllib.request.Request(where, headers=headers), timeout=PATIENCE
        ) as page:
            return re.match(r"session=([^;]+); HttpOnly", page.headers["set-cookie"])[1]

    def basic(pair):
        return "Basic " + base64.b64encode(pair.encode()).decode()

    for given in ({}, *({"Authorization": basic(it)} for it in ("ann:other", "eve:secret", "ann"))):
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            log_in(**given)
        assert refused.value.headers["www-authenticate"].startswith("Basic realm=")
        refused.value.close()
    for name, password in (("ann", "secret"), ("bea", "other")):
        cookie = log_in(Authorization=basic(f"{name}:{password}"))
        with Client(address) as client:
            peer = peer_of(client).open(f"Cookie: session={cookie}", line="GET /me HTTP/1.1")
            peer.send(text("who am I?"))
            assert peer.receive_message() == f"You are {name}."
    for wrong in ("", "Cookie: session=", "Cookie: session=" + "x" * 43):
        with Client(address) as client:
            peer = peer_of(client)
            peer.send(head(*[wrong] if wrong else [], line="GET /me HTTP/1.1"))
            assert peer.refused().status == 403
    end(process)


def test_chat_gives_no_name_away_before_it_says_that_its_guest_has_left(start, connect):
    server = start(
        of("chat.py")["Chat"](),
        framing=hydrogen.LineFrameBuilder,
        write_buffer_limits=(1, 1 << 25),
        max_write_buffer=1 << 26,
    )
    eve, bob, other = connect(server), connect(server, receive_buffer=4096), connect(server)
    for client, name in ((eve, b"eve"), (bob, b"bob")):
        client.send(name + b"\n")
        hears(client, b"* your name?", b"* welcome, " + name)
    hears(eve, b"* bob has come")
    guest = next(socket for socket in server.connections if socket.user_data == b"bob")
    # More than a kernel ever takes (tcp_wmem), for he does not read: it is no passing moment.
    wait_until(
        lambda: eve.send((b"x" * 1000 + b"\n") * 500) or guest.pending > 8 << 20, "much is pending"
    )
    bob.finish()
    wait_until(lambda: not guest.is_open, "he has ended his side")
    other.send(b"bob\n")
    hears(other, b"* your name?", b"* another name, please")
    bob.reset()
    hears(eve, b"* bob has left")
    other.send(b"bob\n")
    hears(other, b"* welcome, bob")


@pytest.mark.parametrize("abandoned", [0, 1])
def test_ask_database_leaves_a_connection_alone_that_a_worker_may_use_after_the_stop(
    monkeypatch, tmp_path, abandoned
):
    names = of("ask_database.py")
    assert names["PATIENCE"] < hydrogen.Config(port=0).stop_timeout
    served, closed = [], []
    close = names["Notes"].close
    monkeypatch.setattr(names["Notes"], "close", lambda handler: closed.append(handler))

    def begin(handler, config, on_started):
        served.append(handler)
        return SimpleNamespace(abandoned=abandoned)

    monkeypatch.setattr(hydrogen, "begin", begin)
    monkeypatch.setattr(
        "sys.argv", ["ask_database.py", "--port", "0", "--file", str(tmp_path / "notes.sqlite")]
    )
    names["main"]()
    close(*served)
    assert closed == ([] if abandoned else served)


def test_ask_database_answers_each_question(engine, tmp_path):
    process, address = begin(engine, "ask_database.py", "--file", str(tmp_path / "notes.sqlite"))
    with Client(address) as one, Client(address) as other:
        one.send(b"set moon made of cheese\n")
        hears(one, b"ok")
        other.send(b"get moon\nget sun\n")
        hears(other, b"made of cheese", b"")
        other.send(b"drop everything\n\xff\nget moon\n")
        hears(other, b"error: expected `set NAME VALUE` or `get NAME`")
        hears(
            other,
            b"error: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
            b"made of cheese",
        )
    end(process)


def test_ask_database_goes_on_while_one_question_waits_for_the_database(engine, tmp_path):
    file = tmp_path / "notes.sqlite"
    process, address = begin(engine, "ask_database.py", "--file", str(file))
    writer = sqlite3.connect(file, isolation_level=None)
    with Client(address) as one, Client(address) as other:
        writer.execute("BEGIN IMMEDIATE")
        one.send(b"set name value\n")
        other.send(b"get name\n")
        hears(other, b"")
        writer.execute("COMMIT")
        hears(one, b"ok")
        other.send(b"get name\n")
        hears(other, b"value")
    writer.close()
    end(process)


# -------------------------------------------------------------------------- the server speaks first


def test_talk_first_takes_letters_of_pythons_smtplib(engine):
    process, address = begin(engine, "talk_first.py")
    with smtplib.SMTP(*address, timeout=PATIENCE) as client:
        for text in ("Subject: hello\r\n\r\n.one\r\n.\r\nthree", "Subject: again"):
            assert (
                client.sendmail("me@example.org", ["you@example.org", "her@example.org"], text)
                == {}
            )
    assert end(process).splitlines() == [
        "5 lines from b'<me@example.org>' to [b'<you@example.org>', b'<her@example.org>']",
        "1 lines from b'<me@example.org>' to [b'<you@example.org>', b'<her@example.org>']",
    ]


def test_talk_first_keeps_to_the_order_and_its_limit(engine):
    process, address = begin(engine, "talk_first.py")

    def dialogue(*exchanges):
        with Client(address) as client:
            hears(client, b"220 hydrogen is ready\r")
            for said, answer in exchanges:
                client.send(said + b"\r\n")
                hears(client, answer + b"\r")
            assert client.receive_until_end() == b""

    begun = [(b"MAIL FROM:<me>", b"250 ok"), (b"RCPT TO:<you>", b"250 ok")]
    dialogue(
        (b"RCPT TO:<you>", b"503 not now"),
        *begun,
        (b"RSET", b"250 ok"),
        (b"DATA", b"503 not now"),
        (b"DANCE", b"500 that is not understood"),
        (b"QUIT\r\nNOOP", b"221 goodbye"),
    )
    letter = b"\r\n".join([b"x" * 999] * 1050)
    dialogue(
        *begun, (b"DATA", b"354 end with a line of one dot"), (letter, b"552 that is too long")
    )
    assert end(process) == ""


def test_talk_first_counts_the_ends_of_lines_for_its_limit(start, connect):
    names = of("talk_first.py")
    framing = hydrogen.LineFrameBuilder(delimiter=b"\r\n", max_size=1000)
    server = start(names["Mail"](), framing=framing)
    client = connect(server)
    client.send(b"MAIL FROM:<me>\r\nRCPT TO:<you>\r\nDATA\r\n")
    hears(
        client,
        b"220 hydrogen is ready\r",
        b"250 ok\r",
        b"250 ok\r",
        b"354 end with a line of one dot\r",
    )
    (served,) = server.connections
    served.user_data.size = names["LETTER_MOST"] - 2
    client.send(b"\r\n\r\n")
    hears(client, b"552 that is too long\r")
    assert client.receive_until_end() == b""


# ---------------------------------------------------------------------------------------------- TLS


def serial_number(address, context):
    """That of the certificate which a server shows now; it also echoes."""
    with Client(address) as client:
        tls = TlsClient(client, context).handshake()
        tls.echo(b"hello")
        serial = tls.tls.getpeercert()["serialNumber"]
        tls.close()
    return int(serial, 16)


def test_tls_echo_echoes_and_reads_its_certificate_again_at_sighup(engine, tmp_path):
    pair, _ = certificates.write_files(tmp_path)
    trust = certificates.client_context()
    process, address = begin(engine, "tls_echo.py", str(pair), str(pair))
    before = serial_number(address, trust)

    def hang_up():
        process.send_signal(signal.SIGHUP)
        return process.stderr.readline()

    assert hang_up() == "reloaded\n"
    assert serial_number(address, trust) == before
    certificates.write_files(tmp_path, certificates.RENEWED)
    assert hang_up() == "reloaded\n"
    after = serial_number(address, trust)
    assert after != before
    pair.write_text("this is no certificate")
    assert re.match("not reloaded: .+\n", hang_up())
    assert serial_number(address, trust) == after
    assert end(process) == ""


def test_tls_echo_reports_who_does_not_speak_tls(engine, tmp_path):
    pair, _ = certificates.write_files(tmp_path)
    process, address = begin(engine, "tls_echo.py", str(pair), str(pair))
    with Client(address) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        client.at_end()
    assert process.stderr.readline().startswith("TLS: [SSL: ")
    end(process)


def test_tls_echo_says_how_to_make_a_certificate_that_serves(engine, tmp_path):
    path_of("openssl")
    (command,) = re.findall(
        r"^ +(openssl req .*?)\n\n", of("tls_echo.py")["__doc__"], re.DOTALL | re.MULTILINE
    )
    subprocess.run(
        shlex.split(command), cwd=tmp_path, check=True, capture_output=True, timeout=PATIENCE
    )
    process, address = begin(
        engine, "tls_echo.py", str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    )
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    for name in ("localhost", "127.0.0.1"):
        with hydrogen.connect(address, ssl=trust, server_hostname=name, timeout=PATIENCE) as client:
            client.send(b"hello")
            assert client.recv() == b"hello"
    end(process)


# ------------------------------------------------------------------------------------ for operators


def ask(admin, path):
    """The status and the text of an answer."""
    try:
        with urllib.request.urlopen(admin + path, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            return error.code, error.read().decode()


def admin_of(process):
    """The URL that it prints after its address."""
    found = re.fullmatch(r"admin on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
    assert found
    return found[1]


def test_production_counts_and_says_that_it_is_ready_until_it_stops(engine):
    process, address = begin(engine, "production.py", "--admin-port", "0")
    admin = admin_of(process)
    with Client(address) as client, Client(address) as rude:
        client.send(b"hello\n")
        hears(client, b"HELLO")
        rude.send(b"x" * 2000)
        assert rude.at_end() == "end"
        assert ask(admin, "/ready") == (200, "ready\n")
        status, page = ask(admin, "/metrics")
        assert status == 200
        assert "hydrogen_connections_accepted_total 2.0" in page
        assert "hydrogen_messages_received_total 1.0" in page
        assert "process_open_fds" in page
        process.send_signal(signal.SIGTERM)  # which waits for `client` to end its side
        wait_until(lambda: ask(admin, "/ready") == (503, "not ready\n"), "it stops")
        client.at_end()
    assert finish(process, 0) == ("", "")


def test_production_does_not_wait_for_ever_for_what_the_operator_asks():
    assert 0 < of("production.py")["Quiet"].timeout <= 60


def test_production_exits_with_1_when_a_second_signal_cuts_the_stop_short(engine):
    process, address = begin(engine, "production.py", "--admin-port", "0")
    admin = admin_of(process)
    with Client(address) as client:
        client.send(b"hello\n")
        hears(client, b"HELLO")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask(admin, "/ready")[0] == 503, "it stops")
        process.send_signal(signal.SIGINT)
        finish(process, 1)


# ------------------------------------------------------------------ streams and frames of one's own


def test_custom_stream_compresses_both_ways(engine):
    process, address = begin(engine, "custom_stream.py")
    packer, unpacker = zlib.compressobj(), zlib.decompressobj()

    def said(data):
        return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)

    with Client(address) as client:
        wire = said(b"hello")
        for byte in wire:
            client.send(bytes([byte]))
        received = b""
        while len(received) < 5:
            received += unpacker.decompress(client.receive(1))
        assert received == b"hello"
        bomb = bytes(1 << 22)
        wire = said(bomb) + packer.flush()
        assert len(wire) < 1 << 14
        client.send(wire)
        client.finish()
        assert unpacker.decompress(client.receive_until_end()) == bomb
        assert unpacker.eof
    assert end(process) == ""


def test_custom_stream_refuses_what_zlib_does_not_understand(start, connect):
    removed = []
    names = of("custom_stream.py")

    class Echo(names["Echo"]):
        def on_connection_removed(self, fd, err):
            removed.append(err)

    server = start(Echo())
    client = connect(server)
    client.send(b"this is not compressed")
    client.at_end()
    wait_until(lambda: removed, "it is removed")
    assert isinstance(removed[0], hydrogen.ProtocolError)


def test_custom_stream_refuses_a_peer_that_sends_nothing_without_an_end():
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    stream = of("custom_stream.py")["ZlibStream"](ours.detach())
    # RFC 1950, and empty blocks (RFC 1951, 3.2.4)
    nothing = b"\x78\x9c" + b"\x00\x00\x00\xff\xff" * 30_000
    with peer, contextlib.closing(stream):
        peer.sendall(nothing[:50_000])
        with pytest.raises(BlockingIOError):
            stream.recv()
        peer.sendall(nothing[50_000:])
        with pytest.raises(hydrogen.ProtocolError, match="unfold to nothing"):
            stream.recv()


def test_custom_stream_keeps_what_the_kernel_does_not_take(start, connect):
    server = start(of("custom_stream.py")["Echo"]())
    client = connect(server, receive_buffer=4096)
    data = random.Random(1).randbytes(12_000_000)  # which does not compress
    with running(lambda: (client.send(zlib.compress(data, 0)), client.finish())):
        wait_until(
            lambda: any(socket.pending for socket in server.connections), "something is kept"
        )
        received = client.receive_until_end()
    assert zlib.decompress(received) == data


def test_custom_framing_serves_and_its_client_speaks_it(engine):
    process, address = begin(engine, "custom_framing.py")
    with Client(address) as client:
        for byte in b"5:hello,0:,12:hello, world,":
            client.send(bytes([byte]))
        expected = b"5:HELLO,0:,12:HELLO, WORLD,"
        assert client.receive(len(expected)) == expected
    speaker = child(
        SCRIPT,
        str(EXAMPLES / "custom_framing.py"),
        "--port",
        str(address[1]),
        "--say",
        "one",
        "two",
    )
    assert finish(speaker, 0) == ("ONE\nTWO\n", "")
    end(process)


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        (b"x", hydrogen.ProtocolError),
        (b":", hydrogen.ProtocolError),
        (b"-1:", hydrogen.ProtocolError),
        (b"01", hydrogen.ProtocolError),
        (b"00", hydrogen.ProtocolError),
        (b"5;hello,", hydrogen.ProtocolError),
        (b"5:hello!", hydrogen.ProtocolError),
        (b"65537:", hydrogen.FrameTooLarge),
        (b"999999", hydrogen.FrameTooLarge),
    ],
)
def test_custom_framing_refuses_what_cannot_become_a_frame_however_it_comes(wire, error):
    builder = of("custom_framing.py")["NetstringBuilder"]()

    def take(pieces):
        buffer = bytearray()
        for piece in pieces:
            buffer += piece
            assert builder.from_bytes(buffer) is None

    for pieces in ([wire], [bytes([byte]) for byte in wire]):
        with pytest.raises(error) as raised:
            take(pieces)
        assert type(raised.value) is error


def test_custom_framing_takes_and_makes_frames_up_to_max_size():
    builder = of("custom_framing.py")["NetstringBuilder"](max_size=1000)
    assert builder.from_bytes(bytearray()) is None
    wire = b"1000:" + b"x" * 1000 + b","
    assert builder.frame(b"x" * 1000).to_bytes() == wire
    for count in range(len(wire)):
        assert builder.from_bytes(bytearray(wire[:count])) is None
    buffer = bytearray(wire + b"1:y")
    assert builder.from_bytes(buffer).payload() == b"x" * 1000
    assert buffer == b"1:y"
    with pytest.raises(hydrogen.FrameTooLarge):
        builder.frame(b"x" * 1001)


# ------------------------------------------------------------------------------------------- a test


def test_test_handler_passes_as_its_users_run_it(engine, tmp_path):
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    path = EXAMPLES / "test_handler.py"
    options = ["-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-q"]
    out, _ = finish(child(code, *options, str(path), HYDROGEN_ENGINE=engine, PYTEST_ADDOPTS=""), 0)
    tests = re.findall(r"^def test_", path.read_text(), re.MULTILINE)
    assert f"{len(tests)} passed" in out
