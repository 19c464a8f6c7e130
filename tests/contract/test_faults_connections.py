"""docs/faults.md, rows 10 to 17: how connections end, break, and are mistaken for one another."""

import collections
import os
import random
import socket as stdlib_socket
import threading

import pytest
from support import (
    Client,
    Echo,
    child,
    echo,
    finish,
    recorder,
    running,
    simple,
    wait_event,
    wait_until,
)

import hydrogen


@pytest.mark.clause("H10")
@pytest.mark.parametrize("framing", [None, hydrogen.SimpleFrameBuilder], ids=["raw", "frames"])
def test_f10_data_that_comes_with_a_fin_is_delivered_before_the_end(start, connect, framing):
    handler = recorder(data_received=echo, eof=lambda socket: socket.close())
    server = start(handler, framing=framing)
    data = simple(b"last words") if framing else b"last words"
    for number in range(1, 31):
        client = connect(server)
        # the FIN rides on the data
        client.sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_CORK, 1)
        client.send(data)
        client.finish()
        assert client.receive_until_end() == data
        client.close()
        handler.wait_removed(number)
    names = collections.defaultdict(list)
    for call in handler.calls:
        names[call.id].append(call.name)
    del names[None]
    assert set(map(tuple, names.values())) == {("on_data_received", "on_eof", "on_disconnected")}


def test_f10_data_and_fin_that_come_while_the_handler_is_busy_are_delivered_before_the_end(
    start, connect, gate
):
    go = gate()
    handler = recorder(data_received=lambda socket, data: wait_event(go, "let go"))
    client = connect(start(handler))
    client.send(b"first")
    handler.wait_for("data_received")
    client.send(os.urandom(50_000))
    client.close()
    go.set()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed
    assert len(handler.data()) == 50_005


@pytest.mark.clause("H11")
def test_f11_a_reply_reaches_a_peer_that_has_ended_its_side(start, connect):
    reply = os.urandom(2_000_000)
    client = connect(start(recorder(data_received=lambda socket, data: socket.send(reply))))
    client.send(b"request")
    client.finish()
    assert client.receive_until_end() == reply


@pytest.mark.clause("H11")
def test_f11_a_reply_that_is_made_later_reaches_a_peer_that_has_ended_its_side(start, connect):
    handler = recorder(eof=None)
    client = connect(start(handler))
    client.send(b"request")
    client.finish()
    handler.wait_for("eof")
    reply = os.urandom(2_000_000)
    got = []
    with running(lambda: got.append(client.receive_until_end())):
        assert handler.socket().send(reply)
        handler.socket().close()
    assert got == [reply]


@pytest.mark.clause("K8")
def test_f11b_close_after_a_large_reply_does_not_reset_a_peer_that_is_still_sending(start, connect):
    reply = os.urandom(3_000_000)
    handler = recorder(data_received=lambda socket, data: (socket.send(reply), socket.close()))
    server = start(handler)
    client = connect(server, receive_buffer=65_536)
    done = threading.Event()

    def keep_sending():
        with stdlib_socket.socket(fileno=os.dup(client.sock.fileno())) as sock:
            sock.settimeout(0.05)
            while not done.is_set():
                try:
                    sock.send(b"more and more" * 100)
                except TimeoutError:
                    continue
                except OSError:
                    return

    got = []
    with running(keep_sending):
        got.append(client.receive_until_end())
        done.set()
    client.close()
    assert got == [reply]
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K8")
def test_f11b_what_a_peer_sends_with_its_end_does_not_reset_it_before_it_has_read_the_reply(
    start, connect, gate
):
    """The reply is with the kernel, and the peer reads late. Its last bytes and its FIN are met at
    once, as both sides have ended then.
    """
    go = gate()
    reply = os.urandom(200_000)

    def received(socket, data):
        if data == b"hold":
            wait_event(go, "let go")
        else:
            socket.send(reply)
            socket.close()

    handler = recorder(data_received=received)
    server = start(handler, max_threads=1)
    holder, client = connect(server), connect(server, receive_buffer=4096)
    client.send(b"request")
    wait_until(lambda: server.stats().bytes_sent == len(reply), "the kernel has the reply")
    holder.send(b"hold")
    handler.wait(lambda: b"hold" in handler.messages(), "the worker is held")
    client.send(b"more and more")
    client.finish()
    wait_until(lambda: client.unacknowledged() == 0, "it has arrived")
    go.set()
    assert client.receive_until_end() == reply
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.parametrize("held", [False, True], ids=["idle", "busy"])
def test_f11c_urgent_data_leaves_no_byte_waiting_for_another_edge(start, connect, gate, held):
    """A read stops at the urgent mark; what is behind it must be read without a further event."""
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: wait_event(go, "let go") if data == b"hold" else None
    )
    server = start(handler, max_threads=1)
    if held:
        connect(server).send(b"hold")
        handler.wait_for("data_received")
    clients = [connect(server) for _ in range(10)]
    for client in clients:
        client.send(b"before")
        client.sock.send(b"!", stdlib_socket.MSG_OOB)
        client.send(b"after")
    go.set()
    handler.wait(
        lambda: handler.data().count(b"after") == 10 and handler.data().count(b"before") == 10,
        "all of it",
    )
    for client in clients:
        client.close()
    handler.wait_removed(10)
    assert {handler.data(call.id).replace(b"!", b"") for call in handler.of("disconnected")} <= {
        b"beforeafter",
        b"hold",
    }


