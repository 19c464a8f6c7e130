"""The PROXY protocol, without any socket: headers written by hand, and `proxyprotocol`
(proxy-protocol on PyPI) as oracle.
"""

import ipaddress
import itertools
import socket
import struct

import crc32c as crc32c_oracle
import hypothesis
import pytest
from hypothesis import strategies as st
from proxyprotocol.result import (
    ProxyResultIPv4,
    ProxyResultIPv6,
    ProxyResultLocal,
    ProxyResultUnix,
    ProxyResultUnknown,
)
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from hydrogen.errors import ProtocolError
from hydrogen.proxy import (
    HeaderReader,
    ProxyHeader,
    allowed_networks,
    begins_header,
    crc32c,
    may_send,
)

# how long an example takes is no matter of these tests
unhurried = hypothesis.settings(deadline=None)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LIMITS = {"v1": 107, "v2": 16 + 65_535, "auto": 16 + 65_535}


def v2(command, family, block=b"", length=None):
    """A header of version 2 as the specification draws it."""
    return (
        SIGNATURE
        + struct.pack("!BBH", 0x20 | command, family, len(block) if length is None else length)
        + block
    )


def tlv(kind, value=b""):
    return struct.pack("!BH", kind, len(value)) + value


def checksum(header):
    return struct.pack("!L", crc32c_oracle.crc32c(header))


INET = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack("!HH", 56_324, 443)
INET_PAIR = ("192.0.2.1", 56_324), ("198.51.100.2", 443)
INET6 = bytes.fromhex(
    "20010db800000000000000000000000100000000000000000000ffffc0000201"
) + struct.pack("!HH", 65_535, 0)
INET6_PAIR = ("2001:db8::1", 65_535, 0, 0), ("::ffff:192.0.2.1", 0, 0, 0)


def unix(source, destination):
    return struct.pack("108s108s", source, destination)


def v1_header(source=None, destination=None):
    return ProxyHeader(1, False, source, destination, ())


def v2_header(source=None, destination=None, tlvs=(), is_local=False):
    return ProxyHeader(2, is_local, source, destination, tlvs)


SUMMED = v2(1, 0x21, INET6 + tlv(2, b"example.org") + tlv(3, bytes(4)))[:-4]
SUM = checksum(SUMMED + bytes(4))
SUMMED_FIRST = v2(1, 0x11, INET + tlv(3, bytes(4)) + tlv(5, b"unique id"))
SUM_FIRST = checksum(SUMMED_FIRST)

ALL_F = "ffff:" * 7 + "ffff"

