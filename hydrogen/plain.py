"""`Plain`, and what it shares with `Secure`.

They serve in three places: returned from `on_new_connection`, where an engine takes them over
(`hand_over`) and does their work itself; non-blocking by hand (`nb_...`); blocking (`b_...`). They
never touch O_NONBLOCK, which belongs to the open file and so may be somebody else's affair too: all
I/O is asked for with MSG_DONTWAIT, and who waits waits in poll(2).
"""

from __future__ import annotations

import contextlib
import errno
import math
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ssl import SSLError
from types import TracebackType
from typing import TypeVar

from hydrogen.codec import FrameDecoder, builder_of, encode
from hydrogen.config import Framing
from hydrogen.connection import check_timeout, contiguous
from hydrogen.errors import Cause, described, removal_error
from hydrogen.frame import ChunkFrameBuilder, Frame, FrameBuilder
from hydrogen.locks import under
from hydrogen.stream import GO_ON, Stream
from hydrogen.tls import TlsSession

CHUNK = 1 << 16
"""Bytes asked of one recv(2)."""

READS = 4
"""So many recv(2)s in a row, and `nb_recv` gives out what it has, `b_recv` looks at the clock: the
peer may never pause.
"""

FLIGHT_READS = 64
"""The same in a handshake: more than a flight of messages takes, of which each record takes two."""

LONGEST_WAIT = 3600.0
"""Seconds of one wait in the kernel, which counts milliseconds in an int; who waits longer waits
again.
"""

HANDSHAKE_WAIT = 0.5
"""The same in a handshake: a signal handler that used the stream may have taken what this thread
waits for.
"""

MAX_ERRNO = 4095
"""The highest number of an error that Linux uses."""

T = TypeVar("T")


@dataclass(frozen=True)
class Handover:
    """A stream of the library's as an engine takes it over.

    Attributes:
        fd: now the engine's to close.
        builder: of the frames; None: chunks.
        session: None: no TLS. What is in it already counts: `failure`, `is_ended`.
        received: plaintext that was read and not given out; it comes before what the fd has.
        unsent: bytes for the wire, which go out before anything else.
        code: the errno that the kernel has reported to the stream, of a reset say; 0: none. It
            reports once, and then what looks like a graceful end.
    """

    fd: int
    builder: FrameBuilder | None
    session: TlsSession | None
    received: bytes
    unsent: bytes
    code: int = 0


class _Numbered(socket.socket):
    """A socket known by its number only. The garbage collector must not close it: the number may be
    somebody else's by then.
    """

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()


def _socket_of(sock_or_fd: socket.socket | int) -> socket.socket:
    """The socket itself, or one over the number.

    Raises:
        TypeError: it is neither.
        OSError: the number is not that of a socket.
        ValueError: it is no stream socket, or a negative number.
    """
    if isinstance(sock_or_fd, socket.socket):
        sock = sock_or_fd
    elif isinstance(sock_or_fd, int) and not isinstance(sock_or_fd, bool):
        sock = _Numbered(fileno=sock_or_fd)
    else:
        raise TypeError(
            f"sock_or_fd: expected a socket.socket or an int, not {described(sock_or_fd)}"
        )
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"sock_or_fd: expected a stream socket, not {sock!r}")
    if sock.gettimeout():
        # Python waits for a socket with a timeout, whatever MSG_DONTWAIT says. (It is non-blocking
        # for the kernel already.)
        sock.setblocking(False)
    return sock


def deadline_of(timeout: float | None) -> float | None:
    """The monotonic time at which `timeout` seconds are over; None: never.

    Raises:
        TypeError, ValueError: it is no number of seconds, or negative.
    """
    seconds = check_timeout("timeout", timeout)
    return None if seconds is None else time.monotonic() + seconds


def seconds_left(deadline: float | None) -> float:
    """How long the kernel may be asked to wait now: seconds, at most `LONGEST_WAIT`.

    Raises:
        TimeoutError: the deadline has passed.
    """
    if deadline is None:
        return LONGEST_WAIT
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return min(left, LONGEST_WAIT)


def _reported_once(error: Exception | None) -> OSError | None:
    """`error`, if it is what the kernel reports once, as a reset is; else None."""
    if (
        not isinstance(error, OSError)
        or isinstance(error, SSLError)
        or error.errno in (errno.EPIPE, errno.ENOBUFS, errno.ENOMEM)
    ):
        return None
    return error


