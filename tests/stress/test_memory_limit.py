"""Memory that runs out for a while under load, and comes back: everything goes on.

The server is a process of its own, whose address space is limited (setrlimit(2), RLIMIT_AS) to
little more than it has, and later not any more. HYDROGEN_STRESS_MESSAGES: see test_threads.py.
"""

import contextlib
import json
import os
import resource
import selectors
import socket
import threading

import pytest
from stress.test_threads import MESSAGES
from support import PATIENCE, Client, child, finish, settled, wait_until

ROUNDS = max(3, MESSAGES // 5000)
CLIENTS = 600
ROOM = 8 << 20
"""Bytes that the process may still have when its memory is limited."""

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(900)]

SERVER = """
import io, itertools, json, logging, os, sys, threading
import hydrogen

failed = itertools.count()
sys.unraisablehook = lambda unraisable: next(failed)
logging.raiseExceptions = False
logging.getLogger("hydrogen").addHandler(logging.NullHandler())
logging.getLogger("hydrogen").propagate = False
died = []
threading.excepthook = lambda args: died.append(str(args.thread))

hog = []

def use_up():
    # Whatever is left, but for so little that the interpreter can say so: without any it aborts.
    spared = [bytes(1 << 16) for _ in range(8)]
    for size in (1 << 20, 1 << 16, 1 << 12):
        try:
            while True:
                hog.append(bytes(size))
        except MemoryError:
            pass
    spared.clear()

class Replies(hydrogen.Handler):
    def on_connected(self, socket):
        socket.user_data = [socket.peername, bytes(10_000)]

    def on_data_received(self, socket, data):
        try:
            if data.startswith(b"use up"):
                use_up()
                os.write(1, b"up\\n")  # no answer to the client: that would take memory
            elif data.startswith(b"large"):
                socket.send(bytes(1 << 20))  # more than the kernel takes
            elif data.startswith(b"later"):
                socket.server.call_later(0.0, lambda: socket.send(b"later"))
            else:
                socket.send(data)
        except MemoryError:
            next(failed)
            raise

    def on_disconnected(self, socket, err):
        if isinstance(err, hydrogen.HandlerError) or getattr(err, "errno", 0) == 12:
            next(failed)

server = hydrogen.serve(
    Replies(), port=0, engine=sys.argv[1], max_threads=4, pre_allocated=4,
    socket_options=[(1, 7, 4096)],  # SOL_SOCKET, SO_SNDBUF
    open_timeout=1000, frame_timeout=1000, write_timeout=1000,
)
print(server.address[1], flush=True)
orders, order = io.FileIO(0, closefd=False), bytearray(10)
while orders.readinto(order):
    if order.startswith(b"stop"):
        report = server.stop(20)
        print(json.dumps([report.closed, report.aborted, report.abandoned]), flush=True)
        break
    hog.clear()
    stats = server.stats()
    pauses = stats.accept_pauses
    counts = [stats.connections, stats.accepted - stats.removed, next(failed) + pauses]
    print(json.dumps([*counts, died]), flush=True)
"""


class InterpreterAborted(AssertionError):
    """CPython itself gave up: it cannot always raise MemoryError without memory, least of all
    before 3.12.
    """


class Limited:
    """The server process."""

    def __init__(self, engine):
        self.process = child(SERVER, engine, MALLOC_ARENA_MAX="1")
        self.said = []
        self.errors = threading.Thread(
            target=lambda: self.said.extend(self.process.stderr), daemon=True
        )
        line = self.process.stdout.readline()
        if not line:
            finish(self.process)
        self.errors.start()
        self.address = ("127.0.0.1", int(line))

    def say(self, line):
        """Say it, and return the answer."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            self.process.stdin.write(line.ljust(10))
            self.process.stdin.flush()
        return json.loads(self.answer())

    def answer(self):
        """A line that it says."""
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait(PATIENCE)
            self.errors.join(PATIENCE)
            said = "".join(self.said)
            kind = InterpreterAborted if ": Cannot recover from " in said else AssertionError
            raise kind(f"the process ended with {status}: {said[-3000:]}")
        return line

    def limit(self, room):
        """Let it have so many bytes more; None: as many as there are."""
        most = resource.RLIM_INFINITY
        if room is not None:
            most = self.size() + room
        limits = (most, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_AS, limits)

    def size(self):
        """Bytes of its address space."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

    def fds(self):
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self):
        """Whatever has happened."""
        self.process.kill()
        self.errors.join(PATIENCE)
        with contextlib.suppress(BrokenPipeError):  # what was not read by a process that has gone
            self.process.stdin.close()


def crowd(address, number, stack):
    """Many who connect and ask for something; most for more than they read."""
    clients = []
    selector = stack.enter_context(contextlib.closing(selectors.DefaultSelector()))
    for index in range(CLIENTS):
        sock = stack.enter_context(socket.socket())
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        selector.register(sock, selectors.EVENT_WRITE, index)
        clients.append(sock)
    while selector.get_map():
        ready = selector.select(PATIENCE)
        assert ready, "the kernel connects also whoever the server does not accept"
        for key, _ in ready:
            selector.unregister(key.fileobj)
            with contextlib.suppress(OSError):
                key.fileobj.send((b"large", b"echo", b"later")[(key.data + number) % 3])
    return clients


def press(server, number):
    """Have its memory used up, and go on: many come, and leave in all the ways there are."""
    with contextlib.ExitStack() as stack:
        hog = stack.enter_context(Client(server.address))
        hog.echo(b"before")
        server.limit(ROOM)
        hog.send(b"use up")
        assert server.answer() == "up\n"
        clients = crowd(server.address, number, stack)
        settled(server.fds)  # it has accepted all that it can
        for index, sock in enumerate(clients):
            with contextlib.suppress(OSError):
                if index % 3 == 0:
                    sock.shutdown(socket.SHUT_WR)
                sock.send(b"more")
                sock.recv(1000)
            if index % 3 == 1:
                sock.close()
        settled(server.fds)  # it has closed all that it can
        server.limit(None)


def test_memory_that_runs_out_and_comes_back_costs_connections_and_nothing_else(engine):
    for attempt in range(10):
        limited = Limited(engine)
        try:
            endure(limited)
            return
        except InterpreterAborted:
            if engine == "compiled" or attempt == 9:
                raise
        finally:
            limited.end()


def endure(limited):
    """All of it, with a process of its own."""
    staying = [Client(limited.address) for _ in range(3)]
    try:
        for client in staying:
            client.echo(b"before")
        for number in range(ROUNDS):
            press(limited, number)
            limited.say("stats")  # which gives back what was used up
        failed, died = limited.say("stats")[2:]
        assert failed, "memory did not run out"
        assert died == []
        left = []
        for client in staying:
            with contextlib.suppress(OSError, AssertionError):
                client.echo(b"after")
                left.append(client)
        wait_until(lambda: limited.say("stats")[0] == len(left), "all others are removed")
        assert limited.say("stats")[1] == len(left)
        for _ in range(20):
            with Client(limited.address) as client:
                client.echo(b"served")
        assert limited.process.poll() is None
        wait_until(lambda: limited.say("stats")[0] == len(left), "those are removed too")
        limited.process.stdin.write("stop".ljust(10))
        limited.process.stdin.flush()
        for client in left:
            assert client.at_end() == "end"
            client.close()
        assert json.loads(limited.answer()) == [len(left), 0, 0]
        assert limited.process.wait(PATIENCE) == 0
    finally:
        for client in staying:
            client.close()
