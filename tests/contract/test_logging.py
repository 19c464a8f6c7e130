"""What a server says of itself to the logger `hydrogen`: at which level, how often, and what it
keeps to itself.
"""

import logging
import re
import socket

import pytest
from certificates import client_context, server_context
from support import (
    PATIENCE,
    Client,
    Echo,
    TlsClient,
    echo,
    recorder,
    running,
    wait_event,
    wait_until,
)

import hydrogen
from hydrogen.watchdog import has_gil

BIG = bytes(8 << 20)
"""More than the kernel takes for a peer that does not read."""

LEFT_OUT = re.compile(r"^(.+): (\d+) more lines of this kind were suppressed$")


@pytest.fixture
def lines(caplog):
    """What hydrogen logged so far: at a level (by its name), or at all."""

    def lines(level=None):
        records = [
            record
            for record in caplog.get_records("call")
            if record.name.split(".")[0] == "hydrogen"
        ]
        return [record.getMessage() for record in records if level in (None, record.levelname)]

    return lines


@pytest.fixture
def at_debug(caplog):
    """The logger is enabled for DEBUG."""
    caplog.set_level(logging.DEBUG, logger="hydrogen")


def talk_plainly(client):
    """To a server that wants TLS; and read its alert."""
    client.send(b"plain text, which is no handshake\r\n")
    client.at_end()
    client.close()


# --------------------------------------------------------------------------------------------- INFO


@pytest.mark.clause("S50")
def test_a_start_and_a_stop_are_a_line_each_at_info(start, lines, engine):
    server = start(Echo(), addr=("127.0.0.1", "127.0.0.2"), max_threads=3, max_connections=77)
    (line,) = lines()
    for part in (*map(str, server.addresses), engine, "3 workers", "77 connections"):
        assert part in line
    server.stop()
    first, second = lines("INFO")
    assert first == line
    assert "stopped" in second
    assert lines() == [first, second]


@pytest.mark.clause("S50")
def test_connections_that_come_and_go_and_all_that_is_theirs_is_no_line_at_info(
    start, connect, lines
):
    handler, other = recorder(data_received=echo), recorder(data_received=echo)
    server, secure = (
        start(handler, max_threads=32),
        start(other, max_threads=32, ssl=server_context()),
    )
    before = lines()
    for number in range(20):
        client = connect(server)
        client.echo(b"x")
        client.reset() if number % 2 else client.close()
    TlsClient(connect(secure), client_context()).handshake().close()
    talk_plainly(connect(secure))
    handler.wait_removed(20)
    other.wait_removed(2)
    assert lines() == before


# -------------------------------------------------------------------------------------------- DEBUG


@pytest.mark.clause("S50")
def test_single_connections_are_lines_at_debug(start, connect, lines, at_debug):
    """Each has one for its coming and one for its going, which name it."""
    handler = recorder(data_received=echo)
    server = start(handler)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        client.echo(b"x")
    ports = [str(client.name[1]) for client in clients]
    for client in clients:
        client.close()
    handler.wait_removed(3)
    wait_until(lambda: len(lines("DEBUG")) == 6, f"the lines; {lines('DEBUG')}")
    assert [len([line for line in lines("DEBUG") if port in line]) >= 1 for port in ports] == [
        True
    ] * 3
    assert len([line for line in lines("DEBUG") if "PeerClosed" in line]) == 3
    for number in range(1, 4):
        assert len([line for line in lines("DEBUG") if f"connection {number} " in line]) == 2


@pytest.mark.clause("S50")
def test_handshakes_are_lines_at_debug(start, connect, lines, at_debug):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, ssl=server_context())
    tls = TlsClient(connect(server), client_context()).handshake()
    handler.wait_for("connected")
    tls.echo(b"x")
    wait_until(
        lambda: any("handshake" in line for line in lines("DEBUG")),
        f"a line about it; {lines('DEBUG')}",
    )
    talk_plainly(connect(server))
    handler.wait_removed()
    wait_until(
        lambda: any("SSL" in line or "TLS" in line for line in lines("DEBUG")),
        f"a line about it; {lines('DEBUG')}",
    )
    assert lines("WARNING") == lines("ERROR") == []


