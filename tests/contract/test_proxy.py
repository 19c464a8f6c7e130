"""The PROXY protocol: a header before everything else that says who the client is. Rows 38 to 40.

The headers here are made from the specification, by `proxy_headers`. What is malformed and what is
not has tests of its own, in tests/unit/test_proxy.py; these are about what becomes of the
connection.
"""

import contextlib
import os
import socket as stdlib_socket
import threading

import pytest
from certificates import client_context, server_context
from families import PassThrough
from proxy_headers import (
    AUTHORITY,
    LOCAL,
    NOOP,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNSPEC,
    tlv,
    v1,
    v2,
    v2_local,
    v2_raw,
)
from support import (
    PATIENCE,
    Client,
    Echo,
    TlsClient,
    drip,
    echo,
    line,
    open_fds,
    recorder,
    running,
    simple,
    timed_out,
    wait_event,
    wait_until,
)

import hydrogen

LOOPBACK = ["127.0.0.0/8", "::1"]

SHORT = 0.3
AMPLE = 1.0
"""Seconds of the deadlines that are to pass."""

SOURCE4, SOURCE6 = ("192.0.2.1", 56_324), ("2001:db8::1", 56_324, 0, 0)
TARGET4, TARGET6 = ("198.51.100.2", 443), ("2001:db8::2", 443, 0, 0)

TLVS = tlv(AUTHORITY, b"example.org") + tlv(0xE0, b"") + tlv(NOOP, bytes(300))

HEADERS = {
    "v1, IPv4": (v1("192.0.2.1", "198.51.100.2"), SOURCE4, TARGET4),
    "v1, IPv6": (v1("2001:db8::1", "2001:db8::2"), SOURCE6, TARGET6),
    "v1, longest": (
        v1(
            "ffff:f104:ffff:f104:ffff:f104:ffff:f104",
            "ffff:f105:ffff:f105:ffff:f105:ffff:f105",
            65_535,
            65_535,
        ),
        ("ffff:f104:ffff:f104:ffff:f104:ffff:f104", 65_535, 0, 0),
        ("ffff:f105:ffff:f105:ffff:f105:ffff:f105", 65_535, 0, 0),
    ),
    "v2, IPv4": (v2("192.0.2.1", "198.51.100.2"), SOURCE4, TARGET4),
    "v2, IPv6": (v2("2001:db8::1", "2001:db8::2"), SOURCE6, TARGET6),
    "v2, Unix": (v2("/run/client", "/run/server"), "/run/client", "/run/server"),
    "v2, IPv4, TLVs": (v2("192.0.2.1", "198.51.100.2", tlvs=TLVS), SOURCE4, TARGET4),
    "v2, longest": (
        v2("192.0.2.1", "198.51.100.2", tlvs=tlv(NOOP, bytes(65_535 - 12 - 3))),
        SOURCE4,
        TARGET4,
    ),
}

NOBODY = {
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v1 UNKNOWN, with more": b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    "v2 LOCAL": v2_local(),
    "v2 LOCAL, with addresses": v2_raw(
        LOCAL, TCP4, bytes([192, 0, 2, 1, 198, 51, 100, 2, 0, 80, 1, 187])
    ),
    "v2 UNSPEC": v2_raw(PROXY, UNSPEC, b""),
    "v2 UNSPEC, with more": v2_raw(PROXY, UNSPEC, bytes(40)),
}

ONE1, ONE2 = HEADERS["v1, IPv4"][0], HEADERS["v2, IPv4"][0]
BOTH = pytest.mark.parametrize("header", [ONE1, ONE2], ids=["v1", "v2"])


def behind_proxy(start, handler, **options):
    """A server that wants headers, from this machine."""
    options = {"proxy_protocol": "auto", "proxy_allow_from": LOOPBACK, **options}
    return start(handler, **options)


def refused(handler, client):
    """The connection is ended and removed by exactly that, and the handler had it in no other
    callback. Returns what the last one is told.
    """
    assert client.at_end() in ("end", "reset")
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.ProtocolError
    assert (error.__traceback__, error.__context__) == (None, None)
    assert handler.names() == ["on_connection_removed"]
    return str(error)


