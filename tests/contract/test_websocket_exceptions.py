"""Any exception, and any nonsense that is returned, from each callback of a WebSocket: the client
is told with its code or status, it is logged, and it costs that connection and nothing else.

Each is provoked more often than there are workers, and a neighbour talks before, between and after.
"""

import pytest
from hostile_errors import ERRORS, Switch, blame, is_a, raising
from support import wait_event, wait_until
from websocket_peers import (
    CONTINUATION,
    FIN,
    TEXT,
    Closed,
    frame,
    head,
    options_of,
    peer_of,
    pong,
    recorder,
    text,
)

import hydrogen

pytestmark = pytest.mark.exhaustive

WORKERS = 2
TIMES = WORKERS + 1
NEVER = 60.0
"""Seconds of the deadlines that must not be what ends a connection."""

ALL = ERRORS | {
    "EngineUnavailable": lambda: hydrogen.EngineUnavailable("mine"),
    "HydrogenError": lambda: hydrogen.HydrogenError("mine"),
    "InvalidText": lambda: hydrogen.InvalidText("mine"),
    "LocalClosed with a code": lambda: hydrogen.LocalClosed("mine", 4002, "mine"),
    "SlowConsumer": lambda: hydrogen.SlowConsumer("mine"),
    "StopAsyncIteration": StopAsyncIteration,
    "WebSocketClosed": lambda: hydrogen.WebSocketClosed(4002, "mine"),
}
errors = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
SOME = (
    "SystemExit", "KeyboardInterrupt", "MemoryError", "StopIteration", "ZeroDivisionError",
    "StrRaises", "Hostile", "Veiled", "ProtocolError", "Reject", "LocalClosed with a code",
    "BlockingIOError",
)  # fmt: skip
some_errors = pytest.mark.parametrize("make", [ALL[name] for name in SOME], ids=SOME)
families = pytest.mark.parametrize("family", ["tcp", "tls"])


class Scene:
    """A server, and a neighbour that is served whatever becomes of others."""

    def __init__(self, start, connect, handler, family="tcp"):
        self.handler, self.family, self._connect = handler, family, connect
        settings = hydrogen.WebSocket(ping_interval=None, ping_timeout=None, close_timeout=NEVER)
        self.server = start(
            handler, max_threads=WORKERS, websocket=settings, **options_of(family, None)
        )
        self.neighbour = self.peer().open()
        self.neighbour.echo("before")

    def peer(self):
        return peer_of(self._connect(self.server), self.family)

    def provoke(self, meet, times=TIMES):
        """Let so many clients do `meet(peer)`, which is to close it, one after the other; the
        errors that they were removed with.
        """
        before = len(self.handler.of("connection_removed"))
        for number in range(1, times + 1):
            meet(self.peer())
            self.handler.wait_for("connection_removed", before + number)
            self.neighbour.echo("between")
        return [call.value for call in self.handler.of("connection_removed")[before:]]

    def end(self):
        """Nobody is left but the neighbour, who is served, as are those who come."""
        self.neighbour.echo("after")
        wait_until(lambda: self.server.stats().connections == 1, "all others are removed")
        assert self.server.connections == [self.handler.socket()]
        peer = self.peer().open()
        peer.echo(b"later")
        assert peer.say_goodbye() == Closed(1000, "")

    def told(self, code):
        """All of them were told this code, or have said it."""
        stats = self.server.stats()
        assert dict(stats.closes) == {code: TIMES}
        assert dict(stats.responses) == {}
        assert stats.removed_protocol_error == 0


def disconnected(handler):
    """The errors of `on_disconnected`: as often as there was an `on_connected` or a message."""
    return [call.value for call in handler.of("disconnected")]


def logged(error_log, error, name, times=TIMES):
    """`error`, as often, as that of the callback `name`."""
    wait_until(lambda: len(error_log()) >= times, "each is logged")
    records = error_log()
    assert len(records) == times
    for record in records:
        assert record.exc_info[1] is error
        assert f"on_{name}" in record.getMessage()


