"""idle_timeout and write_timeout: what they count, and whom they do not concern. Rows 13, 14 and
24b as far as these see to them.

As in test_deadlines.py nothing here measures time: that a deadline has passed is seen by other
connections, which began later and were removed by one as long.
"""

import contextlib
import os
import select
import socket as stdlib_socket
import ssl
import threading
import time

import pytest
from by_hand import waiting_bytes
from certificates import client_context, server_context
from families import PassThrough
from support import (
    TlsClient,
    echo,
    length_frame,
    recorder,
    running,
    settled,
    simple,
    timed_out,
    unacknowledged,
    wait_event,
    wait_until,
)

import hydrogen

pytestmark = pytest.mark.slow

SHORT = 0.3
"""Seconds of the deadlines that are to pass."""

AMPLE = 1.0
"""Seconds of those within which something has to be done."""

BIG = bytes(8 << 20)
"""More than the kernel takes for a peer that does not read."""


KINDS = pytest.mark.parametrize("kind", ["plain", "tls", "stream"])


def options_for(kind):
    """Of `recorder`, and of the server."""
    return {"new_connection": PassThrough} if kind == "stream" else {}, {
        "ssl": server_context()
    } if kind == "tls" else {}


def talker(kind, client):
    """The client, ready to talk."""
    return TlsClient(client, client_context()).handshake() if kind == "tls" else client


def repeat_until(action, condition, what):
    """Do something again and again, with a little time between, until a condition holds."""

    def step():
        action()
        return condition()

    wait_until(step, what)


def outlive(handler, server, connect, action, removals=(1, 2)):
    """While `action` is repeated two silent connections are removed one after the other: more than
    twice the timeout passes.
    """
    for number in removals:
        connect(server)
        repeat_until(
            action,
            lambda number=number: len(handler.of("connection_removed")) >= number,
            "a silent one is removed",
        )
        timed_out(handler, "idle_timeout", number)


# ------------------------------------------------------------------------------------- idle_timeout


@pytest.mark.clause("C27", "H20", "H25")
@KINDS
def test_f14_a_peer_that_vanishes_is_removed_at_idle_timeout(start, connect, kind):
    """No FIN, no reset, no byte: to the server a peer that has vanished is one that is silent."""
    hooks, options = options_for(kind)
    handler = recorder(connected=None, data_received=echo, **hooks)
    server = start(handler, idle_timeout=SHORT, keepalive=None, **options)
    client = connect(server)
    talker(kind, client).echo(b"alive")
    timed_out(handler, "idle_timeout")
    assert client.at_end() == "reset"
    assert handler.of("disconnected")[0].value is handler.of("connection_removed")[0].value
    wait_until(lambda: server.stats().removed_idle_timeout == 1, "it is counted")
    talker(kind, connect(server)).echo(b"served")


@pytest.mark.clause("C27")
def test_f14_a_peer_that_never_said_anything_is_removed_at_idle_timeout(start, connect):
    handler = recorder()
    client = connect(start(handler, idle_timeout=SHORT))
    timed_out(handler, "idle_timeout")
    assert client.at_end() == "reset"


@pytest.mark.clause("C27")
def test_f14_many_that_are_silent_are_all_removed_and_one_that_talks_is_not(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler, idle_timeout=AMPLE)
    for _ in range(50):
        connect(server)
    client = connect(server)
    repeat_until(
        lambda: client.echo(b"x"),
        lambda: len(handler.of("connection_removed")) >= 50,
        "they are removed",
    )
    assert {type(error) for error in handler.wait_removed(50)} == {hydrogen.ConnectionTimeout}
    client.echo(b"still here")
    wait_until(lambda: server.stats().removed_idle_timeout == 50, "they are counted")


@pytest.mark.clause("C27")
@KINDS
def test_bytes_from_the_peer_keep_a_connection(start, connect, kind):
    hooks, options = options_for(kind)
    handler = recorder(data_received=None, **hooks)
    server = start(handler, idle_timeout=AMPLE, **options)
    client = talker(kind, connect(server))
    outlive(handler, server, connect, lambda: client.send(b"x"))
    client.send(b"still here")
    handler.wait(lambda: handler.data().endswith(b"still here"), "it is served")


@pytest.mark.clause("C27")
@KINDS
def test_bytes_to_the_peer_keep_a_connection_although_it_says_nothing(start, connect, kind):
    hooks, options = options_for(kind)
    handler = recorder(connected=None, **hooks)
    server = start(handler, idle_timeout=AMPLE, **options)
    client = talker(kind, connect(server))
    socket, sent = handler.wait_for("connected")[0].socket, []

    def send():
        assert socket.send(b"x")
        sent.append(b"x")

    outlive(handler, server, connect, send)
    assert client.receive(len(sent)) == b"".join(sent)
    assert socket.is_open