# -------------------------------------------------------------------------------- who the client is


@pytest.mark.clause("C36", "C38", "K16")
@pytest.mark.parametrize("name", HEADERS)
def test_peername_is_the_source_of_the_header_and_sockname_stays(start, connect, name):
    header, source, destination = HEADERS[name]
    handler = recorder(connected=None, data_received=echo)
    server = behind_proxy(start, handler)
    client = connect(server)
    client.send(header)
    client.echo(b"hello")
    socket = handler.socket()
    assert socket.peername == source
    assert socket.get_extra_info("peername") == source
    assert socket.sockname == socket.get_extra_info("sockname") == server.address
    proxy = socket.get_extra_info("proxy")
    assert isinstance(proxy, hydrogen.ProxyHeader)
    assert (proxy.version, proxy.is_local, proxy.source, proxy.destination) == (
        int(name[1]),
        False,
        source,
        destination,
    )
    client.close()
    handler.wait_removed()
    assert [call.value for call in handler.of("data_received")] == [b"hello"]


@pytest.mark.clause("C38")
def test_tlvs_are_given_in_the_order_in_which_they_came(start, connect):
    handler = recorder(connected=None)
    connect(behind_proxy(start, handler)).send(v2("192.0.2.1", "198.51.100.2", tlvs=TLVS))
    handler.wait_for("connected")
    proxy = handler.socket().get_extra_info("proxy")
    assert proxy.tlvs == ((AUTHORITY, b"example.org"), (0xE0, b""))  # without the padding


@pytest.mark.clause("C38", "C36")
@pytest.mark.parametrize("name", NOBODY)
def test_f40_of_local_and_unknown_the_real_address_of_the_peer_is_kept(start, connect, name):
    handler = recorder(connected=None, data_received=echo)
    server = behind_proxy(start, handler)
    client = connect(server)
    client.send(NOBODY[name])
    client.echo(b"healthy?")
    socket = handler.socket()
    assert socket.peername == client.name
    proxy = socket.get_extra_info("proxy")
    assert (proxy.version, proxy.is_local, proxy.source) == (int(name[1]), "LOCAL" in name, None)


@pytest.mark.clause("C38", "K16")
def test_names_are_still_there_in_the_last_callback(start, connect):
    names = []
    handler = recorder(
        disconnected=lambda socket, err: names.append(
            (socket.peername, socket.get_extra_info("proxy").source)
        )
    )
    client = connect(behind_proxy(start, handler))
    client.send(ONE2)
    client.close()
    handler.wait_removed()
    assert names == [(SOURCE4, SOURCE4)]
    wait_until(lambda: handler.socket().peername is None, "it is gone")


@pytest.mark.clause("C38")
def test_without_proxy_protocol_there_is_no_header_and_what_looks_like_one_is_data(start, connect):
    handler = recorder(connected=None, data_received=echo)
    client = connect(start(handler))
    client.echo(ONE1)
    socket = handler.socket()
    assert socket.get_extra_info("proxy") is None
    assert socket.get_extra_info("proxy", "none") == "none"
    assert socket.peername == client.name


# ------------------------------------------------------------------------------- exactly, and first


@pytest.mark.clause("C36")
@pytest.mark.parametrize("name", [name for name in HEADERS if name != "v2, longest"] + list(NOBODY))
def test_a_header_that_comes_byte_by_byte_is_the_same_header(start, connect, name):
    header = HEADERS[name][0] if name in HEADERS else NOBODY[name]
    handler = recorder(connected=None, data_received=echo)
    client = connect(behind_proxy(start, handler))
    for at in range(len(header)):
        client.send(header[at : at + 1])
    client.echo(b"hello")
    assert handler.socket().peername == (HEADERS[name][1] if name in HEADERS else client.name)


