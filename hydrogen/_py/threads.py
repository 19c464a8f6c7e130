"""What the threads of the engine but its workers run in."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from hydrogen._py import kernel
from hydrogen.guard import outlive

PAUSE = 0.05
"""Seconds until a thread goes on after an iteration that failed: memory may come back, and a fault
of ours must not become a load."""


def kept_running(
    iterate: Callable[[], bool], recover: Callable[[BaseException], None]
) -> Callable[[], None]:
    """The target of a thread that calls `iterate` until it returns False, whatever it raises. For
    all but workers.

    After an iteration that raised comes `recover` with the error, at once, for somebody waits for
    what was left undone, and then until it does not raise. All that allocates is done where what it
    raises is caught, or here, by who starts the thread: for want of memory anything may fail.
    """
    return partial(outlive, partial(_keep_running, iterate, recover))


def _keep_running(
    iterate: Callable[[], bool],
    recover: Callable[[BaseException], None],
    error: BaseException | None,
) -> None:
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
