"""`connect` and `Client`, against sockets of the test: no server of hydrogen's, and Python's own
`ssl`.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import ssl
import threading
from pathlib import Path

import certificates
import pytest
from reentry import interrupted, signalled
from support import PATIENCE, child, finish, open_fds, running, simple, wait_event, wait_until

import hydrogen
from hydrogen import client as client_module
from hydrogen.client import connect

VERSIONS = pytest.mark.parametrize(
    "version", certificates.VERSIONS, ids=lambda version: version.name
)


@pytest.fixture
def after():
    """What is to be closed after the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    """Most peers here do not end the connection when the client does: `close` does not wait for
    them.
    """
    monkeypatch.setattr(client_module, "CLOSE_PATIENCE", 0)


@pytest.fixture
def listen(after):
    """A listening socket: of TCP on an address, or of a Unix path."""

    def listen(address="127.0.0.1", backlog=16):
        if isinstance(address, Path):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(address))
            sock.listen(backlog)
        else:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.create_server((address, 0), family=family, backlog=backlog)
        after.callback(sock.close)
        sock.settimeout(PATIENCE)
        return sock

    return listen


@pytest.fixture
def both(listen, after):
    """A client, and the peer's socket: `both(**options of connect)`; `buffer`: bytes of each socket
    buffer of the peer.
    """

    def both(buffer=None, **options):
        listener = listen()
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client = connect(listener.getsockname(), **options)
        after.callback(client.close)
        peer, _ = listener.accept()
        after.callback(peer.close)
        return client, peer

    return both


@pytest.fixture
def both_tls(listen, after):
    """The same with TLS; the peer is an `ssl.SSLSocket`. `context`: the peer's; `version`: of
    TLS.
    """

    def both_tls(context=None, version=None, **options):
        listener = listen()
        peers = []

        def serve():
            sock, _ = listener.accept()
            after.callback(sock.close)
            context_ = context or certificates.server_context(version=version)
            peers.append(context_.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False))
            after.callback(peers[0].close)

        with running(serve):
            client = connect(listener.getsockname(), ssl=certificates.client_context(), **options)
            after.callback(client.close)
        return client, peers[0]

    return both_tls


# ----------------------------------------------------------------------------------------- messages


@pytest.mark.clause("T16")
def test_a_client_sends_and_receives_messages(both):
    client, peer = both(framing=hydrogen.SimpleFrameBuilder)
    for data in (b"one", bytearray(b"two"), memoryview(b"three"), b""):
        client.send(data)
    expected = simple(b"one") + simple(b"two") + simple(b"three") + simple(b"")
    assert peer.recv(len(expected), socket.MSG_WAITALL) == expected
    peer.sendall(simple(b"a") + simple(b"") + simple(b"b"))
    assert [client.recv() for _ in range(3)] == [b"a", b"", b"b"]


@pytest.mark.clause("T16")
def test_without_framing_recv_gives_a_chunk_as_read(both):
    client, peer = both()
    client.send(b"raw")
    client.send(b"")
    assert peer.recv(100) == b"raw"
    peer.sendall(b"some ")
    assert client.recv() == b"some "
    peer.sendall(b"bytes")
    assert client.recv() == b"bytes"


@pytest.mark.clause("T16")
def test_at_the_end_recv_raises_eof_error(both):
    client, peer = both(framing=hydrogen.SimpleFrameBuilder)
    peer.sendall(simple(b"last"))
    peer.close()
    assert client.recv() == b"last"
    for _ in range(2):
        with pytest.raises(EOFError):
            client.recv()


def test_an_end_inside_a_message_is_an_error_also_of_the_iteration(both):
    client, peer = both(framing=hydrogen.SimpleFrameBuilder)
    peer.sendall(simple(b"whole") + b"\x01")
    peer.close()
    found = []
    with pytest.raises(hydrogen.IncompleteFrame):
        collect(client, found)
    assert found == [b"whole"]


def collect(client, found):
    """Add the messages to `found` as they come."""
    for message in client:
        found.append(message)


@pytest.mark.clause("T17")
def test_a_client_iterates_over_its_messages(both):
    client, peer = both(framing=hydrogen.LineFrameBuilder)
    peer.sendall(b"one\ntwo\n\nlast\n")
    peer.shutdown(socket.SHUT_WR)
    assert next(iter(client)) == b"one"
    assert list(client) == [b"two", b"", b"last"]
    assert list(client) == []


