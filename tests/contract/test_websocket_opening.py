"""What else may happen while a WebSocket connection is being opened: ends, from either side, a stop
of the server, and what its first callbacks raise.
"""

import pytest
from families import PassThrough
from support import running, settled, wait_event, wait_until
from websocket_peers import Closed, echo, head, peer_of, recorder, text

import hydrogen
from hydrogen import WebSocket


@pytest.mark.parametrize(
    "close",
    [
        lambda socket: socket.close(),
        lambda socket: socket.close(4001, "early"),
        lambda socket: socket.shutdown(),
    ],
    ids=["close", "close with a code", "shutdown"],
)
@pytest.mark.parametrize("result", [None, hydrogen.Accept(), hydrogen.Response(200, "ok")])
def test_closing_in_on_request_ends_the_connection_without_an_answer(start, connect, close, result):
    def request(socket, request):
        close(socket)
        return result

    handler = recorder(request=request, connected=None)
    server = start(handler)
    peer = peer_of(connect(server))
    peer.send(head() + text("hello"))
    peer.meet_end()
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.LocalClosed]
    assert handler.names() == ["on_request", "on_connection_removed"]
    assert dict(server.stats().responses) == dict(server.stats().closes) == {}


def test_abort_in_on_request_resets_the_connection(start, connect):
    handler = recorder(request=lambda socket, request: socket.abort(), connected=None)
    peer = peer_of(connect(start(handler)))
    peer.send(head())
    assert peer.at_end() == "reset"
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.LocalClosed]
    assert handler.names() == ["on_request", "on_connection_removed"]


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_that_goes_while_on_request_blocks_is_removed(start, connect, gate, how):
    """It may or may not have been connected for a moment; the recorder checks that the callbacks
    are paired.
    """
    go = gate()
    handler = recorder(
        request=lambda socket, request: wait_event(go, "the client is gone"), connected=None
    )
    client = connect(start(handler))
    client.send(head())
    handler.wait_for("request")
    client.reset() if how == "reset" else client.close()
    go.set()
    (error,) = handler.wait_removed()
    assert isinstance(error, (ConnectionError, hydrogen.WebSocketClosed))


def test_a_client_that_does_not_read_its_answer_is_reset_at_write_timeout(start, connect):
    answer = hydrogen.Response(200, "x" * (8 << 20))
    handler = recorder(request=lambda socket, request: answer)
    peer = peer_of(connect(start(handler, write_timeout=0.3), receive_buffer=8192))
    peer.send(head())
    handler.wait_removed()
    assert peer.at_end() == "reset"


def test_what_comes_behind_the_request_waits_for_the_end_of_a_pause(start, connect):
    handler = recorder(request=lambda socket, request: socket.pause_reading(), message=echo)
    peer = peer_of(connect(start(handler)))
    peer.send(head() + text("held"))
    peer.receive_opening()
    settled(lambda: len(handler.names()))
    assert handler.messages() == []
    handler.socket().resume_reading()
    assert peer.receive_message() == "held"


def test_a_stream_of_the_users_cannot_speak_websocket(start, connect, error_log):
    streams = []

    def new_connection(fd):
        streams.append(PassThrough(fd))
        return streams[-1]

    handler = recorder(new_connection=new_connection)
    client = connect(start(handler))
    assert client.at_end() in ("end", "reset")
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.HandlerError
    assert type(error.__cause__) is TypeError
    assert len(error_log()) == 1


def test_reject_in_on_new_connection_resets_without_an_answer(start, connect):
    def new_connection(fd):
        raise hydrogen.Reject

    handler = recorder(new_connection=new_connection, request=None)
    assert connect(start(handler)).at_end() == "reset"
    handler.wait_removed()
    assert handler.names() == ["on_new_connection", "on_connection_removed"]


# ------------------------------------------------------------------------------------- on_connected


def test_a_greeting_comes_behind_the_answer_and_before_replies(start, connect):
    handler = recorder(connected=lambda socket: socket.send("welcome"), message=echo)
    peer = peer_of(connect(start(handler)))
    peer.send(head() + text("hello"))
    peer.receive_opening()
    assert [peer.receive_message(), peer.receive_message()] == ["welcome", "hello"]


