"""The corpus through a server, on both engines: each case on connections of its own, in one piece
and in many.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
from corpus import reference
from corpus.cases import BUILDERS, FRAMINGS, Case
from support import Client, recorder

import hydrogen

by_framing = pytest.mark.parametrize("framing", FRAMINGS)

Parts = Callable[[Case], list[list[bytes]]]
"""The ways in which a case is to be sent, each a list of segments."""


def send_parts(client: Client, parts: list[bytes]) -> None:
    """Each part in a segment of its own, as far as the kernel goes along; the server may have hung
    up already.
    """
    try:
        for part in parts:
            client.send(part)
        client.finish()
    except ConnectionError:
        return


def expected(case: Case) -> tuple[list[bytes], bytes, type[Exception]]:
    """What the case says: frames before the error are delivered and answered, then comes the error,
    or the end.
    """
    end = case.error or (hydrogen.IncompleteFrame if case.rest else hydrogen.PeerClosed)
    return (
        case.frames,
        b"".join(reference.encode(case.builder, frame) for frame in case.frames),
        end,
    )


@pytest.fixture
def serve(start, connect):
    """Serve cases, a server for each builder, and compare: frames delivered, bytes echoed,
    error.
    """

    def serve(cases: list[Case], ways: Parts) -> None:
        for _, group in itertools.groupby(
            sorted(cases, key=lambda case: repr(case.builder)), lambda case: repr(case.builder)
        ):
            same = list(group)
            handler = recorder(data_received=lambda socket, data: socket.send(data))
            server = start(handler, framing=same[0].builder, max_threads=2)
            removed = 0
            for case in same:
                for parts in ways(case):
                    with connect(server) as client:
                        send_parts(client, parts)
                        replies = client.receive_until_end()
                    error = handler.wait_removed(removed + 1)[removed]
                    id = handler.of("disconnected")[removed].id
                    removed += 1
                    sizes = [len(part) for part in parts][:20]
                    assert (handler.messages(id), replies, type(error)) == expected(case), (
                        f"{case.name}, in parts of {sizes}"
                    )
            assert server.stop().aborted == 0

    return serve


def byte_by_byte(case: Case) -> list[list[bytes]]:
    """Of a long one, 300 bytes at each end."""
    wire = case.wire
    if len(wire) <= 2000:
        return [[wire[at : at + 1] for at in range(len(wire))]]
    first, middle, last = wire[:300], wire[300:-300], wire[-300:]
    return [[*(bytes([byte]) for byte in first), middle, *(bytes([byte]) for byte in last)]]


@by_framing
@pytest.mark.clause("F2", "F3", "F5", "F6", "F7", "F9", "F10", "F11", "F13", "H9", "H20")
def test_whole(serve, framing):
    serve(FRAMINGS[framing], lambda case: [[case.wire]])


@by_framing
def test_f04_byte_by_byte(serve, framing):
    serve(FRAMINGS[framing], byte_by_byte)


@by_framing
def test_f04_split_at_random(serve, framing):
    dice = random.Random(4)
    serve(FRAMINGS[framing], lambda case: [reference.split(dice, case.wire, 4) for _ in range(2)])


def sendings(case: Case) -> Iterator[tuple[bytes, bytes, list[bytes]]]:
    """The case split at every position, a frame more behind each; that one's first byte comes with
    the second part.
    """
    more = reference.encode(case.builder, b"!")
    for at in range(1, len(case.wire)):
        yield case.wire[:at], case.wire[at:] + more[:1], [*case.frames, b"!"]


@by_framing
def test_f04_split_at_every_position(start, connect, framing):
    """Cases that end gracefully are joined, frame after frame on one connection, so that every
    split of every frame is met.
    """
    for builder in {repr(case.builder): case.builder for case in FRAMINGS[framing]}.values():
        good = [
            case
            for case in FRAMINGS[framing]
            if repr(case.builder) == repr(builder) and not case.error and not case.rest
        ]
        short = [case for case in good if 1 < len(case.wire) < 300]
        if not short or not builder.max_size:
            continue
        handler = recorder(data_received=lambda socket, data: socket.send(data))
        server = start(handler, framing=builder, max_threads=2)
        rest = reference.encode(builder, b"!")[1:]
        with connect(server) as client:
            for case in short:
                for first, second, frames in sendings(case):
                    client.send(first)
                    client.send(second)
                    client.send(rest)
                    answer = b"".join(reference.encode(builder, frame) for frame in frames)
                    assert client.receive(len(answer)) == answer, f"{case.name} at {len(first)}"
        handler.wait_removed()
        server.stop()


@pytest.mark.parametrize(
    "builder", [builder for builders in BUILDERS.values() for builder in builders], ids=repr
)
def test_f09_mutated_bytes_end_in_frames_or_a_named_error(serve, builder):
    cases = []
    for seed in range(60):
        wire = reference.mutated(seed, builder)
        cases.append(Case(f"seed {seed}", builder, wire, *reference.decode(builder, wire)))
    dice = random.Random(repr(builder))
    serve(cases, lambda case: [reference.split(dice, case.wire, 2)])


def test_f09_noise_without_framing_is_delivered_as_it_came(start, connect):
    handler = recorder()
    server = start(handler)
    for seed in range(30):
        noise = random.Random(seed).randbytes(random.Random(seed).choice((1, 100, 5000, 200_000)))
        client = connect(server)
        client.send(noise)
        client.finish()
        assert client.receive_until_end() == b""
        client.close()
        handler.wait_removed(seed + 1)
        assert handler.data(handler.of("disconnected")[seed].id) == noise
