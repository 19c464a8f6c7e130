"""HydrogenSocket: sending, closing, and what it answers while the connection lives and
afterwards.
"""

import inspect
import os
import threading

import pytest
from support import Echo, echo, recorder, running, simple, unframe, wait_until

import hydrogen


@pytest.mark.clause("K2")
@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("H")]
)
def test_send_takes_any_bytes_like_object(start, connect, kind):
    answers = []
    handler = recorder(data_received=lambda socket, data: answers.append(socket.send(kind(data))))
    client = connect(start(handler))
    client.echo(b"0123456789abcdef")
    client.close()
    handler.wait_removed()
    assert answers == [True]


@pytest.mark.clause("K2")
def test_send_copies_what_it_is_given(start, connect):
    def received(socket, data):
        buffer = bytearray(data)
        socket.send(buffer)
        buffer[:] = b"?" * len(buffer)
        buffer.extend(b"still resizable")

    connect(start(recorder(data_received=received))).echo(b"a" * 5000)


@pytest.mark.clause("K3", "K12")
def test_send_on_a_closing_connection_returns_false_and_is_counted(start, connect):
    answers = []

    def received(socket, data):
        answers.append((socket.send(b"yes"), socket.is_open))
        socket.close()
        answers.append((socket.send(b"no"), socket.is_open))

    handler = recorder(data_received=received)
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    assert client.receive_until_end() == b"yes"
    client.close()
    handler.wait_removed()
    assert answers == [(True, True), (False, False)]
    assert handler.socket().send(b"late") is False
    wait_until(lambda: server.stats().messages_refused == 2, "both refusals are counted")
    assert server.stats().messages_sent == 1


@pytest.mark.clause("K4")
@pytest.mark.parametrize("wrong", ["text", None, 7, [b"x"], object()])
def test_send_of_what_is_not_bytes_like_raises_type_error(start, connect, wrong):
    def received(socket, data):
        with pytest.raises(TypeError):
            socket.send(wrong)
        socket.send(data)

    connect(start(recorder(data_received=received))).echo(b"goes on")


@pytest.mark.clause("K4")
def test_send_of_a_memoryview_with_holes_raises(start, connect):
    def received(socket, data):
        with pytest.raises((TypeError, BufferError, ValueError)):
            socket.send(memoryview(data)[::2])
        socket.send(data)

    connect(start(recorder(data_received=received))).echo(b"goes on")


@pytest.mark.clause("K5", "F6")
def test_a_message_that_the_framing_cannot_carry_raises_and_the_connection_stays(start, connect):
    def received(socket, data):
        for size in (101, 65_536, 200_000):
            with pytest.raises(hydrogen.FrameTooLarge):
                socket.send(bytes(size))
        assert socket.send(bytes(100))
        assert socket.is_open
        assert socket.pending <= 104

    server = start(
        recorder(data_received=received), framing=hydrogen.SimpleFrameBuilder(max_size=100)
    )
    client = connect(server)
    client.send(simple(b"x"))
    assert client.receive_frame() == bytes(100)
    assert server.stats().messages_refused == 0


@pytest.mark.clause("K19", "F7")
def test_an_empty_message_is_an_empty_frame_or_nothing(start, connect):
    def received(socket, data):
        assert socket.send(b"")
        assert socket.send(data)

    server = start(recorder(data_received=received), framing=hydrogen.SimpleFrameBuilder)
    client = connect(server)
    client.send(simple(b"x"))
    assert client.receive(4 + 5) == simple(b"") + simple(b"x")
    server = start(recorder(data_received=received))
    connect(server).echo(b"raw")
    wait_until(lambda: server.stats().messages_sent == 2, "the empty message is counted")


@pytest.mark.clause("K6")
def test_messages_of_several_threads_keep_each_thread_s_order_and_never_interleave(start, connect):
    handler = recorder(connected=None)
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    socket = handler.socket()

    def sender(name):
        for number in range(200):
            assert socket.send(b"%d:%d:" % (name, number) + b"." * (number * 7 % 1500))

    received = {name: [] for name in range(4)}
    with running(*(lambda name=name: sender(name) for name in range(4))):
        for _ in range(800):
            name, number, dots = client.receive_frame().split(b":")
            assert dots == b"." * (int(number) * 7 % 1500)
            received[int(name)].append(int(number))
    assert all(numbers == list(range(200)) for numbers in received.values())


