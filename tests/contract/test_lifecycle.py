"""Start, stop, abort, and what a server says of itself meanwhile."""

import dataclasses
import os
import socket as stdlib_socket
import threading

import pytest
from support import (
    PATIENCE,
    Client,
    Echo,
    echo,
    open_fds,
    recorder,
    running,
    threads,
    wait_event,
    wait_until,
)

import hydrogen


def make(engine, handler=None, **options):
    """A server that is not started."""
    return hydrogen.Server(handler or Echo(), hydrogen.Config(port=0, **options), engine=engine)


@pytest.mark.clause("S5", "S20", "S17", "C5")
def test_serve_returns_a_started_server_and_options_replace_fields(start, connect, engine):
    config = hydrogen.Config(port=1, max_threads=3)
    server = start(Echo(), config=config, port=0)
    assert server.ready
    assert server.engine == engine
    assert server.config == dataclasses.replace(config, port=0, max_threads=4, pre_allocated=16)
    assert server.address[0] == "127.0.0.1"
    assert server.address[1] > 1
    connect(server).echo(b"x")


@pytest.mark.clause("S6")
def test_with_starts_and_stops(engine):
    with make(engine) as server:
        assert server.ready
        with Client(server.address) as client:
            client.echo(b"x")
    assert server.wait(0)
    with hydrogen.serve(Echo(), port=0, engine=engine) as server:
        assert server.ready
    assert server.wait(0)


@pytest.mark.clause("S7", "S17", "S18", "S26")
def test_a_server_opens_nothing_before_its_start(engine):
    fds, tasks = open_fds(), threads()
    server = make(engine)
    assert open_fds() == fds
    assert threads() <= tasks
    assert not server.ready
    assert server.address is None
    assert server.addresses == []
    assert server.connections == []
    assert server.stats() == hydrogen.Stats()
    assert not server.wait(0)


@pytest.mark.clause("S28")
def test_a_stop_before_the_start_reports_nothing_and_wrong_timeouts_raise(engine):
    server = make(engine)
    assert server.stop() == hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)
    for wrong in ("1", True, [1]):
        with pytest.raises(TypeError, match="timeout"):
            server.stop(wrong)
    for wrong in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            server.stop(wrong)


@pytest.mark.clause("S18")
def test_the_address_is_what_getsockname_gives(start, connect, tmp_path):
    server = start(Echo())
    client = connect(server)
    assert server.address == client.sock.getpeername()
    assert server.addresses == [server.address]
    path = str(tmp_path / "socket")
    server = start(Echo(), path=path)
    assert server.address == path
    assert server.addresses == [path]


@pytest.mark.clause("S8")
def test_stop_refuses_new_connections(start, connect, gate):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    handler.wait_for("data_received")
    with running(lambda: server.stop(PATIENCE)):
        wait_until(lambda: not server.ready, "stopping has begun")

        def refused():
            try:
                Client(server.address).close()
            except ConnectionRefusedError:
                return True

        wait_until(refused, "new connections are refused")
        client.close()
        go.set()


@pytest.mark.clause("S9", "S10", "S23")
def test_stop_lets_callbacks_finish_and_their_replies_leave(start, connect, gate):
    go = gate()
    reply = os.urandom(1_000_000)

    def received(socket, data):
        wait_event(go, "let go")
        assert socket.send(reply)

    handler = recorder(data_received=received)
    server = start(handler)
    clients = [connect(server) for _ in range(3)]
    reports = []
    for client in clients:
        client.send(b"early")
    handler.wait_for("data_received", 3)
    with running(lambda: reports.append(server.stop(PATIENCE))):
        wait_until(lambda: not server.ready, "stopping has begun")
        go.set()
        for client in clients:
            assert client.receive_until_end() == reply
            client.close()
    assert len(handler.wait_removed(3)) == 3
    (report,) = reports
    assert (report.closed, report.aborted, report.abandoned, report.unsent_bytes) == (3, 0, 0, 0)
    assert report.refused == 0
    assert report.seconds > 0
    assert {type(error) for error in handler.wait_removed(3)} == {hydrogen.ServerStopped}


