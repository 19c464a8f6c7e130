"""A connection: input, callbacks and the end, all by its owner.

`step` is the heart: the worker that took the connection from the ready queue owns it, does what its
bits ask for, and lets go. Only in there is input touched, and only there do callbacks run: this
alone makes them come one at a time and in order.

What is read goes through TLS, if the connection has a session, into the decoder, and from there
message by message to the handler. A connection is *ready* when it is known who reads and writes,
and the handshake is done: until then the handler knows no more of it than its fd. With PROXY
protocol it knows not even that before the header is there, which is read exactly: what follows may
be somebody else's to read.

Invariants of the deadlines:

1. `_deadline` is of one thing at a time: of the PROXY header and the handshake, then of the frame
   that the peer has begun; when the connection ends, of lingering. There is none (`inf`) while
   nothing is begun, or while reading is paused: after a pause the time begins anew. The time that
   `on_new_connection` takes is not the peer's, and does not count.
2. Until its output has ended there is a second one, `idle_timeout` after `last_byte`. It is not
   kept anywhere: it moves with every byte. Also with those that the peer takes from the kernel's
   send queue: while there may be some the queue is looked at every now and then (`look_every`), and
   counts as moving when its length is another one, or it was written to since the look before and
   is not empty. It may be as long as before though it moves, where a stream of the user's fills it
   again at once: then edges of OUT are what is seen.
3. When the owner lets go, a reminder stands at the monitor thread that is due by the earliest of
   these. An earlier one that stands already is left, and the step that it brings about asks for the
   next: so frames that are begun and finished, and bytes that come and go, cost the monitor
       nothing.
4. What came in time counts, however late we are: they end the connection only when the socket is
   drained, or what was in it is read when it was found late (`grace`), so that a peer who never
   pauses gains nothing. While reading is paused, bytes that wait in the kernel show that the peer
   is not idle.

The deadline of output, `write_timeout`, is not the owner's affair: see `output`.

The end, whatever its cause, begins with `Output.end`, after which there is an `error`. Gracefully:
the queue is flushed, with TLS and close_notify behind it, while input is discarded, or the peer's
writes would get stuck and it would not come to read ours; FIN, input discarded until EOF or
`closing.LINGER`, shutdown. At once: a reset. Then in both cases the last callbacks, close, and the
slot is released. The fd is closed after the callbacks, so that its number cannot belong to a new
connection while a handler still files by it.

A graceful stop posts STOP, and its connection goes on as before, but that nothing more is read:
what was read is delivered and answered. Only then, and at once where nothing was read or the
connection is not ready, does the owner let it end.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from hydrogen._py import mailbox, poller
from hydrogen._py.addresses import Place
from hydrogen._py.buffer import Share
from hydrogen._py.framing import Decoder, decoder_for, size_of
from hydrogen._py.output import Output, OutputLoop, Raw, Uncompressed
from hydrogen._py.poller import Poller
from hydrogen._py.role import Total
from hydrogen._py.streams import SocketTransport
from hydrogen.codec import encode
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import Cause
from hydrogen.handler import Callbacks
from hydrogen.locks import total
from hydrogen.proxy import HeaderReader, ProxyHeader

if TYPE_CHECKING:
    from hydrogen._py.control import WebSocketState
    from hydrogen.log import RateLimitedLog
    from hydrogen.report import Codes


class Runner(Protocol):
    """The worker that takes a step.

    Attributes:
        hands: what it holds: the connection, until that is let go or gone.
        calling: is entered around each call of a callback.
    """

    hands: mailbox.Hands

    @property
    def calling(self) -> contextlib.AbstractContextManager[None]: ...


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

    def complain(self, name: str, error: BaseException, connection: Any = None) -> None:
        """See `framing.Complain`. connection: None: of no single one."""

    responses: Codes
    pings_sent: Total

    def watch_websockets(self) -> None:
        """See that keepalive goes on: there is a WebSocket connection."""

    def admit(self, connection: Any) -> bool:
        """Count `connection` at the address of its client; False, and that is told, when there are
        too many of there.
        """

    def remind(self, token: int, when: float) -> None:
        """Post DEADLINE at `when`, by the monotonic clock, and not at the time said before."""

    def removing(self, connection: Any) -> None:
        """Count it: `connection` is about to have its last callbacks."""

    def tell_removed(self, connection: Any) -> None:
        """Write into the log that `connection` is being removed."""

    def gone(self, connection: Any) -> None:
        """The slot of `connection` can go to another."""


class Connection(Output):
    """One connection. All fields here but `user_data`, `is_paused` and `stopping` are its owner's.

    Attributes:
        token: see `slab`.
        fd: the number accept(2) gave.
        socket: what callbacks get.
        user_data: the handler's.
        builder: of what is sent, and received; None: chunks.
        awaits_head: the head of a request is to come, and be answered, before it is ready.
        websocket: once that is answered by speaking WebSocket.
        ready: see the module; `on_disconnected` is due only from then on.
        is_paused: by `pause_reading`.
        peername, sockname: as at the start; a connection that was reset has forgotten them.
            `peername` is what the PROXY header says.
        proxy: that header; None: none has come.
        place: where the connection is counted, see `addresses`.
    """

    __slots__ = (
        "awaits_head",
        "builder",
        "ciphertext",
        "context",
        "deadline",
        "decoder",
        "ended_output",
        "fd",
        "first_bytes",
        "grace",
        "has_eof",
        "header",
        "held",
        "hung_up",
        "input_ended",
        "is_counted",
        "is_cut_off",
        "is_paused",
        "is_settled",
        "lingers",
        "looked_at",
        "looked_sent",
        "looked_unsent",
        "next_message",
        "peername",
        "place",
        "plaintext",
        "proxy",
        "read_is_due",
        "readable",
        "ready",
        "received",
        "reminder",
        "removed",
        "runner",
        "shaking",
        "socket",
        "sockname",
        "stopping",
        "token",
        "told_eof",
        "undelivered",
        "user_data",
        "websocket",
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
        place: Place,
    ) -> None:
        """Args: names: `peername` and `sockname`. context: for TLS, unless `on_new_connection`
        returns a stream; None: no TLS.
        """
        super().__init__(loop, SocketTransport(sock))
        self.token = token
        self.fd = sock.fileno()
        self.peername, self.sockname = names
        self.socket = handle
        self.user_data: Any = None
        self.is_paused = False
        settings = loop.config.websocket
        self.awaits_head = settings is not None
        self.websocket: WebSocketState | None = None
        self.builder = settings or loop.config.builder
        self.decoder: Decoder = decoder_for(self.builder)
        self.next_message: Any = None  # out of the decoder, not delivered
        # read, not decrypted; put there by the owner, taken away in the role
        self.ciphertext: deque[bytes] = deque()
        # decrypted, not fed to the decoder; the other way round
        self.plaintext: deque[bytes] = deque()
        self.undelivered = Share()
        self.held = 0  # what it was said to be last
        self.readable = False  # an edge came, and EAGAIN has not been seen since
        # from a stream of the user's, not taken in; put there in the role, taken away by the owner
        self.received: deque[bytes] = deque()
        # a read of that stream was asked for; until it is done, also during a stop, no other one is
        self.read_is_due = False
        self.hung_up = False
        # of the socket, or the stream: nothing more is read; also written in the role
        self.has_eof = False
        self.input_ended = False  # nothing more will come into the decoder
        self.told_eof = False
        self.context = context
        self.is_settled = False  # who reads and writes
        self.shaking = False  # hands, for TLS
        self.stopping = False  # a graceful stop has asked for the end
        self.proxy: ProxyHeader | None = None
        self.place = place
        versions = loop.config.proxy_protocol
        # None: none is to come, or it is here
        self.header = None if versions == "off" else HeaderReader(versions)
        # after the header, as long as they may become another one
        self.first_bytes: bytes | None = None
        unattended = (
            loop.callbacks.on_new_connection is None and loop.callbacks.on_connected is None
        )
        self.ready = unattended and context is None and self.header is None and not self.awaits_head
        self.runner: Runner | None = None  # of the step of now
        self.looked_at = self.last_byte  # when the send queue was looked at, see invariant 2
        self.looked_sent = 0  # bytes sent until then
        self.looked_unsent = 0  # bytes that were in it
        self.ended_output = False
        self.is_cut_off = False  # by `cut_off` of the transport
        self.lingers = False  # until the peer ends its side, too
        self.removed = 0  # parts of the removal that are done, see `closing`
        self.is_counted = False  # among those that were removed
        self.deadline = math.inf  # see the invariants
        # bytes received when what may have come before the deadline is read; inf: it is not late
        self.grace = math.inf
        self.reminder = math.inf  # when the reminder that stands is due

    def fail(self, code: int) -> None:
        """End at once: the kernel said `code`, an errno."""
        self.end(Cause.OS_ERROR, code=code, at_once=True)

    @property
    def is_due(self) -> bool:
        """Whether `on_connected` is."""
        return not (self.ready or self.shaking or self.awaits_head) and self.is_settled

    @property
    def takes_messages(self) -> bool:
        """Whether what is read makes messages, or the head of a request."""
        return self.ready or (self.awaits_head and self.is_settled and not self.shaking)

    @property
    def seeks_close(self) -> bool:
        """Whether what is read is looked through for a CLOSE, though the connection ends."""
        return self.websocket is not None and self.websocket.seeks_close

    def respond(self, status: int, wire: bytes) -> None:
        """Answer a request otherwise than by speaking WebSocket; the end is next."""
        self.loop.responses.add(status)
        self.send(Raw(wire), rests=False)

    def compressed(self, message: Uncompressed) -> bytes:
        """See `Output`."""
        assert self.websocket is not None
        assert self.websocket.encoder is not None
        return self.websocket.encoder.encode(message[0], message[1:])

    def encode(self, data: bytes | str) -> bytes:
        """What `send` takes for a message.

        Raises: as `codec.encode`.
        """
        if self.websocket is not None:
            return self.websocket.encode(data)
        return encode(self.builder, data)

    def closing_frame(self) -> bytes:
        """See `Output`."""
        if self.websocket is None or self.error is None:
            return b""
        return self.websocket.closing_frame(self.error)

    def stop(self) -> None:
        """End when what was read is delivered. Nothing more is read from now on. From any
        thread.
        """
        self.stopping = True
        self.post(mailbox.STOP)

    def register(self) -> None:
        """Be polled from now on. By the owner."""
        try:
            self.loop.poller.add(self.transport.poll_fd, self.token)
        except OSError as error:
            self.fail(error.errno or errno.EIO)

    def on_events(self, events: int) -> None:
        """What the poller has to tell. By the event thread."""
        if events & poller.WRITE:
            self.on_writable(is_alone=not events & poller.READ)
        if events & poller.HANGUP:
            self.post(mailbox.READABLE | mailbox.HANGUP)
        elif events & poller.READ:
            self.post(mailbox.READABLE)

    def complain(self, name: str, error: BaseException) -> None:
        """See `framing.Complain`."""
        self.loop.complain(name, error, self)

    def account_input(self) -> None:
        """Count what came in and was not delivered. By the owner."""
        held = self.decoder.size + size_of(self.next_message) + total(self.received)
        if self.session is not None:
            held += total(self.ciphertext) + total(self.plaintext)
        if held != self.held:
            self.held = -1  # without memory it may be counted, and what comes next not happen
            self.loop.memory.account(self.undelivered, held)
            self.held = held
