"""The table of a WebSocket connection: for each state and each event what user and peer see. See
`document.Cells`.
"""

from __future__ import annotations

import ssl

from states.document import Cell, Cells, Table
from states.outcomes import (
    closed,
    delivered,
    dropped,
    outlasted,
    read,
    released,
    resumed,
    still_open,
    timed_out,
)
from states.websocket_builders import STATES
from states.websocket_events import EVENTS
from states.websocket_outcomes import (
    accepted,
    all_are_reset,
    all_end,
    another,
    answers,
    at_once,
    end,
    ends,
    held,
    noticed,
    ponged,
    refused,
    reset,
    rest,
    said_once,
    serves,
    stop_over,
    taken,
    told,
    unanswered,
    unharmed,
    unnoticed,
)
from states.websocket_scene import FAMILIES, NOW, OURS, THEIRS

from hydrogen import (
    FrameTooLarge,
    IncompleteFrame,
    InvalidText,
    LocalClosed,
    ProtocolError,
    ServerStopped,
    WebSocketClosed,
)

THEY_CLOSED = ends(WebSocketClosed, code=THEIRS.code)
NO_CLOSE = ends(WebSocketClosed, code=1006)
WE_CLOSED = ends(LocalClosed, code=OURS.code)
CLOSED_NOW = ends(LocalClosed, code=NOW.code)
ABORTED = ends(LocalClosed)
STOPPED = ends(ServerStopped)
RESET = ends(ConnectionResetError)
BROKEN_OFF = ends(ConnectionResetError, BrokenPipeError)
TRUNCATED = ends(ssl.SSLEOFError)
INCOMPLETE = ends(IncompleteFrame)

SERVES = (delivered, serves)
HELD = (held, resumed, *SERVES)

PEER_END = (told(THEIRS.code), end, THEY_CLOSED, dropped)
EMPTY_END = (told(None), end, ends(WebSocketClosed, code=1005), dropped)
BAD_END = (told(1002, None), end, ends(ProtocolError), dropped)
TEXT_END = (told(1007, None), end, ends(InvalidText), dropped)
LARGE_END = (told(1009, None), end, ends(FrameTooLarge), dropped)
LOCAL_END = (told(*NOW), answers, CLOSED_NOW, dropped)
LOCAL_RESET = (reset, ABORTED, dropped)
STOP_END = (told(1001), answers, STOPPED, dropped)
STOP_LATE = (told(1001), STOPPED, reset, dropped)
STOP_RESET = (STOPPED, reset, dropped)

NO_SOCKET = "nobody holds its socket yet"
NO_OUTPUT = "no output is pending"
NO_PART = "no message has begun"
NO_ANSWER = "no CLOSE of ours waits for an answer"
NO_PEER = "there is no peer any more"
NO_UNREAD = "there is nothing that the peer could leave unread"
IS_OPEN = "it is open"
COMPRESSED = "what goes on was compressed before"

Row = dict[str, Cell | dict[str, Cell]]


def behind(first: tuple, row: Row) -> Row:
    """The row of what comes behind these outcomes."""
    return {event: (*first, *cell) for event, cell in row.items() if isinstance(cell, tuple)}


ARRIVES: Row = {
    "message": SERVES,
    "fragments": (ponged, *SERVES),
    "ping": (ponged, serves),
    "pong": (noticed, serves),
    "close": PEER_END,
    "empty-close": EMPTY_END,
    "bad-close": BAD_END,
    "unmasked": BAD_END,
    "not-utf8": TEXT_END,
    "too-large": LARGE_END,
    "not-deflate": TEXT_END,
    "fin": (end, NO_CLOSE),
    "leave": (NO_CLOSE,),
    "cut": (TRUNCATED,),
    "reset": (RESET,),
}
"""What the peer may do to a connection that is read."""

