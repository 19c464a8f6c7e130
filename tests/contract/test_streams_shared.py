"""A user's stream that several threads want at once: one is in it, and none waits for it, or stays
for as long as others come.
"""

import hashlib
import os
import threading

import pytest
from support import PATIENCE, recorder, running, settled, unacknowledged, wait_event, wait_until

import hydrogen

MANY = 400
"""Messages: more than one thread takes over from others."""


class Bytes(hydrogen.Stream):
    """Passes on what comes and goes; `on_recv` and `on_send` are called within `recv` and `send`,
    and `split` makes the messages.
    """

    def __init__(self, fd):
        self.fd = fd
        self.kept = b""
        self.on_send = lambda data: None
        self.on_recv = lambda data: None
        self.split = lambda data: [data]

    def fileno(self):
        return self.fd

    def recv(self):
        data = os.read(self.fd, 1 << 16)
        if not data:
            raise EOFError
        self.on_recv(data)
        return self.split(data)

    def send(self, buf):
        self.on_send(bytes(buf))
        self.kept += buf
        while self.kept:
            self.kept = self.kept[os.write(self.fd, self.kept) :]

    def shutdown(self):
        """Nothing is to be said."""

    def close(self):
        os.close(self.fd)


@pytest.fixture
def several(start, connect):
    """`several(count, **hooks)`: clients, sockets and streams of as many connections, and the
    handler.
    """

    def several(count, options=None, receive_buffer=None, **hooks):
        streams = []

        def new(fd):
            streams.append(Bytes(fd))
            return streams[-1]

        handler = recorder(new_connection=new, connected=None, **hooks)
        server = start(handler, **options or {})
        clients = []
        for number in range(1, count + 1):
            clients.append(connect(server, receive_buffer=receive_buffer))
            handler.wait_for("connected", number)
        return clients, [handler.socket(number) for number in range(count)], streams, handler

    return several


@pytest.fixture
def one(several):
    """`one(**hooks)`: client, socket, stream and handler of a connection."""

    def one(options=None, receive_buffer=None, **hooks):
        (client,), (socket,), (stream,), handler = several(1, options, receive_buffer, **hooks)
        return client, socket, stream, handler

    return one


@pytest.fixture
def hold(gate):
    """`inside, release = hold(stream, data)`: who sends `data` sets `inside`, and stays in the
    stream until `release` is set.
    """

    def hold(stream, data):
        inside, release = threading.Event(), gate()

        def on_send(buf):
            if buf == data:
                inside.set()
                wait_event(release, "it may go on")

        stream.on_send = on_send
        return inside, release

    return hold


def leaves_some(one, hold, respond, **options):
    """A thread is in the stream; a callback sends more than that one takes over, and goes on in
    `respond` when it has come out.

    Returns a context in which that happens, the client, and what it is to receive.
    """
    begun, done = threading.Event(), threading.Event()

    def on_data(socket, data):
        begun.set()
        wait_event(inside, "a thread is in the stream")
        for _ in range(MANY):
            assert socket.send(bytes(10))
        release.set()
        wait_event(done, "that thread has come out")
        respond(socket)

    client, socket, stream, _ = one(
        {"write_buffer_limits": (1000, 1_000_000), **options}, data_received=on_data
    )
    inside, release = hold(stream, b"first")

    def first():
        wait_event(begun, "the callback runs")
        socket.send(b"first")
        done.set()

    client.send(b"x")
    return running(first), client, b"first" + bytes(10 * MANY)


@pytest.mark.clause("K11", "T8")
@pytest.mark.parametrize("max_threads", [1, 2])
def test_drain_in_a_callback_comes_back_whoever_was_to_go_on_with_the_stream(
    one, hold, max_threads
):
    drained = []
    sender, client, expected = leaves_some(
        one, hold, lambda socket: drained.append(socket.drain(None)), max_threads=max_threads
    )
    with sender:
        assert client.receive(len(expected)) == expected
    wait_until(lambda: drained == [True], "drain() has returned")