@pytest.mark.clause("C36")
@BOTH
def test_a_header_may_be_cut_anywhere_and_data_may_be_right_behind_it(start, connect, header):
    """Each client pauses at another byte until the server's kernel has what came before; meanwhile
    the others are served.
    """
    handler = recorder(connected=None, data_received=echo)
    server = behind_proxy(start, handler, framing=hydrogen.SimpleFrameBuilder)
    clients = [connect(server) for _ in range(len(header) - 1)]
    for cut, client in enumerate(clients, 1):
        client.send(header[:cut])
    for client in clients:
        wait_until(lambda client=client: client.unacknowledged() == 0, "it has arrived")
    for cut, client in enumerate(clients, 1):
        client.send(header[cut:] + simple(b"%d" % cut))
        assert client.receive_frame() == b"%d" % cut
    assert {call.socket.peername for call in handler.of("connected")} == {SOURCE4}


@pytest.mark.clause("C36", "H9")
@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("framing", [None, hydrogen.SimpleFrameBuilder], ids=["raw", "frames"])
def test_data_in_the_same_segment_is_delivered_exactly(start, connect, name, framing):
    data = b"".join(simple(b"%d" % number) for number in range(100)) + simple(os.urandom(50_000))
    handler = recorder(data_received=None)
    client = connect(behind_proxy(start, handler, framing=framing))
    client.send(HEADERS[name][0] + data)
    client.finish()
    handler.wait_removed()
    assert b"".join(map(simple if framing else bytes, handler.messages())) == data


@pytest.mark.clause("C36", "H6", "H23")
@BOTH
def test_no_callback_and_no_entry_in_connections_comes_before_the_header_is_whole(
    start, connect, header
):
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    server = behind_proxy(start, handler)
    client, other = connect(server), connect(server)
    client.send(header[:-1])
    for number in range(1, 4):
        other.send(header if number == 1 else b"")
        other.echo(b"served")
    assert (
        len(handler.of("new_connection"))
        == len(handler.of("connected"))
        == len(server.connections)
        == 1
    )
    assert server.stats().connections == 2
    client.send(header[-1:])
    client.echo(b"hello")
    assert (
        len(handler.of("new_connection"))
        == len(handler.of("connected"))
        == len(server.connections)
        == 2
    )


@pytest.mark.clause("C36", "C22")
@BOTH
def test_tls_follows_the_header_also_in_the_same_segment(start, connect, header):
    handler = recorder(connected=None, data_received=echo)
    server = behind_proxy(start, handler, ssl=server_context())
    for together in (True, False):
        client = connect(server)
        tls = TlsClient(client, client_context())
        if together:
            client.send(header + tls.step())
        else:
            client.send(header)
        tls.handshake().echo(b"secret")
    assert [call.socket.peername for call in handler.of("connected")] == [SOURCE4] * 2


@pytest.mark.clause("C36", "T1")
@BOTH
def test_a_user_s_stream_reads_exactly_what_follows_the_header(start, connect, header):
    handler = recorder(new_connection=PassThrough, connected=None, data_received=echo)
    server = behind_proxy(start, handler)
    client = connect(server)
    client.send(header + b"right behind")
    assert client.receive(12) == b"right behind"
    client.echo(b"and later")
    assert handler.data() == b"right behindand later"
    assert handler.socket().peername == SOURCE4


@pytest.mark.clause("C36", "T9", "T11", "H6")
@BOTH
def test_on_new_connection_may_read_by_hand_exactly_what_follows_the_header(start, connect, header):
    peeked, first = [], []

    def new(fd):
        with stdlib_socket.socket(fileno=os.dup(fd)) as sock:
            peeked.append(sock.recv(1000, stdlib_socket.MSG_PEEK))
        stream = hydrogen.Plain(fd, hydrogen.LineFrameBuilder())
        first.append(stream.b_recv(timeout=PATIENCE).payload())
        return stream

    handler = recorder(new_connection=new, data_received=echo)
    client = connect(behind_proxy(start, handler))
    client.send(header + b"login\nsecond\n")
    assert client.receive(7) == line(b"second")
    assert (peeked, first) == ([b"login\nsecond\n"], [b"login"])


@pytest.mark.clause("C36", "H7")
def test_on_new_connection_may_reject_and_its_connection_is_removed_with_that(start, connect):
    def new(fd):
        raise hydrogen.Reject

    handler = recorder(new_connection=new)
    client = connect(behind_proxy(start, handler))
    client.send(ONE2)
    assert client.at_end() in ("end", "reset")
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.Reject


