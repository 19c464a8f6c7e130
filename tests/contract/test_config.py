"""What each field of Config does to a server, and to its connections."""

import os
import socket as stdlib_socket
import stat
import struct
import threading
import time
from contextlib import closing

import pytest
from families import connect_to, options_of
from support import PATIENCE, Echo, echo, recorder, running, simple, wait_event, wait_until

import hydrogen

LISTEN_BACKLOG_IN_TCP_INFO = 28
"""Offset of tcpi_sacked, which for a listening socket is its backlog (net/ipv4/tcp.c,
tcp_get_info).
"""


def options_of_a_connection(start, connect, *wanted, **config):
    """(level, name) -> value on an accepted connection."""
    found = []

    def connected(socket):
        with stdlib_socket.socket(fileno=os.dup(socket.fileno())) as accepted:
            found.extend(accepted.getsockopt(level, name) for level, name in wanted)

    connect(start(recorder(connected=connected, data_received=echo), **config)).echo(b"x")
    return found


@pytest.mark.clause("C9", "S18")
def test_a_unix_socket_serves_and_its_path_is_removed_at_the_stop(start, connect, tmp_path):
    path = str(tmp_path / "socket")
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, path=path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    client = connect(server)
    for _ in range(3):
        client.echo(os.urandom(500_000))
    assert handler.socket().sockname == path
    client.finish()
    assert client.receive_until_end() == b""
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    server.stop()
    assert not os.path.exists(path)


@pytest.mark.clause("C9", "C16")
def test_a_unix_socket_whose_peer_reads_slowly_gets_everything(start, connect, tmp_path):
    reply = os.urandom(6_000_000)
    handler = recorder(data_received=lambda socket, data: socket.send(reply))
    client = connect(start(handler, path=str(tmp_path / "socket")))
    client.send(b"x")
    wait_until(lambda: handler.calls and handler.socket().pending > 0, "the reply is blocked")
    assert client.receive(len(reply)) == reply
    client.send(b"again")
    assert client.receive(len(reply)) == reply


@pytest.mark.clause("C10")
@pytest.mark.parametrize("listening", [False, True], ids=["bound", "listening"])
def test_a_socket_that_exists_already_is_taken_over(start, connect, listening):
    sock = stdlib_socket.socket()
    sock.bind(("127.0.0.1", 0))
    if listening:
        sock.listen(5)
    address = sock.getsockname()
    server = start(Echo(), sock=sock)
    assert server.address == address
    connect(server).echo(b"x")
    connect(address).echo(b"y")


@pytest.mark.clause("C10")
def test_the_socket_taken_over_is_closed_at_the_stop(start, tmp_path):
    sock = stdlib_socket.socket(stdlib_socket.AF_UNIX)
    sock.bind(str(tmp_path / "socket"))
    server = start(Echo(), sock=sock)
    assert server.address == str(tmp_path / "socket")
    server.stop()
    assert sock.fileno() == -1


@pytest.mark.clause("C11")
def test_backlog_is_that_of_the_listening_socket(start):
    fds = []
    start(recorder(server_created=fds.append), backlog=7)
    with stdlib_socket.socket(fileno=os.dup(fds[0])) as listener:
        info = listener.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, 104)
    assert struct.unpack_from("I", info, LISTEN_BACKLOG_IN_TCP_INFO) == (7,)


@pytest.mark.clause("C12")
def test_reuse_port_lets_two_servers_share_a_port(start, connect):
    first = start(Echo(), reuse_port=True)
    with closing(stdlib_socket.socket()) as probe, pytest.raises(OSError, match="in use"):
        probe.bind(first.address)
    second = start(Echo(), addr=first.address[0], port=first.address[1], reuse_port=True)
    clients = [connect(first) for _ in range(40)]
    for client in clients:
        client.echo(b"x")
    counts = (first.stats().accepted, second.stats().accepted)
    assert sum(counts) == 40
    assert min(counts) > 0  # 2 ** -39 is the chance of it


