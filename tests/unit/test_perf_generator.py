"""The load generator's two hot loops, against servers that echo and servers that do not."""

import contextlib
import os
import socket
import struct
import threading

import pytest
from support import PATIENCE

from hydrogen.perf import generator
from hydrogen.perf.generator import COMPILED, Counters, Options, Session, choose_loop
from hydrogen.perf.histogram import BUCKETS, bucket_of

SOON = 0.2


def pytest_generate_tests(metafunc):
    """Both loops; without the compiled one the other alone, except in CI, where that is a failure."""
    if "loop" in metafunc.fixturenames:
        python_only = metafunc.config.getoption("--engine") == "python"
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        compiled = not python_only and (COMPILED is not None or in_ci)
        metafunc.parametrize("loop", ["compiled", "python"] if compiled else ["python"])


@pytest.fixture
def serve():
    """Start a server that runs a function on each connection, a thread each: `serve(function) -> address`."""
    with contextlib.ExitStack() as stack:

        def serve(function, address=("127.0.0.1", 0)):
            listener = socket.create_server(address) if isinstance(address, tuple) else unix_server(address)
            threads = []

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        threads.append(threading.Thread(target=run, args=(listener.accept()[0],)))
                        threads[-1].start()

            def run(connection):
                with connection, contextlib.suppress(OSError):
                    function(connection)

            def stop():
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join(PATIENCE)
                listener.close()
                for thread in threads:
                    thread.join(PATIENCE)

            accepting = threading.Thread(target=accept)
            accepting.start()
            stack.callback(stop)
            return listener.getsockname()

        yield serve


def unix_server(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def changing(change):
    """A server function: echo, with `change(data, bytes seen before)` applied to each chunk."""

    def function(connection):
        seen = 0
        while data := connection.recv(65536):
            connection.sendall(change(data, seen))
            seen += len(data)

    return function


echo = changing(lambda data, seen: data)


def read_exactly(connection, size):
    return connection.recv(size, socket.MSG_WAITALL)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def measure(address, loop, **options):
    defaults = {"connections": 2, "number": 50, "warm_up": 0, "timeout": PATIENCE}
    with Session(Options(address, loop=loop, **(defaults | options))) as session:
        session.connect()
        return session.run()


def faults(result):
    counters = result.counters
    return {name: count for name in ("wrong", "closed", "failed", "unanswered") if (count := getattr(counters, name))}


# -- right answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 1},
        {"size": 7, "in_flight": 3},
        {"size": 8, "in_flight": 5},
        {"size": 9, "in_flight": 16},
        {"size": 200_000, "in_flight": 3},
        {"size": 0, "framing": "simple"},
        {"size": 4, "framing": "simple", "in_flight": 16},
        {"size": 8, "framing": "simple"},
        {"size": 65_535, "framing": "simple", "in_flight": 3},
        {"size": 64, "burst": True, "in_flight": 20},
    ],
    ids=str,
)
def test_exactly_the_number_of_messages_is_sent_and_verified(serve, loop, options):
    received = []

    def counting(data, seen):
        received.append(len(data))
        return data

    result = measure(serve(changing(counting)), loop, **options)
    assert result.ok
    assert result.loop == loop
    assert result.counters.messages == sum(result.latencies) == 50
    wire = options.get("size", 64) + (4 if options.get("framing") == "simple" else 0)
    assert sum(received) == result.counters.received == 50 * wire


def test_replies_cut_into_single_bytes_are_followed(serve, loop):
    def function(connection):
        while data := connection.recv(65536):
            for byte in data:
                connection.sendall(bytes([byte]))

    result = measure(serve(function), loop, size=21, framing="simple", in_flight=4)
    assert result.ok
    assert result.counters.messages == 50


