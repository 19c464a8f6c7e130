"""The frame codec's part of tools/fuzz.py: where the fuzzer begins, and what others make of what it
found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corpus import reference
from corpus.cases import FRAMINGS

import hydrogen
from hydrogen import ProtocolError
from hydrogen.codec import FrameDecoder, encode
from hydrogen.http import HeadReader, Refusal

HEAD = "head"
"""The head of a request: what a WebSocket server reads first, and nobody sends."""

TARGETS = ["simple", "checksum32", "length", "line", "websocket", HEAD, "raw"]

HEADS = (
    b"GET /chat?x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n\x81\x80",
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nCookie:\ta=b\xff\r\n \r\n\r\nGET / HTTP/1.1\n\n",
    b"GET /\r\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
)

VERDICTS = {0: None, 2: "ProtocolError", 3: "FrameTooLarge", 4: "ChecksumMismatch"}


def seeds(framing: str) -> Iterator[bytes]:
    """The corpus as the harness wants its inputs."""
    for number, data in enumerate(HEADS if framing == HEAD else ()):
        for most in (64, 20, 8192):
            yield most.to_bytes(8, "little") + bytes([0, number]) + data
    for number, case in enumerate(FRAMINGS.get(framing, ())):
        builder: Any = case.builder
        shape, delimiter = 0, b""
        if framing == "length":
            shape = {1: 0, 2: 1, 4: 2, 8: 3}[builder.width] | (builder.byteorder == "little") << 2
        elif framing == "line":
            shape, delimiter = len(builder.delimiter) - 1, builder.delimiter
        yield (
            builder.max_size.to_bytes(8, "little")
            + bytes([shape, number % 256])
            + delimiter
            + case.wire
        )


def told(line: str) -> tuple[Any, bytes, tuple[list[bytes], str | None, int], bytes | None]:
    """A line of the replayer's: the builder's fields, the wire, what was read in it, and what the
    wire was made into as a payload.
    """
    fields: dict[str, Any] = {}
    frames = []
    for name, _, value in (word.partition("=") for word in line.split()):
        if name == "frame":
            frames.append(bytes.fromhex(value))
        elif name in ("delimiter", "wire", "sent"):
            fields[name] = bytes.fromhex(value)
        else:
            fields[name] = int(value)
    left = fields["left"] if fields["verdict"] == 0 else 0
    return fields, fields["wire"], (frames, VERDICTS[fields["verdict"]], left), fields.get("sent")


def builder_of(framing: str, fields: dict[str, Any]) -> Any:
    """The builder that the harness had."""
    most = fields["max_size"]
    if framing == "simple":
        return hydrogen.SimpleFrameBuilder(most)
    if framing == "checksum32":
        return hydrogen.Checksum32FrameBuilder(most)
    if framing == "length":
        return hydrogen.LengthFrameBuilder(
            fields["width"], "little" if fields["little"] else "big", most
        )
    if framing == "line":
        return hydrogen.LineFrameBuilder(fields["delimiter"], most)
    return hydrogen.WebSocketFrameBuilder(most)


def in_python(builder: Any, wire: bytes) -> tuple[list[bytes], str | None, int]:
    """What the builder reads in `wire`."""
    decoder = FrameDecoder(builder)
    decoder.feed(wire)
    frames: list[bytes] = []
    try:
        while (payload := decoder.next()) is not None:
            frames.append(payload)
    except ProtocolError as error:
        return frames, type(error).__name__, 0
    return frames, None, decoder.size


def head_in_python(most: int, wire: bytes) -> tuple[list[bytes], str | None]:
    """The first head in `wire`, or why there is none."""
    reader = HeadReader(most)
    reader.feed(wire)
    try:
        head = reader.next()
    except Refusal as refusal:
        return [], {400: "ProtocolError", 431: "FrameTooLarge"}[refusal.response.status]
    return ([] if head is None else [head]), None


def made(builder: Any, payload: bytes) -> bytes | None:
    """The frame of `payload`, None when the builder refuses."""
    try:
        return encode(builder, payload)
    except ValueError:
        return None


def disagreements(framing: str, line: str) -> Iterator[str]:
    """Where the compiled codec, which wrote `line`, the Python side and the corpus's reader and
    writer disagree.
    """
    if framing == "raw":
        return
    fields, wire, compiled, sent = told(line)
    if framing == HEAD:
        first = compiled[0][:1], (None if compiled[0] else compiled[1])
        if first != head_in_python(fields["max_size"], wire):
            yield f"the first head of {wire!r}: {first}"
        return
    builder = builder_of(framing, fields)
    frames, error, left = reference.decode(builder, wire)
    opinions = {
        "compiled": compiled,
        "python": in_python(builder, wire),
        "reference": (frames, error.__name__ if error else None, left),
    }
    if len({repr(opinion) for opinion in opinions.values()}) > 1:
        yield f"{builder!r} reads {wire!r} as {opinions}"
    refused = reference.carries(builder, wire)
    sendings = {
        "compiled": sent,
        "python": made(builder, wire),
        "reference": None if refused else reference.encode(builder, wire),
    }
    if len(set(sendings.values())) > 1:
        yield f"{builder!r} makes of {wire!r} {sendings}"
