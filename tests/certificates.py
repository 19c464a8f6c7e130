"""Certificates and contexts for tests of TLS; nothing here knows pytest.

A certificate is a file of its own, with its key, in tests/keys/: `make_certificates.py` has made
them, and says why they are kept. Contexts are new with each call, for they can be changed.
"""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
"""What both sides of every test of TLS should be tried with."""

NAMES = ("localhost", "127.0.0.1", "::1")
"""What the server's certificates are for."""

CLIENT_NAME = "client@example.org"

FOLDER = Path(__file__).resolve().parent / "keys"

AUTHORITY = FOLDER / "authority.pem"
"""Without its key: what who trusts it needs."""

STRANGER = FOLDER / "stranger.pem"
"""Of an authority that nobody trusts."""

SERVER = FOLDER / "server.pem"
"""A good one for `NAMES`."""

RENEWED = FOLDER / "renewed.pem"
"""Another one."""

EXPIRED = FOLDER / "expired.pem"
"""One for `NAMES` whose time is over."""

FOREIGN = FOLDER / "foreign.pem"
"""One for `NAMES` by `STRANGER`."""

MISNAMED = FOLDER / "misnamed.pem"
"""One that is good, for another name, and 192.0.2.1."""

CLIENT = FOLDER / "client.pem"
"""A client's own."""

FOREIGN_CLIENT = FOLDER / "foreign_client.pem"
"""A client's, by `STRANGER`."""


def server_context(
    certificate: Path | None = None, *, version: ssl.TLSVersion | None = None, ask: bool = False
) -> ssl.SSLContext:
    """A new context for the server side.

    Args:
        certificate: None: the good one.
        version: of TLS, and no other; None: whatever both sides can.
        ask: demand a certificate of the client, by `AUTHORITY`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, version)
    context.load_cert_chain(certificate or SERVER)
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(AUTHORITY)
    return context


def client_context(
    certificate: Path | None = None, *, version: ssl.TLSVersion | None = None
) -> ssl.SSLContext:
    """A new context for the client side, which trusts `AUTHORITY` and checks names.

    Args:
        certificate: the client's own; None: none.
        version: as for `server_context`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, version)
    context.load_verify_locations(AUTHORITY)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def _context(protocol: int, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def write_files(folder: Path, certificate: Path | None = None) -> tuple[Path, Path]:
    """For programs: the files of a certificate (None: the good one) with its key, and of the
    authority.
    """
    pair, trusted = folder / "certificate.pem", folder / "authority.pem"
    shutil.copyfile(certificate or SERVER, pair)
    shutil.copyfile(AUTHORITY, trusted)
    return pair, trusted
