"""A crowd of clients in one thread: each message says whose it is and which, each reply is checked,
and who is thrown out comes back.

What is checked is that no client ever sees another's bytes, that its replies come in order and
without a gap, that what other threads sent it was meant for it, that broadcasts of one thread come
in order, and that whoever ends its side sees the other one end. How long anything takes is not
checked.

They have bad manners. They go on sending while they should read, until nothing moves in either
direction; they freeze, and then read again, or leave without having read; they half-close and go on
reading, or reset the connection while the server is closing it.
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

from support import PATIENCE, family_of, running, simple

LONG = 800.0
"""Seconds that conversations may take: they are many, and sanitizers slow."""

READS, WRITES = selectors.EVENT_READ, selectors.EVENT_WRITE

_ids = itertools.count(1)


def beside(
    done: threading.Event, meddle: Callable[[], object], *conversations: Callable[[], object]
) -> None:
    """Run `meddle`, which goes on until `done` is set, beside all `conversations`; setting it is
    done here, whatever becomes of them.
    """

    def all_converse() -> None:
        try:
            with running(*conversations, patience=LONG):
                pass
        finally:
            done.set()

    with running(all_converse, meddle, patience=LONG):
        pass


class EndOfInput(ConnectionError):
    """The other side has ended gracefully."""


class Member:
    """One connection, for as long as it lives; the next one has another id."""

    def __init__(self, address: Any, depth: int, dice: random.Random) -> None:
        self.id = next(_ids)
        self.depth = depth
        self.sent = self.received = self.foreign = 0
        self.thaws_at = 0  # the round of the crowd in which it reads again
        self.is_content = False  # it says no more
        self.is_finishing = self.is_finished = self.is_reset = False
        self.broadcast: dict[bytes, int] = {}  # the last one of each who broadcasts
        self.dice = dice
        self.out = bytearray()
        self.into = bytearray()
        self.sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        if dice.random() < 0.3:
            # so that replies are sent in parts
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.sock.setblocking(False)

    def fill(self) -> None:
        """Have as many messages under way as `depth` says; as many as go while it is frozen."""
        if self.is_finishing or self.is_content:
            return
        while self.sent - self.received < self.depth or (self.thaws_at and len(self.out) < 4000):
            self.out += simple(
                b"%d:%d:" % (self.id, self.sent) + b"." * self.dice.choice((0, 0, 10, 100, 3000))
            )
            self.sent += 1

    def write(self) -> None:
        """What the kernel takes."""
        if self.out:
            try:
                del self.out[: self.sock.send(self.out)]
            except BlockingIOError:
                return
        if self.is_finishing and not self.is_finished and self.is_sealed and not self.out:
            self.is_finished = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError as error:  # it is not connected any more
                raise ConnectionResetError from error

    is_sealed = True
    """Nothing has to be added to `out` before the end of the sending side."""

    @property
    def is_ready(self) -> bool:
        """It can make output of what it says."""
        return True

    @property
    def has_output(self) -> bool:
        """There is something to do as soon as the kernel takes more."""
        is_ending = self.is_finishing and not self.is_finished
        return bool(self.out) or (self.is_ready and is_ending)

    def reset(self) -> None:
        """Have `close` reset the connection."""
        self.is_reset = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def read(self) -> int:
        """Check what has come; the number of replies. An end is a ConnectionError."""
        try:
            part = self.sock.recv(self.dice.choice((1000, 65_536)))
        except BlockingIOError:
            return 0
        if not part:
            raise EndOfInput
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
        """A reply is the next one of mine; what somebody else sent was meant for me, and is in
        order.
        """
        name, number, dots = payload.split(b":")
        if name.startswith(b"all "):
            assert int(number) > self.broadcast.get(name, -1), (
                f"{self.id} got {number!r} of {name!r} after {self.broadcast[name]}"
            )
            self.broadcast[name] = int(number)
        elif name.startswith(b"foreign "):
            assert int(name[8:]) == self.id, f"{self.id} got what was sent to {name!r}"
            assert int(number) >= self.foreign, (
                f"foreign message {number!r} to {self.id} came after {self.foreign}"
            )
            self.foreign = int(number)
        else:
            assert int(name) == self.id, f"{self.id} got a message of {name!r}"
            assert int(number) == self.received, f"{self.id} got {number!r} for {self.received}"
            assert not dots.strip(b".")
            self.received += 1


class Crowd:
    """`members` connections in the thread that calls `run`.

    Args:
        depth: messages that each member has under way, unless it freezes.
        is_whole: nobody but they end connections: whoever half-closes gets each reply first.
        rudeness: how many times as often as usual they misbehave.
    """

    def __init__(
        self, members: int, seed: int, depth: int = 4, is_whole: bool = False, rudeness: int = 1
    ) -> None:
        self.members = members
        self.depth = depth
        self.is_whole = is_whole
        self.rudeness = rudeness
        self.dice = random.Random(seed)
        self.answered = 0
        self.thrown_out = 0
        self.froze = 0
        self.done = threading.Event()
        self.round = 0
        self.frozen: list[Member] = []

    def run(self, address: Any, messages: int) -> None:
        """Until so many replies came, or `done` is set, or the server is gone; then all leave."""
        selector = selectors.DefaultSelector()
        try:
            for _ in range(self.members):
                self.join(selector, address)
            while self.answered < messages and not self.done.is_set() and selector.get_map():
                self.take_turns(selector, address)
            self.leave(selector)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # stopped meanwhile
        finally:
            for key in list(selector.get_map().values()):
                key.data.sock.close()
            selector.close()

    def take_turns(self, selector: selectors.BaseSelector, address: Any) -> None:
        """Each that is ready once; those whose time has come thaw."""
        self.round += 1
        for member in [member for member in self.frozen if member.thaws_at <= self.round]:
            self.thaw(selector, member, address)
        for key, _ in selector.select(0.01 if self.frozen else 0.05):
            self.serve(selector, key.data, address)

    def leave(self, selector: selectors.BaseSelector) -> None:
        """Each says no more, is answered or thrown out, ends its side, and sees the other one end.

        Answered first: the end is an edge too, and would wake whoever had been forgotten.
        """
        self.frozen.clear()
        self.set_for_all(selector, "thaws_at", 0)
        self.set_for_all(selector, "is_content", True)
        self.serve_while(selector, lambda member: member.received < member.sent)
        self.set_for_all(selector, "is_finishing", True)
        self.serve_while(selector, lambda member: True)

    def set_for_all(self, selector: selectors.BaseSelector, name: str, value: object) -> None:
        """Set an attribute of all members; each is looked at once more."""
        for key in list(selector.get_map().values()):
            setattr(key.data, name, value)
            selector.modify(key.fileobj, READS | WRITES, key.data)

    def serve_while(
        self, selector: selectors.BaseSelector, is_due: Callable[[Member], bool]
    ) -> None:
        """Serve all until none of those that are there is due."""
        while left := [key.data for key in selector.get_map().values() if is_due(key.data)]:
            ready = selector.select(PATIENCE)
            assert ready, f"forgotten: {[(m.id, m.sent, m.received, m.is_finished) for m in left]}"
            for key, _ in ready:
                self.serve(selector, key.data, None)

    def join(self, selector: selectors.BaseSelector, address: Any) -> None:
        """One more connection."""
        try:
            member = self.member(address)
        except ConnectionResetError:
            return
        member.fill()
        selector.register(member.sock, READS | WRITES, member)

    def member(self, address: Any) -> Member:
        """A new one."""
        return Member(address, self.depth, self.dice)

    def serve(self, selector: selectors.BaseSelector, member: Member, address: Any) -> None:
        """One connection that is ready. `address`: where to come back to; None: nowhere."""
        try:
            if not member.thaws_at:
                self.answered += member.read()
            member.fill()
            member.write()
            self.misbehave(selector, member, address)
        except ConnectionError as error:
            self.judge(member, error)
            self.replace(selector, member, address)

    def judge(self, member: Member, error: ConnectionError) -> None:
        """Who has ended its side, and no more, gets all that it is owed, and then the end."""
        if self.is_whole and member.is_finished and not member.is_reset:
            assert isinstance(error, EndOfInput), f"{member.id} was reset"
            assert member.received == member.sent, f"{member.id} misses replies at the end"

    def replace(self, selector: selectors.BaseSelector, member: Member, address: Any) -> None:
        """It is gone; another one comes, if there is an address."""
        self.thrown_out += 1
        if member in self.frozen:
            self.frozen.remove(member)
        selector.unregister(member.sock)
        member.sock.close()
        if address is not None:
            self.join(selector, address)

    def misbehave(self, selector: selectors.BaseSelector, member: Member, address: Any) -> None:
        """Now and then, and say what is waited for next."""
        chance = self.dice.random() / self.rudeness
        if address is not None and not member.thaws_at:
            if chance < 0.001 or (member.is_finished and chance < 0.05):
                member.reset()
                raise ConnectionResetError
            if chance < 0.002:
                member.is_reset = True
                raise ConnectionResetError
            if chance < 0.004:
                member.is_finishing = True
            elif chance < 0.007:
                self.froze += 1
                member.thaws_at = self.round + self.dice.choice((3, 10, 50))
                self.frozen.append(member)
        # Frozen, it goes on writing until nothing moves in either direction.
        waits_for = (0 if member.thaws_at else READS) | (
            WRITES if member.has_output or member.thaws_at else 0
        )
        selector.modify(member.sock, waits_for, member)

    def thaw(self, selector: selectors.BaseSelector, member: Member, address: Any) -> None:
        """It reads again; or leaves, and what it has not read makes that a reset."""
        self.frozen.remove(member)
        member.thaws_at = 0
        if self.dice.random() < 0.3:
            self.replace(selector, member, address)
            return
        selector.modify(member.sock, READS | WRITES, member)