@pytest.mark.clause("C27", "C25")
def test_bytes_of_a_frame_that_is_not_finished_are_bytes(start, connect):
    handler = recorder()
    server = start(
        handler, framing=hydrogen.SimpleFrameBuilder, idle_timeout=AMPLE, frame_timeout=None
    )
    client = connect(server)
    client.send(b"\x01\xff\xff")
    outlive(handler, server, connect, lambda: client.send(b"\0"))
    assert handler.messages() == []


@pytest.mark.clause("C27")
def test_what_the_peer_sends_while_its_handler_is_busy_is_read_before_the_clock(
    start, connect, gate
):
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(go, "let go") if data == b"block" else socket.send(data)
        )
    )
    server = start(handler, idle_timeout=SHORT, framing=hydrogen.SimpleFrameBuilder)
    client = connect(server)
    client.send(simple(b"block"))
    handler.wait_for("data_received")
    client.send(simple(b"alive"))
    connect(server)
    timed_out(handler, "idle_timeout")
    go.set()
    assert client.receive_frame() == b"alive"


@pytest.mark.clause("C27", "H19")
def test_what_the_peer_sends_while_its_handler_has_paused_reading_shows_that_it_is_not_idle(
    start, connect
):
    handler = recorder(
        data_received=lambda socket, data: (
            socket.pause_reading() if data == b"pause" else socket.send(data)
        )
    )
    server = start(handler, idle_timeout=SHORT, framing=hydrogen.SimpleFrameBuilder)
    client = connect(server)
    client.send(simple(b"pause"))
    handler.wait_for("data_received")
    client.send(simple(b"alive"))
    for number in (1, 2):
        connect(server)
        timed_out(handler, "idle_timeout", number)
    handler.socket().resume_reading()
    assert client.receive_frame() == b"alive"


@pytest.mark.clause("C27", "H22")
def test_a_handler_that_is_busy_is_no_byte_but_what_it_answers_is(start, connect, gate):
    """Both peers are silent for longer than the timeout while their handlers work; one handler
    answers, the other does not.
    """
    go = gate()

    def work(socket, data):
        wait_event(go, "let go")
        if data == b"answer":
            socket.send(data)

    handler = recorder(data_received=work)
    server = start(handler, idle_timeout=SHORT)
    answered, silent = connect(server), connect(server)
    answered.send(b"answer")
    silent.send(b"nothing")
    handler.wait_for("data_received", 2)
    connect(server)
    timed_out(handler, "idle_timeout")
    assert len(handler.of("connection_removed")) == 1  # not while a callback of theirs runs
    go.set()
    assert answered.receive(6) == b"answer"
    assert silent.at_end() == "reset"
    timed_out(handler, "idle_timeout", 2)


@pytest.mark.clause("C27", "H22")
@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_f24b_while_all_workers_are_blocked_no_peer_that_has_spoken_is_timed_out(
    start, connect, gate, handoff
):
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (wait_event(go, "let go"), socket.send(data))
    )
    server = start(handler, idle_timeout=AMPLE, max_threads=2, handoff=handoff)
    clients = [connect(server) for _ in range(8)]
    for client in clients:
        client.send(b"patient")
    handler.wait_for("data_received", 2)
    watch = recorder()
    other = start(watch, idle_timeout=AMPLE)
    connect(other)
    timed_out(watch, "idle_timeout")
    connect(other)
    timed_out(watch, "idle_timeout", 2)
    assert handler.of("connection_removed") == []
    go.set()
    for client in clients:
        assert client.receive(7) == b"patient"


@pytest.mark.clause("C27")
def test_after_a_pause_the_time_begins_anew(start, connect, engine):
    """Seen where it is kept, for a peer sees only that its time is over."""
    handler = recorder(data_received=lambda socket, data: socket.pause_reading())
    server = start(handler, framing=hydrogen.LineFrameBuilder(), idle_timeout=3600)
    client = connect(server)
    client.send(b"pause\na part")
    handler.wait_for("data_received")
    if engine == "python":
        connection = handler.socket()._find()
        resumed = time.monotonic()
        handler.socket().resume_reading()
        wait_until(lambda: connection.last_byte >= resumed, "it begins anew")


@pytest.mark.clause("C27")
@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("behind", [b"two\n", b"tw"], ids=["a message", "a part of one"])
def test_what_is_held_back_keeps_no_connection_that_closes(start, connect, kind, behind):
    """While its peer reads nothing: only `idle_timeout` ends it."""

    def received(socket, data):
        socket.pause_reading()
        socket.send(BIG)
        socket.close()

    handler = recorder(data_received=received)
    options = {"framing": hydrogen.LineFrameBuilder(max_size=1 << 30), **options_for(kind)[1]}
    server = start(handler, idle_timeout=SHORT, write_timeout=None, **options)
    client = connect(server, receive_buffer=4096)
    talker(kind, client).send(b"one\n" + behind)
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.LocalClosed]
    assert handler.messages() == [b"one"]


