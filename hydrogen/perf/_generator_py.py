"""The hot loop of the load generator in Python: the stand-in where the compiled one was not built.

It counts the same and verifies as strictly, but a message costs it many times what it costs the
compiled loop: a fast server will wait for it. How a message is made and why that shows every fault
is told in ``_generator.pyx``; this one keeps the messages it has sent, which is simpler, and
compares with those.
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
from typing import NamedTuple

from hydrogen.perf.framing import CLOSE, CONTROL_MOST, PING, PONG, WINDOWS, Mix, pong
from hydrogen.perf.histogram import BUCKETS, bucket_of
from hydrogen.perf.tunnel import Tunnel

KEY = 8
SCRATCH = 64 * 1024
WAKE_NS = 50_000_000
LATE_NS = 1_000_000
GRACE_NS = 1_000_000_000
ROUND = 256
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


class Expected(NamedTuple):
    """A message that has been made and not been answered."""

    reply: bytes
    requested: int  # bytes of the request
    content: int  # and without framing
    sent_at: int
    due_at: int


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
        # to the newest ping, which alone need be answered (RFC 6455, 5.5.3), and not in `unsent`
        self.pong = b""
        self.pongs = 0  # bytes of `unreturned` that are no message's
        self.unreturned = 0  # bytes that the kernel, or TLS, has taken of unanswered messages
        self.expected: deque[Expected] = deque()
        self.partial = b""  # the beginning of a reply or of a control frame
        self.burst_began = 0
        # in an open loop: when those are due that have not been made
        self.due_at: deque[int] = deque()
        self.connecting = 0  # with churn: since when; 0 once it is known to be there
        self.fresh = True  # nothing has been received on it

    @property
    def answered(self) -> int:
        return self.made - len(self.expected)

    @property
    def owed(self) -> int:
        return self.due - self.answered


class WrongReplyError(Exception):
    """Carries the offset of the first wrong byte in the reply."""


class ClosedError(Exception):
    """The server has sent a CLOSE."""


class Loop:
    """The hot loop; its contract is :class:`hydrogen.perf.generator.HotLoop`."""

    def __init__(
        self,
        fds: Sequence[int],
        *,
        mix: Mix,
        depth: int,
        burst: bool,
        seed: int,
        stall: float,
        tunnels: Sequence[Tunnel] = (),
        churn: bool = False,
        interval: float = 0,
        phase: float = 0,
        backlog: int = 0,
        websocket: bool = False,
    ) -> None:
        self.mix, self.depth, self.burst, self.churn = mix, depth, burst, churn
        self.websocket = websocket
        self.pattern = mix.pattern(seed)
        self.key_mask, self.key_base = (
            int.from_bytes([byte] * KEY, "little")
            for byte in (mix.shapes[0].mask, mix.shapes[0].base)
        )
        self.interval_ns, self.phase = interval * 1e9, phase
        self.backlog = max(depth, backlog)
        self.begin = self.end = self.scheduled = 0
        self.stall_ns = int(stall * 1e9)
        self.sending = self.stopped = False
        self.budget: int | None = None
        self.turn: deque[Connection] = deque()  # in an open loop: whose the next messages are
        self.outstanding = 0  # granted and not yet answered, over all live connections
        self.faults = dict.fromkeys(
            (
                "wrong",
                "closed",
                "failed",
                "unanswered",
                "wrong_connection",
                "wrong_message",
                "wrong_byte",
            ),
            0,
        )
        self.first_errno = 0
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        for index, (fd, tunnel) in enumerate(zip_longest(fds, tunnels)):
            self.connections[fd] = Connection(index, fd, mixed(seed + index), tunnel)
            self.epoll.register(fd, INTEREST)
        self.turn.extend(self.connections.values())
        self._connects, self._first_bytes = [0] * BUCKETS, [0] * BUCKETS
        self.reset()

    def reset(self) -> None:
        self.messages = self.received = self.content = self.longest = self.elapsed_ns = (
            self.cpu_ns
        ) = self.late = self.dropped = 0
        self._latencies, self._uncorrected, self._bursts = (
            [0] * BUCKETS,
            [0] * BUCKETS,
            [0] * BUCKETS,
        )

    def stop(self) -> None:
        self.stopped = True

    def counters(self) -> dict[str, int]:
        return {
            "messages": self.messages,
            "received": self.received,
            "content": self.content,
            "longest_ns": self.longest,
            "elapsed_ns": self.elapsed_ns,
            "cpu_ns": self.cpu_ns,
            "late": self.late,
            "dropped": self.dropped,
            "live": len(self.connections),
            "first_errno": self.first_errno,
            **self.faults,
        }

    def histograms(self) -> dict[str, list[int]]:
        return {
            "latencies": self._latencies.copy(),
            "uncorrected": self._uncorrected.copy(),
            "bursts": self._bursts.copy(),
            "connects": self._connects.copy(),
            "first_bytes": self._first_bytes.copy(),
        }

    # -- connections -------------------------------------------------------------------------------

    def _drop(self, c: Connection) -> None:
        self.epoll.unregister(c.fd)
        del self.connections[c.fd]
        self.turn.remove(c)
        self.outstanding -= c.owed
        self.faults["unanswered"] += c.owed

    def _make(self, c: Connection) -> tuple[bytes, bytes, int]:
        """The connection's next message, its reply, and the bytes of content in it."""
        chance = mixed((c.salt + c.made) % 2**64)
        shape = self.mix.shapes[(chance >> 32) * len(self.mix.shapes) >> 32]
        if self.mix.payload is None:
            key = (chance & self.key_mask) + self.key_base
            begin = key % WINDOWS
            head = key.to_bytes(KEY, "little")[: shape.size]
            content = head + self.pattern[begin : begin + shape.size - len(head)]
        else:
            content = self.pattern
        suffix = (sum(content) % 2**32).to_bytes(4, "big") if shape.checksum else shape.suffix
        return shape.prefix + content + suffix, shape.reply.prefix + content + suffix, len(content)

    def _grant(self, c: Connection, wanted: int) -> None:
        if not self.sending:
            return
        if self.budget is not None:
            wanted = min(wanted, self.budget)
            self.budget -= wanted
        c.due += wanted
        self.outstanding += wanted

    def _send(self, c: Connection, now: int) -> None:
        end = min(c.due, c.answered + self.depth)
        while c.unsent or c.pong or c.made < end:
            parts = []
            room = SCRATCH - len(c.unsent)
            if c.pong and room > 0:
                parts.append(c.pong)
                c.pongs += len(c.pong)
                c.pong = b""
            while c.made < end and room > 0:
                message, reply, content = self._make(c)
                due_at = c.due_at.popleft() if self.interval_ns else now
                self.late += now > due_at + LATE_NS
                c.expected.append(Expected(reply, len(message), content, now, due_at))
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
            self._count_connect(c)
            c.unsent = c.unsent[sent:]
            if c.tunnel is None:
                c.unreturned += sent
            if not c.unsent:
                c.unreturned -= c.pongs
                c.pongs = 0

    def _verify(self, c: Connection, data: bytes, now: int) -> int:
        """How many replies ``data`` completes; WrongReplyError at the first byte that nobody
        sent. Control frames between them are heeded.
        """
        self.received += len(data)
        known = len(c.partial)
        data = c.partial + data
        at = answered = 0
        while at < len(data):
            if self.websocket and data[at] in (CLOSE, PING, PONG):
                size = self._heed(c, data[at : at + 2 + CONTROL_MOST])
                if not size:
                    break
                at += size
                continue
            wanted = c.expected[0].reply if c.expected else b""
            reply = data[at : at + len(wanted)]
            if not wanted or len(reply) > c.unreturned:
                raise WrongReplyError(0 if at else known)
            if c.fresh:
                c.fresh = False
                self._first_bytes[bucket_of(now - c.expected[0].sent_at)] += 1
            if not wanted.startswith(reply):
                raise WrongReplyError(next(i for i in range(len(reply)) if reply[i] != wanted[i]))
            if len(reply) < len(wanted):
                break
            c.unreturned -= c.expected[0].requested
            self._answered(c.expected.popleft(), now)
            at += len(wanted)
            answered += 1
        c.partial = data[at:]
        return answered

    def _heed(self, c: Connection, frame: bytes) -> int:
        """Heed the control frame that ``frame`` begins with; returns its size, 0 while it is not
        whole.
        """
        if len(frame) > 1 and frame[1] > CONTROL_MOST:  # or masked
            raise WrongReplyError(0)
        if len(frame) < 2 or len(frame) < 2 + frame[1]:
            return 0
        if frame[0] == CLOSE:
            raise ClosedError
        size = 2 + frame[1]
        if frame[0] == PING:
            c.pong = pong(frame[2:size])
        return size

    def _answered(self, message: Expected, now: int) -> None:
        latency = now - message.sent_at
        if self.interval_ns:
            self._uncorrected[bucket_of(latency)] += 1
            latency = now - message.due_at
        self._latencies[bucket_of(latency)] += 1
        self.longest = max(self.longest, latency)
        self.content += message.content
        self.messages += 1
        self.outstanding -= 1

    def _renew(self, c: Connection) -> None:
        """Reset the connection and begin the next one under its fd: what dup2(2) closes, epoll
        forgets.
        """
        with borrowed(c.fd) as old:
            old.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_BY_RESET)
            fresh, peer = socket.socket(old.family), old.getpeername()
        with fresh:
            fresh.setblocking(False)
            c.connecting = time.monotonic_ns()
            error = fresh.connect_ex(peer)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            os.dup2(fresh.fileno(), c.fd, inheritable=False)
        self.epoll.register(c.fd, INTEREST)
        c.fresh = True

    def _count_connect(self, c: Connection) -> None:
        if c.connecting:
            self._connects[bucket_of(time.monotonic_ns() - c.connecting)] += 1
            c.connecting = 0

    def _refill(self, c: Connection, answered: int, now: int) -> None:
        if self.interval_ns:
            pass
        elif not self.burst:
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
        """Do what ``events`` allow, and send what is due in any case."""
        try:
            if events & select.EPOLLOUT:
                self._count_connect(c)
            self._send(c, now)
            if events & (select.EPOLLIN | NO_FURTHER_EDGE):
                self._read(c, bool(events & NO_FURTHER_EDGE))
        except WrongReplyError as error:
            self._mistrust(c, error.args[0])
        except (ssl.SSLZeroReturnError, ClosedError):
            self._end(c)
        except OSError as error:
            self.first_errno = self.first_errno or (
                errno.EPROTO if isinstance(error, ssl.SSLError) else error.errno or 0
            )
            self.faults["failed"] += 1
            self._drop(c)

    # -- the loop ----------------------------------------------------------------------------------

    def run(self, seconds: float, number: int = 0) -> None:
        self.sending = True
        self.budget = number or None
        self._run(0 if number else int(seconds * 1e9))

    def drain(self) -> None:
        self.sending = False
        if not self.interval_ns:
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
            self._serve(c, 0, now)

    def _next_due(self) -> int:
        return self.begin + int((self.scheduled + self.phase) * self.interval_ns)

    def _is_scheduled(self) -> bool:
        """Whether the open loop has nothing more to come."""
        return not self.sending or (
            self._next_due() >= self.end if self.budget is None else not self.budget
        )

    def _keep_schedule(self) -> None:
        """Send what has become due, a round at most: after so many, replies are read first."""
        for _ in range(ROUND):
            due, now = self._next_due(), time.monotonic_ns()
            if due > now or self._is_scheduled() or not self.turn:
                return
            self.scheduled += 1
            if self.budget is not None:
                self.budget -= 1
            c = self.turn[0]
            self.turn.rotate(-1)
            if c.owed >= self.backlog:
                self.dropped += 1
                continue
            c.due_at.append(due)
            c.due += 1
            self.outstanding += 1
            self._serve(c, 0, now)

    def _wait(self, duration_ns: int) -> list[tuple[int, int]]:
        """Wait for events, until the run ends or a message is due at the latest. poll counts in
        milliseconds: the last is spun.
        """
        now = time.monotonic_ns()
        until = now + WAKE_NS
        if self.interval_ns and not self._is_scheduled():
            until = min(until, self._next_due())
        if duration_ns and now < self.end:
            until = min(until, self.end)
        return self.epoll.poll(max(0, until - now) // 1_000_000 / 1e3)

    def _is_done(self, now: int, duration_ns: int) -> bool:
        if not self.connections or self.stopped:
            return True
        if duration_ns and now - self.begin < duration_ns:
            return False
        if self.interval_ns and not self._is_scheduled():
            return bool(duration_ns) and now - self.begin >= duration_ns + GRACE_NS
        return bool(duration_ns) or not self.outstanding

    def _run(self, duration_ns: int) -> None:
        cpu_began = time.thread_time_ns()
        self.begin = now = moved = time.monotonic_ns()
        self.end = self.begin + duration_ns
        self.scheduled = 0
        if self.sending and not self.interval_ns:
            self._open_windows()
        while not self._is_done(now, duration_ns):
            if self.interval_ns:
                self._keep_schedule()
            ready = self._wait(duration_ns)
            now = time.monotonic_ns()
            if ready or not self.outstanding:
                moved = now
            elif now - moved > self.stall_ns:
                for c in [c for c in self.connections.values() if c.owed]:
                    self._drop(c)
            for fd, events in ready:
                self._serve(self.connections[fd], events, now)
        if self.interval_ns and duration_ns and not self.stopped:
            while not self._is_scheduled():
                self.scheduled += 1
                self.dropped += 1
        self.elapsed_ns += time.monotonic_ns() - self.begin
        self.cpu_ns += time.thread_time_ns() - cpu_began