HEADERS = {
    "v1 TCP4": (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", v1_header(*INET_PAIR)),
    "v1 TCP4, the shortest": (
        b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n",
        v1_header(("0.0.0.0", 0), ("0.0.0.0", 0)),
    ),
    "v1 TCP4, the longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        v1_header(("255.255.255.255", 65_535), ("255.255.255.255", 65_535)),
    ),
    "v1 TCP6": (b"PROXY TCP6 2001:DB8:0:0::1 ::ffff:192.0.2.1 65535 0\r\n", v1_header(*INET6_PAIR)),
    "v1 TCP6, the shortest": (
        b"PROXY TCP6 :: :: 0 0\r\n",
        v1_header(("::", 0, 0, 0), ("::", 0, 0, 0)),
    ),
    "v1 TCP6, the longest": (
        f"PROXY TCP6 {ALL_F} {ALL_F} 65535 65535\r\n".encode(),
        v1_header((ALL_F, 65_535, 0, 0), (ALL_F, 65_535, 0, 0)),
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", v1_header()),
    "v1 UNKNOWN and a space": (b"PROXY UNKNOWN \r\n", v1_header()),
    "v1 UNKNOWN, addresses": (b"PROXY UNKNOWN 192.0.2.1 198.51.100.2 1 2\r\n", v1_header()),
    "v1 UNKNOWN, the longest": (
        f"PROXY UNKNOWN {ALL_F} {ALL_F} 65535 65535\r\n".encode(),
        v1_header(),
    ),
    "v1 UNKNOWN, whatever is no end": (b"PROXY UNKNOWN \n\r\r \r\x00\xff\x85\n\r\r\n", v1_header()),
    "v2 TCP over IPv4": (v2(1, 0x11, INET), v2_header(*INET_PAIR)),
    "v2 TCP over IPv6": (v2(1, 0x21, INET6), v2_header(*INET6_PAIR)),
    "v2 Unix stream": (
        v2(1, 0x31, unix(b"/run/client", b"/run/server")),
        v2_header("/run/client", "/run/server"),
    ),
    "v2 Unix stream, no path": (v2(1, 0x31, unix(b"", b"/s\0junk")), v2_header("", "/s")),
    "v2 Unix stream, abstract": (
        v2(1, 0x31, unix(b"\0name", b"\0a\0b")),
        v2_header(b"\0name", b"\0a\0b"),
    ),
    "v2 Unix stream, the longest": (
        v2(1, 0x31, unix(b"c" * 108, b"\xff" * 108)),
        v2_header("c" * 108, "\udcff" * 108),
    ),
    "v2 TLVs": (
        v2(1, 0x11, INET + tlv(1, b"h2") + tlv(4, b"pad") + tlv(0xE0) + tlv(1, b"h3") + tlv(4)),
        v2_header(*INET_PAIR, ((1, b"h2"), (0xE0, b""), (1, b"h3"))),
    ),
    "v2 checksum": (SUMMED + SUM, v2_header(*INET6_PAIR, ((2, b"example.org"), (3, SUM)))),
    "v2 checksum first": (
        SUMMED_FIRST.replace(bytes(4), SUM_FIRST),
        v2_header(*INET_PAIR, ((3, SUM_FIRST), (5, b"unique id"))),
    ),
    "v2 UNSPEC": (v2(1, 0x00), v2_header()),
    "v2 UNSPEC, TLVs": (v2(1, 0x00, tlv(5, b"id")), v2_header(tlvs=((5, b"id"),))),
    "v2 UNSPEC, addresses of another kind": (v2(1, 0x00, b"\x01\xff\xff."), v2_header()),
    "v2 family without protocol": (
        v2(1, 0x10, INET + tlv(5, b"id")),
        v2_header(tlvs=((5, b"id"),)),
    ),
    "v2 protocol without family": (v2(1, 0x01), v2_header()),
    "v2 UDP over IPv4": (v2(1, 0x12, INET + tlv(5, b"id")), v2_header(tlvs=((5, b"id"),))),
    "v2 UDP over IPv6": (v2(1, 0x22, INET6), v2_header()),
    "v2 Unix datagram": (v2(1, 0x32, unix(b"a", b"b")), v2_header()),
    "v2 LOCAL": (v2(0, 0x00), v2_header(is_local=True)),
    "v2 LOCAL, TLVs": (v2(0, 0x00, tlv(5, b"id")), v2_header(is_local=True, tlvs=((5, b"id"),))),
    "v2 LOCAL, addresses": (
        v2(0, 0x11, INET + tlv(5, b"id")),
        v2_header(is_local=True, tlvs=((5, b"id"),)),
    ),
    "v2 LOCAL, a family and nothing": (v2(0, 0x21), v2_header(is_local=True)),
    "v2 LOCAL, no family that there is": (v2(0, 0xFF, tlv(5, b"id")), v2_header(is_local=True)),
    "v2 LOCAL, no TLVs": (v2(0, 0x00, b"whatever"), v2_header(is_local=True)),
    "v2, the longest": (
        v2(1, 0x11, INET + tlv(0xE0, b"x" * (65_535 - 15))),
        v2_header(*INET_PAIR, ((0xE0, b"x" * (65_535 - 15)),)),
    ),
}
by_header = pytest.mark.parametrize(("wire", "header"), HEADERS.values(), ids=HEADERS)

# Bytes, and which of them is the first that fits no header.
WRONG = {
    "no header": (b"GET / HTTP/1.1\r\n", 0),
    "TLS": (b"\x16\x03\x01", 0),
    "another word": (b"PROXX ", 4),
    "a lower case word": (b"proxy ", 0),
    "no space": (b"PROXY\tTCP4", 5),
    "two spaces before the family": (b"PROXY  TCP4", 6),
    "another family": (b"PROXY UDP4 ", 7),
    "a family of the future": (b"PROXY TCP5 ", 9),
    "a lower case family": (b"PROXY tcp4 ", 6),
    "UNKNOWN and more": (b"PROXY UNKNOWNS\r\n", 13),
    "UNKNOWN and \\n": (b"PROXY UNKNOWN\n", 13),
    "UNKNOWN and \\r": (b"PROXY UNKNOWN\r\r\n", 14),
    "a second space": (b"PROXY TCP4 192.0.2.1  198.51.100.2 1 2\r\n", 21),
    "a tab": (b"PROXY TCP4 192.0.2.1\t198.51.100.2 1 2\r\n", 20),
    "an octet that is too large": (b"PROXY TCP4 192.0.256.1 ", 19),
    "an octet with a zero before": (b"PROXY TCP4 192.0.02.1 ", 18),
    "an address that is too short": (b"PROXY TCP4 192.0.2 ", 18),
    "an address that is too long": (b"PROXY TCP4 192.0.2.1.1 ", 20),
    "a name": (b"PROXY TCP4 localhost ", 11),
    "IPv6 in TCP4": (b"PROXY TCP4 2001:db8::1 ", 14),
    "a digit of another script": ("PROXY TCP4 \u0661".encode(), 11),
    "a scope id": (b"PROXY TCP6 fe80::1%eth0 ", 18),
    "brackets": (b"PROXY TCP6 [::1] ", 11),
    "IPv6 that is too long": (b"PROXY TCP6 " + b"0" * 40, 50),
    "a port that is too large": (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n", 35),
    "a port of six digits": (b"PROXY TCP4 192.0.2.1 192.0.2.2 100000 2\r\n", 36),
    "a port with a zero before": (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", 32),
    "a port with a plus": (b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", 31),
    "a port with a minus": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 -2\r\n", 33),
    "a port with an underscore": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n", 32),
    "no port": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", 32),
    "an empty port": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n", 33),
    "a space at the end": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n", 34),
    "\\n alone": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", 34),
    "\\r alone": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\rx", 35),
    "no addresses": (b"PROXY TCP4\r\n", 10),
    "IPv4 in TCP6": (b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n", 29),
    "IPv6 with two gaps": (b"PROXY TCP6 ::1 1::2::3 1 2\r\n", 27),
    "IPv6 that is too short": (b"PROXY TCP6 1:2:3 ::1 1 2\r\n", 25),
    "UNKNOWN without end": (b"PROXY UNKNOWN " + b"x" * 93, 105),
    "UNKNOWN that ends late": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", 105),
    "UNKNOWN with \\r as its last": (b"PROXY UNKNOWN " + b"x" * 91 + b"\rx", 106),
    "another signature": (b"\r\n\r\n\x00\r\nQUIT\r", 11),
    "empty lines": (b"\r\n\r\n\r\n", 4),
    "version 1 in binary": (SIGNATURE + b"\x11\x11\x00\x0c", 12),
    "version 3": (SIGNATURE + b"\x31\x11\x00\x0c", 12),
    "command 2": (SIGNATURE + b"\x22\x11\x00\x0c", 12),
    "command 15": (SIGNATURE + b"\x2f\x11\x00\x0c", 12),
    "family 4": (SIGNATURE + b"\x21\x41\x00\x0c", 13),
    "protocol 3": (SIGNATURE + b"\x21\x13\x00\x0c", 13),
    "too short for IPv4": (SIGNATURE + b"\x21\x11\x00\x0b", 15),
    "too short for IPv6": (SIGNATURE + b"\x21\x21\x00\x23", 15),
    "too short for Unix": (SIGNATURE + b"\x21\x31\x00\xd7", 15),
    "no addresses in v2": (SIGNATURE + b"\x21\x11\x00\x00", 15),
    "a type alone": (v2(1, 0x11, INET + b"\x01"), 28),
    "half a length": (v2(1, 0x11, INET + b"\x01\x00"), 29),
    "a TLV without its value": (v2(1, 0x11, INET + b"\x01\x00\x01"), 30),
    "a TLV that is too long": (v2(1, 0x11, INET + tlv(5, b"id") + b"\x01\xff\xff--"), 37),
    "a wrong checksum": (v2(1, 0x11, INET + tlv(3, b"\x00\x00\x00\x01")), 34),
    "a checksum in another order": (SUMMED + SUM[::-1], len(SUMMED) + 3),
    "a short checksum": (v2(1, 0x11, INET + tlv(3, b"\x00\x00\x00")), 33),
    "a wrong checksum of LOCAL": (v2(0, 0x00, tlv(3, bytes(4))), 22),
    "two checksums": (v2(1, 0x11, INET + tlv(3, bytes(4)) * 2), 41),
}
by_wrong = pytest.mark.parametrize(("wire", "at"), WRONG.values(), ids=WRONG)


def read(versions, wire, sizes=()):
    """What a reader makes of `wire`, of which at most so many bytes are there at each time (then
    all), and how many it took.

    Of all that is read here the invariants are checked.
    """
    reader = HeaderReader(versions)
    assert not reader.is_begun
    at = 0
    sizes = iter(sizes)
    while True:
        assert reader.wanted >= 1
        assert at + reader.wanted <= LIMITS[versions]
        data = wire[at : at + min(reader.wanted, next(sizes, len(wire)))]
        if not data:
            return None, at
        at += len(data)
        try:
            header = reader.feed(data)
        except ProtocolError:
            return ProtocolError, at
        assert reader.is_begun
        if header is not None:
            assert reader.wanted == 0
            return header, at


def versions_of(wire):
    """The settings under which `wire` is looked at as what it is."""
    return ("v2", "auto") if wire.startswith(SIGNATURE[:4]) else ("v1", "auto")


def splits(wire):
    """Sizes of the first part; of a long header those near its ends."""
    return (
        range(1, len(wire))
        if len(wire) < 1000
        else [*range(1, 100), *range(len(wire) - 100, len(wire))]
    )


# ------------------------------------------------------------------------------------------ headers


@by_header
@pytest.mark.parametrize(
    "trailing",
    [b"", b"\r\n", b"\n", b"PROXY UNKNOWN\r\n", SIGNATURE, bytes(300)],
    ids=["", "crlf", "lf", "v1", "v2", "zeros"],
)
def test_a_header_is_read_whole_and_nothing_after_it(wire, header, trailing):
    for versions in versions_of(wire):
        assert read(versions, wire + trailing) == (header, len(wire))


@by_header
def test_a_header_is_read_byte_by_byte(wire, header):
    for versions in versions_of(wire):
        assert read(versions, wire + b"\r\n", itertools.repeat(1)) == (header, len(wire))


@by_header
def test_a_header_is_read_at_every_split(wire, header):
    for versions in versions_of(wire):
        for split in splits(wire):
            # So much is there at first; when that is read, the rest, and more, has come.
            assert read(versions, wire[:split]) == (None, split)
            reader, at, end, found = HeaderReader(versions), 0, split, None
            while found is None:
                data = (wire + b"\r\n")[at : min(at + reader.wanted, end)]
                found = reader.feed(data)
                at += len(data)
                end = end if at < split else len(wire) + 2
            assert (found, at) == (header, len(wire))


@by_header
def test_a_header_of_the_other_version_is_refused_at_once(wire, header):
    other = "v1" if header.version == 2 else "v2"
    assert read(other, wire)[0] is ProtocolError
    assert read(other, wire, itertools.repeat(1)) == (ProtocolError, 1)


@by_wrong
def test_what_is_wrong_is_refused_at_its_first_byte(wire, at):
    for versions in versions_of(wire):
        assert read(versions, wire[:at]) == (None, at)
        assert read(versions, wire, itertools.repeat(1)) == (ProtocolError, at + 1)
        assert read(versions, wire)[0] is ProtocolError


@by_wrong
def test_what_is_wrong_is_wrong_at_every_split(wire, at):
    for versions in versions_of(wire):
        for split in range(1, len(wire)):
            assert read(versions, wire, [split])[0] is ProtocolError


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (
            b"PROXY TCP4 192.0.2.1  198",
            r"^not a PROXY protocol v1 line: "
            r"byte 21 of b'PROXY TCP4 192\.0\.2\.1  198' is invalid$",
        ),
        (b"PROXY TCP6 1:2:3 ::1 1 2\r\n", r"not an IPv6 address: .*1:2:3"),
        (b"PROXY UNKNOWN " + b"x" * 93, r"longer than 107 bytes"),
        (b"\r\nGET", r"^not a PROXY protocol v2 header: it begins with b'\\r\\nGET'$"),
        (SIGNATURE + b"\x32", r"^version and command 0x32 "),
        (SIGNATURE + b"\x21\x43", r"^family and protocol 0x43 .* undefined$"),
        (SIGNATURE + b"\x21\x11\x00\x0b", r"^length 11 .* too short for addresses of family 0x11$"),
        (v2(1, 0x11, INET + b"\x01"), r"^the last TLV .* extends beyond the header$"),
        (v2(1, 0x11, INET + tlv(3, bytes(4))), r"^the checksum .* is wrong$"),
        (v2(1, 0x11, INET + tlv(3, bytes(4)) * 2), r"^more than one checksum "),
    ],
)
def test_the_error_says_what_was_wrong(wire, message):
    reader = HeaderReader("auto")

    def feed_all(at=0):
        while at < len(wire):
            data = wire[at : at + reader.wanted]
            at += len(data)
            reader.feed(data)

    with pytest.raises(ProtocolError, match=message):
        feed_all()


@pytest.mark.parametrize("versions", LIMITS)
def test_more_than_is_wanted_is_a_fault_of_the_caller(versions):
    reader = HeaderReader(versions)
    with pytest.raises(ValueError, match=r"bytes are wanted, not 17$") as caught:
        reader.feed(bytes(17))
    assert not isinstance(caught.value, ProtocolError)
    assert not reader.is_begun


@pytest.mark.parametrize("versions", LIMITS)
def test_nothing_fed_is_nothing_begun(versions):
    reader = HeaderReader(versions)
    assert reader.feed(b"") is None
    assert not reader.is_begun


@pytest.mark.parametrize(
    ("versions", "name", "most"),
    [
        ("v1", "v1 UNKNOWN", 1),
        ("v1", "v1 TCP4", 6),
        ("v1", "v1 TCP6", 9),
        ("v2", "v2 TCP over IPv4", 2),
        ("auto", "v2 TCP over IPv4", 3),
    ],
)
def test_what_is_surely_there_is_wanted_at_once(versions, name, most):
    wire = HEADERS[name][0]
    reader, reads, at = HeaderReader(versions), 0, 0
    while reader.wanted:
        reads, at, _ = reads + 1, at + reader.wanted, reader.feed(wire[at : at + reader.wanted])
    assert reads <= most


# ------------------------------------------------------------------------------- rows of the faults


@pytest.mark.parametrize(
    "first", [b"PROXY UNKNOWN\r\n", v2(0, 0x00), v2(1, 0x11, INET)], ids=["v1", "v2 LOCAL", "v2"]
)
@pytest.mark.parametrize(
    "second",
    [b"PROXY UNKNOWN\r\n", b"PROXY ", v2(1, 0x11, INET), SIGNATURE],
    ids=["v1", "v1 begun", "v2", "v2 begun"],
)
def test_f38_a_second_header_is_left_unread_and_known_as_one(first, second):
    _, at = read("auto", first + second)
    assert at == len(first)
    assert begins_header((first + second)[at:])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"P",
        b"PROXY",
        b"PROXYX",
        b"xPROXY ",
        b"proxy ",
        SIGNATURE[:-1],
        b"\r\n" + SIGNATURE,
        b"GET /",
    ],
)
def test_f38_what_does_not_begin_as_a_header_does_is_none(data):
    assert not begins_header(data)


def test_f38_an_address_that_is_not_allowed_may_not_send_a_header():
    allow = allowed_networks(["10.0.0.0/8", "2001:db8::/32"])
    assert not may_send(allow, ("192.0.2.1", 1))
    assert not may_send(allow, ("2001:db9::1", 1, 0, 0))
    assert not may_send(allow, "")
    assert not may_send((), ("127.0.0.1", 1))


@pytest.mark.parametrize(
    "begin", [b"PROXY UNKNOWN ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY TCP6 :: "]
)
@pytest.mark.parametrize("filling", [b"1", b"\r", b"\n", b" ", b":", b"1."])
def test_f39_a_line_without_end_is_refused_within_107_bytes(begin, filling):
    for versions, size in itertools.product(("v1", "auto"), (1, 2, 1000)):
        outcome, at = read(versions, begin + filling * 1000, itertools.repeat(size))
        assert outcome is ProtocolError
        assert at <= 107


def test_f39_a_v2_header_is_never_more_than_its_length_says():
    for length in (12, 13, 255, 256, 32_768, 65_535):
        header = v2(1, 0x11, length=length)
        reader = HeaderReader("v2")
        assert reader.wanted == 16
        assert reader.feed(header) is None
        assert reader.wanted == length
        assert reader.feed(bytes(length - 1)) is None
        assert reader.wanted == 1


@by_header
def test_f40_local_tells_no_address_and_is_told_from_unknown(wire, header):
    found, _ = read("auto", wire)
    is_local = wire.startswith(SIGNATURE + b"\x20")
    assert found.is_local == is_local
    if is_local:
        assert found.source is found.destination is None


# --------------------------------------------------------------------------------------- the oracle

ports = st.integers(0, 65_535)
ipv4 = st.tuples(st.ip_addresses(v=4), ports)
ipv6 = st.tuples(st.ip_addresses(v=6), ports)
paths = st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=108)
tlvs = st.dictionaries(
    st.integers(0, 255).filter(lambda kind: kind not in (3, 4)), st.binary(max_size=40), max_size=6
)
sizes = st.lists(st.integers(1, 40), max_size=30)


