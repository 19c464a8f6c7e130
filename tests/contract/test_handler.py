"""The callbacks: which come, when, in what order, and what they may rely on."""

import os
import queue
import socket as stdlib_socket
import threading
import types
import weakref

import pytest
from support import PATIENCE, Echo, echo, recorder, running, simple, wait_event, wait_until

import hydrogen


@pytest.mark.clause("H8", "H9", "H13", "H14", "H6")
def test_the_callbacks_of_a_connection_come_in_their_order(start, connect):
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    client = connect(start(handler))
    client.echo(b"hello")
    client.close()
    handler.wait_removed()
    assert handler.names() == [
        "on_new_connection",
        "on_connected",
        "on_data_received",
        "on_disconnected",
        "on_connection_removed",
    ]
    assert handler.messages() == [b"hello"]


@pytest.mark.clause("H9", "C8")
def test_a_handler_that_writes_nothing_but_on_data_received_serves(start, connect):
    server = start(Echo())
    for _ in range(3):
        with connect(server) as client:
            client.echo(b"x" * 1000)
            client.finish()
            assert client.receive_until_end() == b""


@pytest.mark.clause("H9")
def test_data_is_of_type_bytes(start, connect):
    handler = recorder(data_received=echo)
    connect(start(handler)).echo(b"data")
    assert [type(message) for message in handler.messages()] == [bytes]


@pytest.mark.clause("H9", "C8", "F4", "F5")
@pytest.mark.parametrize(
    "framing",
    [hydrogen.SimpleFrameBuilder, hydrogen.SimpleFrameBuilder()],
    ids=["class", "instance"],
)
def test_with_framing_each_callback_gets_one_whole_message_and_each_send_makes_one_frame(
    start, connect, framing
):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=framing))
    sent = [b"one", b"", b"three" * 1000, b"4"]
    client.send(b"".join(map(simple, sent)))
    assert [client.receive_frame() for _ in sent] == sent
    assert handler.messages() == sent


@pytest.mark.clause("H3", "K15")
def test_the_server_is_known_before_the_first_callback(start, connect):
    seen = []
    handler = recorder(
        server_created=lambda fd: seen.append(handler.server),
        connected=lambda socket: seen.append(socket.server),
        data_received=echo,
    )
    server = start(handler)
    connect(server).echo(b"x")
    assert seen == [server, server]


@pytest.mark.clause("H5")
def test_on_server_created_gets_the_bound_socket_before_it_listens(start):
    seen = []

    def created(fd):
        with stdlib_socket.socket(fileno=os.dup(fd)) as listener:
            listening = listener.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
            seen.append((listener.getsockname(), listening))

    server = start(recorder(server_created=created))
    assert seen == [(server.address, 0)]


@pytest.mark.clause("H5", "H16")
def test_what_on_server_created_raises_is_what_the_start_raises(engine):
    def created(fd):
        raise KeyError("no")

    server = hydrogen.Server(
        recorder(server_created=created), hydrogen.Config(port=0), engine=engine
    )
    with pytest.raises(KeyError, match="no"):
        server.start()
    assert not server.ready


@pytest.mark.clause("H6", "K17", "H14")
def test_one_fd_names_a_connection_from_its_first_callback_to_its_last(start, connect):
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    client = connect(start(handler))
    client.echo(b"x")
    client.close()
    handler.wait_removed()
    assert len({call.fd for call in handler.calls}) == 1
    assert handler.calls[0].fd >= 0


@pytest.mark.clause("H6")
def test_on_new_connection_gets_the_accepted_socket(start, connect):
    seen = []

    def new(fd):
        with stdlib_socket.socket(fileno=os.dup(fd)) as accepted:
            seen.append(accepted.getpeername())

    client = connect(start(recorder(new_connection=new, data_received=echo)))
    client.echo(b"x")
    assert seen == [client.name]


@pytest.mark.clause("H7", "H20")
def test_reject_refuses_quietly(start, connect):
    def new(fd):
        raise hydrogen.Reject("not you")

    handler = recorder(new_connection=new, connected=None)
    server = start(handler)
    assert connect(server).at_end() in ("end", "reset")
    (error,) = handler.wait_removed()
    assert isinstance(error, hydrogen.Reject)
    assert handler.names() == ["on_new_connection", "on_connection_removed"]
    wait_until(lambda: server.stats().removed_reject == 1, "the rejection is counted")


@pytest.mark.clause("H8", "K14")
def test_a_greeting_from_on_connected_comes_before_any_reply(start, connect):
    def connected(socket):
        socket.user_data = []
        socket.send(b"welcome ")

    def received(socket, data):
        socket.user_data.append(data)
        socket.send(data)

    handler = recorder(connected=connected, data_received=received)
    client = connect(start(handler))
    client.send(b"hello")
    assert client.receive(13) == b"welcome hello"


@pytest.mark.clause("H8")
def test_on_connected_comes_for_a_client_that_says_nothing(start, connect):
    client = connect(start(recorder(connected=lambda socket: socket.send(b"hi"))))
    assert client.receive(2) == b"hi"