@pytest.mark.clause("K6", "T8", "P2")
def test_what_a_thread_leaves_over_in_a_stream_is_sent_though_a_callback_of_its_connection_blocks(
    one, hold, gate
):
    received, in_time = gate(), []
    sender, client, expected = leaves_some(
        one, hold, lambda socket: in_time.append(received.wait(PATIENCE))
    )
    with sender:
        assert client.receive(len(expected)) == expected
    received.set()
    wait_until(lambda: in_time, "the callback goes on")
    assert in_time == [True]


@pytest.mark.clause("K6", "P2", "T8")
@pytest.mark.parametrize("blocks", ["timer", "stream"])
def test_what_is_left_over_in_a_stream_is_sent_though_the_worker_that_came_for_it_blocks(
    several, gate, blocks
):
    """In a timer that was due as well, or in another stream of which something was left over as
    well.
    """
    blocked, free, for_ever = [], [gate(), gate()], gate()

    def on_data(socket, data):
        blocked.append(data)
        wait_event(free[int(data)], "it may go on")

    def leave_over(number, *last):
        """A thread is in the stream, others send meanwhile, and it leaves some of that to a
        worker.
        """
        inside, release = threading.Event(), gate()

        def on_send(data):
            if data == b"first":
                inside.set()
                wait_event(release, "it may go on")
            if data == b"blocks":
                blocked.append(data)
                for_ever.wait()

        streams[number].on_send = on_send
        with running(lambda: sockets[number].send(b"first")):
            wait_event(inside, "a thread is in the stream")
            for data in [bytes(10)] * MANY + [*last]:
                assert sockets[number].send(data)
            release.set()

    def block():
        blocked.append(b"timer")
        for_ever.wait()

    clients, sockets, streams, _ = several(4, {"max_threads": 2}, data_received=on_data)
    for number in (0, 1):
        clients[number].send(b"%d" % number)
    wait_until(lambda: len(blocked) == 2, "both workers are in callbacks")
    if blocks == "timer":
        sockets[0].server.call_later(0, block)
    else:
        leave_over(2, b"blocks")
    leave_over(3)
    free[0].set()
    wait_until(lambda: len(blocked) == 3, "that one blocks")
    free[1].set()
    assert clients[3].receive(5 + 10 * MANY) == b"first" + bytes(10 * MANY)
    for_ever.set()


@pytest.mark.clause("K6", "T8")
def test_what_a_stream_keeps_is_written_though_a_callback_of_its_connection_blocks(one, gate):
    received, in_time, message = gate(), [], bytes(8_000_000)

    def respond(socket, data):
        socket.send(message)
        in_time.append(received.wait(PATIENCE))

    client, socket, *_ = one(data_received=respond, receive_buffer=1 << 16)
    client.send(b"x")
    wait_until(lambda: socket.pending, "it is blocked")
    client.sock.settimeout(2 * PATIENCE)
    assert client.receive(len(message)) == message
    received.set()
    wait_until(lambda: in_time, "the callback goes on")
    assert in_time == [True]


@pytest.mark.clause("K6", "P2", "T8")
@pytest.mark.parametrize("batch", [1, 70])
def test_who_is_in_a_stream_is_not_kept_there_for_as_long_as_others_send(one, batch):
    """Each time that it sends a message others send a batch of further ones."""
    client, socket, stream, _ = one()
    most, me, rounds = 20_000, threading.get_ident(), []

    def further():
        for _ in range(batch):
            assert socket.send(b"further")

    def on_send(data):
        if threading.get_ident() == me and len(rounds) * batch < most:
            rounds.append(len(data))
            with running(further):
                pass

    stream.on_send = on_send
    assert socket.send(b"first")
    stream.on_send = lambda data: None
    count = len(rounds) * batch
    assert count < most
    assert client.receive(5 + 7 * count) == b"first" + count * b"further"


