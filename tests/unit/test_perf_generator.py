"""The load generator's two hot loops, against servers that echo and servers that do not."""

import contextlib
import errno
import math
import os
import re
import select
import socket
import ssl
import threading

import certificates
import pytest
from echoes import changing, echo, faults, measure, read_exactly, read_messages, reset
from support import PATIENCE, wait_until

from hydrogen.perf import loops
from hydrogen.perf.framing import FRAMINGS, Mix, raw
from hydrogen.perf.generator import Session
from hydrogen.perf.histogram import BUCKETS, bucket_of
from hydrogen.perf.loops import Counters, Histograms, choose_loop
from hydrogen.perf.options import Options
from hydrogen.perf.tunnel import Tunnel, client_context

SOON = 1.0

OVERHEAD = {"raw": 0, "simple": 4, "checksum32": 8, "length": 4, "line": 1}
"""Bytes that a framing adds to a message; those of a WebSocket frame depend on the size."""


def wire_size(framing, size):
    if framing.startswith("websocket"):
        return size + (2 if size < 126 else 4 if size < 65536 else 10)
    return size + OVERHEAD[framing]


# -- right answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 1},
        {"size": 7, "in_flight": 3},
        {"size": 8, "in_flight": 5},
        {"size": 9, "in_flight": 16},
        {"size": 200_000, "in_flight": 3},
        {"size": 65_535, "framing": "simple", "in_flight": 3},
        {"size": 64, "burst": True, "in_flight": 20},
        *(
            {"size": size, "framing": framing, "in_flight": 16}
            for framing in FRAMINGS
            if framing != "raw"
            for size in (0, 1, 4, 8, 9, 200)
        ),
        *(
            {"size": size, "framing": "websocket", "in_flight": 3}
            for size in (125, 126, 65_535, 65_536)
        ),
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
    assert result.counters.messages == sum(result.histograms.latencies) == 50
    wire = wire_size(options.get("framing", "raw"), options.get("size", 64))
    assert sum(received) == result.counters.received == 50 * wire


@pytest.mark.parametrize(
    ("framing", "size"),
    [
        *(
            (framing, size)
            for framing in FRAMINGS
            if framing != "raw"
            for size in (0, 3, 8, 21, 1000)
        ),
        *(("websocket", size) for size in (125, 126, 65_535, 65_536)),
    ],
)
def test_messages_are_what_another_reader_of_their_format_expects(serve, loop, framing, size):
    received = bytearray()

    def collecting(data, seen):
        received.extend(data)
        return data

    assert measure(
        serve(changing(collecting)), loop, connections=1, framing=framing, size=size, in_flight=4
    ).ok
    found = read_messages(framing, bytes(received))
    assert [len(payload) for payload in found] == [size] * 50
    assert size < 8 or len(set(found)) == 50


def test_a_line_is_of_characters_that_no_server_strips(serve, loop):
    # a bytearray that two threads extend is damaged where there is no GIL (CPython 3.13)
    received = []

    def collecting(data, seen):
        received.append(data)
        return data

    assert measure(serve(changing(collecting)), loop, framing="line", size=300, number=200).ok
    assert set(b"".join(received)) == {ord("\n"), *range(ord("0"), ord("o") + 1)}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_replies_cut_into_single_bytes_are_followed(serve, loop, framing):
    def function(connection):
        while data := connection.recv(65536):
            for byte in data:
                connection.sendall(bytes([byte]))

    result = measure(serve(function), loop, size=21, framing=framing, in_flight=4)
    assert result.ok
    assert result.counters.messages == 50


def test_a_burst_larger_than_the_socket_buffers_is_read_while_it_is_written(serve, loop):
    number = 120_000  # 8 MB, more than the kernel keeps on both sides
    result = measure(serve(echo), loop, connections=1, in_flight=number, burst=True, number=number)
    assert result.ok
    assert result.counters.messages == number
    assert sum(result.histograms.bursts) == 1


def test_bursts_follow_each_other_when_all_is_answered(serve, loop):
    result = measure(serve(echo), loop, connections=2, in_flight=10, burst=True, number=60)
    assert result.ok
    assert sum(result.histograms.bursts) == 6


