"""docs/faults.md, rows 27, 28, 30 and 31: stopping, exiting, forking, starting badly, and starting
often.
"""

import errno
import itertools
import os
import random
import signal
import socket as stdlib_socket
import threading

import pytest
from support import (
    PATIENCE,
    Client,
    Echo,
    child,
    echo,
    finish,
    open_fds,
    recorder,
    running,
    threads,
    wait_event,
    wait_until,
)

import hydrogen

# ------------------------------------------------------------------------------------------- row 27


@pytest.mark.clause("S9", "S13", "S14", "S23")
def test_f27_stop_during_callbacks_twice_from_a_callback_and_with_peers_that_do_not_read(
    start, connect, gate
):
    go = gate()

    def received(socket, data):
        if data == b"hold":
            wait_event(go, "let go")
        elif data == b"big":
            socket.send(bytes(8 << 20))
        elif data == b"stop":
            socket.server.stop(0.2)

    handler = recorder(data_received=received, connected=None)
    server = start(handler)
    clients = {
        name: connect(server, receive_buffer=4096) for name in (b"hold", b"big", b"stop", b"idle")
    }
    handler.wait_for("connected", 4)
    for name in (b"hold", b"big"):
        clients[name].send(name)
        handler.wait(lambda name=name: name in handler.messages(), "it is delivered")
    wait_until(lambda: any(socket.pending for socket in server.connections), "output is blocked")
    reports = []
    clients[b"idle"].finish()
    with running(
        lambda: reports.append(server.stop(0.2)), lambda: reports.append(server.stop(0.2))
    ):
        clients[b"stop"].send(b"stop")
        clients[b"stop"].close()
    reports.append(server.stop())
    assert set(reports) == {reports[0]}
    report = reports[0]
    assert report.abandoned == 1
    assert report.closed + report.aborted + report.abandoned <= 4
    assert report.aborted >= 1
    assert 0 < report.unsent_bytes <= 8 << 20
    go.set()
    handler.wait_removed(4)


EXITS = """
import os, sys, threading
import hydrogen
from support import Client

class Works(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)
        if data == b"hold":
            threading.Event().wait()

engine, how = sys.argv[1:]
server = hydrogen.serve(Works(), port=0, engine=engine, max_threads=3, stop_timeout=0.5)
client = Client(server.address)
client.echo(b"hello")
if how == "held":
    client.echo(b"hold")
if how == "stopped":
    client.close()
    server.stop()
if how == "not reading":
    for socket in server.connections:
        socket.send(bytes(20_000_000))
if how == "traffic":
    def talk(fd):
        while os.write(fd, b"x" * 1000) and os.read(fd, 1000):
            pass
        os.close(fd)
    os.set_blocking(client.sock.fileno(), True)
    threading.Thread(target=talk, args=(client.sock.detach(),), daemon=True).start()
if how == "many":
    options = {"port": 0, "engine": engine, "max_threads": 2, "stop_timeout": 0.5}
    servers = [hydrogen.serve(Works(), **options) for _ in range(5)]
    clients = [Client(s.address) for s in servers]
    [c.echo(b"x") for c in clients]
    for c in clients:
        c.close()
if how in ("held", "not reading", "idle client"):
    client.sock.detach()  # open until the process ends, and no ResourceWarning
elif how != "traffic":
    client.close()
print("end of main", flush=True)
if how == "exception":
    raise RuntimeError("of main")
if how == "sys.exit":
    sys.exit(0)
"""


@pytest.mark.clause("P3")
@pytest.mark.parametrize(
    "how",
    [
        "idle",
        "sys.exit",
        "stopped",
        "idle client",
        "held",
        "traffic",
        "not reading",
        "many",
        "exception",
    ],
)
def test_f27_interpreter_exit_while_serving(engine, how):
    """The exit status is main's own, and nothing is written to stderr: no thread dies of the
    interpreter's end.
    """
    out, err = finish(child(EXITS, engine, how), 1 if how == "exception" else 0)
    assert out == "end of main\n"
    assert "of main" in err if how == "exception" else err == "", err


