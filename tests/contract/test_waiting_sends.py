"""With TLS one thread encrypts at a time. What others send meanwhile is pending, is limited, and is
no burden on one thread for ever.
"""

import gc
import ssl
import sys
import threading
from collections import deque

import pytest
from certificates import client_context, server_context
from families import PassThrough
from support import PATIENCE, TlsClient, recorder, running, settled, wait_event, wait_until

import hydrogen
from hydrogen import tls
from hydrogen.stream import StreamAdapter
from hydrogen.tls import TlsSession

LIMIT = 1 << 20
MESSAGE = bytes(1 << 16)


def while_encrypting(call, action):
    """Call `call`, and `action` each time that it begins to encrypt, in this thread: nobody else
    can encrypt then.
    """

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

    def pair(hook=None, max_threads=2, **options):
        handler = recorder(connected=None, data_received=hook)
        server = start(handler, ssl=server_context(), max_threads=max_threads, **options)
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


# --------------------------------------------------------------------------------------------------
# What is received, and what is left over, while others send.


@pytest.fixture
def long_turns(engine):
    """A thread that computes keeps the GIL, if there is one, until it lets go of it by itself.

    Not with the Python engine, which can do nothing without it.
    """
    interval = sys.getswitchinterval()
    if engine == "compiled":
        sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def hold(monkeypatch, gate):
    """`inside, release = hold(data)`: who encrypts `data` sets `inside`, and stays until `release`
    is set.
    """

    def hold(data):
        inside, release = threading.Event(), gate()
        encrypt = TlsSession.encrypt

        def held(session, plaintext):
            if bytes(plaintext) == data:
                inside.set()
                wait_event(release, "it may go on")
            return encrypt(session, plaintext)

        monkeypatch.setattr(TlsSession, "encrypt", held)
        return inside, release

    return hold


@pytest.mark.clause("C22", "K6")
@pytest.mark.parametrize("ends", [False, True], ids=["", "stop"])
def test_a_thread_that_sends_without_rest_keeps_nobody_from_receiving(pair, hold, long_turns, ends):
    """It is in the session whenever a worker gets to run. What the peer sent is delivered all the
    same, during a stop too.
    """
    socket, peer, handler = pair(max_write_buffer=1 << 30, write_buffer_limits=(1 << 29, 1 << 29))
    inside, release = hold(b"first")
    before = socket.server.stats().bytes_received
    sent = []

    def send():
        for _ in range(200):
            if handler.of("data_received") or not socket.send(bytes(1 << 20)):
                break
            sent.append(1 << 20)

    def first():
        socket.send(b"first")
        send()

    with running(first):
        wait_event(inside, "it encrypts")
        peer.send(b"request")
        wait_until(
            lambda: socket.server.stats().bytes_received > before, "a worker has read the request"
        )
        if ends:
            stop = threading.Thread(target=socket.server.stop, args=(PATIENCE,))
            stop.start()
            wait_until(lambda: not socket.server.ready, "the stop begins")
        release.set()
    assert len(sent) < 200
    assert handler.wait_bytes(7) == b"request"
    peer.client.close()
    if ends:
        stop.join(PATIENCE)


def leaves_some(pair, hold, respond, **options):
    """A thread encrypts; a callback sends more than one thread encrypts for others, and goes on in
    `respond` when that one is done.

    Returns the peer, and what it is to receive.
    """
    inside, release = hold(b"first")
    began, done = threading.Event(), threading.Event()
    count = 200

    def on_data(socket, data):
        began.set()
        wait_event(inside, "a thread encrypts")
        for _ in range(count):
            assert socket.send(MESSAGE)
        release.set()
        wait_event(done, "that thread is done")
        respond(socket)

    socket, peer, _ = pair(max_write_buffer=1 << 30, hook=on_data, **options)

    def first():
        wait_event(began, "the callback runs")
        socket.send(b"first")
        done.set()

    peer.send(b"request")
    return running(first), socket, peer, b"first" + count * MESSAGE


@pytest.mark.clause("K11")
@pytest.mark.parametrize("max_threads", [1, 2])
def test_drain_in_a_callback_comes_back_whoever_was_to_encrypt(pair, hold, max_threads):
    drained = []
    sender, _, peer, expected = leaves_some(
        pair, hold, lambda socket: drained.append(socket.drain(None)), max_threads=max_threads
    )
    with sender:
        assert peer.receive(len(expected)) == expected
    wait_until(lambda: drained == [True], "drain() has returned")


@pytest.mark.clause("K6", "P2")
def test_what_a_thread_leaves_over_is_sent_though_a_callback_blocks(pair, hold, gate):
    blocked = gate()
    sender, _, peer, expected = leaves_some(
        pair, hold, lambda socket: wait_event(blocked, "the peer has received all")
    )
    with sender:
        assert peer.receive(len(expected)) == expected
    blocked.set()


