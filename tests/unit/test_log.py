"""The log, with a clock of the test's own: of each kind ten lines a second, and the rest is
counted.
"""

import logging
import re
import threading

import pytest
from reentry import signalled
from support import running

from hydrogen.log import LINES, RateLimitedLog


class Clock:
    """Seconds, as the test sets them; and what is due later, as an engine would do it."""

    def __init__(self):
        self.now = 1000.0
        self.later = []

    def __call__(self):
        return self.now

    def call_later(self, seconds, callback):
        self.later.append((self.now + seconds, callback))

    def advance(self, seconds):
        self.now += seconds
        due = [callback for when, callback in self.later if when <= self.now]
        self.later = [(when, callback) for when, callback in self.later if when > self.now]
        for callback in due:
            callback()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(clock):
    return RateLimitedLog(clock.call_later, clock)


@pytest.fixture
def lines(caplog):
    return lambda: [record.getMessage() for record in caplog.get_records("call")]


def left_out(lines):
    """Kind -> how many lines were said to be left out."""
    counts = {}
    for found in re.finditer(
        r"^(.+): (\d+) more lines of this kind were suppressed$", "\n".join(lines), re.M
    ):
        counts[found[1]] = counts.get(found[1], 0) + int(found[2])
    return counts


def say(log, count, kind="kind", level=logging.WARNING):
    for number in range(count):
        log.say(level, kind, "%s %d", kind, number)


@pytest.mark.clause("S52")
def test_ten_lines_of_a_kind_are_written_in_one_second_and_no_more(log, clock, lines):
    say(log, LINES)
    assert lines() == [f"kind {number}" for number in range(10)]
    say(log, 5)
    clock.advance(0.999)
    say(log, 5)
    assert len(lines()) == 10


@pytest.mark.clause("S52")
def test_when_the_second_is_over_what_was_left_out_is_told_although_nobody_says_anything_more(
    log, clock, lines
):
    say(log, 37)
    clock.advance(1.0)
    assert left_out(lines()) == {"kind": 27}
    assert len(lines()) == 11
    clock.advance(10.0)
    assert len(lines()) == 11
    assert clock.later == []


@pytest.mark.clause("S52")
def test_the_next_line_tells_it_first(log, clock, lines):
    say(log, 12)
    clock.now += 1.5
    say(log, 1)
    assert lines()[10:] == ["kind: 2 more lines of this kind were suppressed", "kind 0"]
    clock.advance(5.0)
    assert len(lines()) == 12


@pytest.mark.clause("S52")
def test_in_the_next_second_there_may_be_ten_again(log, clock, lines):
    for _ in range(5):
        say(log, 25)
        clock.advance(1.0)
    assert len([line for line in lines() if line.startswith("kind ")]) == 50
    assert left_out(lines()) == {"kind": 75}


@pytest.mark.clause("S52")
def test_kinds_are_counted_each_for_itself(log, clock, lines):
    for kind in ("one", "two", "three"):
        say(log, 11, kind)
    assert len(lines()) == 30
    clock.advance(1.0)
    assert left_out(lines()) == {"one": 1, "two": 1, "three": 1}


@pytest.mark.clause("S52")
def test_the_count_has_the_level_of_its_kind(log, clock, caplog, error_log):
    caplog.set_level(logging.DEBUG, logger="hydrogen")
    say(log, 11, "one", logging.DEBUG)
    say(log, 11, "two", logging.ERROR)
    clock.advance(1.0)
    levels = {
        record.getMessage().split(":")[0]: record.levelno
        for record in caplog.records
        if "were suppressed" in record.getMessage()
    }
    assert levels == {"one": logging.DEBUG, "two": logging.ERROR}


@pytest.mark.clause("S52")
def test_what_is_not_enabled_is_neither_written_nor_counted(log, clock, lines):
    say(log, 50, level=logging.DEBUG)
    clock.advance(2.0)
    assert lines() == []
    assert clock.later == []


@pytest.mark.clause("S52")
def test_a_flush_tells_it_at_once_and_once(log, clock, lines):
    say(log, 14)
    log.flush()
    assert left_out(lines()) == {"kind": 4}
    log.flush()
    clock.advance(5.0)
    assert left_out(lines()) == {"kind": 4}


@pytest.mark.clause("S52")
def test_what_is_left_out_when_there_is_no_later_is_told_by_the_flush_at_the_end(clock, lines):
    def no_later(seconds, callback):
        raise RuntimeError("the server is not running")

    log = RateLimitedLog(no_later, clock)
    say(log, 20)
    assert len(lines()) == 10
    log.flush()
    assert left_out(lines()) == {"kind": 10}


