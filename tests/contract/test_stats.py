"""Each field of Stats is moved by something that is counted outside as well. The last test sees to
it that none is missing.
"""

import dataclasses
import inspect
import threading

import pytest
from certificates import client_context, server_context
from families import PassThrough
from support import (
    PATIENCE,
    Client,
    Echo,
    TlsClient,
    echo,
    length_frame,
    recorder,
    running,
    settled,
    simple,
    wait_event,
    wait_until,
)
from websocket_peers import PING, head, peer_of, ping, pong, text
from websocket_peers import recorder as websockets

import hydrogen
from hydrogen.watchdog import has_gil

SHORT = 0.3
"""Seconds of the deadlines that are to pass."""

BIG = bytes(8 << 20)
"""More than the kernel takes for a peer that does not read."""

TEN = b"ten bytes."

MOVED = {}
"""Field -> the tests that move it."""


def moves(*fields):
    """The test that follows moves these fields, and no other test needs to."""

    def mark(test):
        for field in fields:
            MOVED.setdefault(field, []).append(test.__name__)
        return test

    return mark


def becomes(server, **expected):
    """Wait until the counters are these, and see that they stay so while others are asked for."""
    wait_until(
        lambda: {name: getattr(server.stats(), name) for name in expected} == expected,
        f"{expected}; there is {server.stats()}",
    )


def raising(error):
    def hook(*args):
        raise error

    return hook


# --------------------------------------------------------------------- connections and why they end


