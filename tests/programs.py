"""Programs of others that tests call: where one is missing its tests are left out, and in CI they
fail.

``python tests/programs.py``, which is `make test-deps`, installs those that are missing (Debian),
or says which they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NoReturn

PACKAGES = {
    "haproxy": "haproxy",
    "openssl": "openssl",
    "prlimit": "util-linux",
    "slowhttptest": "slowhttptest",
    "socat": "socat",
    "ss": "iproute2",
    "sslscan": "sslscan",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
}
"""By the program's name."""

NEEDS = "needs "
"""With the program's name: why a test is left out."""


def found(name: str) -> str | None:
    """Where a program is; also where a user's PATH does not lead."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def path_of(name: str) -> str:
    """Where it is; if it is missing the test that asks is left out, and in CI it fails."""
    path = found(name)
    if path is None:
        leave_out(name)
    return path


def be_root() -> None:
    """The test that asks is left out where it does not run as root, and fails in CI."""
    if os.geteuid() != 0:
        leave_out("root")


def leave_out(what: str) -> NoReturn:
    """The test needs `what`."""
    import pytest  # here: `main` runs where nothing is installed

    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what} is needed: make test-deps")
    pytest.skip(NEEDS + what)


def main() -> None:
    missing = sorted(name for name in PACKAGES if found(name) is None)
    packages = sorted({PACKAGES[name] for name in missing})
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if not missing:
        print("nothing is missing")
    elif not shutil.which("apt-get"):
        sys.exit(f"missing: {', '.join(missing)}; in Debian's packages {', '.join(packages)}")
    elif os.geteuid() != 0:
        sys.exit(f"missing: {', '.join(missing)}; as root: {' '.join(install)}")
    else:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(install, check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


if __name__ == "__main__":
    main()