@pytest.mark.clause("S50")
def test_debug_that_is_enabled_after_the_start_says_nothing_of_connections(
    start, connect, lines, caplog
):
    handler = recorder(data_received=echo)
    server = start(handler)
    caplog.set_level(logging.DEBUG, logger="hydrogen")
    for number in range(1, 4):
        client = connect(server)
        client.echo(b"x")
        client.close()
        handler.wait_removed(number)
    assert lines("DEBUG") == []


@pytest.mark.clause("S52", "S50")
def test_of_a_storm_of_connections_at_debug_so_many_lines_are_written_and_the_rest_is_counted(
    start, lines, at_debug
):
    handler = recorder(data_received=echo)
    server = start(handler)

    def storm():
        for _ in range(50):
            with Client(server.address) as client:
                client.echo(b"x")

    with running(*[storm] * 4):
        pass
    handler.wait_removed(200)
    server.stop()
    written = [line for line in lines("DEBUG") if not LEFT_OUT.match(line)]
    left_out = [int(found[2]) for found in map(LEFT_OUT.match, lines("DEBUG")) if found]
    assert len(written) + sum(left_out) >= 400
    assert (len(written) + sum(left_out)) % 200 == 0
    assert sum(left_out) > len(written)


# ------------------------------------------------------------------------------------------ WARNING


@pytest.mark.clause("S51", "C32")
def test_overload_that_pauses_is_a_warning_that_names_the_limit(start, connect, lines):
    server = start(Echo(), max_connections=1)
    connect(server).echo(b"x")
    connect(server)
    wait_until(lambda: server.stats().accept_pauses == 1, "accepting is paused")
    wait_until(
        lambda: any("max_connections" in line for line in lines("WARNING")),
        f"a line about it; {lines()}",
    )
    assert lines("ERROR") == []


@pytest.mark.clause("S51", "C33", "C35")
@pytest.mark.parametrize(
    "options",
    [{"max_connections": 1, "overload": "close"}, {"max_connections_per_ip": 1}],
    ids=["all", "address"],
)
def test_overload_that_turns_away_is_a_warning_that_names_the_limit(start, connect, lines, options):
    server = start(Echo(), **options)
    connect(server).echo(b"x")
    assert connect(server).at_end() == "reset"
    wait_until(
        lambda: any(next(iter(options)) in line for line in lines("WARNING")),
        f"a line about it; {lines()}",
    )
    assert lines("ERROR") == []


@pytest.mark.clause("S51", "S52", "C33")
def test_of_a_storm_of_those_turned_away_a_bounded_number_of_lines_is_written(
    start, connect, lines
):
    server = start(Echo(), max_connections=1, overload="close")
    connect(server).echo(b"x")
    for _ in range(200):
        assert connect(server).at_end() == "reset"
    server.stop(0)
    written = [line for line in lines("WARNING") if not LEFT_OUT.match(line)]
    left_out = [int(found[2]) for found in map(LEFT_OUT.match, lines("WARNING")) if found]
    # of several in one turn there may be one line
    assert 1 <= len(written) <= len(written) + sum(left_out) <= 200
    assert len(written) < 100
    assert server.stats().removed_overload == 200


@pytest.mark.clause("S51", "C17")
def test_a_slow_consumer_is_a_warning_that_names_it(start, connect, lines):
    handler = recorder(connected=None)
    server = start(handler, max_write_buffer=1000)
    client = connect(server, receive_buffer=4096)
    name = client.name
    assert handler.socket().send(BIG)
    assert handler.socket().send(b"one too many") is False
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    wait_until(
        lambda: [line for line in lines("WARNING") if str(name[1]) in line],
        f"a line about it; {lines()}",
    )
    assert len(lines("WARNING")) == 1