@moves("connections", "accepted")
@pytest.mark.clause("S49", "S24", "S48")
def test_connections_go_up_and_down_and_accepted_only_up(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    for round in range(1, 4):
        clients = [connect(server) for _ in range(5)]
        handler.wait_for("connected", 5 * round)
        becomes(server, connections=5, accepted=5 * round, removed=5 * (round - 1))
        for client in clients:
            client.close()
        becomes(server, connections=0, accepted=5 * round, removed=5 * round)
    assert len(handler.of("connection_removed")) == 15


@pytest.mark.clause("S24", "C42")
@pytest.mark.parametrize("loops", [1, 2])
@pytest.mark.parametrize("callbacks", [True, False], ids=["last callbacks", "none"])
def test_accepted_is_connections_and_removed_in_each_snapshot_while_they_come_and_go(
    start, callbacks, loops
):
    """But for those that are in their last callbacks: at most one for each worker."""
    workers, rounds = 4, 400
    server = start(recorder(data_received=echo) if callbacks else Echo(), loops=loops)
    snapshots = []

    def come_and_go():
        for _ in range(rounds):
            with Client(server.address) as client:
                client.echo(b"x")

    with running(*[come_and_go] * workers) as clients:
        while any(client.is_alive() for client in clients):
            snapshots.append(server.stats())
    found = {stats.connections + stats.removed - stats.accepted for stats in snapshots}
    assert found <= set(range(workers + 1)), found


def peer_closes(handler, connect, server):
    connect(server).close()


def resets(handler, connect, server):
    connect(server).reset()


def says(data, *, reads=True, **options):
    """A client that sends something, and reads until the end that comes of it."""

    def cause(handler, connect, server):
        client = connect(server, **options)
        client.send(data)
        if reads:
            client.at_end()
            client.close()

    return cause


def comes(handler, connect, server):
    """A client that only connects."""
    connect(server)


def sends_too_much(socket, data):
    socket.send(BIG)
    socket.send(BIG)


CAUSES = {
    "removed_peer_closed": (peer_closes, {}, {}),
    "removed_local_closed": (
        says(b"x"),
        {"data_received": lambda socket, data: socket.abort()},
        {},
    ),
    "removed_slow_consumer": (
        says(b"x", reads=False, receive_buffer=4096),
        {"data_received": sends_too_much},
        {"max_write_buffer": 1000},
    ),
    "removed_handler_error": (
        says(b"x"),
        {"data_received": raising(ZeroDivisionError("mine"))},
        {},
    ),
    "removed_reject": (comes, {"new_connection": raising(hydrogen.Reject())}, {}),
    "removed_protocol_error": (says(b"no frame"), {}, {"framing": hydrogen.SimpleFrameBuilder}),
    "removed_open_timeout": (comes, {}, {"ssl": server_context, "open_timeout": SHORT}),
    "removed_idle_timeout": (comes, {}, {"idle_timeout": SHORT}),
    "removed_frame_timeout": (
        says(simple(b"x")[:-1]),
        {},
        {"framing": hydrogen.SimpleFrameBuilder, "frame_timeout": SHORT},
    ),
    "removed_write_timeout": (
        says(b"x", reads=False, receive_buffer=4096),
        {"data_received": lambda socket, data: socket.send(BIG)},
        {"write_timeout": SHORT},
    ),
    "removed_tls_error": (says(b"no handshake, but plain text\r\n"), {}, {"ssl": server_context}),
    "removed_os_error": (resets, {}, {}),
}


def removals(stats):
    """Of each cause that has removed something, how often."""
    counts = {
        field.name: getattr(stats, field.name)
        for field in dataclasses.fields(stats)
        if field.name.startswith("removed_")
    }
    return {name: count for name, count in counts.items() if count}


@moves(*CAUSES)
@pytest.mark.clause("S49", "S24", "H20")
@pytest.mark.parametrize(
    "field",
    [pytest.param(field, marks=[pytest.mark.slow] * ("timeout" in field)) for field in CAUSES],
)
def test_a_removal_is_counted_by_its_cause_and_by_no_other(start, connect, error_log, field):
    cause, hooks, options = CAUSES[field]
    handler = recorder(**hooks)
    server = start(
        handler,
        **{name: value() if value is server_context else value for name, value in options.items()},
    )
    for _ in range(3):
        cause(handler, connect, server)
    handler.wait_removed(3)
    wait_until(
        lambda: removals(server.stats()) == {field: 3},
        f"{field} is 3, and nothing else; there is {server.stats()}",
    )
    becomes(server, accepted=3, connections=0, removed=3)
    stats = server.stats()
    assert stats.removed_timeout == (3 if "timeout" in field else 0)
    assert bool(error_log()) == (field == "removed_handler_error")


@moves("removed_server_stopped")
@pytest.mark.clause("S49", "S10", "S26")
def test_those_that_a_stop_removes_are_counted_as_such(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    clients = [connect(server) for _ in range(4)]
    handler.wait_for("connected", 4)
    clients.pop().close()
    handler.wait_removed()
    with running(lambda: server.stop(PATIENCE)):
        for client in clients:
            client.at_end()
            client.close()
    assert removals(server.stats()) == {"removed_peer_closed": 1, "removed_server_stopped": 3}


@moves("removed_overload")
@pytest.mark.clause("S49", "C33", "C35")
@pytest.mark.parametrize(
    "options",
    [{"max_connections": 2, "overload": "close"}, {"max_connections_per_ip": 2}],
    ids=["all", "address"],
)
def test_those_that_are_turned_away_are_counted_and_the_handler_hears_nothing_of_them(
    start, connect, options
):
    handler = recorder(connected=None)
    server = start(handler, **options)
    for _ in range(2):
        connect(server)
    handler.wait_for("connected", 2)
    assert [connect(server).at_end() for _ in range(4)] == ["reset"] * 4
    becomes(server, accepted=6, connections=2, removed_overload=4, removed=4)
    assert handler.of("connection_removed") == []


# ------------------------------------------------------------------------------- messages and bytes


@moves("messages_received", "messages_sent", "bytes_received", "bytes_sent")
@pytest.mark.clause("S49", "S24")
@pytest.mark.parametrize("kind", ["plain", "tls", "handler reads nothing"])
def test_messages_and_bytes_are_counted_each_way(start, connect, kind):
    def received(socket, data):
        for _ in range(int(data)):
            socket.send(data)

    server = start(
        recorder(data_received=received),
        framing=hydrogen.SimpleFrameBuilder,
        ssl=server_context() if kind == "tls" else None,
    )
    client = connect(server)
    talker = TlsClient(client, client_context()).handshake() if kind == "tls" else client
    for answers in (0, 1, 3, 2):
        talker.send(simple(b"%d" % answers))
        for _ in range(answers):
            assert talker.receive_frame() == b"%d" % answers
    becomes(server, messages_received=4, messages_sent=6)
    if kind != "tls":
        becomes(server, bytes_received=4 * 5, bytes_sent=6 * 5)
    else:
        wait_until(lambda: server.stats().bytes_received > 4 * 5, "records are more than frames")
        assert server.stats().bytes_sent > 6 * 5


@pytest.mark.clause("S49", "S24")
def test_bytes_that_streams_of_the_user_s_take_and_give_are_counted(start, connect):
    handler = recorder(new_connection=PassThrough, data_received=lambda socket, _: socket.send(TEN))
    server = start(handler)
    client = connect(server)
    client.send(b"12345")
    assert client.receive(10) == TEN
    assert handler.socket().send(TEN * 2)  # by a thread of the user's
    assert client.receive(20) == TEN * 2
    becomes(server, bytes_received=5, bytes_sent=30)


@moves("messages_refused")
@pytest.mark.clause("S49", "K3")
def test_sends_that_are_refused_are_counted(start, connect):
    refused = []

    def received(socket, data):
        socket.send(b"yes")
        socket.close()
        refused.extend(socket.send(b"no") for _ in range(5))

    handler = recorder(data_received=received)
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    assert client.receive_until_end() == b"yes"
    client.close()
    handler.wait_removed()
    refused += [handler.socket().send(b"late") for _ in range(2)]
    assert refused == [False] * 7
    becomes(server, messages_refused=7, messages_sent=1)


@moves("messages_sent")
@pytest.mark.clause("S49", "S36")
def test_a_broadcast_is_a_message_to_each_who_took_it(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    clients = [connect(server) for _ in range(7)]
    handler.wait_for("connected", 7)
    reports = [server.broadcast(b"hello", [handler.socket()]) for _ in range(3)]
    assert sum(report.sent for report in reports) == 18
    becomes(server, messages_sent=18, bytes_sent=90)
    assert len(clients) == 7


# ------------------------------------------------------------------------------------ back-pressure


@pytest.mark.slow
@moves("queued_bytes")
@pytest.mark.clause("S49", "S25")
def test_queued_bytes_is_what_is_pending_on_all_connections_and_input_that_waits(start, connect):
    handler = recorder(connected=None)
    server = start(handler, framing=hydrogen.LengthFrameBuilder(max_size=16 << 20))
    slow = [connect(server, receive_buffer=4096) for _ in range(3)]
    sockets = [call.socket for call in handler.wait_for("connected", 3)]
    assert server.stats().queued_bytes == 0
    for socket in sockets:
        assert socket.send(BIG)
    pending = settled(lambda: sum(socket.pending for socket in sockets))
    assert pending > 0
    becomes(server, queued_bytes=pending)
    client = connect(server)
    unfinished = length_frame(bytes(100_000))[:-1]
    client.send(unfinished)
    becomes(server, bytes_received=len(unfinished))
    becomes(server, queued_bytes=pending + len(unfinished))
    client.reset()
    becomes(server, queued_bytes=pending)
    for one in slow:
        assert one.receive(len(BIG) + 4) == length_frame(BIG)
    becomes(server, queued_bytes=0)


@moves("reading_pauses", "reading_resumes")
@pytest.mark.clause("S49", "C16", "H12")
def test_pauses_of_reading_and_their_ends_are_counted(start, connect):
    """As often as output went above the high watermark, and as on_writable has come."""
    handler = recorder(
        data_received=lambda socket, data: socket.send(BIG if data == b"big" else data),
        writable=None,
    )
    server = start(handler, write_buffer_limits=(10_000, 100_000))
    client = connect(server, receive_buffer=65_536)
    for _ in range(20):
        client.echo(b"small")
    becomes(server, reading_pauses=0, reading_resumes=0)
    for round in range(1, 4):
        client.send(b"big")
        becomes(server, reading_pauses=round, reading_resumes=round - 1)
        assert client.receive(len(BIG)) == BIG
        handler.wait_for("writable", round)
        becomes(server, reading_pauses=round, reading_resumes=round)
    assert len(handler.of("writable")) == 3
    for number in range(1, 4):
        connect(server, receive_buffer=4096).send(b"big")
        becomes(server, reading_pauses=3 + number, reading_resumes=3)


def send_on(socket):
    while socket.send(BIG):
        pass


@pytest.mark.clause("S49")
@pytest.mark.parametrize(
    "end",
    [
        lambda server, socket, client: socket.abort(),
        lambda server, socket, client: send_on(socket),
        lambda server, socket, client: client.reset(),
        lambda server, socket, client: server.stop(0),
    ],
    ids=["abort", "slow consumer", "reset", "stop"],
)
def test_the_pause_of_a_connection_that_ends_meanwhile_has_no_end_that_is_counted(
    start, connect, end
):
    handler = recorder(connected=lambda socket: socket.send(BIG), writable=None)
    server = start(handler, write_buffer_limits=(10_000, 100_000))
    client = connect(server, receive_buffer=4096)
    becomes(server, reading_pauses=1)
    end(server, handler.socket(), client)
    handler.wait_removed()
    becomes(server, connections=0, reading_pauses=1, reading_resumes=0)
    assert handler.of("writable") == []


@moves("memory_pauses")
@pytest.mark.clause("S49", "C18")
def test_pauses_of_all_reading_for_want_of_memory_are_counted(start, connect):
    """As many as slow consumers were removed for it, one after the other."""
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, max_buffered=1 << 20)
    other = connect(server)
    other.echo(b"x")
    becomes(server, memory_pauses=0)
    for round in range(1, 4):
        slow = connect(server, receive_buffer=4096)
        socket = handler.wait(lambda slow=slow: found(handler, slow), "it is connected")
        assert socket.send(BIG)
        assert type(handler.wait_removed(round)[-1]) is hydrogen.SlowConsumer
        other.echo(b"served")
        becomes(server, memory_pauses=round, removed_slow_consumer=round)


def found(handler, client):
    """The socket of a client."""
    return next(
        (
            call.socket
            for call in handler.calls
            if call.name == "on_connected" and call.socket.peername == client.name
        ),
        None,
    )


@moves("accept_pauses")
@pytest.mark.clause("S49", "C32")
def test_pauses_of_accepting_are_counted(start, connect):
    server = start(Echo(), max_connections=1)
    client = connect(server)
    client.echo(b"x")
    for round in range(1, 4):
        waiting = connect(server)
        waiting.send(b"patient")
        becomes(server, accept_pauses=round)
        client.close()
        assert waiting.receive(7) == b"patient"
        client = waiting


@pytest.mark.clause("S49")
def test_a_pause_of_accepting_is_counted_once_however_often_it_is_resumed(start, connect):
    server = start(Echo(), max_connections=1)
    client, waiting = connect(server), connect(server)
    client.echo(b"x")
    becomes(server, accept_pauses=1)
    for _ in range(20):
        server.resume()
        assert settled(lambda: server.stats().accept_pauses) == 1
    client.close()
    waiting.echo(b"x")
    becomes(server, accept_pauses=2)


# ------------------------------------------------------------------------------ handlers that block


@moves("all_blocked")
@pytest.mark.clause("S49", "C6")
@pytest.mark.parametrize("max_threads", [1, 3])
def test_the_times_that_all_workers_are_blocked_are_counted(start, connect, gate, max_threads):
    gates = []
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(gates[int(data)], "let go"),
            socket.send(data),
        )
    )
    server = start(handler, max_threads=max_threads)
    for round in range(3):
        gates.append(gate())
        before = server.stats().all_blocked
        clients = [connect(server) for _ in range(max_threads + 1)]
        for client in clients:
            client.send(b"%d" % round)
        # Not by one: all may also be in callbacks while they are let go, one after the other.
        wait_until(lambda before=before: server.stats().all_blocked > before, "it is counted")
        # when it begins, and not for as long as it lasts
        settled(lambda: server.stats().all_blocked)
        gates[round].set()
        for client in clients:
            assert client.receive(1) == b"%d" % round


