"""`TlsSession` where an engine does not show it: what it costs, and what it leaves behind."""

import gc
import ssl
import weakref

import certificates
import pytest
from certificates import VERSIONS

from hydrogen.tls import RECORD, TlsSession, check_context


class Watched(TlsSession):
    """One that can be told from its memory being gone."""

    __slots__ = ("__weakref__",)


def shaken(version):
    """A server's and a client's session, done with their handshake."""
    server = TlsSession(certificates.server_context(version=version), server_side=True)
    client = TlsSession(
        certificates.client_context(version=version), server_side=False, server_hostname="localhost"
    )
    client.start()
    while not (server.is_ready and client.is_ready):
        server.receive(client.take())
        client.receive(server.take())
    server.receive(client.take())
    client.receive(server.take())
    return server, client


@pytest.fixture
def no_collector():
    """So that only references that go at once are gone."""
    gc.disable()
    yield
    gc.enable()


def test_a_failed_session_is_no_cycle_that_keeps_its_memory(no_collector):
    session = Watched(certificates.server_context(), server_side=True)
    assert session.receive(b"GET / HTTP/1.0\r\n\r\n") == b""
    assert isinstance(session.failure, ssl.SSLError)
    gone = weakref.ref(session)
    del session
    assert gone() is None


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_record_that_comes_in_drops_is_read_at_once(version):
    server, client = shaken(version)
    records = client.encrypt(bytes(RECORD))
    reads = []

    class Counting:
        def __init__(self, found):
            self._found = found

        def read(self, size):
            reads.append(size)
            return self._found.read(size)

        def pending(self):
            return self._found.pending()

    server._object = Counting(server._object)
    plaintext = server.receive(records[:-1])
    plaintext += server.receive(records[-1:])
    assert plaintext == bytes(RECORD)
    assert len(reads) < 10


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_messages_longer_than_a_record_and_empty_ones_pass(version):
    server, client = shaken(version)
    message = bytes(range(256)) * 1000
    assert server.receive(client.encrypt(message)) == message
    assert server.receive(b"") == b""
    assert not server.is_ended


def test_close_notify_is_the_last_word_and_is_said_once():
    server, client = shaken(None)
    assert server.is_writable
    farewell = server.close()
    assert farewell
    assert not server.is_writable
    assert server.close() == b""
    client.receive(farewell)
    assert client.is_ended
    assert client.failure is None


def test_a_context_for_the_other_side_or_none_at_all_is_refused():
    with pytest.raises(TypeError, match=r"^ssl: "):
        check_context("ssl", object(), server_side=True)
    with pytest.raises(ValueError, match=r"^ssl: "):
        check_context("ssl", certificates.client_context(), server_side=True)
    with pytest.raises(ValueError, match=r"^ssl: "):
        check_context("ssl", certificates.server_context(), server_side=False)
    context = check_context("ssl", certificates.server_context(), server_side=True)
    assert context.options & ssl.OP_NO_RENEGOTIATION