@pytest.mark.clause("S10", "H20")
def test_stop_flushes_what_is_queued(start, connect):
    reply = os.urandom(8_000_000)
    handler = recorder(data_received=lambda socket, data: socket.send(reply))
    server = start(handler)
    client = connect(server, receive_buffer=65_536)
    client.send(b"x")
    wait_until(lambda: handler.calls and handler.socket().pending > 0, "a reply is queued")
    reports = []
    with running(lambda: reports.append(server.stop(PATIENCE))):
        assert client.receive_until_end() == reply
        client.close()
    assert reports[0].closed == 1
    assert isinstance(handler.wait_removed()[0], hydrogen.ServerStopped)
    assert server.stats().removed_server_stopped == 1


@pytest.mark.clause("S11", "S23", "C20")
@pytest.mark.parametrize("by_config", [True, False], ids=["config", "argument"])
def test_at_the_timeout_the_rest_is_aborted(start, connect, by_config):
    handler = recorder(data_received=lambda socket, data: socket.send(bytes(8 << 20)))
    server = start(handler, stop_timeout=0.05 if by_config else PATIENCE)
    client = connect(server, receive_buffer=4096)
    client.send(b"x")
    wait_until(lambda: handler.calls and handler.socket().pending > 0, "a reply is queued")
    report = server.stop() if by_config else server.stop(0.05)
    assert (report.closed, report.aborted, report.abandoned) == (0, 1, 0)
    assert 0 < report.unsent_bytes <= 8 << 20
    assert client.at_end() == "reset"
    assert isinstance(handler.wait_removed()[0], hydrogen.ServerStopped)


@pytest.mark.clause("S12", "S23", "S24")
def test_a_handler_that_still_blocks_is_abandoned_and_its_connection_removed_when_it_returns(
    start, connect, gate
):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    handler.wait_for("data_received")
    report = server.stop(0.01)
    assert (report.closed, report.aborted, report.abandoned) == (0, 0, 1)
    assert server.wait(0)
    assert handler.of("connection_removed") == []
    assert server.stats().connections == 1
    go.set()
    assert isinstance(handler.wait_removed()[0], hydrogen.ServerStopped)
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert client.at_end() == "reset"


HOW_ONE_ENDS = ("left", "aborted itself")


def blocks_at_its_end(go, **hooks):
    """A handler that blocks in the last callback of a connection that the peer closes, or after its
    own `abort`.
    """

    def received(socket, data):
        if data == b"abort":
            socket.abort()
            wait_event(go, "let go")
        else:
            socket.send(bytes(8 << 20))

    def disconnected(socket, error):
        if isinstance(error, hydrogen.PeerClosed):
            wait_event(go, "let go")

    return recorder(data_received=received, disconnected=disconnected, **hooks)


def one_ends_and_one_does_not_read(server, handler, connect, how):
    one, other = connect(server), connect(server, receive_buffer=4096)
    if how == "left":
        one.close()
        handler.wait_for("disconnected")
    else:
        one.send(b"abort")
        handler.wait_for("data_received")
    other.send(b"big")
    wait_until(lambda: any(socket.pending for socket in server.connections), "a reply is queued")


@pytest.mark.clause("S12", "S23", "C42")
@pytest.mark.parametrize("loops", [1, 3])
@pytest.mark.parametrize("how", HOW_ONE_ENDS)
def test_one_that_had_ended_by_itself_and_is_abandoned_hides_no_reset(
    start, connect, gate, how, loops
):
    go = gate()
    handler = blocks_at_its_end(go)
    server = start(handler, loops=loops, max_threads=2 * loops)
    one_ends_and_one_does_not_read(server, handler, connect, how)
    report = server.stop(0.01)
    assert (report.closed, report.aborted, report.abandoned) == (0, 1, 1)
    assert report.unsent_bytes > 0
    go.set()
    handler.wait_removed(2)


