"""Certificates and contexts for tests of TLS: made by an authority of this process, once; nothing here knows pytest.

A certificate is a file of its own, with its key, made by the `openssl` command: what makes them in Python does not do without a GIL. They
are gone with the process. Contexts are new with each call, for they can be changed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import ipaddress
import itertools
import os
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
"""What both sides of every test of TLS should be tried with."""

NAMES = ("localhost", "127.0.0.1", "::1")
"""What the server's certificates are for."""

CLIENT_NAME = "client@example.org"


CONFIG = """
[req]
distinguished_name = nothing
[nothing]
[ca]
default_ca = authority
[authority]
database = index
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
default_startdate = 20200101000000Z
policy = any
[any]
commonName = supplied
[trusted]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[issued]
authorityKeyIdentifier = keyid
subjectKeyIdentifier = hash
subjectAltName = $ENV::NAMES
"""
"""openssl's. The identifiers are there for `ssl.VERIFY_X509_STRICT`."""


class Authority:
    """Issues certificates. `certificate`: its own, the file that who trusts it needs."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hydrogen-certificates-"))
        atexit.register(shutil.rmtree, self._folder)
        self._numbers = itertools.count(1)
        (self._folder / "openssl.cnf").write_text(CONFIG)
        (self._folder / "index").touch()
        self.certificate = self._make("authority", "trusted", "-selfsign")

    def issue(self, *names: str, until: str = "2099") -> Path:
        """A new certificate, with its key, for these names: hosts, addresses, a mailbox. `until`: the year whose first day is its last."""
        name = str(next(self._numbers))
        path = self._make(name, "issued", "-cert", "authority.pem", names=",".join(map(_kind_and_name, names)), until=until)
        with path.open("a") as file:
            file.write((self._folder / f"{name}.key").read_text())
        return path

    def _make(self, name: str, extensions: str, *signer: str, names: str = "", until: str = "2099") -> Path:
        def openssl(*arguments: str) -> None:
            command = ["openssl", *arguments, "-config", "openssl.cnf"]
            subprocess.run(command, check=True, capture_output=True, cwd=self._folder, env=os.environ | {"NAMES": names})

        key, request, certificate = f"{name}.key", f"{name}.request", f"{name}.pem"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-new", *curve, "-keyout", key, "-subj", "/CN=hydrogen", "-out", request)
        signed = ["-batch", "-notext", "-extensions", extensions, "-enddate", f"{until}0101000000Z", "-in", request, "-out", certificate]
        openssl("ca", *signed, *signer, "-keyfile", "authority.key")
        return self._folder / certificate


def _kind_and_name(name: str) -> str:
    """As openssl wants it for subjectAltName."""
    with contextlib.suppress(ValueError):
        return f"IP:{ipaddress.ip_address(name)}"
    return f"email:{name}" if "@" in name else f"DNS:{name}"


@functools.cache
def authority() -> Authority:
    """The authority that tests trust."""
    return Authority()


@functools.cache
def stranger() -> Authority:
    """An authority that nobody trusts."""
    return Authority()


@functools.cache
def server_certificate() -> Path:
    """A good one for `NAMES`."""
    return authority().issue(*NAMES)


@functools.cache
def expired_certificate() -> Path:
    """One for `NAMES` whose time is over."""
    return authority().issue(*NAMES, until="2021")


@functools.cache
def foreign_certificate() -> Path:
    """One for `NAMES` by `stranger()`."""
    return stranger().issue(*NAMES)


@functools.cache
def misnamed_certificate() -> Path:
    """One that is good, for another name."""
    return authority().issue("elsewhere.example.org")


@functools.cache
def client_certificate() -> Path:
    """A client's own."""
    return authority().issue(CLIENT_NAME)


@functools.cache
def foreign_client_certificate() -> Path:
    """A client's, by `stranger()`."""
    return stranger().issue(CLIENT_NAME)


def server_context(certificate: Path | None = None, *, version: ssl.TLSVersion | None = None, ask: bool = False) -> ssl.SSLContext:
    """A new context for the server side.

    Args:
        certificate: None: the good one.
        version: of TLS, and no other; None: whatever both sides can.
        ask: demand a certificate of the client, by `authority()`.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, version)
    context.load_cert_chain(certificate or server_certificate())
    if ask:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority().certificate)
    return context


def client_context(certificate: Path | None = None, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A new context for the client side, which trusts `authority()` and checks names.

    Args:
        certificate: the client's own; None: none.
        version: as for `server_context`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, version)
    context.load_verify_locations(authority().certificate)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def _context(protocol: int, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def write_files(folder: Path, certificate: Path | None = None) -> tuple[Path, Path]:
    """For programs: the files of a certificate (None: the good one) with its key, and of the authority."""
    pair, trusted = folder / "certificate.pem", folder / "authority.pem"
    shutil.copyfile(certificate or server_certificate(), pair)
    shutil.copyfile(authority().certificate, trusted)
    return pair, trusted
