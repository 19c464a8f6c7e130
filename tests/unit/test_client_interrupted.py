"""A `Client` that is used while another call of it is under way: by a signal handler, at each
moment, and by another thread.

What was sent arrives, once and in order, and the end behind it; what does not arrive is told of.
"""

import contextlib
import signal
import socket
import threading

import certificates
import pytest
from reentry import signalled
from support import PATIENCE, running, wait_event, wait_until

import hydrogen
from hydrogen import client as client_module
from hydrogen.client import Client
from hydrogen.frame import ChunkFrameBuilder

KINDS = pytest.mark.parametrize("kind", ["plain", "tls"])


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """A peer that this machine is slow to run is not reset; those of the tests end when they have
    read the end.
    """
    monkeypatch.setattr(client_module, "CLOSE_PATIENCE", PATIENCE)


class Peer:
    """Reads to the end, and answers each piece: what comes in when the input is shut down makes the
    kernel of the client reset.

    Attributes:
        received: all bytes.
    """

    def __init__(self, kind):
        self.received = b""
        self._kind = kind
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()

    def serve(self):
        """One connection. Raises what a client that ends gracefully does not cause: a reset; with
        TLS, an end without close_notify.
        """
        with self._listener:
            sock, _ = self._listener.accept()
        sock.settimeout(PATIENCE)
        if self._kind == "tls":
            sock = certificates.server_context().wrap_socket(
                sock, server_side=True, suppress_ragged_eofs=False
            )
        with sock:
            sock.sendall(b"hello\n")
            while data := sock.recv(1 << 16):
                self.received += data
                sock.sendall(b"answer\n")

    def connect(self):
        options = (
            {"ssl": certificates.client_context(), "server_hostname": "localhost"}
            if self._kind == "tls"
            else {}
        )
        return hydrogen.connect(
            self.address, framing=hydrogen.LineFrameBuilder, timeout=PATIENCE, **options
        )


def at_every_moment(call):
    """`call(number)` for each number, until it says that there is no such moment."""
    number = 0
    while call(number):
        number += 1
    assert number > 10, "it was interrupted nowhere"


@KINDS
@pytest.mark.parametrize("second", ["send", "close"])
@pytest.mark.parametrize("first", ["send", "recv", "close"])
def test_a_signal_handler_at_any_moment_of_a_call_loses_nothing_that_was_sent(kind, first, second):
    def once(number):
        peer, sent = Peer(kind), []

        def send(message):
            try:
                client.send(message)
            except OSError:
                assert "close" in (first, second)
            else:
                sent.append(message)

        def receive():
            try:
                assert client.recv() == b"hello"
            except EOFError:
                assert second == "close"

        with running(peer.serve):
            client = peer.connect()
            send(b"before")
            calls = {
                "send": lambda who: send(who),
                "recv": lambda who: receive(),
                "close": lambda who: client.close(),
            }
            came = signalled(
                lambda: calls[first](b"first"), number, lambda: calls[second](b"second")
            )
            client.close()
        for message in sent:
            assert peer.received.count(message + b"\n") == 1, (number, sent, peer.received)
        assert sent[0] == b"before"
        assert client.fileno() == -1
        return came

    at_every_moment(once)


@KINDS
def test_what_another_thread_sends_at_any_moment_of_close_arrives_or_is_told_of(kind):
    def once(number):
        peer, sent = Peer(kind), []

        def send():
            try:
                client.send(b"beside")
                sent.append(b"beside")
            except OSError:
                pass

        def begin():
            """As far as it gets: who closes may hold a lock."""
            threads.append(threading.Thread(target=send))
            threads[0].start()
            stream = client._stream
            wait_until(
                lambda: stream._waiting or not threads[0].is_alive() or client._sending._is_owned(),
                "it has begun",
            )

        threads = []
        with running(peer.serve):
            client = peer.connect()
            came = signalled(client.close, number, begin)
            for thread in threads:
                thread.join(PATIENCE)
        assert peer.received == b"".join(message + b"\n" for message in sent), f"moment {number}"
        return came

    at_every_moment(once)


@pytest.mark.parametrize("second", ["send", "close"])
@pytest.mark.parametrize("first", ["recv", "close"])
def test_a_signal_handler_waits_for_no_thread_that_waits_for_the_call_it_has_interrupted(
    first, second
):
    """That thread has begun to send, and goes on when the call gives back what both need, which it
    may just have taken.
    """

    def once(number):
        peer, sent, came, threads = Peer("plain"), [], [], []

        def send(message):
            try:
                client.send(message)
                sent.append(message)
            except OSError:
                assert "close" in (first, second)

        def receive():
            with contextlib.suppress(EOFError):
                assert client.recv() == b"hello"

        calls = {"send": lambda: send(b"second"), "recv": receive, "close": lambda: client.close()}

        def interrupt():
            threads.append(threading.Thread(target=send, args=(b"beside",), daemon=True))
            threads[0].start()
            stream = client._stream
            wait_until(
                lambda: stream._waiting or not threads[0].is_alive() or client._sending._is_owned(),
                "it has begun",
            )
            calls[second]()

        with running(peer.serve):
            client = peer.connect()
            with running(lambda: came.append(signalled(calls[first], number, interrupt))):
                pass
            for thread in threads:
                thread.join(PATIENCE)
            client.close()
        assert sorted(peer.received.splitlines()) == sorted(sent), f"moment {number}"
        return came[0]

    at_every_moment(once)


