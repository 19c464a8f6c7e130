"""The deadlines of one connection, by its owner; the invariants are in `connection`."""

from __future__ import annotations

import math
import time

from hydrogen._py import input, kernel
from hydrogen._py.connection import Connection
from hydrogen.errors import Cause, Timeout

LATE = 0.05
"""Seconds until a time that has passed already is looked at again: somebody else is waited for, who
posts when he is done.
"""


def watch(connection: Connection, pause_ended: bool) -> None:
    """Keep the deadline of what the peer has begun: the handshake, or a frame."""
    config = connection.loop.config
    seconds, code = (
        (config.frame_timeout, Timeout.FRAME_TIMEOUT)
        if connection.ready
        else (config.open_timeout, Timeout.OPEN_TIMEOUT)
    )
    if (
        seconds is None
        or (connection.ready and not connection.decoder.is_partial())
        or must_not_read(connection)
    ):
        connection.deadline = connection.grace = math.inf
    elif pause_ended or connection.deadline == math.inf:
        connection.deadline, connection.grace = time.monotonic() + seconds, math.inf
    elif (
        time.monotonic() >= connection.deadline
        and not has_grace(connection)
        and connection.error is None
    ):
        connection.end(Cause.TIMEOUT, code=code, at_once=True)


def has_grace(connection: Connection) -> bool:
    """Whether something is left, read or in the kernel, that may have come before the deadline: see
    invariant 4.
    """
    # somebody is at the output, then AGAIN will be posted
    if connection.ciphertext or connection.plaintext:
        return True
    # What a step has no budget for is done in the next one.
    if connection.is_due or (connection.takes_messages and input.has_message(connection)):
        return True
    if not connection.readable:
        return False
    received = connection.tally.bytes_received
    if connection.grace == math.inf:
        connection.grace = received + kernel.unread(connection.transport.poll_fd)
    return received < connection.grace


def watch_idleness(connection: Connection) -> None:
    """In a step that a reminder has brought about, and so has read what there is, unless it must
    not: see invariants 2 and 4.
    """
    if connection.loop.config.idle_timeout is None:
        return
    now = time.monotonic()
    unsent = kernel.unsent(connection.transport.poll_fd)
    if unsent != connection.looked_unsent or (
        unsent and connection.tally.bytes_sent != connection.looked_sent
    ):
        connection.last_byte = now
    connection.looked_at, connection.looked_sent, connection.looked_unsent = (
        now,
        connection.tally.bytes_sent,
        unsent,
    )
    if now < connection.last_byte + connection.loop.config.idle_timeout:
        return
    if connection.error is None and (must_not_read(connection) or connection.read_is_due):
        if is_held(connection) or kernel.unread(connection.transport.poll_fd):
            connection.last_byte = now
            return
    elif connection.readable and not (
        connection.input_ended or connection.has_eof or connection.read_is_due
    ):
        return  # there is more to read: AGAIN was posted, and the next reminder follows
    connection.end(Cause.TIMEOUT, code=Timeout.IDLE_TIMEOUT, at_once=True)


def is_held(connection: Connection) -> bool:
    """Whether something that was read is not delivered, be it a part of a message only."""
    return bool(
        connection.decoder.size
        or connection.next_message is not None
        or connection.ciphertext
        or connection.plaintext
        or connection.received
    )


def next_look(connection: Connection) -> float:
    """When `_watch_idleness` is to be called, see invariant 2."""
    seconds = connection.loop.config.idle_timeout
    if seconds is None:
        return math.inf
    idle_at = connection.last_byte + seconds
    moves = connection.looked_unsent or connection.tally.bytes_sent != connection.looked_sent
    return min(idle_at, connection.looked_at + connection.loop.look_every) if moves else idle_at


def must_not_read(connection: Connection) -> bool:
    """Whether reading is paused, by anybody. If it is for want of memory, RESUME will come."""
    return (
        connection.is_paused
        or connection.is_held_back
        or connection.loop.memory.must_wait(connection.token)
    )


def ask_for_reminder(connection: Connection) -> None:
    """See invariant 3 of the deadlines. What ends at once, and waits for who is at the output only,
    has none any more.
    """
    if connection.at_once:
        return
    due = (
        connection.deadline
        if connection.ended_output
        else min(connection.deadline, next_look(connection))
    )
    if due < connection.reminder:
        now = time.monotonic()
        due = due if due > now else now + LATE
        connection.reminder = due
        connection.loop.remind(connection.token, due)