@pytest.mark.clause("H10", "H20")
def test_the_peer_that_closes_is_removed_with_peer_closed(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler)
    client = connect(server)
    client.echo(b"x")
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.PeerClosed
    assert isinstance(handler.of("disconnected")[0].value, hydrogen.PeerClosed)
    wait_until(lambda: server.stats().removed_peer_closed == 1, "it is counted")


@pytest.mark.clause("H10")
def test_the_default_on_eof_closes_when_output_is_flushed(start, connect):
    reply = os.urandom(3_000_000)
    handler = recorder(data_received=lambda socket, data: socket.send(reply))
    client = connect(start(handler))
    client.send(b"give")
    client.finish()
    assert client.receive_until_end() == reply
    assert isinstance(handler.wait_removed()[0], hydrogen.PeerClosed)


@pytest.mark.clause("H11")
def test_who_overrides_on_eof_may_go_on_sending_and_closes_himself(start, connect):
    handler = recorder(eof=None)
    client = connect(start(handler))
    client.send(b"last words")
    client.finish()
    handler.wait_for("eof")
    socket = handler.socket()
    assert socket.is_open
    assert socket.send(b"still ")
    assert socket.send(b"here")
    assert client.receive(10) == b"still here"
    assert handler.of("disconnected") == []
    socket.close()
    assert client.receive_until_end() == b""
    assert isinstance(handler.wait_removed()[0], hydrogen.LocalClosed)
    assert [name for name in handler.names() if name == "on_eof"] == ["on_eof"]


@pytest.mark.clause("H13", "K14", "K16")
def test_on_disconnected_still_has_user_data_names_and_fd(start, connect):
    seen = []

    def connected(socket):
        socket.user_data = "state"

    handler = recorder(
        connected=connected,
        data_received=echo,
        disconnected=lambda socket, err: seen.append(
            (
                socket.user_data,
                socket.peername,
                socket.sockname,
                socket.fileno() >= 0,
                socket.is_open,
            )
        ),
    )
    server = start(handler)
    client = connect(server)
    client.echo(b"x")
    name = client.name
    client.close()
    handler.wait_removed()
    assert seen == [("state", name, server.address, True, False)]


@pytest.mark.clause("H13", "H14", "K14")
@pytest.mark.parametrize("before", [None, "state"])
@pytest.mark.parametrize("where", ["disconnected", "connection_removed"])
def test_user_data_that_is_set_in_the_last_callbacks_is_kept_until_they_are_over(
    start, connect, where, before
):
    class State:
        """Can be referred to weakly; as it is dropped it tries to leave another one."""

        def __init__(self, heir=None):
            self.heir = heir

        def __del__(self):
            if self.heir is not None:
                handler.socket().user_data = self.heir

    seen, states = [], []

    def set_and_get(name, *arguments):
        socket = handler.socket()
        if name == where and not states:
            heir = State()
            for state in (State(), None, State(heir)):
                socket.user_data = state
                assert socket.user_data is state
            states.extend([weakref.ref(state), weakref.ref(heir)])
        seen.append(type(socket.user_data))

    def connected(socket):
        socket.user_data = before

    handler = recorder(
        connected=connected,
        disconnected=lambda *arguments: set_and_get("disconnected"),
        connection_removed=lambda *arguments: set_and_get("connection_removed"),
    )
    server = start(handler)
    connect(server).close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert seen == [type(before) if where == "connection_removed" else State, State]
    assert handler.socket().user_data is None
    wait_until(lambda: [state() for state in states] == [None, None], "both are dropped")
    neighbour = connect(server)  # which may have the slot of the first
    handler.wait_for("connected", 2)
    wait_until(lambda: handler.socket(1).user_data == before, "it has its own")
    neighbour.close()


@pytest.mark.clause("H14")
@pytest.mark.parametrize("end", ["close", "finish", "reset"])
def test_each_accepted_connection_is_removed_exactly_once(start, connect, end):
    handler = recorder(data_received=echo)
    server = start(handler)
    for _ in range(20):
        client = connect(server)
        client.echo(b"x")
        getattr(client, end)()
    errors = handler.wait_removed(20)
    wait_until(lambda: server.stats().connections == 0, "all slots vacant")
    assert len(handler.of("connection_removed")) == 20
    expected = ConnectionResetError if end == "reset" else hydrogen.PeerClosed
    assert {type(error) for error in errors} == {expected}


@pytest.mark.clause("H14")
def test_a_connection_that_never_says_anything_is_removed_too(start, connect):
    handler = recorder()
    server = start(handler)
    connect(server).close()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")


@pytest.mark.clause("H15")
def test_the_fd_is_still_taken_while_on_connection_removed_runs(start, connect):
    seen = []

    def removed(fd, err):
        seen.append((fd, os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")))

    handler = recorder(connection_removed=removed, data_received=echo)
    server = start(handler)
    client = connect(server)
    client.echo(b"x")
    client.close()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    assert [there for _, there in seen] == [True]


@pytest.mark.clause("H18", "K8")
@pytest.mark.parametrize("how", ["close", "abort", "shutdown"])
def test_after_close_or_abort_no_further_message_is_delivered_even_if_it_was_read(
    start, connect, how
):
    handler = recorder(data_received=lambda socket, data: getattr(socket, how)())
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"first") + simple(b"second") * 50)
    assert client.at_end() == ("reset" if how == "abort" else "end")
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert handler.messages() == [b"first"]


