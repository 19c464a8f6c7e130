"""The corpus through a server, on both engines: each case on connections of its own, in one piece and in many."""

from __future__ import annotations

import random

import pytest
from corpus.simple_frames import CASES, Case, decode, mutated
from support import Client, recorder, simple, unframe

import hydrogen


def send_parts(client: Client, parts: list[bytes]) -> None:
    """Each part in a segment of its own, as far as the kernel goes along; the server may have hung up already."""
    try:
        for part in parts:
            client.send(part)
        client.finish()
    except ConnectionError:
        return


def serve_case(start, connect):
    """A function that sends the parts of a case and says what the server made of them: frames delivered, frames echoed, error."""
    handlers = {}

    def run(case: Case, parts: list[bytes]) -> tuple[list[bytes], list[bytes], type[Exception]]:
        if case.max_size not in handlers:
            handler = recorder(data_received=lambda socket, data: socket.send(data))
            server = start(handler, framing=hydrogen.SimpleFrameBuilder(case.max_size), max_threads=2)
            handlers[case.max_size] = (handler, server)
        handler, server = handlers[case.max_size]
        number = len(handler.of("connection_removed"))
        client = connect(server)
        send_parts(client, parts)
        replies = unframe(client.receive_until_end())
        client.close()
        error = handler.wait_removed(number + 1)[number]
        id = handler.of("disconnected")[number].id
        return handler.messages(id), replies, type(error)

    return run


def expected(case: Case) -> tuple[list[bytes], list[bytes], type[Exception]]:
    """What the case says: frames before the error are delivered and answered, then comes the error, or the end."""
    end = case.error or (hydrogen.IncompleteFrame if case.rest else hydrogen.PeerClosed)
    return case.frames, case.frames, end


@pytest.mark.clause("F2", "F3", "F5", "F6", "F7", "H9", "H20")
def test_whole(start, connect):
    run = serve_case(start, connect)
    for case in CASES:
        assert run(case, [case.wire]) == expected(case), case.name


def test_f04_byte_by_byte(start, connect):
    run = serve_case(start, connect)
    for case in CASES:
        wire = case.wire
        if len(wire) > 2000:  # the ends byte by byte
            parts = [wire[at : at + 1] for at in range(300)]
            parts += [wire[300:-300], *(wire[at : at + 1] for at in range(len(wire) - 300, len(wire)))]
        else:
            parts = [wire[at : at + 1] for at in range(len(wire))]
        assert run(case, parts) == expected(case), case.name


def test_f04_split_at_every_position(start, connect):
    """Cases that end in order are joined, frame after frame on one connection, so that every split of every frame is met."""
    handler = recorder(data_received=lambda socket, data: socket.send(data))
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    good = [case for case in CASES if not case.error and not case.rest and 0 < len(case.wire) < 300]
    client = connect(server)
    for case in good:
        for at in range(1, len(case.wire)):
            client.send(case.wire[:at])
            client.send(case.wire[at:] + b"\x01")  # the next one's first byte trails
            client.send(simple(b"!")[1:])
            assert [client.receive_frame() for _ in range(len(case.frames) + 1)] == [*case.frames, b"!"], f"{case.name} at {at}"


def test_f04_split_at_random(start, connect):
    run = serve_case(start, connect)
    dice = random.Random(4)
    for case in CASES:
        for _ in range(3):
            cuts = sorted(dice.randrange(len(case.wire) + 1) for _ in range(4))
            parts = [case.wire[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(case.wire)], strict=True)]
            assert run(case, [part for part in parts if part]) == expected(case), f"{case.name} at {cuts}"


@pytest.mark.parametrize("max_size", [5, 300])
def test_f09_mutated_bytes_end_in_frames_or_a_named_error(start, connect, max_size):
    run = serve_case(start, connect)
    dice = random.Random(max_size)
    for seed in range(150):
        wire = mutated(seed, max_size)
        frames, error, rest = decode(wire, max_size)
        case = Case(f"seed {seed}", wire, frames, error, rest, max_size)
        cut = dice.randrange(len(wire) + 1)
        assert run(case, [wire[:cut], wire[cut:]]) == expected(case), case.name


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
