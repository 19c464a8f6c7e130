"""Processes that end at a random moment, with traffic on and handlers blocked: with the right
status; none hangs or crashes.

HYDROGEN_EXITS is how many, on each engine: 24 by default, 250 by `make exits`. What a process did
hangs on its number alone, but for time.
"""

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import child, finish

EXITS = int(os.environ.get("HYDROGEN_EXITS") or 24)
AT_ONCE = 4

pytestmark = pytest.mark.timeout(900)

ENDS = """
import logging, os, random, signal, socket as stdlib_socket, sys, threading
import hydrogen

logging.getLogger("hydrogen").setLevel("ERROR")  # that all workers are blocked is no news here

engine, how, seed = sys.argv[1:]
dice = random.Random(int(seed))
never = threading.Event()
bound = threading.Event()

class Restless(hydrogen.Handler):
    def on_server_created(self, fd):
        with stdlib_socket.socket(fileno=os.dup(fd)) as listener:
            self.address = listener.getsockname()
        bound.set()

    def on_data_received(self, socket, data):
        if data.startswith(b"briefly"):
            never.wait(dice.random() / 50)
        elif data.startswith(b"for ever"):
            never.wait()
        socket.send(data * dice.choice([1, 1, 1, 1000]))

def talk(seed):
    dice = random.Random(seed)
    bound.wait()
    while True:
        try:
            with stdlib_socket.socket() as client:
                # Not by create_connection, which looks a codec up: without a GIL, CPython 3.13
                # may suspend a thread in there, with a lock, when the process exits.
                client.connect(handler.address)
                for _ in range(dice.randrange(1, 200)):
                    last = b"for ever" if seed % 4 == 1 else b"echo"
                    client.sendall(dice.choice([b"echo", b"echo", b"echo", b"briefly", last]))
                    if dice.random() < 0.9:
                        client.recv(4096)
        except OSError:
            pass

handler = Restless()
for k in range(4):
    threading.Thread(target=talk, args=(int(seed) + k,), daemon=True).start()
config = hydrogen.Config("127.0.0.1", 0, 3, 8, stop_timeout=dice.choice([0.0, 0.05, 0.5]))
if how == "signal":
    # What `begin` restores, should the second one come late.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell = lambda: bound.wait() and print("serves", flush=True)
    threading.Thread(target=tell, daemon=True).start()
    report = hydrogen.begin(handler, config)
    print("full" if report.aborted == report.abandoned == 0 else "not full", flush=True)
    sys.exit(0 if report.aborted == report.abandoned == 0 else 1)
server = hydrogen.Server(handler, config, engine=engine)
server.start()
threading.Event().wait(dice.random() / 10)
if how == "stop":
    server.stop()
"""


def end(engine, number):
    """One process: by SIGTERM, perhaps twice, by the end of main while it serves, or after a
    stop.
    """
    dice = random.Random(number)
    how = ("signal", "signal", "exit", "stop")[number % 4]
    process = child(ENDS, engine, how, str(number), HYDROGEN_ENGINE=engine)
    moment = threading.Event()
    if how != "signal":
        out, err = finish(process, 0)
        assert (out, err) == ("", ""), (number, out, err)
        return
    assert process.stdout.readline() == "serves\n", number
    for _ in range(dice.choice([1, 1, 2])):
        moment.wait(dice.random() / 10)
        process.send_signal(signal.SIGTERM)
    out, err = finish(process, None)
    assert err == "", (number, err)
    assert (process.returncode, out) in ((0, "full\n"), (1, "not full\n")), (
        number,
        process.returncode,
        out,
    )


@pytest.mark.clause("P3", "S2")
def test_processes_that_end_at_any_moment_end(engine):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(end, engine, number) for number in range(EXITS)]:
            done.result()
