"""How to test a handler with pytest: a real server, on a port that the kernel chooses, and a blocking client. Nobody sleeps.

pytest examples/test_handler.py
"""

import queue

import pytest

import hydrogen

PATIENCE = 10
"""Seconds after which a test fails. What a test waits for, it waits for by an event; so this is no time that anybody spends."""


class Counter(hydrogen.Handler):
    """The handler to be tested: numbers the lines of each connection; an empty one is a goodbye."""

    def __init__(self, ledger):
        self.ledger = ledger

    def on_connected(self, socket):
        socket.user_data = 0

    def on_data_received(self, socket, data):
        if not data:
            socket.send(b"goodbye")
            socket.close()
            return
        socket.user_data += 1
        socket.send(b"%d %s" % (socket.user_data, data))

    def on_disconnected(self, socket, err):
        self.ledger.put((socket.user_data, err))


@pytest.fixture
def ledger():
    """What the handler has written down; `get` waits for it."""
    return queue.Queue()


@pytest.fixture
def server(ledger):
    with hydrogen.serve(Counter(ledger), port=0, framing=hydrogen.LineFrameBuilder) as server:
        yield server


@pytest.fixture
def connect(server):
    """Makes clients. They are closed before the server stops, which otherwise would wait for them."""
    clients = []

    def connect(framing=hydrogen.LineFrameBuilder):
        clients.append(hydrogen.connect(server.address, framing=framing, timeout=PATIENCE))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def test_lines_are_numbered(connect):
    client = connect()
    client.send(b"one")
    client.send(b"two")
    assert [client.recv(), client.recv()] == [b"1 one", b"2 two"]


def test_each_connection_counts_for_itself(connect):
    first, second = connect(), connect()
    first.send(b"one")
    assert first.recv() == b"1 one"
    second.send(b"one")
    assert second.recv() == b"1 one"


def test_a_line_may_come_in_pieces(connect):
    client = connect(framing=None)
    for piece in (b"o", b"ne\ntw", b"o\n"):
        client.send(piece)
    received = b""
    while received.count(b"\n") < 2:
        received += client.recv()
    assert received == b"1 one\n2 two\n"


def test_an_empty_line_says_goodbye(connect, ledger):
    client = connect()
    client.send(b"")
    assert list(client) == [b"goodbye"]
    client.close()
    count, err = ledger.get(timeout=PATIENCE)
    assert count == 0
    assert isinstance(err, hydrogen.LocalClosed)


def test_a_client_that_leaves_is_noticed(connect, ledger):
    client = connect()
    client.send(b"one")
    assert client.recv() == b"1 one"
    client.close()
    count, err = ledger.get(timeout=PATIENCE)
    assert count == 1
    assert isinstance(err, hydrogen.PeerClosed)
