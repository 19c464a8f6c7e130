"""The table: for each state and each event what the user and the peer see.

See `document.Cells`.
"""

from __future__ import annotations

import ssl

from states.builders import STATES
from states.document import Cell, Cells, Table
from states.events import EVENTS
from states.outcomes import (
    all_are_reset,
    all_end,
    another,
    at_once,
    bare_end,
    closed,
    delivered,
    dropped,
    end,
    ends,
    held,
    outlasted,
    reached,
    read,
    refused,
    released,
    reset,
    rest,
    resumed,
    serves,
    still_open,
    taken,
    timed_out,
    unharmed,
    written_to,
)

from hydrogen import IncompleteFrame, LocalClosed, PeerClosed, ServerStopped

PEER_CLOSED = ends(PeerClosed)
LOCAL_CLOSED = ends(LocalClosed)
STOPPED = ends(ServerStopped)
RESET = ends(ConnectionResetError)
BROKEN = ends(ConnectionResetError, BrokenPipeError)
TRUNCATED = ends(ssl.SSLEOFError)
INCOMPLETE = ends(IncompleteFrame)

SERVES = (delivered, serves)
RESUMED = (resumed, delivered, serves)
HELD = (held, *RESUMED)
LOCAL_END = (end, LOCAL_CLOSED, dropped)
LOCAL_RESET = (reset, LOCAL_CLOSED, dropped)
SERVER_END = (end, STOPPED, dropped)
SERVER_RESET = (reset, STOPPED, dropped)
SERVER_LATE = (STOPPED, reset, dropped)

NO_LINGER = "it does not linger"
NO_OUTPUT = "no output is pending"
NO_SOCKET = "nobody holds its socket yet"
NO_FRAME = "frames begin later"
NO_MORE = "the peer has ended its side"
NO_PEER = "there is no peer any more"
NO_UNREAD = "there is nothing that the peer could leave unread"
MANY_PAUSES = "each pause begins the time anew"

_BEFORE_OPEN: dict[str, Cell | dict[str, Cell]] = {
    "message": SERVES,
    "part": (held, released, *SERVES),
    "cut": (TRUNCATED,),
    "reset": {"unix": NO_UNREAD, "*": (RESET,)},
    "urgent": SERVES,
    "room": NO_OUTPUT,
    "freeze": NO_OUTPUT,
    "flood": SERVES,
    "open-timeout": (timed_out, reset),
    "idle-timeout": (timed_out, reset),
    "frame-timeout": NO_FRAME,
    "write-timeout": NO_OUTPUT,
    "linger-timeout": NO_LINGER,
    "pause": NO_SOCKET,
    "resume": NO_SOCKET,
    "send": NO_SOCKET,
    "user-close": NO_SOCKET,
    "user-abort": NO_SOCKET,
    "stop": (bare_end, STOPPED),
    "stop-timeout": (bare_end, STOPPED),
    "server-abort": (reset, STOPPED),
}

_PAUSED: dict[str, Cell | dict[str, Cell]] = {
    "message": HELD,
    "part": (held, resumed, rest, *SERVES),
    "half-close": (held, resumed, delivered, end, PEER_CLOSED),
    "close": (held, resumed, delivered, PEER_CLOSED),
    "cut": (held, resumed, delivered, TRUNCATED),
    "reset": (RESET, dropped),
    "urgent": HELD,
    "room": NO_OUTPUT,
    "freeze": (read, held, *RESUMED),
    "flood": HELD,
    "open-timeout": (outlasted, *HELD),
    "idle-timeout": (timed_out, reset, dropped),
    "frame-timeout": (outlasted, held, resumed, rest, *SERVES),
    "write-timeout": (outlasted, *HELD),
    "linger-timeout": NO_LINGER,
    "pause": (another, *HELD),
    "resume": SERVES,
    "send": (taken, read, *HELD),
    "user-close": LOCAL_END,
    "user-abort": LOCAL_RESET,
    "stop": SERVER_END,
    "stop-timeout": SERVER_END,
    "server-abort": SERVER_RESET,
}