def test_an_iteration_that_times_out_can_be_taken_up_again(both):
    client, peer = both(framing=hydrogen.LineFrameBuilder, timeout=PATIENCE)
    peer.sendall(b"one\ntw")
    found = []
    client._timeout = 0.001
    with pytest.raises(TimeoutError):
        collect(client, found)
    client._timeout = PATIENCE
    peer.sendall(b"o\n")
    peer.shutdown(socket.SHUT_WR)
    found += client
    assert found == [b"one", b"two"]


def test_send_raises_what_cannot_be_sent_and_the_connection_stays(both):
    client, peer = both(framing=hydrogen.LineFrameBuilder(max_size=5))
    for wrong in ("text", 5, None, [b"x"]):
        with pytest.raises(TypeError):
            client.send(wrong)
    with pytest.raises(hydrogen.FrameTooLarge):
        client.send(b"123456")
    with pytest.raises(ValueError, match="delimiter"):
        client.send(b"a\nb")
    client.send(b"good")
    assert peer.recv(100) == b"good\n"


def test_a_large_message_is_sent_whole(both):
    client, peer = both(framing=hydrogen.LengthFrameBuilder(max_size=1 << 24), buffer=8192)
    message = os.urandom(5_000_000)

    def receive():
        data = bytearray()
        while len(data) < len(message) + 4:
            data += peer.recv(1 << 16)
        assert data[4:] == message

    with running(receive):
        client.send(message)


def test_one_thread_sends_while_another_receives(both_tls):
    client, peer = both_tls(framing=hydrogen.LengthFrameBuilder)
    messages = [os.urandom(1 << (number % 17)) for number in range(200)]

    def echo():
        with contextlib.suppress(ssl.SSLEOFError):
            while data := peer.recv(1 << 16):
                peer.sendall(data)

    def receive():
        assert [client.recv() for _ in messages] == messages
        client.close()

    with running(echo, receive):
        for message in messages:
            client.send(message)


def test_a_message_that_is_not_contiguous_is_a_type_error_and_nothing_is_sent(both):
    client, peer = both(framing=hydrogen.SimpleFrameBuilder)
    for wrong in (memoryview(b"abcdef")[::2], "text", 5):
        with pytest.raises(TypeError):
            client.send(wrong)
    client.send(memoryview(b"abc"))
    assert peer.recv(100) == simple(b"abc")


def test_an_error_that_comes_again_does_not_grow(both):
    client, peer = both(framing=hydrogen.SimpleFrameBuilder)
    peer.sendall(b"nonsense")
    lengths = []
    for _ in range(10):
        with pytest.raises(hydrogen.ProtocolError) as raised:
            client.recv()
        lengths.append(len(raised.traceback))
    assert max(lengths[1:]) <= lengths[0] + 1


@pytest.mark.parametrize("timeout", [float("nan"), -1, "1", True])
def test_a_timeout_that_is_none_is_refused_before_anything_is_opened(timeout):
    with pytest.raises((TypeError, ValueError), match="timeout"):
        connect(("127.0.0.1", 1), timeout=timeout)


def test_an_infinite_timeout_is_none(both):
    client, peer = both(timeout=float("inf"))
    peer.sendall(b"hello")
    assert client.recv() == b"hello"
    peer.sendall(b"hello")
    assert client.recv(float("inf")) == b"hello"


# ----------------------------------------------------------------------------------------- where to


@pytest.mark.parametrize("zone", ["", "%1"])
def test_the_zone_of_an_address_is_no_part_of_the_name_in_the_certificate(listen, zone):
    listener = listen("::1")

    def serve():
        sock, _ = listener.accept()
        with certificates.server_context().wrap_socket(sock, server_side=True) as peer:
            peer.sendall(b"hello")

    with (
        running(serve),
        connect(
            (f"::1{zone}", listener.getsockname()[1]),
            ssl=certificates.client_context(),
            timeout=PATIENCE,
        ) as client,
    ):
        assert client.recv() == b"hello"


