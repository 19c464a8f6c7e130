"""The listening socket: made from a `Config`, given back when the server stops. Whatever fails here leaves nothing open."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable

from hydrogen.config import Config


class Listener:
    """A listening socket and what it must take away with it.

    Attributes:
        sock: the socket, listening and non-blocking.
        address: what `getsockname` gave: a tuple, or the path.
    """

    def __init__(self, config: Config, on_created: Callable[[int], None]) -> None:
        """Bind, call `on_created` with the fd, listen.

        Raises:
            OSError: the address is in use, is not ours, cannot be resolved, or `path` exists and is not a stale socket; names the address.
            Exception: whatever `on_created` raises.
        """
        self._inode: tuple[int, int] | None = None
        self._path = config.path
        self.sock = config.sock if config.sock is not None else _bound(config)
        try:
            if config.path is not None:
                status = os.stat(config.path)
                self._inode = (status.st_dev, status.st_ino)
            _inheritable_options(self.sock, config)
            on_created(self.sock.fileno())
            self.sock.listen(config.backlog)
            self.sock.setblocking(False)
            self.address = self.sock.getsockname()
        except BaseException:
            if config.sock is None:
                self.close()
            raise

    def close(self) -> None:
        """Close the socket; remove the path if it is still the socket that was bound here."""
        self.sock.close()
        if self._path is not None and self._inode is not None:
            with contextlib.suppress(OSError):
                status = os.stat(self._path)
                if (status.st_dev, status.st_ino) == self._inode:
                    os.unlink(self._path)


def _bound(config: Config) -> socket.socket:
    if config.path is not None:
        family, address = socket.AF_UNIX, config.path
        where = config.path
        _remove_stale(config.path)
    else:
        where = f"{config.addr} port {config.port}"
        try:
            found = socket.getaddrinfo(config.addr, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
        family, address = found[0][0], found[0][4]  # type: ignore[assignment]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on; a live one, or anything that is no socket, is left alone and bind(2) fails."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            return


def _inheritable_options(sock: socket.socket, config: Config) -> None:
    """Set `nodelay` and `keepalive` on the listener: Linux clones it for each connection, so accepting one costs no setsockopt(2)."""
    if sock.family == socket.AF_UNIX:
        return
    if config.nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if config.keepalive is not None:
        idle, interval, probes = config.keepalive
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