@pytest.mark.clause("C26", "C27")
def test_by_default_a_connection_may_be_silent_for_ever(start, connect):
    handler, watch = recorder(data_received=echo), recorder()
    client = connect(start(handler))
    client.echo(b"x")
    connect(start(watch, idle_timeout=SHORT))
    timed_out(watch, "idle_timeout")
    client.echo(b"y")


@pytest.mark.clause("C27", "T8")
def test_bytes_of_the_peer_keep_a_connection_while_another_thread_is_in_its_stream(
    start, connect, gate
):
    """They cannot be read for that long."""
    go, inside = gate(), threading.Event()

    class Waits(PassThrough):
        def send(self, buf):
            inside.set()
            wait_event(go, "let go")
            super().send(buf)

    handler = recorder(new_connection=Waits, connected=None)
    server = start(handler, idle_timeout=AMPLE)
    client = connect(server)
    socket = handler.wait_for("connected")[0].socket
    with running(lambda: socket.send(b"reply")):
        wait_event(inside, "the thread is in the stream")
        outlive(handler, server, connect, lambda: client.send(b"x"))
        go.set()
        assert client.receive(5) == b"reply"
    client.send(b"still here")
    handler.wait(lambda: handler.data().endswith(b"still here"), "it is served")


# ------------------------------------------------------------------------------------ write_timeout


def big(socket, data):
    """A hook: much more than fits into the kernel's buffers."""
    socket.send(BIG if data == b"big" else data)


def stuck(server, connect):
    """A connection whose peer does not read its output."""
    client = connect(server, receive_buffer=4096)
    client.send(b"big")
    return client


@pytest.mark.clause("C28", "H20", "H25")
@KINDS
def test_f13_a_peer_that_reads_nothing_is_removed_at_write_timeout(start, connect, kind):
    hooks, options = options_for(kind)
    handler = recorder(data_received=big, **hooks)
    server = start(handler, write_timeout=SHORT, **options)
    neighbour = talker(kind, connect(server))
    client = connect(server, receive_buffer=4096)
    talker(kind, client).send(b"big")
    timed_out(handler, "write_timeout")
    assert client.at_end() == "reset"
    neighbour.echo(b"still here")
    wait_until(lambda: server.stats().removed_write_timeout == 1, "it is counted")
    assert server.stats().queued_bytes == 0


@pytest.mark.clause("C28", "T5")
@pytest.mark.parametrize("sends", [False, True], ids=["", "sends"])
def test_f24b_output_that_waits_for_a_worker_is_no_fault_of_a_peer_that_reads(
    start, connect, gate, sends
):
    """It has taken all that the kernel had, and waits; what it has sent nobody has read."""
    go = gate()

    def received(socket, data):
        if data == b"hold":
            wait_event(go, "let go")
        elif data == b"big":
            socket.send(BIG)

    handler = recorder(new_connection=PassThrough, data_received=received)
    server = start(handler, max_threads=1, write_timeout=AMPLE)
    client = connect(server, receive_buffer=65_536)
    client.send(b"big")
    wait_until(lambda: server.stats().queued_bytes > 0, "the kernel takes no more")
    connect(server).send(b"hold")
    handler.wait_for("data_received", 2)
    if sends:
        client.send(b"more")
    fd, taken = handler.socket().fileno(), []

    def took_all():
        while count := waiting_bytes(client.sock):
            taken.append(len(client.receive(count)))
        return not unacknowledged(fd)

    wait_until(took_all, "the peer has all that the kernel had")
    watch = recorder(connected=lambda socket: socket.send(BIG))
    other = start(watch, write_timeout=AMPLE)
    for number in (1, 2):
        connect(other)
        timed_out(watch, "write_timeout", number)
    assert handler.of("connection_removed") == []
    go.set()
    client.receive(len(BIG) - sum(taken))


@pytest.mark.clause("C28", "T5")
def test_a_thread_that_waits_in_a_stream_in_which_another_one_sends_is_freed_by_write_timeout(
    start, connect
):
    class Waits(PassThrough):
        """Keeps what does not fit at first, and when it is to go on; else it waits for room."""

        def __init__(self, fd):
            super().__init__(fd)
            made.append(self)

        def send(self, buf):
            keeps, self.rest = not self.rest or not buf, self.rest + buf
            while self.rest:
                try:
                    self.rest = self.rest[os.write(self.fd, self.rest) :]
                except BlockingIOError:
                    if keeps:
                        raise
                    waits.set()
                    select.select([], [self.fd], [])

    made, waits = [], threading.Event()
    handler = recorder(new_connection=Waits, connected=None)
    server = start(handler, write_timeout=AMPLE, max_write_buffer=4 * len(BIG))
    client = connect(server)
    socket = handler.socket()
    assert socket.send(BIG)
    settled(lambda: len(made[0].rest))  # or a worker who goes on with it would wait in there
    with running(lambda: socket.send(b"x")):
        wait_event(waits, "it waits in there")
        assert socket.send(b"y")
        timed_out(handler, "write_timeout")
    assert client.at_end() == "reset"


