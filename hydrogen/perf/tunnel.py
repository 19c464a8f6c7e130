"""TLS for the hot loops: Python's ``ssl`` over memory, one tunnel a connection; reading and writing
the socket stays the loop's.

Over memory, because that is cheapest: an ``SSLSocket`` reads the head of each record by itself, a
system call more per reply, and says by an exception that there is no more.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from collections.abc import Generator

RECORD = 1 << 14
"""The longest plaintext of one record (RFC 8446, 5.1): a read of so much takes a whole one."""


def client_context(cacert: str | None, insecure: bool) -> ssl.SSLContext:
    """What servers are verified with: the certificate authorities in the file ``cacert``, else the
    system's; none if ``insecure``.
    """
    context = ssl.create_default_context(cafile=cacert)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def receive(sock: socket.socket, handshake: str) -> Generator[int, None, bytes]:
    """What comes next over ``sock``, which is non-blocking; yields what has to be waited for, as
    ``selectors`` names it.

    Raises:
        OSError: also when the server ends the connection, in the middle of what ``handshake``
            names.
    """
    while True:
        yield selectors.EVENT_READ
        with contextlib.suppress(BlockingIOError):
            data = sock.recv(RECORD)
            if not data:
                raise ConnectionResetError(
                    f"the server ended the connection during the {handshake} handshake"
                )
            return data


class Tunnel:
    """The client's end of one connection's TLS.

    Attributes:
        unsent: ciphertext that the kernel has not taken yet; it cannot be made again, for records
            are numbered. The compiled loop keeps it here.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "unsent")

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.unsent = b""

    def handshake(self, sock: socket.socket) -> Generator[int, None, None]:
        """Shake hands over ``sock``, in the manner of :func:`receive`.

        Raises:
            OSError: an ``ssl.SSLError`` too.
        """
        done = False
        while not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                done = True
            sock.sendall(self._outgoing.read())  # a few KB: a new connection's buffer takes them
            if not done:
                self._incoming.write((yield from receive(sock, "TLS")))

    def describe(self) -> str:
        """Protocol version and cipher."""
        cipher = self._tls.cipher()
        return f"{self._tls.version()} {cipher[0] if cipher else '?'}"

    def decrypt(self, ciphertext: bytes) -> bytes:
        """The plaintext that ``ciphertext`` completes, which may be none.

        Raises:
            ssl.SSLZeroReturnError: the server has sent its close_notify.
            ssl.SSLError: what came is not right.
        """
        self._incoming.write(ciphertext)
        parts = []
        try:
            while self._incoming.pending:
                part = self._tls.read(RECORD)
                if not part:
                    raise ssl.SSLZeroReturnError("close_notify")
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, plaintext: bytes) -> bytes:
        """The records that carry ``plaintext``."""
        written = self._tls.write(plaintext)
        while written < len(plaintext):
            written += self._tls.write(memoryview(plaintext)[written:])
        return self._outgoing.read()

    def close(self) -> bytes:
        """Our close_notify."""
        # the server's own has not come, and is not waited for
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._outgoing.read()
