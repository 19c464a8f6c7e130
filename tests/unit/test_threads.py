"""The Python engine's own threads, and what is set in them."""

import ctypes
import functools
import itertools
import operator
import threading
from collections import deque
from types import SimpleNamespace

from support import PATIENCE, running

from hydrogen._py.log import LogThread
from hydrogen._py.threads import kept_running
from hydrogen._py.worker import Pool

set_late = ctypes.PyDLL(None).PyThreadState_SetAsyncExc
set_late.restype = None


def test_a_thread_outlives_an_exception_that_is_set_as_it_goes_on_after_another():
    """As it is made the first one sets the second, by C code only, so that it comes at the next
    jump.
    """
    iterations = []

    class Late(BaseException):
        pass

    def run():
        order = ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Late)
        Late.__init__ = staticmethod(
            functools.partial(next, map(set_late, *map(itertools.repeat, order, (1, 1))), None)
        )

        def iterate():
            iterations.append(None)
            if len(iterations) == 1:
                set_late(*order)
            return len(iterations) < 3

        kept_running(iterate, lambda _: None)()

    with running(run):
        pass
    assert len(iterations) == 3


def test_the_log_thread_loses_no_line_and_not_its_end_to_an_exception_set_while_it_waits():
    """It comes when the queue has given what the thread waited for."""
    written, interruptions = [], []
    given = iter([functools.partial(written.append, "a line"), None, None, None])

    class Late(BaseException):
        pass

    def run():
        ident = ctypes.c_ulong(threading.get_ident())
        orders = itertools.chain([ctypes.py_object(Late)] * 2, itertools.repeat(ctypes.py_object()))
        late = map(set_late, itertools.repeat(ident), orders)
        lines = map(operator.itemgetter(1), zip(late, given, strict=False))  # by C code only
        log_thread = LogThread(interruptions.append)
        log_thread._lines = SimpleNamespace(get=functools.partial(next, lines))
        log_thread.thread.run()

    with running(run):
        pass
    assert written == ["a line"]
    assert len(list(given)) == 2


def test_a_line_that_an_exception_has_taken_is_told_of():
    """As the line begins; who has asked for it may ask again."""
    written, interruptions = [], []

    class Late(BaseException):
        pass

    def late():
        raise Late

    log_thread = LogThread(interruptions.append)
    log_thread.start()
    log_thread.say(late)
    log_thread.say(written.append, "a line")
    log_thread.end(PATIENCE)
    assert [type(error) for error in interruptions] == [Late]
    assert written == ["a line"]


def test_a_worker_leaves_although_an_exception_comes_as_it_does():
    class Hands(deque):
        """Raises as the last item has gone, whatever that is."""

        def clear(self):
            super().clear()
            raise KeyboardInterrupt

    pool = Pool(
        1, lambda: True, lambda: None, lambda connection, error: None, lambda: None, lambda: False
    )
    pool._workers[0].hands = Hands()
    pool.start()
    assert pool.end(PATIENCE) == 0