@pytest.mark.clause("C28", "T5")
def test_what_a_peer_sends_is_no_progress_of_output_that_its_stream_keeps(start, connect):
    """The stream keeps it for another reason than a kernel that takes no more: a window of its
    protocol, say.
    """

    class Windowed(PassThrough):
        def send(self, buf):
            self.rest += buf
            raise BlockingIOError

    handler = recorder(new_connection=Windowed, connected=None)
    client, pause = connect(start(handler, write_timeout=AMPLE)), threading.Event()
    assert handler.socket().send(b"x")

    def drip():
        with contextlib.suppress(OSError):
            client.send(b"drip")
        pause.wait(AMPLE / 100)

    repeat_until(
        drip, lambda: handler.of("connection_removed"), "it is removed although the peer sends"
    )
    timed_out(handler, "write_timeout")


@pytest.mark.clause("C28")
def test_f14_a_peer_that_vanishes_with_output_on_its_way_is_removed_at_write_timeout(
    start, connect
):
    handler = recorder(connected=None)
    client = connect(
        start(handler, write_timeout=SHORT, idle_timeout=None, keepalive=None), receive_buffer=4096
    )
    assert handler.socket().send(BIG)
    timed_out(handler, "write_timeout")
    assert client.at_end() == "reset"


SLOW = 20_000
"""Bytes a second: the peer's kernel takes some each third of a second, and in `AMPLE` some thrice;
in 6 s not a third of SEND_BUFFER.
"""


def slowly(client, taken, rate=SLOW):
    """Read as many bytes as are due at so many a second, however seldom there is time for it."""
    began, before = time.monotonic(), sum(taken)

    def step():
        due = int((time.monotonic() - began) * rate) - (sum(taken) - before)
        if due > 0:
            taken.append(len(client.sock.recv(due)))

    return step


def outlive_slowly(handler, server, connect, client, already=0, taken=(), rate=SLOW):
    """While `client` reads a little at a time two others that read nothing are removed; how many
    bytes the client has read.

    `taken`: in which portions it has read some already. `rate`: bytes a second.
    """
    taken = list(taken)
    for number in (already + 1, already + 2):
        stuck(server, connect)
        repeat_until(
            slowly(client, taken, rate),
            lambda number=number: len(handler.of("connection_removed")) >= number,
            "one that reads nothing is removed",
        )
        timed_out(handler, "write_timeout", number)
    return sum(taken)


SEND_BUFFER = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 200_000)]
"""Large enough that a slow reader frees no third of it, of which epoll would tell, for longer than
the timeout.
"""


@pytest.mark.clause("C28")
def test_a_peer_that_reads_slowly_but_steadily_is_never_removed(start, connect):
    """What the kernel holds gets less, but not by so much that it asks for more: the engine writes
    nothing for all that time.
    """
    handler = recorder(data_received=big)
    server = start(handler, write_timeout=AMPLE, socket_options=SEND_BUFFER)
    client = stuck(server, connect)
    socket = handler.wait_for("data_received")[0].socket
    begun = []
    read = slowly(client, begun)
    before = settled(lambda: (read(), socket.pending)[1])  # which may take a while
    taken = outlive_slowly(handler, server, connect, client, taken=begun)
    assert socket.is_open
    assert 0 < taken < SEND_BUFFER[0][2]
    assert socket.pending == before
    assert client.receive(len(BIG) - taken) == BIG[taken:]


@pytest.mark.clause("C28")
@pytest.mark.parametrize("kind", ["plain", "stream"])
def test_a_peer_that_reads_steadily_is_never_removed_though_the_kernel_is_filled_again_each_time(
    start, connect, kind
):
    hooks, _ = options_for(kind)
    handler = recorder(data_received=big, **hooks)
    server = start(handler, write_timeout=AMPLE, socket_options=SEND_BUFFER)
    client = stuck(server, connect)
    handler.wait_for("data_received")
    taken = outlive_slowly(handler, server, connect, client, rate=20 * SLOW)
    assert client.receive(len(BIG) - taken) == BIG[taken:]


