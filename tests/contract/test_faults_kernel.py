"""docs/faults.md, rows 18, 20 and 21: what the kernel refuses, and one connection that wants
everything.

Errors are injected by strace(1) into a server process: it lets chosen system calls fail without
making them. What the kernel would never do is not injected: EAGAIN from recv and send belongs to an
edge, which an invented one would not have (test_faults_injected.py makes one for it, and lets each
single call fail).
"""

import errno
import os
import socket as stdlib_socket
import threading

import pytest
from programs import path_of
from support import (
    Client,
    Echo,
    child,
    echo,
    finish,
    recorder,
    running,
    simple,
    unframe,
    wait_until,
)

import hydrogen

SERVER = """
import sys
import hydrogen
from support import Echo

server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=3, handoff=sys.argv[2])
print(server.address[1], flush=True)
sys.stdin.readline()
report, stats = server.stop(20), server.stats()
print(report.aborted, report.abandoned, stats.accepted - stats.removed, stats.accept_pauses)
"""


def traced(engine, *injections, handoff="auto", code=SERVER):
    """An echo server under strace, and its address."""
    calls = sorted(
        {call for injection in injections for call in injection.split(":")[0].split(",")}
    )
    options = [option for injection in injections for option in ("-e", f"inject={injection}")]
    prefix = (
        path_of("strace"),
        "-f",
        "--seccomp-bpf",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={','.join(calls)}",
        *options,
    )
    process = child(code, engine, handoff, prefix=prefix)
    line = process.stdout.readline()
    if not line:
        finish(process, 0)
    return process, ("127.0.0.1", int(line))


def converse(address, connections, messages):
    """So many connections with so many echoes each; returns how many of the connections failed."""
    failed = 0
    for number in range(connections):
        client = Client(address)
        try:
            for message in range(messages):
                data = b"%d/%d" % (number, message)
                client.send(data)
                assert client.receive(len(data)) == data
            client.finish()
            assert client.receive_until_end() == b""
        except ConnectionError:
            failed += 1
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # shutdown(2) of a connection that was reset
                raise
            failed += 1
        finally:
            client.close()
    return failed


def stopped(process):
    """Stop the server; how often it paused accepting."""
    out, _ = finish(process, 0, "\n")
    aborted, abandoned, left, pauses = map(int, out.split())
    assert (aborted, abandoned, left) == (0, 0, 0)
    return pauses


@pytest.mark.parametrize(
    "injection",
    [
        "accept4,accept:error=EINTR:when=1+2",
        "accept4,accept:error=EAGAIN:when=2+3",
        "accept4,accept:error=ECONNABORTED:when=1+2",
        "accept4,accept:error=EPROTO:when=1+2",
        "epoll_wait,epoll_pwait,epoll_pwait2:error=EINTR:when=1+2",
        "recvfrom,recvmsg:error=EINTR:when=1+3",
        "sendto,sendmsg:error=EINTR:when=1+3",
    ],
    ids=lambda injection: (
        injection.split(",")[0].split(":")[0] + "-" + injection.split("=")[1].split(":")[0]
    ),
)
def test_f18_an_error_that_means_again_goes_unnoticed(engine, injection):
    process, address = traced(engine, injection)
    assert converse(address, 10, 10) == 0
    assert stopped(process) == 0, "accepting was paused for it"


@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM", "EMFILE", "ENFILE"])
def test_f18_accept_without_memory_or_fds_pauses_and_goes_on_by_itself(engine, error):
    process, address = traced(engine, f"accept4,accept:error={error}:when=2..4")
    assert converse(address, 6, 3) == 0
    assert 1 <= stopped(process) <= 3


LOGGED = """
import logging

lines = []

class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logging.getLogger("hydrogen").setLevel(logging.INFO)
logging.getLogger("hydrogen").addHandler(Lines())
"""


def test_f18_a_pause_for_want_of_fds_that_goes_on_is_told_once(engine):
    """A look that finds none again is no end of it."""
    ask = (
        "print(*[line.split(':')[0] for line in lines if line.startswith('accepting')], sep='|')\n"
    )
    process, address = traced(
        engine, "accept4,accept:error=EMFILE:when=1..3", code=LOGGED + SERVER + ask
    )
    assert converse(address, 1, 1) == 0
    out, _ = finish(process, 0, "\n")
    assert out.splitlines()[-1] == "accepting is paused|accepting has resumed"


SPARED = """
import sys
import threading
import hydrogen
from support import Client, Echo, wait_until

server = hydrogen.serve(Echo(), port=0, engine="compiled", max_connections=1)
with Client(server.address) as client:
    client.echo(b"x")
    wait_until(lambda: server.stats().accept_pauses, "it is full")
wait_until(lambda: server.stats().accept_pauses > 1, "epoll_ctl(2) has failed")
rung = threading.Event()
server.call_later(0.5, rung.set)
assert rung.wait(30)
print(server.stats().accept_pauses, flush=True)
server.stop(20)
"""


def test_f18_who_finds_no_memory_to_have_a_listener_polled_waits_until_he_looks_again(engine):
    """By a count: some five looks in half a second; without the pauses it is tens of thousands. The
    Python engine uses no epoll(7).
    """
    if engine == "python":
        return
    prefix = (
        path_of("strace"),
        "-f",
        "--seccomp-bpf",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        "trace=epoll_ctl",
    )
    process = child(SPARED, prefix=(*prefix, "-e", "inject=epoll_ctl:error=ENOMEM:when=2+"))
    out, _ = finish(process)
    assert int(out) < 200