def peer(address):
    """An address of the oracle's as `getpeername` gives it."""
    host, port = address
    if host.version == 4:
        return str(host), port
    return socket.inet_ntop(socket.AF_INET6, host.packed), port, 0, 0


@unhurried
@hypothesis.given(
    pair=st.tuples(ipv4, ipv4) | st.tuples(ipv6, ipv6), sizes=sizes, trailing=st.binary(max_size=5)
)
def test_a_line_of_the_oracle_is_read_as_it_was_meant(pair, sizes, trailing):
    result = (
        ProxyResultIPv4 if pair[0][0].version == pair[1][0].version == 4 else ProxyResultIPv6
    )(*pair)
    wire = ProxyProtocolV1().pack(result)
    assert read("auto", wire + trailing, sizes) == (
        v1_header(peer(pair[0]), peer(pair[1])),
        len(wire),
    )


def test_an_unknown_line_of_the_oracle_is_read_as_it_was_meant():
    wire = ProxyProtocolV1().pack(ProxyResultUnknown())
    assert read("auto", wire + b"\r\n") == (v1_header(), len(wire))


@unhurried
@hypothesis.given(
    made=st.tuples(st.just(ProxyResultIPv4), ipv4, ipv4)
    | st.tuples(st.just(ProxyResultIPv6), ipv6, ipv6)
    | st.tuples(st.just(ProxyResultUnix), paths, paths),
    protocol=st.sampled_from([socket.SOCK_STREAM, socket.SOCK_DGRAM, None]),
    tlvs=tlvs,
    sizes=sizes,
    trailing=st.binary(max_size=5),
)
def test_a_v2_header_of_the_oracle_is_read_as_it_was_meant(made, protocol, tlvs, sizes, trailing):
    kind, *pair = made
    wire = ProxyProtocolV2().pack(kind(*pair, protocol=protocol, tlv=ProxyProtocolTLV(init=tlvs)))
    header, at = read("auto", wire + trailing, sizes)
    assert at == len(wire)
    assert (header.version, header.is_local) == (2, False)
    if protocol is socket.SOCK_STREAM:
        assert [header.source, header.destination] == (
            pair if kind is ProxyResultUnix else [peer(address) for address in pair]
        )
    else:
        assert header.source is header.destination is None
    assert {kind: value for kind, value in header.tlvs if kind != 3} == tlvs
    assert 3 in dict(header.tlvs), "the oracle has sent no checksum: is crc32c missing?"


