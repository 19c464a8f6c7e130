"""Clients that keep the rules, and verify every byte of what they get for it.

One *slot* has one client after the other, each with a number of its own. What it awaits is written
down before it asks: what callbacks answer comes in the order of the requests and is compared byte
by byte; what another thread sends has an order of its own; timers have none; broadcasts are
numbered without a gap. A client ends as it has announced, or it is told of in
`WellBehavedClients.faults`.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

from hydrogen.perf.histogram import BUCKETS, bucket_of, percentile
from perf.soak import protocol
from perf.soak.link import Link, Target, header_v1, header_v2, invented
from perf.soak.settings import (
    IDLE_TIMEOUT,
    MAX_SIZE,
    PARTS,
    WELL_BEHAVED,
    WELL_BEHAVED_SLOTS,
    Place,
)

PATIENCE = 30.0
"""Seconds until the greeting has come, and then until the whole conversation is over; what is
awaited then counts as lost.
"""

LATE = 1.0
"""Seconds by which this process may be late before its own deadlines are not the server's fault any
more.
"""

KEPT = 50
"""Faults of which the details are kept."""

LAST = 4
"""Clients at each server when it stops."""

LAST_WHO = 1_000_000_000
"""Their numbers begin here."""


class Wrong(Exception):
    """A byte that should not have come, or one that did not."""


class TurnedAway(Exception):
    """An end before the greeting."""


class Clock:
    """How late this process is: what has to be known of a client that was thrown out for being too
    slow.
    """

    def __init__(self) -> None:
        self._lately: deque[tuple[float, float]] = deque(maxlen=100)
        self.worst = 0.0

    async def run(self) -> None:
        """For ever."""
        while True:
            due = time.monotonic() + 0.1
            await asyncio.sleep(0.1)
            late = time.monotonic() - due
            self._lately.append((due, late))
            self.worst = max(self.worst, late)

    def lately(self) -> float:
        """The worst of the last ten seconds."""
        since = time.monotonic() - 10
        return max((late for due, late in self._lately if due > since), default=0.0)


class Talk:
    """One client's connection."""

    def __init__(self, link: Link, place: Place, who: int, dice: random.Random) -> None:
        self.link = link
        self.place = place
        self.who = who
        self.dice = dice
        self.came_from: tuple[str, int] | None = None
        self.answers = 0
        self.read_size = 65_536
        self.is_greeted = False
        self._number = 0
        self._broadcast: int | None = None
        self._frames = protocol.Unframer(place)
        self._awaited: deque[bytes] = deque()
        self._foreign: deque[bytes] = deque()
        self._timers: set[bytes] = set()

    async def ask(self, kind: bytes, rest: bytes | int = b"") -> None:
        """Send one request, its answer awaited from now on."""
        await self.link.send(protocol.frame(self.place, self.prepare(kind, rest)))

    def prepare(self, kind: bytes, rest: bytes | int = b"") -> bytes:
        """A request, its answer awaited from now on: who takes it sends it."""
        self._number += PARTS
        number = self._number
        request = protocol.request(kind, self.who, number, rest)
        if kind == protocol.LARGE:
            assert isinstance(rest, int)
            self._awaited.extend(protocol.part(self.who, number, index) for index in range(rest))
        elif kind == protocol.FOREIGN:
            assert isinstance(rest, int)
            self._foreign.extend(protocol.several(kind, self.who, number, rest))
        elif kind == protocol.TIMER:
            self._timers.add(request)
        elif kind == protocol.WHERE:
            assert self.came_from is not None
            self._awaited.append(
                protocol.request(
                    kind,
                    self.who,
                    number,
                    b"%s %d" % (self.came_from[0].encode(), self.came_from[1]),
                )
            )
        elif kind not in (protocol.LEAVING, protocol.ABORT, protocol.RAISE):
            self._awaited.append(request)
        return request

    def some(self, longest: int = 1000) -> bytes:
        """Something to be sent back."""
        return protocol.filler(
            self.who,
            self._number,
            self.dice.choice((0, 1, 10, 100, self.dice.randrange(longest + 1))),
        )

    @property
    def is_settled(self) -> bool:
        """Whether nothing is awaited."""
        return self.is_greeted and not (self._awaited or self._foreign or self._timers)

    async def take(self) -> bool:
        """Receive once and check what came; False at an orderly end."""
        data = await self.link.receive(self.read_size)
        if not data:
            return False
        try:
            messages = self._frames.feed(data)
        except ValueError as error:
            raise Wrong(str(error)) from None
        for message in messages:
            self._check(message)
        return True

    async def settle(self, pause: float = 0.0) -> None:
        """Until nothing is awaited."""
        while not self.is_settled:
            if not await self.take():
                raise Wrong(f"an end while {self.outstanding()} were awaited")
            if pause:
                await asyncio.sleep(pause)

    async def end(self) -> None:
        """Until the server has ended it gracefully; nothing may be missing then."""
        while await self.take():
            pass
        if not self.is_settled or self._frames.is_partial:
            raise Wrong(f"an end while {self.outstanding()} were awaited")

    async def leave(self) -> None:
        """Say that no more is asked, and wait for the server to end it."""
        await self.link.end_sending()
        await self.end()

    def outstanding(self) -> str:
        """What is awaited."""
        first = f", first {self._awaited[0][:60]!r}" if self._awaited else ""
        return (
            f"{len(self._awaited)} answers{first}, {len(self._foreign)} foreign messages, "
            f"{len(self._timers)} timers"
        )

    def _check(self, message: bytes) -> None:
        if self._awaited and message == self._awaited[0]:
            self._awaited.popleft()
        elif self._foreign and message == self._foreign[0]:
            self._foreign.popleft()
        elif message in self._timers:
            self._timers.remove(message)
        elif message.startswith(protocol.BROADCAST + b" "):
            number = int(message.split()[1])
            if self._broadcast is not None and number != self._broadcast + 1:
                raise Wrong(f"broadcast {number} came after {self._broadcast}")
            self._broadcast = number
            return
        elif message == protocol.GREETING and not self.is_greeted:
            self.is_greeted = True
            return
        else:
            awaited = [*list(self._awaited)[:1], *list(self._foreign)[:1], *list(self._timers)[:1]]
            raise Wrong(
                f"{message[:100]!r} of {len(message)} bytes came, where one of "
                f"{[item[:100] for item in awaited]} was awaited"
            )
        self.answers += 1


