"""`begin` and the command line, where the signals of the process are not as one expects."""

import signal
import subprocess
import sys

import pytest
from support import Client, child, finish

import hydrogen

IGNORED = """
import os, signal, socket, sys, threading
import hydrogen

class Serves(hydrogen.Handler):
    def on_server_created(self, fd):
        with socket.socket(fileno=os.dup(fd)) as listener:
            self.port = listener.getsockname()[1]
        threading.Thread(target=self.tell, daemon=True).start()

    def tell(self):
        while not self.server.ready:
            self.server.wait(0.001)
        print(self.port, flush=True)

    def on_data_received(self, socket, data):
        socket.send(data)

assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
report = hydrogen.begin(Serves(), hydrogen.Config(port=0, max_threads=2))
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
print(report.closed)
"""


def ignoring(code):
    """The program, as a shell runs it that has ignored SIGINT for a background job."""
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    return f"{ignore}; os.execv(sys.executable, [sys.executable, '-c', {code!r}])"


@pytest.mark.clause("S58", "S2")
def test_a_sigint_that_was_ignored_before_begin_stays_ignored(engine):
    process = child(ignoring(IGNORED), HYDROGEN_ENGINE=engine)
    with Client(("127.0.0.1", int(process.stdout.readline()))) as client:
        client.echo(b"x")
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            client.echo(b"still served")
        process.send_signal(signal.SIGTERM)
        assert client.receive_until_end() == b""
    out, err = finish(process, 0)
    assert (out, err) == ("1\n", "")


@pytest.mark.clause("S58", "L1")
def test_a_background_job_of_a_shell_is_not_ended_by_the_ctrl_c_of_another_one(engine):
    """A shell without job control ignores SIGINT for what it starts with `&` (POSIX, 2.11)."""
    command = f"{sys.executable} -m hydrogen echo --port 0 --engine {engine} & echo $!; wait $!"
    process = child(f"import os; os.execv('/bin/sh', ['/bin/sh', '-c', {command!r}])")
    lines = [process.stdout.readline() for _ in range(2)]
    (pid,) = [int(line) for line in lines if line.strip().isdigit()]
    (listening,) = [line for line in lines if line.startswith("listening on ")]
    with Client(("127.0.0.1", int(listening.rpartition(":")[2]))) as client:
        client.echo(b"x")
        subprocess.run(["/bin/kill", "-INT", str(pid)], check=True)
        client.echo(b"still served")
        subprocess.run(["/bin/kill", "-TERM", str(pid)], check=True)
        assert client.receive_until_end() == b""
    out, err = finish(process, 0)
    assert (out, err) == ("", "")


FOREIGN = """
import ctypes, os, signal, sys
import hydrogen
from support import Echo

libc = ctypes.CDLL(None)
libc.signal.restype = ctypes.c_void_p
libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
harmless = ctypes.cast(libc.abs, ctypes.c_void_p).value  # takes an int, as a handler does
libc.signal(signal.SIGTERM, harmless)

known = signal.getsignal
if sys.argv[1] == "unknown":
    # What an interpreter says that was started with that handler in place, as an embedded one is,
    # and only once.
    signal.getsignal = lambda number: None if number == signal.SIGTERM else known(number)

class Stops(Echo):
    def on_server_created(self, fd):
        os.kill(os.getpid(), signal.SIGTERM)

fds = os.listdir("/proc/self/fd")
interrupt = known(signal.SIGINT)
for _ in range(2):
    print(hydrogen.begin(Stops(), hydrogen.Config(port=0, max_threads=2)).closed)
    assert os.listdir("/proc/self/fd") == fds
    assert known(signal.SIGINT) is interrupt
    assert known(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
    signal.getsignal = known
    os.kill(os.getpid(), signal.SIGTERM)  # the C handler's again
print(libc.signal(signal.SIGTERM, None) == harmless)
"""