@unhurried
@hypothesis.given(tlvs=tlvs, sizes=sizes)
def test_a_local_header_of_the_oracle_is_read_as_it_was_meant(tlvs, sizes):
    wire = ProxyProtocolV2().pack(ProxyResultLocal(tlv=ProxyProtocolTLV(init=tlvs)))
    header, at = read("auto", wire + b"\r\n", sizes)
    assert at == len(wire)
    assert (header.is_local, header.source, header.destination) == (True, None, None)
    assert {kind: value for kind, value in header.tlvs if kind != 3} == tlvs


def line_by_reference(line):
    """The header of a line with CRLF at its end, by the words of the specification; None: there is
    none.
    """
    try:
        name, family, *rest = line[:-2].decode("ascii").split(" ")
        source, destination, *two = rest
        if name != "PROXY" or family not in ("TCP4", "TCP6") or len(two) != 2:
            return None
        make = ipaddress.IPv4Address if family == "TCP4" else ipaddress.IPv6Address
        pair = [
            peer((make(host), int(port)))
            for host, port in zip((source, destination), two, strict=True)
        ]
    except ValueError:
        return None
    is_canonical = all(str(int(port)) == port and 0 <= int(port) <= 65_535 for port in two)
    return v1_header(*pair) if is_canonical and "%" not in source + destination else None


