"""How many connections a server has at most: over all, from one address, and when the kernel has no
more fds. Rows 19 and 22.
"""

import contextlib
import random
import threading

import pytest
from support import (
    PATIENCE,
    Client,
    Echo,
    child,
    echo,
    finish,
    recorder,
    running,
    wait_event,
    wait_until,
)

import hydrogen


def served(client):
    """Whether the client, whose connection may have been refused, is answered."""
    if client.refused:
        return False
    try:
        client.echo(b"x")
    except OSError:
        return False
    return True


def crowd(threads, rounds, address, source=lambda dice: None):
    """Clients come and go; how many were answered, and how many turned away."""
    outcomes = []

    def come_and_go(seed):
        dice = random.Random(seed)
        for _ in range(rounds):
            with Client(address, source=source(dice)) as client:
                outcomes.append(served(client))

    with running(*(lambda seed=seed: come_and_go(seed) for seed in range(threads))):
        pass
    return outcomes.count(True), outcomes.count(False)


class Census:
    """Counts, by the callbacks, how many connections there are at once."""

    def __init__(self):
        self._lock = threading.Lock()
        self.now = self.most = 0

    def arrived(self, fd):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def left(self, fd, err):
        with self._lock:
            self.now -= 1

    def hooks(self):
        return {"new_connection": self.arrived, "connection_removed": self.left}


@contextlib.contextmanager
def adding_up(server):
    """While the body runs, `accepted` is `connections` and `removed` together, whenever it is
    asked.

    Who is in his last callbacks is counted as both: he finds himself in `stats`, and has his slot
    still. They are no more than workers. Counters are summed while they change; so what is looked
    at are two answers in a row that are the same.
    """
    done, wrong, asked = threading.Event(), [], []

    def ask():
        while not done.is_set():
            before, stats = server.stats(), server.stats()
            asked.append(stats.accepted)
            same = (before.accepted, before.connections, before.removed) == (
                stats.accepted,
                stats.connections,
                stats.removed,
            )
            if (
                same
                and not 0
                <= stats.connections + stats.removed - stats.accepted
                <= server.config.max_threads
            ):
                wrong.append(stats)
            done.wait(0.001)

    with running(ask):
        try:
            yield
        finally:
            done.set()
    assert asked
    assert wrong == []
    assert asked == sorted(asked)


# ------------------------------------------------------------------------- max_connections, "pause"


@pytest.mark.clause("C32", "S24")
def test_f22_at_max_connections_accepting_pauses_and_goes_on_when_one_leaves(start, connect):
    server = start(Echo(), max_connections=3)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        client.echo(b"x")
    waiting = [connect(server) for _ in range(2)]
    for client in waiting:
        client.send(b"patient")
    wait_until(lambda: server.stats().accept_pauses == 1, "accepting is paused")
    for client in clients:
        client.echo(b"still served")
    stats = server.stats()
    assert (stats.accepted, stats.connections, stats.removed_overload) == (3, 3, 0)
    for leaving, client in zip(clients, waiting, strict=False):
        leaving.close()
        assert client.receive(7) == b"patient"
    stats = server.stats()
    assert (stats.accepted, stats.removed_overload) == (5, 0)


@pytest.mark.clause("C32", "S48")
@pytest.mark.parametrize("max_connections", [1, 3])
def test_f22_however_many_come_and_go_there_are_never_more_than_max_connections_and_all_are_served(
    start, max_connections
):
    census = Census()
    server = start(recorder(data_received=echo, **census.hooks()), max_connections=max_connections)
    with adding_up(server):
        assert crowd(6, 20, server.address) == (120, 0)
    assert census.most <= max_connections
    wait_until(lambda: server.stats().connections == 0, "all are gone")
    stats = server.stats()
    assert (stats.accepted, stats.removed_overload) == (120, 0)


@pytest.mark.clause("C32", "C33")
def test_connections_are_accepted_and_turned_away_while_all_workers_block(start, connect, gate):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler, max_threads=1, max_connections=2, overload="close")
    connect(server).send(b"block")
    handler.wait_for("data_received")
    waiting = connect(server)
    wait_until(lambda: server.stats().accepted == 2, "it is accepted")
    assert connect(server).at_end() == "reset"
    assert server.stats().removed_overload == 1
    go.set()
    waiting.send(b"served")
    handler.wait_for("data_received", 2)


@pytest.mark.clause("C32", "H14")
def test_f22_a_connection_counts_until_its_last_callback_has_returned(start, connect, gate):
    go = gate()
    handler = recorder(
        data_received=echo, connection_removed=lambda fd, err: wait_event(go, "let go")
    )
    server = start(handler, max_connections=1)
    first = connect(server)
    first.echo(b"x")
    second = connect(server)
    second.send(b"patient")
    first.close()
    handler.wait_for("connection_removed")
    stats = server.stats()
    assert (stats.accepted, stats.connections) == (1, 1)
    go.set()
    assert second.receive(7) == b"patient"