@pytest.mark.clause("S58", "S4")
@pytest.mark.parametrize("how", ["unknown", "installed since"])
def test_a_handler_that_c_code_had_installed_is_restored_each_time(engine, how):
    out, err = finish(child(FOREIGN, how, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == ("0\n0\nTrue\n", "")


@pytest.mark.clause("S58", "S4")
@pytest.mark.parametrize("how", ["unknown", "installed since"])
def test_without_ctypes_the_default_takes_the_place_of_a_handler_of_c_code(engine, how):
    code = FOREIGN.replace("fds = ", "sys.modules['ctypes'] = None\nfds = ").replace(
        "os.kill(os.getpid(), signal.SIGTERM)  #", "#"
    )
    out, err = finish(child(code, how, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == ("0\n0\nFalse\n", "")


FLAGS = """
import ctypes, os, signal
import hydrogen
from support import Echo

class Action(ctypes.Structure):
    # A struct sigaction of Linux, and room behind it.
    _fields_ = [
        ("handler", ctypes.c_void_p), ("mask", ctypes.c_char * 128),
        ("flags", ctypes.c_int), ("more", ctypes.c_char * 64),
    ]

def actions():
    found = [Action(), Action()]
    for number, action in zip((signal.SIGINT, signal.SIGTERM), found, strict=True):
        ctypes.CDLL(None).sigaction(number, None, ctypes.byref(action))
    return [(action.handler, action.flags) for action in found]

class Stops(Echo):
    def on_server_created(self, fd):
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, print)
plain = actions()
signal.siginterrupt(signal.SIGTERM, False)
restarting = actions()
assert plain != restarting
print(hydrogen.begin(Stops(), hydrogen.Config(port=0, max_threads=2)).closed)
assert actions() == restarting
assert signal.getsignal(signal.SIGTERM) is print
"""


@pytest.mark.clause("S58", "S4")
def test_a_handler_is_restored_with_its_flags(engine):
    """With siginterrupt(False) calls of the kernel that it interrupts go on."""
    out, err = finish(child(FLAGS, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == ("0\n", "")


SUB = """
import os, sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

code = '''
import ctypes, os  # ctypes: see FORKS
import hydrogen
class Echo(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)
fds = os.listdir("/proc/self/fd")
try:
    hydrogen.begin(Echo(), hydrogen.Config(port=0, max_threads=2))
except RuntimeError as error:
    print(error, flush=True)
print(os.listdir("/proc/self/fd") == fds, flush=True)
'''
sub = interpreters.create() if sys.version_info < (3, 13) else interpreters.create("legacy")
interpreters.run_string(sub, code)
interpreters.destroy(sub)
"""


@pytest.mark.clause("S58")
def test_begin_in_a_subinterpreter_says_that_it_cannot_handle_signals(engine):
    out, err = finish(child(SUB, HYDROGEN_ENGINE=engine), 0)
    assert "main interpreter" in out
    assert out.endswith("\nTrue\n")
    assert err == ""


FORKS = """
# ctypes, which `begin` imports: libffi may open its own file, and keeps it open
import ctypes, os, signal, sys, threading, warnings

how = sys.argv[1]
if how == "at once":  # before any hook of ours
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
import hydrogen
from support import Client

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
ours, interrupt, fds = os.getpid(), signal.getsignal(signal.SIGINT), os.listdir("/proc/self/fd")

class Forks(hydrogen.Handler):
    client = None

    def on_server_created(self, fd):
        threading.Thread(target=self.serve, daemon=True).start()
        if how == "in on_server_created":
            fork()
        elif how == "in a signal handler before the wait":
            self.server.wait = self.wait

    def serve(self):
        while not self.server.ready:
            self.server.wait(0.001)
        if how == "in a signal handler":
            os.kill(os.getpid(), signal.SIGUSR1)
        elif how != "in a signal handler before the wait" and how != "in on_server_created":
            self.client = Client(self.server.address)
            self.client.send(b"x")

    def on_data_received(self, socket, data):
        fork()

    # Server's, from when on_server_created is called; 0: as begin looks whether to wait.
    def wait(self, timeout):
        has_stopped = hydrogen.Server.wait(self.server, timeout)
        if timeout == 0 and not has_stopped and os.getpid() == ours:
            os.kill(os.getpid(), signal.SIGUSR1)
        return has_stopped

def fork(*_):
    pid = os.fork()
    if pid:
        print(how, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        handler.server.stop()
    elif not how.startswith("in a signal handler") and how != "in on_server_created":
        end()

def end():
    # The child's.
    assert signal.getsignal(signal.SIGINT) is interrupt
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1
    if how != "at once":
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)

handler = Forks()
signal.signal(signal.SIGUSR1, fork)
try:
    report = hydrogen.begin(handler, hydrogen.Config(port=0, max_threads=2))
except RuntimeError:  # forked during the start
    assert os.getpid() != ours
if os.getpid() != ours:
    assert os.listdir("/proc/self/fd") == fds
    end()
if handler.client is not None:
    handler.client.close()
assert signal.getsignal(signal.SIGINT) is interrupt
"""


@pytest.mark.clause("S4", "P4")
@pytest.mark.parametrize(
    "how",
    [
        "in a callback",
        "at once",
        "in on_server_created",
        "in a signal handler",
        "in a signal handler before the wait",
    ],
)
def test_a_child_that_is_forked_in_begin_has_the_signals_that_were_there_before(engine, how):
    out, err = finish(child(FORKS, how, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == (f"{how} {-signal.SIGTERM}\n", "")


EARLY = """
import os, signal, sys
import hydrogen
from support import Echo

class Early(Echo):
    def on_server_created(self, fd):
        for number in map(int, sys.argv[1].split()):
            os.kill(os.getpid(), number)

before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
print(hydrogen.begin(Early(), hydrogen.Config(port=0, max_threads=2, stop_timeout=3600)))
assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
"""


@pytest.mark.clause("S54", "S2", "S3")
@pytest.mark.parametrize("numbers", ["2", "15", "15 2", "2 2 2"])
def test_signals_during_the_start_stop_it(engine, numbers):
    out, err = finish(child(EARLY, numbers, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == (f"{hydrogen.StopReport(0, 0, 0, 0, 0, 0.0)}\n", "")


FULL = """
import os, signal, sys
import hydrogen
from support import Echo

signal.signal(signal.SIGUSR1, lambda *_: None)

def fill_and_stop(*_):
    for _ in range(70_000):  # a byte each, and it holds some hundreds
        signal.raise_signal(signal.SIGUSR1)
    handler.server.stop()

class Stops(Echo):
    def on_server_created(self, fd):
        if sys.argv[1] == "on_server_created":
            fill_and_stop()

def started(server):
    if sys.argv[1] == "a signal handler":
        signal.raise_signal(signal.SIGUSR2)
    elif sys.argv[1] == "started":
        fill_and_stop()

signal.signal(signal.SIGUSR2, fill_and_stop)
handler = Stops()
print(hydrogen.begin(handler, port=0, max_threads=2, on_started=started).closed)
assert signal.set_wakeup_fd(-1) == -1
"""


@pytest.mark.clause("S58", "S2")
@pytest.mark.parametrize("where", ["on_server_created", "a signal handler", "started"])
def test_a_stop_ends_while_the_main_thread_reads_none_of_the_signals_that_fill_its_socket(
    engine, where
):
    out, err = finish(child(FULL, where, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == ("0\n", "")


WAKEUP = """
import ctypes, os, signal, socket, sys  # ctypes: see FORKS
import hydrogen
from support import Echo, open_fds

class Stops(Echo):
    def on_server_created(self, fd):
        if sys.argv[1] == "closed":
            mine.close()
        elif sys.argv[1] == "blocking":
            mine.setblocking(True)
        os.kill(os.getpid(), signal.SIGTERM)

mine, other = socket.socketpair()
mine.setblocking(False)
signal.set_wakeup_fd(mine.fileno())
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
wakeup, fds = mine.fileno(), open_fds()
if sys.argv[1] == "closed":
    del fds[wakeup]
print(hydrogen.begin(Stops(), hydrogen.Config(port=0, max_threads=2)).closed)
assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
assert open_fds() == fds
assert signal.set_wakeup_fd(-1) == (wakeup if sys.argv[1] == "kept" else -1)
mine.close()
other.close()
"""


@pytest.mark.clause("S58", "S4")
@pytest.mark.parametrize("how", ["kept", "closed", "blocking"])
def test_the_wakeup_fd_of_before_is_restored_if_it_can_be(engine, how):
    """And if not, the rest is."""
    out, err = finish(child(WAKEUP, how, HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == ("0\n", "")


RAISING = """
import logging, os, signal, socket, sys
import hydrogen
from reentry import signalled
from support import Echo, open_fds, threads, wait_until

class Alarm(Exception):
    pass

def alarm():
    raise Alarm

def before():
    pass

logging.getLogger("hydrogen").disabled = True
sys.stderr = open(os.devnull, "w")  # one that comes within a line of the log is written there
ours, theirs = socket.socketpair()
ours.setblocking(False)
signal.signal(signal.SIGTERM, before)

config = hydrogen.Config(port=0, max_threads=1)

def stop_soon(server):
    server.call_later(0, server.stop)

def once(number):
    try:
        begin = lambda: hydrogen.begin(Echo(), config, on_started=stop_soon)
        return signalled(begin, number, alarm)
    except Alarm:
        return True

once(10_000)  # what is imported, or started by a sanitizer, the first time
fds, tasks = open_fds(), len(threads())
number, came = 0, True
while came:
    signal.set_wakeup_fd(ours.fileno())
    came = once(number)
    assert signal.set_wakeup_fd(-1) == ours.fileno(), number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, number
    assert signal.getsignal(signal.SIGTERM) is before, number
    is_over = lambda: open_fds() == fds and len(threads()) <= tasks
    wait_until(is_over, f"nothing is left at moment {number}")
    number += 1
print("right" if number > 50 else number)
"""


@pytest.mark.clause("S58")
def test_when_a_signal_handler_raises_at_any_moment_of_begin_the_signals_are_as_before(engine):
    process = child(RAISING, HYDROGEN_ENGINE=engine)
    out, _ = finish(process, 0)
    assert out == "right\n"


PATIENT = """
import socket, sys, threading
import hydrogen
from support import Echo

class Server(hydrogen.Server):
    def wait(self, timeout=None):
        if not stopping:
            stopping.append(threading.Thread(target=self.stop))
            stopping[0].start()
            return False
        return super().wait(timeout)

stopping = []
socket.setdefaulttimeout(float(sys.argv[1]))
hydrogen.serving.Server = Server
print(hydrogen.begin(Echo(), port=0).aborted)
"""


@pytest.mark.clause("S58", "S2")
@pytest.mark.parametrize("seconds", [0, 1e-6])
def test_begin_waits_as_long_as_the_server_runs_whatever_the_default_timeout_of_sockets_is(
    engine, seconds
):
    out, err = finish(child(PATIENT, str(seconds), HYDROGEN_ENGINE=engine), 0)
    assert (out, err) == ("0\n", "")
