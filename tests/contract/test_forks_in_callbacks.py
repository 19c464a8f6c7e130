"""A child that is forked in code of the user's, and returns from it: nothing of the parent's is
touched by it.

In the child the number of the connection's fd is given to one end of a socket pair. The other end
shows whether anybody wrote to that number or read from it; who is called in the child says so.
"""

import pytest
from support import child, finish

FORKS = """
import logging, os, socket as sockets, sys, threading, warnings
import hydrogen
from certificates import client_context, server_context
from support import Client, TlsClient, recorder, wait_event, wait_until

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
logging.getLogger("hydrogen").setLevel(logging.ERROR)  # not that its only worker blocks
engine, where, kind = sys.argv[1:]
parent = os.getpid()
reports, report = os.pipe()
pids, fds, ours = [], [], None
sent, go = threading.Event(), threading.Event()

def say(name):
    if os.getpid() != parent:
        os.write(report, name.encode() + b" ")

def fork():
    global ours
    ours, theirs = sockets.socketpair()
    ours.send(b"planted\\n")
    pid = os.fork()
    if pid == 0:
        os.dup2(theirs.fileno(), fds[-1])
        ours.close()
    theirs.close()
    if pid != 0:
        pids.append(pid)

def at(place):
    say(place)
    if place == where and not pids and os.getpid() == parent:
        fork()

class Keeps(hydrogen.Stream):
    # The first message is not written before an edge comes.
    def __init__(self, fd):
        self.fd, self.kept, self.is_held = fd, b"", True

    def recv(self):
        say("recv")
        part = os.read(self.fd, 1000)
        at("Stream.recv")
        if not part:
            raise EOFError
        return [part]

    def send(self, buf):
        say("send")
        self.kept += buf
        if self.is_held:
            self.is_held = False
            self.kept += bytes(8 << 20)
        while self.kept:
            try:
                self.kept = self.kept[os.write(self.fd, self.kept):]
            except BlockingIOError:
                if not buf:
                    at("Stream.send")
                raise
        if not buf:  # after an edge; there is something to be read, too
            at("Stream.send")

    def shutdown(self):
        say("shutdown")
        at("Stream.shutdown")

    def close(self):
        say("close")
        os.close(self.fd)
        at("Stream.close")

    def fileno(self):
        at("Stream.fileno")
        return self.fd

def opened(fd):
    fds.append(fd)
    at("on_new_connection")
    return Keeps(fd) if kind == "stream" else None

def received(socket, data):
    at("on_data_received")
    socket.send(data)
    if data == b"zero" and os.getpid() == parent:  # meanwhile both edges come
        sent.set()
        wait_event(go, "let go")

handler = recorder(
    new_connection=opened,
    connected=lambda socket: at("on_connected"),
    data_received=received,
    eof=lambda socket: (at("on_eof"), socket.close()),
    disconnected=lambda socket, error: at("on_disconnected"),
    connection_removed=lambda fd, error: at("on_connection_removed"),
)
options = {"socket_options": [(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 1 << 16)]}
if kind == "tls":
    options["ssl"] = server_context()
    options["ssl"].sni_callback = lambda *arguments: at("sni_callback")
server = hydrogen.serve(handler, port=0, engine=engine, max_threads=1, **options)
client = Client(server.address, receive_buffer=8192)
talker = client
if kind == "tls":
    talker = TlsClient(client, client_context()).handshake()
if kind == "stream":
    talker.send(b"zero")
    wait_event(sent, "its reply fills the kernel")
    talker.send(b"first")
    assert talker.receive(4 + (1 << 16)) == b"zero" + bytes(1 << 16)  # most of what it took
    go.set()
    rest = (8 << 20) - (1 << 16)
    assert talker.receive(rest + 5) == bytes(rest) + b"first"
else:
    talker.send(b"first")
    assert talker.receive(5) == b"first"
talker.send(b"second")
assert talker.receive(6) == b"second"
talker.finish()
talker.receive_until_end()
client.close()
handler.wait_removed()
(pid,) = wait_until(lambda: pids, "it has forked")
_, status = os.waitpid(pid, 0)
assert not os.WIFSIGNALED(status), status
os.close(report)
assert os.read(reports, 1000) == b"", "something was called in the child"
try:
    # Whoever closes a socket in which something is unread resets the other end.
    written = ours.recv(1000)
    raise AssertionError(f"what is planted was read, and there was written {written}")
except ConnectionResetError:
    pass
ours.close()
with Client(server.address) as after:
    if kind != "tls":
        after.send(b"after")
        assert after.receive(5) == b"after"
server.stop()
print("fine")
"""

