"""A server process in which one of Python's memory allocations fails as ordered.

Run by `contract/test_nomemory.py`. `_testcapi.set_nomemory(n, n + 1)` makes the allocation number n
fail, counted from that call, whichever thread asks for it. Orders come by stdin, 16 bytes each; the
main thread carries them out without an allocation of its own between the arming and the answer, so
that the count begins with what the engine does next.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import itertools
import json
import logging
import os
import ssl
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import certificates
from support import Client, open_fds, running, threads, wait_until

import hydrogen

try:
    import _testcapi
except ImportError as error:
    raise SystemExit(
        "NOT TESTED: this CPython has no _testcapi, so no allocation can be made to fail; install "
        "its test modules"
    ) from error

NEVER = 1 << 30
"""An allocation that does not come."""

LARGE = 300_000
"""Bytes of a reply that does not fit into the kernel's buffers."""

ANSWER = b"\n"


class Lines(hydrogen.FrameBuilder):
    """The user's own: a line is a message."""

    def from_bytes(self, buf: bytearray) -> hydrogen.Frame | None:
        at = buf.find(b"\n")
        if at < 0:
            return None
        line = bytes(buf[: at + 1])
        del buf[: at + 1]
        return Line(line)

    def frame(self, payload: bytes) -> hydrogen.Frame:
        return Line(payload)


class Line(hydrogen.Frame):
    """As it is."""

    def __init__(self, line: bytes) -> None:
        self.line = bytes(line)

    def to_bytes(self) -> bytes:
        return self.line

    def payload(self) -> bytes:
        return self.line


class Chunks(hydrogen.Stream):
    """The user's own stream: chunks as they are read."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.kept = bytearray()

    def recv(self) -> list[bytes]:
        part = os.read(self.fd, 65_536)
        if not part:
            raise EOFError
        return [part]

    def send(self, buf: bytes) -> None:
        self.kept += buf
        while self.kept:
            del self.kept[: os.write(self.fd, self.kept)]

    def shutdown(self) -> None:
        pass

    def fileno(self) -> int:
        return self.fd


class Operates(hydrogen.Handler):
    """Does what `OPERATIONS` says and answers "ok", or "no" when that failed for want of memory."""

    end = b"\n"

    def __init__(self, operation: Callable[[Any], object], catches: bool) -> None:
        self.operation = operation
        self.catches = catches
        self.removed = itertools.count()

    def operate(self, socket: hydrogen.HydrogenSocket) -> None:
        try:
            self.operation(socket)
        except MemoryError:
            if not self.catches:
                raise
            socket.send(b"no" + self.end)
            return
        socket.send(b"ok" + self.end)


class Answers(Operates):
    """No other callback is overridden: an engine may do without Python for them."""

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        if data.rstrip() != b"do":  # what those say who stay, and those who come to see
            socket.send(data)
            return
        self.operate(socket)


class AnswersInFrames(Answers):
    """The framing adds the ends of lines."""

    end = b""


class Keeps(Answers):
    """Keeps each socket, so that none can be used again and a new one has to be allocated."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[hydrogen.HydrogenSocket] = []

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        self.kept.append(socket)
        super().on_data_received(socket, data)


class Attends(Answers):
    """Overrides all of them, and does something in each that allocates."""

    def on_new_connection(self, fd: int) -> hydrogen.Stream | None:
        return None

    def on_connected(self, socket: hydrogen.HydrogenSocket) -> None:
        socket.user_data = [socket.peername]
        socket.send(b"hello\n")

    def on_eof(self, socket: hydrogen.HydrogenSocket) -> None:
        socket.send(b"bye\n")
        socket.close()

    def on_writable(self, socket: hydrogen.HydrogenSocket) -> None:
        socket.send(b"writable\n")

    def on_disconnected(self, socket: hydrogen.HydrogenSocket, err: Exception) -> None:
        socket.user_data.append((socket.peername, repr(err)))

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        next(self.removed)
        self.last = fd, repr(err)


class RaisesAtTheEnd(Attends):
    """The last two callbacks raise: what is logged has to be allocated too."""

    def on_disconnected(self, socket: hydrogen.HydrogenSocket, err: Exception) -> None:
        raise ZeroDivisionError

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        next(self.removed)
        raise ZeroDivisionError


