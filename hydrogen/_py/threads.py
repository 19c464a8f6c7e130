"""The outermost guards of the engine's threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from hydrogen._py import kernel

PAUSE = 0.05
"""Seconds until a thread goes on after an iteration that failed: memory may come back, and a fault of
ours must not become a load."""


def outlive(work: Callable[[BaseException | None], None]) -> None:
    """Call `work` with None, then with what it raises, until it returns.

    For a loop that catches everything itself: an asynchronous exception may come at the very jump by
    which its guard goes on after it has caught another, and there that guard does not reach.
    """
    error: BaseException | None = None
    while True:
        try:
            work(error)
            return
        except BaseException as raised:
            error = raised


def keep_running(iterate: Callable[[], bool], recover: Callable[[BaseException], None]) -> None:
    """Call `iterate` until it returns False, whatever it raises. For all but workers.

    After an iteration that raised comes `recover` with the error, at once, for somebody waits for what
    was left undone, and then until it does not raise. All that allocates is done where what it raises
    is caught: for want of memory anything may fail.
    """
    outlive(partial(_keep_running, iterate, recover))


def _keep_running(iterate: Callable[[], bool], recover: Callable[[BaseException], None], error: BaseException | None) -> None:
    is_new = True
    is_failing = False
    while True:
        try:
            if is_new:
                kernel.block_signals()
                is_new = False
            if is_failing:
                time.sleep(PAUSE)
            if error is not None:
                is_failing = True
                recover(error)
                error = None
                is_failing = False
                time.sleep(PAUSE)
            while iterate():
                pass
            return
        except BaseException as raised:
            error = raised
