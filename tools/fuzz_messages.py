"""The part of WebSocket messages of tools/fuzz.py: where the fuzzer begins, and what the Python
engine and wsproto make of what it found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from unit import test_websocket_messages

from hydrogen import ProtocolError
from hydrogen._py.websocket import BINARY, CLOSE, PING, PONG, TEXT, MessageReader
from hydrogen.deflate import COMPRESSED
from hydrogen.websocket import Fault

TARGETS = ["messages"]

peers: Any = test_websocket_messages  # it has no annotations
frame = peers.frame

LIMITS = ((1 << 20, 1 << 16, 0), (1 << 20, 1 << 16, 1), (60, 2, 0), (60, 3, 1), (0, 1, 0))
"""max_message, max_fragments, whether messages may be compressed."""

WIRES = (
    b"",
    *(data for data, _ in peers.GOOD.values()),
    *(frame(PING, b"p") + data for data, _, _ in peers.BAD.values()),
    frame(TEXT, b"a\xe2", fin=False) + frame(PING, b"p") + frame(0, b"\x82\xac") + frame(CLOSE),
    frame(TEXT, b"\xf0\x9f", fin=False) + frame(0, b"\x98", fin=False) + frame(0, b"\x80"),
    frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"),
    frame(TEXT, b"abc", mask=bytes(4), fin=False) + frame(0, b"defg", mask=bytes(4)),
    frame(BINARY, b"abc", reserved=4) + frame(TEXT, b"abc"),
    frame(TEXT, b"\xff", reserved=4, fin=False) + frame(0, b"\xfe"),
    frame(BINARY, bytes(50), fin=False) + frame(0, bytes(10), fin=False) + frame(0, b""),
    frame(BINARY, bytes(50), fin=False) + frame(0, bytes(11)),
    frame(BINARY, bytes(99), fin=False, reserved=4) + frame(0, bytes(40)),
    frame(BINARY, bytes(99), fin=False, reserved=4) + frame(0, bytes(41)),
    frame(BINARY, bytes(140), reserved=4) + frame(CLOSE) + frame(BINARY),
    frame(BINARY, b"begun", length=300),
    frame(PONG) + peers.closing(1014, b"r"),
    peers.closing(1014, b"\xff"),
)

BEHIND = {
    Fault.LARGE: b"",
    Fault.FRAGMENTS: b"",
    Fault.TEXT: frame(0, b"\0", mask=bytes(4)),
}
"""What wsproto gets behind the byte with which a wire is refused: nothing if only we refuse it, and
with text a byte more, for it waits for all of a surrogate.
"""
BEHIND_OTHERS = bytes(150)
"""Else it waits for a whole header, or a whole control frame."""

UNKNOWN = (1014).to_bytes(2, "big")
"""A code of a CLOSE that IANA registered and wsproto does not know."""

FAULTS = {int(fault): fault.name for fault in Fault}


class Result(NamedTuple):
    """What a wire is: opcode and payload of each message and control frame, and what ends them."""

    events: list[tuple[int, bytes]]
    fault: str = ""
    is_partial: bool = False


class Kept:
    """In place of an Inflater: messages that are compressed stay so."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def inflate(self, data: bytes, most: int) -> bytes:
        self.data.append(data)
        return b""


def seeds(target: str) -> Iterator[bytes]:
    """As the harness wants its inputs."""
    for number, (wire, limits) in enumerate(itertools.product(WIRES, LIMITS)):
        max_message, max_fragments, inflates = limits
        yield (
            max_message.to_bytes(8, "little")
            + (max_fragments - 1).to_bytes(4, "little")
            + bytes([inflates, number % 256])
            + wire
        )


def told(line: str) -> tuple[dict[str, Any], Result]:
    """A line of the replayer's: the fields of the input, and what the compiled decoder made of
    it.
    """
    fields: dict[str, Any] = {}
    events: list[tuple[int, bytes]] = []
    opcode = 0
    for name, _, value in (word.partition("=") for word in line.split()):
        if name == "event":
            opcode = int(value, 16)
        elif name == "payload":
            events.append((opcode, bytes.fromhex(value)))
        else:
            fields[name] = bytes.fromhex(value) if name == "wire" else int(value)
    if fields["verdict"]:
        return fields, Result(events, FAULTS[fields["verdict"]])
    return fields, Result(events, "", bool(fields["partial"]))


def payload_of(opcode: int, data: str | bytes, code: int) -> bytes:
    """What the frames of an event carry."""
    payload = data.encode() if isinstance(data, str) else data
    return code.to_bytes(2, "big") + payload if opcode == CLOSE and code != 1005 else payload


def by_engine(limits: tuple[int, int, bool], wire: bytes) -> tuple[Result, int]:
    """What the Python engine reads in `wire`, and after how many bytes it refuses it, or all."""
    max_message, max_fragments, inflates = limits
    kept: Any = Kept()
    reader = MessageReader(max_message, max_fragments, kept if inflates else None)
    events: list[tuple[int, bytes]] = []
    for at in range(len(wire)):
        reader.feed(wire[at : at + 1])
        try:
            while (event := reader.next()) is not None:
                if kept.data:
                    events.append((event.opcode | COMPRESSED, kept.data.pop()))
                else:
                    events.append((event.opcode, payload_of(*event)))
        except ProtocolError as error:
            fault = next(fault for fault in Fault if fault.message == str(error))
            return Result(events, fault.name), at + 1
    return Result(events, "", reader.is_partial()), len(wire)


def disagreements(target: str, line: str) -> Iterator[str]:
    """Where the compiled decoder, which wrote `line`, the Python engine and wsproto disagree.

    wsproto has no limits, but refuses a length of 2**63 or more; it has nothing to compare with
    what is compressed; and it refuses a CLOSE with UNKNOWN, whatever its reason.
    """
    fields, compiled = told(line)
    wire = fields["wire"]
    limits = fields["max_message"], fields["max_fragments"], bool(fields["inflates"])
    engine, used = by_engine(limits, wire)
    if engine != compiled:
        yield f"{limits}: {wire!r}: compiled {compiled}, python {engine}"
    if fields["inflates"]:
        return
    fault = Fault[compiled.fault] if compiled.fault else None
    behind = BEHIND.get(fault, BEHIND_OTHERS) if fault else b""
    found, error = peers.by_wsproto(wire[:used] + behind)
    events = [(event[0], payload_of(*event)) for event in found]
    expected, errors = compiled.events, [fault.kind if fault and behind else None]
    if expected and expected[-1][0] == CLOSE and expected[-1][1].startswith(UNKNOWN):
        expected, errors = expected[:-1], [ProtocolError]
    elif fault is Fault.REASON or fault is Fault.LARGE:
        errors.append(ProtocolError)
    if events != expected or error not in errors:
        yield f"{limits}: {wire!r}: compiled {compiled}, wsproto {events}, {error}"
