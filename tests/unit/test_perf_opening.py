"""How the load generator opens its connections."""

import contextlib
import resource
import select
import socket
import threading
import time

import pytest
from echoes import echo, measure, read_exactly, reset
from support import PATIENCE, wait_until

from hydrogen.perf import generator, opening
from hydrogen.perf.generator import Session
from hydrogen.perf.options import Options


def noting_peers(peers):
    """A server function: echo, noting where the connection comes from."""

    def function(connection):
        peers.append(connection.getpeername()[0])
        echo(connection)

    return function


def close_by_reset(sock):
    reset(sock)
    sock.close()


def test_connects_and_first_bytes_are_counted_for_each_connection(serve, loop):
    result = measure(serve(echo), loop, connections=5)
    assert sum(result.connects) == sum(result.histograms.first_bytes) == 5
    assert sum(result.handshakes) == 0


def test_with_churn_each_connection_s_connect_and_first_byte_are_counted(serve, loop):
    result = measure(serve(echo), loop, churn=True, connections=3, number=20)
    assert sum(result.histograms.first_bytes) == 20
    assert sum(result.histograms.connects) >= 17  # of the last ones it may not be known yet


def test_handshakes_are_counted_apart(serve, loop, tls, cacert):
    result = measure(serve(echo, tls=tls), loop, tls=True, cacert=cacert, connections=3)
    assert sum(result.connects) == sum(result.handshakes) == 3


def test_more_connections_than_are_opened_at_once(serve, monkeypatch):
    monkeypatch.setattr(opening, "AT_ONCE", 3)
    result = measure(serve(echo), "auto", connections=20)
    assert result.ok
    assert sum(result.connects) == 20


def test_connections_come_from_the_sources_in_turn(serve):
    peers = []
    assert measure(
        serve(noting_peers(peers)), "auto", connections=6, sources=("127.0.0.5", "127.0.0.6")
    ).ok
    assert sorted(peers) == ["127.0.0.5"] * 3 + ["127.0.0.6"] * 3


def test_on_the_loopback_network_many_connections_come_from_several_addresses(serve, monkeypatch):
    monkeypatch.setattr(opening, "PER_SOURCE", 2)
    peers = []
    assert measure(serve(noting_peers(peers)), "auto", connections=4, idle=1).ok
    assert sorted(peers) == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.3"]


def test_a_source_that_is_not_this_machine_s_is_explained():
    result = measure(("127.0.0.1", 9), "auto", sources=("192.0.2.1",))
    assert result.connect_failures == 1
    assert "--source" in result.connect_error


def test_a_name_s_addresses_are_tried_in_turn(serve, monkeypatch):
    address = serve(echo)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()

    def resolved(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", found) for found in (nobody, address)]

    monkeypatch.setattr(opening.socket, "getaddrinfo", resolved)
    result = measure(("many.test", 1), "auto", connections=3)
    assert result.ok
    assert result.connect_failures == 0


def test_a_name_that_nobody_knows_is_a_connect_failure(monkeypatch):
    def unresolved(host, port, **_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(opening.socket, "getaddrinfo", unresolved)
    result = measure(("nobody.test", 1), "auto")
    assert (result.connect_failures, result.connect_error) == (
        1,
        "nobody.test: Name or service not known",
    )


def test_a_name_that_can_be_none_is_a_connect_failure():
    result = measure(("a..b", 1), "auto")
    assert result.connect_failures == 1
    assert result.connect_error.startswith("a..b: ")


def test_no_connection_is_begun_before_its_rate_allows_it(serve, monkeypatch):
    begun = []
    monkeypatch.setattr(
        opening.Opener, "_source", lambda self, family, address: begun.append(time.monotonic())
    )
    with Session(Options(serve(echo), connections=6, connect_rate=100)) as session:
        session.connect()
    # The first is opened by itself, to find the address; the others each 10 ms.
    assert len(begun) == 6
    assert all(moment - begun[0] >= index / 100 for index, moment in enumerate(begun[1:]))


# -- idle connections ------------------------------------------------------------------------------


def test_idle_connections_are_held_silent_and_reset_at_the_end(serve):
    ends = []

    def function(connection):
        size = 0
        try:
            while data := connection.recv(65536):
                size += len(data)
                connection.sendall(data)
            ends.append((size > 0, "graceful"))
        except ConnectionResetError:
            ends.append((size > 0, "reset"))

    result = measure(serve(function), "auto", idle=3, connections=2)
    assert result.ok
    wait_until(lambda: len(ends) == 5, "the end of the connections")
    assert sorted(ends) == [(False, "reset")] * 3 + [(True, "graceful")] * 2


def test_an_idle_connection_that_the_server_ends_is_a_fault(serve):
    def end(connection):
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    turns = iter([end, echo])
    address = serve(lambda connection: next(turns)(connection))
    with Session(Options(address, idle=1, connections=1, number=10, warm_up=0)) as session:
        session.connect()
        wait_until(lambda: session._idle[0].has_ended(), "the end of the idle connection")
        result = session.run()
    assert result.idle_lost == 1
    assert not result.ok


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def both_ends(request, tmp_path):
    """A connection, and the server's end of it."""
    tcp = request.param == socket.AF_INET
    with socket.socket(request.param) as listener, socket.socket(request.param) as here:
        listener.bind(("127.0.0.1", 0) if tcp else str(tmp_path / "socket"))
        listener.listen()
        here.connect(listener.getsockname())
        there, _ = listener.accept()
        with there:
            yield opening.Connection(here), there


def test_what_the_server_sends_to_a_connection_does_not_end_it(both_ends):
    here, there = both_ends
    there.sendall(b"hello")
    assert select.select([here.sock], [], [], PATIENCE)[0]
    assert not here.has_ended()


@pytest.mark.parametrize("end", [lambda sock: sock.shutdown(socket.SHUT_WR), close_by_reset])
def test_the_end_of_a_connection_is_seen_behind_what_came_before(both_ends, end):
    here, there = both_ends
    there.sendall(b"goodbye")
    end(there)
    wait_until(here.has_ended, "the end of the connection")
    assert here.sock.recv(7) == b"goodbye"


# -- limits and control ----------------------------------------------------------------------------


def test_too_few_file_descriptors_are_said_before_anything_is_opened(monkeypatch):
    monkeypatch.setattr(generator.resource, "getrlimit", lambda _: (100, 1000))
    with pytest.raises(
        RuntimeError,
        match=r"2,000 connections need 2,064 file descriptors, but this process may have "
        r"only 1,000",
    ):
        Session(Options(("127.0.0.1", 9), connections=1500, idle=500))


def test_the_soft_limit_is_raised_as_far_as_it_is_needed(monkeypatch):
    limits = []
    monkeypatch.setattr(generator.resource, "getrlimit", lambda _: (100, resource.RLIM_INFINITY))
    monkeypatch.setattr(generator.resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    Session(Options(("127.0.0.1", 9), connections=200))
    assert limits == [(264, resource.RLIM_INFINITY)]


def test_stopping_while_connecting_gives_a_partial_result(serve):
    accepted = threading.Event()

    def function(connection):
        accepted.set()
        with contextlib.suppress(OSError):
            read_exactly(connection, 1 << 20)

    with Session(
        Options(serve(function), connections=1, tls=True, insecure=True, timeout=PATIENCE)
    ) as session:
        connecting = threading.Thread(target=session.connect)
        connecting.start()
        assert accepted.wait(PATIENCE)
        session.stop()
        connecting.join(PATIENCE)
        result = session.run()
    assert result.interrupted
    assert result.counters.messages == 0
