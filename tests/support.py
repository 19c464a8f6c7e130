"""What the tests share: a handler that records its callbacks, clients made of plain sockets, and
waiting without sleeping.

Nothing here knows an engine. The clients and the frame codec are written from the format, not from
`hydrogen`, so that a test compares two opinions and not one with itself.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes  # noqa: F401 - before fds are counted: libffi 3.5 opens its own file, and keeps it
import fcntl
import os
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import programs

import hydrogen

T = TypeVar("T")
Text = TypeVar("Text", str, bytes)

PATIENCE = 30.0
"""Seconds after which what a test waits for counts as not happening; never part of what is
tested.
"""

ROOT = Path(__file__).resolve().parent.parent


def wait_until(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """The first true value of `condition`; for what has no event of its own (a counter, an fd, a
    process).
    """
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        pause.wait(0.002)


def wait_event(event: threading.Event, what: str) -> None:
    """Wait for `event`, or fail."""
    assert event.wait(PATIENCE), f"not within {PATIENCE} s: {what}"


def settled(value: Callable[[], T]) -> T:
    """A value, when it is the same a hundred times running: as what is pending is, when the kernel
    takes no more.
    """
    seen = [value()]

    def same() -> bool:
        seen.append(value())
        return len(seen) > 100 and len(set(seen[-100:])) == 1

    wait_until(same, f"the same value; there were {seen[-10:]}")
    return seen[-1]


# --------------------------------------------------------------------------- what the process holds


def open_fds() -> dict[int, str]:
    """The open fds of this process and what each is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    # The one that listed the directory is gone again, so its readlink failed. A sanitizer opens its
    # log with its first report.
    return {fd: path for fd, path in found.items() if "/reports/report." not in path}


def threads() -> set[int]:
    """The kernel's thread ids of this process: C threads are among them."""
    return {int(name) for name in os.listdir("/proc/self/task")}


def assert_empty(server: hydrogen.Server) -> None:
    """The slots are vacant, and each connection that was accepted was removed (one that a stop has
    abandoned may take its time).
    """
    wait_until(lambda: server.stats().connections == 0, f"the slots are vacant: {server.stats()}")
    stats = server.stats()
    assert stats.accepted == stats.removed, stats
    assert stats.queued_bytes == 0, stats
    assert server.connections == []


# ---------------------------------------------------------------------------- frames, independently


def simple(payload: bytes) -> bytes:
    """`payload` as a SimpleFrame on the wire."""
    return struct.pack(">BH", 0x01, len(payload)) + payload + struct.pack("B", 0x17)


def unframe(wire: bytes) -> list[bytes]:
    """The payloads of whole SimpleFrames."""
    payloads = []
    at = 0
    while at < len(wire):
        start, length = struct.unpack_from(">BH", wire, at)
        end = at + 3 + length
        assert start == 0x01, f"byte {at} is {start:#x}, not the start of a frame"
        assert wire[end] == 0x17, f"byte {end} is {wire[end]:#x}, not the end of a frame"
        payloads.append(wire[at + 3 : end])
        at = end + 1
    return payloads


# ------------------------------------------------------------------------------------------ clients


