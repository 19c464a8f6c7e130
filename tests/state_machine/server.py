"""The server's side of a `life.Life`: a handler that performs what messages say, what it saw, and a
foreign thread that meddles.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from state_machine.wires import OVERHEAD, reply
from support import PATIENCE, wait_event

import hydrogen

if TYPE_CHECKING:
    from state_machine.life import Life


class Boom(Exception):
    """What handlers raise here."""


@dataclass
class Gate:
    """What a handler waits for, or a connection that is paused: opened by a step, once."""

    number: int
    holds: bool
    event: threading.Event = field(default_factory=threading.Event)
    paused: list[Record] = field(default_factory=list)


class Record:
    """A connection as its handler sees it. `calls` are its callbacks, a letter each: see
    `GRAMMARS`.
    """

    def __init__(self, life: Life, fd: int) -> None:
        self.life = life
        self.fd = fd
        self.socket: Any = None
        self.calls = ""
        self.times: list[float] = []
        self.inside = ""
        self.is_filed = False
        """It is the `user_data` of its socket."""
        self.errors: list[Exception] = []
        self.messages: list[bytes] = []
        self.unparsed = b""
        self.numbers: Counter[bytes] = Counter()
        self.taken: dict[bytes, list[int]] = defaultdict(list)
        self.bytes_taken = 0
        self.must_have: set[int] = set()
        """Broadcasts that it was open for, before and after."""
        self.asked: list[tuple[float, str, str]] = []
        """When close() and abort() were called, and by which thread."""
        self.ended = False
        """One of them has returned, or on_disconnected has begun."""
        self.ended_at = math.inf
        """When the first of them had returned: from then on the cause stands."""
        self.ended_by_handler = False
        self.paused = False
        """pause_reading() has returned, and resume_reading() was not called."""
        self.pausing = threading.Lock()

    def __repr__(self) -> str:
        return f"connection {self.socket.id if self.socket else f'of fd {self.fd}'}"

    @property
    def is_removed(self) -> bool:
        return self.calls.endswith("R") and not self.inside

    @property
    def error(self) -> type[Exception]:
        """The class of what it ended with."""
        return type(self.errors[-1])

    def receive(self, data: bytes) -> None:
        """A message, or a chunk of lines."""
        if self.paused:
            self.life.fault(f"{self} got a message while it was paused")
        if self.ended_by_handler:
            self.life.fault(f"{self} got a message after its handler had closed it")
        with self.life.changed:
            self.messages.append(data)
        lines = [data]
        if self.life.wire.framing is None:
            *lines, self.unparsed = (self.unparsed + data).split(b"\n")
        for line in lines:
            if not self.ended_by_handler:
                for action in line.split(b":", 2)[1].decode().split(","):
                    self.perform(*action.split())

    def perform(self, verb: str, *numbers: str) -> None:
        """An action of the handler's."""
        if verb == "reply":
            count, size = map(int, numbers)
            for _ in range(count):
                self.send(b"h", size)
        elif verb == "raise":
            self.ended_by_handler = True
            raise Boom
        elif verb == "hold":
            wait_event(self.life.gates[int(numbers[0])].event, "let go")
        elif verb == "pause":
            self.pause(self.life.gates[int(numbers[0])])
        else:
            self.end(verb)
            self.ended_by_handler = True

    def send(self, source: bytes, size: int) -> None:
        """By the handler ("h") or by the foreign thread ("f")."""
        ended = self.ended
        number = self.numbers[source]
        self.numbers[source] += 1
        taken = self.socket.send(reply(b"%b%d" % (source, self.socket.id), number, size))
        with self.life.changed:
            if taken:
                self.taken[source].append(number)
                self.bytes_taken += size + OVERHEAD
            self.life.sends[taken] += 1
        if taken and ended:
            self.life.fault(f"{self} took a message after close() or abort()")

    def send_foreign(self, size: int) -> None:
        self.send(b"f", size)

    def broadcast(self, size: int) -> None:
        self.life.broadcast(size)

    def end(self, how: str) -> None:
        """close() or abort()."""
        with self.life.changed:
            self.asked.append((time.monotonic(), how, threading.current_thread().name))
        self.life.note(f"{self} {how}()")
        getattr(self.socket, how)()
        self.ended = True
        self.ended_at = min(self.ended_at, time.monotonic())

    def pause(self, gate: Gate) -> None:
        """Until `gate` is open; by the handler."""
        with self.pausing:
            self.socket.pause_reading()
            self.paused = True
        with self.life.changed:
            gate.paused.append(self)
            is_open = gate.event.is_set()
        if is_open:
            self.life.foreign.submit(self.resume)

    def resume(self) -> None:
        with self.pausing:
            self.paused = False
            self.socket.resume_reading()

    def toggle(self) -> None:
        with self.pausing:
            self.paused = False
            self.socket.pause_reading()
            self.socket.resume_reading()

    def look(self) -> None:
        """All that can be asked of a connection at any time."""
        for question in (self.socket.fileno, self.life.server.stats, lambda: self.socket.drain(0)):
            question()
        for name in ("pending", "peername", "sockname", "user_data", "id"):
            getattr(self.socket, name)
        if self.socket.is_open and self.ended:
            self.life.fault(f"{self} is open after close() or abort()")


class Script(hydrogen.Handler):
    """Does what the messages say, and has `Life.callback` note it."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def on_data_received(self, socket: Any, data: bytes) -> None:
        with self.life.callback("D", socket.fileno(), socket) as record:
            record.receive(data)

    def on_writable(self, socket: Any) -> None:
        with self.life.callback("W", socket.fileno(), socket):
            pass

    def on_disconnected(self, socket: Any, err: Exception) -> None:
        with self.life.callback("X", socket.fileno(), socket, err) as record:
            record.ended = True
            record.send(b"h", 0)

    def on_connection_removed(self, fd: int, err: Exception) -> None:
        with self.life.callback("R", fd, None, err):
            # The lowest number that is free: it would be this one, if the fd was closed.
            other = os.open(os.devnull, os.O_RDONLY)
            os.close(other)
            if other == fd:
                self.life.fault(f"{fd} is free during on_connection_removed")


class Attended(Script):
    """Overrides also what comes before the first message."""

    def on_new_connection(self, fd: int) -> None:
        with self.life.callback("N", fd):
            pass

    def on_connected(self, socket: Any) -> None:
        with self.life.callback("C", socket.fileno(), socket):
            pass


def on_eof(self: Script, socket: Any) -> None:
    with self.life.callback("E", socket.fileno(), socket) as record:
        how = self.life.setup.eof
        if how == "reply":
            record.perform("reply", "3", "20000")
        if how != "leave":
            record.perform("raise" if how == "raise" else "close")


class Foreign:
    """A thread that is no worker, and does what it is given, one after the other."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._jobs: queue.Queue[Callable[[], object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="foreign", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:
                self._life.fault(f"{error!r} came out of {job}")
            self._jobs.task_done()

    def submit(self, job: Callable[[], object]) -> None:
        self._jobs.put(job)

    @property
    def is_idle(self) -> bool:
        return self._jobs.unfinished_tasks == 0

    def end(self) -> None:
        self._jobs.put(None)
        self._thread.join(PATIENCE)