@pytest.mark.clause("S51", "S52")
def test_an_error_of_a_callback_is_written_with_its_traceback_and_is_of_the_callback_s_kind(
    log, clock, caplog, error_log
):
    error = ZeroDivisionError("mine")
    for _ in range(12):
        log.callback_error("on_connected", error)
    log.callback_error("on_eof", error)
    records = caplog.get_records("call")
    assert len(records) == 11
    assert {record.levelno for record in records} == {logging.ERROR}
    assert {record.exc_info[1] for record in records} == {error}
    assert records[0].getMessage() == "on_connected raised ZeroDivisionError"
    clock.advance(1.0)
    assert left_out([record.getMessage() for record in caplog.get_records("call")]) == {
        "on_connected": 2
    }


@pytest.mark.clause("S52")
def test_from_many_threads_at_once_nothing_is_lost(log, clock, lines):
    threads = [
        threading.Thread(target=say, args=(log, 200, f"kind{number % 2}")) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert left_out(lines()) == {"kind0": 790, "kind1": 790}
    assert len(lines()) == 22


@pytest.mark.clause("S52")
def test_a_logger_that_logs_again_by_the_log_does_not_block(log, clock):
    """A user's handler of logging may do anything: nothing of the log's is held meanwhile."""

    class Again(logging.Handler):
        def emit(self, record):
            if "again" not in record.getMessage():
                log.say(logging.WARNING, "again", "again")

    handler, logger = Again(), logging.getLogger("hydrogen")
    logger.addHandler(handler)
    try:
        thread = threading.Thread(target=say, args=(log, 12), daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    finally:
        logger.removeHandler(handler)


@pytest.mark.clause("S51", "S52")
def test_that_all_workers_are_blocked_is_written_once_in_ten_seconds(log, clock, lines):
    for _ in range(50):
        log.all_blocked(4)
        clock.advance(0.1)
    say(log, 12)
    clock.advance(1.0)  # what is left out of another kind is told, and nothing of this one
    assert [line for line in lines() if "blocked" in line] == [lines()[0]]
    clock.advance(4.5)
    assert left_out(lines()) == {"kind": 2, "all workers blocked": 49}
    log.all_blocked(4)
    assert lines()[-1] == lines()[0]


@pytest.mark.clause("S51")
def test_an_error_of_a_connection_names_it_and_its_peer(log, lines, error_log):
    class Socket:
        id = 17
        peername = ("192.0.2.1", 5000)

    log.callback_error("on_eof", ZeroDivisionError(), Socket())
    assert lines() == ["on_eof raised ZeroDivisionError on connection 17 from ('192.0.2.1', 5000)"]


@pytest.mark.clause("S59")
@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), BaseException()], ids=repr
)
@pytest.mark.parametrize("where", ["enabled", "clock", "later", "write"])
def test_nothing_that_is_raised_while_a_line_is_written_comes_out(
    clock, monkeypatch, capsys, error, where
):
    def fail(*args, **more):
        raise error

    log = RateLimitedLog(
        fail if where == "later" else clock.call_later, fail if where == "clock" else clock
    )
    logger = logging.getLogger("hydrogen")
    with monkeypatch.context() as patch:
        if where in ("enabled", "write"):
            patch.setattr(logger, {"enabled": "isEnabledFor", "write": "log"}[where], fail)
        thread = threading.Thread(target=say, args=(log, 11))
        thread.start()
        thread.join()
    assert type(error).__name__ in capsys.readouterr().err


@pytest.mark.clause("S59", "S53")
def test_an_interrupt_of_the_main_thread_comes_out(log, monkeypatch):
    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(logging.getLogger("hydrogen"), "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        say(log, 1)


@pytest.mark.clause("S61")
def test_in_a_forked_child_the_lock_of_the_log_is_free(log, lines):
    """Another thread may have held it, which does not exist in the child."""
    held, go = threading.Event(), threading.Event()

    def hold():
        with log._lock:
            held.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    log.forked()
    say(log, 1)
    go.set()
    thread.join()
    assert len(lines()) == 1


def test_a_filter_that_raises_costs_the_line_and_not_the_thread(log, capsys):
    def refuse(record):
        raise LookupError("no such field")

    logger = logging.getLogger("hydrogen")
    logger.addFilter(refuse)
    try:
        log.say(logging.WARNING, "kind", "lost")
    finally:
        logger.removeFilter(refuse)
    assert "LookupError: no such field" in capsys.readouterr().err


@pytest.mark.clause("S61")
def test_what_is_raised_at_any_moment_of_a_line_leaves_the_lock_of_the_log_free(clock, lines):
    def interrupt():
        raise KeyboardInterrupt

    number, came = 0, True
    while came:
        log = RateLimitedLog(clock.call_later, clock)
        try:
            came = signalled(lambda log=log: (say(log, 1), log.flush()), number, interrupt)
        except KeyboardInterrupt:
            came = True
        with running(lambda log=log: (say(log, 1), log.flush())):
            pass
        number += 1
    assert number > 10, "it was interrupted nowhere"