@pytest.mark.parametrize("call", ["recvfrom,recvmsg", "sendto,sendmsg"], ids=["recv", "send"])
@pytest.mark.parametrize("error", ["ENOBUFS", "EPROTO", "ECONNABORTED", "ECONNRESET", "ETIMEDOUT"])
def test_f18_an_error_of_one_connection_costs_that_connection_at_most(engine, call, error):
    process, address = traced(engine, f"{call}:error={error}:when=5+20")
    assert converse(address, 20, 10) <= 20
    stopped(process)


def test_f18_all_of_it_at_once_in_eager_mode(engine):
    process, address = traced(
        engine,
        "accept4,accept:error=EINTR:when=1+3",
        "epoll_wait,epoll_pwait,epoll_pwait2:error=EINTR:when=1+3",
        "recvfrom,recvmsg:error=EINTR:when=1+3",
        "sendto,sendmsg:error=EINTR:when=1+3",
        handoff="eager",
    )
    failures = []
    with running(*[lambda: failures.append(converse(address, 5, 20))] * 4):
        pass
    assert failures == [0] * 4
    stopped(process)


# ------------------------------------------------------------------------------------------- row 20

MEMORY = """
import resource, sys, threading
import hydrogen
from support import Client

# More than what mimalloc, of a Python without a GIL, has reserved at once.
big = memoryview(bytes(1 << 30))

class Sends(hydrogen.Handler):
    def on_data_received(self, socket, data):
        if data == b"big":
            socket.send(big)
        else:
            socket.send(data)

    def on_connection_removed(self, fd, err):
        removed.append(err)
        gone.set()

removed, gone = [], threading.Event()
server = hydrogen.serve(Sends(), port=0, engine=sys.argv[1], max_threads=3)
neighbour, client = Client(server.address), Client(server.address)
neighbour.echo(b"before")
client.echo(b"before")
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    client.send(b"big")
    try:
        assert len(client.receive(1)) == 0
    except (AssertionError, ConnectionError):
        pass
    client.close()
    assert gone.wait(20)
    gone.clear()
    neighbour.echo(b"meanwhile")
    client = Client(server.address)
    client.echo(b"new")
assert len(removed) == 3, removed
for e in removed:
    assert isinstance(e.__cause__, MemoryError) or isinstance(e, OSError) and e.errno == 12, removed
neighbour.close()
client.close()
print(server.stop(5).abandoned)
"""


def test_f20_no_memory_for_a_buffer_costs_that_connection_and_the_server_goes_on(engine):
    """The address space is limited so that the copy of a large message cannot be had."""
    out, _ = finish(child(MEMORY, engine), 0)
    assert out == "0\n"


# ------------------------------------------------------------------------------------------- row 21


@pytest.mark.clause("C19")
@pytest.mark.parametrize("framing", [None, hydrogen.SimpleFrameBuilder], ids=["raw", "frames"])
@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_f21_a_hundred_ping_pong_clients_complete_their_rounds_beside_a_firehose(
    start, connect, framing, handoff
):
    """Order and counts: the firehose runs from before the first round until after the last. (The
    latency is measured in perf/.)
    """
    frame = simple if framing else bytes
    handler = Sink()
    server = start(handler, framing=framing, handoff=handoff)
    hose = connect(server)
    hose.send(frame(b"hose"))
    pingers = [connect(server) for _ in range(100)]
    done, running_hose = threading.Event(), threading.Event()

    def firehose():
        water = frame(b"w" * 1000) * 64
        with stdlib_socket.socket(fileno=os.dup(hose.sock.fileno())) as sock:
            sock.settimeout(60)
            while not done.is_set():
                sock.sendall(water)
                running_hose.set()

    with running(firehose):
        try:
            assert running_hose.wait(30)
            for round in range(10):
                before = handler.drops
                for client in pingers:
                    client.send(frame(b"%d" % round))
                for client in pingers:
                    assert client.receive(len(frame(b"%d" % round))) == frame(b"%d" % round)
            wait_until(
                lambda before=before: handler.drops > before,
                "the firehose was running all the time, and is",
            )
        finally:
            done.set()


class Sink(hydrogen.Handler):
    """Echoes short messages and swallows the firehose's."""

    drops = 0

    def on_data_received(self, socket, data):
        if len(data) < 100 and not data.startswith(b"w") and b"hose" not in data:
            socket.send(data)
        else:
            self.drops += 1


@pytest.mark.parametrize("depth", [1000, 5000])
def test_f21_a_connection_with_thousands_of_requests_in_flight_gets_all_replies_in_order(
    start, connect, depth
):
    server = start(Echo(), framing=hydrogen.SimpleFrameBuilder)
    client, neighbour = connect(server), connect(server)
    sent = [b"%d" % number for number in range(depth)]
    wire = b"".join(map(simple, sent))
    with running(lambda: client.send(wire)):
        neighbour.send(simple(b"x"))
        assert neighbour.receive_frame() == b"x"
        assert unframe(client.receive(len(wire))) == sent


def test_f21_echo_of_a_firehose_whose_peer_reads_is_complete(start, connect):
    handler = recorder(data_received=echo)
    client = connect(start(handler))
    data = os.urandom(1 << 20)
    total = []
    with running(lambda: [client.send(data) for _ in range(16)]):
        for _ in range(16):
            total.append(client.receive(len(data)) == data)
    assert total == [True] * 16