_OPEN: dict[str, Cell | dict[str, Cell]] = {
    "message": SERVES,
    "part": (rest, *SERVES),
    "half-close": (end, PEER_CLOSED),
    "close": (PEER_CLOSED,),
    "cut": (TRUNCATED,),
    "reset": (RESET,),
    "urgent": SERVES,
    "room": NO_OUTPUT,
    "freeze": SERVES,
    "flood": SERVES,
    "open-timeout": (outlasted, serves),
    "idle-timeout": (timed_out, reset),
    "frame-timeout": (timed_out, reset),
    "write-timeout": (outlasted, serves),
    "linger-timeout": NO_LINGER,
    "pause": (another, held, *RESUMED),
    "resume": SERVES,
    "send": (taken, read, serves),
    "user-close": LOCAL_END,
    "user-abort": LOCAL_RESET,
    "stop": SERVER_END,
    "stop-timeout": SERVER_END,
    "server-abort": SERVER_RESET,
}

ROWS: Cells = {
    "header": _BEFORE_OPEN
    | {"half-close": (bare_end, INCOMPLETE), "close": (INCOMPLETE,), "cut": (INCOMPLETE,)},
    "handshake": _BEFORE_OPEN | {"half-close": (bare_end, TRUNCATED), "close": (TRUNCATED,)},
    "idle": _OPEN | {"part": (held, rest, *SERVES)},
    "callback": {
        "message": (held, released, *SERVES),
        "part": (held, released, rest, *SERVES),
        "half-close": (held, released, end, PEER_CLOSED),
        "close": (held, released, PEER_CLOSED),
        "cut": (held, released, TRUNCATED),
        "reset": (held, released, RESET),
        "urgent": (held, released, *SERVES),
        "room": NO_OUTPUT,
        "freeze": {"stream": (released, serves), "*": (at_once, released, *SERVES)},
        "flood": (held, released, *SERVES),
        "open-timeout": (outlasted, released, *SERVES),
        "idle-timeout": (outlasted, released, *SERVES),
        "frame-timeout": (outlasted, released, timed_out, reset),
        "write-timeout": (outlasted, released, *SERVES),
        "linger-timeout": NO_LINGER,
        "pause": (released, another, *HELD),
        "resume": (held, released, *SERVES),
        "send": (taken, at_once, released, *SERVES),
        "user-close": (closed, released, *LOCAL_END),
        "user-abort": (closed, released, *LOCAL_RESET),
        "stop": (still_open, released, *SERVER_END),
        "stop-timeout": (closed, released, *SERVER_RESET),
        "server-abort": (closed, released, *SERVER_RESET),
    },
    "paused": _PAUSED,
    "held-back": _PAUSED
    | {
        "idle-timeout": (outlasted, *HELD),
        "stop": (still_open, held, resumed, delivered, end, STOPPED),
        "stop-timeout": SERVER_LATE,
    },
    "stuck": {
        "message": (held, read, *SERVES),
        "part": (held, read, rest, *SERVES),
        "half-close": (held, end, PEER_CLOSED),
        "close": (BROKEN,),
        "cut": (BROKEN,),
        "reset": (BROKEN,),
        "urgent": (held, read, *SERVES),
        "room": SERVES,
        "freeze": SERVES,
        "flood": (held, read, *SERVES),
        "open-timeout": (outlasted, serves),
        "idle-timeout": (timed_out, reset),
        "frame-timeout": (outlasted, held, read, rest, *SERVES),
        "write-timeout": (timed_out, reset),
        "linger-timeout": NO_LINGER,
        "pause": (read, another, *HELD),
        "resume": (another, held, read, *SERVES),
        "send": (taken, serves),
        "user-close": LOCAL_END,
        "user-abort": LOCAL_RESET,
        "stop": SERVER_END,
        "stop-timeout": SERVER_LATE,
        "server-abort": SERVER_RESET,
    },
    "stuck-paused": {
        "message": (held, read, *HELD),
        "part": (held, read, held, resumed, rest, *SERVES),
        "half-close": (held, read, held, resumed, end, PEER_CLOSED),
        "close": (BROKEN,),
        "cut": (BROKEN,),
        "reset": (BROKEN,),
        "urgent": (held, read, *HELD),
        "room": (another, *HELD),
        "freeze": (read, another, *HELD),
        "flood": (held, read, *HELD),
        "open-timeout": (outlasted, read, *RESUMED),
        "idle-timeout": (timed_out, reset),
        "frame-timeout": (outlasted, held, read, held, resumed, rest, *SERVES),
        "write-timeout": (timed_out, reset),
        "linger-timeout": NO_LINGER,
        "pause": (read, another, *HELD),
        "resume": (another, held, read, *SERVES),
        "send": (taken, read, *RESUMED),
        "user-close": LOCAL_END,
        "user-abort": LOCAL_RESET,
        "stop": SERVER_END,
        "stop-timeout": SERVER_LATE,
        "server-abort": SERVER_RESET,
    },
    "memory": _OPEN | {"frame-timeout": MANY_PAUSES},
    "memory-paused": _PAUSED | {"frame-timeout": MANY_PAUSES},
    "half-closed": {
        "message": NO_MORE,
        "part": NO_MORE,
        "half-close": NO_MORE,
        "close": (written_to, BROKEN),
        "cut": NO_MORE,
        "reset": (BROKEN,),
        "urgent": NO_MORE,
        "room": NO_OUTPUT,
        "freeze": (read, reached),
        "flood": NO_MORE,
        "open-timeout": (outlasted, reached),
        "idle-timeout": (timed_out, reset),
        "frame-timeout": NO_MORE,
        "write-timeout": (outlasted, reached),
        "linger-timeout": NO_LINGER,
        "pause": (reached,),
        "resume": (reached,),
        "send": (taken, read, reached),
        "user-close": LOCAL_END,
        "user-abort": LOCAL_RESET,
        "stop": SERVER_END,
        "stop-timeout": SERVER_END,
        "server-abort": SERVER_RESET,
    },
    "stopping": {
        "message": (released, *SERVER_END),
        "part": (released, *SERVER_END),
        "half-close": (released, *SERVER_END),
        "close": (released, STOPPED),
        "cut": (released, STOPPED),
        "reset": (released, ends(ConnectionResetError, ServerStopped)),
        "urgent": (released, *SERVER_END),
        "room": NO_OUTPUT,
        "freeze": (released, *SERVER_END),
        "flood": {"stream": (released, STOPPED, dropped), "*": (released, *SERVER_END)},
        "open-timeout": (outlasted, released, *SERVER_END),
        "idle-timeout": (outlasted, released, *SERVER_END),
        "frame-timeout": (outlasted, released, *SERVER_END),
        "write-timeout": (outlasted, released, *SERVER_END),
        "linger-timeout": NO_LINGER,
        "pause": (still_open, released, *SERVER_END),
        "resume": (still_open, released, *SERVER_END),
        "send": (taken, at_once, released, *SERVER_END),
        "user-close": (closed, released, *LOCAL_END),
        "user-abort": (closed, released, *LOCAL_RESET),
        "stop": (still_open, released, *SERVER_END),
        "stop-timeout": (still_open, released, *SERVER_END),
        "server-abort": (closed, released, *SERVER_RESET),
    },
    "closing": {
        "message": LOCAL_END,
        "part": LOCAL_END,
        "half-close": LOCAL_END,
        "close": (LOCAL_CLOSED,),
        "cut": (LOCAL_CLOSED,),
        "reset": (LOCAL_CLOSED,),
        "urgent": LOCAL_END,
        "room": LOCAL_END,
        "freeze": LOCAL_END,
        "flood": LOCAL_END,
        "open-timeout": (outlasted, *LOCAL_END),
        "idle-timeout": (LOCAL_CLOSED, reset),
        "frame-timeout": (outlasted, *LOCAL_END),
        "write-timeout": (LOCAL_CLOSED, reset),
        "linger-timeout": NO_LINGER,
        "pause": LOCAL_END,
        "resume": LOCAL_END,
        "send": (refused, *LOCAL_END),
        "user-close": LOCAL_END,
        "user-abort": LOCAL_RESET,
        "stop": LOCAL_END,
        "stop-timeout": (LOCAL_CLOSED, reset, dropped),
        "server-abort": LOCAL_RESET,
    },
    "lingering": {
        "message": LOCAL_END,
        "part": LOCAL_END,
        "half-close": (LOCAL_CLOSED, end),
        "close": (LOCAL_CLOSED,),
        "cut": (LOCAL_CLOSED,),
        "reset": (LOCAL_CLOSED,),
        "urgent": LOCAL_END,
        "room": LOCAL_END,
        "freeze": LOCAL_END,
        "flood": LOCAL_END,
        "open-timeout": (outlasted, *LOCAL_END),
        "idle-timeout": (outlasted, *LOCAL_END),
        "frame-timeout": (outlasted, *LOCAL_END),
        "write-timeout": (outlasted, *LOCAL_END),
        "linger-timeout": (LOCAL_CLOSED, end),
        "pause": LOCAL_END,
        "resume": LOCAL_END,
        "send": (refused, *LOCAL_END),
        "user-close": LOCAL_END,
        "user-abort": (LOCAL_CLOSED,),
        "stop": LOCAL_END,
        "stop-timeout": LOCAL_END,
        "server-abort": (LOCAL_CLOSED,),
    },
    "aborting": {
        "message": (released, *LOCAL_RESET),
        "part": (released, *LOCAL_RESET),
        "half-close": (released, *LOCAL_RESET),
        "close": (released, LOCAL_CLOSED),
        "cut": (released, LOCAL_CLOSED),
        "reset": {"unix": NO_UNREAD, "*": (released, LOCAL_CLOSED)},
        "urgent": (released, *LOCAL_RESET),
        "room": NO_OUTPUT,
        "freeze": NO_OUTPUT,
        "flood": (released, LOCAL_CLOSED, dropped),
        "open-timeout": (outlasted, released, *LOCAL_RESET),
        "idle-timeout": (outlasted, released, *LOCAL_RESET),
        "frame-timeout": (outlasted, released, *LOCAL_RESET),
        "write-timeout": (outlasted, released, *LOCAL_RESET),
        "linger-timeout": NO_LINGER,
        "pause": (released, *LOCAL_RESET),
        "resume": (released, *LOCAL_RESET),
        "send": (refused, released, *LOCAL_RESET),
        "user-close": (released, *LOCAL_RESET),
        "user-abort": (released, *LOCAL_RESET),
        "stop": (released, *LOCAL_RESET),
        "stop-timeout": (released, *LOCAL_RESET),
        "server-abort": (released, *LOCAL_RESET),
    },
    "gone": dict.fromkeys(EVENTS, NO_PEER)
    | {
        "pause": (unharmed,),
        "resume": (unharmed,),
        "send": (refused, unharmed),
        "user-close": (unharmed,),
        "user-abort": (unharmed,),
        "stop": (all_end,),
        "stop-timeout": (all_end,),
        "server-abort": (all_are_reset,),
    },
}


# ---------------------------------------------------------------------------------------- document

NAMES = {"tcp": "TCP", "unix": "Unix", "tls": "TLS", "stream": "stream"}

HEAD = """# States and events

What the user and the peer of a connection see, for each state and each event. Generated from
`tests/states/table.py` by `python tests/states/write.py`; `tests/contract/test_states.py` walks
every cell on both engines, with connections over TCP, over a Unix socket, over TLS, and with a
stream of the user's (TCP). [States and events of a WebSocket](states-websocket.md) says the same of
a WebSocket. Some states and events do not exist with all of these:
"""

TABLE = Table("docs/states.md", HEAD, NAMES, STATES, EVENTS, ROWS)
