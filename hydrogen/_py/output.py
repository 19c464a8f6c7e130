"""The output half of a connection, and how its end begins. Any thread may send, close or abort, at
any moment.

One thread at a time is in the *role* of the output (see `role`): it alone touches the send queue,
the TLS session, the stream adapter's `send`, and what hangs on them. Nobody waits for it. Who has
something to be done leaves it where it is found (a message in `_waiting`, an edge in `_noted`, an
end in `_ends`) and calls `tend`; who is in the role looks again after giving it back. Invariants:

1. `_asked` is set after what is asked for, and cleared in the role before that is looked at; it is
   set again where something is left of it. Whoever leaves the role looks at `_asked` afterwards:
   one who did not get the role had set it before. When it is set he does what is asked for, or,
   when his budget is used up, leaves it to another thread (`tend_later`). His budget is his own:
   others who come and go meanwhile do not renew it, and he says that it is used up to nobody but
   himself. So nothing that was asked for is overlooked, and nobody is kept for as long as others
   send.
2. `_blocked` means: the kernel takes no more and owes an edge. Edges are counted (`_noted`, by the
   event thread); before each write it is kept how many there were (`_taken`, in the role). One that
   comes later belongs to a later state of the kernel's buffer than the write will find. Each
   counter has one writer: a flag that is set here and cleared there loses what comes between the
   load and the store of a swap.
3. Once there is an end (`error`) no message is taken; what is queued is written, unless `at_once`.
   The first end wins. The owner ends the messages (`end_messages`) when all are written, which it
   knows in the role; close_notify is the last. A message that comes meanwhile is written if the
   owner, who looks for some when he has said so, takes it out of `_waiting`, and not if who sent it
   does, who looks for that when he has put it there.
4. When the queue of a connection that is ending becomes empty, CLOSING is posted. The owner who
   needs the role and does not get it leaves bits, which are posted when the role is given back.
5. Output that is blocked is *watched* for `write_timeout`: whoever sets `_blocked` hands the
   connection to the loop, once (`_watched`), which calls `look_at_progress` now and then until
   nothing is pending. It is not the owner who looks: he may be in the handler, waiting in `drain`
   for the very peer that takes nothing.
6. Who sends without rest, or many who do in turn, would be in the role whenever the owner wants it.
   So what the owner wants to be decrypted, or received of a stream of the user's, whoever is in the
   role does for him (`_left`), and posts that it is done. The owner of a stream who has come out of
   it leaves to another worker what was asked for meanwhile, for he may go into a callback.
"""

from __future__ import annotations

import errno
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from hydrogen._py import kernel, mailbox
from hydrogen._py.buffer import BATCH, Memory, SendQueue, Share
from hydrogen._py.mailbox import Mailbox, Queue
from hydrogen._py.role import Role, Waiters
from hydrogen._py.statistics import Tally
from hydrogen._py.streams import Transport
from hydrogen.config import Config
from hydrogen.errors import Cause, Timeout, cause_of, removal_error
from hydrogen.locks import total
from hydrogen.tls import TlsSession

FLUSH_BUDGET = 256 << 10
"""Bytes that one flusher writes before others get their turn: as much as `Config.read_budget`
allows a reader by default.
"""


COLLECT_MOST = 64
"""Messages that one thread takes from others before it leaves the rest: else it would not come out
as long as they send.
"""


COMPRESSED_AS_ONE = 4096
"""Bytes to be compressed that count as one more of these."""

CONTENDED = 0.025
"""Seconds for which one who leaves a message to who is in the role lets that one get on, when
`max_write_buffer` bytes are left to him; in proportion when it is less, and not at all below a
64th. So threads that send, however many, become as slow as the one who writes."""


class Raw(bytes):
    """What is sent as it is, and counts as no message: a control frame, an answer of HTTP."""

    __slots__ = ()


class Uncompressed(bytes):
    """A message of a WebSocket that is to be compressed in the order of sending: the opcode, then
    the payload.
    """

    __slots__ = ()


class End(NamedTuple):
    """Why a connection ends.

    Attributes:
        cause: of `error`.
        code: the errno or `Timeout` of `cause`, 0 if it has none.
        error: what the callbacks get.
    """

    cause: Cause
    code: int
    error: Exception


