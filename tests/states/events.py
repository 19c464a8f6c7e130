"""The events: what the peer, the user, the server and the clock may do to a connection."""

from __future__ import annotations

import socket as stdlib_socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from states.builders import come_in
from states.scene import BIG, HEADER, PIECE, SHORT, Scene
from support import wait_until

FLOOD = [b"flood %d " % n + b"x" * 1000 for n in range(150)]
"""Messages that together are more than all buffers, and to which the handler sends no reply."""

BARE = ("tcp", "tls", "stream")
"""The families over TCP."""


@dataclass(frozen=True)
class Event:
    """One event, named for people.

    Attributes:
        happen: makes it happen, and returns when it has.
        families: in which there is such an event; None: in all.
        why: there is none in the others.
        options: of the server, so that it can happen.
    """

    text: str
    happen: Callable[[Scene], None]
    families: tuple[str, ...] | None = None
    why: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def has(self, family: str) -> bool:
        """Whether there is such an event in it."""
        return self.families is None or family in self.families


def message(scene: Scene) -> None:
    if scene.unsent:
        come_in(scene)
    else:
        scene.say(b"message")


def part(scene: Scene) -> None:
    if scene.unsent:
        data = scene.unsent.pop()
        scene.peer.client.send(data[:10])
        scene.unsent.append(data[10:])
    else:
        scene.begin(b"mess")


def half_close(scene: Scene) -> None:
    if scene.unsent:
        scene.peer.client.finish()
    else:
        scene.peer.finish()


def peer_closes(scene: Scene) -> None:
    scene.quiet = True
    scene.peer.close()


def peer_cuts(scene: Scene) -> None:
    scene.quiet = True
    scene.peer.client.close()


def peer_resets(scene: Scene) -> None:
    scene.quiet = True
    if scene.family == "unix":
        if not scene.owed and scene.socket.is_open:
            scene.push(scene.socket, b"unread")
        scene.peer.wait_for_input()
        scene.peer.client.close()
    else:
        scene.peer.client.reset()


def urgent(scene: Scene) -> None:
    scene.peer.client.sock.send(b"!", stdlib_socket.MSG_OOB)
    message(scene)


def peer_reads(scene: Scene) -> None:
    scene.read()


def peer_freezes(scene: Scene) -> None:
    """The peer reads nothing, then a piece, then nothing again while more is sent."""
    if scene.socket.is_open:
        assert scene.push(scene.socket, BIG)
        wait_until(lambda: scene.socket.pending, "output is pending")
    if scene.family != "stream" or scene.state not in ("callback", "stopping"):
        scene.read(PIECE)
    if scene.socket.is_open:
        assert scene.push(scene.socket, BIG)
    scene.barrier()


def flood(scene: Scene) -> None:
    """More than all buffers take, before the peer reads anything."""
    if scene.unsent:
        come_in(scene)
    done = threading.Event()

    def send() -> None:
        try:
            scene.say(*FLOOD)
        except OSError as error:
            scene.flood_error = error
        finally:
            done.set()

    scene.flooded = done
    scene.meanwhile(send)


def passes(name: str) -> Callable[[Scene], None]:
    """`name` of a witness passes, which began after that of the connection did."""

    def happen(scene: Scene) -> None:
        if name == "frame_timeout":
            scene.begin(b"mess")
        scene.timeout = name

    return happen


def user(method: str) -> Callable[[Scene], None]:
    def happen(scene: Scene) -> None:
        scene.answer = getattr(scene.socket, method)()

    return happen


def send(scene: Scene) -> None:
    scene.answer = scene.push(scene.socket, b"pushed")


def stop(scene: Scene) -> None:
    scene.stop()


def stop_at_once(scene: Scene) -> None:
    scene.stop(0.5)  # in which what can end must do so, however busy the machine


def abort_server(scene: Scene) -> None:
    scene.server.abort()


EVENTS = {
    "message": Event("a complete message arrives", message),
    "part": Event("a part of a message arrives", part),
    "half-close": Event("the peer ends its side and reads on", half_close),
    "close": Event("the peer closes", peer_closes),
    "cut": Event(
        "the peer closes without close_notify", peer_cuts, ("tls",), "nothing can be missing"
    ),
    "reset": Event("the peer resets (Unix: closes with unread input)", peer_resets),
    "urgent": Event(
        "an urgent byte arrives, and a message", urgent, BARE, "no urgent data on Unix sockets"
    ),
    "room": Event("the peer reads all it is owed", peer_reads),
    "freeze": Event(
        "the peer freezes, reads a piece, and freezes while more is sent", peer_freezes
    ),
    "flood": Event("the peer sends more than all buffers take, and reads nothing", flood),
    "open-timeout": Event(
        "`open_timeout` passes",
        passes("open_timeout"),
        options={"open_timeout": SHORT, "proxy_protocol": "v1"},
    ),
    "idle-timeout": Event(
        "`idle_timeout` passes", passes("idle_timeout"), options={"idle_timeout": 2 * SHORT}
    ),
    "frame-timeout": Event(
        "a part of a message arrives, and `frame_timeout` passes",
        passes("frame_timeout"),
        ("tcp", "unix", "tls"),
        "only the stream knows what a part is",
        options={"frame_timeout": SHORT},
    ),
    "write-timeout": Event(
        "`write_timeout` passes", passes("write_timeout"), options={"write_timeout": SHORT}
    ),
    "linger-timeout": Event("the 2 s of lingering pass", passes("linger")),
    "pause": Event("`pause_reading()`", user("pause_reading")),
    "resume": Event("`resume_reading()`", user("resume_reading")),
    "send": Event("`send()`", send),
    "user-close": Event("`close()`", user("close")),
    "user-abort": Event("`abort()`", user("abort")),
    "stop": Event("`Server.stop()`", stop),
    "stop-timeout": Event("`Server.stop(timeout)`, and the timeout passes", stop_at_once),
    "server-abort": Event("`Server.abort()`", abort_server),
}

__all__ = ["EVENTS", "HEADER", "Event"]
