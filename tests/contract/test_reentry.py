"""Signal handlers, `__del__` and weakref callbacks may call anything, on any connection, at any
moment, in any thread.

They run in the middle of our own functions. "Between any two lines" of these is deterministic, see
`reentry`; the collector that runs at every allocation shows the same in threads of the engine.
"""

import signal
import subprocess

import pytest
from families import FAMILIES
from support import child

SECONDS = 60
"""After which a program hangs; it needs some."""

families = pytest.mark.parametrize("family", FAMILIES)


def check(process, expected):
    """It writes what is expected, and ends; it is killed when it hangs."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler says where
        raise AssertionError(f"it hangs: {process.communicate()[1]}") from None
    finally:
        process.kill()
    assert (out, err) == (expected, ""), err


# ---------------------------------------------------------------------------- between any two lines

INTERRUPTED = """
import itertools, sys, threading
import hydrogen
from families import connect_to, options_of, stream_of
from reentry import interrupted
from support import recorder, wait_event

engine, family, inside, how, path = sys.argv[1:]

def received(socket, data):
    if data == b"ask":
        socket.send(b"answer")

handler = recorder(
    connected=None,
    new_connection=lambda fd: stream_of(family, fd),
    data_received=received,
)
server = hydrogen.serve(handler, engine=engine, max_threads=2, **options_of(family, path))
other = connect_to(server, family)
other_socket = handler.socket(0)
number, numbers, sent, came = 0, itertools.count(), [], True
total = 0

def send(socket):
    message = b"%d" % next(numbers)
    if socket.send(message):
        sent.append(message)

def every():
    send(this)
    other_socket.send(b"x")
    this.pause_reading()
    this.resume_reading()
    this.pending, this.is_open, this.peername, this.id, repr(this)
    this.get_extra_info("cipher"), this.get_extra_info("peername")
    this.user_data = this.user_data
    this.drain(0)
    server.stats(), server.connections
    server.broadcast(b"", exclude=[this])
    server.call_later(3600, print).cancel()
    if inside in ("close", "abort"):
        this.close()
        this.abort()

def in_a_thread():
    # Who interrupts may wait for somebody who does the same: for a lock of the user's, say.
    thread = threading.Thread(target=every, daemon=True)
    thread.start()
    thread.join()

action = {"itself": every, "waits": in_a_thread}[how]
calls = {
    "send": lambda: send(this),
    "drain": lambda: this.drain(1),
    "pause": lambda: (this.pause_reading(), this.resume_reading()),
    "names": lambda: (this.pending, this.is_open, this.peername, this.get_extra_info("cipher")),
    "close": lambda: this.close(),
    "abort": lambda: this.abort(),
}
peer = None
while came:
    if peer is None:
        peer, sent = connect_to(server, family), []
        total += 1
        this = handler.socket(total)
    came = interrupted(calls[inside], number, action)
    number += 1
    if inside in ("close", "abort"):
        peer.end()
        peer.close()
        handler.wait_removed(total)
        peer = None
    else:
        this.send(b"last")
        got = b""
        while not got.endswith(b"last\\n"):
            got += peer.receive(1)
        lines = [line for line in got.split(b"\\n") if line][:-1]
        assert sorted(lines) == sorted(sent), (number, lines, sent)
        sent = []
        peer.send(b"ask\\n")
        assert peer.receive(7) == b"answer\\n"
other.send(b"ask\\n")
while other.receive(1) != b"w":
    pass
assert other.receive(3) == b"er\\n"
other.close()
if peer is not None:
    peer.close()
