"""max_buffered: one connection that goes for it is enough, also when it cannot go yet; what is
counted is what it costs.
"""

import os
import threading

import pytest
from support import length_frame, recorder, settled, timed_out, wait_event, wait_until

import hydrogen

HALF = 200_000


@pytest.fixture
def crowd(start, connect, gate):
    """A connection that is aborted for `max_buffered` while its callback blocks, and twelve others
    that have sent the beginnings of messages: the handler, the event that ends the callback, and
    what has one of the others finish its message and be answered.
    """

    def crowd():
        go, inside = gate(), threading.Event()
        big = bytes(1_700_000)

        def received(socket, data):
            if len(data) == len(big):
                inside.set()
                wait_event(go, "let go")
            else:
                socket.send(data[:1])

        handler = recorder(connected=None, data_received=received)
        server = start(
            handler,
            framing=hydrogen.LengthFrameBuilder(max_size=8 << 20),
            max_buffered=2 << 20,
            max_threads=4,
        )
        culprit = connect(server)
        frame = length_frame(big)
        culprit.send(frame[:-1])
        wait_until(lambda: server.stats().queued_bytes >= len(frame) - 1, "it lies there")
        culprit.send(frame[-1:])
        wait_event(inside, "the callback runs")
        others = [connect(server) for _ in range(12)]
        handler.wait_for("connected", 13)
        message = length_frame(bytes(HALF))
        for other in others:
            other.send(message[: HALF // 3])
        wait_until(lambda: not handler.socket().is_open, "the culprit is aborted")

        def finish(other):
            other.send(message[HALF // 3 :])
            assert other.receive(5) == length_frame(b"\0")

        return handler, go, [lambda other=other: finish(other) for other in others]

    return crowd


@pytest.mark.slow
@pytest.mark.clause("C18", "H22")
def test_while_the_callback_of_a_connection_that_is_aborted_blocks_no_other_one_goes_for_its_memory(
    crowd, start, connect
):
    """Its memory is freed when the callback returns. Then the others are read again."""
    handler, go, finish = crowd()
    watch = recorder()
    elsewhere = start(watch, idle_timeout=0.3, max_threads=1)
    connect(elsewhere)
    timed_out(watch, "idle_timeout")  # the monitor thread has looked many a time
    assert handler.of("disconnected") == []
    go.set()
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer
    for one in finish:
        one()
    assert len(handler.of("disconnected")) == 1


@pytest.mark.clause("C18", "H22")
def test_while_the_callback_of_a_connection_that_is_aborted_blocks_the_others_are_read(crowd):
    handler, go, finish = crowd()
    for one in finish:
        one()
    assert handler.of("disconnected") == []
    go.set()
    assert type(handler.wait_removed()[0]) is hydrogen.SlowConsumer


def resident():
    """Bytes of memory resident now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.clause("C18", "S36")
def test_short_broadcasts_to_a_peer_that_does_not_read_cost_about_as_much_as_is_counted(
    start, connect
):
    """Also with sends in between."""
    handler = recorder(connected=None)
    server = start(handler)
    connect(server, receive_buffer=4096)
    socket = handler.wait_for("connected")[0].socket
    assert socket.send(bytes(5 << 20))
    pending = settled(lambda: socket.pending)
    before = resident()
    for _ in range(20_000):
        assert socket.send(b"x")
        assert server.broadcast(b"y").sent == 1
    assert socket.pending == pending + 40_000
    assert resident() - before < 8 << 20