ABANDONS = """
import sys, threading
import hydrogen
from families import stream_of

class Blocks(hydrogen.Handler):
    def on_new_connection(self, fd):
        return stream_of(sys.argv[2], fd)

    def on_data_received(self, socket, data):
        socket.send(bytes(20_000_000))
        threading.Event().wait()

server = hydrogen.serve(Blocks(), port=0, engine=sys.argv[1], max_threads=2)
print(server.address[1], flush=True)
sys.stdin.readline()
print(server.stop(0).abandoned, flush=True)
sys.stdin.readline()
"""


@pytest.mark.clause("P3", "K10")
@pytest.mark.parametrize("family", ["tcp", "stream"])
def test_f27_the_peer_of_an_abandoned_handler_is_reset_at_last_and_never_told_that_all_was_sent(
    engine, family, connect
):
    process = child(ABANDONS, engine, family)
    client = connect(("127.0.0.1", int(process.stdout.readline())), receive_buffer=4096)
    client.send(b"x\n")
    client.receive(1)
    process.stdin.write("stop\n")
    process.stdin.flush()
    assert process.stdout.readline() == "1\n"
    finish(process, 0, "exit\n")
    assert client.at_end() == "reset"


# ------------------------------------------------------------------------------------------- row 28

FORKS = """
import os, sys, warnings
import hydrogen
from support import Client, Echo, recorder, echo

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

engine, how = sys.argv[1:]
handler = recorder(connected=None, data_received=echo)
server = hydrogen.serve(handler, port=0, engine=engine, max_threads=3)
clients = [Client(server.address) for _ in range(5)]
for client in clients:
    client.echo(b"before")
sockets = server.connections
child = os.fork()
if child == 0:
    for socket in sockets:
        assert socket.send(b"from the child") is False
        socket.close()
        socket.abort()
        assert socket.drain(0) is False
        socket.pause_reading()
        socket.fileno(), socket.peername, socket.pending, socket.is_open
        socket.user_data = 1
    server.stop()
    server.abort()
    assert server.wait(0)
    assert not server.ready
    server.stats(), server.connections
    if how == "serves":
        with hydrogen.serve(Echo(), port=0, engine=engine, max_threads=2) as own:
            with Client(own.address) as client:
                client.echo(b"of the child")
    if how == "sys.exit":
        sys.exit(0)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
for client in clients:
    client.echo(b"after")
client = Client(server.address)
client.echo(b"new")
client.finish()
assert client.receive_until_end() == b""
clients[0].reset()
handler.wait_removed(2)
for client in clients:
    client.close()
handler.wait_removed(6)
report = server.stop()
assert (report.aborted, report.abandoned) == (0, 0), report
print("fine")
"""


@pytest.mark.clause("P4")
@pytest.mark.parametrize("how", ["os._exit", "sys.exit", "serves"])
def test_f28_a_forked_child_cannot_disturb_the_connections_of_its_parent(engine, how):
    out, _ = finish(child(FORKS, engine, how), 0)
    assert out == "fine\n"


FORK_AND_HOLD = """
import os, sys, warnings
import hydrogen
from support import Client, recorder, echo

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

engine = sys.argv[1]
handler = recorder(connected=None, data_received=echo)
server = hydrogen.serve(handler, port=0, engine=engine, max_threads=3)
clients = [Client(server.address) for _ in range(3)]
for client in clients:
    client.echo(b"before")
by_name = {socket.peername: socket for socket in server.connections}

def polled():
    # How many fds this process has registered with epoll.
    count = 0
    for fd in os.listdir("/proc/self/fdinfo"):
        try:
            with open(f"/proc/self/fdinfo/{fd}") as file:
                count += sum(line.startswith("tfd:") for line in file)
        except OSError:
            continue
    return count

before = polled()
ours, theirs = os.pipe()
child = os.fork()
if child == 0:
    for client in clients:
        client.sock.detach()
    os.close(theirs)
    os.read(ours, 1)  # holds copies of all sockets until the parent is done
    os._exit(0)
# The child has the accepted sockets open too: closing alone would neither end nor reset them.
by_name[clients[0].name].close()
assert clients[0].receive_until_end() == b""
by_name[clients[1].name].abort()
assert clients[1].at_end() == "reset"
clients[2].finish()
assert clients[2].receive_until_end() == b""
clients[0].finish()
handler.wait_removed(3)
# Or the kernel would go on reporting what the child holds open.
assert polled() == before - 3, (polled(), before)
os.write(theirs, b"x")
assert os.waitpid(child, 0)[1] == 0
for client in clients:
    client.close()
server.stop()
print("fine")
"""


