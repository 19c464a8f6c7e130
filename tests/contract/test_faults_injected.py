"""docs/faults.md, row 18, one failure at a time: each call that the engines make on sockets fails
at its n-th call, for every n up to 200.

A library that is preloaded into the server process (tests/faults/inject.c) makes the failures. It
is told each anew through a mapped file, so that one process lives through all of them. After each
it is asserted that it was made; that each accepted connection but the three that stay was removed,
once, with the error that fits; that all who had nothing to do with it were served, as are those who
come later; that fds and threads are as before.

What is injected where, and what must come of it:

- accept(2) may fail with any of the five (it hands on errors that wait on the new socket). Nobody
  notices; after ENOBUFS it pauses, once. EAGAIN that is not true does no harm either: listeners are
  polled by level.
- epoll_wait(2) knows one of them, EINTR; the others it never returns. (select.epoll asks again
  after EINTR by itself.)
- recv(2) and send(2): EINTR goes unnoticed. ECONNABORTED, ENOBUFS and EPROTO are errors of that
  connection and cost it, and none else.
- EAGAIN that is not true, from recv(2) and send(2): the engine gives up an edge that the kernel
  will not repeat, so what waits in the socket is promised to nobody *until another edge comes*. So
  the clients here make one, as soon as the failure has been made and not before (an edge before it
  may have been merged with the one that was lost): they send once more, which is an edge for
  reading, and one for writing too, because epoll(7) reports all that is ready with each edge. Who
  has sent his FIN can make no edge but by a reset. Then all must move.
"""

import collections
import errno
import json
import mmap
import os
import shutil
import struct
import subprocess
import sysconfig

import pytest
from support import PATIENCE, ROOT, Client, child, finish, wait_until

CALLS = {"accept": 1, "epoll_wait": 2, "recv": 3, "send": 4}
HIGHEST = 200
TICK = 0.01
"""Seconds that a client waits for a reply before it looks whether the failure has been made."""

SERVER = """
import collections, errno, json, logging, sys, threading
import hydrogen
from support import wait_until

class Echo(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)

    def on_connection_removed(self, fd, err):
        with lock:
            has_code = isinstance(err, OSError) and err.errno
            removed[errno.errorcode[err.errno] if has_code else type(err).__name__] += 1

class Errors(logging.Handler):
    def emit(self, record):
        errors.append(record.getMessage())

lock, removed, errors = threading.Lock(), collections.Counter(), []
logging.getLogger("hydrogen").addHandler(Errors(logging.ERROR))
server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=3, pre_allocated=16)
print(server.address[1], flush=True)
for line in iter(sys.stdin.readline, ""):
    is_so = lambda: server.stats().connections == int(line)
    wait_until(is_so, f"{line.strip()} connections: {server.stats()}")
    stats = server.stats()
    with lock:
        said = dict(removed)
        removed.clear()
    report = [said, stats.accepted, stats.removed, stats.accept_pauses, errors]
    print(json.dumps(report), flush=True)
report = server.stop(20)
print(report.closed, report.aborted, report.abandoned, server.stats().connections)
"""

