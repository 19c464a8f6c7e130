"""The PROXY protocol, versions 1 and 2, without I/O: bytes in, a header out. What a proxy says
about the client that it speaks for.

A server behind a proxy sees the proxy's address. The proxy may send the client's, as the first
bytes of the connection (haproxy's doc/proxy-protocol.txt, called "the specification" here). Who may
send such a header can claim any address: `may_send` tells whom to believe. Not a byte after the
header may be taken from the kernel, since TLS or a framing begins there: `HeaderReader.wanted`.

It is no sender of headers, and it never guesses whether there is one: the specification (section 2)
forbids that. No fd is ever seen here; of `socket` only the conversions of addresses are used, so
that they read as `getpeername` writes them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, Literal

from hydrogen.checks import is_several
from hydrogen.errors import Cause, IncompleteFrame, PeerClosed, ProtocolError, described

Versions = Literal["v1", "v2", "auto"]
Address = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""As `getpeername` gives it: IPv4; IPv6; the path of a Unix socket ("" if it has none), or bytes
for one in the abstract namespace.
"""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Allowed = Network | Literal["unix"]

# ---------------------------------------------------------------------------- who may send a header


def allowed_networks(value: object) -> tuple[Allowed, ...]:
    """`Config.proxy_allow_from`, normalised: what `may_send` takes.

    Args:
        value: a sequence of networks, as str ("10.0.0.0/8"; an address alone is a network of one)
            or of `ipaddress`, or the word "unix" for all peers on Unix sockets. A network of
            IPv4-mapped IPv6 addresses becomes that of IPv4.

    Raises:
        TypeError: it is no such sequence.
        ValueError: a str that is no network, that has bits set beyond its prefix, or a scope id,
            which networks do not have.
    """
    if not is_several(value):
        raise TypeError(
            f"proxy_allow_from: expected a sequence of networks, or 'unix', not {described(value)}"
        )
    return tuple(_allowed(entry) for entry in value)


def _allowed(entry: object) -> Allowed:
    if entry == "unix":
        return "unix"
    if not isinstance(entry, (str, ipaddress.IPv4Network, ipaddress.IPv6Network)):
        raise TypeError(
            "proxy_allow_from: expected a network (str, IPv4Network, IPv6Network) or 'unix', not "
            f"{described(entry)}"
        )
    try:
        network = ipaddress.ip_network(entry)
    except ValueError as error:
        raise ValueError(
            f"proxy_allow_from: must be a network such as '10.0.0.0/8', or 'unix', not {entry!r}: "
            f"{error}"
        ) from None
    if isinstance(network, ipaddress.IPv4Network):
        return network
    # `in` would ignore it, and so allow more than is written
    if network.network_address.scope_id is not None:
        raise ValueError(f"proxy_allow_from: must be a network without a scope id, not {entry!r}")
    mapped = network.network_address.ipv4_mapped
    # With fewer than 96 bits of prefix the address of the network is no mapped one, for its 96th
    # bit is 0.
    return network if mapped is None else ipaddress.IPv4Network((mapped, network.prefixlen - 96))


