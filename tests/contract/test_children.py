"""Child processes that callbacks start, by each way there is: they keep neither the port nor a
connection, they touch neither, and their exit status reaches who waits for them.
"""

import sys

import pytest
from support import child, finish

CHILDREN = """
import multiprocessing, os, subprocess, sys, threading, warnings
import hydrogen
from support import Client, recorder, running, wait_event

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
engine, how = sys.argv[1:]
go_reader, go_writer = os.pipe()  # a child lives until the other end is closed
os.set_inheritable(go_reader, True)
statuses = []
forked = threading.Semaphore(0)

def until_told():
    os.close(go_writer)
    os.read(go_reader, 1)

def begin():
    # Start a child that lives until it is told to go; what waits for its status.
    if how == "subprocess":
        code = f"import os, sys; os.read({go_reader}, 1); sys.exit(7)"
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[go_reader])
        return process.wait
    if how == "multiprocessing":
        context = multiprocessing.get_context("fork")
        process = context.Process(target=lambda: (until_told(), os._exit(7)))
        process.start()
        return lambda: (process.join(), process.exitcode)[1]
    pid = os.fork()
    if pid == 0:
        until_told()
        if how == "os._exit":
            os._exit(7)
        return None  # the child goes on as if it were the server
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def received(socket, data):
    if data != b"fork":
        socket.send(data)
        return
    wait = begin()
    if wait is None:
        # In the child nothing acts any more; the process ends by its own will.
        assert socket.send(b"from the child") is False
        assert socket.server.stop() == hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)
        assert not socket.server.ready and socket.server.wait(1) and socket.server.connections == []
        os._exit(7)
    forked.release()
    statuses.append(wait())

handler = recorder(data_received=received)
server = hydrogen.serve(handler, addr="127.0.0.85", port=0, engine=engine, max_threads=6)
bystander = Client(server.address)
clients = [Client(server.address) for _ in range(4)]
for client in [bystander, *clients]:
    client.echo(b"before")
for client in clients:
    client.send(b"fork")
    assert forked.acquire(timeout=30)
bystander.echo(b"served")
closed = Client(server.address)
closed.echo(b"x")
bystander.finish()
assert bystander.at_end() == "end"  # though the children live, which had a copy of its socket
bystander.close()
stop = lambda: server.stop(20)
with running(stop):
    while server.ready:
        server.wait(0.001)
    for _ in range(3000):
        try:
            Client(server.address).close()
        except ConnectionRefusedError:
            break
        server.wait(0.01)
    else:
        raise AssertionError("the port is kept")
    assert closed.at_end() == "end"
    closed.close()
    os.close(go_writer)
    for client in clients:
        client.at_end()
        client.close()
print(statuses)
"""


@pytest.mark.slow
@pytest.mark.clause("S61", "P4")
@pytest.mark.parametrize("how", ["subprocess", "multiprocessing", "os._exit", "os.fork"])
def test_children_that_callbacks_start_keep_nothing_and_their_status_is_told(engine, how):
    out, err = finish(child(CHILDREN, engine, how), 0)
    assert (out, err) == ("[7, 7, 7, 7]\n", "")


INTERRUPTED = """
import os, sys, warnings
import hydrogen
from reentry import signalled
from support import Client, Echo

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
# The interpreter ignores what is raised while a thread forks, but says so.
sys.unraisablehook = lambda unraisable: None

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def interrupt():
    raise KeyboardInterrupt

came, number = True, 0
while came:
    with hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=2) as server:
        with Client(server.address) as client:
            client.echo(b"before")
        came = signalled(fork, number, interrupt)
        with Client(server.address) as client:
            client.echo(b"after")
    number += 1
"""


@pytest.mark.clause("P4", "K18")
def test_a_signal_handler_that_raises_while_its_thread_forks_keeps_nobody_from_being_served(engine):
    assert finish(child(INTERRUPTED, engine), 0) == ("", "")