def test_a_burst_larger_than_the_socket_buffers_is_read_while_it_is_written(serve, loop):
    number = 120_000  # 8 MB, more than the kernel keeps on both sides
    result = measure(serve(echo), loop, connections=1, in_flight=number, burst=True, number=number)
    assert result.ok
    assert result.counters.messages == number
    assert sum(result.bursts) == 1


def test_bursts_follow_each_other_when_all_is_answered(serve, loop):
    result = measure(serve(echo), loop, connections=2, in_flight=10, burst=True, number=60)
    assert result.ok
    assert sum(result.bursts) == 6


def test_messages_of_the_warm_up_are_not_counted(serve, loop):
    result = measure(serve(echo), loop, warm_up=0.05, number=10)
    assert result.ok
    assert result.counters.messages == sum(result.latencies) == 10


def test_a_run_by_the_clock_ends_with_nothing_in_flight(serve, loop):
    result = measure(serve(echo), loop, number=0, duration=0.05, in_flight=4)
    assert result.ok
    assert result.counters.messages > 0
    assert result.counters.elapsed_ns >= 50_000_000
    assert 0 < result.counters.longest_ns < result.counters.elapsed_ns


def test_a_unix_socket_is_an_address_too(serve, loop, tmp_path):
    assert measure(serve(echo, str(tmp_path / "socket")), loop).ok


def test_the_content_differs_between_connections_and_messages(serve, loop):
    received = []

    def function(connection):
        while message := read_exactly(connection, 64):
            received.append(message)
            connection.sendall(message)

    assert measure(serve(function), loop, in_flight=5).ok
    assert len(set(received)) == 50


# -- wrong answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"framing": "simple"}], ids=str)
def test_one_wrong_byte_is_found_and_located(serve, loop, options):
    wire = 68 if options else 64

    def damage(data, seen):
        at = 3 * wire + 40 - seen  # byte 40 of message 3
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if 0 <= at < len(data) else data

    result = measure(serve(changing(damage)), loop, connections=1, **options)
    assert not result.ok
    counters = result.counters
    assert (counters.wrong, counters.wrong_connection, counters.wrong_message, counters.wrong_byte) == (1, 0, 3, 40)
    assert counters.live == 0


@pytest.mark.parametrize("byte", [0, 1, 2, 3, -1])
def test_a_wrong_byte_of_the_frame_itself_is_found(serve, loop, byte):
    def damage(data, seen):
        data = bytearray(data)
        data[byte] ^= 0x80
        return bytes(data)

    result = measure(serve(changing(damage)), loop, connections=1, framing="simple", size=5)
    assert result.counters.wrong == 1


def test_replies_crossed_between_connections_are_found(serve, loop):
    meeting = threading.Barrier(2, timeout=PATIENCE)
    messages = {}

    def function(connection):
        messages[connection.fileno()] = read_exactly(connection, 64)
        meeting.wait()
        connection.sendall(next(message for fd, message in messages.items() if fd != connection.fileno()))
        connection.recv(1)

    assert measure(serve(function), loop).counters.wrong == 2


def test_replies_in_another_order_are_found(serve, loop):
    def function(connection):
        first, second = read_exactly(connection, 64), read_exactly(connection, 64)
        connection.sendall(second + first)
        connection.recv(1)

    result = measure(serve(function), loop, connections=1, in_flight=2)
    assert (result.counters.wrong, result.counters.wrong_message) == (1, 0)


def test_a_reply_given_twice_is_found(serve, loop):
    result = measure(serve(changing(lambda data, seen: data + data)), loop, connections=1, number=1000)
    assert result.counters.wrong == 1


def test_bytes_that_nobody_asked_for_are_found(serve, loop):
    def function(connection):
        connection.sendall(b"welcome")
        connection.recv(1)

    result = measure(serve(function), loop, connections=1, number=0, duration=PATIENCE)
    assert result.counters.wrong == 1


def test_an_end_before_the_reply_is_found(serve, loop):
    result = measure(serve(lambda connection: read_exactly(connection, 3 * 64)), loop, in_flight=3)
    assert faults(result) == {"closed": 2, "unanswered": 6}