@pytest.mark.clause("S12", "S23")
def test_one_that_is_reset_at_the_timeout_and_abandoned_counts_once(start, connect, gate):
    """Of three one is gone after its reset; one is in a callback, one in its last."""
    go = gate()

    def disconnected(socket, error):
        if socket.user_data == b"last":
            wait_event(go, "let go")

    def received(socket, data):
        socket.user_data = data
        if data == b"block":
            wait_event(go, "let go")
        else:
            socket.send(bytes(8 << 20))

    handler = recorder(data_received=received, disconnected=disconnected)
    server = start(handler)
    for data in (b"block", b"last", b"big"):
        connect(server, receive_buffer=4096).send(data)
    handler.wait_for("data_received", 3)
    wait_until(lambda: [s.pending > 0 for s in server.connections].count(True) == 2, "queued")
    report = server.stop(0.01)
    assert (report.closed, report.aborted, report.abandoned) == (0, 1, 2)
    go.set()
    handler.wait_removed(3)


@pytest.mark.clause("S12", "S23")
@pytest.mark.parametrize("how", HOW_ONE_ENDS)
def test_one_that_had_ended_by_itself_is_closed_though_its_callback_outlasts_the_timeout(
    start, connect, gate, how
):
    """It comes out of it when the other one has been reset, before anybody is abandoned."""
    go = gate()

    def removed(fd, error):
        if isinstance(error, hydrogen.ServerStopped):
            go.set()

    handler = blocks_at_its_end(go, connection_removed=removed)
    server = start(handler)
    one_ends_and_one_does_not_read(server, handler, connect, how)
    report = server.stop(0.01)
    assert (report.closed, report.aborted, report.abandoned) == (1, 1, 0)


@pytest.mark.clause("S13")
@pytest.mark.parametrize("where", ["connected", "data_received", "disconnected"])
def test_stop_from_a_callback_requests_it_and_returns_at_once(start, connect, where):
    reports = []

    def stop(socket, *more):
        reports.append(socket.server.stop(PATIENCE))

    handler = recorder(**{where: stop})
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    client.close()
    assert server.wait(PATIENCE)
    assert reports == [hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)] * len(reports)
    assert reports
    assert server.stop().abandoned == 0


@pytest.mark.clause("S14", "S16")
def test_all_who_stop_get_the_same_report(start, connect, gate):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    handler.wait_for("data_received")
    reports = []
    with running(*[lambda: reports.append(server.stop(PATIENCE))] * 4):
        wait_until(lambda: not server.ready, "stopping has begun")
        assert not server.wait(0)
        client.close()
        go.set()
    assert len(reports) == 4
    assert set(reports) == {server.stop()}
    assert server.wait(0)