@pytest.mark.clause("C13")
@pytest.mark.parametrize("nodelay", [True, False])
def test_nodelay_is_set_on_each_connection(start, connect, nodelay):
    wanted = (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY)
    assert options_of_a_connection(start, connect, wanted, nodelay=nodelay) == [int(nodelay)]


KEEPALIVE = (
    (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPIDLE),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPINTVL),
    (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_KEEPCNT),
)


@pytest.mark.clause("C14")
def test_keepalive_is_set_on_each_connection(start, connect):
    assert options_of_a_connection(start, connect, *KEEPALIVE) == [1, 60, 10, 6]
    assert options_of_a_connection(start, connect, *KEEPALIVE, keepalive=(7, 8, 9)) == [1, 7, 8, 9]
    assert options_of_a_connection(start, connect, KEEPALIVE[0], keepalive=None) == [0]


@pytest.mark.clause("C15")
def test_socket_options_are_set_on_each_connection(start, connect):
    linger = (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER)
    mark = (stdlib_socket.IPPROTO_IP, stdlib_socket.IP_TOS)
    options = [(*mark, 0x10), (*linger, struct.pack("ii", 1, 7))]
    seen = []

    def connected(socket):
        with stdlib_socket.socket(fileno=os.dup(socket.fileno())) as accepted:
            seen.append((accepted.getsockopt(*mark), accepted.getsockopt(*linger, 8)))

    server = start(recorder(connected=connected, data_received=echo), socket_options=options)
    for _ in range(2):
        connect(server).echo(b"x")
    assert seen == [(0x10, struct.pack("ii", 1, 7))] * 2


@pytest.mark.clause("C15")
def test_a_close_that_so_linger_would_delay_keeps_no_worker(start, connect):
    """The peer has ended its side, and reads nothing of what the kernel holds for it."""
    linger = (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 3600))

    def received(socket, data):
        if data == b"much":
            socket.send(bytes(1 << 16))
            socket.close()
        else:
            socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, socket_options=[linger], max_threads=1)
    client, other = connect(server, receive_buffer=2048), connect(server)
    client.send(b"much")
    client.finish()
    handler.wait_removed()
    other.echo(b"served")


@pytest.mark.clause("C15", "H6")
@pytest.mark.parametrize("name", ["connected", "new_connection", "data_received"])
def test_a_socket_option_that_the_kernel_refuses_removes_the_connection_with_its_error(
    start, connect, name
):
    """And it is not told of as one that was open, whichever callbacks there are."""
    handler = recorder(**{name: None})
    server = start(handler, socket_options=[(stdlib_socket.IPPROTO_TCP, 9999, 1)])
    assert connect(server).at_end() in ("end", "reset")
    (error,) = handler.wait_removed()
    assert isinstance(error, OSError)
    assert error.errno == 92  # ENOPROTOOPT
    assert handler.names() == ["on_connection_removed"]
    wait_until(lambda: server.stats().removed_os_error == 1, "it is counted")


@pytest.mark.clause("C16", "H12")
def test_above_the_high_watermark_a_connection_is_not_read_and_below_the_low_one_it_is_again(
    start, connect
):
    big = bytes(8 << 20)

    def received(socket, data):
        if data == b"big":
            socket.send(big)

    handler = recorder(data_received=received, writable=lambda socket: socket.send(b"writable"))
    server = start(handler, framing=None, write_buffer_limits=(1000, 100_000))
    client, other = connect(server, receive_buffer=65_536), connect(server)
    client.send(b"big")
    socket = wait_until(lambda: handler.calls and handler.socket(), "the request came")
    wait_until(lambda: 100_000 < socket.pending < len(big), "the reply is blocked")
    client.send(b"more")
    for count in range(1, 4):  # the neighbour is served, so the loop went round
        other.send(b"other")
        handler.wait(
            lambda count=count: handler.data().count(b"other") == count, "the neighbour is served"
        )
    assert handler.messages(socket.id) == [b"big"]
    assert handler.of("writable") == []
    assert client.receive(len(big)) == big
    assert client.receive(8) == b"writable"
    handler.wait(lambda: handler.data(socket.id) == b"bigmore", "what was held back is delivered")
    assert len(handler.of("writable")) == 1


