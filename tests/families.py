"""Servers and peers of each family of sockets: TCP, Unix, TLS, and a stream of a user's. All speak
lines.
"""

from __future__ import annotations

import os
from typing import Any

from certificates import client_context, server_context
from states.scene import FAMILIES, Lines, Peer
from support import Client

import hydrogen

__all__ = ["FAMILIES", "PassThrough", "Peer", "connect_to", "options_of", "stream_of"]


class PassThrough(hydrogen.Stream):
    """A stream of the user's that gives out what it reads, and keeps what it cannot write."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.rest = b""

    def recv(self) -> list[bytes]:
        part = os.read(self.fd, 4096)
        if not part:
            raise EOFError
        return [part]

    def send(self, buf: bytes) -> None:
        self.rest += buf
        while self.rest:
            self.rest = self.rest[os.write(self.fd, self.rest) :]

    def shutdown(self) -> None:
        pass

    def fileno(self) -> int:
        return self.fd


def options_of(family: str, path: str) -> dict[str, Any]:
    """What `serve` is to be given. `path`: of a Unix socket. See `stream_of`, too."""
    where: dict[str, Any] = {"path": path} if family == "unix" else {"port": 0}
    how: dict[str, Any] = (
        {} if family == "stream" else {"framing": hydrogen.LineFrameBuilder(max_size=1 << 30)}
    )
    return {**where, **how, **({"ssl": server_context()} if family == "tls" else {})}


def stream_of(family: str, fd: int) -> hydrogen.Stream | None:
    """What `on_new_connection(fd)` is to return."""
    return Lines(fd) if family == "stream" else None


def connect_to(server: hydrogen.Server, family: str) -> Peer:
    """A peer that is connected, with its handshake done."""
    peer = Peer(Client(server.address), client_context() if family == "tls" else None)
    peer.shake_hands()
    return peer