@pytest.mark.clause("C22", "T8")
def test_a_thread_that_sends_without_rest_keeps_nobody_from_reading_a_stream(one):
    """It is in the stream whenever a worker gets to run: there it lets go of the GIL."""
    client, socket, stream, handler = one({"max_write_buffer": 1 << 30})
    calls, much = [], bytes(1 << 20)

    def on_send(data):
        calls.append(hashlib.sha256(much).digest())
        stream.kept = b""

    def send():
        while len(calls) < 2000 and not handler.of("data_received"):
            assert socket.send(b"")

    stream.on_send = on_send
    with running(send):
        wait_until(lambda: len(calls) > 10, "it sends")
        client.send(b"request")
    assert handler.of("data_received")


@pytest.mark.clause("H12", "T8")
def test_on_writable_comes_to_who_has_seen_more_than_the_high_watermark_however_briefly(one, gate):
    """Part of it is with who is in the stream, the rest waits for that one: neither alone is more
    than that.
    """
    client, socket, stream, handler = one({"write_buffer_limits": (1000, 2000)}, writable=None)
    inside = {b"first": threading.Event(), b"second": threading.Event()}
    release = {data: gate() for data in inside}
    expected = [b"first", b"second", bytes(1500)]

    def on_send(data):
        if data in inside:
            inside[data].set()
            wait_event(release[data], "it may go on")

    stream.on_send = on_send
    with running(lambda: socket.send(b"first")):
        wait_event(inside[b"first"], "a thread is in the stream")
        for data in expected[1:]:
            assert socket.send(data)
        release[b"first"].set()
        wait_event(inside[b"second"], "it has taken over the rest")
        while socket.pending <= 2000:
            expected.append(bytes(100))
            assert socket.send(expected[-1])
        release[b"second"].set()
        everything = b"".join(expected)
        assert client.receive(len(everything)) == everything
    handler.wait_for("writable")


@pytest.mark.clause("C18", "T8")
def test_what_waits_for_who_is_in_a_stream_counts_for_max_buffered(one, hold):
    _, socket, stream, handler = one({"max_buffered": 1 << 20})
    inside, release = hold(stream, b"first")
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "a thread is in the stream")
        for _ in range(17):
            socket.send(bytes(1 << 16))
        wait_until(lambda: not socket.is_open, "the connection goes")
        release.set()
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer


@pytest.mark.clause("C27", "T8")
def test_nobody_spins_when_a_deadline_passes_while_a_thread_is_in_the_stream(one, hold):
    _, socket, stream, handler = one({"idle_timeout": 2.0})
    inside, release = hold(stream, b"first")
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "a thread is in the stream")
        wait_until(lambda: not socket.is_open, "it is late")
        settled(lambda: (socket.server.stats().polls, socket.server.stats().iterations))
        assert handler.of("connection_removed") == []
        release.set()
    assert type(handler.wait_removed()[0]) is hydrogen.ConnectionTimeout


@pytest.mark.clause("C27", "K6", "T8")
def test_a_deadline_holds_though_what_was_sent_while_a_stream_received_is_blocked_in_it(
    one, hold, gate
):
    """The thread that received leaves it to another one."""
    client, socket, stream, handler = one({"idle_timeout": 2.0})
    received, inside_recv = gate(), threading.Event()

    def on_recv(data):
        inside_recv.set()
        wait_event(received, "it has received")

    stream.on_recv = on_recv
    inside, release = hold(stream, b"held")
    client.send(b"x")
    wait_event(inside_recv, "a worker receives")
    assert socket.send(b"held")
    received.set()
    wait_event(inside, "it is being sent")
    wait_until(lambda: not socket.is_open, "it is late")
    release.set()
    assert type(handler.wait_removed()[0]) is hydrogen.ConnectionTimeout


