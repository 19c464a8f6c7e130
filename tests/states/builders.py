"""The states of a connection: how a scene comes to be in each, and what lets it out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from states.scene import BUFFERED, HEADER, HIGH, Peer, Scene
from support import wait_until

HALF = len(HEADER) // 2
HELLO = 40
"""Bytes of a ClientHello that are less than all of it."""


@dataclass(frozen=True)
class State:
    """One state, named for people.

    Attributes:
        build: brings a scene into it.
        release: what lets the scene out: afterwards it is as any open connection, or has ended.
        families: in which there is such a state; None: in all.
        why: there is none in the others.
        options: of the server.
    """

    text: str
    build: Callable[[Scene], None]
    release: Callable[[Scene], None]
    families: tuple[str, ...] | None = None
    why: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def has(self, family: str) -> bool:
        """Whether there is such a state in it."""
        return self.families is None or family in self.families


def nothing(scene: Scene) -> None:
    """There is nothing to let go."""


def let_go(scene: Scene) -> None:
    """The callback returns."""
    scene.go.set()


def resume(scene: Scene) -> None:
    """The user resumes reading."""
    scene.socket.resume_reading()


def read_output(scene: Scene) -> None:
    """The peer reads what it is owed."""
    scene.read()


def read_and_resume(scene: Scene) -> None:
    """The peer reads, and then the user resumes reading."""
    read_output(scene)
    resume(scene)


# -------------------------------------------------------------------------------------- states


def await_header(scene: Scene) -> None:
    scene.peer = scene.new_peer()
    scene.peer.client.send(HEADER[:HALF])
    wait_until(lambda: scene.server.stats().accepted == 1, "the connection is accepted")
    scene.unsent = [HEADER[HALF:]]


def await_handshake(scene: Scene) -> None:
    scene.peer = scene.new_peer()
    scene.introduce(scene.peer)
    assert scene.peer.tls is not None
    hello = scene.peer.tls.step()
    scene.peer.client.send(hello[:HELLO])
    wait_until(lambda: scene.server.stats().accepted == 1, "the connection is accepted")
    scene.unsent = [hello[HELLO:]]


def come_in(scene: Scene) -> None:
    """What is left of header or handshake, and hello."""
    for data in scene.unsent:
        scene.peer.client.send(data)
    scene.unsent.clear()
    scene.say_hello()


def idle(scene: Scene) -> None:
    scene.open()


def in_callback(scene: Scene) -> None:
    scene.guard()
    scene.open()
    scene.say(b"hold")
    scene.handler.wait(lambda: scene.messages() == scene.sent, "the callback runs")


def paused(scene: Scene) -> None:
    scene.open()
    scene.say(b"pause")
    scene.hear()


def paused_with_messages(scene: Scene) -> None:
    scene.guard()
    scene.open()
    scene.say(b"pause", b"second", b"third")
    scene.handler.wait(lambda: scene.messages() == scene.sent[:-2], "the pause began")
    wait_until(lambda: scene.answered == 2, "the callback is over")
    scene.read()


def stuck(scene: Scene) -> None:
    scene.open()
    scene.say(b"big")
    wait_until(lambda: scene.answered == 2 and scene.socket.pending > HIGH, "output is pending")


def stuck_and_paused(scene: Scene) -> None:
    stuck(scene)
    scene.socket.pause_reading()


def over_memory(scene: Scene) -> None:
    scene.open()
    scene.exceed()


def over_memory_and_paused(scene: Scene) -> None:
    paused(scene)
    scene.exceed()


def half_closed(scene: Scene) -> None:
    scene.open()
    scene.peer.finish()
    scene.handler.wait_for("eof")


def stopping(scene: Scene) -> None:
    in_callback(scene)
    scene.stop()


def closing(scene: Scene) -> None:
    scene.open()
    scene.say(b"last")
    wait_until(lambda: scene.answered == 2 and not scene.socket.is_open, "it is closing")
    assert scene.socket.pending > HIGH


def lingering(scene: Scene) -> None:
    scene.open()
    scene.say(b"bye")
    scene.peer.wait_for_end()


def aborting(scene: Scene) -> None:
    in_callback(scene)
    scene.socket.abort()


def gone(scene: Scene) -> None:
    scene.open()
    scene.peer.close()
    scene.wait_removed()
    wait_until(lambda: scene.server.stats().connections == 0, "the slot is vacant")
    scene.successor = scene.opened()


SOCKETS = ("tcp", "unix", "tls")

STATES = {
    "header": State(
        "the PROXY header has begun", await_header, come_in, options={"proxy_protocol": "v1"}
    ),
    "handshake": State(
        "the TLS handshake has begun", await_handshake, come_in, ("tls",), "no handshake"
    ),
    "idle": State("open, nothing to do", idle, nothing),
    "callback": State("a callback blocks", in_callback, let_go),
    "paused": State("paused by the user", paused, resume),
    "held-back": State(
        "paused by the user, with complete messages read", paused_with_messages, resume
    ),
    "stuck": State("paused by the watermark: the peer does not read", stuck, read_output),
    "stuck-paused": State(
        "paused by the watermark and the user", stuck_and_paused, read_and_resume
    ),
    "memory": State(
        "paused by `max_buffered`, again and again, for others who exceed it",
        over_memory,
        nothing,
        options={"max_buffered": BUFFERED},
    ),
    "memory-paused": State(
        "paused by `max_buffered` and the user",
        over_memory_and_paused,
        resume,
        options={"max_buffered": BUFFERED},
    ),
    "half-closed": State(
        "the peer has ended its side, `on_eof` keeps the connection",
        half_closed,
        nothing,
        options={"on_eof": True},
    ),
    "stopping": State("a graceful stop was asked for, a callback blocks", stopping, let_go),
    "closing": State(
        "closed by the user with output pending: the peer does not read", closing, nothing
    ),
    "lingering": State(
        "closed, flushed, our FIN sent; the peer has not ended",
        lingering,
        nothing,
        SOCKETS,
        "a stream ends both ways at once",
    ),
    "aborting": State("aborted while a callback blocks", aborting, let_go),
    "gone": State("removed; its slot is another connection's", gone, nothing),
}

__all__ = ["STATES", "Peer", "State"]
