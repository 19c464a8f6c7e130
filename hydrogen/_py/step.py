"""One step of a connection: what its bits ask for, by its owner."""

from __future__ import annotations

import math

from hydrogen._py import callbacks, closing, deadlines, input, mailbox, opening
from hydrogen._py.connection import Connection, Runner


def step(connection: Connection, runner: Runner) -> bool:
    """Do what the bits ask for, and let go; True when there is more to do, and the connection still owned. By the owner."""
    connection.runner = runner
    bits = connection.take()
    connection.readable |= bool(bits & mailbox.READABLE)
    connection.hung_up |= bool(bits & mailbox.HANGUP)
    if bits & mailbox.DEADLINE:
        connection.reminder = math.inf
        connection.readable = True  # perhaps the edge of what came in time is on its way still
    if bits & mailbox.NEW and not connection.at_once:
        opening.take_up(connection)
    if bits & mailbox.WRITABLE:
        connection.flush()
    if bits & mailbox.LOW and connection.error is None and connection.ready and connection.loop.callbacks.on_writable is not None:
        callbacks.call(connection, "on_writable", connection.loop.callbacks.on_writable, connection.socket)
    if connection.header is not None:
        opening.serve_header(connection, connection.header)
    input.serve_input(connection)
    if connection.error is None:
        deadlines.watch(connection, pause_ended=bool(bits & (mailbox.RESUME | mailbox.LOW)))
    if bits & mailbox.DEADLINE and connection.error is None:
        deadlines.watch_idleness(connection)
    if connection.error is not None and closing.wind_up(connection):
        return False
    connection.account_input()
    deadlines.ask_for_reminder(connection)
    return not connection.let_go()
