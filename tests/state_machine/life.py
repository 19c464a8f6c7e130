"""A whole server and its clients, from the start to the end: what `contract/test_state_machine.py`
drives step by step.

Of each client there is a `Link`: the socket, and the model of what was said through it; of each
connection a `Record`: what the handler saw and did. Messages are lists of actions that the handler
performs ("reply 3 1000", "close", "hold"), and replies say who sent them, which one it is, and how
long; so what each side must have got follows from what the other did.

What may be asked without waiting is asked at once (`Life.fault`), the rest when the life is over,
by `oracle`. A failure comes with the
log: steps, callbacks and calls, in the order in which they were noted.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from state_machine import oracle
from state_machine.client import Link
from state_machine.server import Attended, Foreign, Gate, Record, Script, on_eof
from state_machine.wires import OVERHEAD, WIRES, reply
from support import PATIENCE, wait_until

import hydrogen


@dataclass(frozen=True)
class Setup:
    """What one server differs by from another.

    Attributes:
        wire: which of `WIRES`.
        transport: "tcp" or "unix".
        attended: on_new_connection and on_connected are overridden; an engine may do without Python
            otherwise.
        eof: what on_eof does, see `EOF_ENDS`; None: it is not overridden.
        options: of `Config`.
    """

    wire: str
    transport: str
    attended: bool
    eof: str | None
    options: dict[str, Any]


class Life:
    """One server and its clients, from the start to the end."""

    def __init__(self, engine: str, setup: Setup) -> None:
        self.setup = setup
        self.wire = WIRES[setup.wire]
        self.began = time.monotonic()
        self.log: list[str] = []
        self.faults: list[str] = []
        self.failure: AssertionError | None = None
        self.changed = threading.RLock()
        self.links: list[Link] = []
        self.gates: list[Gate] = []
        self.records: list[Record] = []
        self.by_fd: dict[int, Record] = {}
        self.by_name: dict[Any, Record] = {}
        self.sends: Counter[bool] = Counter()
        self.broadcasts: list[hydrogen.BroadcastReport] = []
        self.bytes_broadcast = 0
        self.stopping: str | None = None
        self.stopped_at = 0.0
        self.report: hydrogen.StopReport | None = None
        self._stopper: threading.Thread | None = None
        # those that nothing but the stop ends; None: the stop came in the midst of all
        self.lasting: set[Link] | None = None
        base = Attended if setup.attended else Script
        handler = type("Handler", (base,), {} if setup.eof is None else {"on_eof": on_eof})(self)
        # Names of Unix sockets: the server's, and those by which clients are told apart.
        self.folder = tempfile.TemporaryDirectory(prefix="hydrogen-")
        where = {"path": f"{self.folder.name}/server"} if setup.transport == "unix" else {"port": 0}
        options = {"framing": self.wire.framing, **where, **setup.options}
        self.server = hydrogen.serve(handler, engine=engine, **options)
        self.foreign = Foreign(self)
        self.note(f"{engine} server at {self.server.address}: {setup}")

    # ------------------------------------------------------------------ the log

    def note(self, what: str) -> None:
        with self.changed:
            self.log.append(
                f"{(time.monotonic() - self.began) * 1000:9.2f} "
                f"{threading.current_thread().name:18} {what}"
            )

    def fault(self, what: str) -> None:
        """Something is wrong: the next look finds it."""
        self.note(f"FAULT: {what}")
        self.faults.append(what)

    def fail(self, what: str) -> NoReturn:
        with self.changed:
            lines = [
                what,
                *self.faults,
                "The log (ms, thread, what):",
                *self.log[-1000:],
                f"So: {what}",
            ]
        self.failure = AssertionError("\n".join(lines))
        raise self.failure

    def look(self) -> None:
        """What can be said at any time."""
        if self.faults:
            self.fail(self.faults[0])
        seen = len(self.records)
        stats = self.server.stats()
        if stats.accepted < max(stats.removed, seen):
            self.fail(f"{seen} connections were seen: {stats}")

    def await_(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        """Until `condition` holds; all that wait here are due."""
        try:
            wait_until(condition, "it")
        except AssertionError:
            if self.failure is not None:
                raise
            self.fail(f"not within {PATIENCE} s: {what()}")

    # ---------------------------------------------------------------- what callbacks and threads do

    @contextlib.contextmanager
    def callback(
        self, letter: str, fd: int, socket: Any = None, error: Exception | None = None
    ) -> Iterator[Record]:
        """A callback of the connection `fd`: from its first to its last one, the number is no
        other's.
        """
        with self.changed:
            record = self.by_fd.get(fd)
            if record is None:
                record = self.by_fd[fd] = Record(self, fd)
                self.records.append(record)
            elif letter == "N" or (socket is not None and record.socket not in (None, socket)):
                self.fault(
                    f"{fd} is used again before on_connection_removed of {record} has returned"
                )
            if record.inside:
                self.fault(f"{letter} of {record} began during its {record.inside}")
            record.inside = letter
            record.calls += letter
            record.times.append(time.monotonic())
            if error is not None:
                record.errors.append(error)
            if socket is not None:
                if record.socket is None:
                    record.socket = socket
                    self.by_name[socket.peername] = record
                    # which is too late: the compiled engine keeps what is there by then, and no
                    # more
                    if letter != "X":
                        record.is_filed = True
                        socket.user_data = record
                if record.is_filed and socket.user_data is not record:
                    self.fault(f"{record} has {socket.user_data!r} as user_data")
            self.note(f"{record} {letter} {error or ''}")
        try:
            yield record
        finally:
            with self.changed:
                self.note(f"{record} {letter} returns")
                record.inside = ""
                if letter == "R":
                    del self.by_fd[fd]

    def record(self, link: Link) -> Record | None:
        with self.changed:
            return self.by_name.get(link.name)

    # ------------------------------------------------------------------ what steps do

    @property
    def has_free_workers(self) -> bool:
        """In each loop, even if all that hold are in one."""
        options = self.setup.options
        return (
            sum(gate.holds and not gate.event.is_set() for gate in self.gates)
            < options["max_threads"] // options["loops"]
        )

    def connect(self, buffers: list[tuple[int | None, int | None]]) -> None:
        for receive, send in buffers:
            self.links.append(Link(self, len(self.links), receive, send))

    def gate(self, link: Link, holds: bool) -> Gate:
        gate = Gate(len(self.gates), holds)
        self.gates.append(gate)
        link.gates.append(gate)
        return gate

    def release(self, gate: Gate) -> None:
        with self.changed:
            gate.event.set()
            paused = list(gate.paused)
        for record in paused:
            self.foreign.submit(record.resume)

    def meddle(self, link: Link, what: str, *arguments: Any) -> None:
        """Have the foreign thread do something with the connection, if the handler knows it by
        then.
        """

        def job() -> None:
            record = self.record(link)
            if record is not None:
                self.note(f"{record} {what}{arguments}")
                getattr(record, what)(*arguments)

        self.foreign.submit(job)

    def broadcast(self, size: int) -> None:
        """By the foreign thread."""
        with self.changed:
            before = [
                record
                for record in self.records
                if record.socket is not None and record.socket.is_open
            ]
        number = len(self.broadcasts)
        self.broadcasts.append(self.server.broadcast(reply(b"b0", number, size)))
        self.note(f"broadcast {number}: {self.broadcasts[-1]}")
        self.bytes_broadcast += size + OVERHEAD
        for record in before:
            with self.changed:
                if record.socket.is_open:
                    record.must_have.add(number)

    def stop(self, how: str) -> None:
        """Begin to."""
        self.stopping, self.stopped_at = how, time.monotonic()
        calls: dict[str, Callable[[], object]] = {
            "stop": lambda: self.server.stop(PATIENCE),
            "spread": lambda: self.server.stop(PATIENCE, 0.02),
            "hurry": lambda: self.server.stop(0.02),
            "abort": self.server.abort,
        }

        def run() -> None:
            calls[how]()
            self.report = self.server.stop()

        self._stopper = threading.Thread(target=run, name="stopper", daemon=True)
        self._stopper.start()

    def is_ending(self, link: Link) -> bool:
        """Whether the connection must end by itself, if nothing holds it up."""
        record = self.record(link)
        return (
            link.gone == "reset"
            or link.fate is not None
            or (record is not None and bool(record.asked))
        )

    def settle(self, link: Link) -> None:
        """All that is due comes: what was said is delivered, what was sent arrives, what must end
        ends.
        """
        self.await_(lambda: self.foreign.is_idle, lambda: "the foreign thread is done")

        def is_settled() -> bool:
            link.pump()
            record = self.record(link)
            if record is None and link.gone == "reset":
                return self._resets_are_over()
            if record is None:
                is_known = self.setup.attended or link.is_known or self.is_ending(link)
                return not is_known and self.server.stats().accepted == len(self.links)
            if record.is_removed or (link.gone == "closed" and not self.is_ending(link)):
                return True
            return not self.is_ending(link) and link.was_delivered(record) and link.has_all

        self.await_(is_settled, lambda: f"{link} is settled: {self.describe(link)}")

    def _resets_are_over(self) -> bool:
        """Those that were reset before anybody had their names."""
        with self.changed:
            nameless = sum(record.socket is None and record.is_removed for record in self.records)
            return nameless >= sum(
                link.gone == "reset" and link.name not in self.by_name for link in self.links
            )

    def describe(self, link: Link) -> str:
        record = self.record(link)
        text = (
            f"{len(link.payloads)} messages said, gone: {link.gone}, saw {link.seen}, fate "
            f"{link.fate}"
        )
        if record is None:
            return f"{text}; the handler does not know it"
        received = (
            f"{record} {record.calls}, inside: {record.inside}, {len(record.messages)} received"
        )
        return f"{text}; {received}, missing: {link.missing(record)}; {self.server.stats()}"

    # ------------------------------------------------------------------ the end

    def finish(self) -> None:
        """Let all go, stop if that was not begun, and judge."""
        for gate in self.gates:
            self.release(gate)
        if self.stopping is None:
            for link in self.links:
                self.settle(link)
            self.lasting = {link for link in self.links if not self.is_ending(link)}
            self.stop("stop")
        self.await_(lambda: self.foreign.is_idle, lambda: "the foreign thread is done")

        def all_left() -> bool:
            for link in self.links:
                link.pump()
            return (
                all(link.gone or link.seen for link in self.links)
                and self.report is not None
                and self.server.stats().connections == 0
            )

        def those_left() -> str:
            return "\n".join(
                f"{link}: {self.describe(link)}"
                for link in self.links
                if not (link.gone or link.seen)
            )

        self.await_(
            all_left,
            lambda: (
                f"all have left, and the server has stopped: {self.report}; not so\n{those_left()}"
            ),
        )
        self.look()
        oracle.judge(self)

    def clean_up(self) -> None:
        """Leave nothing behind, whatever happened."""
        for gate in self.gates:
            gate.event.set()
        # Not by this thread: what is wrong may keep it, and then the failure would not be told.
        aborter = threading.Thread(target=self.server.abort, daemon=True)
        aborter.start()
        for thread in (aborter, self._stopper):
            if thread is not None:
                thread.join(PATIENCE)
        self.foreign.end()
        for link in self.links:
            link.client.close()
        self.folder.cleanup()