@pytest.mark.clause("S49", "C6")
def test_workers_that_are_all_blocked_count_only_when_a_connection_waits(start, connect, gate):
    """A timer that is due is no connection."""
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: data == b"block" and wait_event(go, "let go")
    )
    server = start(handler, max_threads=1, slow_callback=0.2)
    blocking, other = connect(server), connect(server)
    other.send(b"x")
    handler.wait_for("data_received")
    blocking.send(b"block")
    handler.wait_for("data_received", 2)
    server.call_later(0, lambda: None)
    becomes(server, slow_callbacks=1, all_blocked=0)
    other.send(b"x")
    becomes(server, all_blocked=1)


@pytest.mark.slow
@moves("slow_callbacks")
@pytest.mark.clause("S49", "C41")
def test_slow_callbacks_are_counted(start, connect, gate):
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(go, "let go") if data == b"slow" else socket.send(data)
        )
    )
    server = start(handler, slow_callback=0.5)
    neighbour = connect(server)
    for round in range(1, 4):
        connect(server).send(b"slow")
        becomes(server, slow_callbacks=round)
        neighbour.echo(b"not slow")
    go.set()
    neighbour.echo(b"still not slow")
    assert server.stats().slow_callbacks == 3


@moves("handoffs", "stalls")
@pytest.mark.clause("S49", "C21")
def test_hand_offs_and_stalls_are_counted_where_there_are_any(start, connect, gate, engine):
    """On the compiled engine a handler that blocks is a stall, and in eager mode the role is passed
    on; the Python engine has no role.
    """
    gates = [gate() for _ in range(3)]
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(gates[int(data)], "let go") if data.isdigit() else socket.send(data)
        )
    )
    server = start(handler, max_threads=2, handoff="eager")
    neighbour = connect(server)
    for round in range(3):
        connect(server).send(b"%d" % round)
        handler.wait(lambda round=round: b"%d" % round in handler.messages(), "it blocks")
        neighbour.echo(b"served meanwhile")
        if engine == "compiled":
            wait_until(lambda round=round: server.stats().stalls > round, "the stall is counted")
        gates[round].set()
        neighbour.echo(b"served afterwards")
    if engine == "compiled":
        # The other worker may have been awake each time, and then is not woken.
        wait_until(
            lambda: neighbour.echo(b"again") or server.stats().handoffs, "the role is passed on"
        )
    stats = server.stats()
    if engine == "compiled":
        assert stats.stalls >= 3
        assert stats.handoffs >= 1
    else:
        assert (stats.stalls, stats.handoffs) == (0, 0)


