"""A child that is forked in a callback of a WebSocket: whatever it does there, nothing of it
reaches the wire, and the parent serves on.

The parent waits in the callback until the child has ended, so all that the child may do is done
before. On the wire of a client it would be seen; where something else is planted under the number
of the connection's fd, it shows who writes to that number or reads from it.
"""

import pytest
from support import child, finish

FORKS = """
import logging, os, socket as sockets, sys, warnings
import hydrogen
from support import Client, wait_until
from websocket_peers import Closed, head, options_of, peer_of, ping, pong, recorder, text

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
logging.getLogger("hydrogen").setLevel(logging.CRITICAL)  # not what is raised, in either process
engine, where, does, family, wire = sys.argv[1:]
parent = os.getpid()
reports, report = os.pipe()
ours = None
statuses, fds = [], []

def say(name):
    if os.getpid() != parent:
        os.write(report, name.encode() + b" ")

def plant(fd):
    global ours
    ours, theirs = sockets.socketpair()
    ours.send(b"p")
    return theirs

def act(socket):
    # In the child.
    if does == "raise":
        raise ZeroDivisionError
    if does == "Close":
        raise hydrogen.Close(4002, "of the child")
    if does == "Reject":
        raise hydrogen.Reject("of the child")
    if does == "sys.exit":
        sys.exit(7)
    if does == "return":
        return hydrogen.Response(200, "of the child") if where == "on_request" else None
    if does == "accept":
        return hydrogen.Accept(headers=[("X-Of", "the child")])
    if does == "send":
        said = [socket.send("of the child"), socket.send(b"of the child"), socket.ping(b"child")]
        said += [socket.server.broadcast("of the child"), socket.server.connections]
        if said != [False, False, False, hydrogen.BroadcastReport(0, 0), []]:
            say(repr(said))
    elif does == "close":
        socket.close(4002, "of the child")
    elif does == "abort":
        socket.abort()
    elif does == "stop":
        socket.server.stop()
    elif does == "_exit":
        os._exit(7)

def at(place, socket, *arguments):
    say(place)
    if place != where or statuses or os.getpid() != parent or not is_armed:
        return None
    fds.append(socket.fileno())
    theirs = plant(fds[0]) if wire == "planted" else None
    pid = os.fork()
    if pid == 0:
        if theirs is not None:
            os.dup2(theirs.fileno(), fds[0])
            theirs.close()
            ours.close()
        return act(socket)
    if theirs is not None:
        theirs.close()
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return None

is_armed = False
handler = recorder(
    request=lambda socket, request: at("on_request", socket),
    connected=lambda socket: (at("on_connected", socket), socket.send("welcome"))[0],
    message=lambda socket, data: (at("on_message", socket), socket.send(data))[0],
    pong=lambda socket, data: (at("on_pong", socket), socket.send("ponged"))[0],
    disconnected=lambda socket, error: at("on_disconnected", socket),
)
settings = hydrogen.WebSocket(ping_interval=None, ping_timeout=None, close_timeout=60.0)
server = hydrogen.serve(
    handler, engine=engine, max_threads=1, websocket=settings, **options_of(family, None)
)

def enter():
    peer = peer_of(Client(server.address), family)
    peer.send(head() + text("at once"))
    answer = peer.receive_opening()
    assert "x-of" not in answer.headers, answer
    assert [peer.receive_message(), peer.receive_message()] == ["welcome", "at once"]
    return peer

neighbour = enter()
is_armed = True
peer = enter()
peer.send(text("first") + ping(b"p") + pong(b"q") + text("second"))
came = {peer.receive_frame() for _ in range(4)}
assert {payload for _, payload in came} == {b"first", b"p", b"ponged", b"second"}, came
neighbour.echo("between")
assert peer.say_goodbye(4000, "mine") == Closed(4000, "")
(error,) = handler.wait_disconnected()
assert (type(error), error.code) == (hydrogen.WebSocketClosed, 4000), error
(status,) = wait_until(lambda: statuses, "it has forked")
os.close(report)
assert os.read(reports, 1000) == b"", "something was called in the child, or could be sent"
if wire == "planted":
    try:
        # Whoever closes a socket in which something is unread resets the other end.
        came = ours.recv(1000)
        raise AssertionError(f"what is planted was read, and there was written {came}")
    except ConnectionResetError:
        pass
    ours.close()
neighbour.echo("after")
later = enter()
assert later.say_goodbye() == Closed(1000, "")
assert neighbour.say_goodbye() == Closed(1000, "")
wait_until(lambda: server.stats().removed == 3, "all are removed")
assert dict(server.stats().closes) == {1000: 2, 4000: 1}, server.stats()
assert dict(server.stats().responses) == {}
assert server.stats().removed_handler_error == 0
server.stop()
print(status)
"""

PLACES = ("on_request", "on_connected", "on_message", "on_pong", "on_disconnected")
DEEDS = {"return": 0, "raise": 0, "send": 0, "close": 0, "Close": 0, "abort": 0, "_exit": 7}
CASES = (
    *((where, does, "tcp", "planted") for where in PLACES for does in DEEDS),
    *((where, does, "tcp", "real") for where in PLACES for does in ("send", "close", "Close")),
    *((where, does, "tls", "real") for where in PLACES for does in ("send", "Close")),
    *(("on_request", does, "tcp", "real") for does in ("return", "accept", "raise", "Reject")),
    ("on_request", "return", "tls", "real"),
    ("on_message", "stop", "tcp", "real"),
    ("on_message", "sys.exit", "tcp", "real"),
)


@pytest.mark.slow
@pytest.mark.clause("P4")
@pytest.mark.parametrize(("where", "does", "family", "wire"), CASES)
def test_a_child_that_was_forked_in_a_callback_of_a_websocket_tells_its_clients_nothing(
    engine, where, does, family, wire
):
    out, err = finish(child(FORKS, engine, where, does, family, wire), 0)
    assert (int(out), err) == (DEEDS.get(does, 0), "")
