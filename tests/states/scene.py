"""A scene: one connection in some state, its peer, and who stands around it.

The scene keeps two accounts, from which each outcome is judged: the messages that the peer has sent
whole, and the messages for which the server's `send` returned True and which the peer has not read.
Every socket buffer is small, so that a reply that is not read fills them, and fills them again.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket as stdlib_socket
import threading
from collections.abc import Callable
from typing import Any

from certificates import client_context, server_context
from support import PATIENCE, Client, Recorder, TlsClient, recorder, running, wait_event, wait_until

import hydrogen

FAMILIES = ("tcp", "unix", "tls", "stream")

BUFFER = 8192
"""Bytes asked for each socket buffer; the kernel doubles them."""

HIGH = 32_768
"""The high watermark; the low one is half of it."""

BIG = b"".join(b"%d," % n for n in range(24_000))
"""A message that is longer than all buffers and watermarks together, no two places of it alike."""

PIECE = 40_000
"""Bytes of `BIG` that make room for more, and leave enough to fill the room again."""

SHORT = 0.1
"""Seconds of a timeout that is to pass."""

HEADER = b"PROXY TCP4 127.0.0.7 127.0.0.8 1024 80\r\n"

BUFFERED = 1 << 20
"""`max_buffered`, where it is to be exceeded."""


def use_small_segments(fd: int) -> None:
    """Have the connections of a listener use segments of which several fit into a small buffer.

    With the loopback's, of 64 KiB, each window that opens waits for a delayed acknowledgement.
    """
    with stdlib_socket.socket(fileno=os.dup(fd)) as sock:
        sock.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_MAXSEG, 1400)


class Lines(hydrogen.Stream):
    """A user's stream, in Python: lines, with what cannot be written kept."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.read = b""
        self.kept = bytearray()

    def recv(self) -> list[bytes]:
        part = os.read(self.fd, 16384)
        if not part:
            if self.read:
                raise hydrogen.IncompleteFrame("the end came inside a line")
            raise EOFError
        *lines, self.read = (self.read + part).split(b"\n")
        return lines or self.recv()

    def send(self, buf: bytes) -> None:
        if buf:
            self.kept += buf + b"\n"
        while self.kept:
            del self.kept[: os.write(self.fd, self.kept)]

    def shutdown(self) -> None:
        with contextlib.suppress(OSError), stdlib_socket.socket(fileno=os.dup(self.fd)) as sock:
            sock.shutdown(stdlib_socket.SHUT_RDWR)

    def fileno(self) -> int:
        return self.fd


class Peer:
    """The other side of a connection, in any family; it speaks lines."""

    def __init__(self, client: Client, context: Any) -> None:
        self.client = client
        self.tls = None if context is None else TlsClient(client, context)

    @property
    def _talker(self) -> Client | TlsClient:
        return self.client if self.tls is None else self.tls

    def shake_hands(self) -> None:
        if self.tls is not None:
            self.tls.handshake()

    def send(self, data: bytes) -> None:
        self._talker.send(data)

    def receive(self, count: int) -> bytes:
        return self._talker.receive(count)

    def receive_until_end(self) -> bytes:
        return self._talker.receive_until_end()

    def end(self) -> str:
        """How the connection ended: "end", "truncated" (TLS) or "reset"."""
        return self._talker.at_end()

    def finish(self) -> None:
        """End the sending side gracefully: with TLS close_notify goes before the FIN."""
        self._talker.finish()

    def close(self) -> None:
        """Both ways, with TLS after close_notify. With unread input the kernel makes it a reset."""
        if self.tls is not None and self.tls.is_ready:
            with contextlib.suppress(OSError):
                self.client.send(self.tls.close_notify())
        self.client.close()

    def wait_for_input(self) -> None:
        """See the function."""
        wait_for_input(self.client)

    def wait_for_end(self) -> None:
        """See the function."""
        wait_for_end(self.client)