class Refuses(Attends):
    """Every other one is refused: those that stay are not."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.refuses = False

    def on_new_connection(self, fd: int) -> None:
        if self.refuses:
            raise hydrogen.Reject("not now")


class Opens(Attends):
    """Gives out a stream."""

    def __init__(self, *arguments: Any, stream: Callable[[int], hydrogen.Stream]) -> None:
        super().__init__(*arguments)
        self.stream = stream

    def on_new_connection(self, fd: int) -> hydrogen.Stream:
        return self.stream(fd)


class WebSocketAnswers(Operates, hydrogen.WebSocketHandler):
    """As `Answers`."""

    end = b""

    def on_message(self, socket: hydrogen.HydrogenSocket, data: str | bytes) -> None:
        if data != "do":
            socket.send(data)
            return
        self.operate(socket)


class WebSocketAttends(WebSocketAnswers):
    """As `Attends`."""

    def on_request(
        self, socket: hydrogen.HydrogenSocket, request: hydrogen.Request
    ) -> hydrogen.Accept | hydrogen.Response:
        socket.user_data = [request.path, request.cookies, socket.peername]
        return hydrogen.Accept(headers=[("X-Path", request.path)])

    def on_connected(self, socket: hydrogen.HydrogenSocket) -> None:
        socket.user_data.append((socket.path, socket.subprotocol))
        socket.send("hello")

    def on_pong(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        socket.send(b"pong")

    def on_writable(self, socket: hydrogen.HydrogenSocket) -> None:
        socket.send("writable")

    def on_disconnected(self, socket: hydrogen.HydrogenSocket, err: Exception) -> None:
        socket.user_data.append((socket.peername, socket.latency, repr(err)))

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        next(self.removed)
        self.last = fd, repr(err)


class WebSocketRaisesAtTheEnd(WebSocketAttends):
    """As `RaisesAtTheEnd`."""

    def on_disconnected(self, socket: hydrogen.HydrogenSocket, err: Exception) -> None:
        raise ZeroDivisionError

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        next(self.removed)
        raise ZeroDivisionError


class WebSocketRefuses(WebSocketAttends):
    """As `Refuses`: with a response, or with 403."""

    def __init__(self, *arguments: Any, responds: bool) -> None:
        super().__init__(*arguments)
        self.refuses = False
        self.responds = responds

    def on_request(
        self, socket: hydrogen.HydrogenSocket, request: hydrogen.Request
    ) -> hydrogen.Accept | hydrogen.Response:
        if self.refuses and self.responds:
            return hydrogen.Response(503, "not now", {"Retry-After": "1"})
        if self.refuses:
            raise hydrogen.Reject("not now")
        return super().on_request(socket, request)


def nothing(socket: hydrogen.HydrogenSocket) -> None:
    """Only the answer."""


def names(socket: hydrogen.HydrogenSocket) -> None:
    _ = socket.peername, socket.sockname, socket.fileno(), socket.id, socket.pending, socket.is_open
    _ = socket.get_extra_info("peername"), socket.get_extra_info("socket"), socket.server
    _ = repr(socket), hash(socket)


def user_data(socket: hydrogen.HydrogenSocket) -> None:
    socket.user_data = {"a": [1, 2, 3]}
    assert socket.user_data["a"]


def pause(socket: hydrogen.HydrogenSocket) -> None:
    socket.pause_reading()
    socket.resume_reading()


def pause_for_a_timer(socket: hydrogen.HydrogenSocket) -> None:
    """Whether or not the timer can be made, somebody resumes."""
    socket.pause_reading()
    try:
        socket.server.call_later(0, socket.resume_reading)
    except MemoryError:
        socket.resume_reading()
        raise


def drain(socket: hydrogen.HydrogenSocket) -> None:
    socket.send(bytes(LARGE - 1) + b"\n")
    socket.drain()


def cancel(socket: hydrogen.HydrogenSocket) -> None:
    socket.server.call_later(100, nothing).cancel()


def fail(socket: hydrogen.HydrogenSocket) -> None:
    raise ZeroDivisionError


def raise_close(socket: hydrogen.HydrogenSocket) -> None:
    raise hydrogen.Close(4001, "of mine")


OPERATIONS: dict[str, Callable[[Any], object]] = {
    "send": nothing,
    "send much": lambda socket: socket.send(bytes(LARGE - 1) + b"\n"),
    "send twenty": lambda socket: [socket.send(b"a part\n") for _ in range(20)],
    "close": lambda socket: socket.close(),
    "close with a code": lambda socket: socket.close(4000, "of mine"),
    "raise Close": raise_close,
    "abort": lambda socket: socket.abort(),
    "drain": drain,
    "pause": pause,
    "pause for a timer": pause_for_a_timer,
    "user_data": user_data,
    "names": names,
    "broadcast": lambda socket: socket.server.broadcast(b"to all\n"),
    "broadcast text": lambda socket: socket.server.broadcast("to all\n"),
    "ping": lambda socket: socket.ping(b"who is there"),
    "connections": lambda socket: socket.server.connections,
    "stats": lambda socket: socket.server.stats(),
    "call_later": lambda socket: socket.server.call_later(0, lambda: socket.send(b"later\n")),
    "cancel": cancel,
    "raise": fail,
}


def context_of() -> ssl.SSLContext:
    """The server's, with the certificate that the test has made."""
    return certificates.server_context(Path(sys.argv[6]))