INTERRUPTED_CHILD = """
import os, signal, sys, threading, warnings

def profile(frame, event, argument):
    is_ours = frame.f_code.co_filename.startswith(ours)
    if event in ("call", "c_return") and is_ours and next(moments) == 0:
        raise KeyboardInterrupt  # and the profile function is gone

# Behind the hook of threading, before ours.
os.register_at_fork(after_in_child=lambda: sys.setprofile(profile))
import hydrogen
from support import Client, Echo, open_fds

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
sys.unraisablehook = lambda unraisable: None
ours = os.path.dirname(hydrogen.__file__)

def serve():
    return hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=2)

def in_child():
    came = sys.getprofile() is None
    sys.setprofile(None)
    signal.alarm(60)  # it must not outlive the test
    assert not held & open_fds().keys()
    server.stop()
    with serve() as other, Client(other.address) as client:
        client.echo(b"again")
    os._exit(7 if came else 8)

number, status = 0, 7
while status == 7:
    before = open_fds().keys()
    with serve() as server:
        with Client(server.address) as client:
            client.echo(b"before")
            held = open_fds().keys() - before - {client.sock.fileno()}
            moments = iter(range(number, -sys.maxsize, -1))
            pid = os.fork()
            if pid == 0:
                in_child()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    number += 1
print(status)
"""


@pytest.mark.clause("P4", "K18")
def test_a_signal_handler_that_raises_in_the_child_as_it_begins_leaves_nothing_of_the_parents_there(
    engine,
):
    assert finish(child(INTERRUPTED_CHILD, engine), 0) == ("8\n", "")


ANOTHER_HANDLER = """
import ctypes, os, sys, threading, warnings

@ctypes.CFUNCTYPE(None)
def prepare():  # takes the GIL, as the handler of grpc does, and gives it away
    if armed:
        inside.set()
        settled(lambda: len(threads()))

armed, inside = False, threading.Event()
libc = ctypes.CDLL(None)
register = getattr(libc, "__register_atfork", None) or libc.pthread_atfork
register(prepare, None, None, None)  # before ours, and so it runs behind it
import hydrogen
from support import Client, Echo, echo, recorder, running, settled, threads, wait_event

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def serve(handler):
    return hydrogen.serve(handler, port=0, engine=sys.argv[1], max_threads=2)

def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

ending, go_on = threading.Event(), threading.Event()

def removed(fd, error):
    ending.set()
    wait_event(go_on, "the fork has begun")

with serve(recorder(data_received=echo, connection_removed=removed)) as server:
    with Client(server.address) as client:
        client.echo(b"before")
    wait_event(ending, "the connection ends")
    armed = True
    with running(fork):
        wait_event(inside, "the handler of the fork")
        if sys.argv[2] == "start":
            with serve(Echo()) as other, Client(other.address) as client:
                client.echo(b"after")
        go_on.set()
"""


@pytest.mark.clause("P4", "K18")
# Since 3.13 CPython itself has nobody start a thread while a fork is prepared, and waits with the
# GIL for it to be over.
@pytest.mark.parametrize("what", ["start", "end"] if sys.version_info < (3, 13) else ["end"])
def test_a_fork_handler_of_another_library_that_takes_the_gil_holds_nobody_up(engine, what):
    """Who waited with the GIL for the fork to be over waited for a handler that waited for the
    GIL.
    """
    assert finish(child(ANOTHER_HANDLER, engine, what), 0) == ("", "")


EAGER = (
    ANOTHER_HANDLER[: ANOTHER_HANDLER.index("ending, go_on")]
    + """
import logging

logging.disable(logging.WARNING)  # that all workers are blocked may be written, or not

class Slow(hydrogen.Handler):
    def on_data_received(self, socket, data):
        if data == b"slow":
            entered.set()
            wait_event(inside, "the handler of the fork")
        socket.send(data)

entered = threading.Event()
options = {"port": 0, "engine": sys.argv[1], "max_threads": 1, "handoff": "eager"}
with hydrogen.serve(Slow(), **options) as server:
    with Client(server.address) as client, Client(server.address) as leaving:
        client.echo(b"before")
        leaving.echo(b"before")
        client.send(b"slow")
        wait_event(entered, "the callback runs")
        if sys.argv[2] == "end":
            leaving.reset()
        else:
            late = Client(server.address)
        armed = True
        fork()
        assert client.receive(4) == b"slow"
        client.echo(b"after")
        if sys.argv[2] == "accept":
            with late:
                late.echo(b"late")
"""
)


@pytest.mark.clause("P4", "K18")
@pytest.mark.parametrize("what", ["accept", "end"])
def test_such_a_handler_is_not_held_up_by_a_worker_that_polls_with_the_gil(engine, what):
    """In eager mode, after a callback: what is there to be accepted, or ends, waits for the next
    poll.
    """
    assert finish(child(EAGER, engine, what), 0) == ("", "")