@pytest.mark.parametrize("ended", [False, True])
def test_close_lets_the_send_of_another_thread_end_also_when_the_peer_has_ended_its_side(
    monkeypatch, ended
):
    message = b"x" * (1 << 24)
    listener = socket.create_server(("127.0.0.1", 0))
    client = hydrogen.connect(listener.getsockname(), timeout=PATIENCE)
    peer, _ = listener.accept()
    real, closing = client._stream._finish, threading.Event()
    monkeypatch.setattr(client._stream, "_finish", lambda: (real(), closing.set())[0])
    received = 0
    with listener, peer:
        if ended:
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError):
                client.recv()
        with running(lambda: client.send(message)):
            wait_until(lambda: client._stream._unsent, "the kernel takes no more")
            with running(client.close):
                wait_event(closing, "the other one closes")
                while data := peer.recv(1 << 20):
                    received += len(data)
                peer.close()
    assert received == len(message)


class Signalling(socket.socket):
    """A socket; a signal comes as the first call of the kernel begins."""

    signals = True

    def send(self, *args):
        self.come()
        return super().send(*args)

    def recv(self, *args):
        self.come()
        return super().recv(*args)

    def come(self):
        if self.signals:
            self.signals = False
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("call", ["send", "recv"])
def test_a_call_within_which_a_signal_handler_closes_ends_though_the_peer_neither_reads_nor_ends(
    monkeypatch, call
):
    monkeypatch.setattr(client_module, "CLOSE_PATIENCE", 0)
    ours, peer = socket.socketpair()
    client = Client(hydrogen.Plain(Signalling(fileno=ours.detach())), ChunkFrameBuilder(), None)
    earlier = signal.signal(signal.SIGUSR1, lambda *_: client.close())
    with peer:
        try:
            if call == "send":
                with pytest.raises(BrokenPipeError):
                    client.send(bytes(1 << 24))
            else:
                with pytest.raises(EOFError):
                    client.recv()
        finally:
            signal.signal(signal.SIGUSR1, earlier)
        assert client.fileno() == -1


def test_a_signal_handler_that_receives_within_a_send_is_told_so_though_another_thread_receives():
    """That one may need what the send has taken to receive anything."""

    class Within(socket.socket):
        def send(self, *args):
            with pytest.raises(RuntimeError):
                client.recv()
            told.append(True)
            return super().send(*args)

    ours, peer = socket.socketpair()
    client = Client(hydrogen.Plain(Within(fileno=ours.detach())), ChunkFrameBuilder(), PATIENCE)
    told, received = [], []
    with peer, client, running(lambda: received.append(client.recv())):
        wait_until(lambda: client._stream._receiver, "the other one receives")
        with running(lambda: client.send(b"x")):
            wait_until(lambda: told, "the handler is told")
            peer.sendall(b"message")
        peer.shutdown(socket.SHUT_WR)
    assert received == [b"message"]


def test_a_send_within_which_a_signal_handler_closes_reads_so_that_a_peer_reads_that_first_writes():
    message, received = bytes(1 << 22), []
    ours, peer = socket.socketpair()

    def serve():
        """An echo that has nothing in hand."""
        with peer:
            while data := peer.recv(1 << 16):
                received.append(len(data))
                peer.sendall(data)

    client = Client(hydrogen.Plain(Signalling(fileno=ours.detach())), ChunkFrameBuilder(), None)
    earlier = signal.signal(signal.SIGUSR1, lambda *_: client.close())
    try:
        with running(serve):
            client.send(message)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert (sum(received), client.fileno()) == (len(message), -1)


def test_close_closes_no_fd_that_the_close_of_another_thread_is_about_to_read():
    """By then the number may be that of somebody else's."""
    comes, closed, numbers = threading.Event(), threading.Event(), []

    class Shared(socket.socket):
        def recv(self, *args):
            if threading.current_thread() in others:
                before = self.fileno()
                comes.set()
                wait_event(closed, "the first one has closed")
                numbers.append((before, self.fileno()))
            elif client._stream._is_shut and not others:
                others.append(threading.Thread(target=client.close))
                others[0].start()
                if not client._stream._lock._is_owned():  # else it waits for that
                    wait_event(comes, "the other one is about to read")
            return super().recv(*args)

        def close(self):
            super().close()
            closed.set()

    others = []
    ours, peer = socket.socketpair()
    client = Client(hydrogen.Plain(Shared(fileno=ours.detach())), ChunkFrameBuilder(), None)
    peer.close()
    client.close()
    others[0].join(PATIENCE)
    assert not [numbers for before, after in numbers if before != after]
