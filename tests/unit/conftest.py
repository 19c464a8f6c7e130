"""Fixtures of the load generator's tests: servers that it is run against, and both of its hot
loops.
"""

import contextlib
import os
import socket
import ssl
import threading

import certificates
import pytest
from echoes import unix_server
from perf_reports import made
from support import PATIENCE

from hydrogen.perf import plot
from hydrogen.perf.loops import COMPILED


def pytest_generate_tests(metafunc):
    """Both loops; without the compiled one the other alone, except in CI, where that is a
    failure.
    """
    if "loop" in metafunc.fixturenames:
        python_only = metafunc.config.getoption("--engine") == "python"
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        compiled = not python_only and (COMPILED is not None or in_ci)
        metafunc.parametrize("loop", ["compiled", "python"] if compiled else ["python"])


@pytest.fixture
def serve():
    """Start a server that runs a function on each connection, a thread each: `serve(function) ->
    address`; with `tls`, over TLS.
    """
    with contextlib.ExitStack() as stack:

        def serve(function, address=("127.0.0.1", 0), tls=None):
            listener = (
                socket.create_server(address)
                if isinstance(address, tuple)
                else unix_server(address)
            )
            threads = []

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        threads.append(threading.Thread(target=run, args=(listener.accept()[0],)))
                        threads[-1].start()

            def run(connection):
                with contextlib.suppress(OSError), connection:
                    if tls is None:
                        function(connection)
                    else:
                        with tls.wrap_socket(
                            connection, server_side=True, suppress_ragged_eofs=False
                        ) as secured:
                            function(secured)

            def stop():
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join(PATIENCE)
                listener.close()
                for thread in threads:
                    thread.join(PATIENCE)

            accepting = threading.Thread(target=accept)
            accepting.start()
            stack.callback(stop)
            return listener.getsockname()

        yield serve


@pytest.fixture(scope="module")
def tls():
    """A server's context, with a certificate for this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.SERVER)
    return context


@pytest.fixture(scope="module")
def cacert():
    return str(certificates.AUTHORITY)


@pytest.fixture(scope="module")
def font_is_open(tmp_path_factory):
    """Once matplotlib has written with a font it keeps its file open, which is no leak of a
    test.
    """
    plot.draw([made()], ["a"], tmp_path_factory.mktemp("font") / "plot.svg")
