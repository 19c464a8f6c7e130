"""The output half of a connection, and how its end begins. Any thread may send, close or abort.

One lock guards all of it. No system call, no code of the user's and no other lock is inside it. With TLS the queue holds ciphertext, and
the lock of the session comes before that one: records are numbered, so whatever makes one queues it before it gives the session back.
Invariants:

1. There is one *flusher* at a time: who sets `_flushing` writes, without the lock; all others append and leave.
2. `_blocked` means: the kernel takes no more and owes an edge. An edge that comes while somebody writes leaves a note, `_edge`, that he
   finds when he wants to set `_blocked`: then he tries again instead.
3. Once `error` is set no message is taken; what is queued is written, unless `at_once`. The first cause wins. With TLS a message that was
   taken before is still queued, and so are handshake and alerts; the owner's close_notify, when all is written, is the last.
4. Who empties the queue of a connection that is ending posts CLOSING. So does a flusher that finds `at_once`: the owner waits for him.
5. Output that is blocked is *watched* for `write_timeout`: whoever sets `_blocked` hands the connection to the loop, once (`_watched`),
   which calls `look_at_progress` now and then until nothing is pending. It is not the owner who looks: he may be in the handler, waiting in
   `drain` for the very peer that takes nothing.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import Any, NamedTuple, Protocol

from hydrogen._py import kernel, mailbox
from hydrogen._py.buffer import Memory, SendQueue
from hydrogen._py.mailbox import Mailbox, Queue
from hydrogen._py.streams import Transport
from hydrogen.config import Config
from hydrogen.errors import Cause, Timeout, removal_error
from hydrogen.tls import TlsSession

FLUSH_BUDGET = 256 << 10
"""Bytes that one flusher writes before others get their turn: as much as `Config.read_budget` allows a reader by default."""


class Tally:
    """Counters of one connection, added up when it is gone. Each is written by its owner or under its output lock."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "messages_received",
        "messages_sent",
        "reading_pauses",
        "reading_resumes",
    )

    def __init__(self) -> None:
        self.bytes_received = 0
        self.bytes_sent = 0
        self.messages_received = 0
        self.messages_sent = 0
        self.reading_pauses = 0
        self.reading_resumes = 0

    def add(self, other: Tally) -> None:
        """Add the counters of `other`."""
        for name in Tally.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Work(NamedTuple):
    """What a change under the lock leaves to be done without it, by `Output.carry_out`.

    Attributes:
        flush: the caller has become the flusher.
        bits: to post.
        change: of the account, in bytes.
    """

    flush: bool
    bits: int
    change: int


NOTHING = Work(flush=False, bits=0, change=0)


class OutputLoop(Queue, Protocol):
    """What the output half needs of its loop."""

    config: Config
    memory: Memory
    forked_away: bool

    def refused(self) -> None:
        """Count a message that was not taken: not in the tally, for somebody may still send when that of the connection was added up."""

    def flush_later(self, connection: Any) -> None:
        """Have the event thread call `go_on_flushing`."""

    def watch_output(self, connection: Any) -> None:
        """Call `look_at_progress` now and then, until it says that nothing is pending."""


class Progress:
    """When the peer last took something of blocked output, as far as was seen. Written by who begins to watch, and then by who looks.

    Attributes:
        since: by the monotonic clock.
        sent: bytes that the kernel had taken.
        kept: bytes that it had not taken.
        unsent: bytes that it had taken, and the peer's had not acknowledged.
    """

    __slots__ = ("kept", "sent", "since", "unsent")

    def __init__(self) -> None:
        self.since = 0.0
        self.sent = self.kept = self.unsent = 0