@moves("handoffs")
@pytest.mark.clause("S49", "C21")
def test_much_work_wakes_another_worker_where_two_can_run_python(start, connect, engine):
    """The turn is longer than the time after which it flushes: the handlers' mean time must be that
    of all of it.
    """

    def compute(socket, data):
        socket.send(b"%d" % sum(range(2000)))

    server = start(
        recorder(data_received=compute),
        max_threads=2,
        handoff="inline",
        framing=hydrogen.SimpleFrameBuilder,
    )
    clients = [connect(server) for _ in range(16)]

    def handoffs():
        for client in clients:
            client.send(simple(b"x") * 100)
        for client in clients:
            for _ in range(100):
                assert client.receive_frame() == b"1999000"
        return server.stats().handoffs

    if engine == "compiled" and not has_gil():
        # Both may be awake already, on a busy machine even for some rounds; then nobody is woken.
        wait_until(lambda: handoffs() >= 1, "another worker is woken")
    else:
        assert [handoffs() for _ in range(5)] == [0] * 5


# ---------------------------------------------------------------------- what the engine does inside


@moves("polls", "iterations")
@pytest.mark.clause("S49")
def test_polls_and_turns_are_not_more_than_the_messages_give_occasion_for(start, connect):
    """Each message of a peer that waits for the answer is one event at most, and one more for each
    hand-over.
    """
    server = start(Echo())
    client = connect(server)
    client.echo(b"x")
    before = server.stats()
    for _ in range(100):
        client.echo(b"x")
    wait_until(lambda: server.stats().iterations > before.iterations, "the last turn is over")
    after = server.stats()
    assert 1 <= after.polls - before.polls <= 300
    assert after.iterations - before.iterations <= 300


