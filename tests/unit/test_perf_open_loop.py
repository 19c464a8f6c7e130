"""The load generator's open loop: messages are due by a schedule, whatever the server does."""

import socket
import threading

import pytest
from echoes import changing, echo, faults, measure, read_exactly
from support import PATIENCE, wait_until

from hydrogen.perf.framing import Mix, raw
from hydrogen.perf.histogram import bucket_of
from hydrogen.perf.loops import choose_loop
from hydrogen.perf.options import Options

MILLISECOND = 1_000_000


def counted_from(counts, nanoseconds):
    """How many of the histogram's values are at least so many, to its resolution."""
    return sum(counts[bucket_of(nanoseconds) :])


@pytest.fixture
def pair():
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        yield here, there


def hot_loop(name, sock, **options):
    """A hot loop over one socket."""
    return choose_loop(name)[1](
        [sock.fileno()], mix=Mix((raw(64),)), depth=1, burst=False, seed=1, **options
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"in_flight": 1}, {"threads": 2}, {"connections": 7}, {"size": "1,5000"}, {"churn": True}],
    ids=str,
)
def test_exactly_the_number_of_messages_is_due_and_answered(serve, loop, options):
    result = measure(serve(echo), loop, rate=2000, number=50, **options)
    assert result.ok
    assert result.counters.messages == 50
    assert sum(result.histograms.latencies) == sum(result.histograms.uncorrected) == 50


def test_the_schedule_says_how_many_are_due_in_a_duration(serve, loop):
    result = measure(serve(echo), loop, rate=200, number=0, duration=0.5)
    assert result.ok
    assert result.counters.messages == 100


def test_messages_are_dealt_out_to_the_connections_in_turn(serve, loop):
    received = []

    def function(connection):
        size = 0
        while data := connection.recv(65536):
            size += len(data)
            connection.sendall(data)
        received.append(size)

    assert measure(serve(function), loop, rate=2000, number=50, connections=5).ok
    wait_until(lambda: len(received) == 5, "the end of the connections")
    assert received == [10 * 64] * 5


def test_a_message_is_sent_though_the_one_before_is_not_answered(serve, loop):
    def function(connection):
        connection.sendall(read_exactly(connection, 5 * 64))
        connection.recv(1)

    result = measure(serve(function), loop, rate=1000, number=5, connections=1)
    assert result.ok
    # The first was answered when the last had been due, 4 ms after it.
    assert counted_from(result.histograms.latencies, 4 * MILLISECOND) >= 1


def test_no_more_are_in_flight_than_were_asked_for(serve, loop):
    sizes = []

    def noticing(data, seen):
        sizes.append(len(data))
        return data

    assert measure(
        serve(changing(noticing)), loop, rate=100_000, number=200, connections=1, in_flight=2
    ).ok
    assert max(sizes) <= 2 * 64


def test_what_waits_pays_for_its_wait_is_late_and_is_dropped_past_the_backlog(pair, loop):
    here, there = pair
    hot = hot_loop(loop, here, stall=PATIENCE, interval=0.001, backlog=4)

    def serve():
        first = read_exactly(there, 64)
        # Of the messages due each millisecond, four find room and then three do not: seven have
        # passed.
        wait_until(lambda: hot.counters()["dropped"] >= 3, "dropped messages")
        there.sendall(first)
        echo(there)

    server = threading.Thread(target=serve)
    server.start()
    hot.run(0, 100)
    here.shutdown(socket.SHUT_WR)
    server.join(PATIENCE)
    counters, histograms = hot.counters(), hot.histograms()
    assert counters["messages"] + counters["dropped"] == 100
    assert counters["late"] >= 3
    # Those that found room were due at 0 to 3 ms; no answer came before 6 ms.
    assert counted_from(histograms["latencies"], 3 * MILLISECOND) >= 4
    assert sum(histograms["latencies"]) == sum(histograms["uncorrected"]) == counters["messages"]
    assert counters["unanswered"] == 0


def test_late_and_dropped_begin_anew_with_a_reset(pair, loop):
    here, _ = pair
    hot = hot_loop(loop, here, stall=0.2, interval=0.0001, backlog=2)
    hot.run(0, 20)  # nobody answers
    assert hot.counters()["dropped"] == 18
    assert hot.counters()["unanswered"] == 2
    hot.reset()
    assert hot.counters()["dropped"] == hot.counters()["late"] == 0
    assert hot.counters()["unanswered"] == 2


def test_a_rate_that_cannot_be_kept_ends_in_time_and_is_a_fault(serve, loop):
    result = measure(serve(echo), loop, rate=20_000_000, number=0, duration=0.1)
    assert not result.ok
    assert result.counters.messages + result.counters.dropped == 2_000_000
    assert not faults(result)


def test_the_others_go_on_when_a_connection_is_lost(serve, loop):
    turns = iter([lambda connection: read_exactly(connection, 64), echo, echo])
    result = measure(
        serve(lambda connection: next(turns)(connection)),
        loop,
        connections=3,
        rate=3000,
        number=300,
    )
    assert result.counters.live == 2
    assert result.counters.messages + result.counters.unanswered == 300
    # a reset, if more had come than was read
    assert result.counters.closed + result.counters.failed == 1


def test_an_open_loop_whose_last_connection_is_lost_ends(serve, loop):
    result = measure(
        serve(lambda connection: read_exactly(connection, 64)), loop, rate=1000, number=1000
    )
    assert result.counters.live == 0
    assert result.counters.closed + result.counters.failed == 2


def test_a_server_that_never_answers_is_given_up(serve, loop):
    result = measure(
        serve(lambda connection: read_exactly(connection, 1 << 20)),
        loop,
        timeout=1.0,
        rate=1000,
        number=4,
    )
    assert faults(result) == {"unanswered": 4}


def test_a_warm_up_leaves_nothing_for_the_measurement(serve, loop):
    result = measure(serve(echo), loop, rate=500, number=0, warm_up=0.1, duration=0.1)
    assert result.ok
    assert result.counters.messages == 50


def test_an_open_loop_over_tls(serve, loop, tls, cacert):
    assert (
        measure(
            serve(echo, tls=tls), loop, tls=True, cacert=cacert, rate=2000, number=50
        ).counters.messages
        == 50
    )


@pytest.mark.parametrize(
    "options", [{"rate": -1}, {"rate": 2e9}, {"rate": 10, "burst": True, "in_flight": 2}], ids=str
)
def test_a_rate_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="rate"):
        Options(("127.0.0.1", 1), **options)