@pytest.mark.clause("C36")
@pytest.mark.parametrize("handoff", ["auto", "inline", "eager"])
@pytest.mark.parametrize("max_threads", [1, 4])
def test_many_clients_behind_a_proxy_are_told_apart(start, connect, handoff, max_threads):
    handler = recorder(
        data_received=lambda socket, data: socket.send(socket.peername[0].encode() + b" " + data)
    )
    server = behind_proxy(
        start,
        handler,
        framing=hydrogen.SimpleFrameBuilder,
        handoff=handoff,
        max_threads=max_threads,
    )

    def converse(seed):
        for number in range(20):
            name = f"10.{seed}.0.{number}"
            with Client(server.address) as client:
                client.send(
                    (v1 if number % 2 else v2)(name, "10.0.0.1") + simple(b"one") + simple(b"two")
                )
                assert [client.receive_frame() for _ in range(2)] == [
                    name.encode() + b" one",
                    name.encode() + b" two",
                ]

    with running(*(lambda seed=seed: converse(seed) for seed in range(5))):
        pass


# ------------------------------------------------------------- row 38: who may, must, and not twice


@pytest.mark.clause("C37", "H20")
@BOTH
def test_f38_a_header_from_an_address_that_may_not_send_one_is_refused(start, connect, header):
    handler = recorder(connected=None)
    server = behind_proxy(start, handler, proxy_allow_from=["192.0.2.0/24", "2001:db8::/32"])
    client = connect(server)
    name = client.name
    client.send(header + b"and data")
    assert refused(handler, client) == (
        f"{name!r} is not allowed to connect: it is no proxy of proxy_allow_from"
    )
    wait_until(lambda: server.stats().removed_protocol_error == 1, "it is counted")


@pytest.mark.clause("C37")
def test_f38_of_two_addresses_the_one_that_is_allowed_may_and_the_other_may_not(start, connect):
    handler = recorder(data_received=echo)
    server = behind_proxy(start, handler, proxy_allow_from=["127.0.0.2", "127.0.0.16/28"])
    clients = [
        connect(server, source=source) for source in ("127.0.0.2", "127.0.0.17", "127.0.0.31")
    ]
    for client in clients:
        client.send(ONE1)
        client.echo(b"may")
    for number, source in enumerate(("127.0.0.1", "127.0.0.3", "127.0.0.32"), 1):
        client = connect(server, source=source)
        client.send(ONE1)
        assert client.at_end() in ("end", "reset")
        client.close()
        assert type(handler.wait_removed(number)[-1]) is hydrogen.ProtocolError
    for client in clients:
        client.echo(b"still")


@pytest.mark.clause("C37")
def test_f38_networks_of_both_families_may_be_allowed(start, connect):
    for addr in ("127.0.0.1", "::1"):
        client = connect(behind_proxy(start, Echo(), addr=addr))
        client.send(ONE2)
        client.echo(b"x")
    handler = recorder(data_received=echo)
    server = behind_proxy(start, handler, addr="::1", proxy_allow_from=["127.0.0.0/8", "unix"])
    client = connect(server)
    client.send(ONE2)
    refused(handler, client)


@pytest.mark.clause("C37")
@pytest.mark.parametrize("allowed", [True, False])
def test_f38_peers_on_a_unix_socket_may_send_one_if_unix_is_allowed(
    start, connect, tmp_path, allowed
):
    handler = recorder(data_received=echo)
    allow = ["unix"] if allowed else ["0.0.0.0/0", "::/0"]
    client = connect(
        behind_proxy(start, handler, path=str(tmp_path / "socket"), proxy_allow_from=allow)
    )
    client.send(ONE2)
    if allowed:
        client.echo(b"x")
        assert handler.socket().peername == SOURCE4
    else:
        refused(handler, client)


