"""Timers without an engine: what is run when, and that an alarm is set while one stands."""

import logging
import threading
import time

import pytest
from reentry import interrupted, signalled

from hydrogen.log import RateLimitedLog
from hydrogen.timers import SLACK, Timers


class Engine:
    """The alarm of an engine: the earliest time that it was asked for, until it rings."""

    def __init__(self):
        self.alarm = None
        self.timers = Timers(RateLimitedLog(lambda seconds, callback: None))

    def set_alarm(self, when):
        self.alarm = when if self.alarm is None else min(when, self.alarm)

    def ring(self):
        """As a worker does when the alarm rings; whether it did."""
        if self.alarm is None or self.alarm > time.monotonic():
            return False
        self.alarm = None
        self.timers.run_due(self.set_alarm)
        return True

    def add(self, seconds, callback):
        """`seconds` from now; may be in the past."""
        return self.timers.add(time.monotonic() + seconds, callback, self.set_alarm)


@pytest.fixture
def clockwork():
    return Engine()


@pytest.mark.clause("S42")
def test_one_ring_runs_one_timer_and_the_alarm_is_set_for_the_next_one(clockwork):
    calls = []
    for number in (2, 0, 1):
        clockwork.add(number - 10, lambda number=number: calls.append(number))
    for count in range(1, 4):
        assert clockwork.ring()
        assert calls == list(range(count))
    assert not clockwork.ring()
    assert clockwork.alarm is None


@pytest.mark.clause("S42")
def test_a_timer_is_called_though_the_alarm_for_the_next_one_could_not_be_set_and_so_is_that_one(
    clockwork, error_log
):
    calls, alarms = [], []
    for number in range(2):
        clockwork.add(number - 10, lambda number=number: calls.append(number))

    def set_alarm(when):
        alarms.append(when)
        if len(alarms) == 1:
            raise MemoryError

    clockwork.timers.run_due(set_alarm)
    assert calls == [0]
    assert len(alarms) == 2, "it is tried again"
    clockwork.timers.run_due(set_alarm)
    assert calls == [0, 1]


@pytest.mark.clause("S42")
def test_a_timer_for_which_there_is_no_alarm_does_not_stand(clockwork):
    calls = []

    def set_alarm(when):
        raise MemoryError

    with pytest.raises(MemoryError):
        clockwork.timers.add(time.monotonic() - 1, lambda: calls.append(1), set_alarm)
    clockwork.timers.run_due(clockwork.set_alarm)
    assert calls == []


@pytest.mark.clause("S42")
def test_of_two_that_are_due_at_the_same_time_the_first_asked_for_comes_first(clockwork):
    calls, when = [], time.monotonic() - 1
    for number in range(10):
        clockwork.timers.add(when, lambda number=number: calls.append(number), clockwork.set_alarm)
    while clockwork.ring():
        pass
    assert calls == list(range(10))


@pytest.mark.clause("S42")
def test_what_is_not_due_is_not_run_and_its_alarm_is_set_again(clockwork):
    calls = []
    clockwork.add(1000, lambda: calls.append("later"))
    later = clockwork.alarm
    clockwork.add(-1, lambda: calls.append("now"))
    assert clockwork.alarm < later
    assert clockwork.ring()
    assert (calls, clockwork.alarm) == (["now"], later)
    clockwork.timers.run_due(clockwork.set_alarm)  # too early
    assert (calls, clockwork.alarm) == (["now"], later)


@pytest.mark.clause("S44")
def test_the_alarm_for_the_next_one_is_set_before_the_callback(clockwork):
    seen = []
    clockwork.add(-2, lambda: seen.append(clockwork.alarm))
    clockwork.add(-1, lambda: seen.append(clockwork.alarm))
    assert clockwork.ring()
    assert seen[0] is not None
    assert clockwork.ring()
    assert seen[1] is None


@pytest.mark.clause("S44", "S42")
def test_a_callback_may_add_one_and_run_others(clockwork):
    calls = []
    clockwork.add(
        -1,
        lambda: (
            clockwork.add(-1, lambda: calls.append("inner")),
            clockwork.ring(),
            calls.append("outer"),
        ),
    )
    assert clockwork.ring()
    assert calls == ["inner", "outer"]


@pytest.mark.clause("S43")
def test_of_the_cancelled_none_is_run_and_the_next_one_is_found_behind_them(clockwork):
    calls = []
    timers = [clockwork.add(-10, lambda: calls.append("cancelled")) for _ in range(5)]
    clockwork.add(-1, lambda: calls.append("called"))
    assert [timer.cancel() for timer in timers] == [True] * 5
    assert [timer.cancel() for timer in timers] == [False] * 5
    assert clockwork.ring()
    assert calls == ["called"]


@pytest.mark.clause("S43")
def test_a_timer_is_run_or_cancelled_and_never_both(clockwork):
    for _ in range(200):
        calls, cancelled = [], []
        timer = clockwork.add(-1, lambda calls=calls: calls.append(1))
        barrier = threading.Barrier(2)

        def cancel(timer=timer, cancelled=cancelled, barrier=barrier):
            barrier.wait(30)
            cancelled.append(timer.cancel())

        thread = threading.Thread(target=cancel)
        thread.start()
        barrier.wait(30)
        clockwork.ring()
        thread.join(30)
        assert len(calls) + cancelled[0] == 1
        clockwork.alarm = None


