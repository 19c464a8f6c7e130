"""Output goes on and connections are accepted also where no worker comes to poll: it waits for the
GIL, or goes from one callback to the next.
"""

import ctypes
import os
import select
import struct
import threading
import time

import pytest
from families import PassThrough
from support import PATIENCE, child, finish, recorder, running, wait_event, wait_until

import hydrogen

LARGE = 32 << 20
"""Bytes: more than the kernel buffers."""

READER = """
import os, socket, sys

large, port, done = map(int, sys.argv[1:])
reader, other = (socket.create_connection(("127.0.0.1", port), 30) for _ in range(2))
with reader, other:
    reader.sendall(b"large\\n")
    left = large - len(reader.recv(1))
    print("begun", flush=True)
    sys.stdin.readline()
    other.sendall(b"for which a worker wants the GIL\\n")
    while left:
        part = reader.recv(min(left, 1 << 20))
        assert part, left
        left -= len(part)
    os.write(done, b"x")
"""


def received(socket, data):
    if data == b"large":
        assert socket.send(bytes(LARGE - 1))


@pytest.fixture
def lines(start):
    """Start a server of lines."""

    def lines(hook, **options):
        return start(
            recorder(data_received=hook),
            framing=hydrogen.LineFrameBuilder(max_size=2 * LARGE),
            max_write_buffer=2 * LARGE,
            **options,
        )

    return lines


@pytest.mark.clause("P6")
@pytest.mark.parametrize("workers", [1, 4])
def test_output_goes_on_while_a_thread_that_is_no_worker_keeps_the_gil(lines, compiled, workers):
    """The Python engine can do nothing without it."""
    sent = threading.Event()

    def hook(socket, data):
        received(socket, data)
        sent.set()

    server = lines(hook, max_threads=workers)
    done, ours = os.pipe()
    process = child(READER, str(LARGE), str(server.address[1]), str(ours), pass_fds=(ours,))
    os.close(ours)
    assert process.stdout.readline() == "begun\n"
    wait_event(sent, "the callback is over")
    process.stdin.write("go\n")
    process.stdin.flush()
    polled = ctypes.create_string_buffer(struct.pack("=ihh", done, select.POLLIN, 0))
    poll = ctypes.PyDLL(None).poll  # which keeps the GIL
    assert poll(polled, ctypes.c_ulong(1), int(PATIENCE * 1000)) == 1
    assert os.read(done, 1) == b"x", "not all has come"
    os.close(done)
    finish(process, 0)


class Burst:
    """Many messages for callbacks that each last half a millisecond, or until `done` is set. A
    single worker is held until they are all there.

    Attributes:
        ran: for each of these callbacks whether that was so.
    """

    def __init__(self, lines, connect, workers, each):
        self._each = each
        self._held, self._go, self.done, self.ran = [], threading.Event(), threading.Event(), []
        self.server = lines(self._received, max_threads=workers)
        self._connect = connect
        self._holders = [connect(self.server)] if workers == 1 else []

    def _received(self, socket, data):
        received(socket, data)
        if data == b"hold":
            self._held.append(socket)
            wait_event(self._go, "all have sent")
        elif data == b"short":
            self.done.wait(0.0005)
            self.ran.append(self.done.is_set())
        elif data == b"done":
            self.done.set()

    def __enter__(self):
        for holder in self._holders:
            holder.send(b"hold\n")
        wait_until(lambda: len(self._held) == len(self._holders), "the worker is held")
        self._clients = [self._connect(self.server) for _ in range(40)]
        for client in self._clients:
            client.send(b"short\n" * self._each)
        return self

    def release(self):
        self._go.set()

    def __exit__(self, *error):
        self._go.set()
        count = self._each * len(self._clients)
        wait_until(lambda: len(self.ran) == count, "all callbacks have run")


@pytest.mark.clause("P6")
def test_output_goes_on_while_a_worker_goes_from_one_short_callback_to_the_next(lines, connect):
    burst = Burst(lines, connect, 1, each=256)
    reader = connect(burst.server, receive_buffer=65_536)
    reader.send(b"large\n")
    wait_until(lambda: burst.server.stats().queued_bytes > 0, "the kernel takes no more")

    def read():
        reader.receive(LARGE)
        burst.done.set()

    with burst, running(read):
        burst.release()
    assert burst.ran[-1], "it went on only when they all had"


@pytest.mark.slow
@pytest.mark.clause("P1", "P6")
@pytest.mark.parametrize("handoff", ["auto", "eager"])
def test_callbacks_that_block_for_less_than_a_tick_delay_only_their_own_connections(
    lines, connect, handoff
):
    """Another worker takes what comes behind them."""
    burst = Burst(
        lambda hook, **options: lines(hook, handoff=handoff, **options), connect, 2, each=64
    )
    with burst:
        connect(burst.server).send(b"done\n")
    assert burst.ran[-1], "it was the last of all"


@pytest.mark.clause("P2")
def test_what_a_callback_has_sent_leaves_while_it_goes_on_sending_by_a_stream(start, connect):
    """Each call of the stream is of that callback, and shows no other that the worker gets on."""

    class Drops(PassThrough):
        def send(self, buf):
            pass

    answered, came = threading.Event(), []

    def hook(socket, data):
        if data == b"ask":
            socket.send(b"answer")
            deadline = time.monotonic() + PATIENCE
            while not answered.is_set() and time.monotonic() < deadline:
                sink.send(b"a part")
            came.append(answered.is_set())

    streams = [lambda fd: None, Drops]
    handler = recorder(
        new_connection=lambda fd: streams.pop()(fd), connected=None, data_received=hook
    )
    server = start(handler)
    connect(server)
    sink = handler.socket()
    asker = connect(server)
    asker.send(b"ask")
    assert asker.receive(6) == b"answer"
    answered.set()
    wait_until(lambda: came, "the callback is over")
    assert came == [True]