@pytest.mark.clause("S51")
@pytest.mark.parametrize("what", ["slow consumer", "callback", "DEBUG"])
def test_a_peer_writes_no_line_of_its_own(
    start, tmp_path, monkeypatch, lines, caplog, error_log, what
):
    """By the name of its Unix socket, which may be anything."""
    monkeypatch.chdir(tmp_path)
    name = "x\n2026-11-29 CRITICAL payments: ledger corrupt\x1b[2K"
    if what == "DEBUG":
        caplog.set_level(logging.DEBUG, logger="hydrogen")

    def connected(socket):
        if what == "slow consumer":
            socket.send(BIG)
            socket.send(b"one too many")
        elif what == "callback":
            raise ZeroDivisionError

    handler = recorder(connected=connected)
    start(handler, path="server", max_write_buffer=1000)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(name)
        peer.connect("server")
        handler.wait_for("connected")
        if what == "DEBUG":
            peer.close()
        handler.wait_removed()
    level = {"slow consumer": "WARNING", "callback": "ERROR", "DEBUG": "DEBUG"}[what]
    (line,) = wait_until(
        lambda: [line for line in lines(level) if "ledger" in line], "a line about it"
    )
    assert repr(name) in line
    assert line.isprintable()


@pytest.mark.clause("S51", "C18")
def test_a_slow_consumer_that_goes_for_want_of_memory_is_a_warning_that_names_it(
    start, connect, lines
):
    handler = recorder(connected=None)
    server = start(handler, max_buffered=1 << 20)
    client = connect(server, receive_buffer=4096)
    name = client.name
    assert handler.socket().send(BIG)
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    wait_until(
        lambda: [line for line in lines("WARNING") if str(name[1]) in line],
        f"a line about it; {lines()}",
    )


@pytest.mark.clause("S51", "C6")
def test_workers_that_are_all_blocked_while_others_wait_are_a_warning(start, connect, gate, lines):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler, max_threads=2)
    connect(server).send(b"x")
    handler.wait_for("data_received")
    assert lines("WARNING") == []
    for _ in range(2):
        connect(server).send(b"x")
    wait_until(
        lambda: [line for line in lines("WARNING") if "2" in line and "worker" in line],
        f"a line about it; {lines()}",
        10.0,
    )
    assert server.stats().all_blocked == 1
    assert len(lines("WARNING")) == 1
    go.set()


# -------------------------------------------------------------------------------------------- ERROR


def fail(*args):
    raise ZeroDivisionError("mine")


@pytest.mark.clause("S51", "H16", "S45")
def test_what_a_callback_raises_is_an_error_with_its_traceback(start, connect, lines, error_log):
    handler = recorder(data_received=fail)
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    client.at_end()
    client.close()
    handler.wait_removed()
    server.call_later(0, fail)
    wait_until(lambda: len(error_log()) == 2, "both are logged")
    for record, name in zip(error_log(), ("on_data_received", "call_later"), strict=True):
        assert name in record.getMessage()
        assert record.levelno == logging.ERROR
        frames = []
        traceback = record.exc_info[2]
        while traceback is not None:
            frames.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        assert frames[-1] == "fail"


@pytest.mark.slow
@pytest.mark.clause("S52", "S51", "H16")
def test_of_a_thousand_callbacks_that_fail_so_many_lines_are_written_and_the_counts_add_up(
    start, lines, error_log
):
    handler = recorder(data_received=fail)
    server = start(handler, max_threads=2)

    def knock():
        for _ in range(250):
            with Client(server.address) as client:
                client.send(b"x")
                client.at_end()

    with running(*[knock] * 4):
        pass
    handler.wait_removed(1000)
    server.stop()
    written = [line for line in lines("ERROR") if "on_data_received raised" in line]
    left_out = [found for found in map(LEFT_OUT.match, lines("ERROR")) if found]
    assert {found[1] for found in left_out} == {"on_data_received"}
    assert len(written) + sum(int(found[2]) for found in left_out) == 1000
    assert len(lines("ERROR")) < 500  # so many would take 45 seconds
    assert server.stats().removed_handler_error == 1000
    assert len(error_log()) == len(lines("ERROR"))


@pytest.mark.slow
@pytest.mark.clause("S52")
def test_what_was_left_out_is_told_when_the_second_is_over_and_not_only_at_the_stop(
    start, lines, error_log
):
    server = start(Echo())
    for _ in range(30):
        server.call_later(0, fail)
    told = wait_until(
        lambda: [found for found in map(LEFT_OUT.match, lines("ERROR")) if found],
        "the count is logged",
    )
    assert server.ready
    assert told[0][1] == "call_later"
    wait_until(
        lambda: sum(int(found[2]) for found in map(LEFT_OUT.match, lines("ERROR")) if found) == 20,
        "twenty were left out",
    )
    assert len(error_log()) >= 11


