"""A client that pipelines is read as fast as it is served: what waits is bounded, and a neighbour
is served meanwhile.
"""

import threading
import time

import pytest
from families import FAMILIES, connect_to, options_of, stream_of
from support import recorder, running, settled, wait_event, wait_until

import hydrogen

families = pytest.mark.parametrize("family", FAMILIES)

FLOOD = b"".join(b"%07d\n" % number for number in range(1 << 18))
"""Two MiB of messages, in order."""

MOST = 1 << 19
"""Bytes that may have been read and not delivered: a budget, with TLS and with what one call
reads.
"""

BUDGET = 1 << 16


@pytest.mark.slow
@pytest.mark.clause("C19", "H2", "S49")
@families
def test_a_client_that_pipelines_is_not_read_far_beyond_what_is_delivered(start, tmp_path, family):
    delivered, ahead, wrong = 0, [], []
    done = threading.Event()

    def received(socket, data):
        nonlocal delivered
        if data != b"%07d" % delivered:
            wrong.append((delivered, data))
        delivered += 1
        if delivered % 512 == 0:
            stats = server.stats()
            ahead.append((stats.bytes_received - 8 * delivered, stats.queued_bytes))
        if 8 * delivered == len(FLOOD):
            done.set()

    class Sink(hydrogen.Handler):
        def on_new_connection(self, fd):
            return stream_of(family, fd)

        def on_data_received(self, socket, data):
            received(socket, data)

    options = options_of(family, str(tmp_path / "s"))
    server = start(Sink(), **options, read_budget=BUDGET, max_threads=2)
    peer = connect_to(server, family)
    with running(lambda: peer.send(FLOOD)):
        wait_event(done, "all is delivered")
    peer.close()
    assert wrong == []
    assert max(read for read, _ in ahead) <= MOST
    assert max(queued for _, queued in ahead) <= MOST


@pytest.mark.clause("C19", "H22")
@families
def test_while_a_handler_blocks_its_client_is_not_read_and_a_neighbour_is_served(
    start, tmp_path, gate, family
):
    go = gate()

    def received(socket, data):
        if data == b"0000000":
            wait_event(go, "let go")
        elif data == b"ask":
            socket.send(b"answer")

    handler = recorder(new_connection=lambda fd: stream_of(family, fd), data_received=received)
    options = options_of(family, str(tmp_path / "s"))
    server = start(handler, **options, read_budget=BUDGET, max_threads=2)
    neighbour, peer = connect_to(server, family), connect_to(server, family)
    count = 1 << 13
    with running(lambda: peer.send(FLOOD + FLOOD[: 8 * count])):
        handler.wait_for("data_received")
        read = settled(lambda: server.stats().bytes_received)
        assert read <= MOST
        for _ in range(10):
            neighbour.send(b"ask\n")
            assert neighbour.receive(7) == b"answer\n"
        asked = 10 * len(b"ask\n")
        assert server.stats().bytes_received <= read + 20 * asked  # with TLS they are longer
        assert server.stats().queued_bytes <= MOST
        go.set()
        peer_id = handler.of("data_received")[0].id
        total = len(FLOOD) // 8 + count
        wait_until(lambda: server.stats().messages_received >= total + 10, "all is delivered")
    messages = handler.messages(peer_id)
    assert b"".join(message + b"\n" for message in messages) == FLOOD + FLOOD[: 8 * count]
    neighbour.close()
    peer.close()


@pytest.mark.slow
@pytest.mark.clause("C19", "H22")
@families
@pytest.mark.parametrize("max_threads", [1, 4])
def test_while_clients_pipeline_without_a_pause_a_neighbour_is_served(
    start, tmp_path, family, max_threads
):
    """They send faster than the handler takes it: what waits is more than anybody would keep,
    soon.
    """
    done = threading.Event()

    class Slow(hydrogen.Handler):
        def on_new_connection(self, fd):
            return stream_of(family, fd)

        def on_data_received(self, socket, data):
            if data == b"ask":
                socket.send(b"answer")
            elif not done.is_set():
                sum(range(2000))

    options = options_of(family, str(tmp_path / "s"))
    server = start(Slow(), **options, max_threads=max_threads)
    neighbour = connect_to(server, family)
    peers = [connect_to(server, family) for _ in range(4)]

    def flood(peer):
        while not done.is_set():
            peer.send(FLOOD[: 1 << 18])

    with running(*(lambda peer=peer: flood(peer) for peer in peers)):
        try:
            wait_until(lambda: server.stats().messages_received > 10_000, "the flood is there")
            for _ in range(10):
                neighbour.send(b"ask\n")
                assert neighbour.receive(7) == b"answer\n"
            queued = server.stats().queued_bytes
        finally:
            done.set()
    assert queued <= len(peers) * MOST
    for peer in (*peers, neighbour):
        peer.close()


@pytest.mark.clause("H18", "H19")
@pytest.mark.parametrize("framing", ["built in", "user"])
@pytest.mark.parametrize("how", ["close", "pause_reading"])
def test_no_message_is_delivered_after_another_thread_s_call_has_returned(
    start, connect, without_switches, how, framing
):
    """Of many that were read, while callbacks follow one another as fast as they can.

    The interpreter switches threads only where one waits or gives the GIL away: else it may do so
    in the first line of a callback.
    """
    ended, late, begun = set(), [], threading.Event()

    class Echo(hydrogen.Handler):
        def on_data_received(self, socket, data):
            if socket.id in ended:
                late.append(data)
            begun.set()
            socket.send(data)

    class Lines(hydrogen.LineFrameBuilder):
        def from_bytes(self, buf):
            return super().from_bytes(buf)

    server = start(
        Echo(), framing=Lines() if framing == "user" else hydrogen.LineFrameBuilder(), max_threads=2
    )
    for _ in range(10):
        begun.clear()
        client = connect(server)
        client.send(b"".join(b"%06d\n" % number for number in range(3000)))
        wait_event(begun, "messages are delivered")
        (socket,) = server.connections
        getattr(socket, how)()
        ended.add(socket.id)
        settled(lambda: len(late))
        client.reset()
        wait_until(lambda: server.stats().connections == 0, "it is gone")
    assert late == []


@pytest.mark.clause("P2")
@pytest.mark.parametrize("framing", ["built in", "user"])
@pytest.mark.parametrize("hooks", [{}, {"connected": None}], ids=["", "connected"])
def test_replies_to_a_batch_leave_while_the_rest_of_it_is_delivered(start, connect, framing, hooks):
    """Whatever is called between the callbacks, and has been called before."""
    count, pending = 200, []

    class Lines(hydrogen.LineFrameBuilder):
        def from_bytes(self, buf):
            return super().from_bytes(buf)

    def received(socket, data):
        socket.send(b"reply")
        began = time.monotonic_ns()
        # so long that what is held back for others is due
        while time.monotonic_ns() < began + 300_000:
            pass
        pending.append(socket.pending)

    handler = recorder(data_received=received, **hooks)
    server = start(
        handler,
        framing=Lines() if framing == "user" else hydrogen.LineFrameBuilder(),
        max_threads=1,
    )
    client = connect(server)
    if hooks:
        handler.wait_for("connected")
    client.send(b"request\n" * count)
    assert client.receive(count * len(b"reply\n")) == b"reply\n" * count
    assert max(pending) <= 16 * len(b"reply\n")
