"""What the Python engine counts, where memory is out: all of a change, or none of it."""

from types import SimpleNamespace
from typing import ClassVar

import pytest

from hydrogen._py.slab import Slab


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
    slab._tenants, slab._generations, slab._vacant = Failing(slab._tenants), Failing(slab._generations), Failing(slab._vacant)
    Failing.left = number
    with pytest.raises(MemoryError):
        slab.acquire(lambda token: SimpleNamespace(token=token))
    assert len(slab) == len(slab.snapshot()) == 1
    slab.acquire(lambda token: SimpleNamespace(token=token))
    assert len(slab) == len(slab.snapshot()) == 2