@pytest.mark.clause("S52")
def test_of_each_kind_there_may_be_as_many(start, connect, lines, error_log):
    """Ten callbacks each that fail in four places are forty lines."""
    handler = recorder(
        connected=None, data_received=fail, disconnected=fail, connection_removed=fail
    )
    server = start(handler)
    for number in range(1, 11):
        client = connect(server)
        client.send(b"x")
        client.at_end()
        client.close()
        handler.wait_removed(number)
        server.call_later(0, fail)
    wait_until(lambda: len(error_log()) >= 40, f"there are {len(error_log())} lines")
    counts = {
        name: len([line for line in lines("ERROR") if name in line])
        for name in ("data_received", "disconnected", "removed", "later")
    }
    assert counts == dict.fromkeys(counts, 10)


# ------------------------------------------------------------------------------------ slow_callback


SLOW = 0.4
"""Seconds: a callback that waits for nothing does not take so long on a busy machine."""


def dawdling_in_a_function_of_this_name(event):
    wait_event(event, "let go")


def slow_lines(lines):
    """The warnings about slow callbacks."""
    return [line for line in lines("WARNING") if "callback" in line]


@pytest.mark.slow
@pytest.mark.clause("C41")
@pytest.mark.parametrize("where", ["connected", "data_received", "disconnected", "call_later"])
def test_a_callback_that_is_slow_is_logged_once_with_the_stack_that_names_where(
    start, connect, gate, lines, where
):
    go, again = gate(), gate()
    gates = iter([go, again])
    hooks = {"data_received": echo}
    if where != "call_later":
        hooks[where] = lambda *args: dawdling_in_a_function_of_this_name(next(gates))
    handler = recorder(**hooks)
    server = start(handler, slow_callback=SLOW)
    for number in range(1, 3):
        if where == "call_later":
            server.call_later(0, lambda: dawdling_in_a_function_of_this_name(next(gates)))
        else:
            client = connect(server)
            client.send(b"x")
            client.finish()
        wait_until(
            lambda number=number: len(slow_lines(lines)) == number,
            f"it is logged; {lines('WARNING')}",
        )
        assert ("dawdling_in_a_function_of_this_name" in slow_lines(lines)[-1]) == has_gil()
        assert "hydrogen-worker-" in slow_lines(lines)[-1]
    # The first has gone on for as long again, and was told of no more.
    assert server.stats().slow_callbacks == 2
    go.set()
    again.set()
    server.stop(PATIENCE)
    assert len(slow_lines(lines)) == server.stats().slow_callbacks == 2


@pytest.mark.slow
@pytest.mark.clause("C41")
@pytest.mark.parametrize("max_threads", [2, 4])
def test_many_short_callbacks_are_not_one_slow_one(start, connect, gate, lines, max_threads):
    """They keep a worker busy until one that is slow, and began later, is told of."""
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (
            dawdling_in_a_function_of_this_name(go) if data == b"slow" else socket.send(data)
        )
    )
    server = start(handler, slow_callback=SLOW, max_threads=max_threads)
    client = connect(server)
    client.echo(b"x")
    connect(server).send(b"slow")

    def told():
        client.echo(b"x" * 100)
        return slow_lines(lines)

    wait_until(told, "the slow one is told of")
    for _ in range(20):
        client.echo(b"x")
    assert len(slow_lines(lines)) == server.stats().slow_callbacks == 1
    go.set()


@pytest.mark.slow
@pytest.mark.clause("C41")
def test_without_slow_callback_none_is_told_of(start, connect, gate, lines):
    """Another server tells of one as slow, which began later."""
    go = gate()

    def received(socket, data):
        dawdling_in_a_function_of_this_name(go)

    handlers = [recorder(data_received=received) for _ in range(2)]
    server, watched = start(handlers[0]), start(handlers[1], slow_callback=SLOW)
    for handler, one in zip(handlers, (server, watched), strict=True):
        connect(one).send(b"x")
        handler.wait_for("data_received")
    wait_until(lambda: slow_lines(lines), "the other is told of")
    assert len(slow_lines(lines)) == 1
    assert server.stats().slow_callbacks == 0
    go.set()
