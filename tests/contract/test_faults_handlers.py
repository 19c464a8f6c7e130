"""docs/faults.md, rows 23 to 26 and 27b: callbacks that raise or block, and calls from everywhere
at once.
"""

import os
import random
import threading

import pytest
from support import PATIENCE, echo, recorder, running, simple, wait_event, wait_until

import hydrogen

HANDOFFS = pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])


# ------------------------------------------------------------------------------------------- row 23


def raises(error):
    """A hook that raises `error`."""

    def hook(*args):
        raise error

    return hook


def provoke(name, client, server):
    """Do what makes the callback `name` run."""
    if name in ("data_received", "writable"):
        client.send(b"x")
    if name == "writable":
        # else it might read as fast as the server writes, and nothing be pending
        wait_until(lambda: server.stats().reading_pauses == 1, "the kernel takes no more")
        client.receive(8 << 20)
    if name == "eof":
        client.finish()


@pytest.mark.clause("H16", "H20")
@pytest.mark.parametrize(
    "name", ["new_connection", "connected", "data_received", "eof", "writable"]
)
def test_f23_a_callback_that_raises_is_logged_and_removes_its_connection(
    start, connect, error_log, name
):
    error = ZeroDivisionError("mine")
    hooks = {"data_received": lambda socket, data: socket.send(bytes(8 << 20))} | {
        name: raises(error)
    }
    handler = recorder(**hooks)
    server = start(handler)
    client = connect(server, receive_buffer=65_536)
    provoke(name, client, server)
    assert client.at_end() in ("end", "reset")
    client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert removal.__cause__ is error
    assert [call.value.__cause__ for call in handler.of("disconnected")] == (
        [] if name == "new_connection" else [error]
    )
    (record,) = wait_until(error_log, "it is logged")
    assert f"on_{name}" in record.getMessage()
    assert record.exc_info[1] is error
    assert record.exc_info[2] is not None
    wait_until(lambda: server.stats().removed_handler_error == 1, "it is counted")


@pytest.mark.clause("H17")
@pytest.mark.parametrize("name", ["disconnected", "connection_removed"])
def test_f23_what_the_last_two_callbacks_raise_is_only_logged(start, connect, error_log, name):
    error = ZeroDivisionError("mine")
    handler = recorder(**{"data_received": echo, name: raises(error)})
    server = start(handler)
    for number in range(1, 4):
        client = connect(server)
        client.echo(b"x")
        client.close()
        assert type(handler.wait_removed(number)[-1]) is hydrogen.PeerClosed
    wait_until(lambda: server.stats().connections == 0, "the slots are vacant")
    wait_until(lambda: len(error_log()) == 3, "each is logged")
    records = error_log()
    assert {record.exc_info[1] for record in records} == {error}
    assert f"on_{name}" in records[0].getMessage()


@pytest.mark.clause("H16")
@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_f23_even_an_exception_that_means_exit_ends_its_connection_only(
    start, connect, error_log, error
):
    handler = recorder(
        data_received=lambda socket, data: raises(error)() if data == b"x" else socket.send(data)
    )
    server = start(handler)
    neighbour = connect(server)
    neighbour.echo(b"y")
    for _ in range(5):  # more often than there are workers
        client = connect(server)
        client.send(b"x")
        client.at_end()
        client.close()
    assert {removal.__cause__ for removal in handler.wait_removed(5)} == {error}
    neighbour.echo(b"z")


@pytest.mark.clause("H16")
def test_f23_what_was_sent_before_the_callback_raised_arrives_and_no_later_message_is_delivered(
    start, connect, error_log
):
    handler = recorder(
        data_received=lambda socket, data: (socket.send(b"answer"), raises(ValueError("no"))())
    )
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"one") + simple(b"two"))
    assert client.receive_until_end() == simple(b"answer")
    client.close()
    handler.wait_removed()
    assert handler.messages() == [b"one"]


# --------------------------------------------------------------------------------- rows 24, 24b, 25