def test_an_end_within_a_reply_is_found(serve, loop):
    result = measure(serve(lambda connection: connection.sendall(connection.recv(64)[:10])), loop)
    assert faults(result) == {"closed": 2, "unanswered": 2}


def test_a_reset_is_found(serve, loop):
    def function(connection):
        read_exactly(connection, 64)
        reset(connection)

    result = measure(serve(function), loop)
    assert faults(result) == {"failed": 2, "unanswered": 2}
    assert result.counters.first_errno


def test_the_other_connections_go_on_when_one_is_lost(serve, loop):
    turns = iter([lambda connection: connection.recv(1), echo, echo])
    result = measure(serve(lambda connection: next(turns)(connection)), loop, connections=3, number=300)
    assert result.counters.live == 2
    assert result.counters.messages == 299


def test_a_server_that_never_answers_is_given_up(serve, loop):
    result = measure(serve(lambda connection: read_exactly(connection, 1 << 20)), loop, timeout=SOON, in_flight=2)
    assert faults(result) == {"unanswered": 4}


def test_one_reply_that_never_comes_is_unanswered(serve, loop):
    result = measure(serve(changing(lambda data, seen: data if seen < 64 * 9 else b"")), loop, connections=1, timeout=SOON)
    assert faults(result) == {"unanswered": 1}
    assert result.counters.messages == 9


def test_connections_that_are_refused_are_counted(loop):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    result = measure(address, loop, connections=3)
    assert not result.ok
    assert result.connect_failures == 3
    assert "refused" in result.connect_error


# -- control ----------------------------------------------------------------------------------------------------------


def test_stopping_from_another_thread_gives_a_partial_result(serve, loop):
    answered = threading.Event()

    def noticing(data, seen):
        if seen:
            answered.set()
        return data

    with Session(Options(serve(changing(noticing)), loop=loop, connections=1, duration=1000, warm_up=0)) as session:
        session.connect()
        results = []
        running = threading.Thread(target=lambda: results.append(session.run()))
        running.start()
        assert answered.wait(PATIENCE)
        session.stop()
        running.join(PATIENCE)
    (result,) = results
    assert result.ok
    assert result.interrupted
    assert result.counters.messages > 0


def test_both_loops_count_the_same_things(serve, loop):
    with Session(Options(serve(echo), loop=loop, connections=1)) as session:
        session.connect()
        assert set(session.loop.counters()) == set(Counters.__dataclass_fields__)
        assert len(session.loop.latencies()) == len(session.loop.bursts()) == BUCKETS


def test_both_loops_share_the_bucket_arithmetic(loop):
    # The Python loop calls bucket_of; the compiled one repeats it in C.
    bucket = generator._generator.bucket if loop == "compiled" else bucket_of
    values = [max(0, (1 << power) + offset) for power in range(63) for offset in (-1, 0, 1)]
    assert [bucket(value) for value in values] == [bucket_of(value) for value in values]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("connections", 0),
        ("in_flight", 0),
        ("size", 0),
        ("size", -1),
        ("framing", "other"),
        ("duration", 0),
        ("warm_up", -1),
        ("number", -1),
        ("timeout", 0),
        ("loop", "other"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        Options(("127.0.0.1", 1), **{field: value})


def test_a_simple_frame_carries_no_more_than_its_length_field_says():
    with pytest.raises(ValueError, match="size"):
        Options(("127.0.0.1", 1), framing="simple", size=65_536)


def test_without_the_compiled_loop_the_other_is_chosen_or_the_reason_given(monkeypatch):
    monkeypatch.setattr(generator, "COMPILED", None)
    monkeypatch.setattr(generator, "NOT_COMPILED", "it was not built")
    assert choose_loop("auto")[0] == "python"
    with pytest.raises(RuntimeError, match="it was not built"):
        choose_loop("compiled")