@pytest.mark.clause("P4", "K8", "K10")
def test_f28_connections_end_although_a_child_holds_them_open(engine):
    out, _ = finish(child(FORK_AND_HOLD, engine), 0)
    assert out == "fine\n"


FORK_IN_A_HANDLER = """
import os, sys, warnings
import hydrogen
from support import Client, Recorder, recorder

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
engine, how = sys.argv[1:]

def received(socket, data):
    if data == b"fork":
        child = os.fork()
        if child == 0:
            assert socket.send(b"from the child") is False
            if how == "os._exit":
                os._exit(0)
            return  # into an engine that is the parent's
        assert os.waitpid(child, 0)[1] == 0
    socket.send(data)

handler = recorder(data_received=received)
server = hydrogen.serve(handler, port=0, engine=engine, max_threads=2)
clients = [Client(server.address) for _ in range(3)]
for client in clients:
    client.echo(b"before")
for client in clients:
    client.echo(b"fork")
for client in clients:
    client.echo(b"after")
    client.close()
handler.wait_removed(3)
server.stop()
print("fine")
"""


@pytest.mark.clause("P4")
@pytest.mark.parametrize("how", ["os._exit", "return"])
def test_f28_a_handler_may_fork(engine, how):
    out, _ = finish(child(FORK_IN_A_HANDLER, engine, how), 0)
    assert out == "fine\n"


SUBPROCESS = """
import subprocess, sys
import hydrogen
from support import Client

class Runs(hydrogen.Handler):
    def on_data_received(self, socket, data):
        command = ["sh", "-c", data.decode()]
        socket.send(subprocess.run(command, capture_output=True, close_fds=False).stdout)

server = hydrogen.serve(Runs(), port=0, engine=sys.argv[1], max_threads=2)
with server, Client(server.address) as client:
    client.send(b"grep SigBlk /proc/self/status; ls -l /proc/self/fd")
    client.finish()
    print(client.receive_until_end().decode())
"""


def test_f28_a_process_that_a_handler_starts_has_no_signal_blocked_and_none_of_the_server_s_fds(
    engine,
):
    out, _ = finish(child(SUBPROCESS, engine), 0)
    assert "SigBlk:\t0000000000000000" in out
    assert "socket" not in out
    assert "anon_inode" not in out


# ------------------------------------------------------------------------------------------- row 30


@pytest.mark.clause("S22")
def test_f30_a_port_in_use_is_a_clear_error_at_the_start_and_leaves_nothing_open(start, engine):
    server = start(Echo())
    fds, tasks = open_fds(), threads()
    for _ in range(3):
        with pytest.raises(OSError, match=f"127.0.0.1 port {server.address[1]}.*in use") as raised:
            hydrogen.serve(Echo(), port=server.address[1], engine=engine)
        assert raised.value.errno == errno.EADDRINUSE
    assert open_fds() == fds
    wait_until(lambda: threads() <= tasks, "no thread is left")


@pytest.mark.parametrize("addr", ["192.0.2.1", "2001:db8::1"])
def test_f30_an_address_that_is_not_ours_is_a_clear_error(engine, addr):
    with pytest.raises(OSError, match=addr):
        hydrogen.serve(Echo(), addr=addr, port=0, engine=engine)


def test_f30_a_name_that_cannot_be_resolved_is_a_clear_error(engine):
    with pytest.raises(OSError, match=r"no\.such\.host\.invalid"):
        hydrogen.serve(Echo(), addr="no.such.host.invalid", port=0, engine=engine)


@pytest.mark.clause("C9")
def test_f30_a_path_with_a_live_socket_is_refused_and_the_socket_is_left_alone(
    start, connect, engine, tmp_path
):
    path = str(tmp_path / "socket")
    server = start(Echo(), path=path)
    fds, tasks = open_fds(), threads()
    with pytest.raises(OSError, match=path) as raised:
        hydrogen.serve(Echo(), path=path, engine=engine)
    assert raised.value.errno == errno.EADDRINUSE
    wait_until(lambda: threads() <= tasks, "no thread is left")
    wait_until(lambda: open_fds() == fds, "nothing is open, and the probe was served and is gone")
    connect(server).echo(b"still served")


