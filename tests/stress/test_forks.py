"""Children that callbacks make, under load: by os.fork, multiprocessing and subprocess.

The server is a process of its own. Each exit status reaches whoever waits for it; a child that
lives on keeps neither the port nor a connection, however the server ends. HYDROGEN_STRESS_MESSAGES:
see test_threads.py.
"""

import contextlib
import json
import os
import signal
import socket
import threading

import pytest
from stress.crowd import Crowd, beside
from stress.test_threads import MESSAGES
from support import PATIENCE, Client, child, finish, running, simple, wait_until

JOBS = max(8, MESSAGES // 1000)
KINDS = ("fork", "multiprocessing", "subprocess")

pytestmark = pytest.mark.timeout(900)

SERVER = """
import json, multiprocessing, os, subprocess, sys, threading, time, warnings
import hydrogen

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
warnings.filterwarnings("ignore", "subprocess .* is still running", ResourceWarning)
forked = multiprocessing.get_context("fork")
kept = []
# Two threads of one process that wait for children of multiprocessing take each other's statuses.
alone = threading.Lock()

def status_of(kind, status):
    if kind == b"fork":
        pid = os.fork()
        if pid == 0:
            os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if kind == b"multiprocessing":
        with alone:
            process = forked.Process(target=sys.exit, args=(status,))
            process.start()
            process.join()
            return process.exitcode
    return subprocess.call(["sh", "-c", f"exit {status}"])

def sleep():
    while True:
        time.sleep(100)

def one_that_lives(kind):
    if kind == b"fork":
        pid = os.fork()
        if pid == 0:
            try:
                sleep()
            finally:
                os._exit(0)
        return pid
    if kind == b"multiprocessing":
        kept.append(forked.Process(target=sleep, daemon=True))
        kept[-1].start()
    else:
        kept.append(subprocess.Popen(["sleep", "1000"]))
    return kept[-1].pid

class Forks(hydrogen.Handler):
    def on_data_received(self, socket, data):
        if data == b"close":
            socket.close()
        elif data == b"abort":
            socket.abort()
        elif data.startswith(b"status "):
            _, kind, status = data.split()
            socket.send(b"%d" % status_of(kind, int(status)))
        elif data.startswith(b"live "):
            socket.send(b"%d" % one_that_lives(data.split()[1]))
        else:
            socket.send(data)

server = hydrogen.serve(
    Forks(), port=0, engine=sys.argv[1], max_threads=4, pre_allocated=4,
    framing=hydrogen.SimpleFrameBuilder
)
print(server.address[1], flush=True)
os.read(0, 5)  # not by sys.stdin, whose lock a child of multiprocessing needs to close its own
report = server.stop(20)
stats = server.stats()
left = stats.accepted - stats.removed
print(json.dumps([report.aborted, report.abandoned, stats.connections, left]), flush=True)
os.read(0, 1)
os._exit(0)  # children of multiprocessing would be ended and waited for
"""


class Forking:
    """The server process, its address, and the children that it said it has."""

    def __init__(self, engine):
        self.process = child(SERVER, engine)
        line = self.process.stdout.readline()
        if not line:
            finish(self.process)
        self.address = ("127.0.0.1", int(line))
        self.children = []

    def stop(self):
        """Stop the server and not the process."""
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()

    def ended(self):
        """After `stop`: nothing was left."""
        assert json.loads(self.process.stdout.readline()) == [0, 0, 0, 0]

    def child(self, client, kind):
        """Have a callback make a child that lives on."""
        client.send(simple(b"live " + kind.encode()))
        self.children.append(int(client.receive_frame()))

    def end_children(self):
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def forking(engine):
    """A server process; it and its children are ended whatever happens."""
    server = Forking(engine)
    yield server
    server.end_children()
    server.process.kill()


def is_alive(pid):
    """Neither gone nor a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_exit_status_of_each_child_reaches_the_callback_that_waits_for_it_under_load(forking):
    crowd, done = Crowd(8, 1), threading.Event()

    def jobs(kind, first):
        with Client(forking.address) as client:
            client.sock.settimeout(10 * PATIENCE)
            for number in range(JOBS):
                status = (first + number) % 100 + 1
                client.send(simple(b"status %b %d" % (kind.encode(), status)))
                assert client.receive_frame() == b"%d" % status, (kind, number)

    def load():
        crowd.done = done
        crowd.run(forking.address, 10**9)

    beside(done, load, *(lambda kind=kind, n=n: jobs(kind, 7 * n) for n, kind in enumerate(KINDS)))
    assert crowd.answered
    forking.stop()
    forking.ended()
    finish(forking.process, 0, "\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_child_that_lives_on_keeps_neither_the_port_nor_a_connection(forking, kind, how):
    crowd, done = Crowd(8, 1), threading.Event()
    clients = [Client(forking.address) for _ in range(6)]

    def load():
        crowd.done = done
        crowd.run(forking.address, 10**9)

    try:
        with running(load):
            try:
                for client in clients[:3]:
                    forking.child(client, kind)
                for client in clients[3:]:
                    client.send(simple(b"served"))
                    assert client.receive_frame() == b"served"
                clients[0].send(simple(b"close"))
                assert clients[0].receive_until_end() == b""
                clients[1].send(simple(b"abort"))
                assert clients[1].at_end() == "reset"
            finally:
                done.set()
        if how == "killed":
            forking.process.kill()
            forking.process.wait()
        else:
            forking.stop()
        for client in clients[2:]:
            assert client.at_end() == "end"
            client.close()
        if how == "stopped":
            forking.ended()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(forking.address)
            other.listen()
            with Client(forking.address) as client:
                accepted, name = other.accept()
                accepted.close()
                assert name == client.name
        assert [pid for pid in forking.children if not is_alive(pid)] == []
    finally:
        for client in clients:
            client.close()
    forking.end_children()
    wait_until(lambda: not any(map(is_alive, forking.children)), "the children are gone")


COMES_AND_GOES = """
import os, sys, warnings
import hydrogen

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def is_socket(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:  # the one that lists the directory
        return False

class Forks(hydrogen.Handler):
    def on_data_received(self, socket, data):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, b"%d" % sum(map(is_socket, os.listdir("/proc/self/fd"))))
            os._exit(0)
        os.close(writing)
        socket.send(os.read(reading, 10))
        os.close(reading)
        os.waitpid(pid, 0)

options = {"engine": sys.argv[1], "max_threads": 2, "framing": hydrogen.SimpleFrameBuilder}
server = hydrogen.serve(Forks(), port=0, **options)
print(server.address[1], flush=True)
os.read(0, 5)
server.stop(20)
"""


def test_a_child_that_is_forked_while_connections_come_and_go_has_none_of_them(engine):
    server, done = child(COMES_AND_GOES, engine), threading.Event()
    address = ("127.0.0.1", int(server.stdout.readline()))

    def come_and_go():
        while not done.is_set():
            Client(address).close()

    with running(come_and_go, come_and_go), Client(address) as client:
        try:
            for number in range(20 * JOBS):
                client.send(simple(b"fork"))
                assert client.receive_frame() == b"0", number
        finally:
            done.set()
    finish(server, 0, "stop\n")