def callbacks(name, hook, switch):
    """A recorder that echoes, and whose callback `name` is `hook` while `switch` is on; that of
    messages for all but the neighbour's.
    """

    def message(socket, data):
        if name == "message" and switch.on and data == "bad":
            return hook(socket, data)
        return socket.send(data)

    def other(*arguments):
        return hook(*arguments) if switch.on else None

    hooks = {"connected": None, "message": message}
    return recorder(**(hooks if name == "message" else hooks | {name: other}))


def provoking(name):
    """What has the callback `name` called, once the connection is open; behind it comes what must
    not be delivered any more.
    """
    return {"message": text("bad"), "pong": pong(b"bad")}.get(name, b"") + text("never")


# ------------------------------------------------------------------- once the connection is open


@errors
@families
@pytest.mark.parametrize("name", ["connected", "message", "pong"])
@pytest.mark.clause("H16")
def test_whatever_a_callback_raises_is_told_with_1011_and_costs_that_connection(
    start, connect, error_log, name, family, make
):
    error, switch = make(), Switch()
    handler = callbacks(name, raising(error), switch)
    scene = Scene(start, connect, handler, family)

    def meet(peer):
        peer.send(head() + provoking(name))
        peer.receive_opening()
        assert peer.answer_close() == Closed(1011, "")

    with switch:
        removals = scene.provoke(meet)
    if is_a(error, hydrogen.HandlerError):
        assert all(removal is error for removal in removals)
    else:
        blame(removals, error)
    for removal, told in zip(removals, disconnected(handler), strict=True):
        assert removal is told
    scene.told(1011)
    assert scene.server.stats().removed_handler_error == TIMES
    assert "never" not in handler.messages()
    logged(error_log, error, name)
    scene.end()


@errors
@pytest.mark.clause("H17")
@pytest.mark.parametrize("name", ["disconnected", "connection_removed"])
@pytest.mark.parametrize("code", [1000, 4001])
def test_whatever_the_last_two_callbacks_raise_is_logged_and_tells_the_client_nothing(
    start, connect, error_log, name, code, make
):
    error, switch = make(), Switch()
    handler = callbacks(name, raising(error), switch)
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke(lambda peer: peer.open().say_goodbye(code))
        wait_until(lambda: len(error_log()) >= TIMES, "each is raised")
    assert [removal.code for removal in removals] == [code] * TIMES
    assert len(disconnected(handler)) == TIMES
    scene.told(code)
    logged(error_log, error, name)
    scene.end()


@some_errors
def test_of_what_each_callback_raises_the_first_is_told(start, connect, error_log, make):
    """The last two are called all the same."""
    first, last, switch = make(), make(), Switch()
    handler = callbacks("connected", raising(first), switch)

    def at_the_end(*arguments):
        if switch.on:
            raise last

    handler.hooks |= dict.fromkeys(["on_disconnected", "on_connection_removed"], at_the_end)
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke(lambda peer: peer.open().answer_close())
        wait_until(lambda: len(error_log()) >= 3 * TIMES, "each is raised")
    blame(removals, first)
    assert disconnected(handler) == removals
    scene.told(1011)
    assert len(error_log()) == 3 * TIMES
    scene.end()


@some_errors
@pytest.mark.parametrize("name", ["connected", "message", "pong"])
def test_what_is_raised_behind_a_close_does_not_take_its_code_away(
    start, connect, error_log, name, make
):
    error, switch = make(), Switch()

    def hook(socket, *arguments):
        socket.send("before")
        socket.close(4001, "of mine")
        raise error

    handler = callbacks(name, hook, switch)
    scene = Scene(start, connect, handler)

    def meet(peer):
        peer.open().send(provoking(name))
        assert peer.receive_message() == "before"
        assert peer.answer_close() == Closed(4001, "of mine")

    with switch:
        removals = scene.provoke(meet)
    assert [type(removal) for removal in removals] == [hydrogen.LocalClosed] * TIMES
    scene.told(4001)
    logged(error_log, error, name)
    scene.end()