def test_messages_of_the_warm_up_are_not_counted(serve, loop):
    result = measure(serve(echo), loop, warm_up=0.05, number=10)
    assert result.ok
    assert result.counters.messages == sum(result.histograms.latencies) == 10


def test_a_run_by_the_clock_ends_with_nothing_in_flight(serve, loop):
    result = measure(serve(echo), loop, number=0, duration=0.5, in_flight=4)
    assert result.ok
    assert result.counters.messages > 0
    assert result.counters.elapsed_ns >= 500_000_000
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


# -- churn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"size": 1}, {"size": 200_000}, {"size": 9, "framing": "simple"}], ids=str
)
def test_with_churn_each_message_has_a_connection_of_its_own(serve, loop, options):
    ends = []
    wire = wire_size(options.get("framing", "raw"), options.get("size", 64))

    def function(connection):
        connection.sendall(message := read_exactly(connection, wire))
        ends.append((message, connection.recv(1)))

    result = measure(serve(function), loop, connections=3, churn=True, **options)
    assert result.ok
    assert result.counters.messages == sum(result.histograms.latencies) == 50
    assert result.counters.received == 50 * wire
    assert result.counters.live == 3
    # Those that carried a message were reset, so never got to `ends`; the last three were opened
    # and not used.
    wait_until(lambda: len(ends) == 3, "the end of the last connections")
    assert ends == [(b"", b"")] * 3


def test_with_churn_no_connection_waits_for_its_last_segments(serve, loop):
    ends = []

    def function(connection):
        connection.sendall(read_exactly(connection, 64))
        try:
            connection.recv(1)
        except OSError as error:
            ends.append(error.errno)

    assert measure(serve(function), loop, churn=True, number=7).ok
    wait_until(lambda: len(ends) == 7, "the end of the connections")
    assert set(ends) == {errno.ECONNRESET}


def test_with_churn_a_server_may_close_after_its_reply(serve, loop):
    result = measure(
        serve(lambda connection: connection.sendall(read_exactly(connection, 64))), loop, churn=True
    )
    assert result.ok
    assert result.counters.messages == 50


def test_churn_goes_on_from_the_warm_up_into_the_measurement(serve, loop):
    result = measure(serve(echo), loop, churn=True, number=0, warm_up=0.5, duration=0.5)
    assert result.ok
    assert result.counters.messages > 0


def test_one_wrong_byte_is_found_and_located_with_churn(serve, loop):
    turns = iter(range(10))

    def function(connection):
        message = bytearray(read_exactly(connection, 64))
        message[40] ^= next(turns) == 3
        connection.sendall(message)
        connection.recv(1)

    counters = measure(serve(function), loop, connections=1, churn=True).counters
    assert (counters.wrong, counters.wrong_message, counters.wrong_byte) == (1, 3, 40)


def test_with_churn_an_end_before_the_reply_is_found(serve, loop):
    turns = iter([echo, lambda connection: read_exactly(connection, 64)])
    result = measure(
        serve(lambda connection: next(turns)(connection)), loop, connections=1, churn=True
    )
    assert faults(result) == {"closed": 1, "unanswered": 1}
    assert result.counters.messages == 1


def test_with_churn_a_connection_that_is_refused_is_an_error(loop):
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = listener.accept()
        listener.close()
        with connection, contextlib.suppress(ConnectionResetError):
            echo(connection)

    server = threading.Thread(target=run)
    server.start()
    result = measure(listener.getsockname(), loop, connections=1, churn=True)
    server.join(PATIENCE)
    assert faults(result) == {"failed": 1, "unanswered": 1}
    assert result.counters.messages == 1
    assert result.counters.first_errno == errno.ECONNREFUSED


@pytest.mark.parametrize(
    "options",
    [{"in_flight": 2}, {"burst": True, "in_flight": 1}, {"tls": True}, {"address": "/path"}],
    ids=str,
)
def test_churn_is_one_message_at_a_time_over_plain_tcp(options):
    with pytest.raises(ValueError, match="churn"):
        Options(**{"address": ("127.0.0.1", 1), "churn": True} | options)


