"""What the Python engine counts, where it is interrupted, or memory is out: all of a change, or
none of it.
"""

import ctypes
import functools
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest

from hydrogen._py.addresses import Limits, Place
from hydrogen._py.slab import Slab
from hydrogen._py.statistics import Statistics
from hydrogen.errors import Cause


class Late(BaseException):
    """What a library for timeouts sets."""


class Interrupting(dict):
    """A lookup, by C code only, gives 1 and sets `Late` in this thread, which CPython raises when
    it next looks for that: behind a call and, 3.10 does, where a condition that does not hold makes
    it jump.
    """

    def __init__(self, items):
        super().__init__(items)
        set_late = functools.partial(
            ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.c_ulong(threading.get_ident())
        )
        type(self).__getitem__ = staticmethod(functools.partial(set_late, ctypes.py_object(Late)))


def interrupt(work):
    """Do `work`, which looks up something interrupting."""
    try:
        work()
        time.sleep(0)  # here at last
    except Late:
        return
    raise AssertionError("nothing was set")


def test_an_address_is_not_counted_for_a_connection_that_has_left_it():
    limits, place = Limits(10, 1, lambda: 0), Place()
    assert limits.enter(place, "10.0.0.1")
    limits._of_address = Interrupting(limits._of_address)
    interrupt(lambda: limits.leave(place))
    limits._of_address = dict(limits._of_address)
    limits.leave(place)  # as is done after an exception
    assert limits._of_address == {}


def test_a_removal_is_counted_once():
    statistics = Statistics(Slab(1))
    statistics.removed = Interrupting({Cause.OS_ERROR: 1})
    connection = SimpleNamespace(cause=Cause.OS_ERROR, code=0, is_counted=False)
    interrupt(lambda: statistics.count_removal(connection))
    statistics.removed = dict(statistics.removed)
    statistics.count_removal(connection)  # as is done after an exception
    assert statistics.removed == {Cause.OS_ERROR: 2}


class Failing(list):
    """Of which the change that `left` comes to 0 at fails."""

    left: ClassVar[int]

    def __setitem__(self, index, value):
        Failing.left -= 1
        if Failing.left == 0:
            raise MemoryError
        super().__setitem__(index, value)


@pytest.mark.parametrize("number", range(1, 6))
def test_no_slot_is_lost_where_there_is_no_memory_to_add_one(number):
    slab = Slab(1)
    slab.acquire(lambda token: SimpleNamespace(token=token))
    slab._tenants, slab._generations, slab._vacant = (
        Failing(slab._tenants),
        Failing(slab._generations),
        Failing(slab._vacant),
    )
    Failing.left = number
    with pytest.raises(MemoryError):
        slab.acquire(lambda token: SimpleNamespace(token=token))
    assert len(slab) == len(slab.snapshot()) == 1
    slab.acquire(lambda token: SimpleNamespace(token=token))
    assert len(slab) == len(slab.snapshot()) == 2