def near(values, alphabet):
    """What `values` are, and what almost is."""
    return values.map(str) | st.text(alphabet, max_size=8)


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=500)
@hypothesis.example(family="TCP6", fields=("::", "::", "0", "-1"))
@hypothesis.given(
    family=st.sampled_from(["TCP4", "TCP6"]),
    fields=st.tuples(
        *[near(st.ip_addresses(), "0123456789.:afF%")] * 2,
        *[near(st.integers(0, 70_000), "0123456789+-_ ")] * 2,
    ),
)
def test_a_line_is_read_if_and_only_if_the_specification_says_so(family, fields):
    line = f"PROXY {family} {' '.join(fields)}\r\n".encode()
    outcome, _ = read("v1", line)
    assert outcome == (line_by_reference(line) or ProtocolError)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [(b"", 0), (b"123456789", 0xE306_9283), (bytes(32), 0x8A91_36AA), (b"\xff" * 32, 0x62A8_AB43)],
    ids=repr,
)
def test_the_checksum_is_that_of_rfc_3720(data, checksum):
    """The second is the check value by which catalogues name this CRC, the last two are of the
    RFC's appendix B.4.
    """
    assert crc32c(data) == checksum


@unhurried
@hypothesis.given(data=st.binary(max_size=300))
def test_the_checksum_is_that_of_the_oracle(data):
    assert crc32c(data) == crc32c_oracle.crc32c(data)