def wait_for_input(client: Client) -> None:
    """Until the kernel has something that the client could read."""
    assert select.select([client.sock], [], [], PATIENCE)[0], "nothing came"


def wait_for_end(client: Client) -> None:
    """Until the end has come, whether or not the client has read what came before it."""
    poll = select.poll()
    poll.register(client.sock, select.POLLRDHUP)
    assert poll.poll(PATIENCE * 1000), "no end came"


class Scene:
    """See the module.

    Attributes:
        family: one of FAMILIES.
        state: in which it was built.
        release: what lets it out.
        peer: of the connection that it is all about.
        sent: messages that the peer has sent whole, in order.
        owed: what the server's `send` took and the peer has not read, as it must come.
        answered: how many messages the handler is done with.
        quiet: the handler sends no replies: the peer is gone.
        part: of a message, which the peer has begun.
        unsent: what is left of the PROXY header, or of the handshake.
        timeout: which one is to pass.
        answer: what the user's call returned.
        flooded: set when the flood is over.
        flood_error: what the peer met while it sent the flood.
        successor: the peer of the connection that has the slot now.
        before: how many messages had been delivered when the event came.
        reports: what `Server.stop` returned.
    """

    peer: Peer
    release: Callable[[], None]
    new_handler: Callable[..., Any] = staticmethod(recorder)

    def __init__(
        self,
        family: str,
        start: Callable[..., hydrogen.Server],
        connect: Callable[..., Client],
        gate: Callable[[], threading.Event],
        path: str,
        on_eof: bool = False,
        **options: Any,
    ) -> None:
        self.family = family
        self._start = start
        self._connect = connect
        self._stack = contextlib.ExitStack()
        self._hogging = contextlib.ExitStack()
        self.go = gate()
        self.done = gate()
        self.hogs: list[hydrogen.HydrogenSocket] = []
        self.sent: list[bytes] = []
        self.owed = b""
        self._owing = threading.Lock()  # a bytearray is not safe where there is no GIL
        self.answered = 0
        self.quiet = False
        self.part = b""
        self.state = ""
        self.before = 0
        self.unsent: list[bytes] = []
        self.timeout = ""
        self.successor: Peer | None = None
        self.flooded: threading.Event | None = None
        self.flood_error: OSError | None = None
        self.answer: object = None
        self.reports: list[hydrogen.StopReport] = []
        self._clients: list[Client] = []
        self._socket: hydrogen.HydrogenSocket | None = None
        self._neighbour: Peer | None = None
        self._guards: list[Peer] = []
        hooks: dict[str, Any] = {
            "server_created": None if family == "unix" else use_small_segments,
            **self.callbacks(),
        }
        if on_eof:
            hooks["eof"] = None
        names = (stdlib_socket.SO_SNDBUF, stdlib_socket.SO_RCVBUF)
        options = {
            "socket_options": [(stdlib_socket.SOL_SOCKET, name, BUFFER) for name in names],
            "write_buffer_limits": (HIGH // 2, HIGH),
            "open_timeout": None,
            "frame_timeout": None,
            "write_timeout": None,
            **options,
        }
        self.has_header = options.get("proxy_protocol", "off") != "off"
        if self.has_header:
            options["proxy_allow_from"] = ("127.0.0.0/8", "unix")
        self.speak(options)
        if family == "tls":
            options["ssl"] = server_context()
        if family == "unix":
            options["path"] = path
        self.context = client_context() if family == "tls" else None
        self.handler: Recorder = self.new_handler(**hooks)
        self.options = options
        self.server = start(self.handler, **options)

    # ------------------------------------------------------------------ the server's side

    def callbacks(self) -> dict[str, Any]:
        """What the handler overrides."""
        hooks: dict[str, Any] = {"connected": None, "data_received": self._received}
        return {**hooks, "new_connection": Lines} if self.family == "stream" else hooks

    def speak(self, options: dict[str, Any]) -> None:
        """Add the options that say what the server speaks."""
        if self.family != "stream":
            options["framing"] = hydrogen.LineFrameBuilder(max_size=1 << 24)

    def _received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        if data == b"hold":
            wait_event(self.go, "let go")
        elif data == b"pause":
            socket.pause_reading()
        elif data in (b"big", b"last"):
            self.push(socket, BIG)
        elif data == b"hog":
            self.hogs.append(socket)
            socket.send(bytes(2 * BUFFERED))
        if not (self.quiet and self.is_ours(socket)) and not data.startswith(b"flood"):
            self.push(socket, b"re " + data)
        if data in (b"last", b"bye"):
            socket.close()
        if self.is_ours(socket):
            self.answered += 1

    def is_ours(self, socket: hydrogen.HydrogenSocket) -> bool:
        """Whether this is the connection that it is all about."""
        return socket == (self._socket or self._find())

    def push(self, socket: hydrogen.HydrogenSocket, data: bytes) -> bool:
        """`send`, with the account of what the peer is to get."""
        is_ours = self.is_ours(socket)
        if is_ours:
            with self._owing:
                self.owed += data + b"\n"
        taken = socket.send(data)
        if is_ours and not taken:
            with self._owing:
                self.owed = self.owed[: -len(data) - 1]
        return taken

    @property
    def socket(self) -> hydrogen.HydrogenSocket:
        """Of the connection that it is all about: the one that said hello."""
        if self._socket is None:
            self._socket = self.handler.wait(self._find, "the connection said hello")
        return self._socket

    def _find(self) -> hydrogen.HydrogenSocket | None:
        calls = self.handler.of("data_received")
        return next((call.socket for call in calls if call.value == b"hello"), None)

    def messages(self) -> list[bytes]:
        """What was delivered."""
        if self._socket is None and self._find() is None:
            return []
        return self.handler.messages(self.socket.id)

    def error(self) -> Exception | None:
        """With which the connection was removed; None: it was not."""
        ended = self.handler.of("disconnected")
        socket = self._socket or self._find()
        if socket is not None:
            return next((call.value for call in ended if call.socket == socket), None)
        known = [call.value for call in ended]
        removed = [call.value for call in self.handler.of("connection_removed")]
        return next((error for error in removed if error not in known), None)

    def wait_removed(self) -> Exception:
        """The error of the removal, of which both callbacks are told."""
        error = self.handler.wait(self.error, "the connection is removed")
        self.handler.wait(
            lambda: [call for call in self.handler.of("connection_removed") if call.value is error],
            "on_connection_removed with the same error",
        )
        return error

    # ------------------------------------------------------------------ the peer's side

    def new_peer(self, server: hydrogen.Server | None = None) -> Peer:
        """A connection with small buffers; nothing is sent."""
        client = self._connect(server or self.server, receive_buffer=BUFFER, send_buffer=BUFFER)
        self._clients.append(client)
        return Peer(client, self.context)

    def opened(self, peer: Peer | None = None) -> Peer:
        """A connection that is ready, and whose first message was answered."""
        peer = peer or self.new_peer()
        self.introduce(peer)
        peer.shake_hands()
        peer.send(b"open\n")
        assert peer.receive(8) == b"re open\n"
        return peer

    def open(self) -> None:
        """Open the connection that it is all about."""
        self.peer = self.new_peer()
        self.introduce(self.peer)
        self.say_hello()

    def introduce(self, peer: Peer) -> None:
        """Send the PROXY header, where there is one."""
        if self.has_header:
            peer.client.send(HEADER)

    def say_hello(self) -> None:
        """The same, once the connection is there."""
        self.peer.shake_hands()
        self.say(b"hello")
        self.hear()

    def say(self, *messages: bytes) -> None:
        """The peer sends messages, in one write. The first goes on with a part, if any."""
        self.sent.extend([self.part + messages[0], *messages[1:]])
        self.part = b""
        self.peer.send(b"".join(message + b"\n" for message in messages))

    def begin(self, part: bytes) -> None:
        """The peer sends a part of a message."""
        self.part += part
        self.peer.send(part)

    def hear(self) -> None:
        """The peer reads all that it is owed, until all that it said was answered."""
        self.read()
        self.handler.wait(lambda: self.messages() == self.sent, f"{self.sent} are delivered")
        wait_until(lambda: self.answered == len(self.sent), "all is answered")
        self.read()

    def read(self, most: int | None = None) -> None:
        """The peer reads all that it is owed, or so many bytes."""
        expected = self.owed[:most]
        assert self.peer.receive(len(expected)) == expected
        with self._owing:
            self.owed = self.owed[len(expected) :]

    # ------------------------------------------------------------------ around it

    def barrier(self) -> None:
        """What came before was seen by the server: a neighbour is served, twice."""
        if not self.server.ready:
            return
        if self._neighbour is None:
            self._neighbour = self.opened()
        for _ in range(2):
            self._neighbour.send(b"neighbour\n")
            assert self._neighbour.receive(13) == b"re neighbour\n"

    def outlast(self) -> None:
        """A witness, whose time begins now, is removed by the timeout that is to pass."""
        handler, server = self.handler, self.server
        if not server.ready:
            options = {**self.options}
            if self.family == "unix":
                options["path"] += "2"
            handler = self.new_handler(**self.callbacks())
            server = self._start(handler, **options)
        peer = self.new_peer(server)
        if self.timeout != "open_timeout":
            self.opened(peer)
        self.tempt(peer)

        def passed() -> bool:
            return any(self.is_late(call.value) for call in handler.of("connection_removed"))

        handler.wait(passed, f"the witness is removed by {self.timeout}")

    def is_late(self, error: Exception) -> bool:
        """Whether it is by the timeout that is to pass."""
        return str(error).startswith(f"{self.timeout}:")

    def tempt(self, peer: Peer) -> None:
        """Have the time begin that is to pass."""
        if self.timeout == "frame_timeout":
            peer.send(b"part")
        elif self.timeout == "write_timeout":
            peer.send(b"big\n")

    def meanwhile(self, action: Callable[[], object]) -> None:
        """Run something in a thread of its own, which must have ended when the scene does."""
        self._stack.enter_context(running(action))

    def guard(self) -> None:
        """Open an idle neighbour: the end of all of them shows that a stop has come to everybody.

        Whatever the order of that, one that was opened before the connection and one after do.
        """
        self._guards.append(self.opened())

    def stop(self, timeout: float = PATIENCE) -> None:
        """Ask for a graceful stop, of which the connection is told when this returns."""
        if self.server.ready:
            self.guard()
        self.meanwhile(lambda: self.reports.append(self.server.stop(timeout)))
        for guard in self._guards:
            self.dismiss(guard)
        self._guards.clear()

    def dismiss(self, guard: Peer) -> None:
        """The stop has come to a guard."""
        guard.wait_for_end()
        guard.client.close()

    def exceed(self) -> None:
        """One neighbour after the other gets more than `max_buffered`, and is removed for it."""

        def hogs() -> None:
            while not self.done.is_set() and self.server.ready:
                try:
                    self.overflow()
                except (OSError, AssertionError):
                    if self.server.ready and not self.done.is_set():
                        raise

        self.overflow()
        self._hogging.enter_context(running(hogs))

    def overflow(self) -> None:
        """A neighbour gets more than `max_buffered`, and is removed for it."""
        seen = len(self.hogs)
        peer = self.opened()
        peer.send(b"hog\n")

        def removed() -> bool:
            return self.done.is_set() or (len(self.hogs) > seen and not self.hogs[seen].is_open)

        wait_until(removed, "the neighbour is removed")
        peer.client.close()

    def finish(self) -> None:
        """Let go of everything; what went wrong in a thread is raised."""
        self.go.set()
        self.done.set()
        with self._stack:
            self._hogging.close()
            for client in self._clients:
                client.close()