def test_connect_takes_what_getsockname_gives(listen):
    for address in ("127.0.0.1", "::1"):
        listener = listen(address)
        with connect(listener.getsockname()) as client:
            peer, name = listener.accept()
            with peer, socket.socket(fileno=os.dup(client.fileno())) as sock:
                assert sock.getsockname() == name


@pytest.mark.parametrize("kind", [str, Path])
def test_connect_takes_the_path_of_a_unix_socket(listen, tmp_path, kind):
    listener = listen(tmp_path / "socket")
    for timeout in (None, PATIENCE):
        with connect(kind(tmp_path / "socket"), timeout=timeout) as client:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"hello")
                assert client.recv() == b"hello"


def test_all_addresses_of_a_name_are_tried(listen, monkeypatch):
    listener = listen()
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    asked = []

    def getaddrinfo(host, port, **options):
        asked.append((host, port))
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in (nobody, nobody, listener.getsockname())
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with connect(("somewhere.example.org", 7)) as client:
        assert asked == [("somewhere.example.org", 7)]
        peer, name = listener.accept()
        peer.close()
        with socket.socket(fileno=os.dup(client.fileno())) as sock:
            assert sock.getsockname() == name


def test_when_no_address_answers_the_last_error_is_raised(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *args, **options: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", nobody)] * 2,
    )
    with pytest.raises(ConnectionRefusedError):
        connect(("somewhere.example.org", 7))


def test_a_path_where_nobody_listens_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    with pytest.raises(ConnectionRefusedError):
        connect(tmp_path / "socket", timeout=PATIENCE)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"framing": "simple"}, TypeError),
        ({"ssl": True}, TypeError),
        ({"ssl": certificates.server_context()}, ValueError),
        ({"server_hostname": "localhost"}, ValueError),
        ({"server_hostname": 3, "ssl": certificates.client_context()}, TypeError),
        ({"server_hostname": b"localhost", "ssl": certificates.client_context()}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
    ],
    ids=[
        "framing",
        "ssl",
        "ssl of a server",
        "server_hostname",
        "int as server_hostname",
        "bytes as server_hostname",
        "timeout below 0",
        "timeout",
    ],
)
def test_wrong_arguments_are_told_before_anything_is_opened(listen, options, error):
    listener = listen()
    with pytest.raises(error, match=f"{next(iter(options))}: "):
        connect(listener.getsockname(), **options)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


WRONG = [
    *[
        ((), ValueError),
        (("127.0.0.1",), ValueError),
        (("127.0.0.1", 1, 2), ValueError),
        (7, TypeError),
        (None, TypeError),
    ],
    *[(("127.0.0.1", port), ValueError) for port in (-1, 65_536, 70_000, 10**30)],
    *[(("127.0.0.1", port), TypeError) for port in ("1", None, 1.5, True)],
    *[((host, 1), TypeError) for host in (None, 3, b"127.0.0.1")],
    *[(("::1", 1, *more), ValueError) for more in ((1 << 20, 0), (0, -1), (0, 1 << 32))],
    *[(("::1", 1, *more), TypeError) for more in (("x", 0), (0, None))],
    *[(("::1", 65_536, 0, 0), ValueError), ((3, 1, 0, 0), TypeError)],
]


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("address", "error"), WRONG, ids=repr)
def test_a_wrong_address_is_an_error(monkeypatch, address, error, secure):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **options: pytest.fail("it was looked up")
    )
    with pytest.raises(error):
        connect(address, ssl=certificates.client_context() if secure else None)


def test_small_messages_are_not_held_back(both):
    client, _ = both()
    with socket.socket(fileno=os.dup(client.fileno())) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# ----------------------------------------------------------------------------------------- timeouts


@pytest.mark.clause("T18")
def test_the_timeout_of_connect_is_the_default_of_recv(both):
    client, peer = both(framing=hydrogen.LineFrameBuilder, timeout=PATIENCE)
    client._timeout = 0.001
    with pytest.raises(TimeoutError):
        client.recv()
    client._timeout = PATIENCE
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            client.recv(timeout=timeout)
    with running(lambda: peer.sendall(b"hello\n")):
        assert client.recv() == b"hello"
    with running(lambda: peer.sendall(b"again\n")):
        assert client.recv(timeout=None) == b"again"


