"""The corpus through the builders and the compiled decoder: whole, byte by byte, with trailing
data, split everywhere and at random.
"""

from __future__ import annotations

import random

import pytest
from corpus import reference
from corpus.cases import BUILDERS, CASES, FRAMINGS

import hydrogen
from hydrogen.codec import FrameDecoder

by_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{framing}: {case.name}")
        for framing, cases in FRAMINGS.items()
        for case in cases
    ],
)
by_framing = pytest.mark.parametrize("cases", FRAMINGS.values(), ids=FRAMINGS)
by_builder = pytest.mark.parametrize(
    "builder", [builder for builders in BUILDERS.values() for builder in builders], ids=repr
)

Outcome = tuple[list[bytes], type[Exception] | None, int]


def decode_in_python(builder: hydrogen.FrameBuilder, parts: list[bytes]) -> Outcome:
    """Frames, error, bytes left: what the builder makes of `parts` as they come."""
    decoder = FrameDecoder(builder)
    frames: list[bytes] = []
    try:
        for part in parts:
            decoder.feed(part)
            while (payload := decoder.next()) is not None:
                frames.append(payload)
    except hydrogen.ProtocolError as error:
        return frames, type(error), 0
    return frames, None, decoder.size


def decode_compiled(builder: hydrogen.FrameBuilder, parts: list[bytes]) -> Outcome:
    """The same by the compiled decoder, which is given what it left again, with the next part
    behind it.
    """
    from hydrogen import _codec  # not there in a pure build, where this engine is not under test

    frames: list[bytes] = []
    held = b""
    for part in parts:
        held += part
        more, error, left = _codec.decode(builder, held)
        frames += more
        if error is not None:
            return frames, type(error), 0
        held = held[len(held) - left :]
    return frames, None, len(held)


@pytest.fixture
def decode(engine):
    """The decoder of the engine under test: (builder, parts) -> frames, error, bytes left."""
    return {"python": decode_in_python, "compiled": decode_compiled}[engine]


def ends_apart(wire: bytes) -> list[bytes]:
    """`wire` byte by byte; of a long one, 300 at each end."""
    if len(wire) <= 2000:
        return [wire[at : at + 1] for at in range(len(wire))]
    return [*ends_apart(wire[:300]), wire[300:-300], *ends_apart(wire[-300:])]


@by_case
def test_the_corpus_and_the_independent_decoder_agree(case):
    assert reference.decode(case.builder, case.wire) == case.outcome


@by_case
@pytest.mark.clause("F2", "F3", "F5", "F6", "F7", "F9", "F10", "F11", "F13")
def test_whole(decode, case):
    assert decode(case.builder, [case.wire]) == case.outcome


@by_framing
@pytest.mark.clause("F2", "F3")
def test_f04_byte_by_byte(decode, cases):
    for case in cases:
        assert decode(case.builder, ends_apart(case.wire)) == case.outcome, case.name


@by_framing
@pytest.mark.clause("F2")
def test_f04_split_at_every_position(decode, cases):
    for case in cases:
        step = 1 if len(case.wire) < 2000 else 4099
        for at in range(0, len(case.wire) + 1, step):
            assert decode(case.builder, [case.wire[:at], case.wire[at:]]) == case.outcome, (
                f"{case.name}, split at {at}"
            )


@by_framing
def test_f04_split_at_random(decode, cases):
    for case in cases:
        dice = random.Random(case.name)
        for _ in range(50):
            parts = reference.split(dice, case.wire, 6)
            assert decode(case.builder, parts) == case.outcome, (
                f"{case.name}, split into {[len(part) for part in parts]}"
            )


@by_framing
@pytest.mark.clause("F2", "F8")
def test_with_trailing_data(decode, cases):
    """What follows a frame is left, byte for byte, and becomes a frame when the rest of it
    comes.
    """
    for case in cases:
        if case.error or case.rest:
            continue  # no complete frame at the end for data to trail
        whole = reference.encode(case.builder, b"")
        for at in range(len(whole)):
            assert decode(case.builder, [case.wire + whole[:at]]) == (case.frames, None, at), (
                case.name
            )
            assert decode(case.builder, [case.wire + whole[:at], whole[at:]]) == (
                [*case.frames, b""],
                None,
                0,
            ), case.name


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.clause("F8")
def test_one_builder_reads_many_buffers_in_turn(framing):
    builder = BUILDERS[framing][-1]
    wires = [reference.encode(builder, payload) for payload in (b"ab", b"c", b"")]
    decoders = [FrameDecoder(builder) for _ in wires]
    got: list[bytes | None] = [None] * len(wires)
    for position in range(max(map(len, wires))):
        for number, wire in enumerate(wires):
            decoders[number].feed(wire[position : position + 1])
            if (payload := decoders[number].next()) is not None:
                got[number] = payload
    assert got == [b"ab", b"c", b""]


@by_builder
def test_f09_mutated_bytes_are_frames_or_an_error(decode, builder):
    for seed in range(500):
        wire = reference.mutated(seed, builder)
        expected = reference.decode(builder, wire)
        assert decode(builder, [wire]) == expected, f"seed {seed}"
        parts = reference.split(random.Random(seed), wire, 4)
        assert decode(builder, parts) == expected, (
            f"seed {seed} split into {[len(part) for part in parts]}"
        )


@pytest.mark.parametrize("framing", FRAMINGS)
def test_the_mutated_bytes_meet_frames_and_all_errors(framing):
    """Or the test above would compare nothing with nothing."""
    met = {
        reference.decode(builder, reference.mutated(seed, builder))[1]
        for builder in BUILDERS[framing]
        for seed in range(500)
    }
    errors = {
        "simple": {hydrogen.ProtocolError, hydrogen.FrameTooLarge},
        "checksum32": {hydrogen.ChecksumMismatch, hydrogen.FrameTooLarge},
        "length": {hydrogen.FrameTooLarge},
        "line": {hydrogen.FrameTooLarge},
        "websocket": {hydrogen.ProtocolError, hydrogen.FrameTooLarge},
    }
    assert met == {None, *errors[framing]}


def test_no_case_is_there_twice():
    names = [(case.builder.__class__, case.name) for case in CASES]
    assert len(set(names)) == len(names)
    wires = [(repr(case.builder), case.wire) for case in CASES]
    assert sorted(wires) == sorted(set(wires))


@by_case
def test_both_decoders_say_the_same_of_what_they_refuse(engine, case):
    if engine != "compiled" or case.error is None:
        return  # the builders of framings.py are what the compiled decoder is compared with
    from hydrogen import _codec

    _, error, _ = _codec.decode(case.builder, case.wire)
    decoder = FrameDecoder(case.builder)
    decoder.feed(case.wire)
    with pytest.raises(hydrogen.ProtocolError) as raised:
        list(iter(decoder.next, None))
    assert (type(error), str(error)) == (type(raised.value), str(raised.value))
    assert error.__traceback__ is None