def secure_streams() -> Callable[[int], hydrogen.Stream]:
    """What makes them, with one context."""
    context = context_of()
    return lambda fd: hydrogen.Secure(fd, None, context)


OPENINGS: dict[str, Callable[..., Answers]] = {
    "bare": Answers,
    "bare, in frames": AnswersInFrames,
    "keeps": Keeps,
    "attended": Attends,
    "raises at the end": RaisesAtTheEnd,
    "refused": Refuses,
    "plain": lambda *arguments: Opens(*arguments, stream=lambda fd: hydrogen.Plain(fd, Lines())),
    "secure": lambda *arguments: Opens(*arguments, stream=secure_streams()),
    "stream": lambda *arguments: Opens(*arguments, stream=Chunks),
}

WEBSOCKET_OPENINGS: dict[str, Callable[..., WebSocketAnswers]] = {
    "bare": WebSocketAnswers,
    "attended": WebSocketAttends,
    "raises at the end": WebSocketRaisesAtTheEnd,
    "refused": functools.partial(WebSocketRefuses, responds=False),
    "responds": functools.partial(WebSocketRefuses, responds=True),
}
WEBSOCKET = hydrogen.WebSocket(ping_interval=None, ping_timeout=None, close_timeout=1000)
WEBSOCKETS = ("websocket", "wss")


def options_of(transport: str) -> dict[str, Any]:
    """The options of a server for `transport`."""
    options: dict[str, Any] = {"port": 0}
    if transport == "unix":
        options = {"path": sys.argv[7]}
    elif transport == "tls":
        options["ssl"] = context_of()
    elif transport == "proxy":
        options |= {"proxy_protocol": "auto", "proxy_allow_from": ("127.0.0.0/8",)}
    elif transport == "builder":
        options["framing"] = Lines
    elif transport == "lines":
        options["framing"] = hydrogen.LineFrameBuilder
    elif transport in WEBSOCKETS:
        options["websocket"] = WEBSOCKET
        if transport == "wss":
            options["ssl"] = context_of()
    return options


def main() -> None:
    """Serve, and carry out orders: "arm N", "disarm", "refuse B", "connections", "stop"."""
    engine, transport, opening, operation, catches = sys.argv[1:6]
    logging.getLogger("hydrogen").propagate = False
    logging.getLogger("hydrogen").addHandler(logging.StreamHandler(io.StringIO()))
    logging.raiseExceptions = False
    dead: list[str] = []

    def died(args: Any) -> None:
        dead.append(f"{args.thread} died of {args.exc_type}")
        sys.stderr.write(f"{dead[-1]}\n")
        traceback.print_tb(args.exc_traceback)

    threading.excepthook = died
    sys.unraisablehook = lambda args: None  # what is left behind is looked at, not what is said
    openings: dict[str, Callable[..., Operates]] = dict(OPENINGS)
    if transport in WEBSOCKETS:
        openings = dict(WEBSOCKET_OPENINGS)
    handler = openings[opening](OPERATIONS[operation], catches == "catches")
    _testcapi.set_nomemory(NEVER, NEVER + 1)  # installs the hooks before there are threads
    # No deadline may come to the rescue of a connection that nobody serves.
    server = hydrogen.serve(
        handler,
        engine=engine,
        max_threads=2,
        pre_allocated=2,
        open_timeout=1000,
        frame_timeout=1000,
        write_timeout=1000,
        write_buffer_limits=(2000, 8000),
        **options_of(transport),
    )
    print(json.dumps(server.address), flush=True)
    orders = io.FileIO(0, closefd=False)
    order = bytearray(16)
    arm, write = _testcapi.set_nomemory, os.write
    disarm, never, after = b"disarm".ljust(16), NEVER, NEVER + 1
    while orders.readinto(order):
        if order == disarm:  # no allocation, which could be the one that fails
            arm(never, after)
            write(1, ANSWER)
            continue
        what, _, value = order.decode().strip().partition(" ")
        if what == "arm":
            first, last = int(value), int(value) + 1
            # Or it fails a worker that is still at what those have asked who stay.
            wait_until(lambda: not server._life.engine.running(), "no worker is busy")
            try:
                arm(first, last)
                write(1, ANSWER)
            except MemoryError:
                write(1, ANSWER)
            continue
        if what == "refuse":
            handler.refuses = bool(int(value))  # type: ignore[attr-defined]
        elif what == "connections":
            stats = server.stats()
            print(json.dumps([stats.connections, stats.queued_bytes, dead]), flush=True)
            continue
        else:
            report = server.stop(20)
            stats = server.stats()
            print(json.dumps([report.closed, report.aborted, report.abandoned, stats.connections]))
            print(json.dumps([stats.accepted, stats.removed, stats.queued_bytes]))
            print(json.dumps([next(handler.removed), [t.name for t in threading.enumerate()]]))
            return
        write(1, ANSWER)


