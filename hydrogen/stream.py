"""`Stream`: how one connection is read and written, the trait of the Rust crate hydrogen; and how
engines use one of the user's, `StreamAdapter`. The library's own are in plain.py and secure.py.

A stream of the user's owns the fd it was given; the engine polls a duplicate of its own, so that a
stream that closes early cannot make the engine poll a stranger.
"""

from __future__ import annotations

import abc
import errno
import os
from collections import deque
from typing import Any

from hydrogen.errors import HandlerError, class_name, described


class _GoOn(bytes):
    """The `b""` that asks a stream to go on with what it has kept: a type of its own, to be told
    from an empty message.

    The example of the Rust crate makes a frame of whatever it is given and has `nb_send` write
    that. A frame keeps the very object it was made of (this one survives `bytes(...)`), and
    `nb_send` knows it again: no empty message goes on the wire that nobody sent, and none is lost.
    """

    __slots__ = ()

    def __bytes__(self) -> bytes:
        return self


GO_ON = _GoOn()


class Stream(abc.ABC):
    """How one connection is read and written. The server calls its methods one at a time.

    It calls them in its workers, and `send` also in any thread that calls `HydrogenSocket.send`.
    While such a thread is in the stream, it also does what other threads ask for meanwhile, which
    may be a `recv`.

    The fd is non-blocking when the server hands it over. Leave it so: a `send` that blocks keeps
    other threads from reading this stream.
    """

    @abc.abstractmethod
    def recv(self) -> list[bytes]:
        """The messages that are complete now; `[]` (or `BlockingIOError`) when there is nothing.

        It is called once when `on_new_connection` has returned the stream, and whenever something
        may have arrived; then again until it returns nothing or raises, so that nothing that was
        read ahead is left, nor a last batch.

        Raises:
            EOFError: the peer will send no more.
            OSError: the connection is broken.
        """

    @abc.abstractmethod
    def send(self, buf: bytes) -> None:
        """Write one message; `send(b"")` continues with what was kept, and so a stream that hands
        `buf` to a `Plain` or a `Secure` cannot send an empty message.

        Raises:
            BlockingIOError: not everything could be written; the stream keeps the rest.
        """

    @abc.abstractmethod
    def shutdown(self) -> None:
        """End both directions.

        Raises:
            OSError: ignored where it says that the peer is gone (a ConnectionError, or ENOTCONN).
        """

    @abc.abstractmethod
    def fileno(self) -> int:
        """The fd that this stream owns."""

    def close(self) -> None:
        """Close the fd; called last, once."""
        os.close(self.fileno())


def not_a_stream(value: object) -> TypeError:
    """What to raise when `on_new_connection` returned `value`, which is neither None nor a
    stream.
    """
    return TypeError(
        f"on_new_connection must return a hydrogen.Stream or None, not {described(value, 80)}"
    )


def not_an_fd(stream: Stream, value: object) -> HandlerError:
    """What to raise when `stream.fileno()` returned `value`, which is not exactly an int. What
    converts to one (a float, a bool) would name a stranger's fd.
    """
    return HandlerError(
        f"{class_name(stream)}.fileno() must return an int, not {described(value, 80)}"
    )


class StreamAdapter:
    """A user's stream as an engine uses it: answers checked, output counted.

    One thread at a time may be in it. Engines see to that, each in its way, and nobody waits for
    it: code of the user's runs meanwhile (the stream itself, a signal handler, a `__del__`) and may
    send on this connection, or on another one whose stream is about to send on this one.

    Attributes:
        stream: the user's.
        messages: what `receive` got, for the owner of the connection.
        received: the bytes of all that it ever got; written by who is in the stream.
        delivered: of the compiled engine: those that have left `messages`; written by the owner.
        blocked: the last `send` of the stream raised `BlockingIOError`: it has kept something.
        pending: bytes that it was given since it last had nothing; an upper bound of what it keeps.
        writing: bytes that it is being given.
        waiting: of the compiled engine: messages for who is in the stream, each in an object of its
            own; None asks him to go on.
        wanted: the same: who is in the stream is to receive, for the owner, who is told.
        answer: the same: whether he has received something; None: not yet.
        is_ended: the same: `recv` has raised, `EOFError` or anything else; it is not called again.
        user: the same: the thread that is in the stream.
    """

    __slots__ = (
        "answer",
        "blocked",
        "delivered",
        "is_ended",
        "messages",
        "pending",
        "received",
        "stream",
        "user",
        "waiting",
        "wanted",
        "writing",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.messages: deque[bytes] = deque()
        self.received = 0
        self.delivered = 0
        self.blocked = False
        self.pending = 0
        self.writing = 0
        self.waiting: deque[Any] = deque()
        self.wanted = False
        self.answer: bool | None = None
        self.is_ended = False
        self.user: int | None = None

    def receive(self) -> bool:
        """One `Stream.recv`, checked; its messages are added to `messages`. False when there were
        none.

        Raises:
            HandlerError: what came is not a list of bytes.
            Exception: whatever the stream raises, but `BlockingIOError`, which is "none".
        """
        try:
            messages = self.stream.recv()
        except BlockingIOError:
            return False
        if type(messages) is not list or not all(type(message) is bytes for message in messages):
            raise HandlerError(
                f"{type(self.stream).__name__}.recv() must return a list of bytes, not "
                f"{described(messages)}"
            )
        self.received += sum(map(len, messages))
        self.messages.extend(messages)
        return bool(messages)

    def send(self, data: bytes) -> None:
        """Write one message, or `GO_ON`; sets `blocked` and `pending`.

        Raises:
            Exception: whatever the stream raises, but `BlockingIOError`.
        """
        self.writing = len(data)
        try:
            self.stream.send(data)
        except BlockingIOError:
            self.blocked = True
            self.pending += len(data)
        else:
            self.blocked = False
            self.pending = 0
        finally:
            self.writing = 0

    def resume(self) -> None:
        """The fd is writable: go on with what the stream has kept, if it has. Raises as `send`."""
        if self.blocked:
            self.send(GO_ON)

    def shutdown(self) -> None:
        """End the stream both ways; nothing is sent any more. That the peer is gone is no news.

        Raises:
            Exception: whatever else the stream raises.
        """
        try:
            self.stream.shutdown()
        except OSError as error:
            if not issubclass(type(error), ConnectionError) and error.errno != errno.ENOTCONN:
                raise
