"""Certificates for the TLS workloads: made for one comparison, the same for all contenders."""

from __future__ import annotations

import subprocess
from pathlib import Path

SERVER, AUTHORITY = "server.pem", "authority.pem"


def make(folder: Path) -> None:
    """Write the servers' key and certificate, and the authority that the generator verifies it by,
    into ``folder``.

    They are one certificate, signed by itself.
    """
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command = [
        "openssl",
        "req",
        "-x509",
        *curve,
        "-keyout",
        SERVER,
        "-out",
        AUTHORITY,
        "-subj",
        "/CN=hydrogen",
    ]
    try:
        subprocess.run(
            [*command, "-addext", "subjectAltName=IP:127.0.0.1"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    except OSError as error:
        raise ValueError(f"the TLS workloads need openssl: {error}") from error
    with (folder / SERVER).open("a") as file:
        file.write((folder / AUTHORITY).read_text())
