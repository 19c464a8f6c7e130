"""TLS and on_new_connection: who speaks it when a stream is returned, and streams that were used by
hand before they were.
"""

import os
import ssl
import threading

import pytest
from certificates import MISNAMED, server_context
from support import PATIENCE, TlsClient, echo, length_frame, line, recorder, wait_event, wait_until

import hydrogen

# -------------------------------------------------------------------------------- on_new_connection


@pytest.mark.clause("H6", "H23")
def test_on_new_connection_that_returns_none_leaves_tls_to_the_server(start, secure):
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    client = secure(start(handler, ssl=server_context()))
    client.echo(b"hello")
    client.close()
    handler.wait_removed()
    assert handler.names() == [
        "on_new_connection",
        "on_connected",
        "on_data_received",
        "on_disconnected",
        "on_connection_removed",
    ]


@pytest.mark.clause("H7")
def test_reject_comes_before_the_handshake(start, connect, trust):
    def refuse(fd):
        raise hydrogen.Reject

    handler = recorder(new_connection=refuse, connected=None)
    client = connect(start(handler, ssl=server_context()))
    with pytest.raises(OSError):  # noqa: PT011 - whichever way it notices
        TlsClient(client, trust).handshake()
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.Reject
    assert handler.names() == ["on_new_connection", "on_connection_removed"]


@pytest.mark.clause("T10")
def test_an_adopted_plain_stream_has_no_tls_whatever_the_config_says(start, connect):
    handler = recorder(
        new_connection=lambda fd: hydrogen.Plain(fd, hydrogen.LineFrameBuilder()),
        connected=None,
        data_received=echo,
    )
    client = connect(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder))
    handler.wait_for("connected")
    client.echo(b"in the clear\n")
    assert handler.socket().get_extra_info("ssl_object") is None


@pytest.mark.clause("T1", "T7")
def test_a_stream_of_the_user_s_has_no_tls_whatever_the_config_says(start, connect):
    class Loud(hydrogen.Stream):
        def __init__(self, fd):
            self.fd = fd

        def recv(self):
            part = os.read(self.fd, 1000)
            if not part:
                raise EOFError
            return [part.upper()]

        def send(self, buf):
            os.write(self.fd, buf)

        def shutdown(self):
            pass

        def fileno(self):
            return self.fd

    handler = recorder(new_connection=Loud, connected=None, data_received=echo)
    client = connect(start(handler, ssl=server_context()))
    handler.wait_for("connected")
    client.send(b"loud")
    assert client.receive(4) == b"LOUD"


@pytest.mark.clause("T9", "T10", "T15", "H23")
def test_an_adopted_secure_stream_has_tls_whatever_the_config_says(start, connect, trust):
    context = server_context()
    taken = threading.Event()

    def secure_the_first(fd):
        if taken.is_set():
            return None
        taken.set()
        return hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context)

    handler = recorder(new_connection=secure_the_first, connected=None, data_received=echo)
    server = start(handler)
    client = TlsClient(connect(server), trust)
    wait_event(taken, "it is the first")
    plain = connect(server)
    plain.echo(b"in the clear")
    # not the one that has not shaken hands
    assert [call.socket for call in handler.of("connected")] == server.connections
    client.handshake().echo(b"encrypted\n")
    assert handler.messages(handler.of("connected")[1].id) == [b"encrypted"]
    assert handler.of("connected")[1].socket.get_extra_info("sslcontext") is context
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed


@pytest.mark.clause("T9", "T10")
def test_an_adopted_secure_stream_has_its_own_context_and_framing(start, connect, trust):
    mine = server_context(MISNAMED)
    handler = recorder(
        new_connection=lambda fd: hydrogen.Secure(fd, None, mine), data_received=echo
    )
    client = TlsClient(
        connect(start(handler, ssl=server_context(), framing=hydrogen.SimpleFrameBuilder)),
        trust,
        name="elsewhere.example.org",
    ).handshake()
    client.echo(b"no frame")


@pytest.mark.clause("T1", "T15")
def test_a_class_derived_from_secure_is_a_stream_of_the_user_s(start, connect, trust):
    context = server_context()

    class Loud(hydrogen.Secure):
        def recv(self):
            return [message.upper() for message in super().recv()]

    handler = recorder(
        new_connection=lambda fd: Loud(fd, hydrogen.LineFrameBuilder(), context), data_received=echo
    )
    client = TlsClient(connect(start(handler)), trust)
    client.handshake()
    client.send(b"one\ntwo\n")
    assert client.receive(8) == b"ONE\nTWO\n"
    client.finish()
    assert client.at_end() == "end"


# --------------------------------------------------------------------- Secure by hand, then adopted


def login(context):
    """An on_new_connection that reads a line by hand, answers it, and gives the connection to the
    server.
    """

    def login(fd):
        stream = hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context)
        stream.b_send(hydrogen.LineFrame(b"welcome " + stream.b_recv(timeout=PATIENCE).payload()))
        return stream

    return login


