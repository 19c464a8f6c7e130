"""`Config.loops`: what is asked of a server is asked of all its loops, and its limits are those of
all together.

The Python engine has one loop, whatever is asked for: what holds for several holds for it, but for
whose worker a connection is served by.
"""

import collections
import contextlib
import threading

import pytest
from support import PATIENCE, Echo, echo, recorder, running, wait_event, wait_until

import hydrogen

LOOPS = 3


def name_of_worker(socket, data):
    socket.send(threading.current_thread().name.encode() + b"\n")


def worker_of(client):
    """Who serves a client of `name_of_worker`."""
    client.send(b"?")
    name = b""
    while not name.endswith(b"\n"):
        name += client.receive(1)
    return name


@pytest.mark.clause("C42")
def test_each_connection_goes_to_the_loop_that_has_the_fewest(start, connect, engine):
    server = start(recorder(data_received=name_of_worker), loops=LOOPS, max_threads=LOOPS)
    clients = [connect(server) for _ in range(2 * LOOPS)]
    served = [worker_of(client) for client in clients]
    if engine == "python":
        return
    assert list(collections.Counter(served).values()) == [2] * LOOPS
    # Two leave one loop, and the next two come there.
    for client, worker in zip(clients, served, strict=True):
        assert worker_of(client) == worker
        if worker == served[0]:
            client.close()
    wait_until(lambda: server.stats().connections == 2 * LOOPS - 2, "two are gone")
    for _ in range(2):
        assert worker_of(connect(server)) == served[0]


@pytest.mark.clause("C42")
def test_a_handler_that_blocks_keeps_the_workers_of_its_own_loop_only(start, connect, gate, engine):
    go = gate()

    def block(socket, data):
        wait_event(go, "let go")

    handler = recorder(
        data_received=lambda socket, data: (
            block(socket, data) if data == b"block" else socket.send(data)
        )
    )
    server = start(handler, loops=2, max_threads=2)
    blocked, other, waiting = (connect(server) for _ in range(3))
    wait_until(lambda: server.stats().connections == 3, "all are there")
    blocked.send(b"block")
    handler.wait_for("data_received")
    other.echo(b"x")
    waiting.send(b"y")
    other.echo(b"z")
    if engine == "compiled":
        assert [call.value for call in handler.of("data_received")] == [b"block", b"x", b"z"]
    go.set()
    assert waiting.receive(1) == b"y"


@pytest.mark.clause("C42")
def test_connections_of_other_loops_are_accepted_while_the_first_one_s_workers_block(
    start, connect, gate
):
    """Whoever polls for the first loop accepts for all."""
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(go, "let go") if data == b"block" else socket.send(data)
        )
    )
    server = start(handler, loops=2, max_threads=2)
    connect(server).send(b"block")
    handler.wait_for("data_received")
    connect(server).echo(b"served")


@pytest.mark.clause("C42")
def test_what_is_asked_of_the_server_is_asked_of_all_loops(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, loops=LOOPS)
    clients = [connect(server) for _ in range(2 * LOOPS)]
    for client in clients:
        client.echo(b"abc")
    calls = handler.wait_for("connected", len(clients))
    assert (
        {socket.id for socket in server.connections}
        == {call.id for call in calls}
        == set(range(1, len(clients) + 1))
    )
    excluded = server.connections[::2]
    assert server.broadcast(b"to some", exclude=iter(excluded)) == hydrogen.BroadcastReport(
        LOOPS, 0
    )
    names = {socket.peername for socket in excluded}
    for client in clients:
        if client.name not in names:
            assert client.receive(7) == b"to some"
    stats = server.stats()
    counted = (
        stats.accepted,
        stats.connections,
        stats.messages_received,
        stats.messages_sent,
        stats.bytes_received,
    )
    assert counted == (6, 6, 6, 9, 18)
    called = threading.Event()
    server.call_later(0.001, called.set)
    wait_event(called, "the call")
    server.connections[-1].abort()
    handler.wait_removed()
    for client in clients:
        client.close()
    report = server.stop(PATIENCE)
    assert (report.aborted, report.abandoned, report.unsent_bytes) == (0, 0, 0)
    assert len(handler.wait_removed(len(clients))) == len(clients)


@pytest.mark.clause("C42", "S36")
def test_a_broadcast_is_framed_once_for_all_loops(start, connect):
    class Counting(hydrogen.LineFrameBuilder):
        framed = 0

        def frame(self, payload):
            self.framed += 1
            if self.framed > 1:
                raise ValueError("once is enough")
            return super().frame(payload)

    framing = Counting()
    handler = recorder(connected=None)
    server = start(handler, framing=framing, loops=LOOPS, max_threads=LOOPS)
    clients = [connect(server) for _ in range(2 * LOOPS)]
    handler.wait_for("connected", 2 * LOOPS)
    assert server.broadcast(b"hello") == hydrogen.BroadcastReport(2 * LOOPS, 0)
    assert [client.receive(6) for client in clients] == [b"hello\n"] * (2 * LOOPS)
    with pytest.raises(ValueError, match="once is enough"):
        server.broadcast(b"again")
    assert framing.framed == 2


