"""A connection: input, callbacks and the end, all by its owner.

`turn` is the heart: the worker that took the connection from the ready queue owns it, does what its bits ask for, and lets go. Only in
there is input touched, and only there do callbacks run: this alone makes them come one at a time and in order.

The end, whatever its cause, begins with `Output.end`, which sets `error`. In order: the queue is flushed, FIN, input discarded until EOF
or `LINGER`, shutdown. At once: a reset. Then in both cases the last callbacks, close, and the slot is released. The fd is closed after
the callbacks, so that its number cannot belong to a new connection while a handler still files by it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol

from hydrogen._py import mailbox, poller
from hydrogen._py.framing import ChunkDecoder, Decoder, decoder_for
from hydrogen._py.output import Output, OutputLoop
from hydrogen._py.poller import Poller
from hydrogen._py.transport import SocketTransport, StreamTransport
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import Cause, FrameTooLarge, ProtocolError, Reject, handler_error, removal_error
from hydrogen.handler import Callbacks, log_callback_error
from hydrogen.stream import Stream

LINGER = 2.0
"""Seconds that input is discarded after our FIN: closing with unread input resets the peer, and the tail of the reply is lost."""

MESSAGE_BUDGET = 256
"""Messages delivered in one turn before the others come."""


class Loop(OutputLoop, Protocol):
    """What a connection needs of its loop."""

    callbacks: Callbacks
    poller: Poller
    placeholder: int

    def linger(self, token: int) -> None:
        """Post DEADLINE after `LINGER`."""

    def removing(self, cause: Cause) -> None:
        """A connection is about to have its last callbacks."""

    def gone(self, connection: Any) -> None:
        """The slot of `connection` can go to another."""


class Connection(Output):
    """One connection. All fields here but `user_data` and `is_paused` are its owner's.

    Attributes:
        token: see `slab`.
        fd: the number accept(2) gave.
        socket: what callbacks get.
        user_data: the handler's.
        is_introduced: `on_new_connection` has had its say: only from then on it is known who reads and writes.
        is_paused: by `pause_reading`.
        peername, sockname: as at the start; a connection that was reset has forgotten them.
    """

    __slots__ = (
        "_decoder",
        "_ended_output",
        "_eof",
        "_hung_up",
        "_readable",
        "_refused",
        "_told_eof",
        "_undelivered",
        "counted",
        "fd",
        "is_introduced",
        "is_paused",
        "peername",
        "socket",
        "sockname",
        "token",
        "user_data",
    )

    loop: Loop

    def __init__(self, loop: Loop, sock: socket.socket, names: tuple[Any, Any], token: int, handle: HydrogenSocket) -> None:
        super().__init__(loop, SocketTransport(sock))
        self.token = token
        self.fd = sock.fileno()
        self.peername, self.sockname = names
        self.socket = handle
        self.user_data: Any = None
        self.is_paused = False
        self.counted = False  # by `Engine.abort_all`, under its lock
        self._decoder: Decoder = decoder_for(loop.config.builder)
        self._undelivered = 0  # bytes of ours in `loop.memory`
        self._readable = False  # an edge came, and EAGAIN has not been seen since
        self._hung_up = False
        self._eof = False
        self._told_eof = False
        self._refused = False  # by `on_new_connection`
        self.is_introduced = loop.callbacks.on_new_connection is None
        self._ended_output = False

    def fail(self, code: int) -> None:
        """End at once: the kernel said `code`, an errno."""
        self.end(Cause.OS_ERROR, removal_error(Cause.OS_ERROR, code), at_once=True)

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

    def turn(self) -> bool:
        """Do what the bits ask for, and let go; True when there is more to do, and the connection still owned. By the owner."""
        bits = self.take()
        self._readable |= bool(bits & mailbox.READABLE)
        self._hung_up |= bool(bits & mailbox.HANGUP)
        if bits & mailbox.NEW and not self.at_once:
            self._introduce()
        if bits & mailbox.WRITABLE:
            self.flush()
        if bits & mailbox.LOW and self.error is None and self.loop.callbacks.on_writable is not None:
            self._call("on_writable", self.loop.callbacks.on_writable, self.socket)
        self._serve_input()
        if self.error is not None and self._wind_up(bool(bits & mailbox.DEADLINE)):
            return False
        self._account_input()
        return not self.let_go()

    def _introduce(self) -> None:
        """`on_new_connection`, register, `on_connected`."""
        callbacks = self.loop.callbacks
        if callbacks.on_new_connection is not None:
            stream = self._ask_for_stream(callbacks.on_new_connection)
            self._leave_if_forked()
            if stream is not None:
                self._adopt(stream)
            self.is_introduced = True
        if not self.at_once:
            self.register()
        if callbacks.on_connected is not None and self.error is None:
            self._call("on_connected", callbacks.on_connected, self.socket)

    def _ask_for_stream(self, on_new_connection: Callable[[int], Stream | None]) -> Stream | None:
        """What `on_new_connection` returns; None also when it refuses or fails, then the connection ends."""
        try:
            stream = on_new_connection(self.fd)
            if stream is not None and not isinstance(stream, Stream):
                raise TypeError(f"on_new_connection must return None or a hydrogen.Stream, not {stream!r:.80}")
        except Reject as error:
            self._refused = True
            self.end(Cause.REJECT, error, at_once=True)
            return None
        except BaseException as error:
            self._refused = True
            log_callback_error("on_new_connection", error)
            self.end(Cause.HANDLER_ERROR, handler_error(error))
            return None
        return stream

    def _adopt(self, stream: Stream) -> None:
        """Use `stream`, which owns the fd from now on."""
        transport = StreamTransport(stream)
        assert isinstance(self.transport, SocketTransport)
        self.transport.abandon()
        self.transport = transport
        self._decoder = ChunkDecoder()
        try:
            transport.open()
        except BaseException as error:
            cause, reason = transport.explain(error, "fileno")
            self.end(cause, reason, at_once=True)

    def _serve_input(self) -> None:
        """Deliver what is complete, then read, in turn, until nothing is left, a pause, or the budget is used up."""
        messages, budget = MESSAGE_BUDGET, self.loop.config.read_budget
        while self.error is None and not self.is_paused and not self.is_held_back:
            if not messages or budget <= 0:
                self.post(mailbox.RESUME)
                return
            try:
                message = self._decoder.next()
            except ProtocolError as error:
                self.end(Cause.FRAME_TOO_LARGE if isinstance(error, FrameTooLarge) else Cause.BAD_FRAME)
                return
            if message is not None:
                messages -= 1
                self.tally.messages_received += 1
                self._call("on_data_received", self.loop.callbacks.on_data_received, self.socket, message)
            elif self._eof and not self._told_eof:
                self._end_of_input()
            elif self._readable and not self._eof and not self.loop.memory.must_wait(self.token):
                budget -= self._read()
            else:
                break
        if self._hung_up and self.error is None:
            self._check_hangup()

    def _read(self) -> int:
        """Read once, into the decoder; returns how many bytes came."""
        try:
            chunks = self.transport.receive()
            for chunk in chunks:
                self._decoder.feed(chunk)
        except EOFError:
            # A flusher may have met a reset first: the kernel tells of it once, and to us it looks like an orderly end.
            self._eof = not self.waits_for_flusher(mailbox.READABLE)
            chunks = []
        except BaseException as error:
            cause, reason = self.transport.explain(error, "recv")
            self.end(cause, reason, at_once=cause == Cause.OS_ERROR)
            chunks = []
        self._readable = bool(chunks)
        self._leave_if_forked()
        count = sum(map(len, chunks))
        self.tally.bytes_received += count
        return count

    def _end_of_input(self) -> None:
        """The peer will send no more, and everything it sent was delivered."""
        self._told_eof = True
        if self._decoder.is_partial():
            self.end(Cause.INCOMPLETE_FRAME)
        elif self.loop.callbacks.on_eof is not None:
            self._call("on_eof", self.loop.callbacks.on_eof, self.socket)
        else:
            self.end(Cause.PEER_CLOSED)

    def _check_hangup(self) -> None:
        """Ask for the error that reading meets, unless a pause or the end of input keeps it from reading. A reset ends any pause."""
        code = self.transport.pending_error()
        if code:
            self.fail(code)

    def _wind_up(self, lingered: bool) -> bool:
        """One step further towards the end; True when the connection is gone."""
        if not self.at_once:
            self._discard()
        if self.at_once:
            return self._remove()
        if not self.is_flushed():
            return False
        if not self._ended_output:
            self._ended_output = True
            if self.transport.end_output() and not self._eof:
                self.loop.linger(self.token)
                return False
            return self._remove()
        return (self._eof or lingered) and self._remove()

    def _discard(self) -> None:
        """Read and drop what the peer still sends. Its own writes must not get stuck, or it would not come to read ours."""
        self._decoder = ChunkDecoder()
        if self.transport.is_stream:
            return
        budget = self.loop.config.read_budget
        while self._readable and not self._eof:
            if budget <= 0:
                self.post(mailbox.RESUME)
                return
            budget -= self._read()
            self._decoder = ChunkDecoder()

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
        self.loop.removing(self.cause)
        if callbacks.on_disconnected is not None and not self._refused:
            self._call("on_disconnected", callbacks.on_disconnected, self.socket, self.error)
        if callbacks.on_connection_removed is not None:
            self._call("on_connection_removed", callbacks.on_connection_removed, self.fd, self.error)
        self.user_data = None
        self.transport.close()
        self.loop.gone(self)
        return True

    def _call(self, name: str, callback: Callable[..., None], *arguments: object) -> None:
        """Run a callback; what it raises ends the connection, if it has not ended."""
        try:
            callback(*arguments)
        except BaseException as error:
            log_callback_error(name, error)
            self.end(Cause.HANDLER_ERROR, handler_error(error))
        self._leave_if_forked()

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
