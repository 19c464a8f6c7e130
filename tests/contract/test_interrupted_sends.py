"""Ctrl-C in a thread that sends, wherever it comes: nothing that was taken waits for somebody who
sends again.
"""

import logging
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
from families import PassThrough
from reentry import signalled
from support import recorder, running, wait_until

import hydrogen

ENGINE = Path(hydrogen.__file__).parent / "_py"
OUTPUT = {str(ENGINE / name) for name in ("output.py", "buffer.py", "socket.py")}
"""What runs in the Python engine; not `role.py`, where no exception comes between two lines of a
`finally` that call nothing.

In the compiled engine no Python runs that could be interrupted.
"""


def interrupted(call, line, action, since=(True,)):
    """Call `call`; at line number `line`, of those of the engine that are run since there is
    something in `since`, have `action` called and raise KeyboardInterrupt.

    Whether it came to that.
    """
    left = line

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in OUTPUT:
            return None
        if event == "line" and since:
            left -= 1
            if left < 0:
                sys.settrace(None)
                action()
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return left < 0  # it came where nothing can be raised


@pytest.mark.clause("K6", "K18")
def test_an_interrupted_send_leaves_nothing_unwritten_but_may_end_the_connection(start, connect):
    """Another thread sends just before."""
    handler = recorder(connected=None)
    server = start(handler)
    lines = survivors = 0
    while True:
        client = connect(server)
        handler.wait_for("connected", lines + 1)
        socket = handler.socket(lines)
        taken = []

        def other(socket=socket, taken=taken):
            taken.append(socket.send(b"other"))

        def action(other=other):
            with running(other):
                pass

        if not interrupted(lambda socket=socket: socket.send(b"mine"), lines, action):
            break
        wait_until(
            lambda socket=socket: not (socket.is_open and socket.pending),
            f"all is written, line {lines}",
        )
        if socket.is_open:
            survivors += 1
            if taken == [True]:
                socket.close()
                received = client.receive_until_end()
                assert received.count(b"other") == 1
                assert received.count(b"mine") <= 1
        client.close()
        lines += 1
    assert survivors >= lines / 2


@pytest.mark.clause("K6", "K18")
def test_an_interrupted_send_loses_no_message_that_another_thread_has_left_to_it(
    start, connect, error_log
):
    """It came while this thread was in the stream. The connection may end: then it is known that
    something is missing.
    """
    actions = []

    class Stream(PassThrough):
        def send(self, buf):
            if actions:
                actions.pop()()
            super().send(buf)

    handler = recorder(new_connection=Stream, connected=None)
    server = start(handler)
    connections = lines = survivors = 0
    came = True
    while came:
        client = connect(server)
        connections += 1
        handler.wait_for("connected", connections)
        socket = handler.socket(connections - 1)
        left = []

        writers = []

        def leave(socket=socket, left=left, writers=writers):
            with running(lambda: left.append(socket.send(b"other"))):
                pass
            writers.append(threading.current_thread())

        actions.append(leave)
        came = interrupted(lambda socket=socket: socket.send(b"mine"), lines, lambda: None, left)
        wait_until(
            lambda socket=socket: not (socket.is_open and socket.pending),
            f"all is written, line {lines}",
        )
        if writers != [threading.current_thread()]:
            # a worker was in the stream, to receive, and wrote for this thread: once more
            came = True
            socket.abort()
            continue
        if socket.is_open:
            survivors += 1
            socket.close()
            assert left == [True]
            assert client.receive_until_end() == b"mineother"
        client.close()
        lines += 1
    assert survivors
    assert all(
        "Stream.send raised KeyboardInterrupt" in record.getMessage() for record in error_log()
    )


@pytest.mark.clause("K7", "K18")
def test_a_signal_handler_that_drains_within_a_send_does_not_wait_for_its_own_thread(
    start, connect
):
    """The peer reads all the time; what the handler gets is True, or False where it has interrupted
    who writes.
    """
    handler = recorder(connected=None)
    client = connect(start(handler, write_buffer_limits=(1, 2)))
    handler.wait_for("connected")
    socket = handler.socket()
    moments, came = [0], True

    def send():
        nonlocal came
        while came:
            came = signalled(
                lambda: socket.send(bytes(100_000)), moments[-1], lambda: socket.drain(None)
            )
            moments.append(len(moments))

    def end():
        try:
            wait_until(lambda: not came, "no drain is waited for")
        finally:  # which ends a drain that waits
            socket.abort()

    with running(client.at_end, send, end):
        pass


class Raises(PassThrough):
    """A stream whose `send` raises."""

    senders: ClassVar = []

    def send(self, buf):
        self.senders.append(threading.current_thread())
        raise self.error()

    error = ValueError


def interrupted_send(start, connect, handler):
    """The removal error of a connection in whose stream this thread was interrupted as it sent.

    A worker that is in the stream, because of the first edges, writes for this thread: then again.
    """
    server, number = start(handler), 0
    while True:
        connect(server)
        number += 1
        handler.wait_for("connected", number)
        try:
            handler.socket(number - 1).send(b"x")
        except KeyboardInterrupt:
            return handler.wait_removed(number)[number - 1]
        handler.wait_removed(number)
        assert Raises.senders[-1] is not threading.main_thread(), "it was lost"


@pytest.mark.clause("K6", "T4")
def test_a_message_whose_stream_raises_was_taken(start, connect, error_log):
    """As one that the kernel does not take: it is the connection that ends."""
    answers = []

    def received(socket, data):
        answers.append(socket.send(b"in a callback"))

    handler = recorder(new_connection=Raises, connected=None, data_received=received)
    server = start(handler)
    connect(server)
    handler.wait_for("connected")
    assert handler.socket(0).send(b"by another thread")
    handler.wait_removed()
    connect(server).send(b"x")
    handler.wait_removed(2)
    assert answers == [True]
    assert server.stats().messages_refused == 0
    assert server.stats().messages_sent == 2


@pytest.mark.clause("K6", "T4")
def test_ctrl_c_while_it_is_logged_what_a_stream_raised_is_not_lost(start, connect):
    class Interrupts(logging.Handler):
        def emit(self, record):
            if (
                threading.current_thread() is threading.main_thread()
                and "send raised" in record.getMessage()
            ):
                raise KeyboardInterrupt

    handler = recorder(new_connection=Raises, connected=None)
    interrupts, log = Interrupts(), logging.getLogger("hydrogen")
    log.addHandler(interrupts)
    log.propagate = False
    try:
        error = interrupted_send(start, connect, handler)
    finally:
        log.removeHandler(interrupts)
        log.propagate = True
    assert type(error) is hydrogen.HandlerError
    assert type(error.__cause__) is ValueError


@pytest.mark.clause("K6", "T4")
def test_ctrl_c_while_an_error_of_a_stream_is_put_into_words_is_not_lost(start, connect, error_log):
    class Interrupted(Exception):
        comes = True

        def __str__(self):
            if self.comes and threading.current_thread() is threading.main_thread():
                Interrupted.comes = False
                raise KeyboardInterrupt
            return "in words"

    class RaisesThat(Raises):
        error = Interrupted

    handler = recorder(new_connection=RaisesThat, connected=None)
    error = interrupted_send(start, connect, handler)
    assert type(error) is hydrogen.HandlerError
    assert "in words" in str(error)