@pytest.mark.clause("K11")
def test_drain_returns_when_tls_fails_while_messages_wait(pair, monkeypatch):
    drained = []
    receive = TlsSession.receive

    def received(session, ciphertext):
        if b"nonsense" in bytes(ciphertext):
            with running(lambda: socket.send(MESSAGE)):
                pass
        return receive(session, ciphertext)

    socket, peer, handler = pair(
        write_buffer_limits=(1000, 2000),
        hook=lambda socket, data: drained.append(socket.drain(None)),
    )
    monkeypatch.setattr(TlsSession, "receive", received)
    peer.client.send(peer.encrypt(b"request") + b"\x17\x03\x03\x00\x40" + b"nonsense" * 8)
    wait_until(lambda: drained, "drain() has returned")
    assert isinstance(handler.wait_removed()[0], ssl.SSLError)


@pytest.mark.clause("C16", "P2")
def test_many_threads_that_send_short_messages_without_rest_are_not_slowed_down_by_what_waits(pair):
    """Nor is the peer taken for a slow one because they are faster than who encrypts."""
    socket, peer, _ = pair()
    senders, each = 4, 80_000
    done = []

    def send():
        for _ in range(each):
            if not socket.send(bytes(100)):
                break
        else:
            done.append(True)

    with running(*[send] * senders, lambda: peer.receive(100 * senders * each)):
        wait_until(lambda: len(done) == senders or not socket.is_open, "all is sent")
    assert len(done) == senders


@pytest.mark.clause("H20", "P2")
@pytest.mark.parametrize(
    ("kind", "senders", "size"), [("plain", 2, 500), ("tls", 8, 500), ("stream", 24, 50)]
)
def test_what_threads_leave_to_the_one_that_writes_is_not_taken_for_output_a_peer_does_not_read(
    start, connect, kind, senders, size
):
    """And it reads all there is: so much may be pending that a busy machine does not keep it from
    that for so long.
    """
    most, each = 10_000 * size, 30_000 // senders
    handler = recorder(
        connected=None, **({"new_connection": PassThrough} if kind == "stream" else {})
    )
    tls = server_context() if kind == "tls" else None
    client = connect(
        start(handler, max_write_buffer=most, write_buffer_limits=(most, most), ssl=tls)
    )
    peer = TlsClient(client, client_context()).handshake() if tls else client
    handler.wait_for("connected")
    taken = []

    def send():
        for _ in range(each):
            taken.append(handler.socket().send(bytes(size)))

    with running(*[send] * senders, lambda: peer.receive(size * each * senders)):
        wait_until(lambda: len(taken) == senders * each, "all is sent")
        assert taken.count(False) == 0


# --------------------------------------------------------------------------------------------------
# Between leaving a message and looking whether it came too late other threads may run, without a
# GIL.


class Watched(deque):
    """Calls `hook`, once, when something was appended: as what other threads do in that moment."""

    hook = None

    def append(self, item):
        super().append(item)
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()


def watch(kind, reference):
    """What waits in the object of that kind which refers to `reference`: the only one of its fields
    that a `Watched` may replace.
    """
    (owner,) = [owner for owner in gc.get_referrers(reference) if isinstance(owner, kind)]
    owner.waiting = Watched()
    return owner


@pytest.mark.clause("K3", "K6")
def test_who_comes_too_late_takes_back_his_own_message_and_no_equal_one(compiled, pair):
    socket, peer, _ = pair()
    session = watch(TlsSession, socket.get_extra_info("ssl_object"))
    too_late = []

    def close():
        socket.close()
        wait_until(lambda: session.is_closing, "the owner wants to close")

    def send():
        session.waiting.hook = close
        too_late.append(socket.send(b"A"))

    assert session.lock.acquire(False)  # a thread is in the session
    assert socket.send(b"A")
    assert socket.send(b"B")
    with running(send):
        pass
    session.lock.release()
    socket.drain(0)  # it looks again
    assert too_late == [False]
    assert peer.receive_until_end() == b"AB"


@pytest.mark.clause("K3", "K18")
def test_a_message_that_another_thread_has_written_counts_as_sent_though_its_sender_is_too_late(
    compiled, start, connect
):
    streams = []

    def new(fd):
        streams.append(PassThrough(fd))
        return streams[-1]

    handler = recorder(new_connection=new, connected=None)
    client = connect(start(handler))
    handler.wait_for("connected")
    socket = handler.socket()
    adapter = watch(StreamAdapter, streams[0])
    sent = []

    def other():
        sent.append(socket.send(b"2"))
        socket.close()
        handler.wait_removed()

    adapter.waiting.hook = other
    sent.append(socket.send(b"1"))
    assert sent == [True, True]
    assert client.receive_until_end() == b"12"
