"""Peers that have bad manners, and a server that is frozen and continued, on every transport.

Nobody but the peers ends a connection here, so each one that half-closes must get all its replies
and then the end, however it and the server froze before. HYDROGEN_STRESS_MESSAGES: see
test_threads.py.
"""

import json
import os
import random
import signal
import socket
import threading

import certificates
import pytest
from stress.crowd import Crowd, beside
from stress.test_threads import MESSAGES
from stress.test_tls import TlsCrowd
from support import PATIENCE, Client, TlsClient, child, finish, running, simple, wait_until

import hydrogen

pytestmark = pytest.mark.timeout(900)

REPLIES = MESSAGES // 2


class Chunks(hydrogen.Stream):
    """Frames as they are read: the user's own stream."""

    def __init__(self, fd):
        self.fd, self.kept, self.read = fd, bytearray(), bytearray()

    def recv(self):
        part = os.read(self.fd, 4096)
        if not part:
            raise EOFError
        self.read += part
        messages = []
        while len(self.read) >= 4:
            size = int.from_bytes(self.read[1:3], "big") + 4
            if len(self.read) < size:
                break
            messages.append(bytes(self.read[3 : size - 1]))
            del self.read[:size]
        return messages

    def send(self, buf):
        if buf:
            self.kept += b"\x01" + len(buf).to_bytes(2, "big") + buf + b"\x17"
        while self.kept:
            del self.kept[: os.write(self.fd, self.kept)]

    def shutdown(self):
        pass

    def fileno(self):
        return self.fd


SERVER = """
import json, os, sys
from pathlib import Path
import certificates, hydrogen

engine, transport, handoff, path, certificate = sys.argv[1:]
options = {"path": path} if transport == "unix" else {"port": 0}
if transport == "tls":
    options["ssl"] = certificates.server_context(Path(certificate))

class Echo(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)

from stress.test_manners import Chunks

class Streams(Echo):
    def on_new_connection(self, fd):
        return Chunks(fd)

server = hydrogen.serve(
    (Streams if transport == "stream" else Echo)(),
    engine=engine,
    handoff=handoff,
    max_threads=3,
    pre_allocated=2,
    framing=hydrogen.SimpleFrameBuilder,
    read_budget=4096,
    write_buffer_limits=(2000, 8000),
    socket_options=[(1, 7, 4096)],  # SOL_SOCKET, SO_SNDBUF: output is soon pending
    **options,
)
print(json.dumps(server.address), flush=True)
while sys.stdin.readline() == "stats\\n":
    stats = server.stats()
    counts = [stats.connections, stats.queued_bytes, stats.accepted - stats.removed]
    print(json.dumps([*counts, stats.removed_timeout, stats.reading_pauses]), flush=True)
server.stop(20)
"""


class Served:
    """The server process."""

    def __init__(self, engine, transport, handoff, folder):
        certificate = str(certificates.SERVER) if transport == "tls" else ""
        path = str(folder / "socket")
        self.process = child(SERVER, engine, transport, handoff, path, certificate)
        line = self.process.stdout.readline()
        if not line:
            finish(self.process)
        address = json.loads(line)
        self.address = address if isinstance(address, str) else tuple(address)

    def stats(self):
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def freeze(self):
        """Stop the process; it has stopped when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def served(engine, tmp_path):
    """Start a server process; it is ended whatever happens."""
    servers = []

    def served(transport, handoff):
        servers.append(Served(engine, transport, handoff, tmp_path))
        return servers[-1]

    yield served
    for server in servers:
        server.process.kill()


@pytest.mark.parametrize(
    ("transport", "handoff"),
    [(transport, "auto") for transport in ("tcp", "unix", "tls", "stream")]
    + [("tcp", "inline"), ("tcp", "eager")],
)
def test_whoever_half_closes_gets_all_replies_whatever_froze_and_however_it_misbehaved(
    served, transport, handoff
):
    server = served(transport, handoff)
    done, dice = threading.Event(), random.Random(7)
    kind = TlsCrowd if transport == "tls" else Crowd
    crowds = [kind(10, seed, is_whole=True, rudeness=3) for seed in (1, 2)]

    def freeze():
        while not done.wait(dice.random() / 20):
            server.freeze()
            try:
                done.wait(dice.random() / 20)  # meanwhile all buffers fill
            finally:
                server.go_on()

    beside(done, freeze, *(lambda c=crowd: c.run(server.address, REPLIES // 2) for crowd in crowds))
    assert all(crowd.answered >= REPLIES // 2 and crowd.froze for crowd in crowds)
    wait_until(lambda: server.stats()[0] == 0, "all are removed")
    *left, pauses = server.stats()
    assert left == [0, 0, 0, 0]  # connections, bytes, connections not removed, timeouts
    assert pauses, "no output was ever pending"
    finish(server.process, 0, "stop\n")


class Lingering(Chunks):
    """Ends its own side first: how a stream of the user's ends is its own affair."""

    def shutdown(self):
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            sock.settimeout(PATIENCE)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


class Closes(hydrogen.Handler):
    """Answers a first message with a large one, in the way it asks for, and closes."""

    def on_new_connection(self, fd):
        return Lingering(fd) if self.has_streams else None

    def on_data_received(self, socket, data):
        if data == b"pause":
            socket.pause_reading()
        socket.send(REPLY)
        socket.close()


REPLY = random.Random(1).randbytes(60_000)


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls", "stream"])
@pytest.mark.parametrize("handoff", ["auto", "eager"])
def test_a_reply_before_a_close_arrives_whole_at_peers_that_send_on_before_they_read(
    start, transport, handoff, tmp_path
):
    """More than all buffers hold: what nobody wants any more is read and dropped meanwhile."""
    handler = Closes()
    handler.has_streams = transport == "stream"
    where = {"path": str(tmp_path / "socket")} if transport == "unix" else {}
    if transport == "tls":
        where["ssl"] = certificates.server_context()
    server = start(
        handler,
        framing=hydrogen.SimpleFrameBuilder,
        handoff=handoff,
        socket_options=((socket.SOL_SOCKET, socket.SO_SNDBUF, 4096),),
        write_buffer_limits=(2000, 8000),
        **where,
    )

    def converse(first):
        with Client(server.address, receive_buffer=4096, send_buffer=4096) as client:
            peer = client
            if transport == "tls":
                peer = TlsClient(client, certificates.client_context()).handshake()
            peer.send(simple(first))
            for _ in range(1500):
                peer.send(simple(bytes(3000)))
            # With a window that is less than a segment, the kernel would take its time.
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            assert peer.receive_frame() == REPLY
            assert peer.receive_until_end() == b""

    with running(*(lambda f=first: converse(f) for first in (b"go", b"pause", b"go"))):
        pass
