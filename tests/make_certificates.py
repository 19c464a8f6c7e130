"""``python tests/make_certificates.py``: makes the certificates that tests of TLS use anew, with
the `openssl` command, in tests/keys/.

They are made once and kept in the tree: so tests of TLS need no program, and what makes
certificates in Python does not do without a GIL. Nobody else may trust them, for their keys are
known to all.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from certificates import CLIENT_NAME, FOLDER, NAMES

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
    """Issues certificates."""

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        (folder / "openssl.cnf").write_text(CONFIG)
        (folder / "index").touch()
        shutil.copy(self._make("authority", "trusted", "-selfsign"), FOLDER / f"{name}.pem")

    def issue(self, name: str, *names: str, until: str = "2099") -> None:
        """Make the file of a certificate and its key, for these names: hosts, addresses, a mailbox.

        Args:
            until: the year whose first day is its last.
        """
        certificate = self._make(
            name,
            "issued",
            "-cert",
            "authority.pem",
            names=",".join(map(_kind_and_name, names)),
            until=until,
        )
        (FOLDER / f"{name}.pem").write_text(
            certificate.read_text() + (self._folder / f"{name}.key").read_text()
        )

    def _make(
        self, name: str, extensions: str, *signer: str, names: str = "", until: str = "2099"
    ) -> Path:
        def openssl(*arguments: str) -> None:
            command = ["openssl", *arguments, "-config", "openssl.cnf"]
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                cwd=self._folder,
                env=os.environ | {"NAMES": names},
            )

        key, request, certificate = f"{name}.key", f"{name}.request", f"{name}.pem"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-new", *curve, "-keyout", key, "-subj", "/CN=hydrogen", "-out", request)
        signed = [
            "-batch",
            "-notext",
            "-extensions",
            extensions,
            "-enddate",
            f"{until}0101000000Z",
            "-in",
            request,
            "-out",
            certificate,
        ]
        openssl("ca", *signed, *signer, "-keyfile", "authority.key")
        return self._folder / certificate


def _kind_and_name(name: str) -> str:
    """As openssl wants it for subjectAltName."""
    with contextlib.suppress(ValueError):
        return f"IP:{ipaddress.ip_address(name)}"
    return f"email:{name}" if "@" in name else f"DNS:{name}"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        authority, stranger = (
            Authority("authority", Path(first)),
            Authority("stranger", Path(second)),
        )
        authority.issue("server", *NAMES)
        authority.issue("renewed", *NAMES)
        authority.issue("expired", *NAMES, until="2021")
        authority.issue("misnamed", "elsewhere.example.org", "192.0.2.1")
        authority.issue("client", CLIENT_NAME)
        stranger.issue("foreign", *NAMES)
        stranger.issue("foreign_client", CLIENT_NAME)


if __name__ == "__main__":
    main()