OPEN: Row = {
    **ARRIVES,
    "send": (taken, read, serves),
    "user-ping": (taken, read, serves),
    "broadcast": (taken, read, serves),
    "pause": (another, *HELD),
    "resume": (serves,),
    "user-close": LOCAL_END,
    "user-abort": LOCAL_RESET,
    "stop": STOP_END,
    "stop-timeout": STOP_LATE,
    "server-abort": (reset, STOPPED, dropped),
    "open-timeout": IS_OPEN,
    "idle-timeout": (timed_out, reset, dropped),
    "frame-timeout": NO_PART,
    "write-timeout": NO_OUTPUT,
    "ping-timeout": (timed_out, reset, dropped),
    "close-timeout": NO_ANSWER,
}

LEFT = ("close", "empty-close", "bad-close", "unmasked", "not-utf8", "too-large", "not-deflate")
"""Events after which the peer reads on, and that are an answer to our CLOSE, or as good as one."""


def closing(goes: tuple, over: tuple, ended: tuple, error: tuple) -> Row:
    """The row of a state in which our CLOSE is on its way, or was sent.

    Args:
        goes: the peer reads what it is owed, and answers.
        over: the peer reads what it is owed, and meets the end: it has answered, or never will.
        ended: the same when it reads nothing any more.
        error: with which the connection ends when it is reset.
    """
    row: Row = dict.fromkeys(EVENTS, goes)
    return row | {
        **dict.fromkeys((*LEFT, "fin"), over),
        "too-large": {"deflate": goes, "*": over},
        "not-deflate": goes,
        "fragments": (unanswered, *goes),
        "ping": (unanswered, *goes),
        "pong": (*goes, unnoticed),
        **dict.fromkeys(("leave", "cut", "reset"), ended),
        "send": (refused, *goes),
        "user-ping": (refused, *goes),
        "broadcast": (refused, *goes),
        **dict.fromkeys(("user-abort", "server-abort"), (reset, *error)),
        "open-timeout": IS_OPEN,
        "idle-timeout": (*error, reset),
        "frame-timeout": NO_PART,
        "write-timeout": NO_OUTPUT,
        "ping-timeout": (outlasted, *goes),
        "close-timeout": over,
        "stop-timeout": (*error, reset),
    }


CALLBACK: Row = {
    **OPEN,
    **behind((held, released), ARRIVES),
    "send": (taken, at_once, released, serves),
    "user-ping": (taken, at_once, released, serves),
    "broadcast": (taken, at_once, released, serves),
    "pause": (released, another, *HELD),
    "resume": (held, released, serves),
    "user-close": (closed, released, *LOCAL_END),
    "user-abort": (closed, released, *LOCAL_RESET),
    "stop": (still_open, released, *STOP_END),
    "stop-timeout": (stop_over, closed, released, *STOP_RESET),
    "server-abort": (closed, released, *STOP_RESET),
    "idle-timeout": (outlasted, released, serves),
    "ping-timeout": (closed, released, timed_out, reset),
}

PAUSED: Row = {
    **OPEN,
    **behind((held, resumed), ARRIVES),
    "reset": (RESET, dropped),
    "send": (taken, read, another, *HELD),
    "user-ping": (taken, read, another, *HELD),
    "broadcast": (taken, read, another, *HELD),
}

PEER_CLOSED: Row = {
    **OPEN,
    **dict.fromkeys((*ARRIVES, "resume"), (released, *PEER_END)),
    "fragments": (unanswered, released, *PEER_END),
    "ping": (unanswered, released, *PEER_END),
    "pong": (released, *PEER_END, unnoticed),
    **dict.fromkeys(("leave", "cut"), (released, THEY_CLOSED)),
    "reset": (released, ends(WebSocketClosed, ConnectionResetError)),
    **dict.fromkeys(("send", "user-ping", "broadcast"), (taken, at_once, released, *PEER_END)),
    "pause": (released, held, resumed, *PEER_END),
    "user-close": (closed, released, told(*NOW), end, CLOSED_NOW, dropped),
    "user-abort": (closed, released, *LOCAL_RESET),
    "stop": (still_open, released, told(1001), end, STOPPED, dropped),
    "stop-timeout": (stop_over, released, *STOP_RESET),
    "server-abort": (closed, released, *STOP_RESET),
    "idle-timeout": (outlasted, released, *PEER_END),
    "ping-timeout": (outlasted, released, *PEER_END),
}