PLACES = (
    *(("on_new_connection", kind) for kind in ("tcp", "tls", "stream")),
    ("sni_callback", "tls"),
    *((f"Stream.{name}", "stream") for name in ("fileno", "recv", "send", "shutdown", "close")),
    *(("on_connected", kind) for kind in ("tcp", "tls", "stream")),
    *(("on_data_received", kind) for kind in ("tcp", "tls", "stream")),
    *(("on_eof", kind) for kind in ("tcp", "tls", "stream")),
    *(("on_disconnected", kind) for kind in ("tcp", "tls", "stream")),
    *(("on_connection_removed", kind) for kind in ("tcp", "tls", "stream")),
)


@pytest.mark.slow
@pytest.mark.clause("P4")
@pytest.mark.parametrize(("where", "kind"), PLACES)
def test_a_child_that_returns_from_where_it_was_forked_touches_nothing_of_the_parent_s(
    engine, where, kind
):
    out, err = finish(child(FORKS, engine, where, kind), 0)
    assert (out, err) == ("fine\n", "")


FORKS_BEFORE_IT_LISTENS = """
import os, socket, sys, warnings
import hydrogen

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
reading, writing = os.pipe()
is_there, there = os.pipe()
pids = []

class Handler(hydrogen.Handler):
    def on_server_created(self, fd):
        pids.append(os.fork())
        if pids == [0]:
            os.close(writing)
            os.write(there, b"x")
            os.read(reading, 1)
            os._exit(0)
    def on_data_received(self, socket, data):
        pass

server = hydrogen.serve(Handler(), engine=sys.argv[1], port=0)
os.read(is_there, 1)
socket.create_connection(server.address).close()
server.stop()
try:
    socket.create_connection(server.address).close()
    print("somebody listens")
except ConnectionRefusedError:
    print("refused")
os.close(writing)
os.waitpid(pids[0], 0)
"""


@pytest.mark.clause("P4")
def test_a_child_that_was_forked_before_the_server_listens_does_not_keep_the_port(engine):
    assert finish(child(FORKS_BEFORE_IT_LISTENS, engine), 0) == ("refused\n", "")


FORKS_IN_A_FRAME = """
import os, sys, warnings
import hydrogen
from support import Client, recorder

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
pids = []

class Forks(hydrogen.LineFrameBuilder):
    def frame(self, payload):
        if payload == b"fork":
            pids.append(os.fork())
        return super().frame(payload)

handler = recorder(connected=None)
server = hydrogen.serve(handler, engine=sys.argv[1], port=0, framing=Forks())
client = Client(server.address)
handler.wait_for("connected")
socket = handler.socket()
sent = socket.send(b"fork")
if pids == [0]:
    os.write(1, b"child: %d\\n" % sent)
    os._exit(0)
os.waitpid(pids[0], 0)
print("parent:", int(sent), client.receive(5))
server.stop()
client.close()
"""


@pytest.mark.clause("P4")
def test_a_thread_that_forks_within_a_send_goes_on_in_the_child_which_sends_nothing(engine):
    assert finish(child(FORKS_IN_A_FRAME, engine), 0) == ("child: 0\nparent: 1 b'fork\\n'\n", "")


FORKS_AS_IT_STARTS = """
import os, sys, warnings
import hydrogen
from hydrogen.lifecycle import Life
from support import Echo, wait_until

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
pids, begin, cancel = [], Life.begin, Life.cancel

def forks(life):
    pids.append(os.fork())
    begin(life)

def waits(life, error):
    is_there = lambda: life._thread is not None and life._thread.ident is not None
    wait_until(is_there, "there is a thread")
    life._thread.join(5)
    os.write(1, b"a thread is left\\n" if life._thread.is_alive() else b"child: none is left\\n")
    cancel(life, error)

Life.begin, Life.cancel = forks, waits
try:
    server = hydrogen.serve(Echo(), engine=sys.argv[1], port=0)
except RuntimeError as error:
    os.write(1, f"child: {error}\\n".encode())
    os._exit(0)
print("parent:", os.waitpid(pids[0], 0)[1])
server.stop()
"""


@pytest.mark.clause("P4")
def test_a_child_forked_by_a_signal_handler_as_the_start_begins_carries_out_none(engine):
    lines = (
        "child: none is left\nchild: the process forked while the server was starting: the server "
        "belongs to the parent\nparent: 0\n"
    )
    assert finish(child(FORKS_AS_IT_STARTS, engine), 0) == (lines, "")


FORKS_IN_THE_START = """
import os, sys, warnings
import hydrogen
from support import Client, Echo

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
pids = []

class Forks(Echo):
    def __setattr__(self, name, value):
        if name == "server":
            pids.append(os.fork())
        super().__setattr__(name, value)

server = hydrogen.serve(Forks(), engine=sys.argv[1], port=0)
print("parent:", os.waitpid(pids[0], 0)[1])
with Client(server.address) as client:
    client.echo(b"served")
server.stop()
"""


@pytest.mark.clause("P4")
def test_a_child_that_returns_to_the_thread_of_the_start_ends(engine):
    assert finish(child(FORKS_IN_THE_START, engine), 0) == ("parent: 0\n", "")