# -- wrong answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMINGS)
def test_one_wrong_byte_is_found_and_located(serve, loop, framing):
    wire = wire_size(framing, 64)

    def damage(data, seen):
        at = 3 * wire + 40 - seen  # byte 40 of message 3
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if 0 <= at < len(data) else data

    result = measure(serve(changing(damage)), loop, connections=1, framing=framing)
    assert not result.ok
    counters = result.counters
    assert (
        counters.wrong,
        counters.wrong_connection,
        counters.wrong_message,
        counters.wrong_byte,
    ) == (1, 0, 3, 40)
    assert counters.live == 0


@pytest.mark.parametrize("size", [5, 20])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_each_byte_of_a_message_matters(serve, loop, framing, size):
    positions = iter(range(wire_size(framing, size)))

    def function(connection):
        at, message = next(positions), bytearray(read_exactly(connection, wire_size(framing, size)))
        message[at] ^= 0x80
        connection.sendall(message)
        connection.recv(1)

    address = serve(function)
    for at in range(wire_size(framing, size)):
        counters = measure(address, loop, connections=1, framing=framing, size=size).counters
        assert (counters.wrong, counters.wrong_message, counters.wrong_byte) == (1, 0, at)


def test_replies_crossed_between_connections_are_found(serve, loop):
    meeting = threading.Barrier(2, timeout=PATIENCE)
    messages = {}

    def function(connection):
        messages[connection.fileno()] = read_exactly(connection, 64)
        meeting.wait()
        connection.sendall(
            next(message for fd, message in messages.items() if fd != connection.fileno())
        )
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
    result = measure(
        serve(changing(lambda data, seen: data + data)), loop, connections=1, number=1000
    )
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
    result = measure(
        serve(lambda connection: next(turns)(connection)), loop, connections=3, number=300
    )
    assert result.counters.live == 2
    assert result.counters.messages == 299


def test_a_server_that_never_answers_is_given_up(serve, loop):
    result = measure(
        serve(lambda connection: read_exactly(connection, 1 << 20)), loop, timeout=SOON, in_flight=2
    )
    assert faults(result) == {"unanswered": 4}


def test_one_reply_that_never_comes_is_unanswered(serve, loop):
    result = measure(
        serve(changing(lambda data, seen: data if seen < 64 * 9 else b"")),
        loop,
        connections=1,
        timeout=SOON,
    )
    assert faults(result) == {"unanswered": 1}
    assert result.counters.messages == 9


def test_connections_that_are_refused_are_counted(loop):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    result = measure(address, loop, connections=3)
    assert not result.ok
    assert result.connect_failures == 1  # the others are not tried
    assert "refused" in result.connect_error


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def measure_tls(serve, loop, tls, cacert):
    """Measure a server function over TLS."""

    def measure_tls(function, **options):
        return measure(serve(function, tls=tls), loop, tls=True, cacert=cacert, **options)

    return measure_tls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": 1, "in_flight": 5},
        {"size": 4, "framing": "simple", "in_flight": 16},
        {"size": 20_000, "framing": "checksum32", "in_flight": 7},
        {"size": 200_000, "in_flight": 3},
        {"burst": True, "in_flight": 20},
    ],
    ids=str,
)
def test_messages_go_and_return_through_tls(measure_tls, loop, options):
    received = []

    def counting(data, seen):
        received.append(len(data))
        return data

    result = measure_tls(changing(counting), **options)
    assert result.ok
    assert result.loop == loop
    assert result.tls.startswith("TLSv1.3 TLS_")
    assert result.counters.messages == sum(result.histograms.latencies) == 50
    wire = wire_size(options.get("framing", "raw"), options.get("size", 64))
    assert sum(received) == result.counters.received == 50 * wire


def test_tls_1_2_will_do(serve, loop, cacert):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificates.SERVER)
    result = measure(serve(echo, tls=context), loop, tls=True, cacert=cacert)
    assert result.ok
    assert result.tls.startswith("TLSv1.2 ")


