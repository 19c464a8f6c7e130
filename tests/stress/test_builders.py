"""Frame builders written by users, framings that differ from connection to connection, and
deadlines that race with what they wait for.

HYDROGEN_STRESS_MESSAGES: see test_threads.py.
"""

import itertools
import os
import random
import socket as sockets
import struct
import threading

import certificates
import pytest
from stress.crowd import beside
from stress.test_threads import MESSAGES
from support import (
    PATIENCE,
    Client,
    TlsClient,
    checksum32,
    length_frame,
    line,
    running,
    simple,
    wait_until,
    websocket,
)

import hydrogen

pytestmark = pytest.mark.timeout(900)


class Counted(hydrogen.Frame):
    """Two bytes of length, little-endian, and so many of payload."""

    def __init__(self, data):
        self.data = data

    def to_bytes(self):
        return struct.pack("<H", len(self.data)) + self.data

    def payload(self):
        return self.data


class CountedBuilder(hydrogen.FrameBuilder):
    """Python does the work. A payload that begins with "!" is a ProtocolError, one with "?" an
    error of the builder's.
    """

    def from_bytes(self, buf):
        if len(buf) < 2:
            return None
        (length,) = struct.unpack_from("<H", buf)
        if buf[2:3] == b"!":
            raise hydrogen.ProtocolError("a payload never begins with !")
        if buf[2:3] == b"?":
            raise KeyError("?")
        if len(buf) < 2 + length:
            return None
        frame = Counted(bytes(buf[2 : 2 + length]))
        del buf[: 2 + length]
        return frame

    def frame(self, payload):
        return Counted(bytes(payload))


def counted(payload):
    """`payload` as a `Counted` on the wire."""
    return struct.pack("<H", len(payload)) + payload


# What on_new_connection returns a stream for, how a client writes a message, and how it gets it
# back. None: the server's own framing.
FORMATS = (
    (None, simple, simple),
    (CountedBuilder(), counted, counted),
    (hydrogen.Checksum32FrameBuilder(), checksum32, checksum32),
    (
        hydrogen.LengthFrameBuilder(2, "little"),
        lambda data: length_frame(data, 2, "little"),
        lambda data: length_frame(data, 2, "little"),
    ),
    (
        hydrogen.LineFrameBuilder(b"\r\n"),
        lambda data: line(data, b"\r\n"),
        lambda data: line(data, b"\r\n"),
    ),
    (hydrogen.WebSocketFrameBuilder(), lambda data: websocket(data, mask=b"mask"), websocket),
)