@some_errors
@pytest.mark.parametrize("name", ["connected", "message", "pong"])
def test_what_is_raised_behind_an_abort_is_only_logged(start, connect, error_log, name, make):
    error, switch = make(), Switch()

    def hook(socket, *arguments):
        socket.abort()
        raise error

    handler = callbacks(name, hook, switch)
    scene = Scene(start, connect, handler)

    def meet(peer):
        peer.send(head() + provoking(name))
        assert peer.at_end() == "reset"

    with switch:
        removals = scene.provoke(meet)
    assert [type(removal) for removal in removals] == [hydrogen.LocalClosed] * TIMES
    assert disconnected(handler) == removals
    scene.told(1006)
    logged(error_log, error, name)
    scene.end()


@some_errors
def test_what_is_raised_when_the_client_has_gone_is_logged(start, connect, error_log, gate, make):
    error, go, switch = make(), gate(), Switch()

    def hook(socket, data):
        wait_event(go, "the client has gone")
        raise error

    handler = callbacks("message", hook, switch)
    scene = Scene(start, connect, handler)
    peer = scene.peer().open()
    with switch:
        peer.send(text("bad"))
        handler.wait(lambda: "bad" in handler.messages(), "the callback")
        peer.client.reset()
        go.set()
        (removal,) = handler.wait_removed()
    assert is_a(removal, (hydrogen.HandlerError, ConnectionResetError))
    logged(error_log, error, "message", 1)
    scene.end()


@some_errors
def test_what_is_raised_amid_a_message_in_parts_is_told_with_1011(start, connect, error_log, make):
    """By `on_pong`, where the second part is on its way, and comes before the answer to the
    CLOSE.
    """
    error, switch = make(), Switch()
    handler = callbacks("pong", raising(error), switch)
    scene = Scene(start, connect, handler)

    def meet(peer):
        peer.open().send(frame(TEXT, b"nev") + pong() + frame(FIN | CONTINUATION, b"er"))
        assert peer.answer_close() == Closed(1011, "")

    with switch:
        blame(scene.provoke(meet), error)
    scene.told(1011)
    assert "never" not in handler.messages()
    logged(error_log, error, "pong")
    scene.end()


# ------------------------------------------------------------------------------------- on_request


def requested(hook, switch):
    """A recorder that echoes, and whose `on_request` is `hook` while `switch` is on."""
    return callbacks("request", hook, switch)


def answered(scene, switch, status):
    """The removals of clients that were answered so, and then nothing more."""

    def meet(peer):
        peer.send(head() + text("never"))
        answer = peer.refused()
        assert answer.status == status
        assert b"mine" not in answer.body

    with switch:
        removals = scene.provoke(meet)
    stats = scene.server.stats()
    assert (dict(stats.responses), dict(stats.closes)) == ({status: TIMES}, {})
    assert disconnected(scene.handler) == []
    assert len(scene.handler.of("connected")) == 1  # the neighbour
    return removals


@errors
@families
@pytest.mark.clause("H16")
def test_whatever_on_request_raises_is_answered_with_500_and_costs_that_connection(
    start, connect, error_log, family, make
):
    error, switch = make(), Switch()
    scene = Scene(start, connect, requested(raising(error), switch), family)
    if is_a(error, hydrogen.Reject):
        assert all(removal is error for removal in answered(scene, switch, 403))
        assert error_log() == []
        assert scene.server.stats().removed_reject == TIMES
    else:
        blame(answered(scene, switch, 500), error)
        logged(error_log, error, "request")
        assert scene.server.stats().removed_handler_error == TIMES
    scene.end()


def without_init(kind):
    """One that was made without its `__init__`: it has no attribute."""
    return kind.__new__(kind)


def subclass(kind, *arguments, **attributes):
    """A `kind` of which these are attributes of its class."""
    made = type("Mine", (kind,), attributes)
    made.__init__ = lambda self: None
    return made()


