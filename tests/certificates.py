"""Certificates and contexts for tests of TLS: made by an authority of this process, once; nothing here knows pytest.

Contexts are new with each call, for they can be changed; certificates and authorities are not.
"""

from __future__ import annotations

import datetime
import functools
import ssl
from pathlib import Path

import trustme

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
"""What both sides of every test of TLS should be tried with."""

NAMES = ("localhost", "127.0.0.1", "::1")
"""What the server's certificates are for."""

CLIENT_NAME = "client@example.org"


@functools.cache
def authority() -> trustme.CA:
    """The authority that tests trust."""
    return trustme.CA()


@functools.cache
def stranger() -> trustme.CA:
    """An authority that nobody trusts."""
    return trustme.CA()


@functools.cache
def server_certificate() -> trustme.LeafCert:
    """A good one for `NAMES`."""
    return authority().issue_cert(*NAMES)


@functools.cache
def expired_certificate() -> trustme.LeafCert:
    """One for `NAMES` whose time is over."""
    year = datetime.timedelta(days=365)
    today = datetime.datetime.now(datetime.timezone.utc)
    return authority().issue_cert(*NAMES, not_before=today - 2 * year, not_after=today - year)


@functools.cache
def foreign_certificate() -> trustme.LeafCert:
    """One for `NAMES` by `stranger()`."""
    return stranger().issue_cert(*NAMES)


@functools.cache
def misnamed_certificate() -> trustme.LeafCert:
    """One that is good, for another name."""
    return authority().issue_cert("elsewhere.example.org")


@functools.cache
def client_certificate() -> trustme.LeafCert:
    """A client's own."""
    return authority().issue_cert(CLIENT_NAME)


@functools.cache
def foreign_client_certificate() -> trustme.LeafCert:
    """A client's, by `stranger()`."""
    return stranger().issue_cert(CLIENT_NAME)


def server_context(
    certificate: trustme.LeafCert | None = None, *, version: ssl.TLSVersion | None = None, ask: bool = False
) -> ssl.SSLContext:
    """A new context for the server side.

    Args:
        certificate: None: the good one.
        version: of TLS, and no other; None: whatever both sides can.
        ask: demand a certificate of the client, by `authority()`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, version)
    (certificate or server_certificate()).configure_cert(context)
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        authority().configure_trust(context)
    return context


def client_context(certificate: trustme.LeafCert | None = None, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A new context for the client side, which trusts `authority()` and checks names.

    Args:
        certificate: the client's own; None: none.
        version: as for `server_context`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, version)
    authority().configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def _context(protocol: int, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def write_files(folder: Path, certificate: trustme.LeafCert | None = None) -> tuple[Path, Path]:
    """For programs: the files of a certificate (None: the good one) with its key, and of the authority."""
    pair, trusted = folder / "certificate.pem", folder / "authority.pem"
    (certificate or server_certificate()).private_key_and_cert_chain_pem.write_to_path(pair)
    authority().cert_pem.write_to_path(trusted)
    return pair, trusted
