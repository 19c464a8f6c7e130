"""The outcomes of a WebSocket connection: see `outcomes`."""

from __future__ import annotations

import select

from states.document import Outcome
from states.outcomes import held as not_delivered
from states.outcomes import named
from states.websocket_scene import WebSocketScene
from support import wait_until
from websocket_peers import Closed, closing

from hydrogen import WebSocketClosed

# -------------------------------------------------------------------------------------- meanwhile


def held(scene: WebSocketScene) -> None:
    """nothing is delivered, and the connection stays"""
    not_delivered(scene)
    sock = scene.peer.client.sock
    is_owed = not scene.is_answered or scene.owing or scene.answered < len(scene.messages())
    if not is_owed and sock.fileno() >= 0:
        assert not select.select([sock], [], [], 0)[0], "something came"


def taken(scene: WebSocketScene) -> None:
    """it is taken"""
    assert scene.answer is True


def refused(scene: WebSocketScene) -> None:
    """it is refused"""
    assert scene.answer is False


def at_once(scene: WebSocketScene) -> None:
    """the peer reads it while the callback runs"""
    scene.read()
    assert not scene.go.is_set()


def stop_over(scene: WebSocketScene) -> None:
    """`stop` returns"""
    wait_until(lambda: scene.reports, "the stop is over")


# -------------------------------------------------------------------------------------- then


def another(scene: WebSocketScene) -> None:
    """a message arrives"""
    scene.say("another")


def rest(scene: WebSocketScene) -> None:
    """the last fragment arrives"""
    last, scene.last = scene.last, b""
    scene.transmit(last, "begun")


def ponged(scene: WebSocketScene) -> None:
    """PONG is the answer"""
    scene.read()


def unanswered(scene: WebSocketScene) -> None:
    """there is no PONG"""
    scene.pongs.clear()


def noticed(scene: WebSocketScene) -> None:
    """`on_pong` is called"""
    call = scene.handler.wait_for("pong")[0]
    assert (call.socket, call.value) == (scene.socket, b"unasked")


def unnoticed(scene: WebSocketScene) -> None:
    """`on_pong` is not called"""
    assert not scene.handler.of("pong")


def accepted(scene: WebSocketScene) -> None:
    """the request is accepted"""
    scene.peer.receive_opening()
    scene.is_answered = True


def serves(scene: WebSocketScene) -> None:
    """the connection serves on"""
    scene.say("last but one")
    scene.hear()
    assert scene.error() is None


# -------------------------------------------------------------------------------------- the end


def told(code: int | None, reason: str | None = "") -> Outcome:
    """The peer reads a CLOSE. `reason`: None: any."""

    def outcome(scene: WebSocketScene) -> None:
        came = scene.read_close()
        assert came == Closed(code, came.reason if reason is None else reason)

    shown = "an empty CLOSE" if code is None else f"CLOSE {code}"
    return named(f"the peer reads all it is owed, then {shown}", outcome)


def answers(scene: WebSocketScene) -> None:
    """it answers with the same, and meets the end"""
    scene.transmit(closing(*scene.told))
    scene.read_end()


def end(scene: WebSocketScene) -> None:
    """the peer meets the end"""
    scene.read_end()


def ends(*kinds: type[Exception], code: int | None = None) -> Outcome:
    """It is removed, with an error of one of these classes, and with this code; it is counted with
    the code that the peer has said or was told.
    """

    def outcome(scene: WebSocketScene) -> None:
        error = scene.wait_removed()
        assert type(error) in kinds, f"{error!r}"
        assert code in (None, getattr(error, "code", None)), f"{error!r}"
        if scene.was_connected and not scene.quiet:
            ended = error.code if isinstance(error, WebSocketClosed) else scene.told.code
            assert scene.server.stats().closes.get(ended or 1006), scene.server.stats().closes

    text = "ends with " + " or ".join(f"`{kind.__name__}`" for kind in kinds)
    return named(text if code is None else f"{text} {code}", outcome)


def reset(scene: WebSocketScene) -> None:
    """the peer is reset (Unix: meets the end)"""
    seen = scene.peer.at_end()
    assert seen == "reset" or (scene.family == "unix" and seen == "end"), seen


# -------------------------------------------------------------------------------------- the others


def unharmed(scene: WebSocketScene) -> None:
    """the connection that has the slot serves on"""
    scene.greet(scene.successor, "successor")
    assert (scene.socket.is_open, scene.socket.pending, scene.socket.fileno()) == (False, 0, -1)


def said_once(scene: WebSocketScene) -> None:
    """nothing more is said of this one"""
    scene.handler.wait_removed(2)
    calls = scene.handler.of("disconnected")
    assert len([call for call in calls if call.socket == scene.socket]) == 1


def all_end(scene: WebSocketScene) -> None:
    """the connection that has the slot is closed"""
    scene.dismiss(scene.successor)


def all_are_reset(scene: WebSocketScene) -> None:
    """the connection that has the slot is reset (Unix: meets the end)"""
    assert scene.successor.at_end() == ("end" if scene.family == "unix" else "reset")