def test_tls_records_cut_into_single_bytes_are_followed(serve, loop, tls, cacert):
    def function(connection):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls.wrap_bio(incoming, outgoing, server_side=True)

        def call(method, *arguments):
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    result = method(*arguments)
                    for byte in outgoing.read():
                        connection.sendall(bytes([byte]))
                    return result
                connection.sendall(outgoing.read())
                incoming.write(connection.recv(65536))

        call(session.do_handshake)
        while data := call(session.read, 65536):
            call(session.write, data)

    result = measure(serve(function), loop, tls=True, cacert=cacert, number=10)
    assert result.ok
    assert result.counters.messages == 10


def test_a_burst_larger_than_the_socket_buffers_is_read_while_it_is_written_through_tls(
    measure_tls,
):
    size, number = 60_000, 300  # 18 MB, more than the kernel keeps on both sides
    result = measure_tls(
        echo, connections=1, size=size, in_flight=number, burst=True, number=number
    )
    assert result.ok
    assert result.counters.messages == number


def test_what_the_kernel_does_not_take_at_once_follows_when_it_can(loop, tls, cacert):
    here, there = socket.socketpair()
    # a message is many times that, and is encrypted in one go
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def serve():
        with tls.wrap_socket(there, server_side=True) as connection:
            echo(connection)

    server = threading.Thread(target=serve)
    server.start()
    with here:
        tunnel = Tunnel(client_context(cacert, insecure=False), "localhost")
        here.setblocking(False)
        for _ in tunnel.handshake(here):
            select.select([here], [], [], PATIENCE)
        hot = choose_loop(loop)[1](
            [here.fileno()],
            mix=Mix((raw(60_000),)),
            depth=1,
            burst=False,
            seed=1,
            stall=PATIENCE,
            tunnels=[tunnel],
        )
        hot.run(0, 3)
        # an end without it OpenSSL answers with an alert, for which there may be no reader any more
        here.sendall(tunnel.close())
    server.join(PATIENCE)
    assert hot.messages == 3
    assert hot.counters()["unanswered"] == 0


def test_a_unix_socket_has_the_name_localhost_in_tls(serve, loop, tls, cacert, tmp_path):
    assert measure(serve(echo, str(tmp_path / "socket"), tls=tls), loop, tls=True, cacert=cacert).ok


def test_a_wrong_byte_is_found_and_located_in_tls(measure_tls):
    def damage(data, seen):
        at = 3 * 64 + 40 - seen  # byte 40 of message 3
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if 0 <= at < len(data) else data

    counters = measure_tls(changing(damage), connections=1).counters
    assert (counters.wrong, counters.wrong_message, counters.wrong_byte) == (1, 3, 40)


def test_a_reply_given_twice_is_found_in_tls(measure_tls):
    assert (
        measure_tls(
            changing(lambda data, seen: data + data), connections=1, number=1000
        ).counters.wrong
        == 1
    )


def test_bytes_that_nobody_asked_for_are_found_in_tls(measure_tls):
    def function(connection):
        connection.sendall(b"welcome")
        connection.recv(1)

    assert measure_tls(function, connections=1, number=0, duration=PATIENCE).counters.wrong == 1


def test_close_notify_before_the_reply_is_found_though_the_connection_stays(measure_tls):
    def function(connection):
        read_exactly(connection, 64)
        connection.unwrap()

    assert faults(measure_tls(function)) == {"closed": 2, "unanswered": 2}


def test_an_end_without_close_notify_is_found(measure_tls):
    assert faults(
        measure_tls(lambda connection: read_exactly(connection, 3 * 64), in_flight=3)
    ) == {"closed": 2, "unanswered": 6}


def test_what_is_no_tls_is_found(measure_tls):
    def function(connection):
        read_exactly(connection, 64)
        with socket.socket(fileno=os.dup(connection.fileno())) as bare:
            bare.sendall(b"this is no record")
            bare.recv(1)

    result = measure_tls(function)
    assert faults(result) == {"failed": 2, "unanswered": 2}
    assert result.counters.first_errno == errno.EPROTO


