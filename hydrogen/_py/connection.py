"""A connection: input, callbacks and the end, all by its owner.

`step` is the heart: the worker that took the connection from the ready queue owns it, does what its bits ask for, and lets go. Only in
there is input touched, and only there do callbacks run: this alone makes them come one at a time and in order.

What is read goes through TLS, if the connection has a session, into the decoder, and from there message by message to the handler. A
connection is *ready* when it is known who reads and writes, and the handshake is done: until then the handler knows no more of it
than its fd. With PROXY protocol it knows not even that before the header is there, which is read exactly: what follows may be somebody
else's to read.

Invariants of the deadlines:

1. `_deadline` is of one thing at a time: of the PROXY header and the handshake, then of the frame that the peer has begun; when the
   connection ends, of lingering. There is none (`inf`) while nothing is begun, or while reading is paused: after a pause the time begins
   anew. The time that `on_new_connection` takes is not the peer's, and does not count.
2. While the connection is open there is a second one, `idle_timeout` after `last_byte`. It is not kept anywhere: it moves with every byte.
   Also with those that the peer takes from the kernel's send queue: while there may be some the queue is looked at every now and then
   (`look_every`), and counts as moving when it got shorter, or was written to since the look before and is not empty.
3. When the owner lets go, a reminder stands at the monitor thread that is due by the earliest of these. An earlier one that stands already is
   left, and the step that it brings about asks for the next: so frames that are begun and finished, and bytes that come and go, cost the
   monitor nothing.
4. They end the connection only in a step that has seen the socket drained: what came in time counts, however late we are. While reading is
   paused, bytes that wait in the kernel show that the peer is not idle.

The deadline of output, `write_timeout`, is not the owner's affair: see `output`.

The end, whatever its cause, begins with `Output.end`, which sets `error`. In order: the queue is flushed; with TLS close_notify is queued,
and flushed; FIN, input discarded until EOF or `LINGER`, shutdown. At once: a reset. Then in both cases the last callbacks, close, and the
slot is released. The fd is closed after the callbacks, so that its number cannot belong to a new connection while a handler still files
by it.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from hydrogen._py import kernel, mailbox, poller
from hydrogen._py.framing import ChunkDecoder, Decoder, decoder_for, explain
from hydrogen._py.output import Output, OutputLoop, Work
from hydrogen._py.poller import Poller
from hydrogen._py.streams import CHUNK, SocketTransport, StreamTransport
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import Cause, IncompleteFrame, PeerClosed, ProtocolError, Reject, Timeout, handler_error
from hydrogen.handler import Callbacks
from hydrogen.proxy import V2_SIGNATURE, HeaderReader, ProxyHeader, Versions, begins_header, may_send
from hydrogen.stream import Plain, Secure, Stream
from hydrogen.tls import TlsSession

if TYPE_CHECKING:
    from hydrogen.log import RateLimitedLog

LINGER = 2.0
"""Seconds that input is discarded after our FIN: closing with unread input resets the peer, and the tail of the reply is lost."""

MESSAGE_BUDGET = 256
"""Messages delivered in one step before the others come."""


class Runner(Protocol):
    """The worker that takes a step.

    Attributes:
        progress: to be another number in each callback.
    """

    progress: int


class Loop(OutputLoop, Protocol):
    """What a connection needs of its loop.

    Attributes:
        is_verbose: whether each connection's steps are to be told.
        look_every: seconds that it may take to notice that the peer took something.
    """

    callbacks: Callbacks
    poller: Poller
    placeholder: int
    log: RateLimitedLog
    is_verbose: bool
    look_every: float

    def complain(self, name: str, error: BaseException) -> None:
        """See `framing.Complain`."""

    def admit(self, connection: Any) -> bool:
        """Count `connection` at the address of its client; False, and that is told, when there are too many of there."""

    def remind(self, token: int, when: float) -> None:
        """Post DEADLINE at `when`, by the monotonic clock, and not at the time said before."""

    def removing(self, connection: Any) -> None:
        """`connection` is about to have its last callbacks."""

    def gone(self, connection: Any) -> None:
        """The slot of `connection` can go to another."""


class Connection(Output):
    """One connection. All fields here but `user_data` and `is_paused` are its owner's.

    Attributes:
        token: see `slab`.
        fd: the number accept(2) gave.
        socket: what callbacks get.
        user_data: the handler's.
        builder: of what is sent, and received; None: chunks.
        ready: see the module; `on_disconnected` is due only from then on.
        is_paused: by `pause_reading`.
        peername, sockname: as at the start; a connection that was reset has forgotten them. `peername` is what the PROXY header says.
        proxy: that header; None: none has come.
        address: at which the connection is counted, see `addresses`; None: at none. Written before it is let go first, then by the owner.
    """

    __slots__ = (
        "_context",
        "_deadline",
        "_decoder",
        "_ended_output",
        "_eof",
        "_first_bytes",
        "_header",
        "_hung_up",
        "_input_ended",
        "_looked_at",
        "_looked_sent",
        "_looked_unsent",
        "_readable",
        "_reminder",
        "_runner",
        "_said_close_notify",
        "_shaking",
        "_told_eof",
        "_undelivered",
        "address",
        "builder",
        "counted",
        "fd",
        "ready",
        "is_paused",
        "peername",
        "proxy",
        "socket",
        "sockname",
        "token",
        "user_data",
    )

    loop: Loop

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        names: tuple[Any, Any],
        token: int,
        handle: HydrogenSocket,
        context: ssl.SSLContext | None,
    ) -> None:
        """Args: names: `peername` and `sockname`. context: for TLS, unless `on_new_connection` returns a stream; None: no TLS."""
        super().__init__(loop, SocketTransport(sock))
        self.token = token
        self.fd = sock.fileno()
        self.peername, self.sockname = names
        self.socket = handle
        self.user_data: Any = None
        self.is_paused = False
        self.counted = False  # by `Engine.abort_all`, under its lock
        self.builder = loop.config.builder
        self._decoder: Decoder = decoder_for(self.builder)
        self._undelivered = 0  # bytes of ours in `loop.memory`
        self._readable = False  # an edge came, and EAGAIN has not been seen since
        self._hung_up = False
        self._eof = False  # of the socket
        self._input_ended = False  # nothing more will come into the decoder
        self._told_eof = False
        self._context = context
        self._shaking = False  # hands, for TLS
        self.proxy: ProxyHeader | None = None
        self.address: str | None = None
        versions = loop.config.proxy_protocol
        self._header = None if versions == "off" else HeaderReader(cast(Versions, versions))  # None: none is to come, or it is here
        self._first_bytes: bytes | None = None  # after the header, as long as they may become another one
        unattended = loop.callbacks.on_new_connection is None and loop.callbacks.on_connected is None
        self.ready = unattended and context is None and self._header is None
        self._runner: Runner | None = None  # of the step of now
        self._looked_at = self.last_byte  # when the send queue was looked at, see invariant 2
        self._looked_sent = 0  # bytes sent until then
        self._looked_unsent = 0  # bytes that were in it
        self._said_close_notify = False  # close_notify was queued
        self._ended_output = False
        self._deadline = math.inf  # see the invariants
        self._reminder = math.inf  # when the reminder that stands is due

    def fail(self, code: int) -> None:
        """End at once: the kernel said `code`, an errno."""
        self.end(Cause.OS_ERROR, code=code, at_once=True)

    def begin(self) -> None:
        """After accepting, by the first owner: have a worker go on, or be polled."""
        if not self.ready:
            self.post(mailbox.NEW)
        elif self.error is None:
            self.register()
            self._ask_for_reminder()

    def register(self) -> None:
        """Be polled from now on. By the owner."""
        try:
            self.loop.poller.add(self.transport.poll_fd, self.token)
        except OSError as error:
            self.fail(error.errno or errno.EIO)

    def on_events(self, events: int) -> None:
        """What the poller has to tell. By the event thread."""
        if events & poller.WRITE:
            self.on_writable()
        if events & poller.HANGUP:
            self.post(mailbox.READABLE | mailbox.HANGUP)
        elif events & poller.READ:
            self.post(mailbox.READABLE)

    def step(self, runner: Runner) -> bool:
        """Do what the bits ask for, and let go; True when there is more to do, and the connection still owned. By the owner."""
        self._runner = runner
        bits = self.take()
        self._readable |= bool(bits & mailbox.READABLE)
        self._hung_up |= bool(bits & mailbox.HANGUP)
        if bits & mailbox.DEADLINE:
            self._reminder = math.inf
            self._readable = True  # perhaps the edge of what came in time is on its way still
        if bits & mailbox.NEW and not self.at_once:
            self._take_up()
        if bits & mailbox.WRITABLE:
            self.flush()
        if bits & mailbox.LOW and self.error is None and self.ready and self.loop.callbacks.on_writable is not None:
            self._call("on_writable", self.loop.callbacks.on_writable, self.socket)
        if self._header is not None:
            self._serve_header(self._header)
        self._serve_input()
        if self.error is None:
            self._watch(pause_ended=bool(bits & (mailbox.RESUME | mailbox.LOW)))
        if bits & mailbox.DEADLINE and self.error is None:
            self._watch_idleness()
        if self.error is not None and self._wind_up():
            return False
        self._account_input()
        self._ask_for_reminder()
        return not self.let_go()

    def _take_up(self) -> None:
        """A worker has come to the connection, perhaps late: its time begins now."""
        self.last_byte = time.monotonic()
        if self._header is None:
            self._introduce()
            return
        self.register()
        if not may_send(self.loop.config.proxy_allow_from, self.peername):
            self.end(Cause.BAD_FRAME, ProtocolError(f"{self.peername} is not allowed to connect: it is no proxy of proxy_allow_from"))

    def _serve_header(self, reader: HeaderReader) -> None:
        """Read the PROXY header, and not a byte more, until it is there or nothing is left."""
        header = None
        while self._readable and self.error is None and header is None:
            try:
                header = reader.feed(b"".join(self._receive(reader.wanted)))
            except ProtocolError as error:
                self.end(Cause.BAD_FRAME, error)
        if self.error is not None:
            return
        if header is not None:
            self._header = None
            self._follow_header(header)
        elif self._eof and reader.is_begun:
            self.end(Cause.INCOMPLETE_FRAME, IncompleteFrame("the end came inside the PROXY header"))
        elif self._eof:
            self.end(Cause.PEER_CLOSED, PeerClosed("the peer closed the connection before its PROXY header"))

    def _follow_header(self, header: ProxyHeader) -> None:
        """Go on as the connection of the client that `header` speaks of."""
        assert isinstance(self.transport, SocketTransport)
        self.proxy = header
        if header.source is not None:
            self.peername = header.source
            if not self.loop.admit(self):
                self.end(Cause.OVERLOAD, at_once=True)
                return
        # Here for those who read by themselves; what is read by us is looked at again as it comes.
        self._first_bytes = b""
        if self._is_second_header(self.transport.peek(len(V2_SIGNATURE))):
            return
        self._first_bytes = b""
        began = time.monotonic()
        self.loop.poller.remove(self.transport.poll_fd)  # a stream may poll its own, and be given what is said of this one
        self._introduce()
        self._deadline += time.monotonic() - began  # see invariant 1

    def _is_second_header(self, data: bytes) -> bool:
        """Whether `data`, with the first bytes before it, begins another PROXY header, of a client who would be another: it ends."""
        if self._first_bytes is None:
            return False
        first_bytes = self._first_bytes + data[: len(V2_SIGNATURE)]
        self._first_bytes = first_bytes if len(first_bytes) < len(V2_SIGNATURE) else None
        if begins_header(first_bytes):
            self.end(Cause.BAD_FRAME, ProtocolError("a second PROXY header"))
            return True
        return False

    def _introduce(self) -> None:
        """Settle who reads and writes, and be polled. `on_connected` comes now, or when the handshake is done."""
        settled = self._settle_streams()
        self._leave_if_forked()
        if not self.at_once:
            self.register()
        if settled and not self._shaking:
            self._connected()

    def _settle_streams(self) -> bool:
        """Ask `on_new_connection`, and set up what it wants; False when it refuses or fails, then the connection ends."""
        stream = None
        try:
            if self.loop.callbacks.on_new_connection is not None:
                self._count_progress()
                stream = self.loop.callbacks.on_new_connection(self.fd)
            if self.loop.forked_away:
                return False
            if type(stream) is Plain or type(stream) is Secure:
                self._take_over(stream)
            elif isinstance(stream, Stream):
                return self._adopt(stream)
            elif stream is not None:
                raise TypeError(f"on_new_connection must return None or a hydrogen.Stream, not {stream!r:.80}")
            elif self._context is not None:
                self._secure(TlsSession(self._context, server_side=True))
        except Reject as error:
            self.end(Cause.REJECT, error, at_once=True)
            return False
        except BaseException as error:
            self.loop.complain("on_new_connection", error)
            self.end(Cause.HANDLER_ERROR, handler_error(error))
            return False
        return True

    def _take_over(self, stream: Plain | Secure) -> None:
        """Go on where a stream of the library's own stands. It was made of our fd, which stays ours."""
        if stream.fileno() != self.fd:
            raise ValueError(f"on_new_connection({self.fd}) returned a {type(stream).__name__} of another fd: {stream.fileno()}")
        handover = stream.hand_over()
        self.builder = handover.builder
        self._decoder = decoder_for(self.builder)
        if handover.received:
            self._decoder.feed(handover.received)
        self.carry_out(self.append(handover.unsent))
        if handover.session is not None:
            self._secure(handover.session)

    def _secure(self, session: TlsSession) -> None:
        """Speak TLS from now on. A stream may have done the handshake, or part of it."""
        self.session = session
        with session.lock:
            if not session.is_ready:
                session.start()
            work = self._look_at_session_locked(session)
        self.carry_out(work)

    def _adopt(self, stream: Stream) -> bool:
        """Use a stream of the user's, which owns the fd from now on; False when that fails, then the connection ends."""
        transport = StreamTransport(stream, self.loop.complain)
        assert isinstance(self.transport, SocketTransport)
        self.transport.abandon()
        self.transport = transport
        self.builder = None
        self._decoder = ChunkDecoder()
        try:
            transport.open()
        except BaseException as error:
            cause, reason = transport.explain(error, "fileno")
            self.end(cause, reason, at_once=True)
            return False
        return True

    def _connected(self) -> None:
        """Ready for use: messages may come and go."""
        self.ready = True
        self._deadline = math.inf
        if self.loop.is_verbose and self.session is not None:
            self._tell_of_handshake(self.session)
        if self.loop.callbacks.on_connected is not None and self.error is None:
            self._call("on_connected", self.loop.callbacks.on_connected, self.socket)

    def _serve_input(self) -> None:
        """Deliver what is complete, then read, in turn, until nothing is left, a pause, or the budget is used up."""
        messages, budget = MESSAGE_BUDGET, self.loop.config.read_budget
        while self.error is None and self._header is None and not self.is_paused and not self.is_held_back:
            if not messages or budget <= 0:
                self.post(mailbox.AGAIN)
                return
            message = self._next_message()
            if message is not None:
                messages -= 1
                self._deadline = math.inf
                self.tally.messages_received += 1
                self._call("on_data_received", self.loop.callbacks.on_data_received, self.socket, message)
            elif self._input_ended and not self._told_eof:
                self._end_of_input()
            elif self._readable and not self._input_ended and not self.loop.memory.must_wait(self.token):
                budget -= self._read()
            else:
                break
        if self._hung_up and self.error is None:
            self._check_hangup()

    def _next_message(self) -> bytes | None:
        """What the decoder has; None also when it raises, then the connection ends."""
        try:
            message = self._decoder.next()
        except BaseException as error:
            message = None
            cause, reason = explain(self.builder, error, self.loop.complain)
            self.end(cause, reason, at_once=cause == Cause.OS_ERROR)
        self._leave_if_forked()
        return message if self.error is None else None

    def _read(self) -> int:
        """Read once, into the decoder; returns how many bytes came."""
        chunks = self._receive(CHUNK)
        try:
            for chunk in chunks:
                self._take_in(chunk)
        except BaseException as error:
            self._reading_failed(error)
        if self.error is None and not self.ready and not self._shaking:
            self._connected()
        return sum(map(len, chunks))

    def _receive(self, most: int) -> list[bytes]:
        """What came, of a socket at most so many bytes; `[]` also at the end, or when reading fails."""
        chunks: list[bytes] = []
        try:
            chunks = self.transport.receive(most)
        except EOFError:
            # A flusher may have met a reset first: the kernel tells of it once, and to us it looks like an orderly end.
            self._eof = not self.waits_for_flusher(mailbox.READABLE)
            self._input_ended |= self._eof
        except BaseException as error:
            self._reading_failed(error)
        self._readable = bool(chunks)
        if chunks:
            self.last_byte = time.monotonic()
            self.tally.bytes_received += sum(map(len, chunks))  # before TLS answers: who gets an answer may look here
        self._leave_if_forked()
        return chunks

    def _reading_failed(self, error: BaseException) -> None:
        cause, reason = self.transport.explain(error, "recv")
        self.end(cause, reason, at_once=cause == Cause.OS_ERROR)

    def _take_in(self, data: bytes) -> None:
        """What was read, on its way to the decoder. When the connection ends nobody wants it."""
        if self.error is not None or (self._first_bytes is not None and not self.transport.is_stream and self._is_second_header(data)):
            return
        if self.session is not None:
            data = self._decrypt(self.session, data)
        if data or self.transport.is_stream:  # whose messages may be empty
            self._decoder.feed(data)

    def _decrypt(self, session: TlsSession, data: bytes) -> bytes:
        with session.lock:
            plaintext = session.receive(data)
            work = self._look_at_session_locked(session)
        self.carry_out(work)
        return plaintext

    def _look_at_session_locked(self, session: TlsSession) -> Work:
        """After each use by the owner, who holds its lock: where it stands, and what it has to send."""
        self._shaking = not session.is_ready
        self._input_ended |= session.is_ended or session.failure is not None
        return self.append(session.take())

    def _end_of_input(self) -> None:
        """The peer will send no more, and everything it sent was delivered."""
        self._told_eof = True
        if self.session is not None and not self._ended_in_order(self.session):
            return
        if self._decoder.is_partial():
            self.end(Cause.INCOMPLETE_FRAME)
        elif self.loop.callbacks.on_eof is not None:
            self._call("on_eof", self.loop.callbacks.on_eof, self.socket)
        else:
            self.end(Cause.PEER_CLOSED)

    def _ended_in_order(self, session: TlsSession) -> bool:
        """Whether TLS says so. Otherwise, and in the middle of a handshake, the connection ends."""
        with session.lock:
            failure, in_order = session.failure, session.is_ended
        if failure is not None:
            self.end(Cause.TLS_ERROR, failure)
        elif not in_order or self._shaking:
            self.end(Cause.TRUNCATED)
        return self.error is None

    def _check_hangup(self) -> None:
        """Ask for the error that reading meets, unless a pause or the end of input keeps it from reading. A reset ends any pause."""
        code = self.transport.pending_error()
        if code:
            self.fail(code)

    def _watch(self, pause_ended: bool) -> None:
        """Keep the deadline of what the peer has begun: the handshake, or a frame."""
        config = self.loop.config
        seconds, code = (config.frame_timeout, Timeout.FRAME_TIMEOUT) if self.ready else (config.open_timeout, Timeout.OPEN_TIMEOUT)
        if seconds is None or (self.ready and not self._decoder.is_partial()) or self._must_not_read():
            self._deadline = math.inf
        elif pause_ended or self._deadline == math.inf:
            self._deadline = time.monotonic() + seconds
        elif not self._readable and time.monotonic() >= self._deadline:
            self.end(Cause.TIMEOUT, code=code, at_once=True)

    def _watch_idleness(self) -> None:
        """in a step that a reminder has brought about, and so has read what there is, unless it must not: see invariants 2 and 4."""
        if self.loop.config.idle_timeout is None:
            return
        now = time.monotonic()
        unsent = kernel.unsent(self.transport.poll_fd)
        if unsent < self._looked_unsent or (unsent and self.tally.bytes_sent != self._looked_sent):
            self.last_byte = now
        self._looked_at, self._looked_sent, self._looked_unsent = now, self.tally.bytes_sent, unsent
        if now < self.last_byte + self.loop.config.idle_timeout:
            return
        if self._must_not_read():
            if kernel.unread(self.transport.poll_fd):
                self.last_byte = now
                return
        elif self._readable and not self._input_ended:
            return  # there is more to read: AGAIN was posted, and the next reminder follows
        self.end(Cause.TIMEOUT, code=Timeout.IDLE_TIMEOUT, at_once=True)

    def _next_look(self) -> float:
        """When `_watch_idleness` is to be called, see invariant 2."""
        seconds = self.loop.config.idle_timeout
        if seconds is None:
            return math.inf
        idle_at = self.last_byte + seconds
        moves = self._looked_unsent or self.tally.bytes_sent != self._looked_sent
        return min(idle_at, self._looked_at + self.loop.look_every) if moves else idle_at

    def _must_not_read(self) -> bool:
        """Whether reading is paused, by anybody. If it is for want of memory, RESUME will come."""
        return self.is_paused or self.is_held_back or self.loop.memory.must_wait(self.token)

    def _ask_for_reminder(self) -> None:
        """See invariant 3 of the deadlines."""
        due = self._deadline if self.error is not None else min(self._deadline, self._next_look())
        if due < self._reminder:
            self._reminder = due
            self.loop.remind(self.token, due)

    def _wind_up(self) -> bool:
        """One step further towards the end; True when the connection is gone."""
        if not self._ended_output:
            self._deadline = math.inf
        if not self.at_once:
            self._discard()
        if self.at_once:
            return self._remove()
        if not self.is_flushed():
            return False
        if self.session is not None and not self._said_close_notify:
            self._send_close_notify(self.session)
            if not self.is_flushed():
                return False
        if not self._ended_output:
            self._ended_output = True
            if self.transport.end_output() and not self._eof:
                self._deadline = time.monotonic() + LINGER
                return False
            return self._remove()
        return (self._eof or time.monotonic() >= self._deadline) and self._remove()

    def _send_close_notify(self, session: TlsSession) -> None:
        """Queue close_notify: no message follows, for `error` is set."""
        self._said_close_notify = True
        with session.lock:
            work = self.append(session.close())
        self.carry_out(work)

    def _discard(self) -> None:
        """Read and drop what the peer still sends. Its own writes must not get stuck, or it would not come to read ours."""
        self._decoder = ChunkDecoder()
        if self.transport.is_stream:
            return
        budget = self.loop.config.read_budget
        while self._readable and not self._eof:
            if budget <= 0:
                self.post(mailbox.AGAIN)
                return
            budget -= self._read()

    def _remove(self) -> bool:
        """The end itself; False when it must wait for a flusher."""
        if not self.seal():
            return False
        assert self.error is not None
        callbacks = self.loop.callbacks
        self.loop.poller.remove(self.transport.poll_fd)
        if self.at_once:
            self.transport.reset(self.loop.placeholder)
        else:
            self.transport.shutdown()
        self._decoder = ChunkDecoder()
        self._account_input()
        self.loop.removing(self)
        if callbacks.on_disconnected is not None and self.ready:
            self._call("on_disconnected", callbacks.on_disconnected, self.socket, self.error)
        if callbacks.on_connection_removed is not None and self.cause != Cause.OVERLOAD:
            self._call("on_connection_removed", callbacks.on_connection_removed, self.fd, self.error)
        self.user_data = None
        self.transport.close()
        self.loop.gone(self)
        return True

    def _call(self, name: str, callback: Callable[..., None], *arguments: object) -> None:
        """Run a callback; what it raises ends the connection, if it has not ended."""
        self._count_progress()
        try:
            callback(*arguments)
        except BaseException as error:
            self.loop.complain(name, error)
            self.end(Cause.HANDLER_ERROR, handler_error(error))
        self._leave_if_forked()

    def _count_progress(self) -> None:
        """The worker is about to run another callback."""
        assert self._runner is not None
        self._runner.progress += 1

    def _tell_of_handshake(self, session: TlsSession) -> None:
        with session.lock:
            cipher = session.info("cipher")
        self.loop.log.shaken(self.socket.id, cipher)

    def _leave_if_forked(self) -> None:
        """If code of the user's has forked and this is the child: the connection is the parent's, and this thread no worker any more."""
        if self.loop.forked_away:
            raise SystemExit

    @property
    def undelivered(self) -> int:
        """Bytes of input not delivered: an unfinished frame, or what a pause holds back. A hint for threads that are not the owner."""
        return self._undelivered

    def _account_input(self) -> None:
        before, self._undelivered = self._undelivered, self._decoder.size
        self.loop.memory.add(self._undelivered - before)
