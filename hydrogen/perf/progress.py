"""The live line on a terminal, drawn by the main thread while the hot loop runs in its own.

Nothing is drawn when standard error is not a terminal. With rich installed the line is rich's;
otherwise it is rewritten with a carriage return.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from hydrogen.perf.generator import Session

INTERVAL = 0.1
"""Seconds between two drawings: a reader sees no more, and drawing takes CPU time from the
measurement.
"""


class Progress:
    """Draws how a session stands; a context manager that leaves the terminal as it was."""

    def __init__(self, session: Session, stream: Any = None) -> None:
        self._session = session
        self._stream = sys.stderr if stream is None else stream
        self.enabled = bool(self._stream.isatty())
        self._live = rich_live(self._stream) if self.enabled else None
        self._seen = (time.monotonic(), 0)
        self._rate = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif self.enabled:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def draw(self) -> None:
        """Draw the present state; the caller keeps to ``INTERVAL``."""
        if not self.enabled:
            return
        line = self._line()
        if self._live:
            self._live.update(line, refresh=True)
        else:
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()

    def _line(self) -> str:
        session = self._session
        if session.phase == "connecting":
            return (
                f"connecting {session.opener.opened:>14,} open {session.opener.failures:>6,} failed"
            )
        now, messages = time.monotonic(), session.loops.messages
        then, before = self._seen
        # The count falls when the warm-up ends and it is reset.
        if messages >= before and now > then:
            self._rate = (messages - before) / (now - then)
        self._seen = (now, messages)
        counters = session.loops.counters()
        line = (
            f"{session.phase:<10} {messages:>14,} messages {self._rate:>12,.0f}/s "
            f"{counters.faults:>6,} faults"
        )
        return (
            f"{line} {counters.late:>8,} late {counters.dropped:>8,} dropped"
            if session.options.rate
            else line
        )


def rich_live(stream: Any) -> Any:
    """A rich display on ``stream``, or None without rich."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    return Live(console=Console(file=stream, highlight=False), auto_refresh=False, transient=True)