@pytest.mark.clause("H12")
def test_on_writable_comes_to_who_has_seen_more_than_the_high_watermark(start, connect):
    """However briefly: another thread sends, and the kernel takes all of it."""
    handler = recorder(connected=None, writable=None)
    client = connect(start(handler, write_buffer_limits=(100_000, 200_000)))
    socket = handler.wait_for("connected")[0].socket
    done, seen, sent = threading.Event(), [], []

    def send():
        while not done.is_set():
            sent.append(socket.send(bytes(300_000)))
            assert len(client.receive(300_000)) == 300_000

    with running(send):
        until = time.monotonic() + PATIENCE
        while not seen and time.monotonic() < until:
            before = len(handler.of("writable"))
            if socket.pending > 200_000:
                seen.append(before)
        done.set()
    handler.wait_for("writable", seen[0] + 1)


@pytest.mark.clause("H12")
def test_on_writable_does_not_come_when_the_peer_reads(start, connect):
    handler = recorder(data_received=echo, writable=None)
    client = connect(start(handler))
    for _ in range(50):
        client.echo(b"x" * 100)
    assert handler.of("writable") == []


@pytest.mark.clause("C17", "K3")
@pytest.mark.parametrize("family", ["tcp", "tls"])
def test_what_a_callback_sends_counts_for_max_write_buffer_only_if_the_peer_does_not_take_it(
    start, family
):
    sent = []

    def respond(socket, data):
        if data == b"go":
            sent.extend([socket.send(bytes(1500)) for _ in range(3)])
        else:
            socket.send(data)

    handler = recorder(data_received=respond)
    options = options_of(family, "")
    peer = connect_to(start(handler, max_write_buffer=2000, **options), family)
    peer.send(b"first\n")
    assert peer.receive(6) == b"first\n"  # nothing of the handshake is being written any more
    peer.send(b"go\n")
    assert peer.receive(3 * 1501) == (bytes(1500) + b"\n") * 3
    wait_until(lambda: sent == [True] * 3, "all are accepted")
    peer.close()


@pytest.mark.clause("C17", "H20", "K3")
def test_a_send_while_max_write_buffer_is_pending_removes_the_slow_consumer(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1_000_000, write_buffer_limits=(10_000, 100_000))
    client = connect(server, receive_buffer=4096)
    socket = handler.socket()
    assert socket.send(bytes(8 << 20))  # one message may be larger
    assert socket.pending >= 1_000_000
    assert socket.send(b"one too many") is False
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    assert socket.is_open is False
    assert client.at_end() == "reset"
    wait_until(lambda: server.stats().removed_slow_consumer == 1, "it is counted")


@pytest.mark.clause("C18", "H20")
def test_above_max_buffered_the_connection_with_the_most_pending_output_goes(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, max_buffered=16 << 20)
    clients = [connect(server, receive_buffer=4096) for _ in range(4)]
    handler.wait_for("connected", 4)
    by_name = {call.socket.peername: call.socket for call in handler.of("connected")}
    sockets = [by_name[client.name] for client in clients]
    for socket, size in zip(sockets, (2 << 20, 14 << 20, 1 << 20, 12 << 20), strict=True):
        assert socket.send(bytes(size))
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    assert [socket.is_open for socket in sockets] == [True, False, True, True]
    assert clients[1].at_end() == "reset"
    assert clients[0].receive(2 << 20) == bytes(2 << 20)
    clients[0].echo(b"still served")
    assert len(handler.of("connection_removed")) == 1