@pytest.mark.clause("S15")
def test_abort_resets_every_connection(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    clients = [connect(server) for _ in range(10)]
    handler.wait_for("connected", 10)
    server.abort()
    assert [client.at_end() for client in clients] == ["reset"] * 10
    assert {type(error) for error in handler.wait_removed(10)} == {hydrogen.ServerStopped}
    report = server.stop()
    assert report.closed + report.aborted == 10
    assert report.abandoned == 0


@pytest.mark.clause("S15")
def test_abort_cuts_a_stop_short(start, connect):
    handler = recorder(data_received=lambda socket, data: socket.send(bytes(8 << 20)))
    server = start(handler)
    client = connect(server, receive_buffer=4096)
    client.send(b"x")
    wait_until(lambda: handler.calls and handler.socket().pending > 0, "a reply is queued")
    reports = []
    with running(lambda: reports.append(server.stop(3600))):
        wait_until(lambda: not server.ready, "stopping has begun")
        server.abort()
    assert (reports[0].closed, reports[0].aborted) == (0, 1)
    assert client.at_end() == "reset"


@pytest.mark.clause("S21")
def test_starting_twice_raises_and_leaves_nothing_open(start, connect, engine):
    server = start(Echo())
    fds, tasks = open_fds(), threads()
    with pytest.raises(RuntimeError):
        server.start()
    assert open_fds() == fds
    assert threads() <= tasks
    connect(server).echo(b"still there")
    stopped = make(engine)
    stopped.start()
    stopped.stop()
    with pytest.raises(RuntimeError):
        stopped.start()


@pytest.mark.clause("S22")
def test_a_busy_address_raises_at_once_and_leaves_nothing_open(start, engine):
    server = start(Echo())
    fds, tasks = open_fds(), threads()
    with pytest.raises(OSError, match=str(server.address[1])) as raised:
        hydrogen.serve(Echo(), port=server.address[1], engine=engine)
    assert raised.value.errno == 98
    assert open_fds() == fds
    wait_until(lambda: threads() <= tasks, "no thread is left")


@pytest.mark.clause("S19")
def test_connections_is_a_snapshot_of_the_open_ones(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    assert server.connections == []
    clients = [connect(server) for _ in range(3)]
    handler.wait_for("connected", 3)
    snapshot = server.connections
    assert {socket.peername for socket in snapshot} == {client.name for client in clients}
    assert all(isinstance(socket, hydrogen.HydrogenSocket) for socket in snapshot)
    clients[0].close()
    handler.wait_removed()
    wait_until(lambda: len(server.connections) == 2, "the closed one is missing")
    assert len(snapshot) == 3
    for socket in server.connections:
        socket.send(b"hello")
    assert [client.receive(5) for client in clients[1:]] == [b"hello"] * 2


@pytest.mark.clause("S24", "S26")
def test_stats_count_connections_messages_and_bytes(start, connect):
    server = start(Echo(), framing=hydrogen.SimpleFrameBuilder)
    assert server.stats() == dataclasses.replace(hydrogen.Stats(), **volatile(server.stats()))
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        for _ in range(5):
            client.echo(b"\x01\x00\x05hello\x17")
    stats = wait_until(
        lambda: (stats := server.stats()).bytes_sent == 180 and stats, "the bytes are counted"
    )
    assert (stats.connections, stats.accepted, stats.removed) == (4, 4, 0)
    assert (stats.messages_received, stats.messages_sent, stats.messages_refused) == (20, 20, 0)
    assert (stats.bytes_received, stats.bytes_sent) == (180, 180)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.accepted = 5
    for client in clients:
        client.close()
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    server.stop()
    assert server.stats().removed_peer_closed == 4
    assert server.stats().bytes_received == 180


def volatile(stats):
    """The counters of what threads do on their own."""
    names = (
        "polls",
        "iterations",
        "handoffs",
        "stalls",
        "gil_acquisitions",
        "gil_wait_seconds",
        "buffer_allocations",
    )
    return {name: getattr(stats, name) for name in names}


@pytest.mark.clause("P1", "C6", "H22")
def test_the_workers_are_daemon_threads_and_as_many_with_a_thousand_connections_as_with_one(
    start, connect
):
    seen = []

    def received(socket, data):
        thread = threading.current_thread()
        seen.append(
            (thread.name.rpartition("-")[0], thread.daemon, thread in threading.enumerate())
        )
        socket.send(data)

    server = start(recorder(data_received=received), max_threads=3)
    connect(server).echo(b"x")
    with_one = len(threads())
    assert seen == [("hydrogen-worker", True, True)]
    clients = [connect(server) for _ in range(200)]
    for client in clients:
        client.send(b"x")
    for client in clients:
        assert client.receive(1) == b"x"
    assert len(threads()) <= with_one + 3  # workers that were not needed before


@pytest.mark.clause("C7")
def test_pre_allocated_is_not_a_limit(start, connect):
    server = start(Echo(), pre_allocated=0)
    clients = [connect(server) for _ in range(50)]
    for client in clients:
        client.echo(b"x")
    assert server.stats().connections == 50


@pytest.mark.clause("S20", "S16")
def test_several_servers_run_at_once(start, connect):
    servers = [
        start(recorder(data_received=lambda socket, data, n=n: socket.send(b"%d" % n)))
        for n in range(4)
    ]
    for number, server in enumerate(servers):
        client = connect(server)
        client.send(b"?")
        assert client.receive(1) == b"%d" % number
        client.close()
    servers[0].stop()
    assert servers[0].wait()
    assert [server.ready for server in servers] == [False, True, True, True]


@pytest.mark.clause("C4", "C5")
@pytest.mark.parametrize(
    ("addr", "family"), [("127.0.0.1", "AF_INET"), ("::1", "AF_INET6"), ("localhost", None)]
)
def test_addr_is_an_address_or_a_name(start, connect, addr, family):
    server = start(Echo(), addr=addr)
    client = connect(server)
    assert family is None or client.sock.family == getattr(stdlib_socket, family)
    client.echo(b"x")