@pytest.mark.clause("K11", "T8")
def test_drain_in_a_callback_learns_of_an_edge_that_came_while_its_worker_was_elsewhere(
    several, gate
):
    """One worker: it has the connection in its hands already when the edge comes, and receives
    first.
    """
    go = {name: gate() for name in (b"first", b"second")}
    inside, drained, read, message = [], [], [], bytes(8_000_000)

    def on_data(socket, data):
        inside.append(data)
        if data in go:
            wait_event(go[data], "it may go on")
        else:
            drained.append(socket.drain(None))

    clients, sockets, streams, _ = several(
        3, {"max_threads": 1}, receive_buffer=1 << 16, data_received=on_data
    )
    sockets[2].send(message)
    assert sockets[2].pending
    clients[0].send(b"first")
    wait_until(lambda: inside, "the worker is in a callback")
    clients[1].send(b"second")
    clients[2].send(b"drain")
    go[b"first"].set()
    wait_until(lambda: len(inside) == 2, "it is in the next one")
    with running(lambda: read.append(clients[2].receive(len(message)))):
        wait_until(
            lambda: not unacknowledged(streams[2].fileno()), "the peer has what the kernel had"
        )
        go[b"second"].set()
    assert read == [message]
    wait_until(lambda: drained == [True], "drain() has returned")


@pytest.mark.clause("P2", "T8")
def test_many_streams_of_which_something_is_left_over_do_not_wait_for_each_other_s_turn(
    several, gate
):
    """A worker that comes goes on with all of them, before it delivers what others send without
    rest.
    """
    count, messages = 40, 2000
    go, begun, left = gate(), threading.Event(), []

    def on_data(socket, data):
        for _ in data:
            begun.set()
            wait_event(go, "it may go on")
            left.append(sum([socket.pending > 0 for socket in sockets]))

    clients, sockets, streams, _ = several(count + 1, {"max_threads": 1}, data_received=on_data)

    def leave_over(number):
        inside, release = threading.Event(), gate()

        def on_send(data):
            if data == b"first":
                inside.set()
                wait_event(release, "it may go on")

        streams[number].on_send = on_send
        with running(lambda: sockets[number].send(b"first")):
            wait_event(inside, "a thread is in the stream")
            for _ in range(MANY):
                assert sockets[number].send(b"x")
            release.set()

    streams[count].split = lambda data: [bytes([byte]) for byte in data]
    clients[count].send(bytes(messages))
    wait_event(begun, "the worker is in a callback")
    for number in range(count):
        leave_over(number)
    go.set()
    wait_until(lambda: len(left) == messages, "all is delivered")
    assert left[-1] == 0


@pytest.mark.clause("K6", "K11", "T8")
def test_what_a_thread_is_writing_into_a_stream_is_pending(one, hold):
    _, socket, stream, _ = one({"write_buffer_limits": (10, 20)})
    inside, release = hold(stream, bytes(100))
    with running(lambda: socket.send(bytes(100))):
        wait_event(inside, "a thread is in the stream")
        assert socket.pending == 100
        assert not socket.drain(0)
        release.set()
    wait_until(
        lambda: socket.pending == 0, "it is written: by a worker, if one was in the stream before"
    )


@pytest.mark.clause("C18", "T8")
def test_what_threads_are_writing_into_streams_does_not_count_for_max_buffered(several, gate):
    """It waits for nobody; what waits behind it does."""
    count, message = 4, bytes(1 << 20)
    _, sockets, streams, handler = several(count, {"max_buffered": 1 << 20})
    inside, release = [], gate()

    def on_send(data):
        if data == message:
            inside.append(data)
            wait_event(release, "it may go on")

    for stream in streams:
        stream.on_send = on_send
    # whoever asked the streams once is out of them
    settled(lambda: sockets[0].server.stats().iterations)
    with running(*(lambda socket=socket: socket.send(message) for socket in sockets)):
        wait_until(lambda: len(inside) == count, "all threads are in the streams")
        for socket in sockets:
            assert socket.send(b"x")
        assert sockets[0].server.stats().queued_bytes == count
        assert handler.of("connection_removed") == []
        release.set()


