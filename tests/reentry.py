"""Interrupts of a thread between any two lines of what it calls, as signal handlers and `__del__`
come: deterministic, one line after the other."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydrogen

_OURS = (str(Path(hydrogen.__file__).parent), str(threading.__file__))
"""Where: an Event and a Condition are Python, too, and hold locks."""


def interrupted(call: Callable[[], object], number: int, action: Callable[[], object]) -> bool:
    """Call `call`, and `action` before line `number` that it comes to of hydrogen's modules and
    threading's, in this thread.

    What `action` raises comes out of that line, as the exception of a signal handler does.

    Returns:
        Whether it came so far.
    """
    left = number
    came = False

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal left, came
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        if event == "line" and not came:
            if left == 0:
                came = True
                action()
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return came


def signalled(call: Callable[[], object], number: int, action: Callable[[], object]) -> bool:
    """The same, but at those moments only at which CPython runs signal handlers: when a function
    begins, or one of C has returned.

    So a lock that was taken by a call of C code is held then, and a `finally` is not torn from its
    `try`. Loops come round without.
    """
    left = number
    came = False

    def profile(frame: Any, event: str, argument: object) -> None:
        nonlocal left, came
        if (
            came
            or event not in ("call", "c_return")
            or not frame.f_code.co_filename.startswith(_OURS)
        ):
            return
        if left == 0:
            came = True
            action()
        left -= 1

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return came