class Client:
    """A blocking client. All its waiting is bounded by PATIENCE; a timeout is a failure of the
    test.

    A server may reset a connection as soon as it has accepted it, even before `connect` returns;
    that is noted for `at_end`.
    """

    refused = False

    def __init__(
        self,
        address: Any,
        *,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        """Connect. `source`: the address to come from; all of 127.0.0.0/8 is ours."""
        self.sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        try:
            if source is not None:
                self.sock.bind((source, 0))
            if receive_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if send_buffer is not None:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            self.sock.settimeout(PATIENCE)
            try:
                self.sock.connect(address)
            except ConnectionResetError:
                self.refused = True
                return
            if self.sock.family != socket.AF_UNIX:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.sock.close()
            raise

    def send(self, data: bytes) -> None:
        """All of `data`."""
        self.sock.sendall(data)

    def unacknowledged(self) -> int:
        """Of this side; see the function."""
        return unacknowledged(self.sock.fileno())

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes; an end that comes earlier fails."""
        parts = []
        left = count
        while left:
            part = self.sock.recv(min(left, 1 << 20))
            assert part, (
                f"the end came {left} bytes too early; before it came {b''.join(parts)[-40:]!r}"
            )
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def receive_frame(self) -> bytes:
        """The payload of one SimpleFrame."""
        header = self.receive(3)
        body = self.receive(struct.unpack(">H", header[1:])[0] + 1)
        (payload,) = unframe(header + body)
        return payload

    def receive_until_end(self) -> bytes:
        """Everything until an orderly end; a reset raises ConnectionResetError."""
        parts = []
        while part := self.sock.recv(1 << 20):
            parts.append(part)
        return b"".join(parts)

    def at_end(self) -> str:
        """Read what is left; "end" for an orderly one, "reset" otherwise."""
        if self.refused:
            return "reset"
        try:
            self.receive_until_end()
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        return "end"

    def echo(self, data: bytes) -> None:
        """Send, and expect the same back."""
        self.send(data)
        assert self.receive(len(data)) == data

    def finish(self) -> None:
        """End the sending side: a FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close as usual; may be repeated."""
        self.sock.close()

    @property
    def name(self) -> Any:
        """This end's address: the server's `peername`."""
        return self.sock.getsockname()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def unacknowledged(fd: int) -> int:
    """Bytes sent that the other side's kernel does not have yet (tcp(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def family_of(address: Any) -> socket.AddressFamily:
    """The family that `address`, as `getsockname` gave it, belongs to."""
    if isinstance(address, (str, bytes)):
        return socket.AF_UNIX
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6


# ----------------------------------------------------------------------------------------- handlers


class Echo(hydrogen.Handler):
    """The smallest handler: no other callback is overridden, so an engine may do without Python for
    them.
    """

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        socket.send(data)


def echo(socket: hydrogen.HydrogenSocket, data: bytes) -> None:
    """A hook for `recorder`."""
    socket.send(data)


@dataclass
class Call:
    """One callback as it was recorded."""

    name: str
    id: int | None
    fd: int
    value: Any
    socket: hydrogen.HydrogenSocket | None
    thread: str = field(default_factory=lambda: threading.current_thread().name)


_FD_CALLBACKS = ("on_server_created", "on_new_connection", "on_connection_removed")
_ALWAYS = ("on_data_received", "on_disconnected", "on_connection_removed")


class Recorder(hydrogen.Handler):
    """Records each callback before it runs the test's hook, and checks what must hold for every
    connection; made by `recorder`.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.hooks: dict[str, Callable[..., Any] | None] = {}
        self._inside: dict[int, str] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self._changed = threading.Condition()

    def _callback(self, name: str, who: Any, *values: Any) -> Any:
        socket = None if name in _FD_CALLBACKS else who
        fd = who if socket is None else socket.fileno()
        id = None if socket is None else socket.id
        with self._changed:
            if id is not None:
                if id in self._inside:
                    self.faults.append(
                        f"{name} of connection {id} began during its {self._inside[id]}"
                    )
                self._inside[id] = name
            self.calls.append(Call(name, id, fd, values[0] if values else None, socket))
            self._counts[name] += 1
            self._changed.notify_all()
        try:
            hook = self.hooks.get(name)
            return None if hook is None else hook(who, *values)
        finally:
            if id is not None:
                with self._changed:
                    self._inside.pop(id, None)

    # ------------------------------------------------------------------ questions

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """The first true value of `condition`, asked again after each callback began."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not (value := condition()):
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(
                        f"not within {PATIENCE} s: {what}; there came "
                        f"{[call.name for call in self.calls][-20:]}"
                    )
            return value

    def of(self, name: str) -> list[Call]:
        """The calls of `on_<name>` so far."""
        with self._changed:
            return [call for call in self.calls if call.name == f"on_{name}"]

    def wait_for(self, name: str, count: int = 1) -> list[Call]:
        """At least `count` calls of `on_<name>`."""
        self.wait(lambda: self._counts[f"on_{name}"] >= count, f"{count} x on_{name}")
        return self.of(name)

    def wait_removed(self, count: int = 1) -> list[Exception]:
        """The errors of `count` removals, in order."""
        return [call.value for call in self.wait_for("connection_removed", count)]

    def wait_bytes(self, count: int) -> bytes:
        """What was received on all connections together, at least `count` bytes."""
        return (
            self.wait(
                lambda: data if len(data := self.data()) >= count else None,
                f"{count} bytes received",
            )
            if count
            else self.data()
        )

    def messages(self, id: int | None = None) -> list[bytes]:
        """The messages received, of one connection or of all."""
        return [call.value for call in self.of("data_received") if id is None or call.id == id]

    def data(self, id: int | None = None) -> bytes:
        """The same, joined."""
        return b"".join(self.messages(id))

    def socket(self, index: int = 0) -> hydrogen.HydrogenSocket:
        """The socket of connection number `index`, once a callback had it."""

        def seen() -> hydrogen.HydrogenSocket | None:
            sockets = list(
                dict.fromkeys(call.socket for call in self.calls if call.socket is not None)
            )
            return sockets[index] if len(sockets) > index else None

        return self.wait(seen, f"a callback of connection {index}")

    def names(self) -> list[str]:
        """The names of the callbacks so far, in order."""
        with self._changed:
            return [call.name for call in self.calls]

    def check(self) -> None:
        """What holds for every connection, asked when the server has stopped."""
        assert self.faults == []
        ended: set[int] = set()
        begun: set[int] = set()
        for call in self.calls:
            if call.id is None:
                continue
            assert call.id not in ended, (
                f"{call.name} of connection {call.id} after its on_disconnected"
            )
            if call.name == "on_connected":
                assert call.id not in begun, (
                    f"on_connected of connection {call.id} was not its first callback"
                )
            begun.add(call.id)
            if call.name == "on_disconnected":
                ended.add(call.id)
        assert begun == ended, f"connections {begun - ended} had no on_disconnected"
        gone = [call for call in self.calls if call.name == "on_connection_removed"]
        assert all(isinstance(call.value, Exception) for call in gone)
        assert len(gone) >= len(ended)


def _recorded(name: str) -> Callable[..., Any]:
    def callback(self: Recorder, who: Any, *values: Any) -> Any:
        return self._callback(name, who, *values)

    callback.__name__ = name
    return callback


def recorder(**hooks: Callable[..., Any] | None) -> Recorder:
    """A `Recorder` that overrides `on_data_received`, `on_disconnected`, `on_connection_removed`
    and the callbacks named, and no other.

    `recorder(connected=None, data_received=echo)`: records `on_connected` too, and echoes.
    """
    names = dict.fromkeys([*_ALWAYS, *(f"on_{name}" for name in hooks)])
    unknown = [name for name in names if not hasattr(hydrogen.Handler, name)]
    assert not unknown, unknown
    made: Recorder = type("Recorder", (Recorder,), {name: _recorded(name) for name in names})()
    made.hooks = {f"on_{name}": hook for name, hook in hooks.items()}
    return made


# ------------------------------------------------------------------------------- more of everything


@contextlib.contextmanager
def running(
    *targets: Callable[[], object], patience: float = PATIENCE
) -> Iterator[list[threading.Thread]]:
    """Run each of `targets` in a thread of its own; at the end join them and raise what the first
    of them raised.
    """
    raised: list[BaseException] = []

    def run(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            raised.append(error)

    started = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in started:
        thread.start()
    try:
        yield started
    finally:
        for thread in started:
            thread.join(patience)
    assert not [thread for thread in started if thread.is_alive()], (
        "a thread of the test did not end"
    )
    if raised:
        raise raised[0]


def child(
    code: str,
    *args: str,
    prefix: tuple[str, ...] = (),
    pass_fds: tuple[int, ...] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    """A Python process that runs `code` with the same warnings, inherits `pass_fds`, and can import
    `hydrogen` and `support`.
    """
    paths = [str(ROOT / "tests"), str(Path(hydrogen.__file__).resolve().parent.parent)]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    process = subprocess.Popen(
        [*prefix, sys.executable, "-W", "error", "-X", "faulthandler", "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
        env=env,
        cwd=ROOT / "tests",
    )
    _children.append(process)
    return process


def program(*command: object, **options: Any) -> subprocess.Popen[bytes]:
    """A process that runs a program of somebody else's, see `programs`. `options` are those of
    `Popen`.
    """
    name, *arguments = map(str, command)
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **options,
    }
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [programs.path_of(name), *arguments], **options
    )
    _children.append(process)
    return process


_children: list[subprocess.Popen[Any]] = []


def end_children() -> None:
    """Kill what a test that failed left running."""
    while _children:
        with _children.pop() as process:
            if process.poll() is None:
                process.kill()


def finish(
    process: subprocess.Popen[Text], status: int | None = 0, say: Text | None = None
) -> tuple[Text, Text]:
    """Write `say` to a process, wait for its end, check its exit status and return what it
    wrote.
    """
    try:
        out, err = process.communicate(say, timeout=2 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the process did not end; it wrote {out!r} and {err!r}") from None
    if status is not None:
        assert process.returncode == status, (
            f"exit status {process.returncode}; it wrote {out!r} and {err}"
        )
    return out, err


# ------------------------------------------------------------------ the other frames, independently


def checksum32(payload: bytes) -> bytes:
    """`payload` as a Checksum32Frame on the wire."""
    return struct.pack(">I", len(payload)) + payload + struct.pack(">I", sum(payload) % (1 << 32))


def length_frame(payload: bytes, width: int = 4, byteorder: str = "big") -> bytes:
    """`payload` as a LengthFrame on the wire."""
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    return struct.pack((">" if byteorder == "big" else "<") + code, len(payload)) + payload


def line(payload: bytes, delimiter: bytes = b"\n") -> bytes:
    """`payload` as a LineFrame on the wire."""
    return payload + delimiter


def websocket(
    payload: bytes, opcode: int = 2, fin: bool = True, mask: bytes | None = None
) -> bytes:
    """`payload` as a WebSocket frame on the wire (RFC 6455, section 5.2)."""
    first, masked = opcode | fin << 7, (mask is not None) << 7
    if len(payload) < 126:
        header = struct.pack(">BB", first, masked | len(payload))
    elif len(payload) < 1 << 16:
        header = struct.pack(">BBH", first, masked | 126, len(payload))
    else:
        header = struct.pack(">BBQ", first, masked | 127, len(payload))
    if mask is None:
        return header + payload
    return header + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


# ---------------------------------------------------------------------------------------- deadlines


def timed_out(handler: Recorder, name: str, count: int = 1) -> None:
    """The last of `count` removals: it must be by the timeout `name`."""
    error = handler.wait_removed(count)[count - 1]
    assert type(error) is hydrogen.ConnectionTimeout
    assert isinstance(error, TimeoutError)
    assert str(error).startswith(f"{name}:")


DRIPS = 3000
"""Bytes that `drip` sends at most, one each 10 ms or more: a hundred times what fits into the
deadlines that tests set.
"""


def drip(client: Client, handler: Recorder, byte: bytes = b"\0") -> None:
    """Send one byte after the other until the handler has seen the connection go; a deadline that
    began anew with each never passes.
    """
    pause = threading.Event()
    for _ in range(DRIPS):
        with contextlib.suppress(OSError):  # it may be gone already
            client.send(byte)
        if handler.of("connection_removed"):
            return
        pause.wait(0.01)
    raise AssertionError(f"the connection is there after {DRIPS} bytes")


# ---------------------------------------------------------------------------------------------- TLS


class TlsClient:
    """TLS over a `Client`, by Python's `ssl` in memory: what goes over the socket and when is for
    the test to say.

    One thread may send while another receives. The socket remains the client's, who closes it.
    """

    def __init__(
        self,
        client: Client,
        context: ssl.SSLContext,
        *,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.client = client
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=name, session=session
        )
        self.is_ready = False
        self._plaintext = bytearray()  # decrypted, and not asked for yet
        self._lock = threading.Lock()  # of `tls` and its two BIOs
        self._sending = threading.Lock()  # records leave in the order in which they were made

    # ------------------------------------------------------------------ the handshake

    def step(self) -> bytes:
        """Go on with the handshake as far as what came allows; returns what is to be sent now."""
        with self._lock:
            try:
                self.tls.do_handshake()
                self.is_ready = True
            except ssl.SSLWantReadError:
                pass
            return self._outgoing.read()

    def open(self) -> bytes:
        """Shake hands; our last flight is returned and not sent. (TLS 1.3 only: TLS 1.2 ends with
        the server's.)
        """
        try:
            while True:
                wire = self.step()
                if self.is_ready:
                    return wire
                self.client.send(wire)
                self.take()
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self.client.send(self._outgoing.read())  # the alert
            raise

    def handshake(self) -> TlsClient:
        """Shake hands."""
        self.client.send(self.open())
        return self

    # ------------------------------------------------------------------ sending

    def encrypt(self, data: bytes) -> bytes:
        """`data` as records on the wire, not sent."""
        view = memoryview(data)
        with self._lock:
            while view:
                view = view[self.tls.write(view) :]
            return self._outgoing.read()

    def send(self, data: bytes) -> None:
        """All of `data`."""
        with self._sending:
            self.client.send(self.encrypt(data))

    def close_notify(self) -> bytes:
        """The end of what we send (RFC 8446, 6.1), not sent."""
        with self._lock:
            with contextlib.suppress(ssl.SSLError):  # the peer's own has not come yet
                self.tls.unwrap()
            return self._outgoing.read()

    def finish(self) -> None:
        """End our side gracefully: close_notify, and a FIN."""
        with self._sending:
            self.client.send(self.close_notify())
            self.client.finish()

    # ------------------------------------------------------------------ receiving

    def take(self) -> None:
        """Wait for something to come over the socket."""
        data = self.client.sock.recv(1 << 16)
        with self._lock:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()

    def _read(self) -> bytes:
        """What comes next; b"" for close_notify. Raises: SSLEOFError: the end came without it."""
        while True:
            with self._lock:
                try:
                    return self.tls.read(1 << 16)
                except ssl.SSLZeroReturnError:
                    return b""
                except ssl.SSLWantReadError:
                    pass
            self.take()

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes; an end that comes earlier fails."""
        while len(self._plaintext) < count:
            part = self._read()
            assert part, (
                f"the end came {count - len(self._plaintext)} bytes too early; before it came "
                f"{bytes(self._plaintext[-40:])!r}"
            )
            self._plaintext += part
        data = bytes(self._plaintext[:count])
        del self._plaintext[:count]
        return data

    def receive_frame(self) -> bytes:
        """The payload of one SimpleFrame."""
        header = self.receive(3)
        (payload,) = unframe(header + self.receive(struct.unpack(">H", header[1:])[0] + 1))
        return payload

    def receive_until_end(self) -> bytes:
        """Everything until a graceful end: close_notify, and then, with nothing between, the end of
        the connection.
        """
        while part := self._read():
            self._plaintext += part
        data = bytes(self._plaintext)
        self._plaintext.clear()
        assert self._incoming.pending == 0, "something came after close_notify"
        assert self.client.receive_until_end() == b"", "something came after close_notify"
        return data

    def at_end(self) -> str:
        """Read what is left; "end" for a graceful end, "truncated" for one without close_notify,
        "reset".
        """
        try:
            self.receive_until_end()
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        except ssl.SSLEOFError:
            return "truncated"
        return "end"

    def echo(self, data: bytes) -> None:
        """Send, and expect the same back."""
        self.send(data)
        assert self.receive(len(data)) == data

    def close(self) -> None:
        """End our side gracefully, read on until the peer's end, and close."""
        self.finish()
        self.receive_until_end()
        self.client.close()