@pytest.mark.clause("C9")
def test_f30_a_path_with_a_stale_socket_is_used_again(start, connect, tmp_path):
    path = str(tmp_path / "socket")
    with stdlib_socket.socket(stdlib_socket.AF_UNIX) as stale:
        stale.bind(path)
    connect(start(Echo(), path=path)).echo(b"x")


def test_f30_a_path_with_a_file_is_refused_and_the_file_is_left_alone(engine, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match="file"):
        hydrogen.serve(Echo(), path=str(path), engine=engine)
    assert path.read_text() == "precious"


def test_f30_a_socket_given_that_cannot_listen_is_a_clear_error_and_stays_the_caller_s(engine):
    left, right = stdlib_socket.socketpair()
    with left, right:
        with pytest.raises(OSError, match=r"[Ii]nvalid|not supported"):
            hydrogen.serve(Echo(), sock=left, engine=engine)
        assert left.fileno() != -1


def test_f30_a_bad_config_is_an_error_at_construction(engine):
    fds = open_fds()
    for name, value in [
        ("port", -1),
        ("max_threads", 0),
        ("framing", 7),
        ("handoff", "lazy"),
        ("nonsense", 1),
    ]:
        with pytest.raises((TypeError, ValueError), match=name):
            hydrogen.serve(Echo(), engine=engine, **{name: value})
    assert open_fds() == fds


# ------------------------------------------------------------------------------------------- row 31


@pytest.mark.timeout(300)
def test_f31_five_hundred_starts_and_stops_under_traffic_leak_and_hang_nothing(engine):
    fds, tasks = open_fds(), threads()
    address = [None]
    done = threading.Event()
    answered = itertools.count()

    def traffic(seed):
        dice = random.Random(seed)
        while not done.is_set():
            client = None
            try:
                client = Client(address[0])
                for _ in range(dice.randrange(4)):
                    client.echo(b"x" * dice.choice((1, 100, 20_000)))
                    next(answered)
                if dice.random() < 0.5:
                    client.reset()
            except (OSError, AssertionError):
                continue  # stopped under our hands
            finally:
                if client is not None:
                    client.close()

    # An address of its own: in between the port may be another test's.
    options = {
        "addr": "127.0.0.87",
        "engine": engine,
        "max_threads": 2,
        "pre_allocated": 4,
        "reuse_port": True,
    }
    first = hydrogen.serve(Echo(), port=0, **options)
    address[0] = first.address
    with running(*(lambda seed=seed: traffic(seed) for seed in range(3))):
        try:
            server = first
            for number in range(500):
                wait_until(lambda server=server: server.stats().accepted, "there is traffic")
                report = server.stop(PATIENCE)
                assert (report.aborted, report.abandoned) == (0, 0), number
                stats = server.stats()
                assert (stats.connections, stats.accepted) == (0, stats.removed), number
                server = hydrogen.serve(Echo(), port=first.address[1], **options)
        finally:
            done.set()
            server.stop(PATIENCE)
    assert next(answered) > 100
    wait_until(lambda: open_fds() == fds, "the fds of before")
    wait_until(lambda: len(threads()) <= len(tasks), "the threads of before")


def test_f31_a_stop_at_any_moment_of_a_start_s_first_connections_hangs_nothing(engine):
    """Connections are in every state between the listener's queue and their first callback."""
    for number in range(50):
        handler = recorder(connected=None, data_received=echo, new_connection=None)
        server = hydrogen.serve(handler, port=0, engine=engine, max_threads=2, pre_allocated=0)
        clients = [Client(server.address) for _ in range(5)]
        for client in clients[: number % 6]:
            client.send(b"x")
        with running(lambda server=server: server.stop(PATIENCE)):
            for client in clients:
                client.at_end()
                client.close()
        assert server.stats().connections == 0
        handler.check()
        assert (
            len(handler.of("new_connection"))
            <= len(handler.of("connection_removed"))
            == server.stats().accepted
        )


@pytest.mark.parametrize("number", [signal.SIGUSR1])
def test_f31_signals_that_python_handles_do_not_end_a_worker_s_wait(start, connect, number):
    """EINTR from a signal, again and again, while clients are served."""
    server = start(Echo())
    client = connect(server)
    seen = []
    earlier = signal.signal(number, lambda *_: seen.append(1))
    try:
        for _ in range(50):
            os.kill(os.getpid(), number)
            client.echo(b"x")
    finally:
        signal.signal(number, earlier)
    assert seen