@pytest.mark.clause("S45")
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("mine"), SystemExit(1), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_what_a_callback_raises_is_logged_and_the_next_one_is_run(clockwork, error_log, error):
    calls = []

    def fail():
        raise error

    clockwork.add(-2, fail)
    clockwork.add(-1, lambda: calls.append("next"))
    assert clockwork.ring()
    assert clockwork.ring()
    assert calls == ["next"]
    (record,) = error_log()
    assert record.levelno == logging.ERROR
    assert record.exc_info[1] is error
    assert "call_later" in record.getMessage()


# ----------------------------------------------------------------------------------------- re-entry


def storm(clockwork, calls):
    """What a signal handler may do."""

    def interrupt():
        for number in range(3):
            timer = clockwork.add(-1, lambda: calls.append("inner"))
            if number:
                assert timer.cancel()
        clockwork.add(1000, print).cancel()

    return interrupt


@pytest.mark.clause("S57", "S42", "S43")
@pytest.mark.parametrize("inside", ["add", "cancel", "ring"])
def test_timers_may_be_added_and_cancelled_between_any_two_lines_of_what_their_thread_does(
    clockwork, inside
):
    number, came = 0, True
    while came:
        calls = []
        timer = clockwork.add(-1, lambda calls=calls: calls.append("outer"))
        call = {
            "add": lambda calls=calls: clockwork.add(-1, lambda: calls.append("added")),
            "cancel": timer.cancel,
            "ring": clockwork.ring,
        }[inside]
        came = interrupted(call, number, storm(clockwork, calls))
        while clockwork.ring():
            pass
        expected = {"add": ["outer", "added"], "cancel": [], "ring": ["outer"]}[inside]
        assert sorted(calls) == sorted(expected + ["inner"] * came), (
            f"interrupted before line {number}"
        )
        number += 1
    assert number > 3


@pytest.mark.clause("S57", "S42")
def test_a_ring_that_finds_another_one_at_work_is_not_lost(clockwork):
    """A worker comes while the other one sorts: what it came for is run at the next ring."""
    number, came = 0, True
    while came:
        calls = []
        clockwork.add(-3, lambda calls=calls: calls.append("first"))

        def another(calls=calls):
            clockwork.add(-2, lambda: calls.append("second"))
            clockwork.ring()

        came = interrupted(clockwork.ring, number, another)
        while clockwork.ring():
            pass
        assert sorted(calls) == ["first", "second"][: 1 + came], f"interrupted before line {number}"
        number += 1


@pytest.mark.clause("S57")
def test_an_interrupt_out_of_any_line_of_add_or_cancel_spoils_no_other_timer(clockwork):
    def raise_interrupt():
        raise KeyboardInterrupt

    for inside in ("add", "cancel"):
        number, came = 0, True
        while came:
            calls = []
            doomed = clockwork.add(-1, lambda: None)
            call = doomed.cancel if inside == "cancel" else lambda: clockwork.add(-1, lambda: None)
            try:
                came = interrupted(call, number, raise_interrupt)
            except KeyboardInterrupt:
                clockwork.add(-1, lambda calls=calls: calls.append("other"))
                while clockwork.ring():
                    pass
                assert calls == ["other"]
            number += 1


@pytest.mark.clause("S43")
def test_what_was_cancelled_does_not_pile_up_though_the_alarm_is_far_off(clockwork):
    clockwork.add(1000, print)
    for _ in range(10_000):
        clockwork.add(1000, print).cancel()
        clockwork.ring()
        assert len(clockwork.timers._heap) + len(clockwork.timers._added) <= 2 + SLACK + 1
    assert len(clockwork.timers._standing) == 1


@pytest.mark.clause("S43", "S44")
def test_a_look_that_fails_for_want_of_memory_is_made_again(clockwork, error_log, monkeypatch):
    calls = []
    clockwork.add(-1, lambda: calls.append("called"))
    with monkeypatch.context() as patch:

        def fail(*args):
            raise MemoryError

        patch.setattr("heapq.heappush", fail)
        assert clockwork.ring()
    assert calls == []
    assert clockwork.alarm is not None
    clockwork.timers.run_due(clockwork.set_alarm)
    assert calls == ["called"]
    assert len(error_log()) == 1


@pytest.mark.parametrize("cancelled", [0, 3 * SLACK])
@pytest.mark.clause("S43", "S44")
def test_an_exception_from_outside_at_any_moment_of_a_ring_costs_no_timer(
    clockwork, error_log, cancelled
):
    class Outside(BaseException):
        pass

    def raise_it():
        raise Outside

    number, came = 0, True
    while came:
        calls = []
        for _ in range(cancelled):  # what stands is so little that the heap is made anew
            clockwork.add(-2, print).cancel()
        for seconds in (-1, -3, -2):
            clockwork.add(seconds, lambda calls=calls, seconds=seconds: calls.append(seconds))
        try:
            came = signalled(clockwork.ring, number, raise_it)
        except Outside:  # as it begins, or leaves: then an engine calls it again
            clockwork.set_alarm(time.monotonic())
        if clockwork.alarm is not None and clockwork.alarm > time.monotonic():
            clockwork.set_alarm(time.monotonic())  # the one by which it tries again a moment later
        while clockwork.ring():
            pass
        assert calls == [-3, -2, -1], f"before moment {number}"
        number += 1
    assert number > 15
