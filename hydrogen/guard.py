"""The outermost guard of a thread that must not end before its work is done. Knows nothing of
engines.
"""

from __future__ import annotations

from collections.abc import Callable


def outlive(work: Callable[[BaseException | None], None]) -> None:
    """Call `work` with None, then with what it raises, until it returns.

    For a loop that catches everything itself: an asynchronous exception (PyThreadState_SetAsyncExc)
    may come at the very jump by which its guard goes on after it has caught another, and there that
    guard does not reach. A third one that comes at the jump of this one is not outlived.
    """
    error: BaseException | None = None
    while True:
        try:
            work(error)
            return
        except BaseException as raised:
            error = raised
