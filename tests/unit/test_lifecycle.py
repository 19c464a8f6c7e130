"""`Latch`, by which a server's start and stop are waited for."""

from reentry import signalled
from support import running, wait_until

from hydrogen.lifecycle import Latch


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
