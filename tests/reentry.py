"""Interrupts of a thread between any two lines of what it calls, as signal handlers and `__del__` come: deterministic, one
line after the other."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydrogen

_OURS = str(Path(hydrogen.__file__).parent)


def interrupted(call: Callable[[], object], number: int, action: Callable[[], object]) -> bool:
    """Call `call`, and `action` before line `number` of hydrogen's that it comes to, in this thread; whether it came so far.

    What `action` raises comes out of that line, as the exception of a signal handler does.
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