@pytest.mark.clause("C28", "H22")
@pytest.mark.parametrize("kind", ["plain", "stream"])
def test_a_peer_that_reads_at_once_is_not_removed_because_a_callback_of_its_own_blocks(
    start, connect, gate, kind
):
    """What its stream has kept is written when the callback returns."""
    go = gate()
    hooks, _ = options_for(kind)
    handler = recorder(
        data_received=lambda socket, data: (socket.send(BIG), wait_event(go, "let go")), **hooks
    )
    server = start(handler, write_timeout=AMPLE)
    client = connect(server)
    client.send(b"x")
    watch = recorder(data_received=big)
    other = start(watch, write_timeout=AMPLE)
    received = []
    with running(lambda: received.append(client.receive(len(BIG)))):
        for number in (1, 2):
            stuck(other, connect)
            timed_out(watch, "write_timeout", number)
        assert handler.of("connection_removed") == []
        go.set()
    assert received == [BIG]


@pytest.mark.clause("C28", "K8")
def test_a_peer_that_reads_slowly_is_not_removed_while_its_connection_closes_and_gets_everything(
    start, connect
):
    reply = os.urandom(4_000_000)

    def received(socket, data):
        if data == b"close":
            socket.send(reply)
            socket.close()
        else:
            socket.send(BIG)

    handler = recorder(data_received=received)
    server = start(handler, write_timeout=AMPLE, socket_options=SEND_BUFFER)
    client = connect(server, receive_buffer=4096)
    client.send(b"close")
    handler.wait_for("data_received")
    taken = outlive_slowly(handler, server, connect, client)
    assert client.receive_until_end() == reply[taken:]
    client.close()
    assert type(handler.wait_removed(3)[2]) is hydrogen.LocalClosed


@pytest.mark.clause("C28", "K8", "H20")
def test_f13_a_connection_that_is_closing_whose_peer_reads_nothing_is_reset_at_write_timeout(
    start, connect
):
    """The cause that is told is the first one, as with every second end."""
    handler = recorder(data_received=lambda socket, data: (socket.send(BIG), socket.close()))
    server = start(handler, write_timeout=SHORT)
    client = stuck(server, connect)
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert client.at_end() == "reset"
    wait_until(lambda: server.stats().removed_local_closed == 1, "it is counted")


@pytest.mark.clause("C28", "S10")
def test_f13_a_stop_does_not_wait_longer_than_write_timeout_for_a_peer_that_reads_nothing(
    start, connect
):
    handler = recorder(data_received=big)
    server = start(handler, write_timeout=SHORT)
    client = stuck(server, connect)
    handler.wait_for("data_received")
    wait_until(
        lambda: handler.socket().pending or handler.of("connection_removed"), "output is queued"
    )
    reports = []
    with running(lambda: reports.append(server.stop(3600))):
        # whichever came first
        assert type(handler.wait_removed()[0]) in (
            hydrogen.ServerStopped,
            hydrogen.ConnectionTimeout,
        )
    assert client.at_end() == "reset"
    assert reports[0].abandoned == 0


@pytest.mark.clause("C28", "H22")
@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_f24b_while_all_workers_are_blocked_no_peer_that_reads_is_timed_out(
    start, connect, gate, handoff
):
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(go, "let go") if data == b"block" else socket.send(BIG)
        )
    )
    server = start(
        handler, write_timeout=AMPLE, max_threads=2, handoff=handoff, socket_options=SEND_BUFFER
    )
    client = stuck(server, connect)
    handler.wait_for("data_received")
    for number in (2, 3):
        connect(server).send(b"block")
        handler.wait_for("data_received", number)
    watch = recorder(data_received=big)
    other = start(watch, write_timeout=AMPLE)
    taken = outlive_slowly(watch, other, connect, client)
    assert handler.of("connection_removed") == []
    go.set()
    assert client.receive(len(BIG) - taken) == BIG[taken:]


@pytest.mark.clause("C28", "K7")
def test_a_handler_that_drains_to_a_peer_that_reads_nothing_is_released_at_write_timeout(
    start, connect
):
    """It holds its connection while it waits, so that nobody else can act for that."""
    drained = []
    handler = recorder(
        data_received=lambda socket, data: (socket.send(BIG), drained.append(socket.drain()))
    )
    client = connect(start(handler, write_timeout=SHORT, max_threads=1), receive_buffer=4096)
    client.send(b"x")
    timed_out(handler, "write_timeout")
    assert drained == [False]


@pytest.mark.clause("C28")
def test_who_has_no_output_queued_has_no_write_timeout(start, connect):
    """Also not what is in the kernel's hands altogether: the server has nothing to free by giving
    up.
    """
    handler = recorder(data_received=big)
    server = start(handler, write_timeout=SHORT)
    silent, few = connect(server), connect(server, receive_buffer=4096)
    silent.echo(b"x")
    few.send(b"f" * 30_000)
    wait_until(lambda: server.stats().bytes_sent == 30_001, "the kernel has it all")
    assert few.sock.recv(1, stdlib_socket.MSG_PEEK) == b"f"
    for number in (1, 2):
        stuck(server, connect)
        timed_out(handler, "write_timeout", number)
    silent.echo(b"y")
    assert few.receive(30_000) == b"f" * 30_000