@pytest.mark.clause("H22", "C6", "C21")
@HANDOFFS
@pytest.mark.parametrize("framing", [None, hydrogen.SimpleFrameBuilder], ids=["raw", "frames"])
def test_f24_with_all_handlers_but_one_held_every_other_connection_is_answered(
    start, connect, gate, handoff, framing
):
    """Promise 1. The held ones are let go only after all the others were answered."""
    go = gate()

    def received(socket, data):
        if data == b"hold":
            wait_event(go, "the test lets the handlers go")
        socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=5, handoff=handoff, framing=framing)
    frame = simple if framing else bytes
    held = [connect(server) for _ in range(4)]
    others = [connect(server) for _ in range(20)]
    for number, client in enumerate(held, 1):
        client.send(frame(b"hold"))
        handler.wait(
            lambda number=number: handler.messages().count(b"hold") == number,
            f"{number} handlers are held",
        )
    for _ in range(5):
        for client in others:
            client.send(frame(b"free"))
        for client in others:
            assert client.receive(len(frame(b"free"))) == frame(b"free")
    late = [connect(server) for _ in range(10)]
    for client in late:
        client.echo(frame(b"late"))
    assert not go.is_set()
    go.set()
    for client in held:
        assert client.receive(len(frame(b"hold"))) == frame(b"hold")


@HANDOFFS
def test_f24_handlers_that_come_to_block_in_one_batch_delay_nobody_behind_them(
    start, connect, gate, handoff
):
    """All messages wait when the only free worker gets to them: the blocking ones in front must not
    hold those behind.
    """
    go, first = gate(), gate()

    def received(socket, data):
        if data == b"first":
            wait_event(first, "let go")
        if data == b"hold":
            wait_event(go, "let go")
        socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=4, handoff=handoff)
    firsts = [connect(server) for _ in range(4)]
    held = [connect(server) for _ in range(3)]
    others = [connect(server) for _ in range(20)]
    for number, client in enumerate(firsts, 1):
        client.send(b"first")
        handler.wait_for("data_received", number)
    for client in held:
        client.send(b"hold")
    for client in others:
        client.send(b"free")
    first.set()
    for client in others:
        assert client.receive(4) == b"free"
    assert not go.is_set()
    go.set()
    for client in held:
        assert client.receive(4) == b"hold"


@HANDOFFS
def test_f24b_with_all_workers_blocked_half_sent_replies_still_move_and_nothing_is_lost(
    start, connect, gate, handoff
):
    go = gate()
    reply = os.urandom(8 << 20)

    def received(socket, data):
        if data == b"big":
            socket.send(reply)
        elif data == b"hold":
            wait_event(go, "let go")
        else:
            socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=3, handoff=handoff)
    slow = [connect(server, receive_buffer=65_536) for _ in range(2)]
    for client in slow:
        client.send(b"big")
    sockets = [call.socket for call in handler.wait_for("data_received", 2)]
    wait_until(lambda: all(socket.pending for socket in sockets), "the replies are blocked")
    held = [connect(server) for _ in range(3)]
    for number, client in enumerate(held, 3):
        client.send(b"hold")
        handler.wait_for("data_received", number)
    waiting = [connect(server) for _ in range(5)]  # accepted, though nobody can serve them
    for client in waiting:
        client.send(b"patient")
    with running(*(lambda client=client: check(client, reply) for client in slow)):
        pass
    assert not go.is_set()
    assert handler.data().count(b"patient") == 0
    go.set()
    for client in waiting:
        assert client.receive(7) == b"patient"
    for client in slow + held:
        client.echo(b"served again")


def check(client, reply):
    """The whole reply comes."""
    assert client.receive(len(reply)) == reply


@pytest.mark.clause("P2")
@HANDOFFS
def test_f25_what_a_handler_sent_leaves_although_the_handler_then_blocks(
    start, connect, gate, handoff
):
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (socket.send(b"sent"), wait_event(go, "let go"))
    )
    server = start(handler, max_threads=3, handoff=handoff)
    for number in range(2):
        client = connect(server)
        client.send(b"x")
        assert client.receive(4) == b"sent", number
    assert not go.is_set()


@pytest.mark.clause("P2")
@HANDOFFS
def test_f25_replies_of_other_connections_in_the_same_batch_leave_too(
    start, connect, gate, handoff
):
    """The replies of one turn are not kept back by the handler that blocks at its end, nor with all
    workers blocked.
    """
    go, first = gate(), gate()

    def received(socket, data):
        if data == b"first":
            wait_event(first, "let go")
        elif data == b"hold":
            wait_event(go, "let go")
        else:
            socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, max_threads=1, handoff=handoff)
    connect(server).send(b"first")
    handler.wait_for("data_received")
    answered = [connect(server) for _ in range(5)]
    for client in answered:
        client.send(b"reply")
    connect(server).send(b"hold")
    first.set()
    handler.wait(lambda: b"hold" in handler.messages(), "the last handler blocks")
    delivered = {
        call.socket.peername for call in handler.of("data_received") if call.value == b"reply"
    }
    for client in answered:
        # the only worker had them before it came to the one that blocks
        if client.name in delivered:
            assert client.receive(5) == b"reply"
    assert not go.is_set()