handler.wait_removed(total + 1)
assert server.stop(5).aborted == 0
print(engine == "compiled" or number > 3)  # whose methods have no lines of Python
"""


@pytest.mark.slow
@pytest.mark.clause("S57")
@families
@pytest.mark.parametrize("how", ["itself", "waits"])
@pytest.mark.parametrize("inside", ["send", "drain", "pause", "names", "close", "abort"])
def test_whatever_interrupts_a_method_of_a_socket_may_call_anything(
    engine, family, inside, how, tmp_path
):
    process = child(INTERRUPTED, engine, family, inside, how, str(tmp_path / "s"))
    check(process, "True\n")


# ------------------------------------------------------------------------- what the collector finds

COLLECTED = """
import contextlib, gc, logging, sys, threading
import hydrogen
from families import connect_to, options_of, stream_of
from support import running

engine, family, path = sys.argv[1:]
logging.getLogger("hydrogen").setLevel(logging.ERROR)  # all workers may be blocked for a while
PEERS, MESSAGES = 4, 60

class Sends:
    def __init__(self, sockets):
        self.sockets, self.me = sockets, self

    def __del__(self):
        for socket in self.sockets:
            socket.send(b"deleted")
        self.sockets[0].pause_reading()
        self.sockets[0].resume_reading()
        self.sockets[0].server.stats()
        with contextlib.suppress(RuntimeError):  # it has stopped
            self.sockets[0].server.call_later(3600, print).cancel()

sockets = []

class Litters(hydrogen.Handler):
    def on_new_connection(self, fd):
        return stream_of(family, fd)

    def on_connected(self, socket):
        sockets.append(socket)

    def on_data_received(self, socket, data):
        Sends([socket, *sockets[:2]])
        socket.send(b"<" + data + b">")
        for _ in range(5):
            Sends([socket])

server = hydrogen.serve(Litters(), engine=engine, max_threads=3, **options_of(family, path))
peers = [connect_to(server, family) for _ in range(PEERS)]
gc.set_threshold(1)

def converse(peer):
    got = b""
    for number in range(MESSAGES):
        peer.send(b"%d\\n" % number)
        while b"<%d>" % number not in got:
            got += peer.receive(1)
    answers = [line for line in got.split(b"\\n") if line.startswith(b"<")]
    assert answers == [b"<%d>" % number for number in range(MESSAGES)], got

with running(*(lambda peer=peer: converse(peer) for peer in peers)):
    pass
gc.set_threshold(700)
gc.collect()
for peer in peers:
    peer.close()
print(server.stop(5).abandoned)
"""


@pytest.mark.slow
@pytest.mark.clause("S57")
@families
def test_what_the_collector_finds_may_send_on_any_connection_in_any_thread(
    engine, family, tmp_path
):
    check(child(COLLECTED, engine, family, str(tmp_path / "s")), "0\n")


SIGNALLED = """
import signal, sys, threading
import hydrogen
from families import connect_to, options_of, stream_of
from support import recorder, running

engine, family, path = sys.argv[1:]
ROUNDS, SIGNALS = 40, 400
handler = recorder(connected=None, new_connection=lambda fd: stream_of(family, fd))
server = hydrogen.serve(handler, engine=engine, max_threads=2, **options_of(family, path))
peers = [connect_to(server, family) for _ in range(3)]
sockets = [handler.socket(number) for number in range(3)]
interrupts = 0

def on_alarm(*_):
    global interrupts
    interrupts += 1
    for socket in sockets:
        socket.send(b"signal")
    server.broadcast(b"signal")
    server.stats(), server.connections
    server.suspend()
    server.resume()
    if interrupts < SIGNALS:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)

def read(peer):
    while peer.receive(1) != b"!":
        pass

signal.signal(signal.SIGALRM, on_alarm)
with running(*(lambda peer=peer: read(peer) for peer in peers)):
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    while interrupts < SIGNALS:
        server.broadcast(b"main")
        for socket in sockets:
            socket.send(b"main")
    server.broadcast(b"!")
for peer in peers:
    peer.close()
print(server.stop(5).abandoned)
"""


@pytest.mark.slow
@pytest.mark.clause("S57")
@families
def test_a_signal_handler_may_send_and_broadcast_while_the_main_thread_does(
    engine, family, tmp_path
):
    check(child(SIGNALLED, engine, family, str(tmp_path / "s")), "0\n")