Report = collections.namedtuple("Report", "causes accepted removed pauses errors")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The library to preload, compiled."""
    made = tmp_path_factory.mktemp("inject") / "inject.so"
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    assert shutil.which(compiler), f"a C compiler is needed: {compiler}"
    source = ROOT / "tests" / "faults" / "inject.c"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source, "-ldl"],
        check=True,
    )
    return made


class Server:
    """An echo server in a process of its own, whose calls fail as ordered."""

    _ORDERS = struct.Struct("=IIIII")  # as in inject.c: kind, errno, at, calls so far, fired

    def __init__(self, library, folder, engine):
        self.armed = 0  # how often
        self.clients = set()
        orders = folder / "orders"
        orders.write_bytes(bytes(self._ORDERS.size))
        with orders.open("r+b") as file:
            self._orders = mmap.mmap(file.fileno(), self._ORDERS.size)
        # a sanitizer's library comes first
        preloaded = f"{os.environ.get('LD_PRELOAD', '')} {library}"
        self._process = child(SERVER, engine, LD_PRELOAD=preloaded, HYDROGEN_INJECT=str(orders))
        line = self._process.stdout.readline()
        if not line:
            finish(self._process, 0)
        self.address = ("127.0.0.1", int(line))

    def arm(self, call, code, at):
        """Let the `at`-th `call` from now fail with `code`."""
        self.armed += 1
        struct.pack_into("=I", self._orders, 0, 0)
        struct.pack_into("=IIII", self._orders, 4, code, at, 0, 0)
        struct.pack_into("=I", self._orders, 0, CALLS[call])

    def has_fired(self):
        """Whether it has failed."""
        return struct.unpack_from("=I", self._orders, 16)[0] == 1

    def report(self, connections):
        """What happened since the last report, once there are so many connections."""
        self._process.stdin.write(f"{connections}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            finish(self._process, 0)
        return Report(*json.loads(line))

    def held(self):
        """How many fds and how many threads the process has."""
        return tuple(
            len(os.listdir(f"/proc/{self._process.pid}/{what}")) for what in ("fd", "task")
        )

    def stop(self):
        """Stop it when all have gone."""
        self.report(0)
        out, _ = finish(self._process, 0)
        assert out == "0 0 0 0\n"

    def close(self):
        """Close what a test that failed left open. (The process is ended with the others.)"""
        for client in self.clients:
            client.close()
        self._orders.close()


class Peer:
    """A client that expects its own bytes back, and no others.

    `may_lose`: the failure may cost it its connection; `may_stall`: or an edge.
    """

    def __init__(self, server, may_lose, may_stall):
        self._server, self._may_lose, self._may_stall = server, may_lose, may_stall
        self._client = Client(server.address)
        server.clients.add(self._client)
        self._client.sock.settimeout(TICK)
        self._nudged = 0
        self.is_lost = False

    def _receive(self, nudge):
        """Some bytes; b"" at the end, or when the connection is lost."""
        for _ in range(int(PATIENCE / TICK)):
            try:
                return self._client.sock.recv(1 << 16)
            except TimeoutError:
                if (
                    self._may_stall
                    and self._nudged != self._server.armed
                    and self._server.has_fired()
                ):
                    self._nudged = self._server.armed
                    nudge()
        raise AssertionError("nothing came")

    def exchange(self, data):
        """Say something and hear it, unless the connection is lost."""
        if self.is_lost:
            return
        owed = bytearray(data)

        def nudge():
            self._client.send(b"once more")
            owed.extend(b"once more")

        try:
            self._client.send(data)
            while owed:
                part = self._receive(nudge)
                if not part:
                    raise ConnectionResetError  # the end, where none was due
                assert owed.startswith(part), (owed, part)
                del owed[: len(part)]
        except ConnectionError:
            self._lose()

    def end(self):
        """End gracefully, unless the FIN was an edge that was lost; then by a reset."""
        if self.is_lost:
            return
        try:
            self._client.finish()
            assert self._receive(self._client.reset) == b""
            self._close()
        except OSError as error:
            if error.errno == errno.EBADF:  # our own reset
                self._close()
            elif isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
                # shutdown(2) after theirs
                self._lose()
            else:
                raise

    def _lose(self):
        assert self._may_lose, "the connection was lost"
        assert self._server.has_fired(), "the connection was lost before the failure"
        self.is_lost = True
        self._close()

    def _close(self):
        self._client.close()
        self._server.clients.remove(self._client)


class Crowd:
    """Three that stay and any number who pass by, and the sum of what became of them."""

    def __init__(self, server, call, code):
        self._server = server
        self._costs = call in ("recv", "send") and code not in (errno.EINTR, errno.EAGAIN)
        self._stalls = call in ("recv", "send") and code == errno.EAGAIN
        self._staying = [self._peer() for _ in range(3)]
        self._talk()

    def _peer(self):
        return Peer(self._server, self._costs, self._stalls)

    def _talk(self):
        for number, peer in enumerate(self._staying):
            peer.exchange(b"%d stays" % number)

    def pass_by(self):
        """One comes, talks and goes. Whether it lost its connection is returned."""
        peer = self._peer()
        peer.exchange(b"passing by")
        peer.end()
        return peer.is_lost

    def cause(self, call):
        """Traffic that makes `call`."""
        if call == "accept":
            return self.pass_by()
        for _ in range(4):
            self._talk()
        return self.pass_by()

    def settle(self):
        """Everybody who is left is served, and so is who comes now; who was lost comes again.
        Returns how many those were.
        """
        self._talk()
        assert not self.pass_by()
        lost = [at for at, peer in enumerate(self._staying) if peer.is_lost]
        for at in lost:
            self._staying[at] = self._peer()
            self._staying[at].exchange(b"again")
        return len(lost)

    def end(self):
        for peer in self._staying:
            peer.end()


def inject(server, call, code, numbers):
    """Let `call` fail with `code` at each of `numbers`."""
    name = errno.errorcode[code]
    crowd = Crowd(server, call, code)
    before, (fds, tasks) = server.report(3), server.held()
    for at in numbers:
        server.arm(call, code, at)
        lost = 0
        for _ in range(at + 1):  # each round makes one call at least
            lost += crowd.cause(call)
            if server.has_fired():
                break
        assert server.has_fired(), f"call {at} was never made"
        lost += crowd.settle()

        def is_as_before():
            now = server.held()
            # one that started something may have been there still
            return now[0] == fds and now[1] <= tasks

        wait_until(is_as_before, f"fds and threads of before, {(fds, tasks)}: {server.held()}")
        now = server.report(3)
        where = f"{call} {name} at {at}: {now}"
        assert now.errors == [], where
        assert now.accepted - now.removed == 3, where
        assert sum(now.causes.values()) == now.removed - before.removed, where
        unusual = collections.Counter(now.causes) - collections.Counter(PeerClosed=1 << 30)
        if crowd._costs:
            assert unusual == {name: 1}, where
        else:
            assert lost == 0, where
            assert set(unusual) <= ({"ECONNRESET"} if crowd._stalls else set()), where
        assert lost <= 1, where
        assert now.pauses - before.pauses == (call == "accept" and code == errno.ENOBUFS), where
        before = now
    crowd.end()


@pytest.fixture
def server(engine, library, tmp_path):
    """A server to inject failures into; the test has to stop it."""
    server = Server(library, tmp_path, engine)
    yield server
    server.close()


COSTS_NOTHING = [
    ("accept", errno.EINTR),
    ("accept", errno.EAGAIN),
    ("accept", errno.ECONNABORTED),
    ("accept", errno.EPROTO),
    ("epoll_wait", errno.EINTR),
    ("recv", errno.EINTR),
    ("send", errno.EINTR),
]


def name(value):
    """Ids of parameters."""
    return value if isinstance(value, str) else errno.errorcode[value]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "code"), COSTS_NOTHING, ids=name)
def test_f18_a_failure_that_means_again_goes_unnoticed_at_any_call(server, call, code):
    inject(server, call, code, range(1, HIGHEST + 1))
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("call", ["recv", "send"])
@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.ENOBUFS, errno.EPROTO], ids=name)
def test_f18_a_failure_of_one_connection_costs_that_one_at_any_call(server, call, code):
    inject(server, call, code, range(1, HIGHEST + 1))
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("call", ["recv", "send"])
def test_f18_an_eagain_that_is_not_true_holds_a_connection_up_until_its_next_edge_at_any_call(
    server, call
):
    inject(server, call, errno.EAGAIN, range(1, HIGHEST + 1))
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_f18_accept_without_memory_pauses_once_at_any_call(server, first):
    """In four shares, to run side by side: a pause is a tenth of a second in which nothing
    happens.
    """
    inject(server, "accept", errno.ENOBUFS, range(first, HIGHEST + 1, 4))
    server.stop()