@pytest.mark.clause("K8", "H20")
def test_close_flushes_and_then_ends_the_connection(start, connect):
    reply = os.urandom(2_000_000)

    def received(socket, data):
        socket.send(reply)
        socket.close()

    handler = recorder(data_received=received)
    client = connect(start(handler))
    client.send(b"x")
    assert client.receive_until_end() == reply
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K9")
def test_shutdown_is_close(start, connect):
    handler = recorder(data_received=lambda socket, data: (socket.send(data), socket.shutdown()))
    client = connect(start(handler))
    client.send(b"bye")
    assert client.receive_until_end() == b"bye"
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K10", "H20")
def test_abort_resets(start, connect):
    handler = recorder(connected=None)
    client = connect(start(handler))
    handler.socket().abort()
    assert client.at_end() == "reset"
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed


@pytest.mark.clause("K8")
def test_a_peer_that_never_closes_is_not_waited_for_for_ever(start, connect):
    handler = recorder(data_received=lambda socket, data: socket.close())
    server = start(handler)
    client = connect(server)
    client.send(b"x")
    assert client.receive_until_end() == b""
    client.send(b"and still sending")
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed  # with the client open
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")


@pytest.mark.clause("H20")
@pytest.mark.parametrize("second", ["reset", "abort", "stop", "server abort", "end"])
def test_the_first_cause_of_an_end_is_the_one_that_is_told(start, connect, second):
    """The connection is closing, but its output is stuck, when something else ends it."""
    handler = recorder(
        data_received=lambda socket, data: (socket.send(bytes(8 << 20)), socket.close())
    )
    server = start(handler)
    client = connect(server, receive_buffer=4096)
    client.send(b"x")
    handler.wait_for("data_received")
    socket = handler.socket()
    wait_until(lambda: not socket.is_open and socket.pending > 0, "it is closing and stuck")
    if second == "reset":
        client.reset()
    elif second == "abort":
        socket.abort()
    elif second == "stop":
        server.stop(0.01)
    elif second == "server abort":
        server.abort()
    else:
        client.finish()
        client.receive_until_end()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    wait_until(lambda: server.stats().removed_local_closed == 1, "it is counted")


@pytest.mark.clause("K10")
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_abort_is_told_to_the_peer_though_the_handler_holds_a_duplicate_of_the_fd(
    start, connect, tmp_path, family
):
    duplicates = []

    def received(socket, data):
        duplicates.append(os.dup(socket.fileno()))
        socket.abort()

    handler = recorder(data_received=received)
    server = start(handler, **({"path": str(tmp_path / "s")} if family == "unix" else {}))
    client = connect(server)
    client.send(b"x")
    try:
        assert client.at_end() == ("end" if family == "unix" else "reset")
    finally:
        handler.wait_removed()
        os.close(duplicates[0])


@pytest.mark.clause("K10")
def test_abort_after_close_does_not_wait_for_a_peer_that_does_not_read(start, connect):
    handler = recorder(
        data_received=lambda socket, data: (socket.send(bytes(8 << 20)), socket.close())
    )
    client = connect(start(handler))
    client.send(b"x")
    socket = wait_until(lambda: handler.calls and handler.socket(), "the callback ran")
    wait_until(lambda: not socket.is_open, "it is closing")
    socket.abort()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert client.at_end() == "reset"