@pytest.mark.clause("C39", "H20")
@pytest.mark.parametrize("versions", ["v1", "v2", "auto"])
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
        simple(b"hello"),
        b"proxy TCP4 ",
        b"\0",
        b"PROXX",
        SIGNATURE[:5] + b"x",
    ],
    ids=lambda data: repr(data[:10]),
)
def test_f38_a_connection_without_a_header_is_refused_at_once(start, connect, versions, data):
    handler = recorder(connected=None)
    client = connect(behind_proxy(start, handler, proxy_protocol=versions))
    client.send(data)
    refused(handler, client)


@pytest.mark.clause("C39", "C36")
@pytest.mark.parametrize(
    ("versions", "header"), [("v1", ONE2), ("v2", ONE1)], ids=["v2 to v1", "v1 to v2"]
)
def test_f38_a_header_of_the_other_version_is_refused(start, connect, versions, header):
    handler = recorder(data_received=echo)
    server = behind_proxy(start, handler, proxy_protocol=versions)
    client = connect(server)
    client.send(header + b"x")
    refused(handler, client)
    client = connect(server)
    client.send(ONE1 if header is ONE2 else ONE2)
    client.echo(b"x")


MALFORMED = {
    "v1, no such family": b"PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n",
    "v1, no address": b"PROXY TCP4 192.0.2.256 198.51.100.2 1 2\r\n",
    "v1, address of another family": b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    "v1, port too large": b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n",
    "v1, something missing": b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
    "v1, something too much": b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
    "v2, another version": SIGNATURE + b"\x31\x11\0\x0c" + bytes(12),
    "v2, no such command": SIGNATURE + b"\x22\x11\0\x0c" + bytes(12),
    "v2, too short for its addresses": v2_raw(PROXY, TCP4, bytes(11)),
    "v2, too short for its longer addresses": v2_raw(PROXY, TCP6, bytes(35)),
    "v2, a TLV that is cut off": v2("192.0.2.1", "198.51.100.2", tlvs=b"\x02\0\x05abc"),
}


@pytest.mark.clause("C39")
@pytest.mark.parametrize("name", MALFORMED)
def test_f38_a_malformed_header_is_refused(start, connect, name):
    handler = recorder(connected=None)
    client = connect(behind_proxy(start, handler))
    client.send(MALFORMED[name] + b"and data")
    refused(handler, client)


@pytest.mark.clause("C39")
@pytest.mark.parametrize("second", [ONE1, ONE2, NOBODY["v2 LOCAL"]], ids=["v1", "v2", "LOCAL"])
@BOTH
def test_f38_a_second_header_is_refused_and_reaches_nobody(start, connect, header, second):
    handler = recorder(data_received=None)
    server = behind_proxy(start, handler)
    client = connect(server)
    client.send(header + second + b"and data")
    assert client.at_end() in ("end", "reset")
    client.close()
    (error,) = handler.wait_removed()
    assert type(error) is hydrogen.ProtocolError
    assert str(error) == "a second PROXY header follows the first one"
    assert handler.messages() == []


@pytest.mark.clause("C39")
@BOTH
def test_what_looks_like_a_header_later_is_data(start, connect, header):
    client = connect(behind_proxy(start, Echo()))
    client.send(header)
    client.echo(b"first")
    client.echo(header)


# ----------------------------------------------------------------------- row 39: endless or dripped


@pytest.mark.clause("C39")
@pytest.mark.parametrize("dripped", [False, True], ids=["at once", "dripped"])
def test_f39_a_header_of_version_1_without_an_end_is_refused_after_107_bytes(
    start, connect, dripped
):
    handler = recorder(connected=None)
    client = connect(behind_proxy(start, handler))
    endless = b"PROXY UNKNOWN " + b"x" * 93
    assert len(endless) == 107
    with contextlib.suppress(OSError):  # it may be refused before the last of them
        for at in range(107) if dripped else ():
            client.send(endless[at : at + 1])
        client.send(b"" if dripped else endless)
    refused(handler, client)