# ---------------------------------------------------------------------------------- anything at all

short_wires = [wire for wire, _ in [*HEADERS.values(), *WRONG.values()] if len(wire) < 1000]


@st.composite
def damaged(draw):
    """A header with some bytes changed, put in or taken out."""
    wire = bytearray(draw(st.sampled_from(short_wires)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(wire)))
        wire[at : at + draw(st.integers(0, 2))] = draw(
            st.binary(max_size=2) | st.sampled_from([b"\r\n", b" ", b"0", b"\xff\xff"])
        )
    return bytes(wire)


anything = (
    damaged()
    | st.binary(max_size=300)
    | st.binary(max_size=300).map(lambda data: SIGNATURE + data)
    | st.binary(max_size=60).map(lambda data: v2(1, 0x11, INET + data))
    | st.text("PROXYTCUNKW46 .:\r\n0", max_size=120).map(lambda text: b"PROXY " + text.encode())
)


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=1000)
@hypothesis.given(versions=st.sampled_from(list(LIMITS)), wire=anything, sizes=sizes)
def test_whatever_comes_is_a_header_or_none_yet_or_a_protocol_error_however_it_comes(
    versions, wire, sizes
):
    outcome, at = read(versions, wire, sizes)
    assert outcome is None or outcome is ProtocolError or isinstance(outcome, ProxyHeader)
    whole, taken = read(versions, wire)
    assert outcome == whole
    assert at == taken or outcome is ProtocolError


