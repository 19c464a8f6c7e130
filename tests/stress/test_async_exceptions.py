"""Exceptions that somebody sets in a worker from outside, as libraries of timeouts do.

They come between any two bytecodes, in a callback and in the engine around it. Each may cost the
connection that the worker has; never the worker, another connection, or the server.
HYDROGEN_STRESS_MESSAGES: see test_threads.py.
"""

import contextlib
import ctypes
import logging
import random
import sys
import threading

import certificates
import pytest
from stress.crowd import Crowd, beside
from stress.test_builders import CountedBuilder, counted
from stress.test_threads import MESSAGES
from stress.test_tls import TlsCrowd
from support import PATIENCE, Client, running, simple, wait_until

import hydrogen

# What is interrupted where nothing can be raised, in a finalizer or in linecache, is no news.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WORKERS = 3
SHOTS = max(300, MESSAGES // 40)


class Interrupted(Exception):
    """What is set in workers."""


class Blocks(hydrogen.Handler):
    """Echoes; one that says "hold" is held until all that are to be held are."""

    def __init__(self):
        self.all_held = threading.Barrier(WORKERS)
        self.removed = []

    def on_connected(self, socket):
        socket.user_data = [0]

    def on_data_received(self, socket, data):
        if data == b"hold":
            self.all_held.wait(PATIENCE)
        # A callback that takes a while, in Python.
        socket.user_data[0] += sum(range(50)) > 0
        socket.send(data)

    def on_disconnected(self, socket, err):
        self.removed.append(err)


class CutOff(TlsCrowd):
    """What comes amid the end of a connection may cost its close_notify."""

    def member(self, address):
        member = super().member(address)
        member.sock.may_be_cut = True
        return member


def set_in(thread, error):
    """Set `error` in `thread`; false when it was gone."""
    name = ctypes.c_ulong(thread.ident)
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(name, ctypes.py_object(error))


def workers_of(before):
    """The workers of the server that was started after `before`."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread.name.startswith("hydrogen-worker")
    ]


@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
@pytest.mark.parametrize("kind", ["raw", "builder", "tls"])
def test_an_exception_set_in_a_worker_at_any_moment_costs_at_most_its_connection(
    start, handoff, kind, monkeypatch
):
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    # An exception between the two lines in which `logging` takes a lock and sees to its release
    # leaves it locked for ever, and everybody who logs waits.
    monkeypatch.setattr(logging.getLogger("hydrogen"), "disabled", True)
    handler, before = Blocks(), threading.enumerate()
    options = {"ssl": certificates.server_context()} if kind == "tls" else {}
    framing = CountedBuilder if kind == "builder" else hydrogen.SimpleFrameBuilder
    server = start(
        handler, max_threads=WORKERS, handoff=handoff, framing=framing, read_budget=4096, **options
    )
    workers = workers_of(before)
    assert len(workers) == WORKERS
    done, dice = threading.Event(), random.Random(1)
    crowd = (CutOff if kind == "tls" else Crowd)(8, 1)
    crowd.done = done

    def shoot():
        try:
            for _ in range(SHOTS):
                error = dice.choice([Interrupted, Interrupted, SystemExit, KeyboardInterrupt])
                assert set_in(dice.choice(workers), error), "a worker has died"
                done.wait(dice.random() / 500)
        finally:
            done.set()

    def load():
        if kind != "builder":
            crowd.run(server.address, 10**9)
            return
        while not done.is_set():
            with contextlib.suppress(OSError, AssertionError), Client(server.address) as client:
                for number in range(100):
                    client.echo(counted(b"%d" % number))

    beside(done, load, *([shoot] if kind != "builder" else [shoot, load]))
    wait_until(lambda: server.stats().connections == 0, "all are removed")
    encode = counted if kind == "builder" else simple
    for _ in range(WORKERS):  # what was set last may still be pending, in each of them
        with contextlib.suppress(OSError, AssertionError):
            hold_all(server, handler, encode, kind)
            break
        handler.all_held = threading.Barrier(WORKERS)  # the lock of the other one may be lost too
    else:
        hold_all(server, handler, encode, kind)
    assert all(worker.is_alive() for worker in workers)


def hold_all(server, handler, encode, kind):
    """All workers can be held at once: there are as many as ever, and each of them serves."""

    def ask():
        with Client(server.address) as client:
            if kind == "tls":
                context = certificates.client_context()
                with context.wrap_socket(client.sock, server_hostname="localhost") as tls:
                    tls.sendall(encode(b"hold"))
                    assert tls.recv(100) == encode(b"hold")
            else:
                client.echo(encode(b"hold"))

    def hold():
        try:
            ask()
        except BaseException:
            handler.all_held.abort()  # the others need not wait
            raise

    with running(*[hold] * WORKERS, patience=2 * PATIENCE):
        pass