ROWS: Cells = {
    "head": {
        **OPEN,
        "fin": (end, INCOMPLETE),
        "leave": (INCOMPLETE,),
        "reset": {"unix": NO_UNREAD, "*": (RESET,)},
        **dict.fromkeys(
            ("send", "user-ping", "broadcast", "pause", "resume", "user-close", "user-abort"),
            NO_SOCKET,
        ),
        "stop": (end, STOPPED),
        "stop-timeout": (end, STOPPED),
        "open-timeout": (timed_out, reset),
        "ping-timeout": (outlasted,),
    },
    "request": {
        **OPEN,
        **behind((held, released), ARRIVES),
        "fin": (held, released, accepted, end, NO_CLOSE),
        "leave": (held, released, ends(WebSocketClosed, ConnectionResetError, BrokenPipeError)),
        "cut": (held, released, ends(ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)),
        "reset": {"unix": NO_UNREAD, "*": (held, released, BROKEN_OFF)},
        "send": (refused, held, released, serves),
        "user-ping": (refused, held, released, serves),
        "broadcast": (refused, held, released, serves),
        "pause": (released, accepted, another, *HELD),
        "resume": (held, released, serves),
        "user-close": (released, end, CLOSED_NOW),
        "user-abort": (released, *LOCAL_RESET),
        "stop": (released, *STOP_END),
        "stop-timeout": (stop_over, released, *STOP_RESET),
        "server-abort": (released, *STOP_RESET),
        "open-timeout": (outlasted, released, serves),
        "idle-timeout": (outlasted, released, serves),
        "ping-timeout": (outlasted,),
    },
    "idle": {**OPEN, "open-timeout": (outlasted, serves)},
    "part": {
        **OPEN,
        **{event: (delivered, *OPEN[event][:-1]) for event in LEFT},
        "frame-timeout": (timed_out, reset, dropped),
    },
    "fragment": {
        **OPEN,
        "message": BAD_END,
        "ping": (ponged, rest, *SERVES),
        "pong": (noticed, rest, *SERVES),
        "too-large": {"deflate": COMPRESSED, "*": LARGE_END},
        "send": (taken, read, rest, *SERVES),
        "user-ping": (taken, read, rest, *SERVES),
        "broadcast": (taken, read, rest, *SERVES),
        "pause": (rest, *HELD),
        "resume": (rest, *SERVES),
        "frame-timeout": (timed_out, reset, dropped),
    },
    "callback": CALLBACK,
    "backlog": {
        **CALLBACK,
        **{event: (held, released, delivered, *OPEN[event][:-1]) for event in LEFT},
        "stop": (still_open, released, delivered, *STOP_END[:-1]),
    },
    "paused": PAUSED,
    "held-back": {
        **PAUSED,
        **{event: (held, resumed, delivered, *OPEN[event][:-1]) for event in LEFT},
        "stop": (still_open, held, resumed, delivered, *STOP_END[:-1]),
        "stop-timeout": (stop_over, *STOP_RESET),
        "idle-timeout": (outlasted, *HELD),
    },
    "stuck": {
        **OPEN,
        **behind((held,), ARRIVES),
        "message": (held, read, *SERVES),
        "pong": (held, read, noticed, serves),
        **dict.fromkeys(("leave", "cut", "reset"), (BROKEN_OFF,)),
        "send": (taken, serves),
        "user-ping": (taken, serves),
        "broadcast": (taken, serves),
        "pause": (read, another, *HELD),
        "resume": (another, held, read, *SERVES),
        "stop-timeout": STOP_RESET,
        "write-timeout": (timed_out, reset),
        "ping-timeout": (outlasted,),
    },
    "closing-behind": {
        **closing(
            (told(*OURS), answers, WE_CLOSED, dropped),
            (told(*OURS), end, WE_CLOSED, dropped),
            (WE_CLOSED,),
            (WE_CLOSED,),
        ),
        "write-timeout": (WE_CLOSED, reset),
        "close-timeout": (outlasted, told(*OURS), answers, WE_CLOSED, dropped),
    },
    "closing": {
        **closing(
            (answers, WE_CLOSED, dropped), (end, WE_CLOSED, dropped), (WE_CLOSED,), (WE_CLOSED,)
        ),
        "reset": {"unix": NO_UNREAD, "*": (WE_CLOSED,)},
    },
    "peer-closed": PEER_CLOSED,
    "close-read": {**PEER_CLOSED, "stop": (still_open, released, *PEER_END)},
    "lingering": {
        **closing(
            (end, THEY_CLOSED, dropped), (end, THEY_CLOSED, dropped), (THEY_CLOSED,), (THEY_CLOSED,)
        ),
        **dict.fromkeys(("user-abort", "server-abort"), (THEY_CLOSED,)),
        "reset": {"unix": NO_UNREAD, "*": (THEY_CLOSED,)},
        "fin": (THEY_CLOSED, end),
        "idle-timeout": (outlasted, end, THEY_CLOSED),
        "stop-timeout": (end, THEY_CLOSED),
        "close-timeout": NO_ANSWER,
    },
    "stopping": {
        **dict.fromkeys(EVENTS, (released, *STOP_END)),
        **dict.fromkeys((*LEFT, "fin"), (released, told(1001), end, STOPPED, dropped)),
        "fragments": (unanswered, released, *STOP_END),
        "ping": (unanswered, released, *STOP_END),
        "pong": (released, *STOP_END, unnoticed),
        "too-large": {
            "deflate": (released, *STOP_END),
            "*": (released, told(1001), end, STOPPED, dropped),
        },
        "not-deflate": (released, *STOP_END),
        "leave": (released, STOPPED),
        "cut": (released, STOPPED),
        "reset": (released, ends(ConnectionResetError, ServerStopped)),
        **dict.fromkeys(("send", "user-ping", "broadcast"), (taken, at_once, released, *STOP_END)),
        **dict.fromkeys(("pause", "resume", "stop"), (still_open, released, *STOP_END)),
        "user-close": (closed, released, *LOCAL_END),
        "user-abort": (closed, released, *LOCAL_RESET),
        "stop-timeout": (still_open, released, *STOP_END),
        "server-abort": (closed, released, *STOP_RESET),
        "open-timeout": IS_OPEN,
        "idle-timeout": (outlasted, released, *STOP_END),
        "frame-timeout": NO_PART,
        "write-timeout": NO_OUTPUT,
        "ping-timeout": (closed, released, timed_out, reset),
        "close-timeout": NO_ANSWER,
    },
    "stop-behind": {
        **closing(STOP_END, (told(1001), end, STOPPED, dropped), (STOPPED,), (STOPPED,)),
        "stop-timeout": STOP_END,
        "write-timeout": (STOPPED, reset),
        "close-timeout": (outlasted, *STOP_END),
    },
    "stop-told": {
        **closing((answers, STOPPED, dropped), (end, STOPPED, dropped), (STOPPED,), (STOPPED,)),
        "stop-timeout": (answers, STOPPED, dropped),
        "reset": {"unix": NO_UNREAD, "*": (STOPPED,)},
    },
    "gone": {
        **dict.fromkeys(EVENTS, NO_PEER),
        **dict.fromkeys(("pause", "resume", "user-close", "user-abort"), (unharmed,)),
        **dict.fromkeys(("send", "user-ping", "broadcast"), (refused, unharmed)),
        "stop": (all_end, said_once),
        "stop-timeout": (all_end, said_once),
        "server-abort": (all_are_reset, said_once),
    },
}

HEAD = """# States and events of a WebSocket

What the user and the client (the peer) of a WebSocket connection see, for each state and each
event; [states.md](states.md) says the same of other connections. Generated from
`tests/states/websocket_table.py` by `python tests/states/write.py`;
`tests/contract/test_states.py` walks every cell on both engines, with connections over
TCP, over a Unix socket, over TLS, and over TCP with compressed messages ("deflate").

What the peer sends while a part of the request head, or of a frame, has come begins with the rest
of that. `Stats.closes` counts each end with the code that the peer has said, or was told; with 1006
where neither has sent a CLOSE. Some events do not exist with all families:
"""

TABLE = Table("docs/states-websocket.md", HEAD, FAMILIES, STATES, EVENTS, ROWS)