async def open_talk(talk: Talk, target: Target) -> None:
    """Header, handshake, greeting, and who it is."""
    if talk.place is Place.TLS:
        await talk.link.shake_hands(target.context)
    elif talk.place is Place.PROXY:
        talk.came_from = invented(talk.dice)
        await talk.link.send(talk.dice.choice((header_v1, header_v2))(*talk.came_from))
    if talk.came_from is None:
        talk.came_from = talk.link.sock.getsockname()
    await talk.ask(protocol.HELLO)
    while not talk.is_greeted:
        if not await talk.take():
            raise ConnectionResetError("an end before the greeting")


async def last_guests(target: Target, stop: Callable[[], Awaitable[None]]) -> int:
    """Clients that are there when the servers stop, which must end them gracefully; how many.

    Raises:
        Wrong, OSError, asyncio.TimeoutError: one was not.
    """
    dice = random.Random()
    links = []
    try:
        talks = []
        for number, place in enumerate([*Place] * LAST):
            links.append(await Link.connect(target.ports[place], WELL_BEHAVED[0]))
            talks.append(Talk(links[-1], place, LAST_WHO + number, dice))
            await open_talk(talks[-1], target)
            await talks[-1].settle()
            await talks[-1].ask(protocol.LARGE, PARTS)
        ends = [asyncio.ensure_future(farewell(talk)) for talk in talks]
        await stop()
        await asyncio.wait_for(asyncio.gather(*ends), PATIENCE)
        return len(talks)
    finally:
        for link in links:
            link.close()


async def farewell(talk: Talk) -> None:
    """All that was asked for, and then the end."""
    await talk.settle()
    await talk.end()
    talk.link.close()


