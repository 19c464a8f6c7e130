"""The thread that starts and stops a server, and `Latch`, by which it is waited for."""

import ctypes
import functools
import itertools

from reentry import signalled
from support import Echo, running, wait_until

import hydrogen
from hydrogen.lifecycle import Latch

set_late = ctypes.PyDLL(None).PyThreadState_SetAsyncExc
set_late.restype = None


class Interrupt(BaseException):
    """What the signal handler of a test raises."""


def interrupt():
    """A signal handler."""
    raise Interrupt


def test_a_set_that_was_interrupted_at_any_moment_and_is_done_again_loses_nobody_who_waits():
    number, came = 0, True
    while came:
        latch = Latch()
        with running(latch.wait, latch.wait):
            wait_until(lambda: len(latch._waiting) == 2, "two wait")  # noqa: B023
            try:
                came = signalled(latch.set, number, interrupt)
            except Interrupt:
                came = True
            latch.set()
        number += 1
    assert number > 4, "it was interrupted nowhere"


def test_many_may_set_it_at_once():
    for _ in range(50):
        latch = Latch()
        waiters, setters = [latch.wait] * 4, [latch.set] * 4
        with running(*waiters, *setters):
            pass
        assert latch.is_set()
        assert not latch._waiting


def test_a_server_goes_on_though_two_exceptions_in_a_row_are_set_in_its_lifecycle_thread():
    """As it is made the first one sets the second, by C code only, so that it comes at the next
    jump.
    """

    class Late(BaseException):
        pass

    server = hydrogen.serve(Echo(), port=0, max_threads=1)
    try:
        thread = server._life._thread
        order = ctypes.c_ulong(thread.ident), ctypes.py_object(Late)
        Late.__init__ = staticmethod(
            functools.partial(next, map(set_late, *map(itertools.repeat, order, (1, 1))), None)
        )
        asked = server._life._asked
        set_late(*order)
        asked.put(None)  # what it waits for
        wait_until(asked.empty, "it has woken up")
        asked.put(None)  # and again, or it is gone
        wait_until(asked.empty, "it waits as before")
        assert server.ready
        assert not server.wait(0)
    finally:
        server.stop()