def spare_thread_starts(arm_again: Callable[[], None]) -> None:
    """Let no allocation fail in `Thread.start`, and count anew after each.

    A thread whose own first steps find no memory dies before anything of ours runs in it, and
    CPython's `start` waits for it for ever.
    """
    start = threading.Thread.start

    def spared(thread: threading.Thread) -> None:
        _testcapi.set_nomemory(NEVER, NEVER + 1)
        start(thread)
        arm_again()

    threading.Thread.start = spared  # type: ignore[method-assign]


def leave_at_end(client: Client) -> None:
    """Read up to the end and leave, so that no stop has to linger."""
    # It is reset by the stop, or the allocation that fails is of this thread.
    with contextlib.suppress(OSError, MemoryError):
        client.receive_until_end()
    client.close()


def cycles(engine: str, what: str, highest: int) -> None:
    """Start and stop servers; allocations fail in the start or in the stop.

    A start that fails leaves nothing behind; a stop that fails is called again, and ends.
    """
    logging.getLogger("hydrogen").propagate = False
    logging.raiseExceptions = False
    sys.unraisablehook = lambda args: None
    arm = _testcapi.set_nomemory
    arm(NEVER, NEVER + 1)
    armed = NEVER
    spare_thread_starts(lambda: arm(armed, armed + 1))
    held: tuple[set[int], set[int]] | None = None
    for at in range(-1, highest + 1):
        print(f"allocation {at} is to fail", file=sys.stderr, flush=True)
        server = hydrogen.Server(
            Attends(nothing, True), hydrogen.Config(port=0, max_threads=2), engine=engine
        )
        failed = False
        if what == "start" and at >= 0:
            try:
                armed = at
                arm(at, at + 1)
                server.start()
            except (MemoryError, RuntimeError):  # "can't start new thread", "can't allocate lock"
                failed = True
            finally:
                armed = NEVER
                arm(NEVER, NEVER + 1)
        else:
            server.start()
        if not failed:
            with Client(server.address) as client:
                assert client.receive(6) == b"hello\n", at
                client.echo(b"served\n")
                with running(lambda client=client: leave_at_end(client)):  # type: ignore[misc]
                    if what == "stop" and at >= 0:
                        try:
                            arm(at, at + 1)
                            server.stop(20)
                        except (MemoryError, RuntimeError):  # "can't allocate lock"
                            pass
                        finally:
                            arm(NEVER, NEVER + 1)
                    server.stop(20)
            assert server.wait(20), at
            report, stats = server.stop(20), server.stats()
            ended = report.closed, report.aborted, report.abandoned, stats.connections
            # None of them: a worker that was still at the echo has met it, and the connection ended
            # before the stop counted.
            assert ended in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 0)), (at, ended)
        del server
        gc.collect()
        held = held or (set(open_fds()), threads())

        def is_as_before(held: Any = held) -> bool:
            return set(open_fds()) == held[0] and len(threads()) <= len(held[1])

        wait_until(is_as_before, f"after {at}: {open_fds()}, {threading.enumerate()}")
    print("done", flush=True)