@pytest.mark.slow
@moves("sweeps")
@pytest.mark.clause("S49")
def test_sweeps_for_deadlines_are_counted_where_there_are_any(start, connect, engine):
    handler = recorder()
    server = start(handler, idle_timeout=SHORT)
    assert server.stats().sweeps == 0 or engine == "compiled"
    connect(server)
    handler.wait_removed()
    sweeps = server.stats().sweeps
    assert sweeps >= 1 if engine == "compiled" else sweeps == 0
    becomes(server, removed_idle_timeout=1)


@moves("gil_acquisitions", "gil_wait_seconds")
@pytest.mark.clause("S49")
def test_acquisitions_of_the_gil_and_the_wait_for_it_are_counted_where_they_are(
    start, connect, engine
):
    """While another thread computes all the time."""
    server = start(Echo())
    client = connect(server)
    done = threading.Event()

    def compute():
        while not done.is_set():
            sum(range(1000))

    with running(compute):
        try:
            for _ in range(20):
                client.echo(b"x")
            stats = server.stats()
        finally:
            done.set()
    if engine == "compiled":
        assert stats.gil_acquisitions >= 1
        assert stats.gil_wait_seconds > 0
    else:
        assert (stats.gil_acquisitions, stats.gil_wait_seconds) == (0, 0.0)


