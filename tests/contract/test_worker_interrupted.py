"""An exception set in a worker from outside, at every moment of a connection's life: deterministic,
one after the other.

The compiled engine's workers run no bytecode of ours but the adapter of a stream: few moments, and
one round for the other families. For that engine see test_guard.py, too.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path

import pytest
from families import FAMILIES, PassThrough, connect_to, options_of
from support import PATIENCE, assert_empty, open_fds

import hydrogen

OURS = str(Path(hydrogen.__file__).parent)


class Late(BaseException):
    """What a library for timeouts sets."""


class Shots:
    """Raises `Late` once in a worker, before moment `number` of those at which CPython raises what
    was set: when a function begins, and when one of C has returned. Counted from `armed` on, in
    hydrogen's modules, in threads that began within `loaded`.
    """

    def __init__(self, number):
        self._left = number
        self.armed = self.came = False

    @contextlib.contextmanager
    def loaded(self):
        threading.setprofile(self._profile)
        try:
            yield
        finally:
            threading.setprofile(None)

    def _profile(self, frame, event, argument):
        if (
            self.came
            or not self.armed
            or event not in ("call", "c_return")
            or not frame.f_code.co_filename.startswith(OURS)
        ):
            return
        if not threading.current_thread().name.startswith("hydrogen-worker"):
            sys.setprofile(None)
            return
        if self._left == 0:
            self.came = True
            raise Late
        self._left -= 1


class Own(PassThrough):
    """Closes its fd by itself, where nothing is raised."""

    def close(self):
        os.close(self.fd)


class Answers(hydrogen.Handler):
    """Echoes."""

    def __init__(self, family):
        self._family = family

    def on_new_connection(self, fd):
        return Own(fd) if self._family == "stream" else None

    def on_data_received(self, socket, data):
        socket.send(data)

    def on_disconnected(self, socket, err):
        pass


def converse(server, family):
    """One message, its echo, and both ends; False: it was cut off."""
    peer = None
    try:
        peer = connect_to(server, family)
        if family == "proxy":
            peer.send(b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 1001\r\n")
        peer.send(b"x\n")
        assert peer.receive(2) == b"x\n"
        peer.finish()
        return peer.end() == "end"
    except TimeoutError:
        raise
    except (OSError, AssertionError):
        return False
    finally:
        if peer is not None:
            peer.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
# a finalizer was met
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.clause("H16")
@pytest.mark.parametrize("family", [*FAMILIES, "proxy"])
def test_an_exception_set_in_the_only_worker_at_any_moment_costs_nobody_else(
    engine, family, tmp_path, error_log
):
    number, came, fds = 0, True, open_fds()
    while came:
        shots = Shots(number)
        with shots.loaded():
            options = options_of(family, str(tmp_path / f"{number}"))
            if family == "proxy":
                options |= {"proxy_protocol": "v1", "proxy_allow_from": ["127.0.0.1"]}
            server = hydrogen.serve(
                Answers(family), engine=engine, max_threads=1, max_connections_per_ip=1, **options
            )
        shots.armed = True
        converse(server, family)
        assert_empty(server)
        came, shots.came = shots.came, True
        assert converse(server, family), f"with moment {number}"
        assert server.stop(PATIENCE).abandoned == 0
        assert_empty(server)
        assert open_fds() == fds, f"with moment {number}"
        number += 1