@pytest.mark.clause("C32", "S8")
def test_f22_a_server_that_accepts_no_more_for_its_limit_stops_as_any_other(start, connect):
    handler = recorder(connected=None)
    server = start(handler, max_connections=1)
    first = connect(server)
    handler.wait_for("connected")
    waiting = connect(server)
    waiting.send(b"in vain")
    wait_until(lambda: server.stats().accept_pauses == 1, "accepting is paused")
    with running(lambda: server.stop(PATIENCE)):
        assert first.at_end() == "end"
        first.close()
    assert waiting.at_end() == "reset"
    stats = server.stats()
    assert (stats.accepted, stats.removed_server_stopped) == (1, 1)


# ------------------------------------------------------------------------- max_connections, "close"


@pytest.mark.clause("C33", "S24", "H14")
def test_f22_by_close_what_is_more_than_max_connections_is_reset_without_callbacks_and_counted(
    start, connect
):
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    server = start(handler, max_connections=2, overload="close")
    clients = [connect(server) for _ in range(2)]
    for client in clients:
        client.echo(b"x")
    for number in range(1, 6):
        assert connect(server).at_end() == "reset"
        wait_until(lambda number=number: server.stats().removed_overload == number, "it is counted")
    for client in clients:
        client.echo(b"still served")
    stats = server.stats()
    assert (stats.accepted, stats.connections, stats.removed, stats.accept_pauses) == (7, 2, 5, 0)
    assert len(handler.of("new_connection")) == len(handler.of("connected")) == 2
    assert handler.of("disconnected") == handler.of("connection_removed") == []
    clients[0].close()
    wait_until(lambda: server.stats().connections == 1, "one is gone")
    connect(server).echo(b"welcome")
    assert connect(server).at_end() == "reset"


@pytest.mark.clause("C33", "S48")
def test_f22_by_close_there_are_never_more_than_max_connections_and_each_is_served_or_counted(
    start,
):
    census = Census()
    server = start(
        recorder(data_received=echo, **census.hooks()), max_connections=2, overload="close"
    )
    with adding_up(server):
        answered, turned_away = crowd(6, 30, server.address)
    assert census.most <= 2
    wait_until(lambda: server.stats().connections == 0, "all are gone")
    stats = server.stats()
    assert (stats.accepted, stats.removed_overload) == (180, turned_away)
    assert answered >= 1


# --------------------------------------------------------------------------------- from one address


@pytest.mark.clause("C35", "S24", "H14")
@pytest.mark.parametrize("overload", ["pause", "close"])
def test_f22_what_is_more_than_max_connections_per_ip_is_reset_and_other_addresses_are_served(
    start, connect, overload
):
    handler = recorder(new_connection=None, data_received=echo)
    server = start(handler, max_connections_per_ip=2, overload=overload)
    first = [connect(server, source="127.0.0.2") for _ in range(2)]
    for client in first:
        client.echo(b"x")
    for number in range(1, 4):
        assert connect(server, source="127.0.0.2").at_end() == "reset"
        wait_until(lambda number=number: server.stats().removed_overload == number, "it is counted")
    others = [connect(server, source=source) for source in ("127.0.0.3", "127.0.0.4", "127.0.0.3")]
    for client in first + others:
        client.echo(b"served")
    stats = server.stats()
    assert (stats.accepted, stats.connections, stats.removed, stats.accept_pauses) == (8, 5, 3, 0)
    assert len(handler.of("new_connection")) == 5
    assert handler.of("connection_removed") == []
    first[0].reset()
    wait_until(lambda: server.stats().connections == 4, "one is gone")
    connect(server, source="127.0.0.2").echo(b"welcome")
    assert connect(server, source="127.0.0.2").at_end() == "reset"


@pytest.mark.clause("C35", "S48")
def test_f22_however_many_come_from_however_many_addresses_they_add_up(start):
    server = start(Echo(), max_connections_per_ip=1, max_connections=3)
    with adding_up(server):
        answered, turned_away = crowd(
            6, 30, server.address, lambda dice: f"127.0.0.{dice.randint(2, 6)}"
        )
    wait_until(lambda: server.stats().connections == 0, "all are gone")
    stats = server.stats()
    assert (stats.accepted, stats.removed_overload) == (180, turned_away)
    assert answered >= 5


@pytest.mark.clause("C35")
def test_who_was_turned_away_takes_nobody_s_place(start, connect):
    server = start(Echo(), max_connections_per_ip=1, max_connections=2)
    client = connect(server, source="127.0.0.2")
    client.echo(b"x")
    for _ in range(20):
        assert connect(server, source="127.0.0.2").at_end() == "reset"
    connect(server, source="127.0.0.3").echo(b"x")
    client.echo(b"y")


@pytest.mark.clause("C35")
def test_connections_over_ipv6_are_counted_too(start, connect):
    server = start(Echo(), max_connections_per_ip=1, addr="::1")
    client = connect(server)
    client.echo(b"x")
    assert connect(server).at_end() == "reset"
    client.close()
    wait_until(lambda: server.stats().connections == 0, "it is gone")
    connect(server).echo(b"y")