@moves("buffer_allocations")
@pytest.mark.clause("S49")
def test_blocks_of_memory_are_counted_where_they_are(start, connect, engine):
    server = start(recorder(data_received=lambda socket, data: socket.send(BIG)))
    client = connect(server, receive_buffer=65_536)
    client.send(b"x")
    assert client.receive(len(BIG)) == BIG
    allocations = server.stats().buffer_allocations
    assert allocations >= 1 if engine == "compiled" else allocations == 0


@moves("pings_sent", "pings_received", "pongs_received", "closes")
@pytest.mark.clause("S49")
def test_control_frames_of_websockets_are_counted_and_codes(start, connect):
    server = start(websockets(message=lambda socket, data: socket.ping()))
    peer = peer_of(connect(server)).open()
    peer.send(ping() + ping() + pong() + text("ping me"))
    assert [peer.receive_frame().first & 0xF for _ in range(3)].count(PING) == 1
    assert peer.say_goodbye(4000).code == 4000
    becomes(server, pings_sent=1, pings_received=2, pongs_received=1, closes={4000: 1})


@moves("responses")
@pytest.mark.clause("S49")
def test_responses_are_counted_by_status(start, connect):
    server = start(websockets())
    for _ in range(2):
        peer = peer_of(connect(server))
        peer.send(head(without=["Upgrade"]))
        assert peer.refused().status == 426
    becomes(server, responses={426: 2})


@moves("removed_ping_timeout")
@pytest.mark.slow
@pytest.mark.clause("S49")
def test_a_client_that_answers_no_ping_is_counted(start, connect):
    settings = hydrogen.WebSocket(ping_interval=SHORT, ping_timeout=SHORT)
    server = start(websockets(), websocket=settings)
    assert peer_of(connect(server)).open().at_end() == "reset"
    becomes(server, removed_ping_timeout=1, closes={1006: 1})


# ---------------------------------------------------------------------------------------- all of it


@pytest.mark.clause("S49", "S24")
def test_every_field_is_moved_by_a_test_of_this_module():
    fields = {field.name for field in dataclasses.fields(hydrogen.Stats)}
    assert set(MOVED) == fields
    assert all(callable(globals()[name]) for names in MOVED.values() for name in names)


@pytest.mark.clause("S49", "S24")
def test_every_field_is_described():
    # which takes off the indentation, as Python 3.13 does by itself
    described = inspect.getdoc(hydrogen.Stats)
    for field in dataclasses.fields(hydrogen.Stats):
        assert f"\n    {field.name}: " in described or field.name.startswith("removed_"), field.name


@pytest.mark.clause("S26", "S49")
def test_counters_only_grow_and_may_be_asked_for_from_any_thread(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    done, wrong = threading.Event(), []

    def ask():
        before = server.stats()
        while not done.is_set():
            after = server.stats()
            for field in dataclasses.fields(after):
                if field.metadata["kind"] not in ("gauge", "codes") and getattr(
                    after, field.name
                ) < getattr(before, field.name):
                    wrong.append((field.name, before, after))
            before = after
            done.wait(0.0005)

    def converse():
        for _ in range(15):
            client = connect(server)
            for _ in range(5):
                client.echo(b"x" * 1000)
            client.close()

    with running(ask, ask):
        try:
            with running(*[converse] * 4):
                pass
        finally:
            done.set()
    assert wrong == []
    becomes(server, messages_received=300, messages_sent=300, accepted=60, connections=0)


@pytest.mark.clause("S48")
def test_a_connection_finds_itself_among_the_removed_in_its_last_callbacks(start, connect):
    found = []

    def look(*arguments):
        stats = server.stats()
        found.append((stats.connections, stats.removed, stats.removed_peer_closed))

    handler = recorder(disconnected=look, connection_removed=look)
    server = start(handler)
    connect(server).close()
    wait_until(lambda: len(found) == 2, "the last callbacks")
    assert found == [(1, 1, 1)] * 2