def odd_response(**attributes):
    """A `Response` with other methods."""
    return type("Mine", (hydrogen.Response,), attributes)(200, "mine")


def odd_accept(**attributes):
    """An `Accept` with other attributes, which cannot be set."""
    return subclass(hydrogen.Accept, **({"subprotocol": None, "headers": ()} | attributes))


def nonsense(error):
    """An object that raises `error` whatever it is asked for."""
    answer = raising(error)
    names = ("__repr__", "__str__", "__eq__", "__bool__", "__len__", "__iter__", "__format__")
    return type("Nonsense", (), dict.fromkeys(names, answer) | {"__hash__": answer})()


def generator():
    """As who writes `yield` in `on_request` returns it."""
    yield hydrogen.Accept()


WRONG = {
    "0": lambda: 0,
    "200": lambda: 200,
    "str": lambda: "mine",
    "bytes": lambda: b"mine",
    "True": lambda: True,
    "False": lambda: False,
    "NotImplemented": lambda: NotImplemented,
    "Ellipsis": lambda: ...,
    "an exception": lambda: hydrogen.Reject("mine"),
    "a Close": lambda: hydrogen.Close(4001, "mine"),
    "the class Accept": lambda: hydrogen.Accept,
    "the class Response": lambda: hydrogen.Response,
    "a tuple": lambda: (200, "mine"),
    "a dict": lambda: {"status": 200},
    "a generator": generator,
    "a function": lambda: lambda: hydrogen.Accept(),
    "an Accept that was not made": lambda: without_init(hydrogen.Accept),
    "a Response that was not made": lambda: without_init(hydrogen.Response),
    "bytes that are str": lambda: odd_response(to_bytes=lambda self: "HTTP/1.1 200 OK\r\n\r\n"),
    "bytes that are None": lambda: odd_response(to_bytes=lambda self: None),
    "bytes that are no function": lambda: odd_response(to_bytes=b"mine"),
}
wrong = pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)


def refused_as_wrong(scene, switch, error_log):
    """All were answered with 500, and it was logged as `on_request`'s; the causes."""
    removals = answered(scene, switch, 500)
    assert [type(removal) for removal in removals] == [hydrogen.HandlerError] * TIMES
    wait_until(lambda: len(error_log()) >= TIMES, "each is logged")
    assert all("on_request" in record.getMessage() for record in error_log())
    assert len(error_log()) == TIMES
    assert scene.server.stats().removed_handler_error == TIMES
    scene.end()
    return [removal.__cause__ for removal in removals]


@wrong
def test_what_is_no_answer_is_answered_with_500(start, connect, error_log, make):
    switch = Switch()
    handler = requested(lambda socket, request: make(), switch)
    refused_as_wrong(Scene(start, connect, handler), switch, error_log)


@some_errors
def test_nonsense_from_on_request_that_cannot_be_described_is_answered_with_500(
    start, connect, error_log, make
):
    switch = Switch()
    handler = requested(lambda socket, request: nonsense(make()), switch)
    causes = refused_as_wrong(Scene(start, connect, handler), switch, error_log)
    assert [type(cause) for cause in causes] == [TypeError] * TIMES


ASKED = {
    "Response.status": lambda error: odd_response(
        status=property(raising(error), lambda self, value: None)
    ),
    "Response.headers": lambda error: subclass(
        hydrogen.Response, status=200, body=b"mine", headers=property(raising(error))
    ),
    "Response.to_bytes": lambda error: odd_response(to_bytes=raising(error)),
    "Response.to_bytes itself": lambda error: odd_response(to_bytes=property(raising(error))),
    "Accept.subprotocol": lambda error: odd_accept(subprotocol=property(raising(error))),
    "Accept.headers": lambda error: odd_accept(headers=property(raising(error))),
    "its class": lambda error: type("Veiled", (), {"__class__": property(raising(error))})(),
}
"""What an answer is asked for, and cannot say."""

