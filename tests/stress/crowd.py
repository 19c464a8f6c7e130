"""A crowd of clients in one thread: each message says whose it is and which, each reply is checked, and who is thrown out comes back.

What is checked is that no client ever sees another's bytes, that its replies come in order and without a gap, and that what other threads
sent it was meant for it, and broadcasts of one thread come in order. How long anything takes is nobody's business here.
"""

from __future__ import annotations

import itertools
import random
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from support import family_of, running, simple

LONG = 800.0
"""Seconds that conversations may take: they are many, and sanitizers slow."""

_ids = itertools.count(1)


def beside(done: threading.Event, meddle: Callable[[], object], *conversations: Callable[[], object]) -> None:
    """Run `meddle`, which goes on until `done` is set, beside all `conversations`; setting it is done here, whatever becomes of them."""

    def all_converse() -> None:
        try:
            with running(*conversations, patience=LONG):
                pass
        finally:
            done.set()

    with running(all_converse, meddle, patience=LONG):
        pass


class Member:
    """One connection, for as long as it lives; the next one has another id."""

    def __init__(self, address: Any, depth: int, dice: random.Random) -> None:
        self.id = next(_ids)
        self.depth = depth
        self.sent = self.received = self.foreign = 0
        self.broadcast: dict[bytes, int] = {}  # the last one of each who broadcasts
        self.dice = dice
        self.out = bytearray()
        self.into = bytearray()
        self.sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        if dice.random() < 0.3:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that replies are sent in parts
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.sock.setblocking(False)

    def fill(self) -> None:
        """Have as many messages under way as `depth` says."""
        while self.sent - self.received < self.depth:
            self.out += simple(b"%d:%d:" % (self.id, self.sent) + b"." * self.dice.choice((0, 0, 10, 100, 3000)))
            self.sent += 1

    def write(self) -> None:
        """What the kernel takes."""
        if self.out:
            try:
                del self.out[: self.sock.send(self.out)]
            except BlockingIOError:
                return

    def read(self) -> int:
        """Check what has come; the number of replies. An end is a ConnectionError."""
        try:
            part = self.sock.recv(self.dice.choice((1000, 65_536)))
        except BlockingIOError:
            return 0
        if not part:
            raise ConnectionResetError
        self.into += part
        before, at = self.received, 0
        while len(self.into) - at >= 4:
            start, length = struct.unpack_from(">BH", self.into, at)
            assert start == 1, f"a frame for {self.id} begins with {start}"
            if len(self.into) - at < length + 4:
                break
            assert self.into[at + 3 + length] == 0x17, f"a frame for {self.id} has no end"
            self.check(bytes(self.into[at + 3 : at + 3 + length]))
            at += length + 4
        del self.into[:at]
        return self.received - before

    def check(self, payload: bytes) -> None:
        """A reply is the next one of mine; what somebody else sent was meant for me, and is in order."""
        name, number, dots = payload.split(b":")
        if name.startswith(b"all "):
            assert int(number) > self.broadcast.get(name, -1), f"{self.id} got {number!r} of {name!r} after {self.broadcast[name]}"
            self.broadcast[name] = int(number)
        elif name.startswith(b"foreign "):
            assert int(name[8:]) == self.id, f"{self.id} got what was sent to {name!r}"
            assert int(number) >= self.foreign, f"foreign message {number!r} to {self.id} came after {self.foreign}"
            self.foreign = int(number)
        else:
            assert int(name) == self.id, f"{self.id} got a message of {name!r}"
            assert int(number) == self.received, f"{self.id} got {number!r} for {self.received}"
            assert not dots.strip(b".")
            self.received += 1


class Crowd:
    """`members` connections in the thread that calls `run`."""

    def __init__(self, members: int, seed: int, depth: int = 4) -> None:
        self.members = members
        self.depth = depth
        self.dice = random.Random(seed)
        self.answered = 0
        self.thrown_out = 0
        self.done = threading.Event()

    def run(self, address: Any, messages: int) -> None:
        """Until so many replies came, or `done` is set, or the server is gone."""
        selector = selectors.DefaultSelector()
        try:
            for _ in range(self.members):
                self.join(selector, address)
            while self.answered < messages and not self.done.is_set() and selector.get_map():
                for key, _ in selector.select(0.05):
                    self.serve(selector, key.data, address)
        except ConnectionRefusedError:
            return  # stopped meanwhile
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()
            selector.close()

    def join(self, selector: selectors.BaseSelector, address: Any) -> None:
        """One more connection."""
        try:
            member = Member(address, self.depth, self.dice)
        except ConnectionResetError:
            return
        member.fill()
        selector.register(member.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, member)

    def serve(self, selector: selectors.BaseSelector, member: Member, address: Any) -> None:
        """One connection that is ready."""
        try:
            self.answered += member.read()
            member.fill()
            member.write()
            selector.modify(member.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if member.out else 0), member)
            if self.dice.random() < 0.002:  # some leave by themselves, gracefully or not
                if self.dice.random() < 0.5:
                    member.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionResetError
        except ConnectionError:
            self.thrown_out += 1
            selector.unregister(member.sock)
            member.sock.close()
            self.join(selector, address)