class Output(Mailbox):
    """Send queue, flusher, watermarks, and the state of the end.

    Attributes:
        error: why the connection ends; None while it is open.
        cause: the same as a `Cause`; meaningful when `error` is set, as is the next.
        code: the errno or `Timeout` of `cause`, 0 if it has none.
        at_once: the end is a reset; pending output is dropped.
        session: TLS; None: none. Set by the owner before anybody else can send.
        tally: counters.
        last_byte: when the last byte came or went, by the monotonic clock. Written by the owner and by the flusher, each the time of now.
    """

    __slots__ = (
        "_accounted",
        "_blocked",
        "_changed",
        "_edge",
        "_flushing",
        "_lock",
        "_over_high",
        "_progress",
        "_queued",
        "_sealed",
        "_watched",
        "_when_flushed",
        "at_once",
        "cause",
        "code",
        "error",
        "last_byte",
        "loop",
        "session",
        "tally",
        "transport",
    )

    def __init__(self, loop: OutputLoop, transport: Transport) -> None:
        super().__init__(loop)
        self.loop = loop
        self.transport = transport
        self.session: TlsSession | None = None
        self.tally = Tally()
        self.error: Exception | None = None
        self.cause = Cause.LOCAL_CLOSED
        self.code = 0
        self.at_once = False
        self.last_byte = time.monotonic()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # for those in `drain`
        self._queued = SendQueue()
        self._flushing = False  # see invariant 1
        self._blocked = False  # see invariant 2
        self._edge = False  # see invariant 2
        self._over_high = False  # pending was over the high watermark, and has not been below the low one since
        self._sealed = False  # the transport is being closed
        self._accounted = 0  # bytes of ours in `loop.memory`
        self._when_flushed = 0  # bits to post when the flusher is done
        self._watched = False  # see invariant 5
        self._progress: Progress | None = None  # from when it was first watched

    @property
    def blocked_output(self) -> int:
        """Bytes pending because the peer does not read: what counts towards `max_buffered`. Others leave at once."""
        return self._accounted

    @property
    def pending(self) -> int:
        """Bytes not yet taken by the kernel."""
        return 0 if self.at_once else self._queued.size + self.transport.kept

    @property
    def is_held_back(self) -> bool:
        """Whether so much output is pending that nothing is to be read or delivered."""
        return self._over_high

    def send(self, data: bytes) -> bool:
        """Queue the message `data`, framed, and write what the kernel takes now; False when the connection ends, or must end for this."""
        work = NOTHING
        if self.session is None:
            with self._lock:
                taken, slow = self._admit_locked()
                if taken:
                    work = self._append_locked(data)
        else:
            with self.session.lock:
                with self._lock:
                    taken, slow = self._admit_locked(is_able=self.session.is_writable)
                if taken and data:
                    try:
                        work = self.append(self.session.encrypt(data))
                    except BaseException:  # a record may be missing: what came after it would be nonsense to the peer
                        self.end(Cause.OS_ERROR, removal_error(Cause.OS_ERROR, errno.ENOMEM), at_once=True)
                        raise
        if not taken:
            self.loop.refused()
        if slow:
            self.end(Cause.SLOW_CONSUMER, at_once=True)
        self.carry_out(work)
        return taken

    def append(self, data: bytes) -> Work:
        """Queue `data`, as it goes on the wire, also during an end in order. The caller holds the lock of the session, if there is one."""
        with self._lock:
            return self._append_locked(data)

    def carry_out(self, work: Work) -> None:
        """Do what is left of a change. Without any lock."""
        self._tell(work.bits, work.change)
        if work.flush:
            self._flush()

    def drain(self, timeout: float | None) -> bool:
        """Wait until pending output is below the low watermark; False when the connection ends at once or the time is over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                if self._sealed or self.at_once:
                    return False
                if self.pending < self.loop.config.write_buffer_limits[0]:
                    return True
                # After an edge a stream waits for a worker to go on with it. That may be the very thread that is waiting here.
                resume = self.transport.is_stream and self._edge and not self._flushing
                if not resume:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    self._changed.wait(left)
            if resume:
                self.flush()

    def end(self, cause: Cause, error: Exception | None = None, *, code: int = 0, at_once: bool = False) -> bool:
        """Let the connection end because of `cause` and `code`; False when that changes nothing. `error`: None: the usual one of these."""
        if self.loop.forked_away:
            return False  # the lock may be held by a thread that exists in the parent only
        with self._lock:
            if self._sealed or self.at_once or (self.error is not None and not at_once):
                return False
            if self.error is None:
                self.cause, self.code = cause, code
                self.error = error if error is not None else removal_error(cause, code)
            self.at_once = at_once
            if at_once:
                self._queued.clear()
                self._changed.notify_all()
            bits, change = self._settle_locked()
        self._tell(bits | mailbox.CLOSING, change)
        return True

    def flush(self) -> None:
        """Write what the kernel takes, unless somebody is doing so or it takes nothing."""
        with self._lock:
            if self._flushing or self._blocked or not (self._queued or self.transport.is_stalled):
                return
            self._flushing = True
        self._flush()

    def on_writable(self) -> None:
        """An edge of OUT came. By the event thread: a socket is flushed here, so that output moves while all workers block in handlers."""
        with self._lock:
            self._edge = True
            if not self._blocked:
                return
            self._blocked = False
            if self.transport.is_stream:
                self._changed.notify_all()
        if self.transport.is_stream:
            self.post(mailbox.WRITABLE)
        else:
            self.flush()

    def go_on_flushing(self) -> None:
        """By the event thread, to which a flusher has left the rest of his work."""
        self._flush()

    def look_at_progress(self, now: float, timeout: float) -> float | None:
        """End the connection, at once, if the peer has taken nothing of its output for `timeout` seconds. By the loop, see invariant 5.

        Progress is what anybody took: the kernel, which takes nothing more until a third of its queue is free, or the peer's kernel,
        which takes less at a time. It is seen later than it was made, so its time is that of the look.

        Returns:
            When that may be so at the earliest; None when nothing is to be watched any more.
        """
        unsent = kernel.unsent(self.transport.poll_fd)
        with self._lock:
            progress = self._progress
            if progress is None or self._sealed or self.at_once or not (self._queued or self.transport.is_stalled):
                self._watched = False
                return None
            # What is given to a stream of the user's is not taken by anybody yet.
            sent = self.tally.bytes_sent != progress.sent and not self.transport.is_stream
            if sent or self.transport.kept < progress.kept or unsent < progress.unsent:
                progress.since = now
            progress.sent, progress.kept, progress.unsent = self.tally.bytes_sent, self.transport.kept, unsent
            until = progress.since + timeout
        if now < until:
            return until
        self.end(Cause.TIMEOUT, code=Timeout.WRITE_TIMEOUT, at_once=True)
        return None

    def is_flushed(self) -> bool:
        """Whether all output is written, or dropped, and nobody writes."""
        with self._lock:
            return self._is_flushed_locked()

    def waits_for_flusher(self, bits: int) -> bool:
        """Whether somebody writes to the socket now; then `bits` are posted when he is done. By the owner."""
        if self.transport.is_stream:
            return False
        with self._lock:
            if self._flushing:
                self._when_flushed |= bits
            return self._flushing

    def seal(self) -> bool:
        """Let nobody write any more; False when somebody still does, he will post CLOSING. By the owner, before the transport is closed."""
        with self._lock:
            if self._flushing:
                return False
            self._sealed = True
            self._blocked = False
            self._queued.clear()
            self._changed.notify_all()
            change, self._accounted = -self._accounted, 0
        self.loop.memory.add(change)
        return True

    def _admit_locked(self, is_able: bool = True) -> tuple[bool, bool]:
        """Whether a message is taken, which is counted; and if not, whether because the peer is a slow consumer. `is_able`: TLS could."""
        is_open = self.error is None and is_able
        slow = is_open and self.pending >= self.loop.config.max_write_buffer
        taken = is_open and not slow
        self.tally.messages_sent += taken
        return taken, slow

    def _append_locked(self, data: bytes) -> Work:
        # An empty message is one for a stream; on a socket there is nothing to it.
        if self.at_once or self._sealed or not (data or self.transport.is_stream):
            return NOTHING
        self._queued.append(data)
        # A stream is given its messages at once; what it cannot write it keeps itself.
        flush = not self._flushing and (self.transport.is_stream or not self._blocked)
        self._flushing |= flush
        return Work(flush, *self._settle_locked())

    def _is_flushed_locked(self) -> bool:
        return not self._flushing and (self.at_once or not (self._queued or self.transport.is_stalled))

    def _flush(self) -> None:
        """Write until nothing is left, the kernel takes no more, or the budget is used up. `_flushing` was set by the caller."""
        left = FLUSH_BUDGET
        while (messages := self._next_batch(left)) is not None:
            try:
                written, full = self.transport.write(messages)
            except BaseException as error:
                self._write_failed(error)
                return
            left -= written
            if not self._written(written, full):
                return

    def _next_batch(self, left: int) -> list[bytes | memoryview] | None:
        """What to write next, empty for a stream that is to go on by itself. None: the flusher is done, and is none any more."""
        with self._lock:
            # Cleared before writing: an edge from here on belongs to a later state of the kernel's buffer than the write will find.
            edge, self._edge = self._edge, False
            messages = [] if self.at_once else self._queued.front()
            go_on = bool(messages) or (edge and self.transport.is_stalled and not self.at_once)
            if go_on and left > 0:
                if messages and self.transport.is_stream:
                    # It is the stream's from here on: pending is what the stream says it kept.
                    messages = [self._queued.take()]
                return messages
            hand_over = go_on and not self.transport.is_stream
            self._edge = edge
            self._flushing = hand_over
            bits, change = self._settle_locked(attempted=True)
            if go_on and not hand_over:
                bits |= mailbox.WRITABLE
        self._tell(bits, change)
        if hand_over:
            self.loop.flush_later(self)
        return None

    def _written(self, count: int, full: bool) -> bool:
        """Take `count` bytes off the queue; False when the kernel takes no more: the flusher is none any more."""
        if count or not full:
            self.last_byte = time.monotonic()
        with self._lock:
            self.tally.bytes_sent += count
            if not self.at_once and not self.transport.is_stream:
                self._queued.consume(count)
            self._blocked = full and not self._edge
            if not self._blocked or self.at_once or (self.transport.is_stream and self._queued):
                return True
            self._flushing = False
            bits, change = self._settle_locked()
            watch = self.loop.config.write_timeout is not None and not self._watched
            self._watched |= watch
        self._tell(bits, change)
        if watch:
            self._begin_to_watch()
        return False

    def _begin_to_watch(self) -> None:
        """See invariant 5. `_watched` was set by the caller."""
        progress = Progress()
        progress.unsent = kernel.unsent(self.transport.poll_fd)
        progress.since = time.monotonic()
        with self._lock:
            progress.sent, progress.kept = self.tally.bytes_sent, self.transport.kept
            self._progress = progress
        self.loop.watch_output(self)

    def _write_failed(self, error: BaseException) -> None:
        cause, reason = self.transport.explain(error, "send")
        self.end(cause, reason, at_once=True)
        with self._lock:
            self._flushing = False
            bits, change = self._settle_locked()
        self._tell(bits, change)

    def _settle_locked(self, *, attempted: bool = False) -> tuple[int, int]:
        """After any change: watermarks, those who wait, the account. Returns bits to post and the change of the account.

        `attempted`: what is pending now is so although the kernel has just been given as much as it, or the budget, allowed.
        """
        bits = 0
        pending = self.pending
        low, high = self.loop.config.write_buffer_limits
        if self._over_high and pending < low:
            self._over_high = False
            self.tally.reading_resumes += 1
            bits = mailbox.LOW
        elif (self._blocked or attempted) and pending > high and not self._over_high:
            self._over_high = True
            self.tally.reading_pauses += 1
        if pending < low:
            self._changed.notify_all()
        if self.error is not None and self._is_flushed_locked():
            bits |= mailbox.CLOSING
        if not self._flushing:
            bits |= self._when_flushed
            self._when_flushed = 0
        before, self._accounted = self._accounted, pending if self._blocked else 0
        return bits, self._accounted - before

    def _tell(self, bits: int, change: int) -> None:
        self.loop.memory.add(change)
        if bits:
            self.post(bits)