@pytest.mark.clause("C28")
def test_the_clock_of_write_timeout_begins_with_the_output_and_not_with_the_connection(
    start, connect
):
    """A connection that is older than the timeout sends something large to a peer that is about to
    read it.
    """
    handler = recorder(data_received=big)
    server = start(handler, write_timeout=AMPLE)
    client = connect(server, receive_buffer=65_536)
    client.echo(b"x")
    stuck(server, connect)
    timed_out(handler, "write_timeout")
    client.send(b"big")
    assert client.receive(len(BIG)) == BIG
    client.send(b"big")
    assert client.receive(len(BIG)) == BIG


@pytest.mark.clause("C26", "C28")
def test_write_timeout_none_is_no_limit(start, connect):
    handler, watch = recorder(data_received=big), recorder(data_received=big)
    client = connect(start(handler, write_timeout=None), receive_buffer=65_536)
    client.send(b"big")
    handler.wait_for("data_received")
    stuck(start(watch, write_timeout=SHORT), connect)
    timed_out(watch, "write_timeout")
    assert client.receive(len(BIG)) == BIG


@pytest.mark.clause("C27", "C28")
@pytest.mark.parametrize("rate", [SLOW, 1_000_000], ids=["slowly", "faster"])
def test_a_peer_that_only_reads_however_slowly_is_not_idle(start, connect, rate):
    """Bytes go all the time, if only from the kernel's buffers: with idle_timeout alone, and output
    queued.
    """
    handler = recorder(data_received=big)
    server = start(handler, idle_timeout=AMPLE, write_timeout=None, socket_options=SEND_BUFFER)
    client = stuck(server, connect)
    socket = handler.wait_for("data_received")[0].socket
    read = slowly(client, [], rate)
    wait_until(lambda: (read(), 0 < socket.pending < len(BIG))[1], "the reply is blocked")
    outlive(handler, server, connect, slowly(client, [], rate))
    assert socket.is_open


@pytest.mark.clause("C27", "T5")
@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("waits", [False, True], ids=["keeps", "waits"])
def test_a_peer_that_reads_steadily_is_not_idle_though_its_stream_fills_the_kernel_again_each_time(
    start, connect, tmp_path, waits, family
):
    """Within one `send`, too, which may wait for the peer: the server sees no more of all that than
    an edge now and then.
    """

    class Steady(PassThrough):
        def send(self, buf):
            if buf:
                self.rest = memoryview(buf)
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            while self.rest:
                if waits:
                    poll.poll()
                with contextlib.suppress(BlockingIOError) if waits else contextlib.nullcontext():
                    self.rest = self.rest[os.write(self.fd, self.rest[:65_536]) :]

    handler = recorder(new_connection=Steady, connected=None)
    options = {"path": str(tmp_path / "socket")} if family == "unix" else {}
    limits = {"write_buffer_limits": (1 << 30, 1 << 30), "max_write_buffer": 1 << 30}
    buffer = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 16_384)]
    server = start(
        handler, idle_timeout=AMPLE, write_timeout=None, socket_options=buffer, **limits, **options
    )
    client = connect(server, receive_buffer=16_384)
    handler.wait_for("connected")
    with running(lambda: handler.socket().send(bytes(64 << 20))):
        outlive(handler, server, connect, lambda: client.sock.recv(1 << 14))
        assert handler.socket().is_open
        handler.socket().abort()


@pytest.mark.clause("C27", "C25", "H25")
def test_each_timeout_removes_by_its_own_name_and_is_counted_for_itself(start, connect):
    """The frame is begun before the silence, and the shorter deadline comes first."""
    handler = recorder(data_received=lambda socket, data: socket.send(BIG))
    server = start(
        handler,
        framing=hydrogen.LengthFrameBuilder(max_size=9 << 20),
        idle_timeout=3 * SHORT,
        frame_timeout=SHORT,
        write_timeout=SHORT,
    )
    connect(server).send(length_frame(b"never finished")[:-1])
    timed_out(handler, "frame_timeout", 1)
    connect(server, receive_buffer=4096).send(length_frame(b"big"))
    timed_out(handler, "write_timeout", 2)
    connect(server)
    timed_out(handler, "idle_timeout", 3)
    wait_until(lambda: server.stats().removed_timeout == 3, "they are counted")
    stats = server.stats()
    assert (
        stats.removed_frame_timeout,
        stats.removed_write_timeout,
        stats.removed_idle_timeout,
    ) == (1, 1, 1)


