"""The oracle of a `life.Life`: what each client and each handler must have got, the causes that are
legal, and the counts.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from state_machine.client import RESETS, Link
from state_machine.server import Boom, Record

import hydrogen

if TYPE_CHECKING:
    from state_machine.life import Life

GRAMMARS = {True: re.compile("N?(C[DW]*(EW*)?X|X?)R"), False: re.compile("[DW]*(EW*)?XR")}
"""The callbacks of a connection, whether it is attended or not: New, Connected, Data, Writable,
Eof, disconnected (X), Removed.
"""

LINGER = 2.0
"""Seconds after which the server waits no longer for the peer's end. It may then reset a peer who
still sends.
"""

COUNTERS: dict[type[Exception], str] = {
    hydrogen.PeerClosed: "peer_closed",
    hydrogen.LocalClosed: "local_closed",
    hydrogen.ServerStopped: "server_stopped",
    hydrogen.SlowConsumer: "slow_consumer",
    hydrogen.HandlerError: "handler_error",
    hydrogen.ProtocolError: "protocol_error",
    hydrogen.FrameTooLarge: "protocol_error",
    hydrogen.ChecksumMismatch: "protocol_error",
    hydrogen.IncompleteFrame: "protocol_error",
    ConnectionResetError: "os_error",
    BrokenPipeError: "os_error",
}


def judge(life: Life) -> None:
    """All of it, of a server that has stopped; the first thing that is wrong fails."""
    _judge_server(life)
    for record in life.records:
        _judge_callbacks(life, record)
    for link in life.links:
        _judge_link(life, link)


def _judge_server(life: Life) -> None:
    stats, report = life.server.stats(), life.report
    assert report is not None
    removed = Counter(COUNTERS.get(record.error, record.error.__name__) for record in life.records)
    counted = {
        name: count
        for name in set(COUNTERS.values())
        if (count := getattr(stats, f"removed_{name}"))
    }
    received = sum(record.calls.count("D") for record in life.records)
    sent = life.sends[True] + sum(report.sent for report in life.broadcasts)
    refused = life.sends[False] + sum(report.dropped for report in life.broadcasts)
    if not stats.accepted == stats.removed == len(life.records) or removed != counted:
        life.fail(f"removals: the handler saw {removed}, counted were {counted}: {stats}")
    if (stats.messages_received, stats.messages_sent, stats.messages_refused) != (
        received,
        sent,
        refused,
    ):
        life.fail(
            f"{received} messages were received, {sent} taken, {refused} refused; counted were "
            f"{stats}"
        )
    if stats.queued_bytes or life.server.connections:
        life.fail(f"something is left: {stats}")
    if sum(record.calls.count("W") for record in life.records) > stats.reading_resumes:
        life.fail(f"on_writable came more often than output fell below the low watermark: {stats}")
    if life.stopping in ("stop", "spread") and (
        report.aborted or report.abandoned or report.unsent_bytes
    ):
        life.fail(f"a stop that had its time aborted: {report}")
    if (
        min(report.closed, report.aborted, report.abandoned) < 0
        or report.closed + report.aborted + report.abandoned > stats.accepted
    ):
        life.fail(f"the report does not add up: {report}")


def _judge_callbacks(life: Life, record: Record) -> None:
    if not GRAMMARS[life.setup.attended].fullmatch(record.calls):
        life.fail(f"the callbacks of {record} were {record.calls}")
    if len({(type(error), str(error)) for error in record.errors}) != 1:
        life.fail(f"the last callbacks of {record} got {record.errors}")
    if record.error is hydrogen.HandlerError and not isinstance(record.errors[-1].__cause__, Boom):
        life.fail(f"{record} ended with {record.errors[-1].__cause__!r}")


def _judge_link(life: Life, link: Link) -> None:
    record = life.record(link)
    if record is None:
        # It was still in the backlog when the server stopped, or was reset before it had a name.
        if link.replies or (life.lasting is not None and link.gone != "reset"):
            life.fail(f"the handler does not know {link}: {life.describe(link)}")
        return
    legal = _legal_ends(life, link, record)
    if record.error not in legal and not link.is_cut_off:
        life.fail(
            f"{record} of {link} ended with {record.error}, legal were {legal}: "
            f"{life.describe(link)}"
        )
    if "E" in record.calls and link.is_speaking:
        life.fail(
            f"on_eof of {record} was called, while {link} had not ended: {life.describe(link)}"
        )
    _judge_received(life, link, record)
    _judge_replies(life, link, record)


def _legal_ends(life: Life, link: Link, record: Record) -> set[type[Exception]]:
    """The causes that there were; the first one stands."""
    legal = set() if link.fate is None else {link.fate}
    if record.asked:
        legal.add(hydrogen.LocalClosed)
    if link.gone is not None and link.gone_at < record.ended_at:
        legal |= RESETS
    if (life.lasting is None or link in life.lasting) and life.stopped_at < record.ended_at:
        legal.add(hydrogen.ServerStopped)
    if record.bytes_taken + life.bytes_broadcast >= life.setup.options["max_write_buffer"]:
        legal.add(hydrogen.SlowConsumer)
    return legal


def _judge_received(life: Life, link: Link, record: Record) -> None:
    """What the handler got: a beginning of what was said, and all of it when it ended by that."""
    by_others = record.error is hydrogen.LocalClosed and any(
        thread == "foreign" for *_, thread in record.asked
    )
    ended_by_it = record.error is link.fate and not by_others
    if life.wire.framing is None:
        got: Any = b"".join(record.messages)
        is_beginning, is_whole = link.stream.startswith(got), len(got) >= link.fate_bytes
    else:
        got = record.messages
        is_beginning, is_whole = link.payloads[: len(got)] == got, len(got) == link.fate_payloads
    if not is_beginning or (ended_by_it and not is_whole and not link.is_cut_off):
        life.fail(
            f"{record} got {got!r:.2000}, while {link} said {link.payloads!r:.2000}: "
            f"{life.describe(link)}"
        )


def _judge_replies(life: Life, link: Link, record: Record) -> None:
    """What the client got: a beginning of what was taken for it; all of it with a graceful end, and
    that but for a reason.
    """
    for source, numbers in link.replies.items():
        taken = list(range(len(life.broadcasts))) if source == b"b0" else record.taken[source[:1]]
        if source == b"b0":
            is_legal = sorted(set(numbers)) == numbers and set(numbers) <= set(taken)
        else:
            is_legal = source[1:] == b"%d" % record.socket.id and numbers == taken[: len(numbers)]
        if not is_legal:
            life.fail(
                f"{link} got messages {numbers} of {source!r}, {taken} of {record} were taken"
            )
    missing = link.missing(record)
    # A Unix socket has no reset to tell.
    is_told = life.setup.transport != "unix" or not _may_be_reset(life, link, record)
    if link.seen == "end" and missing and is_told:
        life.fail(f"{link} saw a graceful end, and misses {missing}: {life.describe(link)}")
    if link.seen == "reset" and not _may_be_reset(life, link, record):
        life.fail(f"{link} was reset: {life.describe(link)}")


def _may_be_reset(life: Life, link: Link, record: Record) -> bool:
    if (
        link.gone is not None
        or life.stopping in ("hurry", "abort")
        or record.error is hydrogen.SlowConsumer
    ):
        return True
    if any(how == "abort" for _, how, _ in record.asked):
        return True
    if record.asked:
        ended_at = record.asked[0][0]
    elif record.error is hydrogen.ServerStopped:
        ended_at = life.stopped_at
    else:
        said = zip(record.times, record.calls, strict=True)
        times = [time for time, letter in said if letter not in "XR"]
        ended_at = max(times, default=record.times[0])
    return record.times[-1] - ended_at >= LINGER
