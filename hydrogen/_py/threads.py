"""The outermost guard of the engine's own threads: the event, the accept, the monitor and the log thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from hydrogen._py import kernel

PAUSE = 0.05
"""Seconds until a thread goes on after an iteration that failed: memory may come back, and a fault of
ours must not become a load."""


def keep_running(iterate: Callable[[], bool], recover: Callable[[BaseException], None]) -> None:
    """Call `iterate` until it returns False, whatever it raises.

    After an iteration that raised comes `recover` with the error, at once, for somebody waits for what
    was left undone, and then until it does not raise. All that allocates is done where what it raises
    is caught: for want of memory anything may fail. There are two guards: an asynchronous exception may
    come at the very jump by which one that has caught another goes on, and there it does not reach.
    """
    error: BaseException | None = None
    while True:
        try:
            _keep_running(iterate, recover, error)
            return
        except BaseException as raised:
            error = raised


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