@pytest.mark.clause("T18")
def test_connect_s_own_timeout_is_that_of_each_recv(both, monkeypatch):
    client, _ = both(timeout=PATIENCE)
    asked = []

    def b_recv(self, timeout):
        asked.append(timeout)
        return hydrogen.ChunkFrame(b"x")

    monkeypatch.setattr(hydrogen.Plain, "b_recv", b_recv)
    assert [
        client.recv(),
        client.recv(timeout=7),
        client.recv(timeout=None),
        next(iter(client)),
    ] == [b"x"] * 4
    assert asked == [PATIENCE, 7, None, PATIENCE]


@pytest.mark.clause("T18")
def test_a_timeout_loses_nothing(both):
    client, peer = both(framing=hydrogen.LineFrameBuilder)
    for part in (b"on", b"e", b"\ntwo\nth"):
        with pytest.raises(TimeoutError):
            client.recv(timeout=0)
        peer.sendall(part)
        wait_until(lambda: client_is_readable(client), "it is there")
    assert [client.recv(timeout=0) for _ in range(2)] == [b"one", b"two"]
    with pytest.raises(TimeoutError):
        client.recv(timeout=0)
    peer.sendall(b"ree\n")
    assert client.recv() == b"three"


def client_is_readable(client):
    """Whether a level-triggered poll would report it now."""
    return bool(select.select([client], [], [], 0)[0])


@pytest.mark.clause("T18")
def test_the_timeout_bounds_the_handshake(listen):
    listener = listen()
    with pytest.raises(TimeoutError):
        connect(listener.getsockname(), ssl=certificates.client_context(), timeout=0.01)


@pytest.mark.clause("T18")
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_the_timeout_bounds_the_connect(listen, tmp_path, after, family):
    listener = listen(tmp_path / "socket" if family == "unix" else "127.0.0.1", backlog=0)
    address = listener.getsockname()
    # Fill the queue of connections that nobody accepts, until one is not taken at once.
    for _ in range(10):
        filler = socket.socket(listener.family, socket.SOCK_STREAM)
        after.callback(filler.close)
        filler.setblocking(False)
        if filler.connect_ex(address) == errno.EAGAIN:
            break
    with pytest.raises(TimeoutError):
        connect(address, timeout=0.01)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_signals_while_a_unix_socket_has_no_room_do_not_pass_for_a_connection(
    listen, tmp_path, after, timeout
):
    listener = listen(tmp_path / "socket", backlog=0)
    fillers = []
    while True:
        fillers.append(socket.socket(socket.AF_UNIX))
        after.callback(fillers[-1].close)
        fillers[-1].setblocking(False)
        if fillers[-1].connect_ex(listener.getsockname()) == errno.EAGAIN:
            break
    handled = []
    main = threading.get_ident()
    after.callback(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
    signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))

    def accept():
        peer, _ = listener.accept()
        after.callback(peer.close)
        return peer

    def disturb():
        # Most of them while it waits in the kernel; one that comes just before that is handled with
        # the next one.
        for number in range(20):
            wait_until(
                lambda: signal.pthread_kill(main, signal.SIGUSR1) or len(handled) > number,  # noqa: B023
                "it is handled",
            )
        for _ in fillers[:-1]:
            accept()

    with running(disturb):
        client = connect(listener.getsockname(), timeout=timeout)
        after.callback(client.close)
    client.send(b"x")
    assert accept().recv(1) == b"x"


def test_no_time_at_all_is_a_timeout(listen):
    with pytest.raises(TimeoutError):
        connect(listen().getsockname(), timeout=0)


# ---------------------------------------------------------------------------------------------- TLS


@VERSIONS
def test_connect_speaks_tls_and_checks_the_name(both_tls, version):
    client, peer = both_tls(version=version, framing=hydrogen.SimpleFrameBuilder, timeout=PATIENCE)
    assert peer.version() == version.name.replace("_", ".")
    client.send(b"question")
    assert peer.recv(100) == simple(b"question")
    peer.sendall(simple(b"answer"))
    assert client.recv() == b"answer"


BAD = {
    "expired": (certificates.EXPIRED, "expired"),
    "by a stranger": (certificates.FOREIGN, "unable to get local issuer"),
    "of another name": (certificates.MISNAMED, "IP address mismatch"),
}