@pytest.mark.clause("T4", "T8", "K18")
def test_what_a_unix_peer_sent_before_it_hung_up_is_delivered_though_a_thread_was_in_the_stream(
    one, hold, tmp_path
):
    """It has not read what it got, so the hang-up is a reset, of which the kernel tells before what
    is still there to be read.
    """
    client, socket, stream, handler = one({"path": str(tmp_path / "socket")})
    assert socket.send(b"unread")
    wait_until(lambda: socket.server.stats().messages_sent == 1, "it is written")
    inside, release = hold(stream, b"")
    with running(lambda: socket.send(b"")):
        wait_event(inside, "a thread is in the stream")
        client.send(b"hello")
        client.close()
        settled(lambda: socket.server.stats().iterations)
        release.set()
    assert type(handler.wait_removed()[0]) is ConnectionResetError
    assert handler.messages() == [b"hello"]


@pytest.mark.clause("K6", "P2", "T8")
def test_what_is_sent_on_a_stream_in_use_when_a_worker_came_goes_out_though_all_workers_are_busy(
    several, hold, gate
):
    """Nobody is in the stream any more, and the owner of its connection, who wanted to read, has
    not been there again.
    """
    blocked, go = threading.Event(), gate()

    def on_data(socket, data):
        if data == b"block":
            blocked.set()
            wait_event(go, "it may go on")

    (first, second), (socket, _), (stream, _), handler = several(
        2, {"max_threads": 1}, data_received=on_data
    )
    inside, release = hold(stream, b"one")
    with running(lambda: socket.send(b"one")) as threads:
        wait_event(inside, "a thread is in the stream")
        first.send(b"hello")
        settled(lambda: socket.server.stats().iterations)
        second.send(b"block")
        wait_event(blocked, "the only worker is in a callback")
        release.set()
        threads[0].join(PATIENCE)
        assert socket.send(b"two")
        assert first.receive(6) == b"onetwo"
    go.set()
    wait_until(lambda: b"hello" in handler.messages(), "it is delivered")


@pytest.mark.clause("T4", "T8", "S9")
@pytest.mark.parametrize("resumes", [False, True], ids=["paused", "resumed"])
def test_what_was_received_in_the_owner_s_stead_waits_for_the_end_of_a_pause(one, hold, resumes):
    client, socket, stream, handler = one()
    inside, release = hold(stream, b"first")
    with running(lambda: socket.send(b"first")):
        wait_event(inside, "a thread is in the stream")
        client.send(b"request")
        settled(lambda: socket.server.stats().iterations)
        socket.pause_reading()
        release.set()
    assert client.receive(5) == b"first"
    settled(lambda: socket.server.stats().iterations)
    assert handler.messages() == []
    if resumes:
        socket.resume_reading()
        handler.wait_for("data_received")
    else:
        client.reset()
        assert type(handler.wait_removed()[0]) is ConnectionResetError
    assert handler.messages() == [b"request"] * resumes


@pytest.mark.clause("H13")
def test_a_connection_that_is_cut_while_a_thread_is_in_its_stream_has_its_names_to_the_end(
    start, connect, gate
):
    """A reset makes the kernel forget the one of this end, where it is not of the listener."""
    inside, go, names = threading.Event(), gate(), []

    class Held(Bytes):
        def send(self, buf):
            inside.set()
            wait_event(go, "let go")

    handler = recorder(
        new_connection=Held,
        connected=None,
        disconnected=lambda socket, error: names.append((socket.sockname, socket.peername)),
    )
    server = start(handler, addr="0.0.0.0", max_threads=2)
    client = connect(("127.0.0.1", server.address[1]))
    handler.wait_for("connected")
    socket = handler.socket()
    before = socket.sockname, socket.peername
    with running(lambda: socket.send(b"x")):
        wait_event(inside, "it is in the stream")
        socket.abort()
        assert client.at_end() == "reset"
        go.set()
    handler.wait_removed()
    assert names == [before]