def test_tls_ends_with_close_notify(measure_tls):
    ends = []

    def function(connection):
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
            ends.append("graceful")
        except ssl.SSLError as error:
            ends.append(error)

    assert measure_tls(function).ok
    wait_until(lambda: len(ends) == 2, "the end of both connections")
    assert ends == ["graceful"] * 2


@pytest.mark.parametrize(
    ("trusted", "certificate", "insecure", "reason"),
    [
        (True, certificates.SERVER, False, ""),
        (False, certificates.SERVER, False, "certificate verify failed"),
        (True, certificates.MISNAMED, False, "IP address mismatch"),
        (False, certificates.MISNAMED, True, ""),
    ],
)
def test_the_certificate_is_verified_unless_told_otherwise(
    serve, loop, cacert, trusted, certificate, insecure, reason
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    result = measure(
        serve(echo, tls=context),
        loop,
        tls=True,
        cacert=cacert if trusted else None,
        insecure=insecure,
    )
    assert result.connect_failures == (1 if reason else 0)
    assert result.ok == (not reason)
    assert reason in result.connect_error


def test_a_handshake_that_is_not_answered_fails_after_the_timeout(serve, loop):
    result = measure(
        serve(lambda connection: connection.recv(1 << 20) and connection.recv(1)),
        loop,
        connections=1,
        tls=True,
        timeout=SOON,
    )
    assert result.connect_failures == 1
    assert "not open within 1 s" in result.connect_error


def test_a_handshake_that_is_cut_off_fails(serve, loop):
    result = measure(
        serve(lambda connection: connection.recv(1 << 20)), loop, connections=1, tls=True
    )
    assert result.connect_failures == 1
    assert "handshake" in result.connect_error


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_authorities_that_cannot_be_read_are_named(tmp_path, text):
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RuntimeError, match=re.escape(str(path))):
        Session(Options(("127.0.0.1", 1), tls=True, cacert=str(path)))


# -- control ---------------------------------------------------------------------------------------


def test_stopping_from_another_thread_gives_a_partial_result(serve, loop):
    answered = threading.Event()

    def noticing(data, seen):
        if seen:
            answered.set()
        return data

    with Session(
        Options(serve(changing(noticing)), loop=loop, connections=1, duration=1000, warm_up=0)
    ) as session:
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
        assert session.loops.counters() == Counters(
            **dict.fromkeys(Counters.__dataclass_fields__, 0) | {"live": 1}
        )
        assert {
            len(getattr(session.loops.histograms(), name))
            for name in Histograms.__dataclass_fields__
        } == {BUCKETS}


def test_both_loops_share_the_bucket_arithmetic(loop):
    # The Python loop calls bucket_of; the compiled one repeats it in C.
    bucket = loops._generator.bucket if loop == "compiled" else bucket_of
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
        ("duration", math.inf),
        ("duration", 1e10),
        ("warm_up", -1),
        ("warm_up", math.inf),
        ("number", -1),
        ("number", 1 << 63),
        ("rate", 1e-300),
        ("rate", math.nan),
        ("timeout", 0),
        ("timeout", math.inf),
        ("pid", -1),
        ("loop", "other"),
        ("cacert", "/ca.pem"),
        ("insecure", True),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        Options(("127.0.0.1", 1), **{field: value})


def test_authorities_and_no_verification_contradict_each_other():
    with pytest.raises(ValueError, match="cacert"):
        Options(("127.0.0.1", 1), tls=True, cacert="/ca.pem", insecure=True)


@pytest.mark.parametrize(("framing", "largest"), [("simple", 65_535), ("checksum32", 16_843_009)])
def test_a_frame_carries_no_more_than_its_format_allows(framing, largest):
    Options(("127.0.0.1", 1), framing=framing, size=largest)
    with pytest.raises(ValueError, match="size"):
        Options(("127.0.0.1", 1), framing=framing, size=largest + 1)


def test_without_the_compiled_loop_the_other_is_chosen_or_the_reason_given(monkeypatch):
    monkeypatch.setattr(loops, "COMPILED", None)
    monkeypatch.setattr(loops, "NOT_COMPILED", "it was not built")
    assert choose_loop("auto")[0] == "python"
    with pytest.raises(RuntimeError, match="it was not built"):
        choose_loop("compiled")
