"""The hot loop of the load generator in Python: the stand-in where the compiled one was not built.

It counts the same and verifies as strictly, but a message costs it many times what it costs the compiled loop: a fast
server will wait for it. How a message is made and why that shows every fault is told in ``_generator.pyx``; this one
keeps the messages it has sent, which is simpler, and compares with those.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest

from hydrogen.perf.framing import Shape
from hydrogen.perf.histogram import BUCKETS, bucket_of
from hydrogen.perf.tunnel import Tunnel

KEY = 8
SCRATCH = 64 * 1024
WAKE = 0.05
INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
NO_FURTHER_EDGE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
CLOSE_BY_RESET = struct.pack("ii", 1, 0)  # of SO_LINGER


def mixed(value: int) -> int:
    """The finaliser of splitmix64."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket object for ``fd``, which stays open."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


class Connection:
    """One socket and where its two streams stand."""

    def __init__(self, index: int, fd: int, salt: int, tunnel: Tunnel | None) -> None:
        self.index = index
        self.fd = fd
        self.salt = salt
        self.tunnel = tunnel
        self.due = 0  # messages below this number may be sent
        self.made = 0  # messages below this number have been put into `unsent`
        self.unsent = b""  # in TLS ciphertext
        self.unreturned = 0  # bytes that the kernel, or TLS, has taken and that have not come back
        self.expected: deque[tuple[bytes, int]] = deque()  # made and unanswered, with the time
        self.partial = b""  # the beginning of a reply
        self.burst_began = 0

    @property
    def answered(self) -> int:
        return self.made - len(self.expected)

    @property
    def owed(self) -> int:
        return self.due - self.answered


class WrongReplyError(Exception):
    """Carries the offset of the first wrong byte in the reply."""


