"""Several engines as one, by engines that only note what is asked of them."""

import pytest

import hydrogen
from hydrogen.loops import Loops, shares
from hydrogen.report import Stats


class Noted:
    """An engine that is released, or asked for its counters."""

    def __init__(self, log, config, first=None):
        self.log, self.config, self.first = log, config, first
        self.told = first.told if first else []

    def exit(self):
        self.told.append(self)

    def release(self, seconds=1.0):
        self.log.append(self)
        self.seconds = seconds
        return 1

    def stats(self):
        self.log.append(self)
        return Stats(accepted=2 if self.first else 5, connections=1)


def several(log, engines, fails_at=None):
    """Three engines of that kind as one; they are added to `engines`."""

    def make(server, callbacks, config, listeners, max_connections, first=None):
        if len(engines) == fails_at:
            raise OSError("no fd is left")
        engines.append(Noted(log, config, first))
        return engines[-1]

    return Loops(make, None, None, hydrogen.Config(loops=3), [], 1)


def test_when_one_cannot_be_made_the_others_are_released():
    released, engines = [], []
    with pytest.raises(OSError, match="no fd is left"):
        several(released, engines, fails_at=2)
    assert released == engines
    assert len(engines) == 2


def test_all_are_told_to_exit_before_the_first_one_is_released_and_have_one_deadline():
    released, engines = [], []
    together = several(released, engines)
    engines[0].release = lambda seconds: len(engines[0].told)  # so many were told by then
    assert together.release(0.0) == 3 + 1 + 1
    assert engines[0].told == engines
    assert [engine.seconds for engine in engines[1:]] == [0.0, 0.0]


def test_all_others_know_the_first_one():
    several([], engines := [])
    assert [engine.first for engine in engines] == [None, engines[0], engines[0]]


def test_the_counters_of_all_are_summed():
    asked, engines = [], []
    together = several(asked, engines)
    assert together.stats() == Stats(accepted=9, connections=3)
    assert asked == engines


def test_what_is_the_server_s_is_shared_out():
    config = hydrogen.Config(
        loops=3,
        max_threads=8,
        pre_allocated=10,
        max_buffered=2,
        framing=hydrogen.SimpleFrameBuilder,
        max_connections=5,
    )
    every = shares(config)
    assert [share.max_threads for share in every] == [3, 3, 2]
    assert {
        (share.loops, share.pre_allocated, share.max_buffered, share.max_connections)
        for share in every
    } == {(1, 3, 1, 5)}
    assert {id(share.builder) for share in every} == {id(config.builder)}
