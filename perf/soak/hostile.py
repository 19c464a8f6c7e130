"""Clients that break the rules, each in one way, again and again. What they get is not looked at;
how long they last is noted.

One *slot* of a kind has one attack after the other. An attack is bounded in time and in sockets,
and all its sockets are closed after it. Rates are bounded too: the machine must have time left for
the well-behaved ones, whose complaints are what a soak is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from perf.soak import protocol
from perf.soak.link import SIGNATURE, Link, Target, header_v1, header_v2, invented
from perf.soak.settings import (
    FLOODING,
    HOSTILE,
    IDLE_TIMEOUT,
    MAX_SIZE,
    MAX_WRITE_BUFFER,
    PARTS,
    PER_ADDRESS,
    REJECTED,
    STRANGER,
    Place,
)

PATIENCE = IDLE_TIMEOUT + 4
"""Seconds that one waits to be thrown out."""

CROWD = ("10.66.6.6", 666)
"""The one client that many connections through the proxy are said to be of."""


@dataclass
class Attack:
    """One attack: its dice, and its sockets."""

    target: Target
    dice: random.Random
    links: list[Link] = field(default_factory=list)

    async def tcp(
        self, place: Place, source: str = HOSTILE, receive_buffer: int | None = None
    ) -> Link:
        """Connected, and nothing said."""
        link = await Link.connect(self.target.ports[place], source, receive_buffer)
        self.links.append(link)
        return link

    async def open(self, place: Place, receive_buffer: int | None = None) -> Link:
        """Connected, with what there has to be before the first message."""
        link = await self.tcp(place, receive_buffer=receive_buffer)
        if place is Place.TLS:
            await asyncio.wait_for(link.shake_hands(self.target.context), PATIENCE)
        elif place is Place.PROXY:
            await link.send(header_v2(*invented(self.dice)))
        return link

    def place(self, *places: Place) -> Place:
        """One of them; of all when none is named."""
        return self.dice.choice(places or tuple(Place))

    async def ask(self, link: Link, place: Place, kind: bytes, rest: bytes | int = b"") -> None:
        """A request like a well-behaved client's, of one that is not."""
        await link.send(protocol.frame(place, protocol.request(kind, 0, 0, rest)))

    def noise(self, longest: int) -> bytes:
        """Random bytes."""
        return self.dice.randbytes(self.dice.randrange(1, longest + 1))


async def thrown_out(link: Link, seconds: float = PATIENCE) -> None:
    """Read whatever comes until the end."""

    async def read() -> None:
        while await link.receive_raw(65_536):
            pass

    await asyncio.wait_for(read(), seconds)


async def drip(link: Link, data: bytes, pause: float) -> None:
    """Byte by byte, until all is sent or somebody has had enough."""
    for at in range(len(data)):
        await link.send(data[at : at + 1])
        await asyncio.sleep(pause)


# --------------------------------------------------------------------------------------- bad frames


async def slowloris(attack: Attack) -> None:
    """A frame that drips and is never whole."""
    place = attack.place()
    link = await attack.open(place)
    await drip(link, protocol.frame(place, attack.dice.randbytes(200).replace(b"\n", b"x")), 0.1)


async def garbage(attack: Attack) -> None:
    """Random bytes."""
    link = await attack.open(attack.place())
    for _ in range(attack.dice.randrange(1, 10)):
        await link.send(attack.noise(4000))
    await thrown_out(link)


async def oversize(attack: Attack) -> None:
    """More than is allowed, by the header or without an end."""
    place = attack.place()
    link = await attack.open(place)
    await link.send(
        b"x" * (MAX_SIZE + 10) if place is Place.PROXY else struct.pack(">BH", 1, MAX_SIZE + 1)
    )
    await thrown_out(link)


async def bad_guard(attack: Attack) -> None:
    """Some good frames, then one that begins or ends with the wrong byte."""
    place = attack.place(Place.PLAIN, Place.TLS)
    link = await attack.open(place)
    bad = bytearray(protocol.frame(place, b"not quite"))
    bad[attack.dice.choice((0, -1))] ^= 1 << attack.dice.randrange(8)
    await link.send(protocol.frame(place, b"good") * attack.dice.randrange(10) + bad)
    await thrown_out(link)


async def fin_in_frame(attack: Attack) -> None:
    """The end comes in the middle of a frame."""
    place = attack.place()
    link = await attack.open(place)
    whole = protocol.frame(place, b"half of this")
    await link.send(whole + whole[: attack.dice.randrange(1, len(whole))])
    await link.end_sending()
    await thrown_out(link)


async def tiny_segments(attack: Attack) -> None:
    """Thousands of segments of a byte."""
    place = attack.place(Place.PLAIN, Place.PROXY)
    link = await attack.open(place)
    data = protocol.frame(place, b"byte by byte") * 100
    for at in range(len(data)):
        await link.send(data[at : at + 1])
        if at % 100 == 0:
            await asyncio.sleep(0.01)
    await link.end_sending()
    await thrown_out(link)