@pytest.mark.parametrize(("certificate", "reason"), BAD.values(), ids=BAD)
def test_a_bad_certificate_fails_connect_and_nothing_stays_open(listen, certificate, reason):
    listener = listen()

    def serve():
        sock, _ = listener.accept()
        with sock, pytest.raises(ssl.SSLError):
            certificates.server_context(certificate).wrap_socket(sock, server_side=True)

    with running(serve), pytest.raises(ssl.SSLCertVerificationError, match=reason):
        connect(listener.getsockname(), ssl=certificates.client_context(), timeout=PATIENCE)


def test_server_hostname_is_another_name_to_check(both_tls):
    context = certificates.server_context(certificates.MISNAMED)
    client, peer = both_tls(
        context=context, server_hostname="elsewhere.example.org", timeout=PATIENCE
    )
    client.send(b"x")
    assert peer.recv(1) == b"x"


def test_a_path_has_no_name_to_check(listen, tmp_path):
    listen(tmp_path / "socket")
    with pytest.raises(ValueError, match="server_hostname: "):
        connect(tmp_path / "socket", ssl=certificates.client_context())


def test_a_server_that_hangs_up_fails_the_handshake(listen):
    listener = listen()
    with (
        running(lambda: listener.accept()[0].close()),
        pytest.raises((ssl.SSLEOFError, ConnectionError)),
    ):
        connect(listener.getsockname(), ssl=certificates.client_context(), timeout=PATIENCE)


def test_f34_an_end_without_close_notify_is_no_end_of_the_iteration(both_tls):
    client, peer = both_tls(framing=hydrogen.SimpleFrameBuilder)
    peer.sendall(simple(b"one"))
    peer.shutdown(socket.SHUT_WR)
    found = []
    with pytest.raises(ssl.SSLEOFError):
        collect(client, found)
    assert found == [b"one"]


# -------------------------------------------------------------------------------------------- close


@pytest.mark.clause("T17")
def test_close_and_with_close_once(both):
    client, peer = both()
    with client as same:
        assert same is client
        assert client.fileno() >= 0
    assert client.fileno() == -1
    assert peer.recv(1) == b""
    client.close()


def test_two_threads_may_close_at_once(both, monkeypatch):
    """Here the second one does it all while the first one is in the middle."""
    client, _ = both()
    shutdown = hydrogen.Plain.shutdown

    def meanwhile(stream):
        monkeypatch.setattr(hydrogen.Plain, "shutdown", shutdown)
        client.close()
        stream.shutdown()

    monkeypatch.setattr(hydrogen.Plain, "shutdown", meanwhile)
    client.close()
    assert client.fileno() == -1


def test_with_closes_also_when_its_body_raises(both):
    client, _ = both()
    with pytest.raises(ZeroDivisionError), client:
        raise ZeroDivisionError
    assert client.fileno() == -1


def test_after_close_input_has_ended_and_nothing_can_be_sent(both):
    client, _ = both()
    client.close()
    with pytest.raises(EOFError):
        client.recv()
    assert list(client) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        client.send(b"x")


@VERSIONS
def test_close_sends_close_notify(both_tls, version):
    client, peer = both_tls(version=version)
    client.send(b"bye")
    client.close()
    assert peer.recv(100) == b"bye"
    assert peer.recv(100) == b""  # it raises SSLEOFError at an end without one


