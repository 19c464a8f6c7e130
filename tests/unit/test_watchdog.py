"""The watchdog, with workers of the test's own: it tells of each callback that is slow once, with
its stack.
"""

import logging
import threading

import pytest
from support import PATIENCE, running, wait_event, wait_until

from hydrogen.log import RateLimitedLog
from hydrogen.watchdog import Watchdog, has_gil


class Workers:
    """What an engine's `running` answers."""

    def __init__(self):
        self.inside = {}

    def running(self):
        return list(self.inside.items())


@pytest.fixture
def workers():
    return Workers()


@pytest.fixture
def watchdog(workers):
    watchdog = Watchdog(0.02, workers.running, RateLimitedLog(lambda seconds, callback: None))
    watchdog.start()
    yield watchdog
    watchdog.end(PATIENCE)


@pytest.fixture
def lines(caplog):
    return lambda: [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.levelno == logging.WARNING
    ]


def lingering_in_a_function_of_this_name(workers, event):
    workers.inside[threading.get_ident()] = 1
    wait_event(event, "let go")
    del workers.inside[threading.get_ident()]


@pytest.mark.clause("C41")
def test_a_slow_callback_is_told_of_once_with_its_stack_and_counted(workers, watchdog, lines):
    go = threading.Event()
    with running(lambda: lingering_in_a_function_of_this_name(workers, go)):
        wait_until(lambda: watchdog.slow == 1, "it is found slow")
        # another, which is found later, when the first has been slow for as long again
        workers.inside[0] = 7
        wait_until(lambda: watchdog.slow == 2, "so is the other")
        go.set()
    wait_until(lambda: len(lines()) == 2, "both are logged")
    assert (
        "lingering_in_a_function_of_this_name" if has_gil() else "no stack: without a GIL"
    ) in lines()[0]
    assert ("has ended in the meantime" if has_gil() else "no stack: without a GIL") in lines()[1]


@pytest.mark.clause("C41")
@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), AttributeError("no such")])
def test_a_callback_is_told_of_although_no_stack_can_be_had(
    workers, watchdog, lines, monkeypatch, error
):
    """Where the stack goes by way of a file: fds run out just because callbacks are slow."""

    def fail(name):
        raise error

    monkeypatch.setattr("hydrogen.watchdog.MAY_DEADLOCK", True)
    monkeypatch.setattr("hydrogen.watchdog.has_gil", lambda: True)
    monkeypatch.setattr("os.memfd_create", fail)
    workers.inside[threading.get_ident()] = 1
    wait_until(lambda: len(lines()) == 1, "it is logged")
    assert f"no stack: {type(error).__name__}" in lines()[0]


@pytest.mark.slow
@pytest.mark.clause("C41")
def test_each_callback_of_one_worker_has_its_own_time(workers, lines):
    """The first worker goes from one callback to the next, faster than it takes to be slow; the
    second lingers.
    """
    number = 0
    watchdog = Watchdog(1.0, workers.running, RateLimitedLog(lambda seconds, callback: None))
    watchdog.start()
    workers.inside[2] = 1

    def next_one():
        nonlocal number
        number += 1
        workers.inside[1] = number
        return watchdog.slow

    try:
        wait_until(next_one, "the second is found slow")
    finally:
        watchdog.end(PATIENCE)  # which waits for the line
    assert watchdog.slow == 1
    assert len(lines()) == 1


@pytest.mark.clause("C41")
def test_a_worker_may_be_slow_again_in_its_next_callback(workers, watchdog):
    for number in range(1, 4):
        workers.inside[1] = number
        wait_until(lambda number=number: watchdog.slow == number, "it is found slow")


@pytest.mark.clause("C41")
def test_nobody_is_told_of_when_nobody_works(workers, watchdog, lines):
    other = Workers()
    other.inside[1] = 1
    second = Watchdog(0.02, other.running, RateLimitedLog(lambda seconds, callback: None))
    second.start()
    wait_until(lambda: second.slow == 1, "another watchdog has found one")
    second.end(PATIENCE)
    assert watchdog.slow == 0


def test_it_ends_although_its_time_is_long(workers):
    watchdog = Watchdog(
        1_000_000.0, workers.running, RateLimitedLog(lambda seconds, callback: None)
    )
    watchdog.start()
    watchdog.end(PATIENCE)


def test_it_outlives_an_exception_that_comes_while_it_tells_of_another(workers):
    looks = threading.Semaphore(0)

    class Log:
        """In which it comes."""

        said = 0

        def say(self, *arguments, **named):
            self.said += 1
            if self.said == 1:
                raise KeyboardInterrupt

    def running_ones():
        looks.release()
        raise KeyboardInterrupt

    watchdog = Watchdog(0.004, running_ones, Log())
    watchdog.start()
    try:
        for _ in range(3):
            assert looks.acquire(timeout=PATIENCE), "it looks no more"
    finally:
        watchdog.end(PATIENCE)