@pytest.mark.clause("C35")
def test_peers_on_a_unix_socket_are_not_counted_by_address(start, connect, tmp_path):
    server = start(Echo(), max_connections_per_ip=1, path=str(tmp_path / "socket"))
    clients = [connect(server) for _ in range(5)]
    for client in clients:
        client.echo(b"x")
    assert server.stats().removed_overload == 0


@pytest.mark.clause("C35", "H7")
def test_a_connection_that_on_new_connection_rejects_is_counted_no_longer(start, connect):
    def new(fd):
        raise hydrogen.Reject

    handler = recorder(new_connection=new)
    server = start(handler, max_connections_per_ip=1, max_connections=1)
    for number in range(1, 6):
        assert connect(server).at_end() in ("end", "reset")
        handler.wait_removed(number)
        wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert server.stats().removed_reject == 5


# --------------------------------------------------------------------------- what the kernel allows

LIMITED = """
import logging, resource, sys
import hydrogen
from support import Echo

engine, limit, most = sys.argv[1:]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(limit), hard))
logging.basicConfig(level=logging.INFO)
most = int(most) or None
server = hydrogen.serve(Echo(), port=0, engine=engine, max_threads=3, max_connections=most)
print(server.address[1], flush=True)
for line in sys.stdin:  # one line each time that the counters are wanted
    stats = server.stats()
    print(stats.accepted, stats.connections, stats.accept_pauses, flush=True)
report = server.stop(20)
print(report.aborted, report.abandoned, flush=True)
"""


class Limited:
    """A server process with few fds."""

    def __init__(self, engine, limit, most=0):
        self.process = child(LIMITED, engine, str(limit), str(most))
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    def counters(self):
        """accepted, connections, accept_pauses."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return tuple(map(int, self.process.stdout.readline().split()))

    def finish(self):
        """Stop it; what it logged."""
        out, err = finish(self.process)
        assert out.split() == ["0", "0"]
        return err


@pytest.mark.clause("C34", "C32", "S50")
def test_f22_by_default_there_are_as_many_connections_as_rlimit_nofile_allows(engine, connect):
    server = Limited(engine, 200)
    most = 200 - 64  # the reserve is at least so much
    clients = [connect(server.address) for _ in range(most + 5)]
    for client in clients[:most]:
        client.echo(b"x")
    accepted, connections, pauses = wait_until(
        lambda: (counters := server.counters())[2] and counters, "accepting is paused"
    )
    assert (accepted, connections, pauses) == (most, most, 1)
    for client in clients[:5]:
        client.close()
    for client in clients[5:]:
        client.echo(b"y")
    for client in clients:
        client.close()
    assert f"at most {most} connections" in server.finish()


@pytest.mark.clause("C32", "S51")
def test_f19_without_fds_accepting_pauses_existing_connections_are_served_and_it_recovers_by_itself(
    engine, connect
):
    server = Limited(engine, 64, 1000)
    clients = [connect(server.address) for _ in range(100)]
    clients[0].echo(b"x")
    for client in clients:
        client.send(b"waiting")
    accepted, connections, _ = wait_until(
        lambda: (counters := server.counters())[2] and counters, "there are no more fds"
    )
    assert accepted == connections < 64
    assert clients[0].receive(7) == b"waiting"
    for _ in range(10):
        clients[0].echo(b"still served")
    clients[0].close()
    # accepted in this order, and each that leaves makes room for another
    for number, client in enumerate(clients[1:], 1):
        assert client.receive(7) == b"waiting", number
        client.close()
    wait_until(lambda: server.counters()[:2] == (100, 0), "all were accepted, and are gone")
    log = server.finish()
    assert "WARNING:hydrogen" in log
    assert log.count("WARNING:hydrogen") <= 20, log


FEW_FDS = """
import errno, gc, os, resource, sys
import hydrogen
from support import Echo, open_fds

def start():
    options = {"loops": int(sys.argv[2]), "max_threads": 2, "max_connections": 10}
    addr = ["127.0.0.1", "127.0.0.2"]
    return hydrogen.serve(Echo(), addr=addr, port=0, engine=sys.argv[1], **options)

start().stop()  # what is opened once only
gc.collect()
gc.disable()
fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]  # no number is free below the last one
before, hard = open_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
failed = -1
server = None
while server is None:
    failed += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds[-1] + 1 + failed, hard))
    try:
        server = start()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if server is None:
        assert open_fds() == before, (failed, open_fds().keys() - before.keys())
server.stop()
print(failed > 5)
"""


@pytest.mark.clause("S22")
@pytest.mark.parametrize("loops", ["1", "2"])
def test_a_start_for_which_there_are_too_few_fds_leaves_none_open(engine, loops):
    """However many there are, and without the collector."""
    assert finish(child(FEW_FDS, engine, loops), 0) == ("True\n", "")
