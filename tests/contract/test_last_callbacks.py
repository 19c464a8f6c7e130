"""The last callbacks of a connection come each, and once, whatever the one before has raised, and
however hostile that is.
"""

import os
import threading

import pytest
from families import PassThrough
from support import echo, recorder, wait_until

import hydrogen

ENDS = ("shutdown", "on_disconnected", "on_connection_removed", "close")
"""Of a connection with a stream of the user's, in order."""

ROUNDS = 3
"""More than there are workers."""


def is_asked_by_pytest():
    """The main thread is no engine's: what a test raises there has to be reported."""
    return threading.current_thread() is threading.main_thread()


class NamelessType(type):
    @property
    def __name__(cls):
        if is_asked_by_pytest():
            return "Nameless"
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=NamelessType):
    """Its class has no name."""


class Veiled(Exception):
    """Even its class is not to be asked for."""

    @property
    def __class__(self):
        if is_asked_by_pytest():
            return Veiled
        raise Veiled


class Untraceable(Exception):
    """Has no traceback that could be had."""

    @property
    def __traceback__(self):
        if is_asked_by_pytest():
            return None
        raise RuntimeError("no traceback")


ERRORS = (
    ZeroDivisionError,
    SystemExit,
    MemoryError,
    hydrogen.Reject,
    Nameless,
    Veiled,
    Untraceable,
)


class Reads(PassThrough):
    """A stream of the user's that says how it ends."""

    def __init__(self, fd, ends):
        super().__init__(fd)
        self.ends = ends

    def shutdown(self):
        self.ends("shutdown")

    def close(self):
        os.close(self.fd)
        self.ends("close")


@pytest.mark.clause("H13", "H14", "H17", "T6")
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("raising", [*((name,) for name in ENDS), ENDS], ids="+".join)
@pytest.mark.parametrize("kind", ["socket", "stream"])
def test_each_of_the_last_callbacks_comes_once_whatever_the_one_before_raised(
    start, connect, kind, raising, error, error_log
):
    came = []

    def ends(name):
        came.append(name)
        if name in raising:
            raise error

    def stream(fd):
        return Reads(fd, ends) if kind == "stream" else None

    handler = recorder(
        new_connection=stream,
        data_received=echo,
        disconnected=lambda socket, error: ends("on_disconnected"),
        connection_removed=lambda fd, error: ends("on_connection_removed"),
    )
    server = start(handler, max_threads=ROUNDS - 1)
    stays = connect(server)
    stays.echo(b"before")
    expected = [name for name in ENDS if kind == "stream" or name.startswith("on_")]
    for _ in range(ROUNDS):
        came.clear()
        client = connect(server)
        client.echo(b"x")
        client.finish()
        client.at_end()
        wait_until(lambda: len(came) >= len(expected), f"{expected}; there came {came}")
        wait_until(lambda: server.stats().connections == 1, "its slot is free")
        assert came == expected
        client.close()
        stays.echo(b"served")


@pytest.mark.clause("H14", "H17")
@pytest.mark.parametrize("error", [error for error in ERRORS if error is not Untraceable])
def test_what_ended_the_connection_is_told_though_each_callback_raises(
    start, connect, error, error_log
):
    """The first exception is the reason; those of the last callbacks do not take its place."""

    def fail(*arguments):
        raise error

    handler = recorder(data_received=fail, disconnected=fail, connection_removed=fail)
    server = start(handler, max_threads=2)
    for number in range(ROUNDS):
        client = connect(server)
        client.send(b"x")
        client.at_end()
        client.close()
        removed = handler.wait_removed(number + 1)[number]
        assert type(removed) is hydrogen.HandlerError
        assert type(removed.__cause__) is error
        assert handler.of("disconnected")[number].value is removed
    wait_until(lambda: server.stats().removed_handler_error == ROUNDS, "they are counted")