def test_f12_a_storm_of_resets_removes_each_connection_once_and_does_not_spin(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler)
    neighbour = connect(server)
    neighbour.echo(b"before")
    for round in range(1, 6):
        clients = [connect(server) for _ in range(40)]
        for number, client in enumerate(clients):
            if number % 3:
                client.send(b"data that may be lost")
        for client in clients:
            client.reset()
        handler.wait_removed(round * 40)
        neighbour.echo(b"meanwhile")
    wait_until(lambda: server.stats().connections == 1, "only the neighbour is left")
    errors = [call.value for call in handler.of("connection_removed")]
    assert len(errors) == 200
    assert {type(error) for error in errors} == {ConnectionResetError}
    assert server.stats().removed_os_error == 200
    before = server.stats()
    for _ in range(50):
        neighbour.echo(b"after")
    after = server.stats()
    assert after.polls - before.polls <= 250, "the poller spins"
    assert after.iterations - before.iterations <= 1000, "a worker spins"


@pytest.mark.parametrize("state", ["blocked output", "paused", "handler busy", "half-closed"])
def test_f12_a_reset_is_noticed_in_every_state_of_a_connection(start, connect, gate, state):
    go = gate()

    def received(socket, data):
        if state == "blocked output":
            socket.send(bytes(8 << 20))
        elif state == "paused":
            socket.pause_reading()
        elif state == "handler busy":
            wait_event(go, "let go")

    hooks = {"eof": None} if state == "half-closed" else {}
    handler = recorder(data_received=received, **hooks)
    server = start(handler)
    client = connect(server, receive_buffer=4096)
    client.send(b"x")
    handler.wait_for("data_received")
    if state == "half-closed":
        client.finish()
        handler.wait_for("eof")
    elif state == "blocked output":
        wait_until(lambda: handler.socket().pending, "output is blocked")
    client.reset()
    go.set()
    (error,) = handler.wait_removed()
    assert isinstance(error, (ConnectionResetError, BrokenPipeError))
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")


def test_f12_a_reset_that_is_met_together_with_the_end_of_input_is_noticed(start, connect, gate):
    """recv(2) tells of the end only, and no further edge comes; nor does anything else happen, as
    on_eof leaves the connection open.
    """
    go = gate()
    handler = recorder(eof=None, data_received=lambda socket, data: wait_event(go, "let go"))
    server = start(handler, max_threads=1)
    holder, client = connect(server), connect(server)
    holder.send(b"hold")
    handler.wait_for("data_received")
    client.finish()
    client.reset()
    go.set()
    (error,) = handler.wait_removed()
    assert isinstance(error, (ConnectionResetError, BrokenPipeError))
    wait_until(lambda: server.stats().connections == 1, "the slot is vacant")


@pytest.mark.clause("H19")
def test_f12_a_reset_delivers_nothing_of_what_a_pause_holds_back_although_the_end_was_read_too(
    start, connect, gate
):
    go = gate()

    def received(socket, data):
        if data == b"hold":
            wait_event(go, "let go")
        else:
            socket.pause_reading()

    handler = recorder(data_received=received)
    server = start(handler, max_threads=1, framing=hydrogen.SimpleFrameBuilder)
    holder, client = connect(server), connect(server)
    holder.send(simple(b"hold"))
    handler.wait_for("data_received")
    client.send(simple(b"first") + simple(b"second"))
    client.finish()
    go.set()
    handler.wait_for("data_received", 2)
    client.reset()
    (error,) = handler.wait_removed()
    assert isinstance(error, (ConnectionResetError, BrokenPipeError))
    assert handler.messages() == [b"hold", b"first"]