def fill(client, message):
    """Send until the kernel takes no more; how often it was sent, the last time in part."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += 1
            client._stream.nb_send(hydrogen.ChunkFrame(message))
    return count


def test_close_waits_for_room_for_close_notify(both_tls, monkeypatch):
    real = select.poll
    waiting = threading.Event()

    class Poll:
        """poll(2), and says so."""

        def __init__(self):
            self.poll_object = real()
            self.register = self.poll_object.register

        def poll(self, milliseconds):
            waiting.set()
            return self.poll_object.poll(milliseconds)

    client, peer = both_tls()
    count = fill(client, bytes(1000))
    monkeypatch.setattr(client_module, "CLOSE_PATIENCE", PATIENCE)
    monkeypatch.setattr(select, "poll", Poll)
    with running(client.close):
        wait_event(waiting, "close waits")
        received = 0
        while data := peer.recv(1 << 16):  # it raises SSLEOFError at an end without close_notify
            received += len(data)
        peer.close()
    assert received == count * 1000


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_what_was_sent_arrives_though_the_peer_answers_while_the_client_closes(
    both, both_tls, monkeypatch, kind
):
    """Once the input is shut down, what comes in makes the kernel reset the connection."""
    client, peer = both(buffer=8192) if kind == "plain" else both_tls()
    with pytest.raises(BlockingIOError):  # some is kept by the stream
        client._stream.nb_send(hydrogen.ChunkFrame(bytes(1 << 24)))
    monkeypatch.setattr(client_module, "CLOSE_PATIENCE", PATIENCE)
    real, waiting = select.poll, threading.Event()
    monkeypatch.setattr(select, "poll", lambda: waiting.set() or real())
    with running(client.close):
        wait_event(waiting, "close waits")
        received = 0
        while data := peer.recv(1 << 16):
            received += len(data)
            peer.sendall(data)
        peer.sendall(b"after the end")
        peer.close()
    assert received == 1 << 24


@VERSIONS
def test_what_was_sent_arrives_though_the_client_has_not_read(both_tls, version):
    """Closing with unread input is a reset: a session ticket would do (TLS 1.3), or an answer."""
    client, peer = both_tls(version=version)
    peer.sendall(b"unread")
    wait_until(lambda: client_is_readable(client), "it is there")
    count = fill(client, bytes(1 << 16))
    received = 0

    def receive(end):
        nonlocal received
        while received < end and (data := peer.recv(1 << 16)):
            received += len(data)

    with running(lambda: receive((count - 1) << 16)):
        client._stream.b_send(hydrogen.ChunkFrame(b"last"))
    client.close()
    receive(1 << 60)
    assert received == (count << 16) + 4


def test_close_does_not_wait_for_ever_for_a_peer_that_does_not_read(both_tls):
    client, _ = both_tls()
    fill(client, bytes(1 << 20))
    client.close()
    assert client.fileno() == -1


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_close_ends_the_calls_of_other_threads(both, both_tls, kind):
    client, _ = (both if kind == "plain" else both_tls)()
    begun = threading.Event()

    def receive():
        begun.set()
        with pytest.raises(EOFError):
            client.recv()

    def send():
        with pytest.raises(BrokenPipeError):
            client.send(bytes(1 << 24))  # more than the kernel takes

    with running(receive, send):
        wait_event(begun, "one is receiving")
        wait_until(lambda: client._stream._unsent, "the other one is blocked")
        client.close()


class Asked:
    """A lock, and whether somebody asks for it."""

    def __init__(self, lock):
        self.lock = lock
        self.event = threading.Event()

    def acquire(self, *args):
        self.event.set()
        return self.lock.acquire(*args)

    def release(self):
        self.lock.release()

    def __enter__(self):
        self.acquire()

    def __exit__(self, *_):
        self.release()


@pytest.mark.parametrize("first", ["send", "recv"])
def test_a_call_within_another_one_and_a_close_do_not_wait_for_each_other(
    both, monkeypatch, after, first
):
    """A signal handler that sends while its thread waits in `recv`, for one."""
    client, _ = both()
    real = select.poll

    class Poll:
        """poll(2), within which a signal comes once, while another thread closes."""

        def __init__(self):
            self.poll_object = real()
            self.register = self.poll_object.register

        def poll(self, milliseconds):
            monkeypatch.setattr(select, "poll", real)
            name = "_receiving" if first == "recv" else "_sending"
            asked = Asked(getattr(client, name))
            setattr(client, name, asked)
            after.enter_context(running(client.close))
            wait_event(asked.event, "close wants the lock that is held")
            with pytest.raises(BrokenPipeError if first == "recv" else EOFError):
                client.send(b"x") if first == "recv" else client.recv()
            return self.poll_object.poll(milliseconds)

    if first == "send":
        fill(client, bytes(1 << 16))
    monkeypatch.setattr(select, "poll", Poll)
    with pytest.raises(EOFError if first == "recv" else BrokenPipeError):
        client.recv() if first == "recv" else client.send(b"x")
    after.close()
    assert client.fileno() == -1


# --------------------------------------------------------------------------------------- interrupts


class Interrupt(BaseException):
    """What the signal handler of a test raises."""


def interrupt():
    """A signal handler."""
    raise Interrupt


def at_every_moment(call):
    """`call(number)` for each number, until it says that there is no such moment."""
    number = 0
    while call(number):
        number += 1
    assert number > 10, "it was interrupted nowhere"


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_after_an_interrupt_of_send_at_any_moment_close_ends_the_calls_of_other_threads(
    both, both_tls, kind
):
    def once(number):
        client, _ = (both if kind == "plain" else both_tls)()
        begun = threading.Event()

        def receive():
            begun.set()
            with pytest.raises(EOFError):
                client.recv()

        with running(receive):
            wait_event(begun, "one is receiving")
            try:
                came = signalled(lambda: client.send(b"x"), number, interrupt)
            except Interrupt:
                came = True
            with running(client.close):
                pass
        assert client.fileno() == -1
        return came

    at_every_moment(once)


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_an_interrupt_of_close_at_any_moment_leaks_nothing_once_close_is_called_again(
    both, both_tls, kind
):
    def once(number):
        client, peer = (both if kind == "plain" else both_tls)()
        fds = open_fds()
        own = client.fileno()
        del fds[own]
        try:
            came = signalled(client.close, number, interrupt)
        except Interrupt:
            came = True
        client.close()
        assert open_fds() == fds
        assert client.fileno() == -1
        peer.close()
        return came

    at_every_moment(once)


@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("first", ["send", "recv"])
def test_a_signal_handler_that_closes_and_connects_anew_leaves_the_old_fd_to_who_waits_for_it(
    both, both_tls, monkeypatch, kind, first
):
    """The number of the fd would be the new connection's, and the wait for it."""
    client, _ = (both if kind == "plain" else both_tls)()
    real, others = select.poll, []

    class Poll:
        """poll(2), within which a signal comes once."""

        def __init__(self):
            self.poll_object = real()

        def register(self, fd, events):
            self.fd = fd
            self.poll_object.register(fd, events)

        def poll(self, milliseconds):
            monkeypatch.setattr(select, "poll", real)
            client.close()
            assert client.fileno() == self.fd, "the fd is closed under the wait"
            others.append(both())
            return self.poll_object.poll(milliseconds)

    if first == "send":
        fill(client, bytes(1 << 16))
    monkeypatch.setattr(select, "poll", Poll)
    with pytest.raises(EOFError if first == "recv" else BrokenPipeError):
        client.recv(PATIENCE) if first == "recv" else client.send(b"x")
    assert client.fileno() == -1
    ((other, peer),) = others
    other.send(b"x")
    assert peer.recv(1) == b"x"