@pytest.mark.clause("C42", "K6")
def test_a_callback_sends_to_closes_and_resumes_connections_of_other_loops(start, connect):
    sockets = {}

    def introduce(socket, data):
        sockets[data] = socket
        socket.send(b"welcome")

    def on_data(socket, data):
        if data in (b"a", b"b", b"c"):
            introduce(socket, data)
        elif data == b"pause":
            for name in (b"b", b"c"):
                sockets[name].pause_reading()
            socket.send(b"paused.")
        elif data == b"resume":
            for name in (b"b", b"c"):
                sockets[name].send(b"resumed")
                sockets[name].resume_reading()
        else:
            sockets[b"a"].send(data)

    server = start(recorder(data_received=on_data), loops=LOOPS)
    clients = {}
    for name in (b"a", b"b", b"c"):
        clients[name] = connect(server)
        clients[name].send(name)
        assert clients[name].receive(7) == b"welcome"
    clients[b"a"].send(b"pause")
    assert clients[b"a"].receive(7) == b"paused."
    for name in (b"b", b"c"):
        clients[name].send(b"from " + name)
    clients[b"a"].send(b"resume")
    assert {clients[b"a"].receive(6), clients[b"a"].receive(6)} == {b"from b", b"from c"}
    for name in (b"b", b"c"):
        assert clients[name].receive(7) == b"resumed"


@pytest.mark.clause("C42", "C32")
def test_at_max_connections_over_all_loops_accepting_pauses(start, connect):
    server = start(Echo(), loops=LOOPS, max_connections=4)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.echo(b"x")
    waiting = connect(server)
    waiting.send(b"patient")
    wait_until(lambda: server.stats().accept_pauses == 1, "accepting is paused")
    for leaving in clients:
        leaving.close()
        if leaving is clients[0]:
            assert waiting.receive(7) == b"patient"
    wait_until(lambda: server.stats().connections == 1, "the others are gone")
    assert (server.stats().accepted, server.stats().removed_overload) == (5, 0)


@pytest.mark.clause("C42", "C33", "C35")
@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_ip"])
def test_what_is_more_than_a_limit_of_the_server_is_reset_whichever_loops_have_room(
    start, connect, limit
):
    server = start(Echo(), loops=LOOPS, overload="close", **{limit: 4})
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.echo(b"x")
    assert connect(server).at_end() == "reset"
    wait_until(lambda: server.stats().removed_overload == 1, "it is counted")
    clients[2].close()
    wait_until(lambda: server.stats().connections == 3, "one is gone")
    connect(server).echo(b"welcome")


@pytest.mark.clause("C42", "S13")
def test_a_callback_of_any_loop_may_stop_the_server(start, connect):
    for chosen in range(LOOPS):
        handler = recorder(data_received=lambda socket, data: socket.server.stop())
        server = start(handler, loops=LOOPS)
        clients = [connect(server) for _ in range(LOOPS)]
        wait_until(lambda server=server: server.stats().connections == LOOPS, "all are there")
        clients[chosen].send(b"stop")
        assert [client.at_end() for client in clients] == ["end"] * LOOPS
        for client in clients:
            client.close()
        assert server.wait(PATIENCE)
        assert {type(error) for error in handler.wait_removed(LOOPS)} == {hydrogen.ServerStopped}


@pytest.mark.clause("C42", "S15", "S23")
def test_what_a_stop_aborts_and_abandons_is_counted_over_all_loops(start, connect, gate):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler, loops=LOOPS, max_threads=LOOPS)
    clients = [connect(server) for _ in range(LOOPS)]
    for client in clients:
        client.send(b"x")
    handler.wait_for("data_received", LOOPS)
    report = server.stop(0.0)
    assert (report.closed, report.aborted, report.abandoned) == (0, 0, LOOPS)
    go.set()
    assert {type(error) for error in handler.wait_removed(LOOPS)} == {hydrogen.ServerStopped}


@pytest.mark.clause("C42", "S21")
@pytest.mark.parametrize("nth", range(2 * LOOPS))
def test_when_a_thread_does_not_start_nothing_is_left(start, monkeypatch, nth):
    """Each loop has a worker and a log thread to start."""
    started = threading.Thread.start
    left = nth

    def start_some(thread):
        nonlocal left
        if thread.name.startswith("hydrogen-"):
            if not left:
                raise RuntimeError("can't start new thread")
            left -= 1
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with contextlib.suppress(RuntimeError):
        start(Echo(), loops=LOOPS, max_threads=LOOPS)
        assert nth >= LOOPS, "the Python engine has fewer threads"


@pytest.mark.clause("C42", "K18")
def test_connections_that_come_and_go_while_all_loops_are_busy_get_their_own_bytes(start, connect):
    server = start(recorder(data_received=echo), loops=LOOPS, pre_allocated=0)

    def visit(number):
        for turn in range(30):
            with connect(server) as client:
                client.echo(b"%d of %d" % (turn, number) * 100)

    with running(*(lambda number=number: visit(number) for number in range(6))):
        pass
    wait_until(lambda: server.stats().connections == 0, "all are gone")
    assert server.stats().accepted == 180


@pytest.mark.clause("C43")
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"loops": 0}, ValueError),
        ({"loops": 65, "max_threads": 100}, ValueError),
        ({"loops": 3, "max_threads": 2}, ValueError),
        ({"loops": True}, TypeError),
        ({"loops": 2.0}, TypeError),
    ],
)
def test_wrong_loops_are_refused(options, error):
    with pytest.raises(error, match=r"^loops: "):
        hydrogen.Config(**options)


def test_64_loops_of_one_worker_each_serve(start, connect):
    server = start(Echo(), loops=64, max_threads=64, max_buffered=1, pre_allocated=1)
    for _ in range(70):
        connect(server).echo(b"x")