# --------------------------------------------------------------------------------- who may send one


@pytest.mark.parametrize(
    ("network", "peername"),
    [
        ("10.0.0.0/8", ("10.255.0.1", 1)),
        ("10.0.0.1", ("10.0.0.1", 1)),
        ("10.0.0.0/255.0.0.0", ("10.1.2.3", 1)),
        ("0.0.0.0/0", ("192.0.2.1", 1)),
        ("10.0.0.0/8", ("::ffff:10.0.0.1", 1, 0, 0)),
        ("::ffff:10.0.0.0/104", ("::ffff:10.0.0.1", 1, 0, 0)),
        ("::ffff:10.0.0.0/104", ("10.0.0.1", 1)),
        ("::1", ("::1", 1, 0, 0)),
        ("fe80::/10", ("fe80::1%eth0", 1, 0, 2)),
        ("fe80::/10", ("fe80::1%odd%name", 1, 0, 2)),
        (ipaddress.ip_network("10.0.0.0/8"), ("10.0.0.1", 1)),
        (ipaddress.ip_network("2001:db8::/32"), ("2001:db8::1", 1, 0, 0)),
        ("unix", ""),
        ("unix", "/run/proxy"),
        ("unix", b"\0proxy"),
    ],
)
def test_a_peer_that_is_allowed_may_send_a_header(network, peername):
    assert may_send(allowed_networks((network,)), peername)
    assert may_send(allowed_networks(["192.0.2.7", network, "unix", "2001:db8::7"]), peername)


