"""Headers of the PROXY protocol, made from its specification (haproxy.org, proxy-protocol.txt) and
not from `hydrogen`.
"""

from __future__ import annotations

import socket
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
"""The twelve bytes with which version 2 begins (section 2.2)."""

LOCAL, PROXY = 0x20, 0x21
"""Version 2 and the command."""

UNSPEC, TCP4, UDP4, TCP6, UNIX_STREAM = 0x00, 0x11, 0x12, 0x21, 0x31
"""Family and transport."""

NOOP, AUTHORITY = 0x04, 0x02
"""Types of TLVs."""


def v1(
    source: str, destination: str, source_port: int = 56_324, destination_port: int = 443
) -> bytes:
    """Version 1 for two addresses of one family."""
    family = "TCP6" if ":" in source else "TCP4"
    return f"PROXY {family} {source} {destination} {source_port} {destination_port}\r\n".encode()


def tlv(kind: int, value: bytes) -> bytes:
    """A type-length-value."""
    return struct.pack(">BH", kind, len(value)) + value


def v2_raw(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    """Version 2 with any body; `length`: that it declares, if not the true one."""
    return (
        SIGNATURE
        + struct.pack(">BBH", command, family, len(body) if length is None else length)
        + body
    )


def v2(
    source: str,
    destination: str,
    source_port: int = 56_324,
    destination_port: int = 443,
    tlvs: bytes = b"",
) -> bytes:
    """Version 2 for two addresses of one family: IPv4, IPv6, or paths."""
    if source.startswith("/"):
        return v2_raw(
            PROXY,
            UNIX_STREAM,
            struct.pack("108s108s", source.encode(), destination.encode()) + tlvs,
        )
    family, kind = (socket.AF_INET6, TCP6) if ":" in source else (socket.AF_INET, TCP4)
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return v2_raw(PROXY, kind, addresses + struct.pack(">HH", source_port, destination_port) + tlvs)


def v2_local(body: bytes = b"") -> bytes:
    """Version 2 of a connection that the proxy makes on its own account."""
    return v2_raw(LOCAL, UNSPEC, body)
