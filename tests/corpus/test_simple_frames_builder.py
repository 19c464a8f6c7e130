"""The corpus through `SimpleFrameBuilder.from_bytes`: whole, byte by byte, with trailing data, split at every position and at random."""

from __future__ import annotations

import random

import pytest
from corpus.simple_frames import CASES, Case, decode, mutated

import hydrogen

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def feed(case: Case, parts: list[bytes]) -> tuple[list[bytes], type[Exception] | None, int]:
    """What the builder makes of `parts` as they come: frames, error, bytes left."""
    builder = hydrogen.SimpleFrameBuilder(case.max_size)
    buffer = bytearray()
    frames: list[bytes] = []
    for part in parts:
        buffer += part
        try:
            while (frame := builder.from_bytes(buffer)) is not None:
                frames.append(frame.payload())
        except hydrogen.ProtocolError as error:
            return frames, type(error), 0
    return frames, None, len(buffer)


def outcome(case: Case) -> tuple[list[bytes], type[Exception] | None, int]:
    """What the case says."""
    return case.frames, case.error, case.rest


@by_name
def test_the_corpus_and_the_independent_decoder_agree(case):
    assert decode(case.wire, case.max_size) == outcome(case)


@by_name
@pytest.mark.clause("F2", "F3", "F5", "F6", "F7")
def test_whole(case):
    assert feed(case, [case.wire]) == outcome(case)


@by_name
@pytest.mark.clause("F2", "F3")
def test_byte_by_byte(case):
    assert feed(case, [case.wire[at : at + 1] for at in range(len(case.wire))]) == outcome(case)


@by_name
@pytest.mark.clause("F2")
def test_split_at_every_position(case):
    step = 1 if len(case.wire) < 2000 else 4099
    for at in range(0, len(case.wire) + 1, step):
        assert feed(case, [case.wire[:at], case.wire[at:]]) == outcome(case), f"split at {at}"


@by_name
def test_split_at_random(case):
    dice = random.Random(case.name)
    for _ in range(50):
        cuts = sorted(dice.randrange(len(case.wire) + 1) for _ in range(dice.randrange(6)))
        parts = [case.wire[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(case.wire)], strict=True)]
        assert feed(case, parts) == outcome(case), f"split at {cuts}"


@by_name
@pytest.mark.clause("F2", "F8")
def test_with_trailing_data(case):
    """What follows a frame is left in the buffer, byte for byte."""
    if case.error or case.rest:
        return  # nothing complete for data to trail
    for tail in (b"\x01", b"\x01\x00\x05ab", b"\x01\xff"):
        if case.max_size < 5 and len(tail) > 2:
            continue
        frames, error, rest = feed(case, [case.wire + tail])
        assert (frames, error, rest) == (case.frames, None, len(tail))


@pytest.mark.clause("F8")
def test_one_builder_reads_many_buffers_in_turn():
    builder = hydrogen.SimpleFrameBuilder()
    wires = [b"\x01\x00\x02ab\x17", b"\x01\x00\x01c\x17", b"\x01\x00\x00\x17"]
    buffers = [bytearray() for _ in wires]
    got: list[bytes | None] = [None] * len(wires)
    for position in range(6):
        for number, wire in enumerate(wires):
            buffers[number] += wire[position : position + 1]
            if (frame := builder.from_bytes(buffers[number])) is not None:
                got[number] = frame.payload()
    assert got == [b"ab", b"c", b""]


@pytest.mark.parametrize("max_size", [0, 5, 300])
def test_f09_mutated_bytes_are_frames_or_an_error(max_size):
    for seed in range(1000):
        wire = mutated(seed, max_size)
        expected = decode(wire, max_size)
        case = Case(f"seed {seed}", wire, max_size=max_size)
        cut = seed % (len(wire) + 1)
        assert feed(case, [wire]) == expected, f"seed {seed}"
        assert feed(case, [wire[:cut], wire[cut:]]) == expected, f"seed {seed} cut at {cut}"