async def urgent(attack: Attack) -> None:
    """Out-of-band bytes between frames and within them."""
    link = await attack.open(Place.PLAIN)
    whole = protocol.frame(Place.PLAIN, b"no hurry")
    for _ in range(attack.dice.randrange(1, 20)):
        await link.send(whole[: attack.dice.randrange(len(whole) + 1)])
        with contextlib.suppress(BlockingIOError):
            link.sock.send(b"!", socket.MSG_OOB)
        await link.send(whole)
        await asyncio.sleep(0.01)
    await link.end_sending()
    await thrown_out(link)


# ------------------------------------------------------------------------------------------ silence


async def silent(attack: Attack) -> None:
    """Says nothing."""
    await thrown_out(await attack.open(attack.place()))


async def half_handshake(attack: Attack) -> None:
    """Some of a ClientHello, at once or dripped."""
    outgoing = ssl.MemoryBIO()
    client = attack.target.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    link = await attack.tcp(Place.TLS)
    begun = hello[: attack.dice.randrange(len(hello))]
    if attack.dice.random() < 0.5:
        await link.send(begun)
    else:
        await drip(link, begun, 0.05)
    await thrown_out(link)


async def never_reads(attack: Attack) -> None:
    """Asks and asks, and takes no answer."""
    place = attack.place()
    link = await attack.open(place, receive_buffer=4096)

    async def ask() -> None:
        for _ in range(2000):
            await attack.ask(link, place, protocol.LARGE, PARTS)
            await asyncio.sleep(0.05)

    await asyncio.wait_for(ask(), PATIENCE)


async def hoarder(attack: Attack) -> None:
    """As much output as is not too much yet, for each of several at once."""
    links = [await attack.open(Place.PLAIN, receive_buffer=4096) for _ in range(10)]
    for link in links:
        await attack.ask(
            link,
            Place.PLAIN,
            protocol.HOARD,
            attack.dice.randrange(MAX_WRITE_BUFFER * 3 // 4, MAX_WRITE_BUFFER),
        )
    await asyncio.sleep(2)


async def glutton(attack: Attack) -> None:
    """Too much output."""
    place = attack.place()
    link = await attack.open(place, receive_buffer=4096)
    await attack.ask(link, place, protocol.HOARD, 2 * MAX_WRITE_BUFFER)
    await asyncio.sleep(0.5)


# ------------------------------------------------------------------------------------------- crowds


async def reset_storm(attack: Attack) -> None:
    """Connections that are reset as soon as they are there, or a little later."""
    for _ in range(30):
        link = await attack.tcp(attack.place())
        if attack.dice.random() < 0.5:
            await link.send(attack.noise(100))
        if attack.dice.random() < 0.5:
            await asyncio.sleep(0.01)
        link.reset()


async def flood(attack: Attack) -> None:
    """More connections than are allowed, from several addresses."""
    for place in (Place.PLAIN, Place.TLS):
        for source in FLOODING:
            for _ in range(PER_ADDRESS + 6):
                with contextlib.suppress(OSError):
                    await attack.tcp(place, source)
        await asyncio.sleep(attack.dice.uniform(0.5, 1.5))


async def crowd(attack: Attack) -> None:
    """More than are allowed of one client behind the proxy."""
    for _ in range(PER_ADDRESS + 6):
        link = await attack.tcp(Place.PROXY)
        with contextlib.suppress(OSError):
            await link.send(header_v1(*CROWD))
    await asyncio.sleep(1)


async def rejected(attack: Attack) -> None:
    """From where nobody is welcome."""
    await thrown_out(await attack.tcp(Place.PLAIN, REJECTED))


# ---------------------------------------------------------------------------------------------- TLS


async def plain_text(attack: Attack) -> None:
    """No TLS where there should be."""
    link = await attack.tcp(Place.TLS)
    await link.send(protocol.frame(Place.TLS, b"no handshake") + attack.noise(1000))
    if attack.dice.random() < 0.5:
        await link.end_sending()
    await thrown_out(link)


async def bad_record(attack: Attack) -> None:
    """A good handshake, and then what no key fits."""
    link = await attack.open(Place.TLS)
    await link.send_raw(b"\x17\x03\x03\x00\x20" + attack.dice.randbytes(32))
    await thrown_out(link)


async def cut_off(attack: Attack) -> None:
    """FIN without close_notify."""
    link = await attack.open(Place.TLS)
    await attack.ask(link, Place.TLS, protocol.ECHO, b"and off")
    link.sock.shutdown(socket.SHUT_WR)
    await thrown_out(link)


# -------------------------------------------------------------------------------------------- PROXY


async def bad_header(attack: Attack) -> None:
    """No header, a bad one, two of them, or one of somebody who may not send any."""
    who = invented(attack.dice)
    source, data = attack.dice.choice(
        (
            (HOSTILE, b"GET / HTTP/1.1\r\n\r\n"),
            (HOSTILE, attack.noise(200)),
            (HOSTILE, b"PROXY TCP4 1.2.3 4.5.6.7 1 2\r\n"),
            (HOSTILE, SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12)),
            (HOSTILE, header_v2(*who) + header_v1(*who)),
            (HOSTILE, header_v1(*who)[:20]),
            (STRANGER, header_v1(*who)),
        )
    )
    link = await attack.tcp(Place.PROXY, source)
    await link.send(data)
    await link.end_sending()
    await thrown_out(link)