@pytest.mark.clause("C18")
def test_above_max_buffered_nothing_is_read_until_room_is_made(start, connect, gate):
    """The one with the most output is the only one, so it goes, and the input that was held back is
    delivered.
    """
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, max_buffered=1 << 20)
    slow = connect(server, receive_buffer=4096)
    other = connect(server)
    handler.wait_for("connected", 2)
    (socket,) = [
        call.socket for call in handler.of("connected") if call.socket.peername == slow.name
    ]
    assert socket.send(bytes(6 << 20))
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    for _ in range(5):
        other.echo(b"served")


@pytest.mark.clause("C18")
def test_input_that_is_not_delivered_counts_too_and_reading_goes_on_when_it_is_gone(start, connect):
    """Unfinished frames fill the server's memory. Nothing is read until some of them are gone, be
    it that an engine removes them.
    """
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, max_buffered=100_000)
    neighbour = connect(server)
    neighbour.echo(simple(b"before"))
    unfinished = [connect(server) for _ in range(3)]
    for client in unfinished:
        client.send(simple(bytes(60_000))[:-1])
    wait_until(
        lambda: server.stats().queued_bytes >= 100_000 or server.stats().removed,
        "the limit is reached",
    )
    neighbour.send(simple(b"held back"))
    for client in unfinished:
        client.reset()
    assert neighbour.receive_frame() == b"held back"
    assert {type(error) for error in handler.wait_removed(3)} <= {
        ConnectionResetError,
        hydrogen.SlowConsumer,
    }
    neighbour.echo(simple(bytes(60_000)))


@pytest.mark.clause("C19")
@pytest.mark.parametrize("framing", [None, hydrogen.SimpleFrameBuilder], ids=["raw", "frames"])
def test_a_connection_with_much_input_does_not_keep_the_others_waiting(
    start, connect, gate, framing
):
    """One worker, held until both have sent: the one message is delivered before the last of the
    many.
    """
    go = gate()

    def received(socket, data):
        if data == b"hold":
            wait_event(go, "let go")

    handler = recorder(data_received=received)
    server = start(handler, framing=framing, max_threads=1, read_budget=4096)
    frame = simple if framing else bytes
    holder, much, little = (connect(server) for _ in range(3))
    holder.send(frame(b"hold"))
    handler.wait_for("data_received")
    many = frame(b"m" * 20) * 2000
    much.send(many)
    little.send(frame(b"little"))
    wait_until(
        lambda: much.unacknowledged() == little.unacknowledged() == 0,
        "the server's kernel has both",
    )
    go.set()
    handler.wait(
        lambda: handler.data().count(b"m") == 40_000 and b"little" in handler.data(),
        "all is delivered",
    )
    before = handler.messages()[: handler.messages().index(b"little")]
    assert b"".join(before).count(b"m") < 40_000


@pytest.mark.clause("C6", "H22")
@pytest.mark.parametrize("max_threads", [1, 3])
def test_no_more_handlers_run_at_once_than_max_threads(start, connect, gate, max_threads):
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (wait_event(go, "let go"), socket.send(data))
    )
    server = start(handler, max_threads=max_threads)
    clients = [connect(server) for _ in range(6)]
    for client in clients:
        client.send(b"x")
    handler.wait_for("data_received", max_threads)
    wait_until(lambda: server.stats().accepted == 6, "all were accepted meanwhile")
    assert len(handler.of("data_received")) == max_threads
    go.set()
    for client in clients:
        assert client.receive(1) == b"x"


@pytest.mark.clause("C21")
@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_each_handoff_policy_serves_many_clients(start, connect, handoff):
    server = start(Echo(), handoff=handoff, framing=hydrogen.SimpleFrameBuilder)
    clients = [connect(server) for _ in range(16)]

    def converse(client):
        for number in range(50):
            client.send(simple(b"%d" % number) * 3)
            assert [client.receive_frame() for _ in range(3)] == [b"%d" % number] * 3

    with running(*(lambda client=client: converse(client) for client in clients)):
        pass
    assert server.stats().messages_received == 16 * 150