@pytest.mark.clause("C27", "H22")
def test_what_came_during_a_callback_longer_than_idle_timeout_is_read_before_the_clock(
    start, connect, gate
):
    """The connection was late already when its message came; while the handler is busy with that
    there comes another one.
    """
    first, go = gate(), gate()
    busy = {b"block": first, b"slow": go}
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(busy[data], "let go") if data in busy else socket.send(data)
        )
    )
    server = start(handler, idle_timeout=AMPLE, max_threads=1)
    client, blocker = connect(server), connect(server)
    blocker.send(b"block")
    handler.wait_for("data_received")
    watch = recorder()
    other = start(watch, idle_timeout=AMPLE)
    connect(other)
    timed_out(watch, "idle_timeout")
    client.send(b"slow")
    first.set()
    handler.wait_for("data_received", 2)
    connect(other)
    timed_out(watch, "idle_timeout", 2)
    client.send(b"alive")
    go.set()
    assert client.receive(5) == b"alive"


@pytest.mark.clause("C27", "H22")
@pytest.mark.parametrize("how", ["close", "raise"])
def test_who_closes_after_a_callback_longer_than_idle_timeout_lingers_for_the_peer(
    start, connect, gate, tmp_path, error_log, how
):
    """On a Unix socket: on TCP a FIN that is not acknowledged shows that bytes go."""
    leave = gate()

    def received(socket, data):
        socket.send(data)
        wait_event(leave, "it may close")
        if how == "raise":
            raise ValueError("meant to be")
        socket.close()

    handler = recorder(data_received=received)
    client = connect(start(handler, path=str(tmp_path / "s"), idle_timeout=SHORT))
    client.send(b"first")
    handler.wait_for("data_received")
    watch = recorder()
    other = start(watch, idle_timeout=SHORT)
    for count in (1, 2):
        connect(other)
        timed_out(watch, "idle_timeout", count)
    leave.set()
    assert client.receive_until_end() == b"first"
    client.send(b"late")
    client.close()
    cause = hydrogen.LocalClosed if how == "close" else hydrogen.HandlerError
    assert type(handler.wait_removed()[0]) is cause


@pytest.mark.clause("C27", "C39")
def test_bytes_of_a_proxy_header_are_bytes(start, connect):
    header = b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 443\r\n"
    handler = recorder(connected=None)
    server = start(
        handler,
        idle_timeout=AMPLE,
        open_timeout=60.0,
        proxy_protocol="v1",
        proxy_allow_from=["127.0.0.0/8"],
    )
    client, sent, pause = connect(server), [], threading.Event()

    def drip():
        """So slowly that there are bytes left for nearly twice the timeout."""
        if len(sent) < len(header) - 1:
            client.send(header[len(sent) : len(sent) + 1])
            sent.append(1)
        pause.wait(AMPLE / 25)

    silent = connect(server)
    repeat_until(drip, lambda: handler.of("connection_removed"), "the silent one is removed")
    assert silent.at_end() == "reset"
    client.send(header[len(sent) :])
    handler.wait_for("connected")


@pytest.mark.clause("C28", "T5")
def test_what_a_stream_of_the_user_s_is_given_to_send_is_no_progress_of_the_peer(start, connect):
    handler = recorder(new_connection=PassThrough, connected=None)
    server = start(handler, write_timeout=SHORT)
    connect(server, receive_buffer=4096)
    handler.wait_for("connected")
    handler.socket().send(BIG)
    repeat_until(
        lambda: handler.socket().send(b"beat"),
        lambda: handler.of("connection_removed"),
        "it is removed although more is sent",
    )
    timed_out(handler, "write_timeout")


@pytest.mark.clause("C27")
def test_a_timeout_that_is_nearly_nothing_does_not_disturb_another_one(start, connect):
    handler = recorder()
    connect(start(handler, idle_timeout=SHORT, frame_timeout=1e-9))
    timed_out(handler, "idle_timeout")


@pytest.mark.clause("C27", "K6", "T8")
def test_what_was_left_to_a_worker_is_sent_though_all_were_busy_for_longer_than_idle_timeout(
    start, connect, gate
):
    """It waits for us, not for the peer."""
    received, go = gate(), gate()
    inside = threading.Event()

    class Held(PassThrough):
        def recv(self):
            messages = super().recv()
            inside.set()
            wait_event(received, "it has received")
            return messages

    handler = recorder(
        new_connection=Held,
        connected=None,
        data_received=lambda socket, data: wait_event(go, "let go"),
    )
    server = start(handler, idle_timeout=SHORT, max_threads=1)
    client = connect(server)
    handler.wait_for("connected")
    client.send(b"x")
    wait_event(inside, "the worker receives")
    assert handler.socket().send(b"message")
    received.set()
    handler.wait_for("data_received")
    watch = recorder()
    other = start(watch, idle_timeout=SHORT)
    for number in (1, 2):
        connect(other)
        timed_out(watch, "idle_timeout", number)
    go.set()
    assert client.receive(7) == b"message"