def test_a_signal_handler_that_receives_at_any_moment_of_recv_gets_no_message_twice(both):
    """Nor is one lost."""

    def once(number):
        client, peer = both(framing=hydrogen.SimpleFrameBuilder, timeout=PATIENCE)
        messages = [b"one", b"two", b"three"]
        peer.sendall(b"".join(map(simple, messages)))
        got = []

        def receive():
            with contextlib.suppress(RuntimeError):
                got.append(client.recv())

        came = interrupted(lambda: got.append(client.recv()), number, receive)
        while len(got) < 3:
            got.append(client.recv())
        assert sorted(got) == sorted(messages)
        client.close()
        peer.close()
        return came

    at_every_moment(once)


FORKED = """
import os, signal, socket, sys, threading, warnings
import hydrogen
from support import wait_event, wait_until

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
listener = socket.create_server(("127.0.0.1", 0))
client = hydrogen.connect(listener.getsockname())
peer, _ = listener.accept()
received = []
thread = threading.Thread(target=lambda: received.append(client.recv()))
thread.start()
lock = client._receiving
wait_until(lambda: not lock.acquire(blocking=False) or lock.release(), "one receives")
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    fd = client.fileno()
    with client:
        pass
    try:
        os.fstat(fd)
    except OSError:
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
client.send(b"still here")
assert peer.recv(10) == b"still here"
peer.sendall(b"so am I")
thread.join()
print(received)
for one in (client, peer, listener):
    one.close()
"""


def test_close_in_a_forked_child_waits_for_nobody_and_ends_nothing_of_the_parent_s():
    assert finish(child(FORKED), 0) == ("7\n[b'so am I']\n", "")
