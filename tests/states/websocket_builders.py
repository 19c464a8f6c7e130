"""The states of a WebSocket connection: see `builders`."""

from __future__ import annotations

from states.builders import State, let_go, nothing, read_output, resume
from states.scene import HIGH, wait_for_end
from states.websocket_scene import OURS, THEIRS, WebSocketScene
from support import wait_until
from websocket_peers import closing


def send_rest(scene: WebSocketScene) -> None:
    """The peer sends the rest of what it has begun."""
    scene.transmit(b"")


# -------------------------------------------------------------------------------------- states


def awaiting_head(scene: WebSocketScene) -> None:
    scene.peer = scene.new_peer()
    data = scene.request()
    scene.transmit(data[:-10])
    scene.unsent = data[-10:]
    scene.barrier()
    scene.drain()


def in_request(scene: WebSocketScene) -> None:
    scene.guard()
    scene.ask()
    scene.handler.wait(scene._find, "on_request runs")
    scene.drain()


def idle(scene: WebSocketScene) -> None:
    scene.open()


def amid_frame(scene: WebSocketScene) -> None:
    scene.open()
    data = scene.encoded("begun")
    scene.transmit(data[:-2])
    scene.unsent, scene.begun = data[-2:], ["begun"]
    scene.barrier()


def amid_message(scene: WebSocketScene) -> None:
    scene.open()
    first, scene.last = scene.fragments("begun")
    scene.transmit(first)
    scene.barrier()


def in_callback(scene: WebSocketScene) -> None:
    scene.guard()
    scene.open()
    scene.say("hold")
    scene.handler.wait(lambda: scene.messages() == scene.sent, "the callback runs")


def in_callback_with_messages(scene: WebSocketScene) -> None:
    scene.guard()
    scene.open()
    scene.say("hold", "second", "third")
    scene.handler.wait(lambda: scene.messages() == scene.sent[:-2], "the callback runs")


def paused(scene: WebSocketScene) -> None:
    scene.open()
    scene.say("pause")
    scene.hear()


def paused_with_messages(scene: WebSocketScene) -> None:
    scene.guard()
    scene.open()
    scene.say("pause", "second", "third")
    scene.handler.wait(lambda: scene.messages() == scene.sent[:-2], "the pause began")
    wait_until(lambda: scene.answered == 2, "the callback is over")
    scene.read()


def stuck(scene: WebSocketScene) -> None:
    scene.open()
    scene.say("big")
    wait_until(lambda: scene.answered == 2 and scene.socket.pending > HIGH, "output is pending")


def closing_behind_output(scene: WebSocketScene) -> None:
    scene.open()
    scene.say("last")
    wait_until(lambda: scene.answered == 2 and not scene.socket.is_open, "it is closing")
    assert scene.socket.pending > HIGH


def close_sent(scene: WebSocketScene) -> None:
    scene.open()
    scene.say("bye")
    wait_until(lambda: scene.answered == 2, "it is closing")
    assert scene.read_close() == OURS


def close_came(scene: WebSocketScene) -> None:
    in_callback(scene)
    scene.transmit(closing(*THEIRS))


def close_was_read(scene: WebSocketScene) -> None:
    scene.guard()
    scene.open()
    scene.transmit(scene.encoded("hold") + closing(*THEIRS), "hold")
    scene.handler.wait(lambda: scene.messages() == scene.sent, "the callback runs")


def lingering(scene: WebSocketScene) -> None:
    scene.open()
    scene.transmit(closing(*THEIRS))
    assert scene.read_close().code == THEIRS.code
    wait_for_end(scene.peer.client)


def stopping(scene: WebSocketScene) -> None:
    in_callback(scene)
    scene.stop()


def stopping_behind_output(scene: WebSocketScene) -> None:
    scene.guard()
    stuck(scene)
    scene.stop()
    wait_until(lambda: not scene.socket.is_open, "it is closing")


def stop_told(scene: WebSocketScene) -> None:
    scene.open()
    scene.stop()
    assert scene.read_close().code == 1001


def gone(scene: WebSocketScene) -> None:
    scene.open()
    scene.transmit(closing(*THEIRS))
    scene.read_close()
    scene.leave()
    scene.wait_removed()
    wait_until(lambda: scene.server.stats().connections == 0, "the slot is vacant")
    scene.successor = scene.opened()


STATES = {
    "head": State("a part of the request head has come", awaiting_head, send_rest),
    "request": State("`on_request` blocks", in_request, let_go),
    "idle": State("open, nothing to do", idle, nothing),
    "part": State("a part of a frame has come", amid_frame, send_rest),
    "fragment": State("the first fragment of a message has come", amid_message, nothing),
    "callback": State("a callback blocks", in_callback, let_go),
    "backlog": State(
        "a callback blocks, with whole messages read", in_callback_with_messages, let_go
    ),
    "paused": State("paused by the user", paused, resume),
    "held-back": State(
        "paused by the user, with whole messages read", paused_with_messages, resume
    ),
    "stuck": State("paused by the watermark: the peer does not read", stuck, read_output),
    "closing-behind": State(
        "closed by the user with output pending: the peer does not read",
        closing_behind_output,
        read_output,
    ),
    "closing": State(
        f"closed by the user with {OURS.code}: CLOSE is sent, and not answered", close_sent, nothing
    ),
    "peer-closed": State(
        f"the peer's CLOSE {THEIRS.code} has come while a callback blocks", close_came, let_go
    ),
    "close-read": State(
        f"the peer's CLOSE {THEIRS.code} was read with the message whose callback blocks",
        close_was_read,
        let_go,
    ),
    "lingering": State(
        f"closed by the peer with {THEIRS.code}: answered, our side has ended; the peer's has not",
        lingering,
        nothing,
    ),
    "stopping": State("a graceful stop was asked for, a callback blocks", stopping, let_go),
    "stop-behind": State(
        "closed by a graceful stop with output pending: the peer does not read",
        stopping_behind_output,
        read_output,
    ),
    "stop-told": State(
        "closed by a graceful stop: CLOSE 1001 is sent, and not answered", stop_told, nothing
    ),
    "gone": State("removed; its slot is another connection's", gone, nothing),
}
