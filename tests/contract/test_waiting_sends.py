"""With TLS one thread encrypts at a time. What others send meanwhile is pending, is limited, and is no burden on one thread for ever."""

import sys

import pytest
from certificates import client_context, server_context
from support import TlsClient, recorder, running, settled, wait_until

import hydrogen
from hydrogen import tls

LIMIT = 1 << 20
MESSAGE = bytes(1 << 16)


def while_encrypting(call, action):
    """Call `call`, and `action` each time that it begins to encrypt, in this thread: nobody else can encrypt then."""

    def trace(frame, event, argument):
        code = frame.f_code
        if code.co_filename == tls.__file__ and code.co_name == "encrypt":
            sys.settrace(None)
            try:
                action()
            finally:
                sys.settrace(trace)

    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(None)


@pytest.fixture
def pair(start, connect):
    """The socket of a connection with TLS, its peer, and the handler."""

    def pair(**options):
        handler = recorder(connected=None)
        server = start(handler, ssl=server_context(), max_threads=2, **options)
        peer = TlsClient(connect(server), client_context()).handshake()
        handler.wait_for("connected")
        return handler.socket(), peer, handler

    return pair


@pytest.mark.clause("C17", "K7", "K11")
def test_what_is_sent_while_another_thread_encrypts_is_pending_and_drain_waits_for_it(pair):
    socket, peer, _ = pair(write_buffer_limits=(len(MESSAGE), 2 * len(MESSAGE)))
    seen = []

    def others():
        for number in range(1, 5):
            assert socket.send(MESSAGE)
            seen.append((socket.pending >= number * len(MESSAGE), socket.drain(0)))

    def action():
        if not seen:
            with running(others):
                pass

    assert while_encrypting(lambda: socket.send(b"first"), action)
    assert seen == [(True, False)] * 4
    assert peer.receive(5 + 4 * len(MESSAGE)) == b"first" + 4 * MESSAGE
    assert socket.drain(None)
    wait_until(lambda: socket.pending == 0, "all is written")


@pytest.mark.clause("C17", "H20")
def test_who_sends_while_another_thread_encrypts_is_bound_by_max_write_buffer(pair):
    socket, peer, handler = pair(max_write_buffer=LIMIT)
    taken = []

    def others():
        for _ in range(4 * LIMIT // len(MESSAGE)):
            taken.append(socket.send(MESSAGE))

    def action():
        if not taken:
            with running(others):
                pass

    while_encrypting(lambda: socket.send(b"first"), action)
    count = LIMIT // len(MESSAGE)
    assert taken[:count] == [True] * count
    assert not any(taken[count + 1 :])
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    assert not socket.is_open
    peer.client.close()


@pytest.mark.clause("K6", "P2")
def test_who_encrypts_for_others_is_not_kept_for_as_long_as_they_send(pair):
    """For each message that it encrypts another thread sends a further one."""
    socket, peer, _ = pair()
    most = 1000
    numbers = []

    def further():
        numbers.append(len(numbers))
        assert socket.send(b"%06d" % numbers[-1])

    def action():
        if len(numbers) < most:
            with running(further):
                pass

    assert while_encrypting(lambda: socket.send(b"first:"), action)
    count = len(numbers)
    assert count < most
    assert peer.receive(6 * (count + 1)) == b"first:" + b"".join(b"%06d" % n for n in numbers)


@pytest.mark.clause("C16", "K6")
def test_many_senders_keep_their_order_and_the_pending_count_ends_at_nothing(pair):
    socket, peer, _ = pair()
    senders, each = 4, 2000

    def send(sender):
        for number in range(each):
            assert socket.send(b"%d%05d" % (sender, number))
            if number % 100 == 0:
                socket.drain(None)

    with running(*(lambda sender=sender: send(sender) for sender in range(senders))):
        data = peer.receive(6 * senders * each)
    messages = [data[at : at + 6] for at in range(0, len(data), 6)]
    for sender in range(senders):
        mine = [message for message in messages if message.startswith(b"%d" % sender)]
        assert mine == [b"%d%05d" % (sender, number) for number in range(each)]
    assert settled(lambda: socket.pending) == 0