class WellBehavedClients:
    """All slots.

    Attributes:
        counts: conversations that came to their end, by kind and place.
        turned_away: before the greeting, by place.
        faults: what should not have happened.
    """

    def __init__(self, target: Target, seed: str, seconds: float) -> None:
        self._target = target
        self._seed = seed
        self._until = time.monotonic() + seconds
        self._numbers = 0
        self._clock = Clock()
        self.counts: Counter[str] = Counter()
        self.turned_away: Counter[str] = Counter()
        self.answers = 0
        self.faults: list[dict[str, Any]] = []
        self.latency = array("Q", bytes(8 * BUCKETS))
        self.slowest = 0

    async def run(self) -> None:
        """Until the time is over and each client is done."""
        clock = asyncio.ensure_future(self._clock.run())
        await asyncio.gather(*(self._slot(slot) for slot in range(WELL_BEHAVED_SLOTS)))
        clock.cancel()

    def report(self) -> dict[str, Any]:
        """What is known of all."""
        return {
            "conversations": dict(self.counts),
            "answers": self.answers,
            "turned_away": dict(self.turned_away),
            "faults": self.faults,
            "latest_seconds": self._clock.worst,
            "ping_pong_us": {
                **{
                    f"p{percent}": (percentile(self.latency, percent) or 0) / 1000
                    for percent in (50, 99)
                },
                "max": self.slowest / 1000,
            },
        }

    async def _slot(self, slot: int) -> None:
        dice = random.Random(f"{self._seed} {slot}")
        kinds, places = list(KINDS), list(Place)
        # every kind at every server; then as the dice fall
        name = kinds[slot // len(places) % len(kinds)]
        while time.monotonic() < self._until:
            await self._one(
                name, places[slot % len(places)], WELL_BEHAVED[slot % len(WELL_BEHAVED)], dice
            )
            await asyncio.sleep(dice.uniform(0, 0.3))
            name = dice.choice(kinds)

    async def _one(self, name: str, place: Place, source: str, dice: random.Random) -> None:
        self._numbers += 1
        who = self._numbers
        talk: Talk | None = None
        link: Link | None = None
        try:
            try:
                link = await Link.connect(
                    self._target.ports[place], source, 8192 if name == "slow reader" else None
                )
                talk = Talk(link, place, who, dice)
                await asyncio.wait_for(open_talk(talk, self._target), PATIENCE)
            except asyncio.TimeoutError:  # an OSError, in later Pythons
                raise
            except OSError as error:
                raise TurnedAway(str(error)) from error
            await asyncio.wait_for(KINDS[name](self, talk), PATIENCE)
        except TurnedAway as error:
            self.turned_away[place.value] += 1
            if place is not Place.TLS:
                self._fault(who, name, place, f"turned away: {error}")
        except Wrong as error:
            self._fault(who, name, place, f"wrong: {error}")
        except asyncio.TimeoutError:
            self._fault(
                who,
                name,
                place,
                f"not over in {PATIENCE} s: "
                f"{'not greeted' if talk is None else talk.outstanding()}",
            )
        except OSError as error:
            self._fault(who, name, place, f"ended by {error!r}")
        else:
            self.counts[f"{name}, {place.value}"] += 1
        finally:
            if link is not None:
                link.close()
            if talk is not None:
                self.answers += talk.answers

    def _fault(self, who: int, kind: str, place: Place, what: str) -> None:
        if len(self.faults) < KEPT:
            late = self._clock.lately()
            self.faults.append(
                {"who": who, "kind": kind, "place": place.value, "what": what, "late_seconds": late}
            )

    # ------------------------------------------------------------------------------------ the kinds

    async def ping_pong(self, talk: Talk) -> None:
        """One request after the other, and how long each takes."""
        await talk.settle()
        for _ in range(talk.dice.randrange(20, 150)):
            began = time.perf_counter_ns()
            await talk.ask(protocol.ECHO, talk.some())
            await talk.settle()
            took = time.perf_counter_ns() - began
            self.latency[bucket_of(took)] += 1
            self.slowest = max(self.slowest, took)
            await asyncio.sleep(talk.dice.uniform(0, 0.04))
        await talk.leave()

    async def pipeline(self, talk: Talk) -> None:
        """Many requests at once, read while they are sent."""
        for _ in range(talk.dice.randrange(2, 6)):
            burst = b"".join(
                protocol.frame(talk.place, talk.prepare(protocol.ECHO, talk.some(MAX_SIZE // 4)))
                for _ in range(talk.dice.randrange(20, 120))
            )
            sending = asyncio.ensure_future(talk.link.send(burst))
            try:
                await talk.settle()
                await sending
            finally:
                sending.cancel()  # else it would write to whoever has that fd next
            await asyncio.sleep(talk.dice.uniform(0.05, 0.4))
        await talk.leave()

    async def slow_reader(self, talk: Talk) -> None:
        """Reads large replies slowly, and without a stop."""
        talk.read_size = 3000
        for _ in range(2):
            await talk.ask(protocol.LARGE, PARTS)
            await talk.settle(talk.dice.uniform(0.01, 0.05))
        await talk.leave()

    async def half_closer(self, talk: Talk) -> None:
        """Has asked for everything before it ends its half, and gets everything after."""
        for _ in range(talk.dice.randrange(1, 10)):
            await talk.ask(protocol.ECHO, talk.some())
        await talk.ask(protocol.LARGE, talk.dice.randrange(1, PARTS + 1))
        await talk.leave()

    async def idler(self, talk: Talk) -> None:
        """Silent for nearly as long as is allowed."""
        await talk.settle()
        for _ in range(2):
            await asyncio.sleep(IDLE_TIMEOUT * talk.dice.uniform(0.5, 0.75))
            await talk.ask(protocol.ECHO, talk.some())
            await talk.settle()
        await talk.leave()

    async def one_shot(self, talk: Talk) -> None:
        """Connects, asks once, and is gone, gracefully or as it likes."""
        await talk.ask(protocol.ECHO, talk.some())
        if talk.dice.random() < 0.5:
            await talk.leave()
        else:
            await talk.ask(protocol.LEAVING)
            await talk.settle()

    async def waiter(self, talk: Talk) -> None:
        """Asks what takes the server a while."""
        for _ in range(talk.dice.randrange(2, 12)):
            await talk.ask(protocol.BLOCK, talk.dice.randrange(1, 50))
            if talk.dice.random() < 0.5:
                await talk.settle()
        await talk.settle()
        await talk.leave()

    async def subscriber(self, talk: Talk) -> None:
        """Is sent things by timers and by another thread, beside what it asks for."""
        for _ in range(talk.dice.randrange(3, 20)):
            await talk.ask(protocol.TIMER, talk.dice.randrange(0, 300))
            await talk.ask(protocol.FOREIGN, talk.dice.randrange(1, 10))
            await talk.ask(protocol.ECHO, talk.some())
            if talk.dice.random() < 0.3:
                await talk.settle()
        await talk.settle()
        await talk.leave()

    async def caller(self, talk: Talk) -> None:
        """Asks from where it comes."""
        await talk.ask(protocol.WHERE)
        await talk.settle()
        await talk.leave()

    async def closed(self, talk: Talk) -> None:
        """Has the server close, after what was asked for before."""
        for _ in range(talk.dice.randrange(5)):
            await talk.ask(protocol.ECHO, talk.some())
        await talk.ask(protocol.LARGE, 1)
        await talk.ask(protocol.CLOSE)
        await talk.end()

    async def victim(self, talk: Talk) -> None:
        """Has the server abort, or raise."""
        await talk.settle()
        await talk.ask(talk.dice.choice((protocol.ABORT, protocol.RAISE)))
        try:
            await talk.end()
        except OSError:  # a reset is what it asked for
            return


KINDS: dict[str, Callable[[WellBehavedClients, Talk], Awaitable[None]]] = {
    "ping-pong": WellBehavedClients.ping_pong,
    "pipeline": WellBehavedClients.pipeline,
    "slow reader": WellBehavedClients.slow_reader,
    "half-closer": WellBehavedClients.half_closer,
    "idler": WellBehavedClients.idler,
    "one-shot": WellBehavedClients.one_shot,
    "waiter": WellBehavedClients.waiter,
    "subscriber": WellBehavedClients.subscriber,
    "caller": WellBehavedClients.caller,
    "closed": WellBehavedClients.closed,
    "victim": WellBehavedClients.victim,
}
