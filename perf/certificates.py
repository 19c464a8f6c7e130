"""Certificates for the TLS workloads: made for one comparison, the same for all arms."""

from __future__ import annotations

from pathlib import Path

SERVER, AUTHORITY = "server.pem", "authority.pem"


def make(folder: Path) -> None:
    """Write the servers' key and certificate, and the authority that the generator verifies it by, into ``folder``."""
    try:
        import trustme
    except ImportError as error:
        raise ValueError(f"the TLS workloads need trustme: {error}") from error
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(str(folder / AUTHORITY))
    server = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / SERVER))
