"""The Python engine's own threads, and what is set in them."""

import ctypes
import functools
import itertools
import operator
import threading
from types import SimpleNamespace

from support import running

from hydrogen._py.log import LogThread
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


def test_the_log_thread_loses_neither_a_line_nor_its_end_to_an_exception_that_is_set_while_it_waits():
    """It comes when the queue has given what the thread waited for."""
    written = []
    given = iter([functools.partial(written.append, "a line"), None, None, None])

    class Late(BaseException):
        pass

    def run():
        ident = ctypes.c_ulong(threading.get_ident())
        orders = itertools.chain([ctypes.py_object(Late)] * 2, itertools.repeat(ctypes.py_object()))
        late = map(set_late, itertools.repeat(ident), orders)
        lines = map(operator.itemgetter(1), zip(late, given, strict=False))  # by C code only
        log_thread = LogThread()
        log_thread._lines = SimpleNamespace(get=functools.partial(next, lines))
        log_thread._run()

    with running(run):
        pass
    assert written == ["a line"]
    assert len(list(given)) == 2