@pytest.mark.clause("T11", "T14", "T15")
@pytest.mark.parametrize("records", [1, 3], ids=["one record", "a record each"])
def test_what_was_read_by_hand_and_not_asked_for_is_delivered_first_and_without_a_further_byte(
    start, secure, records
):
    handler = recorder(new_connection=login(server_context()), connected=None, data_received=echo)
    client = secure(start(handler))
    wire = [b"user\n", b"one\n", b"two\nthr"]
    client.client.send(
        b"".join(map(client.encrypt, wire)) if records == 3 else client.encrypt(b"".join(wire))
    )
    assert client.receive(13 + 8) == b"welcome user\none\ntwo\n"
    client.send(b"ee\n")
    assert client.receive(6) == b"three\n"
    assert handler.names()[:2] == ["on_new_connection", "on_connected"]
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.PeerClosed


@pytest.mark.clause("T11", "H23")
def test_a_stream_whose_handshake_was_done_by_hand_is_ready_without_a_further_byte(start, secure):
    handler = recorder(
        new_connection=login(server_context()), connected=lambda socket: socket.send(b"go on")
    )
    client = secure(start(handler))
    client.send(b"user\n")
    assert client.receive(19) == b"welcome user\ngo on\n"


@pytest.mark.clause("T11", "T15", "H23")
def test_a_handshake_begun_by_hand_is_finished_by_the_server(start, connect, gate, trust):
    go, begun, context = gate(), [], server_context()

    def begin(fd):
        wait_event(go, "the client has said hello")
        stream = hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context)
        begun.append(stream.nb_recv())
        return stream

    handler = recorder(new_connection=begin, connected=None, data_received=echo)
    client = TlsClient(connect(start(handler)), trust)
    client.client.send(client.step())
    handler.wait_for("new_connection")
    go.set()
    wait_until(lambda: begun, "the server's part is sent by hand")
    client.handshake().echo(b"hello\n")
    assert begun == [[]]


@pytest.mark.clause("T11", "T13")
def test_what_was_not_written_by_hand_is_written_first(start, secure):
    first, context = os.urandom(8_000_000), server_context()

    def greet(fd):
        stream = hydrogen.Secure(fd, hydrogen.LengthFrameBuilder(max_size=16 << 20), context)
        assert stream.b_recv(timeout=PATIENCE).payload() == b"zero"
        with pytest.raises(BlockingIOError):
            stream.nb_send(hydrogen.LengthFrame(first))
        return stream

    handler = recorder(
        new_connection=greet, connected=lambda socket: socket.send(b"second"), data_received=echo
    )
    client = secure(start(handler), receive_buffer=65_536)
    client.send(length_frame(b"zero"))
    handler.wait_for("connected")
    client.send(length_frame(b"third"))  # which is not read before the first has left
    expected = length_frame(first) + length_frame(b"second") + length_frame(b"third")
    assert client.receive(len(expected)) == expected


@pytest.mark.clause("T11", "H10", "H24")
@pytest.mark.parametrize("clean", [True, False], ids=["close_notify", "truncated"])
def test_an_end_that_was_read_by_hand_is_told_after_what_came_before_it(start, secure, gate, clean):
    go, context = gate(), server_context()

    def slowly(fd):
        stream = hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context)
        assert stream.b_recv(timeout=PATIENCE).payload() == b"user"
        wait_event(go, "the client has sent all and closed")
        stream.b_send(hydrogen.LineFrame(b"welcome " + stream.b_recv(timeout=PATIENCE).payload()))
        return stream

    handler = recorder(new_connection=slowly, connected=None)
    client = secure(start(handler))
    client.send(b"user\n")
    client.client.send(
        client.encrypt(line(b"again") + line(b"one")) + (client.close_notify() if clean else b"")
    )
    client.client.finish()
    go.set()
    assert client.receive_until_end() == b"welcome again\n"
    (error,) = handler.wait_removed()
    assert type(error) is (hydrogen.PeerClosed if clean else ssl.SSLEOFError)
    assert handler.messages() == [b"one"]


@pytest.mark.clause("T11", "H24")
def test_a_broken_record_that_was_read_by_hand_ends_the_connection_after_what_came_before_it(
    start, secure
):
    context = server_context()

    def listen(fd):
        stream = hydrogen.Secure(fd, hydrogen.LineFrameBuilder(), context)
        assert stream.b_recv(timeout=PATIENCE).payload() == b"user"
        return stream

    handler = recorder(new_connection=listen, connected=None, data_received=echo)
    client = secure(start(handler))
    good, bad = client.encrypt(b"user\none\n"), client.encrypt(b"never\n")
    client.client.send(good + bad[:-1] + bytes([bad[-1] ^ 1]))
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.receive_until_end()
    client.client.close()
    (error,) = handler.wait_removed()
    assert isinstance(error, ssl.SSLError)
    assert not isinstance(error, ssl.SSLEOFError)
    assert handler.messages() == [b"one"]


@pytest.mark.clause("H16", "T15")
def test_a_handshake_that_fails_by_hand_and_is_not_caught_is_the_callback_s_error(
    start, connect, error_log
):
    handler = recorder(new_connection=login(server_context()), connected=None)
    client = connect(start(handler))
    client.send(b"GET / HTTP/1.1\r\n\r\n")
    assert client.at_end() in ("end", "reset")
    client.close()
    (removal,) = handler.wait_removed()
    assert type(removal) is hydrogen.HandlerError
    assert isinstance(removal.__cause__, ssl.SSLError)
    assert handler.names() == ["on_new_connection", "on_connection_removed"]
    wait_until(error_log, "it is logged")