def may_send(allow: Collection[Allowed | str], peername: Address) -> bool:
    """Whether the peer may send a header.

    Args:
        allow: what `allowed_networks` returned.
        peername: the real peer, as `getpeername` gives it. A scope id ("fe80::1%eth0") is no part
            of the address. A peer with an IPv4-mapped IPv6 address is in networks of IPv4 only, so
            that a rule means the same whatever the listener is bound to.
    """
    if not isinstance(peername, tuple):
        return "unix" in allow
    address = ipaddress.ip_address(peername[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return any(address in network for network in allow if not isinstance(network, str))


# --------------------------------------------------------------------------------------- the header


@dataclass(frozen=True)
class ProxyHeader:
    """What a proxy said about a connection. Immutable, and so safe to use from any thread.

    Attributes:
        version: 1 or 2.
        is_local: the proxy connects on its own behalf (v2 LOCAL), as it does for health checks.
        source: the client's address, in the form of `getpeername`; None when it is unknown, so that
            the real peer counts (v1 UNKNOWN; v2 LOCAL, UNSPEC and datagrams).
        destination: the address that the client connected to, in the same form.
        tlvs: (type, value) of the other fields of v2, in the order sent and without padding
            (PP2_TYPE_NOOP). The specification explains them from section 2.2.1 on.
    """

    version: int
    is_local: bool
    source: Address | None
    destination: Address | None
    tlvs: tuple[tuple[int, bytes], ...]


V1_PREFIX = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def begins_header(data: bytes) -> bool:
    """Whether `data` begins with what begins a header: what follows a header must not."""
    return data.startswith((V1_PREFIX, V2_SIGNATURE))


def no_proxy(peername: Any) -> ProtocolError:
    """Why a peer that `may_send` no header is refused."""
    return ProtocolError(
        f"{peername!r} is not allowed to connect: it is no proxy of proxy_allow_from"
    )


def second_header() -> ProtocolError:
    """Why a connection ends whose header is followed by another one."""
    return ProtocolError("a second PROXY header follows the first one")


class HeaderReader:
    """Takes in the one header at the beginning of a connection. For one thread at a time.

    What is wrong is refused at its first byte, with two exceptions: TCP6 addresses are looked at
    when the line is whole (the specification wants it so for all), and the TLVs when the header is.
    At most 107 bytes are held (v1), or 16 + 65,535 (v2).

    Attributes:
        wanted: how many bytes may be read now without one after the header: at least 1, and 0 once
            it is whole. As many as surely belong to it, to save system calls; a line of v1 does not
            tell its length, so it takes some steps.
    """

    __slots__ = ("_header", "_versions", "wanted")

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._header = bytearray()
        self.wanted = V2_FIXED if versions == "v2" else V1_SHORTEST

    @property
    def is_begun(self) -> bool:
        """Whether something has come."""
        return bool(self._header)

    def ended(self) -> tuple[Cause, Exception]:
        """The cause and the removal error when the end comes before the header is whole."""
        if self.is_begun:
            return Cause.INCOMPLETE_FRAME, IncompleteFrame("the end came inside the PROXY header")
        message = "the peer closed the connection before its PROXY header"
        return Cause.PEER_CLOSED, PeerClosed(message)

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Take in what was read; returns the header when it is whole, else None.

        Raises:
            ProtocolError: this is no header of an allowed version, whatever follows. Nothing is to
                be fed afterwards.
            ValueError: more than `wanted`: the caller has read too far.
        """
        if len(data) > self.wanted:
            raise ValueError(f"at most {self.wanted} bytes are wanted, not {len(data)}")
        self._header += data
        if not self._header:
            return None
        is_v2 = self._versions == "v2" or (
            self._versions == "auto" and self._header[0] == V2_SIGNATURE[0]
        )
        self.wanted = _v2_missing(self._header) if is_v2 else _v1_missing(self._header)
        if self.wanted:
            return None
        return _v2_header(bytes(self._header)) if is_v2 else _v1_header(bytes(self._header))


# -------------------------------------------------------------------------------- version 1: a line

V1_SHORTEST = len(b"PROXY UNKNOWN\r\n")
V1_LONGEST = 107
"""Bytes of the longest line (the specification, 2.1)."""

_TCP_SHORTEST = {
    b"TCP4": len(b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n"),
    b"TCP6": len(b"PROXY TCP6 :: :: 0 0\r\n"),
}
_TCP_FIELDS = 6


def _beginnings(*parts: str) -> re.Pattern[bytes]:
    """What matches all beginnings of `parts` in a row, and of anything the longest. The beginnings
    of a part must match it too.
    """
    pattern = ""
    for part in reversed(parts):
        pattern = f"(?:{part}{pattern})?"
    return re.compile(pattern.encode(), re.DOTALL)


_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = (_OCTET, r"\.", _OCTET, r"\.", _OCTET, r"\.", _OCTET)
# a dot: inet_ntop writes IPv4-mapped addresses so, hence proxies do
_IPV6 = ("[0-9A-Fa-f:.]{1,39}",)
_PORT = "(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}|0)"
_V1_LINES = (
    _beginnings(*"PROXY TCP4 ", *_IPV4, " ", *_IPV4, " ", _PORT, " ", _PORT, "\r", "\n"),
    _beginnings(*"PROXY TCP6 ", *_IPV6, " ", *_IPV6, " ", _PORT, " ", _PORT, "\r", "\n"),
    _beginnings(*"PROXY UNKNOWN", "\r", "\n"),
    _beginnings(*"PROXY UNKNOWN ", ".*"),
)


def _v1_missing(line: bytearray) -> int:
    """How many bytes the line surely still has; 0: it is whole."""
    fitting = max(match.end() for pattern in _V1_LINES if (match := pattern.match(line)))
    if fitting < len(line):
        raise ProtocolError(
            f"not a PROXY protocol v1 line: byte {fitting} of {bytes(line)!r} is invalid"
        )
    if line.endswith(b"\r\n"):
        return 0
    fields = line.split(b" ")
    shortest, fields_missing = V1_SHORTEST, 0
    if len(fields) > 2 and bytes(fields[1]) in _TCP_SHORTEST:
        shortest, fields_missing = _TCP_SHORTEST[bytes(fields[1])], _TCP_FIELDS - len(fields)
    # A field has a space and a byte at least, and the end has two bytes, of which \r may have come.
    missing = max(shortest - len(line), 2 * fields_missing + (1 if line.endswith(b"\r") else 2))
    if len(line) + missing > V1_LONGEST:
        raise ProtocolError(
            f"a PROXY protocol v1 line is longer than {V1_LONGEST} bytes: {bytes(line)!r}"
        )
    return missing


def _v1_header(line: bytes) -> ProxyHeader:
    # what is not ASCII is after UNKNOWN, and ignored
    kind, *fields = line.decode("latin-1").split()[1:]
    if kind == "UNKNOWN":
        return ProxyHeader(1, False, None, None, ())
    source, destination, source_port, destination_port = fields
    if kind == "TCP4":
        return ProxyHeader(
            1, False, (source, int(source_port)), (destination, int(destination_port)), ()
        )
    try:
        packed = inet_pton(AF_INET6, source), inet_pton(AF_INET6, destination)
    except OSError:
        raise ProtocolError(
            f"an address in a PROXY protocol v1 line is not an IPv6 address: {line!r}"
        ) from None
    return ProxyHeader(
        1, False, _ipv6(packed[0], int(source_port)), _ipv6(packed[1], int(destination_port)), ()
    )


# -------------------------------------------------------------------------------- version 2: binary

V2_FIXED = 16
"""Bytes of signature, version and command, family and protocol, length of the rest."""

_LOCAL, _PROXY = 0x20, 0x21  # version and command
_TCP4, _TCP6, _UNIX_STREAM = 0x11, 0x21, 0x31  # family and protocol
# by family; UNSPEC has none, for that is how haproxy sends TLVs with it
_ADDRESSES_SIZES = {0: 0, 1: 12, 2: 36, 3: 216}
_TLV_CRC32C, _TLV_NOOP = 0x03, 0x04


def _v2_missing(header: bytearray) -> int:
    """How many bytes the header surely still has; 0: it is whole."""
    if not V2_SIGNATURE.startswith(header[: len(V2_SIGNATURE)]):
        raise ProtocolError(
            f"not a PROXY protocol v2 header: it begins with {bytes(header[: len(V2_SIGNATURE)])!r}"
        )
    if len(header) > 12 and header[12] not in (_LOCAL, _PROXY):
        raise ProtocolError(
            f"version and command 0x{header[12]:02x} in a PROXY protocol v2 header: must be 0x20 "
            "or 0x21"
        )
    # Of LOCAL the family is to be ignored (the specification, 2.2).
    if len(header) > 13 and header[12] == _PROXY and (header[13] >> 4 > 3 or header[13] & 0x0F > 2):
        raise ProtocolError(
            f"family and protocol 0x{header[13]:02x} in a PROXY protocol v2 header are undefined"
        )
    if len(header) < V2_FIXED:
        return V2_FIXED - len(header)
    length = int.from_bytes(header[14:V2_FIXED], "big")
    if _has_addresses(header) and length < _ADDRESSES_SIZES[header[13] >> 4]:
        raise ProtocolError(
            f"length {length} in a PROXY protocol v2 header is too short for addresses of family "
            f"0x{header[13]:02x}"
        )
    return V2_FIXED + length - len(header)


def _has_addresses(header: bytes | bytearray) -> bool:
    """Whether the header has addresses that this server uses.

    Not with LOCAL, nor with UNSPEC. Nor those of datagrams: no client of a stream server sent one,
    and a receiver that does not support a valid combination falls back to UNSPEC (the
    specification, 2.2), as haproxy does.
    """
    return header[12] == _PROXY and header[13] in (_TCP4, _TCP6, _UNIX_STREAM)


def _v2_header(header: bytes) -> ProxyHeader:
    family = header[13]
    begin = V2_FIXED + _ADDRESSES_SIZES.get(family >> 4, len(header))
    tlvs = _tlvs(header, begin)
    if not _has_addresses(header):
        # What is there instead of addresses is to be skipped, whatever it is (the specification,
        # 2.2): it need not be TLVs.
        return ProxyHeader(2, header[12] == _LOCAL, None, None, tlvs or ())
    if tlvs is None:
        raise ProtocolError("the last TLV in a PROXY protocol v2 header extends beyond the header")
    block = header[V2_FIXED:begin]
    source: Address
    destination: Address
    if family == _UNIX_STREAM:
        source, destination = _unix(block[:108]), _unix(block[108:])
    else:
        ports = int.from_bytes(block[-4:-2], "big"), int.from_bytes(block[-2:], "big")
        if family == _TCP4:
            source, destination = (
                (inet_ntop(AF_INET, block[:4]), ports[0]),
                (inet_ntop(AF_INET, block[4:8]), ports[1]),
            )
        else:
            source, destination = _ipv6(block[:16], ports[0]), _ipv6(block[16:32], ports[1])
    return ProxyHeader(2, False, source, destination, tlvs)


def _ipv6(packed: bytes, port: int) -> tuple[str, int, int, int]:
    return inet_ntop(AF_INET6, packed), port, 0, 0


def _unix(field: bytes) -> str | bytes:
    """The address in a `sun_path`, see unix(7): of the abstract namespace when it begins with a
    NUL, else a path that ends at one.
    """
    if field[0] == 0 and any(field):
        # how long the name was is not told; NULs at its end are what pads it
        return field.rstrip(b"\0")
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _tlvs(header: bytes, at: int) -> tuple[tuple[int, bytes], ...] | None:
    """The TLVs from `at` to the end, less the padding; None when they are none: the last is longer
    than the header.

    Raises:
        ProtocolError: the checksum among them (the specification, 2.2.3) is wrong.
    """
    tlvs = []
    checksums = []
    while at < len(header):
        begin = at + 3
        end = begin + int.from_bytes(header[at + 1 : begin], "big")
        if end > len(header):
            return None
        if header[at] == _TLV_CRC32C:
            checksums.append((begin, end))
        if header[at] != _TLV_NOOP:
            tlvs.append((header[at], header[begin:end]))
        at = end
    if checksums:
        (begin, end), *more = checksums
        # they cannot be computed both, and thousands, each of which costs a pass over the header,
        # can be made to be right
        if more:
            raise ProtocolError("more than one checksum in a PROXY protocol v2 header")
        if header[begin:end] != crc32c(header[:begin] + bytes(4) + header[end:]).to_bytes(4, "big"):
            raise ProtocolError("the checksum in a PROXY protocol v2 header is wrong")
    return tuple(tlvs)


# ------------------------------------------------------------------------------------------- CRC32c


def _crc32c_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC32C = tuple(_crc32c_entry(value) for value in range(256))


def crc32c(data: bytes) -> int:
    """The CRC of RFC 3720, 12.1 (Castagnoli's polynomial, bits reflected), which RFC 4960, appendix
    B, has as well. `zlib` has another.

    In Python, since a header has seldom more than 300 bytes; the longest takes some 5 ms.
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