STARTED_IN_A_HOOK = """
import os, signal, sys, threading, warnings  # threading: its hook comes first

def begin():
    signal.alarm(60)  # it must not outlive the test
    started.append(serve())
    if sys.argv[2] == "late" and sys.argv[1] == "python":
        from hydrogen._py import kernel

        kernel.FORK_PATIENCE = PATIENCE  # the accept thread is there until this has seen it
        client = Client(started[0].address)  # before the hook of the gate
        wait_until(comes_to_the_gate, "the accept thread waits for the fork to be over")
        client.close()

def comes_to_the_gate():
    callers = [frame.f_back for frame in sys._current_frames().values()]
    return any(caller is not None and caller.f_code.co_name == "lock" for caller in callers)

started = []
if sys.argv[2] == "early":
    os.register_at_fork(after_in_child=begin)
import hydrogen
from support import PATIENCE, Client, Echo, wait_until

if sys.argv[2] == "late":
    os.register_at_fork(after_in_child=begin)
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def serve():
    return hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=2)

with serve() as server, Client(server.address) as client:
    client.echo(b"before")
    pid = os.fork()
    if pid == 0:
        assert server.wait(0) and not started[0].wait(0)
        with started[0] as mine, Client(mine.address) as other:
            other.echo(b"x")
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    client.echo(b"after")
"""


@pytest.mark.clause("P4", "K18")
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_server_that_a_fork_hook_of_the_programs_starts_in_the_child_serves(engine, when):
    """Hooks run in the order in which they were registered: this one before some of ours, or
    all.
    """
    assert finish(child(STARTED_IN_A_HOOK, engine, when), 0) == ("7\n", "")


SERVED_IN_A_HOOK = """
import os, signal, sys, warnings
import hydrogen
from support import Client, Echo

def ask():
    if sys.argv[2] == "after_in_child":
        signal.alarm(60)  # it must not outlive the test
        servers.append(serve())
    if servers:
        with Client(servers[-1].address) as client:
            client.echo(b"within")

def serve():
    return hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=2)

servers = []
os.register_at_fork(**{sys.argv[2]: ask})
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
with serve() as server, Client(server.address) as client:
    client.echo(b"before")
    servers.append(server)
    pid = os.fork()
    if pid == 0:
        with servers[-1] if len(servers) > 1 else serve() as mine, Client(mine.address) as other:
            other.echo(b"x")
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    client.echo(b"after")
"""


@pytest.mark.clause("P4", "K18")
@pytest.mark.parametrize("when", ["before", "after_in_parent", "after_in_child"])
def test_a_fork_hook_of_the_programs_may_wait_for_a_server(engine, when):
    """It may run while ours hold what keeps a connection from coming or going meanwhile."""
    assert finish(child(SERVED_IN_A_HOOK, engine, when), 0) == ("7\n", "")


STOPPED_IN_A_HOOK = """
import os, sys, warnings
import hydrogen
from support import Client, Echo

def stop():
    for server in servers:
        for client in clients:
            client.close()
        report = server.stop()
        print(report.aborted, report.abandoned)

servers = []
os.register_at_fork(before=stop)
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=1)
clients = [Client(server.address) for _ in range(40)]
for client in clients:
    client.echo(b"before")
servers.append(server)
pid = os.fork()
if pid == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.clause("P4", "K18")
def test_a_fork_hook_of_the_programs_may_stop_a_server_of_many_connections(engine):
    """Who closes them waits for the fork once, not for each."""
    assert finish(child(STOPPED_IN_A_HOOK, engine), 0) == ("0 0\n7\n", "")


DURING_A_START = """
import os, signal, sys, threading, warnings
import hydrogen
from support import Client, Echo, running, wait_event

class Held:
    # An engine that is there, and is kept from starting.
    def __init__(self, engine):
        self.engine = engine
    def __getattr__(self, name):
        return getattr(self.engine, name)
    def start(self):
        made.set()
        wait_event(go_on, "the child has ended")
        self.engine.start()

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
made, go_on = threading.Event(), threading.Event()
server = hydrogen.Server(Echo(), hydrogen.Config(port=0, max_threads=2), engine=sys.argv[1])
make = server._make_engine
server._make_engine = lambda listeners: Held(make(listeners))
with running(server.start):
    wait_event(made, "the engine is made")
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # it must not outlive the test
        assert server.wait(0)
        server.stop()
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    go_on.set()
with server, Client(server.address) as client:
    client.echo(b"after")
"""


@pytest.mark.clause("P4", "K18")
def test_a_child_that_is_forked_while_a_server_starts_finds_it_stopped(engine):
    assert finish(child(DURING_A_START, engine), 0) == ("7\n", "")