def test_what_on_connected_raises_is_told_with_1011(start, connect, error_log):
    def connected(socket):
        raise KeyError("secret")

    handler = recorder(connected=connected)
    peer = peer_of(connect(start(handler))).open()
    closed = peer.answer_close()
    assert closed.code == 1011
    assert "secret" not in closed.reason
    (error,) = handler.wait_disconnected()
    assert type(error) is hydrogen.HandlerError
    assert len(error_log()) == 1


@pytest.mark.parametrize("how", ["raise", "call"])
def test_closing_in_on_connected_tells_the_code(start, connect, how):
    def connected(socket):
        socket.send("first")
        if how == "raise":
            raise hydrogen.Close(4001, "abgewiesen, schöne Grüße")
        socket.close(4001, "abgewiesen, schöne Grüße")

    handler = recorder(connected=connected)
    peer = peer_of(connect(start(handler)))
    peer.send(head() + text("never"))
    peer.receive_opening()
    assert peer.receive_message() == "first"
    assert peer.answer_close() == Closed(4001, "abgewiesen, schöne Grüße")
    (error,) = handler.wait_disconnected()
    assert (type(error), error.code) == (hydrogen.LocalClosed, 4001)
    assert handler.messages() == []


# ------------------------------------------------------------------------------------------- a stop


@pytest.mark.parametrize(
    "begun", [b"", head()[:40], head()[:-1]], ids=["", "a part", "all but one"]
)
def test_a_stop_ends_a_connection_whose_head_is_not_there(start, connect, begun):
    handler = recorder(request=None, connected=None)
    server = start(handler)
    client = connect(server)
    client.send(begun)
    wait_until(lambda: server.stats().bytes_received == len(begun), "it is read")
    wait_until(lambda: server.stats().accepted, "it is accepted")
    with running(lambda: server.stop(20)):
        assert client.at_end() == "end"
        client.close()
    assert [type(error) for error in handler.wait_removed()] == [hydrogen.ServerStopped]
    assert handler.names() == ["on_connection_removed"]


@pytest.mark.parametrize("result", [None, hydrogen.Response(200, "ok\n")], ids=["open", "answer"])
def test_a_request_that_is_being_answered_during_a_stop_is_answered(start, connect, gate, result):
    go = gate()

    def request(socket, request):
        wait_event(go, "the stop has begun")
        return result

    handler = recorder(
        request=request, connected=lambda socket: socket.send("welcome"), message=echo
    )
    server = start(handler, websocket=WebSocket(stop_code=1012))
    peer = peer_of(connect(server))
    peer.send(head() + text("hello"))
    handler.wait_for("request")
    reports = []
    with running(lambda: reports.append(server.stop(20))):
        wait_until(lambda: not server.ready, "the stop begins")
        settled(lambda: len(handler.names()))
        go.set()
        if result is None:
            peer.receive_opening()
            assert [peer.receive_message(), peer.receive_message()] == ["welcome", "hello"]
            assert peer.answer_close() == Closed(1012, "")
        else:
            assert peer.refused().body == b"ok\n"
    assert (reports[0].closed, reports[0].aborted) == (1, 0)


def test_a_request_that_is_answered_too_late_for_a_stop_is_abandoned(start, connect, gate):
    go = gate()
    handler = recorder(request=lambda socket, request: wait_event(go, "the stop is over"))
    server = start(handler)
    peer = peer_of(connect(server))
    peer.send(head())
    handler.wait_for("request")
    reports = []
    with running(lambda: reports.append(server.stop(0.2))):
        pass
    assert reports[0].abandoned == 1
    go.set()
    assert peer.at_end() == "reset"


def test_one_that_is_closed_just_before_it_is_accepted_is_told_nothing(start, connect):
    """Nor is it sent a CLOSE, which is nothing to who waits for an answer of HTTP."""

    class Closing(hydrogen.Accept):
        """Looked at when the answer is made: as if another thread had closed just then."""

        socket = None

        @property
        def headers(self):
            self.socket.close()
            return ()

        @headers.setter
        def headers(self, value):
            pass

    def asked(socket, request):
        accept = Closing()
        accept.socket = socket
        return accept

    handler = recorder(request=asked, connected=None)
    peer = peer_of(connect(start(handler)))
    peer.send(head())
    peer.meet_end()
    assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
    assert handler.of("connected") == handler.of("disconnected") == []