# ------------------------------------------------------------------------------------- rows 26, 27b


@pytest.mark.clause("K18", "K3", "K6", "H14")
@HANDOFFS
def test_f26_calls_from_everywhere_at_once_have_a_defined_result(start, connect, handoff):
    """Threads and callbacks send, close and abort the same connections; each is removed once, and
    each thread's order is kept.
    """

    def numbered(socket, data):
        number = int(data)
        assert type(socket.send(b"9:%d" % number)) is bool
        if number == 150:
            socket.close()

    handler = recorder(
        connected=None,
        data_received=numbered,
        disconnected=lambda socket, err: socket.send(b"late"),
    )
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, handoff=handoff)
    ends = ["close", "abort", "shutdown", "peer", "reset", "callback", "all"]
    for round, how in enumerate(ends, 1):
        client = connect(server)
        socket = handler.wait_for("connected", round)[-1].socket
        begin = threading.Barrier(5)

        def sender(name, socket=socket, begin=begin):
            begin.wait(PATIENCE)
            accepted = [socket.send(b"%d:%d" % (name, number)) for number in range(200)]
            assert accepted == sorted(accepted, reverse=True), (
                "a send was taken after one was refused"
            )

        def ender(socket=socket, client=client, how=how, begin=begin):
            begin.wait(PATIENCE)
            for number in range(200):
                if how == "all" and number == 100:
                    random.choice([socket.close, socket.abort])()
                elif number == 100 and how in ("close", "abort", "shutdown"):
                    getattr(socket, how)()
                elif number == 100 and how == "peer":
                    client.finish()
                try:
                    client.send(simple(b"%d" % number))
                except OSError:
                    return

        def reader(client=client, how=how, begin=begin):
            begin.wait(PATIENCE)
            last = {}
            try:
                while how != "reset" or sum(last.values()) < 200:
                    name, number = map(int, client.receive_frame().split(b":"))
                    assert number > last.get(name, -1), f"{number} of {name} after {last[name]}"
                    last[name] = number
                client.reset()
            except (OSError, AssertionError) as error:
                if isinstance(error, AssertionError) and "too early" not in str(error):
                    raise

        with running(lambda: sender(0), lambda: sender(1), lambda: sender(2), ender, reader):
            pass
        client.close()
        handler.wait_removed(round)
        assert not socket.is_open
        assert socket.send(b"after the end") is False
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    assert len(handler.of("connection_removed")) == len(ends)


@pytest.mark.clause("H15", "H14", "K17")
def test_f27b_handlers_that_file_connections_by_fd_never_find_a_stranger(start, connect):
    """A dict from fd to connection, without a lock: right, because the number is not used again
    before the last callback returns.
    """
    filed = {}
    strange = []

    def new(fd):
        if fd in filed:
            strange.append(f"{fd} is filed when it is new")
        filed[fd] = [None, None]

    def received(socket, data):
        entry = filed.get(socket.fileno())
        if entry is None:
            strange.append(f"{socket.fileno()} is not filed")
            return
        if entry[0] is None:
            entry[:] = [socket.id, data]
        if entry != [socket.id, data]:
            strange.append(f"{socket.fileno()} is filed as {entry} and is {socket.id}, {data!r}")
        socket.send(data)

    def removed(fd, err):
        if filed.pop(fd, None) is None:
            strange.append(f"{fd} was not filed when it was removed")

    handler = recorder(new_connection=new, data_received=received, connection_removed=removed)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)

    def client(seed):
        dice = random.Random(seed)
        for number in range(60):
            client = connect(server)
            tag = b"%d/%d" % (seed, number)
            for _ in range(dice.randrange(3)):
                client.send(simple(tag))
                assert client.receive_frame() == tag
            if dice.random() < 0.5:
                client.send(simple(tag) * 3)
            client.reset() if dice.random() < 0.5 else client.close()

    with running(*(lambda seed=seed: client(seed) for seed in range(6))):
        pass
    handler.wait_removed(360)
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    assert strange == []
    assert filed == {}