def format_of(port):
    """The one of FORMATS that a client's port stands for. Linux gives `connect` ports of one parity
    as long as it has some.
    """
    return FORMATS[port // 2 % len(FORMATS)]


class Mixed(hydrogen.Handler):
    """Gives each connection the framing that its client's port stands for, echoes, and sometimes
    blocks or pauses.
    """

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.never = threading.Event()
        self.doomed = []
        self.removed = []

    def on_new_connection(self, fd):
        with sockets.socket(fileno=os.dup(fd)) as sock:
            builder = format_of(sock.getpeername()[1])[0]
        return None if builder is None else hydrogen.Plain(fd, builder)

    def on_data_received(self, socket, data):
        chance = self.dice.random()
        if chance < 0.02:
            self.never.wait(self.dice.random() / 200)
        elif chance < 0.04:
            socket.pause_reading()
            socket.drain(0.001)
            socket.resume_reading()
        if data.startswith(b"doomed"):
            self.doomed.append((socket, data))
        socket.send(data)

    def on_connection_removed(self, fd, err):
        self.removed.append(err)


@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
def test_each_connection_keeps_to_its_framing_whatever_all_threads_do_at_once(
    start, handoff, error_log
):
    handler = Mixed(1)
    server = start(
        handler,
        framing=hydrogen.SimpleFrameBuilder,
        handoff=handoff,
        max_threads=4,
        pre_allocated=2,
        read_budget=4096,
        write_buffer_limits=(2000, 8000),
    )
    done = threading.Event()
    blamed = itertools.count()
    refused = itertools.count()

    def meddle():
        dice = random.Random(2)
        while not done.wait(0.001):
            for socket, name in list(handler.doomed):
                for _ in range(dice.randrange(4)):
                    socket.send(b"foreign " + name)
                dice.choice(
                    [socket.close, socket.abort, socket.pause_reading, socket.resume_reading]
                )()
                if not socket.is_open:
                    handler.doomed.remove((socket, name))
            _ = server.stats(), [other.pending for other in server.connections]

    def converse(seed):
        dice = random.Random(seed)
        for number in range(max(20, MESSAGES // 500)):
            with Client(server.address) as client:
                _, encode, echoed = format_of(client.name[1])
                messages = [
                    b"%d/%d/%d" % (seed, number, k) + b"." * dice.choice((0, 10, 3000))
                    for k in range(dice.randrange(1, 30))
                ]
                wire = b"".join(map(encode, messages))
                while wire:  # in pieces that are no frames
                    size = dice.choice((1, 7, 1000, 100_000))
                    client.send(wire[:size])
                    wire = wire[size:]
                expected = b"".join(map(echoed, messages))
                assert client.receive(len(expected)) == expected
                if encode is counted and dice.random() < 0.5:
                    bad = dice.choice((b"!", b"?"))
                    next(refused if bad == b"!" else blamed)
                    client.send(counted(bad))
                    client.finish()
                    assert client.receive_until_end() == b""
                elif dice.random() < 0.5:
                    name = b"doomed %d/%d" % (seed, number)
                    client.send(encode(name))
                    try:
                        rest = client.receive_until_end()
                    except ConnectionResetError:
                        continue
                    first, more = echoed(name), echoed(b"foreign " + name)
                    # Who closed it may have had it before it was echoed.
                    assert rest.replace(more, b"") in (first, b""), (
                        f"{rest[:100]!r} came to {name!r}"
                    )

    beside(done, meddle, *(lambda seed=seed: converse(seed) for seed in range(3)))
    wait_until(lambda: server.stats().connections == 0, "all are removed")
    stats = server.stats()
    assert len(handler.removed) == stats.accepted == stats.removed
    assert stats.queued_bytes == 0
    assert sum(type(err) is hydrogen.ProtocolError for err in handler.removed) == next(refused)
    faults = [err for err in handler.removed if type(err) is hydrogen.HandlerError]
    assert len(faults) == next(blamed)
    # ten a second, and how many more there were
    assert min(len(faults), 10) <= len(error_log()) <= len(faults)
    assert all(type(err.__cause__) is KeyError for err in faults)


@pytest.mark.parametrize("kind", ["built-in", "builder", "tls"])
def test_the_deadline_of_a_frame_races_with_its_end_and_each_connection_is_removed_once(
    start, kind
):
    """About half of the frames are finished in time; some connections are paused and resumed
    meanwhile, or closed.
    """

    class Punctual(hydrogen.Handler):
        """Echoes."""

        def __init__(self):
            self.removed = []

        def on_data_received(self, socket, data):
            socket.send(data)

        def on_connection_removed(self, fd, err):
            self.removed.append(err)

    handler = Punctual()
    options = {"ssl": certificates.server_context()} if kind == "tls" else {}
    server = start(
        handler,
        framing=CountedBuilder if kind == "builder" else hydrogen.SimpleFrameBuilder,
        max_threads=3,
        pre_allocated=2,
        frame_timeout=0.01,
        **options,
    )
    encode = counted if kind == "builder" else simple
    done = threading.Event()
    outcomes = []

    def meddle():
        dice = random.Random(3)
        while not done.wait(0.002):
            for socket in server.connections:
                if dice.random() < 0.3:
                    socket.pause_reading()
                    socket.resume_reading()

    def visit(seed):
        dice = random.Random(seed)
        never = threading.Event()
        for number in range(max(20, MESSAGES // 400)):
            data = b"%d/%d" % (seed, number)
            frame = encode(data)
            with Client(server.address) as client:
                peer = (
                    TlsClient(client, certificates.client_context()).handshake()
                    if kind == "tls"
                    else client
                )
                try:
                    peer.echo(frame)  # nothing is begun but this
                    peer.send(frame + frame[:3])
                    assert peer.receive(len(frame)) == frame
                    never.wait(dice.random() / 50)
                    peer.send(frame[3:])
                    assert peer.receive(len(frame)) == frame
                    outcomes.append("in time")
                except OSError:  # reset
                    outcomes.append("late")

    def all_visit():
        try:
            with running(*(lambda seed=seed: visit(seed) for seed in range(3)), patience=800):
                pass
        finally:
            done.set()

    with running(all_visit, meddle, patience=800):
        pass
    wait_until(lambda: server.stats().connections == 0, "all are removed", PATIENCE)
    stats = server.stats()
    assert len(handler.removed) == stats.accepted == len(outcomes)
    assert (
        sum(type(err) is hydrogen.ConnectionTimeout for err in handler.removed)
        == stats.removed_timeout
        == outcomes.count("late")
    )
    assert stats.queued_bytes == 0