RECEIVES_WITHIN = "a signal handler must not receive from a stream whose call it has interrupted"


class SocketStream(Stream):
    """What `Plain` and `Secure` share. Between the wire and the frames bytes pass `_open` and
    `_seal`, which here change nothing.

    One thread may receive while another sends. `_lock` is held for each system call with all that
    belongs to it (`_hold`), so that bytes pass in the order of the wire; never while waiting. A
    signal handler may run meanwhile, and call again: what it sends is left in `_waiting`, what it
    ends in `_is_shut`, and who holds the lock looks again after giving it back (`_is_left`).
    `_hands` is held by the thread that carries the handshake on, also by a signal handler while
    that thread waits; it comes before `_lock`. `_decoder` and `_failure` belong to the receiver (a
    handshake yields no plaintext); what else changes is written under `_lock`:

        _is_ready: the handshake is done.
        _wanted: bytes to ask of the next recv(2).
        _waiting: messages that have not passed `_seal`: for longer than a moment only as long as
            the handshake is on.
        _unsent: bytes for the wire that the kernel has not taken.
        _is_sending: a blocking call sees to `_unsent`, and nobody else: or it would wait for the
            kernel to take what it has already.
        _is_owed: a `b_send` that has interrupted another call has left its message to that. Not
            under `_lock`.
        _inside: the threads that are in `_alone`, have `_lock` or wait for it. Not under `_lock`: a
            signal handler comes also when that was taken this moment, and must not wait then for a
            thread that wants it.
        _receiver: the thread that is taking frames; 0: none. Not under `_lock`.
        _silent: bytes that came since the last frame; see `secure.SILENT_MOST`. It is no matter if
            two threads write it.
        _answers: how much of `_unsent`, at most, `Secure` answers the peer with; see the same.
        _is_shut: `shutdown` was called: this side has ended the input, also when what the peer
            still sends makes the kernel reset.
        _until: `finish` was called, and gives up then. Who sends does not wait any longer, either.
            Not under `_lock`.
        _broken: what send(2) failed with, or that a message came when output had ended. Nothing
            more is sent: what comes after a gap is nonsense to the peer.
        _end: why nothing more comes in; an `EOFError` for a graceful end. It is raised once all
            frames before it were given out.
        _failure: what `_decoder` raised, with its traceback of then in `_failed_at`.

    `_broken`, `_end` and `_failure` are raised by each call again. An exception that is raised adds
    to the traceback it has: each time it is given the one it had when it was stored, or none.
    """

    _session: TlsSession | None = None

    def __init__(self, sock_or_fd: socket.socket | int, framing: Framing) -> None:
        self._builder = builder_of(framing)
        self._decoder = FrameDecoder(self._builder or ChunkFrameBuilder())
        self._sock = _socket_of(sock_or_fd)
        self._lock = threading.RLock()
        self._inside: set[int] = set()
        self._receiver = 0
        self._silent = 0
        self._answers = 0
        self._is_left = False
        self._hands = threading.RLock()
        self._is_ready = True
        self._wanted = CHUNK
        self._waiting: deque[bytes] = deque()
        self._unsent = bytearray()
        self._is_sending = False
        self._is_owed = False
        self._is_shut = False
        self._until: float | None = None
        self._broken: OSError | None = None
        self._end: Exception | None = None
        self._failure: Exception | None = None
        self._failed_at: TracebackType | None = None

    def _open(self, data: bytes) -> bytes:
        """Under `_lock`: what was read, as plaintext. b"" is the peer's FIN. May set `_end`, and
        add to `_unsent`.
        """
        if not data:
            self._end = EOFError()
        return data

    def _seal(self, data: bytes) -> bytes:
        """Under `_lock`, if `_can_seal`: plaintext as it goes on the wire."""
        return data

    def _can_seal(self) -> bool:
        """Under `_lock`: whether messages may be sent: not before the handshake is done, nor after
        the end.
        """
        return True

    def _end_output(self) -> None:
        """Under `_lock`: what goes out last. Called again."""

    # ------------------------------------------------------------------ one at a time

    def _hold(self, work: Callable[[], None], wait: bool = True) -> bool:
        """Do `work` under `_lock`; False when it is left to who is in there: this thread further
        out, or (not `wait`) another one.
        """
        try:
            held = self._alone(work, wait)
            if not held:
                self._is_left = True
            return held
        finally:  # also when `work` has failed, or was interrupted: nobody else looks
            while self._is_left and self._alone(self._see_to_the_rest, wait=False):
                pass

    def _alone(self, work: Callable[[], None], wait: bool) -> bool:
        me = threading.get_ident()
        if me in self._inside:
            return False

        def done() -> bool:
            work()
            return True

        try:
            self._inside.add(me)
            return bool(under(self._lock, done, wait))
        finally:
            self._inside.discard(me)

    def _see_to_the_rest(self) -> None:
        """Under `_lock`: what others have left."""
        self._is_left = False
        if self._is_shut:
            self._shut()
        elif self._until is not None:
            self._finish()
        elif not self._is_sending:
            with contextlib.suppress(OSError):  # for who sends to be told
                self._flush()

    def is_interrupted(self) -> bool:
        """Whether the caller has interrupted a call of this stream, in this thread, as a signal
        handler does.
        """
        return threading.get_ident() in self._inside

    # ------------------------------------------------------------------ non-blocking

    def nb_recv(self) -> list[Frame]:
        """All frames that are complete now; `[]` when there is none.

        `[]` means that nothing was left to read; if you poll edge-triggered, call it again until
        then. Kept output is written too, as far as the kernel takes it. An error is raised after
        all frames before it were returned, and again on each further call.

        Raises:
            EOFError: the peer will send no more.
            IncompleteFrame: the same, inside a frame.
            ProtocolError: what follows can never become a frame.
            ssl.SSLError: what OpenSSL found wrong; `ssl.SSLEOFError`: the connection ended without
                close_notify (RFC 8446, 6.1).
            OSError: the connection is broken.
            Exception: whatever your builder raises; `HandlerError` when it does what no builder may
                do.
        """
        return self._receive(lambda: self._collect(self._decoder.next_frame))

    def nb_send(self, frame: Frame) -> None:
        """Write what is kept and then a frame, as far as the kernel takes them.

        The server asks a stream to continue by `send(b"")`. A frame made of that `b""` is not a
        message: only what is kept is written.

        Raises:
            BlockingIOError: the rest is kept. `send(b"")` continues with it when the fd is
                writable; with TLS, during the handshake, also when it is readable.
            ssl.SSLError, OSError: as `nb_recv`; `BrokenPipeError` after `shutdown`.
        """
        self._push(b"" if self._checked(frame).payload() is GO_ON else frame.to_bytes())

    # ------------------------------------------------------------------ blocking

    def b_recv(self, timeout: float | None = None) -> Frame:
        """Wait for the next frame.

        Args:
            timeout: seconds; None: no limit. What has arrived by then is not lost. What a signal
                handler sends meanwhile is sent completely first.

        Raises:
            TimeoutError: no frame was complete in time.
            RuntimeError: called by a signal handler that interrupted a call that receives, in the
                same thread.
            Exception: as `nb_recv`.
            BaseException: of a signal handler; see `b_send`.
        """
        deadline = deadline_of(timeout)
        self._shake_hands(deadline)
        return self._receive(lambda: self._read_until(deadline))

    def b_send(self, frame: Frame) -> None:
        """Write what is kept and then a frame; returns when the kernel has taken all of it.

        Raises:
            ssl.SSLError, OSError: as `nb_send`. `BrokenPipeError` in a signal handler that has
                interrupted the call that ends the output.
            BaseException: of a signal handler. How much was written or read by then is unknown: all
                you can do is close.
        """
        data = self._checked(frame).to_bytes()
        if self.is_interrupted():
            # it may have ended: who is in there would not tell
            if self._is_shut or self._until is not None:
                raise BrokenPipeError(errno.EPIPE, "the output has been shut down")
            self._is_owed = True
        else:
            self._shake_hands(None)
        self._waiting.append(data)
        while not self._write():
            self._wait_for_room()

    # ------------------------------------------------------------------ Stream

    def recv(self) -> list[bytes]:
        """The payloads of `nb_recv`; raises what that raises."""
        return self._receive(lambda: self._collect(self._decoder.next))

    def send(self, buf: bytes) -> None:
        """`nb_send` of the frame that carries `buf`; without framing, of `buf` itself.

        `send(b"")` continues with what is kept.

        Raises:
            TypeError: it is not bytes-like, or not contiguous.
            FrameTooLarge, ValueError: the framing cannot carry it.
            Exception: as `nb_send`.
        """
        data = contiguous(buf)
        self._push(encode(self._builder, data) if data else b"")

    def shutdown(self) -> None:
        """End both directions; with TLS, after close_notify.

        Does not wait: kept output that the kernel does not take is lost. Blocking calls in other
        threads end with `EOFError` or `BrokenPipeError`. In a signal handler that has interrupted a
        call of this stream, the end comes at once and, with TLS, without close_notify.
        """
        self._is_shut = True
        if not self._hold(self._shut, wait=False) and self.is_interrupted():
            self._cut()

    def _shut(self) -> None:
        """Under `_lock`."""
        self._flush_to_the_end()
        self._cut()

    def _flush_to_the_end(self) -> None:
        """Under `_lock`: write what is kept, and the end behind it, as far as the kernel takes
        it.
        """
        with contextlib.suppress(OSError):  # for who sends to be told
            self._flush()  # what waits to be encrypted: after close_notify it could not be
        self._end_output()
        with contextlib.suppress(OSError):
            self._flush()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):  # the peer has reset the connection, or it is closed
            self._sock.shutdown(socket.SHUT_RDWR)

    def finish(self, seconds: float) -> None:
        """Before `shutdown`, for what was sent to arrive: write what is kept, end the output, throw
        away input until the peer ends its own.

        What comes once the input is shut down makes the kernel reset the connection (RFC 1122,
        4.2.2.13): what it has not sent yet is lost, and what the peer has not read may be. Gives up
        so many seconds after it was first called. In a signal handler that has interrupted a call
        of this stream it does not wait: that call ends the output then, and is over in that time;
        one that receives raises `EOFError`.
        """
        if self._until is None:
            self._until = deadline_of(seconds)
        awaited: list[int] = []
        with contextlib.suppress(TimeoutError):
            while self._hold(lambda: awaited.append(self._finish())) and awaited[-1]:
                self._wait(awaited[-1], self._until)

    def _finish(self) -> int:
        """Under `_lock`: what is to be waited for; 0: the peer has ended, too."""
        self._end = self._end or EOFError()  # who receives must not be given what comes after a gap
        self._flush_to_the_end()
        has_more = bool(self._unsent) and self._broken is None
        awaited = select.POLLIN | select.POLLOUT if has_more else select.POLLIN
        try:
            if not has_more:
                self._sock.shutdown(socket.SHUT_WR)
            if not self._sock.recv(CHUNK, socket.MSG_DONTWAIT):
                awaited &= select.POLLOUT  # it may read on
        except BlockingIOError:
            pass
        except OSError:
            return 0
        return awaited

    def discard_and_close(self) -> None:
        """Throw away what has arrived, and close: closing with unread input makes the kernel reset
        the peer.

        Other threads may be in `finish` and `shutdown`, which must not come to a stranger's fd of
        the same number.
        """
        self._hold(self._discard_and_close)

    def _discard_and_close(self) -> None:
        """Under `_lock`."""
        try:
            with contextlib.suppress(OSError):
                while self._sock.recv(CHUNK, socket.MSG_DONTWAIT):
                    pass
        finally:
            self._sock.close()

    def close(self) -> None:
        """Close the fd, or the socket that the stream was given. No other thread may be in a call.
        May be called again.
        """
        self._sock.close()

    def fileno(self) -> int:
        """The fd; -1 when it is closed or handed over."""
        return self._sock.fileno()

    def hand_over(self) -> Handover:
        """Give up the fd, with what belongs to it; a socket object is detached. The stream is not
        used any more.

        Raises:
            ValueError: a message was sent before the handshake was done, and is not encrypted. The
                fd is given up all the same.
        """
        with self._lock:
            fd = self._sock.detach()
            if self._waiting:
                raise ValueError(
                    "a message was sent before the TLS handshake had finished: send it from "
                    "on_connected"
                )
            self._decoder.builder = ChunkFrameBuilder()  # it takes all there is, as it is
            received = self._decoder.next() or b""
            reported = _reported_once(self._end) or _reported_once(self._broken)
            code = reported.errno or 0 if reported is not None else 0
            if not 0 <= code <= MAX_ERRNO:  # a class of the user's
                code = errno.EIO
            return Handover(fd, self._builder, self._session, received, bytes(self._unsent), code)

    # ------------------------------------------------------------------ input

    def _receive(self, work: Callable[[], T]) -> T:
        """What `work` returns, which takes frames; not while this thread does so further out.

        A frame that is being taken would be given out twice, and who waits does not know of what
        another one has read for him.
        """
        if self._receiver == threading.get_ident() or self.is_interrupted():
            raise RuntimeError(RECEIVES_WITHIN)
        try:
            self._receiver = threading.get_ident()
            return work()
        finally:
            self._receiver = 0

    def _next(self, take: Callable[[], T | None]) -> T | None:
        """The next frame or payload of what was read; None when none is complete. Raises what comes
        instead of one.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(self._failed_at)
        end = self._end  # set after what came before it was fed
        try:
            item = take()
        except Exception as error:
            self._failure, self._failed_at = error, error.__traceback__
            raise
        if item is not None:
            self._silent = 0
        elif end is not None:
            if type(end) is not EOFError:
                raise end.with_traceback(None)
            if self._decoder.is_partial():
                raise removal_error(Cause.INCOMPLETE_FRAME)
            raise EOFError("the connection has ended")
        return item

    def _collect(self, take: Callable[[], T | None]) -> list[T]:
        """All that `take` gives now, for `_receive`."""
        found: list[T] = []
        self._shake_hands_nb()
        reads = 0
        try:
            while True:
                while (item := self._next(take)) is not None:
                    found.append(item)
                if (found and reads >= READS) or not self._is_ready or not self._pull():
                    return found
                reads += 1
        except Exception:
            if not found:
                raise
            return found

    def _read_until(self, deadline: float | None) -> Frame:
        """Wait for the next frame, for `_receive`."""
        self._pay()
        while (frame := self._read()) is None:
            self._wait(self._interest(), deadline)
        return frame

    def _pay(self) -> None:
        """Send to the end what a signal handler's `b_send` has left to this call. What `nb_send`
        has kept is not waited for.
        """
        if self._is_owed and not self._is_sending:
            self._is_owed = False
            with contextlib.suppress(OSError):  # for who sends to be told; there may be input yet
                while not self._write():
                    self._wait_for_room()

    def _read(self) -> Frame | None:
        """The next frame, from the kernel if need be; None when it has no more, or always
        something.
        """
        for _ in range(READS):
            frame = self._next(self._decoder.next_frame)
            if frame is not None:
                return frame
            has_pulled = self._pull()
            self._pay()
            if not has_pulled and self._end is None:  # a signal handler may have ended it
                return None
        return self._next(self._decoder.next_frame)

    def _pull(self) -> bool:
        """One recv(2), with what follows from it; False when there was nothing. What is kept of
        output is written as well.
        """
        pulled: list[bool] = []

        def pull() -> None:
            try:
                pulled.append(self._end is None and self._pull_locked())
            finally:
                if not self._is_sending:
                    # for who sends to be told; there may be input yet
                    with contextlib.suppress(OSError):
                        self._flush()

        if not self._hold(pull):
            raise RuntimeError(RECEIVES_WITHIN)
        return pulled[0]

    def _pull_locked(self) -> bool:
        try:
            data = self._sock.recv(self._wanted, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            # Once shut down or closed, input has ended: by this side.
            self._end = EOFError() if self._is_shut or self._sock.fileno() < 0 else error
            return True
        self._decoder.feed(self._open(data))
        if (
            not data
            and not self._is_shut
            and (reported := _reported_once(self._broken)) is not None
        ):
            # When send(2) has had it, this looks like a graceful end.
            self._end = reported
        return True

    # ------------------------------------------------------------------ output

    def _push(self, data: bytes) -> None:
        """Write without waiting. Raises `BlockingIOError` when something is kept."""
        self._shake_hands_nb()
        if not self._is_ready and self._end is not None:
            raise self._end.with_traceback(None)
        if data:
            self._waiting.append(data)
        flushed: list[bool] = []
        if not self._hold(lambda: flushed.append(self._flush())) or not flushed[0] or self._waiting:
            raise BlockingIOError(errno.EAGAIN, "not everything could be written; the rest is kept")

    def _flush(self) -> bool:
        """Under `_lock`: write until nothing is left for the wire, or the kernel takes no more.
        Whether nothing is left.
        """
        if self._broken is not None:
            self._waiting.clear()
            raise self._broken.with_traceback(None)
        while self._waiting and self._can_seal():
            self._unsent += self._seal(self._waiting.popleft())
        while self._unsent:
            try:
                with memoryview(self._unsent) as view:
                    sent = self._sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                self._broken = error
                raise
            del self._unsent[:sent]
            self._answers = max(0, self._answers - sent)
        # who sent it may look for it later
        if self._waiting and self._is_ready and not self._can_seal():
            self._broken = BrokenPipeError(errno.EPIPE, "the output has been shut down")
            raise self._broken
        return True

    def _write(self) -> bool:
        """`_flush` of the blocking call that sends, which is over once nothing is left, or left to
        the call that it has interrupted.
        """

        def write() -> None:
            self._is_sending = not self._flush()

        return not self._hold(write) or not (self._is_sending or self._unsent or self._waiting)

    def _wait_for_room(self) -> None:
        """To send on; as long as `finish` does, once that was called, and reading as that does: or
        the peer might not read, either.
        """
        awaited = [select.POLLOUT]
        if self._until is not None:
            self._hold(lambda: awaited.append(self._finish()))
        try:
            if awaited[-1] & select.POLLOUT:
                self._wait(awaited[-1], self._until)
        except TimeoutError:
            raise BrokenPipeError(errno.EPIPE, "the output has been shut down") from None

    # ------------------------------------------------------------------ handshake, waiting

    def _shake_hands_nb(self, most: float = math.inf) -> None:
        """Carry the handshake on as far as it goes now, by `most` recv(2)s, unless another thread
        is at it, or this one further out.
        """
        if not self._is_ready and not self.is_interrupted():
            under(self._hands, lambda: self._pull_all(most), wait=False)

    def _pull_all(self, most: float) -> None:
        """Under `_hands`."""
        while not self._is_ready and most > 0 and self._pull():
            most -= 1

    def _shake_hands(self, deadline: float | None) -> None:
        """Wait until the handshake is done. Raises what it failed with, or `TimeoutError`."""
        self._shake_hands_nb(FLIGHT_READS)
        while not self._is_ready:
            if self.is_interrupted():  # who has `_hands` may wait for what this thread has
                raise RuntimeError(RECEIVES_WITHIN)
            if self._end is not None:
                raise self._end.with_traceback(None)
            under(self._hands, lambda: self._pull_until(deadline), seconds=seconds_left(deadline))

    def _pull_until(self, deadline: float | None) -> None:
        """Under `_hands`."""
        while not self._is_ready and self._end is None:
            if self._pull():
                seconds_left(deadline)  # the peer may never pause
            else:
                self._wait(self._interest(), deadline, HANDSHAKE_WAIT)

    def _interest(self) -> int:
        """What a call that receives waits for."""
        mine = self._unsent and not self._is_sending and self._broken is None
        return select.POLLIN | select.POLLOUT if mine else select.POLLIN

    def _wait(self, events: int, deadline: float | None, longest: float = LONGEST_WAIT) -> None:
        """Wait until the fd is ready for one of `events`; that it is broken, or closed meanwhile,
        is for the next call to say.
        """
        seconds = seconds_left(deadline)
        fd = self._sock.fileno()
        if fd >= 0:
            poll = select.poll()
            poll.register(fd, events)
            poll.poll(min(seconds, longest) * 1000)

    @staticmethod
    def _checked(frame: Frame) -> Frame:
        if not isinstance(frame, Frame):
            raise TypeError(f"frame: expected a Frame, not {described(frame)}")
        return frame


class Plain(SocketStream):
    """A plain connection, without TLS. One thread may receive while another sends."""

    def __init__(self, sock_or_fd: socket.socket | int, framing: Framing = None) -> None:
        """Nothing is read or written yet.

        Args:
            sock_or_fd: a connected stream socket, blocking or not. A `socket.socket` is kept, and
                closed by `close()`. A number is closed by `close()` too, but never by the garbage
                collector.
            framing: a frame builder, class or instance; None: each chunk as read is a frame.

        Raises:
            TypeError, ValueError, OSError: it is not a stream socket, or not a framing.
        """
        super().__init__(sock_or_fd, framing)