@pytest.mark.clause("H19")
def test_after_pause_reading_none_of_the_messages_already_read_is_delivered_until_resume_reading(
    start, connect
):
    delivered = queue.Queue()

    def hold(socket, data):
        socket.pause_reading()
        delivered.put(data)

    handler = recorder(data_received=hold)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    client = connect(server)
    messages = [b"%d" % number for number in range(5)]
    client.send(b"".join(map(simple, messages)))
    for message in messages:
        assert delivered.get(timeout=PATIENCE) == message
        other = connect(server)
        other.send(simple(b"other"))  # whose delivery shows that the loop went round
        assert delivered.get(timeout=PATIENCE) == b"other"
        handler.socket(0).resume_reading()
    assert delivered.empty()


@pytest.mark.clause("H1", "H22")
def test_callbacks_of_different_connections_run_at_the_same_time(start, connect, gate):
    meet = threading.Barrier(4)
    handler = recorder(data_received=lambda socket, data: (meet.wait(30), socket.send(data)))
    server = start(handler, max_threads=4)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.send(b"x")
    for client in clients:
        assert client.receive(1) == b"x"
    assert len({call.thread for call in handler.of("data_received")}) == 4


@pytest.mark.clause("H2", "H22")
def test_a_blocked_callback_delays_its_own_connection_only_and_keeps_the_order(
    start, connect, gate
):
    go = gate()

    def received(socket, data):
        if data == b"block":
            wait_event(go, "the test lets the handler go")
        socket.send(data)

    handler = recorder(data_received=received)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    first, second = connect(server), connect(server)
    first.send(simple(b"block"))
    handler.wait_for("data_received")
    sent = [b"%d" % number for number in range(100)]
    first.send(b"".join(map(simple, sent)))
    for _ in range(10):
        second.send(simple(b"free"))
        assert second.receive_frame() == b"free"
    assert handler.messages(handler.socket(0).id) == [b"block"]
    go.set()
    assert [first.receive_frame() for _ in range(101)] == [b"block", *sent]


@pytest.mark.clause("H2", "K6")
def test_many_connections_each_keep_their_order(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    sent = [b"%d" % number for number in range(300)]
    clients = [connect(server) for _ in range(8)]

    def converse(client):
        client.send(b"".join(map(simple, sent)))
        assert [client.receive_frame() for _ in sent] == sent

    with running(*(lambda client=client: converse(client) for client in clients)):
        pass
    for call in handler.of("data_received")[:: len(sent)]:
        assert handler.messages(call.id) == sent


@pytest.mark.clause("H4")
def test_a_wrong_handler_is_refused_before_anything_is_opened(engine):
    class Missing(hydrogen.Handler):
        pass

    class Async(Echo):
        async def on_connected(self, socket):
            pass

    class Misspelt(Echo):
        def on_data_recieved(self, socket, data):
            pass

    for wrong, message in [
        (Echo, "instance"),
        (object(), "Handler"),
        (Missing(), "on_data_received"),
        (Async(), "async def"),
        (Misspelt(), "on_data_recieved"),
    ]:
        with pytest.raises(TypeError, match=message):
            hydrogen.serve(wrong, port=0, engine=engine)


# -------------------------------------------------------------------------- wrapped callbacks


class SaysMethod:
    """A wrapper, as libraries for decorators and for tests have them: it says that it is a
    method.
    """

    def __init__(self, method, calls):
        self.method = method
        self.calls = calls

    @property
    def __class__(self):
        return types.MethodType

    def __getattr__(self, name):
        return getattr(self.method, name)

    def __call__(self, *arguments):
        self.calls.append(self.method.__name__)
        return self.method(*arguments)


NAMES = ["on_new_connection", "on_connected", "on_data_received", "on_eof", "on_disconnected"]


@pytest.mark.clause("H1")
@pytest.mark.parametrize("where", ["instance", "class"])
def test_a_wrapper_that_says_it_is_a_method_is_called_itself(start, connect, where):
    calls = []

    class Plain(hydrogen.Handler):
        def on_new_connection(self, fd):
            return None

        def on_connected(self, socket):
            pass

        def on_data_received(self, socket, data):
            socket.send(data)

        def on_eof(self, socket):
            socket.close()

        def on_disconnected(self, socket, error):
            pass

        def on_connection_removed(self, fd, error):
            removed.set()

    removed = threading.Event()
    handler = Plain()
    for name in NAMES:
        wrapper = SaysMethod(getattr(handler, name), calls)
        if where == "instance":
            setattr(handler, name, wrapper)
        else:
            setattr(Plain, name, property(lambda self, wrapper=wrapper: wrapper))
    server = start(handler, max_threads=2)
    for number in range(1, 4):
        removed.clear()
        client = connect(server)
        client.echo(b"x")
        client.finish()
        client.at_end()
        wait_event(removed, "it is removed")
        assert calls == NAMES * number