class Loop:
    """The hot loop; its contract is :class:`hydrogen.perf.generator.HotLoop`."""

    def __init__(
        self,
        fds: Sequence[int],
        *,
        shape: Shape,
        depth: int,
        burst: bool,
        seed: int,
        stall: float,
        tunnels: Sequence[Tunnel] = (),
        churn: bool = False,
    ) -> None:
        self.shape, self.depth, self.burst, self.churn = shape, depth, burst, churn
        self.pattern = shape.pattern(seed)
        self.key_mask, self.key_base = (int.from_bytes([byte] * KEY, "little") for byte in (shape.mask, shape.base))
        self.stall_ns = int(stall * 1e9)
        self.sending = self.stopped = False
        self.budget: int | None = None
        self.outstanding = 0  # granted and not yet answered, over all live connections
        self.faults = dict.fromkeys(("wrong", "closed", "failed", "unanswered", "wrong_connection", "wrong_message", "wrong_byte"), 0)
        self.first_errno = 0
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        for index, (fd, tunnel) in enumerate(zip_longest(fds, tunnels)):
            self.connections[fd] = Connection(index, fd, mixed(seed + index), tunnel)
            self.epoll.register(fd, INTEREST)
        self.reset()

    def reset(self) -> None:
        self.messages = self.received = self.longest = self.elapsed_ns = self.cpu_ns = 0
        self._latencies = [0] * BUCKETS
        self._bursts = [0] * BUCKETS

    def stop(self) -> None:
        self.stopped = True

    def counters(self) -> dict[str, int]:
        return {
            "messages": self.messages,
            "received": self.received,
            "longest_ns": self.longest,
            "elapsed_ns": self.elapsed_ns,
            "cpu_ns": self.cpu_ns,
            "live": len(self.connections),
            "first_errno": self.first_errno,
            **self.faults,
        }

    def latencies(self) -> list[int]:
        return self._latencies.copy()

    def bursts(self) -> list[int]:
        return self._bursts.copy()

    # -- connections --------------------------------------------------------------------------------------------------

    def _drop(self, c: Connection) -> None:
        self.epoll.unregister(c.fd)
        del self.connections[c.fd]
        self.outstanding -= c.owed
        self.faults["unanswered"] += c.owed

    def _make(self, c: Connection) -> bytes:
        shape = self.shape
        key = (mixed((c.salt + c.made) % 2**64) & self.key_mask) + self.key_base
        begin = key & 0xFF
        head = key.to_bytes(KEY, "little")[: shape.size]
        content = head + self.pattern[begin : begin + shape.size - len(head)]
        suffix = (sum(content) % 2**32).to_bytes(4, "big") if shape.checksum else shape.suffix
        return shape.prefix + content + suffix

    def _grant(self, c: Connection, wanted: int) -> None:
        if not self.sending:
            return
        if self.budget is not None:
            wanted = min(wanted, self.budget)
            self.budget -= wanted
        c.due += wanted
        self.outstanding += wanted

    def _send(self, c: Connection, now: int) -> None:
        while c.unsent or c.made < c.due:
            parts = []
            room = SCRATCH - len(c.unsent)
            while c.made < c.due and room > 0:
                message = self._make(c)
                c.expected.append((message, now))
                c.made += 1
                parts.append(message)
                room -= len(message)
            if c.tunnel is None:
                c.unsent += b"".join(parts)
            elif parts:
                plaintext = b"".join(parts)
                c.unsent += c.tunnel.encrypt(plaintext)
                c.unreturned += len(plaintext)
            try:
                sent = os.write(c.fd, c.unsent)
            except BlockingIOError:
                return
            c.unsent = c.unsent[sent:]
            if c.tunnel is None:
                c.unreturned += sent

    def _verify(self, c: Connection, data: bytes, now: int) -> int:
        """How many replies ``data`` completes; WrongReplyError at the first byte that nobody sent."""
        self.received += len(data)
        partial = len(c.partial)
        if len(data) > c.unreturned:
            raise WrongReplyError(partial)
        c.unreturned -= len(data)
        data = c.partial + data
        at = answered = 0
        while at < len(data):
            message, sent_at = c.expected[0]
            reply = data[at : at + len(message)]
            if not message.startswith(reply):
                raise WrongReplyError(next(i for i in range(len(reply)) if reply[i] != message[i]))
            if len(reply) < len(message):
                break
            c.expected.popleft()
            latency = now - sent_at
            self._latencies[bucket_of(latency)] += 1
            self.longest = max(self.longest, latency)
            at += len(message)
            answered += 1
            self.messages += 1
            self.outstanding -= 1
        c.partial = data[at:]
        return answered

    def _renew(self, c: Connection) -> None:
        """Reset the connection and begin the next one under its fd: what dup2(2) closes, epoll forgets."""
        with borrowed(c.fd) as old:
            old.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_BY_RESET)
            fresh, peer = socket.socket(old.family), old.getpeername()
        with fresh:
            fresh.setblocking(False)
            error = fresh.connect_ex(peer)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            os.dup2(fresh.fileno(), c.fd, inheritable=False)
        self.epoll.register(c.fd, INTEREST)

    def _refill(self, c: Connection, answered: int, now: int) -> None:
        if not self.burst:
            self._grant(c, answered)
        elif not c.owed:
            if answered:
                self._bursts[bucket_of(now - c.burst_began)] += 1
            c.burst_began = now
            self._grant(c, self.depth)
        self._send(c, now)

    def _read(self, c: Connection, to_the_end: bool) -> None:
        while True:
            try:
                data = os.read(c.fd, SCRATCH)
            except BlockingIOError:
                return
            now = time.monotonic_ns()
            if not data:
                self._end(c)
                return
            plaintext = data if c.tunnel is None else c.tunnel.decrypt(data)
            answered = self._verify(c, plaintext, now)
            renewed = self.churn and answered > 0
            if renewed:
                self._renew(c)
            self._refill(c, answered, now)
            if renewed or (len(data) < SCRATCH and not to_the_end):
                return

    def _end(self, c: Connection) -> None:
        self.faults["closed"] += 1
        self._drop(c)

    def _mistrust(self, c: Connection, at: int) -> None:
        if not self.faults["wrong"]:
            self.faults.update(wrong_connection=c.index, wrong_message=c.answered, wrong_byte=at)
        self.faults["wrong"] += 1
        self._drop(c)

    def _serve(self, c: Connection, events: int, now: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._send(c, now)
            if events & (select.EPOLLIN | NO_FURTHER_EDGE):
                self._read(c, bool(events & NO_FURTHER_EDGE))
        except WrongReplyError as error:
            self._mistrust(c, error.args[0])
        except ssl.SSLZeroReturnError:
            self._end(c)
        except OSError as error:
            self.first_errno = self.first_errno or (errno.EPROTO if isinstance(error, ssl.SSLError) else error.errno or 0)
            self.faults["failed"] += 1
            self._drop(c)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self, seconds: float, number: int = 0) -> None:
        self.sending = True
        self.budget = number or None
        self._run(0 if number else int(seconds * 1e9))

    def drain(self) -> None:
        self.sending = False
        for c in self.connections.values():
            self.outstanding -= c.due - c.made
            c.due = c.made
        self._run(0)

    def _open_windows(self) -> None:
        for c in list(self.connections.values()):
            now = time.monotonic_ns()
            if not self.burst:
                self._grant(c, self.depth - c.owed)
            elif not c.owed:
                c.burst_began = now
                self._grant(c, self.depth)
            self._serve(c, select.EPOLLOUT, now)

    def _run(self, duration_ns: int) -> None:
        cpu_began = time.thread_time_ns()
        began = now = moved = time.monotonic_ns()
        if self.sending:
            self._open_windows()
        while self.connections and not self.stopped:
            if now - began >= duration_ns if duration_ns else not self.outstanding:
                break
            ready = self.epoll.poll(WAKE)
            now = time.monotonic_ns()
            if ready:
                moved = now
            elif now - moved > self.stall_ns:
                for c in [c for c in self.connections.values() if c.owed]:
                    self._drop(c)
            for fd, events in ready:
                self._serve(self.connections[fd], events, now)
        self.elapsed_ns += time.monotonic_ns() - began
        self.cpu_ns += time.thread_time_ns() - cpu_began
