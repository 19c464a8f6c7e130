"""Ctrl-C in a thread that sends, wherever it comes: nothing that was taken waits for somebody who sends again."""

import sys
from pathlib import Path

import pytest
from support import recorder, running, wait_until

import hydrogen

ENGINE = Path(hydrogen.__file__).parent / "_py"
OUTPUT = {str(ENGINE / name) for name in ("output.py", "buffer.py", "socket.py")}
"""What runs in the Python engine; not `role.py`, where no exception comes between two lines of a `finally` that call nothing.

In the compiled engine no Python runs that could be interrupted.
"""


def interrupted(call, line, action):
    """Call `call`; at line number `line`, of those of the engine that are run, have `action` called and raise KeyboardInterrupt.

    Whether it came to that.
    """
    left = line

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in OUTPUT:
            return None
        if event == "line":
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
        wait_until(lambda socket=socket: not (socket.is_open and socket.pending), f"all is written, line {lines}")
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