@pytest.mark.parametrize(
    ("network", "peername"),
    [
        ("10.0.0.0/8", ("11.0.0.1", 1)),
        ("10.0.0.1", ("10.0.0.2", 1)),
        ("10.0.0.0/8", ("::ffff:11.0.0.1", 1, 0, 0)),
        ("10.0.0.0/8", ("::10.0.0.1", 1, 0, 0)),
        ("::/0", ("10.0.0.1", 1)),
        ("::/0", ("::ffff:10.0.0.1", 1, 0, 0)),
        ("0.0.0.0/0", ("::1", 1, 0, 0)),
        ("0.0.0.0/0", ""),
        ("::/0", b"\0proxy"),
        ("unix", ("127.0.0.1", 1)),
        ("unix", ("::1", 1, 0, 0)),
    ],
)
def test_a_peer_that_is_not_allowed_may_not(network, peername):
    assert not may_send(allowed_networks((network,)), peername)


def test_networks_are_normalised_in_their_order():
    given = [
        "10.0.0.0/8",
        "unix",
        ipaddress.ip_network("fd00::/8"),
        "::1",
        "::ffff:192.0.2.0/120",
        "::ffff:0:0/96",
        "::fffe:0:0/95",
    ]
    normalised = allowed_networks(given)
    assert normalised == (
        ipaddress.IPv4Network("10.0.0.0/8"),
        "unix",
        ipaddress.IPv6Network("fd00::/8"),
        ipaddress.IPv6Network("::1/128"),
        ipaddress.IPv4Network("192.0.2.0/24"),
        ipaddress.IPv4Network("0.0.0.0/0"),
        ipaddress.IPv6Network("::fffe:0:0/95"),
    )
    assert allowed_networks(normalised) == normalised
    assert allowed_networks(()) == ()


@pytest.mark.parametrize(
    "value",
    [
        "10.0.0.0/8",
        "unix",
        None,
        1,
        {"10.0.0.0/8"},
        [1],
        [b"10.0.0.1"],
        [None],
        [ipaddress.ip_address("::1")],
    ],
)
def test_what_are_no_networks_is_a_type_error_that_names_the_field(value):
    with pytest.raises(TypeError, match=r"^proxy_allow_from: expected .*, not ") as caught:
        allowed_networks(value)
    assert repr(value[0] if isinstance(value, list) else value) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UNIX",
        "localhost",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "10.0.0/8",
        "fd00::1/8",
        "fe80::%eth0/64",
        "::1%lo",
        "10.0.0.0/8 ",
    ],
)
def test_a_text_that_is_no_network_is_a_value_error_that_names_the_field(text):
    with pytest.raises(ValueError, match=r"^proxy_allow_from: must be .*, not ") as caught:
        allowed_networks(["::1", text])
    assert repr(text) in str(caught.value)
