"""What looks like the end of a connection and is none, and ends that come although something keeps
looking like more.
"""

import contextlib
import os
import socket as stdlib_socket
import struct
import threading

import pytest
from certificates import client_context, server_context
from families import FAMILIES, connect_to, options_of, stream_of
from support import TlsClient, echo, recorder, running, wait_event, wait_until

import hydrogen


class Halves(hydrogen.Stream):
    """A stream of the user's that ends its own side with its first message."""

    def __init__(self, fd):
        self.sock = stdlib_socket.socket(fileno=fd)

    def recv(self):
        part = self.sock.recv(4096)
        if not part:
            raise EOFError
        return [part]

    def send(self, buf):
        if buf:
            self.sock.send(buf)
            self.sock.shutdown(stdlib_socket.SHUT_WR)

    def shutdown(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(stdlib_socket.SHUT_RDWR)

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.sock.close()


@pytest.mark.clause("H10", "H11", "H20", "T4")
@pytest.mark.parametrize("paused", [False, True], ids=["read at once", "paused"])
@pytest.mark.parametrize("overridden", [False, True], ids=["default on_eof", "own on_eof"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_peer_that_ends_its_side_after_ours_has_not_reset_the_connection(
    start, connect, tmp_path, family, overridden, paused
):
    def connected(socket):
        if paused:
            socket.pause_reading()
        socket.send(b"hello")

    hooks = {"eof": None} if overridden else {}
    handler = recorder(new_connection=Halves, connected=connected, **hooks)
    where = {"path": str(tmp_path / "s")} if family == "unix" else {}
    server = start(handler, max_threads=2, **where)
    client = connect(server)
    assert client.receive_until_end() == b"hello"
    client.send(b"answer")
    client.finish()
    if paused:
        neighbour = connect(server)  # who is served shows that the hang-up was seen
        assert neighbour.receive_until_end() == b"hello"
        assert handler.socket().is_open
        assert handler.messages() == []
        handler.socket().resume_reading()
    if overridden:
        handler.wait_for("eof")
        assert handler.socket().is_open
        handler.socket().close()
    errors = handler.wait_removed()
    assert type(errors[0]) is (hydrogen.LocalClosed if overridden else hydrogen.PeerClosed)
    assert handler.data() == b"answer"


class OverPipe(hydrogen.Stream):
    """A stream of the user's that reads from a pipe."""

    def __init__(self, fd):
        self.sock = fd
        self.pipe, self.writer = os.pipe()
        os.set_blocking(self.pipe, False)

    def recv(self):
        part = os.read(self.pipe, 4096)
        if not part:
            raise EOFError
        return [part]

    def send(self, buf):
        pass

    def shutdown(self):
        pass

    def fileno(self):
        return self.pipe

    def close(self):
        os.close(self.pipe)
        os.close(self.sock)


@pytest.mark.clause("H20")
@pytest.mark.parametrize("paused", [False, True], ids=["read at once", "paused"])
@pytest.mark.parametrize("overridden", [False, True], ids=["default on_eof", "own on_eof"])
def test_a_pipe_that_hangs_up_has_not_been_reset(start, connect, overridden, paused):
    streams = []

    def new_connection(fd):
        streams.append(OverPipe(fd))
        return streams[-1]

    def connected(socket):
        if paused:
            socket.pause_reading()

    hooks = {"eof": None} if overridden else {}
    handler = recorder(new_connection=new_connection, connected=connected, **hooks)
    server = start(handler, max_threads=2)
    connect(server)
    handler.wait_for("connected")
    os.write(streams[0].writer, b"last words")
    os.close(streams[0].writer)
    if paused:
        connect(server)  # whose callback shows that the hang-up was seen
        handler.wait_for("connected", 2)
        os.close(streams[1].writer)
        assert handler.socket().is_open
        handler.socket().resume_reading()
    if overridden:
        handler.wait_for("eof")
        assert handler.socket().is_open
        handler.socket().close()
    error = handler.wait_removed()[0]
    assert type(error) is (hydrogen.LocalClosed if overridden else hydrogen.PeerClosed)
    assert handler.data() == b"last words"


@pytest.mark.clause("H10", "H11", "H19")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_waits_for_the_resume_of_a_pause_that_came_just_before(
    start, tmp_path, gate, family
):
    """Both are seen in one step, while the only worker is busy: the peer takes its answer, and
    ends.
    """
    go, blocked = gate(), gate()

    def new_connection(fd):
        plain.append(len(plain))
        return stream_of(family, fd) if len(plain) == 1 else None

    def received(socket, data):
        if data.strip() == b"block":
            blocked.set()
            wait_event(go, "the other has read all, and ended")
        else:
            socket.send(answer)

    answer = b"x" * (24 << 20)
    plain = []
    handler = recorder(
        new_connection=new_connection,
        connected=None,
        data_received=received,
        writable=lambda socket: socket.pause_reading(),
        eof=None,
    )
    server = start(handler, max_threads=1, **options_of(family, str(tmp_path / "s")))
    peers = [connect_to(server, family) for _ in range(3)]
    first, neighbour, _ = [call.socket for call in handler.wait_for("connected", 3)]
    for peer in peers[:2]:
        peer.send(b"ask\n")
    for socket in (first, neighbour):
        wait_until(lambda socket=socket: socket.pending > 8 << 20, "the answer is blocked")
    peers[2].send(b"block\n")
    wait_event(blocked, "the only worker is busy")
    if family == "stream":  # it writes in the worker
        peers[0].finish()
    else:
        peers[0].receive(len(answer))
        peers[0].finish()
    before = neighbour.pending
    peers[1].receive(len(answer) // 2)
    wait_until(lambda: neighbour.pending < before, "what came before is seen as well")
    go.set()
    if family == "stream":
        peers[0].receive(len(answer))
    wait_until(lambda: first in [call.socket for call in handler.of("writable")], "it paused")
    peers[2].send(b"block\n")
    handler.wait(lambda: len(handler.messages()) == 4, "the worker went on")
    assert handler.of("eof") == []
    first.resume_reading()
    handler.wait_for("eof")
    for socket in server.connections:
        socket.abort()
    for peer in peers:
        peer.close()


SO_TIMESTAMPING = 37
TX_SOFTWARE, SOFTWARE = 2, 16


@pytest.mark.clause("C15", "H20")
@pytest.mark.parametrize("kind", ["tcp", "tls", "stream"])
def test_what_lies_in_the_error_queue_is_no_hangup_and_a_reset_is_still_one(start, kind):
    """Timestamps of what is sent come there (SO_TIMESTAMPING), and the kernel says EPOLLERR."""
    handler = recorder(
        new_connection=lambda fd: stream_of(kind, fd), connected=None, data_received=echo
    )
    option = (stdlib_socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE)
    server = start(handler, **options_of(kind, ""), socket_options=[option], max_threads=2)
    peer = connect_to(server, kind)
    first = handler.wait_for("connected")[0].socket
    neighbour = connect_to(server, kind)
    for _ in range(10):
        for talker in (peer, neighbour):
            talker.send(b"x\n")
            assert talker.receive(2) == b"x\n"
    assert handler.of("disconnected") == []
    peer.client.reset()
    assert isinstance(handler.wait_removed()[0], ConnectionResetError)
    assert not first.is_open
    neighbour.send(b"x\n")
    assert neighbour.receive(2) == b"x\n"
    neighbour.close()


@pytest.mark.clause("K8", "H19")
@pytest.mark.parametrize("family", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("resumed", [1, 10])
def test_who_resumes_a_connection_that_lingers_does_not_cut_off_what_the_peer_has_not_read(
    start, connect, tmp_path, family, resumed
):
    reply = b"".join(b"%08d" % number for number in range(12_000))

    def received(socket, data):
        if data == b"go":
            socket.pause_reading()
            socket.send(reply)
            socket.close()
        else:
            socket.send(data)

    handler = recorder(data_received=received)
    options = {"path": str(tmp_path / "s")} if family == "unix" else {}
    if family == "tls":
        options["ssl"] = server_context()
    roomy = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 1 << 20)]
    server = start(handler, socket_options=roomy, max_threads=2, **options)

    def dial(**options):
        client = connect(server, **options)
        return client, TlsClient(
            client, client_context()
        ).handshake() if family == "tls" else client

    _, neighbour = dial()
    client, talker = dial(receive_buffer=4096)
    talker.send(b"go")
    socket = handler.wait_for("data_received")[0].socket
    wait_until(lambda: not socket.is_open and socket.pending == 0, "the kernel has it all")
    neighbour.echo(b"served")
    neighbour.echo(b"served")
    talker.send(b"more" * 100)
    for _ in range(resumed):
        socket.resume_reading()
        neighbour.echo(b"served")
    assert handler.of("disconnected") == []
    talker.send(b"more" * 100)
    assert talker.receive_until_end() == reply
    client.finish()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


def ends_its_output(socket):
    """Whether the server has ended its side of a connection: it waits for the peer's end now."""
    try:
        with stdlib_socket.socket(fileno=os.dup(socket.fileno())) as own:
            own.send(b"", stdlib_socket.MSG_NOSIGNAL)
    except BrokenPipeError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.clause("K8")
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_what_a_peer_sends_in_time_behind_our_end_does_not_cut_its_reply_off_with_no_worker_free(
    start, connect, gate, tmp_path, family
):
    go, reply = gate(), bytes(100_000)

    def received(socket, data):
        if data == b"block":
            wait_event(go, "let go")
        else:
            socket.send(reply)
            socket.close()

    handler = recorder(data_received=received)
    options = {"path": str(tmp_path / "s")} if family == "unix" else {}
    roomy = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 1 << 20)]
    server = start(handler, socket_options=roomy, max_threads=1, **options)
    client, blocker = connect(server, receive_buffer=4096), connect(server)
    client.send(b"get")
    socket = handler.wait_for("data_received")[0].socket
    wait_until(lambda: ends_its_output(socket), "the server waits for the peer's end")
    blocker.send(b"block")
    handler.wait_for("data_received", 2)
    client.send(b"the next request")
    # Another server's connection waits as long as that one, and longer than it.
    other = recorder(connected=lambda socket: socket.close())
    connect(start(other))
    other.wait_removed()
    assert handler.of("connection_removed") == []
    go.set()
    handler.wait_removed()
    assert client.receive_until_end() == reply


class Endless(hydrogen.Stream):
    """A stream whose peer, as it looks, sends faster than anybody reads."""

    def __init__(self, fd):
        self.sock = stdlib_socket.socket(fileno=fd)
        self.kept = b""

    def recv(self):
        return [b"x"]

    def send(self, buf):
        self.kept += buf
        while self.kept:
            self.kept = self.kept[self.sock.send(self.kept) :]

    def shutdown(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(stdlib_socket.SHUT_RDWR)

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.sock.close()


@pytest.mark.clause("K8", "T2")
@pytest.mark.parametrize("size", [0, 10, 1 << 22], ids=["no output", "a little", "more than fits"])
def test_a_stream_that_always_has_something_to_be_read_can_be_closed(start, connect, size):
    def received(socket, data):
        if data == b"ask":
            socket.send(b"answer")
        elif socket.is_open:
            if size:
                socket.send(bytes(size))
            socket.close()

    first = []

    def opened(fd):
        first.append(fd)
        return Endless(fd) if len(first) == 1 else None

    handler = recorder(new_connection=opened, data_received=received)
    server = start(handler, max_threads=2)
    client = connect(server)
    handler.wait_for("data_received")
    neighbour = connect(server)
    for _ in range(3):
        neighbour.send(b"ask")
        assert neighbour.receive(6) == b"answer"
    assert client.receive_until_end() == bytes(size)
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.slow
@pytest.mark.clause("C25", "H25")
@pytest.mark.parametrize("family", ["tcp", "tls", "unix"])
def test_a_frame_that_does_not_end_is_removed_though_its_peer_sends_without_a_pause(
    start, tmp_path, family
):
    size = 1 << (27 if family == "tls" else 29)  # more than comes in that time
    done = threading.Event()
    options = options_of(family, str(tmp_path / "s"))
    options["framing"] = hydrogen.LengthFrameBuilder(max_size=size)
    handler = recorder()
    server = start(handler, **options, frame_timeout=0.1, max_threads=2)
    peer = connect_to(server, family)
    piece = bytes(1 << 16)

    def flood():
        left = size - 1
        peer.send(struct.pack(">I", size))
        with contextlib.suppress(OSError):
            while left and not done.is_set():
                peer.send(piece[:left])
                left -= len(piece[:left])

    with running(flood):
        try:
            error = handler.wait_removed()[0]
        finally:
            done.set()
            with contextlib.suppress(OSError):
                peer.client.sock.shutdown(stdlib_socket.SHUT_RDWR)
    peer.client.close()
    assert str(error).startswith("frame_timeout:")
    assert server.stats().bytes_received < size - 1, "the flood was over before the time"