class OutputLoop(Queue, Protocol):
    """What the output half needs of its loop."""

    config: Config
    memory: Memory
    forked_away: bool

    def refused(self) -> None:
        """Count a message that was not taken: not in the tally, for somebody may still send when
        that of the connection was added up.
        """

    def tend_later(self, connection: Any) -> None:
        """Have another thread call `tend`: of a stream of the user's a worker, any that is free,
        else the event thread.

        It is not left to the owner, who may be in a callback for long.
        """

    def watch_output(self, connection: Any) -> None:
        """Call `look_at_progress` now and then, until it says that nothing is pending."""

    def in_worker(self) -> bool:
        """Whether the calling thread is the engine's, and runs code of the user's."""

    def leave_if_forked(self) -> None:
        """If code of the user's has forked, and this is the child of a worker: the connections are
        the parent's, and this thread no worker any more. A thread of the user's goes its own way.

        Raises: SystemExit.
        """


def _nothing() -> None: ...


class Budget:
    """What one thread does of the output before it leaves the rest to another one.

    Attributes:
        size: bytes to write.
        messages: messages to take from others.
    """

    __slots__ = ("messages", "size")

    def __init__(self) -> None:
        self.size = FLUSH_BUDGET
        self.messages = COLLECT_MOST

    def is_used_up(self) -> bool:
        """Whether one of them is."""
        return self.size <= 0 or self.messages <= 0


class Progress:
    """When the peer last took something of blocked output, as far as was seen. Written by who
    begins to watch, and then by who looks.

    Attributes:
        since: by the monotonic clock.
        sent: bytes that the kernel had taken.
        edges: how often it had said that it takes more.
        kept: bytes that it had not taken.
        unsent: bytes that it had taken, and the peer's had not acknowledged.
    """

    __slots__ = ("edges", "kept", "sent", "since", "unsent")

    def __init__(self) -> None:
        self.since = 0.0
        self.sent = self.edges = self.kept = self.unsent = 0


