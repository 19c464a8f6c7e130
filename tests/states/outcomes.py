"""The outcomes: what the user and the peer see. The first line of each docstring is printed."""

from __future__ import annotations

from states.document import Outcome
from states.scene import Scene
from support import PATIENCE, wait_until

import hydrogen


def named(text: str, outcome: Outcome) -> Outcome:
    """The outcome, with what is printed of it."""
    outcome.__doc__ = text
    return outcome


def flood_is_taken(scene: Scene) -> None:
    """If there is one."""
    if scene.flooded is not None:
        assert scene.flooded.wait(PATIENCE), "the flood is not taken"
        assert scene.flood_error is None


# -------------------------------------------------------------------------------------- meanwhile


def held(scene: Scene) -> None:
    """nothing is delivered, and the connection stays"""
    scene.barrier()
    assert len(scene.messages()) == scene.before
    assert scene.error() is None


def outlasted(scene: Scene) -> None:
    """this connection does not meet the timeout"""
    scene.outlast()
    scene.barrier()
    assert scene.error() is None


def taken(scene: Scene) -> None:
    """`send` returns True"""
    assert scene.answer is True


def refused(scene: Scene) -> None:
    """`send` returns False"""
    assert scene.answer is False


def at_once(scene: Scene) -> None:
    """the peer reads it while the callback runs"""
    scene.read()
    assert not scene.go.is_set()


def closed(scene: Scene) -> None:
    """`is_open` is False"""
    wait_until(lambda: not scene.socket.is_open, "it is closed")


def closed_meanwhile(scene: Scene) -> None:
    """`drain` returns False: the connection is gone, although the callback runs"""
    assert scene.socket.drain(PATIENCE) is False
    assert not scene.socket.is_open


def still_open(scene: Scene) -> None:
    """`is_open` is True"""
    assert scene.socket.is_open


# -------------------------------------------------------------------------------------- then


def released(scene: Scene) -> None:
    """then, released,"""
    scene.release()


def another(scene: Scene) -> None:
    """a message arrives"""
    scene.say(b"another")


def reached(scene: Scene) -> None:
    """what the user sends reaches the peer"""
    assert scene.push(scene.socket, b"on and on")
    scene.read()


def rest(scene: Scene) -> None:
    """the rest arrives"""
    scene.say(b"age")


def resumed(scene: Scene) -> None:
    """then, resumed,"""
    scene.socket.resume_reading()


def read(scene: Scene) -> None:
    """the peer reads all it is owed"""
    scene.read()


def written_to(scene: Scene) -> None:
    """the user sends"""
    scene.socket.send(b"to nobody")


def delivered(scene: Scene) -> None:
    """all the peer sent is delivered"""
    flood_is_taken(scene)
    scene.handler.wait(
        lambda: len(scene.messages()) >= len(scene.sent), f"{len(scene.sent)} messages"
    )
    assert scene.messages() == scene.sent


def dropped(scene: Scene) -> None:
    """nothing more is delivered"""
    assert len(scene.messages()) == scene.before


def serves(scene: Scene) -> None:
    """the connection serves on"""
    scene.say(b"last but one")
    scene.hear()
    assert scene.error() is None


def ends(*kinds: type[Exception]) -> Outcome:
    """It is removed, with an error of one of these classes."""

    def outcome(scene: Scene) -> None:
        error = scene.wait_removed()
        assert type(error) in kinds, f"{error!r}"

    return named("ends with " + " or ".join(f"`{kind.__name__}`" for kind in kinds), outcome)


def timed_out(scene: Scene) -> None:
    """ends with `ConnectionTimeout`, which names the timeout"""
    error = scene.wait_removed()
    assert type(error) is hydrogen.ConnectionTimeout, f"{error!r}"
    assert str(error).startswith(f"{scene.timeout}:")


def reset(scene: Scene) -> None:
    """the peer is reset (Unix: meets the end)"""
    seen = scene.peer.end()
    assert seen == "reset" or (scene.family == "unix" and seen == "end"), seen


def end(scene: Scene) -> None:
    """the peer reads all it is owed, then the end"""
    flood_is_taken(scene)
    assert scene.peer.receive_until_end() == scene.owed
    scene.peer.close()


def bare_end(scene: Scene) -> None:
    """the peer meets the end"""
    assert scene.peer.client.at_end() == "end"
    scene.peer.client.close()


def unharmed(scene: Scene) -> None:
    """the connection that has the slot serves on"""
    assert scene.successor is not None
    scene.successor.send(b"successor\n")
    assert scene.successor.receive(13) == b"re successor\n"
    assert (scene.socket.is_open, scene.socket.pending, scene.socket.fileno()) == (False, 0, -1)


def all_end(scene: Scene) -> None:
    """the connection that has the slot ends; nothing more is said of this one"""
    assert scene.successor is not None
    assert scene.successor.receive_until_end() == b""
    scene.successor.close()
    scene.handler.wait_removed(2)
    assert (
        len([call for call in scene.handler.of("disconnected") if call.socket == scene.socket]) == 1
    )


def all_are_reset(scene: Scene) -> None:
    """the connection that has the slot is reset; nothing more is said of this one"""
    assert scene.successor is not None
    assert scene.successor.end() == ("end" if scene.family == "unix" else "reset")
    scene.handler.wait_removed(2)
    assert (
        len([call for call in scene.handler.of("disconnected") if call.socket == scene.socket]) == 1
    )
