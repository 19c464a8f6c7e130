"""The watchdog: a thread that looks for callbacks which run for longer than `Config.slow_callback`,
and logs where they are.

It is there only when that is set, and looks four times in that time. It needs the GIL to look, so a
callback that holds on to it in C code is found late. Where there is no GIL it tells which worker,
and not where: a frame that runs in another thread must not be looked at there (Python's
free-threading HOWTO). Nothing here acts: a slow callback is told of, once, and left alone.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial

from hydrogen.errors import class_name
from hydrogen.guard import outlive
from hydrogen.log import RateLimitedLog

MAY_DEADLOCK = sys.version_info < (3, 11, 9) or (3, 12) <= sys.version_info < (3, 12, 3)
"""Whether the collector may run within `sys._current_frames`, with a lock held that others wait for
who have the GIL (CPython's issue 106883)."""

ENDED = "(no stack: the worker has ended in the meantime)"


def has_gil() -> bool:
    """Whether no two threads run Python at once."""
    if sys.version_info >= (3, 13):
        return sys._is_gil_enabled()
    return True


class Watchdog:
    """Watches the workers of one engine.

    Attributes:
        slow: callbacks found so far that ran for too long.
    """

    def __init__(
        self, seconds: float, running: Callable[[], list[tuple[int, int]]], log: RateLimitedLog
    ) -> None:
        """Args: seconds: of `slow_callback`. running: see `backend.Engine.running`."""
        self._seconds = seconds
        self._running = running
        self._log = log
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=partial(outlive, self._watch), name="hydrogen-watchdog", daemon=True
        )
        self._seen: dict[tuple[int, int], float] = {}  # since when each callback runs
        self._told: set[tuple[int, int]] = set()
        self.slow = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self, patience: float) -> None:
        """End the thread, and wait for that, at most `patience` seconds: a log handler may keep it.
        May be called again.
        """
        self._ended.set()
        if self._thread.is_alive():  # it may never have been started
            self._thread.join(patience)

    def is_mine(self) -> bool:
        """Whether the calling thread is the watchdog."""
        return threading.current_thread() is self._thread

    def _watch(self, error: BaseException | None) -> None:
        """Until the end; first tell of `error`, by which it was interrupted: want of memory, or a
        fault of ours.
        """
        while not self._ended.is_set():
            try:
                if error is not None:
                    told, error = error, None
                    time.sleep(self._seconds / 4)
                    self._log.say(
                        logging.ERROR,
                        "watchdog",
                        "the watchdog could not check the workers",
                        error=told,
                    )
                while not self._ended.wait(self._seconds / 4):
                    self._look()
            except BaseException as raised:
                error = raised

    def _look(self) -> None:
        now = time.monotonic()
        self._seen = {key: self._seen.get(key, now) for key in self._running()}
        self._told &= self._seen.keys()
        for key, since in self._seen.items():
            if now - since >= self._seconds and key not in self._told:
                self._told.add(key)
                self._tell(key[0], now - since)

    def _tell(self, ident: int, seconds: float) -> None:
        self.slow += 1
        name = next(
            (thread.name for thread in threading.enumerate() if thread.ident == ident), "a worker"
        )
        self._log.say(
            logging.WARNING,
            "slow callback",
            "a callback has been running for %.3f s in %s:\n%s",
            seconds,
            name,
            _stack_of(ident),
        )


def _dumped(ident: int) -> str:
    """The stack of a thread by faulthandler, which allocates nothing, and knows 100 threads."""
    with open(
        os.memfd_create("hydrogen-watchdog"), "w+", encoding="utf-8", errors="replace"
    ) as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        text = file.read()
        for stack in text.split("\n\n"):
            if f"0x{ident:016x}" in stack.partition("\n")[0]:
                places = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', stack, re.MULTILINE)
                found = [(path, int(line), name, None) for path, line, name in reversed(places)]
                return "".join(traceback.StackSummary.from_list(found).format())
    return "(no stack: there are too many threads)" if "\n...\n" in text else ENDED


def _stack_of(ident: int) -> str:
    if not has_gil():
        return "(no stack: without a GIL it cannot be read safely)"
    if MAY_DEADLOCK:
        try:
            return _dumped(ident)
        except Exception as error:  # out of fds, just because of what is slow; no memfd_create(2)
            return f"(no stack: {class_name(error)}: {error})"
    frame = sys._current_frames().get(ident)
    if frame is None:
        return ENDED
    try:
        return "".join(traceback.format_stack(frame))
    except BaseException:  # it asks the loaders of the user's modules for the source
        places = [(found.f_code, line) for found, line in traceback.walk_stack(frame)]
        return "".join(
            [f"  {code.co_filename}:{line} in {code.co_name}\n" for code, line in reversed(places)]
        )