class Output(Mailbox):
    """Send queue, watermarks, and the beginning of the end.

    Attributes:
        at_once: the end is a reset; pending output is dropped.
        session: TLS; None: none. Set by the owner before anybody else can send; used in the role.
        tally: counters.
        blocked_output: bytes pending because the peer does not read: what counts towards
            `max_buffered`. Others leave at once.
        last_byte: when the last byte came or went, by the monotonic clock. Written by the owner, in
            the role, and by the event thread, each the time of now.
    """

    __slots__ = (
        "_accounted",
        "_asked",
        "_blocked",
        "_draining",
        "_edges",
        "_ended_messages",
        "_ends",
        "_left",
        "_noted",
        "_over_high",
        "_progress",
        "_queued",
        "_rests",
        "_role",
        "_sealed",
        "_taken",
        "_told_edges",
        "_told_flushed",
        "_told_high",
        "_torn",
        "_waiting",
        "_waiting_size",
        "_watched",
        "at_once",
        "blocked_output",
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
        self.at_once = False
        self.last_byte = time.monotonic()
        self._role = Role()
        self._asked = False  # see invariant 1
        # What the owner asks for, and bits to post when the role is given back.
        self._left: deque[tuple[Callable[[], object], int]] = deque()
        self._ends: deque[End] = deque()
        # messages that were sent; they are queued in the role
        self._waiting: deque[bytes] = deque()
        self._waiting_size = 0  # bytes in it, about: exact when nobody sends
        self._queued = SendQueue()
        self._draining = Waiters()
        self._blocked = False  # see invariant 2
        self._noted = self._taken = 0  # see invariant 2
        # so many had come when a worker was sent for last; by the event thread
        self._told_edges = 0
        # that came while it was blocked, and because the kernel had taken no more; by the event
        # thread
        self._edges = 0
        # pending was over the high watermark, and has not been below the low one since
        self._over_high = False
        self._ended_messages = False  # see invariant 3
        self._told_high = False  # a handler was told that pending is over the high watermark
        self._told_flushed = False  # see invariant 4
        self._torn = False  # more may have been written, or encrypted, than is known
        self._sealed = False  # the transport is being closed
        self._rests = False  # and all that follows from that is done
        self.blocked_output = Share()
        self._accounted = 0  # what it was said to be last
        self._watched = False  # see invariant 5
        self._progress = Progress()

    @property
    def error(self) -> Exception | None:
        """Why the connection ends; None while it is open."""
        return self._ends[0].error if self._ends else None

    @property
    def cause(self) -> Cause:
        """The same as a `Cause`. When it ends."""
        return self._ends[0].cause

    @property
    def code(self) -> int:
        """The errno or `Timeout` of `cause`. When it ends."""
        return self._ends[0].code

    @property
    def pending(self) -> int:
        """Bytes not yet taken by the kernel."""
        return self._unwritten(self.transport.writing)

    def _unwritten(self, writing: int = 0) -> int:
        """`pending`, less what a stream of the user's is being given."""
        return (
            0
            if self.at_once or self._sealed
            else self._waiting_size + self._queued.size + self.transport.kept + writing
        )

    def tell_pending(self) -> int:
        """`pending`, for a handler, which may wait for `on_writable` because of it.

        While messages pass from those who wait to the queue, and while others send, it may be above
        the high watermark for a moment that nobody sees who settles. So that is noted here.
        """
        pending = self.pending
        if pending > self.loop.config.write_buffer_limits[1] and not self._over_high:
            self._told_high = True
            self.tend()
        return pending

    @property
    def is_sealed(self) -> bool:
        """Whether the connection has ended: its last callbacks are due, or run."""
        return self._sealed

    @property
    def is_blocked(self) -> bool:
        """Whether the kernel takes no more output."""
        return self._blocked

    @property
    def is_held_back(self) -> bool:
        """Whether so much output is pending that nothing is to be read or delivered."""
        return self._over_high

    def send(self, data: bytes, rests: bool = True, limited: bool = True) -> bool:
        """Queue the message `data`, framed, and write what the kernel takes now; False when the
        connection ends, or must end for this.

        Args:
            data: the message.
            limited: whether it ends the connection when `max_write_buffer` is pending.
            rests: let who has to write it get on, if that is somebody else; who sends to many does
                so once, for the longest `rest`.

        Raises: BaseException: what a thread of the user's is to be told (Ctrl-C, or `sys.exit()` of
        a signal handler), see `_write`.
        """
        session = self.session
        if self._ends or self._sealed or (session is not None and not session.is_writable):
            return self._refuse(data)
        if limited and self.pending >= self.loop.config.max_write_buffer:
            self.end(Cause.SLOW_CONSUMER, at_once=True)
            return self._refuse(data)
        size = len(data)
        try:
            self._waiting.append(data)
            # no call between: others would add theirs meanwhile, or take it all away
            self._waiting_size += size
            self._asked = True
            self._catch_up()
            if self.transport.is_stream and self._role.is_taken():
                self._count_left()
            if rests and self._role.is_taken() and (seconds := self.rest()):
                time.sleep(seconds)
        except BaseException:
            self._leave_interrupted()
            raise
        if self.loop.forked_away:  # in there, and this is the child
            return False
        if self._ended_messages and self._take_back(data):
            return self._refuse(data)
        return True

    def _refuse(self, data: bytes) -> bool:
        """Count a message that was not taken; False."""
        if type(data) is not Raw:
            self.loop.refused()
        return False

    def tend(self) -> None:
        """See to the output. If somebody is at it, he does. Of a stream of the user's only where
        code of the user's may run.

        Raises: BaseException: see `send`. What this thread was kept from another one does.
        """
        try:
            self._asked = True
            self._catch_up()
        except BaseException:
            self._leave_interrupted()
            raise

    def in_role(self, work: Callable[[], object], bits: int, *, by_anybody: bool = False) -> bool:
        """Do `work` in the role; False when somebody else is in it, then `bits` are posted when he
        is done. By the owner.

        Args:
            by_anybody: whether he does the work. It may be done again, and is not done any more
                when the connection ends at once.
        """
        try:
            if self._role.run(work):
                return True
            self._left.append((work if by_anybody else _nothing, bits))
            return self._role.run(work)
        finally:
            if self.transport.is_stream and self._asked and not self.loop.forked_away:
                # the owner is needed: if who is in the stream is to be cut off, it is by him
                self._leave_to_another()
            else:
                self._catch_up()

    def drain(self, timeout: float | None) -> bool:
        """Wait until pending output is below the low watermark; False when the connection ends at
        once or the time is over.
        """
        low = self.loop.config.write_buffer_limits[0]

        def is_over() -> bool:
            # Who was about to may be the very thread that is waiting here: a worker for which a
            # stream waits, after an edge or a budget, or one that this call has interrupted on its
            # way to the role.
            self.tend()
            return self._sealed or self.at_once or self.loop.forked_away or self.pending < low

        if self._role.is_mine():  # this call has interrupted who writes, and would wait for itself
            timeout = 0
        return self._draining.wait_for(is_over, timeout) and not (
            self._sealed or self.at_once or self.loop.forked_away
        )

    def end(
        self, cause: Cause, error: Exception | None = None, *, code: int = 0, at_once: bool = False
    ) -> bool:
        """Let the connection end because of `cause` and `code`; False when that changes nothing.
        `error`: None: the usual one of these.
        """
        if self.loop.forked_away or self._sealed or self.at_once or (self._ends and not at_once):
            return False
        end = End(cause, code, error if error is not None else removal_error(cause, code))
        try:
            self._ends.append(end)
            if at_once:  # not |=, which could take back what another thread has set meanwhile
                self.at_once = True
        finally:
            self.post(mailbox.CLOSING)
        if at_once:
            self._draining.wake()
            self.tend()  # no code of the user's runs: everything is dropped
        return at_once or self._ends[0] is end

    def on_writable(self, is_alone: bool) -> None:
        """An edge of OUT came. By the event thread: a socket is flushed here, so that output moves
        while all workers block in handlers.

        Args:
            is_alone: nothing else came. Else it may be so only that the kernel could take more all
                the time.
        """
        self._noted += 1
        if self.transport.is_stream:
            # what it writes it does not tell, and it may be in one `send` for long
            self.last_byte = time.monotonic()
        if not self._blocked:
            # Who writes finds it. If nobody does, it is of no interest.
            return
        self._edges += (
            is_alone or not self.transport.is_stream or kernel.unsent(self.transport.poll_fd) > 0
        )
        if not self.transport.is_stream:
            self.tend()
        elif self._taken >= self._told_edges:
            # else a worker is to come for an earlier one still, and takes this one, too
            self._leave_to_another()
            self._told_edges = self._noted

    def look_at_progress(self, now: float, timeout: float) -> float | None:
        """End the connection, at once, if the peer has taken nothing of its output for `timeout`
        seconds. By the loop, see invariant 5.

        Progress is what anybody took: the kernel, which takes nothing more until a third of its
        queue is free, or the peer's kernel, which takes less at a time. It is seen later than it
        was made, so its time is that of the look.

        Returns:
            When that may be so at the earliest; None when nothing is to be watched any more.
        """
        if self.at_once or not self._is_stalled():
            self._watched = False
            if self.at_once or not self._is_stalled():
                return None
            self._watched = True
        progress = self._progress
        unsent = kernel.unsent(self.transport.poll_fd)
        sent, edges, kept = self.tally.bytes_sent, self._edges, self.transport.kept
        # What is given to a stream of the user's is not taken by anybody yet.
        is_sent = sent != progress.sent and not self.transport.is_stream
        if is_sent or edges != progress.edges or kept < progress.kept or unsent < progress.unsent:
            progress.since = now
        progress.sent, progress.edges, progress.kept, progress.unsent = sent, edges, kept, unsent
        until = progress.since + timeout
        if now < until:
            return until
        self.end(Cause.TIMEOUT, code=Timeout.WRITE_TIMEOUT, at_once=True)
        return None

    def end_messages(self) -> bool:
        """Write what is left; True when all is written, and nobody sends any more. By the owner, at
        the end.
        """
        return self._write_last(self._end_messages)

    def end_session(self) -> bool:
        """Write close_notify, behind all messages; True when it is written, or there is none. By
        the owner.

        An end at once that came meanwhile has dropped the rest, and is looked for last: a FIN in
        its place would say that all was sent.
        """
        return self.session is None or self._write_last(self._end_session)

    def _write_last(self, work: Callable[[], None]) -> bool:
        self._asked = True
        is_written = (
            self.in_role(work, mailbox.CLOSING) and self._ended_messages and self._is_flushed()
        )
        return is_written and not self.at_once

    def seal(self) -> bool:
        """Let nobody write any more; False when somebody still does, he will post CLOSING. By the
        owner, before the transport is closed.
        """
        return self._rests or self.in_role(self._seal, mailbox.CLOSING)

    # ---------------------------------------------------------------- in the role

    def append(self, data: bytes) -> None:
        """Queue what goes on the wire as it is: handshake, alerts. In the role, or before anybody
        else knows of the connection.
        """
        if data:
            self._queued.append(data)
            self._told_flushed = False
            self._asked = True

    def _catch_up(self) -> None:
        """Do what is asked for, and post what was left. Not if somebody else is in the role: he
        does it when he is done.

        What is raised comes out when all is done: others have left here what they have asked for
        meanwhile. In a forked child nothing is done.
        """
        raised: BaseException | None = None
        budget: Budget | None = None
        while (self._asked or self._left) and not self.loop.forked_away:
            try:
                budget = budget or Budget()
                if budget.is_used_up():
                    self._leave_to_another()
                    break
                if not self._role.run(partial(self._do_what_is_left, budget)):
                    break
            except BaseException as error:
                if issubclass(type(error), MemoryError):
                    self._leave_to_another()
                    break
                raised = error
        if self.loop.forked_away:
            self.loop.leave_if_forked()
        if raised is not None:
            raise raised

    def _leave_to_another(self) -> None:
        """Have another thread tend. Out of the role, or what it asks for would be done here."""
        if self.transport.is_stream:
            self._draining.wake()  # it may be one of them: all workers may wait there
        self.loop.tend_later(self)

    def _leave_interrupted(self) -> None:
        """Have another thread do what the calling one was kept from: it may be nobody else's, now
        that this one has given the role back.
        """
        self._asked = True
        if not self.loop.forked_away:
            self._leave_to_another()

    def _do_what_is_left(self, budget: Budget) -> None:
        try:
            if self._asked:
                self._tend(budget)
        finally:
            while self._left and not self.loop.forked_away:
                work, bits = self._left[0]
                if not (self.at_once or self._sealed):
                    work()
                if self.loop.forked_away:
                    break
                self.post(bits)
                self._left.popleft()

    def _tend(self, budget: Budget) -> None:
        self._asked = False
        try:
            self._collect(budget)
            self._write(budget)
        except BaseException as error:
            out_of_memory = issubclass(type(error), MemoryError)
            if out_of_memory and not self._torn:
                self._asked = True
                budget.messages = 0  # somebody else goes on
                return
            if not (self._torn or issubclass(type(error), Exception)):  # Ctrl-C, say
                self._asked = True
                raise
            # Half of something may be written: what came after it would be nonsense to the peer.
            self.end(
                Cause.OS_ERROR, code=errno.ENOMEM if out_of_memory else errno.EIO, at_once=True
            )
            if not out_of_memory:
                raise
        finally:
            self._torn = False
            self._settle()

    def _collect(self, budget: Budget) -> None:
        """Take the messages that wait into the queue, with TLS encrypted, until the budget is used
        up.
        """
        while self._waiting and not self._ended_messages:
            if budget.messages <= 0:
                self._waiting_size = total(self._waiting)
                self._asked = True
                return
            data = self._waiting[0]
            budget.messages -= 1
            if type(data) is Uncompressed:  # which takes far longer
                budget.messages -= len(data) // COMPRESSED_AS_ONE
            sent = self.tally.messages_sent + (type(data) is not Raw)
            if not (self.at_once or self._sealed):
                self._torn = True
                self._prepare(data)
            # Nothing is allocated from here on: a message is queued once, or has not been taken.
            self._told_flushed = False
            self.tally.messages_sent = sent
            self._waiting.popleft()
            self._torn = False
        self._waiting_size = 0

    def _prepare(self, data: bytes) -> None:
        compresses = type(data) is Uncompressed
        if compresses:
            data = self.compressed(data)  # type: ignore[arg-type]
        if self.session is not None:
            self._encrypt(self.session, data)
        elif data or self.transport.is_stream:  # on a socket there is nothing to an empty one
            try:
                self._queued.append(data)
            except MemoryError:
                # It is not in there, and may be queued again; but not be compressed again: those
                # that follow refer to it.
                self._torn = compresses
                raise

    def _encrypt(self, session: TlsSession, data: bytes) -> None:
        if not data or not session.is_writable:
            return
        try:
            self._queued.append(session.encrypt(data))
        except ssl.SSLError as error:  # a record may be missing
            self.end(Cause.TLS_ERROR, error.with_traceback(None), at_once=True)
        except MemoryError:
            raise
        except BaseException as error:
            # as above, of a class of the user's. Who is here may be in a callback of another
            # connection
            self.end(Cause.OS_ERROR, code=errno.EIO, at_once=True)
            if not (issubclass(type(error), Exception) or self.loop.in_worker()):
                raise

    def _write(self, budget: Budget) -> None:
        """Write until nothing is left, the kernel takes no more, or the budget is used up.

        What interrupts a thread of the user's ends the connection, for half of something may be
        written, and is raised again.
        """
        is_stream = self.transport.is_stream
        while not (self.at_once or self._sealed):
            noted = self._noted
            edge = noted != self._taken
            self._blocked &= not edge
            if is_stream:
                # A stream is given its messages at once; what it cannot write it keeps itself, and
                # that is pending then.
                if not self._queued and not (edge and self.transport.is_stalled):
                    return
            elif self._blocked or not self._queued:
                return
            if budget.size <= 0:
                self._asked = True
                return
            messages = self._queued.front(1 if is_stream else BATCH)
            # What is known when all is taken is worked out before: then nothing is allocated until
            # it is noted.
            total = sum(map(len, messages))
            following, sent, now = (
                budget.size - total,
                self.tally.bytes_sent + total,
                time.monotonic(),
            )
            self._taken = noted
            # from here on: while a stream writes its message, that is nowhere else
            self._torn = True
            if is_stream and messages:
                self._queued.take()
            try:
                written, full = self.transport.write(messages)
            except BaseException as error:
                if self.loop.forked_away:
                    raise
                try:
                    cause, reason = self.transport.explain(error, "send")
                except BaseException:  # Ctrl-C, while that tells of it
                    self.end(*cause_of(error), at_once=True)
                    raise
                self.end(cause, reason, at_once=True)
                if not (issubclass(type(error), Exception) or self.loop.in_worker()):
                    raise
                return
            if self.loop.forked_away:
                return
            if written or not full:
                self.last_byte = now
            if written != total:
                following, sent = following + total - written, sent + written - total
            budget.size, self.tally.bytes_sent = following, sent
            if not is_stream:
                self._queued.consume(written)
            self._blocked = full
            self._torn = False

    def _settle(self) -> None:
        """After any change: watermarks, those who wait, the account."""
        is_dropped = self.at_once or self._sealed
        if is_dropped:
            self._queued.clear()
            self._waiting_size = 0
            self._blocked = False
        pending, is_told = self.pending, self._told_high
        low, high = self.loop.config.write_buffer_limits
        # what is left to who is in there is counted by others, too
        is_stream = self.transport.is_stream
        rises = (pending > high or is_told) and not self._over_high
        # what was dropped has not fallen: the connection ends while paused
        falls = (self._over_high or rises) and pending < low and not is_dropped
        is_flushed = bool(self._ends) and not self._told_flushed and self._is_flushed()
        accounted = pending if self._blocked or is_stream else 0
        # What is to be posted lies in `_left`, and what is counted is worked out, before anything
        # is changed: where there is no memory all of this is done again.
        resumes, pauses = self.tally.reading_resumes + falls, self.tally.reading_pauses + rises
        if falls or is_flushed:
            self._left.append((_nothing, mailbox.LOW * falls | mailbox.CLOSING * is_flushed))
        self._over_high = (self._over_high or rises) and not falls
        self.tally.reading_resumes, self.tally.reading_pauses = resumes, pauses
        self._told_flushed |= is_flushed
        if is_told:
            self._told_high = False  # only then: it may be set at any moment
        if pending < low:
            self._draining.wake()
        if accounted != self._accounted or is_stream:
            self.loop.memory.account(self.blocked_output, accounted)
            self._accounted = accounted
        if self._blocked and not self._watched and self.loop.config.write_timeout is not None:
            self._watched = True
            try:
                self._begin_to_watch()
            except BaseException:
                self._watched = False
                raise

    def _begin_to_watch(self) -> None:
        """See invariant 5."""
        progress = Progress()
        progress.unsent = kernel.unsent(self.transport.poll_fd)
        progress.since = time.monotonic()
        progress.sent, progress.edges, progress.kept = (
            self.tally.bytes_sent,
            self._edges,
            self.transport.kept,
        )
        self._progress = progress
        self.loop.watch_output(self)

    def _end_messages(self) -> None:
        budget = Budget()
        self._told_flushed = True  # the owner sees it
        self._tend(budget)
        if not self._ended_messages and self._is_flushed():
            self._ended_messages = True
            self._take_late()
            if last := self.closing_frame():
                self._prepare(last)
            self._tend(budget)
        self._told_flushed = self._is_flushed()

    def _end_session(self) -> None:
        if self.session is not None and (last := self.session.close()):
            self._queued.append(last)
        self._end_messages()

    def compressed(self, message: Uncompressed) -> bytes:
        """The frame of a message that is to be compressed; there is none but of a WebSocket."""
        return message

    def closing_frame(self) -> bytes:
        """The last message, which says why the connection ends; b"" for none."""
        return b""

    def _take_late(self) -> None:
        """Messages that were sent before it could be known that they are the last: see invariant 3.
        What is raised ends the connection.
        """
        while self._waiting:
            try:
                data = self._waiting.popleft()
            except IndexError:  # it was taken back
                return
            self._prepare(data)
            self.tally.messages_sent += type(data) is not Raw

    def _seal(self) -> None:
        self._sealed = self._ended_messages = True
        self._settle()
        self._draining.wake()
        self._rests = True

    def _is_flushed(self) -> bool:
        """Whether all output is written, or dropped. What waits when the messages have ended is
        taken back, sooner or later.
        """
        return self.at_once or not (
            self._queued
            or self.transport.is_stalled
            or (self._waiting and not self._ended_messages)
        )

    # ---------------------------------------------------------------- anybody's

    def _is_stalled(self) -> bool:
        """Whether output waits for the peer, and not, after an edge, for us. A hint."""
        return (
            self._blocked
            and self._noted == self._taken
            and not self._sealed
            and (bool(self._queued) or self.transport.is_stalled)
        )

    def _count_left(self) -> None:
        """A message was left to who is in a user's stream. Who counts it otherwise may be in there
        for long.

        It is counted anew by whoever looks at `_asked`, so that what he counts is the last word.
        """
        self.loop.memory.account(self.blocked_output, self._unwritten())
        self._asked = True
        self._catch_up()
        time.sleep(0)  # lets go of the GIL: he gets on then, or we would leave him more and more

    def rest(self) -> float:
        """Seconds for which one who has sent lets who is in the role get on: he needs the GIL for
        that, and many who send, or one who never lets go of it, would leave him more than he
        writes: the peer would be taken for a slow one. What lies in the queue is not waited
        for: the peer may be slow."""
        left, most = self._waiting_size, self.loop.config.max_write_buffer
        if left * 64 <= most or not self._role.is_taken() or self._role.is_mine():
            return 0.0
        return CONTENDED * min(left / most, 1.0)

    def _take_back(self, data: bytes) -> bool:
        """Whether the message `data` was still waiting when no more were to be written.

        It may be an equal one of another thread's that is taken: then that thread's `send` finds
        ours, or nobody looks and ours is written. No order is lost, for no thread has two of which
        the end did not know.
        """
        try:
            self._waiting.remove(data)
        except ValueError:
            return False
        return True
