"""The clients' side of a `life.Life`: sockets that never wait, and the model of what was said
through them.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from state_machine.server import Gate, Record
from state_machine.wires import HEADER, PATTERN, reply
from support import Client

import hydrogen

if TYPE_CHECKING:
    from state_machine.life import Life

RESETS = {ConnectionResetError, BrokenPipeError}
ACTION_ENDS: dict[str, type[Exception]] = {
    "close": hydrogen.LocalClosed,
    "abort": hydrogen.LocalClosed,
    "raise": hydrogen.HandlerError,
}
EOF_ENDS: dict[str | None, type[Exception] | None] = {
    None: hydrogen.PeerClosed,
    "close": hydrogen.LocalClosed,
    "reply": hydrogen.LocalClosed,
    "raise": hydrogen.HandlerError,
    "leave": None,
}


class NamedClient(Client):
    """One of a Unix socket, with a name of its own."""

    def __init__(self, address: str, *, source: str, **options: Any) -> None:
        self._source = source
        super().__init__(address, **options)

    @property
    def sock(self) -> socket.socket:
        return self._sock

    @sock.setter
    def sock(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.bind(self._source)


class Link:
    """A client, and the model of its connection. It writes without waiting (`push`), and reads when
    it is told to (`sip`).

    Attributes:
        name: its address, which is the server's `peername`.
        stream, payloads: what it said, as bytes and as messages.
        tail: the rest of a frame that is begun, and its payload and actions.
        fate: the error in which what it said ends, once it is delivered; None: none. `fate_bytes`,
            `fate_payloads`: how much that is.
        gates: of its messages.
        gone: "closed" or "reset", once it is.
        is_cut_off: it is, and nobody knows how much of what it said had been sent.
        seen: how the server's side ended, "end" or "reset".
        replies: what came, by source.
    """

    def __init__(
        self, life: Life, number: int, receive_buffer: int | None, send_buffer: int | None
    ) -> None:
        self.life = life
        self.number = number
        # An address of its own, for a port may be used again.
        if life.setup.transport == "unix":
            source, kind = f"{life.folder.name}/{number}", NamedClient
        else:
            source, kind = f"127.1.0.{number + 1}", Client
        self.client = kind(
            life.server.address,
            source=source,
            receive_buffer=receive_buffer,
            send_buffer=send_buffer,
        )
        self.name = self.client.name
        self.client.sock.setblocking(False)
        self.stream = b""
        self.payloads: list[bytes] = []
        self.tail: tuple[bytes, bytes, list[str]] | None = None
        self.fate: type[Exception] | None = None
        self.fate_bytes = self.fate_payloads = 0
        self.gates: list[Gate] = []
        self.finished = False
        self.gone: str | None = None
        self.gone_at = 0.0
        self.is_cut_off = False
        self.seen = "reset" if self.client.refused else None
        self.replies: dict[bytes, list[int]] = defaultdict(list)
        self._unsent = bytearray()
        self._unparsed = bytearray()
        self._was_reset = False

    def __repr__(self) -> str:
        return f"client {self.number}"

    @property
    def is_speaking(self) -> bool:
        """It may still send."""
        return self.gone is None and not self.finished

    @property
    def is_known(self) -> bool:
        """Its connection has got, or will get, something."""
        return bool(self.stream if self.life.wire.framing is None else self.payloads)

    @property
    def is_free(self) -> bool:
        """No gate keeps its messages."""
        return all(gate.event.is_set() for gate in self.gates)

    # ------------------------------------------------------------------ what steps do

    def say(self, messages: list[list[str]], padding: int, cut: float | None) -> None:
        """Finish the frame that is begun, then send so many more; of the last one only a part, if
        there is a `cut`.
        """
        self._finish_frame()
        for number, actions in enumerate(messages, 1):
            payload = b"%d:%b:%b" % (
                len(self.payloads),
                ",".join(actions).encode(),
                PATTERN[:padding],
            )
            if self.life.wire.framing is None:
                payload += b"\n"
            frame = self.life.wire.frame(payload)
            at = (
                len(frame)
                if cut is None or number < len(messages)
                else 1 + int(cut * (len(frame) - 2))
            )
            self._put(frame[:at])
            if at < len(frame):
                self.tail = frame[at:], payload, actions
            else:
                self._said(payload, actions)
        self.push()

    def spoil(self, wire: bytes, error: type[Exception]) -> None:
        """Send what is no frame."""
        self._finish_frame()
        self._put(wire)
        self._meet(error)
        self.push()

    def finish(self) -> None:
        """End the sending side."""
        self.finished = True
        self._end_stream()
        self.push()

    def leave(self) -> None:
        """Close, or reset if not all could be sent: then nobody knows what was."""
        self.sip()
        self.push()
        if self._unsent:
            self.reset()
            return
        self._close()

    def _close(self) -> None:
        self.gone, self.gone_at = "closed", time.monotonic()
        if not self.finished:
            self._end_stream()
        self.client.close()

    def reset(self) -> None:
        """A Unix socket knows none: it closes, and all that was sent is delivered."""
        if self.life.setup.transport == "unix":
            self.is_cut_off = bool(self._unsent)
            self._close()
            return
        self.gone, self.gone_at = "reset", time.monotonic()
        with contextlib.suppress(OSError):  # it has seen the end, and closed
            self.client.reset()

    def _put(self, wire: bytes) -> None:
        self.stream += wire
        self._unsent += wire

    def _said(self, payload: bytes, actions: list[str]) -> None:
        self.payloads.append(payload)
        for action in actions:
            if action in ACTION_ENDS:
                self._meet(ACTION_ENDS[action])

    def _finish_frame(self) -> None:
        if self.tail is not None:
            rest, payload, actions = self.tail
            self.tail = None
            self._put(rest)
            self._said(payload, actions)

    def _end_stream(self) -> None:
        if self.tail is not None and self.life.wire.framing is not None:
            self._meet(hydrogen.IncompleteFrame)
        elif (error := EOF_ENDS[self.life.setup.eof]) is not None:
            self._meet(error)

    def _meet(self, error: type[Exception]) -> None:
        if self.fate is None:
            self.fate, self.fate_bytes, self.fate_payloads = (
                error,
                len(self.stream),
                len(self.payloads),
            )

    # ------------------------------------------------------------------ its bytes

    def push(self) -> None:
        """Send what the kernel takes."""
        try:
            while self._unsent:
                del self._unsent[: self.client.sock.send(self._unsent)]
            if self.finished:
                self.client.finish()
        except BlockingIOError:
            pass
        except OSError as error:
            # The kernel tells of a reset once, and has told now; who has finished and seen the end
            # is not connected any more.
            self._was_reset |= type(error) in RESETS
            self._unsent.clear()

    def sip_a_little(self) -> None:
        """Read some of what is there, so that what is full becomes full again."""
        if self.seen is None:
            with contextlib.suppress(OSError):  # `sip` will see it
                self._unparsed += self.client.sock.recv(3000)
            self._parse()

    def sip(self) -> None:
        """Read what is there."""
        if self.seen is None:
            # Who reads is to have room: where half a window is less than a segment, the kernel
            # sends it five times a second at most.
            self.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while self.seen is None:
            try:
                data = self.client.sock.recv(1 << 18)
            except BlockingIOError:
                return
            except (ConnectionResetError, BrokenPipeError):
                self._was_reset, data = True, b""
            if not data:
                self.seen = "reset" if self._was_reset else "end"
                self.life.note(f"{self} saw: {self.seen}")
            self._unparsed += data
            self._parse()

    def _parse(self) -> None:
        while match := HEADER.search(self._unparsed, 0, 60):
            source, number, size = match[1], int(match[2]), int(match[3])
            expected = self.life.wire.frame(reply(source, number, size))
            if not expected.startswith(self._unparsed[: len(expected)]):
                self.life.fail(
                    f"{self} got {bytes(self._unparsed[:80])!r}..., which is not message {number} "
                    f"of {source!r}"
                )
            if len(self._unparsed) < len(expected):
                return
            del self._unparsed[: len(expected)]
            self.replies[source].append(number)

    def pump(self) -> None:
        """Both, if it is there; once it has seen the end it closes, and nobody waits for it."""
        if self.gone is None and self.client.sock.fileno() >= 0:
            self.push()
            self.sip()
            if self.seen is not None:
                self.client.close()

    @property
    def has_all(self) -> bool:
        """It has got what was taken for it so far."""
        record = self.life.record(self)
        if record is None:
            return False
        with self.life.changed:
            return self.missing(record) == ""

    def missing(self, record: Record) -> str:
        """What was taken for it and did not come."""
        for kind, numbers in record.taken.items():
            if self.replies[b"%b%d" % (kind, record.socket.id)] != numbers:
                return f"{len(numbers)} messages of {kind!r}"
        lost = record.must_have - set(self.replies[b"b0"])
        return (
            f"the broadcasts {lost}" if lost else "the end of a message" if self._unparsed else ""
        )

    def was_delivered(self, record: Record) -> bool:
        """All that it said has been dealt with."""
        if record.inside:
            return False
        if self.life.wire.framing is None:
            return sum(map(len, record.messages)) == len(self.stream)
        return len(record.messages) == len(self.payloads)
