"""How to test a handler with pytest: a real server on each engine, on a port that the kernel
chooses, and blocking clients.

pytest examples/test_handler.py
"""

import functools
import queue

import pytest

import hydrogen

pytest_plugins = ["hydrogen.testing"]

PATIENCE = 10
"""Seconds after which a test fails. What a test waits for, it waits for by an event; so this is no
time that anybody spends.
"""


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
def connect(hydrogen_serve, hydrogen_connect, ledger):
    """Makes clients of one server. Whatever is left of it at the end fails the test."""
    server = hydrogen_serve(Counter(ledger), framing=hydrogen.LineFrameBuilder)
    return functools.partial(hydrogen_connect, server)


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


def test_what_a_callback_raises_is_in_the_log(hydrogen_serve, hydrogen_connect, hydrogen_errors):
    client = hydrogen_connect(
        hydrogen_serve(Counter(ledger=None), framing=hydrogen.LineFrameBuilder)
    )
    client.send(b"")
    assert list(client) == [b"goodbye"]
    record = hydrogen_errors.get(timeout=PATIENCE)
    assert record.exc_info[0] is AttributeError


def test_a_client_that_leaves_is_noticed(connect, ledger):
    client = connect()
    client.send(b"one")
    assert client.recv() == b"1 one"
    client.close()
    count, err = ledger.get(timeout=PATIENCE)
    assert count == 1
    assert isinstance(err, hydrogen.PeerClosed)
