"""faults.md, rows 1 to 9: what peers send that is no frame, or too many of them. (Every case of the corpus is in tests/corpus.)"""

import pytest
from support import echo, recorder, running, simple, wait_until

import hydrogen


@pytest.mark.parametrize("declared", [101, 0x7FFF, 0x8000, 0xFFFF], ids=hex)
def test_f01_a_declared_length_over_max_size_is_refused_at_the_header(start, connect, declared):
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder(max_size=100), max_threads=1)  # so there is one pool of blocks
    neighbour, client = connect(server), connect(server)
    neighbour.send(simple(b"x"))
    assert neighbour.receive_frame() == b"x"
    before = server.stats()
    client.send(b"\x01" + declared.to_bytes(2, "big"))  # and no more
    assert client.receive_until_end() == b""
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.FrameTooLarge
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")
    assert server.stats().buffer_allocations <= before.buffer_allocations + 1, "nothing is allocated for the frame"
    neighbour.send(simple(b"y"))
    assert neighbour.receive_frame() == b"y"


@pytest.mark.parametrize("declared", range(0xFFFB, 0x10000), ids=hex)
def test_f02_a_length_that_wraps_around_with_the_overhead_is_no_small_one(start, connect, declared):
    """Header and end make 0x10000 and more of it: too large where max_size says so, a frame where it is allowed."""
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder(max_size=1000))
    client = connect(server)
    client.send(b"\x01" + declared.to_bytes(2, "big") + b"\x17" * 10)
    assert client.receive_until_end() == b""
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.FrameTooLarge
    assert handler.messages() == []

    whole = recorder(data_received=echo)
    client = connect(start(whole, framing=hydrogen.SimpleFrameBuilder))
    payload = b"\x17" * declared
    client.send(simple(payload) + simple(b"next"))
    assert client.receive_frame() == payload
    assert client.receive_frame() == b"next"


def test_f03_an_oversize_frame_that_is_dripped_is_refused_at_once(start, connect):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder(max_size=100)))
    for byte in (b"\x01", b"\x00", b"\x65"):
        client.send(byte)
    assert client.receive_until_end() == b""  # though nothing of its payload was sent
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.FrameTooLarge


def test_f04_one_frame_in_one_byte_segments_is_one_frame(start, connect):
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    client, other = connect(server), connect(server)
    payload = bytes(range(256)) * 4
    wire = simple(payload)
    for at in range(len(wire)):
        client.send(wire[at : at + 1])
        if at % 100 == 0:  # others are served meanwhile
            other.send(simple(b"%d" % at))
            assert other.receive_frame() == b"%d" % at
    assert client.receive_frame() == payload


@pytest.mark.parametrize("bad", [b"\x02\x00\x01b\x17", b"\x01\x00\x01b\x18"], ids=["start", "end"])
def test_f05_a_wrong_guard_byte_ends_the_connection_after_the_frames_before_it(start, connect, bad):
    handler = recorder(data_received=echo)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    neighbour, client = connect(server), connect(server)
    good = [b"a", b"", b"c" * 3000]
    client.send(b"".join(map(simple, good)) + bad + simple(b"never"))
    assert client.receive_until_end() == b"".join(map(simple, good))
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.ProtocolError
    assert handler.messages() == good
    neighbour.send(simple(b"still here"))
    assert neighbour.receive_frame() == b"still here"


@pytest.mark.parametrize("beginning", [b"\x01", b"\x01\x00", b"\x01\x00\x05", b"\x01\x00\x05abcde"])
def test_f05_the_end_inside_a_frame_is_an_incomplete_frame(start, connect, beginning):
    handler = recorder(data_received=echo)
    client = connect(start(handler, framing=hydrogen.SimpleFrameBuilder))
    client.send(simple(b"whole") + beginning)
    client.finish()
    assert client.receive_until_end() == simple(b"whole")
    assert type(handler.wait_removed()[0]) is hydrogen.IncompleteFrame
    assert handler.messages() == [b"whole"]


def test_f07_a_flood_of_zero_length_frames_is_delivered_and_neighbours_are_served(start, connect):
    count = 20_000
    served = []
    handler = recorder(data_received=lambda socket, data: socket.send(data) if data else None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder)
    flood, neighbour = connect(server), connect(server)

    def ping():
        for number in range(100):
            neighbour.send(simple(b"%d" % number))
            served.append(neighbour.receive_frame())

    with running(lambda: flood.send(simple(b"") * count), ping):
        pass
    assert served == [b"%d" % number for number in range(100)]
    handler.wait_for("data_received", count + 100)
    empty = handler.messages().count(b"")
    assert empty == count
    flood.send(simple(b"at its end"))
    assert flood.receive_frame() == b"at its end"


def test_f07_one_burst_of_many_frames_does_not_go_before_everybody_else(start, connect, gate):
    """One worker is held until a burst and a single message wait: the single one is delivered within the burst."""
    go = gate()
    handler = recorder(data_received=lambda socket, data: go.wait(60) if data == b"hold" else None)
    server = start(handler, framing=hydrogen.SimpleFrameBuilder, max_threads=1)
    holder, burst, single = (connect(server) for _ in range(3))
    holder.send(simple(b"hold"))
    handler.wait_for("data_received")
    burst.send(simple(b"") * 10_000)
    single.send(simple(b"single"))
    go.set()
    handler.wait_for("data_received", 10_002)
    assert handler.messages().index(b"single") < 10_000
