"""One connection of a client, well-behaved or hostile: a socket that never blocks, under asyncio,
with or without TLS.

Not asyncio's own streams: they read ahead of who asks, and would hide from the server that nobody
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from dataclasses import dataclass

from perf.soak.settings import Place

BIND_ADDRESS_NO_PORT = 24
"""ip(7): choose the port when connecting, so that it need be free for this destination only."""

READ = 65_536
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
DESTINATION = ("192.0.2.1", 443)


@dataclass(frozen=True)
class Target:
    """Where the servers are, and by what their certificate is verified."""

    ports: dict[Place, int]
    context: ssl.SSLContext


def header_v1(host: str, port: int) -> bytes:
    """A PROXY header that names this IPv4 client (haproxy.org, proxy-protocol.txt, 2.1)."""
    return f"PROXY TCP4 {host} {DESTINATION[0]} {port} {DESTINATION[1]}\r\n".encode()


def header_v2(host: str, port: int) -> bytes:
    """The same in the second version (2.2)."""
    addresses = (
        socket.inet_aton(host)
        + socket.inet_aton(DESTINATION[0])
        + struct.pack(">HH", port, DESTINATION[1])
    )
    return SIGNATURE + struct.pack(">BBH", 0x21, 0x11, len(addresses)) + addresses


def invented(dice: random.Random) -> tuple[str, int]:
    """The address of a client behind the proxy; of so many that nobody meets anybody."""
    return (
        f"10.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(1, 255)}",
        dice.randrange(1024, 65_536),
    )


class Link:
    """A connection. One task may receive while another sends.

    Attributes:
        sock: for those who do what no `Link` should.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLObject | None = None
        self._is_ended = False  # by close_notify
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    @classmethod
    async def connect(cls, port: int, source: str, receive_buffer: int | None = None) -> Link:
        """TCP, and no more."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def shake_hands(self, context: ssl.SSLContext) -> None:
        """TLS from here on."""
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.send_raw(self._outgoing.read())
                flight = await self.receive_raw(READ)
                if not flight:
                    raise ConnectionResetError("an end in the handshake") from None
                self._incoming.write(flight)
        await self.send_raw(self._outgoing.read())

    async def send_raw(self, data: bytes) -> None:
        """These bytes, whatever the connection speaks."""
        await self._loop.sock_sendall(self.sock, data)

    async def receive_raw(self, size: int) -> bytes:
        """Some bytes; b"" at the end."""
        return await self._loop.sock_recv(self.sock, size)

    async def send(self, data: bytes) -> None:
        """All of it, when the kernel has taken it."""
        if self._tls is not None:
            sent = 0
            while sent < len(data):
                sent += self._tls.write(data[sent:])
            data = self._outgoing.read()
        await self.send_raw(data)

    async def receive(self, size: int = READ) -> bytes:
        """At most `size` bytes off the socket, and what they mean; b"" at an orderly end.

        Raises:
            OSError: an end that was not graceful; with TLS also one that was not announced.
        """
        while not self._is_ended:
            data = await self.receive_raw(size)
            if self._tls is None:
                return data
            if not data:
                raise ConnectionResetError("an end without close_notify")
            self._incoming.write(data)
            if plaintext := self._decrypted(self._tls):
                return plaintext
        return b""

    def _decrypted(self, tls: ssl.SSLObject) -> bytes:
        """What is complete."""
        parts = []
        try:
            while part := tls.read(READ):
                parts.append(part)
            self._is_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._is_ended = True
        return b"".join(parts)

    async def end_sending(self) -> None:
        """The end of what is sent: FIN; with TLS close_notify before it."""
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):  # the server's own has not come
                self._tls.unwrap()
            await self.send_raw(self._outgoing.read())
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST in place of FIN."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """FIN, or RST when there is something unread."""
        self.sock.close()