async def endless_header(attack: Attack) -> None:
    """One that goes on and on."""
    link = await attack.tcp(Place.PROXY)
    choice = attack.dice.randrange(3)
    if choice == 0:
        await link.send(b"PROXY TCP4 " + b"1" * 500)
        await thrown_out(link)
    elif choice == 1:
        await drip(link, b"PROXY UNKNOWN " + b"x" * 90, 0.1)
    else:
        await link.send(SIGNATURE + struct.pack(">BBH", 0x21, 0x11, 65_535))
        await drip(link, bytes(100), 0.1)


# ----------------------------------------------------------------------------------------- handlers


async def raiser(attack: Attack) -> None:
    """Has the handler raise."""
    place = attack.place()
    link = await attack.open(place)
    await attack.ask(link, place, protocol.RAISE)
    await thrown_out(link)


async def clinging(attack: Attack) -> None:
    """Has the server close, and does not: sends on, or takes nothing of what is left."""
    place = attack.place()
    link = await attack.open(place, receive_buffer=4096)
    await attack.ask(link, place, protocol.LARGE, PARTS)
    await attack.ask(link, place, protocol.CLOSE)
    if attack.dice.random() < 0.5:
        for _ in range(100):
            await link.send(attack.noise(1000))
            await asyncio.sleep(0.05)
    else:
        await asyncio.sleep(4)


async def occupier(attack: Attack) -> None:
    """Has more handlers block at once than there are threads."""
    place = attack.place()
    for link in [await attack.open(place) for _ in range(8)]:
        await attack.ask(link, place, protocol.BLOCK, attack.dice.randrange(200, 400))
    await asyncio.sleep(2)


KINDS: dict[Callable[[Attack], Awaitable[None]], tuple[int, float]] = {
    slowloris: (4, 0.3),
    garbage: (2, 0.2),
    oversize: (2, 0.2),
    bad_guard: (2, 0.2),
    fin_in_frame: (2, 0.2),
    tiny_segments: (1, 1.0),
    urgent: (1, 0.5),
    silent: (6, 0.2),
    half_handshake: (2, 0.3),
    never_reads: (3, 0.3),
    hoarder: (1, 3.0),
    glutton: (1, 1.0),
    reset_storm: (1, 1.0),
    flood: (1, 4.0),
    crowd: (1, 4.0),
    rejected: (1, 0.5),
    plain_text: (1, 0.3),
    bad_record: (1, 0.5),
    cut_off: (1, 0.5),
    bad_header: (2, 0.2),
    endless_header: (2, 0.3),
    raiser: (1, 0.5),
    clinging: (2, 0.3),
    occupier: (1, 3.0),
}
"""Each kind: its slots, and the mean pause between two attacks."""


WAITING = (slowloris, silent, half_handshake, never_reads)
"""Those whom only a deadline ends."""


class HostileClients:
    """All slots.

    Attributes:
        counts: attacks, by kind and how they ended.
        waits: of those whom a deadline ended, by kind: seconds from the beginning of the attack.
        faults: attacks that could not be carried out, by an error of this program.
    """

    def __init__(self, target: Target, seed: str, seconds: float) -> None:
        self._target = target
        self._seed = seed
        self._until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.waits: dict[str, list[float]] = {kind.__name__: [] for kind in WAITING}
        self.faults: list[dict[str, Any]] = []

    async def run(self) -> None:
        """Until the time is over; what is under way then is ended."""
        slots = [
            asyncio.ensure_future(self._slot(kind, slot))
            for kind, (slots, _) in KINDS.items()
            for slot in range(slots)
        ]
        await asyncio.wait(slots, timeout=max(0.0, self._until - time.monotonic()))
        for slot in slots:
            slot.cancel()
        for result in await asyncio.gather(*slots, return_exceptions=True):
            if isinstance(result, Exception):
                self.faults.append({"what": repr(result)})

    def report(self) -> dict[str, Any]:
        """What is known of all."""
        waits = {
            name: {"median": median(each), "max": max(each)}
            for name, each in self.waits.items()
            if each
        }
        return {"attacks": dict(self.counts), "waited_seconds": waits, "faults": self.faults}

    async def _slot(self, kind: Callable[[Attack], Awaitable[None]], slot: int) -> None:
        dice = random.Random(f"{self._seed} {kind.__name__} {slot}")
        # not for ever: before Python 3.12 `wait_for` may swallow a cancellation
        while time.monotonic() < self._until:
            attack = Attack(self._target, dice)
            outcome = "done"
            began = time.monotonic()
            try:
                await kind(attack)
            except asyncio.TimeoutError:
                outcome = "left"
            except OSError:
                outcome = "reset"
                if kind in WAITING:
                    self.waits[kind.__name__].append(time.monotonic() - began)
            finally:
                for link in attack.links:
                    link.close()
            self.counts[f"{kind.__name__}, {outcome}"] += 1
            await asyncio.sleep(dice.uniform(0, 2 * KINDS[kind][1]))
