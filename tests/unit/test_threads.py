"""The guard of the Python engine's own threads."""

import ctypes
import functools
import itertools
import threading

from support import running

from hydrogen._py.threads import keep_running

set_late = ctypes.PyDLL(None).PyThreadState_SetAsyncExc
set_late.restype = None


def test_a_thread_outlives_an_exception_that_is_set_as_it_goes_on_after_another():
    """As it is made the first one sets the second, by C code only, so that it comes at the next jump."""
    iterations = []

    class Late(BaseException):
        pass

    def run():
        order = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Late)
        Late.__init__ = staticmethod(functools.partial(next, map(set_late, *map(itertools.repeat, order, (1, 1))), None))

        def iterate():
            iterations.append(None)
            if len(iterations) == 1:
                set_late(*order)
            return len(iterations) < 3

        keep_running(iterate, lambda _: None)

    with running(run):
        pass
    assert len(iterations) == 3