@pytest.mark.slow
@pytest.mark.clause("C24", "H25")
@pytest.mark.parametrize(
    "begun",
    [b"", b"P", ONE1[:-1], SIGNATURE, ONE2[:-1]],
    ids=["nothing", "a byte", "v1", "signature of v2", "v2"],
)
def test_f39_a_header_that_does_not_come_or_goes_on_no_more_is_removed_at_open_timeout(
    start, connect, begun
):
    handler = recorder(new_connection=None, connected=None)
    server = behind_proxy(start, handler, open_timeout=SHORT)
    client = connect(server)
    if begun:
        client.send(begun)
    timed_out(handler, "open_timeout")
    assert set(handler.names()) == {"on_connection_removed"}
    assert client.at_end() == "reset"
    wait_until(lambda: server.stats().removed_open_timeout == 1, "it is counted")


@pytest.mark.slow
@pytest.mark.clause("C24")
def test_f39_a_long_header_that_is_dripped_is_removed_at_open_timeout(start, connect):
    handler = recorder()
    client = connect(behind_proxy(start, handler, open_timeout=SHORT))
    client.send(v2_raw(PROXY, UNSPEC, b"", length=65_535))
    drip(client, handler)
    timed_out(handler, "open_timeout")


@pytest.mark.slow
@pytest.mark.clause("C24", "C22")
def test_f39_open_timeout_is_for_the_handshake_behind_the_header_too(start, connect):
    handler = recorder(connected=None, data_received=echo)
    server = behind_proxy(start, handler, ssl=server_context(), open_timeout=SHORT)
    client = connect(server)
    client.send(ONE2)
    timed_out(handler, "open_timeout")
    assert client.at_end() == "reset"
    assert handler.of("connected") == []


@pytest.mark.slow
@pytest.mark.clause("C24", "C26")
def test_open_timeout_is_over_when_the_header_has_come_and_none_is_no_limit(start, connect):
    handler, patient = recorder(data_received=echo), recorder(data_received=echo)
    server = behind_proxy(start, handler, open_timeout=SHORT)
    client, slow = connect(server), connect(behind_proxy(start, patient, open_timeout=None))
    client.send(ONE2)
    client.echo(b"x")
    slow.send(ONE1[:10])
    connect(server)
    timed_out(handler, "open_timeout")
    client.echo(b"still here")
    slow.send(ONE1[10:])
    slow.echo(b"no hurry")


@pytest.mark.slow
@pytest.mark.clause("C24", "H22")
@pytest.mark.parametrize("begun", [0, 20], ids=["not begun", "begun"])
def test_what_has_arrived_in_time_is_looked_at_before_the_clock_also_when_all_workers_were_busy(
    start, connect, gate, begun
):
    """The deadline passes while there is nobody to read; it is known to have passed from a server
    that has nothing else to do.
    """
    go = gate()
    handler = recorder(
        data_received=lambda socket, data: (
            wait_event(go, "let go") if data == b"block" else socket.send(data)
        )
    )
    server = behind_proxy(start, handler, open_timeout=SHORT, max_threads=1)
    blocker = connect(server)
    blocker.send(ONE2)
    blocker.echo(b"x")
    client = connect(server)
    if begun:
        client.send(ONE2[:begun])
    wait_until(lambda: server.stats().connections == 2, "it is accepted")
    blocker.send(b"block")
    handler.wait_for("data_received", 2)
    client.send(ONE2[begun:] + b"patient")
    watch = recorder()
    connect(behind_proxy(start, watch, open_timeout=SHORT))
    timed_out(watch, "open_timeout")
    go.set()
    assert client.receive(7) == b"patient"
    assert handler.of("connection_removed") == []


@pytest.mark.clause("H22", "C6")
def test_f39_headers_that_are_not_finished_keep_no_worker(start, connect):
    handler = recorder(data_received=echo)
    server = behind_proxy(start, handler, max_threads=2)
    slow = [connect(server) for _ in range(20)]
    for client in slow:
        client.send(ONE2[:20])
    for _ in range(5):
        client = connect(server)
        client.send(ONE2)
        client.echo(b"served")
    for client in slow:
        client.send(ONE2[20:])
        client.echo(b"served too")


# ------------------------------------------------------------------------------------------ its end