@pytest.mark.clause("C27", "T4")
def test_a_connection_that_ends_because_a_stream_cannot_be_read_has_an_idle_timeout_still(
    start, connect
):
    """Its output waits for a peer that reads nothing. Nobody is to look again and again meanwhile
    whether there is more to be read.
    """

    class Fails(PassThrough):
        def recv(self):
            if super().recv() == [b"bad"]:
                raise hydrogen.ProtocolError("bad")
            return []

    handler = recorder(new_connection=Fails, connected=None)
    limits = {"write_buffer_limits": (1 << 30, 1 << 30), "max_write_buffer": 1 << 30}
    client = connect(
        start(handler, idle_timeout=SHORT, write_timeout=None, **limits), receive_buffer=4096
    )
    assert handler.socket().send(BIG)
    client.send(b"bad")
    assert type(handler.wait_removed()[0]) is hydrogen.ProtocolError
    assert client.at_end() == "reset"


class Collects(PassThrough):
    """A stream that gives out lines, and of a line that is begun nothing yet."""

    def __init__(self, fd):
        super().__init__(fd)
        self.begun = b""

    def recv(self):
        part = os.read(self.fd, 4096)
        if not part:
            raise EOFError
        *messages, self.begun = (self.begun + part).split(b"\n")
        return messages


@pytest.mark.clause("C27", "T4")
def test_bytes_that_a_stream_has_read_and_makes_no_message_of_yet_have_come(start, connect):
    handler = recorder(
        new_connection=Collects,
        connected=None,
        data_received=lambda socket, data: socket.send(b"done"),
    )
    server = start(handler, idle_timeout=AMPLE, max_threads=2)
    client = connect(server)
    handler.wait_for("connected")
    outlive(handler, server, connect, lambda: client.send(b"x"))
    client.send(b"\n")
    assert client.receive(4) == b"done"


@pytest.mark.clause("C27")
def test_what_tls_has_left_to_a_worker_is_sent_though_all_were_busy_for_longer_than_idle_timeout(
    start, connect, gate
):
    """The same: a thread that encrypts for others leaves to a worker what they send beyond some
    pieces.
    """
    written, go = gate(), gate()
    inside = threading.Event()

    class Held(ssl.SSLObject):
        def write(self, data):
            if bytes(data) == b"first":
                inside.set()
                wait_event(written, "it has written")
            return super().write(data)

    context = server_context()
    context.sslobject_class = Held
    handler = recorder(connected=None, data_received=lambda socket, data: wait_event(go, "let go"))
    # so that nobody waits until others get on
    limits = {"write_buffer_limits": (1 << 30, 1 << 30), "max_write_buffer": 1 << 30}
    server = start(
        handler, ssl=context, idle_timeout=SHORT, write_timeout=None, max_threads=1, **limits
    )
    client, blocker = connect(server), connect(server)
    peer = TlsClient(client, client_context()).handshake()
    handler.wait_for("connected")
    socket = handler.socket()
    blocking = TlsClient(blocker, client_context()).handshake()
    handler.wait_for("connected", 2)
    blocking.send(b"block")
    handler.wait_for("data_received")
    messages = [b"first", *(bytes([number]) * (64 << 10) for number in range(100))]
    with running(lambda: socket.send(messages[0])):
        wait_event(inside, "it is being written")
        for message in messages[1:]:
            assert socket.send(message)
        written.set()
    begun = len(b"first") + 63 * (64 << 10)
    received = peer.receive(begun)
    watch = recorder()
    other = start(watch, idle_timeout=SHORT)
    for number in (1, 2):
        connect(other)
        timed_out(watch, "idle_timeout", number)
    go.set()
    assert received + peer.receive(sum(map(len, messages)) - begun) == b"".join(messages)


@pytest.mark.clause("C27")
@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_a_peer_that_takes_nothing_is_idle_no_later_than_one_that_says_nothing(
    start, connect, kind
):
    """Counted in looks at the deadlines, of which there are four in the time: two may pass before
    the clock begins.
    """
    sweeps = []
    options, limits = options_for(kind)
    handler = recorder(
        connected=None,
        connection_removed=lambda fd, error: sweeps.append(server.stats().sweeps),
        **options,
    )
    server = start(handler, idle_timeout=AMPLE, write_timeout=None, **limits)
    client = connect(server, receive_buffer=4096)
    talker(kind, client)
    handler.wait_for("connected")
    handler.socket().send(BIG)
    settled(lambda: server.stats().bytes_sent)
    begun = server.stats().sweeps
    timed_out(handler, "idle_timeout")
    wait_until(lambda: sweeps, "the last callback has counted")
    assert sweeps[0] - begun <= 8
