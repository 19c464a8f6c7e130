"""The events of a WebSocket connection: see `events`."""

from __future__ import annotations

from collections.abc import Callable

from states.events import Event, abort_server, peer_cuts, stop, user
from states.scene import SHORT, wait_for_input
from states.websocket_scene import ASKED, MOST, NOW, THEIRS, WebSocketScene
from websocket_peers import CONTINUATION, FIN, PING, RSV1, TEXT, Frame, closing, frame, ping, pong

AMPLE = 2 * SHORT
"""Seconds of a timeout that is to pass, but not before the state is there."""

# -------------------------------------------------------------------------------------- the peer


def message(scene: WebSocketScene) -> None:
    scene.say("message")


def in_fragments(scene: WebSocketScene) -> None:
    """A message whose first fragment has come is that message."""
    text, first, last = "begun", b"", scene.last
    if not last:
        text = "fragmented"
        first, last = scene.fragments(text)
    scene.pongs.append(b"between")
    scene.transmit(first + ping(b"between") + last, text)
    scene.last = b""


def pinged(scene: WebSocketScene) -> None:
    scene.pongs.append(b"ping")
    scene.transmit(ping(b"ping"))


def sends(data: bytes) -> Callable[[WebSocketScene], None]:
    return lambda scene: scene.transmit(data)


def not_utf8(scene: WebSocketScene) -> None:
    scene.transmit(frame(FIN | (CONTINUATION if scene.last else TEXT), b"\xff"))


def too_large(scene: WebSocketScene) -> None:
    if scene.last:
        scene.transmit(frame(FIN | CONTINUATION, b"x" * MOST))
    else:
        scene.transmit(scene.encoded("x" * (MOST + 1)))


def not_deflate(scene: WebSocketScene) -> None:
    """In place of the last fragment, if that is due."""
    scene.transmit(frame(FIN | (CONTINUATION if scene.last else RSV1 | TEXT), b"nonsense"))


def ends_side(scene: WebSocketScene) -> None:
    scene.peer.finish()


def leaves(scene: WebSocketScene) -> None:
    scene.quiet = True
    scene.leave()


def resets(scene: WebSocketScene) -> None:
    scene.quiet = True
    if scene.family == "unix":
        if not scene.owing and scene.socket.is_open:
            scene.push(scene.socket, "unread")
        wait_for_input(scene.peer.client)
        scene.peer.client.close()
    else:
        scene.peer.client.reset()


# ------------------------------------------------------------------------------- user and clock


def send(scene: WebSocketScene) -> None:
    scene.answer = scene.push(scene.socket, "pushed")


def ping_peer(scene: WebSocketScene) -> None:
    socket = scene.socket
    scene.answer = scene.owe(Frame(FIN | PING, ASKED), lambda: socket.ping(ASKED))


def broadcast(scene: WebSocketScene) -> None:
    """To all but the neighbours."""
    socket, server = scene.socket, scene.server
    others = [other for other in server.connections if other != socket]
    scene.answer = scene.owe(
        Frame(FIN | TEXT, b"cast"), lambda: bool(server.broadcast("cast", others).sent)
    )


def close(scene: WebSocketScene) -> None:
    scene.socket.close(*NOW)


def stop_soon(scene: WebSocketScene) -> None:
    scene.stop(3 * SHORT)


def passes(name: str) -> Callable[[WebSocketScene], None]:
    """`name` passes, of the connection or of a witness."""
    return lambda scene: setattr(scene, "timeout", name)


EVENTS = {
    "message": Event("a text message arrives", message),
    "fragments": Event("a message in fragments arrives, a PING between them", in_fragments),
    "ping": Event("a PING arrives", pinged),
    "pong": Event("a PONG arrives that nobody asked for", sends(pong(b"unasked"))),
    "close": Event(f"a CLOSE {THEIRS.code} with a reason arrives", sends(closing(*THEIRS))),
    "empty-close": Event("an empty CLOSE arrives", sends(closing())),
    "bad-close": Event("a CLOSE 1005 arrives, which may not be sent", sends(closing(1005))),
    "unmasked": Event("a frame that is not masked arrives", sends(frame(FIN | TEXT, b"", None))),
    "not-utf8": Event("text that is not UTF-8 arrives", not_utf8),
    "too-large": Event("a message over `max_message` arrives", too_large),
    "not-deflate": Event(
        "a message that cannot be inflated arrives",
        not_deflate,
        ("deflate",),
        "it is not compressed",
    ),
    "fin": Event("the peer ends its side without a CLOSE, and reads on", ends_side),
    "leave": Event("the peer closes its socket without a CLOSE", leaves),
    "cut": Event(
        "the peer closes its socket without close_notify",
        peer_cuts,
        ("tls",),
        "nothing can be missing",
    ),
    "reset": Event("the peer resets (Unix: closes with unread input)", resets),
    "send": Event("`send()` of a text", send),
    "user-ping": Event("`ping()`", ping_peer),
    "broadcast": Event("`Server.broadcast()`", broadcast),
    "pause": Event("`pause_reading()`", user("pause_reading")),
    "resume": Event("`resume_reading()`", user("resume_reading")),
    "user-close": Event(f"`close({NOW.code}, reason)`", close),
    "user-abort": Event("`abort()`", user("abort")),
    "stop": Event("`Server.stop()`", stop),
    "stop-timeout": Event("`Server.stop(timeout)`, and the timeout passes", stop_soon),
    "server-abort": Event("`Server.abort()`", abort_server),
    "open-timeout": Event(
        "`open_timeout` passes", passes("open_timeout"), options={"open_timeout": AMPLE}
    ),
    "idle-timeout": Event(
        "`idle_timeout` passes", passes("idle_timeout"), options={"idle_timeout": AMPLE}
    ),
    "frame-timeout": Event(
        "`frame_timeout` passes", passes("frame_timeout"), options={"frame_timeout": AMPLE}
    ),
    "write-timeout": Event(
        "`write_timeout` passes", passes("write_timeout"), options={"write_timeout": AMPLE}
    ),
    "ping-timeout": Event(
        "`ping_interval` and `ping_timeout` pass",
        passes("ping_timeout"),
        options={"ping_interval": AMPLE, "ping_timeout": AMPLE},
    ),
    "close-timeout": Event(
        "`close_timeout` passes", passes("close_timeout"), options={"close_timeout": AMPLE}
    ),
}