@pytest.mark.clause("C36", "H14", "H13", "H20")
@pytest.mark.parametrize("how", ["end", "end in it", "reset", "reset in it"])
@BOTH
def test_an_end_before_the_header_is_whole_is_told_by_the_last_callback_only(
    start, connect, header, how
):
    handler = recorder(new_connection=None, connected=None, eof=None)
    server = behind_proxy(start, handler)
    client = connect(server)
    if "in it" in how:
        client.send(header[:-1])
        wait_until(lambda: client.unacknowledged() == 0, "it has arrived")
    wait_until(lambda: server.stats().connections == 1, "it is accepted")
    client.finish() if how.startswith("end") else client.reset()
    expected, message = {
        "end": (hydrogen.PeerClosed, "the peer closed the connection before its PROXY header"),
        "end in it": (hydrogen.IncompleteFrame, "the end came inside the PROXY header"),
    }.get(how, (ConnectionResetError, ""))
    (error,) = handler.wait_removed()
    assert type(error) is expected
    assert message in str(error)
    assert handler.names() == ["on_connection_removed"]
    client.close()
    wait_until(lambda: server.stats().connections == 0, "the slot is vacant")
    stats = server.stats()
    assert stats.accepted == stats.removed == 1


@pytest.mark.clause("C36")
def test_an_end_right_behind_the_header_is_an_end_in_order(start, connect):
    handler = recorder(connected=None, eof=None)
    handler.hooks["on_eof"] = lambda socket: socket.close()
    client = connect(behind_proxy(start, handler))
    client.send(ONE2)
    client.finish()
    assert client.receive_until_end() == b""
    client.close()
    handler.wait_removed()
    assert handler.names() == ["on_connected", "on_eof", "on_disconnected", "on_connection_removed"]


@pytest.mark.clause("C36", "S10", "S23")
@pytest.mark.parametrize("how", ["stop", "spread", "abort"])
def test_a_stop_removes_what_is_in_its_header(start, connect, how):
    handler = recorder(connected=None)
    server = behind_proxy(start, handler)
    clients = [connect(server) for _ in range(4)]
    for client, begun in zip(clients, (b"", b"PROXY", ONE2[:15], ONE1[:-1]), strict=True):
        client.send(begun)
        wait_until(lambda client=client: client.unacknowledged() == 0, "it has arrived")
    wait_until(lambda: server.stats().connections == 4, "they are accepted")
    stop = {
        "stop": lambda: server.stop(PATIENCE),
        "spread": lambda: server.stop(PATIENCE, 0.02),
        "abort": server.abort,
    }[how]
    with running(stop):
        for client in clients:
            assert client.at_end() in ("end", "reset")
            client.close()
    assert {type(error) for error in handler.wait_removed(4)} == {hydrogen.ServerStopped}
    assert set(handler.names()) == {"on_connection_removed"}
    report = server.stop()
    assert (report.closed + report.aborted, report.abandoned) == (4, 0)


# ------------------------------------------------------------------------------------------- limits


def admitted(client, header, answer=b"hello"):
    """Whether a connection with this header is served."""
    try:
        client.send(header + answer)
        return client.sock.recv(100) == answer
    except ConnectionError:
        return False


@pytest.mark.clause("C40", "C35", "H14")
@BOTH
def test_connections_are_counted_by_the_client_s_address_and_not_by_the_proxy_s(
    start, connect, header
):
    handler = recorder(new_connection=None, data_received=echo)
    server = behind_proxy(start, handler, max_connections_per_ip=2)
    mine = [connect(server) for _ in range(2)]
    for client in mine:
        assert admitted(client, header)
    for number in range(1, 4):
        assert not admitted(connect(server), header)
        wait_until(lambda number=number: server.stats().removed_overload == number, "it is counted")
    assert len(handler.of("new_connection")) == 2
    assert handler.of("connection_removed") == []
    for number in range(5):
        assert admitted(connect(server), v1(f"192.0.2.{number + 100}", "198.51.100.2"))
    mine[0].reset()
    handler.wait_removed()
    wait_until(lambda: server.stats().connections == 6, "it is gone")
    assert admitted(connect(server), header)
    assert not admitted(connect(server), header)
    wait_until(lambda: server.stats().connections == 7, "the refused one is gone")
    stats = server.stats()
    assert (stats.accepted, stats.connections + stats.removed) == (12, 12)


