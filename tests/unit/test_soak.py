"""The judgement of perf/soak: what well-behaved clients take for wrong, and which evidence fails
which check.
"""

import asyncio
import dataclasses
import random

import pytest

import hydrogen

pytestmark = pytest.mark.usefixtures("perf_found")


class Scripted:
    """A link on which one thing comes after the other, and then the end."""

    def __init__(self, *received):
        self.received = list(received)

    async def receive(self, size):
        return self.received.pop(0) if self.received else b""

    async def send(self, data):
        pass


def outcome(*messages, ask=b"E"):
    """What a well-behaved client, number 7, makes of these messages after its first request; None:
    all is well.
    """
    from perf.soak import protocol
    from perf.soak.settings import Place
    from perf.soak.well_behaved import Talk, Wrong

    async def converse():
        talk = Talk(
            Scripted(*(protocol.frame(Place.PLAIN, message) for message in messages)),
            Place.PLAIN,
            7,
            random.Random(1),
        )
        await talk.ask(ask, 2)
        await talk.end()

    try:
        asyncio.run(converse())
    except Wrong as error:
        return str(error)
    return None


def test_a_client_is_content_with_its_answer_and_broadcasts_in_between():
    assert outcome(b"welcome", b"all 5", b"E 7 4 2", b"all 6") is None


def test_timers_and_other_threads_may_come_in_between_in_their_own_order():
    assert outcome(b"welcome", b"F 7 4 0", b"all 1", b"F 7 4 1", ask=b"F") is None


@pytest.mark.parametrize(
    ("messages", "ask"),
    [
        ([b"welcome"], b"E"),
        ([b"E 7 4 2"], b"E"),
        ([b"welcome", b"E 8 4 2"], b"E"),
        ([b"welcome", b"E 7 4 2", b"E 7 4 2"], b"E"),
        ([b"welcome", b"all 5", b"E 7 4 2", b"all 7"], b"E"),
        ([b"welcome", b"all 5", b"E 7 4 2", b"all 5"], b"E"),
        ([b"welcome", b"welcome", b"E 7 4 2"], b"E"),
        ([b"welcome", b"F 7 4 1", b"F 7 4 0"], b"F"),
        ([b"welcome", b"L 7 4 0 7.4,"], b"L"),
    ],
    ids=[
        "lost",
        "no greeting",
        "another's",
        "twice",
        "broadcast lost",
        "broadcast twice",
        "greeted twice",
        "out of order",
        "cut short",
    ],
)
def test_a_client_notices(messages, ask):
    assert outcome(*messages, ask=ask) is not None


def test_a_frame_that_is_none_is_wrong():
    from perf.soak import protocol
    from perf.soak.settings import Place

    whole = protocol.frame(Place.PLAIN, b"abc")
    assert protocol.Unframer(Place.PLAIN).feed(whole * 2 + whole[:-1]) == [b"abc", b"abc"]
    for bad in (b"\x02" + whole[1:], whole[:-1] + b"\x18"):
        with pytest.raises(ValueError, match="a frame"):
            protocol.Unframer(Place.PLAIN).feed(bad)
    lines = protocol.Unframer(Place.PROXY)
    assert [lines.feed(data) for data in (b"a", b"b\nc\n\nd")] == [[], [b"ab", b"c", b""]]
    assert lines.is_partial


def evidence():
    """That of a soak of two minutes in which all went well."""
    from perf.soak.checks import Evidence
    from perf.soak.processes import Sample

    names = [
        field.name
        for field in dataclasses.fields(hydrogen.Stats)
        if field.name.startswith("removed_")
    ]
    stats = {
        **dataclasses.asdict(hydrogen.Stats()),
        **dict.fromkeys(names, 1),
        "accepted": len(names),
    }
    stats |= dict.fromkeys(
        (
            "accept_pauses",
            "reading_pauses",
            "reading_resumes",
            "memory_pauses",
            "all_blocked",
            "slow_callbacks",
        ),
        1,
    )
    stats |= {"stalls": 1, "handoffs": 1}
    told = {
        "stats": {name: dict(stats) for name in ("plain", "tls", "proxy")},
        "unannounced": [],
        "faults": [],
        "planned": 3,
    }
    report = {"closed": 4, "aborted": 0, "abandoned": 0}
    return Evidence(
        "compiled",
        120.0,
        [Sample(float(at), 40 << 20, 15, 32, at / 10, 50) for at in range(121)],
        {"faults": [], "turned_away": {}},
        {"faults": []},
        told,
        {**told, "reports": {name: dict(report) for name in told["stats"]}},
        12,
        statuses={"server": 0},
        complaints={"server": ""},
    )


def failing(found):
    from perf.soak.checks import judged

    return [check.name for check in judged(found) if not check.held]


def test_good_evidence_holds():
    assert failing(evidence()) == []


def spoil(change):
    found = evidence()
    change(found)
    return failing(found)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (
            lambda e: e.well_behaved["faults"].append({"who": 1, "late_seconds": 0.0}),
            "no well-behaved client saw",
        ),
        (
            lambda e: e.told["unannounced"].append({"who": 1, "error": "SlowConsumer"}),
            "no well-behaved client saw",
        ),
        (
            lambda e: e.well_behaved["turned_away"].update(tls=2),
            "no well-behaved client was turned away",
        ),
        (lambda e: e.hostile["faults"].append({"what": "a bug"}), "every attack"),
        (lambda e: setattr(e, "goodbye", "reset"), "clients at the stop"),
        (lambda e: e.emptied["stats"]["tls"].update(connections=1), "no connection is left"),
        (lambda e: e.told["stats"]["plain"].update(accepted=99), "accepted == removed"),
        (lambda e: e.told["stats"]["plain"].update(queued_bytes=1), "queued_bytes"),
        (
            lambda e: [
                s.update(removed_reject=0, removed_overload=2) for s in e.told["stats"].values()
            ],
            "every cause",
        ),
        (lambda e: [s.update(memory_pauses=0) for s in e.told["stats"].values()], "every bound"),
        (lambda e: e.told["faults"].append("KeyError"), "no error was logged"),
        (lambda e: e.stopped["reports"]["tls"].update(aborted=1, closed=3), "the stop closed"),
        (lambda e: e.samples.append(e.samples[-1]._replace(fds=16)), "fds"),
        (lambda e: e.samples.append(e.samples[-1]._replace(threads=33)), "threads"),
        (
            lambda e: e.samples.__setitem__(
                slice(61, None), [s._replace(rss=51 << 20) for s in e.samples[61:]]
            ),
            "memory",
        ),
        (
            lambda e: e.complaints.update(server="Exception ignored"),
            "nothing on any standard error",
        ),
        (lambda e: e.statuses.update(server=-11), "every process ended"),
        (lambda e: setattr(e, "hung", "does not answer"), "every process answers"),
    ],
)
def test_one_thing_that_is_wrong_fails_its_check_and_no_other(change, name):
    [failed] = spoil(change)
    assert failed.startswith(name)


def test_a_deadline_is_excused_when_the_clients_own_process_was_late():
    def late(found):
        found.well_behaved["faults"].append({"who": 1, "late_seconds": 1.5})
        found.told["unannounced"].append({"who": 1, "error": "ConnectionTimeout"})

    assert spoil(late) == []
    assert (
        spoil(lambda found: found.well_behaved["faults"].append({"who": 1, "late_seconds": 1.5}))
        != []
    )