@pytest.mark.clause("C16", "C17", "H20")
def test_f13_a_peer_that_never_reads_is_not_read_either_and_goes_when_its_output_reaches_the_limit(
    start, connect
):
    limit = 400_000
    handler = recorder(data_received=echo)
    server = start(
        handler,
        framing=hydrogen.SimpleFrameBuilder,
        write_buffer_limits=(10_000, 100_000),
        max_write_buffer=limit,
    )
    client, neighbour = connect(server, receive_buffer=4096), connect(server)
    client.sock.settimeout(0.2)
    frame = simple(b"f" * 10_000)
    flood = frame * ((100 << 20) // len(frame))
    with pytest.raises(TimeoutError):  # the server reads no more: its buffers and ours are full
        client.sock.sendall(flood)
    socket = handler.socket()
    wait_until(lambda: socket.pending > 100_000, "reading is paused above the high watermark")
    assert socket.pending <= 100_000 + 2 * len(frame)
    assert socket.is_open
    neighbour.send(simple(b"served"))
    assert neighbour.receive_frame() == b"served"
    most = 0
    for _ in range(1000):
        if not socket.send(b"g" * 5000):
            break
        most = max(most, socket.pending)
    assert limit <= most <= limit + 5004
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    assert not socket.is_open


def test_f15_an_event_or_a_call_that_comes_late_reaches_no_stranger_with_the_same_fd(
    start, connect, gate
):
    """One worker is held while connections are reset and aborted under it, so that their events,
    and calls on their sockets, come late.
    """
    hold = [gate() for _ in range(8)]
    tags = {}
    strays = []

    def received(socket, data):
        if data.startswith(b"hold"):
            wait_event(hold[int(data[4:])], "let go")
            return
        if tags.setdefault(socket.id, data) != data:
            strays.append((socket.id, data))
        socket.send(data)

    handler = recorder(connected=None, data_received=received)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, max_threads=1)
    holder = connect(server)
    doomed = []
    dice = random.Random(15)
    for round, go in enumerate(hold):
        holder.send(simple(b"hold%d" % round))
        handler.wait(
            lambda round=round: b"hold%d" % round in handler.messages(), "the worker is held"
        )
        for client in doomed:
            client.send(simple(b"doomed"))
            client.reset()
        for call in handler.of("connected")[1:]:
            dice.choice(
                [call.socket.abort, call.socket.close, lambda s=call.socket: s.send(b"stray")]
            )()
        go.set()
        fresh = [connect(server) for _ in range(10)]
        for number, client in enumerate(fresh):
            tag = b"%d/%d" % (round, number)
            for _ in range(3):
                client.send(simple(tag))
            assert [client.receive_frame() for _ in range(3)] == [tag] * 3
        doomed = fresh
    assert strays == []


def churn(server, count, clients, first=0):
    """`count` short conversations by `clients` threads, each of a client that says who it is and
    ends in one of four ways.
    """
    failures = []

    def run(start):
        sock = None
        try:
            for number in range(start, count, clients):
                tag = b"client %d;" % (first + number)
                sock = stdlib_socket.socket()
                # Addresses of 127/8 in turn, or the ports of one would run out.
                sock.setsockopt(stdlib_socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
                sock.bind((f"127.0.{number % 7}.{1 + number % 50}", 0))
                sock.settimeout(30)
                sock.connect(server.address)
                sock.sendall(tag)
                got = b""
                while len(got) < len(tag) and (part := sock.recv(100)):
                    got += part
                if got != tag:
                    failures.append((tag, got))
                how = number % 4
                if how == 0:
                    sock.shutdown(stdlib_socket.SHUT_WR)
                    if (rest := sock.recv(100)) != b"":
                        failures.append((tag, got + rest))
                elif how > 1:
                    sock.setsockopt(
                        stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                    )
                sock.close()
        finally:
            if sock is not None:
                sock.close()

    with running(*(lambda start=start: run(start) for start in range(clients)), patience=3600):
        pass
    return failures


def resident():
    """Bytes of memory resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.clause("H14", "C7")
@pytest.mark.timeout(3600 if os.environ.get("HYDROGEN_SOAK") else 120)
def test_f16_connects_and_disconnects_leave_fds_slots_and_memory_flat(start):
    """20,000 on each engine, or as many as HYDROGEN_SOAK says."""
    count = int(os.environ.get("HYDROGEN_SOAK", "20000"))

    class Removals(Echo):
        """Counts; a recorder would itself grow."""

        removed = 0
        lock = threading.Lock()

        def on_connection_removed(self, fd, err):
            with self.lock:
                self.removed += 1

    handler = Removals()
    server = start(handler)
    assert churn(server, 2000, 4) == []
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    fds, memory = len(os.listdir("/proc/self/fd")), resident()
    assert churn(server, count - 2000, 4, first=2000) == []
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert resident() - memory < 8 << 20
    wait_until(lambda: handler.removed == count, "each was removed")
    assert server.stats().accepted == server.stats().removed == count


SIGPIPE_SERVER = """
import signal, sys, threading
import hydrogen

class Talks(hydrogen.Handler):
    def on_connected(self, socket):
        threading.Thread(target=self.talk, args=(socket,), daemon=True).start()

    def talk(self, socket):
        while socket.send(bytes(10_000)):
            socket.drain(0.001)

    def on_data_received(self, socket, data):
        for _ in range(20):
            socket.send(data)

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
server = hydrogen.serve(Talks(), port=0, engine=sys.argv[1], max_threads=4)
print(server.address[1], flush=True)
sys.stdin.readline()
print(server.stop(20).abandoned)
"""


def test_f17_sigpipe_never_comes(engine):
    """With the signal's default action a process that got one would be dead."""
    process = child(SIGPIPE_SERVER, engine)
    port = int(process.stdout.readline())
    for number in range(100):
        client = Client(("127.0.0.1", port))
        client.send(b"x" * 1000)
        if number % 2:
            client.receive(1)
        client.reset()
    out, _ = finish(process, 0, "\n")
    assert out == "0\n"