@pytest.mark.clause("K11", "K7", "S25")
def test_pending_counts_what_the_peer_did_not_take_and_drain_waits_for_it(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    client = connect(server, receive_buffer=4096)
    socket = handler.socket()
    assert socket.pending == 0
    assert socket.drain(0)
    assert socket.send(bytes(8 << 20))
    assert 0 < socket.pending <= 8 << 20
    assert socket.drain(0) is False
    assert socket.drain(0.01) is False
    wait_until(lambda: server.stats().queued_bytes > 0, "queued output is counted")
    drained = []
    with running(lambda: drained.append(socket.drain())):
        assert client.receive(8 << 20) == bytes(8 << 20)
    assert drained == [True]
    wait_until(lambda: socket.pending == 0, "all is taken")
    wait_until(lambda: server.stats().queued_bytes == 0, "nothing is queued")


@pytest.mark.clause("K7")
def test_a_blocking_handler_streams_a_large_file_with_drain(start, connect):
    parts = [os.urandom(65_536) for _ in range(64)]
    most = []

    def received(socket, data):
        for part in parts:
            assert socket.send(part)
            most.append(socket.pending)
            assert socket.drain()
        socket.close()

    client = connect(
        start(recorder(data_received=received), write_buffer_limits=(65_536, 131_072)),
        receive_buffer=65_536,
    )
    client.send(b"x")
    assert client.receive_until_end() == b"".join(parts)
    assert max(most) <= 2 * 65_536


@pytest.mark.clause("K7")
def test_drain_gives_up_when_the_connection_goes(start, connect):
    handler = recorder(connected=None)
    client = connect(start(handler), receive_buffer=4096)
    socket = handler.socket()
    socket.send(bytes(8 << 20))
    drained = []
    with running(
        lambda: drained.append(socket.drain()), lambda: drained.append(socket.drain(3600))
    ):
        client.reset()
    assert drained == [False, False]


def test_help_says_the_same_of_a_socket_whichever_engine_made_it(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler)
    connect(server).echo(b"x")
    kind, contract = type(server.connections[0]), hydrogen.HydrogenSocket
    for name in vars(contract):
        if not name.startswith("_"):
            assert inspect.getdoc(getattr(contract, name)), name
            assert inspect.getdoc(getattr(kind, name)) == inspect.getdoc(getattr(contract, name)), (
                name
            )


@pytest.mark.clause("K1", "K13")
def test_sockets_of_one_connection_are_equal_and_hash_alike_and_ids_are_unique(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    for _ in range(5):
        client = connect(server)
        client.echo(b"1")
        client.echo(b"2")
    by_id = {}
    for call in handler.calls:
        by_id.setdefault(call.id, []).append(call.socket)
    assert len(by_id) == 5
    assert all(type(id) is int for id in by_id)
    for sockets in by_id.values():
        assert len(sockets) == 3
        assert len(set(sockets)) == 1
    firsts = [sockets[0] for sockets in by_id.values()]
    assert len(set(firsts)) == 5
    assert firsts[0] != firsts[1]
    assert firsts[0] != object()
    assert set(server.connections) == set(firsts)


@pytest.mark.clause("K13")
def test_the_id_of_a_connection_that_is_gone_is_never_given_again(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler)
    for _ in range(10):
        with connect(server) as client:
            client.echo(b"x")
        wait_until(lambda: server.stats().connections == 0, "it is gone")
    ids = [call.id for call in handler.of("disconnected")]
    assert len(set(ids)) == 10
    assert ids == sorted(ids)


@pytest.mark.clause("K12", "K13", "K16")
def test_a_socket_is_shown_with_its_id_its_state_and_its_peer(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    client = connect(server)
    socket = handler.socket()
    assert repr(socket) == f"<HydrogenSocket {socket.id} open peername={client.name!r}>"
    client.close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "it is gone")
    assert repr(socket) == f"<HydrogenSocket {socket.id} closed peername=None>"


class Refusing(hydrogen.SimpleFrameBuilder):
    """Carries no message."""

    def frame(self, payload):
        raise ValueError("none fits")


UNFIT = {
    "too long": (hydrogen.SimpleFrameBuilder(max_size=10), bytes(11)),
    "with the delimiter": (hydrogen.LineFrameBuilder, b"a\nb"),
    "refused by a builder": (Refusing, b"any"),
}


@pytest.mark.clause("K3", "K4")
@pytest.mark.parametrize(("framing", "data"), UNFIT.values(), ids=UNFIT)
def test_send_on_a_connection_that_is_gone_raises_nothing_whatever_the_message(
    start, connect, framing, data
):
    """But for what is no message at all."""
    handler = recorder(connected=lambda socket: socket.close())
    server = start(handler, framing=framing)
    connect(server).finish()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "it is gone")
    socket = handler.socket()
    assert socket.send(data) is False
    with pytest.raises(TypeError, match="bytes-like"):
        socket.send("text")
    wait_until(lambda: server.stats().messages_refused == 1, "the refusal is counted")


@pytest.mark.clause("K16", "K17")
def test_names_are_as_the_kernel_gives_them(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    client = connect(server)
    socket = handler.socket()
    assert socket.peername == client.name
    assert socket.sockname == server.address == client.sock.getpeername()
    assert socket.get_extra_info("peername") == client.name
    assert socket.get_extra_info("sockname") == server.address
    assert socket.get_extra_info("cipher") is None
    assert socket.get_extra_info("cipher", "none") == "none"
    assert socket.fileno() == handler.calls[0].fd >= 0


@pytest.mark.clause("K14")
def test_user_data_is_none_at_first_and_is_kept_and_let_go(start, connect):
    class State:
        """Told when it dies."""

        dead = threading.Event()

        def __del__(self):
            self.dead.set()

    handler = recorder(connected=None, data_received=echo)
    client = connect(start(handler))
    socket = handler.socket()
    assert socket.user_data is None
    socket.user_data = "first"
    assert socket.user_data == "first"
    socket.user_data = State()
    client.echo(b"x")
    assert type(handler.of("data_received")[0].socket.user_data) is State
    client.close()
    handler.wait_removed()
    # Not asleep: without a GIL an object is freed by the thread that made it, when that runs Python
    # again.
    wait_until(State.dead.is_set, "the state is dropped with the connection")
    assert socket.user_data is None


@pytest.mark.clause("K18", "K12", "K17", "K3", "K7")
@pytest.mark.parametrize("end", ["close", "reset"])
def test_the_socket_of_a_connection_that_is_gone_answers_and_acts_on_nobody(start, connect, end):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler)
    client = connect(server)
    client.echo(b"x")
    socket = handler.socket()
    id = socket.id
    alike = handler.of("data_received")[0].socket
    getattr(client, end)()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    neighbour = connect(server)  # which probably has the slot and the fd of the first
    neighbour.echo(b"y")
    assert socket.send(b"stray") is False
    assert socket.drain() is False
    assert socket.drain(0) is False
    for method in (
        socket.close,
        socket.shutdown,
        socket.abort,
        socket.pause_reading,
        socket.resume_reading,
    ):
        assert method() is None
    assert socket.pending == 0
    assert socket.is_open is False
    socket.user_data = "nobody's"
    assert socket.user_data is None
    assert handler.socket(1).user_data is None
    assert socket.peername is None
    assert socket.sockname is None
    assert socket.get_extra_info("peername", "gone") == "gone"
    assert socket.fileno() == -1
    assert socket.id == id
    assert socket.server is server
    assert socket == alike
    assert hash(socket) == hash(alike)
    neighbour.echo(b"undisturbed")


@pytest.mark.clause("K18")
def test_a_socket_may_be_used_after_the_server_stopped(start, connect):
    handler = recorder(connected=None)
    server = start(handler)
    client = connect(server)
    socket = handler.socket()
    client.close()
    server.stop()
    assert socket.send(b"x") is False
    assert socket.drain(0) is False
    socket.abort()
    assert (socket.pending, socket.is_open, socket.fileno(), socket.peername) == (
        0,
        False,
        -1,
        None,
    )


@pytest.mark.clause("K18", "K2")
def test_a_send_from_a_thread_that_is_no_worker_leaves_at_once(start, connect):
    handler = recorder(connected=None)
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    socket = handler.socket()
    for number in range(50):
        assert socket.send(b"%d" % number)
        assert client.receive_frame() == b"%d" % number


@pytest.mark.clause("K2", "C17")
def test_one_message_may_be_larger_than_the_write_buffer(start, connect):
    message = os.urandom(3_000_000)
    handler = recorder(data_received=lambda socket, data: socket.send(message))
    client = connect(start(handler, max_write_buffer=100_000, write_buffer_limits=(10_000, 50_000)))
    client.send(b"x")
    assert client.receive(len(message)) == message
    client.send(b"again")
    assert client.receive(len(message)) == message


@pytest.mark.clause("K2")
def test_large_messages_go_both_ways(start, connect):
    data = os.urandom(5_000_000)
    client = connect(start(Echo()))
    got = []
    with running(lambda: got.append(client.receive(len(data)))):
        client.send(data)
    assert got == [data]


@pytest.mark.clause("F4", "F5", "H9")
def test_the_largest_frames_go_both_ways(start, connect):
    client = connect(start(Echo(), framing=hydrogen.SimpleFrameBuilder))
    wire = b"".join(simple(os.urandom(65_535)) for _ in range(20))
    got = []
    with running(lambda: got.append(client.receive(len(wire)))):
        client.send(wire)
    assert unframe(got[0]) == unframe(wire)