FEW = ("SystemExit", "KeyboardInterrupt", "MemoryError", "ZeroDivisionError", "Hostile")


@pytest.mark.parametrize("make", [ALL[name] for name in FEW], ids=FEW)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_whatever_an_answer_raises_when_it_is_asked_is_on_request_s(
    start, connect, error_log, ask, make
):
    """It is as if `on_request` had raised it."""
    error, switch = make(), Switch()
    handler = requested(lambda socket, request: ask(error), switch)
    refused_as_wrong(Scene(start, connect, handler), switch, error_log)


# ------------------------------------------------------------------------------------------ Close


@families
@pytest.mark.parametrize("name", ["connected", "message", "pong"])
@pytest.mark.parametrize("reason", ["", "x" * 123, "\u00e4" * 61])
def test_close_is_told_with_its_code_each_time(start, connect, name, family, reason):
    switch = Switch()
    handler = callbacks(name, raising(hydrogen.Close(4001, reason)), switch)
    scene = Scene(start, connect, handler, family)

    def meet(peer):
        peer.open().send(provoking(name))
        assert peer.answer_close() == Closed(4001, reason)

    with switch:
        removals = scene.provoke(meet)
    assert [(type(error), error.code, error.reason) for error in removals] == [
        (hydrogen.LocalClosed, 4001, reason)
    ] * TIMES
    assert disconnected(handler) == removals
    scene.told(4001)
    scene.end()


@pytest.mark.parametrize("name", ["disconnected", "connection_removed"])
def test_close_at_the_end_changes_nothing_and_is_no_secret(start, connect, error_log, name):
    """`on_connection_removed` has no connection to close any more."""
    switch = Switch()
    handler = callbacks(name, raising(hydrogen.Close(4001)), switch)
    scene = Scene(start, connect, handler)
    with switch:
        removals = scene.provoke(lambda peer: peer.open().say_goodbye(1000))
    assert [removal.code for removal in removals] == [1000] * TIMES
    scene.told(1000)
    scene.end()
    assert error_log() == []


def changed(**attributes):
    """A `Close` that was changed afterwards."""
    close = hydrogen.Close(4001, "mine")
    for name, value in attributes.items():
        setattr(close, name, value)
    return close


BROKEN = {
    "not made": lambda: without_init(hydrogen.Close),
    "code raises": lambda: subclass(hydrogen.Close, code=property(raising(KeyError())), reason=""),
    "code exits": lambda: subclass(hydrogen.Close, code=property(raising(SystemExit())), reason=""),
    "reason raises": lambda: subclass(
        hydrogen.Close, code=4001, reason=property(raising(KeyError()))
    ),
    "code is None": lambda: changed(code=None),
    "code is str": lambda: changed(code="4001"),
    "code is over 16 bits": lambda: changed(code=1 << 16),
    "code is negative": lambda: changed(code=-1),
    "code is 1006": lambda: changed(code=1006),
    "code is 0": lambda: changed(code=0),
    "reason is None": lambda: changed(reason=None),
    "reason is bytes": lambda: changed(reason=b"mine"),
    "reason is long": lambda: changed(reason="x" * 1000),
    "reason is half a surrogate": lambda: changed(reason="\ud800"),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_close_that_cannot_be_sent_is_a_fault_of_the_callback(start, connect, error_log, make):
    error, switch = make(), Switch()
    handler = callbacks("message", raising(error), switch)
    scene = Scene(start, connect, handler)

    def meet(peer):
        peer.open().send(provoking("message"))
        assert peer.answer_close().code == 1011

    with switch:
        removals = scene.provoke(meet)
    assert [type(removal) for removal in removals] == [hydrogen.HandlerError] * TIMES
    assert disconnected(handler) == removals
    scene.told(1011)
    wait_until(lambda: len(error_log()) >= TIMES, "each is logged")
    assert len(error_log()) == TIMES
    scene.end()
