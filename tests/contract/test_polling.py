"""Output goes on and connections are accepted also where no worker comes to poll: it waits for the
GIL, or goes from one callback to the next.
"""

import ctypes
import os
import select
import struct
import threading

import pytest
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


@pytest.mark.clause("P6")
def test_output_goes_on_while_a_worker_goes_from_one_short_callback_to_the_next(lines, connect):
    entered, go, done, ran = threading.Event(), threading.Event(), threading.Event(), []

    def hook(socket, data):
        received(socket, data)
        if data == b"hold":
            entered.set()
            wait_event(go, "all have sent")
        elif data == b"short":
            done.wait(0.0005)
            ran.append(done.is_set())

    server = lines(hook, max_threads=1)
    reader, holder = connect(server, receive_buffer=65_536), connect(server)
    reader.send(b"large\n")
    wait_until(lambda: server.stats().queued_bytes > 0, "the kernel takes no more")
    holder.send(b"hold\n")
    wait_event(entered, "the worker is held")
    clients = [connect(server) for _ in range(40)]
    for client in clients:
        client.send(b"short\n" * 256)

    def read():
        reader.receive(LARGE)
        done.set()

    with running(read):
        go.set()
    wait_until(lambda: len(ran) == 256 * len(clients), "all callbacks have run")
    assert ran[-1], "it went on only when they all had"
