"""The server's side: one handler for each server, which answers, blocks, raises, closes, hoards,
and knows what it has announced.

A *guest* is a well-behaved client that has said who it is. A guest may be removed because it left,
or for what was announced on its connection: what the handler was about to do, or how the client
said that it would leave. Every other end of a guest is written down, with its error.
"""

from __future__ import annotations

import contextlib
import queue
import socket as stdlib_socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import hydrogen
from perf.soak import protocol
from perf.soak.settings import REJECTED

KEPT = 50
"""Removals that were not announced of which the details are kept."""

RUBBISH = bytes(8000)


class Planned(Exception):
    """What the handler raises when it was asked to: the only error that the log may have."""


class Foreign:
    """A thread that is none of the servers', and sends for whoever asks."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[hydrogen.HydrogenSocket, list[bytes]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="soak-foreign")
        self._thread.start()

    def send(self, socket: hydrogen.HydrogenSocket, messages: list[bytes]) -> None:
        """Soon, in order."""
        self._work.put((socket, messages))

    def end(self) -> None:
        """After what was asked for."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            for message in item[1]:
                item[0].send(message)


class Guest:
    """What is known of one guest's connection; only callbacks of that connection touch it."""

    __slots__ = ("allowed", "who")

    def __init__(self, who: int) -> None:
        self.who = who
        self.allowed = {"PeerClosed"}


class Host(hydrogen.Handler):
    """Serves one server.

    Attributes:
        ended: guests that ended, by the name of the error.
        unannounced: those of them that should not have, with what is known of each.
    """

    def __init__(self, foreign: Foreign, *, rejects: bool, quiet_seconds: float) -> None:
        """Args:
        rejects: refuse those who come from `REJECTED`.
        quiet_seconds: between one burst of broadcasts and the next; longer than the idle timeout,
        for a broadcast is a sign of life.
        """
        self._foreign = foreign
        self._rejects = rejects
        self._quiet_seconds = quiet_seconds
        self._broadcasts = 0
        self._lock = threading.Lock()
        self.ended: Counter[str] = Counter()
        self.unannounced: list[dict[str, Any]] = []
        self._jobs: dict[
            bytes, Callable[[hydrogen.HydrogenSocket, bytes, int, int, bytes], None]
        ] = {
            protocol.HELLO: self._hello,
            protocol.ECHO: self._echo,
            protocol.BLOCK: self._block,
            protocol.LARGE: self._large,
            protocol.FOREIGN: self._several,
            protocol.TIMER: self._later,
            protocol.WHERE: self._where,
            protocol.LEAVING: self._leaving,
            protocol.CLOSE: self._close,
            protocol.ABORT: self._abort,
            protocol.RAISE: self._raise,
            protocol.HOARD: self._hoard,
        }

    def begin_broadcasts(self) -> None:
        """Each has the number after that of the one before."""
        self._call_later(0.5, self._broadcast)

    def _broadcast(self) -> None:
        self._broadcasts += 1
        self.server.broadcast(b"%s %d" % (protocol.BROADCAST, self._broadcasts))
        self._call_later(self._quiet_seconds if self._broadcasts % 5 == 0 else 0.1, self._broadcast)

    def _call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the server stops
            self.server.call_later(seconds, callback)

    # ------------------------------------------------------------------------------------ callbacks

    def on_new_connection(self, fd: int) -> None:
        if not self._rejects:
            return
        with stdlib_socket.fromfd(fd, stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM) as sock:
            try:
                host = sock.getpeername()[0]
            except OSError:  # reset meanwhile
                return
        if host == REJECTED:
            raise hydrogen.Reject

    def on_connected(self, socket: hydrogen.HydrogenSocket) -> None:
        socket.send(protocol.GREETING)

    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        words = data.split(b" ", 3)
        job = self._jobs.get(words[0])
        if job is not None and len(words) == 4 and words[1].isdigit() and words[2].isdigit():
            job(socket, data, int(words[1]), int(words[2]), words[3])
        else:
            socket.send(data)  # of a hostile client, then

    def on_disconnected(self, socket: hydrogen.HydrogenSocket, err: Exception) -> None:
        guest = socket.user_data
        if guest is None:
            return
        name = type(err).__name__
        with self._lock:
            self.ended[name] += 1
            if (
                name not in guest.allowed
                and not isinstance(err, hydrogen.ServerStopped)
                and len(self.unannounced) < KEPT
            ):
                self.unannounced.append({"who": guest.who, "error": name, "text": str(err)})

    # ---------------------------------------------------------------------------- what is asked for

    def _hello(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        socket.user_data = Guest(who)
        socket.send(data)

    def _echo(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        socket.send(data)

    def _block(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        time.sleep(int(rest) / 1000)
        socket.send(data)

    def _large(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        for index in range(int(rest)):
            socket.send(protocol.part(who, number, index))

    def _several(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        self._foreign.send(socket, protocol.several(protocol.FOREIGN, who, number, int(rest)))

    def _later(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        self._call_later(int(rest) / 1000, lambda: socket.send(data))

    def _where(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        peername = socket.peername
        socket.send(
            protocol.request(
                protocol.WHERE, who, number, b"%s %d" % (peername[0].encode(), peername[1])
            )
        )

    def _leaving(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        self._allow(socket, "ConnectionResetError", "BrokenPipeError", "SSLEOFError")

    def _close(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        self._allow(socket, "LocalClosed")
        socket.send(data)
        socket.close()

    def _abort(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        self._allow(socket, "LocalClosed")
        socket.abort()

    def _raise(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        self._allow(socket, "HandlerError")
        raise Planned

    def _hoard(
        self, socket: hydrogen.HydrogenSocket, data: bytes, who: int, number: int, rest: bytes
    ) -> None:
        most = int(rest)
        while socket.pending < most and socket.send(RUBBISH):
            pass

    def _allow(self, socket: hydrogen.HydrogenSocket, *errors: str) -> None:
        if socket.user_data is not None:
            socket.user_data.allowed.update(errors)
