"""One step of a connection: what its bits ask for, by its owner."""

from __future__ import annotations

import math
import time

from hydrogen._py import callbacks, closing, deadlines, input, mailbox, opening
from hydrogen._py.connection import Connection, Runner


def step(connection: Connection, runner: Runner) -> None:
    """Do what the bits ask for, and let go. By the owner.

    | bit | while open | once there is an end |
    |---|---|---|
    | NEW | `on_new_connection`, be polled | the same, unless at once: it is told its end |
    | READABLE, AGAIN, RESUME | deliver and read | read and discard |
    | HANGUP | ask for the error after reading | discarding meets it |
    | LOW | `on_writable`; deliver and read | dropped: nothing is delivered any more |
    | DEADLINE | read what came in time, look at the clock | the same, or the time of lingering |
    | STOP | the end, when what was read is delivered | dropped: it ends |
    | CLOSING | (none is posted) | one step further towards the end |
    """
    connection.runner = runner
    bits = connection.take()
    connection.readable |= bool(bits & mailbox.READABLE)
    connection.hung_up |= bool(bits & mailbox.HANGUP)
    if bits & mailbox.DEADLINE:
        connection.reminder = math.inf
        connection.readable = True  # perhaps the edge of what came in time is on its way still
    if bits & mailbox.NEW and not connection.at_once:
        opening.take_up(connection)
    if bits & mailbox.LOW and connection.error is None and connection.ready:
        callbacks.call(
            connection, "on_writable", connection.loop.callbacks.on_writable, connection.socket
        )
    if bits & mailbox.RESUME:  # what was held back came meanwhile, or may have
        connection.last_byte = time.monotonic()
    if connection.header is not None and not connection.stopping:
        opening.serve_header(connection, connection.header)
    input.serve_input(connection)
    if connection.stopping:
        input.throw_away(connection)
        input.end_gracefully(connection)
    if connection.error is None:
        deadlines.watch(connection, pause_ended=bool(bits & (mailbox.RESUME | mailbox.LOW)))
    if connection.error is not None and closing.wind_up(connection):
        runner.hands.clear()
        return
    if bits & mailbox.DEADLINE and not connection.ended_output:
        deadlines.watch_idleness(connection)
    connection.account_input()
    deadlines.ask_for_reminder(connection)
    connection.let_go(runner.hands)
