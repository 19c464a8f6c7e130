"""What sockets and servers answer to strange arguments, and to copy, pickle and weak references:
the same on both engines.
"""

import copy
import logging
import math
import os
import pickle
import weakref
from pathlib import Path

import pytest
from support import Echo, echo, recorder

import hydrogen

SIX = memoryview(b"abcdef")


@pytest.fixture
def sockets(start, connect):
    """A socket of a connection that is open, and one of a connection that is gone;
    `sockets(**options)`.
    """

    def sockets(**options):
        handler = recorder(data_received=echo, connected=None)
        server = start(handler, **options)
        gone = connect(server)
        gone.close()
        handler.wait_removed()
        connect(server)
        handler.wait_for("connected", 2)
        (opened,) = server.connections
        (closed,) = [call.socket for call in handler.of("connected") if call.socket != opened]
        assert opened.is_open
        assert not closed.is_open
        return opened, closed

    return sockets


@pytest.mark.parametrize("framing", [None, hydrogen.SimpleFrameBuilder, hydrogen.LineFrameBuilder])
@pytest.mark.parametrize(
    "data",
    [SIX[::2], SIX[::-1], "text", 5, None],
    ids=["every second", "backwards", "str", "int", "None"],
)
def test_send_and_broadcast_of_what_is_no_contiguous_buffer_are_type_errors(sockets, framing, data):
    for socket in sockets(framing=framing):
        with pytest.raises(TypeError):
            socket.send(data)
        with pytest.raises(TypeError):
            socket.server.broadcast(data)
        assert socket.pending == 0


@pytest.mark.parametrize("timeout", [math.inf, 1e10, 10**400, None, 0, 1.5])
def test_drain_takes_any_number_of_seconds_and_infinity_is_no_limit(sockets, timeout):
    opened, closed = sockets()
    assert opened.drain(timeout)
    assert not closed.drain(timeout)


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [
        (math.nan, ValueError),
        (-1, ValueError),
        ("1", TypeError),
        (True, TypeError),
        ([], TypeError),
    ],
)
def test_drain_refuses_what_is_no_time_also_when_the_connection_is_gone(sockets, timeout, kind):
    for socket in sockets():
        with pytest.raises(kind, match="timeout"):
            socket.drain(timeout)


def test_a_socket_is_its_own_copy_and_is_referred_to_weakly_and_not_pickled(sockets):
    for socket in sockets():
        assert copy.copy(socket) is socket
        assert copy.deepcopy({"key": [socket]})["key"][0] is socket
        assert weakref.ref(socket)() is socket
        assert weakref.WeakKeyDictionary({socket: 1})[socket] == 1
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="pickle"):
                pickle.dumps(socket, protocol)


@pytest.mark.parametrize("name", [b"socket", b"\xff\xfe", "\N{EURO SIGN}".encode()], ids=ascii)
@pytest.mark.parametrize("kind", [Path, os.fsdecode], ids=["Path", "str"])
def test_a_path_is_an_object_or_a_str_and_of_any_bytes(start, tmp_path, caplog, name, kind):
    # pytest cannot pass on a line that is not UTF-8
    caplog.set_level(logging.WARNING, logger="hydrogen")
    path = kind(os.fsdecode(bytes(tmp_path) + b"/" + name))
    handler = recorder(data_received=echo)
    server = start(handler, path=path)
    assert server.address == os.fspath(path)
    with hydrogen.connect(path, timeout=30) as client:
        client.send(b"hello")
        assert client.recv() == b"hello"
        (socket,) = server.connections
        assert socket.sockname == os.fspath(path)
    server.stop()
    assert os.listdir(tmp_path) == []


def test_a_server_takes_lists_where_it_keeps_tuples(start, connect):
    server = start(
        recorder(data_received=echo),
        addr=["127.0.0.1", "::1"],
        keepalive=[60, 10, 6],
        socket_options=[[6, 1, 1]],
        write_buffer_limits=[1, 9],
    )
    assert len(server.addresses) == 2
    for address in server.addresses:
        connect(address).echo(b"hello")


@pytest.mark.clause("C2")
def test_an_option_that_does_not_exist_is_named_with_what_it_may_have_meant(engine):
    with pytest.raises(
        TypeError, match=r"^there is no option 'idle_timout'; did you mean 'idle_timeout'[?]$"
    ):
        hydrogen.serve(Echo(), port=0, idle_timout=3, engine=engine)
    with pytest.raises(TypeError, match=r"^there is no option 'bilder'$"):
        hydrogen.serve(Echo(), port=0, bilder=3, engine=engine)
    with pytest.raises(TypeError, match=r"^there is no option 'xyz'$"):
        hydrogen.begin(Echo(), port=0, xyz=3, engine=engine)