@pytest.mark.clause("C40")
def test_a_client_has_one_count_whatever_its_port_and_by_whichever_version_it_is_named(
    start, connect
):
    server = behind_proxy(start, recorder(data_received=echo), max_connections_per_ip=2)
    kept = [connect(server), connect(server)]
    assert admitted(kept[0], v1("2001:db8::1", "2001:db8::2", 1000))
    assert admitted(kept[1], v2("2001:db8:0::1", "2001:db8::2", 2000))
    assert not admitted(connect(server), v2("2001:db8::1", "2001:db8::2", 3000))


@pytest.mark.clause("C40")
def test_health_checks_and_connections_in_their_header_are_not_counted_by_the_proxy_s_address(
    start, connect
):
    server = behind_proxy(start, recorder(data_received=echo), max_connections_per_ip=1)
    silent = [connect(server) for _ in range(5)]
    checks = [connect(server) for _ in range(5)]
    for client in checks:
        assert admitted(client, v2_local())
    for number, client in enumerate(silent):
        assert admitted(client, v2(f"192.0.2.{number}", "198.51.100.2"))
    assert server.stats().removed_overload == 0


@pytest.mark.clause("C32", "C36")
def test_connections_in_their_header_count_for_max_connections(start, connect):
    server = behind_proxy(start, recorder(data_received=echo), max_connections=2)
    silent = [connect(server) for _ in range(2)]
    silent[0].send(ONE2[:10])
    waiting = connect(server)
    waiting.send(ONE2 + b"patient")
    wait_until(lambda: server.stats().accept_pauses == 1, "accepting is paused")
    assert server.stats().accepted == 2
    silent[1].close()
    assert waiting.receive(7) == b"patient"


@pytest.mark.clause("C36", "C40", "S48")
def test_a_crowd_behind_a_proxy_that_misbehaves_in_every_way_leaves_nothing(start, connect):
    """Of each kind many, from several threads, at once: whoever behaves is served, and the counts
    add up.
    """
    handler = recorder(new_connection=None, connected=None, data_received=echo)
    server = behind_proxy(start, handler, max_connections_per_ip=3)
    fds = open_fds()
    served, lock = [], threading.Lock()

    def crowd(seed):
        for number in range(12):
            header = v2(f"192.0.{seed}.{number}", "198.51.100.2")
            for wire in (b"", header[:20], b"nonsense", header + header, header):
                with Client(server.address) as client:
                    if wire == header:
                        assert admitted(client, header)
                        with lock:
                            served.append(header)
                    elif wire:
                        client.send(wire)
                        if number % 2:
                            client.reset()

    with running(*(lambda seed=seed: crowd(seed) for seed in range(4))):
        pass
    handler.wait_removed(240)
    wait_until(lambda: server.stats().connections == 0, "the slots are vacant")
    wait_until(lambda: len(open_fds()) == len(fds), "the fds are closed")
    assert len(served) == 48
    stats = server.stats()
    assert stats.accepted == stats.removed == 240
    assert len(handler.of("connected")) == len(handler.of("disconnected"))


@pytest.mark.clause("C24")
def test_the_time_that_on_new_connection_takes_does_not_count_for_the_handshake_behind_a_header(
    start, connect, gate
):
    """It is not the peer's. The deadline, which is the header's too, runs already when the header
    is whole.
    """
    go, begun = gate(), v1("192.0.2.1", "198.51.100.2")
    handler = recorder(
        new_connection=lambda fd: wait_event(go, "let go"), connected=None, data_received=echo
    )
    server = behind_proxy(start, handler, ssl=server_context(), open_timeout=AMPLE)
    client = connect(server)
    client.send(begun[:5])
    wait_until(lambda: server.stats().bytes_received == 5, "the header has begun")
    client.send(begun[5:])
    handler.wait_for("new_connection")
    watch = recorder()
    other = behind_proxy(start, watch, open_timeout=AMPLE)
    connect(other)
    timed_out(watch, "open_timeout")
    go.set()
    TlsClient(client, client_context()).handshake().echo(b"served")
