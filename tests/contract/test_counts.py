"""What a message costs, counted (W10 of the measuring rules): nothing here depends on how fast the
machine is.

10,000 echoes of 64 bytes on 64 connections, all of them busy all the time; strace(1) is attached to
the server process meanwhile.
"""

import contextlib
import re
import selectors
import signal
import socket as stdlib_socket
import subprocess

import pytest
from programs import path_of
from support import PATIENCE, child, finish

CONNECTIONS, MESSAGES, SIZE = 64, 10_000, 64

SERVER = """
import ctypes, sys
import hydrogen
from support import Echo

# PR_SET_PTRACER, ANY: where only a parent may trace.
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))
server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=4, handoff=sys.argv[2])
print(server.address[1], flush=True)
for line in sys.stdin:  # one line each time that the counters are wanted
    stats = server.stats()
    print(*(getattr(stats, name) for name in line.split()), flush=True)
server.stop()
"""

NAMES = [
    "messages_received",
    "messages_sent",
    "polls",
    "iterations",
    "gil_acquisitions",
    "buffer_allocations",
    "handoffs",
    "stalls",
]


def counters(process):
    """The server's counters, now."""
    process.stdin.write(" ".join(NAMES) + "\n")
    process.stdin.flush()
    return dict(zip(NAMES, map(int, process.stdout.readline().split()), strict=True))


def load(sockets, messages):
    """A closed loop: each connection always has a message under way, until so many were answered;
    every reply is looked at.
    """
    message = bytes(range(SIZE))
    selector = selectors.DefaultSelector()
    for sock in sockets:
        selector.register(sock, selectors.EVENT_READ)
        sock.send(message)
    sent, answered = len(sockets), 0
    while answered < messages:
        ready = selector.select(PATIENCE)
        assert ready, f"{answered} of {messages} were answered"
        for key, _ in ready:
            assert key.fileobj.recv(4096) == message
            answered += 1
            if sent < messages:
                key.fileobj.send(message)
                sent += 1
    selector.close()


@contextlib.contextmanager
def traced(pid, summary):
    """Count the system calls of a process while the body runs; they are then in the file
    `summary`.
    """
    command = [
        path_of("strace"),
        "-f",
        "-c",
        "-U",
        "calls,name",
        "-o",
        str(summary),
        "-p",
        str(pid),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert "attached" in (line := tracer.stderr.readline()), line
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=PATIENCE)


def run(engine, summary=None):
    """Warm up, count over the load, and return by how much each counter rose. With `summary` system
    calls are counted into that file.
    """
    process = child(SERVER, engine, "auto")
    address = ("127.0.0.1", int(process.stdout.readline()))
    sockets = [stdlib_socket.create_connection(address) for _ in range(CONNECTIONS)]
    try:
        load(sockets, 10 * CONNECTIONS)
        before = counters(process)
        with traced(process.pid, summary) if summary else contextlib.nullcontext():
            load(sockets, MESSAGES)
        after = counters(process)
    finally:
        for sock in sockets:
            sock.close()
    finish(process, 0)
    return {name: after[name] - before[name] for name in NAMES}


@pytest.mark.clause("P5", "S24")
def test_w10_the_gil_is_taken_once_a_batch_and_nothing_is_allocated_but_the_payload(engine):
    """The Python engine counts neither; of it every message is asked for once."""
    rise = run(engine)
    assert rise["messages_received"] == rise["messages_sent"] == MESSAGES
    if engine == "compiled":
        # A machine that is busy with other things makes a handler seem to block: then more workers
        # take part, each with a pool of its own.
        disturbed = rise["stalls"] + rise["handoffs"]
        # And a turn long: after each eighth callback of one that lasts it may be given back, to
        # flush.
        assert 0 < rise["gil_acquisitions"] <= rise["polls"] + MESSAGES // 8 + 3 * disturbed, rise
        assert rise["buffer_allocations"] <= 4 * 2 * CONNECTIONS, rise


@pytest.mark.clause("P5")
def test_w10_a_message_costs_a_recv_a_send_and_a_share_of_a_poll_and_nothing_else(engine, tmp_path):
    summary = tmp_path / "summary"
    rise = run(engine, summary)
    assert rise["messages_received"] == MESSAGES
    calls = {
        name: int(count)
        for count, name in re.findall(r"^\s*(\d+)\s+(\w+)$", summary.read_text(), re.M)
    }
    futexes = calls.pop("futex", 0)
    everything = calls.pop("total") - futexes
    assert calls["recvfrom"] >= MESSAGES, "every message was counted"
    assert calls.get("epoll_ctl", 0) == 0, "interest is not touched"
    if engine == "compiled":
        assert everything <= 2.1 * MESSAGES, calls
        assert futexes <= 0.5 * MESSAGES, (
            "none for each message; the monitor thread's are one a tick: the slower the machine, "
            "the more"
        )
